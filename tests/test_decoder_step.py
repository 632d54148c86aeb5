"""The native batch: at 32 bits its tokens are the graph's, at 8 and 4 bits it has the graph's weights; a sequence is what it is alone.

Every form of the code that this processor has is tested: portable, AVX2, AVX-VNNI, AVX-512.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from support.native import MISSING, PATHS, address_space_left, allocated_bytes
from support.stages import CONDITIONING_TOKENS, OPEN_MUSICLM, ROWS, VARIANTS, Stage, tokens_of

import musiclm_deploy as md
from musiclm_deploy.export.transformers import STAGES
from musiclm_deploy.kernels import decoder_step
from musiclm_deploy.kernels.decoder_step import Model
from musiclm_deploy.kernels.quantized_product import PRECISIONS
from musiclm_deploy.kernels.sampling.constants import ALWAYS, NEVER
from musiclm_deploy.runtime.backend import open_session
from musiclm_deploy.runtime.bundle import Decoder, Sampling
from musiclm_deploy.runtime.noise import SeededNoise
from musiclm_deploy.runtime.sequence import Context, Draw, Positions, Sequence
from musiclm_deploy.runtime.step import Choice, choose_step, open_native

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("variant", VARIANTS | OPEN_MUSICLM)
def test_at_32_bits_it_is_the_graph(variant: str, stage: str, stages, pools) -> None:
    """Fault: a branch, bias, norm, head or cache that differs from the graph's in one variant or one form of the code."""
    made = stages(variant, stage)
    expected = made.logits(None, [0, 1, 2])
    for path in PATHS:
        found = made.logits(made.model(pools[2], path), [0, 1, 2])
        np.testing.assert_allclose(found, expected, rtol=0, atol=5e-6 * np.abs(expected).max(), err_msg=path)  # fp32, other sums


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_at_8_and_4_bits_it_has_the_graphs_weights(precision: str, stage: str, stages, pools) -> None:
    """Fault: the native step reads a quantized matrix in another order, of another place or with another scale than the graph.

    Both quantize their activations, the graph that is told not to is the measure: neither is farther from it than the other by half, and
    a single matrix read wrongly is as far as the logits are large.
    """
    audiolm = ("cross-attention, four streams", "prefix, two streams, heads of 20", "no value residual, before 2.2, five heads of 7")
    for variant in (*audiolm, *OPEN_MUSICLM):
        made = stages(variant, stage, precision)
        exact = _logits_of_exact_activations(made)
        by_graph = np.abs(made.logits(None, [0, 1, 2]) - exact)
        for path in PATHS:
            native = np.abs(made.logits(made.model(pools[2], path), [0, 1, 2]) - exact)
            assert native.mean() <= 1.5 * by_graph.mean() and native.max() <= 0.05 * np.abs(exact).max(), (variant, path)


def _logits_of_exact_activations(made: Stage) -> np.ndarray:
    """[B, steps + 1, V] of the stage's graph with its weights as they are, and activations in float32."""
    model = onnx.load(made.folder / made.decoder.graph, load_external_data=False)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 1
    exact = copy.copy(made)
    path = made.folder / f"exact_{made.decoder.graph}"
    path.write_bytes(model.SerializeToString())
    exact.session = open_session(path, 2)
    return exact.logits(None, [0, 1, 2])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("path", PATHS)
def test_a_batch_is_its_rows_alone(path: str, precision: str, stages, pools) -> None:
    """Fault: a row's result that depends, be it in the last bit, on its neighbours, on how many there are, or on the number of threads."""
    made = stages("wide: whole blocks and panels", "coarse", precision)
    model = made.model(pools[2], path)
    alone = made.logits(model, list(range(ROWS)), 3, together=False)
    for count in (1, 2, 3, 5):  # of four sequences each, of which one ends with every step
        rows = [row % ROWS for row in range(count)]
        np.testing.assert_array_equal(made.logits(model, rows, 3), alone[rows], err_msg=f"{count} rows")
    for threads in (1, 3):
        np.testing.assert_array_equal(made.logits(made.model(pools[threads], path), [0, 1, 2], 3), alone, err_msg=f"{threads} threads")


# --- whole sequences


def _draws(noise: Callable[[int], np.ndarray] | None = None) -> list[Draw]:
    """Settings of three sequences: without guidance; greedy, with guidance; sampled from all entries, with guidance."""
    settings = [(1 << 40 | 5, 0, 0, 1.0, 0.5, 1.0), (5, 1, 4, 0.0, 0.9, 3.0), (6, 0, 70, 0.7, 0.0, -2.0)]
    return [Draw(seed, item, first, Sampling(heat, share, scale), noise) for seed, item, first, heat, share, scale in settings]


