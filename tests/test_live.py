"""Live models as trainings leave them: wrappers are taken away for the export and put back, and what is no MusicLM is refused by name."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.ao.nn.quantized.dynamic import Linear as QuantizedLinear
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel

import musiclm_deploy as md
from musiclm_deploy.export.arguments import overrides_of
from musiclm_deploy.export.unwrapping import check_plain, plain_state, unwrapped
from musiclm_deploy.model.upstream import load_upstream

load_upstream()
import audiolm_pytorch  # noqa: E402 (imports only after load_upstream)
import musiclm_pytorch  # noqa: E402 (imports only after load_upstream)
from ema_pytorch import EMA  # noqa: E402 (imports only after load_upstream)


def _compile(module: Any) -> Any:
    return torch.compile(module)


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "compile": _compile,
    "DataParallel": nn.DataParallel,
    "checkpoint": checkpoint_wrapper,
    "EMA": EMA,
    "AveragedModel": AveragedModel,
    "all": lambda module: nn.DataParallel(checkpoint_wrapper(_compile(module))),
}
AVERAGES = ("EMA", "AveragedModel")
PARTS = (
    "",
    "audio_lm",
    "audio_lm.coarse.transformer",
    "audio_lm.coarse.transformer.transformer",
    "audio_lm.coarse.transformer.transformer.layers.0",
    "audio_lm.coarse.codec",
    "mulan_embed_quantizer",
    "mulan_embed_quantizer.mulan.audio",
)


@pytest.fixture(scope="module")
def musiclm(tiny_models: dict[str, Any]) -> Any:
    """A copy, so that no other test meets a wrapper."""
    models = copy.deepcopy(tiny_models)
    parts = {f"{stage}_transformer": models[stage] for stage in ("semantic", "coarse", "fine")}
    audio_lm = audiolm_pytorch.AudioLM(wav2vec=None, codec=models["codec"], **parts)
    return musiclm_pytorch.MusicLM(audio_lm=audio_lm, mulan_embed_quantizer=models["quantizer"])


@pytest.fixture
def nothing_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test with this fixture fails if an export begins."""

    def export(**_: Any) -> None:
        pytest.fail("the export began")

    monkeypatch.setattr("musiclm_deploy.export.live.export_checkpoints", export)


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize("part", PARTS)
def test_wrappers_are_taken_away_and_put_back(name: str, part: str, musiclm: Any) -> None:
    """Fault: names of tensors with a wrapper's word in them, a wrapper that has not the attributes of what it wraps, a model that has lost
    its wrappers after an export."""
    owner, _, key = part.rpartition(".")
    inside, expected = musiclm.get_submodule(part), {name: id(tensor) for name, tensor in musiclm.state_dict(keep_vars=True).items()}
    wrapped = WRAPPERS[name](inside)
    parent = musiclm.get_submodule(owner)
    try:
        if part:
            parent._modules[key] = wrapped
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            with unwrapped(musiclm if part else wrapped, "musiclm") as model:
                found = {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()}
                assert model.audio_lm.coarse.transformer.transformer.layers and model.mulan_embed_quantizer.mulan.audio.spec
        assert found.keys() == expected.keys()
        assert (found == expected) == (name not in AVERAGES), "an average has tensors of its own"
        at, kind = f"musiclm.{part}".rstrip("."), type(wrapped).__name__
        averaged = [f"{at} is wrapped in {kind}: the average of the weights is exported."] if name in AVERAGES else []
        assert [str(warning.message) for warning in said if "wrapped" in str(warning.message)] == averaged
        assert not part or parent._modules[key] is wrapped
    finally:
        if part:
            parent._modules[key] = inside


def test_an_average_is_the_average(musiclm: Any) -> None:
    """Fault: the weights of the last step exported in place of their average."""
    inside = copy.deepcopy(musiclm.audio_lm.semantic.transformer)
    average = AveragedModel(inside)
    average.update_parameters(inside)
    with torch.no_grad():
        inside.start_token.add_(1.0)
    average.update_parameters(inside)
    with pytest.warns(UserWarning, match="the average of the weights"), unwrapped(average, "semantic") as model:
        torch.testing.assert_close(plain_state(model)["start_token"], inside.start_token.detach() - 0.5)


class Quantized(torch.Tensor):
    """Like the weights of torchao: a class of tensors of its own."""


def _quantize(module: nn.Module) -> None:
    module.weight = nn.Parameter(torch.zeros(2, 2).as_subclass(Quantized))  # type: ignore[assignment]


