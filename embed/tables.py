"""Write the tables of src/unicode.cpp, normalize.cpp, entities.cpp, repair.cpp and mojibake.cpp, from what Python and its modules do.

    python embed/tables.py [FOLDER]

Every character is put to the function or pattern that the Python runtime uses (`str.lower`, `unicodedata`, `html`, `regex`, `ftfy`), and
the answers are written as C++ headers into FOLDER, by default src/ beside this file. What the C++ code takes for granted is asserted here.
"""

from __future__ import annotations

import html
import html.entities
import re
import sys
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import ftfy
import regex
import tokenizers
from ftfy import badness, chardata

_COLUMNS = 140
_LAST = 0x10FFFF
_SURROGATES = range(0xD800, 0xE000)
_CHARACTERS = [c for c in range(_LAST + 1) if c not in _SURROGATES]
_SIGN_OUTSIDE, _WORD_OUTSIDE = "☃", "一"  # stand for all characters that no pattern of ftfy names


def runs(values: dict[int, int], bits: int) -> list[str]:
    """Return the entries of a table for `run_value` in unicode.h: where a run of equal values begins, and the value, by default 0."""
    entries, previous = [], None
    for c in range(_LAST + 1):
        value = values.get(c, 0)
        if value != previous and c not in _SURROGATES:
            assert value < 1 << bits
            entries.append(f"0x{c << bits | value:X}")
            previous = value
    return entries


def array(declaration: str, entries: Iterable[str]) -> str:
    """Return a C++ array, as wide as the lines may be."""
    lines = textwrap.wrap(", ".join(entries), _COLUMNS - 4, break_long_words=False, break_on_hyphens=False)
    return f"constexpr {declaration} = {{\n" + "\n".join(f"    {line}" for line in lines) + "};\n"


def braces(numbers: Iterable[int]) -> str:
    return "{" + ",".join(f"0x{number:X}" if number > 9 else str(number) for number in numbers) + "}"


def header(about: str, *parts: str) -> str:
    about = "\n".join(f"// {line}" for line in textwrap.wrap(about, _COLUMNS - 3))
    python = f"Python {sys.version.split()[0]} (Unicode {unicodedata.unidata_version})"
    origin = f"// Written by embed/tables.py from {python}, regex {regex.__version__}, ftfy {ftfy.__version__}. Do not edit."
    opening = f"{about}\n{origin}\n#pragma once\n\n#include <cstdint>\n\nnamespace musiclm {{\n\n"
    return opening + "\n".join(parts) + "\n}  // namespace musiclm\n"


# --- unicode_tables.h


def kinds() -> dict[int, int]:
    """Return the kind of each character that is none of `Kind::sign`, as the pattern of CLIP's pieces takes it."""
    letter, number, sign = (regex.compile(one, regex.IGNORECASE) for one in (r"\p{L}", r"\p{N}", r"[^\s\p{L}\p{N}]"))
    found = {}
    for c in _CHARACTERS:
        matches = [bool(pattern.fullmatch(chr(c))) for pattern in (sign, letter, number)]
        assert sum(matches) <= 1, f"U+{c:04X} is of two kinds"
        found[c] = matches.index(True) if any(matches) else 3
    for c in (c for c, kind in found.items() if kind == 3 and not chr(c).isspace()):
        print(f"U+{c:04X} {unicodedata.name(chr(c), '')} is in no piece")
    return found


def byte_level_signs(kinds: dict[int, int]) -> dict[int, int]:
    """Return 1 for characters that are no signs in `kinds`, but are in the pattern of the package tokenizers, whose Unicode is older.

    Assert what roberta_tokenizer.cpp takes for granted: nothing else differs, and <mask> swallows what the pattern has as \\s.
    """
    split = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    mask = tokenizers.Tokenizer(tokenizers.models.BPE({"<mask>": 0}, []))
    mask.add_special_tokens([tokenizers.AddedToken("<mask>", lstrip=True, normalized=False, special=True)])
    found = {}
    for c, kind in kinds.items():
        joined = [len(split.pre_tokenize_str(f"{one}{chr(c)}{one}")) == 1 for one in "!a1"]
        assert sum(joined) <= 1, f"U+{c:04X} is of two kinds"
        of_byte_level = joined.index(True) if any(joined) else 3
        assert of_byte_level in (0, kind), f"U+{c:04X} is of one more kind"
        assert (mask.encode(f"{chr(c)}<mask>").offsets == [(0, 7)]) == (of_byte_level == 3), f"U+{c:04X} is swallowed by one of two"
        if of_byte_level != kind:
            found[c] = 1
    return found


