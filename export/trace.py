"""Tracing a PyTorch module into an ONNX file: the stages that are not built by hand. It knows no model.

A trace is kept without its weights, and the same module with other weights is not traced again (`trace_cache`).
"""

import copy
import logging
import warnings
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import TorchTensor
from torch import Tensor, nn
from torch.onnx import ONNXProgram

from . import trace_cache

OPSET = 20


def trace(module: nn.Module, example: tuple[Tensor, ...], path: Path, inputs: list[str], outputs: list[str], dims: list[Any]) -> None:
    """Write the ONNX form of `module` to `path`, its weights beside it in `<path>.data`. dims: the dynamic dimensions of each input;
    those of a variable number of arguments are one tuple.

    Every tensor of `example` must be an object of its own: one that is given twice is traced as one input.
    """
    module = _with_onnx_lstm(module.eval())
    key = trace_cache.key_of(module, example, (inputs, outputs, dims, OPSET))
    skeleton = trace_cache.read(key)
    if skeleton is None:
        skeleton = _skeleton(module, example, inputs, outputs, dims)
        trace_cache.write(key, skeleton)
    _put_in_weights(skeleton, module, inputs)
    program = ONNXProgram(skeleton, None)
    program.optimize()  # with the weights in place: it also computes what depends on nothing else
    program.save(path, external_data=True)


def _skeleton(module: nn.Module, example: tuple[Tensor, ...], inputs: list[str], outputs: list[str], dims: list[Any]) -> ir.Model:
    """Trace `module` into a graph whose weights are further inputs, by their names in the module."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)  # it warns of every optional package that is not installed
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                example,
                dynamo=True,
                opset_version=OPSET,
                input_names=inputs,
                output_names=outputs,
                dynamic_shapes=dims,
                verbose=False,
                optimize=False,
            )
    finally:
        log.setLevel(level)
    assert program is not None
    graph = program.model.graph
    assert [output.name for output in graph.outputs] == outputs, "a tensor that is returned twice has one name: clone it"
    for node in graph:
        node.metadata_props.clear()  # stack traces with the paths of this machine
    for name, weight in list(graph.initializers.items()):
        del graph.initializers[name]
        weight.const_value = None
        graph.inputs.append(weight)
    # Written and read again, so that a graph is the same to the byte whether its trace was kept or not.
    return ir.serde.from_proto(ir.to_proto(program.model))


def _put_in_weights(skeleton: ir.Model, module: nn.Module, inputs: list[str]) -> None:
    """Turn the inputs that are weights into initializers with the tensors of the module."""
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    graph = skeleton.graph
    for weight in graph.inputs[len(inputs) :]:
        assert weight.name in tensors, f"{weight.name} is neither a parameter nor a buffer of {type(module).__name__}"
        weight.const_value = TorchTensor(tensors[weight.name].detach(), weight.name)
        graph.inputs.remove(weight)
        graph.initializers.add(weight)


def _with_onnx_lstm(module: nn.Module) -> nn.Module:
    """`module`, or a copy of it whose LSTMs are ONNX's: torch 2.13 fixes the length of its own to the example's."""
    if not any(isinstance(part, nn.LSTM) for part in module.modules()):
        return module
    module = copy.deepcopy(module)
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.LSTM):
                setattr(parent, name, _OnnxLSTM(child))
    return module


class _OnnxLSTM(nn.Module):
    """x [T, B, C] -> (y [T, B, H], (h, c) after the last position [layers, B, H]), as an LSTM in one direction."""

    def __init__(self, lstm: nn.LSTM) -> None:
        super().__init__()
        assert not (lstm.bidirectional or lstm.batch_first or lstm.proj_size) and lstm.bias
        self.hidden = lstm.hidden_size
        self.layers = nn.ModuleList()
        for layer in range(lstm.num_layers):
            state = {kind: getattr(lstm, f"{kind}_l{layer}") for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
            gates = {kind: tensor.detach().chunk(4) for kind, tensor in state.items()}
            # torch has input, forget, cell, output; ONNX input, output, forget, cell
            ordered = {kind: torch.cat([chunks[i] for i in (0, 3, 1, 2)])[None] for kind, chunks in gates.items()}
            both = torch.cat([ordered["bias_ih"], ordered["bias_hh"]], dim=1)
            weights = [ordered["weight_ih"], ordered["weight_hh"], both]
            self.layers.append(nn.ParameterList([nn.Parameter(tensor, requires_grad=False) for tensor in weights]))

    def forward(self, x: Tensor, before: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """before: h and c [layers, B, H] to begin with, zeros without."""
        after: list[tuple[Tensor, Tensor]] = []
        last = (1, x.shape[1], self.hidden)
        for index, weights in enumerate(self.layers):
            initial = () if before is None else (None, *(one[index : index + 1] for one in before))  # None: all rows are of one length
            inputs, shapes = [x, *weights.parameters(), *initial], [(x.shape[0], 1, x.shape[1], self.hidden), last, last]
            attributes: dict[str, Any] = {"hidden_size": self.hidden}
            y, h, c = torch.onnx.ops.symbolic_multi_out("LSTM", inputs, attributes, dtypes=[x.dtype] * 3, shapes=shapes, version=OPSET)
            after.append((h, c))
            x = y.squeeze(1)
        hidden, cell = (torch.cat(states) for states in zip(*after, strict=True))
        return x, (hidden, cell)
