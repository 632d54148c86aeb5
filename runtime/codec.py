"""Codes to a wave in chunks, so that a long clip takes no more memory to decode than a short one.

In: the manifest's codec record, its graph as a function, codes. Out: samples. It knows no codec from the inside: how far one reaches back
is `Codec.context_frames`.
"""

from collections.abc import Callable

import numpy as np

from .bundle import Codec
from .windows import Span

CHUNK_FRAMES = 512  # new frames in a call: ten seconds at 50 a second, so that what most requests ask for is decoded at once


def codec_chunks(codec: Codec, frames: int, chunk_frames: int) -> list[Span]:
    """Chunks of so many new frames, each told the `context_frames` before them; a codec that reaches back without bound has one chunk.

    The first chunk holds at least `lookahead_frames`: its first samples depend on codes up to there.
    """
    if codec.context_frames is None:
        return [Span(0, 0, frames)]
    length = max(chunk_frames, codec.lookahead_frames)
    return [Span(max(new - codec.context_frames, 0), new, min(new + length, frames)) for new in range(0, frames, length)]


def decode_codes(
    codec: Codec,
    graph: Callable[[np.ndarray], np.ndarray],
    codes: np.ndarray,
    on_chunk: Callable[[], None],
    chunk_frames: int = CHUNK_FRAMES,
) -> np.ndarray:
    """codes int64 [frames, Q] -> wave float32 [frames * samples_per_frame].

    graph: codes [1, n, Q] -> wave [1, n * samples_per_frame]. on_chunk is called after each chunk. A clip shorter than the codec's least
    is decoded with its last frame repeated.
    """
    frames, hop = len(codes), codec.samples_per_frame
    if frames < codec.min_frames:
        codes = np.concatenate([codes, np.repeat(codes[-1:], codec.min_frames - frames, axis=0)])
    wave = np.empty(len(codes) * hop, np.float32)
    for chunk in codec_chunks(codec, len(codes), chunk_frames):
        wave[chunk.new * hop : chunk.stop * hop] = graph(codes[None, chunk.start : chunk.stop])[0, (chunk.new - chunk.start) * hop :]
        on_chunk()
    return wave[: frames * hop]
