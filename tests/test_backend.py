"""The choice of a device: what is missing is named, and nothing is replaced silently."""

import importlib.metadata
import importlib.util
import subprocess
import sys

import pytest

from musiclm_deploy.runtime import backend


def _install(monkeypatch, *distributions: str) -> None:
    """Let exactly these ONNX Runtime distributions be installed, for the questions that `choose_device` asks."""

    def distribution(name: str):
        if name not in distributions:
            raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", distribution)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if distributions else None)


def test_no_runtime_installed(monkeypatch) -> None:
    """Fault: a ModuleNotFoundError instead of what to install."""
    _install(monkeypatch)
    with pytest.raises(
        backend.BackendError,
        match=r"ONNX Runtime is not installed\. Install one: pip install '\.\[cpu\]' in .*; .* pip install '\.\[gpu\]'",
    ):
        backend.choose_device("auto")


def test_both_runtimes_installed(monkeypatch) -> None:
    """Fault: two distributions that overwrite each other's files, and a provider that is missing by chance."""
    _install(monkeypatch, "onnxruntime", "onnxruntime-gpu")
    with pytest.raises(backend.BackendError, match="onnxruntime and onnxruntime-gpu are both installed"):
        backend.choose_device("cpu")


@pytest.mark.parametrize("distribution", ["onnxruntime", "onnxruntime-gpu"])
def test_one_runtime_installed(monkeypatch, distribution: str) -> None:
    """Fault: a CPU device that only one of the two distributions gives."""
    _install(monkeypatch, distribution)
    assert backend.choose_device("auto") == backend.choose_device("cpu") == "cpu"
    assert backend.choose_device("tensorrt") == "tensorrt"
    with pytest.raises(backend.BackendError, match=r"ONNX Runtime is for CPUs alone. Uninstall onnxruntime, then pip install '\.\[gpu\]'"):
        backend.choose_device("cuda")


def test_without_a_runtime_load_still_imports() -> None:
    """Fault: onnxruntime imported at the top of a module, so that the sentence above is never reached."""
    code = "import sys; sys.modules['onnxruntime'] = None; import musiclm_deploy; print(musiclm_deploy.load.__name__)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "load\n", result.stderr


def test_export_without_torch_names_the_extra() -> None:
    """Fault: `No module named 'torch'` for someone who installed the package to generate."""
    code = "import sys; sys.modules['torch'] = None; import musiclm_deploy as md; md.export_checkpoints"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "export_checkpoints needs the package torch, which is not installed: pip install '.[cpu,export,train]' in " in result.stderr
