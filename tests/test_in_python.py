"""A clip as a Python prompt, a notebook and the command line show it: short, whole, and with one number for one thing."""

import base64
import io
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from support.requests import ask

from musiclm_deploy.cli import make_parser
from musiclm_deploy.runtime.bundle import Bundle
from musiclm_deploy.runtime.description import describe
from musiclm_deploy.runtime.music import Candidate, Music, Tokens

SHORT = {"seconds": 0.1, "seed": 3}


@pytest.fixture(scope="module")
def song(music) -> Music:
    """The better of two candidates."""
    return music.generate("calm piano", num_samples=2, **SHORT)


def test_what_a_prompt_shows(music, song) -> None:
    """Fault: thousands of samples and tokens on the screen of whoever types `song`."""
    assert repr(song) == f"Music('calm piano', 0.1 s at 16000 Hz, seed 3, best of 2 with score {song.candidates[song.best].score:.3f})"
    assert re.fullmatch(r"Tokens\(semantic \[\d+\], coarse \[\d+, 2\], fine \[\d+, 3\]\)", repr(song.tokens))
    assert repr(song.candidates[0]) == f"Candidate(1600 samples, score {song.candidates[0].score:.3f}, {song.candidates[0].tokens!r})"
    long = Tokens(np.zeros(900, np.int64), np.zeros((500, 3), np.int64), None, np.array([[0, 500], [400, 900]]))
    assert repr(long) == "Tokens(semantic [900], coarse [500, 3], 2 windows)"
    assert len(repr(replace(song, prompt="piano " * 999))) < 200
    assert repr(Candidate(np.zeros(7, np.float32), long, None)) == f"Candidate(7 samples, {long!r})"
    assert repr(music).startswith(f"MusicLM({str(music.bundle.root)!r}, device 'cpu', steps ")
    assert repr(music.bundle) == f"Bundle({str(music.bundle.root)!r}, SHA-256 {music.bundle.sha256[:12]}...)"


def test_what_a_notebook_shows(song) -> None:
    """Fault: a player of another wave, one that clips or overflows; a prompt that is read as HTML."""
    hostile = replace(song, prompt="<script>\"calm\" & 'loud'</script>")
    shown = hostile._repr_html_()
    (data,) = re.findall(r'<audio controls src="data:audio/wav;base64,([\w+/=]+)"></audio>', shown)
    wave, hz = soundfile.read(io.BytesIO(base64.b64decode(data)), dtype="float32")
    assert hz == song.sample_rate
    np.testing.assert_allclose(wave, song.audio / max(np.abs(song.audio).max(), 1), rtol=0, atol=2 / 2**15)  # 16 bits
    caption = "&lt;script&gt;&quot;calm&quot; &amp; &#x27;loud&#x27;&lt;/script&gt; (0.1 s, seed 3, best of 2)"
    assert f"<figcaption>{caption}</figcaption>" in shown and "<script" not in shown
    loud = replace(song, candidates=[replace(song.candidates[0], audio=np.array([0, 4, -2], np.float32))], best=0)
    (data,) = re.findall(r"base64,([\w+/=]+)", loud._repr_html_())
    assert np.round(soundfile.read(io.BytesIO(base64.b64decode(data)))[0], 3).tolist() == [0, 1, -0.5]


def test_bars(music, capsys) -> None:
    """Fault: no bars in a notebook, whose standard error is no terminal; a stage without one; bars that nobody asked for."""
    music.generate("x", num_samples=2, progress=True, **SHORT)
    shown = capsys.readouterr().err
    assert all(re.search(rf"{stage} *: 100%", shown) for stage in ("semantic", "coarse", "fine", "codec", "rank"))
    music.generate("x", progress=False, **SHORT)
    assert capsys.readouterr().err == ""


def test_speed_with_candidates(song, music) -> None:
    """Fault: candidates that are thrown away make a request look faster than the clip that is kept came."""
    made, kept = song.timings["real_time_factor_made"], song.timings["real_time_factor_kept"]
    assert kept == pytest.approx(song.timings["total"] / 0.1) and made == pytest.approx(kept / 2)
    assert song.speed == f"real-time factor {made:.2f} of all audio made, {kept:.2f} of the audio kept"
    alone = music.generate(["x", "y"], **SHORT)[1]
    assert alone.timings["real_time_factor_made"] == alone.timings["real_time_factor_kept"] == pytest.approx(alone.timings["total"] / 0.2)
    assert alone.speed == f"real-time factor {alone.timings['real_time_factor_kept']:.2f}"
    assert sum(song.stage_seconds.values()) <= song.timings["total"] and "total" not in song.stage_seconds


@pytest.mark.parametrize(
    ("tokens_per_second", "coarse", "fine", "frames", "window"),
    [(50.0, 40, 30, 30, "40"), (40.0, 100, 100, 98, "98 (of 100 trained)"), (40.0, 90, 120, 90, "90")],
)
def test_a_default_clip_has_one_length(tiny_bundle, tokens_per_second, coarse, fine, frames, window) -> None:
    """Fault: `inspect` promises a clip and a window that `generate` does not make or refuses. At 0.8 tokens a frame 80 semantic tokens do
    not cover every window of 100 frames."""
    opened = Bundle.open(tiny_bundle)
    lengths = {"semantic": 80, "coarse": coarse, "fine": fine}
    decoders = {stage: replace(getattr(opened.manifest, stage), max_length=length) for stage, length in lengths.items()}
    manifest = replace(opened.manifest, **decoders, unique_consecutive=False, semantic_tokens_per_second=tokens_per_second)
    request = ask(manifest)
    said = describe(Bundle(opened.root, manifest, opened.sha256))
    assert request.frames == frames and f"a default clip: {frames / 50:.2f} s, {frames} frames" in said
    assert re.search(rf"^  coarse .*, window {re.escape(window)}$", said, re.MULTILINE)


@pytest.mark.parametrize("words", [["-v", "inspect", "b"], ["inspect", "-v", "b"], ["inspect", "b", "--verbose"], ["inspect", "b"]])
def test_verbose_before_or_after(words) -> None:
    """Fault: `musiclm generate -v` is refused; an option before the command that the command's own default undoes."""
    assert make_parser().parse_args(words).verbose == (len(words) == 3)


def test_as_a_module() -> None:
    """Fault: `python -m musiclm_deploy` is no command."""
    done = subprocess.run([sys.executable, "-m", "musiclm_deploy", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()[0], done.stderr) == (0, "musiclm-deploy", "")
