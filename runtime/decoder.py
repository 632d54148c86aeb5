"""One token transformer at work: a preallocated KV cache, one prefill, then one call per token, nothing copied or rebound.

In: a stage's graphs, positions (`runtime.stages`), conditioning. Out: logits. It does not know what tokens mean or how they are sampled.
Both are computed by the stage's graph or by a native model (kernels/decoder_step); either goes on from the caches that the other left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..kernels.decoder_step import Model, Run
from .bundle import Decoder
from .memory import POSITIONS_AT_ONCE, prefill_rows
from .ort import import_onnxruntime
from .stages import PREFIX_KEY, Positions

if TYPE_CHECKING:
    import onnxruntime as ort


class DecoderRun:
    """One request in one stage: B rows, each with its own length; caches float32 [B, 1, capacity, D] per layer, written in place."""

    def __init__(
        self,
        transformer: ort.InferenceSession | Model,
        decoder: Decoder,
        context: dict[str, np.ndarray],
        rows: int,
        capacity: int,
        conditions: np.ndarray | None = None,
    ) -> None:
        """transformer: the stage's graph, or a native model with its weights.

        context: the outputs of the stage's context graph, one entry per row; a row without condition has only null entries. conditions:
        int64 [rows], the same number for rows whose context is the same; of such rows those that have the same prompt are prefilled once.
        All differ by default.
        """
        self._decoder, self._prefix = decoder, context.get("prefix_embeddings")
        self._context = context if self._prefix is None else {}  # that every step reads: a prefix stands in the caches after the prefill
        self._conditions = np.arange(rows) if conditions is None else conditions
        self._capacity = capacity
        shape = (rows, 1, capacity, decoder.cache_head_size)
        self._caches = {f"{layer}.{part}": _aligned_zeros(shape) for layer in range(decoder.depth) for part in ("key", "value")}
        self._lengths = np.zeros(rows, np.int64)
        self._key_coordinates = np.zeros((rows, capacity), np.int64)
        self._logits = np.empty((rows, decoder.vocabulary), np.float32)
        self._seqlens = np.zeros(rows, np.int32)
        self._total = np.zeros(1, np.int32)
        self._head = np.zeros(1, np.int64)
        self._row_ids = np.zeros((rows, 1), np.int64)
        self._query_coordinates = np.zeros((rows, 1), np.int64)
        self._every_row = np.arange(rows)
        self.compute_with(transformer)

    def compute_with(self, transformer: ort.InferenceSession | Model) -> None:
        """What computes from here on."""
        self._native, self._session = (transformer, None) if isinstance(transformer, Model) else (None, transformer)
        self._step_binding: ort.IOBinding | None = None
        self._native_run: Run | None = None

    def prefill(self, prompts: list[Positions], head: int, without_prefix: int = 0) -> np.ndarray:
        """Feed every row's prompt, in one call or, where they are long, in several of some rows each. Returns logits [B, V].

        The last `without_prefix` rows leave a conditioning prefix out.
        """
        assert not self._lengths.any(), "prefill comes first, once"
        prefix, conditioned = self._prefix, len(prompts) - without_prefix
        if prefix is not None:
            C = prefix.shape[1]
            before = Positions(np.zeros(C, np.int64), np.zeros(C, np.int64), np.full(C, PREFIX_KEY))
            prompts = [Positions.join(before, prompt) if row < conditioned else prompt for row, prompt in enumerate(prompts)]
        # rows that differ are computed at the front of the caches, then copied to where they belong
        distinct, place_of = distinct_prompts(prompts, self._conditions)
        for place, row in enumerate(distinct):
            n = len(prompts[row].rows)
            self._advance(place, n)
            self._key_coordinates[place, :n] = prompts[row].key
        told = [0 if prefix is None or row >= conditioned else prefix.shape[1] for row in distinct]  # positions of a prefix
        prefill = self._prefill_by_graph if self._native is None else self._prefill_native
        prefill(head, distinct, [prompts[row] for row in distinct], told)
        for row in reversed(self._every_row):  # from behind: a row's place is never behind the row
            if (place := place_of[row]) != row:
                n = self._lengths[row] = self._lengths[place]
                for array in self._caches.values():
                    array[row, 0, :n] = array[place, 0, :n]
                self._key_coordinates[row], self._logits[row] = self._key_coordinates[place], self._logits[place]
        return self._logits

    def _prefill_by_graph(self, head: int, distinct: list[int], prompts: list[Positions], told: list[int]) -> None:
        prefix, S = self._prefix, max(len(prompt.rows) for prompt in prompts)
        row_ids, query_coordinates = np.zeros((2, len(distinct), S), np.int64)
        for place, prompt in enumerate(prompts):
            n = len(prompt.rows)
            row_ids[place, :n], query_coordinates[place, :n] = prompt.rows, prompt.query
        masks = ()
        if prefix is not None:
            masks = np.zeros((len(distinct), S, 1), bool), np.zeros((len(distinct), S, prefix.shape[2]), np.float32)
            for place, (row, C) in enumerate(zip(distinct, told, strict=True)):
                if C:
                    masks[0][place, :C], masks[1][place, :C] = True, prefix[row]
        at_once = prefill_rows(self._decoder, S)
        for first in range(0, len(distinct), at_once):
            rows = slice(first, min(first + at_once, len(distinct)))
            longest = self._lengths[rows].max()  # the operator takes no more positions than the longest of its rows has
            own = (np.ascontiguousarray(array[rows, :longest]) for array in (row_ids, query_coordinates, *masks))
            context = {name: array[distinct[rows]] for name, array in self._context.items()}
            lengths = np.minimum(np.arange(1, longest + 1), self._lengths[rows, None])
            self._run(self._bind(rows, context, lengths, *own), head, rows)

    def _prefill_native(self, head: int, distinct: list[int], prompts: list[Positions], told: list[int]) -> None:
        """The positions of all prompts one after the other, some of them at once: each is a row that attends to those before it."""
        assert self._native is not None
        lengths = self._lengths[: len(distinct)].copy()
        sequence, position = np.repeat(np.arange(len(distinct)), lengths), np.concatenate([np.arange(n) for n in lengths])
        fed = Positions.join(*prompts)
        if (prefix := self._prefix) is not None:
            of_prefix = position < np.array(told)[sequence]
            numbers = self._native.sizes.table_rows + np.repeat(distinct, lengths) * prefix.shape[1] + position
            fed = Positions(np.where(of_prefix, numbers, fed.rows), fed.query, fed.key)
        rows = min(len(position), POSITIONS_AT_ONCE)
        arrays, logits = list(np.zeros((4, rows), np.int64)), np.empty((rows, self._decoder.vocabulary), np.float32)
        context = {name: array[distinct] for name, array in self._context.items()}
        run = self._bind_native(self._native, slice(0, len(distinct)), arrays, logits, context, prefix)
        for first in range(0, len(position), rows):
            part = slice(first, min(first + rows, len(position)))
            count = part.stop - first
            for array, numbers in zip(arrays, (sequence, fed.rows, fed.query, position + 1), strict=True):
                array[:count] = numbers[part]
            ends = np.flatnonzero(position[part] + 1 == lengths[sequence[part]])
            run.step(head if len(ends) else None, count)
            self._logits[sequence[part][ends]] = logits[ends]

    def keep(self, rows: np.ndarray) -> None:
        """Go on with these rows alone, bool [B], in their order: the others cost nothing any more."""
        self._context = {name: array[rows] for name, array in self._context.items()}
        for name, cache in self._caches.items():
            kept = _aligned_zeros((int(np.count_nonzero(rows)), *cache.shape[1:]))
            self._caches[name] = np.compress(rows, cache, axis=0, out=kept)
        for name in ("_lengths", "_key_coordinates", "_logits", "_seqlens", "_row_ids", "_query_coordinates"):
            setattr(self, name, getattr(self, name)[rows])
        self._every_row = np.arange(len(self._lengths))
        self._step_binding = self._native_run = None  # they hold the arrays that were

    def step(self, positions: Positions, head: int, growing: np.ndarray | None = None) -> np.ndarray:
        """Feed one position per row. Returns logits [B, V], valid until the next call.

        growing: bool [B], all by default; another row has what it needs: its last position is overwritten and its logits mean nothing.
        """
        self._row_ids[:, 0], self._query_coordinates[:, 0] = positions.rows, positions.query
        self._advance(slice(None), 1 if growing is None else growing)
        self._key_coordinates[self._every_row, self._lengths - 1] = positions.key
        if self._native is not None:
            if self._native_run is None:
                rows = self._row_ids[:, 0], self._query_coordinates[:, 0], self._lengths
                self._native_run = self._bind_native(self._native, slice(None), (self._every_row, *rows), self._logits, self._context)
            self._native_run.step(head)
            return self._logits
        if self._step_binding is None:
            masks = ()
            if self._prefix is not None:
                rows = len(self._lengths)
                masks = np.zeros((rows, 1, 1), bool), np.zeros((rows, 1, self._decoder.dim), np.float32)
            lengths = self._lengths[:, None]
            self._step_binding = self._bind(slice(None), self._context, lengths, self._row_ids, self._query_coordinates, *masks)
        self._run(self._step_binding, head, slice(None))
        return self._logits

    def _bind_native(
        self,
        model: Model,
        sequences: slice,
        rows: Sequence[np.ndarray],
        logits: np.ndarray,
        context: dict[str, np.ndarray],
        prefix: np.ndarray | None = None,
    ) -> Run:
        """rows: int64 [B] each, the sequence, number, query coordinate and length of every row."""

        def layers(arrays: dict[str, np.ndarray], name: str) -> list[np.ndarray]:
            return [arrays[one] for one in (name.format(layer) for layer in range(self._decoder.depth)) if one in arrays]

        caches = {name: cache[sequences] for name, cache in self._caches.items()}
        context = {name: np.ascontiguousarray(array) for name, array in context.items()}
        return Run(
            model,
            **dict(zip(("sequence_ids", "row_ids", "query_coordinates", "lengths"), rows, strict=True)),
            key_coordinates=self._key_coordinates[sequences],
            keys=layers(caches, "{}.key"),
            values=layers(caches, "{}.value"),
            context_keys=layers(context, "context.{}.key"),
            context_values=layers(context, "context.{}.value"),
            logits=logits,
            prefix=None if prefix is None else np.ascontiguousarray(prefix.reshape(-1, prefix.shape[2])),
        )

    def _advance(self, rows: int | slice, positions: int | np.ndarray) -> None:
        self._lengths[rows] += positions
        if self._lengths.max() > self._capacity:
            raise RuntimeError(f"the cache holds {self._capacity} positions, {self._lengths.max()} were asked for")

    def _bind(
        self,
        rows: slice,
        context: dict[str, np.ndarray],
        lengths: np.ndarray,
        row_ids: np.ndarray,
        query: np.ndarray,
        prefix_mask: np.ndarray | None = None,
        prefix: np.ndarray | None = None,
    ) -> ort.IOBinding:
        """Bind the positions and the context of these rows, and what else they have, once; later calls only write into the arrays."""
        assert self._session is not None
        share = import_onnxruntime().OrtValue.ortvalue_from_numpy  # on the CPU the value and the array are the same memory
        binding = self._session.io_binding()
        inputs = {"row_ids": row_ids, "seqlens_k": self._seqlens[rows], "total_sequence_length": self._total, **context}
        inputs |= {"lengths": lengths, "head": self._head}
        inputs |= {"query_coordinates": query, "key_coordinates": self._key_coordinates[rows]}
        if prefix_mask is not None and prefix is not None:
            inputs |= {"prefix_mask": prefix_mask, "prefix_embeddings": prefix}
        taken = {value.name for value in self._session.get_inputs()}  # one head is not chosen, lengths are told in one of two ways
        for name in inputs.keys() & taken:
            binding.bind_ortvalue_input(name, share(inputs[name]))
        for name, array in self._caches.items():
            cache = share(array[rows])
            binding.bind_ortvalue_input(f"past_key_values.{name}", cache)
            binding.bind_ortvalue_output(f"present.{name}", cache)
        binding.bind_ortvalue_output("logits", share(self._logits[rows]))
        return binding

    def _run(self, binding: ort.IOBinding, head: int, rows: slice) -> None:
        self._seqlens[rows] = self._lengths[rows] - 1
        self._total[0] = self._lengths[rows].max()
        self._head[0] = head
        assert self._session is not None
        self._session.run_with_iobinding(binding)


def distinct_prompts(prompts: list[Positions], conditions: np.ndarray) -> tuple[list[int], list[int]]:
    """Return the first row of each prompt under each condition, and for every row its place among them."""
    places: dict[tuple[int, bytes], int] = {}
    distinct, place_of = [], []
    for row, (prompt, condition) in enumerate(zip(prompts, conditions.tolist(), strict=True)):
        key = condition, np.stack([prompt.rows, prompt.query, prompt.key]).tobytes()
        if key not in places:
            places[key] = len(distinct)
            distinct.append(row)
        place_of.append(places[key])
    return distinct, place_of


def _aligned_zeros(shape: tuple[int, ...]) -> np.ndarray:
    """float32 that begins with a cache line, as numpy's own do not: a wide load across two lines takes twice the time."""
    count = math.prod(shape)
    memory = np.zeros(count + 16, np.float32)
    first = -memory.ctypes.data % 64 // 4
    return memory[first : first + count].reshape(shape)
