"""Sounds in files: what another reader finds in them, and what a format cannot hold."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support import ROOT

from musiclm_deploy.runtime.outputs import write_output
from musiclm_deploy.runtime.sound_files import FORMATS, check_sound, encode, format_of


def noise(samples: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, samples).astype(np.float32)


def sine(samples: int, sample_hz: int, hz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hz / sample_hz * np.arange(samples))).astype(np.float32)


def save(path: Path, audio: np.ndarray, sample_hz: int, comment: str) -> None:
    write_output(path, encode(path, format_of(path), audio, sample_hz, comment))


# A sample is written as round(x * 32767) and read as n / 32768: half a step and, at full scale, one more. The others are lossy.
@pytest.mark.parametrize(
    ("name", "subtype", "atol"),
    [
        ("a.wav", "PCM_16", 5e-5),
        ("a.FLAC", "PCM_16", 5e-5),
        ("a.ogg", "VORBIS", 0.05),
        ("a.opus", "OPUS", 0.1),
        ("a.mp3", "MPEG_LAYER_III", 0.1),
    ],
)
@pytest.mark.parametrize("samples", [1, 24001, 70_001])
def test_files_hold_what_was_saved(tmp_path, name: str, subtype: str, atol: float, samples: int) -> None:
    """Fault: frames are lost or padded, the rate is another, the comment or its letters are gone, or a block is written twice."""
    comment = '{"prompt": "Arger im Cafe"}' if FORMATS[Path(name).suffix.lower()].ascii_only else '{"prompt": "Ärger im Café, 日本の歌 🎹"}'
    audio = sine(samples, 24000)
    audio.setflags(write=False)
    save(tmp_path / name, audio, 24000, comment)
    with soundfile.SoundFile(tmp_path / name) as file:
        assert (file.frames, file.samplerate, file.channels, file.subtype) == (samples, 24000, 1, subtype)
        assert file.comment == comment
        exact = slice(None) if subtype != "OPUS" else slice(-240)  # libsndfile distorts the last 5 ms of an opus file
        np.testing.assert_allclose(file.read(dtype="float32")[exact], audio[exact], rtol=0, atol=atol)
    assert os.listdir(tmp_path) == [name]


def test_a_long_comment_stands_in_a_wav(tmp_path) -> None:
    """Fault: a long prompt is cut. libsndfile writes it whole into a wav but reads only 2 KB back, hence the look at the bytes."""
    comment = "slow " * 1000
    save(tmp_path / "a.wav", sine(99, 24000), 24000, comment)
    assert comment.encode() in (tmp_path / "a.wav").read_bytes()
    assert soundfile.info(tmp_path / "a.wav").frames == 99


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_small_stack_is_enough(tmp_path, suffix: str) -> None:
    """Fault: the process dies. Vorbis puts what one call writes on the stack: 90 s overflowed the main thread's, 3 s this one's."""
    code = """
