"""Lyria RealTime's protocol, spoken by Google's own client for Node, unmodified."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soxr
from support import npm
from support.server import Server, serving

import musiclm_deploy as md
from musiclm_deploy.runtime.growing import sixteen_bits
from musiclm_deploy.serve.live.session import live_plan

KEY = "key-of-anna-0123456789"


@pytest.fixture(scope="module")
def server(tiny_bundle: Path, tmp_path_factory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("lyria")
    (folder / "keys").write_text(f"anna: {KEY}\n")
    with serving(folder, f"tiny={tiny_bundle}", "--keys", folder / "keys") as running:
        yield running


def play(server: Server, key: str = KEY, model: str = "models/tiny") -> dict[str, Any]:
    """Have the client play its piece, and return what it says."""
    done = npm.run_node(npm.PINNED / "lyria.mjs", npm.packages(), server.url, key, model, timeout=120)
    assert not done.returncode, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(done.stdout)


def test_googles_client_plays(server: Server, tiny_bundle: Path) -> None:
    """Fault: a message that it does not read, other samples than a stream's, a control that does nothing, something dropped in silence."""
    said = play(server)
    assert said["setup"] and said["types"] == ["audio/l16;rate=48000;channels=2"] and "error" not in said
    assert said["warnings"] == ["this model has no bpm: not done."]
    assert said["filtered"][0]["text"] == "x + x" and "cancel each other" in said["filtered"][0]["filteredReason"]
    first, second = (json.loads(one) for one in said["metadata"][:2])
    assert first["clientContent"]["weightedPrompts"] == [{"text": "calm piano", "weight": 1.0}]
    assert first["musicGenerationConfig"] == {"temperature": 0.9, "topK": 300, "guidance": 3.0, "seed": 7}
    assert [one["weight"] for one in second["clientContent"]["weightedPrompts"]] == [0.3, 0.7]
    assert all(0 <= one < 10 for one in said["seconds"]) and max(said["seconds"]) > 0
    assert said["paused"][0] == said["paused"][1] and said["stopped"][0] == said["stopped"][1]

    heard = np.frombuffer(base64.b64decode(said["pcm"]), "<i2").reshape(-1, 2)
    np.testing.assert_array_equal(heard[:, 0], heard[:, 1])
    with md.load(tiny_bundle, device="cpu", threads=1) as model:
        manifest = model.bundle.manifest
        sampling = {}
        for stage in ("semantic", "coarse", "fine"):
            decoder = getattr(manifest, stage)
            sampling[stage] = md.SamplingConfig(0.9, max(1 - 300 / decoder.vocabulary, 0.0), 3.0 if decoder.guidance else None)
        with model.stream("calm piano", seconds=None, seed=7, sampling=sampling, **live_plan(manifest, 1.0)) as stream:
            wave = np.concatenate([next(stream).audio for _ in range(8)])
    expected = sixteen_bits(soxr.ResampleStream(stream.sample_rate, 48000, 1, dtype="float32", quality="VHQ").resample_chunk(wave))
    count = min(len(expected), 40000) - 4800  # not the end, which the resampler has not heard yet
    assert np.abs(heard[:count, 0].astype(int) - expected[:count]).max() <= 1


def test_who_is_not_let_in(server: Server) -> None:
    """Fault: a wrong key that plays, an unknown model that is another one in silence, or a closed connection without a reason."""
    assert "key" in play(server, key="wrong")["closed"]
    assert "there is no model 'lyria-realtime-exp' here, only tiny." in play(server, model="models/lyria-realtime-exp")["closed"]
    assert "musiclm_requests_running 0.0" in httpx.get(f"{server.url}/metrics", headers={"xi-api-key": KEY}).text
