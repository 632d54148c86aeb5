"""Words that MuLaN was never trained on: which rows of its table training left alone, what a bundle keeps of that, and who is warned."""

import json
import logging
import shutil
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

import musiclm_deploy as md
from demo import captions
from musiclm_deploy.export.checkpoint import TOKEN_TABLE, from_package
from musiclm_deploy.export.mulan import split_quantizer_state
from musiclm_deploy.export.trained_tokens import moments_of, trained_tokens
from musiclm_deploy.model import TextTransformer
from musiclm_deploy.model.text_transformer import clip_merges_path
from musiclm_deploy.runtime.bundle import MANIFEST, Bundle, BundleError, pack_tokens, unpack_tokens
from musiclm_deploy.runtime.prompts import Blend
from musiclm_deploy.runtime.tokenizer import ClipTokenizer
from musiclm_deploy.runtime.words import texts_of, unknown_words

CHECKPOINT = Path(__file__).resolve().parent.parent / "demo" / "checkpoint" / "quantizer.pt"
TOKENS, SEEN = 600, 40  # captions have the first 40 of a tower's 600 tokens


@pytest.fixture(scope="module")
def clip() -> ClipTokenizer:
    return ClipTokenizer.from_merges(clip_merges_path())


def trained(width: int, steps: int = 30, **optimizer: float) -> tuple[TextTransformer, torch.optim.Optimizer]:
    """Train a text tower by AdamW on captions of the first SEEN tokens but number 0, which is masked."""
    torch.manual_seed(width)
    tower = TextTransformer(width, 1, num_tokens=TOKENS, max_seq_len=8, dim_head=16, heads=2)
    adam = torch.optim.AdamW(tower.parameters(), **{"lr": 3e-4, "weight_decay": 0.0, "betas": (0.9, 0.99), **optimizer})
    for step in range(steps):
        words = 1 + (torch.arange(40) + step) % (SEEN - 1)
        adam.zero_grad()
        tower(words.reshape(5, 8)).square().sum().backward()
        adam.step()
    return tower, adam


@pytest.mark.parametrize("width", [256, 512])
def test_rows_that_training_left_alone(width):
    """Trained rows are taken for untrained ones, or the other way: the sizes of both are the same."""
    table = trained(width)[0].token_emb.weight.detach()
    sizes = table.square().mean(dim=1).sqrt()
    assert sizes[1:SEEN].min() < sizes[SEEN:].max() and sizes[1:SEEN].max() > sizes[SEEN:].min()
    mask, told = trained_tokens(table)
    assert mask is not None and mask[1:SEEN].all() and mask[SEEN:].mean() < 0.02
    assert "as drawn" in told


def test_moments():
    """Weight decay moves every row: only the optimizer knows the ones without gradients."""
    tower, adam = trained(64, weight_decay=0.1)
    table = tower.token_emb.weight.detach()
    assert trained_tokens(table)[0] is None
    moments = moments_of(adam.state_dict(), tuple(table.shape))
    assert moments is not None and (moments.steps, moments.beta) == (30, 0.99)
    mask, told = trained_tokens(table, moments)
    assert mask is not None and (np.flatnonzero(mask) == np.arange(1, SEEN)).all() and "without moments (561)" in told
    package = {"model": {TOKEN_TABLE: table, "audio_to_latents.weight": torch.zeros(1)}, "optim": adam.state_dict()}
    assert from_package("mulan.pt", package, "mulan").moments == moments


def test_moments_that_mean_nothing():
    """A moment that faded in a long run, and rows of a tower that was trained before: known words would be named."""
    tower, adam = trained(64)
    table = tower.token_emb.weight.detach()
    moments = moments_of(adam.state_dict(), tuple(table.shape))
    assert moments is not None
    assert trained_tokens(table, replace(moments, steps=100_000.0))[0] is None
    pretrained = table * torch.linspace(0.2, 3, TOKENS)[:, None]
    assert trained_tokens(pretrained, moments)[0] is None


@pytest.mark.parametrize(
    "optimizer",
    [
        None,
        {},
        {"state": []},
        {"state": {0: {"exp_avg_sq": torch.zeros(3, 2)}}, "param_groups": None},
        {"state": {0: {"exp_avg_sq": torch.zeros(3, 2), "step": torch.zeros(2)}}, "param_groups": [{"betas": (0.9, 0.99)}]},
        {"state": {0: {"exp_avg_sq": torch.zeros(3, 2), "step": 1}}, "param_groups": [{"betas": (0.9, 1.5)}]},
        {"state": {0: {"exp_avg_sq": torch.zeros(3, 2), "step": 1}}, "param_groups": [{}]},
        {"state": {0: {"exp_avg_sq": torch.zeros(2, 2), "step": 1}}, "param_groups": [{"betas": (0.9, 0.99)}]},
    ],
)
def test_an_optimizer_of_another_kind(optimizer):
    """Fault: an export ends in an error because a trainer saved something else under that name."""
    assert moments_of(optimizer, (3, 2)) is None


