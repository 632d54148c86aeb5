"""Compare the tokenizer of libmusiclm with the one of the Python runtime, on random texts of many kinds and on tokenizer files.

    python embed/tests/compare_tokenizer.py TOKENIZE TOKENIZER_JSON [--count N] [--seed N] [--every-character]

TOKENIZE is the program of tests/tokenize.cpp. Every text must get the same ids or be refused, and texts in natural languages be refused in
less than 5 % of all cases; every file that Python refuses must be refused. Exits with 1 where that does not hold.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from texts import SENTENCES, every_character, texts

from musiclm_deploy.runtime.tokenizer import ClipTokenizer

_MOST_REFUSED = 0.05
_REASONS = {  # of a refusal: words of the message
    "looks broken": "read in another encoding",
    "no token": "holds no token",
    "too long": "characters is longer",
    "long number": "character reference",
    "digits in an escape": "escape sequence",
    "half a character": "surrogate",
}


def run(program: str, tokenizer: Path, given: list[str], *more: str) -> subprocess.CompletedProcess:
    lines = "".join(json.dumps(text) + "\n" for text in given)
    return subprocess.run([program, str(tokenizer), *more], input=lines, capture_output=True, text=True, check=False)


def reference_ids(tokenizer: ClipTokenizer, text: str) -> list[int] | None:
    """Return Python's ids, None where it refuses the text."""
    try:
        return tokenizer.encode(text) or None
    except ValueError:  # among them UnicodeEncodeError for halves of characters
        return None


def compare_texts(program: str, path: Path, given: Iterable[tuple[str, str]]) -> list[str]:
    """Print how many texts of each kind were refused and why; return the faults."""
    pairs, tokenizer = list(given), ClipTokenizer.from_file(path)
    result = run(program, path, [text for _, text in pairs])
    answers = result.stdout.splitlines()
    if result.returncode or len(answers) != len(pairs):
        return [f"{program} gave {len(answers)} answers to {len(pairs)} texts: {result.stderr}"]
    faults, counts, refused = [], collections.Counter(), collections.Counter()
    both: collections.Counter = collections.Counter()
    for (kind, text), answer in zip(pairs, answers, strict=True):
        counts[kind] += 1
        wanted = reference_ids(tokenizer, text)
        if answer.startswith("refused"):
            reason = next((name for name, words in _REASONS.items() if words in answer), answer)
            refused[kind, reason] += 1
            both[kind, reason] += wanted is None
        elif wanted is None or [int(one) for one in answer.split()] != wanted:
            faults.append(f"{kind}: {text!a}: got {answer[:200]!r}, expected {str(wanted)[:200]}")
    print(f"{path}: {len(pairs)} texts, {len(faults)} differ")
    for kind, count in counts.items():
        reasons = [f"{number} {reason} ({both[kind, reason]} by Python too)" for (of, reason), number in refused.items() if of == kind]
        print(f"  {kind:22} {count:7} texts, refused: {', '.join(reasons) or 'none'}")
    natural, lost = sum(counts[kind] for kind in SENTENCES), sum(number for (kind, _), number in refused.items() if kind in SENTENCES)
    if natural:
        print(f"  natural languages: {lost} of {natural} refused, {lost / natural:.2%}")
        if lost / natural >= _MOST_REFUSED:
            faults.append(f"{lost} of {natural} texts in natural languages are refused, more than {_MOST_REFUSED:.0%}")
    return faults


def compare_bytes(program: str, path: Path, seed: int) -> list[str]:
    """Compare texts of random bytes: what Python cannot decode must be refused, and with that reason."""
    rng, tokenizer, given = random.Random(seed), ClipTokenizer.from_file(path), []
    for _ in range(5000):
        text = bytearray("".join(rng.choices("aé日🎹\u07ff\u0800\ud7ff\ue000\uffff\U00010000\U0010ffff", k=rng.randint(1, 5))).encode())
        for _ in range(rng.randint(0, 2)):
            byte = rng.choice([0x80, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC2, 0xDF, 0xE0, 0xED, 0xEF, 0xF0, 0xF4, 0xF5, 0xFF, 0x61])
            text[rng.randrange(len(text))] = byte
        given.append(bytes(text))
    result = subprocess.run([program, str(path)], input=b"".join(b"=" + text + b"\n" for text in given), capture_output=True, check=True)
    faults, broken = [], 0
    for text, answer in zip(given, result.stdout.decode().splitlines(), strict=True):
        try:
            wanted = reference_ids(tokenizer, text.decode())
        except UnicodeDecodeError as error:
            broken += 1
            same = "not UTF-8" in answer and f"byte {error.start} " in answer
        else:
            same = answer.startswith("refused") or [int(one) for one in answer.split()] == wanted
        if not same:
            faults.append(f"bytes {text!r}: {answer}")
    print(f"{len(given)} texts of bytes, {broken} of them not UTF-8: {len(faults)} differ")
    return faults


