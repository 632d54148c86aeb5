"""Bundles with something wrong in them, drawn from a seed: the C++ library opens each or refuses it with a message, in one process.

    python embed/tests/fuzz_bundle.py --program build/inspect [--count 2000] [--seed 0]

What Python refuses (`Bundle.open`, then the native models and the tokenizer) must be refused here. What only the library refuses must be
one of its own checks, and where both name faults of the manifest or of files, they must be the same ones. The program is built of
tests/inspect.cpp, best with -fsanitize=address,undefined: it must live to the end.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import re
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from small_bundle import record_of, small_bundle

from musiclm_deploy.kernels import decoder_step
from musiclm_deploy.runtime.bundle import MANIFEST, STAGES, Bundle
from musiclm_deploy.runtime.step import open_native
from musiclm_deploy.runtime.tokenizer_file import read_tokenizer

SECONDS = 30  # for one answer
TOKENIZER, TEXT = "tokenizer.json", "Calm piano, 12/8!"  # as inspect.cpp has it
AGREE = (
    "it predicts|segments|semantic_window|context graph|rows: the field|seconds: expected|per_second: expected"  # of runtime/consistency.py
)
OWN = (  # how the library's own checks read, which Python makes later or not at all
    r"expected at (most|least)|expected more than 0|expected fewer than|rows: the field|namespaces: the field|conditioning: expected|"
    r"has a context graph if|coarse has coarse_quantizers|quantizers: expected|temperature must be|filter_thres must be|"
    r"(^|- ): the manifest uses|some overlap|the stage predicts|is not JSON|expected float, got (nan|-?inf)|"
    r"'head\.\d+\.weight' must be .* got none|expected int, got -?[\d.]+e\+|expected a type, a byte offset|"
    r"merges must be a list|a merge must be two tokens|"
    r"the only ones that this library reads"
)
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 7, 64, 255, 257, 2**24, 2**31 - 1, 2**31, 2**53, 2**63 - 1, 2**63, 2**64 - 4, 2**64, 10**40),
    *(-(2**63), 0.5, 1.0, -0.0, 1e-40, 1e308, float("nan"), float("inf"), "", "x", "float32", "uint8", "int4", "prefix", "a\0b", "\ud800"),
    *("x" * 3000, [], {}, [[]], {"a": {}}, ["float32", 0], ["uint8", 8, 4], ["float32", 2, 1]),
    *(["float32", 0, 2**32, 2**32], ["float32", 0, 2**63, 2**63, 0]),
    *("../secret", "/etc/passwd", "..", ".", "semantic.onnx", "fine.onnx.data", "a/../b", "semantic.onnx/x", "y" * 300),
]


class Mutant:
    """A bundle in the making: its manifest as values until `files` is called, then as text."""

    def __init__(self, files: dict[str, bytes], dice: random.Random) -> None:
        # None: gone; a function makes something else of that name
        self.files: dict[str, bytes | Callable[[Path], None] | None] = dict(files)
        self.text: bytes | None = None
        self.values, self.dice, self.what = json.loads(files[MANIFEST]), dice, []

    def content(self, name: str) -> bytes:
        """Return a file's bytes. Raises TypeError where another change has made it something else."""
        content = self.files[name]
        if not isinstance(content, bytes):
            raise TypeError(name)
        return content

    def manifest(self) -> bytes:
        return json.dumps(self.values).encode() if self.text is None else self.text

    def places(self, everywhere: bool) -> list[tuple[Any, Any]]:
        """Return every container of the manifest with each of its keys; of weights and files only if `everywhere`."""
        found, waiting = [], [self.values]
        while waiting:
            container = waiting.pop()
            for key in container if isinstance(container, dict) else range(len(container)):
                found.append((container, key))
                if isinstance(container[key], dict | list) and (everywhere or key not in ("weights", "files", "settings", "sources")):
                    waiting.append(container[key])
        return found


def set_value(m: Mutant) -> None:
    container, key = m.dice.choice(m.places(m.dice.random() < 0.4))
    old = container[key]
    near = [old + 1, old - 1, 2 * old, -old] if type(old) is int else VALUES
    container[key] = m.dice.choice(near if m.dice.random() < 0.4 else VALUES)


def drop(m: Mutant) -> None:
    container, key = m.dice.choice(m.places(m.dice.random() < 0.3))
    del container[key]


def add(m: Mutant) -> None:
    container, _ = m.dice.choice(m.places(m.dice.random() < 0.3))
    value = m.dice.choice(VALUES)
    if isinstance(container, list):
        container.append(value)
    else:
        container[m.dice.choice(["new", "dim", "", "'\"", "é\0"])] = value


def swap(m: Mutant) -> None:
    places = m.places(m.dice.random() < 0.5)
    (a, i), (b, j) = m.dice.choice(places), m.dice.choice(places)
    a[i], b[j] = json.loads(json.dumps([b[j], a[i]]))


