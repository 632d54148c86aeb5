"""Engines of a bundle: one for each graph, built for one GPU or one compute capability, kept in the bundle beside those for others.

In: a bundle with TensorRT's form, limits. Out: the folder `engines/<library>-<version>-<for what>/` with engines and their record. What has
not changed since it was built is taken over; everything is written aside and renamed.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..aside import folder_aside, remove_abandoned, replace_folder
from ..backend import BackendError
from ..bundle import Bundle, BundleError, FileRecord
from ..device.cuda import find_gpu
from ..recorded_files import fault_of_file
from ..records import parse
from .form import Form
from .library import Library, find_library
from .profiles import Limits, Profile, profiles_of

FOLDER, RECORD, TIMINGS, FORMAT = "engines", "engines.json", "timing.cache", 1
_OTHER = "Build it for fewer --sequences or --seconds, or with another version of TensorRT."


@dataclass(frozen=True)
class Engine:
    """Of one graph, and what it was built of: the same again need not be built again."""

    file: str
    bytes: int
    sha256: str
    sources: dict[str, str]  # the graph's files -> SHA-256
    profiles: list[Any]
    seconds: float  # that it took to build


@dataclass(frozen=True)
class BuiltEngines:
    """A folder of engines, and what must be so where they run."""

    library: str
    version: str
    capability: int  # 89 for 8.9
    gpu: str  # its name; "" for engines of a compute capability, whatever the card
    precision: str
    engines: dict[str, Engine]  # by the file name of the graph in the bundle
    format: int = FORMAT

    @classmethod
    def open(cls, folder: Path) -> BuiltEngines:
        """BundleError for a record that is not one. Engines themselves are checked when they are read."""
        faults: list[str] = []
        try:
            values = json.loads((folder / RECORD).read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise BundleError(f"{folder / RECORD} cannot be read: {error}") from error
        record = parse(cls, values, RECORD, faults)
        if record is None or faults or record.format != FORMAT:
            faults = faults or [f"format {record and record.format!r}, this version reads {FORMAT}"]
            raise BundleError(f"{folder / RECORD} is not a record of engines: {'; '.join(faults)}. Build them again: musiclm build.")
        return record

    def read(self, folder: Path, graph: str) -> bytes:
        """An engine's bytes, checked against its hash. BundleError where there is none."""
        engine = self.engines.get(graph)
        if engine is None:
            raise BundleError(f"{folder} has no engine of {graph}. Build them again: musiclm build.")
        if fault := fault_of_file(folder, engine.file, FileRecord(engine.bytes, engine.sha256)):
            raise BundleError(f"{folder / engine.file}: {fault}. Build it again: musiclm build.")
        return (folder / engine.file).read_bytes()


@dataclass(frozen=True)
class Target:
    """What engines are for."""

    library: Library
    capability: int
    gpu: str  # "" where engines are of a compute capability

    @classmethod
    def here(cls, capability: int | None = None) -> Target:
        """This machine's GPU, or any of a capability, which TensorRT-RTX alone builds for. BackendError says what is missing."""
        library = find_library(portable=None if capability is None else True)
        name, own = find_gpu("TensorRT") if capability is None else ("", capability)
        if not library.portable:
            return cls(library, own, name)
        known = sorted(int(one[2:]) for one in dir(library.trt.ComputeCapability) if re.fullmatch(r"SM\d+", one))
        if own not in known:
            raise BackendError(f"{library.name} {library.version} builds for {', '.join(map(str, known))}, not for {own}.")
        return cls(library, own, "")

    @property
    def folder(self) -> str:
        what = f"sm_{self.capability}" if self.library.portable else re.sub(r"\W+", "-", self.gpu).strip("-").lower()
        return f"{self.library.name.lower()}-{self.library.version}-{what}"

    def __str__(self) -> str:
        return f"{self.library.name} {self.library.version} on {self.gpu or f'compute capability {self.capability / 10:.1f}'}"


def folders_of(bundle: Path) -> list[Path]:
    """Of the engines that a bundle has, in the order of their names."""
    return sorted(path.parent for path in (bundle / FOLDER).glob(f"[!.]*/{RECORD}"))


