"""`make gpu-check` where there is no GPU: the command itself on an emulated one, and its parts on a device in the host's memory."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.drivers import HostDriver, HostEngines
from support.emulated_cuda import EmulatedCuda
from support.emulated_gpu import with_kernels

from benchmarks import bundle as bundles
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import graphs, kernels, machine, peers, size, steps, tokens
from benchmarks.gpu import stage as stages_on_gpus
from benchmarks.gpu.parts import Missing, Parts
from benchmarks.gpu.steps import Extent, check
from benchmarks.gpu.table import SECTIONS
from benchmarks.peers import on_device
from benchmarks.plot import of_cpu
from benchmarks.report import BEGIN, END, write
from musiclm_deploy.kernels.spectrogram import reference
from musiclm_deploy.runtime.backend import BackendError
from musiclm_deploy.runtime.bench.clips import ON_GPUS, time_clips
from musiclm_deploy.runtime.bench.record import append, read
from musiclm_deploy.runtime.bench.table import cells
from musiclm_deploy.runtime.bundle import MANIFEST, STAGES, Bundle
from musiclm_deploy.runtime.device.cuda import CudaDriver
from musiclm_deploy.runtime.device.model import DeviceModel
from musiclm_deploy.runtime.engines.form import Form

LITTLE = Extent(rows=(1,), context=8, tokens=1, steps=0)


@pytest.fixture(autouse=True)
def small(monkeypatch, collector_off) -> None:
    """A ring of two tokens comes round in a short test."""
    monkeypatch.setattr(DeviceModel, "ring", 2)


class EitherWay(EmulatedCuda):
    """An emulated GPU whose kernels may be launched one after another, too."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.late = 0

    def cuLaunchKernelEx(self, config: Any, *arguments: Any) -> Any:
        if self._after_kernel and not config.numAttrs:
            self._after_kernel, self.late = False, self.late + 1
        return super().cuLaunchKernelEx(config, *arguments)


def run(monkeypatch, *options: str) -> int:
    """The command, in this process."""
    monkeypatch.setattr(sys, "argv", ["benchmarks.gpu", *options])
    return command.main()


@pytest.fixture
def emulated(patches_bundle, tmp_path, monkeypatch) -> EitherWay:
    """An emulated GPU with the bundle of the tiny size, and with the kernel of log-mel patches. Steps take a second each time that the
    clock is read."""
    shutil.copytree(patches_bundle, tmp_path / "bundle")
    made: Any = with_kernels(tmp_path / "bundle", monkeypatch, EitherWay)

    def compile_steps(lists: Any, folder: Path) -> None:
        EmulatedCuda(lists).pack(folder.parent)
        made.add(lists)

    monkeypatch.setattr("musiclm_deploy.kernels.compile.compile_steps", compile_steps)
    monkeypatch.setattr(command, "mel_entrance", partial(bundles.mel_entrance, tmp_path / "build"))
    monkeypatch.setattr(size, "bundle", lambda *_, **__: tmp_path / "bundle")
    monkeypatch.setattr(machine, "COPIED", 1 << 12)
    monkeypatch.setattr(kernels, "TIMES", 1)
    monkeypatch.setattr(kernels.shutil, "which", lambda _: None)
    monkeypatch.setattr(steps, "time", SimpleNamespace(perf_counter=count().__next__))
    return made


def no_tensorrt() -> Any:
    raise BackendError("TensorRT cannot be used here.")


