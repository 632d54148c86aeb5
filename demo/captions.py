"""Sentences about pieces.

In: a `Piece`, a generator of random numbers, the split that it belongs to. Out: an English caption that says what plays and some of tempo,
mood, mode and density. Training, validation and test share the words but no template: a test sentence is built in a way never trained on.
"""

import numpy as np

from demo.compose import Piece

PLAYERS = {
    "piano": ("solo piano", "a piano", "a grand piano", "piano alone", "a pianist"),
    "music box": ("a music box", "a tinkling music box", "a little music box", "a toy music box"),
    "strings": ("a string ensemble", "strings", "an orchestra of strings", "a string orchestra", "violins and cellos"),
    "flute": ("a flute over pads", "a flute over synthesizer pads", "a flute above soft pads", "a flute with a warm pad"),
    "guitar": ("an acoustic guitar", "acoustic guitar arpeggios", "a picked guitar", "a fingerpicked acoustic guitar", "a steel guitar"),
    "groove": ("bass and drums", "a bass and drums groove", "a drum kit with bass guitar", "a rhythm section", "drums with a bass line"),
    "brass": ("a brass band", "brass", "a trumpet with a brass section", "trumpets and trombones", "a brass ensemble"),
    "organ": ("a church organ", "an organ", "a pipe organ", "organ music", "a cathedral organ"),
}
TEMPI = {
    "slow": ("slow", "unhurried", "at a slow tempo", "leisurely"),
    "moderate": ("at a moderate tempo", "mid-tempo", "at walking pace", "neither slow nor fast"),
    "fast": ("fast", "quick", "at a fast tempo", "rapid"),
}
MOODS = {  # of (bright or dark, tempo)
    ("bright", "slow"): ("calm", "peaceful", "gentle"),
    ("bright", "moderate"): ("friendly", "cheerful", "warm"),
    ("bright", "fast"): ("happy", "joyful", "lively"),
    ("dark", "slow"): ("sad", "melancholic", "mournful"),
    ("dark", "moderate"): ("thoughtful", "wistful", "serious"),
    ("dark", "fast"): ("tense", "dramatic", "restless"),
}
MODES = {
    "major": ("in a major key", "in major"),
    "mixolydian": ("in a mixolydian mode", "in a folk-like major"),
    "dorian": ("in a dorian mode", "in a folk-like minor"),
    "minor": ("in a minor key", "in minor"),
}
DENSITIES = {"sparse": ("sparse", "with few notes", "simple"), "busy": ("busy", "with many notes", "full of notes")}
TEMPLATES = {
    "train": (
        "{player}",
        "{mood} {player_bare}",
        "{player}, {tempo}",
        "{player}, {mood} and {density}",
        "{player} playing a {mood} piece, {tempo}",
        "{mood} music with {player}, {mode}",
        "{player}, {mode}, {tempo} and {density}",
        "this is {player}: {mood}, {tempo}, {density}",
        "a {mood} tune by {player}, {mode}",
        "a recording of {player} {mode}",
        "{tempo}, {mood}: {player}",
        "we hear {player}, {density}, {mode}",
    ),
    "valid": ("a {mood} song for {player}, {density}", "{player} {mode}, {mood}, {tempo}"),
    "test": (
        "{mood} {player_bare} in a ballroom",
        "an instrumental: {player}, {mood}, {tempo}",
        "something {mood} and {density}, played by {player}",
        "please play {player}, {mode} and {tempo}",
    ),
}
# Words that say nothing of the music, so that such words are learnt to change nothing.
FILLERS = ("for a film", "at night", "recorded in a studio", "with feeling", "number two", "as in the old days", "from the radio")


def caption(piece: Piece, rng: np.random.Generator, split: str) -> str:
    """One of the captions of `piece`, from the templates of `split`. A training caption has a filler at its end now and then."""

    def draw(choices: tuple[str, ...]) -> str:
        return choices[int(rng.integers(len(choices)))]

    player = draw(PLAYERS[piece.style])
    light = "bright" if piece.mode in ("major", "mixolydian") else "dark"
    words = draw(TEMPLATES[split]).format(
        player=player,
        player_bare=player.removeprefix("a ").removeprefix("an "),
        mood=draw(MOODS[light, piece.tempo]),
        tempo=draw(TEMPI[piece.tempo]),
        mode=draw(MODES[piece.mode]),
        density=draw(DENSITIES[piece.density]),
    )
    return f"{words} {draw(FILLERS)}" if split == "train" and rng.random() < 0.3 else words
