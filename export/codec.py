"""The codec's two stages: decoder and encoder of a SoundStream or an EnCodec, whichever the checkpoint holds, to ONNX graphs.

In: a checkpoint, the settings. Out: settings, PyTorch modules, the stages `codec_stream` and `codec_encode`, the bundle's record.
Which tensors mean what is in `soundstream` and `encodec`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from ..model.causal import State, state_shapes
from ..model.encodec import EncodecDecoder, EncodecEncoder
from ..model.soundstream import SoundStreamConfig, SoundStreamDecoder
from ..model.soundstream_encoder import SoundStreamEncoder
from ..runtime.bundle import Codec
from .checkpoint import Checkpoint, is_encodec
from .encodec import build_encodec, infer_encodec
from .settings import Settings
from .soundstream import build_decoder, build_encoder, infer_soundstream
from .trace import trace

Decoder = SoundStreamDecoder | EncodecDecoder
Encoder = SoundStreamEncoder | EncodecEncoder


def infer_codec(checkpoint: Checkpoint, quantizers: int | None, overrides: Mapping[str, Any]) -> Settings:
    """Settings of the codec. quantizers: of coarse and fine transformer together, if known."""
    if is_encodec(checkpoint.state):
        return infer_encodec(checkpoint.state, checkpoint.config_json, quantizers, overrides)
    return infer_soundstream(checkpoint.state, checkpoint.pickled_config, checkpoint.version, overrides)


def build_codec(settings: Settings, state: Mapping[str, Tensor]) -> tuple[Decoder, Encoder | None]:
    if is_encodec(state):
        return build_encodec(settings, state)
    return build_decoder(settings, state), build_encoder(settings, state)


def export_codec(settings: Settings, state: Mapping[str, Tensor], folder: Path) -> Codec:
    """Both stages into `folder`."""
    decoder, encoder = build_codec(settings, state)
    export_codec_stream(decoder, folder / "codec_stream.onnx")
    if encoder is not None:
        export_codec_encode(encoder, folder / "codec_encode.onnx")
    return Codec(
        stream="codec_stream.onnx",
        encode=None if encoder is None else "codec_encode.onnx",
        sample_hz=settings["target_sample_hz"],
        samples_per_frame=decoder.config.hop,
        quantizers=settings["rq_num_quantizers"] * settings["rq_groups"],
        groups=settings["rq_groups"],
        codebook_size=settings["codebook_size"],
        lookahead_frames=decoder.lookahead_frames,
        min_frames=decoder.min_frames,
        states={name: list(shape) for name, shape in state_shapes(decoder).items()},
        min_encode_frames=1 if encoder is None else encoder.min_frames,
    )


class _Call(nn.Module):
    """One call of a decoder: a clip goes on from the state of the call before."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, codes: Tensor, frames: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        state = State(frames, given)
        wave = self.decoder(codes, state)
        return wave, frames + codes.shape[1], *state.kept


def export_codec_stream(decoder: Decoder, path: Path) -> None:
    """Write the graph of a decoder whose state goes in and comes out, weights beside it in `path` + ".data".

    Inputs: `codes` [batch, n, G*Q] int64, `state.frames` [1] int64, and `state.<name>` [batch, ...] fp32 for each name of `state_shapes`.
    Outputs: `wave` [batch, n * hop] fp32, and `next.frames` and `next.<name>`, which are the state of the next call. Any batch. n is at
    least 1, and in the first call at least `decoder.min_frames`.
    """
    config, shapes = decoder.config, state_shapes(decoder)
    codes = torch.zeros(2, _example_frames(decoder), config.rq_groups * config.rq_num_quantizers, dtype=torch.long)
    states = [torch.zeros(2, *shape) for shape in shapes.values()]
    inputs = ["codes", "state.frames", *(f"state.{name}" for name in shapes)]
    outputs = ["wave", "next.frames", *(f"next.{name}" for name in shapes)]
    batch = Dim("batch", min=1)
    dims = [{0: batch, 1: Dim("n", min=1)}, {}, tuple({0: batch} for _ in shapes)]
    trace(_Call(decoder), (codes, torch.zeros(1, dtype=torch.long), *states), path, inputs, outputs, dims)


def export_codec_encode(encoder: Encoder, path: Path) -> None:
    """Write `wave` [batch, frames * hop] fp32 -> `codes` [batch, frames, G*Q] int64, weights beside it in `path` + ".data".

    Any batch, and any number of frames from `encoder.min_frames` up.
    """
    hop = encoder.config.hop
    wave = torch.zeros(2, _example_frames(encoder) * hop)
    trace(encoder, (wave,), path, ["wave"], ["codes"], [{0: Dim("batch", min=1), 1: hop * Dim("frames", min=encoder.min_frames)}])


def _example_frames(module: Decoder | Encoder) -> int:
    """Several windows of a SoundStream's attention: one would be taken for a constant."""
    window = module.config.attn_window_size if isinstance(module.config, SoundStreamConfig) else 1
    return max(module.min_frames, 2 * window) + 3
