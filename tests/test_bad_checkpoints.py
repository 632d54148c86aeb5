"""What a user may hand to the export: files that are damaged, swapped, hostile or of another training, and every format that upstream
writes. A bad file gives one `ExportError` that names it, and nothing in it is ever run."""

import copy
import gzip
import io
import itertools
import os
import pickle
import random
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from musiclm_deploy.export.checkpoint import Checkpoint, read_checkpoint
from musiclm_deploy.export.collect import Collected, collect, warnings_of
from musiclm_deploy.export.doctor import diagnose
from musiclm_deploy.export.errors import ExportError
from musiclm_deploy.export.export import export_checkpoints
from musiclm_deploy.export.mulan import build_mulan, conditioner_weights, export_conditioner
from musiclm_deploy.export.soundstream import build_decoder
from musiclm_deploy.export.stage import export_stage
from musiclm_deploy.export.transformers import STAGES, infer_transformer

KINDS = ("semantic", "coarse", "fine", "codec", "mulan", "quantizer")
Package = dict[str, Any]


@pytest.fixture
def changed(packages, good, tmp_path) -> Callable[..., dict[str, Path]]:
    """`changed("fine", edit)`: the good files with one of them replaced by what `edit` made of its state dict."""

    def change(kind: str, edit: Callable[[dict[str, torch.Tensor]], object]) -> dict[str, Path]:
        package = {**packages[kind]}
        state = dict(package.get("model", package))
        edit(state)
        package = {**package, "model": state} if "model" in package else state
        return {**good, kind: save(package, tmp_path / f"{kind}.pt")}

    return change


def save(package: Any, path: Path) -> Path:
    torch.save(package, path)
    return path


def state_of(package: Package) -> dict[str, torch.Tensor]:
    return package.get("model", package)


def is_refused(call: Callable[[], object], *parts: str) -> str:
    """The call raises an ExportError that is one line and holds every part."""
    with pytest.raises(ExportError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message, message
    for part in parts:
        assert part in message, message
    return message


def zipped(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, pickle.dumps({}, protocol=2))
    return file.getvalue()


class Runs:
    """Unpickling it makes a file: what a hostile checkpoint would do to prove that it ran."""

    def __init__(self, proof: Path) -> None:
        self._proof = proof

    def __reduce__(self):
        return os.mkdir, (str(self._proof),)


# --- files that are no checkpoint


def test_missing_file(tmp_path):
    """A path that is not there, or is a folder without a model, is named together with its option and what is in it."""
    is_refused(lambda: read_checkpoint(tmp_path / "fine.pt", "fine"), f"--fine {tmp_path / 'fine.pt'}: there is no such file.")
    (tmp_path / "model.onnx").write_bytes(b"")
    found = "the folder holds no model.safetensors and no pytorch_model.bin (found: model.onnx). Name the file."
    is_refused(lambda: read_checkpoint(tmp_path, "codec"), f"--codec {tmp_path}: {found}")


@pytest.mark.parametrize(
    ("cut", "reason"),
    [
        (0, "empty: 0 bytes."),
        (1, "not a PyTorch file, or a damaged one: it begins with b'P'."),
        (2, "not a PyTorch file, or a damaged one: it begins with b'PK'."),
        *((cut, "a damaged file of torch.save.") for cut in (10, 63, 64, 1000, 5000, 0.5, 0.99, -22, -1)),
    ],
)
def test_truncated_file(good, tmp_path, cut, reason):
    """A file cut short anywhere, as an interrupted copy leaves it; torch raises a different error for nearly every length."""
    data = good["semantic"].read_bytes()
    path = tmp_path / "semantic.pt"
    path.write_bytes(data[: int(cut * len(data)) if isinstance(cut, float) else cut])
    is_refused(lambda: read_checkpoint(path, "semantic"), f"--semantic {path}: {reason} Was it copied whole?")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"hello\n" * 50, "text that begins with 'hello', expected a file of tensors. Is it the answer to a download that failed?"),
        (b"\3hello\n" * 50, "not a PyTorch file, or a damaged one: it begins with b'\\x03hello\\n\\x03'. Was it copied whole?"),
        (b"\n", "not a PyTorch file, or a damaged one: it begins with b'\\n'. Was it copied whole?"),
        (b"\0" * 100, "it begins with zeros, as an interrupted download leaves a file. Was it copied whole?"),
        (b"PK\3\4" + b"\xff" * 200, "a damaged file of torch.save. Was it copied whole?"),
        (b"{}", "JSON, expected a file of tensors."),
        (b"\x80\x02X", "a damaged pickle. Was it copied whole?"),
        (pickle.dumps({"start_token": 3}, protocol=2), "a plain pickle. Save the state dict with torch.save."),
        (gzip.compress(b"weights"), "compressed by gzip. Unpack it first: gunzip."),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "a pointer of Git LFS, in place of the file itself. Fetch it with: git lfs pull.",
        ),
        (b"\n<!DOCTYPE html><html>", "a web page, as a download that needs a login leaves it. Download the file itself."),
        (zipped("weights/semantic.pt"), "an archive of weights/semantic.pt, not of torch.save. Unpack it first."),
        (zipped("data.pkl", "code/a.py", "constants.pkl"), "refused, because it is a program of TorchScript, and not only tensors."),
        (b"\x08\x0a\x12\x07pytorch", "not a file of PyTorch; it begins as an ONNX graph does. Give the checkpoint that it was made of."),
    ],
    ids=itertools.count(),  # the bytes of archives hold the time
)
def test_not_a_checkpoint(tmp_path, data, reason):
    """Fault: everything that cannot be read is called a damaged file, and its owner copies it once more."""
    path = tmp_path / "mulan.pt"
    path.write_bytes(data)
    is_refused(lambda: read_checkpoint(path, "mulan"), f"--mulan {path}: {reason}")
    assert diagnose([path]).faults == [f"{path}: {reason}"] or "TorchScript" in reason


