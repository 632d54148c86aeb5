"""`python tests/covered.py` writes docs/coverage.md: every option of upstream's classes, and what becomes of it in a bundle.

In: the rows below, and the export itself: each refusal is provoked on a small model of upstream's and its words taken down, and where a
value comes from is found by contradicting it. Out: the page. tests/test_coverage.py holds the rows against upstream's signatures.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import covered_releases
from support import covered_models as models
from torch import nn

from musiclm_deploy.export.errors import ExportError
from musiclm_deploy.export.settings import Settings

PAGE = Path(__file__).resolve().parent.parent / "docs" / "coverage.md"
NOTHING = object()

_INTRO = """# What is covered

Made by `python tests/covered.py`, which asks the export: do not edit. Every constructor argument of the classes of audiolm-pytorch 2.4.0
and musiclm-pytorch 0.2.8 that a trained MusicLM is made of, and what becomes of it in a bundle:

- **covered**: any value, with the test that shows it. *Told by* says where the export has the value from: the file, that is names and
  shapes of its tensors, or `--config`, for what leaves no trace there and has upstream's default. A SoundStream saved by
  `SoundStream.save` holds its arguments, so that nothing of it need be told.
- **refused**: the export stops, with these words.
- **no effect**: a bundle does the same with any value.
- **assumed**: leaves no trace and cannot be told. With any other value than upstream's default a bundle differs from the model, unnoticed.
"""


@dataclass(frozen=True)
class Row:
    option: str  # an argument or several; what follows ":" says which use of it is meant
    verdict: str
    words: str = ""  # covered: the test that shows it; no effect, assumed: why
    attempt: Callable[[], object] | None = None  # refused: raises the refusal
    other: Any = NOTHING  # no effect: a value other than the default, which a test tries

    @property
    def arguments(self) -> list[str]:
        return re.findall(r"\w+", self.option.split(":")[0])


@dataclass(frozen=True)
class Section:
    title: str
    classes: tuple[str, ...]  # whose constructor arguments are listed
    rows: list[Row]
    infer: tuple[Callable[[dict[str, Any]], Settings], ...] = ()  # what the export infers of such a model, given overrides
    prefix: str = ""  # of the arguments among these settings
    build: Callable[..., nn.Module] | None = None  # the model, to try values without effect


def covered(test: str, *options: str) -> list[Row]:
    return [Row(option, "covered", test) for option in options]


def refused(option: str, attempt: Callable[..., object], *arguments: Any, **named: Any) -> Row:
    return Row(option, "refused", attempt=partial(attempt, *arguments, **named))


def no_effect(why: str, *options: str, **others: Any) -> list[Row]:
    return [Row(option, "no effect", why) for option in options] + [
        Row(name, "no effect", why, other=value) for name, value in others.items()
    ]


_TOKENS = "test_tokens.py::test_same_noise_same_tokens"
_OLD_CODECS = "test_versions_soundstream.py::test_computes_as_its_release"
_LOGITS = "test_versions.py::test_logits_are_those_of_the_release"
_DECODES, _ENCODES = "test_soundstream.py::test_decodes_as_upstream", "test_codec_encode.py::test_encodes_as_upstream"
_AUDIO, _TEXT = "test_mulan.py::test_audio_latents", "test_mulan.py::test_text_latents"
_HUBERT = (
    "hidden_size, num_hidden_layers, num_attention_heads, intermediate_size, hidden_act, layer_norm_eps, do_stable_layer_norm, conv_dim, "
    "conv_kernel, conv_stride, conv_bias, conv_pos_batch_norm, num_conv_pos_embeddings, num_conv_pos_embedding_groups, feat_extract_norm, "
    "feat_extract_activation, feat_proj_layer_norm"
)
_OPEN_MUSICLM_CODES = (
    "num_clap_quantizers, clap_codebook_size, num_semantic_tokens, num_coarse_quantizers, num_fine_quantizers, codebook_size"
)
_TRAINING, _OUTER = "of training alone", "set by the class around it, which passes it on"


def sections() -> list[Section]:
    return [
        _transformers(),
        _audio_lm(),
        _soundstream(),
        _residual_vq(),
        _encodec(),
        _tokenizers(),
        _mulan(),
        _audio(),
        _text(),
        _quantizer(),
        *_clap(),
        _open_musiclm(),
    ]


def _transformers() -> Section:
    here = "audiolm_pytorch.audiolm_pytorch"
    t5 = partial(models.transformer, "semantic", audio_text_condition=False, has_condition=True)
    rows = [
        *covered(_TOKENS, "dim", "depth", "heads", "dim_head", "num_semantic_tokens", "codebook_size"),
        *covered(_TOKENS, "num_coarse_quantizers", "num_fine_quantizers", "audio_text_condition", "cond_as_self_attn_prefix", "cond_dim"),
        *covered(_TOKENS, "rel_pos_bias, flash_attn: flash attention has no bias", "num_residual_streams"),
        *covered(_TOKENS, "add_value_residual"),
        *covered(_LOGITS, "version: of the release that saved the file, on which `add_value_residual` and `self_attention` depend"),
        *covered(_LOGITS, "self_attention: releases 1.4.3 to 2.0.6 compute it and throw it away"),
        *covered(
            "test_versions.py::test_streams_that_were_never_mixed",
            "stream_mixing: hyper-connections before 0.3.10 compute it and throw it away",
        ),
        *covered(_TOKENS, "project_semantic_logits", "project_coarse_logits"),
        *covered("test_bad_checkpoints.py::test_names_from_before_2_4", ": names from before 2.4"),
        *covered("test_windows.py::test_planned_windows_stay_within_what_was_trained", "max_length, max_time_steps: the trained windows"),
        *covered("test_generate.py::test_without_unique_consecutive_the_semantic_tokens_carry_time", "tokens_per_second: of the tokenizer"),
        refused(
            "cond_as_self_attn_prefix: not told, and the condition of the model's own width",
            partial(models.refuse_transformer, "semantic", cond_as_self_attn_prefix=True),
        ),
        refused("has_condition, t5_name: text through T5", models.refuse_set, "semantic", t5),
        Row("has_condition: text through T5 in a model 768 wide", "assumed", "false: the tensors are those of audio_text_condition"),
        refused("num_null_kv: in self-attention", models.refuse_transformer, "semantic", audio_text_condition=False, num_null_kv=1),
        refused("norm_context: in self-attention", models.refuse_transformer, "semantic", audio_text_condition=False, norm_context=True),
        *no_effect(_TRAINING, attn_dropout=0.5, ff_dropout=0.5, cond_drop_prob=0.9, grad_shrink_alpha=0.5),
        *no_effect("upstream does not use it", scale=3),
        *no_effect("padding never reaches a graph", "pad_id"),
        *no_effect(_OUTER, "dim_context, cross_attend, causal, dropout, flash"),
    ]
    classes = [f"audiolm_pytorch.{stage}Transformer" for stage in ("Semantic", "Coarse", "Fine")]
    infer = (*(partial(models.infer_stage, stage) for stage in ("semantic", "coarse", "fine")), models.infer_prefixed)
    title = "The token transformers: SemanticTransformer, CoarseTransformer, FineTransformer"
    build = partial(models.transformer, "semantic")
    return Section(title, (*classes, f"{here}.Transformer", f"{here}.Attention"), rows, infer, build=build)


def _audio_lm() -> Section:
    rows = [
        *covered(_TOKENS, "semantic_transformer", "coarse_transformer", "fine_transformer", "transformer", "codec", "unique_consecutive"),
        *covered("test_musiclm_torch.py::test_ours_exports", "audio_lm", "mulan_embed_quantizer"),
        *covered("test_hubert.py::test_a_bundle_with_hubert", "wav2vec"),
        *no_effect("MuLaN's quantizer takes its place", "audio_conditioner"),
        *no_effect(_TRAINING, "mask_prob", "semantic_cross_entropy_loss_weight", "coarse_cross_entropy_loss_weight"),
        *no_effect("padding never reaches a graph", "pad_id"),
    ]
    wrappers = (f"audiolm_pytorch.{stage}TransformerWrapper" for stage in ("Semantic", "Coarse", "Fine"))
    infer = (partial(models.infer_stage, "semantic"),)
    return Section(
        "Around them: MusicLM, AudioLM, the wrappers", ("musiclm_pytorch.MusicLM", "audiolm_pytorch.AudioLM", *wrappers), rows, infer
    )


def _soundstream() -> Section:
    refuse, retrain = models.refuse_soundstream, {"use_finite_scalar_quantizer": True, "codebook_size": None}
    rows = [
        *covered(_DECODES, "channels", "strides", "channel_mults", "codebook_dim", "codebook_size", "rq_num_quantizers", "rq_groups"),
        *covered(_DECODES, "dec_cycle_dilations", "target_sample_hz", "use_local_attn", "attn_window_size", "attn_dim_head", "attn_heads"),
        *covered(_DECODES, "attn_depth", "attn_xpos_scale_base", "attn_dynamic_pos_bias", "squeeze_excite"),
        *covered(_DECODES, "pad_mode: reflect, constant, replicate"),
        *covered(_ENCODES, "enc_cycle_dilations"),
        *covered(
            _OLD_CODECS, "version: of audiolm-pytorch, where no file tells it", "gate_values_per_head: of its attention, from 1.6.3 on"
        ),
        *covered(_OLD_CODECS, "pads_whole_kernels: where the rate changes, before 0.26.3"),
        refused("pad_mode: another", models.infer_codec, {"pad_mode": "circular"}),
        refused("input_channels: other than 1", refuse, input_channels=2),
        refused("use_lookup_free_quantizer", refuse, use_lookup_free_quantizer=True, codebook_size=16, codebook_dim=4),
        refused("use_finite_scalar_quantizer, finite_scalar_quantizer_levels", refuse, **retrain, finite_scalar_quantizer_levels=[3, 4]),
        refused("use_gate_loop_layers", refuse, use_gate_loop_layers=True),
        Row("rq_kwargs", "", "below, one by one"),
        *no_effect(
            _TRAINING, rq_commitment_weight=0.5, rq_ema_decay=0.5, rq_quantize_dropout_multiple_of=2, rq_stochastic_sample_codes=True
        ),
        *no_effect(_TRAINING, rq_rotation_trick=False, quantize_dropout_cutoff_index=1, discr_multi_scales=(1, 0.5), stft_normalized=True),
        *no_effect(_TRAINING, multi_spectral_window_powers_of_two=(7,), multi_spectral_n_ffts=1024, multi_spectral_n_mels=32),
        *no_effect(_TRAINING, recon_loss_weight=2.0, multi_spectral_recon_loss_weight=0.1, adversarial_loss_weight=2.0),
        *no_effect(_TRAINING, feature_loss_weight=1, complex_stft_discr_logits_abs=False, complex_stft_discr_kwargs={"channels": 2}),
        *no_effect(_TRAINING, stft_discriminator=nn.Identity()),
        refused("stft_discriminator: in a file of SoundStream.save", models.refuse_saved_soundstream, stft_discriminator=nn.Identity()),
    ]
    return Section("SoundStream", ("audiolm_pytorch.SoundStream",), rows, (models.infer_codec,), build=models.soundstream)


def _residual_vq() -> Section:
    refuse, no_encoder = models.refuse_soundstream, "test_codec_encode.py::test_uncovered_searches_give_no_encoder"
    rows = [
        *covered(_ENCODES, "shared_codebook: the tensors are the same", "use_cosine_sim"),
        *covered(no_encoder, "affine_param: decodes, encodes nothing", "beam_size, eval_beam_size: above 1, decodes, encodes nothing"),
        refused("codebook_dim", refuse, rq_kwargs={"codebook_dim": 5}),
        refused("implicit_neural_codebook, mlp_kwargs", refuse, rq_kwargs={"implicit_neural_codebook": True}),
        *no_effect(_TRAINING, diveq=True, quant_grad_frac=0.5, freeze_codebook=True, kmeans_iters=3, sync_kmeans=False, eps=1e-3),
        *no_effect(_TRAINING, commitment_use_cross_entropy_loss=True, orthogonal_reg_weight=0.1, orthogonal_reg_active_codes_only=True),
        *no_effect(_TRAINING, orthogonal_reg_max_codes=3, codebook_diversity_loss_weight=0.1, codebook_diversity_temperature=3.0),
        *no_effect(_TRAINING, sample_codebook_temp=0.5, sync_codebook=False, ema_update=False, manual_ema_update=True),
        *no_effect(_TRAINING, learnable_codebook=True, manual_in_place_optimizer_update=True, sync_update_v=0.1),
        *no_effect(_TRAINING, route_gradients_to_input=False, return_zeros_for_masked_padding=False),
        *no_effect(
            _TRAINING, "directional_reparam_variance", "in_place_codebook_optimizer", straight_through=True, directional_reparam=True
        ),
        *no_effect("with affine_param alone", "affine_param_batch_decay, affine_param_codebook_decay, sync_affine_param"),
        *no_effect("with a codebook_dim alone", layernorm_after_project_in=True),
        *no_effect("with beam_size alone", "beam_score_quantizer_weights"),
        *no_effect("SoundStream does not run with any other", "heads, separate_codebook_per_head, channel_last"),
        *no_effect("SoundStream does not run with any other", "accept_image_fmap, accept_3d_fmap"),
        *no_effect(_OUTER, "dim, num_quantizers, codebook_size, decay, commitment_weight, kmeans_init, threshold_ema_dead_code"),
        *no_effect(_OUTER, "quantize_dropout, quantize_dropout_cutoff_index, quantize_dropout_multiple_of"),
        *no_effect(_OUTER, "stochastic_sample_codes, rotation_trick"),
        refused("vq_bridge", refuse, rq_kwargs={"vq_bridge": nn.Linear(16, 16)}),
    ]
    classes = ("vector_quantize_pytorch.ResidualVQ", "vector_quantize_pytorch.VectorQuantize")

    def build(**arguments: Any) -> nn.Module:
        if {"learnable_codebook", "sync_update_v"} & arguments.keys():
            arguments |= {"learnable_codebook": True, "ema_update": False}  # upstream refuses one without the other
        rotation = not {"straight_through", "directional_reparam"} & arguments.keys()  # and these with it
        return models.soundstream(rq_kwargs=arguments, rq_rotation_trick=rotation)

    return Section("SoundStream's rq_kwargs", classes, rows, (models.infer_codec,), "rq_kwargs.", build)


def _encodec() -> Section:
    fixed = {"audio_channels": 2, "normalize": True, "chunk_length_s": 1.0, "norm_type": "time_group_norm"}
    fixed |= {"use_causal_conv": False, "pad_mode": "constant", "trim_right_ratio": 0.5}
    rows = [
        *covered("test_encodec.py::test_every_bandwidth", "bandwidth: as many quantizers as coarse and fine have together"),
        *covered("test_encodec.py::test_transformers_folder", "target_sample_hz", "n_filters, codebook_dim, codebook_size, strides"),
        *no_effect("upstream replaces it by the bandwidth's", "num_quantizers"),
        refused(": the 48 kHz model", models.refuse_encodec_48khz),
        *(refused(f": {name} in config.json", models.infer_encodec_24khz, {}, **{name: value}) for name, value in fixed.items()),
    ]
    return Section("EncodecWrapper, and folders of transformers", ("audiolm_pytorch.EncodecWrapper",), rows, (models.infer_encodec_24khz,))


def _tokenizers() -> Section:
    hubert = "test_hubert.py::test_tokens_are_what_upstream_computes"
    rows = [
        *covered(hubert, "checkpoint_path: HuBERT, by --hubert", "kmeans_path: by --kmeans", "codebook_size"),
        *covered("test_hubert.py::test_a_bundle_with_hubert", "kind: by the options given"),
        *covered("test_hubert.py::test_both_layouts_equal_an_independent_computation", "output_layer", f"{_HUBERT}: of HubertConfig"),
        *covered("test_hubert.py::test_what_the_export_refuses", "target_sample_hz: with tokens_per_second of the semantic transformer"),
        *covered("test_hubert.py::test_normalized_waves", "normalize: as fairseq's large models want, not upstream's"),
        *covered(
            "test_mert.py::test_open_musiclms_tokens", "normalize_eps", "normalize_features, seq_len_multiple_of: of open-musiclm's MERT-v0"
        ),
        refused("checkpoint_path: vq-wav2vec", models.refuse_vq_wav2vec),
        refused("checkpoint_path: MERT-v1", models.refuse_mert_v1),
    ]
    classes = ("audiolm_pytorch.HubertWithKmeans", "audiolm_pytorch.FairseqVQWav2Vec")
    return Section("Semantic tokenizers: HubertWithKmeans, FairseqVQWav2Vec", classes, rows, (models.infer_hubert,))


def _mel_kmeans() -> Section:
    test = "test_semantic_tokens.py::test_the_graph_gives_the_tokens_of_pytorch"
    rows = [
        *covered(test, "num_clusters, codebook_size", "target_sample_hz", "tokens_per_second, samples_per_token", "n_mels", "kind"),
        Row("seq_len_multiple_of", "assumed", "none: the end of a wave is not cut off"),
    ]
    title, classes = "This project's semantic tokenizer: MelKmeans", ("musiclm_deploy.model.MelKmeans",)
    return Section(title, classes, rows, (models.infer_mel_kmeans,))


def _mulan() -> Section:
    rows = [
        *covered("test_mulan_export.py::test_settings_rebuild_the_model", "audio_transformer", "text_transformer", "dim_latent"),
        *covered("test_words.py::test_the_demo", "trained_tokens: those that its captions had, where the file shows it"),
        *covered("test_musiclm_torch.py::test_ours_exports", "sample_hz: of the waves it was trained on, else the codec's"),
        *no_effect(_TRAINING, "decoupled_contrastive_learning", "sigmoid_contrastive_loss"),
        *no_effect(_TRAINING, "hierarchical_contrastive_loss, hierarchical_contrastive_loss_layers"),
    ]
    return Section("MuLaN", ("musiclm_pytorch.MuLaN",), rows, (models.infer_towers,))


def _audio() -> Section:
    rows = [
        *covered(_AUDIO, "dim", "depth", "dim_head", "heads", "ff_mult", "patch_size: square by the file, else told"),
        *covered(_AUDIO, "spec_n_fft", "spec_power", "spec_win_length", "spec_hop_length", "spec_pad", "spec_center"),
        *covered("test_mulan.py::test_spectrogram_equals_torchaudio", "spec_pad_mode"),
        *covered(
            "test_mel.py::test_a_checkpoint_with_mel_filters_exports",
            "spec_n_mels: of this project's tower, whose file tells the spectrogram",
        ),
        refused("accept_spec", models.infer_towers, {"accept_spec": True}),
        *no_effect("without accept_spec", accept_spec_time_first=False),
        *no_effect(_TRAINING, attn_dropout=0.5, ff_dropout=0.5, patch_dropout_prob=0.5),
        *no_effect(_TRAINING, spec_aug_stretch_factor=0.5, spec_aug_freq_mask=9, spec_aug_time_mask=9),
    ]
    title, classes = "MuLaN's AudioSpectrogramTransformer", ("musiclm_pytorch.AudioSpectrogramTransformer",)
    infer = (models.infer_towers, models.infer_log_mel_towers)
    return Section(title, classes, rows, infer, "audio.", models.audio_tower)


def _text() -> Section:
    rows = [
        *covered(_TEXT, "dim", "depth", "num_tokens", "max_seq_len", "dim_head", "heads", "ff_mult"),
        *no_effect(_TRAINING, attn_dropout=0.5, ff_dropout=0.5),
        *covered("test_text_tokenizer.py::test_a_bundle_with_a_tokenizer_of_its_own", "pad_id"),
    ]
    title, classes = "MuLaN's TextTransformer", ("musiclm_pytorch.TextTransformer",)
    return Section(title, classes, rows, (models.infer_towers,), "text.", models.text_tower)


def _quantizer() -> Section:
    test = "test_mulan_export.py::test_conditioner_graph"
    rows = [
        *covered(test, "mulan", "conditioning_dims", "rq_num_quantizers", "codebook_size"),
        *covered("test_mulan_export.py::test_conditioner_of_separately_trained_quantizers", "namespaces"),
        *covered("test_bad_checkpoints.py::test_untrained_tables_are_named", "untrained_tables: as they were drawn, with a warning"),
        refused("uninitialised: no data seen", models.refuse_set, "quantizer", models.quantizer, initialised=False),
        *no_effect(_TRAINING, rq_ema_decay=0.5),
    ]
    classes = ("musiclm_pytorch.MuLaNEmbedQuantizer",)
    return Section("MuLaNEmbedQuantizer", classes, rows, (models.infer_mulan_quantizer,), build=models.quantizer)


def _clap() -> list[Section]:
    """CLAP in MuLaN's place: the towers, and transformers' configurations of each."""
    settings, latents = "test_clap_export.py::test_settings_and_their_sources", "test_clap.py::test_clap_models_latents"
    base = "transformers_version, architectures, output_hidden_states, return_dict, dtype, chunk_size_feed_forward, is_encoder_decoder"
    none = Row(f"{base}, id2label, label2id, problem_type, initializer_factor", "no effect", "no latent depends on it")
    told = Row("projection_dim, projection_hidden_act", "no effect", "set by the class around it, which passes it on")
    towers = [
        *covered(settings, "settings: in the file or assumed, see below", "state: LAION's file or a folder of `ClapModel`", "dim_latent"),
        *covered(settings, "projection_hidden_act", "kind: by the tensors", "sample_hz"),
        *covered("test_clap_export.py::test_a_bundle_of_laions_file", "tokenizer: RoBERTa's, beside the file or by --tokenizer"),
        *covered(settings, "trained_tokens: not looked for"),
        *no_effect(_TRAINING, "frozen", "decoupled_contrastive_learning", "sigmoid_contrastive_loss"),
        *no_effect("of training alone: a bundle resamples itself", "input_sample_hz"),
    ]
    audio = [
        *covered(settings, "patch_embeds_hidden_size, depths, num_attention_heads, hidden_size, window_size, num_mel_bins, patch_size"),
        *covered(settings, "patch_embed_input_channels, mlp_ratio, qkv_bias, enable_patch_layer_norm"),
        *covered("test_clap_export.py::test_fused_towers", "enable_fusion, aff_block_r", "fusion_type: aff_2d"),
        *covered(latents, "patch_stride, spec_size, hidden_act, layer_norm_eps"),
        *covered(latents, "frequency_min, frequency_max, fft_window_size, hop_length: of preprocessor_config.json", "mel_scale"),
        refused(": sampling_rate in preprocessor_config.json", models.refuse_clap, preprocessor={"sampling_rate": 16000}),
        refused(": max_length_s in preprocessor_config.json", models.refuse_clap, preprocessor={"max_length_s": 30}),
        refused(": a tower of PANN in place of HTSAT", models.refuse_clap, {"audio_branch.patch_embed": "audio_branch.conv_block1"}),
        *no_effect(_TRAINING, "hidden_dropout_prob, attention_probs_dropout_prob, drop_path_rate, num_classes"),
        *no_effect("only the depths count", "num_hidden_layers"),
        *no_effect("true of every HTSAT", "flatten_patch_embeds"),
        *[none, told],
    ]
    text = [
        *covered(settings, "vocab_size, hidden_size, num_hidden_layers, intermediate_size, max_position_embeddings, type_vocab_size"),
        *covered(settings, "num_attention_heads, hidden_act, layer_norm_eps, pad_token_id", "num_tokens, pad_id, max_seq_len"),
        refused(": a text tower other than RoBERTa", models.refuse_clap, {"text_branch.embeddings": "text_branch.resblocks"}),
        *no_effect(_TRAINING, "hidden_dropout_prob, attention_probs_dropout_prob"),
        *no_effect("the tokenizer's files have them", "bos_token_id, eos_token_id"),
        *[none, told],
    ]
    infer = (models.infer_clap_folder, models.infer_clap_file)
    return [
        Section("CLAP in MuLaN's place: ClapTowers", ("musiclm_deploy.model.ClapTowers",), towers, infer),
        Section("CLAP's audio tower, HTSAT", ("transformers.ClapAudioConfig",), audio, infer, "audio."),
        Section("CLAP's text tower, RoBERTa", ("transformers.ClapTextConfig",), text, infer, "text."),
    ]


def _open_musiclm() -> Section:
    """One class for all three stages, whose file says nearly everything."""
    tokens, sizes = "test_open_musiclm.py::test_tokens", "test_open_musiclm_music.py::test_sampling_of_the_bundle"
    rows = [
        *covered(tokens, "dim", "depth", "heads", "dim_head", "relative_position_bias_type", "use_conv_ff", "class: by the tensors"),
        *covered(tokens, "use_absolute_position_embeddings", "max_absolute_position_embeddings"),
        *covered(tokens, _OPEN_MUSICLM_CODES + ": of `sequences`", "sequences: quantizers and codes of each"),
        *covered(sizes, "max_length, max_time_steps, semantic_window: the trained windows, of --open-musiclm-config"),
        *covered(sizes, "output_seconds, temperature, filter_thres: of its MusicLM.forward", "tokens_per_second: of MERT-v0"),
        *covered("test_open_musiclm.py::test_scale_of_xformers", "use_memory_efficient_attention: xformers' scale"),
        *covered("test_open_musiclm.py::test_what_no_tensor_tells", "non_causal_prefix_size: 0"),
        refused("non_causal_prefix_size: any other", models.refuse_open_musiclm, non_causal_prefix_size=5),
        refused("use_memory_efficient_attention, non_causal_prefix_size: not told", models.refuse_open_musiclm, told=False),
        refused(
            "use_memory_efficient_attention: without a bias",
            *(models.refuse_open_musiclm, "none"),
            use_memory_efficient_attention=True,
        ),
        *no_effect(_OUTER, "rel_pos_bias, num_residual_streams, stream_mixing, add_value_residual, self_attention"),
        *no_effect(_OUTER, "cond_as_self_attn_prefix, audio_text_condition, unique_consecutive"),
    ]
    infer = tuple(partial(models.infer_open_musiclm, stage) for stage in ("semantic", "coarse", "fine"))
    return Section("open-musiclm's transformers", ("musiclm_deploy.model.open_musiclm.TokenConditionedTransformer",), rows, infer)


# --- the page


def told_by(section: Section, row: Row) -> str:
    """Where the export has a covered value from, found by contradicting it."""
    answers = []
    for argument in row.arguments if row.verdict == "covered" else []:
        names = [section.prefix + argument, argument]
        answers += [_told_by(infer, name) for infer in section.infer for name in names]
    return " or ".join(dict.fromkeys(filter(None, answers)))


def _told_by(infer: Callable[[dict[str, Any]], Settings], name: str) -> str:
    try:
        infer({name: NOTHING})
    except ExportError as error:
        if "unknown override" in str(error):
            return ""
        return "the file" if "contradicts the checkpoint" in str(error) else "`--config`"
    except TypeError:  # it was taken, and is nothing that the next step can use
        pass
    return "`--config`"


def words_of(row: Row) -> str:
    if row.attempt is None:
        return f"`{row.words}`" if row.verdict == "covered" else row.words
    try:
        row.attempt()
    except ExportError as error:
        return f"“{' '.join(str(error).split())}”".replace("|", "\\|")
    raise AssertionError(f"{row.option}: nothing refuses it")


def make_page() -> str:
    lines = [_INTRO]
    for section in sections():
        lines += [f"## {section.title}\n", "| argument | | told by | shown by, or why |", "|---|---|---|---|"]
        cells = [(_named(row), row.verdict, told_by(section, row), words_of(row)) for row in section.rows]
        for same, group in groupby(cells, key=lambda cell: cell[1:]):
            lines.append(f"| {'; '.join(name for name, *_ in group)} | {' | '.join(same)} |")
        lines.append("")
    return "\n".join(lines + covered_releases.table())


def _named(row: Row) -> str:
    names, colon, use = row.option.partition(":")
    return (", ".join(f"`{name}`" for name in row.arguments) + (colon if names else "") + use).strip()


if __name__ == "__main__":
    PAGE.write_text(make_page(), encoding="utf-8")
