"""`musiclm inspect`: the content of a bundle, or the record of how a sound file was made."""

from __future__ import annotations

import argparse
import json
from typing import Any

from ..runtime.user_files import expanded
from .console import print_json


def add_options(commands: Any) -> None:
    parser = commands.add_parser(
        "inspect",
        help="say what a bundle holds, or how a sound file was made",
        description="Check a bundle and say what it holds; or say how a sound file of musiclm generate was made.",
    )
    parser.add_argument("bundle", type=expanded, metavar="PATH", help="a bundle, or a sound file")
    parser.add_argument("--json", action="store_true", help="print the manifest, or the file's record, as JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from ..runtime.bundle import MANIFEST, Bundle

    if options.bundle.exists() and not options.bundle.is_dir() and options.bundle.name != MANIFEST:
        from ..runtime.provenance_file import describe_record, read_record

        record = read_record(options.bundle)
        print(json.dumps(record, indent=2) + "\n" if options.json else describe_record(options.bundle, record), end="")
        return 0
    if not options.bundle.exists():
        raise ValueError(f"{options.bundle}: there is no such bundle or sound file.")
    from ..runtime.description import describe

    bundle = Bundle.open(options.bundle)
    if options.json:
        print_json(bundle.manifest.to_json())
    else:
        print(describe(bundle), end="")
    return 0
