"""Clips longer than a trained window: what the windows cover, what they are told, what they cost, and that nobody hears how they were run.

The tiny bundle's windows are cut to a few frames here, so that clips of a second have many.
"""

from __future__ import annotations

import threading
import tracemalloc
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.batches import watched
from support.requests import ask
from support.seeded import Seeded

import musiclm_deploy as md
from musiclm_deploy.runtime import memory
from musiclm_deploy.runtime.bundle import STAGES, Bundle, Manifest
from musiclm_deploy.runtime.codec import longest_chunk, state_size
from musiclm_deploy.runtime.music import Tokens, load_tokens
from musiclm_deploy.runtime.needs import largest_sequences, needed_bytes
from musiclm_deploy.runtime.sequence import Context, Draw, coarse_sequence, semantic_sequence
from musiclm_deploy.runtime.windows import Span, Spans, Window, WindowPlan, equal_parts, plan_windows

DRAWN = {stage: md.SamplingConfig(filter_thres=0.3) for stage in STAGES}  # by default k would be 1 at this size
SEMANTIC, COARSE, FINE = 14, 12, 5  # trained windows: tokens, frames, frames
LONG: dict[str, Any] = {"seconds": 0.903, "sampling": DRAWN}  # 46 frames: 7 coarse windows, 10 of fine, both with a ragged last one


@pytest.fixture(params=[True, False], ids=["unique", "timed"])
def short(request, music, monkeypatch) -> Any:
    """The tiny bundle with short windows; its semantic tokens carry no time, or they do."""
    monkeypatch.setattr(music.bundle, "manifest", _short(music.bundle.manifest, request.param))
    return music


def _short(manifest: Manifest, unique: bool) -> Manifest:
    lengths = {"semantic": SEMANTIC, "coarse": COARSE, "fine": FINE}
    decoders = {stage: replace(getattr(manifest, stage), max_length=length) for stage, length in lengths.items()}
    return replace(manifest, **decoders, unique_consecutive=unique)


def same(a: Tokens, b: Tokens) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in STAGES) and [*map(str, a.windows)] == [*map(str, b.windows)]


# --- planning


@settings(deadline=None)
@given(st.integers(0, 500), st.integers(1, 60), st.data())
def test_spans_cover_once_and_never_exceed(total: int, length: int, data) -> None:
    """Fault: a frame made twice or never, a window beyond what was trained, one that is told less than it could or has nothing new."""
    overlap = data.draw(st.integers(0, length - 1))
    windows = list(Spans(total, length, overlap))
    assert [index for span in windows for index in range(span.new, span.stop)] == list(range(total))
    assert all(span.stop - span.start <= length for span in windows)
    assert all(span.new < span.stop for span in windows) or windows == [Span(0, 0, 0)]
    assert windows[0].start == 0 and all(span.new - span.start == overlap for span in windows[1:])
    assert all(span.stop - span.start == length for span in windows[:-1])


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 400))
def test_equal_parts(total: int, most: int) -> None:
    """Fault: a part that is too short for MuLaN beside one that is as long as may be."""
    parts = equal_parts(total, most)
    lengths = [part.stop - part.start for part in parts]
    assert [part.start for part in parts[1:]] == [part.stop for part in parts[:-1]] and (parts[0].start, parts[-1].stop) == (0, total)
    assert max(lengths) <= most and max(lengths) - min(lengths) <= 1
    assert len(parts) == 1 or min(lengths) >= most // 2


@pytest.fixture(scope="module")
def manifest(tiny_bundle) -> Manifest:
    return Bundle.open(tiny_bundle).manifest


