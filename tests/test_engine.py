"""One scheduler, driven at random: clips join, are taken from, change prompts, are cancelled, fail, and end, and the whole is closed.

Whatever happens beside a clip, its tokens and samples are those that it has alone, to the bit: `support.engine.Engine.alone` makes each of
them without a scheduler, one sequence after another.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from support.engine import Engine, RecordedClip, eventually, same_tokens, workers
from support.requests import ask

import musiclm_deploy as md
from musiclm_deploy.runtime.bundle import STAGES
from musiclm_deploy.runtime.music import Music
from musiclm_deploy.runtime.pipeline import GenerationCancelled
from musiclm_deploy.runtime.stream import Stream

PROMPTS = ["calm piano", "brass", "a low drone"]
SAMPLING = [
    {stage: md.SamplingConfig(filter_thres=0.3) for stage in STAGES},  # by default k would be 1 at this size
    {"semantic": md.SamplingConfig(filter_thres=0.3), "coarse": md.SamplingConfig(cond_scale=1.0, temperature=0.7, filter_thres=0.5)},
]
WINDOWS = [None, {"semantic": md.Window(14, 10), "coarse": md.Window(10, 7), "fine": md.Window(3)}]
CASES = {"fp32, native, unique": ("tiny", "native", True), "fp32, graph, timed": ("tiny", "graph", False)}
CASES |= {"int8 and int4, native, timed": ("second", "native", False), "int8 and int4, graph, unique": ("second", "graph", True)}
CASES |= {"fp32, a GPU's kernels, unique": ("tiny", "kernels", True)}
TEXT, PLAN = st.sampled_from(PROMPTS), st.sampled_from(["trained", "low_latency"])
CLIP: dict[str, Any] = {
    "seconds": st.sampled_from([0.05, 0.611, 0.903, 2.5]),  # of one window, of several, with ragged last ones
    "seed": st.integers(0, 5),
    "stop": st.sampled_from(["exact", "eos"]),
}


@pytest.fixture(scope="module", params=CASES.values(), ids=list(CASES))
def engine(request, tiny_bundle, second_bundle) -> Iterator[Engine]:
    bundle, step, unique = request.param
    made = Engine({"tiny": tiny_bundle, "second": second_bundle}[bundle], step, unique)
    yield made
    made.close()


@dataclass(eq=False)
class Playing:
    """A stream that somebody listens to."""

    stream: Stream
    clip: RecordedClip
    start: int  # its first sample
    samples: int  # of the clip
    taken: list[np.ndarray] = field(default_factory=list)


class Machine(RuleBasedStateMachine):
    """Requests at random to one scheduler."""

    def __init__(self, engine: Engine, alone: dict[str, Any]) -> None:
        super().__init__()
        self.engine, self.alone = engine, alone
        self.playing: list[Playing] = []
        self.collected: list[tuple[Future[list[Music]], dict[str, Any], threading.Event, bool]] = []
        self.threads = ThreadPoolExecutor(8)
        self.engine.open()

    def ask(self, **arguments: Any) -> Any:
        return ask(self.engine.bundle.manifest, **arguments)

    @rule(data=st.data())
    def act(self, data: st.DataObject) -> None:
        """Do one thing. One rule for all: of several, hypothesis leaves some out of each run."""
        actions = [self.play, self.play, self.collect, self.collect]
        if self.playing:
            actions += [self.take] * 4 + [self.change] * 4 + [self.refuse, self.leave, self.finish]
        if self.collected:
            actions += [self.wait]
        if len(self.playing) + len(self.collected) > 3:
            actions += [self.close]
        self.draw = data.draw
        data.draw(st.sampled_from(actions))()

    # --- what clips are

    def play(self) -> None:
        own = {"text": TEXT, "sampling": st.sampled_from(SAMPLING), "plan": PLAN, "windows": st.sampled_from(WINDOWS)}
        arguments = self.draw(st.fixed_dictionaries({**CLIP, **own}))
        start, ahead_s = self.draw(st.sampled_from([0, 1, 4801])), self.draw(st.sampled_from([0.01, 0.2, 10.0]))
        request = self.ask(**arguments, first_window_s=0.06)
        stream, clip = self.engine.stream(request, start / 16000, ahead_s)
        self.playing.append(Playing(stream, clip, start, request.samples))

    def collect(self) -> None:
        asked = self.draw(st.fixed_dictionaries({**CLIP, "text": st.lists(TEXT, min_size=1, max_size=3), "num_samples": st.integers(1, 2)}))
        asked |= {"sampling": SAMPLING[0]}
        cancel, fails = threading.Event(), self.engine.own.on_host and self.draw(st.integers(0, 3)) == 0
        noise = FailingNoise(3) if fails else None
        running = self.threads.submit(self.engine.pipeline.collect, self.ask(**asked), 0, noise, None, cancel)
        self.collected.append((running, asked, cancel, fails))

    # --- what happens to them

    def one(self) -> Playing:
        return self.draw(st.sampled_from(self.playing))

    def take(self) -> None:
        one, count = self.one(), self.draw(st.integers(1, 3))
        for _, chunk in zip(range(count), one.stream, strict=False):
            assert chunk.sample_rate == 16000
            assert round(chunk.start_s * 16000) == one.start + sum(map(len, one.taken))
            one.taken.append(chunk.audio)

    def change(self) -> None:
        one, change = self.one(), self.draw(st.one_of(TEXT, st.sampled_from(SAMPLING)))
        if one.clip.ends:  # whether its semantic tokens have ended by now is chance
            return
        before = len(one.clip.changes)
        try:
            heard = one.stream.set_prompt(change) if isinstance(change, str) else one.stream.set_sampling(change)
        except ValueError as error:
            assert "the last window of this clip has begun" in str(error) or "this stream has ended" in str(error)
            assert len(one.clip.changes) == before
        else:
            frame = one.clip.changes[before][3]
            assert heard == frame * 320 / 16000
            assert not one.taken or one.start + sum(map(len, one.taken)) <= frame * 320

    def refuse(self) -> None:
        with pytest.raises(ValueError, match=r"the text ' ' holds no token|this stream has ended"):
            self.one().stream.set_prompt(" ")

    def leave(self) -> None:
        one = self.one()
        self.playing.remove(one)
        if self.draw(st.booleans()):
            del one.stream
        else:
            one.stream.cancel()
            self.check(one, whole=False)

    def finish(self) -> None:
        self.end(self.one())

    def end(self, one: Playing) -> None:
        self.playing.remove(one)
        one.taken += [chunk.audio for chunk in one.stream]
        self.check(one, whole=True)

    def wait(self) -> None:
        self.look_at(self.draw(st.integers(0, len(self.collected) - 1)), self.draw(st.booleans()))

    def look_at(self, index: int, cancelled: bool) -> None:
        running, asked, cancel, fails = self.collected.pop(index)
        if cancelled:
            cancel.set()
        error = running.exception(60)
        if fails and not isinstance(error, GenerationCancelled):
            assert isinstance(error, ZeroDivisionError) or asked["stop"] == "eos", error
        elif error is None:
            self.check_collected(asked, running.result())
        else:
            assert isinstance(error, GenerationCancelled) and cancelled, error

    def close(self) -> None:
        self.engine.scheduler.close()
        for one in self.playing:
            try:
                for chunk in one.stream:
                    one.taken.append(chunk.audio)
            except RuntimeError as error:
                assert "this MusicLM is closed" in str(error)
            else:
                assert one.clip.done
            self.check(one, whole=False)
        for running, asked, _, fails in self.collected:
            if (error := running.exception(60)) is None:
                self.check_collected(asked, running.result())
            else:
                assert isinstance(error, ZeroDivisionError if fails and not isinstance(error, RuntimeError) else RuntimeError), error
        self.playing.clear()
        self.collected.clear()
        with pytest.raises(RuntimeError, match="this MusicLM is closed"):
            self.engine.stream(self.ask(seconds=0.1))
        assert eventually(lambda: not workers())
        self.engine.open()

    def teardown(self) -> None:
        while self.playing:
            self.end(self.playing[0])
        while self.collected:
            self.look_at(0, False)
        self.engine.scheduler.close()
        self.threads.shutdown()
        assert eventually(lambda: not workers()) and not self.engine.calls.rows

    # --- what they must be

    def check(self, one: Playing, whole: bool) -> None:
        tokens, wave = self.engine.alone(one.clip)
        wave, heard = wave[one.start : one.samples], np.concatenate([np.zeros(0, np.float32), *one.taken])
        assert heard.tobytes() == wave[: len(heard)].tobytes()
        if whole:
            assert len(heard) == len(wave) and same_tokens(one.stream.tokens, tokens)
        else:
            found = one.stream.tokens
            for stage in STAGES:
                assert np.array_equal(getattr(found, stage), getattr(tokens, stage)[: len(getattr(found, stage))]), stage

    def check_collected(self, asked: dict[str, Any], songs: list[Music]) -> None:
        items = [candidate for song in songs for candidate in song.candidates]
        if str(asked) not in self.alone:
            request = self.ask(**asked)
            clips = self.engine.clips(self.engine.pipeline.prepare(request))
            self.alone[str(asked)] = [(*self.engine.alone(clip), request.samples) for clip in clips]
        for item, (tokens, wave, samples) in zip(items, self.alone[str(asked)], strict=True):
            assert same_tokens(item.tokens, tokens)
            assert item.audio.tobytes() == wave[:samples].tobytes()


class FailingNoise:
    """Noise that fails after some steps of the coarse stage."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def gumbel(self, stage: str, step: int, batch: int, vocab: int) -> np.ndarray:
        if stage == "coarse" and step >= self.steps:
            raise ZeroDivisionError("no more noise")
        return np.random.default_rng([step, len(stage)]).gumbel(size=(batch, vocab)).astype(np.float32)


def test_whatever_happens_beside_it_a_clip_is_what_it_is_alone(engine: Engine) -> None:
    """Fault: tokens or samples that depend on who joins, leaves, fails or changes beside a clip; an endless wait; a lost slot."""
    alone: dict[str, Any] = {}
    run_state_machine_as_test(
        lambda: Machine(engine, alone),  # pyright: ignore[reportArgumentType]: hypothesis calls it without arguments
        settings=settings(
            max_examples=10 if engine.backend.native else 3 if engine.own.on_host else 1,
            stateful_step_count=40 if engine.own.on_host else 12,
            deadline=None,
            derandomize=True,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
            database=None,
        ),
    )
