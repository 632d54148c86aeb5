"""Tokens made by a device, whole loop and all, with kernels computed on the host: they are the CPU's, in every variant and stage.

The launches, the loop, the ring of tokens and the end flags are those that run on a GPU. Kernels are computed by their numpy references,
which test_kernels_*.py hold them against, and once, in a whole clip, by Triton's interpreter; in the nightly tests by both.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import references
from support.drivers import Compute, HostDriver
from support.interpreted import interpret
from support.stages import device_model, on_cpu, on_device, plan_of

from musiclm_deploy.kernels.launch import key_of
from musiclm_deploy.kernels.launches import build_begin, build_prompt, build_step
from musiclm_deploy.kernels.lists import Batch, build_prefix
from musiclm_deploy.kernels.packing import beside, in_full, narrow, pack_weights
from musiclm_deploy.runtime.backend import BackendError
from musiclm_deploy.runtime.bundle import Bundle, BundleError, Sampling
from musiclm_deploy.runtime.device import cuda
from musiclm_deploy.runtime.device import decode as device
from musiclm_deploy.runtime.device.cuda import CudaDriver
from musiclm_deploy.runtime.device.kernels import Kernels
from musiclm_deploy.runtime.device.model import DeviceModel, every_list
from musiclm_deploy.runtime.generation import GenerationCancelled
from musiclm_deploy.runtime.musiclm import MusicLM
from musiclm_deploy.runtime.noise import PhiloxNoise
from musiclm_deploy.runtime.sampling import SamplingConfig
from musiclm_deploy.runtime.stages import plan_semantic
from musiclm_deploy.runtime.step import Choice, open_weights

ON = [
    references.compute,
    pytest.param(interpret, marks=pytest.mark.nightly),
]  # a grid at once, or program by program


@pytest.fixture(autouse=True)
def small(monkeypatch) -> None:
    """A ring of four tokens comes round in a short test."""
    monkeypatch.setattr(DeviceModel, "ring", 4)


@pytest.mark.parametrize("compute", ON)
@pytest.mark.parametrize(
    ("variant", "name", "guided", "ends"),
    [
        ("cross-attention, four streams", "coarse", True, True),
        ("cross-attention, four streams", "fine", False, False),
        ("prefix, two streams, heads of 20", "semantic", True, True),
        ("no condition, flash, three streams", "coarse", False, False),
        ("one stream, before 2.4, one layer, 64", "semantic", False, True),
        ("no value residual, before 2.2, five heads of 7", "fine", True, False),
        ("no self-attention, 2.0.4, heads of 12", "coarse", True, True),
    ],
)
def test_a_stage_makes_the_cpus_tokens(variant: str, name: str, guided: bool, ends: bool, compute: Compute, stages) -> None:
    """Fault: a prompt, a prime or a prefix fed otherwise; noise of another row or step; a ring that is read too late; an ended row that
    goes on; guidance of another row; a head that is not the step's."""
    stage = stages(variant, name)
    plan, sampling = plan_of(stage, 5, ends), Sampling(temperature=1.1, filter_thres=0.3, cond_scale=2.0)
    expected = on_cpu(stage, plan, guided, sampling)
    model, seen = device_model(stage, HostDriver(compute=compute)), []
    found = on_device(model, stage, plan, guided, sampling, lambda done, total: seen.append((done, total)))
    assert [row.tolist() for row in found] == [row.tolist() for row in expected]
    total = int(plan.steps.max())
    assert seen[-1][1] == total and [done for done, _ in seen] == sorted({*range(4, seen[-1][0], 4), seen[-1][0]})


