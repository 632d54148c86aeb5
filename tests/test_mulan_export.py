"""MuLaN's stages in ONNX Runtime against musiclm-pytorch itself, and the settings read from its checkpoints.

Graphs run on sizes other than the traced ones. fp32: latents are unit vectors, 1e-5 in each entry; codes and conditioning are exact.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from support.mulan import NAMESPACES, TOKENS, TOWERS, assert_close, build, pair, quantizers, run, tokens, upstream, waves
from torch import Tensor

from musiclm_deploy.export.errors import ExportError
from musiclm_deploy.export.mulan import (
    build_mulan,
    conditioner_weights,
    export_conditioner,
    export_mulan_audio,
    export_mulan_text,
    infer_mulan,
    infer_quantizer,
    split_quantizer_state,
)

OVERRIDES: dict[str, dict[str, Any]] = {  # what a checkpoint cannot tell of TOWERS; lists, as in JSON
    "default": {},
    "oblong patches": {"audio.patch_size": [8, 16], "spec_n_fft": 50, "spec_hop_length": 7},
    "magnitudes": {"spec_power": 1, "spec_pad": 9, "spec_center": False, "sample_hz": 24000},
}


@pytest.mark.parametrize("variant", TOWERS)
@pytest.mark.parametrize("hierarchical", [False, True])
def test_settings_rebuild_the_model(variant: str, hierarchical: bool) -> None:
    """A constructor argument that is read wrongly from the checkpoint or not at all."""
    state = (theirs := pair(variant, hierarchical_contrastive_loss=hierarchical, sigmoid_contrastive_loss=hierarchical)[0]).state_dict()
    settings = infer_mulan(state, OVERRIDES[variant])
    mine = build_mulan(settings, state)
    towers = [name for name in state if name.startswith(("audio.", "text.", "audio_to_latents.", "text_to_latents."))]
    assert [name for name in mine.state_dict() if not name.startswith("contrast.")] == towers
    assert_close(mine.get_audio_latents(waves(3, 1001)), theirs.get_audio_latents(waves(3, 1001)))
    assert_close(mine.get_text_latents(tokens(3, 8)), theirs.get_text_latents(tokens(3, 8)))


def test_every_setting_has_its_value_and_source() -> None:
    """A value that only seems right because it equals a default."""
    theirs = build(upstream, "magnitudes", hierarchical_contrastive_loss=True, hierarchical_contrastive_loss_layers=3)
    settings = infer_mulan(theirs.state_dict(), OVERRIDES["magnitudes"])
    assert settings.values() == {
        **{"audio.dim": 32, "audio.depth": 3, "audio.dim_head": 64, "audio.heads": 2, "audio.ff_mult": 2.5078125},
        **{"audio.patch_size": (4, 4), "spec_win_length": 24, "spec_n_fft": 128, "spec_hop_length": 12, "spec_power": 1},
        **{"spec_pad": 9, "spec_center": False, "spec_pad_mode": "reflect", "accept_spec": False, "accept_spec_time_first": True},
        **{"text.dim": 24, "text.depth": 4, "text.dim_head": 64, "text.heads": 2, "text.ff_mult": 4},
        **{"text.num_tokens": TOKENS, "text.max_seq_len": 9, "text.pad_id": 0, "dim_latent": 18, "sample_hz": 24000},
        **{"trained_tokens": None},
    }
    sources = {name: setting.source for name, setting in settings.items()}
    assert sources["spec_power"] == sources["sample_hz"] == "override"
    assert "leaves no trace" in sources["spec_n_fft"] and "q_scale [64]" in sources["text.dim_head"]


@pytest.mark.parametrize("dim", [4, 12, 32, 100, 512])
@pytest.mark.parametrize("ff_mult", [1, 2, 3, 4, 1.5, 2.7, 8 / 3, 5.01])
def test_any_feed_forward_width_is_found(dim: int, ff_mult: float) -> None:
    """A multiplier that rounds to another width than the checkpoint's."""
    state = build(upstream).state_dict()
    hidden = int(dim * ff_mult * 2 / 3)
    state["text.transformer.layers.0.0.to_q.weight"] = torch.empty(128, dim)
    state["text.transformer.layers.0.1.4.weight"] = torch.empty(dim, hidden)
    found = infer_mulan(state, {})["text.ff_mult"]
    assert int(dim * found * 2 / 3) == hidden


