"""What each stage feeds its transformer: rows of the embedding table and coordinates of the bias table, token by token.

In: the manifest's `Decoder` records and token arrays. Out: one `Plan` per stage, which the decode loop follows without knowing stages.
`export/tables.py` is the other side: it lays out the tables that the numbers made here point into.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .bundle import Decoder

FAR = 1 << 40  # larger than any coordinate: clips to the last entry as a difference
PREFIX_KEY = FAR << 2  # key coordinate of a conditioning prefix: clips to entry 0, no bias, for every query


@dataclass(frozen=True)
class Positions:
    """Some positions of a sequence: int64 [n] each."""

    rows: np.ndarray
    query: np.ndarray
    key: np.ndarray

    @staticmethod
    def join(*parts: "Positions") -> "Positions":
        return Positions(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("rows", "query", "key")))


@dataclass(frozen=True)
class Plan:
    """One call of a stage: what stands in each row's sequence before sampling, and how each sampled token is fed back.

    A row may begin with a prime, tokens of its own stage that are known already: the tail of the window before, or a sound that is
    continued. It is part of the prompt, so one prefill takes it in, and a row's tokens are counted from the prime's first one on.
    """

    stage: str
    decoder: Decoder
    prompts: list[Positions]  # one per row, primes included
    primed: np.ndarray  # int64 [rows]: tokens of each row's prime; token number primed + step is sampled at `step`
    steps: np.ndarray  # int64 [rows]: how many tokens each row gets at most
    end: int | None  # the token that ends a row, never part of its tokens
    frame_tokens: int  # tokens of a frame, in which only the first may be the end
    end_allowed: bool
    bias_shift: int = 0  # added to every query coordinate
    counts_prime: bool = True  # whether a row's first frame is its prime's, or the first one sampled

    def head(self, step: int) -> int:
        """Which output projection predicts the tokens of `step`: the same in every row, since a prime holds whole frames."""
        return step % self.quantizers

    def forbid_last(self, step: int | np.ndarray) -> np.ndarray:
        """bool [rows], or [steps, rows] of steps [steps, 1]: whether the last entry of the vocabulary is excluded at `step`.

        Upstream's rule for coarse and fine: excluded but on the first quantizer of a frame after the row's first frame.
        """
        index = self.primed * self.counts_prime + step  # a prime holds whole frames
        if self.stage == "semantic":
            return np.full(index.shape, not self.end_allowed)
        first_of_a_later_frame = (index % self.frame_tokens == 0) & (index > 0)
        return ~first_of_a_later_frame | (self.end is not None and not self.end_allowed)

    def place(self, step: int | np.ndarray, tokens: np.ndarray) -> Positions:
        """tokens int64 [rows], sampled at `step` -> where they stand and their rows in the table; or [steps, rows] of steps [steps, 1]."""
        return self._positions(self.primed + step, tokens)

    @property
    def capacity(self) -> int:
        """Positions of the longest row when it is complete."""
        return int(max(len(prompt.rows) + steps for prompt, steps in zip(self.prompts, self.steps, strict=True)))

    @property
    def quantizers(self) -> int:
        """Of the stage's codes, 1 for semantic tokens: after so many tokens output projections and rows of the table come round."""
        return {"semantic": 1, "coarse": self.decoder.coarse_quantizers, "fine": self.decoder.fine_quantizers}[self.stage] or 1

    def _positions(self, index: np.ndarray, tokens: np.ndarray) -> Positions:
        """Positions of the stage's own tokens, number `index` of their row."""
        if self.stage == "semantic":
            return _shift(_line(self.decoder.rows["semantic"] + tokens, 1 + index), self.bias_shift)
        rows = _code_rows(self.decoder, self.stage, index, tokens)
        coordinates = FAR + 1 + index if self.stage == "coarse" else _fine_coordinates(self.decoder, "fine", index)
        return _shift(_line(rows, coordinates), self.bias_shift)

    def _begun(self, primes: Sequence[np.ndarray] | None) -> "Plan":
        """This plan with each row begun by its prime: int64 [n] (semantic) or [frames, quantizers]."""
        if primes is None:
            return self
        flat = [prime.ravel() for prime in primes]
        primed = np.array([len(prime) for prime in flat])
        assert len(primed) == len(self.prompts) and (primed <= self.steps).all() and not (primed % self.frame_tokens).any(), primed
        prompts = [
            Positions.join(prompt, self._positions(np.arange(len(prime)), prime)) for prompt, prime in zip(self.prompts, flat, strict=True)
        ]
        return replace(self, prompts=prompts, primed=primed, steps=self.steps - primed)


