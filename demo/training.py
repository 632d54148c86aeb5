"""One loop for every model that is trained here without a trainer of its own.

In: a model, its optimizer and schedule, a function from (generator, step) to a loss. Out: `state.pt`, `metrics.csv` and TensorBoard's
events in a folder. What a step draws follows from the seed and its number, so that a run that was stopped goes on as if it had not been.
It does not know what is trained.
"""

import csv
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from demo.sizes import Schedule
from musiclm_deploy.model.batches import mix_seeds
from musiclm_deploy.model.files import cut_metrics, save_aside

Step = Callable[[np.random.Generator, int], dict[str, Tensor]]  # -> "loss" and what else is to be logged
_FLOOR = 0.05  # of the learning rate, at the end
_LOG_EVERY = 50  # steps that a row of the log is the mean of


class Run:
    """A training that can be taken up again, on a GPU where there is one. The weights to use are the moving average, `average`."""

    def __init__(self, model: nn.Module, schedule: Schedule, folder: Path, *, average: float = 0.998, seed: int = 0) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model, self.schedule, self.folder, self.seed, self.decay = model.to(self.device), schedule, folder, seed, average
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=schedule.lr, betas=(0.9, 0.98), weight_decay=0.01)
        self.average = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        self.steps, self.seconds = 0, 0.0
        folder.mkdir(parents=True, exist_ok=True)
        if self.path.is_file():
            self._load()

    @property
    def path(self) -> Path:
        return self.folder / "state.pt"

    def train(self, step: Step, validate: Callable[[], dict[str, float]] | None = None, *, save_every_s: float = 120.0) -> None:
        """Go on to the schedule's last step. A checkpoint is written every `save_every_s` seconds and at the end."""
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(self.folder / "tensorboard", purge_step=self.steps)
        cut_metrics(self.folder / "metrics.csv", self.steps)
        saved, recent = time.perf_counter(), []
        while self.steps < self.schedule.steps:
            started = time.perf_counter()
            recent.append(self._step(step))
            self.seconds += time.perf_counter() - started
            last = self.steps == self.schedule.steps
            if self.steps % _LOG_EVERY == 0 or last:
                metrics = {name: float(np.mean([row[name] for row in recent])) for name in recent[0]}
                recent.clear()
                if validate is not None and (self.steps % (10 * _LOG_EVERY) == 0 or last):
                    metrics |= validate()
                metrics |= {"lr": self._lr(self.steps - 1), "seconds": self.seconds}
                _append(self.folder / "metrics.csv", {"step": self.steps} | metrics)
                for name, value in metrics.items():
                    writer.add_scalar(name, value, self.steps)
                print(self.steps, {name: round(value, 4) for name, value in metrics.items()}, flush=True)
            if last or time.perf_counter() - saved > save_every_s:
                self.save()
                saved = time.perf_counter()
        writer.close()

    def _step(self, step: Step) -> dict[str, float]:
        """One step of the optimizer; raises FloatingPointError where the loss is no number any more."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr(self.steps)
        seed = mix_seeds(self.seed, self.steps)
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            self.model.train()
            losses = step(np.random.default_rng(seed), self.steps)
            losses["loss"].backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        if not losses["loss"].isfinite() or not norm.isfinite():
            raise FloatingPointError(f"loss {losses['loss'].item()} at step {self.steps}: go on from {self.path} with a lower lr")
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps += 1
        self._follow()
        return {name: float(value.detach()) for name, value in losses.items()} | {"grad_norm": float(norm)}

    @torch.no_grad()
    def _follow(self) -> None:
        """The average of what the optimizer moves; buffers, such as codebooks that have averages of their own, are taken as they are."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        moved = dict(self.model.named_parameters())
        for name, tensor in self.model.state_dict().items():
            if name in moved:
                self.average[name].lerp_(tensor, 1 - decay)
            else:
                self.average[name].copy_(tensor)

    def _lr(self, step: int) -> float:
        s = self.schedule
        rise = min(1.0, (step + 1) / s.warmup)
        fall = max(0.0, (step - (1 - s.decay) * s.steps) / (s.decay * s.steps))
        return s.lr * rise * (1 - (1 - _FLOOR) * fall)

    def save(self) -> None:
        package: dict[str, Any] = {
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "steps": self.steps,
            "seconds": self.seconds,
        }
        save_aside(package, self.path)

    def _load(self) -> None:
        package = torch.load(self.path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(package["model"])
        self.optimizer.load_state_dict(package["optimizer"])
        for name, tensor in package["average"].items():
            self.average[name].copy_(tensor)
        self.steps, self.seconds = package["steps"], package["seconds"]


def half_precision(device: torch.device) -> torch.autocast:
    """Matrix products in bfloat16 within the block, where the processor has an instruction for it: on such a CPU a transformer's step
    takes two thirds of the time."""
    able = torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu.get_capabilities().get("avx512_bf16", False)
    return torch.autocast(device.type, torch.bfloat16, enabled=bool(able))


def _append(path: Path, metrics: dict[str, float]) -> None:
    """A row per call; a metric that was never there before is left out, so that the columns stay those of the first row with it."""
    rows = []
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    rows.append({name: f"{value:.6g}" for name, value in metrics.items()})
    names = list(dict.fromkeys(name for row in rows for name in row))
    part = path.with_suffix(".part")
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        writer.writerows(rows)
    part.replace(path)
