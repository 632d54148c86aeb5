"""TensorRT's form of the token transformers: on a CPU it is ONNX Runtime's, and TensorRT-RTX compiles it for cards that are not there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from test_decoder_step import CONDITIONING_TOKENS, VARIANTS, Stage

from musiclm_deploy.export.mixed_precision import save_mixed
from musiclm_deploy.export.transformers import STAGES
from musiclm_deploy.runtime.engines.build import Target, engine_of


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


def compiled(graph: Path, capability: int, names: list[str], most: tuple[int, int, int], precision: str = "fp32") -> int:
    """Bytes of the engine of a transformer for sequences from 1 to the last of `most`, prompts of the second to the third and steps.

    Whatever TensorRT says is a fault.
    """
    target = Target.here(capability)
    rows, positions = (1, 2, most[0]), (1, *most[1:])
    told = [rows, (CONDITIONING_TOKENS + 1,) * 3]
    profiles = [{name: told if name.startswith("context.") else [rows, own] for name in names} for own in (positions, (1, 1, 1))]
    made = engine_of(target, graph, profiles, precision, graph.with_name("timing.cache"))
    assert not target.library.log.faults, target.library.log.faults
    return len(made)


@pytest.fixture
def rtx() -> None:
    pytest.importorskip("tensorrt_rtx_libs", reason="TensorRT-RTX is not installed: pip install musiclm-deploy[tensorrt-rtx]")


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize("capability", [86, 89, 120])
@pytest.mark.parametrize(
    ("variant", "stage"),
    [
        ("cross-attention, four streams", "coarse"),
        ("prefix, two streams, heads of 20", "semantic"),
        ("no condition, flash, three streams", "coarse"),
        ("no value residual, before 2.2, five heads of 7", "fine"),
    ],
)
def test_tensorrt_rtx_compiles_it(variant: str, stage: str, capability: int, static_stages) -> None:
    """Fault: an operator that TensorRT does not import, a cache that it does not take for one, a profile that is not legal."""
    made = static_stages(variant, stage)
    names = [value.name for value in made.session.get_inputs()]
    assert compiled(made.folder / made.decoder.graph, capability, names, (8, 16, 32)) > 10_000


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize(("stage", "kind", "capability"), [("coarse", "fp32", 89), ("semantic", "fp16", 86), ("fine", "bf16", 120)])
def test_a_real_size_compiles(stage: str, kind: str, capability: int, tmp_path: Path) -> None:
    """Fault: a name, a cache or a constant that grows with the model beyond what TensorRT takes. dim 1024, depth 6, 4,096 positions."""
    made = Stage(stage, {"dim": 1024, "depth": 6, "heads": 8, "dim_head": 64}, "2.4.0", tmp_path, capacity=4096)
    graph, names = tmp_path / made.decoder.graph, [value.name for value in made.session.get_inputs()]
    if kind != "fp32":
        save_mixed(graph, tmp_path / "mixed.onnx", kind)
        graph = tmp_path / "mixed.onnx"
    size = compiled(graph, capability, names, (8, 256, 2048), kind)
    assert 250e6 < size < 400e6 if kind == "fp32" else 120e6 < size < 200e6


@pytest.mark.usefixtures("rtx")
def test_caches_are_updated_in_place(static_stages) -> None:
    """Fault: a cache that TensorRT copies at every step, since it is not its own operator, or read before it is written."""
    made, library = static_stages("cross-attention, four streams", "coarse"), Target.here(89).library
    network = library.trt.Builder(library.log).create_network(0)
    parser = library.trt.OnnxParser(network, library.log)
    assert parser.parse_from_file(str(made.folder / made.decoder.graph))
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    updates = [layer for layer in layers if layer.type == library.trt.LayerType.KV_CACHE_UPDATE]
    assert len(updates) == 2 * made.decoder.depth
    caches = {value.name for value in made.session.get_inputs() if value.name.startswith("past_key_values.")}
    assert {layer.get_input(0).name for layer in updates} == caches