def _sequences(made: Stage, primed: bool = False, end_allowed: bool = True) -> list[Sequence]:
    return [made.sequence(row, draw, primed=primed, end_allowed=end_allowed) for row, draw in enumerate(_draws())]


def _together(made: Stage, model: Model | None, sequences: list[Sequence]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the tokens and the last logits of sequences in one batch."""
    batch = made.batch(model)
    for sequence in sequences:
        batch.join(sequence)
    batch.advance(1 << 20, 1 << 20)
    logits = {sequence: batch.logits(sequence) for sequence in sequences}
    ended = batch.collect()
    assert all(one.done for one in ended) and [one.sequence for one in ended] == sequences
    return [(one.tokens, logits[one.sequence]) for one in ended]


def _alone(made: Stage, model: Model, sequence: Sequence) -> tuple[np.ndarray, np.ndarray]:
    return _together(made, model, [sequence])[0]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("variant", VARIANTS | OPEN_MUSICLM)
def test_tokens_are_the_graphs(variant: str, stage: str, stages, pools) -> None:
    """Fault: guidance, a forbidden entry, top-k, noise, the place of a token, an end or a prefix that differs from the reference's."""
    made = stages(variant, stage)
    for primed, end_allowed in ((False, True), (True, False)):
        sequences = _sequences(made, primed, end_allowed)
        expected = _together(made, None, sequences)
        assert all(len(tokens) == sequence.steps or end_allowed for (tokens, _), sequence in zip(expected, sequences, strict=True))
        for path in PATHS:
            found = _together(made, made.model(pools[2], path), sequences)
            for (tokens, logits), (other_tokens, other_logits) in zip(found, expected, strict=True):
                np.testing.assert_array_equal(tokens, other_tokens, err_msg=f"{path}, {primed}, {end_allowed}")
                np.testing.assert_allclose(logits, other_logits, rtol=0, atol=1e-5 * np.abs(other_logits).max(), err_msg=path)


def test_when_the_last_entry_is_forbidden(stages, pools) -> None:
    """Fault: an end that is drawn within a frame or in the first one, or is forbidden where a frame begins.

    The noise makes the last entry the likeliest of all, and an entry that depends on the token's number the likeliest of the others.
    """
    made = stages("cross-attention, four streams", "fine")
    V = made.decoder.vocabulary

    def noise(number: int) -> np.ndarray:
        drawn = np.zeros(V, np.float32)
        drawn[[number % 7, -1]] = 5e5, 1e6
        return drawn

    plain = made.sequence(2, Draw(0, 0, 0, Sampling(1, 0, 1), noise))
    for frame, in_frames in ((NEVER, 0), (ALWAYS, 0), (1, 0), (2, 0), (3, 0), (3, 1), (3, 3), (4, 6)):
        counted = in_frames + np.arange(plain.steps)
        allowed = [frame == NEVER or (frame > 0 and index > 0 and index % frame == 0) for index in counted]
        expected = [V - 1 if free else number % 7 for number, free in enumerate(allowed)]
        for model in (None, made.model(pools[2])):
            sequence = replace(plain, rules=plain.rules._replace(frame=frame), in_frames=in_frames)
            assert tokens_of(made.batch(model), [sequence])[0].tolist() == expected, (frame, in_frames)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("variant", list(VARIANTS)[:2])
def test_a_prompt_in_pieces(variant: str, precision: str, stages, pools) -> None:
    """Fault: a position of a prompt that sees one after it, the cache of another slot, or what is not written yet; a prefix that moves.

    To the bit, for pieces of any size that hold positions of several prompts.
    """
    made = stages(variant, "fine", precision)
    model, sequences = made.model(pools[2]), _sequences(made, primed=True)
    expected = [_alone(made, model, sequence) for sequence in sequences]
    positions = sum(sequence.prefix_length + (1 + sequence.guided) * (len(sequence.prompt) - 1) for sequence in sequences)
    for piece in (1, 2, 7, 64):
        batch = made.batch(model)
        for sequence in sequences:
            batch.join(sequence)
        assert batch.waiting() == positions
        left = positions
        while left:
            batch.advance(0, piece)
            assert batch.waiting() == max(left - piece, 0)
            left = batch.waiting()
        assert batch.fed == positions and not batch.collect()
        batch.advance(1 << 20, 0)
        found = [batch.logits(sequence) for sequence in sequences]
        for one, last, (tokens, logits) in zip(batch.collect(), found, expected, strict=True):
            np.testing.assert_array_equal(one.tokens, tokens, err_msg=f"{piece} at a time")
            np.testing.assert_array_equal(last, logits, err_msg=f"{piece} at a time")


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("stage", STAGES)
def test_sequences_join_and_leave_between_frames(stage: str, precision: str, stages, pools) -> None:
    """Fault: a sequence whose tokens depend on who is beside it, on when it joined, or on who left; tokens that are lost or come twice."""
    made, rng = stages("cross-attention, four streams", stage, precision), np.random.default_rng(0)
    model = made.model(pools[2])
    kinds = [*_sequences(made), *_sequences(made, primed=True)]
    expected = [_alone(made, model, sequence)[0] for sequence in kinds]
    batch, there, ended = made.batch(model, 5), {}, 0
    while ended < 25:
        if len(there) < 5 and rng.random() < 0.7:
            kind = int(rng.integers(len(kinds)))
            joined = replace(kinds[kind])  # equal to itself alone
            there[joined] = kind, []
            batch.join(joined)
        batch.advance(int(rng.integers(4)), int(rng.integers(12)))
        for one in batch.collect():
            kind, tokens = there[one.sequence]
            tokens += one.tokens.tolist()
            assert tokens == expected[kind][: len(tokens)].tolist()
            if one.done:
                assert len(tokens) == len(expected[kind])
                ended += 1
                del there[one.sequence]
        if there and rng.random() < 0.1:
            gone = list(there)[int(rng.integers(len(there)))]
            del there[gone]
            batch.leave(gone)
            batch.leave(gone)


def test_equal_prompts_are_computed_once(stages, pools) -> None:
    """Fault: eight candidates of one prompt that pay eight prefills; or a prompt that takes the cache of one under another condition."""
    made = stages("cross-attention, four streams", "coarse")
    model, draws = made.model(pools[2]), _draws()
    length = len(made.sequence(0, draws[1]).prompt) - 1
    batch = made.batch(model)
    candidates = [made.sequence(0, replace(draws[2], item=item)) for item in range(8)]
    for sequence in candidates[:7]:
        batch.join(sequence)
    batch.advance(0, 3)
    assert (batch.fed, batch.waiting()) == (3, 7 * 2 * length - 7 * 3)
    batch.advance(2, 1 << 20)
    assert (batch.fed, batch.waiting()) == (2 * length, 0)
    batch.join(candidates[7])  # others have gone on already
    other = replace(made.sequence(0, draws[2]), context=made.sequence(1, draws[2]).context)
    batch.join(other)
    batch.advance(0, 0)
    assert (batch.fed, batch.waiting()) == (2 * length, length)  # another condition; without condition both are the same
    batch.advance(1 << 20, 1 << 20)
    assert batch.fed == 3 * length
    for one in batch.collect():
        np.testing.assert_array_equal(one.tokens, _alone(made, model, one.sequence)[0])


def test_noise_of_the_callers_own(stages, pools) -> None:
    """Fault: noise that is asked for twice, for a token that is not sampled, or taken for another token than the one it was asked for."""
    made = stages("cross-attention, four streams", "fine")
    seeded, V = made.sequence(2, _draws()[2]), made.decoder.vocabulary
    source, asked = SeededNoise(seeded.rules.stage, seeded.draw.seed, seeded.draw.item, V), []

    def noise(number: int) -> np.ndarray:
        asked.append(number)
        return source(number)

    for model in (None, made.model(pools[2])):
        asked.clear()
        own, greedy = (replace(seeded, draw=replace(draw, noise=noise)) for draw in (seeded.draw, replace(_draws()[1], noise=noise)))
        found = tokens_of(made.batch(model), [seeded, own, greedy, made.sequence(1, _draws()[0])], frames=2, positions=5)
        np.testing.assert_array_equal(found[0], found[1])
        assert asked == list(range(70, 70 + own.steps))


# --- a whole request, and what is refused


def test_a_whole_request_gives_the_graphs_tokens(music, tiny_bundle) -> None:
    """Fault: a token that differs between the two forms, over all stages, with guidance, candidates and a batch."""
    assert music.backend.native
    with md.load(tiny_bundle, device="cpu", step="graph") as graph:
        assert not graph.backend.native
        for request in ({"seconds": 0.4, "num_samples": 2}, {"seconds": 0.7, "stop": "eos"}):
            for ours, theirs in zip(
                music.generate(["a", "b"], seed=[1, 2], **request), graph.generate(["a", "b"], seed=[1, 2], **request), strict=True
            ):
                for one, other in zip(ours.candidates, theirs.candidates, strict=True):
                    for part in ("semantic", "coarse", "fine"):
                        np.testing.assert_array_equal(getattr(one.tokens, part), getattr(other.tokens, part), err_msg=part)


def test_two_batches_at_once(stages, pools) -> None:
    """Fault: two callers of one pool that disturb each other's steps."""
    made = stages("wide: whole blocks and panels", "semantic")
    model, sequences, found = made.model(pools[2]), _sequences(made), [[np.zeros(0)]] * 4
    expected = tokens_of(made.batch(model), sequences)

    def work(index: int) -> None:
        found[index] = tokens_of(made.batch(model), [replace(sequence) for sequence in sequences], frames=index + 1)

    workers = [threading.Thread(target=work, args=(index,)) for index in range(len(found))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for tokens in found:
        for one, other in zip(tokens, expected, strict=True):
            np.testing.assert_array_equal(one, other)


def test_memory_is_what_is_stated(stages, pools) -> None:
    """Fault: a batch that takes other memory than its model says, or keeps that of sequences that have left."""
    made = stages("cross-attention, four streams", "coarse")
    model, keys = made.model(pools[2]), CONDITIONING_TOKENS + 1
    sequence = replace(made.sequence(2, _draws()[2]), steps=150_000)
    batch, before = made.batch(model), allocated_bytes()
    batch.join(sequence)
    slots = 2 * model.slot_bytes(sequence.capacity, keys, 0)
    scratch = model.scratch_bytes(2 * (len(sequence.prompt) - 1), sequence.capacity, keys)
    tokens = 8 * sequence.steps
    assert slots > 20 << 20 and scratch > 1 << 20
    assert 0.97 < (allocated_bytes() - before) / (slots + scratch + tokens) <= 1
    batch.leave(sequence)
    assert allocated_bytes() - before == pytest.approx(scratch, rel=0.02)
    batch.close()
    assert allocated_bytes() - before < 1 << 18


def test_what_is_not_covered_is_the_graphs(stages) -> None:
    """Fault: a model beyond what the native code takes cannot be loaded at all."""
    many = _broken(stages("cross-attention, four streams", "coarse").decoder, streams=17)
    assert choose_step("auto", [many]) == Choice(False, "the native step covers 16 residual streams, the model has 17")
    with pytest.raises(md.BackendError, match="covers 16 residual streams"):
        choose_step("native", [many])


def test_without_the_library_the_graph_steps_in(monkeypatch) -> None:
    """Fault: an install without a compiler that does not run, or a form that was named and is replaced in silence."""
    monkeypatch.setattr(decoder_step.interface, "LIBRARY", "not_there.so")
    decoder_step.library.cache_clear()
    try:
        choice = choose_step("auto")
        assert not choice.native and "was not built" in choice.reason
        with pytest.raises(md.BackendError, match=r"step='native': the native step was not built: .* compiler"):
            choose_step("native")
    finally:
        monkeypatch.undo()
        decoder_step.library.cache_clear()
    assert choose_step("auto") == choose_step("native")
    with pytest.raises(md.BackendError, match="step must be one of auto, native, graph, got 'fast'"):
        choose_step("fast")


def _broken(decoder: Decoder, **changes: Any) -> Decoder:
    return replace(decoder, step=replace(decoder.step, **changes))


def test_weights_that_cannot_be(stages, pools) -> None:
    """Fault: a manifest that lies about its weights makes the native code read beside them."""
    made = stages("cross-attention, four streams", "coarse")
    decoder, weights = made.decoder, made.decoder.step.weights
    name = "layers.0.attention.w_q"
    kind, offset, *shape = weights[name]
    cases = [
        (_broken(decoder, weights={key: place for key, place in weights.items() if key != name}), "'layers.0.attention.w_q' must be"),
        (_broken(decoder, weights=weights | {name: [kind, offset, *shape[::-1]]}), "'layers.0.attention.w_q' must be float32"),
        (_broken(decoder, weights=weights | {name: [kind, 1 << 40, *shape]}), "would lie at bytes"),
        (_broken(decoder, weights=weights | {name: [kind, offset + 2, *shape]}), "would lie at bytes"),
        (_broken(decoder, weights=weights | {name: [kind, -4, *shape]}), "expected a type"),
        (_broken(decoder, weights=weights | {name: [kind, offset, "3", None]}), "expected a type"),
        (_broken(decoder, weights=weights | {name: ["float16", offset, *shape]}), "expected a type"),
        (_broken(decoder, weights=weights | {name: ["uint8", offset, *shape]}), "'layers.0.attention.w_q' must be float32"),
        (_broken(decoder, weights=weights | {name: []}), "expected a type"),
        (_broken(decoder, weights=weights | {"norm.bias": [kind, 0, 3]}), "'norm.bias' must be float32"),
        (_broken(decoder, streams=3), "must be float32"),
        (_broken(decoder, streams=99), "must be float32"),
        (_broken(decoder, inner=1 << 30), "must be float32"),
        (_broken(decoder, dim_head=9), "must be float32"),
        (_broken(decoder, precision="fp8"), "precision 'fp8'"),
        (_broken(decoder, precision="int8"), "'layers.0.attention.w_q.values' must be uint8"),
        (_broken(decoder, precision="int4", block=48), "a block a multiple of 32"),
        (replace(decoder, depth=5), "must be float32"),
        (replace(decoder, depth=1 << 40), "too few for"),
        (replace(decoder, vocabulary=7), "must be float32"),
        (replace(decoder, conditioning="none"), "is of another model than these sizes are"),
    ]
    for broken, message in cases:
        with pytest.raises(md.BundleError, match=message):
            open_native(made.folder, broken, pools[2])


def test_sequences_that_cannot_be(stages, pools) -> None:
    """Fault: a number that points beside a table is read, or a sequence that is refused leaves the batch changed."""
    made = stages("cross-attention, four streams", "coarse")
    batch, good = made.batch(made.model(pools[2]), 2), made.sequence(0, _draws()[2])
    rules, prompt, arrays = good.rules, good.prompt, good.context.arrays
    rows = made.decoder.step.weights["rows"][2]
    short = {name: array[:, :, :1] for name, array in arrays.items()}
    sampling = good.draw.sampling
    cases = [
        (replace(good, prompt=replace(prompt, ids=np.append(prompt.ids[1:], rows))), "a row that is not in the table"),
        (replace(good, prompt=replace(prompt, ids=prompt.ids - rows)), "a row that is not in the table"),
        (replace(good, prompt=replace(prompt, ids=prompt.ids.astype(np.int32))), "it needs int64"),
        (replace(good, prompt=replace(prompt, key=prompt.key[1:])), "it needs int64"),
        (replace(good, prompt=replace(prompt, query=prompt.query[::-1])), "in C's order"),
        (replace(good, prompt=replace(prompt, query=prompt.query + (1 << 61))), "a coordinate that is out of range"),
        (replace(good, prompt=Positions(*np.zeros((3, 0), np.int64))), "less than one position"),
        (replace(good, rules=rules._replace(place=rules.place._replace(first_row=rows - 5))), "beyond the table"),
        (replace(good, rules=rules._replace(k=0)), "top-k keeps less than one token"),
        (replace(good, rules=rules._replace(end=made.decoder.vocabulary)), "the end token is not in the vocabulary"),
        (replace(good, steps=-1), "a number of tokens"),
        (replace(good, context=Context(short)), r"it needs float32 \["),
        (replace(good, context=Context({name: array.astype(np.float64) for name, array in arrays.items()})), "got float64"),
        (replace(good, context=Context()), "it needs a context of 2 layers, got 0"),
        (replace(good, draw=replace(good.draw, first=1 << 32)), "32 bits"),
        (replace(good, draw=replace(good.draw, sampling=replace(sampling, temperature=float("nan")))), "the temperature"),
        (replace(good, draw=replace(good.draw, sampling=replace(sampling, cond_scale=float("inf")))), "the scale of guidance"),
    ]
    for bad, message in cases:
        with pytest.raises(ValueError, match=message):
            batch.join(bad)
    with address_space_left(64 << 20), pytest.raises(MemoryError, match="not enough memory for a sequence"):
        batch.join(replace(good, steps=1 << 22))
    assert batch.waiting() == 0 and not batch.collect()
    expected = _alone(made, made.model(pools[2]), good)[0]
    batch.join(good)
    batch.join(made.sequence(1, _draws()[0]))
    with pytest.raises(ValueError, match="all 2 slots are taken"):
        batch.join(made.sequence(2, _draws()[0]))
    for frames, positions in ((-1, 0), (0, -1)):
        with pytest.raises(ValueError, match="must be 0 or more"):
            batch.advance(frames, positions)
    batch.advance(1 << 20, 1 << 20)
    np.testing.assert_array_equal(next(made.tokens for made in batch.collect() if made.sequence is good), expected)
    batch.close()
    with pytest.raises(ValueError, match="the batch is closed"):
        batch.join(good)
