"""A SoundStream from a checkpoint.

In: the state dict of an audiolm-pytorch `SoundStream`, the pickled arguments that upstream saves beside it, the user's overrides.
Out: `Settings` under upstream's argument names, decoder and encoder as PyTorch modules.
"""

import re
from collections.abc import Mapping
from dataclasses import fields
from itertools import product
from reprlib import repr as short_repr
from typing import Any

from torch import Tensor

from ..model.residual_vq import cosine, euclidean
from ..model.soundstream import SoundStreamConfig, SoundStreamDecoder, codebooks
from ..model.soundstream_encoder import SoundStreamEncoder
from .checkpoint import check_finite, check_size, shape_of
from .errors import ExportError
from .pickled_config import read_pickled_config
from .settings import Settings
from .tensor_names import soundstream_tensors
from .versions import NEWEST, Releases, is_before, releases_of

_PAD_MODES = ("reflect", "constant", "replicate")
_RETRAIN = "The export does not cover that: train the codec without it."


def infer_soundstream(
    state: Mapping[str, Tensor], pickled_config: bytes | None, version: str | None, overrides: Mapping[str, Any]
) -> Settings:
    """Settings of the codec under upstream's argument names. `version` is that of the package which saved the state, if known.

    What the tensors tell must agree with the saved config; the rest comes from it, else from the overrides, else from upstream's defaults.
    Raises ExportError for a variant that the decoder does not cover.
    """
    config = {} if pickled_config is None else read_pickled_config(pickled_config)
    settings = Settings("codec", overrides)
    releases = _releases(state, version, settings)
    state = soundstream_tensors(state)
    _refuse_variants(state)
    for name, (value, source) in _from_tensors(state).items():
        if name in config:
            saved = tuple(config[name]) if isinstance(config[name], list) else config[name]
            if saved != value:
                told = f"the saved config says {name} = {short_repr(saved)}, the tensors say {value!r} ({source})"
                raise ExportError(f"codec: {told}. They must come from one model: save it again with SoundStream.save.")
        settings.infer(name, value, "saved config" if name in config else source)

    default = f"default of audiolm-pytorch {NEWEST}"
    if version not in (None, NEWEST):
        default += f" (the checkpoint was saved by {version})"
    music = settings["strides"] == (3, 4, 5, 8)
    for name, value in releases.values.items():
        settings.infer(name, value, f"as version {settings['version']} does")
    untold = [
        ("enc_cycle_dilations", (1, 3, 9), default),
        ("dec_cycle_dilations", (1, 3, 9), default),
        *([] if "pad_mode" in releases.values else [("pad_mode", "reflect", default)]),
        ("target_sample_hz", 24000 if music else 16000, f"{default}, {'MusicLMSoundStream' if music else 'SoundStream'}"),
    ]
    if settings["use_local_attn"]:
        untold += [("attn_window_size", 128, default), ("attn_xpos_scale_base", None, default)]
    for name, value, why in untold:
        if name in config:
            _check(name, config[name])
            settings.infer(name, config[name], "saved config")
        else:
            _check(name, settings.assume(name, value, why))
    _infer_search(settings, state, config, default)
    return settings.finish()


def build_decoder(settings: Settings, state: Mapping[str, Tensor]) -> SoundStreamDecoder:
    """The decoder with the weights of `state`, in evaluation mode. Tensors that serve training alone are ignored."""
    check_size("codec", state, lambda: SoundStreamDecoder(_config(settings)))
    decoder = SoundStreamDecoder(_config(settings))
    _load(decoder, soundstream_tensors(state), "decoder")
    return decoder.eval()


def build_encoder(settings: Settings, state: Mapping[str, Tensor]) -> SoundStreamEncoder | None:
    """The encoder with the weights of `state`, in evaluation mode; None where its search for codes is one that is not covered."""
    if settings["rq_kwargs.affine_param"] or (settings["rq_kwargs.beam_size"] or 1) > 1:
        return None
    check_size("codec", state, lambda: SoundStreamEncoder(_config(settings)))
    encoder = SoundStreamEncoder(_config(settings), cosine if settings["rq_kwargs.use_cosine_sim"] else euclidean)
    _load(encoder, soundstream_tensors(state), "encoder")
    return encoder.eval()


def _load(module: SoundStreamDecoder | SoundStreamEncoder, state: Mapping[str, Tensor], what: str) -> None:
    try:
        module.load_upstream(state)
    except RuntimeError as error:  # torch lists every missing, unexpected and misshapen tensor
        raise ExportError(f"codec: the tensors are not those of a SoundStream {what} with these settings. {error}") from error
    check_finite("codec", {**module.state_dict(), "codebooks": codebooks(state, module.config)})


