"""EnCodec at 24 kHz against the packages that it comes from: the same codes give the same wave, the same wave the same codes.

Every weight is random, in the packages' own classes and sizes or in small ones, and the codebooks are laid over the latents, each level
finer than the last. Waves are fp32: the largest error is 1e-5 of the peak, ten times what different summation orders cost here.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from support.encodec import hugging_face, noise, randomise, small
from support.upstream_tokens import FRAMES, SEMANTIC_STEPS, TEXTS, shared_noise, upstream_generate
from torch import Tensor

import musiclm_deploy as md
from demo.checkpoints import TINY, build_models, save_checkpoints
from musiclm_deploy.export.checkpoint import read_checkpoint
from musiclm_deploy.export.codec import build_codec, export_codec_encode, export_codec_stream, infer_codec
from musiclm_deploy.export.collect import collect
from musiclm_deploy.export.encodec import build_encodec, infer_encodec
from musiclm_deploy.export.errors import ExportError
from musiclm_deploy.model.causal import state_shapes
from musiclm_deploy.model.encodec import EncodecDecoder, EncodecEncoder
from musiclm_deploy.model.upstream import load_upstream

TOLERANCE = 1e-5  # of the peak, fp32
BANDWIDTHS = {1.5: 2, 3.0: 4, 6.0: 8, 12.0: 16, 24.0: 32}  # kbps: quantizers


@pytest.fixture(scope="module")
def full() -> Any:
    """The model of the encodec package at its own size, 15 M parameters."""
    load_upstream()
    from encodec.model import EncodecModel

    return randomise(EncodecModel.encodec_model_24khz(pretrained=False))


def ours(model: Any, quantizers: int, **overrides: Any) -> tuple[EncodecDecoder, EncodecEncoder]:
    state = model.state_dict()
    return build_encodec(infer_encodec(state, {}, quantizers, overrides), state)


@torch.no_grad()
def package_codes(model: Any, wave: Tensor, quantizers: int) -> Tensor:
    """[B, frames, Q] by the package's own search."""
    return model.quantizer.vq.encode(model.encoder(wave), n_q=quantizers).permute(1, 2, 0)


@torch.no_grad()
def package_wave(model: Any, codes: Tensor) -> Tensor:
    return model.decode([(codes.transpose(1, 2), None)])[:, 0]


def assert_same_wave(found: Tensor, expected: Tensor, what: str) -> None:
    assert found.shape == expected.shape and found.dtype == torch.float32
    error = ((found - expected).abs().max() / expected.abs().max()).item()
    assert expected.std() > 1e-4 and error <= TOLERANCE, f"{what}: {error:.1e} of the peak"


@pytest.mark.parametrize("kbps", BANDWIDTHS)
def test_every_bandwidth(kbps: float, full: Any) -> None:
    """A quantizer too many or too few for a bandwidth, or one in another's place; weight norm folded along the wrong axis."""
    full.set_target_bandwidth(kbps)
    decoder, encoder = ours(full, BANDWIDTHS[kbps])
    wave = noise(2, 9)
    with torch.no_grad():
        expected = full.encode(wave)[0][0].transpose(1, 2)
        codes = encoder(wave[:, 0])
        assert codes.shape == (2, 9, BANDWIDTHS[kbps]) and torch.equal(codes, expected)
        assert all(len(column.unique()) >= 3 for column in codes.flatten(0, 1).T), "too few codes to tell anything"
        assert_same_wave(decoder(codes), package_wave(full, codes), f"{kbps} kbps")


@pytest.mark.parametrize("frames", [1, 2, 6, 7, 40])
def test_every_length(frames: int, full: Any) -> None:
    """Clips that are too short to be reflected: encodec lengthens them with zeros, and so must we."""
    decoder, encoder = ours(full, 4)
    wave = noise(1, frames)
    codes = package_codes(full, wave, 4)
    with torch.no_grad():
        assert torch.equal(encoder(wave[:, 0]), codes)
        assert_same_wave(decoder(codes), package_wave(full, codes), f"{frames} frames")


