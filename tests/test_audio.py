"""Waves in and out: resampling against torchaudio's, files against what another reader finds in them."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from musiclm_deploy.model.upstream import load_upstream
from musiclm_deploy.runtime.audio import resample, save_audio

load_upstream()
import torchaudio  # noqa: E402 (imports only after load_upstream)

FP32 = 1e-6  # waves in [-1, 1], kernels of up to 80 taps whose absolute values sum to less than 2: some ten roundings
ROOT = Path(__file__).resolve().parent.parent


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


def sine(samples: int, sample_hz: int, hz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hz / sample_hz * np.arange(samples))).astype(np.float32)


@pytest.mark.parametrize("rates", [(44100, 16000), (16000, 24000), (24000, 16000), (48000, 44100), (96000, 16000), (997, 1009), (3, 3)])
@pytest.mark.parametrize("shape", [(1,), (2,), (101,), (4799,), (2, 331), (1, 1)], ids=str)
def test_resample_is_torchaudios(rates: tuple[int, int], shape: tuple[int, ...]) -> None:
    """Fault: MuLaN hears another wave than in training; a length is off by one; the ends are treated otherwise; rows mix.

    Exact against torchaudio in float64. In float32 it rounds the kernel's arguments too, which costs it up to 1e-4 for rates with a small
    common divisor; ours stays within that of it.
    """
    wave = noise(*shape)
    exact = torchaudio.functional.resample(torch.from_numpy(wave).double(), *rates).numpy()
    out = resample(wave, *rates)
    assert out.dtype == np.float32 and out.shape == exact.shape
    np.testing.assert_allclose(out, exact, rtol=0, atol=FP32)
    np.testing.assert_allclose(out, torchaudio.functional.resample(torch.from_numpy(wave), *rates).numpy(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("rates", [(44100, 44101), (44101, 44100), (44056, 16001)])
def test_resample_between_rates_without_a_common_divisor(rates: tuple[int, int]) -> None:
    """Fault: memory for one kernel per output sample of a second, gigabytes here. A sine stays a sine: the filter passes it within 1e-3."""
    wave = sine(3001, rates[0])
    tracemalloc.start()
    out = resample(wave, *rates)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 1e6
    inner = slice(50, -50)  # beyond the ends the wave is taken as zero
    np.testing.assert_allclose(out[inner], sine(len(out), rates[1])[inner], rtol=0, atol=1e-3)


def test_resample_takes_memory_like_its_waves() -> None:
    """Fault: windows are copied for every output sample; half a minute then takes a gigabyte."""
    wave = noise(1, 30 * 44100)
    tracemalloc.start()
    out = resample(wave, 44100, 16000)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert out.shape == (1, 30 * 16000)
    assert peak_bytes < 2 * (wave.nbytes + out.nbytes)


def test_resample_at_its_limits() -> None:
    """Fault: an empty wave fails deep inside numpy, before anyone can say that it is too short; a rate of zero divides by zero."""
    assert resample(noise(2, 0), 3, 2).shape == (2, 0)
    for rates in ((0, 16000), (16000, 0), (-1, 16000)):
        with pytest.raises(ValueError, match=f"must be positive, got {rates[0]} and {rates[1]} Hz"):
            resample(noise(4), *rates)


# A sample is written as round(x * 32767) and read as n / 32768: half a step and, at full scale, one more. Vorbis is lossy.
@pytest.mark.parametrize(("name", "subtype", "atol"), [("a.wav", "PCM_16", 5e-5), ("a.FLAC", "PCM_16", 5e-5), ("a.ogg", "VORBIS", 0.05)])
@pytest.mark.parametrize("samples", [1, 24001, 70_001])
def test_files_hold_what_was_saved(tmp_path, name: str, subtype: str, atol: float, samples: int) -> None:
    """Fault: frames are lost or padded, the rate is another, the comment or its letters are gone, or a block is written twice."""
    comment = '{"prompt": "Ärger im Café, 日本の歌 🎹"}'
    audio = sine(samples, 24000)
    audio.setflags(write=False)
    save_audio(tmp_path / name, audio, 24000, comment)
    with soundfile.SoundFile(tmp_path / name) as file:
        assert (file.frames, file.samplerate, file.channels, file.subtype) == (samples, 24000, 1, subtype)
        assert file.comment == comment
        np.testing.assert_allclose(file.read(dtype="float32"), audio, rtol=0, atol=atol)
    assert os.listdir(tmp_path) == [name]


def test_a_long_comment_stands_in_a_wav(tmp_path) -> None:
    """Fault: a long prompt is cut. libsndfile writes it whole into a wav but reads only 2 KB back, hence the look at the bytes."""
    comment = "slow " * 1000
    save_audio(tmp_path / "a.wav", sine(99, 24000), 24000, comment)
    assert comment.encode() in (tmp_path / "a.wav").read_bytes()
    assert soundfile.info(tmp_path / "a.wav").frames == 99


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_a_small_stack_is_enough(tmp_path, suffix: str) -> None:
    """Fault: the process dies. Vorbis puts what one call writes on the stack: 90 s overflowed the main thread's, 3 s this one's."""
    code = """
