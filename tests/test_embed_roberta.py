"""libmusiclm reads RoBERTa's tokenizer as Python does: the same ids, the same latents, and other tokenizers refused by name."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support import embed

import musiclm_deploy as md
from musiclm_deploy.export.export import records_of
from musiclm_deploy.runtime.bundle import MANIFEST, Bundle

pytestmark = pytest.mark.skipif(
    bool(embed.MISSING), reason=f"libmusiclm is built with {', '.join(embed.MISSING)}, which this machine lacks"
)

TEXTS = ("calm piano", "Don't stop: 80s <mask>!", "<pad> é日本🎹", " ")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer.json in RoBERTa's layout, with which the library has been compared with the package tokenizers."""
    script, file = embed.SOURCE / "tests" / "compare_roberta.py", tmp_path_factory.mktemp("roberta") / "tokenizer.json"
    sizes = [f"--{name}={value}" for name, value in {"count": 3000, "files": 300, "merges": 1000, "keep": file}.items()]
    done = subprocess.run([sys.executable, script, embed.built() / "tokenize", *sizes], capture_output=True, text=True)
    assert not done.returncode, done.stdout[-3000:] + done.stderr[-3000:]
    return file


def bundle_with(tiny_bundle: Path, content: str, pad_id: int, folder: Path) -> Path:
    """Return a copy of the tiny bundle whose tokenizer.json is another one."""
    shutil.copytree(tiny_bundle, folder)
    manifest = Bundle.open(folder).manifest
    (folder / manifest.mulan.tokenizer).write_text(content, encoding="utf-8")
    (folder / MANIFEST).unlink()
    mulan = replace(manifest.mulan, tokenizer_from_file=True, pad_id=pad_id, trained_tokens=None)
    (folder / MANIFEST).write_text(replace(manifest, mulan=mulan, files=records_of(folder)).to_json(), encoding="utf-8")
    return folder


def test_a_bundle_with_robertas_tokenizer(tokenizer: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """Fault: other ids, a padding token that is not masked, or a text that one of the two refuses."""
    folder = bundle_with(tiny_bundle, tokenizer.read_text(encoding="utf-8"), 1, tmp_path / "bundle")
    model = embed.Model(embed.load(), folder)
    with md.load(folder, device="cpu", threads=1) as reference:
        latents = [model.embed_text(text) for text in TEXTS]
        assert [latent.tobytes() for latent in latents] == [reference.embed_text(text)[0].tobytes() for text in TEXTS]
        for text, words in {"": "holds no token", "piano " * 1000: "MuLaN takes: shorten 'piano piano"}.items():
            with pytest.raises(ValueError, match=words):
                reference.embed_text(text)
            with pytest.raises(embed.Refused, match=words) as refused:
                model.embed_text(text)
            assert refused.value.status == embed.BAD_ARGUMENT
    model.close()


def test_other_tokenizers_are_refused(tokenizer: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """Fault: a tokenizer that the library does not know, read as if it were RoBERTa's, or refused without what was found."""
    described = json.loads(tokenizer.read_text(encoding="utf-8"))
    others = {
        r"normalizer: expected None, got \{'type': 'Lowercase'\}": described | {"normalizer": {"type": "Lowercase"}},
        "model.type: expected 'BPE', got 'WordPiece'": described | {"model": {"type": "WordPiece", "unk_token": "x", "vocab": {"x": 0}}},
    }
    for number, (words, other) in enumerate(others.items()):
        folder = bundle_with(tiny_bundle, json.dumps(other), 1, tmp_path / str(number))
        with pytest.raises(embed.Refused, match=f"{words}.*another tokenizer than CLIP's and RoBERTa's.*in Python") as refused:
            embed.Model(embed.load(), folder)
        assert refused.value.status == embed.BAD_BUNDLE
