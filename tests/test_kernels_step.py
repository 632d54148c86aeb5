"""A whole decode step of kernels in Triton's interpreter, against the same stage as an ONNX graph: logits, caches, and tokens.

fp32 on both sides: logits differ by the order of sums over two layers, 1e-5 of the largest is some hundred roundings; a weight, stream or
buffer mistaken for another moves them by about their size. Tokens are equal.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support.drivers import TYPES, HostDriver
from support.interpreted import check, run_step
from support.stages import Stage, device_model, on_device, plan_of

from musiclm_deploy.kernels import decoder_step
from musiclm_deploy.kernels.launch import Launch, Step
from musiclm_deploy.kernels.launches import build_begin, build_prompt, build_step, positions_at_once
from musiclm_deploy.kernels.lists import Batch
from musiclm_deploy.kernels.packing import pack_weights
from musiclm_deploy.kernels.sampling.constants import Place, Rules
from musiclm_deploy.runtime.bundle import Sampling
from musiclm_deploy.runtime.device.model import DeviceModel
from musiclm_deploy.runtime.loop import decode
from musiclm_deploy.runtime.noise import STAGE_IDS, PhiloxNoise
from musiclm_deploy.runtime.stages import FAR

CAPACITY, ITEMS = 32, [(5, 0), (5, 1)]


class OnKernels:
    """A stage's rows whose steps are launches: a prefill by the graph, then buffers and kernels alone."""

    def __init__(self, stage: Stage, weights: str, temperature: float) -> None:
        self.plan, self.rows = stage.plan([0, 1]), 2
        run = stage.run(None, [0, 1], CAPACITY)
        logits = run.prefill(self.plan.prompts, 0)
        model = stage.model(decoder_step.Pool(1))
        self.sizes = model.sizes
        rows, shift, V = self.plan.decoder.rows, self.plan.bias_shift, self.sizes.vocabulary
        place = Place(rows["coarse"], V - 1, 2, FAR + 1, 1, 1, shift, rows["padding"])
        rules = Rules(place, STAGE_IDS["coarse"], 2, V - 1, max(int(0.5 * V), 1))
        context = stage.context["context.0.value"].shape[1] if stage.context else 0
        self.steps = [build_step(self.sizes, Batch(2, CAPACITY, context), weights, 1, head) for head in range(self.sizes.outputs)]
        self.context, self.buffers = context, {}
        for step in self.steps:
            self.allocate(step)
        self._fill(pack_weights(self.sizes, model._weights, "fp32"))
        self._fill({"integers": rules.integers(), "factors": [1.0, temperature]})
        self._fill({"logits": logits, "lengths": run._lengths})
        self._fill({"key_coordinates": run._key_coordinates, "plans": self._plans(), "states": [[0, 1, 0]] * 2})
        self._fill({name: cache[:, 0] for name, cache in run._caches.items()})
        for name, array in stage.context.items():
            self._fill({name: np.swapaxes(array, 1, 2)[:2] if name.endswith("key") else array[:2]})

    def allocate(self, step: Step, rows: str = "") -> None:
        """Make the buffers that are not there yet, and fill those that no launch writes; rows: what the names of its own begin with."""
        for name, (kind, shape) in step.buffers.items():
            if name not in self.buffers:
                empty = torch.zeros(shape, dtype=TYPES[kind]) if kind == "int64" else torch.full(shape, torch.nan).to(TYPES[kind])
                self.buffers[name] = empty
        self.buffers[f"{rows}no_branch"].zero_()
        for side in (0, 1):  # with one stream a branch is added as it is; with more the first launch adds nothing
            if self.sizes.streams == 1:
                self.buffers[f"{rows}beta.{side}"].fill_(1)
            elif side == 0:
                self.buffers[f"{rows}beta.{side}"].zero_()
        if self.context:
            self.buffers[f"{rows}context_lengths"].fill_(self.context)

    def _fill(self, arrays: Any) -> None:
        for name, array in arrays.items():
            self.buffers[name].copy_(torch.from_numpy(np.array(array)))

    def _plans(self) -> np.ndarray:
        plans = np.zeros((2, 6), np.int64)
        plans[:, 0], plans[:, 1] = zip(*ITEMS, strict=True)
        plans[:, 5] = self.plan.steps
        return plans

    def step(self, head: int | None) -> np.ndarray:
        """One step; None: only the token after the prefill. Returns the logits."""
        launches = self.steps[head or 0].launches
        run_step(launches[-1:] if head is None else launches, self.buffers)
        return self.buffers["logits"].numpy()


@pytest.mark.parametrize("variant", ["cross-attention, four streams", "no value residual, before 2.2, five heads of 7"])
def test_a_step_is_the_graphs(variant: str, stages) -> None:
    """Fault: launches in the wrong order or on the wrong buffer; a weight packed otherwise than it is read; streams, layers or heads that
    are mixed up; a cache that is written elsewhere; a token that is fed back otherwise."""
    stage = stages(variant, "coarse")
    kernels, plan, noise = OnKernels(stage, "fp32", 0.9), stage.plan([0, 1]), PhiloxNoise(ITEMS)
    run, seen = stage.run(None, [0, 1], CAPACITY), []

    class Watched:
        prefill = run.prefill

        def step(self, *arguments: Any) -> np.ndarray:
            seen.append(run.step(*arguments).copy())
            return seen[-1]

    watched: Any = Watched()
    sampling = Sampling(temperature=0.9, filter_thres=0.5, cond_scale=1.0)

    def stop(step: int, total: int) -> None:
        if step == 1:
            kernels.step(None)
        else:
            found = kernels.step((step - 1) % kernels.sizes.outputs)
            np.testing.assert_allclose(found, seen[-1], rtol=0, atol=1e-5 * np.abs(seen[-1]).max(), err_msg=f"step {step}")
        if step == 3:
            raise StopIteration

    def gumbel(step: int, rows: np.ndarray) -> np.ndarray:
        return noise.rows("coarse", rows, np.full(len(rows), step), plan.decoder.vocabulary)

    with pytest.raises(StopIteration):
        decode(plan, watched, False, sampling, gumbel, stop)
    for name, cache in run._caches.items():
        for row, length in enumerate(run._lengths):
            found = kernels.buffers[name][row, :length]
            np.testing.assert_allclose(found, cache[row, 0, :length], rtol=0, atol=1e-5 * np.abs(cache).max(), err_msg=name)
    np.testing.assert_array_equal(kernels.buffers["lengths"] - kernels.buffers["states"][:, 1], run._lengths)


