"""Compare libmusiclm's RoBERTa tokenizer with the package tokenizers, on random texts of many kinds and on damaged files.

    python embed/tests/compare_roberta.py TOKENIZE [--count N] [--files N] [--seed N] [--every-character] [--keep FILE]

TOKENIZE is the program of tests/tokenize.cpp. The vocabulary is trained here. Every text must get the same ids, or be refused by both;
every damaged file must be refused with a sentence, or give the ids that it gives in Python. Exits with 1 where that does not hold.
"""

# ruff: noqa: RUF001 (signs that look like others are what is tested)

from __future__ import annotations

import argparse
import copy
import itertools
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from texts import EDGES, KINDS, SENTENCES, every_character, sentence
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from musiclm_deploy.runtime.tokenizer_file import FileTokenizer

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
ANOTHER = "which are the only ones that this library reads: play it with musiclm-deploy in Python"
_GAPS = [chr(c) for c in range(0x10000) if chr(c).isspace()] + ["\u180e", "\u200b", "\u2060", "\ufeff", "\x00", "\u0345"]
_DIGITS = "0123456789٣४৫௧๙１²½Ⅷ①㊿𝟘𑁦🄀"
_MARKS = "\u0301\u0308\u0323\u0489\u093f\u0e35\u200d\ufe0f\U000e0100"


def special_in_words(rng: random.Random) -> str:
    parts = [*SPECIAL * 2, *("<mask", "mask>", "<<s>", "</s>>", "<S>", "</ s>", "<s", "<", ">"), *("music", "é", "'s", "日", "12", "!")]
    return "".join(rng.choice(parts) + rng.choice(["", "", *rng.choices(_GAPS, k=2), "  "]) for _ in range(rng.randint(1, 10)))


def gaps(rng: random.Random) -> str:
    parts = [*rng.choices(_GAPS, k=3), " ", " ", "  ", "a", "é", "7", "!", "'", "'s", "<mask>"]
    return "".join(rng.choice(parts) for _ in range(rng.randint(1, 20)))


def contractions(rng: random.Random) -> str:
    ends = ["s", "t", "re", "ve", "m", "ll", "d", "S", "LL", "l", "r", "v", "x", "ſ", ""]
    marks = ["'", "'", "'", "’", " '", "''", "!'", "' "]
    return "".join(rng.choice(["I", "don", "", "é", "3", " "]) + rng.choice(marks) + rng.choice(ends) for _ in range(rng.randint(1, 8)))


def numbers(rng: random.Random) -> str:
    return "".join(rng.choice(_DIGITS + _MARKS + " a.,-") for _ in range(rng.randint(1, 20)))


def any_plane(rng: random.Random) -> str:
    starts = [rng.choice([0, 0x10000, 0x20000, 0x30000, 0xE0000, 0xF0000, 0x100000]) + rng.randrange(0x10000) for _ in range(3)]
    numbers = [min(rng.choice(starts) + rng.randrange(40), 0x10FFFF) for _ in range(rng.randint(1, 20))]
    return "".join(" " if rng.random() < 0.1 else chr(c) for c in numbers if not 0xD800 <= c < 0xE000)


def long_word(rng: random.Random) -> str:
    signs = rng.choice(["abcdetsr", "e", "éàü日本한", "0123456789", "!?.", "🎹🎸", "ab", " ", "\t "])
    return rng.choice(["", " ", "x", "<mask>"]) + "".join(rng.choices(signs, k=int(10 ** rng.uniform(1, 3.5)))) + rng.choice(["", " ", "x"])


OWN_KINDS: dict[str, Callable[[random.Random], str]] = {
    "special tokens in words": special_in_words,
    "gaps": gaps,
    "contractions": contractions,
    "numbers": numbers,
    "any plane": any_plane,
    "a long word": long_word,
}


def texts(seed: int, count: int) -> Iterator[tuple[str, str]]:
    """Yield pairs of a kind and a text: the edge cases, then `count` random ones, a third of them in the languages of `SENTENCES`."""
    rng, kinds = random.Random(seed), KINDS | OWN_KINDS
    yield from (("edges", text) for text in EDGES)
    for number in range(count):
        kind = rng.choice([list(SENTENCES), list(KINDS), list(OWN_KINDS)][number % 3])
        yield kind, sentence(rng, kind) if kind in SENTENCES else kinds[kind](rng)


def each_character() -> Iterator[tuple[str, str]]:
    """Yield texts of each character of Unicode alone, between letters, between numbers, and among gaps."""
    for kind, text in every_character():
        c = text[1]
        yield "alone", c
        yield kind, f"{text} !{c}! {c}{c}  {c} {c}<mask>{c}"


