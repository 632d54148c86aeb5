"""What a token transformer's checkpoint says of itself: upstream's constructor arguments from tensor names, shapes and the version.

In: a checkpoint, the user's overrides. Out: `Settings` under audiolm-pytorch's own argument names, each value with its source.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch

from .checkpoint import Checkpoint
from .errors import ExportError
from .open_musiclm import UNTOLD, infer_open_musiclm, is_open_musiclm
from .settings import Settings
from .versions import covered, numbers, releases_of

STAGES = ("semantic", "coarse", "fine")
_T5_DIM = 768  # width of upstream's default text encoder, which it plans for when a stage has no condition of its own
_UPSTREAM = "default of audiolm-pytorch 2.4.0"
_KIND = "transformer"
_BEFORE_1_2 = re.compile(r"\.(ds_conv|relative_attention_bias)\.|\.q_scale$|\.0\.norm\.weight$")  # names that later releases do not have


def branch(layer: int, index: int, streams: bool) -> str:
    """Prefix of a branch's tensors: 0 self-attention, 1 cross-attention, 2 feed-forward. Before 2.4 there was no wrapper around it."""
    return f"transformer.layers.{layer}.{index}." + ("branch." if streams else "")


def infer_transformer(stage: str, checkpoint: Checkpoint, overrides: Mapping[str, Any]) -> Settings:
    """Settings of the semantic, coarse or fine transformer in `checkpoint`."""
    state, shape = checkpoint.state, checkpoint.shape
    if is_open_musiclm(state):
        return infer_open_musiclm(stage, checkpoint, overrides)
    if foreign := [name for name in UNTOLD if name in overrides]:
        raise ExportError(
            f"{checkpoint.name}: a transformer of audiolm-pytorch, but {foreign[0]} is a setting of open-musiclm's, whose own file is "
            "expected with --open-musiclm-config."
        )
    settings = Settings(stage, overrides)
    start = {"semantic": "start_token", "coarse": "coarse_start_token", "fine": "fine_start_token"}[stage]
    (dim,) = shape(start, 1)
    settings.infer("dim", dim, f"{start} [{dim}]")
    wrapped = any(name.startswith(branch(0, 0, True)) for name in state)
    _release(checkpoint, wrapped, settings, explicit="version" in overrides)
    _vocabulary(stage, checkpoint, settings)

    prefix = branch(0, 0, wrapped)
    depth = len({name.split(".")[2] for name in state if name.startswith("transformer.layers.")})
    settings.infer("depth", depth, "number of transformer.layers")
    (inner, _), (double_head, _) = shape(prefix + "to_q.weight", 2), shape(prefix + "to_kv.weight", 2)
    dim_head = double_head // 2
    if not 0 < dim_head <= inner:
        raise ExportError(f"{checkpoint.name}: to_q [{inner}] and to_kv [{double_head}] cannot be of one attention.")
    settings.infer("heads", inner // dim_head, f"to_q [{inner}] over to_kv [2 x {dim_head}]")
    settings.infer("dim_head", dim_head, f"to_kv [2 x {dim_head}]")

    streams = "transformer.layers.0.0.static_beta"
    if streams in state:
        count = shape(streams, 1)[0]
        settings.infer("num_residual_streams", count, f"static_beta [{count}]")
    else:
        settings.infer("num_residual_streams", 1, "no static_beta: one stream, or before version 2.4")
    _stream_mixing(checkpoint, settings)

    bias = {"semantic": "transformer.rel_pos_bias.net.0.0.weight", "coarse": "cross_attn_bias", "fine": "null_pos_bias"}[stage]
    settings.infer("rel_pos_bias", bias in state, f"{bias} {'present' if bias in state else 'absent: flash attention or no bias'}")
    _conditioning(checkpoint, wrapped, dim, settings, explicit="cond_as_self_attn_prefix" in overrides)
    _self_attention(checkpoint, settings)
    if stage == "semantic":
        settings.assume("unique_consecutive", True, _UPSTREAM)
        settings.assume("max_length", 2048, _UPSTREAM + " (AudioLM.forward): trained window, in tokens")
        settings.assume("tokens_per_second", 50.0, "HuBERT and vq-wav2vec features: one per 320 samples at 16 kHz")
    else:
        settings.assume("max_time_steps", 512, _UPSTREAM + " (CoarseTransformerWrapper.generate): trained window, in frames")
    return settings.finish()


def _vocabulary(stage: str, checkpoint: Checkpoint, settings: Settings) -> None:
    shape, state = checkpoint.shape, checkpoint.state
    if stage in ("semantic", "coarse"):
        entries = shape("semantic_embedding.weight", 2)[0]
        settings.infer("num_semantic_tokens", entries - 1, f"semantic_embedding [{entries}], one of them the end")
    if stage == "coarse":
        quantizers, entries, _ = shape("coarse_logit_weights", 3)
        settings.infer("num_coarse_quantizers", quantizers, f"coarse_logit_weights [{quantizers}, ...]")
        settings.infer("codebook_size", entries - 1, f"coarse_logit_weights [..., {entries}, ...], one of them the end")
        name = "to_semantic_logits.weight"
        settings.infer("project_semantic_logits", name in state, f"{name} {'present' if name in state else 'absent'}")
    if stage == "fine":
        quantizers, entries, _ = shape("fine_logit_weights", 3)
        coarse = shape("coarse_quantize_embedding.weight", 2)[0]
        settings.infer("num_coarse_quantizers", coarse, f"coarse_quantize_embedding [{coarse}]")
        settings.infer("num_fine_quantizers", quantizers, f"fine_logit_weights [{quantizers}, ...]")
        settings.infer("codebook_size", entries, f"fine_logit_weights [..., {entries}, ...]")
        name = "coarse_logit_weights"
        settings.infer("project_coarse_logits", name in state, f"{name} {'present' if name in state else 'absent'}")


def _stream_mixing(checkpoint: Checkpoint, settings: Settings) -> None:
    """Set whether residual streams are mixed with each other: hyper-connections before 0.3.10 computed that and threw it away.

    No version of that package is in the file. Its mixing weights had no gradient, though: what starts at zero has stayed there, and the
    identity, which mixes nothing, was at most scaled by weight decay.
    """
    streams = settings["num_residual_streams"]
    scales = _scales_of_unused_mixing(checkpoint, streams)
    if any(scale != 1 for scale in scales):
        why = f"static_alpha is {scales[0]:.4g} times the identity, dynamic_alpha_fn zero: unused, hyper-connections before 0.3.10"
        settings.assume("stream_mixing", False, why)
    else:
        settings.assume("stream_mixing", streams > 1, f"static_alpha [{streams}, ...]" if streams > 1 else "one stream")


def _scales_of_unused_mixing(checkpoint: Checkpoint, streams: int) -> list[float]:
    """Return what the identity is multiplied with in each connection's mixing weights; nothing if one of them holds anything else."""
    scales = []
    for at in [name.removesuffix("static_alpha") for name in checkpoint.state if name.endswith(".static_alpha") and streams > 1]:
        if {checkpoint.shape(at + "static_alpha", 2)[1], checkpoint.shape(at + "dynamic_alpha_fn", 2)[1]} != {streams + 1}:
            return []  # refused by name when the weights are read
        static, dynamic = (checkpoint.state[at + name][:, 1:].float() for name in ("static_alpha", "dynamic_alpha_fn"))
        if dynamic.any() or not static.equal(static[0, 0] * torch.eye(streams)):
            return []
        scales.append(static[0, 0].item())
    return scales


def _release(checkpoint: Checkpoint, wrapped: bool, settings: Settings, explicit: bool) -> None:
    """Set what no tensor tells and the release that saved the file decides, if its version agrees with the names of the tensors.

    explicit: whether the user named the version.
    """
    name, known = checkpoint.name, bool(checkpoint.version) or explicit
    old = next((tensor for tensor in checkpoint.state if _BEFORE_1_2.search(tensor)), None)
    if old and not known:
        raise ExportError(f"{name}: the tensor {old!r} is of audiolm-pytorch before 1.2.0. {covered(_KIND)}")
    names, assumed = ("branch wrappers, as 2.4.0 and later have", "2.4.0") if wrapped else ("no branch wrappers, as before 2.4.0", "2.3.1")
    source = "the file" if checkpoint.version else f"none in the file; {names}"
    version = settings.assume("version", checkpoint.version or assumed, source)
    releases = releases_of(_KIND, name, version, settings.warnings)
    advice = f'--config: {{"{settings.stage}": {{"version": "{assumed}"}}}}.'
    if old:
        raise ExportError(f"{name}: saved by audiolm-pytorch {version}, but the tensor {old!r} is of one before 1.2.0. {covered(_KIND)}")
    if version in releases and wrapped != (numbers(version) >= numbers("2.4.0")):
        raise ExportError(
            f"{name}: saved by audiolm-pytorch {version}, but its tensors have {names}. If another one saved it, say which with {advice}"
        )
    if not known and not wrapped:
        settings.warnings.append(
            f"the file has no version, and audiolm-pytorch 1.2.0 to 2.3.1 compute three different things with its tensors. {assumed} is "
            f"assumed. Say which release trained it with {advice}"
        )
    for setting, value in releases.values.items():
        settings.assume(setting, value, f"as version {version} does")


def _conditioning(checkpoint: Checkpoint, wrapped: bool, dim: int, settings: Settings, explicit: bool) -> None:
    state = checkpoint.state
    projection = "proj_text_embed.weight"
    cond_dim = checkpoint.shape(projection, 2)[1] if projection in state else dim
    source = f"{projection} [..., {cond_dim}]" if projection in state else f"no {projection}: the model's own width"
    if branch(0, 1, wrapped) + "to_q.weight" in state:
        settings.infer("cond_as_self_attn_prefix", False, "cross-attention present")
        settings.infer("audio_text_condition", True, "cross-attention present")
        settings.infer("cond_dim", cond_dim, source)
    elif settings.assume("cond_as_self_attn_prefix", False, _UPSTREAM + "; leaves no trace in the file"):
        settings.infer("audio_text_condition", True, "conditioned by a prefix")
        settings.infer("cond_dim", cond_dim, source)
    elif projection not in state and dim != _T5_DIM and not explicit:
        # upstream builds the projection to 768 unless a condition of the model's own width was asked for
        raise ExportError(
            f"{checkpoint.name}: no cross-attention, yet built for a condition of width {dim}: this looks like conditioning as a prefix. "
            f'Say so with --config: {{"{settings.stage}": {{"cond_as_self_attn_prefix": true}}}}.'
        )
    else:
        settings.infer("audio_text_condition", False, "no cross-attention")


def _self_attention(checkpoint: Checkpoint, settings: Settings) -> None:
    """Refuse a model without self-attention that no release had; warn of one that some had."""
    if settings["self_attention"]:
        return
    if settings["num_residual_streams"] > 1:
        raise ExportError(
            f"{checkpoint.name}: self_attention = false is of releases with one residual stream, got {settings['num_residual_streams']}."
        )
    prefix = " Its condition, a prefix, has no effect." if settings["cond_as_self_attn_prefix"] else ""
    settings.warnings.append(
        "audiolm-pytorch 1.4.3 to 2.0.6 compute self-attention and throw its result away. The bundle does the same, so a token depends on "
        f"no earlier one but the last.{prefix} Train the model again with a later release, if you can."
    )
