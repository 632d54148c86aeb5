"""The page at `/`: typed and pressed in Chromium, its samples those of the interface, its words and shapes fit for everybody."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
import soundfile
from support import ROOT
from support.browser import Line, kept, number, ready, until, violations, watched
from support.npm import packages, run_node
from support.server import Server, eventually, serving

from musiclm_deploy.runtime.loudness import loudness

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PAGE = ROOT / "serve" / "page"
MOST_BYTES = 150_000
FIRST_MS = 400  # from the press to sound in the audio graph


@pytest.fixture(scope="module")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    limits = ("--max-together", 1, "--max-waiting", 1, "--max-num-samples", 4)
    with serving(tmp_path_factory.mktemp("page"), f"demo={bundle}", *limits) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as made:
        yield made


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    with watched(browser, f"{server.url}/", permissions=["microphone", "clipboard-read", "clipboard-write"]) as opened:
        ready(opened)
        yield opened


def fill(page: Page, **fields: object) -> None:
    for name, value in fields.items():
        page.fill(f"#{name}", str(value))


def ask(page: Page, prompt: str = "calm solo piano", seconds: float = 3, seed: int = 7, candidates: int = 1) -> None:
    """Have a clip made."""
    fill(page, prompt=prompt, seconds=seconds, seed=seed, candidates=candidates)
    page.click("#view-make button.main")


def until_kept(page: Page, count: int = 1) -> None:
    until(page, "(count) => document.querySelectorAll('.clip').length === count", argument=count)


def note(page: Page) -> str:
    return page.inner_text(".deck .note")


def rows(client: httpx.Client) -> float:
    """Return how many sequences the server computes."""
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("musiclm_rows{"))


def api_samples(client: httpx.Client, **body: Any) -> np.ndarray:
    answer = client.post("/v1/audio/generations", json={"response_format": "pcm", **body})
    assert answer.status_code == 200, answer.text
    return np.frombuffer(answer.content, "<i2")


# --- files


def test_the_files_and_their_headers(client: httpx.Client) -> None:
    """Fault: a page that loads what it should not, that is fetched anew each time, or a name that reaches another file."""
    index = client.get("/")
    policy = index.headers["content-security-policy"]
    assert index.headers["content-type"].startswith("text/html") and "default-src 'none'" in policy and "unsafe" not in policy
    assert index.headers["x-content-type-options"] == "nosniff" and index.headers["referrer-policy"] == "no-referrer"
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", index.text)
    served = 0
    for path in PAGE.iterdir():
        answer = client.get(f"/page/{path.name}")
        if path.suffix == ".ts":
            assert answer.status_code == 404
            continue
        assert answer.content == path.read_bytes() and answer.headers["content-security-policy"] == policy
        again = client.get(f"/page/{path.name}", headers={"If-None-Match": answer.headers["etag"]})
        assert again.status_code == 304 and not again.content
        assert client.head(f"/page/{path.name}").headers["content-length"] == str(len(answer.content))
        served += len(answer.content)
    assert 0 < served < MOST_BYTES
    for name in ("nothing.js", "..%2Fapp.py", "%2e%2e/app.py", "..%5Capp.py", "%00", "../routes/page.py"):
        assert client.get(f"/page/{name}").status_code == 404, name


def test_types() -> None:
    """Fault: a field that is not there, a null that is not looked for: what TypeScript sees in strict mode."""
    compiler = packages() / "typescript" / "bin" / "tsc"
    checks = ("--strict", "--noUnusedLocals", "--noUnusedParameters")
    options = ("--noEmit", "--allowJs", "--checkJs", "--target", "esnext", "--module", "esnext", "--moduleResolution", "bundler")
    library = ("--lib", "esnext,dom,dom.iterable", "--types", "")
    done = run_node(compiler, *checks, *options, *library, *sorted(PAGE.glob("*.js")))
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_word_is_in_one_file() -> None:
    """Fault: a text that a translator would not find, or one that nothing shows any more."""
    words = (PAGE / "strings.js").read_text(encoding="utf-8")
    others = "".join(path.read_text(encoding="utf-8") for path in PAGE.glob("*.js") if path.name != "strings.js")
    assert not [text for text in re.findall(r'"([^"\n]*)"', others) if re.fullmatch(r"[A-Z][a-z]+( [a-z]+)+[.?]?", text)]
    section, unused = "", []
    for line in words.splitlines():
        if found := re.match(r"  (\w+): \{", line):
            section = found[1] + "."
        if found := re.match(r"    (\w+): |  (\w+): \"", line):
            name = section + found[1] if found[1] else found[2]
            unused += [] if f"words.{name}" in others or name.startswith("stages.") else [name]
    assert not unused


# --- modules


@pytest.mark.parametrize("hz", [16_000, 24_000, 44_100])
def test_loudness_is_the_runtime_s(page: Page, hz: int) -> None:
    """Fault: another weighting, other gates than runtime/loudness.py's. Both are exact but for rounding: 0.02 LU apart at most."""
    rng = np.random.default_rng(3)
    envelope = np.repeat([0.001, 0.3, 0.02, 0.6, 0.0], hz)
    wave = np.round(np.clip(rng.normal(size=len(envelope)) * envelope * 0.3, -1, 1) * 32767).astype(np.int16)
    measure = """async ([rate, samples]) => {
      const { Loudness } = await import(new URL("page/loudness.js", document.baseURI));
      const meter = new Loudness(rate);
      for (let at = 0; at < samples.length; at += 999) meter.feed(Int16Array.from(samples.slice(at, at + 999)));
      return meter.integrated;
    }"""
    assert page.evaluate(measure, [hz, wave.tolist()]) == pytest.approx(loudness((wave / 32768).astype(np.float32), hz), abs=0.02)


