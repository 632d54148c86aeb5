"""`musiclm load`: requests to a server, at random times."""

from __future__ import annotations

import argparse
from typing import Any

from ..runtime.user_files import expanded


def add_options(commands: Any) -> None:
    parser = commands.add_parser(
        "load",
        help="say how a server answers under load",
        description="Send requests to a server at random times (a Poisson process, an open loop), and say what their clients heard.",
    )
    parser.add_argument("url", metavar="URL", help="of the server, such as http://127.0.0.1:8000")
    parser.add_argument("--rate", type=float, default=1.0, metavar="X", help="requests per second, on average (default: 1)")
    parser.add_argument("--duration", type=float, default=30.0, metavar="S", help="seconds in which requests are sent (default: 30)")
    parser.add_argument(
        "--seconds",
        type=_lengths,
        default=(2.0, 10.0),
        metavar="S[:S]",
        help="length of the clips, or shortest and longest (default: 2:10)",
    )
    parser.add_argument("--cancel", type=float, default=0.0, metavar="X", help="share of clients that go away in the middle (default: 0)")
    parser.add_argument("--slow", type=float, default=0.0, metavar="X", help="share of clients that read as a clip plays (default: 0)")
    parser.add_argument("--prompt", action="append", metavar="TEXT", help="a prompt, more than once for several (default: four of ours)")
    parser.add_argument(
        "--format",
        action="append",
        choices=["wav", "pcm", "flac", "opus", "mp3"],
        help="a format, more than once for several (default: wav)",
    )
    parser.add_argument("--interface", choices=["generations", "speech"], default="generations", help="ours, or OpenAI's (default: ours)")
    parser.add_argument("--model", metavar="NAME", help="model to ask for (default: the server's)")
    parser.add_argument("--key", metavar="KEY", help="key to send")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the load: times, lengths, prompts (default: 0)")
    parser.add_argument(
        "--retries", type=int, default=0, metavar="N", help="times that a refused client comes back after its Retry-After (default: 0)"
    )
    parser.add_argument("--timeout", type=float, default=120.0, metavar="S", help="seconds in which an answer must end (default: 120)")
    parser.add_argument("--json", type=expanded, metavar="FILE", help="append the row to this file, one JSON object a line")
    parser.add_argument("--plot", type=expanded, metavar="FILE.png", help="draw the clients' first audio")
    parser.set_defaults(run=run)


def _lengths(text: str) -> tuple[float, float]:
    try:
        low, _, high = text.partition(":")
        return float(low), float(high or low)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected seconds, or the shortest and the longest as 2:10, got {text!r}") from error


def run(options: argparse.Namespace) -> int:
    from ..runtime.bench.table import as_text
    from ..serve.load import SECTIONS, Load, load
    from ..serve.load.arrivals import PROMPTS

    named = {name: getattr(options, name) for name in ("rate", "seconds", "cancel", "slow", "interface", "model", "key", "seed", "retries")}
    prompts, formats = tuple(options.prompt or PROMPTS), tuple(options.format or ("wav",))
    settings = Load(options.url, duration_s=options.duration, timeout_s=options.timeout, prompts=prompts, formats=formats, **named)
    row, _ = load(settings, json=options.json, plot=options.plot)
    print(as_text([row], SECTIONS))
    return 0
