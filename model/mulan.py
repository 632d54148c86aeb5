"""MuLaN: an audio and a text tower that meet in one latent space (Huang et al. 2022, arxiv.org/abs/2208.12415).

In: waves [B, t], token ids or texts. Out: unit latents [B, dim_latent] of each, their similarities, or the contrastive loss that trains
them. Constructor arguments, parameter names and state-dict keys are those of musiclm-pytorch 0.2.8.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .audio_spectrogram_transformer import AudioSpectrogramTransformer
from .contrastive import MultiLayerContrastiveLoss, contrastive_loss
from .text_transformer import TextTransformer


class MuLaN(nn.Module):
    audio_layers_indices: Tensor
    text_layers_indices: Tensor

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
        self.audio = audio_transformer
        self.text = text_transformer
        self.text_to_latents = nn.Linear(self.text.dim, dim_latent)
        self.audio_to_latents = nn.Linear(self.audio.dim, dim_latent)
        self.contrast = contrastive_loss(1, decoupled_contrastive_learning, sigmoid_contrastive_loss)
        self.multi_layer_contrastive_learning = None
        if hierarchical_contrastive_loss:
            most = min(self.audio.depth, self.text.depth) - 1  # the last layer has the main loss
            layers = most if hierarchical_contrastive_loss_layers is None else hierarchical_contrastive_loss_layers
            if not 0 < layers <= most:
                raise ValueError(f"hierarchical_contrastive_loss_layers must lie between 1 and {most}, the depth less one, got {layers}")
            for tower, depth in (("text", self.text.depth), ("audio", self.audio.depth)):
                self.register_buffer(f"{tower}_layers_indices", (torch.arange(layers) * (depth / layers)).floor().long())
            self.multi_layer_contrastive_learning = MultiLayerContrastiveLoss(
                audio_dim=self.audio.dim,
                text_dim=self.text.dim,
                dim_latent=dim_latent,
                layers=layers,
                decoupled_contrastive_learning=decoupled_contrastive_learning,
                sigmoid_contrastive_loss=sigmoid_contrastive_loss,
            )

    def get_audio_latents(self, wavs: Tensor, return_all_layers: bool = False) -> Any:
        """wavs [B, t] (spectrograms where the tower accepts them) -> unit latents [B, dim_latent]; with `return_all_layers` also the
        outputs of the layers before the last, [depth - 1, B, patches, dim]."""
        if not return_all_layers:
            return F.normalize(self.audio_to_latents(self.audio(wavs)), dim=-1)
        embeds, layers = self.audio(wavs, return_all_layers=True)
        return F.normalize(self.audio_to_latents(embeds), dim=-1), layers

    def get_text_latents(
        self,
        texts: Tensor | None = None,
        raw_texts: Sequence[str] | None = None,
        return_all_layers: bool = False,
        mask: Tensor | None = None,
    ) -> Any:
        """texts [B, n] token ids, or raw_texts: B texts; mask [B, n] bool, by default the ids that are not padding -> [B, dim_latent];
        with `return_all_layers` also the outputs of the layers before the last, [depth - 1, B, 1 + n, dim]."""
        if not return_all_layers:
            return F.normalize(self.text_to_latents(self.text(texts, raw_texts=raw_texts, mask=mask)), dim=-1)
        embeds, layers = self.text(texts, raw_texts=raw_texts, mask=mask, return_all_layers=True)
        return F.normalize(self.text_to_latents(embeds), dim=-1), layers

    def forward(
        self,
        wavs: Tensor,
        texts: Tensor | None = None,
        raw_texts: Sequence[str] | None = None,
        return_latents: bool = False,
        return_similarities: bool = False,
        return_pairwise_similarities: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The contrastive loss of B clips and their texts, a scalar; or audio and text latents [B, dim_latent] each, cosine similarities
        [B], or those of every pair [B audio, B text]."""
        across_layers = self.multi_layer_contrastive_learning
        if return_latents or return_similarities or return_pairwise_similarities or across_layers is None:
            audio, text = self.get_audio_latents(wavs), self.get_text_latents(texts, raw_texts=raw_texts)
            if return_latents:
                return audio, text
            if return_similarities:
                return (audio * text).sum(dim=-1)
            return audio @ text.T if return_pairwise_similarities else self.contrast(audio, text)
        audio, audio_layers = self.get_audio_latents(wavs, return_all_layers=True)
        text, text_layers = self.get_text_latents(texts, raw_texts=raw_texts, return_all_layers=True)
        return self.contrast(audio, text) + across_layers(
            audio_layers=audio_layers[self.audio_layers_indices], text_layers=text_layers[self.text_layers_indices]
        )
