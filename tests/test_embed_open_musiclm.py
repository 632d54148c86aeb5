"""libmusiclm makes Python's samples with open-musiclm's transformers: each bias, feed-forward, kind of positions and precision."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from support import embed
from support.open_musiclm import SAID, write_checkpoints

import musiclm_deploy as md
from musiclm_deploy.export.checkpoint import read_checkpoint
from musiclm_deploy.export.export import records_of
from musiclm_deploy.export.stage import export_stage
from musiclm_deploy.export.transformers import infer_transformer
from musiclm_deploy.runtime.bundle import MANIFEST, STAGES, Bundle

pytestmark = pytest.mark.skipif(
    bool(embed.MISSING), reason=f"libmusiclm is built with {', '.join(embed.MISSING)}, which this machine lacks"
)

DRAWN = {f"{stage}__filter_thres": 0.3 for stage in STAGES}  # by default k would be 1 at this size
SAMPLING = {stage: md.SamplingConfig(filter_thres=0.3) for stage in STAGES}
WINDOWS = {"semantic": {"max_length": 24}, "coarse": {"max_time_steps": 12, "semantic_window": 11}, "fine": {"max_time_steps": 5}}


@dataclass(frozen=True)
class Variant:
    bias: str
    convolution: bool
    absolute: bool
    precisions: tuple[str, str, str]
    dim_head: int = 8


VARIANTS = (
    Variant("continuous", True, False, ("fp32", "int8", "int4")),
    Variant("t5", False, True, ("int8", "int4", "fp32"), 7),
    Variant("none", True, True, ("int4", "fp32", "int8"), 20),
)


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    return embed.load()


@pytest.fixture
def make_bundle(open_musiclm_bundle: Path, tmp_path: Path) -> Callable[[Variant], Path]:
    def make(variant: Variant) -> Path:
        folder = tmp_path / "bundle"
        shutil.copytree(open_musiclm_bundle, folder)
        options = {"relative_position_bias_type": variant.bias, "use_conv_ff": variant.convolution}
        options |= {"use_absolute_position_embeddings": variant.absolute, "max_absolute_position_embeddings": 40}
        files = write_checkpoints(tmp_path / "files", dim_head=variant.dim_head, **options)
        decoders = {}
        for stage, precision in zip(STAGES, variant.precisions, strict=True):
            checkpoint = read_checkpoint(files[stage], stage)
            settings = infer_transformer(stage, checkpoint, SAID | WINDOWS[stage])
            decoders[stage] = export_stage(stage, checkpoint, settings, folder, 24, 1, precision)
        manifest = Bundle.open(open_musiclm_bundle).manifest
        (folder / MANIFEST).unlink()
        written = replace(manifest, **decoders, seconds=0.5, files=records_of(folder))
        (folder / MANIFEST).write_text(written.to_json(), encoding="utf-8")
        return folder

    return make


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.bias)
def test_the_same_samples(variant: Variant, make_bundle: Callable[[Variant], Path], library: ctypes.CDLL) -> None:
    """Whole, of the bundle's own length, as a stream with short windows, and with ends that may be drawn."""
    folder = make_bundle(variant)
    early = {"plan": "low_latency", "first_window_s": 0.06, "seconds": 0.7, "seed": 9}
    with md.load(folder, device="cpu", step="native", threads=1) as reference:
        whole = reference.generate("calm piano", seconds=0.61, seed=4, sampling=SAMPLING)
        usual = reference.generate("calm piano", seed=4, sampling=SAMPLING)
        ending = reference.generate("drums", seconds=1, seed=3, sampling=SAMPLING, stop="eos")
        chunks = [chunk.audio for chunk in reference.stream("brass, fast", sampling=SAMPLING, **early)]
    assert whole.tokens.fine is not None and len(np.unique(whole.tokens.fine)) > 3, "a clip of one token compares nothing"
    model = embed.Model(library, folder)
    made = model.generate("calm piano", seconds=0.61, seed=4, **DRAWN)
    by_default = model.generate("calm piano", seed=4, **DRAWN)
    ended = model.generate("drums", seconds=1, seed=3, stop="eos", **DRAWN)
    stream = model.stream("brass, fast", **early, **DRAWN)
    heard = stream.rest()
    stream.close()
    model.close()
    assert made.tobytes() == whole.audio.tobytes()
    assert len(by_default) == 8000 and by_default.tobytes() == usual.audio.tobytes()
    assert ended.tobytes() == ending.audio.tobytes()
    assert heard.tobytes() == np.concatenate(chunks).tobytes()


def test_save_and_resume(open_musiclm_bundle: Path, library: ctypes.CDLL, tmp_path: Path) -> None:
    """A clip that was saved midway goes on with the samples that it would have had."""
    model = embed.Model(library, open_musiclm_bundle)
    whole = model.generate("calm piano", seconds=2, seed=4)
    stream = model.stream("calm piano", seconds=2, seed=4, ahead_s=0.5)
    begun = [stream.read(8000)]
    stream.save(tmp_path / "clip")
    stream.close()
    rest = model.resume(tmp_path / "clip", 0.5)
    begun.append(rest.rest())
    rest.close()
    model.close()
    assert np.concatenate(begun).tobytes() == whole.tobytes()
