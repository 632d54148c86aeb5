"""A small MusicLM of seeded random weights, saved in upstream's own file formats: what stands at the end of a training, only untrained.

In: a preset and a seed. Out: six files that `export_all.py` takes. The demo and the tests use it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from musiclm_deploy.model.upstream import load_upstream


@dataclass(frozen=True)
class Preset:
    """Sizes of a MusicLM; `*_arguments` go to upstream's constructors as they are."""

    dim: int = 128
    depth: int = 2
    heads: int = 4
    dim_head: int = 32
    semantic_tokens: int = 100
    codebook_size: int = 128
    coarse_quantizers: int = 2
    fine_quantizers: int = 3
    conditioning_quantizers: int = 8
    conditioning_codebook: int = 64
    dim_latent: int = 128
    shared_arguments: dict[str, Any] = field(default_factory=dict)  # of the three transformers
    semantic_arguments: dict[str, Any] = field(default_factory=dict)
    coarse_arguments: dict[str, Any] = field(default_factory=dict)
    fine_arguments: dict[str, Any] = field(default_factory=dict)
    codec_arguments: dict[str, Any] = field(default_factory=dict)
    tower_arguments: dict[str, Any] = field(default_factory=dict)  # of both of MuLaN's
    randomness: float = 1.0  # of what upstream initialises to 0 or 1; a wide model's logits grow unsteady with it


TINY = Preset(
    dim=24,
    depth=2,
    heads=2,
    dim_head=8,
    semantic_tokens=19,
    codebook_size=13,
    conditioning_quantizers=3,
    conditioning_codebook=11,
    dim_latent=16,
)


def build_models(preset: Preset, seed: int = 0) -> dict[str, nn.Module]:
    """Upstream's own modules by name (semantic, coarse, fine, codec, quantizer, mulan), every parameter random and none trivial."""
    load_upstream()
    import audiolm_pytorch
    import musiclm_pytorch

    torch.manual_seed(seed)
    random.seed(seed)  # hyper-connections draws its first stream from Python's generator
    p = preset
    shared: dict[str, Any] = {
        "dim": p.dim,
        "depth": p.depth,
        "heads": p.heads,
        "dim_head": p.dim_head,
        "audio_text_condition": True,
        **p.shared_arguments,
    }
    coarse: dict[str, Any] = {"codebook_size": p.codebook_size, "num_coarse_quantizers": p.coarse_quantizers}
    codec: dict[str, Any] = {
        "codebook_size": p.codebook_size,
        "rq_num_quantizers": p.coarse_quantizers + p.fine_quantizers,
        "channels": 8,
        "codebook_dim": 32,
        "attn_heads": 2,
        "attn_dim_head": 16,
        "attn_window_size": 32,
        **p.codec_arguments,
    }
    tower: dict[str, Any] = {"dim": 32, "depth": 2, "heads": 2, "dim_head": 16, **p.tower_arguments}
    audio = musiclm_pytorch.AudioSpectrogramTransformer(**tower, patch_size=16, spec_n_fft=128, spec_win_length=24)
    mulan = musiclm_pytorch.MuLaN(audio, musiclm_pytorch.TextTransformer(**tower), dim_latent=p.dim_latent)
    models = {
        "semantic": audiolm_pytorch.SemanticTransformer(num_semantic_tokens=p.semantic_tokens, **shared | p.semantic_arguments),
        "coarse": audiolm_pytorch.CoarseTransformer(num_semantic_tokens=p.semantic_tokens, **coarse, **shared | p.coarse_arguments),
        "fine": audiolm_pytorch.FineTransformer(num_fine_quantizers=p.fine_quantizers, **coarse, **shared | p.fine_arguments),
        "codec": audiolm_pytorch.SoundStream(**codec),
        "mulan": mulan,
    }
    dims = tuple(_conditioning_dim(models[stage], p.dim) for stage in ("semantic", "coarse", "fine"))
    models["quantizer"] = musiclm_pytorch.MuLaNEmbedQuantizer(
        mulan, conditioning_dims=dims, rq_num_quantizers=p.conditioning_quantizers, codebook_size=p.conditioning_codebook
    )
    for model in models.values():
        randomize(model, p.randomness)
    return {name: model.eval() for name, model in models.items()}


def save_checkpoints(models: dict[str, nn.Module], folder: Path) -> dict[str, Path]:
    """Write each model as upstream's trainers do; returns the paths by the names of the exporter's options."""
    import audiolm_pytorch.version

    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{name}.pt" for name in models}
    for name, path in paths.items():
        state = models[name].state_dict()
        if name == "codec":
            models[name].save(str(path))  # type: ignore[operator]
        elif name == "quantizer":
            torch.save(state, path)
        else:
            torch.save({"model": state, "version": audiolm_pytorch.version.__version__}, path)
    return paths


def _conditioning_dim(transformer: nn.Module, dim: int) -> int:
    projection = transformer.proj_text_embed
    return projection.in_features if isinstance(projection, nn.Linear) else dim


def randomize(model: nn.Module, randomness: float = 1.0) -> None:
    """Nothing stays at 0 or 1, where a wrong export would not show; gains stay near 1, so that activations keep their size."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("gamma", "_scale", "learned_gamma")):
                parameter.add_(torch.randn_like(parameter) * 0.2 * randomness)
            elif parameter.ndim < 2 or "static_" in name or "dynamic_" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1 * randomness)
        for name, buffer in model.named_buffers():
            if name.endswith("_codebook.embed"):
                buffer.copy_(torch.randn_like(buffer) * 0.3)
            elif name.endswith("_codebook.initted"):
                buffer.fill_(True)
