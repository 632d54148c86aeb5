"""Parts of a check that do not depend on each other: one that cannot run says why, one that fails is reported, and the others go on.

In: parts, by `with`. Out: a summary, and the status that the process ends with.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from musiclm_deploy.runtime.bench.record import say


class Missing(Exception):
    """What a part needs is not on this machine; the message says what that is."""


class Parts:
    """passed: names of parts; skipped and failed: name -> why."""

    def __init__(self) -> None:
        self.passed: list[str] = []
        self.skipped: dict[str, str] = {}
        self.failed: dict[str, str] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What is done within is a part: no error leaves it, but one that ends the process."""
        say(f"gpu: {name}")
        try:
            yield
        except Missing as reason:
            self.skipped[name] = str(reason)
            say(f"gpu: {name}: skipped: {reason}")
        except Exception as error:  # whatever it is, the other parts go on, and the summary has it
            self.failed[name] = f"{type(error).__name__}: {error}"
            say("".join(traceback.format_exception(error)))
        else:
            self.passed.append(name)

    @property
    def status(self) -> int:
        return 1 if self.failed else 0

    def summary(self) -> str:
        """Lines for people: how many passed, and of the others each with why."""
        lines = [f"{len(self.passed)} parts passed, {len(self.skipped)} were skipped, {len(self.failed)} failed."]
        for what, parts in (("skipped", self.skipped), ("FAILED", self.failed)):
            lines += [f"{what}: {name}: {reason.splitlines()[0]}" for name, reason in parts.items()]
        return "\n".join(lines)
