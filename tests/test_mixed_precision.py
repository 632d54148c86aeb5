"""Graphs in 16 bits: what is in 16 bits and what is not, the copy that says what that loses, and TensorRT-RTX compiling them."""

from __future__ import annotations

import copy
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.stages import VARIANTS, Stage

from musiclm_deploy.export.mixed_precision import TYPES, save_mixed
from musiclm_deploy.export.transformers import STAGES
from musiclm_deploy.runtime.backend import open_session

DTYPES = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}


def rounded(array: np.ndarray, kind: str) -> np.ndarray:
    return array.astype(DTYPES[kind]).astype(np.float32)


def small_graph(path: Path) -> dict[str, np.ndarray]:
    """y = (relu(x a) b) c, of which a product's sum, a part of a weight, a narrow matrix, and the last product each have their rule."""
    rng = np.random.default_rng(0)
    weights = {"a": rng.standard_normal((24, 40), np.float32), "b": rng.standard_normal((3, 40, 16), np.float32)}
    weights |= {"c": rng.standard_normal((16, 8), np.float32), "one": np.array(1), "d": rng.standard_normal((8, 16), np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["xa"], name="xa"),
        helper.make_node("Relu", ["xa"], ["r"], name="r"),
        helper.make_node("Gather", ["b", "one"], ["b1"], name="b1"),
        helper.make_node("MatMul", ["r", "b1"], ["rb"], name="rb"),
        helper.make_node("MatMul", ["rb", "c"], ["rbc"], name="rbc"),
        helper.make_node("MatMul", ["rbc", "d"], ["y"], name="y"),
    ]
    value = helper.make_tensor_value_info
    inputs, outputs = [value("x", TensorProto.FLOAT, ["n", 24])], [value("y", TensorProto.FLOAT, ["n", 16])]
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "g", inputs, outputs, tensors), opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    onnx.save_model(model, path)
    return weights


@pytest.mark.parametrize("kind", TYPES)
def test_the_copy_rounds_where_the_other_is_in_16_bits(kind: str, tmp_path: Path) -> None:
    """Fault: a value that is rounded at another place than it is in 16 bits, or a product in 16 bits that must not be."""
    w = small_graph(tmp_path / "g.onnx")
    save_mixed(tmp_path / "g.onnx", tmp_path / "copy.onnx", kind, rounded=True)
    x = np.random.default_rng(1).standard_normal((5, 24), np.float32)

    def product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        return rounded(rounded(left, kind) @ rounded(right, kind), kind)

    expected = product(np.maximum(product(x, w["a"]), 0), w["b"][1])
    expected = rounded(expected @ rounded(w["c"], kind), kind) @ w["d"]  # c has 8 columns, but its input is in 16 bits already
    found = open_session(tmp_path / "copy.onnx", 1).run(None, {"x": x})[0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("kind", TYPES)
def test_what_is_stored_in_16_bits(kind: str, tmp_path: Path) -> None:
    """Fault: a matrix that is stored in float32 beside its 16 bits, or one of the last product that is not float32."""
    small_graph(tmp_path / "g.onnx")
    save_mixed(tmp_path / "g.onnx", tmp_path / "mixed.onnx", kind)
    graph = onnx.load(tmp_path / "mixed.onnx").graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert types == {"d": TensorProto.FLOAT, "one": TensorProto.INT64} | dict.fromkeys(("a.16", "b.16", "c.16"), TYPES[kind][0])
    assert [node.op_type for node in graph.node].count("Cast") == 4  # x, relu's input and output, the last product's input


@pytest.mark.parametrize("kind", TYPES)
def test_a_state_is_float32_and_what_it_is_made_of_is_not(kind: str, tmp_path: Path) -> None:
    """Fault: a product that stays in float32, or a state that does not, because the product's end is the next call's state."""
    rng, value = np.random.default_rng(0), helper.make_tensor_value_info
    a, b = rng.standard_normal((24, 40), np.float32), rng.standard_normal((40, 16), np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["xa"], name="xa"),
        helper.make_node("Concat", ["state.s", "xa"], ["both"], axis=0, name="both"),
        helper.make_node("Slice", ["xa", "last", "end", "zero"], ["next.s"], name="next.s"),
        helper.make_node("MatMul", ["both", "b"], ["y"], name="y"),
    ]
    weights = {"a": a, "b": b, "last": np.array([-1]), "end": np.array([1 << 40]), "zero": np.array([0])}
    inputs = [value("x", TensorProto.FLOAT, ["n", 24]), value("state.s", TensorProto.FLOAT, [1, 40])]
    outputs = [value("y", TensorProto.FLOAT, ["n + 1", 16]), value("next.s", TensorProto.FLOAT, [1, 40])]
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    made = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    onnx.save_model(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "g.onnx")

    save_mixed(tmp_path / "g.onnx", tmp_path / "mixed.onnx", kind)
    graph = onnx.load(tmp_path / "mixed.onnx").graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert types["a.16"] == TYPES[kind][0] and "a" not in types and types["b"] == TensorProto.FLOAT
    assert {one.type.tensor_type.elem_type for one in (*graph.input, *graph.output)} == {TensorProto.FLOAT}

    save_mixed(tmp_path / "g.onnx", tmp_path / "copy.onnx", kind, rounded=True)
    x, state = rng.standard_normal((5, 24), np.float32), rng.standard_normal((1, 40), np.float32)
    product = rounded(rounded(x, kind) @ rounded(a, kind), kind)
    y, after = open_session(tmp_path / "copy.onnx", 1).run(None, {"x": x, "state.s": state})
    np.testing.assert_array_equal(after, product[-1:])
    np.testing.assert_allclose(y, np.concatenate([state, product]) @ b, rtol=0, atol=1e-5 * np.abs(y).max())


def mixed(made: Stage, folder: Path, kind: str, rounded: bool) -> Stage:
    other = copy.copy(made)
    save_mixed(made.folder / made.decoder.graph, folder / made.decoder.graph, kind, rounded)
    other.folder, other.session = folder, open_session(folder / made.decoder.graph, 2)
    return other


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_transformers_in_16_bits(variant: str, stage: str, static_stages, tmp_path: Path) -> None:
    """Fault: residual streams, norms or logits in 16 bits; a cache that is not; a product that was left out."""
    made = static_stages(variant, stage)
    exact, found = made.logits(None, [0, 1, 2]), {}
    for kind, least, most in (("fp16", 1e-5, 4e-3), ("bf16", 1e-4, 3e-2)):
        (tmp_path / kind).mkdir()
        found[kind] = np.abs(mixed(made, tmp_path / kind, kind, True).logits(None, [0, 1, 2]) - exact).max() / np.abs(exact).max()
        assert least < found[kind] < most, found
        save_mixed(made.folder / made.decoder.graph, tmp_path / "real.onnx", kind)
        graph = onnx.load(tmp_path / "real.onnx", load_external_data=False).graph
        types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
        sixteen = {name for name, one in types.items() if one == TYPES[kind][0]}
        assert sixteen == {name for name in types if name.startswith(("past_key_values.", "present.", "context."))}
        wide = {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1}
        wide = {name for name in wide if not name.endswith((".dynamic", ".static")) and not name.startswith("const.")}
        assert wide <= {"rows", "bias_table", "heads", "head.0.weight", "head.bias"}
    assert found["bf16"] > 3 * found["fp16"]
