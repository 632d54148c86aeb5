"""The native step: at 32 bits it is the graph's step, at 8 and 4 bits it has the graph's weights; a batch, or a prompt, is its rows.

Every form of the code that this processor has is tested: portable, AVX2, AVX-VNNI, AVX-512.
"""

from __future__ import annotations

import copy
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from support.native import MISSING, PATHS
from support.stages import ROWS, STEPS, VARIANTS, Stage

import musiclm_deploy as md
from musiclm_deploy.export.transformers import STAGES
from musiclm_deploy.kernels import decoder_step
from musiclm_deploy.kernels.quantized_product import PRECISIONS
from musiclm_deploy.runtime.backend import open_session
from musiclm_deploy.runtime.bundle import Decoder
from musiclm_deploy.runtime.stages import Positions
from musiclm_deploy.runtime.step import Choice, choose_step, open_native

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("variant", VARIANTS)
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
    for variant in ("cross-attention, four streams", "prefix, two streams, heads of 20", "no value residual, before 2.2, five heads of 7"):
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
    alone = {row: made.logits(model, [row], 3) for row in range(ROWS)}
    for count in (2, 3, 4, 7, 8, 16, 17):
        rows = [row % ROWS for row in range(count)]
        together = made.logits(model, rows, 3)
        np.testing.assert_array_equal(together, np.concatenate([alone[row] for row in rows]), err_msg=f"{count} rows")
    for threads in (1, 3):
        found = made.logits(made.model(pools[threads], path), [0, 1, 2], 3)
        np.testing.assert_array_equal(found, np.concatenate(list(alone.values())), err_msg=f"{threads} threads")


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("variant", list(VARIANTS)[:2])
def test_a_prefill_is_its_positions_one_by_one(variant: str, precision: str, stages, pools, monkeypatch) -> None:
    """Fault: a position of a prompt that sees one after it, the cache of another row, or what is not written yet; a prefix that moves.

    To the bit, for prompts longer than what is computed at once.
    """
    made = stages(variant, "fine", precision)
    model, plan = made.model(pools[2]), made.plan([0, 1, 2])
    monkeypatch.setattr("musiclm_deploy.runtime.decoder.POSITIONS_AT_ONCE", 5)
    whole, begun = made.run(model, [0, 1, 2]), made.run(model, [0, 1, 2])
    expected = whole.prefill(plan.prompts, 0)
    first = [Positions(*(part[:1] for part in (prompt.rows, prompt.query, prompt.key))) for prompt in plan.prompts]
    logits = begun.prefill(first, 0).copy()
    longest = max(len(prompt.rows) for prompt in plan.prompts)
    for place in range(1, longest):
        growing = np.array([place < len(prompt.rows) for prompt in plan.prompts])
        at = [min(place, len(prompt.rows) - 1) for prompt in plan.prompts]
        fed = (
            np.array([getattr(prompt, part)[n] for prompt, n in zip(plan.prompts, at, strict=True)]) for part in ("rows", "query", "key")
        )
        logits[growing] = begun.step(Positions(*fed), 0, growing)[growing]
    np.testing.assert_array_equal(logits, expected)
    for name, cache in whole._caches.items():
        for row, length in enumerate(whole._lengths):
            np.testing.assert_array_equal(begun._caches[name][row, 0, : length - 1], cache[row, 0, : length - 1], err_msg=name)


def test_forms_mix(stages, pools) -> None:
    """Fault: a native step or prefill that leaves other keys, values or lengths behind than the graph reads, or the other way round."""
    made = stages("cross-attention, four streams", "fine")
    native, rows = made.model(pools[2]), [0, 1, 2]
    expected = made.logits(None, rows)
    for first in (0, 1):
        forms = [native, made.session]
        plan, run = made.plan(rows), made.run(forms[first], rows)
        run.prefill(plan.prompts, plan.head(0))
        tokens = np.stack([np.random.default_rng(row).integers(0, 12, STEPS) for row in rows])
        for step in range(STEPS):
            run.compute_with(forms[(first + step + 1) % 2])
            found = run.step(plan.place(step, tokens[:, step]), plan.head(step + 1))
            np.testing.assert_allclose(found, expected[:, step + 1], rtol=0, atol=5e-6 * np.abs(expected).max())


