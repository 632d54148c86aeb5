"""A token transformer as lists of launches: a decode step, eight a layer, one for the logits, one for the token and what follows it; and
before it the prompt, several positions of every sequence at once.

In: a transformer's sizes, sequences of the batch, the type of weights and caches. Out: `Step`, which buffers there are and which kernels
run on them, in order. Nothing here runs, compiles or needs Triton: `runtime/device` makes the lists where music is made, `compile.py`
beside it compiles what they name.

    self    connect + norm + product   -> queries, new key and value     attend, append   -> partial        merge + product   -> y
    cross   connect + norm + product   -> queries                        attend           -> partial        merge + product   -> y
    feed    connect + norm + product + gate   -> z                       norm + product   -> y
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .attention.constants import Parts
from .decoder_step.sizes import Sizes
from .geglu.constants import Inner
from .hyper_connection.constants import Mixing
from .launch import Launch, Step, power
from .packing import pitch_of
from .sampling.constants import PLAN, STATE, Draw

TILE = 4096  # elements of a product's tile over all its rows: 32 a thread
PROGRAMS = 264  # of a product, about: two for each of an H100's 132 processors; each repeats what comes before the product
KEYS = 8192  # elements of a tile of keys over all heads: 64 a thread
SPLITS = 16  # of a row's keys at most: a program has two tiles or more of a full cache
TILE_ROWS = 8  # of a product at once at most: what a list over positions of a prompt has, so that weights are read once for all of them


@dataclass(frozen=True)
class Batch:
    """Of a run: what its caches are as large as."""

    sequences: int  # copies without condition included
    capacity: int
    context: int  # keys of the cross-attention
    prefix: int = 0  # keys of a sequence's conditioning prefix


def build_step(sizes: Sizes, batch: Batch, weights: str, sampling: Mapping[str, Any], head: int = 0, programs: int = PROGRAMS) -> Step:
    """One token of every sequence: what `sample` or `begin` left is run through the layers and the output projection `head`.

    sampling: the arguments of `sample` that are numbers, with `copies` and, for `place`, a `Place`. programs: of a product, about.
    """
    builder = _Builder(sizes, batch, weights, programs)
    builder.layers()
    builder.logits(head)
    builder.sample(dict(sampling))
    return builder.step


def build_prompt(sizes: Sizes, batch: Batch, weights: str, programs: int = PROGRAMS) -> Step:
    """The next `positions_at_once` positions of every sequence's prompt: their keys and values, no logits.

    Its buffers that have a row for every position are named `prompt.`; `prompt.ids` and `prompt.coordinates` hold whole prompts.
    """
    builder = _Builder(sizes, batch, weights, programs, positions_at_once(batch.sequences))
    builder.embed()
    builder.layers()
    return builder.step


def build_begin(sizes: Sizes, batch: Batch, weights: str, programs: int = PROGRAMS) -> Step:
    """The last position of every prompt, into the buffers that a step begins with."""
    builder = _Builder(sizes, batch, weights, programs)
    builder.embed()
    return builder.step


def positions_at_once(sequences: int) -> int:
    """How many positions of each sequence a list over a prompt has. A cache holds so many less one more than the longest sequence has: the
    last round goes on for all of them."""
    return 1 << max(TILE_ROWS // sequences, 1).bit_length() - 1


def build_prefix(sizes: Sizes, batch: Batch, weights: str, copies: int) -> Step:
    """Keys and values of the conditioning prefixes, of the first of `copies` copies of every sequence, to where its positions begin.

    They are the same whatever follows: `prefix.<layer>`, float32 [sequences / copies * prefix, 2 * D], holds each position's key and value.
    """
    builder = _Builder(sizes, batch, weights, 1, batch.prefix)
    builder.prefix(batch.sequences // copies * batch.prefix)
    return builder.step


class _Builder:
    def __init__(self, sizes: Sizes, batch: Batch, weights: str, programs: int, positions: int = 0) -> None:
        """positions: of each sequence at once, in a list over prompts; 0: one, the last, in a list that ends with a token."""
        self.sizes, self.batch, self.weights, self.programs = sizes, batch, weights, programs
        self.in_prompt, self.positions = positions > 0, max(positions, 1)
        self.rows, self.capacity = batch.sequences * self.positions, batch.capacity
        self.step = Step()
        self.tile_rows = min(power(self.rows), TILE_ROWS)
        self._side = 0  # which of the two buffers of streams was written last
        self._none = self._of_rows("no_branch", sizes.dim)  # zeros: nothing is to be added to the streams that a list begins with
        self._y = self._none

    def embed(self) -> None:
        sizes, prompts = self.sizes, (self.batch.sequences, self.capacity)
        arguments = dict(table=self._table(), ids=self._buffer("prompt.ids", *prompts, kind="int64"))
        arguments |= dict(coordinates=self._buffer("prompt.coordinates", *prompts, kind="int64"), lengths=self._lengths("lengths"))
        arguments |= dict(query_coordinates=self._lengths("query_coordinates"), streams=self._streams(0))
        arguments |= dict(capacity=self.capacity, positions=self.positions)
        known = dict(DIM=sizes.dim, STREAMS=sizes.streams, BLOCK=min(power(sizes.dim), 1024))
        self.step.launches.append(Launch("embed", "embed", (self.rows,), arguments, known))

    def prefix(self, rows: int) -> None:
        D = self.sizes.cache_head_size
        lengths = self._buffer("prefix.lengths", rows, kind="int64")
        for layer in range(self.sizes.depth):
            told, (keys, values) = self._buffer(f"prefix.{layer}", rows, 2 * D), self._caches(layer)
            buffers = dict(projected=told, first=told, keys=keys, values=values, lengths=lengths)
            numbers = dict(stride=2 * D, capacity=self.capacity, positions=self.batch.prefix)
            known = dict(H=0, D=D, WIDTH=power(D), RESIDUAL=False)
            self.step.launches.append(Launch(f"layers.{layer}.prefix", "append", (rows,), buffers | numbers, known))

    def layers(self) -> None:
        for layer in range(self.sizes.depth):
            self._self_attention(layer)
            if self.sizes.cross_attention:
                self._cross_attention(layer)
            self._feed_forward(layer)

    def logits(self, head: int) -> None:
        self._connected(
            f"head.{head}", "norm", None, self.sizes.vocabulary, "logits", bias=self._buffer("head.bias", self.sizes.vocabulary)
        )

    def sample(self, sampling: dict[str, Any]) -> None:
        sizes, copies = self.sizes, sampling.pop("copies")
        B = self.rows // copies
        plans, states = self._buffer("plans", B, PLAN, kind="int64"), self._buffer("states", B, STATE, kind="int64")
        tokens = self._buffer("tokens", B, sampling["total"], kind="int64")
        arguments = dict(logits="logits", plans=plans, states=states, tokens=tokens, table=self._table(), lengths="lengths")
        arguments |= dict(query_coordinates="query_coordinates", key_coordinates="key_coordinates", streams=self._streams(0))
        arguments |= dict(B=B, capacity=self.capacity) | sampling
        block = min(power(sizes.dim), 1024)
        known = Draw(sizes.vocabulary, power(-(-sizes.vocabulary // 4)), copies, sizes.dim, sizes.streams, block)
        self.step.launches.append(Launch("sample", "sample", (B,), arguments, {"sizes": known}))

    def _self_attention(self, layer: int) -> None:
        sizes, name = self.sizes, f"layers.{layer}.attention"
        D, stride = sizes.cache_head_size, (sizes.heads + 2) * sizes.cache_head_size
        out = "projected.first" if layer == 0 else "projected"
        projected = self._connected(f"{name}.in", f"{name}.norm", f"layers.{layer}.0.connection", stride, out, normed=sizes.heads * D)
        first = self._of_rows("projected.first", stride)
        residual = sizes.value_residual and layer > 0
        keys, values = self._caches(layer)
        if self.in_prompt:
            buffers = dict(projected=projected, first=first, keys=keys, values=values, lengths=self._lengths("lengths"))
            numbers = dict(stride=stride, capacity=self.capacity, positions=self.positions)
            known = dict(H=sizes.heads, D=D, WIDTH=power(D), RESIDUAL=residual)
            self.step.launches.append(Launch(f"{name}.append", "append", (self.rows,), buffers | numbers, known))
        splits = min(SPLITS, -(-self.capacity // (2 * self._keys(D))))
        buffers = (projected, first, keys, values, self._lengths("lengths"))
        self._attend(name, buffers, stride, self.capacity, D, splits, True, residual)

    def _cross_attention(self, layer: int) -> None:
        sizes, name = self.sizes, f"layers.{layer}.cross_attention"
        D, wide = sizes.dim_head, sizes.heads * sizes.dim_head
        query = self._connected(f"{name}.in", f"{name}.norm", f"layers.{layer}.1.connection", wide, "query")
        shape = (self.batch.sequences, self.batch.context, D)
        context = [self._buffer(f"context.{layer}.{part}", *shape, kind=self.weights) for part in ("key", "value")]
        self._attend(name, (query, query, *context, self._lengths("context_lengths")), wide, self.batch.context, D, 1, False, False)

    def _feed_forward(self, layer: int) -> None:
        sizes, name = self.sizes, f"layers.{layer}.feed_forward"
        inner = self._connected(f"{name}.in", f"{name}.norm", f"layers.{layer}.2.connection", sizes.inner, "inner", gated=True)
        gains = (self._buffer(f"{name}.inner_norm.{part}", sizes.inner) for part in ("gain", "bias"))
        block = min(power(sizes.inner), max(64, 1024 // self.tile_rows))
        source = "measure", "read_normed", Inner(sizes.inner, block, True)
        self._product(f"{name}.out", source, (inner, *gains), sizes.inner, sizes.dim, "y", self._columns(sizes.dim))

    def _attend(
        self, name: str, buffers: tuple[str, ...], stride: int, capacity: int, D: int, splits: int, own: bool, residual: bool
    ) -> None:
        """And the product that merges its parts. own: self-attention."""
        sizes, H, entries = self.sizes, self.sizes.heads, max(self.sizes.bias_entries, 1)
        parts = self._of_rows(f"partial.{splits}.{D}", splits, H, D), self._of_rows(f"statistics.{splits}", splits, H, 2)
        coordinates = self._buffer("key_coordinates", self.batch.sequences, self.capacity, kind="int64")
        buffers += self._buffer("bias_table", H, entries), self._lengths("query_coordinates"), coordinates, *parts
        parameters = ("projected", "first", "keys", "values", "lengths", "table", "query_coordinates", "key_coordinates")
        arguments: dict[str, Any] = dict(zip((*parameters, "partial", "statistics"), buffers, strict=True))
        scale = sizes.dim_head**-0.5 if own else 1.0  # the keys of a context come scaled
        arguments |= dict(stride=stride, capacity=capacity, entries=entries, positions=self.positions, scale=scale)
        constants = dict(H=H, D=D, HEADS=power(H), WIDTH=power(D), BLOCK=self._keys(D), SPLITS=splits)
        append = own and not self.in_prompt
        constants |= dict(APPEND=append, BIASED=own and sizes.bias_entries > 0, RESIDUAL=append and residual)
        self.step.launches.append(Launch(f"{name}.attend", "attend", (self.rows, splits), arguments, constants))
        source = "nothing", "merge", Parts(H, D, splits)
        self._product(f"{name}.out", source, parts, H * D, sizes.dim, "y", self._columns(sizes.dim))

    def _connected(
        self,
        name: str,
        norm: str,
        connection: str | None,
        outputs: int,
        out: str,
        normed: int | None = None,
        gated: bool = False,
        bias: str | None = None,
    ) -> str:
        """The depth of the branch before, the width of this one, its norm, its first product, whose buffer is returned.

        connection: None for what reads the sum of the streams and hands none on; normed: how many outputs read the normed, if not all.
        """
        sizes, columns = self.sizes, self._columns(outputs)
        if normed is not None and normed % columns:
            columns = 8  # as the head size of a cache is a multiple of
        mixed, keep = connection is not None and sizes.streams > 1, connection is not None
        mixing = {"dynamic": (sizes.streams + 2, sizes.dim), "scale": (sizes.streams + 2,), "static": (sizes.streams, sizes.streams + 2)}
        weights = [self._buffer(f"{connection}.{part}", *shape) if mixed else self._none for part, shape in mixing.items()]
        gains = [self._buffer(f"{norm}.{part}", sizes.dim) for part in ("gain", "bias")]
        betas = [self._of_rows(f"beta.{side}", sizes.streams) for side in (0, 1)]
        read, written = self._side, 1 - self._side
        raw = 1 << 30 if normed is None else normed // columns
        inputs = (self._streams(read), betas[read], self._y, *weights, *gains, self._streams(written), betas[written], raw)
        block = min(power(sizes.dim), max(64, 512 // self.tile_rows))
        known = Mixing(sizes.dim, sizes.streams, power(sizes.streams), block, mixed, keep, True)
        made = self._product(name, ("connect", "read_branch", known), inputs, sizes.dim, outputs, out, columns, gated, bias)
        self._side, self._y = written, self._of_rows("y", sizes.dim)
        return made

    def _product(
        self,
        name: str,
        source: tuple[str, str, Any],
        inputs: tuple[str | int, ...],
        K: int,
        N: int,
        out: str,
        columns: int,
        gated: bool = False,
        bias: str | None = None,
    ) -> str:
        pitch = pitch_of(K)
        weights, made = self._buffer(f"{name}.weight", N * (1 + gated), pitch, kind=self.weights), self._of_rows(out, N)
        arguments = dict(inputs=inputs, weights=weights, scales=self._none, bias=bias or self._none, out=made, rows=self.rows, N=N)
        block = min(power(K), max(64, TILE // self.tile_rows // columns // 2))
        known: dict[str, Any] = dict(zip(("prepare", "read", "sizes"), source, strict=True))
        known |= dict(K=K, PITCH=pitch, ROWS=self.tile_rows, COLUMNS=columns)
        known |= dict(BLOCK=block, GROUP=0, GATED=gated, BIASED=bias is not None)
        grid = (-(-N // columns), -(-self.rows // self.tile_rows))
        self.step.launches.append(Launch(name, "product", grid, arguments, known))
        return made

    def _keys(self, D: int) -> int:
        """Of the attention's tile."""
        return min(64, max(4, KEYS // (power(self.sizes.heads) * power(D))))

    def _columns(self, outputs: int) -> int:
        """4, 8 or 16 outputs a program, so that there are not many more than `programs` of them; head sizes are multiples of 8."""
        return next((columns for columns in (4, 8) if outputs <= columns * self.programs), 16)

    def _table(self) -> str:
        return self._buffer("rows", self.sizes.table_rows, self.sizes.dim, kind=self.weights)

    def _streams(self, side: int) -> str:
        return self._of_rows(f"streams.{side}", self.sizes.streams, self.sizes.dim)

    def _caches(self, layer: int) -> list[str]:
        shape = (self.batch.sequences, self.capacity, self.sizes.cache_head_size)
        return [self._buffer(f"{layer}.{part}", *shape, kind=self.weights) for part in ("key", "value")]

    def _lengths(self, name: str) -> str:
        return self._of_rows(name, kind="int64")

    def _of_rows(self, name: str, *shape: int, kind: str = "fp32") -> str:
        """A buffer with an entry for each row of the list."""
        return self._buffer(f"prompt.{name}" if self.in_prompt else name, self.rows, *shape, kind=kind)

    def _buffer(self, name: str, *shape: int, kind: str = "fp32") -> str:
        found = self.step.buffers.setdefault(name, (kind, shape))
        assert found == (kind, shape), (name, found, kind, shape)
        return name
