"""Tokens made by a device's batches, with kernels computed on the host: they are the CPU's, in every variant and stage.

The launches, the batch, the ring of tokens and the ends are those that run on a GPU. Kernels are computed by their numpy references, which
test_kernels_*.py hold them against; in the nightly tests by Triton's interpreter, too.
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
from support.device import DRAWN, GREEDY, GUIDED, ITEMS, alone, device_batch, device_model, sequences_of, together
from support.drivers import Compute, HostDriver
from support.interpreted import interpret
from support.stages import Stage

from musiclm_deploy.kernels.kernel_lists import begin_list, feed_list, prompt_list, step_list
from musiclm_deploy.kernels.launch import key_of
from musiclm_deploy.kernels.list_builder import Slots, build_prefix
from musiclm_deploy.kernels.packing import cache_dtype, cast, dequantize_all, pack_weights
from musiclm_deploy.runtime.backend import BackendError
from musiclm_deploy.runtime.backends import on_device
from musiclm_deploy.runtime.bundle import Bundle, BundleError, Sampling
from musiclm_deploy.runtime.device import cuda
from musiclm_deploy.runtime.device.batch import DeviceBatch
from musiclm_deploy.runtime.device.cuda import CudaDriver
from musiclm_deploy.runtime.device.kernels import Kernels
from musiclm_deploy.runtime.device.model import DeviceModel, every_list
from musiclm_deploy.runtime.musiclm import MusicLM
from musiclm_deploy.runtime.sampling import SamplingConfig
from musiclm_deploy.runtime.sequence import Draw, Sequence
from musiclm_deploy.runtime.step import open_weights

ONE_STREAM = "one stream, before 2.4, one layer, 64"
ON = [references.compute, pytest.param(interpret, marks=pytest.mark.nightly)]  # a grid at once, or program by program


@pytest.fixture(autouse=True)
def small(monkeypatch) -> None:
    """A ring of four tokens comes round in a short test; caches grow."""
    monkeypatch.setattr(DeviceModel, "ring", 4)
    monkeypatch.setattr(DeviceModel, "least_capacity", 16)


@pytest.mark.parametrize("compute", ON)
@pytest.mark.parametrize(
    ("variant", "name", "sampling", "ends"),
    [
        ("cross-attention, four streams", "coarse", GUIDED, True),
        ("cross-attention, four streams", "fine", DRAWN, False),
        ("prefix, two streams, heads of 20", "semantic", GUIDED, True),
        ("no condition, flash, three streams", "coarse", DRAWN, False),
        (ONE_STREAM, "semantic", DRAWN, True),
        ("no value residual, before 2.2, five heads of 7", "fine", GUIDED, False),
        ("no self-attention, 2.0.4, heads of 12", "coarse", GUIDED, True),
    ],
)
def test_a_stage_makes_the_cpus_tokens(variant: str, name: str, sampling: Sampling, ends: bool, compute: Compute, stages) -> None:
    """Fault: a prompt or a prefix fed otherwise, or in other pieces; noise of another row or step; a ring that is read too late; an ended
    row that goes on; guidance of another row; a head that is not the step's."""
    stage = stages(variant, name)
    sequences, driver = sequences_of(stage, 5, ends, sampling), HostDriver(compute=compute)
    expected, batch = alone(stage, sequences), device_batch(stage, driver)
    assert together(batch, sequences) == expected
    if compute is references.compute:  # the interpreter takes a minute for it
        assert together(batch, sequences, frames=1, positions=3) == expected
    assert batch.collect() == [] and driver.coming == 0, "a copy is on its way to memory that may be freed"


def drawn(stage: Stage, row: int, tokens: int, number: int, sampling: Sampling) -> Sequence:
    return stage.sequence(row, Draw(*ITEMS[number % 3], sampling), tokens, primed=bool(number % 2))


