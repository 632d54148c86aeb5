"""`musiclm serve`: music over HTTP to the clients that people have, the same as `generate` makes, and an end that frees what it took."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
from support.server import Server, eventually, serving

import musiclm_deploy as md
from musiclm_deploy.runtime.bundle import STAGES
from musiclm_deploy.runtime.growing import sixteen_bits
from musiclm_deploy.runtime.loudness import loudness
from musiclm_deploy.serve.formats import FORMATS_SERVED, Encoder

DRAWN = {stage: {"filter_thres": 0.3} for stage in STAGES}  # by default k would be 1 at this size
SAMPLING = {stage: md.SamplingConfig(**one) for stage, one in DRAWN.items()}
ASKED: dict[str, Any] = {"prompt": "calm piano", "seconds": 0.9, "seed": 3, "sampling": DRAWN}
LONG: dict[str, Any] = {"prompt": "calm piano", "seconds": 500.0, "sampling": DRAWN}


@pytest.fixture(scope="module")
def server(tiny_bundle: Path, tmp_path_factory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("serve"), f"tiny={tiny_bundle}", "--max-ahead-s", "2") as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as made:
        yield made


@pytest.fixture(scope="module")
def music(tiny_bundle: Path) -> Iterator[md.MusicLM]:
    with md.load(tiny_bundle, device="cpu", threads=1) as loaded:
        yield loaded


def alone(music: md.MusicLM, plan: str = "low_latency", text: str = "calm piano", **settings: Any) -> np.ndarray:
    return music.generate(text, plan=plan, **({"seconds": 0.9, "seed": 3, "sampling": SAMPLING} | settings)).audio


def pcm(wave: np.ndarray) -> bytes:
    return sixteen_bits(wave).tobytes()


def post(client: httpx.Client, path: str = "/v1/audio/generations", headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
    return client.post(path, json=ASKED | body, headers=headers)


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]


def gauge(client: httpx.Client, name: str, **labels: str) -> float:
    """Return the sum of a metric over all that have these labels."""
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    lines = [line for line in client.get("/metrics").text.splitlines() if line.partition("{")[0].partition(" ")[0] == name]
    return sum(float(line.rpartition(" ")[2]) for line in lines if all(one in line for one in wanted))


def idle(client: httpx.Client) -> bool:
    return gauge(client, "musiclm_requests_running") == 0 and gauge(client, "musiclm_rows") == 0


# --- sounds


@pytest.mark.parametrize("form", ["wav", "pcm", "flac", "opus", "mp3"])
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_every_format_is_the_clip(client: httpx.Client, music: md.MusicLM, form: str, stream: bool) -> None:
    """Fault: bytes that no player takes, another length, other samples than `generate`'s."""
    answer = post(client, response_format=form, stream=stream)
    expected = alone(music, "low_latency" if stream else "trained")
    assert answer.status_code == 200 and answer.headers["x-sample-rate"] == "16000", answer.text
    assert ("transfer-encoding" in answer.headers) == stream
    if form == "pcm":
        assert answer.content == pcm(expected)
        return
    with soundfile.SoundFile(io.BytesIO(answer.content)) as file:
        read = _all(file)
        assert file.samplerate == 16000
    if form == "flac" and not stream:  # libsndfile rounds where it makes a flac of float32
        assert len(read) == len(expected) and np.abs(read - expected).max() < 1.01 / 32768
    elif form in ("wav", "flac"):
        assert pcm(read) == pcm(expected)
    else:
        lossy = 3000 if form == "mp3" else 0  # of the encoder's and the decoder's delay, which is not said without a count of frames
        assert len(expected) <= len(read) <= len(expected) + lossy


def _all(file: soundfile.SoundFile) -> np.ndarray:
    """Return all samples of a file that may not know how many it has."""
    blocks = []
    while len(block := file.read(4096, dtype="float32")):
        blocks.append(block)
    return np.concatenate(blocks)


@pytest.mark.parametrize("form", ["wav", "flac", "opus"])
def test_a_stream_says_how_it_was_made(client: httpx.Client, form: str, tmp_path: Path) -> None:
    """Fault: a file from a stream that says less than one from `generate`, or a record that makes another clip."""
    path = tmp_path / f"stream.{form}"
    path.write_bytes(post(client, response_format=form).content)
    record = md.read_record(path)
    assert (record["prompt"], record["seed"], record["seconds"]) == ("calm piano", 3, 0.9)
    assert form == "wav" or soundfile.SoundFile(path).title == "calm piano"


def test_a_job_as_flac_says_how_long_it_is(client: httpx.Client, music: md.MusicLM) -> None:
    """Fault: flac without a count of its samples, which libsndfile does not read, where the count is known."""
    job = post(client).headers["x-job-id"]
    answer = client.get(f"/v1/jobs/{job}/audio", params={"response_format": "flac"})
    assert pcm(soundfile.read(io.BytesIO(answer.content), dtype="float32")[0]) == pcm(alone(music))