def test_graphs(tmp_path: Path) -> None:
    """A batch or length baked in by tracing, above all in the LSTM; a row that depends on its neighbours; gates in torch's order."""
    model = small(strides := (3, 1, 4))
    decoder, encoder = ours(model, 5)
    export_codec_stream(decoder, tmp_path / "decode.onnx")
    export_codec_encode(encoder, tmp_path / "encode.onnx")
    decode, encode = (onnxruntime.InferenceSession(tmp_path / f"{name}.onnx") for name in ("decode", "encode"))
    assert decode.get_inputs()[0].shape == ["batch", "n", 5]
    assert [value.shape for value in encode.get_inputs()] == [["batch", f"{np.prod(strides)}*frames"]]

    def wave_of(codes: np.ndarray) -> Tensor:
        zeros = {f"state.{name}": np.zeros((len(codes), *shape), np.float32) for name, shape in state_shapes(decoder).items()}
        return torch.from_numpy(np.asarray(decode.run(["wave"], {"codes": codes, "state.frames": np.zeros(1, np.int64), **zeros})[0]))

    for batch, frames in ((1, 1), (3, 2), (1, 6), (3, 7), (2, 8), (1, 131)):
        wave = noise(batch, frames, model)
        codes = np.asarray(encode.run(["codes"], {"wave": wave[:, 0].numpy()})[0])
        assert np.array_equal(codes, package_codes(model, wave, 5)), f"{batch} rows of {frames} frames"
        found = wave_of(codes)
        assert_same_wave(found, package_wave(model, torch.from_numpy(codes)), f"{batch} rows of {frames} frames")
        assert_same_wave(wave_of(codes[-1:])[0], found[-1], f"the last row of {frames} frames alone")


def test_lookahead_is_exact() -> None:
    """A first chunk of a stream that is too short (samples change later) or longer than needed."""
    for strides, frames in (((2, 4, 5, 8), 7), ((2, 3), 7)):
        decoder, _ = ours(small(strides), 5)
        assert decoder.lookahead_frames == frames and decoder.min_frames == 1
        length = frames + 4
        codes = torch.randint(16, (1, length, 5), generator=torch.Generator().manual_seed(0)).repeat(length + 1, 1, 1)
        codes[torch.arange(length), torch.arange(length)] = (codes[0] + 1) % 16  # row j: another code in frame j
        with torch.no_grad():
            wave = decoder.double()(codes).unflatten(1, (length, -1))
        changed = (wave[:-1] - wave[-1:]).abs().amax(2) > 1e-12  # [frame of the code, frame of the wave]
        assert changed.diagonal().all()
        assert max(code for code, sample in changed.nonzero().tolist() if sample < code) == frames - 1


def test_missing_codes_add_nothing() -> None:
    """Fewer quantizers than the graph has: -1 in their columns, as for a SoundStream."""
    model = small()
    codes = package_codes(model, noise(2, 20, model), 5)
    expected = package_wave(model, codes[..., :3])
    codes[..., 3:] = -1
    with torch.no_grad():
        assert_same_wave(ours(model, 5)[0](codes), expected, "three of five quantizers")


# --- files


@pytest.mark.parametrize("names", ["of today", "of torch before 2.0"])
def test_transformers_folder(names: str, tmp_path: Path) -> None:
    """A folder of `save_pretrained`: other names for the same tensors, two ways to write weight norm, a config to agree with."""
    model = hugging_face()
    model.save_pretrained(tmp_path)
    if names != "of today":
        from safetensors.torch import load_file, save_file

        old = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
        state = load_file(tmp_path / "model.safetensors")
        for new, name in old.items():
            state = {key.replace(new, name): tensor for key, tensor in state.items()}
        assert "encoder.layers.0.conv.weight_g" in state
        save_file(state, tmp_path / "model.safetensors")
    checkpoint = read_checkpoint(tmp_path, "codec")
    settings = infer_codec(checkpoint, 3, {})
    assert dict(settings.items())["target_sample_hz"].source == "config.json"
    assert (settings["strides"], settings["rq_num_quantizers"]) == ((2, 4), 3)
    assert dict(settings.items())["rq_num_quantizers"].source == (
        f"the first of {model.config.num_quantizers} quantizer.layers, as many as the coarse and fine transformers have"
    )
    decoder, encoder = build_codec(settings, checkpoint.state)
    assert encoder is not None
    wave = noise(2, 25, model)
    with torch.no_grad():
        expected = model.encode(wave, bandwidth=60.0).audio_codes[0].transpose(1, 2)[..., :3]
        assert torch.equal(encoder(wave[:, 0]), expected)
        found, theirs = decoder(expected), model.decode(expected.transpose(1, 2)[None], [None]).audio_values[:, 0]
        assert_same_wave(found, theirs, "transformers")


