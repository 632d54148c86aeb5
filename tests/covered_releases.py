"""The releases of upstream's packages on docs/coverage.md: which of their files run, which are refused, which were tried.

In: the export's own table of releases, and the refusals it gives. Out: the lines of a section, which tests/covered.py writes into the page.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from musiclm_deploy.export.errors import ExportError
from musiclm_deploy.export.mulan import infer_mulan, infer_quantizer
from musiclm_deploy.export.versions import PACKAGE, RELEASES

# Releases whose own classes made files of weights drawn at random, which were exported and compared with what these classes compute.
_TRIED = {
    "transformer": (
        "0.0.68 0.1.0 0.4.0 0.12.0 0.20.0 0.23.7 1.0.0 1.1.6 1.2.0 1.2.29 1.4.1 1.4.2 1.4.3 1.4.4 1.4.5 1.5.0 1.5.7 1.7.0 2.0.0 2.0.4 "
        "2.0.6 2.0.7 2.1.0 2.1.4 2.2.0 2.2.3 2.3.1 2.4.0"
    ),
    "soundstream": (
        "0.15.6 0.17.1 0.18.0 0.18.1 0.20.0 0.21.0 0.23.7 0.26.2 0.26.3 0.28.2 0.29.0 0.30.0 0.30.1 1.0.0 1.4.1 1.6.0 1.6.1 1.6.2 1.6.3 "
        "1.7.2 2.0.4 2.3.1 2.4.0"
    ),
}
_MULANS = "0.0.24, 0.0.28, 0.1.0, 0.1.1, 0.1.2, 0.2.0, 0.2.2, 0.2.8"
_RELEASES = """## Releases

The meaning of a file depends on the release that saved it, whose version is in the file. Releases *tried* made files by their own
classes, which were exported and compared with what these classes compute, or refused. The sources of the other releases that run are the
same where it matters. A release newer than all of these is run as the newest, with a warning. What happens to a file without a version,
and to one whose tensors contradict its version, is in [export.md](export.md#files-of-older-releases).

| files | releases | in a bundle | tried |
|---|---|---|---|"""


def table() -> list[str]:
    """Return the lines of the section."""
    rows = []
    for kind, ranges in RELEASES.items():
        for releases in ranges:
            values = ", ".join(f"`{name}` {str(value).lower()}" for name, value in releases.values.items())
            what = f"refused, a release {releases.refused}" if releases.refused else f"as then: {values}"
            tried = ", ".join(version for version in _TRIED[kind].split() if version in releases)
            since = "" if releases.since == "0" else f"{releases.since} or later, "
            rows.append((f"{kind} ({PACKAGE})", f"{since}before {releases.before}", what, tried))
    return [_RELEASES, *(f"| {' | '.join(cells)} |" for cells in rows + _without_version()), ""]


def _without_version() -> list[tuple[str, str, str, str]]:
    """Return the rows of files that hold no version: their releases are told by their tensors, or mean the same."""
    mulan, quantizer = "MuLaN (musiclm-pytorch)", "its quantizer (musiclm-pytorch)"
    attention = {"audio.transformer.layers.0.0.to_q.weight": torch.ones(2, 2)}
    books = {"rq.layers.0._codebook.embed": torch.ones(1, 2, 3), "rq.layers.0._codebook.initted": torch.ones(1)}
    return [
        (mulan, "before 0.0.23", _refusal(infer_mulan, attention), "0.0.8, 0.0.19, 0.0.22"),
        (mulan, "0.0.23", "as 0.0.24, since the tensors are the same; 0.0.23 itself computes no latents of clips", "0.0.23"),
        (mulan, "0.0.24 or later, before 0.2.9", "as then; tensors of its loss, which differ by release, are left out", _MULANS),
        (quantizer, "before 0.0.3", _refusal(infer_quantizer, books), ""),
        (quantizer, "0.0.3 or later, before 0.2.9", "as then", _MULANS),
        ("EncodecWrapper (audiolm-pytorch)", "1.2.0 or later, before 2.4.1", "as then: encodec's own codec", "2.4.0"),
        ("HubertWithKmeans (audiolm-pytorch)", "1.2.0 or later, before 2.4.1", "as then: the same layer, the nearest centre", "2.4.0"),
    ]


def _refusal(infer: Callable[..., object], state: dict[str, Tensor]) -> str:
    try:
        infer(state, {})
    except ExportError as error:
        return f"refused: “{error}”"
    raise AssertionError("nothing refuses it")
