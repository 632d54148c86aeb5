"""MuLaN and its quantizer against musiclm-pytorch itself: the same weights must give the same latents and the same conditioning.

Every parameter is random, gains and biases too, so that none of them can be forgotten. fp32: latents are unit vectors, and 1e-5 in each
entry is about fifty times what a different order of summation costs here.
"""

import copy
import logging
from typing import Any

import numpy as np
import pytest
import torch
from support.mulan import NAMESPACES, TOKENS, TOLERANCE, TOWERS, assert_close, build, pair, quantizers, randomise, tokens, upstream, waves
from torch import nn

import musiclm_deploy.model as ours
from musiclm_deploy.model import AudioSpectrogramTransformer, MuLaN, MuLaNEmbedQuantizer, TextTransformer
from musiclm_deploy.model.spectrogram import Spectrogram
from musiclm_deploy.model.upstream import load_upstream

load_upstream()
import torchaudio  # noqa: E402


@pytest.mark.parametrize("variant", TOWERS)
@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("hierarchical", [False, True])
def test_state_dicts_load_both_ways(variant: str, sigmoid: bool, hierarchical: bool) -> None:
    """A parameter or buffer with another name, shape, order or fresh value than upstream's."""
    arguments = dict(sigmoid_contrastive_loss=sigmoid, hierarchical_contrastive_loss=hierarchical)
    theirs, mine = build(upstream, variant, **arguments), build(ours, variant, **arguments)
    expected, fresh = theirs.state_dict(), mine.state_dict()
    assert [(name, tensor.shape, tensor.dtype) for name, tensor in fresh.items()] == [
        (name, tensor.shape, tensor.dtype) for name, tensor in expected.items()
    ]
    for name in expected.keys() - dict(theirs.named_parameters()).keys():
        assert torch.equal(fresh[name], expected[name]), (name, fresh[name], expected[name])
    theirs.load_state_dict(randomise(mine).state_dict())
    mine.load_state_dict(theirs.state_dict())


@pytest.mark.parametrize(
    "arguments",
    [
        dict(n_fft=128, win_length=24),
        dict(n_fft=128, win_length=128, hop_length=37, pad=5),
        dict(n_fft=33, win_length=10, power=1.0),
        dict(n_fft=32, win_length=31, power=0.5, pad=40),
        dict(n_fft=40, win_length=17, center=False),
        dict(n_fft=41, win_length=41, center=False, pad=3),
        dict(n_fft=64, win_length=20, pad_mode="constant"),
        dict(n_fft=64, win_length=21, pad_mode="replicate"),
        dict(n_fft=64, win_length=20, pad_mode="circular"),
    ],
    ids=str,
)
def test_spectrogram_equals_torchaudio(arguments: dict[str, Any]) -> None:
    """A window off its centre by one, a missing frame at an edge, a padding of the wrong kind."""
    defaults: dict[str, Any] = dict(power=2, hop_length=None, pad=0, center=True, pad_mode="reflect")
    wave = waves(2, 613)
    expected = torchaudio.transforms.Spectrogram(**defaults | arguments)(wave)
    actual = Spectrogram(**defaults | arguments)(wave)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-6 * expected.max())  # fp32: one part in half a million of the peak


