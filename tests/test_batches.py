"""What a batch costs: a prefix that rows share is computed once, a row that has ended no longer; and no token changes by it."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from support.batches import watched
from support.stages import Stage

import musiclm_deploy as md
from musiclm_deploy.kernels.decoder_step import Pool
from musiclm_deploy.runtime.bundle import Sampling
from musiclm_deploy.runtime.music import Tokens
from musiclm_deploy.runtime.sequence import Draw, Sequence

EVERY_TOKEN = {stage: md.SamplingConfig(filter_thres=0.0) for stage in ("semantic", "coarse", "fine")}
SHORT: dict[str, Any] = {"seconds": 0.2, "max_semantic_tokens": 6, "sampling": EVERY_TOKEN}


@pytest.fixture(params=["graph", "native"])
def model(request, tiny_bundle):
    """The tiny bundle with each form of the step."""
    if request.param == "native" and not md.runtime.step.choose_step("auto").native:
        pytest.skip("the native step was not built")
    with md.load(tiny_bundle, step=request.param) as loaded:
        yield loaded


def equal(one: Tokens, other: Tokens) -> bool:
    return all(np.array_equal(getattr(one, part), getattr(other, part)) for part in ("semantic", "coarse", "fine"))


def test_candidates_share_their_prefix(model) -> None:
    """Fault: each candidate, and each pass without condition, computes the prompt that others have too; or gets another one's caches."""
    guided = EVERY_TOKEN | {"coarse": md.SamplingConfig(filter_thres=0.0, cond_scale=2.0)}
    options = SHORT | {"num_samples": 3, "sampling": guided, "tokens": [Tokens(np.array([1, 2, 3]))] * 3}
    together, batches = watched(model)
    songs = together.generate("a", **options)
    fed = {stage: batch.fed for stage, batch in batches.items()}
    one_by_one, batches = watched(model, slots=1)
    alone = one_by_one.generate("a", **options)
    frames, coarse = len(songs.tokens.coarse), songs.tokens.coarse.size
    told = 1 + 3  # the last position of a prompt is fed by the first step
    assert fed == {"coarse": 2 * told, "fine": 3 * (1 + coarse)}, "a prompt with its condition and without; what was drawn is not shared"
    assert {stage: batch.fed for stage, batch in batches.items()} == {"coarse": 3 * 2 * told, "fine": 3 * (1 + coarse)}
    assert frames == 10 and len({candidate.tokens.coarse.tobytes() for candidate in songs.candidates}) == 3
    assert all(equal(a.tokens, b.tokens) for a, b in zip(songs.candidates, alone.candidates, strict=True))


class _Ends:
    """Noise of its own for each item, which ends item i's semantic tokens after `after[i]` of them."""

    def __init__(self, after: list[int]) -> None:
        self._after = after

    def gumbel(self, stage: str, step: int, batch: int, vocab: int) -> np.ndarray:
        noise = np.random.default_rng([step, vocab]).gumbel(size=(8, vocab)).astype(np.float32)[:batch]
        if stage != "fine":
            noise[:, -1] = [1000 if (stage, step) == ("semantic", end) else -1000 for end in self._after]
        return noise


def test_clips_that_end_do_not_change_others(model) -> None:
    """Fault: rows that are mixed up when others leave the batch."""
    after = [1, 9, 3, 2, 6]
    options = {"seconds": 0.3, "max_semantic_tokens": 12, "stop": "eos", "sampling": EVERY_TOKEN}
    songs = model.generate(list("abcde"), noise=_Ends(after), **options)
    assert [len(song.tokens.semantic) for song in songs] == after
    for other in (3, 1):  # the same with rows that end elsewhere beside them
        moved = [end if item == other else 12 for item, end in enumerate(after)]
        assert equal(model.generate(list("abcde"), noise=_Ends(moved), **options)[other].tokens, songs[other].tokens)


@pytest.mark.parametrize("native", [False, True], ids=["graph", "native"])
def test_rows_that_have_ended_leave_the_batch(native: bool, stages, pools) -> None:
    """Fault: a batch that pays for its longest row in every row, a slot that stays taken, or rows that are mixed up when others leave."""
    stage: Stage = stages("cross-attention, four streams", "semantic")
    pool: Pool = pools[1]
    batch, after = stage.batch(stage.model(pool) if native else None, slots=4), [1, 9, 3, 2, 6]
    drawn: dict[int, list[int]] = {row: [] for row in range(len(after))}

    def ending(row: int) -> Sequence:
        def noise(step: int) -> np.ndarray:
            drawn[row].append(step)
            made = np.random.default_rng([row, step]).gumbel(size=stage.decoder.vocabulary).astype(np.float32)
            made[-1] = 1000 if step == after[row] else -1000
            return made

        return stage.sequence(row, Draw(0, row, 0, Sampling(1.0, 0.0, 1.0), noise), tokens=12)

    sequences = [ending(row) for row in range(len(after))]
    for sequence in sequences[:4]:
        batch.join(sequence)
    with pytest.raises(ValueError, match="all 4 slots are taken"):
        batch.join(sequences[4])
    made: dict[Sequence, list[np.ndarray]] = {sequence: [] for sequence in sequences}
    for frame in range(12):
        batch.advance(1, 1 << 20)
        live = [row for row in range(4) if after[row] >= frame]
        assert [row for row in range(4) if drawn[row][-1:] == [frame]] == live, "who has ended draws nothing more"
        for one in batch.collect():
            made[one.sequence].append(one.tokens)
            assert one.done == (frame == after[sequences.index(one.sequence)] + (2 if one.sequence is sequences[4] else 0))
        if frame == 1:  # the first one has left its slot
            batch.join(sequences[4])
    together = [np.concatenate(made[sequence]) for sequence in sequences]
    assert [len(tokens) for tokens in together] == after
    for row in range(len(after)):
        alone = stage.batch(stage.model(pool) if native else None)
        alone.join(ending(row))
        alone.advance(12, 1 << 20)
        (found,) = alone.collect()
        assert found.done and np.array_equal(found.tokens, together[row])


def test_a_slot_that_is_left_is_free_at_once(stages, collector_off) -> None:
    """Fault: caches that stay taken until Python's collector runs, hundreds of slots of them: tracemalloc sees those of the graph."""
    stage: Stage = stages("cross-attention, four streams", "semantic")
    batch, held = stage.batch(None), []
    tracemalloc.start()
    try:
        for _ in range(6):
            sequence = stage.sequence(0, Draw(0, 0, 0, Sampling(0.0, 0.0, 3.0)), tokens=2000)
            batch.join(sequence)
            batch.advance(1, 1 << 20)
            assert len(batch.logits(sequence)) == 1
            batch.leave(sequence)
            del sequence
            held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert held[-1] < held[0] + 100_000, held
