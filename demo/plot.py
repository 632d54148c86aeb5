"""The curves of a training as a picture.

In: the folder of runs. Out: a PNG with a panel for each stage that has begun: losses over steps, validation dashed.

    python -m demo.plot build/runs curves.png
"""

import argparse
import csv
from pathlib import Path

STAGES = {  # what is drawn of each
    "codec": ("mel", "magnitude", "error", "valid_mel"),
    "mulan": ("loss", "valid_loss", "valid_top1"),
    "semantic": ("loss", "valid_loss"),
    "coarse": ("loss", "valid_loss"),
    "fine": ("loss", "valid_loss"),
    "decoder": ("mel", "magnitude", "error", "flutter", "valid_mel"),
}
_UNITS = {"codec": "distance", "decoder": "distance", "mulan": "nats, or share"}  # of the others: nats a token


def plot(runs: Path, out: Path) -> None:
    """Raises FileNotFoundError where no stage has begun."""
    from matplotlib.figure import Figure

    found = [stage for stage in STAGES if (runs / stage / "metrics.csv").is_file()]
    if not found:
        raise FileNotFoundError(f"{runs} holds no metrics.csv of a stage: python -m demo.train STAGE --runs {runs}")
    figure = Figure(figsize=(4 * len(found), 3.2), layout="constrained")
    for axis, stage in zip(figure.subplots(1, len(found), squeeze=False)[0], found, strict=True):
        with (runs / stage / "metrics.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        for name in STAGES[stage]:
            points = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
            if points:
                axis.plot(*zip(*points, strict=True), "--" if name.startswith("valid") else "-", label=name)
        axis.set(title=stage, xlabel="step", ylabel=_UNITS.get(stage, "nats a token"))
        axis.legend()
    figure.savefig(out, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description="The curves of a training as a picture.")
    parser.add_argument("runs", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    plot(arguments.runs, arguments.out)


if __name__ == "__main__":
    main()