def test_damaged_pickle(good, tmp_path):
    """Any byte of the pickle inside may be wrong: the file is refused, or read, but no other exception comes out."""
    with zipfile.ZipFile(good["semantic"]) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (pickled,) = (name for name in members if name.endswith("data.pkl"))
    path, dice, refused = tmp_path / "semantic.pt", random.Random(0), 0
    for _ in range(150):
        data = bytearray(members[pickled])
        data[dice.randrange(len(data))] = dice.randrange(256)
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, bytes(data) if name == pickled else content)
        try:
            read_checkpoint(path, "semantic")
        except ExportError:
            refused += 1
    assert refused > 20


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([1, 2], "expected a dictionary of tensors, got list"),
        (torch.zeros(3), "expected a dictionary of tensors, got Tensor"),
        ({}, "no tensors found; its entries are none"),
        ({"epoch": 3, "model": {"lr": 0.1}}, "no tensors found; its entries are epoch, model"),
    ],
)
def test_no_tensors(tmp_path, content, reason):
    """A PyTorch file of something else says what was found instead."""
    is_refused(lambda: read_checkpoint(save(content, tmp_path / "codec.pt"), "codec"), "codec.pt", reason)


# --- hostile files


@pytest.mark.parametrize("legacy", [False, True])
def test_hostile_pickle_is_not_run(packages, tmp_path, legacy):
    """A checkpoint that would run code when unpickled does not, in the zip format and in the old one, and the error names the function."""
    proof, path = tmp_path / "ran", tmp_path / "semantic.pt"
    torch.save({**packages["semantic"], "epoch": Runs(proof)}, path, _use_new_zipfile_serialization=not legacy)
    is_refused(lambda: read_checkpoint(path, "semantic"), f"--semantic {path}: refused, because it names", "mkdir, which could run code")
    assert not proof.exists()
    torch.load(path, weights_only=False)
    assert proof.exists()  # the attack is a real one


