"""Any file of tensors that people keep a trained model in: torch.save's two formats, safetensors, and folders of either in several files.

In: a path. Out: the package that was saved, with stand-ins for what is neither tensor nor plain data. Nothing in a file is executed. The
first bytes say what a file is, whatever its name; what is none of these is refused by what it is, and only what must be damage is called
damage. It does not know what the tensors mean.
"""

import io
import json
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.serialization import safe_globals

from ..runtime.user_files import LFS_MARK, LFS_POINTER, read_text
from .archive import ZIP, HostileFile, check_archive, is_pickle, read_entry
from .stand_ins import names_in, stand_ins

_LEGACY = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")  # by this number torch knows its format before 1.6
_SAVE_PLAIN = "Save a plain state dict."
_WHOLE = "Was it copied whole?"
# First bytes of files without tensors; each text completes the sentence "is ...".
_OTHERS = {
    LFS_MARK: LFS_POINTER,
    b"\x1f\x8b": "compressed by gzip. Unpack it first: gunzip.",
    b"BZh": "compressed by bzip2. Unpack it first: bunzip2.",
    b"\xfd7zXZ\0": "compressed by xz. Unpack it first: unxz.",
    b"]\0\0": "compressed by lzma. Unpack it first: unlzma.",
    b"\x28\xb5\x2f\xfd": "compressed by Zstandard. Unpack it first: unzstd.",
    b"7z\xbc\xaf\x27\x1c": "an archive of 7-Zip. Unpack it first.",
    b"Rar!": "an archive of RAR. Unpack it first.",
    b"\x93NUMPY": "an array of numpy.save, expected a state dict.",
    b"\x89HDF": "a file of HDF5, as Keras writes it, expected one of PyTorch.",
    b"GGUF": "a file of GGUF, as llama.cpp reads it, expected one of PyTorch.",
    b"RIFF": "a sound, expected a file of tensors.",
    b"fLaC": "a sound, expected a file of tensors.",
    b"OggS": "a sound, expected a file of tensors.",
    b"\x08": "not a file of PyTorch; it begins as an ONNX graph does. Give the checkpoint that it was made of.",
}
_WEB_PAGES = (b"<!doctype", b"<html", b"<?xml")
_PART = re.compile(r"-\d+-of-(\d+)\.(safetensors|bin)$")  # as transformers calls the files of a model in several
_SINGLE = ("model.safetensors", "pytorch_model.bin")
_SHARDED = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


class UnreadableFile(ValueError):
    """A file without tensors that can be used; the message begins with its path."""


def read_package(path: Path) -> Any:
    """Return what was saved in a file, in a folder, or in the files that an index lists: usually a dictionary with tensors somewhere in it.

    Raises UnreadableFile, which says what was found instead and what to do."""
    package: dict[str, Any] = {}
    files = files_of(path)
    for file in files:
        content = _read(file)
        if len(files) == 1:
            return content
        if not isinstance(content, Mapping):
            raise UnreadableFile(f"{file}: expected a part of a state dict, got {type(content).__name__}.")
        if twice := package.keys() & content.keys():
            raise UnreadableFile(f"{file}: holds {min(map(str, twice))!r}, which another file of the same index holds as well.")
        package |= content
    return package


def files_of(path: Path) -> list[Path]:
    """Return the files that hold the tensors of a path: itself, or those of a folder of transformers, accelerate or diffusers.

    Raises UnreadableFile if there are none, or an index names a file that is not beside it."""
    if path.name.endswith(".index.json") and os.path.isfile(path):
        return _shards(path)
    if not os.path.isdir(path):  # unlike Path's own, os.path's questions say no of a name that no file can have
        if not os.path.exists(path):
            raise UnreadableFile(f"{path}: there is no such file.")
        if not os.path.isfile(path):
            raise UnreadableFile(f"{path}: neither a file nor a folder.")
        if (part := _PART.search(path.name)) and int(part[1]) > 1:
            raise UnreadableFile(f"{path}: one of the {int(part[1])} files of a model. Give the folder with their .index.json.")
        return [path]
    for name in _SINGLE:
        if (path / name).is_file():
            return [path / name]
    for name in _SHARDED:
        if (path / name).is_file():
            return _shards(path / name)
    found = sorted(entry.name for entry in path.iterdir())
    if ".metadata" in found and any(name.endswith(".distcp") for name in found):
        convert = f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {path} model.pt"
        raise UnreadableFile(f"{path}: a distributed checkpoint. Make one file of it: {convert}.")
    listed = ", ".join(found[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "")
    lacking = " and no ".join(_SINGLE)
    raise UnreadableFile(f"{path}: the folder holds no {lacking} (found: {listed or 'nothing'}). Name the file.")


def bytes_of(path: Path) -> int:
    """Return the size of the files that hold the tensors of a path. Raises UnreadableFile as `files_of`."""
    return sum(file.stat().st_size for file in files_of(path))


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(read_text(index))["weight_map"].values()))
        plain = all(isinstance(name, str) and name == Path(name).name for name in names)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UnreadableFile(f"{index}: not an index of files of tensors, which has an entry 'weight_map'.") from error
    if not plain or not names:
        raise UnreadableFile(f"{index}: must name files beside it, got {', '.join(map(repr, names[:3])) or 'none'}.")
    files = [index.with_name(name) for name in names]
    if missing := [file.name for file in files if not file.is_file()]:
        raise UnreadableFile(f"{index}: names {', '.join(missing[:3])}, which {'is' if len(missing) == 1 else 'are'} not there. {_WHOLE}")
    return files


