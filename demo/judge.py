"""A listener by machine: which instruments play, how far two sets of clips are apart, how sure a share is.

In: waves [B, t]. Out: names of styles, distances, intervals. Its features are its own, statistics of a mel spectrogram: nothing of
codec, MuLaN or transformers, whose output it judges, is in it.
"""

from collections.abc import Iterable

import numpy as np

from demo.compose import STYLES
from musiclm_deploy.model.spectrogram import mel_filters

_WINDOW, _HOP, _BANDS = 1024, 256, 48
_FLOOR = 1e-4  # of magnitudes, about 70 dB below a clip's own level
_NOISE_DB = (0.0, 25.0)  # of the music above the noise that the judge learns to hear through
_LOWEST, _FOLLOWED = 50, 800  # bins below which noise has no slope; samples over which its loudness follows the music's
_COMPONENTS = 24  # principal components that the Fréchet distance is taken over


def features(waves: Iterable[np.ndarray], sample_hz: int) -> np.ndarray:
    """B waves, float32 [t] of at least 0.1 s -> float64 [B, 5 * bands]: of each log-mel band, loudness removed, mean, deviation, the
    mean rise from frame to frame, and the tenth and ninetieth percentile."""
    rows, matrix, window = [], mel_filters(_BANDS, _WINDOW, sample_hz).numpy(), np.hanning(_WINDOW) / (_WINDOW / 4)
    for wave in waves:
        wave = wave.astype(np.float64)
        wave = wave / max(np.sqrt(np.square(wave).mean()), 1e-6) * 0.1
        frames = np.lib.stride_tricks.sliding_window_view(wave, _WINDOW)[::_HOP]
        bands = np.log(np.maximum(np.abs(np.fft.rfft(frames * window)) @ matrix.T, _FLOOR))
        rise = np.maximum(np.diff(bands, axis=0), 0).mean(axis=0)
        low, high = np.percentile(bands, (10, 90), axis=0)
        rows.append(np.concatenate((bands.mean(axis=0), bands.std(axis=0), rise, low, high)))
    return np.stack(rows)


def in_noise(waves: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[B, t] -> [B, t]: each in noise of a level, a slope of its spectrum and a course of its own, steady or as loud as what it covers."""
    noisy = []
    for wave in waves.astype(np.float64):
        spectrum = np.fft.rfft(rng.standard_normal(len(wave)))
        noise = np.fft.irfft(spectrum * (np.arange(len(spectrum)) + _LOWEST) ** -rng.uniform(0, 1), len(wave))
        if rng.random() < 0.5:
            noise *= np.sqrt(np.convolve(np.square(wave), np.full(_FOLLOWED, 1 / _FOLLOWED), "same"))
        wanted = np.sqrt(np.square(wave).mean()) * 10 ** (-rng.uniform(*_NOISE_DB) / 20)
        noisy.append(wave + noise * wanted / max(np.sqrt(np.square(noise).mean()), 1e-9))
    return np.stack(noisy).astype(np.float32)


class Judge:
    """Logistic regression on standardised features, fitted to rendered clips of the training pieces, each as it is and once more in noise.

    Without the noise it goes by what lies 50 dB below the music, which nobody hears, and takes the hiss of a codec for another instrument.
    """

    def __init__(self, waves: np.ndarray, styles: list[str], sample_hz: int) -> None:
        from sklearn.decomposition import PCA
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        self.sample_hz = sample_hz
        found = features(waves, sample_hz)
        noisy = features(in_noise(waves, np.random.default_rng(0)), sample_hz)
        regression = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
        self.classifier = regression.fit(np.concatenate((found, noisy)), styles + styles)
        self.space = make_pipeline(StandardScaler(), PCA(_COMPONENTS, whiten=True, random_state=0)).fit(found)

    def name(self, waves: Iterable[np.ndarray]) -> list[str]:
        """The style of each wave [t]."""
        return [str(style) for style in self.classifier.predict(features(waves, self.sample_hz))]

    def frechet(self, waves: Iterable[np.ndarray], others: Iterable[np.ndarray]) -> float:
        """Fréchet distance of two sets of clips, as of normal distributions over the whitened principal components of the features (Heusel
        et al. 2017, arxiv.org/abs/1706.08500, with these in place of Inception's): halves of one set are near 0."""
        first, second = (self.space.transform(features(one, self.sample_hz)) for one in (waves, others))
        cov1, cov2 = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
        # The trace of the root of a product of covariances is the sum of the roots of its eigenvalues, which are not negative.
        roots = np.sqrt(np.maximum(np.linalg.eigvals(cov1 @ cov2).real, 0)).sum()
        return float(np.square(first.mean(0) - second.mean(0)).sum() + np.trace(cov1) + np.trace(cov2) - 2 * roots)


def interval(hits: int, count: int) -> tuple[float, float]:
    """Wilson's interval of 95 % for a share."""
    z = 1.96
    centre, scale = hits + z * z / 2, count + z * z
    half = z * np.sqrt(hits * (count - hits) / count + z * z / 4)
    return float((centre - half) / scale), float((centre + half) / scale)


def paired(found: list[str], others: list[str], wanted: list[str]) -> str:
    """By how many points of a hundred `found` is right more often than `others`, item by item, with the interval of 95 % for pairs: what
    both have right or both wrong tells nothing."""
    gained = sum(a == c != b for a, b, c in zip(found, others, wanted, strict=True))
    lost = sum(b == c != a for a, b, c in zip(found, others, wanted, strict=True))
    count = len(wanted)
    middle, half = (gained - lost) / count, 1.96 * np.sqrt(gained + lost - (gained - lost) ** 2 / count) / count
    return f"{100 * middle:+.1f} ({100 * (middle - half):+.1f} to {100 * (middle + half):+.1f})"


def share(found: list[str], wanted: list[str]) -> str:
    """How many of `found` are what was wanted, with the interval, for a table."""
    hits = sum(a == b for a, b in zip(found, wanted, strict=True))
    low, high = interval(hits, len(wanted))
    return f"{hits / len(wanted):.1%} ({low:.1%} to {high:.1%}, n = {len(wanted)})"


def confusion(found: list[str], wanted: list[str]) -> dict[str, dict[str, int]]:
    """wanted style -> found style -> how often, of what occurs."""
    pairs = list(zip(wanted, found, strict=True))
    return {style: {other: pairs.count((style, other)) for other in STYLES if (style, other) in pairs} for style in STYLES}
