"""The demo's MusicLM: every size of its models and of their training, and the models themselves.

In: nothing. Out: one frozen record, `SIZES`, and constructors of the models it describes, untrained. Where audiolm-pytorch has a class it
is that one. It does not know data, files or how training goes.
"""

from dataclasses import dataclass
from typing import Any

from musiclm_deploy.model import AudioSpectrogramTransformer, MelKmeans, MuLaN, MuLaNEmbedQuantizer, TextTransformer, music_spectrogram
from musiclm_deploy.model.upstream import load_upstream

STAGES = ("semantic", "coarse", "fine")


@dataclass(frozen=True)
class Schedule:
    """One training run."""

    steps: int
    batch: int
    lr: float
    seconds: float  # of a clip
    warmup: int = 200  # steps in which the learning rate rises
    decay: float = 0.3  # share of the steps, at the end, in which it falls to a twentieth


@dataclass(frozen=True)
class Sizes:
    """What is not said here has the default of its class."""

    sample_hz: int = 16000
    window_seconds: float = 4.0  # what the transformers are trained on: a fourth of a piece
    # codec: 640 samples a frame, 25 frames a second
    strides: tuple[int, ...] = (8, 5, 4, 4)  # the rate falls fast: half the time of (4, 5, 4, 8) with twice the channels
    channels: int = 8
    channel_mults: tuple[int, ...] = (4, 8, 16, 24)
    codebook_dim: int = 128
    codebook_size: int = 512
    coarse_quantizers: int = 2
    fine_quantizers: int = 6
    # semantic tokens
    semantic_tokens: int = 256
    tokens_per_second: int = 20
    # MuLaN and its quantizer
    n_mels: int = 64
    audio_dim: int = 128
    text_dim: int = 32  # of 49,408 words, nearly all of which no caption has: the largest table of all
    mulan_depth: int = 3
    dim_latent: int = 64
    mulan_valid: float = 0.04  # of the training pieces, kept aside to see how often a caption finds its own
    conditioning_quantizers: int = 4
    conditioning_codebook: int = 64
    # the three transformers
    dims: tuple[int, int, int] = (192, 192, 128)
    depths: tuple[int, int, int] = (4, 4, 2)
    condition_dim: int = 192  # the same for all, so that they can be given one stage's conditioning, as upstream's MusicLM does
    heads: int = 4
    text_share: float = 0.5  # of the rows that are trained on the latent of a caption instead of the clip's own
    codec_schedule: Schedule = Schedule(steps=10000, batch=6, lr=6e-4, seconds=1.28, decay=0.8)
    decoder_schedule: Schedule = Schedule(steps=3000, batch=8, lr=4e-4, seconds=1.28, decay=0.6)
    mulan_schedule: Schedule = Schedule(steps=1000, batch=40, lr=7e-4, seconds=4.0)
    semantic_schedule: Schedule = Schedule(steps=4000, batch=16, lr=1e-3, seconds=4.0)
    coarse_schedule: Schedule = Schedule(steps=4000, batch=10, lr=1e-3, seconds=4.0)
    fine_schedule: Schedule = Schedule(steps=3000, batch=6, lr=1e-3, seconds=4.0)

    @property
    def hop(self) -> int:
        """Samples per frame of the codec."""
        hop = 1
        for stride in self.strides:
            hop *= stride
        return hop

    @property
    def window_frames(self) -> int:
        return round(self.window_seconds * self.sample_hz) // self.hop

    @property
    def window_tokens(self) -> int:
        return round(self.window_seconds * self.tokens_per_second)


SIZES = Sizes()


def codec(sizes: Sizes) -> Any:
    """A `SoundStream`. Its discriminators are not trained here and are as small as can be."""
    load_upstream()
    from audiolm_pytorch import SoundStream

    model = SoundStream(
        channels=sizes.channels,
        strides=sizes.strides,
        channel_mults=sizes.channel_mults,
        codebook_dim=sizes.codebook_dim,
        codebook_size=sizes.codebook_size,
        rq_num_quantizers=sizes.coarse_quantizers + sizes.fine_quantizers,
        target_sample_hz=sizes.sample_hz,
        attn_heads=4,
        attn_dim_head=32,
        attn_window_size=32,
        rq_ema_decay=0.98,
        discr_multi_scales=(),
        complex_stft_discr_kwargs={"channels": 1},
    )
    residual: Any = model.rq.rvqs[0]
    residual.quantize_dropout = False  # all quantizers are always used here, and what is learnt for fewer of them is lost to all of them
    for layer in residual.layers:
        # Upstream replaces an entry that is drawn less than twice a step. A step here has fewer frames than the codebook entries, so that
        # all of them would be replaced all the time.
        layer._codebook.threshold_ema_dead_code = 0.03
    return model


def mulan(sizes: Sizes) -> MuLaN:
    heads = {"depth": sizes.mulan_depth, "heads": 4, "dim_head": 32}
    audio = AudioSpectrogramTransformer(dim=sizes.audio_dim, **heads, **music_spectrogram(sizes.sample_hz, n_mels=sizes.n_mels))
    text = TextTransformer(dim=sizes.text_dim, **heads)
    return MuLaN(audio, text, dim_latent=sizes.dim_latent)


def quantizer(sizes: Sizes, trained_mulan: MuLaN) -> MuLaNEmbedQuantizer:
    return MuLaNEmbedQuantizer(
        trained_mulan,
        conditioning_dims=(sizes.condition_dim,) * len(STAGES),
        rq_num_quantizers=sizes.conditioning_quantizers,
        codebook_size=sizes.conditioning_codebook,
        namespaces=STAGES,
    )


def tokenizer(sizes: Sizes) -> MelKmeans:
    return MelKmeans(sizes.semantic_tokens, sizes.sample_hz, sizes.tokens_per_second)


def transformer(sizes: Sizes, stage: str) -> Any:
    """Upstream's transformer of a stage, with one residual stream: four cost more than they gave at this size."""
    load_upstream()
    import audiolm_pytorch

    place = STAGES.index(stage)
    shared: dict[str, Any] = {
        "dim": sizes.dims[place],
        "depth": sizes.depths[place],
        "heads": sizes.heads,
        "dim_head": sizes.dims[place] // sizes.heads,
        "audio_text_condition": True,
        "cond_dim": sizes.condition_dim,
        "num_residual_streams": 1,
        "grad_shrink_alpha": 1.0,  # models of this size do not need it, and their embeddings learn ten times slower with upstream's 0.1
    }
    codes: dict[str, Any] = {"codebook_size": sizes.codebook_size, "num_coarse_quantizers": sizes.coarse_quantizers}
    if stage == "semantic":
        return audiolm_pytorch.SemanticTransformer(num_semantic_tokens=sizes.semantic_tokens, **shared)
    if stage == "coarse":
        made: Any = audiolm_pytorch.CoarseTransformer(cond_drop_prob=0.15, num_semantic_tokens=sizes.semantic_tokens, **codes, **shared)
    else:
        made = audiolm_pytorch.FineTransformer(num_fine_quantizers=sizes.fine_quantizers, **codes, **shared)
    # Drawn with a deviation of one, the weights of the logits make a first loss of 40 nats, of which most of the training is spent.
    getattr(made, f"{stage}_logit_weights").data.mul_(sizes.dims[place] ** -0.5)
    return made