def test_the_command(emulated, tmp_path, monkeypatch, capsys) -> None:
    """Fault: a command that needs a GPU to show that it does not run; a part that ends all others, or is left out in silence; a kind of
    row that the tables, the page or the picture cannot show; rows that take those of a CPU for theirs."""
    monkeypatch.setattr(DeviceModel, "ring", 1)  # so that each step is a replay of its own, before and after which the clock is read
    monkeypatch.setattr(size, "Target", SimpleNamespace(here=no_tensorrt))
    monkeypatch.setattr(size, "need_graphs", lambda _: None)  # ONNX Runtime's part runs on the CPU
    monkeypatch.setattr(size, "compare_graphs", partial(graphs.compare_graphs, device="cpu"))
    monkeypatch.setattr(size, "time_clips", lambda opened, *_, **__: time_clips(opened, 0.2, 3.0, None, 1, 1))
    lines = tmp_path / "results" / "gpu.jsonl"
    options = ("--rows", "1", "--context", "8", "--tokens", "3", "--steps", "1", "--seconds", "0.17", "--json", str(lines))
    assert run(monkeypatch, "--size", "tiny", "--weights", "fp32", "--stage", "coarse", *options) == 0
    out, rows = capsys.readouterr().out, read([lines])
    assert {"skipped: kernels against their references", "skipped: compute-sanitizer", "skipped: tiny: engines, fp32"} < {
        line.rpartition(": ")[0] if "TensorRT" in line else ": ".join(line.split(": ")[:2]) for line in out.splitlines()
    }
    assert "9 parts passed, 6 were skipped, 0 failed." in out and emulated.late > 0
    of = {kind: [row for row in rows if row["benchmark"] == kind] for kind in dict.fromkeys(row["benchmark"] for row in rows)}
    (token,), (step,) = of["gpu tokens"], of["gpu step"]
    assert token["equal"] == token["tokens"] == 4 + 2 * 2 and token["logits_differ_by"] < 1e-4 and token["stage"] == "coarse"
    assert token["taken_mb"] == token["stated_mb"] > 0
    assert (step["host_us"], step["step_us"], step["stage"]) == (1e6, 2e6, "coarse")
    assert {(row["spectrogram"], row["form"]) for row in of["gpu patches"]} == {("power", "kernel"), ("log-mel", "kernel")}
    assert len(of["gpu graphs"]) == 3 and len(of["gpu clip"]) == 3
    assert all(row["gpu"] == "Emulated GPU" and row["command"] and row["date"] for row in rows)
    assert lines.with_suffix(".png").stat().st_size > 10_000

    peer = step | {"form": "audiolm-pytorch", "host_us": None, "ceiling_ms": None, "ceiling_share": None}
    own = {"benchmark": "step", "dim": 24, "depth": 2, "stage": "coarse", "form": "graph", "precision": "fp32", "rows": 1, "context": 14}
    own |= {name: 1.0 for name in ("median_ms", "p25_ms", "p75_ms", "p95_ms", "p99_ms", "mb_read", "ceiling_ms")}
    append(lines, [peer, own | {name: rows[0][name] for name in ("machine", "git", "date", "command", "load")}])
    page = tmp_path / "README.md"
    page.write_text(f"{BEGIN}\n{END}\n")
    write(lines.parent, page)
    for section in SECTIONS:
        assert f"**{section.title}**" in page.read_text() and len(cells(rows, section)) > 1
    assert "audiolm-pytorch" in page.read_text() and "![A step on a GPU by rows](results/gpu.png)" in page.read_text()
    assert [row["form"] for row in of_cpu(read([lines]))] == ["graph"]


