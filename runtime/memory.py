"""What a request takes in memory, known before it is taken.

In: the manifest's records and the sizes of a request. Out: bytes, and a MemoryError in place of a machine that swaps.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from .batch import POSITIONS_AT_ONCE
from .bundle import Decoder, Manifest, Mulan, SemanticTokenizer
from .container import MemoryLimit, available_processors, memory_left
from .noise import STEPS_AHEAD

_LOG = logging.getLogger(__name__)

_ITEM_BYTES = 1 << 14  # of an item's or a sequence's own objects, lists and array headers
_KEYS, _HEADS = 128, 8  # keys and heads that the native step attends together (kKeys, heads_together of its widest form)


class OutOfMemory(MemoryError):
    """A MemoryError whose message says what was needed and what to do."""


def decoder_bytes(decoder: Decoder, slots: int, capacity: int, condition: int, native: bool) -> int:
    """Return the bytes of a batch of so many slots: what each holds, and what a step or a piece of a prompt is computed in."""
    scratch = _native_scratch(decoder, capacity, condition) if native else POSITIONS_AT_ONCE * capacity * (2 * 4 * decoder.heads + 8)
    if not native and decoder.step.convolution:  # the graph writes a state elsewhere than it reads it
        scratch += slots * decoder.depth * 2 * 4 * _line(2 * decoder.step.inner)
    return slots * slot_bytes(decoder, capacity, condition) + scratch


def slot_bytes(decoder: Decoder, capacity: int, condition: int) -> int:
    """Return the bytes of a slot: caches and coordinates of `capacity` positions, `condition` conditioning tokens, the logits of a frame.

    ds_slot_bytes of kernels/decoder_step is the same of the native step.
    """
    step = decoder.step
    context = _line((condition + 1) * step.dim_head) if decoder.conditioning == "cross_attention" else 0
    prefix = _line(condition * decoder.dim) if decoder.conditioning == "prefix" else 0
    # of a convolution the inputs at two positions, twice: also as the prompt has left them
    convolved = 2 * _line(2 * step.inner) if step.convolution else 0
    floats = 2 * decoder.depth * (_line(capacity * decoder.cache_head_size) + context + convolved)
    floats += prefix + decoder.outputs * _line(decoder.vocabulary)
    return 4 * floats + 8 * capacity * (3 + (step.positions is not None))


def cache_bytes(decoder: Decoder, rows: int, capacity: int) -> int:
    return 2 * decoder.depth * rows * capacity * decoder.cache_head_size * 4


def sequence_bytes(decoder: Decoder, prompt: int, steps: int, native: bool) -> int:
    """Return the bytes of a sequence beside its slot: its positions while they are put together, its tokens, and what it is drawn from."""
    V, places = decoder.vocabulary, 8 * (3 * 3 * prompt + 2 * steps) + _ITEM_BYTES
    if native:
        return places
    noise = 4 * V * 4 * STEPS_AHEAD  # a block of steps, and what it is computed from
    sampled = 4 * V * 8  # copies of the logits: guided, ordered, with noise
    return places + noise + sampled + 64 * steps  # tokens are Python's own numbers until they are collected


def _native_scratch(decoder: Decoder, capacity: int, condition: int) -> int:
    """Return what ds_scratch_bytes of kernels/decoder_step says of the most rows that it computes together, with all processors."""
    step, rows, threads = decoder.step, POSITIONS_AT_ONCE, available_processors()
    H, D, wide, parts = decoder.heads, decoder.cache_head_size, decoder.heads * decoder.cache_head_size, -(-capacity // _KEYS)
    widths = [decoder.dim] * 3 + [wide] * (1 + threads) + [2 * D, 2 * step.inner, step.inner, decoder.vocabulary]
    row = sum(map(_line, widths)) + step.streams * (decoder.dim + step.streams + 2) + D
    row += parts * (2 * _line(H) + H * D)
    if decoder.bias is not None:
        row += (H + _HEADS - 1) // _HEADS * _HEADS * _line(capacity)
    attended = _HEADS * (_line(max(D, step.dim_head)) + _line(max(_KEYS, condition + 1)))
    thread = 2 * _line(H) + H * step.dim_head + max(attended, parts * _line(H)) + 3 * decoder.vocabulary
    size = 4 * (rows * row + threads * thread)
    if step.precision != "fp32":  # inputs of the products as integers, with a scale and a sum for each block
        quantized = [decoder.dim] * 2 + [step.inner] + [wide] * threads
        size += rows * sum(blocks * (step.block + 8) for blocks in (-(-width // step.block) for width in quantized))
    return size


def _line(floats: int) -> int:
    """Return a number of floats rounded up to whole cache lines."""
    return -(-floats // 16) * 16


def token_bytes(manifest: Manifest, items: int, semantic: int, frames: int) -> int:
    """Return the bytes that stay taken from the first stage to the last: every item's tokens, with room to grow and Python's overhead."""
    return items * (2 * 8 * (semantic + frames * manifest.codec.quantizers) + _ITEM_BYTES)


def wave_bytes(manifest: Manifest, items: int, frames: int) -> int:
    """Return the bytes of every item's wave, and of one more: an item's chunks are joined while the others wait."""
    return (items + 1) * frames * 4 * manifest.codec.samples_per_frame


def mulan_audio_bytes(mulan: Mulan, rows: int, samples: int) -> int:
    """Bytes that MuLaN's attention over a wave takes: scores, bias, their sum and its softmax, each float32 [rows, H, patches, patches].

    Of a CLAP: bytes of the windows of all waves, which are embedded at once, and some 50 MB that one window takes as well.
    """
    if mulan.window_samples and mulan.window_bytes:
        return rows * -(-samples // mulan.window_samples) * mulan.window_bytes + (1 << 26)
    return round(4 * 4 * rows * mulan.audio_heads * (samples / mulan.samples_per_patch) ** 2)


def wav2vec_bytes(wav2vec: SemanticTokenizer, rows: int, samples: int) -> int:
    """Bytes that HuBERT's attention over a wave takes: scores and their softmax, each float32 [rows, H, tokens, tokens]."""
    return 2 * 4 * rows * (wav2vec.heads or 0) * (samples // wav2vec.samples_per_token) ** 2


def encode_bytes(rows: int, samples: int) -> int:
    """Bytes that the codec's encoder takes for waves of so many samples: 560 a sample for 16 s of EnCodec, 608 of SoundStream, 548 and 535
    for 64 s, and some 10 MB where waves are short.

    Measured as the growth of a fresh process from a loaded graph to the peak of one run, at the codecs' default sizes (32 channels), for
    1, 4, 16 and 64 s, 1 and 3 rows, 2 threads. A codec takes more or less as it is wider or narrower.
    """
    return 600 * rows * samples + (1 << 24)


def decode_bytes(samples: int, state: int) -> int:
    """Return the bytes that the decoder of one clip takes for chunks of so many samples and a state of so many numbers, which each call is
    given and gives.

    Measured as for `encode_bytes`, for 30 s in chunks: 61 MB for SoundStream, 30 MB for EnCodec, 19 MB for the demo's SoundStream.
    """
    return 1000 * samples + 2 * 4 * state + (1 << 26)


def check_memory(needed: dict[str, int], weights: int = 0) -> None:
    """Log what the stages will take, and raise OutOfMemory if one cannot fit. weights: bytes still to be loaded."""
    least = least_memory()
    _LOG.info("memory beside the weights: %s", ", ".join(f"{stage} {size / 1e6:.1f} MB" for stage, size in needed.items()))
    stage = max(needed, key=lambda name: needed[name], default="")
    if least is not None and stage and needed[stage] + weights > least.bytes:
        loaded = f" and {weights / 1e6:.1f} MB for the weights" if weights else ""
        raise OutOfMemory(
            f"the {stage} stage of this request needs {needed[stage] / 1e6:.1f} MB{loaded}, {least.bytes / 1e6:.1f} MB are free. "
            f"Ask for fewer seconds, samples or prompts at once. What is free is limited by {least.source}."
        )


def least_memory() -> MemoryLimit | None:
    """Return what this process can take without swapping: the least that the machine, a control group or `ulimit -v` leaves.

    None if the system tells none of them.
    """
    return min([*memory_left(), *_address_space()], key=lambda limit: limit.bytes, default=None)


def _address_space() -> list[MemoryLimit]:
    """Return the rest of the limit that `ulimit -v` sets, if it does."""
    try:
        import resource
    except ImportError:  # Windows has no such limits
        return []
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    if most == resource.RLIM_INFINITY or not Path("/proc/self/statm").is_file():
        return []
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return [MemoryLimit(max(most - pages * os.sysconf("SC_PAGE_SIZE"), 0), "ulimit -v")]
