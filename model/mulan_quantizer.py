"""MuLaN's latents as conditioning for the token transformers: a residual quantizer and one embedding table per transformer.

In: waves [B, t] or token ids [B, n]. Out: conditioning [B, Q, dim] of one namespace ("semantic", "coarse", "fine"). Constructor arguments,
parameter names and state-dict keys are those of musiclm-pytorch 0.2.8. It does not know the transformers. Where `load_upstream` has been
called it is an `AudioConditionerBase`, which audiolm-pytorch's trainers insist on.
"""

import os
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from vector_quantize_pytorch import ResidualVQ

from ..runtime.user_files import expanded
from .clap import ClapTowers
from .files import save_aside
from .mulan import MuLaN
from .tensor_file import read_package


class MuLaNEmbedQuantizer(nn.Module):
    def __init__(
        self,
        mulan: MuLaN | ClapTowers,
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
        self.frozen = False

    def set_default_namespace(self, namespace: str) -> None:
        """The namespace that `forward` uses when it is given none."""
        if namespace not in self.namespaces:
            raise ValueError(f"namespace {namespace!r} not found, expected one of {', '.join(self.namespaces)}")
        self._default_namespace = namespace

    @property
    def initialised(self) -> bool:
        """Whether every codebook has seen data."""
        return all(bool(buffer.all()) for name, buffer in self.rq.named_buffers() if name.endswith("initted"))

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """The tables alone, as upstream: an optimizer of `quantizer.parameters()` leaves MuLaN as it is."""
        return self.cond_embeddings.parameters(recurse)

    @torch.no_grad()
    def fit(self, latents: Tensor | Iterable[Tensor]) -> None:
        """Initialise the codebooks once by k-means, level by level on what the levels before leave over, from torch's global generator;
        then freeze them.

        latents: [N, dim_latent], or batches of that shape, such as `mulan.get_audio_latents(wavs) for wavs in loader`; N at least the
        size of a codebook. Upstream clusters whatever batch comes first, however small.
        """
        if self.initialised:
            raise ValueError("these codebooks are initialised already; fit starts from a new quantizer")
        batches = [latents] if isinstance(latents, Tensor) else list(latents)
        size, dim = self.rq.layers[0]._codebook.embed.shape[1:]  # pyright: ignore
        if any(batch.ndim != 2 or batch.shape[1] != dim for batch in batches) or sum(map(len, batches)) < size:
            raise ValueError(f"expected at least {size} latents, each [N, {dim}], got {[list(batch.shape) for batch in batches[:5]]}")
        residual = torch.cat(batches).to(self.rq.layers[0]._codebook.embed)  # pyright: ignore
        if not residual.isfinite().all():
            raise ValueError("these latents hold NaN or infinite values")
        for layer in self.rq.layers:
            codebook = layer._codebook
            codebook.init_embed_(residual[None])  # pyright: ignore
            embed: Tensor = codebook.embed[0]  # pyright: ignore
            nearest = torch.cat([torch.cdist(part, embed).argmin(dim=-1) for part in residual.split(4096)])
            residual = residual - embed[nearest]
        self.freeze()

    def freeze(self) -> None:
        """Keep the codebooks as they are in training mode too: all transformers must be trained on the same codes."""
        if not self.initialised:
            raise ValueError("these codebooks were never initialised: call fit before freeze, or load a trained checkpoint")
        self.frozen = True
        self.train(self.training)

    def train(self, mode: bool = True) -> "MuLaNEmbedQuantizer":
        super().train(mode)
        if self.frozen:
            self.rq.eval()
        return self

    def save(self, path: str | os.PathLike) -> None:
        """Write the state dict, MuLaN's included, as upstream and the export read it; aside first, so that no half file is ever left."""
        save_aside(self.state_dict(), path)

    def load(self, path: str | os.PathLike) -> None:
        """Read what `save` or musiclm-pytorch wrote: tensors alone, every one of them. Codebooks that were initialised are frozen, since
        transformers that are trained in several runs must all see the same codes."""
        self.load_state_dict(read_package(expanded(path)))
        if self.initialised:
            self.freeze()

    def forward(self, wavs: Tensor | None = None, texts: Tensor | None = None, namespace: str | None = None) -> Tensor:
        """wavs [B, t] or texts, token ids [B, n] -> conditioning [B, Q, dim]. In training mode the codebooks follow the latents."""
        namespace = self._default_namespace if namespace is None else namespace
        if namespace not in self.namespaces:
            raise ValueError(f"namespace {namespace!r} not found, expected one of {', '.join(self.namespaces)}")
        if (wavs is None) == (texts is None):
            raise ValueError("give either wavs or texts")
        # ResidualVQ would run k-means on this one batch even in eval mode, and every later code would hang on it.
        if not self.rq.training and not self.initialised:
            raise ValueError(
                "these codebooks were never initialised: load a trained checkpoint, call fit, or pass data in training mode first"
            )
        self.mulan.eval()
        with torch.no_grad():
            latents = self.mulan.get_text_latents(texts) if wavs is None else self.mulan.get_audio_latents(wavs)
            if not latents.isfinite().all():
                raise ValueError("MuLaN's latents hold NaN or infinite values: are the waves finite, and MuLaN's weights?")
            _, codes, _ = self.rq(latents)
        table = self.cond_embeddings[namespace]
        return table[torch.arange(len(table), device=codes.device), codes]
