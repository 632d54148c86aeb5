"""A token transformer as lists whose layers are one call of an engine: what is not the transformer is the kernels of `list_builder.py`.

In: a transformer's sizes, the slots of sequences, the type of caches, a number of rows. Out: `LaunchList`. Nothing here runs. The tensors
are those of runtime/engines/form.py; a buffer stands behind each. An engine finds its caches by their address: row r of a call is slot r.
"""

from __future__ import annotations

from .decoder_step.sizes import Sizes
from .launch import Call, LaunchList
from .list_builder import Builder, Slots, build_begin, build_feed


def step_list(stage: str, sizes: Sizes, slots: Slots, kind: str, rows: int, head: int = 0) -> LaunchList:
    """One token of every row, as `kernels.kernel_lists` has it."""
    builder = _Builder(sizes, slots, kind, rows, 1, "rows")
    builder.layers(stage, head)
    builder.sample()
    return builder.list


def begin_list(sizes: Sizes, slots: Slots, kind: str, rows: int) -> LaunchList:
    """The residual streams, slots, lengths and coordinates of rows that are given other slots."""
    return build_begin(_Builder(sizes, slots, kind, rows, 1, "rows"))


def feed_list(sizes: Sizes, slots: Slots, kind: str, rows: int, positions: int) -> LaunchList:
    """Uploaded positions: the next `positions` of every slot from the first to number `rows` - 1."""
    return build_feed(_Builder(sizes, slots, kind, rows, positions, "prompt"))


def prompt_list(stage: str, sizes: Sizes, slots: Slots, kind: str, rows: int, positions: int) -> LaunchList:
    """Run what `feed_list` left through the layers: keys and values; the logits mean nothing."""
    builder = _Builder(sizes, slots, kind, rows, positions, "prompt")
    builder.layers(stage, 0)
    return builder.list


class _Builder(Builder):
    def __init__(self, sizes: Sizes, slots: Slots, kind: str, rows: int, positions: int, owner: str) -> None:
        super().__init__(sizes, slots, kind, rows * positions, owner)
        self._of_call, self._positions = rows, positions

    def layers(self, stage: str, head: int) -> None:
        sizes, R, S = self.sizes, self._of_call, self._positions
        D, T, C = sizes.cache_head_size, self.slots.capacity, self.slots.context
        own = {"row_ids": "embedding_ids", "lengths": "lengths", "query_coordinates": "query_coordinates"}
        tensors: dict[str, tuple[str, tuple[int, ...]]] = {name: (self.numbers(buffer), (R, S)) for name, buffer in own.items()}
        tensors["key_coordinates"] = self.key_coordinates(), (R, T)
        tensors["head"] = self.buffer(f"head.{head}", 1, kind="int64"), (1,)
        tensors["prefix_mask"] = self.of_rows("prefix_mask", kind="bool"), (R, S, 1)
        tensors["prefix_embeddings"] = self.of_rows("prefix_embeddings", sizes.dim), (R, S, sizes.dim)
        for layer in range(sizes.depth):
            for part, cache in zip(("key", "value"), self.caches(layer), strict=True):
                tensors[f"past_key_values.{layer}.{part}"] = tensors[f"present.{layer}.{part}"] = cache, (R, 1, T, D)
                shape = (sizes.dim_head, C) if part == "key" else (C, sizes.dim_head)
                if sizes.cross_attention:
                    tensors[f"context.{layer}.{part}"] = self.of_slots(f"context.{layer}.{part}", *shape, kind=self.kind), (R, *shape)
        logits = self.buffer(f"{self.owner}{self.rows}.logits", R, sizes.vocabulary)
        tensors["logits"] = logits, (R, sizes.vocabulary)
        self.list.launches.append(Call(stage, self.in_prompt, tensors))
