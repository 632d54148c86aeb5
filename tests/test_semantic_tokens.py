"""Semantic tokens from log-mel k-means: the clusters mean something, the file holds them all, upstream's wrappers train on them, and the
graph of a bundle gives the same."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import musiclm_deploy as md
from musiclm_deploy.cli import main
from musiclm_deploy.export.checkpoint import Checkpoint
from musiclm_deploy.export.collect import collect
from musiclm_deploy.export.errors import ExportError
from musiclm_deploy.export.semantic_tokens import build_tokenizer, infer_mel
from musiclm_deploy.export.validate import TOLERANCES, tokenizer_error
from musiclm_deploy.model import MelKmeans
from musiclm_deploy.model.upstream import load_upstream
from musiclm_deploy.runtime.bundle import Bundle, SemanticTokenizer

load_upstream()
import audiolm_pytorch  # noqa: E402 (imports only after load_upstream)
import torchaudio  # noqa: E402

SMALL: dict[str, Any] = dict(num_clusters=19, target_sample_hz=8000, tokens_per_second=50, n_mels=20)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.1


def tone(hz: float, seconds: float = 1.0, sample_hz: int = 8000) -> Tensor:
    return 0.5 * torch.sin(2 * math.pi * hz * torch.arange(round(seconds * sample_hz)) / sample_hz)


def test_tokens_tell_tones_apart() -> None:
    """Clusters of something else than pitch: frames in another order than the wave, centres in another scale than the features."""
    tokenizer = MelKmeans(4, 8000, n_mels=20)
    pitches = (300, 700, 1300, 2600)
    tokenizer.fit([tone(hz) for hz in pitches], seed=0)
    song = torch.cat([tone(hz, 0.4) for hz in (700, 300, 2600, 1300, 700)])
    (tokens,) = tokenizer(song[None])
    assert tokens.shape == (100,) and tokens.dtype == torch.int64
    notes = [set(part[3:-3].tolist()) for part in tokens.split(20)]  # a frame at a change sees both notes
    assert all(len(note) == 1 for note in notes), notes
    assert notes[0] == notes[4] and len(set.union(*notes)) == 4, notes


def test_features_equal_an_independent_computation(mel_kmeans: MelKmeans) -> None:
    """Deltas of the wrong sign or width, frames a hop off, an edge of zeros, scales of the wrong axis."""
    wave = noise(2, 4001, seed=3)
    reference: Any = torchaudio.transforms.MelSpectrogram(8000, 480, 480, 160, n_mels=20, center=False)
    inner = reference(wave).clamp(min=1e-5).log().double().numpy()  # [B, M, T - 2]
    mel = np.concatenate([inner[..., :1], inner, inner[..., -1:]], axis=-1)
    assert mel.shape == (2, 20, 25)
    edge = np.pad(mel, [(0, 0), (0, 0), (2, 2)], mode="edge")
    deltas = (2 * (edge[..., 4:] - edge[..., :-4]) + edge[..., 3:-1] - edge[..., 1:-3]) / 10
    raw = np.concatenate([mel, deltas], axis=1).transpose(0, 2, 1)
    np.testing.assert_allclose(mel_kmeans.raw_features(wave), raw, rtol=0, atol=2e-4)  # fp32 logarithms, filters of torchaudio in fp32
    scaled = (raw - mel_kmeans.mean.numpy()) / mel_kmeans.deviation.numpy()
    distances = np.linalg.norm(scaled[:, :, None] - mel_kmeans.centres.numpy(), axis=-1)
    np.testing.assert_array_equal(mel_kmeans(wave), distances.argmin(-1))


def test_fit_scales_every_feature_and_follows_the_seed() -> None:
    """Loud bands that outvote deltas, a fit that cannot be repeated, a constant band divided by nothing."""
    waves = [noise(3, 8000), noise(1, 1777, seed=2)]
    first, same, other = MelKmeans(**SMALL), MelKmeans(**SMALL), MelKmeans(**SMALL)
    first.fit(waves, seed=5)
    same.fit((wave for wave in waves), seed=5)
    other.fit(waves, seed=6)
    features = torch.cat([first.features(wave).flatten(0, 1) for wave in waves])
    torch.testing.assert_close(features.mean(0), torch.zeros(40), rtol=0, atol=1e-5)
    torch.testing.assert_close(features.std(0, correction=0), torch.ones(40), rtol=0, atol=1e-5)
    assert torch.equal(first.centres, same.centres) and not torch.equal(first.centres, other.centres)
    assert len(first.centres.unique(dim=0)) == 19 and first(noise(1, 8000)).unique().numel() > 5

    narrow = MelKmeans(**SMALL)  # bands far above the tone stay at the floor
    narrow.fit([torch.nn.functional.pad(tone(100) * torch.hann_window(8000) * 1e-2, (0, 8000))])
    assert narrow.centres.isfinite().all() and (narrow.deviation == 1).any()


@pytest.mark.parametrize("samples", [480, 481, 639, 640, 8123])
def test_one_token_per_hop_and_rows_do_not_touch(mel_kmeans: MelKmeans, samples: int) -> None:
    """A wave whose tokens depend on its neighbours in the batch, or number more or fewer than its hops."""
    assert (mel_kmeans.downsample_factor, mel_kmeans.min_samples) == (160, 480)
    batch = noise(3, samples, seed=samples)
    tokens = mel_kmeans(batch)
    assert tokens.shape == (3, samples // 160)
    for row, wave in zip(tokens, batch, strict=True):
        assert torch.equal(mel_kmeans(wave[None])[0], row)


def test_waves_are_resampled_and_cut(mel_kmeans: MelKmeans) -> None:
    """Prompts of another rate tokenized as if they were slow, upstream's `seq_len_multiple_of` ignored."""
    wave = noise(2, 22050, seed=4)
    expected = mel_kmeans(torchaudio.functional.resample(wave, 22050, 8000))
    assert torch.equal(mel_kmeans(wave, flatten=False, input_sample_hz=22050), expected)
    cutting = MelKmeans(**SMALL, seq_len_multiple_of=1000)
    cutting.load_state_dict(mel_kmeans.state_dict())
    assert torch.equal(cutting(wave[:, :8999]), mel_kmeans(wave[:, :8000]))


