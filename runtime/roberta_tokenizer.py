"""RoBERTa's byte-level tokenizer, on whose ids CLAP's text tower was trained, from the files that people have of it.

In: `vocab.json` and `merges.txt`, or a `tokenizer.json`, of which only the vocabulary and the merges are believed. Out: token ids, equal
to those of transformers' `RobertaTokenizer` on any text, and one canonical `tokenizer.json` for bundles. Readers of a bundle need this file
no more: `tokenizer_file.py` reads the canonical one as it reads any other.

The canonical layout, for readers in other languages. The file is JSON in UTF-8, on one line, with these keys in this order:

    version         "1.0"
    truncation      {"direction": "Right", "max_length": 77, "strategy": "LongestFirst", "stride": 0}: most tokens, <s> and </s> included
    padding         null
    added_tokens    <s>, <pad>, </s>, <unk>, <mask> in the order of their ids, each {"id", "content", "single_word": false, "lstrip",
                    "rstrip": false, "normalized": false, "special": true}; lstrip is true for <mask> alone, which swallows the white
                    space before it
    normalizer      null: no lower-casing, no Unicode form
    pre_tokenizer   {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}: GPT-2's pattern, then one
                    printable character per byte of UTF-8
    post_processor  {"type": "RobertaProcessing", "sep": ["</s>", id], "cls": ["<s>", id], "trim_offsets": true,
                    "add_prefix_space": false}: <s> before a text and </s> after it, so that the empty text is [<s>, </s>]
    decoder         {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}
    model           {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
                    "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab", "merges"}; "vocab" maps every token, the
                    five above among them, to its id, in the order of ids, which are 0 to V - 1; "merges" lists [first, second], the
                    earliest first

A text is first split at the five tokens, leftmost first; what is between them is split by GPT-2's pattern and merged by BPE.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .tokenizer import BYTE_ALPHABET, MAX_FILE_BYTES, merge_of, vocabulary_of
from .tokenizer_file import TOKENIZER_FILE, FileTokenizer
from .user_files import read_text

MAX_TOKENS = 77  # to which CLAP's training cut its texts
SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
VOCABULARY_FILE, MERGES_FILE = "vocab.json", "merges.txt"
_ADVICE = (
    f"RoBERTa's tokenizer is {VOCABULARY_FILE} and {MERGES_FILE} in one folder, or {TOKENIZER_FILE}, as in the folder of roberta-base or "
    "of a CLAP on the Hugging Face Hub"
)


class RobertaTokenizer(FileTokenizer):
    """Texts to RoBERTa's token ids, <s> and </s> around them."""

    def __init__(self, vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> None:
        """vocabulary: token -> id, 0 to V - 1; merges: pairs of tokens, the earliest first. ValueError lists what is not RoBERTa's."""
        faults = [f"the vocabulary lacks {token!r}" for token in (*SPECIAL_TOKENS, *BYTE_ALPHABET.values()) if token not in vocabulary]
        if sorted(vocabulary.values()) != list(range(len(vocabulary))):
            faults.append(f"the {len(vocabulary)} token ids are not the numbers from 0 to {len(vocabulary) - 1}")
        strange = [pair for pair in merges if not {*pair, "".join(pair)} <= vocabulary.keys()]
        faults += [f"the merge {pair!r} uses or makes a token that the vocabulary lacks" for pair in strange]
        if faults:
            more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
            raise ValueError(f"not RoBERTa's tokenizer: {'; '.join(faults[:5])}{more}")
        super().__init__(_canonical(vocabulary, merges), vocabulary["<pad>"])

    @classmethod
    def from_files(cls, path: str | Path) -> RobertaTokenizer:
        """Read a folder, or one of the files. ValueError, which names the file, for anything else."""
        path = Path(path)
        found = tokenizer_files(path)
        if not found:
            held = f"this folder holds {_names_in(path)}" if path.is_dir() else "no such file" if not path.is_file() else "another file"
            raise ValueError(f"{path}: {held}. {_ADVICE}")
        for file in found:
            if file.stat().st_size > MAX_FILE_BYTES:
                raise ValueError(f"{file}: {file.stat().st_size} bytes, more than the {MAX_FILE_BYTES} a tokenizer may have")
        try:
            vocabulary, merges = _read_json(found[0]) if len(found) == 1 else _read_pair(*found)
            return cls(vocabulary, merges)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{found[0]}: {error}. {_ADVICE}") from error


def tokenizer_files(path: Path) -> list[Path]:
    """Return the files of a tokenizer that a path stands for, one `tokenizer.json`, or `vocab.json` and `merges.txt`; [] for none."""
    if path.is_dir():
        candidates = [[path / TOKENIZER_FILE], [path / VOCABULARY_FILE, path / MERGES_FILE]]
    elif path.name in (VOCABULARY_FILE, MERGES_FILE):
        candidates = [[path.with_name(VOCABULARY_FILE), path.with_name(MERGES_FILE)]]
    else:
        candidates = [[path]] if path.suffix == ".json" else []
    return next((files for files in candidates if all(file.is_file() for file in files)), [])


def _read_json(path: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Read a `tokenizer.json`. Raises ValueError if it splits or changes texts in another way than RoBERTa's does."""
    described = json.loads(read_text(path))
    if not isinstance(described, dict) or not isinstance(described.get("model"), dict):
        raise ValueError("it is JSON, but no tokenizer.json")
    model, added = described["model"], described.get("added_tokens") or []
    split = described.get("pre_tokenizer") or {}
    if model.get("type", "BPE") != "BPE" or model.get("end_of_word_suffix") or model.get("continuing_subword_prefix"):
        raise ValueError(f"its model is {model.get('type')!r} with marks at words' ends, expected a byte-level BPE")
    if split.get("type") != "ByteLevel" or split.get("add_prefix_space") or described.get("normalizer"):
        raise ValueError(
            "it changes or splits texts in another way than RoBERTa's: expected ByteLevel without a prefix space, no normalizer"
        )
    vocabulary = vocabulary_of(model["vocab"]) | {token["content"]: token["id"] for token in added}
    if others := [token["content"] for token in added if token["content"] not in SPECIAL_TOKENS]:
        raise ValueError(f"it adds the tokens {', '.join(map(repr, others[:3]))}, which RoBERTa's has not")
    return vocabulary, [merge_of(pair) for pair in model["merges"]]


def _read_pair(vocabulary: Path, merges: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    lines = read_text(merges).split("\n")
    pairs = [line.rstrip("\r") for line in lines if line.strip() and not line.startswith("#version")]
    return vocabulary_of(json.loads(read_text(vocabulary))), [merge_of(pair) for pair in pairs]


def _canonical(vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> str:
    """Return the canonical `tokenizer.json`, whose layout the module describes."""
    special = sorted(SPECIAL_TOKENS, key=vocabulary.__getitem__)
    byte_level = {"trim_offsets": True, "use_regex": True}
    described: dict[str, Any] = {
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": MAX_TOKENS, "strategy": "LongestFirst", "stride": 0},
        "padding": None,
        "added_tokens": [
            {
                "id": vocabulary[token],
                "content": token,
                "single_word": False,
                "lstrip": token == "<mask>",
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for token in special
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, **byte_level},
        "post_processor": {
            "type": "RobertaProcessing",
            "sep": ["</s>", vocabulary["</s>"]],
            "cls": ["<s>", vocabulary["<s>"]],
            "trim_offsets": True,
            "add_prefix_space": False,
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, **byte_level},
        "model": {
            "type": "BPE",
            **dict.fromkeys(("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix")),
            **dict.fromkeys(("fuse_unk", "byte_fallback", "ignore_merges"), False),
            "vocab": dict(sorted(vocabulary.items(), key=lambda item: item[1])),
            "merges": [list(pair) for pair in merges],
        },
    }
    return json.dumps(described, ensure_ascii=False, separators=(",", ":"))


def _names_in(folder: Path) -> str:
    return ", ".join(sorted(item.name for item in folder.iterdir())[:8]) or "no file"
