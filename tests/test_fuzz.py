"""Checkpoints and bundles with something wrong in them, drawn at random from a seed: each is refused in a sentence or is a file that can be
used; nothing in it runs, nothing crashes, and no small file takes gigabytes.

`MUSICLM_FUZZ=2000 pytest tests/test_fuzz.py` makes the run long; `MUSICLM_FUZZ_SEED` begins elsewhere.
"""

import io
import json
import os
import pickle
import random
import resource
import shutil
import traceback
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from musiclm_deploy.export.checkpoint import read_checkpoint
from musiclm_deploy.export.doctor import diagnose
from musiclm_deploy.export.errors import ExportError
from musiclm_deploy.runtime.bundle import FORMAT, MANIFEST, Bundle, BundleError

CASES = int(os.environ.get("MUSICLM_FUZZ", "24"))  # of checkpoints, and as many of bundles
SEED = int(os.environ.get("MUSICLM_FUZZ_SEED", "0"))
KINDS = ("semantic", "coarse", "fine", "codec", "mulan", "quantizer")
GIGABYTE = 1 << 30
pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the size of this process is read from /proc")


@pytest.fixture
def little_memory() -> Iterator[None]:
    """One gigabyte more than now, and no more: what is not refused before it is allocated shows as a MemoryError."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + GIGABYTE, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


class Runs:
    """Unpickling it makes a folder."""

    def __init__(self, proof: Path) -> None:
        self._proof = proof

    def __reduce__(self):
        return os.mkdir, (str(self._proof),)


class Calls:
    """Unpickling it calls what torch's loader allows, with arguments that it does not look at."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self):
        return self._call


State = dict[str, Any]
Dice = random.Random


# --- ways to change a state dict; each returns it, or another package


def _pick(state: State, dice: Dice) -> str:
    """Often one of the tensors that settings are read from, which are few among many."""
    ends = ("token", "embedding.weight", "logit_weights", "_codebook.embed", "layout", "window")
    telling = [name for name in state if name.endswith(ends)]
    return dice.choice(telling if telling and dice.random() < 0.3 else list(state))


def swap(state: State, dice: Dice, _: Path) -> State:
    a, b = _pick(state, dice), _pick(state, dice)
    state[a], state[b] = state[b], state[a]
    return state


def drop(state: State, dice: Dice, _: Path) -> State:
    for _i in range(dice.choice((1, 1, 3))):
        state.pop(_pick(state, dice), None)
    return state


def rename(state: State, dice: Dice, _: Path) -> State:
    name = _pick(state, dice)
    parts = name.split(".")
    parts[dice.randrange(len(parts))] = dice.choice(("", "x", "-1", "999999999999", "0", "\n", "é", "weight", "../../x"))
    state[".".join(parts)] = state.pop(name)
    return state


def retype(state: State, dice: Dice, _: Path) -> State:
    name = _pick(state, dice)
    kinds = (torch.float64, torch.int64, torch.int8, torch.bool, torch.complex64, torch.float8_e5m2, torch.bfloat16, torch.uint16)
    state[name] = state[name].to(dice.choice(kinds))
    return state


def reshape(state: State, dice: Dice, _: Path) -> State:
    name = _pick(state, dice)
    tensor = state[name]
    state[name] = dice.choice(
        (
            tensor.flatten(),
            tensor[None],
            tensor.reshape(-1)[:0],
            tensor.reshape(-1)[0],
            tensor.reshape(-1)[:1],
            tensor.T if tensor.ndim == 2 else tensor[..., None],
            torch.cat([tensor.reshape(-1)] * 2),
            tensor[..., :1] if tensor.ndim else tensor,
            tensor[:1] if tensor.ndim else tensor,
            tensor[:0] if tensor.ndim else tensor,
        )
    )
    return state


def unplain(state: State, dice: Dice, _: Path) -> State:
    name = _pick(state, dice)
    tensor = state[name].float()
    state[name] = dice.choice(
        (
            lambda: tensor.to_sparse(),
            lambda: tensor.to("meta"),
            lambda: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
            lambda: torch.nn.Parameter(tensor),
            lambda: torch.empty((10**9, 10**5), device="meta"),
        )
    )()
    return state


