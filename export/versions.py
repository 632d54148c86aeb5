"""The releases of upstream's packages whose files the export meets: which it runs, which it refuses, and what each computed.

In: a kind of file and the version that stands in it. Out: the range of releases that it belongs to, with the values that no tensor tells,
or an ExportError that names the version and the reason. The ranges were read from the sources of every release named here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import ExportError


@dataclass(frozen=True)
class Releases:
    """The releases from `since` on and before `before`, whose files mean the same."""

    since: str
    before: str
    reason: str  # a clause about these releases, after their name: "which ..."
    refused: bool = False  # else they run as they did
    values: Mapping[str, Any] = field(default_factory=dict)  # settings that no tensor tells

    def __contains__(self, version: str) -> bool:
        return numbers(self.since) <= numbers(version) < numbers(self.before)


# By kind of file: the package that saves it, and its releases from the first to the newest known. What lies behind them is unknown.
PACKAGES = {"transformer": "audiolm-pytorch", "soundstream": "audiolm-pytorch"}
NEWEST = {"transformer": "2.4.0", "soundstream": "2.4.0"}
RELEASES: dict[str, tuple[Releases, ...]] = {
    "transformer": (
        Releases("0", "1.2.0", "whose layers had other tensors, such as a convolution and norms of queries and keys", refused=True),
        Releases("1.2.0", "1.4.3", "which has no value residual", values={"self_attention": True, "add_value_residual": False}),
        Releases(
            "1.4.3",
            "2.0.7",
            "which computes self-attention and throws its result away",
            values={"self_attention": False, "add_value_residual": False},
        ),
        Releases("2.0.7", "2.2.0", "which has no value residual", values={"self_attention": True, "add_value_residual": False}),
        Releases("2.2.0", "2.4.1", "which has a value residual", values={"self_attention": True, "add_value_residual": True}),
    ),
    "soundstream": (
        Releases("0", "0.18.1", "whose SoundStream has learned moving averages, or attention without xpos", refused=True),
        Releases(
            "0.18.1",
            "0.26.3",
            "which pads with zeros, at a change of rate as if there were none",
            values={"pad_mode": "constant", "pads_whole_kernels": True},
        ),
        Releases("0.26.3", "0.30.1", "which pads by reflection alone", values={"pad_mode": "reflect", "pads_whole_kernels": False}),
        Releases("0.30.1", "2.4.1", "which pads by reflection at a change of rate", values={"pads_whole_kernels": False}),
    ),
}


def numbers(version: str) -> tuple[int, ...]:
    """Return a version's numbers, three or more, by which versions are compared. ValueError for text that is not a version."""
    found = re.match(r"v?(\d+(?:\.\d+)*)(?:[.+-]?[a-z].*)?$", version.strip())
    if found is None:
        raise ValueError(f"{version!r} is not a version number")
    parts = [int(part) for part in found[1].split(".")]
    return tuple(parts + [0] * (3 - len(parts)))


def is_before(version: str, release: str) -> bool:
    """Return whether a version is known to be before a release; of text that is not a version nothing is known."""
    try:
        return numbers(version) < numbers(release)
    except ValueError:
        return False


def releases_of(kind: str, where: str, version: str) -> Releases | None:
    """Return the range that `version` belongs to, or None for one newer than all. ExportError for one that is refused, or not a version.

    kind: a key of `RELEASES`; where: the file, for messages.
    """
    try:
        found = next((releases for releases in RELEASES[kind] if version in releases), None)
    except ValueError as error:
        raise ExportError(
            f"{where}: the version {version!r} is not a version number. Say with --config which release of {PACKAGES[kind]} trained the "
            'model, under the name "version".'
        ) from error
    if found is not None and found.refused:
        raise ExportError(f"{where}: saved by {PACKAGES[kind]} {version}, {found.reason}. {covered(kind)}")
    return found


def covered(kind: str) -> str:
    """Say from which release on the export covers files of a kind."""
    first = next(releases.since for releases in RELEASES[kind] if not releases.refused)
    return f"The export covers files of version {first} and later: train the model again with one of these."
