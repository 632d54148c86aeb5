"""TensorRT's form of the token transformers: on a CPU it is ONNX Runtime's, and TensorRT-RTX compiles it for cards that are not there."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from support.stages import CAPACITY, CONDITIONING_TOKENS, VARIANTS, Stage

from musiclm_deploy.export.mixed_precision import save_mixed
from musiclm_deploy.export.semantic_tokens import export_wav2vec
from musiclm_deploy.export.settings import Settings
from musiclm_deploy.export.transformers import STAGES
from musiclm_deploy.model import HubertKmeans, MelKmeans
from musiclm_deploy.runtime.engines.build import Target, engine_of
from musiclm_deploy.runtime.engines.profiles import Profile


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_it_is_onnx_runtimes_form(variant: str, stage: str, stages, static_stages) -> None:
    """Fault: a key that is seen too early or never, a cache written at another place, a bias, head or mixing of its own."""
    made, other = static_stages(variant, stage), stages(variant, stage)
    expected = other.logits(None, [0, 1, 2])
    np.testing.assert_allclose(made.logits(None, [0, 1, 2]), expected, rtol=0, atol=5e-6 * np.abs(expected).max())  # fp32, other sums
    graph = onnx.load(made.folder / made.decoder.graph, load_external_data=False).graph
    assert {node.domain for node in graph.node} == {""} and "If" not in {node.op_type for node in graph.node}
    assert [node.op_type for node in graph.node].count("TensorScatter") == 2 * made.decoder.depth


def nodes_of(stage: Stage) -> list[tuple[str, ...]]:
    """Return operator, attributes and inputs of every node, without the numbers of values and layers."""
    found = []
    for node in onnx.load(stage.folder / stage.decoder.graph, load_external_data=False).graph.node:
        inputs = [re.sub(r"^([A-Z]\w+)\.\d+$|^(layers|past_key_values|present|context)\.\d+", r"\1\2", name) for name in node.input]
        found.append((node.op_type, *sorted(map(str, node.attribute)), *inputs))
    return found


@pytest.mark.parametrize("variant", list(VARIANTS)[:2])
def test_layers_are_alike(variant: str, tmp_path: Path) -> None:
    """Fault: a node that only a deep transformer has, which the tests that compile two layers would never see."""
    arguments, version = VARIANTS[variant]
    shallow, deep = (nodes_of(Stage("coarse", arguments | {"depth": depth}, version, tmp_path, capacity=CAPACITY)) for depth in (2, 6))
    layer, spare = divmod(len(deep) - len(shallow), 4)
    after = 1 + max(index for index, node in enumerate(shallow) if any(name.startswith("layers") for name in node))
    assert not spare and layer > 30
    assert deep == [*shallow[:after], *shallow[after - layer : after] * 4, *shallow[after:]]


CAPABILITIES = (86, 89, 120)
DEPTHS = (2, pytest.param(6, marks=pytest.mark.nightly))  # a layer more is the same nodes again: test_layers_are_alike


def compiled(graph: Path, capability: int, profiles: list[Profile], precision: str = "fp32") -> int:
    """Bytes of the engine. Whatever TensorRT says is a fault."""
    target = Target.here(capability)
    made = engine_of(target, graph, profiles, precision, graph.with_name("timing.cache"))
    assert not target.library.log.faults, target.library.log.faults
    return len(made)


def profiles_of(stage: Stage, sequences: int, usual: int, most: int) -> list[Profile]:
    """Of a transformer for up to so many sequences: prompts of positions, and steps."""
    rows, names = (1, 2, sequences), [value.name for value in stage.session.get_inputs()]
    told = [rows, (CONDITIONING_TOKENS + 1,) * 3]
    return [{name: told if name.startswith("context.") else [rows, own] for name in names} for own in ((1, usual, most), (1, 1, 1))]


@pytest.fixture
def rtx() -> None:
    pytest.importorskip("tensorrt_rtx_libs", reason="TensorRT-RTX is not installed: pip install '.[tensorrt-rtx]'")


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize("capability", CAPABILITIES)
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
    assert compiled(made.folder / made.decoder.graph, capability, profiles_of(made, 8, 16, 32)) > 10_000


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize(("stage", "kind"), [("coarse", "fp32"), ("semantic", "fp16"), ("fine", "bf16")])
def test_a_real_size_compiles(stage: str, kind: str, depth: int, tmp_path: Path) -> None:
    """Fault: a name, a cache or a constant that grows with the model beyond what TensorRT takes. dim 1024, 4,096 positions."""
    made = Stage(stage, {"dim": 1024, "depth": depth, "heads": 8, "dim_head": 64}, "2.4.0", tmp_path, capacity=4096)
    graph, profiles = tmp_path / made.decoder.graph, profiles_of(made, 8, 256, 2048)
    if kind != "fp32":
        save_mixed(graph, tmp_path / "mixed.onnx", kind)
        graph = tmp_path / "mixed.onnx"
    context: list[Profile] = [{"conditioning": [(1, 1, 8), (CONDITIONING_TOKENS,) * 3]}]
    weights = Path(f"{graph}.data").stat().st_size
    for capability in CAPABILITIES:
        size = compiled(graph, capability, profiles, kind)
        assert weights < size < 1.25 * weights
        assert compiled(tmp_path / str(made.decoder.context), capability, context, kind) > 1e6


def hubert_base(depth: int) -> HubertKmeans:
    """Build hubert_base_ls960.pt's HuBERT with 500 centres and random weights, but with `depth` of its layers: tracing one takes 4 s."""
    from musiclm_deploy.model.upstream import import_transformers

    hubert = import_transformers().models.hubert
    model = hubert.HubertModel(hubert.HubertConfig(num_hidden_layers=depth, mask_time_prob=0.0))
    return HubertKmeans({"num_hidden_layers": depth}, model.state_dict(), torch.randn(500, 768), output_layer=depth)


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize(
    ("make", "capabilities", "least"),
    [
        pytest.param(MelKmeans, CAPABILITIES, 5e6, id="mel"),
        pytest.param(partial(hubert_base, 2), (89,), 80e6, id="HuBERT, two layers"),
        pytest.param(partial(hubert_base, 9), (89,), 280e6, id="HuBERT", marks=pytest.mark.nightly),
    ],
)
def test_a_semantic_tokenizer_of_real_size_compiles(make: Any, capabilities: tuple[int, ...], least: float, tmp_path: Path) -> None:
    """Fault: a tokenizer that TensorRT does not take, though it takes the tiny one. HuBERT, which takes longest, for one card."""
    tokenizer, settings = make().eval(), Settings("wav2vec", {})
    settings.infer("kind", "mel", "of no matter to a graph")
    export_wav2vec(tokenizer, settings, tmp_path)
    hz = tokenizer.target_sample_hz
    for capability in capabilities:
        assert compiled(tmp_path / "wav2vec.onnx", capability, [{"wave": [(1, 1, 1), (tokenizer.min_samples, 10 * hz, 30 * hz)]}]) > least


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