def values(state: State, dice: Dice, _: Path) -> State:
    name = _pick(state, dice)
    tensor = state[name].clone()
    filler = dice.choice((float("nan"), float("inf"), -1, 0, 2**62, 1e30))
    if not tensor.is_floating_point():
        filler = dice.choice((-1, 0, 1, 127 if tensor.dtype in (torch.bool, torch.uint8, torch.int8) else 2**62))
    if dice.random() < 0.5:
        tensor.fill_(filler)
    else:
        tensor.view(-1)[dice.randrange(max(tensor.numel(), 1)) :][:1] = filler
    state[name] = tensor
    return state


def huge(state: State, dice: Dice, _: Path) -> State:
    """A shape of gigabytes over a few bytes."""
    name = _pick(state, dice)
    size = dice.choice(((10**10,), (10**5, 10**5), (1 << 40,), (3, 10**10), (1 << 62,)))
    state[name] = torch.zeros(1).as_strided(size, (0,) * len(size))
    return state


def objects(state: State, dice: Dice, _: Path) -> Any:
    name = _pick(state, dice)
    junk = dice.choice((None, 3, "text", [1], {"a": 1}, float("nan"), b"x", torch.Size([3]), {name: {name: 1}}))
    other = {"model": junk, "version": "2.4.0"}, {name: junk}, junk, {"model": state, "version": junk}, {"model": state, "config": junk}
    return dice.choice((*other, {**state, name: junk}, {1: state[name], **state}))


def versions(state: State, dice: Dice, _: Path) -> Any:
    return {"model": state, "version": dice.choice(("", "2", "2.", "nightly", "9" * 5000 + ".1", "-1.-1", "2.4.0+git", "\0"))}


def hostile(state: State, dice: Dice, proof: Path) -> Any:
    thing = dice.choice((Runs(proof), Calls(bytearray, 1 << 36), Calls(torch.Size, [1 << 60])))
    config = pickle.dumps({"channels": thing, "strides": (2, 4)})
    return dice.choice(({**state, "x": thing}, {"model": state, "y": [thing]}, {"model": state, "config": config, "version": "2.4.0"}))


# --- ways to change the bytes of a file


def cut(data: bytes, dice: Dice) -> bytes:
    return data[: dice.choice((dice.randrange(len(data)), dice.randrange(min(len(data), 200)), len(data) - dice.randrange(1, 200)))]


def flip(data: bytes, dice: Dice) -> bytes:
    changed = bytearray(data)
    for _ in range(dice.choice((1, 3, 30))):
        near = dice.randrange(min(len(data), 3000))
        changed[dice.choice((dice.randrange(len(data)), near, len(data) - 1 - near))] = dice.randrange(256)
    return bytes(changed)


def flip_pickle(data: bytes, dice: Dice) -> bytes:
    return _repack(data, lambda name, content: flip(content, dice) if name.endswith("data.pkl") else content)


def bomb(data: bytes, dice: Dice) -> bytes:
    """An entry that inflates to 200 MB (or, in its header alone, to more) from some KB."""
    name = dice.choice(("data.pkl", "data/0", "version", "byteorder", "DATA.PKL"))
    real = _repack(data, lambda entry, content: bytes(200_000_000) if entry.endswith(name) else content, zipfile.ZIP_DEFLATED)
    if dice.random() < 0.5:
        return real
    place = real.rfind(b"PK\1\2")
    return real[: place + 24] + (0xFFFFFFF0).to_bytes(4, "little") + real[place + 28 :]


def prefix(data: bytes, dice: Dice) -> bytes:
    head = dice.choice((b"", b"\x80\x02", b"PK\3\4", b"\0" * 64, b"\x1f\x8b", b"\x80\x04\x95"))
    return head + data[dice.choice((0, 0, 4, 30)) :] + bytes(dice.choice((0, 0, 1, 70_000)))


def comment(data: bytes, dice: Dice) -> bytes:
    """Two central directories: one reader may take the first, another the second."""
    text = data[data.rfind(b"PK\1\2") :][:60000]
    return data[:-2] + len(text).to_bytes(2, "little") + text


