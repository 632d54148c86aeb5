"""Whether a device's tokens and logits are the CPU's, and its own when it is asked again.

In: a stage (`stage`), requests. Out: what was compared; RuntimeError with the first token that differs. A device runs on freely, and the
CPU's graph follows its tokens: where every one is what the CPU would have taken after those before it, both made the same clip.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from musiclm_deploy.runtime.bundle import Sampling
from musiclm_deploy.runtime.noise import SeededNoise
from musiclm_deploy.runtime.sampling import guide, sample

from .stage import OnDevice, Request

LEAST_EQUAL = {"fp32": 1.0, "fp16": 0.95, "bf16": 0.9, "int8": 0.9}  # share of tokens that must be the CPU's after the same tokens
# Difference of logits over their largest that is allowed in six layers, three times what plain PyTorch loses there in bf16 (0.019 at dim
# 1024, results/steps.jsonl; fp16 has three bits more), and what the CPU's native step loses in int8 against the graph, whose activations
# have 8 bits too. In more layers it grows as their root.
MOST_LOST = {"fp32": 1e-4, "fp16": 0.0075, "bf16": 0.06, "int8": 0.06}
LIKELIEST, DRAWN = Sampling(temperature=0.0, filter_thres=0.0, cond_scale=1.0), Sampling()


@dataclass(frozen=True)
class Compared:
    """A request as a device made it: tokens int64 [n] of each row and the logits of the last step, float32 [rows, C, V]."""

    request: Request
    tokens: list[np.ndarray]
    logits: np.ndarray
    equal: int  # tokens, ends among them, that are the CPU's
    total: int
    first: str  # of those that are not, in words
    lost: float  # of the logits, over their largest; 0 where every row has ended before


def requests_of(stage: OnDevice, rows: Sequence[int], contexts: Sequence[int], tokens: int) -> Iterator[Request]:
    """For each of these rows, `tokens` tokens after the first context that allows as many, drawn, guided where the stage can be; rows of a
    batch may end. And after every context that the stage can have a frame of most rows, the likeliest and one drawn."""
    first = next((context for context in contexts if stage.holds(context, tokens)), contexts[-1])
    for count in rows:
        yield stage.request(count, first, tokens, DRAWN, end_allowed=count > 1)
    for context in (length for length in contexts if stage.holds(length, 1)):
        for sampling in (LIKELIEST, DRAWN):
            yield stage.request(max(rows), context, 1, sampling)


def compare(stage: OnDevice, request: Request) -> Compared:
    """Let the device make the request's tokens, and the CPU follow them on the same noise."""
    found, last = stage.decode(request)
    equal, total, first, lost = 0, 0, "", 0.0
    for row, (sequence, own, every) in enumerate(zip(request.sequences, found, stage.follow(request, found), strict=True)):
        draw, sampling = sequence.draw, sequence.draw.sampling
        noise = SeededNoise(sequence.rules.stage, draw.seed, draw.item, stage.decoder.vocabulary)
        for step, logits in enumerate(every):
            scores = guide(logits[:1], logits[1:], sampling.cond_scale) if sequence.guided else logits
            forbidden = sequence.forbids_end(step)
            expected = int(sample(scores, noise(draw.first + step)[None], sampling.temperature, sampling.filter_thres, forbidden)[0])
            token = int(own[step]) if step < len(own) else sequence.rules.end
            total += 1
            equal += token == expected
            if token != expected and not first:
                first = f"token {step} of row {row} is {token}, the CPU's {expected}"
        if len(every) == request.steps:
            lost = float(np.maximum(lost, np.abs(last[row] - every[-1]).max() / np.abs(every[-1]).max()))  # NaN stays
    return Compared(request, found, last, equal, total, first, lost)


def judge(stage: OnDevice, compared: Sequence[Compared]) -> None:
    """RuntimeError where too few tokens of these requests are the CPU's, or logits are farther from it than rounding explains."""
    equal, total = sum(one.equal for one in compared), sum(one.total for one in compared)
    who, least = f"{stage.stage}, {stage.kind}", LEAST_EQUAL[stage.kind]
    if equal < least * total:
        first = next(one.first for one in compared if one.first)
        message = (
            f"{who}: {equal} of {total} tokens are the CPU's after the same tokens, {least:.0%} must be. The first that is not: {first}"
        )
        raise RuntimeError(f"{message}.")
    most = MOST_LOST[stage.kind] * math.sqrt(max(stage.decoder.depth / 6, 1))
    worst = float(np.max([one.lost for one in compared]))  # NaN stays
    if not worst <= most:
        raise RuntimeError(
            f"{who}: logits differ from the CPU's by {worst:.1e} of their largest, {most:.1e} is what its rounding explains."
        )


def compare_again(stage: OnDevice, before: Compared, how: str) -> None:
    """RuntimeError unless the stage makes the same tokens and, bit for bit, the same logits again. how: in what way, for the message."""
    tokens, logits = stage.decode(before.request)
    for row, (found, expected) in enumerate(zip(tokens, before.tokens, strict=True)):
        if not np.array_equal(found, expected):
            both = min(len(found), len(expected))
            at = int(np.append(found[:both] != expected[:both], True).argmax())
            raise RuntimeError(f"{stage.stage}, {stage.kind}: {how}, a request made other tokens, from token {at} of row {row} on.")
    if not all(len(row) < before.request.steps for row in tokens) and not np.array_equal(logits, before.logits):
        raise RuntimeError(f"{stage.stage}, {stage.kind}: {how}, a request made the same tokens of other logits.")