def plan_semantic(
    decoder: Decoder, rows: int, length: int | np.ndarray, end_allowed: bool, primes: Sequence[np.ndarray] | None = None
) -> Plan:
    """length: tokens of every row, or int64 [rows], at most and with its prime; primes: int64 [n] per row."""
    start = _shift(_line(np.array([decoder.rows["start"]]), np.array([0])), 1)
    steps = np.broadcast_to(length, rows)
    plan = Plan("semantic", decoder, [start] * rows, np.zeros(rows, np.int64), steps, decoder.vocabulary - 1, 1, end_allowed, bias_shift=1)
    return plan._begun(primes)


def plan_coarse(
    decoder: Decoder,
    semantic: list[np.ndarray],
    frames: int,
    frame_tokens: int,
    end_allowed: bool,
    primes: Sequence[np.ndarray] | None = None,
    counts_prime: bool = True,
) -> Plan:
    """semantic: int64 [n] per row; -1 is embedded as zeros, as upstream does with what follows an end.

    frames: of every row, with its prime; primes: int64 [frames, frame_tokens] per row; counts_prime: False as upstream does.
    """
    prompts = []
    for tokens in semantic:
        rows = np.where(tokens < 0, decoder.rows["padding"], decoder.rows["semantic"] + tokens)
        prompt = Positions.join(
            _line(np.array([decoder.rows["semantic_start"]]), np.array([0])),
            _line(rows, 1 + np.arange(len(tokens))),
            _line(np.array([decoder.rows["coarse_start"]]), np.array([FAR])),
        )
        prompts.append(_shift(prompt, 1))
    primed, steps = np.zeros(len(semantic), np.int64), np.full(len(semantic), frames * frame_tokens)
    end = decoder.vocabulary - 1
    plan = Plan("coarse", decoder, prompts, primed, steps, end, frame_tokens, end_allowed, bias_shift=1, counts_prime=counts_prime)
    return plan._begun(primes)


def plan_fine(
    decoder: Decoder,
    coarse: list[np.ndarray],
    frame_tokens: int,
    trained_frames: int | None,
    primes: Sequence[np.ndarray] | None = None,
) -> Plan:
    """coarse: int64 [frames, Qc] per row, of the prime's frames too; primes: int64 [frames, frame_tokens] per row.

    `trained_frames` is N of the bias table; None takes the bundle's.
    """
    assert decoder.fine_quantizers is not None
    shift = 0
    if decoder.bias is not None:
        shift = ((trained_frames or decoder.bias.frames or 1) - 1) * decoder.bias.stride + (decoder.bias.stride - 1) // 2
    prompts = []
    for tokens in coarse:
        index = np.arange(tokens.size)
        codes = _line(_code_rows(decoder, "coarse", index, tokens.ravel()), _fine_coordinates(decoder, "coarse", index))
        prompts.append(Positions.join(_start(decoder, "coarse_start"), _shift(codes, shift), _start(decoder, "fine_start")))
    steps = np.array([len(tokens) * frame_tokens for tokens in coarse])
    plan = Plan("fine", decoder, prompts, np.zeros(len(coarse), np.int64), steps, None, frame_tokens, False, bias_shift=shift)
    return plan._begun(primes)


def _line(rows: np.ndarray, coordinates: np.ndarray) -> Positions:
    """Positions whose query and key coordinates are the same."""
    return Positions(rows.astype(np.int64), coordinates.astype(np.int64), coordinates.astype(np.int64))


def _shift(positions: Positions, shift: int) -> Positions:
    return Positions(positions.rows, positions.query + shift, positions.key)


def _start(decoder: Decoder, name: str) -> Positions:
    """A start token of the fine stage: every pair with it clips to the last entry."""
    return Positions(np.array([decoder.rows[name]]), np.array([FAR]), np.array([-FAR]))


def _code_rows(decoder: Decoder, kind: str, index: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Row of the code at `index` in its segment: code c of quantizer q at first + q * codebook + c."""
    quantizers = decoder.coarse_quantizers if kind == "coarse" else decoder.fine_quantizers
    assert quantizers is not None
    codebook = decoder.vocabulary - (1 if "semantic" in decoder.rows else 0)  # the coarse logits have an end entry, the fine ones do not
    return decoder.rows[kind] + index % quantizers * codebook + codes


def _fine_coordinates(decoder: Decoder, kind: str, index: np.ndarray) -> np.ndarray:
    """frame * stride + quantizer; fine quantizers count on after the coarse ones. Without bias any number will do."""
    assert decoder.coarse_quantizers is not None and decoder.fine_quantizers is not None
    quantizers, first = (decoder.coarse_quantizers, 0) if kind == "coarse" else (decoder.fine_quantizers, decoder.coarse_quantizers)
    stride = 2 * (decoder.coarse_quantizers + decoder.fine_quantizers) - 1
    return index // quantizers * stride + first + index % quantizers
