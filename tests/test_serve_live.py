"""Music that is played live over `/v1/live`: what is heard and when, who leaves and comes back, and who talks nonsense."""

from __future__ import annotations

import io
import json
import random
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
from support import ROOT, npm
from support.live import Live, live
from support.server import Server, serving
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

import musiclm_deploy as md
from musiclm_deploy.runtime.growing import sixteen_bits
from musiclm_deploy.serve.live.session import live_plan

RATE, STEP_S = 16000, 0.4
DRAWN = {stage: {"filter_thres": 0.3} for stage in ("semantic", "coarse", "fine")}  # by default k would be 1 at this size
DEMO = ROOT / "build" / "demo" / "bundle"
KEY = "key-of-anna-0123456789"


@pytest.fixture(scope="module")
def server(tiny_bundle: Path, tmp_path_factory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("live"), f"tiny={tiny_bundle}", "--allow-origin", "https://example.com") as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[Live]:
    """A session with sampling that draws, and no prompt yet."""
    with live(server.url, step_s=STEP_S, seed=5) as connected:
        configure(connected)
        yield connected
        with suppress(ConnectionClosed):
            connected.send("stop")  # its place is free at once


def configure(client: Live) -> None:
    client.send("config", sampling=DRAWN)
    assert client.until("changed", "error")["type"] == "changed"


@pytest.fixture(scope="module")
def reference(tiny_bundle: Path) -> Iterator[md.MusicLM]:
    with md.load(tiny_bundle, device="cpu", threads=1) as loaded:
        yield loaded


def alone(model: md.MusicLM, samples: int, text: Any, seed: int = 5) -> np.ndarray:
    """Return the beginning of the same music without a server, int16."""
    sampling = {stage: md.SamplingConfig(**one) for stage, one in DRAWN.items()}
    parts = []
    with model.stream(text, seconds=None, seed=seed, sampling=sampling, **live_plan(model.bundle.manifest, STEP_S)) as stream:
        while sum(map(len, parts)) < samples:
            parts.append(next(stream).audio)
    return sixteen_bits(np.concatenate(parts)[:samples])


# --- what is heard


def test_what_is_heard_is_what_a_stream_makes(client: Live, reference: md.MusicLM) -> None:
    """Fault: samples lost, doubled or changed on their way; a setting that does not arrive; a number that is not the sample's."""
    assert client.messages[0] | {"session": ""} == {
        **{"type": "ready", "session": "", "resumed": False, "model": "tiny", "bundle_sha256": reference.bundle.sha256},
        **{"sample_rate": RATE, "state": "stopped", "next_sample": 0, "seed": 5, "prompts": []},
    }
    client.send("prompts", prompts=[{"text": "calm piano", "weight": 0.7}, {"text": "brass", "weight": -0.2}])
    assert client.until("changed") == {"type": "changed", "sample": 0, "in_s": 0.0}
    client.send("play")
    heard = client.hear(2 * RATE)
    assert client.first == 0
    np.testing.assert_array_equal(heard, alone(reference, len(heard), md.Blend({"calm piano": 0.7, "brass": -0.2})))


def test_a_change_is_heard_when_it_is_said_to_be(client: Live, reference: md.MusicLM, server: Server) -> None:
    """Fault: a sample before which something changes, or after which nothing does; seconds that are not those to it; no count of them."""
    client.prompt("calm piano")
    client.send("play")
    client.hear(RATE)
    begun = time.monotonic()
    changed = client.prompt("brass")
    at = changed["sample"] / RATE - changed["in_s"]  # what is played now, by the server's account
    assert changed["sample"] > RATE and -0.3 < at - (begun - client.came[0][0]) < 0.6
    assert changed["in_s"] < 1.0 + 0.3 + 3 * STEP_S + 0.6  # the lead, what is ahead of it, windows, and the codec's chunk
    heard = client.hear(changed["sample"] + RATE)
    plain = alone(reference, len(heard), "calm piano")
    np.testing.assert_array_equal(heard[: changed["sample"]], plain[: changed["sample"]])
    assert not np.array_equal(heard[changed["sample"] :], plain[changed["sample"] :])
    assert 'musiclm_live_change_seconds_count{model="tiny"}' in httpx.get(f"{server.url}/metrics").text


