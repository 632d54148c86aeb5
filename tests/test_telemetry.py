"""ONNX Runtime reports nothing of its users, who were not asked."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# What ONNX Runtime writes, it writes beside the program, which may have ended before: this waits for it, half a minute at most.
WAIT = "import time; from pathlib import Path; [time.sleep(0.1) for _ in range(300) if not any(Path.home().rglob('deviceid'))]"
IMPORT = "from musiclm_deploy.runtime.ort import import_onnxruntime; import_onnxruntime().get_available_providers()"


def files_of_a_home(code: str, folder: Path, setting: str | None) -> list[str]:
    """Run the code with an empty folder as home and ORT_DISABLE_TELEMETRY as given; return the files that the folder holds then."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder)}  # nothing else: where CI is set, ONNX Runtime reports nothing anyway
    environment |= {} if setting is None else {"ORT_DISABLE_TELEMETRY": setting}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return [path.name for path in folder.rglob("*") if path.is_file()]


def test_off_by_default(tmp_path) -> None:
    """Fault: the import leaves a device id and a database of events in the user's home."""
    assert files_of_a_home(IMPORT, tmp_path, None) == []


@pytest.mark.skipif(sys.platform != "linux", reason="where ONNX Runtime keeps its device id is known for Linux")
def test_the_user_decides(tmp_path) -> None:
    """Fault: who asks for telemetry does not get it. It also shows that the test above looks where a device id would be."""
    assert "deviceid" in files_of_a_home(f"{IMPORT}; {WAIT}", tmp_path, "0")
