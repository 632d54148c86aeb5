"""`musiclm build`: TensorRT's engines of a bundle."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..runtime.user_files import expanded
from .console import print_done
from .values import count


def add_options(commands: Any) -> None:
    parser = commands.add_parser(
        "build",
        help="build TensorRT's engines of a bundle",
        description="Build TensorRT's engines of a bundle, for this GPU or another.",
    )
    parser.add_argument("bundle", type=expanded, metavar="BUNDLE", help="exported with --target tensorrt")
    parser.add_argument(
        "--compute-capability", type=count, metavar="N", help="another GPU's, 89 for 8.9: by TensorRT-RTX, which needs no GPU here"
    )
    parser.add_argument(
        "--sequences", type=count, default=16, metavar="N", help="most sequences at once; guidance takes two each (default: 16)"
    )
    parser.add_argument("--seconds", type=float, default=30.0, metavar="S", help="longest reference sound or prime (default: 30)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from ..runtime.bundle import Bundle
    from ..runtime.engines.build import Target, build
    from ..runtime.engines.profiles import Limits

    bundle, target = Bundle.open(options.bundle), Target.here(options.compute_capability)
    folder, made, built = build(bundle, target, Limits(options.sequences, options.seconds), options.quiet)
    for graph, engine in made.engines.items():
        spent = f"{engine.seconds:7.1f} s" if graph in built else "as it was"
        print_done(f"  {Path(graph).stem:17} {engine.bytes / 1e6:7.1f} MB  {spent}")
    print_done(f"{folder}: {len(made.engines)} engines in {made.precision}, {len(built)} built, for {target}")
    return 0
