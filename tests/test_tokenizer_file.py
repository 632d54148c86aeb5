"""Tokenizers of other trainings than CLIP's: the ids of the file, as the package that wrote it gives them, or a refusal in words."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from musiclm_deploy.runtime.tokenizer_file import FileTokenizer

CORPUS = ["calm piano in a ballroom", "Brass band; lively, 90 BPM!", "a café's lo-fi beats", "dark electronic music with synthesizers"] * 3
TEXTS = [*CORPUS[:4], "Pianos  &amp; ÉLÉGIE, naïve?!", "🎹🎸 ポップ", "[SEP] </s> calm <|endoftext|> band", "x" * 150, "\tpiano\n\nband "]


def word_piece() -> Tokenizer:
    """BERT's kind: lower case, accents dropped, "##" inside words, [CLS] and [SEP] around."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=120, special_tokens=special, show_progress=False))
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return tokenizer


def byte_level(special: list[str], end: str, start: str | None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.decoder = decoders.ByteLevel()
    if start is None:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    else:
        around = (end, special.index(end)), (start, special.index(start))
        tokenizer.post_processor = processors.RobertaProcessing(*around, trim_offsets=True, add_prefix_space=False)
    return tokenizer


def unigram() -> Tokenizer:
    """T5's kind: pieces that begin with "▁", </s> behind."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=90, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "WordPiece, BERT": word_piece,
    "BPE, RoBERTa": lambda: byte_level(["<s>", "<pad>", "</s>", "<unk>"], "</s>", "<s>"),
    "BPE, GPT-2": lambda: byte_level(["<|endoftext|>"], "<|endoftext|>", None),
    "Unigram, T5": unigram,
}


@pytest.fixture(scope="module")
def made() -> dict[str, Tokenizer]:
    return {kind: make() for kind, make in KINDS.items()}


def save(tokenizer: Tokenizer, folder: Path) -> Path:
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_the_package(made, kind, tmp_path):
    """Fault: any step of the file's own that is left out: case, accents, white space, special tokens around a text or inside it."""
    path = save(made[kind], tmp_path)
    read, folder = FileTokenizer.from_file(path), FileTokenizer.from_file(tmp_path)
    for text in TEXTS:
        expected = Tokenizer.from_file(str(path)).encode(text).ids
        assert read.encode(text) == folder.encode(text) == expected, text
    assert read.tokens == made[kind].get_vocab_size() and read.last_token == made[kind].id_to_token(read.tokens - 1)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_encodings_of_editors(made, encoding, tmp_path):
    """Fault: the one file of JSON that has to be in UTF-8 without a mark; or a mark that goes into the bundle."""
    content = made["WordPiece, BERT"].to_str()
    (tmp_path / "tokenizer.json").write_bytes(content.encode(encoding))
    assert FileTokenizer.from_file(tmp_path).content == content


def test_ids_of_bert_by_hand(tmp_path):
    """Fault: a parity with the package alone would hold if both left out the same."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "calm", "piano", "##s", "cafe", ";"]
    tokenizer = word_piece()
    tokenizer.model = models.WordPiece({token: index for index, token in enumerate(vocabulary)}, unk_token="[UNK]")
    read = FileTokenizer.from_file(save(tokenizer, tmp_path))
    assert read.encode("Calm PIANOS; Café 🎹") == [2, 4, 5, 6, 8, 7, 1, 3]
    assert read.encode_words("Calm PIANOS; Café") == [("Calm", [4]), ("PIANOS", [5, 6]), (";", [8]), ("Café", [7])]
    assert read.around == ["[CLS]", "[SEP]"] and read.padding_id == 0


@pytest.mark.parametrize(
    ("kind", "words", "behind"), [("BPE, GPT-2", ["calm", "piano", ",", "slow"], []), ("Unigram, T5", ["calm", "piano,", "slow"], [1])]
)
def test_words_are_those_of_the_text(made, kind, words, behind, tmp_path):
    """Fault: a warning of unknown words that shows pieces, or white space, in place of words."""
    read = FileTokenizer.from_file(save(made[kind], tmp_path))
    found = read.encode_words("calm piano, slow")
    assert [word for word, _ in found] == words
    assert read.encode("calm piano, slow") == [index for _, ids in found for index in ids] + behind


def test_a_batch_is_padded_and_masked(made, tmp_path):
    """Fault: rows padded with CLIP's 0 where the model masks another id, and so reads its padding."""
    path = save(made["BPE, RoBERTa"], tmp_path)
    read = FileTokenizer.from_file(path, pad_id=1)
    texts = ["calm", "calm piano in a ballroom"]
    ids, mask = read.encode_batch(texts, 64)
    rows = [Tokenizer.from_file(str(path)).encode(text).ids for text in texts]
    expected = np.full((2, max(map(len, rows))), 1)
    for row, own in zip(expected, rows, strict=True):
        row[: len(own)] = own
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_array_equal(mask, expected != 1)
    assert rows[0][0] == 0 and mask[0, 0] == 1, "the case must hold the id 0, which is a token here"


def test_long_texts_are_refused_not_cut(made, tmp_path):
    """Fault: the end of a prompt is lost without a word, since transformers writes into the file how it last cut a text."""
    tokenizer = Tokenizer.from_str(made["WordPiece, BERT"].to_str())
    tokenizer.enable_truncation(6)
    read = FileTokenizer.from_file(save(tokenizer, tmp_path))
    assert read.max_tokens == 6
    assert len(read.encode(CORPUS[0])) > 6
    with pytest.raises(ValueError, match=r"tokens is longer than the 6 MuLaN takes: shorten 'calm piano in a ballroom'"):
        read.encode_batch([CORPUS[0]], 6)
    for text in ("", " \n", "\u200b"):
        with pytest.raises(ValueError, match="holds no token"):
            read.encode_batch([text], 6)


def test_padding_of_a_fixed_length_is_kept(made, tmp_path):
    """Fault: a training that padded every text in front had its tokens at other positions, which are embedded."""
    tokenizer = Tokenizer.from_str(made["WordPiece, BERT"].to_str())
    tokenizer.enable_padding(direction="left", pad_id=0, pad_token="[PAD]", length=16)
    read = FileTokenizer.from_file(save(tokenizer, tmp_path))
    ids, mask = read.encode_batch(["calm piano"], 16)
    assert ids[0].tolist() == tokenizer.encode("calm piano").ids and len(ids[0]) == 16
    np.testing.assert_array_equal(mask, ids != 0)
    assert (read.padded_to, read.around, [word for word, _ in read.encode_words("calm")]) == (16, ["[CLS]", "[SEP]"], ["calm"])


WRONG: dict[str, tuple[str, Any, str]] = {
    "none": ("tokenizer.json", None, "there is no such file"),
    "words": ("vocab.txt", "[PAD]\n[UNK]\n[CLS]\ncalm\n", "not JSON (Expecting value: line 1 column 2 (char 1)), but a list of tokens"),
    "merges": ("merges.txt", "#version: 0.2\nc a\nl m\n", "not JSON (Expecting value: line 1 column 1 (char 0)), but a list of merges"),
    "slow": ("vocab.json", {"calm": 0, "piano": 1}, "no tokenizer, but a vocabulary alone, the vocab.json of a slow tokenizer"),
    "config": ("tokenizer_config.json", {"tokenizer_class": "BertTokenizer"}, "no tokenizer, but a tokenizer_config.json"),
    "model": ("config.json", {"model_type": "bert"}, "no tokenizer, but the config.json of a model"),
    "list": ("tokenizer.json", [1], "it is JSON, but no tokenizer: expected a tokenizer.json of the package tokenizers"),
    "half": ("tokenizer.json", '{"model": {', "it is not JSON"),
    "deep": ("tokenizer.json", "[" * 100_000, "it is not JSON"),
    "sentencepiece": ("spiece.model", b"\n\x0e\n\x05<pad>\x15\0\0\0\0\xff", "not text in UTF-8, but a SentencePiece model"),
    "latin-1": ("tokenizer.json", '{"a": "é"}'.encode("latin-1"), "it is not text in UTF-8: expected"),
    "utf-16": ("tokenizer.json", "{}".encode("utf-16-le"), "it is not text in UTF-8"),
    "kind": ("tokenizer.json", {"version": "1.0", "model": {"type": "Zip"}}, "the package tokenizers refuses it: data did not match"),
    "empty": ("tokenizer.json", {"version": "1.0", "model": {"type": "WordLevel", "vocab": {}, "unk_token": "x"}}, "vocabulary is empty"),
}


@pytest.mark.parametrize("case", WRONG)
def test_other_files_are_refused_in_words(case, tmp_path):
    """Fault: the files beside a tokenizer.json, which people give first, end in a message of Rust's."""
    name, content, words = WRONG[case]
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else (content if isinstance(content, str) else json.dumps(content)).encode())
    with pytest.raises(ValueError) as caught:
        FileTokenizer.from_file(path)
    assert str(caught.value).startswith(f"{path}: ") and words in str(caught.value)
    if case not in ("none", "kind"):
        assert 'AutoTokenizer.from_pretrained("...").save_pretrained("folder")' in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_encodings_with_their_mark(made, encoding, tmp_path):
    """Fault: the file that an editor or PowerShell saved again is called a binary one."""
    tokenizer = made["Unigram, T5"]
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizer.to_str(), encoding=encoding)
    assert FileTokenizer.from_file(path).encode("a café's beats") == tokenizer.encode("a café's beats").ids


