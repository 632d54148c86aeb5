"""Tokens made by calls of engines in the device's batches, TensorRT's form on the CPU in place of engines: they are the CPU's.

The batch, lists and buffers are those that run on a GPU; what calls an engine there is another. The kernels beside engines are computed by
their numpy references, and once by Triton's interpreter.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support import references
from support.device import DRAWN, GREEDY, GUIDED, POSITIONS, alone, engine_model, sequences_of, together
from support.drivers import Compute, HostEngines
from support.interpreted import interpret
from support.stages import CAPACITY

from musiclm_deploy.kernels.launch import Call, Launch
from musiclm_deploy.kernels.list_builder import Slots
from musiclm_deploy.runtime.backends import on_device
from musiclm_deploy.runtime.bundle import Bundle, Sampling
from musiclm_deploy.runtime.device.batch import DeviceBatch
from musiclm_deploy.runtime.device.model import DeviceModel
from musiclm_deploy.runtime.engines.form import Form
from musiclm_deploy.runtime.engines.profiles import Limits, profiles_of
from musiclm_deploy.runtime.musiclm import MusicLM
from musiclm_deploy.runtime.sampling import SamplingConfig
from musiclm_deploy.runtime.sequence import Draw, Sequence


@pytest.fixture(autouse=True)
def small(monkeypatch) -> None:
    """A ring of four tokens comes round in a short test."""
    monkeypatch.setattr(DeviceModel, "ring", 4)


CASES = [
    ("cross-attention, four streams", "coarse", GUIDED, True),
    ("cross-attention, four streams", "fine", DRAWN, False),
    ("prefix, two streams, heads of 20", "semantic", GUIDED, True),
    ("prefix, two streams, heads of 20", "coarse", DRAWN, True),
    ("no condition, flash, three streams", "coarse", DRAWN, False),
    ("one stream, before 2.4, one layer, 64", "semantic", DRAWN, True),
    ("no value residual, before 2.2, five heads of 7", "fine", DRAWN, False),
    ("no self-attention, 2.0.4, heads of 12", "semantic", GUIDED, True),
]
INTERPRETED = CASES[2]  # it launches every kernel that runs beside engines; the other cases are nightly tests


@pytest.mark.parametrize(
    ("compute", "variant", "name", "sampling", "ends"),
    [
        *((references.compute, *case) for case in CASES),
        *(pytest.param(interpret, *case, marks=() if case == INTERPRETED else pytest.mark.nightly) for case in CASES),
    ],
)
def test_tokens_are_the_cpus(compute: Compute, variant: str, name: str, sampling: Sampling, ends: bool, stages, static_stages) -> None:
    """Fault: a prompt's call that writes over a longer row, a key that is seen too early, a head or a length of another step."""
    stage, static = stages(variant, name), static_stages(variant, name)
    sequences = sequences_of(stage, 8, ends, sampling)
    batch, expected = DeviceBatch(engine_model(static, stage, compute)), alone(stage, sequences)
    for _ in range(2):  # the second time on caches that hold another request's
        assert together(batch, sequences) == expected
    assert together(batch, sequences[::-1], frames=1, positions=3) == expected[::-1]


@pytest.mark.parametrize(("variant", "name"), [CASES[0][:2], CASES[3][:2]])
def test_sequences_join_and_leave_a_running_batch(variant: str, name: str, stages, static_stages) -> None:
    """Fault: a call that writes into the slot of a sequence whose prompt is fed, or that has just joined, at the place where another was
    before; a prompt's call that writes over what a running sequence needs."""
    stage, static = stages(variant, name), static_stages(variant, name)
    settings = [DRAWN, GUIDED, GREEDY, GUIDED, DRAWN]
    sequences = [
        stage.sequence(row, Draw(row, 0, 0, sampling), tokens, primed=row % 2 > 0)
        for row, (sampling, tokens) in enumerate(zip(settings, (6, 4, 18, 9, 12), strict=True))
    ]
    expected, batch = alone(stage, sequences), DeviceBatch(engine_model(static, stage, rows=11))
    found: dict[Sequence, list[int]] = {}
    coming = [*sequences]
    for turn in range(60):
        if coming and turn % 2 == 0:
            found[coming[0]] = []
            batch.join(coming.pop(0))
        batch.advance(1 + turn % 2, 7)
        if turn == 5:
            batch.leave(sequences[2])
            coming.append(sequences[2])
        for made in batch.collect():
            found[made.sequence] += made.tokens.tolist()
    assert [found[sequence] for sequence in sequences] == expected


