"""Ways to spoil what the export is given, drawn from dice: tensors, the bytes of a file, headers of safetensors, settings in JSON, k-means.

In: a whole state dict, file or model, a `random.Random`, and the folder that a pickle would make if it ran. Out: the spoilt one. It knows
nothing of what is refused.
"""

import bz2
import copy
import io
import json
import os
import pickle
import random
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch

State = dict[str, Any]
Dice = random.Random


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
            torch.ones(dice.sample([10**6, *[1] * (tensor.ndim - 1)], max(tensor.ndim, 1))),
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
        filler = dice.choice(
            (
                -1,
                0,
                1,
                100 if tensor.dtype in (torch.bool, torch.uint8, torch.int8) else 10**6,
                127 if tensor.dtype in (torch.bool, torch.uint8, torch.int8) else 2**62,
            )
        )
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


def cut(data: bytes, dice: Dice, _: Path) -> bytes:
    return data[: dice.choice((dice.randrange(len(data)), dice.randrange(min(len(data), 200)), len(data) - dice.randrange(1, 200)))]


def flip(data: bytes, dice: Dice, proof: Path) -> bytes:
    changed = bytearray(data)
    for _ in range(dice.choice((1, 3, 30))):
        near = dice.randrange(min(len(data), 3000))
        changed[dice.choice((dice.randrange(len(data)), near, len(data) - 1 - near))] = dice.randrange(256)
    return bytes(changed)


def flip_pickle(data: bytes, dice: Dice, proof: Path) -> bytes:
    return repack(data, lambda name, content: flip(content, dice, proof) if name.endswith("data.pkl") else content)


def bomb(data: bytes, dice: Dice, _: Path) -> bytes:
    """An entry that inflates to 200 MB (or, in its header alone, to more) from some KB."""
    name = dice.choice(("data.pkl", "data/0", "version", "byteorder", "DATA.PKL"))
    real = repack(data, lambda entry, content: bytes(200_000_000) if entry.endswith(name) else content, zipfile.ZIP_DEFLATED)
    if dice.random() < 0.5:
        return real
    place = real.rfind(b"PK\1\2")
    return real[: place + 24] + (0xFFFFFFF0).to_bytes(4, "little") + real[place + 28 :]


def prefix(data: bytes, dice: Dice, _: Path) -> bytes:
    head = dice.choice((b"", b"\x80\x02", b"PK\3\4", b"\0" * 64, b"\x1f\x8b", b"\x80\x04\x95"))
    return head + data[dice.choice((0, 0, 4, 30)) :] + bytes(dice.choice((0, 0, 1, 70_000)))


def comment(data: bytes, dice: Dice, _: Path) -> bytes:
    """Two central directories: one reader may take the first, another the second."""
    text = data[data.rfind(b"PK\1\2") :][:60000]
    return data[:-2] + len(text).to_bytes(2, "little") + text


