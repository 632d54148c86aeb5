"""Whether a file of torch.save asks for more memory than it has bytes: a small file can claim, or unpack to, gigabytes.

In: a path, looked at before torch reads it. Out: nothing, or `HostileFile`. Damage is not its business: torch finds that by itself.
"""

import mmap
import zipfile
from pathlib import Path

_ZIP = b"PK\3\4"  # by these bytes torch chooses between its two formats


class HostileFile(ValueError):
    """A file that no torch.save wrote; the message completes the sentence "refused, because"."""


def check_archive(path: Path) -> None:
    """Raise HostileFile if the entries of a zip archive are larger than the file, or a pickle may make bytes that it does not hold."""
    with path.open("rb") as file:
        is_zip, size = file.read(len(_ZIP)) == _ZIP, path.stat().st_size
    if not is_zip:
        if size:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                _check_pickle(data)
        return
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
        # torch.save neither compresses nor shares an entry's bytes. With a comment, two readers may find two different directories.
        if unpacked > size or archive.comment:
            raise HostileFile(f"its entries claim {unpacked} bytes of a file of {size}, which torch.save never writes")
        for entry in archive.infolist():
            if entry.filename.lower().endswith("data.pkl"):  # torch looks it up in any case
                _check_pickle(archive.read(entry))


def _check_pickle(data: bytes | mmap.mmap) -> None:
    """`bytearray(10**11)` is the one call with a size of its own that torch's weights-only loader makes."""
    if data.find(b"\nbytearray\n") >= 0:
        raise HostileFile("it names bytearray, which could take any amount of memory")
