"""A token transformer as lists of launches: a decode step, eight a layer, one for the logits, one for the token and what follows it; and
before it the prompt, several positions of every sequence at once.

In: a transformer's sizes, sequences of the batch, the type of weights. Out: `Step`, which buffers there are and which kernels run on them,
in order. Nothing here runs, compiles or needs Triton: `runtime/device` makes the lists where music is made, `compile.py` beside it compiles
what they name.

    self    connect + norm + product   -> queries, new key and value     attend, append   -> partial        merge + product   -> y
    cross   connect + norm + product   -> queries                        attend           -> partial        merge + product   -> y
    feed    connect + norm + product + gate   -> z                       norm + product   -> y
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .attention.constants import Parts
from .decoder_step.sizes import Sizes
from .geglu.constants import Inner
from .hyper_connection.constants import Mixing
from .launch import Launch, Step, power
from .lists import Batch, Builder
from .packing import beside, pitch_of, type_of

TILE = 4096  # elements of a product's tile over all its rows: 32 a thread
PROGRAMS = 264  # of a product, about: two for each of an H100's 132 processors; each repeats what comes before the product
KEYS = 8192  # elements of a tile of keys over all heads: 64 a thread
SPLITS = 16  # of a row's keys at most: a program has two tiles or more of a full cache
TILE_ROWS = 8  # of a product at once at most: what a list over positions of a prompt has, so that weights are read once for all of them


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


class _Builder(Builder):
    def __init__(self, sizes: Sizes, batch: Batch, weights: str, programs: int, positions: int = 0) -> None:
        super().__init__(sizes, batch, beside(weights), positions)
        self.programs, self.matrices = programs, weights
        self.tile_rows = min(power(self.rows), TILE_ROWS)
        self._side = 0  # which of the two buffers of streams was written last
        self._none = self.of_rows("no_branch", sizes.dim)  # zeros: nothing is to be added to the streams that a list begins with
        self._y = self._none

    def embedding(self) -> tuple[str, str, int, int]:
        sizes = self.sizes
        return self.buffer("rows", sizes.table_rows, sizes.dim, kind=self.kind), self._streams(0), sizes.dim, sizes.streams

    def layers(self) -> None:
        for layer in range(self.sizes.depth):
            self._self_attention(layer)
            if self.sizes.cross_attention:
                self._cross_attention(layer)
            self._feed_forward(layer)

    def logits(self, head: int) -> None:
        self._connected(f"head.{head}", "norm", None, self.sizes.vocabulary, "logits", bias=self.buffer("head.bias", self.sizes.vocabulary))

    def _self_attention(self, layer: int) -> None:
        sizes, name = self.sizes, f"layers.{layer}.attention"
        D, stride = sizes.cache_head_size, (sizes.heads + 2) * sizes.cache_head_size
        out = "projected.first" if layer == 0 else "projected"
        projected = self._connected(f"{name}.in", f"{name}.norm", f"layers.{layer}.0.connection", stride, out, normed=sizes.heads * D)
        first = self.of_rows("projected.first", stride)
        residual = sizes.value_residual and layer > 0
        keys, values = self.caches(layer)
        if self.in_prompt:
            buffers = dict(projected=projected, first=first, keys=keys, values=values, lengths=self.numbers("lengths"))
            numbers = dict(stride=stride, capacity=self.capacity, positions=self.positions)
            known = dict(H=sizes.heads, D=D, WIDTH=power(D), RESIDUAL=residual)
            self.step.launches.append(Launch(f"{name}.append", "append", (self.rows,), buffers | numbers, known))
        splits = min(SPLITS, -(-self.capacity // (2 * self._keys(D))))
        buffers = (projected, first, keys, values, self.numbers("lengths"))
        self._attend(name, buffers, stride, self.capacity, D, splits, True, residual)

    def _cross_attention(self, layer: int) -> None:
        sizes, name = self.sizes, f"layers.{layer}.cross_attention"
        D, wide = sizes.dim_head, sizes.heads * sizes.dim_head
        query = self._connected(f"{name}.in", f"{name}.norm", f"layers.{layer}.1.connection", wide, "query")
        shape = (self.batch.sequences, self.batch.context, D)
        context = [self.buffer(f"context.{layer}.{part}", *shape, kind=self.kind) for part in ("key", "value")]
        self._attend(name, (query, query, *context, self.numbers("context_lengths")), wide, self.batch.context, D, 1, False, False)

    def _feed_forward(self, layer: int) -> None:
        sizes, name = self.sizes, f"layers.{layer}.feed_forward"
        inner = self._connected(f"{name}.in", f"{name}.norm", f"layers.{layer}.2.connection", sizes.inner, "inner", gated=True)
        gains = (self.buffer(f"{name}.inner_norm.{part}", sizes.inner) for part in ("gain", "bias"))
        block = min(power(sizes.inner), max(64, 1024 // self.tile_rows))
        source = "measure", "read_normed", Inner(sizes.inner, block, True)
        self._product(f"{name}.out", source, (inner, *gains), sizes.inner, sizes.dim, "y", self._columns(sizes.dim))

    def _attend(
        self, name: str, buffers: tuple[str, ...], stride: int, capacity: int, D: int, splits: int, own: bool, residual: bool
    ) -> None:
        """And the product that merges its parts. own: self-attention."""
        sizes, H, entries = self.sizes, self.sizes.heads, max(self.sizes.bias_entries, 1)
        parts = self.of_rows(f"partial.{splits}.{D}", splits, H, D), self.of_rows(f"statistics.{splits}", splits, H, 2)
        coordinates = self.buffer("key_coordinates", self.batch.sequences, self.capacity, kind="int64")
        buffers += self.buffer("bias_table", H, entries), self.numbers("query_coordinates"), coordinates, *parts
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
        weights = [self.buffer(f"{connection}.{part}", *shape) if mixed else self._none for part, shape in mixing.items()]
        gains = [self.buffer(f"{norm}.{part}", sizes.dim) for part in ("gain", "bias")]
        betas = [self.of_rows(f"beta.{side}", sizes.streams) for side in (0, 1)]
        read, written = self._side, 1 - self._side
        raw = 1 << 30 if normed is None else normed // columns
        inputs = (self._streams(read), betas[read], self._y, *weights, *gains, self._streams(written), betas[written], raw)
        block = min(power(sizes.dim), max(64, 512 // self.tile_rows))
        known = Mixing(sizes.dim, sizes.streams, power(sizes.streams), block, mixed, keep, True)
        made = self._product(name, ("connect", "read_branch", known), inputs, sizes.dim, outputs, out, columns, gated, bias)
        self._side, self._y = written, self.of_rows("y", sizes.dim)
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
        pitch, outputs, made = pitch_of(K), N * (1 + gated), self.of_rows(out, N)
        weights = self.buffer(f"{name}.weight", outputs, pitch, kind=type_of(f"{name}.weight", self.matrices))
        group, scales = 0, self._none
        if self.matrices == "int8" and not name.startswith("head."):
            group = self.sizes.block
            scales = self.buffer(f"{name}.scales", outputs, -(-K // group))
        arguments = dict(inputs=inputs, weights=weights, scales=scales, bias=bias or self._none, out=made, rows=self.rows, N=N)
        block = min(power(K), max(64, TILE // self.tile_rows // columns // 2))
        known: dict[str, Any] = dict(zip(("prepare", "read", "sizes"), source, strict=True))
        known |= dict(K=K, PITCH=pitch, ROWS=self.tile_rows, COLUMNS=columns)
        known |= dict(BLOCK=block, GROUP=group, GATED=gated, BIASED=bias is not None)
        grid = (-(-N // columns), -(-self.rows // self.tile_rows))
        self.step.launches.append(Launch(name, "product", grid, arguments, known))
        return made

    def _keys(self, D: int) -> int:
        """Of the attention's tile."""
        return min(64, max(4, KEYS // (power(self.sizes.heads) * power(D))))

    def _columns(self, outputs: int) -> int:
        """4, 8 or 16 outputs a program, so that there are not many more than `programs` of them; head sizes are multiples of 8."""
        return next((columns for columns in (4, 8) if outputs <= columns * self.programs), 16)

    def _streams(self, side: int) -> str:
        return self.of_rows(f"streams.{side}", self.sizes.streams, self.sizes.dim)
