"""libmusiclm: the same samples as Python makes, and a C interface that neither crashes nor keeps what it was given."""

from __future__ import annotations

import ctypes
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import embed

import musiclm_deploy as md
from musiclm_deploy.runtime.bundle import STAGES

pytestmark = pytest.mark.skipif(
    bool(embed.MISSING), reason=f"libmusiclm is built with {', '.join(embed.MISSING)}, which this machine lacks"
)

HEADER = embed.SOURCE / "include" / "musiclm.h"
DRAWN = {f"{stage}__filter_thres": 0.3 for stage in STAGES}  # by default k would be 1 at this size
SAMPLING = {stage: md.SamplingConfig(filter_thres=0.3) for stage in STAGES}


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    return embed.load()


@pytest.fixture(scope="module")
def model(library, tiny_bundle) -> Iterator[embed.Model]:
    opened = embed.Model(library, tiny_bundle)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def reference(tiny_bundle) -> Iterator[md.MusicLM]:
    with md.load(tiny_bundle, device="cpu", step="native", threads=1) as loaded:
        yield loaded


def windows_of(stages: dict[str, tuple[int, int | None]]) -> tuple[dict[str, Any], dict[str, md.Window]]:
    """Return windows as the library's options and as Python's."""
    options: dict[str, Any] = {}
    for stage, (length, overlap) in stages.items():
        options |= {f"{stage}__window": length} | ({} if overlap is None else {f"{stage}__overlap": overlap})
    return options, {stage: md.Window(length, overlap) for stage, (length, overlap) in stages.items()}


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ({}, {}),
        ({"seconds": 1.2345, "seed": 2**64 - 1}, {"seconds": 1.2345, "seed": 2**64 - 1}),
        ({"seconds": 2.5, "plan": "low_latency", "first_window_s": 0.06}, {"seconds": 2.5, "plan": "low_latency", "first_window_s": 0.06}),
        ({"seconds": 2, "stop": "eos", "seed": 3}, {"seconds": 2, "stop": "eos", "seed": 3}),
        ({"seconds": 0.05}, {"seconds": 0.05}),
        ({"seconds": 0.7, "semantic__temperature": 0, "coarse__temperature": 0.5}, {"seconds": 0.7}),
    ],
)
def test_generate_equals_pythons(model: embed.Model, reference: md.MusicLM, options: dict[str, Any], settings: dict[str, Any]) -> None:
    """Fault: another window, prompt, position, draw, token, chunk or end than Python's in any stage."""
    sampling = dict(SAMPLING)
    if "semantic__temperature" in options:
        sampling |= {"semantic": md.SamplingConfig(0.0, 0.3), "coarse": md.SamplingConfig(0.5, 0.3)}
    expected = reference.generate("calm piano", sampling=sampling, **settings).audio
    assert model.generate("calm piano", **DRAWN, **options).tobytes() == expected.tobytes()


@pytest.mark.parametrize("plan", [{}, {"plan": "low_latency", "first_window_s": 0.06}])
def test_windows_equal_pythons(model: embed.Model, reference: md.MusicLM, plan: dict[str, Any]) -> None:
    options, windows = windows_of({"semantic": (14, 5), "coarse": (12, None), "fine": (5, None)})
    expected = reference.generate("calm piano", sampling=SAMPLING, seconds=1.5, windows=windows, **plan).audio
    assert model.generate("calm piano", seconds=1.5, **DRAWN, **options, **plan).tobytes() == expected.tobytes()


def test_mixed_prompts_equal_pythons(model: embed.Model, reference: md.MusicLM) -> None:
    """Fault: another order of sums, or a latent that is not of length 1."""
    prompt = {"calm piano": 0.3, "loud drums, 12/8 time!": 0.7, "no strings": -0.2}
    expected = reference.generate(md.Blend(prompt), sampling=SAMPLING, seconds=0.5).audio
    assert model.generate(prompt, seconds=0.5, **DRAWN).tobytes() == expected.tobytes()
    for text in ("calm piano", "“Ça va?” – naïve &amp; 12 Žluťoučký ﬁddle"):
        assert model.embed_text(text).tobytes() == reference.embed_text(text)[0].tobytes()


