"""libmusiclm makes Python's samples for every kind of bundle that runs on a CPU: a covering set of what the exporter lets differ."""

from __future__ import annotations

import ctypes
import itertools
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import embed

import musiclm_deploy as md
from demo.checkpoints import TINY, randomize
from musiclm_deploy.export.checkpoint import Checkpoint
from musiclm_deploy.export.codec import export_codec_stream
from musiclm_deploy.export.export import records_of
from musiclm_deploy.export.soundstream import build_decoder, infer_soundstream
from musiclm_deploy.export.stage import export_stage
from musiclm_deploy.export.transformers import infer_transformer
from musiclm_deploy.model.causal import state_shapes
from musiclm_deploy.model.upstream import load_upstream
from musiclm_deploy.runtime.bundle import MANIFEST, STAGES, Bundle, Codec, Decoder

pytestmark = pytest.mark.skipif(
    bool(embed.MISSING), reason=f"libmusiclm is built with {', '.join(embed.MISSING)}, which this machine lacks"
)

DRAWN = {f"{stage}__filter_thres": 0.3 for stage in STAGES}  # by default k would be 1 at this size
SAMPLING = {stage: md.SamplingConfig(filter_thres=0.3) for stage in STAGES}
WINDOWS = {"semantic": {"max_length": 24}, "coarse": {"max_time_steps": 12}, "fine": {"max_time_steps": 5}}  # several in a short clip
ODD = (1, 7, 333, 1001, 2)  # frames of the reads, in turn


@dataclass(frozen=True)
class Variant:
    codec: str  # "SoundStream", "two groups" of its quantizers, "EnCodec"
    bias: bool  # relative position bias, or none, as flash attention has it
    conditioning: str  # "cross", "prefix", "none"
    streams: int  # residual streams, of hyper-connections
    precisions: tuple[str, ...]  # of each stage
    unique: bool  # semantic tokens without repetitions, which carry no time
    shape: tuple[int, int, int] = (2, 8, 2)  # heads, head size, depth
    version: str = "2.4.0"  # of audiolm-pytorch that saved it: before 2.2 there is no value residual

    def __str__(self) -> str:
        return f"{self.codec}, {'bias' if self.bias else 'flash'}, {self.conditioning}, {self.streams}, {self.precisions[0]}"


VARIANTS = (
    Variant("two groups", False, "prefix", 1, ("int8",) * 3, False),
    Variant("EnCodec", True, "none", 1, ("int4",) * 3, False, (3, 20, 1)),
    Variant("two groups", True, "cross", 4, ("int4", "fp32", "int8"), True),
    Variant("EnCodec", False, "none", 4, ("fp32", "int8", "int4"), True),
    Variant("SoundStream", True, "prefix", 4, ("fp32",) * 3, False, (4, 7, 3)),
    Variant("SoundStream", False, "cross", 1, ("int8", "int4", "fp32"), True, version="2.1.4"),
)


def test_every_level_is_there_twice() -> None:
    """Fault: a kind of bundle that no variant is, or that always comes with one and the same other kind."""
    for name in ("codec", "bias", "conditioning", "streams", "unique"):
        found = [getattr(variant, name) for variant in VARIANTS]
        assert all(found.count(level) >= 2 for level in set(found)), name
    assert {(stage, variant.precisions[stage]) for variant in VARIANTS for stage in range(3)} == set(
        itertools.product(range(3), ("fp32", "int8", "int4"))
    )


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    return embed.load()


@pytest.fixture(scope="module")
def two_groups(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Codec]:
    """The files of a SoundStream's decoder with two residual groups, and its record."""
    load_upstream()
    import audiolm_pytorch

    torch.manual_seed(3)
    small: dict[str, Any] = {"channels": 4, "strides": (8, 5, 4, 2), "channel_mults": (2, 2, 2, 2), "codebook_dim": 16}
    attention: dict[str, Any] = {"attn_heads": 2, "attn_dim_head": 8, "attn_window_size": 4}
    discriminators: dict[str, Any] = {"multi_spectral_window_powers_of_two": (6,), "complex_stft_discr_kwargs": {"channels": 1}}
    codec = audiolm_pytorch.SoundStream(
        **small, **attention, **discriminators, codebook_size=TINY.codebook_size, rq_num_quantizers=5, rq_groups=2
    )
    randomize(codec)
    folder, state = tmp_path_factory.mktemp("codec"), codec.eval().state_dict()
    decoder = build_decoder(infer_soundstream(state, codec._configs, None, {}), state)
    export_codec_stream(decoder, folder / "codec_stream.onnx")
    record = replace(
        Bundle.open(tiny_bundle).manifest.codec,
        encode=None,
        samples_per_frame=decoder.config.hop,
        quantizers=10,
        groups=2,
        lookahead_frames=decoder.lookahead_frames,
        min_frames=decoder.min_frames,
        states={name: list(shape) for name, shape in state_shapes(decoder).items()},
    )
    return folder, record


