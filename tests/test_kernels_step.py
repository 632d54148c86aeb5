"""Whole lists of kernels in Triton's interpreter, against the same stage as an ONNX graph: logits and tokens, and their bits in any batch.

fp32 on both sides: logits differ by the order of sums over two layers, 1e-5 of the largest is some hundred roundings; a weight, stream or
buffer mistaken for another moves them by about their size. Tokens are equal.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support.device import DRAWN, GREEDY, GUIDED, device_batch, sequences_of, together
from support.drivers import TYPES, HostDriver
from support.interpreted import check, interpret, resolved
from support.stages import Stage

from musiclm_deploy.kernels.decoder_step.sizes import Sizes
from musiclm_deploy.kernels.kernel_lists import prompt_list, step_list
from musiclm_deploy.kernels.launch import Launch, LaunchList
from musiclm_deploy.kernels.list_builder import Slots
from musiclm_deploy.runtime.bundle import Sampling
from musiclm_deploy.runtime.device.batch import DeviceBatch
from musiclm_deploy.runtime.device.model import DeviceModel
from musiclm_deploy.runtime.sequence import Draw, Sequence
from musiclm_deploy.runtime.step import open_weights

TINY = Sizes(
    dim=24,
    depth=1,
    heads=2,
    dim_head=7,
    cache_head_size=8,
    inner=40,
    streams=2,
    vocabulary=14,
    outputs=1,
    table_rows=5,
    bias_entries=9,
    value_residual=True,
    cross_attention=True,
)


@pytest.fixture(autouse=True)
def small(monkeypatch) -> None:
    """A ring of four tokens comes round in a short test."""
    monkeypatch.setattr(DeviceModel, "ring", 4)
    monkeypatch.setattr(DeviceModel, "least_capacity", 16)


def logits_of(batch: DeviceBatch, sequence: Sequence) -> np.ndarray:
    buffer, rows = batch.logits(sequence)
    return buffer.numpy()[rows]


@pytest.mark.parametrize(
    ("variant", "sampling"),
    [("cross-attention, four streams", DRAWN), ("no value residual, before 2.2, five heads of 7", GUIDED)],
)
def test_steps_are_the_graphs(variant: str, sampling: Sampling, stages) -> None:
    """Fault: launches in the wrong order or on the wrong buffer; a weight packed otherwise than it is read; streams, layers or heads that
    are mixed up; positions of a prompt that see what comes after them, or keys of another sequence; a cache that is written elsewhere; a
    token that is fed back otherwise."""
    stage = stages(variant, "coarse")
    sequences = [stage.sequence(row, Draw(5, row, 0, sampling), 8, end_allowed=False) for row in (0, 1)]
    device, graph = device_batch(stage, HostDriver(compute=check)), stage.batch(None)
    batches: list[Any] = [device, graph]
    for batch in batches:
        for sequence in sequences:
            batch.join(sequence)
        while batch.waiting():
            batch.advance(0, 4)
    for turn in range(3):
        for batch in batches:
            batch.advance(1, 0)
        for sequence in sequences:
            found = logits_of(device, sequence)
            expected = graph.logits(sequence).reshape(-1, *found.shape)[-1]  # of the frame's last step
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max(), err_msg=f"frame {turn}")
    device.collect()
    made = [[one.tokens.tolist() for one in batch.collect()] for batch in batches]
    assert made[0] == [tokens[-2:] for tokens in made[1]], "of the last frame"


@pytest.mark.parametrize(("weights", "lost"), [("fp16", 2e-3), ("bf16", 1.6e-2)])
def test_a_step_with_weights_of_sixteen_bits(weights: str, lost: float, stages) -> None:
    """Fault: weights or caches of another type than is said. Four roundings of the type, 2**-11 and 2**-8, of the largest logit."""
    stage = stages("one stream, before 2.4, one layer, 64", "coarse")
    sequence = stage.sequence(1, Draw(5, 0, 0, GREEDY), 8)
    batches: list[Any] = [device_batch(stage, HostDriver(compute=check), weights), stage.batch(None)]
    for batch in batches:
        batch.join(sequence)
        batch.advance(1, 100)
    device, graph = batches
    found = logits_of(device, sequence)
    expected = graph.logits(sequence).reshape(-1, *found.shape)[-1]
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert lost / 100 < error < lost


def test_lists_with_weights_of_eight_bits(stages) -> None:
    """Fault: a scale of another matrix or group than its weights; a kernel that in a whole list is not its reference, which the tests of
    the batch compute in its place."""
    stage = stages("one stream, before 2.4, one layer, 64", "semantic", "int8")
    launched: set[str] = set()

    def compute(one: Launch, arguments: Any) -> None:
        check(one, arguments)
        launched.add(str(one.constants.get("GROUP", one.kernel)))

    sequences = sequences_of(stage, 5, False, GUIDED)[2:]
    found = together(device_batch(stage, HostDriver(compute=compute), "int8"), sequences)
    assert [len(found[0])] == [sequences[0].steps] and launched == {"32", "0", "attend", "append", "connect", "embed", "sample"}


def test_eleven_launches_a_layer(stages) -> None:
    """Fault: a launch more, which costs a microsecond in each layer of each step; or a kernel of its own for every layer."""
    stage: Stage = stages("cross-attention, four streams", "coarse")
    _, sizes, _ = open_weights(stage.folder, stage.decoder)
    step = step_list(sizes, Slots(5, 32, 6), "fp16", 4)
    assert len(step.launches) == 11 * sizes.depth + 3
    assert len({(one.kernel, str(one.constants)) for one in step.kernels}) <= 14


def test_only_the_rows_of_a_tile_depend_on_their_number() -> None:
    """Fault: a sum that is cut into other parts, columns or threads where there are more rows. The interpreter has no threads."""

    def known(rows: int) -> list[tuple[Any, ...]]:
        lists = [make(TINY, Slots(9, 256, 3), "fp16", rows) for make in (step_list, prompt_list)]
        return [
            (one.kernel, one.warps, {name: value for name, value in one.constants.items() if name != "ROWS"})
            for launches in lists
            for one in launches.kernels
        ]

    assert known(1) == known(2) == known(8) == known(64)


@pytest.mark.parametrize("kind", ["fp32", "fp16"])
def test_a_rows_bits_do_not_depend_on_its_batch(kind: str) -> None:
    """Fault: one seed that is another sound under load, since a sum of a row is made in another order where other rows are beside it."""
    rng, slots = np.random.default_rng(0), Slots(9, 256, 3)
    lengths, queries = rng.integers(2, 257, 9), rng.integers(0, 9, 9)
    streams = rng.standard_normal((9, TINY.streams, TINY.dim)).astype(np.float32)
    buffers: dict[str, torch.Tensor] = {}

    def logits(held: list[int]) -> np.ndarray:
        rows = len(held)
        step: LaunchList = step_list(TINY, slots, kind, rows, programs=1)
        for name, (of, shape) in step.buffers.items():
            if name not in buffers:  # of weights and slots, the same for all
                numbers = rng.standard_normal(shape) * 0.3 if of != "int64" else rng.integers(0, 9, shape)
                buffers[name] = torch.from_numpy(np.asarray(numbers)).to(TYPES[of])
        own = {"slots": held, "lengths": lengths[held], "query_coordinates": queries[held], "streams.0": streams[held]}
        for name, array in (own | {"no_branch": 0, "no_beta": 0, "context_lengths": slots.context}).items():
            buffers[f"rows{rows}.{name}"][:] = torch.from_numpy(np.asarray(array))
        for one in step.kernels[:-1]:
            interpret(one, resolved(one, buffers))
        return buffers[f"rows{rows}.logits"].numpy().copy()

    every = [3, 0, 8, 1, 7, 2, 5, 4]
    alone = {slot: logits([slot])[0] for slot in every}
    assert np.abs(alone[3] - alone[0]).max() > 0.1
    for count in (2, 4, 8):
        for slot, row in zip(every, logits(every[:count]), strict=False):
            np.testing.assert_array_equal(row, alone[slot], err_msg=f"slot {slot} among {count}")
