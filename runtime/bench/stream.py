"""Music that plays while it is made, timed: first audio, gaps, underruns, clients at once, and what streaming costs over generating.

In: a bundle's directory. Out: rows. While it is timed, what is streamed must be what is generated, to the bit, and a client must get among
others what it gets alone. What is divided by each other is timed turn about. Of the clients each has a thread and a seed of its own
(`clients`); memory is that of a fresh process (`taken`).
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from ..bundle import STAGES, Bundle
from ..codec import CHUNK_SECONDS, decode_codes, first_state
from ..musiclm import MusicLM, load
from ..windows import Window
from .clients import Got, collect, listen
from .clips import facts, guidance
from .record import Row, ratio, say, spread

CLIENTS = (1, 2, 4, 8)
LONGER = 3  # times as long as a clip is the longer clip
FETCHED = {"streamed": listen, "collected": collect}
MOST_APART = 1e-4  # of the codec's waves in chunks and whole, over the largest sample
_CODEC_TURNS = 5


def time_stream(bundle: Bundle, seconds: float, cond_scale: float | None, fine_window: int | None, repeats: int, threads: int) -> list[Row]:
    """Clips of `seconds`, and of LONGER times that where one client listens."""
    sampling, rows = guidance(bundle.manifest, cond_scale), []
    trained: dict[str, Any] = {"plan": "trained", "sampling": sampling}
    trained |= {} if fine_window is None else {"windows": {"fine": Window(length=fine_window)}}
    plans = [trained, {"plan": "low_latency", "sampling": sampling}]  # the second one has windows of its own
    with load(bundle.root, "cpu", threads=threads) as model:
        listen(model, 1, seconds=seconds / LONGER, **trained)
        for length in (seconds, LONGER * seconds):
            rows += _one_listener(model, length, plans, repeats)
        rows += _clients(model, seconds, trained, repeats)
        rows.append(_codec(model, LONGER * seconds))
        named = facts(model, cond_scale, fine_window)
    rows.append(_memory(bundle, seconds, cond_scale, threads))
    return [named | row for row in rows]


def _one_listener(model: MusicLM, seconds: float, plans: Sequence[dict[str, Any]], repeats: int) -> list[Row]:
    """One client and each plan: streamed and generated, turn about; then played. plans: the settings of each."""
    got: dict[tuple[str, str], list[Got]] = {}
    for repeat in range(repeats):
        for settings in plans:
            say(f"stream: {settings['plan']}, {seconds:g} s, {repeat + 1} of {repeats}")
            for fetched, run in FETCHED.items():
                got.setdefault((settings["plan"], fetched), []).extend(run(model, 1, seconds=seconds, **settings))
    rows = []
    for settings in plans:
        plan = settings["plan"]
        say(f"stream: {plan}, {seconds:g} s, as it plays")
        [played] = listen(model, 1, plays=True, seconds=seconds, **settings)
        streamed, collected = got[plan, "streamed"], got[plan, "collected"]
        _check(f"{plan}, {seconds:g} s", [*streamed, played, *collected])
        gaps = np.percentile([gap for one in streamed for gap in one.gaps] or [np.nan], [50, 95, 99])
        row: Row = {"benchmark": "stream", "form": plan, "seconds": seconds}
        row |= {} if "windows" in settings else {"fine_window": model.bundle.manifest.fine.max_length}
        row |= spread([one.first_audio_s for one in streamed])
        row |= {
            name: None if np.isnan(gap) else round(float(gap), 4) for name, gap in zip(("gap_p50", "gap_p95", "gap_p99"), gaps, strict=True)
        }
        row |= {"underruns": sum(one.underruns for one in streamed), "underruns_played": played.underruns}
        row["real_time_factor_made"] = round(float(np.median([one.taken_s for one in streamed])) / seconds, 4)
        times = ([one.taken_s for one in fetched] for fetched in (streamed, collected))
        rows += [row, ratio(f"streamed over generated: {plan}, {seconds:g} s", *times)]
    return rows


def _clients(model: MusicLM, seconds: float, settings: dict[str, Any], repeats: int) -> list[Row]:
    """Several clients at once, each number of them streamed and collected, turn about."""
    taken: dict[tuple[str, int], list[float]] = {}
    expected: dict[int, Got] = {}
    for repeat in range(repeats):
        for fetched, run in FETCHED.items():
            for clients in CLIENTS:
                say(f"stream: {clients} clients {fetched}, {seconds:g} s, {repeat + 1} of {repeats}")
                started = time.perf_counter()
                got = run(model, clients, seconds=seconds, **settings)
                taken.setdefault((fetched, clients), []).append(time.perf_counter() - started)
                for number, one in enumerate(got):
                    _check(f"{clients} clients {fetched}", [expected.setdefault(number, one), one])
    rows: list[Row] = []
    for (fetched, clients), times in taken.items():
        rates = np.percentile(seconds * clients / np.asarray(times), [50, 25, 75])
        row: Row = {"benchmark": "clients", "form": fetched, "clients": clients, "seconds": seconds, "n": len(times)}
        rows.append(row | {name: float(f"{rate:.4g}") for name, rate in zip(("audio_s_per_s", "p25", "p75"), rates, strict=True)})
    first, last = CLIENTS[0], CLIENTS[-1]
    for fetched in FETCHED:
        above, below = ([clients / time for time in taken[fetched, clients]] for clients in (last, first))
        rows.append(ratio(f"audio per second, {last} clients over one: {fetched}", above, below))
    return rows


def _codec(model: MusicLM, seconds: float) -> Row:
    """The codec's chunks over one call for all frames, turn about."""
    codec = model.bundle.manifest.codec
    frames = max(round(seconds * codec.sample_hz / codec.samples_per_frame), codec.min_frames)
    codes = np.random.default_rng(0).integers(0, codec.codebook_size, (frames, codec.quantizers))
    graph = partial(model.run, codec.stream)
    seconds_of: tuple[list[float], list[float]] = ([], [])
    for turn in range(_CODEC_TURNS + 1):
        waves = []
        for times, decode in zip(seconds_of, (_in_chunks, _whole), strict=True):
            started = time.perf_counter()
            waves.append(decode(codec, graph, codes))
            times += [time.perf_counter() - started] if turn else []
        apart = float(np.abs(waves[0] - waves[1]).max() / np.abs(waves[1]).max())
        if not apart <= MOST_APART:
            raise RuntimeError(f"the codec's wave in chunks differs from the whole by {apart:.1e} of its largest sample.")
    row = ratio(f"the codec in chunks of {CHUNK_SECONDS:g} s over the whole at once", *seconds_of)
    return row | {
        "seconds": seconds,
        "codec_s_per_s": float(f"{np.median(seconds_of[0]) / seconds:.3g}"),
        "waves_differ_by": float(f"{apart:.1e}"),
    }


