"""HuBERT with k-means: fairseq's and Hugging Face's files give the tokens of an independent computation, nothing in them is executed, and
the graph of a bundle gives the same."""

import argparse
import json
import shutil
import sys
import warnings
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import joblib
import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file
from sklearn.cluster import MiniBatchKMeans
from support.hubert import CFG, HEADS, LAYERS, WIDTH, fairseq_state, tiny_hubert
from support.kmeans_files import CALLED, Hostile, with_centres
from support.processes import in_fresh_process
from torch import Tensor
from torch.nn import functional as F

import musiclm_deploy as md
from musiclm_deploy.export.collect import collect
from musiclm_deploy.export.errors import ExportError
from musiclm_deploy.export.export import records_of
from musiclm_deploy.export.live import save_wav2vec
from musiclm_deploy.export.semantic_tokens import build_tokenizer, export_wav2vec, read_hubert_kmeans
from musiclm_deploy.export.validate import tokenizer_error
from musiclm_deploy.model import HubertKmeans
from musiclm_deploy.model.hubert_files import read_hubert
from musiclm_deploy.model.upstream import load_upstream
from musiclm_deploy.runtime.bundle import MANIFEST, Bundle, SemanticTokenizer

load_upstream()
import audiolm_pytorch  # noqa: E402 (imports only after load_upstream)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.1


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Per size the model, its checkpoint in fairseq's layout, its folders in Hugging Face's; a k-means model, and its centres."""
    root = tmp_path_factory.mktemp("hubert")
    found: dict[str, Any] = {}
    for size, large in (("base", False), ("large", True)):
        model = tiny_hubert(large)
        cfg = {"model": {**CFG, "layer_norm_first": large}, "task": {"normalize": large}}
        package = {"args": None, "cfg": cfg, "model": fairseq_state(model, large), "extra_state": {"epoch": 3}}
        torch.save(package, root / f"{size}.pt")
        model.save_pretrained(root / size)
        found |= {size: model, f"{size}.pt": root / f"{size}.pt", f"{size}.folder": root / size}
    with torch.no_grad():
        frames = found["base"](noise(6, 30_000, seed=9), output_hidden_states=True).hidden_states[3].flatten(0, 1)
    kmeans = MiniBatchKMeans(19, random_state=0, n_init=1).fit(frames.numpy())  # type: ignore[arg-type]
    joblib.dump(kmeans, root / "km.bin")
    return found | {"kmeans": kmeans, "km.bin": root / "km.bin"}


# --- tokens


def fairseq_features(state: dict[str, Tensor], wave: Tensor, layers: int, large: bool) -> Tensor:
    """fairseq's forward pass up to `output_layer`, written out from its names in float64."""
    p = {name: tensor.double() for name, tensor in state.items()}

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"])

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, p[f"{name}.weight"], p[f"{name}.bias"])

    x = wave.double()[:, None]
    for i, stride in enumerate((5, 2, 2, 2, 2, 2, 2)):
        conv = f"feature_extractor.conv_layers.{i}"
        x = F.conv1d(x, p[f"{conv}.0.weight"], p.get(f"{conv}.0.bias"), stride=stride)
        if large:
            x = norm(x.mT, f"{conv}.2.1").mT
        elif i == 0:
            x = F.group_norm(x, x.shape[1], p[f"{conv}.2.weight"], p[f"{conv}.2.bias"])
        x = F.gelu(x)
    x = linear(norm(x.mT, "layer_norm"), "post_extract_proj")
    g, v = p["encoder.pos_conv.0.weight_g"], p["encoder.pos_conv.0.weight_v"]
    kernel = g * v / v.square().sum((0, 1), keepdim=True).sqrt()
    x = x + F.gelu(F.conv1d(x.mT, kernel, p["encoder.pos_conv.0.bias"], padding=8, groups=4)[..., :-1]).mT
    x = x if large else norm(x, "encoder.layer_norm")
    for i in range(layers):
        layer = f"encoder.layers.{i}"
        y = norm(x, f"{layer}.self_attn_layer_norm") if large else x
        q, k, v = (linear(y, f"{layer}.self_attn.{name}_proj") for name in "qkv")
        attended = (q @ k.mT / WIDTH**0.5).softmax(-1) @ v
        x = x + linear(attended, f"{layer}.self_attn.out_proj")
        x = x if large else norm(x, f"{layer}.self_attn_layer_norm")
        y = norm(x, f"{layer}.final_layer_norm") if large else x
        x = x + linear(F.gelu(linear(y, f"{layer}.fc1")), f"{layer}.fc2")
        x = x if large else norm(x, f"{layer}.final_layer_norm")
    return x


