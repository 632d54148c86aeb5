"""`musiclm bench`: the speed and memory of a bundle on this machine."""

from __future__ import annotations

import argparse
from typing import Any

from ..runtime.user_files import expanded
from .values import count


def add_options(commands: Any) -> None:
    parser = commands.add_parser(
        "bench", help="say what a bundle costs here", description="Time a bundle's steps, clips, streams and start on this machine."
    )
    parser.add_argument("bundle", type=expanded, metavar="BUNDLE")
    parser.add_argument("--only", choices=["steps", "clips", "stream", "start"], help="one part of it (default: all)")
    parser.add_argument(
        "--seconds", type=float, default=2.0, metavar="S", help="length of the clips (default: 2); a stream is also three times as long"
    )
    parser.add_argument("--cond-scale", type=float, metavar="X", help="guidance of the clips (default: the bundle's)")
    parser.add_argument("--fine-window", type=count, metavar="N", help="frames of a fine window (default: the trained window)")
    parser.add_argument("--steps", type=count, default=40, metavar="N", help="timed steps of each case (default: 40)")
    parser.add_argument("--repeats", type=count, default=3, metavar="N", help="runs of each clip and each start (default: 3)")
    parser.add_argument("--threads", type=count, metavar="N", help="CPU threads (default: one per core)")
    parser.add_argument("--json", type=expanded, metavar="FILE", help="append the rows to this file, one JSON object a line")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from ..runtime.bench import PARTS, bench
    from ..runtime.bench.table import as_text

    named = {name: getattr(options, name) for name in ("seconds", "cond_scale", "fine_window", "steps", "repeats", "threads", "json")}
    print(as_text(bench(options.bundle, PARTS if options.only is None else (options.only,), **named)))
    return 0
