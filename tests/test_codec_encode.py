"""SoundStream's encoder against audiolm-pytorch itself: the same wave must give the same codes, in PyTorch and in ONNX Runtime.

Every weight is random. The codebooks are laid over the latents, each level finer than the last, so that every column holds many codes.
"""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from support.soundstream import SMALL, random_codes, upstream_soundstream
from torch import Tensor

import musiclm_deploy as md
from musiclm_deploy.export import validate as validating
from musiclm_deploy.export.codec import export_codec_encode
from musiclm_deploy.export.collect import Collected, collect
from musiclm_deploy.export.errors import ExportError
from musiclm_deploy.export.export import records_of
from musiclm_deploy.export.soundstream import build_decoder, build_encoder, infer_soundstream
from musiclm_deploy.model.soundstream_encoder import SoundStreamEncoder
from musiclm_deploy.runtime import memory
from musiclm_deploy.runtime.audio import resample
from musiclm_deploy.runtime.bundle import MANIFEST, Bundle


@torch.no_grad()
def encoding_soundstream(preset: str = "SoundStream", **arguments: Any) -> Any:
    model = upstream_soundstream(preset, **arguments)
    for parameter in [*model.encoder.parameters(), *(model.encoder_attn.parameters() if model.encoder_attn else [])]:
        parameter += 0.1 * torch.randn_like(parameter)
    latents = upstream_latents(model, waves(model, 2, 30)).flatten(0, 1)
    for rvq, part in zip(model.rq.rvqs, latents.chunk(model.rq_groups, dim=-1), strict=True):
        for level, layer in enumerate(rvq.layers):
            embed = layer._codebook.embed
            spread = part.std(0) * torch.randn_like(embed) / 2**level
            embed.copy_(torch.nn.functional.normalize(spread, dim=-1) if layer.use_cosine_sim else spread + part.mean(0) * (level == 0))
    return model


def waves(model: Any, batch: int, frames: int) -> Tensor:
    """Each row of another loudness."""
    wave = torch.randn(batch, frames * model.seq_len_multiple_of, generator=torch.Generator().manual_seed(frames))
    return wave * torch.logspace(-1.5, 0, batch).unsqueeze(1)


def upstream_latents(model: Any, wave: Tensor) -> Tensor:
    x = model.encoder(wave.unsqueeze(1)).transpose(1, 2)
    return model.encoder_attn(x) if model.encoder_attn else x


@torch.no_grad()
def upstream_codes(model: Any, wave: Tensor) -> Tensor:
    return model(wave, return_encoded=True)[1]


def our_encoder(model: Any, config: bool = True, **overrides: Any) -> SoundStreamEncoder | None:
    state = model.state_dict()
    return build_encoder(infer_soundstream(state, model._configs if config else None, "2.4.0", overrides), state)


