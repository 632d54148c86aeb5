"""The examination of checkpoints, without exporting them: their kinds and settings, missing files, and whatever does not fit.

Refusals are raised by the functions that the export calls, so their words are the same; the export stops at the first refusal, this module
gathers all of them. No graph is traced and no error is measured against PyTorch. `doctor.py` has the report, and examines bundles.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..model.archive import ZIP
from ..model.hubert_files import is_hubert_folder
from ..model.sklearn_kmeans import read_cluster_centers
from ..model.tensor_file import UnreadableFile, files_of
from ..runtime.bundle import BundleError
from ..runtime.roberta_tokenizer import MERGES_FILE, VOCABULARY_FILE, tokenizer_files
from ..runtime.tokenizer_file import TOKENIZER_FILE
from .checkpoint import Checkpoint, check_claims, from_package, is_encodec, kinds_in, read_file
from .clap import is_clap, what_clap
from .codec import build_codec
from .collect import Collected, conditioner_tables, gather, settings_table, warnings_of
from .doctor import USELESS, FileReport, Report, describe_bundle, is_bundle
from .errors import ExportError, MissingCheckpoint, naming
from .fit import conditioning_dim, faults_of_fit
from .mulan import check_conditioner, codebooks_of, conditioner_weights, is_bare, split_quantizer_state
from .open_musiclm import is_open_musiclm
from .open_musiclm_config import with_model_config
from .semantic_tokens import build_tokenizer
from .settings import Settings
from .stage import build_stage
from .state_dicts import DESCRIPTIONS
from .tensor_names import serves_training
from .text_tokenizer import infer_tokenizer
from .towers import build_towers
from .transformers import STAGES

_NEEDED = (*STAGES, "codec", "mulan", "quantizer")
_TABLE = "cond_embeddings."
_SUFFIXES = {".pt", ".pth", ".th", ".ckpt", ".bin", ".safetensors", ".km", ".pkl", ".joblib"}


def examine(
    paths: Iterable[Path], config: Mapping[str, Any], tokenizer: Path | None = None, open_musiclm_config: Path | None = None
) -> Report:
    """Examine files of any kind; see `diagnose` for the arguments."""
    files, faults = [], []
    for path in itertools.chain.from_iterable(map(_files_in, paths)):
        try:
            files += _examine(path)
        except (ExportError, BundleError) as error:
            files.append(FileReport(str(path), None, USELESS))
            faults.append(str(error))
    sources = _assign(files, faults)
    sources |= {} if tokenizer is None else {"tokenizer": tokenizer}
    refused: list[ExportError] = []
    try:
        config = with_model_config(config, open_musiclm_config, sources)
    except ExportError as error:
        faults.append(str(error))
    collected = gather(sources, config, refused.append) if sources or config else Collected({}, {})
    missing = _missing(sources, collected, refused) if sources else []
    faults += [str(error) for error in refused if not (isinstance(error, MissingCheckpoint) and set(error.kinds) <= set(missing))]
    unfit = faults_of_fit(collected)
    faults += [*unfit, *_refused_by_builders(collected)]
    settings = {part: {name: [item.value, item.source] for name, item in values.items()} for part, values in collected.settings.items()}
    warnings = warnings_of(collected) + [
        str(error) for error in refused if isinstance(error, MissingCheckpoint) and "tokenizer" in error.kinds
    ]
    return Report(files, settings, missing, warnings, list(dict.fromkeys(faults)), settings_table(collected))


def _files_in(path: Path) -> list[Path]:
    """Return what a path stands for: itself, or, of a folder of several checkpoints, each of them."""
    if not os.path.isdir(path) or is_bundle(path) or any(path.glob("*.index.json")):
        return [path]
    try:
        files_of(path)
        return [path]
    except UnreadableFile:  # which the export says, too, if there is nothing else in it
        known = [file for file in path.iterdir() if file.suffix in _SUFFIXES]
        return sorted(filter(os.path.isfile, known + tokenizer_files(path)[:1])) or [path]


def _examine(path: Path) -> list[FileReport]:
    """Report each model that one path holds; of a folder, those of the files in it. Raises ExportError or BundleError if the content is
    unknown or cannot be read."""
    if is_bundle(path):
        return [describe_bundle(path)]
    if is_hubert_folder(path):
        return [FileReport(str(path), "hubert", "HuBERT, a folder of transformers")]
    if path.name == MERGES_FILE and tokenizer_files(path):
        return [FileReport(str(path), None, f"the merges of RoBERTa's tokenizer, read with the {VOCABULARY_FILE} beside it")]
    if path.name == VOCABULARY_FILE or _is_tokenizer_folder(path):
        _, tokenizer = infer_tokenizer(path, roberta=True)
        return [FileReport(str(path), "tokenizer", f"RoBERTa's tokenizer of {tokenizer['tokens']} tokens")]
    if path.name == TOKENIZER_FILE and path.is_file():
        _, tokenizer = infer_tokenizer(path)
        return [FileReport(str(path), "tokenizer", f"a tokenizer of {tokenizer['tokens']} tokens ({tokenizer['model']})")]
    try:
        package = read_file(path)
        kinds = kinds_in(path.name, package)
    except ExportError:
        if _is_kmeans(path):
            return [FileReport(str(path), "kmeans", "a k-means model of scikit-learn")]
        raise
    return [_describe(path, package, kind) for kind in kinds]


def _describe(path: Path, package: Mapping[Any, Any], kind: str) -> FileReport:
    checkpoint = from_package(path.name, package, kind)
    check_claims(checkpoint, path)
    what = DESCRIPTIONS[kind]
    if kind == "mulan":
        what = what_clap(checkpoint.state, path) if is_clap(checkpoint.state) else "a MuLaN model"
    if kind == "codec":
        what = f"a codec ({'EnCodec' if is_encodec(checkpoint.state) else 'SoundStream'})"
    if is_open_musiclm(checkpoint.state):
        what += " of open-musiclm"
    if kind == "quantizer" and is_bare(checkpoint.state):
        what = "a residual quantizer of CLAP's latents, as open-musiclm has it"
    if kind == "quantizer" and (inside := split_quantizer_state(checkpoint.state)[1]) is not None:
        what += " with its CLAP" if is_clap(inside) else " with its MuLaN"
    namespaces = [name.removeprefix(_TABLE) for name in checkpoint.state if name.startswith(_TABLE)]
    return FileReport(str(path), kind, what, checkpoint.version, _non_finite(checkpoint), namespaces)


def _is_tokenizer_folder(path: Path) -> bool:
    """Return whether a path is a folder of a tokenizer's files and of no model's."""
    try:
        return bool(os.path.isdir(path) and tokenizer_files(path)) and not files_of(path)
    except UnreadableFile:
        return True


def _is_kmeans(path: Path) -> bool:
    if not os.path.isfile(path):
        return False
    with path.open("rb") as file:
        if file.read(len(ZIP)) == ZIP:  # torch's own; reading it whole would be for nothing
            return False
    try:
        read_cluster_centers(path)
    except ValueError:
        return False
    return True


def _non_finite(checkpoint: Checkpoint) -> list[str]:
    return [name for name, tensor in checkpoint.state.items() if not serves_training(name) and not torch.isfinite(tensor).all()]


def _assign(files: list[FileReport], faults: list[str]) -> dict[str, Path]:
    """Return the export's sources. For two files of one kind, take the first and note a fault."""
    taken: dict[str, FileReport] = {}
    quantizers = [file for file in files if file.kind == "quantizer"]
    stages = [file.namespaces[0] for file in quantizers if len(file.namespaces) == 1]
    each_its_own = len(quantizers) > 1 and len(set(stages) & set(STAGES)) == len(quantizers)
    for file in files:
        if file.kind in (None, "bundle"):
            continue
        name = f"quantizer.{file.namespaces[0]}" if file.kind == "quantizer" and each_its_own else file.kind
        first = taken.setdefault(name, file)
        if first is not file:
            both = f"{first.path} ({first.what}) and {file.path} ({file.what})"
            faults.append(f"{both} are of one kind, of which an export takes one; the first was examined.")
    return {name: Path(file.path) for name, file in taken.items()}


