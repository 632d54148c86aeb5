"""The demo's music is what its captions say: keys, tempi, instruments; and no split hears another's pieces or sentences."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from demo.captions import DENSITIES, PLAYERS, TEMPI, TEMPLATES, caption
from demo.compose import DRUMS, PROGRESSIONS, RHYTHMS, SCALES, SECONDS, STYLES, TONICS, compose
from demo.compose import TEMPI as BPM
from demo.render import SAMPLE_HZ, SOUND_FONT, SPLITS, render, seeds

PIECES = [compose(seed) for seed in range(64)]


def test_the_same_seed_gives_the_same_piece() -> None:
    """Chance that does not come from the seed: two machines would train on different music."""
    assert compose(5) == compose(5)
    assert compose(5) != replace(compose(13), seed=5)  # the same style, another seed
    assert [piece.style for piece in PIECES[:8]] == list(STYLES)


@pytest.mark.parametrize("piece", PIECES[:24], ids=lambda piece: f"{piece.style}-{piece.seed}")
def test_a_piece_is_what_it_says(piece) -> None:
    """A caption that lies: notes outside the key, another tempo, other instruments, notes after the end."""
    scale = {(TONICS[piece.tonic] + step) % 12 for step in SCALES[piece.mode]}
    tones = [note for note in piece.notes if note.channel != DRUMS]
    assert {note.pitch % 12 for note in tones} <= scale
    low, high = BPM[piece.tempo]
    assert low <= piece.bpm <= high
    sixteenths = np.array([note.start for note in piece.notes]) * piece.bpm / 60 * 4
    np.testing.assert_allclose(sixteenths, sixteenths.round(), atol=1e-9)  # on the grid of that tempo, exactly but for rounding
    style = STYLES[piece.style]
    assert (DRUMS in {note.channel for note in piece.notes}) == style.drums
    allowed = {style.chords, style.bass, *style.melody}
    assert set(piece.programs.values()) <= allowed and {note.channel for note in tones} == set(piece.programs)
    assert all(note.start >= 0 and note.start + note.length <= SECONDS + 1e-9 for note in piece.notes)
    assert all(0 < note.pitch < 128 and 0 < note.velocity < 128 and note.length > 0 for note in piece.notes)
    assert max(note.start for note in piece.notes) > SECONDS - 60 / piece.bpm * 4.5  # it does not stop early


def test_busy_pieces_have_more_notes_than_sparse_ones() -> None:
    """A density that is drawn and told but not played."""
    for style in STYLES:
        notes = {density: [] for density in DENSITIES}
        for seed in range(40):
            piece = compose(seed, style)
            notes[piece.density].append(len(piece.notes) / piece.bpm)
        assert np.mean(notes["busy"]) > 1.2 * np.mean(notes["sparse"]), style


def test_rhythms_and_progressions_fill_their_bars() -> None:
    """A table with a slip: a bar of three beats, a chord outside the scale."""
    assert all(sum(row) == 4 for rows in RHYTHMS.values() for row in rows)
    assert all(len(row) == 4 and min(row) >= 0 and max(row) < 7 for rows in PROGRESSIONS.values() for row in rows)


def test_splits_share_no_piece_and_no_template() -> None:
    """A test that was trained on."""
    numbers = [set(seeds(split, 10_000)) for split in SPLITS]
    assert len(set.union(*numbers)) == sum(map(len, numbers))
    templates = [set(TEMPLATES[split]) for split in SPLITS]
    assert len(set.union(*templates)) == sum(map(len, templates))
    music = [{compose(seed).notes for seed in seeds(split, 16)} for split in SPLITS]
    assert len(set.union(*music)) == sum(map(len, music))


def test_a_caption_names_its_style_and_never_another_tempo() -> None:
    """A sentence about another piece."""
    for piece in PIECES:
        for split in SPLITS:
            for variant in range(8):
                words = caption(piece, np.random.default_rng([piece.seed, variant]), split)
                named = [player.removeprefix("a ").removeprefix("an ") for player in PLAYERS[piece.style]]
                assert any(player in words for player in named), words
                for tempo, synonyms in TEMPI.items():
                    if tempo != piece.tempo:  # as whole phrases: "fast" is also in "neither slow nor fast"
                        assert not any(f", {synonym}" in words for synonym in synonyms), words


@pytest.mark.skipif(shutil.which("fluidsynth") is None or not SOUND_FONT.is_file(), reason="needs FluidSynth and its sound font")
def test_rendered_pieces_sound_where_they_have_notes() -> None:
    """Pieces of a shard that run into each other, are shifted, silent or clipped."""
    pytest.importorskip("mido", reason="needs the extra `demo`")
    pieces = [compose(0), compose(5), compose(7)]
    waves = render(pieces)
    assert waves.shape == (3, SECONDS * SAMPLE_HZ) and waves.dtype == np.float32
    assert np.abs(waves).max() <= 0.901 and (np.sqrt(np.square(waves).mean(axis=1)) > 0.05).all()
    np.testing.assert_array_equal(waves, render(pieces))
    for piece, wave in zip(pieces, waves, strict=True):
        first = min(note.start for note in piece.notes)
        onset = np.flatnonzero(np.abs(wave) > 0.02 * np.abs(wave).max())[0] / SAMPLE_HZ
        assert first - 0.02 <= onset <= first + 0.12
