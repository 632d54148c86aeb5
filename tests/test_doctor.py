"""`musiclm doctor`: what it says of files is what the export would say, word for word, and all of it at once."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import musiclm_deploy as md
from musiclm_deploy import cli
from musiclm_deploy.export.collect import collect
from musiclm_deploy.export.doctor import Report, diagnose
from musiclm_deploy.export.errors import ExportError
from musiclm_deploy.export.export import export_checkpoints
from musiclm_deploy.runtime.bundle import MANIFEST, Bundle, BundleError

KINDS = ("semantic", "coarse", "fine", "codec", "mulan", "quantizer")
NAN = float("nan")


@pytest.fixture
def changed(packages, tmp_path) -> Callable[..., Path]:
    """`changed("fine", edit)`: that file again with what `edit` made of its state dict."""

    def change(kind: str, edit: Callable[[dict[str, torch.Tensor]], object], name: str = "") -> Path:
        state = dict(packages[kind].get("model", packages[kind]))
        edit(state)
        path = tmp_path / (name or f"{kind}.pt")
        torch.save({**packages[kind], "model": state} if "model" in packages[kind] else state, path)
        return path

    return change


def refusal(sources: dict[str, Path], tmp_path: Path, **options: Any) -> str:
    """What the export itself says of these files."""
    with pytest.raises(ExportError) as caught:
        export_checkpoints(**sources, out=tmp_path / "bundle", quiet=True, **options)
    return str(caught.value)


def test_a_whole_set(good):
    """Six files in any order: each is recognised, all settings are the export's, nothing is refused, and drawn tables are named."""
    report = diagnose(reversed(list(good.values())))
    assert {Path(file.path).stem: file.kind for file in report.files} == {kind: kind for kind in KINDS}
    assert report.files[-1].what == "a semantic transformer" and report.files[-1].version == "2.4.0"
    assert report.files[0].what == "a MuLaN embedding quantizer with its MuLaN"
    assert (report.missing, report.faults) == ([], [])
    collected = collect(good, {})
    assert report.settings == {
        part: {name: [item.value, item.source] for name, item in settings.items()} for part, settings in collected.settings.items()
    }
    (warning,) = report.warnings
    assert warning.startswith("quantizer.pt: the conditioning of semantic, coarse, fine is as it was drawn at random")
    text = str(report)
    assert "    num_semantic_tokens          19                     semantic_embedding [20], one of them the end" in text
    assert text.endswith("nothing found that would be refused")


def test_what_is_missing(good):
    """An incomplete set is no fault: options are named that nothing serves, and a quantizer with its MuLaN inside serves two."""
    assert diagnose([good["fine"], good["quantizer"]]).missing == ["semantic", "coarse", "codec"]
    report = diagnose([good["mulan"]])
    assert report.missing == ["semantic", "coarse", "fine", "codec", "quantizer"] and not report.faults
    assert "missing for an export: --semantic, --coarse, --fine, --codec, --quantizer" in str(report)
    assert diagnose(path for kind, path in good.items() if kind != "quantizer").missing == ["quantizer"]


@pytest.mark.parametrize("kind", KINDS)
def test_one_file_alone(good, kind):
    """Fault: a check that needs two files fails where only one is given."""
    report = diagnose([good[kind]])
    assert not report.faults and kind in {part.partition(".")[0] for part in report.settings}


def spoil(state: dict[str, torch.Tensor], name: str) -> None:
    state[name] = state[name].clone()
    state[name].view(-1)[-1] = NAN