@pytest.mark.parametrize("form", ["flac", "opus"])
def test_a_record_that_is_too_long_is_left_out(form: str) -> None:
    """Fault: a comment beyond 30,000 bytes, with which libsndfile writes opus that no reader opens."""
    encoder = Encoder(FORMATS_SERVED[form], 16_000, {"prompt": "x" * 20_000, "parts": ["y" * 20_000]}, samples=16_000)
    data = encoder.encode(np.zeros(16_000, np.float32)) + encoder.finish()
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        assert len(_all(file)) >= 16_000 and not file.comment


def test_a_sound_comes_while_it_is_made(client: httpx.Client) -> None:
    """Fault: an answer that is sent when it is whole."""
    with client.stream("POST", "/v1/audio/generations", json=LONG | {"response_format": "pcm"}) as answer:
        pieces = answer.iter_raw()  # held: a client is gone when nothing refers to it
        got = next(pieces)
        assert answer.headers["x-accel-buffering"] == "no" and 0 < len(got) < 500 * 32000
        assert client.get(f"/v1/jobs/{answer.headers['x-job-id']}").json()["state"] == "running"


def test_events(client: httpx.Client, music: md.MusicLM) -> None:
    """Fault: a piece that is missing, an end without the hash, progress that says nothing."""
    answer = post(client, stream_format="sse", response_format="pcm", seconds=4.0)
    told, expected = events(answer.text), alone(music, seconds=4.0)
    assert answer.headers["content-type"].startswith("text/event-stream")
    sound = b"".join(base64.b64decode(one["audio"]) for one in told if one["type"] == "speech.audio.delta")
    assert sound == pcm(expected) and told[-1]["type"] == "speech.audio.done"
    assert told[-1]["pcm_sha256"] == hashlib.sha256(sound).hexdigest() and told[-1]["usage"]["total_tokens"] > 0


@pytest.mark.parametrize("rate", [8000, 44100])
def test_another_rate(client: httpx.Client, rate: int) -> None:
    answer = post(client, response_format="pcm", sample_rate=rate)
    assert answer.headers["x-sample-rate"] == str(rate) and abs(len(answer.content) // 2 - 0.9 * rate) <= 1


def test_mixed_prompts_and_sounds(client: httpx.Client, music: md.MusicLM) -> None:
    """Fault: parts, weights or sounds of a body that are not those of the call in Python; a form that is read otherwise than JSON."""
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, 16000).astype(np.float32)
    file = io.BytesIO()
    soundfile.write(file, wave, 16000, format="WAV", subtype="FLOAT")
    sound = {"data": base64.b64encode(file.getvalue()).decode()}
    parts = [{"text": "calm piano", "weight": 0.3}, {"audio": sound, "weight": 0.7}]
    blend = md.Blend([("calm piano", 0.3), ((wave, 16000), 0.7)])
    settings: dict[str, Any] = {"seconds": 0.9, "seed": 3, "sampling": SAMPLING, "plan": "low_latency"}
    assert post(client, prompt=parts, response_format="pcm").content == pcm(music.generate(blend, **settings).audio)
    on = music.generate("calm piano", prime=(wave, 16000), **settings | {"seconds": 2.0}).audio
    assert post(client, prime=sound, seconds=2.0, response_format="pcm").content == pcm(on)
    fields = json.dumps({**ASKED, "seconds": 2.0, "response_format": "pcm"})
    form = client.post("/v1/audio/generations", data={"request": fields}, files={"prime": ("a.wav", file.getvalue())})
    assert form.content == pcm(on)


def test_candidates(client: httpx.Client, music: md.MusicLM) -> None:
    """Fault: another candidate than the one that MuLaN finds closest."""
    expected = music.generate("calm piano", seconds=1.0, seed=3, num_samples=3, sampling=SAMPLING)
    answer = post(client, seconds=1.0, num_samples=3, stream=False, response_format="pcm")
    assert answer.headers["x-best"] == str(expected.best) and answer.content == pcm(expected.audio)
    assert answer.headers["x-pcm-sha256"] == hashlib.sha256(answer.content).hexdigest()


def test_a_loudness(client: httpx.Client, music: md.MusicLM) -> None:
    """Fault: a loudness that is not the one asked for, or that is taken for a stream and not heard."""
    answer = post(client, seconds=2.0, stream=False, response_format="wav", normalize=-23)
    wave, hz = soundfile.read(io.BytesIO(answer.content))
    assert abs(loudness(wave, hz) + 23) < 0.1
    assert post(client, normalize=-23).status_code == 400


# --- other people's clients