@pytest.mark.parametrize("size", ["base", "large"])
@pytest.mark.parametrize("layer", [1, 3, LAYERS])
def test_both_layouts_equal_an_independent_computation(files: dict[str, Any], size: str, layer: int) -> None:
    """A tensor under a wrong name, a layer too many or too few, a final norm where fairseq has none, a wrong order of the norms."""
    large, wave = size == "large", noise(2, 8123)
    expected = fairseq_features(fairseq_state(files[size], large), wave, layer, large)
    distances = np.linalg.norm(expected.numpy()[:, :, None] - files["kmeans"].cluster_centers_.astype(np.float64), axis=-1)
    for path in (files[f"{size}.pt"], files[f"{size}.folder"]):
        tokenizer = HubertKmeans.from_files(path, files["km.bin"], output_layer=layer)
        scale = expected.abs().max().item()
        torch.testing.assert_close(tokenizer.features(wave).double(), expected, rtol=0, atol=2e-6 * scale)  # fp32
        np.testing.assert_array_equal(tokenizer(wave), distances.argmin(-1))
        assert (tokenizer.downsample_factor, tokenizer.min_samples, tokenizer.codebook_size) == (320, 400, 19)
        assert tokenizer(wave).shape == (2, 25) and len(tokenizer.hubert.encoder.layers) == layer


def test_tokens_are_what_upstream_computes(files: dict[str, Any]) -> None:
    """Another end of a wave cut away, other ties or shapes: upstream's own forward over the same network, behind fairseq's interface."""

    class Fairseq(torch.nn.Module):
        def forward(self, source: Tensor, features_only: bool, mask: bool, output_layer: int) -> dict[str, Tensor]:
            assert features_only and not mask
            return {"x": files["base"](source, output_hidden_states=True).hidden_states[output_layer]}

    theirs: Any = audiolm_pytorch.HubertWithKmeans.__new__(audiolm_pytorch.HubertWithKmeans)
    torch.nn.Module.__init__(theirs)
    theirs.target_sample_hz, theirs.seq_len_multiple_of, theirs.output_layer = 16000, 320, 3
    theirs.model, theirs.kmeans = Fairseq(), files["kmeans"]
    theirs.register_buffer("cluster_centers", torch.from_numpy(files["kmeans"].cluster_centers_))
    ours = HubertKmeans.from_files(files["base.pt"], files["km.bin"], seq_len_multiple_of=320, output_layer=3)
    wave = noise(3, 9_999, seed=5)
    for arguments in ({}, {"flatten": False}, {"input_sample_hz": 22050}):
        assert torch.equal(ours(wave, **arguments), theirs(wave, **arguments))
    assert ours(wave).unique().numel() > 5


def test_upstream_trains_on_its_tokens(files: dict[str, Any]) -> None:
    """Dropout in HuBERT while its tokens train a transformer; HuBERT's weights among those that are trained."""
    tokenizer = HubertKmeans.from_files(files["base.pt"], files["km.bin"], output_layer=3)
    semantic = audiolm_pytorch.SemanticTransformer(num_semantic_tokens=19, dim=8, depth=1, heads=1, dim_head=8)
    wrapper: Any = audiolm_pytorch.SemanticTransformerWrapper(transformer=semantic, wav2vec=tokenizer)
    wave = noise(2, 8000)
    before = tokenizer(wave)
    wrapper.train()
    assert tokenizer.training and torch.equal(tokenizer(wave), before)
    wrapper(raw_wave=wave, return_loss=True).backward()
    assert not any(parameter.requires_grad for parameter in tokenizer.parameters())


def test_it_needs_no_upstream(files: dict[str, Any]) -> None:
    """A fresh process, such as the export's validation, in which transformers finds our kernels/ and a torchaudio that does not load."""
    in_fresh_process(f"""
import sys, torch
sys.modules["audiolm_pytorch"] = sys.modules["fairseq"] = sys.modules["joblib"] = sys.modules["sklearn"] = None
from musiclm_deploy.model import HubertKmeans
tokenizer = HubertKmeans.from_files({str(files["base.pt"])!r}, {str(files["km.bin"])!r}, output_layer=3)
assert tokenizer(torch.randn(1, 800), input_sample_hz=32000).shape == (1, 1)
""")