def build(bundle: Bundle, target: Target, limits: Limits | None = None, quiet: bool = False) -> tuple[Path, BuiltEngines, list[str]]:
    """Build what is not there yet, or was built of other files, for other sizes. Returns the folder, its record and what was built.

    BackendError says what TensorRT said. Nothing half-written is left behind.
    """
    form = Form.open(bundle)
    folder = bundle.root / FOLDER / target.folder
    folder.parent.mkdir(exist_ok=True)
    remove_abandoned(folder.parent, folder.name)
    before = BuiltEngines.open(folder) if (folder / RECORD).is_file() else None
    engines: dict[str, Engine] = {}
    built: list[str] = []
    wanted = profiles_of(bundle.manifest, form, limits or Limits())
    with folder_aside(folder) as aside:
        if (folder / TIMINGS).is_file():
            shutil.copyfile(folder / TIMINGS, aside / TIMINGS)
        with tqdm(wanted.items(), desc="build", unit="engine", disable=quiet, file=sys.stderr) as bar:
            for graph, profiles in bar:
                bar.set_description(f"build: {Path(graph).stem}")
                path, file = form.graph(bundle, graph), f"{Path(graph).stem}.engine"
                sources = form.sources(bundle, graph)
                asked = json.loads(json.dumps(profiles))
                old = before.engines.get(graph) if before and before.precision == form.precision else None
                if old and (old.sources, old.profiles) == (sources, asked) and _is_whole(folder, old):
                    shutil.copyfile(folder / file, aside / file)
                    engines[graph] = old
                    continue
                started = time.perf_counter()
                data = engine_of(target, path, profiles, form.precision, aside / TIMINGS)
                (aside / file).write_bytes(data)
                seconds = round(time.perf_counter() - started, 2)
                engines[graph] = Engine(file, len(data), hashlib.sha256(data).hexdigest(), sources, asked, seconds)
                built.append(graph)
        made = BuiltEngines(target.library.name, target.library.version, target.capability, target.gpu, form.precision, engines)
        (aside / RECORD).write_text(json.dumps(asdict(made), indent=1) + "\n", encoding="utf-8")
        replace_folder(aside, folder)
    return folder, made, built


def engine_of(target: Target, graph: Path, profiles: list[Profile], precision: str, timings: Path) -> bytes:
    """One graph, compiled. profiles: of inputs by name, those that the graph has not are left out."""
    trt, log = target.library.trt, target.library.log
    log.faults.clear()
    builder = trt.Builder(log)
    # Types are those of the graph, always; only the full library's version 10 must be told.
    strongly_typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strongly_typed is None else 1 << int(strongly_typed))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(graph)):
        said = "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors))
        raise BackendError(f"{target} cannot read {graph.name}: {said}. {_OTHER}")
    config = builder.create_builder_config()
    if precision == "fp32":
        config.clear_flag(trt.BuilderFlag.TF32)  # 10 bits of a product's inputs are no float32
    if target.library.portable:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{target.capability}"), 0)
    else:
        cache = config.create_timing_cache(timings.read_bytes() if timings.is_file() else b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    for sizes in profiles:
        profile = builder.create_optimization_profile()
        for tensor in (one for one in tensors if -1 in tuple(one.shape)):
            free = iter(sizes[tensor.name])
            ranges = [(size,) * 3 if size != -1 else next(free) for size in tensor.shape]
            profile.set_shape(tensor.name, *zip(*ranges, strict=True))
        config.add_optimization_profile(profile)
    data = builder.build_serialized_network(network, config)
    if data is None:
        raise BackendError(f"{target} cannot build {graph.name}: {'; '.join(log.faults) or 'it gives no reason'}. {_OTHER}")
    if not target.library.portable:
        timings.write_bytes(bytes(config.get_timing_cache().serialize()))
    return bytes(data)


def _is_whole(folder: Path, engine: Engine) -> bool:
    return fault_of_file(folder, engine.file, FileRecord(engine.bytes, engine.sha256)) is None
