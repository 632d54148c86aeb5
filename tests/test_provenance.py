"""A file that says how it was made: the record of every kind of request, repeated bit for bit, and what cannot be repeated."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import musiclm_deploy as md
from musiclm_deploy.cli import main
from musiclm_deploy.runtime.bundle import STAGES
from musiclm_deploy.runtime.music import Candidate, Music, Tokens
from musiclm_deploy.runtime.provenance import generate_arguments
from musiclm_deploy.runtime.provenance_file import describe_record, read_record
from musiclm_deploy.runtime.sound_files import FORMATS

DRAWN = {stage: md.SamplingConfig(filter_thres=0.0, temperature=4.0) for stage in STAGES}  # random logits are peaked


def sound(samples: int, seed: int = 0) -> tuple[np.ndarray, int]:
    return np.random.default_rng(seed).normal(0, 0.1, samples).astype(np.float32), 16000


A, B, C = sound(6000), sound(7000, 1), sound(8000, 2)

REQUESTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # the request, and what must be given again
    "plain": ({"text": "calm piano", "seed": 2**64 - 1}, {}),
    "candidates": ({"text": "x", "num_samples": 3}, {}),
    "temperature": ({"text": "x", "sampling": {**DRAWN, "fine": md.SamplingConfig(temperature=0)}}, {}),
    "guidance": ({"text": "x", "sampling": {**DRAWN, "coarse": md.SamplingConfig(cond_scale=1.5, filter_thres=0.1)}}, {}),
    "windows": ({"text": "x", "seconds": 0.6, "windows": {"coarse": md.Window(16, 4), "semantic": md.Window(overlap=2)}}, {}),
    "ends": ({"text": "x", "stop": "eos", "max_semantic_tokens": 7, "num_samples": 2}, {}),
    "upstream": ({"text": "x", "compat": "upstream", "max_semantic_tokens": 9}, {}),
    "length": ({"text": "x", "seconds": 0.12345}, {}),
    "plan": ({"text": "x", "plan": "low_latency"}, {}),
    "numpy's numbers": (
        {
            "text": md.Blend([("x", np.float32(0.3)), ("y", np.int64(1))]),
            "seed": np.uint64(7),
            "seconds": np.float32(0.2),
            "num_samples": np.int64(2),
            "max_semantic_tokens": np.int64(9),
            "sampling": {stage: md.SamplingConfig(temperature=np.float32(0.9), filter_thres=np.float32(0.1)) for stage in STAGES},
        },
        {},
    ),
    "blend": ({"text": md.Blend([("x", 0.3), (A, 0.6), ("brass", -0.1), (B, 0.2)])}, {"sounds": [B, A]}),
    "a sound": ({"audio": A}, {"sounds": [A]}),
    "a prime": ({"text": "x", "prime": A, "seconds": 0.6, "include_prime": False}, {"prime": A}),
    "a prime alone": ({"prime": A, "seconds": 0.6}, {"prime": A}),
    "all": ({"text": md.Blend([("x", 1), (B, 1)]), "prime": A, "seconds": 0.6, "num_samples": 2}, {"prime": A, "sounds": [B]}),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_again(music: Any, tmp_path: Path, name: str) -> None:
    """Fault: something of the request is not in the file, or comes back as something else. Each candidate from its own file."""
    asked, given = REQUESTS[name]
    song = music.generate(**{"seconds": 0.2, "sampling": DRAWN, **asked})
    for index, candidate in enumerate(song.candidates):
        record = read_record(song.save(tmp_path / "a.wav", index, sample_rate=np.int64(8000), normalize=np.float32(-20)))
        assert (record["candidate"], record["best"], record["sample_rate"], record["normalize"]) == (index, song.best, 8000, -20)
        again = music.generate(**generate_arguments(record, **given))
        assert again.candidates[index].audio.tobytes() == candidate.audio.tobytes()
        assert again.settings == song.settings
        assert record["plan"] == asked.get("plan", "trained")


def test_a_record_of_before_there_were_plans(record: dict[str, Any], tmp_path: Path) -> None:
    """Fault: a file that an older version made cannot be read, or is repeated with windows that it was not made with."""
    for name in ("plan", "first_window_s", "window_growth"):
        del record[name]
    whole = record | {"candidate": 0, "best": 0, "audio_sha256": "ab", "sample_rate": 16000, "normalize": None}
    path = wav_with(json.dumps(whole), tmp_path / "a.wav")
    assert read_record(path) == whole and "length    stop exact\n" in describe_record(path, whole)
    assert "plan" not in generate_arguments(whole, sounds=[B], prime=A), "the default, which was the only one"


def test_again_from_a_batch(music: Any) -> None:
    """Fault: a row of a batch says what the batch was asked for: another's seed, another's prime, or the length of the longest."""
    songs = music.generate(["x", "y"], prime=[None, B], seed=[3, 4], seconds=0.7, sampling=DRAWN)
    for song, prime in zip(songs, (None, B), strict=True):
        again = music.generate(**generate_arguments(song.settings, prime=prime))
        assert again.audio.tobytes() == song.audio.tobytes() and again.settings == song.settings


def test_again_from_tokens(music: Any) -> None:
    """Fault: tokens that were continued are taken for generated ones, or other tokens are continued."""
    whole = music.generate("x", seconds=0.2, num_samples=2, sampling=DRAWN)
    begun = [Tokens(candidate.tokens.semantic) for candidate in whole.candidates]
    song = music.generate("x", seconds=0.2, seed=5, tokens=begun, sampling=DRAWN)
    again = music.generate(**generate_arguments(song.settings, tokens=begun))
    assert [item.audio.tobytes() for item in again.candidates] == [item.audio.tobytes() for item in song.candidates]
    with pytest.raises(
        ValueError, match=r"the tokens that it continues cannot be in the file: 2 candidates, SHA-256 \w{12}\. Give it again"
    ):
        generate_arguments(song.settings)
    with pytest.raises(ValueError, match="the tokens that it continues must be the same"):
        generate_arguments(song.settings, tokens=begun[::-1])


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_holds_a_long_record(music: Any, tmp_path: Path, suffix: str) -> None:
    """Fault: libsndfile reads 2 kB of a wav's comment; an mp3 holds Latin-1 only."""
    song = music.generate(md.Blend([(f"Café, 日本の歌 🎹 {number}", 1.0) for number in range(60)]), seconds=0.2)
    record = read_record(song.save(tmp_path / f"a{suffix}"))
    assert {name: record[name] for name in song.settings} == song.settings and len(json.dumps(record)) > 4000


