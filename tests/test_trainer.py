"""MuLaN's trainer: upstream's curve, a run that goes on as if never stopped, and what stops it. CPU, one process, fp32 unless said."""

import csv
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.mulan import upstream
from support.ranks import Pairs, tiny_mulan

from musiclm_deploy.model import MuLaNTrainer
from musiclm_deploy.model.batches import Batches, validation_batches


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> None:
    forget_accelerate()


def forget_accelerate() -> None:
    """accelerate keeps its settings for the whole process."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def trainer(folder: Path, dataset: Any = None, **settings: Any) -> MuLaNTrainer:
    defaults: dict[str, Any] = dict(batch_size=4, num_train_steps=6, valid_frac=0.25, valid_every=2, save_model_every=3, lr=1e-3)
    return MuLaNTrainer(tiny_mulan(augment=True), Pairs(16) if dataset is None else dataset, results_folder=folder, **defaults | settings)


def curve(folder: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv without what depends on the clock."""
    with (folder / "metrics.csv").open() as file:
        return [{name: value for name, value in row.items() if name != "clips_per_second"} for row in csv.DictReader(file)]


def test_the_loss_falls_as_upstreams(tmp_path: Path) -> None:
    """Another optimizer, clipping, or mean over accumulated batches than musiclm-pytorch's own trainer, run on the same model and clips.

    One batch holds all clips, so that the order of the two trainers' batches does not matter; nothing is withheld at random. fp32: Adam
    divides by small gradients, so that rounding grows from step to step; 2e-3 after 10 steps in which the loss falls by a third.
    """

    class Fixed(Pairs):
        def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
            return self.waves[index], self.texts[index]

    mine, dataset, losses = tiny_mulan(), Fixed(8), {"mine": [], "theirs": []}
    tower: dict[str, Any] = dict(dim=24, depth=3, heads=2, dim_head=8)
    audio = upstream.AudioSpectrogramTransformer(**tower, spec_aug_freq_mask=0, spec_aug_time_mask=0, patch_dropout_prob=0.0)
    theirs = upstream.MuLaN(audio, upstream.TextTransformer(**tower, num_tokens=40, max_seq_len=9), dim_latent=12)
    theirs.load_state_dict(mine.state_dict())
    settings: dict[str, Any] = dict(batch_size=8, num_train_steps=10, grad_accum_every=2, valid_frac=0.0, lr=2e-3)
    upstream.MuLaNTrainer(
        theirs, dataset, **settings, results_folder=tmp_path / "theirs", force_clear_prev_results=False, save_model_every=1000
    ).train(lambda logs: losses["theirs"].append(logs["loss"]))
    MuLaNTrainer(mine, dataset, **settings, results_folder=tmp_path / "mine").train(lambda logs: losses["mine"].append(logs["loss"]))
    assert losses["theirs"][-1] < 0.67 * losses["theirs"][0]
    np.testing.assert_allclose(losses["mine"], losses["theirs"], rtol=2e-3)


def test_training_finds_every_pair(tmp_path: Path) -> None:
    """A trainer whose loss falls while texts and sounds do not meet: each of 12 texts must find its own clip, and the file must say so."""
    mulan, pairs = tiny_mulan(augment=True), Pairs(12)
    MuLaNTrainer(mulan, pairs, batch_size=12, num_train_steps=80, valid_frac=0.0, lr=5e-3, results_folder=tmp_path).train()
    restored = tiny_mulan(seed=1)
    restored.load_state_dict(torch.load(tmp_path / "mulan.80.pt", weights_only=True)["model"])
    with torch.no_grad():
        audio, text = restored.eval()(pairs.waves, pairs.texts, return_latents=True)
    assert torch.equal((text @ audio.T).argmax(dim=1), torch.arange(12))


