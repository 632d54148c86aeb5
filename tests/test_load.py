"""Many requests at once: who waits for whom, what a failure ends, and what is left when all is over."""

from __future__ import annotations

import gc
import random
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.engine import Call, Calls, Engine, eventually, workers

import musiclm_deploy as md
from musiclm_deploy.runtime import scheduler
from musiclm_deploy.runtime.batch import POSITIONS_AT_ONCE
from musiclm_deploy.runtime.bundle import STAGES
from musiclm_deploy.runtime.musiclm import MusicLM
from musiclm_deploy.runtime.pipeline import GenerationCancelled
from musiclm_deploy.runtime.scheduler import QueueFull
from musiclm_deploy.runtime.stream import Stream

DRAWN = {stage: md.SamplingConfig(filter_thres=0.3) for stage in STAGES}  # by default k would be 1 at this size
TOKENS_A_FRAME = {"semantic": 1, "coarse": 2, "fine": 3}


@pytest.fixture(scope="module")
def loaded(tiny_bundle) -> Iterator[Engine]:
    made = Engine(tiny_bundle, "native", True)
    yield made
    made.close()
    assert not workers()


@pytest.fixture
def engine(loaded: Engine) -> Iterator[Engine]:
    loaded.calls.advances.clear()
    loaded.calls.made.clear()
    yield loaded
    loaded.calls.before.clear()
    assert eventually(lambda: not any(loaded.calls.rows.values()))


@pytest.fixture
def music(engine: Engine) -> MusicLM:
    return engine.music


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


def options(seed: int, seconds: float | None, **others: Any) -> dict[str, Any]:
    return {"seed": seed, "seconds": seconds, "sampling": DRAWN, **others}


# --- who waits for whom


def test_a_clip_that_plays_waits_for_one_piece_and_one_frame(engine: Engine, threads: ThreadPoolExecutor, monkeypatch) -> None:
    """Fault: a listener who waits while the prompts of a request beside are fed, or while another stage is at work for others."""
    monkeypatch.setattr(scheduler, "IN_HAND_S", 1e9)  # this listener takes chunks faster than they play, and has ever more in hand
    prompts = [f"prompt {index}" for index in range(24)]
    beside: list[Future[Any]] = []
    with engine.music.stream("x", **options(70, None, ahead_s=0.5)) as stream:
        for index, _ in enumerate(stream):
            if index == 0:
                beside = [threads.submit(engine.music.generate, prompts, **options(80 + n, 0.5)) for n in range(2)]
            if beside and all(one.done() for one in beside):
                break
            time.sleep(0.02)  # less than a chunk plays, and enough for the stream to be as far ahead as it may: others run then
            assert index < 3000, "those beside never ran"
    playing = [call for call in engine.calls.advances if 70 in call.running]
    assert any(call.waiting > POSITIONS_AT_ONCE and 80 in call.seeds for call in playing), "no prompt was fed beside the clip"
    for call in playing:
        assert 70 in call.seeds and call.positions <= POSITIONS_AT_ONCE and (call.frames == 1 or not call.waiting), call


def test_cancel_frees_rows_after_the_frame_that_runs(engine: Engine) -> None:
    """Fault: a call that goes on to its last frame for a clip that was cancelled, or a clip that is in the call after it."""
    calls = engine.calls
    for stage in STAGES:
        stream = engine.music.stream("x", **options(71, None, ahead_s=1000.0))
        cancelling = Cancelling(stage, stream, calls)
        calls.before["advance"] = cancelling
        assert cancelling.done.wait(30)
        assert eventually(lambda: not calls.runs(71)) and not calls.advances
        made = [count for _, of, count in calls.made if of == stage]
        assert len(made) >= 1 and max(made) <= TOKENS_A_FRAME[stage], (stage, calls.made)


class Cancelling:
    """Cancels a stream once, when a call of many frames of a stage is about to begin."""

    def __init__(self, stage: str, stream: Stream, calls: Calls) -> None:
        self._stage, self._stream, self._calls, self.done = stage, stream, calls, threading.Event()

    def __call__(self, call: Call) -> None:
        if call.stage == self._stage and call.frames > 3 and not call.waiting and not self.done.is_set():
            self._calls.advances.clear()
            self._calls.made.clear()
            self._stream.cancel()
            self.done.set()


