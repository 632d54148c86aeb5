"""Requests made from keyword arguments, as `MusicLM.generate` takes them, without a loaded model."""

from typing import Any

from musiclm_deploy.runtime.bundle import Manifest
from musiclm_deploy.runtime.config import config_of
from musiclm_deploy.runtime.request import Request, make_request

PROMPTS = ("audio", "prime", "tokens")


def ask(manifest: Manifest, text: Any = "piano", **arguments: Any) -> Request:
    """Return the request of these arguments: sounds and tokens, and the settings."""
    prompts = {name: arguments.pop(name) for name in PROMPTS if name in arguments}
    return make_request(manifest, config_of(None, **arguments), text, **prompts)
