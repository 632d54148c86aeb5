"""`GenerationConfig`: settings in one object or as keywords are the same request; and the type of what `generate` returns."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, assert_type, get_type_hints

import numpy as np
import pytest
from support.requests import ask

import musiclm_deploy as md
from musiclm_deploy.runtime import config
from musiclm_deploy.runtime.bundle import Bundle, Manifest
from musiclm_deploy.runtime.music import Music

if TYPE_CHECKING:  # pyright does not follow `musiclm_deploy.runtime` in a checkout, so these are relative
    from ..runtime.config import GenerationConfig as TypedConfig
    from ..runtime.music import Music as TypedMusic
    from ..runtime.musiclm import MusicLM
    from ..runtime.prompts import Blend

SHORT: dict[str, Any] = {"seconds": 0.2, "max_semantic_tokens": 6, "sampling": {"coarse": md.SamplingConfig(filter_thres=0.5)}}
SOUND = np.sin(np.arange(8000) / 8).astype(np.float32), 16000


@pytest.fixture(scope="module")
def manifest(tiny_bundle: Path) -> Manifest:
    return Bundle.open(tiny_bundle).manifest


def test_keywords_are_the_fields() -> None:
    """Fault: a setting that a config has and no call takes, or of another type there."""
    assert get_type_hints(config.Settings) == get_type_hints(md.GenerationConfig)
    assert list(config.Settings.__annotations__) == [field.name for field in fields(md.GenerationConfig)]
    assert config.Settings.__required_keys__ == frozenset()


def test_a_config_is_its_keywords(music: Any) -> None:
    """Fault: a config's setting that is lost or overrides a keyword; a candidate, a seed or a length that differs from the keyword's."""
    expected = music.generate("x", seed=3, num_samples=2, **SHORT)
    given = md.GenerationConfig(seed=9, num_samples=2, **SHORT)
    song = music.generate("x", config=given, seed=3)
    assert song.audio.tobytes() == expected.audio.tobytes() and song.settings == expected.settings and len(song.candidates) == 2
    assert given.seed == 9 and music.generate("x", config=given).seed == 9
    more = music.estimate("x", config=md.GenerationConfig(seconds=120, num_samples=20), num_samples=400)
    assert more.bytes > 5 * music.estimate("x", seconds=120, num_samples=20).bytes


@pytest.mark.parametrize("method", ["generate", "estimate"])
def test_unknown_keywords(music: Any, method: str) -> None:
    """Fault: a misspelled setting that is ignored, or a message that does not say how it is spelled."""
    known = (
        "seconds, seed, num_samples, stop, compat, plan, first_window_s, window_growth, max_semantic_tokens, sampling, windows, "
        "include_prime"
    )
    with pytest.raises(TypeError, match=f"unknown setting second, sead: the settings of a request are {known}"):
        getattr(music, method)("x", second=3, seed=1, sead=2)
    with pytest.raises(ValueError, match=r"config must be a GenerationConfig, got dict"):
        getattr(music, method)("x", config={"seconds": 3})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"plan": "fast"}, "plan must be 'trained' or 'low_latency', got 'fast'."),
        ({"plan": None}, "plan must be 'trained' or 'low_latency', got None."),
        ({"plan": ["trained"]}, "plan must be 'trained' or 'low_latency', got ['trained']."),
        ({"first_window_s": 0}, "first_window_s must be a number of at least 0.01, got 0."),
        ({"window_growth": float("nan")}, "window_growth must be a number of at least 1.1, got nan."),
        ({"stop": "end"}, "stop must be 'exact' or 'eos', got 'end'."),
        ({"compat": "other"}, "compat must be None or 'upstream', got 'other'."),
        ({"seconds": 0}, "seconds must be a number above 0 and below 1e9, got 0."),
        ({"num_samples": 0}, "num_samples must be a whole number of at least 1, got 0."),
        ({"seed": [1, -1]}, "a seed must be a whole number from 0 to 2**64 - 1, got -1."),
        ({"sampling": []}, "sampling must map a stage to a SamplingConfig, got []."),
        ({"windows": {"codec": md.Window()}}, "windows has the stages semantic, coarse, fine, got 'codec'."),
        ({"include_prime": 1}, "include_prime must be True or False, got 1."),
    ],
)
def test_refused_where_it_is_made(settings: dict[str, Any], message: str) -> None:
    """Fault: a config that no model takes is refused by the first model, or taken for another."""
    with pytest.raises(ValueError, match=re.escape(message)):
        md.GenerationConfig(**settings)


def test_a_config_keeps_what_it_was_given() -> None:
    """Fault: a list that the caller changes later, an iterator that the first of two requests has used up, a number JSON does not know."""
    windows, seeds = {"coarse": md.Window(8)}, iter([np.uint64(3), 4])
    made = md.GenerationConfig(seconds=np.float32(0.5), seed=seeds, windows=windows)  # type: ignore[arg-type]  # numpy's numbers, as callers have them
    windows["coarse"] = md.Window(9)
    assert made == md.GenerationConfig(seconds=0.5, seed=(3, 4), windows={"coarse": md.Window(8)})
    assert made.seed == (3, 4) and [type(value) for value in (made.seconds, *made.seed)] == [float, int, int]


def test_a_plan_is_part_of_a_request(manifest: Manifest) -> None:
    """Fault: a plan that is dropped, or that is given together with another account of the windows and silently loses."""
    assert [ask(manifest, **given).config.plan for given in ({}, {"plan": "low_latency"})] == ["trained", "low_latency"]
    assert ask(manifest, compat="upstream").config.plan == "trained"
    message = "plan='low_latency' and compat='upstream' both say how a clip is cut into windows. Leave one of the two out."
    with pytest.raises(ValueError, match=re.escape(message)):
        ask(manifest, plan="low_latency", compat="upstream")


def typed_calls(model: MusicLM, blend: Blend, given: TypedConfig) -> tuple[list[TypedMusic], list[list[TypedMusic]]]:
    """Call `generate` with prompts of every form; pyright checks the types that are asserted."""
    one, several = model.generate("x", seconds=0.2, seed=1), model.generate(["x", "y"], seconds=0.2, seed=[1, 2])
    assert_type(one, "TypedMusic")
    assert_type(several, "list[TypedMusic]")
    blended, blends = model.generate(blend, config=given), model.generate([blend, "x"], config=given)
    assert_type(blended, "TypedMusic")
    assert_type(blends, "list[TypedMusic]")
    like, likes = model.generate(audio=SOUND, config=given), model.generate(audio=[SOUND], config=given, progress=False)
    assert_type(like, "TypedMusic")
    assert_type(likes, "list[TypedMusic]")
    on, ons = model.generate(prime=SOUND, seconds=0.6), model.generate(prime=[SOUND], seconds=0.6)
    assert_type(on, "TypedMusic")
    assert_type(ons, "list[TypedMusic]")
    led, leds = model.generate("x", prime=[SOUND], seconds=0.6), model.generate(["x", "y"], prime=[SOUND, None], seconds=0.6)
    assert_type(led, "TypedMusic")
    assert_type(leds, "list[TypedMusic]")
    both, many = model.generate(audio=SOUND, prime=[SOUND], seconds=0.6), model.generate(("x", "y"), prime=SOUND, seconds=0.6)
    assert_type(both, "TypedMusic")
    assert_type(many, "list[TypedMusic]")
    return [one, blended, like, on, led, both], [several, blends, likes, ons, leds, many]


def test_what_generate_returns(music: Any) -> None:
    """Fault: a type that is not what comes back: one prompt gives a `Music`, a list of them, even of one, a list."""
    alone, lists = typed_calls(music, md.Blend([("x", 1.0)]), md.GenerationConfig(seconds=0.2))
    assert all(type(song) is Music for song in alone)
    assert all(type(songs) is list and all(type(song) is Music for song in songs) for songs in lists)
    assert [len(songs) for songs in lists] == [2, 2, 1, 1, 2, 2]
