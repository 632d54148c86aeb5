"""The token transformers' attention: ONNX form against the numpy reference, and the reference against audiolm-pytorch's module.

fp32 against float64: values are of order 1 and sums have at most 64 terms, so rounding stays below 2e-6; a wrong bias, mask or scale is
of order 0.1. References are compared with upstream's module in float64, where only the order of summation differs: 1e-12.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch

from musiclm_deploy.export.graph import FLOAT, INT32, INT64, Graph
from musiclm_deploy.kernels.attention import onnx_form
from musiclm_deploy.kernels.attention import reference as numpy_form
from musiclm_deploy.kernels.geglu.reference import layer_norm
from musiclm_deploy.model.upstream import load_upstream
from musiclm_deploy.runtime.sequence import FAR, PREFIX_KEY

load_upstream()
from audiolm_pytorch.audiolm_pytorch import Attention, RelativePositionBias  # noqa: E402 (imports only after load_upstream)

FP32, FP64 = 2e-6, 1e-12
CAPACITY = 13
TABLE_ENTRIES = 6


class Cached:
    """One cached attention at work: caches written in place, as the runtime binds them."""

    def __init__(self, path: Path, rows: int, heads: int, dim_head: int, table: np.ndarray | None, scale: float) -> None:
        g = Graph("attention")
        for name, width in (("query", heads * dim_head), ("key", dim_head), ("value", dim_head)):
            g.input(name, FLOAT, ["B", "S", width])
        g.input("seqlens_k", INT32, ["B"])
        total, bias = g.input("total_sequence_length", INT32, [1]), ""
        if table is not None:
            coordinates = g.input("query_coordinates", INT64, ["B", "S"]), g.input("key_coordinates", INT64, ["B", "T"])
            bias = onnx_form.table_bias(g, table, *coordinates, total)
        for part in ("key", "value"):
            g.input(f"past_key_values.0.{part}", FLOAT, ["B", 1, "T", dim_head])
            g.output(f"present.0.{part}", FLOAT, ["B", 1, "T", dim_head])
        g.output(onnx_form.cached_attention(g, "query", "key", "value", 0, bias, heads, scale), FLOAT, ["B", "S", heads * dim_head])
        g.save(path)
        self._session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        # what stands in unused positions must not matter
        garbage = np.full((rows, 1, CAPACITY, dim_head), np.nan, np.float32)
        self.caches = {part: ort.OrtValue.ortvalue_from_numpy(garbage.copy()) for part in ("key", "value")}

    def feed(self, query: np.ndarray, key: np.ndarray, value: np.ndarray, lengths: np.ndarray, **coordinates: np.ndarray) -> np.ndarray:
        """query [B, S, H, D]; lengths [B]: positions in use of each row, those of this call included. Returns [B, S, H, D]."""
        B, S, H, D = query.shape
        inputs = {
            "query": query.reshape(B, S, H * D),
            "key": key,
            "value": value,
            "seqlens_k": (lengths - 1).astype(np.int32),
            "total_sequence_length": np.array([lengths.max()], np.int32),
            **coordinates,
        }
        binding = self._session.io_binding()
        binding.bind_output("attention.0")
        for name, array in inputs.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        for part, cache in self.caches.items():
            binding.bind_ortvalue_input(f"past_key_values.0.{part}", cache)
            binding.bind_ortvalue_output(f"present.0.{part}", cache)
        self._session.run_with_iobinding(binding)
        return binding.copy_outputs_to_cpu()[0].reshape(B, S, H, D)


def coordinates_of(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Query and key coordinates whose differences hit both clips, by a little and by as much as the stages' marks do."""
    query = rng.integers(-3, TABLE_ENTRIES + 3, shape) + rng.choice([0, 0, 0, FAR], shape)
    key = rng.integers(-3, 3, shape) + rng.choice([0, 0, 0, FAR, -FAR, PREFIX_KEY], shape)
    return query, key


