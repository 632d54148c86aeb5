"""A token transformer as lists of launches: a decode step, eleven a layer, two for the logits, one for the token and what follows it; and
before it the prompt, many positions at once.

In: a transformer's sizes, the slots of sequences, the type of weights, a number of rows. Out: `LaunchList`, which buffers there are and
which kernels run on them, in order. Nothing here runs, compiles or needs Triton: `runtime/device` makes the lists where music is made,
`compile.py` beside it compiles what they name.

    self    connect + norm    product -> queries, new key and value    attend, append -> partial    merge + product -> y
    cross   connect + norm    product -> queries                       attend         -> partial    merge + product -> y
    feed    connect + norm    product + gate -> z                      norm + product -> y

The bits of a row do not depend on the rows beside it: how a sum is cut into parts, columns and threads follows from the transformer's sizes
alone. Only how many rows a program of a product takes, one after another, follows from their number.
"""

from __future__ import annotations

from typing import Any

from .attention.constants import Parts
from .decoder_step.sizes import Sizes
from .geglu.constants import Inner
from .hyper_connection.constants import Mixing
from .launch import BYTES, Launch, LaunchList, next_power_of_two
from .list_builder import Builder, Slots, build_begin, build_feed
from .packing import cache_dtype, pitch_of, type_of

HELD = 384  # bytes of weights and inputs that a thread of a product holds at most: 96 of its 255 registers
PROGRAMS = 352  # of a product at most, if sixteen outputs are not enough for that: an H200 has 132 processors
KEYS = 4096  # elements of a tile of keys: 32 a thread
SPLITS = 4  # parts of a row's keys: with fewer one row leaves processors idle, and the product after it reads all of them
TILE_ROWS = 8  # of a product at once at most: weights are read from memory once for all rows, from the ninth on out of the nearest cache


def step_list(sizes: Sizes, slots: Slots, weights: str, rows: int, head: int = 0, programs: int = PROGRAMS) -> LaunchList:
    """One token of every row: what `sample` or `begin` left is run through the layers and the output projection `head`.

    programs: of a product, about.
    """
    builder = _Builder(sizes, slots, weights, programs, rows, "rows")
    builder.layers()
    builder.logits(head)
    builder.sample()
    return builder.list


def begin_list(sizes: Sizes, slots: Slots, weights: str, rows: int) -> LaunchList:
    """The residual streams, slots, lengths and coordinates of rows that are given other slots."""
    return build_begin(_Builder(sizes, slots, weights, 1, rows, "rows"))


def feed_list(sizes: Sizes, slots: Slots, weights: str, rows: int) -> LaunchList:
    """Uploaded positions of prompts, a row each."""
    return build_feed(_Builder(sizes, slots, weights, 1, rows, "prompt"))


def prompt_list(sizes: Sizes, slots: Slots, weights: str, rows: int, programs: int = PROGRAMS) -> LaunchList:
    """Run what `feed_list` left through the layers: keys and values, no logits."""
    builder = _Builder(sizes, slots, weights, programs, rows, "prompt")
    builder.layers()
    return builder.list


