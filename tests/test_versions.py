"""Files of every release of audiolm-pytorch: run as that release ran them, or refused by its version and the reason."""

from __future__ import annotations

import pytest
import torch

from demo.checkpoints import TINY, build_models
from musiclm_deploy.export.checkpoint import Checkpoint
from musiclm_deploy.export.errors import ExportError
from musiclm_deploy.export.transformers import infer_transformer


def test_no_version_at_all() -> None:
    assert TINY
