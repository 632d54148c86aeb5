"""Shared by all tests: two threads, no network, and one tiny MusicLM that went through the real export."""

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest


@pytest.fixture(scope="session")
def tiny_models():
    """Upstream's own modules of a tiny MusicLM, every parameter random."""
    from demo.checkpoints import TINY, build_models

    return build_models(TINY)


@pytest.fixture(scope="session")
def tiny_checkpoints(tiny_models, tmp_path_factory) -> dict[str, Path]:
    """Their files in upstream's formats, by the names of the exporter's options."""
    from demo.checkpoints import save_checkpoints

    return save_checkpoints(tiny_models, tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="session")
def packages(tiny_checkpoints) -> dict[str, dict[str, Any]]:
    """What each file holds; the codec without its discriminators, which nothing reads and which are nearly all of its 100 MB. Read only."""
    import torch

    found = {kind: torch.load(path, weights_only=True) for kind, path in tiny_checkpoints.items()}
    state = found["codec"]["model"]
    found["codec"]["model"] = {name: tensor for name, tensor in state.items() if name.startswith(("encoder", "decoder", "rq."))}
    return found


@pytest.fixture(scope="session")
def good(packages, tmp_path_factory) -> dict[str, Path]:
    """Their files: small ones that the export takes. Read only."""
    import torch

    folder = tmp_path_factory.mktemp("good")
    for kind, package in packages.items():
        torch.save(package, folder / f"{kind}.pt")
    return {kind: folder / f"{kind}.pt" for kind in packages}


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoints, tmp_path_factory) -> Path:
    """The bundle that the export makes of them. Read only: a test that changes it works on a copy."""
    from musiclm_deploy.export.export import export_checkpoints

    return export_checkpoints(**tiny_checkpoints, out=tmp_path_factory.mktemp("export") / "bundle", quiet=True)


@pytest.fixture(scope="session")
def music(tiny_bundle):
    """The tiny bundle, loaded on the CPU."""
    import musiclm_deploy as md

    with md.load(tiny_bundle, device="cpu") as model:
        yield model
