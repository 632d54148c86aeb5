"""What others take for a token on the same GPU and the same weights: audiolm-pytorch, and a static cache in compiled PyTorch."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.bundle import models
from benchmarks.peers.on_device import time_peer
from musiclm_deploy.runtime.backend import open_session
from musiclm_deploy.runtime.bench.record import Row
from musiclm_deploy.runtime.bench.steps import Case, make_case, random_context, sizes
from musiclm_deploy.runtime.bundle import Bundle


def case_of_peers(opened: Bundle, rows: int, context: int, steps: int) -> tuple[Case, torch.Tensor]:
    """Tokens of the coarse stage, and the conditioning of every row, float32 [B, C, dim]."""
    case, graph = make_case(opened.manifest, "coarse", rows, context, steps), opened.manifest.coarse.context
    if case is None or graph is None:
        raise ValueError(f"this bundle's coarse stage has no {context + steps} positions, or no cross-attention, which the peers have.")
    conditioning, _ = random_context(opened.manifest, "coarse", open_session(opened.path(graph), None))
    return case, torch.from_numpy(np.repeat(conditioning, rows, axis=0))


def peer(form: str, kind: str, opened: Bundle, size: str, rows: int, context: int, steps: int, device: str = "cuda") -> Row:
    """A token of one of PEERS, on the same weights. opened: of that size, for its records."""
    seconds = time_peer(form, kind, models(size), *case_of_peers(opened, rows, context, steps), device)
    about = {"benchmark": "gpu step", "stage": "coarse", "rows": rows, "context": context} | sizes(opened.manifest.coarse)
    return about | {"form": form, "precision": kind, "step_us": round(seconds * 1e6, 1)}
