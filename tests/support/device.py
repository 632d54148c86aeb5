"""Batches of single stages on a device, and the tokens that their sequences have alone on the CPU."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from musiclm_deploy.runtime.batch import Batch
from musiclm_deploy.runtime.bundle import Sampling
from musiclm_deploy.runtime.device.batch import DeviceBatch
from musiclm_deploy.runtime.device.driver import Driver
from musiclm_deploy.runtime.device.model import DeviceModel
from musiclm_deploy.runtime.engines.form import Form
from musiclm_deploy.runtime.engines.model import EngineModel
from musiclm_deploy.runtime.sequence import Draw, Sequence
from musiclm_deploy.runtime.step import open_weights

from . import references
from .drivers import Compute, StageEngines
from .stages import CAPACITY, Stage

ITEMS = [(1 << 63 | 5, 0, 0), (5, 1, 4), (6, 0, 70)]  # seed, item and number of the first token of each row
DRAWN = Sampling(temperature=1.1, filter_thres=0.3, cond_scale=1.0)
GUIDED = Sampling(temperature=0.9, filter_thres=0.4, cond_scale=2.0)
GREEDY = Sampling(temperature=0.0, filter_thres=0.0, cond_scale=1.0)
POSITIONS = 5  # of a prompt in a call of an engine: prompts here take several calls, or one that they do not fill


def sequences_of(stage: Stage, steps: int, ends: bool, sampling: Sampling) -> list[Sequence]:
    """Return three windows with different prompts and prefixes, and of different lengths; semantic ones have about `steps` tokens."""
    lengths = np.array([0, 3, -1]) + steps if stage.name == "semantic" else [steps] * 3 if stage.name == "coarse" else [0] * 3
    return [
        stage.sequence(row, Draw(*ITEMS[row], sampling), int(length), primed=True, end_allowed=ends) for row, length in enumerate(lengths)
    ]


def alone(stage: Stage, sequences: Iterable[Sequence]) -> list[list[int]]:
    """Return the tokens of each sequence, alone in a batch by the stage's graph."""
    return [together(stage.batch(None), [sequence])[0] for sequence in sequences]


def together(batch: Batch, sequences: list[Sequence], frames: int = 64, positions: int = 1 << 20) -> list[list[int]]:
    """Return the tokens of sequences that join together; others may be in the batch, too."""
    found: dict[Sequence, list[int]] = {sequence: [] for sequence in sequences}
    for sequence in sequences:
        batch.join(sequence)
    left = len(sequences)
    while left:
        batch.advance(frames, positions)
        for made in batch.collect():
            if made.sequence in found:
                found[made.sequence] += made.tokens.tolist()
                left -= made.done
    return [*found.values()]


def device_model(stage: Stage, driver: Driver, kind: str = "fp32") -> DeviceModel:
    _, sizes, weights = open_weights(stage.folder, stage.decoder)
    return DeviceModel(driver, stage.name, sizes, weights, kind)


def device_batch(stage: Stage, driver: Driver, kind: str = "fp32") -> DeviceBatch:
    return DeviceBatch(device_model(stage, driver, kind))


def engine_model(static: Stage, exported: Stage, compute: Compute = references.compute, rows: int = 16) -> EngineModel:
    """static: in TensorRT's form; exported: the same in ONNX Runtime's; rows: that the engine takes at most."""
    form = Form("fp32", {static.name: CAPACITY}, POSITIONS, {})
    _, sizes, weights = open_weights(exported.folder, exported.decoder)
    return EngineModel(StageEngines(static, form, compute, rows), static.name, sizes, weights)
