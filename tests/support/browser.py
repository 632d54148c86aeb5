"""Chromium without a window, and what it tells of a page: requests, errors, violations, samples."""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from . import ROOT
from .npm import packages

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page, Request

DEMO = ROOT / "build" / "demo" / "bundle"
SHOTS = os.environ.get("MUSICLM_SCREENSHOTS")  # a folder, for whoever wants to look
ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"),
    "--host-resolver-rules=MAP elsewhere.test 127.0.0.1",  # a name that is not this machine's, to a browser
)
WATCH = """
addEventListener("securitypolicyviolation", (event) => console.error("violation", event.violatedDirective, event.blockedURI));
addEventListener("unhandledrejection", (event) => console.error("rejection", String(event.reason)));
"""
SAMPLES = """async (id) => {
  const { clips, samplesFrom } = await import(new URL("page/store.js", document.baseURI));
  const all = await clips();
  const clip = id ? all.find((one) => one.id === id) : all[0];
  return { clip, samples: Array.from(await samplesFrom(clip.id)) };
}"""


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start the system's Chromium. Skips the test where it, or playwright, is missing."""
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright (requirements/dev.txt)")
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("needs chromium (apt-get install chromium)")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, headless=True, args=list(ARGUMENTS))
        yield browser
        browser.close()


@contextmanager
def watched(browser: Browser, url: str, scheme: str = "dark", **options: Any) -> Iterator[Page]:
    """Open a page in a profile of its own. At the end no request may have gone elsewhere, and its policy may have refused nothing."""
    context = browser.new_context(viewport={"width": 1100, "height": 900}, color_scheme=scheme, **options)  # type: ignore[arg-type]  # a str is one of its literals
    context.add_init_script(WATCH)
    page = context.new_page()
    origin, wrong = urlsplit(url).netloc, list[str]()

    def requested(asked: Request) -> None:
        if urlsplit(asked.url).netloc not in (origin, ""):
            wrong.append(asked.url)

    def logged(said: ConsoleMessage) -> None:
        if "violat" in said.text.lower() or said.text.startswith("rejection"):
            wrong.append(said.text)

    page.on("request", requested)
    page.on("console", logged)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(url)
    try:
        yield page
    finally:
        context.close()
    assert not wrong, wrong


def until(page: Page, condition: str, argument: Any = None, seconds: float = 30.0) -> None:
    """Wait until an expression, or a function of an argument, holds. Playwright's own way is text, which the page's policy forbids."""
    end = time.monotonic() + seconds
    while not page.evaluate(condition, argument):
        assert time.monotonic() < end, (condition, argument)
        page.wait_for_timeout(20)


def ready(page: Page) -> None:
    """Wait until the page can be used."""
    page.wait_for_selector("html[data-ready]")


def number(page: Page, name: str) -> float:
    """Return a number that the page says of itself."""
    return float(page.evaluate("(name) => document.documentElement.dataset[name] ?? '0'", name))


def kept(page: Page, clip: str | None = None) -> tuple[dict[str, Any], np.ndarray]:
    """Return a clip of the page's history, by default the newest, and its samples as int16 [t]."""
    found = page.evaluate(SAMPLES, clip)
    return found["clip"], np.array(found["samples"], np.int16)


def violations(page: Page) -> list[str]:
    """Return what axe-core finds wrong with the page as it is now."""
    source = (packages() / "axe-core" / "axe.min.js").read_text(encoding="utf-8")
    page.evaluate(f"{source};0")
    found = page.evaluate("async () => (await axe.run()).violations")
    return [f"{one['id']}: {one['help']} {[node['target'] for node in one['nodes']]}" for one in found]


class Line:
    """A TCP line to a server that can be cut: what a sleeping laptop, or a network that changes, does to a page."""

    def __init__(self, url: str) -> None:
        self._port = urlsplit(url).port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self.bytes, self.whole = 0, True  # bytes that the server has sent; whether the line takes connections
        self._count = self._dead = 0  # connections so far; how many of them the server is not heard on any more
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}/"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, whole: bool = False) -> None:
        """Break all connections. whole: whether new ones are taken."""
        self.whole = whole
        for one in self._sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._sockets.clear()

    def silence(self) -> None:
        """Lose what the server sends on the connections of now, which stay open."""
        self._dead = self._count

    def close(self) -> None:
        """Take no more connections."""
        self.cut()
        self._listening.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                if not self.whole:
                    client.close()
                    continue
                server = socket.create_connection(("127.0.0.1", self._port))
                self._sockets += [client, server]
                self._count += 1
                for source, sink, number in ((client, server, 0), (server, client, self._count)):
                    threading.Thread(target=self._copy, args=(source, sink, number), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket, number: int) -> None:
        """Copy one direction. number: of the connection, if it is the server that sends."""
        with suppress(OSError):
            while data := source.recv(1 << 14):
                if not 0 < number <= self._dead:
                    sink.sendall(data)
                    self.bytes += len(data) if number else 0
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
