"""The benchmarks run, check what they time, and their rows say how they were got. No time is asserted: that is what machines differ in."""

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import bundle as bundles
from benchmarks.peers.upstream import compare_clips
from benchmarks.report import BEGIN, END, STREAMED, ratio, write
from benchmarks.steps import Bench
from demo.checkpoints import TINY, build_models
from musiclm_deploy import cli
from musiclm_deploy.export.checkpoint import Checkpoint
from musiclm_deploy.export.stage import export_stage
from musiclm_deploy.export.transformers import infer_transformer
from musiclm_deploy.kernels import decoder_step
from musiclm_deploy.runtime import bench
from musiclm_deploy.runtime.backend import open_session
from musiclm_deploy.runtime.bench import record, steps
from musiclm_deploy.runtime.bench.table import SECTIONS, cells
from musiclm_deploy.runtime.host import graph as host_graph
from musiclm_deploy.runtime.sequence import Context, Positions
from musiclm_deploy.runtime.step import Choice

try:
    decoder_step.library()
except decoder_step.Unavailable as missing:  # no compiler here
    pytestmark = pytest.mark.skip(reason=str(missing))

EVERY_ROW = {"benchmark", "precision", "dim", "depth", "machine", "load", "threads", "versions", "git", "date", "command"}
SPREAD = {"n", "min_ms", "median_ms", "p25_ms", "p75_ms", "p95_ms", "p99_ms"}
CEILING = {"mb_read", "gb_per_s", "ceiling_ms", "ceiling_share"}
CLIP = {"form", "seconds", "tokens", "share", "real_time_factor_made"}
OF_KIND = {
    "step": SPREAD | CEILING | {"form", "stage", "rows", "context", "logits_differ_by", "heads", "streams"},
    "clip": SPREAD | CLIP | {"prompts", "candidates", "cond_scale", "codec_s_per_s", "steps"},
    "start": SPREAD | {"form", "steps"},
    "host": {"form", "rows", "rows_of_a_step", "python_us", "sampler_us", "host_us", "n"},
    "stream": SPREAD
    | {"form", "seconds", "cond_scale", "gap_p50", "gap_p95", "gap_p99", "underruns", "underruns_played", "real_time_factor_made"},
    "clients": {"form", "clients", "seconds", "n", "audio_s_per_s", "p25", "p75"},
    "ratio": {"form", "n", "ratio", "ratio_p25", "ratio_p75", "steps"},
    "memory": {"seconds", "weights_mb", "stated_mb", "imported_mb", "opened_mb", "peak_mb"},
    "requests": SPREAD | {"seconds", "later_over_earlier", "resident_mb_first", "resident_mb_last"},
    "peer clip": SPREAD | CLIP | {"equal_tokens"},
}


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def bundle_rows(tiny_bundle, results) -> list[record.Row]:
    """What `musiclm bench` appends for the tiny bundle."""
    file = results / "bundle.jsonl"
    options = ["--seconds", "0.2", "--steps", "4", "--repeats", "1", "--threads", "1", "--json", str(file)]
    assert cli.main(["bench", str(tiny_bundle), *options]) == 0
    return record.read([file])


@pytest.fixture(scope="module")
def tiny_bench(tiny_bundle, tiny_checkpoints, tmp_path_factory) -> Bench:
    """The tiny bundle and its checkpoints where the scripts in benchmarks/ look for those of a size."""
    build = tmp_path_factory.mktemp("build")
    shutil.copytree(tiny_checkpoints["coarse"].parent, build / "tiny" / "checkpoints", ignore=shutil.ignore_patterns("codec.pt"))
    files = {name: path.name for name, path in tiny_checkpoints.items()}
    (build / "tiny" / "checkpoints" / "files.json").write_text(json.dumps(files))
    (build / "tiny" / "fp32").symlink_to(tiny_bundle)
    return Bench("tiny", 1, ["native-fp32", "eager-fp32", "eager-bf16", "upstream-fp32"], build)