def test_normalized_waves(files: dict[str, Any]) -> None:
    """Waves normalised over the batch, or with another deviation than fairseq's `F.layer_norm(wave, wave.shape)`."""
    plain = HubertKmeans.from_files(files["large.pt"], files["km.bin"], output_layer=3)
    normal = HubertKmeans.from_files(files["large.pt"], files["km.bin"], output_layer=3, normalize=True)
    wave = noise(2, 5000) * torch.tensor([[1.0], [7.0]]) + 0.3
    rows = torch.stack([F.layer_norm(row, row.shape) for row in wave])
    torch.testing.assert_close(normal.features(wave), plain.features(rows), rtol=0, atol=1e-4)  # fp32 after four layers
    assert (normal.features(wave) - plain.features(wave)).abs().max() > 0.1


@pytest.mark.parametrize("size", ["base", "large"])
def test_a_live_tokenizer_is_saved_whole(files: dict[str, Any], tmp_path: Path, size: str) -> None:
    """`export_musiclm` with a HubertKmeans that leaves it out, or exports another layer, rate or scale than the live one has."""
    live = HubertKmeans.from_files(files[f"{size}.pt"], files["km.bin"], output_layer=3, target_sample_hz=8000, normalize=size == "large")
    paths: dict[str, Path] = {}
    told = save_wav2vec(live, tmp_path, paths)
    checkpoints, settings = read_hubert_kmeans(paths["hubert"], paths["kmeans"], told)
    again = build_tokenizer(checkpoints["wav2vec"], settings)
    wave = noise(2, 5000)
    assert torch.equal(again.features(wave), live.features(wave)) and torch.equal(again(wave), live(wave))
    assert (again.target_sample_hz, len(again.hubert.encoder.layers)) == (8000, 3)  # type: ignore[union-attr]


