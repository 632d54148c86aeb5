"""Prompts from a file or standard input, as the command line takes them: what is read, what is written, what is refused with its line."""

import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support.clips import WIDE, same_samples

import musiclm_deploy as md
from musiclm_deploy import cli
from musiclm_deploy.commands.prompts import Listed, batches_of, read_prompts, read_text, seeds_of
from musiclm_deploy.commands.values import RANDOM


@pytest.fixture
def pipe(monkeypatch) -> Callable[[bytes], None]:
    """`pipe(data)` puts data on standard input."""
    return lambda data: monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"calm piano\nbrass band\n", [Listed("calm piano"), Listed("brass band")]),
        (b"\xef\xbb\xbfcalm piano\r\n\r\n  brass band  \r\n", [Listed("calm piano"), Listed("brass band")]),
        ("calm piano\r\ncafé\r\n".encode("utf-16"), [Listed("calm piano"), Listed("café")]),
        (b"# of last week\rcalm piano\rcaf\xc3\xa9", [Listed("calm piano"), Listed("café")]),
        (b'{"text": "calm piano", "seed": 7}\n\n{"text": "brass {band}"}\n', [Listed("calm piano", 7), Listed("brass {band}")]),
        (b'first: {"text"}\n{"text": "not JSON here"}', [Listed('first: {"text"}'), Listed('{"text": "not JSON here"}')]),
        (b'{"text": "#1", "seed": 18446744073709551615}', [Listed("#1", 2**64 - 1)]),
        (b"[calm] piano\n[loud] brass\n", [Listed("[calm] piano"), Listed("[loud] brass")]),
    ],
)
def test_lists(tmp_path, data, expected):
    """A byte-order mark in a prompt, a carriage return, an empty line or a comment as a prompt, a seed that is lost."""
    path = tmp_path / "prompts"
    path.write_bytes(data)
    assert read_prompts(str(path)) == expected


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "prompts.txt holds no prompt: write one on each line."),
        (b"\xef\xbb\xbf\r\n \n# nothing\n", "prompts.txt holds no prompt"),
        (b"calm\npiano \xff\n", "prompts.txt, line 2: byte 0xff is not UTF-8."),
        ("calm\ncafé".encode("latin-1"), "prompts.txt, line 2: byte 0xe9 is not UTF-8. It stands at position 8. Save the text as UTF-8."),
        ("calm".encode("utf-16-le"), "prompts.txt, line 1: it holds zero bytes, as UTF-16 without its mark does. Save the text as UTF-8."),
        (b'\n{"text": "calm"}\n{"text": "piano"\n', "prompts.txt, line 3: not a JSON object, as the first line is: "),
        (b'{"text": "calm"}\nbrass band\n', "prompts.txt, line 2: not a JSON object, as the first line is: "),
        (b'{"text": "calm"}\n"brass band"\n', 'prompts.txt, line 2: expected an object with a "text" that is not empty, got \'"brass'),
        (b'{"prompt": "calm"}', 'line 1: expected an object with a "text"'),
        (b'{"text": " "}', 'line 1: expected an object with a "text" that is not empty'),
        (b'{"text": "calm", "sed": 1}', "line 1: unknown field 'sed'; known are text and seed."),
        (b'{"text": "calm", "seed": -1}', "line 1: seed must be a whole number from 0 to 2**64 - 1, got -1."),
        (b'{"text": "calm", "seed": true}', "line 1: seed must be a whole number from 0 to 2**64 - 1, got True."),
        (b'{"text": "calm", "seed": "1"}', "line 1: seed must be a whole number from 0 to 2**64 - 1, got '1'."),
        (b'[\n  {"text": "calm"},\n  {"text": "piano"}\n]', "prompts.txt: a list in JSON. Write one object on each line"),
        (None, "--prompts prompts.txt cannot be read: No such file or directory."),
    ],
)
def test_refused_lists(run, never_loads, data, message):
    """A list that means something else than it says: refused with its line, before a model is loaded."""
    if data is not None:
        Path("prompts.txt").write_bytes(data)
    status, out, err = run("generate", "bundle", "--prompts", "prompts.txt")
    assert (status, out) == (1, "") and err.startswith("musiclm: --prompts prompts.txt") and err.count("\n") == 1 and message in err, err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x", "--prompts", "p"], "TEXT and --prompts are both what the music should be like: leave one out"),
        (["--prompts", "p", "--tokens", "t.npz"], "--tokens goes on from the tokens of one prompt: give TEXT in place of --prompts"),
        (["x", "--seed", "randomly"], "argument --seed: expected a whole number, or random, got 'randomly'"),
    ],
)
def test_wrong_usage(run, never_loads, arguments, message):
    """Options of which one would be silently ignored."""
    status, out, err = run("generate", "bundle", *arguments)
    assert (status, out) == (2, "") and err.endswith(f"{message}\n"), err


