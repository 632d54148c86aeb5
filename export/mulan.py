"""MuLaN and its quantizer, from checkpoints to the stages `mulan_text`, `mulan_audio` and `conditioner` of a bundle.

In: state dicts of musiclm-pytorch's `MuLaN` and `MuLaNEmbedQuantizer`, the user's overrides. Out: `Settings`, with the towers' arguments
as `audio.dim`, `text.dim` and so on and the rest under upstream's own names, and one ONNX file per stage. It does not know the token
transformers.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from ..model import AudioSpectrogramTransformer, ClapTowers, MuLaN, TextTransformer
from ..model.residual_vq import nearest_codes
from ..runtime import bundle
from ..runtime.tokenizer_file import TOKENIZER_FILE
from .checkpoint import TOKEN_TABLE, check_finite, check_size, shape_of
from .errors import ExportError
from .settings import Settings
from .tensor_names import mulan_tensors, serves_training
from .text_tokenizer import most_tokens, tokens_of
from .trace import trace
from .trained_tokens import Moments, trained_tokens

MOST_SAMPLES = 8192  # in a window of a spectrogram: its DFT, which no file holds, has the square of that
_UPSTREAM = "default of musiclm-pytorch 0.2.8; leaves no trace in the file"


def infer_mulan(state: Mapping[str, Tensor], overrides: Mapping[str, Any], moments: Moments | None = None) -> Settings:
    """Settings of the MuLaN in `state`. `sample_hz`, the rate of the waves it was trained on, is None, the codec's,
    unless overridden or held by a checkpoint with mel filters. `trained_tokens` counts the tokens that its captions had, None if that
    cannot be known; moments: the optimizer's, if the file holds them."""
    settings = Settings("mulan", overrides)
    state = mulan_tensors(state)
    _refuse_old_attention(state)
    (audio_patch,), (window,) = _shape(state, "audio.to_patch_tokens.1.weight", 1), _shape(state, "audio.spec.window", 1)
    _infer_tower(settings, "audio", state)
    side = math.isqrt(audio_patch)
    patch = _pair(settings.assume("audio.patch_size", (side, side), f"to_patch_tokens.1 [{audio_patch}], taken for a square"))
    if math.prod(patch) != audio_patch:
        raise ExportError(f"mulan: a patch has {audio_patch} values, which is not {patch}: override audio.patch_size with [bins, frames].")
    settings.infer("spec_win_length", window, f"audio.spec.window [{window}]")
    mel = state.get("audio.spec.mel")  # of a log-mel spectrogram, which only this project's own tower has
    if mel is None:
        n_fft = settings.assume("spec_n_fft", 128, _UPSTREAM)
        settings.assume("spec_hop_length", window // 2, f"half of spec_win_length: {_UPSTREAM}")
        sample_hz = settings.assume("sample_hz", None, "the codec's rate")
        if sample_hz is not None and (type(sample_hz) is not int or sample_hz < 1):
            raise ExportError(f"mulan: sample_hz must be a whole number of at least 1, got {sample_hz!r}.")
        rows = n_fft // 2 + 1
    else:
        layout = _tensor(state, "audio.spec.mel_layout")
        if layout.shape != (3,) or layout.is_floating_point() or layout.min() < 1 or mel.ndim != 2:
            raise ExportError(f"mulan: audio.spec.mel_layout holds {layout.flatten()[:4].tolist()}, expected a rate, an n_fft and a hop.")
        sample_hz, n_fft, hop_length = layout.tolist()
        for name, value in (("spec_n_fft", n_fft), ("spec_hop_length", hop_length), ("sample_hz", sample_hz)):
            settings.infer(name, value, "audio.spec.mel_layout")
        rows = settings.infer("spec_n_mels", len(mel), f"audio.spec.mel [{len(mel)}, ...]")
    if n_fft > MOST_SAMPLES:
        raise ExportError(f"mulan: spec_n_fft = {n_fft} is not covered, {MOST_SAMPLES} is the most.")
    if n_fft < window or rows < patch[0]:
        raise ExportError(
            f"mulan: spec_n_fft = {n_fft} is too small for the checkpoint's window of {window} samples and patches of {patch[0]} bins: "
            "override spec_n_fft with the value of the training."
        )
    settings.assume("spec_power", 2, _UPSTREAM)
    settings.assume("spec_pad", 0, _UPSTREAM)
    for name, least in (("spec_n_fft", 1), ("spec_hop_length", 1), ("spec_pad", 0)):
        if type(settings[name]) is not int or settings[name] < least:
            raise ExportError(f"mulan: {name} must be a whole number of at least {least}, got {settings[name]!r}.")
    settings.assume("spec_center", True, _UPSTREAM)
    settings.assume("spec_pad_mode", "reflect", _UPSTREAM)
    if settings.assume("accept_spec", False, _UPSTREAM):
        raise ExportError("mulan: with accept_spec it takes spectrograms, made outside the checkpoint, but a bundle feeds it waves.")
    settings.assume("accept_spec_time_first", True, _UPSTREAM)
    _infer_tower(settings, "text", state)
    for name, tensor in (("num_tokens", TOKEN_TABLE), ("max_seq_len", "text.pos_emb.weight")):
        settings.infer(f"text.{name}", _shape(state, tensor, 2)[0], f"{tensor} [{len(state[tensor])}, ...]")
    pad_id = settings.assume("text.pad_id", 0, _UPSTREAM)
    if type(pad_id) is not int or not 0 <= pad_id < settings["text.num_tokens"]:
        raise ExportError(f"mulan: text.pad_id must be a token id below {settings['text.num_tokens']}, got {pad_id!r}.")
    trained, reason = trained_tokens(state[TOKEN_TABLE], moments)
    settings.infer("trained_tokens", None if trained is None else int(trained.sum()), reason)
    (dim_latent,) = _shape(state, "audio_to_latents.bias", 1)
    settings.infer("dim_latent", dim_latent, f"audio_to_latents.bias [{dim_latent}]")
    return settings.finish()


def build_mulan(settings: Settings, state: Mapping[str, Tensor]) -> MuLaN:
    """Return the MuLaN of `state`, in evaluation mode. It takes every tensor but those that training alone reads; its loss is as drawn."""
    values = settings.values()
    audio = _below(values, "audio.") | {name: value for name, value in values.items() if name.startswith(("spec_", "accept_"))}
    audio["patch_size"] = _pair(audio["patch_size"])
    if "spec_n_mels" in audio:
        audio["spec_sample_hz"] = values["sample_hz"]
    tensors = mulan_tensors(state)

    def build(**spectrogram: Any) -> MuLaN:
        return MuLaN(
            AudioSpectrogramTransformer(**audio | spectrogram),
            TextTransformer(**_below(values, "text.")),
            dim_latent=values["dim_latent"],
        )

    try:
        # The mel filters cannot be made without their values, so their size is not counted.
        check_size("mulan", tensors, lambda: build(spec_n_mels=None, spec_sample_hz=None))
        mulan = build()
        mulan.load_state_dict(tensors | {f"contrast.{name}": tensor for name, tensor in mulan.contrast.state_dict().items()})
    except ExportError:
        raise
    except (ValueError, RuntimeError) as error:  # torch lists every missing, unexpected and misshapen tensor
        raise ExportError(f"mulan: the checkpoint and its settings do not fit together. {error}") from error
    check_finite("mulan", tensors)
    return mulan.eval()


def _refuse_old_attention(state: Mapping[str, Tensor]) -> None:
    """Refuse towers from before musiclm-pytorch 0.0.23, whose attention has other scores."""
    layer = "audio.transformer.layers.0.0."
    if layer + "to_q.weight" in state and layer + "q_scale" not in state:
        raise ExportError(
            "mulan: saved by musiclm-pytorch 0.0.22 or earlier, whose attention does not normalise queries and keys. The export covers "
            "files of musiclm-pytorch 0.0.24 and later: train with such a version."
        )


def split_quantizer_state(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
    """The quantizer's own tensors, and those of the MuLaN inside it, if it holds one."""
    return {name: tensor for name, tensor in state.items() if not name.startswith("mulan.")}, _below(state, "mulan.") or None


def infer_quantizer(state: Mapping[str, Tensor], overrides: Mapping[str, Any]) -> Settings:
    """Settings of a quantizer without its MuLaN. `uninitialised` says that some codebook has never seen data: its codes mean nothing;
    `untrained_tables` names the namespaces whose conditioning is as it was drawn."""
    settings, tokens = Settings("quantizer", overrides), is_bare(state)
    state = _named(state)
    quantizers = _count(state, "rq.layers.")
    books = {f"rq.layers.{i}._codebook.embed": _shape(state, f"rq.layers.{i}._codebook.embed", 3) for i in range(max(quantizers, 1))}
    heads, codebook_size, dim_latent = books["rq.layers.0._codebook.embed"]
    if heads != 1 or len(set(books.values())) > 1:
        raise ExportError(f"quantizer: its codebooks have shapes {sorted(set(books.values()))}, expected all to be one [1, K, D].")
    settings.infer("rq_num_quantizers", quantizers, "number of rq.layers")
    settings.infer("codebook_size", codebook_size, f"rq.layers.0._codebook.embed [1, {codebook_size}, ...]")
    settings.infer("dim_latent", dim_latent, f"rq.layers.0._codebook.embed [1, ..., {dim_latent}]")
    initialised = [bool(_tensor(state, f"rq.layers.{i}._codebook.initted").all()) for i in range(quantizers)]
    settings.infer("uninitialised", not all(initialised), f"rq.layers.*._codebook.initted {initialised}")

    tables = {name: _shape(state, f"cond_embeddings.{name}", 3) for name in _below(state, "cond_embeddings.")}
    settings.infer("namespaces", tuple(tables), "names of cond_embeddings")
    settings.infer("conditioning_dims", tuple(shape[-1] for shape in tables.values()), f"cond_embeddings {list(tables.values())}")
    untrained = tuple(name for name, table in _below(state, "cond_embeddings.").items() if _as_drawn(table))
    settings.infer("untrained_tables", untrained, "spread of cond_embeddings, drawn with a deviation of 0.02")
    foreign = [
        name for name in state if not name.startswith("cond_embeddings.") and "._codebook." not in name and not serves_training(name)
    ]
    if foreign or bool(tables) == tokens:
        raise ExportError(f"quantizer: not a MuLaNEmbedQuantizer: {f'unknown tensors {foreign[:5]}' if foreign else 'no cond_embeddings'}.")
    return settings.finish()


def _as_drawn(table: Tensor) -> bool:
    """Whether a table looks like fresh normal draws of deviation 0.02: mean, deviation and kurtosis within five standard errors."""
    x = table.double().flatten() / 0.02
    errors = (x.mean(), 1), (x.square().mean() - 1, 2), (x.pow(4).mean() - 3, 96)  # and the variance of one draw of each
    return all(error.abs() < 5 * math.sqrt(variance / len(x)) for error, variance in errors)


def is_bare(state: Mapping[str, Tensor]) -> bool:
    """Return whether a quantizer is codebooks alone, as open-musiclm has it: nothing is conditioned on embeddings of its codes."""
    return "layers.0._codebook.embed" in state


def _named(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the tensors under the names that a MuLaNEmbedQuantizer gives them."""
    return {f"rq.{name}": tensor for name, tensor in state.items()} if is_bare(state) else state


def codebooks_of(state: Mapping[str, Tensor]) -> Tensor:
    """Return the codebooks [Q, K, D] of a quantizer."""
    state = _named(state)
    return torch.stack([_tensor(state, f"rq.layers.{i}._codebook.embed")[0] for i in range(_count(state, "rq.layers."))])


def conditioner_weights(state: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Return `{namespace: (codebooks [Q, K, D], table [Q, K, dim])}` of a quantizer's own tensors."""
    codebooks = codebooks_of(state)
    return {namespace: (codebooks, table) for namespace, table in _below(state, "cond_embeddings.").items()}


def export_mulan_text(mulan: MuLaN, path: Path) -> None:
    """Write `input_ids`, `attention_mask` [batch, tokens] int64 -> `latent` [batch, dim_latent], for 1 to max_seq_len tokens."""
    ids, dims = torch.ones(2, 3, dtype=torch.long), {0: Dim("batch"), 1: Dim("tokens", max=mulan.text.max_seq_len)}
    trace(TextLatents(mulan), (ids, ids.clone()), path, ["input_ids", "attention_mask"], ["latent"], [dims, dims])


def export_mulan_audio(mulan: MuLaN, path: Path) -> None:
    """Write `wave` [batch, samples] fp32 -> `latent` [batch, dim_latent], for waves of `mulan.audio.min_samples` and more."""
    shortest = mulan.audio.min_samples
    wave = torch.zeros(2, shortest + 3 * mulan.audio.patch_size[1] * mulan.audio.spec.hop_length)
    trace(AudioLatents(mulan), (wave,), path, ["wave"], ["latent"], [{0: Dim("batch"), 1: Dim("samples", min=shortest)}])


def export_conditioner(stages: Mapping[str, tuple[Tensor, Tensor | None]], path: Path) -> None:
    """Write `latent` [batch, D] -> `codes.<namespace>` [batch, Q] int64 and `conditioning.<namespace>` [batch, Q, dim], for each namespace
    of `stages`: {namespace: (codebooks [Q, K, D], table [Q, K, dim])}; without a table the codes alone. Namespaces with equal codebooks
    share their search."""
    dim = check_conditioner(stages)
    outputs = [f"codes.{namespace}" for namespace in stages]
    outputs += [f"conditioning.{namespace}" for namespace, (_, table) in stages.items() if table is not None]
    trace(_Conditioner(list(stages.values())), (torch.zeros(2, dim),), path, ["latent"], outputs, [{0: Dim("batch")}])


def check_conditioner(stages: Mapping[str, tuple[Tensor, Tensor | None]]) -> int:
    """The width D of the latents that all codebooks take; ExportError where tables, codebooks or their values do not go together."""
    for namespace, (codebooks, table) in stages.items():
        if codebooks.ndim != 3 or (table is not None and (table.ndim != 3 or codebooks.shape[:2] != table.shape[:2])):
            got = f"codebooks {list(codebooks.shape)} and {'no table' if table is None else f'a table {list(table.shape)}'}"
            raise ExportError(f"conditioner: {namespace} has {got}, expected [Q, K, D] and [Q, K, dim].")
        tensors = {f"codebooks of {namespace}": codebooks} | ({} if table is None else {f"table of {namespace}": table})
        check_finite("conditioner", tensors)
    dims = {codebooks.shape[-1] for codebooks, _ in stages.values()}
    if len(dims) != 1:
        raise ExportError(f"conditioner: all codebooks must have the width of MuLaN's latents, got {sorted(dims)}.")
    return dims.pop()


def mulan_record(
    settings: Settings,
    tokenizer: Settings | None,
    mulan: MuLaN,
    trained: np.ndarray | None,
    codec_hz: int,
    spectrogram: bundle.Spectrogram | None,
) -> bundle.Mulan:
    """Return the manifest's record.

    tokenizer: None for CLIP's; trained: bool [rows of the table], what `trained_tokens` found; spectrogram: of bundles with kernels."""
    return bundle.Mulan(
        text="mulan_text.onnx",
        audio="mulan_audio.onnx",
        tokenizer=TOKENIZER_FILE,
        max_tokens=most_tokens(settings, tokenizer),
        dim_latent=settings["dim_latent"],
        sample_hz=settings["sample_hz"] or codec_hz,
        min_samples=mulan.audio.min_samples,
        audio_heads=settings["audio.heads"],
        samples_per_patch=mulan.audio.samples_per_patch,
        spectrogram=spectrogram,
        trained_tokens=None if trained is None else bundle.pack_tokens(trained[: tokens_of(tokenizer)]),
        tokenizer_from_file=None if tokenizer is None else True,
        pad_id=settings["text.pad_id"] or None,
    )


class TextLatents(nn.Module):
    """The text tower of a MuLaN, or of what has its methods, as a module to trace."""

    def __init__(self, towers: MuLaN | ClapTowers) -> None:
        super().__init__()
        self.towers = towers

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.towers.get_text_latents(input_ids, mask=attention_mask != 0)


class AudioLatents(nn.Module):
    """The audio tower likewise."""

    def __init__(self, towers: MuLaN | ClapTowers) -> None:
        super().__init__()
        self.towers = towers

    def forward(self, wave: Tensor) -> Tensor:
        return self.towers.get_audio_latents(wave)


class _Conditioner(nn.Module):
    """Residual vector quantization, then one table row per code."""

    def __init__(self, stages: Sequence[tuple[Tensor, Tensor | None]]) -> None:
        super().__init__()
        self.codebooks = nn.ParameterList()
        self.tables = nn.ParameterList()  # of each stage, [Q * K, dim]
        self.search: list[int] = []  # of each stage, the number of its codebooks
        for codebooks, table in stages:
            same = [i for i, known in enumerate(self.codebooks) if torch.equal(known, codebooks.float())]
            self.search += same or [len(self.codebooks)]
            if not same:
                self.codebooks.append(nn.Parameter(codebooks.float(), requires_grad=False))
            if table is not None:
                self.tables.append(nn.Parameter(table.float().flatten(0, 1), requires_grad=False))

    def forward(self, latent: Tensor) -> tuple[Tensor, ...]:
        found = [nearest_codes(latent, books) for books in self.codebooks]
        codes = [found[i].clone() for i in self.search]  # an output each, of its own name
        if not len(self.tables):
            return (*codes,)
        rows = [code + torch.arange(code.shape[1]) * self.codebooks[i].shape[1] for code, i in zip(codes, self.search, strict=True)]
        return *codes, *(F.embedding(row, table) for row, table in zip(rows, self.tables, strict=True))


def _infer_tower(settings: Settings, tower: str, state: Mapping[str, Tensor]) -> None:
    layers = f"{tower}.transformer.layers."
    inner, dim = _shape(state, f"{layers}0.0.to_q.weight", 2)
    (dim_head,) = _shape(state, f"{layers}0.0.q_scale", 1)
    _, hidden = _shape(state, f"{layers}0.1.4.weight", 2)
    # Upstream's hidden width is int(dim * ff_mult * 2 / 3); where no whole ff_mult gives it, half a unit keeps int() from rounding down.
    ff_mult = round(hidden * 1.5 / dim)
    if int(dim * ff_mult * 2 / 3) != hidden:
        ff_mult = (hidden + 0.5) * 1.5 / dim
    settings.infer(f"{tower}.dim", dim, f"{layers}0.0.to_q [..., {dim}]")
    settings.infer(f"{tower}.depth", _count(state, layers), f"number of {layers[:-1]}")
    settings.infer(f"{tower}.dim_head", dim_head, f"{layers}0.0.q_scale [{dim_head}]")
    settings.infer(f"{tower}.heads", inner // dim_head, f"{layers}0.0.to_q [{inner}, ...] over {dim_head}")
    settings.infer(f"{tower}.ff_mult", ff_mult, f"{layers}0.1.4 [..., {hidden}]")


def _below(entries: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in entries.items() if name.startswith(prefix)}


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    return len({name.split(".")[0] for name in _below(state, prefix)})


def _shape(state: Mapping[str, Tensor], name: str, dims: int) -> tuple[int, ...]:
    return shape_of("MuLaN or its quantizer", name, _tensor(state, name), dims)


def _tensor(state: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in state:
        raise ExportError(f"The tensor {name!r} is missing. Was the file saved whole, by musiclm-pytorch?")
    return state[name]


def _pair(patch_size: Any) -> tuple[int, int]:
    """Return [bins, frames] of a patch size as written in JSON or Python: a side, or both. Raises ExportError for anything else."""
    sides = tuple(patch_size) if isinstance(patch_size, list | tuple) else (patch_size, patch_size)
    if len(sides) != 2 or not all(type(side) is int and side >= 1 for side in sides):
        raise ExportError(f"mulan: audio.patch_size must be a whole number of at least 1, or two, [bins, frames], got {patch_size!r}.")
    return sides
