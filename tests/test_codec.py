"""A wave decoded in chunks against the same wave decoded at once: the context that the export works out is enough, and no frame too many.

fp32: 1e-5 of the peak, the most that two ways of summing may differ by anywhere in the codec's tests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from support.soundstream import CODEBOOK, TOLERANCE, upstream_soundstream

from musiclm_deploy.export.codec import export_codec_decode
from musiclm_deploy.export.soundstream import build_decoder, infer_soundstream
from musiclm_deploy.model.soundstream import SoundStreamDecoder
from musiclm_deploy.runtime.bundle import Codec
from musiclm_deploy.runtime.codec import CHUNK_FRAMES, codec_chunks, decode_codes

VARIANTS: dict[str, dict[str, Any]] = {
    "readme strides": dict(strides=(2, 4, 5, 8)),
    "music strides, two layers of attention": dict(strides=(3, 4, 5, 8), attn_depth=2, attn_window_size=5),
    "no attention": dict(strides=(2, 3), channel_mults=(2, 4), use_local_attn=False),
    "position bias": dict(strides=(3, 5), channel_mults=(2, 3), attn_dynamic_pos_bias=True),
    "xpos base, squeeze and excite": dict(strides=(4, 2), channel_mults=(2, 4), attn_xpos_scale_base=7, squeeze_excite=True),
    "zero padding, two dilations": dict(strides=(2, 3), channel_mults=(2, 4), pad_mode="constant", dec_cycle_dilations=(2, 1)),
    "upstream's window": dict(strides=(2, 3), channel_mults=(2, 4), attn_window_size=128),
}


def soundstream(**arguments: Any) -> tuple[SoundStreamDecoder, Codec]:
    """A decoder of random weights, from upstream's state dict through the export's code, and its record."""
    sizes: dict[str, Any] = {"channels": 2, "codebook_dim": 8}
    model = upstream_soundstream(**sizes | arguments)
    settings = infer_soundstream(model.state_dict(), model._configs, "2.4.0", {})
    decoder = build_decoder(settings, model.state_dict())
    return decoder, Codec(
        decode="",
        encode=None,
        sample_hz=16000,
        samples_per_frame=decoder.config.hop,
        quantizers=3,
        groups=1,
        codebook_size=CODEBOOK,
        lookahead_frames=decoder.lookahead_frames,
        min_frames=decoder.min_frames,
        context_frames=decoder.context_frames,
        min_encode_frames=1,
    )


def in_torch(decoder: SoundStreamDecoder, calls: list[int] | None = None) -> Callable[[np.ndarray], np.ndarray]:
    def graph(codes: np.ndarray) -> np.ndarray:
        if calls is not None:
            calls.append(codes.shape[1])
        with torch.inference_mode():
            return decoder(torch.from_numpy(codes)).numpy()

    return graph


def random_codes(frames: int) -> np.ndarray:
    return np.random.default_rng(frames).integers(0, CODEBOOK, (frames, 3))


def error(codec: Codec, graph: Callable[[np.ndarray], np.ndarray], codes: np.ndarray, chunk_frames: int) -> float:
    """Largest difference between chunks and the whole, of the peak."""
    whole = graph(codes[None])[0]
    chunks = decode_codes(codec, graph, codes, lambda: None, chunk_frames)
    assert chunks.shape == whole.shape and whole.std() > 1e-3
    return float(np.abs(chunks - whole).max() / np.abs(whole).max())


@pytest.mark.parametrize("name", VARIANTS)
def test_chunks_are_the_whole(name: str) -> None:
    """Fault: a layer that reaches farther back than was counted, an attention that knows where its windows began, padding that is heard
    at a seam."""
    decoder, codec = soundstream(**VARIANTS[name])
    graph, K = in_torch(decoder), codec.lookahead_frames
    assert codec.context_frames is not None
    long = codec.context_frames + 39
    for frames, chunk_frames in ((K, 1), (K + 1, 1), (long, 17), (long + 2, long + 1), (2 * long - 1, 64)):
        found = error(codec, graph, random_codes(frames), chunk_frames)
        assert found <= TOLERANCE, f"{frames} frames in chunks of {chunk_frames}: {found:.1e} of the peak"


@pytest.mark.parametrize("name", [name for name in VARIANTS if "attention" in name or "strides" in name])
def test_the_context_is_exact(name: str) -> None:
    """Fault: a context that is too long, which every chunk pays for. A code is heard in the frame that lies `context_frames` after its own,
    and in none beyond."""
    decoder, codec = soundstream(**VARIANTS[name])
    assert codec.context_frames is not None
    at = codec.lookahead_frames
    codes = torch.from_numpy(random_codes(at + codec.context_frames + 5))
    other = codes.clone()
    other[at] = (other[at] + 1) % CODEBOOK
    with torch.inference_mode():
        wave, changed = decoder.double()(torch.stack([codes, other])).unflatten(1, (len(codes), -1))
    heard = (wave != changed).any(dim=1).nonzero().flatten().tolist()
    assert heard[-1] == at + codec.context_frames


def test_chunks_of_the_graph_are_the_whole(tmp_path: Path) -> None:
    """Fault: a graph that holds for whole clips only."""
    decoder, codec = soundstream(strides=(2, 4, 5, 8))
    export_codec_decode(decoder, tmp_path / "codec_decode.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "codec_decode.onnx")

    def graph(codes: np.ndarray) -> np.ndarray:
        return np.asarray(session.run(["wave"], {"codes": codes})[0])

    for frames, chunk_frames in ((151, 7), (150, 64), (97, 96)):
        assert error(codec, graph, random_codes(frames), chunk_frames) <= TOLERANCE


def test_a_chunk_is_bounded_and_the_first_long_enough() -> None:
    """Fault: a call that grows with the clip; a first chunk whose samples change with what comes later."""
    decoder, codec = soundstream(strides=(2, 4, 5, 8))
    calls: list[int] = []
    done: list[int] = []
    wave = decode_codes(codec, in_torch(decoder, calls), random_codes(100), lambda: done.append(len(calls)), chunk_frames=1)
    assert codec.lookahead_frames == 7 and codec.context_frames == 28  # 8 of attention, 14 of the blocks, 6 of the first convolution
    assert calls[:2] == [7, 14] and max(calls) == 28 + 7 and done == list(range(1, 16))
    assert len(wave) == 100 * 320
    assert len(codec_chunks(codec, 3000, CHUNK_FRAMES)) == 6
    assert codec_chunks(replace(codec, context_frames=None), 3000, CHUNK_FRAMES)[0].stop == 3000


def test_a_clip_shorter_than_the_codecs_least() -> None:
    """Fault: a graph asked for fewer frames than its padding reflects; or a wave of another length than its frames."""
    decoder, codec = soundstream(strides=(2, 4, 5, 8))
    codes = random_codes(3)
    wave = decode_codes(codec, in_torch(decoder), codes, lambda: None)
    padded = np.concatenate([codes, np.repeat(codes[-1:], 4, axis=0)])
    assert np.array_equal(wave, in_torch(decoder)(padded[None])[0, : 3 * 320])
