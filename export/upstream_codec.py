"""A codec as its own package runs it, for the validation to compare with: audiolm-pytorch's SoundStream, encodec's EncodecModel.

In: settings and tensors of a checkpoint. Out: waves of codes, latents of waves, and the codebooks with the distance they are searched by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..model.residual_vq import Distance, cosine, euclidean, squared_euclidean
from ..model.upstream import load_upstream
from .checkpoint import is_encodec
from .encodec import plain_state
from .errors import ExportError
from .settings import Settings
from .tensor_names import SOUNDSTREAM_PARTS, soundstream_tensors

_OF_RELEASES = ("version", "gate_values_per_head", "pads_whole_kernels")  # settings that are no arguments of SoundStream


@dataclass(frozen=True)
class UpstreamCodec:
    decode: Callable[[Tensor], Tensor]  # codes [B, frames, G*Q] -> wave [B, t]
    latents: Callable[[Tensor], Tensor]  # wave [B, t] -> [B, frames, G*D]
    codebooks: Tensor  # [G, Q, K, D]
    distance: Distance


def upstream_codec(settings: Settings, state: Mapping[str, Tensor]) -> UpstreamCodec:
    load_upstream()
    return _encodec(settings, state) if is_encodec(state) else _soundstream(settings, state)


def _soundstream(settings: Settings, state: Mapping[str, Tensor]) -> UpstreamCodec:
    from audiolm_pytorch import SoundStream

    values = settings.values()
    use_cosine = values["rq_kwargs.use_cosine_sim"]
    arguments: dict[str, Any] = {name: value for name, value in values.items() if "." not in name and name not in _OF_RELEASES}
    model = SoundStream(**arguments, rq_kwargs={"use_cosine_sim": use_cosine}, discr_multi_scales=(1,))
    _as_older_releases(model, values)
    result = model.load_state_dict(soundstream_tensors(state), strict=False)
    missing = [name for name in result.missing_keys if name.startswith(SOUNDSTREAM_PARTS) and not name.endswith(".inv_freq")]
    if missing:
        raise ExportError(f"codec: audiolm-pytorch's SoundStream has tensors that the checkpoint lacks: {', '.join(missing[:5])}.")
    model = model.float().eval()

    def latents(wave: Tensor) -> Tensor:
        x = model.encoder(wave.unsqueeze(1)).transpose(1, 2)
        return model.encoder_attn(x) if model.encoder_attn is not None else x

    def decode(codes: Tensor) -> Tensor:
        return model.decode_from_codebook_indices(codes).squeeze(1)

    return UpstreamCodec(decode, latents, model.rq.codebooks.float(), cosine if use_cosine else euclidean)


def _as_older_releases(model: Any, values: Mapping[str, Any]) -> None:
    """Change a SoundStream of audiolm-pytorch 2.4.0 into that of the release which saved the file."""
    for attention in (model.encoder_attn, model.decoder_attn) if not values.get("gate_values_per_head", True) else ():
        for layer, _ in attention.layers:
            layer.to_v_gate = None  # as local-attention leaves it without gates
    for block in model.encoder[1:-1] if values["pads_whole_kernels"] else ():
        downsample = block[-1]
        downsample.pad_mode, downsample.causal_padding = "constant", downsample.conv.kernel_size[0] - 1


def _encodec(settings: Settings, state: Mapping[str, Tensor]) -> UpstreamCodec:
    """Without weight norm, which checkpoints of the two packages keep in different ways: here it is folded as in the export."""
    from encodec.modules.seanet import SEANetDecoder, SEANetEncoder

    values = settings.values()
    shape: dict[str, Any] = {
        "dimension": values["codebook_dim"],
        "n_filters": values["n_filters"],
        "ratios": list(reversed(values["strides"])),
        "norm": "none",
        "causal": True,
    }
    plain = plain_state(state)
    parts = {"encoder": SEANetEncoder(**shape), "decoder": SEANetDecoder(**shape)}
    for part, model in parts.items():
        names = plain_state({f"{part}.{name}": tensor for name, tensor in model.state_dict().items()})
        model.load_state_dict({own: plain[name] for own, name in zip(model.state_dict(), names, strict=True)})
        model.eval()
    books = torch.stack([plain[f"quantizer.layers.{index}.codebook.embed"] for index in range(values["rq_num_quantizers"])]).float()

    def latents(wave: Tensor) -> Tensor:
        return parts["encoder"](wave.unsqueeze(1)).transpose(1, 2)

    def decode(codes: Tensor) -> Tensor:
        quantized = torch.stack([book[code] for book, code in zip(books, codes.unbind(2), strict=True)]).sum(0)
        return parts["decoder"](quantized.transpose(1, 2)).squeeze(1)

    return UpstreamCodec(decode, latents, books[None], squared_euclidean)