def _missing(sources: Mapping[str, Path], collected: Collected, refused: Iterable[ExportError]) -> list[str]:
    """Return the export's options that no file serves and that are not superfluous."""
    served = {name.partition(".")[0] for name in sources} | ({"mulan"} & collected.checkpoints.keys())
    if all(stage in collected.settings for stage in STAGES) and not collected.conditioned:
        served.add("quantizer")
    asked = {kind for error in refused if isinstance(error, MissingCheckpoint) for kind in error.kinds if "." not in kind}
    return [name for name in dict.fromkeys((*_NEEDED, *sorted(asked))) if name not in served]


def _refused_by_builders(collected: Collected) -> list[str]:
    """Return the refusals of the export's later steps, which look at every tensor: missing, unknown, misshapen or not finite."""
    checkpoints, settings = collected.checkpoints, collected.settings
    codec, semantic = settings.get("codec"), settings.get("semantic")
    groups = codec["rq_groups"] if codec else 1
    length = semantic["max_length"] if semantic and isinstance(semantic["max_length"], int) else 1
    steps: dict[str, Callable[[Settings, Checkpoint], object]] = {
        **{stage: lambda given, file, stage=stage: build_stage(stage, file, given, length, groups) for stage in STAGES},
        "mulan": lambda given, file: build_towers(given, file.state),
        "codec": lambda given, file: build_codec(given, file.state),
        "wav2vec": lambda given, file: build_tokenizer(file, given),
    }
    faults = []
    for part, step in steps.items():
        try:
            if part in settings:
                with naming(checkpoints[part].name):
                    step(settings[part], checkpoints[part])
        except ExportError as error:
            faults.append(str(error))
    try:
        _check_conditioning(collected)
    except ExportError as error:
        faults.append(str(error))
    return faults


def _check_conditioning(collected: Collected) -> None:
    known = [stage for stage in STAGES if f"quantizer.{stage}" in collected.settings]
    if all(stage in collected.settings for stage in STAGES) and known == collected.conditioned:
        tables = {stage: conditioning_dim(collected.settings[f"quantizer.{stage}"], stage) for stage in known}
        if all(width or is_bare(collected.checkpoints[f"quantizer.{stage}"].state) for stage, width in tables.items()):
            check_conditioner(conditioner_tables(collected))
    else:  # some transformers are not there: every table of what is there
        for stage in known:
            with naming(collected.checkpoints[f"quantizer.{stage}"].name):
                state = collected.checkpoints[f"quantizer.{stage}"].state
                check_conditioner({stage: (codebooks_of(state), None)} if is_bare(state) else conditioner_weights(state))
