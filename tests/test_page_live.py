"""Endless music on the page: it plays without a gap while its prompts are blended, goes on after a cut, and becomes a file."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import soundfile
from support.browser import SHOTS, Line, number, ready, until, violations, watched
from support.server import Server, serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

FIRST_MS = 600  # from the press to sound: a connection and the first window lie between
FORGET = """() => addEventListener("pagehide", () => {
  const saved = JSON.parse(sessionStorage.getItem("musiclm-live"));
  sessionStorage.setItem("musiclm-live", JSON.stringify({ ...saved, session: "live_of_another_server" }));
})"""


@pytest.fixture(scope="module")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("live"), f"demo={bundle}") as running:
        yield running


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    with watched(browser, f"{server.url}/") as opened:
        ready(opened)
        opened.click("#tab-play")
        yield opened


def play(page: Page) -> None:
    page.click("#view-play .round")
    until(page, "document.documentElement.dataset.firstSoundMs !== undefined")


def seconds(page: Page) -> float:
    """Return how far the music is."""
    minutes, rest = page.inner_text("#view-play .time").split(":")
    return 60 * int(minutes) + float(rest)


def weigh(page: Page, line: int, weight: float) -> None:
    """Move a slider as a hand does."""
    page.locator(".mixer input[type=range]").nth(line).fill(str(weight))


@pytest.mark.realtime
@pytest.mark.parametrize("played_s", [15, pytest.param(60, marks=pytest.mark.nightly)])
def test_prompts_change_while_it_plays(page: Page, played_s: int) -> None:
    """Fault: a gap where a prompt changes, a change that is not heard when it was said to be, a clock that stands still."""
    play(page)
    first = number(page, "firstSoundMs")
    print(f"first sound after {first:.0f} ms")
    assert first < FIRST_MS
    waits = []
    for turn in range(played_s // 5):
        heard = number(page, "changesHeard")
        weigh(page, 0, 1 - turn % 2)
        weigh(page, 1, 0.5 + turn % 2)
        until(page, "(heard) => Number(document.documentElement.dataset.changesHeard ?? 0) > heard", argument=heard)
        told = page.evaluate("document.documentElement.dataset.changeWaitedS")
        waits.append(float(told))
        page.wait_for_timeout(3000 if turn else 4000)
        if SHOTS and turn == 4:
            page.screenshot(path=f"{SHOTS}/playing.png")
    print(f"changes were heard after {min(waits):.1f} to {max(waits):.1f} s")
    assert number(page, "underruns") == 0
    assert seconds(page) > 0.6 * played_s and not violations(page)


def test_pause_play_stop(page: Page) -> None:
    """Fault: music that is lost in a pause, that goes on after a stop, or a volume that nobody obeys."""
    play(page)
    page.wait_for_timeout(1000)
    page.keyboard.press("Escape")
    page.click("h1")
    page.keyboard.press(" ")
    page.wait_for_timeout(300)
    before = seconds(page)
    page.wait_for_timeout(700)
    assert seconds(page) == before
    page.keyboard.press(" ")
    page.wait_for_timeout(1000)
    assert before + 0.5 < seconds(page) < before + 1.6
    page.click("#view-play >> text=Stop")
    assert page.is_visible("#view-play .empty")
    page.click("#view-play .round")
    page.wait_for_selector("#view-play .empty", state="hidden")


def test_a_recording(page: Page) -> None:
    """Fault: a file of other samples than were heard, or none."""
    play(page)
    page.wait_for_timeout(1500)
    page.click("#view-play .record")
    page.wait_for_timeout(2000)
    page.click("#view-play .record")
    page.wait_for_selector(".recordings button")
    with page.expect_download() as begun:
        page.click(".recordings button")
    data = Path(begun.value.path()).read_bytes()
    samples, hz = soundfile.read(io.BytesIO(data), dtype="int16")
    assert 1.5 < len(samples) / hz < 3
    assert hashlib.sha256(samples.tobytes()).hexdigest() == page.get_attribute(".recordings li", "data-sha256")


def test_a_cut_line_is_taken_up_again(browser: Browser, server: Server) -> None:
    """Fault: music that begins anew after a network was away for a moment, or that is silent though there is enough of it."""
    line = Line(server.url)
    with watched(browser, line.url) as page:
        ready(page)
        page.click("#tab-play")
        play(page)
        page.wait_for_timeout(2500)
        before = seconds(page)
        line.cut(whole=True)
        page.wait_for_timeout(3000)
        assert before + 2 < seconds(page) < before + 4
        assert page.inner_text("#view-play .note") == ""
        before = seconds(page)
        line.cut()
        until(page, "document.querySelector('#view-play .note').textContent.includes('The connection was cut')")
        page.wait_for_timeout(3000)
        line.whole = True
        until(page, "document.querySelector('#view-play .note').textContent === ''")
        page.wait_for_timeout(2000)
        assert before + 2 < seconds(page) < before + 12
    line.close()


def test_a_reload_goes_on_after_a_press(page: Page) -> None:
    """Fault: a session that is lost with the page that showed it, or sound that nobody asked for."""
    play(page)
    page.wait_for_timeout(3000)
    before = seconds(page)
    page.reload()
    ready(page)
    page.click("#tab-play")
    assert "Press play to go on" in page.inner_text("#view-play .note")
    play(page)
    page.wait_for_timeout(500)
    assert before - 1 < seconds(page) < before + 4


def test_a_session_that_is_lost(page: Page) -> None:
    """Fault: a page that knocks for ever at a session which no longer is."""
    play(page)
    page.wait_for_timeout(1000)
    page.evaluate(FORGET)
    page.reload()
    ready(page)
    page.click("#tab-play")
    page.click("#view-play .round")
    page.click("text=Begin anew with the same prompts")
    until(page, "document.documentElement.dataset.firstSoundMs !== undefined")