def random_merges(good: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """Return a tokenizer.json with few letters and many merges in any order, some of them twice, as a hard case for their priority."""
    vocabulary = {token: index for token, index in good["model"]["vocab"].items() if index < 512}
    for token in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[token] = len(vocabulary)
    tokens, merges = ["a", "b", "c", "a</w>", "b</w>", "c</w>", "<", "/", "w", ">", "></w>"], []
    for _ in range(300):
        first, second = rng.choice([t for t in tokens if not t.endswith("</w>")]), rng.choice(tokens)
        if len(first + second) > 12:
            continue
        if first + second not in vocabulary:
            vocabulary[first + second] = len(vocabulary)
            tokens.append(first + second)
        merges.append([first, second] if rng.random() < 0.5 else f"{first} {second}")
    return {"model": {"type": "BPE", "end_of_word_suffix": "</w>", "vocab": vocabulary, "merges": merges}}


def bad_files(good: dict[str, Any]) -> dict[str, str]:
    """Return the contents of files that are not CLIP's tokenizer."""

    def changed(**model: Any) -> str:
        return json.dumps({"model": good["model"] | model})

    vocabulary, merges = good["model"]["vocab"], good["model"]["merges"]
    return {
        "no JSON": "{",
        "empty": "",
        "a list": "[]",
        "no model": "{}",
        "model of another kind": json.dumps({"model": 5}),
        "another type": changed(type="WordPiece"),
        "type of a number": changed(type=3),
        "another suffix": changed(end_of_word_suffix=None),
        "no vocabulary": changed(vocab=None),
        "vocabulary with fractions": changed(vocab=vocabulary | {"a": 64.0}),
        "vocabulary with true": changed(vocab=vocabulary | {"a": True}),
        "an id twice": changed(vocab=vocabulary | {"a": 5}),
        "an id of 2^64": changed(vocab=vocabulary | {"a": 1 << 64}),
        "an id of 2^63": changed(vocab=vocabulary | {"a": 1 << 63}),
        "an id below 0": changed(vocab=vocabulary | {"a": -1}),
        "a token too few": changed(vocab={k: v for k, v in vocabulary.items() if k != "a</w>"}),
        "an empty vocabulary": changed(vocab={}, merges=[]),
        "no marks": changed(vocab={k: v for k, v in vocabulary.items() if not k.startswith("<|")}),
        "merges of a number": changed(merges=7),
        "a merge of three": changed(merges=[*merges, "a b c"]),
        "a merge of one": changed(merges=[*merges, "a"]),
        "a merge of numbers": changed(merges=[*merges, [1, 2]]),
        "a merge of unknown tokens": changed(merges=[*merges, "☃ ☃"]),
        "an empty merge": changed(merges=[*merges, " "]),
        "a merge of lists": changed(merges=[*merges, [["a"], ["b"]]]),
        "a merge of an object": changed(merges=[*merges, {"a": "b"}]),
        "a list as a vocabulary": changed(vocab=list(vocabulary)),
        "a vocabulary of objects": changed(vocab=vocabulary | {"a": {}}),
        "a model in a list": json.dumps([good]),
        "a model within another field": json.dumps({"other": good}),
        "a second model without fields": json.dumps(good)[:-1] + ', "model": {}}',
        "a second type": json.dumps(good).replace('"vocab":', '"type": [], "vocab":'),
        "too long": " " * ((32 << 20) + 1),
    }


def compare_files(program: str, path: Path, folder: Path) -> list[str]:
    good, faults = json.loads(path.read_text(encoding="utf-8")), []
    for name, content in bad_files(good).items():
        bad = folder / "bad.json"
        bad.write_text(content, encoding="utf-8")
        try:
            ClipTokenizer.from_file(bad)
            faults.append(f"{name}: Python takes it")
        except ValueError:
            pass
        result = run(program, bad, ["a"])
        if result.returncode != 1 or str(bad) not in result.stderr:
            faults.append(f"{name}: exit {result.returncode}, {result.stdout!r}, {result.stderr!r}")
    if run(program, folder / "missing.json", ["a"]).returncode != 1:
        faults.append("a missing file is taken")
    rng = random.Random(1)
    for number in range(6):
        file = folder / f"merges{number}.json"
        file.write_text(json.dumps(random_merges(good, rng)), encoding="utf-8")
        given = [("merges", "".join(rng.choices("aaabbbccc</w> ", k=rng.randint(1, 40)))) for _ in range(1000)]
        faults += compare_texts(program, file, given)
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--count", type=int, default=40000, help="how many random texts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every-character", action="store_true", help="also try each character of Unicode")
    options = parser.parse_args()
    faults = compare_texts(options.program, options.tokenizer, texts(options.seed, options.count))
    if options.every_character:
        faults += compare_texts(options.program, options.tokenizer, every_character())
    faults += compare_bytes(options.program, options.tokenizer, options.seed)
    for most, taken in (("4", True), ("3", False)):
        answer = run(options.program, options.tokenizer, ["a b c d"], most).stdout
        if ("a text of 4 tokens is longer than the 3 MuLaN takes: shorten 'a b c d'" in answer) == taken:
            faults.append(f"at most {most} tokens: {answer!r}")
    with tempfile.TemporaryDirectory() as folder:
        faults += compare_files(options.program, options.tokenizer, Path(folder))
    for fault in faults[:20]:
        print(fault)
    print(f"{len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
