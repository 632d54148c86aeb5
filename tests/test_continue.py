"""Music that goes on from a sound: through all three stages and the codec, each row for itself, and as audiolm-pytorch does it.

The measure of a row is the music itself: told the first frames of a clip that the same seed made, the model must make the rest of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from support.batches import watched
from support.requests import ask
from torch import Tensor

import musiclm_deploy as md
from demo.checkpoints import TINY, build_models
from musiclm_deploy.cli import main
from musiclm_deploy.model import MelKmeans
from musiclm_deploy.model.upstream import load_upstream
from musiclm_deploy.runtime import memory
from musiclm_deploy.runtime.audio import load_audio
from musiclm_deploy.runtime.bundle import STAGES
from musiclm_deploy.runtime.music import Tokens
from musiclm_deploy.runtime.needs import largest_sequences
from musiclm_deploy.runtime.sequence import Context, Draw, coarse_sequence

HZ, HOP = 16_000, 320  # of the tiny codec; the tokenizer has 50 tokens a second as well
DRAWN = {stage: md.SamplingConfig(filter_thres=0.3) for stage in STAGES}  # by default k would be 1 at this size
WINDOWS = {"semantic": 14, "coarse": 12, "fine": 5}  # tokens, frames, frames


def sound(frames: float, seed: int = 0, hz: int = HZ) -> tuple[np.ndarray, int]:
    """Noise of so many frames, loud enough to have many tokens."""
    return np.random.default_rng(seed).normal(0, 0.1, round(frames * HOP / HZ * hz)).astype(np.float32), hz


def live_musiclm(models: dict[str, Any], tokenizer: MelKmeans) -> Any:
    """musiclm-pytorch's own object."""
    load_upstream()
    import audiolm_pytorch
    import musiclm_pytorch

    parts = {f"{stage}_transformer": models[stage] for stage in STAGES}
    audio_lm = audiolm_pytorch.AudioLM(wav2vec=tokenizer, codec=models["codec"], **parts)
    return musiclm_pytorch.MusicLM(audio_lm, models["quantizer"]).eval()  # its wrappers put back what they find: others share the codec


def spread_codes(codec: Any) -> None:
    """Codebooks of what the encoder gives for noise, so that sounds have many codes: at random all would have the same one."""
    with torch.no_grad():
        latents = codec.encoder(torch.from_numpy(sound(400, seed=8)[0])[None, None]).transpose(1, 2)
        for part, group in zip(codec.encoder_attn(latents)[0].chunk(codec.rq_groups, dim=-1), codec.rq.rvqs, strict=True):
            for layer in group.layers:
                embed = layer._codebook.embed
                embed[0] = part[torch.randperm(len(part))[: embed.shape[1]]]
                part = part - embed[0][torch.cdist(part, embed[0]).argmin(dim=-1)]


@pytest.fixture(scope="module")
def plain(tiny_models: dict[str, Any], mel_kmeans: MelKmeans, music: Any) -> tuple[Any, Any]:
    """(the model live, and loaded) of the tiny MusicLM."""
    return live_musiclm(tiny_models, mel_kmeans), music