def _config(settings: Settings) -> SoundStreamConfig:
    values = settings.values()
    known = {field.name: values[field.name] for field in fields(SoundStreamConfig) if field.name in values}
    return SoundStreamConfig(**known)


def _releases(state: Mapping[str, Tensor], version: str | None, settings: Settings) -> Releases:
    """Return the releases that give these tensors their meaning: of the version in the file, else of the one that the user names.

    Raises ExportError for releases that are refused, and where no version is known but the tensors mean different things to different ones.
    """
    old = not any(name.startswith(("decoder_film.", "rq.rvqs.")) for name in state)
    source = "the file" if version else "none in the file; the tensors mean the same from 0.29.0 on"
    version = settings.assume("version", version or ("" if old else NEWEST), source)
    if not version:
        raise ExportError(
            "codec: this is a SoundStream of audiolm-pytorch before 0.29.0, whose releases compute different things with them, and "
            'no version stands in the file. Name the release that trained it with --config: {"codec": {"version": "0.28.2"}}.'
        )
    if not old and is_before(version, "0.29.0"):
        raise ExportError(
            f"codec: said to be of audiolm-pytorch {version}, but its tensors have the names of 0.29.0 or later. Name the release that "
            f'trained it with --config: {{"codec": {{"version": "{NEWEST}"}}}}.'
        )
    releases = releases_of("soundstream", "codec", version, settings.warnings)
    if old and not is_before(version, "0.30.0"):
        raise ExportError(
            f"codec: said to be of audiolm-pytorch {version}, but its tensors have the names of releases before 0.30.0. Name the release "
            'that trained it with --config: {"codec": {"version": "0.28.2"}}.'
        )
    return releases


