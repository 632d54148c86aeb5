"""The parts of a launch list that do not depend on what computes the layers: where rows stand, a prefix, a token.

In: a transformer's sizes, the slots of sequences, the type of caches, a number of rows. Out: `LaunchList`, the buffers there are and the
kernels that run on them. Nothing here runs, compiles or needs Triton. `kernel_lists.py` has the lists whose layers are kernels,
`engine_lists.py` those of an engine.

Buffers of slots hold a sequence from its first position to its last token. Buffers of rows hold one step, or some positions of a prompt:
which slot a row works on is a number in one of them, so that a list serves any sequences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .decoder_step.sizes import Sizes
from .launch import Launch, LaunchList, next_power_of_two
from .prompt.constants import Position
from .sampling.constants import RING, Draw, Factors, Progress, Settings

_FIELDS = len(Position._fields)


@dataclass(frozen=True)
class Slots:
    """The sequences that a device holds at most, and the size of what it holds of each."""

    count: int
    capacity: int  # positions of a cache
    context: int  # keys of the cross-attention; 0 without
    ring: int = RING  # tokens that are held


def build_begin(builder: Builder) -> LaunchList:
    """Give rows the slots that `at` names: the position that the next step of each of them feeds."""
    builder.embed(builder.of_slots("next", _FIELDS, kind="int64"))
    return builder.list


def build_feed(builder: Builder) -> LaunchList:
    """Give rows the positions of prompts that were uploaded."""
    builder.embed(builder.of_rows("positions", _FIELDS, kind="int64"))
    return builder.list


def build_prefix(sizes: Sizes, slots: Slots, kind: str, positions: int) -> LaunchList:
    """Append the keys and values of one sequence's conditioning prefix, of `positions` positions, to where its positions begin.

    They are the same whatever follows: `prefix.<layer>`, float32 [positions, 2 * D], holds each position's key and value. kind: of the
    caches.
    """
    builder = Builder(sizes, slots, kind, positions, "prefix")
    for layer in range(sizes.depth):
        given = builder.of_rows(str(layer), 2 * sizes.cache_head_size)
        builder.append(f"layers.{layer}.prefix", layer, given, given, 0, False)
    return builder.list


class Builder:
    def __init__(self, sizes: Sizes, slots: Slots, kind: str, rows: int, owner: str) -> None:
        """kind: of caches, and of weights where there are some; owner: "rows" of a step, "prompt" or "prefix": what the names of buffers
        with an entry for each row begin with, together with the number of rows."""
        self.sizes, self.slots, self.kind, self.rows, self.owner = sizes, slots, kind, rows, owner
        self.list = LaunchList()

    @property
    def in_prompt(self) -> bool:
        return self.owner == "prompt"

    def embed(self, positions: str) -> None:
        table, streams, dim, count = self.embedding()
        arguments: dict[str, Any] = dict(table=table, positions=positions, at=self.numbers("at"), slots=self.numbers("slots"))
        arguments |= dict(lengths=self.numbers("lengths"), query_coordinates=self.numbers("query_coordinates"))
        arguments |= dict(embedding_ids=self.numbers("embedding_ids"), streams=streams)
        known = dict(DIM=dim, STREAMS=count, BLOCK=min(next_power_of_two(max(dim, 1)), 1024))
        self.list.launches.append(Launch("embed", "embed", (self.rows,), arguments, known))

    def append(self, name: str, layer: int, projected: str, first: str, heads: int, residual: bool) -> None:
        """Keys and values, which lie behind the queries of `heads` heads in each row of `projected`, into the layer's caches."""
        D, (keys, values) = self.sizes.cache_head_size, self.caches(layer)
        buffers = dict(projected=projected, first=first, keys=keys, values=values)
        buffers |= dict(slots=self.numbers("slots"), lengths=self.numbers("lengths"))
        numbers = dict(stride=(heads + 2) * D, capacity=self.slots.capacity)
        known = dict(H=heads, D=D, WIDTH=next_power_of_two(D), RESIDUAL=residual)
        self.list.launches.append(Launch(name, "append", (self.rows,), buffers | numbers, known))

    def sample(self) -> None:
        table, streams, dim, count = self.embedding()
        slots, V = self.slots, self.sizes.vocabulary
        arguments: dict[str, Any] = dict(logits=self.of_rows("logits", V), slots=self.numbers("slots"), nulls=self.numbers("nulls"))
        arguments |= dict(settings=self.of_slots("settings", len(Settings._fields), kind="int64"))
        arguments |= dict(factors=self.of_slots("factors", len(Factors._fields)))
        arguments |= dict(progress=self.of_slots("progress", len(Progress._fields), kind="int64"))
        arguments |= dict(tokens=self.of_slots("tokens", slots.ring, kind="int64"), table=table)
        arguments |= dict(next=self.of_slots("next", _FIELDS, kind="int64"), lengths=self.numbers("lengths"))
        arguments |= dict(query_coordinates=self.numbers("query_coordinates"), key_coordinates=self.key_coordinates())
        arguments |= dict(embedding_ids=self.numbers("embedding_ids"), streams=streams, ring=slots.ring, capacity=slots.capacity)
        draw = Draw(V, next_power_of_two(-(-V // 4)), dim, count, min(next_power_of_two(max(dim, 1)), 1024))
        known = {"sizes": draw, "NEXT": _FIELDS, "place": Position(*range(_FIELDS))}
        self.list.launches.append(Launch("sample", "sample", (self.rows,), arguments, known, 8))

    def embedding(self) -> tuple[str, str, int, int]:
        """The table of embeddings, where the streams of the next position go, their width and number; width 0 where layers embed."""
        nothing = self.numbers("embedding_ids")
        return nothing, nothing, 0, 1

    def caches(self, layer: int) -> list[str]:
        shape = self.slots.capacity, self.sizes.cache_head_size
        return [self.of_slots(f"{layer}.{part}", *shape, kind=self.kind) for part in ("key", "value")]

    def key_coordinates(self) -> str:
        return self.of_slots("key_coordinates", self.slots.capacity, kind="int64")

    def numbers(self, name: str) -> str:
        return self.of_rows(name, kind="int64")

    def of_rows(self, name: str, *shape: int, kind: str = "fp32") -> str:
        """A buffer with an entry for each row of the list."""
        return self.buffer(f"{self.owner}{self.rows}.{name}", self.rows, *shape, kind=kind)

    def of_slots(self, name: str, *shape: int, kind: str = "fp32") -> str:
        """A buffer with an entry for each slot."""
        return self.buffer(name, self.slots.count, *shape, kind=kind)

    def buffer(self, name: str, *shape: int, kind: str = "fp32") -> str:
        found = self.list.buffers.setdefault(name, (kind, shape))
        assert found == (kind, shape), (name, found, kind, shape)
        return name
