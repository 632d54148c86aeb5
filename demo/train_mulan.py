"""Training of MuLaN on the clips and their captions, and what is fitted with it: its quantizer and the semantic tokenizer.

In: clips, a folder. Out: `mulan.<steps>.pt` of `MuLaNTrainer` in `<folder>/mulan`, then the files of `<folder>/fit`.
It knows neither codec nor transformers.
"""

from pathlib import Path

import torch

from demo.data import Captioned, Clips
from demo.sizes import Sizes, mulan, quantizer, tokenizer
from musiclm_deploy.model import MelKmeans, MuLaN, MuLaNEmbedQuantizer, MuLaNTrainer

_FITTED_WINDOWS = 3000  # of the training set, evenly spread: what codebooks and centres are made from
_CAPTIONS = 8  # of each piece that are looked at
_BATCH = 64


def train_mulan(sizes: Sizes, clips: Clips, folder: Path, *, save_every: int = 50) -> None:
    """Until the schedule's end, from the last checkpoint on; of the checkpoints the newest is kept."""
    schedule = sizes.mulan_schedule
    model = mulan(sizes)
    trainer = MuLaNTrainer(
        model,
        Captioned(clips, schedule.seconds),
        batch_size=schedule.batch,
        num_train_steps=schedule.steps,
        lr=schedule.lr,
        valid_frac=sizes.mulan_valid,
        valid_every=save_every,
        save_model_every=save_every,
        results_folder=folder / "mulan",
        accelerate_kwargs={"cpu": not torch.cuda.is_available()},
        resume=True,
    )

    def tidy(metrics: dict[str, float]) -> None:
        if metrics["step"] % save_every == 0:
            print({name: round(value, 4) for name, value in metrics.items()}, flush=True)
            for path in _checkpoints(folder)[:-2]:
                path.unlink()

    trainer.train(tidy)


def _checkpoints(folder: Path) -> list[Path]:
    return sorted((folder / "mulan").glob("mulan.*.pt"), key=lambda path: int(path.suffixes[-2][1:]))


def trained_mulan(sizes: Sizes, folder: Path) -> MuLaN:
    found = _checkpoints(folder)
    if not found:
        raise FileNotFoundError(f"{folder / 'mulan'} holds no checkpoint: python -m demo.train mulan")
    model = mulan(sizes)
    model.load_state_dict(torch.load(found[-1], map_location="cpu", weights_only=True)["model"])
    return model.eval()


@torch.no_grad()
def fit(sizes: Sizes, clips: Clips, folder: Path) -> None:
    """Codebooks of MuLaN's latents, of clips and captions alike since both are to be told apart by them, and centres of the frames."""
    torch.manual_seed(0)
    windows = clips.windows(round(sizes.window_seconds * sizes.sample_hz))
    stride = max(1, len(windows) // _FITTED_WINDOWS)
    windows = windows[::stride]
    model = trained_mulan(sizes, folder)
    texts = [clips.caption(piece, variant) for piece in range(len(clips)) for variant in range(_CAPTIONS)]
    _forget_unseen(model, texts)
    latents = [model.get_audio_latents(part) for part in windows.split(_BATCH)]
    latents += [model.get_text_latents(raw_texts=texts[at : at + _BATCH]) for at in range(0, len(texts), _CAPTIONS // 2 * _BATCH)]
    conditioner = quantizer(sizes, model)
    conditioner.fit(latents)
    (folder / "fit").mkdir(parents=True, exist_ok=True)
    conditioner.save(folder / "fit" / "quantizer.pt")
    semantic = tokenizer(sizes)
    semantic.fit(list(windows))
    semantic.save(folder / "fit" / "tokenizer.pt")


def _forget_unseen(model: MuLaN, texts: list[str]) -> None:
    """Words that no caption has are still as they were drawn, and would push a prompt that has one anywhere: they now say nothing."""
    seen = model.text.tokenize(texts).unique()
    kept = model.text.token_emb.weight[seen].clone()
    model.text.token_emb.weight.zero_()
    model.text.token_emb.weight[seen] = kept


def fitted_quantizer(sizes: Sizes, folder: Path) -> MuLaNEmbedQuantizer:
    made = quantizer(sizes, mulan(sizes))
    made.load(folder / "fit" / "quantizer.pt")
    return made.eval()


def fitted_tokenizer(folder: Path) -> MelKmeans:
    return MelKmeans.from_state(torch.load(folder / "fit" / "tokenizer.pt", map_location="cpu", weights_only=True))
