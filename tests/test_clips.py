"""The folder of captioned clips: what is read, and that every fault of a table or a sound file is named with the file it is in."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from musiclm_deploy.model import ClipDataset
from musiclm_deploy.runtime.audio import resample


def tone(hz: float, seconds: float, rate: int) -> np.ndarray:
    return np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate, dtype=np.float32) * 0.5


def write(folder: Path, rows: list[tuple[str, Any]], table: str = "metadata.csv") -> Path:
    lines = ["file_name,text", *(f'{name},"{text}"' for name, text in rows)]
    if table.endswith(".jsonl"):
        lines = [json.dumps({"file_name": name, "text": text}) for name, text in rows]
    (folder / table).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A stereo file of 3 s at 12 kHz in a folder below, and one of 1.5 s at 8 kHz."""
    (tmp_path / "low").mkdir()
    soundfile.write(tmp_path / "low" / "a.flac", np.stack([tone(300, 3, 12000), tone(300, 3, 12000) * 0], axis=1), 12000, "PCM_24")
    soundfile.write(tmp_path / "b.wav", tone(500, 1.5, 8000), 8000, "FLOAT")
    return write(tmp_path, [("low/a.flac", "a low tone, on the left"), ("b.wav", "a tone"), ("b.wav", "ein Ton – höher")])


def test_clips_are_cut_mixed_and_resampled(folder: Path) -> None:
    """A wrong channel, rate or length, or a part of a file that is always the same."""
    clips = ClipDataset(folder, sample_hz=8000, seconds=2)
    assert len(clips) == 2
    starts = set()
    for seed in range(20):
        torch.manual_seed(seed)
        item = clips[0]
        assert item is not None
        wave, text = item
        assert wave.dtype == torch.float32 and wave.shape == (16000,) and text == "a low tone, on the left"
        spectrum = np.abs(np.fft.rfft(wave.numpy()))
        assert spectrum.argmax() == 600  # 300 Hz of 2 s
        assert np.abs(wave.numpy()[100:-100]).max() == pytest.approx(0.25, abs=0.01)  # a channel's and silence's mean, away from the cut
        starts.add(wave[0].item())
    assert len(starts) > 10
    texts = set()
    for seed in range(20):
        torch.manual_seed(seed)
        wave, text = clips[1]  # type: ignore[misc]
        texts.add(text)
        np.testing.assert_array_equal(wave, resample(tone(500, 1.5, 8000), 8000, 8000))  # shorter than two seconds: whole
    assert texts == {"a tone", "ein Ton – höher"}


def test_json_lines_hold_several_captions(folder: Path) -> None:
    """A list taken for its text."""
    (folder / "metadata.csv").unlink()
    write(folder, [("b.wav", ["one", "two"])], "metadata.jsonl")
    clips = ClipDataset(folder, sample_hz=8000)
    assert clips.clips == [("b.wav", ["one", "two"])]


def broken(folder: Path) -> dict[str, str]:
    """Files that cannot be used, and what their headers tell."""
    (folder / "text.wav").write_text("this is no sound")
    (folder / "empty.wav").write_bytes(b"")
    soundfile.write(folder / "short.wav", tone(500, 0.5, 8000), 8000)
    return {
        "gone.wav": "there is no such file",
        "text.wav": "not a sound file that libsndfile reads",
        "empty.wav": "not a sound file that libsndfile reads",
        "short.wav": "0.50 s, shorter than min_seconds = 1",
    }


def test_all_bad_files_are_named_together(folder: Path) -> None:
    """One fault at a time, over a folder of thousands."""
    faults = broken(folder)
    write(folder, [("b.wav", "fine"), *((name, "x") for name in faults)])
    with pytest.raises(ValueError) as caught:
        ClipDataset(folder, sample_hz=8000)
    for name, fault in faults.items():
        assert f"- {name}: {fault}" in str(caught.value)
    assert "b.wav" not in str(caught.value)