def _without(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in state.items() if key != name}


@pytest.mark.parametrize(
    "variant, change, overrides, message",
    [
        ("default", lambda state: state, {"dim_latent": 128}, "dim_latent = 128 contradicts"),
        ("default", lambda state: state, {"n_fft": 256}, "unknown override 'n_fft'.*spec_n_fft"),
        *(
            ("default", lambda state: state, {"audio.patch_size": size}, r"audio\.patch_size must be a whole number of at least 1, or two")
            for size in ([16.0, 16], [16, 16, 1], ["16", "16"], [0, 256])
        ),
        ("default", lambda state: state, {"audio.patch_size": [8, 16]}, r"256 values, which is not \(8, 16\)"),
        ("oblong patches", lambda state: state, {}, r"128 values, which is not \(11, 11\): override audio.patch_size"),
        ("default", lambda state: state | {"audio.spec.window": torch.ones(400)}, {}, "spec_n_fft = 128 is too small .* 400 samples"),
        ("default", lambda state: state, {"spec_n_fft": 29}, "spec_n_fft = 29 is too small .* 16 bins"),
        ("default", lambda state: state, {"spec_pad_mode": "edge"}, "pad_mode must be one of"),
        ("default", lambda state: _without(state, "audio.spec.window"), {}, "'audio.spec.window' is missing"),
        ("default", lambda state: _without(state, "text.norm.learned_gamma"), {}, "text.norm.learned_gamma"),
        ("default", lambda state: state | {"text.rotary.freqs": torch.ones(3)}, {}, "text.rotary.freqs"),
        ("default", lambda state: state | {"text.cls_token": torch.full((24,), torch.nan)}, {}, "text.cls_token holds NaN"),
    ],
)
def test_what_does_not_fit_is_refused(variant: str, change: Any, overrides: dict[str, Any], message: str) -> None:
    """A checkpoint or an override that would export something other than the trained model."""
    state = change(build(upstream, variant).state_dict())
    with pytest.raises(ExportError, match=message):
        build_mulan(infer_mulan(state, overrides), state)


@pytest.mark.parametrize("variant", ["oblong patches", "magnitudes"])
def test_audio_graph(variant: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A size fixed by tracing: in patches, positions, relative bias, padding or batch. The shortest clip has one patch in time."""
    theirs, mine = pair(variant)
    path = tmp_path / "mulan_audio.onnx"
    export_mulan_audio(mine, path)
    assert capfd.readouterr() == ("", "")
    for batch, samples in ((1, mine.audio.min_samples), (3, 2003), (5, 901)):
        latent = run(path, wave=waves(batch, samples))["latent"]
        expected = theirs.get_audio_latents(waves(batch, samples)).detach()
        np.testing.assert_allclose(latent, expected, rtol=0, atol=1e-5)
        assert batch == 1 or torch.pdist(expected).min() > 1e-2
    _check_file(path, {"wave": ["batch", "samples"]}, {"latent": ["batch", 18]})


def test_audio_graph_needs_waves(tmp_path: Path) -> None:
    """A bundle whose audio stage wants spectrograms that nobody makes."""
    state = build(upstream).state_dict()
    with pytest.raises(ExportError, match="takes spectrograms"):
        export_mulan_audio(build_mulan(infer_mulan(state, {"accept_spec": True}), state), tmp_path / "mulan_audio.onnx")


def test_text_graph(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A size fixed by tracing, or a mask that the graph ignores: rows are padded to different lengths. One token, and as many as fit."""
    theirs, mine = pair("oblong patches")
    path = tmp_path / "mulan_text.onnx"
    export_mulan_text(mine, path)
    assert capfd.readouterr() == ("", "")
    for batch, length in ((1, 1), (4, 20), (3, 7)):
        ids = tokens(batch, length) if length > 1 else torch.tensor([[5]])
        latent = run(path, input_ids=ids, attention_mask=(ids != 0).long())["latent"]
        expected = theirs.get_text_latents(ids).detach()
        np.testing.assert_allclose(latent, expected, rtol=0, atol=1e-5)
        assert batch == 1 or torch.pdist(expected).min() > 1e-2
    sizes = ["batch", "tokens"]
    _check_file(path, {"input_ids": sizes, "attention_mask": sizes}, {"latent": ["batch", 18]})


def _check_file(path: Path, inputs: dict[str, list[Any]], outputs: dict[str, list[Any]]) -> None:
    """A graph and its weights, opset 20, the names and axes of the bundle, every weight used, and nothing of the machine that made it."""
    assert {file.name for file in path.parent.iterdir()} == {path.name, f"{path.name}.data"}
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 20)]
    for values, expected in ((model.graph.input, inputs), (model.graph.output, outputs)):
        axes = {value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in values}
        assert axes == expected
    used = {name for node in model.graph.node for name in node.input}
    assert {weight.name for weight in model.graph.initializer} <= used
    assert b"site-packages" not in path.read_bytes() and str(Path(__file__).parents[1]).encode() not in path.read_bytes()


