"""MuLaN's losses and their parameters, in upstream's form and ours, and what makes two training steps the same."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from support.mulan import tokens, waves

TOLERANCE = 1e-5  # fp32, of the largest entry, and absolute for what is smaller than one


LOSSES: dict[str, dict[str, Any]] = {
    "softmax": dict(decoupled_contrastive_learning=False),
    "decoupled": {},
    "sigmoid": dict(sigmoid_contrastive_loss=True),
}


HIERARCHIES: dict[str, dict[str, Any]] = {
    "": {},
    "hierarchical": dict(hierarchical_contrastive_loss=True),
    "one layer": dict(hierarchical_contrastive_loss=True, hierarchical_contrastive_loss_layers=1),
}


def assert_equal(actual: Tensor | None, expected: Tensor | None, name: str, atol: float = TOLERANCE) -> None:
    assert actual is not None and expected is not None, name
    assert expected.isfinite().all(), name
    np.testing.assert_allclose(actual.detach(), expected.detach(), rtol=0, atol=atol * max(1.0, expected.abs().max().item()), err_msg=name)


def assert_same_step(theirs: Any, mine: Any, batch: int = 4, seed: int = 0) -> None:
    """Equal losses, and equal gradients of every parameter, of the same random state."""
    losses = []
    for model in (theirs, mine):
        model.zero_grad()
        torch.manual_seed(seed)
        losses.append(model(waves(batch, 901), tokens(batch, 7)))
        losses[-1].backward()
    assert_equal(losses[1], losses[0], "loss")
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    assert [name for name, parameter in mine.named_parameters() if parameter.grad is None] == [
        name for name, gradient in gradients.items() if gradient is None
    ]
    moving = 0
    for name, parameter in mine.named_parameters():
        if gradients[name] is not None:
            assert_equal(parameter.grad, gradients[name], name, 2 * TOLERANCE)  # sums over all pairs, in an order that threads change
            moving += bool(parameter.grad.abs().max() > 100 * TOLERANCE)
    assert moving > 0.8 * len(gradients), "most gradients vanish: this comparison could not fail"