def test_a_step_is_an_engine_and_a_sample(stages, static_stages) -> None:
    """Fault: a launch that an engine makes needless; tensors of a graph that no buffer stands behind, or one too small."""
    stage, static = stages("cross-attention, four streams", "coarse"), static_stages("cross-attention, four streams", "coarse")
    model, slots = engine_model(static, stage), Slots(8, CAPACITY, 6)
    assert model.sizes.outputs == 2
    for head in range(2):
        step = model.build(slots, "step", 4, head)
        call, sample = step.launches
        assert isinstance(call, Call) and isinstance(sample, Launch) and sample.kernel == "sample"
        assert call.tensors["head"][0] == f"head.{head}" and not call.prompt
        for value in (*static.session.get_inputs(), *static.session.get_outputs()):
            name, shape = call.tensors[value.name]
            assert step.buffers[name][1][1:] == shape[1:] or np.prod(step.buffers[name][1]) >= np.prod(shape), value.name
    assert [type(one) for one in model.build(slots, "prompt", 4 * POSITIONS).launches] == [Call]


def test_beyond_what_is_built(stages, static_stages) -> None:
    """Fault: an engine that writes beyond its caches, or is asked for more rows than it was built for."""
    variant = "one stream, before 2.4, one layer, 64"
    model = engine_model(static_stages(variant, "semantic"), stages(variant, "semantic"), rows=3)
    assert model.capacity(CAPACITY - POSITIONS + 1) == CAPACITY and [model.count_slots(used) for used in (1, 2, 3)] == [1, 2, 3]
    with pytest.raises(ValueError, match=r"semantic stage .* sequences of 61 positions, its engine holds 60, of the trained window"):
        model.capacity(CAPACITY - POSITIONS + 2)
    assert DeviceBatch(model).slots == 1, "with guidance a sequence has two rows"
    model = engine_model(static_stages(variant, "semantic"), stages(variant, "semantic"), rows=1)
    guided = sequences_of(stages(variant, "semantic"), 8, False, GUIDED)[0]
    with pytest.raises(ValueError, match=r"semantic stage takes 1 rows, got 2\. Ask for less, or build it for more: musiclm build --seq"):
        DeviceBatch(model).join(guided)


def test_music_is_the_cpus(static_bundle, music) -> None:
    """Fault: a stage, window, candidate or prompt that the loop is not told of; a graph that has no engine."""
    opened = Bundle.open(static_bundle)
    form = Form.open(opened)
    driver = HostEngines(opened, form)
    request: Any = dict(text=["calm piano", "brass band"], seconds=0.1, seed=[3, 4], sampling={"coarse": SamplingConfig(cond_scale=3.0)})
    with MusicLM(on_device(opened, "cpu", 1, driver, "fp32")) as model:
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
    model, slots = engine_model(static_stages("prefix, two streams, heads of 20", "coarse"), stage), Slots(4, CAPACITY, 0)
    model.kind = kind
    lists = [model.build(slots, name, rows) for name, rows in (("begin", 2), ("step", 2), ("feed", 10), ("prompt", 10))]
    buffers = {name: buffer for launches in lists for name, buffer in launches.buffers.items()}
    filled = dict(model.constants(slots, buffers))
    assert filled.keys() == buffers.keys()
    assert filled["next"].tolist() == [[slot, 1, 0, 0] for slot in range(4)] and filled["prompt10.at"].tolist() == [*range(10)]
    for name, array in filled.items():
        assert array.shape == buffers[name][1] and (name in ("next", "prompt10.at", "head.1") or not array.any()), name
