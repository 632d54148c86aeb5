"""Values that the parts of one MusicLM have in common, and must therefore agree on: widths, vocabularies, quantizers, rates.

In: all parts as `collect.py` read them, as far as they are there. Out: a sentence for each pair that disagrees. What a single part must be
is checked where it is inferred. docs/export.md lists the pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .errors import ExportError
from .mulan import is_bare
from .open_musiclm import is_open_musiclm
from .semantic_tokens import tokens_per_second
from .settings import Settings
from .text_tokenizer import faults_of_tokenizer, is_roberta, warnings_of_tokenizer
from .transformers import STAGES

if TYPE_CHECKING:
    from .collect import Collected

# Names of the tensors that say whether codebooks have seen data: SoundStream's, and EnCodec's in both its packages.
_INITIALISED = ("_codebook.initted", "codebook.inited")
# Settings that must be equal: one part and its setting, another part and its setting. In each group the first pair whose files are there is
# compared, so that one wrong file is one line.
_EQUAL = (
    (("semantic", "num_semantic_tokens", "coarse", "num_semantic_tokens"),),
    (
        ("wav2vec", "codebook_size", "semantic", "num_semantic_tokens"),
        ("wav2vec", "codebook_size", "coarse", "num_semantic_tokens"),
    ),
    (("coarse", "codebook_size", "fine", "codebook_size"),),
    (("coarse", "codebook_size", "codec", "codebook_size"), ("fine", "codebook_size", "codec", "codebook_size")),
    (("coarse", "num_coarse_quantizers", "fine", "num_coarse_quantizers"),),
)


def faults_of_fit(collected: Collected) -> list[str]:
    """Return everything that must agree between files and does not, as far as the files are there."""
    s, names = collected.settings, _names(collected)
    faults = [
        _differ(collected, *pair)
        for group in _EQUAL
        for pair in [next((pair for pair in group if pair[0] in s and pair[2] in s), None)]
        if pair is not None
    ]
    if "semantic" in s and not 0 < s["semantic"]["tokens_per_second"] < math.inf:
        faults.append(f"{names['semantic']}: tokens_per_second must be a positive number, got {s['semantic']['tokens_per_second']}")
    elif "wav2vec" in s and "semantic" in s:
        rate, trained = tokens_per_second(s["wav2vec"]), s["semantic"]["tokens_per_second"]
        if rate != trained:
            faults.append(
                f"{names['wav2vec']}: gives {rate:g} tokens a second, but {names['semantic']}: tokens_per_second is {trained:g}; "
                "override it if the semantic transformer was trained on these tokens"
            )
    if "fine" in s and "codec" in s:
        quantizers = s["fine"]["num_coarse_quantizers"] + s["fine"]["num_fine_quantizers"]
        if quantizers != s["codec"]["rq_num_quantizers"]:
            faults.append(
                f"{names['fine']}: {quantizers} coarse and fine quantizers, "
                f"but {names['codec']}: rq_num_quantizers is {s['codec']['rq_num_quantizers']}"
            )
    if "codec" in s and not all(
        tensor.all() for name, tensor in collected.checkpoints["codec"].state.items() if name.endswith(_INITIALISED)
    ):
        faults.append(f"{names['codec']}: its codebooks were never initialised; train the codec, then save it")
    kinds = {stage: is_open_musiclm(collected.checkpoints[stage].state) for stage in STAGES if stage in s}
    if len(set(kinds.values())) > 1:
        said = ", ".join(f"{names[stage]} is {'open-musiclm' if kind else 'audiolm-pytorch'}'s" for stage, kind in kinds.items())
        faults.append(f"the transformers are of two packages: {said}")
    for stage in stages_with_quantizer(collected):
        faults += _faults_of_condition(collected, stage)
    if _has_texts(s):
        faults += faults_of_tokenizer(s["mulan"], s.get("tokenizer"), names)
    return list(dict.fromkeys(filter(None, faults)))


def check_wrappers(audio_lm: Any) -> None:
    """Raise ExportError if the wrappers of a live AudioLM, each of which has a copy, do not have the same codec, tokenizer and rules."""
    semantic, coarse = audio_lm.semantic, audio_lm.coarse
    faults = []
    if semantic.unique_consecutive != coarse.unique_consecutive:
        faults.append(f"unique_consecutive is {semantic.unique_consecutive} in semantic and {coarse.unique_consecutive} in coarse")
    for name, one, other in (("codec", "coarse", "fine"), ("wav2vec", "semantic", "coarse")):
        first, second = (getattr(getattr(audio_lm, stage), name, None) for stage in (one, other))
        if first is not None and second is not None and first is not second and not _same_tensors(first, second):
            faults.append(f"the {name} of {one} is not that of {other}: their tensors differ")
    if faults:
        raise ExportError(f"the wrappers of this AudioLM do not fit together: {'; '.join(faults)}. A bundle has one for all stages.")


def warnings_of_text(collected: Collected) -> list[str]:
    """Return what may be wrong about MuLaN's text tower and its tokenizer."""
    s = collected.settings
    return warnings_of_tokenizer(s["mulan"], s.get("tokenizer"), _names(collected)) if _has_texts(s) else []


