"""Hyper-connections: ONNX form against the numpy reference, and the reference against the hyper_connections package.

Every parameter is random: at their initial values the dynamic weights are zero and would hide their own absence. fp32 against float64:
values are of order 10 and sums have at most 24 terms, so 2e-5 is a relative error of 2e-6, some ten roundings. Float64 against float64
differs by the order of summation only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from hyper_connections import HyperConnections

from musiclm_deploy.export.graph import FLOAT, Graph
from musiclm_deploy.kernels.hyper_connection.onnx_form import hyper_connection, residual
from musiclm_deploy.kernels.hyper_connection.reference import HyperConnection, apply

FP32, FP64 = 2e-5, 1e-12
DIM = 24


def parameters(streams: int, seed: int = 0) -> HyperConnection:
    rng = np.random.default_rng(seed)
    return HyperConnection(
        gamma=rng.standard_normal(DIM) * 0.3,
        dynamic_alpha=rng.standard_normal((DIM, streams + 1)) * 0.3,
        alpha_scale=0.9,
        static_alpha=rng.standard_normal((streams, streams + 1)),
        dynamic_beta=rng.standard_normal(DIM) * 0.3,
        beta_scale=-0.6,
        static_beta=rng.standard_normal(streams),
    )


MIX = np.random.default_rng(9).standard_normal((DIM, DIM)) * 0.5  # the branch: a matrix and a bend


def branch(x: np.ndarray) -> np.ndarray:
    return np.tanh(x @ MIX)


def as_onnx(path: Any, place: Any, streams: np.ndarray) -> np.ndarray:
    """Run what `place(graph, value)` builds."""
    g = Graph("connection")
    shape: list[str | int] = ["B", "S", *streams.shape[2:]]
    g.output(place(g, g.input("streams", FLOAT, shape)), FLOAT, shape)
    g.save(path / "connection.onnx")
    session = ort.InferenceSession(path / "connection.onnx", providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"streams": streams.astype(np.float32)})[0])


def onnx_branch(g: Graph) -> Any:
    mix = g.weight("mix", MIX.astype(np.float32))
    return lambda x: g.op("Tanh", g.op("MatMul", x, mix))


@pytest.mark.parametrize("streams", [2, 3, 4])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5)], ids=str)
def test_reference_is_upstreams_and_onnx_is_the_reference(tmp_path, streams: int, shape: tuple[int, int]) -> None:
    """Fault: alpha is read by the wrong axis, beta scales another stream, or the norm's gain or its root of dim is missing."""
    p = parameters(streams)
    x = np.random.default_rng(1).standard_normal((*shape, streams, DIM)) * 3
    expected = apply(p, x, branch)

    module = HyperConnections(streams, dim=DIM).double().eval()
    theirs = {
        "norm.gamma": p.gamma,
        "dynamic_alpha_fn": p.dynamic_alpha,
        "dynamic_alpha_scale": p.alpha_scale,
        "static_alpha": p.static_alpha,
        "dynamic_beta_fn": p.dynamic_beta,
        "dynamic_beta_scale": p.beta_scale,
        "static_beta": p.static_beta,
    }
    module.load_state_dict({name: torch.as_tensor(value, dtype=torch.float64) for name, value in theirs.items()})
    folded = torch.from_numpy(x).permute(0, 2, 1, 3).flatten(0, 1)  # upstream keeps the streams in the batch: [B * s, S, dim]
    with torch.no_grad():
        run = module.decorate_branch(lambda y: torch.tanh(y @ torch.from_numpy(MIX)))
        upstream = run(folded).unflatten(0, (-1, streams)).permute(0, 2, 1, 3).numpy()
    np.testing.assert_allclose(expected, upstream, rtol=0, atol=FP64)

    for fused in (True, False):
        out = as_onnx(tmp_path, lambda g, value, fused=fused: hyper_connection(g, "layers.0", p, value, onnx_branch(g), fused), x)
        np.testing.assert_allclose(out, expected, rtol=0, atol=FP32, err_msg=str(fused))


def test_a_zero_vector_stays_finite(tmp_path) -> None:
    """Fault: the norm of a padding row, which is all zeros, divides by zero and its NaN spreads through the sequence."""
    p = parameters(4)
    x = np.random.default_rng(2).standard_normal((2, 3, 4, DIM))
    x[0, 1], x[1, 2, 3] = 0, 0  # a whole position, and one stream
    out = as_onnx(tmp_path, lambda g, value: hyper_connection(g, "layers.0", p, value, onnx_branch(g), fused=True), x)
    np.testing.assert_allclose(out, apply(p, x, branch), rtol=0, atol=FP32)
    assert not out[0, 1].any()


def test_one_stream_is_the_plain_residual(tmp_path) -> None:
    """Fault: a model without hyper-connections loses its skip connection."""
    x = np.random.default_rng(3).standard_normal((2, 3, DIM))
    out = as_onnx(tmp_path, lambda g, value: residual(g, value, onnx_branch(g)), x)
    np.testing.assert_allclose(out, x + branch(x), rtol=0, atol=FP32)
