"""The demo's training, every stage of it at a tiny size, from clips to a bundle that plays; stopping anywhere changes nothing."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import musiclm_deploy as md
from demo.codec_start import band_transform, start_linear
from demo.compose import SECONDS
from demo.data import Clips
from demo.pack import FILES, pack
from demo.render import SAMPLE_HZ
from demo.sizes import SIZES, STAGES, Schedule, codec
from demo.tokens import Tokens, make_codes, make_played, make_tokens, played, window_of
from demo.train_codec import encode, si_snr, train_codec
from demo.train_decoder import train_decoder
from demo.train_mulan import fit, train_mulan
from demo.train_tokens import train_transformer

SHORT = Schedule(steps=2, batch=2, lr=1e-3, seconds=1.0, warmup=1)
TINY = replace(
    SIZES,
    window_seconds=2.0,
    channels=4,
    channel_mults=(1, 2, 2, 4),
    codebook_dim=16,
    codebook_size=24,
    semantic_tokens=12,
    n_mels=32,
    audio_dim=16,
    text_dim=8,
    mulan_depth=1,
    dim_latent=8,
    mulan_valid=0.25,
    conditioning_quantizers=2,
    conditioning_codebook=6,
    dims=(16, 24, 8),
    depths=(1, 2, 1),
    codec_schedule=replace(SHORT, steps=4),
    decoder_schedule=SHORT,
    mulan_schedule=replace(SHORT, batch=4),
    semantic_schedule=SHORT,
    coarse_schedule=SHORT,
    fine_schedule=SHORT,
)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """Eight pieces for training and two for validation, of chords instead of instruments."""
    folder, time = tmp_path_factory.mktemp("clips"), np.arange(round(SECONDS * SAMPLE_HZ)) / SAMPLE_HZ
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("valid", 2)):
        waves = [sum(np.sin(2 * np.pi * hz * time) for hz in rng.uniform(100, 2000, 3)) * 0.1 * (time % 1 < 0.7) for _ in range(count)]
        soundfile.write(folder / f"{split}-0000.flac", np.concatenate(waves), SAMPLE_HZ, subtype="PCM_16")
    return folder


@pytest.fixture(scope="module")
def runs(clips: Path, tmp_path_factory) -> Path:
    """All stages, in their order."""
    folder = tmp_path_factory.mktemp("runs")
    train, valid = Clips(clips, "train"), Clips(clips, "valid")
    train_codec(TINY, train, valid, folder / "codec")
    train_mulan(TINY, train, folder, save_every=1)
    fit(TINY, train, folder)
    for split in (train, valid):
        make_tokens(TINY, split, folder)
        make_codes(TINY, split, folder)
    for stage in STAGES:
        train_transformer(TINY, stage, folder)
    _exported(folder, folder)
    for split in (train, valid):
        make_played(TINY, split, folder)
    train_decoder(TINY, train, valid, folder)
    return folder


def _exported(runs: Path, out: Path) -> Path:
    """The runs as they stand, packed into `out / "checkpoint"` and exported to a bundle."""
    from musiclm_deploy.export.export import export_checkpoints

    pack(TINY, runs, out / "checkpoint")
    files = {name: out / "checkpoint" / name for name in FILES}
    models = {stage: files[f"{stage}.pt"] for stage in (*STAGES, "codec", "quantizer")}
    config = json.loads(files["config.json"].read_text())
    return export_checkpoints(**models, semantic_features=files["tokenizer.pt"], config=config, out=out / "bundle", quiet=True)


def state(run: Path) -> dict[str, torch.Tensor]:
    package = torch.load(run / "state.pt", weights_only=True)
    return package["model"] | {f"average.{name}": tensor for name, tensor in package["average"].items()}


def test_a_stopped_codec_goes_on_as_if_it_had_not_been(clips: Path, runs: Path, tmp_path: Path) -> None:
    """A resume that draws other clips, forgets the optimizer, or initialises the codebooks again."""
    train, valid = Clips(clips, "train"), Clips(clips, "valid")
    whole = state(runs / "codec")
    for stop in (1, 2, 3):
        sizes = replace(TINY, codec_schedule=replace(TINY.codec_schedule, decay=1e-9))
        stopped = replace(sizes, codec_schedule=replace(sizes.codec_schedule, steps=stop))
        train_codec(stopped, train, valid, tmp_path / str(stop))
        train_codec(sizes, train, valid, tmp_path / str(stop))
    ends = [state(tmp_path / str(stop)) for stop in (1, 2, 3)]
    assert all(torch.equal(ends[0][name], end[name]) for end in ends for name in whole)
    rows = (tmp_path / "1" / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["step", "1", "4"]


def test_a_stopped_transformer_goes_on_as_if_it_had_not_been(runs: Path, tmp_path: Path) -> None:
    """The same of the stages that draw tokens and conditions."""
    for name in ("fit", "tokens", "codes"):
        (tmp_path / name).symlink_to(runs / name)
    constant = replace(SHORT, steps=3, decay=1e-9)
    for steps in (2, 3):
        train_transformer(replace(TINY, coarse_schedule=replace(constant, steps=steps)), "coarse", tmp_path)
    resumed = state(tmp_path / "coarse")
    (tmp_path / "coarse" / "state.pt").unlink()
    train_transformer(replace(TINY, coarse_schedule=constant), "coarse", tmp_path)
    whole = state(tmp_path / "coarse")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_every_stage_moves_what_it_should(runs: Path) -> None:
    """A stage that trains nothing: parameters that no loss reaches."""
    from demo.sizes import transformer

    for stage in STAGES:
        torch.manual_seed(0)
        drawn = transformer(TINY, stage).state_dict()
        trained = torch.load(runs / stage / "state.pt", weights_only=True)["model"]
        still = {name for name, tensor in drawn.items() if torch.equal(tensor, trained[name]) and "beta" not in name}
        assert not {name for name in still if "coarse_logit" not in name and "to_semantic_logits" not in name}, stage


def test_tokens_are_what_the_models_say(clips: Path, runs: Path) -> None:
    """Windows out of order, or codes of another window than their semantic tokens."""
    from demo.train_codec import trained_codec
    from demo.train_mulan import fitted_quantizer, fitted_tokenizer

    tokens, valid = Tokens(runs, "valid", with_codes=True), Clips(clips, "valid")
    wave = valid.part(1, 3 * 2 * SAMPLE_HZ, 2 * SAMPLE_HZ)[None]  # the fourth window of the second piece
    with torch.no_grad():
        codes = trained_codec(TINY, runs / "codec")(wave, return_encoded=True)[1]
        quantizer = fitted_quantizer(TINY, runs)
        heard = quantizer.rq(quantizer.mulan.get_audio_latents(wave))[1]
    assert tokens.codes is not None
    np.testing.assert_array_equal(tokens.codes[1, 3], codes[0])
    np.testing.assert_array_equal(tokens.semantic[1, 3], fitted_tokenizer(runs)(wave)[0])
    np.testing.assert_array_equal(tokens.heard[1, 3], heard[0])
    drawn = tokens.batch(np.random.default_rng(0), 64, 1.0)["condition"].numpy()
    assert {tuple(row) for row in drawn} <= {tuple(row) for row in tokens.told.reshape(-1, 2)}


def test_words_never_seen_say_nothing(runs: Path) -> None:
    """A prompt that is pushed anywhere by a word that no caption has, whose embedding was never trained."""
    from demo.train_mulan import fitted_quantizer

    embedding = fitted_quantizer(TINY, runs).mulan.text.token_emb.weight
    seen = embedding.any(dim=1)
    assert 50 < seen.sum() < 400 and not embedding[~seen].any()


def test_the_packed_checkpoint_becomes_music(runs: Path, tmp_path: Path) -> None:
    """Files that the export does not take, or not as what they were trained as; hashes of other files."""
    bundle = _exported(runs, tmp_path)
    files = {name: tmp_path / "checkpoint" / name for name in FILES}
    sums = dict(line.split("  ")[::-1] for line in (tmp_path / "checkpoint" / "SHA256SUMS").read_text().splitlines())
    assert sums == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    with md.load(bundle, device="cpu") as model:
        manifest = model.bundle.manifest
        song = model.generate("a church organ", seconds=2, seed=0)
    assert (manifest.unique_consecutive, manifest.semantic.max_length, manifest.coarse.max_length) == (False, 40, 50)
    assert len(song.audio) == 2 * SAMPLE_HZ and song.tokens.semantic.shape == (40,)


def test_only_the_decoder_is_trained_again(clips: Path, runs: Path, tmp_path: Path) -> None:
    """Codes that mean another thing than before, fine codes of another window's coarse ones, a decoder that is not packed."""
    own, drawn, heard = Tokens(runs, "valid", with_codes=True).codes, played(runs, "valid"), Clips(clips, "valid")
    assert own is not None and drawn.shape == (len(heard), 50, 8) and 0 <= drawn.min() <= drawn.max() < TINY.codebook_size
    windows = np.stack([own[piece, window_of(piece)] for piece in range(len(heard))])
    np.testing.assert_array_equal(drawn[..., : TINY.coarse_quantizers], windows[..., : TINY.coarse_quantizers])
    assert (drawn[..., TINY.coarse_quantizers :] != windows[..., TINY.coarse_quantizers :]).any()

    before, again = (torch.load(runs / name / "state.pt", weights_only=True)["average"] for name in ("codec", "decoder"))
    pack(TINY, runs, tmp_path)
    packed = torch.load(tmp_path / "codec.pt", weights_only=True)["model"]
    moved = {name.split(".")[0] for name, tensor in before.items() if not torch.equal(packed[name], tensor.to(packed[name].dtype))}
    assert moved == {"decoder", "decoder_attn"}
    assert all(torch.equal(packed[name], tensor.to(packed[name].dtype)) for name, tensor in again.items())