def test_spectrogram_uses_the_window_of_the_checkpoint() -> None:
    """A transform built once from a Hann window, whatever window was loaded."""
    spectrogram = Spectrogram(n_fft=32, power=2, win_length=20, hop_length=None, pad=0, center=True, pad_mode="reflect")
    reference = torchaudio.transforms.Spectrogram(32, 20)
    window = torch.hamming_window(20)
    for module in (spectrogram, reference):
        module.load_state_dict({"window": window})
    np.testing.assert_allclose(spectrogram(waves(1, 99)), reference(waves(1, 99)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("variant", TOWERS)
@pytest.mark.parametrize("samples", [1531, 901])
def test_audio_latents(variant: str, samples: int) -> None:
    """Anything in the audio tower: patches, crop, position embedding, relative bias, norms, pooling."""
    theirs, mine = pair(variant)
    assert_close(mine.get_audio_latents(waves(3, samples)), theirs.get_audio_latents(waves(3, samples)))


@pytest.mark.parametrize("time_first", [True, False])
def test_audio_tower_takes_spectrograms(time_first: bool) -> None:
    """Time and frequency exchanged: the two axes have different odd lengths."""
    arguments: dict[str, Any] = dict(dim=32, depth=2, accept_spec=True, accept_spec_time_first=time_first, patch_size=(4, 8))
    theirs, mine = randomise(upstream.AudioSpectrogramTransformer(**arguments)), AudioSpectrogramTransformer(**arguments).eval()
    mine.load_state_dict(theirs.state_dict())
    spectrograms = torch.rand(3, 35, 21)
    assert_close(mine(spectrograms), theirs(spectrograms))
    with pytest.raises(ValueError, match="three dimensions"):
        mine(torch.rand(3, 35))
    with pytest.raises(ValueError, match="smaller than one patch of 4 x 8"):
        mine(torch.rand(3, 3, 3))


def test_a_tower_of_one_layer() -> None:
    """Upstream itself fails with depth 1: it stacks the outputs of all layers but the last. So its reference here has a second layer that
    adds nothing."""
    theirs = randomise(build(upstream))
    audio = AudioSpectrogramTransformer(dim=32, depth=1, heads=2)
    mine = MuLaN(audio, TextTransformer(dim=24, depth=1, heads=2, num_tokens=TOKENS, max_seq_len=20), dim_latent=18).eval()
    for tower in (theirs.audio, theirs.text):
        attention, feed_forward = tower.transformer.layers[1]
        nn.init.zeros_(attention.to_out[0].weight)
        nn.init.zeros_(feed_forward[4].weight)
    mine.load_state_dict({name: tensor for name, tensor in theirs.state_dict().items() if ".layers.1." not in name})
    assert_close(mine.get_audio_latents(waves(2, 700)), theirs.get_audio_latents(waves(2, 700)))
    assert_close(mine.get_text_latents(tokens(2, 7)), theirs.get_text_latents(tokens(2, 7)))


@pytest.mark.parametrize("variant", TOWERS)
def test_text_latents(variant: str) -> None:
    """Anything in the text tower: class token, positions, a mask that leaves out padding and id 0 within a text."""
    theirs, mine = pair(variant)
    ids = tokens(3, 9)
    assert_close(mine.get_text_latents(ids), theirs.get_text_latents(ids))
    np.testing.assert_allclose(mine.get_text_latents(ids, mask=ids != 0).detach(), mine.get_text_latents(ids).detach(), rtol=0, atol=0)


def test_raw_texts() -> None:
    """A tokenizer other than upstream's behind `raw_texts`."""
    size = dict(dim=16, depth=2, heads=2, dim_head=8)
    theirs = upstream.MuLaN(upstream.AudioSpectrogramTransformer(**size), upstream.TextTransformer(**size))
    mine = MuLaN(AudioSpectrogramTransformer(**size), TextTransformer(**size)).eval()
    mine.load_state_dict(randomise(theirs).state_dict())
    texts = ["Slow piano; wow!;!", "a drum &amp; bass track with a very long introduction"]
    assert_close(mine.get_text_latents(raw_texts=texts), theirs.get_text_latents(raw_texts=texts))
    with pytest.raises(ValueError, match="2000 tokens is longer than the 256"):
        mine.get_text_latents(raw_texts=["la " * 2000])


def test_forward_returns_what_upstream_returns() -> None:
    """Similarities of the wrong pairs."""
    theirs, mine = pair()
    wavs, texts = waves(3, 800), tokens(3, 6)
    for name in ("return_latents", "return_similarities", "return_pairwise_similarities"):
        expected, actual = theirs(wavs, texts, **{name: True}), mine(wavs, texts, **{name: True})
        torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        dict(spec_center=False),
        dict(spec_pad=30),
        *(dict(spec_pad_mode=mode, patch_size=(8, 1), spec_n_fft=64, spec_win_length=60) for mode in ("reflect", "circular", "constant")),
        dict(spec_pad=9, patch_size=(8, 1), spec_n_fft=64, spec_win_length=60),
    ],
    ids=str,
)
def test_the_shortest_clip(arguments: dict[str, Any]) -> None:
    """A clip without a whole patch, which upstream answers with NaN or a message from deep inside, and an off-by-one in `min_samples`."""
    tower = AudioSpectrogramTransformer(dim=16, depth=1, **arguments).eval()
    assert tower(waves(1, tower.min_samples)).isfinite().all()
    for samples in {tower.min_samples - 1, 1} - {0, tower.min_samples}:
        with pytest.raises(ValueError, match=f"wave of {samples} samples is shorter than the {tower.min_samples} "):
            tower(waves(1, samples))
    with pytest.raises(ValueError, match=r"takes waves \[B, t\]"):
        tower(waves(1, 999)[0])