@pytest.fixture
def record(music: Any) -> dict[str, Any]:
    """The record of a request with a sound and a prime."""
    song = music.generate(md.Blend([("x", 0.5), (B, 0.5)]), prime=A, seconds=0.6)
    return json.loads(json.dumps(song.settings))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "the sound that it continues cannot be in the file: 0.38 s at 16000 Hz, SHA-256 of the samples "),
        ({"prime": B, "sounds": [B]}, "the sound that it continues must be the same: it was 0.38 s at 16000 Hz"),
        ({"prime": (A[0], 8000), "sounds": [B]}, "must be the same: it was 0.38 s at 16000 Hz"),
        ({"prime": A}, "a sound of its prompt cannot be in the file: 0.44 s at 16000 Hz"),
        ({"prime": A, "sounds": [C]}, "Give that again with --audio FILE (sounds= in Python); got 0.50 s"),
        ({"prime": A, "sounds": [B], "tokens": [Tokens(np.arange(3))]}, "it was made without --tokens. Leave that out."),
    ],
)
def test_sounds_must_be_given_again(record: dict[str, Any], given: dict[str, Any], message: str) -> None:
    """Fault: music is made from another sound, or from none, and is taken for the same."""
    with pytest.raises(ValueError) as error:
        generate_arguments(record, **given)
    assert message in str(error.value)