@pytest.mark.parametrize("settings", [{}, dict(grad_accum_every=2, batch_size=2, num_workers=2), dict(use_lion=True)], ids=str)
def test_a_run_goes_on_along_its_curve(settings: dict[str, Any], tmp_path: Path) -> None:
    """Clips, crops, masks or moments of the optimizer that start anew, metrics written twice: the end must be the same to the bit."""
    trainer(tmp_path / "whole", **settings).train()
    trainer(tmp_path / "cut", **settings | dict(num_train_steps=4)).train()  # one step beyond its checkpoint at 3, and one at 4
    (tmp_path / "cut" / "mulan.4.pt").unlink()
    trainer(tmp_path / "cut", **settings, resume=True).train()
    assert curve(tmp_path / "whole") == curve(tmp_path / "cut")
    whole, cut = (torch.load(tmp_path / name / "mulan.6.pt", weights_only=True)["model"] for name in ("whole", "cut"))
    assert all(torch.equal(tensor, cut[name]) for name, tensor in whole.items())
    assert [row["step"] for row in curve(tmp_path / "whole")] == list("123456")
    assert all(float(row["valid_loss"]) > 0 for row in curve(tmp_path / "whole")[1::2])


def test_callers_generator_is_left_alone(tmp_path: Path) -> None:
    """A training that changes what the rest of the program draws, or depends on what it drew."""
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    run = trainer(tmp_path / "a")
    torch.manual_seed(5)
    run.train()
    assert torch.equal(torch.rand(1), expected)
    trainer(tmp_path / "b").train()
    assert curve(tmp_path / "a") == curve(tmp_path / "b")
    trainer(tmp_path / "c", seed=1).train()
    assert curve(tmp_path / "a") != curve(tmp_path / "c")


def test_bf16_trains(tmp_path: Path) -> None:
    """Mixed precision that is asked for and not used, or that breaks the loss."""
    for name, precision in (("fp32", "no"), ("bf16", "bf16")):
        forget_accelerate()
        trainer(tmp_path / name, accelerate_kwargs={"mixed_precision": precision}, num_train_steps=3).train()
    losses = [[float(row["loss"]) for row in curve(tmp_path / name)] for name in ("fp32", "bf16")]
    assert losses[0] != losses[1]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.1)  # bf16 has three digits


def test_tensorboard_holds_the_curve(tmp_path: Path) -> None:
    """Scalars of another step or name than those of the table."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer(tmp_path, num_train_steps=4).train()
    trainer(tmp_path, num_train_steps=6, resume=True).train()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    scalars = [(event.step, event.value) for event in events.Scalars("loss")]
    assert [step for step, _ in scalars] == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose([value for _, value in scalars], [float(row["loss"]) for row in curve(tmp_path)], rtol=1e-5)
    assert [event.step for event in events.Scalars("valid_top1")] == [2, 4, 6]


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path: Path) -> None:
    """A checkpoint lost, or half a file taken for one: a real limit on the size of files, while the third step's checkpoint is written."""
    folder = tmp_path / "run"
    trainer(folder, num_train_steps=3).train()
    before = (folder / "mulan.3.pt").read_bytes()
    run = trainer(folder, resume=True)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"mulan.6.pt could not be written (.|\n)*resume=True"):
            run.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(path.name for path in folder.glob("mulan*")) == ["mulan.3.pt"]
    assert (folder / "mulan.3.pt").read_bytes() == before


class Items(Pairs):
    """Pairs, of which number 5 is given from outside."""

    def __init__(self, item: Any) -> None:
        super().__init__(16)
        self.item = item

    def __getitem__(self, index: int) -> Any:
        return self.item if index == 5 else super().__getitem__(index)


WAVE, TEXT = torch.rand(1400), torch.tensor([1, 2])


@pytest.mark.parametrize(
    "item, message",
    [
        ((torch.full((1400,), torch.nan), TEXT), "item 5 of the data set: the wave holds NaN"),
        ((torch.rand(100), TEXT), "item 5 of the data set: 100 samples are shorter than the"),
        ((WAVE, "  "), "item 5 of the data set: the caption is empty"),
        ((WAVE, torch.zeros(2, dtype=torch.long)), "item 5 of the data set: the caption is empty"),
        (
            (torch.rand(1, 1400), TEXT),
            r"must be floating point of 1 dimension\(s\), got torch.float32 \[1, 1400\]",
        ),
        ((WAVE, 3), r"item 5 of the data set: expected \(wave, text\)"),
    ],
    ids=["nan", "short", "blank", "padding", "channels", "no text"],
)
def test_bad_items_are_named(item: Any, message: str, tmp_path: Path) -> None:
    """A loss of NaN after hours, for one clip of thousands."""
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, Items(item), valid_frac=0.0).train()