def test_bare_pickle_is_not_run(tmp_path):
    """The same, for a file that is a pickle and nothing else."""
    proof, path = tmp_path / "ran", tmp_path / "fine.pt"
    path.write_bytes(pickle.dumps({"model": Runs(proof)}, protocol=2))
    is_refused(lambda: read_checkpoint(path, "fine"), str(path), "mkdir, which could run code")
    assert not proof.exists()


def test_pickled_module_is_refused(tmp_path):
    """`torch.save(model)` pickles classes, which weights-only loading refuses: the error says what to save instead."""
    path = save(torch.nn.Linear(2, 2), tmp_path / "mulan.pt")
    message = is_refused(lambda: read_checkpoint(path, "mulan"), "torch.nn.modules.linear.Linear", "Save a plain state dict.")
    assert "weights_only" not in message  # torch's own text advises to switch the protection off


def test_hostile_codec_config_is_not_run(packages, good, tmp_path):
    """SoundStream keeps its arguments as a pickle inside the checkpoint, where weights-only loading does not look."""
    proof = tmp_path / "ran"
    path = save({**packages["codec"], "config": pickle.dumps({"channels": Runs(proof)})}, tmp_path / "codec.pt")
    is_refused(lambda: collect({**good, "codec": path}, {}), "codec: the saved config names", "mkdir, which could run code")
    assert not proof.exists()


# --- files of the wrong model


@pytest.mark.parametrize(
    ("asked", "given", "reason"),
    [
        ("fine", "coarse", "expected a fine transformer, but the file holds a coarse transformer."),
        ("quantizer", "mulan", "expected a MuLaN embedding quantizer, but the file holds a MuLaN model or a CLAP."),
        ("mulan", "codec", "expected a MuLaN model or a CLAP, but the file holds a codec (SoundStream or EnCodec)."),
        ("semantic", "quantizer", "expected a semantic transformer, but the file holds a MuLaN embedding quantizer."),
        ("codec", "semantic", "expected a codec (SoundStream or EnCodec), but the file holds a semantic transformer."),
    ],
)
def test_swapped_files(good, asked, given, reason):
    """Two options given the wrong way round."""
    is_refused(lambda: read_checkpoint(good[given], asked), f"--{asked} {given}.pt: {reason}")


def test_some_other_model(tmp_path):
    """A checkpoint of no model known here: the error shows a tensor of it, by which its owner knows it again."""
    path = save({"conv1.weight": torch.zeros(3)}, tmp_path / "resnet.pt")
    is_refused(lambda: read_checkpoint(path, "coarse"), "--coarse resnet.pt", "none of the models known here", "'conv1.weight'")


def test_missing_option(good):
    """All that is missing is named at once."""
    is_refused(lambda: collect({"semantic": good["semantic"]}, {}), "missing checkpoint: --coarse, --fine, --codec.")
    without = {name: path for name, path in good.items() if name != "quantizer"}
    is_refused(lambda: collect(without, {}), "the semantic transformer is conditioned, so it needs a quantizer: give --quantizer")


# --- files that do not fit together


def test_codec_of_another_codebook_size(packages, good, tmp_path):
    """Codes of one codec mean nothing to another: both files and both numbers are named."""
    state = {name: tensor[:, :-2] if name.endswith("_codebook.embed") else tensor for name, tensor in packages["codec"]["model"].items()}
    path = save(state, tmp_path / "other.pt")
    with pytest.raises(ExportError, match=re.escape("coarse.pt: codebook_size is 13, but other.pt: codebook_size is 11")):
        collect({**good, "codec": path}, {})
    is_refused(
        lambda: collect({**good, "codec": save({**packages["codec"], "model": state}, path)}, {}),
        "the saved config says codebook_size = 13, the tensors say 11",
    )


def test_other_vocabulary(changed):
    """Semantic tokens of one HuBERT, a coarse transformer of another."""
    sources = changed("semantic", lambda state: state.update({"semantic_embedding.weight": state["semantic_embedding.weight"][:-3]}))
    with pytest.raises(ExportError, match=r"semantic\.pt: num_semantic_tokens is 16, but coarse\.pt: num_semantic_tokens is 19"):
        collect(sources, {})


