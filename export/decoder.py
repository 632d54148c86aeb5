"""One graph for three token transformers: prefill (S > 1) and decode (S = 1), KV cache in and out, logits of the last position.

In: a checkpoint, its settings, its rows and bias table. Out: the decoder graph, and the context graph that turns a conditioning
[B, C, cond_dim] into what the decoder reads once per generation: keys and values of the cross-attention, or embeddings of a prefix.
Names of inputs and outputs are in `runtime.bundle`.
"""

from __future__ import annotations

import numpy as np

from ..kernels.attention.onnx_form import cached_attention, cross_attention, masked_bias, normalised, scattered_attention, table_bias
from ..kernels.geglu.onnx_form import causal_convolution, feed_forward, layer_norm
from ..kernels.geglu.reference import FeedForward
from ..kernels.hyper_connection.onnx_form import hyper_connection, residual
from ..kernels.hyper_connection.reference import HyperConnection
from ..kernels.quantized_product import Form
from ..kernels.quantized_product.onnx_form import product
from .checkpoint import Checkpoint
from .graph import BOOL, FLOAT, INT32, INT64, OPSET, Graph
from .open_musiclm import SEQUENCES, is_open_musiclm, key_scale
from .settings import Settings
from .transformers import branch

_LANES = 8  # GroupQueryAttention takes head sizes that are multiples of this


