"""CLAP's towers, from a checkpoint to the stages `mulan_text` and `mulan_audio` of a bundle.

In: the tensors of a `ClapModel` or of LAION's file, the user's overrides. Out: `Settings`, `audio.*` and `text.*` under the names of
transformers' configurations, the towers in PyTorch, and one ONNX file per tower. The latents' quantizer is MuLaN's (`mulan.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim

from ..model.clap import ClapTowers
from ..model.clap_files import SAMPLE_HZ, clap_facts, clap_tensors, is_clap, preprocessor_of, size_of
from ..runtime import bundle
from ..runtime.roberta_tokenizer import MAX_TOKENS, tokenizer_files
from ..runtime.tokenizer_file import TOKENIZER_FILE
from .checkpoint import Checkpoint, check_finite
from .errors import ExportError
from .mulan import AudioLatents, TextLatents
from .settings import Settings
from .text_tokenizer import most_tokens
from .trace import trace

__all__ = ["build_clap", "clap_names", "clap_record", "export_clap_audio", "export_clap_text", "infer_clap", "is_clap", "what_clap"]
_BYTES_PER_NUMBER = 16 * 4  # of a patch's vector: measured with HTSAT-tiny and -base, 13 and 14 float32 numbers for each


def infer_clap(checkpoint: Checkpoint, source: Path | None, overrides: Mapping[str, Any]) -> Settings:
    """Return the settings of a CLAP. source: the folder or file that it was read from, for its preprocessor_config.json."""
    settings = Settings("mulan", overrides)
    settings.infer("kind", "clap", "audio_projection and text_projection of two layers")
    tensors = clap_names(checkpoint.state)
    try:
        facts = clap_facts(tensors, checkpoint.config_json, {} if source is None else preprocessor_of(source))
    except ValueError as error:
        raise ExportError(f"mulan: {error}") from error
    for name, fact in facts.items():
        (settings.infer if fact.told else settings.assume)(name, fact.value, fact.source)
    settings.infer("sample_hz", SAMPLE_HZ, "the rate of every CLAP")
    # The names under which the tokenizer and the record of the manifest ask any text tower.
    rows, positions, pad_id = (settings[f"text.{name}"] for name in ("vocab_size", "max_position_embeddings", "pad_token_id"))
    settings.infer("text.num_tokens", rows, "text.vocab_size")
    settings.infer("text.pad_id", pad_id, "text.pad_token_id")
    settings.infer("text.max_seq_len", min(MAX_TOKENS, positions - pad_id - 1), f"{MAX_TOKENS} of CLAP's training, {positions} positions")
    settings.infer("trained_tokens", None, "not looked for: RoBERTa was pretrained")
    return settings.finish()


def build_clap(settings: Settings, state: Mapping[str, Tensor]) -> ClapTowers:
    """Return the towers of `state`, in evaluation mode. Every tensor that a latent depends on must be taken."""
    tensors = clap_names(state)
    own = ("kind", "sample_hz", "trained_tokens", "text.num_tokens", "text.pad_id", "text.max_seq_len")
    try:
        towers = ClapTowers({name: value for name, value in settings.values().items() if name not in own}, tensors)
    except ValueError as error:
        raise ExportError(f"mulan: {error}") from error
    check_finite("mulan", tensors)
    return towers.eval()


def clap_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what `clap_tensors` does; an ExportError instead of its ValueError."""
    try:
        return clap_tensors(state)
    except ValueError as error:
        raise ExportError(f"mulan: {error}") from error


def what_clap(state: Mapping[str, Tensor], path: Path) -> str:
    """Return the words for a CLAP in a report: "CLAP (HTSAT-tiny, fused) with RoBERTa's tokenizer". path: where it is from."""
    beside = "with RoBERTa's tokenizer" if tokenizer_files(path) else "without a tokenizer beside it"
    try:
        facts = clap_facts(clap_tensors(state), {}, {})
    except ValueError:  # the examination says what is wrong
        return f"CLAP {beside}"
    return f"CLAP ({size_of({name: fact.value for name, fact in facts.items()})}) {beside}"


def export_clap_text(towers: ClapTowers, path: Path) -> None:
    """Write `input_ids`, `attention_mask` [batch, tokens] int64 -> `latent` [batch, dim_latent], for 1 to max_tokens tokens."""
    ids, dims = torch.ones(2, 3, dtype=torch.long), {0: Dim("batch"), 1: Dim("tokens", max=towers.max_tokens)}
    trace(TextLatents(towers), (ids, ids.clone()), path, ["input_ids", "attention_mask"], ["latent"], [dims, dims])


def export_clap_audio(towers: ClapTowers, path: Path) -> None:
    """Write `wave` [batch, samples] fp32 -> `latent` [batch, dim_latent], for waves of `min_samples` and more."""
    wave = torch.zeros(2, 2 * towers.window_samples + 777)
    dims = {0: Dim("batch"), 1: Dim("samples", min=towers.min_samples)}
    trace(AudioLatents(towers), (wave,), path, ["wave"], ["latent"], [dims])


def clap_record(settings: Settings, tokenizer: Settings | None, towers: ClapTowers) -> bundle.Mulan:
    """Return the manifest's record. tokenizer: RoBERTa's."""
    patches = (settings["audio.spec_size"] // settings["audio.patch_stride"][0]) ** 2
    return bundle.Mulan(
        text="mulan_text.onnx",
        audio="mulan_audio.onnx",
        tokenizer=TOKENIZER_FILE,
        max_tokens=most_tokens(settings, tokenizer),
        dim_latent=settings["dim_latent"],
        sample_hz=settings["sample_hz"],
        min_samples=towers.min_samples,
        audio_heads=settings["audio.num_attention_heads"][0],
        samples_per_patch=towers.window_samples / patches,
        spectrogram=None,
        tokenizer_from_file=True,
        pad_id=settings["text.pad_id"],
        window_samples=towers.window_samples,
        window_bytes=_BYTES_PER_NUMBER * patches * settings["audio.patch_embeds_hidden_size"],
    )
