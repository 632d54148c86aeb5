"""A sound as callers have it: every form is the same samples, and what is no sound is refused in words that show the forms."""

import array
import io
import itertools
import logging
import os
from collections import UserDict, deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from musiclm_deploy.runtime.sounds import Sound, is_sound, read_sound, read_sounds

HZ = 16000
LEFT = (0.5 * np.sin(np.arange(400) / 8)).astype(np.float32)
RIGHT = (0.3 * np.cos(np.arange(400) / 3)).astype(np.float32)
BOTH = np.stack([LEFT, RIGHT])
MONO = BOTH.mean(axis=0)
INT16 = np.round(LEFT * 32767).astype(np.int16)
FORMS = "A sound is a path, (wave, rate in Hz) with a wave of [t], [t, channels] or [channels, t] samples, or a dict with"


class Samples:
    """Like torchcodec's AudioSamples."""

    data, sample_rate = torch.from_numpy(BOTH), HZ


class Decoder:
    """Like torchcodec's AudioDecoder, which Hugging Face's datasets give."""

    def get_all_samples(self) -> Samples:
        return Samples()


class Elsewhere:
    """Like an array of JAX: numpy has to ask for it."""

    shape = LEFT.shape

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return LEFT


@pytest.mark.parametrize(
    ("sound", "expected"),
    [
        ((LEFT, HZ), LEFT),
        ((HZ, LEFT), LEFT),  # scipy.io.wavfile.read
        ([LEFT, HZ], LEFT),
        ((LEFT, 16000.0), LEFT),
        ((LEFT, np.int64(HZ)), LEFT),
        ((LEFT, np.array(HZ)), LEFT),
        ((LEFT, torch.tensor(HZ)), LEFT),
        ((LEFT[None], HZ), LEFT),  # torchaudio.load
        ((LEFT[:, None], HZ), LEFT),
        ((BOTH, HZ), MONO),
        ((BOTH.T, HZ), MONO),  # soundfile.read
        ((HZ, BOTH.T), MONO),
        (([LEFT, RIGHT], HZ), MONO),
        ((np.repeat(LEFT[:, None], 8, axis=1), HZ), LEFT),
        ((LEFT.tolist(), HZ), LEFT),
        ((BOTH.tolist(), HZ), MONO),
        ((LEFT.astype(np.float64), HZ), LEFT),
        ((LEFT.astype(">f8"), HZ), LEFT),
        ((LEFT.astype(np.float16), HZ), LEFT.astype(np.float16)),
        ((np.repeat(LEFT, 2)[::2], HZ), LEFT),
        ((np.frombuffer(LEFT.tobytes(), np.float32), HZ), LEFT),  # cannot be written to
        ((np.ma.array(LEFT), HZ), LEFT),
        ((Elsewhere(), HZ), LEFT),
        ((torch.from_numpy(LEFT).requires_grad_(), HZ), LEFT),
        ((torch.nn.Parameter(torch.from_numpy(BOTH)), HZ), MONO),
        ((torch.from_numpy(LEFT).bfloat16(), HZ), torch.from_numpy(LEFT).bfloat16().float().numpy()),
        ((torch.from_numpy(INT16), HZ), INT16 / 32768),
        ((INT16, HZ), INT16 / 32768),
        ((INT16.astype(">i2"), HZ), INT16 / 32768),
        ((array.array("h", INT16.tolist()), HZ), INT16 / 32768),
        ((INT16.data, HZ), INT16 / 32768),
        ((np.stack([INT16, INT16], axis=1), HZ), INT16 / 32768),
        ((np.array([-128, 0, 64], np.int8), HZ), [-1, 0, 0.5]),
        ((np.array([0, 128, 192], np.uint8), HZ), [-1, 0, 0.5]),
        ((np.array([0, 1 << 15, 3 << 14], np.uint16), HZ), [-1, 0, 0.5]),
        ((np.array([-(1 << 31), 0, 1 << 30], np.int32), HZ), [-1, 0, 0.5]),
        ({"array": LEFT, "sampling_rate": HZ}, LEFT),
        ({"path": "gone.wav", "array": BOTH, "sampling_rate": HZ}, MONO),
        (UserDict({"array": LEFT, "sampling_rate": HZ}), LEFT),
        ({"raw": LEFT, "sampling_rate": HZ}, LEFT),  # input of transformers' pipelines
        ({"audio": LEFT[None], "sampling_rate": HZ}, LEFT),  # their output
        ({"waveform": torch.from_numpy(BOTH), "sample_rate": HZ}, MONO),  # pyannote
        (Samples(), MONO),
        (Decoder(), MONO),
    ],
)
def test_every_form_is_the_same_sound(sound: Any, expected: Any) -> None:
    """Fault: integers taken for floats, channels for samples, a rate for a wave; a form that one library has and another method refuses."""
    assert is_sound(sound)
    wave, hz = read_sound(sound)
    assert (hz, type(hz), wave.dtype) == (HZ, int, np.float32)
    np.testing.assert_allclose(wave, expected, rtol=0, atol=1e-7)


