"""The results as tables and a picture: `python -m benchmarks.report`.

In: the JSON lines of results/. Out: README.md of this folder, between its two marks, and results/results.png. Of rows that time the same
thing the last one counts; what is divided by each other comes from one run.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.table import SECTIONS as ON_A_GPU
from benchmarks.plot import draw, draw_gpus, of_cpu
from musiclm_deploy.kernels.quantized_product import PRECISIONS
from musiclm_deploy.runtime.bench.record import Row, read
from musiclm_deploy.runtime.bench.table import MODEL, SECTIONS, SIZE, Section, as_markdown, cells, field, number, share

FOLDER = Path(__file__).resolve().parent
GPUS = "gpu.png"
BEGIN, END = "<!-- results: python -m benchmarks.report -->", "<!-- end of results -->"
STREAMED = {  # ratios of streams and what is aimed at
    "streamed over generated: trained, 10 s": "at most 1.15",
    "streamed over generated: low_latency, 10 s": "at most 1.15",
    "the codec in chunks of 0.3 s over the whole at once": "at most 1.1",
    "audio per second, 8 clients over one: streamed": "at least 3 (int8, int4)",
    "memory taken over memory stated, 8 clients": "at most 1.2",
}
EMBEDDED = "a clip of 10 s: libmusiclm over Python"
PEER_CLIPS = Section(
    "A whole clip beside upstream's, on the same noise",
    "peer clip",
    (*SIZE, "form", "seconds"),
    (
        *MODEL,
        *(("by", field("form")), ("s", field("seconds")), ("tokens", field("tokens")), ("equal", field("equal_tokens"))),
        ("real-time factor", number("real_time_factor_made")),
        *((stage, share(stage)) for stage in ("semantic", "coarse", "fine", "codec")),
    ),
)

EMBED = Section(
    "libmusiclm: from `ml_model_open` to a stream's first samples, and memory",
    "embed",
    (*SIZE, "form", "seconds"),
    (
        *MODEL,
        *(("plan", field("form")), ("clip s", field("seconds")), ("opened ms", number("opened_ms"))),
        *(("first samples ms", number("median_ms")), ("quarters ms", lambda row: f"{row['p25_ms']:.4g}–{row['p75_ms']:.4g}")),
        *(("peak of a clip MB", number("peak_mb")), ("of it weights", number("weights_mb")), ("beyond them", number("beyond_mb"))),
        ("two libraries MB", number("shipped_mb")),
    ),
)


SERVE = Section(
    "Over HTTP: from a request to a stream's first samples",
    "serve",
    (*SIZE, "form", "clients", "seconds"),
    (
        *MODEL,
        *(("clients", field("clients")), ("clip s", field("seconds")), ("streams", field("n"))),
        *(("first audio ms: median", number("median_ms")), ("p95", number("p95_ms")), ("p99", number("p99_ms"))),
    ),
)


def ratio(rows: Sequence[Row], field: str, above: dict[str, Any], below: dict[str, Any]) -> float | None:
    """`field` of a row over that of another, both of the last run that has both; None where there is none."""
    runs: dict[tuple, dict[str, Row]] = {}
    for row in rows:
        run = runs.setdefault((row["date"], row["command"]), {})
        for name, wanted in (("above", above), ("below", below)):
            if all(row.get(key) == value for key, value in wanted.items()):
                run[name] = row
    both = [run for run in runs.values() if len(run) == 2]
    return both[-1]["above"][field] / both[-1]["below"][field] if both else None


def targets(rows: Sequence[Row]) -> list[list[str]]:
    """What the project aims at and what was measured. rows: of one model, on a CPU."""
    table = [["", "aim", *PRECISIONS]]
    step = {"benchmark": "step", "stage": "coarse"}

    def line(what: str, aim: str, pattern: str, measure: Callable[[str], float | None]) -> None:
        measured = [measure(precision) for precision in PRECISIONS]
        table.append([what, aim, *("–" if value is None else pattern.format(value) for value in measured)])

    def native(precision: str, rows: int, context: int) -> dict[str, Any]:
        return step | {"form": f"native-{precision}", "rows": rows, "context": context}

    def last(field: str, wanted: dict[str, Any]) -> float | None:
        found = matching(field, wanted)
        return found[-1] if found else None

    def matching(field: str, wanted: dict[str, Any]) -> list[float]:
        return [row[field] for row in rows if all(row.get(key) == value for key, value in wanted.items())]

    def turn_about(precision: str, what: str) -> float | None:
        return last("ratio", {"benchmark": "ratio", "steps": "native", "precision": precision, "form": what})

    compiled = step | {"form": "compiled-fp32", "rows": 1, "context": 500}
    line(
        "one step, one row: times faster than compiled static-cache PyTorch, fp32",
        "2, 9, 16",
        "{:.1f}×",
        lambda p: ratio(rows, "median_ms", compiled, native(p, 1, 500)),
    )
    line(
        "eight rows over one row", "at most 1.6 (int8), 2.5 (int4)", "{:.2f}", lambda p: turn_about(p, "a step of coarse: 8 rows over one")
    )
    # The least of all runs: a memory that others slow down while it is measured makes the share too large.
    shares = {p: matching("ceiling_share", native(p, 1, 500)) for p in PRECISIONS}
    line("share of what the memory allows, one row", "75, 70, 60 %", "{:.0%}", lambda p: min(shares[p], default=None))
    far = "a step of coarse: 2000 positions over 100"
    line("a step at 2,000 positions over one at 100", "at most 1.6", "{:.2f}", lambda p: turn_about(p, far))
    clip = {"benchmark": "clip", "form": "one", "steps": "native"}
    line("real-time factor of a clip", "at most 2.5, 0.9, 0.6", "{:.2f}", lambda p: last("real_time_factor_made", clip | {"precision": p}))
    peer = {"benchmark": "peer clip", "seconds": 2.0}  # the aim's length: it grows with it
    theirs, ours = peer | {"form": "audiolm-pytorch"}, peer | {"form": "musiclm-deploy"}
    line(
        "times faster than audiolm-pytorch on a clip of 2 s",
        "at least 20",
        "{:.0f}×",
        lambda p: ratio(rows, "median_ms", theirs, ours) if p == "fp32" else None,
    )
    early = {"benchmark": "stream", "form": "low_latency", "seconds": 10.0, "steps": "native"}
    line("first audio of a clip of 10 s, low latency, ms", "500 (int4)", "{:.0f}", lambda p: last("median_ms", early | {"precision": p}))
    line("gap between chunks over their length, p99", "0.75 (int4)", "{:.2f}", lambda p: last("gap_p99", early | {"precision": p}))
    for what, aim in STREAMED.items():
        line(what, aim, "{:.2f}", lambda p, what=what: turn_about(p, what))
    embed = {"benchmark": "embed", "form": "trained"}
    line("libmusiclm's time for a clip of 10 s over Python's", "at most 1", "{:.2f}", lambda p: turn_about(p, EMBEDDED))
    line("its memory beyond the weights, MB", "at most 130", "{:.0f}", lambda p: last("beyond_mb", embed | {"precision": p}))
    host = {"benchmark": "host", "form": "streamed"}
    line("host time of a step of one row, µs", "5", "{:.1f}", lambda p: last("host_us", host | {"rows": 1, "precision": p}))
    line("host time of a step of eight clips, µs", "30", "{:.1f}", lambda p: last("host_us", host | {"rows": 8, "precision": p}))
    return table


def markdown(rows: Sequence[Row], picture: str) -> str:
    """All of it as Markdown; `picture`: the path of the plot, as the page gives it."""
    if not rows:
        return "No results yet."
    of_largest = of_cpu(rows)
    machines = dict.fromkeys(f"{row['machine']}, revision {row['git']}, {row['date'][:10]}" for row in rows)
    runs = dict.fromkeys(row["command"] for row in rows)
    loads = [row["load"] for row in rows if row["load"] is not None]
    parts = [
        "\n".join(f"- {machine}" for machine in machines),
        f"Load of the system when a run began: {min(loads):g} to {max(loads):g}." if loads else "",
    ]
    if of_largest:
        model = f"dim {of_largest[0]['dim']} × {of_largest[0]['depth']}"
        parts.append(f"**Aims and measurements**, {model}\n\n{as_markdown(targets(of_largest))}")
        parts.append(f"![Step time by rows and by context, real-time factors]({picture})")
    for section in (*SECTIONS, PEER_CLIPS, EMBED, SERVE, *ON_A_GPU):
        if table := cells(rows, section):
            parts.append(f"**{section.title}**\n\n{as_markdown(table)}")
            if section.kind == "gpu step":
                parts.append(f"![A step on a GPU by rows]({Path(picture).with_name(GPUS).as_posix()})")
    parts.append("Repeat with\n\n" + "\n".join(f"    {command}" for command in runs))
    return "\n\n".join(filter(None, parts))


def write(folder: Path, readme: Path) -> None:
    """Read results of `folder`, draw into it, and write what is between the marks of `readme`. ValueError where it has no marks."""
    rows = read(sorted(folder.glob("*.jsonl")))
    page = readme.read_text(encoding="utf-8")
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"{readme} must hold {BEGIN!r} and {END!r} once each.")
    picture = folder / "results.png"
    if of_largest := of_cpu(rows):
        draw(of_largest, picture)
    if any(row["benchmark"] == "gpu step" for row in rows):
        draw_gpus(rows, folder / GPUS)
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    shown = picture.relative_to(readme.parent).as_posix() if picture.is_relative_to(readme.parent) else picture.name
    readme.write_text(f"{before}{BEGIN}\n\n{markdown(rows, shown)}\n\n{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Tables and a picture from results/*.jsonl, into README.md.")
    parser.add_argument("--results", type=Path, default=FOLDER / "results", help="folder of JSON lines (default: benchmarks/results)")
    parser.add_argument("--readme", type=Path, default=FOLDER / "README.md", help="page to write into (default: benchmarks/README.md)")
    options = parser.parse_args()
    write(options.results, options.readme)


if __name__ == "__main__":
    main()
