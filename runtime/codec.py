"""The codec's decoder on its way through a clip: codes go in as they are made, samples come out chunk by chunk.

In: the manifest's codec record, its graph as a function, codes. Out: samples. It knows no model.
A clip is always cut into the same chunks, however its codes arrive: products of other sizes sum in another order, and a clip must be the
same to the bit whether it is streamed or made at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from .bundle import Codec

CHUNK_SECONDS = 0.3  # of a chunk at most, where a frame is no longer: shorter ones are heard earlier and cost more

Graph = Callable[..., dict[str, np.ndarray]]  # the graph `codec_stream`: inputs and outputs by name


def chunk_frames(codec: Codec) -> int:
    """Return the frames of every chunk of a clip between the first and the last one."""
    return max(int(CHUNK_SECONDS * codec.sample_hz / codec.samples_per_frame + 1e-6), 1)


def first_chunk_frames(codec: Codec) -> int:
    """Return the frames of a clip's first chunk: half of the others, so that it is heard early, and no fewer than the codec looks ahead."""
    return max(codec.lookahead_frames, codec.min_frames, -(-chunk_frames(codec) // 2))


def longest_chunk(codec: Codec) -> int:
    """Return the most frames that any chunk has."""
    return max(first_chunk_frames(codec), chunk_frames(codec))


def first_state(codec: Codec, rows: int) -> dict[str, np.ndarray]:
    """Return the state of the first call of `rows` clips, by the names of the graph's inputs."""
    zeros = {f"state.{name}": np.zeros((rows, *shape), np.float32) for name, shape in codec.states.items()}
    return {"state.frames": np.zeros(1, np.int64), **zeros}


def state_size(codec: Codec) -> int:
    """Return how many numbers the state of one clip has."""
    return sum(math.prod(shape) for shape in codec.states.values())


class CodecStream:
    """The decoder of one clip, with the state between its chunks.

    Feed it the clip's codes in order, any number of frames at a time, then call `finish` once. Each call returns the samples that it
    completes, float32 [t]; together they are the clip. It is for one thread at a time.
    """

    def __init__(self, codec: Codec, graph: Graph) -> None:
        self._codec, self._graph = codec, graph
        self._waiting = np.empty((0, codec.quantizers), np.int64)  # frames of the chunk that is not complete yet
        self._state: dict[str, np.ndarray] | None = None  # from the first chunk to the last: clips that wait hold none
        self._finished = False
        self._wanted = first_chunk_frames(codec)  # frames of the next chunk

    @property
    def missing(self) -> int:
        """How many frames complete the next chunk."""
        return self._wanted - len(self._waiting)

    def feed(self, codes: np.ndarray) -> np.ndarray:
        """Take the next frames, int64 [n, Q], and return the samples of every chunk that is complete now, often none."""
        if self._finished:
            raise RuntimeError("this clip is finished: another one needs a CodecStream of its own.")
        self._waiting = np.concatenate([self._waiting, codes])
        made = []
        while len(self._waiting) >= self._wanted:
            made.append(self._decode(self._wanted))
            self._wanted = chunk_frames(self._codec)
        return _joined(made)

    def finish(self) -> np.ndarray:
        """Return the samples of the last frames, those of a chunk that was not complete.

        A clip shorter than the codec's least is decoded with its last frame repeated, and cut.
        """
        left, self._finished = len(self._waiting), True
        missing = self._codec.min_frames - left if self._state is None else 0
        if left and missing > 0:
            self._waiting = np.concatenate([self._waiting, np.repeat(self._waiting[-1:], missing, axis=0)])
        wave = self._decode(len(self._waiting))[: left * self._codec.samples_per_frame] if left else _joined([])
        self._state = None
        return wave

    def _decode(self, frames: int) -> np.ndarray:
        """Decode the next frames that wait."""
        state = first_state(self._codec, 1) if self._state is None else self._state
        outputs = self._graph(codes=self._waiting[None, :frames], **state)
        self._waiting = self._waiting[frames:]
        self._state = {name: outputs[f"next.{name.removeprefix('state.')}"] for name in state}
        return outputs["wave"][0]


def decode_codes(codec: Codec, graph: Graph, codes: np.ndarray, on_chunk: Callable[[], None]) -> np.ndarray:
    """Decode a whole clip, int64 [frames, Q], to float32 [frames * samples_per_frame]. on_chunk is called after each chunk."""
    stream, samples, start = CodecStream(codec, graph), codec.samples_per_frame, 0
    wave = np.empty(len(codes) * samples, np.float32)
    while True:
        stop = min(start + stream.missing, len(codes))
        part = stream.feed(codes[start:stop])
        if stop == len(codes):
            part = _joined([part, stream.finish()])
        wave[start * samples : stop * samples] = part
        start = stop
        on_chunk()
        if start == len(codes):
            return wave


def _joined(waves: list[np.ndarray]) -> np.ndarray:
    return waves[0] if len(waves) == 1 else np.concatenate([np.empty(0, np.float32), *waves])
