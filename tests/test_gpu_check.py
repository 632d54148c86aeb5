"""`make gpu-check` on the interpreter's device: it runs, its rows say how they were got, and a wrong token ends it."""

from __future__ import annotations

import shutil
from itertools import count
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from interpreted import InterpretedEngines, InterpreterDriver
from test_emulated_gpu import with_kernels

from benchmarks.gpu import kernels, machine, peers, steps
from benchmarks.gpu.table import SECTIONS
from benchmarks.peers import on_device
from benchmarks.plot import draw_gpus
from benchmarks.report import markdown
from musiclm_deploy.kernels.spectrogram import reference
from musiclm_deploy.runtime.bench.table import as_text
from musiclm_deploy.runtime.bundle import Bundle
from musiclm_deploy.runtime.device.cuda import CudaDriver
from musiclm_deploy.runtime.device.model import DeviceModel
from musiclm_deploy.runtime.engines.form import Form


@pytest.fixture(autouse=True)
def small(monkeypatch) -> None:
    """The interpreter takes its time for every part of a cache."""
    monkeypatch.setattr(DeviceModel, "least_capacity", 32)


def test_it_runs_and_says_what_it_saw(tiny_bundle, monkeypatch) -> None:
    """Fault: a check that needs a GPU to show that it does not run; a stage left out; bytes of another type; a step of many launches."""
    monkeypatch.setattr(steps, "time", SimpleNamespace(perf_counter=count().__next__))  # a second goes by whenever the clock is read
    made = steps.check(Bundle.open(tiny_bundle), InterpreterDriver(), "fp32", 1e9, (1,), (14,), 1)
    tokens, timed = ([row for row in made if row["benchmark"] == kind] for kind in ("gpu tokens", "gpu step"))
    assert [(row["stage"], row["equal"], row["tokens"]) for row in tokens] == [(stage, 2, 2) for stage in ("semantic", "coarse", "fine")]
    assert all(row["taken_mb"] == row["stated_mb"] > 0 for row in tokens)
    assert [row["stage"] for row in timed] == ["semantic", "coarse", "fine"]
    assert [(row["host_us"], row["step_us"]) for row in timed] == [(1e6, 2e6)] * 3  # one replay, before and after which it is read
    bench = steps.Bench(Bundle.open(tiny_bundle), "fine", InterpreterDriver(), "fp32")
    products = [array for name, array in bench.model.weights.items() if name.endswith(".weight") and not name.startswith("head.")]
    head, caches = bench.model.weights["head.0.weight"], 2 * bench.decoder.depth * bench.decoder.cache_head_size * 4 * (14 + 1.5)
    assert timed[2]["mb_read"] == pytest.approx((4 * sum(one.numel() for one in [*products, head]) + caches) / 1e6, rel=1e-3)
    text = as_text([row | {"gpu": "interpreter"} for row in made], SECTIONS)
    assert text.count("interpreter") == 6 and "step µs" in text


def test_a_wrong_token_ends_it(tiny_bundle, monkeypatch) -> None:
    """Fault: times of a GPU that computes something else."""
    right = steps.device.decode

    def wrong(*arguments: Any) -> list[np.ndarray]:
        return [row + 1 for row in right(*arguments)]

    monkeypatch.setattr(steps.device, "decode", wrong)
    with pytest.raises(RuntimeError, match=r"semantic, fp32: 0 of 2 tokens are the CPU's after the same tokens, 100% must be"):
        steps.check(Bundle.open(tiny_bundle), InterpreterDriver(), "fp32", None, (1,), (20,), 1)


def test_engines_too(static_bundle) -> None:
    """Fault: engines whose tokens are not looked at, or whose rows are taken for those of kernels."""
    opened = Bundle.open(static_bundle)
    form = Form.open(opened)
    made = steps.check(opened, InterpretedEngines(opened, form), "fp32", 1e9, (1, 2), (20,), 2)
    tokens, timed = ([row for row in made if row["benchmark"] == kind] for kind in ("gpu tokens", "gpu step"))
    assert [(row["form"], row["equal"], row["tokens"]) for row in tokens] == [("engines", 4, 4)] * 3
    assert [row["rows"] for row in timed] == [1, 2] * 3 and {row["form"] for row in timed} == {"engines"}
    coarse, caches = opened.manifest.coarse, form.capacities["coarse"] * 2 * 4
    assert (timed[3]["mb_read"] - timed[2]["mb_read"]) * 1e6 == pytest.approx(caches * coarse.depth * coarse.cache_head_size, rel=0.02)


