"""A wave decoded call by call, each going on from the state of the one before, against the same wave decoded at once; and the chunks into
which the runtime cuts a clip.

fp32: 1e-5 of the peak, the most that two ways of summing may differ by anywhere in the codec's tests.
"""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from support.encodec import small
from support.soundstream import CODEBOOK, TOLERANCE, upstream_soundstream
from torch import Tensor

from musiclm_deploy.export.codec import Decoder, export_codec_stream
from musiclm_deploy.export.encodec import build_encodec, infer_encodec
from musiclm_deploy.export.soundstream import build_decoder, infer_soundstream
from musiclm_deploy.model.causal import State, state_shapes
from musiclm_deploy.runtime.bundle import Codec
from musiclm_deploy.runtime.codec import (
    CodecStream,
    chunk_frames,
    decode_codes,
    first_chunk_frames,
    first_state,
    longest_chunk,
    state_size,
)

VARIANTS: dict[str, dict[str, Any]] = {
    "readme strides": dict(strides=(2, 4, 5, 8)),
    "music strides, two layers of attention": dict(strides=(3, 4, 5, 8), attn_depth=2, attn_window_size=5),
    "no attention": dict(strides=(2, 3), channel_mults=(2, 4), use_local_attn=False),
    "position bias": dict(strides=(3, 5), channel_mults=(2, 3), attn_dynamic_pos_bias=True),
    "xpos base, squeeze and excite": dict(strides=(4, 2), channel_mults=(2, 4), attn_xpos_scale_base=7, squeeze_excite=True),
    "zero padding, two dilations": dict(strides=(2, 3), channel_mults=(2, 4), pad_mode="constant", dec_cycle_dilations=(2, 1)),
    "copies of the first position": dict(strides=(2, 3), channel_mults=(2, 4), pad_mode="replicate", rq_groups=2),
    "upstream's window": dict(strides=(2, 3), channel_mults=(2, 4), attn_window_size=128),
}


def soundstream(**arguments: Any) -> tuple[Decoder, Any]:
    """A decoder of random weights, from upstream's state dict through the export's code, and upstream's: codes -> wave."""
    sizes: dict[str, Any] = {"channels": 2, "codebook_dim": 8}
    model = upstream_soundstream(**sizes | arguments)
    settings = infer_soundstream(model.state_dict(), model._configs, "2.4.0", {})
    return build_decoder(settings, model.state_dict()), lambda codes: model.decode_from_codebook_indices(codes)[:, 0]


def encodec(strides: tuple[int, ...] = (2, 3)) -> tuple[Decoder, Any]:
    model = small(strides, quantizers=3)
    decoder, _ = build_encodec(infer_encodec(model.state_dict(), {}, 3, {}), model.state_dict())
    return decoder, lambda codes: model.decode([(codes.transpose(1, 2), None)])[:, 0]


def record(decoder: Decoder, sample_hz: int = 16000) -> Codec:
    return Codec(
        stream="",
        encode=None,
        sample_hz=sample_hz,
        samples_per_frame=decoder.config.hop,
        quantizers=3,
        groups=1,
        codebook_size=CODEBOOK,
        lookahead_frames=decoder.lookahead_frames,
        min_frames=decoder.min_frames,
        states={name: list(shape) for name, shape in state_shapes(decoder).items()},
        min_encode_frames=1,
    )


