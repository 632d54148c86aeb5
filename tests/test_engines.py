"""Tokens made by calls of engines in the device's loop, TensorRT's form on the CPU in place of engines: they are the CPU's.

The loop, lists and buffers are those that run on a GPU; what calls an engine there is another. The kernels beside engines are computed by
their numpy references, and once by Triton's interpreter.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from support import references
from support.drivers import Compute, HostEngines, StageEngines
from support.interpreted import interpret
from support.stages import CAPACITY, Stage, on_cpu, on_device, plan_of

from musiclm_deploy.kernels.launch import Call, Launch
from musiclm_deploy.kernels.lists import Batch
from musiclm_deploy.runtime.bundle import Bundle, Sampling
from musiclm_deploy.runtime.device.model import DeviceModel
from musiclm_deploy.runtime.engines.form import Form
from musiclm_deploy.runtime.engines.model import EngineModel
from musiclm_deploy.runtime.engines.profiles import Limits, profiles_of
from musiclm_deploy.runtime.musiclm import MusicLM
from musiclm_deploy.runtime.sampling import SamplingConfig
from musiclm_deploy.runtime.step import Choice, open_weights

POSITIONS = 5  # of a prompt at once: prompts here take several rounds, or one that they do not fill


@pytest.fixture(autouse=True)
def small(monkeypatch) -> None:
    """A ring of four tokens comes round in a short test."""
    monkeypatch.setattr(DeviceModel, "ring", 4)


def engine_model(static: Stage, exported: Stage, compute: Compute = references.compute) -> EngineModel:
    form = Form("fp32", {static.name: CAPACITY}, POSITIONS, {})
    _, sizes, weights = open_weights(exported.folder, exported.decoder)
    return EngineModel(StageEngines(static, form, compute), static.name, sizes, weights)


CASES = [
    ("cross-attention, four streams", "coarse", True, True),
    ("cross-attention, four streams", "fine", False, False),
    ("prefix, two streams, heads of 20", "semantic", True, True),
    ("prefix, two streams, heads of 20", "coarse", False, True),
    ("no condition, flash, three streams", "coarse", False, False),
    ("one stream, before 2.4, one layer, 64", "semantic", False, True),
    ("no value residual, before 2.2, five heads of 7", "fine", False, False),
    ("no self-attention, 2.0.4, heads of 12", "semantic", True, True),
]
INTERPRETED = CASES[2]  # it launches every kernel that runs beside engines; the other cases are nightly tests


@pytest.mark.parametrize(
    ("compute", "variant", "name", "guided", "ends"),
    [
        *((references.compute, *case) for case in CASES),
        *(pytest.param(interpret, *case, marks=() if case == INTERPRETED else pytest.mark.nightly) for case in CASES),
    ],
)
def test_tokens_are_the_cpus(compute: Compute, variant: str, name: str, guided: bool, ends: bool, stages, static_stages) -> None:
    """Fault: a prompt's round that writes over a longer row, a key that is seen too early, a head or a length of another step."""
    stage, static = stages(variant, name), static_stages(variant, name)
    model, sampling = engine_model(static, stage, compute), Sampling(temperature=0.9, filter_thres=0.4, cond_scale=2.0)
    plan = plan_of(stage, 11, ends)
    expected = [row.tolist() for row in on_cpu(stage, plan, guided, sampling)]
    for _ in range(2):  # the second time on caches that hold another request's
        assert [row.tolist() for row in on_device(model, stage, plan, guided, sampling)] == expected
    other = replace(plan, steps=np.maximum(plan.steps - 2, 0))
    assert [row.tolist() for row in on_device(model, stage, other, guided, sampling)] == [
        row.tolist() for row in on_cpu(stage, other, guided, sampling)
    ]


def test_a_step_is_an_engine_and_a_sample(stages, static_stages) -> None:
    """Fault: a launch that an engine makes needless; tensors of a graph that no buffer stands behind."""
    stage, static = stages("cross-attention, four streams", "coarse"), static_stages("cross-attention, four streams", "coarse")
    model = engine_model(static, stage)
    lane = model.lane(4, 30, 6, 0, 2)
    steps = model.step_lists(lane.batch, 2)
    assert len(steps) == model.sizes.outputs == 2
    for head, step in enumerate(steps):
        call, sample = step.launches
        assert isinstance(call, Call) and isinstance(sample, Launch) and sample.kernel == "sample"
        assert call.tensors["head"][0] == f"head.{head}" and not call.prompt
        for value in (*static.session.get_inputs(), *static.session.get_outputs()):
            name, shape = call.tensors[value.name]
            assert np.prod(step.buffers[name][1]) == np.prod(shape), value.name
    prompt = model.prompt_lists(lane.batch)["prompt"].launches
    assert [type(one) for one in prompt] == [Launch, Call]