@pytest.mark.parametrize(
    ("variant", "name"),
    [
        ("cross-attention, four streams", "coarse"),
        ("prefix, two streams, heads of 20", "fine"),
        ("no condition, flash, three streams", "semantic"),
    ],
)
def test_sequences_join_and_leave_a_running_batch(variant: str, name: str, stages) -> None:
    """Fault: a token that depends on who else is in the batch: a slot that is given to two or still has what another left in it, a row that
    keeps the slot of one that has left, settings or guidance of a neighbour, a prompt that writes into a sequence that runs; caches that
    lose what is in them when they become more or longer."""
    stage = stages(variant, name)
    settings = [DRAWN, GUIDED, GREEDY, Sampling(temperature=1.3, filter_thres=0.6, cond_scale=3.0), GUIDED, DRAWN, GUIDED]
    tokens = [6, 4, 20, 8, 31, 5, 9] if name == "semantic" else [6, 4, 18, 8, 20, 5, 9] if name == "coarse" else [0, 2, 6, 0, 8, 1, 4]
    sequences = [drawn(stage, number, count, number, one) for number, (count, one) in enumerate(zip(tokens, settings, strict=True))]
    expected, batch = alone(stage, sequences), device_batch(stage, HostDriver())
    found: dict[Sequence, list[int]] = {}
    gone, coming = sequences[3], [*sequences]
    for turn in range(200):
        for _ in range(min(2 - turn % 2, len(coming))):
            found[coming[0]] = []
            batch.join(coming.pop(0))
        batch.advance(1 + turn % 3, 7)
        if turn == 4:
            batch.leave(gone)
            batch.leave(gone)
        for made in batch.collect():
            assert made.sequence is not gone or turn < 4
            found[made.sequence] += made.tokens.tolist()
            assert not made.done or found[made.sequence] == expected[sequences.index(made.sequence)]
            coming += [made.sequence] * (made.done and made.sequence is sequences[0] and turn < 100)  # joins again
    assert not batch.waiting() and not batch.collect()
    for sequence, wanted in zip(sequences, expected, strict=True):
        assert found[sequence] == wanted or (sequence is gone and found[sequence] == wanted[: len(found[sequence])])


def test_it_stops_when_all_have_ended(stages) -> None:
    """Fault: the device computes to the longest possible length whatever was drawn; tokens after the end are kept."""
    stage = stages(ONE_STREAM, "semantic")
    hot = Sampling(temperature=30.0, filter_thres=0.0, cond_scale=1.0)  # so hot that one token in twenty is the end
    clips = {seed: [stage.sequence(0, Draw(seed, item, 0, hot), 25) for item in range(3)] for seed in range(20)}
    made = {seed: alone(stage, clip) for seed, clip in clips.items()}
    seed = min(made, key=lambda one: max(map(len, made[one])))  # of these clips the one whose rows have all ended first
    longest, driver = max(map(len, made[seed])), HostDriver()
    assert 4 < longest < 12 and len(set(map(len, made[seed]))) > 1, "the test needs rows that end, and not at once"
    batch = device_batch(stage, driver)
    assert together(batch, clips[seed], frames=4) == made[seed]
    assert driver.replayed <= 2 + longest + 3 + 2 * 4, "one advance at most runs on"
    assert batch.collect() == [] and driver.coming == 0


def test_a_device_is_one_advance_ahead(stages) -> None:
    """Fault: a host that waits for the tokens of what it has just launched, or that never gets the last ones."""
    stage = stages(ONE_STREAM, "semantic")
    sequence = stage.sequence(0, Draw(5, 0, 0, GREEDY), 8, end_allowed=False)
    batch = device_batch(stage, HostDriver())
    batch.join(sequence)
    seen = []
    for _ in range(4):
        batch.advance(2, 100)
        seen.append([(len(made.tokens), made.done) for made in batch.collect()])
    assert seen == [[], [(2, False)], [(2, False)], [(4, True)]]
    batch.join(sequence)
    batch.advance(3, 100)
    assert batch.collect() == [] and [len(made.tokens) for made in batch.collect()] == [3], "no other advance has followed"


def test_nothing_is_taken_twice(stages) -> None:
    """Fault: memory for every request; a request whose sampling is another draws as the one before."""
    stage, driver = stages(ONE_STREAM, "semantic"), HostDriver()
    warm = Sampling(temperature=2.0, filter_thres=0.5, cond_scale=1.0)
    batch, made, free = device_batch(stage, driver), [], []
    for sampling in (GREEDY, warm, GREEDY):
        made.append(together(batch, sequences_of(stage, 5, False, sampling)))
        free.append(driver.memory)
    assert free[0] == free[1] == free[2] and made[0] == made[2] != made[1]
    assert made[1] == alone(stage, sequences_of(stage, 5, False, warm))


