"""The options of the command `musiclm`, and what they may be. `cli` does what they ask."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from . import __version__

_EXAMPLES = """examples:
  musiclm generate bundle "calm piano in a ballroom" -o out.wav --seconds 10 --seed 0
  musiclm generate bundle "brass band" -o best.flac --num-samples 4 --save-tokens tokens.npz
  musiclm generate bundle "brass band" --prime intro.wav -o on.wav --seconds 20
  musiclm inspect bundle
  musiclm bench bundle --seconds 10
  musiclm build bundle --compute-capability 89
  musiclm doctor checkpoints/*.pt
  musiclm export --semantic S.pt --coarse C.pt --fine F.pt --codec K.pt --mulan M.pt --quantizer Q.pt --out bundle
"""


def make_parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "musiclm", description="MusicLM, deployed: checkpoints to a bundle, a bundle to music.", epilog=_EXAMPLES, formatter_class=raw
    )
    parser.add_argument("--version", action="version", version=f"musiclm-deploy {__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="log what is done, and the memory it takes")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    generate = commands.add_parser("generate", help="make music from a text", description="Make music from a text.")
    generate.add_argument("bundle", type=Path, metavar="BUNDLE", help="the directory that export_all.py made")
    generate.add_argument("text", metavar="TEXT", nargs="?", help="what the music should be like")
    generate.add_argument("--audio", type=Path, metavar="FILE", help="a sound that it should be like, in place of TEXT or beside it")
    generate.add_argument("--audio-weight", type=float, metavar="W", help="of the sound beside TEXT, from 0 to 1 (default: 0.5)")
    generate.add_argument(
        "--prime", type=Path, metavar="FILE", help="a sound that the music goes on from; alone, it is also what to be like"
    )
    generate.add_argument("--without-prime", action="store_true", help="write only what comes after the sound of --prime")
    generate.add_argument("-o", "--out", type=Path, default=Path("out.wav"), metavar="FILE", help=".wav, .flac or .ogg (default: out.wav)")
    generate.add_argument("--seconds", type=float, metavar="S", help="length, exact to the sample (default: the model's window)")
    generate.add_argument("--seed", type=int, default=0, metavar="N", help="of the noise: the same seed gives the same music (default: 0)")
    generate.add_argument(
        "--num-samples", type=int, default=1, metavar="N", help="candidates; MuLaN picks the one closest to the text (default: 1)"
    )
    generate.add_argument("--all", action="store_true", help="write every candidate, as FILE-1, FILE-2, ..., beside the best")
    generate.add_argument(
        "--stop", choices=["exact", "eos"], default="exact", help="exact length, or end where the model ends (default: exact)"
    )
    generate.add_argument("--compat", choices=["upstream"], help="reproduce audiolm-pytorch token for token")
    generate.add_argument("--max-semantic-tokens", type=int, metavar="N", help="at most (default: as many as the length can hold)")
    for name, what in (
        ("temperature", "0 is greedy"),
        ("filter-thres", "share of the vocabulary dropped, in [0, 1)"),
        ("cond-scale", "guidance, coarse only"),
    ):
        generate.add_argument(
            f"--{name}", type=_stage_value, action="append", default=[], metavar="[STAGE=]X", help=f"{what}; for one stage, or for all"
        )
    generate.add_argument(
        "--window",
        type=_stage_window,
        action="append",
        default=[],
        metavar="STAGE=LENGTH:OVERLAP",
        help="of clips longer than the trained windows, in tokens or frames; repeat for other stages (docs/long_clips.md)",
    )
    generate.add_argument("--tokens", type=Path, metavar="FILE", help="go on from saved tokens (.npz)")
    generate.add_argument("--save-tokens", type=Path, metavar="FILE", help="save every candidate's tokens (.npz)")
    generate.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "tensorrt"], help="where to run (default: auto)")
    generate.add_argument(
        "--weights",
        default="fp16",
        choices=["fp16", "bf16", "fp32", "int8"],
        help="of transformers on a GPU, as packed (default: fp16)",
    )
    generate.add_argument("--threads", type=int, metavar="N", help="of the CPU (default: one per core)")
    generate.add_argument("--json", action="store_true", help="print what was made as one JSON object")
    generate.set_defaults(wrong_usage=generate.error)

    inspect = commands.add_parser("inspect", help="say what a bundle holds", description="Check a bundle and say what it holds.")
    inspect.add_argument("bundle", type=Path, metavar="BUNDLE")
    inspect.add_argument("--json", action="store_true", help="print the manifest as JSON")

    bench = commands.add_parser(
        "bench", help="say what a bundle costs here", description="Time a bundle's steps, clips and start on this machine."
    )
    bench.add_argument("bundle", type=Path, metavar="BUNDLE")
    bench.add_argument("--only", choices=["steps", "clips", "start"], help="one part of it (default: all three)")
    bench.add_argument("--seconds", type=float, default=2.0, metavar="S", help="length of the clips (default: 2)")
    bench.add_argument("--cond-scale", type=float, metavar="X", help="guidance of the clips (default: the bundle's)")
    bench.add_argument("--fine-window", type=_count, metavar="N", help="frames of a fine window (default: the trained window)")
    bench.add_argument("--steps", type=_count, default=40, metavar="N", help="timed steps of each case (default: 40)")
    bench.add_argument("--repeats", type=_count, default=3, metavar="N", help="of each clip and each start (default: 3)")
    bench.add_argument("--threads", type=_count, metavar="N", help="of the CPU (default: one per core)")
    bench.add_argument("--json", type=Path, metavar="FILE", help="append the rows to this file, one JSON object a line")

    export = commands.add_parser(
        "export", help="turn trained checkpoints into a bundle", description="Turn trained checkpoints into a bundle."
    )
    for name, what in (
        ("semantic", "semantic transformer"),
        ("coarse", "coarse transformer"),
        ("fine", "fine transformer"),
        ("codec", "codec: a SoundStream, or an EnCodec at 24 kHz"),
    ):
        export.add_argument(f"--{name}", type=Path, required=True, metavar="FILE", help=f"checkpoint of the {what}")
    export.add_argument("--mulan", type=Path, metavar="FILE", help="checkpoint of MuLaN; not needed where the quantizer's holds it")
    export.add_argument(
        "--quantizer",
        action="append",
        required=True,
        metavar="[STAGE=]FILE",
        help="checkpoint of the MuLaN quantizer; repeat with STAGE= if each stage has its own",
    )
    export.add_argument(
        "--semantic-features", type=Path, metavar="FILE", help="the MelKmeans that the semantic transformer was trained with"
    )
    export.add_argument(
        "--hubert", type=Path, metavar="FILE", help="or the HuBERT it was trained with: fairseq's checkpoint, or a Hugging Face folder"
    )
    export.add_argument("--kmeans", type=Path, metavar="FILE", help="the k-means model, of scikit-learn, that goes with --hubert")
    export.add_argument(
        "--config", type=Path, metavar="FILE", help='JSON of what checkpoints cannot tell: {"semantic": {"cond_as_self_attn_prefix": true}}'
    )
    export.add_argument(
        "--precision",
        action="append",
        default=[],
        metavar="[STAGE=]P",
        help="of the transformers' weights: fp32 (default), int8, int4, or auto, the narrowest that loses little; for one stage or all. "
        "For TensorRT: fp32, fp16 or bf16",
    )
    export.add_argument(
        "--target",
        default="onnxruntime",
        choices=["onnxruntime", "tensorrt"],
        help="tensorrt: also write what its engines are built of, in fp32, fp16 or bf16 (default: onnxruntime)",
    )
    export.add_argument("--force", action="store_true", help="take a precision that loses more than it may")
    export.add_argument(
        "--calibration", type=Path, metavar="DIR", help="measure that on these sounds, not on what the fp32 model makes of a few texts"
    )
    export.add_argument(
        "--kernels",
        action="append",
        choices=["fp16", "bf16", "fp32", "int8"],
        help="compile what a GPU launches too, for weights of this type; repeat for more",
    )
    export.add_argument(
        "--compute-capability", type=_count, action="append", metavar="N", help="of GPUs to compile for, 90 for 9.0 (default: all known)"
    )
    export.add_argument("--out", type=Path, required=True, metavar="DIR", help="the bundle to make")
    export.add_argument("--overwrite", action="store_true", help="replace a bundle that is there already")
    export.add_argument("--quiet", action="store_true", help="no progress bar, no table of settings")

    build = commands.add_parser(
        "build",
        help="build TensorRT's engines of a bundle",
        description="Build TensorRT's engines of a bundle, for this GPU or another.",
    )
    build.add_argument("bundle", type=Path, metavar="BUNDLE", help="exported with --target tensorrt")
    build.add_argument(
        "--compute-capability", type=_count, metavar="N", help="of another GPU, 89 for 8.9: with TensorRT-RTX, and with no GPU here"
    )
    build.add_argument("--sequences", type=_count, default=16, metavar="N", help="at once at most; guidance takes two each (default: 16)")
    build.add_argument("--seconds", type=float, default=30.0, metavar="S", help="of a sound to be like or go on from (default: 30)")
    build.add_argument("--quiet", action="store_true", help="no progress bar")

    doctor = commands.add_parser(
        "doctor",
        help="say what checkpoints are and what an export would refuse",
        description="Say what each file is, what an export would read from it, what is missing and what would be refused.",
    )
    doctor.add_argument("files", type=Path, nargs="+", metavar="FILE", help="checkpoints, folders and bundles, in any order")
    doctor.add_argument("--config", type=Path, metavar="FILE", help="as for export")
    doctor.add_argument("--json", action="store_true", help="print the report as one JSON object")
    return parser


def _count(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,5}", text):
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def _stage_value(text: str) -> tuple[str, float]:
    stage, _, value = text.rpartition("=")
    try:
        return stage, float(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected a number, or STAGE=number, got {text!r}") from error


def _stage_window(text: str) -> tuple[str, tuple[int | None, int | None]]:
    match = re.fullmatch(r"(\w+)=(\d{1,9})?(?::(\d{1,9}))?", text)
    if match is None or match[2] is match[3] is None:
        raise argparse.ArgumentTypeError(f"expected STAGE=LENGTH:OVERLAP, STAGE=LENGTH or STAGE=:OVERLAP, whole numbers, got {text!r}")
    length, overlap = (None if number is None else int(number) for number in match.group(2, 3))
    return match[1], (length, overlap)
