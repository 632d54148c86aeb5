"""`musiclm serve` and what nobody thought of: every route by its description, and files that are nearly sounds."""

from __future__ import annotations

import io
import random
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support import ROOT
from support.server import serving

from musiclm_deploy.serve.asked import read_upload
from musiclm_deploy.serve.errors import Refusal
from musiclm_deploy.serve.settings import Limits

SCHEMATHESIS = shutil.which("schemathesis", path=str(Path(sys.executable).parent))
KINDS = [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAV", "IMA_ADPCM"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS")]
KINDS += [("MP3", "MPEG_LAYER_III"), ("AIFF", "PCM_16"), ("CAF", "ALAC_16"), ("RF64", "PCM_16")]


@pytest.mark.skipif(SCHEMATHESIS is None, reason="schemathesis, of the extra dev, is not installed")
def test_the_interface_is_as_described(tiny_bundle: Path, tmp_path: Path) -> None:
    """Fault: a fault of the server, an answer that is not described, a field that is taken and should not be, or the other way round."""
    with serving(tmp_path, tiny_bundle, "--max-seconds", "0.5") as server:
        command = [SCHEMATHESIS, "--config-file", ROOT / "tests" / "schemathesis.toml", "run", f"{server.url}/openapi.json"]
        done = subprocess.run(
            [*command, "--max-examples", "10", "--workers", "1", "--seed", "1"], capture_output=True, text=True, cwd=tmp_path
        )
        assert done.returncode == 0, done.stdout[-5000:]
        assert server.stop() == 0 and "Traceback" not in server.log.read_text(encoding="utf-8")


def mutants(count: int) -> list[bytes]:
    """Return sounds of many formats with some bytes changed, cut off, or put in."""
    rng, wave = random.Random(0), np.random.default_rng(0).uniform(-0.2, 0.2, 8000).astype(np.float32)
    sounds = []
    for form, subtype in KINDS:
        file = io.BytesIO()
        soundfile.write(file, wave, 16000, format=form, subtype=subtype)
        sounds.append(file.getvalue())
    made = []
    for number in range(count):
        data = bytearray(sounds[number % len(sounds)])
        for _ in range(rng.choice((1, 2, 4, 16))):
            at = rng.randrange(min(len(data), 200)) if rng.random() < 0.6 else rng.randrange(len(data))
            change = rng.random()
            if change < 0.7:
                data[at] = rng.choice((0, 255, 127, 128, rng.randrange(256)))
            elif change < 0.85:
                data = data[: at + 1]
            else:
                data[at:at] = rng.randbytes(4)
        made.append(bytes(data))
    return made


def read_all(count: int) -> None:
    """Read mutants as uploads, in a process of its own: libsndfile writes about them on standard error, and might crash."""
    limits, taken = Limits(upload_seconds=5), 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for data in mutants(count):
        try:
            wave, hz = read_upload(data, limits, "audio")
        except Refusal as refusal:
            assert refusal.status in (400, 413)
        else:
            taken += 1
            assert len(wave) <= 5 * hz and np.isfinite(wave).all()
    assert 0.1 * count < taken < 0.9 * count, taken
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 100, f"{grown} MB"


def test_files_that_are_nearly_sounds() -> None:
    """Fault: an upload that ends the server, that takes its memory, or that is refused as the server's fault."""
    command = [sys.executable, "-c", "import sys; sys.path[:0] = sys.argv[1:]; import test_serve_fuzz; test_serve_fuzz.read_all(2000)"]
    done = subprocess.run([*command, str(ROOT / "tests"), str(ROOT)], capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stderr[-2000:]
