"""MuLaN: an audio and a text tower that meet in one latent space (Huang et al. 2022, arxiv.org/abs/2208.12415).

In: waves [B, t], token ids or texts. Out: unit latents [B, dim_latent] of each, or their similarities. Constructor arguments, parameter
names and state-dict keys are those of musiclm-pytorch 0.2.8; the contrastive losses keep their parameters, so that checkpoints load both
ways, but are not computed yet.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .audio_spectrogram_transformer import AudioSpectrogramTransformer
from .text_transformer import TextTransformer


class _ContrastiveParameters(nn.Module):
    """What either contrastive loss learns; the sigmoid loss has a bias too."""

    def __init__(self, layers: int, sigmoid: bool) -> None:
        super().__init__()
        self.temperatures = nn.Parameter(torch.full((layers, 1, 1), math.log(10)))
        if sigmoid:
            self.bias = nn.Parameter(torch.full((layers, 1, 1), -10.0))


class _MultiLayerParameters(nn.Module):
    """What the contrastive loss across layers learns."""

    def __init__(self, audio_dim: int, text_dim: int, dim_latent: int, layers: int, sigmoid: bool) -> None:
        super().__init__()
        for tower, dim in (("audio", audio_dim), ("text", text_dim)):
            self.register_parameter(f"{tower}_gamma", nn.Parameter(torch.ones(layers, 1, dim)))
            self.register_parameter(f"{tower}_latent_weight", nn.Parameter(torch.randn(layers, dim, dim_latent)))
            self.register_parameter(f"{tower}_latent_bias", nn.Parameter(torch.randn(layers, 1, dim_latent)))
        self.contrast = _ContrastiveParameters(layers, sigmoid)


class MuLaN(nn.Module):
    def __init__(
        self,
        audio_transformer: AudioSpectrogramTransformer,
        text_transformer: TextTransformer,
        dim_latent: int = 128,
        decoupled_contrastive_learning: bool = True,
        hierarchical_contrastive_loss: bool = False,
        hierarchical_contrastive_loss_layers: int | None = None,
        sigmoid_contrastive_loss: bool = False,
    ) -> None:
        super().__init__()
        self.dim_latent = dim_latent
        self.decoupled_contrastive_learning = decoupled_contrastive_learning
        self.audio = audio_transformer
        self.text = text_transformer
        self.text_to_latents = nn.Linear(self.text.dim, dim_latent)
        self.audio_to_latents = nn.Linear(self.audio.dim, dim_latent)
        self.contrast = _ContrastiveParameters(1, sigmoid_contrastive_loss)
        if hierarchical_contrastive_loss:
            most = min(self.audio.depth, self.text.depth)
            layers = most - 1 if hierarchical_contrastive_loss_layers is None else hierarchical_contrastive_loss_layers
            if not 0 < layers <= most:
                raise ValueError(f"hierarchical_contrastive_loss_layers must lie between 1 and {most}, the depth, got {layers}")
            for tower, depth in (("text", self.text.depth), ("audio", self.audio.depth)):
                self.register_buffer(f"{tower}_layers_indices", (torch.arange(layers) * (depth / layers)).floor().long())
            self.multi_layer_contrastive_learning = _MultiLayerParameters(
                self.audio.dim, self.text.dim, dim_latent, layers, sigmoid_contrastive_loss
            )

    def get_audio_latents(self, wavs: Tensor) -> Tensor:
        """wavs [B, t] (spectrograms where the tower accepts them) -> unit latents [B, dim_latent]."""
        return F.normalize(self.audio_to_latents(self.audio(wavs)), dim=-1)

    def get_text_latents(self, texts: Tensor | None = None, raw_texts: Sequence[str] | None = None, mask: Tensor | None = None) -> Tensor:
        """texts [B, n] token ids, or raw_texts: B texts; mask [B, n] bool, by default the ids that are not padding -> [B, dim_latent]."""
        return F.normalize(self.text_to_latents(self.text(texts, raw_texts=raw_texts, mask=mask)), dim=-1)

    def forward(
        self,
        wavs: Tensor,
        texts: Tensor | None = None,
        raw_texts: Sequence[str] | None = None,
        return_latents: bool = False,
        return_similarities: bool = False,
        return_pairwise_similarities: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Audio and text latents [B, dim_latent] each, cosine similarities [B], or those of every pair [B audio, B text]."""
        if not (return_latents or return_similarities or return_pairwise_similarities):
            raise NotImplementedError(
                "the contrastive loss is not implemented: pass return_latents, return_similarities or return_pairwise_similarities, "
                "or train with musiclm-pytorch"
            )
        audio, text = self.get_audio_latents(wavs), self.get_text_latents(texts, raw_texts=raw_texts)
        if return_latents:
            return audio, text
        return (audio * text).sum(dim=-1) if return_similarities else audio @ text.T
