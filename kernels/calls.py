"""A token transformer as lists whose layers are one call of an engine: what is not the transformer is the kernels of `lists.py`.

In: a transformer's sizes, sequences of the batch, the type of caches, the tensors of its TensorRT form. Out: `Step`. Nothing here runs.
The tensors are those of runtime/engines/form.py; a buffer stands behind each.
"""

from __future__ import annotations

from .decoder_step.sizes import Sizes
from .launch import Call, Step
from .lists import Batch, Builder


def build_step(stage: str, sizes: Sizes, batch: Batch, kind: str, copies: int, head: int = 0) -> Step:
    """One token of every sequence, as `kernels.launches` has it."""
    builder = _Builder(sizes, batch, kind)
    builder.layers(stage, head)
    builder.sample(copies)
    return builder.step


def build_prompt(stage: str, sizes: Sizes, batch: Batch, kind: str, positions: int) -> Step:
    """The next `positions` positions of every sequence's prompt: their keys and values; the logits mean nothing."""
    builder = _Builder(sizes, batch, kind, positions)
    builder.embed()
    builder.layers(stage, 0)
    return builder.step


def build_begin(sizes: Sizes, batch: Batch, kind: str) -> Step:
    """The last position of every prompt, into the buffers that a step begins with."""
    builder = _Builder(sizes, batch, kind)
    builder.embed()
    return builder.step


class _Builder(Builder):
    def layers(self, stage: str, head: int) -> None:
        sizes, B, S = self.sizes, self.batch.sequences, self.positions
        D, T, C = sizes.cache_head_size, self.capacity, self.batch.context
        tensors: dict[str, tuple[str, tuple[int, ...]]] = {
            name: (self.numbers(name), (B, S)) for name in ("row_ids", "lengths", "query_coordinates")
        }
        tensors["key_coordinates"] = self.buffer("key_coordinates", B, T, kind="int64"), (B, T)
        tensors["head"] = self.buffer(f"head.{head}", 1, kind="int64"), (1,)
        tensors["prefix_mask"] = self.of_rows("prefix_mask", kind="bool"), (B, S, 1)
        tensors["prefix_embeddings"] = self.of_rows("prefix_embeddings", sizes.dim), (B, S, sizes.dim)
        for layer in range(sizes.depth):
            for part, cache in zip(("key", "value"), self.caches(layer), strict=True):
                tensors[f"past_key_values.{layer}.{part}"] = tensors[f"present.{layer}.{part}"] = cache, (B, 1, T, D)
                shape = (B, sizes.dim_head, C) if part == "key" else (B, C, sizes.dim_head)
                if sizes.cross_attention:
                    tensors[f"context.{layer}.{part}"] = self.buffer(f"context.{layer}.{part}", *shape, kind=self.kind), shape
        tensors["logits"] = self.buffer("prompt.logits" if self.in_prompt else "logits", B, sizes.vocabulary), (B, sizes.vocabulary)
        self.step.launches.append(Call(stage, S > 1, tensors))
