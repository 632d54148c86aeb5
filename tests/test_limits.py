"""Requests at the limits of a machine: stated before they run, refused where they cannot fit, in a sentence where memory ends."""

import logging
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from support.batches import watched
from support.open_musiclm import GOLDEN, export_golden
from support.requests import ask
from support.stages import CONDITIONING_TOKENS, VARIANTS

import musiclm_deploy as md
from musiclm_deploy import cli
from musiclm_deploy.kernels.decoder_step import interface
from musiclm_deploy.runtime import memory
from musiclm_deploy.runtime.backend import available_processors, useful_threads
from musiclm_deploy.runtime.batch import POSITIONS_AT_ONCE
from musiclm_deploy.runtime.codec import longest_chunk, state_size
from musiclm_deploy.runtime.estimate import Estimate, token_steps
from musiclm_deploy.runtime.memory import OutOfMemory, decoder_bytes, slot_bytes
from musiclm_deploy.runtime.music import Tokens
from musiclm_deploy.runtime.needs import needed_bytes
from musiclm_deploy.runtime.shortage import naming_shortage
from musiclm_deploy.runtime.step import open_native

WIDE = {stage: md.SamplingConfig(filter_thres=0.2) for stage in ("semantic", "coarse", "fine")}


def request_of(model: md.MusicLM, seconds: float, num_samples: int, **named):
    return ask(model.bundle.manifest, "x", seconds=seconds, num_samples=num_samples, sampling=WIDE, **named)


# --- threads


def test_threads_beyond_the_processors(caplog):
    """64 threads on two processors took forty times as long, without a word."""
    most = available_processors()
    with caplog.at_level(logging.WARNING):
        assert [useful_threads(threads) for threads in (None, 1, most)] == [None, 1, most] and not caplog.records
        assert useful_threads(64 * most) == most
    assert [record.getMessage() for record in caplog.records] == [
        f"threads={64 * most} is more than the {most} processors that this process may use: {most} are used."
    ]


def test_a_model_of_too_many_threads(tiny_bundle, caplog):
    """The limit is that of every way in: the model itself says so."""
    with caplog.at_level(logging.WARNING), md.load(tiny_bundle, device="cpu", threads=64 * available_processors()):
        assert "processors that this process may use" in caplog.text


# --- memory


@pytest.mark.parametrize("step", ["graph", "native"])
@pytest.mark.parametrize(("seconds", "num_samples"), [(1.0, 40), (12.0, 3)])
def test_memory_is_stated_as_it_is(tiny_bundle, step, seconds, num_samples):
    """5,000 samples of 60 s began, with waves and tokens that nothing had counted. What numpy allocates is at most what was said, and by
    the graph, where caches are numpy's too, what was said is not a multiple of it. The codec's own memory, which is ONNX Runtime's, and
    MuLaN's are left out of the comparison, and the native step's, which the next test compares."""
    if step == "native" and not md.runtime.step.choose_step("auto").native:
        pytest.skip("the native step was not built")
    peaks: dict[str, int] = {}

    def seen(stage: str) -> None:
        if stage in peaks:  # the first time it is of what came before as well
            peaks[stage] = max(peaks[stage], tracemalloc.get_traced_memory()[1])
        else:
            peaks[stage] = 0
        tracemalloc.reset_peak()

    with md.load(tiny_bundle, device="cpu", step=step) as loaded:
        model, _ = watched(loaded, seen)
        request = request_of(model, seconds, num_samples)
        stated = needed_bytes(model.backend, request)
        model.generate("x", seconds=seconds, sampling=WIDE)  # opens the graphs
        peaks.clear()
        tracemalloc.start()
        try:
            model.generate("x", seconds=seconds, num_samples=num_samples, sampling=WIDE)
            peaks["codec"] = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    for stage in ("semantic", "coarse", "fine"):
        assert 0 < peaks[stage] <= stated[stage] <= (6 if step == "graph" else 1 << 10) * peaks[stage], (stage, peaks, stated)
    waves, codec = num_samples * request.samples * 4, model.bundle.manifest.codec
    assert waves <= peaks["codec"] <= stated["codec"] <= 3 * waves + memory.decode_bytes(longest_chunk(codec) * 320, state_size(codec))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_native_step_takes_what_is_stated(stages, pools, variant, precision):
    """Fault: a slot or a prompt that takes more than a request was refused or allowed for."""
    stage = stages(variant, "coarse", precision)
    model, decoder = stage.model(pools[2]), stage.decoder
    prefixes = CONDITIONING_TOKENS if decoder.conditioning == "prefix" else 0
    keys = CONDITIONING_TOKENS + 1 if decoder.conditioning == "cross_attention" else 0
    for capacity in (5, 129, 3000):
        slot = interface.library().ds_slot_bytes(model.handle, capacity, keys, prefixes)
        assert slot_bytes(decoder, capacity, CONDITIONING_TOKENS) == slot
        scratch = interface.library().ds_scratch_bytes(pools[2].handle, model.handle, POSITIONS_AT_ONCE, capacity, keys)
        stated = decoder_bytes(decoder, 10, capacity, CONDITIONING_TOKENS, native=True)
        assert 10 * slot + scratch <= stated <= 1.5 * (10 * slot + scratch), (capacity, slot, scratch, stated)


