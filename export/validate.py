"""The fresh process that runs a new bundle as a user would and compares every stage with PyTorch.

In, on standard input: the bundle's folder, the checkpoints, the overrides, narrower graphs of the transformers. Out: one line of JSON with
the largest error of each stage and what else was measured, or exit status 1 and a sentence. Sizes here differ from those that any graph was
traced with. The transformers are compared with audiolm-pytorch's own.
"""

from __future__ import annotations

import itertools
import json
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ..kernels.spectrogram.reference import patches as patches_of
from ..model.upstream import load_upstream
from ..runtime.backend import open_session
from ..runtime.bundle import Decoder, Sampling
from ..runtime.codec import decode_codes, first_state
from ..runtime.device.patches import filters_of
from ..runtime.forcing import HostBatch, forced, logits_of
from ..runtime.host.graph import GraphBatch
from ..runtime.musiclm import MusicLM, load
from ..runtime.sequence import Context, Draw, coarse_sequence, fine_sequence, semantic_sequence
from ..runtime.sounds import Sound
from .calibration import of_sounds, of_texts, texts_for
from .collect import Collected, collect
from .errors import ExportError
from .open_musiclm import is_open_musiclm, open_musiclm_transformer
from .quality import measure
from .semantic_tokens import build_tokenizer
from .settings import Settings
from .towers import build_towers
from .transformers import STAGES
from .upstream_codec import UpstreamCodec, upstream_codec

# Largest error in fp32: of logits and waves relative to the largest value, of latents absolute (their length is 1). Of tokens and codes how
# much farther than the nearest centre the chosen one is, relative to that distance: two centres may be equally near up to rounding.
TOLERANCES: dict[str, float] = dict.fromkeys(("mulan_text", "mulan_audio", "mulan_patches"), 1e-5)
TOLERANCES |= dict.fromkeys(("codec_stream", "codec_encode", "wav2vec", *STAGES), 1e-4)
SAME_KL = 1e-6  # of TensorRT's form in fp32, nats a token: rounding is some 1e-10
_ROWS, _STEPS, _FRAMES, _SEMANTIC = 2, 9, 7, 13  # at most: tokens fed one by one; frames and semantic tokens before them


def validate(
    bundle: Path, sources: dict[str, Path], overrides: dict[str, Any], candidates: dict[str, Any], sounds: list[Path]
) -> dict[str, Any]:
    """ "errors": the largest of each stage; "quality": of the stages that have another measure as well; "narrow": of `export.quality`,
    measured on the sounds if there are any; "fake_quantized": the same as "quality" of the other graphs of
    TensorRT's form against those in fp32.

    Raises ExportError if a stage misses its tolerance.
    """
    collected = collect(sources, overrides)
    torch.manual_seed(0)
    with load(bundle, device="cpu") as model, torch.inference_mode():
        quality: dict[str, dict[str, float]] = {}
        errors = _mulan(model, collected, quality) | _codec(model, collected, quality)
        if model.bundle.manifest.wav2vec is not None:
            errors["wav2vec"] = tokenizer_error(model, collected)
        for stage in STAGES:
            errors[stage] = transformer_error(stage, model, collected)
        narrow = measure(model, candidates, of_sounds(model, sounds) if sounds else of_texts(model)) if candidates else {}
        fake_quantized = _fake_quantized(model, {name for forms in candidates.values() for name in forms})
    faults = [
        f"{stage}: error {error:.2e}, allowed {TOLERANCES[stage]:.0e}" for stage, error in errors.items() if not error <= TOLERANCES[stage]
    ]
    forms = {f"{stage}, TensorRT's form": found["fp32"]["kl"] for stage, found in narrow.items() if "fp32" in found}
    faults += [f"{stage}: divergence {kl:.2e} nats, allowed {SAME_KL:.0e}" for stage, kl in forms.items() if not kl <= SAME_KL]
    if faults:
        raise ExportError("the exported graphs differ from PyTorch:\n" + "\n".join(f"  - {fault}" for fault in faults))
    return {"errors": errors, "quality": quality, "narrow": narrow, "fake_quantized": fake_quantized}


