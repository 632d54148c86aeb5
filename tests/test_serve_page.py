"""docs/serving.md is true: its commands and its Python run in order against a server, and its tables are those of the code."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import httpx
import pytest
import soundfile
from prometheus_client.parser import text_string_to_metric_families
from support import ROOT
from support.pages import shortened
from support.server import Server, serving

from musiclm_deploy.cli import make_parser
from musiclm_deploy.serve.bodies import Generation
from musiclm_deploy.serve.keys import read_keys
from musiclm_deploy.serve.settings import Limits

PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
SHORTER = ((r'("seconds": )10\b', r"\g<1>1"), (r'("seconds": )12\b', r"\g<1>2"), (r"music_length_ms=10_000", "music_length_ms=1000"))
EMPTY = "build/demo/bundle"


@pytest.fixture(scope="module")
def folder(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader would be, with a bundle at the page's place."""
    folder = tmp_path_factory.mktemp("page")
    shutil.copytree(tiny_bundle, folder / EMPTY)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serving(folder, folder / EMPTY) as running:
        yield running


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the tables below a heading, without their first two lines."""
    section = re.search(rf"^## {heading}$(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert section is not None, heading
    lines = re.findall(r"^\|(.*)\|$", section[1], re.MULTILINE)
    return [[cell.strip() for cell in line.split("|")] for line in lines if not re.fullmatch(r"[-|]+", line)][1:]


def commands(program: str) -> list[str]:
    return re.findall(rf"^    (.*\b{program} .*)$", PAGE.replace("\\\n", ""), re.MULTILINE)


def test_the_blocks(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault: a command, a call, or a name of a field on the page that does not work; music that is not there after it."""
    for package in ("openai", "elevenlabs"):
        pytest.importorskip(package)
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    monkeypatch.chdir(folder)
    found = re.findall(r"^    (curl [^\n]*)$|^```python\n(.*?)^```", PAGE.replace("\\\n", ""), re.MULTILINE | re.DOTALL)
    assert [bool(curl) for curl, _ in found] == [True, True, False, False, True, False, False]
    names: dict[str, Any] = {}
    for curl, code in found:
        text = shortened(curl or code, SHORTER).replace("http://127.0.0.1:8000", server.url)
        if curl:
            subprocess.run([*shlex.split(text), "--fail"], check=True)
        else:
            exec(compile(text, "<page>", "exec"), names)
    for name, rate in (("out.wav", 16000), ("on.flac", 16000), ("openai.wav", 16000), ("eleven.mp3", 44100)):
        with soundfile.SoundFile(folder / name) as file:
            assert file.samplerate == rate and len(file.read(1600)) == 1600, name
    assert re.findall(r"^event: (.*)$", (folder / "events.txt").read_text(), re.MULTILINE)[-1] == "speech.audio.done"
    assert names["sound"].startswith(b"fLaC") and len(names["latents"].data) == 2


def test_the_commands(folder: Path) -> None:
    """Fault: an option that the command does not have; a file of keys that it does not take."""
    found = commands("musiclm serve")
    assert len(found) == 4
    for command in found:
        options = make_parser().parse_args(command[command.index("musiclm serve") :].split()[1:])
        assert options.bundles[0] == "build/demo/bundle"
    (made,) = commands("python -c")
    subprocess.run(made.replace("python", shlex.quote(sys.executable), 1), shell=True, check=True, cwd=folder)
    assert list(read_keys(folder / "keys.txt").values()) == ["anna", "bert"]


def test_the_fields_of_a_request() -> None:
    """Fault: a field that nobody finds; one that is told and refused."""
    told = [field for names, *_ in rows("A sound") if "X-" not in names for field in re.findall(r"`(\w+)`", names)]
    assert sorted(told) == sorted(Generation.model_fields)


def test_the_limits() -> None:
    """Fault: a limit that is missing on the page, or has another default there."""
    told = {name.strip("`"): float(default) for name, default, _ in rows("Limits")}
    assert told == {f"--max-{limit.name.replace('_', '-')}": limit.default for limit in fields(Limits)}


def test_the_metrics(server: Server) -> None:
    """Fault: a metric that is missing on the page, or is of another kind or has other labels there."""
    told = {name.strip("`"): (kind, labels) for name, kind, labels, _ in rows("Metrics")}
    with httpx.Client(base_url=server.url) as client:
        client.post("/v1/audio/generations", json={"prompt": "x", "seconds": 0.3})
        shown = list(text_string_to_metric_families(client.get("/metrics").text))
    kinds = {one.name + ("_total" if one.type == "counter" else ""): one.type for one in shown if not one.name.endswith("_created")}
    assert {name: kind for name, (kind, _) in told.items()} == kinds
    for one in shown:
        for sample in one.samples:
            if (name := re.sub(r"_(bucket|sum|count)$", "", sample.name)) in told:
                assert set(sample.labels) - {"le"} == set(filter(None, told[name][1].split(", "))), name


def test_the_refusals() -> None:
    """Fault: a code that the server does not have, or one that it has and the page has not, or under another status."""
    had = set()
    for path in (ROOT / "serve").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Refusal" and isinstance(node.args[0], ast.Constant):
                codes = [one.value for one in node.keywords if one.arg == "code"] + node.args[3:4]
                had |= {(node.args[0].value, code.value) for code in codes if isinstance(code, ast.Constant)}
    told = {(int(status), code) for status, codes, _ in rows("When it is refused") for code in re.findall(r"`(\w+)`", codes)}
    assert len(had) > 20 and told == had


def test_the_fields_of_the_log() -> None:
    """Fault: a field of a line that the page does not explain."""
    told = {field for names, _ in rows("What it logs") for field in re.findall(r"`(\w+)`", names)}
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "serve").rglob("*.py"))
    noted = set(re.findall(r"(\w+)=", " ".join(re.findall(r"\.note\(([^\n]*)\)$", sources, re.MULTILINE))))
    assert told == noted | {"request_id", "method", "path"}