def test_as_much_is_sent_as_is_played(client: Live) -> None:
    """Fault: a client that is sent minutes ahead, and hears a change after minutes; one that runs dry; a status that says otherwise."""
    client.prompt("calm piano")
    client.send("play")
    client.hear(1)
    started = time.monotonic()
    client.listen(2.5)
    for when, samples in client.came[1:]:
        assert samples / RATE <= when - started + 1.0 + 0.2, "more than the lead"
    assert client.samples / RATE >= 2.5
    client.send("played", sample=0)  # it plays nothing: its sound is off, say
    client.listen(0.5)
    before = client.samples
    for _ in range(4):
        client.send("played", sample=0)
        client.listen(0.25)
    assert client.samples == before
    client.send("played", sample=before)
    client.hear(before + RATE // 2)
    status = [one for one in client.messages if one["type"] == "status"]
    assert len(status) >= 2 and all(one["underruns"] == 0 and one["made_s"] < 2 and 0 < one["change_in_s"] < 5 for one in status)


def test_pause_stop_and_reset(client: Live, reference: md.MusicLM) -> None:
    """Fault: a pause in which music is sent or lost; an end after which it goes on; a new beginning that is none, or not at once."""
    client.prompt("calm piano")
    client.send("play")
    client.hear(RATE)
    client.send("pause")
    client.until_it_is("paused")
    client.listen(0.2)
    before = client.samples
    client.listen(0.6)
    assert client.samples == before
    client.send("play")
    heard = client.hear(before + RATE)
    np.testing.assert_array_equal(heard, alone(reference, len(heard), "calm piano"))
    client.send("reset")
    client.listen(0.3)
    client.send("stop")
    client.until_it_is("stopped")
    begins = client.samples
    client.send("config", seed=6)
    client.send("play")
    client.hear(begins + RATE)
    np.testing.assert_array_equal(client.wave[begins : begins + RATE], alone(reference, RATE, "calm piano", seed=6))
    begun = client.samples
    client.send("reset")
    client.hear(begun + 3 * RATE)
    again = alone(reference, RATE, "calm piano", seed=6).tobytes()
    assert client.wave.tobytes().count(again) == 2, "it begins anew, in what was still to come"


def test_a_recording_is_what_was_heard(client: Live, server: Server) -> None:
    """Fault: a file with other samples, without its end, or that does not say how it was made; somebody else's, or none."""
    client.prompt("calm piano")
    client.send("play")
    client.hear(RATE)
    for form in ("wav", "flac", "opus"):
        first = client.samples - RATE // 2
        client.send("record", format=form, from_sample=first)
        client.hear(client.samples + RATE)
        stop = client.samples - 1000
        client.send("end_record", to_sample=stop)
        recorded = client.until("recorded", "error")
        assert recorded["from_sample"] == first and recorded["seconds"] == pytest.approx((stop - first) / RATE)
        answer = httpx.get(server.url + recorded["url"])
        assert answer.headers["Content-Disposition"] == f'attachment; filename="recording.{form}"'
        with soundfile.SoundFile(io.BytesIO(answer.content)) as file:
            heard, comment = file.read(dtype="int16"), json.loads(file.comment)
        assert comment["prompt"] == "calm piano" and comment["seed"] == 5 and comment["first_sample"] == first
        if form != "opus":
            np.testing.assert_array_equal(heard, client.wave[first:stop])
        assert abs(len(heard) - (stop - first)) < 10
    client.send("end_record")
    assert client.until("error")["error"]["code"] == "not_recording"
    client.send("record", from_sample=client.samples + 10 * RATE)
    assert "can be recorded" in client.until("error")["error"]["message"]
    assert httpx.get(f"{server.url}/v1/live/recordings/rec_0").status_code == 404


# --- who leaves and comes back


def test_who_was_cut_off_goes_on(server: Server, reference: md.MusicLM) -> None:
    """Fault: music that is lost or comes twice after a cut; a session that ends with its connection, or that two clients steer."""
    with live(server.url, step_s=STEP_S, seed=5) as before:
        configure(before)
        before.prompt("calm piano")
        before.send("play")
        before.hear(RATE)
        session, at = before.messages[0]["session"], before.samples - 2000
        with live(server.url, session=session, from_sample=at) as after:
            ready = after.messages[0]
            assert ready["resumed"] and ready["state"] == "playing" and ready["next_sample"] == at and len(ready["prompts"]) == 1
            with pytest.raises(ConnectionClosed):
                before.until("never")
            assert before.messages[-1]["error"]["code"] == "taken_over"
            after.hear(RATE)
            heard = np.concatenate([before.wave[:at], after.wave])
    np.testing.assert_array_equal(heard, alone(reference, len(heard), "calm piano"))
    with live(server.url, session=session) as again:
        assert again.messages[0]["resumed"]
        again.hear(RATE // 2)
        again.send("stop")
        again.until_it_is("stopped")
    with pytest.raises(ConnectionClosed), live(server.url, session="live_0") as unknown:
        assert unknown.messages[0]["error"]["code"] == "session_not_found" and unknown.messages[0]["final"]
        unknown.take()


def test_sessions_end_by_themselves(tiny_bundle: Path, tmp_path: Path) -> None:
    """Fault: a session that holds its place for ever: nobody there, nothing played, or played without end; an end without a word."""
    with serving(tmp_path, tiny_bundle, "--max-live-idle-s", 1, "--max-live-gone-s", 1, "--max-live-s", 3) as server:
        with live(server.url) as still, pytest.raises(ConnectionClosed):
            still.until("never")
        assert still.messages[-1]["final"] and "nothing was played for 1 s" in still.messages[-1]["error"]["message"]
        with live(server.url) as gone:
            gone.prompt("x")
            gone.send("play")
            gone.hear(RATE // 2)
        time.sleep(3)
        assert "musiclm_requests_running 0.0" in httpx.get(f"{server.url}/metrics").text
        with live(server.url, session=gone.messages[0]["session"]) as back:
            assert back.messages[0]["error"]["code"] == "session_not_found"
        with live(server.url) as long:
            long.prompt("x")
            long.send("play")
            assert long.until("error")["error"]["code"] == "deadline_exceeded" and long.samples > 2 * RATE
        with live(server.url) as last:
            last.prompt("x")
            last.send("play")
            last.hear(RATE // 2)
            begun = time.monotonic()
            assert server.stop() == 0 and time.monotonic() - begun < 10, "it waits for music without end"
            with pytest.raises(ConnectionClosed):
                last.until("never")
            assert last.messages[-1]["error"]["code"] == "shutting_down"


@pytest.mark.nightly  # a batch is filled, a listener after the other
def test_a_place_is_asked_for(tiny_bundle: Path, tmp_path: Path) -> None:
    """Fault: live music beside which others run dry; a refusal that ends the session; a place that a stop does not free."""
    with serving(tmp_path, tiny_bundle) as server, ExitStack() as stack:
        playing: list[Live] = []
        for seed in range(20):  # a batch has 16 slots
            client = stack.enter_context(live(server.url, seed=seed))
            client.prompt("x")
            client.send("play")
            while client.samples < RATE // 4 and client.messages[-1]["type"] != "error":
                client.take()
            if client.messages[-1]["type"] == "error":
                break
            playing.append(client)
        refused = client.messages[-1]["error"]
        assert 1 <= len(playing) <= 16 and refused["code"] == "rate_limit_exceeded" and not client.messages[-1]["final"], refused
        assert client.messages[-2]["state"] == "stopped" and "streams are playing" in client.messages[-2]["reason"]
        assert httpx.get(f"{server.url}/metrics").text.count('refused_total{reason="capacity"}') == 1
        for one in playing:
            one.send("stop")
        client.send("play")
        assert len(client.hear(RATE // 4)) == RATE // 4


# --- who means it badly


def test_who_may_connect(tiny_bundle: Path, server: Server, tmp_path: Path) -> None:
    """Fault: a page of anybody's that plays with this machine's server; a wrong key that is taken, or a session that is somebody else's."""
    address = server.url.replace("http", "ws") + "/v1/live"
    with pytest.raises(InvalidStatus, match="403"), connect(address, origin="https://evil.example"):  # type: ignore[arg-type]
        pass
    for origin in ("https://example.com", server.url):
        with connect(address, origin=origin):  # type: ignore[arg-type]
            pass
    (tmp_path / "keys").write_text(f"anna: {KEY}\nbert: key-of-bert-0123456789\n")
    with serving(tmp_path, tiny_bundle, "--keys", tmp_path / "keys") as closed:
        for key in (None, "wrong"):
            with live(closed.url, key=key) as refused:
                assert refused.messages[0]["error"]["code"] == "invalid_api_key"
        with live(closed.url, key=KEY) as anna, live(closed.url, headers={"Authorization": f"Bearer {KEY}"}) as same:
            assert anna.messages[0]["type"] == same.messages[0]["type"] == "ready"
            with live(closed.url, key="key-of-bert-0123456789", session=anna.messages[0]["session"]) as bert:
                assert bert.messages[0]["error"]["code"] == "session_not_found"


def nonsense(chance: random.Random) -> str | bytes:
    """Return a frame that is no message, or one that cannot be."""
    kinds = ["setup", "prompts", "config", "play", "pause", "stop", "reset", "played", "record", "end_record", "x", "", None, 3, []]
    values: list[Any] = [None, True, -1, 2**60, 1e308, "", " ", "a" * 2000, [], {}, [[[]]], [{"text": "x", "weight": "y"}], {"fine": {}}]
    fields = ["type", "prompts", "sampling", "seed", "sample", "format", "from_sample", "to_sample", "lead_s", "key", "session", "\u0000"]
    match chance.randrange(5):
        case 0:
            return chance.randbytes(chance.randrange(200))
        case 1:
            return "".join(chr(chance.randrange(1, 0xD800)) for _ in range(chance.randrange(50)))
        case 2:
            return "[" * chance.randrange(2000)
        case _:
            return json.dumps(
                {"type": chance.choice(kinds)} | {chance.choice(fields): chance.choice(values) for _ in range(chance.randrange(4))}
            )


@pytest.mark.parametrize("path", ["/v1/live", "/ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateMusic"])
def test_nonsense_harms_nobody(server: Server, client: Live, reference: md.MusicLM, path: str) -> None:
    """Fault: 1,000 bad frames that end the server, a neighbour's music, or go unanswered."""
    client.prompt("calm piano")
    client.send("play")
    client.hear(RATE // 2)
    listener = threading.Thread(target=client.hear, args=(6 * RATE,))
    listener.start()
    chance, sent = random.Random(1), 0
    while sent < 1000:
        with connect(server.url.replace("http", "ws") + path, max_size=None, close_timeout=0.1) as socket:
            if chance.random() < 0.9:
                socket.send(json.dumps({"setup": {"model": "models/tiny"}} if "google" in path else {"type": "setup"}))
            try:
                for _ in range(chance.randrange(1, 120)):
                    socket.send(nonsense(chance))
                    sent += 1
                if chance.random() < 0.5:
                    socket.socket.close()  # without a word
            except ConnectionClosed:
                pass
    listener.join(60)
    np.testing.assert_array_equal(client.wave[: 6 * RATE], alone(reference, 6 * RATE, "calm piano"))
    assert [one["underruns"] for one in client.messages if one["type"] == "status"][-1] == 0
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}


def test_what_cannot_be_is_said(client: Live) -> None:
    """Fault: a refusal without its reason or field, one that ends the session, or one that is silent."""
    client.send("play")
    assert client.until("error")["error"]["param"] == "prompts"
    wrong: list[tuple[str, dict[str, Any], str]] = [
        ("prompts", {"prompts": []}, "at least 1 item"),
        ("prompts", {"prompts": [{"text": "a", "weight": 1.0}, {"text": "a", "weight": -1.0}]}, "cancel each other"),
        ("prompts", {"prompts": [{"text": "piano " * 400}]}, "tokens"),
        ("prompts", {"prompts": [{"weight": 1.0}]}, "either a text or a sound"),
        ("prompts", {"prompts": [{"text": "x"}], "more": 1}, "is not a field here"),
        ("config", {"sampling": {"coarse": {"temperature": -1}}}, "greater than or equal to 0"),
        ("config", {"sampling": {"fine": {"cond_scale": 3.0}}}, "cond_scale has no effect on the fine stage"),
        ("setup", {}, "setup is the first message or none"),
        ("dance", {}, "dance"),
    ]
    for kind, fields, told in wrong:
        client.send(kind, **fields)
        answer = client.until("changed", "error")
        assert answer["type"] == "error" and told in answer["error"]["message"] and not answer["final"], (kind, fields, answer)
    client.prompt("calm piano")
    client.send("play")
    client.hear(RATE // 4)
    for _ in range(10):  # together, so that the last one counts: which cannot be
        client.send("prompts", prompts=[{"text": "brass"}])
        client.send("prompts", prompts=[{"text": "a", "weight": 1.0}, {"text": "a", "weight": -1.0}])
        said = [client.until("error", "changed") for _ in range(2)]
        assert {one["type"] for one in said} == {"error", "changed"}, said
    client.hear(client.samples + RATE)


# --- the catalogue


def test_types_can_be_made_of_the_catalogue(server: Server, tmp_path: Path) -> None:
    """Fault: a catalogue that is no JSON Schema, lacks a message, or from which TypeScript's types allow what is refused."""
    (tmp_path / "schema.json").write_text(json.dumps(httpx.get(f"{server.url}/v1/live/schema.json").json()))
    modules = npm.packages()
    made = npm.run_node(modules / "json-schema-to-typescript/dist/src/cli.js", tmp_path / "schema.json")
    assert not made.returncode and "export type ClientMessage" in made.stdout, made.stderr
    (tmp_path / "live.ts").write_text(made.stdout)
    (tmp_path / "use.ts").write_text(
        """import {ClientMessage, ServerMessage} from "./live";
        export const said: ClientMessage[] = [{type: "setup", lead_s: 1}, {type: "prompts", prompts: [{text: "x", weight: 2}]}];
        // @ts-expect-error: it has no such field
        export const wrong: ClientMessage = {type: "play", loud: true};
        export const heard = (message: ServerMessage) => message.type === "changed" ? message.in_s : null;
        """
    )
    checked = npm.run_node(modules / "typescript/bin/tsc", "--noEmit", "--strict", "--skipLibCheck", tmp_path / "use.ts", cwd=modules)
    assert not checked.returncode, checked.stdout + checked.stderr


# --- many, for long


@pytest.mark.realtime
@pytest.mark.parametrize("seconds", [8, pytest.param(600, marks=pytest.mark.nightly)])
def test_four_play_at_once(tiny_bundle: Path, tmp_path: Path, seconds: int) -> None:
    """Fault: a listener who runs dry after the first second while others play and change their prompts; memory that grows with time."""
    bundle = DEMO if DEMO.is_dir() else tiny_bundle
    with serving(tmp_path, bundle, threads=2) as server, ExitStack() as stack:
        clients = [stack.enter_context(live(server.url, seed=seed)) for seed in range(4)]
        for client in clients:
            client.prompt("calm piano")
            client.send("play")

        def play(number: int) -> None:
            client, end = clients[number], time.monotonic() + seconds
            while time.monotonic() < end:
                client.send("prompts", prompts=[{"text": "calm piano"}, {"text": "brass band", "weight": random.random()}])
                client.listen(min(5.0 + number / 4, max(end - time.monotonic(), 0.1)))

        threads = [threading.Thread(target=play, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(seconds / 2)
        middle = server.resident_bytes()
        for thread in threads:
            thread.join(seconds + 60)
        assert server.resident_bytes() < 1.05 * middle, (middle, server.resident_bytes())
        for client in clients:
            rate, first = client.messages[0]["sample_rate"], client.came[0][0]
            for (_, before), (when, _) in pairwise(client.came):  # who plays from when the first sample is there
                assert when < first + 1 or before / rate >= when - first, (
                    f"{when - first - before / rate:.3f} s of silence at {when - first:.1f}"
                )
            assert client.samples / rate >= seconds
