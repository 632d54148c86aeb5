"""Arguments as people type them, in every method of a loaded bundle: taken for what they are, or refused before anything is computed."""

import itertools
import threading
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from support.requests import ask

import musiclm_deploy as md
from musiclm_deploy.runtime import memory
from musiclm_deploy.runtime.arguments import number, whole_number
from musiclm_deploy.runtime.bundle import Bundle, Manifest

HZ = 16000
WAVE = (0.5 * np.sin(np.arange(8000) / 8)).astype(np.float32)
DRAWN = {stage: md.SamplingConfig(filter_thres=0.5) for stage in ("semantic", "coarse", "fine")}
SHORT: dict[str, Any] = dict(seconds=0.3, max_semantic_tokens=6, seed=3, sampling=DRAWN)


@pytest.fixture(scope="module")
def manifest(tiny_bundle: Path) -> Manifest:
    return Bundle.open(tiny_bundle).manifest


@pytest.mark.parametrize(
    "value",
    [3, np.int8(3), np.uint64(3), np.array(3), np.array(3, ">i4"), torch.tensor(3), torch.tensor(3, dtype=torch.uint8)],
)
def test_whole_numbers(value: Any) -> None:
    """Fault: a number of numpy or PyTorch that is refused, or that later is no number of JSON."""
    assert whole_number(value) == number(value) == 3 and type(whole_number(value)) is int


@pytest.mark.parametrize("value", [1.5, np.float32(1.5), np.array(1.5), torch.tensor(1.5), torch.tensor(1.5).half(), Fraction(3, 2)])
def test_other_numbers(value: Any) -> None:
    """Fault: a number of numpy or PyTorch that is refused where a float is taken, or rounded where a whole number is."""
    assert number(value) == 1.5 and type(number(value)) is float and whole_number(value) is None


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, np.True_, torch.tensor(True), "3", b"3", 3j, [3], np.array([3]), torch.tensor([3]), {3}, Fraction(10**400, 3)),
        *(np.datetime64(3, "s"), np.timedelta64(3, "s"), torch.empty((), device="meta")),
    ],
)
def test_no_numbers(value: Any) -> None:
    """Fault: True as a seed of 1, a text or a list as a number, an error of another library."""
    assert number(value) is None and whole_number(value) is None


@pytest.mark.parametrize("given", [np.arange(2), torch.arange(2), range(2), (0, 1), [np.int64(0), torch.tensor(1)], iter([0, 1])])
def test_seeds_of_any_list(given: Any, manifest: Manifest) -> None:
    """Fault: seeds of an array that are refused, or that the record of a file cannot hold."""
    seeds = ask(manifest, text=["a", "b"], seed=given).seeds
    assert seeds == [0, 1] and all(type(seed) is int for seed in seeds)
    assert ask(manifest, text=["a", "b"], seed=torch.tensor(5)).seeds == [5, 5]


