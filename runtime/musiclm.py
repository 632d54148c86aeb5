"""The public object: a bundle, loaded, that makes music and embeds texts and sounds.

In: a bundle's directory, then requests. Out: `Music` and latents. How a request runs is in `runtime.pipeline`.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Unpack, overload

import numpy as np

from .arguments import number, whole_number
from .backend import useful_threads
from .backends import Backend, open_backend
from .bundle import Bundle
from .config import GenerationConfig, Settings, config_of
from .device.arrays import on_host
from .device.model import TYPES
from .encoders import Encoders
from .estimate import Estimate, estimate
from .music import Music, Tokens
from .needs import check_request
from .noise import NoiseSource
from .pipeline import Pipeline
from .progress import Progress, progress_bars
from .prompts import Prompt
from .request import GivenTokens, Primes, Request, Sounds, Texts, check_callbacks, make_request
from .scheduler import Activity, Scheduler
from .sounds import SoundInput
from .stream import Change, Stream, open_stream, saved_request
from .words import texts_of

_LOG = logging.getLogger(__name__)
_NAMED = 12  # most words that a warning names
_MOST_S = 1e9  # of a start and a look-ahead


def load(
    bundle: str | os.PathLike, device: str = "auto", *, threads: int | None = None, step: str = "auto", weights: str = "fp16"
) -> MusicLM:
    """Open and check a bundle. device: "auto", "cpu", "cuda" or "tensorrt"; threads: of the CPU, one per core by default, and
    no more than there are processors, with a warning where more are asked for.

    step: "native" or "graph", what computes a token after the first on a CPU; "auto" is native where it was built.
    weights: "fp16", "bf16", "fp32", or "int8" of a bundle of 8 bits, in which "cuda" has the transformers' matrices; engines are as they
    were exported. "auto" is the CPU.

    Raises BundleError with every fault of the bundle, BackendError when the device cannot be had. A graph is opened when it is first
    used; one that ONNX Runtime refuses, though its hash is right, is a BundleError then.
    """
    count = whole_number(threads)
    if threads is not None and (count is None or count < 1):
        raise ValueError(f"threads must be a whole number of at least 1, got {threads!r}.")
    if not isinstance(weights, str) or weights not in TYPES:
        raise ValueError(f"weights must be one of {', '.join(TYPES)}, got {weights!r}.")
    if not isinstance(bundle, str | os.PathLike):
        raise ValueError(f"a bundle is given by the path of its folder, got {type(bundle).__name__}.")
    return MusicLM(open_backend(Bundle.open(bundle), device, useful_threads(count), step, weights))


class GenerateOptions(Settings, total=False):
    """The keyword arguments of `MusicLM.generate` that do not decide whether it returns one `Music` or a list."""

    tokens: GivenTokens
    config: GenerationConfig | None
    noise: NoiseSource | None
    progress: Progress | bool | None
    cancel: threading.Event | None


class MusicLM:
    """A loaded bundle. One object serves several threads at once; each request has its own caches."""

    def __init__(self, backend: Backend) -> None:
        self.bundle, self.device, self.threads = backend.bundle, backend.device, backend.graphs.threads
        self.backend, self.graphs = backend, backend.graphs
        self.encoders = Encoders(self.bundle, self.graphs)
        self._scheduler = Scheduler(backend)
        self._pipeline = Pipeline(self.bundle, self.encoders, backend, self._scheduler)

    @overload
    def generate(self, text: Prompt, *, audio: None = None, prime: Primes = None, **options: Unpack[GenerateOptions]) -> Music: ...
    @overload
    def generate(self, text: None = None, *, audio: SoundInput, prime: Primes = None, **options: Unpack[GenerateOptions]) -> Music: ...
    @overload
    def generate(self, text: None = None, *, audio: None = None, prime: SoundInput, **options: Unpack[GenerateOptions]) -> Music: ...
    @overload
    def generate(
        self, text: Texts = None, *, audio: Sounds = None, prime: Primes = None, **options: Unpack[GenerateOptions]
    ) -> list[Music]: ...
    def generate(
        self,
        text: Texts = None,
        *,
        audio: Sounds = None,
        prime: Primes = None,
        tokens: GivenTokens = None,
        config: GenerationConfig | None = None,
        noise: NoiseSource | None = None,
        progress: Progress | bool | None = None,
        cancel: threading.Event | None = None,
        **settings: Unpack[Settings],
    ) -> Music | list[Music]:
        """Generate music for a prompt: a `Music`; or for a list of prompts, all in one batch: a list of `Music`.

        text: what it should be like, or a `Blend` of texts and sounds. audio: in place of a text, a sound that it should be like to MuLaN;
            the music does not begin with it. A sound, here and in what follows, is a path, (wave, rate in Hz), a dict of Hugging Face's
            datasets, or another form that docs/reference.md lists.
        prime: a sound that the music goes on from, one for all prompts or one (or None) each, cut to whole frames of the codec. Without
            text and audio it is also what the music should be like.
        tokens: saved tokens (a file, or `Tokens` per candidate) to go on from with the first stage that they lack.
        config: how the music is made; settings, such as `seconds=10, seed=3`, take the place of the config's. `GenerationConfig` says what
            each of them is.
        noise: a `NoiseSource` in place of the seeded one.
        progress: True for bars on standard error, or a function that is called with (stage, done, total).
        cancel: when set, the request stops with GenerationCancelled.

        Raises ValueError for what makes no sense and MemoryError for what does not fit, before anything is computed; TypeError for an
        unknown setting.
        """
        check_callbacks(noise, progress, cancel)
        if noise is not None and not self.backend.on_host:
            raise ValueError("noise= is for device='cpu': on a GPU noise is drawn where the tokens are, from the seed, the same as here.")
        request = self._request(config_of(config, **settings), text, audio, prime, tokens)
        self._warn_of_words(request)
        needed = max(check_request(self.backend, request).values())
        with progress_bars() if progress is True else nullcontext(progress or None) as report:
            music = self._pipeline.collect(request, needed, noise, report, cancel)
        return music[0] if request.single else music

    def stream(
        self,
        text: Prompt | None = None,
        *,
        audio: SoundInput | None = None,
        prime: SoundInput | None = None,
        tokens: str | os.PathLike | Tokens | None = None,
        start_s: float = 0.0,
        ahead_s: float = 10.0,
        config: GenerationConfig | None = None,
        **settings: Unpack[Settings],
    ) -> Stream:
        """Make music for one prompt while it plays: a `Stream` of chunks, float32 [t], each as soon as it is made.

        text, audio, prime, config, settings: as in `generate`; but `seconds=None` is music without end. The chunks of a request are the
        wave that `generate` makes of it.
        tokens: those of a stream that was cut off, to go on from: with a file that `Stream.save_tokens` wrote nothing else need be given.
        start_s: second of the clip with which the chunks begin. ahead_s: seconds that are made ahead of what was taken.

        Raises what `generate` raises, and QueueFull.
        """
        start, ahead = number(start_s), number(ahead_s)
        if start is None or not 0 <= start < _MOST_S or ahead is None or not 0 < ahead < _MOST_S:
            raise ValueError(f"start_s must be at least 0 and ahead_s above 0, in seconds, got {start_s!r} and {ahead_s!r}.")
        changes: list[Change] = []
        if isinstance(tokens, str | os.PathLike) and text is None and audio is None and prime is None:
            text, config, changes = saved_request(tokens, config)
        request = self._request(config_of(config, **settings), text, audio, prime, tokens, streamed=True)
        if not request.single or request.num_samples > 1 or request.config.upstream:
            raise ValueError("a stream is one clip of one prompt, and not upstream's. Make several streams for several, or use generate.")
        self._warn_of_words(request)
        check_request(self.backend, request, ahead)
        return open_stream(self._pipeline, request, start, ahead, tokens is not None, changes)

    def estimate(
        self,
        text: Texts = None,
        *,
        audio: Sounds = None,
        prime: Primes = None,
        tokens: GivenTokens = None,
        config: GenerationConfig | None = None,
        **settings: Unpack[Settings],
    ) -> Estimate | None:
        """Estimate how long `generate` with these arguments will take and in how much memory, by timing a few steps of each stage.

        Returns None for a request of a few seconds, which would not be worth the timing, and on a GPU. Raises what `generate` raises before
        it computes: ValueError, and MemoryError for what does not fit.
        """
        request = self._request(config_of(config, **settings), text, audio, prime, tokens)
        needed = check_request(self.backend, request)
        return estimate(self.backend, self.encoders, request, needed) if self.backend.on_host else None

    def check(
        self,
        text: Texts = None,
        *,
        audio: Sounds = None,
        prime: Primes = None,
        tokens: GivenTokens = None,
        config: GenerationConfig | None = None,
        **settings: Unpack[Settings],
    ) -> int:
        """Return the bytes that `generate` with these arguments takes at most beside the weights.

        Raises what `generate` raises before it computes, and ValueError for a prompt that MuLaN cannot read.
        """
        request = self._request(config_of(config, **settings), text, audio, prime, tokens)
        needed = check_request(self.backend, request)
        self.encoders.latents(request.prompts)
        return max(needed.values())

    @property
    def activity(self) -> Activity:
        """What is being made, and what was made since the model was loaded."""
        return self._scheduler.activity()

    def unknown_words(self, texts: str | Sequence[str]) -> list[str]:
        """Return the words of texts that no caption of MuLaN's training had, each once. Empty if the bundle does not know them."""
        return self.encoders.unknown_words(texts)

    def embed_text(self, texts: str | Sequence[str]) -> np.ndarray:
        """Return MuLaN's latents of texts: float32 [B, dim_latent], of length 1."""
        return self.encoders.embed_text(texts)

    def embed_audio(self, audio: SoundInput | Sequence[SoundInput]) -> np.ndarray:
        """Return MuLaN's latents of a sound, or of a list of sounds of one length: float32 [B, dim_latent], of length 1."""
        return self.encoders.embed_audio(audio)

    def semantic_tokens(self, audio: SoundInput | Sequence[SoundInput]) -> np.ndarray:
        """Return the semantic tokens of a sound, or of a list of sounds of one length: int64 [B, n], one per frame, repeats and all.

        Raises ValueError for a sound that cannot be used, and for a bundle that was exported without a semantic tokenizer.
        """
        return self.encoders.semantic_tokens(audio)

    def encode_audio(self, audio: SoundInput | Sequence[SoundInput]) -> np.ndarray:
        """Return the codec's codes of a sound, or of a list of sounds of one length: int64 [B, frames, Q], columns as in `codec_encode`.

        The sound is resampled to the codec's rate, and what lacks of its last frame is filled with silence.
        """
        return self.encoders.encode_audio(audio)

    def run(self, graph: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Run a graph of the bundle once, by its file name, and return its outputs by name."""
        return self.graphs.run(graph, **inputs)

    def close(self) -> None:
        """Free the model's memory. A request that is still running ends within a frame, with an error that says so."""
        self._scheduler.close()
        self.backend.close()
        self.encoders.close()  # what follows finds the graphs closed

    def __enter__(self) -> MusicLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"MusicLM({str(self.bundle.root)!r}, device {self.device!r}, steps {self.backend.steps})"

    def _request(
        self, config: GenerationConfig, text: Texts, audio: Sounds, prime: Primes, tokens: GivenTokens, streamed: bool = False
    ) -> Request:
        """Return the request that these arguments make."""
        driver, goes_on = self.graphs.driver, streamed and tokens is not None
        text, audio, prime = on_host(text, driver), on_host(audio, driver), on_host(prime, driver)
        named = {"audio": audio, "prime": prime, "tokens": tokens}
        return make_request(self.bundle.manifest, config, text, **named, endless=streamed, goes_on=goes_on)

    def _warn_of_words(self, request: Request) -> None:
        if unknown := self.unknown_words(texts_of(request.prompts)):
            _LOG.warning("no caption that MuLaN was trained on had %s: what such words do to the music is chance.", _quoted(unknown))


def _quoted(words: Sequence[str]) -> str:
    """Quote words for a message: 'a', 'b' and 7 others."""
    named = ", ".join(repr(word if len(word) <= 40 else f"{word[:40]}...") for word in words[:_NAMED])
    return named if len(words) <= _NAMED else f"{named} and {len(words) - _NAMED} others"
