"""A token by PyTorch on a GPU, where nothing waits for the host between tokens: audiolm-pytorch's own loop, and a static cache compiled.

In: upstream's models or state dict, a case, a device. Out: seconds a token. Tokens are given, as sampling would only be added to it; the
compiled one is told to use CUDA graphs ("reduce-overhead"). On a CPU the same runs, which is what tests do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from musiclm_deploy.runtime.bench.steps import Case

from .static_cache import StaticCacheCoarse

COMPILED, UPSTREAM = "compiled PyTorch", "audiolm-pytorch"
PEERS = (COMPILED, "fp16"), (COMPILED, "bf16"), (UPSTREAM, "fp32")  # which is what upstream computes in
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def static_cache_tokens(
    state: Mapping[str, Tensor], case: Case, conditioning: Tensor, dtype: torch.dtype, device: str, mode: str | None
) -> Callable[[int], Tensor]:
    """index -> logits [B, V] of the case's token `index`. mode: of torch.compile; None for eager."""
    told = case.semantic.shape[1]
    first = 2 + told + case.prime.shape[1]
    with torch.inference_mode():
        model = StaticCacheCoarse(state, case.rows, told, first + len(case.tokens), conditioning).to(device, dtype).eval()
        model.prefill(torch.from_numpy(case.semantic).to(device), torch.from_numpy(case.prime).to(device))
    tokens, heads = torch.from_numpy(case.tokens).to(device), list(model.coarse_logit_weights.unbind())
    places = torch.arange(first, first + len(case.tokens), device=device)[:, None]
    offsets = (torch.arange(model.codes, device=device) * model.codebook)[:, None]
    call: Any = model if mode is None else torch.compile(model, fullgraph=True, dynamic=False, mode=mode)

    @torch.inference_mode()
    def step(index: int) -> Tensor:
        return call(tokens[index], places[index], offsets[index % model.codes], heads[(index + 1) % model.codes])

    return step


def upstream_tokens(transformer: Any, case: Case, conditioning: Tensor, device: str) -> Callable[[int], Tensor]:
    """The same by upstream's transformer, its KV cache on.

    It is what `CoarseTransformerWrapper.generate` of audiolm-pytorch 2.4.0 does for a token at `cond_scale=1`: one such call with all
    tokens so far and both caches of the call before. Left out of a step here, in upstream's favour: `top_k`, `gumbel_sample` and the
    `torch.cat` of the new token. With the 3.0 that `generate` takes by default the transformer runs twice; ours is timed without, too.
    """
    transformer = transformer.to(device).eval()
    semantic, conditioning = torch.from_numpy(case.semantic).to(device), conditioning.to(device)
    given = torch.cat([torch.from_numpy(case.prime), torch.from_numpy(case.tokens).T], dim=1).to(device)
    caches: tuple[Any, Any] = (None, None)

    @torch.inference_mode()
    def step(index: int) -> Tensor:
        nonlocal caches
        (_, logits), caches = transformer.forward_with_cond_scale(
            semantic_token_ids=semantic,
            coarse_token_ids=given[:, : case.prime.shape[1] + index + 1],
            text_embeds=conditioning,
            cond_scale=1,
            return_kv_cache=True,
            kv_cache=caches[0],
            embed_cache=caches[1],
            return_only_coarse_logits=True,
        )
        return logits[:, -1]

    return step


def time_tokens(step: Callable[[int], Tensor], count: int, device: str) -> float:
    """Seconds of a token, over the last half of so many: the first half compiles and fills caches."""
    half = count // 2

    def run(first: int, last: int) -> float:
        started = time.perf_counter()
        for index in range(first, last):
            step(index)
        if device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    run(0, half)
    return run(half, count) / (count - half)


def time_peer(
    form: str, kind: str, models: Mapping[str, Any], case: Case, conditioning: Tensor, device: str, upstream_at_most: int = 40
) -> float:
    """Seconds of a token of one of PEERS."""
    count = len(case.tokens)
    if form == COMPILED:
        state = models["coarse"].state_dict()
        return time_tokens(static_cache_tokens(state, case, conditioning, DTYPES[kind], device, "reduce-overhead"), count, device)
    return time_tokens(upstream_tokens(models["coarse"], case, conditioning, device), min(count, upstream_at_most), device)
