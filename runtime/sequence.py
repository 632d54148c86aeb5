"""One window of one stage as data: which embeddings its prompt feeds, where its tokens stand, how they are drawn.

In: the manifest's `Decoder` records, token arrays, sampling settings. Out: a `Sequence`, which a batch (`runtime.batch`) decodes without
knowing stages. `export/tables.py` is the other side: it lays out the tables that the numbers made here point into.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from ..kernels.sampling.constants import ALWAYS, NEVER, Place, Rules
from .bundle import Decoder, Sampling
from .noise import STAGE_IDS

FAR = 1 << 40  # larger than any coordinate: clips to the last entry as a difference
PREFIX_KEY = FAR << 2  # key coordinate of a conditioning prefix: clips to entry 0, no bias, for every query


@dataclass(frozen=True)
class Positions:
    """Some positions of a sequence: int64 [n] each."""

    ids: np.ndarray  # rows of the embedding table
    query: np.ndarray  # coordinates
    key: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    @staticmethod
    def join(*parts: Positions) -> Positions:
        return Positions(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("ids", "query", "key")))


@dataclass(frozen=True, eq=False)
class Context:
    """The outputs of a stage's context graph for one conditioning, each [1, ...]; equal only to itself.

    `context.<layer>.key` [1, dim_head, C] and `context.<layer>.value` [1, C, dim_head], where entry 0 of C is the null condition; or
    `prefix_embeddings` [1, P, dim]. Empty for a stage without conditioning, and for one that reads the condition's codes as tokens.
    """

    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    codes: np.ndarray | None = None  # int64 [C] of the condition, for a stage that reads them as tokens

    @property
    def prefix(self) -> np.ndarray | None:
        """The embeddings of a conditioning prefix, float32 [P, dim], if the stage has one."""
        return self.arrays["prefix_embeddings"][0] if "prefix_embeddings" in self.arrays else None

    def without_condition(self) -> dict[str, np.ndarray]:
        """Return the arrays of the pass without condition: the null key and value in every slot, whose weighted sum is the null value.

        A prefix is left out.
        """
        null = {name: array[:, :, :1] if name.endswith(".key") else array[:, :1] for name, array in self.arrays.items()}
        return {name: np.broadcast_to(array, self.arrays[name].shape) for name, array in null.items() if name != "prefix_embeddings"}


@dataclass(frozen=True)
class Draw:
    """How the tokens of a sequence are drawn."""

    seed: int
    item: int  # the candidate's number under its seed
    first: int  # number of the sequence's first sampled token in its item's whole stage, over all windows
    sampling: Sampling  # with cond_scale 1 the pass without condition is not computed
    noise: Callable[[int], np.ndarray] | None = None  # number of a token in its stage -> float32 [V], in place of the seeded noise


@dataclass(frozen=True, eq=False)
class Sequence:
    """One window of one stage. It may begin with a prefix, tokens of its own stage that are known already: the tail of the window before,
    or a sound that is continued. These are part of the prompt, and a sequence's tokens are counted from the first of them on."""

    prompt: Positions
    rules: Rules
    known: int  # tokens of the prefix; token number known + step is sampled at `step`
    in_frames: int  # tokens before the first sampled one that count towards `rules.frame`
    steps: int  # tokens to sample at most
    draw: Draw
    context: Context
    position_ids: np.ndarray | None = None  # int64 [capacity + 1], rows of the table of absolute positions, in a model with one

    @property
    def guided(self) -> bool:
        return self.draw.sampling.cond_scale != 1

    @property
    def prefix_length(self) -> int:
        """Positions of the conditioning prefix, which come before the prompt."""
        return 0 if self.context.prefix is None else len(self.context.prefix)

    @property
    def capacity(self) -> int:
        """Positions of the complete sequence; the last token is never fed back."""
        return self.prefix_length + len(self.prompt) + self.steps - 1

    def forbids_end(self, step: int) -> bool:
        """Return whether the last entry of the vocabulary is excluded at `step`.

        Upstream's rule for coarse and fine: excluded but on the first quantizer of a frame after the sequence's first frame.
        """
        if self.rules.frame in (ALWAYS, NEVER):
            return self.rules.frame == ALWAYS
        index = self.in_frames + step
        return index == 0 or index % self.rules.frame != 0


def place_tokens(place: Place, index: int | np.ndarray, tokens: np.ndarray) -> Positions:
    """Return where tokens int64 [n], number `index` of their sequence, stand."""
    key = place.origin + index // place.per_frame * place.stride + index % place.per_frame
    key = np.broadcast_to(np.asarray(key, np.int64), tokens.shape)
    return Positions(place.first_row + index % place.quantizers * place.codebook + tokens, key + place.shift, key)


