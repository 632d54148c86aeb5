"""Snippets of the pages with smaller numbers, so that a test can run them."""

import re
from collections.abc import Iterable

SHORTER = (
    (r"num_train_steps=\d+_?\d+", "num_train_steps=1"),
    (r"save_model_every=10_000", "save_model_every=1"),
    (r"batch_size=\d+", "batch_size=2"),
    (r"grad_accum_every=4", "grad_accum_every=1"),
    (r"data_max_length_seconds=2", "data_max_length_seconds=0.25"),
    (r"data_max_length_seconds=5", "data_max_length_seconds=1"),
    (r"seconds=5\.0", "seconds=1.0"),
    (r"mulan\.2000\.pt", "mulan.1.pt"),
    (r"\b256\b", "32"),
    (r"depth=4, heads=4", "depth=1, heads=2"),
    (r"channels=16, codebook_dim=128", "channels=4, codebook_dim=32"),
    (r"=25\b", "=8"),
    (r"\.10000\.pt", ".0.pt"),  # upstream saves the first step as number 0
)


def shortened(code: str, replacements: Iterable[tuple[str, str]] = SHORTER) -> str:
    """Return code that takes one step of a tiny model in place of thousands."""
    for pattern, short in replacements:
        code = re.sub(pattern, short, code)
    return code
