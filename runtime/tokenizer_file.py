"""A tokenizer as a Hugging Face `tokenizer.json` describes it: for text towers that were trained on other tokens than CLIP's.

In: the file, texts. Out: the token ids that the package tokenizers gives with this file, special tokens around the text included. Here the
file decides everything, unlike for CLIP's tokenizer (`tokenizer.py`), but for one thing: a long text is refused instead of cut.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import Tokenizer

from .tokenizer import MAX_FILE_BYTES, ClipTokenizer, TextTokenizer
from .user_files import decode_text

TOKENIZER_FILE = "tokenizer.json"
_ADVICE = (
    f"expected a {TOKENIZER_FILE} of the package tokenizers. transformers writes one: "
    'AutoTokenizer.from_pretrained("...").save_pretrained("folder") makes folder/tokenizer.json'
)
_PADDING = re.compile(r"\[pad\]|<\|?pad\|?>", re.IGNORECASE)  # tokens for padding, by their names
_Result = TypeVar("_Result")


class FileTokenizer(TextTokenizer):
    """Texts to the ids of a `tokenizer.json`."""

    def __init__(self, content: str, pad_id: int = 0) -> None:
        """content: of the file; pad_id: the id that MuLaN masks. ValueError if it is not a tokenizer."""
        try:
            described = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"it is not JSON ({error}){_guess_of_text(content)}: {_ADVICE}") from error
        if not isinstance(described, dict) or not isinstance(described.get("model"), dict):
            raise ValueError(f"it is JSON, but no tokenizer{_guess_of_json(described)}: {_ADVICE}")
        self.content, self.model, self.pad_id = content, str(described["model"].get("type", "model")), pad_id
        self._tokenizer = _guarded(lambda: Tokenizer.from_str(content))
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        if not vocabulary:
            raise ValueError(f"its vocabulary is empty: {_ADVICE}")
        truncation, padding = self._tokenizer.truncation or {}, self._tokenizer.padding or {}
        self.max_tokens: int | None = truncation.get("max_length")  # to which training cut its texts
        self.padded_to: int | None = padding.get("length")  # how long it makes every text at least
        named = next((index for token, index in vocabulary.items() if _PADDING.fullmatch(token)), None)
        self.padding_id: int | None = padding.get("pad_id", named)  # the id that the file pads with; None if it names none
        self._tokenizer.no_truncation()
        empty = self._encode("")
        # What is put around or behind a text has the ids that the file says, be they in the vocabulary or not.
        vocabulary |= dict(zip(empty.tokens, empty.ids, strict=True))
        self.last_token, last = max(vocabulary.items(), key=lambda item: item[1])
        self.tokens = last + 1
        self.around = [token for token, seen in zip(empty.tokens, empty.attention_mask, strict=True) if seen]  # such as [CLS] and [SEP]

    @classmethod
    def from_file(cls, path: str | Path, pad_id: int = 0) -> FileTokenizer:
        """Read a `tokenizer.json`, or that of a folder. ValueError, which names the file, for anything else."""
        path = Path(path)
        if path.is_dir():
            names = ", ".join(sorted(item.name for item in path.iterdir())[:8]) or "no file"
            path, folder = path / TOKENIZER_FILE, path
            if not path.is_file():
                raise ValueError(f"{folder}: this folder has no {TOKENIZER_FILE}, but {names}: {_ADVICE}")
        if not path.is_file():
            raise ValueError(f"{path}: there is no such file")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ValueError(f"{path}: {path.stat().st_size} bytes, more than the {MAX_FILE_BYTES} a tokenizer may have")
        data = path.read_bytes()
        try:
            content = decode_text(data, str(path))
        except ValueError as error:
            guess = ", but a SentencePiece model or another binary file" if b"\0" in data or data[:1] == b"\n" else ""
            raise ValueError(f"{path}: it is not text in UTF-8{guess}: {_ADVICE}") from error
        try:
            return cls(content, pad_id)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def encode(self, text: str) -> list[int]:
        return self._encode(text).ids

    def encode_words(self, text: str) -> list[tuple[str, list[int]]]:
        """Return each word of a text as it was written, with its token ids. Words are what the file's own rules split a text into."""
        encoding = self._encode(text)
        words: list[tuple[int, int, list[int]]] = []
        before: int | None = None
        for index, word, (start, end), added in zip(
            encoding.ids, encoding.word_ids, encoding.offsets, encoding.special_tokens_mask, strict=True
        ):
            if added:  # by the tokenizer, around the text
                continue
            if word is None or word != before:  # a special token in the text is of no word
                words.append((start, end, [index]))
            else:
                first, last, ids = words[-1]
                words[-1] = (min(first, start), max(last, end), [*ids, index])
            before = word
        return [(text[start:end].strip(), ids) for start, end, ids in words]

    def _encode(self, text: str) -> Any:
        if not isinstance(text, str):
            raise ValueError(f"a text must be a string, got {type(text).__name__}")
        return _guarded(lambda: self._tokenizer.encode(text))


def read_tokenizer(path: Path, from_file: bool, pad_id: int = 0) -> TextTokenizer:
    """Read the tokenizer of a bundle. from_file: whether the file decides everything, or is CLIP's."""
    return (FileTokenizer if from_file else ClipTokenizer).from_file(path, pad_id)


def _guarded(call: Callable[[], _Result]) -> _Result:
    """Call the package tokenizers. ValueError for whatever it raises: it has no type of error of its own, and panics are no Exception."""
    try:
        return call()
    except ValueError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise  # an interrupt
        raise ValueError(f"the package tokenizers refuses it: {error}") from error


def _guess_of_text(content: str) -> str:
    """Return what a text that is not JSON may be, for a message."""
    lines = content[:4096].split("\n")
    if "#version" in lines[0]:
        return ", but a list of merges"
    return ", but a list of tokens, such as BERT's vocab.txt" if len(lines) > 2 and not any(" " in line for line in lines[:-1]) else ""


def _guess_of_json(described: Any) -> str:
    """Return what JSON that is no tokenizer may be, for a message."""
    if not isinstance(described, dict):
        return ""
    if "tokenizer_class" in described or "model_max_length" in described:
        return ", but a tokenizer_config.json"
    if "model_type" in described:
        return ", but the config.json of a model"
    numbers = bool(described) and all(type(value) is int for value in described.values())
    return ", but a vocabulary alone, the vocab.json of a slow tokenizer" if numbers else ""