@pytest.fixture(scope="module")
def peer_rows(tiny_bench, tiny_models, tiny_bundle, results) -> list[record.Row]:
    """Of the peers' steps and clip. The compiled peer is left out: it is the eager one's function, and compiling takes half a minute."""
    around = record.circumstances("python -m benchmarks.steps", 1)
    rows = [*tiny_bench.time(3, 61, 8), *tiny_bench.time(8, 61, 8), *compare_clips(tiny_models, tiny_bundle, 0.3, 1, filter_thres=0.3)]
    rows = [row | around for row in rows]
    record.append(results / "peers.jsonl", rows)
    return rows


def test_every_row_says_how_it_was_got(bundle_rows, peer_rows):
    """Fault: a number that nobody can repeat or place; a part of the benchmark that wrote nothing."""
    assert {row["benchmark"] for row in bundle_rows + peer_rows} == set(OF_KIND)
    for row in bundle_rows + peer_rows:
        missing = (EVERY_ROW | OF_KIND[row["benchmark"]]) - set(row)
        assert not missing, (row["benchmark"], missing)
    assert all(row["command"].startswith("musiclm bench ") and row["bundle"] for row in bundle_rows)


def test_every_case_is_there(bundle_rows):
    """Fault: a stage, a number of rows, a context or a form that is left out in silence."""
    found = {(row["stage"], row["form"], row["rows"], row["context"]) for row in bundle_rows if row["benchmark"] == "step"}
    cases = {(rows, 500) for rows in (1, 2, 4, 8)} | {(1, context) for context in (100, 1000, 2000)}
    assert found == {(stage, form, *case) for stage in ("semantic", "coarse", "fine") for form in ("graph", "native") for case in cases}
    assert {row["form"] for row in bundle_rows if row["benchmark"] == "clip"} == {"one", "4 candidates", "8 prompts"}
    assert {row["form"] for row in bundle_rows if row["benchmark"] == "start"} == {"imported", "opened", "first semantic token"}
    fetched = ("streamed", "collected")
    hosts = [(row["form"], row["rows"]) for row in bundle_rows if row["benchmark"] == "host"]
    assert sorted(hosts) == sorted((form, rows) for form in fetched for rows in (1, 8))
    streams = [(row["form"], row["seconds"]) for row in bundle_rows if row["benchmark"] == "stream"]
    assert sorted(streams) == sorted((plan, length) for plan in ("trained", "low_latency") for length in (0.2, 0.6000000000000001))
    clients = [(row["form"], row["clients"]) for row in bundle_rows if row["benchmark"] == "clients"]
    assert sorted(clients) == sorted((form, count) for form in fetched for count in (1, 2, 4, 8))


def test_every_ratio_is_there(bundle_rows):
    """Fault: the page divides times of different runs, since the row that was timed turn about is missing or called otherwise."""
    found = {row["form"]: row for row in bundle_rows if row["benchmark"] == "ratio"}
    steps_of = [
        f"a step of {stage}: {what}" for stage in ("semantic", "coarse", "fine") for what in ("8 rows over one", "2000 positions over 100")
    ]
    lengths = [f"streamed over generated: {plan}, {length}" for plan in ("trained", "low_latency") for length in ("0.2 s", "0.6 s")]
    asked = {name.replace("10 s", "0.2 s") for name in STREAMED}
    clients = [f"audio per second, 8 clients over one: {fetched}" for fetched in ("streamed", "collected")]
    assert set(found) == {*steps_of, *lengths, *clients, *asked}
    assert all(row["ratio"] > 0 and row["ratio_p25"] <= row["ratio"] <= row["ratio_p75"] for row in found.values())
    assert found["the codec in chunks of 0.3 s over the whole at once"]["n"] == 5
    memory = found["memory taken over memory stated, 8 clients"]
    assert memory["taken_mb"] > 0 and memory["ratio"] == pytest.approx(memory["taken_mb"] / memory["stated_mb"], rel=1e-3)


