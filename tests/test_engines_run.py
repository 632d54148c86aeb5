"""`device="tensorrt"` on an emulated GPU: every line of the driver runs, on the full library and on RTX; the music is the CPU's."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support.emulated_cuda import EmulatedCuda
from support.emulated_gpu import REQUEST, is_the_cpus, lists_of
from support.emulated_tensorrt import EmulatedCache, EmulatedContext, EmulatedTensorRT, installed

import musiclm_deploy as md
from musiclm_deploy.kernels.launch import Call, LaunchList
from musiclm_deploy.runtime.bundle import STAGES, Bundle
from musiclm_deploy.runtime.device import cuda
from musiclm_deploy.runtime.device.driver import DeviceError
from musiclm_deploy.runtime.device.model import DeviceModel
from musiclm_deploy.runtime.engines import build as building
from musiclm_deploy.runtime.engines import model as engines
from musiclm_deploy.runtime.engines.build import BuiltEngines, Target, build
from musiclm_deploy.runtime.engines.compiled import Compiled
from musiclm_deploy.runtime.engines.form import Form
from musiclm_deploy.runtime.engines.profiles import Limits
from musiclm_deploy.runtime.engines.run import EngineDriver


@pytest.fixture(autouse=True)
def small(monkeypatch, collector_off) -> None:
    """A ring of four tokens comes round in a short test."""
    monkeypatch.setattr(DeviceModel, "ring", 4)


def test_music(static_bundle: Path, music, tmp_path: Path, monkeypatch) -> None:
    """Fault: an address, a shape, a profile or a parameter that a call is not given, or is given of another; a context that another list
    has changed; memory that a second request takes again."""
    shutil.copytree(static_bundle, tmp_path / "bundle")
    opened = Bundle.open(tmp_path / "bundle")
    emulated = EmulatedCuda(lists_of(opened.root, "fp32", engines.every_list))
    emulated.pack(opened.root)
    emulated.install(monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with installed(EmulatedTensorRT(emulated, "1.7.1", portable=True)):
        folder, _, _ = build(opened, Target.here(90), Limits(sequences=4, seconds=2.0), quiet=True)
        before = emulated.free
        with md.load(opened.root, device="tensorrt") as model:
            is_the_cpus(model.generate(**REQUEST), music.generate(**REQUEST))
            free, allocated, replayed = emulated.free, emulated.allocated, emulated.replayed
            is_the_cpus(model.generate(**REQUEST), music.generate(**REQUEST))
            assert (emulated.free, emulated.allocated) == (free, allocated) and emulated.replayed > replayed
            with pytest.raises(
                ValueError, match=r"engine of mulan_audio.onnx takes wave from \[1, \d+\] to \[1, 32000\], got \[1, 48000\]"
            ):
                model.embed_audio((np.zeros(48_000, np.float32), 16_000))
            several = ["calm"] * 5  # more rows than an engine takes: some wait
            is_the_cpus(model.generate(several, seconds=0.04, seed=3), music.generate(several, seconds=0.04, seed=3))
            assert emulated.free < before
    assert emulated.free == before, "what a model has taken is given back when it is closed"
    (kept,) = (tmp_path / "cache" / "musiclm-deploy").iterdir()
    assert kept.name == f"{opened.sha256[:16]}-{folder.name}.cache" and len(json.loads(kept.read_bytes())) > len(STAGES)


def test_what_is_compiled_is_kept(tmp_path: Path, monkeypatch, caplog) -> None:
    """Fault: kernels that every start compiles again; those of another card, a full disk or a home without a cache end the request."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first, second = (Compiled("0123456789abcdef" * 4, "a card") for _ in range(2))
    config = SimpleNamespace(create_runtime_cache=EmulatedCache, set_runtime_cache=lambda cache: config.__dict__.update(cache=cache))
    first.save()
    assert not first.path.exists(), "nothing was compiled"
    first.set_in(config)
    config.cache.compiled.add("kernel")
    first.save()
    assert first.path == tmp_path / "musiclm-deploy" / "0123456789abcdef-a card.cache" and first.path.read_bytes() == b'["kernel"]'
    second.set_in(config)
    assert config.cache.compiled == {"kernel"}
    first.path.write_bytes(b"another card's")
    third = Compiled("0123456789abcdef" * 4, "a card")
    third.set_in(config)
    assert config.cache.compiled == set()
    config.cache.compiled.add("own")
    third.save()
    assert third.path.read_bytes() == b'["own"]' and [path.name for path in tmp_path.rglob("*.cache*")] == ["0123456789abcdef-a card.cache"]
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    nowhere = Compiled("0", "a card")
    nowhere.set_in(config)
    config.cache.compiled.add("own")
    nowhere.save()
    assert "cannot be written, the next start compiles again" in caplog.text