def _mulan(model: MusicLM, collected: Collected, quality: dict[str, dict[str, float]]) -> dict[str, float]:
    settings = collected.settings["mulan"]
    mulan = build_towers(settings, collected.checkpoints["mulan"].state)
    manifest, pad_id = model.bundle.manifest.mulan, settings["text.pad_id"]
    ids = torch.randint(1, settings["text.num_tokens"], (3, min(11, manifest.max_tokens)))
    ids[1, 5:] = pad_id
    text = model.run(manifest.text, input_ids=ids.numpy(), attention_mask=(ids != pad_id).long().numpy())["latent"]
    wave = torch.randn(3, manifest.min_samples + 1777)
    audio = model.run(manifest.audio, wave=wave.numpy())["latent"]
    latents = mulan.get_audio_latents(wave).numpy()
    pairs = {"mulan_text": (text, mulan.get_text_latents(ids).numpy()), "mulan_audio": (audio, latents)}
    if manifest.window_samples:
        long = torch.randn(1, manifest.window_samples + 1777) * 0.1
        longs = model.run(manifest.audio, wave=long.numpy())["latent"], mulan.get_audio_latents(long).numpy()
        short_found, short_expected = pairs["mulan_audio"]
        pairs["mulan_audio"] = np.concatenate([short_found, longs[0]]), np.concatenate([short_expected, longs[1]])
    if spectrogram := manifest.spectrogram:
        filters = filters_of(spectrogram, model.bundle.root)
        patches = patches_of(wave.numpy(), *spectrogram.layout, filters).astype(np.float32)
        pairs["mulan_patches"] = model.run(spectrogram.graph, patches=patches)["latent"], latents
    quality |= {name: {"similarity": _similarity(found, expected)} for name, (found, expected) in pairs.items()}
    return {name: float(np.abs(found - expected).max()) for name, (found, expected) in pairs.items()}


def _codec(model: MusicLM, collected: Collected, quality: dict[str, dict[str, float]]) -> dict[str, float]:
    """Both graphs against the codec's own package."""
    codec = model.bundle.manifest.codec
    upstream = upstream_codec(collected.settings["codec"], collected.checkpoints["codec"].state)
    codes = torch.randint(0, codec.codebook_size, (3, codec.min_frames + 19, codec.quantizers))
    wave, expected = model.run(codec.stream, codes=codes.numpy(), **first_state(codec, len(codes)))["wave"], upstream.decode(codes)
    window = collected.settings["codec"].values().get("attn_window_size", 0)
    errors = {"codec_stream": max(_relative(wave, expected), _codec_in_chunks(model, upstream, window + 57))}
    quality["codec_stream"] = {"snr_db": _snr(wave, wave - expected.numpy())}
    if codec.encode:
        wave = 0.3 * torch.randn(2, (codec.min_encode_frames + 18) * codec.samples_per_frame)
        found = torch.from_numpy(model.run(codec.encode, wave=wave.numpy())["codes"])
        errors["codec_encode"] = _excess(found, upstream.latents(wave), upstream)
    return errors