def test_numbers_of_a_request(manifest: Manifest) -> None:
    """Fault: lengths, counts, sampling and windows of numpy and PyTorch that are refused, or kept as what JSON does not know."""
    request = ask(
        manifest,
        seconds=torch.tensor(1.5),
        num_samples=np.array(2),
        max_semantic_tokens=torch.tensor(7),
        sampling={"coarse": md.SamplingConfig(temperature=torch.tensor(0.5), filter_thres=np.float32(0.25))},  # type: ignore[arg-type]
        windows={"coarse": md.Window(np.int64(50), torch.tensor(5))},  # type: ignore[arg-type]
        include_prime=np.False_,
    )
    config = request.config
    assert config.windows is not None
    assert (request.samples, request.num_samples, config.max_semantic_tokens, config.include_prime) == (24000, 2, 7, False)
    chosen, window = request.sampling["coarse"], config.windows["coarse"]
    assert (chosen.temperature, chosen.filter_thres, window.length, window.overlap) == (0.5, 0.25, 50, 5)
    kept = [request.num_samples, config.max_semantic_tokens, window.length, window.overlap, chosen.temperature, chosen.filter_thres]
    assert [type(value) for value in kept] == [int] * 4 + [float] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": {1}}, "seeds must be given as a list, in order, got set."),
        ({"seed": {0: 1}}, "seeds must be given as a list, in order, got dict."),
        ({"seed": itertools.count()}, "seeds: one request takes at most 65536, got more."),
        ({"seed": np.zeros((1, 1), int)}, r"a seed must be a whole number from 0 to 2\*\*64 - 1, got array"),
        ({"text": ["a", "b"], "seed": [1, True]}, r"a seed must be a whole number from 0 to 2\*\*64 - 1, got True"),
        ({"text": {"piano"}}, "prompts must be given as a list, in order, got set."),
        ({"text": {"text": "piano"}}, "prompts must be given as a list, in order, got dict."),
        ({"text": Path("a.wav")}, "a prompt must be a str or a Blend, got PosixPath. A sound goes into audio="),
        ({"text": (WAVE, HZ)}, "a prompt must be a str or a Blend, got ndarray. A sound goes into audio="),
        ({"text": bytearray(b"piano")}, "a prompt must be a str or a Blend, got bytearray"),
        ({"text": b"piano"}, "a prompt must be a str or a Blend, got bytes. Decode it first."),
        ({"text": itertools.repeat("piano")}, "prompts: one request takes at most 65536, got more."),
        ({"text": "piano", "audio": "a.wav"}, "give either a text or audio to be like"),
        ({"text": None, "audio": (WAVE[:100], HZ)}, "a sound to be like must last at least .* s, got 0.00625 s"),
        ({"text": md.Blend([(WAVE, 1.0)])}, "a wave alone has no rate"),  # type: ignore[list-item]
        ({"text": md.Blend([("piano", True)])}, "a weight must be a finite number, got True"),
        ({"stop": np.array("exact")}, "stop must be 'exact' or 'eos', got array"),
        ({"include_prime": "no"}, "include_prime must be True or False, got 'no'"),
    ],
)
def test_refused(arguments: dict[str, Any], message: str, manifest: Manifest) -> None:
    """Fault: a request of something else than what was meant, or an error of another library."""
    with pytest.raises(ValueError, match=message):
        ask(manifest, **arguments)


@pytest.mark.parametrize(
    ("text", "prompts", "single"),
    [
        (np.str_("a"), ["a"], True),
        (np.array("a"), ["a"], True),
        (np.array(["a", "b"]), ["a", "b"], False),
        (("a", "b"), ["a", "b"], False),
        (iter(["a"]), ["a"], False),
        ({1: "a", 2: "b"}.values(), ["a", "b"], False),
    ],
)
def test_texts(text: Any, prompts: list[str], single: bool, manifest: Manifest) -> None:
    """Fault: texts of numpy that JSON or a comparison takes for something else; one song in place of a list of one."""
    request = ask(manifest, text=text)
    assert (request.prompts, request.single) == (prompts, single) and all(type(prompt) is str for prompt in request.prompts)


def test_every_method_takes_the_same_sounds(music: Any, tmp_path: Path) -> None:
    """Fault: a sound that one method takes and another refuses, or takes for another."""
    soundfile.write(tmp_path / "a.wav", WAVE, HZ, subtype="FLOAT")
    methods = {
        "embed_audio": music.embed_audio,
        "encode_audio": music.encode_audio,
        "semantic_tokens": music.semantic_tokens,
        "audio": lambda sound: music.generate(audio=sound, **SHORT).audio,
        "prime": lambda sound: music.generate("x", prime=sound, **SHORT | {"seconds": 0.8}).audio,
        "blend": lambda sound: music.generate(md.Blend([(sound, 1.0), ("x", 0.2)]), **SHORT).audio,
    }
    forms = [tmp_path / "a.wav", (HZ, np.stack([WAVE, WAVE])), {"array": torch.from_numpy(WAVE), "sampling_rate": 16000.0}]
    for name, method in methods.items():
        expected = method((WAVE, HZ))
        for form in forms:
            np.testing.assert_array_equal(method(form), expected, err_msg=f"{name} of {type(form).__name__}")
        with pytest.raises(ValueError, match="a sound's rate must be a whole number of Hz"):
            method((WAVE, None))


def test_a_path_is_one_sound(music: Any, tmp_path: Path) -> None:
    """Fault: a song of each letter of a path, or of the words of a path in a list."""
    soundfile.write(tmp_path / "a.wav", WAVE, HZ, subtype="FLOAT")
    song, expected = music.generate(audio=str(tmp_path / "a.wav"), **SHORT), music.generate(audio=(WAVE, HZ), **SHORT)
    assert song.prompt == "a sound of 0.50 s" and np.array_equal(song.audio, expected.audio)
    (alone,) = music.generate(audio=[str(tmp_path / "a.wav")], **SHORT)
    assert np.array_equal(alone.audio, expected.audio)
    with pytest.raises(ValueError, match=r"intro\.wav: there is no such file"):
        music.generate(audio="intro.wav", **SHORT)


