"""The gated feed-forward: ONNX form against the numpy reference, and the reference against audiolm-pytorch's module.

fp32 against float64: the inner norm brings everything to order 1 and sums have at most 74 terms; 1e-5 is some ten roundings, and a
hundredth of what the tanh approximation of gelu differs by. Float64 against float64 differs by the order of summation only.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from musiclm_deploy.export.graph import FLOAT, Graph
from musiclm_deploy.kernels.geglu import onnx_form
from musiclm_deploy.kernels.geglu.reference import FeedForward, feed_forward
from musiclm_deploy.kernels.quantized_product import Form
from musiclm_deploy.model.upstream import load_upstream

load_upstream()
from audiolm_pytorch.audiolm_pytorch import FeedForward as upstream_feed_forward  # noqa: E402 (imports only after load_upstream)

FP32, FP64 = 1e-5, 1e-12
DIM = 28


def upstream_module() -> torch.nn.Module:
    """Float64, with every gain and bias random: audiolm-pytorch's biases are buffers of zeros until a file says otherwise."""
    module, generator = upstream_feed_forward(DIM), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.5)
    return module.double().eval()


def parameters_of(module: torch.nn.Module, dtype: type) -> FeedForward:
    w = {name: tensor.numpy().astype(dtype) for name, tensor in module.state_dict().items()}
    return FeedForward(w["0.gamma"], w["0.beta"], w["1.weight"].T, w["3.gamma"], w["3.beta"], w["5.weight"].T)


def run_onnx(path: Path, p: FeedForward, x: np.ndarray) -> np.ndarray:
    g = Graph("feed_forward")
    g.output(onnx_form.feed_forward(g, "ff", p, g.input("x", FLOAT, ["B", "S", DIM]), Form()), FLOAT, ["B", "S", DIM])
    g.save(path)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x.astype(np.float32)})[0])


@pytest.mark.parametrize("shape", [(1, 1), (3, 5)], ids=str)
def test_reference_is_upstreams_and_onnx_is_the_reference(tmp_path, shape: tuple[int, int]) -> None:
    """Fault: value and gate are swapped, gelu is approximated, a norm is skipped, or a bias that is not zero is dropped."""
    module = upstream_module()
    x = np.random.default_rng(1).standard_normal((*shape, DIM)) * 3
    with torch.no_grad():
        upstream = module(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(feed_forward(parameters_of(module, np.float64), x), upstream, rtol=0, atol=FP64)
    np.testing.assert_allclose(run_onnx(tmp_path / "ff.onnx", parameters_of(module, np.float32), x), upstream, rtol=0, atol=FP32)


def test_a_bias_of_zero_leaves_the_graph(tmp_path) -> None:
    """Fault: every model pays for upstream's zero biases; or leaving one out leaves both out, or changes the result."""
    p = parameters_of(upstream_module(), np.float32)
    p = replace(p, norm_bias=np.zeros_like(p.norm_bias))
    x = np.random.default_rng(2).standard_normal((2, 3, DIM))
    np.testing.assert_allclose(run_onnx(tmp_path / "ff.onnx", p, x), feed_forward(p, x), rtol=0, atol=FP32)
    norms = [node.input for node in onnx.load(tmp_path / "ff.onnx").graph.node if node.op_type == "LayerNormalization"]
    assert [list(inputs[1:]) for inputs in norms] == [["ff.norm.gain"], ["ff.inner_norm.gain", "ff.inner_norm.bias"]]
