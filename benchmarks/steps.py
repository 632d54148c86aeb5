"""One step of the coarse transformer in every form there is, turn about in one process: ours at all precisions, and the peers.

In: the bundle of a size and upstream's checkpoint of the same weights. Out: JSON lines of results/steps.jsonl. What is timed is said in
`musiclm_deploy.runtime.bench.steps`: tokens in, logits out, on the same tokens, all logits compared with those of our graph. Our forms
sample as well, and the peers do not.

    python -m benchmarks.steps --rows 1,8 --forms graph,native-fp32,native-int8,compiled-fp32
    python -m benchmarks.steps --rows 1 --contexts 100,500,1000,2000 --steps 6 --forms native-fp32,upstream-fp32
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.bundle import BUILD, SIZES, bundle, checkpoints, models
from benchmarks.peers.static_cache import StaticCacheCoarse
from benchmarks.peers.upstream import UpstreamCoarse
from musiclm_deploy.kernels.decoder_step import Model, Pool
from musiclm_deploy.kernels.quantized_product import PRECISIONS
from musiclm_deploy.runtime.backend import available_processors, open_session
from musiclm_deploy.runtime.bench.record import Memory, Row, append, circumstances, say
from musiclm_deploy.runtime.bench.steps import (
    Case,
    Form,
    Step,
    begin,
    bytes_of_step,
    graph_weights,
    make_case,
    random_context,
    sizes,
    turn_about,
)
from musiclm_deploy.runtime.bundle import Bundle
from musiclm_deploy.runtime.host.graph import GraphBatch
from musiclm_deploy.runtime.host.native import NativeBatch
from musiclm_deploy.runtime.outputs import check_appendable
from musiclm_deploy.runtime.step import open_native, open_pool

RESULTS = Path(__file__).resolve().parent / "results"
STAGE = "coarse"  # all three transformers are one design; this one has all of it: two segments, several heads, guidance
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
FORMS = ("graph", *(f"native-{name}" for name in PRECISIONS), *(f"{kind}-{name}" for kind in ("eager", "compiled") for name in _DTYPES))
EVERY_FORM = (*FORMS, "upstream-fp32")


class Bench:
    """Everything of one size, opened once: our forms and the peers on the same weights and the same conditioning."""

    def __init__(self, size: str, threads: int, forms: list[str], build: Path = BUILD) -> None:
        torch.set_num_threads(threads)
        self.bundle = Bundle.open(bundle(size, build=build))
        self.decoder = getattr(self.bundle.manifest, STAGE)
        self.session = open_session(self.bundle.path(self.decoder.graph), threads)
        assert self.decoder.context is not None
        contexts = open_session(self.bundle.path(self.decoder.context), threads)
        self.conditioning, self.context = random_context(self.bundle.manifest, STAGE, contexts)
        pool = open_pool(threads)
        self.memory, self.forms = Memory(pool), forms
        named = [form.removeprefix("native-") for form in forms if form.startswith("native-")]
        self.native = {name: self._native(size, name, pool, build) for name in named}
        self.state = torch.load(checkpoints(size, build)[STAGE], weights_only=True)["model"]
        self._size, self._upstream = size, None

    def _native(self, size: str, precision: str, pool: Pool, build: Path) -> Model:
        """Of the bundle of that precision."""
        own = Bundle.open(bundle(size, precision, build))
        return open_native(own.root, getattr(own.manifest, STAGE), pool)

    def time(self, rows: int, context: int, steps: int) -> list[Row]:
        """Rows of one case, one for each form. ValueError where the trained window does not hold it."""
        case = make_case(self.bundle.manifest, STAGE, rows, context, steps)
        if case is None:
            raise ValueError(f"{context} positions and {steps} steps are beyond the window of this bundle's coarse transformer.")
        begun = {}
        for name in dict.fromkeys(["graph", *self.forms]):  # the graph is the measure of the others, and always there
            say(f"steps: {rows} rows at {context} positions, beginning {name}")
            begun[name] = self._begin(name, case)
        return [row | sizes(self.decoder) for row in turn_about(case, begun, self.memory)]

    def _begin(self, name: str, case: Case) -> Form:
        kind, _, precision = name.partition("-")
        if kind == "graph":
            step = begin(GraphBatch(self.session, self.decoder), self.decoder, self.context, case)
            return Form(step, bytes_of_step(self.decoder, case, self.context, graph_weights(self.bundle, self.decoder)), "fp32")
        if kind == "native":
            model = self.native[precision]
            read = bytes_of_step(self.decoder, case, self.context, model.bytes_read)
            return Form(begin(NativeBatch(model), self.decoder, self.context, case), read, precision, {"path": model.path})
        read = bytes_of_step(self.decoder, case, self.context, graph_weights(self.bundle, self.decoder))
        conditioning = torch.from_numpy(np.repeat(self.conditioning, case.rows, axis=0))
        if kind == "upstream":
            self._upstream = self._upstream or models(self._size)[STAGE]
            return Form(frames_of(UpstreamCoarse(self._upstream, case, conditioning).step, case), read, precision)
        started = time.perf_counter()
        step = static_cache_step(self.state, case, conditioning, _DTYPES[precision], compiled=kind == "compiled")
        return Form(
            frames_of(step, case),
            read / (4 // _DTYPES[precision].itemsize),
            precision,
            {"begun_s": round(time.perf_counter() - started, 1)},
        )


def frames_of(step: Callable[[int, np.ndarray], np.ndarray], case: Case) -> Step:
    """Return the frames of a peer's steps: (number of a token, tokens int64 [B]) -> the logits of the next one, float32 [B, V]."""

    def frame(number: int) -> np.ndarray:
        first = number * case.quantizers - 1  # the first step of a frame feeds the last token of the frame before
        return np.stack([step(index, case.tokens[index]) for index in range(first, first + case.quantizers)])

    for index in range(case.quantizers - 1):  # the tokens of frame 0: a form begins after it
        step(index, case.tokens[index])
    return frame