def test_the_spectrum_is_numpy_s(page: Page) -> None:
    """Fault: a transform that is only nearly one. float32 of 1024 terms: 1e-5 of the largest value."""
    frame = np.random.default_rng(5).normal(size=1024).astype(np.float32)
    measure = """async (frame) => {
      const { Spectrum } = await import(new URL("page/fft.js", document.baseURI));
      const spectrum = new Spectrum(frame.length);
      spectrum.measure((n) => frame[n]);
      return Array.from(spectrum.powers);
    }"""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1024) / 1024)
    expected = np.abs(np.fft.rfft(frame * window)) ** 2 * (4 / 1024) ** 2
    assert np.abs(np.array(page.evaluate(measure, frame.tolist())) - expected).max() < 1e-5 * expected.max()


def test_the_lead_grows_with_gaps(page: Page) -> None:
    """Fault: sound that waits on a good line, or that stutters again and again on a bad one."""
    measure = """async (chunks) => {
      const { Lead } = await import(new URL("page/lead.js", document.baseURI));
      const lead = new Lead();
      return chunks.map(([now, sound]) => (lead.note(now, sound), lead.seconds));
    }"""
    good = [(0.3 * index, 0.3) for index in range(10)]
    bad = [(0.5 * index, 0.3) for index in range(5)]
    assert max(page.evaluate(measure, good)) == pytest.approx(0.1)
    assert page.evaluate(measure, bad)[-1] == pytest.approx(4 * 0.2 * 1.25)


DROP = """() => {
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File(["anything"], "dropped.mp3"));
  document.querySelector(".reference").dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
}"""
OFFLINE = """async ([rate, tracks, marks]) => {
  const context = new OfflineAudioContext(1, rate, rate);
  await context.audioWorklet.addModule(new URL("page/worklet.js", document.baseURI));
  const node = new AudioWorkletNode(context, "musiclm-player", { numberOfInputs: 0, outputChannelCount: [1] });
  node.connect(context.destination);
  const send = (messages) => messages.forEach((message) => node.port.postMessage(message));
  tracks.forEach(({ samples, gain }, track) => {
    send([{ type: "gain", track, gain }, { type: "push", track, start: 0, samples: Float32Array.from(samples) }, { type: "whole", track }]);
  });
  send([{ type: "play" }]);
  for (const { at, messages } of marks) {
    context.suspend(at).then(async () => {
      send(messages);
      await new Promise((done) => setTimeout(done, 100)); // the audio thread has them then
      context.resume();
    });
  }
  await new Promise((done) => setTimeout(done, 100));
  return Array.from((await context.startRendering()).getChannelData(0));
}"""


