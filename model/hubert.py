"""HuBERT with k-means (Hsu et al. 2021, arxiv.org/abs/2106.07447): semantic tokens as AudioLM and MusicLM's open versions have them.

In: waves [B, t] fp32. Out: tokens int64 [B, T], those of audiolm-pytorch's `HubertWithKmeans` with the same files, without fairseq. The
network is transformers' `HubertModel`. It knows no file formats.
"""

import math
import os
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .hubert_files import read_hubert
from .semantic_tokens import SemanticTokenizer
from .sklearn_kmeans import read_cluster_centers

_FRAME_EPS = 1e-7  # open-musiclm's, as in transformers' `zero_mean_unit_var_norm`


class HubertKmeans(SemanticTokenizer):
    """Nearest centres of what layer `output_layer` of HuBERT makes of a wave.

    fairseq counts layers from one, gives what a layer leaves behind, and in models whose layers begin with their norm (`large`) spares that
    the final one; transformers would apply it. Layers beyond are left out. It stays in evaluation mode whatever wraps it: audiolm-pytorch's
    trainers would switch HuBERT's dropout on, and every pass would give other tokens.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        state: Mapping[str, Tensor],
        centres: Tensor,
        *,
        output_layer: int = 9,
        target_sample_hz: int = 16000,
        normalize: bool = False,
        normalize_eps: float = 1e-5,
        normalize_features: bool = False,
        seq_len_multiple_of: int | None = None,
    ) -> None:
        """config: arguments of transformers' `HubertConfig`; state: tensors fp32 under its names; centres: fp32 [K, hidden_size].

        normalize: bring every wave to mean 0 and deviation 1, as `large` models were pretrained; audiolm-pytorch does it for none.
        normalize_eps: added to the wave's variance, 1e-5 by fairseq, 1e-7 by transformers. normalize_features: bring the features of every
        frame to mean 0 and deviation 1 before they are compared with the centres, as open-musiclm does with MERT-v0.
        Raises ValueError if they do not fit together.
        """
        from .upstream import import_transformers

        hubert = import_transformers().models.hubert
        try:
            settings = hubert.HubertConfig(**config, mask_time_prob=0.0)
        except Exception as error:  # its checks have exceptions of their own
            raise ValueError(f"transformers refuses these settings of HuBERT: {error}") from error
        last, width = settings.num_hidden_layers, settings.hidden_size
        if not isinstance(output_layer, int) or not 1 <= output_layer <= last:
            raise ValueError(f"output_layer must lie between 1 and the model's {last} layers, got {output_layer}")
        if centres.ndim != 2 or centres.shape[1] != width:
            raise ValueError(f"the cluster centres are {list(centres.shape)}, but this HuBERT's features are {width} wide: [K, {width}]")
        strides = settings.conv_stride
        shortest = 1
        for kernel, stride in zip(reversed(settings.conv_kernel), reversed(strides), strict=True):
            shortest = (shortest - 1) * stride + kernel
        multiple = seq_len_multiple_of or 1
        super().__init__(target_sample_hz, math.prod(strides), -(-shortest // multiple) * multiple, seq_len_multiple_of)
        self.normalize, self.normalize_eps, self.normalize_features = normalize, normalize_eps, normalize_features
        # No weight is made only to be replaced, and none of a size that the file does not have.
        settings.num_hidden_layers = output_layer
        try:
            with torch.device("meta"):
                self.hubert = hubert.HubertModel(settings)
        except Exception as error:  # a KeyError for an activation that it does not know
            raise ValueError(f"transformers refuses these settings of HuBERT: {error!r}") from error
        beyond = [name for name in state if (found := re.match(r"encoder\.layers\.(\d{1,9})\.", name)) and int(found[1]) >= output_layer]
        if settings.do_stable_layer_norm:
            self.hubert.encoder.layer_norm = nn.Identity()
            beyond += [name for name in state if name.startswith("encoder.layer_norm.")]
        try:
            self.hubert.load_state_dict({name: state[name] for name in state.keys() - beyond}, assign=True)
        except RuntimeError as error:  # torch lists every missing, unexpected and misshapen tensor
            raise ValueError(f"HuBERT's tensors and settings do not fit together. {error}") from error
        self.hubert.requires_grad_(False).eval()
        self.register_buffer("centres", centres)

    @classmethod
    def from_files(
        cls,
        checkpoint_path: str | os.PathLike,
        kmeans_path: str | os.PathLike,
        target_sample_hz: int = 16000,
        seq_len_multiple_of: int | None = None,
        output_layer: int = 9,
        **more: Any,
    ) -> "HubertKmeans":
        """Of the files that `HubertWithKmeans` takes, with its arguments: fairseq's checkpoint, or a Hugging Face folder, and the k-means
        model of scikit-learn. more: `normalize`, `normalize_eps`, `normalize_features`."""
        hubert = read_hubert(checkpoint_path)
        config = {name: fact.value for name, fact in hubert.facts.items()}
        sizes: dict[str, Any] = dict(target_sample_hz=target_sample_hz, seq_len_multiple_of=seq_len_multiple_of, output_layer=output_layer)
        centres = read_cluster_centers(kmeans_path)
        try:
            return cls(config, hubert.state, centres, **sizes, **more)
        except ValueError as error:
            raise ValueError(f"{checkpoint_path} with {kmeans_path}: {error}") from error

    def train(self, mode: bool = True) -> "HubertKmeans":
        super().train(mode)
        self.hubert.eval()
        return self

    def features(self, wave: Tensor) -> Tensor:
        if self.seq_len_multiple_of is not None:  # as `forward` does, for the graph
            wave = wave[:, : wave.shape[1] // self.seq_len_multiple_of * self.seq_len_multiple_of]
        if self.normalize:
            deviation, mean = torch.var_mean(wave, dim=-1, correction=0, keepdim=True)
            wave = (wave - mean) / (deviation + self.normalize_eps).sqrt()  # fairseq: the layer norm of the whole wave
        features = self.hubert(wave).last_hidden_state
        if not self.normalize_features:
            return features
        variance, mean = torch.var_mean(features, dim=-1, keepdim=True)  # unbiased
        return (features - mean) / (variance + _FRAME_EPS).sqrt()
