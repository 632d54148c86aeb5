"""The tables of losses in docs/export.md and docs/gpu.md: the precision that fewer bits cost the demo's checkpoint, measured by its export.

    python -m demo.losses            # exports the checkpoint four times, some minutes, and writes both tables
    python -m demo.losses --check    # status 1 if the pages have other numbers than these exports measure

The numbers depend a little on the processor: fp32 sums in another order, and with them some of the tokens on which a loss is measured.
`--check` allows for that.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import musiclm_deploy as md
from musiclm_deploy.runtime.bundle import STAGES, Bundle

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINT = ROOT / "demo" / "checkpoint"
PAGES = {"docs/export.md": ("onnxruntime", ("int8", "int4")), "docs/gpu.md": ("tensorrt", ("fp16", "bf16"))}
BEGIN, END = "<!-- begin: demo.losses -->", "<!-- end: demo.losses -->"
_POINTS, _FACTOR = 1.5, 1.5  # how far a share in percent, and a divergence, may be from the page's


def measure(precision: str, target: str) -> Mapping[str, Any]:
    """Export the checkpoint in a precision; return the loss of each stage as the manifest has it."""
    names = ("semantic", "coarse", "fine", "codec", "quantizer")
    files: dict[str, Any] = {name: CHECKPOINT / f"{name}.pt" for name in names}
    config = json.loads((CHECKPOINT / "config.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        out = md.export_checkpoints(
            **files,
            semantic_features=CHECKPOINT / "tokenizer.pt",
            config=config,
            out=Path(folder) / "bundle",
            precision=precision,
            target=target,
            force=True,
            compute_capabilities=None if target == "onnxruntime" else [90],
            quiet=True,
        )
        quality = Bundle.open(out).manifest.quality
    return quality if target == "onnxruntime" else {stage: lost["tensorrt"] for stage, lost in quality.items() if "tensorrt" in lost}


def row(precision: str, quality: Mapping[str, Any]) -> str:
    """Return a line of the table."""
    cells = [f"{quality[stage]['top1']:.1%}, {quality[stage]['kl']:.1e}".replace("%", " %") for stage in STAGES]
    if "codec_stream" in quality and precision in ("fp16", "bf16"):
        cells += [f"{min(quality[name]['similarity'] for name in ('mulan_text', 'mulan_audio')):.6f}"]
        cells += [f"{quality['codec_stream']['snr_db']:.0f} dB"]
    return f"| {precision} | {' | '.join(cells)} |"


def table(target: str, rows: list[str]) -> str:
    """Return the table between its marks."""
    heads = ["", "semantic", "coarse, guided", "fine", *(["MuLaN", "codec"] if target == "tensorrt" else [])]
    return "\n".join([BEGIN, f"|{'|'.join(f' {head} ' if head else ' ' for head in heads)}|", "|---" * len(heads) + "|", *rows, END])


def numbers(text: str) -> list[tuple[float, bool]]:
    """Return every number of a row, and whether it is a divergence."""
    return [(float(number), "e" in number) for number in re.findall(r"[\d.]+(?:e-?\d+)?", text.split("|", 2)[2])]


def alike(old: str, new: str) -> bool:
    """Return whether two rows have the same numbers, as far as another processor lets them be the same."""
    pairs = list(zip(numbers(old), numbers(new), strict=False))
    close = [max(a, b) <= _FACTOR * min(a, b) if tiny else abs(a - b) <= _POINTS for (a, tiny), (b, _) in pairs]
    return old.split("|")[1] == new.split("|")[1] and len(numbers(old)) == len(numbers(new)) and all(close)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="What fewer bits cost the demo's checkpoint: the tables of docs/export.md and docs/gpu.md."
    )
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 if a page has other numbers")
    check, differing = parser.parse_args().check, []
    for name, (target, precisions) in PAGES.items():
        page = ROOT / name
        text = page.read_text(encoding="utf-8")
        before, rest = text.split(BEGIN)
        old, after = rest.split(END)
        rows = [row(precision, measure(precision, target)) for precision in precisions]
        kept = old.strip().splitlines()[2:]
        if not check:
            page.write_text(before + table(target, rows) + after, encoding="utf-8")
        elif len(kept) != len(rows) or not all(map(alike, kept, rows)):
            differing += [f"{name} has", *kept, "measured now", *rows]
    if differing:
        sys.exit("\n".join([*differing, "Write the tables again: python -m demo.losses"]))


if __name__ == "__main__":
    main()
