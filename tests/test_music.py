"""What a generation returns, and its tokens on disk and back."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from musiclm_deploy.runtime.loudness import loudness
from musiclm_deploy.runtime.music import Candidate, Music, Tokens, load_tokens, save_tokens


def tokens_of(index: int, stages: int = 3) -> Tokens:
    rng = np.random.default_rng(index)
    arrays = rng.integers(0, 99, 5 + index), rng.integers(0, 99, (4, 3)), rng.integers(0, 99, (4, 5))
    return Tokens(*arrays[:stages])


@pytest.fixture
def piece() -> Music:
    """Three candidates of different lengths and levels, the second the best."""
    candidates = [Candidate(np.full(40 + index, 0.1 * index, np.float32), tokens_of(index), score=index / 10) for index in range(3)]
    timings = {"real_time_factor_made": 2.0}
    return Music("Café, 日本の歌", 2**64 - 1, 24000, candidates, 1, timings, "ab" * 32, settings={"seconds": 1.5})


def assert_equal(given: list[Tokens], expected: list[Tokens]) -> None:
    assert len(given) == len(expected)
    for one, other in zip(given, expected, strict=True):
        for stage in ("semantic", "coarse", "fine"):
            a, b = getattr(one, stage), getattr(other, stage)
            assert (a is None) == (b is None), stage
            if a is not None:
                assert a.dtype == b.dtype and a.shape == b.shape and (a == b).all(), stage


def test_the_best_candidate_stands_for_the_music(piece: Music) -> None:
    """Fault: the first candidate is played, or the loudest, instead of the one that MuLaN chose."""
    assert piece.audio is piece.candidates[1].audio
    assert piece.tokens is piece.candidates[1].tokens


def test_save_writes_the_chosen_candidate_and_how_to_make_it_again(piece: Music, tmp_path) -> None:
    """Fault: candidate 0 is taken for "none given"; or the file does not say what made it."""
    for candidate, index in ((None, 1), (0, 0), (2, 2), (-1, 2)):
        path = piece.save(f"{tmp_path}/a.flac", candidate)
        assert path == tmp_path / "a.flac"
        with soundfile.SoundFile(path) as file:
            assert (file.frames, file.samplerate) == (40 + index, 24000)
            assert json.loads(file.comment) == {
                "prompt": "Café, 日本の歌",
                "seed": 2**64 - 1,
                "bundle_sha256": "ab" * 32,
                "seconds": 1.5,
                "candidate": index,
                "best": 1,
                "audio_sha256": hashlib.sha256(piece.candidates[index].audio.astype("<f4").tobytes()).hexdigest(),
                "sample_rate": 24000,
                "normalize": None,
            }
            assert piece.encode(".flac", candidate) == path.read_bytes()


def test_save_at_another_rate_and_loudness(tmp_path) -> None:
    """Fault: the two are swapped, the record says something else, or the samples keep their old rate."""
    wave = np.random.default_rng(0).uniform(-0.1, 0.1, 24000).astype(np.float32)
    piece = Music("x", 0, 24000, [Candidate(wave, tokens_of(0), None)], 0, {}, "ab" * 32)
    for rate, lufs in ((8000, None), (None, -30.0), (48000, -25)):
        with soundfile.SoundFile(piece.save(tmp_path / "a.flac", sample_rate=rate, normalize=lufs)) as file:
            record, audio = json.loads(file.comment), file.read(dtype="float32")
            assert (file.samplerate, len(audio)) == (rate or 24000, rate or 24000)
        assert (record["sample_rate"], record["normalize"]) == (rate or 24000, lufs)
        if lufs is not None:
            assert abs(loudness(audio, rate or 24000) - lufs) < 0.01
    with pytest.raises(
        ValueError, match=r"cannot write .*a\.opus: OPUS takes 8000, 12000, 16000, 24000 or 48000 Hz, got 44100 Hz\. Ask for"
    ):
        piece.save(tmp_path / "a.opus", sample_rate=44100)
    assert os.listdir(tmp_path) == ["a.flac"]


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_tokens_come_back(tmp_path, stages: int) -> None:
    """Fault: candidates come back in the order of their names (10 before 2), a stage gets another's, or an empty one is lost."""
    candidates = [tokens_of(index, stages) for index in range(12)]
    candidates.append(Tokens(np.zeros(0, np.int64), *[np.zeros((0, width), np.int64) for width in (3, 5)][: stages - 1]))
    path = save_tokens(tmp_path / "tokens.npz", candidates)
    assert_equal(load_tokens(path), candidates)
    assert os.listdir(tmp_path) == ["tokens.npz"]


