"""The words of a prompt that MuLaN's text tower was never trained on, for a warning that they do not mean anything to the model.

In: the manifest's bits, a tokenizer, prompts. Out: words. export/trained_tokens.py finds out which tokens were trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from .prompts import Prompt
from .tokenizer import TextTokenizer


def unknown_words(text: str, tokenizer: TextTokenizer, trained: np.ndarray) -> list[str]:
    """Return the words of a text that contain an untrained token, each once and in order. trained: bool [V]. Signs alone are no words."""
    words = [word for word, ids in tokenizer.encode_words(text) if not trained[ids].all() and any(map(str.isalnum, word))]
    return list(dict.fromkeys(words))


def texts_of(prompts: Iterable[Prompt]) -> list[str]:
    """Return the texts of prompts, including those inside blends."""
    parts: list[Sequence] = [[prompt] if isinstance(prompt, str) else [part for part, _ in prompt.parts] for prompt in prompts]
    return [part for own in parts for part in own if isinstance(part, str)]