def test_the_callers_own_noise_cannot_be_repeated(music: Any) -> None:
    """Fault: seeded noise stands in for the noise that made the music."""

    class Noise:
        def gumbel(self, stage: str, step: int, batch: int, vocab: int) -> np.ndarray:
            return np.zeros((batch, vocab), np.float32)

    with pytest.raises(ValueError, match="made with the caller's own noise"):
        generate_arguments(music.generate("x", seconds=0.1, noise=Noise()).settings)


def wav_with(comment: str, path: Path) -> Path:
    """Write a wav whose comment is a chunk behind the samples, as other programs write it, after a chunk of odd length."""
    soundfile.write(path, np.zeros(9), 16000, subtype="PCM_16")
    text = comment.encode() + b"\0"
    info = b"INFO" + struct.pack("<4sI", b"ISFT", 3) + b"me\0\0" + struct.pack("<4sI", b"ICMT", len(text)) + text + b"\0" * (len(text) % 2)
    path.write_bytes(path.read_bytes() + struct.pack("<4sI", b"odd ", 3) + b"xyz\0" + struct.pack("<4sI", b"LIST", len(info)) + info)
    return path


def test_strangers_files(record: dict[str, Any], tmp_path: Path) -> None:
    """Fault: a file of another program, a later version or a damaged record fails as KeyError, or is repeated as something else."""
    whole = record | {"candidate": 0, "best": 0, "audio_sha256": "ab", "sample_rate": 16000, "normalize": None}
    assert read_record(wav_with(json.dumps(whole), tmp_path / "a.wav")) == whole
    other = "does not say how it was made: it is not from musiclm-deploy, or a program that changed it left the comment out"
    bad: list[tuple[Any, str]] = [
        ("", other),
        ("take five", other),
        ("[" * 100_000, other),
        ([], other),
        ({"prompt": "x"}, other),
        (whole | {"musiclm_deploy": 2}, "has a record of version 2, this musiclm-deploy .* reads version 1"),
        ({name: value for name, value in whole.items() if name != "windows"}, "its record is damaged, in windows"),
        (whole | {"seconds": "1", "seed": None}, "its record is damaged, in seed, seconds"),
        (whole | {"candidate": 1}, "its record is damaged: .*candidate 1 of 1"),
        (whole | {"num_samples": 1 << 40}, "its record is damaged: .*candidate 0 of"),
        (whole | {"sampling": {}}, "its record is damaged: KeyError"),
        (whole | {"windows": {"coarse": {"size": 3}}}, "its record is damaged: TypeError"),
        (whole | {"plan": "fast"}, "its record is damaged: ValueError.*plan must be 'trained' or 'low_latency', got 'fast'"),
        (whole | {"parts": [{"text": 3, "weight": 1}]}, "its record is damaged: TypeError"),
        (whole | {"prime": {"samples": 1, "hz": 0, "sha256": ""}}, "its record is damaged: ZeroDivisionError"),
    ]
    for content, message in bad:
        path = wav_with(content if isinstance(content, str) else json.dumps(content), tmp_path / "a.wav")
        with pytest.raises(ValueError, match=rf"a\.wav:? {message}"):
            read_record(path)
    soundfile.write(tmp_path / "a.aiff", np.zeros(9), 16000)
    for path, message in (
        (tmp_path / "a.aiff", other),
        (tmp_path / "none.wav", "there is no such file"),
        (Path(__file__), "not a sound file that can be read"),
    ):
        with pytest.raises(ValueError, match=message):
            read_record(path)