def test_files(tmp_path: Path) -> None:
    """Fault: a path, its bytes and an open file that are not the file's sound, or integers that are scaled otherwise than in a file."""
    path = tmp_path / "both.wav"
    soundfile.write(path, BOTH.T, HZ, subtype="FLOAT")
    data = path.read_bytes()
    undecoded = [{"bytes": data, "path": None}, {"bytes": None, "path": str(path)}]
    with path.open("rb") as file:
        for sound in (path, str(path), np.str_(path), data, bytearray(data), io.BytesIO(data), file, *undecoded):
            wave, hz = read_sound(sound)
            np.testing.assert_allclose(wave, MONO, rtol=0, atol=1e-7)
            assert hz == HZ
    for subtype in ("PCM_16", "PCM_U8"):
        soundfile.write(path, LEFT, HZ, subtype=subtype)
        stored = np.frombuffer(path.read_bytes()[-400 * (2 if subtype == "PCM_16" else 1) :], np.int16 if subtype == "PCM_16" else np.uint8)
        np.testing.assert_array_equal(read_sound((stored, HZ)).wave, read_sound(path).wave)


@pytest.mark.parametrize(
    ("sound", "message"),
    [
        (None, "got None in place of a sound"),
        (5, "got int in place of a sound"),
        (print, "got builtin_function_or_method in place of a sound"),
        (LEFT, "a wave alone has no rate"),
        (BOTH, "a wave alone has no rate"),
        (torch.from_numpy(LEFT), "a wave alone has no rate"),
        (LEFT.tolist(), "a wave alone has no rate"),
        ((LEFT, HZ, "a"), "got tuple in place of a sound"),
        ((LEFT, RIGHT), "got tuple in place of a sound"),
        ((LEFT[None, None], HZ), r"a wave of shape \[1, 1, 400\] is not one sound"),
        ((np.zeros((2, 5)), HZ), r"a wave of shape \[2, 5\] is not one sound"),  # channels of five, or five samples?
        ((np.zeros((16, 900)), HZ), r"a wave of shape \[16, 900\] is not one sound of at most 8 channels"),
        ((LEFT > 0, HZ), "the samples of a sound cannot be bool"),
        ((LEFT + 0j, HZ), "cannot be complex64"),
        ((np.array(["a"]), HZ), "cannot be <U1"),
        ((LEFT.astype(object), HZ), "cannot be object"),
        ((INT16.astype(np.int64), HZ), "cannot be int64: 64 bits have no full scale"),
        (([100, -100, 3], HZ), "cannot be int64: 64 bits have no full scale"),
        (("a.wav", HZ), "a sound file has a rate of its own: give it alone"),
        ((INT16.tobytes(), HZ), "bytes do not tell the type of their samples"),
        ((bytearray(INT16.tobytes()), HZ), "bytes do not tell the type of their samples"),
        ({"array": memoryview(INT16.tobytes()), "sampling_rate": HZ}, "bytes do not tell the type of their samples"),
        ("", "got an empty path in place of a sound"),
        ({"a": 1}, r"a dict with the keys \['a'\] is no sound"),
        ({"array": LEFT}, r"a dict with the keys \['array'\] is no sound"),
        ({"bytes": None, "path": None}, r"a dict with the keys \['bytes', 'path'\] is no sound"),
        (io.StringIO("text"), r'must be open for reading bytes \("rb"\), got StringIO'),
    ],
)
def test_what_has_no_form_of_a_sound_is_shown_the_forms(sound: Any, message: str) -> None:
    """Fault: something else taken for a sound without a word, an error of numpy or PyTorch, or words that do not help."""
    with pytest.raises(ValueError, match=message) as caught:
        read_sound(sound)
    assert FORMS in str(caught.value)


@pytest.mark.parametrize(
    ("sound", "message"),
    [
        ((np.where(np.arange(400) == 5, np.nan, LEFT), HZ), "the wave holds NaN or infinite samples"),
        ((np.where(np.arange(400) == 5, -np.inf, LEFT), HZ), "the wave holds NaN or infinite samples"),
        ((np.array([1e300]), HZ), "the wave holds NaN or infinite samples"),
        ((LEFT[:0], HZ), "the wave is empty"),
        (([], HZ), "the wave is empty"),
        ((np.zeros((0, 2)), HZ), "the wave is empty"),
        ((np.ma.array(LEFT, mask=LEFT > 0), HZ), "the wave has masked samples"),
        (([[0.1], [0.1, 0.2]], HZ), "the samples of a sound cannot be read as an array"),
        ((torch.empty(9, device="meta"), HZ), "the samples of a sound cannot be read as an array"),
        ("none.wav", "none.wav: there is no such file."),
        ("la " * 500, "file name too long."),  # a text in place of a path
        ("a\0b", "there is no such file."),
        (b"no sound", "the bytes of a sound: not a sound file that can be read"),
        (io.BytesIO(), "a file is read from where it stands. Call seek"),
        *(
            ((LEFT, rate), f"a sound's rate must be a whole number of Hz from 1 to 2147483647, got {shown}")
            for rate, shown in (
                (None, "None"),
                ("16000", "'16000'"),
                (0, "0"),
                (-HZ, "-16000"),
                (float("nan"), "nan"),
                (float("inf"), "inf"),
                (44100.5, "44100.5"),
                (1 << 31, "2147483648"),
                (True, "True"),
                (np.True_, "np.True_"),
            )
        ),
    ],
)
def test_what_is_wrong_with_a_sound_is_said(sound: Any, message: str) -> None:
    """Fault: one message for several faults, a rate that is guessed, a file that is not named."""
    with pytest.raises(ValueError, match=message):
        read_sound(sound)


