"""serve/deploy/: behind nginx, on a dashboard, as a service, in a container, as far as these can be had here."""

from __future__ import annotations

import configparser
import http.server
import json
import re
import shlex
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from support import ROOT
from support.live import live
from support.server import Server, serving

from musiclm_deploy.cli import make_parser
from musiclm_deploy.runtime.bundle import STAGES
from musiclm_deploy.serve.settings import Limits, Settings

DEPLOY = ROOT / "serve" / "deploy"
ASKED: dict[str, Any] = {"prompt": "calm piano", "seconds": 0.9, "sampling": {stage: {"filter_thres": 0.3} for stage in STAGES}}
LONG = {**ASKED, "seconds": 500.0}
MAIN = """
daemon off; master_process off; pid nginx.pid; events {{ worker_connections 64; }}
http {{
    log_format ids '$request_id $status'; access_log access.log ids;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
    server {{ listen 127.0.0.1:{port}; include musiclm.conf; }}
}}
"""


@pytest.fixture(scope="module")
def server(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    options = ("--max-ahead-s", "2", "--max-together", "1", "--max-waiting-per-key", "1")
    with serving(tmp_path_factory.mktemp("deploy"), f"tiny={tiny_bundle}", *options) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as made:
        yield made


@contextmanager
def nginx(folder: Path, url: str) -> Iterator[str]:
    """Run nginx with the page's locations in front of a server, and give its URL."""
    program = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    if program is None:
        pytest.skip("nginx is not installed: apt-get install nginx-light")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (folder / "nginx.conf").write_text(MAIN.format(port=port))
    given = (DEPLOY / "nginx.conf").read_text(encoding="utf-8")
    assert given.count("http://127.0.0.1:8000;") == 3
    (folder / "musiclm.conf").write_text(given.replace("http://127.0.0.1:8000;", f"{url};"))
    process = subprocess.Popen([program, "-p", folder, "-c", folder / "nginx.conf", "-e", folder / "error.log"])
    try:
        for _ in range(200):
            with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
                break
            assert process.poll() is None, (folder / "error.log").read_text()
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def access_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("nginx") / "access.log"


@pytest.fixture(scope="module")
def behind(server: Server, access_log: Path) -> Iterator[httpx.Client]:
    """A client of nginx, which passes on to the server."""
    with nginx(access_log.parent, server.url) as url, httpx.Client(base_url=url, timeout=60) as made:
        yield made


def wait_until_idle(client: httpx.Client) -> None:
    for _ in range(200):
        found = re.findall(r"^musiclm_(?:rows\{.*\}|requests_running) (\S+)$", client.get("/metrics").text, re.MULTILINE)
        if len(found) == 4 and not any(map(float, found)):
            return
        time.sleep(0.05)
    raise AssertionError(f"rows, or requests, still run: {found}")


def test_a_sound_through_nginx(client: httpx.Client, behind: httpx.Client, access_log: Path) -> None:
    """Fault: other bytes than without it; a request that has one id in nginx's log and another one in the server's."""
    through = behind.post("/v1/audio/generations", json=ASKED)
    assert through.content == client.post("/v1/audio/generations", json=ASKED).content
    assert f"{through.headers['x-request-id']} 200" in access_log.read_text().splitlines()


def test_nginx_takes_what_its_client_reads(tmp_path: Path) -> None:
    """Fault: nginx that reads on for a client that does not, so that a whole clip is made for who may never hear it."""
    block, most, sent = b"\0" * (1 << 16), 128, 0

    class Sender(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            nonlocal sent
            self.send_response(200)
            self.end_headers()
            with suppress(ConnectionError):
                for _ in range(most << 4):
                    self.wfile.write(block)
                    sent += len(block)

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Sender) as sender:
        threading.Thread(target=sender.serve_forever, daemon=True).start()
        with nginx(tmp_path, f"http://127.0.0.1:{sender.server_port}") as url, httpx.stream("GET", url, timeout=5) as answer:
            body = answer.iter_raw()  # held, or httpx would close the connection
            assert next(body)
            before = -1
            while before != sent:
                before = sent
                time.sleep(0.5)
        sender.shutdown()
    assert sent < most << 19, f"{sent >> 20} MB were taken"  # the buffers of its sockets


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_nginx(client: httpx.Client, behind: httpx.Client, stream: bool) -> None:
    """Fault: rows that run on for nobody, while music is sent, or while it is made and nothing is sent."""
    if stream:
        with behind.stream("POST", "/v1/audio/generations", json=LONG) as answer:
            assert next(answer.iter_raw())
    else:
        with pytest.raises(httpx.ReadTimeout):
            behind.post("/v1/audio/generations", json={**LONG, "stream": False}, timeout=0.5)
    wait_until_idle(client)
    (last,) = client.get("/v1/jobs").json()["data"][-1:]
    assert last["state"] == ("cut" if stream else "cancelled")


def test_large_bodies_through_nginx(behind: httpx.Client) -> None:
    """Fault: an upload that the server takes and nginx does not."""
    limits, json_type = Limits(), {"content-type": "application/json"}
    most = limits.body_bytes + limits.upload_bytes * 4 // 3
    answer = behind.post("/v1/audio/generations", content=b"x" * most, headers=json_type)
    assert answer.status_code == 400 and "not JSON" in answer.json()["error"]["message"]


@pytest.mark.parametrize("origin", [None, "own"])
def test_live_behind_nginx(behind: httpx.Client, origin: str | None) -> None:
    """Fault: a proxy that does not pass a WebSocket on, or a page that may not connect since its host is another one behind it."""
    url = str(behind.base_url).rstrip("/")
    with live(url, headers=None if origin is None else {"Origin": url}) as client:
        assert client.prompt("calm piano")["type"] == "changed"
        client.send("play")
        assert len(client.hear(8000)) == 8000
        client.send("stop")
        client.until_it_is("stopped")


def test_the_dashboard(client: httpx.Client) -> None:
    """Fault: a panel over a metric, or a label of one, that the server does not have."""
    client.post("/v1/audio/generations", json=ASKED)
    for _ in range(3):
        client.post("/v1/jobs", json={**ASKED, "seconds": 20.0})  # of which one is refused
    shown = {family.name: family for family in text_string_to_metric_families(client.get("/metrics").text)}
    for job in client.get("/v1/jobs").json()["data"]:
        client.delete(f"/v1/jobs/{job['id']}")
    labels = {sample.name: set(sample.labels) for family in shown.values() for sample in family.samples}
    assert len(labels) > 20 and labels["musiclm_requests_refused_total"] == {"reason"}
    assert "musiclm_pace" in shown
    labels["musiclm_pace"] = {"model", "clips"}  # once it has been measured, which takes longer than this test
    assert "musiclm_live_change_seconds" in shown
    labels["musiclm_live_change_seconds_bucket"] = {"model", "le"}  # once somebody has played live

    dashboard = json.loads((DEPLOY / "grafana.json").read_text(encoding="utf-8"))
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    queries += [variable["query"]["query"] for variable in dashboard["templating"]["list"] if variable["type"] == "query"]
    assert len(queries) > 20
    for query in queries:
        used = set(re.findall(r"musiclm_\w+", query))
        assert used and used <= labels.keys(), query
        named = [part for group in re.findall(r"by \(([^)]*)\)", query) for part in re.split(r",\s*", group)]
        named += re.findall(r"(\w+)=~?\"", query)
        assert set(named) <= {"instance"}.union(*(labels[name] for name in used)), query  # instance: Prometheus adds it
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_the_service(tmp_path: Path) -> None:
    """Fault: options that the command does not take; a service that is killed while it drains; a unit that systemd refuses."""
    text = (DEPLOY / "musiclm.service").read_text(encoding="utf-8")
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment]
    unit.read_string(text.replace("\\\n", " "))
    program, *arguments = shlex.split(unit["Service"]["ExecStart"])
    options = make_parser().parse_args(arguments)
    assert float(unit["Service"]["TimeoutStopSec"]) > 2 * options.drain and options.host == "127.0.0.1"
    systemd, true = shutil.which("systemd-analyze"), shutil.which("true")
    if systemd is None or true is None:
        pytest.skip("systemd-analyze is not installed")
    (tmp_path / "musiclm.service").write_text(text.replace(program, true))
    verified = subprocess.run([systemd, "verify", tmp_path / "musiclm.service"], capture_output=True, text=True)
    assert verified.returncode == 0 and not verified.stderr, verified.stderr