def test_a_record_in_words(record: dict[str, Any]) -> None:
    """Fault: something that made the music is not shown; or a stranger's prompt clears the screen."""
    whole = record | {"candidate": 1, "num_samples": 2, "best": 1, "audio_sha256": "ab", "sample_rate": 44100, "normalize": -14.0}
    whole["parts"][0]["text"] = "x\x1b[2J\n"
    whole["device"] = "cpu\x1b[2J"
    text = describe_record(Path("my song.wav"), whole)
    for words in (
        "my song.wav: 0.6 s asked for, at 44100 Hz, normalized to -14 LUFS\n",
        r"prompt    'x\x1b[2J\n', weight 0.5",
        "prompt    0.44 s at 16000 Hz, SHA-256 of the samples ",
        "prime     0.38 s at 16000 Hz, SHA-256 of the samples ",
        "candidate 2 of 2, the best by MuLaN",
        "coarse    temperature 1, filter_thres 0.9, cond_scale 3",
        "length    stop exact, plan trained\n",
        f"bundle    {record['bundle']}, SHA-256 {record['bundle_sha256']}",
        "repeat it: musiclm generate BUNDLE --again 'my song.wav' --prime FILE --audio FILE\n",
    ):
        assert words in text, words
    assert "\x1b" not in text