def test_without_a_gpu(tiny_bundle, tmp_path, monkeypatch, capsys) -> None:
    """Fault: bundles that are made when the GPU waits already; a size or type that is left out; a status that says all was well."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    asked: list[Any] = []

    def made(name: str, precision: str = "fp32", kernels: Any = ()) -> Path:
        asked.append((name, precision, tuple(kernels)))
        return tiny_bundle

    monkeypatch.setattr(size, "bundle", made)
    monkeypatch.setattr(command, "mel_entrance", lambda: None)
    assert run(monkeypatch, "--size", "readme", "--size", "300m", "--json", str(tmp_path / "gpu.jsonl")) == 1
    assert asked == [("readme", "fp32", ("fp32", "fp16", "bf16")), ("readme", "int8", ("int8",)), ("300m", "fp32", ("fp16",))]
    said = capsys.readouterr().err
    assert "no NVIDIA GPU can be used here" in said and "3 parts passed" in said and "Nothing was run." in said
    assert not (tmp_path / "gpu.jsonl").exists()


def test_parts_do_not_depend_on_each_other(capsys) -> None:
    """Fault: a part that fails ends the others, or is forgotten at the end; what is missing counts as a fault."""
    parts = Parts()
    with parts.part("one"):
        raise RuntimeError("other tokens\nmore of it")
    with parts.part("two"):
        raise Missing("no TensorRT")
    with parts.part("three"):
        pass
    assert parts.status == 1
    summary = "1 parts passed, 1 were skipped, 1 failed.\nskipped: two: no TensorRT\nFAILED: one: RuntimeError: other tokens"
    assert parts.summary() == summary and "more of it" in capsys.readouterr().err
    with pytest.raises(KeyboardInterrupt), parts.part("four"):
        raise KeyboardInterrupt


def test_a_batch_that_ends(tiny_bundle) -> None:
    """Fault: of a batch only its first row is looked at; a row that has ended is compared with what follows its end."""
    stage = stages_on_gpus.OnDevice(Bundle.open(tiny_bundle), "semantic", HostDriver(), "fp32")
    any_token = replace(tokens.DRAWN, filter_thres=0.0, cond_scale=1.0)
    compared = tokens.compare(stage, stage.request(2, 8, 3, any_token, end_allowed=True))
    assert [len(row) for row in compared.tokens] == [3, 1] and compared.equal == compared.total == 3 + 2 and compared.lost < 1e-4


def test_bytes_of_a_step(tiny_bundle) -> None:
    """Fault: bytes of another type, or of another head; a fine prompt that is too short for the frames of its request."""
    bench = stages_on_gpus.OnDevice(Bundle.open(tiny_bundle), "fine", HostDriver(), "fp32")
    products = [array for name, array in bench.model.weights.items() if name.endswith(".weight") and not name.startswith("head.")]
    head, caches = bench.model.weights["head.0.weight"], 2 * bench.decoder.depth * bench.decoder.cache_head_size * 4 * 15.5
    assert steps.bytes_read(bench, 1, 15.5) == pytest.approx(4 * sum(one.numel() for one in [*products, head]) + caches, rel=1e-3)
    held = [context for context in range(60) if bench.holds(context, 20)]
    made = list(tokens.requests_of(bench, (1, 2), (0, held[0], held[-1]), 20))
    assert (
        len(held) > 1
        and [(len(one.sequences), one.steps) for one in made] == [(rows, bench.whole(20)) for rows in (1, 2)] + [(2, bench.whole(1))] * 4
    )
    lengths = [len(one.sequences[0].prompt) for one in made]
    assert lengths[2] == lengths[3] < lengths[4] == lengths[5], "a context that no request can have is left out"


def test_a_wrong_token_is_told(tiny_bundle, monkeypatch) -> None:
    """Fault: times of a GPU that computes something else; a message that does not say where it began."""
    right = stages_on_gpus.OnDevice.decode

    def wrong(*arguments: Any) -> tuple[list[np.ndarray], np.ndarray]:
        made, logits = right(*arguments)
        return [(row + 1) % 19 for row in made], logits

    monkeypatch.setattr(stages_on_gpus.OnDevice, "decode", wrong)
    with pytest.raises(
        RuntimeError, match=r"semantic, fp32: 0 of 3 tokens .* 100% must be\. The first that is not: token 0 of row 0 is \d+"
    ):
        check(Bundle.open(tiny_bundle), "semantic", HostDriver(), None, "fp32", LITTLE, None)


@pytest.mark.parametrize(("lost", "kind", "passes"), [(0.01, "bf16", True), (0.1, "bf16", False), (np.nan, "fp16", False)])
def test_logits_are_judged_by_their_type(lost: float, kind: str, passes: bool) -> None:
    """Fault: a GPU of other weights whose likeliest tokens are the CPU's; logits that are no numbers."""
    here: Any = SimpleNamespace(stage="coarse", kind=kind, decoder=SimpleNamespace(depth=6))
    request: Any = None
    right, one = (tokens.Compared(request, [], np.zeros(0), 96, 100, "", each) for each in (0.0, lost))
    if passes:
        tokens.judge(here, [right, one])
    else:
        with pytest.raises(
            RuntimeError, match=r"coarse, \w+: logits differ from the CPU's by .* of their largest, .* its rounding explains"
        ):
            tokens.judge(here, [right, one])


