"""The demo's evaluation compares ways to generate clip by clip, on the same noise, and writes into the page what it found."""

import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from demo.compose import SECONDS, STYLES
from demo.data import Clips
from demo.evaluate import compare, main, one_window, plans, tables
from demo.judge import Judge
from demo.render import SAMPLE_HZ

PAGE = Path(__file__).resolve().parent.parent / "demo" / "README.md"


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Clips:
    """One test piece of each style, as noise: a real one needs FluidSynth."""
    folder = tmp_path_factory.mktemp("clips")
    noise = np.random.default_rng(0).normal(scale=0.1, size=round(len(STYLES) * SECONDS * SAMPLE_HZ))
    soundfile.write(folder / "test-0000.flac", noise, SAMPLE_HZ, subtype="PCM_16")
    return Clips(folder, "test")


@pytest.fixture(scope="module")
def real() -> np.ndarray:
    return np.random.default_rng(1).normal(scale=0.1, size=(32, SAMPLE_HZ)).astype(np.float32)


def test_plans_are_compared_on_the_same_noise(tiny_bundle, clips, real) -> None:
    """Faults: a plan that never reaches the model, other seeds or prompts for one way than for another, the wrong reference."""
    judge = Judge(real, ["piano", "organ"] * (len(real) // 2), SAMPLE_HZ)
    ways = plans(tiny_bundle, [0.05])
    assert list(ways) == ["trained", "low latency, 0.05 s"]
    ways["trained once more"] = ways["trained"]
    rows = compare(ways, 0.4, clips, list(range(len(clips) + 1)), real, judge)  # the first prompt has two takes
    trained, low_latency, again = (rows[name] for name in ways)
    assert trained["against the first, points"] == "" and again["against the first, points"] == "+0.0 (+0.0 to +0.0)"
    assert {style: sum(found.values()) for style, found in trained["confusion"].items()} == {
        style: 1 + (style == clips.pieces[0].style) for style in STYLES
    }
    heard = ("named as prompted", "MuLaN, own prompt", "another's", "Fréchet")
    assert [trained[column] for column in heard] == [again[column] for column in heard]
    assert low_latency["Fréchet"] != trained["Fréchet"]  # other windows, so other waves


def test_low_latency_is_a_way_of_the_whole_table() -> None:
    """Faults: a table without low latency, or one whose first row, the reference, is not the first bundle as it is."""
    ways = one_window([Path("fp32"), Path("int4")], [1, 3])
    assert list(ways) == ["fp32", "int4", "low latency", "upstream's conditioning", "guidance 1"]  # 3 is the default
    assert ways["fp32"] == (Path("fp32"), {}) and ways["low latency"] == (Path("fp32"), {"plan": "low_latency"})


def test_a_table_for_each_length() -> None:
    """Fault: the rows of long clips under the heading of short ones."""
    around = {"git": "abc", "machine": "a machine", "command": "a command"}
    text = tables({"a part": "1"}, {4.0: {"trained": {"Fréchet": "1.5", "confusion": {}}}, 24.0: {"trained": {"Fréchet": "2.5"}}}, around)
    assert (
        "| generated, 4 s | Fréchet |\n|---|---|\n| trained | 1.5 |\n\n| generated, 24 s | Fréchet |\n|---|---|\n| trained | 2.5 |" in text
    )
    assert "Commit abc, a machine: `a command`." in text


@pytest.mark.parametrize("plan", [[], ["--plans"]])
def test_the_page_has_the_places_of_both_tables(plan, tmp_path, monkeypatch, capsys) -> None:
    """Faults: hours of computing whose tables fit nowhere; a page without their places is refused after them."""
    other = tmp_path / "page.md"
    other.write_text("no marks", encoding="utf-8")
    command = ["demo.evaluate", "bundle", *plan, "--clips", str(tmp_path), "--out", str(tmp_path / "out"), "--into"]
    monkeypatch.setattr(sys, "argv", [*command, str(other)])
    with pytest.raises(SystemExit):
        main()
    assert "has no lines <!-- begin: demo.evaluate" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", [*command, str(PAGE)])
    with pytest.raises(FileNotFoundError, match=r"no test-\*\.flac"):  # the page has been accepted by then
        main()