def test_what_does_not_fit_is_said_before_it_is_taken(stages) -> None:
    """Fault: an allocation that fails in the middle, with a part of it taken; a number without what to do; a batch that a sequence without
    memory has spoilt; memory that is kept for later while another needs it; memory that is taken from a sequence."""
    stage, short, longer = stages(ONE_STREAM, "semantic"), (5, False, GREEDY), (25, False, GREEDY)
    with pytest.raises(MemoryError, match=r"the weights of the semantic stage: [\d.]+ MB .* 0\.0 MB are free\. Ask for fewer"):
        device_model(stage, HostDriver(1000))
    driver = HostDriver()
    batch, other = device_batch(stage, driver), device_batch(stage, driver)
    driver.memory = 5_000
    with pytest.raises(MemoryError, match=r"2 sequences of 16 positions in the semantic stage: [\d.]+ MB .* 0\.0 MB are free"):
        batch.join(sequences_of(stage, *short)[0])
    assert driver.memory == 5_000 and batch.collect() == [] and batch.waiting() == 0
    driver.memory = 1 << 30
    sequences = sequences_of(stage, *short)
    expected = together(batch, sequences)
    recorded = driver.recorded
    assert together(batch, sequences) == expected and driver.recorded == recorded, "what is kept is used again"

    batch.join(sequences[0])
    batch.advance(2, 100)
    driver.memory = 5_000
    with pytest.raises(MemoryError, match="32 positions"):  # this driver counts no memory that is given back
        batch.join(sequences_of(stage, *longer)[1])
    with pytest.raises(MemoryError):
        other.join(sequences[1])
    driver.memory, recorded = 1 << 30, driver.recorded
    assert together(batch, sequences[1:]) == expected[1:] and driver.recorded - recorded < 8, "a batch in use keeps what it has"
    assert alone(stage, sequences[:1]) == expected[:1]

    driver.memory, recorded = 5_000, driver.recorded
    with pytest.raises(MemoryError):
        other.join(sequences[1])
    driver.memory = 1 << 30
    assert together(batch, sequences) == expected and driver.recorded > recorded, "what was kept has been given back for another"
    batch.close()
    assert driver.coming == 0


def test_what_a_batch_refuses(stages) -> None:
    """Fault: a caller's noise that is ignored in silence; a sequence more than there are slots, which takes another's."""
    stage = stages(ONE_STREAM, "semantic")
    batch = DeviceBatch(device_model(stage, HostDriver()), slots=2)
    with pytest.raises(ValueError, match="noise= is for device='cpu'"):
        batch.join(stage.forced(0, 3))
    sequences = sequences_of(stage, 5, False, DRAWN)
    for sequence in sequences[:2]:
        batch.join(sequence)
    with pytest.raises(ValueError, match="all 2 slots are taken"):
        batch.join(sequences[2])
    batch.leave(sequences[0])
    assert together(batch, sequences[2:]) == alone(stage, sequences[2:])


@pytest.mark.parametrize("compute", [references.compute, interpret])
def test_music_is_the_cpus(compute: Compute, tiny_bundle: Path, music: MusicLM) -> None:
    """Fault: a stage, window, candidate or prompt that the device is not told of. By the interpreter, a kernel that is its reference
    wherever both were compared, and not in a clip."""
    request: Any = dict(text=["calm piano", "brass band"], seconds=0.04, seed=[3, 4], sampling={"coarse": SamplingConfig(cond_scale=3.0)})
    with MusicLM(on_device(Bundle.open(tiny_bundle), "cpu", 1, HostDriver(compute=compute), "fp32")) as model:
        found = model.generate(**request)
    for one, other in zip(found, music.generate(**request), strict=True):
        for name in ("semantic", "coarse", "fine"):
            np.testing.assert_array_equal(getattr(one.tokens, name), getattr(other.tokens, name), err_msg=name)
        np.testing.assert_array_equal(one.audio, other.audio)


@pytest.mark.parametrize("kind", ["fp16", "bf16"])
def test_sixteen_bits_are_torchs(kind: str) -> None:
    """Fault: a number cut off and not rounded, or a tie that is rounded up."""
    numbers = np.concatenate([np.random.default_rng(0).standard_normal(1000), [0, -0.0, 1 + 2**-8, 1 + 3 * 2**-8, 6e-5, 65504]])
    numbers = numbers.astype(np.float32).reshape(2, -1)
    expected = torch.from_numpy(numbers).to({"fp16": torch.float16, "bf16": torch.bfloat16}[kind])
    found = torch.from_numpy(cast(numbers, kind)).view(expected.dtype)
    assert torch.equal(found.view(torch.int16), expected.view(torch.int16))


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_narrow_weights_stand_for_the_same_numbers(precision: str, stages) -> None:
    """Fault: a bundle of 8 or 4 bits whose matrices the device unpacks in another order."""
    variant = "cross-attention, four streams"
    read = [open_weights(one.folder, one.decoder) for one in (stages(variant, "coarse", precision), stages(variant, "coarse"))]
    unpacked, wide = (pack_weights(sizes, dequantize_all(sizes, weights), "fp32") for _, sizes, weights in read)
    assert unpacked.keys() == wide.keys()
    step = {"int8": 1 / 127, "int4": 1 / 7}[precision]
    lost = {name: np.abs(array - wide[name]).max() / max(np.abs(wide[name]).max(), 1e-9) for name, array in unpacked.items()}
    assert max(lost.values()) <= step and all(lost[f"layers.0.{name}.weight"] > 0 for name in ("attention.in", "feed_forward.out")), lost


