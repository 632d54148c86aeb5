"""`musiclm serve` among people who are many, slow, careless, or mean it badly; and its end."""

from __future__ import annotations

import io
import json
import signal
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
import soundfile
from support.server import Server, eventually, serving

from musiclm_deploy.runtime.bundle import STAGES

DRAWN = {stage: {"filter_thres": 0.3} for stage in STAGES}
ASKED: dict[str, Any] = {"prompt": "calm piano", "seconds": 0.5, "sampling": DRAWN}
LONG = ASKED | {"seconds": 400.0}
KEYS = {"anna": "key-of-anna-0123456789", "bert": "key-of-bert-0123456789"}
LIMITS = ["--max-body-bytes", 10_000, "--max-upload-bytes", 200_000, "--max-upload-seconds", 2, "--max-waiting", 3]
LIMITS += ["--max-waiting-per-key", 2, "--max-together", 1, "--max-header-s", 1, "--max-body-s", 1.5, "--max-idle-s", 2, "--max-ahead-s", 1]
LIMITS += ["--deadline", "b=1.5"]


@pytest.fixture(scope="module")
def server(tiny_bundle: Path, second_bundle: Path, tmp_path_factory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("serve")
    (folder / "keys").write_text("# who\n" + "\n".join(f"{name}: {key}" for name, key in KEYS.items()))
    size = max(sum(file.stat().st_size for file in one.iterdir()) for one in (tiny_bundle, second_bundle))
    arguments = [f"a={tiny_bundle}", f"b={second_bundle}", "--keys", folder / "keys", "--allow-origin", "https://example.com", *LIMITS]
    with serving(folder, *arguments, "--memory-gb", 1.2 * size / 1e9, "--log-json") as running:
        yield running


@pytest.fixture
def anna(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30, headers={"Authorization": f"Bearer {KEYS['anna']}"}) as client:
        yield client


@pytest.fixture
def bert(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30, headers={"xi-api-key": KEYS["bert"]}) as client:
        yield client


def connect(server: Server) -> socket.socket:
    parts = urlsplit(server.url)
    return socket.create_connection((parts.hostname, parts.port), timeout=10)


# --- who


def test_a_key_is_needed(server: Server, anna: httpx.Client) -> None:
    """Fault: anything but the two probes for who has no key, or another one."""
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"xi-api-key": "key-of-anna-012345678"}, {"Authorization": KEYS["anna"]}):
        for path in ("/v1/models", "/metrics", "/openapi.json", "/v1/jobs"):
            answer = httpx.get(server.url + path, headers=headers)
            assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer", (path, headers)
        assert httpx.post(f"{server.url}/v1/audio/generations", json=ASKED, headers=headers).status_code == 401
    assert httpx.get(f"{server.url}/health").status_code == 200
    assert anna.get("/v1/models").status_code == 200


def test_jobs_are_their_owners(anna: httpx.Client, bert: httpx.Client) -> None:
    """Fault: somebody else's job that can be seen, heard or deleted."""
    job = anna.post("/v1/jobs", json=ASKED).json()["id"]
    assert bert.get(f"/v1/jobs/{job}").status_code == bert.get(f"/v1/jobs/{job}/audio").status_code == 404
    assert bert.delete(f"/v1/jobs/{job}").status_code == 204 and job not in bert.get("/v1/jobs").text
    assert anna.get(f"/v1/jobs/{job}").status_code == 200


def test_browsers_of_other_origins(anna: httpx.Client) -> None:
    """Fault: pages of any origin that may ask, or those named that may not."""
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    for origin, allowed in (("https://example.com", True), ("https://example.org", False)):
        answer = anna.options("/v1/audio/generations", headers={"Origin": origin, **asked})
        assert (answer.headers.get("access-control-allow-origin") == origin) == allowed
        for headers, body, status in (({"Authorization": "Bearer wrong"}, b"{}", 401), ({}, b" " * 300_000, 413)):  # what the gate refuses
            answer = anna.post("/v1/audio/generations", headers={"Origin": origin, **headers}, content=body)
            assert answer.status_code == status
            assert (answer.headers.get("access-control-allow-origin") == origin) == allowed


# --- how long


@pytest.mark.parametrize(("model", "asked", "seconds"), [("b", 1.0, 1.0), ("b", 60.0, 1.5), ("a", 1.0, 1.0)])
def test_the_shortest_deadline_holds(anna: httpx.Client, model: str, asked: float, seconds: float) -> None:
    """Fault: a request's deadline beyond its model's, or one model's deadline for another."""
    begun = time.monotonic()
    answer = anna.post("/v1/audio/generations", json=LONG | {"model": model, "stream": False, "deadline_s": asked})
    assert answer.status_code == 504 and seconds <= time.monotonic() - begun < seconds + 3  # a bundle may have to be opened