def test_a_folder_without_the_file_says_what_it_has(tmp_path):
    """Fault: a folder of a slow tokenizer is refused without a word of what to do."""
    for name in ("vocab.txt", "tokenizer_config.json"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"this folder has no tokenizer\.json, but tokenizer_config\.json, vocab\.txt: expected"):
        FileTokenizer.from_file(tmp_path)


def test_a_pattern_without_end_is_an_error(tmp_path):
    """Fault: a file whose pattern backtracks for ever stops the program, or ends in an error that no `except Exception` sees."""
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "x": 1}, unk_token="x"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(a+)+$"), "removed", invert=True)
    read = FileTokenizer.from_file(save(tokenizer, tmp_path))
    with pytest.raises(ValueError, match="the package tokenizers refuses it"):
        read.encode("a" * 60 + "!")
    with pytest.raises(ValueError, match="a text must be a string, got bytes"):
        read.encode(b"x")  # type: ignore[arg-type]


def test_a_special_token_that_text_names(tmp_path):
    """Fault: AddedTokens beyond the model's vocabulary are not counted, and an id beyond MuLaN's table is looked up."""
    tokenizer = Tokenizer(models.WordLevel({"calm": 0, "x": 1}, unk_token="x"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken("<sep>", special=True), AddedToken("<PAD>", special=True)])
    read = FileTokenizer.from_file(save(tokenizer, tmp_path))
    assert (read.tokens, read.last_token, read.padding_id) == (4, "<PAD>", 3)
    assert read.encode_words("calm <sep> calm") == [("calm", [0]), ("<sep>", [2]), ("calm", [0])]


def test_ids_around_a_text_that_no_vocabulary_has(tmp_path):
    """Fault: a template of another tokenizer puts an id around every text that is beyond MuLaN's table, and nobody compares them."""
    tokenizer = Tokenizer(models.WordLevel({"calm": 0, "x": 1}, unk_token="x"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 7)])
    read = FileTokenizer.from_file(save(tokenizer, tmp_path))
    assert (read.tokens, read.last_token, read.encode("calm")) == (8, "<s>", [7, 0])
