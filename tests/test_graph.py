"""The graph under construction: names, sharing, subgraphs, and the files it becomes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from musiclm_deploy.export.graph import FLOAT, INT64, Graph


def session(path: Path) -> ort.InferenceSession:
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"])


def affine(weight: np.ndarray, bias: np.ndarray) -> Graph:
    g = Graph("affine")
    x = g.input("x", FLOAT, ["B", len(weight)])
    g.output(g.op("Add", g.op("MatMul", x, g.weight("w", weight)), g.weight("b", bias), outputs=["y"]), FLOAT, ["B", len(bias)])
    return g


def test_a_weight_has_one_name() -> None:
    """Fault: two layers build the same name and the second silently takes the first one's weights, also from within a subgraph."""
    g = Graph("g")
    g.weight("w", np.zeros(2, np.float32))
    for place in (g, g.branch("inner"), g.branch("inner").branch("innermost")):
        with pytest.raises(AssertionError, match="w"):
            place.weight("w", np.ones(2, np.float32))


def test_constants_are_shared_when_equal_and_only_then() -> None:
    """Fault: a scalar is taken for a list of one, an integer for a float, or thousands of copies of the same constant pile up."""
    g = Graph("g")
    inner = g.branch("inner")
    assert g.constant([1, 2]) == g.constant(np.array([1, 2])) == inner.constant((1, 2))
    different = [0, [0], [[0]], [0, 0], [[0, 0]], [[0], [0]], 1, -1, [1, 0], [10]]
    names = {g.constant(values) for values in different} | {g.constant(0, np.float32), g.constant(0.5, np.float32), g.constant(0, np.int32)}
    assert len(names) == len(different) + 3
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in g.proto().initializer}
    assert len(stored) == len(names) + 1  # and [1, 2]
    for values in different:
        np.testing.assert_array_equal(stored[g.constant(values)], np.asarray(values, np.int64), strict=True)
    assert not inner.proto().initializer


def test_names_of_outputs() -> None:
    """Fault: one output comes as a list, several as a string, or a subgraph's value shadows an outer one, which ONNX forbids."""
    g = Graph("g")
    x = g.input("x", FLOAT, ["B", 4])
    assert g.op("Relu", x, outputs=["y"]) == "y"
    parts = g.op("Split", x, outputs=2, axis=1, num_outputs=2)
    assert isinstance(parts, list) and len(set(parts)) == 2
    inner = g.branch("inner")
    assert len({g.op("Relu", x), inner.op("Relu", x), inner.branch("innermost").op("Relu", x), g.op("Relu", x)}) == 4
    assert (g.node_count(), inner.node_count()) == (4, 1)


def test_branches_see_outer_values_and_run_alone(tmp_path) -> None:
    """Fault: a branch cannot use the outer graph's values or its own weights; or both branches give the same."""
    g = Graph("choose")
    x, which = g.input("x", FLOAT, ["B", 2]), g.input("which", INT64, [1])
    doubled = g.op("Mul", x, g.constant(2.0, np.float32))
    branches = []
    for name, factor in (("then", 3.0), ("else", 5.0)):
        inner = g.branch(name)
        value = inner.op("Add", inner.op("Mul", doubled, inner.weight(f"{name}.factor", np.array([factor], np.float32))), x)
        inner.output(value, FLOAT, ["B", 2])
        branches.append(inner.proto())
        assert not branches[-1].initializer  # at the root, where the runtime prepacks them
    condition = g.op("Less", which, g.constant([1]))
    g.output(g.op("If", condition, outputs=["y"], then_branch=branches[0], else_branch=branches[1]), FLOAT, ["B", 2])
    g.save(tmp_path / "choose.onnx")

    run, wave = session(tmp_path / "choose.onnx"), np.array([[1, -2], [3, 0]], np.float32)
    for value, factor in ((0, 7), (1, 11)):
        np.testing.assert_array_equal(run.run(["y"], {"x": wave, "which": np.array([value])})[0], wave * factor)


def test_large_weights_stand_beside_the_graph(tmp_path) -> None:
    """Fault: a stage of two gigabytes does not fit in its file; the data is looked for where it was written and not beside the graph;
    an array that is transposed or sliced is written in the order of its memory."""
    weight = np.random.default_rng(0).standard_normal((80, 41)).astype(np.float32).T[1:]  # [40, 80], not contiguous
    folder = tmp_path / "made"
    folder.mkdir()
    affine(weight, np.arange(80, dtype=np.float32)).save(folder / "g.onnx")
    assert sorted(path.name for path in folder.iterdir()) == ["g.onnx", "g.onnx.data"]
    moved = folder.rename(tmp_path / "moved")
    stored = {tensor.name: tensor for tensor in onnx.load(moved / "g.onnx", load_external_data=False).graph.initializer}
    assert stored["w"].data_location == onnx.TensorProto.EXTERNAL
    assert stored["b"].data_location == onnx.TensorProto.EXTERNAL  # small, and still where a reader of the layout looks for it
    assert next(entry.value for entry in stored["w"].external_data if entry.key == "location") == "g.onnx.data"
    assert (moved / "g.onnx").stat().st_size < weight.nbytes <= (moved / "g.onnx.data").stat().st_size

    x = np.eye(40, dtype=np.float32)
    np.testing.assert_array_equal(session(moved / "g.onnx").run(["y"], {"x": x})[0], weight + np.arange(80, dtype=np.float32))


def test_saving_again_replaces_both_files(tmp_path) -> None:
    """Fault: the data of the second graph is appended to that of the first, and the bundle carries both."""
    path, bias = tmp_path / "g.onnx", np.zeros(40, np.float32)
    for weight in (np.ones((40, 40), np.float32), 2 * np.eye(40, dtype=np.float32)):
        affine(weight, bias).save(path)
    assert (tmp_path / "g.onnx.data").stat().st_size < 2 * weight.nbytes
    np.testing.assert_array_equal(session(path).run(["y"], {"x": np.ones((1, 40), np.float32)})[0], np.full((1, 40), 2, np.float32))


def test_a_graph_that_cannot_run_is_not_saved_in_silence(tmp_path) -> None:
    """Fault: a misspelt operator or a value nobody makes is found by the user's runtime and not by the export."""
    for op, source in (("Rleu", "x"), ("Relu", "nobody")):
        g = Graph("g")
        g.input("x", FLOAT, ["B"])
        g.output(g.op(op, source), FLOAT, ["B"])
        with pytest.raises(onnx.checker.ValidationError):
            g.save(tmp_path / "g.onnx")