@pytest.fixture(scope="module")
def grouped(mel_kmeans: MelKmeans, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    """The same of another MusicLM: two residual groups, conditioning as a prefix."""
    shared = {"cond_as_self_attn_prefix": True}
    models = build_models(replace(TINY, codec_arguments={"rq_groups": 2}, shared_arguments=shared), seed=3)
    spread_codes(models["codec"])
    live = live_musiclm(models, mel_kmeans)
    with md.load(md.export_musiclm(live, tmp_path_factory.mktemp("grouped") / "bundle", quiet=True), device="cpu") as model:
        yield live, model


@pytest.fixture(params=[True, False], ids=["unique", "timed"])
def short(request: pytest.FixtureRequest, music: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Windows of a few frames, so that primes reach over several; semantic tokens that carry no time, or do."""
    decoders = {stage: replace(getattr(music.bundle.manifest, stage), max_length=length) for stage, length in WINDOWS.items()}
    monkeypatch.setattr(music.bundle, "manifest", replace(music.bundle.manifest, **decoders, unique_consecutive=request.param))
    return music


def same(a: Tokens, b: Tokens) -> bool:
    return all(np.array_equal(getattr(a, stage), getattr(b, stage)) for stage in STAGES) and [*map(str, a.windows)] == [
        *map(str, b.windows)
    ]


def test_begins_with_the_sound(grouped: tuple[Any, Any]) -> None:
    """Codes or samples of another place of the sound; a silence where its last frame is not full; a cut at the wrong sample."""
    (wave, hz), model = sound(20.7), grouped[1]
    warm = {stage: md.SamplingConfig(filter_thres=0.0, temperature=4.0) for stage in STAGES}  # random logits are peaked
    options: dict[str, Any] = {"seconds": 0.61, "seed": 3, "sampling": warm}
    song = model.generate("x", prime=(wave, hz), **options)
    codes = model.encode_audio((wave[: 20 * HOP], hz))[0]
    assert len(np.unique(codes, axis=0)) > 15, "a sound of few codes shows nothing"
    assert np.array_equal(np.concatenate([song.tokens.coarse, song.tokens.fine], axis=1)[:20], codes)
    semantic = model.semantic_tokens((wave, hz))[0]
    collapsed = semantic[np.append(True, semantic[1:] != semantic[:-1])]
    assert np.array_equal(song.tokens.semantic[: len(collapsed)], collapsed) and len(song.tokens.semantic) > len(collapsed) > 5
    assert len(song.tokens.coarse) == 31 and len(song.audio) == 0.61 * HZ
    rest = model.generate("x", prime=(wave, hz), include_prime=False, **options)
    assert same(song.tokens, rest.tokens) and rest.audio.tobytes() == song.audio[20 * HOP :].tobytes()
    assert (song.settings["include_prime"], rest.settings["include_prime"]) == (True, False) and rest.timings["prime"] > 0
    other = model.generate("x", prime=sound(20.7, seed=9), **options)
    assert not np.array_equal(other.tokens.coarse[20:], song.tokens.coarse[20:]), "what follows does not depend on the prime"


def test_another_rate_is_the_same_sound(grouped: tuple[Any, Any]) -> None:
    """A prime taken for one at the codec's rate: as long as it has samples, and at another pitch."""
    prime, model = sound(40, hz=44_100), grouped[1]
    song, codes = model.generate("x", prime=prime, seconds=1, sampling=DRAWN), model.encode_audio(prime)[0]
    assert len(codes) == 40 and np.array_equal(song.tokens.coarse[:40], codes[:, :4])


def test_the_sound_alone_says_what_to_be_like(music: Any) -> None:
    """A prime without words that is refused, or is conditioned on something else than itself."""
    options: dict[str, Any] = {"prime": sound(15), "seconds": 0.5, "sampling": DRAWN}
    assert same(music.generate(**options).tokens, music.generate(audio=options["prime"], **options).tokens)
    assert len(music.generate(**options | {"prime": [sound(15), sound(16)]})) == 2


@pytest.mark.parametrize(
    ("short", "frames"), [*((True, n) for n in (7, 10, 11)), *((False, n) for n in (7, 11, 12, 17, 18, 29, 44, 45))], indirect=["short"]
)
def test_goes_on_as_the_clip_itself(frames: int, short: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A window that is told another part of the prime, made twice or left out; noise or frames counted anew; fine tokens not taken over.

    Without time the semantic tokens of the first window tell where the prime ends: only clips of one window are the same there.
    """
    unique = short.bundle.manifest.unique_consecutive
    options: dict[str, Any] = {"seconds": 0.23 if unique else 0.913, "seed": 5, "sampling": DRAWN}
    clip = short.generate("x", **options)
    told = Tokens(clip.tokens.semantic[:frames], clip.tokens.coarse[:frames], clip.tokens.fine[:frames])
    if unique:
        assert (told.semantic[1:] != told.semantic[:-1]).all(), "a repeat would be collapsed: take another seed"
    monkeypatch.setattr(short.encoders, "prime_tokens", lambda prime: told)
    again = short.generate("x", prime=sound(frames), **options)
    assert same(again.tokens, clip.tokens)
    assert again.audio.tobytes() == clip.audio.tobytes()


def test_rows_with_primes_of_different_lengths_are_each_exact(short: Any) -> None:
    """A row that sees its neighbours' lengths, windows or ends, in clips where one joins in at another window than the next."""
    sounds = [sound(30.2, seed=1), None, sound(8, seed=2), sound(44, seed=3)]
    texts = ["a", "b", "c", "d"]
    for stop in ("exact", "eos"):
        options: dict[str, Any] = {"seconds": 0.903, "num_samples": 2, "stop": stop, "sampling": DRAWN}
        batch = short.generate(texts, prime=sounds, seed=[1, 2, 3, 4], **options)
        for seed, (text, one, song) in enumerate(zip(texts, sounds, batch, strict=True), 1):
            alone = short.generate(text, prime=one, seed=seed, **options)
            assert all(same(a.tokens, b.tokens) for a, b in zip(alone.candidates, song.candidates, strict=True)), (text, stop)


def test_each_window_is_told_what_the_prime_holds_of_it(short: Any) -> None:
    """Windows that begin anew after a prime, that see semantic tokens of another time, or reach beyond what was trained or stated."""
    prime, manifest = sound(29), short.bundle.manifest
    model, batches = watched(short)
    song = model.generate("x", prime=prime, seconds=0.903, sampling=DRAWN)
    semantic, first = short.semantic_tokens(prime)[0], batches["coarse"].joined[0]
    # windows are 0-12, 6-18, 12-24, 18-30, ...: frame 29 is the last one of the fourth
    if manifest.unique_consecutive:
        heard = semantic[18:]
        assert np.array_equal(song.tokens.semantic[song.tokens.windows[3]][: len(set(map(int, heard))) and 1], heard[:1])
        assert len(song.tokens.windows) == 7
        for window, start in enumerate((0, 6, 12)):
            own = semantic[start : start + 12]
            assert np.array_equal(song.tokens.semantic[song.tokens.windows[window]], own[np.append(True, own[1:] != own[:-1])])
        seen = song.tokens.semantic[song.tokens.windows[3]]
        seen = seen[np.append(True, seen[1:] != seen[:-1])]
    else:
        seen = song.tokens.semantic[18:30]
        assert np.array_equal(song.tokens.semantic[:29], semantic)
    draw = Draw(0, 0, 0, manifest.coarse.sampling)
    expected = coarse_sequence(manifest.coarse, seen, 12, 2, False, song.tokens.coarse[18:29], draw, Context())
    for part in ("ids", "query", "key"):
        assert np.array_equal(getattr(first.prompt, part), getattr(expected.prompt, part)), part
    assert (first.known, first.in_frames, first.steps, first.draw.first) == (22, 22, 2, 58)
    stated = largest_sequences(manifest, ask(manifest, "x", seconds=0.903, sampling=DRAWN, prime=prime))
    for stage, batch in batches.items():
        largest = stated[stage]
        assert batch.most <= largest.rows and max(len(one.prompt) for one in batch.joined) <= largest.prompt
        assert max(len(one.prompt) + one.steps for one in batch.joined) <= largest.capacity
    assert stated["semantic"].capacity <= 1 + WINDOWS["semantic"] and stated["coarse"].capacity <= 2 + 14 + 12 * 2
    assert len(batches["fine"].joined) == 5, "windows of 5 frames from the 25th of 46 on"


def test_tokens_of_a_continued_clip_resume(short: Any) -> None:
    """Saved tokens whose windows do not add up once some of them were heard."""
    options: dict[str, Any] = {"seconds": 0.903, "seed": 2, "sampling": DRAWN}
    song = short.generate("x", prime=sound(29), **options)
    assert same(short.generate("x", tokens=song.tokens, **options).tokens, song.tokens)
    semantic = Tokens(song.tokens.semantic, semantic_windows=song.tokens.semantic_windows)
    assert len(short.generate("x", tokens=semantic, **options).tokens.coarse) == 46


class SharedNoise:
    """One row's noise for both: by the token's index here, one after another there, from the end of the prime on."""

    def __init__(self, told: dict[str, int], end: dict[str, int]) -> None:
        self._told, self._end, self.stage, self.step = told, end, "semantic", -1

    def gumbel(self, stage: str, step: int, batch: int, vocab: int) -> np.ndarray:
        noise = np.random.default_rng([len(stage), step]).gumbel(size=(batch, vocab)).astype(np.float32)
        if stage in self._end:
            noise[:, -1] += 2000 if step - self._told[stage] == self._end[stage] else -1000
        return noise

    def upstream(self, logits: Tensor) -> Tensor:
        self.step += 1
        return torch.from_numpy(self.gumbel(self.stage, self._told[self.stage] + self.step, *logits.shape))


@pytest.mark.parametrize(
    ("which", "unique", "frames", "end"),
    [
        ("plain", True, 17.3, {"semantic": 4, "coarse": 6}),
        ("plain", False, 7.0, {"semantic": 99, "coarse": 99}),
        ("grouped", True, 8.9, {"semantic": 0, "coarse": 4}),
        ("grouped", False, 30.0, {"semantic": 6, "coarse": 99}),
    ],
)
def test_equals_upstreams(
    which: str, unique: bool, frames: float, end: dict[str, int], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the same noise: other tokens of the sound, frames counted or ends forbidden otherwise after it, a position that begins anew."""
    live, model = request.getfixturevalue(which)
    groups = model.bundle.manifest.codec.groups
    monkeypatch.setattr(model.bundle, "manifest", replace(model.bundle.manifest, unique_consecutive=unique))
    monkeypatch.setattr(live.audio_lm.semantic, "unique_consecutive", unique)
    monkeypatch.setattr(live.audio_lm.coarse, "unique_consecutive", unique)
    new = 5
    prime = sound(frames, seed=4)
    wave = torch.from_numpy(prime[0])[None]
    primed = int(frames)
    semantic = live.audio_lm.semantic.wav2vec(wave, flatten=False, input_sample_hz=HZ)[0]
    semantic = semantic.unique_consecutive() if unique else semantic
    steps = len(semantic) + 9
    noise = SharedNoise({"semantic": len(semantic), "coarse": primed * 2 * groups, "fine": primed * 3 * groups}, end)

    from audiolm_pytorch import audiolm_pytorch as wrappers
    from x_clip.tokenizer import tokenizer

    monkeypatch.setattr(wrappers, "gumbel_noise", noise.upstream)
    options: dict[str, Any] = {
        "text_embeds": live.mulan_embed_quantizer(texts=tokenizer.tokenize(["calm piano"])).detach(),
        "prime_wave": wave,
        "prime_wave_input_sample_hz": HZ,
        "use_kv_cache": groups == 1,  # with a prefix upstream's cache is wrong
        "filter_thres": 0.0,
    }
    expected = {"semantic": live.audio_lm.semantic.generate(max_length=steps, **options)}
    noise.stage, noise.step = "coarse", -1
    expected["coarse"] = live.audio_lm.coarse.generate(semantic_token_ids=expected["semantic"], max_time_steps=new, **options)
    noise.stage, noise.step = "fine", -1
    expected["fine"] = live.audio_lm.fine.generate(coarse_token_ids=expected["coarse"], **options)

    sampling = {stage: md.SamplingConfig(filter_thres=0.0) for stage in STAGES}
    seconds = (primed + new) * HOP / HZ
    song = model.generate(
        "calm piano", prime=prime, seconds=seconds, max_semantic_tokens=steps, compat="upstream", sampling=sampling, noise=noise
    )
    keep = ~(expected["coarse"][0] == -1).any(dim=-1)
    assert np.array_equal(song.tokens.semantic, expected["semantic"][0][expected["semantic"][0] >= 0])
    assert np.array_equal(song.tokens.coarse, expected["coarse"][0][keep])
    assert np.array_equal(song.tokens.fine, expected["fine"][0][keep])
    made = len(song.tokens.coarse) - primed
    assert made == (-(-end["coarse"] // (2 * groups)) if end["coarse"] < 99 else new)
    codes = torch.cat([expected["coarse"][0][keep], expected["fine"][0][keep]], dim=-1)
    if len(codes) >= 8:  # shorter ones upstream cannot decode
        decoded = live.audio_lm.coarse.codec.decode_from_codebook_indices(codes[None]).detach().numpy().ravel()
        assert np.abs(song.audio - decoded).max() <= 1e-4 * np.abs(decoded).max()


def test_the_command_line(music: Any, tmp_path: Path) -> None:
    """A sound that is not handed on, or that is in the file though it was to be left out."""
    intro, out = tmp_path / "intro.wav", tmp_path / "out.wav"
    soundfile.write(intro, sound(20)[0], HZ)
    command = ["generate", str(music.bundle.root), "--prime", str(intro), "-o", str(out), "--seconds", "0.6"]
    assert main(command) == 0
    whole, _ = load_audio(out)
    expected = music.generate(prime=load_audio(intro), seconds=0.6).audio
    assert np.abs(whole - expected).max() < 1e-4  # 16 bits
    assert main([*command, "--without-prime"]) == 0
    assert np.array_equal(load_audio(out)[0], whole[20 * HOP :])
    with pytest.raises(SystemExit):
        main(["generate", str(music.bundle.root), "x", "--without-prime"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prime": sound(40), "seconds": 0.5}, "the prime counts towards the length, and its 0.8 s fill seconds = 0.5. Ask for more."),
        ({"prime": sound(40), "seconds": 0.8}, "its 0.8 s fill seconds = 0.8"),
        ({"prime": sound(600)}, "its 12 s fill the default. Ask for more seconds than that."),
        ({"prime": sound(0.9)}, "a prime must last at least 0.14 s, got 0.018 s."),
        ({"prime": (np.zeros((20, 900), np.float32), HZ)}, "a wave of shape [20, 900] is not one sound of at most 8 channels."),
        ({"prime": (np.full(9000, np.nan), HZ)}, "the wave holds NaN or infinite samples."),
        ({"prime": (np.zeros(9000), 0)}, "a sound's rate must be a whole number of Hz from 1 to 2147483647, got 0."),
        ({"prime": ["a.wav"]}, "sound 1 of 1: a.wav: there is no such file."),
        ({"prime": [sound(20)] * 2}, "got 2 primes for 1 prompts"),
        ({"prime": [None], "text": None}, "one of the sounds is None"),
        ({"prime": sound(20), "tokens": Tokens(np.zeros(3, np.int64))}, "tokens and prime are both what the music goes on from."),
        (
            {"text": ["a", "b"], "prime": [sound(20), sound(21)], "compat": "upstream"},
            "compat='upstream' goes on from sounds of one length only",
        ),
    ],
)
def test_refusals(arguments: dict[str, Any], message: str, music: Any) -> None:
    """A prime that fails deep inside, or is silently left out."""
    with pytest.raises(ValueError, match=re.escape(message)):
        music.generate(**{"text": "x"} | arguments)


def test_a_bundle_that_cannot_read_a_sound_says_so(music: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prime that is noticed to be of no use after minutes."""
    monkeypatch.setattr(music.bundle, "manifest", replace(music.bundle.manifest, wav2vec=None))
    with pytest.raises(ValueError, match="this bundle has no semantic tokenizer: export it with"):
        music.generate("x", prime=sound(20))


def test_memory_is_stated_before_it_is_taken(music: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prime whose prompt takes more than was said."""
    monkeypatch.setattr(memory, "least_memory", lambda: memory.MemoryLimit(400_000, "a limit"))
    with pytest.raises(MemoryError, match="stage of this request needs"):
        music.generate("x", prime=sound(480), seconds=10)