@pytest.fixture
def make_bundle(tiny_bundle: Path, second_bundle: Path, two_groups: tuple[Path, Codec], tmp_path: Path) -> Callable[[Variant], Path]:
    """A function that makes a variant's bundle: the tiny one, with stages and a codec of its own."""

    def make(variant: Variant) -> Path:
        folder = tmp_path / "bundle"
        shutil.copytree(tiny_bundle, folder)
        manifest = Bundle.open(folder).manifest
        codec = manifest.codec
        if variant.codec == "two groups":
            codec = two_groups[1]
            shutil.copytree(two_groups[0], folder, dirs_exist_ok=True)
        elif variant.codec == "EnCodec":
            codec = Bundle.open(second_bundle).manifest.codec
            for file in second_bundle.glob("codec_*"):
                shutil.copy(file, folder)
        stages = zip(STAGES, variant.precisions, strict=True)
        decoders = {stage: export_variant(variant, stage, precision, codec.groups, folder) for stage, precision in stages}
        (folder / MANIFEST).unlink()
        made = replace(manifest, **decoders, codec=codec, unique_consecutive=variant.unique, files=records_of(folder))
        (folder / MANIFEST).write_text(made.to_json(), encoding="utf-8")
        return folder

    return make


def export_variant(variant: Variant, stage: str, precision: str, groups: int, folder: Path) -> Decoder:
    """Write a stage of random weights into `folder`, in place of the one that is there."""
    load_upstream()
    import audiolm_pytorch

    torch.manual_seed(STAGES.index(stage))
    arguments: dict[str, Any] = {
        "dim": TINY.dim,
        **dict(zip(("heads", "dim_head", "depth"), variant.shape, strict=True)),
        "add_value_residual": variant.version != "2.1.4",
        "rel_pos_bias": variant.bias,
        "flash_attn": not variant.bias,
        "num_residual_streams": variant.streams,
        "audio_text_condition": variant.conditioning != "none",
        "cond_as_self_attn_prefix": variant.conditioning == "prefix",
    }
    codes = {"codebook_size": TINY.codebook_size, "num_coarse_quantizers": TINY.coarse_quantizers}
    own = {"num_semantic_tokens": TINY.semantic_tokens} | codes
    model = {
        "semantic": lambda: audiolm_pytorch.SemanticTransformer(num_semantic_tokens=TINY.semantic_tokens, **arguments),
        "coarse": lambda: audiolm_pytorch.CoarseTransformer(**own, **arguments),
        "fine": lambda: audiolm_pytorch.FineTransformer(num_fine_quantizers=TINY.fine_quantizers, **codes, **arguments),
    }[stage]()
    randomize(model)
    state = model.eval().state_dict()
    if variant.version != "2.4.0":
        state = {name.replace(".branch.", "."): tensor for name, tensor in state.items()}
    checkpoint = Checkpoint(f"{stage}.pt", state, variant.version)
    told = {} if variant.conditioning == "cross" else {"cond_as_self_attn_prefix": variant.conditioning == "prefix"}
    settings = infer_transformer(stage, checkpoint, WINDOWS[stage] | told)
    return export_stage(stage, checkpoint, settings, folder, WINDOWS["semantic"]["max_length"], groups, precision)


def read_oddly(stream: embed.Stream) -> np.ndarray:
    """Return all that a stream gives, in reads of odd sizes."""
    pieces = [np.zeros(0, np.float32)]
    for frames in itertools.cycle(ODD):
        try:
            pieces.append(stream.read(frames))
        except embed.Refused as end:
            assert end.status == embed.ENDED, end
            return np.concatenate(pieces)
    raise AssertionError


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_every_kind_of_bundle(variant: Variant, make_bundle: Callable[[Variant], Path], library: ctypes.CDLL) -> None:
    """Fault: a kind of bundle of which the library makes other samples than Python, whole or as a stream that is read in odd pieces."""
    folder = make_bundle(variant)
    early = {"plan": "low_latency", "first_window_s": 0.06, "seconds": 0.7, "seed": 9, "stop": "eos"}
    with md.load(folder, device="cpu", step="native", threads=1) as reference:
        whole = reference.generate("calm piano", seconds=0.61, seed=4, sampling=SAMPLING)
        chunks = [chunk.audio for chunk in reference.stream("brass, fast", sampling=SAMPLING, **early)]
    assert len(np.unique(whole.tokens.fine)) > 3 and np.std(whole.audio) > 0, "a clip of one token compares nothing"
    model = embed.Model(library, folder)
    made = model.generate("calm piano", seconds=0.61, seed=4, **DRAWN)
    stream = model.stream("brass, fast", **early, **DRAWN)
    heard = read_oddly(stream)
    stream.close()
    model.close()
    assert made.tobytes() == whole.audio.tobytes()
    assert heard.tobytes() == np.concatenate(chunks).tobytes()
