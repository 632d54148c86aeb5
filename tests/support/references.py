"""Each kernel of the GPU in numpy: a function with the kernel's name, and after the grid with the kernel's own parameters.

In: a launch and its arguments, torch tensors in the layout that the kernel reads. Out: the same tensors, written as the kernel writes
them. Sums are float64 whatever the kernel's are; tokens are those of runtime/sampling.py, to the bit. `support/interpreted.py` holds every
kernel against its reference here, so what runs on the references (`support/drivers.py`) differs from what runs on a GPU by roundings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import torch

from musiclm_deploy.kernels.attention.constants import Parts
from musiclm_deploy.kernels.attention.reference import table_bias
from musiclm_deploy.kernels.geglu.constants import Inner
from musiclm_deploy.kernels.geglu.reference import layer_norm
from musiclm_deploy.kernels.hyper_connection.constants import Mixing
from musiclm_deploy.kernels.launch import Launch
from musiclm_deploy.kernels.product import reference as products
from musiclm_deploy.kernels.prompt.constants import Position
from musiclm_deploy.kernels.sampling.constants import ALWAYS, NEVER, Draw, Factors, Progress, Settings
from musiclm_deploy.kernels.spectrogram.constants import FLOOR
from musiclm_deploy.runtime.noise import SeededNoise
from musiclm_deploy.runtime.sampling import guide
from musiclm_deploy.runtime.sampling import sample as draw

Array = np.ndarray
Grid = tuple[int, ...]


def compute(launch: Launch, arguments: Mapping[str, Any]) -> None:
    """Compute a launch by its kernel's reference. arguments: tensors and numbers by parameter."""
    given = {name: _arrays(value) for name, value in arguments.items()}
    REFERENCES[launch.kernel](launch.grid, **given, **launch.constants)


def _arrays(value: Any) -> Any:
    """Return arrays of one dimension on the memory of tensors; bf16, which numpy lacks, in ml_dtypes' type."""
    if isinstance(value, tuple):
        return value if hasattr(value, "_fields") else tuple(map(_arrays, value))
    if not isinstance(value, torch.Tensor):
        return value
    flat = value.reshape(-1)
    assert flat.data_ptr() == value.data_ptr(), "a copy would be written, and not the tensor"
    return flat.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if value.dtype == torch.bfloat16 else flat.numpy()


def attend(
    grid: Grid,
    projected: Array,
    first: Array,
    keys: Array,
    values: Array,
    slots: Array,
    lengths: Array,
    table: Array,
    query_coordinates: Array,
    key_coordinates: Array,
    partial: Array,
    statistics: Array,
    stride: int,
    capacity: int,
    entries: int,
    scale: float,
    H: int,
    D: int,
    WIDTH: int,
    BLOCK: int,
    SPLITS: int,
    APPEND: bool,
    BIASED: bool,
    RESIDUAL: bool,
) -> None:
    rows = np.arange(grid[0])
    sequence, seen = slots[: len(rows)], lengths[: len(rows)]
    if APPEND:
        append(grid[:1], projected, first, keys, values, slots, lengths, stride, capacity, H, D, WIDTH, RESIDUAL)
    query = projected[: len(rows) * stride].reshape(len(rows), stride)[:, : H * D].reshape(len(rows), H, D).astype(np.float64)
    t = np.arange(seen.max())
    k, v = (cache.reshape(-1, capacity, D)[sequence, : len(t)].astype(np.float64) for cache in (keys, values))
    scores = np.einsum("bhd,btd->bht", query, k) * scale
    if BIASED:
        coordinates = key_coordinates.reshape(-1, capacity)[sequence, : len(t)]
        scores += table_bias(table.reshape(H, entries), query_coordinates[: len(rows), None], coordinates)[:, :, 0]
    span = np.ceil(np.ceil(seen / SPLITS) / BLOCK).astype(np.int64) * BLOCK  # positions in a split
    v = np.where((t < seen[:, None])[..., None], v, 0)
    parts, found = partial.reshape(len(rows), SPLITS, H, D), statistics.reshape(len(rows), SPLITS, H, 2)
    for split in range(SPLITS):
        there = (t >= split * span[:, None]) & (t < np.minimum((split + 1) * span, seen)[:, None])
        score = np.where(there[:, None], scores, -np.inf)
        largest = score.max(axis=2)
        weights = np.where(there[:, None], np.exp(score - np.where(np.isfinite(largest), largest, 0)[..., None]), 0)
        parts[:, split] = np.einsum("bht,btd->bhd", weights, v)
        found[:, split, :, 0], found[:, split, :, 1] = largest, weights.sum(axis=2)


