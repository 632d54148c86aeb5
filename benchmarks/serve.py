"""A server beside the calls that it makes: `python -m benchmarks.serve BUNDLE`.

In: a bundle's folder. Out: JSON lines. Timed, of a `musiclm serve` in a process of its own on this machine: from a request to the first
samples of a stream, one client alone and eight together, each asking again when its clip has ended; and whole clips over HTTP and by
`generate`, turn about, whose samples must be equal to the bit.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx

from benchmarks.bundle import ROOT
from musiclm_deploy.runtime.backend import available_processors
from musiclm_deploy.runtime.bench.clips import TEXT, facts
from musiclm_deploy.runtime.bench.record import Row, append, circumstances, ratio, say, spread
from musiclm_deploy.runtime.growing import sixteen_bits
from musiclm_deploy.runtime.musiclm import MusicLM, load
from musiclm_deploy.runtime.outputs import check_appendable

_LISTENING = re.compile(r"listening on (http://\S+:\d+)")
_PATH = "/v1/audio/generations"


@contextmanager
def serving(bundle: Path, threads: int) -> Iterator[str]:
    """Run a server, and give its address."""
    command = [sys.executable, "-m", "musiclm_deploy", "serve", str(bundle), "--port", "0", "--threads", str(threads)]
    with tempfile.TemporaryFile("w+") as log, subprocess.Popen(command, stderr=log, text=True, cwd=ROOT) as process:
        try:
            while not (found := _LISTENING.search(_all_of(log))):
                if process.poll() is not None:
                    raise RuntimeError(f"the server has ended with {process.returncode}:\n{_all_of(log)}")
                time.sleep(0.05)
            yield found[1]
        finally:
            process.terminate()


def _all_of(log) -> str:
    log.seek(0)
    return log.read()


def first_audio_s(client: httpx.Client, seconds: float, seed: int) -> float:
    """Return the seconds from a request to the first samples of a stream, which is read to its end."""
    asked, first = {"prompt": TEXT, "seconds": seconds, "seed": seed, "response_format": "pcm"}, None
    began, size = time.perf_counter(), 0
    with client.stream("POST", _PATH, json=asked) as answer:
        answer.raise_for_status()
        for data in answer.iter_raw():
            first, size = first or time.perf_counter(), size + len(data)
    if first is None or size != 2 * round(seconds * int(answer.headers["x-sample-rate"])):
        raise RuntimeError(f"a clip of {seconds:g} s has {size} bytes.")
    return first - began


def first_audio(url: str, clients: int, each: int, seconds: float) -> Row:
    """Return the row of so many clients, who ask so many times each, one time after another."""

    def one(number: int) -> list[float]:
        with httpx.Client(base_url=url, timeout=300, trust_env=False) as client:
            return [first_audio_s(client, seconds, number * each + turn) for turn in range(each)]

    say(f"serve: first audio of {clients} clients, {each} clips of {seconds:g} s each")
    with ThreadPoolExecutor(clients) as pool:
        found = [time_s for times in pool.map(one, range(clients)) for time_s in times]
    return {"benchmark": "serve", "form": "first audio", "clients": clients, "seconds": seconds, **spread(found)}


def over_generate(url: str, model: MusicLM, seconds: float, repeats: int) -> Row:
    """Whole clips of both, turn about. Raises RuntimeError where the samples are not equal."""
    served, called = [], []
    with httpx.Client(base_url=url, timeout=300, trust_env=False) as client:
        for seed in range(-2, repeats):  # the first ones open what is opened once
            say(f"serve: clips of {seconds:g} s, turn about, {seed + 1} of {repeats}")
            asked = {"prompt": TEXT, "seconds": seconds, "seed": max(seed, 0), "response_format": "pcm", "stream": False}
            began = time.perf_counter()
            answer = client.post(_PATH, json=asked).raise_for_status()
            between = time.perf_counter()
            music = model.generate(TEXT, seconds=seconds, seed=max(seed, 0))
            if hashlib.sha256(sixteen_bits(music.audio).tobytes()).digest() != hashlib.sha256(answer.content).digest():
                raise RuntimeError("the server's samples differ from generate's. A fast wrong answer is no result.")
            if seed >= 0:
                served.append(between - began)
                called.append(time.perf_counter() - between)
    return ratio(f"a clip of {seconds:g} s: over HTTP over generate", served, called) | {"median_ms": spread(served)["median_ms"]}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seconds", type=float, default=4.0, help="of the clips (default: 4)")
    parser.add_argument("--clients", type=int, default=8, help="that ask together (default: 8)")
    parser.add_argument("--repeats", type=int, default=20, help="of each measurement (default: 20)")
    parser.add_argument("--threads", type=int, default=available_processors(), help="of the CPU (default: one per core)")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "serve.jsonl", help="where rows are appended")
    options = parser.parse_args(arguments)
    check_appendable(options.json)
    given = sys.argv[1:] if arguments is None else arguments
    around = circumstances(shlex.join(["python", "-m", "benchmarks.serve", *map(str, given)]), options.threads)
    with serving(options.bundle, options.threads) as url, load(options.bundle, "cpu", threads=options.threads) as model:
        rows = [
            first_audio(url, 1, options.repeats, options.seconds),
            first_audio(url, options.clients, options.repeats, options.seconds),
            over_generate(url, model, options.seconds, options.repeats),
        ]
        around |= facts(model, None, None) | {"bundle": os.path.relpath(options.bundle)}
    append(options.json, [row | around for row in rows])
    for row in rows:
        say(str(row))


if __name__ == "__main__":
    main()