@pytest.mark.parametrize(
    ("prompts", "heads", "dim_head", "biased"),
    [
        ([5, 1, 8], 3, 8, True),
        ([5, 1, 8], 8, 64, True),
        ([4, 7], 1, 64, False),
        ([1], 5, 8, True),
        ([CAPACITY - 5, 3, CAPACITY - 6, 1], 2, 24, False),
    ],
    ids=str,
)
def test_ragged_prefill_then_steps(tmp_path, prompts: list[int], heads: int, dim_head: int, biased: bool) -> None:
    """Fault: a row reads another's length, padding or stale cache; a coordinate clips wrongly; the last position of the cache is lost.

    The longest row ends with the cache full. Each row must give the same when it runs alone.
    """
    rng = np.random.default_rng(len(prompts) * heads)
    B, steps, scale = len(prompts), CAPACITY - max(prompts), 0.7
    lengths = np.array(prompts)
    query = rng.standard_normal((B, CAPACITY, heads, dim_head)).astype(np.float32) / dim_head**0.5
    key, value = rng.standard_normal((2, B, CAPACITY, dim_head)).astype(np.float32)
    table = rng.standard_normal((heads, TABLE_ENTRIES)).astype(np.float32) if biased else None
    cq, ck = coordinates_of(rng, (B, CAPACITY))
    if biased:
        clipped = np.concatenate([(cq[b, :, None] - ck[b, None, :])[np.tril_indices(n)] for b, n in enumerate(lengths + steps)])
        assert clipped.min() < -FAR and ((clipped < 0) & (clipped > -FAR)).any()
        assert clipped.max() > FAR - 9 and ((clipped >= TABLE_ENTRIES) & (clipped < FAR - 9)).any()

    def generate(rows: list[int]) -> list[np.ndarray]:
        """Attention at each position of the rows: [n, H, D] each."""
        n = lengths[rows]
        run = Cached(tmp_path / "attention.onnx", len(rows), heads, dim_head, table, scale)
        S = n.max()
        at_prefill = dict(query_coordinates=cq[rows, :S], key_coordinates=ck[rows]) if biased else {}
        out = run.feed(query[rows, :S], key[rows, :S], value[rows, :S], n, **at_prefill)
        collected = [[out[row, :count]] for row, count in enumerate(n)]
        for step in range(steps):
            at = (rows, n + step)
            coordinates = dict(query_coordinates=cq[at][:, None], key_coordinates=ck[rows]) if biased else {}
            out = run.feed(query[at][:, None], key[at][:, None], value[at][:, None], n + step + 1, **coordinates)
            for row in range(len(rows)):
                collected[row].append(out[row])
        return [np.concatenate(parts) for parts in collected]

    together = generate(list(range(B)))
    for row, n in enumerate(lengths + steps):
        one = slice(row, row + 1)
        bias = numpy_form.table_bias(table, cq[one, :n], ck[one, :n]) if table is not None else None
        expected = numpy_form.attention(query[one, :n], key[one, :n], value[one, :n], np.array([n]), scale, bias)[0]
        np.testing.assert_allclose(together[row], expected, rtol=0, atol=FP32, err_msg=f"row {row}")
        np.testing.assert_allclose(generate([row])[0], together[row], rtol=0, atol=FP32, err_msg=f"row {row} alone")


def test_table_clips_at_both_ends() -> None:
    """Fault: a coordinate out of range wraps round, or the wrong end takes it. Worked by hand: M = 2."""
    table = np.array([[10.0, 11.0, 12.0], [20.0, 21.0, 22.0]])
    bias = numpy_form.table_bias(table, np.array([[0, 5]]), np.array([[PREFIX_KEY, 4, 0, -FAR]]))
    assert bias.tolist() == [[[[10, 10, 10, 12], [10, 11, 12, 12]], [[20, 20, 20, 22], [20, 21, 22, 22]]]]