@pytest.mark.parametrize(
    ("kind", "edit"),
    [
        ("semantic", lambda state: spoil(state, "transformer.layers.1.0.branch.to_kv.weight")),
        ("coarse", lambda state: state.pop("coarse_logit_weights")),
        ("fine", lambda state: state.update({"transformer.extra": torch.zeros(2)})),
        ("codec", lambda state: spoil(state, "decoder.2.1.fn.0.conv.weight")),
        ("quantizer", lambda state: spoil(state, "cond_embeddings.fine")),
        ("quantizer", lambda state: state.update({"rq.layers.1._codebook.initted": torch.tensor([False])})),
        ("codec", lambda state: state.update({"rq.rvqs.0.layers.1._codebook.initted": torch.tensor([False])})),
        ("semantic", lambda state: state.update({"semantic_embedding.weight": state["semantic_embedding.weight"][:-3]})),
        ("mulan", lambda state: state.update({"text_to_latents.bias": state["text_to_latents.bias"] + 1})),
        ("quantizer", lambda state: state.update({"rq.layers.1._codebook.embed": torch.zeros(1, 7, 16)})),
        ("semantic", lambda state: state.update({"transformer.layers.0.0.dynamic_alpha_scale": torch.zeros(2)})),
        ("fine", lambda state: state.update({"pos_bias_mlp.2.bias": torch.zeros(1)})),
        ("coarse", lambda state: state.update({"coarse_start_token": torch.zeros(24, 1)})),
    ],
)
def test_the_words_of_the_export(good, changed, tmp_path, monkeypatch, kind, edit):
    """Fault: two voices about one file. Whatever the export refuses is in the report, in the same words."""
    monkeypatch.setattr("musiclm_deploy.export.mulan.trace", lambda *_: None)  # of stages before the refused one: half a minute
    sources = {**good, kind: changed(kind, edit)}
    message = refusal(sources, tmp_path)
    assert message.removeprefix("the checkpoints do not fit together:\n  - ") in diagnose(sources.values()).faults


def test_files_that_cannot_be_read(good, tmp_path):
    """Without options there is no option to name; the rest of the sentence is the export's."""
    for name, data in (("text.pt", b"hello"), ("cut.pt", good["fine"].read_bytes()[:-100])):
        (tmp_path / name).write_bytes(data)
        report = diagnose([tmp_path / name, tmp_path / "none.pt"])
        assert [f"--fine {report.faults[0]}", report.faults[1]] == [
            refusal({**good, "fine": tmp_path / name}, tmp_path),
            f"{tmp_path / 'none.pt'}: there is no such file.",
        ]


def test_all_faults_at_once(good, changed):
    """Four faults in three files: the export would take four attempts to say them."""

    def edit(state: dict[str, torch.Tensor]) -> None:
        state["rq.layers.1._codebook.initted"] = torch.tensor([False])
        spoil(state, "cond_embeddings.coarse")

    bad = {
        "quantizer": changed("quantizer", edit),
        "fine": changed("fine", lambda state: state.pop("fine_quantize_embedding.weight")),
        "semantic": changed("semantic", lambda state: state.update({"semantic_embedding.weight": state["semantic_embedding.weight"][:-3]})),
    }
    report = diagnose({**good, **bad}.values())
    for part in ("initialised", "table of coarse holds NaN", "'fine_quantize_embedding.weight' is missing", "num_semantic_tokens is 16"):
        assert sum(part in fault for fault in report.faults) == 1, report.faults
    assert next(file for file in report.files if file.kind == "quantizer").non_finite == ["cond_embeddings.coarse"]


def test_two_of_a_kind(good, changed):
    """Two fine transformers are said to be two; three quantizers of one namespace each are one per stage."""
    other = changed("fine", lambda state: None, "other.pt")
    (fault,) = diagnose([good["fine"], other]).faults
    both = f"{good['fine']} (a fine transformer) and {other} (a fine transformer)"
    assert fault == f"{both} are of one kind, of which an export takes one; the first was examined."

    def only(stage: str) -> Callable[[dict[str, torch.Tensor]], None]:
        def edit(state: dict[str, torch.Tensor]) -> None:
            for name in [name for name in state if name.startswith("cond_embeddings.") and not name.endswith(stage)]:
                del state[name]

        return edit

    own = [changed("quantizer", only(stage), f"{stage}.pt") for stage in ("semantic", "coarse", "fine")]
    rest = [path for kind, path in good.items() if kind != "quantizer"]
    report = diagnose([*own, *rest])
    assert not report.faults and [part for part in report.settings if "quantizer" in part] == [
        "quantizer.semantic",
        "quantizer.coarse",
        "quantizer.fine",
    ]


def test_semantic_tokenizers(tmp_path):
    """A MelKmeans file alone, HuBERT without its k-means: recognised by what is in them, and what lacks is named."""
    from musiclm_deploy.model import MelKmeans

    torch.manual_seed(0)
    mel = MelKmeans(5, n_mels=8)
    mel.fit([torch.randn(16000)])
    mel.save(tmp_path / "mel.bin")
    report = diagnose([tmp_path / "mel.bin"])
    assert report.files[0].kind == "semantic-features" and report.settings["wav2vec"]["codebook_size"][0] == 5
    (tmp_path / "hubert").mkdir()
    (tmp_path / "hubert" / "config.json").write_text('{"model_type": "hubert"}')
    report = diagnose([tmp_path / "hubert"])
    assert report.files[0].kind == "hubert" and "kmeans" in report.missing


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return status, out, err


