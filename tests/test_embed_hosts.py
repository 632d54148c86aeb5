"""The examples in real hosts: a JACK server, jalv, lv2apply and Pure Data hear the samples of the stream, to the bit."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from support import embed, hosts
from support.engine import eventually

from musiclm_deploy.runtime.bundle import STAGES

BLOCK = 256  # frames of a callback
LIVE = {"seconds": "endless", "plan": "low_latency", "ahead_s": 2}  # what the examples ask for
MIXTURE = "0.3 calm piano + 0.7 loud drums"
DEMO = Path(__file__).parents[1] / "build" / "demo" / "bundle"


def needs(*names: str) -> pytest.MarkDecorator:
    reason = hosts.missing(*names)
    return pytest.mark.skipif(bool(reason), reason=reason)


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    return embed.load()


@pytest.fixture(scope="module")
def bundle(tiny_bundle, tmp_path_factory) -> Path:
    """The tiny bundle, of whose tokens by default more than the most likely one are drawn: else few prompts sound different."""
    folder = tmp_path_factory.mktemp("hosts") / "bundle"
    shutil.copytree(tiny_bundle, folder, copy_function=os.symlink)
    manifest = json.loads((folder / "musiclm.json").read_text())
    for stage in STAGES:
        manifest[stage]["sampling"]["filter_thres"] = 0.3
    (folder / "musiclm.json").unlink()
    (folder / "musiclm.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="module")
def model(library, bundle) -> Iterator[embed.Model]:
    opened = embed.Model(library, bundle, threads=None)  # as the examples open it: the codec's last bits depend on the number of threads
    yield opened
    opened.close()


@pytest.fixture
def plugin(bundle, tmp_path) -> Path:
    """A copy of the plug-in's folder elsewhere, with a bundle and ONNX Runtime in it, as it would be shipped."""
    folder = tmp_path / "lv2" / "musiclm.lv2"
    shutil.copytree(embed.built() / "musiclm.lv2", folder)
    (folder / "bundle").symlink_to(bundle)
    (folder / "libonnxruntime.so").symlink_to(embed.ONNXRUNTIME)
    return folder


def read(stream: embed.Stream, frames: int) -> np.ndarray:
    wave = stream.read(frames)
    stream.close()
    return wave


def is_heard_from(second: float, unchanged: hosts.Followed, rate: int) -> bool:
    """Return whether the music is what it would be without another prompt until this second, and no longer. Not each token is another, and
    the resampling filter reaches some frames back."""
    return second * rate - 256 <= unchanged.music < second * rate + 0.3 * rate


def play_live(
    bundle: Path, folder: Path, seconds: float, prompts: Sequence[tuple[float, str]], server: hosts.Jack, *options: str
) -> dict[str, Any]:
    """Play the JACK example, typing each prompt when its second has come, and return what it said and what another client captured."""
    saved, out = folder / "saved.json", folder / "out.f32"
    said: dict[str, Any] = {"heard": []}
    with hosts.Program(embed.built() / "jack", bundle, *options, environment=server.environment) as player:
        said["opened"] = float(player.expect(r"opened in (\S+) s; 48000 Hz, 256 frames")[1])
        with hosts.Program(embed.built() / "capture", out, int(seconds * 48000), "musiclm:left", environment=server.environment) as capture:
            capture.expect("connected")
            began = time.monotonic()
            for second, prompt in prompts:
                time.sleep(max(began + second - time.monotonic(), 0))
                player.say(prompt)
                if second:
                    said["heard"].append(float(player.expect(r"heard from second (\S+) on")[1]))
                else:
                    said["first"] = float(player.expect(r"first sound after (\S+) s")[1])
            player.say(f"save {saved}")
            player.expect("saved")
            said["late"] = int(capture.expect(r"frames, (\d+) xruns", seconds + 60)[1])
        player.say("quit")
        counted = player.expect(r"s, (\d+) underruns, (\d+) xruns")
        assert player.end() == 0
    said |= {"underruns": int(counted[1]), "xruns": int(counted[2]), "saved": saved, "captured": np.fromfile(out, np.float32)}
    return said


