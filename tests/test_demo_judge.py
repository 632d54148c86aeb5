"""The demo's evaluation measures what it says: shares with their intervals, distances that grow with what differs, a judge that hears."""

import numpy as np
import pytest

from demo.judge import Judge, confusion, features, in_noise, interval, paired, share

HZ = 16000


def sounds(count: int, kind: str, seed: int) -> np.ndarray:
    """A second each: hissing, or a chord that fades, of any loudness."""
    rng, time = np.random.default_rng(seed), np.arange(HZ) / HZ
    waves = []
    for _ in range(count):
        tones = sum(np.sin(2 * np.pi * hz * time) for hz in rng.uniform(100, 1500, 3)) * np.exp(-3 * time)
        waves.append((rng.normal(size=HZ) if kind == "groove" else tones) * rng.uniform(0.01, 0.3))
    return np.stack(waves).astype(np.float32)


@pytest.fixture(scope="module")
def judge() -> Judge:
    waves = np.concatenate([sounds(40, "groove", 0), sounds(40, "piano", 1)])
    return Judge(waves, ["groove"] * 40 + ["piano"] * 40, HZ)


def test_wilson_interval() -> None:
    """A wrong formula: values of Newcombe 1998 (Statistics in Medicine 17), table I, and none beyond 0 and 1."""
    np.testing.assert_allclose(interval(81, 263), (0.2553, 0.3662), atol=1e-4)
    np.testing.assert_allclose(interval(15, 148), (0.0624, 0.1605), atol=1e-4)
    np.testing.assert_allclose(interval(0, 20), (0.0, 0.1611), atol=1e-4)
    np.testing.assert_allclose(interval(29, 29)[1], 1.0)


def test_shares_and_confusions_count() -> None:
    """Found and wanted mixed up."""
    found, wanted = ["piano", "piano", "organ"], ["piano", "organ", "organ"]
    assert share(found, wanted).startswith("66.7% (")
    counts = confusion(found, wanted)
    assert counts["organ"] == {"piano": 1, "organ": 1} and counts["piano"] == {"piano": 1} and counts["brass"] == {}


def test_the_judge_hears_what_plays_not_how_loud(judge: Judge) -> None:
    """Features that tell loudness, or that a classifier cannot use."""
    new = np.concatenate([sounds(20, "groove", 7), sounds(20, "piano", 8)])
    assert judge.name(new) == ["groove"] * 20 + ["piano"] * 20
    np.testing.assert_allclose(features(new, HZ), features(new * 0.1, HZ), rtol=1e-4, atol=1e-4)


def test_frechet_distance_grows_with_what_differs(judge: Judge) -> None:
    """A distance of a set to itself, of its sign, or of the order."""
    one, same, other = sounds(60, "piano", 3), sounds(60, "piano", 4), sounds(60, "groove", 5)
    assert abs(judge.frechet(one, one)) < 1e-6
    assert judge.frechet(one, same) < 0.5 * judge.frechet(one, other)
    np.testing.assert_allclose(judge.frechet(one, other), judge.frechet(other, one), rtol=1e-6)


def test_the_judge_hears_through_noise(judge: Judge) -> None:
    """A judge that goes by what lies far below the music: clips in noise are still what they are, and the noise has the level it says."""
    rng = np.random.default_rng(9)
    new = np.concatenate([sounds(20, "groove", 10), sounds(20, "piano", 11)])
    noisy = in_noise(new, rng)
    right = sum(a == b for a, b in zip(judge.name(noisy), ["groove"] * 20 + ["piano"] * 20, strict=True))
    assert right >= 36
    above = 10 * np.log10(np.square(new).mean(1) / np.square(noisy - new).mean(1))
    assert above.min() > -0.1 and above.max() < 25.1 and np.ptp(above) > 10


def test_pairs_count_what_differs() -> None:
    """A comparison of pairs with the wrong sign, or one that counts pairs that agree."""
    wanted = ["piano"] * 10
    assert paired(wanted, wanted, wanted).startswith("+0.0 (+0.0 to +0.0)")
    assert paired(["organ"] * 2 + wanted[2:], wanted, wanted).startswith("-20.0 (-44.8 to +4.8)")
    assert paired(wanted, ["organ"] * 2 + wanted[2:], wanted).startswith("+20.0")
