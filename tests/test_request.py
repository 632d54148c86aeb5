"""What callers may ask for: a request that makes no sense is refused before anything is computed, in a sentence that names the argument,
what it was and what it may be; and what makes sense comes out as frames, steps and samples."""

import io
import pickle
import re
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.requests import ask

from musiclm_deploy.runtime.bundle import Bundle, Manifest
from musiclm_deploy.runtime.music import Tokens, save_tokens
from musiclm_deploy.runtime.sampling import SamplingConfig

GREEDY = SamplingConfig(temperature=0.0)


@pytest.fixture(scope="module")
def manifest(tiny_bundle) -> Manifest:
    """16 kHz, 320 samples a frame, a window of 512 frames; 19 semantic tokens; 2 + 3 quantizers of 13; guidance in coarse alone."""
    return Bundle.open(tiny_bundle).manifest


def refused(manifest: Manifest, message: str, **arguments: Any) -> None:
    """The request raises a ValueError of one line that says `message`."""
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        ask(manifest, **arguments)
    assert type(caught.value) is ValueError and "\n" not in str(caught.value)


def tokens(semantic: int = 5, coarse: int | None = 4, fine: int | None = None) -> Tokens:
    """Tokens of these lengths, None for a stage that has not run."""
    shapes = ((semantic,), coarse if coarse is None else (coarse, 2), fine if fine is None else (fine, 3))
    return Tokens(*(None if shape is None else np.ones(shape, np.int64) for shape in shapes))  # type: ignore[arg-type]


# --- text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ([], "no prompt: the list is empty."),
        ((), "no prompt: the list is empty."),
        (None, "give either a text or audio to be like"),
        (5, "a prompt must be a str or a Blend, got int."),
        (b"piano", "a prompt must be a str or a Blend, got bytes."),
        (["piano", None], "a prompt must be a str or a Blend, got NoneType."),
        ([["piano"]], "a prompt must be a str or a Blend, got list."),
        ("la " * 100_000, "a prompt has at most 10000 characters, got 300000: shorten 'la la"),
        (" " * 20_000_000, "a prompt has at most 10000 characters, got 20000000"),
        ("caf\udce9", "the prompt 'caf\\udce9' holds bytes that are no text: give it in UTF-8."),
    ],
)
def test_bad_text(manifest, text, message):
    """Not a text, none at all, a whole book, bytes of another encoding as the shell hands them on."""
    refused(manifest, message, text=text)


@pytest.mark.parametrize("text", ["", " \n\t ", "\0\x01\x02", "\u200b", "<|>"])
def test_text_without_meaning(music, text):
    """A text that MuLaN has no token for, or only strange ones, is refused or sung, but nothing else happens."""
    try:
        wave = music.generate(text, seconds=0.02).audio
    except ValueError as error:
        assert "holds no token" in str(error)
    else:
        assert text.strip() and np.isfinite(wave).all()


def test_text_of_too_many_tokens(music):
    """Longer than MuLaN's own limit: the number of tokens and the limit are said, not a shape."""
    with pytest.raises(ValueError, match="a text of 300 tokens is longer than the 256 MuLaN takes"):
        music.generate("la " * 300, seconds=0.02)


def test_good_text(manifest):
    """One text, a list, any iterable of them."""
    assert ask(manifest, text="x" * 10_000).prompts == ["x" * 10_000]
    assert ask(manifest, text=(text for text in ("a", "ü€🎹"))).prompts == ["a", "ü€🎹"]


# --- seconds


@pytest.mark.parametrize("seconds", [0, -1, -1e-9, float("nan"), float("inf"), -float("inf"), "3", True, [1], 1e308, 10**400, Decimal(1)])
def test_bad_seconds(manifest, seconds):
    """No duration, or one on which Python's own arithmetic overflows."""
    refused(manifest, f"seconds must be a number above 0 and below 1e9, got {seconds!r}.", seconds=seconds)


@pytest.mark.parametrize(("seconds", "frames"), [(10.25, 513), (11, 550), (1e6, 50_000_000)])
def test_too_many_seconds(manifest, seconds, frames):
    """Beyond the trained window, where upstream has no other: what it takes, what there is, and the most that can be asked."""
    message = f"seconds = {seconds:g} needs {frames} frames, but the window of the model has 512. Ask for at most 10.24 s with compat="
    refused(manifest, message, seconds=seconds, compat="upstream")


