"""Single stages of random weights, exported, and sequences of them."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from demo.checkpoints import TINY, build_models, randomize
from musiclm_deploy.export.checkpoint import Checkpoint
from musiclm_deploy.export.stage import export_stage
from musiclm_deploy.export.transformers import infer_transformer
from musiclm_deploy.kernels.decoder_step import Model, Pool
from musiclm_deploy.model.open_musiclm import TokenConditionedTransformer
from musiclm_deploy.runtime.backend import open_session
from musiclm_deploy.runtime.batch import Batch
from musiclm_deploy.runtime.bundle import Decoder, Sampling
from musiclm_deploy.runtime.host.graph import GraphBatch
from musiclm_deploy.runtime.host.native import NativeBatch
from musiclm_deploy.runtime.sequence import Context, Draw, Sequence, coarse_sequence, fine_sequence, semantic_sequence
from musiclm_deploy.runtime.step import open_native

from .open_musiclm import CLAP, SAID, SEQUENCES

ROWS, STEPS, CONDITIONING_TOKENS, CAPACITY = 3, 7, 5, 64
_RNG = np.random.default_rng(0)
SEMANTIC = [_RNG.integers(0, 19, n) for n in (7, 0, 18)]  # ragged, one row without any
COARSE = [_RNG.integers(0, 13, (frames, 2)) for frames in (4, 1, 6)]

# What the exporter covers and a step must know: arguments of upstream's transformers, the version that saved them.
VARIANTS: dict[str, tuple[dict[str, Any], str]] = {
    "cross-attention, four streams": ({}, "2.4.0"),
    "prefix, two streams, heads of 20": (
        {"cond_as_self_attn_prefix": True, "num_residual_streams": 2, "heads": 3, "dim_head": 20},
        "2.4.0",
    ),
    "no condition, flash, three streams": (
        {"audio_text_condition": False, "rel_pos_bias": False, "flash_attn": True, "num_residual_streams": 3, "depth": 3},
        "2.4.0",
    ),
    "one stream, before 2.4, one layer, 64": ({"num_residual_streams": 1, "depth": 1, "heads": 1, "dim_head": 64, "dim": 40}, "2.3.1"),
    "no value residual, before 2.2, five heads of 7": (
        {"num_residual_streams": 1, "add_value_residual": False, "heads": 5, "dim_head": 7, "dim": 17},
        "2.1.4",
    ),
    "no self-attention, 2.0.4, heads of 12": (
        {"num_residual_streams": 1, "add_value_residual": False, "dim_head": 12, "depth": 3},
        "2.0.4",
    ),
    "wide: whole blocks and panels": ({"dim": 128, "heads": 8, "dim_head": 64}, "2.4.0"),
}
# The same of open-musiclm's transformer, which runs on CPUs alone.
OPEN_MUSICLM: dict[str, tuple[dict[str, Any], str]] = {
    "open-musiclm, convolution, heads of 8": ({"heads": 3, "dim_head": 8}, "open-musiclm"),
    "open-musiclm, absolute positions, heads of 20": (
        {
            "relative_position_bias_type": "none",
            "use_conv_ff": False,
            "use_absolute_position_embeddings": True,
            "max_absolute_position_embeddings": 40,
            "heads": 2,
            "dim_head": 20,
        },
        "open-musiclm",
    ),
}


class Stage:
    """A stage of random weights, exported, with what its rows read."""

    def __init__(
        self, stage: str, arguments: dict[str, Any], version: str, folder: Path, precision: str = "fp32", capacity: int | None = None
    ) -> None:
        if version == "open-musiclm":
            state = self._open_musiclm(stage, arguments)
        else:
            state = build_models(replace(TINY, shared_arguments=arguments), seed=3)[stage].state_dict()
        if version not in ("2.4.0", "open-musiclm"):
            state = {name.replace(".branch.", "."): tensor for name, tensor in state.items()}
        overrides = {"max_length": 32} if stage == "semantic" else {"max_time_steps": 12}
        if "cond_as_self_attn_prefix" in arguments or not arguments.get("audio_text_condition", True):
            overrides["cond_as_self_attn_prefix"] = arguments.get("cond_as_self_attn_prefix", False)
        if version == "open-musiclm":
            overrides |= SAID | ({"semantic_window": 20} if stage == "coarse" else {})
        checkpoint = Checkpoint(f"{stage}.pt", state, version)
        self.name, self.folder, self.capacity = stage, folder, capacity
        settings = infer_transformer(stage, checkpoint, overrides)
        self.decoder: Decoder = export_stage(stage, checkpoint, settings, folder, 32, 1, precision, capacity)
        self.session = open_session(folder / self.decoder.graph, 2)
        self.context: dict[str, np.ndarray] = {}
        if self.decoder.context:
            graph = open_session(folder / self.decoder.context, 2)
            width = graph.get_inputs()[0].shape[2]
            conditioning = np.random.default_rng(1).standard_normal((ROWS, CONDITIONING_TOKENS, width), np.float32)
            names = [output.name for output in graph.get_outputs()]
            self.context = dict(zip(names, graph.run(names, {"conditioning": conditioning}), strict=True))
        codes = np.random.default_rng(1).integers(0, CLAP[1], (ROWS, CLAP[0])) if self.decoder.segments else [None] * ROWS
        arrays = [{name: array[row : row + 1] for name, array in self.context.items()} for row in range(ROWS)]
        self._conditions = [Context(own, row) for own, row in zip(arrays, codes, strict=True)]

    @staticmethod
    def _open_musiclm(stage: str, arguments: dict[str, Any]) -> dict[str, torch.Tensor]:
        torch.manual_seed(3)
        model = TokenConditionedTransformer(SEQUENCES[stage], TINY.dim, TINY.depth, **arguments)
        randomize(model)
        return model.state_dict()

    def model(self, pool: Pool, path: str | None = None) -> Model:
        return open_native(self.folder, self.decoder, pool, path)

    def batch(self, native: Model | None, slots: int = 256) -> NativeBatch | GraphBatch:
        """Return a batch by the native step, or without a model by the graph."""
        return GraphBatch(self.session, self.decoder, slots) if native is None else NativeBatch(native, slots)

    def sequence(self, row: int, draw: Draw, tokens: int = 0, primed: bool = False, end_allowed: bool = True) -> Sequence:
        """Return a window of a row's prompt; primed: it begins with a prefix. tokens: at least, by default those of the trained length."""
        row, decoder = row % ROWS, self.decoder
        context, frames = self._conditions[row], -(-tokens // 2)
        if self.name == "semantic":
            return semantic_sequence(decoder, tokens or 32, end_allowed, SEMANTIC[row][: 3 * primed], draw, context)
        if self.name == "coarse":
            prefix = COARSE[row][: row * primed]
            return coarse_sequence(decoder, SEMANTIC[row], max(frames or 8, row), 2, end_allowed, prefix, draw, context)
        prefix = np.random.default_rng(row).integers(0, 13, ((1, 0, 2)[row] * primed, 3))
        return fine_sequence(decoder, np.concatenate([COARSE[row]] * (1 + frames)), 3, prefix, draw, context)

    def forced(self, row: int, steps: int) -> Sequence:
        """A sequence of `steps` tokens whose tokens are known beforehand: those of `forced_tokens`."""
        tokens = forced_tokens(row, steps)

        def noise(number: int) -> np.ndarray:
            drawn = np.zeros(self.decoder.vocabulary, np.float32)
            drawn[tokens[number]] = 1e6  # far more than any logit
            return drawn

        sequence = self.sequence(row, Draw(0, 0, 0, Sampling(1, 0, 1), noise))
        made = replace(sequence, steps=steps)
        if (ids := sequence.position_ids) is not None:  # beyond the frames that the row's prompt has
            made = replace(made, position_ids=np.concatenate([ids, ids[-1] + 1 + np.arange(steps)]))
        return made if self.capacity is None else _Static(**{field.name: getattr(made, field.name) for field in fields(made)})

    def logits(self, native: Model | None, rows: list[int], steps: int = STEPS, together: bool = True) -> np.ndarray:
        """Return [B, steps + 1, V]: the logits of every step. Row r gets the same tokens in every batch.

        Each is the last one of a sequence of its own, which ends there: all of them in one batch, or each alone.
        """
        made = [[self.forced(row, count + 1) for count in range(steps + 1)] for row in rows]
        everything = [sequence for row in made for sequence in row]
        found: dict[Sequence, np.ndarray] = {}
        for sequences in [everything] if together else [[sequence] for sequence in everything]:
            batch = self.batch(native)
            for sequence in sequences:
                batch.join(sequence)
            batch.advance(steps + 1, 1 << 20)
            found |= {sequence: batch.logits(sequence)[(sequence.steps - 1) % self.decoder.outputs, 0] for sequence in sequences}
            assert all(one.done for one in batch.collect())
            batch.close()
        return np.array([[found[sequence] for sequence in row] for row in made])


class _Static(Sequence):
    """A sequence for a graph whose caches have CAPACITY positions, as TensorRT's."""

    @property
    def capacity(self) -> int:
        return CAPACITY


def forced_tokens(row: int, steps: int) -> np.ndarray:
    return np.random.default_rng(row).integers(0, 12, steps)


def tokens_of(batch: Batch, sequences: list[Sequence], frames: int = 1 << 20, positions: int = 1 << 20) -> list[np.ndarray]:
    """Return the tokens of sequences that join together, all of them made in one call, or `frames` and `positions` at a time."""
    for sequence in sequences:
        batch.join(sequence)
    parts: dict[Sequence, list[np.ndarray]] = {sequence: [] for sequence in sequences}
    left = len(sequences)
    while left:
        batch.advance(frames, positions)
        for made in batch.collect():
            parts[made.sequence].append(made.tokens)
            left -= made.done
    batch.close()
    return [np.concatenate(parts[sequence]) for sequence in sequences]
