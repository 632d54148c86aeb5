"""`musiclm serve` when it is started: what it says of itself, and in one sentence why it does not start."""

import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from support import ROOT

from musiclm_deploy.cli import make_parser
from musiclm_deploy.commands.serve import bundle_name
from musiclm_deploy.serve.settings import Limits

KEY = "anna: 0123456789abcdef"
WITHOUT = "import sys; sys.modules[{!r}] = None; from musiclm_deploy.cli import main; sys.exit(main(sys.argv[1:]))"


def start(*arguments: object, without: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command, which must end by itself. without: a package that is then not installed."""
    begin = ["-m", "musiclm_deploy"] if without is None else ["-c", WITHOUT.format(without)]
    return subprocess.run([sys.executable, *begin, "serve", *map(str, arguments)], capture_output=True, text=True, timeout=60, cwd=ROOT)


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


def test_a_port_that_is_taken(tiny_bundle: Path, taken: int) -> None:
    """Fault: bundles are opened for seconds, and then a traceback; an error that does not name the port."""
    ended = start(tiny_bundle, "--port", taken)
    assert ended.returncode == 1 and "is open after" not in ended.stderr
    told = f"musiclm: cannot listen on 127.0.0.1, port {taken}: address already in use. Give another --port, or 0 for any that is free."
    assert ended.stderr.splitlines() == [told]


@pytest.mark.parametrize("readable", [True, False])
def test_a_file_of_keys(tiny_bundle: Path, tmp_path: Path, taken: int, readable: bool) -> None:
    """Fault: keys that every user of the machine can read, without a word; a word about a file that is as it should be."""
    keys = tmp_path / "keys"
    keys.write_text(KEY)
    keys.chmod(0o644 if readable else 0o600)
    assert (
        f"WARNING {keys} can be read by other users of this machine" in start(tiny_bundle, "--port", taken, "--keys", keys).stderr
    ) == readable


def test_bundles_that_cannot_be_opened(tiny_bundle: Path, tmp_path: Path) -> None:
    """Fault: a server that starts and fails at the first request; a traceback in place of what is wrong."""
    damaged = tmp_path / "damaged"
    shutil.copytree(tiny_bundle, damaged)
    with (damaged / "semantic.onnx").open("ab") as file:
        file.write(b"\0")
    ended = start(tiny_bundle, damaged, "--port", 0)
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    assert ended.stderr.startswith(f"musiclm: the bundle {damaged} cannot be used:\n  - 'semantic.onnx': ")
    ended = start(tiny_bundle, "--port", 0, "--memory-gb", 0.0001)
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    assert "more than the 0.0001 GB that open bundles may have" in ended.stderr
    ended = start(tiny_bundle, "--port", 0, "--device", "cuda")
    assert ended.returncode == 1 and "Traceback" not in ended.stderr and ended.stderr.splitlines()[-1].startswith("musiclm: device='cuda'")


def test_the_extra_is_missing(tiny_bundle: Path) -> None:
    """Fault: a ModuleNotFoundError, or advice to install something else; other commands, or the help, that need the extra."""
    ended = start(tiny_bundle, without="uvicorn")
    assert ended.returncode == 1
    assert ended.stderr == f"musiclm: musiclm serve needs the package uvicorn, which is not installed: pip install '.[serve]' in {ROOT}.\n"
    assert start("--help", without="fastapi").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("{}", "{}"), "': name one of them otherwise, as NAME=BUNDLE"),
        (("{}", "x={}", "x={}"), "two bundles are named 'x'"),
        (("{}", "--host", "0.0.0.0"), "--host 0.0.0.0 can be reached from other machines: say with --keys FILE who may ask"),
        (("{}", "--port", "65536"), "argument --port: expected a whole number from 0 to 65535, got '65536'"),
        (("{}", "--drain", "-1"), "argument --drain: expected a number above 0, got '-1'"),
        (("{}", "--threads", "0"), "argument --threads: expected a whole number of at least 1, got '0'"),
        (("x={}", "--deadline", "x=0"), "--deadline x=0: expected a number above 0, got '0'"),
        (("x={}", "--deadline", "y=3"), "--deadline y=3: there is no bundle 'y', only x"),
        (("{}", "--max-upload-bytes", "0"), "--max-upload-bytes must be above 0, got 0."),
    ],
)
def test_wrong_usage(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], told: str) -> None:
    """Fault: a server that serves one of two bundles, or everybody; a limit that nothing could stay within; another exit status."""
    options = make_parser().parse_args
    given = [one.format(tiny_bundle) for one in arguments]
    with pytest.raises(SystemExit) as ended:
        parsed = options(["serve", *given])
        parsed.run(parsed)
    assert ended.value.code == 2 and told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "name"), [("/x/demo/bundle", "demo"), ("/x/piano", "piano"), ("/x/piano/", "piano"), ("/bundle", "bundle")]
)
def test_names_of_bundles(path: str, name: str) -> None:
    """Fault: bundles that are all named `bundle`; one in the root of a container that has no name."""
    assert bundle_name(Path(path)) == name


def test_the_help_lists_all_limits(capsys: pytest.CaptureFixture[str]) -> None:
    """Fault: a limit that nobody can set, or whose default is not told."""
    with pytest.raises(SystemExit):
        make_parser().parse_args(["serve", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for limit in fields(Limits):
        assert f"--max-{limit.name.replace('_', '-')} N" in shown
    assert "largest upload (default: 16777216)" in shown