def change_sizes(m: Mutant) -> None:
    """A size with the shapes that follow from it or without: the checks of weights are all that is left."""
    decoder = m.values[m.dice.choice(STAGES)]
    record = m.dice.choice([decoder, decoder["step"]])
    name = m.dice.choice([name for name, value in record.items() if type(value) is int])
    before, record[name] = record[name], m.dice.choice([1, 2, 3, 16, 24, 2**16, 2**24, 2**30, 2**31 - 1])
    for place in decoder["step"]["weights"].values():
        if m.dice.random() < 0.7:
            place[2:] = [record[name] if size == before else size for size in place[2:]]


def move_weights(m: Mutant) -> None:
    weights = m.values[m.dice.choice(STAGES)]["step"]["weights"]
    for name in m.dice.sample(list(weights), m.dice.randint(1, 3)):
        place = weights[name]
        how = m.dice.randrange(5)
        if how == 0:
            place[1] = m.dice.choice([place[1] + 64, place[1] + 2, 0, 2**40, 2**64 - 4, -4])
        elif how == 1:
            place[0] = m.dice.choice(["float32", "uint8", "int64", 3])
        elif how == 2:
            place.append(m.dice.choice([0, 1, 2, 2**63]))
        elif how == 3:
            weights[name + m.dice.choice(["", ".bias", "x"])] = list(m.dice.choice(list(weights.values())))
        else:
            place[2:] = [m.dice.choice([size, 0, 1, size * 2, 2**62]) for size in place[2:]]


def spoilt(original: bytes, dice: random.Random) -> bytes:
    """Return a JSON text with something done to its bytes."""
    text = bytearray(original)
    how = dice.randrange(6)
    at = dice.randrange(len(text))
    if how == 0:
        for _ in range(dice.randint(1, 4)):
            text[dice.randrange(len(text))] = dice.choice([dice.randrange(256), *b'"\\{}[],:0-e'])
    elif how == 1:
        del text[at:]
    elif how == 2:
        pieces = [b"[" * 50_000, b'{"a":' * 500, b"\\ud800", b"\\", b'"', b"\0", b"1" * 5000, b"NaN", b"/*", b"-", b"1e999"]
        text[at:at] = dice.choice(pieces)
    elif how == 3:
        other = dice.randrange(len(text))
        del text[min(at, other) : max(at, other)]
    elif how == 4:
        text = bytearray(dice.choice([b"", b"\xef\xbb\xbf" + text, b"[]", b"null", b"6", bytes(100), dice.randbytes(500), b"\xef\xbb"]))
    else:
        text += dice.choice([b"x", b"{}", b"\0", b" \n"])
    return bytes(text)


def spoil_text(m: Mutant) -> None:
    m.text = spoilt(m.manifest(), m.dice)


def spoil_tokenizer(m: Mutant) -> None:
    """Tokens, ids, merges or bytes of tokenizer.json, with a record that fits: all that is left are the checks of what it holds."""
    text = m.content(TOKENIZER)
    if m.dice.random() < 0.3:
        text = spoilt(text, m.dice) or b" "  # a record has one byte at least
    else:
        values = json.loads(text)
        model, token = values["model"], m.dice.choice(list(values["model"]["vocab"]))
        how = m.dice.randrange(6)
        if how == 0:
            model["vocab"][token] = m.dice.choice(VALUES)
        elif how == 1:
            del model["vocab"][token]
        elif how == 2:
            model["vocab"][m.dice.choice(["", "é\0", "x" * 3000])] = len(model["vocab"])
        elif how == 3:
            merge = m.dice.choice([[token, token], f"{token} {token}", [token], "", " ", [1, 2], *VALUES])
            model["merges"].insert(m.dice.randint(0, len(model["merges"])), merge)
        elif how == 4:
            model[m.dice.choice(list(model))] = m.dice.choice(VALUES)
        else:
            values["model"] = m.dice.choice(VALUES)
        text = json.dumps(values).encode()
    m.files[TOKENIZER] = text
    m.values["files"][TOKENIZER] = record_of(text)


def spoil_file(m: Mutant) -> None:
    """Other bytes, or fewer; with the record that fits them or the old one. With the new one, weights are all that can be wrong."""
    name = m.dice.choice([f"{stage}.onnx.data" for stage in STAGES] if m.dice.random() < 0.6 else list(m.values["files"]))
    data = bytearray(m.content(name))
    at = m.dice.randrange(len(data))
    how = m.dice.randrange(5)
    if how == 0:
        del data[at:]
    elif how == 1:
        data[at] ^= 1 << m.dice.randrange(8)
    elif how == 2:
        data += bytes(m.dice.choice([1, 64, 10_000]))
    elif how == 3:
        data[:] = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 5\n"
    else:
        data[at:] = m.dice.randbytes(len(data) - at)
    m.files[name] = bytes(data)
    if m.dice.random() < 0.6:
        m.values["files"][name] = record_of(bytes(data))


