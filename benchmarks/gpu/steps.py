"""Tokens and steps of a bundle's transformers on a GPU: right first, then timed.

In: a bundle, a driver, the type of weights. Out: rows. It does not know which driver it is: the tests give it Triton's interpreter.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np

from musiclm_deploy.kernels.launch import BYTES, bytes_of
from musiclm_deploy.runtime.backend import open_session
from musiclm_deploy.runtime.bench.record import Row, ceiling, say
from musiclm_deploy.runtime.bench.steps import Case, make_case, random_context, sizes
from musiclm_deploy.runtime.bundle import STAGES, Bundle, Sampling
from musiclm_deploy.runtime.decoder import DecoderRun
from musiclm_deploy.runtime.device import decode as device
from musiclm_deploy.runtime.device.driver import Driver, Engines
from musiclm_deploy.runtime.device.model import DeviceModel, every_list
from musiclm_deploy.runtime.engines.model import EngineModel
from musiclm_deploy.runtime.noise import PhiloxNoise
from musiclm_deploy.runtime.sampling import sample
from musiclm_deploy.runtime.step import open_weights

LEAST_EQUAL = {"fp32": 1.0, "fp16": 0.95, "bf16": 0.9}  # share of tokens that must be the CPU's after the same tokens


class Counting:
    """A driver that adds up the memory that is asked of it."""

    def __init__(self, driver: Driver) -> None:
        self._driver, self.stated = driver, 0

    def allocate(self, kind: str, shape: tuple[int, ...]) -> Any:
        self.stated += bytes_of(kind, shape)
        return self._driver.allocate(kind, shape)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)


class Bench:
    """A stage's weights on a driver's device, and its graph on the CPU beside them."""

    def __init__(self, opened: Bundle, stage: str, driver: Any, kind: str) -> None:
        self.manifest, self.stage, self.kind = opened.manifest, stage, kind
        self.decoder = getattr(opened.manifest, stage)
        self.session = open_session(opened.path(self.decoder.graph), None)
        contexts = self.decoder.context and open_session(opened.path(self.decoder.context), None)
        _, self.context = random_context(opened.manifest, stage, contexts)
        _, own, weights = open_weights(opened.root, self.decoder)
        engines = isinstance(driver, Engines)
        self.model = EngineModel(driver, stage, own, weights, {}) if engines else DeviceModel(driver, stage, own, weights, kind, {})
        self.form = "engines" if engines else "kernels"

    def equal_tokens(self, rows: int, context: int) -> tuple[int, int]:
        """(equal, of so many): the next token of rows of random tokens, the likeliest and one drawn, on the device and by the graph."""
        case = self._case(rows, context, 1)
        plan, told = replace(case.plan, steps=np.ones(rows, np.int64)), self._told(rows)
        before = told["prefix_embeddings"].shape[1] if "prefix_embeddings" in told else 0
        run = DecoderRun(self.session, self.decoder, told, rows, plan.capacity + before)
        logits = run.prefill(plan.prompts, plan.head(0))
        noise = PhiloxNoise([(0, row) for row in range(rows)]).gumbel(self.stage, 0, rows, self.decoder.vocabulary)
        equal = 0
        for temperature, dropped in ((0.0, 0.0), (1.0, 0.9)):
            expected = sample(logits, noise, temperature, dropped, plan.forbid_last(0)).tolist()
            draws, sampling = [(0, row, 0) for row in range(rows)], Sampling(temperature, dropped, cond_scale=1.0)
            found = device.decode(self.model, plan, told, False, sampling, draws, lambda *_: None)
            # an end leaves a row empty
            equal += sum([*row.tolist(), plan.end][0] == token for row, token in zip(found, expected, strict=True))
        return equal, 2 * rows

    def time_steps(self, rows: int, context: int, steps: int, bandwidth: float | None) -> Row:
        """A step's time as what twice the steps take longer; host_us: of that, in the calls that launch them."""
        case, told = self._case(rows, context, 2 * steps), self._told(rows)
        sampling = Sampling(temperature=1.0, filter_thres=0.9, cond_scale=1.0)
        host, replay = [0.0], self.model.driver.replay

        def replayed(recorded: Any) -> None:
            started = time.perf_counter()
            replay(recorded)
            host[0] += time.perf_counter() - started

        def run(count: int) -> tuple[float, float]:
            plan = replace(case.plan, steps=np.full(rows, count), end_allowed=False)
            host[0], started = 0.0, time.perf_counter()
            device.decode(self.model, plan, told, False, sampling, [(0, row, 0) for row in range(rows)], lambda *_: None)
            return time.perf_counter() - started, host[0]

        for count in (steps, 2 * steps):  # buffers are taken, kernels loaded
            run(count)
        self.model.driver.replay = replayed
        try:
            once, twice = run(steps), run(2 * steps)
        finally:
            self.model.driver.replay = replay
        seconds = (twice[0] - once[0]) / steps
        row: Row = {
            "benchmark": "gpu step",
            "form": self.form,
            "precision": self.kind,
            "stage": self.stage,
            "rows": rows,
            "context": context,
        }
        row |= ceiling(self._bytes(rows, context + 1.5 * steps), bandwidth, [seconds])
        return row | {"step_us": round(seconds * 1e6, 1), "host_us": round((twice[1] - once[1]) / steps * 1e6, 1)} | sizes(self.decoder)

    def _bytes(self, rows: int, positions: float) -> float:
        """Of weights once, and of every row's keys and values."""
        own = self.model.sizes
        step = next(every_list(own, False, False, self.kind))
        weights = sum(bytes_of(*step.buffers[launch.arguments["weights"]]) for launch in step.kernels if launch.kernel == "product")
        if isinstance(self.model, EngineModel):  # which reads whole caches
            positions = self.model.capacity(0, 1)
        return weights + rows * positions * 2 * own.depth * own.cache_head_size * BYTES[self.kind]

    def _case(self, rows: int, context: int, steps: int) -> Case:
        case = make_case(self.manifest, self.stage, rows, context, steps)
        if case is None:
            raise ValueError(f"{context} positions and {steps} steps are beyond the window of this bundle's {self.stage} transformer.")
        return case

    def _told(self, rows: int) -> dict[str, np.ndarray]:
        return {name: np.repeat(array, rows, axis=0) for name, array in self.context.items()}


