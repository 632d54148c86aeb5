"""open-musiclm's transformers (github.com/zhvng/open-musiclm, 8e2c6a8): what their files tell, and their tables.

In: a checkpoint, the user's overrides. Out: `Settings` under open-musiclm's own argument names, and the tables of
input embeddings, of attention biases and of absolute positions. All three stages are one class there, `TokenConditionedTransformer`: it
reads several token sequences one after the other and predicts the last one. The first holds CLAP's codes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from ..model.open_musiclm import TokenConditionedTransformer
from ..runtime.bundle import Segment
from .checkpoint import Checkpoint
from .errors import ExportError
from .settings import Settings
from .state_dicts import OPEN_MUSICLM as MARK
from .tables import mlp

HIDDEN = -65504.0  # bias of a key that no query sees; the lowest of fp16, since infinities among scores are no numbers
# What each stage reads, and last what it predicts.
SEQUENCES = {"semantic": ("clap", "semantic"), "coarse": ("clap", "semantic", "coarse"), "fine": ("clap", "coarse", "fine")}
_CODEBOOKS = {
    "clap": ("num_clap_quantizers", "clap_codebook_size"),
    "semantic": (None, "num_semantic_tokens"),
    "coarse": ("num_coarse_quantizers", "codebook_size"),
    "fine": ("num_fine_quantizers", "codebook_size"),
}
_TEMPERATURES = {"semantic": 1.0, "coarse": 0.95, "fine": 0.4}
_CODE = "open-musiclm 8e2c6a8"
_NET = "transformer.rel_pos_bias.net."
_T5 = "transformer.rel_pos_bias.relative_attention_bias.weight"
_LAYER = "transformer.layers.0."
UNTOLD = ("non_causal_prefix_size", "use_memory_efficient_attention")


def is_open_musiclm(state: Mapping[str, Any]) -> bool:
    """Return whether the tensors of these names are a transformer of open-musiclm."""
    return MARK in state


def infer_open_musiclm(stage: str, checkpoint: Checkpoint, overrides: Mapping[str, Any]) -> Settings:
    """Return the settings of one of open-musiclm's transformers. Raises ExportError for what no tensor tells and nobody has said."""
    state, shape = checkpoint.state, checkpoint.shape
    settings = Settings(stage, overrides)
    settings.infer("class", "TokenConditionedTransformer", f"{MARK} present: {_CODE}")
    (dim,) = shape(MARK, 1)
    settings.infer("dim", dim, f"{MARK} [{dim}]")
    settings.infer("depth", len({name.split(".")[2] for name in state if name.startswith("transformer.layers.")}), "transformer.layers")
    (inner, _), (dim_head,) = shape(_LAYER + "0.to_q.weight", 2), shape(_LAYER + "0.q_scale", 1)
    if inner % dim_head:
        raise ExportError(f"{checkpoint.name}: to_q [{inner}] and q_scale [{dim_head}] cannot be of one attention.")
    settings.infer("heads", inner // dim_head, f"to_q [{inner}] over q_scale [{dim_head}]")
    settings.infer("dim_head", dim_head, f"q_scale [{dim_head}]")
    for index, sequence in enumerate(SEQUENCES[stage]):
        quantizers, entries, _ = shape(f"logit_weights.{index}", 3)
        for name, value in zip(_CODEBOOKS[sequence], (quantizers, entries - 1), strict=True):
            if name is not None and not (name == "codebook_size" and sequence == "fine"):
                settings.infer(name, value, f"logit_weights.{index} [{quantizers}, {entries}, ...], one of them the end")
    kind = "continuous" if f"{_NET}3.weight" in state else "t5" if _T5 in state else "none"
    settings.infer("relative_position_bias_type", kind, {"continuous": f"{_NET}* present", "t5": f"{_T5} present"}.get(kind, "no bias"))
    conv = _LAYER + "2.2.ds_conv.weight"
    settings.infer("use_conv_ff", conv in state, f"{conv} {'present' if conv in state else 'absent'}")
    absolute = "absolute_position_embeddings.0.weight"
    settings.infer("use_absolute_position_embeddings", absolute in state, f"{absolute} {'present' if absolute in state else 'absent'}")
    if absolute in state:
        settings.infer("max_absolute_position_embeddings", shape(absolute, 2)[0], f"{absolute} [{len(state[absolute])}, ...]")
    _refuse_unsaid(stage, checkpoint.name, overrides)
    prefix = settings.assume("non_causal_prefix_size", 0, _CODE)
    if prefix != 0:
        raise ExportError(
            f"{checkpoint.name}: non_causal_prefix_size = {prefix} is not covered: its first {prefix} tokens see each other in both "
            "directions, and no public configuration has it. Covered is 0."
        )
    if settings.assume("use_memory_efficient_attention", False, _CODE) and kind == "none":
        raise ExportError(
            f"{checkpoint.name}: use_memory_efficient_attention without a relative position bias is not covered: open-musiclm gives "
            "xformers no causal mask then, so that earlier tokens depend on later ones."
        )
    settings.assume("temperature", _TEMPERATURES[stage], f"{_CODE}, MusicLM.forward")
    settings.assume("filter_thres", 0.9, f"{_CODE}, MusicLM.forward")
    if stage == "semantic":
        settings.infer("unique_consecutive", False, f"{_CODE}: no factory sets it")
        settings.assume("max_length", 500, f"{_CODE}: 10 s of 50 tokens")
        settings.assume("output_seconds", 8.0, f"{_CODE}, MusicLM.forward: of a clip unless another length is asked for")
        settings.assume("tokens_per_second", 50.0, f"{_CODE}: MERT-v0, one token per 320 samples at 16 kHz")
    else:
        settings.assume("max_time_steps", 300 if stage == "coarse" else 150, f"{_CODE}: {4 if stage == 'coarse' else 2} s of 75 frames")
    if stage == "coarse":
        settings.assume("semantic_window", 199, f"{_CODE}: 4 s of 50 tokens, of which MERT makes one less")
    # What this project asks of every transformer.
    settings.infer("rel_pos_bias", True, "ends of sequences are hidden by it")
    settings.infer("num_residual_streams", 1, _CODE)
    settings.infer("stream_mixing", False, _CODE)
    settings.infer("add_value_residual", False, _CODE)
    settings.infer("self_attention", True, _CODE)
    settings.infer("cond_as_self_attn_prefix", False, _CODE)
    settings.infer("audio_text_condition", True, "CLAP's codes are its first sequence")
    return settings.finish()


def _refuse_unsaid(stage: str, name: str, overrides: Mapping[str, Any]) -> None:
    unsaid = [setting for setting in UNTOLD if setting not in overrides]
    if unsaid:
        example = json.dumps({stage: {"non_causal_prefix_size": 0, "use_memory_efficient_attention": False}})
        raise ExportError(
            f"{name}: {' and '.join(unsaid)} leave no trace in the file, but change what the model computes. Give the JSON that "
            "open-musiclm keeps in configs/ beside its checkpoints, --open-musiclm-config musiclm_large_small_context.json, or --config "
            f"{example}."
        )


def segments(stage: str, settings: Settings) -> list[Segment]:
    """Return where the embeddings of each sequence of a stage stand in its table: row 0 is zero, then each start token, codes and end."""
    values, found, row, position = settings.values(), [], 1, 1
    for name in SEQUENCES[stage]:
        quantizers, codebook = (values[key] if key else 1 for key in _CODEBOOKS[name])
        absolute = settings["use_absolute_position_embeddings"]
        found.append(Segment(name, row, row + 1, quantizers, codebook, position if absolute else None))
        row += 1 + quantizers * codebook + 1
        position += values.get("max_absolute_position_embeddings", 0)
    return found


def build_rows(stage: str, checkpoint: Checkpoint, settings: Settings) -> np.ndarray:
    """Return the table of input embeddings, float32 [R, dim], in the order of `segments`.

    Code c of quantizer q is at q * V + c, and the end, which inference embeds with offset 0, at V: where there are several quantizers that
    is code 0 of the second one. Rows beyond Q * V are reached by an end of the last quantizer alone, which nothing feeds back.
    """
    dim, parts = settings["dim"], [np.zeros((1, settings["dim"]), np.float32)]
    for index, segment in enumerate(segments(stage, settings)):
        Q, V = segment.quantizers, segment.codebook
        table = checkpoint.array(f"embeddings.{index}.weight", (V + 1) * Q, dim)
        parts += [checkpoint.array(f"start_tokens.{index}", dim)[None], table[: Q * V + 1]]
    return np.concatenate(parts)


def build_positions(stage: str, checkpoint: Checkpoint, settings: Settings) -> np.ndarray | None:
    """Return the table of absolute positions, float32 [1 + sequences * P, dim]: row 0 is zero, that of a start token; None without one."""
    if not settings["use_absolute_position_embeddings"]:
        return None
    dim, P = settings["dim"], settings["max_absolute_position_embeddings"]
    tables = [checkpoint.array(f"absolute_position_embeddings.{index}.weight", P, dim) for index in range(len(SEQUENCES[stage]))]
    return np.concatenate([np.zeros((1, dim), np.float32), *tables])


def build_bias(checkpoint: Checkpoint, settings: Settings, positions: int) -> np.ndarray:
    """Return float32 [H, 1 + positions]: entry 0 hides a key, entry 1 + d is the bias at distance d; [H, 2] where it depends on none.

    The MLP of "continuous" is fed the distance itself. "t5" has a sign that puts all keys before a query into bucket 0: a number for each
    head, which a softmax drops; it is kept as it was trained.
    """
    heads, kind = settings["heads"], settings["relative_position_bias_type"]
    bias = np.zeros((heads, 1))
    if kind == "continuous":
        bias = mlp(checkpoint, [f"{_NET}{i}.0" for i in range(3)] + [f"{_NET}3"], np.arange(positions)[:, None], heads).T
    elif kind == "t5":
        bias = checkpoint.array(_T5, *checkpoint.shape(_T5, 2)[:1], heads)[:1].T
    return np.concatenate([np.full((heads, 1), HIDDEN), bias], axis=1).astype(np.float32)


def check_positions(stage: str, name: str, settings: Settings, length: int, semantic_window: int) -> None:
    """Raise ExportError if a window of `length` tokens or frames has more tokens than there are absolute positions. name: of the file."""
    if not settings["use_absolute_position_embeddings"]:
        return
    most = settings["max_absolute_position_embeddings"]
    for segment in segments(stage, settings):
        frames = {"clap": 1, "semantic": length if stage == "semantic" else semantic_window}.get(segment.name, length)
        needed = frames * segment.quantizers + (-1 if segment.name == stage else 1)  # the end counts, the last token is never fed
        if needed > most:
            raise ExportError(
                f"{name}: a window of {frames * segment.quantizers} {segment.name} tokens needs {needed} absolute positions, the model has "
                f"{most}. Say which windows it was trained on, with --open-musiclm-config or --config."
            )


def longest(stage: str, settings: Settings, length: int, semantic_window: int) -> int:
    """Return the positions of a stage's longest window of `length` tokens or frames. semantic_window: tokens that a coarse one reads."""
    read = {"clap": 1, "semantic": length if stage == "semantic" else semantic_window}
    return sum(2 + read.get(one.name, length) * one.quantizers for one in segments(stage, settings))


def key_scale(checkpoint: Checkpoint, settings: Settings, layer: int) -> np.ndarray:
    """Return what a normalised key is multiplied with, float32 [dim_head]: scales of queries and keys, and that of the scores.

    The scores' is 8; with xformers its own default instead, the root of the head size below 1.
    """
    at, D = f"transformer.layers.{layer}.0.", settings["dim_head"]
    scale = 1 / math.sqrt(D) if settings["use_memory_efficient_attention"] else 8.0
    return checkpoint.array(at + "q_scale", D) * checkpoint.array(at + "k_scale", D) * np.float32(scale)


def open_musiclm_transformer(stage: str, settings: Settings, state: Mapping[str, Tensor]) -> TokenConditionedTransformer:
    """Return the transformer in PyTorch, in evaluation mode. Raises ExportError for tensors that do not fit."""
    values = settings.values()
    shared = ("dim", "depth", "heads", "dim_head", "relative_position_bias_type", "use_conv_ff", "use_absolute_position_embeddings")
    own = ("max_absolute_position_embeddings", "use_memory_efficient_attention")
    sequences = [(one.quantizers, one.codebook) for one in segments(stage, settings)]
    transformer = TokenConditionedTransformer(sequences, **{name: values[name] for name in (*shared, *own) if name in values})
    try:
        transformer.load_state_dict(state)
    except RuntimeError as error:  # torch lists every missing, unexpected and misshapen tensor
        raise ExportError(f"{stage}: the checkpoint and its settings do not fit together. {error}") from error
    return transformer.float().eval()