@dataclass
class Small:
    """A driver with the engine of one graph: y = x + 1, float32 [B, 2], of 1 to 8 rows."""

    driver: EngineDriver
    emulated: EmulatedCuda

    def record(self, rows: int) -> tuple[dict[str, cuda.Memory], cuda.Recorded]:
        """A list that calls it."""
        buffers = {name: self.driver.allocate("fp32", (rows, 2)) for name in ("x", "y")}
        call = Call("semantic", False, {name: (name, (rows, 2)) for name in ("x", "y")})
        return buffers, self.driver.record(LaunchList(launches=[call]), buffers)

    def replay(self, rows: int, buffers: dict[str, cuda.Memory], recorded: cuda.Recorded) -> None:
        x = np.random.default_rng(rows).standard_normal((rows, 2)).astype(np.float32)
        self.driver.upload(buffers["x"], x)
        self.driver.replay(recorded)
        found = self.emulated.memory(buffers["y"].address).view(np.float32).reshape(rows, 2)
        np.testing.assert_array_equal(found, x + 1)


@pytest.fixture(params=[False, True], ids=["TensorRT", "RTX"])
def made(request, tmp_path: Path, monkeypatch) -> Iterator[Small]:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", 2]) for name in ("x", "y")]
    one = helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
    graph = helper.make_graph([helper.make_node("Add", ["x", "one"], ["y"])], "net", value[:1], value[1:], [one])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11), tmp_path / "net.onnx")
    emulated = EmulatedCuda([])
    emulated.pack(tmp_path)
    emulated.install(monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    manifest = SimpleNamespace(files={"net.onnx": SimpleNamespace(sha256="0")}, semantic=SimpleNamespace(graph="net.onnx"))
    bundle = cast(Bundle, SimpleNamespace(root=tmp_path, sha256="0" * 64, manifest=manifest, path=lambda name: tmp_path / name))
    form = Form("fp32", {}, 128, {})
    with ExitStack() as stack:
        stack.enter_context(installed(EmulatedTensorRT(emulated, "10.15.1", portable=request.param)))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(building.Form, "open", lambda _: form)
        patch.setattr(building, "profiles_of", lambda *_: {"net.onnx": [{"x": [(1, 2, 8)]}] * 2})
        build(bundle, Target.here(), quiet=True)
        yield Small(EngineDriver(bundle, form), emulated)


def test_a_captured_call_has_a_context_of_its_own(made: Small) -> None:
    """Fault: a graph that is replayed after its context was told the shapes and memory of another; memory to compute in that moves under
    it, or that every list has of its own; what a list has taken is kept after it."""
    lists, taken = {}, []
    for rows in (2, 4, 1):
        free, buffers = made.emulated.free, 2 * rows * 8
        lists[rows] = made.record(rows)
        taken.append(free - made.emulated.free - buffers)
    assert 0 == taken[2] < taken[0] < taken[1], "the list of 4 rows needs more than that of 2 to compute in; what comes after shares that"
    for rows in (1, 2, 4, 2):
        made.replay(rows, *lists[rows])
    np.testing.assert_array_equal(made.driver.run("net.onnx", {"x": np.zeros((3, 2), np.float32)})["y"], np.ones((3, 2)))
    del lists[2], lists[1]
    made.replay(4, *lists[4])
    free = made.emulated.free
    made.record(4)
    assert made.emulated.free == free


@pytest.mark.parametrize("change", ["shapes", "memory", "gone"])
def test_what_is_emulated_sees_a_context_that_has_changed(change: str, made: Small) -> None:
    """Fault: the test above passes whatever the driver does."""
    buffers, recorded = made.record(2)
    made.replay(2, buffers, recorded)
    context = recorded._used.pop().__self__
    if change == "shapes":
        context.set_shapes({"x": (1, 2)})
    elif change == "memory":
        context.set_memory(buffers)
    else:
        del context
    with pytest.raises(AssertionError, match="is there no more" if change == "gone" else "was told something else since"):
        made.driver.replay(recorded)


def test_a_second_request_takes_no_memory(made: Small) -> None:
    """Fault: the driver's allocator at every call of an engine, or at every other of two shapes."""
    calls = [np.full((rows, 2), rows, np.float32) for rows in (3, 8, 5, 11)]  # the last in two calls

    def run() -> None:
        for x in calls:
            np.testing.assert_array_equal(made.driver.run("net.onnx", {"x": x})["y"], x + 1)

    run()
    allocated = made.emulated.allocated
    run()
    assert made.emulated.allocated == allocated


def test_what_tensorrt_refuses(made: Small, tmp_path: Path, monkeypatch) -> None:
    """Fault: an error that does not say why, or what to do next; a request after it fails as well."""
    x, again = {"x": np.zeros((1, 2), np.float32)}, r"\. Load the bundle in a new process; .*build its engines again: musiclm build\.$"
    name, found = re.escape(made.driver.library.name), next(tmp_path.glob("engines/*/net.engine")).read_bytes()
    monkeypatch.setattr(BuiltEngines, "read", lambda *_: b"of another version")
    with pytest.raises(DeviceError, match=rf"{name} refused the engine of net.onnx: The engine plan file is not compatible.*{again}"):
        made.driver.run("net.onnx", x)
    monkeypatch.setattr(BuiltEngines, "read", lambda *_: found)
    made.driver.run("net.onnx", x)
    with monkeypatch.context() as patch:
        patch.setattr(EmulatedContext, "execute_async_v3", lambda *_: False)
        with pytest.raises(DeviceError, match=rf"{name} refused a call of net.onnx: it gives no reason{again}"):
            made.driver.run("net.onnx", x)
    made.driver.run("net.onnx", x)


def test_memory_is_stated_before_it_is_taken(made: Small) -> None:
    """Fault: an engine, its inputs or what it computes in end the process, or another's; half of it stays taken."""
    free, emulated, x = made.emulated.free, made.emulated, {"x": np.zeros((8, 2), np.float32)}
    needs = r": \d+\.\d MB of the GPU's memory are needed, 0\.0 MB are free\. Ask for fewer"

    def refused(what: str, left: int) -> None:
        emulated.free = left
        with pytest.raises(MemoryError, match=re.escape(what) + needs):
            made.driver.run("net.onnx", x)
        assert emulated.free == left
        emulated.free = free

    refused("the weights of net.onnx's engine (about the size of its file)", 0)
    made.driver.run("net.onnx", {"x": np.zeros((1, 2), np.float32)})
    free = emulated.free
    refused("inputs and outputs of net.onnx", 127)
    emulated.free = 2 * 64 + 100
    with pytest.raises(MemoryError, match="what the engine of net.onnx computes in" + needs):
        made.driver.run("net.onnx", x)
    emulated.free = free
    np.testing.assert_array_equal(made.driver.run("net.onnx", x)["y"], np.ones((8, 2)))
