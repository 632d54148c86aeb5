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
    refused: str = ""  # why, as a clause after their name: "whose ..."; "" for releases that run as they did
    values: Mapping[str, Any] = field(default_factory=dict)  # settings that no tensor tells

    def __contains__(self, version: str) -> bool:
        return numbers(self.since) <= numbers(version) < numbers(self.before)


PACKAGE, NEWEST = "audiolm-pytorch", "2.4.0"  # it saves every kind of file that holds a version; the newest release known
# By kind of file: the releases from the first to the newest known. What lies behind them is unknown.
RELEASES: dict[str, tuple[Releases, ...]] = {
    "transformer": (
        Releases("0", "1.2.0", refused="whose layers had other tensors, such as a convolution and norms of queries and keys"),
        Releases("1.2.0", "1.4.3", values={"self_attention": True, "add_value_residual": False}),
        # these compute self-attention and throw its result away
        Releases("1.4.3", "2.0.7", values={"self_attention": False, "add_value_residual": False}),
        Releases("2.0.7", "2.2.0", values={"self_attention": True, "add_value_residual": False}),
        Releases("2.2.0", "2.4.1", values={"self_attention": True, "add_value_residual": True}),
    ),
    "soundstream": (
        Releases("0", "0.18.1", refused="whose SoundStream has learned moving averages, or attention without xpos"),
        # these pad with zeros, at a change of rate as if there were none
        Releases("0.18.1", "0.26.3", values={"pad_mode": "constant", "pads_whole_kernels": True}),
        # these pad by reflection alone
        Releases("0.26.3", "0.30.1", values={"pad_mode": "reflect", "pads_whole_kernels": False}),
        Releases("0.30.1", "2.4.1", values={"pads_whole_kernels": False}),
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


def releases_of(kind: str, where: str, version: str, warnings: list[str]) -> Releases:
    """Return the range that `version` belongs to; the newest, with a warning, for a version that is newer than all.

    kind: a key of `RELEASES`; where: the file, for messages. Raises ExportError for a version that is refused, or that is none.
    """
    try:
        found = next((releases for releases in RELEASES[kind] if version in releases), None)
    except ValueError as error:
        raise ExportError(
            f"{where}: the version {version!r} is not a version number. Say with --config which release of {PACKAGE} trained the "
            'model, under the name "version".'
        ) from error
    if found is None:
        warnings.append(f"saved by {PACKAGE} {version}, which this export does not know. It is run as {NEWEST}, the newest release known.")
        return RELEASES[kind][-1]
    if found.refused:
        raise ExportError(f"{where}: saved by {PACKAGE} {version}, {found.refused}. {covered(kind)}")
    return found


def covered(kind: str) -> str:
    """Say from which release on the export covers files of a kind."""
    first = next(releases.since for releases in RELEASES[kind] if not releases.refused)
    return f"The export covers files of version {first} and later: train the model again with one of these."
