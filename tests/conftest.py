"""Shared by all tests: two threads, no network, and one tiny MusicLM that went through the real export."""

import os
from pathlib import Path

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