def test_openais_client(server: Server, music: md.MusicLM, tmp_path: Path) -> None:
    """Fault: an unmodified client that cannot stream, save, list models, embed, or that does not understand a refusal."""
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0)
    extra = {"seconds": 0.9, "seed": 3, "sampling": DRAWN}
    asked: dict[str, Any] = {"model": "tiny", "voice": "alloy", "input": "calm piano", "extra_body": extra}
    with client.audio.speech.with_streaming_response.create(**asked, response_format="pcm") as answer:
        assert b"".join(answer.iter_bytes()) == pcm(alone(music))
    client.audio.speech.create(**asked, response_format="flac").write_to_file(tmp_path / "out.flac")
    with soundfile.SoundFile(tmp_path / "out.flac") as file:
        assert pcm(_all(file)) == pcm(alone(music))
    assert [one.id for one in client.models.list()] == ["tiny"] and client.models.retrieve("tiny").id == "tiny"
    made = client.embeddings.create(model="tiny", input=["calm piano", "drums"])
    np.testing.assert_allclose([one.embedding for one in made.data], music.embed_text(["calm piano", "drums"]), rtol=1e-6)
    with pytest.raises(openai.BadRequestError, match="speed can only be 1"):
        client.audio.speech.create(**asked, speed=2.0)
    with pytest.raises(openai.BadRequestError, match="longer than the"):
        client.audio.speech.create(**asked | {"input": "piano " * 600})
    with pytest.raises(openai.NotFoundError, match="there is no model 'other'"):
        client.audio.speech.create(**asked | {"model": "other"})


def test_elevenlabs_client(server: Server, music: md.MusicLM) -> None:
    """Fault: an unmodified client that cannot stream or save, or that does not understand a refusal."""
    elevenlabs = pytest.importorskip("elevenlabs")
    from elevenlabs.errors import UnprocessableEntityError

    client = elevenlabs.ElevenLabs(base_url=server.url, api_key="any")
    options = {"additional_body_parameters": {"sampling": DRAWN}}
    asked: dict[str, Any] = {"prompt": "calm piano", "music_length_ms": 3000, "seed": 3, "request_options": options}
    streamed = b"".join(client.music.stream(**asked, output_format="pcm_16000"))
    assert streamed == pcm(alone(music, seconds=3.0))
    whole = b"".join(client.music.compose(**asked, output_format="pcm_16000"))
    assert whole == pcm(alone(music, "trained", seconds=3.0))
    mp3 = b"".join(client.music.compose(**asked, output_format="mp3_44100_128"))
    assert abs(soundfile.info(io.BytesIO(mp3)).duration - 3) < 0.2 and abs(len(mp3) * 8 / 3 / 1000 - 128) < 15
    with pytest.raises(UnprocessableEntityError):
        b"".join(client.music.compose(**asked, output_format="ulaw_8000"))


def test_curl(server: Server, music: md.MusicLM) -> None:
    command = ["curl", "-sS", "--fail", f"{server.url}/v1/audio/generations", "-H", "Content-Type: application/json", "-d"]
    done = subprocess.run([*command, json.dumps(ASKED | {"response_format": "pcm"})], capture_output=True)
    assert done.returncode == 0 and done.stdout == pcm(alone(music)), done.stderr


# --- jobs


def test_a_job(client: httpx.Client, music: md.MusicLM) -> None:
    """Fault: a job that does not end, a sound that is not its, from a sample on too; one that is there after it was deleted."""
    made = client.post("/v1/jobs", json=ASKED)
    job = made.json()
    assert made.status_code == 202 and job["object"] == "job" and job["state"] in ("queued", "running"), job
    assert eventually(lambda: client.get(f"/v1/jobs/{job['id']}").json()["state"] == "done")
    expected, ended = alone(music, "trained"), client.get(f"/v1/jobs/{job['id']}").json()
    assert ended["pcm_sha256"] == hashlib.sha256(pcm(expected)).hexdigest() and ended["id"] in [one["id"] for one in _jobs(client)]
    for start in (0, 1, 4801):
        sound = client.get(ended["audio"], params={"response_format": "pcm", "start_sample": start})
        assert sound.content == pcm(expected)[2 * start :], sound.text
    assert client.get(ended["audio"], params={"start_s": 2}).status_code == 416
    for _ in range(2):
        assert client.delete(f"/v1/jobs/{job['id']}").status_code == 204
    assert client.get(f"/v1/jobs/{job['id']}").status_code == 404


def _jobs(client: httpx.Client) -> list[dict[str, Any]]:
    return client.get("/v1/jobs").json()["data"]


