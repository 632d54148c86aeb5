"""8 and 4 bits: what is quantized comes back, the graph and the native step work from the same numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto

from musiclm_deploy.export.graph import FLOAT, Graph
from musiclm_deploy.kernels import decoder_step
from musiclm_deploy.kernels.quantized_product import PRECISIONS, Form
from musiclm_deploy.kernels.quantized_product.onnx_form import product
from musiclm_deploy.kernels.quantized_product.reference import dequantize, quantize

try:
    PATHS = decoder_step.paths()
except decoder_step.Unavailable:  # no compiler here: the graph alone is tested
    PATHS = []

NARROW = {name: form for name, form in PRECISIONS.items() if form.bits < 32}


def _weights(inputs: int, outputs: int) -> np.ndarray:
    return np.random.default_rng(inputs).standard_normal((inputs, outputs), np.float32) * 0.02


@pytest.mark.parametrize("block", [32, 128])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("inputs", [1, 16, 31, 33, 257])
def test_there_and_back(inputs: int, bits: int, block: int) -> None:
    """Fault: a last block that is not full, a half byte in the other's place, a scale that the native step cannot hold."""
    w = _weights(inputs, 7)
    w[:, 3] = 0  # as in heads that are filled up to a multiple of 8
    w[:, 4] *= 1e-36
    values, scales = quantize(w, bits, block)
    assert values.shape == (7, -(-inputs // block), block * bits // 8) and values.dtype == np.uint8 and scales.dtype == np.float32
    assert not (scales.view(np.uint32) & 0xFFFF).any()
    back = dequantize(values, scales, bits, inputs)
    for n in range(7):
        for first in range(0, inputs, block):
            part = slice(first, first + block)
            step = np.abs(w[part, n]).max() / (1 << (bits - 1))
            assert np.abs(back[part, n] - w[part, n]).max() <= (1.6 if bits == 4 else 1.1) * step + 1e-30  # a weight may be clipped
    assert not back[:, 3].any()
    again, same = quantize(back, bits, block)
    np.testing.assert_allclose(dequantize(again, same, bits, inputs), back, rtol=0, atol=2e-2 * np.abs(w).max())


@pytest.mark.parametrize("bits", [8, 4])
def test_no_scale_nearby_is_better(bits: int) -> None:
    """Fault: plain rounding to the largest weight, which at 4 bits loses a fifth more."""
    w = _weights(512, 64)
    lost = np.square(dequantize(*quantize(w, bits, 32), bits, 512) - w).mean()
    tiles = w.T.reshape(64, 16, 32)
    scale = np.abs(tiles).max(-1, keepdims=True) / ((1 << (bits - 1)) - 1)
    plain = np.square(np.rint(tiles / scale) * scale - tiles).mean()
    assert lost < {8: 1.0, 4: 0.8}[bits] * plain, (lost, plain)


def test_what_cannot_be_quantized() -> None:
    """Fault: NaN becomes a number, and the export of a broken checkpoint passes."""
    with pytest.raises(ValueError, match="8 or 4 bits, got 5"):
        quantize(_weights(8, 8), 5, 32)
    w = _weights(8, 8)
    w[3, 3] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        quantize(w, 4, 32)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("inputs,outputs,block", [(24, 13, 32), (33, 17, 32), (300, 40, 128)])
def test_graph_and_native_step_hold_the_same_numbers(bits: int, inputs: int, outputs: int, block: int, tmp_path) -> None:
    """Fault: one of the two reads weights in another order or with another scale.

    A row that is 1 at one input is quantized without loss, so each product is one weight; those next to each other differ by a hundredth.
    """
    w = _weights(inputs, outputs)
    exact = dequantize(*quantize(w, bits, block), bits, inputs)
    one = np.eye(inputs, dtype=np.float32)
    g = Graph("product")
    g.output(product(g, "w", g.input("x", FLOAT, ["B", inputs]), w, Form(bits, block)), FLOAT, ["B", outputs])
    g.save(tmp_path / "product.onnx")
    found: dict[str, Any] = {"graph": ort.InferenceSession(tmp_path / "product.onnx").run(None, {"x": one})[0]}
    if PATHS:
        pool = decoder_step.Pool(2)
        found |= {path: pool.product(one, w, bits, block, path) for path in PATHS}
    for name, products in found.items():
        np.testing.assert_allclose(products, exact, rtol=0, atol=1e-6 * np.abs(w).max(), err_msg=name)
    stored = onnx.load(tmp_path / "product.onnx", load_external_data=False)
    assert {tensor.name: tensor.data_type for tensor in stored.graph.initializer} == {
        "w.values": TensorProto.UINT8,
        "w.scales": TensorProto.FLOAT,
    }
