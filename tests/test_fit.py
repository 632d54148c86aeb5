"""Every pair of parts that has to agree (the table of docs/export.md): one that does not is one sentence, with both files and values."""

from __future__ import annotations

import copy
import math
import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support import ROOT

from musiclm_deploy.export.collect import Collected, collect
from musiclm_deploy.export.errors import ExportError
from musiclm_deploy.export.fit import check_wrappers, faults_of_fit
from musiclm_deploy.export.settings import Settings

# Part, settings of it with other values, what is said. The tiny MusicLM has 19 semantic tokens, 2 + 3 quantizers of 13 codes, conditions
# of width 24.
PAIRS: dict[str, tuple[str, dict[str, Any], str]] = {
    "semantic tokens of semantic and coarse": (
        "coarse",
        {"num_semantic_tokens": 18},
        "semantic.pt: num_semantic_tokens is 19, but coarse.pt: num_semantic_tokens is 18",
    ),
    "codes of coarse and fine": ("fine", {"codebook_size": 14}, "coarse.pt: codebook_size is 13, but fine.pt: codebook_size is 14"),
    "codes of coarse and the codec": ("codec", {"codebook_size": 14}, "coarse.pt: codebook_size is 13, but codec.pt: codebook_size is 14"),
    "coarse quantizers of coarse and fine": (
        "coarse",
        {"num_coarse_quantizers": 4},
        "coarse.pt: num_coarse_quantizers is 4, but fine.pt: num_coarse_quantizers is 2",
    ),
    "quantizers of fine and the codec": (
        "fine",
        {"num_fine_quantizers": 4},
        "fine.pt: 6 coarse and fine quantizers, but codec.pt: rq_num_quantizers is 5",
    ),
    "width of the condition": ("coarse", {"cond_dim": 32}, "coarse.pt: takes a condition of width 32, but quantizer.pt gives 24"),
    "a table for each stage": ("quantizer.fine", {"namespaces": ("coarse", "x", "y")}, "quantizer.pt: has no table for fine, only coarse"),
    "one table, of another stage": (
        "quantizer.fine",
        {"namespaces": ("coarse",), "conditioning_dims": (24,)},
        "quantizer.pt: has no table for fine, only coarse",
    ),
    "width of MuLaN's latents": ("mulan", {"dim_latent": 12}, "quantizer.pt: dim_latent is 16, but mulan.pt: dim_latent is 12"),
    "conditioning tokens of the stages": (
        "quantizer.fine",
        {"rq_num_quantizers": 4},
        "quantizer.pt: rq_num_quantizers is 4, but quantizer.pt: rq_num_quantizers is 3",
    ),
    "clusters and semantic tokens": (
        "wav2vec",
        {"codebook_size": 20},
        "mel.pt: codebook_size is 20, but semantic.pt: num_semantic_tokens is 19",
    ),
    "rate of the semantic tokens": (
        "wav2vec",
        {"samples_per_token": 320},
        "mel.pt: gives 25 tokens a second, but semantic.pt: tokens_per_second is 50; override it if",
    ),
    "no rate": ("semantic", {"tokens_per_second": 0.0}, "semantic.pt: tokens_per_second must be a positive number, got 0.0"),
    "rate without end": ("semantic", {"tokens_per_second": math.inf}, "semantic.pt: tokens_per_second must be a positive number, got inf"),
    "MuLaN's words": ("mulan", {"text.num_tokens": 30522}, "mulan.pt: text.num_tokens is 30522, but CLIP's tokenizer"),
}


@pytest.fixture(scope="module")
def fitting(good, mel_file) -> Collected:
    return collect({**good, "semantic-features": mel_file}, {})


def changed(collected: Collected, part: str, values: dict[str, Any]) -> Collected:
    """Return the same parts but for some settings of one."""
    settings = Settings(part)
    for name, item in collected.settings[part].items():
        settings.infer(name, values.get(name, item.value), item.source)
    return replace(collected, settings={**collected.settings, part: settings})