@needs("jackd", "jack/jack.h")
def test_jack_plays_the_streams_samples(model: embed.Model, bundle: Path, tmp_path: Path) -> None:
    """Fault: samples lost, doubled or changed on the way to another client, silence that is not counted, a prompt that is not taken as
    typed, or heard from another second on than was said."""
    with hosts.Jack() as server:
        played = play_live(bundle, tmp_path, 4, [(0, "12 bar blues"), (0.5, MIXTURE)], server, "ahead_s=0.5")
    saved = json.loads(played["saved"].read_text())
    assert saved["prompt"] == [["12 bar blues", 1.0]]
    assert saved["changes"][0]["prompt"] == [["calm piano", pytest.approx(0.3)], ["loud drums", pytest.approx(0.7)]]
    captured = played["captured"]
    music = read(model.resume(played["saved"], 0), len(captured))
    followed = hosts.follow(captured, music, BLOCK)
    assert followed.captured == len(captured) and followed.lacked <= played["underruns"], (followed, played)
    unchanged = read(model.stream("12 bar blues", **LIVE | {"ahead_s": 0.5, "output_rate": 48000}), len(captured))
    assert is_heard_from(played["heard"][0], hosts.follow(captured, unchanged, BLOCK), 48000)


@needs("jackd", "jack/jack.h")
def test_jack_says_what_is_wrong(bundle: Path, tmp_path: Path) -> None:
    """Fault: a server that is not there or a bundle that is none ends in silence or a crash; a refused prompt ends the music."""
    environment = hosts.FREEDOM | {"JACK_DEFAULT_SERVER": "nowhere"}
    with hosts.Program(embed.built() / "jack", bundle, environment=environment) as player:
        player.expect("No JACK server is running")
        assert player.end() == 1
    with hosts.Jack() as server:
        with hosts.Program(embed.built() / "jack", tmp_path, environment=server.environment) as player:
            player.expect("bad bundle: .*is not a bundle")
            assert player.end() == 1
        with hosts.Program(embed.built() / "jack", bundle, environment=server.environment) as player:
            for line, answer in (("", "holds no token"), ("save x.json", "must not be NULL"), ("x", "first sound"), ("", "holds no token")):
                player.say(line)
                player.expect(answer)
            player.say("quit")
            player.expect("s, .* underruns")
            assert player.end() == 0


@pytest.mark.nightly
@needs("jackd", "jack/jack.h")
@pytest.mark.skipif(not DEMO.is_dir(), reason="make demo makes the bundle that is played here")
def test_a_minute_of_the_demo(library, tmp_path: Path) -> None:
    """Fault: an interruption, or another sound than the stream's, in a minute with prompts changed meanwhile."""
    prompts = [(0, "calm solo piano"), (8, "brass band"), (20, MIXTURE), (33, "fast drums"), (45, "calm solo piano")]
    with hosts.Jack(waits=False) as server:
        played = play_live(DEMO, tmp_path, 60, prompts, server)
    print({name: value for name, value in played.items() if name not in ("captured", "saved")})
    assert len(played["heard"]) == len(prompts) - 1 and (played["underruns"], played["xruns"], played["late"]) == (0, 0, 0)
    captured, opened = played["captured"], embed.Model(library, DEMO, threads=None)
    followed = hosts.follow(captured, read(opened.resume(played["saved"], 0), len(captured)), BLOCK)
    opened.close()
    assert followed.captured == len(captured) and followed.music > 58 * 48000 and not followed.lacked, followed