def _fake_quantized(model: MusicLM, precisions: set[str]) -> dict[str, dict[str, Any]]:
    """What the other graphs of TensorRT's form lose, by their fake-quantized copies in folders of these names beside the bundle."""
    manifest, found, rng = model.bundle.manifest, {}, np.random.default_rng(0)
    ids, mask = model.encoders.tokenizer.encode_batch(texts_for(model)[:2], manifest.mulan.max_tokens)
    codes = rng.integers(0, manifest.codec.codebook_size, (3, manifest.codec.min_frames + 19, manifest.codec.quantizers))
    wave = rng.standard_normal((3, 2 * manifest.mulan.min_samples), np.float32) * 0.1
    given = {"mulan_text": (manifest.mulan.text, {"input_ids": ids, "attention_mask": mask})}
    given |= {
        "mulan_audio": (manifest.mulan.audio, {"wave": wave}),
        "codec_stream": (manifest.codec.stream, {"codes": codes, **first_state(manifest.codec, len(codes))}),
    }
    for precision, (stage, (graph, inputs)) in itertools.product(precisions, given.items()):
        copy = model.bundle.root.with_name(precision) / graph
        if copy.is_file():
            lost, exact = np.asarray(open_session(copy, None).run(None, inputs)[0]), next(iter(model.run(graph, **inputs).values()))
            measured = {"snr_db": _snr(exact, lost - exact)} if stage == "codec_stream" else {"similarity": _similarity(lost, exact)}
            found[stage] = {"precision": precision, **measured}
    return found


def _similarity(found: np.ndarray, expected: np.ndarray) -> float:
    """The least cosine of two latents [B, dim] of length 1."""
    return float((found * expected).sum(-1).min())


def _snr(signal: np.ndarray, noise: np.ndarray) -> float:
    return float(10 * np.log10(max(np.square(signal).mean(), 1e-30) / max(np.square(noise).mean(), 1e-30)))


def _codec_in_chunks(model: MusicLM, upstream: UpstreamCodec, frames: int) -> float:
    """Return the error of a clip of several chunks against the whole in PyTorch: it shows a state that misleads the next call."""
    codec = model.bundle.manifest.codec
    codes = torch.randint(0, codec.codebook_size, (frames, codec.quantizers))
    wave = decode_codes(codec, partial(model.run, codec.stream), codes.numpy(), lambda: None)
    return _relative(wave, upstream.decode(codes[None])[0])


def _excess(codes: Tensor, latents: Tensor, upstream: UpstreamCodec) -> float:
    """How much farther than the nearest code is one that was chosen, at most, relative to the largest distance.

    Codes themselves may differ where two are as near as rounding can tell; then so do all that follow, which this follows.
    """
    expected = (*latents.shape[:2], upstream.codebooks.shape[0] * upstream.codebooks.shape[1])
    if tuple(codes.shape) != expected:
        raise ExportError(f"codec_encode gives codes of the shape {list(codes.shape)}, PyTorch {list(expected)}.")
    excess = 0.0
    columns = codes.flatten(0, 1).unflatten(1, upstream.codebooks.shape[:2]).unbind(1)
    for books, residual, chosen in zip(upstream.codebooks, latents.flatten(0, 1).chunk(len(columns), dim=1), columns, strict=True):
        for book, code in zip(books, chosen.T, strict=True):
            distance = upstream.distance(residual, book)
            taken = distance.gather(1, code.unsqueeze(1)).squeeze(1)
            excess = max(excess, float((taken - distance.amin(1)).max() / distance.abs().max()))
            residual = residual - book[code]
    return excess


def tokenizer_error(model: MusicLM, collected: Collected) -> float:
    """Return by how much farther than PyTorch's nearest centre the chosen centres are at most, as a share of its distance."""
    tokenizer = build_tokenizer(collected.checkpoints["wav2vec"], collected.settings["wav2vec"])
    errors = []
    for rows, samples in ((3, tokenizer.min_samples), (1, 7 * tokenizer.downsample_factor + tokenizer.min_samples + 131)):
        wave = torch.randn(rows, samples) * 0.1
        found = torch.from_numpy(model.semantic_tokens([Sound(row, tokenizer.target_sample_hz) for row in wave.numpy()]))
        distances = torch.cdist(tokenizer.features(wave), tokenizer.centres)
        if found.shape != distances.shape[:2]:
            raise ExportError(f"the exported semantic tokenizer gives the shape {list(found.shape)}, PyTorch {list(distances.shape[:2])}.")
        errors.append(((distances.gather(-1, found[..., None])[..., 0] / distances.amin(-1)) - 1).max().item())
    return max(errors)