import sys, threading
from pathlib import Path
import numpy as np
from musiclm_deploy.runtime.sound_files import encode, format_of
threading.stack_size(256 * 1024)
path, quiet = Path(sys.argv[1]), np.zeros(10 * 24000, np.float32)
thread = threading.Thread(target=lambda: path.write_bytes(encode(path, format_of(path), quiet, 24000, "quiet")))
thread.start()
thread.join()
"""
    path = tmp_path / f"a{suffix}"
    done = subprocess.run([sys.executable, "-c", code, path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert soundfile.info(path).frames == 10 * 24000


def test_a_peak_above_full_scale_scales_the_clip(tmp_path, caplog) -> None:
    """Fault: loud music clips in silence, or every clip is made as loud as the loudest."""
    audio = sine(2401, 24000) * 4  # peak 2
    with caplog.at_level(logging.WARNING):
        save(tmp_path / "loud.wav", audio, 24000, "x")
    assert [record.getMessage() for record in caplog.records] == [
        "loud.wav: the peak is 2.00, above full scale; the whole clip is scaled by 0.500 so that nothing clips."
    ]
    read, _ = soundfile.read(tmp_path / "loud.wav")
    np.testing.assert_allclose(read, audio / np.abs(audio).max(), rtol=0, atol=5e-5)

    caplog.clear()
    audio = np.array([1, -1, 0.25], np.float32)
    save(tmp_path / "full.wav", audio, 24000, "x")
    read, _ = soundfile.read(tmp_path / "full.wav")
    np.testing.assert_allclose(read, audio, rtol=0, atol=5e-5)
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "bad", "message"),
    [
        ("a.aac", 0.0, "the suffix must be .wav, .flac, .ogg, .opus or .mp3, got .aac."),
        ("a", 0.0, "the suffix must be .wav, .flac, .ogg, .opus or .mp3, got none."),
        ("a.wav", np.nan, "the audio holds NaN or infinite samples."),
        ("a.ogg", -np.inf, "the audio holds NaN or infinite samples."),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, name: str, bad: float, message: str) -> None:
    """Fault: NaN becomes a file full of zeros or clicks; an unknown suffix becomes a file that nothing opens."""
    audio = noise(50)
    audio[30] = bad
    with pytest.raises(ValueError) as error:
        save(tmp_path / name, audio, 24000, "x")
    assert str(error.value) == f"cannot write {tmp_path / name}: {message}"
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_rate_that_a_format_is_said_to_take_is_written(suffix: str) -> None:
    """Fault: a rate is refused that the format has, or one is passed on that libsndfile refuses, or that ends the process (Vorbis)."""
    form, path, audio = FORMATS[suffix], Path(f"a{suffix}"), sine(4800, 24000)
    taken = []
    for hz in (1, 8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 65535, 88200, 96001, 200_000, 200_001, 655_350, 1_000_000):
        if not form.takes(hz):
            with pytest.raises(ValueError, match=f"got {hz} Hz. Ask for another rate with --sample-rate"):
                check_sound(path, form, hz, 1)
            continue
        taken.append(hz)
        with soundfile.SoundFile(io.BytesIO(encode(path, form, audio, hz, "x"))) as file:
            assert (file.frames, file.samplerate) == (4800, hz)
    assert {8000, 12000, 16000, 24000, 48000} <= set(taken)
    for hz in {".opus": (44100, 96000), ".mp3": (96000,)}.get(suffix, ()):  # libsndfile itself says what these two take
        with pytest.raises(soundfile.LibsndfileError, match="only supports sample rates of"):
            soundfile.SoundFile(io.BytesIO(), "w", hz, 1, format=form.name, subtype=form.subtype)


def test_a_wav_has_32_bits_for_its_length() -> None:
    """Fault: half a day of music is computed for a file whose header says something else."""
    with pytest.raises(ValueError, match=r"cannot write a\.wav: 3000000000 samples are more than the 4 GB of a WAV\. Write \.flac"):
        check_sound(Path("a.wav"), FORMATS[".wav"], 48000, 3_000_000_000)
    check_sound(Path("a.flac"), FORMATS[".flac"], 48000, 3_000_000_000)


def test_a_format_that_libsndfile_is_without() -> None:
    """Fault: an older libsndfile, without MP3, fails when the music is done."""
    with pytest.raises(ValueError, match=r"cannot write a\.mp3: libsndfile .* here is without MP4\. Write another format\."):
        check_sound(Path("a.mp3"), replace(FORMATS[".mp3"], name="MP4"), 24000, 1)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_comment_is_whole_or_left_out(suffix: str, caplog: pytest.LogCaptureFixture) -> None:
    """Fault: libsndfile drops a comment of 40 kB from a wav in silence, and writes opus with one that nothing opens."""
    path, audio = Path(f"a{suffix}"), sine(2400, 24000)
    for size, kept in ((30_000, True), (30_001, False)):
        caplog.clear()
        made = bytes(encode(path, FORMATS[suffix], audio, 24000, "x" * size))
        assert soundfile.info(io.BytesIO(made)).frames == 2400
        assert (made.count(b"x") > 25_000) is kept and bool(caplog.records) is not kept
    assert "the file does not say how it was made" in caplog.text


def test_a_pipe_or_a_device_without_a_suffix_takes_a_wav(tmp_path) -> None:
    """Fault: /dev/null and a named pipe are refused for their names, or take a format that cannot be told from outside."""
    os.mkfifo(tmp_path / "pipe")
    assert format_of(tmp_path / "pipe") == format_of(Path("/dev/null")) == FORMATS[".wav"]
    os.mkfifo(tmp_path / "pipe.mp3")
    assert format_of(tmp_path / "pipe.mp3") == FORMATS[".mp3"]
