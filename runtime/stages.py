"""What each stage feeds its transformer: rows of the embedding table and coordinates of the bias table, token by token.

In: the manifest's `Decoder` records and token arrays. Out: one `Plan` per stage, which the decode loop follows without knowing stages.
`export/tables.py` is the other side: it lays out the tables that the numbers made here point into.
"""

from dataclasses import dataclass

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
    """One stage of one request: what stands in the sequence before sampling, and how each sampled token is fed back."""

    stage: str
    decoder: Decoder
    prompts: list[Positions]  # one per item
    steps: np.ndarray  # int64 [items]: how many tokens each item gets at most
    end: int | None  # the token that ends an item, never part of its tokens
    frame_tokens: int  # tokens of a frame, in which only the first may be the end
    end_allowed: bool
    bias_shift: int = 0  # added to every query coordinate

    def head(self, step: int) -> int:
        """Which output projection predicts token `step`."""
        return step % (self._quantizers or 1)

    def forbid_last(self, step: int) -> bool:
        """Whether the last entry of the vocabulary is excluded at `step`.

        Upstream's rule for coarse and fine: excluded but on the first quantizer of a frame after the first frame.
        """
        if self.stage == "semantic":
            return not self.end_allowed
        first_of_a_later_frame = step % self.frame_tokens == 0 and step > 0
        return not first_of_a_later_frame or (self.end is not None and not self.end_allowed)

    def place(self, step: int, tokens: np.ndarray) -> Positions:
        """tokens int64 [items], each item's token number `step` -> where they stand and which rows embed them."""
        return self._sampled(np.full(len(tokens), step), tokens)

    @property
    def _quantizers(self) -> int | None:
        return {"semantic": None, "coarse": self.decoder.coarse_quantizers, "fine": self.decoder.fine_quantizers}[self.stage]

    def _sampled(self, index: np.ndarray, tokens: np.ndarray) -> Positions:
        if self.stage == "semantic":
            return _shift(_line(self.decoder.rows["semantic"] + tokens, 1 + index), self.bias_shift)
        if self.stage == "coarse":
            return _shift(_line(_code_rows(self.decoder, "coarse", index, tokens), FAR + 1 + index), self.bias_shift)
        return _shift(
            _line(_code_rows(self.decoder, "fine", index, tokens), _fine_coordinates(self.decoder, "fine", index)), self.bias_shift
        )


def plan_semantic(decoder: Decoder, items: int, steps: int, end_allowed: bool) -> Plan:
    start = _shift(_line(np.array([decoder.rows["start"]]), np.array([0])), 1)
    return Plan("semantic", decoder, [start] * items, np.full(items, steps), decoder.vocabulary - 1, 1, end_allowed, bias_shift=1)


def plan_coarse(decoder: Decoder, semantic: list[np.ndarray], frames: int, frame_tokens: int, end_allowed: bool) -> Plan:
    """semantic: int64 [n] per item; -1 is embedded as zeros, as upstream does with what follows an end."""
    prompts = []
    for tokens in semantic:
        rows = np.where(tokens < 0, decoder.rows["padding"], decoder.rows["semantic"] + tokens)
        prompt = Positions.join(
            _line(np.array([decoder.rows["semantic_start"]]), np.array([0])),
            _line(rows, 1 + np.arange(len(tokens))),
            _line(np.array([decoder.rows["coarse_start"]]), np.array([FAR])),
        )
        prompts.append(_shift(prompt, 1))
    steps = np.full(len(semantic), frames * frame_tokens)
    return Plan("coarse", decoder, prompts, steps, decoder.vocabulary - 1, frame_tokens, end_allowed, bias_shift=1)


def plan_fine(decoder: Decoder, coarse: list[np.ndarray], frame_tokens: int, trained_frames: int | None) -> Plan:
    """coarse: int64 [frames, Qc] per item. `trained_frames` is N of the bias table; None takes the bundle's."""
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
    return Plan("fine", decoder, prompts, steps, None, frame_tokens, False, bias_shift=shift)


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
