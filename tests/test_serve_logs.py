"""The lines that `musiclm serve` logs, and the spans that OpenTelemetry gets: what became of each request, as its operator finds it."""

from __future__ import annotations

import gzip
import http.server
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from support.server import Server, serving

from musiclm_deploy.runtime.bundle import MANIFEST, STAGES, pack_tokens
from musiclm_deploy.runtime.tokenizer import ClipTokenizer

ASKED: dict[str, Any] = {
    "prompt": "heliotrope",
    "seconds": 0.9,
    "response_format": "pcm",
    "sampling": {stage: {"filter_thres": 0.3} for stage in STAGES},
}
LONG = {**ASKED, "seconds": 500.0}
JOB = {name: value for name, value in ASKED.items() if name != "response_format"}


class Collector(http.server.BaseHTTPRequestHandler):
    """Takes spans, as OpenTelemetry's collector does."""

    spans: list[Any] = []  # noqa: RUF012

    def do_POST(self) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        data = self.rfile.read(int(self.headers["Content-Length"]))
        sent = ExportTraceServiceRequest.FromString(gzip.decompress(data) if self.headers["Content-Encoding"] == "gzip" else data)
        type(self).spans += [span for of in sent.resource_spans for scope in of.scope_spans for span in scope.spans]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def second(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("second") / "second"))