def test_skipped_items_make_a_batch_smaller(tmp_path: Path) -> None:
    """A None of the data set that reaches the model."""
    trainer(tmp_path, Items(None), valid_frac=0.0).train()
    assert len(curve(tmp_path)) == 6


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    """Weights of NaN saved over and over."""
    run = trainer(tmp_path)
    with torch.no_grad():
        run.mulan.audio_to_latents.weight.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match=r"nan at step 1: go on from the last checkpoint in .* lower lr"):
        run.train()
    assert not list(tmp_path.glob("mulan*"))


def test_folders_and_checkpoints_are_checked(tmp_path: Path) -> None:
    """An earlier run written over, or continued with other batches, or with a file that is something else."""
    trainer(tmp_path, num_train_steps=3).train()
    with pytest.raises(ValueError, match=r"holds mulan.3.pt of an earlier run: resume=True goes on"):
        trainer(tmp_path)
    with pytest.raises(ValueError, match=r"took other batches: batch_size was 4, is 2; seed was 0, is 9"):
        trainer(tmp_path, resume=True, batch_size=2, seed=9)
    torch.save({"model": {}}, tmp_path / "mulan.9.pt")
    with pytest.raises(ValueError, match=r"mulan\.9\.pt is no checkpoint of this trainer"):
        trainer(tmp_path, resume=True)
    trainer(tmp_path, force_clear_prev_results=True, num_train_steps=1).train()
    assert [path.name for path in tmp_path.glob("mulan*")] == ["mulan.1.pt"] and len(curve(tmp_path)) == 1


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(batch_size=1), "at least 2, got 1"),
        (dict(batch_size=17), "a training set of 12 clips is smaller than one batch of 17"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    """A contrast of one clip with nothing, an epoch without batches."""
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, **settings)


@pytest.mark.parametrize("size, batch, ranks", [(12, 4, 1), (13, 2, 2), (31, 3, 4)])
def test_batches_cover_an_epoch_once(size: int, batch: int, ranks: int) -> None:
    """A clip seen twice by two processes, an order that never changes, a start in the middle that is another order."""
    streams = [iter(Batches(size, batch, seed=3, rank=rank, ranks=ranks)) for rank in range(ranks)]
    per_epoch = size // (batch * ranks)
    epochs = []
    for _ in range(3):
        drawn = [item for _ in range(per_epoch) for stream in streams for item in next(stream)]
        places = [place for place, _ in drawn]
        assert len(set(places)) == len(places) == per_epoch * batch * ranks
        assert len({seed for _, seed in drawn}) == len(drawn)
        epochs.append(places)
    assert epochs[0] != epochs[1] != epochs[2]
    later = iter(Batches(size, batch, seed=3, rank=ranks - 1, ranks=ranks, first=per_epoch + 1))
    stream = iter(Batches(size, batch, seed=3, rank=ranks - 1, ranks=ranks))
    for _ in range(per_epoch + 1):
        next(stream)
    assert [next(later) for _ in range(4)] == [next(stream) for _ in range(4)]


@pytest.mark.parametrize("size, batch, ranks", [(5, 4, 2), (2, 9, 2), (40, 3, 3), (7, 2, 1)])
def test_validation_covers_all(size: int, batch: int, ranks: int) -> None:
    """A clip left out, or a process without one, which would wait for ever."""
    parts = [validation_batches(size, batch, rank, ranks) for rank in range(ranks)]
    assert len({len(part) for part in parts}) == 1 and all(items for part in parts for items in part)
    assert sorted(place for part in parts for items in part for place, _ in items) == list(range(size))