def test_a_file_holds_everything(mel_kmeans: MelKmeans, tmp_path: Path) -> None:
    """A scale lost on the way, a part file left behind, a file that needs pickle, or one of other rates taken for fitting."""
    path = tmp_path / "mel.pt"
    mel_kmeans.save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["mel.pt"]
    wave = noise(2, 3333, seed=7)
    again = MelKmeans(**SMALL)
    again.load(path)
    alone = MelKmeans.from_state(torch.load(path, weights_only=True))
    assert (alone.target_sample_hz, alone.downsample_factor, alone.codebook_size) == (8000, 160, 19)
    assert torch.equal(again(wave), mel_kmeans(wave)) and torch.equal(alone(wave), mel_kmeans(wave))
    with pytest.raises(ValueError, match=r"\[8000, 480, 160\], this tokenizer \[16000, 480, 160\]"):
        MelKmeans(19, 16000, 100, n_mels=20).load(path)
    torch.save({"start_token": torch.ones(3)}, path)
    with pytest.raises(ValueError, match="its first tensor is 'start_token'"):
        again.load(path)


def test_upstream_trains_on_its_tokens(mel_kmeans: MelKmeans) -> None:
    """Upstream's wrappers refuse what is no `HubertWithKmeans`, or their loss is of other tokens than ours."""
    sizes: dict[str, Any] = dict(dim=8, depth=1, heads=1, dim_head=8)
    semantic = audiolm_pytorch.SemanticTransformer(num_semantic_tokens=19, **sizes)
    wave = noise(2, 1600)
    wrapper: Any = audiolm_pytorch.SemanticTransformerWrapper(transformer=semantic, wav2vec=mel_kmeans, unique_consecutive=False)
    wrapper.eval()
    expected = wrapper(semantic_token_ids=mel_kmeans(wave), return_loss=True)
    assert torch.equal(wrapper(raw_wave=wave, return_loss=True), expected) and expected.isfinite()
    wrapper.train()
    wrapper(raw_wave=wave, return_loss=True).backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in semantic.parameters())

    codec = audiolm_pytorch.SoundStream(
        target_sample_hz=8000, codebook_size=13, rq_num_quantizers=3, channels=4, codebook_dim=16, attn_heads=1, attn_dim_head=8
    )
    coarse = audiolm_pytorch.CoarseTransformer(num_semantic_tokens=19, codebook_size=13, num_coarse_quantizers=2, **sizes)
    wrapper = audiolm_pytorch.CoarseTransformerWrapper(transformer=coarse, codec=codec, wav2vec=mel_kmeans)
    assert wrapper(raw_wave=noise(2, 3200), return_loss=True).isfinite()
    assert isinstance(mel_kmeans, audiolm_pytorch.HubertWithKmeans) and mel_kmeans.groups == 1


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: MelKmeans(**SMALL)(noise(1, 8000)), "call fit with waves"),
        (lambda: MelKmeans(**SMALL).save("never.pt"), "call fit with waves"),
        (lambda: MelKmeans(**SMALL).fit([noise(1, 8000), torch.full((8000,), torch.nan)]), "NaN"),
        (lambda: MelKmeans(**SMALL).fit([noise(1, 18 * 160)]), "18 frames are too few for 19 clusters"),
        (lambda: MelKmeans(**SMALL).fit([]), "0 frames are too few"),
        (lambda: MelKmeans(**SMALL).fit([noise(8000), noise(479)]), r"at least 480 samples at 8000 Hz, got \[1, 479\]"),
        (lambda: MelKmeans(**SMALL).fit([torch.zeros(8000)]), "silence"),
        (lambda: MelKmeans(19, 8000, 33), "33 tokens a second at 8000 Hz"),
        (lambda: MelKmeans(0), "0 clusters"),
    ],
)
def test_refusals(call: Any, message: str) -> None:
    """Tokens of nothing, clusters of NaN or of one frame each."""
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "wave, message",
    [
        (torch.zeros(2, 479), "at least 480"),
        (torch.zeros(8000), "got"),
        (torch.full((1, 800), torch.inf), "infinite"),
        (torch.zeros(1, 800, dtype=torch.int16), r"full scale at 1, got torch\.int16"),
    ],
)
def test_waves_are_checked(mel_kmeans: MelKmeans, wave: Tensor, message: str) -> None:
    """A shape error deep inside a convolution, tokens of NaN, or of samples 32767 times too large."""
    with pytest.raises(ValueError, match=message):
        mel_kmeans(wave)


