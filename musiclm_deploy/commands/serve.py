"""`musiclm serve`: bundles over HTTP."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..runtime.user_files import expanded
from .values import count

_MEANING = {
    "seconds": "longest clip",
    "characters": "longest prompt",
    "parts": "most parts of a prompt",
    "num_samples": "most candidates",
    "body_bytes": "largest body",
    "upload_bytes": "largest upload",
    "upload_seconds": "longest sound that is uploaded",
    "connections": "most connections",
    "waiting": "most requests that wait",
    "waiting_per_key": "most requests of one key that wait",
    "wait_s": "seconds that a stream waits for its place; it is refused if that takes longer",
    "together": "most clips that are collected at once",
    "deadline_s": "seconds after which a request is given up",
    "header_s": "seconds in which a connection must have asked something",
    "body_s": "seconds in which a body must have come",
    "idle_s": "seconds that a client may take to read the next bytes",
    "ahead_s": "seconds of a stream that are made before its client has read them",
    "live_s": "seconds of a live session",
    "live_idle_s": "seconds after which a live session ends that does not play",
    "live_gone_s": "seconds after which one ends that nobody is connected to",
    "recording_bytes": "largest size of all recordings of live sessions",
    "jobs": "ended jobs that are kept",
    "keep_s": "seconds for which they are kept",
}


def add_options(commands: Any) -> None:
    parser = commands.add_parser(
        "serve",
        help="serve bundles over HTTP",
        description="Serve bundles over HTTP: our own interface, OpenAI's for speech and ElevenLabs' for music. docs/serving.md has more.",
    )
    parser.add_argument("bundles", nargs="+", metavar="[NAME=]BUNDLE", help="a bundle, by the name of its folder or another one")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine alone)")
    parser.add_argument("--port", type=_port, default=8000, help="port (default: 8000; 0: any that is free)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or tensorrt (default: auto)")
    parser.add_argument("--threads", type=count, metavar="N", help="CPU threads (default: one per core)")
    parser.add_argument("--keys", type=expanded, metavar="FILE", help="keys that are let in, a line `name: key` each")
    parser.add_argument("--allow-origin", action="append", default=[], metavar="URL", help="origin from which browsers may ask (CORS)")
    parser.add_argument(
        "--memory-gb", type=_above_zero, metavar="N", help="of open bundles; the least recently used one is closed beyond it"
    )
    parser.add_argument(
        "--drain", type=_above_zero, default=30.0, metavar="S", help="seconds that requests have when it is stopped (default: 30)"
    )
    parser.add_argument(
        "--deadline", action="append", default=[], metavar="NAME=S", help="seconds that a request to this bundle has; repeat for others"
    )
    parser.add_argument("--log-json", action="store_true", help="log as JSON, a line each")
    limits = parser.add_argument_group("limits")
    for name, kind, default in _limits():
        shown = default if isinstance(default, int) else f"{default:g}"
        limits.add_argument(
            f"--max-{name.replace('_', '-')}", type=kind, default=default, metavar="N", help=f"{_MEANING[name]} (default: {shown})"
        )
    parser.set_defaults(run=run, wrong_usage=parser.error)


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to 65535, got {text!r}")
    return int(text)


def _above_zero(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def bundle_name(path: Path) -> str:
    """Return the name that a bundle has if it is given none: its folder's, or of one that is called `bundle` that of the folder above."""
    own, above = path.resolve().name, path.resolve().parent.name
    return above if own == "bundle" and above else own


def _limits() -> list[tuple[str, type, Any]]:
    from ..serve.settings import Limits

    return [(field.name, type(field.default), field.default) for field in fields(Limits)]


def run(options: argparse.Namespace) -> int:
    try:
        from ..serve.keys import read_keys
        from ..serve.logs import log
        from ..serve.run import is_loopback, serve
        from ..serve.settings import Limits, Settings
    except ModuleNotFoundError as error:
        from ..runtime.install import install_command

        raise ImportError(f"musiclm serve needs the package {error.name}, which is not installed: {install_command('serve')}.") from error
    if not options.keys and not is_loopback(options.host):
        options.wrong_usage(f"--host {options.host} can be reached from other machines: say with --keys FILE who may ask")
    bundles: dict[str, Path] = {}
    for given in options.bundles:
        name, path = given.split("=", 1) if "=" in given and not Path(given).exists() else ("", given)
        path = expanded(path)
        name = name or bundle_name(path)
        if name in bundles:
            options.wrong_usage(f"two bundles are named {name!r}: name one of them otherwise, as NAME=BUNDLE")
        bundles[name] = path
    try:
        limits = Limits(**{name: getattr(options, f"max_{name}") for name, _, _ in _limits()})
    except ValueError as error:
        options.wrong_usage(f"--max-{error}")
    deadlines = {}
    for given in options.deadline:
        name, _, seconds = given.partition("=")
        try:
            deadlines[name] = _above_zero(seconds)
        except argparse.ArgumentTypeError as error:
            options.wrong_usage(f"--deadline {given}: {error}")
        if name not in bundles:
            options.wrong_usage(f"--deadline {given}: there is no bundle {name!r}, only {', '.join(bundles)}")
    log(options.verbose, options.log_json)
    keys = read_keys(options.keys) if options.keys else {}
    memory = None if options.memory_gb is None else int(options.memory_gb * 1e9)
    where = {"host": options.host, "port": options.port, "device": options.device, "threads": options.threads}
    who = {"keys": keys, "origins": options.allow_origin}
    serve(Settings(bundles, **where, **who, deadlines=deadlines, memory_bytes=memory, drain_s=options.drain, limits=limits))
    return 0