def test_requests_of_several_threads_share_batches(engine: Engine, threads: ThreadPoolExecutor) -> None:
    """Fault: requests that wait for each other, or that run side by side, each with the weights read for it alone."""
    alone = [engine.music.generate("x", **options(seed, 2.0)).audio for seed in range(8)]
    frames = sum(call.frames for call in engine.calls.advances)
    engine.calls.advances.clear()
    together = list(threads.map(lambda seed: engine.music.generate("x", **options(seed, 2.0)).audio, range(8)))
    assert [wave.tobytes() for wave in together] == [wave.tobytes() for wave in alone]
    assert sum(call.frames for call in engine.calls.advances) < 0.7 * frames


def test_what_is_heard_first_is_made_first(engine: Engine) -> None:
    """Fault: a clip that plays and prepares semantic tokens of far later windows while coarse frames that are heard next are missing."""
    early: list[Call] = []

    def look(call: Call) -> None:
        if call.stage == "semantic" and "coarse" in {stage for rows in engine.calls.rows.values() for stage in rows.values()}:
            early.append(call)

    engine.calls.before["advance"] = look
    assert len(list(engine.music.stream("x", **options(71, 3.0, plan="low_latency", first_window_s=0.06)))) > 3
    assert not early and sum(call.stage == "semantic" for call in engine.calls.advances) > 3


def test_many_prompts_beside_a_stream(engine: Engine, threads: ThreadPoolExecutor) -> None:
    """Fault: a stream that waits until the rows of a large request are free, or a large request that never ends beside it."""
    many = threads.submit(engine.music.generate, [f"prompt {index % 7}" for index in range(100)], **options(72, 0.3))
    assert eventually(lambda: len(engine.calls.advances) > 3)
    wave = np.concatenate([chunk.audio for chunk in engine.music.stream("x", **options(73, 2.0))])
    assert not many.done() and wave.tobytes() == engine.music.generate("x", **options(73, 2.0)).audio.tobytes()
    songs = many.result(60)
    assert songs[93].audio.tobytes() == engine.music.generate("prompt 2", **options(72, 0.3)).audio.tobytes()


def test_who_has_enough_in_hand_waits(engine: Engine, threads: ThreadPoolExecutor, monkeypatch) -> None:
    """Fault: a stream that may be far ahead of its listener keeps every request that is collected waiting."""
    monkeypatch.setattr(scheduler, "IN_HAND_S", 0.5)
    with engine.music.stream("x", **options(72, None, ahead_s=80_000.0)) as stream:
        next(stream)
        assert len(threads.submit(engine.music.generate, "y", **options(73, 0.5)).result(60).audio) == 8000


def test_requests_that_come_together_run_together(engine: Engine, threads: ThreadPoolExecutor, monkeypatch) -> None:
    """Fault: the first of several clients whose clip runs ahead of the others', stage after stage, alone in its batches."""
    monkeypatch.setattr(scheduler, "TOGETHER_S", 20.0)  # however slowly their prompts are read
    seeds = range(90, 94)
    for one in [threads.submit(engine.music.generate, "x", **options(seed, 4.0)) for seed in seeds]:
        one.result(60)
    coarse = [seed for seed, stage, _ in engine.calls.made if stage == "coarse"]
    assert {*coarse[-4:]} == {*seeds}


def test_a_request_does_not_wait_for_those_after_it(engine: Engine, threads: ThreadPoolExecutor) -> None:
    """Fault: a clip whose tokens are all made and that is decoded only when nobody has tokens to be made any more."""
    first = threads.submit(engine.music.generate, "x", **options(74, 2.0))
    assert eventually(lambda: any(seed == 74 for seed, *_ in engine.calls.made))
    after = [threads.submit(engine.music.generate, ["x", "y"], **options(75, 12.0)) for _ in range(2)]
    first.result(60)
    assert not any(one.done() for one in after)
    for one in after:
        one.result(60)


