"""The command line, as a user meets it: what it writes and prints, its exit statuses, and one sentence instead of a traceback."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support.clips import WIDE, same_samples

import musiclm_deploy as md
from musiclm_deploy import cli
from musiclm_deploy.runtime import memory, musiclm
from musiclm_deploy.runtime.bundle import MANIFEST, Bundle
from musiclm_deploy.runtime.step import choose_step

COMMAND = [sys.executable, "-m", "musiclm_deploy.cli"]
EXPORT = ["export", "--semantic", "s.pt", "--coarse", "c.pt", "--fine", "f.pt", "--codec", "k.pt", "--out", "bundle"]


# --- generate


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "opus", "mp3", "WAV"])
def test_generate(run, tiny_bundle, tmp_path, suffix):
    """The file has exactly the samples asked for, the codec's rate and one channel; and nothing else is left beside it."""
    status, out, err = run("generate", tiny_bundle, "calm piano", "-o", f"a.{suffix}", "--seconds", "0.1001", "--seed", 3)
    assert (status, err) == (0, "")
    assert out.startswith(f"a.{suffix}: 0.100125 s at 16000 Hz\n") and "real-time factor" in out
    wave, hz = soundfile.read(f"a.{suffix}")
    assert wave.shape == (1602,) and hz == 16000 and np.isfinite(wave).all() and wave.std() > 0
    assert os.listdir(tmp_path) == [f"a.{suffix}"]
    with soundfile.SoundFile(f"a.{suffix}") as file:
        comment = json.loads(file.comment)
    assert (comment["prompt"], comment["seed"], comment["bundle_sha256"]) == ("calm piano", 3, Bundle.open(tiny_bundle).sha256)


def test_longer_than_the_trained_window(run, tiny_bundle):
    """Two windows of every token stage, and two chunks of the codec: exactly as long as asked, its tokens read again."""
    options = ["--seconds", 10.5001, "--max-semantic-tokens", 9, "--json"]
    status, out, err = run("generate", tiny_bundle, "x", "-o", "a.wav", "--save-tokens", "t.npz", *options)
    assert (status, err) == (0, "") and json.loads(out)["seconds"] == 168002 / 16000
    status, out, _ = run("generate", tiny_bundle, "x", "-o", "b.wav", "--tokens", "t.npz", "--seconds", 10.5001)
    assert status == 0 and same_samples("a.wav", "b.wav")


def test_windows(run, tiny_bundle, music):
    """Both numbers of --window reach their stage, in that order: the file is that of the Python API, and not that of one window."""
    options = ["--seconds", 0.6, "--max-semantic-tokens", 9, *WIDE]
    windows = ["--window", "coarse=16:4", "--window", "fine=8", "--window", "semantic=:2"]
    for name, given in (("a", windows), ("b", [])):
        status, _, err = run("generate", tiny_bundle, "x", "-o", f"{name}.wav", "--save-tokens", f"{name}.npz", *options, *given)
        assert status == 0, err
    wide = dict.fromkeys(("semantic", "coarse", "fine"), md.SamplingConfig(filter_thres=0.2))
    same = {"coarse": md.Window(16, 4), "fine": md.Window(8), "semantic": md.Window(overlap=2)}
    expected = music.generate("x", seconds=0.6, max_semantic_tokens=9, sampling=wide, windows=same)
    with np.load("a.npz") as windowed, np.load("b.npz") as whole:
        assert all((windowed[f"{i}.fine"] == item.tokens.fine).all() for i, item in enumerate(expected.candidates))
        assert not np.array_equal(windowed["0.fine"], whole["0.fine"])


def test_same_seed_same_file(run, tiny_bundle):
    """Byte for byte; another seed gives other music."""
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        status, _, err = run("generate", tiny_bundle, "x", "-o", f"{name}.wav", "--seconds", 0.2, "--seed", seed, *WIDE)
        assert status == 0, err
    assert Path("a.wav").read_bytes() == Path("b.wav").read_bytes()
    assert (soundfile.read("a.wav")[0] != soundfile.read("c.wav")[0]).any()