import sys, threading
from pathlib import Path
import numpy as np
from musiclm_deploy.runtime.audio import save_audio
threading.stack_size(256 * 1024)
thread = threading.Thread(target=save_audio, args=(Path(sys.argv[1]), np.zeros(10 * 24000, np.float32), 24000, "quiet"))
thread.start()
thread.join()
"""
    path = tmp_path / f"a.{suffix}"
    done = subprocess.run([sys.executable, "-c", code, path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert soundfile.info(path).frames == 10 * 24000


def test_a_peak_above_full_scale_scales_the_clip(tmp_path, caplog) -> None:
    """Fault: loud music clips in silence, or every clip is made as loud as the loudest."""
    audio = sine(2401, 24000) * 4  # peak 2
    with caplog.at_level(logging.WARNING):
        save_audio(tmp_path / "loud.wav", audio, 24000, "x")
    assert [record.getMessage() for record in caplog.records] == [
        "loud.wav: the peak is 2.00, above full scale; the whole clip is scaled by 0.500 so that nothing clips."
    ]
    read, _ = soundfile.read(tmp_path / "loud.wav")
    np.testing.assert_allclose(read, audio / np.abs(audio).max(), rtol=0, atol=5e-5)

    caplog.clear()
    audio = np.array([1, -1, 0.25], np.float32)
    save_audio(tmp_path / "full.wav", audio, 24000, "x")
    read, _ = soundfile.read(tmp_path / "full.wav")
    np.testing.assert_allclose(read, audio, rtol=0, atol=5e-5)
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "bad", "message"),
    [
        ("a.mp3", 0.0, "cannot write a.mp3: the suffix must be one of .wav, .flac, .ogg."),
        ("a", 0.0, "cannot write a: the suffix must be one of"),
        ("a.wav", np.nan, "cannot write a.wav: the audio holds NaN or infinite samples."),
        ("a.ogg", -np.inf, "cannot write a.ogg: the audio holds NaN or infinite samples."),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, name: str, bad: float, message: str) -> None:
    """Fault: NaN becomes a file full of zeros or clicks; an unknown suffix becomes a file that nothing opens."""
    audio = noise(50)
    audio[30] = bad
    with pytest.raises(ValueError) as error:
        save_audio(tmp_path / name, audio, 24000, "x")
    assert str(error.value).startswith(message)
    assert not os.listdir(tmp_path)


def test_a_failed_write_leaves_everything_as_it_was(tmp_path) -> None:
    """Fault: half a file in place of the old one, or a temporary file left behind."""
    path = tmp_path / "a.wav"
    path.write_bytes(b"old")
    with pytest.raises(soundfile.LibsndfileError):
        save_audio(path, noise(50), 0, "a rate of zero")
    assert path.read_bytes() == b"old"
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(OSError):
        save_audio(tmp_path / "folder.wav", noise(50), 24000, "written aside, then not renamed")
    with pytest.raises(FileNotFoundError):
        save_audio(tmp_path / "missing" / "a.wav", noise(50), 24000, "x")
    assert sorted(os.listdir(tmp_path)) == ["a.wav", "folder.wav"]


def test_an_old_file_is_replaced_whole(tmp_path) -> None:
    """Fault: who is reading the old file meets the new bytes; or the new one keeps a temporary file's private mode."""
    path = tmp_path / ("長い名前" * 20 + "abc.wav")  # 247 bytes, of the 255 that a name may have
    path.write_bytes(b"old")
    umask = os.umask(0o027)
    try:
        with path.open("rb") as reader:
            save_audio(path, noise(50), 24000, "x")
            assert reader.read() == b"old"
    finally:
        os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o640
    assert soundfile.info(path).frames == 50