@pytest.mark.parametrize("frames", [1, 7, 333, 100_000])
def test_read_in_any_pieces(model: embed.Model, frames: int) -> None:
    """Fault: samples lost, doubled or changed between two reads."""
    stream = model.stream("x", seconds=0.6, **DRAWN)
    assert stream.rest(frames).tobytes() == model.generate("x", seconds=0.6, **DRAWN).tobytes()
    assert stream.ended and not stream.buffered
    stream.close()


def test_goes_on_after_a_save(model: embed.Model, tmp_path: Path) -> None:
    """Fault: other samples after a break, or from another place on."""
    whole = model.generate("x", seconds=2, seed=5, **DRAWN)
    stream = model.stream("x", seconds=2, seed=5, ahead_s=0.3, **DRAWN)
    stream.read(3001)
    stream.save(tmp_path / "saved.json")
    stream.close()
    goes_on = model.resume(tmp_path / "saved.json", 3001 / 16000)
    assert goes_on.rest().tobytes() == whole[3001:].tobytes()
    goes_on.close()


def test_another_prompt(model: embed.Model) -> None:
    """Fault: a prompt that is not heard, heard from another second on than was said, or that changes what was before."""
    options = DRAWN | windows_of({"semantic": (14, 5), "coarse": (12, None), "fine": (5, None)})[0]
    alone = model.generate("x", seconds=4, seed=6, **options)
    stream = model.stream("x", seconds=4, seed=6, ahead_s=0.1, **options)
    begun = stream.read(800)
    heard = stream.set_prompt({"loud drums": 1.0})
    changed = np.concatenate([begun, stream.rest()])
    at = round(heard * 16000)
    assert 800 < at < len(alone) and changed[:at].tobytes() == alone[:at].tobytes() and not np.array_equal(changed[at:], alone[at:])
    with pytest.raises(embed.Refused) as refused:
        stream.set_prompt("x")
    assert refused.value.status == embed.ENDED
    stream.close()


def test_an_audio_thread_reads(model: embed.Model) -> None:
    """Fault: silence in place of music, music out of order, channels that differ, underruns before the first sound or at the end."""
    whole, heard = model.generate("x", seconds=0.5, **DRAWN), []
    stream = model.stream("x", seconds=0.5, **DRAWN)
    while not stream.ended:
        out, got = stream.read_now(256)
        assert np.array_equal(out[0], out[1]) and not out[:, got:].any()
        heard.append(out[0, :got].copy())
    assert np.concatenate(heard).tobytes() == whole.tobytes()
    assert stream.underruns <= sum(len(one) < 256 for one in heard)
    stream.close()


@pytest.mark.parametrize("ahead_s", [0.3, 1.0])
def test_made_ahead(model: embed.Model, ahead_s: float) -> None:
    """Fault: a window that begins when it is read, less than `ahead_s` before it is heard: it interrupts the music on a busy machine."""
    stream = model.stream("x", seconds="endless", plan="low_latency", ahead_s=ahead_s, **DRAWN)
    for place in range(0, 6 * 16000, 1600):
        stream.read(1600)
        end = time.monotonic() + 30
        while stream.buffered < ahead_s * 16000:
            assert time.monotonic() < end, (place, stream.buffered)
            time.sleep(0.001)
    stream.close()


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000, 96000])
def test_at_the_hosts_rate(model: embed.Model, rate: int) -> None:
    """Fault: another length, pitch or place, or more than a thousandth added by resampling below 0.85 of the lower half rate."""
    wave = model.generate("x", seconds=1, **DRAWN).astype(np.float64)
    made = model.generate("x", seconds=1, output_rate=rate, **DRAWN).astype(np.float64)
    assert len(made) == rate
    edge = 0.85 * min(rate, 16000) / 2
    spectra = [np.fft.rfft(one * np.hanning(len(one)))[: int(edge)] / len(one) for one in (wave, made)]
    apart = 20 * np.log10(np.linalg.norm(spectra[1] - spectra[0]) / np.linalg.norm(spectra[0]))
    assert apart < -60, apart


