"""Transformers of every release of audiolm-pytorch: run as that release ran them, or refused by its version and the reason.

The expected logits were made once with each release's own classes, with the files of tests/support/releases.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.drawn import normal
from support.releases import DIM, STREAMS, transformer_state

import musiclm_deploy as md
from musiclm_deploy.export.checkpoint import read_checkpoint
from musiclm_deploy.export.errors import ExportError
from musiclm_deploy.export.settings import Settings
from musiclm_deploy.export.stage import export_stage
from musiclm_deploy.export.transformers import STAGES, infer_transformer
from musiclm_deploy.export.validate import upstream_transformer
from musiclm_deploy.runtime.backend import open_session
from musiclm_deploy.runtime.bundle import Decoder, Sampling
from musiclm_deploy.runtime.forcing import forced, logits_of
from musiclm_deploy.runtime.host.graph import GraphBatch
from musiclm_deploy.runtime.sequence import Context, Draw, Sequence, coarse_sequence, fine_sequence, semantic_sequence

CONDITIONING = normal("conditioning", 1, 3, DIM, deviation=1.0)
SEMANTIC_TOKENS = np.array([3, 1, 4, 2, 5, 9])
COARSE_TOKENS = np.array([[0, 1], [2, 3], [4, 5]])
TOKENS = {"semantic": np.arange(6), "coarse": np.arange(6), "fine": np.arange(5)}

# The first four logits after TOKENS.
_WITHOUT_VALUE_RESIDUAL = {
    "semantic": [-1.0891, 2.3604, -0.8886, 0.7556],
    "coarse": [0.2959, 0.9495, -0.1676, 0.6903],
    "fine": [0.8151, -1.6349, -0.1051, -0.7166],
}
_WITHOUT_SELF_ATTENTION = {
    "semantic": [0.2232, 1.2593, -0.4742, -1.9658],
    "coarse": [1.1476, 0.7722, 1.8862, -0.1859],
    "fine": [1.0766, -2.0688, -0.8352, 0.3258],
}
_WITH_VALUE_RESIDUAL = {
    "semantic": [0.2054, 1.8114, -0.807, -0.0675],
    "coarse": [0.8965, 0.8509, 0.7117, 0.5082],
    "fine": [1.2481, -1.5323, -1.0376, -0.8641],
}
_WITH_STREAMS = {
    "semantic": [-2.3613, -1.6064, -0.3882, 1.7661],
    "coarse": [-0.9109, 0.2897, -1.0244, -0.3353],
    "fine": [-0.6893, 2.2512, -0.7263, -1.2264],
}
LOGITS = {
    "1.2.0": _WITHOUT_VALUE_RESIDUAL,
    "1.4.2": _WITHOUT_VALUE_RESIDUAL,
    "1.4.3": _WITHOUT_SELF_ATTENTION,
    "2.0.6": _WITHOUT_SELF_ATTENTION,
    "2.0.7": _WITHOUT_VALUE_RESIDUAL,
    "2.1.4": _WITHOUT_VALUE_RESIDUAL,
    "2.2.0": _WITH_VALUE_RESIDUAL,
    "2.3.1": _WITH_VALUE_RESIDUAL,
    "2.4.0": _WITH_STREAMS,
}


def infer(
    stage: str, state: dict[str, torch.Tensor], version: str | None, folder: Path, config: Mapping[str, Any] | None = None
) -> tuple[Any, Settings]:
    """Save `state` as a trainer does, with its version if it has one, and read that file. Returns the checkpoint and its settings."""
    package = {"model": state, "optim": {}} | ({} if version is None else {"version": version})
    torch.save(package, folder / f"{stage}.pt")
    checkpoint = read_checkpoint(folder / f"{stage}.pt", stage)
    window = {"max_length": 32} if stage == "semantic" else {"max_time_steps": 8}
    return checkpoint, infer_transformer(stage, checkpoint, window | dict(config or {}))


def logits_of_graph(stage: str, checkpoint: Any, settings: Settings, folder: Path) -> np.ndarray:
    """Return the logits [V] after TOKENS, by the exported graphs."""
    decoder = export_stage(stage, checkpoint, settings, folder, 32, 1)
    assert decoder.context is not None
    context_graph = open_session(folder / decoder.context, 1)
    names = [output.name for output in context_graph.get_outputs()]
    context = dict(zip(names, context_graph.run(names, {"conditioning": CONDITIONING.numpy()}), strict=True))
    batch = GraphBatch(open_session(folder / decoder.graph, 1), decoder)
    sequence = forced(sequence_of(stage, decoder, Context(context)), TOKENS[stage], decoder.vocabulary)
    (logits,) = logits_of(batch, [sequence])[1]
    return logits[-1, 0]


def sequence_of(stage: str, decoder: Decoder, context: Context) -> Sequence:
    none, draw = np.zeros(0, np.int64), Draw(0, 0, 0, Sampling(temperature=1.0, filter_thres=0.0, cond_scale=1.0))
    if stage == "semantic":
        return semantic_sequence(decoder, 32, True, none, draw, context)
    none = none.reshape(0, 2)
    if stage == "coarse":
        return coarse_sequence(decoder, SEMANTIC_TOKENS, 8, 2, True, none, draw, context)
    return fine_sequence(decoder, COARSE_TOKENS, 2, none, draw, context, len(COARSE_TOKENS))


def logits_of_reference(stage: str, checkpoint: Any, settings: Settings) -> np.ndarray:
    """Return the logits [V] after TOKENS, by the model that the export holds its graphs against."""
    model = upstream_transformer(stage, settings, checkpoint.state)
    condition = {"text_embeds": CONDITIONING, "cond_drop_prob": 0.0}
    tokens, semantic, coarse = (torch.from_numpy(array)[None] for array in (TOKENS[stage], SEMANTIC_TOKENS, COARSE_TOKENS))
    with torch.inference_mode():
        if stage == "semantic":
            return model(ids=tokens, **condition)[0, -1].numpy()
        if stage == "coarse":
            return model(semantic_token_ids=semantic, coarse_token_ids=tokens, **condition)[1][0, -1].numpy()
        return model(coarse_token_ids=coarse, fine_token_ids=tokens, **condition)[1][0, -1].numpy()


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("version", LOGITS)
def test_logits_are_those_of_the_release(version: str, stage: str, tmp_path: Path) -> None:
    """Fault: what a release computed differently from today's with the same tensors is exported as today's, at either end of its range."""
    checkpoint, settings = infer(stage, transformer_state(stage, version), version, tmp_path)
    found, reference = logits_of_graph(stage, checkpoint, settings, tmp_path), logits_of_reference(stage, checkpoint, settings)
    np.testing.assert_allclose(found[:4], LOGITS[version][stage], rtol=0, atol=2e-4)  # four decimals
    np.testing.assert_allclose(reference[:4], LOGITS[version][stage], rtol=0, atol=2e-4)


def without_gradient(state: dict[str, torch.Tensor], scale: float) -> dict[str, torch.Tensor]:
    """Return `state` with mixing weights that no gradient reached, while weight decay scaled them."""
    for name, tensor in state.items():
        if name.endswith("static_alpha"):
            tensor[:, 1:] = scale * torch.eye(STREAMS)
        elif name.endswith("dynamic_alpha_fn"):
            tensor[:, 1:] = 0
    return state


# Of 2.4.0 with hyper-connections 0.1.8 and 0.3.9; with 0.3.10 and later the first is -3.4119, -0.89 and 0.6538.
_STREAMS_NOT_MIXED = {
    "semantic": [-3.1218, 2.4554, 0.9969, -0.6728],
    "coarse": [-0.1318, 0.541, 0.2975, 0.6629],
    "fine": [0.3084, -2.4849, 0.808, -0.7476],
}


@pytest.mark.parametrize("stage", STAGES)
def test_streams_that_were_never_mixed(stage: str, tmp_path: Path) -> None:
    """Fault: hyper-connections threw the mixing away until 0.3.10, and unused weights that weight decay scaled are mixed with."""
    checkpoint, settings = infer(stage, without_gradient(transformer_state(stage, "2.4.0"), 0.9), "2.4.0", tmp_path)
    assert not settings["stream_mixing"]
    found, reference = logits_of_graph(stage, checkpoint, settings, tmp_path), logits_of_reference(stage, checkpoint, settings)
    np.testing.assert_allclose(found[:4], _STREAMS_NOT_MIXED[stage], rtol=0, atol=2e-4)
    np.testing.assert_allclose(reference[:4], _STREAMS_NOT_MIXED[stage], rtol=0, atol=2e-4)


def test_streams_that_are_mixed(tmp_path: Path) -> None:
    """Fault: weights that did train, or a mixing by the identity alone, are taken for unused ones."""
    state = without_gradient(transformer_state("semantic", "2.4.0"), 0.9)
    state["transformer.layers.1.2.dynamic_alpha_fn"][0, 1] = 1e-8
    assert infer("semantic", state, "2.4.0", tmp_path)[1]["stream_mixing"]
    state = without_gradient(transformer_state("semantic", "2.4.0"), 1.0)
    assert infer("semantic", state, "2.4.0", tmp_path)[1]["stream_mixing"]
    state = without_gradient(transformer_state("semantic", "2.4.0"), 0.9)
    assert infer("semantic", state, "2.4.0", tmp_path, {"stream_mixing": True})[1]["stream_mixing"]


@pytest.mark.parametrize(
    ("version", "self_attention", "value_residual"),
    [
        ("1.2.0", True, False),
        ("1.4.2", True, False),
        ("v1.4.3", False, False),
        ("1.9.9", False, False),
        ("2.0.6+cu118", False, False),
        ("2.0.7", True, False),
        ("2.1.12", True, False),
        ("2.2", True, True),
        ("2.3.1", True, True),
        ("", True, True),
        (None, True, True),
    ],
)
def test_what_only_the_version_tells(version: str | None, self_attention: bool, value_residual: bool, tmp_path: Path) -> None:
    """Fault: versions compared as text or up to their second number, or a file without one decided silently."""
    _, settings = infer("fine", transformer_state("fine", "2.3.1"), version, tmp_path)
    assert (settings["self_attention"], settings["add_value_residual"]) == (self_attention, value_residual)
    said = " ".join(settings.warnings)
    assert ("the file has no version" in said) == (not version)
    assert ("throw its result away" in said) == (not self_attention)


def test_a_newer_version_is_used_and_said(tmp_path: Path) -> None:
    """Fault: a release that nobody has looked at is taken for the newest one without a word."""
    for state, version in ((transformer_state("coarse", "2.4.0"), "2.4.1"), (transformer_state("coarse", "2.3.1"), "2.10")):
        _, settings = infer("coarse", state, version, tmp_path)
        assert (settings["self_attention"], settings["add_value_residual"]) == (True, True)
        assert f"saved by audiolm-pytorch {version}, which this export does not know. It is run as 2.4.0" in settings.warnings[0]
    assert not infer("coarse", transformer_state("coarse", "2.4.0"), None, tmp_path)[1].warnings, "only 2.4.0 wraps its branches"


@pytest.mark.parametrize(
    ("version", "tensor"),
    [
        ("0.0.68", "0.0.norm.weight"),
        ("0.23.7", "0.2.2.ds_conv.weight"),
        ("1.1.6", "0.0.q_scale"),
        ("1.0.0", None),
        (None, "0.0.norm.weight"),
        (None, "0.2.2.ds_conv.weight"),
        (None, "0.0.q_scale"),
        ("1.4.1", "0.0.q_scale"),
        ("3.0", "0.0.q_scale"),
    ],
)
def test_before_1_2_is_refused_by_name(version: str | None, tensor: str | None, tmp_path: Path) -> None:
    """Fault: a file of a release that the export does not cover is called incomplete, or its user is not told which releases it covers."""
    state = transformer_state("semantic", "2.3.1")
    if tensor:
        state["transformer.layers." + tensor] = torch.ones(DIM)
        state["transformer.layers.0.2.4.gamma"] = state.pop("transformer.layers.0.2.3.gamma")
    with pytest.raises(ExportError) as refusal:
        infer("semantic", state, version, tmp_path)
    said = str(refusal.value)
    assert (f"saved by audiolm-pytorch {version}, " if version else f"the tensor 'transformer.layers.{tensor}' is of") in said
    assert "covers files of version 1.2.0 and later" in said and "saved whole" not in said


def test_a_version_that_cannot_be_is_refused(tmp_path: Path) -> None:
    """Fault: another trainer's own number under "version" decides what the weights mean; --config says better."""
    with pytest.raises(ExportError, match=r'saved by audiolm-pytorch 2.0.4, but .* {"fine": {"version": "2.4.0"}}'):
        infer("fine", transformer_state("fine", "2.4.0"), "2.0.4", tmp_path)
    with pytest.raises(ExportError, match=r'saved by audiolm-pytorch 2.4.0, but .* {"fine": {"version": "2.3.1"}}'):
        infer("fine", transformer_state("fine", "2.3.1"), "2.4.0", tmp_path)
    _, settings = infer("fine", transformer_state("fine", "2.4.0"), "1.0", tmp_path, {"version": "2.4.0"})
    assert (settings["version"], settings["add_value_residual"], settings.warnings) == ("2.4.0", True, [])
    _, settings = infer("fine", transformer_state("fine", "2.3.1"), None, tmp_path, {"version": "2.0.4"})
    assert not settings["self_attention"] and len(settings.warnings) == 1


def test_self_attention_can_be_overridden(tmp_path: Path) -> None:
    """Fault: who knows better than a version cannot say so; a model that no release had is exported."""
    _, settings = infer("fine", transformer_state("fine", "2.3.1"), "2.0.4", tmp_path, {"self_attention": True})
    assert settings["self_attention"] and not settings.warnings
    with pytest.raises(ExportError, match="self_attention = false is of releases with one residual stream, got 2"):
        infer("fine", transformer_state("fine", "2.4.0"), "2.4.0", tmp_path, {"self_attention": False})


def test_a_prefix_without_self_attention_has_no_effect(tmp_path: Path) -> None:
    """Fault: a prompt without any effect is not said to have none."""
    state = {name: tensor for name, tensor in transformer_state("semantic", "2.3.1").items() if name.split(".")[3:4] != ["1"]}
    _, settings = infer("semantic", state, "2.0.4", tmp_path, {"cond_as_self_attn_prefix": True})
    assert "Its condition, a prefix, has no effect." in settings.warnings[0]
    report = md.diagnose([tmp_path / "semantic.pt"], {"semantic": {"cond_as_self_attn_prefix": True}})
    assert f"semantic.pt: {settings.warnings[0]}" in report.warnings
