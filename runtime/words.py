"""The words of a prompt that MuLaN's text tower was never trained on, so that a clip of such words does not pass for one of the others.

In: the manifest's bits, a tokenizer, prompts. Out: words. How the export tells which tokens were trained is in export/trained_tokens.py.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Sequence

import numpy as np

from .bundle import BundleError
from .prompts import Prompt
from .tokenizer import ClipTokenizer


def pack_tokens(trained: np.ndarray) -> str:
    """bool [V] -> base64 of one bit per token, the first in the highest place: what `Mulan.trained_tokens` holds."""
    return base64.b64encode(np.packbits(trained).tobytes()).decode("ascii")


def unpack_tokens(packed: str, tokens: int) -> np.ndarray:
    """The bool [V] that `pack_tokens` was given, of so many tokens. BundleError if the bits are of another number."""
    try:
        data = np.frombuffer(base64.b64decode(packed, validate=True), np.uint8)
    except (binascii.Error, ValueError) as error:
        raise BundleError(f"mulan: trained_tokens is not base64: {error}") from error
    if len(data) != -(-tokens // 8):
        raise BundleError(f"mulan: trained_tokens has {len(data)} bytes, expected {-(-tokens // 8)}: a bit for each of {tokens} tokens")
    return np.unpackbits(data, count=tokens).astype(bool)


def unknown_words(text: str, tokenizer: ClipTokenizer, trained: np.ndarray) -> list[str]:
    """The words of a text that hold a token without training, each once, in their order. trained: bool [V]. Signs alone are no words."""
    words = [word for word, ids in tokenizer.encode_words(text) if not trained[ids].all() and any(map(str.isalnum, word))]
    return list(dict.fromkeys(words))


def texts_of(prompts: Iterable[Prompt]) -> list[str]:
    """The texts of prompts, those inside of blends included."""
    parts: list[Sequence] = [[prompt] if isinstance(prompt, str) else [part for part, _ in prompt.parts] for prompt in prompts]
    return [part for own in parts for part in own if isinstance(part, str)]
