"""HuBERT's weights, out of fairseq's checkpoint or a Hugging Face folder; neither fairseq nor anything in a file is run.

In: a path. Out: `HubertFile`: tensors under transformers' names and the arguments of its `HubertConfig`, each with where it comes from. It
builds no model and knows no clusters.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..runtime.user_files import expanded, read_text
from .archive import HostileFile, check_tensors
from .stand_ins import arguments_of, class_of, is_object
from .tensor_file import bytes_of, read_package

_TYPES = ("hubert", "mert_model")  # MERT-v0 is a HuBERT of either name: its tensors and settings have to be HuBERT's, whatever it is called
_MERT_V1 = {
    "feature_extractor_cqt": "constant-Q features",
    "deepnorm": "other residuals",
    "attention_relax": "other scores",
}
_STRIDES = (5, 2, 2, 2, 2, 2, 2)
_POS_CONV = "encoder.pos_conv_embed.conv"
# fairseq's names, and what transformers calls them. Weight norm's g and v are the two tensors of a parametrization there.
_FAIRSEQ = [
    (r"feature_extractor\.conv_layers\.(\d+)\.0\.", r"feature_extractor.conv_layers.\1.conv."),
    (r"feature_extractor\.conv_layers\.(\d+)\.2\.(1\.)?", r"feature_extractor.conv_layers.\1.layer_norm."),
    (r"layer_norm\.", "feature_projection.layer_norm."),
    (r"post_extract_proj\.", "feature_projection.projection."),
    (r"encoder\.pos_conv\.0\.", f"{_POS_CONV}."),
    (r"encoder\.layers\.(\d+)\.self_attn\.", r"encoder.layers.\1.attention."),
    (r"encoder\.layers\.(\d+)\.self_attn_layer_norm\.", r"encoder.layers.\1.layer_norm."),
    (r"encoder\.layers\.(\d+)\.fc1\.", r"encoder.layers.\1.feed_forward.intermediate_dense."),
    (r"encoder\.layers\.(\d+)\.fc2\.", r"encoder.layers.\1.feed_forward.output_dense."),
    (r"encoder\.layers\.(\d+)\.final_layer_norm\.", r"encoder.layers.\1.final_layer_norm."),
    (r"encoder\.layer_norm\.", "encoder.layer_norm."),
]
_WEIGHT_NORM = {
    f"{_POS_CONV}.weight_g": f"{_POS_CONV}.parametrizations.weight.original0",
    f"{_POS_CONV}.weight_v": f"{_POS_CONV}.parametrizations.weight.original1",
}
# Only training and other tasks read these: masks, the targets of pretraining, heads for transcription and classification.
_UNUSED = re.compile(r"mask_emb|label_embs_concat|final_proj\..*|masked_spec_embed|lm_head\..*|projector\..*|classifier\..*|layer_weights")
_CONFIG = re.compile(  # arguments of `HubertConfig` that change what it computes
    "hidden_(size|act)|num_(hidden_layers|attention_heads)|intermediate_size|layer_norm_eps|feat_extract_(norm|activation)|feat_proj_layer_norm"
    "|conv_(dim|stride|kernel|bias|pos_batch_norm)|num_conv_pos_embeddings|num_conv_pos_embedding_groups|do_stable_layer_norm"
)


@dataclass(frozen=True)
class Fact:
    value: Any
    source: str
    told: bool  # by the file; else a convention, which the user may know better


@dataclass(frozen=True)
class HubertFile:
    name: str
    state: dict[str, Tensor]  # fp32, as `HubertModel` names them
    facts: dict[str, Fact]  # arguments of `HubertConfig`


def read_hubert(path: str | os.PathLike) -> HubertFile:
    """Read a checkpoint of fairseq's `HubertModel`, such as hubert_base_ls960.pt, or a folder with config.json and model.safetensors or
    pytorch_model.bin. Raises ValueError for anything else."""
    path = expanded(path)
    if os.path.isdir(path):  # unlike Path's own these say no of a name that no file can have, and of a pipe
        return _read_folder(path)
    if not os.path.isfile(path):
        raise ValueError(f"{path}: there is no such file or folder.")
    return _read_fairseq(path)


def is_hubert_folder(path: Path) -> bool:
    """Return whether a path is a folder whose config.json says that it is of a HuBERT or a MERT, with its tensors or without."""
    try:
        return _config_of(path).get("model_type") in _TYPES
    except ValueError:
        return False


def _config_of(folder: Path) -> dict[str, Any]:
    """Return the content of a folder's config.json. Raises ValueError, which names the folder, if it cannot be read."""
    try:
        config = json.loads(read_text(folder / "config.json"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{folder}: config.json cannot be read ({error}).") from error
    if not isinstance(config, dict):
        raise ValueError(f"{folder}: config.json holds {config!r}, expected an object of settings.")
    return config


def _read_fairseq(path: Path) -> HubertFile:
    package = read_package(path)
    model = package.get("model") if isinstance(package, Mapping) else None
    if isinstance(package, Mapping) and any("feature_projection.projection." in str(name) for name in package):
        raise ValueError(f"{path}: tensors of transformers, whose settings are in config.json. Give the folder that holds both files.")
    if not isinstance(model, Mapping):
        raise ValueError(f"{path}: not a checkpoint of fairseq, which is a dictionary with the entry 'model'.")
    if any(str(name).startswith(("vector_quantizer.", "quantizer.")) for name in model):
        raise ValueError(f"{path}: this is a wav2vec model with a quantizer of its own, which is not covered; HuBERT with k-means is.")
    state = _named(path, model, _fairseq_name)
    cfg = _settings(package)
    activation = cfg.get("activation_fn", "gelu")
    activation = next(iter(arguments_of(activation)), activation)  # of an enumeration
    if activation != "gelu":
        raise ValueError(f"{path}: the activation {activation!r} is not covered; HuBERT has gelu.")
    return HubertFile(path.name, state, _facts(path, state, cfg))


def _read_folder(folder: Path) -> HubertFile:
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: holds no config.json.")
    config = _config_of(folder)
    if config.get("model_type") not in _TYPES:
        raise ValueError(f"{folder}: config.json is of a model of type {config.get('model_type')!r}, expected 'hubert'.")
    if parts := [f"{name} = {config[name]!r} ({what})" for name, what in _MERT_V1.items() if _switched_on(config.get(name))]:
        raise ValueError(f"{folder}: config.json has {', '.join(parts)}, as MERT-v1 does. Plain HuBERT is covered, MERT-v0 among it.")
    state = read_package(folder)
    if not isinstance(state, Mapping):
        raise ValueError(f"{folder}: expected a dictionary of tensors, got {class_of(state)}.")
    if name := next((str(name) for name in state if "cqt" in str(name)), None):
        raise ValueError(f"{folder}: the tensor {name!r} belongs to the constant-Q spectrogram of MERT-v1, which is not covered.")
    state = _named(folder, state, lambda name: name.removeprefix("hubert."))
    strides, kernels = config.get("conv_stride"), config.get("conv_kernel")
    sizes = [config.get(name) for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")]
    sizes += [*strides, *kernels] if isinstance(strides, list) and isinstance(kernels, list) and len(strides) == len(kernels) else [None]
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ValueError(f"{folder}: config.json does not give width, layers, heads, strides and kernels as whole numbers.")
    facts = {name: Fact(value, "config.json", True) for name, value in config.items() if _CONFIG.fullmatch(name)}
    return HubertFile(folder.name, state, facts)


def _switched_on(value: Any) -> bool:
    """Return whether a setting of MERT's changes the model: neither false, nor missing, nor a number of at most 0, which is its "off"."""
    return bool(value) and not (isinstance(value, int | float) and value <= 0)


def _settings(package: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what fairseq saved of the model's settings: under `cfg` since its version 0.10.1, under `args` before."""
    cfg, args = package.get("cfg"), package.get("args")
    if isinstance(cfg, Mapping) and isinstance(cfg.get("model"), Mapping):
        return cfg["model"]
    return vars(args) if is_object(args) else {}


def _fairseq_name(name: str) -> str | None:
    for theirs, ours in _FAIRSEQ:
        found, count = re.subn(f"^{theirs}", ours, name)
        if count:
            return found
    return None


def _named(path: Path, state: Mapping[Any, Any], rename: Any) -> dict[str, Tensor]:
    """Return the tensors that are read, under transformers' names. path: which `state` was read from."""
    named, unknown = {}, []
    used = {
        name: tensor
        for name, tensor in state.items()
        if isinstance(tensor, Tensor) and isinstance(name, str) and not _UNUSED.fullmatch(name.removeprefix("hubert."))
    }
    try:
        check_tensors(used, bytes_of(path))
    except HostileFile as error:
        raise ValueError(f"{path}: refused, because {error}.") from error
    for name, tensor in used.items():
        found = rename(name)
        if found is None:
            unknown.append(name)
        elif not tensor.isfinite().all():
            raise ValueError(f"{path}: the tensor {name!r} holds NaN or infinite values; this checkpoint cannot be used.")
        else:
            named[_WEIGHT_NORM.get(found, found)] = tensor.float()
    if unknown or not named:
        what = f"its tensors {', '.join(unknown[:5])} are not HuBERT's" if unknown else "it holds no tensors"
        raise ValueError(f"{path}: not a HuBERT model as it stands after pretraining: {what}.")
    return named


def _facts(path: Path, state: Mapping[str, Tensor], cfg: Mapping[str, Any]) -> dict[str, Fact]:
    """Arguments of `HubertConfig` that fairseq's tensors and settings tell."""
    convolutions, layers = _count(state, "feature_extractor.conv_layers."), _count(state, "encoder.layers.")
    try:
        kernels = [tuple(state[f"feature_extractor.conv_layers.{i}.conv.weight"].shape) for i in range(convolutions)]
        hidden, grouped, positions = state[f"{_POS_CONV}.parametrizations.weight.original1"].shape
        inner = len(state["encoder.layers.0.feed_forward.intermediate_dense.weight"])
        dims = [(kernel[0], kernel[2]) for kernel in kernels]
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"{path}: not a whole HuBERT model: {error} is missing or of another shape.") from error
    norm = "layer" if "feature_extractor.conv_layers.1.layer_norm.weight" in state else "group"
    facts = {
        "hidden_size": Fact(hidden, f"encoder.pos_conv.0.weight_v [{hidden}, ...]", True),
        "num_hidden_layers": Fact(layers, "number of encoder.layers", True),
        "intermediate_size": Fact(inner, f"fc1 [{inner}, ...]", True),
        "feat_extract_norm": Fact(norm, f"conv_layers.1.2 {'present' if norm == 'layer' else 'absent'}", True),
        "conv_dim": Fact(tuple(dim for dim, _ in dims), "feature_extractor.conv_layers", True),
        "conv_kernel": Fact(tuple(kernel for _, kernel in dims), "feature_extractor.conv_layers", True),
        "conv_bias": Fact("feature_extractor.conv_layers.0.conv.bias" in state, "conv_layers.0.0.bias", True),
        "num_conv_pos_embeddings": Fact(positions, f"encoder.pos_conv.0.weight_v [..., {positions}]", True),
        "num_conv_pos_embedding_groups": Fact(hidden // max(grouped, 1), f"encoder.pos_conv.0.weight_v [..., {grouped}, ...]", True),
    }
    told = {
        "conv_stride": ("conv_feature_layers", _strides(cfg.get("conv_feature_layers"))),
        "num_attention_heads": ("encoder_attention_heads", cfg.get("encoder_attention_heads")),
        "do_stable_layer_norm": ("layer_norm_first", cfg.get("layer_norm_first")),
    }
    conventions = {
        "conv_stride": (_STRIDES, "every published HuBERT"),
        "num_attention_heads": (hidden // (80 if hidden == 1280 else 64), "heads of 64, or 80 at width 1280: every published HuBERT"),
        "do_stable_layer_norm": (norm == "layer", "with layer norms in every convolution, as every published HuBERT"),
    }
    for name, (key, value) in told.items():
        default, why = conventions[name]
        facts[name] = Fact(value, f"cfg.model.{key}", True) if type(value) is type(default) else Fact(default, why, False)
    return facts


def _strides(text: Any) -> tuple[int, ...] | None:
    """Of "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2", the Python expression in which fairseq keeps (dim, kernel, stride)."""
    if not isinstance(text, str):
        return None
    terms = [re.fullmatch(r"\s*\[((?:\(\d+, ?\d+, ?\d+\),? ?)+)\]\s*(?:\*\s*(\d{1,2}))?\s*", term) for term in text.split("+")]
    if not all(terms):
        return None
    found = [re.findall(r", ?(\d+)\)", term[1]) * int(term[2] or 1) for term in terms if term]
    return tuple(int(stride) for strides in found for stride in strides)


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})
