"""TensorRT's form of the token transformers: on a CPU it is ONNX Runtime's, and TensorRT-RTX compiles it for cards that are not there."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from test_decoder_step import CONDITIONING_TOKENS, VARIANTS, Stage

from musiclm_deploy.export.transformers import STAGES


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_it_is_onnx_runtimes_form(variant: str, stage: str, static_stages, tmp_path: Path) -> None:
    """Fault: a key that is seen too early or never, a cache written at another place, a bias, head or mixing of its own."""
    made, other = static_stages(variant, stage), Stage(stage, *VARIANTS[variant], tmp_path)
    expected = other.logits(None, [0, 1, 2])
    np.testing.assert_allclose(made.logits(None, [0, 1, 2]), expected, rtol=0, atol=5e-6 * np.abs(expected).max())  # fp32, other sums
    graph = onnx.load(made.folder / made.decoder.graph, load_external_data=False).graph
    assert {node.domain for node in graph.node} == {""} and "If" not in {node.op_type for node in graph.node}
    assert [node.op_type for node in graph.node].count("TensorScatter") == 2 * made.decoder.depth


@pytest.fixture(scope="module")
def rtx() -> Any:
    """TensorRT-RTX, and a logger with the lines that it wrote: it raises nothing. One for all, as all builders share the first."""
    pytest.importorskip("tensorrt_rtx_libs", reason="TensorRT-RTX is not installed: pip install tensorrt-rtx-cu13-libs and -bindings")
    trt: Any = importlib.import_module("tensorrt_rtx_bindings")

    class Log(trt.ILogger):
        def __init__(self) -> None:
            super().__init__()
            self.lines: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            # an int64 input is mentioned, since it once was none; 35: there is no GPU
            if severity <= trt.ILogger.Severity.WARNING and "Int64 binding" not in message and "cudaError 35" not in message:
                self.lines.append(message)

    return trt, Log()


def compiled(rtx: Any, graph: Path, capability: str, sizes: dict[str, list[tuple[int, ...]]]) -> int:
    """Bytes of the engine of a graph, for a card of that capability. sizes: input -> for each profile the least, usual and most of every
    dimension that is free, one after another. Whatever TensorRT says is a fault."""
    trt, log = rtx
    log.lines.clear()
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    parsed = parser.parse_from_file(str(graph))
    assert parsed, [parser.get_error(index).desc() for index in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    for number in range(max(len(profiles) for profiles in sizes.values())):
        profile = builder.create_optimization_profile()
        for tensor in tensors:
            if -1 in tuple(tensor.shape):
                free = iter(sizes[tensor.name][number])
                shapes = [[size] * 3 if size != -1 else [next(free) for _ in range(3)] for size in tensor.shape]
                profile.set_shape(tensor.name, *zip(*shapes, strict=True))
        config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    assert engine is not None and not log.lines, log.lines
    return len(bytes(engine))


@pytest.mark.parametrize("capability", ["SM86", "SM89", "SM120"])
@pytest.mark.parametrize(
    ("variant", "stage"),
    [
        ("cross-attention, four streams", "coarse"),
        ("prefix, two streams, heads of 20", "semantic"),
        ("no condition, flash, three streams", "coarse"),
        ("no value residual, before 2.2, five heads of 7", "fine"),
    ],
)
def test_tensorrt_rtx_compiles_it(variant: str, stage: str, capability: str, static_stages, rtx) -> None:
    """Fault: an operator that TensorRT does not import, a cache that it does not take for one, a profile that is not legal."""
    made, rows = static_stages(variant, stage), (1, 2, 8)
    calls = [(*rows, 1, 16, 32), (*rows, 1, 1, 1)]  # a prefill, and a step
    told = [(*rows, *[CONDITIONING_TOKENS + 1] * 3)] * 2
    names = [value.name for value in made.session.get_inputs()]
    sizes = {name: told if name.startswith("context.") else calls for name in names}
    assert compiled(rtx, made.folder / made.decoder.graph, capability, sizes) > 10_000


def test_a_real_size_compiles(tmp_path: Path, rtx) -> None:
    """Fault: a name, a cache or a constant that grows with the model beyond what TensorRT takes. dim 1024, depth 6, 4,096 positions."""
    made = Stage("coarse", {"dim": 1024, "depth": 6, "heads": 8, "dim_head": 64}, "2.4.0", tmp_path, capacity=4096)
    calls, told = [(1, 2, 8, 1, 256, 2048), (1, 2, 8, 1, 1, 1)], [(1, 2, 8, *[CONDITIONING_TOKENS + 1] * 3)] * 2
    names = [value.name for value in made.session.get_inputs()]
    sizes = {name: told if name.startswith("context.") else calls for name in names}
    assert compiled(rtx, made.folder / made.decoder.graph, "SM89", sizes) > 100e6


@pytest.mark.parametrize(
    ("graph", "sizes"),
    [
        ("mulan_text", {"input_ids": [(1, 1, 2, 1, 16, 24)], "attention_mask": [(1, 1, 2, 1, 16, 24)]}),
        ("mulan_audio", {"wave": [(1, 1, 2, 3200, 6400, 12800)]}),
        ("conditioner", {"latent": [(1, 2, 8)]}),
        ("coarse_context", {"conditioning": [(1, 2, 8, 2, 2, 2)]}),
        ("codec_decode", {"codes": [(1, 1, 2, 12, 50, 200)]}),
        ("codec_encode", {"wave": [(1, 1, 2, 3200, 6400, 12800)]}),
    ],
)
def test_the_other_graphs_are_tensorrts_as_they_are(graph: str, sizes: dict[str, list[tuple[int, ...]]], tiny_bundle: Path, rtx) -> None:
    """Fault: an operator of ONNX Runtime's own in a graph that is to serve TensorRT too."""
    assert compiled(rtx, tiny_bundle / f"{graph}.onnx", "SM86", sizes) > 10_000
