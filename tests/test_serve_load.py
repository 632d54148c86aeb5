"""Many clients at once, and the tool that plays them: each gets what it would get alone, and whoever is taken hears no gap."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import random
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
from support.rough_clients import PATH, bad_request, half_a_body, reset_in_the_middle
from support.server import Server, eventually, serving

import musiclm_deploy as md
from musiclm_deploy.runtime.bundle import STAGES
from musiclm_deploy.runtime.growing import sixteen_bits
from musiclm_deploy.serve.load import Got, Load
from musiclm_deploy.serve.load.arrivals import plan
from musiclm_deploy.serve.load.heard import Player, Samples
from musiclm_deploy.serve.load.report import row_of

DRAWN = {stage: {"filter_thres": 0.3} for stage in STAGES}  # by default k would be 1 at this size
SAMPLING = {stage: md.SamplingConfig(**one) for stage, one in DRAWN.items()}
CLIENTS = 8
KEPT_JOBS = 16


@pytest.fixture(scope="module")
def server(tiny_bundle: Path, tmp_path_factory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("serve"), f"tiny={tiny_bundle}", "--max-jobs", KEPT_JOBS) as running:
        yield running


@pytest.fixture(scope="module")
def music(tiny_bundle: Path) -> Iterator[md.MusicLM]:
    with md.load(tiny_bundle, device="cpu", threads=1) as loaded:
        yield loaded


# --- the tool


def test_arrivals_are_drawn_from_a_seed() -> None:
    """Fault: arrivals that are not Poisson's, shares and lengths other than asked for, a load that cannot be repeated."""
    load = Load("http://x", rate=40, duration_s=50, seconds=(2, 10), cancel=0.25, slow=0.5, formats=("mp3", "wav", "pcm"))
    planned = plan(load)
    gaps = np.diff([0.0, *(one.at_s for one in planned)])
    assert abs(len(planned) - 2000) < 5 * 2000**0.5  # Poisson: variance = mean
    assert abs(gaps.std() / gaps.mean() - 1) < 0.1  # of exponential gaps
    assert abs(sum(one.leaves_at is not None for one in planned) / len(planned) - 0.25) < 0.05
    slow = [one.form for one in planned if one.slow]
    assert abs(len(slow) / len(planned) - 0.5) < 0.06 and set(slow) == {"wav", "pcm"}
    assert 2 <= min(one.seconds for one in planned) < 2.1 and 9.9 < max(one.seconds for one in planned) <= 10
    assert plan(load) == planned and plan(Load("http://x", seed=1)) != plan(Load("http://x"))


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"url": "127.0.0.1:8000"}, "the server's URL is like http://"),
        ({"rate": 0}, "rate must be above 0"),
        ({"seconds": (5, 2)}, "the shortest and the longest clip"),
        ({"cancel": 1.5}, "cancel is a share from 0 to 1"),
        ({"slow": 0.1, "formats": ("mp3",)}, "slow clients read wav or pcm"),
        ({"rate": 1e5}, "at most 100000 requests"),
    ],
)
def test_a_load_that_cannot_be_sent(changed: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Load(**{"url": "http://x"} | changed)


def test_seconds_are_counted_from_bytes() -> None:
    """Fault: a header that is taken for samples, wherever the network cuts it; a stream of another rate."""
    comment = b"LIST" + struct.pack("<I", 10) + b"INFOdata!!"
    form = b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, 8000, 16000, 2, 16)
    wav = b"RIFF\xff\xff\xff\xffWAVE" + form + comment + b"data\xff\xff\xff\xff" + bytes(8000)
    for cut in (1, 7, 50, len(wav)):
        samples = Samples(None, bare=False)
        assert sum(samples.seconds(wav[at : at + cut]) for at in range(0, len(wav), cut)) == pytest.approx(0.5)
    assert Samples(24000, bare=True).seconds(bytes(4800)) == 0.1
    with pytest.raises(ValueError, match="no wav"):
        Samples(None, bare=False).seconds(b'{"error": "of another kind"}')


def test_a_player_hears_silence() -> None:
    """Fault: silence that is not heard, or is where there was none: after a late chunk it goes on later."""
    player = Player()
    for now, seconds in ((5.0, 1.0), (5.5, 0.5), (6.75, 1.0), (6.8, 0.0), (7.75, 1.0)):
        player.note(now, seconds)
    assert (player.first, player.audio_s, player.longest_s) == (5.0, 3.5, 0.25)
    assert player.dry == 8.75