def test_longer_than_the_trained_window(stages, static_stages) -> None:
    """Fault: an engine writes beyond its caches."""
    variant = "one stream, before 2.4, one layer, 64"
    model = engine_model(static_stages(variant, "semantic"), stages(variant, "semantic"))
    assert model.capacity(CAPACITY - POSITIONS + 1, POSITIONS) == CAPACITY
    with pytest.raises(ValueError, match=r"semantic stage .* sequences of 61 positions, its engine holds 60, of the trained window"):
        model.lane(1, CAPACITY - POSITIONS + 2, 0, 0, 1)


def test_music_is_the_cpus(static_bundle, music: MusicLM) -> None:
    """Fault: a stage, window, candidate or prompt that the loop is not told of; a graph that has no engine."""
    opened = Bundle.open(static_bundle)
    form = Form.open(opened)
    driver = HostEngines(opened, form)
    request: Any = dict(text=["calm piano", "brass band"], seconds=0.1, seed=[3, 4], sampling={"coarse": SamplingConfig(cond_scale=3.0)})
    with MusicLM(opened, "tensorrt", 1, Choice(False, "by engines"), driver) as model:
        found, expected = model.generate(**request), music.generate(**request)
        for one, other in zip(found, expected, strict=True):
            for name in ("semantic", "coarse", "fine"):
                np.testing.assert_array_equal(getattr(one.tokens, name), getattr(other.tokens, name), err_msg=name)
            np.testing.assert_array_equal(one.audio, other.audio)
        again, before = model.generate(**request), driver.memory
        assert all((one.audio == other.audio).all() for one, other in zip(again, found, strict=True)) and driver.memory == before
        wave = np.random.default_rng(0).standard_normal(8000).astype(np.float32) * 0.1, found[0].sample_rate
        np.testing.assert_array_equal(model.encode_audio(wave), music.encode_audio(wave))
        continued: Any = dict(prime=wave, seconds=0.6, seed=5)
        assert (model.generate("calm", **continued).audio == music.generate("calm", **continued).audio).all()
        assert len(model.semantic_tokens(wave)) == len(model.embed_audio(wave)) == 1
    profiles = profiles_of(opened.manifest, form, Limits(sequences=4, seconds=2.0))
    assert {graph for graph, _, _ in driver.asked} == set(profiles)
    for graph, profile, shapes in driver.asked:
        for value in driver.session(graph).get_inputs():
            sizes = [size for size, free in zip(shapes[value.name], value.shape, strict=True) if isinstance(free, str)]
            ranges = profiles[graph][profile][value.name] if sizes else []
            sizes[:1] = [1] if ranges[:1] == [(1, 1, 1)] else sizes[:1]  # rows that are run one by one
            inside = [least <= size <= most for size, (least, _, most) in zip(sizes, ranges, strict=True)]
            assert all(inside), (graph, profile, value.name, sizes, ranges)


@pytest.mark.parametrize("kind", ["fp32", "fp16", "bf16"])
def test_what_an_engine_begins_with_is_numbers(kind: str, stages, static_stages) -> None:
    """Fault: NaN in a cache that is masked is NaN in every score."""
    stage = stages("prefix, two streams, heads of 20", "coarse")
    model = engine_model(static_stages("prefix, two streams, heads of 20", "coarse"), stage)
    model.kind = kind
    batch = Batch(2, CAPACITY, 0, 5)
    lists = [*model.prompt_lists(batch).values(), *model.step_lists(batch, 1)]
    buffers = {name: buffer for step in lists for name, buffer in step.buffers.items()}
    filled = dict(model.constants(batch, buffers))
    assert filled.keys() == buffers.keys()
    for name, array in filled.items():
        assert array.shape == buffers[name][1] and (array == (name == "head.1" or name.endswith("lengths"))).all(), name