def trained(merges: int, seed: int = 0) -> Tokenizer:
    """Return RoBERTa's tokenizer in the layout that bundles have, with a vocabulary of texts that are made up."""
    rng, made = random.Random(seed), Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    size = len(SPECIAL) + 256 + merges
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(SPECIAL[:4]), show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    kinds = [*list(SENTENCES) * 2, *KINDS, *OWN_KINDS]
    made.train_from_iterator((text for _, text in _drawn(rng, kinds, 5 * merges)), trainer)
    model = json.loads(made.to_str())["model"]
    vocabulary = model["vocab"] | {"<mask>": len(model["vocab"])}  # the last one, as in RoBERTa's
    made = Tokenizer(models.BPE(vocabulary, [tuple(pair) for pair in model["merges"]]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    ends = [(token, vocabulary[token]) for token in ("</s>", "<s>")]
    made.post_processor = processors.RobertaProcessing(*ends, trim_offsets=True, add_prefix_space=False)
    made.add_special_tokens([AddedToken(token, lstrip=token == "<mask>", normalized=False, special=True) for token in SPECIAL])
    made.enable_truncation(77)
    return made


def _drawn(rng: random.Random, kinds: list[str], count: int) -> Iterator[tuple[str, str]]:
    for _ in range(count):
        kind = rng.choice(kinds)
        text = sentence(rng, kind) if kind in SENTENCES else (KINDS | OWN_KINDS)[kind](rng)
        yield kind, text.replace("\ud800", "")


def run(program: str, path: Path, lines: Iterable[bytes], *more: str) -> subprocess.CompletedProcess:
    return subprocess.run([program, "--from-file", str(path), *more], input=b"\n".join([*lines, b""]), capture_output=True, check=False)


def reference(tokenizer: FileTokenizer, text: str, most: int = sys.maxsize) -> list[int] | str:
    """Return Python's ids, or its reason for refusing a text."""
    try:
        return tokenizer.encode_batch([text], most)[0][0].tolist()
    except ValueError as error:  # among them UnicodeEncodeError for halves of characters
        return str(error)


def differs(wanted: list[int] | str, answer: bytes) -> bool:
    """Return whether an answer of the program is another one than Python's. Two refusals must be for the same reason."""
    if not answer.startswith(b"refused: "):
        return isinstance(wanted, str) or [int(one) for one in answer.split()] != wanted
    found = json.loads(answer.removeprefix(b"refused: "))
    return not isinstance(wanted, str) or reason(found) != reason(wanted)


def reason(message: str) -> str:
    """Return why a text was refused, without the text, which Python and the library quote in ways of their own."""
    if "must be str" in message or "surrogate" in message:
        return "half a character"
    return message.partition(": shorten ")[0] if ": shorten " in message else message[-60:]


def compare_texts(program: str, path: Path, given: Iterable[tuple[str, str]], most: int = sys.maxsize) -> list[str]:
    """Compare texts, of which each has a kind; return the faults. most: how many tokens one may have."""
    tokenizer, faults, refused, count = FileTokenizer.from_file(path), [], 0, 0
    pairs = iter(given)
    while some := list(itertools.islice(pairs, 100_000)):
        result = run(program, path, (json.dumps(text).encode() for _, text in some), str(most))
        answers = result.stdout.splitlines()
        if result.returncode or len(answers) != len(some):
            return [*faults, f"{program} gave {len(answers)} answers to {len(some)} texts: {result.stderr!r}"]
        for (kind, text), answer in zip(some, answers, strict=True):
            wanted = reference(tokenizer, text, most)
            refused += isinstance(wanted, str)
            if differs(wanted, answer):
                faults.append(f"{kind}: {text[:200]!a}: got {answer[:200]!r}, expected {str(wanted)[:200]}")
        count += len(some)
    print(f"{count} texts, {refused} refused by both, {len(faults)} differ", flush=True)
    return faults


def compare_bytes(program: str, path: Path, seed: int) -> list[str]:
    """Compare texts of random bytes: what Python cannot decode must be refused."""
    rng, tokenizer, given = random.Random(seed), FileTokenizer.from_file(path), []
    for _ in range(2000):
        text = bytearray("".join(rng.choices("aé日🎹\u07ff\u0800\ud7ff\ue000\uffff\U00010000\U0010ffff ", k=rng.randint(1, 5))).encode())
        for _ in range(rng.randint(0, 2)):
            text[rng.randrange(len(text))] = rng.choice(b"\x80\xbf\xc0\xc1\xc2\xdf\xe0\xed\xef\xf0\xf4\xf5\xffa")
        given.append(bytes(text))
    faults = []
    for text, answer in zip(given, run(program, path, (b"=" + text for text in given)).stdout.splitlines(), strict=True):
        try:
            wrong = differs(reference(tokenizer, text.decode()), answer)
        except UnicodeDecodeError as error:
            wrong = b"not UTF-8" not in answer or f"byte {error.start} ".encode() not in answer
        if wrong:
            faults.append(f"bytes {text!r}: {answer!r}")
    print(f"{len(given)} texts of bytes, {len(faults)} differ")
    return faults


def places(value: Any, at: tuple = ()) -> Iterator[tuple]:
    """Yield where every value of a tokenizer.json stands; of long lists and objects a few entries."""
    yield at
    entries = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    for key, entry in entries[:8] + entries[8:][-3:]:
        yield from places(entry, (*at, key))


def changed(good: Any, at: tuple, change: Callable[[Any, Any], None]) -> str:
    made = copy.deepcopy(good)
    around = made
    for key in at[:-1]:
        around = around[key]
    change(around, at[-1])
    return json.dumps(made)


VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 77, 2**31, 2**63, 2**64, 0.5, 1e308),
    *("", "x", "<s>", "BPE", [], {}, ["a", "b"], {"a": 1}, [[]]),
]


