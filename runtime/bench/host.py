"""What a step costs beyond the transformer: Python between the calls into the native step, and the sampler in it.

In: a bundle that the native step runs. Out: rows, in microseconds of a step of one clip and of eight, collected and streamed.

Python is the processor time of the scheduler's thread between its calls of the native step and of the codec, over the steps made, so that
nothing else on the machine counts: cutting clips into windows, joining, collecting, handing on tokens and chunks. The sampler is the
processor time of steps that draw from the tenth of the vocabulary that top-k keeps, less that of steps that take the likeliest token, turn
about, by the smallest transformer there can be with the bundle's largest vocabulary; divided by the threads that share the rows of a step.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from ...kernels.decoder_step import Model, Pool, Sizes
from ...kernels.sampling.constants import ALWAYS, Place, Rules
from ..backends import Backend
from ..batch import Made
from ..bundle import STAGES, Bundle
from ..graphs import Graphs
from ..host.native import NativeBatch
from ..musiclm import MusicLM
from ..sequence import Context, Draw, Positions, Sequence
from ..step import open_native, open_pool
from .clients import collect, listen
from .record import Row, say
from .steps import DRAW, sizes

CLIPS = (1, 8)
MOST_S = 2.0  # of a clip
_FRAMES, _TURNS = 64, 24  # of the sampler


def time_host(bundle: Bundle, seconds: float, threads: int) -> list[Row]:
    """seconds: of the clips, MOST_S at most."""
    seconds, manifest, rows = min(seconds, MOST_S), bundle.manifest, []
    sampler = {clips: sampler_seconds(max(getattr(manifest, stage).vocabulary for stage in STAGES), clips, threads) for clips in CLIPS}
    meter = _Meter()
    with _metered(bundle, threads, meter) as model:
        for clips in CLIPS:
            for fetched, run in (("collected", collect), ("streamed", listen)):
                say(f"steps: host, {clips} clips {fetched}")
                meter.begin()
                run(model, clips, seconds=seconds)
                python, step = meter.python_s / meter.steps, meter.steps
                row: Row = {"benchmark": "host", "form": fetched, "rows": clips, "rows_of_a_step": round(meter.rows / step, 2)}
                row |= {"python_us": round(python * 1e6, 2), "sampler_us": round(sampler[clips] * 1e6, 2), "steps": "native", "n": step}
                row |= {
                    "host_us": round((python + sampler[clips]) * 1e6, 2),
                    "precision": manifest.coarse.step.precision,
                    "seconds": seconds,
                }
                rows.append(row | sizes(manifest.coarse))
    return rows


def sampler_seconds(vocabulary: int, rows: int, threads: int) -> float:
    """Return the seconds that sampling takes in a step of so many rows."""
    sizes = Sizes(32, 1, 1, 32, 32, 32, 1, vocabulary, 1, vocabulary, 0, value_residual=False, cross_attention=False)
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in sizes.shapes().items()}
    model = Model(Pool(1), sizes, weights)
    one = np.zeros(1, np.int64)
    rules = Rules(Place(0, 0, 1, 0, 1, 1, 0, 0), 0, ALWAYS, -1, max(vocabulary // 10, 1))
    batches = []
    for sampling in (DRAW.sampling, replace(DRAW.sampling, temperature=0.0)):
        batch = NativeBatch(model)
        for row in range(rows):
            draw = Draw(row, 0, 0, sampling)
            batch.join(Sequence(Positions(one, one, one), rules, 0, 0, _FRAMES * (_TURNS + 1), draw, Context()))
        batch.advance(_FRAMES, 0)
        batches.append(batch)
    apart = []
    for _ in range(_TURNS):
        taken = []
        for batch in batches:
            started = time.thread_time()
            batch.advance(_FRAMES, 0)
            taken.append((time.thread_time() - started) / _FRAMES)
        apart.append(taken[0] - taken[1])
    return float(np.median(apart)) / min(rows, threads)


class _Meter:
    """Processor time of the scheduler's thread between its calls of what is not Python."""

    def __init__(self) -> None:
        self._left: dict[int, float] = {}  # thread -> its time when it came back from the last call
        self.begin()

    def begin(self) -> None:
        """Count from zero."""
        self._left.clear()
        self.python_s, self.steps, self.rows = 0.0, 0, 0

    @contextmanager
    def call(self) -> Iterator[None]:
        """A call of what is not Python."""
        me, now = threading.get_ident(), time.thread_time()
        self.python_s += now - self._left.get(me, now)
        try:
            yield
        finally:
            self._left[me] = time.thread_time()


class _MeteredBatch(NativeBatch):
    def __init__(self, model: Model, meter: _Meter) -> None:
        super().__init__(model)
        self._meter = meter

    def advance(self, frames: int, positions: int) -> None:
        with self._meter.call():
            super().advance(frames, positions)

    def collect(self) -> list[Made]:
        made = super().collect()
        self._meter.steps += max((len(one.tokens) for one in made), default=0)
        self._meter.rows += sum(len(one.tokens) for one in made)
        return made


class _MeteredGraphs(Graphs):
    """Graphs of which the codec's is called by the scheduler's thread."""

    def __init__(self, bundle: Bundle, threads: int, meter: _Meter) -> None:
        super().__init__(bundle, "cpu", threads, None)
        self._meter = meter

    def run(self, graph: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        if graph != self.bundle.manifest.codec.stream:
            return super().run(graph, **inputs)
        with self._meter.call():
            return super().run(graph, **inputs)


@contextmanager
def _metered(bundle: Bundle, threads: int, meter: _Meter) -> Iterator[MusicLM]:
    """A loaded model whose calls are metered, warmed up."""
    pool, graphs = open_pool(threads), _MeteredGraphs(bundle, threads, meter)
    backend = Backend(
        graphs,
        "cpu",
        "native, metered",
        read=lambda stage: open_native(bundle.root, getattr(bundle.manifest, stage), pool),
        make=lambda model: _MeteredBatch(model, meter),
        native=True,
    )
    with MusicLM(backend) as model:
        listen(model, 1, seconds=MOST_S / 4)
        yield model