def test_package_file(full: Any, tmp_path: Path) -> None:
    """The file that encodec downloads: a bare state dict, whatever its name."""
    torch.save(full.state_dict(), tmp_path / "encodec_24khz-d7cc33bc.th")
    checkpoint = read_checkpoint(tmp_path / "encodec_24khz-d7cc33bc.th", "codec")
    settings = infer_codec(checkpoint, 8, {"strides": [2, 4, 5, 8], "target_sample_hz": 24000})
    values = settings.values()
    assert (values["n_filters"], values["codebook_size"], values["rq_num_quantizers"], values["rq_groups"]) == (32, 1024, 8, 1)
    assert infer_codec(checkpoint, 32, {})["rq_num_quantizers"] == 32


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (dict(normalize=True), "normalize = True; covered is the 24 kHz model, False"),
        (dict(audio_channels=2), "audio_channels = 2; covered is the 24 kHz model, 1"),
        (dict(norm_type="time_group_norm"), "norm_type = 'time_group_norm'"),
        (dict(use_causal_conv=False), "use_causal_conv = False"),
        (dict(pad_mode="constant"), "pad_mode = 'constant'"),
        (dict(trim_right_ratio=0.5), "trim_right_ratio = 0.5"),
        (dict(chunk_length_s=1.0, overlap=0.01), "chunk_length_s = 1.0"),
    ],
)
def test_other_models_of_transformers_are_refused(arguments: dict[str, Any], reason: str, tmp_path: Path) -> None:
    """Such a model would decode to something else without a word: its tensors look the same."""
    model = hugging_face()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | arguments))
    with pytest.raises(ExportError, match=f"codec: this EnCodec was made with {reason}"):
        infer_codec(read_checkpoint(tmp_path, "codec"), 3, {})
    (tmp_path / "config.json").write_text("[1, 2")
    with pytest.raises(ExportError, match=r"config\.json: not JSON"):
        read_checkpoint(tmp_path, "codec")


def test_other_tensors_are_refused(tmp_path: Path) -> None:
    """The 48 kHz model, layers that the 24 kHz model lacks, and damage: each by name."""
    load_upstream()
    from encodec.model import EncodecModel

    with pytest.raises(ExportError, match="group norms, as the 48 kHz model"):
        infer_encodec(EncodecModel.encodec_model_48khz(pretrained=False).state_dict(), {}, 8, {})
    model = small()
    state = dict(model.state_dict())
    settings = infer_encodec(state, {}, 5, {})
    name = "decoder.model.3.convtr.convtr.weight_v"
    with pytest.raises(ExportError, match=r"(?s)not those of the 24 kHz EnCodec.*decoder\.layers\.3\.conv\.weight"):
        build_encodec(settings, {key: value for key, value in state.items() if not key.startswith(name[:-9])})
    with pytest.raises(ExportError, match=r"'decoder\.layers\.3\.conv\.weight_g' is missing"):
        build_encodec(settings, {key: value for key, value in state.items() if key != f"{name[:-1]}g"})
    with pytest.raises(ExportError, match=r"decoder\.layers\.3\.conv\.weight holds NaN"):
        build_encodec(settings, state | {name: torch.full_like(state[name], torch.nan)})
    with pytest.raises(ExportError, match=r"override strides = .* contradicts the checkpoint"):
        infer_encodec(state, {}, 5, {"strides": [2, 4]})
    (tmp_path / "model.safetensors").write_bytes(b"\x10" + bytes(30))
    with pytest.raises(ExportError, match="not a safetensors file, or a damaged one"):
        read_checkpoint(tmp_path, "codec")


# --- a whole MusicLM


@pytest.fixture(scope="module")
def wrapper(full: Any) -> Any:
    """audiolm-pytorch's wrapper at 3 kbps, with these weights where it would download others."""
    from audiolm_pytorch import EncodecWrapper

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("encodec.EncodecModel._get_pretrained", staticmethod(lambda *_: full.state_dict()))
        return EncodecWrapper(bandwidth=3.0)


