"""Tokens that are known at the start of a row: the tail of the window before, or a sound that is continued.

The seed's own tokens are the measure: told the first of them and asked for the rest, a stage must give the rest, to the token, whatever
other rows of the batch are told.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from demo.checkpoints import randomize
from musiclm_deploy.export.checkpoint import Checkpoint
from musiclm_deploy.export.stage import export_stage
from musiclm_deploy.export.transformers import STAGES, infer_transformer
from musiclm_deploy.export.validate import upstream_transformer
from musiclm_deploy.model.upstream import load_upstream
from musiclm_deploy.runtime.backend import open_session
from musiclm_deploy.runtime.bundle import Decoder, Sampling
from musiclm_deploy.runtime.forcing import forced, logits_of
from musiclm_deploy.runtime.host.graph import GraphBatch
from musiclm_deploy.runtime.sequence import Context, Draw, Sequence, coarse_sequence, fine_sequence, semantic_sequence

ROWS, FRAMES, SEMANTIC_STEPS, CONDITIONING_TOKENS = 4, 6, 15, 3
SAMPLING = Sampling(temperature=4.0, filter_thres=0.2, cond_scale=2.5)  # random logits are peaked: at 1 the noise would hardly be heard
_RNG = np.random.default_rng(0)
_SEMANTIC = [_RNG.integers(0, 19, n) for n in (7, 0, 4, 11)]  # ragged, one row without any
_COARSE = [_RNG.integers(0, 13, (frames, 4)) for frames in (FRAMES, 3, FRAMES, 5)]


@dataclass
class Stage:
    """A stage of random weights, exported, and what its rows read."""

    name: str
    decoder: Decoder
    session: Any
    context: dict[str, np.ndarray]
    groups: int
    settings: Any
    state: dict[str, torch.Tensor]

    @property
    def columns(self) -> int:
        """Tokens of a frame; 1 in the semantic stage."""
        quantizers = {"semantic": None, "coarse": self.decoder.coarse_quantizers, "fine": self.decoder.fine_quantizers}[self.name]
        return (quantizers or 1) * (self.groups if self.name != "semantic" else 1)

    def sequence(self, row: int, prime: np.ndarray, trained_frames: int | None = None) -> Sequence:
        """A row's window that begins with a prime, with the row's own noise, which is counted from the first token of the prime."""
        context = Context({name: np.ascontiguousarray(array[row : row + 1]) for name, array in self.context.items()})
        draw = Draw(row, 0, prime.size, SAMPLING if self.context else replace(SAMPLING, cond_scale=1.0))
        if self.name == "semantic":
            return semantic_sequence(self.decoder, SEMANTIC_STEPS, True, prime, draw, context)
        if self.name == "coarse":
            return coarse_sequence(self.decoder, _SEMANTIC[row], FRAMES, self.columns, True, prime, draw, context)
        coarse = _COARSE[row][:, : 2 * self.groups]
        return fine_sequence(self.decoder, coarse, self.columns, prime, draw, context, trained_frames)

    @property
    def nothing(self) -> np.ndarray:
        """No prime."""
        return self.shaped(np.zeros(0, np.int64))

    def shaped(self, tokens: np.ndarray) -> np.ndarray:
        return tokens if self.name == "semantic" else tokens.reshape(-1, self.columns)

    def run(self, sequences: list[Sequence]) -> list[np.ndarray]:
        """The tokens that sequences get which decode together."""
        batch, tokens = GraphBatch(self.session, self.decoder), {sequence: np.zeros(0, np.int64) for sequence in sequences}
        for sequence in sequences:
            if sequence.steps:
                batch.join(sequence)
        batch.advance(1000, 1000)
        for made in batch.collect():
            assert made.done and made.error is None
            tokens[made.sequence] = made.tokens
        return list(tokens.values())


VARIANTS = [("cross", True, 1), ("cross", False, 2), ("prefix", True, 2), ("prefix", False, 1), ("none", True, 1)]


@pytest.fixture(scope="module", params=VARIANTS, ids=lambda variant: "-".join(map(str, variant)))
def stages(request, tmp_path_factory) -> dict[str, Stage]:
    """The three stages of one variant: conditioning, relative bias or flash, residual groups of the codec."""
    load_upstream()
    import audiolm_pytorch

    conditioning, bias, groups = request.param
    torch.manual_seed(5)
    random.seed(5)  # hyper-connections draws its first stream from Python's generator
    shared: dict[str, Any] = dict(dim=24, depth=2, heads=2, dim_head=8, rel_pos_bias=bias, flash_attn=not bias)
    shared |= dict(audio_text_condition=conditioning != "none", cond_as_self_attn_prefix=conditioning == "prefix")
    codes: dict[str, Any] = dict(codebook_size=13, num_coarse_quantizers=2)
    models = {
        "semantic": audiolm_pytorch.SemanticTransformer(num_semantic_tokens=19, **shared),
        "coarse": audiolm_pytorch.CoarseTransformer(num_semantic_tokens=19, **codes, **shared),
        "fine": audiolm_pytorch.FineTransformer(num_fine_quantizers=3, **codes, **shared),
    }
    made, folder = {}, tmp_path_factory.mktemp("stages")
    for name, model in models.items():
        randomize(model)
        overrides: dict[str, Any] = {"cond_as_self_attn_prefix": conditioning == "prefix"} if conditioning != "cross" else {}
        overrides |= {"max_length": 20} if name == "semantic" else {"max_time_steps": 8}
        checkpoint = Checkpoint(f"{name}.pt", model.state_dict(), "2.4.0")
        settings = infer_transformer(name, checkpoint, overrides)
        decoder = export_stage(name, checkpoint, settings, folder, 20, groups)
        made[name] = Stage(name, decoder, _session(folder, decoder.graph), _context(folder, decoder), groups, settings, model.state_dict())
    return made


def _session(folder: Path, graph: str) -> Any:
    return open_session(folder / graph, None)


def _context(folder: Path, decoder: Decoder) -> dict[str, np.ndarray]:
    if decoder.context is None:
        return {}
    graph = _session(folder, decoder.context)
    names = [output.name for output in graph.get_outputs()]
    return dict(zip(names, graph.run(names, {"conditioning": _conditioning(decoder)}), strict=True))


def _conditioning(decoder: Decoder) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((ROWS, CONDITIONING_TOKENS, decoder.dim), np.float32)


@pytest.mark.parametrize("name", STAGES)
def test_told_the_first_tokens_a_stage_gives_the_others(stages, name: str) -> None:
    """Fault: a coordinate, head, forbidden entry, noise index, cache length or prefix that counts from the prime's end instead of its
    beginning; a row that is told more than its neighbour and gets its neighbour's place."""
    stage: Stage = stages[name]
    whole = [stage.shaped(tokens) for tokens in stage.run([stage.sequence(row, stage.nothing) for row in range(ROWS)])]
    assert len(np.unique(np.concatenate(whole))) > 5, "the same few tokens everywhere: a shift would not show"
    for shares in ((0, 1, 2, 3), (3, 0, 1, 2), (2, 2, 2, 2), (4, 4, 1, 4), (4, 4, 4, 4)):  # fourths of a row: none of it to all of it
        counts = [len(tokens) * share // 4 for tokens, share in zip(whole, shares, strict=True)]
        primes = [tokens[:count] for tokens, count in zip(whole, counts, strict=True)]
        rest = stage.run([stage.sequence(row, prime) for row, prime in enumerate(primes)])
        for row, (tokens, count) in enumerate(zip(whole, counts, strict=True)):
            assert np.array_equal(stage.shaped(rest[row]), tokens[count:]), f"row {row}, told {count} of {len(tokens)}"


@pytest.mark.parametrize("name", STAGES)
def test_a_primed_batch_is_its_rows_alone(stages, name: str) -> None:
    """Fault: primes other than the model's own (a sound) that reach a neighbour, by padding, lengths or noise."""
    stage: Stage = stages[name]
    rng, limits = np.random.default_rng(3), [SEMANTIC_STEPS] * ROWS if name == "semantic" else [2, 3, 1, 5]
    shapes = [(min(limit, row + 1), stage.columns)[: 1 if name == "semantic" else 2] for row, limit in enumerate(limits)]
    primes = [rng.integers(0, 12, shape) for shape in shapes]
    together = stage.run([stage.sequence(row, prime) for row, prime in enumerate(primes)])
    for row in range(ROWS):
        (alone,) = stage.run([stage.sequence(row, primes[row])])
        assert np.array_equal(alone, together[row]), f"row {row}"
    assert any(len(tokens) for tokens in together)


@pytest.mark.parametrize("name", STAGES)
def test_after_a_prime_the_logits_are_upstreams(stages, name: str) -> None:
    """Fault: primes embedded in a way of our own, in which the tests above would agree with themselves. fp32: 1e-4 of the largest logit."""
    stage: Stage = stages[name]
    frames = [len(coarse) for coarse in _COARSE]
    primes = [np.random.default_rng(row).integers(0, 12, (row + 1, stage.columns)[: 1 if name == "semantic" else 2]) for row in range(ROWS)]
    primes = [prime[: frames[row]] for row, prime in enumerate(primes)] if name == "fine" else primes
    model = upstream_transformer(name, stage.settings, stage.state)
    condition = {"text_embeds": torch.from_numpy(_conditioning(stage.decoder)), "cond_drop_prob": 0.0} if stage.context else {}
    for row, prime in enumerate(primes):
        # N of the fine stage's bias is what upstream sees in this call
        sequence = stage.sequence(row, prime, len(_COARSE[row]) * stage.groups if name == "fine" else None)
        unguided = replace(sequence, draw=replace(sequence.draw, sampling=replace(SAMPLING, cond_scale=1.0)))
        batch = GraphBatch(stage.session, stage.decoder)
        (logits,) = logits_of(batch, [forced(unguided, np.zeros(0, np.int64), stage.decoder.vocabulary)])[1]
        found = logits[0, 0]
        mine = condition | ({"text_embeds": condition["text_embeds"][row : row + 1]} if condition else {})
        ids = torch.from_numpy(prime.reshape(1, -1))
        with torch.inference_mode():
            if name == "semantic":
                expected = model(ids=ids, **mine)[0, -1]
            elif name == "coarse":
                expected = model(semantic_token_ids=torch.from_numpy(_SEMANTIC[row])[None], coarse_token_ids=ids, **mine)[1][0, -1]
            else:
                coarse = torch.from_numpy(_COARSE[row][:, : 2 * stage.groups]).reshape(1, -1)
                expected = model(coarse_token_ids=coarse, fine_token_ids=ids, **mine)[1][0, -1]
        np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-4 * float(expected.abs().max()), err_msg=f"row {row}")


