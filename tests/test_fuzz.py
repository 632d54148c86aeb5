"""Checkpoints and bundles with something wrong in them, drawn at random from a seed: each is refused in a sentence or is a file that can be
used; nothing in it runs, nothing crashes, and no small file takes gigabytes.

`MUSICLM_FUZZ=2000 pytest tests/test_fuzz.py` makes the run long; `MUSICLM_FUZZ_SEED` begins elsewhere.
"""

import json
import os
import pickle
import resource
import shutil
import signal
import traceback
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.cluster import MiniBatchKMeans
from support import fuzzing
from support.encodec import hugging_face, small
from support.fuzzing import Dice, State
from support.hubert import CFG, fairseq_state, tiny_hubert

from musiclm_deploy.export.checkpoint import read_checkpoint
from musiclm_deploy.export.doctor import diagnose
from musiclm_deploy.export.errors import ExportError
from musiclm_deploy.model import HubertKmeans, MelKmeans
from musiclm_deploy.model.sklearn_kmeans import read_cluster_centers
from musiclm_deploy.runtime.bundle import FORMAT, MANIFEST, Bundle, BundleError

CASES = int(os.environ.get("MUSICLM_FUZZ", "24"))  # of checkpoints, and as many of bundles
SEED = int(os.environ.get("MUSICLM_FUZZ_SEED", "0"))
KINDS = ("semantic", "coarse", "fine", "codec", "mulan", "quantizer")
GIGABYTE = 1 << 30
SECONDS = 60  # of processor time, which a busy machine does not change; most cases take a tenth of a second
pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the size of this process is read from /proc")


@contextmanager
def gigabyte_more() -> Iterator[None]:
    """One gigabyte more than now, and no more: what is not refused before it is allocated shows as a MemoryError."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + GIGABYTE, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture
def little_memory() -> Iterator[None]:
    with gigabyte_more():
        yield


@pytest.fixture(autouse=True)
def an_end() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError(f"no end after {SECONDS} seconds of the processor")

    before = signal.signal(signal.SIGPROF, stop)
    yield
    signal.signal(signal.SIGPROF, before)


@dataclass(frozen=True)
class Input:
    """One thing that the export takes, whole. A file of torch.save, or else a folder of transformers, or a k-means model."""

    state: State = field(default_factory=dict)
    around: State = field(default_factory=dict)  # what is saved beside the state, which is then under "model"
    config: bytes = b""  # of a folder
    model: Any = None  # of scikit-learn


@pytest.fixture(scope="module")
def inputs(packages, tmp_path_factory) -> dict[str, Input]:
    """By the export's options. The quantizer goes without its MuLaN: every byte counts, and is counted often."""
    found = {}
    for kind in KINDS:
        state = packages[kind].get("model", packages[kind])
        found[kind] = Input({name: tensor for name, tensor in state.items() if not name.startswith("mulan.")}, {"version": "2.4.0"})
    mel = MelKmeans(5, n_mels=8)
    mel.fit([torch.randn(16000, generator=torch.Generator().manual_seed(0))])
    encodec, hubert, folder = hugging_face(), tiny_hubert(False), tmp_path_factory.mktemp("configs")
    configs = []
    for model in (encodec, hubert):
        model.config.save_pretrained(folder)
        configs.append((folder / "config.json").read_bytes())
    frames = np.random.default_rng(0).normal(size=(90, 64)).astype(np.float32)
    return found | {
        "semantic-features": Input(mel.state_dict()),
        "codec, EnCodec's file": Input(small().state_dict()),
        "codec, EnCodec's folder": Input(encodec.state_dict(), config=configs[0]),
        "hubert": Input(fairseq_state(hubert, False), {"args": None, "cfg": {"model": CFG}}),
        "hubert, a folder": Input(hubert.state_dict(), config=configs[1]),
        "kmeans": Input(model=MiniBatchKMeans(5, random_state=0, n_init=1).fit(frames)),  # type: ignore[arg-type]
    }