def check_clitics() -> None:
    """Assert what `stands_at` in clip_tokenizer.cpp does: where case is ignored, only the long s is another form of their letters."""
    for letter in "srevmldtaoxnf":
        pattern = regex.compile(letter, regex.IGNORECASE)
        others = {c for c in _CHARACTERS if pattern.fullmatch(chr(c))} - {ord(letter), ord(letter.upper())}
        assert others == ({0x17F} if letter == "s" else set()), (letter, others)


def case_kinds() -> dict[int, int]:
    """Return 1 for characters that are cased, 2 for those that Python does not look at, next to a capital sigma."""
    found = {}
    for c in _CHARACTERS:
        after_nothing, after_letter = (text.lower()[-1] == "ς" for text in (chr(c) + "Σ", "a" + chr(c) + "Σ"))
        if after_nothing:
            found[c] = 1
        elif after_letter:
            found[c] = 2
    return found


def lower_ranges() -> list[str]:
    ranges: list[list[int]] = []  # first, last, step, difference
    for c in _CHARACTERS:
        lower = chr(c).lower()
        if lower == chr(c) or c in (0x130, 0x3A3):
            assert c != 0x130 or lower == "i\u0307"
            continue
        assert len(lower) == 1, f"U+{c:04X} has a lower case of several characters"
        difference = ord(lower) - c
        if ranges and ranges[-1][3] == difference:
            first, last, step, _ = ranges[-1]
            if c - last == step or (first == last and c - last == 2):
                ranges[-1][1:3] = [c, c - last]
                continue
        ranges.append([c, c, 1, difference])
    return [f"{{0x{first:X},0x{last:X},{step},{difference}}}" for first, last, step, difference in ranges]


def unicode_tables() -> str:
    check_clitics()
    of_characters = kinds()
    return header(
        "Kinds of characters, their lower case, and what stands around a sigma. See unicode.cpp. kByteLevelSigns is from tokenizers "
        f"{tokenizers.__version__}.",
        "struct CaseRange {\n  char32_t first, last;\n  uint32_t step;\n  int32_t difference;  // of the lower case\n};\n",
        "// Kind; 2 bits.\n" + array("uint32_t kKinds[]", runs(of_characters, 2)),
        "// 1: a sign for the byte-level pattern, of another kind in kKinds; 1 bit.\n"
        + array("uint32_t kByteLevelSigns[]", runs(byte_level_signs(of_characters), 1)),
        "// 1: cased, 2: ignored; 2 bits.\n" + array("uint32_t kCase[]", runs(case_kinds(), 2)),
        array("CaseRange kLower[]", lower_ranges()),
    )


# --- normal_tables.h


def normal_tables() -> str:
    composed, only_decomposed = [], []
    for c in _CHARACTERS:
        parts = unicodedata.decomposition(chr(c))
        if not parts or parts.startswith("<"):
            continue
        numbers = [int(part, 16) for part in parts.split()]
        assert len(numbers) <= 2
        joins = len(numbers) == 2 and unicodedata.normalize("NFC", "".join(map(chr, numbers))) == chr(c)
        (composed if joins else only_decomposed).append((c, *numbers, 0)[:3])
    orders = {c: unicodedata.combining(chr(c)) for c in _CHARACTERS}
    first_mark = 0x300  # `kFirstMark` of normalize.cpp
    assert all(orders[c] == 0 and unicodedata.normalize("NFC", chr(c)) == chr(c) for c in range(first_mark))
    assert all(second >= first_mark for _, _, second in composed)
    return header(
        "What characters are composed of, and the order of marks. See normalize.cpp.",
        "struct Decomposition {\n  char32_t whole, first, second;  // second: 0 where there is none\n};\n",
        "// Canonical_Combining_Class; 8 bits.\n" + array("uint32_t kMarkOrder[]", runs(orders, 8)),
        "// Both ways.\n" + array("Decomposition kComposed[]", map(braces, composed)),
        "// One way.\n" + array("Decomposition kOnlyDecomposed[]", map(braces, only_decomposed)),
    )


# --- entities_tables.h


def entities() -> list[str]:
    """Return each entity as `Names` in entities.cpp reads it."""
    html5, careful = html.entities.html5, chardata.HTML_ENTITIES
    capitals = {name[1:] for name in careful} - html5.keys()
    entries = []
    for name, value in sorted(html5.items()):
        if not name.endswith(";"):
            assert html5[name + ";"] == value
            continue
        assert careful["&" + name] == value and re.fullmatch("[0-9A-Za-z]+;", name)
        points, mark = ".".join(f"{ord(c):X}" for c in value), "," if name[:-1] in html5 else ";"
        if name == name.lower() and name.upper() in capitals:
            capitals.remove(name.upper())
            upper = careful["&" + name.upper()]
            points = "+" + points + ("" if upper == value else "/" + ".".join(f"{ord(c):X}" for c in upper))
        entries.append(name[:-1] + mark + points)
    assert not capitals
    return entries