def test_eight_bits_are_the_bundles(stages) -> None:
    """Fault: int8 weights with a scale of another block, output or matrix; a cache or table in int8; a stage of other bits."""
    variant = "cross-attention, four streams"
    stage, sampling = stages(variant, "coarse", "int8"), Sampling(temperature=1.1, filter_thres=0.3, cond_scale=1.0)
    _, sizes, weights = open_weights(stage.folder, stage.decoder)
    packed, full = (pack_weights(sizes, weights, kind) for kind in ("int8", "fp32"))
    products = [name.removesuffix(".scales") for name in packed if name.endswith(".scales")]
    assert len(products) == 6 * sizes.depth and packed["rows"].dtype == packed["head.1.weight"].dtype == np.float16
    for name in products:
        whole, scales = packed[f"{name}.weight"], np.repeat(packed[f"{name}.scales"], sizes.block, axis=1)
        inputs = min(whole.shape[1], scales.shape[1])
        np.testing.assert_array_equal(whole[:, :inputs] * scales[:, :inputs], full[f"{name}.weight"][:, :inputs], err_msg=name)
    sequences = sequences_of(stage, 5, True, sampling)
    eight, wide = (together(device_batch(stage, HostDriver(), kind), sequences) for kind in ("int8", "fp32"))
    assert eight == wide  # what fp16 caches lose changes none of these
    with pytest.raises(ValueError, match="int8 are those of a bundle of 8 bits, this has 32: export it with --precision int8"):
        device_model(stages(variant, "coarse"), HostDriver(), "int8")


@pytest.mark.parametrize("kind", ["fp16", "int8"])
@pytest.mark.parametrize("rows", [1, 2, 4, 8, 16, 32, 64])
def test_every_kernel_is_packed(rows: int, kind: str, stages) -> None:
    """Fault: a request whose size no one thought of when the kernels were compiled."""
    stage = stages("prefix, two streams, heads of 20", "coarse")
    _, sizes, _ = open_weights(stage.folder, stage.decoder)
    packed = {key_of(launch, launches) for launches in every_list(sizes, True, kind) for launch in launches.kernels}
    for capacity, count in ((16, 2), (1024, 65), (1 << 15, 3)):
        slots = Slots(count, capacity, 5)
        lists = [step_list(sizes, slots, kind, rows, head) for head in range(sizes.outputs)]
        lists += [make(sizes, slots, kind, rows) for make in (prompt_list, begin_list, feed_list)]
        lists.append(build_prefix(sizes, slots, cache_dtype(kind), rows))
        missing = {launch.name for launches in lists for launch in launches.kernels if key_of(launch, launches) not in packed}
        assert not missing, (capacity, count)


def packed_kernels(folder: Path, **changes: Any) -> Path:
    """A bundle with one kernel for 8.0, 9.0 and later cards."""
    kernels = folder / "kernels"
    kernels.mkdir(parents=True)
    files = {"k.sm_80.cubin": b"\x7fELF80", "k.sm_90.cubin": b"\x7fELF90", "k.ptx": b".version"}
    for name, data in files.items():
        (kernels / name).write_bytes(data)
    named = zip(("80", "90", "ptx"), files, strict=True)
    machines = {machine: {"file": name, "threads": 128, "shared_bytes": 16, "waits": False} for machine, name in named}
    record = {"format": 3, "kernels": {"k": {"function": "product", "signature": {"a": "*fp16"}, "machines": machines}}}
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


def test_kernels_that_cannot_be_used(tmp_path: Path) -> None:
    """Fault: code that is not what was packed runs on a GPU, or a path leaves the bundle; a KeyError for a damaged record."""
    with pytest.raises(BundleError, match="has no kernels for a GPU: export it with --kernels"):
        Kernels(tmp_path)
    with pytest.raises(BundleError, match="has format 9, this version reads 3"):
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
