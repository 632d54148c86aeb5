"""All checkpoints of one MusicLM, read and fitted together.

In: file paths and overrides. Out: `Collected`: checkpoints and settings of every part, checked against each other. The export and the
validation both start here, so they cannot disagree about what a file says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from .checkpoint import Checkpoint, from_package, read_checkpoint
from .codec import infer_codec
from .errors import ExportError, MissingCheckpoint, naming
from .fit import faults_of_fit, namespace_of, stages_with_quantizer, warnings_of_text
from .mulan import check_conditioner, codebooks_of, conditioner_weights, infer_quantizer, is_bare, split_quantizer_state
from .semantic_tokens import infer_mel, read_hubert_alone, read_hubert_kmeans
from .settings import Settings
from .text_tokenizer import infer_tokenizer, is_roberta, tokenizer_of
from .towers import infer_towers, towers_tensors
from .transformers import STAGES, infer_transformer

PARTS = (*STAGES, "codec", "mulan", "quantizer", "wav2vec")


@dataclass(frozen=True)
class Collected:
    # semantic, coarse, fine, codec, mulan; quantizer.<stage> per conditioned stage; wav2vec and tokenizer if given
    checkpoints: dict[str, Checkpoint]
    settings: dict[str, Settings]  # the same names; quantizer.<stage> as well

    @property
    def conditioned(self) -> list[str]:
        return [stage for stage in STAGES if stage in self.settings and self.settings[stage]["audio_text_condition"]]


def collect(sources: Mapping[str, Path], overrides: Mapping[str, Any]) -> Collected:
    """Return everything read and in agreement. Raises the ExportError that comes first.

    sources: semantic, coarse, fine, codec, quantizer (or quantizer.<stage> for each), and mulan where no quantizer holds it.
    semantic-features, or hubert and kmeans: the semantic tokenizer, for bundles that take sounds. tokenizer: that of MuLaN's texts, where
    it is not CLIP's."""

    def refuse(error: ExportError) -> None:
        raise error

    collected = gather(sources, overrides, refuse)
    faults = faults_of_fit(collected)
    if faults:
        raise ExportError("the checkpoints do not fit together:\n" + "\n".join(f"  - {fault}" for fault in faults))
    return collected


def gather(sources: Mapping[str, Path], overrides: Mapping[str, Any], refuse: Callable[[ExportError], None]) -> Collected:
    """Read every file that can be read. What is refused, and what is missing, goes to `refuse`: the export raises it, a diagnosis
    keeps it and goes on with the other parts. Whether the parts fit together is another question."""
    checkpoints: dict[str, Checkpoint] = {}
    settings: dict[str, Settings] = {}

    @contextmanager
    def part() -> Iterator[None]:
        try:
            yield
        except ExportError as error:
            refuse(error)

    with part():
        _check_overrides(overrides)
    overrides = {name: values for name, values in overrides.items() if isinstance(values, Mapping)}
    with part():
        missing = [name for name in (*STAGES, "codec") if name not in sources]
        if missing:
            raise MissingCheckpoint(f"missing checkpoint: {', '.join('--' + name for name in missing)}.", *missing)
    for name in (*STAGES, "codec", "mulan"):
        with part():
            if name in sources:
                checkpoints[name] = read_checkpoint(sources[name], name)
    for stage in STAGES:
        with part():
            if stage in checkpoints:
                settings[stage] = infer_transformer(stage, checkpoints[stage], overrides.get(stage, {}))
    with part():
        if "codec" in checkpoints:
            fine = settings.get("fine")
            quantizers = None if fine is None else fine["num_coarse_quantizers"] + fine["num_fine_quantizers"]
            with naming(checkpoints["codec"].name):
                settings["codec"] = infer_codec(checkpoints["codec"], quantizers, overrides.get("codec", {}))
    for stage in STAGES:
        with part():
            if stage in settings and not settings[stage]["audio_text_condition"]:
                if f"quantizer.{stage}" in sources:
                    raise ExportError(f"--quantizer {stage}=...: {checkpoints[stage].name} takes no condition. Leave this option out.")
            else:
                _gather_quantizer(stage, sources, overrides.get("quantizer", {}), checkpoints, settings)
    with part():
        if "mulan" in checkpoints:
            with naming(checkpoints["mulan"].name):
                settings["mulan"] = infer_towers(checkpoints["mulan"], sources.get("mulan"), overrides.get("mulan", {}))
        elif "mulan" not in sources:
            raise MissingCheckpoint("missing checkpoint: --mulan (no quantizer file holds one).", "mulan")
    with part():
        if (tokenizer := tokenizer_of(sources, settings.get("mulan"))) is not None:
            checkpoints["tokenizer"], settings["tokenizer"] = infer_tokenizer(tokenizer, is_roberta(settings.get("mulan")))
    with part():
        if "hubert" in sources and "kmeans" not in sources:  # which is asked for below; a HuBERT that has to be refused is, before that
            read_hubert_alone(sources["hubert"])
    with part():
        _gather_wav2vec(sources, overrides.get("wav2vec", {}), checkpoints, settings)
    return Collected(checkpoints, settings)


