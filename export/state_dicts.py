"""The state dicts of known models inside whatever was saved, recognised by their tensors' names alone.

In: a package, as `model.tensor_file.read_package` returns it. Out: each state dict of a known model, under the names that upstream's class
gives its tensors, with where it was found. Containers may be called anything and stand in one another; wrappers (DataParallel, FSDP,
torch.compile, Lightning, an average, a trainer) put words in front of the names or between them. It does not know what tensors mean.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .errors import ExportError

OPEN_MUSICLM = "start_tokens.0"  # a tensor that each transformer of open-musiclm has
# Names of tensors that only this kind of checkpoint has, all of them. Of two models inside one another the first here counts.
_MARKS = (
    ("semantic", "start_token"),
    ("coarse", "coarse_start_token|semantic_start_token"),
    ("fine", "fine_start_token"),
    ("codec", "encoder.0.conv.weight|decoder.0.conv.weight"),  # SoundStream
    ("codec", "quantizer.vq.layers.0._codebook.embed"),  # EnCodec, of its own package
    ("codec", "quantizer.layers.0.codebook.embed"),  # and of transformers
    ("quantizer", "rq.layers.0._codebook.embed"),
    ("open-musiclm", f"{OPEN_MUSICLM}|logit_weights.1"),  # its kind is the stage
    ("mulan", "audio_to_latents.weight"),
    ("mulan", "audio_projection.0.weight|text_projection.0.weight"),  # CLAP, of LAION
    ("mulan", "audio_projection.linear1.weight|text_projection.linear1.weight"),  # and of transformers
    ("semantic-features", "centres|spec.mel_layout"),
    ("hubert", "feature_extractor.conv_layers.0.0.weight"),  # of fairseq
    ("hubert", "feature_extractor.conv_layers.0.conv.weight"),  # of transformers
    ("quantizer", "layers.0._codebook.embed"),  # the ResidualVQ of open-musiclm, which nothing is around
)
DESCRIPTIONS = {
    "semantic": "a semantic transformer",
    "coarse": "a coarse transformer",
    "fine": "a fine transformer",
    "codec": "a codec (SoundStream or EnCodec)",
    "quantizer": "a MuLaN embedding quantizer",
    "mulan": "a MuLaN model or a CLAP",
    "semantic-features": "the semantic tokenizer that MelKmeans.save writes",
    "hubert": "HuBERT",
}
# Names that DataParallel, torch.compile, FSDP and activation checkpoints give the module they hold. No known model has such names.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module", "_forward_module"}
_AVERAGE = re.compile(r"(.*[_-])?(ema|average|averaged|avg|shadow|swa|polyak)([_-].*)?", re.IGNORECASE)
_DEEPEST = 8  # containers in one another; trainers need three


@dataclass(frozen=True)
class StateDict:
    """The tensors of one model, and where they stood in what was saved."""

    kind: str  # a key of `DESCRIPTIONS`
    tensors: dict[str, Tensor]  # under upstream's names
    entry: str  # of the package: "ema_model", "best_state.model", "" for the package itself
    prefix: str  # in front of each name, as it was saved: "net."
    packages: tuple[Mapping[Any, Any], ...]  # those around the tensors, the nearest first
    others: int  # tensors of the same dictionary beside the model's

    @property
    def place(self) -> str:
        """Return where it was found, as a person would write it: "state_dict, 'net.*'"."""
        return ", ".join(filter(None, (self.entry or "the file itself", self.prefix and f"'{self.prefix}*'")))

    @property
    def averages(self) -> int:
        """Return how many words around it say that it is an average: 2 for the copy inside a saved average, 1 for the model beside it."""
        return sum(_AVERAGE.fullmatch(word) is not None for word in (*self.entry.split("."), *self.prefix.split(".")))


def state_dicts(package: Mapping[Any, Any]) -> list[StateDict]:
    """Return every state dict of a known model in a package, a model once for each set of its weights.

    Raises ExportError if a wrapper's names hide two tensors of one name."""
    found: list[StateDict] = []
    for entry, state, packages in _dictionaries(package, "", ()):
        for model in _models(entry, state, packages):
            if not any(model.kind == other.kind and _same(model.tensors, other.tensors) for other in found):
                found.append(model)
    return found


