"""A whole generation on the tiny bundle: reproducible, independent of its company, exact in length, and resumable."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

import musiclm_deploy as md
from musiclm_deploy.runtime import memory, needs
from musiclm_deploy.runtime.music import Tokens

DRAWN = {stage: md.SamplingConfig(filter_thres=0.5) for stage in ("semantic", "coarse", "fine")}  # by default k would be 1 at this size
EVERY_TOKEN = {stage: md.SamplingConfig(filter_thres=0.0) for stage in ("semantic", "coarse")}
SHORT: dict[str, Any] = {"seconds": 0.3, "max_semantic_tokens": 6, "sampling": DRAWN}
UNFILTERED: dict[str, Any] = {**SHORT, "sampling": EVERY_TOKEN}


def same_tokens(a: Tokens, b: Tokens) -> bool:
    return all(np.array_equal(getattr(a, stage), getattr(b, stage)) for stage in ("semantic", "coarse", "fine"))


def test_same_seed_same_wave(music) -> None:
    """Fault: anything random beside the seed, or a seed that does nothing."""
    first, again, other = (music.generate("calm piano", seed=seed, **SHORT) for seed in (5, 5, 6))
    assert first.audio.tobytes() == again.audio.tobytes()
    assert same_tokens(first.tokens, again.tokens)
    assert not same_tokens(first.tokens, other.tokens)


def test_the_prompt_matters(music) -> None:
    """Fault: a conditioning that never reaches the transformers."""
    first, other = (music.generate(text, seed=5, **SHORT) for text in ("calm piano", "a brass band at full volume"))
    assert not same_tokens(first.tokens, other.tokens)


def test_same_tokens_for_any_thread_count(music, tiny_bundle) -> None:
    """Fault: sums that depend on how many threads share them."""
    with md.load(tiny_bundle, threads=1) as alone:
        assert same_tokens(alone.generate("x", **SHORT).tokens, music.generate("x", **SHORT).tokens)


def test_a_batch_is_its_rows_run_alone(music) -> None:
    """Fault: rows that see their neighbours' tokens, noise, lengths or ends. Ends are allowed, so that rows get different lengths."""
    texts, seeds = ["calm piano", "brass", "a long sentence about a slow waltz in three four time"], [7, 7, 8]
    batch = music.generate(texts, seed=seeds, num_samples=2, stop="eos", **SHORT)
    assert len({len(item.tokens.semantic) for song in batch for item in song.candidates}) > 1, "all rows ended alike: nothing is compared"
    for text, seed, song in zip(texts, seeds, batch, strict=True):
        alone = music.generate(text, seed=seed, num_samples=2, stop="eos", **SHORT)
        single = music.generate(text, seed=seed, stop="eos", **SHORT)
        assert alone.best == song.best
        for a, b in zip(alone.candidates, song.candidates, strict=True):
            assert same_tokens(a.tokens, b.tokens)
            assert a.audio.tobytes() == b.audio.tobytes()
        assert same_tokens(single.tokens, alone.candidates[0].tokens)  # the first candidate is the one that a single sample gives


@pytest.mark.parametrize("seconds", [0.3, 0.30001, 1 / 3, 0.0001])
def test_exactly_as_long_as_asked(music, seconds: float) -> None:
    """Fault: a length rounded to frames; clips shorter than the codec's least included."""
    song = music.generate("x", seconds=seconds, max_semantic_tokens=3)
    assert len(song.audio) == max(round(seconds * song.sample_rate), 1)
    assert song.audio.dtype == np.float32 and np.isfinite(song.audio).all()


class _EndAt:
    """Noise that draws the end token of a stage at one step, and never elsewhere."""

    def __init__(self, stage: str, step: int) -> None:
        self._stage, self._step = stage, step

    def gumbel(self, stage: str, step: int, batch: int, vocab: int) -> np.ndarray:
        noise = np.random.default_rng([step, vocab]).gumbel(size=(batch, vocab)).astype(np.float32)
        if stage != "fine":
            noise[:, -1] = 1000 if (stage, step) == (self._stage, self._step) else -1000
        return noise


def test_an_end_at_once_leaves_no_semantic_tokens_and_still_gives_music(music) -> None:
    """Fault: an empty semantic row that raises, or that is fed on as something else than nothing."""
    song = music.generate("x", noise=_EndAt("semantic", 0), **UNFILTERED)
    assert song.tokens.semantic.shape == (0,)
    assert len(song.audio) == 0.3 * song.sample_rate


@pytest.mark.parametrize("frames", [1, 9])
def test_stop_at_the_end_token(music, frames: int) -> None:
    """Fault: an end that is ignored or kept as a token; a clip of fewer frames than the codec takes."""
    noise = _EndAt("coarse", frames * music.bundle.manifest.coarse.coarse_quantizers)
    song = music.generate("x", noise=noise, stop="eos", **UNFILTERED)
    assert len(song.tokens.coarse) == len(song.tokens.fine) == frames
    assert len(song.audio) == frames * music.bundle.manifest.codec.samples_per_frame
    exact = music.generate("x", noise=noise, **UNFILTERED)
    assert len(exact.tokens.coarse) == 15, "the end is forbidden until the length is reached"