def test_quantizer_of_another_mulan(changed):
    """A quantizer for latents of another width."""

    def narrow(state):
        state |= {name: tensor[..., :12] for name, tensor in state.items() if name.endswith("_codebook.embed")}

    with pytest.raises(ExportError, match=r"quantizer\.pt: dim_latent is 12, but mulan\.pt: dim_latent is 16"):
        collect(changed("quantizer", narrow), {})


def test_uninitialised_codec(changed):
    """A SoundStream saved before its first training batch: every code decodes to the same."""
    name = "rq.rvqs.0.layers.1._codebook.initted"
    sources = changed("codec", lambda state: state.update({name: torch.tensor([False])}))
    with pytest.raises(ExportError, match=r"codec\.pt: its codebooks were never initialised; train the codec"):
        collect(sources, {})


def test_uninitialised_quantizer(changed):
    """Upstream fills the codebooks on the first training batch: a quantizer saved before that holds noise."""
    sources = changed("quantizer", lambda state: state.update({"rq.layers.1._codebook.initted": torch.tensor([False])}))
    with pytest.raises(ExportError, match=r"quantizer\.pt: its codebooks were never initialised; run it in training mode over your data"):
        collect(sources, {})


def test_untrained_tables_are_named(changed):
    """Conditioning drawn at random, which fits only the transformers that were trained with this very file."""
    (warning,) = warnings_of(collect(changed("quantizer", lambda state: None), {}))
    assert warning.startswith("quantizer.pt: the conditioning of semantic, coarse, fine is as it was drawn at random")
    trained = changed("quantizer", lambda state: [state[f"cond_embeddings.{stage}"].mul_(2) for stage in ("semantic", "coarse", "fine")])
    assert warnings_of(collect(trained, {})) == []


def test_quantizer_without_a_stage(changed):
    """A quantizer of two namespaces serves two stages, not three."""
    with pytest.raises(ExportError, match=r"quantizer\.pt: has no table for coarse, only semantic, fine"):
        collect(changed("quantizer", lambda state: state.pop("cond_embeddings.coarse")), {})


def test_other_mulan_inside_the_quantizer(changed):
    """The quantizer's own MuLaN must be the one given: its codes are codes of that model's latents."""
    sources = changed("mulan", lambda state: state.update({"text_to_latents.bias": state["text_to_latents.bias"] + 1}))
    is_refused(lambda: collect(sources, {}), "mulan.pt and quantizer.pt (its MuLaN) are not the same MuLaN: 'text_to_latents.bias' differs")


def test_one_mulan_with_two_losses(changed):
    """A MuLaN and the one inside its quantizer taken for strangers, since one file was saved with another loss, or by another release."""
    sources = changed("mulan", lambda state: state.update({"temperature": torch.tensor(1.0), "contrast.temperatures": torch.ones(1, 1, 1)}))
    assert collect(sources, {}).checkpoints["mulan"].name == "mulan.pt"


@pytest.mark.parametrize("kind", ["semantic", "coarse", "fine", "codec", "quantizer"])
def test_tensors_of_training_are_no_reason_to_refuse(changed, tmp_path, kind):
    """A loss's numbers and the counters of an average beside a model, for which the whole file would be refused."""
    extra = {"loss_fn.weight": torch.tensor([torch.nan]), "initted": torch.tensor(True), "n_averaged": torch.tensor(5)}
    build(collect(changed(kind, lambda state: state.update(extra)), {}), tmp_path)


def test_all_disagreements_at_once(packages, changed):
    """Two faults in two files are two lines of one message, so that nobody exports twice to learn of both."""
    sources = changed("quantizer", lambda state: state.update({"rq.layers.0._codebook.initted": torch.tensor([False])}))
    embedding = state_of(packages["semantic"])["semantic_embedding.weight"][:-3]
    sources |= {"semantic": changed("semantic", lambda state: state.update({"semantic_embedding.weight": embedding}))["semantic"]}
    with pytest.raises(ExportError) as caught:
        collect(sources, {})
    assert str(caught.value).count("\n  - ") == 2 and "initialised" in str(caught.value) and "num_semantic_tokens" in str(caught.value)