@pytest.fixture(scope="module")
def first(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle to whose MuLaN every word is unknown."""
    folder = Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("first") / "tiny"))
    values = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    tokens = ClipTokenizer.from_file(folder / "tokenizer.json").tokens
    values["mulan"]["trained_tokens"] = pack_tokens(np.zeros(tokens, bool))
    (folder / MANIFEST).write_text(json.dumps(values), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def server(first: Path, second: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="OpenTelemetry's exporter is not installed")
    collector = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTAPI_OTEL_AUTO_CONFIGURE", "true")
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        for signal in ("METRICS", "LOGS"):
            patch.setenv(f"OTEL_{signal}_EXPORTER", "none")
        folder = tmp_path_factory.mktemp("logs")
        with serving(folder, first, second, "--log-json", "--max-ahead-s", "2") as running:
            yield running
    collector.shutdown()
    collector.server_close()


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as made:
        yield made


def found(look: Callable[[], list[Any]], count: int = 1) -> list[Any]:
    """Wait for so many of what can be found."""
    for _ in range(200):
        if len(there := look()) >= count:
            return there
        time.sleep(0.05)
    raise AssertionError(f"expected {count}, found {there}")


def lines(server: Server, request_id: str) -> list[dict[str, Any]]:
    """Wait for what is logged of a request."""

    def look() -> list[dict[str, Any]]:
        logged = [json.loads(line) for line in server.log.read_text(encoding="utf-8").splitlines()]
        return [line for line in logged if line.get("request_id") == request_id]

    return found(look)


def line_of(server: Server, answer: httpx.Response) -> dict[str, Any]:
    (line,) = lines(server, answer.headers["x-request-id"])
    return line


def test_a_stream(server: Server, client: httpx.Client) -> None:
    """Fault: a line from which nobody sees how much music was sent, how soon, and what took the time."""
    answer = client.post("/v1/audio/generations", json=ASKED)
    line = line_of(server, answer)
    known = {"status": 200, "job": answer.headers["x-job-id"], "model": "tiny", "reason": "done", "bytes": len(answer.content)}
    assert known.items() <= line.items() and line["audio_s"] == 0.9
    assert 0 < line["first_audio_s"] <= line["seconds"] < 30
    assert list(line["stages"]) == ["prompt", *STAGES, "codec"] and 0 < sum(line["stages"].values()) <= line["seconds"]
    told = rf"POST /v1/audio/generations 200 in {line['seconds']:.3f} s: done, 0.9 s of music, the first after "
    assert line["message"].startswith(told) and line["message"].endswith(f" s ({line['request_id']}, {line['job']})")


def test_ends_that_are_none(server: Server, client: httpx.Client) -> None:
    """Fault: a client that went away, a job that was cancelled, or one whose time was up, which looks like one that was served."""
    with client.stream("POST", "/v1/audio/generations", json=LONG) as answer:
        next(answer.iter_raw())
    line = line_of(server, answer)
    assert line["reason"] == "cut" and line["audio_s"] < 100

    job = client.post("/v1/jobs", json=JOB | {"seconds": 40.0}).json()["id"]
    found(lambda: [1] if client.get(f"/v1/jobs/{job}").json()["state"] == "done" else [])
    # more than the buffers of a connection hold, of a job that is done and stays so
    with client.stream("GET", f"/v1/jobs/{job}/audio", params={"sample_rate": 192_000, "response_format": "pcm"}) as answer:
        next(answer.iter_raw())
    assert line_of(server, answer)["reason"] == "cut" and client.get(f"/v1/jobs/{job}").json()["state"] == "done"

    with client.stream("POST", "/v1/audio/generations", json=LONG) as answer:
        client.delete(f"/v1/jobs/{answer.headers['x-job-id']}")
        with pytest.raises(httpx.RemoteProtocolError):
            answer.read()
    line = line_of(server, answer)
    assert (line["reason"], line["error"]) == ("cancelled", "cancelled")

    answer = client.post("/v1/audio/generations", json={**LONG, "stream": False, "deadline_s": 1.0})
    line = line_of(server, answer)
    assert (line["status"], line["reason"], line["error"]) == (504, "cancelled", "deadline_exceeded")


def test_a_collected_clip_and_a_job(server: Server, client: httpx.Client) -> None:
    """Fault: no word of how long it waited; a job in the background, of whose end nothing is logged."""
    line = line_of(server, client.post("/v1/audio/generations", json={**ASKED, "stream": False}))
    assert line["reason"] == "done" and line["audio_s"] == 0.9 and 0 <= line["queue_s"] < line["seconds"]
    answer = client.post("/v1/jobs", json=JOB)
    request_id, job = answer.headers["x-request-id"], answer.json()["id"]
    posted, ended = found(lambda: lines(server, request_id), 2)
    assert (posted["status"], posted["job"]) == (202, job)
    assert (ended["method"], ended["path"], ended["job"]) == ("JOB", f"/v1/jobs/{job}", job)
    assert ended["reason"] == "done" and ended["audio_s"] == 0.9 and "queue_s" in ended


def test_refused_and_failed(server: Server, client: httpx.Client, second: Path) -> None:
    """Fault: refusals without a reason; a fault of ours without its traceback, or whose answer and line cannot be found by its id."""
    line = line_of(server, client.post("/v1/audio/generations", json={**ASKED, "seconds": 1e6}))
    assert (line["status"], line["error"]) == (400, "beyond_limit") and "reason" not in line
    (second / "semantic.onnx").unlink()
    answer = client.post("/v1/audio/generations", json={**ASKED, "model": "second"})
    assert answer.status_code == 500 and answer.json()["error"]["request_id"] == answer.headers["x-request-id"]
    assert line_of(server, answer)["status"] == 500
    logged = [json.loads(line) for line in server.log.read_text(encoding="utf-8").splitlines()]
    failed = [line for line in logged if line["message"] == f"request {answer.headers['x-request-id']} failed"]
    assert len(failed) == 1 and "Traceback" in failed[0]["error"]


def test_what_is_not_logged(server: Server, client: httpx.Client) -> None:
    """Fault: prompts in the log; a line for every look of a watcher; a path that forges a line."""
    asked = client.post("/v1/audio/generations", json=ASKED)
    for path in ("/health", "/ready", "/metrics"):
        client.get(path)
    forged = lines(server, client.get("/v1/%0A10:00:00%20INFO%20all%20is%20well").headers["x-request-id"])
    assert forged[0]["path"] == "/v1/%0A10:00:00%20INFO%20all%20is%20well" and "\n" not in forged[0]["message"]
    lines(server, asked.headers["x-request-id"])
    log = server.log.read_text(encoding="utf-8")
    assert "heliotrope" not in log and not [path for path in ("/health", "/ready", "/metrics") if path in log]


def attributes(span: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}


def spans(trace_id: str) -> list[Any]:
    return [span for span in Collector.spans if span.trace_id.hex() == trace_id]


def test_spans(server: Server, client: httpx.Client) -> None:
    """Fault: music without a span; one in another trace than its caller's; parts that do not lie in it; one that names no request."""
    trace_id, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    answer = client.post("/v1/audio/generations", json=ASKED, headers={"traceparent": f"00-{trace_id}-{parent}-01"})
    line = line_of(server, answer)
    assert line["trace_id"] == trace_id

    by_name = {span.name: span for span in found(lambda: [span for span in spans(trace_id) if not span.name.startswith("fastapi.")], 4)}
    request, music = by_name["POST /v1/audio/generations"], by_name["music"]
    assert request.parent_span_id.hex() == parent and music.parent_span_id == request.span_id
    assert attributes(request)["musiclm.request_id"] == answer.headers["x-request-id"]
    known = attributes(music)
    assert known["musiclm.job"] == line["job"] and known["musiclm.reason"] == "done" and known["musiclm.audio_s"] == 0.9
    assert known["musiclm.stage.coarse_s"] == line["stages"]["coarse"] and known["musiclm.request_id"] == line["request_id"]
    for name, seconds in (("prompt", line["stages"]["prompt"]), ("first audio", line["first_audio_s"])):
        part = by_name[name]
        assert part.parent_span_id == music.span_id
        assert music.start_time_unix_nano <= part.start_time_unix_nano <= part.end_time_unix_nano <= music.end_time_unix_nano
        assert abs((part.end_time_unix_nano - part.start_time_unix_nano) / 1e9 - seconds) < 1e-4


def test_spans_of_a_job(server: Server, client: httpx.Client) -> None:
    """Fault: a job in the background that is in no trace; spans of what watchers ask."""
    client.get("/ready")
    answer = client.post("/v1/jobs", json=JOB)
    trace_id = lines(server, answer.headers["x-request-id"])[0]["trace_id"]
    music = found(lambda: [span for span in spans(trace_id) if span.name == "music" and attributes(span).get("musiclm.reason") == "done"])
    assert attributes(music[0])["musiclm.job"] == answer.json()["id"]
    assert found(lambda: [span for span in spans(trace_id) if span.name == "queue"])
    assert not [span for span in Collector.spans if "/ready" in span.name]