def test_quantizer_state_is_split_and_read() -> None:
    """A quantizer's checkpoint holds its MuLaN too; the two must come apart whole."""
    theirs, _ = quantizers()
    quantizer_state, mulan_state = split_quantizer_state(theirs.state_dict())
    assert mulan_state is not None
    build_mulan(infer_mulan(mulan_state, {}), mulan_state)
    expected = NAMESPACES | {"dim_latent": 18, "uninitialised": False}
    assert infer_quantizer(quantizer_state, {}).values() == expected | {"untrained_tables": ("semantic", "coarse", "fine")}
    assert split_quantizer_state(quantizer_state) == (quantizer_state, None)

    fresh, _ = split_quantizer_state(upstream.MuLaNEmbedQuantizer(build(upstream), **NAMESPACES).state_dict())
    assert infer_quantizer(fresh, {})["uninitialised"] is True


@pytest.mark.parametrize("change", [lambda table: table * 1.2, lambda table: table + 0.01, lambda table: table.sign() * 0.02])
def test_trained_tables_are_told_from_drawn_ones(change: Any) -> None:
    """Every table, or none, said to be untrained: spread, mean and shape of what is drawn must all be looked at."""
    state, _ = split_quantizer_state(quantizers()[0].state_dict())
    for seed in range(20):
        torch.manual_seed(seed)
        drawn = {name: torch.randn_like(table) * 0.02 if name.startswith("cond") else table for name, table in state.items()}
        assert infer_quantizer(drawn, {})["untrained_tables"] == ("semantic", "coarse", "fine")
        trained = drawn | {"cond_embeddings.coarse": change(drawn["cond_embeddings.coarse"])}
        assert infer_quantizer(trained, {})["untrained_tables"] == ("semantic", "fine")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda state: state | {"rq.project_in.weight": torch.ones(2, 2)}, "unknown tensors .*project_in"),
        (lambda state: {name: tensor for name, tensor in state.items() if not name.startswith("cond")}, "no cond_embeddings"),
        (lambda state: {name: tensor for name, tensor in state.items() if not name.startswith("rq")}, "'rq.layers.0.* is missing"),
    ],
)
def test_other_quantizers_are_refused(change: Any, message: str) -> None:
    """A projection, or a missing half, that would get lost silently."""
    with pytest.raises(ExportError, match=message):
        infer_quantizer(change(split_quantizer_state(quantizers()[0].state_dict())[0]), {})