def test_json(run, tiny_bundle):
    """Standard output is one JSON object and nothing else, for a script to read."""
    status, out, _ = run("generate", tiny_bundle, "x", "-o", "a.wav", "--seconds", 0.05, "--seed", 9, "--json")
    facts = json.loads(out)
    assert status == 0 and out.count("\n") == 1
    assert facts["files"] == ["a.wav"] and (facts["seconds"], facts["sample_rate"], facts["seed"]) == (0.05, 16000, 9)
    assert facts["best"] == 0 and facts["scores"] == [None] and facts["bundle_sha256"] == Bundle.open(tiny_bundle).sha256
    assert {"mulan", "semantic", "coarse", "fine", "codec", "total", "real_time_factor_made", "real_time_factor_kept"} <= facts[
        "timings"
    ].keys()


def test_all_candidates(run, tiny_bundle, tmp_path):
    """--all writes each candidate under its number, and the best once more under the name that was asked for."""
    arguments = ["-o", "a.b.wav", "--seconds", 0.2, "--num-samples", 3, "--all", "--json", *WIDE]
    facts = json.loads(run("generate", tiny_bundle, "x", *arguments)[1])
    assert facts["files"] == ["a.b.wav", "a.b-1.wav", "a.b-2.wav", "a.b-3.wav"]
    assert sorted(os.listdir(tmp_path)) == sorted(facts["files"])
    assert facts["best"] == int(np.argmax(facts["scores"])) and len(facts["scores"]) == 3
    waves = [Path(name).read_bytes() for name in facts["files"]]
    assert waves[0] == waves[1 + facts["best"]] and len(set(waves)) == 3


def test_tokens_again(run, tiny_bundle):
    """From saved tokens comes the same file, to the bit; and nothing is generated on the way."""
    common = ["generate", tiny_bundle, "x", "--seconds", 0.2, "--json", *WIDE, "-o"]
    first = json.loads(run(*common, "a.wav", "--num-samples", 2, "--all", "--save-tokens", "t.npz")[1])
    assert first["files"][-1] == "t.npz"
    again = json.loads(run(*common, "b.wav", "--all", "--tokens", "t.npz")[1])
    assert same_samples("a.wav", "b.wav") and same_samples("a-2.wav", "b-2.wav")
    assert again["scores"] == first["scores"] and not {"semantic", "coarse", "fine"} & again["timings"].keys()


def test_sampling_options(run, tiny_bundle):
    """A value for one stage goes before a value for all, whatever their order: here fine samples, after greedy stages."""
    waves = []
    for options in (
        ["--temperature", 0, "--seed", 1],
        ["--temperature", 0, "--seed", 2],
        ["--temperature", 0, "--temperature", "fine=1", "--seed", 2],
        ["--temperature", "fine=1", "--temperature", 0, "--cond-scale", 3, "--filter-thres", "semantic=0.9", "--seed", 2],
    ):
        status, _, err = run("generate", tiny_bundle, "x", "-o", "a.wav", "--seconds", 0.2, *WIDE, *options)
        assert status == 0, err
        waves.append(soundfile.read("a.wav")[0])
    assert (waves[0] == waves[1]).all() and (waves[1] != waves[2]).any() and (waves[2] == waves[3]).all()


