"""audiolm-pytorch's own step and own clip, on the same weights, tokens and noise as ours.

In: upstream's models, a case or a clip. Out: logits, tokens and seconds. Upstream is used as it comes, its KV cache on, as by default. Its
step computes embeddings, biases and their table for all positions so far, which grows with the square of the context.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import musiclm_deploy as md
from musiclm_deploy.model.upstream import load_upstream
from musiclm_deploy.runtime.bench.clips import TEXT
from musiclm_deploy.runtime.bench.record import Row, spread
from musiclm_deploy.runtime.bench.steps import Case
from musiclm_deploy.runtime.noise import STAGE_IDS, SeededNoise

STAGES = ("semantic", "coarse", "fine")


class UpstreamCoarse:
    """The coarse transformer's steps for a case, as upstream's `generate` does them, without guidance."""

    def __init__(self, transformer: Any, case: Case, conditioning: Tensor) -> None:
        """conditioning: float32 [B, C, dim]."""
        self._transformer, self._conditioning = transformer, conditioning
        self._semantic, self._tokens = torch.from_numpy(case.semantic), torch.from_numpy(case.prime)
        self._caches: tuple[Any, Any] = (None, None)
        self._call()

    def step(self, _: int, tokens: np.ndarray) -> np.ndarray:
        """tokens int64 [B] -> logits float32 [B, V]."""
        self._tokens = torch.cat([self._tokens, torch.from_numpy(tokens)[:, None]], dim=1)
        return self._call().numpy()

    @torch.inference_mode()
    def _call(self) -> Tensor:
        (_, logits), self._caches = self._transformer.forward_with_cond_scale(
            semantic_token_ids=self._semantic,
            coarse_token_ids=self._tokens,
            text_embeds=self._conditioning,
            cond_scale=1,
            return_kv_cache=True,
            kv_cache=self._caches[0],
            embed_cache=self._caches[1],
            return_only_coarse_logits=True,
        )
        return logits[:, -1]


class Noise:
    """The seeded noise of an item, for both: `gumbel` for ours, in place of upstream's function for upstream, step after step.

    It keeps the end from being drawn, so that both make the whole clip.
    """

    def __init__(self, seed: int) -> None:
        self._seed, self.stage, self._step = seed, "", 0
        self._drawn: dict[str, SeededNoise] = {}

    def gumbel(self, stage: str, step: int, batch: int, vocab: int) -> np.ndarray:
        assert batch == 1, "it is the noise of one item"
        drawn = self._drawn.setdefault(stage, SeededNoise(STAGE_IDS[stage], self._seed, 0, vocab))
        noise = drawn(step)[None].copy()
        noise[:, -1] -= 1000 * (stage != "fine")  # there the last entry is a code
        return noise

    @contextmanager
    def in_upstream(self) -> Iterator[None]:
        """Within the block upstream draws from here; `begin` names the stage."""
        import audiolm_pytorch.audiolm_pytorch as upstream

        own = upstream.gumbel_noise
        upstream.gumbel_noise = self._of_logits
        try:
            yield
        finally:
            upstream.gumbel_noise = own

    def begin(self, stage: str) -> None:
        self.stage, self._step = stage, 0

    def _of_logits(self, logits: Tensor) -> Tensor:
        self._step += 1
        return torch.from_numpy(self.gumbel(self.stage, self._step - 1, *logits.shape))


def upstream_clip(
    models: dict[str, Any], frames: int, semantic_steps: int, noise: Noise, filter_thres: float
) -> tuple[dict[str, np.ndarray], Row]:
    """One clip by upstream's three wrappers and codec: tokens by stage and "wave", and seconds by stage."""
    load_upstream()
    import audiolm_pytorch
    from x_clip.tokenizer import tokenizer

    seconds: Row = {}
    made: dict[str, Any] = {}

    def timed(name: str, run: Any) -> None:
        noise.begin(name)
        started = time.perf_counter()
        made[name] = run()
        seconds[name] = time.perf_counter() - started

    # In evaluation mode, which a wrapper's `generate` would otherwise take from the models it is given.
    semantic = audiolm_pytorch.SemanticTransformerWrapper(transformer=models["semantic"]).eval()
    coarse = audiolm_pytorch.CoarseTransformerWrapper(transformer=models["coarse"], codec=models["codec"]).eval()
    fine = audiolm_pytorch.FineTransformerWrapper(transformer=models["fine"], codec=models["codec"]).eval()
    with noise.in_upstream(), torch.inference_mode():
        timed("mulan", lambda: models["quantizer"](texts=tokenizer.tokenize([TEXT])))
        told: dict[str, Any] = {"text_embeds": made["mulan"], "filter_thres": filter_thres}
        timed("semantic", lambda: semantic.generate(max_length=semantic_steps, batch_size=1, **told))
        timed("coarse", lambda: coarse.generate(semantic_token_ids=made["semantic"], max_time_steps=frames, **told))
        timed("fine", lambda: fine.generate(coarse_token_ids=made["coarse"], **told))
        codes = torch.cat([made["coarse"], made["fine"]], dim=-1)
        timed("codec", lambda: models["codec"].decode_from_codebook_indices(codes))
    tokens = {stage: made[stage][0].numpy() for stage in STAGES}
    tokens["semantic"] = tokens["semantic"][tokens["semantic"] != -1]
    return tokens | {"wave": made["codec"][0, 0].numpy()}, seconds


