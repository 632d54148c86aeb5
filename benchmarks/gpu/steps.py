"""Tokens and steps of a bundle's transformers on a GPU: right first, then timed.

In: a bundle, a driver, the type of weights. Out: rows. It does not know which driver it is: that of the tests is in the
host's memory.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from musiclm_deploy.kernels.launch import BYTES, bytes_of
from musiclm_deploy.kernels.packing import cache_dtype
from musiclm_deploy.runtime.bench.record import Row, ceiling, say
from musiclm_deploy.runtime.bench.steps import sizes
from musiclm_deploy.runtime.bundle import Bundle, Sampling
from musiclm_deploy.runtime.device.driver import Driver
from musiclm_deploy.runtime.device.model import every_list
from musiclm_deploy.runtime.engines.model import EngineModel

from .stage import OnDevice
from .tokens import compare, compare_again, judge, requests_of

ALONE = Sampling(temperature=1.0, filter_thres=0.9, cond_scale=1.0)  # of timed steps: without guidance there are as many sequences as rows
_CONTEXTS = 40, 100, 300


@dataclass(frozen=True)
class Extent:
    """How much is compared and timed. rows: of a step; context: positions before it, at most; tokens: that a request runs on freely;
    steps: timed in each case, 0 for none."""

    rows: tuple[int, ...]
    context: int
    tokens: int
    steps: int

    @property
    def compared_rows(self) -> tuple[int, ...]:
        """One, and a batch that is no larger than eight."""
        return tuple(sorted({1, min(8, max(self.rows))}))

    @property
    def contexts(self) -> tuple[int, ...]:
        return (*(length for length in _CONTEXTS if length < self.context), self.context)


class Counting:
    """A driver that adds up the memory that is asked of it."""

    def __init__(self, driver: Driver) -> None:
        self._driver, self.stated = driver, 0

    def allocate(self, kind: str, shape: tuple[int, ...]) -> Any:
        self.stated += bytes_of(kind, shape)
        return self._driver.allocate(kind, shape)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)


def time_steps(stage: OnDevice, rows: int, context: int, steps: int, bandwidth: float | None) -> Row:
    """A step's time as what twice the steps take longer; host_us: of that, in the calls that launch them."""
    steps = stage.whole(steps)
    request = stage.request(rows, context, 2 * steps, ALONE)
    host, driver = [0.0], stage.model.driver
    replay = driver.replay

    def replayed(*recorded: Any) -> None:
        started = time.perf_counter()
        replay(*recorded)
        host[0] += time.perf_counter() - started

    def run(count: int) -> tuple[float, float]:
        asked = request.of_steps(count)
        host[0], started = 0.0, time.perf_counter()
        stage.decode(asked)
        return time.perf_counter() - started, host[0]

    for count in (steps, 2 * steps):  # buffers are taken, kernels loaded
        run(count)
    driver.replay = replayed
    try:
        once, twice = run(steps), run(2 * steps)
    finally:
        driver.replay = replay
    seconds = (twice[0] - once[0]) / steps
    row: Row = {"benchmark": "gpu step", "form": stage.form, "precision": stage.kind, "stage": stage.stage}
    row |= {"rows": rows, "context": context, **ceiling(bytes_read(stage, rows, context + 1.5 * steps), bandwidth, [seconds])}
    return row | {"step_us": round(seconds * 1e6, 1), "host_us": round((twice[1] - once[1]) / steps * 1e6, 1)} | sizes(stage.decoder)


def check(opened: Bundle, stage: str, driver: Driver, late: Driver | None, kind: str, extent: Extent, bandwidth: float | None) -> list[Row]:
    """Tokens and steps of a stage. RuntimeError where tokens or logits are not the CPU's, or not the same a second time.

    late: the same device, where no launch begins before the one in front of it has ended; None where there is no such choice.
    """
    free, counting = driver.free_bytes(), Counting(driver)
    here, compared = OnDevice(opened, stage, counting, kind), []
    for request in requests_of(here, extent.compared_rows, extent.contexts, extent.tokens):
        rows, before = len(request.sequences), len(request.sequences[0].prompt)
        say(f"gpu: {stage}, {kind}: {request.steps} tokens of {rows} rows after {before} positions")
        compared.append(compare(here, request))
    judge(here, compared)
    free_running = compared[: len(extent.compared_rows)]
    for one in free_running:
        compare_again(here, one, "asked again")
    if late is not None:
        there = OnDevice(opened, stage, late, kind)
        for one in free_running:
            compare_again(there, one, "launched one after another")
        del there  # its memory is none of what a stage takes
    row: Row = {"benchmark": "gpu tokens", "form": here.form, "precision": kind, "stage": stage, **sizes(here.decoder)}
    row |= {"equal": sum(one.equal for one in compared), "tokens": sum(one.total for one in compared)}
    row |= {"logits_differ_by": float(f"{np.max([one.lost for one in compared]):.1e}"), "longest": extent.tokens}
    found: list[Row] = []
    for count in extent.rows if extent.steps else ():
        say(f"gpu: {stage}, {kind}: steps of {count} rows")
        found.append(time_steps(here, count, extent.context, extent.steps, bandwidth))
    row |= {"stated_mb": round(counting.stated / 1e6, 1), "taken_mb": round((free - driver.free_bytes()) / 1e6, 1)}
    return [*found, row]


def bytes_read(stage: OnDevice, rows: int, positions: float) -> float:
    """Of weights once, and of every row's keys and values."""
    own = stage.model.sizes
    step = next(every_list(own, False, stage.kind))
    parts = ("weights", "scales") if stage.kind == "int8" else ("weights",)
    products = [launch.arguments for launch in step.kernels if launch.kernel == "product"]
    weights = sum(bytes_of(*step.buffers[arguments[part]]) for arguments in products for part in parts)
    if isinstance(stage.model, EngineModel):  # which reads whole caches
        positions = stage.model.capacity(1)
    return weights + rows * positions * 2 * own.depth * own.cache_head_size * BYTES[cache_dtype(stage.kind)]
