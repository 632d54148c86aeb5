"""Everything that a GPU can show of bundles of these sizes: right first, then timed.

In: the bundles of the sizes, exported with kernels where they are not there, before a GPU is asked for; where a TensorRT is installed, its
form and engines too, once there is one. Out: JSON lines of results/gpu.jsonl, with the GPU's name, driver and clocks; tables on the
terminal, and a picture beside the lines. Parts do not depend on each other: one that cannot run says why, one that fails is reported, the
others go on, and at the end it is said which were which. The status is 1 where a part failed, or there is no GPU.

Checked: kernels against their references, where torch has the GPU; tokens that the GPU makes on its own, guided where the stage is, and
logits after them, against the CPU's, and against the GPU's own when it is asked again, and with no kernel beginning early; MuLaN and the
codec, where ONNX Runtime has the GPU; compute-sanitizer, where it is installed, finds nothing. Timed: one step, launches and waiting
included, of 1 to 32 rows; clips, checked as on the CPU; a wave's way to patches; a token of audiolm-pytorch and of compiled PyTorch, where
torch has the GPU. The 300 M size is that of fp16 alone unless --weights says otherwise: what other types lose and gain shows at README
size, and each takes 4 GB of disk.

    python -m benchmarks.gpu --size readme --size 300m
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from benchmarks.bundle import SIZES, mel_entrance
from benchmarks.plot import draw_gpus
from musiclm_deploy.runtime.backend import BackendError
from musiclm_deploy.runtime.bench.record import Row, append, circumstances, read
from musiclm_deploy.runtime.bench.table import as_text
from musiclm_deploy.runtime.bundle import STAGES
from musiclm_deploy.runtime.device.cuda import CudaDriver, find_gpu
from musiclm_deploy.runtime.outputs import check_appendable

from .kernels import check_kernels, check_patches, need_sanitizer, sanitize
from .machine import bandwidth_of, describe
from .parts import Missing, Parts
from .size import Size
from .steps import Extent
from .table import SECTIONS
from .tokens import LEAST_EQUAL

RESULTS = Path(__file__).resolve().parent.parent / "results" / "gpu.jsonl"
WEIGHTS = dict.fromkeys(SIZES, tuple(LEAST_EQUAL)) | {"300m": ("fp16",)}


def main() -> int:
    options = read_options()
    check_appendable(options.json)
    extent = Extent(tuple(map(int, options.rows.split(","))), options.context, options.tokens, 0 if options.untimed else options.steps)
    parts, rows = Parts(), []
    stages = options.stage or STAGES
    sizes = [Size(size, options.weights or WEIGHTS[size], stages, extent, options.seconds) for size in options.size or ["readme"]]
    for size in sizes:
        with parts.part(f"{size.name}: bundles"):
            size.prepare()
    with parts.part("the kernel of log-mel patches"):
        mel_entrance()
    try:
        find_gpu("gpu-check")
    except BackendError as error:
        print(f"{error}\nBundles and kernels: {parts.summary()}\nNothing was run.", file=sys.stderr)
        return 1
    around = circumstances(shlex.join(["python", "-m", "benchmarks.gpu", *sys.argv[1:]]), 0)

    def keep(made: list[Row]) -> None:
        append(options.json, [row | around for row in made])
        rows.extend(row | around for row in made)

    bandwidth = None
    with parts.part("the GPU's memory"):
        driver = CudaDriver(mel_entrance()[0])
        around |= describe(driver)
        bandwidth = bandwidth_of(driver)
    with parts.part("log-mel patches"):
        root, spectrogram, hz = mel_entrance()
        keep(check_patches(CudaDriver(root), spectrogram, root, hz, options.seconds, not options.untimed))
    if options.untimed:
        for size in sizes:
            size.compare(parts, keep, bandwidth)
    else:
        with parts.part("kernels against their references"):
            check_kernels()
        with parts.part("compute-sanitizer"):
            tool = need_sanitizer()
            Size("tiny", WEIGHTS["tiny"], stages, extent, options.seconds).prepare()  # here, and not under the tool
            sanitize(tool)
        for size in sizes:
            size.compare(parts, keep, bandwidth)
            size.clips(parts, keep)
            size.engines(parts, keep, bandwidth)
            size.peers(parts, keep)
        with parts.part("the picture"):
            _draw(options.json)
    print(as_text(rows, SECTIONS), parts.summary(), sep="\n\n")
    return parts.status


def _draw(lines: Path) -> None:
    """What the file has of steps, of this run and others, beside it."""
    steps = [row for row in read([lines]) if row["benchmark"] == "gpu step"]
    if not steps:
        raise Missing("no step was timed")
    try:
        draw_gpus(steps, lines.with_suffix(".png"))
    except ImportError as error:
        raise Missing(str(error)) from error


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, action="append", help="repeat for more (default: readme)")
    parser.add_argument("--weights", choices=LEAST_EQUAL, action="append", help="repeat for more (default: all, fp16 of 300m)")
    parser.add_argument("--stage", choices=STAGES, action="append", help="whose steps are looked at; repeat for more (default: all)")
    parser.add_argument("--rows", default="1,2,8,32", help="rows of a timed step; one and eight of these are compared (default: 1,2,8,32)")
    parser.add_argument("--context", type=int, default=500, help="positions before a timed step, and before compared ones (default: 500)")
    parser.add_argument("--steps", type=int, default=200, help="timed in each case (default: 200)")
    parser.add_argument("--tokens", type=int, default=200, help="that a compared request runs on freely (default: 200)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of the clips, and of a wave (default: 10)")
    parser.add_argument("--untimed", action="store_true", help="compare tokens and patches by our own kernels, and no more")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where rows are appended (default: results/gpu.jsonl)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