def test_the_last_entry_is_forbidden_by_the_place_in_the_row(stages) -> None:
    """Fault: a primed row that may not end at its first new frame, or one that may end in its frame 0 or within a frame."""
    coarse: Stage = stages["coarse"]
    columns = coarse.columns
    sequences = [coarse.sequence(0, np.zeros((frames, columns), np.int64)) for frames in (0, 1, 0, 3)]
    assert [one.forbids_end(0) for one in sequences] == [True, False, True, False]
    assert [one.forbids_end(1) for one in sequences] == [True] * 4
    assert [one.forbids_end(columns) for one in sequences] == [False] * 4
    assert [one.steps for one in sequences] == [(FRAMES - frames) * columns for frames in (0, 1, 0, 3)]


def test_a_prime_is_whole_frames_and_fits(stages) -> None:
    """Fault: one head for rows that stand at different quantizers, or a row longer than was asked."""
    fine: Stage = stages["fine"]
    for wrong in (np.zeros((7, fine.columns), int), np.zeros((1, 1), int)):
        with pytest.raises(AssertionError):
            fine.sequence(0, wrong)


@pytest.mark.parametrize("name", STAGES)
def test_a_prompt_in_pieces_is_the_same(stages, name: str) -> None:
    """Fault: rows that get a neighbour's cache, prefix or context when prompts are fed a few positions at a time, the longest in several
    calls, while those that are fed already decode."""
    stage: Stage = stages[name]
    rng = np.random.default_rng(3)
    primes = [stage.shaped(rng.integers(0, 12, min(row + 1, len(_COARSE[row])) * stage.columns)) for row in range(ROWS)]
    sequences = [stage.sequence(row, prime) for row, prime in enumerate(primes)]
    expected = dict(zip(sequences, stage.run(sequences), strict=True))
    batch, found = GraphBatch(stage.session, stage.decoder), {sequence: [np.zeros(0, np.int64)] for sequence in sequences}
    for sequence in sequences:
        if sequence.steps:
            batch.join(sequence)
    waiting = [batch.waiting()]
    for _ in range(100):
        batch.advance(1, 1)
        waiting.append(batch.waiting())
        for made in batch.collect():
            found[made.sequence].append(made.tokens)
    assert waiting == sorted(waiting, reverse=True) and waiting[0] > 0 == waiting[-1]
    assert all(np.array_equal(np.concatenate(parts), expected[sequence]) for sequence, parts in found.items())
