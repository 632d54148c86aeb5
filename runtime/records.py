"""Records from JSON: dataclasses whose every field is checked, with all faults listed.

In: a type annotation, a value from JSON. Out: the record, and a sentence for each difference.
"""

from __future__ import annotations

import types
from dataclasses import fields, is_dataclass
from reprlib import repr as short_repr
from typing import Any, Union, get_args, get_origin, get_type_hints


def parse(kind: Any, value: Any, where: str, faults: list[str]) -> Any:
    """Return `value` from JSON as `kind`, a type annotation; every difference is noted in `faults`.

    A field whose default is None may be missing.
    """
    if is_dataclass(kind) and isinstance(kind, type) and isinstance(value, dict):
        hints, before = get_type_hints(kind), len(faults)
        faults += [f"{where}: unknown field {name!r}" for name in value if name not in hints]
        added = {field.name for field in fields(kind) if field.default is None}  # later than the format's first bundles
        faults += [f"{where}: the field {name!r} is missing" for name in hints if name not in value and name not in added]
        parsed = {name: parse(hint, value[name], f"{where}: {name}", faults) for name, hint in hints.items() if name in value}
        counts = [name for name, hint in hints.items() if hint in (int, int | None) and parsed.get(name) is not None]
        faults += [f"{where}: {name}: expected at least 1, got {parsed[name]}" for name in counts if parsed[name] < 1]
        return kind(**parsed) if len(faults) == before else None
    if get_origin(kind) in (Union, types.UnionType):
        if value is None:
            return None
        return parse(next(option for option in get_args(kind) if option is not type(None)), value, where, faults)
    if get_origin(kind) is dict and isinstance(value, dict):
        return {name: parse(get_args(kind)[1], item, f"{where}: {name}", faults) for name, item in value.items()}
    if get_origin(kind) is list and isinstance(value, list):
        return [parse(get_args(kind)[0], item, where, faults) for item in value]
    if kind is Any:
        return value
    accepted = (int, float) if kind is float else kind
    if isinstance(accepted, type | tuple) and isinstance(value, accepted) and not (isinstance(value, bool) and kind is not bool):
        return value
    faults.append(f"{where}: expected {getattr(kind, '__name__', kind)}, got {short_repr(value)}")
    return None