def test_without_torch(tiny_bundle, tmp_path):
    """A user's machine has no torch and no onnx: neither is imported on the way from a text to a file."""
    code = "import sys; sys.modules.update(torch=None, onnx=None); from musiclm_deploy.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["generate", str(tiny_bundle), "x", "-o", "a.wav", "--seconds", "0.1", "--num-samples", "2", "--save-tokens", "t.npz"]
    result = subprocess.run([sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert sorted(os.listdir(tmp_path)) == ["a.wav", "t.npz"]


def test_standard_output(tiny_bundle, tmp_path, capfdbinary):
    """`-o - | aplay`: fault: a word among the samples, or a wav other than the one that a file would be."""
    request = [tiny_bundle, "x", "--seconds", 0.1, "--json"]
    status = cli.main(["generate", *map(str, request), "-o", "-"])
    out, err = capfdbinary.readouterr()
    assert status == 0 and json.loads(err)["files"] == ["standard output"]
    assert cli.main(["generate", *map(str, request), "-o", str(tmp_path / "a.wav")]) == 0
    assert out == (tmp_path / "a.wav").read_bytes()


def test_standard_output_that_is_a_terminal(never_loads, tmp_path):
    """Fault: a screen full of samples."""
    parent, child = os.openpty()
    command = [*COMMAND, "generate", "bundle", "x", "-o", "-"]
    result = subprocess.run(command, cwd=tmp_path, stdout=child, stderr=subprocess.PIPE, text=True)
    os.close(child)
    os.close(parent)
    advice = "Pipe it (| aplay), redirect it, or give -o FILE."
    assert (result.returncode, result.stderr) == (1, f"musiclm: -o -: standard output is a terminal, which shows no sound. {advice}\n")


# --- inspect


def test_inspect(run, tiny_bundle):
    """What a user wants to know of a bundle: sizes, versions, its hash, its measured errors."""
    status, out, err = run("inspect", tiny_bundle)
    manifest = Bundle.open(tiny_bundle).manifest
    assert (status, err) == (0, "")
    for part in (
        "a default clip: 10.24 s, 512 frames, at 16000 Hz",
        Bundle.open(tiny_bundle).sha256,
        "vocabulary 20",
        "cross-attention",
        "5 quantizers of 13",
        "steps     native: " if choose_step("auto").native else "steps     graph: ",
    ):
        assert part in out
    assert all(stage in out and f"{error:.1e}" in out for stage, error in manifest.errors.items())


def test_inspect_json(run, tiny_bundle):
    """The manifest as it is on disk."""
    assert run("inspect", tiny_bundle, "--json") == (0, (tiny_bundle / MANIFEST).read_text(encoding="utf-8"), "")


# --- help


@pytest.mark.parametrize("command", [[], ["generate"], ["inspect"], ["export"]])
def test_help(run, command):
    """Every command explains itself, and every option has its line."""
    status, out, err = run(*command, "--help")
    assert (status, err) == (0, "") and out.startswith(f"usage: musiclm {' '.join(command)}".strip())
    text = " ".join(out.split())
    for line in re.findall(r"^  (--?[a-z][^\n]*)", out, re.M):
        assert len(line.split()) > 1 or text.count(line) > 1, line
    if not command:
        assert "generate" in out and "inspect" in out and "export" in out and "calm piano in a ballroom" in out


def test_version(run):
    """The version alone, for bug reports."""
    assert run("--version") == (0, f"musiclm-deploy {md.__version__}\n", "")


def test_installed_command(tiny_bundle):
    """The script that installing puts beside Python is this command line."""
    script = Path(sys.executable).parent / "musiclm"
    if not script.exists():
        pytest.skip("musiclm-deploy is not installed here")
    assert subprocess.run([script, "--version"], capture_output=True, text=True).stdout == f"musiclm-deploy {md.__version__}\n"


def test_export_all(tmp_path):
    """The one command after training is `musiclm export`, from any folder."""
    script = Path(__file__).resolve().parent.parent / "export_all.py"
    result = subprocess.run([sys.executable, script, *EXPORT[1:], "--quantizer", "q.pt"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1 and result.stderr.endswith("musiclm: --semantic s.pt: there is no such file.\n")


# --- refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "a.aac"], "cannot write a.aac: the suffix must be .wav, .flac, .ogg, .opus or .mp3, got .aac."),
        (["-o", "a"], "cannot write a: the suffix must be .wav, .flac, .ogg, .opus or .mp3, got none."),
        (["-o", "nowhere/a.wav"], "cannot write nowhere/a.wav: nowhere is not a directory."),
        (["-o", "folder.wav"], "cannot write folder.wav: it is a directory."),
        (["--save-tokens", "t.txt"], "cannot write t.txt: tokens are saved as .npz."),
        (["--save-tokens", "nowhere/t.npz"], "cannot write nowhere/t.npz: nowhere is not a directory."),
        (["-o", "a.wav", "--all", "--num-samples", "2"], "cannot write a-2.wav: it is a directory."),
        (["--sample-rate", "100"], "the sample rate of a file must be a whole number from 4000 to 384000 Hz, got 100."),
        (
            ["--normalize", "14"],
            "the loudness to normalize to must be above -70 and at most 0 LUFS, got 14.0. "
            "Streaming services play at -14, broadcasters at -23.",
        ),
        (
            ["-o", "a.opus", "--sample-rate", "44100"],
            "cannot write a.opus: OPUS takes 8000, 12000, 16000, 24000 or 48000 Hz, got 44100 Hz. Ask for another rate with --sample-rate "
            "(sample_rate= in Python), or write another format.",
        ),
        (["-o", "-", "--all"], "--all writes files named after --out, and standard output is not a file. Give -o FILE."),
        (["-o", "/dev/null", "--all"], "--all writes files named after --out, and /dev/null is not a file. Give -o FILE."),
    ],
)
def test_outputs_are_checked_first(run, never_loads, tmp_path, arguments, message):
    """A name that cannot be written is refused before minutes are spent on what goes into it."""
    for name in ("folder.wav", "a-2.wav"):
        (tmp_path / name).mkdir()
    assert run("generate", "bundle", "x", *arguments) == (1, "", f"musiclm: {message}\n")
    assert sorted(os.listdir(tmp_path)) == ["a-2.wav", "folder.wav"]


@pytest.mark.parametrize("option", ["--prime", "--audio"])
def test_a_sound_is_not_replaced_by_default(run, never_loads, option):
    """Fault: `--prime out.wav` without -o replaces the sound that it continues."""
    soundfile.write("out.wav", np.zeros(8000), 16000)
    before = Path("out.wav").read_bytes()
    status, out, err = run("generate", "bundle", "x", option, "out.wav")
    said = f"out.wav, where the music goes by default, is the sound of {option}. Give another name with -o FILE."
    assert (status, out, err) == (1, "", f"musiclm: {said}\n") and Path("out.wav").read_bytes() == before


def test_a_file_that_does_not_fit_in_memory(run, tiny_bundle, monkeypatch):
    """Fault: minutes of tokens, and then no memory for the file at its rate."""
    monkeypatch.setattr(memory, "least_memory", lambda: memory.MemoryLimit(1 << 30, "a limit"))
    status, _, err = run("generate", tiny_bundle, "x", "--seconds", 600, "-o", "a.flac", "--sample-rate", 384000)
    assert status == 1 and err.startswith("musiclm: the file stage of this request needs 2304.0 MB, 1073.7 MB are free.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seconds", "0"], "seconds must be a number above 0"),
        (["--seconds", "nan"], "seconds must be a number above 0"),
        (["--seconds", "1e308"], "seconds must be a number above 0 and below 1e9, got 1e+308."),
        (["--seconds", "60", "--compat", "upstream"], "needs 3000 frames, but the window of the model has 512. Ask for at most 10.24 s"),
        (["--seed", "-1"], "a seed must be a whole number from 0 to 2**64 - 1, got -1."),
        (["--num-samples", "0"], "num_samples must be a whole number of at least 1, got 0."),
        (["--max-semantic-tokens", "9999"], "max_semantic_tokens must be from 0 to 2048"),
        (["--temperature", "-1"], "temperature must be 0"),
        (["--filter-thres", "fine=1"], "filter_thres must be in [0, 1), got 1.0."),
        (["--temperature", "codec=1"], "sampling has the stages semantic, coarse, fine, got 'codec'."),
        (["--cond-scale", "fine=2"], "cond_scale has no effect on the fine stage"),
        (["--window", "fine=100:20"], "fine windows do not overlap, got an overlap of 20. Leave it out."),
        (["--window", "coarse=513"], "a coarse window of 513 frames is longer than the model's, which has 512."),
        (["--window", "coarse=0"], "a window's length must be a whole number of at least 1, got 0."),
        (["--window", "codec=9"], "windows has the stages semantic, coarse, fine, got 'codec'."),
        (["--window", "coarse=9", "--compat", "upstream"], "compat='upstream' knows no windows. Leave one of the two out."),
        (["--tokens", "missing.npz"], "missing.npz is not a file of tokens: "),
        (["--threads", "0"], "threads must be a whole number of at least 1, got 0."),
        (["--device", "cuda"], "device='cuda'"),
    ],
)
def test_refused_requests(run, tiny_bundle, tmp_path, arguments, message):
    """Exit status 1, one line on standard error that names the option's value, and an older file of that name untouched."""
    Path("a.wav").write_bytes(b"older")
    status, out, err = run("generate", tiny_bundle, "x", "-o", "a.wav", *arguments)
    assert (status, out) == (1, "") and err.startswith("musiclm: ") and err.count("\n") == 1 and message in err, err
    assert os.listdir(tmp_path) == ["a.wav"] and Path("a.wav").read_bytes() == b"older"


