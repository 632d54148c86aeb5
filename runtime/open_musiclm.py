"""A request as open-musiclm makes it (`MusicLM.forward`, github.com/zhvng/open-musiclm, 8e2c6a8): its windows, its lengths, its ends.

In: a checked request with compat="upstream", conditioning, noise, for a bundle whose transformers read segments. Out: one `Tokens` per
item. What is different from the default: an end after each sequence that is read is seen, in a row of the table that training never wrote;
a coarse window reads 199 semantic tokens and goes on by 99 of them, 1.98 s, while its frames go on by 2 s; and a clip is as long as whole
windows are.
"""

from __future__ import annotations

from collections.abc import Sequence as Many

import numpy as np

from .bundle import STAGES, Manifest
from .consistency import MOST_SECONDS
from .music import Tokens
from .sequence import Sequence, segment_sequence
from .upstream import Upstream
from .windows import tokens_per_frame


def seconds_of(manifest: Manifest, asked: float | None) -> float:
    """Return the seconds of a clip that was asked for with these, or none."""
    return (manifest.seconds or 0) if asked is None else asked


def output_frames(manifest: Manifest, seconds: float, primed: bool) -> int:
    """Return the codec frames that come out when `seconds` are asked for, those of a prime not counted. ValueError if there are none."""
    read, coarse, fine = _semantic_window(manifest), manifest.coarse.max_length, manifest.fine.max_length
    if min(manifest.semantic.max_length, coarse) < 2:
        raise ValueError("compat='upstream' goes on by half a window, and a window of this model has one token or frame. Leave it out.")
    if seconds > MOST_SECONDS:
        raise ValueError(f"seconds = {seconds:g} is longer than a clip may be: ask for at most {MOST_SECONDS} s, a day.")
    tokens = _semantic_tokens(manifest, seconds) - (_cut(manifest) if primed else 0)
    windows = (tokens - read) // max(read // 2, 1) + 1
    frames = coarse + (windows - 1) * (coarse - coarse // 2) - (coarse // 2 if primed else 0)
    if windows < 1 or frames < fine:
        raise ValueError(
            f"seconds = {seconds:g} is too short for open-musiclm's windows, whose coarse one reads {read} semantic tokens: ask for more."
        )
    return frames // fine * fine


class OpenMusicLM(Upstream):
    """One request on its way. Every window of a stage is run for all items before the next one."""

    def run(self) -> list[Tokens]:
        self._drawn: dict[str, int] = dict.fromkeys(STAGES, 0)  # tokens of an item that were sampled; the noise counts them
        semantic = self._all_semantic()
        cut = _cut(self._manifest) if any(self._primes) else 0
        coarse = self._all_coarse([row[cut:] for row in semantic])
        cut = self._manifest.coarse.max_length // 2 if any(self._primes) else 0
        coarse = [row[cut:] for row in coarse]
        fine = self._all_fine(coarse)
        made = [row[: len(other)] for row, other in zip(coarse, fine, strict=True)]
        pairs = {"coarse": made, "fine": fine}
        codes = {stage: [np.concatenate([self._known(stage, item), row]) for item, row in enumerate(rows)] for stage, rows in pairs.items()}
        return [Tokens(*item) for item in zip(semantic, codes["coarse"], codes["fine"], strict=True)]

    def _all_semantic(self) -> list[np.ndarray]:
        decoder = self._manifest.semantic
        window, half = decoder.max_length, decoder.max_length // 2
        total = _asked_tokens(self._manifest, seconds_of(self._manifest, self._request.config.seconds))
        rows = [self._known_semantic(item)[-half:] for item in self._items]
        first = min(window, total)
        while True:
            known = [row[-half:] for row in rows]
            made = self._window("semantic", [[]] * len(rows), known, max(first, len(known[0])))
            rows = [np.concatenate(pair) for pair in zip(rows, made, strict=True)]
            first = window
            if len(rows[0]) >= total:
                return rows

    def _all_coarse(self, semantic: Many[np.ndarray]) -> list[np.ndarray]:
        decoder, columns = self._manifest.coarse, self._columns["coarse"]
        read, half = _semantic_window(self._manifest), decoder.max_length // 2
        rows = [self._known("coarse", item)[-half:] for item in self._items]
        for first in range(0, len(semantic[0]) - read + 1, max(read // 2, 1)):
            known = [row[-half:].ravel() for row in rows]
            seen = [[row[first : first + read]] for row in semantic]
            made = self._window("coarse", seen, known, decoder.max_length * columns)
            rows = [np.concatenate([row, new.reshape(-1, columns)]) for row, new in zip(rows, made, strict=True)]
        return rows

    def _all_fine(self, coarse: Many[np.ndarray]) -> list[np.ndarray]:
        frames, columns = self._manifest.fine.max_length, self._columns["fine"]
        rows: list[list[np.ndarray]] = [[] for _ in coarse]
        for first in range(0, len(coarse[0]) - frames + 1, frames):
            seen, none = [[row[first : first + frames].ravel()] for row in coarse], [np.zeros(0, np.int64)] * len(coarse)
            for row, new in zip(rows, self._window("fine", seen, none, frames * columns), strict=True):
                row.append(new.reshape(-1, columns))
        return [np.concatenate(row) for row in rows]

    def _window(self, stage: str, seen: Many[Many[np.ndarray]], known: Many[np.ndarray], tokens: int) -> list[np.ndarray]:
        """Return the tokens that a window of a stage makes for each item. seen: what it reads after the condition; known: its prefix."""
        sequences = [self._sequence(stage, item, [*seen[item]], known[item], tokens) for item in self._items]
        made = self._decode(stage, sequences)
        self._drawn[stage] += tokens - len(known[0])
        return made

    def _sequence(self, stage: str, item: int, seen: list[np.ndarray], known: np.ndarray, tokens: int) -> Sequence:
        context, decoder = self._context(stage, item), getattr(self._manifest, stage)
        assert context.codes is not None
        draw = self._draw(stage, item, self._drawn[stage])
        return segment_sequence(decoder, [context.codes, *seen], tokens, False, known, draw, context, hide_ends=False)

    @property
    def _items(self) -> range:
        return range(self._request.items)


def _asked_tokens(manifest: Manifest, seconds: float) -> int:
    return int(seconds * manifest.semantic_tokens_per_second)


def _semantic_tokens(manifest: Manifest, seconds: float) -> int:
    """Return how many semantic tokens are made: whole halves of a window beyond the first."""
    window, asked = manifest.semantic.max_length, _asked_tokens(manifest, seconds)
    if asked <= window:
        return asked
    half = window - window // 2
    return window + -(-(asked - window) // half) * half


def _semantic_window(manifest: Manifest) -> int:
    assert manifest.coarse.semantic_window is not None
    return manifest.coarse.semantic_window


def _cut(manifest: Manifest) -> int:
    """Return the semantic tokens of a prime that sound before what the first coarse window reads: of half a window each."""
    return manifest.semantic.max_length // 2 - int(manifest.coarse.max_length * tokens_per_frame(manifest) / 2)
