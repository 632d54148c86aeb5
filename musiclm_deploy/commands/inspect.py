"""`musiclm inspect`: what a bundle holds."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_options(commands: Any) -> None:
    parser = commands.add_parser("inspect", help="say what a bundle holds", description="Check a bundle and say what it holds.")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from ..runtime.bundle import Bundle
    from ..runtime.description import describe

    bundle = Bundle.open(options.bundle)
    print(bundle.manifest.to_json() if options.json else describe(bundle), end="")
    return 0
