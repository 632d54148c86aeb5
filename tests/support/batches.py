"""A model whose batches are watched: the real ones do the work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from musiclm_deploy.runtime.backends import Backend
from musiclm_deploy.runtime.batch import Batch, Made
from musiclm_deploy.runtime.musiclm import MusicLM
from musiclm_deploy.runtime.sequence import Sequence


class Watched:
    """A batch that notes which sequences join, and how many are there at once; a function is called after each `advance`."""

    def __init__(self, batch: Any, seen: Callable[[], object], slots: int | None) -> None:
        self._batch, self._seen, self._there = batch, seen, set()
        self.slots = batch.slots if slots is None else slots
        self.joined: list[Sequence] = []
        self.most = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def join(self, sequence: Sequence) -> None:
        self._batch.join(sequence)
        self.joined.append(sequence)
        self._there.add(sequence)
        self.most = max(self.most, len(self._there))

    def advance(self, frames: int, positions: int) -> None:
        self._batch.advance(frames, positions)
        self._seen()

    def collect(self) -> list[Made]:
        made = list(self._batch.collect())
        self._there -= {one.sequence for one in made if one.done}
        return made

    def leave(self, sequence: Sequence) -> None:
        self._batch.leave(sequence)
        self._there.discard(sequence)


class _WatchedBackend:
    def __init__(self, backend: Backend, seen: Callable[[str], object], slots: int | None) -> None:
        self._backend, self._seen, self._slots = backend, seen, slots
        self.batches: dict[str, Watched] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def batch(self, stage: str) -> Batch:
        self.batches[stage] = Watched(self._backend.batch(stage), lambda: self._seen(stage), self._slots)
        return self.batches[stage]


def watched(
    model: MusicLM, seen: Callable[[str], object] = lambda stage: None, slots: int | None = None
) -> tuple[MusicLM, dict[str, Watched]]:
    """Return another MusicLM of the same bundle, and the batches that it has made so far, by stage.

    seen: called with a stage's name after each `advance` of its batch, in the scheduler's thread. slots: in place of each batch's own.
    """
    backend = _WatchedBackend(model.backend, seen, slots)
    return MusicLM(cast(Backend, backend)), backend.batches