def entities_tables() -> str:
    lines = textwrap.wrap(" ".join(entities()), _COLUMNS - 7)
    text = "\n".join(f'    "{line} "' for line in lines)
    # private, and so not in typeshed, but what `html.unescape` decides by
    renumbered: dict[int, str] = html._invalid_charrefs  # type: ignore[attr-defined]
    dropped: set[int] = html._invalid_codepoints  # type: ignore[attr-defined]
    numbers = sorted(renumbered)
    return header(
        "HTML's names of characters, and its numbers that mean others or nothing. See entities.cpp.",
        f"constexpr char kEntities[] =\n{text};\n",
        array("char32_t kRenumbered[]", (f"0x{c:X}" for c in numbers)),
        array("char32_t kRenumberedTo[]", (f"0x{ord(renumbered[c]):X}" for c in numbers)),
        "// 1 bit.\n" + array("uint32_t kDropped[]", runs(dict.fromkeys(dropped, 1), 1)),
    )


# --- repair_tables.h


def replacements() -> list[str]:
    """Return what ftfy writes for ligatures, for letters of other widths, and for curly quotes, in this order."""
    entries = []
    for c in _CHARACTERS:
        plain = chr(c).translate(chardata.LIGATURES).translate(chardata.WIDTH_MAP)
        plain = chardata.SINGLE_QUOTE_RE.sub("'", chardata.DOUBLE_QUOTE_RE.sub('"', plain))
        if plain != chr(c):
            assert 0 < len(plain) < 4 and max(plain) <= "\uffff"
            entries.append(f"{{0x{c:X},{braces(map(ord, plain))}}}")
    return entries


def check_controls() -> None:
    """Assert `is_control` in repair.cpp."""
    ranges = [*range(9), 0x0B, *range(0x0E, 0x20), 0x7F, *range(0x206A, 0x2070), 0xFEFF, *range(0xFFF9, 0xFFFD)]
    assert chardata.CONTROL_CHARS.keys() == set(ranges)


def repair_tables() -> str:
    check_controls()
    return header(
        "The signs that ftfy replaces by plainer ones. See repair.cpp.",
        "struct Replacement {\n  char32_t of;\n  char16_t by[4];  // ends with 0\n};\n",
        array("Replacement kReplacements[]", replacements()),
    )


# --- mojibake_tables.h

_PATTERN_END, _LINE_START = 255, 254  # in place of a set's number


def members(item: tuple[Any, Any]) -> set[int]:
    """Return the characters that an item of a pattern names."""
    op, value = str(item[0]), item[1]
    if op in ("LITERAL", "NOT_LITERAL"):
        return {value}
    if op == "RANGE":
        return set(range(value[0], value[1] + 1))
    return set().union(*map(members, value)) if op == "IN" else set()


def takes(item: tuple[Any, Any], c: str) -> bool:
    """Return whether an item of a pattern, for one character, matches this one."""
    op, value = str(item[0]), item[1]
    if op == "ANY":
        return c != "\n"
    if op == "CATEGORY":
        classes = {"CATEGORY_SPACE": r"\s", "CATEGORY_WORD": r"\w"}
        return bool(re.match(classes[str(value)], c))
    if op == "IN":
        negated = str(value[0][0]) == "NEGATE"
        return any(takes(one, c) for one in value[negated:]) != negated
    return (op != "NOT_LITERAL") == (ord(c) in members(item))


def alternatives(items: Sequence[tuple[Any, Any]]) -> list[list[tuple[Any, Any]]]:
    """Return the sequences of items for one character each that a branch of a pattern stands for; the begin of the text may come first."""
    sequences: list[list[tuple[Any, Any]]] = [[]]
    for op, value in items:
        if str(op) == "MAX_REPEAT":
            low, high, inner = value
            assert (low, high) == (0, 1)
            sequences = [s + more for s in sequences for more in ([], *alternatives(inner))]
        else:
            assert str(op) in ("LITERAL", "NOT_LITERAL", "IN", "ANY", "AT"), op
            sequences = [[*s, (op, value)] for s in sequences]
    return sequences


def unlikely() -> list[list[tuple[Any, Any]]]:
    """Return ftfy's patterns of unlikely neighbours."""
    # typeshed does not have re's parser
    ((_, (_, branches)),) = re._parser.parse(badness.BADNESS_RE.pattern, badness.BADNESS_RE.flags)  # type: ignore[attr-defined]
    return [sequence for branch in branches for sequence in alternatives(branch)]