def randomized(module: Any) -> Any:
    """Upstream's module in float64 with every parameter and every buffer random: a gain of one would hide its own absence."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.5)
    return module.double().eval()


def weights(module: Any) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


def rows_of(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def test_reference_is_upstreams_self_attention() -> None:
    """Fault: reference and ONNX form agree with each other and not with the model: scale, causal mask, bias, or what is normed."""
    dim, heads, dim_head, B, n = 20, 3, 8, 2, 7
    module = randomized(Attention(dim, causal=True, dim_head=dim_head, heads=heads))
    position_bias = RelativePositionBias(dim=6, heads=heads)
    x = rows_of((B, n, dim), 0)
    with torch.no_grad():
        bias = position_bias(n, n).double()
        expected = module(torch.from_numpy(x), attn_bias=bias).numpy()

    w = weights(module)
    query = (layer_norm(x, w["norm.gamma"], w["norm.beta"]) @ w["to_q.weight"].T).reshape(B, n, heads, dim_head)
    key, value = np.split(x @ w["to_kv.weight"].T, 2, axis=-1)
    table = bias.numpy()[:, -1, ::-1]  # the last query's row: from distance 0 to the longest
    places = np.tile(np.arange(n), (B, 1))
    lookup = numpy_form.table_bias(table, places, places)
    out = numpy_form.attention(query, key, value, np.full(B, n), dim_head**-0.5, lookup)
    np.testing.assert_allclose(out.reshape(B, n, -1) @ w["to_out.0.weight"].T, expected, rtol=0, atol=FP64)


@pytest.mark.parametrize(("heads", "dim_head"), [(3, 20), (1, 8), (8, 64)])
def test_cross_attention_is_upstreams(tmp_path, heads: int, dim_head: int) -> None:
    """Fault: folded heads come back in another order; or a row whose slots are all null is not upstream's row without condition."""
    dim, dim_context, B, S, C = 20, 12, 3, 5, 4
    module = randomized(Attention(dim, dim_context=dim_context, norm_context=True, num_null_kv=1, dim_head=dim_head, heads=heads))
    x, context = rows_of((B, S, dim), 2), rows_of((B, C, dim_context), 3)
    conditioned = np.array([True, False, True])
    with torch.no_grad():
        mask = torch.from_numpy(conditioned)[:, None].expand(B, C)
        expected = module(torch.from_numpy(x), context=torch.from_numpy(context), mask=mask).numpy()

    w = weights(module)
    query = layer_norm(x, w["norm.gamma"], w["norm.beta"]) @ w["to_q.weight"].T
    normed = layer_norm(context, w["context_norm.gamma"], w["context_norm.beta"])
    null = np.broadcast_to(w["null_kv"][:, None], (2, B, C + 1, dim_head)).copy()
    key, value = null[0], null[1]
    for part, projected in zip((key, value), np.split(normed @ w["to_kv.weight"].T, 2, axis=-1), strict=True):
        part[conditioned, 1:] = projected[conditioned]

    g = Graph("cross_attention")
    g.input("query", FLOAT, ["B", "S", heads * dim_head])
    g.input("keys", FLOAT, ["B", dim_head, "C"])
    g.input("values", FLOAT, ["B", "C", dim_head])
    g.output(onnx_form.cross_attention(g, "query", "keys", "values", heads, dim_head), FLOAT, ["B", "S", heads * dim_head])
    g.save(tmp_path / "cross.onnx")
    session = ort.InferenceSession(tmp_path / "cross.onnx", providers=["CPUExecutionProvider"])
    inputs = {"query": query, "keys": key.transpose(0, 2, 1) * dim_head**-0.5, "values": value}
    out = np.asarray(session.run(None, {name: array.astype(np.float32) for name, array in inputs.items()})[0])

    null_value = np.tile(w["null_kv"][1, 0], heads)
    np.testing.assert_allclose(out[1], np.broadcast_to(null_value, out[1].shape), rtol=0, atol=FP32)
    # the output projection sums H * D products of order 1
    np.testing.assert_allclose(out @ w["to_out.0.weight"].T, expected, rtol=0, atol=FP32 * (heads * dim_head) ** 0.5)
