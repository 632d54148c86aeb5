"""Checkpoints of open-musiclm's published sizes with random weights: what its `musiclm_large_small_context` is, but untrained.

In: a folder. Out: three transformers of 24 layers, CLAP (HTSAT-tiny and RoBERTa base) with its codebooks, a tokenizer of single bytes, an
EnCodec of 24 kHz and the JSON of the model, in the forms that their packages save. `benchmarks.bundle` exports them.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from musiclm_deploy.model.clap import ClapTowers
from musiclm_deploy.model.open_musiclm import TokenConditionedTransformer
from musiclm_deploy.model.upstream import load_upstream
from musiclm_deploy.runtime.roberta_tokenizer import SPECIAL_TOKENS, RobertaTokenizer
from musiclm_deploy.runtime.tokenizer import BYTE_ALPHABET
from musiclm_deploy.runtime.tokenizer_file import TOKENIZER_FILE

NAME = "open-musiclm"
_CLAP, _LATENT = (12, 1024), 512
_SEQUENCES = {
    "semantic": [_CLAP, (1, 1024)],
    "coarse": [_CLAP, (1, 1024), (3, 1024)],
    "fine": [_CLAP, (3, 1024), (5, 1024)],
}
_SIZES = {"dim": 1024, "depth": 24, "heads": 16}
_SECONDS = {"semantic": 10.0, "coarse": 4.0, "fine": 2.0}


def save_checkpoints(folder: Path, seed: int = 0) -> dict[str, Path]:
    """Write all files; return them by the arguments of the export."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    names = {stage: f"{stage}.transformer.0.pt" for stage in _SEQUENCES}
    names |= {"quantizer": "clap.rvq.0.pt", "mulan": "clap.pt", "codec": "encodec_24khz.th", "tokenizer": TOKENIZER_FILE}
    files = {name: folder / file for name, file in names.items()}
    for stage, sequences in _SEQUENCES.items():
        torch.save(TokenConditionedTransformer(sequences, **_SIZES).state_dict(), files[stage])
    books = {f"layers.{index}._codebook.embed": torch.randn(1, _CLAP[1], _LATENT) / _LATENT**0.5 for index in range(_CLAP[0])}
    ready = {name.replace("embed", "initted"): torch.tensor([True]) for name in books}
    torch.save(books | ready, files["quantizer"])
    torch.save(ClapTowers({"text.vocab_size": 50265, "text.max_position_embeddings": 514}).state_dict(), files["mulan"])
    load_upstream()
    from encodec.model import EncodecModel

    codec = EncodecModel.encodec_model_24khz(pretrained=False).state_dict()
    codec |= {name: torch.ones_like(tensor) for name, tensor in codec.items() if name.endswith("inited")}
    codec |= {name: torch.randn_like(tensor) for name, tensor in codec.items() if name.endswith("_codebook.embed")}
    torch.save(codec, files["codec"])
    vocabulary = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *BYTE_ALPHABET.values()))}
    files["tokenizer"].write_text(RobertaTokenizer(vocabulary, []).content, encoding="utf-8")
    files["open_musiclm_config"] = folder / "musiclm_large_small_context.json"
    files["open_musiclm_config"].write_text(json.dumps(_config()), encoding="utf-8")
    return files


def _config() -> dict[str, object]:
    stage = {**_SIZES, "non_causal_prefix_size": 0, "relative_position_bias_type": "continuous", "use_memory_efficient_attention": False}
    return {
        "global_cfg": {f"{name}_audio_length_seconds": seconds for name, seconds in _SECONDS.items()},
        "hubert_kmeans_cfg": {"normalize_embeds": True, "embed_layer": 7, "output_hz": 50},
        "encodec_cfg": {"bandwidth": 6.0, "codebook_size": 1024, "output_hz": 75},
        **{f"{name}_cfg": stage for name in _SEQUENCES},
    }