def spoil(found: Input, path: Path, dice: Dice, proof: Path) -> str:
    """Write `found` to `path` with something wrong in it; what that is."""
    how: Any
    if found.model is not None:
        how = dice.choice(fuzzing.KMEANS)
        path.write_bytes(how(found.model, dice, proof))
        return how.__name__
    file, state = path, dict(found.state)
    if found.config:
        path.mkdir()
        how = dice.choice(fuzzing.SETTINGS)
        edited = dice.random() < 0.3
        (path / "config.json").write_bytes(how(found.config, dice, proof) if edited else found.config)
        file = path / "model.safetensors"
        if edited:
            save_file(state, file)
            return how.__name__
    if found.config or path.suffix == ".safetensors":
        how = dice.choice(fuzzing.SAFETENSORS + fuzzing.STATES)
    else:
        how = dice.choice(fuzzing.BYTES + fuzzing.STATES)
    package: Any = how(state, dice, proof) if how in fuzzing.STATES else state
    try:
        if file.suffix != ".safetensors":
            raise TypeError("a file of torch.save")
        save_file({name: tensor.contiguous() for name, tensor in package.items() if how is not fuzzing.huge}, file)
    except Exception:  # whatever safetensors cannot hold: it has an exception for everything
        file = path / "pytorch_model.bin" if found.config else path
        packed = isinstance(package, dict) and "model" in package
        package = {**found.around, **(package if packed else {"model": package})} if found.around else package
        torch.save(package, file, _use_new_zipfile_serialization=how is fuzzing.huge or how in fuzzing.BYTES or dice.random() < 0.85)
    if how not in fuzzing.STATES:
        file.write_bytes(how(file.read_bytes(), dice, proof))
    return how.__name__


def whole(found: Input, path: Path) -> Path:
    if found.model is None:
        torch.save({**found.around, "model": found.state}, path)
    else:
        path.write_bytes(pickle.dumps(found.model))
    return path


def refusals(kind: str, path: Path, other: Path) -> list[str]:
    """What the export says of a file beside a whole one. HuBERT and its k-means are read once more by name: a diagnosis first asks what
    a file is, and an unreadable one it never gives to their readers."""
    found = diagnose([path, other], {"wav2vec": {"output_layer": 2}} if kind in ("hubert", "kmeans") else None).faults
    if kind in ("hubert", "kmeans"):
        try:
            HubertKmeans.from_files(*((path, other) if kind == "hubert" else (other, path)), output_layer=2)
        except ValueError as error:
            found.append(str(error))
    return found


def test_inputs(inputs: dict[str, Input], tmp_path: Path) -> None:
    """Fault: another exception than a refusal that names the file, code of the file that runs, memory beyond a gigabyte, no end."""
    proof = tmp_path / "ran"
    refused, problems, partners = 0, [], {"hubert": "kmeans", "kmeans": "hubert"}
    for case in range(SEED, SEED + CASES):
        dice, folder = Dice(case), tmp_path / "case"
        folder.mkdir()
        name = dice.choice(list(inputs))
        kind = name.partition(",")[0]
        suffix = "" if inputs[name].config else ".safetensors" if kind != "hubert" and dice.random() < 0.15 else ".pt"
        path = folder / f"{kind}-{case}{suffix}"
        done = f"case {case}: {spoil(inputs[name], path, dice, proof)} of {name}"
        # a whole neighbour, so that what must fit together is looked at
        other = whole(inputs[partners.get(kind) or dice.choice(KINDS)], folder / "other.pt")
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            with gigabyte_more():  # of each case: a process that has refused a thousand files has holes in its memory
                faults = refusals(kind, path, other)
        except Exception as error:  # all of them are wanted, each with its case
            problems.append(f"{done}: {type(error).__name__}: {error} in {traceback.extract_tb(error.__traceback__)[-1]}")
            faults = []
        signal.setitimer(signal.ITIMER_PROF, 0)
        refused += bool(faults)
        problems += [f"{done}: {fault}" for fault in faults if "MemoryError" in fault or "alloc" in fault]
        problems += [f"{done}: unnamed: {fault}" for fault in faults if path.name not in fault and "other.pt" not in fault]
        problems += [f"{done}: it ran"] if proof.exists() else []
        shutil.rmtree(folder)
    assert not problems, "\n".join(problems)
    assert refused > 0.4 * CASES


