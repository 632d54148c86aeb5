"""What the tests of distributed training run, in one process for each rank, joined by gloo.

It must import fast and only ours: each process starts from nothing.
"""

import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from musiclm_deploy.model import AudioSpectrogramTransformer, MuLaN, TextTransformer

RANKS = 2


def tiny_mulan(seed: int = 0, augment: bool = False, **mulan: Any) -> MuLaN:
    torch.manual_seed(seed)
    tower: dict[str, Any] = dict(dim=24, depth=3, heads=2, dim_head=8)
    masks: dict[str, Any] = dict(spec_aug_freq_mask=8, spec_aug_time_mask=8, patch_dropout_prob=0.25 if augment else 0.0)
    if not augment:
        masks |= dict(spec_aug_freq_mask=0, spec_aug_time_mask=0)
    audio = AudioSpectrogramTransformer(**tower, **masks)
    return MuLaN(audio, TextTransformer(**tower, num_tokens=40, max_seq_len=9), dim_latent=12, **mulan)


def tiny_pairs(count: int) -> tuple[Tensor, Tensor]:
    """Tones of different height, waves [count, 1400], and their token ids [count, 3]."""
    time = torch.arange(1400) / 8000
    waves = torch.stack([torch.sin(2 * torch.pi * (150 + 90 * i) * time) for i in range(count)])
    return waves, torch.stack([torch.tensor([i + 1, 30 + i % 3, 35]) for i in range(count)])


def run(function: Callable[..., None], folder: Path, *arguments: Any) -> None:
    """`function(rank, folder, *arguments)` in RANKS processes of one group; an error of any of them is raised here."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(_in_group, args=(port, function, folder, arguments), nprocs=RANKS)


def _in_group(rank: int, port: int, function: Callable[..., None], folder: Path, arguments: Sequence[Any]) -> None:
    torch.set_num_threads(1)
    group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": RANKS, "LOCAL_WORLD_SIZE": RANKS, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in group.items()}, MASTER_ADDR="127.0.0.1")
    dist.init_process_group("gloo")
    function(rank, folder, *arguments)
    dist.destroy_process_group()


def contrast(rank: int, folder: Path, shares: list[list[int]], losses: dict[str, dict[str, Any]]) -> None:
    """Loss and gradients of every kind of loss, for every way of sharing pairs among the ranks, into `<rank>.pt`."""
    results = []
    for batches in shares:
        waves, texts = (tensor.split(batches)[rank] for tensor in tiny_pairs(sum(batches)))
        results.append({})
        for name, arguments in losses.items():
            model = DistributedDataParallel(tiny_mulan(**arguments))
            loss = model(waves, texts)
            loss.backward()
            results[-1][name] = loss.detach(), {key: parameter.grad for key, parameter in model.module.named_parameters()}
    torch.save(results, folder / f"{rank}.pt")


def disagree(rank: int, folder: Path) -> None:
    """Write what a rank is told when the ranks' latents, or their settings, do not fit together."""
    from musiclm_deploy.model.distributed import gather_batch

    told = []
    for wrong in (lambda: gather_batch(torch.zeros(1, 2, 3 + rank)), lambda: train(rank, folder / "run", batch_size=2 + rank)):
        try:
            wrong()
        except ValueError as error:
            told.append(str(error))
    (folder / f"{rank}.txt").write_text("\n".join(told), encoding="utf-8")


class Pairs(torch.utils.data.Dataset):
    """`tiny_pairs` as a data set whose waves are louder or softer by chance."""

    def __init__(self, count: int) -> None:
        self.waves, self.texts = tiny_pairs(count)

    def __len__(self) -> int:
        return len(self.waves)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.waves[index] * (0.5 + torch.rand(1)), self.texts[index]


def train(rank: int, folder: Path, **settings: Any) -> None:
    """A short training on the CPU of all ranks."""
    from musiclm_deploy.model import MuLaNTrainer

    cpu = {"accelerate_kwargs": {"cpu": True}}
    settings = dict(batch_size=2, num_train_steps=6, valid_frac=0.25, valid_every=3, save_model_every=3, lr=1e-3) | cpu | settings
    MuLaNTrainer(tiny_mulan(augment=True), Pairs(14), results_folder=folder, **settings).train()
