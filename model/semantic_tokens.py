"""Semantic tokens of waves: what the first of MusicLM's token transformers is trained to write.

In: waves [B, t] fp32. Out: tokens int64 [B, T], the number of the nearest of K cluster centres for each frame. `MelKmeans` is fitted to
waves alone, without a pretrained network. Where `load_upstream` has been called it is a `HubertWithKmeans`, which the wrappers and trainers
of audiolm-pytorch insist on. It knows neither transformers nor bundles.
"""

import os
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..runtime.install import install_command
from ..runtime.user_files import expanded
from .files import save_aside
from .spectrogram import Spectrogram
from .tensor_file import read_package

_REACH = 2  # frames on either side that a delta is taken over
_STILL = 1e-3  # a feature that varies less is noise: it is not blown up to a deviation of one


class SemanticTokenizer(nn.Module):
    """Nearest cluster centres behind the interface of audiolm-pytorch's `HubertWithKmeans`. A subclass has the features, its layout and
    its centres in the buffer `centres` [K, F]."""

    centres: Tensor
    groups = 1  # tokens per frame

    def __init__(self, target_sample_hz: int, downsample_factor: int, min_samples: int, seq_len_multiple_of: int | None) -> None:
        """downsample_factor: samples per token; min_samples: the shortest wave with a token. seq_len_multiple_of: waves are cut to it."""
        nn.Module.__init__(self)  # not super(): under upstream's base class that would be a constructor that wants HuBERT's files
        self.target_sample_hz, self.seq_len_multiple_of = target_sample_hz, seq_len_multiple_of
        self._downsample_factor, self.min_samples = downsample_factor, min_samples

    @property
    def codebook_size(self) -> int:
        return len(self.centres)

    @property
    def downsample_factor(self) -> int:
        return self._downsample_factor

    def features(self, wave: Tensor) -> Tensor:
        """wave [B, t] fp32 at `target_sample_hz` -> [B, T, F]: what is compared with the centres."""
        raise NotImplementedError

    def tokens(self, wave: Tensor) -> Tensor:
        """wave [B, t] fp32 at `target_sample_hz` -> int64 [B, T]. Pure tensor arithmetic without a check: what a graph is traced from."""
        # The nearest of all centres has the largest x·c − c²/2: the square of x is the same for all.
        return (self.features(wave) @ self.centres.T - self.centres.square().sum(-1) / 2).argmax(-1)

    @torch.no_grad()
    def forward(self, wav_input: Tensor, flatten: bool = True, input_sample_hz: int | None = None) -> Tensor:
        """wav_input [B, t], at `input_sample_hz` or else at `target_sample_hz` -> tokens int64 [B, T].

        flatten: for upstream's callers; with one token per frame there is nothing to flatten. Raises ValueError for waves with NaN or
        infinite samples, or shorter than `min_samples` at `target_sample_hz`.
        """
        if input_sample_hz is not None and input_sample_hz != self.target_sample_hz:
            from .upstream import import_torchaudio

            wav_input = import_torchaudio().functional.resample(wav_input, input_sample_hz, self.target_sample_hz)
        if self.seq_len_multiple_of is not None:
            wav_input = wav_input[..., : wav_input.shape[-1] // self.seq_len_multiple_of * self.seq_len_multiple_of]
        return self.tokens(self._checked(wav_input))

    def _checked(self, wave: Tensor) -> Tensor:
        if wave.ndim != 2 or wave.shape[-1] < self.min_samples:
            need = f"at least {self.min_samples} samples at {self.target_sample_hz} Hz"
            raise ValueError(f"semantic tokens need waves [B, t] of {need}, got {list(wave.shape)}")
        if not wave.is_floating_point():
            raise ValueError(f"semantic tokens need waves of floats with full scale at 1, got {wave.dtype}: divide by its full scale first")
        if not wave.isfinite().all():
            raise ValueError("this wave holds NaN or infinite samples")
        return wave.float()


class MelKmeans(SemanticTokenizer):
    """k-means over log-mel frames and their deltas, each feature scaled to mean 0 and deviation 1 over the data it was fitted to.

    A frame is a Hann window of three hops with the token's own hop in the middle: a wave of t samples has t // hop tokens. The first and
    the last repeat their neighbours' frames: zeros or a reflection there would give every clip cut out of a song an onset that the song
    does not have. At the defaults a window lasts 60 ms and a delta sees 140 ms. Deltas are the regression slopes of Young et al., The HTK
    Book, section 5.9, with two frames on either side.
    The state dict holds rate, hop, filters, scales and centres, so that the file says all there is to know, see `from_state`.
    """

    mean: Tensor
    deviation: Tensor
    slope: Tensor

    def __init__(
        self,
        num_clusters: int = 1024,
        target_sample_hz: int = 16000,
        tokens_per_second: int = 50,
        n_mels: int = 64,
        seq_len_multiple_of: int | None = None,
    ) -> None:
        if min(num_clusters, target_sample_hz, tokens_per_second, n_mels) < 1 or target_sample_hz % tokens_per_second:
            raise ValueError(
                "clusters, rate and bands must be at least 1 and a token must last whole samples, "
                f"got {num_clusters} clusters, {tokens_per_second} tokens a second at {target_sample_hz} Hz, {n_mels} bands"
            )
        hop = target_sample_hz // tokens_per_second
        super().__init__(target_sample_hz, hop, 3 * hop, seq_len_multiple_of)
        self.spec = Spectrogram(3 * hop, 2, 3 * hop, hop, 0, False, "constant", n_mels, target_sample_hz)
        distances = torch.arange(-_REACH, _REACH + 1.0)
        self.register_buffer("slope", (distances / distances.square().sum()).expand(n_mels, 1, -1).clone(), persistent=False)
        self.register_buffer("mean", torch.zeros(2 * n_mels))
        self.register_buffer("deviation", torch.zeros(2 * n_mels))  # of a fitted one none is zero
        self.register_buffer("centres", torch.zeros(num_clusters, 2 * n_mels))

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> "MelKmeans":
        """The tokenizer that `state`, the content of a saved file, belongs to."""
        sample_hz, _, hop = _layout(state)
        tokenizer = cls(len(state["centres"]), sample_hz, sample_hz // hop, len(state["spec.mel"]))
        tokenizer.load_state_dict(dict(state))
        return tokenizer

    @property
    def fitted(self) -> bool:
        return bool(self.deviation.all())

    def raw_features(self, wave: Tensor) -> Tensor:
        """wave [B, t] fp32 -> [B, t // hop, 2 * n_mels]: natural logarithms of mel energies, then their change per frame."""
        mel = F.pad(self.spec(wave), (1, 1), mode="replicate")
        deltas = F.conv1d(F.pad(mel, (_REACH, _REACH), mode="replicate"), self.slope, groups=len(self.slope))
        return torch.cat((mel, deltas), dim=1).transpose(1, 2)

    def features(self, wave: Tensor) -> Tensor:
        return (self.raw_features(wave) - self.mean) / self.deviation

    @torch.no_grad()
    def fit(self, waves: Iterable[Tensor], seed: int = 0) -> None:
        """Cluster the frames of `waves`, each [t] or [B, t] fp32 at `target_sample_hz`, with scikit-learn's MiniBatchKMeans.

        All features are held in memory, 8 * n_mels bytes a frame: 92 MB per hour at the defaults. The same waves and seed give the same
        centres. Raises ValueError for waves that cannot be used and for fewer frames than clusters, ImportError without scikit-learn.
        """
        try:
            from sklearn.cluster import MiniBatchKMeans
        except ModuleNotFoundError as error:
            raise ImportError(f"MelKmeans.fit needs scikit-learn: {install_command('train')}.") from error
        frames = [self.raw_features(self._checked(torch.atleast_2d(wave)).to(self.mean)).flatten(0, 1).cpu() for wave in waves]
        count = sum(map(len, frames))
        if count < self.codebook_size:
            raise ValueError(f"{count} frames are too few for {self.codebook_size} clusters: give more waves or ask for fewer clusters")
        features = torch.cat(frames)
        deviation, mean = torch.std_mean(features.double(), dim=0, correction=0)
        moves = deviation > _STILL
        if not moves.any():
            raise ValueError("these waves are silence, or one sound that never changes: there is nothing to cluster")
        deviation = torch.where(moves, deviation, 1.0)
        scaled = (features - mean.float()) / deviation.float()
        clusters = MiniBatchKMeans(self.codebook_size, random_state=seed, batch_size=10_000, n_init=3)  # pyright: ignore[reportArgumentType]
        clusters.fit(scaled.numpy())
        for buffer, value in ((self.mean, mean), (self.deviation, deviation), (self.centres, torch.from_numpy(clusters.cluster_centers_))):
            buffer.copy_(value)

    def forward(self, wav_input: Tensor, flatten: bool = True, input_sample_hz: int | None = None) -> Tensor:
        self._check_fitted()
        return super().forward(wav_input, flatten, input_sample_hz)

    def save(self, path: str | os.PathLike) -> None:
        """Write the state dict, which `load`, `from_state` and the export read."""
        self._check_fitted()
        save_aside(self.state_dict(), path)

    def load(self, path: str | os.PathLike) -> None:
        """Read what `save` wrote, into a tokenizer of the same rates and sizes: tensors alone, every one of them."""
        state = read_package(expanded(path))
        mine, theirs = self.spec.mel_layout.tolist(), _layout(state)
        if mine != theirs:
            raise ValueError(f"{path} has rate, window and hop {theirs}, this tokenizer {mine}: make it with the values of the file")
        self.load_state_dict(state)

    def _check_fitted(self) -> None:
        if not self.fitted:
            raise ValueError("this tokenizer has no clusters yet: call fit with waves, or load a fitted one")


def _layout(state: Mapping[str, Tensor]) -> list[int]:
    """[rate in Hz, window in samples, hop in samples] of a saved tokenizer."""
    if "spec.mel_layout" not in state:
        raise ValueError(f"not a tokenizer that MelKmeans.save wrote: its first tensor is {next(iter(state), 'missing')!r}")
    return [int(number) for number in state["spec.mel_layout"].tolist()]