def test_bundle(tiny_bundle, tmp_path, capsys):
    """A bundle is checked as the runtime does, and says what it was made of."""
    status, out, err = run(capsys, "doctor", tiny_bundle)
    assert (status, err) == (0, "") and f"{tiny_bundle}: a bundle of format" in out and "fine of fine.pt (version 2.4.0, SHA-256 " in out
    assert "missing" not in out
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    (bundle / "fine.onnx").unlink()
    (bundle / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle)
    assert diagnose([bundle]).faults == [str(caught.value)] and MANIFEST in {path.name for path in bundle.iterdir()}


def test_paths_of_the_home_folder(good, monkeypatch):
    """Fault: `~` means the home folder to the export and no folder to the doctor."""
    monkeypatch.setenv("HOME", str(good["fine"].parent))
    report = diagnose([f"~/{good['fine'].name}"])
    assert [(file.path, file.kind) for file in report.files] == [(str(good["fine"]), "fine")]


def test_command(good, changed, tmp_path, capsys):
    """Status 0 and 1, the text and one JSON object for scripts, overrides as in the export."""
    status, out, _ = run(capsys, "doctor", *good.values(), "--json")
    facts = json.loads(out)
    assert status == 0 and out.count("\n") == 1 and facts["faults"] == facts["missing"] == []
    assert facts["settings"]["codec"]["strides"] == [[2, 4, 5, 8], "saved config"]
    (tmp_path / "c.json").write_text('{"fine": {"heads": 3}}')
    status, out, err = run(capsys, "doctor", good["fine"], "--config", tmp_path / "c.json")
    assert (status, err) == (1, "") and "refused: fine: the override heads = 3 contradicts the checkpoint, which says 2" in out
    status, out, _ = run(capsys, "doctor", changed("fine", lambda state: spoil(state, "null_pos_bias")))
    assert status == 1 and "    NaN or infinite values in null_pos_bias" in out
    with pytest.raises(SystemExit) as caught:
        cli.main(["doctor"])
    assert caught.value.code == 2
    assert isinstance(md.diagnose([good["fine"]]), Report)


def test_bundle_without_torch(tiny_bundle, good, tmp_path):
    """Fault: whoever was given a bundle, and installed what it takes to play it, cannot ask what it is and what is wrong with it."""

    def doctor(path: Path) -> tuple[int, str]:
        code = "import sys; sys.modules['torch'] = sys.modules['onnx'] = None; from musiclm_deploy.cli import main; sys.exit(main())"
        done = subprocess.run([sys.executable, "-c", code, "doctor", path], capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    assert doctor(tiny_bundle) == (0, f"{diagnose([tiny_bundle])}\n")
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    (bundle / "fine.onnx").unlink()
    (bundle / MANIFEST).write_text("{")
    status, out = doctor(bundle)
    assert status == 1 and f"refused: the bundle {bundle} cannot be used:" in out and MANIFEST in out
    (bundle / MANIFEST).unlink()
    status, out = doctor(bundle)
    assert status == 1 and f"{bundle} is not a bundle: it has no {MANIFEST}" in out
    status, out = doctor(good["fine"])
    assert status == 1 and "musiclm: examining anything but bundles needs the package torch, which is not installed: pip install '.[" in out


@pytest.mark.parametrize("paths", [None, 3, [None], b"fine.pt", [b"fine.pt"], {"fine": "fine.pt"}])
def test_arguments_of_another_kind(paths):
    """Fault: a TypeError out of pathlib for what is no path."""
    with pytest.raises(ExportError, match=rf"got {type(paths[0] if isinstance(paths, list) else paths).__name__}\."):
        diagnose(paths)


def test_home_and_settings(monkeypatch, tmp_path):
    """Fault: `~` is the home folder for the export and no folder for the doctor; a path in place of settings, an AttributeError."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert diagnose("~/fine.pt").faults == [f"{tmp_path}/fine.pt: there is no such file."]
    with pytest.raises(ExportError, match=r"config must be a dict of parts, .* got str\. Read the file with json\.load first\."):
        diagnose("~/fine.pt", "config.json")