@pytest.mark.parametrize("name", ["semantic.continuous.conv.p0.rel", "coarse.t5.plain.p0.abs"])
def test_the_native_step_takes_what_is_stated_of_segments(pools, name, tmp_path):
    """The same of open-musiclm's transformers, with the state of a convolution, and with absolute positions."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        decoder = export_golden(dict(file), name.split(".")[0], tmp_path)
    model = open_native(tmp_path, decoder, pools[2])
    for capacity in (5, 129, 3000):
        slot = interface.library().ds_slot_bytes(model.handle, capacity, 0, 0)
        assert slot_bytes(decoder, capacity, CONDITIONING_TOKENS) == slot
        scratch = interface.library().ds_scratch_bytes(pools[2].handle, model.handle, POSITIONS_AT_ONCE, capacity, 0)
        stated = decoder_bytes(decoder, 10, capacity, CONDITIONING_TOKENS, native=True)
        assert 10 * slot + scratch <= stated <= 1.5 * (10 * slot + scratch), (capacity, slot, scratch, stated)


def test_what_cannot_fit_is_refused(music, monkeypatch):
    """Waves that fill the memory after ten minutes of tokens; weights that do not fit beside them."""
    request = request_of(music, 60, 5000)
    assert needed_bytes(music.backend, request)["codec"] > 5000 * 60 * 16000 * 4
    monkeypatch.setattr(memory, "least_memory", lambda: memory.MemoryLimit(4 << 30, "a limit"))
    for call in (music.generate, music.estimate):
        with pytest.raises(MemoryError, match=r"the (codec|rank) stage of this request needs \d+\.\d MB.* MB are free\. Ask for fewer"):
            call("x", seconds=60, num_samples=5000)
    with pytest.raises(MemoryError, match=r"needs 5\.0 MB and 4294\.0 MB for the weights, 4295\.0 MB are free"):
        memory.check_memory({"coarse": 5_000_000}, 4_294_000_000)


def test_the_limit_that_counts_is_named(run, tiny_bundle):
    """Fault: in a container of little memory on a large machine nobody knows whose limit a refusal is about."""
    least = memory.least_memory()
    assert least is not None
    with pytest.raises(MemoryError, match=rf"What is free is limited by {least.source}\.$"):
        memory.check_memory({"coarse": 1 << 60})
    assert f"MB of memory free by {least.source}\n" in run("inspect", tiny_bundle)[1]


def test_a_limit_on_the_address_space():
    """Under `ulimit -v` all memory of the machine was said to be free, and a request that could not fit began."""
    code = """
import resource
from musiclm_deploy.runtime.memory import least_memory
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + (200 << 20), taken + (200 << 20)))
print(least_memory().bytes <= 200 << 20, least_memory().source)
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60).stdout == "True ulimit -v\n"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("Unable to allocate 3.20 TiB for an array with shape (1, 2) and data type float32"),
        RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Exception during initialization: std::bad_alloc"),
        RuntimeError("[ONNXRuntimeError] : Failed to allocate memory for requested buffer of size 4294967296"),
        RuntimeError("PosixThread pthread_create failed, error code: 12 error msg: Cannot allocate memory"),
        RuntimeError("can't start new thread"),
    ],
)
def test_a_shortage_in_whoevers_words(error):
    """The text of a library in place of what to do."""
    message = r"^memory ran out while this ran, which takes up to 3\.0 MB\. \d+\.\d MB are free\. Ask for fewer"
    with pytest.raises(OutOfMemory, match=message), naming_shortage("while this ran", 3_000_000):
        raise error