def _gather_quantizer(
    stage: str,
    sources: Mapping[str, Path],
    overrides: Mapping[str, Any],
    checkpoints: dict[str, Checkpoint],
    settings: dict[str, Settings],
) -> None:
    """Add the quantizer of one stage, and the MuLaN inside it unless there is one."""
    name = f"quantizer.{stage}" if f"quantizer.{stage}" in sources else "quantizer"
    if name not in sources:
        if stage not in settings:
            return  # not even the transformer is known
        raise MissingCheckpoint(
            f"the {stage} transformer is conditioned, so it needs a quantizer: give --quantizer Q.pt, or --quantizer {stage}=Q.pt.", name
        )
    quantizer = read_checkpoint(sources[name], "quantizer")
    quantizer.state, inside = split_quantizer_state(quantizer.state)
    with naming(quantizer.name):
        settings[f"quantizer.{stage}"] = infer_quantizer(quantizer.state, overrides)
    checkpoints[f"quantizer.{stage}"] = quantizer
    if inside is not None:
        found = from_package(f"{quantizer.name} (its MuLaN)", inside, "mulan")
        found.sha256, found.weights = quantizer.sha256, quantizer.weights
        checkpoints["mulan"] = _same_mulan(checkpoints["mulan"], found) if "mulan" in checkpoints else found


def _gather_wav2vec(
    sources: Mapping[str, Path], overrides: Mapping[str, Any], checkpoints: dict[str, Checkpoint], settings: dict[str, Settings]
) -> None:
    """Add what was given of a semantic tokenizer."""
    given = [name for name in ("semantic-features", "hubert", "kmeans") if name in sources]
    if given == ["semantic-features"]:
        checkpoints["wav2vec"] = read_checkpoint(sources["semantic-features"], "semantic-features")
        settings["wav2vec"] = infer_mel(checkpoints["wav2vec"], overrides)
    elif given == ["hubert", "kmeans"]:
        found, settings["wav2vec"] = read_hubert_kmeans(sources["hubert"], sources["kmeans"], overrides)
        checkpoints |= found
    elif given in (["hubert"], ["kmeans"]):
        lacking = "kmeans" if given == ["hubert"] else "hubert"
        message = f"a semantic tokenizer is either --semantic-features, or --hubert and --kmeans; got --{given[0]}."
        raise MissingCheckpoint(message, lacking)
    elif given or overrides:
        got = ", ".join(f"--{name}" for name in given) or "overrides of 'wav2vec' alone"
        raise ExportError(f"a semantic tokenizer is either --semantic-features, or --hubert and --kmeans; got {got}.")


def _check_overrides(overrides: Mapping[str, Any]) -> None:
    for part, values in overrides.items():
        if part not in PARTS:
            raise ExportError(f"the overrides name {part!r}; known are {', '.join(PARTS)}.")
        if not isinstance(values, Mapping):
            raise ExportError(f"the overrides of {part} must be an object of argument names and values, got {values!r}.")


def _same_mulan(first: Checkpoint, second: Checkpoint) -> Checkpoint:
    """Return `first`. Raises ExportError if `second` is another MuLaN: codes of one model's latents mean nothing to another."""
    with naming(first.name):
        one = towers_tensors(first.state)
    with naming(second.name):
        other = towers_tensors(second.state)
    differ = [name for name, tensor in one.items() if name in other and not tensor.equal(other[name])]
    if differ or one.keys() != other.keys():
        example = differ[0] if differ else next(iter(one.keys() ^ other.keys()))
        raise ExportError(f"{first.name} and {second.name} are not the same MuLaN: {example!r} differs. Give the files of one training.")
    return first


def warnings_of(collected: Collected) -> list[str]:
    """Return what does not stop an export but should be known."""
    untrained: dict[str, list[str]] = {}
    for stage in stages_with_quantizer(collected):
        quantizer = f"quantizer.{stage}"
        if namespace_of(collected.settings[quantizer], stage) in collected.settings[quantizer]["untrained_tables"]:
            untrained.setdefault(collected.checkpoints[quantizer].name, []).append(stage)
    notes = [f"{collected.checkpoints[part].name}: {text}" for part, settings in collected.settings.items() for text in settings.warnings]
    return (
        list(dict.fromkeys(notes))
        + [
            f"{name}: the conditioning of {', '.join(stages)} is as it was drawn at random, as audiolm-pytorch's trainers leave it. "
            "That is right only if the transformers were trained with this very file."
            for name, stages in untrained.items()
        ]
        + warnings_of_text(collected)
    )


def conditioner_tables(collected: Collected) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Return `{stage: (codebooks [Q, K, D], table [Q, K, dim])}` of the conditioned stages, each checked for itself; None where a stage
    reads codes as tokens."""
    if not collected.conditioned:
        raise ExportError("none of the three transformers is conditioned: a prompt would have no effect. Was one trained with a prefix?")
    tables = {}
    for stage in collected.conditioned:
        quantizer, settings = collected.checkpoints[f"quantizer.{stage}"], collected.settings[f"quantizer.{stage}"]
        with naming(quantizer.name):
            if is_bare(quantizer.state):
                tables[stage] = codebooks_of(quantizer.state), None
            else:
                tables[stage] = conditioner_weights(quantizer.state)[namespace_of(settings, stage)]
            check_conditioner({stage: tables[stage]})
    return tables


def settings_table(collected: Collected) -> str:
    """Return every value the export works with and where it came from, for the person at the terminal."""
    lines, shown = [], set()
    for part, settings in collected.settings.items():
        checkpoint = collected.checkpoints[part]
        if part.startswith("quantizer.") and checkpoint.name in shown:
            continue
        shown.add(checkpoint.name)
        lines.append(f"{part.split('.')[0]}  ({checkpoint.name})")
        if checkpoint.weights:
            lines.append(_line("weights", *checkpoint.weights))
        lines += [_line(name, setting.value, setting.source) for name, setting in settings.items()]
    return "\n".join(lines)


def _line(name: str, value: Any, source: str) -> str:
    return f"    {name:28} {_short(value):22} {source}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 21 else text[:18] + "..."