def _has_texts(settings: Mapping[str, Settings]) -> bool:
    """Return whether a text tower is known, and so is its tokenizer: MuLaN's is CLIP's where none was given, CLAP's has to be given."""
    return "mulan" in settings and ("tokenizer" in settings or not is_roberta(settings["mulan"]))


def stages_with_quantizer(collected: Collected) -> list[str]:
    return [stage for stage in STAGES if f"quantizer.{stage}" in collected.settings]


def namespace_of(quantizer: Settings, stage: str) -> str:
    """Return the namespace that serves `stage`: its own, or the only one of a quantizer, unless that is named after another stage."""
    namespaces = list(quantizer["namespaces"])
    return namespaces[0] if len(namespaces) == 1 and namespaces[0] not in STAGES else stage


def conditioning_dim(quantizer: Settings, stage: str) -> int | None:
    """Return the width of the condition that a quantizer gives to `stage`; None if it has no table for it."""
    return dict(zip(quantizer["namespaces"], quantizer["conditioning_dims"], strict=True)).get(namespace_of(quantizer, stage))


def _faults_of_condition(collected: Collected, stage: str) -> list[str | None]:
    """Return what is wrong between the quantizer of a stage, its transformer, MuLaN and the quantizers of other stages."""
    s, names, quantizer = collected.settings, _names(collected), f"quantizer.{stage}"
    faults: list[str | None] = []
    dim = conditioning_dim(s[quantizer], stage)
    if stage not in s:
        pass  # what it takes is not known
    elif is_bare(collected.checkpoints[quantizer].state) or is_open_musiclm(collected.checkpoints[stage].state):
        faults += _faults_of_codes(collected, stage)
    elif dim is None:
        faults.append(f"{names[quantizer]}: has no table for {stage}, only {', '.join(s[quantizer]['namespaces'])}")
    elif dim != s[stage]["cond_dim"]:
        hint = " (a model conditioned on T5 text is not covered)" if s[stage]["cond_dim"] == 768 else ""
        faults.append(f"{names[stage]}: takes a condition of width {s[stage]['cond_dim']}, but {names[quantizer]} gives {dim}{hint}")
    faults.append(_differ(collected, quantizer, "dim_latent", "mulan", "dim_latent"))
    first = f"quantizer.{stages_with_quantizer(collected)[0]}"  # a bundle has as many conditioning tokens for all stages
    faults.append(_differ(collected, quantizer, "rq_num_quantizers", first, "rq_num_quantizers"))
    if s[quantizer]["uninitialised"]:
        faults.append(
            f"{names[quantizer]}: its codebooks were never initialised; run it in training mode over your data once, then save it"
        )
    return faults


def _faults_of_codes(collected: Collected, stage: str) -> list[str | None]:
    """Return what is wrong between a quantizer and a transformer, one of which is open-musiclm's, so that codes are tokens."""
    quantizer, names = f"quantizer.{stage}", _names(collected)
    if not is_bare(collected.checkpoints[quantizer].state):
        return [f"{names[stage]}: reads codes as tokens, as open-musiclm's do, but {names[quantizer]} is a MuLaNEmbedQuantizer"]
    if not is_open_musiclm(collected.checkpoints[stage].state):
        return [f"{names[stage]}: takes embeddings of codes, but {names[quantizer]} is codebooks alone, as open-musiclm has them"]
    return [
        _differ(collected, stage, "num_clap_quantizers", quantizer, "rq_num_quantizers"),
        _differ(collected, stage, "clap_codebook_size", quantizer, "codebook_size"),
    ]


def _same_tensors(first: Any, second: Any) -> bool:
    one, other = first.state_dict(), second.state_dict()
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def _differ(collected: Collected, part: str, setting: str, other: str, other_setting: str) -> str | None:
    """Return the sentence for two settings that differ; None if they are equal, or a part is not there."""
    s, names = collected.settings, _names(collected)
    if part not in s or other not in s or s[part][setting] == s[other][other_setting]:
        return None
    return f"{names[part]}: {setting} is {s[part][setting]}, but {names[other]}: {other_setting} is {s[other][other_setting]}"


def _names(collected: Collected) -> dict[str, str]:
    return {part: checkpoint.name for part, checkpoint in collected.checkpoints.items()}
