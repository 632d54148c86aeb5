"""`musiclm doctor`: a report on any files, with the refusals and warnings that an export of them would give.

In: paths, in any order and of any kind, and overrides. Out: a `Report`, as text or as plain data. Bundles alone are examined here, without
torch, where a bundle is only played; `examination.py` examines everything else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..runtime.bundle import FORMAT, MANIFEST, Bundle, BundleError
from ..runtime.install import install_command
from ..runtime.user_files import expanded
from .errors import ExportError

USELESS = "nothing that can be used"  # `FileReport.what` of a file that is refused


@dataclass(frozen=True)
class FileReport:
    path: str
    kind: str | None  # the export's option for it, or "bundle"; None: unknown
    what: str  # a few words for people
    version: str | None = None  # of the package that saved it, where the file says
    non_finite: list[str] = field(default_factory=list)  # tensors with NaN or infinite values
    namespaces: list[str] = field(default_factory=list)  # of a quantizer
    origin: list[str] = field(default_factory=list)  # of a bundle: what it was made of and by


@dataclass(frozen=True)
class Report:
    files: list[FileReport]
    settings: dict[str, dict[str, list[Any]]]  # part -> name -> [value, where it came from], as in a bundle's manifest
    missing: list[str]  # the export's options that no file serves
    warnings: list[str]
    faults: list[str]  # what would be refused
    table: str  # the settings as the export prints them

    def to_json(self) -> str:
        return json.dumps({name: value for name, value in asdict(self).items() if name != "table"}, ensure_ascii=False)

    def __str__(self) -> str:
        lines = [line for file in self.files for line in _lines(file)]
        lines += ["", self.table] if self.table else []
        lines += ["", f"missing for an export: {', '.join('--' + name for name in self.missing)}"] if self.missing else [""]
        lines += [f"warning: {text}" for text in self.warnings]
        lines += [f"refused: {text}" for text in self.faults]
        return "\n".join(lines if self.faults else [*lines, "nothing found that would be refused"])


def diagnose(
    paths: str | os.PathLike | Iterable[str | os.PathLike],
    config: Mapping[str, Any] | None = None,
    tokenizer: str | os.PathLike | None = None,
    open_musiclm_config: str | os.PathLike | None = None,
) -> Report:
    """Examine checkpoints, folders and bundles; one path alone is a list of one. Raises nothing for what is in a file.

    config, tokenizer, open_musiclm_config: as for `export_checkpoints`.

    Raises ExportError for arguments of another kind, and ImportError, which says what to install, if torch is missing and one of the paths
    is not a bundle.
    """
    if not isinstance(paths, str | os.PathLike | Iterable) or isinstance(paths, bytes | Mapping):
        raise ExportError(f"paths must be paths of files and folders, got {type(paths).__name__}.")
    paths = [_path(path) for path in ([paths] if isinstance(paths, str | os.PathLike) else paths)]
    if paths and not config and tokenizer is None and open_musiclm_config is None and all(map(is_bundle, paths)):
        return _of_bundles(paths)
    try:
        from .arguments import overrides_of
        from .examination import examine
    except ModuleNotFoundError as error:
        advice = f"{install_command('cpu', 'export', 'train')}, and upstream as the README says"
        raise ImportError(f"examining anything but bundles needs the package {error.name}, which is not installed: {advice}.") from error
    others = (None if given is None else _path(given) for given in (tokenizer, open_musiclm_config))
    return examine(paths, overrides_of(config), *others)


def _path(value: Any) -> Path:
    if not isinstance(value, str | os.PathLike):
        raise ExportError(f"expected a path of a file or a folder, got {type(value).__name__}.")
    return expanded(value)


def is_bundle(path: Path) -> bool:
    """Return whether a path is a folder that holds a manifest, or graphs that have lost theirs."""
    # unlike Path.is_dir, os.path.isdir says no of a name that no file can have
    return os.path.isdir(path) and ((path / MANIFEST).is_file() or any(path.glob("*.onnx")))


def describe_bundle(path: Path) -> FileReport:
    """Return what a bundle is and what it was made of. Raises BundleError with all of its faults."""
    manifest = Bundle.open(path).manifest
    megabytes = sum(record.bytes for record in manifest.files.values()) / 1e6
    origin = [f"made by {', '.join(f'{name} {version}' for name, version in manifest.made_by.items())}"]
    for name, source in manifest.sources.items():
        known = [f"version {source['version']}" if source.get("version") else "", f"SHA-256 {source.get('sha256', '')[:12]}..."]
        known += [f"weights: {source['weights']}"] if source.get("weights") else []
        origin.append(f"{name} of {source.get('file')} ({', '.join(filter(None, known))})")
    return FileReport(
        str(path), "bundle", f"a bundle of format {FORMAT}, {megabytes:.1f} MB in {len(manifest.files)} files, whole", origin=origin
    )


def _of_bundles(paths: Iterable[Path]) -> Report:
    files, faults = [], []
    for path in paths:
        try:
            files.append(describe_bundle(path))
        except BundleError as error:
            files.append(FileReport(str(path), None, USELESS))
            faults.append(str(error))
    return Report(files, {}, [], [], faults, "")


def _lines(file: FileReport) -> list[str]:
    version = f", saved by version {file.version}" if file.version else ""
    lines = [f"{file.path}: {file.what}{version}", *(f"    {text}" for text in file.origin)]
    if file.non_finite:
        more = f" and {len(file.non_finite) - 5} more" if len(file.non_finite) > 5 else ""
        lines.append(f"    NaN or infinite values in {', '.join(file.non_finite[:5])}{more}")
    return lines