@pytest.mark.parametrize(("other", "message"), [([3, 4, 6], "other tokens, from token 2 of row 0 on"), ([3, 4, 5], "of other logits")])
def test_asked_again(other: list[int], message: str) -> None:
    """Fault: a race, whose tokens are the CPU's most of the time."""
    request: Any = SimpleNamespace(steps=3)
    before = tokens.Compared(request, [np.array([3, 4, 5])], np.array([[1.0, 2.0]]), 3, 3, "", 0.0)
    same, stage = partial(SimpleNamespace, stage="fine", kind="fp16"), np.array([[1.0, 2.0]])
    here: Any = same(decode=lambda _: (before.tokens, stage))
    tokens.compare_again(here, before, "asked again")
    there: Any = same(decode=lambda _: ([np.array(other)], stage + 1e-7))
    with pytest.raises(RuntimeError, match=f"fine, fp16: asked again, a request made .*{message}"):
        tokens.compare_again(there, before, "asked again")


def test_engines_too(static_bundle) -> None:
    """Fault: engines whose tokens are not looked at, or whose rows are taken for those of kernels."""
    opened = Bundle.open(static_bundle)
    form = Form.open(opened)
    made = [check(opened, stage, HostEngines(opened, form), None, "fp32", Extent((1, 2), 22, 3, 2), 1e9) for stage in STAGES]
    token, timed = ([row for part in made for row in part if row["benchmark"] == kind] for kind in ("gpu tokens", "gpu step"))
    assert [(row["form"], row["equal"] - row["tokens"]) for row in token] == [("engines", 0)] * 3
    assert [row["rows"] for row in timed] == [1, 2] * 3 and {row["form"] for row in timed} == {"engines"}
    coarse, caches = opened.manifest.coarse, form.capacities["coarse"] * 2 * 4
    assert (timed[3]["mb_read"] - timed[2]["mb_read"]) * 1e6 == pytest.approx(caches * coarse.depth * coarse.cache_head_size, rel=0.02)


def test_patches_on_a_gpu(emulated, tmp_path, monkeypatch) -> None:
    """Fault: a way to patches that is timed but not looked at; a kernel that is compiled again every time."""
    root, spectrogram, hz = bundles.mel_entrance(tmp_path / "build")
    monkeypatch.setattr("musiclm_deploy.kernels.compile.compile_steps", None)
    assert bundles.mel_entrance(tmp_path / "build")[1] == spectrogram
    driver = CudaDriver(root)
    assert kernels.check_patches(driver, spectrogram, root, hz, 0.17, False) == []
    assert machine.describe(driver) == {"gpu": "Emulated GPU", "capability": 90}
    monkeypatch.setattr(kernels, "patches_of", lambda *arguments: 2 * reference.patches(*arguments))
    with pytest.raises(RuntimeError, match=r"log-mel patches differ from the reference by 5\.0e-01 of the largest"):
        kernels.check_patches(driver, spectrogram, root, hz, 0.17, True)


def test_graphs_that_differ(tiny_bundle, monkeypatch) -> None:
    """Fault: a latent or a wave of a GPU that is another; a part that cannot run counts as one that failed."""
    answers, calls = graphs.answers, count()

    def differ(model: Any) -> dict[str, np.ndarray]:
        made = answers(model)
        return made | {"the codec's wave": made["the codec's wave"] * (1 + 0.1 * next(calls))}

    monkeypatch.setattr(graphs, "answers", differ)
    with pytest.raises(RuntimeError, match=r"the codec's wave differs from the CPU's by 1\.0e-01 of its largest value"):
        graphs.compare_graphs(Bundle.open(tiny_bundle), device="cpu")
    monkeypatch.setattr(graphs, "choose_device", lambda _: no_tensorrt())
    with pytest.raises(Missing, match="cannot be used here"):
        graphs.need_graphs(Bundle.open(tiny_bundle))


