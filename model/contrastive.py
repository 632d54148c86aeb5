"""The losses that pull MuLaN's audio and text latents together, compatible with musiclm-pytorch 0.2.8.

In: unit latents of B pairs, [B, D] or one set per layer [L, B, D]; row i of one belongs to row i of the other. Out: a scalar. Constructor
arguments, parameter names and fresh values are upstream's. In a distributed run every process computes the loss of all processes' pairs
joined, as upstream means to: its own gathering stops at an undefined name.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .distributed import gather_batch, is_distributed


class SoftmaxContrastiveLearning(nn.Module):
    """Every clip against all texts and every text against all clips (InfoNCE), with a learned temperature per layer.

    Decoupled, a pair is left out of its own denominator (Yeh et al. 2022, arxiv.org/abs/2110.06848). The sums stay in the log domain, so
    that loss and gradients hold at any temperature: upstream's exponentials overflow where similarity times temperature passes 88, and
    its logarithm stops passing gradients below -46. Between the two the results are equal.
    """

    def __init__(self, *, layers: int = 1, decoupled_contrastive_learning: bool = False, init_temp: float = 10) -> None:
        super().__init__()
        self.temperatures = nn.Parameter(torch.full((layers, 1, 1), math.log(init_temp)))
        self.decoupled_contrastive_learning = decoupled_contrastive_learning

    def forward(self, audio_latents: Tensor, text_latents: Tensor) -> Tensor:
        """audio_latents, text_latents [B, D] or [L, B, D] -> scalar: mean over pairs, sum over layers."""
        scores = _similarities(audio_latents, text_latents) * self.temperatures.exp()
        pairs = scores.diagonal(dim1=-2, dim2=-1)
        if self.decoupled_contrastive_learning:
            batch = scores.shape[-1]
            if batch < 2:
                raise ValueError("the decoupled loss of a single pair has nothing to contrast it with: train with batches of 2 and more")
            scores = scores.masked_fill(torch.eye(batch, dtype=torch.bool, device=scores.device), -math.inf)
        loss = 0.5 * (scores.logsumexp(dim=-1) + scores.logsumexp(dim=-2)) - pairs
        return loss.mean(dim=-1).sum()


class SigmoidContrastiveLearning(nn.Module):
    """Each clip and text of the batch as a yes or no of its own (Zhai et al. 2023, arxiv.org/abs/2303.15343)."""

    def __init__(self, *, layers: int = 1, init_temp: float = 10, init_bias: float = -10) -> None:
        super().__init__()
        self.temperatures = nn.Parameter(torch.full((layers, 1, 1), math.log(init_temp)))
        self.bias = nn.Parameter(torch.full((layers, 1, 1), float(init_bias)))

    def forward(self, audio_latents: Tensor, text_latents: Tensor) -> Tensor:
        """audio_latents, text_latents [B, D] or [L, B, D] -> scalar: sum over all clips and texts and over layers, divided by B."""
        scores = _similarities(audio_latents, text_latents) * self.temperatures.exp() + self.bias
        batch = scores.shape[-1]
        sign = 2 * torch.eye(batch, dtype=scores.dtype, device=scores.device) - 1
        return -F.logsigmoid(sign * scores).sum() / batch


class MultiLayerContrastiveLoss(nn.Module):
    """The same contrast between layers within the two towers (Shukor et al. 2022, arxiv.org/abs/2208.13628)."""

    audio_gamma: Tensor
    audio_latent_weight: Tensor
    audio_latent_bias: Tensor
    text_gamma: Tensor
    text_latent_weight: Tensor
    text_latent_bias: Tensor

    def __init__(
        self,
        *,
        audio_dim: int,
        text_dim: int,
        dim_latent: int,
        layers: int,
        decoupled_contrastive_learning: bool = False,
        sigmoid_contrastive_loss: bool = False,
    ) -> None:
        super().__init__()
        self.layers = layers
        for tower, dim in (("audio", audio_dim), ("text", text_dim)):
            self.register_parameter(f"{tower}_gamma", nn.Parameter(torch.ones(layers, 1, dim)))
            self.register_parameter(f"{tower}_latent_weight", nn.Parameter(torch.randn(layers, dim, dim_latent)))
            self.register_parameter(f"{tower}_latent_bias", nn.Parameter(torch.randn(layers, 1, dim_latent)))
        self.contrast = contrastive_loss(layers, decoupled_contrastive_learning, sigmoid_contrastive_loss)

    def forward(self, *, audio_layers: Tensor, text_layers: Tensor) -> Tensor:
        """audio_layers [L, B, patches, audio_dim], text_layers [L, B, tokens, text_dim], the class token first -> scalar."""
        audio = _layer_latents(audio_layers.mean(dim=2), self.audio_gamma, self.audio_latent_weight, self.audio_latent_bias)
        text = _layer_latents(text_layers[:, :, 0], self.text_gamma, self.text_latent_weight, self.text_latent_bias)
        return self.contrast(audio, text)


def contrastive_loss(layers: int, decoupled: bool, sigmoid: bool) -> SoftmaxContrastiveLearning | SigmoidContrastiveLearning:
    """The loss that MuLaN's arguments choose; decoupling means nothing to the sigmoid."""
    if sigmoid:
        return SigmoidContrastiveLearning(layers=layers)
    return SoftmaxContrastiveLearning(layers=layers, decoupled_contrastive_learning=decoupled)


def _similarities(audio: Tensor, text: Tensor) -> Tensor:
    """[B, D] or [L, B, D] each -> [1 or L, B clips, B texts] fp32 at least: under autocast the product alone is of low precision.
    In a distributed run B counts the pairs of all processes."""
    if audio.shape != text.shape or audio.ndim not in (2, 3):
        raise ValueError(f"expected one text for each clip, both [B, D] or [L, B, D]; got {list(audio.shape)} and {list(text.shape)}")
    audio, text = (latents if latents.ndim == 3 else latents[None] for latents in (audio, text))
    if is_distributed():
        audio, text = gather_batch(torch.cat((audio, text), dim=-1)).chunk(2, dim=-1)
    similarities = audio @ text.mT
    return similarities.to(torch.promote_types(similarities.dtype, torch.float32))


def _layer_latents(x: Tensor, gamma: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x [L, B, dim] -> unit latents [L, B, D], each layer with its own gain and projection."""
    return F.normalize(F.layer_norm(x, x.shape[-1:]) * gamma @ weight + bias, dim=-1)