# --- how much


def test_several_bundles(anna: httpx.Client) -> None:
    """Fault: a bundle under another one's name; two in a memory that holds one."""
    for model in ("a", "b", "a"):
        answer = anna.post("/v1/audio/generations", json=ASKED | {"model": model})
        assert answer.status_code == 200 and answer.headers["x-model"] == model
        shown = anna.get("/metrics").text
        assert f'musiclm_model_bytes{{model="{model}"}}' in shown and shown.count("musiclm_model_bytes{") == 1
    assert [one["id"] for one in anna.get("/v1/models").json()["data"]] == ["a", "b"]


def test_a_queue_that_is_fair(anna: httpx.Client, bert: httpx.Client) -> None:
    """Fault: a queue without end, one key that fills it, one that waits for all of another's."""
    first = anna.post("/v1/jobs", json=LONG).json()["id"]
    assert eventually(lambda: anna.get(f"/v1/jobs/{first}").json()["state"] == "running")
    mine = [anna.post("/v1/jobs", json=ASKED | {"seed": seed}).json() for seed in range(2)]
    assert [one["position"] for one in mine] == [1, 2]
    refused = anna.post("/v1/jobs", json=ASKED)
    assert refused.status_code == 429 and 1 <= int(refused.headers["retry-after"]) <= 120 and refused.headers["x-should-retry"] == "true"
    theirs = bert.post("/v1/jobs", json=ASKED).json()
    assert theirs["position"] == 2 and anna.get(f"/v1/jobs/{mine[1]['id']}").json()["position"] == 3
    assert bert.post("/v1/jobs", json=ASKED | {"seed": 9}).status_code == 429
    assert anna.delete(f"/v1/jobs/{first}").status_code == 204
    assert eventually(lambda: bert.get(f"/v1/jobs/{theirs['id']}").json()["state"] == "done")
    assert eventually(lambda: all(anna.get(f"/v1/jobs/{one['id']}").json()["state"] == "done" for one in mine))


def _wave(seconds: float, form: str = "WAV", hz: int = 16000) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(int(seconds * hz), np.float32), hz, format=form)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["long flac", "wide", "no sound", "header alone", "empty"])
def test_uploads(anna: httpx.Client, kind: str) -> None:
    """Fault: silence of hours that is decoded, channels without number, files that are none."""
    wide = io.BytesIO()
    soundfile.write(wide, np.zeros((1600, 16), np.float32), 16000, format="WAV")
    files = {
        "long flac": _wave(3600, "FLAC"),
        "wide": wide.getvalue(),
        "no sound": b"PK\3\4" * 100,
        "header alone": _wave(1)[:40],
        "empty": b"",
    }
    assert len(files[kind]) < 200_000
    answer = anna.post("/v1/audio/generations", data={"request": json.dumps(ASKED)}, files={"prime": ("a", files[kind])})
    assert answer.status_code == (413 if kind == "long flac" else 400) and "prime" in answer.json()["error"]["message"], answer.text


def test_bodies(server: Server, anna: httpx.Client) -> None:
    """Fault: a body beyond the limit that is read, by its length or without one; one that is no JSON and ends in a 500."""
    large = json.dumps(ASKED | {"prompt": "x" * 400_000}).encode()
    headers = {"content-type": "application/json"}
    pieces = (large[start : start + 10_000] for start in range(0, len(large), 10_000))
    for content in (large, pieces):
        answer = anna.post("/v1/audio/generations", content=content, headers=headers)
        assert answer.status_code == 413 and answer.json()["error"]["code"] == "body_too_large"
    for content in (
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"\xff",
        b"[" * 5000,
        b'{"prompt": "x", "seconds": NaN}',
        b'{"seconds": 1e999, "prompt": "x"}',
    ):
        for path in ("/v1/audio/generations", "/v1/jobs", "/v1/audio/speech", "/v1/music", "/v1/music/stream", "/v1/embeddings"):
            answer = anna.post(path, content=content, headers=headers)
            assert 400 <= answer.status_code < 500, (path, content, answer.text)
    assert anna.post("/v1/audio/generations", content=b"x", headers={"content-type": "text/plain"}).status_code == 415
    form = {"request": json.dumps(ASKED), "other": "x"}
    assert anna.post("/v1/audio/generations", data=form, files={"prime": ("a", _wave(1))}).status_code == 400


# --- how slowly


