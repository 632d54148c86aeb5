"""The tokenizer against x-clip's own encoder, which MuLaN was trained with: equal ids on any text, before and after saving."""

import html
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from musiclm_deploy.model import text_transformer
from musiclm_deploy.model.text_transformer import clip_merges_path
from musiclm_deploy.model.upstream import load_upstream
from musiclm_deploy.runtime.tokenizer import ClipTokenizer

load_upstream()
from x_clip.tokenizer import tokenizer as upstream  # noqa: E402 (x-clip imports only after load_upstream)

NASTY = [
    "the crystalline sounds of the piano in a ballroom",
    "I'LL, we'Re, it'S; don't '\u017f it'\u017f",  # the long s matches 's when case is ignored, but is not an s
    "!?;! a!b!; !!! !",
    "<|startoftext|>x<|ENDOFTEXT|> !!<|endoftext|> <|\u017ftartoftext|> <|endoftext|",
    "<b> &amp;lt; &amp;amp;amp;",  # with a "<" in the text ftfy leaves the entities alone
    "&amp;lt;b&amp;gt; &amp;amp;amp; &nbsp; &#233; &#xD800; &notanentity;",
    "caf\u00e9 cafe\u0301 \ufb01 \u0149 \u1e9e \u0130stanbul \u0131",
    "\u0391\u03a3 \u0391\u03a3. \u039f\u0394\u03a5\u03a3\u03a3\u0395\u03a5\u03a3",  # sigma at the end of a word has a lower case of its own
    "🎹🎸 👩‍👩‍👧 🇫🇷 ❤️",
    "שלום עולם مرحبا \u202eright to left\u202c",
    "\x1c\x85 a\x00b\u200bc\ufeff\x07 \u2028\u3000d\r\n\te",
    "ǅ Ⅷ ½ ٣ 1234567890 x² ㎏",
    "日本語の音楽 한국어 ไทย हिन्दी",
    "\ud800x \udfff",
    "â€œmojibakeâ€\x9d schÃ¶n",
    "a" * 900,
    "ab!" * 150 + "c" * 99,
]
PIECES = [
    "'s",
    "'\u017f",
    "'LL",
    "<|startoftext|>",
    "<|endoftext|>",
    "|>",
    "&amp;",
    "&#x",
    "!",
    "é",
    "e\u0301",
    "Σ",
    "İ",
    " ",
    "\t",
    "½",
    "7",
]
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=()), max_size=40),  # surrogates too
    st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=3))).map("".join),
    st.text("abcdefghijklmnopqrstuvwxyz'! .", max_size=60),
    st.text(max_size=20).map(html.escape),
)


@pytest.fixture(scope="module")
def tokenizer() -> ClipTokenizer:
    return ClipTokenizer.from_merges(clip_merges_path())


