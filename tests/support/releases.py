"""Transformers as files of old audiolm-pytorch releases: names and shapes, with weights that are drawn from the names.

A release's class, built with `ARGUMENTS[stage]` and loaded with `transformer_state(stage, version)`, gives the logits to which
tests/test_versions.py holds the export.
"""

from __future__ import annotations

from typing import Any

import torch

from .drawn import drawn

DIM, HEADS, DIM_HEAD, INNER, STREAMS, SEMANTIC, CODES = 16, 2, 8, 42, 2, 11, 7
_SHARED: dict[str, Any] = {"dim": DIM, "depth": 2, "heads": HEADS, "dim_head": DIM_HEAD, "audio_text_condition": True}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "semantic": _SHARED | {"num_semantic_tokens": SEMANTIC},
    "coarse": _SHARED | {"codebook_size": CODES, "num_coarse_quantizers": 2, "num_semantic_tokens": SEMANTIC},
    "fine": _SHARED | {"codebook_size": CODES, "num_coarse_quantizers": 2, "num_fine_quantizers": 2},
}
_ENDS: dict[str, dict[str, tuple[int, ...]]] = {
    "semantic": {
        "start_token": (DIM,),
        "semantic_embedding.weight": (SEMANTIC + 1, DIM),
        "to_logits.weight": (SEMANTIC + 1, DIM),
        "to_logits.bias": (SEMANTIC + 1,),
    },
    "coarse": {
        "semantic_start_token": (DIM,),
        "coarse_start_token": (DIM,),
        "semantic_embedding.weight": (SEMANTIC + 1, DIM),
        "coarse_embedding.weight": (2 * (CODES + 1), DIM),
        "coarse_quantize_embedding.weight": (2, DIM),
        "cross_attn_bias": (HEADS, 1, 1),
        "to_semantic_logits.weight": (SEMANTIC + 1, DIM),
        "to_semantic_logits.bias": (SEMANTIC + 1,),
        "coarse_logit_weights": (2, CODES + 1, DIM),
    },
    "fine": {
        "coarse_start_token": (DIM,),
        "fine_start_token": (DIM,),
        "coarse_embedding.weight": (2 * CODES, DIM),
        "fine_embedding.weight": (2 * CODES, DIM),
        "coarse_quantize_embedding.weight": (2, DIM),
        "fine_quantize_embedding.weight": (2, DIM),
        "null_pos_bias": (HEADS, 1, 1),
        "coarse_logit_weights": (2, CODES, DIM),
        "fine_logit_weights": (2, CODES, DIM),
    },
}


def transformer_state(stage: str, version: str) -> dict[str, torch.Tensor]:
    """Return the state dict of a small transformer of audiolm-pytorch 1.2.0 or later. Branches and streams are those of `version`."""
    shapes = _ENDS[stage] | _bias(stage) | {"transformer.norm.gamma": (DIM,), "transformer.norm.beta": (DIM,)}
    streams = version.startswith("2.4")
    for layer in range(2):
        for index, branch in enumerate((_attention(), _attention() | _CROSS, _FEED_FORWARD)):
            at = f"transformer.layers.{layer}.{index}."
            shapes |= {at + ("branch." if streams else "") + name: shape for name, shape in branch.items()}
            shapes |= {at + name: shape for name, shape in _CONNECTION.items() if streams}
    return drawn({name: torch.zeros(shape) for name, shape in shapes.items()})


_CROSS = {"null_kv": (2, 1, DIM_HEAD), "context_norm.gamma": (DIM,), "context_norm.beta": (DIM,)}
_FEED_FORWARD = {
    "0.gamma": (DIM,),
    "0.beta": (DIM,),
    "1.weight": (2 * INNER, DIM),
    "3.gamma": (INNER,),
    "3.beta": (INNER,),
    "5.weight": (DIM, INNER),
}
_CONNECTION = {
    "norm.gamma": (DIM,),
    "static_alpha": (STREAMS, STREAMS + 1),
    "dynamic_alpha_fn": (DIM, STREAMS + 1),
    "dynamic_alpha_scale": (),
    "static_beta": (STREAMS,),
    "dynamic_beta_fn": (DIM,),
    "dynamic_beta_scale": (),
}


def _attention() -> dict[str, tuple[int, ...]]:
    inner = HEADS * DIM_HEAD
    norm = {"norm.gamma": (DIM,), "norm.beta": (DIM,)}
    return norm | {"to_q.weight": (inner, DIM), "to_kv.weight": (2 * DIM_HEAD, DIM), "to_out.0.weight": (DIM, inner)}


def _bias(stage: str) -> dict[str, tuple[int, ...]]:
    """Return the layers of the network that makes the attention bias: of a distance, or of frames and quantizers."""
    fine, width = stage == "fine", DIM // 2
    names = [f"pos_bias_mlp.{i}" for i in (0, 2, 4)] if fine else [f"transformer.rel_pos_bias.net.{i}" for i in ("0.0", "1.0", "2.0", "3")]
    widths = [2 if fine else 1, *[width] * (len(names) - 1), HEADS]
    weights = {f"{name}.weight": (widths[i + 1], widths[i]) for i, name in enumerate(names)}
    return weights | {f"{name}.bias": (widths[i + 1],) for i, name in enumerate(names)}