def test_many_streams_at_once(model: embed.Model) -> None:
    """Fault: streams of one model that change each other, or wait for each other for ever."""
    expected = [model.generate("x", seconds=0.6, seed=seed, **DRAWN) for seed in range(4)]
    streams = [model.stream("x", seconds=0.6, seed=seed, **DRAWN) for seed in range(4)]
    waves: dict[int, np.ndarray] = {}
    readers = [threading.Thread(target=lambda seed=seed: waves.__setitem__(seed, streams[seed].rest(100))) for seed in range(4)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(60)
    assert all(waves[seed].tobytes() == expected[seed].tobytes() for seed in range(4))
    for stream in streams:
        stream.close()


def test_cancel_and_free_in_any_order(library, tiny_bundle) -> None:
    """Fault: a stream that outlives its model's memory, a cancel that is not heard, a reader who waits for ever."""
    opened = embed.Model(library, tiny_bundle)
    stream = opened.stream("x", seconds="endless", ahead_s=0.5, **DRAWN)
    opened.close()
    assert len(stream.read(20_000)) == 20_000
    with pytest.raises(embed.Refused) as late:
        stream.read(10_000_000, timeout=0.05)
    assert late.value.status == embed.TIMEOUT
    stream.cancel()
    stream.rest()
    assert stream.ended
    stream.close()
    for name in ("ml_model_free", "ml_stream_free", "ml_options_free", "ml_free", "ml_stream_cancel"):
        getattr(library, name)(None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seconds": "nan"}, 'seconds must be endless, or a number above 0 and at most 86400, got "nan".'),
        ({"seconds": "1,5"}, 'seconds must be endless, or a number above 0 and at most 86400, got "1,5".'),
        ({"seed": -1}, 'seed must be a whole number from 0 to 2^64 - 1, got "-1".'),
        ({"seed": 2**64}, 'seed must be a whole number from 0 to 2^64 - 1, got "18446744073709551616".'),
        ({"stop": "never"}, 'stop must be exact or eos, got "never".'),
        ({"fine__filter_thres": 1}, 'fine.filter_thres must be in [0, 1), got "1".'),
        ({"fine__window": 10**6}, "a fine window of 1000000 frames is longer than the model's"),
        ({"output_rate": 1}, 'output_rate must be from 8000 to 384000 Hz, got "1".'),
        ({"tempo": 120}, 'there is no option "tempo"'),
    ],
)
def test_bad_options(model: embed.Model, options: dict[str, Any], message: str) -> None:
    with pytest.raises(embed.Refused) as refused:
        model.stream("x", **options)
    assert refused.value.status == embed.BAD_ARGUMENT and message in str(refused.value)


