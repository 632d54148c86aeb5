"""The kernels that a bundle brings: machine code by the key of a launch and the capability of a card.

In: a folder as `kernels/compile.py` writes it. Out: the code that a card can run, checked against its hash. It needs no GPU.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...kernels.launch import FORMAT, RECORD
from ..bundle import BundleError

FOLDER = "kernels"  # of a bundle


@dataclass(frozen=True)
class Code:
    """Of one kernel for one card."""

    image: bytes  # a cubin, or PTX and a zero
    function: str
    threads: int
    shared_bytes: int
    waits: bool  # by itself for the kernel before it: it may be launched before that one has ended
    signature: dict[str, Any]  # of every parameter in order, see `signature_of`; a tuple is a list


class Kernels:
    """The kernels of a bundle. BundleError where they are missing, damaged, or of another format."""

    def __init__(self, bundle: Path) -> None:
        self.root = bundle / FOLDER
        try:
            record = json.loads((self.root / RECORD).read_bytes())
            if record["format"] != FORMAT:
                raise BundleError(f"{self.root / RECORD} has format {record['format']!r}, this version reads {FORMAT}: pack them again.")
            self._kernels, self._files = dict(record["kernels"]), dict(record["files"])
        except FileNotFoundError as error:
            raise BundleError(f"{bundle} has no kernels for a GPU: export it with --kernels.") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, BundleError):
                raise
            raise BundleError(f"{self.root / RECORD} is not a record of kernels: {error!r}") from error

    def summary(self) -> str:
        """How many there are, what they take of a processor, and for which cards every one of them is."""
        every = [kernel["machines"] for kernel in self._kernels.values()]
        uses = [machine for machines in every for machine in machines.values()]
        registers, stack = (max((one[what] for one in uses), default=0) for what in ("registers", "stack_bytes"))
        spilling = sum(any(one["stack_bytes"] for one in machines.values()) for machines in every)
        spills = f"{spilling} of them spill up to {stack} bytes" if spilling else "none of them spills"
        shared = set.intersection(*map(set, every)) if every else set()
        cards = ", ".join(f"{number / 10:.1f}" for number in sorted(int(one) for one in shared - {"ptx"}))
        later = " and later cards" * ("ptx" in shared)
        return f"{len(every)}, at most {registers} registers a thread, {spills}; for compute capability {cards}{later}"

    def find(self, key: str, capability: int) -> Code:
        """What a card of this compute capability (90 for 9.0) runs for a launch: its own machine code; before 9.0 that of an earlier
        card of its generation; or PTX, which the driver compiles. BundleError names what is missing."""
        kernel = self._kernels.get(key)
        if kernel is None:
            raise BundleError(f"{self.root} has no kernel {key}: it was packed for other types, or by another version. Pack it again.")
        machines = kernel["machines"]
        # from 9.0 on Triton compiles for one capability alone, sm_90a and so on, which no other card takes
        family = range(capability - capability % 10 if capability < 90 else capability, capability + 1)
        native = [one for one in family if str(one) in machines]
        machine = machines.get(str(max(native)) if native else "ptx")
        if machine is None:
            raise BundleError(f"{self.root} has code for {', '.join(machines)}, not for this GPU's capability {capability}. Pack it again.")
        name = machine["file"]
        if name not in self._files or Path(name).name != name:
            raise BundleError(f"{self.root / RECORD} names the file {name!r}, which is not one of the folder.")
        data = (self.root / name).read_bytes()
        if hashlib.sha256(data).hexdigest() != self._files[name]:
            raise BundleError(f"{self.root / name} is not the file that was packed: its hash differs.")
        is_text = name.endswith(".ptx")
        image = data + b"\0" * is_text
        return Code(image, kernel["function"], machine["threads"], machine["shared_bytes"], machine["waits"], kernel["signature"])