def test_a_name_in_place_of_a_text(run, never_loads, tmp_path):
    """`@prompts.txt` became a clip of those letters."""
    status, out, err = run("generate", "bundle", "@prompts.txt")
    assert (status, out) == (1, "") and "Give a file of prompts as --prompts prompts.txt" in err
    assert os.listdir(tmp_path) == []


def test_standard_input(pipe):
    """`-` became a clip of a hyphen; a prompt of several lines is one text."""
    pipe(b"\xef\xbb\xbfcalm piano\r\nin a ballroom\n")
    assert read_text("-") == "calm piano in a ballroom"
    pipe(b"calm piano\nbrass band\n")
    assert read_prompts("-") == [Listed("calm piano"), Listed("brass band")]
    for read, name in ((read_text, "-"), (read_prompts, "-")):
        pipe(b"\n")
        with pytest.raises(ValueError, match="standard input holds no prompt"):
            read(name)


def test_a_closed_standard_input(monkeypatch):
    """Fault: AttributeError, where a daemon has closed it."""
    monkeypatch.setattr(sys, "stdin", None)
    for read in (read_text, read_prompts):
        with pytest.raises(ValueError, match="standard input is closed: pipe a text into it"):
            read("-")


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("-", "-o - takes one sound, and --prompts makes several. Give -o FILE, which becomes FILE-1, FILE-2 and so on."),
        ("/dev/null", "-o /dev/null takes one sound, and --prompts makes several."),
        ("/", "cannot write /: it is a directory."),
    ],
)
def test_outputs_that_have_no_numbers(run, never_loads, out, message):
    """Fault: `/dev/null-1` and pathlib's words about an empty name."""
    Path("p.txt").write_text("calm piano\nbrass band\n")
    status, said, err = run("generate", "bundle", "--prompts", "p.txt", "-o", out)
    assert (status, said) == (1, "") and err.startswith(f"musiclm: {message}"), err


def test_seeds():
    """A seed of the list is lost, or all prompts of --seed random share one."""
    listed = [Listed("a"), Listed("b", 0), Listed("c")]
    assert seeds_of(listed, 7) == [7, 0, 7]
    drawn = seeds_of([Listed("a")] * 8 + [Listed("b", 0)], RANDOM)
    assert drawn[-1] == 0 and len(set(drawn)) > 7 and all(0 <= number < 2**32 for number in drawn)


def test_batches():
    """Prompts that do not fit in memory together are lost, or made twice, or given another's seed."""
    request = {"text": list("abcdefg"), "seed": list(range(7)), "seconds": 5}

    class Takes:
        total = 10.0

        def __str__(self) -> str:
            return "about 10 s"

    def estimate(text: list[str], seed: list[int], seconds: float) -> Takes:
        if len(text) > 2:
            raise MemoryError("too many")
        return Takes()

    parts, spent, takes = batches_of(request, estimate)
    assert [(part["text"], part["seed"], part["seconds"]) for part in parts] == [
        (["a", "b"], [0, 1], 5),
        (["c", "d"], [2, 3], 5),
        (["e", "f"], [4, 5], 5),
        (["g"], [6], 5),
    ]
    assert (spent, takes) == (35.0, "4 batches of 2 prompts, as memory allows, each about 10 s")
    assert batches_of(request, lambda **_: Takes()) == ([request], 10.0, "about 10 s")
    with pytest.raises(MemoryError, match="never"):
        batches_of(request, lambda **_: (_ for _ in ()).throw(MemoryError("never")))


