"""A composer: short pieces of music in eight styles, made from a seed and nothing else.

In: a seed, and a style if a certain one is wanted. Out: a `Piece`: notes in seconds, and the key, mode, tempo and density that a caption
may speak of. It does not know MIDI files, sound fonts or words.

A piece is in 4/4, one chord a bar, in phrases A A B A of the length of its progression's half: A is one motif over the chords it is on,
B another. Melodies walk in steps within the scale and stand on notes of the chord where a bar begins.
"""

from dataclasses import dataclass

import numpy as np

SECONDS = 16.0  # of a piece
DRUMS = 9  # General MIDI's channel of percussion

SCALES = {
    "major": (0, 2, 4, 5, 7, 9, 11),
    "mixolydian": (0, 2, 4, 5, 7, 9, 10),
    "dorian": (0, 2, 3, 5, 7, 9, 10),
    "minor": (0, 2, 3, 5, 7, 8, 10),
}
PROGRESSIONS = {  # degrees of the scale, one a bar
    "major": ((0, 4, 5, 3), (0, 5, 3, 4), (0, 3, 4, 0), (0, 3, 0, 4)),
    "mixolydian": ((0, 6, 3, 0), (0, 3, 6, 3), (0, 6, 3, 4)),
    "dorian": ((0, 3, 0, 3), (0, 6, 3, 0), (0, 2, 3, 0)),
    "minor": ((0, 5, 2, 6), (0, 3, 4, 0), (0, 6, 5, 6), (0, 3, 6, 2)),
}
TONICS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9}
TEMPI = {"slow": (60, 76), "moderate": (88, 108), "fast": (124, 148)}  # beats per minute, both ends included
DENSITIES = ("sparse", "busy")
RHYTHMS = {  # beats of a bar, each row sums to four
    "sparse": ((2, 2), (3, 1), (2, 1, 1), (4,)),
    "busy": ((1, 1, 1, 1), (1, 0.5, 0.5, 1, 1), (0.5, 0.5, 1, 0.5, 0.5, 1), (1.5, 0.5, 1, 1)),
}


@dataclass(frozen=True)
class Style:
    """What plays. Programs are General MIDI's, from 0; a part without one is not played. Octaves are MIDI's, 60 is the C of octave 5."""

    melody: tuple[int, ...] = ()  # one of these is drawn
    melody_octave: int = 6
    chords: int | None = None
    chords_octave: int = 5
    figure: str = "held"  # of the chords: held, broken, or stabs
    bass: int | None = None
    drums: bool = False
    lowest_melody: int = 0  # a melody that goes lower is lifted by an octave: where the instrument has no notes


STYLES = {
    "piano": Style(melody=(0,), chords=0, chords_octave=4, figure="broken"),
    "music box": Style(melody=(10,), melody_octave=6, chords=10, chords_octave=5, figure="broken"),
    "strings": Style(melody=(48,), chords=48, chords_octave=5, bass=48),
    "flute": Style(melody=(73,), melody_octave=6, chords=89, chords_octave=5, lowest_melody=60),
    "guitar": Style(melody=(), chords=25, chords_octave=4, figure="broken", bass=25),
    "groove": Style(bass=33, drums=True),
    "brass": Style(melody=(56,), melody_octave=5, chords=61, chords_octave=4, figure="stabs", bass=58, lowest_melody=54),
    "organ": Style(melody=(19,), melody_octave=6, chords=19, chords_octave=5, bass=19),
}


@dataclass(frozen=True)
class Note:
    start: float  # seconds
    length: float  # seconds
    channel: int
    pitch: int  # MIDI
    velocity: int  # 1 to 127


@dataclass(frozen=True)
class Piece:
    seed: int
    style: str
    tonic: str
    mode: str
    tempo: str  # a key of TEMPI
    bpm: int
    density: str
    programs: dict[int, int]  # General MIDI program of each channel but the drums'
    notes: tuple[Note, ...]  # by start; the last ones end at SECONDS at the latest


def compose(seed: int, style: str | None = None) -> Piece:
    """The piece of a seed; styles follow each other, seed modulo eight, unless one is named."""
    style = list(STYLES)[seed % len(STYLES)] if style is None else style
    rng = np.random.default_rng([seed, list(STYLES).index(style)])
    mode, tonic, tempo = _draw(rng, tuple(SCALES)), _draw(rng, tuple(TONICS)), _draw(rng, tuple(TEMPI))
    density = _draw(rng, DENSITIES)
    bpm = int(rng.integers(TEMPI[tempo][0], TEMPI[tempo][1] + 1))
    score = _Score(rng, STYLES[style], mode, TONICS[tonic], bpm, density)
    return Piece(seed, style, tonic, mode, tempo, bpm, density, score.programs, tuple(score.played()))


def _draw(rng: np.random.Generator, choices: tuple) -> str:
    return choices[int(rng.integers(len(choices)))]