def transformer_error(stage: str, model: MusicLM, collected: Collected) -> float:
    """Return the largest error of a stage's logits, of a prompt and of each of a few steps, on the same random tokens as upstream's.

    The sequences fit the trained window: beyond it the bias tables end, and more fine tokens than coarse frames hold would change the
    number of frames that upstream's bias depends on."""
    settings = collected.settings[stage]
    reference = upstream_transformer(stage, settings, collected.checkpoints[stage].state)
    manifest = model.bundle.manifest
    decoder, groups = getattr(manifest, stage), manifest.codec.groups
    contexts = [Context()] * _ROWS
    condition: dict[str, Any] = {"cond_drop_prob": 0.0}
    if decoder.context:
        condition["text_embeds"] = torch.randn(_ROWS, manifest.conditioner.quantizers, settings["cond_dim"])
        made = model.run(decoder.context, conditioning=condition["text_embeds"].numpy())
        contexts = [Context({name: np.ascontiguousarray(array[row : row + 1]) for name, array in made.items()}) for row in range(_ROWS)]

    codes = None
    if decoder.segments:
        condition = {}
        codes = torch.randint(0, decoder.segments[0].codebook, (_ROWS, decoder.segments[0].quantizers))
        contexts = [Context(codes=row) for row in codes.numpy()]
    draw = Draw(0, 0, 0, Sampling(temperature=1.0, filter_thres=0.0, cond_scale=1.0))
    frames = min(_FRAMES, decoder.max_length)
    none = np.zeros((0, groups * decoder.outputs), np.int64)
    if stage == "semantic":
        tokens = _random_tokens(decoder, decoder.max_length)
        sequences = [semantic_sequence(decoder, tokens.shape[1], True, none.ravel(), draw, context) for context in contexts]
        expected = reference(codes, tokens) if codes is not None else reference(ids=tokens, **condition)
    elif stage == "coarse":
        frame_tokens = settings["num_coarse_quantizers"] * groups
        tokens = _random_tokens(decoder, frames * frame_tokens)
        semantic = torch.randint(0, settings["num_semantic_tokens"], (_ROWS, min(_SEMANTIC, manifest.semantic.max_length)))
        sequences = [
            coarse_sequence(decoder, row, frames, frame_tokens, True, none, draw, context)
            for row, context in zip(semantic.numpy(), contexts, strict=True)
        ]
        if codes is not None:
            expected = reference(codes, semantic, tokens)
        else:
            expected = reference(semantic_token_ids=semantic, coarse_token_ids=tokens, return_only_coarse_logits=True, **condition)[1]
    else:
        frame_tokens = settings["num_fine_quantizers"] * groups
        tokens = _random_tokens(decoder, frames * frame_tokens)
        coarse = torch.randint(0, _codes(decoder), (_ROWS, frames, settings["num_coarse_quantizers"] * groups))
        sequences = [
            fine_sequence(decoder, row, frame_tokens, none, draw, context, frames * groups)
            for row, context in zip(coarse.numpy(), contexts, strict=True)
        ]
        if codes is not None:
            expected = reference(codes, coarse.flatten(1), tokens)
        else:
            expected = reference(coarse_token_ids=coarse, fine_token_ids=tokens, return_only_fine_logits=True, **condition)[1]
    batches: list[HostBatch] = [GraphBatch(model.graphs.session(decoder.graph), decoder)]
    if model.backend.native:
        batches.append(cast(HostBatch, model.backend.batch(stage)))
    fed = [forced(sequence, row, decoder.vocabulary) for sequence, row in zip(sequences, tokens.numpy(), strict=True)]
    return max(_relative(np.stack([row[:, 0] for row in logits_of(batch, fed)[1]]), expected) for batch in batches)


