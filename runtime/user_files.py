"""Paths and texts as people give them: `~` in a path, names of any bytes, and files in the encoding that their editor or shell writes.

In: a path, or bytes of a text. Out: a `Path`, a `str`, or a ValueError that says where the text cannot be read and how to save it.
"""

from __future__ import annotations

import codecs
import os
import re
from pathlib import Path

# The longer marks first: that of UTF-32 begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig", "UTF-8"),
    (codecs.BOM_UTF32_LE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF32_BE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF16_LE, "utf-16", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16", "UTF-16"),
)
LFS_MARK = b"version https://git-lfs"  # Git leaves a text that begins so in place of a file that its extension LFS has not fetched
LFS_POINTER = "a pointer of Git LFS, in place of the file itself. Fetch it with: git lfs pull."
LINE_ENDS = re.compile(r"\r\n|\n|\r")


def expanded(path: str | bytes | os.PathLike) -> Path:
    """Return a path with `~` or `~user` at its beginning replaced by that home folder, as a shell does.

    No shell does it in `--out=~/bundle`, in quotes, or in Python. A user without a home folder leaves the path as it is. Raises ValueError
    for what is no path.
    """
    try:
        return Path(os.path.expanduser(os.fsdecode(path)))
    except TypeError:
        raise ValueError(f"a path must be a str or a pathlib.Path, got {type(path).__name__}.") from None


def is_lfs_pointer(path: str | os.PathLike) -> bool:
    with open(path, "rb") as file:
        return file.read(len(LFS_MARK)) == LFS_MARK


def escape_surrogates(text: str) -> str:
    """Return a text with the halves of characters, by which Python keeps bytes of names that are not UTF-8, as the escapes of JSON."""
    return text.encode("utf-8", "backslashreplace").decode()


def read_text(path: Path, where: str | None = None) -> str:
    """Return the text of a file. where: its name in an error, by default the path. Raises OSError, and ValueError as `decode_text`."""
    return decode_text(path.read_bytes(), where or str(path))


def decode_text(data: bytes, where: str) -> str:
    """Decode UTF-8, and what begins with the byte order mark of UTF-8, UTF-16 or UTF-32, as PowerShell and Excel write it.

    Raises ValueError with the line and the position of the first byte that is none of them.
    """
    encoding, name = next(((codec, name) for mark, codec, name in _MARKS if data.startswith(mark)), ("utf-8", "UTF-8"))
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        read = error.object  # for utf-8-sig without the mark, from which its position counts
        line = len(LINE_ENDS.findall(read[: error.start].decode(error.encoding, "replace"))) + 1
        position = error.start + len(data) - len(read)
        found = f"byte {read[error.start]:#04x} is not {name}. It stands at position {position}"
        raise ValueError(f"{where}, line {line}: {found}. Save the text as UTF-8.") from error
    if "\0" in text:
        line = len(LINE_ENDS.findall(text[: text.index("\0")])) + 1
        raise ValueError(f"{where}, line {line}: it holds zero bytes, as UTF-16 without its mark does. Save the text as UTF-8.")
    return text
