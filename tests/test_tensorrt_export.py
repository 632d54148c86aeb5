"""`export --target tensorrt`: what it writes beside the bundle's own graphs, what it says that loses, what it refuses."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto

import musiclm_deploy as md
from musiclm_deploy import cli
from musiclm_deploy.export.errors import ExportError
from musiclm_deploy.export.precision import choose, wanted
from musiclm_deploy.export.transformers import STAGES
from musiclm_deploy.kernels.launch import key_of
from musiclm_deploy.runtime.bundle import Bundle, BundleError
from musiclm_deploy.runtime.device.kernels import Kernels
from musiclm_deploy.runtime.engines.form import RECORD, Form
from musiclm_deploy.runtime.engines.model import every_list
from musiclm_deploy.runtime.step import open_weights


@pytest.fixture(scope="module")
def bundle(good, mel_file, export_by_command, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("engines") / "bundle"
    options = ["--target", "tensorrt", "--precision", "fp16", "--compute-capability", "90", "--quiet"]
    export_by_command({**good, "semantic-features": mel_file}, out, *options)
    return out


def test_what_is_written(bundle: Path, capsys) -> None:
    """Fault: a graph that is not in 16 bits, or that has lost one of its own; a loss that is not told."""
    opened = Bundle.open(bundle)
    form, manifest = Form.open(opened), opened.manifest
    names = [getattr(manifest, stage).graph for stage in STAGES]
    others = [manifest.mulan.text, manifest.mulan.audio, manifest.codec.stream]
    assert set(form.files) == {f"{name}{suffix}" for name in (*names, *others) for suffix in ("", ".data")}
    assert form.graph(opened, manifest.conditioner.graph) == bundle / manifest.conditioner.graph
    for name in (*names, *others):
        weights = onnx.load(form.graph(opened, name)).graph.initializer
        assert any(tensor.data_type == TensorProto.FLOAT16 for tensor in weights), name
    semantic = onnx.load(form.graph(opened, names[0]), load_external_data=False).graph
    lengths = {value.name: [size.dim_value for size in value.type.tensor_type.shape.dim] for value in semantic.input}
    assert lengths["past_key_values.0.key"][2] == form.capacities["semantic"] == 1 + manifest.semantic.max_length + form.positions - 1
    lost = {name: manifest.quality[name]["tensorrt"] for name in (*STAGES, "mulan_text", "mulan_audio", "codec_stream")}
    assert all(found["precision"] == "fp16" for found in lost.values())
    assert all(0.95 < lost[stage]["top1"] <= 1 and 0 < lost[stage]["kl"] < 1e-3 for stage in STAGES), lost
    assert all(1 - 1e-5 < lost[name]["similarity"] < 1 + 1e-5 for name in ("mulan_text", "mulan_audio"))
    assert 45 < lost["codec_stream"]["snr_db"] < 80
    assert manifest.quality["coarse"]["precision"] == "fp32" and manifest.quality["coarse"]["kl"] == 0
    assert cli.main(["inspect", str(bundle)]) == 0
    out = capsys.readouterr().out
    assert out.count("TensorRT: fp16, ") == 6 and re.search(
        r"  kernels   4, at most \d\d registers a thread, none of them spills; for compute capability 9\.0\n", out
    )
    assert "  engines   none built yet: musiclm build\n" in out


def test_the_kernels_that_draw_tokens_are_packed(bundle: Path) -> None:
    """Fault: engines whose tokens nothing draws; kernels of the layers, which engines have no need of."""
    opened, kernels = Bundle.open(bundle), Kernels(bundle)
    for stage in STAGES:
        decoder = getattr(opened.manifest, stage)
        _, sizes, _ = open_weights(bundle, decoder)
        for step in every_list(sizes, False, "fp16"):
            for launch in step.kernels:
                assert kernels.find(key_of(launch, step), 90).function in ("embed", "sample")
    assert len(list((bundle / "kernels").glob("*.sm_90.cubin"))) == 4  # sample for three vocabularies; embed for all


def test_the_bundle_still_plays_on_a_cpu(bundle: Path, music) -> None:
    """Fault: the bundle's own graphs change with the target."""
    with md.load(bundle, device="cpu") as model:
        ours, theirs = (one.generate("calm piano", seconds=0.1, seed=3) for one in (model, music))
    assert (ours.audio == theirs.audio).all()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "no form for TensorRT: export it with --target tensorrt"),
        (lambda folder: (folder / RECORD).write_text("{"), "cannot be read"),
        (lambda folder: (folder / RECORD).write_text('{"format": 9}'), "has format 9, this version reads 1"),
        (lambda folder: (folder / "coarse.onnx.data").write_bytes(b""), "'coarse.onnx.data': 0 bytes, the manifest says"),
        (lambda folder: _edit(folder, lambda record: record.pop("capacities")), "the field 'capacities' is missing"),
        (lambda folder: _edit(folder, lambda record: record["files"].update({"../x": {"bytes": 1, "sha256": ""}})), "leaves the bundle"),
    ],
)
def test_a_damaged_form(damage, message: str, bundle: Path, tmp_path: Path) -> None:
    """Fault: an engine is built of a graph that is not the one that was exported."""
    shutil.copytree(bundle, tmp_path / "bundle")
    damage(tmp_path / "bundle" / "tensorrt")
    with pytest.raises(BundleError, match=message.replace("/", ".")):
        Form.open(Bundle.open(tmp_path / "bundle"))


