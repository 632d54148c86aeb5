"""Sequences of a native model, each in a slot of its own, that are sampled together: arrays and numbers in, tokens out.

`decoder_step.h` says what a sequence is. Everything that is handed over is copied there, but for a caller's own noise.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_int, c_int64, c_void_p

import numpy as np

from . import Model, interface

_NO_MEMORY = 4  # DS_NO_MEMORY
_REFUSED = "the native step does not take this sequence: "


class Slots:
    """One thread at a time uses it."""

    def __init__(self, model: Model) -> None:
        """Raises MemoryError."""
        self._handle: int | None = None
        self._model, self._library = model, interface.library()  # the model must outlive the handle
        self._error = ctypes.create_string_buffer(200)
        self._tokens, self._done = np.empty(1024, np.int64), c_int()
        self._handle = self._library.ds_batch_create(model.pool.handle, model.handle)
        if not self._handle:
            raise MemoryError("not enough memory for a batch")

    @property
    def handle(self) -> int:
        """The library's batch. Raises ValueError after `close`."""
        if not self._handle:
            raise ValueError("the batch is closed.")
        return self._handle

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Free all memory; the batch can do nothing more."""
        handle, self._handle = getattr(self, "_handle", None), None
        if handle:
            self._library.ds_batch_free(handle)

    def join(
        self,
        *,
        ids: np.ndarray,
        query: np.ndarray,
        key: np.ndarray,
        context_keys: Sequence[np.ndarray],
        context_values: Sequence[np.ndarray],
        prefix: np.ndarray | None,
        guided: bool,
        rules: Sequence[int],
        known: int,
        in_frames: int,
        steps: int,
        seed: int,
        item: int,
        first: int,
        temperature: float,
        scale: float,
        position_ids: np.ndarray | None = None,
    ) -> int:
        """Return the id of a sequence that has a slot from now on.

        ids, query, key: of the prompt, int64 [n], rows of the table of embeddings and coordinates. context_keys, context_values: float32
        [dim_head, C] and [C, dim_head] per layer, whose entry 0 is that of no condition. prefix: float32 [P, dim]. rules: the integers of
        `ds_rules`. position_ids: int64 [n + steps - 1], rows of the table of absolute positions, for the prompt and for every sampled token
        that is fed; None in a model without. Raises ValueError for what the model does not take, MemoryError if the caches do not fit;
        nothing has changed then.
        """
        sizes, n = self._model.sizes, len(ids)
        layers = sizes.depth * sizes.cross_attention
        if (len(context_keys), len(context_values)) != (layers, layers):
            raise ValueError(f"{_REFUSED}it needs a context of {layers} layers, got {len(context_keys)} and {len(context_values)}")
        C = len(context_values[0]) if layers else 0
        P = 0 if prefix is None else len(prefix)
        places = _addresses((ids, query, key), np.dtype(np.int64), (n,))
        keys = _addresses(context_keys, np.dtype(np.float32), (sizes.dim_head, C))
        values = _addresses(context_values, np.dtype(np.float32), (C, sizes.dim_head))
        tables = [(c_void_p * layers)(*addresses) for addresses in (keys, values)]
        prefix_at = None if prefix is None else _addresses([prefix], np.dtype(np.float32), (P, sizes.dim))[0]
        numbered = None if position_ids is None else _addresses([position_ids], np.dtype(np.int64), (n + steps - 1,))[0]
        integers = (c_int64 * interface.RULES)(*rules)
        given = interface.Sequence(
            n, *places, C, *tables, P, prefix_at, guided, integers, known, in_frames, steps, seed, item, first, temperature, scale, numbered
        )
        found = self._library.ds_batch_join(self.handle, ctypes.byref(given), self._error, len(self._error))
        if not found:
            raise interface.refusal(self._error.value.decode(), _REFUSED)
        return found

    def advance(self, frames: int, positions: int) -> None:
        """Feed at most `positions` positions of prompts, then sample `frames` frames. Raises MemoryError."""
        status = self._library.ds_batch_advance(self.handle, frames, positions)
        if status == _NO_MEMORY:
            raise MemoryError("not enough memory for the threads of a step")
        if status:
            raise ValueError(f"frames and positions must be 0 or more, got {frames} and {positions}")

    def interrupt(self) -> None:
        """Make the `advance` that runs in another thread, or else the next one, return after a frame."""
        if handle := self._handle:
            self._library.ds_batch_interrupt(handle)

    @property
    def waiting(self) -> int:
        """Positions of prompts that have not been fed."""
        return self._library.ds_batch_waiting(self.handle)

    @property
    def computed(self) -> int:
        """Positions of prompts that were computed so far; those of equal prompts are copied."""
        return self._library.ds_batch_computed(self.handle)

    def collect(self, sequence: int) -> tuple[np.ndarray, bool]:
        """Return the tokens since the last call, int64 [n], and whether the sequence is done."""
        parts = []
        while not parts or len(parts[-1]) == len(self._tokens):
            count = self._library.ds_batch_collect(self.handle, sequence, self._tokens.ctypes.data, len(self._tokens), self._done)
            parts.append(self._tokens[: max(count, 0)].copy())
        return np.concatenate(parts) if len(parts) > 1 else parts[0], bool(self._done.value)

    def leave(self, sequence: int) -> None:
        """Free a sequence's slots."""
        self._library.ds_batch_leave(self.handle, sequence)

    def sampled(self, sequence: int) -> int | None:
        """Return how many tokens of a sequence have been sampled. None if its prompt has not been fed, or it is done."""
        count = self._library.ds_batch_sampled(self.handle, sequence)
        return None if count < 0 else count

    def set_noise(self, sequence: int, noise: np.ndarray) -> None:
        """Set the noise of the next `advance`, float32 [frames * outputs, V] that must live until then, in place of the seeded noise."""
        (address,) = _addresses([noise], np.dtype(np.float32), (len(noise), self._model.sizes.vocabulary))
        self._library.ds_batch_noise(self.handle, sequence, address)

    def logits(self, sequence: int, guided: bool) -> np.ndarray:
        """Return the logits of a sequence's last frame, float32 [outputs, 1, V], or [outputs, 2, V] with the pass without condition
        last."""
        logits = np.empty((self._model.sizes.outputs, 1 + guided, self._model.sizes.vocabulary), np.float32)
        self._library.ds_batch_logits(self.handle, sequence, logits.ctypes.data)
        return logits


def _addresses(arrays: Sequence[np.ndarray], dtype: np.dtype, shape: tuple[int, ...]) -> list[int]:
    for array in arrays:
        if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
            raise ValueError(f"{_REFUSED}it needs {dtype} {list(shape)} in C's order, got {array.dtype} {list(array.shape)}")
    return [array.ctypes.data for array in arrays]
