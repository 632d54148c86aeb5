"""The semantic tokenizer, from its file to the stage `wav2vec` of a bundle: waves to what the semantic transformer was trained to write.

In: the checkpoint of a `MelKmeans`. Out: `Settings`, the module in PyTorch, one ONNX file and its record for the manifest. It does not know
the transformers.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from ..model import MelKmeans
from ..model.semantic_tokens import SemanticTokenizer
from ..runtime import bundle
from .checkpoint import Checkpoint
from .errors import ExportError
from .settings import Settings
from .trace import trace


def infer_mel(checkpoint: Checkpoint, overrides: Mapping[str, Any]) -> Settings:
    """Settings of the `MelKmeans` in a file, all of which the file tells."""
    settings = Settings("wav2vec", overrides)
    if len(checkpoint.shape("spec.mel_layout")) != 1 or len(checkpoint.shape("centres")) != 2 or len(checkpoint.shape("spec.mel")) != 2:
        raise ExportError(f"{checkpoint.name}: not a file that MelKmeans.save wrote: its tensors have other shapes.")
    sample_hz, _, hop = map(int, checkpoint.array("spec.mel_layout", 3))
    if hop < 1 or sample_hz < hop:
        raise ExportError(f"{checkpoint.name}: a rate of {sample_hz} Hz and {hop} samples per token cannot be.")
    settings.infer("kind", "mel", "spec.mel_layout present")
    settings.infer("target_sample_hz", sample_hz, "spec.mel_layout")
    settings.infer("samples_per_token", hop, "spec.mel_layout")
    settings.infer("tokens_per_second", sample_hz / hop, "spec.mel_layout")
    settings.infer("n_mels", checkpoint.shape("spec.mel")[0], f"spec.mel [{checkpoint.shape('spec.mel')[0]}, ...]")
    settings.infer("codebook_size", checkpoint.shape("centres")[0], f"centres [{checkpoint.shape('centres')[0]}, ...]")
    return settings.finish()


def build_tokenizer(checkpoint: Checkpoint) -> SemanticTokenizer:
    """The tokenizer of a checkpoint, every tensor of which it must take, in evaluation mode."""
    for name in checkpoint.state:
        checkpoint.array(name)  # refuses NaN
    try:
        tokenizer = MelKmeans.from_state(checkpoint.state)
    except (ValueError, RuntimeError) as error:  # torch lists every missing, unexpected and misshapen tensor
        raise ExportError(f"{checkpoint.name}: not a file that MelKmeans.save wrote. {error}") from error
    if not tokenizer.fitted:
        raise ExportError(f"{checkpoint.name}: this tokenizer has no clusters yet; call fit with waves, then save it.")
    return tokenizer.eval()


def export_wav2vec(tokenizer: SemanticTokenizer, kind: str, folder: Path) -> bundle.SemanticTokenizer:
    """Write `wav2vec.onnx`: `wave` [batch, samples] fp32 -> `tokens` [batch, n] int64, for waves of `tokenizer.min_samples` and more."""
    shortest = tokenizer.min_samples
    wave = torch.zeros(2, shortest + 5 * tokenizer.downsample_factor)
    path = folder / "wav2vec.onnx"
    trace(_Tokens(tokenizer), (wave,), path, ["wave"], ["tokens"], [{0: Dim("batch"), 1: Dim("samples", min=shortest)}])
    return bundle.SemanticTokenizer(
        graph=path.name,
        kind=kind,
        sample_hz=tokenizer.target_sample_hz,
        samples_per_token=tokenizer.downsample_factor,
        min_samples=shortest,
        codebook_size=tokenizer.codebook_size,
    )


class _Tokens(nn.Module):
    def __init__(self, tokenizer: SemanticTokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, wave: Tensor) -> Tensor:
        return self.tokenizer.tokens(wave)
