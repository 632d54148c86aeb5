"""A stage's transformer on a device: its weights, and for each size of request its buffers and recorded launches, kept for the next one.

In: a stage's weights and sizes, a driver. Out: `Lane`, in which one plan runs at a time. It does not know what tokens mean.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping

import numpy as np

from ...kernels.decoder_step.sizes import Sizes
from ...kernels.launch import Step, bytes_of, power
from ...kernels.launches import PROGRAMS, build_begin, build_prompt, build_step, positions_at_once
from ...kernels.lists import Batch, build_prefix
from ...kernels.packing import beside, in_full, narrow, pack_weights, type_of
from ...kernels.sampling.constants import RING
from .driver import Buffer, Driver, Recorded

_LOG = logging.getLogger(__name__)
TYPES = ("fp16", "bf16", "fp32", "int8")  # of matrices and caches; beside int8 caches are fp16
LEAST_CAPACITY = 512  # of a cache: kernels differ by the parts that they cut shorter ones into, and each kernel must have been compiled


class DeviceModel:
    """The weights of a stage on a device, packed once, and the lanes that were made so far."""

    least_capacity = LEAST_CAPACITY
    ring = RING  # tokens of a row that come back at once, and how far the device runs on after the last row has ended

    def __init__(self, driver: Driver, name: str, sizes: Sizes, weights: Mapping[str, np.ndarray], kind: str) -> None:
        """kind: of matrices and caches, one of TYPES; name: of the stage.

        MemoryError where the device is full, ValueError for int8 of a stage that was not exported in it.
        """
        self.driver, self.name, self.sizes, self.kind, self.beside = driver, name, sizes, kind, beside(kind)
        self.weights: dict[str, Buffer] = {}
        self._lanes: dict[tuple[Batch, int], Lane] = {}  # by size of batch and copies of its rows
        driver.spare.add(self)
        told = in_full(sizes, {name: array for name, array in weights.items() if ".attention.w_kv" in name})
        self._of_prefix = [told[f"layers.{layer}.attention.w_kv"] for layer in range(sizes.depth)]
        self._take(weights)

    def _take(self, weights: Mapping[str, np.ndarray]) -> None:
        """Put the weights where launches read them."""
        packed = pack_weights(self.sizes, weights, self.kind)
        state_bytes(self.driver, f"the weights of the {self.name} stage", sum(array.nbytes for array in packed.values()))
        for key, array in packed.items():
            self.weights[key] = self.driver.allocate(type_of(key, self.kind), array.shape)
            self.driver.upload(self.weights[key], array)

    def keys_and_values(self, prefix: np.ndarray) -> list[np.ndarray]:
        """Of a conditioning prefix, float32 [n, dim]: [n, 2 * D] of each layer. They are made of its embeddings in every layer."""
        made, D = [prefix @ weight for weight in self._of_prefix], self.sizes.cache_head_size
        for one in made[1:] if self.sizes.value_residual else ():
            one[:, D:] += 0.5 * made[0][:, D:]
        return made

    def lane(self, sequences: int, longest: int, keys: int, prefix: int, copies: int) -> Lane:
        """The one for requests of this size; made where there is none. MemoryError says what it would take.

        longest: positions of a sequence at most; keys: of the cross-attention; prefix: positions of a conditioning prefix; copies: 2 with
        guidance, whose sequences are among `sequences`.
        """
        batch = Batch(sequences, self.capacity(longest, self.positions(sequences)), keys, prefix, self.ring)
        key = batch, copies
        if key not in self._lanes:
            self._lanes[key] = Lane(self, batch, copies)
        return self._lanes[key]

    def give_back(self) -> None:
        self._lanes.clear()

    def positions(self, sequences: int) -> int:
        """Of each prompt in one list."""
        return positions_at_once(sequences)

    def capacity(self, longest: int, positions: int) -> int:
        """Of a cache for sequences of so many positions, with what the last round over the prompts writes beyond them."""
        return max(power(longest + positions - 1), self.least_capacity)

    def prompt_lists(self, batch: Batch) -> dict[str, Step]:
        """`prompt`: the next positions of all prompts; `begin`: their last ones."""
        arguments = self.sizes, batch, self.kind, self.driver.programs
        return {"prompt": build_prompt(*arguments), "begin": build_begin(*arguments)}

    def step_lists(self, batch: Batch, copies: int) -> list[Step]:
        """A step for each output projection."""
        heads, programs = range(self.sizes.outputs), self.driver.programs
        return [build_step(self.sizes, batch, self.kind, copies, head, programs) for head in heads]

    def constants(self, batch: Batch, buffers: Mapping[str, tuple[str, tuple[int, ...]]]) -> Iterator[tuple[str, np.ndarray]]:
        """Of these buffers those that are filled once: nothing is to be added to the streams that a list begins with, and with one stream a
        branch is always added as it is."""
        one_stream = self.sizes.streams == 1
        for name, (_, shape) in buffers.items():
            of_list = name.removeprefix("prompt.")
            if of_list == "no_branch" or (of_list == "beta.0" and not one_stream):
                yield name, np.zeros(shape, np.float32)
            elif of_list in ("beta.0", "beta.1") and one_stream:
                yield name, np.ones(shape, np.float32)
            elif of_list == "context_lengths":
                yield name, np.full(shape, batch.context, np.int64)

    def context_array(self, name: str, array: np.ndarray) -> np.ndarray:
        """An output of the stage's context graph as the launches read it."""
        return narrow(np.swapaxes(array, 1, 2) if name.endswith(".key") else array, self.beside)


