"""The entrance of MuLaN's audio tower as a list of one launch.

In: the settings of its spectrogram. Out: `LaunchList`, as in kernel_lists.py, and what its buffers `dft`, `filters` and `reach` hold.
"""

from __future__ import annotations

import numpy as np

from .launch import Launch, LaunchList, next_power_of_two
from .spectrogram.reference import count_frames, edges, windowed_dft


def build_patches(
    B: int, samples: int, n_fft: int, win_length: int, hop: int, center: bool, patch: tuple[int, int], bands: int | None = None
) -> LaunchList:
    """Waves [B, samples] to the patches of MuLaN's audio tower, in one launch, from the buffer `wave` to `patches`.

    patch: (bins, frames); bands: of a log-mel spectrogram, None for one of power.
    """
    (bins, frames), all_bins = patch, n_fft // 2 + 1
    rows, columns = (bands or all_bins) // bins, count_frames(samples, n_fft, hop, center) // frames
    step = LaunchList({"wave": ("fp32", (B, samples)), "dft": ("fp32", (2, all_bins, win_length))})
    step.buffers["patches"] = "fp32", (B, rows, columns, bins * frames)
    arguments: dict[str, object] = dict(wave="wave", dft="dft", out="patches", t=samples, columns=columns, patches=rows * columns)
    arguments |= dict(before=edges(n_fft, win_length, center)[1], all_bins=all_bins)
    known = dict(hop=hop, win_length=win_length, bins=bins, frames=frames, BLOCK=32)
    known |= {name: max(16, next_power_of_two(size)) for name, size in (("BINS", bins), ("FRAMES", frames))}  # 16: the least a dot takes
    kernel = "spectrogram"
    if bands is not None:
        kernel, known["SPAN"] = "log_mel", 32
        step.buffers |= {"filters": ("fp32", (bands, all_bins)), "reach": ("int64", (rows, 2))}
        arguments |= dict(filters="filters", reach="reach")
    step.launches.append(Launch("patches", kernel, (rows * columns, B), arguments, known))
    return step


def constants_of(n_fft: int, win_length: int, bins: int, filters: np.ndarray | None) -> dict[str, np.ndarray]:
    """What the list reads beside the wave, by buffer. bins: of a patch; filters: [bands, n_fft // 2 + 1] of a log-mel spectrogram."""
    made = {"dft": windowed_dft(n_fft, win_length).astype(np.float32)}
    if filters is not None:
        rows = len(filters) // bins
        taken = (filters[: rows * bins].reshape(rows, bins, -1) != 0).any(axis=1)
        first, after = taken.argmax(axis=1), taken.shape[1] - taken[:, ::-1].argmax(axis=1)
        reach = np.stack([first, np.where(taken.any(axis=1), after, first)], axis=1).astype(np.int64)
        made |= {"filters": np.ascontiguousarray(filters, np.float32), "reach": reach}
    return made