class _Builder(Builder):
    def __init__(self, sizes: Sizes, slots: Slots, weights: str, programs: int, rows: int, owner: str) -> None:
        super().__init__(sizes, slots, cache_dtype(weights), rows, owner)
        self.programs, self.matrices = programs, weights
        self.tile_rows = min(next_power_of_two(self.rows), TILE_ROWS)
        self._side = 0  # which of the two buffers of streams was written last
        # zeros: nothing is to be added to the streams that a list begins with, nor what the list before has left, which can be NaN
        self._y, self._beta = self.of_rows("no_branch", sizes.dim), self.of_rows("no_beta", sizes.streams)
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
        if self.in_prompt:
            self.append(f"{name}.append", layer, projected, first, sizes.heads, residual)
        buffers = (projected, first, keys, values, self.numbers("slots"), self.numbers("lengths"))
        self._attend(name, buffers, stride, self.slots.capacity, D, SPLITS, True, residual)

    def _cross_attention(self, layer: int) -> None:
        sizes, name = self.sizes, f"layers.{layer}.cross_attention"
        D, wide = sizes.dim_head, sizes.heads * sizes.dim_head
        query = self._connected(f"{name}.in", f"{name}.norm", f"layers.{layer}.1.connection", wide, "query")
        keys = self.slots.context
        context = [self.of_slots(f"context.{layer}.{part}", keys, D, kind=self.kind) for part in ("key", "value")]
        buffers = (query, query, *context, self.numbers("slots"), self.numbers("context_lengths"))
        self._attend(name, buffers, wide, keys, D, 1, False, False)

    def _feed_forward(self, layer: int) -> None:
        sizes, name = self.sizes, f"layers.{layer}.feed_forward"
        inner = self._connected(f"{name}.in", f"{name}.norm", f"layers.{layer}.2.connection", sizes.inner, "inner", gated=True)
        gains = (self.buffer(f"{name}.inner_norm.{part}", sizes.inner) for part in ("gain", "bias"))
        columns = self._columns(sizes.inner)
        parts = -(-sizes.inner // columns)
        source = "measure", "read_normed", Inner(sizes.inner, columns, next_power_of_two(parts), True)
        inputs = (inner, self._moments(parts), *gains)
        self._product(f"{name}.out", source, inputs, sizes.inner, sizes.dim, "y", self._columns(sizes.dim))

    def _attend(
        self, name: str, buffers: tuple[str, ...], stride: int, capacity: int, D: int, splits: int, own: bool, residual: bool
    ) -> None:
        """And the product that merges its parts. own: self-attention."""
        sizes, H, entries = self.sizes, self.sizes.heads, max(self.sizes.bias_entries, 1)
        parts = self.of_rows(f"partial.{splits}.{D}", splits, H, D), self.of_rows(f"statistics.{splits}", splits, H, 2)
        buffers += self.buffer("bias_table", H, entries), self.numbers("query_coordinates"), self.key_coordinates(), *parts
        parameters = ("projected", "first", "keys", "values", "slots", "lengths", "table", "query_coordinates", "key_coordinates")
        arguments: dict[str, Any] = dict(zip((*parameters, "partial", "statistics"), buffers, strict=True))
        scale = sizes.dim_head**-0.5 if own else 1.0  # the keys of a context come scaled
        arguments |= dict(stride=stride, capacity=capacity, entries=entries, scale=scale)
        constants = dict(H=H, D=D, WIDTH=next_power_of_two(D), BLOCK=self._keys(D), SPLITS=splits)
        append = own and not self.in_prompt
        constants |= dict(APPEND=append, BIASED=own and sizes.bias_entries > 0, RESIDUAL=append and residual)
        self.list.launches.append(Launch(f"{name}.attend", "attend", (self.rows, H, splits), arguments, constants))
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
        read, written = self._side, 1 - self._side
        beta = self.of_rows(f"beta.{written}", S)
        arguments |= dict(streams=self._streams(read), beta=self._beta, y=self._y)
        arguments |= dict(streams_out=self._streams(written), beta_out=beta)
        arguments |= dict(branch=self.buffer(f"{self.owner}{self.rows}.branch", 2, self.rows, dim), rows=self.rows)
        known = Mixing(dim, next_power_of_two(dim), S, next_power_of_two(S), mixed, True)
        columns_of_mixing = 1 if connection is None else 1 + S + mixed
        self.list.launches.append(Launch(f"{name}.connect", "connect", (self.rows, columns_of_mixing), arguments, {"sizes": known}, 8))
        source = "choose", "read_branch", dim
        raw = 1 << 30 if normed is None else normed // columns
        made = self._product(name, source, (arguments["branch"], raw), dim, outputs, out, columns, gated, bias)
        self._side, self._y, self._beta = written, self.of_rows("y", dim), beta
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
        block, kind = next_power_of_two(K), self.list.buffers[weights][0]
        held = columns * (1 + gated) * BYTES["fp32" if kind == "int8" else kind]  # eight bits are spread out when they are read
        warps = min(max(next_power_of_two(-(-block * (held + 4 * TILE_ROWS) // (32 * HELD))), 4), 16)  # and with them the order of sums
        known: dict[str, Any] = dict(zip(("prepare", "read", "sizes"), source, strict=True))
        known |= dict(K=K, PITCH=pitch, ROWS=self.tile_rows, COLUMNS=columns)
        known |= dict(BLOCK=block, GROUP=group, GATED=gated, BIASED=bias is not None)
        grid = (-(-N // columns), -(-self.rows // self.tile_rows))
        self.list.launches.append(Launch(name, "product", grid, arguments, known, warps))
        return made

    def _moments(self, programs: int) -> str:
        """Of a gated product's columns."""
        return self.of_rows("moments", programs, 2)

    def _keys(self, D: int) -> int:
        """Of the attention's tile."""
        return min(64, max(4, KEYS // next_power_of_two(D)))

    def _columns(self, outputs: int) -> int:
        """4, 8 or 16 outputs a program, so that there are not many more than `programs` of them; head sizes are multiples of 8."""
        return next((columns for columns in (4, 8) if outputs <= columns * self.programs), 16)

    def _streams(self, side: int) -> str:
        return self.of_rows(f"streams.{side}", self.sizes.streams, self.sizes.dim)
