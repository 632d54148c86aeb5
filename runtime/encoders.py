"""What the bundle's graphs make of a prompt: latents, conditioning for each stage, the tokens of a sound.

In: texts and sounds in any form that the readers take. Out: arrays. Every method may be called from several threads.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from .audio import resample
from .bundle import STAGES, Bundle, unpack_tokens
from .device.arrays import on_host
from .device.driver import Engines
from .graphs import Graphs
from .memory import check_memory, encode_bytes, mulan_audio_bytes, wav2vec_bytes
from .music import Tokens
from .primes import Prime, encoder_of, tokenizer_of
from .prompts import Prompt, latents_of, read_texts
from .sequence import Context
from .sounds import Sound, SoundInput, read_waves
from .tokenizer_file import read_tokenizer
from .words import unknown_words

_KEPT_TEXTS = 256  # whose latents are kept: a blend that is turned while it plays, and a request that is checked first, ask again


class Encoders:
    """The encoders of one loaded bundle."""

    def __init__(self, bundle: Bundle, graphs: Graphs) -> None:
        self._bundle, self._graphs = bundle, graphs
        mulan = bundle.manifest.mulan
        self.tokenizer = read_tokenizer(bundle.path(mulan.tokenizer), bool(mulan.tokenizer_from_file), mulan.pad_id or 0)
        packed = mulan.trained_tokens
        self._embedded: OrderedDict[str, np.ndarray] = OrderedDict()  # latents by text, the one that was asked for last at the end
        self._turn = threading.Lock()
        self._trained_tokens = None if packed is None else unpack_tokens(packed, self.tokenizer.tokens)

    def close(self) -> None:
        """Forget what is kept."""
        with self._turn:
            self._embedded.clear()

    def unknown_words(self, texts: str | Sequence[str]) -> list[str]:
        """Return the words of texts that no caption of MuLaN's training had, each once. Empty if the bundle does not know them."""
        texts = read_texts(texts)
        if self._trained_tokens is None:
            return []
        return list(dict.fromkeys(word for text in texts for word in unknown_words(text, self.tokenizer, self._trained_tokens)))

    def embed_text(self, texts: str | Sequence[str]) -> np.ndarray:
        """Return MuLaN's latents of texts: float32 [B, dim_latent], of length 1."""
        texts = read_texts(texts)
        if not texts:
            raise ValueError("no text: the list is empty.")
        # one text at a time: padding is masked, but a text alone costs what it is long
        return np.concatenate([self._embed_one(text) for text in texts])

    def _embed_one(self, text: str) -> np.ndarray:
        with self._turn:
            if text in self._embedded:
                self._embedded.move_to_end(text)
                return self._embedded[text]
        mulan = self._bundle.manifest.mulan
        input_ids, attention_mask = self.tokenizer.encode_batch([text], mulan.max_tokens)
        latent = self._graphs.run(mulan.text, input_ids=input_ids, attention_mask=attention_mask)["latent"]
        with self._turn:
            self._embedded[text] = latent
            if len(self._embedded) > _KEPT_TEXTS:
                self._embedded.popitem(last=False)
        return latent

    def embed_audio(self, audio: SoundInput | Sequence[SoundInput]) -> np.ndarray:
        """Return MuLaN's latents of a sound, or of a list of sounds of one length: float32 [B, dim_latent], of length 1."""
        mulan, driver = self._bundle.manifest.mulan, self._graphs.driver
        check = _check("mulan", partial(mulan_audio_bytes, mulan))
        wave = read_waves(on_host(audio, driver), mulan.sample_hz, mulan.min_samples, "MuLaN embeds", check)
        if mulan.spectrogram is not None and driver is not None and not isinstance(driver, Engines):
            return self._graphs.embed_patches(mulan.spectrogram, wave)
        return self._graphs.run(mulan.audio, wave=wave)["latent"]

    def semantic_tokens(self, audio: SoundInput | Sequence[SoundInput]) -> np.ndarray:
        """Return the semantic tokens of a sound, or of a list of sounds of one length: int64 [B, n], one per frame, repeats and all.

        Raises ValueError for a sound that cannot be used, and for a bundle that was exported without a semantic tokenizer.
        """
        wav2vec = tokenizer_of(self._bundle.manifest)
        sounds, check = on_host(audio, self._graphs.driver), _check("wav2vec", partial(wav2vec_bytes, wav2vec))
        wave = read_waves(sounds, wav2vec.sample_hz, wav2vec.min_samples, "semantic tokens need", check)
        return self._graphs.run(wav2vec.graph, wave=wave)["tokens"]

    def encode_audio(self, audio: SoundInput | Sequence[SoundInput]) -> np.ndarray:
        """Return the codec's codes of a sound, or of a list of sounds of one length: int64 [B, frames, Q], columns as in `codec_encode`.

        The sound is resampled to the codec's rate, and what lacks of its last frame is filled with silence.
        """
        codec = self._bundle.manifest.codec
        graph = encoder_of(codec)
        hop = codec.samples_per_frame
        least = (codec.min_encode_frames - 1) * hop + 1  # filled up to whole frames
        check = _check("codec", lambda rows, samples: encode_bytes(rows, samples + -samples % hop))
        wave = read_waves(on_host(audio, self._graphs.driver), codec.sample_hz, least, "the codec encodes", check)
        wave = np.pad(wave, ((0, 0), (0, -wave.shape[1] % hop)))
        return self._graphs.run(graph, wave=wave)["codes"]

    def latents(self, prompts: Sequence[Prompt]) -> np.ndarray:
        """Return the latents of checked prompts, float32 [B, dim_latent] of length 1."""
        return latents_of(prompts, self.embed_text, self.embed_audio)

    def contexts(self, latents: np.ndarray, namespace: str | None = None) -> list[dict[str, Context]]:
        """Return the conditioning of each stage, for each of the latents float32 [B, dim_latent].

        namespace: the stage whose conditioning all stages read, by default each its own.
        """
        manifest = self._bundle.manifest
        outputs = self._graphs.run(manifest.conditioner.graph, latent=latents)
        contexts: list[dict[str, Context]] = [{} for _ in latents]
        for stage in STAGES:
            decoder, arrays = getattr(manifest, stage), {}
            graph, codes = decoder.context, outputs.get(f"codes.{namespace or stage}") if decoder.segments else None
            if graph:
                arrays = self._graphs.run(graph, conditioning=outputs[f"conditioning.{namespace or stage}"])
            for row, of_prompt in enumerate(contexts):
                own = {name: np.ascontiguousarray(array[row : row + 1]) for name, array in arrays.items()}
                of_prompt[stage] = Context(own, None if codes is None else codes[row])
        return contexts

    def prime_tokens(self, prime: Prime) -> Tokens:
        """Return the prime's own tokens: semantic int64 [n] with its repeats, coarse and fine int64 [frames, Qc] and [frames, Qf]."""
        manifest, sound = self._bundle.manifest, prime.sound
        codec = manifest.codec
        semantic = self.semantic_tokens(sound)[0]
        whole = resample(sound.wave, sound.hz, codec.sample_hz)[: prime.frames * codec.samples_per_frame]
        codes = self.encode_audio(Sound(whole, codec.sample_hz))[0]
        coarse, fine = manifest.columns("coarse"), manifest.columns("fine")
        return Tokens(semantic, codes[:, :coarse], codes[:, coarse : coarse + fine])


def _check(stage: str, needed: Callable[[int, int], int]) -> Callable[[int, int], None]:
    """Return a function that raises MemoryError where a stage has no memory for B waves of t samples. needed: its bytes."""
    return lambda rows, samples: check_memory({stage: needed(rows, samples)})
