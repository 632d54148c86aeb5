"""What a batch costs: a prefix that rows share is computed once, a row that has ended no longer; and no token changes by it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import musiclm_deploy as md
from musiclm_deploy.runtime import decoder
from musiclm_deploy.runtime.decoder import DecoderRun
from musiclm_deploy.runtime.music import Tokens
from musiclm_deploy.runtime.stages import Positions

EVERY_TOKEN = {stage: md.SamplingConfig(filter_thres=0.0) for stage in ("semantic", "coarse", "fine")}
SHORT: dict[str, Any] = {"seconds": 0.2, "max_semantic_tokens": 6, "sampling": EVERY_TOKEN}


@pytest.fixture
def prefilled(monkeypatch) -> list[int]:
    """Rows that are computed of every prefill, in order."""
    seen: list[int] = []
    for form in ("_prefill_by_graph", "_prefill_native"):
        monkeypatch.setattr(DecoderRun, form, _noted(getattr(DecoderRun, form), seen))
    return seen


def _noted(prefill: Callable[..., None], seen: list[int]) -> Callable[..., None]:
    def noted(run: DecoderRun, head: int, distinct: list[int], *rest: Any) -> None:
        seen.append(len(distinct))
        prefill(run, head, distinct, *rest)

    return noted


def alone(prompts: list[Positions], conditions: np.ndarray) -> tuple[list[int], list[int]]:
    """In place of `decoder.distinct_prompts`: every row for itself."""
    return list(range(len(prompts))), list(range(len(prompts)))


@pytest.mark.parametrize("step", ["graph", "native"])
def test_candidates_share_their_prefix(step: str, tiny_bundle, prefilled, monkeypatch) -> None:
    """Fault: each candidate, and each pass without condition, computes the prompt that others have too; or gets another one's caches."""
    if step == "native" and not md.runtime.step.choose_step("auto").native:
        pytest.skip("the native step was not built")
    with md.load(tiny_bundle, step=step) as model:
        guided = EVERY_TOKEN | {"coarse": md.SamplingConfig(filter_thres=0.0, cond_scale=2.0)}
        options = SHORT | {"num_samples": 3, "sampling": guided}

        def both() -> tuple[list[Tokens], list[int]]:
            """Tokens of two prompts, then of one that goes on from the same semantic tokens in all candidates; rows of each prefill."""
            prefilled.clear()
            songs = model.generate(["a", "b"], seed=[1, 2], **options)
            told = [Tokens(np.array([1, 2, 3]))] * 3
            songs.append(model.generate("a", tokens=told, **options))
            return [candidate.tokens for song in songs for candidate in song.candidates], list(prefilled)

        tokens, (semantic, coarse, fine, told_coarse, told_fine) = both()
        assert semantic == 2, "one start token under two conditions"
        assert 6 < coarse <= 12 and fine == 6 and told_fine == 3, "what the candidates drew is theirs"
        assert told_coarse == 2, "one prompt with its condition, and without"
        monkeypatch.setattr(decoder, "distinct_prompts", alone)
        each, rows = both()
        assert rows == [6, 12, 6, 6, 3]
        for one, other in zip(tokens, each, strict=True):
            for part in ("semantic", "coarse", "fine"):
                np.testing.assert_array_equal(getattr(one, part), getattr(other, part))


class _Ends:
    """Noise of its own for each item, which ends item i's semantic tokens after `after[i]` of them."""

    def __init__(self, after: list[int]) -> None:
        self._after = after

    def gumbel(self, stage: str, step: int, batch: int, vocab: int) -> np.ndarray:
        noise = np.random.default_rng([step, vocab]).gumbel(size=(8, vocab)).astype(np.float32)[:batch]
        if stage != "fine":
            noise[:, -1] = [1000 if (stage, step) == ("semantic", end) else -1000 for end in self._after]
        return noise


@pytest.mark.parametrize("step", ["graph", "native"])
def test_rows_that_have_ended_leave_the_batch(step: str, tiny_bundle, monkeypatch) -> None:
    """Fault: a batch that pays for its longest row in every row, or rows that are mixed up when others leave."""
    if step == "native" and not md.runtime.step.choose_step("auto").native:
        pytest.skip("the native step was not built")
    computed: list[int] = []
    original: Callable = DecoderRun.step

    def counted(run: DecoderRun, positions: Positions, *rest: Any) -> np.ndarray:
        if "semantic" in run._decoder.graph:
            computed.append(len(positions.rows))
        return original(run, positions, *rest)

    monkeypatch.setattr(DecoderRun, "step", counted)
    after = [1, 9, 3, 2, 6]
    options = {"seconds": 0.3, "max_semantic_tokens": 12, "stop": "eos", "sampling": EVERY_TOKEN}
    with md.load(tiny_bundle, step=step) as model:
        songs = model.generate(list("abcde"), noise=_Ends(after), **options)
        assert [len(song.tokens.semantic) for song in songs] == after
        live = [sum(end >= token for end in after) for token in range(1, max(after) + 1)]
        assert len(computed) == len(live) and all(n <= held < 2 * n for n, held in zip(live, computed, strict=True)), (live, computed)
        assert computed[-1] == 1
        for other in (3, 1):  # the same with rows that end elsewhere beside them
            moved = [end if item == other else 12 for item, end in enumerate(after)]
            again = model.generate(list("abcde"), noise=_Ends(moved), **options)[other]
            for part in ("semantic", "coarse", "fine"):
                np.testing.assert_array_equal(getattr(again.tokens, part), getattr(songs[other].tokens, part))