@settings(deadline=None)
@given(
    unique=st.booleans(),
    frames=st.integers(1, 300),
    sizes=st.tuples(st.integers(2, 40), st.integers(1, 30), st.integers(1, 30)),
    rate=st.sampled_from([50.0, 25.0, 75.0, 49.9, 12.5]),
    asked=st.none() | st.integers(0, 200),
    data=st.data(),
)
def test_planned_windows_stay_within_what_was_trained(manifest, unique, frames, sizes, rate, asked, data) -> None:
    """Fault: at some rate, length or overlap a coarse window sees more semantic tokens than were trained, or misses one that sounds with
    it; semantic windows that do not add up."""
    semantic, coarse, fine = sizes
    decoders = {stage: replace(getattr(manifest, stage), max_length=size) for stage, size in zip(STAGES, sizes, strict=True)}
    model = replace(manifest, **decoders, unique_consecutive=unique, semantic_tokens_per_second=rate)
    windows = {} if data.draw(st.booleans()) else {"semantic": Window(overlap=data.draw(st.integers(0, semantic - 1)))}
    first, growth = data.draw(st.none() | st.integers(1, 60)), data.draw(st.sampled_from([1.1, 2.0, 7.0]))
    plan = plan_windows(model, frames, frames * 320 - 7, asked, windows, first, growth)
    assert plan.frames == frames and plan.timed != unique
    for spans, most in ((plan.coarse, coarse), (plan.fine, fine)):
        assert [frame for span in spans for frame in range(span.new, span.stop)] == list(range(frames))
        assert all(span.stop - span.start <= most for span in spans) and spans[0].start == 0
    assert all(span.new == span.start for span in plan.fine)
    assert all(0 <= told <= tokens <= semantic for told, tokens in _semantic_sizes(plan))
    if asked is not None:
        assert plan.semantic_steps is not None and plan.semantic_steps <= asked
    if unique:
        assert plan.semantic is None and len(plan.runs) == len(plan.coarse)
    elif len(plan.coarse) > 1:
        seen = [plan.seen(window) for window in range(len(plan.coarse))]
        assert all(one.stop - one.start <= semantic for one in seen)
        per_frame = rate * 320 / 16000
        for one, span in zip(seen, plan.coarse, strict=True):
            assert one.start <= span.start * per_frame + 1e-9 and one.stop >= span.stop * per_frame - 1e-9
    endless = plan_windows(model, None, 0, None, windows, first, growth)
    for spans, of_it in ((plan.coarse, endless.coarse), (plan.fine, endless.fine)):  # the clip's end changes nothing before its last window
        assert spans[: len(spans) - 1] == [of_it[window] for window in range(len(spans) - 1)]


def _semantic_sizes(plan: WindowPlan) -> list[tuple[int, int]]:
    """(tokens told, tokens in all, at most) of each semantic window."""
    if plan.semantic is not None:
        return [(span.new - span.start, span.stop - span.start) for span in plan.semantic]
    sizes, before = [], 0
    for window in range(len(plan.coarse)):
        told = plan.semantic_prefix(window, before)
        before = min(told + plan.run(window), plan.semantic_length)
        sizes.append((told, before))
    return sizes