def test_the_audio_thread_plays_the_samples(page: Page) -> None:
    """Fault: a sample that is lost, doubled or changed between what came and what is heard; a switch of A and B to another place."""
    hz, rng = 8000, np.random.default_rng(1)
    a, b = (np.round(rng.uniform(-0.4, 0.4, hz) * 32768).astype(np.float32) / 32768 for _ in range(2))
    switched, back = {"type": "choose", "track": 1}, {"type": "seek", "sample": 1600, "seeks": 1}
    marks = [{"at": 0.256, "messages": [switched]}, {"at": 0.512, "messages": [{"type": "pause"}]}]
    marks += [{"at": 0.64, "messages": [{"type": "play"}]}, {"at": 0.768, "messages": [back]}]
    heard = np.array(page.evaluate(OFFLINE, [hz, [{"samples": a.tolist(), "gain": 1}, {"samples": b.tolist(), "gain": 0.5}], marks]))
    fade = 41  # samples: 5 ms
    assert np.array_equal(heard[:2048], a[:2048])
    assert np.array_equal(heard[2048 + fade : 4096], b[2048 + fade : 4096] * 0.5)
    assert np.abs(heard[2048 : 2048 + fade]).max() <= 0.4 + 1e-6
    assert not heard[4096 + fade : 5120].any()
    paused_at = 4096 + 40  # it fades before it stands
    lag = next(lag for lag in range(-2, 3) if np.array_equal(heard[5120 + fade : 6144], b[paused_at + lag + fade :][: 1024 - fade] * 0.5))
    assert abs(lag) <= 1
    assert np.array_equal(heard[6144 + fade :], b[1600 + fade :][: hz - 6144 - fade] * 0.5)


# --- Make


@pytest.mark.realtime
def test_a_clip_sounds_at_once(page: Page, client: httpx.Client) -> None:
    """Fault: sound that waits for the whole clip, other samples than the interface's, a gap, a clock that stands still."""
    ask(page, seconds=6)
    until(page, "document.documentElement.dataset.firstSoundMs !== undefined")
    first = number(page, "firstSoundMs")
    print(f"first sound after {first:.0f} ms")
    assert 0 < first < FIRST_MS
    times = []
    for _ in range(4):
        page.wait_for_timeout(400)
        times.append(float(page.get_attribute(".display", "aria-valuenow") or 0))
    assert times == sorted(times) and times[-1] - times[0] > 0.9
    until_kept(page)
    until(page, "document.documentElement.dataset.playing === 'false'", seconds=15)
    assert number(page, "underruns") == 0
    clip, samples = kept(page)
    assert np.array_equal(samples, api_samples(client, prompt="calm solo piano", seconds=6, seed=7))
    assert clip["bundle"] == client.get("/v1/models").json()["data"][0]["bundle_sha256"]
    assert clip["lufs"] == pytest.approx(loudness((samples / 32768).astype(np.float32), clip["rate"]), abs=0.02)
    assert "LUFS" in page.inner_text(".loudness")


def test_cancel_frees_the_rows(page: Page, client: httpx.Client) -> None:
    """Fault: a server that goes on for nobody."""
    ask(page, seconds=500)
    page.wait_for_selector(".stages progress")
    assert rows(client) > 0 and not violations(page)
    page.click(".transport >> text=Cancel")
    assert eventually(lambda: rows(client) == 0, 5)
    assert note(page) == "Cancelled."


