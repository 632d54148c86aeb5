"""Texts as editors and shells write them, and paths as people type them: read as they were meant, or refused where they cannot be."""

import codecs
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import musiclm_deploy as md
from musiclm_deploy.runtime.user_files import decode_text, expanded, read_text

TEXT = "caf\u00e9 \U0001f3b7\n{}\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_encodings_are_told_by_their_mark(encoding: str, tmp_path: Path) -> None:
    """Fault: what `>` of PowerShell writes is no text, or its mark is a character of it."""
    (tmp_path / "a.json").write_bytes(TEXT.encode(encoding))
    assert read_text(tmp_path / "a.json") == TEXT


@pytest.mark.parametrize(("mark", "codec"), [(codecs.BOM_UTF16_BE, "utf-16-be"), (codecs.BOM_UTF32_BE, "utf-32-be")])
def test_the_other_order_of_bytes(mark: bytes, codec: str) -> None:
    """Fault: halves of characters are read the wrong way round."""
    assert decode_text(mark + TEXT.encode(codec), "a") == TEXT


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("caf\u00e9".encode("latin-1"), "a.csv, line 1: byte 0xe9 is not UTF-8. It stands at position 3. Save the text as UTF-8."),
        (codecs.BOM_UTF8 + b"a\r\nb\rc\xff", "a.csv, line 3: byte 0xff is not UTF-8. It stands at position 9. Save the text as UTF-8."),
        ("a\nbc".encode("utf-16")[:-1], "a.csv, line 2: byte 0x63 is not UTF-16. It stands at position 8. Save the text as UTF-8."),
        ("a\nb".encode("utf-16-be"), "a.csv, line 1: it holds zero bytes, as UTF-16 without its mark does. Save the text as UTF-8."),
        (b"a\nb\0", "a.csv, line 2: it holds zero bytes, as UTF-16 without its mark does. Save the text as UTF-8."),
    ],
)
def test_what_is_no_text_is_refused_where_it_is_none(data: bytes, message: str) -> None:
    """Fault: a UnicodeDecodeError that names no file; or a line and a position that are another's."""
    with pytest.raises(ValueError) as caught:
        decode_text(data, "a.csv")
    assert str(caught.value) == message


def test_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault: `--trace-cache=~/traces` makes a folder called ~ in the current one."""
    monkeypatch.setenv("HOME", "/home/me")
    assert expanded("~/a") == expanded(Path("~/a")) == Path("/home/me/a")
    for path in ("a/~", "/~/a", "~nobody-of-this-name/a"):
        assert expanded(path) == Path(path)


def test_the_home_folder_in_every_path_of_python(music: Any, mel_kmeans: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault: `~` is the home folder for a bundle, and a folder of that name for a sound, a tokenizer or the doctor."""
    monkeypatch.setenv("HOME", str(tmp_path))
    soundfile.write(tmp_path / "a.wav", np.sin(np.arange(8000) / 8) / 2, 16000)
    np.testing.assert_array_equal(music.embed_audio("~/a.wav"), music.embed_audio(tmp_path / "a.wav"))
    mel_kmeans.save("~/mel.pt")
    mel_kmeans.load("~/mel.pt")
    (file,) = md.diagnose("~/mel.pt").files
    assert (file.path, file.kind) == (str(tmp_path / "mel.pt"), "semantic-features")


def test_paths_of_bytes_and_what_is_no_path() -> None:
    """Fault: a TypeError of the standard library for a path of bytes, as os.scandir gives it, or for a number."""
    assert expanded(b"a/\xff") == Path("a/\udcff")
    for given in (5, None, ["a"]):
        with pytest.raises(ValueError, match=f"a path must be a str or a pathlib.Path, got {type(given).__name__}"):
            expanded(given)  # type: ignore[arg-type]