def _edit(folder: Path, change) -> None:
    record = json.loads((folder / RECORD).read_text())
    change(record)
    (folder / RECORD).write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("precision", "target", "message"),
    [
        ("int8", "tensorrt", "precision 'int8': expected one of fp32, fp16, bf16; int8 is for the target onnxruntime"),
        ("fp16", "onnxruntime", "precision 'fp16': expected one of fp32, int8, int4, auto; fp16 is for the target tensorrt"),
        ({"coarse": "fp16"}, "tensorrt", "one for all stages"),
        ("fp16", "cuda", "target 'cuda': expected one of onnxruntime, tensorrt"),
    ],
)
def test_precisions_of_a_target(precision, target: str, message: str) -> None:
    """Fault: a precision that a target has not is dropped without a word."""
    with pytest.raises(ExportError, match=message):
        wanted(precision, target)


def test_what_loses_too_much_is_refused() -> None:
    """Fault: an export in 16 bits goes through whatever it loses."""
    lost = {"bf16": {"top1": 0.9, "kl": 0.03, "entropy": 0.5, "tokens": 9}}
    with pytest.raises(ExportError, match=r"coarse in bf16: the divergence is 0.030 nats a token, the most is 0.02"):
        choose(dict.fromkeys(STAGES, "bf16"), dict.fromkeys(STAGES, lost), force=False)
    assert choose(dict.fromkeys(STAGES, "bf16"), dict.fromkeys(STAGES, lost), force=True)["fine"].reason.startswith("forced: ")


def test_kernels_that_cannot_be_compiled_are_said_at_once(good, tmp_path: Path, monkeypatch) -> None:
    """Fault: minutes of an export, and then that Triton is not installed, or a capability that it does not know."""
    for options, message in (
        ({"target": "tensorrt", "compute_capabilities": [90, 77]}, "compute capability 77: kernels are compiled for 80, 86, "),
        ({"kernels": ["fp16", "int8"]}, "kernels for int8 are those of stages of 8 bits: give precision int8"),
    ):
        with pytest.raises(ExportError, match=message):
            md.export_checkpoints(**good, out=tmp_path / "bundle", quiet=True, **options)
    monkeypatch.setitem(sys.modules, "musiclm_deploy.kernels.compile", None)
    with pytest.raises(ExportError, match=r"compiled by Triton, which is not here .* pip install '\.\[kernels\]'"):
        md.export_checkpoints(**good, out=tmp_path / "bundle", target="tensorrt", quiet=True)
    assert not list(tmp_path.iterdir())