VARIANTS: dict[str, dict[str, Any]] = {
    "readme strides": {},
    "MusicLM preset, two groups, depth 2": dict(preset="MusicLMSoundStream", rq_groups=2, attn_depth=2),
    "three groups": dict(rq_groups=3, codebook_dim=24, **SMALL),
    "odd strides": dict(strides=(3, 5), channel_mults=(2, 3), attn_window_size=5),
    "no attention": dict(use_local_attn=False, **SMALL),
    "position bias": dict(attn_dynamic_pos_bias=True, **SMALL),
    "xpos base": dict(attn_xpos_scale_base=7, attn_heads=3, **SMALL),
    "squeeze and excite": dict(squeeze_excite=True, pad_mode="replicate", **SMALL),
    "zero padding": dict(pad_mode="constant", **SMALL),
    "dilations of its own": dict(enc_cycle_dilations=(2, 1), dec_cycle_dilations=(1, 4, 2), **SMALL),
    "shared codebook": dict(rq_kwargs=dict(shared_codebook=True), **SMALL),
    "cosine codebook": dict(rq_kwargs=dict(use_cosine_sim=True), **SMALL),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_encodes_as_upstream(name: str) -> None:
    """A setting read wrongly, a module that differs, another distance; lengths around the window (8, 5) and of several."""
    model = encoding_soundstream(**VARIANTS[name])
    encoder = our_encoder(model)
    assert encoder is not None
    for frames in sorted({encoder.min_frames, max(8, encoder.min_frames), 41}):
        wave = waves(model, 2, frames)
        expected = upstream_codes(model, wave)
        with torch.no_grad():
            assert torch.equal(encoder(wave), expected), f"{frames} frames"
    assert all(len(column.unique()) >= 3 for column in expected.flatten(0, 1).T), "too few codes to tell anything"


def test_groups_are_columns_of_upstreams_order() -> None:
    """Two groups exchanged, or quantizers counted before groups, on either side; a book at the offset of another."""
    model = encoding_soundstream(rq_groups=2, **SMALL)
    encoder, wave = our_encoder(model), waves(model, 2, 25)
    assert encoder is not None
    tokenized = model.tokenize(wave)  # [G, B, frames, Q]
    with torch.no_grad():
        codes = encoder(wave)
    assert codes.shape == (2, 25, 6)
    for group in range(2):
        for quantizer in range(3):
            assert torch.equal(codes[..., group * 3 + quantizer], tokenized[group, ..., quantizer])
    assert not torch.equal(tokenized[0], tokenized[1])

    decoder = build_decoder(infer_soundstream(model.state_dict(), model._configs, "2.4.0", {}), model.state_dict())
    with torch.no_grad():
        quantized = model.rq.get_output_from_indices(tokenized)
        assert torch.allclose(decoder.codebooks(codes), quantized, atol=1e-5)
        assert torch.allclose(quantized, model(wave, return_encoded=True)[0], atol=1e-5)


def test_graph_encodes_as_upstream(tmp_path: Path) -> None:
    """A batch or length baked in by tracing; a row that depends on its neighbours; the search of one group in another's books.
    The other settings of attention and search go through the graph of the bundle below."""
    cosine: dict[str, Any] = dict(rq_groups=2, rq_kwargs=dict(use_cosine_sim=True))
    model = encoding_soundstream(
        strides=(3, 5), channel_mults=(2, 3), squeeze_excite=True, attn_dynamic_pos_bias=True, attn_depth=2, **cosine
    )
    encoder = our_encoder(model)
    assert encoder is not None
    path = tmp_path / "codec_encode.onnx"
    export_codec_encode(encoder, path)
    session = onnxruntime.InferenceSession(path)

    def run(wave: Tensor) -> Tensor:
        return torch.from_numpy(np.asarray(session.run(["codes"], {"wave": wave.numpy()})[0]))

    (given,), (found,) = session.get_inputs(), session.get_outputs()
    assert given.shape == ["batch", f"{encoder.config.hop}*frames"]
    assert (found.shape[0], found.shape[2]) == ("batch", model.rq_groups * model.num_quantizers)
    sizes = {1, 2, 7, 8, 9, 16, 17, 61}  # around one and two windows, and many
    for frames in {encoder.min_frames, *(size for size in sizes if size > encoder.min_frames)}:
        wave = waves(model, 3, frames)
        codes = run(wave)
        assert torch.equal(codes, upstream_codes(model, wave)), f"{frames} frames"
        for row in range(3):
            assert torch.equal(run(wave[row : row + 1])[0], codes[row]), f"row {row} of {frames} frames alone"

    graph = onnx.load(path, load_external_data=False)
    assert [(opset.domain, opset.version) for opset in graph.opset_import] == [("", 20)]
    assert b".py" not in graph.SerializeToString(), "the graph carries source paths of the machine that made it"


@pytest.mark.parametrize(
    ("arguments", "frames"),
    [
        (dict(strides=(2, 4, 5, 8)), 7),
        (dict(strides=(3, 4, 5, 2)), 28),
        (SMALL, 19),
        (dict(enc_cycle_dilations=(1, 2), **SMALL), 5),
        (dict(pad_mode="replicate", **SMALL), 2),  # upstream's downsampling reflects whatever pad_mode says
    ],
)
def test_shortest_wave(arguments: dict[str, Any], frames: int) -> None:
    """A least length that is too short for the graph, or longer than upstream's own."""
    model = encoding_soundstream(**arguments)
    encoder = our_encoder(model)
    assert encoder is not None and encoder.min_frames == frames
    with torch.no_grad():
        assert torch.equal(encoder(waves(model, 1, frames)), upstream_codes(model, waves(model, 1, frames)))
    with pytest.raises(RuntimeError, match="Padding size"):
        upstream_codes(model, waves(model, 1, frames - 1))


def test_what_is_over_a_frame() -> None:
    """Upstream drops it, from either end; what the codec takes is whole frames, and these codes are the same."""
    model = encoding_soundstream(**SMALL)
    encoder, hop = our_encoder(model), model.seq_len_multiple_of
    assert encoder is not None
    wave = torch.randn(2, 25 * hop + 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(encoder(wave[:, : 25 * hop]), upstream_codes(model, wave))
        from_left = model(wave, return_encoded=True, curtail_from_left=True)[1]
        assert torch.equal(encoder(wave[:, 4:]), from_left)
        filled = encoder(torch.nn.functional.pad(wave, (0, hop - 4)))
    assert torch.equal(filled[:, :25], upstream_codes(model, wave)), "a frame depends on what follows it"


def test_uncovered_searches_give_no_encoder() -> None:
    """Beam search and affine codebooks find other codes than the nearest: such a codec decodes, but must not encode wrongly."""
    for kwargs in (dict(beam_size=4), dict(affine_param=True)):
        model = upstream_soundstream(rq_kwargs=kwargs, **SMALL)
        settings = infer_soundstream(model.state_dict(), model._configs, None, {})
        assert build_encoder(settings, model.state_dict()) is None
        build_decoder(settings, model.state_dict())(random_codes(model, 1, 20))
    model = encoding_soundstream(rq_kwargs=dict(use_cosine_sim=True), **SMALL)
    settings = infer_soundstream(model.state_dict(), None, None, {})
    assert dict(settings.items())["rq_kwargs.use_cosine_sim"].source == "codes of length 1"
    with pytest.raises(ExportError, match=r"rq_kwargs\.beam_size is 0, expected a positive integer or null"):
        infer_soundstream(model.state_dict(), None, None, {"rq_kwargs.beam_size": 0})


def test_damaged_encoder_is_refused() -> None:
    """A file saved without its encoder, or with a NaN in it."""
    model = upstream_soundstream(**SMALL)
    state = dict(model.state_dict())
    settings = infer_soundstream(state, model._configs, None, {})
    with pytest.raises(ExportError, match=r'(?s)not those of a SoundStream encoder.*"encoder\.0\.conv\.weight"'):
        build_encoder(settings, {name: tensor for name, tensor in state.items() if not name.startswith("encoder.")})
    name = "encoder.1.2.fn.0.conv.weight"
    with pytest.raises(ExportError, match=f"{name} holds NaN"):
        build_encoder(settings, state | {name: torch.full_like(state[name], torch.nan)})


# --- in a bundle


def test_bundle_encodes(music: md.MusicLM, tiny_models: dict[str, Any]) -> None:
    """Another rate taken for the codec's, a last frame that is lost, one wave that is not a batch."""
    codec, model = music.bundle.manifest.codec, tiny_models["codec"]
    wave = waves(model, 2, 21).numpy()

    def encode(wave: np.ndarray, hz: int = codec.sample_hz) -> np.ndarray:
        return music.encode_audio([(row, hz) for row in wave])

    codes = encode(wave)
    assert codes.dtype == np.int64 and np.array_equal(codes, upstream_codes(model, torch.from_numpy(wave)))
    assert np.array_equal(music.encode_audio((wave[1], codec.sample_hz)), codes[1:])

    part = encode(wave[:, :-100])
    assert part.shape == codes.shape and np.array_equal(part[:, :-1], codes[:, :-1])

    other = resample(wave, codec.sample_hz, 44100)
    expected = model(torch.from_numpy(other), return_encoded=True, input_sample_hz=44100)[1].numpy()
    found = encode(other, 44100)
    assert found.shape[1] >= expected.shape[1] and np.array_equal(found[:, : expected.shape[1]], expected)

    least = (codec.min_encode_frames - 1) * codec.samples_per_frame + 1
    assert encode(wave[:, :least]).shape == (2, codec.min_encode_frames, codec.quantizers)
    for wrong, message in (
        (wave[:, : least - 1], rf"the codec encodes waves \[B, t\] of at least {least} samples at 16000 Hz, got \[2, {least - 1}\]"),
        (wave[:, :0], "sound 1 of 2: the wave is empty"),
        (wave[None], r"sound 1 of 1: a wave of shape \[1, 2"),
        (np.full_like(wave, np.nan), "the wave holds NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            encode(wrong) if wrong.ndim == 2 else music.encode_audio([(wrong, codec.sample_hz)])


def test_encoding_is_refused_before_memory_is_taken(music: md.MusicLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour of sound that swaps instead of being refused; ten seconds refused with 128 MB free."""
    wave = np.zeros((1, 160_000), np.float32)
    monkeypatch.setattr(memory, "least_memory", lambda: memory.MemoryLimit(128_000_000, "a limit"))
    assert len(music.encode_audio((wave, 16000))) == 1
    with pytest.raises(MemoryError, match=r"the codec stage of this request needs 208\.8 MB, 128\.0 MB are free"):
        music.encode_audio([(wave, 16000)] * 2)


def test_bundle_without_encoder(tiny_bundle: Path, tmp_path: Path) -> None:
    """An encoder that is not there must say why, and music must not need it."""
    folder = copy_with(tiny_bundle, tmp_path / "bundle", encode=None)
    with md.load(folder, device="cpu") as model, pytest.raises(ValueError, match="this bundle's codec decodes only"):
        model.encode_audio((np.zeros(9999, np.float32), 16000))


def test_validation_finds_wrong_weights(tiny_bundle: Path, tiny_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """A comparison that lets wrong codes or waves pass, or one that takes honest ones for wrong."""
    collected = collect(tiny_checkpoints, {})
    assert max(measured(tiny_bundle, collected).values()) < 1e-5
    graphs = ("codec_stream", "codec_encode")
    spoilt = {f"{graph}.onnx.data": np.fromfile(tiny_bundle / f"{graph}.onnx.data", np.float32) * np.float32(1.01) for graph in graphs}
    errors = measured(copy_with(tiny_bundle, tmp_path / "bundle", **{name: data.tobytes() for name, data in spoilt.items()}), collected)
    assert [graph for graph in graphs if errors[graph] > validating.TOLERANCES[graph]] == [*graphs]


def measured(bundle: Path, collected: Collected) -> dict[str, float]:
    with md.load(bundle, device="cpu") as model, torch.inference_mode():
        return validating._codec(model, collected, {})


def copy_with(bundle: Path, folder: Path, **changes: Any) -> Path:
    """A copy with other files (bytes) or another codec record, whole by its manifest."""
    shutil.copytree(bundle, folder)
    files = {name: value for name, value in changes.items() if isinstance(value, bytes)}
    for name, value in files.items():
        (folder / name).write_bytes(value)
    manifest = Bundle.open(bundle).manifest
    codec = replace(manifest.codec, **{name: value for name, value in changes.items() if name not in files})
    (folder / MANIFEST).unlink()
    (folder / MANIFEST).write_text(replace(manifest, codec=codec, files=records_of(folder)).to_json())
    return folder