@pytest.mark.parametrize("seconds", [86_401, 1e8])
def test_longer_than_a_day(manifest, seconds):
    """A list of windows that would take all memory before any check of it, and tokens beyond what the noise counts."""
    refused(manifest, f"seconds = {seconds:g} is longer than a clip may be: ask for at most 86400 s, a day.", seconds=seconds)
    assert ask(manifest, seconds=86_400).frames == 4_320_000


@pytest.mark.parametrize(
    ("seconds", "frames", "samples"),
    [
        (None, 512, 163840),
        (10.24, 512, 163840),
        (1, 50, 16000),
        (1.00001, 50, 16000),
        (1.0001, 51, 16002),
        (np.float32(0.5), 25, 8000),
        (np.int64(2), 100, 32000),
    ],
)
def test_good_seconds(manifest, seconds, frames, samples):
    """Whole frames are generated, the wave is cut to the sample."""
    request = ask(manifest, seconds=seconds)
    assert (request.frames, request.samples) == (frames, samples)


def test_tiny_seconds(manifest, music):
    """Less than a sample is one sample; the codec gets the frames that it needs at least."""
    request = ask(manifest, seconds=1e-9)
    assert (request.frames, request.samples) == (manifest.codec.min_frames, 1)
    assert request.windows.semantic_steps == 1
    assert music.generate("piano", seconds=1e-9).audio.shape == (1,)


# --- seed, number, stop, compat


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, "7", None, True, b"7", [True], [1.5], float("nan")])
def test_bad_seed(manifest, seed):
    """bool is an int in Python, and a seed of True is a mistake."""
    value = seed[0] if isinstance(seed, list) else seed
    refused(manifest, f"a seed must be a whole number from 0 to 2**64 - 1, got {value!r}.", seed=seed)


@pytest.mark.parametrize(("seed", "count"), [([], 0), ([1, 2], 2), (np.arange(3), 3)])
def test_wrong_number_of_seeds(manifest, seed, count):
    """A seed per prompt, or one for all."""
    refused(manifest, f"got {count} seeds for 1 prompts; give one seed, or one per prompt.", seed=seed)


def test_good_seeds(manifest):
    """One for all prompts, or an array of one each; the largest counts."""
    assert ask(manifest, text=["a", "b"], seed=2**64 - 1).seeds == [2**64 - 1] * 2
    seeds = ask(manifest, text=["a", "b"], seed=np.array([3, 2**64 - 1], np.uint64)).seeds
    assert seeds == [3, 2**64 - 1] and all(type(seed) is int for seed in seeds)


@pytest.mark.parametrize("number", [0, -1, 1.5, 1.0, True, "2", None, [1], float("nan")])
def test_bad_num_samples(manifest, number):
    """A number of candidates that is none."""
    refused(manifest, f"num_samples must be a whole number of at least 1, got {number!r}.", num_samples=number)


def test_absurd_num_samples(manifest):
    """A billion candidates are refused by their number: lists of that length would take all memory before any check of it."""
    refused(manifest, "1000000000 samples of 1 prompts are more than the 65536 clips of one request.", num_samples=10**9)
    refused(manifest, "40000 samples of 2 prompts are more than the 65536 clips", num_samples=40_000, text=["a", "b"])
    assert ask(manifest, num_samples=np.int32(3), text=["a", "b"]).items == 6


@pytest.mark.parametrize("value", ["Exact", "", "end", 0, True, ["eos"]])
def test_bad_stop_and_compat(manifest, value):
    """Spelling counts; None is a value of compat alone."""
    refused(manifest, f"stop must be 'exact' or 'eos', got {value!r}.", stop=value)
    refused(manifest, f"compat must be None or 'upstream', got {value!r}.", compat=value)
    refused(manifest, "stop must be 'exact' or 'eos', got None.", stop=None)


def test_compat_with_conditioning_of_other_widths(manifest):
    """The semantic conditioning fed to a stage that has another width: an error of ONNX Runtime deep in the request."""
    conditioner = replace(manifest.conditioner, namespaces=manifest.conditioner.namespaces | {"fine": 999})
    message = "compat='upstream' feeds the semantic conditioning to all stages, but theirs have other widths (semantic "
    refused(replace(manifest, conditioner=conditioner), message, compat="upstream")
    assert ask(replace(manifest, conditioner=conditioner)).items == 1


@pytest.mark.parametrize("value", [-1, 2049, 1.5, "5", True])
def test_bad_max_semantic_tokens(manifest, value):
    """No more than the semantic window."""
    refused(manifest, f"max_semantic_tokens must be from 0 to 2048 (the window of the model), got {value!r}.", max_semantic_tokens=value)


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        ({"seconds": 2}, 100),
        ({"seconds": 2.001}, 101),
        ({"seconds": 2, "max_semantic_tokens": 0}, 0),
        ({"seconds": 2, "max_semantic_tokens": np.int64(2048)}, 2048),
        ({"seconds": 2, "compat": "upstream"}, 2048),
    ],
)
def test_semantic_steps(manifest, arguments, steps):
    """By default as many as the duration can hold; upstream's rule is its window."""
    assert ask(manifest, **arguments).windows.semantic_steps == steps