def test_without_unique_consecutive_the_semantic_tokens_carry_time(music, monkeypatch) -> None:
    """Fault: a clip of fixed length whose semantic tokens stop early."""
    from dataclasses import replace

    monkeypatch.setattr(music.bundle, "manifest", replace(music.bundle.manifest, unique_consecutive=False))
    song = music.generate("x", seconds=0.3, noise=_EndAt("semantic", 2), sampling=EVERY_TOKEN)
    assert len(song.tokens.semantic) == 15  # 50 a second


def test_candidates_are_ranked_by_mulan(music) -> None:
    """Fault: a score of another candidate or prompt, or the worst taken for the best."""
    for song in music.generate(["calm piano", "brass"], num_samples=3, seed=[1, 2], seconds=0.5, max_semantic_tokens=6):
        text = music.embed_text(song.prompt)[0]
        scores = [float(music.embed_audio((candidate.audio, song.sample_rate))[0] @ text) for candidate in song.candidates]
        np.testing.assert_allclose([candidate.score for candidate in song.candidates], scores, atol=1e-6)
        assert song.best == int(np.argmax(scores))
        assert song.audio is song.candidates[song.best].audio
    assert music.generate("x", **SHORT).candidates[0].score is None, "one candidate is not scored"


@pytest.mark.parametrize("kept", ["semantic", "coarse", "fine"])
def test_tokens_resume_at_any_stage(music, tmp_path, kept: str) -> None:
    """Fault: a stage that runs again, or goes on from something else than what was saved."""
    song = music.generate("calm piano", seed=3, num_samples=2, **SHORT)
    stages = ("semantic", "coarse", "fine")
    tokens = [Tokens(**{stage: getattr(item.tokens, stage) for stage in stages[: stages.index(kept) + 1]}) for item in song.candidates]
    ran = set()
    again = music.generate(
        "calm piano", seed=3, seconds=0.3, tokens=tokens, sampling=DRAWN, progress=lambda stage, done, total: ran.add(stage)
    )
    assert [same_tokens(a.tokens, b.tokens) for a, b in zip(song.candidates, again.candidates, strict=True)] == [True, True]
    assert again.audio.tobytes() == song.audio.tobytes()
    assert ran & set(stages) == set(stages[stages.index(kept) + 1 :])
    saved = song.save_tokens(tmp_path / "tokens.npz")
    assert music.generate("calm piano", seconds=0.3, tokens=saved).audio.tobytes() == song.audio.tobytes()


def test_progress(music) -> None:
    """Fault: a bar that never ends, that goes back, whose end moves, or a stage that is reported after a later one."""
    seen: dict[str, list[tuple[int, int]]] = {}
    music.generate("x", num_samples=2, progress=lambda stage, done, total: seen.setdefault(stage, []).append((done, total)), **SHORT)
    assert list(seen) == ["semantic", "coarse", "fine", "codec", "rank"]
    codec, items, frames = music.bundle.manifest.codec, 2, 15
    coarse, fine = music.bundle.manifest.coarse.coarse_quantizers, music.bundle.manifest.fine.fine_quantizers
    totals = {
        "coarse": items * frames * coarse * codec.groups,
        "fine": items * frames * fine * codec.groups,
        "codec": items * frames,
        "rank": 2,
    }
    for stage, total in totals.items():
        done = [done for done, _ in seen[stage]]
        assert {total for _, total in seen[stage]} == {total} and done == sorted(set(done)) and done[-1] == total, (stage, seen[stage])
    assert seen["semantic"][-1][0] == seen["semantic"][-1][1] <= items * SHORT["max_semantic_tokens"]


def test_cancel(music) -> None:
    """Fault: a cancel that is looked at once, or that waits for the end of a stage."""
    cancel, reported = threading.Event(), []

    def stop_in_coarse(stage: str, done: int, total: int) -> None:
        assert not cancel.is_set(), "reported after it was cancelled"
        reported.append(stage)
        if stage == "coarse":
            cancel.set()

    with pytest.raises(md.GenerationCancelled, match=r"^cancelled in stage coarse after \d+ of 6000\.$") as cancelled:
        music.generate("x", progress=stop_in_coarse, cancel=cancel, **SHORT | {"seconds": 60.0})
    assert 0 < int(str(cancelled.value).split()[5]) < 6000 and reported[-1] == "coarse" and reported.count("coarse") == 1
    with pytest.raises(md.GenerationCancelled, match="cancelled in stage mulan after 0 of 0"):
        music.generate("x", cancel=cancel, **SHORT)


def test_one_object_serves_several_threads(music) -> None:
    """Fault: requests that share a cache, a binding or a noise block."""
    expected = [music.generate("calm piano", seed=seed, **SHORT) for seed in range(4)]
    found: list[Any] = [None] * 4

    def work(seed: int) -> None:
        found[seed] = music.generate("calm piano", seed=seed, **SHORT)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same_tokens(a.tokens, b.tokens) for a, b in zip(expected, found, strict=True))