def test_a_list_of_sounds_is_a_batch(music: Any) -> None:
    """Fault: the channels of one sound taken for two sounds; sounds of two lengths padded without a word."""
    other = WAVE[::-1]
    for method in (music.embed_audio, music.encode_audio, music.semantic_tokens):
        both = method([(WAVE, HZ), (other, HZ)])
        assert len(both) == 2 and len(method((np.stack([WAVE, other]), HZ))) == 1
        np.testing.assert_allclose(both, np.concatenate([method((WAVE, HZ)), method((other, HZ))]), rtol=0, atol=1e-5)
        with pytest.raises(ValueError, match="sounds of one length in one call, got"):
            method([(WAVE, HZ), (other[100:], HZ)])
        for nothing, message in (([], "no sound: the list is empty"), ([None], "one of the sounds is None")):
            with pytest.raises(ValueError, match=message):
                method(nothing)


def test_memory_is_looked_at_before_a_sound_is_resampled(music: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault: a rate in kHz, taken for Hz, fills the memory before it is refused."""
    monkeypatch.setattr(memory, "least_memory", lambda: memory.MemoryLimit(1_000_000, "a limit"))
    monkeypatch.setattr("musiclm_deploy.runtime.sounds.resample", lambda *_: pytest.fail("a sound was resampled"))
    for method in (music.embed_audio, music.encode_audio):
        with pytest.raises(MemoryError, match="stage of this request needs"):
            method((WAVE, 16))


@pytest.mark.parametrize("texts", [None, b"piano", ["piano", None], Path("a.wav"), {"piano"}, {"a": "piano"}, 5])
def test_texts_of_other_methods(texts: Any, music: Any) -> None:
    """Fault: an AttributeError from inside the tokenizer; texts in an order that nobody chose."""
    for method in (music.embed_text, music.unknown_words):
        with pytest.raises(ValueError, match=r"a text must be a str, got|texts must be given as a list, in order, got"):
            method(texts)
    with pytest.raises(ValueError, match="no text: the list is empty"):
        music.embed_text([])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"noise": 5}, r"noise must have gumbel\(stage, step, batch, vocab\), got int"),
        ({"progress": "bar"}, "progress must be True, or a function of .*, got 'bar'"),
        ({"cancel": True}, "cancel must be a threading.Event, got bool"),
    ],
)
def test_what_is_called_later_is_looked_at_first(arguments: dict[str, Any], message: str, music: Any) -> None:
    """Fault: a TypeError after minutes of music."""
    with pytest.raises(ValueError, match=message):
        music.generate("x", **arguments)
    assert len(music.generate("x", cancel=threading.Event(), progress=None, seconds=0.02).audio) == 320


def test_saving_a_candidate_that_is_not_there(music: Any) -> None:
    """Fault: an IndexError or TypeError, or candidate 1 for True."""
    song = music.generate("x", seconds=0.02)
    assert song.encode(candidate=np.int64(0)) == song.encode(candidate=torch.tensor(-1)) == song.encode()
    for wrong in (1, -2, True, "0", 0.0):
        with pytest.raises(ValueError, match="candidate must be a whole number from 0 to 0"):
            song.encode(candidate=wrong)
    for wrong in ({"sample_rate": True}, {"sample_rate": 8000.0}, {"normalize": "-14"}):
        with pytest.raises(ValueError, match=f"got {next(iter(wrong.values()))!r}"):
            song.encode(**wrong)
    assert song.encode(sample_rate=torch.tensor(8000), normalize=np.float32(-14)) == song.encode(sample_rate=8000, normalize=-14)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threads": True}, "threads must be a whole number of at least 1, got True"),
        ({"threads": 1.0}, "threads must be a whole number of at least 1, got 1.0"),
        ({"weights": ["fp16"]}, "weights must be one of fp16, bf16, fp32, int8, got"),
        ({"bundle": None}, "a bundle is given by the path of its folder, got NoneType"),
    ],
)
def test_loading(arguments: dict[str, Any], message: str, tiny_bundle: Path) -> None:
    """Fault: a TypeError of pathlib or of a dict."""
    with pytest.raises(ValueError, match=message):
        md.load(**{"bundle": tiny_bundle} | arguments)
    with md.load(tiny_bundle, threads=np.int64(1)) as model:  # type: ignore[arg-type]
        assert type(model.threads) is int