def choose(found: list[StateDict], name: str) -> tuple[StateDict, str]:
    """Return the one that counts of several sets of one model's weights, and why in words.

    An average counts before the weights that it is an average of, as in upstream's own `SoundStream.load`. Raises ExportError if several
    could be meant, which names them all. name: of the file."""
    most = max(model.averages for model in found)
    taken = [model for model in found if model.averages == most]
    if len(taken) > 1:
        places = "; ".join(model.place for model in taken)
        raise ExportError(
            f"{name}: holds several sets of weights of {DESCRIPTIONS[taken[0].kind]}: {places}. Save the one that is meant alone."
        )
    (model,) = taken
    rest = [other.place for other in found if other is not model]
    why = [f"entry {model.entry!r} of the file" if model.entry else "the file itself"]
    why += [f"names after {model.prefix!r}"] if model.prefix else []
    why += [f"{model.others} tensors beside it are of something else"] if model.others else []
    why += [f"an average counts before {', '.join(rest)}"] if rest else []
    return model, "; ".join(why)


def first_tensor(package: Mapping[Any, Any]) -> str | None:
    """Return the name of the first tensor in a package; None if there is none anywhere."""
    return next((name for _, tensors, _ in _dictionaries(package, "", ()) for name in tensors), None)


def _dictionaries(
    package: Mapping[Any, Any], entry: str, around: tuple[Mapping[Any, Any], ...]
) -> Iterator[tuple[str, dict[str, Tensor], tuple[Mapping[Any, Any], ...]]]:
    """Yield every dictionary that holds tensors: its entry, its tensors, and the dictionaries around them, the nearest first."""
    around = (package, *around)
    tensors = {key: value.detach() for key, value in package.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if tensors:
        yield entry, tensors, around
    for key, value in package.items():
        value = dict(enumerate(value)) if isinstance(value, list | tuple) else value
        if isinstance(value, Mapping) and len(around) <= _DEEPEST:  # which also ends what contains itself
            yield from _dictionaries(value, f"{entry}.{key}" if entry else str(key), around)


def _models(entry: str, state: Mapping[str, Tensor], packages: tuple[Mapping[Any, Any], ...]) -> Iterator[StateDict]:
    """Yield the known models in one dictionary of tensors, each with the names that begin as its marks do."""
    plain = _without_wrappers(state)
    taken: list[str] = []
    for kind, marks in _MARKS:
        first, *rest = marks.split("|")
        for name in plain:
            prefix = name.removesuffix(first)
            if prefix == name or (prefix and not prefix.endswith(".")) or not all(prefix + mark in plain for mark in rest):
                continue
            # of a model inside another one kind is the whole: a quantizer around its MuLaN, EnCodec in audiolm-pytorch's wrapper
            if any(prefix.startswith(other) or other.startswith(prefix) for other in taken):
                continue
            taken.append(prefix)
            tensors = {name.removeprefix(prefix): state[saved] for name, saved in plain.items() if name.startswith(prefix)}
            kind = _stage_of_open_musiclm(tensors) if kind == "open-musiclm" else kind
            yield StateDict(kind, tensors, entry, prefix, packages, len(plain) - len(tensors))


def _stage_of_open_musiclm(state: Mapping[str, Tensor]) -> str:
    """Return the stage of a transformer that reads two sequences, or three, of which the second has one quantizer (coarse) or several."""
    if "start_tokens.2" not in state:
        return "semantic"
    return "coarse" if len(state["logit_weights.1"]) == 1 else "fine"


def _without_wrappers(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Return `{name without the words of wrappers: name as it was saved}`."""
    plain: dict[str, str] = {}
    for saved in state:
        name = ".".join(part for part in saved.split(".") if part not in _WRAPPERS)
        if name in plain:
            raise ExportError(f"the tensors {plain[name]!r} and {saved!r} are one without the words of wrappers. Save the model's own.")
        plain[name] = saved
    return plain


def _same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        tensor is second[name] or (tensor.shape == second[name].shape and tensor.equal(second[name])) for name, tensor in first.items()
    )