def test_a_row_counts_everybody_once() -> None:
    """Fault: a client in two columns or in none, a return that is not one, an error that is not named."""
    load = Load("http://x", retries=2)
    planned = plan(load)[0]
    ends = [("done", []), ("left", []), ("refused", [3.0]), ("refused", [1.0, 2.0, 1.0]), ("done", [1.0, 1.0]), ("broken off", [])]
    got = [Got(planned, end, first_s=0.1, longest_s=0.0, refusals=list(told), admitted=end != "refused") for end, told in ends]
    got[0].longest_s = 0.05
    got[1].longest_s = 0.5
    row = row_of(load, got)
    assert row["requests"] == row["done"] + row["left"] + row["refused"] + sum(row["errors"].values()) == 6
    assert row["errors"] == {"broken off": 1} and row["answers_429"] == 6
    assert row["returned"] == 4 and row["returned_admitted_share"] == 0.25
    assert (row["played"], row["underruns"], row["underruns_100ms"], row["longest_silence_ms"]) == (6, 2, 1, 500)


def test_the_command(run, server: Server, tmp_path: Path) -> None:
    """Fault: a client that is not counted, a row that does not say where it was got, one that tells the key."""
    options = ["--rate", 12, "--duration", 2, "--seconds", "0.3:1", "--cancel", 0.3, "--slow", 0.3, "--seed", 2, "--key", "a-secret-key"]
    formats = [part for name in ("wav", "pcm", "flac", "mp3", "opus") for part in ("--format", name)]
    status, out, err = run("load", server.url, *options, *formats, "--json", "rows.jsonl", "--plot", "load.png", "--retries", 1)
    assert status == 0, err
    assert "First audio and playing" in out and "Answers" in out
    [row] = [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]
    assert {"machine", "git", "date", "versions", "load"} <= row.keys() and len(row["bundle"]) == 12 and "secret" not in json.dumps(row)
    assert row["command"].startswith(f"musiclm load {server.url} --rate 12 --duration 2 --seconds 0.3:1 --cancel 0.3")
    assert row["done"] + row["left"] == row["requests"] > 10 and row["left"] > 0 and not row["errors"], row
    assert row["first_p50_ms"] <= row["first_p99_ms"] and row["played"] > 0
    assert Path("load.png").read_bytes().startswith(b"\x89PNG")
    status, out, err = run("load", server.url, "--interface", "speech", "--rate", 10, "--duration", 1, "--seconds", 0.3)
    assert status == 0 and "speech" in out and " 0 " in out.splitlines()[-1], out + err


def test_a_server_that_is_not_there(run) -> None:
    """Fault: a table of failures, or a traceback, in place of a sentence."""
    status, out, err = run("load", "http://127.0.0.1:9")
    assert (status, out) == (1, "") and "http://127.0.0.1:9 cannot be reached" in err and "Traceback" not in err


# --- a server with many clients


def gauge(url: str, name: str, **labels: str) -> float:
    """Return the sum of a metric over all that have these labels."""
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    lines = [line for line in httpx.get(f"{url}/metrics").text.splitlines() if line.partition("{")[0].partition(" ")[0] == name]
    return sum(float(line.rpartition(" ")[2]) for line in lines if all(one in line for one in wanted))


def idle(url: str) -> bool:
    return all(gauge(url, f"musiclm_{name}") == 0 for name in ("requests_running", "requests_waiting", "rows"))


class Alone:
    """The SHA-256 of clips as their one client would get them, made once."""

    def __init__(self, music: md.MusicLM) -> None:
        self._music, self._lock = music, threading.Lock()
        self._made: dict[tuple[float, int], bytes] = {}

    def pcm(self, seconds: float, seed: int) -> bytes:
        with self._lock:
            if (seconds, seed) not in self._made:
                made = self._music.generate("calm piano", seconds=seconds, seed=seed, sampling=SAMPLING, plan="low_latency")
                self._made[seconds, seed] = sixteen_bits(made.audio).tobytes()
            return self._made[seconds, seed]


def body(draw: random.Random, lengths: list[float], seeds: int) -> dict[str, Any]:
    form = draw.choice(["pcm", "pcm", "wav", "flac", "opus", "mp3"])
    asked = {"seconds": draw.choice(lengths), "seed": draw.randrange(seeds), "response_format": form}
    return {"prompt": "calm piano", "sampling": DRAWN, "stream_format": draw.choice(["audio", "audio", "sse"]), **asked}