@pytest.mark.parametrize("name", ["data.pkl", "data/0", "version"])
def test_zip_bombs(inputs: dict[str, Input], tmp_path: Path, little_memory: None, name: str) -> None:
    """Fault: 200 KB that inflate to 100 MB, in whichever entry torch reads; the words are for the owner of a file."""
    path = tmp_path / "a.pt"
    torch.save(inputs["fine"].state, path)
    path.write_bytes(
        fuzzing.repack(path.read_bytes(), lambda entry, old: bytes(10**8) if entry.endswith(name) else old, zipfile.ZIP_DEFLATED)
    )
    with pytest.raises(ExportError, match=r"refused, because its entries claim \d{9} bytes of a file of \d{6}, which torch.save never"):
        read_checkpoint(path, "fine")


def test_claimed_shapes_and_bytes(inputs: dict[str, Input], tmp_path: Path, little_memory: None) -> None:
    """Fault: a tensor of 40 GB over one number, and a call that makes 64 GB of zeros: torch's loader allows both."""
    path = tmp_path / "a.pt"
    torch.save({**inputs["fine"].state, "fine_start_token": torch.zeros(1).as_strided((10**10,), (0,))}, path)
    with pytest.raises(ExportError, match=r"its tensors claim 4000\d+ bytes, but the file has \d+"):
        read_checkpoint(path, "fine")
    for new in (True, False):
        torch.save({**inputs["fine"].state, "x": fuzzing.Calls(bytearray, 1 << 36)}, path, _use_new_zipfile_serialization=new)
        with pytest.raises(ExportError, match="it names bytearray, which could take any amount of memory"):
            read_checkpoint(path, "fine")


def test_links_and_special_files(inputs: dict[str, Input], tmp_path: Path) -> None:
    """Links to nothing, to themselves, to folders and pipes, names that no file can have: refused, none waited for."""
    (tmp_path / "loop.pt").symlink_to(tmp_path / "loop.pt")
    (tmp_path / "none.pt").symlink_to(tmp_path / "nothing")
    (tmp_path / "folder.pt").symlink_to(tmp_path)
    (tmp_path / "zero.pt").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.pt")
    nothing, special = "there is no such file.", "neither a file nor a folder."
    words = {"loop.pt": nothing, "none.pt": nothing, "folder.pt": "Name the file.", "zero.pt": special, "pipe.pt": special}
    names = [*words, "x" * 5000, "a\0b"]
    faults = diagnose(tmp_path / name for name in names).faults
    assert len(faults) == len(names) and all(fault.endswith(words.get(name, nothing)) for name, fault in zip(names, faults, strict=True)), (
        faults
    )
    for name in names:
        with pytest.raises(ValueError, match=r"there is no such file|holds no config\.json"):
            HubertKmeans.from_files(tmp_path / name, tmp_path / name)
        with pytest.raises(ValueError, match="there is no such file"):
            read_cluster_centers(tmp_path / name)
    os.mkfifo(tmp_path / "config.json")  # of the folder that folder.pt is
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        HubertKmeans.from_files(tmp_path, tmp_path / "none.pt")
    torch.save(inputs["fine"].state, tmp_path / "real.pt")
    (tmp_path / "link.pt").symlink_to(tmp_path / "real.pt")
    assert not diagnose([tmp_path / "link.pt"]).faults


# --- bundles


