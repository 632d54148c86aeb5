"""The PyTorch side of MusicLM: its modules and their training, compatible with musiclm-pytorch and audiolm-pytorch."""

from .audio_spectrogram_transformer import AudioSpectrogramTransformer
from .clap import ClapTowers
from .clips import ClipDataset
from .contrastive import SigmoidContrastiveLearning, SoftmaxContrastiveLearning
from .hubert import HubertKmeans
from .mulan import MuLaN
from .mulan_quantizer import MuLaNEmbedQuantizer
from .musiclm import MusicLM
from .semantic_tokens import MelKmeans
from .spectrogram import music_spectrogram
from .text_transformer import TextTransformer
from .trainer import MuLaNTrainer

__all__ = [
    "AudioSpectrogramTransformer",
    "ClapTowers",
    "ClipDataset",
    "HubertKmeans",
    "MelKmeans",
    "MuLaN",
    "MuLaNEmbedQuantizer",
    "MuLaNTrainer",
    "MusicLM",
    "SigmoidContrastiveLearning",
    "SoftmaxContrastiveLearning",
    "TextTransformer",
    "music_spectrogram",
]
