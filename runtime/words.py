"""The words of a prompt that MuLaN's text tower was never trained on, so that a clip of such words does not pass for one of the others.

In: the manifest's bits, a tokenizer, prompts. Out: words. How the export tells which tokens were trained is in export/trained_tokens.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from .prompts import Prompt
from .tokenizer import ClipTokenizer


def unknown_words(text: str, tokenizer: ClipTokenizer, trained: np.ndarray) -> list[str]:
    """The words of a text that hold a token without training, each once, in their order. trained: bool [V]. Signs alone are no words."""
    words = [word for word, ids in tokenizer.encode_words(text) if not trained[ids].all() and any(map(str.isalnum, word))]
    return list(dict.fromkeys(words))


def texts_of(prompts: Iterable[Prompt]) -> list[str]:
    """The texts of prompts, those inside of blends included."""
    parts: list[Sequence] = [[prompt] if isinstance(prompt, str) else [part for part, _ in prompt.parts] for prompt in prompts]
    return [part for own in parts for part in own if isinstance(part, str)]
