"""`make demo` never costs the bundle that is there."""

import subprocess
import sys
import time
from pathlib import Path

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
