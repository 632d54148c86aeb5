"""A graph in 16 bits for an engine that takes types as it finds them: its products read and give fp16 or bf16, all else stays float32.

In: a graph in float32, as an ONNX file. Out: the same with its weights stored in 16 bits and casts around its products; or, `rounded`, a
fake-quantized copy: in float32, its values rounded where the other has them in 16 bits. ONNX Runtime's CPU provider knows no product in
bf16 and leaves out the casts around one in fp16, so that copy is what says on a CPU what 16 bits lose.

16 bits have: matrices of weights of at least 16 columns, kernels of convolutions, the caches and contexts of the token transformers, and
what is multiplied with them. Not: sums, norms, softmax, residual streams and their mixing; the last product, as logits or a wave of 8 bits
are none; what a logarithm is taken of, a spectrogram, whose range is more than 16 bits hold; and the state of the codec's decoder.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper

TYPES = {"fp16": (TensorProto.FLOAT16, np.dtype(np.float16)), "bf16": (TensorProto.BFLOAT16, np.dtype(ml_dtypes.bfloat16))}
_PRODUCTS = ("MatMul", "Gemm", "Conv", "ConvTranspose")
_LEAST_COLUMNS = 16
# Operators that hand on what they are given, and how many of their inputs that is (None: all).
_MOVES: dict[str, int | None] = {"Concat": None}
_MOVES |= dict.fromkeys(("Identity", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Gather", "Expand", "Split"), 1)
_CACHES = ("past_key_values.", "present.", "context.")  # inputs and outputs that are in 16 bits themselves
_STATE = "next."  # outputs in float32 that may be made of products in 16 bits


def save_mixed(source: Path, target: Path, kind: str, rounded: bool = False) -> None:
    """Write the graph of the file `source`, with its data, as `target` and `target`.data. kind: "fp16" or "bf16"."""
    model = onnx.load(source)
    _Mixed(model.graph, kind, rounded).rewrite()
    onnx.save_model(model, target, save_as_external_data=True, location=f"{target.name}.data", size_threshold=256)
    target.with_name(f"{target.name}.data").chmod(target.stat().st_mode)  # onnx writes it for its owner alone
    onnx.checker.check_model(target)


class _Mixed:
    """A value has a name in float32, one in 16 bits, or both; nodes are placed in order, casts where they are first needed."""

    def __init__(self, graph: onnx.GraphProto, kind: str, rounded: bool) -> None:
        self._graph, self._rounded = graph, rounded
        self._kind, self._dtype = TYPES[kind]
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        self._made_by = {name: node for node in graph.node for name in node.output}
        self._nodes: list[NodeProto] = []
        self._narrow: dict[str, str] = {}  # value -> its name in 16 bits
        self._native: set[str] = set()  # values that come in 16 bits, and have no float32 name unless one is asked for
        self._wide: dict[str, str] = {}  # of these, the float32 names
        self._new: list[TensorProto] = []

    def rewrite(self) -> None:
        graph = self._graph
        stays = self._before("Log") | self._last()
        states = {output.name for output in graph.output if output.name.startswith(_STATE)}
        for value in (*graph.input, *graph.output):
            if value.name.startswith(_CACHES) and not self._rounded:
                value.type.tensor_type.elem_type = self._kind
        for value in graph.input:  # of the fake-quantized copy's, only what it writes itself is rounded already
            if value.name.startswith(_CACHES[:1] if self._rounded else _CACHES):
                self._native.add(value.name)
                self._narrow[value.name] = value.name
        for node in graph.node:
            if node.op_type in _PRODUCTS and node.output[0] not in stays and self._in_16_bits(node):
                self._place_narrow(node, list(node.input))
            elif node.op_type == "TensorScatter":
                self._place_narrow(node, list(node.input[:2]))
            elif node.op_type in _MOVES and not states & set(node.output) and all(name in self._native for name in self._moved(node)):
                self._place_narrow(node, self._moved(node))
            else:
                self._nodes.append(_renamed(node, {name: self._in_float32(name) for name in node.input}))
        self._prune()

    def _in_16_bits(self, node: NodeProto) -> bool:
        """Whether a product reads a matrix of weights, or what is in 16 bits already."""
        if node.op_type in ("Conv", "ConvTranspose"):
            return node.input[1] in self._weights
        shapes = [tuple(self._weights[name].dims) for name in map(self._origin, node.input[:2]) if name in self._weights]
        large = any(min(shape[-2:]) >= _LEAST_COLUMNS for shape in shapes if len(shape) > 1)
        return large or any(name in self._native for name in node.input)

    def _origin(self, name: str) -> str:
        """The weight that a value is, or is a part of; else the value."""
        node = self._made_by.get(name)
        return self._origin(node.input[0]) if node is not None and _MOVES.get(node.op_type) == 1 else name

    def _moved(self, node: NodeProto) -> list[str]:
        return list(node.input[: _MOVES[node.op_type]])

    def _place_narrow(self, node: NodeProto, narrow: list[str]) -> None:
        """The node with these of its inputs in 16 bits, and its outputs."""
        self._nodes.append(_renamed(node, {name: self._in_16(name) if name in narrow else name for name in node.input}))
        sums = self._rounded and node.op_type in _PRODUCTS
        for name in node.output:
            self._narrow[name] = self._rounding(name) if sums else name
            self._native.add(name)

    def _in_16(self, name: str) -> str:
        if not name or name in self._narrow:
            return self._narrow.get(name, name)
        made_by = self._made_by.get(name)
        if name in self._weights:
            array = numpy_helper.to_array(self._weights[name])
            rounded = array.astype(np.float32).astype(self._dtype)
            made = f"{name}.16"
            self._new.append(numpy_helper.from_array(rounded.astype(np.float32) if self._rounded else rounded, made))
        elif made_by is not None and self._origin(name) in self._weights:  # a part of a weight is a part of its 16 bits
            made = f"{name}.16"
            inner = {made_by.input[0]: self._in_16(made_by.input[0])}
            self._nodes.append(_renamed(made_by, inner, {output: f"{output}.16" for output in made_by.output}))
        else:
            made = self._rounding(name)
        self._narrow[name] = made
        return made

    def _rounding(self, name: str) -> str:
        """A float32 value in 16 bits, or rounded to them."""
        self._nodes.append(helper.make_node("Cast", [name], [f"{name}.16"], name=f"{name}.16", to=self._kind))
        if not self._rounded:
            return f"{name}.16"
        self._nodes.append(helper.make_node("Cast", [f"{name}.16"], [f"{name}.rounded"], name=f"{name}.rounded", to=TensorProto.FLOAT))
        return f"{name}.rounded"

    def _in_float32(self, name: str) -> str:
        if name not in self._native:
            return name
        if self._rounded:
            return self._narrow[name]
        if name not in self._wide:
            self._wide[name] = f"{name}.32"
            self._nodes.append(helper.make_node("Cast", [name], [f"{name}.32"], name=f"{name}.32", to=TensorProto.FLOAT))
        return self._wide[name]

    def _before(self, op_type: str) -> set[str]:
        """All values that an operator of this type is made of."""
        found: set[str] = set()
        wanted = [name for node in self._graph.node if node.op_type == op_type for name in node.input]
        while wanted:
            name = wanted.pop()
            if name not in found:
                found.add(name)
                wanted += self._made_by[name].input if name in self._made_by else ()
        return found

    def _last(self) -> set[str]:
        """Return the graph's outputs, a state excepted, and what is handed on to be one."""
        found = {output.name for output in self._graph.output if not output.name.startswith(_STATE)}
        for node in reversed(self._graph.node):
            if node.op_type in _MOVES and found & set(node.output):
                found |= set(self._moved(node))
        return found

    def _prune(self) -> None:
        """Only what the outputs need: weights and their parts may be there in 16 bits alone now."""
        needed, nodes = {output.name for output in self._graph.output}, []
        for node in reversed(self._nodes):
            if needed & set(node.output):
                nodes.append(node)
                needed |= {*node.input, *_read_inside(node)}
        tensors = [tensor for tensor in (*self._weights.values(), *self._new) if tensor.name in needed]
        for field in ("node", "initializer", "value_info"):  # the last: types of what may be in 16 bits now
            self._graph.ClearField(field)
        self._graph.node.extend(nodes[::-1])
        self._graph.initializer.extend(tensors)


def _renamed(node: NodeProto, inputs: dict[str, str], outputs: dict[str, str] | None = None) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.input[:] = [inputs.get(name, name) for name in node.input]
    if outputs:
        copy.output[:] = [outputs[name] for name in node.output]
        copy.name = copy.output[0]
    return copy


def _read_inside(node: NodeProto) -> Iterable[str]:
    """What the node's subgraphs read."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            for inner in attribute.g.node:
                yield from (*inner.input, *_read_inside(inner))