def test_it_stops_when_all_rows_have_ended(stages) -> None:
    """Fault: the device computes to the longest possible length whatever was drawn; tokens after the end are kept."""
    stage = stages("one stream, before 2.4, one layer, 64", "semantic")
    sampling = Sampling(temperature=30.0, filter_thres=0.0, cond_scale=1.0)  # so hot that one token in twenty is the end
    plan = plan_semantic(stage.decoder, 3, 25, True)
    drawn = {seed: on_cpu(stage, plan, False, sampling, [(seed, 0), (seed, 1), (seed, 2)]) for seed in range(40)}
    seed = min(drawn, key=lambda one: max(map(len, drawn[one])))  # of these clips the one whose rows have all ended first
    longest, driver = max(map(len, drawn[seed])), HostDriver()
    model = device_model(stage, driver)
    assert 4 < longest < 12 and len(set(map(len, drawn[seed]))) > 1, "the test needs rows that end, and not at once"
    found = on_device(model, stage, plan, False, sampling, items=[(seed, 0), (seed, 1), (seed, 2)])
    assert [row.tolist() for row in found] == [row.tolist() for row in drawn[seed]]
    assert driver.replayed <= 1 + longest + 1 + 2 * model.ring, "two chunks at most run on"
    assert driver.coming == 0, "a copy is on its way to memory that may be freed"


def on_host(bundle: Path, compute: Compute = references.compute) -> MusicLM:
    """Load a bundle whose tokens are made on a device in the host's memory; its graphs run on the CPU."""
    return MusicLM(Bundle.open(bundle), "cpu", 1, Choice(False, "on a device"), HostDriver(compute=compute))


@pytest.mark.parametrize("compute", [references.compute, interpret])
def test_music_is_the_cpus(compute: Compute, tiny_bundle: Path, music: MusicLM) -> None:
    """Fault: a stage, window, candidate or prompt that the device is not told of, or is told of in another order. By the interpreter, a
    kernel that is its reference wherever both were compared, and not in a clip."""
    request: Any = dict(text=["calm piano", "brass band"], seconds=0.04, seed=[3, 4], sampling={"coarse": SamplingConfig(cond_scale=3.0)})
    seen: list[tuple[str, int, int]] = []
    with on_host(tiny_bundle, compute) as model:
        found = model.generate(**request, progress=lambda *report: seen.append(report))
    for one, other in zip(found, music.generate(**request), strict=True):
        for name in ("semantic", "coarse", "fine"):
            np.testing.assert_array_equal(getattr(one.tokens, name), getattr(other.tokens, name), err_msg=name)
        np.testing.assert_array_equal(one.audio, other.audio)
    for stage in ("semantic", "coarse", "fine"):
        last = [(done, total) for name, done, total in seen if name == stage][-1]
        assert last[0] == last[1], (stage, last)


def test_nothing_is_taken_twice(stages) -> None:
    """Fault: memory for every request; a request whose sampling is another draws as the one before."""
    stage = stages("one stream, before 2.4, one layer, 64", "semantic")
    driver, plan = HostDriver(), plan_of(stage, 3, False)
    model = device_model(stage, driver)
    cold, warm = (Sampling(temperature=temperature, filter_thres=0.5, cond_scale=1.0) for temperature in (0.0, 2.0))
    made, free = [], []
    for sampling in (cold, warm, cold):
        made.append([row.tolist() for row in on_device(model, stage, plan, False, sampling)])
        free.append(driver.memory)
    assert free[0] == free[1] == free[2] and made[0] == made[2] != made[1]
    assert made[1] == [row.tolist() for row in on_cpu(stage, plan, False, warm)]