def _random_tokens(decoder: Decoder, most: int) -> Tensor:
    """Return tokens int64 [rows, n] other than the end: n is _STEPS, or `most` if that is less."""
    return torch.randint(0, _codes(decoder), (_ROWS, min(_STEPS, most)))


def _codes(decoder: Decoder) -> int:
    """Return how many tokens other than the end a stage can draw: audiolm-pytorch's fine stage alone has no end."""
    return decoder.segments[-1].codebook if decoder.segments else decoder.vocabulary - (decoder.fine_quantizers is None)


def upstream_transformer(stage: str, settings: Settings, state: dict[str, Tensor]) -> Any:
    """Return audiolm-pytorch's own transformer with these weights; tensors of versions before 2.4 get the names of today.

    Of open-musiclm's, which is no package, `model.open_musiclm` is the reference."""
    if is_open_musiclm(state):
        return open_musiclm_transformer(stage, settings, state)
    load_upstream()
    import audiolm_pytorch

    values = settings.values()
    shared = ["dim", "depth", "heads", "dim_head", "rel_pos_bias", "num_residual_streams", "add_value_residual"]
    own = [
        "num_semantic_tokens",
        "codebook_size",
        "num_coarse_quantizers",
        "num_fine_quantizers",
        "project_semantic_logits",
        "project_coarse_logits",
    ]
    condition = ["audio_text_condition", "cond_as_self_attn_prefix", "cond_dim"]
    arguments = {name: values[name] for name in (*shared, *own, *condition) if name in values}
    kind = {"semantic": "SemanticTransformer", "coarse": "CoarseTransformer", "fine": "FineTransformer"}[stage]
    transformer = getattr(audiolm_pytorch, kind)(**arguments)
    if "transformer.layers.0.0.to_q.weight" in state:
        state = {_renamed(name): tensor for name, tensor in state.items()}
    missing = [name for name in transformer.load_state_dict(state, strict=False).missing_keys if not name.startswith("proj_text_embed")]
    if missing:
        raise ExportError(f"{stage}: audiolm-pytorch's transformer has tensors that the checkpoint lacks: {', '.join(missing[:5])}.")
    for module in transformer.modules():
        if hasattr(module, "static_alpha") and not values["stream_mixing"]:
            module.static_alpha.data[:, 1:] = torch.eye(values["num_residual_streams"])
    if not values["self_attention"]:
        for connection, *_ in transformer.transformer.layers:
            connection.branch = _ThrownAway(connection.branch)
    return transformer.float().eval()


class _ThrownAway(nn.Module):
    """Self-attention as audiolm-pytorch 1.4.3 to 2.0.6 have it: its input in place of its result, caches as they are."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor, **options: Any) -> tuple[Tensor, Any]:
        _, caches = self.attention(x, **options)
        return x, caches


def _renamed(name: str) -> str:
    parts = name.split(".")
    return ".".join([*parts[:4], "branch", *parts[4:]]) if name.startswith("transformer.layers.") else name


def _relative(found: np.ndarray, expected: Tensor) -> float:
    if found.shape != tuple(expected.shape):
        raise ExportError(f"an exported graph gives the shape {list(found.shape)}, PyTorch {list(expected.shape)}.")
    return float(np.abs(found - expected.numpy()).max() / expected.abs().max())


def main() -> int:
    task = json.load(sys.stdin)
    warnings.simplefilter("ignore")  # standard error is for the reason of a failure
    try:
        sources = {name: Path(path) for name, path in task["sources"].items()}
        measured = validate(Path(task["bundle"]), sources, task["overrides"], task["candidates"], [Path(path) for path in task["sounds"]])
    except Exception as error:  # whatever it is, the export passes on one sentence and leaves nothing behind
        print(error if isinstance(error, ExportError) else f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(json.dumps(measured))
    return 0


if __name__ == "__main__":
    sys.exit(main())
