"""Hosts of the examples in embed/examples: a JACK server without a sound card, programs that are typed into, and what they played."""

from __future__ import annotations

import os
import queue
import re
import shutil
import subprocess
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np

from . import embed

ENVIRONMENT = os.environ | {"MUSICLM_ONNXRUNTIME": str(embed.ONNXRUNTIME)}
FREEDOM = {"JACK_NO_AUDIO_RESERVATION": "1", "JACK_NO_START_SERVER": "1"}
HEADERS = {"jack/jack.h": "libjack-jackd2-dev", "lv2/core/lv2.h": "lv2-dev", "pd/m_pd.h": "puredata-dev"}
PACKAGES = {"jackd": "jackd2", "jalv": "jalv", "lv2apply": "lilv-utils", "sord_validate": "sordi", "pd": "puredata-core"}


def missing(*needed: str) -> str:
    """Return why a test of hosts cannot run here, or nothing. needed: programs, and headers."""
    found = {name: Path("/usr/include", name).is_file() if name in HEADERS else shutil.which(name) is not None for name in needed}
    lacking = [*embed.MISSING, *((HEADERS | PACKAGES)[name] for name, there in found.items() if not there)]
    return f"this needs {', '.join(lacking)}, which this machine lacks" if lacking else ""


class Program:
    """A program that is typed into, and whose lines are read. At the end of the block it is told to end, then killed."""

    def __init__(self, *command: object, environment: dict[str, str] | None = None, cwd: Path | None = None) -> None:
        self.command = [str(part) for part in command]
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
            env=ENVIRONMENT | (environment or {}),
            cwd=cwd,
        )
        self.lines: queue.Queue[str | None] = queue.Queue()
        self.said: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def say(self, line: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{line}\n")

    def expect(self, pattern: str, seconds: float = 60) -> re.Match[str]:
        """Return the match of the next line that has one."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            try:
                line = self.lines.get(timeout=left)
            except queue.Empty:
                break
            if line is None:
                break
            self.said.append(line)
            if found := re.search(pattern, line):
                return found
        raise AssertionError(f"{self.command[0]} did not say {pattern!r} but:\n{''.join(self.said)}")

    def end(self, seconds: float = 60) -> int:
        """Return the status with which it ends by itself."""
        return self.process.wait(seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self.process.stdin
        self.process.terminate()
        try:
            self.process.stdin.close()  # jalv looks at signals when a line has come, or no more can
            self.process.wait(10)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            self.process.kill()
            self.process.wait()


class Jack:
    """A JACK server on the dummy backend. Its cycles wait for their clients, so that a busy machine delays sound and does not change it; or
    they do not, as those of a sound card, and are real-time threads where the system lets them."""

    def __init__(self, rate: int = 48000, period: int = 256, *, waits: bool = True) -> None:
        name = f"musiclm-{os.getpid()}"
        self.environment = FREEDOM | {"JACK_DEFAULT_SERVER": name}
        patience = ["--no-realtime", "--sync", "--timeout", "5000"] if waits else ["--realtime"]
        self.server = Program(*("jackd", "-n", name, *patience, "-d", "dummy", "-r", rate, "-p", period), environment=self.environment)

    def __enter__(self) -> Self:
        end = time.monotonic() + 30
        while subprocess.run(["jack_lsp"], env=ENVIRONMENT | self.environment, capture_output=True).returncode:
            assert time.monotonic() < end and self.server.process.poll() is None, "jackd does not start"
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        self.server.__exit__(None, None, None)  # it removes its files


class Followed(NamedTuple):
    """How far what was captured is the music."""

    captured: int  # frames
    music: int  # frames of it
    lacked: int  # blocks with silence in place of music, once it had begun


def follow(captured: np.ndarray, music: np.ndarray, block: int) -> Followed:
    """Follow the music in what was captured, as far as each block is the next of it, and silence where it was not there."""
    at = lacked = 0
    for start in range(0, len(captured), block):
        piece = captured[start : start + block]
        wanted = music[at : at + len(piece)]
        differ = np.flatnonzero(piece[: len(wanted)] != wanted)
        got = int(differ[0]) if len(differ) else len(wanted)
        at += got
        if piece[got:].any():
            return Followed(start + got, at, lacked)
        lacked += at > 0 and got < len(piece)
    return Followed(len(captured), at, lacked)