def test_what_does_not_fit_is_said_before_it_is_taken(stages) -> None:
    """Fault: an allocation that fails in the middle, with a part of it taken; a number without what to do."""
    stage = stages("one stream, before 2.4, one layer, 64", "semantic")
    with pytest.raises(MemoryError, match=r"the weights of the semantic stage: [\d.]+ MB .* 0\.0 MB are free\. Ask for fewer"):
        device_model(stage, HostDriver(1000))
    driver, greedy = HostDriver(), Sampling(temperature=0, filter_thres=0, cond_scale=1)
    model = device_model(stage, driver)
    driver.memory = 20_000
    with pytest.raises(MemoryError, match=r"the semantic stage of this request: [\d.]+ MB .* 0\.0 MB are free"):
        on_device(model, stage, plan_of(stage, 3, False), False, greedy)
    assert driver.memory == 20_000
    driver.memory = 1 << 30
    assert len(on_device(model, stage, plan_of(stage, 3, False), False, greedy)) == 3
    recorded = driver.recorded
    before = [row.tolist() for row in on_device(model, stage, plan_of(stage, 3, False), False, greedy)]
    assert driver.recorded == recorded, "what is kept is used again"
    driver.memory = 20_000
    with pytest.raises(MemoryError):  # this driver counts no memory that is given back, but the buffers of the other size are
        on_device(model, stage, plan_semantic(stage.decoder, 2, 9, False), False, greedy)
    driver.memory, recorded = 1 << 30, driver.recorded
    assert [row.tolist() for row in on_device(model, stage, plan_of(stage, 3, False), False, greedy)] == before
    assert driver.recorded > recorded, "what was kept has been given back for another size"
    driver.memory = 1000
    _, sizes, weights = open_weights(stage.folder, stage.decoder)
    with pytest.raises(MemoryError, match="the weights of the coarse stage"):
        DeviceModel(driver, "coarse", sizes, weights, "fp32")
    driver.memory, recorded = 1 << 30, driver.recorded
    on_device(model, stage, plan_of(stage, 3, False), False, greedy)
    assert driver.recorded > recorded, "it has been given back for another stage's weights, too"


def test_what_a_device_does_not_take(tiny_bundle: Path, stages) -> None:
    """Fault: a caller's noise is ignored in silence; a model that is closed by its request's report waits for itself; a request that was
    stopped spoils the next one."""
    with on_host(tiny_bundle) as music:
        with pytest.raises(ValueError, match="noise= is for device='cpu'"):
            music.generate("calm", noise=PhiloxNoise([(0, 0)]))
        with pytest.raises(RuntimeError, match="this MusicLM is closed"):
            music.generate("calm", seconds=0.04, progress=lambda *_: music.close())
    stage = stages("one stream, before 2.4, one layer, 64", "semantic")
    driver, plan, sampling = HostDriver(), plan_of(stage, 7, False), Sampling(temperature=1, filter_thres=0, cond_scale=1)
    model = device_model(stage, driver)

    def stop(done: int, total: int) -> None:
        raise GenerationCancelled

    with pytest.raises(GenerationCancelled):
        on_device(model, stage, plan, False, sampling, stop)
    assert driver.coming == 0
    found = on_device(model, stage, plan, False, sampling)
    assert [row.tolist() for row in found] == [row.tolist() for row in on_cpu(stage, plan, False, sampling)]


@pytest.mark.parametrize("name", ["semantic", "coarse", "fine"])
def test_places_are_the_plans(name: str, stages) -> None:
    """Fault: a token that the device feeds back as another row of the table, or at another coordinate."""
    stage = stages("cross-attention, four streams", name)
    plan = plan_of(stage, 7, True)
    place, steps = device.place_of(plan), np.arange(6)[:, None]
    index, tokens = plan.primed + steps, np.array([[1, 0, 3]] * 6)
    placed = plan.place(steps, tokens)
    np.testing.assert_array_equal(place.first_row + index % place.quantizers * place.codebook + tokens, placed.rows)
    keys = place.origin + index // place.per_frame * place.stride + index % place.per_frame
    np.testing.assert_array_equal(keys, placed.key)
    np.testing.assert_array_equal(keys + place.shift, placed.query)