@pytest.fixture(scope="module")
def saved(tokenizer: ClipTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "tokenizer.json"
    tokenizer.save(path)
    return path


@pytest.fixture(scope="module")
def reloaded(saved: Path) -> ClipTokenizer:
    return ClipTokenizer.from_file(saved)


@pytest.mark.parametrize("text", NASTY, ids=range(len(NASTY)))
def test_nasty_texts_get_upstream_ids(tokenizer: ClipTokenizer, reloaded: ClipTokenizer, text: str) -> None:
    """Case, entities, normal forms, special tokens and bytes that a slightly different pipeline gets wrong."""
    expected = upstream.encode(text)
    assert expected, "a text without tokens compares nothing"
    assert tokenizer.encode(text) == expected
    assert reloaded.encode(text) == expected


@settings(max_examples=1000, deadline=None, derandomize=True, database=None)
@given(TEXTS)
def test_any_text_gets_upstream_ids(reloaded: ClipTokenizer, text: str) -> None:
    """A character class, a case rule or a merge order that differs from upstream's anywhere in Unicode."""
    assert reloaded.encode(text) == upstream.encode(text)


def test_other_hosts_read_the_saved_file(saved: Path) -> None:
    """A tokenizer.json that only this class can use: plain texts must get the same ids from the Hugging Face library alone."""
    host = Tokenizer.from_file(str(saved))
    for text in ["Lo-fi  hip hop beats, 90 BPM!", "it's a Café;\n they'LL dance", "<|STARTOFTEXT|> drums <|endoftext|>", "日本語の音楽 🎹"]:
        assert host.encode(text).ids == upstream.encode(text)


def test_a_batch_is_padded_and_masked_as_upstream(tokenizer: ClipTokenizer) -> None:
    """A mask by length: the token "!" inside a word has upstream's padding id 0, and the text tower never saw it."""
    texts = ["wow!;! drums", "a slow piano ballad with strings"]
    expected = upstream.tokenize(texts).numpy()
    input_ids, attention_mask = tokenizer.encode_batch(texts, max_tokens=256)
    assert input_ids.dtype == attention_mask.dtype == np.int64
    np.testing.assert_array_equal(input_ids, expected)
    np.testing.assert_array_equal(attention_mask, expected != 0)
    length = len(tokenizer.encode(texts[0]))
    assert 0 in input_ids[0, :length] and length < input_ids.shape[1], "the case must hold both a token 0 and padding"


def test_the_longest_text_fits_exactly(tokenizer: ClipTokenizer) -> None:
    """An off-by-one at the capacity."""
    assert tokenizer.encode_batch(["one two three"], max_tokens=3)[0].shape == (1, 3)
    with pytest.raises(ValueError, match="4 tokens is longer than the 3"):
        tokenizer.encode_batch(["fine", "one two three four"], max_tokens=3)


@pytest.mark.parametrize(
    "texts, message",
    [
        ([""], "holds no token"),
        (["fine", " \n&nbsp;"], "holds no token"),
        ([None], "NoneType"),
        ([b"x"], "bytes"),
        ("x", "list"),
        ([], "list"),
    ],
)
def test_what_is_no_text_is_refused(tokenizer: ClipTokenizer, texts: Any, message: str) -> None:
    """A silent empty row, or a string taken for a list of letters."""
    with pytest.raises(ValueError, match=message):
        tokenizer.encode_batch(texts, max_tokens=256)


def _spoil(saved: Path, **model: Any) -> str:
    tokenizer = json.loads(saved.read_text(encoding="utf-8"))
    tokenizer["model"] |= model
    return json.dumps(tokenizer)


@pytest.mark.parametrize(
    "case, message",
    [
        ("not JSON", "JSONDecodeError"),
        ("nested", "RecursionError|too deeply"),
        ("no model", "KeyError"),
        ("a list", "TypeError"),
        ("not BPE", "not a BPE"),
        ("no bytes", "lacks '!'"),
        ("fraction", "whole numbers"),
        ("twice", "not the numbers from 0"),
        ("gap", "not the numbers from 0"),
        ("unknown merge", "the merge .* lacks"),
        ("three parts", "too many values"),
        ("number merge", "TypeError"),
        ("nested merge", "two tokens"),
    ],
)
def test_a_hostile_file_is_refused(saved: Path, tokenizer: ClipTokenizer, tmp_path: Path, case: str, message: str) -> None:
    """Every wrong file must end in a ValueError that names it: not in a crash, nor in a tokenizer that fails on some text later."""
    vocabulary = tokenizer.vocabulary
    content = {
        "not JSON": lambda: "{",
        "nested": lambda: "[" * 200_000,
        "no model": lambda: "{}",
        "a list": lambda: "[]",
        "not BPE": lambda: _spoil(saved, type="WordPiece"),
        "no bytes": lambda: _spoil(saved, vocab={"a": 0}, merges=[]),
        "fraction": lambda: _spoil(saved, vocab=vocabulary | {"!": 0.0}),
        "twice": lambda: _spoil(saved, vocab=vocabulary | {"!": 1}),
        "gap": lambda: _spoil(saved, vocab=vocabulary | {"new": 10**6}),
        "unknown merge": lambda: _spoil(saved, merges=[["no", "such token"]]),
        "three parts": lambda: _spoil(saved, merges=["a b c"]),
        "number merge": lambda: _spoil(saved, merges=[3]),
        "nested merge": lambda: _spoil(saved, merges=[[["a"], "b"]]),
    }[case]()
    path = tmp_path / "tokenizer.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        ClipTokenizer.from_file(path)
    assert str(path) in str(caught.value)


def test_an_oversized_file_is_not_read(tmp_path: Path) -> None:
    """A bundle that fills the memory before anything is checked."""
    path = tmp_path / "tokenizer.json"
    with path.open("wb") as file:
        file.truncate(1 << 30)  # sparse: takes no space
    with pytest.raises(ValueError, match="1073741824 bytes"):
        ClipTokenizer.from_file(path)


def test_patterns_in_a_file_are_not_used(saved: Path, tokenizer: ClipTokenizer, tmp_path: Path) -> None:
    """A bundle whose own regular expression never ends, or which splits texts in another way."""
    content = json.loads(saved.read_text(encoding="utf-8"))
    content["pre_tokenizer"] = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Removed", "invert": True}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    text = "a" * 60 + "!"
    assert ClipTokenizer.from_file(path).encode(text) == tokenizer.encode(text)


def test_the_vocabulary_is_found_without_importing_x_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing x-clip needs torchvision; an absent x-clip must say what to install."""
    for name in [name for name in sys.modules if name.split(".")[0] == "x_clip"]:
        monkeypatch.delitem(sys.modules, name)
    assert clip_merges_path().stat().st_size > 1_000_000
    assert "x_clip" not in sys.modules
    monkeypatch.setattr(text_transformer, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps x-clip"):
        clip_merges_path()


def test_the_tokenizer_needs_no_torch(saved: Path) -> None:
    """Whoever only runs a bundle has neither torch nor x-clip."""
    code = (
        "import sys; from musiclm_deploy.runtime.tokenizer import ClipTokenizer; "
        f"assert ClipTokenizer.from_file({str(saved)!r}).encode('a piano') == {upstream.encode('a piano')}; "
        "assert not {'torch', 'x_clip', 'transformers', 'onnx'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
