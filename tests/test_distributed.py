"""Two gloo processes against one with the joined batch: the same losses, gradients and curves. CPU, fp32."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.ranks import RANKS, contrast, disagree, run, tiny_mulan, tiny_pairs, train

LOSSES: dict[str, dict[str, Any]] = {
    "softmax": dict(decoupled_contrastive_learning=False),
    "decoupled": {},
    "sigmoid": dict(sigmoid_contrastive_loss=True),
    "hierarchical": dict(hierarchical_contrastive_loss=True),
    "hierarchical sigmoid": dict(hierarchical_contrastive_loss=True, sigmoid_contrastive_loss=True),
}
TOLERANCE = 1e-5  # fp32, of the largest gradient: sums in another order


def test_two_processes_equal_one_with_the_joined_batch(tmp_path: Path) -> None:
    """Negatives of one's own process alone, a gradient too small by the number of processes, an uneven batch padded into the loss."""
    shares = [[3, 3], [4, 1]]
    run(contrast, tmp_path, shares, LOSSES)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(RANKS)]
    for (number, batches), (name, arguments) in product(enumerate(shares), LOSSES.items()):
        waves, texts = tiny_pairs(sum(batches))
        model = tiny_mulan(**arguments)
        loss = model(waves, texts)
        loss.backward()
        for found, gradients in (rank[number][name] for rank in ranks):
            assert found.item() == pytest.approx(loss.item(), rel=TOLERANCE), name
            for key, parameter in model.named_parameters():
                assert parameter.grad is not None
                scale = max(1.0, parameter.grad.abs().max().item())
                np.testing.assert_allclose(gradients[key], parameter.grad, rtol=0, atol=TOLERANCE * scale, err_msg=f"{name}: {key}")
        alone = tiny_mulan(**arguments)(waves[: batches[0]], texts[: batches[0]]).item()
        assert abs(alone - loss.item()) > 1e-2, f"{name}: fewer negatives give the same loss, so that this could not fail"


def test_processes_that_disagree_are_told(tmp_path: Path) -> None:
    """A process that waits for ever for one which has failed, or a loss of latents that do not belong together."""
    run(disagree, tmp_path)
    for rank in range(RANKS):
        latents, settings = (tmp_path / f"{rank}.txt").read_text(encoding="utf-8").splitlines()
        assert latents.endswith("[L, B, D] by rank: [[1, 2, 3], [1, 2, 4]]")
        assert settings.endswith("by rank: batch_size is [2, 3]")


def test_a_run_of_two_processes_goes_on_along_its_curve(tmp_path: Path) -> None:
    """Processes that draw the same clips or the same masks, one that writes over the other, a curve that bends where it was cut."""
    run(train_to_the_end, tmp_path)
    whole, cut = ((tmp_path / name / "metrics.csv").read_text().splitlines() for name in ("whole", "cut"))
    assert [line.split(",")[:4] for line in whole] == [line.split(",")[:4] for line in cut] and len(whole) == 7
    assert whole[3].split(",")[2] and whole[6].split(",")[3]


def train_to_the_end(rank: int, folder: Path) -> None:
    train(rank, folder / "whole")
    train(rank, folder / "cut", num_train_steps=3)
    train(rank, folder / "cut", resume=True)