def test_a_tokenizer_that_cannot_be_saved_is_named(tmp_path: Path) -> None:
    """A bundle without a tokenizer, and nobody said so; a live model without one must not be complained about."""
    theirs: Any = audiolm_pytorch.HubertWithKmeans.__new__(audiolm_pytorch.HubertWithKmeans)
    with pytest.warns(UserWarning, match=r"no semantic tokenizer: a wav2vec of type HubertWithKmeans .* HubertKmeans\.from_files"):
        assert save_wav2vec(theirs, tmp_path, {}) == {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert save_wav2vec(None, tmp_path, {}) == {} and not list(tmp_path.iterdir())


# --- files


def test_what_fairseq_does_not_tell(files: dict[str, Any], tmp_path: Path) -> None:
    """Settings of a checkpoint taken for told that nobody told, or told ones ignored: `args` before fairseq 0.10.1, or nothing at all."""
    state = fairseq_state(files["large"], True)
    args = argparse.Namespace(encoder_attention_heads=2, layer_norm_first=False, conv_feature_layers="[(16,10,4)] + [(16,3,2)] * 6")
    torch.save({"args": args, "model": state}, tmp_path / "old.pt")
    facts = read_hubert(tmp_path / "old.pt").facts
    told = {name: (facts[name].value, facts[name].told) for name in ("num_attention_heads", "do_stable_layer_norm", "conv_stride")}
    assert told == {"num_attention_heads": (2, True), "do_stable_layer_norm": (False, True), "conv_stride": ((4, 2, 2, 2, 2, 2, 2), True)}

    torch.save({"model": state}, tmp_path / "bare.pt")
    facts = read_hubert(tmp_path / "bare.pt").facts
    told = {name: (facts[name].value, facts[name].told) for name in told}
    assert told == {"num_attention_heads": (1, False), "do_stable_layer_norm": (True, False), "conv_stride": ((5, 2, 2, 2, 2, 2, 2), False)}


def test_hugging_face_folders(files: dict[str, Any], tmp_path: Path) -> None:
    """Old names of weight norm, the prefix of a model with a head, half precision, pytorch_model.bin: as folders in the wild have them."""
    names = {".conv.parametrizations.weight.original0": ".conv.weight_g", ".conv.parametrizations.weight.original1": ".conv.weight_v"}
    state = {}
    for name, tensor in files["base"].state_dict().items():
        for today, before in names.items():
            name = name.replace(today, before)
        state[f"hubert.{name}"] = tensor.half()
    torch.save(state | {"lm_head.weight": torch.ones(32, WIDTH)}, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_bytes((files["base.folder"] / "config.json").read_bytes())
    tokenizer = HubertKmeans.from_files(tmp_path, files["km.bin"], output_layer=3)
    exact = HubertKmeans.from_files(files["base.folder"], files["km.bin"], output_layer=3)
    wave = noise(1, 3000)
    assert tokenizer.features(wave).dtype == torch.float32
    torch.testing.assert_close(tokenizer.features(wave), exact.features(wave), rtol=0, atol=0.05)  # weights of half precision


@pytest.fixture
def fairseq_module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of fairseq's name, importable while a file is written and gone when it is read."""
    module = ModuleType("fairseq.data.dictionary")
    exec("class Dictionary:\n    def __init__(self):\n        self.symbols = ['a', 'b']\n", module.__dict__)
    monkeypatch.setitem(sys.modules, "fairseq", ModuleType("fairseq"))
    monkeypatch.setitem(sys.modules, "fairseq.data", ModuleType("fairseq.data"))
    monkeypatch.setitem(sys.modules, "fairseq.data.dictionary", module)
    return module


def test_objects_of_fairseq_are_stood_in_for(
    files: dict[str, Any], fairseq_module: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """hubert_base_ls960.pt holds a Dictionary, for which torch's loader refuses the file and torch.load imports fairseq."""
    package = torch.load(files["base.pt"], weights_only=True)
    beside: dict[str, Any] = {
        "dictionaries": [fairseq_module.Dictionary()],
        "best": np.float64(3),
        "cache": defaultdict(dict),
        "kind": dict,
    }
    torch.save(package | {"task_state": beside}, tmp_path / "hubert.pt")
    for name in ("fairseq", "fairseq.data", "fairseq.data.dictionary"):
        monkeypatch.delitem(sys.modules, name)
    assert read_hubert(tmp_path / "hubert.pt").facts == read_hubert(files["base.pt"]).facts
    assert "fairseq" not in sys.modules


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_the_tensors_of_a_folder_alone(files: dict[str, Any], tmp_path: Path, name: str) -> None:
    """Fault: the file inside of a folder of transformers is given, and the words are about fairseq."""
    torch.save(files["base"].state_dict(), tmp_path / name)
    with pytest.raises(ValueError, match=r"tensors of transformers, whose settings are in config\.json\. Give the folder that holds both"):
        read_hubert(tmp_path / name)


@pytest.mark.parametrize("name", ["checkpoint", "folder"])
def test_hostile_checkpoints_are_refused(files: dict[str, Any], tmp_path: Path, name: str) -> None:
    """An object beside the tensors that runs a command when the checkpoint is read."""
    CALLED.clear()
    path = tmp_path
    if name == "folder":
        (tmp_path / "config.json").write_bytes((files["base.folder"] / "config.json").read_bytes())
        torch.save({**files["base"].state_dict(), "more": Hostile()}, tmp_path / "pytorch_model.bin")
    else:
        path = tmp_path / "hubert.pt"
        torch.save({**torch.load(files["base.pt"], weights_only=True), "task_state": Hostile()}, path)
    with pytest.raises(ValueError, match=r"refused, because it names .*support\.kmeans_files\.called, which could run code"):
        read_hubert(path)
    assert not CALLED


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("name", ["base.pt", "model.safetensors"])
def test_truncated_checkpoints(files: dict[str, Any], tmp_path: Path, name: str, share: float) -> None:
    """Weights of an interrupted copy."""
    source = files["base.pt"] if name == "base.pt" else files["base.folder"] / name
    data = source.read_bytes()
    (tmp_path / name).write_bytes(data[: int(share * len(data))])
    (tmp_path / "config.json").write_bytes((files["base.folder"] / "config.json").read_bytes())
    with pytest.raises(ValueError, match=r"(a damaged file of|empty: 0 bytes).*Was it copied whole\?"):
        read_hubert(tmp_path / name if name == "base.pt" else tmp_path)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda state: {"model": state | {"vector_quantizer.embedding": torch.ones(3)}}, "a quantizer of its own, which is not covered"),
        (lambda state: {"model": state | {"encoder.surprise": torch.ones(3)}}, "encoder.surprise are not HuBERT's"),
        (lambda state: {"model": {n: t for n, t in state.items() if ".fc1." not in n}}, "not a whole HuBERT model"),
        (lambda state: {"model": state | {"layer_norm.bias": torch.full((16,), torch.nan)}}, "NaN"),
        (lambda state: {"model": {}}, "it holds no tensors"),
        (lambda state: state, "a dictionary with the entry 'model'"),
        (lambda state: {"model": state, "cfg": {"model": {"activation_fn": "relu"}}}, "'relu' is not covered"),
    ],
)
def test_other_checkpoints(files: dict[str, Any], tmp_path: Path, change: Any, message: str) -> None:
    """A wav2vec model, or half a HuBERT, taken for a whole one."""
    torch.save(change(fairseq_state(files["base"], False)), tmp_path / "hubert.pt")
    with pytest.raises(ValueError, match=message):
        read_hubert(tmp_path / "hubert.pt")


