"""What `musiclm inspect` says of a bundle.

In: a bundle that was opened. Out: text: sizes, versions, what it takes in memory, which form its steps have, what was measured at export.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .bundle import STAGES, Bundle, Manifest
from .config import GenerationConfig
from .container import available_processors
from .device.kernels import FOLDER as KERNELS
from .device.kernels import Kernels
from .engines.build import BuiltEngines, folders_of
from .engines.form import FOLDER as FORM
from .memory import cache_bytes, least_memory
from .needs import largest_sequences
from .request import default_frames, make_request
from .step import choose_step
from .windows import longest_window


def describe(bundle: Bundle) -> str:
    """Lines of text, each ended."""
    manifest, codec, mulan = bundle.manifest, bundle.manifest.codec, bundle.manifest.mulan
    decoders = {stage: getattr(manifest, stage) for stage in STAGES}
    megabytes = sum(record.bytes for record in manifest.files.values()) / 1e6
    frames = default_frames(manifest)
    seconds = frames * codec.samples_per_frame / codec.sample_hz
    choice = choose_step("auto", list(decoders.values()))
    clip = f"a default clip: {seconds:.2f} s, {frames} frames, at {codec.sample_hz} Hz"
    lines = [
        f"{bundle.given}: {megabytes:.1f} MB in {len(manifest.files)} files; {clip}",
        f"  made by   {', '.join(f'{name} {version}' for name, version in manifest.made_by.items())}",
        f"  SHA-256   {bundle.sha256}",
    ]
    for stage, decoder in decoders.items():
        window = longest_window(manifest, stage)
        trained = "" if window == decoder.max_length else f" (of {decoder.max_length} trained)"
        lines.append(
            f"  {stage:9} {decoder.step.precision}, dim {decoder.dim}, depth {decoder.depth}, heads {decoder.heads}, "
            f"vocabulary {decoder.vocabulary}, condition: {decoder.conditioning.replace('_', '-')}, window {window}{trained}"
        )
    rate = codec.sample_hz / codec.samples_per_frame
    lines += [
        f"  codec     {codec.quantizers} quantizers of {codec.codebook_size}, {rate:g} frames a second",
        f"  steps     {'native' if choice.native else 'graph'}: {choice.reason}",
        f"  memory    weights {megabytes:.1f} MB, caches {_caches(manifest) / 1e6:.1f} MB for a default clip",
        f"  here      {available_processors()} processors{_free_memory()}",
        f"  mulan     latents of {mulan.dim_latent}, texts up to {mulan.max_tokens} tokens, audio at {mulan.sample_hz} Hz",
    ]
    if manifest.wav2vec:
        wav2vec = manifest.wav2vec
        rate = wav2vec.sample_hz / wav2vec.samples_per_token
        lines.append(f"  wav2vec   {wav2vec.kind}, {wav2vec.codebook_size} tokens, {rate:g} a second of audio at {wav2vec.sample_hz} Hz")
    lines += _for_gpus(bundle)
    lines.append("  largest error against PyTorch, and what the precision costs, measured at export:")
    for stage, error in manifest.errors.items():
        measured = manifest.quality.get(stage, {})
        lines.append(f"    {stage:13} {error:.1e}  {_quality(measured)}".rstrip())
        if "tensorrt" in measured:
            lines.append(f"      TensorRT: {_quality(measured['tensorrt'])}")
    return "".join(f"{line}\n" for line in lines)


def _for_gpus(bundle: Bundle) -> list[str]:
    """What else the folder holds, of what was packed or built for GPUs."""
    lines = []
    if (bundle.root / KERNELS).exists():
        lines.append(f"  kernels   {Kernels(bundle.root).summary()}")
    folders = folders_of(bundle.root)
    if not folders and (bundle.root / FORM).exists():
        lines.append("  engines   none built yet: musiclm build")
    for folder in folders:
        made = BuiltEngines.open(folder)
        lines.append(f"  engines   {len(made.engines)} in {made.precision}: {folder.name}")
    return lines


def _free_memory() -> str:
    """Return what a request may take of this machine, and the limit that says so."""
    least = least_memory()
    return "" if least is None else f", {least.bytes / 1e6:.1f} MB of memory free by {least.source}"


def _caches(manifest: Manifest) -> int:
    """Return the bytes of the largest stage's caches; the others' are free by then."""
    request = make_request(manifest, GenerationConfig(), "")
    return max(
        cache_bytes(decoder, largest.rows * (2 if decoder.guidance else 1), largest.capacity)
        for stage, largest in largest_sequences(manifest, request).items()
        if (decoder := getattr(manifest, stage))
    )


def _quality(measured: Mapping[str, Any]) -> str:
    named = f"{measured['precision']}, " if "precision" in measured else ""
    if "snr_db" in measured:
        return f"{named}signal to noise {measured['snr_db']:.0f} dB"
    if "similarity" in measured:
        return f"{named}similarity {measured['similarity']:.6f}"
    if "tokens" not in measured:
        return measured.get("precision", "")
    return (
        f"{measured['precision']}, top-1 {measured['top1']:.1%}, KL {measured['kl']:.5f} nats over {measured['tokens']} tokens "
        f"({measured['reason']})"
    )