def like_utf8() -> list[list[tuple[Any, Any]]]:
    """Return ftfy's patterns of what looks like one character of UTF-8 (`UTF8_DETECTOR_RE`), with what may stand before it."""
    clues = chardata.UTF8_CLUES
    names = "^utf8_continuation_strict", "utf8_continuation", "utf8_first_of_2", "utf8_first_of_3", "utf8_first_of_4"
    # typeshed does not have re's parser
    sets = [re._parser.parse(f"[{'^' * (name[0] == '^')}{clues[name.strip('^')]}]").data[0] for name in names]  # type: ignore[attr-defined]
    before, more = sets[:2]
    return [[opening, first, *[more] * (i + 1)] for i, first in enumerate(sets[2:]) for opening in (before, ("AT", "AT_BEGINNING"))]


def upper_halves() -> list[str]:
    halves = [bytes(range(0x80, 0x100)).decode(encoding) for encoding in chardata.CHARMAP_ENCODINGS]
    assert all(bytes(range(0x1A)).decode(encoding) == bytes(range(0x1A)).decode("ascii") for encoding in chardata.CHARMAP_ENCODINGS)
    return [braces(map(ord, half)).replace(",", ", ") for half in halves]


def mojibake_tables() -> str:
    """Write patterns as sequences of sets, and the sets as classes of characters between which none of the patterns tells."""
    lists = [unlikely(), like_utf8()]
    items = {str(item): item for patterns in lists for pattern in patterns for item in pattern if str(item[0]) != "AT"}
    named = set().union(*map(members, items.values()), range(0x80), (c for c in _CHARACTERS if re.match(r"\s", chr(c))))
    assert not {ord(_SIGN_OUTSIDE), ord(_WORD_OUTSIDE)} & named
    # Python's \w is at most what `kind_of` has as letters and numbers, and "_": to take more for words refuses more, never less.
    letters = regex.compile(r"[\p{L}\p{N}_]")
    assert all(letters.match(chr(c)) for c in _CHARACTERS if re.match(r"\w", chr(c)))

    classes: dict[tuple[bool, ...], int] = {}

    def class_of(c: str) -> int:
        return classes.setdefault(tuple(takes(item, c) for item in items.values()), len(classes))

    outside, word_outside = class_of(_SIGN_OUTSIDE), class_of(_WORD_OUTSIDE)
    ranges: list[list[int]] = []
    for c in sorted(named):
        value = class_of(chr(c))
        if ranges and ranges[-1][1:] == [c - 1, value]:
            ranges[-1][1] = c
        else:
            ranges.append([c, c, value])
    sets = [sum(1 << value for signature, value in classes.items() if signature[i]) for i in range(len(items))]
    unique = sorted(set(sets))
    number_of = {name: unique.index(one) for name, one in zip(items, sets, strict=True)}
    words = len(classes) // 64 + 1
    assert len(classes) <= 256 and len(unique) <= _LINE_START

    def rows(patterns: list[list[tuple[Any, Any]]]) -> list[str]:
        numbers = [[_LINE_START if str(item[0]) == "AT" else number_of[str(item)] for item in pattern] for pattern in patterns]
        return ["{" + ",".join(map(str, [*row, _PATTERN_END])) + "}" for row in numbers]

    return header(
        "ftfy's patterns of texts that were read in a wrong encoding, and these encodings. See mojibake.cpp.",
        "struct ClassRange {\n  char32_t first, last;\n  uint8_t value;\n};\n\n"
        f"struct ClassSet {{\n  uint64_t bits[{words}];  // of a class, from the lowest on\n}};\n",
        f"constexpr uint8_t kOtherClass = {outside}, kOtherWordClass = {word_outside};  // of what is in none of the ranges\n"
        f"constexpr uint8_t kLineStart = {_LINE_START}, kPatternEnd = {_PATTERN_END};\n",
        array("ClassRange kClasses[]", map(braces, ranges)),
        array("ClassSet kSets[]", ("{" + braces(one >> 64 * i & (1 << 64) - 1 for i in range(words)) + "}" for one in unique)),
        "// Numbers of sets, one for each character.\n" + array(f"uint8_t kUnlikely[][{max(map(len, lists[0])) + 1}]", rows(lists[0])),
        array(f"uint8_t kLikeUtf8[][{max(map(len, lists[1])) + 1}]", rows(lists[1])),
        "// What the bytes from 0x80 on stand for.\n" + array("char16_t kEncodings[][128]", upper_halves()),
    )


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "src"
    writers = {
        "unicode": unicode_tables,
        "normal": normal_tables,
        "entities": entities_tables,
        "repair": repair_tables,
        "mojibake": mojibake_tables,
    }
    for name, write in writers.items():
        path = folder / f"{name}_tables.h"
        path.write_text(write(), encoding="utf-8")
        print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
