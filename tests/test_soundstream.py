"""SoundStream's decoder against audiolm-pytorch itself: the same codes must give the same wave, in PyTorch and in ONNX Runtime.

Every weight is random, so that no gate, scale or bias is one or zero, and codebooks count as initialised. fp32 throughout: the largest
error is 1e-5 of the peak, ten times what different summation orders cost here.
"""

import pickle
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from support.soundstream import CODEBOOK, SMALL, TINY, TOLERANCE, random_codes, upstream_soundstream
from torch import Tensor

from musiclm_deploy.export.codec import export_codec_stream
from musiclm_deploy.export.errors import ExportError
from musiclm_deploy.export.soundstream import build_decoder, infer_soundstream, read_pickled_config
from musiclm_deploy.model.causal import state_shapes
from musiclm_deploy.model.soundstream import SoundStreamDecoder
from musiclm_deploy.model.upstream import load_upstream


def our_decoder(model: Any, config: bool = True, **overrides: Any) -> SoundStreamDecoder:
    state = model.state_dict()
    return build_decoder(infer_soundstream(state, model._configs if config else None, "2.4.0", overrides), state)


@torch.no_grad()
def upstream_wave(model: Any, codes: Tensor) -> Tensor:
    return model.decode_from_codebook_indices(codes)[:, 0]


def assert_same_wave(ours: Tensor, theirs: Tensor, what: str) -> None:
    assert ours.shape == theirs.shape and ours.dtype == torch.float32
    error = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    assert theirs.std() > 1e-3 and error <= TOLERANCE, f"{what}: {error:.1e} of the peak"