def test_condition_of_t5_width(good, packages, tmp_path):
    """AudioLM's usual condition is T5 text; a transformer trained so is refused with that hint, not with a shape."""
    from musiclm_deploy.model.upstream import load_upstream

    load_upstream()
    import audiolm_pytorch

    transformer = audiolm_pytorch.SemanticTransformer(
        num_semantic_tokens=19, dim=24, depth=2, heads=2, dim_head=8, audio_text_condition=True, cond_dim=768
    )
    path = save(transformer.state_dict(), tmp_path / "t5.pt")
    with pytest.raises(ExportError, match=r"t5\.pt: takes a condition of width 768, but quantizer\.pt gives 24 \(a model conditioned on"):
        collect({**good, "semantic": path}, {})


# --- tensors that are not what they should be


def build(collected: Collected, folder: Path) -> None:
    """Every step of the export that looks at a tensor, without the tracing, which takes half a minute."""
    for stage in STAGES:
        export_stage(stage, collected.checkpoints[stage], collected.settings[stage], folder, 2048, 1)
        quantizer = collected.checkpoints[f"quantizer.{stage}"].state
        conditioner_weights(quantizer)
    build_mulan(collected.settings["mulan"], collected.checkpoints["mulan"].state)
    build_decoder(collected.settings["codec"], collected.checkpoints["codec"].state)


DEEP = {
    "semantic": "transformer.layers.1.0.branch.to_kv.weight",
    "coarse": "transformer.layers.1.1.branch.context_norm.gamma",
    "fine": "pos_bias_mlp.2.bias",
    "codec": "decoder.2.1.fn.0.conv.weight",
    "mulan": "text.transformer.layers.1.0.to_q.weight",
}


@pytest.mark.parametrize("kind", DEEP)
def test_nan_weights(changed, good, tmp_path, kind):
    """A training that diverged: one NaN anywhere is found and the tensor named."""

    def spoil(state):
        state[DEEP[kind]] = state[DEEP[kind]].clone()
        state[DEEP[kind]].view(-1)[-1] = float("nan")

    sources = changed(kind, spoil)
    if kind == "mulan":
        sources.pop("quantizer")
        only = {f"quantizer.{stage}": save(_without_mulan(good["quantizer"]), tmp_path / "only.pt") for stage in STAGES}
        sources |= only
    is_refused(lambda: build(collect(sources, {}), tmp_path), kind, DEEP[kind], "NaN or infinite values; this checkpoint cannot be used.")


def _without_mulan(path: Path) -> Package:
    return {name: tensor for name, tensor in torch.load(path, weights_only=True).items() if not name.startswith("mulan.")}


def test_infinite_conditioning(changed, tmp_path):
    """The quantizer's tables are looked at as well, before anything is traced."""
    sources = changed("quantizer", lambda state: state.update({"cond_embeddings.fine": state["cond_embeddings.fine"] / 0}))
    state = collect(sources, {}).checkpoints["quantizer.fine"].state
    is_refused(lambda: export_conditioner(conditioner_weights(state), tmp_path / "c.onnx"), "table of fine holds NaN or infinite values")
    assert not (tmp_path / "c.onnx").exists()


@pytest.mark.parametrize("kind", ["semantic", "coarse", "fine"])
def test_every_missing_tensor_is_noticed(packages, tmp_path, kind):
    """Whichever tensor of a transformer is gone, the export refuses: also those whose absence reads like another variant of the model."""
    state = state_of(packages[kind])
    training_only = {"coarse": "to_semantic_logits.", "fine": "coarse_logit_weights"}.get(kind, "-")
    for name in state:
        if name.startswith(training_only):
            continue
        checkpoint = Checkpoint(f"{kind}.pt", {key: tensor for key, tensor in state.items() if key != name}, "2.4.0")
        with pytest.raises(ExportError, match=r"\.pt"):
            export_stage(kind, checkpoint, infer_transformer(kind, checkpoint, {}), tmp_path, 2048, 1)


