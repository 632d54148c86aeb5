"""What a request takes in memory, known before it is taken.

In: the manifest's records and the sizes of a request. Out: bytes, and a MemoryError in place of a machine that swaps.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from .bundle import Decoder, Manifest, Mulan, SemanticTokenizer
from .container import MemoryLimit, memory_left
from .noise import STEPS_AHEAD
from .windows import semantic_with_prime

if TYPE_CHECKING:
    from .request import Request

_LOG = logging.getLogger(__name__)

ROWS_AT_ONCE = 16  # windows of the fine stage in one batch: from eight on a row gains nothing by others beside it, and memory is theirs
PREFILL_BYTES = 1 << 26  # of scores in one call of a graph's prefill: more rows at once gain nothing where each is as long as that
_ITEM_BYTES = 1 << 13  # of an item's lists and array headers
POSITIONS_AT_ONCE = 64  # of a native prefill: with more the activations leave the nearer caches


class OutOfMemory(MemoryError):
    """A MemoryError whose message says what was needed and what to do."""


def largest_runs(manifest: Manifest, request: Request) -> dict[str, tuple[int, int, int]]:
    """stage -> (rows, longest prompt, longest sequence) of its largest window, for the stages that will run."""
    clip, groups, given = request.clip, manifest.codec.groups, request.tokens or []
    told, tokens = (max(sizes) for sizes in zip(*clip.semantic_sizes(), strict=True))
    if clip.tokens_per_frame is None:
        seen = max([tokens, *(window.stop - window.start for item in given for window in item.windows)])
    else:
        most = max([clip.semantic_steps, *(len(item.semantic) for item in given)])
        seen = min(most, max(one.stop - one.start for one in map(clip.seen, range(len(clip.coarse)))))
    primed = [prime.frames for prime in request.primes if prime]
    if primed and clip.tokens_per_frame is None:
        tokens = max([tokens, *(semantic_with_prime(manifest, clip, clip.joins(frames)) for frames in primed)])
    told = tokens if primed else told  # at most: how many a prime has shows when it is heard
    coarse, fine = (manifest.coarse.coarse_quantizers or 1) * groups, (manifest.fine.fine_quantizers or 1) * groups
    known = max([*(span.new - span.start for span in clip.coarse), *(frames - clip.coarse[clip.joins(frames)].start for frames in primed)])
    frames = max(span.stop - span.start for span in clip.coarse)
    fine_frames = min(clip.fine_length, request.frames)
    fine_known = max((frames % clip.fine_length for frames in primed), default=0)
    fine_rows = request.items * -(-request.frames // clip.fine_length)
    runs = {
        "semantic": (request.items, 1 + told, 1 + tokens),
        "coarse": (request.items, 2 + seen + known * coarse, 2 + seen + frames * coarse),
        "fine": (min(fine_rows, ROWS_AT_ONCE), 2 + fine_frames * coarse + fine_known * fine, 2 + fine_frames * (coarse + fine)),
    }
    return {stage: run for stage, run in runs.items() if not request.stage_done(stage)}


def decoder_bytes(decoder: Decoder, rows: int, prompt: int, capacity: int, native: bool) -> int:
    """What one stage of a request takes beside the weights: caches, and what a prefill holds of bias and scores."""
    if native:
        return cache_bytes(decoder, rows, capacity) + POSITIONS_AT_ONCE * _row_bytes(decoder, capacity)
    return cache_bytes(decoder, rows, capacity) + min(rows, prefill_rows(decoder, prompt)) * _scores_bytes(decoder, prompt)


def loop_bytes(decoder: Decoder, items: int, rows: int, prompt: int, capacity: int, condition: int) -> int:
    """Return the bytes that one stage takes beside caches and prefill: each row's positions, conditioning, noise, logits and tokens.

    items: rows that are sampled; rows: those and, with guidance, as many again; condition: conditioning tokens of a row.
    """
    steps, V = capacity - prompt, decoder.vocabulary
    places = 8 * (6 * steps + 3 * prompt)  # three numbers for each position, and as many while they are computed
    noise = 4 * V * 2 * STEPS_AHEAD  # a block of steps, and the next one while it is drawn
    sampled = 4 * V * 8  # copies of the logits: guided, ordered, with noise
    tokens = steps * 48  # as Python's own numbers in lists
    context = decoder.depth * 2 * 4 * (condition + 1) * decoder.step.dim_head if decoder.conditioning == "cross_attention" else 0
    return items * (places + noise + sampled + tokens) + rows * (context + 8 * capacity + 4 * V)


def token_bytes(manifest: Manifest, request: Request) -> int:
    """Return the bytes that stay taken from the first stage to the last: every item's tokens with Python's overhead for their arrays, the
    noise that was drawn last, and the prompts of all fine windows."""
    codec, noise = manifest.codec, 4 * STEPS_AHEAD * manifest.coarse.vocabulary
    kept = 8 * (request.semantic_steps + request.frames * codec.quantizers)
    prompts = 24 * request.frames * (manifest.fine.coarse_quantizers or 1) * codec.groups  # three numbers for each position
    return request.items * (kept + prompts + noise + _ITEM_BYTES)


def wave_bytes(manifest: Manifest, request: Request) -> int:
    """Return the bytes of every item's wave, and of its tokens once more as codes for the codec."""
    codec = manifest.codec
    return request.items * request.frames * (8 * codec.quantizers + 4 * codec.samples_per_frame)


def cache_bytes(decoder: Decoder, rows: int, capacity: int) -> int:
    return 2 * decoder.depth * rows * capacity * decoder.cache_head_size * 4


def prefill_rows(decoder: Decoder, prompt: int) -> int:
    """How many rows of so many positions one call of a prefill takes."""
    return max(PREFILL_BYTES // _scores_bytes(decoder, prompt), 1)


def _scores_bytes(decoder: Decoder, prompt: int) -> int:
    return prompt * prompt * (2 * 4 * decoder.heads + 8)


def _row_bytes(decoder: Decoder, capacity: int) -> int:
    """Of one row of a native step: the bias of every key and head, and each head's output for every 128 keys."""
    return capacity * 4 * (-(-decoder.heads // 8) * 8 + (decoder.heads * (decoder.cache_head_size + 4)) // 128)


def mulan_audio_bytes(mulan: Mulan, rows: int, samples: int) -> int:
    """Bytes that MuLaN's attention over a wave takes: scores, bias, their sum and its softmax, each float32 [rows, H, patches, patches]."""
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


def decode_bytes(samples: int) -> int:
    """The same for one call of the decoder: 825 a sample for 4 and 16 s of EnCodec, 945 for SoundStream's largest chunk, 198 MB for its
    first."""
    return 1000 * samples + (1 << 25)


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
