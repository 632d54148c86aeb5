"""Wavs that grow while their music is made, and `musiclm generate --stream`, which writes them."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from musiclm_deploy.cli import main
from musiclm_deploy.runtime.growing import GrowingWav
from musiclm_deploy.runtime.music import Candidate, Music, Tokens
from musiclm_deploy.runtime.provenance_file import read_record

WAVE = (np.random.default_rng(0).standard_normal(5000) * 0.2).astype(np.float32)


def test_it_is_a_wav_after_every_chunk(tmp_path: Path) -> None:
    """Fault: a player that opens the file while it grows finds lengths of nothing, or of what is not there yet."""
    path = tmp_path / "grows.wav"
    wav = GrowingWav(path, 16_000, {"prompt": "é 日本", "seed": 3})
    assert not path.exists(), "nothing has been made"
    for stop in (1, 1601, 5000):
        wav.append(WAVE[soundfile.info(path).frames if path.exists() else 0 : stop])
        found, hz = soundfile.read(path, dtype="int16")
        assert hz == 16_000 and len(found) == stop
        assert struct.unpack("<I", path.read_bytes()[4:8])[0] == path.stat().st_size - 8
    wav.close()
    assert wav.seconds == 5000 / 16_000


def test_it_has_the_samples_of_a_file_written_whole(tmp_path: Path) -> None:
    """Fault: the same music as two files whose samples differ in the last bit, the loudest ones included."""
    wave = np.concatenate([WAVE, [1.0, -1.0, 0.99999, -0.99999, 0.5, 2**-16, -(2**-16)]]).astype(np.float32)
    music = Music("x", 0, 16_000, [Candidate(wave, Tokens(np.zeros(0, np.int64)), None)], 0, {}, "0" * 64)
    music.save(tmp_path / "whole.wav")
    wav = GrowingWav(tmp_path / "grown.wav", 16_000, {})
    for part in np.split(wave, [7, 3000]):
        wav.append(part)
    wav.close()
    whole, grown = (soundfile.read(tmp_path / f"{name}.wav", dtype="int16")[0] for name in ("whole", "grown"))
    np.testing.assert_array_equal(grown, whole)


def test_beyond_full_scale(tmp_path: Path, caplog) -> None:
    """Fault: samples that wrap around, or are cut off without a word."""
    wav = GrowingWav(tmp_path / "loud.wav", 16_000, {})
    wav.append(np.array([0.5, 1.5, -3.0], np.float32))
    wav.close()
    np.testing.assert_array_equal(soundfile.read(tmp_path / "loud.wav", dtype="int16")[0], [16384, 32767, -32768])
    assert "2 samples were beyond full scale" in caplog.text


def test_a_path_that_cannot_be_written(tmp_path: Path) -> None:
    """Fault: the system's error number in place of a sentence with the path."""
    wav = GrowingWav(tmp_path / "no" / "x.wav", 16_000, {})
    with pytest.raises(OSError, match=r"cannot write .*no/x\.wav: no file can be made in its folder"):
        wav.append(WAVE)
    wav.close()


def test_the_command_line(tiny_bundle: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """Fault: a streamed clip is other music than a generated one; its file does not say how it was made; tokens that go on elsewhere."""
    monkeypatch.chdir(tmp_path)
    request = [str(tiny_bundle), "calm piano", "--seconds", "0.7", "--seed", "5"]
    assert main(["generate", *request, "--stream", "-o", "s.wav", "--save-tokens", "s.npz"]) == 0
    said = capsys.readouterr()
    assert "s.wav: 0.7 s at 16000 Hz, seed 5\n" in said.out and "0 gaps in playing" in said.out and "first audio after " in said.err
    assert main(["generate", *request, "-o", "g.wav"]) == 0
    grown, written = (soundfile.read(f"{name}.wav", dtype="int16")[0] for name in "sg")
    np.testing.assert_array_equal(grown, written)
    streamed, whole = read_record("s.wav"), read_record("g.wav")
    assert streamed == whole
    capsys.readouterr()
    assert main(["generate", str(tiny_bundle), "--again", "s.wav"]) == 0
    assert "the same samples as in s.wav, bit for bit" in capsys.readouterr().out
    assert main(["generate", *request, "--stream", "--json", "-o", "j.wav"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["files"] == ["j.wav"] and made["seconds"] == 0.7 and made["timings"]["first_audio"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num-samples", "2"], "does not go with --num-samples"),
        (["--normalize", "-14"], "does not go with --normalize"),
        (["--sample-rate", "8000", "--all"], "does not go with --all, --sample-rate"),
        (["--compat", "upstream"], "does not go with --compat"),
        (["-o", "x.flac"], "--stream writes a .wav, got x.flac"),
    ],
)
def test_options_that_need_the_whole_clip(options: list[str], message: str, capsys) -> None:
    """Fault: an option that is ignored because the clip is streamed."""
    with pytest.raises(SystemExit) as ended:
        main(["generate", "BUNDLE", "calm", "--stream", *options])
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_to_a_pipe_until_it_is_interrupted(tiny_bundle: Path, tmp_path: Path) -> None:
    """Fault: music without end that cannot be ended, or is lost when it is; a pipe that gets nothing until all is done."""
    command = [sys.executable, "-m", "musiclm_deploy", "generate", str(tiny_bundle), "x", "--stream", "--seconds", "inf", "-o", "-"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert process.stdout is not None and process.stderr is not None
    head = process.stdout.read(12)
    assert head == b"RIFF\xff\xff\xff\xffWAVE"
    assert len(process.stdout.read(100_000)) == 100_000, "three seconds of sound"
    errors: list[Any] = []
    reader = threading.Thread(target=lambda: errors.append(process.communicate(timeout=60)))
    process.send_signal(signal.SIGINT)
    reader.start()
    reader.join()
    assert process.returncode == 0, errors
    assert b"gaps in playing" in errors[0][1]


def test_a_file_is_replaced_when_there_is_something_to_write(tiny_bundle: Path, tmp_path: Path) -> None:
    """Fault: the old file is gone though the request was refused."""
    path = tmp_path / "old.wav"
    path.write_bytes(b"old")
    started = time.monotonic()
    assert main(["generate", str(tiny_bundle), "x", "--stream", "--seconds", "-1", "-o", str(path)]) == 1
    assert path.read_bytes() == b"old" and time.monotonic() - started < 60