@pytest.mark.parametrize(
    ("kind", "missing"),
    [("codec", "decoder.2.1.fn.0.conv.weight"), ("mulan", "text.cls_token"), ("quantizer", "rq.layers.2._codebook.embed")],
)
def test_missing_tensor(changed, tmp_path, kind, missing):
    """The other three as well name the tensor that is gone."""
    sources = changed(kind, lambda state: state.pop(missing))
    if kind == "mulan":  # the quantizer still holds a whole one
        is_refused(lambda: collect(sources, {}), "mulan.pt and quantizer.pt (its MuLaN) are not the same MuLaN", missing)
    else:
        with pytest.raises(ExportError, match=re.escape(missing)):
            build(collect(sources, {}), tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_tensor(changed, tmp_path, kind):
    """A tensor that nothing reads belongs to a variant whose effect would get lost silently."""
    name = {"codec": "decoder.9.extra", "quantizer": "rq.project_in.weight"}.get(kind, "transformer.extra")
    sources = changed(kind, lambda state: state.update({name: torch.zeros(2)}))
    with pytest.raises(ExportError, match=re.escape(name)):
        build(collect(sources, {}), tmp_path)


# --- formats that are accepted


def same_tensors(checkpoint: Checkpoint, expected: dict[str, torch.Tensor]) -> bool:
    return checkpoint.state.keys() == expected.keys() and all(tensor.equal(expected[name]) for name, tensor in checkpoint.state.items())


def test_packages_and_bare_state_dicts(packages, tmp_path):
    """A trainer's package and a bare state dict hold the same; only the package knows the version."""
    state = state_of(packages["coarse"])
    package = {"model": state, "optim": {"state": {}, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.99)}]}, "version": "2.3.1"}
    packed, bare = (read_checkpoint(save(content, tmp_path / "c.pt"), "coarse") for content in (package, state))
    assert same_tensors(packed, state) and same_tensors(bare, state)
    assert (packed.version, bare.version) == ("2.3.1", None)
    assert packed.sha256 and packed.sha256 != bare.sha256


def test_ema(tiny_models, tmp_path):
    """With an EMA the averaged weights are taken, not the last step's: in SoundStream's trainer package and from ema-pytorch alone."""
    from ema_pytorch import EMA

    model = copy.deepcopy(tiny_models["semantic"])
    ema = EMA(model, update_after_step=0)
    average: Any = ema.ema_model
    with torch.no_grad():
        for parameter in average.parameters():
            parameter += 1
    averaged = average.state_dict()
    state = ema.state_dict()
    assert {"initted", "step"} < state.keys() and any(name.startswith("online_model.") for name in state)
    assert same_tensors(read_checkpoint(save(state, tmp_path / "s.pt"), "semantic"), averaged)
    package = {"model": model.state_dict(), "optim": {}, "config": b"pickled", "version": "2.4.0", "ema_model": state}
    found = read_checkpoint(save(package, tmp_path / "s.pt"), "semantic")
    assert same_tensors(found, averaged) and found.version == "2.4.0" and found.pickled_config == b"pickled"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(packages, tmp_path, dtype):
    """Weights saved in half precision are exported as the float32 numbers that they are."""
    sources = {}
    for kind, package in packages.items():
        halved = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state_of(package).items()}
        sources[kind] = save({**package, "model": halved} if "model" in package else halved, tmp_path / f"{kind}.pt")
    collected = collect(sources, {})
    build(collected, tmp_path)
    name = "transformer.layers.0.0.branch.to_q.weight"
    read = collected.checkpoints["coarse"].array(name, *state_of(packages["coarse"])[name].shape)
    assert read.dtype == "float32" and torch.from_numpy(read).equal(state_of(packages["coarse"])[name].to(dtype).float())


