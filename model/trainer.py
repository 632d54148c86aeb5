"""Training MuLaN on pairs of waves and texts, on one device or many, with Hugging Face accelerate.

In: a MuLaN, a data set of (wave, text). Out: checkpoints that the export takes, curves as CSV and TensorBoard. A run that is taken up again
goes on along the same curve: all chance of a step comes from the run's seed and the step's number.
"""

import csv
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..runtime.install import install_command
from ..runtime.user_files import expanded
from .batches import Batches, Drawn, collate, mix_seeds, split, validation_batches
from .clap import ClapTowers
from .files import cut_metrics, save_aside
from .mulan import MuLaN
from .tensor_file import read_package

_log = logging.getLogger(__name__)
_METRICS = ("step", "loss", "valid_loss", "valid_top1", "grad_norm", "clips_per_second")


class MuLaNTrainer:
    """Named and used like musiclm-pytorch's. `results_folder` gets `mulan.<steps>.pt`, `metrics.csv` and TensorBoard's events.

    dataset: items (wave float [t], text), the text a str or int64 token ids [n]; None for one to be left out; spectrograms [frames, bins]
        where the MuLaN accepts them. Waves of a batch are cut to its shortest, and to data_max_length samples. What the data set draws
        at random it should draw from torch's global generator.
    num_train_steps: by default one epoch. A step takes grad_accum_every batches of batch_size on every process; clips are contrasted
        within the batch of all processes, not across accumulated ones.
    valid_frac: the share kept aside; every valid_every steps its loss, and how often a text finds its own clip first among them.
    accelerate_kwargs: such as {"mixed_precision": "bf16"}.
    resume: go on from the newest checkpoint in results_folder. Without it a folder that holds some is refused, unless
        force_clear_prev_results allows to delete them.

    Raises ValueError for settings that do not fit, also where processes or the checkpoint disagree; FloatingPointError when the loss is
    no number any more; OSError when a checkpoint cannot be written, with the earlier ones intact.
    """

    def __init__(
        self,
        mulan: MuLaN | ClapTowers,
        dataset: Dataset,
        *,
        batch_size: int,
        num_train_steps: int | None = None,
        data_max_length: int | None = None,
        lr: float = 3e-4,
        grad_accum_every: int = 1,
        betas: tuple[float, float] = (0.9, 0.99),
        max_grad_norm: float | None = 0.5,
        valid_frac: float = 0.05,
        valid_every: int = 100,
        random_split_seed: int = 42,
        save_model_every: int = 1000,
        results_folder: str | os.PathLike = "./results",
        accelerate_kwargs: dict[str, Any] | None = None,
        use_lion: bool = False,
        num_workers: int = 0,
        seed: int = 0,
        resume: bool = False,
        force_clear_prev_results: bool = False,
    ) -> None:
        Accelerator = _accelerator_class()
        if batch_size < 2:
            raise ValueError(f"batch_size must be at least 2, got {batch_size}: a contrast needs other clips, as many as memory holds")
        self.folder = expanded(results_folder)
        self.accelerator = Accelerator(log_with="tensorboard", project_dir=self.folder, **accelerate_kwargs or {})
        self.mulan, self.dataset = mulan, dataset
        self.batch_size, self.grad_accum_every, self.seed, self.num_workers = batch_size, grad_accum_every, seed, num_workers
        self.data_max_length, self.max_grad_norm, self.lr = data_max_length, max_grad_norm, lr
        self.valid_every, self.save_model_every = valid_every, save_model_every
        self.steps = 0

        clips: int = len(dataset)  # pyright: ignore[reportArgumentType]
        ranks = self.accelerator.num_processes
        # What decides which clips a step sees: processes, and a run and its continuation, must agree on it.
        self.settings = {
            "clips": clips,
            "batch_size": batch_size,
            "grad_accum_every": grad_accum_every,
            "processes": ranks,
            "seed": seed,
            "valid_frac": valid_frac,
            "random_split_seed": random_split_seed,
        }
        self._check_processes(self.settings | {"lr": lr, "data_max_length": data_max_length, "num_train_steps": num_train_steps})
        self._train_part, self._valid_part = split(clips, valid_frac, random_split_seed)
        self._stream(0)  # refuses a training set that is smaller than a batch
        if self._valid_part and len(self._valid_part) < ranks:
            raise ValueError(f"{len(self._valid_part)} clips for validation are fewer than {ranks} processes: raise valid_frac")
        epoch = len(self._train_part) // (batch_size * ranks * grad_accum_every)
        self.num_train_steps = max(1, epoch) if num_train_steps is None else num_train_steps

        optimizer = (_lion() if use_lion else torch.optim.Adam)(mulan.parameters(), lr=lr, betas=betas)
        self._model, self.optim = self.accelerator.prepare(mulan, optimizer)
        self._prepare_folder(resume, force_clear_prev_results)

    def train(self, log_fn: Callable[[dict[str, float]], None] = lambda metrics: None) -> None:
        """Train up to `num_train_steps`; log_fn is called with the metrics of each step on every process."""
        main = self.accelerator.is_main_process
        self.accelerator.init_trackers("tensorboard", init_kwargs={"tensorboard": {"purge_step": self.steps + 1}})
        if main:
            cut_metrics(self.folder / "metrics.csv", self.steps)
        loader = self._loader(self._train_part, self._stream(self.steps * self.grad_accum_every))
        shown: dict[str, str] = {}
        with tqdm(total=self.num_train_steps, initial=self.steps, desc="MuLaN", unit="step", disable=not main) as bar:
            batches = iter(loader)
            while self.steps < self.num_train_steps:
                metrics = self.train_step(batches)
                last = self.steps == self.num_train_steps
                if self._valid_part and (last or self.steps % self.valid_every == 0):
                    metrics |= self.validate()
                self.accelerator.log({name: value for name, value in metrics.items() if name != "step"}, step=self.steps)
                if main:
                    _append_metrics(self.folder / "metrics.csv", metrics)
                shown |= {name: f"{value:.4g}" for name, value in metrics.items() if "loss" in name or "top1" in name}
                bar.set_postfix(shown, refresh=False)
                bar.update()
                log_fn(metrics)
                if last or self.steps % self.save_model_every == 0:
                    self.save(self.folder / f"mulan.{self.steps}.pt")
        for tracker in self.accelerator.trackers:  # not end_training, which would also end the caller's process group
            tracker.finish()

    def train_step(self, batches: Iterator[dict[str, Any]]) -> dict[str, float]:
        """One step of the optimizer on the next `grad_accum_every` batches."""
        started, clips, loss = time.perf_counter(), 0, 0.0
        self._model.train()
        for part in range(self.grad_accum_every):
            batch = self._to_device(next(batches))
            clips += len(batch["wavs"]) * self.accelerator.num_processes
            last = part == self.grad_accum_every - 1
            draws = mix_seeds(self.seed, self.steps, part, self.accelerator.process_index)
            with self._seeded(draws), nullcontext() if last else self.accelerator.no_sync(self._model):
                share = self._model(**batch) / self.grad_accum_every
                self.accelerator.backward(share)
            loss += share.item()
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss} at step {self.steps + 1}: go on from the last checkpoint in {self.folder} with a lower lr"
            )
        norm = self.accelerator.clip_grad_norm_(self._model.parameters(), self.max_grad_norm or math.inf)
        self.optim.step()
        self.optim.zero_grad()
        self.steps += 1
        grad_norm = float("nan") if norm is None else float(norm)
        return {"step": self.steps, "loss": loss, "grad_norm": grad_norm, "clips_per_second": clips / (time.perf_counter() - started)}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Over the clips kept aside, always cut alike: `valid_loss`, and `valid_top1`, the share of texts whose own clip is the nearest."""
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        parts = validation_batches(len(self._valid_part), self.batch_size, rank, ranks)
        self.mulan.eval()
        losses, latents = [], []
        with self.accelerator.autocast():
            for batch in self._loader(self._valid_part, parts):
                batch = self._to_device(batch)
                losses.append(self.mulan(**batch).float())
                latents.append(torch.stack(self.mulan(**batch, return_latents=True)).float())
        audio, text = self.accelerator.gather(self.accelerator.pad_across_processes(torch.cat(latents, dim=1).transpose(0, 1))).unbind(1)
        kept = audio.any(dim=1)  # rows that only fill up a process with fewer clips are zero
        similarities = text[kept] @ audio[kept].T
        top1 = (similarities.argmax(dim=1) == torch.arange(len(similarities), device=similarities.device)).float().mean()
        return {"valid_loss": torch.stack(losses).mean().item(), "valid_top1": top1.item()}

    def save(self, path: str | os.PathLike) -> None:
        """Write model, optimizer and place in the run from the main process; `export_all.py --mulan` takes the file."""
        self.accelerator.wait_for_everyone()
        if not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        package = {
            "model": self.mulan.state_dict(),
            "optim": self.optim.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "steps": self.steps,
            "settings": self.settings,
        }
        try:
            save_aside(package, path)
        except OSError as error:
            raise OSError(
                f"{path} could not be written ({error}); earlier ones are intact: make room, then go on with resume=True"
            ) from error

    def load(self, path: str | os.PathLike) -> None:
        """Go on from what `save` wrote. The learning rate stays the one given to this trainer."""
        package = read_package(expanded(path))
        if not isinstance(package, dict) or not {"model", "optim", "steps", "settings"} <= package.keys():
            raise ValueError(f"{path} is no checkpoint of this trainer; for its weights alone use mulan.load_state_dict")
        before: dict[str, Any] = package["settings"]
        differ = [f"{name} was {before.get(name)}, is {value}" for name, value in self.settings.items() if before.get(name) != value]
        if differ:
            raise ValueError(f"{path} was saved by a run that took other batches: {'; '.join(differ)}")
        self.mulan.load_state_dict(package["model"])
        self.optim.load_state_dict(package["optim"])
        for group in self.optim.param_groups:
            group["lr"] = self.lr
        if self.accelerator.scaler is not None and package["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(package["scaler"])
        self.steps = package["steps"]

    def _stream(self, first: int) -> Batches:
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        return Batches(len(self._train_part), self.batch_size, seed=self.seed, first=first, rank=rank, ranks=ranks)

    def _loader(self, part: list[int], batches: Any) -> DataLoader:
        tower = self.mulan.audio
        drawn = Drawn(self.dataset, part, 2 if tower.accept_spec else 1, 1 if tower.accept_spec else tower.min_samples)
        return DataLoader(drawn, batch_sampler=batches, collate_fn=collate, num_workers=self.num_workers, generator=torch.Generator())

    def _to_device(self, batch: dict[str, Any]) -> dict[str, Any]:
        batch["wavs"] = batch["wavs"][:, : self.data_max_length]
        return {name: value.to(self.accelerator.device) if isinstance(value, Tensor) else value for name, value in batch.items()}

    @contextmanager
    def _seeded(self, seed: int) -> Iterator[None]:
        """Masks, patches and dropout of one batch; the caller's generators stay where they are."""
        with torch.random.fork_rng(devices=[self.accelerator.device] if self.accelerator.device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield

    def _check_processes(self, settings: dict[str, Any]) -> None:
        from accelerate.utils import gather_object

        told = gather_object([settings])
        by_rank = {name: [other[name] for other in told] for name in settings}
        differ = [f"{name} is {values}" for name, values in by_rank.items() if values.count(values[0]) < len(values)]
        if differ:
            raise ValueError(f"the processes of this run have different settings, by rank: {'; '.join(differ)}")

    def _prepare_folder(self, resume: bool, clear: bool) -> None:
        saved = sorted(self.folder.glob("mulan.*.pt"), key=lambda path: int(path.suffixes[-2][1:]))
        if saved and not resume and not clear:
            raise ValueError(
                f"{self.folder} holds {saved[-1].name} of an earlier run: resume=True goes on, another results_folder keeps it"
            )
        self.accelerator.wait_for_everyone()  # every process has looked before one of them changes anything
        if resume and saved:
            self.load(saved[-1])
            _log.info("going on from %s", saved[-1])
        elif self.accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in (*saved, self.folder / "metrics.csv", *self.folder.glob("tensorboard/events.*")):
                path.unlink(missing_ok=True)


def _append_metrics(path: Path, metrics: dict[str, float]) -> None:
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if file.tell() == 0:
            writer.writerow(_METRICS)
        values = (metrics.get(name, "") for name in _METRICS)
        writer.writerow([f"{value:.6g}" if isinstance(value, float) else value for value in values])


def _accelerator_class() -> Any:
    try:
        from accelerate import Accelerator
    except ModuleNotFoundError as error:
        raise ImportError(f"MuLaNTrainer needs the extra train: {install_command('train')}.") from error
    return Accelerator


def _lion() -> Any:
    from lion_pytorch import Lion

    return Lion