def test_fit_without_scikit_learn_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bare ModuleNotFoundError, whose package has another name than its module."""
    monkeypatch.setitem(__import__("sys").modules, "sklearn.cluster", None)
    with pytest.raises(ImportError, match=r"needs scikit-learn: pip install '\.\[train\]'"):
        MelKmeans(**SMALL).fit([noise(8000)])


# --- the stage wav2vec


@pytest.mark.parametrize("rows, samples", [(1, 480), (3, 481), (2, 5003), (1, 24_000)])
def test_the_graph_gives_the_tokens_of_pytorch(tiny_bundle: Path, mel_kmeans: MelKmeans, rows: int, samples: int) -> None:
    """A graph with the sizes of its tracing in it, scales or centres lost, tokens of another type."""
    wave = noise(rows, samples, seed=samples)
    with md.load(tiny_bundle, device="cpu") as model:
        tokens = model.semantic_tokens([(row, 8000) for row in wave])
        assert tokens.dtype == np.int64
        np.testing.assert_array_equal(tokens, mel_kmeans(wave))
        np.testing.assert_array_equal(model.semantic_tokens((wave[0].numpy(), 8000)), tokens[:1])


def test_the_runtime_resamples_and_checks(tiny_bundle: Path, mel_kmeans: MelKmeans) -> None:
    """A sound of another rate tokenized as if it were slow; NaN or a click given to the graph."""
    wave = noise(2, 22050, seed=4)
    with md.load(tiny_bundle, device="cpu") as model:
        resampled = torchaudio.functional.resample(wave, 22050, 8000)
        np.testing.assert_array_equal(model.semantic_tokens([(row, 22050) for row in wave]), mel_kmeans(resampled))
        with pytest.raises(ValueError, match=r"at least 480 samples at 8000 Hz, got \[1, 479\]"):
            model.semantic_tokens((np.zeros(479, np.float32), 8000))
        with pytest.raises(ValueError, match="NaN"):
            model.semantic_tokens((np.full(8000, np.nan, np.float32), 8000))


def test_the_manifest_says_what_it_is(tiny_bundle: Path) -> None:
    """A record that names another rate than the graph has, an error that nobody measured, a file opened unchecked."""
    manifest = Bundle.open(tiny_bundle).manifest
    assert manifest.wav2vec == SemanticTokenizer("wav2vec.onnx", "mel", 8000, 160, 480, 19, None)
    assert 0 <= manifest.errors["wav2vec"] < 1e-4 and manifest.sources["wav2vec"]["sha256"]
    assert manifest.settings["wav2vec"]["n_mels"] == [20, "spec.mel [20, ...]"]
    assert {"wav2vec.onnx", "wav2vec.onnx.data"} <= manifest.files.keys()


def test_a_bundle_without_it_says_how_to_add_it(music: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """None called as a graph."""
    monkeypatch.setattr(music.bundle, "manifest", replace(music.bundle.manifest, wav2vec=None))
    with pytest.raises(ValueError, match="--semantic-features FILE for MelKmeans, --hubert FILE --kmeans FILE for HuBERT"):
        music.semantic_tokens((np.zeros(8000, np.float32), 8000))


def test_validation_tells_other_tokens(tiny_bundle: Path, mel_kmeans: MelKmeans, tiny_checkpoints, tmp_path: Path) -> None:
    """A validation that passes whatever the graph says: here PyTorch has its centres in another order than the graph."""
    mel_kmeans.save(tmp_path / "mel.pt")
    collected = collect({**tiny_checkpoints, "semantic-features": tmp_path / "mel.pt"}, {})
    with md.load(tiny_bundle, device="cpu") as model:
        assert tokenizer_error(model, collected) < 1e-6
        state = collected.checkpoints["wav2vec"].state
        state["centres"] = state["centres"].roll(1, 0)
        assert tokenizer_error(model, collected) > 0.1 > TOLERANCES["wav2vec"]


def changed(state: dict[str, Tensor], **tensors: Tensor | None) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in {**state, **tensors}.items() if tensor is not None}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"centres": torch.ones(18, 40)}, r"codebook_size is 18, but semantic.pt: num_semantic_tokens is 19"),
        (
            {"spec.mel_layout": torch.tensor([4000, 480, 160])},
            "gives 25 tokens a second, but semantic.pt: tokens_per_second is 50",
        ),
        ({"spec.mel_layout": torch.tensor([8000, 480, 0])}, "0 samples per token cannot be"),
        ({"spec.mel_layout": torch.tensor([8000, 480])}, r"has shape \[2\], expected \[3\]"),
        ({"centres": torch.ones(19)}, "the tensor 'centres' has shape \\[19\\], expected 2 dimensions"),
        ({"centres": None}, "none of the models known here"),
    ],
)
def test_files_that_do_not_fit(mel_kmeans: MelKmeans, tiny_checkpoints, tmp_path: Path, change: Any, message: str) -> None:
    """Tokens beyond the vocabulary of the semantic transformer, or of another length than it was trained on."""
    torch.save(changed(mel_kmeans.state_dict(), **change), tmp_path / "mel.pt")
    with pytest.raises(ExportError, match=message):
        collect({**tiny_checkpoints, "semantic-features": tmp_path / "mel.pt"}, {})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"deviation": torch.zeros(40)}, "no clusters yet"),
        ({"centres": torch.full((19, 40), torch.nan)}, "NaN"),
        ({"centres": torch.ones(19, 41)}, "do not go together"),
        ({"mean": None}, "Missing key"),
        ({"more": torch.ones(1)}, "Unexpected key"),
        ({"spec.mel_layout": torch.tensor([8001, 480, 160])}, "must last whole samples"),
        ({"spec.mel_layout": torch.tensor([8000, 480, 161])}, "do not go together"),
        (
            {"spec.mel_layout": torch.tensor([10**9, 10**9, 10**7]), "spec.mel": torch.ones(20, 1).expand(20, 15_000_001)},
            "longer than 8192",
        ),
    ],
)
def test_files_that_cannot_be_built(mel_kmeans: MelKmeans, change: Any, message: str) -> None:
    """A damaged or unfinished tokenizer that exports without a word."""
    checkpoint = Checkpoint("mel.pt", changed(mel_kmeans.state_dict(), **change))
    with pytest.raises(ExportError, match=message):
        build_tokenizer(checkpoint, infer_mel(checkpoint, {}))


def test_the_command_line_takes_the_file(tiny_checkpoints, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """An option that nobody reads; another checkpoint given in its place."""
    options = [part for name, path in tiny_checkpoints.items() for part in (f"--{name}", str(path))]
    wrong = ["--semantic-features", str(tiny_checkpoints["mulan"])]
    assert main(["export", *options, *wrong, "--out", str(tmp_path / "bundle"), "--quiet"]) == 1
    message = capsys.readouterr().err
    assert "--semantic-features mulan.pt: expected the semantic tokenizer that MelKmeans.save writes, but the file holds a MuLaN" in message
    with pytest.raises(ExportError, match="got overrides of 'wav2vec' alone"):
        collect(tiny_checkpoints, {"wav2vec": {"n_mels": 3}})
