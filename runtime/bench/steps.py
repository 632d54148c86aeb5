"""One decode step, timed: tokens of every row in, logits out, in each of its forms turn about.

Timed: from token numbers, int64 [B], to logits, float32 [B, V]: placing the tokens, and the transformer. Not timed: the prefill, sampling,
noise, the first steps of a case and the first of every turn. The forms take turns of some steps each on the same tokens, with a reading of
the memory in every turn, so that what else the machine does falls on all of them. All logits of a turn are compared with those of the
first form while its steps are timed; those of the graph with one long call of it, too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..bundle import Bundle, Decoder, Manifest
from ..decoder import DecoderRun
from ..stages import Plan, Positions, plan_coarse, plan_fine, plan_semantic
from .record import Memory, Row, ceiling, spread

WARM_UP, TURN = 5, 10  # steps
PAUSE_S = 0.2  # between the forms: ONNX Runtime's threads spin for longer than 5 ms, in which whoever came next took twice the time
# Difference of logits over their largest beyond which an answer is wrong: of the same weights in one call and in many. Activations of 8
# bits make of another order of sums (1e-7) nothing at all or, where a value then rounds to the other side, a whole step of it, which later
# layers carry on: 1.2e-2 was seen at dim 1024, and 2e-6 of the same weights with activations in float32.
MOST_APART = {"fp32": 1e-4, "int8": 0.05, "int4": 0.05}
MOST_LOST = {"fp32": 1e-4, "bf16": 0.2, "int8": 0.2, "int4": 1.0}  # of another form, likewise

Step = Callable[[int, np.ndarray], np.ndarray]  # (number of the step, tokens int64 [B]) -> logits float32 [B, V]


@dataclass(frozen=True)
class Case:
    """Rows of one stage that are `context` positions long when the timed steps begin.

    tokens: int64 [steps, B], the first of them before the timed ones, so that the context is met to the position.
    """

    stage: str
    context: int
    plan: Plan
    semantic: np.ndarray  # int64 [B, n]: of the prompt (coarse)
    prime: np.ndarray  # int64 [B, n]: the stage's own tokens of the prompt
    tokens: np.ndarray
    untimed: int

    @property
    def rows(self) -> int:
        return self.tokens.shape[1]


def make_case(manifest: Manifest, stage: str, rows: int, context: int, steps: int) -> Case | None:
    """Random tokens of these sizes; None where the stage's trained window does not hold them."""
    decoder, rng = getattr(manifest, stage), np.random.default_rng(0)
    before = manifest.conditioner.quantizers if decoder.conditioning == "prefix" else 0
    most = context - before - WARM_UP  # of the prompt
    end = context - before + steps
    columns = _columns(manifest, stage)
    semantic = np.zeros((rows, 0), np.int64)
    codebook = manifest.codec.codebook_size
    if stage == "semantic":
        if most < 1 or end > decoder.max_length:
            return None
        prime = rng.integers(0, decoder.vocabulary - 1, (rows, most - 1))
        plan = plan_semantic(decoder, rows, end, False, list(prime))
    elif stage == "coarse":
        told = max(min(most // 2, manifest.semantic.max_length), most - 2 - decoder.max_length * columns + steps + WARM_UP + columns)
        frames = -(-(end - 2 - told) // columns)
        primed = (most - 2 - told) // columns
        if told < 1 or primed < 0 or told > manifest.semantic.max_length or frames > decoder.max_length:
            return None
        semantic = rng.integers(0, manifest.semantic.vocabulary - 1, (rows, told))
        prime = rng.integers(0, codebook, (rows, primed * columns))
        plan = plan_coarse(decoder, list(semantic), frames, columns, True, [row.reshape(-1, columns) for row in prime])
    else:
        told_columns = _columns(manifest, "coarse")
        frames = -(-(end - 2) // (columns + told_columns))
        primed = (most - 2 - frames * told_columns) // columns
        if primed < 0 or frames > decoder.max_length:
            return None
        coarse = rng.integers(0, codebook, (rows, frames, told_columns))
        prime = rng.integers(0, codebook, (rows, primed * columns))
        plan = plan_fine(decoder, list(coarse), columns, None, [row.reshape(-1, columns) for row in prime])
    untimed = context - before - len(plan.prompts[0].rows)
    tokens = rng.integers(0, codebook if stage != "semantic" else decoder.vocabulary - 1, (untimed + steps, rows))
    return Case(stage, context, plan, semantic, prime, tokens, untimed)


def _columns(manifest: Manifest, stage: str) -> int:
    """Tokens of a frame."""
    quantizers = {"semantic": 1, "coarse": manifest.coarse.coarse_quantizers, "fine": manifest.fine.fine_quantizers}[stage]
    return (quantizers or 1) * (1 if stage == "semantic" else manifest.codec.groups)


@dataclass
class Form:
    """One way to do a step, begun: its prompt is in its caches."""

    step: Step
    bytes_read: float  # by one step of all rows
    precision: str
    facts: Row = field(default_factory=dict)  # what else a row says of it


def begin(transformer: Any, decoder: Decoder, context: Mapping[str, np.ndarray], case: Case) -> Step:
    """The bundle's own step: that of the graph whose session this is, or of a native model. context: of one row, see `random_context`."""
    repeated = {name: np.repeat(array, case.rows, axis=0) for name, array in context.items()}
    before = repeated["prefix_embeddings"].shape[1] if "prefix_embeddings" in repeated else 0
    plan, longest = case.plan, len(case.plan.prompts[0].rows) + len(case.tokens) + before
    run = DecoderRun(transformer, decoder, repeated, case.rows, longest)
    run.prefill(plan.prompts, plan.head(0))
    return lambda step, tokens: run.step(plan.place(step, tokens), plan.head(step + 1))


def random_context(manifest: Manifest, stage: str, session: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """A random conditioning float32 [1, C, dim], and what the stage's context graph makes of it; session: None for a stage without."""
    width = next(iter(manifest.conditioner.namespaces.values()))
    width = manifest.conditioner.namespaces.get(stage, width)
    conditioning = np.random.default_rng(1).standard_normal((1, manifest.conditioner.quantizers, width), np.float32)
    if session is None:
        return conditioning, {}
    names = [output.name for output in session.get_outputs()]
    return conditioning, dict(zip(names, session.run(names, {"conditioning": conditioning}), strict=True))


def bytes_of_step(decoder: Decoder, case: Case, context: Mapping[str, np.ndarray], weights: float) -> float:
    """Bytes that a step of the case must read: the weights once, every row's keys and values so far, its conditioning."""
    positions = case.context + (len(case.tokens) - case.untimed) / 2
    cached = 2 * decoder.depth * decoder.cache_head_size * 4 * positions
    told = sum(array.nbytes for name, array in context.items() if name != "prefix_embeddings")  # a prefix is in the caches
    return weights + case.rows * (cached + told)


def graph_weights(bundle: Bundle, decoder: Decoder) -> int:
    """Bytes of a graph's weights that a step reads: all but the tables, of which it reads a row each, and the other output projections."""
    total = bundle.path(f"{decoder.graph}.data").stat().st_size
    for name, place in decoder.step.weights.items():
        other_head = name.startswith("head.") and name.endswith(".weight") and name != "head.0.weight"
        if name in ("rows", "bias_table") or other_head:
            first, second = place[-2:]  # their dimensions: these are float32 at every precision
            total -= 4 * first * second
    return total


def turn_about(case: Case, forms: Mapping[str, Form], memory: Memory) -> list[Row]:
    """Time the forms, some steps each in turn. The first one's logits are the measure of the others'.

    Raises RuntimeError for a form whose logits are farther from it than its precision explains.
    """
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    lost = dict.fromkeys(forms, 0.0)
    for first in range(0, len(case.tokens), TURN):
        turn = range(first, min(first + TURN, len(case.tokens)))
        memory.read()
        expected: list[np.ndarray] = []
        for name, form in forms.items():
            time.sleep(PAUSE_S)
            logits = []
            for step in turn:
                started = time.perf_counter()
                found = form.step(step, case.tokens[step])
                taken = time.perf_counter() - started
                logits.append(np.array(found))
                if step >= case.untimed and step != first:
                    seconds[name].append(taken)
            expected = expected or logits
            lost[name] = float(np.max([lost[name], *(_difference(a, b) for a, b in zip(logits, expected, strict=True))]))  # NaN stays
    rows = []
    for name, form in forms.items():
        if not lost[name] <= MOST_LOST[form.precision]:
            raise RuntimeError(
                f"{case.stage}, {case.rows} rows at {case.context}: the logits of {name} differ by {lost[name]:.1e} of their largest, "
                f"{MOST_LOST[form.precision]:g} is expected of {form.precision}. A fast wrong answer is no result."
            )
        row: Row = {"benchmark": "step", "form": name, "precision": form.precision, "stage": case.stage}
        row |= {"rows": case.rows, "context": case.context, **ceiling(form.bytes_read, memory.best, seconds[name])}
        rows.append(row | spread(seconds[name]) | {"logits_differ_by": float(f"{lost[name]:.1e}"), **form.facts})
    return rows


def check_prefill(session: Any, decoder: Decoder, context: Mapping[str, np.ndarray], case: Case) -> float:
    """The graph's steps of a case must give what one long call of it gives. Returns how far apart they are; raises RuntimeError."""
    step = begin(session, decoder, context, case)
    found = [np.array(step(index, tokens)) for index, tokens in enumerate(case.tokens)][-1]
    placed = [case.plan.place(index, tokens) for index, tokens in enumerate(case.tokens)]
    prompts = [
        Positions.join(prompt, *(Positions(*(part[row : row + 1] for part in (p.rows, p.query, p.key))) for p in placed))
        for row, prompt in enumerate(case.plan.prompts)
    ]
    repeated = {name: np.repeat(array, case.rows, axis=0) for name, array in context.items()}
    before = repeated["prefix_embeddings"].shape[1] if "prefix_embeddings" in repeated else 0
    run = DecoderRun(session, decoder, repeated, case.rows, len(prompts[0].rows) + before)
    apart = _difference(found, run.prefill(prompts, case.plan.head(len(case.tokens))))
    most = MOST_APART[decoder.step.precision]
    if not apart <= most:
        message = f"{case.stage}: steps differ from one long call of the same graph by {apart:.1e} of the largest logit"
        raise RuntimeError(f"{message}, {most:g} is expected of {decoder.step.precision}.")
    return apart


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference over the largest value: what can change a draw."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def sizes(decoder: Decoder) -> Row:
    """Of a transformer, as a row gives them."""
    names: Sequence[str] = ("dim", "depth", "heads", "vocabulary")
    return {name: getattr(decoder, name) for name in names} | {"dim_head": decoder.step.dim_head, "streams": decoder.step.streams}
