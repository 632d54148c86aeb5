"""Everything, one after another, then the tables and the picture: `make bench`, or `python -m benchmarks.run`.

In: the name of a size. Out: JSON lines appended in benchmarks/results, README.md of this folder and results/results.png written again. Each
part is a command of its own, printed before it runs, so that it can be repeated alone; the machine should have nothing else to do. The
bundles are made at the first run and kept in build/bench.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.bundle import BUILD, ROOT, SIZES, bundle
from benchmarks.report import FOLDER
from musiclm_deploy.kernels.quantized_product import PRECISIONS

CLIP = ["--seconds", "10", "--fine-window", "150"]  # windows of 3 s, as AudioLM's fine stage has them
REPEATS = {"fp32": "1", "int8": "3", "int4": "3"}  # of a clip, a stream and a start; at 32 bits they take longest
QUICK = {"clip": ["--seconds", "0.5", "--steps", "12", "--repeats", "1"], "steps": ["--rows", "1,2", "--steps", "12"]}  # does it all run?


def commands(size: str, results: Path, quick: bool) -> list[list[str]]:
    """The parts as command lines, to be run from the root of the checkout."""
    small = QUICK if quick else {"clip": [], "steps": []}
    steps = ["-m", "benchmarks.steps", "--size", size, "--json", str(results / "steps.jsonl")]
    of_bundle = ["-m", "musiclm_deploy.cli", "bench", "--json", str(results / "bundle.jsonl")]
    clips = {precision: QUICK["clip"] if quick else [*CLIP, "--repeats", REPEATS[precision]] for precision in PRECISIONS}
    parts = [[*of_bundle, *clips[precision], os.path.relpath(BUILD / size / precision, ROOT)] for precision in PRECISIONS]
    parts.append([*steps, *small["steps"]])
    parts.append([*steps, "--rows", "1", "--contexts", "100,500,1000,2000", "--steps", "5", "--forms", "native-fp32,upstream-fp32"])
    parts.append(["-m", "benchmarks.peers", "--size", size, "--json", str(results / "clips.jsonl"), *small["clip"][:2]])
    return parts


def run(size: str, results: Path, readme: Path, quick: bool) -> None:
    """Raises CalledProcessError for a part that fails; what was measured before it is kept."""
    for precision in PRECISIONS:
        bundle(size, precision)
    report = ["-m", "benchmarks.report", "--results", str(results), "--readme", str(readme)]
    for part in [*commands(size, results, quick), report]:
        print(f"\n$ python {shlex.join(part)}", flush=True)
        started = time.monotonic()
        subprocess.run([sys.executable, *part], check=True, cwd=ROOT)
        print(f"{time.monotonic() - started:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="readme")
    parser.add_argument("--results", type=Path, default=FOLDER / "results", help="folder of JSON lines (default: benchmarks/results)")
    parser.add_argument("--readme", type=Path, default=FOLDER / "README.md", help="page to write into (default: benchmarks/README.md)")
    parser.add_argument("--quick", action="store_true", help="few steps and short clips: whether everything runs, no numbers to keep")
    options = parser.parse_args()
    results, readme = (Path(os.path.relpath(path, ROOT)) for path in (options.results, options.readme))
    run(options.size, results, readme, options.quick)


if __name__ == "__main__":
    main()