def test_a_patch_higher_than_the_spectrogram() -> None:
    """No patch fits, however long the clip: the answer must not be NaN."""
    with pytest.raises(ValueError, match="9 bins x 135 frames is smaller than one patch of 16 x 16"):
        AudioSpectrogramTransformer(dim=16, depth=1, spec_n_fft=16, spec_win_length=16).eval()(waves(1, 1072))


def test_the_crop_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """Silent loss of the clip's end, or a line for every clip."""
    tower = AudioSpectrogramTransformer(dim=16, depth=1).eval()
    with caplog.at_level(logging.WARNING):
        tower(waves(1, 1000))
        tower(waves(1, 1100))
    assert [record.getMessage() for record in caplog.records] == [
        "spectrogram of 65 bins x 84 frames cropped to 64 x 80, whole patches of 16 x 16: 4.8% of the clip and "
        "1.5% of the bins are not seen (said once)"
    ]


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: AudioSpectrogramTransformer(dim=18, depth=1), "multiple of 4"),
        (lambda: AudioSpectrogramTransformer(dim=16, depth=1, spec_win_length=129), "between 1 and n_fft = 128"),
        (lambda: AudioSpectrogramTransformer(dim=16, depth=1, spec_win_length=1), "hop_length must be at least 1"),
        (lambda: AudioSpectrogramTransformer(dim=16, depth=1, spec_power=0), "power"),
        (lambda: AudioSpectrogramTransformer(dim=16, depth=1, spec_pad_mode="edge"), "pad_mode"),
        (lambda: build(ours, hierarchical_contrastive_loss=True, hierarchical_contrastive_loss_layers=2), "between 1 and 1, the depth"),
        (lambda: build(ours).text(torch.ones(1, 21, dtype=torch.long)), "21 tokens is longer than the 20"),
        (lambda: build(ours).text(), "token ids or raw_texts"),
        (lambda: build(ours).text(tokens(1, 3), raw_texts=["x"]), "not both"),
        (lambda: MuLaNEmbedQuantizer(build(ours), (8, 8), namespaces=("semantic",)), "one conditioning dimension per namespace"),
    ],
)
def test_wrong_arguments_are_refused(build: Any, message: str) -> None:
    """A mistake of the caller that surfaces as a shape error somewhere below."""
    with pytest.raises(ValueError, match=message):
        build()


def test_quantizer_conditioning() -> None:
    """Codes of the wrong level, a table of another namespace, codebooks that move while nobody trains."""
    theirs, mine = quantizers()
    before = copy.deepcopy(mine.state_dict())
    wavs, texts = waves(5, 700), tokens(5, 8)
    for inputs in (dict(wavs=wavs), dict(texts=texts)):
        for namespace in (None, "semantic", "coarse", "fine"):
            expected = theirs(**inputs, namespace=namespace)
            assert len(torch.unique(expected[:, -1], dim=0)) > 1, "all rows have the same code: this comparison could not fail"
            assert torch.equal(mine(**inputs, namespace=namespace), expected)
    mine.set_default_namespace("fine")
    assert mine(wavs=wavs).shape == (5, 4, 6)
    for name, tensor in mine.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_quantizer_follows_the_latents_in_training() -> None:
    """A moving average with other constants than upstream's."""
    theirs, mine = quantizers()
    for quantizer in (theirs, mine):
        torch.manual_seed(0)  # for the codes that the quantizer replaces
        quantizer.train()(wavs=waves(6, 700))
    moved = [name for name, tensor in quantizers()[1].state_dict().items() if not torch.equal(tensor, mine.state_dict()[name])]
    assert "rq.layers.3._codebook.embed" in moved
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(mine.state_dict()[name], tensor, rtol=0, atol=TOLERANCE)


def test_a_fresh_quantizer_is_refused() -> None:
    """Upstream runs k-means on the first clip it meets, even in eval mode, and calls the result codes."""
    quantizer = MuLaNEmbedQuantizer(build(ours), **NAMESPACES).eval()
    with pytest.raises(ValueError, match="never initialised"):
        quantizer(wavs=waves(2, 700))
    assert not any(layer._codebook.embed.any() for layer in quantizer.rq.layers)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda quantizer: quantizer(wavs=waves(1, 700), namespace="codec"), "'codec' not found"),
        (lambda quantizer: quantizer.set_default_namespace("codec"), "'codec' not found"),
        (lambda quantizer: quantizer(), "either wavs or texts"),
        (lambda quantizer: quantizer(wavs=waves(1, 700), texts=tokens(1, 3)), "either wavs or texts"),
    ],
)
def test_quantizer_refuses(call: Any, message: str) -> None:
    """An unknown namespace, nothing or too much to embed."""
    with pytest.raises(ValueError, match=message):
        call(quantizers()[1])