@settings(deadline=None)
@given(frames=st.integers(1, 300), length=st.integers(1, 60), first=st.integers(1, 80), growth=st.sampled_from([1.1, 1.5, 2.0, 4.0]))
def test_windows_grow(manifest, frames: int, length: int, first: int, growth: float) -> None:
    """Fault: a plan of low latency whose first window is a whole one, whose windows never get as long as trained; a fine window that waits
    for frames beyond those of a coarse window; a clip that sounds while nothing of its second window is there, or never."""
    model = replace(manifest, fine=replace(manifest.fine, max_length=length), coarse=replace(manifest.coarse, max_length=length))
    plan = plan_windows(model, frames, frames * 320, None, {}, first, growth)
    coarse, fine = ([span.stop - span.start for span in spans] for spans in (plan.coarse, plan.fine))
    assert coarse[0] == fine[0] == min(first, length, frames)
    assert coarse[:-1] == sorted(coarse[:-1]) and all(one == length or one < frames for one in coarse[:-1])
    ends = {span.stop for span in plan.coarse}
    assert all(span.stop in ends for span in plan.fine if span.stop < length)
    whole = fine.index(length) if length in fine else len(fine)
    assert all(one == length for one in fine[whole:-1]) and fine[-1] <= length
    second = plan.coarse[1].stop if len(plan.coarse) > 1 else frames
    assert plan.lead == (second if first < length else 0)


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        ({"coarse": Window(length=513)}, "a coarse window of 513 frames is longer than the model's, which has 512."),
        ({"semantic": Window(length=2049)}, "a semantic window of 2049 tokens is longer than the model's, which has 2048."),
        ({"coarse": Window(length=4, overlap=4)}, "coarse windows of 4 frames cannot overlap by 4: a window must have something new."),
        ({"coarse": Window(overlap=512)}, "coarse windows of 512 frames cannot overlap by 512"),
        ({"fine": Window(overlap=1)}, "fine windows do not overlap, got an overlap of 1. Leave it out."),
        ({"codec": Window()}, "windows has the stages semantic, coarse, fine, got 'codec'."),
        ({"coarse": (4, 2)}, "windows must map a stage to a Window, got {'coarse': (4, 2)}."),
        (Window(), "windows must map a stage to a Window, got Window("),
    ],
)
def test_bad_windows(music, windows: Any, message: str) -> None:
    """Larger than trained, nothing but overlap, an unknown stage, another type: said before anything is computed."""
    with pytest.raises(ValueError) as caught:
        music.generate("x", seconds=1, windows=windows)
    assert message in str(caught.value)


@pytest.mark.parametrize("value", [-1, 1.5, True, "4"])
def test_bad_window_numbers(value: Any) -> None:
    with pytest.raises(ValueError, match="a window's length must be a whole number of at least 1, got"):
        Window(length=value)
    with pytest.raises(ValueError, match="a window's overlap must be a whole number of at least 0, got"):
        Window(overlap=value)


def test_upstream_has_one_window(short) -> None:
    """Fault: a clip called upstream's that upstream could not have made."""
    with pytest.raises(ValueError, match=r"needs 46 frames, but the window of the model has 5\. Ask for at most 0\.1 s with compat="):
        short.generate("x", compat="upstream", **LONG)
    with pytest.raises(ValueError, match="compat='upstream' knows no windows"):
        short.generate("x", compat="upstream", windows={}, seconds=0.1)


# --- a long clip


def test_exactly_as_long_as_asked(short) -> None:
    """Fault: a frame too few or too many at a seam; windows that follow another in none of their tokens."""
    song = short.generate("x", seed=3, **LONG)
    assert len(song.audio) == round(0.903 * song.sample_rate) and np.isfinite(song.audio).all()
    assert (song.tokens.coarse.shape, song.tokens.fine.shape) == ((46, 2), (46, 3))
    if short.bundle.manifest.unique_consecutive:
        windows = song.tokens.windows
        assert len(windows) == 7 and windows[-1].stop == len(song.tokens.semantic)
        assert all(before.start <= after.start <= before.stop <= after.stop for before, after in pairwise(windows))
    else:
        assert song.tokens.semantic_windows is None and len(song.tokens.semantic) == 46  # 50 a second


class _Ends:
    """The seed's noise, with the end of the coarse stage forced for some items at some frame of the clip, and nowhere else."""

    def __init__(self, seeds: list[int], frames: dict[int, int]) -> None:
        self._source, self._frames, self._seeds = Seeded([(seed, 0) for seed in seeds]), frames, seeds

    def gumbel(self, stage: str, step: int, batch: int, vocab: int) -> np.ndarray:
        noise = self._source.gumbel(stage, step, batch, vocab)
        if stage == "coarse":
            noise[:, -1] = [1000 if self._frames.get(seed) == step / 2 else -1000 for seed in self._seeds]
        return noise


