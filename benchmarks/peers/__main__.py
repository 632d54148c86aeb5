"""A whole clip by audiolm-pytorch and by us, one after the other, on the same noise: `python -m benchmarks.peers --seconds 2`."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

import torch

from benchmarks.bundle import SIZES, bundle, models
from benchmarks.peers.upstream import compare_clips
from benchmarks.steps import RESULTS
from musiclm_deploy.runtime.backend import available_processors
from musiclm_deploy.runtime.bench.record import append, circumstances, say
from musiclm_deploy.runtime.outputs import check_appendable


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="readme")
    parser.add_argument("--seconds", type=float, default=2.0, help="of the clip (default: 2)")
    parser.add_argument("--threads", type=int, default=available_processors(), help="of the CPU (default: one per core)")
    parser.add_argument("--json", type=Path, default=RESULTS / "clips.jsonl", help="where rows are appended (default: results/clips.jsonl)")
    options = parser.parse_args()
    check_appendable(options.json)
    torch.set_num_threads(options.threads)
    root, upstream = bundle(options.size), models(options.size)
    say(f"clips: {options.seconds:g} s by audiolm-pytorch, which takes minutes at a README's size")
    around = circumstances(shlex.join(["python", "-m", "benchmarks.peers", *sys.argv[1:]]), options.threads)
    append(options.json, [row | around for row in compare_clips(upstream, root, options.seconds, options.threads)])


if __name__ == "__main__":
    main()
