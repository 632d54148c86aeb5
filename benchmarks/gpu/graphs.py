"""The graphs that ONNX Runtime runs on a GPU, MuLaN and the codec, against the same on the CPU.

In: a bundle. Out: a row for each; RuntimeError where a GPU's answer is another one.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from musiclm_deploy.runtime.backend import BackendError, choose_device, open_session
from musiclm_deploy.runtime.bench.clips import TEXT
from musiclm_deploy.runtime.bench.record import Row
from musiclm_deploy.runtime.bundle import Bundle
from musiclm_deploy.runtime.codec import decode_codes
from musiclm_deploy.runtime.musiclm import MusicLM, load

from .parts import Missing

# Of the largest value: ONNX Runtime multiplies in TF32 there, whose 11 bits round a product by 5e-4; forty of these.
MOST_LOST = 0.02
_FRAMES, _SECONDS = 50, 2.0  # of the codec's wave; of the sound that MuLaN embeds


def need_graphs(opened: Bundle) -> None:
    """Missing where ONNX Runtime cannot run a graph on the GPU."""
    try:
        choose_device("cuda")
        open_session(opened.path(opened.manifest.conditioner.graph), None, "cuda")
    except BackendError as error:
        raise Missing(str(error)) from error


def compare_graphs(opened: Bundle, device: str = "cuda") -> list[Row]:
    """A text's latent, a sound's, by the kernel that makes its patches and the graph that goes on from them, and a wave of the codec."""
    with load(opened.root, "cpu") as cpu, load(opened.root, device) as gpu:
        expected, found = answers(cpu), answers(gpu)
    rows: list[Row] = []
    for name, array in expected.items():
        error = float(np.abs(found[name] - array).max() / np.abs(array).max())
        if not error < MOST_LOST:
            raise RuntimeError(f"{name} differs from the CPU's by {error:.1e} of its largest value, {MOST_LOST:g} is allowed.")
        rows.append({"benchmark": "gpu graphs", "form": name, "error": float(f"{error:.1e}")})
    return rows


def answers(model: MusicLM) -> dict[str, np.ndarray]:
    """Latents float32 [1, dim_latent] and a wave float32 [1, t], of random sounds and codes."""
    rng, mulan, codec = np.random.default_rng(0), model.bundle.manifest.mulan, model.bundle.manifest.codec
    sound = rng.standard_normal(max(round(_SECONDS * mulan.sample_hz), mulan.min_samples)).astype(np.float32)
    codes = rng.integers(0, codec.codebook_size, (_FRAMES, codec.quantizers))
    return {
        "the latent of a text": model.embed_text(TEXT),
        "the latent of a sound": model.embed_audio((sound, mulan.sample_hz)),
        "the codec's wave": decode_codes(codec, partial(model.run, codec.stream), codes, lambda: None),
    }
