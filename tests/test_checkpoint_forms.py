"""The forms in which people keep a model: names that wrappers give its tensors, containers, objects beside the tensors, folders.

Each is read to the same tensors, or refused in words that say what to do."""

import argparse
import collections
import dataclasses
import datetime
import enum
import json
import pathlib
import re
import types
import zipfile
import zoneinfo
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packaging.version import Version
from safetensors.torch import save_file
from torch import Tensor
from torch.torch_version import TorchVersion

from musiclm_deploy.export.checkpoint import Checkpoint, read_checkpoint
from musiclm_deploy.export.collect import collect, settings_table
from musiclm_deploy.export.doctor import diagnose
from musiclm_deploy.export.errors import ExportError
from musiclm_deploy.export.transformers import infer_transformer
from musiclm_deploy.model import MelKmeans
from musiclm_deploy.model.sklearn_kmeans import read_cluster_centers


@pytest.fixture
def state(packages) -> dict[str, Tensor]:
    return packages["semantic"]["model"]


def read(package: Any, folder: Path, **options: Any) -> Checkpoint:
    torch.save(package, folder / "semantic.pt", **options)
    return read_checkpoint(folder / "semantic.pt", "semantic")


def same(checkpoint: Checkpoint, state: dict[str, Tensor]) -> bool:
    return checkpoint.state.keys() == state.keys() and all(tensor.equal(state[name]) for name, tensor in checkpoint.state.items())