@pytest.mark.parametrize(
    "table",
    [
        torch.randn(300, 256, generator=torch.Generator().manual_seed(0)),
        torch.randn(300, 256, generator=torch.Generator().manual_seed(0)) * 0.98,
        torch.randn(300, 256, generator=torch.Generator().manual_seed(0)).half(),
        torch.randn(300, 40, generator=torch.Generator().manual_seed(0)),
        torch.rand(300, 256, generator=torch.Generator().manual_seed(0)),
        torch.full((300, 256), torch.nan),
        torch.zeros(300, 256),
    ],
    ids=["drawn", "shrunk", "half", "narrow", "uniform", "nan", "zero"],
)
def test_nothing_can_be_told(table):
    """An untrained tower, or one without marks, would name every word, or words that it knows."""
    mask, told = trained_tokens(table)
    assert mask is None and told.startswith("cannot be known: ")


def test_the_demo(clip):
    """The truth is known there: the words of its captions, and no other."""
    _, inside = split_quantizer_state(torch.load(CHECKPOINT, map_location="cpu", weights_only=True))
    assert inside is not None
    mask, told = trained_tokens(inside[TOKEN_TABLE])
    assert mask is not None and told == "text.token_emb: the other rows are zero (49263)"
    lists = chain(*(group.values() for group in (captions.PLAYERS, captions.TEMPI, captions.MOODS, captions.MODES, captions.DENSITIES)))
    empty = dict.fromkeys(("player", "player_bare", "tempo", "mood", "mode", "density"), "")
    frames = [template.format(**empty) for template in captions.TEMPLATES["train"]]
    for text in (*chain(*lists), *frames, *captions.FILLERS):
        assert unknown_words(text, clip, mask) == [], text
    assert unknown_words("calm piano in a ballroom; 静かなピアノ, asdf! Calm ASDF", clip, mask) == ["ballroom", "静かなピアノ", "asdf"]
    assert int(mask.sum()) == 145


def test_bits():
    """A bit that moves, or bits of another tokenizer, would name the wrong words."""
    mask = np.random.default_rng(0).random(1001) < 0.3
    assert (unpack_tokens(pack_tokens(mask), 1001) == mask).all()
    with pytest.raises(BundleError, match="has 126 bytes, expected 2: a bit for each of 9 tokens"):
        unpack_tokens(pack_tokens(mask), 9)
    with pytest.raises(BundleError, match="trained_tokens is not base64"):
        unpack_tokens("ä!", 9)


def test_texts_of_blends():
    """A word inside of a blend is a word of the prompt."""
    sound = (np.zeros(8, np.float32), 8000)
    assert texts_of(["a", Blend([("b", 1.0), (sound, 0.5), ("c", -0.5)]), Blend([(sound, 1.0)])]) == ["a", "b", "c"]


@pytest.fixture(scope="module")
def bundle(tiny_bundle, clip, tmp_path_factory) -> Path:
    """The tiny bundle as if its MuLaN had been trained on "calm piano" alone."""
    folder = tmp_path_factory.mktemp("words") / "bundle"
    shutil.copytree(tiny_bundle, folder)
    mask = np.zeros(len(clip.vocabulary), bool)
    mask[clip.encode("calm piano")] = True
    values = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    values["mulan"]["trained_tokens"] = pack_tokens(mask)
    (folder / MANIFEST).write_text(json.dumps(values), encoding="utf-8")
    return folder


def test_warned_once(bundle, caplog):
    """A clip of words that mean nothing to MuLaN came out without a word; known words must raise no alarm."""
    with md.load(bundle, device="cpu") as model, caplog.at_level(logging.WARNING):
        model.generate(["Calm, calm piano!", "piano"], seconds=0.05)
        assert not caplog.records
        model.generate(["loud piano", Blend([("brass", 1.0), ("calm", 1.0), ("loud", 1.0)])], seconds=0.05)
        assert [record.getMessage() for record in caplog.records] == [
            "no caption that MuLaN was trained on had 'loud', 'brass': what such words do to the music is chance."
        ]
        assert model.unknown_words("loud calm piano") == ["loud"]


def test_a_bundle_from_before(tiny_bundle, tmp_path):
    """Bundles that do not say which words were trained stay usable, and name none."""
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    values = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    del values["mulan"]["trained_tokens"]
    (folder / MANIFEST).write_text(json.dumps(values), encoding="utf-8")
    assert Bundle.open(folder).manifest.mulan.trained_tokens is None
    with md.load(folder, device="cpu") as model:
        assert model.unknown_words(["asdf"]) == []