@pytest.fixture
def kept(tiny_bundle, tmp_path, monkeypatch) -> Iterator[list[dict[str, Any]]]:
    """The bundle of the tiny size where it is looked for; what an export was asked for."""
    exported: list[dict[str, Any]] = []
    monkeypatch.setattr(bundles, "checkpoints", lambda *_: {})
    monkeypatch.setattr(bundles, "export_checkpoints", lambda **asked: exported.append(asked))
    (tmp_path / "tiny").mkdir()
    shutil.copytree(tiny_bundle, tmp_path / "tiny" / "fp32")
    yield exported


def test_a_stale_bundle_is_made_again(kept, tmp_path, capsys) -> None:
    """Fault: kernels of an older format, which end a check in the middle; a bundle that is made again though nothing has changed."""
    folder = tmp_path / "tiny" / "fp32"
    assert bundles.bundle("tiny", build=tmp_path) == folder and not kept
    assert "has no kernels for a GPU" in str(bundles.fault_of(folder, ["fp32"], None))
    opened = Bundle.open(folder)
    (folder / "kernels").mkdir()
    (folder / "kernels" / "kernels.json").write_text(json.dumps({"format": 1, "kernels": {}, "files": {}}))
    assert "has format 1, this version reads" in str(bundles.fault_of(folder, ["fp32"], None))
    shutil.rmtree(folder / "kernels")
    EmulatedCuda(bundles.steps_of(opened, ["fp16"])).pack(folder)
    assert bundles.fault_of(folder, ["fp16"], None) is None
    assert "has no kernel " in str(bundles.fault_of(folder, ["fp32"], None))
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["made_by"]["musiclm-deploy"] = "0.0.9"
    (folder / MANIFEST).write_text(json.dumps(manifest))
    bundles.bundle("tiny", build=tmp_path)
    assert [(asked["out"], asked["overwrite"]) for asked in kept] == [(folder, True)]
    assert "version 0.0.9 made what is there" in capsys.readouterr().err


def test_compute_sanitizer(tmp_path, monkeypatch) -> None:
    """Fault: a command that the check itself does not understand; a tool of three that is not run because one before it found something."""
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n[ $2 != racecheck ] || {{ echo "a hazard"; exit 3; }}\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(RuntimeError, match=r"^racecheck ended with status 3:\na hazard"):
        kernels.sanitize(kernels.need_sanitizer())
    asked = [line.split() for line in (tmp_path / "asked").read_text().splitlines()]
    assert [line[1] for line in asked] == ["memcheck", "racecheck", "synccheck"]
    monkeypatch.setattr(sys, "argv", asked[0][6:])
    options = command.read_options()
    assert options.untimed and options.size == ["tiny"] and options.weights is None and "int8" in command.WEIGHTS["tiny"]


def test_peers_on_a_device(tiny_bundle, tiny_models, monkeypatch) -> None:
    """Fault: a peer that computes something else than it is timed for; a row that does not say which peer it is."""
    monkeypatch.setattr(on_device, "DTYPES", {"fp16": torch.float32, "bf16": torch.float32})  # a CPU takes its time in 16 bits
    monkeypatch.setattr(torch, "compile", lambda model, **_: model)
    monkeypatch.setattr(peers, "models", lambda *_: tiny_models)
    assert on_device.PEERS == (("compiled PyTorch", "fp16"), ("compiled PyTorch", "bf16"), ("audiolm-pytorch", "fp32"))
    for form, kind in on_device.PEERS:
        row = peers.peer(form, kind, Bundle.open(tiny_bundle), "tiny", 2, 20, 6, device="cpu")
        assert (row["form"], row["precision"], row["rows"]) == (form, kind, 2) and row["step_us"] > 0
    case, conditioning = peers.case_of_peers(Bundle.open(tiny_bundle), 2, 20, 6)
    compiled = on_device.static_cache_tokens(tiny_models["coarse"].state_dict(), case, conditioning, torch.float32, "cpu", None)
    upstream = on_device.upstream_tokens(tiny_models["coarse"], case, conditioning, "cpu")
    for index in range(len(case.tokens)):
        ours, theirs = compiled(index), upstream(index)
        assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()


def test_clips_of_a_gpu() -> None:
    """Fault: numbers of prompts that the check is about, and no clip has."""
    assert set(ON_GPUS.values()) == {(2, 1), (32, 1)}