@pytest.mark.parametrize(
    ("text", "message"), [("", "holds no token"), ("la " * 300, "300 tokens"), ("caf\udce9", "holds bytes that are no text")]
)
def test_refused_texts(run, tiny_bundle, text, message):
    """Texts that MuLaN cannot take; the last is what Python makes of an argument that is not UTF-8."""
    status, out, err = run("generate", tiny_bundle, text, "--seconds", 0.1)
    assert (status, out) == (1, "") and message in err and err.count("\n") == 1
    assert not Path("out.wav").exists()


@pytest.mark.parametrize("command", ["generate", "inspect"])
def test_no_bundle(run, tmp_path, command):
    """A wrong path."""
    arguments = ["x"] if command == "generate" else []
    message = f"musiclm: {tmp_path} is not a bundle: it has no musiclm.json. Make one with export_all.py.\n"
    assert run(command, tmp_path, *arguments) == (1, "", message)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["compose"],
        ["generate"],
        ["generate", "bundle"],
        ["generate", "bundle", "x", "--seed", "abc"],
        ["generate", "bundle", "x", "--seconds", "long"],
        ["generate", "bundle", "x", "--device", "tpu"],
        ["generate", "bundle", "x", "--stop", "never"],
        ["generate", "bundle", "x", "--temprature", "1"],
        ["inspect"],
        ["export", "--semantic", "s.pt"],
    ],
)
def test_wrong_usage(run, never_loads, arguments):
    """Exit status 2, the usage and what is wrong with it."""
    status, out, err = run(*arguments)
    assert (status, out) == (2, "") and err.startswith("usage: musiclm") and "error: " in err


