"""The native step from below: its products, at 8 and 4 bits no worse than ONNX Runtime's own, and its C interface under sanitizers."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from support.native import PATHS

from musiclm_deploy.kernels import decoder_step


def _onnx_runtime(x: np.ndarray, w: np.ndarray, bits: int, block: int) -> np.ndarray:
    """ONNX Runtime's MatMulNBits on weights that its own quantizer packed, with its int8 activations."""
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", w.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", w.shape[1]])],
        [onnx.numpy_helper.from_array(w, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    config = DefaultWeightOnlyQuantConfig(block_size=block, is_symmetric=True, accuracy_level=4, bits=bits)
    quantizer = MatMulNBitsQuantizer(model, algo_config=config)
    quantizer.process()
    quantized: Any = quantizer.model
    session = ort.InferenceSession(quantized.model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


@pytest.mark.parametrize("block", [32, 128])
@pytest.mark.parametrize("bits", [8, 4])
def test_no_more_is_lost_than_in_onnx_runtime(bits: int, block: int, pools) -> None:
    """Fault: quantization that is coarser than what the graph could have instead."""
    rng, lost = np.random.default_rng(bits), dict.fromkeys(("ONNX Runtime", *PATHS), 0.0)
    for rows, inputs, outputs in ((1, 1000, 512), (16, 1024, 256), (64, 512, 100)):
        x = rng.standard_normal((rows, inputs), np.float32) * rng.gamma(2, 1, inputs).astype(np.float32)
        w = rng.standard_normal((inputs, outputs), np.float32) * 0.02
        exact = x.astype(np.float64) @ w
        found = {path: pools[2].product(x, w, bits, block, path) for path in PATHS} | {"ONNX Runtime": _onnx_runtime(x, w, bits, block)}
        for name, y in found.items():
            lost[name] += float(np.square(y - exact).mean() / np.square(exact).mean())
    # at 8 bits most of it comes from the activations, quantized alike in both: within 1 % of the variance they are the same
    assert all(lost[path] <= 1.01 * lost["ONNX Runtime"] for path in PATHS), lost


@pytest.mark.parametrize("bits", [32, 8, 4])
@pytest.mark.parametrize("path", PATHS)
def test_products_of_odd_sizes(path: str, bits: int, pools) -> None:
    """Fault: a last block, panel or row that is not full reads or writes beside it; a sum overflows where all weights are extreme."""
    rng = np.random.default_rng(0)
    relative = {32: 2e-6, 8: 0.012, 4: 0.15}[bits]  # of the largest output; random weights
    for rows, inputs, outputs in ((1, 1, 1), (2, 31, 15), (3, 33, 17), (5, 100, 40), (9, 257, 65)):
        x, w = rng.standard_normal((rows, inputs), np.float32), rng.standard_normal((inputs, outputs), np.float32)
        exact = x.astype(np.float64) @ w
        for threads in (1, 3):
            found = pools[threads].product(x, w, bits, 32, path)
            np.testing.assert_allclose(found, exact, rtol=0, atol=relative * np.abs(exact).max() + relative * np.sqrt(inputs))
    extreme = np.ones((2, 512), np.float32) * np.array([[1], [-1]], np.float32)
    for sign in (1, -1):
        w = np.full((512, 16), sign, np.float32)
        np.testing.assert_allclose(pools[1].product(extreme, w, bits, 256, path), extreme @ w, rtol=0.005)
    assert not pools[1].product(np.zeros((1, 40), np.float32), np.zeros((40, 3), np.float32), bits, 32, path).any()


@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_sanitizers_find_nothing(sanitizers: str, tmp_path: Path) -> None:
    """Fault: memory touched beside its array or without order between threads, arithmetic that C++ leaves undefined."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler here")
    driver, sources = tmp_path / "driver", sorted(Path(decoder_step.__file__).parent.glob("*.cpp"))
    # at O1 in one minute of one core; what the optimizer does at O3 the tests above run
    command = [compiler, "-std=c++17", "-O1", "-g1", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", "-pthread"]
    objects = [tmp_path / f"{path.stem}.o" for path in (*sources, tmp_path / "main.cpp")]
    sources.append(Path(__file__).with_name("decoder_step.cpp"))
    compiling = [
        subprocess.Popen([*command, "-c", path, "-o", out], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for path, out in zip(sources, objects, strict=True)
    ]
    outputs = [process.communicate()[0] for process in compiling]
    assert not any(process.returncode for process in compiling), "\n".join(outputs)
    linked = subprocess.run([*command, *objects, "-o", driver], capture_output=True, text=True)
    if "cannot find" in linked.stderr:
        pytest.skip(f"this compiler has no {sanitizers} sanitizer: {linked.stderr[-200:]}")
    ran = subprocess.run([driver], capture_output=True, text=True)
    assert ran.returncode == 0 and f"{9 * len(PATHS)} models, 0 wrong" in ran.stdout, ran.stdout + ran.stderr