def _foreign(package: str) -> nn.Module:
    return type("Linear", (nn.Linear,), {"__module__": package})(2, 2)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda module: nn.utils.parametrizations.weight_norm(module[0]), r"semantic\.0 is parametrized: call torch\.nn\.utils"),
        (lambda module: nn.utils.weight_norm(module[0]), r"semantic\.0 has a WeightNorm of torch\.nn\.utils\.weight_norm: remove it"),
        (
            lambda module: prune.random_unstructured(module[0], "weight", 1),
            r"semantic\.0 has a RandomUnstructured of torch",
        ),
        (lambda module: module.append(_foreign("peft.tuners.lora.layer")), r"semantic\.1 is a Linear of peft.*: merge its adapters first"),
        (lambda module: module.append(_foreign("bitsandbytes.nn.modules")), r"semantic\.1 is a Linear of bitsandbytes.*: export the model"),
        (lambda module: module.to("meta"), r"semantic\.0\.weight has no values"),
        (lambda module: module.append(nn.LazyLinear(3)), r"semantic\.1\.weight has no values"),
        (lambda module: module.append(torch.jit.script(nn.ReLU())), r"semantic\.1 is TorchScript"),
        (lambda module: _quantize(module[0]), r"semantic\.0\.weight is a .* of torch\.float32: export the model with its own weights"),
        (
            lambda module: module.append(QuantizedLinear(2, 2)),
            r"semantic\.1 is a Linear of torch\.ao\.nn\.quantized.*: export the model with its own weights, and quantize with precision=",
        ),
    ],
)
def test_other_layers_are_refused(change: Callable[[Any], Any], message: str) -> None:
    """Fault: layers that compute something else than their checkpoint would, and words about a damaged file."""
    module = nn.Sequential(nn.Linear(2, 2))
    check_plain(module, "semantic")
    change(module)
    with pytest.raises(md.ExportError, match=message):
        check_plain(module, "semantic")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, r"got NoneType\. It has no audio_lm\."),
        ("musiclm.pt", r"got str\. Files are exported by export_checkpoints"),
        ({"weight": torch.zeros(1)}, r"got dict\. Files are exported by export_checkpoints"),
        (nn.Linear(1, 1), r"got Linear\. It has no audio_lm\.semantic\.transformer\.transformer\."),
        (lambda musiclm: musiclm.audio_lm, r"got AudioLM\. Put the AudioLM into one: MusicLM\(audio_lm=\.\.\., mulan_embed_quantizer="),
        (lambda musiclm: musiclm.audio_lm.coarse.transformer, r"got CoarseTransformer\. It has no audio_lm"),
    ],
)
def test_what_is_no_musiclm(given: Any, message: str, musiclm: Any, nothing_read: None, tmp_path: Path) -> None:
    """Fault: an AttributeError in place of a sentence that says what is expected."""
    live = given(musiclm) if callable(given) and not isinstance(given, nn.Module) else given
    with pytest.raises(md.ExportError, match=r"export_musiclm takes a MusicLM of musiclm-pytorch or of musiclm_deploy\.model.*" + message):
        md.export_musiclm(live, tmp_path / "bundle")


def test_a_loaded_bundle_is_no_model(music: Any, tmp_path: Path) -> None:
    """Fault: the other class of this name, exported again."""
    with pytest.raises(md.ExportError, match=r"got MusicLM\. This one was loaded from a bundle, which is an export already"):
        md.export_musiclm(music, tmp_path / "bundle")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"config": "config.json"}, "config must be a dict of parts, .* got str. Read the file with json.load first."),
        ({"config": [1]}, "config must be a dict of parts, .* got list."),
        ({"config": {"semantic": None}}, "the overrides of semantic must be an object of argument names and values, got None"),
        ({"out": None}, "out must be a path, got NoneType."),
        ({"out": ""}, "out must be a path, got an empty text."),
        ({"precision": None}, "precision must be one for all stages, or a dict of stages and theirs, got None."),
        ({"target": ["tensorrt"]}, "target .*: expected one of onnxruntime, tensorrt."),
        ({"kernels": "fp16"}, "kernels must be a list, got 'fp16'."),
        ({"kernels": ["fp8"]}, "kernels for weights of 'fp8': expected some of fp16, bf16, fp32, int8."),
        ({"kernels": ["fp16"], "compute_capabilities": 90}, "compute_capabilities must be a list, got 90."),
        ({"kernels": ["fp16"], "compute_capabilities": ["90"]}, "compute capability '90': kernels are compiled for 80, "),
        ({"trace_cache": 5}, "trace_cache must be a path, got int."),
        ({"semantic": {"weight": 1}}, "semantic must be a path, got dict. Save it with torch.save first, or export a whole MusicLM"),
        ({"semantic": nn.Linear(1, 1)}, "semantic must be a path, got Linear. Save it with torch.save first"),
        ({"mulan": b"mulan.pt"}, "mulan must be a path, got bytes."),
        ({"quantizer": None}, "quantizer must be a path, got NoneType."),
        ({"quantizer": {"sematic": "quantizer.pt"}}, "quantizer of 'sematic': the stages that have one are semantic, coarse, fine."),
        ({"quantizer": {"fine": None}}, "quantizer.fine must be a path, got NoneType."),
        ({"calibration": 5, "precision": "int8"}, "calibration must be a path, got int."),
    ],
)
def test_arguments_of_the_export(arguments: dict[str, Any], message: str, tiny_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Fault: a TypeError, a text taken for a list of letters, or a mistake that is noticed after minutes."""
    with pytest.raises(md.ExportError, match=message):
        md.export_checkpoints(**{"out": tmp_path / "bundle", "quiet": True, **tiny_checkpoints} | arguments)
    assert not list(tmp_path.iterdir())


def test_numbers_of_other_libraries_in_overrides() -> None:
    """Fault: a window that numpy or PyTorch computed is refused for its type; True becomes 1."""
    semantic = {"max_length": np.int64(50), "repeats": True}
    found = overrides_of({"semantic": semantic, "mulan": {"audio.patch_size": (np.int32(4), torch.tensor(8))}, "fine": None})
    assert repr(found) == "{'semantic': {'max_length': 50, 'repeats': True}, 'mulan': {'audio.patch_size': (4, 8)}, 'fine': None}"


def test_a_path_alone_is_examined(tiny_checkpoints: dict[str, Path]) -> None:
    """Fault: a report on each letter of a path."""
    (file,) = md.diagnose(str(tiny_checkpoints["semantic"])).files
    assert file.kind == "semantic"