# --- sampling


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", 1e-40),
        ("filter_thres", 1.0),
        ("filter_thres", -0.01),
        ("filter_thres", float("nan")),
        ("cond_scale", float("inf")),
        ("cond_scale", float("nan")),
    ],
)
def test_sampling_out_of_range(name, value):
    """A setting that would give no order to the scores is refused where it is made."""
    with pytest.raises(ValueError, match=f"{name} must be .*got {re.escape(str(value))}"):
        SamplingConfig(**{name: value})


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"codec": GREEDY}, "sampling has the stages semantic, coarse, fine, got 'codec'."),
        ({"Fine": GREEDY, 3: GREEDY}, "sampling has the stages semantic, coarse, fine, got 'Fine', 3."),
        ({"fine": {"temperature": 0}}, "sampling must map a stage to a SamplingConfig, got {'fine': {'temperature': 0}}."),
        ({"fine": None}, "sampling must map a stage to a SamplingConfig, got {'fine': None}."),
        (GREEDY, "sampling must map a stage to a SamplingConfig, got SamplingConfig(temperature=0.0"),
        ({"fine": SamplingConfig(cond_scale=2.0)}, "cond_scale has no effect on the fine stage, which was trained without"),
        ({"semantic": SamplingConfig(cond_scale=1.0)}, "cond_scale has no effect on the semantic stage"),
    ],
)
def test_bad_sampling(manifest, sampling, message):
    """An unknown stage, a plain dictionary, guidance where none was trained: never ignored."""
    refused(manifest, message, sampling=sampling)


def test_good_sampling(manifest):
    """What is not given is the bundle's, stage by stage."""
    resolved = ask(manifest, sampling={"coarse": SamplingConfig(cond_scale=-2.0), "fine": GREEDY}).sampling
    assert resolved["semantic"] == manifest.semantic.sampling
    assert resolved["coarse"] == replace(manifest.coarse.sampling, cond_scale=-2.0)
    assert resolved["fine"] == replace(manifest.fine.sampling, temperature=0.0)


# --- tokens to continue from


def changed(stage: str, array: Any) -> Tokens:
    return replace(tokens(fine=4), **{stage: array})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "tokens to continue from must be a file or one Tokens per candidate, got []."),
        ([np.ones(3)], "tokens to continue from must be a file or one Tokens per candidate, got [array"),
        (5, "tokens to continue from must be a file or one Tokens per candidate, got 5."),
        ([tokens(), tokens(coarse=None)], "tokens to continue from: some candidates have no coarse tokens."),
        (changed("semantic", None), "tokens to continue from: all candidates have no semantic tokens."),
        (changed("coarse", None), "fine tokens need coarse tokens of as many frames."),
        (tokens(fine=3), "fine tokens need coarse tokens of as many frames."),
        (changed("semantic", np.ones(5)), "semantic tokens must be whole numbers of shape [n], got float64 [5]."),
        (changed("semantic", np.ones((5, 1), int)), "semantic tokens must be whole numbers of shape [n], got int64 [5, 1]."),
        (changed("semantic", np.array(["a"])), "semantic tokens must be whole numbers of shape [n], got <U1 [1]."),
        (changed("semantic", np.array([True])), "semantic tokens must be whole numbers of shape [n], got bool [1]."),
        (changed("semantic", np.array([0, 19])), "semantic tokens must lie in [0, 19), got 0 to 19."),
        (changed("semantic", [-1, 3]), "semantic tokens must lie in [0, 19), got -1 to 3."),
        (changed("semantic", np.array([2**64 - 1], np.uint64)), "semantic tokens must lie in [0, 19), got 18446744073709551615 to"),
        (
            changed("coarse", np.ones((4, 3), int)),
            "coarse tokens must be whole numbers of shape [n > 0, 2], got int64 [4, 3].",
        ),
        (changed("coarse", np.ones(8, int)), "coarse tokens must be whole numbers of shape [n > 0, 2], got int64 [8]."),
        (
            changed("coarse", np.ones((0, 2), int)),
            "coarse tokens must be whole numbers of shape [n > 0, 2], got int64 [0, 2].",
        ),
        (changed("coarse", np.full((4, 2), 13)), "coarse tokens must lie in [0, 13), got 13 to 13."),
        (changed("fine", np.full((4, 3), -1, np.int8)), "fine tokens must lie in [0, 13), got -1 to -1."),
        (tokens(semantic=2049, coarse=None), "2049 semantic tokens are more than the model's window of 2048."),
    ],
)
def test_bad_tokens(manifest, given, message):
    """Tokens of another model, of the wrong shape, type or range, too few or too many: the stage is named."""
    refused(manifest, message, tokens=given)