@pytest.mark.parametrize("variant", ["cross-attention, four streams", "no value residual, before 2.2, five heads of 7"])
def test_a_prompt_is_the_graphs(variant: str, stages) -> None:
    """Fault: positions that see what comes after them, or keys of another sequence; a round that begins where the one before did not end; a
    short prompt that a longer one's rounds run on over; a last position that the step does not begin with."""
    stage = stages(variant, "coarse")
    kernels, plan, run = OnKernels(stage, "fp32", 0.0), stage.plan([0, 1]), stage.run(None, [0, 1], CAPACITY)
    expected, lengths = run.prefill(plan.prompts, 0), [len(prompt.rows) for prompt in plan.prompts]
    batch, positions = Batch(2, CAPACITY, kernels.context), positions_at_once(2)
    rounds, begin = build_prompt(kernels.sizes, batch, "fp32", programs=1), build_begin(kernels.sizes, batch, "fp32", programs=1)
    kernels.allocate(rounds, "prompt.")
    kernels.allocate(begin)
    buffers = kernels.buffers
    for name in run._caches:
        buffers[name].fill_(torch.nan)
    for row, prompt in enumerate(plan.prompts):
        buffers["prompt.ids"][row, : lengths[row]] = torch.from_numpy(prompt.rows)
        buffers["prompt.coordinates"][row, : lengths[row]] = torch.from_numpy(prompt.query)
    buffers["prompt.lengths"].copy_(torch.arange(1 - positions, 1).repeat(2))
    buffers["lengths"].copy_(torch.tensor(lengths) - 1)
    assert positions == 4 and len(set(lengths)) == 2 and max(lengths) - 1 > positions
    for _ in range(-(-(max(lengths) - 1) // positions)):
        run_step(rounds.launches, buffers)
    run_step([*begin.launches, *kernels.steps[0].launches[:-1]], buffers)
    error = np.abs(buffers["logits"].numpy() - expected).max() / np.abs(expected).max()
    assert error < 1e-5
    for name, cache in run._caches.items():
        for row, length in enumerate(lengths):
            found = buffers[name][row, :length]
            np.testing.assert_allclose(found, cache[row, 0, :length], rtol=0, atol=1e-5 * np.abs(cache).max(), err_msg=name)
    assert buffers["lengths"].tolist() == lengths


@pytest.mark.parametrize(("weights", "lost"), [("fp16", 2e-3), ("bf16", 1.6e-2)])
def test_a_step_with_weights_of_sixteen_bits(weights: str, lost: float, stages) -> None:
    """Fault: weights or caches of another type than is said. Four roundings of the type, 2**-11 and 2**-8, of the largest logit."""
    stage = stages("one stream, before 2.4, one layer, 64", "coarse")
    kernels, plan = OnKernels(stage, weights, 0.0), stage.plan([0, 1])
    run = stage.run(None, [0, 1], CAPACITY)
    run.prefill(plan.prompts, 0)
    kernels.step(None)
    tokens = kernels.buffers["tokens"][:, 0].numpy()
    expected = run.step(plan.place(0, tokens), plan.head(1))
    error = np.abs(kernels.step(plan.head(1)) - expected).max() / np.abs(expected).max()
    assert lost / 100 < error < lost


def test_lists_with_weights_of_eight_bits(stages, monkeypatch) -> None:
    """Fault: a scale of another matrix or group than its weights; a kernel that in a whole list is not its reference, which the tests of
    the loop compute in its place."""
    monkeypatch.setattr(DeviceModel, "least_capacity", CAPACITY)  # a part of a cache is a program, which takes 20 ms
    stage = stages("one stream, before 2.4, one layer, 64", "semantic", "int8")
    launched: set[str] = set()

    def compute(one: Launch, arguments: Any) -> None:
        check(one, arguments)
        launched.add(str(one.constants.get("GROUP", one.kernel)))

    model, plan = device_model(stage, HostDriver(compute=compute), "int8"), plan_of(stage, 2, False)
    plan = replace(plan, steps=np.minimum(plan.steps, 2))
    found = on_device(model, stage, plan, True, Sampling(temperature=1.0, filter_thres=0.5, cond_scale=2.0))
    assert list(map(len, found)) == [2, 2, 1] and launched == {"32", "0", "attend", "append", "connect", "embed", "sample"}


def test_eleven_launches_a_layer(stages) -> None:
    """Fault: a launch more, which costs a microsecond in each layer of each step; or a kernel of its own for every layer."""
    kernels = OnKernels(stages("cross-attention, four streams", "coarse"), "fp16", 0.0)
    step: Step = kernels.steps[0]
    assert len(step.launches) == 11 * kernels.sizes.depth + 3
    assert len({(one.kernel, str(one.constants)) for one in step.kernels}) <= 14