def repack(data: bytes, edit: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(out, "w", compression) as new:
        for name in archive.namelist():
            new.writestr(name, edit(name, archive.read(name)))
    return out.getvalue()


# --- ways to change the bytes of a safetensors file: eight bytes of length, a header in JSON, the numbers


def header(data: bytes, dice: Dice, _: Path) -> bytes:
    length = int.from_bytes(data[:8], "little")
    entries, numbers = json.loads(data[8 : 8 + length]), data[8 + length :]
    names = [name for name in entries if name != "__metadata__"]
    one, other = entries[dice.choice(names)], entries[dice.choice(names)]
    begin, end = one["data_offsets"]
    how = dice.choice(("offsets", "overlap", "dtype", "shape", "metadata", "more", "twice", "form", "length", "tail"))
    if how == "offsets":
        spoilt = (
            [end, begin],
            [begin, end + 4],
            [begin + 4, end],
            [-4, end],
            [begin, 1 << 62],
            [1 << 63, 1 << 64],
            [0.5, end],
            [begin],
            3,
            None,
        )
        one["data_offsets"] = dice.choice(spoilt)
    elif how == "overlap":
        one.update({key: other[key] for key in dice.choice((("data_offsets",), ("data_offsets", "shape")))})
    elif how == "dtype":
        one["dtype"] = dice.choice(("F64", "F16", "BF16", "I32", "U8", "BOOL", "F8_E5M2", "C64", "F4", "X", "", 3, None))
    elif how == "shape":
        one["shape"] = dice.choice(
            ([], [0], [1 << 40, 1 << 40], [1 << 63], [-1], [2.5], ["2"], [*one["shape"], 1], one["shape"][:-1], None)
        )
    elif how == "metadata":
        entries["__metadata__"] = dice.choice(({"a": 1}, {"format": "tf"}, [], None, {"x": "y" * 10**6}))
    elif how == "more":
        entries[dice.choice(("", "\ud800", "x" * 10**5, "../x", *names))] = {"dtype": "F32", "shape": [0], "data_offsets": [end, end]}
    text = json.dumps(entries).encode()
    if how == "twice":
        text = text[:-1] + b", " + text[1:]
    elif how == "form":
        text = dice.choice((b"", b"[]", b"{}", b"[" * 100_000, b'{"a":' * 100_000, b"\xff", text[:-1], text + b"  x", b"null"))
    size = len(text).to_bytes(8, "little")
    if how == "length":
        size = dice.choice((0, 1, len(text) - 1, len(text) + 1, 10**8, 10**8 + 1, 1 << 63, (1 << 64) - 1)).to_bytes(8, "little")
    return size + text + numbers + (b"\0" * dice.choice((1, 4, 10**6)) if how == "tail" else b"")


# --- ways to change settings in JSON

JUNK = (None, -1, 0, 1e308, float("nan"), True, "", "\0", "../x", "/etc/passwd", [], {}, {"a": 1}, "x" * 100000, 10**400, [[]], "\ud800")
SIZES = (1, 3, 0.5, 10**6, 1 << 40, 1 << 62, 10**25, [1 << 40] * 7, [0] * 7, [-1] * 7, [1] * 5000, [2.5] * 7, "gelu", "12")


def places(values: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a tree of JSON."""
    items = list(values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ())
    return [(values, key) for key, _ in items] + [place for _, value in items for place in places(value)]


def settings(text: bytes, dice: Dice, _: Path) -> bytes:
    values = json.loads(text)
    for _i in range(dice.choice((1, 1, 3))):
        container, key = dice.choice(places(values))
        if dice.random() < 0.2:
            del container[key]
        else:
            container[key] = dice.choice(JUNK + SIZES)
    return json.dumps(values).encode()


def text(data: bytes, dice: Dice, proof: Path) -> bytes:
    deep = dice.choice((b"[", b'{"a":')) * 100_000
    return dice.choice(
        (deep, b"", b"null", b"[1]", b'"hubert"', b"\xff\xfe", b"9" * 10**5, flip(data, dice, proof), cut(data, dice, proof))
    )


# --- ways to change a k-means model; each returns the bytes of a file


def _dump(model: Any, dice: Dice) -> bytes:
    out = io.BytesIO()
    compress: Any = dice.choice((0, 0, ("zlib", 1), ("gzip", 1), ("bz2", 1), ("xz", 1)))
    joblib.dump(model, out, compress=compress, protocol=dice.choice((2, 4, 5)))
    return out.getvalue()


def kmeans_bytes(model: Any, dice: Dice, proof: Path) -> bytes:
    return dice.choice((cut, flip, prefix))(_dump(model, dice), dice, proof)


def kmeans_array(model: Any, dice: Dice, _: Path) -> bytes:
    model = copy.copy(model)
    centres = model.cluster_centers_
    kinds = ("f8", "f2", ">f4", "i4", "?", "c8", "U4", "O", "M8[s]")
    spoilt = [centres.astype(kind) for kind in kinds if kind != "M8[s]"] + [centres.astype("i8").astype("M8[s]")]
    spoilt += [centres[0], centres[:0], centres[:, :0], centres.T, np.asfortranarray(centres), centres[None], centres * np.nan, centres[:5]]
    model.cluster_centers_ = dice.choice([*spoilt, None, 3, "x", [[1.0]], _laughs(), torch.ones(3)])
    return _dump(model, dice)


def kmeans_bomb(model: Any, dice: Dice, _: Path) -> bytes:
    """A megabyte that unpacks to 320, within one array or behind a model that is right."""
    once, pack = _dump(model, Dice(0)), dice.choice((zlib.compressobj(1, wbits=31), zlib.compressobj(1)))
    zeros = bytes(1 << 24)
    return b"".join(
        [
            pack.compress(once if dice.random() < 0.5 else b"\x80\x04B\xff\xff\xff\x7f"),
            *(pack.compress(zeros) for _ in range(20)),
            pack.flush(),
        ]
    )


def kmeans_hostile(model: Any, dice: Dice, proof: Path) -> bytes:
    """Calls in every form that a pickle has for them; texts, shapes and counts that grow when they are looked at."""
    wrapper: Any
    path, wrapper = str(proof), joblib.numpy_pickle.NumpyArrayWrapper(np.ndarray, (3, 4), "C", np.dtype("f4"))
    wrapper.shape = dice.choice((_laughs(), (1 << 40, 1 << 40), (-1,), (1 << 62,), "x", (10**5000,), None))
    model = copy.copy(model)
    model.cluster_centers_ = dice.choice((Runs(proof), wrapper, Calls(bytearray, 1 << 36), Calls(np.zeros, 1 << 36), _laughs()))
    forms = (f"cos\nmkdir\n(V{path}\ntR.", f"(S'{path}'\nios\nmkdir\n.", f"(cos\nmkdir\nV{path}\no.", f"cos\nmkdir\n(V{path}\nt\x81.")
    stands = (f"cnumpy\ndtype\n(V{path}\ntRcos\nmkdir\nb.", f"cnumpy\ndtype\n(cos\nmkdir\nV{path}\ntR.", f"P{path}\n.", "\x82\x01.")
    data = dice.choice((*(form.encode("latin1") for form in forms + stands), *[pickle.dumps(model, dice.choice((2, 4)))] * 8))
    return dice.choice((bytes, zlib.compress, bz2.compress))(data)


def _laughs() -> Any:
    """A tuple whose text has 2 ** 60 characters, in some bytes of pickle."""
    nested: Any = ("ha",)
    for _ in range(60):
        nested = (nested, nested)
    return nested


STATES = (swap, drop, rename, retype, reshape, unplain, values, huge, objects, versions, hostile)
BYTES = (cut, flip, flip_pickle, bomb, prefix, comment)
SAFETENSORS = (header, header, header, cut, flip, prefix)
SETTINGS = (settings, settings, text)
KMEANS = (kmeans_bytes, kmeans_array, kmeans_bomb, kmeans_hostile)