def append(
    grid: Grid,
    projected: Array,
    first: Array,
    keys: Array,
    values: Array,
    slots: Array,
    lengths: Array,
    stride: int,
    capacity: int,
    H: int,
    D: int,
    WIDTH: int,
    RESIDUAL: bool,
) -> None:
    rows = np.arange(grid[0])
    told = projected[: len(rows) * stride].reshape(len(rows), stride)[:, H * D : (H + 2) * D]
    key, value = told[:, :D], told[:, D:]
    if RESIDUAL:
        value = value + np.float32(0.5) * first[: len(rows) * stride].reshape(len(rows), stride)[:, (H + 1) * D : (H + 2) * D]
    place = slots[: len(rows)], lengths[: len(rows)] - 1
    keys.reshape(-1, capacity, D)[place] = key
    values.reshape(-1, capacity, D)[place] = value


def connect(
    grid: Grid,
    streams: Array,
    beta: Array,
    y: Array,
    dynamic: Array,
    scale: Array,
    static: Array,
    gain: Array,
    shift: Array,
    streams_out: Array,
    beta_out: Array,
    branch: Array,
    rows: int,
    sizes: Mixing,
) -> None:
    S, dim = sizes.streams, sizes.dim
    x = streams.reshape(rows, S, dim).astype(np.float64)
    x = x + beta.reshape(rows, S, 1).astype(np.float64) * y.reshape(rows, 1, dim)
    if sizes.mixed:
        norm = np.maximum(np.linalg.norm(x, axis=2, keepdims=True), 1e-12)
        columns = np.tanh(x / norm * dim**0.5 @ dynamic.reshape(S + 2, dim).T.astype(np.float64))
        mixing = columns * scale + static.reshape(S, S + 2)  # [rows, S, S + 2]
    else:
        mixing = np.broadcast_to(np.concatenate([np.ones((S, 1)), np.eye(S)], axis=1), (rows, S, S + 1))
    mixed = np.swapaxes(mixing[..., : S + 1], 1, 2) @ x  # the branch's input, then the streams
    halves = branch.reshape(2, rows, dim)
    halves[0] = layer_norm(mixed[:, 0], gain, shift if sizes.shifted else np.zeros(dim))
    halves[1] = mixed[:, 0]
    for program in range(1, grid[1]):
        if program <= S:
            streams_out.reshape(rows, S, dim)[:, program - 1] = mixed[:, program]
        else:
            beta_out.reshape(rows, S)[:] = mixing[..., S + 1]


def product(
    grid: Grid,
    prepare: str,
    read: str,
    inputs: tuple[Any, ...],
    sizes: Any,
    weights: Array,
    scales: Array,
    bias: Array,
    out: Array,
    moments: Array,
    rows: int,
    N: int,
    K: int,
    PITCH: int,
    ROWS: int,
    COLUMNS: int,
    BLOCK: int,
    GROUP: int,
    GATED: bool,
    BIASED: bool,
) -> None:
    outputs = N * (1 + GATED)
    w = weights[: outputs * PITCH].reshape(outputs, PITCH)[:, :K].astype(np.float64)
    if GROUP:
        w = products.dequantize(w, scales.reshape(outputs, -1), GROUP)
    made = out.reshape(rows, N)
    for first, x in SOURCES[prepare, read](inputs, sizes, rows):
        if first * COLUMNS < N:
            made[:, first * COLUMNS :] = products.product(x, w, None, GATED)[:, first * COLUMNS :]
    if GATED:
        left = moments.reshape(rows, -1, 2)
        for program in range(grid[0]):
            part = made[:, program * COLUMNS : (program + 1) * COLUMNS].astype(np.float64)
            left[:, program, 0], left[:, program, 1] = part.mean(axis=1), part.var(axis=1) * part.shape[1]
    if BIASED:
        made += bias


