"""The semantic tokenizer, from its file to the stage `wav2vec` of a bundle: waves to what the semantic transformer was trained to write.

In: the file of a `MelKmeans`, or HuBERT's and its k-means model. Out: `Settings`, the module in PyTorch, one ONNX file and its record for
the manifest. It does not know the transformers.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from ..model import HubertKmeans, MelKmeans
from ..model.hubert_files import HubertFile, read_hubert
from ..model.semantic_tokens import SemanticTokenizer
from ..model.sklearn_kmeans import read_cluster_centers
from ..model.tensor_file import files_of
from ..runtime import bundle
from .checkpoint import Checkpoint, check_finite, sha256_of
from .errors import ExportError
from .mulan import MOST_SAMPLES
from .settings import Settings
from .trace import trace

# Settings of `HubertKmeans` that are none of transformers' `HubertConfig`.
_OWN = ("target_sample_hz", "output_layer", "normalize", "normalize_eps", "normalize_features", "seq_len_multiple_of")
_UNTOLD = "default of audiolm-pytorch 2.4.0"


def infer_mel(checkpoint: Checkpoint, overrides: Mapping[str, Any]) -> Settings:
    """Settings of the `MelKmeans` in a file, all of which the file tells."""
    settings = Settings("wav2vec", overrides)
    (n_mels, bins), (codebook_size, width) = checkpoint.shape("spec.mel", 2), checkpoint.shape("centres", 2)
    sample_hz, _, hop = map(int, checkpoint.array("spec.mel_layout", 3))
    if hop < 1 or sample_hz < hop:
        raise ExportError(f"{checkpoint.name}: a rate of {sample_hz} Hz and {hop} samples per token cannot be.")
    if (bins, width) != (3 * hop // 2 + 1, 2 * n_mels) or 3 * hop > MOST_SAMPLES:
        raise ExportError(
            f"{checkpoint.name}: filters of {n_mels} bands by {bins} bins, centres of {width} features and {hop} samples per token "
            f"do not go together, or its windows are longer than {MOST_SAMPLES} samples."
        )
    settings.infer("kind", "mel", "spec.mel_layout present")
    settings.infer("target_sample_hz", sample_hz, "spec.mel_layout")
    settings.infer("samples_per_token", hop, "spec.mel_layout")
    settings.infer("n_mels", n_mels, f"spec.mel [{n_mels}, ...]")
    settings.infer("codebook_size", codebook_size, f"centres [{codebook_size}, ...]")
    return settings.finish()


def read_hubert_alone(path: Path) -> HubertFile:
    """Return what `read_hubert` does; an ExportError instead of its ValueError."""
    try:
        return read_hubert(path)
    except ValueError as error:
        raise ExportError(f"--hubert {error}") from error


def read_hubert_kmeans(hubert: Path, kmeans: Path, overrides: Mapping[str, Any]) -> tuple[dict[str, Checkpoint], Settings]:
    """HuBERT's checkpoint with the cluster centres among its tensors, the checkpoint of these, and the settings of both."""
    found = read_hubert_alone(hubert)
    try:
        centres = read_cluster_centers(kmeans)
    except ValueError as error:
        raise ExportError(f"--kmeans {error}") from error
    settings = Settings("wav2vec", overrides)
    settings.infer("kind", "hubert", "--hubert")
    sample_hz = settings.assume("target_sample_hz", 16000, _UNTOLD)
    if not isinstance(sample_hz, int) or sample_hz < 1:
        raise ExportError(f"wav2vec: target_sample_hz must be a whole number of at least 1, got {sample_hz!r}.")
    settings.assume("output_layer", 9, _UNTOLD)
    settings.assume("normalize", False, f"{_UNTOLD}, which gives waves to every model as they are")
    eps = settings.assume("normalize_eps", 1e-5, "fairseq's; transformers' processors have 1e-7")
    if not 0 < eps < 1:
        raise ExportError(f"wav2vec: normalize_eps must be a small number above 0, got {eps!r}.")
    settings.assume("normalize_features", False, f"{_UNTOLD}, which compares features with the centres as they are; open-musiclm: true")
    multiple = settings.assume("seq_len_multiple_of", None, f"{_UNTOLD}: the end of a wave is not cut off; open-musiclm: 320")
    if multiple is not None and (type(multiple) is not int or multiple < 1):
        raise ExportError(f"wav2vec: seq_len_multiple_of must be a whole number of samples of at least 1, got {multiple!r}.")
    for name, fact in found.facts.items():
        (settings.infer if fact.told else settings.assume)(name, fact.value, fact.source)
    settings.infer("codebook_size", len(centres), f"cluster_centers_ [{len(centres)}, ...]")
    checkpoints = {
        "wav2vec": Checkpoint(found.name, {**found.state, "centres": centres}, sha256=sha256_of(*files_of(hubert))),
        "wav2vec.kmeans": Checkpoint(kmeans.name, {"centres": centres}, sha256=sha256_of(kmeans)),
    }
    return checkpoints, settings.finish()


def build_tokenizer(checkpoint: Checkpoint, settings: Settings) -> SemanticTokenizer:
    """The tokenizer of a checkpoint, every tensor of which it must take, in evaluation mode."""
    try:
        if settings["kind"] == "mel":
            check_finite(checkpoint.name, checkpoint.state)
            tokenizer = MelKmeans.from_state(checkpoint.state)
        else:
            state = {name: tensor for name, tensor in checkpoint.state.items() if name != "centres"}
            values = settings.values()
            own = {name: values[name] for name in _OWN}
            config = {name: value for name, value in values.items() if name not in (*own, "kind", "codebook_size")}
            tokenizer = HubertKmeans(config, state, checkpoint.state["centres"], **own)
    except ExportError:
        raise
    except (ValueError, RuntimeError) as error:  # torch lists every missing, unexpected and misshapen tensor
        raise ExportError(f"{checkpoint.name}: cannot be built. {error}") from error
    if isinstance(tokenizer, MelKmeans) and not tokenizer.fitted:
        raise ExportError(f"{checkpoint.name}: this tokenizer has no clusters yet; call fit with waves, then save it.")
    return tokenizer.eval()


def tokens_per_second(settings: Settings) -> float:
    values = settings.values()
    return values["target_sample_hz"] / (values["samples_per_token"] if values["kind"] == "mel" else math.prod(values["conv_stride"]))


def export_wav2vec(tokenizer: SemanticTokenizer, settings: Settings, folder: Path) -> bundle.SemanticTokenizer:
    """Write `wav2vec.onnx`: `wave` [batch, samples] fp32 -> `tokens` [batch, n] int64, for waves of `tokenizer.min_samples` and more."""
    shortest = tokenizer.min_samples
    wave = torch.zeros(2, shortest + 5 * tokenizer.downsample_factor)
    path = folder / "wav2vec.onnx"
    trace(_Tokens(tokenizer), (wave,), path, ["wave"], ["tokens"], [{0: Dim("batch"), 1: Dim("samples", min=shortest)}])
    return bundle.SemanticTokenizer(
        graph=path.name,
        kind=settings["kind"],
        sample_hz=tokenizer.target_sample_hz,
        samples_per_token=tokenizer.downsample_factor,
        min_samples=shortest,
        codebook_size=tokenizer.codebook_size,
        heads=settings.values().get("num_attention_heads"),
    )


class _Tokens(nn.Module):
    def __init__(self, tokenizer: SemanticTokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, wave: Tensor) -> Tensor:
        return self.tokenizer.tokens(wave)