@pytest.mark.parametrize("pair", PAIRS)
def test_a_pair_that_disagrees_is_one_sentence(fitting, pair):
    """Fault: two files of different trainings, which both are right, make a bundle that fails later, or wrong music."""
    part, values, words = PAIRS[pair]
    assert faults_of_fit(fitting) == []
    (fault,) = faults_of_fit(changed(fitting, part, values))
    assert fault.startswith(words)


@pytest.mark.parametrize(
    ("without", "part", "setting"),
    [("coarse", "codec", "codebook_size"), ("semantic", "wav2vec", "codebook_size"), ("mulan", "fine", "num_fine_quantizers")],
)
def test_pairs_of_what_is_there(fitting, without, part, setting):
    """Fault: the doctor, given a few files, holds a part only against one that is not among them."""
    settings = {name: values for name, values in changed(fitting, part, {setting: 99}).settings.items() if name != without}
    (fault,) = faults_of_fit(replace(fitting, settings=settings))
    assert "99" in fault or "101" in fault


def test_a_quantizer_for_a_stage_without_condition(good, tmp_path):
    """Fault: an option that has no effect, since the stage reads no condition, is not mentioned."""
    from musiclm_deploy.model.upstream import load_upstream

    load_upstream()
    import audiolm_pytorch

    fine = audiolm_pytorch.FineTransformer(
        num_coarse_quantizers=2, num_fine_quantizers=3, codebook_size=13, dim=24, depth=2, heads=2, dim_head=8
    )
    torch.save(fine.state_dict(), tmp_path / "fine.pt")
    sources = {**good, "fine": tmp_path / "fine.pt", "quantizer.fine": good["quantizer"]}
    with pytest.raises(ExportError, match=re.escape("--quantizer fine=...: fine.pt takes no condition. Leave this option out.")):
        collect(sources, {})


@pytest.mark.parametrize("value", [0, -1, 2.5])
def test_windows_of_the_spectrogram_are_whole_numbers(good, value):
    """Fault: a hop of no length, or a fraction of a sample, is said minutes later and in the words of torch."""
    with pytest.raises(ExportError, match="spec_hop_length must be a whole number of at least 1"):
        collect(good, {"mulan": {"spec_hop_length": value}})


def test_wrappers_of_a_live_model(mel_kmeans, tiny_models):
    """Fault: the export takes codec and rules of one wrapper, and another was trained with others."""
    codec, other = tiny_models["codec"].decoder, copy.deepcopy(tiny_models["codec"].decoder)
    wrapped = SimpleNamespace(
        semantic=SimpleNamespace(unique_consecutive=True, wav2vec=mel_kmeans),
        coarse=SimpleNamespace(unique_consecutive=True, wav2vec=copy.deepcopy(mel_kmeans), codec=codec),
        fine=SimpleNamespace(codec=other),
    )
    check_wrappers(wrapped)
    wrapped.coarse.unique_consecutive = False
    next(other.parameters()).data += 1
    wrapped.coarse.wav2vec.centres += 1
    with pytest.raises(ExportError) as caught:
        check_wrappers(wrapped)
    assert str(caught.value) == (
        "the wrappers of this AudioLM do not fit together: unique_consecutive is True in semantic and False in coarse; the codec of coarse "
        "is not that of fine: their tensors differ; the wav2vec of semantic is not that of coarse: their tensors differ. A bundle has one "
        "for all stages."
    )


def test_the_page_lists_every_setting_that_is_compared():
    """Fault: a pair that is checked but that nobody can read of."""
    page = (ROOT / "docs" / "export.md").read_text(encoding="utf-8").split("## What has to fit together")[1].split("\n## ")[0]
    settings = {name for _, values, _ in PAIRS.values() for name in values}
    assert [name for name in settings - {"conditioning_dims", "samples_per_token"} if f"`{name}`" not in page] == []
