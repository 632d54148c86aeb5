"""A stage's transformer on a device: its weights, and the launch lists that compute rows of sequences with them.

In: a stage's weights and sizes, a driver. Out: `DeviceModel`, which several batches may use. It does not know what tokens mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ...kernels.decoder_step.sizes import Sizes
from ...kernels.kernel_lists import PROGRAMS, TILE_ROWS, begin_list, feed_list, prompt_list, step_list
from ...kernels.launch import LaunchList, next_power_of_two
from ...kernels.list_builder import Slots, build_prefix
from ...kernels.packing import cache_dtype, cast, dequantize_all, pack_weights, type_of
from ...kernels.prompt.constants import Position
from ...kernels.sampling.constants import RING
from .driver import Buffer, Driver, reserve

TYPES = ("fp16", "bf16", "fp32", "int8")  # of matrices and caches; with int8 caches are fp16
LEAST_CAPACITY = 512  # of a cache: shorter ones would soon have to grow
PROMPT_ROWS = 64  # positions of prompts that are computed together at most
Tables = Mapping[int, np.ndarray]  # slot -> int64 [n, Position] that it is fed


class DeviceModel:
    """The weights of a stage on a device, packed once."""

    least_capacity = LEAST_CAPACITY
    ring = RING  # tokens of a sequence that the device holds, and steps after which they are downloaded at the latest
    most_rows = 1 << 16  # of a step: memory is the limit
    at_once = positions = PROMPT_ROWS  # positions of prompts in one call at most, of all slots and of one

    def __init__(self, driver: Driver, name: str, sizes: Sizes, weights: Mapping[str, np.ndarray], kind: str) -> None:
        """kind: of matrices and caches, one of TYPES; name: of the stage.

        Raises MemoryError if the device is full, ValueError for int8 of a stage that was not exported in it.
        """
        self.driver, self.name, self.sizes, self.kind, self.cache_kind = driver, name, sizes, kind, cache_dtype(kind)
        self.weights: dict[str, Buffer] = {}
        full = dequantize_all(sizes, {name: array for name, array in weights.items() if ".attention.w_kv" in name})
        self._of_prefix = [full[f"layers.{layer}.attention.w_kv"] for layer in range(sizes.depth)]
        self._upload(weights)

    def _upload(self, weights: Mapping[str, np.ndarray]) -> None:
        packed = pack_weights(self.sizes, weights, self.kind)
        reserve(self.driver, f"the weights of the {self.name} stage", sum(array.nbytes for array in packed.values()))
        for key, array in packed.items():
            self.weights[key] = self.driver.allocate(type_of(key, self.kind), array.shape)
            self.driver.upload(self.weights[key], array)

    def keys_and_values(self, prefix: np.ndarray) -> list[np.ndarray]:
        """Return [n, 2 * D] of each layer: the keys and values of a conditioning prefix, float32 [n, dim]. They are made of its embeddings
        in every layer."""
        made, D = [prefix @ weight for weight in self._of_prefix], self.sizes.cache_head_size
        for one in made[1:] if self.sizes.value_residual else ():
            one[:, D:] += 0.5 * made[0][:, D:]
        return made

    def capacity(self, longest: int) -> int:
        """Return the positions of a cache for sequences of `longest` positions."""
        return max(next_power_of_two(longest), self.least_capacity)

    def count_slots(self, used: int) -> int:
        """Return how many slots to make for `used` ones. The last one is for rows that compute nothing."""
        return next_power_of_two(used) + 1

    def rows(self, used: Sequence[int], slots: Slots) -> list[int]:
        """Return the slot of every row of a step that computes the slots `used`: as many rows as there are lists for."""
        return [*used, *[slots.count - 1] * (next_power_of_two(len(used)) - len(used))]

    def prompt_table(self, fed: Tables, ends: Mapping[int, int], slots: Slots) -> np.ndarray:
        """Return int64 [rows, Position], the positions of a call over prompts, of which each is a row.

        ends: positions of every slot in use whose keys and values are needed.
        """
        table = np.concatenate([*fed.values()])
        nothing = Position(slot=slots.count - 1, length=1, embedding_id=0, coordinate=0)
        padding = np.tile(np.array(nothing), (next_power_of_two(len(table)) - len(table), 1))
        return np.concatenate([table, padding])

    def build(self, slots: Slots, name: str, rows: int, head: int = 0) -> LaunchList:
        """Return a list by its name: "begin" gives rows of a step their slots, "step" runs it to its tokens, "feed" gives rows the
        positions of prompts, "prompt" runs these, and "prefix" appends the keys and values of a conditioning prefix of `rows` positions."""
        if name == "prefix":
            return build_prefix(self.sizes, slots, self.cache_kind, rows)
        return self._build(slots, name, rows, head)

    def _build(self, slots: Slots, name: str, rows: int, head: int) -> LaunchList:
        arguments = self.sizes, slots, self.kind, rows
        if name == "step":
            return step_list(*arguments, head, self.driver.programs)
        if name == "prompt":
            return prompt_list(*arguments, self.driver.programs)
        return {"begin": begin_list, "feed": feed_list}[name](*arguments)

    def constants(self, slots: Slots, buffers: Mapping[str, tuple[str, tuple[int, ...]]]) -> Iterator[tuple[str, np.ndarray]]:
        """Yield the content of those of these buffers that are filled when they are made: where slots stand that nothing has joined, which
        uploaded position a row has. Nothing is to be added to the streams that a list begins with, and with one stream a branch is always
        added as it is."""
        for name, (kind, shape) in buffers.items():
            owner, _, own = name.partition(".")
            if own in ("no_branch", "no_beta"):
                yield name, np.zeros(shape, np.float32)
            elif owner == "context":  # of the slot that rows without a sequence have, too
                yield name, cast(np.zeros(shape, np.float32), kind)
            elif own in ("beta.0", "beta.1") and self.sizes.streams == 1:
                yield name, np.ones(shape, np.float32)
            elif own == "context_lengths":
                yield name, np.full(shape, slots.context, np.int64)
            elif name == "next":
                yield name, at_rest(slots)
            elif own == "at" and owner.startswith("prompt"):
                yield name, np.arange(shape[0])

    def context_array(self, name: str, array: np.ndarray) -> np.ndarray:
        """Return an output of the stage's context graph as the launches read it."""
        return cast(np.swapaxes(array, 1, 2) if name.endswith(".key") else array, self.cache_kind)


def at_rest(slots: Slots) -> np.ndarray:
    """Return int64 [slots, Position]: the first position of every slot."""
    return np.array([Position(slot, length=1, embedding_id=0, coordinate=0) for slot in range(slots.count)])


def every_list(sizes: Sizes, prefix: bool, kind: str, programs: int = PROGRAMS) -> Iterator[LaunchList]:
    """Yield lists that name every kernel which a stage can need, however many rows it has and however long they are.

    prefix: whether its conditioning is one; programs: the driver's.
    """
    slots = Slots(2, LEAST_CAPACITY, 1)
    for rows in (1 << power for power in range(TILE_ROWS.bit_length())):  # of more rows products take eight at a time
        yield from (step_list(sizes, slots, kind, rows, head, programs) for head in range(sizes.outputs))
        yield prompt_list(sizes, slots, kind, rows, programs)
    yield begin_list(sizes, slots, kind, 1)
    yield feed_list(sizes, slots, kind, 1)
    if prefix:
        yield build_prefix(sizes, slots, cache_dtype(kind), 1)
