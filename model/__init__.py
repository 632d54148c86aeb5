"""The PyTorch side of MusicLM: modules that load the checkpoints of musiclm-pytorch and audiolm-pytorch."""

from .audio_spectrogram_transformer import AudioSpectrogramTransformer
from .hubert import HubertKmeans
from .mulan import MuLaN
from .mulan_quantizer import MuLaNEmbedQuantizer
from .semantic_tokens import MelKmeans
from .spectrogram import music_spectrogram
from .text_transformer import TextTransformer

__all__ = [
    "AudioSpectrogramTransformer",
    "HubertKmeans",
    "MelKmeans",
    "MuLaN",
    "MuLaNEmbedQuantizer",
    "TextTransformer",
    "music_spectrogram",
]