def embed(
    grid: Grid,
    table: Array,
    positions: Array,
    at: Array,
    slots: Array,
    lengths: Array,
    query_coordinates: Array,
    embedding_ids: Array,
    streams: Array,
    DIM: int,
    STREAMS: int,
    BLOCK: int,
) -> None:
    found = Position(*positions.reshape(-1, len(Position._fields))[at].T)
    slots[:], lengths[:], query_coordinates[:], embedding_ids[:] = found.slot, found.length, found.coordinate, found.embedding_id
    _embedded(table, embedding_ids, streams, DIM, STREAMS)


def _embedded(table: Array, rows: Array, streams: Array, dim: int, count: int) -> None:
    if dim:
        streams.reshape(len(rows), count, dim)[:] = table.reshape(-1, dim)[rows][:, None]


def sample(
    grid: Grid,
    logits: Array,
    slots: Array,
    nulls: Array,
    settings: Array,
    factors: Array,
    progress: Array,
    tokens: Array,
    table: Array,
    next: Array,
    lengths: Array,
    query_coordinates: Array,
    key_coordinates: Array,
    embedding_ids: Array,
    streams: Array,
    ring: int,
    capacity: int,
    sizes: Draw,
    NEXT: int,
    place: Position,
) -> None:
    V, scores = sizes.vocabulary, logits.reshape(-1, sizes.vocabulary)
    for row, null in enumerate(nulls[: grid[0]].tolist()):
        if null < 0:
            continue
        own = Settings(*settings.reshape(-1, len(Settings._fields))[slots[row]].tolist())
        factor = Factors(*factors.reshape(-1, len(Factors._fields))[slots[row]].tolist())
        counts = progress.reshape(-1, len(Progress._fields))[slots[row]]
        step, running, kept = counts.tolist()
        score = scores[row] if null == row else guide(scores[row], scores[null], factor.scale)
        in_frame = own.in_frames + step
        opens = in_frame % max(own.frame, 1) == 0 and in_frame > 0
        forbidden = own.frame == ALWAYS or (own.frame > NEVER and not opens)
        noise = _noise(own.stage, own.seed % (1 << 64), own.item, V)(own.first + step)
        token = int(draw(score[None], noise[None], factor.temperature, 1 - (own.k + 0.5) / V, forbidden)[0])

        tokens.reshape(-1, ring)[slots[row], step % ring] = token
        going = running and token != own.end
        kept = step + 1 if going else kept
        going = going and own.steps > step + 1
        counts[:] = Progress(step + 1, bool(going), kept)
        index = own.known + step
        embedded = own.first_row + index % own.quantizers * own.codebook + token if going else own.padding
        coordinate = own.origin + index // own.per_frame * own.stride + index % own.per_frame
        for one in dict.fromkeys((row, null)):
            lengths[one] += bool(going)
            embedding_ids[one], query_coordinates[one] = embedded, coordinate + own.shift
            key_coordinates.reshape(-1, capacity)[slots[one], lengths[one] - 1] = coordinate
            next.reshape(-1, NEXT)[slots[one]] = Position(slots[one], lengths[one], embedded, coordinate + own.shift)
            if sizes.dim:
                streams.reshape(-1, sizes.streams, sizes.dim)[one] = table.reshape(-1, sizes.dim)[embedded]


@cache
def _noise(stage: int, seed: int, item: int, vocabulary: int) -> SeededNoise:
    """Return the noise of an item, kept since one block of its numbers serves many steps."""
    return SeededNoise(stage, seed, item, vocabulary)