def test_conditioner_graph(tmp_path: Path) -> None:
    """Another nearest code than upstream's, the residual of another level, or one namespace's table under another's name."""
    theirs, _ = quantizers()
    stages = conditioner_weights(split_quantizer_state(theirs.state_dict())[0])
    path = tmp_path / "conditioner.onnx"
    export_conditioner(stages, path)
    wavs = waves(7, 700)
    latent = theirs.mulan.get_audio_latents(wavs).detach()
    outputs = run(path, latent=latent)
    codes = theirs.rq(latent)[1].numpy()
    assert all(len(np.unique(codes[:, q])) > 1 for q in range(4)), "a level where all rows have one code compares nothing"
    for namespace in NAMESPACES["namespaces"]:
        np.testing.assert_array_equal(outputs[f"codes.{namespace}"], codes)
        np.testing.assert_array_equal(outputs[f"conditioning.{namespace}"], theirs(wavs=wavs, namespace=namespace).detach())
    axes = {f"codes.{namespace}": ["batch", 4] for namespace in stages}
    axes |= {f"conditioning.{namespace}": ["batch", 4, table.shape[-1]] for namespace, (_, table) in stages.items()}
    _check_file(path, {"latent": ["batch", 18]}, axes)
    searches = sum(node.op_type == "ArgMin" for node in onnx.load(path).graph.node)
    assert searches == 4, "stages that share their codebooks must share the search"


def test_conditioner_of_separately_trained_quantizers(tmp_path: Path) -> None:
    """Upstream's codebooks drift in every run, so each stage may come with its own, of its own size."""
    generator = torch.Generator().manual_seed(3)
    stages, latent = {}, torch.nn.functional.normalize(torch.randn(9, 6, generator=generator), dim=-1)
    for namespace, (depth, size, dim) in {"semantic": (3, 11, 5), "coarse": (2, 40, 8), "fine": (2, 40, 8)}.items():
        levels = torch.tensor([0.5**level for level in range(depth)])[:, None, None]
        codebooks = torch.randn(depth, size, 6, generator=generator) * levels
        codebooks[:, -1] = codebooks[:, 0]  # a code twice, as k-means on few clips leaves it: the first one wins
        stages[namespace] = codebooks, torch.randn(depth, size, dim, generator=generator)
    path = tmp_path / "conditioner.onnx"
    export_conditioner(stages, path)
    outputs = run(path, latent=latent)
    for namespace, (codebooks, table) in stages.items():
        residual, expected = latent.double().numpy(), []
        for codebook in codebooks.double().numpy():
            expected.append(np.linalg.norm(residual[:, None] - codebook, axis=-1).argmin(-1))
            residual = residual - codebook[expected[-1]]
        codes = np.stack(expected, axis=1)
        np.testing.assert_array_equal(outputs[f"codes.{namespace}"], codes)
        np.testing.assert_array_equal(outputs[f"conditioning.{namespace}"], table.numpy()[np.arange(len(table)), codes])
    assert not np.array_equal(outputs["codes.coarse"], outputs["codes.fine"])


@pytest.mark.parametrize(
    "codebooks, table, message",
    [
        (torch.zeros(3, 5, 6), torch.zeros(2, 5, 4), r"semantic has codebooks \[3, 5, 6\] and a table \[2, 5, 4\]"),
        (torch.zeros(5, 6), torch.zeros(5, 4), "expected"),
        (torch.full((3, 5, 6), torch.nan), torch.zeros(3, 5, 4), "codebooks of semantic holds NaN"),
        (torch.zeros(3, 5, 7), torch.zeros(3, 5, 4), r"width of MuLaN's latents, got \[6, 7\]"),
    ],
)
def test_wrong_conditioners_are_refused(codebooks: Tensor, table: Tensor, message: str, tmp_path: Path) -> None:
    """Tables and codebooks of different checkpoints."""
    with pytest.raises(ExportError, match=message):
        export_conditioner(
            {"fine": (torch.zeros(3, 5, 6), torch.zeros(3, 5, 4)), "semantic": (codebooks, table)}, tmp_path / "conditioner.onnx"
        )