def test_candidates_are_ranked(page: Page, client: httpx.Client) -> None:
    """Fault: a candidate under another's score, or a worse one first."""
    ask(page, seconds=1, candidates=3)
    page.wait_for_selector(".candidate")
    scores = [float(text) for text in page.locator(".score").all_inner_texts()]
    assert len(scores) == 3 and scores == sorted(scores, reverse=True)
    until_kept(page)
    assert not violations(page)
    page.click(".candidate >> nth=2")
    until_kept(page, 2)
    clip, samples = kept(page)
    job = client.get(f"/v1/jobs/{clip['job']}").json()
    assert job["scores"][clip["candidate"]] == pytest.approx(scores[2], abs=1e-3)
    direct = client.get(f"/v1/jobs/{clip['job']}/audio", params={"candidate": clip["candidate"], "response_format": "pcm"})
    assert np.array_equal(samples, np.frombuffer(direct.content, "<i2"))


def test_a_full_queue_is_waited_for(page: Page, client: httpx.Client) -> None:
    """Fault: a person who has to press again until there is room."""
    held = [client.post("/v1/jobs", json={"prompt": "x", "seconds": 300, "seed": seed}).json()["id"] for seed in range(2)]
    ask(page, seconds=1, candidates=2)
    until(page, "document.querySelector('.deck .note').textContent.includes('Trying again in')")
    for job in reversed(held):
        client.delete(f"/v1/jobs/{job}")
    page.wait_for_selector(".candidate", timeout=150_000)


def test_the_place_in_the_queue_is_shown(page: Page, client: httpx.Client) -> None:
    """Fault: a wait that says nothing."""
    held = client.post("/v1/jobs", json={"prompt": "x", "seconds": 500}).json()["id"]
    ask(page, seconds=1, candidates=2)
    until(page, "document.querySelector('.deck .note').textContent === 'Next in the queue.'")
    client.delete(f"/v1/jobs/{held}")
    page.wait_for_selector(".candidate", timeout=60_000)


def test_refusals_are_in_the_server_s_words(page: Page) -> None:
    """Fault: an error that says nothing, or says it nowhere."""
    ask(page, seconds=3000)
    page.wait_for_selector(".deck .note.wrong")
    assert note(page) == "seconds must be at most 600 here, got 3000."
    assert not violations(page)
    page.fill("#prompt", "")
    page.click("#view-make button.main")
    assert page.evaluate("document.activeElement.id") == "prompt"
    assert "Say in words" in page.evaluate("document.activeElement.validationMessage")


def test_a_server_that_is_gone(browser: Browser, server: Server) -> None:
    """Fault: a press that leads nowhere."""
    line = Line(server.url)
    with watched(browser, line.url) as page:
        ready(page)
        line.cut()
        ask(page)
        page.wait_for_selector(".deck .note.wrong")
        assert note(page) == "The server does not answer. Check that it runs, then try again."
    line.close()


def test_a_page_without_sound(browser: Browser, server: Server) -> None:
    """Fault: a page that is silent over plain http from another machine, where browsers have no worklets, and does not say why."""
    with watched(browser, server.url.replace("127.0.0.1", "elsewhere.test") + "/") as page:
        assert "over https" in page.inner_text(".notice")


def test_a_cut_line_is_taken_up_again(browser: Browser, server: Server, client: httpx.Client) -> None:
    """Fault: samples that are lost, doubled or made otherwise when the network goes away while a clip is made."""
    line = Line(server.url)
    with watched(browser, line.url) as page:
        ready(page)
        before = line.bytes
        ask(page, seconds=60)
        assert eventually(lambda: line.bytes > before + 200_000)
        line.cut()
        until(page, "document.querySelector('.deck .note').textContent.includes('cut')")
        line.whole = True
        until_kept(page)
        _, samples = kept(page)
    line.close()
    assert np.array_equal(samples, api_samples(client, prompt="calm solo piano", seconds=60, seed=7))


