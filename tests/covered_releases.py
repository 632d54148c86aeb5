"""The releases of upstream's packages on docs/coverage.md: which of their files run, which are refused, which were tried.

In: the export's own table of releases, and the refusals it gives. Out: the lines of a table, which tests/covered.py writes into the page.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from musiclm_deploy.export.errors import ExportError
from musiclm_deploy.export.mulan import infer_mulan, infer_quantizer
from musiclm_deploy.export.versions import NEWEST, PACKAGES, RELEASES, Releases

_INTRO = """## Releases

What becomes of files that older releases saved. *Tried* are releases whose own class made a file that was exported here and compared with
that class: logits, waves, codes or latents. Golden numbers of these are in `tests/test_versions*.py`. Of the releases between them the
sources were compared, one by one. A newer release than the last one here is taken for it, with a warning.

| package | releases | class | what happens | tried |
|---|---|---|---|---|"""
_CLASSES = {"transformer": "SemanticTransformer, CoarseTransformer, FineTransformer", "soundstream": "SoundStream"}
_TRIED = {  # the kind of file and the first release of a range
    ("transformer", "1.2.0"): "1.2.0, 1.4.2",
    ("transformer", "1.4.3"): "1.4.3, 2.0.6",
    ("transformer", "2.0.7"): "2.0.7, 2.1.4",
    ("transformer", "2.2.0"): "2.2.0, 2.3.1, 2.4.0",
    ("soundstream", "0"): "0.15.6, 0.17.1, 0.18.0",
    ("soundstream", "0.18.1"): "0.18.1, 0.20.0, 0.21.0, 0.23.7, 0.26.2",
    ("soundstream", "0.26.3"): "0.26.3, 0.28.2, 0.29.0, 0.30.0",
    ("soundstream", "0.30.1"): "0.30.1, 1.0.0, 1.4.1, 1.6.0, 1.6.1, 1.6.2, 1.6.3, 1.7.2, 2.0.4, 2.3.1, 2.4.0",
}


def table() -> list[str]:
    """Return the lines of the section."""
    rows = [_row(kind, releases) for kind in RELEASES for releases in RELEASES[kind]]
    layer = "audio.transformer.layers.0.0.to_q.weight"
    books = {"rq.layers.0._codebook.embed": torch.ones(1, 2, 3), "rq.layers.0._codebook.initted": torch.ones(1)}
    mulan, quantizer, music = "MuLaN", "MuLaNEmbedQuantizer", "musiclm-pytorch"
    rows += [
        (music, "before 0.0.23", mulan, _words(infer_mulan, {layer: torch.ones(2, 2)}), "0.0.8, 0.0.19, 0.0.22"),
        (music, "0.0.23", mulan, "runs as 0.0.24, from whose files it cannot be told; computes no latents of clips itself", "0.0.23"),
        (music, "0.0.24 to 0.2.8", mulan, "runs as it did, whatever its loss", "0.0.24, 0.0.28, 0.1.0, 0.1.1, 0.1.2, 0.2.0, 0.2.2, 0.2.8"),
        (music, "before 0.0.3", quantizer, _words(infer_quantizer, books), ""),
        (music, "0.0.3 to 0.2.8", quantizer, "runs as it did", "0.0.24, 0.0.28, 0.1.0, 0.1.1, 0.1.2, 0.2.0, 0.2.2, 0.2.8"),
        ("audiolm-pytorch", "1.2.0 to 2.4.0", "EncodecWrapper", "runs as it did: the codec is encodec's own", "2.4.0"),
        ("audiolm-pytorch", "1.2.0 to 2.4.0", "HubertWithKmeans", "runs as it did: the same layer, the nearest centre", "2.4.0"),
    ]
    return [_INTRO, *(f"| {' | '.join(cells)} |" for cells in rows), ""]


def _row(kind: str, releases: Releases) -> tuple[str, ...]:
    first, last = RELEASES[kind][0], RELEASES[kind][-1]
    span = f"before {releases.before}" if releases is first else f"{releases.since} and later, before {releases.before}"
    span = f"{releases.since} to {NEWEST[kind]}" if releases is last else span
    happens = f"{'refused' if releases.refused else 'runs as it did'}: a release {releases.reason}"
    return PACKAGES[kind], span, _CLASSES[kind], happens, _TRIED.get((kind, releases.since), "")


def _words(infer: Callable[..., object], state: dict[str, Tensor]) -> str:
    try:
        infer(state, {})
    except ExportError as error:
        return f"refused: “{error}”"
    raise AssertionError("nothing refuses it")