def compare_clips(models: dict[str, Any], root: Path, seconds: float, threads: int, filter_thres: float = 0.9) -> list[Row]:
    """A clip by upstream and by the bundle at `root`, each once, on the same noise; their tokens compared. Raises RuntimeError where they
    part without a near tie: before the first tenth."""
    noise = Noise(0)
    with md.load(root, device="cpu", threads=threads) as model:
        manifest = model.bundle.manifest
        codec = manifest.codec
        frames = round(seconds * codec.sample_hz / codec.samples_per_frame)
        steps = round(seconds * manifest.semantic_tokens_per_second)
        asked: dict[str, Any] = {"max_semantic_tokens": steps, "compat": "upstream", "noise": noise}
        asked["sampling"] = dict.fromkeys(STAGES, md.SamplingConfig(filter_thres=filter_thres))
        model.generate(TEXT, seconds=0.2, seed=0)
        ours = model.generate(TEXT, seconds=frames * codec.samples_per_frame / codec.sample_hz, **asked)
    theirs, taken = upstream_clip(models, frames, steps, noise, filter_thres)
    same, count = 0, 0
    for stage in STAGES:
        a, b = np.ravel(getattr(ours.tokens, stage)), np.ravel(theirs[stage])
        count += len(b)
        if same == count - len(b):  # all before were equal
            apart = np.flatnonzero(a[: len(b)] != b[: len(a)])
            same += int(apart[0]) if len(apart) else min(len(a), len(b))
    if same < count / 10:
        raise RuntimeError(f"upstream's tokens and ours part after {same}: a fast wrong answer is no result.")
    facts: Row = {"seconds": seconds, "tokens": count, "equal_tokens": same, "precision": manifest.coarse.step.precision}
    facts |= {"dim": manifest.coarse.dim, "depth": manifest.coarse.depth, "cond_scale": manifest.coarse.sampling.cond_scale}
    if same == count:
        facts["wave_differs_by"] = float(f"{np.abs(ours.audio - theirs['wave']).max() / np.abs(theirs['wave']).max():.1e}")
    parts = {name: ours.timings[name] for name in taken}
    rows = []
    for form, stages, total in (("musiclm-deploy", parts, ours.timings["total"]), ("audiolm-pytorch", taken, sum(taken.values()))):
        share = {name: round(part / total, 4) for name, part in stages.items()}
        factor = round(total / seconds, 4)
        rows.append({"benchmark": "peer clip", "form": form, **facts, **spread([total]), "share": share, "real_time_factor_made": factor})
    return rows