def test_no_more_than_the_queue_holds(music: MusicLM, monkeypatch) -> None:
    """Fault: requests without end that are taken, all of which wait; a place in the queue that is never free again."""
    monkeypatch.setattr(scheduler, "QUEUE", 2)
    streams = [music.stream("x", **options(76, None)) for _ in range(2)]
    for call in (music.stream, music.generate):
        with pytest.raises(QueueFull, match="2 requests are waiting already"):
            call("x", **options(76, 0.1))
    streams[0].cancel()
    list(streams[0])  # until it has ended
    assert len(music.generate("x", **options(76, 0.1)).audio) == 1600
    streams[1].cancel()


def test_who_waits_for_slots_lets_those_run_that_have_them(tiny_bundle, threads: ThreadPoolExecutor) -> None:
    """Fault: an older request without a slot that is first, and never gets one, since the larger one behind it has them all."""
    engine = Engine(tiny_bundle, "native", True)
    known = [replace(one.tokens, fine=None) for one in engine.music.generate("x", num_samples=2, **options(80, 2.0)).candidates]
    begin = threading.Event()
    engine.calls.before["batch"] = lambda _: begin.wait(30)  # nothing begins until both are there
    older = threads.submit(engine.music.generate, "y", **options(81, 1.0))
    assert eventually(lambda: engine.music.activity.tasks == 1)
    larger = threads.submit(engine.music.generate, "x", num_samples=2, tokens=known, **options(80, 2.0))  # it has only fine windows to make
    assert eventually(lambda: engine.music.activity.tasks == 2)
    begin.set()
    try:
        assert [len(one.result(60).audio) for one in (older, larger)] == [16000, 32000]
    finally:
        engine.close()


# --- failures


class Broken(Exception):
    """A fault of a batch."""


@pytest.mark.parametrize("method", ["batch", "join", "advance", "leave"])
def test_a_failure_reaches_whoever_waits(tiny_bundle, threads: ThreadPoolExecutor, method: str) -> None:
    """Fault: a worker that dies without a word, with callers who wait for ever, or a model that is of no use after one failure."""
    engine = Engine(tiny_bundle, "native", True)
    music, fails = engine.music, threading.Event()

    def fail(*_: Any) -> None:
        if fails.is_set():
            raise Broken(method)

    engine.calls.before[method] = fail
    if method == "batch":
        fails.set()
    streams = [music.stream("x", **options(seed, None)) for seed in (77, 78)]
    running = [threads.submit(music.generate, ["x", "y"], **options(79, 0.5)) for _ in range(3)]
    if method != "batch":
        next(streams[1])
    fails.set()
    with pytest.raises(Broken):
        for seed in range(1000, 1500):
            next(streams[1])
            if method == "leave":  # the clip that ends here has a sequence to lose unless it is between two windows
                with music.stream("x", **options(seed, None)):
                    assert eventually(lambda seed=seed: engine.calls.runs(seed))
    for one in running:
        assert one.exception(60) is None or isinstance(one.exception(), Broken)
    engine.calls.before.clear()
    streams[0].cancel()
    assert len(music.generate("x", **options(77, 0.5)).audio) == 8000
    engine.close()
    assert eventually(lambda: not workers())


def test_noise_that_fails_ends_its_request_alone(music: MusicLM, threads: ThreadPoolExecutor) -> None:
    """Fault: a batch given up, with all who have rows in it, for the caller's own noise; two items of a request that fail together."""

    class Noise:
        def gumbel(self, stage: str, step: int, batch: int, vocab: int) -> np.ndarray:
            if stage == "fine" and step > 3:
                raise Broken(stage)
            return np.zeros((batch, vocab), np.float32)

    stream = music.stream("x", **options(78, 2.0, ahead_s=1000.0))
    for _ in range(3):
        with pytest.raises(Broken):
            music.generate(["x", "y"], noise=Noise(), **options(79, 0.5))
    assert sum(len(chunk.audio) for chunk in stream) == 32000


def test_a_callback_may_ask_for_more_or_close(tiny_bundle) -> None:
    """Fault: a lock that is held while a caller's function runs, which asks for what needs the lock."""
    engine = Engine(tiny_bundle, "native", True)
    made: list[int] = []

    def ask(stage: str, done: int, total: int) -> None:
        if stage == "coarse" and len(made) < 3:
            made.append(len(engine.music.generate("y", **options(81, 0.1)).audio))

    engine.music.generate("x", progress=ask, **options(80, 0.5))
    assert made == [1600] * 3

    def close(stage: str, done: int, total: int) -> None:
        engine.music.close()

    with pytest.raises(RuntimeError, match="this MusicLM is closed"):
        engine.music.generate("x", progress=close, **options(80, 5.0))
    engine.close()


