"""The bundles of a server: opened when they are first asked for, the least recently used let go beyond the memory allowed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from ..runtime.bundle import Bundle
from ..runtime.musiclm import MusicLM, load
from ..runtime.stream import Stream
from .capacity import Capacity
from .errors import Refusal
from .settings import Settings

_LOG = logging.getLogger(__name__)
_LOOK_S = 0.25
_WARM_S = 4.0  # of the clips that are made when a bundle is opened, so that its pace is known


@dataclass(eq=False)
class Loaded:
    """An open bundle."""

    name: str
    model: MusicLM
    bytes: int  # of its files
    capacity: Capacity = field(default_factory=Capacity)
    users: int = 0
    used: float = 0.0
    watch: asyncio.Task[None] | None = None

    async def look(self) -> None:
        """Measure its pace for as long as it is open."""
        while True:
            self.capacity.look(self.model.activity)
            await asyncio.sleep(_LOOK_S)


class Models:
    """Opens, shares and closes bundles."""

    def __init__(self, settings: Settings) -> None:
        """Raises BundleError for a bundle that is damaged, ValueError for one larger than the memory allowed: better when the server starts
        than at the first request."""
        self._settings = settings
        self.created = int(time.time())
        self.default = next(iter(settings.bundles))
        self._bundles = {name: Bundle.open(path) for name, path in settings.bundles.items()}
        for name, bundle in self._bundles.items():
            if settings.memory_bytes is not None and (size := _size(bundle)) > settings.memory_bytes:
                allowed = settings.memory_bytes / 1e9
                raise ValueError(f"bundle {name} has {size / 1e9:.3g} GB: more than the {allowed:g} GB that open bundles may have.")
        self._open: dict[str, Loaded] = {}
        self._opening = asyncio.Lock()

    @property
    def names(self) -> list[str]:
        return list(self._bundles)

    @property
    def loaded(self) -> list[Loaded]:
        return list(self._open.values())

    def bundle(self, name: str | None) -> Bundle:
        """Return the bundle of a name, the default one for None. Raises Refusal (404)."""
        if (name or self.default) not in self._bundles:
            raise Refusal(404, f"there is no model {name!r} here, only {', '.join(self._bundles)}.", "model", "model_not_found")
        return self._bundles[name or self.default]

    def name(self, name: str | None) -> str:
        """Return the name of a model, the default one's for None. Raises Refusal (404)."""
        self.bundle(name)
        return name or self.default

    @asynccontextmanager
    async def use(self, name: str | None) -> AsyncIterator[Loaded]:
        """Hold a model open, opening it if need be."""
        self.bundle(name)
        loaded = await self._get(name or self.default)
        loaded.users += 1
        try:
            yield loaded
        finally:
            loaded.users -= 1
            loaded.used = time.monotonic()

    async def close(self) -> None:
        """Close all."""
        for name in list(self._open):
            await self._close(name)

    async def _get(self, name: str) -> Loaded:
        async with self._opening:
            if (loaded := self._open.get(name)) is None:
                bundle = self._bundles[name]
                size = _size(bundle)
                await self._make_room(size)
                loaded = await asyncio.to_thread(self._load, name, bundle.root, size)
                self._open[name] = loaded
                loaded.watch = asyncio.create_task(loaded.look())
            loaded.used = time.monotonic()
            return loaded

    def _load(self, name: str, root: Path, size: int) -> Loaded:
        started = time.monotonic()
        loaded = Loaded(name, load(root, self._settings.device, threads=self._settings.threads), size)
        _measure(loaded)
        _LOG.info("model %s is open after %.1f s: %s", name, time.monotonic() - started, loaded.model)
        return loaded

    async def _make_room(self, size: int) -> None:
        """Close models that nobody uses until one of this size fits. Raises Refusal (503) if all are in use."""
        allowed = self._settings.memory_bytes
        while allowed is not None and self._open and sum(one.bytes for one in self._open.values()) + size > allowed:
            idle = [one for one in self._open.values() if not one.users]
            if not idle:
                raise Refusal(503, "the memory allowed is taken by models in use: ask again later.", "model", "model_busy", retry_s=30)
            await self._close(min(idle, key=lambda one: one.used).name)

    async def _close(self, name: str) -> None:
        loaded = self._open.pop(name)
        if loaded.watch is not None:
            loaded.watch.cancel()
            with suppress(asyncio.CancelledError):
                await loaded.watch
        await asyncio.to_thread(loaded.model.close)
        _LOG.info("model %s is closed", name)


def _size(bundle: Bundle) -> int:
    """Return the bytes of a bundle's files."""
    return sum(record.bytes for record in bundle.manifest.files.values())


def _measure(loaded: Loaded) -> None:
    """Make clips, so that graphs are open and the first request finds a pace to be judged by.

    Two that run together begin one after another, as those of listeners do: begun at once they would share every step.
    """
    model, capacity = loaded.model, loaded.capacity
    for _ in model.stream("music", seconds=1.0, plan="low_latency"):  # opens the graphs
        pass
    for count in (1, 2):
        capacity.look(model.activity)
        streams: list[Stream] = []
        for seed in range(count):
            streams.append(model.stream("music", seconds=_WARM_S, seed=seed, plan="low_latency", ahead_s=_WARM_S))
            for chunk in streams[-1]:
                capacity.look(model.activity)
                if chunk.start_s >= _WARM_S / count:
                    break
        for stream in streams:
            for _ in stream:
                capacity.look(model.activity)
        if count == 1:
            capacity.note_first(streams[0].timings["first_audio"], 0, 0)
    capacity.look(model.activity)
