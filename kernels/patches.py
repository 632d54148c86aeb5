"""The entrance of MuLaN's audio tower as a list of one launch.

In: the settings of its spectrogram. Out: `Step`, as in launches.py.
"""

from .launch import Launch, Step, power
from .spectrogram import reference as spectrogram_layout


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
    known |= {name: max(16, power(size)) for name, size in (("BINS", bins), ("FRAMES", frames))}  # 16: the least a dot takes
    step.launches.append(Launch("patches", "spectrogram", (count, B), arguments, known))
    return step
