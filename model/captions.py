"""The table of captions of a folder of sounds: each file's captions, or what is wrong with the table, by line.

In: a folder with `metadata.csv` or `metadata.jsonl`, as Hugging Face's audiofolder has it: `file_name`, relative to the folder, and `text`.
A CSV may be separated by commas, semicolons (as Excel writes in much of Europe) or tabs, which its header shows. Nothing is guessed about a
row: one that could be read in two ways is a fault. It opens no sound.
"""

import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..runtime.user_files import LINE_ENDS, read_text

_TABLES = ("metadata.csv", "metadata.jsonl")
_COLUMNS = ("file_name", "text")
_SEPARATORS = (",", ";", "\t")
_Row = tuple[int, dict[str, Any] | str]  # its first line, counted from 1; its values by column, or its fault


def read_captions(folder: Path) -> tuple[dict[str, list[str]], list[str]]:
    """Return {file: its captions} in the order of the table, and its faults, each with the table's name and the line.

    Raises ValueError if there is not exactly one table, and for one that is no text in UTF-8, UTF-16 or UTF-32.
    """
    tables = [folder / name for name in _TABLES if (folder / name).is_file()]
    if len(tables) != 1:
        named = ", ".join(sorted(path.name for path in folder.glob("metadata.*")))
        found = f"{len(tables)}{f': {named}' if named else ''}"
        raise ValueError(f"{folder}: expected one of {' and '.join(_TABLES)} with the columns {' and '.join(_COLUMNS)}, found {found}")
    table = tables[0]
    text, captions, faults = read_text(table), dict[str, list[str]](), list[str]()
    for line, row in _csv_rows(text) if table.suffix == ".csv" else _json_rows(text):
        fault = row if isinstance(row, str) else _take(folder, row, captions)
        if fault:
            faults.append(f"{table.name}, line {line}: {fault}")
    if not captions and not faults:
        faults.append(f"{table.name} has no rows")
    return captions, faults


def _take(folder: Path, row: dict[str, Any], captions: dict[str, list[str]]) -> str | None:
    """Add the captions of a row, or return its fault."""
    name, given = row.get("file_name"), row.get("text")
    given = given if isinstance(given, list) else [given]
    if not isinstance(name, str) or not name:
        return "no file_name"
    if not all(isinstance(text, str | None) for text in given):
        return f"the caption of {name} is {given!r:.60}, expected a text or a list of texts"
    texts = [text for text in given if text and text.strip()]
    if not texts or len(texts) < len(given):
        return f"{name} has an empty caption"
    for text in texts:
        later = [line.split(separator)[0].strip() for line in LINE_ENDS.split(text)[1:] for separator in _SEPARATORS]
        # os.path.isfile, as Path.is_file raises an error for what is too long to be a name
        if hidden := next((one for one in later if one and os.path.isfile(folder / one)), None):
            return f"the caption of {name} goes on to the line of {hidden}. Close its quotes"
    slashed = name.replace("\\", "/")  # as Windows writes paths; elsewhere a name may hold a backslash
    name = slashed if slashed != name and not os.path.isfile(folder / name) and os.path.isfile(folder / slashed) else name
    captions.setdefault(name, []).extend(texts)
    return None


def _csv_rows(text: str) -> Iterator[_Row]:
    lines = io.StringIO(text, newline=None)  # any line ends, old Macintosh's too
    header, unnamed = list[str](), 0
    separator = _separator(text)
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, f"not a row of a CSV file ({error}). A caption with quotes in it stands in quotes, with those inside doubled"
            return
        if not any(values):
            continue
        if not header:
            header = _normalized(values)
            while header and not header[-1]:  # as Excel writes columns that had content once
                header.pop()
                unnamed += 1
            if fault := _fault_of_header(header, values):
                yield line, fault
        # With columns after the text, a caption in two fields and an empty last column are as many fields as a row with a comma at its end.
        elif any(values[len(header) :]) or (header[-1] != "text" and len(values) > len(header) + unnamed):
            example = f': "{f"{separator} ".join(values[len(header) - 1 :]):.80}"' if header[-1] == "text" else ""
            advice = f"Put a caption with {separator!r} in it in quotes{example}"
            yield line, f"{len(values)} fields, the header has {len(header)}. {advice}"
        else:
            yield line, dict(zip(header, values, strict=False))


def _json_rows(text: str) -> Iterator[_Row]:
    for line, one in enumerate(LINE_ENDS.split(text), start=1):
        if not one.strip():
            continue
        try:
            pairs = json.loads(one, object_pairs_hook=_Pairs)
        except (ValueError, RecursionError) as error:
            yield line, f"not JSON ({error})"
            return
        if not isinstance(pairs, _Pairs):
            yield line, f"expected an object with {' and '.join(_COLUMNS)}, got {one.strip()[:60]}"
        else:
            names = _normalized([name for name, _ in pairs])
            twice = [name for name in _COLUMNS if names.count(name) > 1]
            yield line, f"{' and '.join(twice)} twice" if twice else dict(zip(names, (value for _, value in pairs), strict=True))


class _Pairs(list):
    """The names and values of a JSON object in their order, names that occur twice included."""


def _separator(text: str) -> str:
    """Return the separator with which the header has both columns, the comma if none has."""
    header = next((line for line in LINE_ENDS.split(text) if line.strip()), "")
    return next((one for one in _SEPARATORS if set(_COLUMNS) <= {*_normalized(header.replace('"', "").split(one))}), ",")


def _normalized(names: list[str]) -> list[str]:
    return [name.strip().casefold() for name in names]


def _fault_of_header(header: list[str], given: list[str]) -> str | None:
    if all(header.count(name) == 1 for name in _COLUMNS):
        return None
    return f"the columns are {', '.join(map(repr, given))}, expected {' and '.join(_COLUMNS)}, each once, in the first line"