def taken(client: httpx.Client, asked: dict[str, Any], draw: random.Random) -> httpx.Response:
    """Return the answer to a request, asking again when a refusal says so."""
    while True:
        answer = client.post(PATH, json=asked, headers={"X-Request-Id": f"load-{draw.getrandbits(60):x}"})
        if answer.status_code != 429:
            return answer
        time.sleep(float(answer.headers["retry-after"]))


def check(answer: httpx.Response, asked: dict[str, Any], expected: bytes) -> None:
    """Raise AssertionError unless an answer is the sound that its client would get alone, all of it, and its own."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-request-id"] == answer.request.headers["x-request-id"]
    sound = answer.content
    if asked["stream_format"] == "sse":
        told = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
        sound = b"".join(base64.b64decode(one["audio"]) for one in told if one["type"] == "speech.audio.delta")
        assert told[-1]["type"] == "speech.audio.done" and told[-1]["pcm_sha256"] == hashlib.sha256(expected).hexdigest(), asked
    if asked["response_format"] == "pcm":
        assert hashlib.sha256(sound).hexdigest() == hashlib.sha256(expected).hexdigest(), asked
        return
    with soundfile.SoundFile(io.BytesIO(sound)) as file:
        read = np.concatenate(list(file.blocks(4096, dtype="int16"))) if asked["response_format"] != "flac" else _frames(file)
    if asked["response_format"] in ("wav", "flac"):
        assert hashlib.sha256(read.tobytes()).hexdigest() == hashlib.sha256(expected).hexdigest(), asked
    else:
        assert abs(len(read) - len(expected) // 2) <= 3000, asked  # of the encoder's and the decoder's delay


def _frames(file: soundfile.SoundFile) -> np.ndarray:
    """Return all samples of a flac whose length is left open."""
    blocks = []
    while len(block := file.read(4096, dtype="int16")):
        blocks.append(block)
    return np.concatenate(blocks)


def one_client(server: Server, alone: Alone, number: int, requests: int) -> Counter[str]:
    """Ask for clips one after another, some of which nobody waits for the end of."""
    draw, ends = random.Random(number), Counter[str]()
    with httpx.Client(base_url=server.url, timeout=120) as client:
        for _ in range(requests):
            asked = body(draw, [0.1, 0.35, 0.8, 1.5], 12)
            if draw.random() < 0.25:
                reset_in_the_middle(server, asked, draw.choice([0, 1, 20_000]))
                ends["left"] += 1
            else:
                check(taken(client, asked, draw), asked, alone.pcm(asked["seconds"], asked["seed"]))
                ends["done"] += 1
    return ends


@pytest.mark.parametrize("requests", [5, pytest.param(25, marks=pytest.mark.nightly)])
def test_one_seed_one_sound(server: Server, music: md.MusicLM, requests: int) -> None:
    """Fault: samples that depend on who else is served, on who goes away meanwhile, or on the order in which requests came."""
    alone = Alone(music)
    with ThreadPoolExecutor(CLIENTS) as pool:
        found = sum(pool.map(lambda number: one_client(server, alone, number, requests), range(CLIENTS)), Counter[str]())
    assert sum(found.values()) == CLIENTS * requests and min(found["done"], found["left"]) > requests
    assert eventually(lambda: idle(server.url), seconds=30.0)


def test_a_server_that_is_killed(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault: an end that a client takes for the end of its sound, a file that is left half-written, a new server that cannot begin."""
    (tmp_path / "left").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "left"))
    files = {path: path.stat().st_mtime_ns for path in tiny_bundle.rglob("*")}
    asked = {"prompt": "calm piano", "sampling": DRAWN, "seconds": 300.0, "response_format": "pcm"}
    kinds = [{}, {"stream_format": "sse"}, {"response_format": "wav"}, {"stream": False}]
    with serving(tmp_path, tiny_bundle, "--max-ahead-s", 5) as server, ThreadPoolExecutor(len(kinds)) as pool:
        ends = [pool.submit(_listen_until_it_ends, server, asked | kind) for kind in kinds]
        assert eventually(lambda: gauge(server.url, "musiclm_requests_running") == len(kinds), seconds=30.0)
        assert eventually(lambda: gauge(server.url, "musiclm_audio_seconds_total") > 6, seconds=30.0)
        server.process.kill()
        for kind, end in zip(kinds, ends, strict=True):
            with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
                print(kind, end.result(60))
    assert not list((tmp_path / "left").iterdir()) and files == {path: path.stat().st_mtime_ns for path in tiny_bundle.rglob("*")}
    with serving(tmp_path, tiny_bundle) as server:
        answer = httpx.post(server.url + PATH, json=asked | {"seconds": 0.3}, timeout=60)
        assert answer.status_code == 200 and len(answer.content) == 9600
        assert httpx.get(f"{server.url}/v1/jobs").json()["data"][0]["state"] == "done"


