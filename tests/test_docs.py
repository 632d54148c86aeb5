"""docs/export.md, prompts.md, long_clips.md, sound_files.md, streaming.md and gpu.md are true: their parts run in order, on a tiny model.
docs/reference.md is compared with parsers and signatures, the program of docs/cpp.md is compiled and run.

Only numbers are lowered, as in test_training_docs.py. An export on the page reads its files and fits them together as ever, but takes the
graphs of the tiny bundle instead of tracing them for half a minute: what the export makes of such files, every test with a bundle tests.
"""

import argparse
import inspect
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import soundfile
from support import ROOT
from support.pages import shortened

import musiclm_deploy as md
from musiclm_deploy import cli
from musiclm_deploy.cli import make_parser
from musiclm_deploy.export import export as exporting
from musiclm_deploy.export.collect import collect
from musiclm_deploy.export.validate import TOLERANCES
from musiclm_deploy.kernels import decoder_step
from musiclm_deploy.runtime.bundle import MANIFEST, Bundle, Manifest
from musiclm_deploy.runtime.music import Candidate, Music, Tokens

SHORTER = (
    (r"(seconds[ =])\d+", r"\g<1>0.3"),
    (r"96(:|, overlap=)24", r"16\g<1>4"),
    (r"fine(=|\": md.Window\(length=)50\b", r"fine\g<1>8"),
    (r"build/demo/bundle", "bundle"),
    (r"FRAMES, TOKENS = (.*), 50, 50", r"FRAMES, TOKENS = \1, 12, 14"),
)


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def steps(text: str) -> list[tuple[str, str]]:
    """("command" or "python", its text) of a page, in order; commands are lines indented by four."""
    text = text.replace("\\\n", "")
    found = re.findall(r"^    ((?:musiclm|python) [^\n]*)$|^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [("command", command) if command else ("python", code) for command, code in found]


def run(kind: str, text: str, names: dict[str, Any]) -> None:
    if kind == "python":
        exec(compile(text, "<page>", "exec"), names)
        return
    words = shlex.split(text, comments=True)
    words = [part for word in words for part in (sorted(map(str, Path().glob(word))) if "*" in word else [word])]
    arguments = ["export", *words[2:]] if words[:2] == ["python", "export_all.py"] else words[1:]
    assert cli.main(arguments) == 0, text


@pytest.fixture
def folder(tmp_path: Path, tiny_bundle: Path, tiny_checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a reader would be: `checkpoints/`, a bundle, and the sounds that the pages speak of."""
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    shutil.copytree(tiny_checkpoints["semantic"].parent, tmp_path / "checkpoints")
    for name in set(re.findall(r"(?:--\w+ |read\(\")(\w+\.(?:wav|flac))", page("prompts.md"))):
        soundfile.write(tmp_path / name, np.random.default_rng(0).normal(size=3200) * 0.1, 16000)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def instant(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(sources, overrides, folder: Path, *_: object) -> Manifest:
        collected = collect(sources, overrides)
        for path in tiny_bundle.iterdir():
            if path.name != MANIFEST:
                shutil.copy(path, folder)
        settings = {name: {key: [item.value, item.source] for key, item in part.items()} for name, part in collected.settings.items()}
        manifest = replace(Bundle.open(tiny_bundle).manifest, settings=settings, files=exporting.records_of(folder))
        (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        return manifest

    monkeypatch.setattr(exporting, "write_stages", write)
    errors = Bundle.open(tiny_bundle).manifest.errors
    monkeypatch.setattr(
        exporting, "validate_in_new_process", lambda *_: {"errors": errors, "quality": {}, "narrow": {}, "fake_quantized": {}}
    )


def test_the_export_page(folder: Path, instant: None, tiny_models: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """An option, a file or a name of a setting on the page that is wrong; a bundle that the page's check tells from its model."""
    import audiolm_pytorch
    import musiclm_pytorch

    transformers = {f"{stage}_transformer": tiny_models[stage] for stage in ("semantic", "coarse", "fine")}
    audio_lm = audiolm_pytorch.AudioLM(wav2vec=None, codec=tiny_models["codec"], **transformers)
    training = ModuleType("my_training")
    vars(training)["musiclm"] = musiclm_pytorch.MusicLM(audio_lm, tiny_models["quantizer"])
    monkeypatch.setitem(sys.modules, "my_training", training)
    text = page("export.md")
    config = re.search(r"\*\*`config\.json`\*\*\n\n```json\n(.*?)```", text, re.DOTALL)
    assert config is not None
    (folder / "config.json").write_text(config[1])
    shutil.rmtree(folder / "bundle")

    kinds, names = [], {}
    for kind, step in steps(text):
        kinds.append(kind)
        run(kind, shortened(step, SHORTER), names)
        if kinds == ["command"]:
            told = Bundle.open(folder / "bundle").manifest.settings
            assert [told[stage]["max_time_steps"] for stage in ("coarse", "fine")] == [[200, "override"], [50, "override"]]
    assert kinds == ["command", "command", "python", "command", "python", "command", "command"]
    assert np.abs(names["expected"]).max() > 0 and len(names["expected"]) == 12 * 320
    np.testing.assert_allclose(names["song"].audio, names["expected"], rtol=0, atol=1e-5 * np.abs(names["expected"]).max())  # fp32
    assert len(soundfile.read("out.wav")[0]) == 4800
    assert "largest difference" in capsys.readouterr().out


def test_the_export_page_lists_all_options(capsys: Any) -> None:
    """An option of the command that the page does not explain; a tolerance or a refusal in other words than the export's."""
    text = page("export.md")
    with pytest.raises(SystemExit):
        cli.main(["export", "--help"])
    options = set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - {"--help", "--verbose"}  # every command has these two
    assert len(options) > 10 and not [option for option in options if f"| `{option}" not in text and f", `{option}`" not in text]
    for stage, allowed in TOLERANCES.items():
        row = re.search(rf"^\|[^|]*`{stage}`[^|]*\|[^|]*\|[^|]*\| ([^|]*) \|", text, re.MULTILINE)
        assert row is not None and float(row[1]) == allowed, stage
    sources = "".join(
        path.read_text(encoding="utf-8") for name in ("export", "model", "musiclm_deploy") for path in (ROOT / name).glob("*.py")
    )
    for row in re.findall(r"^\| (`.*?) \| ", text[text.index("## When it is refused") :], re.MULTILINE):
        for words in re.findall(r"`(.*?)`", row):
            assert words in sources, words


@pytest.mark.parametrize("name", ["prompts.md", "long_clips.md", "sound_files.md", "streaming.md"])
def test_pages_on_generating(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command, a call or an argument on the page that does not work."""
    names: dict[str, Any] = {}
    found = steps(page(name))
    assert {kind for kind, _ in found} == {"command", "python"}
    for kind, step in found:
        run(kind, shortened(step, SHORTER), names)
    assert soundfile.info("out.wav").frames > 0


def test_the_gpu_page(static_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """A command on the page that does not work; without a GPU, one that does not say so. A refusal in other words than the code's."""
    pytest.importorskip("tensorrt_rtx_libs", reason="TensorRT-RTX is not installed: pip install '.[tensorrt-rtx]'")
    shutil.copytree(static_bundle, tmp_path / "bundle")
    monkeypatch.chdir(tmp_path)
    text, refused = page("gpu.md"), 0
    for _, command in steps(text):
        try:
            run("command", command, {})
        except AssertionError:
            said = capsys.readouterr().err
            assert "no NVIDIA GPU can be used here" in said or "this ONNX Runtime is for CPUs alone" in said, command
            refused += 1
    assert len(steps(text)) == 4 and refused < 4
    assert Bundle.open("bundle") and list((tmp_path / "bundle" / "engines").glob("*-sm_86/coarse.engine"))
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "runtime").rglob("*.py"))
    refusals = re.findall(r"^\| `(.*?)` \| ", text[text.index("## When it is refused") :], re.MULTILINE)
    assert len(refusals) == 12 and not [words for words in refusals if words not in sources]


def test_the_reference_lists_all_options() -> None:
    """An option, or a choice of one, that the reference does not have under its command; one that it has and no command takes."""
    text = page("reference.md")
    parser = make_parser()
    commands = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction)).choices
    assert len(commands) >= 7
    for name, command in {"musiclm": parser, **{f"musiclm {name}": command for name, command in commands.items()}}.items():
        section = re.search(rf"^### `{name}`$(.*?)^##", text, re.MULTILINE | re.DOTALL)
        assert section is not None, name
        options = {option for action in command._actions for option in action.option_strings} - {"-h", "--help"}
        options -= {"-v", "--verbose"} if command is not parser else set()  # every command has them; the first section says so
        listed = set(re.findall(r"`(--?[a-z][a-z-]*)", "\n".join(re.findall(r"^\| (.*?) \|", section[1], re.MULTILINE))))
        assert listed == options, name
        for action in command._actions:
            for choice in action.choices or () if action.option_strings else ():
                assert f"`{choice}`" in section[1] or f"| {choice} |" in section[1] or f" {choice}`" in section[1], (name, choice)