def static_cache_step(
    state: dict[str, torch.Tensor], case: Case, conditioning: torch.Tensor, dtype: torch.dtype, compiled: bool
) -> Callable[[int, np.ndarray], np.ndarray]:
    """The static-cache PyTorch of a case, its prompt in its caches; compiled, it has compiled when this returns."""
    told = case.semantic.shape[1]
    first = 2 + told + case.prime.shape[1]
    with torch.inference_mode():
        model = StaticCacheCoarse(state, case.rows, told, first + len(case.tokens), conditioning).to(dtype).eval()
        model.prefill(torch.from_numpy(case.semantic), torch.from_numpy(case.prime))
    heads = list(model.coarse_logit_weights.unbind())
    call: Any = torch.compile(model, fullgraph=True, dynamic=False) if compiled else model

    @torch.inference_mode()
    def step(index: int, tokens: np.ndarray) -> np.ndarray:
        quantizer, following = index % model.codes, (index + 1) % model.codes
        position, offset = torch.tensor([first + index]), torch.tensor([quantizer * model.codebook])
        return call(torch.from_numpy(tokens), position, offset, heads[following]).float().numpy()

    step(0, case.tokens[0])  # what the timed steps write again
    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="readme")
    parser.add_argument("--rows", default="1,2,4,8", help="rows in a step (default: 1,2,4,8)")
    parser.add_argument("--contexts", default="500", help="positions before the timed steps (default: 500)")
    parser.add_argument("--steps", type=int, default=60, help="timed steps of each form (default: 60)")
    parser.add_argument("--forms", default=",".join(FORMS), help=f"of {', '.join(EVERY_FORM)} (default: all but upstream)")
    parser.add_argument("--threads", type=int, default=available_processors(), help="CPU threads (default: one per core)")
    parser.add_argument("--json", type=Path, default=RESULTS / "steps.jsonl", help="where rows are appended (default: results/steps.jsonl)")
    options = parser.parse_args()
    check_appendable(options.json)
    forms = options.forms.split(",")
    if unknown := set(forms) - set(EVERY_FORM):
        parser.error(f"no form {', '.join(unknown)}, there are {', '.join(EVERY_FORM)}")
    bench = Bench(options.size, options.threads, forms)
    around = circumstances(shlex.join(["python", "-m", "benchmarks.steps", *sys.argv[1:]]), options.threads)
    for rows in map(int, options.rows.split(",")):
        for context in map(int, options.contexts.split(",")):
            append(options.json, [row | around for row in bench.time(rows, context, options.steps)])


if __name__ == "__main__":
    main()
