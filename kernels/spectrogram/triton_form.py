"""From a wave to the patches of its power spectrogram as one GPU kernel.

    p[b, r, c, k, f] = (sum_n C[k', n] x[f', n])^2 + (sum_n S[k', n] x[f', n])^2,    k' = r bins + k,  f' = c frames + f
    x[f', n] = wave[b, reflected(f' hop + n - before)]

In: wave float32 [B, t]; the windowed DFT float32 [2, all bins, win_length]. Out: patches float32 [B, rows * columns, bins * frames]. No
spectrogram and no padded wave is ever written: the frames of a patch are read where they lie and reflected by their index.

Threads: program (patch, b) has one patch, a tile of [BINS, FRAMES]; sums over the window go BLOCK samples at a time, in fp32.
Bytes: the wave once from memory (4 t a row; its overlaps and the other rows of patches come from the caches), the patches once,
4 * bins * frames each; of the DFT 8 * bins * win_length a program, from the second level of cache.
"""

import triton
import triton.language as tl


@triton.jit
def spectrogram(
    wave,  # float32 [B, t]
    dft,  # float32 [2, all_bins, win_length]
    out,  # float32 [B, rows * columns, bins * frames]
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
    real = tl.zeros([BINS, FRAMES], tl.float32)
    imaginary = tl.zeros([BINS, FRAMES], tl.float32)
    for first in range(0, win_length, BLOCK):
        n = first + tl.arange(0, BLOCK)
        at = start[None, :] + n[:, None]
        at = tl.where(at < 0, -at, at)
        at = tl.where(at >= t, 2 * (t - 1) - at, at)
        x = tl.load(wave + b * t + at, mask=(n[:, None] < win_length) & (f[None, :] < frames), other=0.0)
        place = (patch // columns * bins + k)[:, None] * win_length + n[None, :]
        there = (k[:, None] < bins) & (n[None, :] < win_length)
        real = tl.dot(tl.load(dft + place, mask=there, other=0.0), x, real, input_precision="ieee")
        sines = tl.load(dft + all_bins * win_length + place, mask=there, other=0.0)
        imaginary = tl.dot(sines, x, imaginary, input_precision="ieee")
    place = (b * patches + patch) * (bins * frames) + k[:, None] * frames + f[None, :]
    tl.store(out + place, real * real + imaginary * imaginary, mask=(k[:, None] < bins) & (f[None, :] < frames))