def _read(path: Path) -> Any:
    start = b""
    try:
        with path.open("rb") as file:
            start = file.read(512)
        if _is_safetensors(start):
            from safetensors.torch import load_file

            return load_file(path)
        if other := _other(start):
            raise UnreadableFile(f"{path}: {other}")
        return _read_torch(path, start)
    except UnreadableFile:
        raise
    except HostileFile as error:
        raise UnreadableFile(f"{path}: refused, because {error}. {_SAVE_PLAIN}") from error
    except Exception as error:  # a damaged file raises nearly anything; torch's own text advises to switch the protection off
        raise UnreadableFile(f"{path}: {_reason(path, start, error)}") from error


def _is_safetensors(start: bytes) -> bool:
    """Return whether a file begins with the length of a JSON object and that object."""
    return start[8:9] == b"{" and 2 <= int.from_bytes(start[:8], "little") < 1 << 32


def _other(start: bytes) -> str | None:
    """Return what a file is that torch.save did not write, if its first bytes say so."""
    if not start:
        return f"empty: 0 bytes. {_WHOLE}"
    if not start.strip(b"\0"):
        return f"it begins with zeros, as an interrupted download leaves a file. {_WHOLE}"
    for mark, what in _OTHERS.items():
        if start.startswith(mark):
            return what
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text[:9].lower().startswith(_WEB_PAGES):
        return "a web page, as a download that needs a login leaves it. Download the file itself."
    if text.startswith((b"{", b"[")):
        return "JSON, expected a file of tensors."
    if start[257:262] == b"ustar":
        return "an archive of tar. Unpack it first: tar -xf."
    return None


def _read_torch(path: Path, start: bytes) -> Any:
    """Read a file of torch.save with torch's weights-only loader, with a stand-in for every name that it does not know itself."""
    check_archive(path)
    names, protocol = _names(path, start)
    with safe_globals(stand_ins(names)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected pickle protocol")
        try:
            with path.open("rb") as file:  # not by its name, which may end in .safetensors
                return torch.load(file, map_location="cpu", weights_only=True)
        except HostileFile:
            raise
        except (pickle.UnpicklingError, TypeError, ValueError, AttributeError) as error:  # the pickle is whole: `_names` has read it
            if forbidden := re.search(r"GLOBAL (\S+)", str(error)):
                raise HostileFile(f"it names {forbidden[1]}, which could run code") from error
            if protocol < 3 or "Unsupported operand" not in str(error):
                raise UnreadableFile(f"{path}: it holds objects that cannot be read without running code. {_SAVE_PLAIN}") from error
            raise UnreadableFile(
                f"{path}: saved with pickle protocol {protocol}, but torch's safe loader reads 2, the default of torch.save. Where you "
                "trust the file, save it again: torch.save(torch.load(FILE, weights_only=False), NEW)."
            ) from error


def _names(path: Path, start: bytes) -> tuple[set[str], int]:
    """Return the names in the pickles of a file, and their protocol. Raises UnreadableFile if torch.save did not write it."""
    if start.startswith(ZIP):
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        names = [entry.filename for entry in entries]
        found = [names_in(io.BytesIO(read_entry(path, entry))) for entry in entries if is_pickle(entry)]
        if not found:
            raise UnreadableFile(f"{path}: an archive of {', '.join(names[:3]) or 'nothing'}, not of torch.save. Unpack it first.")
    else:
        with path.open("rb") as file:
            of_torch = _LEGACY in start[:64]
            # torch's older format: a number to know it by, the format's version, the machine, and the package
            found = [names_in(file) for _ in range(4 if of_torch else 1)]
        if not of_torch:
            stand_ins(found[0][0])  # names what could run code, if there is anything
            raise UnreadableFile(f"{path}: a plain pickle. Save the state dict with torch.save.")
    return set().union(*(names for names, _ in found)), max(protocol for _, protocol in found)


def _reason(path: Path, start: bytes, error: Exception) -> str:
    """Return the words for an error of a reader. Only what looks like a file of tensors is called damaged."""
    if isinstance(error, MemoryError | PermissionError):
        return f"cannot be read ({type(error).__name__} {error})."
    if start.startswith(ZIP):
        return f"a damaged file of torch.save. {_WHOLE}"
    if _is_safetensors(start):
        return f"a damaged file of safetensors ({error}). {_WHOLE}"
    if _LEGACY in start[:64]:
        return f"a damaged file of torch.save, in its format before 1.6. {_WHOLE}"
    if start.startswith(b"\x80"):
        return f"a damaged pickle. {_WHOLE}"
    if text := _text(start):
        return f"text that begins with {text!r}, expected a file of tensors. Is it the answer to a download that failed?"
    expected = "safetensors" if path.suffix == ".safetensors" else "PyTorch"
    return f"not a {expected} file, or a damaged one: it begins with {start[:8]!r}. {_WHOLE}"


def _text(start: bytes) -> str | None:
    """Return the first words of a file that is text, such as "404: Not Found"."""
    try:
        line = start.decode("utf-8", "strict" if len(start) < 512 else "ignore").strip().splitlines()[0]
    except (UnicodeDecodeError, IndexError):
        return None
    return line[:40] if len(line) > 4 and line.isprintable() else None
