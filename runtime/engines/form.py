"""TensorRT's form of a bundle: the graphs that an engine is built of, where they are others than ONNX Runtime's.

In: a bundle's folder. Out: a checked `Form`. The exporter writes it; it reads no graph and needs no TensorRT.

The token transformers differ from those of `runtime/bundle.py`: caches have a static length T, over all of which a call attends, and

    <stage>       row_ids int64 [B, S], lengths int64 [B, S] (positions of the row up to each one, itself included; a row that ends
                  earlier counts no further), past_key_values.<layer>.key|value [B, 1, T, D] and the context in the form's precision,
                  head, query_coordinates, key_coordinates, prefix_mask, prefix_embeddings as there
                  -> logits float32 [B, V] of each row's last position, present.<layer>.key|value

A call writes its S positions, those beyond a row's end as well: a cache holds `positions` more than the longest sequence. The other graphs
have the inputs and outputs that they have there, in float32; what gives codes or tokens is the bundle's own graph.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ..bundle import Bundle, BundleError, FileRecord
from ..recorded_files import fault_of_file
from ..records import parse

FOLDER, RECORD, FORMAT = "tensorrt", "form.json", 1
POSITIONS = 128  # of a prompt that are fed in one call


@dataclass(frozen=True)
class Form:
    precision: str  # of products and caches: "fp32", "fp16" or "bf16"
    capacities: dict[str, int]  # stage -> T
    positions: int  # of a prompt in one call
    files: dict[str, FileRecord]
    format: int = FORMAT

    @classmethod
    def open(cls, bundle: Bundle) -> Form:
        """Checked, all its files with it; BundleError lists every fault."""
        folder = bundle.root / FOLDER
        try:
            values = json.loads((folder / RECORD).read_bytes())
        except FileNotFoundError as error:
            raise BundleError(f"{bundle.root} has no form for TensorRT: export it with --target tensorrt.") from error
        except (OSError, ValueError, RecursionError) as error:
            raise BundleError(f"{folder / RECORD} cannot be read: {error}") from error
        found = values.get("format") if isinstance(values, dict) else None
        if found != FORMAT:
            raise BundleError(f"{folder / RECORD} has format {found!r}, this version reads {FORMAT}: export the checkpoints again.")
        faults: list[str] = []
        form = parse(cls, values, RECORD, faults)
        if form is not None:
            faults += [f"{name!r}: {fault}" for name, record in form.files.items() if (fault := fault_of_file(folder, name, record))]
        if faults or form is None:
            raise BundleError(f"TensorRT's form in {folder} cannot be used:\n" + "\n".join(f"  - {fault}" for fault in faults))
        return form

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    def sources(self, bundle: Bundle, graph: str) -> dict[str, str]:
        """SHA-256 of the files that the engine of a graph is built of, by name, as they were checked when bundle and form were opened."""
        files = self.files if graph in self.files else bundle.manifest.files
        return {name: files[name].sha256 for name in (graph, f"{graph}.data") if name in files}

    def graph(self, bundle: Bundle, name: str) -> Path:
        """The file that an engine of the bundle's graph `name` is built of."""
        return bundle.root / FOLDER / name if name in self.files else bundle.path(name)
