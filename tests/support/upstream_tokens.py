"""audiolm-pytorch's own `generate` on noise that is given, for the tests of parity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

SEMANTIC_TOKENS, SEMANTIC_STEPS, FRAMES = 19, 14, 6


TEXTS = ["calm piano", "brass band in the rain, slow", "x"]


@dataclass
class SharedNoise:
    """The same arrays for both: `gumbel` for the runtime, `upstream_noise` in place of upstream's function, step after step."""

    arrays: dict[str, np.ndarray]  # stage -> [steps, B, V]
    stage: str = "semantic"
    step: int = 0

    def gumbel(self, stage: str, step: int, batch: int, vocab: int) -> np.ndarray:
        assert self.arrays[stage].shape[1:] == (batch, vocab)
        return self.arrays[stage][step]

    def upstream_noise(self, logits: torch.Tensor) -> torch.Tensor:
        noise = torch.from_numpy(self.arrays[self.stage][self.step])
        assert noise.shape == logits.shape
        self.step += 1
        return noise


def shared_noise(variant: dict[str, Any], seed: int) -> SharedNoise:
    """Draw noise that forces ends: in row 1 of the semantic stage after 5 tokens, in row 2 of the coarse stage after 4 frames."""
    rng = np.random.default_rng(seed)
    coarse, fine, codebook, groups = variant["codes"]
    sizes = {
        "semantic": (SEMANTIC_STEPS, SEMANTIC_TOKENS + 1),
        "coarse": (FRAMES * coarse * groups, codebook + 1),
        "fine": (FRAMES * fine * groups, codebook),
    }
    arrays = {stage: rng.gumbel(size=(steps, len(TEXTS), V)).astype(np.float32) for stage, (steps, V) in sizes.items()}
    arrays["semantic"][:, :, -1] -= 1000
    arrays["semantic"][5, 1, -1] += 2000
    arrays["coarse"][:, :, -1] -= 1000
    if variant["filter_thres"] == 0:
        arrays["coarse"][4 * coarse * groups, 2, -1] += 2000
    return SharedNoise(arrays)


def upstream_generate(variant, transformers, quantizer, codec, noise: SharedNoise, monkeypatch) -> dict[str, Any]:
    """Generate by audiolm-pytorch. Returns each stage's tokens, -1 after an end."""
    import audiolm_pytorch
    import audiolm_pytorch.audiolm_pytorch as upstream
    from x_clip.tokenizer import tokenizer

    monkeypatch.setattr(upstream, "gumbel_noise", noise.upstream_noise)
    condition = {}
    if variant["conditioning"] != "none":
        # upstream's MusicLM feeds the first namespace's conditioning to all three stages
        condition["text_embeds"] = torch.cat([quantizer(texts=tokenizer.tokenize([text])) for text in TEXTS]).detach()
    cached = variant["conditioning"] != "prefix" and variant["rel_pos_bias"]  # elsewhere upstream's cache is wrong
    options = {"filter_thres": variant["filter_thres"], "cond_scale": variant["cond_scale"], "use_kv_cache": cached, **condition}
    unique = variant["unique_consecutive"]
    semantic = audiolm_pytorch.SemanticTransformerWrapper(transformer=transformers["semantic"], unique_consecutive=unique)
    tokens = {"semantic": semantic.generate(max_length=SEMANTIC_STEPS, batch_size=len(TEXTS), **options)}
    noise.stage, noise.step = "coarse", 0
    coarse = audiolm_pytorch.CoarseTransformerWrapper(transformer=transformers["coarse"], codec=codec, unique_consecutive=unique)
    tokens["coarse"] = coarse.generate(semantic_token_ids=tokens["semantic"], max_time_steps=FRAMES, **options)
    noise.stage, noise.step = "fine", 0
    fine = audiolm_pytorch.FineTransformerWrapper(transformer=transformers["fine"], codec=codec)
    tokens["fine"] = fine.generate(coarse_token_ids=tokens["coarse"], **options)
    return tokens