def test_without_the_native_step(music, monkeypatch):
    """Fault: where nothing was compiled the benchmark fails, or invents a ceiling."""
    monkeypatch.setattr(bench, "choose_step", lambda *_: Choice(False, "not built"))
    found = bench.time_steps(music.bundle, 3, 1, rows=(2,), contexts=(100,))
    rows = [row for row in found if row["benchmark"] == "step"]
    assert [(row["stage"], row["form"]) for row in rows] == [(stage, "graph") for stage in ("semantic", "coarse", "fine") for _ in range(2)]
    assert [(row["rows"], row["context"]) for row in rows] == [(2, 200), (1, 100)] * 3
    assert all(row["ceiling_ms"] is None and row["median_ms"] > 0 for row in rows)
    assert all(line[-2] == "–" for line in cells(rows, SECTIONS[0])[1:]), "of the ceiling"


def test_on_the_terminal(tiny_bundle, capsys, tmp_path):
    """Fault: progress among the results, a table without a title; a file that is written over and not appended to."""
    (tmp_path / "rows.jsonl").write_text('{"kept": true}\n')
    options = [
        "--only",
        "clips",
        "--seconds",
        "0.2",
        "--repeats",
        "1",
        "--threads",
        "1",
        "--cond-scale",
        "1",
        "--json",
        str(tmp_path / "rows.jsonl"),
    ]
    assert cli.main(["bench", str(tiny_bundle), *options]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("Whole clips\n") and "8 prompts" in out and "clips: one of 0.2 s, 1 of 1" in err and "1 of 1" not in out
    kept, *rows = record.read([tmp_path / "rows.jsonl"])
    assert kept == {"kept": True} and len(rows) == 3 and {row["cond_scale"] for row in rows} == {1.0}


def test_peers_give_our_logits(peer_rows):
    """Fault: a peer that computes something else, faster or slower, and is compared with all the same."""
    lost = {(row["form"], row["rows"]): row["logits_differ_by"] for row in peer_rows if row["benchmark"] == "step"}
    assert len(lost) == 10 and all(lost[form, rows] < 1e-5 for form in ("native-fp32", "eager-fp32", "upstream-fp32") for rows in (3, 8))
    assert all(1e-4 < lost["eager-bf16", rows] < 0.2 for rows in (3, 8)), "this loses some, or was not used"


@pytest.mark.parametrize("name", ["transformer.layers.1.1.branch.null_kv", "cross_attn_bias", "transformer.layers.0.2.dynamic_beta_fn"])
def test_a_peer_with_another_weight_is_refused(tiny_bench, name, monkeypatch):
    """Fault: the comparison passes whatever the peer computes."""
    monkeypatch.setattr(tiny_bench, "state", tiny_bench.state | {name: tiny_bench.state[name] + 0.5})
    monkeypatch.setattr(tiny_bench, "forms", ["eager-fp32"])
    with pytest.raises(RuntimeError, match=r"logits of eager-fp32 differ .* A fast wrong answer is no result"):
        tiny_bench.time(1, 30, 4)


def test_upstreams_clip_has_our_tokens(peer_rows):
    """Fault: two clips of different work are compared."""
    ours, theirs = (row for row in peer_rows if row["benchmark"] == "peer clip")
    assert (ours["form"], theirs["form"]) == ("musiclm-deploy", "audiolm-pytorch")
    assert ours["equal_tokens"] == ours["tokens"] == 15 + 15 * 5 and ours["wave_differs_by"] < 1e-4


@pytest.mark.parametrize("stage", ["semantic", "coarse", "fine"])
def test_a_case_is_as_long_as_it_says(music, stage):
    """Fault: the context of a row is not what was timed; a case leaves the trained window, where the tables end."""
    manifest = music.bundle.manifest
    for context in (50, 61, 100, 501, 2000):
        case = steps.make_case(manifest, stage, 2, context, 7)
        assert case is not None
        Q = case.quantizers
        windows = case.windows(Context())
        before = {
            len(window.prompt) + case.first * Q - 1 for window in windows
        }  # positions when the first frame begins that is not warm-up
        assert len(before) == 1 and before <= set(range(context, context + Q))
        assert case.first * Q >= steps.WARM_UP and case.timed == -(-7 // Q)
        assert all(window.steps >= len(case.tokens) for window in windows), "the window ends before the last step"
        assert [turn.start for turn in case.turns[1:]] == [turn.stop for turn in case.turns[:-1]]
        assert case.turns[-1].stop * Q == len(case.tokens) and sum(len(turn) - 1 for turn in case.turns[1:]) == case.timed
        alone = steps.make_case(manifest, stage, 1, context, 7)
        assert alone is not None and np.array_equal(alone.tokens[:, 0], case.tokens[:, 0]), "a row depends on how many there are"
        assert np.array_equal(alone.windows(Context())[0].prompt.ids, windows[0].prompt.ids)
        assert not np.array_equal(case.tokens[:, 0], case.tokens[:, 1])
    assert steps.make_case(manifest, stage, 1, 10_000, 7) is None
    held = [steps.make_case(manifest, stage, 1, context, 7) for context in range(1970, 5000, 10)]
    assert held[0] is not None and held[-1] is None


@pytest.mark.parametrize("wrong", [np.nan, 1.0])
def test_a_wrong_answer_is_no_result(music, wrong):
    """Fault: one bad step among many passes; NaN passes, because it compares as neither more nor less."""
    case = steps.make_case(music.bundle.manifest, "coarse", 1, 20, 14)
    assert case is not None
    right = steps.Form(lambda _: np.full((2, 1, 5), 2.0), 1, "fp32")
    bad = steps.Form(lambda frame: np.full((2, 1, 5), 2.0 + (wrong if frame == 5 else 0.0)), 1, "fp32")
    memory = record.Memory(None)
    assert len(steps.turn_about(case, {"graph": right, "native": right}, memory)) == 2
    with pytest.raises(RuntimeError, match="the logits of native differ"):
        steps.turn_about(case, {"graph": right, "native": bad}, memory)


def test_a_ratio_of_steps_is_of_right_ones(music):
    """Fault: a step of more rows is faster because it computes something else; the ratio is upside down."""
    alone, two = (steps.make_case(music.bundle.manifest, "coarse", rows, 20, 14) for rows in (1, 2))
    assert alone is not None and two is not None

    def step(rows: int, seconds: float, change: float = 0.0) -> steps.Step:
        def run(frame: int) -> np.ndarray:
            time.sleep(seconds)
            return np.full((2, rows, 5), frame + change)

        return run

    row = steps.compare_cases("2 rows over one", (two, step(2, 0.02)), (alone, step(1, 0.002)))
    assert row["form"] == "2 rows over one" and row["n"] == 2 and row["ratio"] > 2
    with pytest.raises(RuntimeError, match="a row has other logits with others in its step"):
        steps.compare_cases("2 rows over one", (two, step(2, 0.0, 1e-6)), (alone, step(1, 0.0)))


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_steps_are_one_long_call(precision, music, tmp_path, monkeypatch):
    """Fault: an int8 bundle of real size is refused for the rounding of its activations, which tiny ones do not meet; a wrong step is not.

    At this size a value's rounding flips in one case or another: a difference is nothing, or thousands of times that.
    """
    wide = replace(TINY, shared_arguments={"dim": 256, "depth": 4, "heads": 8, "dim_head": 64})
    state = build_models(wide, seed=3)["coarse"].state_dict()
    checkpoint, manifest = Checkpoint("coarse.pt", state, "2.4.0"), music.bundle.manifest
    settings = infer_transformer("coarse", checkpoint, {"max_time_steps": manifest.coarse.max_length})
    decoder = export_stage("coarse", checkpoint, settings, tmp_path, 32, 1, precision)
    session, contexts = (open_session(tmp_path / str(graph), 2) for graph in (decoder.graph, decoder.context))
    manifest = replace(manifest, coarse=decoder, conditioner=replace(manifest.conditioner, namespaces={"coarse": 256}))
    _, context = steps.random_context(manifest, "coarse", contexts)
    cases = [steps.make_case(manifest, "coarse", rows, length, 8) for rows, length in ((1, 100), (1, 500), (2, 200), (4, 200))]
    apart = [steps.check_prefill(session, decoder, context, case) for case in cases if case]
    assert len(apart) == 4 and (max(apart) > 2e-4) == (precision != "fp32"), apart

    def misplaced(place: Any, index: Any, tokens: np.ndarray) -> Positions:
        return replace(as_it_is(place, index, tokens), ids=tokens)

    as_it_is = host_graph.place_tokens
    monkeypatch.setattr(host_graph, "place_tokens", misplaced)
    with pytest.raises(RuntimeError, match=f"is expected of {precision}"):
        steps.check_prefill(session, decoder, context, cases[0])


def test_arithmetic():
    """Fault: a percentile of the wrong side, a share upside down, a mistaken unit; a ceiling where nothing was measured."""
    times = record.spread([0.001 * number for number in range(1, 102)])
    assert times == {"n": 101, "min_ms": 1, "median_ms": 51, "p25_ms": 26, "p75_ms": 76, "p95_ms": 96, "p99_ms": 100}
    assert record.ceiling(2e9, 1e9, [4.0, 3.0, 9.0]) == {"mb_read": 2000, "gb_per_s": 1, "ceiling_ms": 2000, "ceiling_share": 0.5}
    assert record.ceiling(2e9, None, [4.0])["ceiling_share"] is None
    quotients = record.ratio("a over b", [2.0, 9.0, 8.0], [1.0, 3.0, 2.0])
    assert quotients == {"benchmark": "ratio", "form": "a over b", "n": 3, "ratio": 3, "ratio_p25": 2.5, "ratio_p75": 3.5}


def test_bytes_of_a_step(music):
    """Fault: a table of which a step reads one row counts as read, or a cache is forgotten: the ceiling is then too low or too high."""
    manifest = music.bundle.manifest
    decoder, case = manifest.coarse, steps.make_case(manifest, "coarse", 3, 100, 10)
    assert case is not None
    unread = ("rows", "bias_table", "head.1.weight")
    places = [[n for n in place if isinstance(n, int)] for name, place in decoder.step.weights.items() if name not in unread]
    numbers = [torch.Size(shape).numel() for _, *shape in places]
    weights = steps.graph_weights(music.bundle, decoder)
    assert 0 <= weights - 4 * sum(numbers) < 64 * len(numbers), "nothing but the gaps between weights"
    context = Context({"key": np.zeros(10, np.float32)})
    caches = 3 * (2 * decoder.depth * decoder.cache_head_size * 4 * 105 + 40)
    assert steps.bytes_of_step(decoder, case, context, weights) == weights + caches


def test_report(bundle_rows, peer_rows, results, tmp_path):
    """Fault: rows that no table shows; a page written over around the marks; a picture without content."""
    pytest.importorskip("matplotlib", reason="the picture needs the extra demo")
    page = tmp_path / "README.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write(results, page)
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}\n") and text.endswith(f"{END}\nafter\n") and "old" not in text
    assert "| one step, one row" in text and "| real-time factor of a clip | at most 2.5, 0.9, 0.6 |" in text
    for section in SECTIONS:
        assert f"**{section.title}**" in text and len(cells(bundle_rows + peer_rows, section)) > 1
    assert "audiolm-pytorch" in text and "    musiclm bench " in text
    picture = (results / "results.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 20_000
    write(results, page)
    assert page.read_text() == text, "once more gives the same"
    page.write_text("no marks")
    with pytest.raises(ValueError, match="must hold"):
        write(results, page)


def test_ratio_is_of_one_run():
    """Fault: a fast run of one form over a slow run of another."""
    rows = [{"date": "1", "command": "a", "form": form, "ms": value} for form, value in (("x", 8.0), ("y", 2.0))] + [
        {"date": "2", "command": "a", "form": "y", "ms": 1.0}
    ]
    assert ratio(rows, "ms", {"form": "x"}, {"form": "y"}) == 4.0
    assert ratio(rows, "ms", {"form": "x"}, {"form": "z"}) is None


def test_precision_is_one_argument(tmp_path):
    """Fault: a precision that the export does not write is taken for another."""
    with pytest.raises(ValueError, match=r"this export writes fp32.*, not fp7"):
        bundles.bundle("tiny", "fp7", tmp_path)