def test_patches_on_a_gpu(kernel_bundle, tmp_path, monkeypatch) -> None:
    """Fault: a way to patches that is timed but not looked at; what the GPU is left out of rows."""
    shutil.copytree(kernel_bundle, tmp_path / "bundle", ignore=shutil.ignore_patterns("kernels"))
    with_kernels(tmp_path / "bundle", monkeypatch)
    monkeypatch.setattr(kernels, "_TIMES", 1)
    opened, driver = Bundle.open(tmp_path / "bundle"), CudaDriver(tmp_path / "bundle")
    (row,) = kernels.time_patches(opened, driver, 0.05)
    assert row["form"] == "kernel" and row["us"] > 0 and row["error"] < 1e-5
    assert machine.describe(driver) == {"gpu": "Emulated GPU", "capability": 90}
    shown = [row | {"gpu": "Emulated GPU"}]
    assert "From a wave to MuLaN's patches" in as_text(shown, SECTIONS)
    monkeypatch.setattr(kernels, "patches_of", lambda *arguments: 2 * reference.patches(*arguments))
    with pytest.raises(RuntimeError, match=r"patches differ from the reference by 5\.0e-01 of the largest"):
        kernels.time_patches(opened, driver, 0.05)


def test_peers_on_a_device(tiny_bundle, tiny_models, monkeypatch) -> None:
    """Fault: a peer that computes something else than it is timed for; a row that does not say which peer it is."""
    monkeypatch.setattr(on_device, "DTYPES", {"fp16": torch.float32, "bf16": torch.float32})  # a CPU takes its time in 16 bits
    monkeypatch.setattr(torch, "compile", lambda model, **_: model)
    monkeypatch.setattr(peers, "bundle", lambda *_: tiny_bundle)
    monkeypatch.setattr(peers, "models", lambda *_: tiny_models)
    rows = peers.peers("tiny", 2, 20, 6, device="cpu")
    assert [(row["form"], row["precision"]) for row in rows] == [
        *(("compiled PyTorch", kind) for kind in ("fp16", "bf16")),
        ("audiolm-pytorch", "fp32"),
    ]
    assert all(row["step_us"] > 0 and row["rows"] == 2 for row in rows)
    case, conditioning = peers.case_of_peers(Bundle.open(tiny_bundle), 2, 20, 6)
    compiled = on_device.static_cache_tokens(tiny_models["coarse"].state_dict(), case, conditioning, torch.float32, "cpu", None)
    upstream = on_device.upstream_tokens(tiny_models["coarse"], case, conditioning, "cpu")
    for index in range(len(case.tokens)):
        ours, theirs = compiled(index), upstream(index)
        assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()


def test_the_picture(tmp_path) -> None:
    """Fault: a form that the picture has no colour for; a page that does not show it."""
    pytest.importorskip("matplotlib", reason="the picture needs the extra demo")
    about = {"benchmark": "gpu step", "stage": "coarse", "context": 20, "dim": 24, "depth": 2, "precision": "fp16"}
    about |= {"gpu": "a GPU", "machine": "m", "git": "g", "date": "2026-01-01T00", "command": "c", "load": None}
    forms = {"kernels": 0.01, "engines": 0.02, "compiled PyTorch": None, "audiolm-pytorch": None}
    rows = [about | {"form": form, "rows": n, "step_us": 70.0 * n, "ceiling_ms": least} for form, least in forms.items() for n in (1, 8)]
    draw_gpus(rows, tmp_path / "gpu.png")
    assert (tmp_path / "gpu.png").stat().st_size > 20_000
    page = markdown(rows, "results/results.png")
    assert "![A step on a GPU by rows](results/gpu.png)" in page and "audiolm-pytorch" in page