def test_the_container() -> None:
    """Fault: options that the command does not take, a folder of the wheel that is left out, a server that lets everybody in."""
    text = (DEPLOY / "Containerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    (command,) = re.findall(r"^ENTRYPOINT (\[.*\])$", text, re.MULTILINE)
    program, *arguments = json.loads(command)
    options = make_parser().parse_args(arguments)
    assert program == "musiclm" and options.host == "0.0.0.0" and options.keys == Path("/keys")
    assert f"http://127.0.0.1:{options.port}/ready" in text and f"EXPOSE {options.port}" in text
    copied = {source for sources in re.findall(r"^COPY (?!--)(.*) \S+$", text, re.MULTILINE) for source in sources.split()}
    assert all((ROOT / source).exists() for source in copied)
    (folders,) = re.findall(r"^FOLDERS = (\(.*\))$", (ROOT / "setup.py").read_text(encoding="utf-8"), re.MULTILINE)
    assert copied == {*re.findall(r'"(\w+)"', folders), "musiclm_deploy", "requirements", "setup.py", "pyproject.toml"}
    assert re.search(r"^USER \d{5}:\d{5}$", text, re.MULTILINE)
    for name in re.findall(r"-c /(\S+)", text):
        assert (ROOT / name).is_file()
    assert Settings({}).drain_s * 2 < float(re.search(r"--stop-timeout (\d+)", text)[1])  # type: ignore[index]
