"""The driver of an NVIDIA GPU with an engine for every graph of a bundle: TensorRT's calls beside the launches of runtime/device/cuda.py.

In: a bundle with TensorRT's form, engines built for this GPU (`musiclm build`), kernels that draw tokens. Out: a driver with engines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...kernels.launch import Call, Launch, LaunchList
from ..backend import BackendError
from ..bundle import Bundle, BundleError
from ..device.cuda import CudaDriver, Memory
from .build import FOLDER, RECORD, BuiltEngines, Target, folders_of
from .compiled import Compiled
from .context import Context, LoadedEngine, Scratch, Session
from .form import Form
from .profiles import PROMPT, STEP


class EngineDriver(CudaDriver):
    """As `CudaDriver`. Engines are read and given memory when they are first called."""

    def __init__(self, bundle: Bundle, form: Form) -> None:
        """BackendError where there is no GPU, no TensorRT, or no engines for both; BundleError for engines that are not the bundle's."""
        target = Target.here()
        super().__init__(bundle.root)
        self.form, self._bundle, self.library = form, bundle, target.library
        self._folder, self._engines = find_engines(bundle, form, target)
        with self.current():
            self.runtime = self.library.trt.Runtime(self.library.log)
        self.scratch, self.compiled = Scratch(self), Compiled(bundle.sha256, target.folder)
        self._loaded: dict[str, LoadedEngine] = {}
        self._sessions: dict[str, Session] = {}

    def close(self) -> None:
        """What was compiled while it ran is kept, for the processes to come."""
        self.compiled.save()
        self._sessions.clear()
        self._loaded.clear()
        self.scratch = Scratch(self)
        super().close()

    def run(self, graph: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Rows that an engine does not take at once are run one after another."""
        with self.current():
            if graph not in self._sessions:
                self._sessions[graph] = Session(self._engine(graph))
            session, rows = self._sessions[graph], len(next(iter(inputs.values())))
            at_once = min(session.engine.range_of(name, 0)[1][0] for name in inputs)
            parts = []
            for first in range(0, rows, at_once):
                parts.append(session.run({name: array[first : first + at_once] for name, array in inputs.items()}))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def most_rows(self, stage: str) -> int:
        """As its smaller profile has it: the sizes of a prompt's call and of a step's."""
        engine = self._engine(getattr(self._bundle.manifest, stage).graph)
        return min(engine.range_of("row_ids", profile)[1][0] for profile in (PROMPT, STEP))

    def ready(self, one: Launch | Call, step: LaunchList, buffers: Mapping[str, Memory], early: bool) -> Callable[[], Any]:
        if isinstance(one, Launch):
            return super().ready(one, step, buffers, early)
        engine = self._engine(getattr(self._bundle.manifest, one.stage).graph)
        context = Context(engine, PROMPT if one.prompt else STEP)
        context.set_shapes({name: one.tensors[name][1] for name in engine.inputs})
        context.set_memory({name: buffers[one.tensors[name][0]] for name in (*engine.inputs, *engine.outputs)})
        context.enqueue()  # once before it is recorded: what depends on shapes is done by then
        self.call("cuStreamSynchronize", self.stream)
        return context.enqueue

    def _engine(self, graph: str) -> LoadedEngine:
        if graph not in self._loaded:
            self._loaded[graph] = LoadedEngine(self, graph, self._engines.read(self._folder, graph))
        return self._loaded[graph]


def find_engines(bundle: Bundle, form: Form, target: Target) -> tuple[Path, BuiltEngines]:
    """The folder of engines for this target. BackendError names what there is and what is wanted; BundleError: they are of other graphs."""
    folder = bundle.root / FOLDER / target.folder
    if not (folder / RECORD).is_file():
        there = [path.name for path in folders_of(bundle.root)]
        what = f"it has engines for {', '.join(there)}" if there else "it has none"
        raise BackendError(f"{bundle.root} has no engines for {target}: {what}. Build them here: musiclm build {bundle.root}")
    made = BuiltEngines.open(folder)
    here = (target.library.name, target.library.version, target.capability, target.gpu)
    built = (made.library, made.version, made.capability, made.gpu)
    if built != here:
        raise BackendError(f"{folder} was built by and for {built}, this is {here}. Build them again: musiclm build {bundle.root}")
    if made.precision != form.precision:
        raise BundleError(f"{folder} is in {made.precision}, the bundle's form in {form.precision}. Build them again: musiclm build.")
    for graph, record in made.engines.items():
        if record.sources != form.sources(bundle, graph):
            raise BundleError(f"{folder / record.file} was built of another {graph}. Build it again: musiclm build {bundle.root}")
    return folder, made
