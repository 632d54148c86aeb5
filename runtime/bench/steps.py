"""One decode step, timed: tokens of every row in, logits out, in each of its forms turn about.

Steps are timed through a batch, as requests take them, a frame at a time: placing the tokens, the transformer, sampling. The tokens are
given beforehand (`runtime.forcing`), so that all forms compute the same. Not timed: the prefill, the first steps of a case and the first
frame of every turn. The forms take turns of some steps each, with a reading of the memory in every turn, so that what else the machine does
falls on all of them. All logits of a turn are compared with those of the first form while its steps are timed; those of the graph also with
those of one prompt that has all tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..bundle import Bundle, Decoder, Manifest, Sampling
from ..forcing import HostBatch, forced
from ..host.graph import GraphBatch
from ..sequence import Context, Draw, coarse_sequence, fine_sequence, semantic_sequence
from ..sequence import Sequence as Window
from .record import Memory, Row, ceiling, ratio, spread

WARM_UP, TURN = 5, 9  # steps: before the timed ones at least; timed in a turn, in whole frames
PAUSE_S = 0.2  # between the forms: ONNX Runtime's threads spin for longer than 5 ms, in which whoever came next took twice the time
# Difference of logits over their largest beyond which an answer is wrong: of the same weights in one call and in many. Activations of 8
# bits make of another order of sums (1e-7) nothing at all or, where a value then rounds to the other side, a whole step of it, which later
# layers carry on: 1.2e-2 was seen at dim 1024, and 2e-6 of the same weights with activations in float32.
MOST_APART = {"fp32": 1e-4, "int8": 0.05, "int4": 0.05}
MOST_LOST = {"fp32": 1e-4, "bf16": 0.2, "int8": 0.2, "int4": 1.0}  # of another form, likewise
DRAW = Draw(0, 0, 0, Sampling(temperature=1.0, filter_thres=0.9, cond_scale=1.0))

Step = Callable[[int], np.ndarray]  # number of a frame, from 1 on -> the logits of its steps, float32 [Q, B, V]


@dataclass(frozen=True)
class Case:
    """Rows of one stage that are `context` positions long, or a part of a frame longer, when the timed steps begin.

    A row's tokens are the same in a case of any number of rows.
    """

    stage: str
    context: int
    quantizers: int  # Q, steps of a frame
    first: int  # number of the first frame that is not warm-up
    timed: int  # frames
    semantic: np.ndarray  # int64 [B, n]: of the prompt (coarse)
    prime: np.ndarray  # int64 [B, n]: the stage's own tokens of the prompt
    tokens: np.ndarray  # int64 [frames * Q, B]: that are fed one after another
    window: Callable[[int, np.ndarray, Draw, Context], Window]  # of a row, with these own tokens in its prompt

    @property
    def rows(self) -> int:
        return self.tokens.shape[1]

    @property
    def turns(self) -> list[range]:
        """The frames of every turn: first those that warm up, then groups of which all but the first frame are timed."""
        turns, start, left = [range(1, self.first)], self.first, self.timed
        while left:
            count = min(_frames_of_turn(self.quantizers), left)
            turns.append(range(start, start + 1 + count))
            start, left = start + 1 + count, left - count
        return turns

    def windows(self, context: Context, draw: Draw = DRAW, known: int = 0) -> list[Window]:
        """Return every row as a sequence; known: of its tokens that are in its prompt already, whole frames."""
        own = [np.concatenate([prime, tokens[:known]]) for prime, tokens in zip(self.prime, self.tokens.T, strict=True)]
        return [self.window(row, tokens, draw, context) for row, tokens in enumerate(own)]


def make_case(manifest: Manifest, stage: str, rows: int, context: int, steps: int) -> Case | None:
    """Random tokens of these sizes; None where the stage's trained window does not hold them."""
    decoder, codebook = getattr(manifest, stage), manifest.codec.codebook_size
    before = manifest.conditioner.quantizers if decoder.conditioning == "prefix" else 0
    most = context - before - WARM_UP  # of the prompt
    columns, Q = _columns(manifest, stage), _columns(manifest, stage) // (1 if stage == "semantic" else manifest.codec.groups)
    timed = -(-steps // Q)
    after = Q * (timed + -(-timed // _frames_of_turn(Q)))  # tokens from the first frame on that is not warm-up
    told, coarse_columns = 0, _columns(manifest, "coarse")
    lead, longest = (1 if stage == "semantic" else 2), decoder.semantic_window or manifest.semantic.max_length
    if decoder.segments:  # start tokens, ends, and the codes of the condition
        lead = 2 * len(decoder.segments) - 1 + decoder.segments[0].quantizers
    if stage == "semantic":
        fixed, largest, codebook = lead, decoder.max_length, decoder.vocabulary - 1
    elif stage == "coarse":
        told = max(min(most // 2, longest), most - lead - decoder.max_length * columns + after + WARM_UP + 2 * columns)
        fixed, largest = lead + told, decoder.max_length
        if not 1 <= told <= longest:
            return None
    else:
        largest = -(-(context - before + 2 * Q + after - lead) // (columns + coarse_columns))
        fixed = lead + largest * coarse_columns
        if largest > decoder.max_length:
            return None
    primed = (most - fixed) // columns * columns
    first = -(-(context + 1 - before - fixed - primed) // Q)
    frames = -(-(primed + first * Q + after) // columns)
    if primed < 0 or frames > largest:
        return None
    drawn = [np.random.default_rng(row) for row in range(rows)]
    semantic = np.stack([rng.integers(0, manifest.semantic.vocabulary - 1, told) for rng in drawn])
    coarse = np.stack([rng.integers(0, codebook, (largest if stage == "fine" else 0, coarse_columns)) for rng in drawn])
    prime, tokens = (np.stack([rng.integers(0, codebook, count) for rng in drawn]) for count in (primed, first * Q + after))

    def window(row: int, own: np.ndarray, draw: Draw, context: Context) -> Window:
        if stage == "semantic":
            return semantic_sequence(decoder, frames, False, own, draw, context)
        own = own.reshape(-1, columns)
        if stage == "coarse":
            return coarse_sequence(decoder, semantic[row], frames, columns, False, own, draw, context)
        return fine_sequence(decoder, coarse[row], columns, own, draw, context)

    return Case(stage, context, Q, first, timed, semantic, prime, np.ascontiguousarray(tokens.T), window)


def _frames_of_turn(quantizers: int) -> int:
    """Frames that are timed in a turn."""
    return -(-TURN // quantizers)


def _columns(manifest: Manifest, stage: str) -> int:
    """Tokens of a frame of sound, or one semantic token."""
    quantizers = {"semantic": 1, "coarse": manifest.coarse.coarse_quantizers, "fine": manifest.fine.fine_quantizers}[stage]
    return (quantizers or 1) * (1 if stage == "semantic" else manifest.codec.groups)


@dataclass
class Form:
    """One way to do a step, begun: its prompt is in its caches."""

    step: Step
    bytes_read: float  # by one step of all rows
    precision: str
    facts: Row = field(default_factory=dict)  # what else a row says of it


def begin(batch: HostBatch, decoder: Decoder, context: Context, case: Case) -> Step:
    """Return the steps of a case through a batch, whose prompts and first frame are done."""
    fed = zip(case.windows(context), case.tokens.T, strict=True)
    windows = [forced(window, tokens, decoder.vocabulary) for window, tokens in fed]
    for window in windows:
        batch.join(window)
    batch.advance(0, batch.waiting())
    batch.advance(1, 0)

    def step(_: int) -> np.ndarray:
        batch.advance(1, 0)
        return np.concatenate([batch.logits(window) for window in windows], axis=1)

    return step


def random_context(manifest: Manifest, stage: str, session: Any) -> tuple[np.ndarray, Context]:
    """A random conditioning float32 [1, C, dim], and what the stage's context graph makes of it; session: None for a stage without."""
    width = next(iter(manifest.conditioner.namespaces.values()))
    width = manifest.conditioner.namespaces.get(stage, width)
    conditioning = np.random.default_rng(1).standard_normal((1, manifest.conditioner.quantizers, width), np.float32)
    if segments := getattr(manifest, stage).segments:
        return conditioning, Context(codes=np.random.default_rng(1).integers(0, segments[0].codebook, segments[0].quantizers))
    if session is None:
        return conditioning, Context()
    names = [output.name for output in session.get_outputs()]
    return conditioning, Context(dict(zip(names, session.run(names, {"conditioning": conditioning}), strict=True)))


def bytes_of_step(decoder: Decoder, case: Case, context: Context, weights: float) -> float:
    """Bytes that a step of the case must read: the weights once, every row's keys and values so far, its conditioning."""
    positions = case.context + case.timed * case.quantizers / 2
    cached = 2 * decoder.depth * decoder.cache_head_size * 4 * positions
    told = sum(array.nbytes for name, array in context.arrays.items() if name != "prefix_embeddings")  # a prefix is in the caches
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
    for number, turn in enumerate(case.turns):
        memory.read()
        expected: list[np.ndarray] = []
        for name, form in forms.items():
            time.sleep(PAUSE_S if number else 0)
            logits, taken = _take_turn(form.step, turn, case.quantizers)
            seconds[name] += taken if number else []
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


def compare_cases(what: str, above: tuple[Case, Step], below: tuple[Case, Step]) -> Row:
    """Time the steps of two cases of one stage turn about; the row has the ratio of their times.

    Raises RuntimeError if the first row, where it is the same in both, has other logits.
    """
    seconds: tuple[list[float], list[float]] = ([], [])
    for number, turns in enumerate(zip(above[0].turns, below[0].turns, strict=True)):
        logits = []
        for turn, (case, step), times in zip(turns, (above, below), seconds, strict=True):
            made, taken = _take_turn(step, turn, case.quantizers)
            logits.append([one[:, 0] for one in made])
            times += [float(np.median(taken))] if number else []
        if above[0].context == below[0].context and not np.array_equal(*logits):
            raise RuntimeError(f"{what}: a row has other logits with others in its step than alone.")
    return ratio(what, *seconds)


def _take_turn(step: Step, turn: range, quantizers: int) -> tuple[list[np.ndarray], list[float]]:
    """Return the logits of a turn's frames, and the seconds of a step in each of them but the first."""
    logits, seconds = [], []
    for frame in turn:
        started = time.perf_counter()
        found = step(frame)
        seconds.append((time.perf_counter() - started) / quantizers)
        logits.append(np.array(found))
    return logits, seconds[1:]


def check_prefill(session: Any, decoder: Decoder, context: Context, case: Case) -> float:
    """The graph's steps of a case must give what its prompt and tokens give as one prompt. Returns how far apart they are.

    Raises RuntimeError.
    """
    last, batch = len(case.tokens) // case.quantizers - 1, GraphBatch(session, decoder, case.rows)
    step = begin(batch, decoder, context, case)
    found = [step(frame) for frame in range(1, last + 1)][-1][0]
    batch.close()
    windows = case.windows(context, known=last * case.quantizers)
    for window in windows:
        batch.join(window)
    batch.advance(0, batch.waiting())
    batch.advance(1, 0)
    apart = _difference(found, np.concatenate([batch.logits(window) for window in windows], axis=1)[0])
    batch.close()
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