def mutants(good: Any, rng: random.Random, count: int) -> Iterator[tuple[str, bytes]]:
    """Yield damaged files, and what is wrong with them: made up ones, each without one of its values, then random changes."""
    text = json.dumps(good)
    model, vocabulary, merges = good["model"], good["model"]["vocab"], good["model"]["merges"]

    def of_model(**fields: Any) -> str:
        return json.dumps(good | {"model": model | fields})

    last = max(vocabulary.values())
    yield from (
        (name, content.encode())
        for name, content in {
            "empty": "",
            "no JSON": "{",
            "zero bytes": text + "\0",
            "too long": text + " " * (32 << 20),
            "a deep list": '{"model": ' + "[" * 1_000_000,
            "a deep list elsewhere": '{"version": ' + "[" * 1_000_000,
            "many settings": json.dumps(good | {"normalizer": list(range(100_000))}),
            "ids with a gap": of_model(vocab=vocabulary | {"zzz": last + 2}),
            "an id twice": of_model(vocab=vocabulary | {"zzz": last}),
            "a huge id": of_model(vocab=vocabulary | {"zzz": 2**40}),
            "an id below 0": of_model(vocab=vocabulary | {"zzz": -1}),
            "no token for a byte": of_model(vocab={token: index for token, index in vocabulary.items() if token != "Ġ"}),
            "a vocabulary of Unigram": json.dumps(good | {"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a", -1.0]]}}),
            "WordPiece": json.dumps(good | {"model": {"type": "WordPiece", "unk_token": "x", "vocab": {"x": 0}}}),
            "WordPiece with merges": of_model(type="WordPiece"),
            "a merge of unknown tokens": of_model(merges=[*merges, ["☃", "☃"]]),
            "a merge that makes an unknown token": of_model(merges=[*merges, ["Ġ", "!" * 9]]),
            "a merge of three": of_model(merges=[*merges, "a b c"]),
            "merges as texts": of_model(merges=[" ".join(pair) for pair in merges]),
            "a merge twice": of_model(merges=[*merges[1:], merges[0], merges[1]]),
            "a field twice": text.replace('"normalizer"', '"normalizer": {"type": "Lowercase"}, "normalizer"'),
            "a vocabulary twice": text.replace('"vocab"', '"vocab": {}, "vocab"'),
            "a model twice": text[:-1] + ', "model": {}}',
            "a token twice": text.replace('"vocab": {', '"vocab": {"a": 0, '),
            "a model within another field": json.dumps({"other": good}),
            "a long text without an end": '{"version": "' + "x" * 1_000_000,
            "text before": "x" + text,
            "text behind": text + "x",
        }.items()
    )
    known = list(places(good))
    for at in known[1:]:
        yield f"without {at}", changed(good, at, lambda around, key: around.pop(key)).encode()
    for _ in range(count):
        how, at, value = rng.randrange(4), rng.choice(known[1:]), rng.choice(VALUES)
        if how == 0:
            end = rng.randrange(len(text))
            yield f"cut at {end}", text.encode()[:end]
        elif how == 1:
            damaged = bytearray(text.encode())
            for _ in range(rng.randint(1, 3)):
                damaged[rng.choice([rng.randrange(len(damaged)), rng.randrange(900)])] = rng.choice(b'\0\xff{}[]",:0 9"az\\')
            yield f"bytes {bytes(damaged[:900])!r}", bytes(damaged)
        elif how == 2:
            yield f"{at} = {value!r}", changed(good, at, lambda around, key, value=value: around.__setitem__(key, value)).encode()
        else:
            around = at[:-1]
            if isinstance(at[-1], str):
                yield f"{around} with x = {value!r}", changed(good, (*around, "x"), lambda a, key, v=value: a.__setitem__(key, v)).encode()
            else:
                yield f"{value!r} before {at}", changed(good, at, lambda a, key, v=value: a.insert(key, v)).encode()