def test_the_doctor_reads_a_hubert_without_its_kmeans(files: dict[str, Any], tmp_path: Path) -> None:
    """Fault: the doctor finds nothing to refuse in a vq-wav2vec file, as long as the k-means model is not there."""
    path, state = tmp_path / "hubert.pt", fairseq_state(files["base"], False)
    torch.save({"model": state | {"vector_quantizer.embedding": torch.ones(3)}}, path)
    assert md.diagnose(path).faults == [
        f"--hubert {path}: this is a wav2vec model with a quantizer of its own, which is not covered; HuBERT with k-means is."
    ]
    report = md.diagnose(files["base.pt"])
    assert (report.faults, report.missing[-1]) == ([], "kmeans")


@pytest.mark.parametrize(
    "config, message",
    [
        ({"model_type": "wavlm"}, "of type 'wavlm', expected 'hubert'"),
        ({"conv_stride": [5, 2]}, "does not give width"),
        ({"num_attention_heads": "many"}, "does not give width"),
        ({"intermediate_size": 49}, "do not fit together"),
        ({"hidden_act": 3}, "transformers refuses"),
        ({"hidden_act": "12"}, "transformers refuses"),
        ({"hidden_size": 1 << 40}, "wide"),
    ],
)
def test_other_folders(files: dict[str, Any], tmp_path: Path, config: Any, message: str) -> None:
    """Another model of the same shape of folder; a config that asks for terabytes."""
    values = json.loads((files["base.folder"] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | config))
    save_file(files["base"].state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        HubertKmeans.from_files(tmp_path, files["km.bin"], output_layer=3)


@pytest.mark.parametrize(
    "arguments, message",
    [({"output_layer": 5}, "between 1 and the model's 4 layers, got 5"), ({"output_layer": 0}, "got 0"), ({}, "got 9")],
)
def test_layers_beyond_the_model(files: dict[str, Any], arguments: Any, message: str) -> None:
    """fairseq would run all layers and say nothing."""
    with pytest.raises(ValueError, match=message):
        HubertKmeans.from_files(files["base.pt"], files["km.bin"], **arguments)


# --- the stage wav2vec


@pytest.fixture(scope="module", params=[("base", False), ("large", True)], ids=["base", "large, normalised"])
def stage(files: dict[str, Any], request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tokenizer in PyTorch, the record of its graph, and the folder with the graph."""
    size, normalize = request.param
    overrides = {"output_layer": 3, "normalize": normalize}
    checkpoints, settings = read_hubert_kmeans(files[f"{size}.pt"], files["km.bin"], overrides)
    tokenizer, folder = build_tokenizer(checkpoints["wav2vec"], settings), tmp_path_factory.mktemp("graph")
    return tokenizer, export_wav2vec(tokenizer, settings, folder), folder


def test_the_graph_gives_the_tokens_of_pytorch(stage: Any) -> None:
    """A graph with the sizes of its tracing in it, a wave a sample longer than a frame, one frame alone."""
    tokenizer, record, folder = stage
    assert record == SemanticTokenizer("wav2vec.onnx", "hubert", 16000, 320, 400, 19, HEADS)
    session = onnxruntime.InferenceSession(folder / "wav2vec.onnx")
    for rows, samples in ((1, 400), (3, 719), (2, 720), (1, 16_001)):
        wave = noise(rows, samples, seed=samples)
        np.testing.assert_array_equal(session.run(None, {"wave": wave.numpy()})[0], tokenizer(wave))


@pytest.mark.parametrize("stage", [("base", False)], indirect=True, ids=["base"])
def test_a_bundle_with_hubert(
    stage: Any, files: dict[str, Any], tiny_bundle: Path, tiny_checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """A record of the stage that the runtime cannot follow, a validation that finds no fault in another layer's tokens."""
    sources = {**tiny_checkpoints, "hubert": files["base.folder"], "kmeans": files["km.bin"]}
    collected = collect(sources, {"wav2vec": {"output_layer": 3}})
    assert all(collected.checkpoints[name].sha256 for name in ("wav2vec", "wav2vec.kmeans"))
    tokenizer, record, folder = stage
    out = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    shutil.copytree(folder, out, dirs_exist_ok=True)
    manifest = Bundle.open(tiny_bundle).manifest
    (out / MANIFEST).unlink()
    manifest = replace(manifest, wav2vec=record, files=records_of(out))
    (out / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")

    wave = noise(1, 9000)
    with md.load(out, device="cpu") as model:
        np.testing.assert_array_equal(model.semantic_tokens((wave.numpy(), 16_000)), tokenizer(wave))
        torch.manual_seed(0)  # as the validation does
        assert tokenizer_error(model, collected) < 1e-4
        torch.manual_seed(0)
        assert tokenizer_error(model, collect(sources, {"wav2vec": {"output_layer": 2}})) > 1e-2
        with pytest.raises(MemoryError, match="wav2vec"):
            model.semantic_tokens((np.zeros(60_000_000, np.float32), 16_000))


@pytest.mark.parametrize(
    "given, overrides, message",
    [
        (["hubert"], {}, "got --hubert"),
        (["kmeans"], {}, "got --kmeans"),
        (["hubert", "kmeans", "semantic-features"], {}, "got --semantic-features, --hubert, --kmeans"),
        (["hubert", "kmeans"], {"wav2vec": {"output_layers": 3}}, "unknown override 'output_layers'"),
        (["hubert", "kmeans"], {"wav2vec": {"num_attention_heads": 2}}, "contradicts the checkpoint, which says 1"),
        (["hubert", "kmeans"], {"wav2vec": {"target_sample_hz": 24000}}, "gives 75 tokens a second"),
        (["hubert", "kmeans"], {"wav2vec": {"target_sample_hz": 0.5}}, "target_sample_hz must be a whole number"),
    ],
)
def test_what_the_export_refuses(files: dict[str, Any], tiny_checkpoints, given: list[str], overrides: Any, message: str) -> None:
    """Half a tokenizer, two of them, or a setting that nobody reads."""
    paths = {"hubert": files["base.pt"], "kmeans": files["km.bin"], "semantic-features": files["km.bin"]}
    with pytest.raises(ExportError, match=message):
        collect({**tiny_checkpoints, **{name: paths[name] for name in given}}, overrides)


def test_wrong_number_of_clusters(files: dict[str, Any], tiny_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Tokens beyond the vocabulary of the semantic transformer; centres of another layer's width; a file named by its option."""
    sources = {**tiny_checkpoints, "hubert": files["base.pt"], "kmeans": tmp_path / "km.bin"}
    joblib.dump(with_centres(files["kmeans"], np.ones((18, WIDTH), np.float32)), tmp_path / "km.bin")
    with pytest.raises(ExportError, match=r"codebook_size is 18, but semantic.pt: num_semantic_tokens is 19"):
        collect(sources, {})
    joblib.dump(with_centres(files["kmeans"], np.ones((19, 3), np.float32)), tmp_path / "km.bin")
    collected = collect(sources, {"wav2vec": {"output_layer": 3}})
    with pytest.raises(ExportError, match=r"base.pt: cannot be built. the cluster centres are \[19, 3\], .* 64 wide"):
        build_tokenizer(collected.checkpoints["wav2vec"], collected.settings["wav2vec"])
    (tmp_path / "km.bin").write_bytes(b"not a pickle")
    with pytest.raises(ExportError, match=r"--kmeans .*km.bin: not a file of joblib"):
        collect(sources, {})
    with pytest.raises(ExportError, match=r"--hubert .*: there is no such file"):
        collect({**sources, "hubert": tmp_path / "nothing.pt"}, {})
