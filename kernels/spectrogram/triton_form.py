"""From a wave to the patches of its spectrogram as one GPU kernel.

    P[k, f] = (sum_n C[k, n] x[f, n])^2 + (sum_n S[k, n] x[f, n])^2,    x[f, n] = wave[b, reflected(f hop + n - before)]
    `spectrogram`  p[b, r, c, k, f] = P[r bins + k, c frames + f]
    `log_mel`      p[b, r, c, m, f] = log(max(sum_k M[r bins + m, k] P[k, c frames + f], FLOOR))

In: wave float32 [B, t]; the windowed DFT float32 [2, all bins, win_length]. Out: patches float32 [B, rows, columns, bins * frames]. No
spectrogram and no padded wave is ever written: the frames of a patch are read where they lie and reflected by their index.

Threads: program (patch, b) has one patch, a tile of [BINS, FRAMES]; sums over the window go BLOCK samples at a time, those of bands over
SPAN bins at a time, of those bins that the patch's bands take anything of; all in fp32.
Bytes: the wave once from memory (4 t a row; its overlaps and the other rows of patches come from the caches), the patches once,
4 * bins * frames each; of the DFT 8 * bins * win_length a program, of the bins under its bands, from the second level of cache.
"""

import triton
import triton.language as tl

from .constants import FLOOR

_FLOOR = tl.constexpr(FLOOR)


@triton.jit
def power(
    wave,
    t,
    dft,
    all_bins,
    first,
    stop,
    start,
    frame,
    win_length: tl.constexpr,
    BINS: tl.constexpr,
    FRAMES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """[BINS, FRAMES]: of the bins from `first` to before `stop`, zero beyond; of windows that begin at `start` [FRAMES] where `frame`."""
    k = first + tl.arange(0, BINS)
    real = tl.zeros([BINS, FRAMES], tl.float32)
    imaginary = tl.zeros([BINS, FRAMES], tl.float32)
    for begin in range(0, win_length, BLOCK):
        n = begin + tl.arange(0, BLOCK)
        at = start[None, :] + n[:, None]
        at = tl.where(at < 0, -at, at)
        at = tl.where(at >= t, 2 * (t - 1) - at, at)
        x = tl.load(wave + at, mask=(n[:, None] < win_length) & frame[None, :], other=0.0)
        place = k[:, None] * win_length + n[None, :]
        there = (k[:, None] < stop) & (n[None, :] < win_length)
        real = tl.dot(tl.load(dft + place, mask=there, other=0.0), x, real, input_precision="ieee")
        sines = tl.load(dft + all_bins * win_length + place, mask=there, other=0.0)
        imaginary = tl.dot(sines, x, imaginary, input_precision="ieee")
    return real * real + imaginary * imaginary


@triton.jit
def spectrogram(
    wave,  # float32 [B, t]
    dft,  # float32 [2, all_bins, win_length]
    out,  # float32 [B, patches, bins * frames]
    t,
    columns,  # patches of a row
    patches,  # of a wave
    before,  # samples by which the first window begins before the wave
    all_bins,
    hop: tl.constexpr,
    win_length: tl.constexpr,
    bins: tl.constexpr,
    frames: tl.constexpr,
    BINS: tl.constexpr,  # up to a power of two, 16 at least
    FRAMES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    patch, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    k, f = tl.arange(0, BINS), tl.arange(0, FRAMES)
    start = (patch % columns * frames + f) * hop - before
    first = patch // columns * bins
    heights = power(wave + b * t, t, dft, all_bins, first, first + bins, start, f < frames, win_length, BINS, FRAMES, BLOCK)
    place = (b * patches + patch) * (bins * frames) + k[:, None] * frames + f[None, :]
    tl.store(out + place, heights, mask=(k[:, None] < bins) & (f[None, :] < frames))


@triton.jit
def log_mel(
    wave,  # float32 [B, t]
    dft,  # float32 [2, all_bins, win_length]
    filters,  # float32 [bands, all_bins]
    reach,  # int64 [rows, 2]: from which bin to before which the bands of a row of patches take anything
    out,  # float32 [B, patches, bins * frames]
    t,
    columns,
    patches,
    before,
    all_bins,
    hop: tl.constexpr,
    win_length: tl.constexpr,
    bins: tl.constexpr,  # bands of a patch
    frames: tl.constexpr,
    BINS: tl.constexpr,
    FRAMES: tl.constexpr,
    BLOCK: tl.constexpr,
    SPAN: tl.constexpr,
):
    patch, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    k, f = tl.arange(0, BINS), tl.arange(0, FRAMES)
    start = (patch % columns * frames + f) * hop - before
    row = patch // columns
    stop = tl.load(reach + 2 * row + 1)
    energy = tl.zeros([BINS, FRAMES], tl.float32)
    for first in range(tl.load(reach + 2 * row), stop, SPAN):
        heights = power(wave + b * t, t, dft, all_bins, first, stop, start, f < frames, win_length, SPAN, FRAMES, BLOCK)
        bin = first + tl.arange(0, SPAN)
        there = (k[:, None] < bins) & (bin[None, :] < stop)
        taken = tl.load(filters + (row * bins + k)[:, None] * all_bins + bin[None, :], mask=there, other=0.0)
        energy = tl.dot(taken, heights, energy, input_precision="ieee")
    place = (b * patches + patch) * (bins * frames) + k[:, None] * frames + f[None, :]
    tl.store(out + place, tl.log(tl.maximum(energy, _FLOOR)), mask=(k[:, None] < bins) & (f[None, :] < frames))