def test_a_batch_is_its_rows_alone_wherever_they_end(short) -> None:
    """Fault: rows that end in different windows and shift their neighbours' tokens, noise, primes or conditioning."""
    seeds, ends = [4, 5, 6, 7], {4: 13, 5: 31, 7: 7}
    sampling = DRAWN | {"coarse": md.SamplingConfig(filter_thres=0.0)}  # so that the end can be drawn wherever it is forced
    options: dict[str, Any] = LONG | {"stop": "eos", "sampling": sampling}
    batch = short.generate(list("abcd"), seed=seeds, noise=_Ends(seeds, ends), **options)
    lengths = [len(song.tokens.coarse) for song in batch]
    if short.bundle.manifest.unique_consecutive:
        assert lengths == [13, 31, 46, 7]
    else:
        assert lengths[3] == 7 and len(set(lengths)) > 2  # the semantic stage may end a clip earlier
    for text, seed, song in zip("abcd", seeds, batch, strict=True):
        alone = short.generate(text, seed=seed, noise=_Ends([seed], ends), **options)
        assert same(alone.tokens, song.tokens)
        assert len(song.audio) == min(len(song.tokens.coarse) * 320, round(0.903 * 16000))
        assert song.audio.tobytes() == alone.audio.tobytes()


def test_candidates_of_a_long_clip(short) -> None:
    """Fault: a candidate that is conditioned by another prompt once rows are picked by number."""
    songs = short.generate(["calm piano", "brass"], seed=[1, 2], num_samples=2, **LONG)
    for text, seed, song in zip(["calm piano", "brass"], [1, 2], songs, strict=True):
        alone = short.generate(text, seed=seed, num_samples=2, **LONG)
        assert all(same(a.tokens, b.tokens) for a, b in zip(alone.candidates, song.candidates, strict=True))
        assert not same(song.candidates[0].tokens, song.candidates[1].tokens)


def test_what_fits_one_window_is_made_in_one(music) -> None:
    """Fault: windows that are larger than the clip change it; the default is the model's own window."""
    plain = music.generate("x", seconds=0.3, seed=1, sampling=DRAWN)
    for windows in ({"coarse": Window(length=15), "fine": Window(length=15)}, {"semantic": Window(overlap=3)}, {}):
        song = music.generate("x", seconds=0.3, seed=1, sampling=DRAWN, windows=windows)
        assert same(song.tokens, plain.tokens) and song.audio.tobytes() == plain.audio.tobytes()
    cut = music.generate("x", seconds=0.3, seed=1, sampling=DRAWN, windows={"coarse": Window(length=8)})
    assert len(cut.tokens.windows) == 3 and not same(cut.tokens, plain.tokens)


@pytest.mark.parametrize("slots", [1, 3])
def test_windows_do_not_know_their_batch(short, slots: int) -> None:
    """Fault: tokens that depend on how many windows run at once, or on which."""
    expected = short.generate(["a", "b"], seed=[1, 2], **LONG)
    model, batches = watched(short, slots=slots)
    assert all(same(a.tokens, b.tokens) for a, b in zip(model.generate(["a", "b"], seed=[1, 2], **LONG), expected, strict=True))
    assert batches["fine"].most <= slots and len(batches["fine"].joined) == 2 * 10


class _Later:
    """The noise of a seed as a clip hears it that begins some frames later."""

    def __init__(self, seed: int, frames: int) -> None:
        self._source, self._frames = Seeded([(seed, 0)]), frames

    def gumbel(self, stage: str, step: int, batch: int, vocab: int) -> np.ndarray:
        return self._source.gumbel(stage, step + self._frames * {"semantic": 0, "coarse": 2, "fine": 3}[stage], batch, vocab)


def test_a_fine_window_is_a_clip_of_its_own(short) -> None:
    """Fault: a fine window that sees its neighbour's coarse frames, or draws from the noise of another place in the clip."""
    tokens = short.generate("x", seed=9, **LONG).tokens
    for first in range(0, 46, FINE):
        part = Tokens(tokens.semantic[:1], tokens.coarse[first : first + FINE])
        alone = short.generate("x", seed=9, tokens=part, sampling=DRAWN, noise=_Later(9, first))
        assert np.array_equal(alone.tokens.fine, tokens.fine[first : first + FINE]), first


