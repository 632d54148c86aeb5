"""Tracing a PyTorch module into an ONNX file: the stages that are not built by hand. It knows no model."""

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
                module.eval(),
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