def compare_files(program: str, good: Any, folder: Path, seed: int, count: int) -> list[str]:
    """Compare what both make of damaged files."""
    rng, faults, taken, tried = random.Random(seed), [], 0, 0
    given = [text for _, text in texts(seed, 12)] + ["a <mask> b </s>"]
    lines = [json.dumps(text).encode() for text in given]
    path = folder / "tokenizer.json"
    for what, content in mutants(good, rng, count):
        tried += 1
        path.write_bytes(content)
        result = run(program, path, lines)
        if result.returncode == 1:
            error = result.stderr.decode(errors="replace")
            if str(path) not in error or len(error) > 3000 or "Sanitizer" in error:
                faults.append(f"{what}: {error!r}")
            continue
        taken += 1
        try:
            tokenizer = FileTokenizer.from_file(path)
        except ValueError as error:
            faults.append(f"{what}: opened, Python refuses it: {error}")
            continue
        answers = result.stdout.splitlines()
        if result.returncode or len(answers) != len(given) or any(map(differs, (reference(tokenizer, text) for text in given), answers)):
            faults.append(f"{what}: exit {result.returncode}, other ids: {result.stderr!r}")
    print(f"{tried} damaged files, {tried - taken} of them refused, {len(faults)} treated in another way than by Python")
    if run(program, folder / "missing.json", lines).returncode != 1:
        faults.append("a missing file is taken")
    return faults


def check_words(program: str, good: Any, folder: Path) -> list[str]:
    """Check how files are refused: by what was found, and what is covered."""
    faults, path = [], folder / "tokenizer.json"
    for fields, words in {
        "normalizer": ({"type": "Lowercase"}, "normalizer: expected None, got {'type': 'Lowercase'}"),
        "padding": ({}, "padding: expected None, got {}"),
        "pre_tokenizer": (good["pre_tokenizer"] | {"add_prefix_space": True}, "pre_tokenizer.add_prefix_space: expected False, got True"),
        "model": ({"type": "Unigram", "vocab": []}, "model.type: expected 'BPE', got 'Unigram'"),
        "added_tokens": (good["added_tokens"][1:], "added_tokens: expected 5 entries, got 4"),
        "post_processor": (None, "got None"),
    }.items():
        path.write_text(json.dumps(good | {fields: words[0]}), encoding="utf-8")
        result = run(program, path, [])
        if result.returncode != 1 or words[1] not in result.stderr.decode() or ANOTHER not in result.stderr.decode():
            faults.append(f"{fields}: {result.stderr!r}")
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--count", type=int, default=40000, help="how many random texts")
    parser.add_argument("--files", type=int, default=2000, help="how many randomly damaged files")
    parser.add_argument("--merges", type=int, default=4000, help="how many merges the vocabulary has")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every-character", action="store_true", help="also try each character of Unicode")
    parser.add_argument("--keep", type=Path, help="where to write the tokenizer.json that was compared")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        path, good = folder / "good.json", trained(options.merges, options.seed)
        path.write_text(good.to_str(), encoding="utf-8")
        if options.keep:
            options.keep.write_bytes(path.read_bytes())
        print(f"a vocabulary of {good.get_vocab_size()} tokens")
        faults = compare_texts(options.program, path, texts(options.seed, options.count))
        faults += compare_texts(options.program, path, texts(options.seed + 1, options.count // 20), most=20)
        if options.every_character:
            faults += compare_texts(options.program, path, each_character())
        faults += compare_bytes(options.program, path, options.seed)
        small = json.loads(trained(40, options.seed).to_str())
        faults += compare_files(options.program, small, folder, options.seed, options.files)
        faults += check_words(options.program, small, folder)
    for fault in faults[:20]:
        print(fault)
    print(f"{len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