def test_each_window_is_told_the_tail_of_the_one_before(short) -> None:
    """Fault: a prime from another place, a coarse window that sees the semantic tokens of another window."""
    model, batches = watched(short)
    tokens, manifest = model.generate("x", seed=2, **LONG).tokens, short.bundle.manifest
    draw, context, made = Draw(0, 0, 0, manifest.coarse.sampling), Context(), 0
    assert len(batches["coarse"].joined) == 7
    for window, sequence in enumerate(batches["coarse"].joined):
        told = 0 if window == 0 else COARSE // 2
        frames = min(COARSE, 46 - made + told)
        if manifest.unique_consecutive:
            own = tokens.semantic[tokens.windows[window]]
            own = own[np.append(True, own[1:] != own[:-1])] if len(own) else own
        else:
            own = tokens.semantic[made - told : made - told + frames]  # as many tokens as frames here
        expected = coarse_sequence(manifest.coarse, own, frames, 2, False, tokens.coarse[made - told : made], draw, context)
        for part in ("ids", "query", "key"):
            assert np.array_equal(getattr(sequence.prompt, part), getattr(expected.prompt, part)), (window, part)
        assert (sequence.known, sequence.in_frames, sequence.steps) == (expected.known, expected.in_frames, expected.steps)
        assert sequence.draw.first == made * 2
        made += frames - told
    assert made == 46
    for window, sequence in enumerate(batches["semantic"].joined):
        if manifest.unique_consecutive:
            before = tokens.semantic[tokens.windows[window - 1]] if window else tokens.semantic[:0]
            prime = before[len(before) - len(before) // 2 :]  # the overlap is half of the window
        else:
            first = window * (SEMANTIC - SEMANTIC // 2)
            prime = tokens.semantic[first : first + SEMANTIC // 2] if window else tokens.semantic[:0]
        expected = semantic_sequence(manifest.semantic, SEMANTIC, True, prime, draw, context)
        assert np.array_equal(sequence.prompt.ids, expected.prompt.ids) and sequence.known == len(prime)
    assert len(batches["semantic"].joined) == (7 if manifest.unique_consecutive else 6)


def test_no_position_beyond_the_trained_windows(short) -> None:
    """Fault: a prompt or a cache that reaches further than any position the model was trained on, or than the check of memory says."""
    for prompts, num_samples in ((["a", "b"], 2), (["a"], 30)):
        request = ask(short.bundle.manifest, prompts, seconds=0.903, seed=1, num_samples=num_samples, sampling=DRAWN)
        stated = largest_sequences(short.bundle.manifest, request)
        model, batches = watched(short)
        model.generate(prompts, seed=1, num_samples=num_samples, **LONG)
        trained = {"semantic": 1 + SEMANTIC, "coarse": 2 + SEMANTIC + COARSE * 2, "fine": 2 + FINE * 5}
        for stage, batch in batches.items():
            largest = stated[stage]
            assert batch.most <= largest.rows <= request.items * (10 if stage == "fine" else 1)
            assert largest.prompt <= largest.capacity <= trained[stage]
            for sequence in batch.joined:
                assert len(sequence.prompt) <= largest.prompt and len(sequence.prompt) + sequence.steps <= largest.capacity
        assert len(batches["fine"].joined) == request.items * 10


def test_four_times_the_length_takes_the_same_memory(short) -> None:
    """Fault: a cache, a mask or noise that grows with the clip. What is held on top is tokens and waves, which are the result."""
    model, _ = watched(short, slots=4)

    def peak(seconds: float) -> tuple[int, int]:
        tracemalloc.start()
        song = model.generate("x", seconds=seconds, sampling=DRAWN)
        taken = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        tokens = song.tokens
        return taken, song.audio.nbytes + tokens.semantic.nbytes + tokens.coarse.nbytes + tokens.fine.nbytes

    peak(0.5)  # what is loaded once
    (once, result), (four_times, longer) = peak(0.8), peak(3.2)
    assert four_times - once <= 2.5 * (longer - result) + 0.1 * once, (once, four_times, result, longer)


def test_memory_states_the_windows(music) -> None:
    """Fault: a minute refused as if it were one window, or a wave that fills the memory unannounced."""
    manifest = music.bundle.manifest
    one, six, sixty = (needed_bytes(music.backend, ask(manifest, seconds=seconds, num_samples=2)) for seconds in (10.24, 61.44, 614.4))
    kept, codec = sixty["semantic"] - six["semantic"], manifest.codec  # tokens of the whole clip, which every stage holds
    waves = 3 * round(61.44 * codec.sample_hz) * 4  # of both candidates, and of one while its chunks are joined
    assert sixty["coarse"] - six["coarse"] == kept and six["coarse"] <= 5 * one["coarse"]  # a prime makes the prefill longer
    assert sixty["fine"] - kept <= six["fine"] * 1.1 and six["fine"] <= 6 * one["fine"]  # 12 windows at once
    assert sixty["rank"] - six["rank"] == sixty["codec"] - six["codec"] == kept + 9 * waves and 0 < kept < waves
    assert six["codec"] > waves + memory.decode_bytes(longest_chunk(codec) * 320, state_size(codec))  # a call of the decoder grows no more


def test_progress_counts_over_all_windows(short) -> None:
    """Fault: a bar that starts again at each window, or never ends; a cancel that is seen only between windows."""
    seen: dict[str, list[tuple[int, int]]] = {}
    song = short.generate("x", progress=lambda stage, done, total: seen.setdefault(stage, []).append((done, total)), **LONG)
    assert list(seen) == ["semantic", "coarse", "fine", "codec"]
    for stage, total in {"coarse": 92, "fine": 138, "codec": 46}.items():
        dones = [done for done, _ in seen[stage]]
        assert dones == sorted(set(dones)) and dones[-1] == total and {total for _, total in seen[stage]} == {total}, stage
    dones = [done for done, _ in seen["semantic"]]
    assert dones == sorted(dones) and len(set(seen["semantic"])) == len(dones) and {total for _, total in seen["semantic"][:-1]} <= {46}
    assert seen["semantic"][-1] == (dones[-1], dones[-1]), "what has ended before its length is complete"
    assert list(song.timings) == [
        "mulan",
        "semantic",
        "coarse",
        "fine",
        "codec",
        "rank",
        "total",
        "real_time_factor_made",
        "real_time_factor_kept",
    ]
    assert sum(song.timings[stage] for stage in STAGES) < song.timings["total"]

    cancel = threading.Event()
    with pytest.raises(md.GenerationCancelled, match=r"cancelled in stage coarse after \d+ of 600\.$") as cancelled:
        short.generate(
            "x", cancel=cancel, progress=lambda stage, *_: cancel.set() if stage == "coarse" else None, **LONG | {"seconds": 6.0}
        )
    assert int(str(cancelled.value).split()[5]) < 300, "windows of 12 frames: it was seen within the next ones"


@pytest.mark.parametrize("kept", STAGES)
def test_a_long_clip_resumes_at_any_stage(short, tmp_path, kept: str) -> None:
    """Fault: windows that are cut elsewhere the second time, by a file that does not tell where they were."""
    song = short.generate("x", seed=3, num_samples=2, **LONG)
    stages = STAGES[: STAGES.index(kept) + 1]
    tokens = [
        Tokens(**{stage: getattr(item.tokens, stage) for stage in stages}, semantic_windows=item.tokens.semantic_windows)
        for item in song.candidates
    ]
    again = short.generate("x", seed=3, tokens=tokens, **LONG)
    assert all(same(a.tokens, b.tokens) for a, b in zip(song.candidates, again.candidates, strict=True))
    assert again.audio.tobytes() == song.audio.tobytes()
    path = song.save_tokens(tmp_path / "tokens.npz")
    assert all(same(a, item.tokens) for a, item in zip(load_tokens(path), song.candidates, strict=True))
    assert short.generate("x", seconds=0.903, tokens=path).audio.tobytes() == song.audio.tobytes()


def test_semantic_tokens_give_as_long_a_clip_as_they_cover(short) -> None:
    """Fault: a clip that goes on with no semantic tokens, or stops where there are some."""
    song = short.generate("x", seed=3, **LONG)
    semantic = replace(song.tokens, coarse=None, fine=None)
    unique = short.bundle.manifest.unique_consecutive
    frames = COARSE + 6 * COARSE // 2 if unique else 46
    assert len(short.generate("x", tokens=semantic, sampling=DRAWN).tokens.coarse) == frames
    message = "the semantic tokens are of 7 windows, this length needs 9" if unique else "the semantic tokens are 46, enough for 0.92 s"
    with pytest.raises(ValueError, match=message):
        short.generate("x", tokens=semantic, seconds=1.1)
    assert len(short.generate("x", tokens=semantic, seconds=0.3, sampling=DRAWN).tokens.coarse) == 15
    assert len(short.generate("x", tokens=semantic, seconds=1.1, stop="eos", sampling=DRAWN).tokens.coarse) <= 55


@pytest.mark.parametrize(
    "windows",
    [[[0, 3], [2, 9]], [[1, 8]], [[0, 3], [4, 8]], [[0, 5], [6, 8]], [[0, 8], [9, 8]], [[0, 4], [4, 3], [3, 8]], [0, 8], [[0.0, 8.0]], []],
)
def test_bad_semantic_windows(music, windows: Any) -> None:
    """Windows from a damaged or foreign file: a gap, an order, an end or a type that cannot be."""
    tokens = Tokens(np.ones(8, np.int64), semantic_windows=np.array(windows))
    with pytest.raises(ValueError, match="semantic_windows must"):
        music.generate("x", tokens=tokens)


def test_windows_and_upstream_do_not_mix(short) -> None:
    """Fault: tokens of several windows fed to upstream's one, longer than it was trained on."""
    tokens = Tokens(np.ones(8, np.int64), semantic_windows=np.array([[0, 5], [3, 8]]))
    if short.bundle.manifest.unique_consecutive:
        with pytest.raises(ValueError, match="the semantic tokens are of 2 windows, compat='upstream' knows one only"):
            short.generate("x", tokens=tokens, compat="upstream", seconds=0.1)


def test_a_long_wave_is_ranked_in_parts(short) -> None:
    """Fault: a part that is left out, or a score that is no cosine. Parts are as long as a coarse window, or twice what MuLaN needs."""
    manifest = short.bundle.manifest
    least = 2 * manifest.mulan.min_samples
    seconds = 2.5 * max(COARSE * 320, least) / 16000
    song = short.generate("x", seconds=seconds, num_samples=2, sampling=DRAWN, max_semantic_tokens=9)
    text = short.embed_text("x")[0]
    for candidate in song.candidates:
        thirds = [candidate.audio[part] for part in equal_parts(len(candidate.audio), max(COARSE * 320, least))]
        assert len(thirds) == 3
        mean = np.mean([short.embed_audio((third, 16000))[0] for third in thirds], axis=0)
        assert candidate.score == pytest.approx(float(mean @ text / np.linalg.norm(mean)), abs=1e-6)


def test_few_semantic_tokens_on_request(short) -> None:
    """Fault: a limit that counts for each window again."""
    tokens = short.generate("x", max_semantic_tokens=5, **LONG).tokens
    assert len(tokens.semantic) <= 5 and len(tokens.coarse) == 46
    with pytest.raises(ValueError, match=r"max_semantic_tokens must be from 0 to 46 \(all windows of this clip\), got 47"):
        short.generate("x", max_semantic_tokens=47, **LONG)
