"""CLIP's byte-pair tokenizer, with which musiclm-pytorch trains MuLaN's text tower; and what every tokenizer of a bundle can do.

In: texts. Out: token ids, equal to those of x-clip's `SimpleTokenizer` on any text, without torch. CLIP's tokenizer is read from its merges
file or from a `tokenizer.json`, of which only the vocabulary and the merges are believed: everything else about it is here.
`tokenizer_file.py` has the tokenizers of other trainings. It does not know MuLaN.
"""

import html
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import ftfy
import numpy as np
import regex
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from .user_files import read_text

SPECIAL_TOKENS = ("<|startoftext|>", "<|endoftext|>")
_END_OF_WORD = "</w>"
_MERGES = 49152 - 256 - 2  # CLIP's file lists more merges than CLIP uses
CLIP_TOKENS = 2 * 256 + _MERGES + len(SPECIAL_TOKENS)
MAX_FILE_BYTES = 32 << 20  # CLIP's file takes 3 MB, one of a hundred languages 17 MB
# CLIP's definition (github.com/openai/CLIP, clip/simple_tokenizer.py): English clitics, runs of letters, single digits, runs of the rest.
_PIECES = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
_FIND_PIECES = regex.compile(_PIECES, regex.IGNORECASE)


def _byte_alphabet() -> dict[int, str]:
    """One printable character per byte, GPT-2's way: bytes that print as Latin-1 stand for themselves, the rest for U+0100 and on. The
    order of the entries is CLIP's order of token ids: the bytes that print come first."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


BYTE_ALPHABET = _byte_alphabet()


class TextTokenizer(ABC):
    """Texts to the token ids that MuLaN's text tower was trained on."""

    tokens: int  # one more than the largest id
    pad_id: int  # fills rows up to the longest of a batch, and is masked wherever it stands

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, those that the tokenizer puts around every text included."""

    @abstractmethod
    def encode_words(self, text: str) -> list[tuple[str, list[int]]]:
        """Return each word, digit or run of other signs of a text with its token ids; nothing for a text that holds none of these."""

    def encode_batch(self, texts: Sequence[str], max_tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """Return input_ids int64 [B, n] of B texts, padded with `pad_id` at the end, and attention_mask int64 [B, n], 1 = token.

        ValueError on a text that is not a string, holds no token, or holds more than `max_tokens`.
        """
        if isinstance(texts, str) or not texts:
            raise ValueError(f"expected a list of at least one text, got {texts!r}")
        rows = [self.encode(text) for text in texts]
        for text, row in zip(texts, rows, strict=True):
            if not self.encode_words(text):
                raise ValueError(f"the text {text!r} holds no token: write what the music should sound like")
            if len(row) > max_tokens:
                raise ValueError(f"a text of {len(row)} tokens is longer than the {max_tokens} MuLaN takes: shorten {text[:60]!r}")
        input_ids = np.full((len(rows), max(map(len, rows))), self.pad_id, np.int64)
        for i, row in enumerate(rows):
            input_ids[i, : len(row)] = row
        # Upstream masks what equals the padding's id, 0 by default. But CLIP's 0 is also the token "!" where a word goes on after it, as in
        # "!?": MuLaN never saw that token in training, so it is masked here too.
        return input_ids, (input_ids != self.pad_id).astype(np.int64)


class ClipTokenizer(TextTokenizer):
    """Texts to CLIP token ids. Without start and end tokens: MuLaN is trained on the text alone."""

    def __init__(self, vocabulary: dict[str, int], merges: list[tuple[str, str]], pad_id: int = 0) -> None:
        """vocabulary: token -> id, 0 to V - 1; merges: pairs of tokens, the earliest first. ValueError lists what does not fit CLIP."""
        alphabet = [symbol + suffix for symbol in BYTE_ALPHABET.values() for suffix in ("", _END_OF_WORD)]
        faults = [f"the vocabulary lacks {token!r}" for token in (*alphabet, *SPECIAL_TOKENS) if token not in vocabulary]
        if sorted(vocabulary.values()) != list(range(len(vocabulary))):
            faults.append(f"the {len(vocabulary)} token ids are not the numbers from 0 to {len(vocabulary) - 1}")
        strange = [pair for pair in merges if not {*pair, "".join(pair)} <= vocabulary.keys()]
        faults += [f"the merge {pair!r} uses or makes a token that the vocabulary lacks" for pair in strange]
        if faults:
            raise ValueError(f"not CLIP's tokenizer: {'; '.join(faults[:5])}{f' and {len(faults) - 5} more' if len(faults) > 5 else ''}")
        self.vocabulary, self.tokens, self.pad_id = vocabulary, len(vocabulary), pad_id
        self._bpe = BPE(vocabulary, merges, end_of_word_suffix=_END_OF_WORD)

    @classmethod
    def from_merges(cls, path: str | Path) -> "ClipTokenizer":
        """Read CLIP's merges file, `bpe_simple_vocab_16e6.txt`: a header, then one pair a line."""
        lines = Path(path).read_text(encoding="utf-8").split("\n")[1 : _MERGES + 1]
        merges = [(first, second) for first, second in (line.split() for line in lines)]
        symbols = list(BYTE_ALPHABET.values())
        tokens = [*symbols, *(symbol + _END_OF_WORD for symbol in symbols), *map("".join, merges), *SPECIAL_TOKENS]
        return cls({token: index for index, token in enumerate(tokens)}, merges)

    @classmethod
    def from_file(cls, path: str | Path, pad_id: int = 0) -> "ClipTokenizer":
        """Read a `tokenizer.json`. Nothing in it is run, not even its patterns; ValueError if it is not CLIP's."""
        path = Path(path)
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ValueError(f"{path}: {path.stat().st_size} bytes, more than the {MAX_FILE_BYTES} a tokenizer may have")
        try:
            model = json.loads(read_text(path))["model"]
            if model["type"] != "BPE" or model["end_of_word_suffix"] != _END_OF_WORD:
                raise ValueError(f"the model is not a BPE with the end-of-word suffix {_END_OF_WORD!r}")
            return cls(vocabulary_of(model["vocab"]), [merge_of(pair) for pair in model["merges"]], pad_id)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{path} is not a tokenizer.json of CLIP's tokenizer: {type(error).__name__}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write a `tokenizer.json` for this class and for other hosts of that format. The format has no word for ftfy's repairs, HTML
        entities and some of Unicode's case rules: on texts with those, other hosts may get other ids."""
        tokenizer = Tokenizer(self._bpe)
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip(), normalizers.Lowercase()]
        )
        split = pre_tokenizers.Split(Regex(f"(?i:{_PIECES})"), behavior="removed", invert=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([AddedToken(token, normalized=True, special=True) for token in SPECIAL_TOKENS])
        Path(path).write_text(tokenizer.to_str(), encoding="utf-8")  # its own `save` has no type of error for a full disk

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, perhaps none. Case, runs of white space and HTML entities do not matter."""
        return [index for _, ids in self.encode_words(text) for index in ids]

    def encode_words(self, text: str) -> list[tuple[str, list[int]]]:
        """Return each word, digit or run of other signs of a text, in lower case, with its token ids."""
        if not isinstance(text, str):
            raise ValueError(f"a text must be a string, got {type(text).__name__}")
        words = []
        # Upstream also trims and collapses white space; no piece holds any, so that changes nothing.
        for piece in _FIND_PIECES.findall(html.unescape(html.unescape(ftfy.fix_text(text))).lower()):
            if piece in SPECIAL_TOKENS:
                ids = [self.vocabulary[piece]]
            else:
                ids = [token.id for token in self._bpe.tokenize("".join(BYTE_ALPHABET[byte] for byte in piece.encode()))]
            words.append((piece, ids))
        return words


def vocabulary_of(entries: Any) -> dict[str, int]:
    if not isinstance(entries, dict) or not all(type(index) is int for index in entries.values()):
        raise ValueError("vocab must map tokens to whole numbers")
    return entries


def merge_of(pair: Any) -> tuple[str, str]:
    """A merge as either generation of the format writes it: "a b" or ["a", "b"]."""
    parts: Iterable[Any] = pair.split(" ") if isinstance(pair, str) else pair
    first, second = parts
    if not (isinstance(first, str) and isinstance(second, str)):
        raise ValueError(f"a merge must be two tokens, got {pair!r}")
    return first, second
