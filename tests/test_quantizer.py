"""What training asks of MuLaN's quantizer beyond its forward pass: codebooks fitted once, frozen, kept in a file, accepted upstream."""

import copy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from support.mulan import NAMESPACES, build, quantizers, tokens, upstream, waves
from torch import Tensor

import musiclm_deploy.model as ours
from musiclm_deploy.model import MuLaNEmbedQuantizer
from musiclm_deploy.model.upstream import load_upstream

load_upstream()


def fresh() -> MuLaNEmbedQuantizer:
    return MuLaNEmbedQuantizer(build(ours), **NAMESPACES)


def clusters() -> Tensor:
    """Latents around 19 points far apart, one for each code."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.nn.functional.one_hot(torch.arange(19) % 18, 18).float()
    centres[18] = -1.0
    return (centres.repeat(40, 1) + torch.randn(760, 18, generator=generator) * 0.01)[torch.randperm(760, generator=generator)]


@pytest.mark.parametrize("batched", [False, True])
def test_fit_lowers_the_error_level_by_level(batched: bool) -> None:
    """Levels that cluster the latents and not what is left over, batches of which only the first counts, codebooks left unset."""
    quantizer, latents = fresh(), clusters()
    torch.manual_seed(0)
    quantizer.fit(latents.split(100) if batched else latents)
    assert quantizer.initialised
    before = copy.deepcopy(quantizer.rq.state_dict())
    codes: Tensor = quantizer.eval().rq(latents)[1]
    residual, errors = latents, [latents.square().mean().item()]
    for level, layer in enumerate(quantizer.rq.layers):
        residual = residual - layer._codebook.embed[0][codes[:, level]]  # type: ignore[index]
        errors.append(residual.square().mean().item())
    assert all(after < 0.95 * error for error, after in pairwise(errors)), errors
    assert errors[-1] < 0.3 * errors[0], errors
    for name, tensor in quantizer.rq.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("way", ["fit", "freeze", "load"])
def test_frozen_codebooks_stay(way: str, tmp_path: Path) -> None:
    """Codes that drift under the transformers trained on them, in this run or in the next."""
    _, quantizer = quantizers()
    if way == "freeze":
        quantizer.freeze()
    elif way == "load":
        quantizer.save(tmp_path / "quantizer.pt")
        quantizer = fresh()
        quantizer.load(tmp_path / "quantizer.pt")
    else:
        quantizer = fresh()
        quantizer.fit(clusters())
    quantizer.eval().train()
    before = copy.deepcopy(quantizer.rq.state_dict())
    quantizer(wavs=waves(6, 700))
    assert quantizer.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in quantizer.rq.state_dict().items())


def test_a_file_goes_both_ways(tmp_path: Path) -> None:
    """A tensor lost on the way, a part file left behind, a file that upstream cannot load."""
    theirs, mine = quantizers()
    mine.save(tmp_path / "quantizer.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["quantizer.pt"]
    again = fresh().eval()
    again.load(tmp_path / "quantizer.pt")
    assert torch.equal(again(texts=tokens(3, 6)), mine(texts=tokens(3, 6)))
    theirs.load_state_dict(torch.load(tmp_path / "quantizer.pt", weights_only=True))


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint lost to a full disk."""
    path = tmp_path / "quantizer.pt"
    path.write_bytes(b"old")

    def fail(_: Any, file: Any) -> None:
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="No space"):
        fresh().save(path)
    assert path.read_bytes() == b"old" and [file.name for file in tmp_path.iterdir()] == ["quantizer.pt"]


def test_an_optimizer_of_its_parameters_trains_the_tables() -> None:
    """MuLaN moved under its own codes, or tables that no optimizer sees."""
    _, quantizer = quantizers()
    quantizer.freeze()
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=1.0)
    before = copy.deepcopy(quantizer.state_dict())
    quantizer(texts=tokens(4, 6), namespace="coarse").square().sum().backward()
    optimizer.step()
    assert [name for name, tensor in quantizer.state_dict().items() if not torch.equal(tensor, before[name])] == ["cond_embeddings.coarse"]


def test_nan_latents_are_refused() -> None:
    """A wave of NaN that becomes a code like any other, and with it a whole condition."""
    _, quantizer = quantizers()
    wave = waves(2, 700)
    wave[1, 300] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinite values: are the waves finite"):
        quantizer.eval()(wavs=wave)


def test_upstream_takes_it_as_a_conditioner() -> None:
    """Upstream's wrappers and trainers refuse what is no `AudioConditionerBase`, though it does all that they ask."""
    import audiolm_pytorch

    transformer = audiolm_pytorch.SemanticTransformer(num_semantic_tokens=7, dim=8, depth=1, heads=1, dim_head=4, audio_text_condition=True)
    _, mine = quantizers()
    wrapper = audiolm_pytorch.SemanticTransformerWrapper(transformer=transformer, audio_conditioner=mine)  # type: ignore[arg-type]
    assert wrapper.audio_conditioner is mine
    assert isinstance(mine, upstream.MuLaNEmbedQuantizer.__mro__[1]) and isinstance(fresh(), torch.nn.Module)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: fresh().fit(torch.ones(18, 18)), "at least 19 latents"),
        (lambda: fresh().fit([torch.ones(30, 17)]), r"each \[N, 18\], got \[\[30, 17\]\]"),
        (lambda: fresh().fit([]), "at least 19 latents"),
        (lambda: fresh().fit(torch.full((30, 18), torch.nan)), "NaN"),
        (lambda: quantizers()[1].fit(torch.ones(30, 18)), "initialised already"),
        (lambda: fresh().freeze(), "call fit before freeze"),
    ],
)
def test_fit_and_freeze_refuse(call: Any, message: str) -> None:
    """Codebooks of duplicates or NaN, a second fit that moves every code, frozen codebooks of nothing."""
    with pytest.raises(ValueError, match=message):
        call()