def _in_chunks(codec: Any, graph: Any, codes: np.ndarray) -> np.ndarray:
    return decode_codes(codec, graph, codes, lambda: None)


def _whole(codec: Any, graph: Any, codes: np.ndarray) -> np.ndarray:
    return graph(codes=codes[None], **first_state(codec, 1))["wave"][0]


def _memory(bundle: Bundle, seconds: float, cond_scale: float | None, threads: int) -> Row:
    """What many clients take over what is stated for them, in a fresh process."""
    say(f"stream: memory of {CLIENTS[-1]} clients")
    options = [str(bundle.root), str(seconds), "" if cond_scale is None else str(cond_scale), str(threads), str(CLIENTS[-1])]
    done = subprocess.run([sys.executable, "-m", f"{__package__}.taken", *options], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"the fresh process ended with status {done.returncode}; what it said is above.")
    found = json.loads(done.stdout)
    return ratio(f"memory taken over memory stated, {CLIENTS[-1]} clients", [found["taken_mb"]], [found["stated_mb"]]) | found


def _check(case: str, got: list[Got]) -> None:
    """Raise RuntimeError unless all have the same tokens and samples, and every sample is a number."""
    first = got[0]
    for one in got[1:]:
        if not all(np.array_equal(getattr(one.tokens, stage), getattr(first.tokens, stage)) for stage in STAGES):
            raise RuntimeError(f"{case}: a client has other tokens than alone, or streamed other tokens than generated.")
        if not np.array_equal(one.audio, first.audio):
            raise RuntimeError(f"{case}: a client has other samples than alone, or streamed other samples than generated.")
    if not np.isfinite(first.audio).all():
        raise RuntimeError(f"{case}: the wave holds NaN or infinite samples.")