def _from_tensors(state: Mapping[str, Tensor]) -> dict[str, tuple[Any, str]]:
    """`{argument: (value, where it was read)}`: all that names and shapes fix."""
    blocks = 0
    while f"decoder.{blocks + 1}.0.conv.weight" in state:
        blocks += 1
    ups = [_shape(state, f"decoder.{block}.0.conv.weight", 3) for block in range(blocks, 0, -1)]  # in the order of the encoder
    first, last = _shape(state, "decoder.0.conv.weight", 3), _shape(state, f"decoder.{blocks + 1}.conv.weight", 3)
    if last[0] != 1:
        raise ExportError(f"codec: this SoundStream was built with input_channels = {last[0]}, expected 1. {_RETRAIN}")
    channels = last[1]

    indices = _codebooks(state)
    groups, quantizers = len({group for group, _ in indices}), len({quantizer for _, quantizer in indices})
    book = _shape(state, "rq.rvqs.0.layers.0._codebook.embed", 3)
    order = product(range(groups), range(quantizers))
    if any(_shape(state, f"rq.rvqs.{group}.layers.{quantizer}._codebook.embed", 3) != book for group, quantizer in order):
        raise ExportError(f"codec: the codebooks differ in shape, expected all to be {list(book)}. {_RETRAIN}")
    squeeze = "decoder.1.1.fn.4.net.0.weight" in state
    facts: dict[str, tuple[Any, str]] = {
        "channels": (channels, f"decoder.{blocks + 1}.conv.weight {list(last)}"),
        "strides": (tuple(kernel // 2 for *_, kernel in ups), "kernels of decoder.*.0.conv, twice the stride"),
        "channel_mults": (tuple(wide // channels for wide, *_ in ups), "inputs of decoder.*.0.conv over channels"),
        "codebook_dim": (first[1], f"decoder.0.conv.weight {list(first)}"),
        "codebook_size": (book[1], f"rq.rvqs.0.layers.0._codebook.embed {list(book)}"),
        "rq_num_quantizers": (quantizers, "number of rq.rvqs.0.layers"),
        "rq_groups": (groups, "number of rq.rvqs"),
        "squeeze_excite": (squeeze, f"decoder.1.1.fn.4 {'present' if squeeze else 'absent'}"),
    }
    attention = "decoder_attn.layers.0.0."
    if attention + "to_qkv.weight" not in state:
        return facts | {"use_local_attn": (False, "decoder_attn absent")}
    depth = len({name.split(".")[2] for name in state if name.startswith("decoder_attn.layers.")})
    bias, gate = "decoder_attn.pos_bias.mlp.0.weight" in state, attention + "to_v_gate.0.weight"
    (dim_head,), (_, inner) = _shape(state, attention + "q_scale", 1), _shape(state, attention + "to_out.weight", 2)
    return facts | {
        "use_local_attn": (True, "decoder_attn present"),
        "attn_depth": (depth, "number of decoder_attn.layers"),
        "attn_heads": (inner // dim_head, f"{attention}to_out [..., {inner}] over q_scale [{dim_head}]"),
        "attn_dim_head": (dim_head, f"size of {attention}q_scale"),
        "gate_values_per_head": (gate in state, f"{gate} {'present' if gate in state else 'absent, as before 1.6.3'}"),
        "attn_dynamic_pos_bias": (bias, f"decoder_attn.pos_bias {'present' if bias else 'absent'}"),
    }


def _infer_search(settings: Settings, state: Mapping[str, Tensor], config: Mapping[str, Any], default: str) -> None:
    """What only the encoder needs: how the code nearest to a latent is found."""
    affine = "rq.rvqs.0.layers.0._codebook.codebook_mean" in state
    settings.infer("rq_kwargs.affine_param", affine, f"codebook_mean {'present' if affine else 'absent'}")
    if "rq_kwargs" in config:
        saved = config["rq_kwargs"]
        _check("rq_kwargs", saved)
        beam_size = settings.infer("rq_kwargs.beam_size", saved.get("eval_beam_size") or saved.get("beam_size"), "saved config")
        settings.infer("rq_kwargs.use_cosine_sim", bool(saved.get("use_cosine_sim")), "saved config")
    else:
        beam_size = settings.assume("rq_kwargs.beam_size", None, default)
        lengths = state["rq.rvqs.0.layers.0._codebook.embed"].float().norm(dim=-1)
        unit = bool((lengths - 1).abs().max() < 1e-3)
        settings.assume("rq_kwargs.use_cosine_sim", unit, f"codes of length {'1' if unit else 'other than 1'}")
    _check("rq_kwargs.beam_size", beam_size)


def _refuse_variants(state: Mapping[str, Tensor]) -> None:
    """Name the argument that makes this SoundStream one which the decoder does not cover."""

    def has(pattern: str) -> bool:
        return any(re.match(pattern, name) for name in state)

    variants = {
        "use_lookup_free_quantizer": has(r"rq\.rvqs\.\d+\.layers\.\d+\.mask$"),
        "use_finite_scalar_quantizer, which has no codebooks": not _codebooks(state),
        "use_gate_loop_layers": has(r"decoder\.\d+\.fn\."),
        "rq_kwargs: implicit_neural_codebook": has(r"rq\.rvqs\.\d+\.mlps\."),
        "rq_kwargs: vq_bridge": has(r"rq\.rvqs\.\d+\.layers\.\d+\._codebook\.vq_bridge\."),
        "rq_kwargs: codebook_dim": has(r"rq\.rvqs\.\d+\.(layers\.\d+\.)?project_out\."),
    }
    for argument, used in variants.items():
        if used:
            raise ExportError(f"codec: this SoundStream was built with {argument}. {_RETRAIN}")


def _codebooks(state: Mapping[str, Tensor]) -> list[tuple[int, int]]:
    """(group, quantizer) of every codebook."""
    found = (re.fullmatch(r"rq\.rvqs\.(\d+)\.layers\.(\d+)\._codebook\.embed", name) for name in state)
    return [(int(match[1]), int(match[2])) for match in found if match]


def _shape(state: Mapping[str, Tensor], name: str, dims: int) -> tuple[int, ...]:
    if name not in state:
        raise ExportError(f"codec: the tensor {name!r} is missing. Was the file saved whole, by SoundStream.save or its trainer?")
    return shape_of("codec", name, state[name], dims)


def _check(name: str, value: Any) -> None:
    """Refuse a value, from the saved config or an override, that would only fail much later."""

    def whole(number: Any, least: int) -> bool:
        return isinstance(number, int) and number >= least

    integers = isinstance(value, list | tuple) and all(whole(item, 1) for item in value or [0])
    valid, expected = {
        "enc_cycle_dilations": (integers, "positive integers"),
        "dec_cycle_dilations": (integers, "positive integers"),
        "pad_mode": (value in _PAD_MODES, f"one of {', '.join(_PAD_MODES)}"),
        "target_sample_hz": (whole(value, 1), "a positive integer"),
        "attn_window_size": (whole(value, 2), "an integer from 2 up"),
        "attn_xpos_scale_base": (value is None or (isinstance(value, int | float) and value > 0), "a positive number or null"),
        "rq_kwargs": (isinstance(value, dict), "a dictionary"),
        "rq_kwargs.beam_size": (value is None or whole(value, 1), "a positive integer or null"),
    }[name]
    if not valid:
        raise ExportError(f"codec: {name} is {short_repr(value)}, expected {expected}.")
