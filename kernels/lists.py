"""What a list of launches over a batch begins and ends with, whatever computes the layers: positions of a prompt, a prefix, a token.

In: a transformer's sizes, sequences of the batch, the type of caches. Out: `Step`, the buffers there are and the kernels that run on them.
Nothing here runs, compiles or needs Triton. `launches.py` has the lists whose layers are kernels, `calls.py` those of an engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .decoder_step.sizes import Sizes
from .launch import Launch, Step, power
from .sampling.constants import INTEGERS, PLAN, RING, STATE, Draw


@dataclass(frozen=True)
class Batch:
    """Of a run: what its caches are as large as."""

    sequences: int  # copies without condition included
    capacity: int
    context: int  # keys of the cross-attention
    prefix: int = 0  # keys of a sequence's conditioning prefix
    ring: int = RING  # tokens of a row that are held


def build_prefix(sizes: Sizes, batch: Batch, kind: str, copies: int) -> Step:
    """Keys and values of the conditioning prefixes, of the first of `copies` copies of every sequence, to where its positions begin.

    They are the same whatever follows: `prefix.<layer>`, float32 [sequences / copies * prefix, 2 * D], holds each position's key and value.
    kind: of the caches.
    """
    builder = Builder(sizes, batch, kind, batch.prefix)
    builder.prefix(batch.sequences // copies * batch.prefix)
    return builder.step


class Builder:
    def __init__(self, sizes: Sizes, batch: Batch, kind: str, positions: int = 0) -> None:
        """kind: of caches, and of weights where there are some; positions: of each sequence at once, in a list over prompts; 0: one, the
        last, in a list that ends with a token."""
        self.sizes, self.batch, self.kind = sizes, batch, kind
        self.in_prompt, self.positions = positions > 0, max(positions, 1)
        self.rows, self.capacity = batch.sequences * self.positions, batch.capacity
        self.step = Step()

    def embed(self) -> None:
        table, streams, dim, count = self.embedding()
        prompts = self.batch.sequences, self.capacity
        arguments: dict[str, Any] = dict(table=table, ids=self.buffer("prompt.ids", *prompts, kind="int64"))
        arguments |= dict(coordinates=self.buffer("prompt.coordinates", *prompts, kind="int64"), lengths=self.numbers("lengths"))
        arguments |= dict(query_coordinates=self.numbers("query_coordinates"), row_ids=self.numbers("row_ids"), streams=streams)
        arguments |= dict(capacity=self.capacity, positions=self.positions)
        known = dict(DIM=dim, STREAMS=count, BLOCK=min(power(max(dim, 1)), 1024))
        self.step.launches.append(Launch("embed", "embed", (self.rows,), arguments, known))

    def prefix(self, rows: int) -> None:
        D = self.sizes.cache_head_size
        lengths = self.buffer("prefix.lengths", rows, kind="int64")
        for layer in range(self.sizes.depth):
            told = self.buffer(f"prefix.{layer}", rows, 2 * D)
            self.append(f"layers.{layer}.prefix", layer, rows, told, told, lengths, self.batch.prefix, 0, False)

    def append(
        self, name: str, layer: int, rows: int, projected: str, first: str, lengths: str, positions: int, heads: int, residual: bool
    ) -> None:
        """Keys and values, which lie behind the queries of `heads` heads in each row of `projected`, into the layer's caches."""
        D, (keys, values) = self.sizes.cache_head_size, self.caches(layer)
        buffers = dict(projected=projected, first=first, keys=keys, values=values, lengths=lengths)
        numbers = dict(stride=(heads + 2) * D, capacity=self.capacity, positions=positions)
        known = dict(H=heads, D=D, WIDTH=power(D), RESIDUAL=residual)
        self.step.launches.append(Launch(name, "append", (rows,), buffers | numbers, known))

    def sample(self, copies: int) -> None:
        """copies: 2 with guidance."""
        table, streams, dim, count = self.embedding()
        B, V = self.rows // copies, self.sizes.vocabulary
        plans, states = self.buffer("plans", B, PLAN, kind="int64"), self.buffer("states", B, STATE, kind="int64")
        tokens = self.buffer("tokens", B, self.batch.ring, kind="int64")
        keys = self.buffer("key_coordinates", self.batch.sequences, self.capacity, kind="int64")
        arguments: dict[str, Any] = dict(logits=self.of_rows("logits", V), plans=plans, states=states, tokens=tokens, table=table)
        arguments |= dict(lengths=self.numbers("lengths"), query_coordinates=self.numbers("query_coordinates"), key_coordinates=keys)
        arguments |= dict(row_ids=self.numbers("row_ids"), streams=streams, B=B)
        arguments |= dict(integers=self.buffer("integers", INTEGERS, kind="int64"), factors=self.buffer("factors", 2))
        arguments |= dict(total=self.batch.ring, capacity=self.capacity)
        known = Draw(V, power(-(-V // 4)), copies, dim, count, min(power(max(dim, 1)), 1024))
        self.step.launches.append(Launch("sample", "sample", (B,), arguments, {"sizes": known}, 8))

    def embedding(self) -> tuple[str, str, int, int]:
        """The table of embeddings, where the streams of the next position go, their width and number; width 0 where layers embed."""
        nothing = self.numbers("row_ids")
        return nothing, nothing, 0, 1

    def caches(self, layer: int) -> list[str]:
        shape = (self.batch.sequences, self.capacity, self.sizes.cache_head_size)
        return [self.buffer(f"{layer}.{part}", *shape, kind=self.kind) for part in ("key", "value")]

    def numbers(self, name: str) -> str:
        return self.of_rows(name, kind="int64")

    def of_rows(self, name: str, *shape: int, kind: str = "fp32") -> str:
        """A buffer with an entry for each row of the list."""
        return self.buffer(f"prompt.{name}" if self.in_prompt else name, self.rows, *shape, kind=kind)

    def buffer(self, name: str, *shape: int, kind: str = "fp32") -> str:
        found = self.step.buffers.setdefault(name, (kind, shape))
        assert found == (kind, shape), (name, found, kind, shape)
        return name