def semantic_sequence(decoder: Decoder, length: int, end_allowed: bool, prefix: np.ndarray, draw: Draw, context: Context) -> Sequence:
    """Return a semantic window of `length` tokens at most, its prefix, int64 [n], included."""
    if decoder.segments:
        return segment_sequence(decoder, [_codes(context)], length, end_allowed, prefix, draw, context)
    padding = decoder.rows["padding"]
    place = Place(decoder.rows["semantic"], 0, 1, origin=1, per_frame=1, stride=1, shift=1, padding=padding)
    start = _shift(_line(np.array([decoder.rows["start"]]), np.array([0])), 1)
    rules = _rules(decoder, "semantic", place, NEVER if end_allowed else ALWAYS, decoder.vocabulary - 1, draw)
    return _begun(start, rules, prefix, length, 0, draw, context)


def coarse_sequence(
    decoder: Decoder,
    semantic: np.ndarray,
    frames: int,
    frame_tokens: int,
    end_allowed: bool,
    prefix: np.ndarray,
    draw: Draw,
    context: Context,
    counts_prefix: bool = True,
) -> Sequence:
    """Return a coarse window of `frames` frames, its prefix, int64 [frames, frame_tokens], included.

    semantic: int64 [n] that it reads; -1 is embedded as zeros, as upstream does with what follows an end. counts_prefix: whether the first
    frame, on which no end is allowed, is the prefix's, or the first one sampled, as upstream has it.
    """
    if decoder.segments:
        return segment_sequence(decoder, [_codes(context), semantic], frames * frame_tokens, end_allowed, prefix.ravel(), draw, context)
    quantizers = decoder.outputs
    place = Place(
        decoder.rows["coarse"],
        _codebook(decoder),
        quantizers,
        origin=FAR + 1,
        per_frame=quantizers,
        stride=quantizers,
        shift=1,
        padding=decoder.rows["padding"],
    )
    ids = np.where(semantic < 0, decoder.rows["padding"], decoder.rows["semantic"] + semantic)
    prompt = Positions.join(
        _line(np.array([decoder.rows["semantic_start"]]), np.array([0])),
        _line(ids, 1 + np.arange(len(semantic))),
        _line(np.array([decoder.rows["coarse_start"]]), np.array([FAR])),
    )
    rules = _rules(decoder, "coarse", place, frame_tokens if end_allowed else ALWAYS, decoder.vocabulary - 1, draw)
    counted = prefix.size if counts_prefix else 0
    return _begun(_shift(prompt, 1), rules, prefix.ravel(), frames * frame_tokens, counted, draw, context)


def fine_sequence(
    decoder: Decoder,
    coarse: np.ndarray,
    frame_tokens: int,
    prefix: np.ndarray,
    draw: Draw,
    context: Context,
    trained_frames: int | None = None,
) -> Sequence:
    """Return a fine window over coarse int64 [frames, Qc], of the prefix's frames too; prefix int64 [frames, frame_tokens].

    `trained_frames` is N of the bias table; None takes the bundle's.
    """
    if decoder.segments:
        return segment_sequence(
            decoder, [_codes(context), coarse.ravel()], len(coarse) * frame_tokens, False, prefix.ravel(), draw, context
        )
    assert decoder.coarse_quantizers is not None and decoder.fine_quantizers is not None
    coarse_quantizers, fine_quantizers = decoder.coarse_quantizers, decoder.fine_quantizers
    shift = 0
    if decoder.bias is not None:
        shift = ((trained_frames or decoder.bias.frames or 1) - 1) * decoder.bias.stride + (decoder.bias.stride - 1) // 2
    stride = 2 * (coarse_quantizers + fine_quantizers) - 1  # fine quantizers count on after the coarse ones
    codebook, padding = _codebook(decoder), decoder.rows["padding"]
    told = Place(decoder.rows["coarse"], codebook, coarse_quantizers, 0, coarse_quantizers, stride, shift, padding)
    place = Place(decoder.rows["fine"], codebook, fine_quantizers, coarse_quantizers, fine_quantizers, stride, shift, padding)
    codes = place_tokens(told, np.arange(coarse.size), coarse.ravel())
    prompt = Positions.join(_start(decoder, "coarse_start"), codes, _start(decoder, "fine_start"))
    rules = _rules(decoder, "fine", place, frame_tokens, -1, draw)
    return _begun(prompt, rules, prefix.ravel(), len(coarse) * frame_tokens, prefix.size, draw, context)


