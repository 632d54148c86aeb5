"""Tracing a PyTorch module into an ONNX file: the stages that are not built by hand. It knows no model."""

import copy
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

OPSET = 20


def trace(
    module: nn.Module, example: tuple[Tensor, ...], path: Path, inputs: list[str], outputs: list[str], dims: list[dict[int, Any]]
) -> None:
    """Write the ONNX form of `module` to `path`, its weights beside it in `<path>.data`. dims: the dynamic dimensions of each input.

    Every tensor of `example` must be an object of its own: one that is given twice is traced as one input.
    """
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)  # it warns of every optional package that is not installed
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                _with_onnx_lstm(module.eval()),
                example,
                dynamo=True,
                opset_version=OPSET,
                input_names=inputs,
                output_names=outputs,
                dynamic_shapes=dims,
                verbose=False,
            )
    finally:
        log.setLevel(level)
    assert program is not None
    for node in program.model.graph:
        node.metadata_props.clear()  # stack traces with the paths of this machine
    program.save(path, external_data=True)


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
    """x [T, B, C] -> (y [T, B, H], None), as an LSTM in one direction that starts from zero; its last states are not given."""

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

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        for weights in self.layers:
            inputs, shape = [x, *weights.parameters()], (x.shape[0], 1, x.shape[1], self.hidden)
            y = torch.onnx.ops.symbolic("LSTM", inputs, {"hidden_size": self.hidden}, dtype=x.dtype, shape=shape, version=OPSET)
            x = y.squeeze(1)
        return x, None
