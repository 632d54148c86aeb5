"""The trained runs to a checkpoint for the repository: files in upstream's formats, 16-bit, their hashes, what the export needs.

In: the folder of runs. Out: `semantic.pt`, `coarse.pt` and `fine.pt` as audiolm-pytorch's trainers save them, `codec.pt` as
`SoundStream.save` does, `quantizer.pt` with MuLaN in it, `tokenizer.pt`, `config.json` for `export_all.py --config`, `SHA256SUMS`.
Nothing is trained here.

    python -m demo.pack build/runs demo/checkpoint
"""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from demo.sizes import SIZES, STAGES, Sizes, codec
from musiclm_deploy.model.files import save_aside

FILES = ("semantic.pt", "coarse.pt", "fine.pt", "codec.pt", "quantizer.pt", "tokenizer.pt", "config.json")


def config(sizes: Sizes) -> dict[str, Any]:
    """What the tensors do not tell: the trained windows, and that every semantic token lasts as long as the others."""
    semantic = {"unique_consecutive": False, "tokens_per_second": float(sizes.tokens_per_second), "max_length": sizes.window_tokens}
    return {"semantic": semantic, "coarse": {"max_time_steps": sizes.window_frames}, "fine": {"max_time_steps": sizes.window_frames}}


def pack(sizes: Sizes, runs: Path, out: Path) -> None:
    """Write the averaged weights of every run as they stand, finished or not; of the codec's decoder those of `decoder`, if there."""
    model = codec(sizes)  # for the arguments that upstream saves beside the weights; it also makes upstream importable
    from audiolm_pytorch.version import __version__ as version

    out.mkdir(parents=True, exist_ok=True)
    for stage in STAGES:
        save_aside({"model": _half(_average(runs / stage)), "version": version}, out / f"{stage}.pt")
    whole = _average(runs / "codec") | (_average(runs / "decoder") if (runs / "decoder" / "state.pt").is_file() else {})
    save_aside({"model": _half(whole), "config": model._configs, "version": version}, out / "codec.pt")
    save_aside(_half(torch.load(runs / "fit" / "quantizer.pt", weights_only=True)), out / "quantizer.pt")
    save_aside(torch.load(runs / "fit" / "tokenizer.pt", weights_only=True), out / "tokenizer.pt")
    (out / "config.json").write_text(json.dumps(config(sizes), indent=2) + "\n", encoding="utf-8")
    sums = "".join(f"{hashlib.sha256((out / name).read_bytes()).hexdigest()}  {name}\n" for name in FILES)
    (out / "SHA256SUMS").write_text(sums, encoding="utf-8")


def _average(run: Path) -> dict[str, Tensor]:
    return torch.load(run / "state.pt", map_location="cpu", weights_only=True)["average"]


def _half(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Floating-point tensors in 16 bits, but for those that say how an exact thing is laid out."""
    kept = ("cluster_size", "mel_layout")
    return {
        name: tensor.half() if tensor.is_floating_point() and not name.endswith(kept) else tensor.clone() for name, tensor in state.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="The trained runs to a checkpoint of 16 bits.")
    parser.add_argument("runs", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    pack(SIZES, arguments.runs, arguments.out)
    for path in sorted(arguments.out.iterdir()):
        print(f"{path.name:16} {path.stat().st_size / 1e6:6.2f} MB")


if __name__ == "__main__":
    main()
