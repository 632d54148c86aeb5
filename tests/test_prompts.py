"""Prompts of words, sounds and both: what reaches the transformers is the latent that MuLaN gives them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import musiclm_deploy as md
from musiclm_deploy.cli import main
from musiclm_deploy.runtime.prompts import latents_of, make_prompts

SHORT: dict[str, Any] = dict(seconds=0.3, max_semantic_tokens=6, seed=3)
DRAWN = {stage: md.SamplingConfig(filter_thres=0.5) for stage in ("semantic", "coarse", "fine")}
TEXT = "calm piano"


def tone(hz: float, rate: int = 16000) -> tuple[np.ndarray, int]:
    return np.sin(2 * np.pi * hz * np.arange(rate // 4) / rate).astype(np.float32), rate


def tokens(song: md.MusicLM) -> list[np.ndarray]:
    return [song.tokens.semantic, song.tokens.coarse, song.tokens.fine]  # type: ignore[attr-defined]


def test_a_sound_conditions_as_its_latent(music, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sound that is ignored, or embedded as something else than `embed_audio` says."""
    song = music.generate(audio=tone(440), sampling=DRAWN, **SHORT)
    other = music.generate(audio=tone(1900), sampling=DRAWN, **SHORT)
    assert any(not np.array_equal(a, b) for a, b in zip(tokens(song), tokens(other), strict=True))
    latent = music.embed_audio(tone(440))
    monkeypatch.setattr(music.encoders, "embed_text", lambda text: latent)
    same = music.generate("anything", sampling=DRAWN, **SHORT)
    assert all(np.array_equal(a, b) for a, b in zip(tokens(song), tokens(same), strict=True))
    assert song.prompt == "a sound of 0.25 s"


def test_a_blend_is_the_direction_of_the_sum(music) -> None:
    """Weights that are swapped, or a latent that is not of length one, which the codebooks were not fitted to."""
    sound = tone(700, 24000)
    blend = md.Blend([(TEXT, 0.7), (sound, 0.5), ("x", -0.2)])
    parts = [music.embed_text(TEXT)[0], music.embed_audio(sound)[0], music.embed_text("x")[0]]
    expected = 0.7 * parts[0] + 0.5 * parts[1] - 0.2 * parts[2]
    (found,) = latents_of([blend], music.embed_text, music.embed_audio)
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected), atol=1e-6)
    assert str(blend) == "0.7 x calm piano + 0.5 x a sound of 0.25 s + -0.2 x x"
    alone, text = (music.generate(prompt, sampling=DRAWN, **SHORT) for prompt in (md.Blend([(TEXT, 2.0)]), TEXT))
    assert all(np.array_equal(a, b) for a, b in zip(tokens(alone), tokens(text), strict=True))


def test_prompts_of_all_kinds_share_a_batch(music) -> None:
    """A row that gets its neighbour's latent; one object for a list of one."""
    blend = md.Blend([(TEXT, 0.5), (tone(440), 0.5)])
    songs = music.generate([TEXT, blend], sampling=DRAWN, **SHORT)
    for prompt, song in zip([TEXT, blend], songs, strict=True):
        alone = music.generate(prompt, sampling=DRAWN, **SHORT)
        assert all(np.array_equal(a, b) for a, b in zip(tokens(song), tokens(alone), strict=True))
    assert isinstance(music.generate(audio=[tone(440)], **SHORT), list)
    assert len(music.generate(audio=[tone(440), tone(600)], **SHORT)) == 2


@pytest.mark.parametrize(
    "text, audio, message",
    [
        (None, None, "either a text or audio"),
        (TEXT, tone(440), "either a text or audio"),
        (None, [], "the list is empty"),
        ([], None, "the list is empty"),
        (None, (np.zeros((2, 9, 9)), 8000), r"a wave of shape \[2, 9, 9\] is not one sound of at most 8 channels. A sound is a path"),
        (None, (np.array([np.nan]), 8000), "the wave holds NaN"),
        (md.Blend([]), None, "a Blend takes a list"),
        (md.Blend([TEXT]), None, r"\(text or sound, weight\)"),  # type: ignore[list-item]
        (md.Blend([(TEXT, np.inf)]), None, "a weight must be a finite number, got inf"),
        (md.Blend([(5, 1.0)]), None, "a prompt must be a str or a Blend, got int"),  # type: ignore[list-item]
    ],
)
def test_bad_prompts_are_refused(text: Any, audio: Any, message: str) -> None:
    """An error from deep inside MuLaN, or a prompt that is silently another one."""
    with pytest.raises(ValueError, match=message):
        make_prompts(text, audio)


def test_parts_that_cancel_are_refused(music) -> None:
    """A division by nothing, and a latent that points anywhere."""
    with pytest.raises(ValueError, match="cancel each other"):
        music.generate(md.Blend([(TEXT, 1.0), (TEXT, -1.0)]), **SHORT)


def test_command_line_takes_a_sound(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A file whose channels or rate are taken for others, or a weight without effect."""
    wave, hz = tone(440, 22050)
    soundfile.write(tmp_path / "in.flac", np.stack([wave, wave * 0], axis=1), hz)
    made = {}
    base = ["generate", str(tiny_bundle), "--audio", str(tmp_path / "in.flac"), "--seconds", "0.3", "-o", str(tmp_path / "out.wav")]
    for name, more in {"sound": [], "blend": [TEXT], "text": [TEXT, "--audio-weight", "0"]}.items():
        assert main([*base, *more]) == 0
        made[name] = soundfile.SoundFile(tmp_path / "out.wav").comment
    assert "a sound of 0.25 s" in made["sound"] and "0.5 x calm piano + 0.5 x a sound of 0.25 s" in made["blend"]
    for arguments, message in (
        (["generate", str(tiny_bundle)], "TEXT, --audio FILE or both"),
        ([*base, "--audio-weight", "0.5"], "beside TEXT, from 0 to 1"),
        ([*base, TEXT, "--audio-weight", "2"], "beside TEXT, from 0 to 1"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2 and message in capsys.readouterr().err
    (tmp_path / "in.flac").write_text("no sound")
    assert main(base) == 1
    assert "in.flac: not a sound file that can be read" in capsys.readouterr().err
