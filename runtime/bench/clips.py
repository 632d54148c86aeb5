"""Whole clips, timed: the real-time factor, the share of each stage, and what candidates and prompts cost more than one.

Timed: `MusicLM.generate`, from the text to the wave. Not timed: loading, a first short clip. The same seed gives the same wave, so all
repeats of a clip must be equal to the bit, and no sample may be NaN; a batch's first clip must have the tokens that it has alone, but on a
GPU, where other tiles add up in another order.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from .. import musiclm
from ..bundle import Bundle, Manifest
from ..config import GenerationConfig
from ..music import Music
from ..musiclm import MusicLM, load
from ..request import make_request
from ..sampling import SamplingConfig
from ..windows import Window
from .record import Row, say, spread

TEXT = "calm piano in a ballroom"
FORMS = {"one": (1, 1), "4 candidates": (1, 4), "8 prompts": (8, 1)}  # prompts, candidates of each
ON_GPUS = {"2 prompts": (2, 1), "32 prompts": (32, 1)}  # there as well: on a CPU they take minutes
_STAGES = ("mulan", "semantic", "coarse", "fine", "codec", "rank")


def time_clips(
    bundle: Bundle,
    seconds: float,
    cond_scale: float | None,
    fine_window: int | None,
    repeats: int,
    threads: int | None,
    device: str = "cpu",
    weights: str = "fp16",
) -> list[Row]:
    """One clip, four candidates of it, and eight prompts at once, on a GPU also two and 32, each `repeats` times; fine_window: in frames;
    weights: on a GPU."""
    rows = []
    with load(bundle.root, device, threads=threads, weights=weights) as model:
        request = clip_of(model, cond_scale, fine_window)
        least = bundle.manifest.codec.min_frames * bundle.manifest.codec.samples_per_frame / bundle.manifest.codec.sample_hz
        request(1, 1, min(seconds, max(0.2, least)))
        alone: Music | None = None
        for form, (prompts, candidates) in (FORMS if model.backend.on_host else FORMS | ON_GPUS).items():
            made: list[list[Music]] = []
            for repeat in range(repeats):
                say(f"clips: {form} of {seconds:g} s, {repeat + 1} of {repeats}")
                made.append(request(prompts, candidates, seconds))
            alone = alone or made[0][0]
            _check(form, made, alone if model.backend.on_host else made[0][0])
            rows.append(_row(form, prompts, candidates, seconds, made) | facts(model, cond_scale, fine_window))
    return rows


def check_clip(manifest: Manifest, seconds: float, cond_scale: float | None, fine_window: int | None) -> None:
    """Raise ValueError for a clip that cannot be made, before minutes are spent on steps."""
    windows = {} if fine_window is None else {"fine": Window(length=fine_window)}
    make_request(manifest, GenerationConfig(seconds=seconds, sampling=guidance(manifest, cond_scale), windows=windows), TEXT)


@contextmanager
def unknown_words_unsaid() -> Iterator[None]:
    """Keep the warning of words that MuLaN does not know to itself: TEXT is not the user's, and it is generated many times."""
    log = logging.getLogger(musiclm.__name__)
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def clip_of(model: MusicLM, cond_scale: float | None, fine_window: int | None = None) -> Callable[[int, int, float], list[Music]]:
    """`(prompts, candidates, seconds) -> Music of each prompt`, with the guidance given, where the model was trained for one."""
    windows = {} if fine_window is None else {"fine": Window(length=fine_window)}
    guided = guidance(model.bundle.manifest, cond_scale)

    def request(prompts: int, candidates: int, seconds: float) -> list[Music]:
        seeds = list(range(prompts))
        with unknown_words_unsaid():
            return model.generate([TEXT] * prompts, seconds=seconds, seed=seeds, num_samples=candidates, sampling=guided, windows=windows)

    return request


def guidance(manifest: Manifest, cond_scale: float | None) -> dict[str, SamplingConfig]:
    """The argument `sampling` of a request with this guidance, or with the bundle's own."""
    return {} if cond_scale is None or not manifest.coarse.guidance else {"coarse": SamplingConfig(cond_scale=cond_scale)}


def _check(form: str, made: list[list[Music]], alone: Music) -> None:
    first = made[0]
    for again in made[1:]:
        if not all(np.array_equal(a.audio, b.audio) for a, b in zip(first, again, strict=True)):
            raise RuntimeError(f"{form}: the same seed gave another wave.")
    if not all(np.isfinite(candidate.audio).all() for music in first for candidate in music.candidates):
        raise RuntimeError(f"{form}: the wave holds NaN or infinite samples.")
    tokens = first[0].candidates[0].tokens
    if not all(
        np.array_equal(getattr(tokens, stage), getattr(alone.candidates[0].tokens, stage)) for stage in ("semantic", "coarse", "fine")
    ):
        raise RuntimeError(f"{form}: the first clip has other tokens than alone.")


def _row(form: str, prompts: int, candidates: int, seconds: float, made: list[list[Music]]) -> Row:
    totals = [music[0].timings["total"] for music in made]
    middle = float(np.median(totals))
    parts = {stage: float(np.median([music[0].timings.get(stage, 0.0) for music in made])) for stage in _STAGES}
    audio = seconds * prompts * candidates
    row: Row = {"benchmark": "clip", "form": form, "prompts": prompts, "candidates": candidates, "seconds": seconds, **spread(totals)}
    row |= {"real_time_factor_made": round(middle / audio, 4), "real_time_factor_kept": round(middle / (seconds * prompts), 4)}
    row |= {"share": {stage: round(part / middle, 4) for stage, part in parts.items()}}
    row |= {"codec_s_per_s": round(parts["codec"] / audio, 5)}
    return row | {"tokens": sum(_count(music) for music in made[0])}


def _count(music: Music) -> int:
    arrays = [getattr(candidate.tokens, stage) for candidate in music.candidates for stage in ("semantic", "coarse", "fine")]
    return sum(array.size for array in arrays if array is not None)


def facts(model: MusicLM, cond_scale: float | None, fine_window: int | None) -> Row:
    """Return the fields of a row that say what was run."""
    manifest = model.bundle.manifest
    scale = manifest.coarse.sampling.cond_scale if cond_scale is None else cond_scale
    steps, precision = "native" if model.backend.native else "graph", manifest.coarse.step.precision
    if model.backend.precision is not None:
        steps, precision = model.device, model.backend.precision
    facts: Row = {"precision": precision, "steps": steps}
    facts |= {"fine_window": fine_window or manifest.fine.max_length}
    return facts | {"cond_scale": scale if manifest.coarse.guidance else 1.0, "dim": manifest.coarse.dim, "depth": manifest.coarse.depth}
