"""`musiclm export`: trained checkpoints to a bundle."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .console import print_done
from .values import count, read_config


def add_options(commands: Any) -> None:
    parser = commands.add_parser(
        "export", help="turn trained checkpoints into a bundle", description="Turn trained checkpoints into a bundle."
    )
    for name, what in (
        ("semantic", "semantic transformer"),
        ("coarse", "coarse transformer"),
        ("fine", "fine transformer"),
        ("codec", "codec: a SoundStream, or an EnCodec at 24 kHz"),
    ):
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="FILE", help=f"checkpoint of the {what}")
    parser.add_argument(
        *("--mulan", "--clap"), type=Path, metavar="FILE", help="checkpoint of MuLaN, or CLAP; not needed where the quantizer's holds it"
    )
    parser.add_argument(
        *("--quantizer", "--rvq"),
        action="append",
        required=True,
        metavar="[STAGE=]FILE",
        help="checkpoint of the MuLaN quantizer; repeat with STAGE= if each stage has its own",
    )
    parser.add_argument(
        "--semantic-features", type=Path, metavar="FILE", help="the MelKmeans that the semantic transformer was trained with"
    )
    parser.add_argument(
        "--hubert", type=Path, metavar="FILE", help="or the HuBERT it was trained with: fairseq's checkpoint, or a Hugging Face folder"
    )
    parser.add_argument("--kmeans", type=Path, metavar="FILE", help="the k-means model, of scikit-learn, that goes with --hubert")
    parser.add_argument(
        "--tokenizer",
        type=Path,
        metavar="FILE",
        help="tokenizer.json that MuLaN was trained with, or its folder (default: CLIP's; of a CLAP, RoBERTa's beside it)",
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help='JSON of what checkpoints cannot tell: {"semantic": {"cond_as_self_attn_prefix": true}}'
    )
    parser.add_argument(
        "--open-musiclm-config",
        type=Path,
        metavar="FILE",
        help="JSON of the model that open-musiclm keeps in configs/ beside its checkpoints, for what these do not tell",
    )
    parser.add_argument(
        "--precision",
        action="append",
        default=[],
        metavar="[STAGE=]P",
        help="type of the transformers' weights, for one stage or all: fp32 (default), int8, int4, or auto, the narrowest that loses "
        "little. For TensorRT: fp32, fp16 or bf16",
    )
    parser.add_argument(
        "--target",
        default="onnxruntime",
        choices=["onnxruntime", "tensorrt"],
        help="tensorrt: also write what its engines are built of, in fp32, fp16 or bf16 (default: onnxruntime)",
    )
    parser.add_argument("--force", action="store_true", help="accept a precision that loses more than the limit")
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="DIR",
        help="measure a precision's loss on these sounds, not on what the fp32 model makes of a few texts",
    )
    parser.add_argument(
        "--kernels",
        action="append",
        choices=["fp16", "bf16", "fp32", "int8"],
        help="compile what a GPU launches too, for weights of this type; repeat for more",
    )
    parser.add_argument(
        "--compute-capability",
        type=count,
        action="append",
        metavar="N",
        help="a GPU to compile for, 90 for 9.0; repeat for more (default: all known)",
    )
    parser.add_argument(
        "--trace-cache", type=Path, metavar="DIR", help="keep traced graphs here: the next export of the same settings takes less time"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the bundle to make")
    parser.add_argument("--overwrite", action="store_true", help="replace a bundle that is there already")
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no table of settings")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from .. import export_checkpoints

    config = read_config(options.config)
    quantizers, precisions = _by_stage("quantizer", options.quantizer), _by_stage("precision", options.precision)
    names = ("semantic", "coarse", "fine", "codec", "mulan", "semantic_features", "hubert", "kmeans", "tokenizer")
    checkpoints = {name: getattr(options, name) for name in names}
    out = export_checkpoints(
        **checkpoints,
        quantizer=quantizers,
        out=options.out,
        config=config,
        open_musiclm_config=options.open_musiclm_config,
        target=options.target,
        precision=precisions,
        force=options.force,
        calibration=options.calibration,
        kernels=options.kernels or (),
        compute_capabilities=options.compute_capability,
        trace_cache=options.trace_cache,
        overwrite=options.overwrite,
        quiet=options.quiet,
    )
    print_done(f'{out}: done. Try: musiclm generate {out} "calm piano" -o out.wav')
    return 0


def _by_stage(option: str, items: Sequence[str]) -> dict[str, str]:
    """Return `{stage: value}` for an option that is given once, or with STAGE= for each stage; the stage "" stands for all."""
    from ..export.errors import ExportError
    from ..runtime.bundle import STAGES

    values: dict[str, str] = {}
    for item in items:
        stage, _, value = item.partition("=")
        stage, value = (stage, value) if stage in STAGES else ("", item)  # a path may hold "=" as well
        if stage in values:
            raise ExportError(
                f"--{option} {item}: {stage or 'one for all stages'} was given already. Repeat it with STAGE= for each stage."
            )
        values[stage] = value
    return values
