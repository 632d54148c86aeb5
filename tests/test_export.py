"""The export as a whole: a bundle appears complete or not at all, whatever stops it, and never at the cost of what was there before."""

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import musiclm_deploy as md
from musiclm_deploy.export import export as exporting
from musiclm_deploy.export import towers
from musiclm_deploy.export import validate as validating
from musiclm_deploy.export.errors import ExportError
from musiclm_deploy.export.export import export_checkpoints
from musiclm_deploy.runtime.bundle import MANIFEST, Bundle, Manifest

CLI = [sys.executable, "-m", "musiclm_deploy.cli", "export", "--quiet"]


@pytest.fixture
def instant(monkeypatch, tiny_bundle) -> Callable[[Callable[[Path], object]], None]:
    """Make `export_checkpoints` write the tiny bundle at once instead of tracing it; `instant(edit)` also edits the new folder.

    What stands before the writing and after it, the validation included, is the real thing.
    """

    def write(edit: Callable[[Path], object]) -> None:
        def stages(sources, overrides, folder: Path, bar, quiet, kernels) -> Manifest:
            for path in tiny_bundle.iterdir():
                if path.name != MANIFEST:
                    shutil.copy(path, folder)
            edit(folder)
            manifest = replace(Bundle.open(tiny_bundle).manifest, errors={}, files=exporting.records_of(folder))
            (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
            return manifest

        monkeypatch.setattr(exporting, "write_stages", stages)

    write(lambda folder: None)
    return write


@pytest.fixture
def unvalidated(monkeypatch) -> None:
    monkeypatch.setattr(
        exporting, "validate_in_new_process", lambda *_: {"errors": {"fine": 1e-7}, "quality": {}, "narrow": {}, "fake_quantized": {}}
    )


def content(folder: Path) -> dict[str, bytes]:
    """Everything below a folder, hidden files too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def options(checkpoints: dict[str, Path]) -> list[str]:
    return [part for name, path in checkpoints.items() for part in (f"--{name}", str(path))]


# --- where it is written


@pytest.mark.parametrize("kind", ["bundle", "folder", "empty folder", "file", "broken link"])
def test_out_that_exists(tiny_checkpoints, tiny_bundle, tmp_path, kind):
    """Nothing that is there is written over, and the refusal comes before any work."""
    out = tmp_path / "out"
    if kind == "bundle":
        shutil.copytree(tiny_bundle, out)
    elif kind == "file":
        out.write_text("notes")
    elif kind == "broken link":
        out.symlink_to(tmp_path / "nowhere")
    else:
        out.mkdir()
        if kind == "folder":
            (out / "thesis.tex").write_text("years of work")
    before = content(tmp_path)
    with pytest.raises(ExportError) as caught:
        export_checkpoints(**tiny_checkpoints, out=out, quiet=True)
    assert str(caught.value) == f"{out} exists already; give another --out, or --overwrite to replace it."
    if kind != "bundle":
        with pytest.raises(ExportError) as caught:
            export_checkpoints(**tiny_checkpoints, out=out, overwrite=True, quiet=True)
        assert str(caught.value) == f"{out} exists already and is not a bundle."
    assert content(tmp_path) == before and os.path.lexists(out)


def test_parent_that_is_missing(tiny_checkpoints, tmp_path):
    """A folder is not made on a typing error."""
    with pytest.raises(ExportError, match="is not a directory; make it first"):
        export_checkpoints(**tiny_checkpoints, out=tmp_path / "no" / "bundle", quiet=True)
    assert not any(tmp_path.iterdir())


def test_overwrite(tiny_checkpoints, tiny_bundle, tmp_path, instant, unvalidated):
    """A bundle is replaced as a whole: nothing of the old one remains in the new one, or beside it."""
    out = tmp_path / "bundle"
    out.mkdir()
    (out / MANIFEST).write_text("an old one")
    (out / "cuda.plan").write_text("of the old weights")
    assert export_checkpoints(**tiny_checkpoints, out=out, overwrite=True, quiet=True) == out
    assert os.listdir(tmp_path) == ["bundle"]
    assert content(out).keys() == content(tiny_bundle).keys()
    assert Bundle.open(out).manifest.errors == {"fine": 1e-7}


def test_out_that_appears_meanwhile(tiny_checkpoints, tmp_path, instant, unvalidated):
    """An export takes minutes. What somebody put in its place by then is theirs, also with overwrite."""
    out = tmp_path / "bundle"

    def somebody(folder: Path) -> None:
        out.mkdir()
        (out / "thesis.tex").write_text("years of work")

    instant(somebody)
    with pytest.raises(ExportError, match="exists already and is not a bundle"):
        export_checkpoints(**tiny_checkpoints, out=out, overwrite=True, quiet=True)
    assert content(tmp_path) == {"bundle/thesis.tex": b"years of work"}


def test_rename_that_fails(tiny_checkpoints, tmp_path, instant, unvalidated, monkeypatch):
    """The moment between moving the old bundle away and the new one in: the old one is put back."""
    out = tmp_path / "bundle"
    out.mkdir()
    (out / MANIFEST).write_text("an old one")
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(ExportError, match=r"could not be written: .*Input/output error. Nothing was left behind"):
        export_checkpoints(**tiny_checkpoints, out=out, overwrite=True, quiet=True)
    assert content(tmp_path) == {f"bundle/{MANIFEST}": b"an old one"}


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_permissions(tiny_checkpoints, tmp_path, instant, unvalidated, mask):
    """Others read a bundle if the umask lets them, although temporary folders are private."""
    before = os.umask(mask)
    try:
        out = export_checkpoints(**tiny_checkpoints, out=tmp_path / "bundle", quiet=True)
    finally:
        os.umask(before)
    assert out.stat().st_mode & 0o777 == 0o777 & ~mask


def test_every_file_is_as_readable_as_the_next(tiny_bundle):
    """onnx writes weights for their owner alone: a bundle made by one user could not be opened by another."""
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in tiny_bundle.iterdir()}
    assert set(modes.values()) == {modes[MANIFEST]}, modes


def test_disk_without_the_folder(tiny_checkpoints, tmp_path):
    """The very first write fails, here by a name too long for the folder beside it: no other exception than ExportError."""
    with pytest.raises(ExportError, match=r"the bundle could not be written: .*File name too long"):
        export_checkpoints(**tiny_checkpoints, out=tmp_path / ("x" * 250), quiet=True)
    assert not any(tmp_path.iterdir())


# --- a full disk


@pytest.mark.parametrize("limit_kb", [50, 1000])
def test_full_disk(tiny_checkpoints, tmp_path, limit_kb):
    """Weights (50 kB), then a traced graph (1 MB) cannot be written: one sentence, no remains, and the old bundle untouched."""
    out = tmp_path / "bundle"
    out.mkdir()
    (out / MANIFEST).write_text("an old one")
    result = subprocess.run(
        [*CLI, *options(tiny_checkpoints), "--out", str(out), "--overwrite"],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit_kb * 1024, limit_kb * 1024)),
    )
    assert result.returncode == 1
    assert result.stderr == "musiclm: the bundle could not be written: [Errno 27] File too large. Nothing was left behind.\n"
    assert content(tmp_path) == {f"bundle/{MANIFEST}": b"an old one"}


def test_full_disk_at_the_tokenizer(tiny_checkpoints, tmp_path, monkeypatch):
    """The tokenizers library's own `save` raises a bare Exception for a full disk; written by Python it is an OSError like any other."""
    write = Path.write_text

    def full(path: Path, *arguments: Any, **named: Any) -> int:
        if path.name == "tokenizer.json":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write(path, *arguments, **named)

    monkeypatch.setattr(towers, "export_mulan_text", lambda *_: None)
    monkeypatch.setattr(towers, "export_mulan_audio", lambda *_: None)
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(ExportError, match=r"could not be written: .*No space left on device.*tokenizer\.json"):
        export_checkpoints(**tiny_checkpoints, out=tmp_path / "bundle", quiet=True)
    assert not any(tmp_path.iterdir())


# --- signals


def test_the_next_export_removes_what_a_killed_one_left(tiny_checkpoints, tiny_bundle, tmp_path, instant, unvalidated, caplog):
    """A kill, or the system out of memory, left a hidden folder as large as the bundle for ever, and the old bundle in it at worst."""
    out, killed = tmp_path / "bundle", tmp_path / ".bundle.partial-abcdefgh"
    shutil.copytree(tiny_bundle, killed / "older")
    with pytest.raises(ExportError, match="exists already; give another --out, or --overwrite to replace it"):
        export_checkpoints(**tiny_checkpoints, out=out, quiet=True)
    assert content(out) == content(tiny_bundle) and os.listdir(tmp_path) == ["bundle"]
    killed.mkdir()
    export_checkpoints(**tiny_checkpoints, out=out, overwrite=True, quiet=True)
    assert os.listdir(tmp_path) == ["bundle"] and f"{killed} is removed: a process that was killed had left it." in caplog.text


def start(checkpoints: dict[str, Path], out: Path, until: Callable[[subprocess.Popen], bool]) -> subprocess.Popen:
    """Start an export in a process of its own; return when it has come as far as `until` says, however long that takes."""
    process = subprocess.Popen([*CLI, *options(checkpoints), "--out", str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not until(process):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    return process


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def pipes(pid: int) -> dict[str, str]:
    """Return a process's pipes by the number of their open file; empty if the process has ended meanwhile."""
    found = {}
    with suppress(FileNotFoundError, ProcessLookupError):
        for file in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                if (target := os.readlink(file)).startswith("pipe:"):
                    found[file.name] = target
    return found


def waits_for(pid: int) -> list[int]:
    """Return the children whose standard input is complete: the process has closed its end of the pipe and waits for their output."""
    own = set(pipes(pid).values())
    inputs = {child: pipes(child).get("0") for child in children(pid)}
    return [child for child, pipe in inputs.items() if pipe and pipe not in own]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_signal_while_writing(tiny_checkpoints, tmp_path, number, status):
    """Ctrl-C, or the terminal closed, in the middle of an export leaves nothing."""
    process = start(tiny_checkpoints, tmp_path / "bundle", lambda _: any(tmp_path.glob(".bundle.partial-*/new/fine.onnx")))
    process.send_signal(number)
    errors = process.communicate()[1]
    assert process.returncode == status, errors
    assert "Traceback" not in errors
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(not Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").exists(), reason="the kernel lists no child processes")
def test_signal_while_validating(tiny_checkpoints, tmp_path):
    """The export is killed while it waits for its validation: that process ends as well, and nothing is left.

    A child exists before the export's own call that starts it has returned, and a signal in between finds nothing to end. So the test waits
    until the child has been given its task.
    """
    process = start(tiny_checkpoints, tmp_path / "bundle", lambda process: bool(waits_for(process.pid)))
    (validation,) = waits_for(process.pid)
    process.terminate()
    errors = process.communicate()[1]
    assert process.returncode == 143, errors
    with pytest.raises(ProcessLookupError):
        os.kill(validation, 0)
    assert errors == "" and not any(tmp_path.iterdir())


def test_handlers_of_the_caller(tiny_checkpoints, tmp_path, instant, unvalidated):
    """Within a larger program the program's own handlers stay, and the defaults come back afterwards."""
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append("mine"))
    try:
        instant(lambda folder: os.kill(os.getpid(), signal.SIGTERM))
        export_checkpoints(**tiny_checkpoints, out=tmp_path / "bundle", quiet=True)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == ["mine"] and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL


# --- the validation


def test_missed_tolerance(tiny_checkpoints, mel_file, tiny_bundle, monkeypatch):
    """No error is exactly 0: with that as the limit every stage is named with what was measured and what was allowed."""
    monkeypatch.setattr(validating, "TOLERANCES", dict.fromkeys(validating.TOLERANCES, 0.0))
    with pytest.raises(ExportError) as caught:
        validating.validate(tiny_bundle, {**tiny_checkpoints, "semantic-features": mel_file}, {}, {}, [])
    message = str(caught.value)
    assert message.startswith("the exported graphs differ from PyTorch:\n")
    for stage in ("mulan_text", "mulan_audio", "codec_stream", "semantic", "coarse", "fine"):
        assert f"  - {stage}: error " in message and "allowed 0e+00" in message


def test_wrong_weights_do_not_become_a_bundle(tiny_checkpoints, mel_file, tmp_path, instant):
    """A fault of the export, here a hundredth too much in one stage's weights, is found by the process that runs the new bundle."""

    def spoil(folder: Path) -> None:
        data = np.fromfile(folder / "fine.onnx.data", np.float32) * np.float32(1.01)
        (folder / "fine.onnx.data").unlink()
        data.tofile(folder / "fine.onnx.data")

    instant(spoil)
    with pytest.raises(ExportError) as caught:
        export_checkpoints(**tiny_checkpoints, semantic_features=mel_file, out=tmp_path / "bundle", quiet=True)
    lines = str(caught.value).splitlines()
    assert (lines[0], lines[-2]) == ("validation failed:", "the exported graphs differ from PyTorch:")
    assert lines[-1].startswith("  - fine: error ") and lines[-1].endswith("allowed 1e-04")
    assert not any(tmp_path.iterdir())


# --- a live model


def test_live_model(tiny_models, mel_kmeans, tiny_bundle, tmp_path):
    """`export_musiclm` of upstream's own object gives the graphs that its checkpoints give, and what only the object knows."""
    import audiolm_pytorch
    import musiclm_pytorch

    audio_lm = audiolm_pytorch.AudioLM(
        wav2vec=mel_kmeans,
        codec=tiny_models["codec"],
        semantic_transformer=tiny_models["semantic"],
        coarse_transformer=tiny_models["coarse"],
        fine_transformer=tiny_models["fine"],
        unique_consecutive=False,
    )
    live = musiclm_pytorch.MusicLM(audio_lm, tiny_models["quantizer"])
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    out = md.export_musiclm(live, tmp_path / "bundle", config={"semantic": {"max_length": 700}}, overwrite=True, quiet=True)

    assert os.listdir(tmp_path) == ["bundle"]
    found, expected = content(out), content(tiny_bundle)
    assert found.keys() == expected.keys()
    # the semantic window is part of the bias tables of semantic and coarse
    same = [name for name in expected if name != MANIFEST and not name.startswith(("semantic.", "coarse."))]
    assert [name for name in same if found[name] != expected[name]] == []
    ours, theirs = Bundle.open(out).manifest, Bundle.open(tiny_bundle).manifest
    assert (ours.unique_consecutive, ours.semantic.max_length) == (False, 700)
    assert (ours.fine, ours.codec, ours.mulan, ours.conditioner) == (theirs.fine, theirs.codec, theirs.mulan, theirs.conditioner)
    assert ours.settings["fine"]["add_value_residual"] == [True, "override"]