def test_a_stream_that_was_cut_goes_on(client: httpx.Client, music: md.MusicLM) -> None:
    """Fault: samples that are lost or made anew otherwise after a client went away, rows that go on running for it."""
    expected = pcm(alone(music, seconds=6.0))
    with client.stream("POST", "/v1/audio/generations", json=ASKED | {"seconds": 6.0, "response_format": "pcm"}) as answer:
        job, got = answer.headers["x-job-id"], next(answer.iter_raw())
    assert eventually(lambda: client.get(f"/v1/jobs/{job}").json()["state"] in ("cut", "done")) and eventually(lambda: idle(client))
    rest = client.get(f"/v1/jobs/{job}/audio", params={"response_format": "pcm", "start_sample": len(got) // 2})
    assert got + rest.content == expected
    assert client.get(f"/v1/jobs/{job}").json()["state"] == "done"


def test_a_retry_finds_the_first_ones_job(client: httpx.Client, music: md.MusicLM) -> None:
    """Fault: a repeated request that is made twice, or another one that gets the first one's sound."""
    headers = {"Idempotency-Key": "once"}
    answers = [post(client, headers=headers, response_format="pcm") for _ in range(2)]
    assert answers[0].headers["x-job-id"] == answers[1].headers["x-job-id"]
    assert answers[0].content == answers[1].content == pcm(alone(music))
    assert post(client, headers=headers, seed=4).status_code == 422


def test_a_client_that_goes_away_frees_its_rows(client: httpx.Client) -> None:
    """Fault: work that goes on for nobody: of a stream, of a whole sound that is awaited, of a job that is deleted."""
    with client.stream("POST", "/v1/audio/generations", json=LONG) as answer:
        pieces = answer.iter_raw()  # held: a client is gone when nothing refers to it
        next(pieces)
        assert not idle(client)
    assert eventually(lambda: idle(client))
    with pytest.raises(httpx.ReadTimeout):
        client.post("/v1/audio/generations", json=LONG | {"stream": False}, timeout=1.0)
    assert eventually(lambda: idle(client))
    job = client.post("/v1/jobs", json=LONG).json()["id"]
    assert eventually(lambda: gauge(client, "musiclm_requests_running") == 1)
    client.delete(f"/v1/jobs/{job}")
    assert eventually(lambda: idle(client))


def test_a_deadline(client: httpx.Client) -> None:
    answer = client.post("/v1/audio/generations", json=LONG | {"stream": False, "deadline_s": 1})
    assert answer.status_code == 504 and answer.json()["error"]["code"] == "deadline_exceeded"
    assert eventually(lambda: idle(client))


# --- refusals


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        ({"tempo": 120}, 400, "tempo: is not a field here"),
        ({"seconds": "1"}, 400, "seconds: Input should be a valid number"),
        ({"seconds": 1e6}, 400, "seconds must be at most 600 here"),
        ({"seconds": 0}, 400, "seconds"),
        ({"prompt": ""}, 400, "prompt"),
        ({"prompt": None}, 400, "say what the music should be like"),
        ({"prompt": "x" * 5000}, 400, "the characters of prompt must be at most 4096"),
        ({"prompt": [{"text": "a", "weight": 1.0}, {"text": "a", "weight": -1.0}]}, 400, "cancel each other"),
        ({"num_samples": 9, "stream": False}, 400, "num_samples must be at most 8"),
        ({"num_samples": 2}, 400, "a stream is one clip"),
        ({"seed": 2**64}, 400, "seed"),
        ({"response_format": "aiff"}, 400, "response_format"),
        ({"audio": {"data": "!"}}, 400, "audio is not base64"),
        ({"prompt": None, "audio": {"data": "AAAA"}}, 400, "audio is not a sound file"),
        ({"windows": {"fine": {"length": 10**6}}}, 400, "fine"),
        ({"model": "other"}, 404, "there is no model 'other' here, only tiny"),
    ],
)
def test_refused(client: httpx.Client, body: dict[str, Any], status: int, told: str) -> None:
    answer = post(client, **body)
    error = answer.json()["error"]
    assert answer.status_code == status and told in error["message"] and answer.headers["x-should-retry"] == "false", answer.text
    assert error["request_id"] == answer.headers["x-request-id"] and set(error) == {"message", "type", "param", "code", "request_id"}


def test_ready_and_counted(client: httpx.Client) -> None:
    """Fault: a server that says it is ready and makes nothing; one that counts nothing."""
    ready = client.get("/ready")
    assert ready.status_code == 200 and ready.json()["samples"] == 800 and client.get("/health").json() == {"status": "ok"}
    before = gauge(client, "musiclm_requests_total", finished_reason="done")
    post(client)
    assert gauge(client, "musiclm_requests_total", finished_reason="done") == before + 1
    assert (
        gauge(client, "musiclm_audio_ttfp_seconds_count") >= 1
        and gauge(client, "musiclm_audio_continuity_ok_total", threshold_ms="100") >= 1
    )
    assert {"/v1/audio/generations", "/v1/audio/speech", "/v1/music"} <= client.get("/openapi.json").json()["paths"].keys()