def segment_sequence(
    decoder: Decoder,
    read: list[np.ndarray],
    tokens: int,
    end_allowed: bool,
    prefix: np.ndarray,
    draw: Draw,
    context: Context,
    hide_ends: bool = True,
) -> Sequence:
    """Return a window of `tokens` tokens, its prefix, int64 [n], included, of a decoder that reads segments.

    read: int64 [n] of each segment before the last, flat; each is followed by its end. hide_ends: whether ends are what they were in
    training, code 0 that no query sees; else what open-musiclm's inference makes of them: seen, in the row of their own number. An end
    that may be drawn is allowed for the last quantizer of a frame, by default of a frame after the first.
    """
    assert decoder.segments is not None and len(read) == len(decoder.segments) - 1
    parts, first, absolute = [], 0, []
    for segment, codes in zip(decoder.segments, read, strict=False):
        n = len(codes)
        place = Place(segment.first, segment.codebook, segment.quantizers, first + 1, 1, 1, shift=1, padding=0)
        key = FAR if hide_ends else first + 1 + n
        end = Positions(np.array([segment.first + (0 if hide_ends else segment.codebook)]), np.array([first + 2 + n]), np.array([key]))
        parts += [_shift(_line(np.array([segment.start]), np.array([first])), 1), place_tokens(place, np.arange(n), codes), end]
        absolute += [np.zeros(1, np.int64), (segment.positions or 0) + np.arange(n + 1)]
        first += n + 2
    last = decoder.segments[-1]
    parts.append(_shift(_line(np.array([last.start]), np.array([first])), 1))
    place = Place(last.first, last.codebook, last.quantizers, first + 1, 1, 1, shift=1, padding=0)
    rules = _rules(decoder, last.name, place, last.quantizers if end_allowed else ALWAYS, last.codebook, draw)
    # counted so that a frame's last token is the one on which an end is allowed, but not the first frame's: a clip is not empty
    in_frames = len(prefix) + 1 - (last.quantizers if hide_ends else 0)
    made = _begun(Positions.join(*parts), rules, prefix, tokens, in_frames, draw, context)
    if last.positions is None:
        return made
    absolute += [np.zeros(1, np.int64), last.positions + np.arange(tokens)]
    return replace(made, position_ids=np.concatenate(absolute))


def _codes(context: Context) -> np.ndarray:
    assert context.codes is not None
    return context.codes


def _rules(decoder: Decoder, stage: str, place: Place, frame: int, end: int, draw: Draw) -> Rules:
    k = max(int((1 - draw.sampling.filter_thres) * decoder.vocabulary), 1)
    return Rules(place, STAGE_IDS[stage], frame, end, k)


def _begun(prompt: Positions, rules: Rules, prefix: np.ndarray, tokens: int, in_frames: int, draw: Draw, context: Context) -> Sequence:
    """Return a sequence of `tokens` tokens whose first ones, int64 [n], are known."""
    assert len(prefix) <= tokens and len(prefix) % rules.place.quantizers == 0, (len(prefix), tokens, rules)
    told = place_tokens(rules.place, np.arange(len(prefix)), prefix)
    return Sequence(Positions.join(prompt, told), rules, len(prefix), in_frames, tokens - len(prefix), draw, context)


def _line(ids: np.ndarray, coordinates: np.ndarray) -> Positions:
    """Positions whose query and key coordinates are the same."""
    return Positions(ids.astype(np.int64), coordinates.astype(np.int64), coordinates.astype(np.int64))


def _shift(positions: Positions, shift: int) -> Positions:
    return Positions(positions.ids, positions.query + shift, positions.key)


def _start(decoder: Decoder, name: str) -> Positions:
    """A start token of the fine stage: every pair with it clips to the last entry."""
    return Positions(np.array([decoder.rows[name]]), np.array([FAR]), np.array([-FAR]))


def _codebook(decoder: Decoder) -> int:
    """Entries of a codebook: coarse logits have an end entry, fine ones do not."""
    return decoder.vocabulary - (1 if "semantic" in decoder.rows else 0)


def unguided(decoder: Decoder, sampling: Sampling) -> Sampling:
    """Return the settings of a stage, without guidance where there is no null condition."""
    return sampling if decoder.guidance else replace(sampling, cond_scale=1.0)


def unique_consecutive(tokens: np.ndarray) -> np.ndarray:
    """Return tokens without those that repeat the one before."""
    return tokens[np.append(True, tokens[1:] != tokens[:-1])] if len(tokens) else tokens
