"""Tiny SoundStreams of audiolm-pytorch with random codebooks."""

from typing import Any

import torch
from torch import Tensor

from musiclm_deploy.model.upstream import load_upstream

TOLERANCE = 1e-5  # share of the peak, fp32


CODEBOOK = 11


TINY: dict[str, Any] = dict(
    channels=4,
    codebook_dim=16,
    codebook_size=CODEBOOK,
    rq_num_quantizers=3,
    attn_heads=2,
    attn_dim_head=8,
    attn_window_size=8,
    discr_multi_scales=(1,),
    multi_spectral_window_powers_of_two=(6,),
)


SMALL: dict[str, Any] = dict(strides=(2, 3), channel_mults=(2, 4))


def upstream_soundstream(preset: str = "SoundStream", **arguments: Any) -> Any:
    load_upstream()
    from audiolm_pytorch import soundstream

    torch.manual_seed(0)
    model = getattr(soundstream, preset)(**TINY | arguments).eval()
    with torch.no_grad():
        for parameter in [*model.decoder.parameters(), *(model.decoder_attn.parameters() if model.decoder_attn else [])]:
            parameter += 0.1 * torch.randn_like(parameter)
        for name, buffer in model.rq.named_buffers():
            if name.endswith("embed"):
                buffer.normal_()
            elif name.endswith("initted"):
                buffer.fill_(True)
    return model


def random_codes(model: Any, batch: int, frames: int) -> Tensor:
    return torch.randint(CODEBOOK, (batch, frames, model.rq_groups * model.num_quantizers), generator=torch.Generator().manual_seed(frames))
