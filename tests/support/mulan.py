"""MuLaN in upstream's form and ours, with the same random weights, and calls of its graphs."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor

import musiclm_deploy.model as ours
from musiclm_deploy.model import AudioSpectrogramTransformer, MuLaN, MuLaNEmbedQuantizer, TextTransformer, music_spectrogram
from musiclm_deploy.model.upstream import load_upstream

load_upstream()
import musiclm_pytorch  # noqa: E402 (imports only after load_upstream)

upstream: Any = musiclm_pytorch


TOLERANCE = 1e-5  # fp32, entries of unit vectors


TOKENS = 300


TOWERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "default": ({}, {}),
    "oblong patches": (
        dict(patch_size=(8, 16), spec_n_fft=50, spec_win_length=31, spec_hop_length=7, heads=3, dim_head=12),
        dict(heads=3, dim_head=20, ff_mult=3),
    ),
    "magnitudes": (dict(spec_power=1, spec_pad=9, spec_center=False, patch_size=4, ff_mult=2.5, depth=3), dict(max_seq_len=9, depth=4)),
}


def randomise(module: Any, seed: int = 0) -> Any:
    """Add noise to every parameter: a gain of one or a bias of zero would hide its own absence."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module.eval()


def build(package: Any, variant: str = "default", **mulan: Any) -> Any:
    """Build a tiny MuLaN of either package: upstream's classes and ours have the same names and arguments."""
    audio, text = ({"dim": dim, "depth": 2, "heads": 2} | arguments for dim, arguments in zip((32, 24), TOWERS[variant], strict=True))
    towers = package.AudioSpectrogramTransformer(**audio), package.TextTransformer(**{"num_tokens": TOKENS, "max_seq_len": 20} | text)
    return package.MuLaN(*towers, dim_latent=18, **mulan)


def pair(variant: str = "default", **mulan: Any) -> tuple[Any, Any]:
    """Return upstream's MuLaN and ours, with equal random weights."""
    theirs, mine = randomise(build(upstream, variant, **mulan)), build(ours, variant, **mulan).eval()
    mine.load_state_dict(theirs.state_dict())
    return theirs, mine


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """Assert equal latents, of clips that the model tells apart."""
    assert torch.pdist(expected).min() > 1e-2, "the model is insensitive: this comparison could not fail"
    np.testing.assert_allclose(actual.detach().numpy(), expected.detach().numpy(), rtol=0, atol=TOLERANCE)


def waves(batch: int, samples: int, seed: int = 0) -> Tensor:
    """Return noise of another colour in each row."""
    noise = torch.randn(batch, samples + batch, generator=torch.Generator().manual_seed(seed))
    return torch.stack([noise[i, : samples + i + 1].unfold(0, i + 2, 1).mean(-1)[:samples] for i in range(batch)])


def tokens(batch: int, length: int) -> Tensor:
    """Return ids with padding at the end of all rows but the first, and id 0 inside a text."""
    ids = torch.randint(1, TOKENS, (batch, length), generator=torch.Generator().manual_seed(0))
    for row in range(1, batch):
        ids[row, length - row :] = 0
    ids[0, length // 2] = 0
    return ids


NAMESPACES: dict[str, Any] = dict(
    conditioning_dims=(10, 14, 6), namespaces=("semantic", "coarse", "fine"), rq_num_quantizers=4, codebook_size=19
)


def quantizers() -> tuple[Any, MuLaNEmbedQuantizer]:
    """Return upstream's quantizer and ours with equal weights; codebooks spread like the latents, each level finer than the last."""
    their_mulan, my_mulan = pair()
    theirs, mine = upstream.MuLaNEmbedQuantizer(their_mulan, **NAMESPACES), MuLaNEmbedQuantizer(my_mulan, **NAMESPACES)
    assert list(mine.state_dict()) == list(theirs.state_dict())
    generator = torch.Generator().manual_seed(1)
    for level, layer in enumerate(theirs.rq.layers):
        codebook = layer._codebook
        codebook.embed.copy_(torch.randn(codebook.embed.shape, generator=generator) * 0.25 / 2**level)
        codebook.embed_avg.copy_(codebook.embed)
        codebook.initted.fill_(True)
    mine.load_state_dict(theirs.state_dict())
    return theirs.eval(), mine.eval()


def run(path: Path, **inputs: Tensor) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()}), strict=True))


def mel_mulan(n_mels: int = 20) -> MuLaN:
    """Build a tiny MuLaN with a log-mel spectrogram at 8 kHz and oblong patches."""
    audio: dict[str, Any] = dict(dim=32, depth=2, heads=2, dim_head=8, patch_size=(8, 16)) | music_spectrogram(8000, n_mels)
    text = TextTransformer(dim=24, depth=2, heads=2, dim_head=8, num_tokens=TOKENS, max_seq_len=20)
    return randomise(MuLaN(AudioSpectrogramTransformer(**audio), text, dim_latent=18))