def test_what_stays_as_it_is():
    """An error of another kind, a sentence said already, and what is the caller's own."""
    own = MemoryError("mine")
    for error, passed in ((ValueError("bad"), []), (OutOfMemory("said"), []), (own, [own])):
        with pytest.raises(type(error), match=f"^{error}$"), naming_shortage("while this ran", None, passed):
            raise error


def test_what_numpy_cannot_allocate(music):
    """An array of terabytes while a request runs; and a MemoryError that the caller's progress raises is passed on."""

    class Huge:
        def gumbel(self, stage: str, step: int, batch: int, vocab: int) -> np.ndarray:
            return np.zeros((1 << 50, vocab), np.float32)

    with pytest.raises(OutOfMemory, match=r"^memory ran out while this request ran, which takes up to"):
        music.generate("x", seconds=0.1, noise=Huge())

    def progress(*_: object) -> None:
        raise MemoryError("mine")

    with pytest.raises(MemoryError, match=r"^mine$"):
        music.generate("x", seconds=0.1, progress=progress)


# --- time


def test_tokens_are_counted_as_they_are_made(music):
    """An estimate of other work than the request is."""
    for seconds, num_samples in ((0.2, 1), (0.5, 3), (11.0, 2)):
        made = music.generate("x", seconds=seconds, num_samples=num_samples, sampling=WIDE)
        steps = token_steps(music.bundle, request_of(music, seconds, num_samples))
        tokens = [candidate.tokens for candidate in made.candidates]
        assert steps["coarse"] == sum(item.coarse.size for item in tokens)
        assert steps["fine"] == sum(item.fine.size for item in tokens)
        assert steps["semantic"] >= sum(len(item.semantic) for item in tokens)  # an end of its own may come first


def test_estimates(music):
    """Every stage is timed, a small request is not, and saved tokens leave their stages out."""
    assert music.estimate("x", seconds=0.2, sampling=WIDE) is None
    found = music.estimate(["x", "y"], seconds=60, num_samples=40, sampling=WIDE)
    assert found.seconds.keys() == {"semantic", "coarse", "fine", "codec", "rank"}
    assert all(seconds > 0 for seconds in found.seconds.values()) and found.total == sum(found.seconds.values())
    waves = 2 * 40 * 60 * 16000 * 4
    assert waves < found.bytes < 8 * waves
    more = music.estimate(["x", "y"], seconds=60, num_samples=400, sampling=WIDE)
    assert 2 < more.total / found.total < 50
    whole = [candidate.tokens for candidate in music.generate("x", seconds=0.5, num_samples=2).candidates] * 1000
    begun = [Tokens(tokens.semantic) for tokens in whole]
    for tokens, left in ((begun, {"coarse", "fine", "codec", "rank"}), (whole, {"codec", "rank"})):
        rest = music.estimate("x", tokens=tokens, seconds=0.5)
        assert rest is not None and rest.seconds.keys() == left


@pytest.mark.parametrize(
    ("seconds", "size", "text"),
    [
        ({"coarse": 45.2, "codec": 20.0, "rank": 0.0}, 34_000_000, "about 65 s (coarse 45 s, codec 20 s) and up to 34 MB of memory"),
        ({"coarse": 600.0, "fine": 61.0}, 3_460_000_000, "about 11 min (coarse 10 min, fine 61 s) and up to 3.5 GB of memory"),
        ({"coarse": 9000.0}, 10**9, "about 2.5 h (coarse 2.5 h) and up to 1.0 GB of memory"),
    ],
)
def test_estimates_in_words(seconds, size, text):
    """Units that nobody reads."""
    assert str(Estimate(seconds, size)) == f"{text} beside the weights"


def test_said_at_the_terminal(tiny_bundle, monkeypatch, capsys, tmp_path):
    """A request of an hour began without a word; one of a second must not talk."""
    monkeypatch.chdir(tmp_path)
    for seconds, said in ((45.0, "this will take about 45 s (coarse 45 s) and up to 1.0 GB of memory beside the weights.\n"), (20.0, "")):
        monkeypatch.setattr(md.MusicLM, "estimate", lambda *_, seconds_=seconds, **__: Estimate({"coarse": seconds_}, 10**9))
        assert cli.main(["generate", str(tiny_bundle), "x", "--seconds", "0.1"]) == 0
        assert capsys.readouterr().err == said
