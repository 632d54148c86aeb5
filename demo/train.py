"""One command per stage of the demo's training: `python -m demo.train STAGE`. Each goes on where it was stopped.

In: the folder of clips, the folder of runs. Out: a folder per stage there. Order: codec, codes; mulan, fit, tokens; then the three;
then, with all of these exported to `bundle` there, played and decoder.
"""

import argparse
from pathlib import Path

import torch

from demo.data import Clips
from demo.sizes import SIZES, STAGES


def main() -> None:
    parser = argparse.ArgumentParser(description="One stage of the training, on from where it was stopped.")
    parser.add_argument("stage", choices=("codec", "mulan", "fit", "tokens", "codes", *STAGES, "played", "decoder"))
    parser.add_argument("--clips", type=Path, default=Path("build/clips"))
    parser.add_argument("--runs", type=Path, default=Path("build/runs"))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)  # fading notes make numbers that a CPU is a hundred times slower with
    stage, runs = arguments.stage, arguments.runs
    if stage in STAGES:
        from demo.train_tokens import train_transformer

        train_transformer(SIZES, stage, runs)
        return
    clips = Clips(arguments.clips, "train")
    if stage == "codec":
        from demo.train_codec import train_codec

        train_codec(SIZES, clips, Clips(arguments.clips, "valid"), runs / "codec")
    elif stage in ("tokens", "codes", "played"):
        from demo.tokens import make_codes, make_played, make_tokens

        for split in (clips, Clips(arguments.clips, "valid")):
            {"tokens": make_tokens, "codes": make_codes, "played": make_played}[stage](SIZES, split, runs)
    elif stage == "decoder":
        from demo.train_decoder import train_decoder

        train_decoder(SIZES, clips, Clips(arguments.clips, "valid"), runs)
    else:
        from demo.train_mulan import fit, train_mulan

        (train_mulan if stage == "mulan" else fit)(SIZES, clips, runs)


if __name__ == "__main__":
    main()
