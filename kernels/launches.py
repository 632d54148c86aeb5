"""One decode step of a token transformer as a list of launches: eight a layer, one for the logits, one for the token and what follows it.
And the entrance of MuLaN's audio tower, one launch.

In: a transformer's sizes, rows of the batch, the type of weights and caches. Out: `Step`: every buffer by name, type and shape, and the
launches in order, each with its kernel, its grid and its arguments by buffer name. It holds no memory, runs nothing and compiles nothing:
the tests run the list in Triton's interpreter, `compile.py` beside it compiles it.

    self    connect + norm + product   -> queries, new key and value     attend, append   -> partial        merge + product   -> y
    cross   connect + norm + product   -> queries                        attend           -> partial        merge + product   -> y
    feed    connect + norm + product + gate   -> z                       norm + product   -> y
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import triton

from .attention.triton_form import Parts, attend, merge, nothing
from .decoder_step.sizes import Sizes
from .geglu.triton_form import Inner, measure, read_normed
from .hyper_connection.triton_form import Mixing, connect, read_branch
from .product.triton_form import product
from .sampling.triton_form import Draw, sample
from .spectrogram import reference as spectrogram_layout
from .spectrogram.triton_form import spectrogram

TILE = 4096  # elements of a product's tile over all its rows: 32 a thread
PROGRAMS = 264  # of a product, about: two for each of an H100's 132 processors; each repeats what comes before the product
KEYS = 8192  # elements of a tile of keys over all heads: 64 a thread
SPLITS = 16  # of a row's keys at most: a program has two tiles or more of a full cache
PITCH = 16  # weights: rows of 32 bytes or more


@dataclass(frozen=True)
class Launch:
    """One kernel of the step."""

    name: str
    kernel: Any  # the function in Triton
    grid: tuple[int, ...]
    arguments: dict[str, Any]  # parameter -> a buffer's name, a number, or a tuple of these
    constants: dict[str, Any]  # parameter -> what is known when the kernel is compiled


@dataclass
class Step:
    """`buffers`: name -> type and shape. Types: fp32, int64, and `weights`' own, fp32, fp16 or bf16."""

    buffers: dict[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    launches: list[Launch] = field(default_factory=list)


def build_step(sizes: Sizes, rows: int, capacity: int, context: int, weights: str, sampling: Mapping[str, Any], head: int = 0) -> Step:
    """rows: of the batch, copies without condition included; context: keys of the cross-attention; head: which output projection.

    sampling: the arguments of `sample` that are numbers, with `copies` and, for `place`, a `Place`.
    """
    return _Builder(sizes, rows, capacity, context, weights).build(dict(sampling), head)


def build_patches(B: int, samples: int, n_fft: int, win_length: int, hop: int, center: bool, patch: tuple[int, int]) -> Step:
    """Waves [B, samples] to the patches of MuLaN's audio tower, in one launch: buffers `wave`, `dft` and `patches`."""
    (bins, frames), all_bins = patch, n_fft // 2 + 1
    columns = spectrogram_layout.count_frames(samples, n_fft, hop, center) // frames
    count = all_bins // bins * columns
    step = Step(
        {"wave": ("fp32", (B, samples)), "dft": ("fp32", (2, all_bins, win_length)), "patches": ("fp32", (B, count, bins * frames))}
    )
    before = spectrogram_layout.edges(n_fft, win_length, center)[1]
    arguments = dict(wave="wave", dft="dft", out="patches", t=samples, columns=columns, patches=count, before=before, all_bins=all_bins)
    known = dict(hop=hop, win_length=win_length, bins=bins, frames=frames, BLOCK=32)
    known |= {
        name: max(16, triton.next_power_of_2(size)) for name, size in (("BINS", bins), ("FRAMES", frames))
    }  # 16: the least a dot takes
    step.launches.append(Launch("patches", spectrogram, (count, B), arguments, known))
    return step


class _Builder:
    def __init__(self, sizes: Sizes, rows: int, capacity: int, context: int, weights: str) -> None:
        self.sizes, self.rows, self.capacity, self.context, self.weights = sizes, rows, capacity, context, weights
        self.step = Step()
        self.tile_rows = min(triton.next_power_of_2(rows), 8)
        self._side = 0  # which of the two buffers of streams was written last
        self._y = "no_branch"  # zeros: nothing is to be added to the streams that a step begins with

    def build(self, sampling: dict[str, Any], head: int) -> Step:
        sizes, rows = self.sizes, self.rows
        for side in (0, 1):
            self._buffer(f"streams.{side}", rows, sizes.streams, sizes.dim)
            self._buffer(f"beta.{side}", rows, sizes.streams)
        self._buffer("no_branch", rows, sizes.dim)
        for name in ("lengths", "query_coordinates"):
            self._buffer(name, rows, kind="int64")
        self._buffer("key_coordinates", rows, self.capacity, kind="int64")
        self._buffer("bias_table", sizes.heads, max(sizes.bias_entries, 1))
        if sizes.cross_attention:
            self._buffer("context_lengths", rows, kind="int64")
        for layer in range(sizes.depth):
            self._self_attention(layer)
            if sizes.cross_attention:
                self._cross_attention(layer)
            self._feed_forward(layer)
        self._connected(f"head.{head}", "norm", None, sizes.vocabulary, "logits", bias="head.bias")
        self._sample(sampling)
        return self.step

    def _self_attention(self, layer: int) -> None:
        sizes, name = self.sizes, f"layers.{layer}.attention"
        D, stride = sizes.cache_head_size, (sizes.heads + 2) * sizes.cache_head_size
        out = "projected.first" if layer == 0 else "projected"
        self._connected(f"{name}.in", f"{name}.norm", f"layers.{layer}.0.connection", stride, out, normed=sizes.heads * D)
        keys, values = (self._buffer(f"{layer}.{part}", self.rows, self.capacity, D, kind=self.weights) for part in ("key", "value"))
        residual = sizes.value_residual and layer > 0
        coordinates = ("lengths", "bias_table", "query_coordinates", "key_coordinates")
        splits = min(SPLITS, triton.cdiv(self.capacity, 2 * self._keys(D)))
        self._attend(name, (out, "projected.first", keys, values, *coordinates), stride, self.capacity, D, splits, True, residual)
        self._merged(name, D, splits)

    def _cross_attention(self, layer: int) -> None:
        sizes, name = self.sizes, f"layers.{layer}.cross_attention"
        D, wide = sizes.dim_head, sizes.heads * sizes.dim_head
        self._connected(f"{name}.in", f"{name}.norm", f"layers.{layer}.1.connection", wide, "query")
        context = [self._buffer(f"context.{layer}.{part}", self.rows, self.context, D, kind=self.weights) for part in ("key", "value")]
        unused = ("bias_table", "query_coordinates", "key_coordinates")
        self._attend(name, ("query", "query", *context, "context_lengths", *unused), wide, self.context, D, 1, False, False)
        self._merged(name, D, 1)

    def _feed_forward(self, layer: int) -> None:
        sizes, name = self.sizes, f"layers.{layer}.feed_forward"
        self._connected(f"{name}.in", f"{name}.norm", f"layers.{layer}.2.connection", sizes.inner, "inner", gated=True)
        gains = (self._buffer(f"{name}.inner_norm.{part}", sizes.inner) for part in ("gain", "bias"))
        block = min(triton.next_power_of_2(sizes.inner), max(64, 1024 // self.tile_rows))
        source = measure, read_normed, Inner(sizes.inner, block, True)
        self._product(f"{name}.out", source, ("inner", *gains), sizes.inner, sizes.dim, "y", self._columns(sizes.dim))

    def _attend(
        self, name: str, buffers: tuple[str, ...], stride: int, capacity: int, D: int, splits: int, append: bool, residual: bool
    ) -> None:
        H, entries = self.sizes.heads, max(self.sizes.bias_entries, 1)
        heads, width = triton.next_power_of_2(H), triton.next_power_of_2(D)
        partial, statistics = self._parts(D, splits)
        self._buffer(partial, self.rows, splits, H, D)
        self._buffer(statistics, self.rows, splits, H, 2)
        parameters = ("projected", "first", "keys", "values", "lengths", "table", "query_coordinates", "key_coordinates")
        arguments = dict(zip((*parameters, "partial", "statistics"), (*buffers, partial, statistics), strict=True))
        scale = self.sizes.dim_head**-0.5 if append else 1.0  # the keys of a context come scaled
        arguments |= dict(stride=stride, capacity=capacity, entries=entries, scale=scale)
        constants = dict(H=H, D=D, HEADS=heads, WIDTH=width, BLOCK=self._keys(D), SPLITS=splits)
        constants |= dict(APPEND=append, BIASED=append and self.sizes.bias_entries > 0, RESIDUAL=residual)
        self.step.launches.append(Launch(f"{name}.attend", attend, (self.rows, splits), arguments, constants))

    def _merged(self, name: str, D: int, splits: int) -> None:
        inputs, source = self._parts(D, splits), (nothing, merge, Parts(self.sizes.heads, D, splits))
        self._product(f"{name}.out", source, inputs, self.sizes.heads * D, self.sizes.dim, "y", self._columns(self.sizes.dim))

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
    ) -> None:
        """The depth of the branch before, the width of this one, its norm, its first product.

        connection: None for what reads the sum of the streams and hands none on; normed: how many outputs read the normed, if not all.
        """
        sizes, columns = self.sizes, self._columns(outputs)
        if normed is not None and normed % columns:
            columns = 8  # as the head size of a cache is a multiple of
        mixed, keep = connection is not None and sizes.streams > 1, connection is not None
        mixing = {"dynamic": (sizes.streams + 2, sizes.dim), "scale": (sizes.streams + 2,), "static": (sizes.streams, sizes.streams + 2)}
        weights = [self._buffer(f"{connection}.{part}", *shape) if mixed else "no_branch" for part, shape in mixing.items()]
        gains = [self._buffer(f"{norm}.{part}", sizes.dim) for part in ("gain", "bias")]
        read, written = self._side, 1 - self._side
        raw = 1 << 30 if normed is None else normed // columns
        inputs = (f"streams.{read}", f"beta.{read}", self._y, *weights, *gains, f"streams.{written}", f"beta.{written}", raw)
        block = min(triton.next_power_of_2(sizes.dim), max(64, 512 // self.tile_rows))
        known = Mixing(sizes.dim, sizes.streams, triton.next_power_of_2(sizes.streams), block, mixed, keep, True)
        self._product(name, (connect, read_branch, known), inputs, sizes.dim, outputs, out, columns, gated, bias)
        self._side, self._y = written, "y"

    def _product(
        self,
        name: str,
        source: tuple[Any, Any, Any],
        inputs: tuple[str | int, ...],
        K: int,
        N: int,
        out: str,
        columns: int,
        gated: bool = False,
        bias: str | None = None,
    ) -> None:
        pitch = -(-K // PITCH) * PITCH
        weights = self._buffer(f"{name}.weight", N * (1 + gated), pitch, kind=self.weights)
        self._buffer(out, self.rows, N)
        if bias:
            self._buffer(bias, N)
        arguments = dict(inputs=inputs, weights=weights, scales="no_branch", bias=bias or "no_branch", out=out, rows=self.rows, N=N)
        block = min(triton.next_power_of_2(K), max(64, TILE // self.tile_rows // columns // 2))
        known = dict(zip(("prepare", "read", "sizes"), source, strict=True), K=K, PITCH=pitch, ROWS=self.tile_rows, COLUMNS=columns)
        known |= dict(BLOCK=block, GROUP=0, GATED=gated, BIASED=bias is not None)
        grid = (triton.cdiv(N, columns), triton.cdiv(self.rows, self.tile_rows))
        self.step.launches.append(Launch(name, product, grid, arguments, known))

    def _sample(self, sampling: dict[str, Any]) -> None:
        sizes, copies = self.sizes, sampling.pop("copies")
        B = self.rows // copies
        self._buffer("plans", B, 6, kind="int64")
        self._buffer("states", B, 3, kind="int64")
        self._buffer("tokens", B, sampling["total"], kind="int64")
        self._buffer("rows", sizes.table_rows, sizes.dim, kind=self.weights)
        arguments = dict(logits="logits", plans="plans", states="states", tokens="tokens", table="rows", lengths="lengths")
        arguments |= dict(query_coordinates="query_coordinates", key_coordinates="key_coordinates", streams="streams.0")
        arguments |= dict(B=B, capacity=self.capacity) | sampling
        fours = triton.next_power_of_2(triton.cdiv(sizes.vocabulary, 4))
        block = min(triton.next_power_of_2(sizes.dim), 1024)
        known = Draw(sizes.vocabulary, fours, copies, sizes.dim, sizes.streams, block)
        self.step.launches.append(Launch("sample", sample, (B,), arguments, {"sizes": known}))

    def _parts(self, D: int, splits: int) -> tuple[str, str]:
        return f"partial.{splits}.{D}", f"statistics.{splits}"

    def _keys(self, D: int) -> int:
        """Of the attention's tile."""
        return min(64, max(4, KEYS // (triton.next_power_of_2(self.sizes.heads) * triton.next_power_of_2(D))))

    def _columns(self, outputs: int) -> int:
        """4, 8 or 16 outputs a program, so that there are not many more than PROGRAMS of them; head sizes are multiples of 8."""
        return next((columns for columns in (4, 8) if outputs <= columns * PROGRAMS), 16)

    def _buffer(self, name: str, *shape: int, kind: str = "fp32") -> str:
        found = self.step.buffers.setdefault(name, (kind, shape))
        assert found == (kind, shape), (name, found, kind, shape)
        return name


def pack_weights(sizes: Sizes, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The step's weight buffers, by name, float32: from those of `Sizes.shapes()`, to which norms and heads may add biases."""
    packed: dict[str, np.ndarray] = {name: weights[name] for name in ("rows",)}
    packed["bias_table"] = weights["bias_table"] if sizes.bias_entries else np.zeros((sizes.heads, 1), np.float32)
    norms = ["norm"]
    for layer in range(sizes.depth):
        name = f"layers.{layer}"
        attention, cross, feed = f"{name}.attention", f"{name}.cross_attention", f"{name}.feed_forward"
        joined = np.concatenate([weights[f"{attention}.w_q"], weights[f"{attention}.w_kv"]], axis=1)
        packed |= {f"{attention}.in.weight": joined.T, f"{attention}.out.weight": weights[f"{attention}.w_out"].T}
        packed |= {f"{feed}.{part}.weight": weights[f"{feed}.w_{part}"].T for part in ("in", "out")}
        norms += [f"{attention}.norm", f"{feed}.norm", f"{feed}.inner_norm"]
        if sizes.cross_attention:
            packed |= {f"{cross}.in.weight": weights[f"{cross}.w_q"].T, f"{cross}.out.weight": weights[f"{cross}.w_out"].T}
            norms.append(f"{cross}.norm")
        for branch in range(3):
            at = f"{name}.{branch}.connection"
            if f"{at}.norm" in weights:
                packed[f"{at}.dynamic"] = (weights[f"{at}.dynamic"] * weights[f"{at}.norm"][:, None]).T
                packed |= {f"{at}.{part}": weights[f"{at}.{part}"] for part in ("scale", "static")}
    for name in norms:
        gain = packed[f"{name}.gain"] = weights[f"{name}.gain"]
        packed[f"{name}.bias"] = weights.get(f"{name}.bias", np.zeros_like(gain))
    packed |= {f"head.{q}.weight": weights[f"head.{q}.weight"].T for q in range(sizes.outputs)}
    packed["head.bias"] = weights.get("head.bias", np.zeros(sizes.vocabulary, np.float32))
    for name, array in packed.items():
        if name.endswith(".weight"):
            array = np.pad(array, ((0, 0), (0, -array.shape[1] % PITCH)))
        packed[name] = np.ascontiguousarray(array, np.float32)
    return packed