def test_one_quantizer_per_stage(packages, good, tmp_path):
    """Three quantizers of one namespace each: one for the name it was trained under, whatever that is."""
    own = _without_mulan(good["quantizer"])
    sources = {name: path for name, path in good.items() if name != "quantizer"}
    for stage in STAGES:
        state = {name: tensor for name, tensor in own.items() if not name.startswith("cond_embeddings.")}
        state["cond_embeddings.default"] = own[f"cond_embeddings.{stage}"]
        sources[f"quantizer.{stage}"] = save(state, tmp_path / f"{stage}.pt")
    collected = collect(sources, {})
    for stage in STAGES:
        (table,) = conditioner_weights(collected.checkpoints[f"quantizer.{stage}"].state).values()
        assert table[1].equal(own[f"cond_embeddings.{stage}"])


def test_mulan_inside_the_quantizer(packages, good):
    """`MuLaNEmbedQuantizer.state_dict()` holds its MuLaN: then no other file is needed, and without either the export says so."""
    without = {name: path for name, path in good.items() if name != "mulan"}
    collected = collect(without, {})
    assert same_tensors(collected.checkpoints["mulan"], state_of(packages["mulan"]))
    assert collected.checkpoints["mulan"].sha256 == collected.checkpoints["quantizer.fine"].sha256


def test_no_mulan_anywhere(good, tmp_path):
    """A quantizer saved without its MuLaN, and no --mulan."""
    sources = {name: path for name, path in good.items() if name != "mulan"}
    sources["quantizer"] = save(_without_mulan(good["quantizer"]), tmp_path / "q.pt")
    is_refused(lambda: collect(sources, {}), "missing checkpoint: --mulan (no quantizer file holds one).")


# --- overrides


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"sematic": {}}, "the overrides name 'sematic'; known are semantic, coarse, fine, codec, mulan, quantizer, wav2vec."),
        ({"semantic": {"max_lenght": 1000}}, "semantic: unknown override 'max_lenght'. Known: dim,"),
        ({"codec": {"strides": [2, 4]}}, "codec: the override strides = [2, 4] contradicts the checkpoint, which says (2, 4, 5, 8)"),
        ({"fine": {"heads": 3}}, "fine: the override heads = 3 contradicts the checkpoint, which says 2"),
        ({"coarse": 7}, "the overrides of coarse must be an object of argument names and values, got 7."),
        ({"mulan": [["dim_latent", 16]]}, "the overrides of mulan must be an object of argument names and values"),
    ],
)
def test_bad_overrides(good, overrides, reason):
    """A typing error in an override is never silently ignored, and an override cannot contradict the file."""
    is_refused(lambda: collect(good, overrides), reason)


def test_overrides_are_checked_before_any_file_is_read(tmp_path):
    """Reading gigabytes comes after what can be said at once."""
    is_refused(lambda: collect({kind: tmp_path / "none.pt" for kind in KINDS}, {"sematic": {}}), "the overrides name 'sematic'")


def test_good_override(good):
    """Repeating what the file says is no contradiction, and what it cannot tell is taken and marked."""
    settings = collect(good, {"semantic": {"heads": 2, "max_length": 700}, "codec": {"strides": [2, 4, 5, 8]}}).settings
    assert settings["semantic"]["max_length"] == 700
    assert dict(settings["semantic"].items())["max_length"].source == "override"


# --- inference


def upstream_semantic(**arguments: Any) -> dict[str, torch.Tensor]:
    from musiclm_deploy.model.upstream import load_upstream

    load_upstream()
    import audiolm_pytorch

    sizes: dict[str, Any] = {"num_semantic_tokens": 19, "dim": 24, "depth": 2, "heads": 2, "dim_head": 8, "audio_text_condition": True}
    return audiolm_pytorch.SemanticTransformer(**sizes | arguments).state_dict()


