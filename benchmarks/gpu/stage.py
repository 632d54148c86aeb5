"""A stage on a device, and its graph on the CPU beside it: what is asked of both, and what each makes of it.

In: a bundle, a driver, the type of weights. Out: tokens and logits of either. It does not know which driver it is: the tests give it
a device in the host's memory. Letters: V vocabulary; C passes of a sequence, with guidance two, of which the second has no condition.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from musiclm_deploy.kernels.sampling.constants import NEVER
from musiclm_deploy.runtime.backend import open_session
from musiclm_deploy.runtime.bench.steps import make_case, random_context
from musiclm_deploy.runtime.bundle import Bundle, Sampling
from musiclm_deploy.runtime.device.batch import DeviceBatch
from musiclm_deploy.runtime.device.driver import Engines
from musiclm_deploy.runtime.device.model import DeviceModel
from musiclm_deploy.runtime.engines.model import EngineModel
from musiclm_deploy.runtime.forcing import forced, logits_of
from musiclm_deploy.runtime.host.graph import GraphBatch
from musiclm_deploy.runtime.sequence import Draw, Sequence
from musiclm_deploy.runtime.step import open_weights

SEED, AT_ONCE = 0, 1 << 20


@dataclass(frozen=True)
class Request:
    """Sequences of random prompts, all of the same length, which get `steps` tokens each unless they end."""

    sequences: list[Sequence]
    steps: int

    def of_steps(self, steps: int) -> Request:
        """Return the same with so many tokens a sequence."""
        return Request([replace(one, steps=steps) for one in self.sequences], steps)


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
        self.form, self._batch = "engines" if engines else "kernels", DeviceBatch(self.model, slots=AT_ONCE)

    def request(self, rows: int, context: int, steps: int, sampling: Sampling, end_allowed: bool = False) -> Request:
        """Return sequences of about `context` positions that get `steps` tokens each, in whole frames, guided if stage and sampling are.

        Raises ValueError if the trained window does not hold that.
        """
        case = make_case(self.manifest, self.stage, rows, context, steps)
        if case is None:
            raise ValueError(f"{context} positions and {steps} steps are beyond the window of this bundle's {self.stage} transformer.")
        own = sampling if self.decoder.guidance else replace(sampling, cond_scale=1.0)
        draws = [Draw(SEED, row, 0, own) for row in range(rows)]
        made = [case.window(row, case.prime[row], draw, self._context) for row, draw in enumerate(draws)]
        if end_allowed and self.stage != "fine":
            made = [replace(one, rules=one.rules._replace(frame=NEVER)) for one in made]
        return Request(made, steps).of_steps(self.whole(steps))

    def whole(self, steps: int) -> int:
        """Return so many steps, or a few more, that they are whole frames: a batch takes no others."""
        return -(-steps // self.model.sizes.outputs) * self.model.sizes.outputs

    def holds(self, context: int, steps: int) -> bool:
        """Whether there is such a request: a fine prompt has the coarse tokens of all its frames, and cannot be much shorter than them."""
        return make_case(self.manifest, self.stage, 1, context, steps) is not None

    def decode(self, request: Request) -> tuple[list[np.ndarray], np.ndarray]:
        """Return the device's tokens, int64 [n] of each sequence, without the end, and the logits of its last step, float32 [B, C, V]."""
        batch, tokens = self._batch, {sequence: [np.zeros(0, np.int64)] for sequence in request.sequences}
        for sequence in request.sequences:
            batch.join(sequence)
        batch.advance(AT_ONCE, AT_ONCE)
        logits = np.stack([self._logits(sequence) for sequence in request.sequences])
        for made in batch.collect():  # all steps were launched: they are waited for
            tokens[made.sequence].append(made.tokens)
        return [np.concatenate(parts) for parts in tokens.values()], logits

    def follow(self, request: Request, tokens: Many[np.ndarray]) -> list[np.ndarray]:
        """Return the CPU's logits of each sequence, float32 [steps, C, V]: those of every step after the prompt and the tokens so far,
        int64 [n], wherever they are from, up to the one that ends it or is its last."""
        vocabulary = self.decoder.vocabulary
        fed = [forced(one, own[: request.steps - 1], vocabulary) for one, own in zip(request.sequences, tokens, strict=True)]
        return logits_of(GraphBatch(self.session, self.decoder, len(fed)), fed)[1]

    def _logits(self, sequence: Sequence) -> np.ndarray:
        buffer, rows = self._batch.logits(sequence)
        found = np.empty(tuple(buffer.shape), np.float32)
        _, _, address = self.model.driver.hand_over(buffer)
        self.model.driver.call("cuMemcpyDtoH", found.ctypes.data, address, found.nbytes)
        return found[rows]