def test_bad_files_are_skipped_when_asked(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A training that stops for one file of many, or one that leaves files out without a word."""
    faults = broken(folder)
    write(folder, [("b.wav", "fine"), *((name, "x") for name in faults)])
    with caplog.at_level(logging.WARNING):
        clips = ClipDataset(folder, sample_hz=8000, corrupt="skip")
    assert [name for name, _ in clips.clips] == ["b.wav"]
    assert all(any(name in record.getMessage() for record in caplog.records) for name in faults)
    write(folder, [(name, "x") for name in faults])
    with pytest.raises(ValueError, match="none of its 4 files can be used"):
        ClipDataset(folder, sample_hz=8000, corrupt="skip")


@pytest.mark.parametrize("fault", ["cut short", "NaN"])
def test_damage_behind_the_header_is_found_on_reading(fault: str, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A clip of silence or NaN in place of an error."""
    path = folder / "b.wav"
    if fault == "NaN":
        wave = tone(500, 1.5, 8000)
        wave[5000] = np.nan
        soundfile.write(path, wave, 8000, "FLOAT")
    else:
        path = folder / "low" / "a.flac"
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    write(folder, [(str(path.relative_to(folder)), "x")])
    with pytest.raises(ValueError, match=rf"{path.name}: the (file is damaged|wave holds NaN)"):
        ClipDataset(folder, sample_hz=8000)[0]
    with caplog.at_level(logging.WARNING):
        assert ClipDataset(folder, sample_hz=8000, corrupt="skip")[0] is None
    assert path.name in caplog.text


@pytest.mark.parametrize(
    "rows, message",
    [
        (["file_name,text", "b.wav,"], "line 2: b.wav has an empty caption"),
        (["file_name,text", 'b.wav,"  "', ",x"], r"line 2: b.wav has an empty caption(.|\n)*line 3: no file_name"),
        (["file,caption", "b.wav,x"], "line 2: no file_name"),
        (["file_name,text"], "has no rows"),
        ([], "has no rows"),
        (["file_name,text", "b.wav,calm, slow, sad"], 'line 2: 4 fields, the header has 2. Put .* in it in quotes: "calm, slow, sad"'),
        (["file_name;text", "b.wav;calm; slow"], "line 2: 3 fields, the header has 2. Put a caption with ';' in it in quotes"),
        (["file_name,text,bpm", "b.wav,calm, slow,90"], "line 2: 4 fields, the header has 3"),
        (["file_name,text,bpm", "b.wav,calm, slow,"], "line 2: 4 fields, the header has 3"),
        (["file_name,text,,", "b.wav,calm, slow,"], 'line 2: 4 fields, the header has 2. Put .* in it in quotes: "calm, slow'),
        (["file_name,text", f"{'a caption ' * 30},b.wav"], r"a caption a caption .*: there is no such file|none of its 1 files"),
        (["b.wav,calm"], r"line 1: the columns are 'b.wav', 'calm', expected file_name and text, each once, in the first line"),
        (["file_name,text,Text", "b.wav,calm,sad"], "line 1: the columns are 'file_name', 'text', 'Text', expected"),
        (["file_name,text", "b.wav"], "line 2: b.wav has an empty caption"),
        (["file_name,text", "", 'b.wav,"calm', "low/a.flac,x"], r"line 3: not a row of a CSV file \(unexpected end of data\)"),
        (["file_name,text", 'b.wav,"calm', 'low/a.flac,"a low one"'], "line 2: not a row of a CSV file"),
        (
            ["file_name,text", 'b.wav,"calm', 'low/a.flac,low"'],
            "line 2: the caption of b.wav goes on to the line of low/a.flac. Close",
        ),
        (["file_name,text", "b.wav,calm\0"], "metadata.csv, line 2: it holds zero bytes"),
    ],
)
def test_bad_tables_are_refused(rows: list[str], message: str, folder: Path) -> None:
    """A caption of which a part is trained on, or nothing; columns of another name taken for no clips."""
    (folder / "metadata.csv").write_text("\n".join(rows), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        ClipDataset(folder, sample_hz=8000, corrupt="skip")


@pytest.mark.parametrize(
    ("rows", "captions"),
    [
        (["file_name;text", "b.wav;calm, slow"], ["calm, slow"]),
        (["file_name\ttext", "b.wav\tcalm, slow; sad"], ["calm, slow; sad"]),
        (["sep,File_Name, Text ", '1,b.wav, "calm, slow"'], ["calm, slow"]),
        (["file_name,text,,", "b.wav,calm,,", ",,,"], ["calm"]),
        (["text,file_name", '"a ""blue"" note",b.wav', 'the "blues",b.wav'], ['a "blue" note', 'the "blues"']),
        (["file_name,text", 'b.wav,"in two', 'lines"'], ["in two\nlines"]),
        (["file_name,text", 'b.wav,"a line', f'{"that is too long for a name " * 9}"'], [f"a line\n{'that is too long for a name ' * 9}"]),
        (["file_name,text,bpm,", "b.wav,calm,90,"], ["calm"]),
        (["file_name,text", ".\\b.wav,calm"], ["calm"]),
        (["file_name,text", "b.wav,caf\u00e9 \u2028 noir"], ["caf\u00e9 \u2028 noir"]),
    ],
)
@pytest.mark.parametrize(("ends", "encoding"), [("\n", "utf-8"), ("\r\n", "utf-16"), ("\r", "utf-8-sig")])
def test_tables_of_other_programs(rows: list[str], captions: list[str], ends: str, encoding: str, folder: Path) -> None:
    """Semicolons of Excel, its encodings and old line ends, quotes and spaces: no caption is another than was written."""
    (folder / "metadata.csv").write_bytes(ends.join(rows).encode(encoding))
    (clip,) = ClipDataset(folder, sample_hz=8000).clips
    assert (Path(clip[0]), clip[1]) == (Path("b.wav"), captions)


def test_another_encoding_is_named(folder: Path) -> None:
    """A UnicodeDecodeError that does not say which file it is about."""
    (folder / "metadata.csv").write_bytes("file_name,text\nb.wav,café\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"metadata\.csv, line 2: byte 0xe9 is not UTF-8\. It stands at position 24\. Save"):
        ClipDataset(folder, sample_hz=8000)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"file_name": "b.wav"}', "line 1: b.wav has an empty caption"),
        ('{"file_name": "b.wav", "text": []}', "line 1: b.wav has an empty caption"),
        ('{"file_name": "b.wav", "text": ["x", ""]}', "line 1: b.wav has an empty caption"),
        ('{"file_name": "b.wav", "text": ["x", 3]}', r"line 1: the caption of b.wav is \['x', 3\], expected a text or a list of texts"),
        ('{"file_name": "b.wav", "text": {"en": "x"}}', "line 1: the caption of b.wav is .*, expected a text or a list of texts"),
        ('{"file_name": "b.wav", "text": "x", "text": "y"}', "line 1: text twice"),
        ('["b.wav", "x"]', r'line 1: expected an object with file_name and text, got \["b.wav", "x"\]'),
        ('{"text": "x"}', "line 1: no file_name"),
    ],
)
def test_bad_lines_of_json_are_refused(row: str, message: str, folder: Path) -> None:
    """A caption that is lost without a word, the first of two among them."""
    (folder / "metadata.csv").unlink()
    (folder / "metadata.jsonl").write_text(f"{row}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=f"metadata.jsonl, {message}"):
        ClipDataset(folder, sample_hz=8000)


def test_one_table_is_expected(folder: Path) -> None:
    """Captions taken from one of two tables, or from none."""
    (folder / "metadata.jsonl").write_text("not json\n")
    with pytest.raises(ValueError, match="found 2"):
        ClipDataset(folder, sample_hz=8000)
    (folder / "metadata.csv").unlink()
    with pytest.raises(ValueError, match="line 1: not JSON"):
        ClipDataset(folder, sample_hz=8000)
    (folder / "metadata.jsonl").unlink()
    with pytest.raises(ValueError, match="found 0"):
        ClipDataset(folder, sample_hz=8000)


@pytest.mark.parametrize(
    "arguments", [dict(sample_hz=0), dict(sample_hz=8000, min_seconds=3, seconds=2), dict(sample_hz=8000, corrupt="x")]
)
def test_arguments_are_checked(arguments: dict[str, Any], folder: Path) -> None:
    """A setting that only fails after hours, in the middle of a batch."""
    with pytest.raises(ValueError, match="got"):
        ClipDataset(folder, **arguments)