VARIANTS: dict[str, dict[str, Any]] = {
    "readme strides": {},
    "AudioLM preset": dict(preset="AudioLMSoundStream", rq_num_quantizers=4),
    "MusicLM preset": dict(preset="MusicLMSoundStream", rq_groups=2, attn_depth=2),
    "odd strides": dict(strides=(3, 5), channel_mults=(2, 3), attn_window_size=5),
    "no attention": dict(use_local_attn=False, **SMALL),
    "position bias": dict(attn_dynamic_pos_bias=True, **SMALL),
    "xpos base": dict(attn_xpos_scale_base=7, attn_heads=3, **SMALL),
    "squeeze and excite": dict(squeeze_excite=True, pad_mode="replicate", **SMALL),
    "zero padding": dict(pad_mode="constant", **SMALL),
    "two dilations": dict(dec_cycle_dilations=(2, 1), **SMALL),
    "shared codebook": dict(rq_kwargs=dict(shared_codebook=True), **SMALL),
    "cosine codebook": dict(rq_kwargs=dict(use_cosine_sim=True), **SMALL),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_decodes_as_upstream(name: str) -> None:
    """A setting read wrongly, or a module that differs; lengths lie around the window (8, 5) and beyond several of them."""
    model = upstream_soundstream(**VARIANTS[name])
    decoder = our_decoder(model)
    for frames in {decoder.min_frames, max(8, decoder.min_frames), 41}:
        codes = random_codes(model, 2, frames)
        with torch.no_grad():
            assert_same_wave(decoder(codes), upstream_wave(model, codes), f"{frames} frames")


EXPORTED: dict[str, dict[str, Any]] = {
    "readme strides, groups, depth 2": dict(rq_groups=2, attn_depth=2),
    "odd strides, no attention": dict(use_local_attn=False, strides=(3, 5), channel_mults=(2, 3)),
    "zero padding": dict(pad_mode="constant", **SMALL),
}


@pytest.mark.parametrize("name", EXPORTED)
def test_graph_decodes_as_upstream(name: str, tmp_path: Path) -> None:
    """A batch or length baked in by tracing; a row that depends on its neighbours; windows that are counted wrongly."""
    model = upstream_soundstream(**EXPORTED[name])
    decoder = our_decoder(model)
    path = tmp_path / "codec_stream.onnx"
    export_codec_stream(decoder, path)
    session = onnxruntime.InferenceSession(path)

    shapes = state_shapes(decoder)

    def run(codes: Tensor) -> Tensor:
        given = {f"state.{name}": np.zeros((len(codes), *shape), np.float32) for name, shape in shapes.items()}
        given |= {"codes": codes.numpy(), "state.frames": np.zeros(1, np.int64)}
        return torch.from_numpy(np.asarray(session.run(["wave"], given)[0]))

    ins, outs = ({value.name: value.shape for value in values} for values in (session.get_inputs(), session.get_outputs()))
    states = {"frames": [1], **{name: ["batch", *shape] for name, shape in shapes.items()}}
    columns = model.rq_groups * model.num_quantizers
    assert ins == {"codes": ["batch", "n", columns], **{f"state.{name}": shape for name, shape in states.items()}}
    assert outs == {"wave": ["batch", f"{decoder.config.hop}*n"], **{f"next.{name}": shape for name, shape in states.items()}}

    sizes = {1, 7, 8, 9, 16, 17, 18, 300}  # around one and two windows; one such size is traced, the others are not
    for frames in {decoder.min_frames, *(size for size in sizes if size > decoder.min_frames)}:
        codes = random_codes(model, 3, frames)
        wave = run(codes)
        assert_same_wave(wave, upstream_wave(model, codes), f"{frames} frames")
        for row in range(3):
            assert_same_wave(run(codes[row : row + 1])[0], wave[row], f"row {row} of {frames} frames alone")

    graph = onnx.load(path, load_external_data=False)
    assert [(opset.domain, opset.version) for opset in graph.opset_import] == [("", 20)]
    assert b".py" not in graph.SerializeToString(), "the graph carries source paths of the machine that made it"


def test_missing_codes_add_nothing() -> None:
    """Generated quantizers may be fewer than trained: upstream takes fewer columns, we take -1 in the others."""
    model = upstream_soundstream(**SMALL)
    codes = random_codes(model, 2, 30)
    expected = upstream_wave(model, codes[..., :2])
    codes[..., 2] = -1
    with torch.no_grad():
        assert_same_wave(our_decoder(model)(codes), expected, "two of three quantizers")


@pytest.mark.parametrize(
    ("arguments", "frames"),
    [
        (dict(strides=(2, 4, 5, 8)), 7),
        (dict(strides=(3, 4, 5, 8)), 7),
        (SMALL, 19),
        (dict(dec_cycle_dilations=(1, 2), **SMALL), 7),
        (dict(pad_mode="replicate", **SMALL), 1),
    ],
)
def test_lookahead_is_exact(arguments: dict[str, Any], frames: int) -> None:
    """A first chunk of a stream that is too short (samples change later) or longer than needed, and upstream's shortest clip."""
    model = upstream_soundstream(**arguments)
    decoder = our_decoder(model)
    assert decoder.lookahead_frames == decoder.min_frames == frames

    length, hop = frames + 4, decoder.config.hop
    codes = random_codes(model, 1, length).repeat(length + 1, 1, 1)
    codes[torch.arange(length), torch.arange(length)] = (codes[0] + 1) % CODEBOOK  # row j: another code in frame j
    with torch.no_grad():
        wave = decoder.double()(codes).unflatten(1, (length, hop))
    changed = (wave[:-1] - wave[-1:]).abs().amax(2) > 1e-12  # [frame of the code, frame of the wave]
    assert changed.diagonal().all()
    reached = {(code, sample) for code, sample in changed.nonzero().tolist() if sample < code}
    assert max((code for code, _ in reached), default=0) == frames - 1  # no code from K on reaches back, code K - 1 does

    if frames > 1:
        with pytest.raises(RuntimeError, match="Padding size"):
            upstream_wave(model, codes[:1, : frames - 1])


def test_saved_file_is_read_without_executing_pickle(tmp_path: Path) -> None:
    """SoundStream.save wraps a pickle in bytes: torch's restricted reader must hand it over unread, and we must read it ourselves."""
    model = upstream_soundstream(strides=(3, 4, 5, 8), target_sample_hz=22050, attn_window_size=6, attn_depth=2)
    model.save(tmp_path / "soundstream.pt")
    package = torch.load(tmp_path / "soundstream.pt", weights_only=True)
    assert isinstance(package["config"], bytes)

    settings = infer_soundstream(package["model"], package["config"], package["version"], {})
    saved = pickle.loads(model._configs)
    told = {name: setting for name, setting in settings.items() if name in saved}
    rest = {name: value for name, value in settings.values().items() if name not in saved and "." not in name}
    assert rest == {"version": "2.4.0", "gate_values_per_head": True, "pads_whole_kernels": False}
    assert {name: setting.value for name, setting in told.items()} == {name: saved[name] for name in told}
    assert {setting.source for setting in told.values()} == {"saved config"}
    assert read_pickled_config(package["config"]) == saved


def test_without_config_defaults_are_named() -> None:
    """A bare state dict: shapes tell most, upstream's defaults the rest, and the record says which is which."""
    model = upstream_soundstream("MusicLMSoundStream", attn_window_size=128)
    settings = infer_soundstream(model.state_dict(), None, "1.9.0", {})
    sources = {name: setting.source for name, setting in settings.items()}
    assert settings["target_sample_hz"] == 24000 and settings["attn_window_size"] == 128 and settings["strides"] == (3, 4, 5, 8)
    assert sources["pad_mode"] == "default of audiolm-pytorch 2.4.0 (the checkpoint was saved by 1.9.0)"
    assert sources["channels"] == "decoder.5.conv.weight [1, 4, 7]"

    state = upstream_soundstream(**SMALL).state_dict()
    settings = infer_soundstream(state, None, None, {"attn_window_size": 8, "dec_cycle_dilations": [1, 3, 9], "strides": [2, 3]})
    assert settings["target_sample_hz"] == 16000 and dict(settings.items())["attn_window_size"].source == "override"
    codes = torch.zeros(1, 40, 3, dtype=torch.long)
    with torch.no_grad():
        assert_same_wave(build_decoder(settings, state)(codes), upstream_wave(upstream_soundstream(**SMALL), codes), "overrides")


def test_contradictions_are_refused() -> None:
    """A config beside the tensors of another model, or an override against either, must not pass silently."""
    model = upstream_soundstream(**SMALL)
    state, config = model.state_dict(), model._configs
    other = pickle.dumps(pickle.loads(config) | {"codebook_dim": 32})
    with pytest.raises(ExportError, match=r"codebook_dim = 32, the tensors say 16 \(decoder.0.conv.weight \[16, 16, 7\]\)"):
        infer_soundstream(state, other, None, {})
    with pytest.raises(ExportError, match="attn_window_size = 9 contradicts the checkpoint, which says 8"):
        infer_soundstream(state, config, None, {"attn_window_size": 9})
    with pytest.raises(ExportError, match="unknown override 'attn_window'"):
        infer_soundstream(state, None, None, {"attn_window": 9})
    for name, value in dict(attn_window_size=0, pad_mode="circular", dec_cycle_dilations=[], target_sample_hz=0).items():
        with pytest.raises(ExportError, match=f"{name} is .*, expected"):
            infer_soundstream(state, None, None, {name: value})
    with pytest.raises(ExportError, match="the override target_sample_hz must be of type int, as in 16000; got '16k'"):
        infer_soundstream(state, None, None, {"target_sample_hz": "16k"})


@pytest.mark.parametrize(
    ("argument", "arguments"),
    [
        ("use_lookup_free_quantizer", dict(use_lookup_free_quantizer=True, codebook_size=16, codebook_dim=4)),
        ("use_finite_scalar_quantizer", dict(use_finite_scalar_quantizer=True, codebook_size=None, finite_scalar_quantizer_levels=[3, 4])),
        ("use_gate_loop_layers", dict(use_gate_loop_layers=True)),
        ("implicit_neural_codebook", dict(rq_kwargs=dict(implicit_neural_codebook=True))),
        ("codebook_dim", dict(rq_kwargs=dict(codebook_dim=5))),
        ("input_channels = 2", dict(input_channels=2)),
    ],
)
def test_uncovered_variants_are_refused_by_name(argument: str, arguments: dict[str, Any]) -> None:
    """Such a checkpoint would otherwise decode to noise or fail far from its cause; with its config and without."""
    load_upstream()
    from audiolm_pytorch import SoundStream

    model = SoundStream(**TINY | SMALL | arguments)
    for config in (model._configs, None):
        with pytest.raises(ExportError, match=argument):
            infer_soundstream(model.state_dict(), config, None, {})


def test_damaged_tensors_are_refused() -> None:
    """A missing or non-finite tensor must be named here, not met as a torch error or as silence in the wave."""
    model = upstream_soundstream(**SMALL)
    state = dict(model.state_dict())
    settings = infer_soundstream(state, model._configs, None, {})
    name = "decoder.1.2.fn.0.conv.weight"
    with pytest.raises(ExportError, match=name):
        build_decoder(settings, {key: value for key, value in state.items() if key != name})
    with pytest.raises(ExportError, match=f"{name} holds NaN"):
        build_decoder(settings, state | {name: torch.full_like(state[name], torch.nan)})
    with pytest.raises(ExportError, match=r"'decoder\.3\.conv.weight' is missing"):
        infer_soundstream({key: value for key, value in state.items() if not key.startswith("decoder.3.")}, None, None, {})


class RunsACommand:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return __import__("os").system, (f"touch {self.path}",)


def test_hostile_config_is_never_executed(tmp_path: Path) -> None:
    """A pickle that runs a command when loaded is refused by the name of what it calls, also through getattr and partial."""
    trace = tmp_path / "executed"
    attacks = {
        "posix.system": pickle.dumps({"channels": RunsACommand(trace)}),
        "builtins.eval": b"cbuiltins\ngetattr\n(cbuiltins\neval\nVreal\ntR.",
        "builtins.__import__": b"cfunctools\npartial\n(cbuiltins\n__import__\nVos\ntR.",
        "torch.nn.modules.linear.Linear": pickle.dumps({"stft_discriminator": torch.nn.Linear(1, 1)}),
    }
    for name, data in attacks.items():
        with pytest.raises(ExportError, match=f"names {name}, which could run code"):
            read_pickled_config(data)
    assert not trace.exists()
    pickle.loads(attacks["posix.system"])
    assert trace.exists(), "the attack itself does not work, so this test shows nothing"


def test_config_with_a_window_function_is_read() -> None:
    """Upstream lets the STFT discriminator have its window function, bare or in a partial: training only, no reason to refuse."""
    window: dict[str, Any] = dict(complex_stft_discr_kwargs=dict(stft_window_fn=partial(torch.hann_window, periodic=False)))
    model = upstream_soundstream(**SMALL, **window)
    assert infer_soundstream(model.state_dict(), model._configs, None, {})["attn_window_size"] == 8
    function = read_pickled_config(model._configs)["complex_stft_discr_kwargs"]["stft_window_fn"]
    assert not callable(function)


def oversized_memo() -> bytes:
    """Five bytes that make the unpickler reserve 64 GB for its memo."""
    return b"\x80\x04}r" + (2**32 - 1).to_bytes(4, "little") + b"."


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "damaged"),
        (pickle.dumps({"channels": 4})[:-3], "damaged"),
        (b"\x80\x04\x96" + (2**40).to_bytes(8, "little") + b".", "damaged"),
        (oversized_memo(), "damaged .*memo"),
        (pickle.dumps({"channels": "4" * 100_000}), "100.* bytes, expected at most"),
        (pickle.dumps([1, 2]), "is a list, expected a dictionary"),
    ],
)
def test_damaged_config_is_refused(data: bytes, message: str) -> None:
    """Truncated, oversized or memory-hungry pickles end in one sentence, not in a traceback or a full memory."""
    with pytest.raises(ExportError, match=message):
        read_pickled_config(data)
