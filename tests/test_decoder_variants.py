"""What a transformer may have beside audiolm's: normalised queries and keys, a convolution of three positions, absolute positions.

The native step is compared with a float64 form of its own; batches, pieces and copies with each sequence alone, to the bit. Every form of
the code that this processor has is tested.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from support.native import MISSING, PATHS, allocated_bytes
from support.transformer import Transformer, random_weights

from musiclm_deploy.kernels.decoder_step import Model, Pool, Sizes
from musiclm_deploy.kernels.sampling.constants import NEVER, Place, Rules
from musiclm_deploy.runtime.bundle import Sampling
from musiclm_deploy.runtime.host.native import NativeBatch
from musiclm_deploy.runtime.sequence import Context, Draw, Positions, Sequence

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)

STEPS, ROWS, POSITIONS, ENTRIES = 6, 31, 90, 50
LENGTHS = (1, 2, 3, 9, 70)
VARIANTS: dict[str, dict[str, Any]] = {
    "none of them": {},
    "normalised": {"normalised_attention": True},
    "convolution": {"convolution": True},
    "positions": {"positions": POSITIONS},
    "all": {"normalised_attention": True, "convolution": True, "positions": POSITIONS},
}
ODD = {"dim": 40, "depth": 2, "heads": 3, "dim_head": 20, "cache_head_size": 24, "inner": 45}
WIDE = {"dim": 128, "depth": 2, "heads": 8, "dim_head": 72, "cache_head_size": 72, "inner": 341}  # at 32 bits a key is more than a chunk
BITS = (32, 8, 4)


def sizes_of(variant: str, bits: int, shape: dict[str, int]) -> Sizes:
    counts = {"streams": 1, "vocabulary": 11, "outputs": 2, "table_rows": ROWS, "bias_entries": ENTRIES}
    return Sizes(**shape, **counts, value_residual=False, cross_attention=False, bits=bits, **VARIANTS[variant])


def model_of(pool: Pool, path: str | None = None, variant: str = "all", bits: int = 32, shape: dict[str, int] = WIDE) -> Model:
    sizes = sizes_of(variant, bits, shape)
    return Model(pool, sizes, random_weights(sizes), path)


def forced_tokens(length: int) -> np.ndarray:
    return np.random.default_rng(length).integers(0, 11, STEPS)


def sequence_of(length: int, variant: str = "all", item: int = 0, forced: bool = False, steps: int = STEPS) -> Sequence:
    """Return a sequence whose prompt follows from its length; forced: its tokens are those of `forced_tokens`."""
    rng = np.random.default_rng(length)
    keys = np.arange(length) + rng.integers(0, 3, length)
    prompt = Positions(rng.integers(0, ROWS, length), keys + 1, keys)
    position_ids = rng.integers(0, POSITIONS, length + steps - 1) if VARIANTS[variant].get("positions") else None

    def noise(number: int) -> np.ndarray:
        drawn = np.zeros(11, np.float32)
        drawn[forced_tokens(length)[number]] = 1e6  # far more than any logit
        return drawn

    rules = Rules(Place(5, 11, 2, length, 1, 1, 1, 0), 0, NEVER, -1, 11 if forced else 4)
    draw = Draw(7, item, 0, Sampling(1.0, 0.5, 1.0), noise if forced else None)
    return Sequence(prompt, rules, 0, 0, steps, draw, Context(), position_ids)


def decode(batch: NativeBatch, sequences: list[Sequence], piece: int = 1 << 20) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the tokens of sequences in one batch, and their logits at every step [steps, V].

    piece: positions of prompts that are fed at a time.
    """
    for sequence in sequences:
        batch.join(sequence)
    while batch.waiting():
        batch.advance(0, piece)
    frames = []
    for _ in range(sequences[0].steps // 2):
        batch.advance(1, 0)
        frames.append([batch.logits(sequence)[:, 0] for sequence in sequences])
    made = {one.sequence: one.tokens for one in batch.collect() if one.done}
    return [(made[sequence], np.concatenate(logits)) for sequence, logits in zip(sequences, zip(*frames, strict=True), strict=True)]


def assert_equal(found: list[tuple[np.ndarray, np.ndarray]], expected: list[tuple[np.ndarray, np.ndarray]], message: str) -> None:
    for (tokens, logits), (other_tokens, other_logits) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(tokens, other_tokens, err_msg=message)
        np.testing.assert_array_equal(logits, other_logits, err_msg=message)


@cache
def reference_logits(variant: str, bits: int) -> np.ndarray:
    """Return the logits of the forced sequences of all LENGTHS at every step, float64 [lengths, steps, V]."""
    sizes, found = sizes_of(variant, bits, ODD), []
    weights = random_weights(sizes)
    for length in LENGTHS:
        sequence, transformer, tokens = sequence_of(length, variant, forced=True), Transformer(sizes, weights), forced_tokens(length)
        ids = [*sequence.prompt.ids, *(5 + np.arange(STEPS) % 2 * 11 + tokens)]
        keys = [*sequence.prompt.key, *(length + np.arange(STEPS))]
        positions = np.zeros(len(ids), np.int64) if sequence.position_ids is None else sequence.position_ids
        logits = [transformer.feed(ids[p], keys[p] + 1, keys[p], positions[p]) for p in range(length + STEPS - 1)]
        found.append([logits[length - 1 + step][step % 2] for step in range(STEPS)])
    return np.array(found)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_float64(variant: str, bits: int, pools) -> None:
    """Fault: a norm, a tap, a position or a scale that is left out or taken of another place, in one form of the code; a padded head.

    Below 32 bits both round activations to the same whole numbers, but for the few that fall on two sides of a half. Such a one stays in
    the caches, so all logits of a sequence after it differ.
    """
    expected = reference_logits(variant, bits)
    if variant != "none of them":
        assert np.abs(expected - reference_logits("none of them", bits)).mean() > 0.2 * np.abs(expected).mean()
    for path in PATHS:
        batch = NativeBatch(model_of(pools[2], path, variant, bits, ODD))
        found = decode(batch, [sequence_of(length, variant, forced=True) for length in LENGTHS])
        np.testing.assert_array_equal([tokens for tokens, _ in found], [forced_tokens(length) for length in LENGTHS])
        wrong, largest = np.abs(np.array([logits for _, logits in found]) - expected), np.abs(expected).max()
        assert np.median(wrong) <= 1e-6 * largest and wrong.max() <= (1e-5 if bits == 32 else 0.03) * largest, path


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("path", PATHS)
def test_prompts_in_pieces_and_batches(path: str, bits: int, pools) -> None:
    """Fault: a convolution that reads the positions of its neighbour, or of another step; a key that is normalised before it is whole."""
    sequences = [sequence_of(length) for length in LENGTHS]
    model = model_of(pools[2], path, bits=bits)
    expected = [decode(NativeBatch(model), [sequence])[0] for sequence in sequences]
    for piece in (1, 2, 7, 64):
        assert_equal(decode(NativeBatch(model), sequences, piece), expected, f"{piece} at a time")
    for threads in (1, 3):
        assert_equal(decode(NativeBatch(model_of(pools[threads], path, bits=bits)), sequences), expected, f"{threads} threads")


@pytest.mark.parametrize("variant", list(VARIANTS)[1:])
def test_sequences_join_and_leave_between_frames(variant: str, pools) -> None:
    """Fault: a prompt that is copied without the convolution's inputs at its end, or with later ones of a slot that has gone on."""
    rng, model = np.random.default_rng(0), model_of(pools[2], variant=variant, bits=8)
    kinds = [sequence_of(length, variant, item) for length in (1, 3, 9, 70) for item in range(2)]
    expected = [decode(NativeBatch(model), [sequence])[0][0] for sequence in kinds]
    batch, there, ended = NativeBatch(model, 5), {}, 0
    while ended < 60:
        while len(there) < 5 and rng.random() < 0.7:
            kind = int(rng.integers(len(kinds)))
            joined = replace(kinds[kind])  # equal to itself alone
            there[joined] = kind, []
            batch.join(joined)
        batch.advance(int(rng.integers(3)), int(rng.integers(40)))
        for one in batch.collect():
            kind, tokens = there[one.sequence]
            tokens += one.tokens.tolist()
            assert tokens == expected[kind][: len(tokens)].tolist()
            ended += one.done
            if one.done:
                assert len(there.pop(one.sequence)[1]) == STEPS
        if there and rng.random() < 0.1:
            gone = list(there)[int(rng.integers(len(there)))]
            del there[gone]
            batch.leave(gone)


@pytest.mark.parametrize("path", PATHS)
def test_equal_prompts_are_computed_once(path: str, pools) -> None:
    """Fault: eight candidates that pay eight prefills, or one that joins later and pays its own; other positions that count as equal."""
    model, length = model_of(pools[2], path), 70
    candidates = [sequence_of(length, item=item) for item in range(10)]
    expected = [decode(NativeBatch(model), [sequence])[0][0] for sequence in candidates]
    batch = NativeBatch(model)
    for sequence in candidates[:8]:
        batch.join(sequence)
    batch.advance(0, 30)
    batch.join(candidates[8])  # a piece of the prompt is there
    batch.advance(2, 1 << 20)
    assert batch.fed == length - 1
    batch.join(candidates[9])  # the others have gone on already
    first = candidates[0]
    assert first.position_ids is not None
    elsewhere = replace(first, position_ids=np.roll(first.position_ids, 1))
    longer = sequence_of(length, steps=2 * STEPS)
    longer = replace(longer, position_ids=np.concatenate([first.position_ids[:length], np.zeros(2 * STEPS - 1, np.int64)]))
    for sequence in (elsewhere, longer):
        batch.join(sequence)
    batch.advance(1 << 20, 1 << 20)
    assert batch.fed == 2 * (length - 1)  # of `elsewhere` alone; `longer` differs after its prompt only
    tokens = {one.sequence: one.tokens for one in batch.collect()}
    for sequence, alone in zip(candidates, expected, strict=True):
        np.testing.assert_array_equal(tokens[sequence], alone)
    np.testing.assert_array_equal(tokens[elsewhere], decode(NativeBatch(model), [elsewhere])[0][0])
    np.testing.assert_array_equal(tokens[longer], decode(NativeBatch(model), [longer])[0][0])


def test_what_is_refused(pools) -> None:
    """Fault: a position beyond its table that is read; a model that ignores what it is given, or runs without what it needs."""
    batch, good = NativeBatch(model_of(pools[1])), sequence_of(3)
    assert good.position_ids is not None
    for number, value in ((0, -1), (2, POSITIONS), (-1, POSITIONS), (-1, 1 << 62)):
        ids = good.position_ids.copy()
        ids[number] = value
        with pytest.raises(ValueError, match="position id is not in the table of absolute positions"):
            batch.join(replace(good, position_ids=ids))
    with pytest.raises(ValueError, match="position ids and a model with absolute positions go together"):
        batch.join(replace(good, position_ids=None))
    with pytest.raises(ValueError, match=r"it needs int64 \[8\] in C's order, got int64 \[7\]"):
        batch.join(replace(good, position_ids=good.position_ids[1:]))
    with pytest.raises(ValueError, match="position ids and a model with absolute positions go together"):
        NativeBatch(model_of(pools[1], variant="convolution")).join(good)
    batch.join(replace(good, steps=0, position_ids=good.position_ids[:2]))  # nothing to sample, nothing to refuse
    sizes = sizes_of("all", 4, ODD)
    for name in ("layers.1.attention.key_scale", "layers.1.feed_forward.taps", "positions"):
        weights = random_weights(sizes)
        assert weights[name].dtype == np.float32  # at 4 bits too
        del weights[name]
        with pytest.raises(ValueError, match=f"the weight '{name}' must be float32"):
            Model(pools[1], sizes, weights)


def test_memory_is_what_is_stated(pools) -> None:
    """Fault: the convolution's inputs or the positions are not counted in what a slot takes."""
    plain, model = model_of(pools[1], variant="none of them"), model_of(pools[1])
    wide = 2 * WIDE["inner"] + -2 * WIDE["inner"] % 16
    assert model.slot_bytes(100, 0, 0) - plain.slot_bytes(100, 0, 0) == 2 * WIDE["depth"] * 2 * wide * 4 + 100 * 8
    assert model.bytes_read - plain.bytes_read == WIDE["depth"] * 3 * wide * 4
    sequence, batch, before = sequence_of(9, steps=100_000), NativeBatch(model), allocated_bytes()
    batch.join(sequence)
    stated = model.slot_bytes(sequence.capacity, 0, 0) + model.scratch_bytes(8, sequence.capacity, 0) + 8 * sequence.steps
    assert 0.97 < (allocated_bytes() - before) / stated <= 1
