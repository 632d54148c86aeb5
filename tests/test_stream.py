"""Music that plays while it is made: the same samples as `generate`, from any second on, however it is taken, and nothing left behind."""

from __future__ import annotations

import asyncio
import gc
import math
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.engine import COARSE, Engine, eventually, same_tokens, workers

import musiclm_deploy as md
from musiclm_deploy.runtime.bundle import STAGES
from musiclm_deploy.runtime.config import config_of
from musiclm_deploy.runtime.musiclm import MusicLM
from musiclm_deploy.runtime.request import make_request
from musiclm_deploy.runtime.resume import given_tokens
from musiclm_deploy.runtime.stream import Stream
from musiclm_deploy.runtime.track import Chunk

DRAWN = {stage: md.SamplingConfig(filter_thres=0.3) for stage in STAGES}  # by default k would be 1 at this size
LONG: dict[str, Any] = {"seconds": 0.903, "seed": 3, "sampling": DRAWN}  # 46 frames: 7 coarse windows and 10 of fine
RAGGED = np.random.default_rng(5).uniform(-0.5, 0.5, 4321).astype(np.float32), 16000  # 13 frames and a half


@pytest.fixture(scope="module", params=["SoundStream, unique", "EnCodec, timed"])
def engine(request, tiny_bundle, second_bundle) -> Iterator[Engine]:
    soundstream = request.param.startswith("SoundStream")
    made = Engine(tiny_bundle if soundstream else second_bundle, "native", soundstream)
    yield made
    made.close()
    assert not workers()


@pytest.fixture
def music(engine: Engine) -> MusicLM:
    """The same as it is loaded, with short windows."""
    return engine.music


def wave_of(chunks: Any) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.float32), *(chunk.audio for chunk in chunks)])


# --- the same samples


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"seconds": 0.01},  # less than a frame
        {"plan": "low_latency", "first_window_s": 0.06},
        {"windows": {"semantic": md.Window(length=9), "coarse": md.Window(length=8, overlap=3), "fine": md.Window(length=3)}},
        {"stop": "eos"},
        {"prime": RAGGED},
        {"prime": RAGGED, "include_prime": False, "plan": "low_latency"},
        {"audio": RAGGED, "max_semantic_tokens": 31},
    ],
    ids=["plain", "one frame", "low latency", "windows", "eos", "prime", "after the prime", "like a sound"],
)
def test_streamed_equals_generated(music: MusicLM, arguments: dict[str, Any]) -> None:
    """Fault: a clip that is cut otherwise because it plays, or decoded in other chunks; a chunk that is lost, or repeated."""
    asked = LONG | arguments
    text = None if "audio" in arguments else "calm piano"
    song = music.generate(text, **asked)
    stream = music.stream(text, **asked)
    chunks = list(stream)
    assert wave_of(chunks).tobytes() == song.audio.tobytes() and same_tokens(stream.tokens, song.tokens)
    assert stream.sample_rate == song.sample_rate == 16000 and stream.seed == 3
    first = chunks[0].start_s * 16000
    starts = first + np.cumsum([0, *(len(chunk.audio) for chunk in chunks[:-1])])
    assert [round(chunk.start_s * 16000) for chunk in chunks] == starts.round().astype(int).tolist()
    assert round(first) == (13 * 320 if arguments.get("include_prime") is False else 0)
    assert all(chunk.audio.dtype == np.float32 and chunk.sample_rate == 16000 and len(chunk.audio) for chunk in chunks)
    assert {"mulan", *STAGES, "codec", "first_audio", "underruns"} <= stream.timings.keys()


