"""8 and 4 bits: what is quantized comes back, the graph and the native step work from the same numbers, an export measures the loss."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import soundfile
from onnx import TensorProto

import musiclm_deploy as md
from musiclm_deploy import cli
from musiclm_deploy.export import calibration, quality
from musiclm_deploy.export import export as exporting
from musiclm_deploy.export import validate as validating
from musiclm_deploy.export.errors import ExportError
from musiclm_deploy.export.graph import FLOAT, Graph
from musiclm_deploy.export.precision import choose, wanted
from musiclm_deploy.kernels import decoder_step
from musiclm_deploy.kernels.quantized_product import PRECISIONS, Form
from musiclm_deploy.kernels.quantized_product.onnx_form import product
from musiclm_deploy.kernels.quantized_product.reference import dequantize, quantize
from musiclm_deploy.runtime.audio import load_audio
from musiclm_deploy.runtime.bundle import MANIFEST, Bundle, Manifest
from musiclm_deploy.runtime.primes import make_primes

try:
    PATHS = decoder_step.paths()
except decoder_step.Unavailable:  # no compiler here: the graph alone is tested
    PATHS = []

NARROW = {name: form for name, form in PRECISIONS.items() if form.bits < 32}


def _weights(inputs: int, outputs: int) -> np.ndarray:
    return np.random.default_rng(inputs).standard_normal((inputs, outputs), np.float32) * 0.02


@pytest.mark.parametrize("block", [32, 128])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("inputs", [1, 16, 31, 33, 257])
def test_there_and_back(inputs: int, bits: int, block: int) -> None:
    """Fault: a last block that is not full, a half byte in the other's place, a scale that the native step cannot hold."""
    w = _weights(inputs, 7)
    w[:, 3] = 0  # as in heads that are filled up to a multiple of 8
    w[:, 4] *= 1e-36
    values, scales = quantize(w, bits, block)
    assert values.shape == (7, -(-inputs // block), block * bits // 8) and values.dtype == np.uint8 and scales.dtype == np.float32
    assert not (scales.view(np.uint32) & 0xFFFF).any()
    back = dequantize(values, scales, bits, inputs)
    for n in range(7):
        for first in range(0, inputs, block):
            part = slice(first, first + block)
            step = np.abs(w[part, n]).max() / (1 << (bits - 1))
            assert np.abs(back[part, n] - w[part, n]).max() <= (1.6 if bits == 4 else 1.1) * step + 1e-30  # a weight may be clipped
    assert not back[:, 3].any()
    again, same = quantize(back, bits, block)
    np.testing.assert_allclose(dequantize(again, same, bits, inputs), back, rtol=0, atol=2e-2 * np.abs(w).max())


@pytest.mark.parametrize("bits", [8, 4])
def test_no_scale_nearby_is_better(bits: int) -> None:
    """Fault: plain rounding to the largest weight, which at 4 bits loses a fifth more."""
    w = _weights(512, 64)
    lost = np.square(dequantize(*quantize(w, bits, 32), bits, 512) - w).mean()
    tiles = w.T.reshape(64, 16, 32)
    scale = np.abs(tiles).max(-1, keepdims=True) / ((1 << (bits - 1)) - 1)
    plain = np.square(np.rint(tiles / scale) * scale - tiles).mean()
    assert lost < {8: 1.0, 4: 0.8}[bits] * plain, (lost, plain)


def test_what_cannot_be_quantized() -> None:
    """Fault: NaN becomes a number, and the export of a broken checkpoint passes."""
    with pytest.raises(ValueError, match="8 or 4 bits, got 5"):
        quantize(_weights(8, 8), 5, 32)
    w = _weights(8, 8)
    w[3, 3] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        quantize(w, 4, 32)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("inputs,outputs,block", [(24, 13, 32), (33, 17, 32), (300, 40, 128)])
def test_graph_and_native_step_hold_the_same_numbers(bits: int, inputs: int, outputs: int, block: int, tmp_path) -> None:
    """Fault: one of the two reads weights in another order or with another scale.

    A row that is 1 at one input is quantized without loss, so each product is one weight; those next to each other differ by a hundredth.
    """
    w = _weights(inputs, outputs)
    exact = dequantize(*quantize(w, bits, block), bits, inputs)
    one = np.eye(inputs, dtype=np.float32)
    g = Graph("product")
    g.output(product(g, "w", g.input("x", FLOAT, ["B", inputs]), w, Form(bits, block)), FLOAT, ["B", outputs])
    g.save(tmp_path / "product.onnx")
    found: dict[str, Any] = {"graph": ort.InferenceSession(tmp_path / "product.onnx").run(None, {"x": one})[0]}
    if PATHS:
        pool = decoder_step.Pool(2)
        found |= {path: pool.product(one, w, bits, block, path) for path in PATHS}
    for name, products in found.items():
        np.testing.assert_allclose(products, exact, rtol=0, atol=1e-6 * np.abs(w).max(), err_msg=name)
    stored = onnx.load(tmp_path / "product.onnx", load_external_data=False)
    assert {tensor.name: tensor.data_type for tensor in stored.graph.initializer} == {
        "w.values": TensorProto.UINT8,
        "w.scales": TensorProto.FLOAT,
    }


# --- exports


@pytest.fixture(scope="module")
def at_once(tiny_bundle: Path, good, mel_file) -> Iterator[Callable[..., int]]:
    """`musiclm export` of the tiny MusicLM with more options; the fp32 graphs are the tiny bundle's, not traced again for half a minute."""

    def write(sources, overrides, folder: Path, *_: object) -> Manifest:
        for path in tiny_bundle.iterdir():
            if path.name != MANIFEST:
                shutil.copy(path, folder)
        manifest = replace(Bundle.open(tiny_bundle).manifest, errors={}, quality={})
        (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        return manifest

    files = [part for name, path in {**good, "semantic-features": mel_file}.items() for part in (f"--{name}", str(path))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "write_stages", write)
        yield lambda out, *options: cli.main(["export", "--quiet", *files, "--out", str(out), *options])


@pytest.fixture(scope="module")
def narrow(at_once, tmp_path_factory) -> Path:
    """A bundle of int4, int8 and int4, written by the command and validated in a process of its own, with nothing replaced but tracing."""
    out = tmp_path_factory.mktemp("narrow") / "bundle"
    assert at_once(out, "--precision", "int4", "--precision", "coarse=int8", "--force") == 0
    return out


def test_the_bundle_holds_what_was_asked(narrow: Path, tiny_bundle: Path) -> None:
    """Fault: a graph of another precision than the manifest says, files of the other precision left behind, no measurements."""
    manifest, wide = Bundle.open(narrow).manifest, Bundle.open(tiny_bundle).manifest
    assert {path.name for path in narrow.iterdir()} == {path.name for path in tiny_bundle.iterdir()}
    for stage, precision in {"semantic": "int4", "coarse": "int8", "fine": "int4"}.items():
        assert getattr(manifest, stage).step.precision == precision == manifest.quality[stage]["precision"]
        graph = onnx.load(narrow / f"{stage}.onnx", load_external_data=False).graph
        kinds = [node.op_type for node in graph.node]
        assert kinds.count("MatMulNBits") == 7 * getattr(manifest, stage).depth
        assert {a.i for node in graph.node for a in node.attribute if a.name == "bits"} == {NARROW[precision].bits}
        assert manifest.quality[stage]["tokens"] == 8 * {"semantic": 100, "coarse": 200, "fine": 300}[stage]
        assert 0.5 < manifest.quality[stage]["top1"] < 1 or precision == "int8"
        assert getattr(wide, stage).step.precision == "fp32" == wide.quality[stage]["precision"]
        assert wide.quality[stage]["top1"] == 1 and wide.quality[stage]["kl"] == 0
    assert manifest.errors.keys() == wide.errors.keys() and max(manifest.errors.values()) < 1e-4  # before they were quantized
    assert manifest.quality["codec_stream"]["snr_db"] > 80 and manifest.quality["mulan_audio"]["similarity"] > 0.9999


@pytest.mark.parametrize("step", ["graph", *(["native"] if PATHS else [])])
def test_a_clip_is_the_same_alone_and_in_a_batch(step: str, narrow: Path) -> None:
    """Fault: activations quantized over rows together, in one of the two forms; a narrow bundle that does not run at all."""
    with md.load(narrow, device="cpu", step=step) as model:
        together = model.generate(["a", "b", "c"], seconds=0.5, seed=[1, 2, 3])
        for prompt, seed, one in zip("abc", (1, 2, 3), together, strict=True):
            alone = model.generate(prompt, seconds=0.5, seed=seed)
            for part in ("semantic", "coarse", "fine"):
                np.testing.assert_array_equal(getattr(alone.tokens, part), getattr(one.tokens, part), err_msg=f"{prompt} {part}")
            np.testing.assert_array_equal(alone.audio, one.audio)


def test_inspect_has_the_table(narrow: Path, capsys) -> None:
    """Fault: a bundle that loses much and does not say so."""
    assert cli.main(["inspect", str(narrow)]) == 0
    out, quality = capsys.readouterr().out, Bundle.open(narrow).manifest.quality
    for stage in ("semantic", "coarse", "fine"):
        measured = quality[stage]
        line = f"{measured['precision']}, top-1 {measured['top1']:.1%}, KL {measured['kl']:.5f} nats over {measured['tokens']} tokens"
        assert f"{line} ({measured['reason']})" in out
    assert f"signal to noise {quality['codec_stream']['snr_db']:.0f} dB" in out and "similarity 1.000000" in out
    assert "int4, dim 24" in out and "caches" in out


def test_too_much_lost_is_refused(at_once, narrow: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """Fault: a bundle of noise instead of music, made in silence; or a refusal that does not say what to do, or leaves something behind."""
    monkeypatch.setattr(exporting, "validate_in_new_process", validating.validate)  # a process of its own takes its time to import torch
    assert at_once(tmp_path / "bundle", "--precision", "fine=int4") == 1
    measured = Bundle.open(narrow).manifest.quality["fine"]
    message = capsys.readouterr().err
    assert f"fine in int4: the likeliest token is the same in {measured['top1']:.1%}, the least is 85%" in message
    assert "--precision STAGE=int8" in message and "--precision auto" in message and "--force" in message
    assert not any(tmp_path.iterdir())
    assert at_once(tmp_path / "bundle", "--precision", "fine=auto") == 0
    manifest = Bundle.open(tmp_path / "bundle").manifest
    assert manifest.fine.step.precision == "int8" and manifest.semantic.step.precision == "fp32"
    assert manifest.quality["fine"]["reason"].startswith("int4: the likeliest token is the same in")


def test_what_precision_is_chosen() -> None:
    """Fault: auto takes a form that loses too much, or a wide one for nothing; floors that hold for a model that was never trained."""
    good, bad = {"top1": 0.9, "kl": 0.01, "entropy": 0.5, "tokens": 9}, {"top1": 0.9, "kl": 0.03, "entropy": 0.5, "tokens": 9}
    untrained = bad | {"entropy": 0.99}
    asked = wanted("auto")
    for int4, int8, expected in ((good, good, "int4"), (bad, good, "int8"), (bad, bad, "fp32"), (untrained, bad, "int4")):
        chosen = choose(asked, {stage: {"int4": int4, "int8": int8} for stage in asked}, force=False)
        assert {item.precision for item in chosen.values()} == {expected}
    asked = wanted({"": "int8", "fine": "int4"})
    with pytest.raises(ExportError, match=r"fine in int4: the divergence is 0\.030 nats a token, the most is 0\.02"):
        choose(asked, {"semantic": {"int8": good}, "coarse": {"int8": good}, "fine": {"int4": bad}}, force=False)
    forced = choose(asked, {"semantic": {"int8": good}, "coarse": {"int8": good}, "fine": {"int4": bad}}, force=True)
    assert forced["fine"].precision == "int4" and forced["fine"].reason.startswith("forced: the divergence")


@pytest.mark.parametrize(
    "options,message",
    [
        (["--precision", "fp16"], "precision 'fp16': expected one of fp32, int8, int4, auto"),
        (["--precision", "fine=int5"], "precision 'int5' of fine: expected one of"),
        (["--precision", "codec=int8"], "precision 'codec=int8': expected one of"),
        (["--precision", "int8", "--precision", "int4"], "--precision int4: one for all stages was given already"),
    ],
)
def test_a_precision_that_nobody_knows(options: list[str], message: str, at_once, tmp_path: Path, capsys) -> None:
    """Fault: a typing error found after minutes, or taken for fp32."""
    assert at_once(tmp_path / "bundle", *options) == 1
    assert message in capsys.readouterr().err and not any(tmp_path.iterdir())


@pytest.fixture(scope="module")
def sounds(tmp_path_factory) -> Path:
    """A folder of three sounds of different lengths and rates, and a file that is none."""
    folder = tmp_path_factory.mktemp("sounds")
    for number, (hz, seconds) in enumerate(((16000, 1.7), (44100, 1.3), (24000, 2.2))):
        wave = 0.1 * np.random.default_rng(number).standard_normal(round(hz * seconds))
        soundfile.write(folder / f"{number}.wav", wave.astype(np.float32), hz)
    (folder / "notes.txt").write_text("three sounds")
    return folder


def test_measured_on_sounds(at_once, sounds: Path, tmp_path: Path, monkeypatch) -> None:
    """Fault: tokens that are not those of the sounds, or rows of one sound under the conditioning of another."""
    fed = []

    def watched(model, stage, sequences, candidates, given):
        drawn, found = quality_stage(model, stage, sequences, candidates, given)
        fed.append((stage, sequences, drawn))
        return drawn, found

    quality_stage = quality.measure_stage
    monkeypatch.setattr(quality, "measure_stage", watched)
    monkeypatch.setattr(exporting, "validate_in_new_process", validating.validate)  # a process of its own takes its time to import torch
    out = tmp_path / "bundle"
    assert at_once(out, "--precision", "int8", "--force", "--calibration", str(sounds)) == 0
    with md.load(out, device="cpu") as model:
        manifest = model.bundle.manifest
        heard = [load_audio(path) for path in calibration.sounds_in(sounds)]
        tokens = [model.encoders.prime_tokens(make_primes(sound, 1, manifest)[0]) for sound in heard]
        latents = np.concatenate([model.embed_audio(sound) for sound in heard])
        expected = model.encoders.contexts(latents)
    frames = min(100, *(len(item.coarse) for item in tokens))
    assert [stage for stage, *_ in fed] == ["semantic", "coarse", "fine"] and len(heard) == 3 and frames < 100
    for stage, sequences, drawn in fed:
        for sequence, contexts in zip(sequences, expected, strict=True):
            arrays = contexts[stage].arrays
            assert sequence.context.arrays.keys() == arrays.keys() and arrays
            for name, array in arrays.items():
                np.testing.assert_array_equal(sequence.context.arrays[name], array, err_msg=name)
        for row, item in zip(drawn, tokens, strict=True):
            own = getattr(item, stage)
            own = own[:frames].ravel() if stage != "semantic" else own[np.append(True, own[1:] != own[:-1])][: len(row)]
            np.testing.assert_array_equal(row, own, err_msg=stage)
        assert manifest.quality[stage]["tokens"] == sum(map(len, drawn)) > 30


@pytest.mark.parametrize(
    "precision,folder,message",
    [
        ("fp32", "sounds", "every stage is fp32: give a precision too"),
        ("int8", "nowhere", "nowhere is not a directory"),
        ("int8", "empty", "empty has no sounds (.wav, .flac, .ogg, .opus, .mp3)"),
        ("int8", "broken", "b.wav: not a sound file that can be read"),
        ("int8", "short", "short.wav: a prime must last at least"),
    ],
)
def test_sounds_that_nothing_is_measured_on(
    precision: str, folder: str, message: str, at_once, sounds: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    """Fault: a table of nothing, or of fewer sounds than were given, without a word."""
    monkeypatch.setattr(exporting, "validate_in_new_process", validating.validate)  # a process of its own takes its time to import torch
    for name in ("empty", "broken", "short"):
        (tmp_path / name).mkdir()
    (tmp_path / "broken" / "b.wav").write_bytes(b"RIFF of nothing")
    soundfile.write(tmp_path / "short" / "short.wav", np.zeros(20, np.float32), 16000)
    given = sounds if folder == "sounds" else tmp_path / folder
    assert at_once(tmp_path / "bundle", "--precision", precision, "--calibration", str(given)) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "bundle").exists()


def test_the_measure_itself(tiny_bundle: Path, tmp_path: Path) -> None:
    """Fault: rows or steps of the two models that are not each other's: then even the same weights would seem to differ."""
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    manifest = Bundle.open(folder).manifest
    for name in ("same", "other"):
        (tmp_path / name).mkdir()
        for stage in ("semantic", "coarse", "fine"):
            for suffix in (".onnx", ".onnx.data"):
                shutil.copy(folder / f"{stage}{suffix}", tmp_path / name)
    for stage in ("semantic", "coarse", "fine"):
        path = tmp_path / "other" / f"{stage}.onnx.data"
        data = np.fromfile(path, np.float32)
        _, offset, *shape = getattr(manifest, stage).step.weights["layers.0.feed_forward.w_out"]
        data[offset // 4 : offset // 4 + int(np.prod(shape))] *= -1
        data.tofile(path)
    steps = {stage: dict.fromkeys(("same", "other"), asdict(getattr(manifest, stage).step)) for stage in ("semantic", "coarse", "fine")}
    with md.load(folder, device="cpu") as model:
        found = quality.measure(model, steps, calibration.of_texts(model))
    for stage, measured in found.items():
        assert measured["same"]["top1"] == 1 and abs(measured["same"]["kl"]) < 1e-12, stage
        assert measured["other"]["kl"] > 1e-3, stage
