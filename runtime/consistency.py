"""What the records of a manifest must agree in, so that every clip comes to an end and no number is beyond what it counts.

In: a parsed manifest. Out: a sentence for each fault. embed/src/consistency.cpp is the same in C++.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .bundle import Decoder, Manifest

MOST_SECONDS = 86_400  # of a clip: a day, whose windows fit any list, and its tokens the 32 bits that count them for the noise
_MOST_RATE = 1e6  # semantic tokens a second
_STAGES = ("semantic", "coarse", "fine")
_ROWS = {
    "semantic": ("padding", "start", "semantic"),
    "coarse": ("padding", "semantic_start", "coarse_start", "semantic", "coarse"),
    "fine": ("padding", "coarse_start", "fine_start", "coarse", "fine"),
}
_SEGMENTS = {"semantic": ("clap", "semantic"), "coarse": ("clap", "semantic", "coarse"), "fine": ("clap", "coarse", "fine")}


def inconsistencies(manifest: Manifest) -> Iterator[str]:
    """Yield what is wrong with a manifest whose fields are all of their types."""
    if manifest.seconds is not None and not 0 < manifest.seconds <= MOST_SECONDS:
        yield f"seconds: expected more than 0 and at most {MOST_SECONDS}, got {manifest.seconds}"
    if not 0 < manifest.semantic_tokens_per_second <= _MOST_RATE:
        yield f"semantic_tokens_per_second: expected more than 0 and at most {_MOST_RATE:g}, got {manifest.semantic_tokens_per_second}"
    decoders: dict[str, Decoder] = {stage: getattr(manifest, stage) for stage in _STAGES}
    if len({bool(decoder.segments) for decoder in decoders.values()}) > 1:
        yield "some stages read segments and some do not: export the checkpoints again"
        return
    for stage, decoder in decoders.items():
        heads = sum(name.startswith("head.") and name.endswith(".weight") for name in decoder.step.weights)
        if decoder.outputs != heads:
            yield f"{stage}: it predicts {decoder.outputs} quantizers, its weights are for {heads}"
        if bool(decoder.segments) != (decoder.conditioning == "tokens"):
            yield f"{stage}: segments: a stage has them if its condition is tokens, and none else"
        if bool(decoder.context) != (decoder.conditioning in ("cross_attention", "prefix")):
            yield f"{stage}: a stage has a context graph if it is conditioned on embeddings, and none else: export the checkpoints again"
        if decoder.segments:
            yield from _faults_of_segments(stage, manifest, decoder)
        else:
            yield from (f"{stage}: rows: the field {name!r} is missing" for name in _ROWS[stage] if name not in decoder.rows)


def _faults_of_segments(stage: str, manifest: Manifest, decoder: Decoder) -> Iterator[str]:
    """Yield what is wrong with a stage that reads segments, whose tokens a clip could otherwise wait for without end."""
    segments = decoder.segments or []
    sizes = {
        "clap": (manifest.conditioner.quantizers, manifest.conditioner.codebook_size),
        "semantic": (1, manifest.semantic.vocabulary - 1),
    }
    sizes |= {name: (getattr(manifest, name).outputs, getattr(manifest, name).vocabulary - 1) for name in ("coarse", "fine")}
    expected = [(name, *sizes[name]) for name in _SEGMENTS[stage]]
    found = [(one.name, one.quantizers, one.codebook) for one in segments]
    if found != expected:
        yield f"{stage}: segments: expected {expected}, names, quantizers and codes, got {found}"
    if (decoder.semantic_window is None) == (stage == "coarse"):
        yield f"{stage}: semantic_window: {'missing' if stage == 'coarse' else 'of coarse alone'}"
    row = 1
    for one in segments:  # one after the other in the table
        if (one.start, one.first) != (row, row + 1):
            yield f"{stage}: segments: {one.name} begins at rows {one.start} and {one.first}, expected {row} and {row + 1}"
        row += 2 + one.quantizers * one.codebook
    table = decoder.step.weights.get("rows", [])
    if len(table) == 4 and row != table[2]:
        yield f"{stage}: segments: they take {row} rows, the table has {table[2]}"