@pytest.fixture
def made(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `a.flac`: the second of three candidates, at another rate and loudness."""
    monkeypatch.chdir(tmp_path)
    options = ["--seconds", "0.5", "--num-samples", "3", "--all", "--filter-thres", "0.2", "--sample-rate", "22050", "--normalize", "-30"]
    options += ["--plan", "low_latency"]
    assert main(["generate", str(tiny_bundle), "brass band", "-o", "a.flac", "--seed", "3", *options]) == 0
    Path("a-2.flac").rename("a.flac")
    return tmp_path


def test_the_command_repeats_a_file(made: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fault: the best candidate comes back in place of the one in the file, at the codec's rate or by another plan; or the file itself is
    overwritten."""
    assert read_record(made / "a.flac")["plan"] == "low_latency"
    before = Path("a.flac").read_bytes()
    assert main(["generate", str(tiny_bundle), "--again", "a.flac"]) == 0
    assert Path("a-again.flac").read_bytes() == before == Path("a.flac").read_bytes()
    assert capsys.readouterr().out.endswith("the same samples as in a.flac, bit for bit\n")
    assert main(["generate", str(tiny_bundle), "--again", "a.flac", "-o", "b.wav", "--sample-rate", "8000", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["sample_rate"] == soundfile.info("b.wav").samplerate == 8000 and "bit for bit" in err


def test_the_bundle_is_found_where_it_was(made: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fault: a path that was given below the folder is not found again; a file says who made it, by an absolute path; a stranger's path is
    followed out of the folder; the positionals are taken for each other behind options."""
    assert read_record(made / "a.flac")["bundle"] == tiny_bundle.name
    assert main(["generate", "--again", "a.flac"]) == 1
    assert (
        f"a.flac was made with the bundle '{tiny_bundle.name}', which is not below this folder. Give it as BUNDLE"
        in capsys.readouterr().err
    )
    Path("models").mkdir()
    Path("models", "tiny").symlink_to(tiny_bundle)
    assert main(["generate", "--seed", "3", "models/tiny", "--seconds", "0.1", "x", "-o", "b.wav"]) == 0
    assert read_record(made / "b.wav")["bundle"] == "models/tiny"
    assert main(["generate", "--again", "b.wav"]) == 0
    assert "b.wav was made with models/tiny, which is used.\n" in capsys.readouterr().err
    assert main(["generate", "--again", "b.wav", "-o", "c.wav", "models/tiny"]) == 0
    assert Path("b-again.wav").read_bytes() == Path("b.wav").read_bytes() == Path("c.wav").read_bytes()
    record = read_record(made / "b.wav") | {"bundle": f"../{made.name}/models/tiny"}
    wav_with(json.dumps(record), made / "d.wav")
    assert main(["generate", "--again", "d.wav"]) == 1 and "is not below this folder" in capsys.readouterr().err


def test_the_command_refuses_what_would_be_something_else(made: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fault: an option is ignored in silence, another bundle makes other music, or the original is lost."""
    before = Path("a.flac").read_bytes()
    for options in (
        ["other words"],
        ["--seed", "0"],
        ["--num-samples", "1"],
        ["--stop", "exact"],
        ["--plan", "trained"],
        ["--temperature", "1"],
        ["--window", "fine=9"],
    ):
        with pytest.raises(SystemExit) as ended:
            main(["generate", str(tiny_bundle), *options, "--again", "a.flac"])
        assert ended.value.code == 2
        assert (
            f"--again takes the request from a.flac: leave out {'TEXT' if options[0][0] != '-' else options[0]}" in capsys.readouterr().err
        )
    Path("link.flac").symlink_to("a.flac")
    assert main(["generate", str(tiny_bundle), "--again", "a.flac", "-o", "link.flac"]) == 1
    assert "-o would write link.flac, the file to repeat. Give another name" in capsys.readouterr().err
    Path("best-2.flac").symlink_to("a.flac")  # the name of a candidate
    assert main(["generate", str(tiny_bundle), "--again", "a.flac", "-o", "best.flac", "--all"]) == 1
    assert "-o would write best-2.flac, the file to repeat." in capsys.readouterr().err
    record = read_record(Path("a.flac"))
    wave, hz = soundfile.read("a.flac", dtype="float32")
    for name, change in (("bundle", {"bundle_sha256": "cd" * 32}), ("samples", {})):  # records of others' samples
        Music("x", 0, hz, [Candidate(wave, Tokens(np.arange(3)), None)] * 3, 0, {}, "", record | change).save(f"{name}.flac", 1)
    assert main(["generate", str(tiny_bundle), "--again", "bundle.flac"]) == 1
    assert f"bundle.flac was made with a bundle of SHA-256 {'cd' * 32}, and {tiny_bundle} has " in capsys.readouterr().err
    assert main(["generate", str(tiny_bundle), "--again", "bundle.flac", "--other-bundle"]) == 0
    assert "other samples than in bundle.flac, which another bundle made" in capsys.readouterr().out
    assert main(["generate", str(tiny_bundle), "--again", "samples.flac"]) == 1
    assert "musiclm: other samples than in samples.flac: nothing that its record says has changed" in capsys.readouterr().err
    assert Path("samples-again.flac").is_file() and Path("a.flac").read_bytes() == before


def test_the_command_asks_for_the_sounds_again(tiny_bundle: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """Fault: --prime or --audio does not reach the repetition."""
    monkeypatch.chdir(tmp_path)
    for name, (wave, hz) in (("a", A), ("b", B)):
        soundfile.write(f"{name}.wav", wave, hz)
    sounds = ["--prime", "a.wav", "--audio", "b.wav"]
    common = ["generate", str(tiny_bundle)]
    assert main([*common, "x", *sounds, "--audio-weight", "0.3", "--seconds", "0.6", "--without-prime", "-o", "c.wav"]) == 0
    assert main([*common, "--again", "c.wav", *sounds]) == 0
    assert Path("c.wav").read_bytes() == Path("c-again.wav").read_bytes()
    capsys.readouterr()
    assert main([*common, "--again", "c.wav", "--audio", "b.wav"]) == 1
    assert capsys.readouterr().err.startswith("musiclm: --again c.wav: the sound that it continues cannot be in the file: 0.38 s")


def test_inspect_a_file(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fault: a sound file is taken for a broken bundle; --json is not the record."""
    capsys.readouterr()
    assert main(["inspect", "a.flac"]) == 0
    assert "a.flac: 0.5 s asked for, at 22050 Hz, normalized to -30 LUFS\n  prompt    'brass band'\n" in capsys.readouterr().out
    assert main(["inspect", "a.flac", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == read_record(made / "a.flac")
    soundfile.write("b.wav", np.zeros(9), 16000)
    assert main(["inspect", "b.wav"]) == 1
    assert capsys.readouterr().err.startswith("musiclm: b.wav does not say how it was made: it is not from musiclm-deploy")
