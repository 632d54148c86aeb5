"""For which sizes engines are built: those that the runtime asks for, from the bundle's manifest and a few limits.

In: a manifest, TensorRT's form, limits. Out: for each graph its profiles: for each input the least, the usual and the most of every
dimension that is free in the graph, in order.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..bundle import STAGES, Manifest
from ..codec import chunk_frames, longest_chunk
from .form import Form

Range = tuple[int, int, int]
Profile = dict[str, list[Range]]
PROMPT, STEP = 0, 1  # profiles of a token transformer


@dataclass(frozen=True)
class Limits:
    sequences: int = 16  # rows of a call at most, those without condition included
    seconds: float = 30.0  # of a sound that is embedded, encoded or made tokens of, at most


def profiles_of(manifest: Manifest, form: Form, limits: Limits) -> dict[str, list[Profile]]:
    """Graph -> profiles. Waves, codes and texts come one at a time, whatever a request has of them."""
    mulan, codec, wav2vec = manifest.mulan, manifest.codec, manifest.wav2vec
    one, rows, keys = (1, 1, 1), (1, 1, limits.sequences), manifest.conditioner.quantizers
    window = manifest.coarse.max_length * codec.samples_per_frame / codec.sample_hz

    def wave(least: int, hz: int) -> Profile:
        most = max(round(limits.seconds * hz), least)
        return {"wave": [one, _range(least, round(window * hz), most)]}

    found: dict[str, list[Profile]] = {
        mulan.text: [{key: [one, _range(1, 12, mulan.max_tokens)] for key in ("input_ids", "attention_mask")}],
        mulan.audio: [wave(mulan.min_samples, mulan.sample_hz)],
        manifest.conditioner.graph: [{"latent": [rows]}],
        codec.stream: [
            {"codes": [one, _range(1, chunk_frames(codec), longest_chunk(codec))]} | {f"state.{name}": [one] for name in codec.states}
        ],
    }
    if codec.encode:
        found[codec.encode] = [wave(codec.min_encode_frames * codec.samples_per_frame, codec.sample_hz)]
    if wav2vec is not None:
        found[wav2vec.graph] = [wave(wav2vec.min_samples, wav2vec.sample_hz)]
    for stage in STAGES:
        decoder = getattr(manifest, stage)
        sequences = _range(1, 2 if decoder.guidance else 1, limits.sequences)
        if decoder.context:
            found[decoder.context] = [{"conditioning": [rows, (keys, keys, keys)]}]
        told = {f"context.{layer}.{part}": [sequences, (keys + 1,) * 3] for layer in range(decoder.depth) for part in ("key", "value")}
        caches = {f"past_key_values.{layer}.{part}": [sequences] for layer in range(decoder.depth) for part in ("key", "value")}
        found[decoder.graph] = []
        for positions in (form.positions, 1):
            calls = ("row_ids", "lengths", "query_coordinates", "prefix_mask", "prefix_embeddings")
            own = {key: [sequences, (positions,) * 3] for key in calls} | {"key_coordinates": [sequences]}
            found[decoder.graph].append(own | told | caches)
    return found


def _range(least: int, usual: int, most: int) -> Range:
    return least, min(max(usual, least), most), most