def test_a_text_without_quotes(run, never_loads):
    """A newcomer's first mistake, told as `unrecognized arguments: piano` alone."""
    for words in (["calm", "piano"], ["--seconds", "1", "calm", "piano"]):
        status, _, err = run("generate", "bundle", *words)
        assert status == 2 and err.endswith("error: unrecognized arguments: piano. A TEXT of several words needs quotes around it\n")


def test_wrong_stage_value(run, never_loads):
    """An option of our own form says what that form is."""
    status, _, err = run("generate", "bundle", "x", "--temperature", "fine=hot")
    assert status == 2 and err.endswith("argument --temperature: expected a number, or STAGE=number, got 'fine=hot'\n")


@pytest.mark.parametrize("text", ["coarse", "512:256", "coarse=", "coarse=:", "coarse=a", "coarse=1:2:3", "coarse=-5:2", "=5"])
def test_wrong_window(run, never_loads, text):
    """So does this one."""
    status, _, err = run("generate", "bundle", "x", "--window", text)
    form = "expected STAGE=LENGTH:OVERLAP, STAGE=LENGTH or STAGE=:OVERLAP, whole numbers"
    assert status == 2 and err.endswith(f"argument --window: {form}, got {text!r}\n")


# --- export


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--quantizer", "q.pt"], "--semantic s.pt: there is no such file."),
        (["--quantizer", "q.pt", "--quantizer", "p.pt"], "--quantizer p.pt: one for all stages was given already."),
        (["--quantizer", "fine=q.pt", "--quantizer", "fine=p.pt"], "--quantizer fine=p.pt: fine was given already."),
        (["--quantizer", "q.pt", "--config", "none.json"], "--config none.json cannot be read: No such file or directory."),
        (["--quantizer", "q.pt", "--config", "text.json"], "--config text.json: Expecting value"),
        (
            ["--quantizer", "q.pt", "--config", "latin.json"],
            "--config latin.json, line 1: byte 0xe9 is not UTF-8.",
        ),
        (["--quantizer", "q.pt", "--config", "utf16.json"], "the overrides name 'décoder'; known are semantic, coarse, fine"),
        (["--quantizer", "q.pt", "--config", "list.json"], "--config list.json: expected a JSON object, got list."),
        (["--quantizer", "q.pt", "--config", "unknown.json"], "the overrides name 'decoder'; known are semantic, coarse, fine"),
    ],
)
def test_refused_exports(run, tmp_path, arguments, message):
    """What can be refused at once is, with exit status 1, one line, and no folder left behind."""
    for name, content in (("text", "dim = 24"), ("list", "[]"), ("unknown", '{"decoder": {}}')):
        Path(f"{name}.json").write_text(content)
    Path("latin.json").write_bytes('{"é": {}}'.encode("latin-1"))
    Path("utf16.json").write_bytes('{"décoder": {}}'.encode("utf-16"))
    before = sorted(os.listdir(tmp_path))
    status, out, err = run(*EXPORT, "--quiet", *arguments)
    assert (status, out) == (1, "") and err.startswith("musiclm: ") and err.count("\n") == 1 and message in err, err
    assert sorted(os.listdir(tmp_path)) == before