def test_paths_of_every_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault: `~` that only the command line knows, a path of bytes that is a TypeError, a column of names that is taken for a wave."""
    monkeypatch.setenv("HOME", str(tmp_path))
    soundfile.write(tmp_path / "left.wav", LEFT, HZ, subtype="FLOAT")
    (entry,) = os.scandir(os.fsencode(tmp_path))
    for sound in ("~/left.wav", entry):
        np.testing.assert_array_equal(read_sound(sound).wave, LEFT)
    for column in (np.array(["~/left.wav"] * 2), np.array([Path("~/left.wav"), (LEFT, HZ)], object)):
        sounds, single = read_sounds(column)
        assert not single
        np.testing.assert_array_equal([sound and sound.wave for sound in sounds], [LEFT, LEFT])


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    """Fault: samples that are no numbers, of a file that nobody can find again; a folder that is a sound of no samples."""
    for name, wave, message in (("nan.wav", LEFT * np.nan, "the wave holds NaN"), ("none.wav", LEFT[:0], "the wave is empty")):
        soundfile.write(tmp_path / name, wave, HZ, subtype="FLOAT")
        with pytest.raises(ValueError, match=f"{name}: {message}"):
            read_sound(tmp_path / name)
    page = tmp_path / "page.mp3"
    page.write_text("<!DOCTYPE html><html>")
    (tmp_path / "lfs.wav").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n")
    with pytest.raises(ValueError, match=r"lfs.wav: a pointer of Git LFS"):
        read_sound(tmp_path / "lfs.wav")
    with pytest.raises(ValueError, match=r"page.mp3: not a sound file that can be read \(Format not recognised.\)"):
        read_sound(page)


def test_a_peak_above_full_scale_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """Fault: samples of 16 bits that became floats without being scaled make other music without a word."""
    with caplog.at_level(logging.WARNING):
        loud = read_sound((INT16.astype(np.float32), HZ))
        read_sound((LEFT, HZ))
        read_sound(loud)
    assert [record.getMessage()[:27] for record in caplog.records] == ["a sound's peak is 16383, an"]
    np.testing.assert_array_equal(loud.wave, INT16)


@pytest.mark.parametrize(
    ("sounds", "lengths"),
    [
        ([(LEFT, HZ), (RIGHT[:9], HZ)], [400, 9]),
        (((LEFT, HZ), (HZ, RIGHT[:9])), [400, 9]),
        ([[LEFT, HZ], [RIGHT[:9], HZ]], [400, 9]),
        ([[LEFT.tolist(), HZ], [RIGHT[:9].tolist(), HZ]], [400, 9]),
        ([(HZ, LEFT), None], [400, None]),
        ([None, (LEFT, HZ)], [None, 400]),
        ([None, None], [None, None]),
        ([], []),
        ([{"array": LEFT, "sampling_rate": HZ}], [400]),
        (deque([(LEFT, HZ)]), [400]),
        (((LEFT, HZ) for _ in range(3)), [400] * 3),
    ],
)
def test_a_list_of_sounds_is_told_from_a_sound(sounds: Any, lengths: list[int | None]) -> None:
    """Fault: two sounds taken for a wave and its rate, or the other way round."""
    read, single = read_sounds(sounds)
    assert not single and [None if sound is None else len(sound.wave) for sound in read] == lengths
    assert read_sounds((LEFT, HZ))[1] and all(isinstance(sound, Sound) for sound in read if sound)


@pytest.mark.parametrize(
    ("sounds", "message"),
    [
        ([(LEFT, HZ), (LEFT, "x")], "sound 2 of 2: a sound's rate must be"),
        ([LEFT, RIGHT], "sound 1 of 2: a wave alone has no rate"),
        (["a.wav"], "sound 1 of 1: a.wav: there is no such file"),
        ({1, 2}, "sounds must be given as a list, in order, got set"),
        ([[(LEFT, HZ)]], "sound 1 of 1: got list in place of a sound"),
        (itertools.repeat((LEFT, HZ)), "sounds: one request takes at most 65536, got more"),
    ],
)
def test_a_wrong_sound_of_a_list_is_named(sounds: Any, message: str) -> None:
    """Fault: a list in which nobody knows which sound is wrong; a list without an end that is read for ever."""
    with pytest.raises(ValueError, match=message):
        read_sounds(sounds)
