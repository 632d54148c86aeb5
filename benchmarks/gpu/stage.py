"""A stage on a device, and its graph on the CPU beside it: what is asked of both, and what each makes of it.

In: a bundle, a driver, the type of weights. Out: tokens and logits of either. It does not know which driver it is: the tests give it
a device in the host's memory. Letters: B rows, V vocabulary, N sequences: the rows and, with guidance, as many without condition.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from musiclm_deploy.runtime.backend import open_session
from musiclm_deploy.runtime.bench.steps import make_case, random_context
from musiclm_deploy.runtime.bundle import Bundle, Sampling
from musiclm_deploy.runtime.decoder import DecoderRun
from musiclm_deploy.runtime.device import decode as device
from musiclm_deploy.runtime.device.driver import Engines
from musiclm_deploy.runtime.device.model import DeviceModel
from musiclm_deploy.runtime.engines.model import EngineModel
from musiclm_deploy.runtime.stages import Plan, Positions
from musiclm_deploy.runtime.step import open_weights
from musiclm_deploy.runtime.token_stages import with_null


@dataclass(frozen=True)
class Request:
    """Rows of random prompts. context: outputs of the stage's context graph for every sequence, those without condition last."""

    plan: Plan
    context: dict[str, np.ndarray]
    guided: bool
    sampling: Sampling

    @property
    def draws(self) -> list[tuple[int, int, int]]:
        """(seed, item, number of its first token) of each row, as `runtime.device.decode` takes them."""
        return [(0, row, 0) for row in range(len(self.plan.prompts))]

    @property
    def prefix(self) -> int:
        """Positions of a conditioning prefix."""
        return self.context["prefix_embeddings"].shape[1] if "prefix_embeddings" in self.context else 0

    def of_steps(self, steps: int) -> Request:
        """The same for so many tokens a row."""
        return replace(self, plan=replace(self.plan, steps=np.full(len(self.plan.prompts), steps)))


class OnDevice:
    """A stage's weights on a driver's device, and its graph on the CPU."""

    def __init__(self, opened: Bundle, stage: str, driver: Any, kind: str) -> None:
        """kind: of weights and caches."""
        self.manifest, self.stage, self.kind = opened.manifest, stage, kind
        self.decoder = getattr(opened.manifest, stage)
        self.session = open_session(opened.path(self.decoder.graph), None)
        contexts = self.decoder.context and open_session(opened.path(self.decoder.context), None)
        _, self._context = random_context(opened.manifest, stage, contexts)
        _, own, weights = open_weights(opened.root, self.decoder)
        engines = isinstance(driver, Engines)
        self.model = EngineModel(driver, stage, own, weights) if engines else DeviceModel(driver, stage, own, weights, kind)
        self.form = "engines" if engines else "kernels"

    def request(self, rows: int, context: int, steps: int, sampling: Sampling, end_allowed: bool = False) -> Request:
        """Rows of about `context` positions that get `steps` tokens each, guided where the stage can be and the sampling says so.

        ValueError where the trained window does not hold that.
        """
        case = make_case(self.manifest, self.stage, rows, context, steps)
        if case is None:
            raise ValueError(f"{context} positions and {steps} steps are beyond the window of this bundle's {self.stage} transformer.")
        guided = self.decoder.guidance and sampling.cond_scale != 1
        told = {name: with_null(name, np.repeat(array, rows, axis=0), guided) for name, array in self._context.items()}
        made = Request(replace(case.plan, end_allowed=end_allowed), told, guided, sampling)
        return made.of_steps(steps)

    def holds(self, context: int, steps: int) -> bool:
        """Whether there is such a request: a fine prompt has the coarse tokens of all its frames, and cannot be much shorter than them."""
        return make_case(self.manifest, self.stage, 1, context, steps) is not None

    def decode(self, request: Request) -> list[np.ndarray]:
        """The device's tokens, int64 [n] of each row, without the end."""
        return device.decode(self.model, request.plan, request.context, request.guided, request.sampling, request.draws, lambda *_: None)

    def logits(self, request: Request) -> np.ndarray:
        """The device's logits, float32 [N, V], of the last step of the request that it has just decoded."""
        copies, keys = 1 + request.guided, 0
        if request.context and not request.prefix:
            keys = request.context["context.0.value"].shape[1]
        sequences, longest = copies * len(request.plan.prompts), request.prefix + request.plan.capacity
        lane = self.model.lane(sequences, longest, keys, request.prefix, copies)
        found = np.empty((sequences, self.decoder.vocabulary), np.float32)
        _, _, address = self.model.driver.hand_over(lane.buffers["logits"])
        self.model.driver.call("cuMemcpyDtoH", found.ctypes.data, address, found.nbytes)
        return found

    def follow(self, request: Request, tokens: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        """The CPU's logits, float32 [N, V], of every step after the prompts and the tokens so far, int64 [n] of each row, wherever they are
        from; valid until the next. After a row's end its logits mean nothing."""
        plan, rows, copies = request.plan, len(tokens), 1 + request.guided
        count = min(max(map(len, tokens)) + 1, int(plan.steps.max()))
        fed = np.zeros((count, rows), np.int64)
        for row, own in enumerate(tokens):
            fed[: len(own), row] = own[:count]
        run = DecoderRun(self.session, self.decoder, request.context, copies * rows, plan.capacity + request.prefix)
        yield run.prefill(plan.prompts * copies, plan.head(0), without_prefix=rows * request.guided)
        for step in range(1, count):
            placed = plan.place(step - 1, fed[step - 1])
            every = Positions(*(np.tile(part, copies) for part in (placed.rows, placed.query, placed.key)))
            yield run.step(every, plan.head(step))