def shifted(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Other weights of the same model."""
    return {name: tensor + 1 for name, tensor in state.items()}


# --- names


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "ema_model.",
        "ema_model.module.",
        "module.ema_model.",
        "_orig_mod.",
        "module._orig_mod.",
        "_forward_module._orig_mod.",
        "_fsdp_wrapped_module._fpw_module.",
        "transformer.",
        "net.",
        "train_wrapper.transformer.",
        "audio_lm.semantic.transformer.",
    ],
)
def test_prefixes(state, tmp_path, prefix):
    """Fault: a fixed list of what wrappers put in front of the names."""
    assert same(read({"state_dict": {prefix + name: tensor for name, tensor in state.items()}}, tmp_path), state)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (".branch.", "._fsdp_wrapped_module.branch."),
        (".branch.", "._checkpoint_wrapped_module.branch."),
        (".branch.", ".branch._orig_mod."),
        ("transformer.layers.", "transformer._orig_mod.layers."),
        ("transformer.layers.", "transformer.module.layers."),
    ],
)
def test_wrappers_inside(state, tmp_path, old, new):
    """Fault: an inner module compiled, sharded or checkpointed puts its word between the names."""
    wrapped = {name.replace(old, new, 1): tensor for name, tensor in state.items()}
    assert wrapped.keys() != state.keys() and same(read(wrapped, tmp_path), state)


def test_a_prefix_beside_other_modules(state, tmp_path):
    """A trainer's module has a loss and a frozen HuBERT beside the transformer: they are not of the model, and that is said."""
    module = {f"transformer.{name}": tensor for name, tensor in state.items()}
    checkpoint = read({"state_dict": {**module, "loss.weight": torch.ones(2), "wav2vec.mask_emb": torch.ones(2)}}, tmp_path)
    assert same(checkpoint, state)
    assert checkpoint.weights == (
        "state_dict",
        "entry 'state_dict' of the file; names after 'transformer.'; 2 tensors beside it are of something else",
    )


def test_two_tensors_of_one_name(state, tmp_path):
    """A name with and without a wrapper's word: neither may win silently."""
    with pytest.raises(ExportError, match=r"the tensors 'start_token' and 'module.start_token' are one without the words of"):
        read({**state, "module.start_token": state["start_token"] + 1}, tmp_path)


# --- containers


@pytest.mark.parametrize(
    "around",
    [
        lambda state: {"epoch": 3, "model_state_dict": state, "optimizer_state_dict": {"state": {0: {"exp_avg": torch.ones(2)}}}},
        lambda state: {"net": state},
        lambda state: {"best_state": {"model": state}, "history": [{"loss": 0.1}]},
        lambda state: {"module": state, "buffer_names": [], "ds_version": "0.14.4"},
        lambda state: {"model": {"model": state}, "version": "2.4.0"},
        lambda state: {"a": {"b": {"c": state}}},
        lambda state: {"models": [state]},
        lambda state: {"state_dict": state, "model": "semantic"},
        lambda state: {"model": state, "ema": None},
        lambda state: (state, 1000),
        lambda state: {"model": state, "copy": {name: tensor.clone() for name, tensor in state.items()}},
    ],
)
def test_containers(state, tmp_path, around):
    """Fault: a fixed list of keys under which weights may stand."""
    assert same(read(around(state), tmp_path), state)


def test_the_version_is_of_the_nearest_container(state, tmp_path):
    """A package inside a trainer's own: the version is the package's, wherever it stands."""
    assert read({"saved": {"model": state, "version": "2.3.1"}, "version": "9"}, tmp_path).version == "2.3.1"
    assert read({"saved": {"model": state}, "version": "2.3.1"}, tmp_path).version == "2.3.1"


def test_a_version_of_a_class_of_its_own(state, tmp_path):
    """Fault: a version that is a text of another class is none, and the file is run as another release."""
    assert read({"model": state, "version": TorchVersion("2.0.4")}, tmp_path).version == "2.0.4"
    assert read({"model": state, "version": 3, "packaging": Version("2.0.4")}, tmp_path).version is None


@pytest.mark.parametrize("key", ["ema_model", "ema_state_dict", "model_ema", "average", "swa_model", "model-ema"])
def test_an_average_counts_and_is_said(state, tmp_path, key):
    """Fault: two sets of weights, one of which is taken without a word."""
    checkpoint = read({"model": state, key: shifted(state)}, tmp_path)
    assert same(checkpoint, shifted(state))
    assert checkpoint.weights == (key, f"entry '{key}' of the file; an average counts before model")


def test_two_sets_of_weights(state, tmp_path):
    """The last step and the best one: only their owner knows which is meant, so both are named."""
    with pytest.raises(ExportError) as caught:
        read({"model": state, "best": {"model": shifted(state)}}, tmp_path)
    assert str(caught.value) == (
        "semantic.pt: holds several sets of weights of a semantic transformer: model; best.model. Save the one that is meant alone."
    )


def test_all_models_in_one_file(packages, good, tmp_path):
    """A file of a whole MusicLM serves every option, and the doctor lists what is in it."""
    torch.save({kind: packages[kind] for kind in ("semantic", "coarse", "fine")}, tmp_path / "all.pt")
    assert [(file.kind, file.version) for file in diagnose([tmp_path / "all.pt"]).files] == [
        ("semantic", "2.4.0"),
        ("coarse", "2.4.0"),
        ("fine", "2.4.0"),
    ]
    collected = collect({**good, **dict.fromkeys(("semantic", "coarse", "fine"), tmp_path / "all.pt")}, {})
    assert same(collected.checkpoints["fine"], packages["fine"]["model"])
    assert "weights                      fine.model             entry 'fine.model' of the file" in settings_table(collected)


def test_the_mulan_of_a_quantizer_serves_both_options(packages, good, tmp_path):
    """Fault: a file that serves --quantizer with its MuLaN is refused by --mulan, though it holds what is asked for."""
    whole = {kind: packages[kind] for kind in ("semantic", "coarse", "fine", "codec")} | {"quantizer": packages["quantizer"]}
    torch.save(whole, tmp_path / "all.pt")
    collected = collect({**good, "mulan": tmp_path / "all.pt", "quantizer": tmp_path / "all.pt"}, {})
    table = "text.token_emb.weight"
    assert collected.checkpoints["mulan"].state[table].equal(packages["quantizer"]["mulan." + table])


@pytest.mark.parametrize("inside", ["base_layer.weight", "parametrizations.weight.original0", "weight_v"])
def test_adapted_layers_are_named(state, tmp_path, inside):
    """Fault: layers of LoRA or of a parametrization are called a file that was not saved whole."""
    adapted = {re.sub(r"to_q\.weight$", f"to_q.{inside}", name): tensor for name, tensor in state.items()}
    with pytest.raises(ExportError) as caught:
        infer_transformer("semantic", read({"model": adapted, "version": "2.4.0"}, tmp_path), {})
    at = "transformer.layers.0.0.branch.to_q"
    assert str(caught.value) == (
        f"semantic.pt: the tensor '{at}.weight' is missing, and in its place are '{at}.{inside}': this layer was adapted, parametrized or "
        "quantized. Merge that into the weights, then save the model's own state dict."
    )


@pytest.mark.parametrize("counter", ["epoch", "global_step", "num_updates", "ema.num_updates"])
def test_counters_beside_the_weights(packages, good, tmp_path, counter):
    """Fault: a counter of training, as a tensor in the state dict, belongs "to a variant"; and two words for one fault of a MuLaN."""
    path = tmp_path / "mulan.pt"
    torch.save({**packages["mulan"]["model"], counter: torch.tensor(3)}, path)
    assert not diagnose([path, good["quantizer"]]).faults
    torch.save({**packages["mulan"]["model"], "head": torch.tensor(3)}, path)
    (fault,) = diagnose([path, good["quantizer"]]).faults
    with pytest.raises(ExportError, match=f"^{re.escape(fault)}$"):
        collect({**good, "mulan": path}, {})
    assert fault.startswith("mulan.pt: mulan: head: these tensors belong to a variant")


def test_the_empty_tensors_of_deepspeed(state, tmp_path):
    """Fault: a file of one process of DeepSpeed's ZeRO-3, whose weights are elsewhere, is refused for the shape of one tensor."""
    with pytest.raises(ExportError, match=r"semantic.pt: its tensors are empty, as DeepSpeed's ZeRO-3 .* zero_to_fp32.py"):
        read({"module": {name: tensor.new_empty(0) for name, tensor in state.items()}, "ds_version": "0.14.4"}, tmp_path)


# --- objects beside the tensors


@dataclasses.dataclass
class Config:
    dim: int = 24


class Stage(enum.Enum):
    COARSE = 1


class Trainer:
    """A class with others inside, which a pickle names by a call of getattr."""

    class Stage(enum.Enum):
        FINE = 2

    @dataclasses.dataclass
    class Config:
        dim: int = 24


class Tuples:
    """An object whose state is no dictionary."""

    def __getstate__(self) -> Any:
        return (1, 2, 3)


class Items(list[int]):
    """A list of a class of its own, to which torch's safe loader adds nothing."""

    def __init__(self) -> None:
        super().__init__([1, 2])


class Record(dict[str, Any]):
    """A dictionary with attributes, as configuration libraries have them."""


OBJECTS: dict[str, Any] = {
    "np.float64": np.float64(0.3),
    "np.int64": np.int64(3),
    "np.ndarray": np.zeros(3),
    "strings": np.array(["a", "b"]),
    "generator": np.random.default_rng(0),
    "torch.__version__": torch.__version__,
    "path": pathlib.PurePosixPath("/data/run1"),
    "date": datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC),
    "defaultdict": collections.defaultdict(list, {"loss": [1.0]}),
    "deque": collections.deque([1.0], maxlen=3),
    "namespace": argparse.Namespace(dim=24, depth=2),
    "simple namespace": types.SimpleNamespace(dim=24),
    "dataclass": Config(),
    "enum": Stage.COARSE,
    "record": Record(dim=24),
    "enum in a class": Trainer.Stage.FINE,
    "dataclass in a class": Trainer.Config(),
    "time zone": zoneinfo.ZoneInfo("UTC"),
    "state of a tuple": Tuples(),
    "optimizer": torch.optim.Adam([torch.zeros(2, requires_grad=True)]),
    "module": torch.nn.Linear(2, 2),
    "pattern": re.compile("a"),
    "error": ValueError("loss is NaN"),
    "device": torch.device("cpu"),
}