def test_a_row_that_ended_stays_where_it_is(stages, pools) -> None:
    """Fault: a row that grows no longer is written beyond its end, or moves its neighbours."""
    made = stages("cross-attention, four streams", "coarse")
    plan, runs = made.plan([0, 1, 2]), [made.run(native, [0, 1, 2]) for native in (None, made.model(pools[2]))]
    growing = np.array([True, False, True])
    for run in runs:
        run.prefill(plan.prompts, 0)
        run.step(plan.place(0, np.array([1, 2, 3])), 1)
        for step in (1, 2):
            placed = plan.place(step, np.array([4, 5, 6]))
            run.step(Positions(np.where(growing, placed.rows, 0), placed.query, placed.key), plan.head(step + 1), growing)
    graph, native = runs
    np.testing.assert_array_equal(native._lengths, graph._lengths)
    np.testing.assert_allclose(native._logits[growing], graph._logits[growing], rtol=0, atol=5e-6 * np.abs(graph._logits).max())
    for name, cache in graph._caches.items():
        for row, length in enumerate(graph._lengths):  # beyond it the graph leaves what it filled a shorter prompt up with
            found, expected = native._caches[name][row, 0, :length], cache[row, 0, :length]
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(cache).max(), err_msg=name)


def test_up_to_capacity_and_not_beyond(stages, pools) -> None:
    """Fault: the last position of a cache cannot be used, or one beyond it is written; a place that no table has is read."""
    made = stages("one stream, before 2.4, one layer, 64", "semantic")
    plan = made.plan([0, 1, 2])
    run = made.run(made.model(pools[2]), [0, 1, 2], capacity=3)
    run.prefill(plan.prompts, 0)
    for step in range(2):
        run.step(plan.place(step, np.zeros(3, np.int64)), 0)
    before = {name: cache.copy() for name, cache in run._caches.items()}
    with pytest.raises(RuntimeError, match="the cache holds 3 positions, 4 were asked for"):
        run.step(plan.place(2, np.zeros(3, np.int64)), 0)
    native = run._native_run
    assert native is not None
    for length in (0, 4, -1, 1 << 40):
        run._lengths[:] = length
        with pytest.raises(ValueError, match="a length that does not exist"):
            native.step(0)
    run._lengths[:] = 3
    for row in (-1, 1 << 40):
        run._row_ids[:] = row
        with pytest.raises(ValueError, match="a row of the table of embeddings that does not exist"):
            native.step(0)
    run._row_ids[:] = 0
    for head in (-2, 1):
        with pytest.raises(ValueError, match="an output projection that does not exist"):
            native.step(head)
    for name, cache in run._caches.items():
        np.testing.assert_array_equal(cache, before[name])


# --- a whole request, and what is refused


def test_a_whole_request_gives_the_graphs_tokens(music, tiny_bundle) -> None:
    """Fault: a token that differs between the two forms, over all stages, with guidance, candidates and a batch."""
    assert music.step.native
    with md.load(tiny_bundle, device="cpu", step="graph") as graph:
        assert not graph.step.native and graph.transformer("coarse") is graph.session("coarse.onnx")
        for request in ({"seconds": 0.4, "num_samples": 2}, {"seconds": 0.7, "stop": "eos"}):
            for ours, theirs in zip(
                music.generate(["a", "b"], seed=[1, 2], **request), graph.generate(["a", "b"], seed=[1, 2], **request), strict=True
            ):
                for one, other in zip(ours.candidates, theirs.candidates, strict=True):
                    for part in ("semantic", "coarse", "fine"):
                        np.testing.assert_array_equal(getattr(one.tokens, part), getattr(other.tokens, part), err_msg=part)


def test_two_requests_at_once(stages, pools) -> None:
    """Fault: two callers of one pool that disturb each other's steps."""
    made = stages("wide: whole blocks and panels", "semantic")
    model = made.model(pools[2])
    expected, found = made.logits(model, [0, 1, 2], 20), [np.zeros(0)] * 4

    def work(index: int) -> None:
        found[index] = made.logits(model, [0, 1, 2], 20)

    workers = [threading.Thread(target=work, args=(index,)) for index in range(len(found))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for logits in found:
        np.testing.assert_array_equal(logits, expected)


def test_what_is_not_covered_is_the_graphs(stages) -> None:
    """Fault: a model beyond what the native code takes cannot be loaded at all."""
    many = _broken(stages("cross-attention, four streams", "coarse").decoder, streams=17)
    assert choose_step("auto", [many]) == Choice(False, "the native step covers 16 residual streams, the model has 17")
    with pytest.raises(md.BackendError, match="covers 16 residual streams"):
        choose_step("native", [many])


def test_without_the_library_the_graph_steps_in(monkeypatch) -> None:
    """Fault: an install without a compiler that does not run, or a form that was named and is replaced in silence."""
    monkeypatch.setattr(decoder_step, "LIBRARY", "not_there.so")
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
        (replace(decoder, conditioning="none"), ""),
    ]
    for broken, message in cases:
        if message:
            with pytest.raises(md.BundleError, match=message):
                open_native(made.folder, broken, pools[2])
    with pytest.raises(ValueError, match="the native step needs caches and contexts"):
        run = made.run(open_native(made.folder, cases[-1][0], pools[2]), [0, 1, 2])
        run.prefill(made.plan([0, 1, 2]).prompts, 0)
