"""MuLaN's latents as conditioning for the token transformers: a residual quantizer and one embedding table per transformer.

In: waves [B, t] or token ids [B, n]. Out: conditioning [B, Q, dim] of one namespace ("semantic", "coarse", "fine"). Constructor arguments,
parameter names and state-dict keys are those of musiclm-pytorch 0.2.8. It does not know the transformers.
"""

import torch
from torch import Tensor, nn
from vector_quantize_pytorch import ResidualVQ

from .mulan import MuLaN


class MuLaNEmbedQuantizer(nn.Module):
    def __init__(
        self,
        mulan: MuLaN,
        conditioning_dims: tuple[int, ...],
        rq_num_quantizers: int = 8,
        rq_ema_decay: float = 0.9,
        codebook_size: int = 1024,
        namespaces: tuple[str, ...] = ("semantic", "coarse", "fine"),
    ) -> None:
        super().__init__()
        if not namespaces or len(namespaces) != len(conditioning_dims):
            raise ValueError(f"one conditioning dimension per namespace, got {conditioning_dims} for {namespaces}")
        self.mulan = mulan
        self.namespaces, self.conditioning_dims = namespaces, conditioning_dims
        self.rq = ResidualVQ(
            dim=mulan.dim_latent,
            num_quantizers=rq_num_quantizers,
            codebook_size=codebook_size,
            decay=rq_ema_decay,
            commitment_weight=0,  # the codebooks follow the latents by moving average alone
            kmeans_init=True,
            threshold_ema_dead_code=2,
        )
        self.cond_embeddings = nn.ParameterDict()
        for name, dim in zip(namespaces, conditioning_dims, strict=True):  # one by one: given a dict, ParameterDict would sort the names
            self.cond_embeddings[name] = nn.Parameter(torch.randn(rq_num_quantizers, codebook_size, dim) * 0.02)
        self.set_default_namespace(namespaces[0])

    def set_default_namespace(self, namespace: str) -> None:
        """The namespace that `forward` uses when it is given none."""
        if namespace not in self.namespaces:
            raise ValueError(f"namespace {namespace!r} not found, expected one of {', '.join(self.namespaces)}")
        self._default_namespace = namespace

    def forward(self, wavs: Tensor | None = None, texts: Tensor | None = None, namespace: str | None = None) -> Tensor:
        """wavs [B, t] or texts, token ids [B, n] -> conditioning [B, Q, dim]. In training mode the codebooks follow the latents."""
        namespace = self._default_namespace if namespace is None else namespace
        if namespace not in self.namespaces:
            raise ValueError(f"namespace {namespace!r} not found, expected one of {', '.join(self.namespaces)}")
        if (wavs is None) == (texts is None):
            raise ValueError("give either wavs or texts")
        # ResidualVQ would run k-means on this one batch even in eval mode, and every later code would hang on it.
        if not self.training and not all(buffer.all() for name, buffer in self.rq.named_buffers() if name.endswith("initted")):
            raise ValueError("these codebooks were never initialised: load a trained checkpoint, or pass data in training mode first")
        self.mulan.eval()
        with torch.no_grad():
            latents = self.mulan.get_text_latents(texts) if wavs is None else self.mulan.get_audio_latents(wavs)
            _, codes, _ = self.rq(latents)
        table = self.cond_embeddings[namespace]
        return table[torch.arange(len(table), device=codes.device), codes]
