"""CLAP's two towers (Wu et al. 2022, arxiv.org/abs/2211.06687) in MuLaN's place: HTSAT for sounds, RoBERTa for texts.

In: waves [B, t] at 48 kHz, token ids or texts. Out: unit latents [B, dim_latent] of each, their similarities, or the contrastive loss that
trains them. The layers are those of transformers' `ClapModel`, and so are the state dict's names. It knows no file formats but by
`clap_files`.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..runtime.audio import resample
from ..runtime.roberta_tokenizer import MAX_TOKENS, RobertaTokenizer, tokenizer_files
from ..runtime.user_files import expanded
from .clap_files import SAMPLE_HZ, WINDOW_SECONDS, check_ranges, clap_facts, clap_tensors, preprocessor_of, read_clap
from .clap_spectrogram import ClapSpectrogram, bicubic_rows, windows_of
from .contrastive import contrastive_loss

# Settings of the tower's entrance, which are none of transformers' configuration, and their defaults.
_ENTRANCE = {"frequency_min": 50, "frequency_max": 14000, "fft_window_size": 1024, "hop_length": 480, "mel_scale": "slaney"}
_MOST_ROWS = 1 << 14  # of a tower's image in time: 1,024 in every published model


class ClapTowers(nn.Module):
    """Two towers with the methods of `MuLaN`, so that quantizer, trainers and export take either.

    Sounds of up to 10 s are repeated to 10 s, as LAION's preprocessing does. The latent of a longer sound is the mean of the latents of
    equally spaced windows of 10 s that cover it, normalised: LAION takes a crop at random. Samples beyond full scale are clipped, as there;
    LAION's rounding to 16 bits is left out, which moves a latent by 4e-6. A fused model computes what LAION's code does for sounds of
    up to 10 s: its fusion layers, which serve longer ones, are kept and not used.
    """

    stretch: Tensor  # bicubic interpolation in time: [frames of the tower's image, frames of a window]

    def __init__(
        self,
        settings: Mapping[str, Any],
        state: Mapping[str, Tensor] | None = None,
        *,
        frozen: bool = True,
        tokenizer: RobertaTokenizer | None = None,
        input_sample_hz: int = SAMPLE_HZ,
        decoupled_contrastive_learning: bool = True,
        sigmoid_contrastive_loss: bool = False,
    ) -> None:
        """settings: `audio.*` and `text.*` of transformers' configurations, as `clap_facts` names them, others by default; state: tensors
        of `clap_tensors`, without which the towers are as transformers draws them.

        frozen: no weight has a gradient, and the towers stay in evaluation mode whatever wraps them. tokenizer: for `raw_texts`.
        input_sample_hz: the rate of the waves that the towers are given here, such as the codec's in training; a bundle resamples itself.
        Raises ValueError if settings and tensors do not fit together.
        """
        super().__init__()
        from .upstream import import_transformers

        check_ranges(settings)
        clap = import_transformers().models.clap.modeling_clap
        audio, text = (
            {name.removeprefix(tower): value for name, value in settings.items() if name.startswith(tower)} for tower in ("audio.", "text.")
        )
        entrance = {name: audio.pop(name, default) for name, default in _ENTRANCE.items()}
        ends = {"projection_dim": settings.get("dim_latent", 512), "projection_hidden_act": settings.get("projection_hidden_act", "relu")}
        try:
            audio_config = clap.ClapAudioConfig(**audio, **ends, attn_implementation="eager")
            text_config = clap.ClapTextConfig(**text, **ends, attn_implementation="eager")
            with torch.device("meta" if state is not None else "cpu"):  # no weight is made only to be replaced
                self.audio_model, self.text_model = clap.ClapAudioModel(audio_config), clap.ClapTextModel(text_config)
                self.audio_projection = clap.ClapProjectionLayer(audio_config)
                self.text_projection = clap.ClapProjectionLayer(text_config)
        except Exception as error:  # its checks have exceptions of their own
            raise ValueError(f"transformers refuses these settings of CLAP: {error}") from error
        if audio_config.enable_fusion and audio_config.fusion_type not in (None, "aff_2d"):
            raise ValueError(
                f"a fusion of type {audio_config.fusion_type!r} is not covered, expected 'aff_2d', which published models have."
            )
        if state is not None:
            self._take(state)
        encoder = self.audio_model.audio_encoder
        encoder.enable_fusion = encoder.patch_embed.enable_fusion = False  # of layers for sounds that are longer than a window
        self.dim_latent, self.sample_hz = ends["projection_dim"], SAMPLE_HZ
        self.pad_id: int = text_config.pad_token_id
        self.num_tokens: int = text_config.vocab_size
        self.max_tokens: int = min(MAX_TOKENS, text_config.max_position_embeddings - self.pad_id - 1)
        self.window_samples, self.min_samples = WINDOW_SECONDS * SAMPLE_HZ, entrance["fft_window_size"]
        bands, frames = audio_config.num_mel_bins, self.window_samples // entrance["hop_length"] + 1
        rows = audio_config.spec_size * (audio_config.spec_size // bands)
        if not frames <= rows <= _MOST_ROWS:
            raise ValueError(
                f"10 s make {frames} frames of {entrance['hop_length']} samples, and the audio tower takes {rows}: at least as many are "
                f"covered, and at most {_MOST_ROWS}."
            )
        lowest, highest, n_fft, hop, scale = entrance.values()
        self.spectrogram = ClapSpectrogram(SAMPLE_HZ, n_fft, hop, bands, lowest, highest, scale == "slaney")
        self.register_buffer("stretch", bicubic_rows(frames, rows), persistent=False)
        self.contrast = contrastive_loss(1, decoupled_contrastive_learning, sigmoid_contrastive_loss)
        self.settings, self.tokenizer, self.input_sample_hz, self.frozen = dict(settings), tokenizer, input_sample_hz, frozen
        if frozen:
            self.requires_grad_(False)
        self.train(not frozen)

    @classmethod
    def from_files(
        cls,
        path: str | os.PathLike,
        tokenizer: str | os.PathLike | None = None,
        settings: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> "ClapTowers":
        """Read a Hugging Face folder of `ClapModel`, or LAION's `.pt`.

        tokenizer: RoBERTa's `vocab.json` and `merges.txt` in a folder, or a `tokenizer.json`; by default the folder's own, if it has them.
        settings: in place of what the files say or every published model has. more: arguments of the constructor.

        Raises ValueError, which names the file, for anything else.
        """
        path = expanded(path)
        state, config = read_clap(path)
        given = expanded(tokenizer) if tokenizer is not None else path if tokenizer_files(path) else None
        try:
            tensors = clap_tensors(state)
            facts = clap_facts(tensors, config, preprocessor_of(path))
            found = None if given is None else RobertaTokenizer.from_files(given)
            return cls({name: fact.value for name, fact in facts.items()} | dict(settings or {}), tensors, tokenizer=found, **more)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def _take(self, state: Mapping[str, Tensor]) -> None:
        """Take every tensor of `state`, and make the constants that it lacks."""
        state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
        for name, module in self.named_modules():
            if hasattr(module, "create_relative_position_index"):
                index: Any = module.create_relative_position_index
                state[f"{name}.relative_position_index"] = index()
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                state[f"{name}.num_batches_tracked"] = torch.tensor(0)
        positions = self.text_model.config.max_position_embeddings
        state["text_model.embeddings.position_ids"] = torch.arange(positions)[None]
        state["text_model.embeddings.token_type_ids"] = torch.zeros(1, positions, dtype=torch.long)
        try:
            self.load_state_dict(state, assign=True)
        except RuntimeError as error:  # torch lists every missing, unexpected and misshapen tensor
            raise ValueError(f"CLAP's tensors and settings do not fit together. {error}") from error

    @property
    def text(self) -> "_TextTower":
        """Return what users of `MuLaN.text` ask of a text tower."""
        return _TextTower(self)

    @property
    def audio(self) -> "_AudioTower":
        """Return what users of `MuLaN.audio` ask of an audio tower."""
        return _AudioTower(self)

    def train(self, mode: bool = True) -> "ClapTowers":
        return super().train(mode and not self.frozen)

    def get_audio_latents(self, wavs: Tensor) -> Tensor:
        """wavs [B, t] fp32 at `input_sample_hz`, t at least `audio.min_samples` -> unit latents [B, dim_latent]."""
        if self.input_sample_hz != SAMPLE_HZ:
            wavs = torch.from_numpy(resample(wavs.detach().cpu().numpy(), self.input_sample_hz, SAMPLE_HZ)).to(wavs.device)
        windows = windows_of(wavs.clamp(-1, 1), self.window_samples)
        latents = F.normalize(self._embed_windows(windows.flatten(0, 1)), dim=-1)
        return F.normalize(latents.reshape(wavs.shape[0], -1, self.dim_latent).mean(dim=1), dim=-1)

    def _embed_windows(self, windows: Tensor) -> Tensor:
        """windows [N, window_samples] -> [N, dim_latent], of any length."""
        encoder = self.audio_model.audio_encoder
        decibels = self.spectrogram(windows)
        normed = encoder.batch_norm(decibels.transpose(1, 2)[..., None])[..., 0].transpose(1, 2)
        hidden = encoder.patch_embed(encoder.reshape_mel2img((self.stretch @ normed)[:, None]))
        for layer, size in zip(encoder.layers, encoder.input_resolutions, strict=True):
            hidden = layer(hidden, size)[0]
        return self.audio_projection(encoder.norm(hidden).mean(dim=1))

    def get_text_latents(self, texts: Tensor | None = None, raw_texts: Sequence[str] | None = None, mask: Tensor | None = None) -> Tensor:
        """texts [B, n] token ids with those around a text, or raw_texts: B texts; mask [B, n] bool, by default the ids that are not padding
        -> unit latents [B, dim_latent]."""
        if (texts is None) == (raw_texts is None):
            raise ValueError("give either token ids or raw_texts")
        if texts is None:
            texts = self.text.tokenize(raw_texts or ())
        if not torch.compiler.is_exporting() and texts.shape[1] > self.max_tokens:
            raise ValueError(f"a text of {texts.shape[1]} tokens is longer than the {self.max_tokens} that CLAP takes")
        mask = texts != self.pad_id if mask is None else mask
        embedded = self.text_model.embeddings(input_ids=texts)
        bias = torch.zeros_like(mask, dtype=embedded.dtype).masked_fill(~mask, torch.finfo(embedded.dtype).min)
        hidden = self.text_model.encoder(embedded, attention_mask=bias[:, None, None])[0]
        return F.normalize(self.text_projection(self.text_model.pooler(hidden)), dim=-1)

    def forward(
        self,
        wavs: Tensor,
        texts: Tensor | None = None,
        raw_texts: Sequence[str] | None = None,
        return_latents: bool = False,
        return_similarities: bool = False,
        return_pairwise_similarities: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return the contrastive loss of B clips and their texts, a scalar; or audio and text latents [B, dim_latent] each, cosine
        similarities [B], or those of every pair [B audio, B text]."""
        audio, text = self.get_audio_latents(wavs), self.get_text_latents(texts, raw_texts=raw_texts)
        if return_latents:
            return audio, text
        if return_similarities:
            return (audio * text).sum(dim=-1)
        return audio @ text.T if return_pairwise_similarities else self.contrast(audio, text)


class _TextTower:
    def __init__(self, towers: ClapTowers) -> None:
        self._towers = towers
        self.max_seq_len, self.pad_id, self.num_tokens = towers.max_tokens, towers.pad_id, towers.num_tokens

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Return token ids [B, n] int64 on the towers' device. Raises ValueError without a tokenizer, and for a text that is too long."""
        tokenizer = self._towers.tokenizer
        if tokenizer is None:
            raise ValueError(
                "these towers have no tokenizer: give RoBERTa's vocab.json and merges.txt, or its tokenizer.json, or token ids."
            )
        ids, _ = tokenizer.encode_batch(texts, self.max_seq_len)
        return torch.from_numpy(ids).to(self._towers.stretch.device)


class _AudioTower:
    accept_spec = False

    def __init__(self, towers: ClapTowers) -> None:
        self.sample_hz = towers.input_sample_hz
        self.min_samples = -(-towers.min_samples * self.sample_hz // SAMPLE_HZ)