def check(
    opened: Bundle, driver: Driver, kind: str, bandwidth: float | None, rows: tuple[int, ...], lengths: tuple[int, ...], steps: int
) -> list[Row]:
    """Tokens and steps of every stage. RuntimeError where tokens are not the CPU's."""
    found: list[Row] = []
    for stage in STAGES:
        free, counting = driver.free_bytes(), Counting(driver)
        bench = Bench(opened, stage, counting, kind)
        counts = []
        for length in lengths:
            say(f"gpu: {stage}, tokens after {length} positions")
            counts.append(bench.equal_tokens(min(8, max(rows, default=2)), length))
        equal, total = (sum(column) for column in zip(*counts, strict=True))
        about = {"benchmark": "gpu tokens", "form": bench.form, "precision": kind, "stage": stage}
        if equal < LEAST_EQUAL[kind] * total:
            raise RuntimeError(
                f"{stage}, {kind}: {equal} of {total} tokens are the CPU's after the same tokens, {LEAST_EQUAL[kind]:.0%} must be."
            )
        for count in rows:
            say(f"gpu: {stage}, steps of {count} rows")
            found.append(bench.time_steps(count, lengths[-1], steps, bandwidth))
        memory = {"stated_mb": round(counting.stated / 1e6, 1), "taken_mb": round((free - driver.free_bytes()) / 1e6, 1)}
        found.append(about | {"equal": equal, "tokens": total} | memory | sizes(bench.decoder))
    return found
