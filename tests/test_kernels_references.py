"""Every kernel that lists launch has a numpy reference with the same parameters, and is the same at every depth.

The tests beside this one launch kernels at odd sizes and in three types; `support/interpreted.py` holds each launch against its reference.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import replace
from functools import wraps
from typing import Any

import numpy as np
import pytest
import torch
from support import references
from support.interpreted import empty, floats, launch

from musiclm_deploy.kernels.decoder_step.sizes import Sizes
from musiclm_deploy.kernels.functions import functions_of
from musiclm_deploy.kernels.launch import Launch, LaunchList, key_of
from musiclm_deploy.kernels.patches import build_patches
from musiclm_deploy.kernels.prompt.triton_form import embed
from musiclm_deploy.runtime.device.model import every_list
from musiclm_deploy.runtime.engines.model import every_list as lists_beside_engines

README = Sizes(  # the transformer of upstream's README
    dim=1024,
    depth=6,
    heads=8,
    dim_head=64,
    cache_head_size=64,
    inner=2730,
    streams=4,
    vocabulary=1025,
    outputs=2,
    table_rows=5000,
    bias_entries=2049,
    value_residual=True,
    cross_attention=True,
    block=32,
)


def all_lists() -> Iterator[LaunchList]:
    """Yield lists that launch every kernel there is."""
    for sizes in (README, replace(README, cross_attention=False, streams=1, value_residual=False, bias_entries=0)):
        for prefix, kind in ((False, "fp16"), (True, "fp32"), (True, "bf16")):
            yield from every_list(sizes, prefix, kind)
            yield from lists_beside_engines(sizes, prefix, kind)
    yield from every_list(replace(README, bits=8), False, "int8")
    yield from (build_patches(1, 999, 40, 24, 12, True, (5, 7), bands) for bands in (None, 10))


@pytest.fixture(scope="module")
def launches() -> dict[str, Launch]:
    """One launch of each piece of machine code."""
    return {key_of(one, step): one for step in all_lists() for one in step.kernels}


def test_every_launch_has_a_reference(launches: dict[str, Launch]) -> None:
    """Fault: a kernel, or a source of a product, that the loop's tests cannot compute; a reference that is given something else than the
    kernel, or under another name; one that nothing launches any more."""
    assert {one.kernel for one in launches.values()} == references.REFERENCES.keys()
    products = [one.constants for one in launches.values() if one.kernel == "product"]
    assert {(constants["prepare"], constants["read"]) for constants in products} == references.SOURCES.keys()
    for one in launches.values():
        kernel, constants = functions_of(one)
        grid, *parameters = inspect.signature(references.REFERENCES[one.kernel]).parameters
        own = [name for name in kernel.arg_names if name != "EARLY"]  # set by the card that runs the kernel
        assert (grid, parameters) == ("grid", own), one.kernel
        assert {*one.arguments, *constants} == set(own), one.name


@pytest.mark.parametrize("wrong", ["lengths", "streams"])
def test_a_kernel_that_differs_is_noticed(wrong: str, monkeypatch) -> None:
    """Fault: a comparison of kernels and references that passes whatever they compute."""
    right = references.REFERENCES["embed"]

    @wraps(right)
    def other(grid: references.Grid, **given: Any) -> None:
        right(grid, **given)
        given[wrong][-1] += 1

    def run() -> None:
        table, positions = floats(np.ones((3, 5))), torch.ones(2, 4, dtype=torch.int64)
        rows = [torch.zeros(2, dtype=torch.int64) for _ in range(5)]
        launch(embed, (2,), table, positions, *rows, empty(2, 1, 5), 5, 1, 8)

    run()
    monkeypatch.setitem(references.REFERENCES, "embed", other)
    with pytest.raises(AssertionError, match=f"embed.* {wrong}"):
        run()


@pytest.mark.parametrize("kind", ["fp16", "int8"])
def test_layers_share_their_kernels(kind: str) -> None:
    """Fault: a kernel that only a deep transformer launches, which the tests that compile two layers would never see."""

    def keys(depth: int) -> set[str]:
        sizes = replace(README, depth=depth, bits=8 if kind == "int8" else 32)
        return {key_of(one, step) for step in every_list(sizes, True, kind) for one in step.kernels}

    assert keys(2) == keys(6) == keys(24) and len(keys(2)) > 20
