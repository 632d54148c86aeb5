"""MusicLM in PyTorch: sentences to waves, MuLaN's conditioning in front of audiolm-pytorch's `AudioLM`.

In: the two trained halves, prompts. Out: waves, the best of several by MuLaN. It is for listening while a model is being trained, and what
`export_musiclm` takes; the bundle made from it is the fast one. Constructor and call are those of musiclm-pytorch 0.2.8.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..runtime.audio import resample
from .clap import ClapTowers
from .mulan import MuLaN
from .mulan_quantizer import MuLaNEmbedQuantizer

_STAGES = ("semantic", "coarse", "fine")
# A SoundStream reflects this many frames at most where a clip begins, so that a shorter one does not decode: it is padded, then cut.
_REFLECTED_FRAMES = 64


class MusicLM(nn.Module):
    def __init__(self, audio_lm: Any, mulan_embed_quantizer: MuLaNEmbedQuantizer, mulan_sample_hz: int | None = None) -> None:
        """audio_lm: an `audiolm_pytorch.AudioLM` without conditioner of its own.
        mulan_sample_hz: of the waves MuLaN was trained on; by default what its mel filters say, or the rate that a `ClapTowers` is given,
        else the codec's rate."""
        super().__init__()
        if audio_lm.audio_conditioner is not None:
            raise ValueError("this AudioLM has an audio_conditioner of its own: build it without, the quantizer is given to MusicLM")
        self.audio_lm, self.mulan_embed_quantizer = audio_lm, mulan_embed_quantizer
        told = _rate_of(mulan_embed_quantizer.mulan)
        if None not in (told, mulan_sample_hz) and told != mulan_sample_hz:
            raise ValueError(f"mulan_sample_hz = {mulan_sample_hz}, but MuLaN's mel filters were made for {told} Hz")
        self.mulan_sample_hz = told or mulan_sample_hz

    @property
    def device(self) -> torch.device:
        return next(self.mulan_embed_quantizer.parameters()).device

    @torch.no_grad()
    def forward(
        self,
        text: str | Sequence[str],
        num_samples: int = 1,
        *,
        compat: str | None = None,
        max_time_steps: int = 512,
        **audio_lm_kwargs: Any,
    ) -> Tensor | list[Tensor]:
        """A wave [1, t] fp32 at the codec's rate, for a list of prompts a list of them; of num_samples each the one closest by MuLaN.

        Each stage is conditioned on its own namespace, each row generated alone, so that none sees another's padding, and waves are ranked
        at MuLaN's rate. compat="upstream" does what musiclm-pytorch does: the first namespace everywhere, padding embedded, no resampling.
        max_time_steps: frames of the coarse stage at most; audio_lm_kwargs: of `AudioLM.forward` (`max_length`, `prime_wave`, ...), without
        its batch and conditions. Sampling draws from torch's global generator.
        """
        if compat not in (None, "upstream"):
            raise ValueError(f"compat must be None or 'upstream', got {compat!r}")
        if compat == "upstream" and max_time_steps != 512:
            raise ValueError(f"audiolm-pytorch's AudioLM always runs 512 frames, got max_time_steps = {max_time_steps}")
        prompts = [text] if isinstance(text, str) else list(text)
        if num_samples < 1 or not prompts or not all(isinstance(prompt, str) for prompt in prompts):
            raise ValueError(f"expected a prompt or a list of them and num_samples of at least 1, got {text!r} and {num_samples}")
        self.eval()
        waves = []
        for prompt in prompts:
            ids = self.mulan_embed_quantizer.mulan.text.tokenize([prompt])
            samples = []
            for _ in range(num_samples):
                if compat == "upstream":
                    samples.append(_wave(self.audio_lm(text_embeds=self.mulan_embed_quantizer(texts=ids), **audio_lm_kwargs)))
                else:
                    samples.append(self._generate(ids, max_time_steps, **audio_lm_kwargs))
            scores = [self._score(ids, wave, compat) for wave in samples] if num_samples > 1 else [0.0]
            waves.append(samples[scores.index(max(scores))])
        return waves[0] if isinstance(text, str) else waves

    @torch.inference_mode()
    def _generate(
        self, ids: Tensor, max_time_steps: int, *, max_length: int = 2048, return_coarse_generated_wave: bool = False, **prime: Any
    ) -> Tensor:
        """`AudioLM.forward` of one row, each stage with its own condition and without the padding that follows an end."""
        quantizer, audio_lm = self.mulan_embed_quantizer, self.audio_lm
        conditions = {}
        for stage in _STAGES:
            namespace = stage if stage in quantizer.namespaces else quantizer.namespaces[0]
            conditioned = getattr(audio_lm, f"{stage}_has_condition")
            conditions[stage] = quantizer(texts=ids, namespace=namespace) if conditioned else None
        semantic = audio_lm.semantic.generate(text_embeds=conditions["semantic"], max_length=max_length, **prime)
        coarse = audio_lm.coarse.generate(
            text_embeds=conditions["coarse"],
            semantic_token_ids=semantic[:, semantic[0] >= 0],
            max_time_steps=max_time_steps,
            reconstruct_wave=return_coarse_generated_wave,
            **prime,
        )
        if return_coarse_generated_wave:
            return _wave(coarse)
        coarse = coarse[:, (coarse[0] >= 0).all(dim=-1)]
        frames = coarse.shape[1]
        if frames == 0:  # it ended at once
            return torch.zeros(1, 0, device=coarse.device)
        fine = audio_lm.fine.generate(text_embeds=conditions["fine"], coarse_token_ids=coarse, **prime)
        codes = torch.cat((coarse, fine), dim=-1)
        missing = max(0, _REFLECTED_FRAMES - frames)
        wave = audio_lm.fine.codec.decode_from_codebook_indices(torch.cat((codes, codes[:, -1:].expand(-1, missing, -1)), dim=1))
        return wave.reshape(1, -1)[:, : wave.numel() // (frames + missing) * frames]

    def _score(self, ids: Tensor, wave: Tensor, compat: str | None) -> float:
        """Cosine of MuLaN's latents of text and wave; below all others for a wave too short to have one."""
        mulan = self.mulan_embed_quantizer.mulan
        codec_hz = self.audio_lm.fine.codec.target_sample_hz
        if compat is None and self.mulan_sample_hz not in (None, codec_hz):
            wave = torch.from_numpy(resample(wave.cpu().numpy(), codec_hz, self.mulan_sample_hz)).to(wave.device)
        if compat is None and wave.shape[1] < mulan.audio.min_samples:
            return -2.0
        return mulan(wave, ids, return_similarities=True).item()


def _rate_of(mulan: MuLaN | ClapTowers) -> int | None:
    """Return the rate in Hz of the waves that a model takes, None if it does not say."""
    if isinstance(mulan, ClapTowers):
        return mulan.audio.sample_hz
    return None if mulan.audio.spec.mel is None else int(mulan.audio.spec.mel_layout[0])


def _wave(generated: Tensor | list[Tensor]) -> Tensor:
    """What `AudioLM` returns for one row, [1, t], or after an early end a list of one [t] -> [1, t]."""
    return generated if isinstance(generated, Tensor) else generated[0][None]