def _repack(data: bytes, edit: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(out, "w", compression) as new:
        for name in archive.namelist():
            new.writestr(name, edit(name, archive.read(name)))
    return out.getvalue()


STATES = (swap, drop, rename, retype, reshape, unplain, values, huge, objects, versions, hostile)
BYTES = (cut, flip, flip_pickle, bomb, prefix, comment)


@pytest.fixture(scope="module")
def states(tiny_checkpoints) -> dict[str, State]:
    """The codec without its discriminators, the quantizer without its MuLaN: every byte counts, and is counted often."""
    found = {}
    for kind in KINDS:
        package = torch.load(tiny_checkpoints[kind], weights_only=True)
        state = package.get("model", package)
        keep = ("encoder", "decoder", "rq.") if kind == "codec" else ("",)
        found[kind] = {name: tensor for name, tensor in state.items() if name.startswith(keep) and not name.startswith("mulan.")}
    return found


def test_checkpoints(states: dict[str, State], tmp_path: Path, little_memory: None) -> None:
    """Fault: an exception that is no ExportError, code of the file that runs, memory beyond a gigabyte."""
    proof = tmp_path / "ran"
    refused, problems = 0, []
    for case in range(SEED, SEED + CASES):
        dice, path, other = Dice(case), tmp_path / "a.pt", tmp_path / "b.pt"
        kind, index = dice.choice(KINDS), dice.randrange(len(STATES) + len(BYTES))
        if index < len(STATES):
            how = STATES[index]
            package = how(dict(states[kind]), dice, proof)
            torch.save(package, path, _use_new_zipfile_serialization=how is huge or dice.random() < 0.85)
        else:
            how = BYTES[index - len(STATES)]
            torch.save({"model": states[kind], "version": "2.4.0"}, path)
            if how in (cut, flip, prefix) and dice.random() < 0.3:
                path = path.with_suffix(".safetensors")
                save_file({name: tensor.contiguous() for name, tensor in states[kind].items()}, path)
            path.write_bytes(how(path.read_bytes(), dice))
        torch.save(states[dice.choice(KINDS)], other)  # a whole neighbour, so that what must fit together is looked at
        done = f"case {case}: {how.__name__} of {kind}"
        try:
            faults = diagnose([path, other]).faults
        except Exception as error:  # all of them are wanted, each with its case
            problems.append(f"{done}: {type(error).__name__}: {error} in {traceback.extract_tb(error.__traceback__)[-1]}")
            continue
        refused += bool(faults)
        problems += [f"{done}: {fault}" for fault in faults if "MemoryError" in fault or "alloc" in fault]
        problems += [f"{done}: it ran"] if proof.exists() else []
    assert not problems, "\n".join(problems)
    assert refused > 0.4 * CASES


@pytest.mark.parametrize("name", ["data.pkl", "data/0", "version"])
def test_zip_bombs(states: dict[str, State], tmp_path: Path, little_memory: None, name: str) -> None:
    """Fault: 200 KB that inflate to 100 MB, in whichever entry torch reads; the words are for the owner of a file."""
    path = tmp_path / "a.pt"
    torch.save(states["fine"], path)
    path.write_bytes(_repack(path.read_bytes(), lambda entry, old: bytes(10**8) if entry.endswith(name) else old, zipfile.ZIP_DEFLATED))
    with pytest.raises(ExportError, match=r"refused, because its entries claim \d{9} bytes of a file of \d{6}, which torch.save never"):
        read_checkpoint(path, "fine")


def test_claimed_shapes_and_bytes(states: dict[str, State], tmp_path: Path, little_memory: None) -> None:
    """Fault: a tensor of 40 GB over one number, and a call that makes 64 GB of zeros: torch's loader allows both."""
    path = tmp_path / "a.pt"
    torch.save({**states["fine"], "fine_start_token": torch.zeros(1).as_strided((10**10,), (0,))}, path)
    with pytest.raises(ExportError, match=r"its tensors claim 4000\d+ bytes, but the file has \d+"):
        read_checkpoint(path, "fine")
    for new in (True, False):
        torch.save({**states["fine"], "x": Calls(bytearray, 1 << 36)}, path, _use_new_zipfile_serialization=new)
        with pytest.raises(ExportError, match="it names bytearray, which could take any amount of memory"):
            read_checkpoint(path, "fine")


def test_links_and_special_files(states: dict[str, State], tmp_path: Path) -> None:
    """Links to nothing, to themselves, to folders and pipes, names that no file can have: refused, none waited for."""
    (tmp_path / "loop.pt").symlink_to(tmp_path / "loop.pt")
    (tmp_path / "none.pt").symlink_to(tmp_path / "nothing")
    (tmp_path / "folder.pt").symlink_to(tmp_path)
    (tmp_path / "zero.pt").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.pt")
    names = ("loop.pt", "none.pt", "folder.pt", "zero.pt", "pipe.pt", "x" * 5000, "a\0b")
    report = diagnose(tmp_path / name for name in names)
    assert [fault.endswith(": there is no such file.") for fault in report.faults] == [True] * len(names), report.faults
    torch.save(states["fine"], tmp_path / "real.pt")
    (tmp_path / "link.pt").symlink_to(tmp_path / "real.pt")
    assert not diagnose([tmp_path / "link.pt"]).faults


# --- bundles


def _manifest() -> dict[str, Any]:
    """A manifest that opens: the fields of every record with values of their types, and small files to list."""
    decoder = {"context": None, "conditioning": "none", "guidance": False, "dim": 8, "depth": 1, "heads": 1, "cache_head_size": 8}
    decoder |= {"vocabulary": 9, "coarse_quantizers": 1, "fine_quantizers": None, "rows": {"padding": 0}, "max_length": 5}
    decoder |= {
        "bias": {"entries": 3, "stride": 1, "frames": None},
        "sampling": {"temperature": 1.0, "filter_thres": 0.9, "cond_scale": 3.0},
        "step": {"dim_head": 8, "inner": 21, "streams": 1, "value_residual": True, "precision": "fp32", "weights": {"rows": [0, 3, 8]}},
    }
    codec = {"decode": "d.onnx", "encode": None, "sample_hz": 16000, "samples_per_frame": 320, "quantizers": 2, "groups": 1}
    codec |= {"codebook_size": 9, "lookahead_frames": 1, "min_frames": 1, "context_frames": None, "min_encode_frames": 1}
    mulan = {"text": "t.onnx", "audio": "a.onnx", "tokenizer": "t.json", "max_tokens": 9, "dim_latent": 4, "sample_hz": 16000}
    return {
        "mulan": mulan | {"min_samples": 9, "audio_heads": 1, "samples_per_patch": 2.0},
        "conditioner": {"graph": "c.onnx", "quantizers": 1, "codebook_size": 3, "namespaces": {"fine": 8}},
        **{stage: {"graph": f"{stage}.onnx", **decoder} for stage in ("semantic", "coarse", "fine")},
        "codec": codec,
        "wav2vec": None,
        "unique_consecutive": True,
        "semantic_tokens_per_second": 50.0,
        "made_by": {"torch": "2"},
        "sources": {"fine": {"file": "f.pt", "sha256": "0", "version": ""}},
        "settings": {},
        "errors": {"fine": 1e-6},
        "files": {},
        "format": FORMAT,
    }


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    from hashlib import sha256

    folder, manifest = tmp_path / "bundle", _manifest()
    folder.mkdir()
    for name in ("d.onnx", "t.onnx", "a.onnx", "t.json", "c.onnx", "semantic.onnx", "coarse.onnx", "fine.onnx"):
        (folder / name).write_text(name)
        manifest["files"][name] = {"bytes": len(name), "sha256": sha256(name.encode()).hexdigest()}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    Bundle.open(folder)
    return folder


def _places(values: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a tree of JSON."""
    items = list(values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ())
    return [(values, key) for key, _ in items] + [place for _, value in items for place in _places(value)]


JUNK = (None, -1, 0, 1e308, float("nan"), True, "", "\0", "../x", "/etc/passwd", [], {}, {"a": 1}, "x" * 100000, 10**400, [[]], "\ud800")


def _spoil_bundle(folder: Path, dice: Dice) -> str:
    how = dice.choice(("bits", "cut", "value", "delete", "path", "record", "link", "missing", "size", "folder", "deep"))
    path = folder / MANIFEST
    values = json.loads(path.read_text())
    container, key = dice.choice(_places(values))
    name = dice.choice(list(values["files"]))
    if how == "bits":
        path.write_bytes(flip(path.read_bytes(), dice))
    elif how == "cut":
        path.write_bytes(cut(path.read_bytes(), dice))
    elif how == "deep":
        path.write_text(dice.choice(("[", '{"a":')) * 100_000)
    elif how in ("value", "delete", "path", "record"):
        record = values["files"].pop(name)
        values["files"][name] = record
        if how == "value":
            container[key] = dice.choice(JUNK)
        elif how == "delete":
            del container[key]
        elif how == "record":
            values["files"][name] = dice.choice(JUNK)
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