def test_path_with_an_equals_sign(run, tiny_checkpoints, tmp_path):
    """Folders of experiments are called lr=0.1: only a stage's name before the sign makes it [STAGE=]FILE."""
    paths = [part for name, path in tiny_checkpoints.items() if name not in ("mulan", "quantizer") for part in (f"--{name}", path)]
    status, _, err = run("export", *paths, "--quantizer", "lr=0.1/q.pt", "--out", "bundle", "--quiet")
    assert status == 1 and "--quantizer lr=0.1/q.pt: there is no such file." in err


# --- the world around


def test_reader_that_is_gone(tiny_bundle, tmp_path):
    """`musiclm generate ... | head -0`: the file is written, and no complaint comes from Python's end."""
    command = [*COMMAND, "generate", str(tiny_bundle), "x", "--seconds", "0.05"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait() == 0
    assert os.listdir(tmp_path) == ["out.wav"]


def test_reader_of_a_sound_that_is_gone(tiny_bundle, tmp_path):
    """`musiclm generate ... -o - --save-tokens t.npz | true`: no complaint, and the tokens are there all the same."""
    command = [*COMMAND, "generate", str(tiny_bundle), "x", "--seconds", "0.05", "-o", "-", "--save-tokens", "t.npz"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait() == 1
    assert os.listdir(tmp_path) == ["t.npz"]


@pytest.mark.parametrize("closed", [[1], [2], [0, 1, 2]])
def test_closed_streams(tiny_bundle, tmp_path, closed):
    """Started by a daemon without one of its standard streams: Python has None in their place."""
    command = [*COMMAND, "generate", str(tiny_bundle), "x", "--seconds", "0.05"]
    process = subprocess.Popen(command, cwd=tmp_path, preexec_fn=lambda: [os.close(stream) for stream in closed])
    assert process.wait() == 0 and os.listdir(tmp_path) == ["out.wav"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_full_standard_output(tiny_bundle, tmp_path):
    """A report that cannot be written is a failure, said once."""
    full_disk = "cannot write standard output: no space is left on its disk. Free some, or write to another disk."
    for command in (["inspect", str(tiny_bundle)], ["generate", str(tiny_bundle), "x", "--seconds", "0.05", "-o", "-"]):
        with open("/dev/full", "w") as full:
            result = subprocess.run([*COMMAND, *command], stdout=full, stderr=subprocess.PIPE, text=True)
        assert (result.returncode, result.stderr) == (1, f"musiclm: {full_disk}\n")


def test_what_standard_output_cannot_show(tiny_bundle, tmp_path, monkeypatch):
    """Fault: a terminal without Japanese letters ends the command after the first of the files."""
    monkeypatch.chdir(tmp_path)
    Path("p.txt").write_text("日本の歌\nbrass band\n", encoding="utf-8")
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))
    assert cli.main(["generate", str(tiny_bundle), "--prompts", "p.txt", "--seconds", "0.05", *WIDE]) == 0
    assert sorted(os.listdir()) == ["out-1.wav", "out-2.wav", "p.txt"]
    assert rb"seed 0: \u65e5\u672c\u306e\u6b4c" in shown.getvalue() and b"brass band" in shown.getvalue()


@pytest.mark.parametrize(
    ("encoding", "errors", "name", "shown"),
    [
        ("ascii", "strict", "\u00fc.wav", rb"\xfc.wav: 0.05 s"),
        ("ascii", "surrogateescape", "\u00fc.wav", rb"\xfc.wav: 0.05 s"),
        ("cp1252", "strict", "\u65e5.wav", rb"\u65e5.wav: 0.05 s"),
        ("utf-8", "strict", os.fsdecode(b"\xe9.wav"), rb"\udce9.wav: 0.05 s"),
        ("ascii", "replace", "\u00fc.wav", b"?.wav: 0.05 s"),
    ],
)
def test_names_that_standard_output_cannot_show(tiny_bundle, tmp_path, monkeypatch, encoding, errors, name, shown):
    """Fault: the file is there, and the command fails while it says so. What the user has chosen for such characters stays."""
    monkeypatch.chdir(tmp_path)
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding=encoding, errors=errors))
    assert cli.main(["generate", str(tiny_bundle), "x", "-o", name, "--seconds", "0.05"]) == 0
    assert out.getvalue().startswith(shown) and os.listdir() == [name]