@pytest.mark.nightly  # the browser keeps five more connections, each of which must be found dead
def test_a_dead_line_is_noticed(browser: Browser, server: Server, client: httpx.Client) -> None:
    """Fault: a clip that never ends, since nobody told the browser that its connection is gone, as after a sleep."""
    line = Line(server.url)
    with watched(browser, line.url) as page:
        ready(page)
        before = line.bytes
        ask(page, seconds=60)
        assert eventually(lambda: line.bytes > before + 200_000)
        line.silence()
        until_kept(page)
        _, samples = kept(page)
    line.close()
    assert np.array_equal(samples, api_samples(client, prompt="calm solo piano", seconds=60, seed=7))


def test_a_reload_goes_on(page: Page, client: httpx.Client) -> None:
    """Fault: a clip that is lost with the page that showed it."""
    ask(page, seconds=60)
    page.wait_for_selector(".stages progress")
    page.reload()
    ready(page)
    until(page, "document.querySelector('.deck .note').textContent.includes('Press play')")
    until_kept(page)
    _, samples = kept(page)
    assert np.array_equal(samples, api_samples(client, prompt="calm solo piano", seconds=60, seed=7))
    page.click(".deck .round")
    until(page, "document.documentElement.dataset.playing === 'true'")


def test_a_key_is_asked_for(browser: Browser, bundle: Path, tmp_path: Path) -> None:
    """Fault: a page that is empty where the server wants a key, or that sends a wrong one for ever."""
    keys = tmp_path / "keys.txt"
    keys.write_text("anna: 0123456789abcdef0123\n", encoding="utf-8")
    keys.chmod(0o600)
    with serving(tmp_path, f"demo={bundle}", "--keys", keys) as running, watched(browser, f"{running.url}/") as page:
        page.wait_for_selector("#key:visible")
        assert "needs a key" in page.inner_text(".key .note")
        assert not violations(page)
        page.fill("#key", "wrong")
        page.press("#key", "Enter")
        until(page, "document.querySelector('.key .note').textContent.includes('not known')")
        page.fill("#key", "0123456789abcdef0123")
        page.click("text=Use key")
        ready(page)
        ask(page, seconds=1)
        until_kept(page)
        page.click("#tab-play")
        page.click("#view-play .round")
        page.wait_for_selector("#view-play .empty", state="hidden")


def test_sounds_of_a_person(page: Page, tmp_path: Path) -> None:
    """Fault: a reference that is not sent, a file that is no sound and says nothing, a microphone that is not heard."""
    hz = 22_050
    soundfile.write(tmp_path / "tone.wav", 0.2 * np.sin(np.arange(3 * hz) * 0.05), hz)
    page.set_input_files("#reference-file", tmp_path / "tone.wav")
    until(page, "document.querySelector('.reference .name').textContent === 'tone.wav'")
    with page.expect_request("**/v1/audio/generations") as asked:
        ask(page, prompt="", seconds=1)
    assert json.loads(asked.value.post_data or "")["audio"]["data"].startswith("UklGR")
    until_kept(page)
    assert kept(page)[0]["reference"] == "tone.wav"
    page.evaluate(DROP)
    until(page, "document.querySelector('.reference .name').textContent === 'dropped.mp3'")
    page.set_input_files("#reference-file", {"name": "text.txt", "mimeType": "text/plain", "buffer": b"not a sound"})
    until(page, "document.querySelector('.reference .note').textContent.includes('cannot be read')")
    page.click(".reference button:has-text('Record')")
    page.wait_for_timeout(1200)
    page.click(".reference button:has-text('Stop')")
    until(page, "document.querySelector('.reference .name').textContent.startsWith('microphone')")
    with page.expect_request("**/v1/audio/generations") as asked:
        ask(page, prompt="brass band", seconds=1)
    assert [sorted(part) for part in json.loads(asked.value.post_data or "")["prompt"]] == [["text", "weight"], ["audio", "weight"]]
    until_kept(page, 2)
