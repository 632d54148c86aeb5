"""docs/training.md is true: its scripts run one after another, as they stand, from a folder of made clips to a wave.

Only numbers are lowered: of steps, and with them the names of checkpoints, of clips in a batch, of widths and layers.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support import ROOT
from support.clap import clap_folder
from support.pages import shortened

from musiclm_deploy.runtime.bundle import Bundle

FORKED = ROOT / "tests" / "support" / "forked.py"


def scripts() -> dict[str, str]:
    """{file name: its code}, in the order of the page."""
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    found = dict(re.findall(r"\*\*`(\w+\.py)`\*\*\n\n```python\n(.*?)```", page, re.DOTALL))
    assert len(found) == page.count("```python") == 10
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Forty clips of two notes each, of five seconds and a half, with captions; and the scripts beside them."""
    folder = tmp_path_factory.mktemp("training")
    (folder / "clips").mkdir()
    rng = np.random.default_rng(0)
    time, rows = np.arange(88000) / 16000, ["file_name,text"]
    for clip in range(40):
        low, high = 110 * 2 ** (rng.integers(0, 36, 2) / 12)
        wave = np.where(time < 2.5, np.sin(2 * np.pi * low * time), np.sin(2 * np.pi * high * time)) * 0.4 + rng.normal(size=88000) * 0.01
        soundfile.write(folder / "clips" / f"{clip}.wav", wave, 16000)
        rows.append(f"{clip}.wav,a note of {low:.0f} and one of {high:.0f} hertz")
    (folder / "clips" / "metadata.csv").write_text("\n".join(rows) + "\n")
    for name, code in scripts().items():
        (folder / name).write_text(shortened(code), encoding="utf-8")
    return folder


def run_scripts(folder: Path, names: list[str]) -> None:
    """Run scripts one after another; the last one writes a wave of a second."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled"}
    done = subprocess.run([sys.executable, "-P", FORKED, *names], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    wave, hz = soundfile.read(folder / "out.wav")
    assert (len(wave), hz) == (16000, 16000) and np.abs(wave).max() > 0


def test_the_page_runs_from_clips_to_a_wave(folder: Path) -> None:
    """A call, a file name or an argument on the page that is wrong; a piece of the path that does not fit the next."""
    run_scripts(folder, [name for name in scripts() if name not in ("sizes.py", "sizes_clap.py", "fit_clap.py")])
    assert (folder / "results" / "mulan" / "metrics.csv").read_text().count("\n") == 2


def test_the_page_runs_with_clap(folder: Path, tmp_path: Path) -> None:
    """Fault: towers of a CLAP that the quantizer, a trainer of audiolm-pytorch, MusicLM or the export does not take as it takes MuLaN."""
    for path in folder.iterdir():
        if path.suffix == ".py":
            shutil.copy(path, tmp_path)
    (tmp_path / "clips").symlink_to(folder / "clips")
    codec, left_out = folder / "results" / "codec", ["sizes.py", "sizes_clap.py", "train_mulan.py", "fit.py", "fit_clap.py"]
    if codec.is_dir():  # of the test above, and nothing of a codec depends on the towers
        shutil.copytree(codec, tmp_path / "results" / "codec")
        left_out.append("train_codec.py")
    (tmp_path / "results").mkdir(exist_ok=True)
    clap_folder(tmp_path / "clap")
    with (tmp_path / "sizes.py").open("a", encoding="utf-8") as file:
        file.write("\n\n" + scripts()["sizes_clap.py"])
    run_scripts(tmp_path, ["fit_clap.py", *(name for name in scripts() if name not in left_out)])
    record = Bundle.open(tmp_path / "bundle").manifest.mulan
    assert (record.sample_hz, record.dim_latent, record.tokenizer_from_file) == (48000, 32, True)