class InTorch:
    """A decoder as the function that the runtime calls."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.calls: list[int] = []  # frames of each

    @torch.inference_mode()
    def __call__(self, codes: np.ndarray, **given: np.ndarray) -> dict[str, np.ndarray]:
        self.calls.append(codes.shape[1])
        frames, *before = map(torch.from_numpy, given.values())
        state = State(frames, before)
        wave = self.decoder(torch.from_numpy(codes), state).numpy()
        after = [frames + codes.shape[1], *state.kept]
        return {"wave": wave, **{f"next.{name[6:]}": one.numpy() for name, one in zip(given, after, strict=True)}}


class InOnnxRuntime:
    def __init__(self, decoder: Decoder, folder: Path) -> None:
        export_codec_stream(decoder, folder / "codec_stream.onnx")
        self.session = onnxruntime.InferenceSession(folder / "codec_stream.onnx")
        self.names = [output.name for output in self.session.get_outputs()]

    def __call__(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(self.names, map(np.asarray, self.session.run(self.names, inputs)), strict=True))


def random_codes(frames: int, columns: int = 3) -> np.ndarray:
    return np.random.default_rng(frames).integers(0, CODEBOOK, (frames, columns))


def in_calls(decoder: Decoder, graph: Any, codes: Tensor, lengths: list[int]) -> Tensor:
    """Return the wave of calls of so many frames, each given what the one before has kept. codes: [B, frames, Q]."""
    inputs, waves, start = first_state(record(decoder), len(codes)), [], 0
    sizes = {name: array.shape for name, array in inputs.items()}
    for length in lengths:
        outputs = graph(codes=codes[:, start : start + length].numpy(), **inputs)
        waves.append(torch.from_numpy(outputs["wave"]))
        inputs = {name: outputs[f"next.{name.removeprefix('state.')}"] for name in inputs}
        start += length
        assert {name: array.shape for name, array in inputs.items()} == sizes, "the state does not stay of one size"
        assert inputs["state.frames"].tolist() == [start]
    assert start == codes.shape[1]
    return torch.cat(waves, dim=1)


def assert_same_wave(found: Tensor, expected: Tensor, what: str) -> None:
    assert found.shape == expected.shape and found.dtype == torch.float32
    error = ((found - expected).abs().max() / expected.abs().max()).item()
    assert expected.std() > 1e-3 and error <= TOLERANCE, f"{what}: {error:.1e} of the peak"


def ways(first: int, frames: int) -> list[list[int]]:
    """Ways to cut a clip: one call, frame by frame, a last call shorter than the others, a first one that is longer."""
    rest = frames - first
    return [[frames], [first, *[1] * rest], [first, *[7] * (rest // 7), rest % 7 or 7][: rest // 7 + 1 + (rest % 7 > 0)], [frames - 1, 1]]


@pytest.mark.parametrize("name", [*VARIANTS, "encodec"])
@torch.inference_mode()
def test_calls_are_the_whole(name: str) -> None:
    """Fault: a layer that keeps too little or another call's positions; an attention that knows where its blocks began, or that reads keys
    from before the clip; padding that is heard at a seam; a first call of `lookahead_frames` that still depends on what follows."""
    decoder, upstream = encodec() if name == "encodec" else soundstream(**VARIANTS[name])
    K, columns = decoder.lookahead_frames, decoder.config.rq_groups * 3
    frames = K + (150 if name == "upstream's window" else 47)
    codes = torch.from_numpy(np.stack([random_codes(frames, columns), random_codes(frames + 1, columns)[1:]]))
    expected = upstream(codes)
    assert_same_wave(decoder(codes), expected, "without a state")
    for lengths in ways(K, frames):
        assert_same_wave(in_calls(decoder, InTorch(decoder), codes, lengths), expected, f"calls of {lengths[:3]}...")


@pytest.mark.parametrize("name", ["readme strides", "position bias", "copies of the first position", "encodec"])
def test_calls_of_the_graph_are_the_whole(name: str, tmp_path: Path) -> None:
    """Fault: a graph that holds for the sizes it was traced with; states under each other's names; gates in torch's order."""
    decoder, upstream = encodec((3, 1, 4)) if name == "encodec" else soundstream(**VARIANTS[name])
    graph, K, columns = InOnnxRuntime(decoder, tmp_path), decoder.lookahead_frames, decoder.config.rq_groups * 3
    codes = torch.from_numpy(random_codes(2 * (K + 31), columns)).unflatten(0, (2, -1))
    with torch.inference_mode():
        expected = upstream(codes)
    for lengths in ways(K, K + 31):
        assert_same_wave(in_calls(decoder, graph, codes, lengths), expected, f"calls of {lengths[:3]}...")
        alone = in_calls(decoder, graph, codes[1:], lengths)
        assert_same_wave(alone, expected[1:], f"the second row alone, calls of {lengths[:3]}...")


def test_a_state_is_one_clips(tmp_path: Path) -> None:
    """Fault: something of one clip that a graph keeps to itself, heard in another whose calls lie between."""
    decoder, _ = soundstream(**VARIANTS["readme strides"])
    graph, codec = InOnnxRuntime(decoder, tmp_path), record(decoder)
    clips = [random_codes(40), random_codes(41)]
    alone = [decode_codes(codec, graph, clip, lambda: None) for clip in clips]
    streams, waves = [CodecStream(codec, graph) for _ in clips], [[], []]
    for frame in range(40):
        for stream, clip, wave in zip(streams, clips, waves, strict=True):
            wave.append(stream.feed(clip[frame : frame + 1]))
    waves[1].append(streams[1].feed(clips[1][40:]))
    for stream, wave, expected in zip(streams, waves, alone, strict=True):
        assert np.array_equal(np.concatenate([*wave, stream.finish()]), expected)


def test_chunks_do_not_depend_on_how_codes_arrive() -> None:
    """Fault: a clip of other chunks, thus of other bits, when its codes come frame by frame, or many at once."""
    decoder, _ = soundstream(**VARIANTS["readme strides"])
    codec, codes = record(decoder), random_codes(100)
    expected, done = InTorch(decoder), []
    whole = decode_codes(codec, expected, codes, lambda: done.append(len(expected.calls)))
    assert whole.dtype == np.float32 and whole.shape == (100 * 320,)
    assert expected.calls == [8, *[15] * 6, 2] and done == [1, 2, 3, 4, 5, 6, 7, 8]
    for size in (1, 4, 15, 23, 100):
        graph = InTorch(decoder)
        stream = CodecStream(codec, graph)
        parts = [stream.feed(codes[start : start + size]) for start in range(0, 100, size)]
        given = np.cumsum([len(codes[start : start + size]) for start in range(0, 100, size)])
        made = np.cumsum([len(part) for part in parts]) // 320
        ends = list(itertools.accumulate(expected.calls[:-1]))
        assert made.tolist() == [max([0, *(end for end in ends if end <= have)]) for have in given], "a chunk waits, or comes too early"
        assert np.array_equal(np.concatenate([*parts, stream.finish()]), whole) and graph.calls == expected.calls


@pytest.mark.parametrize("frames", [1, 3, 7, 8, 9, 23])
def test_clips_that_end_early(frames: int) -> None:
    """Fault: a graph asked for fewer frames than its padding reflects; a wave of another length than its frames; an empty last call."""
    decoder, upstream = soundstream(**VARIANTS["readme strides"])
    codec, codes = record(decoder), random_codes(frames)
    filled = np.concatenate([codes, np.repeat(codes[-1:], max(7 - frames, 0), axis=0)])
    with torch.inference_mode():
        expected = upstream(torch.from_numpy(filled)[None])
    graph = InTorch(decoder)
    wave = decode_codes(codec, graph, codes, lambda: None)
    assert_same_wave(torch.from_numpy(wave)[None], expected[:, : frames * 320], f"{frames} frames")
    assert 0 not in graph.calls and sum(graph.calls) == len(filled)
    decoder, upstream = encodec()
    with torch.inference_mode():
        expected = upstream(torch.from_numpy(codes)[None])
    wave = decode_codes(record(decoder), InTorch(decoder), codes, lambda: None)
    assert_same_wave(torch.from_numpy(wave)[None], expected, f"{frames} frames of EnCodec")


def silence(codec: Codec, codes: np.ndarray, **given: np.ndarray) -> dict[str, np.ndarray]:
    """A graph that makes no sound, at once."""
    wave = np.zeros((1, codes.shape[1] * codec.samples_per_frame), np.float32)
    return {"wave": wave, **{f"next.{name[6:]}": one for name, one in given.items()}}


def test_the_grid() -> None:
    """Fault: chunks longer than they may be, a first chunk whose samples change with what comes later, a clip that no chunks add up to."""
    decoder, _ = soundstream(**VARIANTS["readme strides"])
    fast, slow = record(decoder), record(decoder, sample_hz=800)
    assert (first_chunk_frames(fast), chunk_frames(fast), longest_chunk(fast)) == (8, 15, 15)
    assert (first_chunk_frames(slow), chunk_frames(slow), longest_chunk(slow)) == (7, 1, 7)  # a frame is longer than a chunk may be
    for codec, frames in itertools.product((fast, slow), range(1, 60)):
        stream, codes = CodecStream(codec, partial(silence, codec)), random_codes(frames)
        waves = [*(stream.feed(codes[frame : frame + 1]) for frame in range(frames)), stream.finish()]
        lengths = [len(wave) // codec.samples_per_frame for wave in waves if len(wave)]
        assert sum(lengths) == frames and min(lengths) > 0 and lengths[0] == min(frames, first_chunk_frames(codec))
        assert set(lengths[1:-1]) <= {chunk_frames(codec)} and lengths[-1] <= longest_chunk(codec)


def test_a_stream_ends_once() -> None:
    """Fault: codes after the end that begin another clip with the state of this one, or are dropped without a word."""
    decoder, _ = encodec()
    stream = CodecStream(record(decoder), InTorch(decoder))
    assert stream.feed(random_codes(3)).shape == (0,)
    assert stream.finish().shape == (3 * 6,) and stream.finish().shape == (0,)
    with pytest.raises(RuntimeError, match="this clip is finished: another one needs a CodecStream of its own"):
        stream.feed(random_codes(3))
    assert CodecStream(record(decoder), InTorch(decoder)).finish().shape == (0,)


def test_the_size_of_a_state() -> None:
    """Fault: a state that is estimated at another size than the first call is given."""
    for decoder, _ in (soundstream(**VARIANTS["music strides, two layers of attention"]), encodec()):
        codec = record(decoder)
        assert state_size(codec) == sum(array.size for name, array in first_state(codec, 1).items() if name != "state.frames")
