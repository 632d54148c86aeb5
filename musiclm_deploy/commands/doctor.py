"""`musiclm doctor`: a report on checkpoints and bundles, with what an export would refuse."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .console import print_json
from .values import read_config


def add_options(commands: Any) -> None:
    parser = commands.add_parser(
        "doctor",
        help="say what checkpoints are and what an export would refuse",
        description="Say what each file is, what an export would read from it, what is missing and what would be refused.",
    )
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="checkpoints, folders and bundles, in any order")
    parser.add_argument("--config", type=Path, metavar="FILE", help="as for export")
    parser.add_argument("--open-musiclm-config", type=Path, metavar="FILE", help="as for export")
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="as for export")
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from .. import diagnose

    report = diagnose(options.files, read_config(options.config), options.tokenizer, options.open_musiclm_config)
    if options.json:
        print_json(f"{report.to_json()}\n")
    else:
        print(report)
    return 1 if report.faults else 0