@pytest.mark.parametrize("kind", ["fp16", "bf16"])
def test_sixteen_bits_are_torchs(kind: str) -> None:
    """Fault: a number cut off and not rounded, or a tie that is rounded up."""
    numbers = np.concatenate([np.random.default_rng(0).standard_normal(1000), [0, -0.0, 1 + 2**-8, 1 + 3 * 2**-8, 6e-5, 65504]])
    numbers = numbers.astype(np.float32).reshape(2, -1)
    expected = torch.from_numpy(numbers).to({"fp16": torch.float16, "bf16": torch.bfloat16}[kind])
    found = torch.from_numpy(narrow(numbers, kind)).view(expected.dtype)
    assert torch.equal(found.view(torch.int16), expected.view(torch.int16))


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_narrow_weights_stand_for_the_same_numbers(precision: str, stages) -> None:
    """Fault: a bundle of 8 or 4 bits whose matrices the device unpacks in another order."""
    variant = "cross-attention, four streams"
    read = [open_weights(one.folder, one.decoder) for one in (stages(variant, "coarse", precision), stages(variant, "coarse"))]
    unpacked, wide = (pack_weights(sizes, in_full(sizes, weights), "fp32") for _, sizes, weights in read)
    assert unpacked.keys() == wide.keys()
    step = {"int8": 1 / 127, "int4": 1 / 7}[precision]
    lost = {name: np.abs(array - wide[name]).max() / max(np.abs(wide[name]).max(), 1e-9) for name, array in unpacked.items()}
    assert max(lost.values()) <= step and all(lost[f"layers.0.{name}.weight"] > 0 for name in ("attention.in", "feed_forward.out")), lost


def test_eight_bits_are_the_bundles(stages) -> None:
    """Fault: int8 weights with a scale of another block, output or matrix; a cache or table in int8; a stage of other bits."""
    variant = "cross-attention, four streams"
    stage, sampling = stages(variant, "coarse", "int8"), Sampling(temperature=1.1, filter_thres=0.3, cond_scale=2.0)
    _, sizes, weights = open_weights(stage.folder, stage.decoder)
    packed, full = (pack_weights(sizes, weights, kind) for kind in ("int8", "fp32"))
    products = [name.removesuffix(".scales") for name in packed if name.endswith(".scales")]
    assert len(products) == 6 * sizes.depth and packed["rows"].dtype == packed["head.1.weight"].dtype == np.float16
    for name in products:
        whole, scales = packed[f"{name}.weight"], np.repeat(packed[f"{name}.scales"], sizes.block, axis=1)
        inputs = min(whole.shape[1], scales.shape[1])
        np.testing.assert_array_equal(whole[:, :inputs] * scales[:, :inputs], full[f"{name}.weight"][:, :inputs], err_msg=name)
    plan = plan_of(stage, 3, True)
    eight, wide = (on_device(device_model(stage, HostDriver(), kind), stage, plan, False, sampling) for kind in ("int8", "fp32"))
    assert [row.tolist() for row in eight] == [row.tolist() for row in wide]  # what fp16 caches lose changes none of these
    with pytest.raises(ValueError, match="int8 are those of a bundle of 8 bits, this has 32: export it with --precision int8"):
        device_model(stages(variant, "coarse"), HostDriver(), "int8")


@pytest.mark.parametrize("kind", ["fp16", "int8"])
@pytest.mark.parametrize("sequences", [1, 2, 3, 5, 6, 8, 16, 32])
def test_every_kernel_is_packed(sequences: int, kind: str, stages) -> None:
    """Fault: a request whose size no one thought of when the kernels were compiled."""
    stage = stages("prefix, two streams, heads of 20", "coarse")
    _, sizes, _ = open_weights(stage.folder, stage.decoder)
    packed = {key_of(launch, step) for step in every_list(sizes, True, True, kind) for launch in step.kernels}
    for capacity in (512, 1024, 4096, 1 << 15):
        for copies in (1, 2) if sequences % 2 == 0 else (1,):
            batch = Batch(sequences, capacity, 5, 3)
            lists = [build_step(sizes, batch, kind, copies, head) for head in range(sizes.outputs)]
            lists += [build_prompt(sizes, batch, kind), build_begin(sizes, batch, kind), build_prefix(sizes, batch, beside(kind), copies)]
            missing = {launch.name for step in lists for launch in step.kernels if key_of(launch, step) not in packed}
            assert not missing, (capacity, copies)


