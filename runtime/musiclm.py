"""The public object: a bundle, loaded, that makes music and embeds texts and sounds.

In: a bundle's directory, then requests. Out: `Music` and latents. How a request runs is in `runtime.generation`.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from .arguments import whole_number
from .backend import choose_device, open_session, useful_threads
from .bundle import STAGES, Bundle, Decoder, Spectrogram, unpack_tokens
from .device.arrays import on_host
from .device.cuda import CudaDriver
from .device.driver import Driver, Engines
from .device.model import TYPES, DeviceModel
from .device.patches import Patches
from .engines.form import Form
from .engines.model import EngineModel
from .engines.run import EngineDriver
from .estimate import Estimate, estimate, is_small
from .generation import Generation
from .memory import check_memory, encode_bytes, mulan_audio_bytes, wav2vec_bytes
from .music import Tokens
from .noise import NoiseSource
from .primes import encoder_of, tokenizer_of
from .progress import Progress, progress_bars
from .prompts import Prompt, read_texts
from .request import Request, check_callbacks, make_request
from .sampling import SamplingConfig
from .shortage import naming_shortage
from .sounds import SoundInput, read_waves
from .step import Choice, choose_step, open_native, open_pool, open_weights
from .tokenizer_file import read_tokenizer
from .windows import Window
from .words import texts_of, unknown_words

if TYPE_CHECKING:
    from ..kernels.decoder_step import Model

_LOG = logging.getLogger(__name__)
_NAMED = 12  # most words that a warning names


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
    opened, chosen, threads = Bundle.open(bundle), choose_device(device), useful_threads(count)
    if chosen == "cuda":
        return MusicLM(opened, chosen, threads, Choice(False, "on the GPU"), CudaDriver(opened.root), weights)
    if chosen == "tensorrt":
        driver = EngineDriver(opened, Form.open(opened))
        return MusicLM(opened, chosen, threads, Choice(False, "on the GPU"), driver, driver.form.precision)
    return MusicLM(opened, chosen, threads, choose_step(step, [getattr(opened.manifest, stage) for stage in STAGES]))


class MusicLM:
    """A loaded bundle. One object serves several threads at once; each request has its own caches."""

    def __init__(
        self, bundle: Bundle, device: str, threads: int | None, step: Choice, driver: Driver | None = None, weights: str = "fp32"
    ) -> None:
        """driver: of the device that makes the tokens, the CPU without one; weights: their type there, one of TYPES."""
        self.bundle, self.device, self.step, self.driver, self.weights = bundle, device, step, driver, weights
        mulan = bundle.manifest.mulan
        self.tokenizer = read_tokenizer(bundle.path(mulan.tokenizer), bool(mulan.tokenizer_from_file), mulan.pad_id or 0)
        packed = mulan.trained_tokens
        self._trained_tokens = None if packed is None else unpack_tokens(packed, self.tokenizer.tokens)
        self.threads, self._lock, self._device_lock = threads, threading.Lock(), threading.RLock()  # a report may close the model
        self._sessions: dict[str, Any] | None = {}
        self._native: dict[str, Model] = {}
        self._on_device: dict[str, DeviceModel] = {}
        self._patches: Patches | None = None
        self._pool = open_pool(threads) if step.native else None
        how = "native" if step.native else "by graph" if driver is None else "by engines" if isinstance(driver, Engines) else "by kernels"
        _LOG.info("%s on %s: steps %s: %s", bundle.root, device, how, step.reason)

    def generate(
        self,
        text: Prompt | Sequence[Prompt] | None = None,
        *,
        audio: SoundInput | Sequence[SoundInput] | None = None,
        prime: SoundInput | Sequence[SoundInput | None] | None = None,
        include_prime: bool = True,
        seconds: float | None = None,
        seed: int | Sequence[int] = 0,
        num_samples: int = 1,
        stop: str = "exact",
        compat: str | None = None,
        max_semantic_tokens: int | None = None,
        sampling: Mapping[str, SamplingConfig] | None = None,
        tokens: str | os.PathLike | Tokens | Sequence[Tokens] | None = None,
        windows: Mapping[str, Window] | None = None,
        noise: NoiseSource | None = None,
        progress: Progress | bool | None = None,
        cancel: threading.Event | None = None,
    ) -> Any:
        """Generate music for a prompt: a `Music`; or for a list of prompts, all in one batch: a list of `Music`.

        text: what it should be like, or a `Blend` of texts and sounds. audio: in place of a text, a sound that it should be like to MuLaN;
            the music does not begin with it. A sound, here and in what follows, is a path, (wave, rate in Hz), a dict of Hugging Face's
            datasets, or another form that docs/reference.md lists.
        prime: a sound that the music goes on from, one for all prompts or one (or None) each, cut to whole frames of the codec. Without
            text and audio it is also what the music should be like.
        include_prime: whether the wave begins with the prime, as the codec decodes it. Tokens always do.
        seconds: length of the wave, exact to the sample, the prime's included whether the wave begins with it or not; by default the
            model's window. A longer clip is made window by window.
        seed: of the noise, one for all prompts or one each; the same seed gives the same wave in any batch.
        num_samples: candidates per prompt, all of them kept; `audio` is the one that MuLaN finds closest to the prompt.
        stop: "exact" forbids the end token until `seconds` are reached, "eos" lets a clip end earlier.
        compat: "upstream" reproduces audiolm-pytorch 2.4.0 token for token: the semantic conditioning in every stage, ends allowed,
            up to 2048 semantic tokens, candidates ranked without resampling; `seconds` by default the window after the prime.
        max_semantic_tokens: at most, over the whole clip; by default as many as `seconds` can hold.
        sampling: `SamplingConfig` by stage name, where it differs from the bundle's.
        tokens: saved tokens (a file, or `Tokens` per candidate) to go on from with the first stage that they lack.
        windows: `Window` by stage name: how a clip longer than a stage's trained window is made, where it differs from the default.
        noise: a `NoiseSource` in place of the seeded one.
        progress: True for bars on standard error, or a function that is called with (stage, done, total).
        cancel: when set, the request stops with GenerationCancelled.
        """
        check_callbacks(noise, progress, cancel)
        if noise is not None and self.driver is not None:
            raise ValueError("noise= is for device='cpu': on a GPU noise is drawn where the tokens are, from the seed, the same as here.")
        limits = (seconds, seed, num_samples, stop, compat, max_semantic_tokens, sampling, tokens, windows)
        request = self._request(text, audio, prime, include_prime, limits)
        if unknown := self.unknown_words(texts_of(request.prompts)):
            _LOG.warning("no caption that MuLaN was trained on had %s: what such words do to the music is chance.", _quoted(unknown))
        with progress_bars() if progress is True else nullcontext(progress or None) as report:
            return Generation(self, request, noise, report, cancel).run()

    def estimate(
        self,
        text: Prompt | Sequence[Prompt] | None = None,
        *,
        audio: SoundInput | Sequence[SoundInput] | None = None,
        prime: SoundInput | Sequence[SoundInput | None] | None = None,
        include_prime: bool = True,
        seconds: float | None = None,
        seed: int | Sequence[int] = 0,
        num_samples: int = 1,
        stop: str = "exact",
        compat: str | None = None,
        max_semantic_tokens: int | None = None,
        sampling: Mapping[str, SamplingConfig] | None = None,
        tokens: str | os.PathLike | Tokens | Sequence[Tokens] | None = None,
        windows: Mapping[str, Window] | None = None,
    ) -> Estimate | None:
        """Estimate how long `generate` with these arguments will take and in how much memory, by timing a few steps of each stage.

        Returns None for a request of a few seconds, which would not be worth the timing, and on a GPU. Raises what `generate` raises before
        it computes: ValueError, and MemoryError for what does not fit.
        """
        limits = (seconds, seed, num_samples, stop, compat, max_semantic_tokens, sampling, tokens, windows)
        request = self._request(text, audio, prime, include_prime, limits)
        generation = Generation(self, request, None, None, None)
        generation.check_memory()
        return None if self.driver is not None or is_small(self, request) else estimate(self, generation, request)

    def _request(self, text: Any, audio: Any, prime: Any, include_prime: bool, limits: tuple) -> Request:
        """Return the request that these arguments make."""
        text, audio, prime = (on_host(given, self.driver) for given in (text, audio, prime))
        return make_request(self.bundle.manifest, text, *limits, audio=audio, prime=prime, include_prime=include_prime)

    def __repr__(self) -> str:
        steps = "native" if self.step.native else self.step.reason
        return f"MusicLM({str(self.bundle.root)!r}, device {self.device!r}, steps {steps})"

    def unknown_words(self, texts: str | Sequence[str]) -> list[str]:
        """Return the words of texts that no caption of MuLaN's training had, each once. Empty if the bundle does not know them."""
        texts = read_texts(texts)
        if self._trained_tokens is None:
            return []
        return list(dict.fromkeys(word for text in texts for word in unknown_words(text, self.tokenizer, self._trained_tokens)))

    def embed_text(self, texts: str | Sequence[str]) -> np.ndarray:
        """MuLaN's latents of texts: float32 [B, dim_latent], of length 1."""
        texts = read_texts(texts)
        if not texts:
            raise ValueError("no text: the list is empty.")
        mulan = self.bundle.manifest.mulan
        # one text at a time: padding is masked, but a text alone costs what it is long
        latents = []
        for text in texts:
            input_ids, attention_mask = self.tokenizer.encode_batch([text], mulan.max_tokens)
            latents.append(self.run(mulan.text, input_ids=input_ids, attention_mask=attention_mask)["latent"])
        return np.concatenate(latents)

    def embed_audio(self, audio: SoundInput | Sequence[SoundInput]) -> np.ndarray:
        """Return MuLaN's latents of a sound, or of a list of sounds of one length: float32 [B, dim_latent], of length 1."""
        mulan = self.bundle.manifest.mulan
        sounds = on_host(audio, self.driver)
        wave = read_waves(sounds, mulan.sample_hz, mulan.min_samples, "MuLaN embeds", _check("mulan", partial(mulan_audio_bytes, mulan)))
        if mulan.spectrogram is not None and self.driver is not None and not isinstance(self.driver, Engines):
            return self._embed_patches(mulan.spectrogram, wave)
        return self.run(mulan.audio, wave=wave)["latent"]

    def semantic_tokens(self, audio: SoundInput | Sequence[SoundInput]) -> np.ndarray:
        """Return the semantic tokens of a sound, or of a list of sounds of one length: int64 [B, n], one per frame, repeats and all.

        Raises ValueError for a sound that cannot be used, and for a bundle that was exported without a semantic tokenizer.
        """
        wav2vec = tokenizer_of(self.bundle.manifest)
        sounds, check = on_host(audio, self.driver), _check("wav2vec", partial(wav2vec_bytes, wav2vec))
        wave = read_waves(sounds, wav2vec.sample_hz, wav2vec.min_samples, "semantic tokens need", check)
        return self.run(wav2vec.graph, wave=wave)["tokens"]

    def encode_audio(self, audio: SoundInput | Sequence[SoundInput]) -> np.ndarray:
        """Return the codec's codes of a sound, or of a list of sounds of one length: int64 [B, frames, Q], columns as in `codec_encode`.

        The sound is resampled to the codec's rate, and what lacks of its last frame is filled with silence.
        """
        codec = self.bundle.manifest.codec
        graph = encoder_of(codec)
        hop = codec.samples_per_frame
        least = (codec.min_encode_frames - 1) * hop + 1  # filled up to whole frames
        check = _check("codec", lambda rows, samples: encode_bytes(rows, samples + -samples % hop))
        wave = read_waves(on_host(audio, self.driver), codec.sample_hz, least, "the codec encodes", check)
        wave = np.pad(wave, ((0, 0), (0, -wave.shape[1] % hop)))
        return self.run(graph, wave=wave)["codes"]

    def run(self, graph: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """One call of a graph of the bundle, by its file name."""
        if isinstance(self.driver, Engines):
            with self._device_lock:
                if self._sessions is None:
                    raise RuntimeError("this MusicLM is closed.")
                return self.driver.run(graph, inputs)
        session = self.session(graph)
        names = [output.name for output in session.get_outputs()]
        with self._there(), naming_shortage(f"while {graph} ran") if self.driver is None else nullcontext():
            return dict(zip(names, session.run(names, inputs), strict=True))

    def _embed_patches(self, spectrogram: Spectrogram, wave: np.ndarray) -> np.ndarray:
        """wave float32 [B, t] -> latents: its patches are made by a kernel, and read where they are."""
        assert self.driver is not None
        session = self.session(spectrogram.graph)
        with self._device_lock:
            if self._patches is None:
                self._patches = Patches(self.driver, spectrogram, self.bundle.root)
            patches, shape = self._patches.make(wave)
            binding = session.io_binding()
            device, index, address = self.driver.hand_over(patches)
            binding.bind_input("patches", device, index, np.float32, shape, address)
            binding.bind_output("latent")
            with self._there():
                session.run_with_iobinding(binding)
                return binding.copy_outputs_to_cpu()[0]

    def _there(self) -> AbstractContextManager[None]:
        """ONNX Runtime leaves a thread in the GPU's primary context; the caller may have been in another."""
        return nullcontext() if self.driver is None else self.driver.current()

    def session(self, graph: str) -> Any:
        """Of a graph of the bundle, opened when it is first asked for: who only embeds does not wait for the transformers."""
        with self._lock:
            if self._sessions is None:
                raise RuntimeError("this MusicLM is closed.")
            if graph not in self._sessions:
                with self._there():
                    self._sessions[graph] = open_session(self.bundle.path(graph), self.threads, self.device, self.bundle.data_to_map())
            return self._sessions[graph]

    def transformer(self, stage: str) -> Any:
        """What computes a stage's tokens: its native model, packed when it is first asked for, or the session of its graph."""
        if self._pool is None:
            return self.session(self._decoder(stage).graph)
        with self._lock:
            if self._sessions is None:
                raise RuntimeError("this MusicLM is closed.")
            if stage not in self._native:
                decoder = self._decoder(stage)
                self.bundle.check_unchanged(decoder.graph)
                self._native[stage] = open_native(self.bundle.root, decoder, self._pool)
            return self._native[stage]

    def weights_to_load(self) -> int:
        """Return the bytes of the weights that a request uses and that are not loaded yet; 0 on a GPU, whose memory is not the host's."""
        if self.driver is not None:
            return 0
        manifest = self.bundle.manifest
        with self._lock:
            done = {*(self._sessions or ()), *(self._decoder(stage).graph for stage in self._native)}
        graphs = {manifest.mulan.text, manifest.conditioner.graph, manifest.codec.decode, *(self._decoder(stage).graph for stage in STAGES)}
        return sum(manifest.files[name].bytes for graph in graphs - done for name in (graph, f"{graph}.data") if name in manifest.files)

    @contextmanager
    def on_device(self, stage: str) -> Iterator[DeviceModel]:
        """A stage's weights on the device, uploaded when they are first asked for; for one request at a time, as there is one stream."""
        assert self.driver is not None
        with self._device_lock:
            if self._sessions is None:
                raise RuntimeError("this MusicLM is closed.")
            if stage not in self._on_device:
                decoder = self._decoder(stage)
                self.bundle.check_unchanged(decoder.graph)
                _, sizes, numbers = open_weights(self.bundle.root, decoder)
                if isinstance(self.driver, Engines):
                    self._on_device[stage] = EngineModel(self.driver, stage, sizes, numbers)
                else:
                    self._on_device[stage] = DeviceModel(self.driver, stage, sizes, numbers, self.weights)
            yield self._on_device[stage]

    def close(self) -> None:
        """Free the sessions and their memory. A request that is still running ends at its next stage, with an error that says so."""
        with self._lock:
            self._sessions, self._native, self._pool, self._on_device, self._patches = None, {}, None, {}, None
        if self.driver is not None:
            with self._device_lock:
                self.driver.close()

    def __enter__(self) -> MusicLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _decoder(self, stage: str) -> Decoder:
        return getattr(self.bundle.manifest, stage)


def _quoted(words: Sequence[str]) -> str:
    """Quote words for a message: 'a', 'b' and 7 others."""
    named = ", ".join(repr(word if len(word) <= 40 else f"{word[:40]}...") for word in words[:_NAMED])
    return named if len(words) <= _NAMED else f"{named} and {len(words) - _NAMED} others"


def _check(stage: str, needed: Callable[[int, int], int]) -> Callable[[int, int], None]:
    """Return a function that raises MemoryError where a stage has no memory for B waves of t samples. needed: its bytes."""
    return lambda rows, samples: check_memory({stage: needed(rows, samples)})