def replace_file(m: Mutant) -> None:
    """What is no file of the bundle, under the name of one."""
    name = m.dice.choice(list(m.values["files"]))
    outside = m.content(name)

    def link_out(path: Path) -> None:
        secret = path.parent.parent / "secret"
        secret.write_bytes(outside if m.dice.random() < 0.5 else bytes(len(outside)))
        path.symlink_to(secret)

    links = [link_out, lambda path: path.symlink_to(path.name), lambda path: path.symlink_to("nowhere")]
    m.files[name] = m.dice.choice([None, Path.mkdir, os.mkfifo, *links])


HOW = (*[set_value] * 3, drop, add, swap, change_sizes, *[move_weights] * 2, spoil_text, spoil_tokenizer, *[spoil_file] * 2, replace_file)


def mutant(files: dict[str, bytes], dice: random.Random) -> Mutant:
    m = Mutant(files, dice)
    for how in dice.sample(HOW, dice.choice([1, 1, 1, 2, 3])):
        m.what.append(how.__name__)
        try:
            how(m)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            m.what[-1] += " (not possible any more)"
    m.files[MANIFEST] = m.manifest()
    return m


def write(folder: Path, m: Mutant) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in m.files.items():
        if callable(content):
            content(folder / name)
        elif content is not None:
            (folder / name).write_bytes(content)


def python_says(folder: Path, pool: decoder_step.Pool) -> str:
    """Return what Python refuses the bundle with, or nothing."""
    try:
        bundle = Bundle.open(folder)
        for stage in STAGES:
            open_native(bundle.root, getattr(bundle.manifest, stage), pool)
        mulan = bundle.manifest.mulan
        read_tokenizer(bundle.root / mulan.tokenizer, bool(mulan.tokenizer_from_file)).encode(TEXT)
    except Exception as error:  # of any kind: a mutant may meet what Python checks nowhere
        return str(error) or type(error).__name__
    return ""


def comparable(text: str) -> set[str]:
    """Return the faults of a message but for the library's own, without what was found: Python prints values in ways of its own."""
    lines = [line.strip().removeprefix("- ").replace("\0", r"\x00") for line in re.split("[\t\n]", text)[1:]]
    lines = [re.sub(r"\\ud[89a-f]..", "\ufffd", re.sub(r"\[Errno \d+\] ", "", line)) for line in lines]
    cut = re.compile(r"(, got |has format |File name too long).*", re.S)
    return {cut.sub(r"\1", line) for line in lines if not re.search(OWN, line)}


class Program:
    def __init__(self, path: str) -> None:
        self.process = subprocess.Popen([path, "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, errors="replace")

    def says(self, folder: Path) -> str:
        assert self.process.stdin and self.process.stdout
        print(folder, file=self.process.stdin, flush=True)
        ready, _, _ = select.select([self.process.stdout], [], [], SECONDS)
        return self.process.stdout.readline().rstrip("\n") if ready else "no answer"


def judge(answer: str, python: str) -> str:
    """Return what is wrong with an answer, or nothing."""
    if answer == "0":
        return f"it was opened, Python refuses it: {python}" if python else ""
    status, _, message = answer.partition(" ")
    if status not in ("2", "4") or not message:
        return f"no status with a message: {answer!r}"
    if not python:
        return "" if re.search(OWN, message) else f"it was refused, Python takes it: {message}"
    if "cannot be used:" in python and "cannot be used:" in message:
        ours, theirs = comparable(message), comparable(python)
        if "is not JSON" in message:
            return ""  # numbers beyond a float, bytes that are not UTF-8: nothing else was read
        if re.search(OWN, message):  # of a manifest with such a fault neither the files are looked at nor whether its records agree
            theirs = {line for line in theirs if line in ours or (line.startswith("musiclm.json") and not re.search(AGREE, line))}
        if ours != theirs:
            return f"other faults: {sorted(ours - theirs)} where Python has {sorted(theirs - ours)}"
    return ""


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--program", required=True, help="the built tests/inspect.cpp")
    options.add_argument("--count", type=int, default=2000)
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    files, pool, program, counts = small_bundle(), decoder_step.Pool(1), Program(given.program), collections.Counter()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "bundle")
        for number in range(-1, given.count):  # the first one as it is
            m = mutant(files, random.Random(f"{given.seed}.{number}")) if number >= 0 else Mutant(files, random.Random(0))
            write(folder, m)
            answer, python = program.says(folder), python_says(folder, pool)
            wrong = judge(answer, python) if number >= 0 or answer == "0" else answer
            if wrong:
                print(f"mutant {number} of seed {given.seed}, by {', '.join(m.what)}: {wrong}")
                counts["wrong"] += 1
            if program.process.poll() is not None or answer in ("", "no answer"):
                program.process.kill()
                print(f"the program ended with {program.process.wait()} at mutant {number}")
                return 1
            counts["opened" if answer == "0" else f"status {answer[0]}"] += 1
            counts["refused by Python"] += bool(python)
    assert program.process.stdin
    program.process.stdin.close()
    ended = program.process.wait(SECONDS)
    print(f"{given.count} mutants of seed {given.seed}: {dict(counts)}; the program ended with {ended}")
    return 1 if counts["wrong"] or ended else 0


if __name__ == "__main__":
    sys.exit(main())
