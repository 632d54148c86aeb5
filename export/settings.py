"""Every value the export works with, and where each came from.

In: facts read from a state dict, upstream's defaults, the user's overrides. Out: one ordered record per stage, printed by the export
and written into the bundle's manifest. It knows nothing of the stages themselves.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import ExportError


@dataclass(frozen=True)
class Setting:
    value: Any
    source: str  # "start_token [1024]", "default of audiolm-pytorch 2.4.0", "override"


class Settings:
    """An ordered record `name -> (value, source)` of one stage, with the user's overrides applied as values are set."""

    def __init__(self, stage: str, overrides: Mapping[str, Any] | None = None) -> None:
        self.stage = stage
        self._overrides = dict(overrides or {})
        self._settings: dict[str, Setting] = {}
        self.warnings: list[str] = []  # about values that may be wrong or will surprise, in sentences that do not name the file

    def infer(self, name: str, value: Any, source: str) -> Any:
        """Record a value that the checkpoint itself fixes. An override may repeat it, not contradict it."""
        wanted = self._overrides.pop(name, value)
        if _plain(wanted) != _plain(value):
            raise ExportError(
                f"{self.stage}: the override {name} = {wanted!r} contradicts the checkpoint, which says {value!r} ({source}). Remove it."
            )
        return self._record(name, value, source)

    def assume(self, name: str, default: Any, why: str) -> Any:
        """Record a value that the checkpoint does not tell: the override if there is one, of the default's type, else the default."""
        if name in self._overrides:
            wanted = self._overrides.pop(name)
            if default is not None and not _same_type(wanted, default):
                expected = type(_plain(default)).__name__
                raise ExportError(f"{self.stage}: the override {name} must be of type {expected}, as in {default!r}; got {wanted!r}.")
            return self._record(name, wanted, "override")
        return self._record(name, default, why)

    def finish(self) -> "Settings":
        """Refuse overrides that no setting asked for, so that a typing error is never silently ignored."""
        if self._overrides:
            known = ", ".join(self._settings)
            raise ExportError(f"{self.stage}: unknown override {', '.join(map(repr, self._overrides))}. Known: {known}.")
        return self

    def __getitem__(self, name: str) -> Any:
        return self._settings[name].value

    def items(self) -> Iterator[tuple[str, Setting]]:
        return iter(self._settings.items())

    def values(self) -> dict[str, Any]:
        """`{name: value}` without the sources."""
        return {name: setting.value for name, setting in self._settings.items()}

    def _record(self, name: str, value: Any, source: str) -> Any:
        self._settings[name] = Setting(value, source)
        return value


def _same_type(value: Any, default: Any) -> bool:
    """A whole number may stand for a fraction and a list for a tuple; true is no number."""
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, int | float):
        return isinstance(value, int | float)
    return isinstance(_plain(value), type(_plain(default)))


def _plain(value: Any) -> Any:
    """Tuples and lists compare equal: overrides come from JSON, which has no tuples."""
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
