"""Training of a token transformer with audiolm-pytorch's own wrapper and loss, on tokens that are ready.

In: the runs `tokens`, `codes` and `fit`. Out: `state.pt` in a folder of the stage's name. The conditioning is what the quantizer's table
of the stage's namespace says for the codes. It knows neither waves nor words.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from demo.sizes import Sizes, codec, transformer
from demo.tokens import Tokens
from demo.train_codec import weights
from demo.training import Run, half_precision
from musiclm_deploy.model.upstream import load_upstream

_MASKED = 0.1  # of the positions, hidden from later ones in training: upstream's forgetful causal mask
_VALID_BATCHES = 4


def wrapper(sizes: Sizes, stage: str, model: Any) -> Any:
    """Upstream's wrapper of a stage, given ids only."""
    load_upstream()
    import audiolm_pytorch

    if stage == "semantic":
        # Each token lasts as long as any other: they carry time, and a clip's length follows from their number.
        return audiolm_pytorch.SemanticTransformerWrapper(transformer=model, unique_consecutive=False, mask_prob=_MASKED)
    shared: dict[str, Any] = {"transformer": model, "codec": codec(sizes), "mask_prob": _MASKED}  # the codec only says its quantizers
    if stage == "coarse":
        return audiolm_pytorch.CoarseTransformerWrapper(unique_consecutive=False, semantic_cross_entropy_loss_weight=0.0, **shared)
    return audiolm_pytorch.FineTransformerWrapper(coarse_cross_entropy_loss_weight=0.0, **shared)


def train_transformer(sizes: Sizes, stage: str, folder: Path) -> None:
    """Until the schedule's end, from the run's last checkpoint on."""
    schedule = {"semantic": sizes.semantic_schedule, "coarse": sizes.coarse_schedule, "fine": sizes.fine_schedule}[stage]
    torch.manual_seed(0)
    model = transformer(sizes, stage)
    wrapped = wrapper(sizes, stage, model)
    train, valid = (Tokens(folder, split, with_codes=stage != "semantic") for split in ("train", "valid"))
    table = torch.load(folder / "fit" / "quantizer.pt", map_location="cpu", weights_only=True)[f"cond_embeddings.{stage}"]
    run = Run(model, schedule, folder / stage)
    table = table.to(run.device)

    def loss(batch: dict[str, Tensor]) -> Tensor:
        batch = {name: rows.to(run.device) for name, rows in batch.items()}
        embeds = table[torch.arange(table.shape[0]), batch["condition"]]
        if stage == "semantic":
            return wrapped(semantic_token_ids=batch["semantic"], text_embeds=embeds, return_loss=True)
        if stage == "coarse":
            coarse = batch["codes"][..., : sizes.coarse_quantizers]
            return wrapped(semantic_token_ids=batch["semantic"], coarse_token_ids=coarse, text_embeds=embeds, return_loss=True)
        return wrapped(token_ids=batch["codes"], text_embeds=embeds, return_loss=True)

    def step(rng: np.random.Generator, _: int) -> dict[str, Tensor]:
        wrapped.train()
        with half_precision(run.device):
            return {"loss": loss(train.batch(rng, schedule.batch, sizes.text_share)).float()}

    @torch.no_grad()
    def validate() -> dict[str, float]:
        """On captions alone, as it will be used."""
        with weights(model, run.average):
            wrapped.eval()
            rng = np.random.default_rng(0)
            losses = [loss(valid.batch(rng, schedule.batch, 1.0)) for _ in range(_VALID_BATCHES)]
        return {"valid_loss": float(torch.stack(losses).mean())}

    run.train(step, validate)