def test_the_reference_lists_the_python_api() -> None:
    """A public name, an argument of one, or a field of a result that the reference does not have."""
    text = page("reference.md")
    assert not [name for name in dir(md) if not name.startswith("_") and f"`md.{name}" not in text]
    called = (
        md.load,
        md.MusicLM.generate,
        md.diagnose,
        md.export_checkpoints,
        md.export_musiclm,
        md.generate_arguments,
        md.read_record,
        Music.save,
    )
    names = [name for function in called for name in inspect.signature(function).parameters if name not in ("self", "options")]
    names += [
        field.name
        for record in (Music, Candidate, Tokens, md.GenerationConfig, md.SamplingConfig, md.Window, md.Blend)
        for field in fields(record)
    ]
    names += [
        name
        for name in (*vars(md.MusicLM), *vars(Music))
        if name in ("close", "encode", "save", "save_tokens") or name.startswith("embed_")
    ]
    assert len(names) > 60 and not [name for name in names if not re.search(rf"[`(, *\n]{name}\b", text)]


def test_the_cpp_page(tmp_path: Path) -> None:
    """A program on the page that does not compile against the header, or does not run."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    library = Path(decoder_step.__file__).with_name(decoder_step.LIBRARY)
    if compiler is None or not library.is_file():
        pytest.skip("no C++ compiler here, or the native step was not built")
    (source,) = re.findall(r"^```cpp\n(.*?)^```", page("cpp.md"), re.MULTILINE | re.DOTALL)
    (tmp_path / "step.cpp").write_text(source, encoding="utf-8")
    command = [compiler, "-std=c++17", "-Wall", "-Wextra", "-Werror", "-I", library.parent, tmp_path / "step.cpp", library]
    compiled = subprocess.run([*command, f"-Wl,-rpath,{library.parent}", "-o", tmp_path / "step"], capture_output=True, text=True)
    assert compiled.returncode == 0, compiled.stderr
    ran = subprocess.run([tmp_path / "step"], capture_output=True, text=True)
    assert ran.returncode == 0 and re.fullmatch(r"(\d ){8}\(.+\)\n", ran.stdout), ran.stdout + ran.stderr


def test_links() -> None:
    """A page that nobody finds from the README, or a link that leads nowhere: to no file, or to no heading of it."""
    linked = set()
    others = [ROOT / name for name in ("DESIGN.md", "CONTRIBUTING.md", "demo/README.md", "benchmarks/README.md")]
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *others):
        for target, heading in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", path.read_text(encoding="utf-8")):
            file = (path.parent / target).resolve() if target else path
            assert file.is_file(), f"{path}: {target}"
            assert not heading or heading in headings(file), f"{path}: {target}#{heading}"
            linked |= {file} if path.name == "README.md" and path.parent == ROOT else set()
    assert set((ROOT / "docs").glob("*.md")) <= linked


def headings(path: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them."""
    found = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}