def _listen_until_it_ends(server: Server, asked: dict[str, Any]) -> int:
    """Read a sound as fast as it plays, about. Returns its bytes if it ends as a whole one does."""
    read = 0
    with httpx.Client(base_url=server.url, timeout=60) as client, client.stream("POST", PATH, json=asked) as answer:
        for data in answer.iter_raw(16_000):
            read += len(data)
            time.sleep(0.05)
    return read


# --- for long


@pytest.mark.nightly
def test_a_thousand_requests(server: Server, music: md.MusicLM) -> None:
    """Fault: a server that ends, an answer that is lost, doubled or another one's, rows, jobs or threads that stay, memory that grows."""
    alone, resident, threads = Alone(music), [], []
    firsts: list[float] = []
    for part, clients in enumerate((3 * CLIENTS, *4 * [CLIENTS])):  # the first part takes what memory so many ever take at once
        with ThreadPoolExecutor(clients) as pool:
            numbers = range(100 * part, 100 * part + clients)
            found = sum(pool.map(lambda one: rough_client(server, alone, one, 32, firsts), numbers), Counter[str]())
        assert sum(found.values()) == clients * 32 and len(found) == 6, found
        assert eventually(lambda: idle(server.url), seconds=30.0)
        states = Counter(job["state"] for job in httpx.get(f"{server.url}/v1/jobs").json()["data"])
        assert not {"queued", "running"} & set(states) and sum(states.values()) <= KEPT_JOBS + clients
        resident.append(server.resident_bytes())
        threads.append(server.threads())
        p50, p95, p99 = np.percentile(firsts, (50, 95, 99)) * 1e3
        print(f"{dict(found)}: first audio {p50:.0f}, {p95:.0f}, {p99:.0f} ms; {resident[-1] / 1e6:.1f} MB, {threads[-1]} threads")
        firsts.clear()
    assert max(resident) < 1.05 * resident[0] and max(threads) <= threads[0]
    assert server.process.poll() is None and "Traceback" not in server.log.read_text(encoding="utf-8")


def rough_client(server: Server, alone: Alone, number: int, requests: int, firsts: list[float]) -> Counter[str]:
    """Ask as all kinds of clients do, one request after another."""
    draw, ends = random.Random(number), Counter[str]()
    kinds = ["whole"] * 5 + ["left", "slow", "reset", "half", "bad"]
    with httpx.Client(base_url=server.url, timeout=120) as client:
        for _ in range(requests):
            asked, kind = body(draw, [0.1, 0.35, 0.8], 6), draw.choice(kinds)
            ends[kind] += 1
            if kind == "reset":
                reset_in_the_middle(server, asked, draw.choice([0, 1, 10_000]))
            elif kind == "half":
                half_a_body(server, asked)
            elif kind == "bad":
                assert 400 <= bad_request(client, asked, draw).status_code < 500
            elif kind == "whole":
                check(taken(client, asked, draw), asked, alone.pcm(asked["seconds"], asked["seed"]))
            else:
                asked |= {"response_format": "pcm", "stream_format": "audio"}
                expected = alone.pcm(asked["seconds"], asked["seed"])
                _listen(client, asked, expected, firsts, 2000 if kind == "left" else len(expected))
    return ends


def _listen(client: httpx.Client, asked: dict[str, Any], expected: bytes, firsts: list[float], most: int) -> None:
    """Read a sound in small pieces, no faster than it plays; what was read is the beginning of what is expected."""
    started, read = time.monotonic(), b""
    with client.stream("POST", PATH, json=asked) as answer:
        if answer.status_code == 429:
            time.sleep(float(answer.headers["retry-after"]))
            return
        assert answer.status_code == 200
        for data in answer.iter_raw(1000):
            if not read:
                firsts.append(time.monotonic() - started)
            read += data
            if len(read) >= most:
                break
            time.sleep(len(data) / 32000)
    assert expected.startswith(read) and len(read) >= most