def test_tokens_beyond_a_window(manifest):
    """Coarse frames beyond a window are the fine stage's windows; upstream has none."""
    assert ask(manifest, tokens=tokens(coarse=513)).frames == 513
    message = "513 frames of coarse tokens are more than the model's window of 512."
    refused(manifest, message, tokens=tokens(coarse=513), compat="upstream")


def test_tokens_of_several_prompts(manifest):
    """Tokens belong to one prompt, and their number is the number of samples."""
    refused(manifest, "tokens continue one prompt, got 2 prompts.", tokens=tokens(), text=["a", "b"])
    refused(manifest, "num_samples is 3, but the tokens to continue from hold 1 candidates. Leave it out.", tokens=tokens(), num_samples=3)
    assert ask(manifest, tokens=[tokens()] * 3).items == ask(manifest, tokens=[tokens()] * 3, num_samples=3).items == 3


def test_seconds_of_given_tokens(manifest):
    """The frames are those that are given: fewer seconds cut the wave, more cannot be had."""
    request = ask(manifest, tokens=tokens(coarse=50), seconds=0.5)
    assert (request.frames, request.samples) == (50, 8000)
    assert ask(manifest, tokens=tokens(coarse=3), seconds=0.001).frames == 3
    message = "seconds = 2 needs 100 frames, but the given tokens have 50. Ask for at most 1 s."
    refused(manifest, message, tokens=tokens(coarse=50), seconds=2)
    assert ask(manifest, tokens=tokens(coarse=None), seconds=2).frames == 100


def test_small_integers(music, manifest):
    """int8 from someone's file: adding a row offset to it would overflow, so tokens become int64 at the door."""
    wide = tokens(semantic=3, coarse=2)
    narrow = Tokens(*(None if array is None else array.astype(np.int8) for array in (wide.semantic, wide.coarse, wide.fine)))  # type: ignore[arg-type]
    (checked,) = ask(manifest, tokens=narrow).tokens or []
    assert checked.coarse is not None and checked.coarse.dtype == np.int64
    assert (music.generate("a", tokens=narrow).audio == music.generate("a", tokens=wide).audio).all()


class Runs:
    """Unpickling it makes a file."""

    def __init__(self, proof: Path) -> None:
        self._proof = proof

    def __reduce__(self):
        return Path.touch, (self._proof,)


def test_file_of_tokens(manifest, tmp_path):
    """Saved and read again they are the same; a path may be a string."""
    path = save_tokens(tmp_path / "t.npz", [tokens(), tokens(semantic=7)])
    given = ask(manifest, tokens=str(path)).tokens
    assert given is not None and [len(item.semantic) for item in given] == [5, 7]


@pytest.mark.parametrize("kind", ["missing", "folder", "empty", "garbage", "npy", "cut", "pickle", "object array", "other names"])
def test_bad_file_of_tokens(manifest, tmp_path, kind):
    """Anything that is not a file of tokens is named as such, and a pickle in it is not run."""
    proof, path = tmp_path / "ran", tmp_path / "t.npz"
    good = save_tokens(tmp_path / "good.npz", [tokens()]).read_bytes()
    hostile = io.BytesIO()
    arrays: dict[str, Any] = {"0.semantic": np.array([Runs(proof)], dtype=object)}
    np.savez(hostile, **arrays)
    single = io.BytesIO()
    np.save(single, np.ones(3, int))
    other = io.BytesIO()
    np.savez(other, weights=np.ones(3))
    data = {
        "empty": b"",
        "garbage": b"PK\3\4" + b"\xff" * 100,
        "npy": single.getvalue(),
        "cut": good[: len(good) // 2],
        "pickle": pickle.dumps(Runs(proof)),
        "object array": hostile.getvalue(),
        "other names": other.getvalue(),
    }
    if kind == "folder":
        path.mkdir()
    elif kind != "missing":
        path.write_bytes(data[kind])
    with pytest.raises(ValueError, match=re.escape(f"{path} is not a file of tokens: ")):
        ask(manifest, tokens=path)
    assert not proof.exists()