def test_prefix_conditioning_needs_a_word(good, tmp_path):
    """A prefix leaves no tensor behind: the export asks instead of dropping the prompt, and the hint it gives works."""
    sources = {**good, "semantic": save(upstream_semantic(cond_as_self_attn_prefix=True), tmp_path / "prefix.pt")}
    hint = '{"semantic": {"cond_as_self_attn_prefix": true}}'
    is_refused(lambda: collect(sources, {}), "prefix.pt: no cross-attention", hint)
    collected = collect(sources, {"semantic": {"cond_as_self_attn_prefix": True}})
    assert collected.conditioned == ["semantic", "coarse", "fine"]
    unconditioned = collect(sources, {"semantic": {"cond_as_self_attn_prefix": False}})
    assert unconditioned.conditioned == ["coarse", "fine"]


def test_version_that_is_none(packages):
    """A fork's version string must not be guessed at."""
    checkpoint = Checkpoint("fine.pt", state_of(packages["fine"]), "nightly")
    words = "fine.pt: the version 'nightly' is not a version number. Say with --config which release of audiolm-pytorch trained the model"
    is_refused(lambda: infer_transformer("fine", checkpoint, {}), words)


def test_names_from_before_2_4(tmp_path):
    """Before hyper-connections (2.4) a branch had no wrapper: the same model under the older names gives the same graph."""
    state = upstream_semantic(num_residual_streams=1)
    older = {name.replace(".branch.", "."): tensor for name, tensor in state.items()}
    assert older.keys() != state.keys()
    graphs = []
    for name, tensors, version in (("new.pt", state, "2.4.0"), ("old.pt", older, "2.3.0")):
        checkpoint = Checkpoint(name, tensors, version)
        settings = infer_transformer("semantic", checkpoint, {})
        assert (settings["num_residual_streams"], settings["depth"], settings["add_value_residual"]) == (1, 2, True)
        folder = tmp_path / version
        folder.mkdir()
        export_stage("semantic", checkpoint, settings, folder, 2048, 1)
        graphs.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert graphs[0] == graphs[1] and len(graphs[0]) == 4


# --- the whole export


def test_refusal_leaves_nothing_behind(good, tmp_path):
    """A refused checkpoint leaves neither a bundle nor the folder that it was being written in."""
    (tmp_path / "fine.pt").write_bytes(b"no checkpoint")
    sources = {**good, "fine": tmp_path / "fine.pt"}
    is_refused(lambda: export_checkpoints(**sources, out=tmp_path / "bundle", quiet=True), "--fine", "fine.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["fine.pt"]


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        ("semantic", "transformer.layers.1.0.branch.to_out.0.weight"),
        ("coarse", "coarse_quantize_embedding.weight"),
        ("fine", "transformer.layers.0.2.branch.5.weight"),
    ],
)
def test_a_tensor_of_another_shape_is_named(stage: str, name: str, tiny_models, tmp_path: Path) -> None:
    """Fault: numpy's words about a reshape, for a checkpoint put together from two models."""
    state = dict(tiny_models[stage].state_dict())
    state[name] = torch.cat([state[name], state[name][:1]])
    checkpoint = Checkpoint(f"{stage}.pt", state, "2.4.0")
    settings = infer_transformer(stage, checkpoint, {})
    with pytest.raises(ExportError, match=rf"{stage}\.pt: the tensor '{re.escape(name)}' has shape \[.*\], expected \[.*\]"):
        export_stage(stage, checkpoint, settings, tmp_path, 32, 1)


@pytest.mark.parametrize(("name", "value"), [("unique_consecutive", 3), ("max_length", "long"), ("tokens_per_second", True)])
def test_an_override_of_another_type_is_refused(name: str, value, tiny_models) -> None:
    """Fault: a value that surfaces as a TypeError somewhere in the export, or not at all."""
    checkpoint = Checkpoint("semantic.pt", tiny_models["semantic"].state_dict(), "2.4.0")
    with pytest.raises(ExportError, match=rf"semantic: the override {name} must be of type .*; got {value!r}"):
        infer_transformer("semantic", checkpoint, {name: value})