def cache_head_size(settings: Settings) -> int:
    """Head size of the KV cache: the model's own, rounded up to what the attention operator takes."""
    return -(-settings["dim_head"] // _LANES) * _LANES


class DecoderBuilder:
    """Places the nodes of one transformer; the checkpoint notes each tensor it reads."""

    def __init__(self, stage: str, checkpoint: Checkpoint, settings: Settings, form: Form, capacity: int | None) -> None:
        """form: of the matrices of the layers; output projections, norms, mixing weights and tables stay as they are.

        capacity: of the caches in TensorRT's form, which has the operators of opset 24 alone and caches of a static length, over
        all of which it attends; None for ONNX Runtime's.
        """
        self.capacity = capacity
        self.stage, self.checkpoint, self.settings, self.form = stage, checkpoint, settings, form
        self.attends: bool = settings["self_attention"]
        self.streams: int = settings["num_residual_streams"] if self.attends else 2  # see `_without_attention`
        self.wrapped = branch(0, 0, True) + "to_q.weight" in checkpoint.state
        self.prefix: bool = settings["cond_as_self_attn_prefix"]
        self.tokens = is_open_musiclm(checkpoint.state)  # whether it is open-musiclm's: its condition is tokens, its queries have length 1
        self.cross: bool = settings["audio_text_condition"] and not self.prefix and not self.tokens
        self.convolves: bool = self.tokens and settings["use_conv_ff"]
        self.inner: int = checkpoint.shape(f"{branch(0, 2, self.wrapped)}{3 + self.convolves}.gamma", 1)[0]
        self.g = Graph(stage, opset=24 if capacity else OPSET)  # 24 brings TensorScatter
        self._first_values: str | None = None
        self._first = ""  # where a call's positions begin, in TensorRT's form

    def decoder(self, rows: np.ndarray, bias: np.ndarray | None, positions: np.ndarray | None = None) -> Graph:
        """Return the graph. rows: the table of input embeddings; positions: that of absolute positions, if there is one."""
        g, dim, depth, D = self.g, self.settings["dim"], self.settings["depth"], cache_head_size(self.settings)
        row_ids = g.input("row_ids", INT64, ["B", "S"])
        coordinates, bias_values = ("", ""), ""
        if bias is not None:
            coordinates = g.input("query_coordinates", INT64, ["B", "S"]), g.input("key_coordinates", INT64, ["B", self.capacity or "T"])
        if self.capacity is not None:
            lengths = g.input("lengths", INT64, ["B", "S"])
            first = g.op("Gather", lengths, g.constant(0), axis=1)
            last = g.op("Sub", g.op("Gather", lengths, g.constant(-1), axis=1), first)
            self._first = g.op("Sub", first, g.constant([1]))
            bias_values = masked_bias(g, bias, self.settings["heads"], coordinates, lengths, self.capacity)
        else:
            seqlens, total = g.input("seqlens_k", INT32, ["B"]), g.input("total_sequence_length", INT32, [1])
            last = self._last(row_ids, seqlens)
            if bias is not None:
                bias_values = table_bias(g, bias, *coordinates, total)
        if self.prefix:
            g.input("prefix_mask", BOOL, ["B", "S", 1])
            g.input("prefix_embeddings", FLOAT, ["B", "S", dim])
        for layer in range(depth):
            if self.convolves:
                g.input(f"past_conv.{layer}", FLOAT, ["B", 2, 2 * self.inner])
                g.output(f"present_conv.{layer}", FLOAT, ["B", 2, 2 * self.inner])
            for part in ("key", "value"):
                g.input(f"past_key_values.{layer}.{part}", FLOAT, ["B", 1, self.capacity or "T", D])
                g.output(f"present.{layer}.{part}", FLOAT, ["B", 1, self.capacity or "T", D])
            if self.cross:
                g.input(f"context.{layer}.key", FLOAT, ["B", self.settings["dim_head"], "C"])
                g.input(f"context.{layer}.value", FLOAT, ["B", "C", self.settings["dim_head"]])

        x = g.op("Gather", g.weight("rows", rows), row_ids)
        if positions is not None:
            x = g.op("Add", x, g.op("Gather", g.weight("positions", positions), g.input("position_ids", INT64, ["B", "S"])))
        if self.streams > 1:
            x = g.op("Expand", g.op("Unsqueeze", x, g.constant([2])), g.constant([1, 1, self.streams, 1]))
        for layer in range(depth):
            x = self._connect(x, layer, 0, lambda y, layer=layer: self._self_attention(y, layer, bias_values))
            if self.cross:
                x = self._connect(x, layer, 1, lambda y, layer=layer: self._cross_attention(y, layer))
            x = self._connect(x, layer, 2, lambda y, layer=layer: self._feed_forward(y, layer, last))

        x = g.op("GatherND", x, g.op("Unsqueeze", last, g.constant([1])), batch_dims=1)
        if self.streams > 1:
            x = g.op("ReduceSum", x, g.constant([1]), keepdims=0)
        x = layer_norm(g, "norm", x, *self._norm("transformer.norm"))
        g.output(self._head(x), FLOAT, ["B", "V"])
        return g

    def _connect(self, x: str, layer: int, index: int, place) -> str:
        if self.streams == 1:
            return residual(self.g, x, place)
        name = f"layers.{layer}.{index}.connection"
        if not self.attends:
            return hyper_connection(self.g, name, self._without_attention(layer, index), x, place, fused=self.capacity is None)
        at, read = f"transformer.layers.{layer}.{index}.", self.checkpoint.array
        dim, s = self.settings["dim"], self.streams
        static_alpha = read(at + "static_alpha", s, s + 1)
        if not self.settings["stream_mixing"]:
            static_alpha = np.concatenate([static_alpha[:, :1], np.eye(s, dtype=np.float32)], axis=1)
        connection = HyperConnection(
            gamma=read(at + "norm.gamma", dim),
            dynamic_alpha=read(at + "dynamic_alpha_fn", dim, s + 1),
            alpha_scale=float(read(at + "dynamic_alpha_scale")),
            static_alpha=static_alpha,
            dynamic_beta=read(at + "dynamic_beta_fn", dim),
            beta_scale=float(read(at + "dynamic_beta_scale")),
            static_beta=read(at + "static_beta", s),
        )
        return hyper_connection(self.g, name, connection, x, place, fused=self.capacity is None)

    def _without_attention(self, layer: int, index: int) -> HyperConnection:
        """Return constants for releases that throw the result of self-attention away and add a layer's input to itself.

        Two streams express this in every form of a step. Stream 0 is the model's: doubled around self-attention, added to a branch's
        result elsewhere. Stream 1 keeps the input, since a stream of zeros has no norm, until the last connection drops it.
        """
        dim = self.settings["dim"]
        last = layer == self.settings["depth"] - 1 and index == 2
        alpha = np.array([[1, 1 if index else 2, 0], [0, 0, not last]], np.float32)
        beta = np.array([index > 0, 0], np.float32)
        return HyperConnection(np.zeros(dim), np.zeros((dim, 3)), 0.0, alpha, np.zeros(dim), 0.0, beta)

    def _self_attention(self, x: str, layer: int, bias: str) -> str:
        """Keys and values come from the branch input before the norm; values of layer 0 are averaged into later layers."""
        g, name, at = self.g, f"layers.{layer}.attention", branch(layer, 0, self.wrapped)
        H, D, padded = self.settings["heads"], self.settings["dim_head"], cache_head_size(self.settings)
        dim = self.settings["dim"]
        grow = ((0, 0), (0, 0), (0, padded - D))
        w_q = np.pad(self._weight(at + "to_q", dim, H * D).reshape(dim, H, D), grow).reshape(dim, H * padded)
        w_kv = np.pad(self._weight(at + "to_kv", dim, 2 * D).reshape(dim, 2, D), grow)
        w_out = np.pad(self._weight(at + "to_out.0", H * D, dim).reshape(H, D, dim), ((0, 0), (0, padded - D), (0, 0))).reshape(
            H * padded, dim
        )
        averaged = self.settings["add_value_residual"] and layer > 0
        if not self.attends:
            w_kv = np.zeros_like(w_kv)  # it never trained, and what attends to inputs doubled by every layer leaves 16 bits
        if averaged:
            w_kv[:, 1] *= 0.5  # exact, and saves a node in every layer: v = v_layer / 2 + v_first / 2

        query = self._product(f"{name}.w_q", layer_norm(g, f"{name}.norm", x, *self._norm(at + "norm")), w_q)
        source = g.op("Where", "prefix_mask", "prefix_embeddings", x) if self.prefix else x
        both = self._product(f"{name}.w_kv", source, w_kv.reshape(dim, 2 * padded))
        key, value = g.op("Split", both, g.constant([padded, padded]), outputs=2, axis=-1)
        if averaged:
            if self._first_values is None:
                raise AssertionError("layer 0 comes first")
            value = g.op("Add", value, self._first_values)
        elif self.settings["add_value_residual"] and self.settings["depth"] > 1:
            self._first_values = g.op("Mul", value, g.constant(0.5, np.float32))
        scale = D**-0.5
        if self.tokens:
            query = normalised(g, g.op("Reshape", query, g.constant([0, 0, H, padded])))
            query, scale = g.op("Reshape", query, g.constant([0, 0, H * padded])), 1.0
            gains = np.pad(key_scale(self.checkpoint, self.settings, layer), (0, padded - D))
            key = g.op("Mul", normalised(g, key), g.weight(f"{name}.key_scale", gains))
        if self.capacity:
            output = scattered_attention(g, query, key, value, layer, bias, self._first, padded, scale)
        else:
            output = cached_attention(g, query, key, value, layer, bias, H, scale)
        return self._product(f"{name}.w_out", output, w_out)

    def _cross_attention(self, x: str, layer: int) -> str:
        g, name, at = self.g, f"layers.{layer}.cross_attention", branch(layer, 1, self.wrapped)
        dim, inner = self.settings["dim"], self.settings["heads"] * self.settings["dim_head"]
        normed = layer_norm(g, f"{name}.norm", x, *self._norm(at + "norm"))
        query = self._product(f"{name}.w_q", normed, self._weight(at + "to_q", dim, inner))
        context = f"context.{layer}.key", f"context.{layer}.value"
        output = cross_attention(g, query, *context, self.settings["heads"], self.settings["dim_head"])
        return self._product(f"{name}.w_out", output, self._weight(at + "to_out.0", inner, dim))

    def _feed_forward(self, x: str, layer: int, last: str) -> str:
        g, name, at = self.g, f"layers.{layer}.feed_forward", branch(layer, 2, self.wrapped)
        dim, inner, shift = self.settings["dim"], self.inner, int(self.convolves)
        w_in, w_out = self._weight(at + "1", dim, 2 * inner), self._weight(f"{at}{5 + shift}", inner, dim)
        weights = FeedForward(*self._norm(at + "0"), w_in, *self._norm(f"{at}{3 + shift}", inner), w_out)
        if not self.convolves:
            return feed_forward(g, name, weights, x, self.form)
        taps = self.checkpoint.array(at + "2.ds_conv.weight", 2 * inner, 1, 3)[:, 0].T.copy()
        return feed_forward(g, name, weights, x, self.form, lambda y: causal_convolution(g, name, taps, y, layer, last))

    def _product(self, name: str, x: str, w: np.ndarray) -> str:
        return product(self.g, name, x, w, self.form)

    def _last(self, row_ids: str, seqlens: str) -> str:
        """Each row's last valid position in a call, int64 [B]: seqlens_k in a prefill from an empty cache, S - 1 after it."""
        g = self.g
        length = g.op("Gather", g.op("Shape", row_ids), g.constant(1))
        return g.op("Min", g.op("Cast", seqlens, to=INT64), g.op("Sub", length, g.constant(1)))

    def _head(self, x: str) -> str:
        """x [B, dim] -> logits [B, V]; of several heads only the one that input `head` names is read."""
        g = self.g
        if self.stage == "semantic" and not self.tokens:
            V = self.settings["num_semantic_tokens"] + 1
            product = g.op("MatMul", x, g.weight("head.0.weight", self._weight("to_logits", self.settings["dim"], V)))
            return g.op("Add", product, g.weight("head.bias", self.checkpoint.array("to_logits.bias", V)), outputs=["logits"])
        weights = f"{self.stage}_logit_weights"
        if self.tokens:
            weights = f"logit_weights.{len(SEQUENCES[self.stage]) - 1}"
        heads = self.checkpoint.array(weights, *self.checkpoint.shape(weights, 3)[:2], self.settings["dim"])
        if len(heads) == 1:
            return g.op("MatMul", x, g.weight("head.0.weight", heads[0].T), outputs=["logits"])
        head = g.input("head", INT64, [1])
        if self.capacity:
            weights = g.weight("heads", heads.transpose(0, 2, 1))
            return g.op("MatMul", x, g.op("Squeeze", g.op("Gather", weights, head), g.constant([0])), outputs=["logits"])
        names = [g.weight(f"head.{q}.weight", head.T) for q, head in enumerate(heads)]
        self._choose(g, x, head, names, 0, "logits")
        return "logits"

    def _choose(self, g: Graph, x: str, head: str, names: list[str], first: int, output: str) -> None:
        """A binary tree of `If` nodes: a gathered weight would be copied whole at every step."""
        if len(names) == 1:
            g.op("MatMul", x, names[0], outputs=[output])
            return
        half = len(names) // 2
        branches = []
        for side, (start, part) in enumerate([(0, names[:half]), (half, names[half:])]):
            inner = g.branch(f"head.{first + start}")
            value = f"{output}.{side}"
            self._choose(inner, x, head, part, first + start, value)
            inner.output(value, FLOAT, ["B", "V"])
            branches.append(inner.proto())
        condition = g.op("Less", head, g.constant([first + half]))
        g.op("If", condition, outputs=[output], then_branch=branches[0], else_branch=branches[1])

    def _norm(self, name: str, width: int = 0) -> tuple[np.ndarray, np.ndarray]:
        width = width or self.settings["dim"]
        return self.checkpoint.array(f"{name}.gamma", width), self.checkpoint.array(f"{name}.beta", width)

    def _weight(self, name: str, inputs: int, outputs: int) -> np.ndarray:
        """A linear layer's weight as [inputs, outputs]."""
        return np.array(self.checkpoint.array(f"{name}.weight", outputs, inputs).T)


def build_context(stage: str, checkpoint: Checkpoint, settings: Settings) -> Graph:
    """conditioning [B, C, cond_dim] -> `context.<layer>.key` [B, D, C + 1], `.value` [B, C + 1, D], or `prefix_embeddings` [B, C, dim].

    The first key and value of the cross-attention are the null ones, all that a row without condition sees. Keys come scaled.
    """
    g = Graph(f"{stage}_context")
    dim, cond_dim, D = settings["dim"], settings["cond_dim"], settings["dim_head"]
    x = g.input("conditioning", FLOAT, ["B", "C", cond_dim])
    if "proj_text_embed.weight" in checkpoint.state:
        x = g.op("MatMul", x, g.weight("projection", checkpoint.array("proj_text_embed.weight", dim, cond_dim).T))
    if settings["cond_as_self_attn_prefix"]:
        g.output(g.op("Identity", x, outputs=["prefix_embeddings"]), FLOAT, ["B", "C", dim])
        return g

    wrapped = branch(0, 0, True) + "to_q.weight" in checkpoint.state
    rows = g.op("Concat", g.op("Gather", g.op("Shape", x), g.constant([0])), g.constant([1, D]), axis=0)
    first_values = None
    for layer in range(settings["depth"]):
        at = branch(layer, 1, wrapped)
        normed = layer_norm(
            g, f"layers.{layer}.norm", x, *(checkpoint.array(f"{at}context_norm.{part}", dim) for part in ("gamma", "beta"))
        )
        w_k, w_v = np.split(checkpoint.array(f"{at}to_kv.weight", 2 * D, dim).T, 2, axis=1)
        null_key, null_value = checkpoint.array(f"{at}null_kv", 2, 1, D)
        key = g.op("MatMul", normed, g.weight(f"layers.{layer}.w_k", w_k * D**-0.5))
        value = g.op("MatMul", normed, g.weight(f"layers.{layer}.w_v", w_v))
        if settings["add_value_residual"] and first_values is not None:
            value = g.op("Mul", g.op("Add", value, first_values), g.constant(0.5, np.float32))
        first_values = first_values or value
        for name, null, values in (("key", null_key * D**-0.5, key), ("value", null_value, value)):
            first = g.op("Expand", g.weight(f"layers.{layer}.null_{name}", null), rows)
            joined = g.op("Concat", first, values, axis=1)
            if name == "key":
                g.op("Transpose", joined, outputs=[f"context.{layer}.key"], perm=[0, 2, 1])
                g.output(f"context.{layer}.key", FLOAT, ["B", D, "C_plus_1"])
            else:
                g.op("Identity", joined, outputs=[f"context.{layer}.value"])
                g.output(f"context.{layer}.value", FLOAT, ["B", "C_plus_1", D])
    return g
