"""The page's history, and how the page is for people: links, files, comparing, keyboards, small windows, screen readers."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import numpy as np
import pytest
import soundfile
from support.browser import DEMO, SHOTS, kept, ready, until, violations, watched
from support.server import Server, serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

FOCUSED = "document.activeElement.id || document.activeElement.className || document.activeElement.tagName"
OUTLINE = """(() => {
  const { activeElement: focused } = document;
  return getComputedStyle(focused.matches(".unseen") ? focused.nextSibling : focused).outlineStyle;
})()"""
TAP = """() => {
  window.gains = [];
  const { postMessage } = MessagePort.prototype;
  MessagePort.prototype.postMessage = function (message, ...rest) {
    if (message?.type === "gain") window.gains[message.track] = message.gain;
    return postMessage.call(this, message, ...rest);
  };
}"""


@pytest.fixture(scope="module")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("page"), f"demo={bundle}") as running:
        yield running


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    with watched(browser, f"{server.url}/", permissions=["clipboard-read", "clipboard-write"]) as opened:
        ready(opened)
        yield opened


def shoot(page: Page, name: str) -> None:
    if SHOTS:
        page.screenshot(path=f"{SHOTS}/{name}.png")


def make(page: Page, prompt: str, seed: int, seconds: float = 3, count: int = 1) -> None:
    """Have a clip made, and wait until it is kept."""
    page.click("#tab-make")
    page.fill("#prompt", prompt)
    page.fill("#seconds", str(seconds))
    page.fill("#seed", str(seed))
    page.click("#view-make button.main")
    until(page, "(count) => document.querySelectorAll('.clip').length === count", argument=count)


def blocks(file: soundfile.SoundFile) -> Iterator[np.ndarray]:
    """Give the samples of a file that may not know how many it has."""
    while len(block := file.read(4096, dtype="int16")):
        yield block


def download(page: Page, form: str) -> tuple[str, bytes]:
    """Download the newest clip. Returns its name and its bytes."""
    with page.expect_download() as begun:
        page.locator(".clip select").first.select_option(form)
    return begun.value.suggested_filename, Path(begun.value.path()).read_bytes()


def test_files(page: Page) -> None:
    """Fault: a file with other samples than were heard, or one that does not say how it was made."""
    make(page, "calm sölo piano", 11)
    _, samples = kept(page)
    page.click("#tab-history")
    for form in ("wav", "flac", "opus"):
        name, data = download(page, form)
        assert name == f"calm-solo-piano-11.{form}"
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            read = np.concatenate(list(blocks(file)))
            assert file.title == "calm sölo piano" and "11" in file.comment
        if form != "opus":
            assert np.array_equal(read, samples)
        else:
            assert abs(len(read) - len(samples)) < 1000


def test_a_clip_that_the_server_forgot(page: Page, server: Server) -> None:
    """Fault: a download that fails without a word."""
    make(page, "calm solo piano", 12, 1)
    clip, samples = kept(page)
    httpx.delete(f"{server.url}/v1/jobs/{clip['job']}")
    page.click("#tab-history")
    page.locator(".clip select").first.select_option("flac")
    until(page, "document.querySelector('#view-history .note').textContent.includes('wav alone')")
    assert np.array_equal(soundfile.read(io.BytesIO(download(page, "wav")[1]), dtype="int16")[0], samples)


def test_a_and_b_are_switched_in_place(page: Page) -> None:
    """Fault: a comparison that begins anew at each switch, or that the louder clip wins."""
    make(page, "calm solo piano", 1, 6)
    make(page, "brass band", 2, 6, 2)
    page.evaluate(TAP)
    page.click("#tab-history")
    page.click(".clip >> nth=0 >> .side >> nth=0")
    page.click(".clip >> nth=1 >> .side >> nth=1")
    page.click("text=Compare A and B")
    until(page, "Number(document.querySelector('.display').getAttribute('aria-valuenow')) > 0.8")
    shoot(page, "compare")
    before = float(page.get_attribute(".display", "aria-valuenow") or 0)
    title = page.inner_text(".transport .title")
    page.click(".sides >> text=B")
    page.wait_for_timeout(100)
    assert page.inner_text(".transport .title") != title
    after = float(page.get_attribute(".display", "aria-valuenow") or 0)
    assert before <= after < before + 1
    levels = [clip["lufs"] for clip in page.evaluate("import(new URL('page/store.js', document.baseURI)).then(({ clips }) => clips())")]
    gains = page.evaluate("window.gains")
    assert [20 * math.log10(gain) for gain in gains] == pytest.approx([min(levels) - level for level in levels], abs=1e-6)
    assert not violations(page)


def test_a_link_makes_the_same_clip(page: Page, browser: Browser) -> None:
    """Fault: a link that makes another clip, or does not say that the bundle is another one."""
    make(page, "string quartet & harp", 123456789012, 2)
    _, samples = kept(page)
    page.click("#tab-history")
    page.click(".clip >> text=Link")
    until(page, "document.querySelector('#view-history .note').textContent.includes('copied')")
    link = page.evaluate("navigator.clipboard.readText()")
    with watched(browser, link) as other:
        ready(other)
        assert other.input_value("#prompt") == "string quartet & harp" and other.input_value("#seed") == "123456789012"
        assert other.is_hidden(".notice")
        other.click("#view-make button.main")
        other.wait_for_selector(".clip", state="attached")
        assert np.array_equal(kept(other)[1], samples)
    with watched(browser, link[:-8] + "00000000") as other:
        ready(other)
        assert "another bundle" in other.inner_text(".notice")


def test_a_clip_goes_on_and_is_varied(page: Page, bundle: Path) -> None:
    """Fault: a continuation of something else, a variation with another seed."""
    make(page, "calm solo piano", 5, 2)
    page.click("#tab-history")
    page.click(".clip >> text=Vary")
    assert page.input_value("#seed") == "5" and page.input_value("#prompt") == "calm solo piano"
    page.click("#tab-history")
    page.click(".clip >> text='Go on'")
    page.wait_for_selector(".prime")
    assert page.input_value("#seconds") == "12"
    page.fill("#seconds", "4")
    with page.expect_request("**/v1/audio/generations") as asked:
        page.click("#view-make button.main")
    assert json.loads(asked.value.post_data or "")["prime"]["data"].startswith("UklGR")
    until(page, "document.querySelectorAll('.clip').length === 2 || document.querySelector('.deck .note.wrong')")
    if bundle == DEMO:
        assert kept(page)[0]["prime"] == "calm solo piano"


def test_the_oldest_clips_go_first(page: Page) -> None:
    """Fault: a history that grows until the browser forgets all of it."""
    gone = page.evaluate("""async () => {
      const { keep, clips } = await import(new URL("page/store.js", document.baseURI));
      const settings = { prompt: "x", seconds: 1, seed: 0, candidates: 1, model: null };
      const rest = { settings, rate: 16000, job: "j", candidate: 0, bundle: "", lufs: -20, peaks: [], reference: null, prime: null };
      const gone = [];
      for (let n = 0; n < 52; n++) gone.push(await keep({ id: String(n), created: n, samples: 10, ...rest }, new Int16Array(10)));
      const counted = (await clips()).length;
      for (const id of ["large", "larger"]) await keep({ id, created: id.length * 100, samples: 99e6, ...rest }, new Int16Array(10));
      return [gone, counted, (await clips()).map((clip) => clip.id)];
    }""")
    assert gone == [[0] * 50 + [1, 1], 50, ["larger"]]


def test_delete(page: Page) -> None:
    """Fault: a clip that comes back."""
    make(page, "calm solo piano", 5, 1)
    page.click("#tab-history")
    page.click(".clip >> text=Delete")
    page.wait_for_selector("text=No clips yet.")
    page.reload()
    ready(page)
    page.click("#tab-history")
    assert page.is_visible("text=No clips yet.")


# --- people


def test_with_the_keyboard_alone(page: Page) -> None:
    """Fault: something that only a mouse reaches, a focus that is not seen, a trap."""
    reached: list[str] = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(page.evaluate(FOCUSED))
        if reached[-1] == "BODY":
            break
        assert page.evaluate(OUTLINE) == "solid", reached[-1]
    assert {"tab-make", "volume", "prompt", "seconds", "seed", "candidates"} <= set(reached) and reached[-1] == "BODY"
    page.focus("#prompt")
    page.keyboard.type("calm solo piano")
    page.fill("#seconds", "4")
    page.focus("#prompt")
    page.keyboard.press("Enter")
    until(page, "document.documentElement.dataset.playing === 'true'")
    page.focus(".display")
    page.keyboard.press(" ")
    until(page, "document.documentElement.dataset.playing === 'false'")
    until(page, "document.querySelectorAll('.clip').length === 1")
    for key, place in (("Home", 0), ("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", 4)):
        page.keyboard.press(key)
        until(page, "(place) => Number(document.querySelector('.display').getAttribute('aria-valuenow')) === place", place)
    page.focus("#tab-make")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.id") == "tab-play" and page.is_visible("#view-play")


@pytest.mark.parametrize("scheme", ["dark", "light"])
@pytest.mark.parametrize("width", [1100, 360])
def test_every_state_is_fit_for_all(browser: Browser, server: Server, scheme: str, width: int) -> None:
    """Fault: what axe-core finds; a page that scrolls sideways; colours that cannot be told apart."""
    with watched(browser, f"{server.url}/", scheme, reduced_motion="reduce") as page:
        page.set_viewport_size({"width": width, "height": 900 if width > 400 else 740})
        ready(page)
        states = {"empty": lambda: None, "made": lambda: make(page, "calm solo piano", 3)}
        states |= {"play": lambda: page.click("#tab-play"), "history": lambda: page.click("#tab-history")}
        for name, enter in states.items():
            enter()
            if name == "made":
                page.wait_for_timeout(1000)
            shoot(page, f"{name}-{scheme}-{width}")
            assert not violations(page), name
            wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert wide <= 0, name
        assert page.evaluate("document.getAnimations().length") == 0