def packed_kernels(folder: Path, **changes: Any) -> Path:
    """A bundle with one kernel for 8.0, 9.0 and later cards."""
    kernels = folder / "kernels"
    kernels.mkdir(parents=True)
    files = {"k.sm_80.cubin": b"\x7fELF80", "k.sm_90.cubin": b"\x7fELF90", "k.ptx": b".version"}
    for name, data in files.items():
        (kernels / name).write_bytes(data)
    named = zip(("80", "90", "ptx"), files, strict=True)
    machines = {machine: {"file": name, "threads": 128, "shared_bytes": 16, "waits": False} for machine, name in named}
    record = {"format": 2, "kernels": {"k": {"function": "product", "signature": {"a": "*fp16"}, "machines": machines}}}
    record["files"] = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    (kernels / "kernels.json").write_text(json.dumps(record | changes))
    return folder


def test_the_code_for_a_card(tmp_path: Path) -> None:
    """Fault: machine code of another generation, which the driver refuses, or PTX where there is machine code."""
    kernels = Kernels(packed_kernels(tmp_path))
    assert [kernels.find("k", capability).image[4:] for capability in (80, 86, 89, 90)] == [b"80", b"80", b"80", b"90"]
    assert [kernels.find("k", capability).image for capability in (100, 120)] == [b".version\0"] * 2
    assert kernels.find("k", 91).image == b".version\0", "sm_90a is of 9.0 alone"
    assert kernels.find("k", 90).function == "product" and kernels.find("k", 90).threads == 128
    with pytest.raises(BundleError, match="no kernel other: it was packed for other types"):
        kernels.find("other", 90)


def test_kernels_that_cannot_be_used(tmp_path: Path, tiny_bundle: Path) -> None:
    """Fault: code that is not what was packed runs on a GPU, or a path leaves the bundle; a KeyError for a damaged record."""
    with pytest.raises(BundleError, match="has no kernels for a GPU: export it with --kernels"):
        Kernels(tiny_bundle)
    with pytest.raises(BundleError, match="has format 9, this version reads 2"):
        Kernels(packed_kernels(tmp_path / "a", format=9))
    with pytest.raises(BundleError, match="is not a record of kernels"):
        Kernels(packed_kernels(tmp_path / "b", kernels=3))
    changed = packed_kernels(tmp_path / "c")
    (changed / "kernels" / "k.sm_90.cubin").write_bytes(b"\x7fELF")
    with pytest.raises(BundleError, match="is not the file that was packed: its hash differs"):
        Kernels(changed).find("k", 90)
    away = {"k": {"function": "f", "signature": {}, "machines": {"90": {"file": "../../x", "threads": 1, "shared_bytes": 0}}}}
    with pytest.raises(BundleError, match=r"names the file '../../x', which is not one of the folder"):
        Kernels(packed_kernels(tmp_path / "d", kernels=away, files={"../../x": ""})).find("k", 90)
    with pytest.raises(BundleError, match="has code for 90, not for this GPU's capability 120"):
        Kernels(packed_kernels(tmp_path / "e", kernels=away)).find("k", 120)


def test_without_a_gpu(tmp_path: Path) -> None:
    """Fault: an ImportError, or a code of CUDA's, where there is no GPU."""
    try:
        driver = CudaDriver(packed_kernels(tmp_path))
    except BackendError as error:
        assert "device='cuda': no NVIDIA GPU can be used here: " in str(error)
    else:
        assert driver.capability >= 70


def test_cuda_has_what_is_asked_of_it() -> None:
    """Fault: a misspelt function or constant of the driver's API, which only a machine with a GPU would find."""
    api, source = importlib.import_module("cuda.bindings.driver"), Path(cuda.__file__).read_text()
    called = set(re.findall(r'"(cu[A-Z]\w+)"', source))
    assert len(called) > 20 and not [name for name in called if not hasattr(api, name)]
    constants = re.findall(r"_cuda\.(CU\w+)\.(CU\w+)", source)
    constants += [("CUdevice_attribute", name) for name in re.findall(r"kinds\.(CU\w+)", source)]
    assert len(constants) > 5 and not [one for one in constants if not hasattr(getattr(api, one[0]), one[1])]
    assert not [name for name in re.findall(r'"(CUDA_ERROR_\w+)"', source) if not hasattr(api.CUresult, name)]
