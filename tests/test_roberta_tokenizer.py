"""RoBERTa's tokenizer against transformers' `RobertaTokenizer`, and its canonical file."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.clap import ROBERTA
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from musiclm_deploy.model.upstream import import_transformers
from musiclm_deploy.runtime.roberta_tokenizer import RobertaTokenizer
from musiclm_deploy.runtime.tokenizer_file import FileTokenizer

CAPTIONS = ["calm piano in a ballroom", "house song, 4 on the floor, rhythm", "it's 120 BPM; don't stop — café 音楽 🎵🎶", " two\ttabs "]
_OTHERS = "\u2003 \u200b \ufeff \u0301 é e\u0301 ß \u017f İ ﬁ Ω 音 楽 あ 한 \u0627 न я 🎵 🎸 👩‍🎤 🇫🇷 𝄞 \U0010ffff \x00 \x7f ½"
SIGNS = [
    *"abcdefghijklmnopqrstuvwxyzABCXYZ0123456789 .,;:!?'\"()-_/&%$#@*+=<>[]{}|~^`\\",
    *_OTHERS.split(" "),
    *["  ", "\n", "\t", "\r\n", "'s", "'LL", "don't", "'ve", " piano", "guitar", "drum", "Ġ", "Ċ"],
    *["<s>", "</s>", "<pad>", "<unk>", "<mask>", " <mask>", "<mask> ", "  <mask>", "<MASK>", "<s", "</s"],
    *(" " * (index % 2) + word for index, word in enumerate(" ".join(CAPTIONS).split(" "))),
]


def transformers_own(folder: Path):
    """Return transformers' tokenizer, <mask> as in the files of roberta-base: it swallows the white space before it."""
    package = import_transformers()
    mask = package.AddedToken("<mask>", lstrip=True, rstrip=False, normalized=False, special=True)
    return package.RobertaTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), mask_token=mask)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Files of a vocabulary of 700 tokens, trained here."""
    folder = tmp_path_factory.mktemp("roberta")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, initial_alphabet=alphabet, show_progress=False)  # pyright: ignore
    tokenizer.train_from_iterator([*CAPTIONS, *("".join(SIGNS[i:] + SIGNS[:i]) for i in range(0, len(SIGNS), 3))], trainer)
    tokenizer.model.save(str(folder))
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    (folder / "vocab.json").write_text(json.dumps(vocabulary | {"<mask>": len(vocabulary)}), encoding="utf-8")
    return folder


def test_equal_on_random_texts(files: Path) -> None:
    """Fault: any rule of RoBERTa's that is only nearly kept, such as the white space that <mask> swallows."""
    theirs = transformers_own(files)
    mine = RobertaTokenizer.from_files(files)
    draw = random.Random(0)
    texts = ["".join(draw.choices(SIGNS, k=draw.randint(0, 24))) for _ in range(40_000)]
    expected = theirs(texts, add_special_tokens=True)["input_ids"]
    wrong = [(text, ids, found) for text, ids in zip(texts, expected, strict=True) if (found := mine.encode(text)) != ids]
    assert not wrong, wrong[:3]
    assert sum(len(set(ids)) for ids in expected) / len(texts) > 8 and len({token for ids in expected for token in ids}) > 240
    assert mine.encode("") == [0, 2] and mine.pad_id == 1


def test_golden_texts() -> None:
    """Fault: ids other than those of CLAP's training, which pads and cuts to 77."""
    tokenizer = RobertaTokenizer.from_files(ROBERTA)
    with np.load(ROBERTA / "golden.npz") as file:
        for text, ids, mask in zip(file["texts"].tolist(), file["ids"], file["mask"], strict=True):
            found, count = tokenizer.encode(text), int(mask.sum())
            assert found[: count - 1] == ids[: count - 1].tolist() and (len(found) > 77 or found == ids[:count].tolist())
    assert tokenizer.max_tokens == 77


def test_every_form_gives_one_file(files: Path, tmp_path: Path) -> None:
    """Fault: a layout that depends on the form of the user's files; readers in other languages know one."""
    theirs = transformers_own(files)
    theirs.save_pretrained(tmp_path / "saved")
    shutil.copy(files / "vocab.json", tmp_path)
    (tmp_path / "merges.txt").write_bytes((files / "merges.txt").read_bytes().replace(b"\n", b"\r\n"))
    forms = (files, files / "merges.txt", tmp_path, tmp_path / "saved" / "tokenizer.json")
    made = [RobertaTokenizer.from_files(path).content for path in forms]
    canonical = tmp_path / "tokenizer.json"
    canonical.write_text(made[0], encoding="utf-8")
    made += [RobertaTokenizer.from_files(canonical).content]
    assert len(set(made)) == 1
    described = json.loads(made[0])
    keys = "version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder", "model"
    assert tuple(described) == keys
    assert list(described["model"]["vocab"].values()) == list(range(len(described["model"]["vocab"])))
    assert [token["content"] for token in described["added_tokens"] if token["lstrip"]] == ["<mask>"]
    assert described == json.loads(Tokenizer.from_str(made[0]).to_str())  # the package's own words
    read = FileTokenizer.from_file(canonical, pad_id=1)  # what a bundle's reader does
    assert read.encode("calm <mask> piano") == RobertaTokenizer.from_files(files).encode("calm <mask> piano")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda saved: saved["model"]["vocab"].pop("a"), "the vocabulary lacks 'a'"),
        (lambda saved: saved["model"]["vocab"].update({"zz": 9999}), "token ids are not the numbers from 0 to"),
        (lambda saved: saved["model"]["merges"].append(["q", "zzz"]), r"the merge \('q', 'zzz'\) uses or makes a token"),
        (lambda saved: saved.update(normalizer={"type": "Lowercase"}), "in another way than RoBERTa's"),
        (lambda saved: saved["pre_tokenizer"].update(add_prefix_space=True), "in another way than RoBERTa's"),
        (lambda saved: saved["model"].update(type="WordPiece"), "expected a byte-level BPE"),
        (lambda saved: saved["added_tokens"].append(saved["added_tokens"][0] | {"content": "<x>"}), "adds the tokens '<x>'"),
        (lambda saved: saved.pop("model"), "no tokenizer.json"),
    ],
)
def test_other_tokenizers_are_refused(change, message: str, tmp_path: Path) -> None:
    """Fault: a file of another tokenizer that is taken for RoBERTa's, as GPT-2's or BERT's."""
    saved = json.loads(RobertaTokenizer.from_files(ROBERTA).content)
    change(saved)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(saved))
    with pytest.raises(ValueError, match=message) as refused:
        RobertaTokenizer.from_files(path)
    assert "tokenizer.json: " in str(refused.value) and "vocab.json and merges.txt in one folder" in str(refused.value)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").touch()
    with pytest.raises(ValueError, match=r"this folder holds vocab.txt. RoBERTa's tokenizer is vocab.json and merges.txt"):
        RobertaTokenizer.from_files(tmp_path)
    with pytest.raises(ValueError, match="no such file"):
        RobertaTokenizer.from_files(tmp_path / "vocab.json")