def test_the_codec_starts_as_a_transform() -> None:
    """A start that is no better than chance: bands out of order, a block read where another is written."""
    torch.manual_seed(0)
    transform = band_transform(6, 5).flatten(1)
    torch.testing.assert_close(transform @ transform.T, torch.eye(30))
    model = codec(SIZES)
    start_linear(model)
    model.eval()
    time = torch.arange(32000) / SAMPLE_HZ
    waves = torch.stack([torch.sin(2 * torch.pi * hz * time) * 0.1 for hz in (110, 440, 1000, 6000)])
    with torch.no_grad():
        made = model.decode(encode(model, waves))[:, 0]
    ratios = si_snr(made, waves)
    assert (ratios[:3] > 5).all()  # below 1.6 kHz, the lowest fifth of the coefficients, it is a codec
    assert ratios[3] < 0  # above it has no coefficients


def test_curves_and_spectrograms_are_drawn(runs: Path, tmp_path: Path) -> None:
    """A metric that was renamed where it is logged and not where it is drawn, or a picture that matplotlib refuses."""
    pytest.importorskip("matplotlib", reason="needs the extra `demo`")
    from demo.plot import STAGES as DRAWN
    from demo.plot import plot
    from demo.show import spectrogram

    for stage, names in DRAWN.items():
        header = (runs / stage / "metrics.csv").read_text().splitlines()[0].split(",")
        assert set(names) <= set(header), stage
    plot(runs, tmp_path / "curves.png")
    spectrogram(np.sin(np.arange(SAMPLE_HZ) * 0.3).astype(np.float32), SAMPLE_HZ, "a tone", tmp_path / "tone.png")
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("curves.png", "tone.png"))
