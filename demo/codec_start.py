"""Where the training of the codec begins: not at random weights but at a transform that is a codec already, if a poor one.

In: a SoundStream as it was drawn. Out: the same with its residual units and attention near the identity, and its changes of rate set to
cosine transforms: 640 samples become their 128 lowest coefficients, and become samples again. From there on it learns what a linear
transform cannot do; from random weights the first thousand steps, an hour on two cores, go into finding something of this kind.
It knows neither data nor losses.
"""

import math
from typing import Any

import torch
from torch import Tensor

_QUIET = 0.02  # what is left of the weights that the transform does not use, so that all of them can learn


@torch.no_grad()
def start_linear(model: Any) -> None:
    """Change the weights of a SoundStream in place. After its k-th change of rate the channels are bands in the order of their pitch."""
    for name, parameter in model.named_parameters():
        if name.startswith(("encoder.", "decoder.")):
            parameter.mul_(_QUIET)
    for attention in (model.encoder_attn, model.decoder_attn):
        for heads, feedforward in attention.layers:
            heads.to_out.weight.mul_(_QUIET)
            feedforward[-1].weight.mul_(_QUIET)

    bands = 1
    model.encoder[0].conv.weight[0, 0, -1] = 1
    model.decoder[-1].conv.weight[0, 0, -1] = 1
    ups = list(model.decoder)[-2:0:-1]  # in the encoder's order
    for stride, down, up in zip(model.strides, list(model.encoder)[1:-1], ups, strict=True):
        analysis, synthesis = down[-1].conv.weight, up[0].conv.weight  # [out, in, 2 * stride], [in, out, 2 * stride]
        kept = min(bands * stride, len(analysis))
        transform = band_transform(bands, stride)[:kept]
        analysis[:kept, :bands, stride:] = transform  # the later half of a kernel lies on the block itself, the earlier on the one before
        synthesis[:kept, :bands, :stride] = transform
        bands = kept
    last = min(bands, model.codebook_dim)
    for place in range(last):
        model.encoder[-1].conv.weight[place, place, -1] = 1
        model.decoder[0].conv.weight[place, place, -1] = 1


def band_transform(bands: int, stride: int) -> Tensor:
    """[bands * stride, bands, stride], orthonormal: each band's block of `stride` values by a cosine transform, into bands `stride` times
    as narrow, the lowest first. A band of odd number runs backwards, its highest pitch being its slowest change."""
    step, time = torch.arange(stride)[:, None], torch.arange(stride) + 0.5
    cosines = (math.pi * step * time / stride).cos() * math.sqrt(2 / stride)
    cosines[0] *= math.sqrt(0.5)
    transform = torch.zeros(bands * stride, bands, stride)
    for band in range(bands):
        transform[band * stride : (band + 1) * stride, band] = cosines.flip(0) if band % 2 else cosines
    return transform