LEAVING = """
import sys, time
import musiclm_deploy as md

class Late:
    def __del__(self, sleep=time.sleep):
        sleep(0.2)  # Python has begun to end, and other threads could go on

late = Late()
streams = [md.load(sys.argv[1], device="cpu", step="graph").stream("x", seed=seed, ahead_s=1000.0) for seed in range(2)]
next(streams[0])
"""


def test_a_program_may_end_while_music_plays(tiny_bundle) -> None:
    """Fault: a process that aborts at its end, since a thread is taken away in the middle of native code."""
    done = subprocess.run([sys.executable, "-c", LEAVING, str(tiny_bundle)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("moment", range(5))
def test_close_at_any_moment(tiny_bundle, threads: ThreadPoolExecutor, moment: int) -> None:
    """Fault: a caller who waits for ever for a model that was closed meanwhile, another error than RuntimeError, a thread that is left."""
    engine, chance = Engine(tiny_bundle, "native", True), random.Random(moment)
    music = engine.music

    def listen(seed: int) -> int:
        return sum(len(chunk.audio) for chunk in music.stream("x", **options(seed, 3.0, ahead_s=0.3)))

    def collect(seed: int) -> int:
        return len(music.generate("x", **options(seed, 2.0)).audio)

    running = [threads.submit(chance.choice([listen, collect]), seed) for seed in range(6)]
    time.sleep(chance.random() * 0.2)
    closing = [threads.submit(music.close) for _ in range(2)]
    for one in closing:
        one.result(30)
    for one in running:
        error = one.exception(30)
        assert (one.result() in (32000, 48000)) if error is None else (type(error) is RuntimeError and "is closed" in str(error)), error
    engine.close()
    assert eventually(lambda: not workers())


# --- many


def soak(engine: Engine, requests: int) -> tuple[list[int], int]:
    """Make so many requests from eight threads, a third of them cancelled. Return the resident bytes as they went, and how many ended."""
    sizes, lock = [], threading.Lock()

    def one(number: int) -> bool:
        chance = random.Random(number)
        cut, arguments = number % 3 == 0, options(number, chance.choice([0.05, 0.5, 0.903, 2.0]), stop=chance.choice(["exact", "eos"]))
        if number % 2:
            most, stream = 1 + chance.randrange(3) if cut else 99, engine.music.stream("x", **arguments)
            ended = bool([chunk for _, chunk in zip(range(most), stream, strict=False)]) and not cut
        else:
            cancel, seen = threading.Event(), chance.randrange(1, 60)

            def look(*_: Any) -> None:
                nonlocal seen
                seen -= 1
                if cut and seen <= 0:
                    cancel.set()

            try:
                ended = bool(engine.music.generate(["x", "y"][: 1 + number % 4 // 2], progress=look, cancel=cancel, **arguments))
            except GenerationCancelled:
                ended = False
        with lock:
            sizes.append(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize())
            del engine.calls.advances[:], engine.calls.made[:]
        return ended

    with ThreadPoolExecutor(8) as pool:
        return sizes, sum(pool.map(one, range(requests)))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the size of this process is read from /proc")
@pytest.mark.parametrize("requests", [150, pytest.param(1000, marks=pytest.mark.nightly)])
def test_what_many_requests_leave(engine: Engine, requests: int) -> None:
    """Fault: memory, rows, threads, or places in the queue that requests leave behind, those above all that were cancelled."""
    threads = threading.active_count()
    sizes, ended = soak(engine, requests)
    assert ended >= requests * 2 // 3 - 1
    assert eventually(lambda: threading.active_count() <= threads) and not any(engine.calls.rows.values())
    gc.collect()
    first, last = np.median(sizes[requests // 3 : requests // 2]), np.median(sizes[-requests // 6 :])
    assert last <= 1.02 * first, (first, last)
