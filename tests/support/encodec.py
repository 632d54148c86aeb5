"""Small EnCodecs of the encodec package with random weights, and their files in transformers' form."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from musiclm_deploy.model.upstream import load_upstream


@torch.no_grad()
def randomise(model: Any) -> Any:
    """Randomise weights, gains and biases, then fill the codebooks so that the model's own latents use many entries."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        spread = 0.3 * parameter.abs().mean() if parameter.ndim > 1 else 0.1
        parameter += spread * torch.randn_like(parameter)
        if name.endswith(("weight_g", "original0")):
            parameter *= 2  # else the latents of all waves are nearly one
    residual = model.encoder(noise(2, 40, model)).transpose(1, 2).flatten(0, 1)
    for name, book in model.named_buffers():
        if name.endswith("codebook.embed"):
            centre = residual.mean(0)
            book.copy_(centre + 0.5 * (residual - centre).std() * torch.randn_like(book))
            residual = residual - book[torch.cdist(residual, book).argmin(1)]
    for name, buffer in model.named_buffers():
        if name.endswith("inited"):
            buffer.fill_(1)
    return model.eval()


def noise(batch: int, frames: int, model: Any = None) -> Tensor:
    """Return noise [B, 1, t], each row at another loudness."""
    hop = 320 if model is None else int(np.prod(ratios(model)))
    wave = torch.randn(batch, 1, frames * hop, generator=torch.Generator().manual_seed(frames))
    return wave * torch.logspace(-1.5, 0, batch).view(-1, 1, 1)


def ratios(model: Any) -> list[int]:
    return list(model.config.upsampling_ratios) if hasattr(model, "config") else list(model.encoder.ratios)


def small(strides: tuple[int, ...] = (2, 3), quantizers: int = 5) -> Any:
    load_upstream()
    from encodec.model import EncodecModel
    from encodec.modules.seanet import SEANetDecoder, SEANetEncoder
    from encodec.quantization.vq import ResidualVectorQuantizer

    torch.manual_seed(1)
    shape: dict[str, Any] = dict(dimension=12, n_filters=4, ratios=list(reversed(strides)), causal=True)
    quantizer = ResidualVectorQuantizer(dimension=12, n_q=quantizers, bins=16)
    return randomise(EncodecModel(SEANetEncoder(**shape), SEANetDecoder(**shape), quantizer, [1.0], 24000, 1))


def hugging_face(**arguments: Any) -> Any:
    from transformers import EncodecConfig, EncodecModel

    torch.manual_seed(2)
    small_one: dict[str, Any] = dict(num_filters=4, hidden_size=16, codebook_size=16, upsampling_ratios=[4, 2], target_bandwidths=[60.0])
    return randomise(EncodecModel(EncodecConfig(**small_one | arguments)))
