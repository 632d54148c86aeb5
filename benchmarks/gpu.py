"""What a GPU makes of a bundle: `make gpu-check`, or `python -m benchmarks.gpu`. Tokens first, then times.

In: the bundle of a size, whose kernels are compiled when they are not there; where a TensorRT is installed, its form and engines too. Out:
JSON lines of results/gpu.jsonl, with the GPU's name, and a table on the terminal. Checked: with weights of 32 bits the likeliest token is
the CPU's after the same tokens, with 16 nearly always; compute-sanitizer, where it is installed, finds nothing. Timed: one step, launches
and waiting included, of 1 to 32 rows; clips, checked as on the CPU; a token of audiolm-pytorch and of compiled PyTorch, where torch has the
GPU. A check that fails ends it.

    python -m benchmarks.gpu --size readme --weights fp16
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.bundle import SIZES, bundle, models
from benchmarks.peers.on_device import time_peers
from musiclm_deploy.export.kernels import pack_kernels
from musiclm_deploy.kernels.launch import BYTES, bytes_of
from musiclm_deploy.runtime.backend import BackendError, open_session
from musiclm_deploy.runtime.bench.clips import time_clips
from musiclm_deploy.runtime.bench.record import Row, append, ceiling, circumstances, say
from musiclm_deploy.runtime.bench.steps import Case, make_case, random_context, sizes
from musiclm_deploy.runtime.bench.table import MODEL, SIZE, Section, as_text, field, number
from musiclm_deploy.runtime.bench.table import SECTIONS as OF_A_BUNDLE
from musiclm_deploy.runtime.bundle import STAGES, Bundle, Sampling
from musiclm_deploy.runtime.decoder import DecoderRun
from musiclm_deploy.runtime.device import decode as device
from musiclm_deploy.runtime.device.cuda import CudaDriver
from musiclm_deploy.runtime.device.driver import Driver, Engines
from musiclm_deploy.runtime.device.kernels import FOLDER
from musiclm_deploy.runtime.device.model import DeviceModel, every_list
from musiclm_deploy.runtime.engines.build import Target, build
from musiclm_deploy.runtime.engines.form import Form
from musiclm_deploy.runtime.engines.library import find_library
from musiclm_deploy.runtime.engines.model import EngineModel
from musiclm_deploy.runtime.engines.profiles import Limits
from musiclm_deploy.runtime.engines.run import EngineDriver
from musiclm_deploy.runtime.sampling import sample
from musiclm_deploy.runtime.step import open_weights

RESULTS = Path(__file__).resolve().parent / "results" / "gpu.jsonl"
ROWS, LENGTHS = (1, 2, 8, 32), (40, 100, 300, 500)
LEAST_EQUAL = {"fp32": 1.0, "fp16": 0.95, "bf16": 0.9}  # share of tokens that must be the CPU's after the same tokens
_WHERE = ("GPU", field("gpu")), ("form", field("form")), ("stage", field("stage"))
SECTIONS = (
    Section(
        "Tokens of a GPU that are the CPU's after the same tokens",
        "gpu tokens",
        (*SIZE, "gpu", "form", "stage"),
        (
            *MODEL,
            ("GPU", field("gpu")),
            ("form", field("form")),
            ("stage", field("stage")),
            ("equal", field("equal")),
            ("of", field("tokens")),
        ),
    ),
    Section(
        "One step on a GPU: token in, token out",
        "gpu step",
        (*SIZE, "gpu", "form", "stage", "rows", "context"),
        (
            *(
                *MODEL,
                ("GPU", field("gpu")),
                ("form", field("form")),
                ("stage", field("stage")),
                ("rows", field("rows")),
                ("context", field("context")),
            ),
            *(("MB read", number("mb_read")), ("GB/s", number("gb_per_s")), ("step µs", field("step_us")), ("host µs", field("host_us"))),
            ("of the ceiling", number("ceiling_share", "{:.0%}")),
        ),
    ),
)
_COPIED = 1 << 28  # bytes of a copy by which the bandwidth is measured: more than any cache holds


class Bench:
    """A stage's weights on a driver's device, and its graph on the CPU beside them."""

    def __init__(self, opened: Bundle, stage: str, driver: Driver, kind: str) -> None:
        self.manifest, self.stage, self.kind = opened.manifest, stage, kind
        self.decoder = getattr(opened.manifest, stage)
        self.session = open_session(opened.path(self.decoder.graph), None)
        contexts = self.decoder.context and open_session(opened.path(self.decoder.context), None)
        _, self.context = random_context(opened.manifest, stage, contexts)
        _, own, weights = open_weights(opened.root, self.decoder)
        engines = isinstance(driver, Engines)
        self.model = EngineModel(driver, stage, own, weights) if engines else DeviceModel(driver, stage, own, weights, kind)
        self.form = "engines" if engines else "kernels"

    def equal_tokens(self, rows: int, context: int) -> tuple[int, int]:
        """(equal, of so many): the likeliest next token of rows of random tokens, on the device and by the graph."""
        case = self._case(rows, context, 1)
        plan, told = replace(case.plan, steps=np.ones(rows, np.int64)), self._told(rows)
        before = told["prefix_embeddings"].shape[1] if "prefix_embeddings" in told else 0
        run = DecoderRun(self.session, self.decoder, told, rows, plan.capacity + before)
        logits = run.prefill(plan.prompts, plan.head(0))
        expected = sample(logits, np.zeros_like(logits), 0.0, 0.0, plan.forbid_last(0))
        greedy = Sampling(temperature=0.0, filter_thres=0.0, cond_scale=1.0)
        found = device.decode(self.model, plan, told, False, greedy, [(0, row, 0) for row in range(rows)], lambda *_: None)
        # an end leaves a row empty
        return sum([*row.tolist(), plan.end][0] == token for row, token in zip(found, expected.tolist(), strict=True)), rows

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
        bench = Bench(opened, stage, driver, kind)
        counts = []
        for length in lengths:
            say(f"gpu: {stage}, tokens after {length} positions")
            counts.append(bench.equal_tokens(min(8, max(rows, default=2)), length))
        equal, total = (sum(column) for column in zip(*counts, strict=True))
        about = {"benchmark": "gpu tokens", "form": bench.form, "precision": kind, "stage": stage}
        found.append(about | {"equal": equal, "tokens": total} | sizes(bench.decoder))
        if equal < LEAST_EQUAL[kind] * total:
            raise RuntimeError(
                f"{stage}, {kind}: {equal} of {total} tokens are the CPU's after the same tokens, {LEAST_EQUAL[kind]:.0%} must be."
            )
        for count in rows:
            say(f"gpu: {stage}, steps of {count} rows")
            found.append(bench.time_steps(count, lengths[-1], steps, bandwidth))
    return found


def bandwidth_of(driver: CudaDriver) -> float:
    """Bytes a second that the GPU's memory reads and writes, by its own copies."""
    one, other = (driver.allocate("fp32", (_COPIED // 4,)) for _ in range(2))
    flag = driver.allocate("int64", (1,))

    def copies(count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            driver.call("cuMemcpyDtoDAsync", other.address, one.address, _COPIED, driver.stream)
        driver.download([flag])()
        return time.perf_counter() - started

    copies(2)
    return 2 * _COPIED * 20 / min(copies(20) for _ in range(3))


def sanitize(tool: str) -> None:
    """Launch every kind of kernel under compute-sanitizer, on a tiny bundle. RuntimeError with what it found."""
    for check_of in ("memcheck", "racecheck", "synccheck"):
        say(f"gpu: compute-sanitizer, {check_of}")
        command = [
            tool,
            "--tool",
            check_of,
            "--error-exitcode",
            "3",
            sys.executable,
            "-m",
            "benchmarks.gpu",
            "--size",
            "tiny",
            "--only-tokens",
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"compute-sanitizer, {check_of}:\n{done.stdout[-4000:]}\n{done.stderr[-1000:]}")


def case_of_peers(opened: Bundle, rows: int, context: int, steps: int) -> tuple[Case, torch.Tensor]:
    """Tokens of the coarse stage, and the conditioning of every row, float32 [B, C, dim]."""
    case, graph = make_case(opened.manifest, "coarse", rows, context, steps), opened.manifest.coarse.context
    if case is None or graph is None:
        raise ValueError(f"this bundle's coarse stage has no {context + steps} positions, or no cross-attention, which the peers have.")
    conditioning, _ = random_context(opened.manifest, "coarse", open_session(opened.path(graph), None))
    return case, torch.from_numpy(np.repeat(conditioning, rows, axis=0))


def peers(size: str, rows: int, context: int, steps: int, device: str = "cuda") -> list[Row]:
    """A token of upstream and of compiled PyTorch, on the same weights."""
    opened = Bundle.open(bundle(size))
    made = time_peers(models(size), *case_of_peers(opened, rows, context, steps), ("fp16", "bf16"), device)
    about = {"benchmark": "gpu step", "stage": "coarse", "rows": rows, "context": context} | sizes(opened.manifest.coarse)
    return [about | row for row in made]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="readme")
    parser.add_argument("--weights", choices=LEAST_EQUAL, action="append", help="repeat for more (default: fp32, fp16, bf16)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of the clips (default: 10)")
    parser.add_argument("--only-tokens", action="store_true", help="compare tokens by our own kernels, and time nothing")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where rows are appended (default: results/gpu.jsonl)")
    options = parser.parse_args()
    kinds, opened = options.weights or ["fp32", "fp16", "bf16"], Bundle.open(bundle(options.size))
    if not (opened.root / FOLDER).exists():  # before a GPU is asked for: it takes minutes, and needs none
        pack_kernels(opened.root, list(LEAST_EQUAL))
    forms: dict[str, Bundle] = {}
    try:
        library = find_library()
        say(f"gpu: {library.name} {library.version} is installed")
        forms = {} if options.only_tokens else {kind: Bundle.open(bundle(options.size, kind, target="tensorrt")) for kind in kinds}
    except BackendError as error:
        say(f"gpu: without engines: {error}")
    try:
        driver = CudaDriver(opened.root)
    except BackendError as error:
        print(f"gpu-check: {error}\nThe bundle's kernels are compiled; nothing was run.", file=sys.stderr)
        return 1
    around = circumstances(shlex.join(["python", "-m", "benchmarks.gpu", *sys.argv[1:]]), 0)
    around |= {"gpu": driver.name, "capability": driver.capability}
    bandwidth, rows = bandwidth_of(driver), []

    def keep(made: list[Row]) -> None:
        append(options.json, [row | around for row in made])
        rows.extend(made)

    if options.only_tokens:
        for kind in kinds:
            check(opened, driver, kind, bandwidth, (), (20,), 0)
        return 0
    for kind in kinds:
        keep(check(opened, driver, kind, bandwidth, ROWS, LENGTHS, 200))
        say(f"gpu: clips of {options.seconds:g} s, {kind}")
        keep(time_clips(opened, options.seconds, 3.0, 150, 3, None, device="cuda", weights=kind))
    for kind, form in forms.items():
        build(form, Target.here(), Limits(sequences=max(ROWS)))
        keep(check(form, EngineDriver(form, Form.open(form)), kind, bandwidth, ROWS, LENGTHS, 200))
        keep(time_clips(form, options.seconds, 3.0, 150, 3, None, device="tensorrt"))
    if tool := shutil.which("compute-sanitizer"):
        sanitize(tool)
    if torch.cuda.is_available():
        for count in ROWS:
            keep(peers(options.size, count, LENGTHS[-1], 200))
    print(as_text(rows, (*SECTIONS, *OF_A_BUNDLE)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