def _manifest() -> dict[str, Any]:
    """A manifest that opens: the fields of every record with values of their types, and small files to list."""
    decoder = {"context": None, "conditioning": "none", "guidance": False, "dim": 8, "depth": 1, "heads": 1, "cache_head_size": 8}
    decoder |= {"vocabulary": 9, "coarse_quantizers": 1, "fine_quantizers": None, "max_length": 5}
    names = ("padding", "start", "semantic_start", "coarse_start", "fine_start", "semantic", "coarse", "fine")
    decoder |= {"rows": {name: row for row, name in enumerate(names)}, "segments": None, "semantic_window": None}
    decoder |= {
        "bias": {"entries": 3, "stride": 1, "frames": None},
        "sampling": {"temperature": 1.0, "filter_thres": 0.9, "cond_scale": 3.0},
        "step": {"dim_head": 8, "inner": 21, "streams": 1, "value_residual": True, "precision": "fp32"},
    }
    decoder["step"] |= {"normalised_attention": False, "convolution": False, "positions": None}
    decoder["step"] |= {"block": 32, "weights": {"rows": ["float32", 0, 3, 8], "head.0.weight": ["float32", 96, 8, 9]}}
    codec = {"stream": "d.onnx", "encode": None, "sample_hz": 16000, "samples_per_frame": 320, "quantizers": 2, "groups": 1}
    codec |= {"codebook_size": 9, "lookahead_frames": 1, "min_frames": 1, "states": {"tail": [8, 6]}, "min_encode_frames": 1}
    mulan = {"text": "t.onnx", "audio": "a.onnx", "tokenizer": "t.json", "max_tokens": 9, "dim_latent": 4, "sample_hz": 16000}
    return {
        "mulan": mulan | {"min_samples": 9, "audio_heads": 1, "samples_per_patch": 2.0, "spectrogram": None},
        "conditioner": {"graph": "c.onnx", "quantizers": 1, "codebook_size": 3, "namespaces": {"fine": 8}},
        **{stage: {"graph": f"{stage}.onnx", **decoder} for stage in ("semantic", "coarse", "fine")},
        "codec": codec,
        "wav2vec": None,
        "seconds": None,
        "unique_consecutive": True,
        "semantic_tokens_per_second": 50.0,
        "made_by": {"torch": "2"},
        "sources": {"fine": {"file": "f.pt", "sha256": "0", "version": ""}},
        "settings": {},
        "errors": {"fine": 1e-6},
        "quality": {"fine": {"precision": "fp32"}},
        "files": {},
        "format": FORMAT,
    }


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    from hashlib import sha256

    folder, manifest = tmp_path / "bundle", _manifest()
    folder.mkdir()
    decoders = [f"{stage}.onnx{data}" for stage in ("semantic", "coarse", "fine") for data in ("", ".data")]
    for name in ("d.onnx", "t.onnx", "a.onnx", "t.json", "c.onnx", *decoders):
        (folder / name).write_text(name)
        manifest["files"][name] = {"bytes": len(name), "sha256": sha256(name.encode()).hexdigest()}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    Bundle.open(folder)
    return folder


def _spoil_bundle(folder: Path, dice: Dice) -> str:
    how = dice.choice(("bits", "cut", "value", "delete", "path", "record", "link", "missing", "size", "folder", "deep"))
    path = folder / MANIFEST
    values = json.loads(path.read_text())
    container, key = dice.choice(fuzzing.places(values))
    name = dice.choice(list(values["files"]))
    if how == "bits":
        path.write_bytes(fuzzing.flip(path.read_bytes(), dice, folder))
    elif how == "cut":
        path.write_bytes(fuzzing.cut(path.read_bytes(), dice, folder))
    elif how == "deep":
        path.write_text(dice.choice(("[", '{"a":')) * 100_000)
    elif how in ("value", "delete", "path", "record"):
        record = values["files"].pop(name)
        values["files"][name] = record
        if how == "value":
            container[key] = dice.choice(fuzzing.JUNK)
        elif how == "delete":
            del container[key]
        elif how == "record":
            values["files"][name] = dice.choice(fuzzing.JUNK)
        else:
            values["files"][dice.choice(("../x", "/etc/passwd", "a/../../x", "\0", "x" * 5000, "", ".", MANIFEST, "\ud800"))] = record
        path.write_text(json.dumps(values))
    elif how == "missing":
        (folder / name).unlink()
    elif how == "size":
        (folder / name).write_bytes(b"x" * dice.randrange(100))
    else:
        (folder / name).unlink()
        if how == "folder":
            (folder / name).mkdir()
        else:
            (folder / name).symlink_to(dice.choice(("/etc/passwd", name, "../x", "/dev/zero", ".")))
    return how


def test_bundles(bundle: Path, tmp_path: Path) -> None:
    """Fault: an exception that is no BundleError, a file outside the folder that is opened."""
    refused = 0
    for case in range(SEED, SEED + CASES):
        folder = Path(shutil.copytree(bundle, tmp_path / "copy"))
        how = _spoil_bundle(folder, Dice(case))
        try:
            opened = Bundle.open(folder)
            assert all((folder / name).resolve().is_relative_to(folder.resolve()) for name in opened.manifest.files), (case, how)
            diagnose([folder])
        except BundleError as error:
            refused += 1
            str(error).encode()  # a sentence that a terminal can show
        except BaseException as error:
            raise AssertionError(f"case {case}: {how}: {type(error).__name__}: {error}") from error
        shutil.rmtree(folder)
    assert refused > 0.6 * CASES