def test_first_audio_counts_from_the_request(music: MusicLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault: the time in which the prompt is read, which the listener waits for as well, is left out of `first_audio`."""
    as_it_is = music.encoders.latents

    def slow(prompts: Any) -> np.ndarray:
        time.sleep(0.5)
        return as_it_is(prompts)

    monkeypatch.setattr(music.encoders, "latents", slow)
    stream = music.stream("x", seconds=0.1)
    list(stream)
    assert stream.timings["mulan"] >= 0.5 and stream.timings["first_audio"] > stream.timings["mulan"]


@pytest.mark.parametrize("start", [1, 319, 4801, 14_447])
def test_a_stream_begins_at_any_sample(music: MusicLM, start: int) -> None:
    """Fault: a start that is rounded to a frame, or to a chunk."""
    song = music.generate("x", **LONG)
    chunks = list(music.stream("x", start_s=start / 16000, **LONG))
    assert round(chunks[0].start_s * 16000) == start
    assert wave_of(chunks).tobytes() == song.audio[start:].tobytes()


@pytest.mark.parametrize("ahead_s", [1e-9, 0.1, 100.0])
def test_little_look_ahead_ends_as_well(music: MusicLM, ahead_s: float) -> None:
    """Fault: a listener who has taken all there is and waits for a window that is further away than `ahead_s`, for ever."""
    expected = music.generate("x", **LONG).audio
    assert wave_of(music.stream("x", ahead_s=ahead_s, **LONG)).tobytes() == expected.tobytes()


def test_look_ahead_is_bounded(music: MusicLM, engine: Engine) -> None:
    """Fault: a clip that is made to its end though nobody takes it."""
    with music.stream("x", seed=991, seconds=20, sampling=DRAWN, ahead_s=0.5) as stream:
        next(stream)
        assert eventually(lambda: not engine.calls.runs(991))
        time.sleep(0.05)
        frames = len(stream.tokens.coarse)
        assert not engine.calls.runs(991) and 0.5 * 50 <= frames <= 0.5 * 50 + 4 * 12, frames


@pytest.mark.parametrize("taken", [1, 2])
def test_a_stream_that_was_cut_off_goes_on(music: MusicLM, tmp_path, taken: int) -> None:
    """Fault: other samples after a disconnect, by tokens that are incomplete, or settings that the file does not hold."""
    asked = LONG | {"plan": "low_latency", "first_window_s": 0.06, "ahead_s": 0.2}
    expected = music.generate("calm piano", **{name: value for name, value in asked.items() if name != "ahead_s"})
    stream = music.stream("calm piano", **asked)
    heard = wave_of([next(stream) for _ in range(taken)])
    path = stream.save_tokens(tmp_path / "saved.npz")
    stream.cancel()
    again = music.stream(tokens=path, start_s=len(heard) / 16000)
    rest = wave_of(again)
    assert np.concatenate([heard, rest]).tobytes() == expected.audio.tobytes()
    assert same_tokens(again.tokens, expected.tokens)


# --- how it is taken


def test_async_for(music: MusicLM) -> None:
    """Fault: an event loop that a stream blocks, a wake-up that is lost, streams that take each other's chunks."""
    expected = [music.generate("x", **LONG | {"seed": seed}).audio for seed in range(3)]
    turns = 0

    async def listen(seed: int) -> np.ndarray:
        return wave_of([chunk async for chunk in music.stream("x", **LONG | {"seed": seed, "ahead_s": 0.2})])

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async def both() -> list[np.ndarray]:
        beside = asyncio.create_task(others())
        waves = await asyncio.gather(*map(listen, range(3)))
        beside.cancel()
        return waves

    assert [wave.tobytes() for wave in asyncio.run(both())] == [wave.tobytes() for wave in expected] and turns > 10


def test_two_who_take_from_one_stream(music: MusicLM) -> None:
    """Fault: one of two listeners who waits for ever, or a chunk that both have."""

    async def listen(stream: Stream) -> list[Chunk]:
        return [chunk async for chunk in stream]

    async def both() -> list[Chunk]:
        stream = music.stream("x", ahead_s=0.1, **LONG)
        return [chunk for taken in await asyncio.gather(listen(stream), listen(stream)) for chunk in taken]

    chunks = sorted(asyncio.run(both()), key=lambda chunk: chunk.start_s)
    assert wave_of(chunks).tobytes() == music.generate("x", **LONG).audio.tobytes()


def test_an_event_loop_that_ends_leaves_the_model_alive(music: MusicLM) -> None:
    """Fault: a worker that dies of a loop that is closed, and takes every later request with it."""
    stream = music.stream("x", seconds=20, sampling=DRAWN, seed=5)

    async def one() -> Chunk:
        return await anext(stream)

    async def impatient() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(stream), 0)

    first = asyncio.run(one())
    asyncio.run(impatient())
    stream.cancel()
    assert len(first.audio) and len(music.generate("x", seconds=0.1, sampling=DRAWN).audio) == 1600


def test_a_stream_that_nobody_holds_frees_its_rows(music: MusicLM, engine: Engine) -> None:
    """Fault: an endless clip that goes on for nobody, since the loop over it was left without a word."""
    for chunk in music.stream("x", sampling=DRAWN, seed=992):
        assert chunk.start_s == 0
        break
    assert eventually(lambda: not engine.calls.runs(992))
    stream = music.stream("x", sampling=DRAWN, seed=993)
    stream.cycle = stream  # type: ignore[attr-defined]
    gone = weakref.ref(stream)
    del stream
    gc.collect()
    assert gone() is None and eventually(lambda: not engine.calls.runs(993)) and eventually(lambda: not workers())