@pytest.mark.parametrize("label", OBJECTS)
def test_objects_beside_the_tensors(packages, tmp_path, label):
    """Fault: a number of numpy, a date or settings beside the tensors, and the whole file "could run code"."""
    package = {**packages["semantic"], "beside": OBJECTS[label]}
    assert same(read(package, tmp_path), package["model"])
    if label != "module":  # torch's old format adds a module's source
        assert same(read(package, tmp_path, _use_new_zipfile_serialization=False), package["model"])
    assert not diagnose([tmp_path / "semantic.pt"]).faults


class Calls:
    """Unpickling it calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (eval, "builtins.eval"),
        (open, "io.open"),
        (np.load, "numpy.load"),
        (torch.load, "torch.serialization.load"),
        (torch.hub.load, "torch.hub.load"),
        (diagnose, "musiclm_deploy.export.doctor.diagnose"),
        (__import__("subprocess").Popen, "subprocess.Popen"),
        (__import__("shutil").rmtree, "shutil.rmtree"),
    ],
)
@pytest.mark.parametrize("old_format", [False, True])
def test_calls_are_refused_by_name(packages, tmp_path, function, name, old_format):
    """A call that no training script saves is refused, though nothing would have been called."""
    with pytest.raises(ExportError, match=f"refused, because it names {re.escape(name)}, which could run code. Save a plain state dict."):
        read({**packages["semantic"], "x": Calls(function, "x")}, tmp_path, _use_new_zipfile_serialization=not old_format)


def test_another_pickle_protocol(packages, tmp_path):
    """Fault: a sound file that another protocol wrote is called damaged."""
    with pytest.raises(ExportError, match="saved with pickle protocol 4, but torch's safe loader reads 2, the default of"):
        read(packages["semantic"], tmp_path, pickle_protocol=4)


@pytest.mark.parametrize("beside", [Calls(torch.zeros, 10**10), Items()])
def test_objects_that_cannot_be_read_are_not_damage(packages, tmp_path, beside):
    """Fault: a whole file with an object that the reader cannot stand in for is called damaged."""
    with pytest.raises(ExportError, match=r"it holds objects that cannot be read without running code\. Save a plain state dict\."):
        read({**packages["semantic"], "x": beside}, tmp_path)


def test_a_namespace_is_not_hubert(packages, tmp_path):
    """Fault: the doctor takes any file with an argparse.Namespace for HuBERT, and finds nothing to refuse."""
    torch.save({**packages["semantic"], "args": argparse.Namespace(dim=24)}, tmp_path / "semantic.pt")
    torch.save({"args": argparse.Namespace(dim=24), "model": {"conv1.weight": torch.zeros(2)}}, tmp_path / "other.pt")
    report = diagnose([tmp_path / "semantic.pt", tmp_path / "other.pt"])
    assert [file.kind for file in report.files] == ["semantic", None]
    assert report.faults == ["other.pt: the file holds none of the models known here (its first tensor is 'conv1.weight')."]


# --- files and folders


def test_a_file_is_what_its_first_bytes_say(packages, state, tmp_path):
    """Fault: safetensors under another name is called damaged, and so is a file of torch.save called .safetensors."""
    save_file(state, tmp_path / "semantic.pt")
    assert same(read_checkpoint(tmp_path / "semantic.pt", "semantic"), state)
    torch.save(packages["semantic"], tmp_path / "semantic.safetensors")
    assert same(read_checkpoint(tmp_path / "semantic.safetensors", "semantic"), state)


def test_an_archive_without_checksums(packages, state, tmp_path):
    """Fault: a file that torch.save wrote without checksums, to save time, is called damaged."""
    torch.serialization.set_crc32_options(False)
    try:
        checkpoint = read(packages["semantic"], tmp_path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert same(checkpoint, state)


def test_archives_of_archives(packages, tmp_path):
    """Fault: a .zip around a checkpoint, or one packed again, is refused in words about memory."""
    path, packed = tmp_path / "semantic.pt", tmp_path / "packed.zip"
    torch.save(packages["semantic"], path)
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(path, "semantic.pt")
    with pytest.raises(ExportError, match=r"packed.zip: an archive of semantic.pt, not of torch.save. Unpack it first."):
        read_checkpoint(packed, "semantic")
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as again:
        for name in archive.namelist():
            again.writestr(name, archive.read(name))
    with pytest.raises(ExportError, match=r"it was packed again, and compressed \(zip -0 packs without\)"):
        read_checkpoint(packed, "semantic")


def test_text_in_place_of_a_file(tmp_path):
    """Fault: the answer of a server to a download is called a damaged file."""
    path = tmp_path / "fine.pt"
    path.write_text("404: Not Found")
    assert diagnose([path]).faults == [
        f"{path}: text that begins with '404: Not Found', expected a file of tensors. Is it the answer to a download that failed?"
    ]


def sharded(state: dict[str, Tensor], folder: Path, last: str = "model-2.safetensors") -> dict[str, Any]:
    names = list(state)
    parts = {"model-1.safetensors": names[:40], "model-2.safetensors": names[40:]}
    for file, part in parts.items():
        save_file({name: state[name].contiguous() for name in part}, folder / file)
    placed = {name: file for file, part in parts.items() for name in part} | {names[-1]: last}
    return {"metadata": {"total_size": 1}, "weight_map": placed}


def test_folders(packages, state, tmp_path):
    """A folder of transformers or accelerate, whole or in several files, is one checkpoint; a folder of files is each of them."""
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert same(read_checkpoint(tmp_path, "semantic"), state)
    (tmp_path / "pytorch_model.bin").unlink()
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps(sharded(state, tmp_path)))
    for path in (tmp_path, index):
        checkpoint = read_checkpoint(path, "semantic")
        assert same(checkpoint, state) and checkpoint.sha256 == read_checkpoint(tmp_path, "semantic").sha256
    index.write_text(json.dumps(sharded(state, tmp_path, "../model-3.safetensors")))
    with pytest.raises(ExportError, match=r"must name files beside it, got '../model-3.safetensors'"):
        read_checkpoint(tmp_path, "semantic")
    index.write_text(json.dumps(sharded(state, tmp_path, "model-3.safetensors")))
    with pytest.raises(ExportError, match=r"names model-3.safetensors, which is not there. Was it copied whole\?") as missing:
        read_checkpoint(tmp_path, "semantic")
    assert diagnose([tmp_path]).faults == [str(missing.value).removeprefix("--semantic ")], "the doctor looked at the parts one by one"
    index.write_text(json.dumps(sharded(state, tmp_path)))
    first, *rest = state
    save_file({name: state[name].contiguous() for name in (first, *rest[40:])}, tmp_path / "model-2.safetensors")
    with pytest.raises(ExportError, match=f"model-2.safetensors: holds '{first}', which another file of the same index holds as well"):
        read_checkpoint(tmp_path, "semantic")


def test_one_of_several_files(state, tmp_path):
    """Fault: a part of a model in several files is called a file that was not saved whole."""
    path = tmp_path / "model-00001-of-00002.safetensors"
    save_file(dict([*state.items()][:40]), path)
    expected = f"{path}: one of the 2 files of a model. Give the folder with their .index.json."
    assert diagnose([path]).faults == [expected] == diagnose([tmp_path]).faults
    save_file(state, path.with_name("model-00001-of-00001.safetensors"))
    assert same(read_checkpoint(path.with_name("model-00001-of-00001.safetensors"), "semantic"), state)


def test_the_doctor_looks_into_folders(good, tmp_path):
    """Fault: `musiclm doctor checkpoints/` speaks of a model.safetensors that nobody mentioned."""
    report = diagnose([good["fine"].parent])
    assert {Path(file.path).stem: file.kind for file in report.files} == {kind: kind for kind in good} and not report.faults
    (tmp_path / "notes.txt").write_text("")
    assert diagnose([tmp_path]).faults == [
        f"{tmp_path}: the folder holds no model.safetensors and no pytorch_model.bin (found: notes.txt). Name the file."
    ]


def test_every_reader_says_what_a_file_is(tmp_path):
    """Fault: torch's own text on a file of another kind, which advises to switch its protection off."""
    path = tmp_path / "tokenizer.pt"
    torch.save({"x": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"it is a zip archive, as torch\.save and numpy\.savez write one"):
        read_cluster_centers(path)
    with pytest.raises(ValueError, match=r"not a tokenizer that MelKmeans\.save wrote: its first tensor is 'x'"):
        MelKmeans(5, n_mels=8).load(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=re.escape(f"{path}: a damaged file of torch.save. Was it copied whole?")):
        MelKmeans(5, n_mels=8).load(path)
