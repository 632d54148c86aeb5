"""A bundle of some 90 KB: weights of three little transformers that differ in everything a step can differ in, and noise for all graphs.

In: nothing. Out: files by name. It can be opened and its native models can be made; no graph of it runs. `kernels/decoder_step/sizes.py`
says which weights there are, so that what reads them is tested against another writer.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

from musiclm_deploy.kernels.decoder_step.sizes import Sizes
from musiclm_deploy.runtime.bundle import FORMAT, MANIFEST, STAGES

_ALIGNMENT = 64
_ROWS = {
    "semantic": {"padding": 0, "start": 1, "semantic": 2},
    "coarse": {"padding": 0, "semantic_start": 1, "coarse_start": 2, "semantic": 3, "coarse": 12},
    "fine": {"padding": 0, "coarse_start": 1, "fine_start": 2, "coarse": 3, "fine": 19},
}
_CONDITIONING = {"semantic": "cross_attention", "coarse": "none", "fine": "prefix"}
_PRECISION = {"semantic": "fp32", "coarse": "int8", "fine": "int4"}
_SIZES = {
    "semantic": Sizes(24, 2, 2, 12, 16, 20, 1, 9, 1, 11, 7, True, True),
    "coarse": Sizes(32, 2, 2, 8, 8, 40, 2, 9, 2, 28, 5, False, False, 8, 32, True, True, 6),
    "fine": Sizes(40, 1, 3, 8, 8, 33, 1, 8, 3, 43, 0, False, False, 4, 64),
}


def small_bundle() -> dict[str, bytes]:
    """Return the files of the bundle, its manifest among them, by name."""
    rng = np.random.default_rng(7)
    graphs = ["mulan_text", "mulan_audio", "conditioner", "codec_stream", "codec_encode", "wav2vec", "semantic_context", "fine_context"]
    files = {f"{name}.onnx": rng.bytes(100) for name in [*graphs, *STAGES]} | {"tokenizer.json": json.dumps(_tokenizer()).encode()}
    places = {stage: _add_weights(files, stage, rng) for stage in STAGES}
    values = _manifest(places) | {"files": {name: record_of(data) for name, data in files.items()}, "format": FORMAT}
    return files | {MANIFEST: json.dumps(values).encode()}


def record_of(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _add_weights(files: dict[str, bytes], stage: str, rng: np.random.Generator) -> dict[str, list]:
    sizes, places, data = _SIZES[stage], {}, bytearray()
    shapes = sizes.shapes() | {"norm.bias": (sizes.dim,)} | ({"head.bias": (sizes.vocabulary,)} if stage == "coarse" else {})
    for name, shape in shapes.items():
        quantized = name.endswith(".values")
        weight = rng.integers(0, 256, shape, np.uint8) if quantized else rng.normal(size=shape).astype(np.float32)
        places[name] = [weight.dtype.name, len(data), *shape]
        data += weight.tobytes() + bytes(-weight.nbytes % _ALIGNMENT)
    files[f"{stage}.onnx.data"] = bytes(data)
    return places


def _tokenizer() -> dict[str, Any]:
    """Return CLIP's tokenizer with a few of its merges: a printable character stands for each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    symbols = [chr(byte) for byte in printable] + [chr(0x100 + i) for i in range(256 - len(printable))]
    merges = [("p", "i"), ("pi", "a"), ("n", "o</w>"), ("pia", "no</w>"), ("1", "2</w>"), ("c", "a")]
    tokens = [*symbols, *(symbol + "</w>" for symbol in symbols), *map("".join, merges), "<|startoftext|>", "<|endoftext|>"]
    model = {"type": "BPE", "end_of_word_suffix": "</w>", "vocab": {token: i for i, token in enumerate(tokens)}, "merges": merges}
    return {"version": "1.0", "model": model}


def _decoder(stage: str, places: dict[str, list]) -> dict[str, Any]:
    sizes, conditioning = _SIZES[stage], _CONDITIONING[stage]
    return {
        "graph": f"{stage}.onnx",
        "context": None if conditioning == "none" else f"{stage}_context.onnx",
        "conditioning": conditioning,
        "guidance": stage == "coarse",
        "dim": sizes.dim,
        "depth": sizes.depth,
        "heads": sizes.heads,
        "cache_head_size": sizes.cache_head_size,
        "vocabulary": sizes.vocabulary,
        "coarse_quantizers": None if stage == "semantic" else 2,
        "fine_quantizers": 3 if stage == "fine" else None,
        "rows": _ROWS[stage],
        "segments": None,
        "bias": {"entries": sizes.bias_entries, "stride": 1} if sizes.bias_entries else None,
        "max_length": 20,
        "semantic_window": None,
        "step": {
            "dim_head": sizes.dim_head,
            "inner": sizes.inner,
            "streams": sizes.streams,
            "value_residual": sizes.value_residual,
            "normalised_attention": sizes.normalised_attention,
            "convolution": sizes.convolution,
            "positions": sizes.positions or None,
            "precision": _PRECISION[stage],
            "block": sizes.block,
            "weights": places,
        },
        "sampling": {"temperature": 1.0, "filter_thres": 0.9, "cond_scale": 3},
    }


def _manifest(places: dict[str, dict[str, list]]) -> dict[str, Any]:
    return {
        "mulan": {
            "text": "mulan_text.onnx",
            "audio": "mulan_audio.onnx",
            "tokenizer": "tokenizer.json",
            "max_tokens": 16,
            "dim_latent": 8,
            "sample_hz": 16000,
            "min_samples": 400,
            "audio_heads": 2,
            "samples_per_patch": 160.0,
            "spectrogram": {
                "graph": "mulan_audio.onnx",
                "n_fft": 64,
                "win_length": 64,
                "hop_length": 16,
                "center": True,
                "bins": 4,
                "frames": 4,
                "filters": None,
            },
            "trained_tokens": None,
        },
        "conditioner": {"graph": "conditioner.onnx", "quantizers": 2, "codebook_size": 8, "namespaces": dict.fromkeys(STAGES, 24)},
        **{stage: _decoder(stage, places[stage]) for stage in STAGES},
        "codec": {
            "stream": "codec_stream.onnx",
            "encode": "codec_encode.onnx",
            "sample_hz": 16000,
            "samples_per_frame": 320,
            "quantizers": 5,
            "groups": 1,
            "codebook_size": 8,
            "lookahead_frames": 1,
            "min_frames": 1,
            "states": {"tail": [4, 6], "key": [8, 2, 4]},
            "min_encode_frames": 1,
        },
        "wav2vec": {
            "graph": "wav2vec.onnx",
            "kind": "mel",
            "sample_hz": 16000,
            "samples_per_token": 320,
            "min_samples": 400,
            "codebook_size": 8,
            "heads": None,
        },
        "seconds": None,
        "unique_consecutive": False,
        "semantic_tokens_per_second": 25,
        "made_by": {"musiclm-deploy": "0.1.0"},
        "sources": {"codec": {"file": "caf\udce9.pt", "sha256": "0", "version": "", "weights": "model"}},
        "settings": {"codec": {"strides": [[2, 4], "saved config"]}},
        "errors": {"codec_stream": float("inf"), "fine": 1e-7},
        "quality": {"codec_stream": {"snr_db": float("inf")}},
    }