def test_bad_prompts_and_bundles(library, model: embed.Model, tiny_bundle: Path, tmp_path: Path) -> None:
    for prompt, message in (("", "holds no token"), ("piano " * 5000, "is longer than the"), ({"x": 0.0}, "cancel each other")):
        with pytest.raises(embed.Refused, match=message) as refused:
            model.stream(prompt, seconds=0.1)
        assert refused.value.status == embed.BAD_ARGUMENT
    damaged = tmp_path / "damaged"
    shutil.copytree(tiny_bundle, damaged)
    manifest = json.loads((damaged / "musiclm.json").read_text())
    (damaged / "fine.onnx.data").write_bytes(b"short")
    for root, message in ((tmp_path / "none", "is not a bundle"), (damaged, "fine.onnx.data.*5 bytes, the manifest says")):
        with pytest.raises(embed.Refused, match=message) as refused:
            embed.Model(library, root)
        assert refused.value.status == embed.BAD_BUNDLE
    (damaged / "musiclm.json").write_text(json.dumps(manifest | {"format": 5}))
    with pytest.raises(embed.Refused, match="has format 5, this version reads 7"):
        embed.Model(library, damaged)
    (damaged / "fine.onnx.data").write_bytes((tiny_bundle / "fine.onnx.data").read_bytes())
    wrong = manifest | {"fine": manifest["fine"] | {"coarse_quantizers": 3}, "codec": manifest["codec"] | {"sample_hz": 10**8}}
    (damaged / "musiclm.json").write_text(json.dumps(wrong))
    with pytest.raises(embed.Refused, match=r"(?s)coarse_quantizers: expected 2, as coarse has, got 3.*sample_hz: expected at least 1000"):
        embed.Model(library, damaged)
    with pytest.raises(embed.Refused, match=r"nowhere\.so") as refused:
        embed.Model(library, tiny_bundle, onnxruntime="/nowhere.so")
    assert refused.value.status == embed.NO_RUNTIME


def test_options_describe_themselves(library) -> None:
    """Fault: an option that is taken and not listed, or listed without a word."""
    for listed in (library.ml_model_option, library.ml_stream_option):
        index = 0
        while option := listed(index):
            values = [getattr(option.contents, name).decode() for name in embed.OPTION]
            assert values[0] and values[1] in ("text", "integer", "number", "choice") and values[4]
            index += 1
        assert index > 1


def test_what_the_library_shows() -> None:
    """Fault: a symbol beyond the header's, a function of the header that is missing, or a library that needs Python or ONNX Runtime."""
    path = embed.built() / "libmusiclm.so"
    shown = subprocess.run(["nm", "-D", "--defined-only", path], capture_output=True, text=True, check=True).stdout
    declared = set(re.findall(r"\b(ml_\w+)\(", HEADER.read_text()))
    assert {line.split()[-1] for line in shown.splitlines()} == declared == embed.SIGNATURES.keys()
    needed = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout
    assert not re.search("python|onnx", needed)


def test_the_example_writes_a_wave(tiny_bundle: Path, tmp_path: Path, model: embed.Model) -> None:
    out = tmp_path / "out.wav"
    command = [embed.built() / "wav", tiny_bundle, "calm piano", out, "seconds=0.5", "threads=1", f"onnxruntime={embed.ONNXRUNTIME}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{out}: 0.50 s\n", "")
    import soundfile

    audio, rate = soundfile.read(out, dtype="float32")
    assert rate == 16000 and audio.tobytes() == model.generate("calm piano", seconds=0.5).tobytes()


COMPARED = {
    "clips": lambda folder, bundle: [folder / "clip", "200"],
    "tokenizer": lambda folder, bundle: [folder / "tokenize", bundle / "tokenizer.json", "--count", "4000"],
    "graphs": lambda folder, bundle: [bundle, folder / "graphs", embed.ONNXRUNTIME, "--threads", "1"],
}


@pytest.mark.parametrize("part", COMPARED)
def test_each_part_equals_pythons(part: str, tiny_bundle: Path) -> None:
    """Fault: other windows, sequences or tokens of made-up clips; other ids of texts of many scripts; other latents, contexts or chunks."""
    script = embed.SOURCE / "tests" / f"compare_{part}.py"
    arguments = [str(argument) for argument in COMPARED[part](embed.built(), tiny_bundle)]
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True)
    assert not done.returncode, done.stdout[-3000:] + done.stderr[-3000:]


def test_damaged_bundles_end_in_a_status(tmp_path: Path) -> None:
    """Fault: a manifest, a tokenizer or weights from elsewhere that end the host."""
    script, program = embed.SOURCE / "tests" / "fuzz_bundle.py", embed.built() / "inspect"
    done = subprocess.run([sys.executable, script, "--program", program, "--count", "2000"], capture_output=True, text=True, cwd=tmp_path)
    assert not done.returncode, done.stdout[-3000:] + done.stderr[-3000:]
