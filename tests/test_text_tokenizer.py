"""MuLaN's text tower and its tokenizer, held against each other by the export, and a bundle with a tokenizer of another training."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

import musiclm_deploy as md
from musiclm_deploy.export.calibration import TEXTS, texts_for
from musiclm_deploy.export.checkpoint import TOKEN_TABLE
from musiclm_deploy.export.collect import collect
from musiclm_deploy.export.errors import ExportError
from musiclm_deploy.export.export import records_of
from musiclm_deploy.export.mulan import build_mulan, infer_mulan, mulan_record
from musiclm_deploy.export.text_tokenizer import (
    faults_of_tokenizer,
    infer_tokenizer,
    most_tokens,
    tokens_of,
    warnings_of_tokenizer,
    write_tokenizer,
)
from musiclm_deploy.runtime.bundle import MANIFEST, Bundle, Manifest, pack_tokens
from musiclm_deploy.runtime.records import parse
from musiclm_deploy.runtime.tokenizer_file import FileTokenizer

NAMES = {"mulan": "mulan.pt", "tokenizer": "tokenizer.json"}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "calm", "piano", "##s", "brass", "band", ";"]


def bert(folder: Path, cut: int | None = None, pad_to: int | None = None, pad: str = "[PAD]") -> Path:
    """Write a WordPiece file as BERT's, of ten tokens."""
    words = [word if pad != "none" else word.replace("PAD", "unused0") for word in WORDS]
    tokenizer = Tokenizer(models.WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    if cut:
        tokenizer.enable_truncation(cut)
    if pad != "none":
        tokenizer.enable_padding(pad_id=WORDS.index(pad), pad_token=pad, length=pad_to)
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def tower(packages, rows: int, positions: int, **overrides: int):
    """Return what the export infers of the tiny MuLaN with a table of so many rows, and positions."""
    state = dict(packages["mulan"]["model"])
    table = state[TOKEN_TABLE]
    state[TOKEN_TABLE] = table[:rows] if rows <= len(table) else torch.cat([table, table[: rows - len(table)]])
    state["text.pos_emb.weight"] = state["text.pos_emb.weight"][:positions]
    return infer_mulan(state, {f"text.{name}": value for name, value in overrides.items()})


@pytest.mark.parametrize(
    ("rows", "fault", "warning"),
    [
        (20000, "mulan.pt: text.num_tokens is 20000, but CLIP's tokenizer, which musiclm-pytorch uses unless it is given", ""),
        (49407, "has 49408: give the tokenizer of the training with --tokenizer tokenizer.json", ""),
        (49408, "", ""),
        (49500, "", "text.num_tokens is 49500, but CLIP's tokenizer has 49408. If it was trained with another tokenizer, give that with"),
    ],
)
def test_clips_tokenizer_and_the_table(packages, rows, fault, warning):
    """Fault: a table of 20,000 or 28,996 rows, as in upstream's README or for BERT, with the 49,408 ids of CLIP: some words are beyond it,
    the others mean something else."""
    mulan = tower(packages, rows, 256)
    faults, warnings = faults_of_tokenizer(mulan, None, NAMES), warnings_of_tokenizer(mulan, None, NAMES)
    assert (len(faults), len(warnings)) == (bool(fault), bool(warning))
    assert fault in "".join(faults) and warning in "".join(warnings)


@pytest.mark.parametrize(
    ("rows", "positions", "file", "overrides", "fault", "warning"),
    [
        (10, 256, {}, {}, "", ""),
        (9, 256, {}, {}, "tokenizer.json: ';' has the id 9, but mulan.pt: text.num_tokens is 9: give the tokenizer that this MuLaN", ""),
        (
            12,
            256,
            {},
            {},
            "",
            "num_tokens is 12, but tokenizer.json has 10. If it was trained with this tokenizer, the last 2 rows are",
        ),
        (10, 2, {}, {}, "puts 2 tokens around a text, but mulan.pt takes 2, so that no word has room", ""),
        (10, 256, {"cut": 2}, {}, "puts 2 tokens around a text, but mulan.pt takes 2", ""),
        (10, 8, {"pad_to": 9}, {}, "tokenizer.json: pads every text to 9 tokens, but mulan.pt takes 8: give the file", ""),
        (10, 8, {"pad_to": 8}, {}, "", ""),
        (10, 8, {"pad": "[UNK]"}, {}, 'TextTransformer was given with --config {"mulan": {"text.pad_id": 1}}, or 0 if none', ""),
        (10, 8, {"pad": "[UNK]"}, {"pad_id": 1}, "", ""),
        (10, 8, {"pad": "[UNK]"}, {"pad_id": 0}, "", "pads with id 1, which text.pad_id = 0 does not mask"),
        (10, 8, {"pad": "none"}, {}, "", "names no padding id. MuLaN masks the id 0: check that the training padded with it"),
    ],
)
def test_a_file_and_the_tower(packages, tmp_path, rows, positions, file, overrides, fault, warning):
    """Fault: ids beyond the table, texts longer than its positions, padding that is masked here and was not in training."""
    mulan, (checkpoint, tokenizer) = tower(packages, rows, positions, **overrides), infer_tokenizer(bert(tmp_path, **file))
    faults, warnings = faults_of_tokenizer(mulan, tokenizer, NAMES), warnings_of_tokenizer(mulan, tokenizer, NAMES)
    assert (len(faults), len(warnings)) == (bool(fault), bool(warning)), (faults, warnings)
    assert fault in "".join(faults) and warning in "".join(warnings)
    assert tokens_of(tokenizer) == 10 and most_tokens(mulan, tokenizer) == min(positions, file.get("cut") or positions)
    assert checkpoint.name == "tokenizer.json" and checkpoint.sha256


@pytest.mark.parametrize("value", [-1, 49408, 1.0, True])
def test_a_padding_id_that_is_none(packages, value):
    """Fault: an override that no token has, and that therefore masks nothing."""
    with pytest.raises(ExportError, match=r"text\.pad_id must be"):
        infer_mulan(packages["mulan"]["model"], {"text.pad_id": value})


def test_a_bundle_with_a_tokenizer_of_its_own(tiny_models, tiny_bundle, good, run, tmp_path):
    """Fault: anywhere between the option and the latent another tokenizer is used than the file's, or another mask than the training's."""
    path, overrides = bert(tmp_path, cut=16, pad="calm"), {"mulan": {"text.pad_id": 4}}
    files = [str(file) for file in good.values()]
    (tmp_path / "config.json").write_text(json.dumps(overrides))
    status, output, _ = run("doctor", *files, path, "--config", tmp_path / "config.json", "--json")
    report = json.loads(output)
    assert (status, report["faults"], report["settings"]["tokenizer"]["tokens"][0]) == (0, [], 10)
    assert (report["files"][-1]["kind"], report["files"][-1]["what"]) == ("tokenizer", "a tokenizer of 10 tokens (WordPiece)")
    status, same, _ = run("doctor", *files, "--tokenizer", tmp_path, "--config", tmp_path / "config.json", "--json")
    assert json.loads(same)["settings"] == report["settings"] and json.loads(same)["warnings"] == report["warnings"]
    assert any("text.num_tokens is 49408, but tokenizer.json has 10" in text for text in report["warnings"])

    collected = collect({**good, "tokenizer": tmp_path}, overrides)
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    (folder / MANIFEST).unlink()
    write_tokenizer(tmp_path, folder)
    manifest, settings = Bundle.open(tiny_bundle).manifest, collected.settings
    ours = build_mulan(settings["mulan"], collected.checkpoints["mulan"].state)
    mulan = mulan_record(settings["mulan"], settings["tokenizer"], ours, np.ones(49408, bool), 16000, None)
    assert (mulan.max_tokens, mulan.tokenizer_from_file, mulan.pad_id) == (16, True, 4)
    assert mulan.trained_tokens == pack_tokens(np.ones(10, bool))
    manifest = replace(manifest, mulan=mulan, files=records_of(folder))
    assert manifest.files["tokenizer.json"].sha256 == collected.checkpoints["tokenizer"].sha256
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")

    text = "Calm pianos; BRASS saxophone"
    with md.load(folder, device="cpu", threads=1) as model, torch.inference_mode():
        ids = torch.tensor([Tokenizer.from_file(str(path)).encode(text).ids])
        assert ids.tolist() == [[2, 4, 5, 6, 9, 7, 1, 3]]
        upstream = tiny_models["mulan"]  # musiclm-pytorch's
        latents = upstream.text_to_latents(upstream.text(ids, mask=ids != 4))
        expected = torch.nn.functional.normalize(latents, dim=-1).numpy()
        assert np.abs(model.embed_text(text) - expected).max() < 1e-5
        assert model.generate(text, seconds=0.1).audio.shape == (1600,)
        with pytest.raises(ValueError, match="a text of 22 tokens is longer than the 16 MuLaN takes"):
            model.generate("calm " * 20)


def test_texts_that_a_precision_is_measured_on(tmp_path):
    """Fault: a right model whose texts are short is refused, since the export's own texts are longer."""
    tokenizer = FileTokenizer.from_file(bert(tmp_path))
    manifest = SimpleNamespace(mulan=SimpleNamespace(max_tokens=4))
    model: Any = SimpleNamespace(encoders=SimpleNamespace(tokenizer=tokenizer), bundle=SimpleNamespace(manifest=manifest))
    texts = texts_for(model)
    assert texts[0] == "calm piano " and all(len(tokenizer.encode(text)) <= 4 and tokenizer.encode_words(text) for text in texts)
    model.bundle.manifest.mulan.max_tokens = 64
    assert texts_for(model) == list(TEXTS)


def test_manifests_without_the_new_fields(tiny_bundle):
    """Fault: bundles of before, whose tokenizer is CLIP's and whose padding is 0, cannot be opened."""
    manifest = Bundle.open(tiny_bundle).manifest
    values = asdict(manifest)
    assert (values["mulan"].pop("tokenizer_from_file"), values["mulan"].pop("pad_id")) == (None, None)
    faults: list[str] = []
    assert parse(Manifest, json.loads(json.dumps(values)), "", faults) == manifest and not faults
    assert json.loads((tiny_bundle / "tokenizer.json").read_text(encoding="utf-8"))["model"]["end_of_word_suffix"] == "</w>"