def test_cancel_frees_rows_within_a_frame(music: MusicLM, engine: Engine) -> None:
    """Fault: a batch that runs on to the end of its call, or of a window, for a clip that was cancelled."""
    for seed in range(994, 1000):
        stream = music.stream("x", sampling=DRAWN, seed=seed, ahead_s=1000.0)
        next(stream)
        before = len(engine.calls.advances)
        stream.cancel()
        assert eventually(lambda seed=seed: not engine.calls.runs(seed))
        own = [call for call in engine.calls.advances[before:] if seed in call.seeds]
        assert len(own) <= 2, own  # the call that ran, which ends with its frame, and one that began while `cancel` was on its way
    assert eventually(lambda: not workers())


def test_made_ahead(engine: Engine) -> None:
    """Fault: a window that begins when it is read, less than `ahead_s` before it is heard: it interrupts the music on a busy machine."""
    config, codec = config_of(None, seed=992, sampling=DRAWN, plan="low_latency", first_window_s=0.06), engine.bundle.manifest.codec
    stream, clip = engine.stream(make_request(engine.bundle.manifest, config, "x", endless=True), ahead_s=0.5)
    for chunk in stream:
        needed = (chunk.start_s + 0.5) * codec.sample_hz / codec.samples_per_frame
        assert eventually(lambda needed=needed: clip.frames("fine") - codec.lookahead_frames >= needed), chunk.start_s
        if chunk.start_s > 4:
            break
    stream.cancel()


# --- endless


def test_an_endless_stream_has_bounded_memory(engine: Engine, tmp_path: Path) -> None:
    """Fault: tokens, runs or contexts that are kept of all that has been played; tokens that a window still reads and that are gone."""
    request = make_request(engine.bundle.manifest, config_of(None, seed=4, sampling=DRAWN), "x", endless=True)
    stream, clip = engine.stream(request, ahead_s=1.0, kept_s=2.0)
    chunks, kept = [], True
    for chunk in stream:
        chunks.append(chunk)
        if kept and not len(chunks) % 2:  # a file that is written can be gone on from
            try:
                given_tokens(stream.save_tokens(tmp_path / "saved.npz"), engine.bundle.manifest, False, True)
            except ValueError as error:
                assert "is no longer kept" in str(error)
                kept = False
        if not len(chunks) % 10:
            stream.set_prompt(f"prompt {len(chunks)}")
            tokens = stream.tokens
            assert max(len(tokens.coarse), len(tokens.fine)) < 2.2 * 50 * (2 + 1.5), (chunk.start_s, tokens)
        if chunk.start_s > 30:
            break
    stream.cancel()
    whole = engine.alone(clip, clip.frames("fine"))[1]
    wave = wave_of(chunks)
    assert wave.tobytes() == whole[: len(wave)].tobytes()


# --- prompts


def test_a_prompt_is_heard_from_the_second_that_is_given(music: MusicLM) -> None:
    """Fault: a second before which something changes, or after which nothing does; windows that keep the old prompt."""
    asked = LONG | {"seconds": 4.0, "ahead_s": 0.3}
    plain = music.generate("calm piano", **LONG | {"seconds": 4.0}).audio
    stream = music.stream("calm piano", **asked)
    heard = [next(stream), next(stream)]
    at = stream.set_prompt(md.Blend([("calm piano", 0.3), ("brass band", 0.7)]))
    wave = wave_of([*heard, *stream])
    sample = round(at * 16000)
    assert sample == at * 16000 and len(wave_of(heard)) <= sample < len(wave) == len(plain)
    assert wave[:sample].tobytes() == plain[:sample].tobytes()
    window = slice(sample, sample + COARSE * 320)  # not each token is another
    assert wave[window].tobytes() != plain[window].tobytes()


def test_a_prompt_before_anything_is_heard_is_the_prompt(music: MusicLM, engine: Engine) -> None:
    """Fault: a change that a window which has not begun does not read."""
    expected, begin = music.generate("brass", **LONG).audio, threading.Event()
    engine.scheduler.call(lambda: begin.wait(30) and None)  # nothing begins until then
    stream, _ = engine.stream(make_request(engine.bundle.manifest, config_of(None, **LONG), "calm piano"))
    threading.Timer(0.5, begin.set).start()
    assert stream.set_prompt("brass") == 0
    assert wave_of(stream).tobytes() == expected.tobytes()