def test_json_that_standard_output_cannot_show(tiny_bundle, tmp_path, monkeypatch):
    """Fault: escapes that are Python's and not JSON's, or a checkpoint's name that ends the command."""
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle", copy_function=os.link))
    manifest = json.loads((bundle / MANIFEST).read_bytes())
    manifest["sources"]["codec"]["file"] = "\u00fc\U0001f3b7\udce9.pt"
    (bundle / MANIFEST).unlink()
    (bundle / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    for encoding in ("ascii", "cp1252", "utf-8"):
        out = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding=encoding))
        assert cli.main(["inspect", "--json", str(bundle)]) == 0
        assert json.loads(out.getvalue().decode(encoding))["sources"]["codec"]["file"] == "\u00fc\U0001f3b7\udce9.pt"


def test_what_the_system_says(run):
    """Fault: [Errno 36] in place of words, where no code of ours expects the error."""
    name = "a" * 300
    for command in (["inspect", name], ["generate", "bundle", "x", "-o", name], ["generate", "bundle", "x", "--prime", name]):
        assert run(*command) == (1, "", f"musiclm: {name}: file name too long.\n")


def test_interrupt(tiny_bundle, tmp_path):
    """Ctrl-C while tokens are generated: exit status 130, one sentence, no file."""
    command = [*COMMAND, "-v", "generate", str(tiny_bundle), "x", "--num-samples", "8", "--seconds", "120", "--save-tokens", "t.npz"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while "MB" not in (line := process.stderr.readline()):  # the memory that the request takes, said as it begins
        assert line, process.wait()
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    assert process.wait() == 130, rest
    assert rest.endswith("musiclm: interrupted; nothing half-written was left behind.\n") and "Traceback" not in rest
    assert not any(tmp_path.iterdir())


def test_interrupt_of_an_import(run, monkeypatch):
    """Fault: Ctrl-C while ONNX Runtime is loaded, which Python turns into an ImportError, is told as an error."""

    def load(*_: object, **__: object) -> None:
        raise ImportError("initialization failed") from KeyboardInterrupt()

    monkeypatch.setattr(musiclm, "load", load)
    assert run("generate", "bundle", "x") == (130, "", "musiclm: interrupted; nothing half-written was left behind.\n")


@pytest.mark.parametrize("verbose", [False, True])
def test_unexpected_error(run, monkeypatch, caplog, verbose):
    """ONNX Runtime's exceptions have no common base class: one line all the same, with -v the traceback."""

    class Fail(Exception):
        pass

    def load(*_: object, **__: object) -> None:
        raise Fail("[ONNXRuntimeError] : 6 : allocation failed")

    monkeypatch.setattr(musiclm, "load", load)
    caplog.set_level("INFO" if verbose else "WARNING")
    status, out, err = run(*["-v"] * verbose, "generate", "bundle", "x")
    assert (status, out) == (1, "")
    assert err.splitlines()[-1] == "musiclm: Fail: [ONNXRuntimeError] : 6 : allocation failed (musiclm -v says where)"
    assert any(record.exc_info for record in caplog.records) is verbose