def spectrogram(
    grid: Grid,
    wave: Array,
    dft: Array,
    out: Array,
    t: int,
    columns: int,
    patches: int,
    before: int,
    all_bins: int,
    hop: int,
    win_length: int,
    bins: int,
    frames: int,
    BINS: int,
    FRAMES: int,
    BLOCK: int,
) -> None:
    heights = _powers(wave, dft, t, columns * frames, before, all_bins, hop, win_length)
    out[:] = _cut(heights, patches // columns, columns, bins, frames)


def log_mel(
    grid: Grid,
    wave: Array,
    dft: Array,
    filters: Array,
    reach: Array,
    out: Array,
    t: int,
    columns: int,
    patches: int,
    before: int,
    all_bins: int,
    hop: int,
    win_length: int,
    bins: int,
    frames: int,
    BINS: int,
    FRAMES: int,
    BLOCK: int,
    SPAN: int,
) -> None:
    rows, bin = patches // columns, np.arange(all_bins)
    first, stop = np.repeat(reach.reshape(rows, 2), bins, axis=0).T  # each band's bins
    taken = filters.reshape(-1, all_bins)[: rows * bins].astype(np.float64) * ((bin >= first[:, None]) & (bin < stop[:, None]))
    heights = taken @ _powers(wave, dft, t, columns * frames, before, all_bins, hop, win_length)
    out[:] = _cut(np.log(np.maximum(heights, FLOOR)), rows, columns, bins, frames)


def _powers(wave: Array, dft: Array, t: int, frames: int, before: int, all_bins: int, hop: int, win_length: int) -> Array:
    """Compute the power spectrogram float64 [B, all_bins, frames]."""
    at = np.abs(np.arange(frames)[:, None] * hop - before + np.arange(win_length))
    at = np.where(at >= t, 2 * (t - 1) - at, at)
    real, imaginary = wave.reshape(-1, t).astype(np.float64)[:, at] @ dft.reshape(2, 1, all_bins, win_length).swapaxes(2, 3).astype(
        np.float64
    )
    return np.swapaxes(real * real + imaginary * imaginary, 1, 2)


def _cut(heights: Array, rows: int, columns: int, bins: int, frames: int) -> Array:
    """Cut [B, bins or more, columns * frames] into patches; return their elements, one patch after another."""
    cut = heights[:, : rows * bins].reshape(len(heights), rows, bins, columns, frames)
    return cut.transpose(0, 1, 3, 2, 4).reshape(-1)


def _merged(inputs: tuple[Any, ...], sizes: Parts, rows: int) -> list[tuple[int, Array]]:
    partial, statistics = inputs
    parts = partial.reshape(rows, sizes.splits, sizes.heads, sizes.dim_head).astype(np.float64)
    largest, total = np.moveaxis(statistics.reshape(rows, sizes.splits, sizes.heads, 2).astype(np.float64), 3, 0)
    weights = np.exp(largest - largest.max(axis=1, keepdims=True))
    merged = (weights[..., None] * parts).sum(axis=1) / (weights * total).sum(axis=1)[..., None]
    return [(0, merged.reshape(rows, -1))]


def _normed(inputs: tuple[Any, ...], sizes: Inner, rows: int) -> list[tuple[int, Array]]:
    z, moments, gain, shift = inputs
    z, left = z.reshape(rows, sizes.dim).astype(np.float64), moments.reshape(rows, -1, 2).astype(np.float64)
    counts = np.diff(np.append(np.arange(0, sizes.dim, sizes.columns), sizes.dim))
    mean = (left[..., 0] * counts).sum(axis=1, keepdims=True) / sizes.dim
    squares = (left[..., 1] + counts * (left[..., 0] - mean) ** 2).sum(axis=1, keepdims=True)
    n = (z - mean) / np.sqrt(squares / sizes.dim + 1e-5) * gain
    return [(0, n + shift if sizes.shifted else n)]


def _branch(inputs: tuple[Any, ...], sizes: int, rows: int) -> list[tuple[int, Array]]:
    branch, raw = inputs
    n, u = branch.reshape(2, rows, sizes)
    return [(0, n), (raw, u)]


REFERENCES: dict[str, Callable[..., None]] = {one.__name__: one for one in (append, attend, connect, embed, product, sample)}
REFERENCES |= {one.__name__: one for one in (spectrogram, log_mel)}
# (prepare, read) of a product -> its input, float64 [rows, K], from each of these programs on
SOURCES: dict[tuple[str, str], Callable[[tuple[Any, ...], Any, int], list[tuple[int, Array]]]] = {
    ("nothing", "merge"): _merged,
    ("measure", "read_normed"): _normed,
    ("choose", "read_branch"): _branch,
}