@needs("sord_validate", "lv2/core/lv2.h")
def test_lv2_description() -> None:
    """Fault: ports, parameters or presets that are not valid LV2, or that its page does not list."""
    folder = embed.built() / "musiclm.lv2"
    page = (embed.SOURCE / "examples" / "lv2" / "README.md").read_text()
    listed = re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| `")))
    assert listed == re.findall(r'lv2:symbol "(\w+)"', (folder / "musiclm.ttl").read_text())
    done = subprocess.run(["lv2_validate", folder / "manifest.ttl", folder / "musiclm.ttl"], capture_output=True, text=True)
    assert done.returncode == 0 and "Found 0 errors" in done.stdout + done.stderr, done.stdout + done.stderr


@needs("lv2apply", "lv2/core/lv2.h")
def test_lv2_offline(model: embed.Model, plugin: Path, tmp_path: Path) -> None:
    """Fault: seed, guidance or gain without effect, channels that differ, a render that does not wait for the music, a folder that
    cannot be moved."""
    soundfile.write(tmp_path / "in.wav", np.zeros(16000, np.float32), 16000, subtype="FLOAT")
    controls = {"play": 1, "freewheel": 1, "seed": 5, "guidance": 5, "gain": -6, "ahead": 0.75}
    given = [part for name, value in controls.items() for part in ("-c", name, str(value))]
    command = ["lv2apply", "-i", tmp_path / "in.wav", "-o", tmp_path / "out.wav", *given, "urn:musiclm:player"]
    environment = {name: value for name, value in hosts.ENVIRONMENT.items() if name != "MUSICLM_ONNXRUNTIME"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment | {"LV2_PATH": f"{plugin.parent}:/usr/lib/lv2"})
    assert done.returncode == 0 and not done.stderr, done.stderr
    audio, rate = soundfile.read(tmp_path / "out.wav", dtype="float32")
    options = LIVE | {"seed": 5, "coarse.cond_scale": 5, "ahead_s": 0.75}
    music = read(model.stream("calm piano", **options), len(audio))
    assert rate == 16000 and audio.shape == (16000, 2) and np.array_equal(audio[:, 0], audio[:, 1])
    expected = music * np.float32(10 ** (-6 / 20))
    np.testing.assert_allclose(audio[1:, 0], expected[1:], rtol=1e-6)  # powf is not numpy's power; the first frame is the ramp's
    for name in ("seed", "coarse.cond_scale"):  # else they would not be seen to have an effect
        without = {option: value for option, value in options.items() if option != name}
        assert not np.array_equal(read(model.stream("calm piano", **without), len(audio)), music)


@needs("lv2/core/lv2.h")
def test_lv2_messages_and_state(model: embed.Model, plugin: Path, bundle: Path, tmp_path: Path) -> None:
    """Fault: `run` allocates or locks; a message that is not taken, or answered with another text; a state that is not what was set;
    an error that is not in the log, or that stays; a stream that outlives its instance."""
    out = tmp_path / "out.f32"
    done = subprocess.run(
        [embed.built() / "lv2_host", plugin, bundle, out], capture_output=True, text=True, env=hosts.ENVIRONMENT, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    wrong = next(index for index, line in enumerate(lines) if line.startswith("log Error: musiclm: /nowhere is not a bundle"))
    expected = [
        *("told bundle /nowhere", "status 3"),
        *(f"told bundle {bundle}", "told prompt 12 bar blues", "status 2", "told prompt loud drums", "heard 1", "told prompt loud drums"),
        *("stored prompt String loud drums", f"stored bundle Path {bundle}"),
        "log Warning: musiclm: this host has no worker; it sounds only where the host renders offline.",
        *("told prompt loud drums", f"told bundle {bundle}"),
    ]
    assert [line for index, line in enumerate(lines) if index != wrong] == expected
    music = read(model.stream("loud drums", **LIVE | {"ahead_s": 0.5}), 62 * 256)
    assert np.fromfile(out, np.float32).tobytes() == music.tobytes()


STATE = """@prefix atom: <http://lv2plug.in/ns/ext/atom#> .
@prefix lv2: <http://lv2plug.in/ns/lv2core#> .
@prefix pset: <http://lv2plug.in/ns/ext/presets#> .
@prefix state: <http://lv2plug.in/ns/ext/state#> .
<> a pset:Preset ; lv2:appliesTo <urn:musiclm:player> ;
  lv2:port [ lv2:symbol "ahead" ; pset:value 0.5 ] , [ lv2:symbol "seed" ; pset:value 3.0 ] ;
  state:state [ <urn:musiclm:player#prompt> "12 bar blues" ; <urn:musiclm:player#bundle> "BUNDLE"^^atom:Path ] .
"""


def monitor(jalv: hosts.Program, port: str) -> float:
    """Return what a port of the plug-in shows."""
    jalv.say("monitors")
    return float(jalv.expect(rf"\b{port} = (\S+)")[1])


@needs("jackd", "jalv", "jack/jack.h", "lv2/core/lv2.h")
def test_lv2_live(model: embed.Model, plugin: Path, bundle: Path, tmp_path: Path) -> None:
    """Fault: a state that is not restored, a prompt of a preset that is not heard or from another second on than was said, samples lost or
    changed while bundle and prompt change in the worker."""
    (plugin / "bundle").unlink()  # the state names it
    state = tmp_path / "state"
    state.mkdir()
    (state / "state.ttl").write_text(STATE.replace("BUNDLE", str(bundle)))
    with hosts.Jack() as server:
        environment = server.environment | {"LV2_PATH": f"{plugin.parent}:/usr/lib/lv2"}
        host = ["stdbuf", "-oL", "jalv", "-n", "player", "-l", state, "urn:musiclm:player"]
        with hosts.Program(*host, environment=environment) as jalv:
            out = tmp_path / "out.f32"
            jalv.expect("seed = 3")
            capture = hosts.Program(embed.built() / "capture", out, 4 * 48000, "player:left", environment=environment)
            with capture:
                capture.expect("connected")
                jalv.say("play = 1")
                assert eventually(lambda: monitor(jalv, "buffered") > 0)  # before, another prompt is heard from the beginning
                assert monitor(jalv, "status") == 2
                jalv.say("preset urn:musiclm:player#piano")
                assert eventually(lambda: monitor(jalv, "heard_from") > 0)
                heard = monitor(jalv, "heard_from")
                capture.expect("frames")
            underruns = monitor(jalv, "underruns")
    captured = np.fromfile(out, np.float32)
    options = LIVE | {"seed": 3, "ahead_s": 0.5, "output_rate": 48000}
    unchanged = read(model.stream("12 bar blues", **options), len(captured))
    followed = hosts.follow(captured, unchanged, BLOCK)
    assert is_heard_from(heard, followed, 48000) and followed.lacked <= underruns, (heard, followed, underruns)


PATCH = """#N canvas 0 0 500 500 12;
#X obj 0 0 r music;
#X obj 0 30 musiclm~ BUNDLE;
#X obj 0 60 tabwrite~ kept;
#X obj 200 60 print musiclm;
#X obj 200 0 table kept FRAMES;
#X obj 200 30 r disk;
#X obj 200 45 soundfiler;
#X obj 0 90 loadbang;
#X obj 0 110 t b b;
#X msg 0 200 \\; WAIT pd dsp 1 \\; music option ahead_s 0.5 \\; music seed 9 \\; music prompt 12 bar blues \\; music play;
#X obj 100 110 del CHANGE;
#X msg 100 140 \\; music prompt MIXTURE;
#X obj 200 110 del END;
#X msg 200 140 \\; music save saved.json \\; disk write -wave -bytes 4 out.wav kept;
#X obj 300 110 del QUIT;
#X msg 300 140 \\; pd quit;
#X obj 100 90 s start;
#X obj 100 70 r start;
#X connect 0 0 1 0;
#X connect 1 0 2 0;
#X connect 1 1 3 0;
#X connect 5 0 6 0;
#X connect 7 0 8 0;
#X connect 8 0 16 0;
#X connect 8 1 9 0;
#X connect 10 0 11 0;
#X connect 12 0 13 0;
#X connect 14 0 15 0;
#X connect 17 0 10 0;
#X connect 17 0 12 0;
#X connect 17 0 14 0;
#X connect 17 0 2 0;
"""


@needs("pd", "pd/m_pd.h")
@pytest.mark.parametrize("mode", ["-batch", "-noaudio"])
def test_pd_plays_the_streams_samples(mode: str, model: embed.Model, bundle: Path, tmp_path: Path) -> None:
    """Fault: other samples than the stream's, a batch that does not wait for the music, messages that are lost, or taken in another
    order."""
    words = {"WAIT": "music wait 1 \\;" if mode == "-batch" else "", "BUNDLE": bundle, "MIXTURE": MIXTURE}
    words |= {"FRAMES": 3 * 16000, "CHANGE": 600, "END": 3100, "QUIT": 3400}
    patch = PATCH
    for name, value in words.items():
        patch = re.sub(rf"\b{name}\b", lambda _, value=value: str(value), patch)
    (tmp_path / "test.pd").write_text(patch)
    command = ["pd", "-nogui", mode, "-noprefs", "-stderr", "-r", "16000", "-path", embed.built() / "pd", "-open", tmp_path / "test.pd"]
    done = subprocess.run(command, capture_output=True, text=True, env=hosts.ENVIRONMENT, timeout=60)
    said = done.stderr
    assert done.returncode == 0 and all(f"musiclm: {word}" in said for word in ("opened 16000", "playing", "sounds", "saved")), said
    heard = float(re.findall(r"musiclm: heard_from (\S+)", said)[0])
    audio, _ = soundfile.read(tmp_path / "out.wav", dtype="float32")
    music = read(model.resume(tmp_path / "saved.json", 0), len(audio))
    followed = hosts.follow(audio, music, 64)
    saved = json.loads((tmp_path / "saved.json").read_text())
    assert saved["options"]["seed"] == "9" and saved["prompt"] == [["12 bar blues", 1.0]] and len(saved["changes"][0]["prompt"]) == 2
    underruns = [0, *map(int, re.findall(r"musiclm: underruns (\d+)", said))][-1]
    assert followed.captured == len(audio) and followed.lacked <= underruns and (mode != "-batch" or followed.music == len(audio)), followed
    unchanged = read(model.stream("12 bar blues", **LIVE | {"ahead_s": 0.5, "seed": 9}), len(audio))
    assert is_heard_from(heard, hosts.follow(audio, unchanged, 64), 16000)


@needs("pd", "pd/m_pd.h")
def test_pd_says_what_is_wrong(tmp_path: Path) -> None:
    """Fault: a help patch that does not open; a bundle that is none, or an option that there is not, without a word."""
    folder = embed.built() / "pd"
    objects = "".join(f"#X obj 0 {30 * index} {name};\n" for index, name in enumerate(("r music", "musiclm~", "print musiclm")))
    (tmp_path / "test.pd").write_text(f"#N canvas 0 0 9 9 12;\n{objects}#X connect 0 0 1 0;\n#X connect 1 1 2 0;\n")
    sent = ["music wait 1", "music option tempo 120", "music open nowhere", "music play", "pd quit"]
    command = ["pd", "-nogui", "-batch", "-noprefs", "-stderr", "-path", folder, "-open", folder / "musiclm~-help.pd"]
    command += ["-open", tmp_path / "test.pd", *(part for line in sent for part in ("-send", line))]
    done = subprocess.run(command, capture_output=True, text=True, env=hosts.ENVIRONMENT, timeout=60)
    assert done.returncode == 0 and "couldn't create" not in done.stderr, done.stderr
    for message in ('there is no option "tempo"', "nowhere is not a bundle", "model must not be NULL"):
        assert message in done.stderr, done.stderr
