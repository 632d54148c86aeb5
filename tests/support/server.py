"""A server as its users start it: a process, on a free port of this machine."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from . import ROOT

_LISTENING = re.compile(r"listening on (http://\S+:\d+)")


class Server:
    """A running `musiclm serve`."""

    def __init__(self, process: subprocess.Popen[str], log: Path, url: str) -> None:
        self.process, self.log, self.url = process, log, url

    def stop(self, signals: int = 1) -> int:
        """Tell it to stop, and return its exit status."""
        for _ in range(signals):
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def resident_bytes(self) -> int:
        """Return the memory that it has in use."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * 4096

    def threads(self) -> int:
        """Return how many threads it has."""
        return len(list(Path(f"/proc/{self.process.pid}/task").iterdir()))


def eventually(holds: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Return whether something becomes true."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


@contextmanager
def serving(folder: Path, *arguments: object, threads: int = 1) -> Iterator[Server]:
    """Run `musiclm serve` with these arguments until the end of the block. folder: where its log goes."""
    log = folder / "serve.log"
    command = [sys.executable, "-m", "musiclm_deploy", "serve", *map(str, arguments), "--port", "0", "--threads", str(threads)]
    with log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, text=True, cwd=ROOT)
    try:
        for _ in range(1200):
            if found := _LISTENING.search(log.read_text(encoding="utf-8")):
                break
            try:
                process.wait(0.05)
            except subprocess.TimeoutExpired:
                continue
            raise AssertionError(f"it has ended with {process.returncode}:\n{log.read_text(encoding='utf-8')}")
        else:
            raise AssertionError(f"it does not listen:\n{log.read_text(encoding='utf-8')}")
        yield Server(process, log, found[1])
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(30)