@pytest.fixture(scope="module")
def coded(wrapper: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """Upstream's modules of a tiny MusicLM over EnCodec, and the bundle of the live object."""
    import audiolm_pytorch
    import musiclm_pytorch

    models: dict[str, Any] = dict(build_models(replace(TINY, codebook_size=1024, coarse_quantizers=1, fine_quantizers=3)))
    stages = {f"{stage}_transformer": models[stage] for stage in ("semantic", "coarse", "fine")}
    audio_lm = audiolm_pytorch.AudioLM(wav2vec=None, codec=wrapper, unique_consecutive=True, **stages)
    live = musiclm_pytorch.MusicLM(audio_lm, models["quantizer"])
    return models, md.export_musiclm(live, tmp_path_factory.mktemp("encodec") / "bundle", quiet=True)


def test_live_model_generates_as_upstream(coded: tuple[dict[str, Any], Path], wrapper: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A live EnCodec that is not saved, tokens or waves that differ from upstream's, rows of a batch laid over each other as there."""
    models, bundle = coded
    variant = {"conditioning": "cross", "rel_pos_bias": True, "unique_consecutive": True, "filter_thres": 0.7, "cond_scale": 3.0}
    variant |= {"codes": (1, 3, 1024, 1)}
    given = shared_noise(variant, seed=0)
    expected = upstream_generate(variant, models, models["quantizer"], wrapper, given, monkeypatch)
    with md.load(bundle, device="cpu") as model:
        codec = model.bundle.manifest.codec
        assert (codec.sample_hz, codec.samples_per_frame, codec.quantizers, codec.groups, codec.codebook_size) == (24000, 320, 4, 1, 1024)
        assert (codec.lookahead_frames, codec.min_frames, codec.min_encode_frames) == (7, 1, 1)
        assert model.bundle.manifest.errors["codec_encode"] < 1e-5 and model.bundle.manifest.errors["codec_stream"] < 1e-5
        sampling = {
            stage: md.SamplingConfig(filter_thres=0.7, cond_scale=3.0 if stage == "coarse" else None) for stage in ("coarse", "fine")
        }
        sampling["semantic"] = md.SamplingConfig(filter_thres=0.7)
        options: dict[str, Any] = {"max_semantic_tokens": SEMANTIC_STEPS, "compat": "upstream", "sampling": sampling}
        found = model.generate(TEXTS, seconds=FRAMES * 320 / 24000, noise=given, **options)
        codes = model.encode_audio((found[2].audio, 24000))

    for row, music in enumerate(found):
        semantic = expected["semantic"][row].numpy()
        assert (music.tokens.semantic == semantic[semantic != -1]).all()
        assert (music.tokens.coarse == expected["coarse"][row].numpy()).all()
        assert (music.tokens.fine == expected["fine"][row].numpy()).all()
        columns = torch.cat([expected["coarse"][row], expected["fine"][row]], dim=-1)[None]
        assert_same_wave(torch.from_numpy(music.audio), wrapper.decode_from_codebook_indices(columns).detach()[0, 0], f"row {row}")
    assert np.array_equal(codes, wrapper.eval()(torch.from_numpy(found[2].audio)[None])[1].numpy())


def test_codec_with_too_few_quantizers(coded: tuple[dict[str, Any], Path], full: Any, tmp_path: Path) -> None:
    """Token transformers that need more quantizers than the codec has, and codebooks that never saw data."""
    models, _ = coded
    paths = save_checkpoints({name: model for name, model in models.items() if name != "codec"}, tmp_path)
    state = full.state_dict()
    few = {name: tensor for name, tensor in state.items() if not name.startswith("quantizer.") or int(name.split(".")[3]) < 3}
    torch.save(few, tmp_path / "few.th")
    with pytest.raises(ExportError, match=r"fine\.pt: 4 coarse and fine quantizers, but few\.th: rq_num_quantizers is 3"):
        collect({**paths, "codec": tmp_path / "few.th"}, {})
    torch.save({**state, "quantizer.vq.layers.0._codebook.inited": torch.zeros(1)}, tmp_path / "new.th")
    with pytest.raises(ExportError, match=r"new\.th: its codebooks were never initialised"):
        collect({**paths, "codec": tmp_path / "new.th"}, {})