def test_sampling_before_anything_is_heard_is_the_sampling(music: MusicLM, engine: Engine) -> None:
    """Fault: a setting that a window which has not begun does not follow, or one that was left out and does not stay as it was."""
    later = {"semantic": md.SamplingConfig(temperature=0.5), "coarse": md.SamplingConfig(temperature=0.0, cond_scale=1.5)}
    both = {**DRAWN, "semantic": md.SamplingConfig(temperature=0.5, filter_thres=0.3), "coarse": later["coarse"]}
    expected, begin = music.generate("brass", **LONG | {"sampling": both}).audio, threading.Event()
    assert expected.tobytes() != music.generate("brass", **LONG).audio.tobytes()
    engine.scheduler.call(lambda: begin.wait(30) and None)  # nothing begins until then
    stream, _ = engine.stream(make_request(engine.bundle.manifest, config_of(None, **LONG), "brass"))
    threading.Timer(0.5, begin.set).start()
    with pytest.raises(ValueError, match="sampling has the stages semantic, coarse, fine, got 'codec'"):
        stream.set_sampling({"codec": md.SamplingConfig(temperature=0.5)})
    assert stream.set_sampling(later) == 0
    assert wave_of(stream).tobytes() == expected.tobytes()


@pytest.mark.parametrize("stop", ["exact", "eos"])
def test_a_stream_that_was_cut_off_keeps_its_prompts(music: MusicLM, tmp_path, stop: str) -> None:
    """Fault: a stream that goes on with its first prompt where it had another one by then, or with the other one where it had the first."""
    asked = LONG | {"seconds": 3.0, "stop": stop}  # so that windows have not begun when the first chunk is there
    stream = music.stream("calm piano", ahead_s=0.2, **asked)
    chunks = [next(stream)]
    heard = stream.set_prompt(md.Blend({"brass band": 0.7, "flute": 0.3}))
    if stop == "exact":  # one that may end early may have ended by now
        assert stream.set_sampling({"coarse": md.SamplingConfig(temperature=0.8)}) >= heard
    while chunks[-1].start_s + len(chunks[-1].audio) / chunks[-1].sample_rate < heard:
        chunks.append(next(stream))
    stream.save_tokens(tmp_path / "saved.npz")
    at = chunks[-1].start_s + len(chunks[-1].audio) / chunks[-1].sample_rate
    rest = wave_of(stream)
    again = music.stream(tokens=tmp_path / "saved.npz", start_s=at)
    np.testing.assert_array_equal(wave_of(again), rest)
    plain = wave_of(music.stream("calm piano", **asked))
    assert not np.array_equal(plain[round(at * stream.sample_rate) :], rest)


def test_prompts_that_cannot_be(music: MusicLM) -> None:
    """Fault: a bad prompt that ends a stream, or a wait without end for one that has ended."""
    expected = music.generate("x", **LONG).audio
    stream = music.stream("x", **LONG)
    chunks = [next(stream)]
    unfit: list[Any] = [" ", "", 3, None, ["a", "b"], (RAGGED[0][:9], 16000)]
    for prompt in unfit:
        with pytest.raises(ValueError):
            stream.set_prompt(prompt)
    assert wave_of([*chunks, *stream]).tobytes() == expected.tobytes()
    with pytest.raises(ValueError, match="this stream has ended"):
        stream.set_prompt("y")
    cancelled = music.stream("x", sampling=DRAWN)
    cancelled.cancel()
    list(cancelled)
    with pytest.raises(ValueError, match="this stream has ended"):
        cancelled.set_prompt("y")


# --- what is refused


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"start_s": -0.1}, "start_s must be"),
        ({"start_s": math.nan}, "start_s must be"),
        ({"start_s": math.inf}, "start_s must be"),
        ({"start_s": "1"}, "start_s must be"),
        ({"ahead_s": 0}, "ahead_s"),
        ({"ahead_s": math.nan}, "ahead_s"),
        ({"ahead_s": None}, "ahead_s"),
        ({"num_samples": 2}, "a stream is one clip"),
        ({"compat": "upstream", "seconds": 0.05}, "a stream is one clip"),
        ({"text": ["a", "b"]}, "a stream is one clip"),
    ],
)
def test_what_is_no_stream_is_refused(music: MusicLM, arguments: dict[str, Any], message: str) -> None:
    """Fault: another error than ValueError, or one that comes when the first chunk is taken."""
    with pytest.raises(ValueError, match=message):
        music.stream(**{"text": "x", "seconds": 0.2} | arguments)


def test_a_closed_model_ends_its_streams(tiny_bundle) -> None:
    """Fault: a listener who waits for ever for a model that is gone; chunks that were made and are lost; another kind of error."""
    with md.load(tiny_bundle, device="cpu") as music:
        stream, heard = music.stream("x", sampling=DRAWN, ahead_s=1.0), 0
        with pytest.raises(RuntimeError, match="this MusicLM is closed"):
            for _ in stream:
                heard += 1
                if heard == 2:
                    music.close()
        assert heard >= 2 and len(stream.tokens.coarse) > 0 and eventually(lambda: not workers())
        with pytest.raises(RuntimeError, match="this MusicLM is closed"):
            next(stream)
        for call in (music.stream, music.generate):
            with pytest.raises(RuntimeError, match="this MusicLM is closed"):
                call("x", seconds=0.1)