def test_music_saves_the_tokens_of_every_candidate(piece: Music, tmp_path) -> None:
    """Fault: only the best survives."""
    path = piece.save_tokens(f"{tmp_path}/tokens.npz")
    assert_equal(load_tokens(path), [candidate.tokens for candidate in piece.candidates])


def test_a_failed_save_leaves_everything_as_it_was(tmp_path) -> None:
    """Fault: a pickle on disk, half a file in place of the old one, or a name that `load_tokens` would not be given."""
    path = tmp_path / "tokens.npz"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="pickle"):
        save_tokens(path, [tokens_of(0), Tokens(np.array([None]))])
    with pytest.raises(ValueError, match=r"tokens\.npy: tokens are saved as \.npz"):
        save_tokens(tmp_path / "tokens.npy", [tokens_of(0)])
    with pytest.raises(FileNotFoundError):
        save_tokens(tmp_path / "missing" / "tokens.npz", [tokens_of(0)])
    assert os.listdir(tmp_path) == ["tokens.npz"] and path.read_bytes() == b"old"


class Exploding:
    """Unpickled, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def test_pickles_are_never_run(tmp_path) -> None:
    """Fault: a file of tokens from a stranger runs a stranger's code."""
    trap = Exploding(tmp_path / "trapped")
    (tmp_path / "bare.npz").write_bytes(pickle.dumps(trap))
    np.savez(tmp_path / "inside.npz", allow_pickle=True, **{"0.semantic": np.array([trap], object)})
    for name in ("bare.npz", "inside.npz"):
        with pytest.raises(ValueError, match=f"{name} is not a file of tokens"):
            load_tokens(tmp_path / name)
    assert not trap.path.exists()
    np.load(tmp_path / "inside.npz", allow_pickle=True)["0.semantic"]
    assert trap.path.exists(), "the trap works"


def test_other_files_are_refused(tmp_path) -> None:
    """Fault: an error of numpy or zipfile, of whatever type, reaches the user in place of a sentence that names the file."""
    path = tmp_path / "a.npz"

    def savez(**arrays: Any) -> None:
        np.savez(path, **arrays)

    files = {
        "nothing": lambda: path.write_bytes(b""),
        "text": lambda: path.write_bytes(b"not tokens at all\n" * 9),
        "an array": lambda: np.save(path.open("wb"), np.arange(3)),
        "no arrays": savez,
        "others": lambda: savez(weights=np.arange(3)),
        "one too many": lambda: savez(**{"0.semantic": np.arange(3), "0.codec": np.arange(3)}),
        "a gap": lambda: savez(**{"0.semantic": np.arange(3), "2.semantic": np.arange(3)}),
        "no semantic": lambda: savez(**{"0.coarse": np.zeros((3, 2), int)}),
    }
    for kind, write in files.items():
        write()
        with pytest.raises(ValueError, match=r"a\.npz is not a file of tokens"):
            load_tokens(path)
            pytest.fail(kind)
    for missing in (tmp_path / "missing.npz", tmp_path):
        with pytest.raises(ValueError, match="is not a file of tokens"):
            load_tokens(missing)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("0.semantic", b"not an array")
    assert isinstance(load_tokens(path)[0].semantic, np.ndarray)  # whose type and range the request checks


def test_a_damaged_file_is_refused_or_harmless(tmp_path) -> None:
    """Fault: a broken download fails as zlib.error, NotImplementedError or RuntimeError; or, worse, gives other tokens.

    Every array in a zip file has its checksum, the list of them has none: a single bit can hide an array, never change it.
    """
    path = tmp_path / "a.npz"
    expected = [tokens_of(0), tokens_of(1, stages=2)]
    whole = save_tokens(path, expected).read_bytes()
    damaged = [whole[:length] for length in range(0, len(whole), 13)]
    damaged += [whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :] for at in range(len(whole))]
    refused = 0
    for content in damaged:
        path.write_bytes(content)
        try:
            loaded = load_tokens(path)
        except ValueError as error:
            assert str(error).startswith(f"{path} is not a file of tokens: ")
            refused += 1
            continue
        for one, other in zip(loaded, expected, strict=False):
            assert all(a is None or np.array_equal(a, b) for a, b in zip(vars(one).values(), vars(other).values(), strict=True))
    assert refused > len(damaged) / 2
