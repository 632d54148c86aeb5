"""What a GPU makes of a bundle: tokens first, then times.

In: the bundle of a size, exported with kernels when it is not there; where a TensorRT is installed, its form and engines too. Out: JSON
lines of results/gpu.jsonl, with the GPU's name, driver and clocks, and a table on the terminal. A check that fails ends it.

Checked: kernels against their references, where torch has the GPU; with weights of 32 bits the likeliest token, and one drawn, is the CPU's
after the same tokens, with 16 nearly always; compute-sanitizer, where it is installed, finds nothing. Timed: one step, launches and waiting
included, of 1 to 32 rows; clips, checked as on the CPU; a wave's way to patches; a token of audiolm-pytorch and of compiled PyTorch, where
torch has the GPU.

    python -m benchmarks.gpu --size readme --weights fp16
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

import torch

from benchmarks.bundle import SIZES, bundle
from musiclm_deploy.runtime.backend import BackendError
from musiclm_deploy.runtime.bench.clips import time_clips
from musiclm_deploy.runtime.bench.record import Row, append, circumstances, say
from musiclm_deploy.runtime.bench.table import SECTIONS as OF_A_BUNDLE
from musiclm_deploy.runtime.bench.table import as_text
from musiclm_deploy.runtime.bundle import Bundle
from musiclm_deploy.runtime.device.cuda import CudaDriver
from musiclm_deploy.runtime.engines.build import Target, build
from musiclm_deploy.runtime.engines.form import Form
from musiclm_deploy.runtime.engines.profiles import Limits
from musiclm_deploy.runtime.engines.run import EngineDriver

from .kernels import check_kernels, sanitize, time_patches
from .machine import bandwidth_of, describe
from .peers import peers
from .steps import LEAST_EQUAL, check
from .table import SECTIONS

RESULTS = Path(__file__).resolve().parent.parent / "results" / "gpu.jsonl"
ROWS, LENGTHS = (1, 2, 8, 32), (40, 100, 300, 500)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="readme")
    parser.add_argument("--weights", choices=LEAST_EQUAL, action="append", help="repeat for more (default: fp32, fp16, bf16)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of the clips (default: 10)")
    parser.add_argument("--only-tokens", action="store_true", help="compare tokens by our own kernels, and time nothing")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where rows are appended (default: results/gpu.jsonl)")
    options = parser.parse_args()
    kinds = options.weights or list(LEAST_EQUAL)
    opened = Bundle.open(bundle(options.size, kernels=kinds))  # before a GPU is asked for: it takes minutes, and needs none
    try:
        driver = CudaDriver(opened.root)
    except BackendError as error:
        print(f"gpu-check: {error}\nThe bundle's kernels are compiled; nothing was run.", file=sys.stderr)
        return 1
    around = circumstances(shlex.join(["python", "-m", "benchmarks.gpu", *sys.argv[1:]]), 0) | describe(driver)
    bandwidth, rows = bandwidth_of(driver), []

    def keep(made: list[Row]) -> None:
        append(options.json, [row | around for row in made])
        rows.extend(made)

    if options.only_tokens:
        for kind in kinds:
            check(opened, driver, kind, bandwidth, (), (20,), 0)
        return 0
    if torch.cuda.is_available():
        check_kernels()
    else:
        say("gpu: without the kernels' own tests and the peers: this torch has no GPU")
    keep(time_patches(opened, driver, options.seconds))
    for kind in kinds:
        keep(check(opened, driver, kind, bandwidth, ROWS, LENGTHS, 200))
        say(f"gpu: clips of {options.seconds:g} s, {kind}")
        keep(time_clips(opened, options.seconds, 3.0, 150, 3, None, device="cuda", weights=kind))
    try:
        target = Target.here()
        say(f"gpu: engines of {target}")
        for kind in kinds:
            form = Bundle.open(bundle(options.size, kind, target="tensorrt"))
            build(form, target, Limits(sequences=max(ROWS)))
            keep(check(form, EngineDriver(form, Form.open(form)), kind, bandwidth, ROWS, LENGTHS, 200))
            keep(time_clips(form, options.seconds, 3.0, 150, 3, None, device="tensorrt"))
    except BackendError as error:
        say(f"gpu: without engines: {error}")
    sanitize()
    if torch.cuda.is_available():
        for count in ROWS:
            keep(peers(options.size, count, LENGTHS[-1], 200))
    print(as_text(rows, (*SECTIONS, *OF_A_BUNDLE)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