class Lane:
    """Buffers of one size of batch, and the launches on them."""

    def __init__(self, model: DeviceModel, batch: Batch, copies: int) -> None:
        self.batch, self.positions = batch, model.positions(batch.sequences)
        lists = model.prompt_lists(batch)
        if batch.prefix:
            lists["prefix"] = build_prefix(model.sizes, batch, model.beside, copies)
        steps = model.step_lists(batch, copies)
        self.buffers: dict[str, Buffer] = dict(model.weights)
        self._allocate(model, [*lists.values(), *steps])
        self.recorded: dict[str, Recorded] = {name: model.driver.record(step, self.buffers) for name, step in lists.items()}
        self.steps: list[Recorded] = [model.driver.record(step, self.buffers) for step in steps]  # by output projection

    def _allocate(self, model: DeviceModel, lists: list[Step]) -> None:
        driver = model.driver
        wanted = {name: buffer for step in lists for name, buffer in step.buffers.items() if name not in self.buffers}
        state_bytes(driver, f"the {model.name} stage of this request", sum(bytes_of(*buffer) for buffer in wanted.values()))
        made = {name: driver.allocate(*buffer) for name, buffer in wanted.items()}
        for name, array in model.constants(self.batch, wanted):
            driver.upload(made[name], array)
        self.buffers |= made


def every_list(sizes: Sizes, guided: bool, prefix: bool, kind: str, programs: int = PROGRAMS) -> Iterator[Step]:
    """Lists that name every kernel which a request of a stage can need, however many rows it has and however long they are.

    guided: whether the stage can be; prefix: whether its conditioning is one; programs: the driver's.
    """
    # of more rows products take eight at a time, and attention leaves a row's keys in one part
    for capacity, sequences in itertools.product((LEAST_CAPACITY, 1024), (1, 2, 4, 8, 16, 32, 64, 128)):
        batch = Batch(sequences, capacity, 1, int(prefix))
        for head, copies in itertools.product(range(sizes.outputs), (1, 2) if guided and sequences > 1 else (1,)):
            yield build_step(sizes, batch, kind, copies, head, programs)
        yield build_prompt(sizes, batch, kind, programs)
        yield build_begin(sizes, batch, kind, programs)
        if prefix:
            yield build_prefix(sizes, batch, beside(kind), 1)


def state_bytes(driver: Driver, who: str, needed: int) -> None:
    """Before as many bytes are taken: where they are not free, what is kept for the next request is given back.

    MemoryError where that is not enough.
    """
    if driver.free_bytes() < needed:
        for one in [*driver.spare]:
            one.give_back()
    free = driver.free_bytes()
    _LOG.info("%s: %.1f MB of the GPU's memory, of %.1f MB that are free.", who, needed / 1e6, free / 1e6)
    if free < needed:
        raise MemoryError(
            f"{who}: {needed / 1e6:.1f} MB of the GPU's memory are needed, {free / 1e6:.1f} MB are free. "
            "Ask for fewer seconds, samples or prompts at once, or free what else runs there."
        )
