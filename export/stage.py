"""One token transformer, exported: its decoder graph, its context graph, and its record for the manifest."""

from dataclasses import dataclass
from pathlib import Path

from ..kernels.quantized_product import PRECISIONS
from ..runtime.bundle import Bias, Decoder, Sampling, Step
from . import open_musiclm
from .checkpoint import Checkpoint
from .decoder import DecoderBuilder, build_context, cache_head_size
from .errors import ExportError
from .graph import Graph
from .settings import Settings
from .tables import build_bias, build_rows

# Tensors of heads that generation never asks for: they predict a stage's own prompt in training.
_TRAINING_HEADS = {"semantic": (), "coarse": ("to_semantic_logits.",), "fine": ("coarse_logit_weights",)}


def export_stage(
    stage: str,
    checkpoint: Checkpoint,
    settings: Settings,
    folder: Path,
    semantic_length: int,
    groups: int,
    precision: str = "fp32",
    capacity: int | None = None,
) -> Decoder:
    """Write `<stage>.onnx` (and `<stage>_context.onnx`) into `folder`; arguments as of `build_stage`."""
    built = build_stage(stage, checkpoint, settings, semantic_length, groups, precision, capacity)
    built.graph.save(folder / built.record.graph)
    if built.context is not None and built.record.context is not None:
        built.context.save(folder / built.record.context)
    return built.record


@dataclass(frozen=True)
class Built:
    graph: Graph
    context: Graph | None  # None for a stage without condition
    record: Decoder


def build_stage(
    stage: str,
    checkpoint: Checkpoint,
    settings: Settings,
    semantic_length: int,
    groups: int,
    precision: str = "fp32",
    capacity: int | None = None,
) -> Built:
    """The graphs of a stage in memory, for which every tensor is looked at.

    semantic_length: the longest semantic sequence; groups: residual groups of the codec; precision: of the decoder's large matrices;
    capacity: of TensorRT's form, see `DecoderBuilder`.
    """
    form = PRECISIONS[precision]
    length = settings["max_length"] if stage == "semantic" else settings["max_time_steps"]
    if not isinstance(length, int) or length < 1:
        raise ExportError(f"{stage}: the trained window must be a whole number of at least 1, got {length!r}.")
    builder = DecoderBuilder(stage, checkpoint, settings, form, capacity)
    context, positions, parts = None, None, None
    if builder.tokens:
        if groups > 1:
            raise ExportError(f"{checkpoint.name}: open-musiclm's transformers know no residual groups, and the codec has {groups}.")
        parts = open_musiclm.segments(stage, settings)
        rows, first_rows = open_musiclm.build_rows(stage, checkpoint, settings), {"padding": 0}
        reads = settings.values().get("semantic_window", semantic_length)
        open_musiclm.check_positions(stage, checkpoint.name, settings, length, reads)
        bias = open_musiclm.build_bias(checkpoint, settings, open_musiclm.longest(stage, settings, length, reads))
        positions = open_musiclm.build_positions(stage, checkpoint, settings)
    else:
        rows, first_rows = build_rows(stage, checkpoint, settings)
        bias = build_bias(stage, checkpoint, settings, _positions(stage, settings, length, semantic_length, groups))
        context = build_context(stage, checkpoint, settings) if settings["audio_text_condition"] else None
    graph = builder.decoder(rows, bias, positions)
    unused = ("logit_weights.",) if builder.tokens else _TRAINING_HEADS[stage]
    checkpoint.refuse_unread(ignored=(*unused, *([] if context else ["proj_text_embed."])))

    values = settings.values()
    coarse, fine = values.get("num_coarse_quantizers"), values.get("num_fine_quantizers")
    record = None
    if bias is not None and stage == "fine" and not builder.tokens:
        record = Bias(bias.shape[1], 2 * (values["num_coarse_quantizers"] + values["num_fine_quantizers"]) - 1, length * groups)
    elif bias is not None:
        record = Bias(bias.shape[1], 1)
    decoder = Decoder(
        graph=f"{stage}.onnx",
        context=None if context is None else f"{stage}_context.onnx",
        conditioning=_conditioning(settings, builder),
        # with embeddings as condition, upstream drops it in training in the coarse stage alone: elsewhere a null pass equals the first
        guidance=context is not None and stage == "coarse",
        dim=settings["dim"],
        depth=settings["depth"],
        heads=settings["heads"],
        cache_head_size=cache_head_size(settings),
        # an end in every stage but audiolm-pytorch's fine one
        vocabulary=values["num_semantic_tokens" if stage == "semantic" else "codebook_size"] + (stage != "fine" or builder.tokens),
        coarse_quantizers=coarse,
        fine_quantizers=fine,
        rows=first_rows,
        segments=parts,
        bias=record,
        max_length=length,
        semantic_window=values.get("semantic_window"),
        step=Step(
            dim_head=settings["dim_head"],
            inner=builder.inner,
            streams=builder.streams,
            value_residual=settings["add_value_residual"],
            normalised_attention=builder.tokens,
            convolution=builder.convolves,
            positions=None if positions is None else len(positions),
            precision=precision,
            block=form.block,
            weights=graph.layout(),
        ),
        sampling=Sampling(**{name: float(values[name]) for name in ("temperature", "filter_thres") if name in values}),
    )
    return Built(graph, context, decoder)


def _conditioning(settings: Settings, builder: DecoderBuilder) -> str:
    if builder.tokens:
        return "tokens"
    if not settings["audio_text_condition"]:
        return "none"
    return "prefix" if settings["cond_as_self_attn_prefix"] else "cross_attention"


def _positions(stage: str, settings: Settings, length: int, semantic_length: int, groups: int) -> int:
    """How many distances (semantic, coarse) or transformer frames (fine) the bias table must hold."""
    if stage == "semantic":
        return length + 1
    if stage == "coarse":
        return max(semantic_length, length * settings["num_coarse_quantizers"] * groups) + 1
    return length * groups