def test_a_list(run, tiny_bundle, tmp_path):
    """Each prompt has its files, its line and its object, and sounds as it does alone with its seed."""
    Path("p.jsonl").write_text('{"text": "calm piano", "seed": 5}\n{"text": "brass band"}\n')
    options = ["-o", "a.wav", "--seconds", 0.1, "--num-samples", 2, "--seed", 9, *WIDE]
    status, out, err = run("generate", tiny_bundle, "--prompts", "p.jsonl", "--all", "--save-tokens", "t.npz", "--json", *options)
    facts = [json.loads(line) for line in out.splitlines()]
    assert (status, err) == (0, "")
    assert [(fact["prompt"], fact["seed"]) for fact in facts] == [("calm piano", 5), ("brass band", 9)]
    assert [fact["files"] for fact in facts] == [[f"a-{n}.wav", f"a-{n}-1.wav", f"a-{n}-2.wav", f"t-{n}.npz"] for n in (1, 2)]
    assert sorted(os.listdir(tmp_path)) == sorted([*facts[0]["files"], *facts[1]["files"], "p.jsonl"])
    with soundfile.SoundFile("a-1.wav") as file:
        assert json.loads(file.comment)["prompt"] == "calm piano"
    assert run("generate", tiny_bundle, "brass band", *options)[0] == 0
    assert same_samples("a.wav", "a-2.wav")
    again = run("generate", tiny_bundle, "brass band", "--tokens", "t-2.npz", "--seed", 9, "--seconds", 0.1, "-o", "b.wav")
    assert again[0] == 0 and same_samples("b.wav", "a-2.wav")
    status, out, _ = run("generate", tiny_bundle, "--prompts", "p.jsonl", *options)
    assert out.startswith("a-1.wav: 0.1 s at 16000 Hz, seed 5: calm piano\na-2.wav: 0.1 s at 16000 Hz, seed 9: brass band\n")


def test_a_random_seed(run, pipe, tiny_bundle):
    """A clip of a drawn seed cannot be made again, as the seed is said nowhere; and text from standard input is lost behind options."""
    pipe(b"calm piano\n")
    status, out, _ = run("generate", tiny_bundle, "--seconds", 0.1, "--seed", "random", *WIDE, "-")
    assert status == 0 and out.startswith("out.wav: 0.1 s at 16000 Hz, seed ")
    drawn = int(out.splitlines()[0].rsplit(" ", 1)[1])
    wide = dict.fromkeys(("semantic", "coarse", "fine"), md.SamplingConfig(filter_thres=0.2))
    with md.load(tiny_bundle, device="cpu") as model:
        expected = model.generate("calm piano", seconds=0.1, seed=drawn, sampling=wide).save("b.wav")
    assert same_samples(expected, "out.wav")
    assert np.isfinite(soundfile.read("out.wav")[0]).all()


def test_a_reader_that_is_gone(tiny_bundle, tmp_path, monkeypatch, capsys):
    """Fault: `| head -1` costs the files of all prompts whose lines come after it."""
    monkeypatch.chdir(tmp_path)
    Path("p.txt").write_text("calm piano\nbrass band\n")
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", buffering=1) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        status = cli.main(["generate", str(tiny_bundle), "--prompts", "p.txt", "--seconds", "0.05", *WIDE])
    assert status == 0 and capsys.readouterr().err == ""
    assert sorted(os.listdir()) == ["out-1.wav", "out-2.wav", "p.txt"]
