"""Whether a file of torch.save asks for more memory than it has bytes: a small file can claim, or unpack to, gigabytes.

In: a path, looked at before torch reads it, and the tensors that came out. Out: nothing, or `HostileFile`. Damage is not its business:
torch finds that by itself. It also reads the pickles of an archive for others.
"""

import mmap
import os
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

_PLAIN = {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
_PLAIN |= {torch.float16, torch.bfloat16, torch.float32, torch.float64}
_SHARED = 4  # how often a byte of a file may serve: tied weights, and a codec's codebooks once more beside its model
ZIP = b"PK\3\4"  # by these bytes torch chooses between its two formats


class HostileFile(ValueError):
    """A file that no torch.save wrote; the message completes the sentence "refused, because"."""


def check_archive(path: Path) -> None:
    """Raise HostileFile if the entries of a zip archive are larger than the file, or a pickle may make bytes that it does not hold."""
    with path.open("rb") as file:
        is_zip, size = file.read(len(ZIP)) == ZIP, path.stat().st_size
    if not is_zip:
        if size:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                _check_pickle(data)
        return
    with zipfile.ZipFile(path) as archive:
        entries, commented = archive.infolist(), bool(archive.comment)
    if not any(map(is_pickle, entries)):
        return  # not of torch.save: nobody will unpack it
    if any(entry.filename.endswith("constants.pkl") for entry in entries):
        raise HostileFile("it is a program of TorchScript, and not only tensors")
    # torch.save neither compresses nor shares an entry's bytes. With a comment, two readers may find two different directories.
    unpacked, compressed = sum(entry.file_size for entry in entries), any(entry.compress_type for entry in entries)
    if unpacked > size or commented or compressed:
        again = ": it was packed again, and compressed (zip -0 packs without)" if compressed else ""
        raise HostileFile(f"its entries claim {unpacked} bytes of a file of {size}, which torch.save never writes{again}")
    for entry in filter(is_pickle, entries):
        _check_pickle(read_entry(path, entry))


def is_pickle(entry: zipfile.ZipInfo) -> bool:
    """Return whether an archive's entry is the pickle that torch reads; it looks the name up in any case."""
    return entry.filename.lower().endswith("data.pkl")


def read_entry(path: Path, entry: zipfile.ZipInfo) -> bytes:
    """Return the bytes of an entry without compression. `zipfile` reads none whose checksum torch.save was told to leave at 0.

    Raises zipfile.BadZipFile for any other checksum that is wrong."""
    with path.open("rb") as file:
        file.seek(entry.header_offset + 26)  # of the lengths of its name and of its extra field, which it stands behind
        file.seek(sum(struct.unpack("<HH", file.read(4))), os.SEEK_CUR)
        data = file.read(entry.file_size)
    if entry.CRC not in (0, zlib.crc32(data)):
        raise zipfile.BadZipFile(f"wrong checksum of {entry.filename!r}")
    return data


def check_tensors(state: Mapping[str, Tensor], size: int) -> None:
    """Refuse what has no numbers of its own in a file of `size` bytes: sparse, quantized, nested and meta tensors, and shapes beyond it."""
    for name, tensor in state.items():
        if tensor.dtype not in _PLAIN or tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_nested:
            what = f"{tensor.dtype}, {tensor.layout}, device {tensor.device}".replace("torch.", "")
            raise HostileFile(f"the tensor {name!r} ({what}) holds no plain numbers")
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    if claimed > _SHARED * size:
        raise HostileFile(f"its tensors claim {claimed} bytes, but the file has {size}")


def _check_pickle(data: bytes | mmap.mmap) -> None:
    """`bytearray(10**11)` is the one call with a size of its own that torch's weights-only loader makes."""
    if data.find(b"\nbytearray\n") >= 0:
        raise HostileFile("it names bytearray, which could take any amount of memory")
