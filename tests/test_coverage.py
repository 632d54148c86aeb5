"""docs/coverage.md is true and complete: it is what its command makes, and no option of upstream's classes is missing."""

import inspect
import random
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import covered
import pytest
import torch
from torch import Tensor, nn

TESTS = Path(__file__).resolve().parent
SECTIONS = covered.sections()
TRIED = [(section, row) for section in SECTIONS for row in section.rows if row.other is not covered.NOTHING]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models so small that threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_the_page_is_what_the_command_makes() -> None:
    """A page edited by hand, a refusal whose words have changed, an option that is now read from elsewhere; and, since every refusal is
    provoked for it, an option that is no longer refused."""
    assert covered.make_page() == covered.PAGE.read_text(encoding="utf-8"), "run python tests/covered.py"


def test_every_argument_is_listed() -> None:
    """An option that upstream has, or gets with a raised pin, and the page does not speak of; or one that upstream has not."""
    known = {name for section in SECTIONS for infer in section.infer for name in infer({}).values()}
    for section in SECTIONS:
        listed = {name for row in section.rows for name in row.arguments}
        taken = set()
        for path in section.classes:
            module, _, name = path.rpartition(".")
            parameters = list(inspect.signature(getattr(import_module(module), name).__init__).parameters.values())[1:]
            taken |= {parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD}
        assert taken and taken <= listed, f"{section.title}: {sorted(taken - listed)} are missing"
        strange = {name for name in listed - taken if not {name, section.prefix + name} & known}
        assert not strange, f"{section.title}: {sorted(strange)} are no arguments of {section.classes}"


def test_every_setting_is_listed() -> None:
    """A setting that the export reads or assumes, and the page does not speak of."""
    listed = {prefix + name for section in SECTIONS for row in section.rows for name in row.arguments for prefix in ("", section.prefix)}
    settings = {name for section in SECTIONS for infer in section.infer for name in infer({}).values()}
    assert len(settings) > 50 and settings <= listed, sorted(settings - listed)


def test_every_test_exists() -> None:
    """A test that was renamed or removed stays on the page as a proof."""
    for row in (row for section in SECTIONS for row in section.rows if row.verdict == "covered"):
        file, _, name = row.words.partition("::")
        assert f"\ndef {name}(" in (TESTS / file).read_text(encoding="utf-8"), row.words


@torch.no_grad()
def outputs(model: Any) -> list[Tensor]:
    """All that a bundle takes from such a model."""
    generator = torch.Generator().manual_seed(1)
    kind = type(model).__name__
    if kind == "SemanticTransformer":
        ids, condition = torch.arange(10).view(2, 5), torch.randn(2, 3, 24, generator=generator)
        return [model.forward_with_cond_scale(ids=ids, text_embeds=condition)]
    if kind == "SoundStream":
        codes = model(torch.randn(2, 150, generator=generator), return_encoded=True)[1]
        return [codes, model.decode_from_codebook_indices(torch.randint(13, (2, 20, 3), generator=generator))]
    if kind == "AudioSpectrogramTransformer":
        return [model(torch.randn(2, 1500, generator=generator))]
    ids = torch.tensor([[5, 9, 2, 0], [7, 0, 0, 0]])
    return [model(texts=ids)] if kind == "MuLaNEmbedQuantizer" else [model(ids)]


def seeded(section: covered.Section, **arguments: Any) -> nn.Module:
    assert section.build is not None
    torch.manual_seed(0)
    random.seed(0)  # hyper-connections draws its first stream from Python's generator
    model = section.build(**arguments)
    for name, buffer in model.named_buffers():
        if name.endswith("_codebook.embed"):
            buffer.copy_(torch.randn(buffer.shape, generator=torch.Generator().manual_seed(2)))
        elif name.endswith("_codebook.initted"):
            buffer.fill_(True)
    return model.eval()


@cache
def plain(title: str) -> nn.Module:
    return seeded(next(section for section in SECTIONS if section.title == title))


@pytest.mark.parametrize(("section", "row"), TRIED, ids=[f"{section.title}-{row.option}" for section, row in TRIED])
def test_no_effect(section: covered.Section, row: covered.Row) -> None:
    """An option that is said to serve training alone, but changes what the model computes from the same tensors.

    fp32, 1e-5 of the largest: upstream's gradient shrinking adds two shares of a value, which rounds.
    """
    model, other = plain(section.title), seeded(section, **{row.option: row.other})
    shapes = {name: tensor.shape for name, tensor in other.state_dict().items()}
    other.load_state_dict({name: tensor for name, tensor in model.state_dict().items() if shapes.get(name) == tensor.shape}, strict=False)
    for one, two in zip(outputs(model), outputs(other), strict=True):
        torch.testing.assert_close(two, one, rtol=0, atol=1e-5 * one.abs().max().item() if one.is_floating_point() else 0)
        assert one.unique().numel() > 3, "nothing to compare"
