"""MuLaN and quantizer files of every release of musiclm-pytorch: latents and codes as that release gave them, or refused by name.

The golden numbers are those of the releases themselves, with the weights of `support.drawn`. fp32: entries of unit vectors, 1e-5; codes
are exact.
"""

import re
from typing import Any

import numpy as np
import pytest
import torch
from support.drawn import drawn, normal
from torch import Tensor

from musiclm_deploy.export.errors import ExportError
from musiclm_deploy.export.mulan import build_mulan, conditioner_weights, infer_mulan, infer_quantizer
from musiclm_deploy.model import AudioSpectrogramTransformer, MuLaN, TextTransformer
from musiclm_deploy.model.residual_vq import nearest_codes

# Release: four entries of an audio and of a text latent; the texts' codes; an entry of each of the first text's conditioning vectors.
GOLDEN: dict[str, Any] = {
    "0.0.24": (
        [-0.460914, 0.032935, -0.358721, 0.173842],
        [0.024298, -0.432382, -0.049577, -0.020638],
        [[4, 1, 6], [4, 1, 6]],
        [0.235579, 0.407611, -0.380668],
    ),
    "0.1.2": (
        [-0.455438, 0.337835, -0.155094, 0.063347],
        [-0.481339, 0.078732, -0.018159, 0.119107],
        [[4, 1, 8], [4, 1, 6]],
        [0.235579, 0.407611, 0.309679],
    ),
}
GOLDEN["0.0.28"], GOLDEN["0.1.0"], GOLDEN["0.2.2"] = GOLDEN["0.0.24"], GOLDEN["0.1.2"], GOLDEN["0.1.2"]  # each measured for itself
IDS = torch.tensor([[5, 9, 2, 0, 0], [7, 1, 3, 8, 59]])


def mulan_state(release: str) -> dict[str, Tensor]:
    """Return the tensors that a MuLaN of this release saves, under its names; from 0.1 on of one with a hierarchical loss."""
    audio = AudioSpectrogramTransformer(dim=32, depth=2, heads=2, dim_head=8, patch_size=4)
    text = TextTransformer(dim=24, depth=2, heads=2, dim_head=8, num_tokens=60, max_seq_len=9)
    named = MuLaN(audio, text, dim_latent=18, hierarchical_contrastive_loss=True).state_dict()
    if release < "0.2":
        named["temperature"] = named.pop("contrast.temperatures")[0, 0, 0]
        named["multi_layer_contrastive_learning.temperatures"] = named.pop("multi_layer_contrastive_learning.contrast.temperatures")
    if release < "0.1.1":
        named = {name: tensor for name, tensor in named.items() if not name.endswith("_layers_indices")}
    if release < "0.1":
        named = {name: tensor for name, tensor in named.items() if not name.startswith("multi_layer_")}
        gains = [name for name in named if name.endswith(".learned_gamma")]
        named |= {name.replace("learned_gamma", "beta"): torch.zeros_like(named[name]) for name in gains}
        named = {name.replace("learned_gamma", "gamma"): tensor for name, tensor in named.items()}
    return drawn(named)


def quantizer_state() -> dict[str, Tensor]:
    """Return a quantizer's own tensors, which have had the same names since 0.0.3."""
    named = {f"cond_embeddings.{stage}": torch.zeros(3, 11, dim) for stage, dim in (("semantic", 6), ("coarse", 7), ("fine", 8))}
    for level in range(3):
        book = f"rq.layers.{level}._codebook."
        named |= {book + "embed": torch.zeros(1, 11, 18), book + "initted": torch.zeros(1), book + "cluster_size": torch.zeros(1, 11)}
    return drawn(named)


@pytest.mark.parametrize("release", sorted(GOLDEN))
@torch.no_grad()
def test_computes_as_its_release(release: str) -> None:
    """Norms under the names of their time left at one; a file refused for the temperature of a loss that no latent depends on."""
    state, (audio, text, codes, conditioning) = mulan_state(release), GOLDEN[release]
    mulan = build_mulan(infer_mulan(state, {}), state)
    np.testing.assert_allclose(mulan.get_audio_latents(normal("wave", 2, 700))[1, :4], audio, rtol=0, atol=1e-5)
    latents = mulan.get_text_latents(IDS)
    np.testing.assert_allclose(latents[0, :4], text, rtol=0, atol=1e-5)
    own = quantizer_state()
    assert not infer_quantizer(own, {})["uninitialised"]
    books, table = conditioner_weights(own)["coarse"]
    found = nearest_codes(latents, books)
    assert found.tolist() == codes
    np.testing.assert_allclose(table[torch.arange(3), found[0], 0], conditioning, rtol=0, atol=1e-5)


def test_older_releases_are_refused_by_name() -> None:
    """Towers without normalised queries and keys, from before 0.0.23, called damaged."""
    state = {name: tensor for name, tensor in mulan_state("0.0.24").items() if not name.endswith(("q_scale", "k_scale"))}
    with pytest.raises(ExportError, match=r"musiclm-pytorch 0\.0\.22 or earlier, whose attention .* 0\.0\.24 and later"):
        infer_mulan(state, {})


@pytest.mark.parametrize("name", ["temperature", "logit_scale", "contrast.bias", "contrastive_loss.weight", "initted", "n_averaged"])
def test_a_tensor_of_training_is_no_reason_to_refuse(name: str) -> None:
    """A loss's own numbers beside the towers, even where they hold NaN: no latent depends on them."""
    state = mulan_state("0.1.2") | {name: torch.tensor(torch.nan)}
    mulan = build_mulan(infer_mulan(state, {}), state)
    np.testing.assert_allclose(mulan.get_text_latents(IDS)[0, :4].detach(), GOLDEN["0.1.2"][1], rtol=0, atol=1e-5)
    assert infer_quantizer(quantizer_state() | {"step": torch.tensor(3)}, {})["codebook_size"] == 11


@pytest.mark.parametrize("name", ["audio_head.weight", "text.adapter.weight", "audio.norm.beta"])
def test_a_tensor_that_may_change_a_latent_is_refused(name: str) -> None:
    """A layer that is not known, left out without a word; a shift of a norm that was trained after all."""
    state = mulan_state("0.0.28") | {name: torch.ones(32)}
    with pytest.raises(ExportError, match=re.escape(name)):
        build_mulan(infer_mulan(state, {}), state)
