"""`make demo` never costs the bundle that is there, and the pages about its checkpoint are about this one."""

import subprocess
import sys
import time
from pathlib import Path

from demo.losses import CHECKPOINT, alike
from demo.show import name_of, page
from musiclm_deploy.runtime.bundle import MANIFEST

DEMO = [sys.executable, str(Path(__file__).resolve().parent.parent / "demo" / "demo.py")]


def test_help(tmp_path) -> None:
    """Fault: `--help` deletes the bundle and starts an export; it waits for torch."""
    done = subprocess.run([*DEMO, "--help"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and "usage: demo/demo.py" in done.stdout and not any(tmp_path.iterdir())


def test_an_interrupted_run_leaves_the_old_bundle(tmp_path) -> None:
    """Fault: the old bundle is gone as soon as the new one is begun."""
    old = {tmp_path / "bundle" / MANIFEST: b"an old one", tmp_path / "demo1.wav": b"an old wave"}
    (tmp_path / "bundle").mkdir()
    for path, content in old.items():
        path.write_bytes(content)
    process = subprocess.Popen([*DEMO, "--out", str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    while not any(tmp_path.glob(".bundle.partial-*/new/*")):  # the first graph is written
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    subprocess.run(["kill", "-INT", "--", f"-{process.pid}"], check=True)  # as Ctrl-C: to the demo and to its export
    process.communicate()
    assert process.returncode != 0 and {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == old


def test_the_examples_are_of_this_checkpoint() -> None:
    """Fault: a page of sounds that another checkpoint made. Whether the sounds are its own, `.ci/run` compares on the bundle."""
    lines = (CHECKPOINT / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    name = name_of(line.split()[0] for line in lines if not line.endswith("config.json"))
    assert (CHECKPOINT.parent / "examples" / "README.md").read_text(encoding="utf-8") == page(name, 0)


def test_rows_of_losses_are_compared_by_their_numbers() -> None:
    """Fault: a loss that has changed passes as rounding, or rounding of another processor as a change."""
    old = "| int4 | 95.6 %, 8.9e-03 | 86.5 %, 4.5e-02 |"
    assert alike(old, old) and alike(old, "| int4 | 95.9 %, 9.5e-03 | 85.6 %, 4.2e-02 |")
    for other in (
        "| int8 | 95.6 %, 8.9e-03 | 86.5 %, 4.5e-02 |",
        "| int4 | 93.6 %, 8.9e-03 | 86.5 %, 4.5e-02 |",
        "| int4 | 95.6 %, 1.9e-02 | 86.5 %, 4.5e-02 |",
        "| int4 | 95.6 %, 8.9e-03 |",
    ):
        assert not alike(old, other), other
