"""A token transformer as lists of launches: a decode step, eleven a layer, two for the logits, one for the token and what follows it; and
before it the prompt, several positions of every sequence at once.

In: a transformer's sizes, sequences of the batch, the type of weights. Out: `Step`, which buffers there are and which kernels run on them,
in order. Nothing here runs, compiles or needs Triton: `runtime/device` makes the lists where music is made, `compile.py` beside it compiles
what they name.

    self    connect + norm    product -> queries, new key and value    attend, append -> partial    merge + product -> y
    cross   connect + norm    product -> queries                       attend         -> partial    merge + product -> y
    feed    connect + norm    product + gate -> z                      norm + product -> y
"""

from __future__ import annotations

from typing import Any

from .attention.constants import Parts
from .decoder_step.sizes import Sizes
from .geglu.constants import Inner
from .hyper_connection.constants import Mixing
from .launch import BYTES, Launch, Step, power
from .lists import Batch, Builder
from .packing import beside, pitch_of, type_of

HELD = 384  # bytes of weights and inputs that a thread of a product holds at most: 96 of its 255 registers
PROGRAMS = 352  # of a product at most, if sixteen outputs are not enough for that: an H200 has 132 processors
KEYS = 4096  # elements of a tile of keys: 32 a thread
ATTENDING = 128  # programs of an attention, about, if there are keys for them: rows times heads times parts of a row's keys
SPLITS = 8, 2  # parts of a row's keys, if not one: the product that reads them goes over all of them
TILE_ROWS = 8  # of a product at once at most: what a list over positions of a prompt has, so that weights are read once for all of them


def build_step(sizes: Sizes, batch: Batch, weights: str, copies: int, head: int = 0, programs: int = PROGRAMS) -> Step:
    """One token of every sequence: what `sample` or `begin` left is run through the layers and the output projection `head`.

    copies: 2 with guidance. programs: of a product, about.
    """
    builder = _Builder(sizes, batch, weights, programs)
    builder.layers()
    builder.logits(head)
    builder.sample(copies)
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
        self._y = self.of_rows("no_branch", sizes.dim)  # zeros: nothing is to be added to the streams that a list begins with
        self._unread = self._y  # for a parameter that a kernel has no use for

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
        lengths = self.numbers("lengths")
        if self.in_prompt:
            self.append(f"{name}.append", layer, self.rows, projected, first, lengths, self.positions, sizes.heads, residual)
        fitting = ATTENDING // (power(self.rows) * sizes.heads)
        splits = min(next((parts for parts in SPLITS if parts <= fitting), 1), -(-self.capacity // self._keys(D)))
        buffers = (projected, first, keys, values, lengths)
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
        columns = self._columns(sizes.inner)
        parts = -(-sizes.inner // columns)
        source = "measure", "read_normed", Inner(sizes.inner, columns, power(parts), True)
        inputs = (inner, self._moments(parts), *gains)
        self._product(f"{name}.out", source, inputs, sizes.inner, sizes.dim, "y", self._columns(sizes.dim))

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
        constants = dict(H=H, D=D, WIDTH=power(D), BLOCK=self._keys(D), SPLITS=splits)
        append = own and not self.in_prompt
        constants |= dict(APPEND=append, BIASED=own and sizes.bias_entries > 0, RESIDUAL=append and residual)
        self.step.launches.append(Launch(f"{name}.attend", "attend", (self.rows, H, splits), arguments, constants))
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
        """The depth of the branch before, the width of this one, its norm, and its first product, whose buffer is returned.

        connection: None for what reads the sum of the streams and hands none on; normed: how many outputs read the normed, if not all.
        """
        sizes, columns = self.sizes, self._columns(outputs)
        if normed is not None and normed % columns:
            columns = 8  # as the head size of a cache is a multiple of
        S, dim, mixed = sizes.streams, sizes.dim, connection is not None and sizes.streams > 1
        mixing = {"dynamic": (S + 2, dim), "scale": (S + 2,), "static": (S, S + 2)}
        arguments: dict[str, Any] = {
            part: self.buffer(f"{connection}.{part}", *shape) if mixed else self._unread for part, shape in mixing.items()
        }
        arguments |= dict(gain=self.buffer(f"{norm}.gain", dim), shift=self.buffer(f"{norm}.bias", dim))
        betas = [self.of_rows(f"beta.{side}", S) for side in (0, 1)]
        read, written = self._side, 1 - self._side
        arguments |= dict(streams=self._streams(read), beta=betas[read], y=self._y)
        arguments |= dict(streams_out=self._streams(written), beta_out=betas[written])
        arguments |= dict(branch=self.buffer("prompt.branch" if self.in_prompt else "branch", 2, self.rows, dim), rows=self.rows)
        known = Mixing(dim, power(dim), S, power(S), mixed, True)
        columns_of_mixing = 1 if connection is None else 1 + S + mixed
        self.step.launches.append(Launch(f"{name}.connect", "connect", (self.rows, columns_of_mixing), arguments, {"sizes": known}, 8))
        source = "choose", "read_branch", dim
        raw = 1 << 30 if normed is None else normed // columns
        made = self._product(name, source, (arguments["branch"], raw), dim, outputs, out, columns, gated, bias)
        self._side, self._y = written, self.of_rows("y", dim)
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
        group, scales = 0, self._unread
        if self.matrices == "int8" and not name.startswith("head."):
            group = self.sizes.block
            scales = self.buffer(f"{name}.scales", outputs, -(-K // group))
        moments = self._moments(-(-N // columns)) if gated else self._unread
        arguments = dict(inputs=inputs, weights=weights, scales=scales, bias=bias or self._unread, out=made, moments=moments)
        arguments |= dict(rows=self.rows, N=N)
        block, kind = power(K), self.step.buffers[weights][0]
        held = columns * (1 + gated) * BYTES["fp32" if kind == "int8" else kind]  # eight bits are spread out when they are read
        warps = min(max(power(-(-block * (held + 4 * self.tile_rows) // (32 * HELD))), 4), 16)
        known: dict[str, Any] = dict(zip(("prepare", "read", "sizes"), source, strict=True))
        known |= dict(K=K, PITCH=pitch, ROWS=self.tile_rows, COLUMNS=columns)
        known |= dict(BLOCK=block, GROUP=group, GATED=gated, BIASED=bias is not None)
        grid = (-(-N // columns), -(-self.rows // self.tile_rows))
        self.step.launches.append(Launch(name, "product", grid, arguments, known, warps))
        return made

    def _moments(self, programs: int) -> str:
        """Of a gated product's columns."""
        return self.of_rows("moments", programs, 2)

    def _keys(self, D: int) -> int:
        """Of the attention's tile."""
        return min(64, max(4, KEYS // power(D)))

    def _columns(self, outputs: int) -> int:
        """4, 8 or 16 outputs a program, so that there are not many more than `programs` of them; head sizes are multiples of 8."""
        return next((columns for columns in (4, 8) if outputs <= columns * self.programs), 16)

    def _streams(self, side: int) -> str:
        return self.of_rows(f"streams.{side}", self.sizes.streams, self.sizes.dim)