class _Score:
    """The notes of one piece while it is written, in beats."""

    def __init__(self, rng: np.random.Generator, style: Style, mode: str, tonic: int, bpm: int, density: str) -> None:
        self.rng, self.style, self.scale, self.tonic = rng, style, SCALES[mode], tonic
        self.beat, self.busy = 60 / bpm, density == "busy"
        self.notes: list[Note] = []
        self.programs: dict[int, int] = {}
        bars = int(np.ceil(SECONDS / self.beat / 4))
        chords = PROGRESSIONS[mode][int(rng.integers(len(PROGRESSIONS[mode])))]
        self.chords = [chords[bar % 4] for bar in range(bars)]
        if style.chords is not None:
            self.programs[0] = style.chords
            getattr(self, f"_{style.figure}")()
        if style.melody:
            self.programs[1] = style.melody[int(rng.integers(len(style.melody)))]
            self._melody(RHYTHMS[density])
        if style.bass is not None:
            self.programs[2] = style.bass
            self._bass()
        if style.drums:
            self._drums()

    def played(self) -> list[Note]:
        """Nothing sounds beyond the end of the piece."""
        inside = (note for note in self.notes if note.start < SECONDS - 0.05)
        cut = (Note(n.start, min(n.length, SECONDS - n.start), n.channel, n.pitch, n.velocity) for n in inside)
        return sorted(cut, key=lambda note: (note.start, note.channel, note.pitch))

    def _pitch(self, degree: int, octave: int) -> int:
        return 12 * octave + self.tonic + self.scale[degree % 7] + 12 * (degree // 7)

    def _triad(self, chord: int, octave: int) -> list[int]:
        """Its three notes in the inversion that lies within an octave of the tonic's."""
        return sorted(12 * octave + (self.tonic + self.scale[(chord + step) % 7]) % 12 for step in (0, 2, 4))

    def _add(self, beat: float, beats: float, channel: int, pitch: int, velocity: int) -> None:
        loud = int(np.clip(velocity + self.rng.integers(-6, 7), 1, 127))
        self.notes.append(Note(beat * self.beat, beats * self.beat, channel, pitch, loud))

    def _held(self) -> None:
        step = 2 if self.busy else 4
        for bar, chord in enumerate(self.chords):
            for beat in range(0, 4, step):
                for pitch in self._triad(chord, self.style.chords_octave):
                    self._add(4 * bar + beat, step * 0.97, 0, pitch, 62)

    def _broken(self) -> None:
        """Up and down the chord, in eighths or quarters."""
        length = 0.5 if self.busy else 1.0
        order = ((0, 1, 2, 3, 2, 1), (0, 2, 1, 2), (0, 1, 2, 3))[int(self.rng.integers(3))]
        for bar, chord in enumerate(self.chords):
            low, middle, high = self._triad(chord, self.style.chords_octave)
            tones = (low, middle, high, low + 12)
            for place in range(int(4 / length)):
                self._add(4 * bar + place * length, length * 1.6, 0, tones[order[place % len(order)]], 72)

    def _stabs(self) -> None:
        beats = (0, 1.5, 2, 3.5) if self.busy else (0, 2)
        for bar, chord in enumerate(self.chords):
            for beat in beats:
                for pitch in self._triad(chord, self.style.chords_octave):
                    self._add(4 * bar + beat, 0.6 if self.busy else 1.5, 0, pitch, 84)

    def _melody(self, rhythms: tuple[tuple[float, ...], ...]) -> None:
        motifs = [
            [(float(length), int(self.rng.integers(-2, 3))) for length in rhythms[int(self.rng.integers(len(rhythms)))]] for _ in "AB"
        ]
        degree = int(self.rng.integers(0, 5))
        for bar, chord in enumerate(self.chords):
            beat = 4.0 * bar
            for place, (length, step) in enumerate(motifs[bar // 2 % 4 == 2]):
                degree += step
                if place == 0:  # the nearest note of the chord
                    degree = min((chord + 7 * up + third for up in (-1, 0, 1) for third in (0, 2, 4)), key=lambda d: abs(d - degree))
                degree = degree - 7 if degree > 8 else degree + 7 if degree < -3 else degree
                pitch = self._pitch(degree, self.style.melody_octave)
                self._add(beat, length * 0.95, 1, pitch + 12 * (pitch < self.style.lowest_melody), 96)
                beat += length

    def _bass(self) -> None:
        octave = 3
        patterns = ((0, 1.5, 2, 3), (0, 0.5, 1.5, 2, 2.5, 3.5), (0, 1, 2, 3)) if self.busy or self.style.drums else ((0,), (0, 2))
        starts = patterns[int(self.rng.integers(len(patterns)))]
        steps = [0, *(int(self.rng.choice((0, 0, 4, 2))) for _ in starts[1:])]
        for bar, chord in enumerate(self.chords):
            root = 12 * octave + (self.tonic + self.scale[chord]) % 12
            for beat, end, step in zip(starts, (*starts[1:], 4), steps, strict=True):
                rise = (self.scale[(chord + step) % 7] - self.scale[chord]) % 12
                self._add(4 * bar + beat, (end - beat) * 0.92, 2, root + rise, 92)

    def _drums(self) -> None:
        kick, snare, hat = 36, 38, 42
        kicks = ((0, 2), (0, 1.5, 2.5), (0, 2, 2.5))[int(self.rng.integers(3))]
        for bar in range(len(self.chords)):
            for beat in kicks:
                self._add(4 * bar + beat, 0.4, DRUMS, kick, 112)
            for beat in (1, 3):
                self._add(4 * bar + beat, 0.4, DRUMS, snare, 100)
            for beat in np.arange(0, 4, 0.5 if self.busy else 1.0):
                self._add(4 * bar + float(beat), 0.2, DRUMS, hat, 74)