def test_slow_requests(server: Server, anna: httpx.Client) -> None:
    """Fault: a connection that asks nothing, or a body that never ends, which stays open or holds up others."""
    silent, header, body = (connect(server) for _ in range(3))
    header.sendall(b"POST /v1/audio/generations HTTP/1.1\r\nHost: x\r\n")
    auth = f"Authorization: Bearer {KEYS['anna']}\r\n"
    body.sendall(
        f"POST /v1/audio/generations HTTP/1.1\r\nHost: x\r\n{auth}Content-Type: application/json\r\nContent-Length: 99\r\n\r\n{{".encode()
    )
    started = time.monotonic()
    assert anna.post("/v1/audio/generations", json=ASKED).status_code == 200
    assert silent.recv(1) == header.recv(1) == b""
    assert body.recv(4096).startswith(b"HTTP/1.1 408")
    assert time.monotonic() - started < 5
    for one in (silent, header, body):
        one.close()


def test_a_client_that_reads_nothing(server: Server, anna: httpx.Client) -> None:
    """Fault: a stream that is held open, with its rows, for a client that does not read it."""
    sleeping = connect(server)
    sleeping.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    content = json.dumps(LONG | {"response_format": "pcm", "sample_rate": 192_000}).encode()
    head = f"POST /v1/audio/generations HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEYS['anna']}\r\nContent-Type: application/json\r\n"
    sleeping.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    running = lambda: "musiclm_requests_running 1.0" in anna.get("/metrics").text  # noqa: E731
    assert eventually(running) and eventually(lambda: not running())
    sleeping.close()


def test_a_client_that_resets(server: Server, anna: httpx.Client) -> None:
    """Fault: a connection that is reset in the middle and leaves its rows running."""
    for _ in range(3):
        one = connect(server)
        content = json.dumps(LONG).encode()
        head = f"POST /v1/audio/generations HTTP/1.1\r\nHost: x\r\nxi-api-key: {KEYS['anna']}\r\nContent-Type: application/json\r\n"
        one.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        one.recv(1000)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        one.close()
    assert eventually(lambda: "musiclm_requests_running 0.0" in anna.get("/metrics").text)


# --- the end


@pytest.mark.parametrize("signals", [1, 2])
def test_it_is_told_to_stop(tiny_bundle: Path, tmp_path: Path, signals: int) -> None:
    """Fault: a stream that is cut off though it ends in time; one that is waited for after a second signal; work that is still taken."""
    with serving(tmp_path, tiny_bundle, "--drain", 20) as server:
        with httpx.stream("POST", f"{server.url}/v1/audio/generations", json=ASKED | {"seconds": 20.0, "response_format": "pcm"}) as answer:
            got = next(pieces := answer.iter_raw())
            server.process.send_signal(signal.SIGTERM)
            assert eventually(lambda: _asked(server) in (503, None))
            if signals == 2:
                server.process.send_signal(signal.SIGTERM)
                with pytest.raises(httpx.HTTPError):
                    for _ in pieces:
                        pass
            else:
                assert len(got + b"".join(pieces)) == 2 * 20 * 16000
        assert server.process.wait(10) == 0
        assert "Traceback" not in server.log.read_text(encoding="utf-8")


def test_who_goes_on_when_it_must_end(tiny_bundle: Path, tmp_path: Path) -> None:
    """Fault: a client that reads nothing and keeps the server alive, or a traceback in place of a word about it."""
    with serving(tmp_path, tiny_bundle, "--drain", 1) as server:
        slow = connect(server)
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        body = json.dumps(LONG | {"response_format": "pcm"}).encode()
        slow.sendall(b"POST /v1/audio/generations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
        slow.sendall(f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        assert eventually(lambda: "musiclm_requests_running 1.0" in httpx.get(f"{server.url}/metrics").text)
        time.sleep(3)  # until what it does not read fills what the system keeps
        begun = time.monotonic()
        assert server.stop() == 0 and time.monotonic() - begun < 6
        said = server.log.read_text(encoding="utf-8")
        assert "Traceback" not in said and ("a request was cut off" in said or "without completing response" in said)
        slow.close()


def _asked(server: Server) -> int | None:
    try:
        return httpx.post(f"{server.url}/v1/audio/generations", json=ASKED).status_code
    except httpx.HTTPError:
        return None


def test_requests_are_logged(server: Server, anna: httpx.Client) -> None:
    """Fault: a request without a line, a line that is no JSON, a key in the log."""
    answer = anna.get("/v1/models", headers={"X-Request-Id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"
    assert eventually(lambda: '"mine-1"' in server.log.read_text(encoding="utf-8"))  # it is logged once it is answered
    lines = [json.loads(line) for line in server.log.read_text(encoding="utf-8").splitlines()]
    [line] = [one for one in lines if one.get("request_id") == "mine-1"]
    assert (line["status"], line["path"], line["method"]) == (200, "/v1/models", "GET")
    assert not any(key in server.log.read_text(encoding="utf-8") for key in KEYS.values())