def test_closed(tiny_bundle) -> None:
    """Fault: a closed model that crashes the process, or that still answers."""
    model = md.load(tiny_bundle)
    model.embed_text("x")
    model.close()
    for ask in (lambda: model.generate("x", **SHORT), lambda: model.embed_text("x")):
        with pytest.raises(RuntimeError, match="closed"):
            ask()


def test_a_text_is_embedded_once(tiny_bundle) -> None:
    """Fault: a text that is embedded anew for every step of a slider, one that gets another's latent, or latents without bound."""
    with md.load(tiny_bundle) as model:
        first = model.embed_text(["calm piano", "brass"])
        first[0] = 0  # the caller's own
        ran = monitored(model)
        again = model.embed_text(["brass", "calm piano", "flute"])
        assert len(ran) == 1
        np.testing.assert_array_equal(again[0], first[1])
        assert abs(float(np.linalg.norm(again[1])) - 1) < 1e-5
        for number in range(300):
            model.embed_text(str(number))
        model.embed_text("299")
        assert len(ran) == 301
        model.embed_text("flute")  # long ago
        assert len(ran) == 302


def monitored(model: md.MusicLM) -> list[str]:
    """Return the list in which the graphs are noted that run from now on."""
    ran, run = list[str](), model.graphs.run

    def noted(graph: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        ran.append(graph)
        return run(graph, **inputs)

    model.graphs.run = noted  # type: ignore[method-assign]
    return ran


def test_memory_is_checked_before_it_is_taken(music, monkeypatch) -> None:
    """Fault: a request that drives the machine into swap instead of being refused."""
    monkeypatch.setattr(memory, "least_memory", lambda: memory.MemoryLimit(10, "a limit"))
    loaded = r"( and \d+\.\d MB for the weights)?"  # by an earlier test, or not
    message = rf"the (coarse|fine|codec) stage of this request needs \d+\.\d MB{loaded}, 0\.0 MB are free\. Ask for fewer"
    with pytest.raises(MemoryError, match=message):
        music.generate("x", **SHORT)


def test_ranking_is_refused_before_anything_is_computed(music, monkeypatch) -> None:
    """Fault: candidates generated for minutes, then lost because MuLaN's attention over them does not fit."""
    stages = set()
    monkeypatch.setattr(needs, "mulan_audio_bytes", lambda mulan, rows, samples: 1 << 60)
    with pytest.raises(MemoryError, match="the rank stage"):
        music.generate("x", num_samples=2, progress=lambda stage, done, total: stages.add(stage), **SHORT)
    assert not stages


def test_embeddings_are_those_of_upstream(music, tiny_models) -> None:
    """Fault: another tokenizer, mask, spectrogram or resampling than the model was trained with."""
    import torch
    from torchaudio.functional import resample
    from x_clip.tokenizer import tokenizer

    mulan = tiny_models["mulan"]
    texts = ["Calm piano!", "café &amp; bar, 120 BPM"]
    rng = np.random.default_rng(0)
    wave = rng.standard_normal((2, 9_001), np.float32)
    with torch.inference_mode():
        text = torch.cat([mulan.get_text_latents(tokenizer.tokenize([text])) for text in texts]).numpy()
        audio = mulan.get_audio_latents(resample(torch.from_numpy(wave), 44_100, 16_000)).numpy()
    np.testing.assert_allclose(music.embed_text(texts), text, atol=1e-5)
    np.testing.assert_allclose(music.embed_audio([(row, 44_100) for row in wave]), audio, atol=1e-5)
    with pytest.raises(ValueError, match="at least"):
        music.embed_audio((wave[0, :9], 16_000))
    with pytest.raises(ValueError, match="NaN"):
        music.embed_audio((np.full(9_001, np.nan, np.float32), 16_000))


def test_unknown_devices_are_errors_by_name(tiny_bundle) -> None:
    """Fault: a device that was named and silently replaced."""
    with pytest.raises(RuntimeError, match="device must be one of auto, cpu, cuda, tensorrt, got 'tpu'"):
        md.load(tiny_bundle, device="tpu")
    with pytest.raises(RuntimeError, match="device='cuda'"):
        md.load(tiny_bundle, device="cuda")
    with pytest.raises(md.BundleError, match="no form for TensorRT"):
        md.load(tiny_bundle, device="tensorrt")


def test_threads_sleep_between_the_steps(music: md.MusicLM) -> None:
    """Fault: threads that spin after a prompt or a chunk on the processors that compute the next tokens meanwhile."""
    manifest, entry = music.bundle.manifest, "session.force_spinning_stop"
    graphs = (manifest.codec.stream, manifest.mulan.text, manifest.coarse.graph)
    assert [music.graphs.session(graph).get_session_options().get_session_config_entry(entry) for graph in graphs] == ["1", "1", "0"]
