"""The tokenizer of MuLaN's text tower: CLIP's, or the file of another training, and whether it and the tower fit together.

In: the user's `tokenizer.json`, the settings of MuLaN. Out: `Settings` of the tokenizer, and what is to be refused or warned of. What a
tokenizer makes of a text is the runtime's (`runtime/tokenizer_file.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..model.text_transformer import clip_merges_path
from ..runtime.roberta_tokenizer import MERGES_FILE, VOCABULARY_FILE, RobertaTokenizer, tokenizer_files
from ..runtime.tokenizer import CLIP_TOKENS, ClipTokenizer
from ..runtime.tokenizer_file import TOKENIZER_FILE, FileTokenizer
from .checkpoint import Checkpoint, sha256_of
from .errors import ExportError, MissingCheckpoint
from .settings import Settings

_PAD_ID = '--config {{"mulan": {{"text.pad_id": {}}}}}'


def is_roberta(mulan: Settings | None) -> bool:
    """Return whether a text tower reads the ids of RoBERTa's tokenizer, as CLAP's do. mulan: its settings, None if they are not known."""
    return mulan is not None and mulan.values().get("kind") == "clap"


def tokenizer_of(sources: Mapping[str, Path], mulan: Settings | None) -> Path | None:
    """Return where the tokenizer is: what the user gave; or, of a CLAP, its own folder; None for CLIP's.

    Raises MissingCheckpoint for a CLAP without a tokenizer. sources: of `collect`; mulan: settings of the towers, None if not known.
    """
    if "tokenizer" in sources or not is_roberta(mulan):
        return sources.get("tokenizer")
    if "mulan" in sources and tokenizer_files(sources["mulan"]):
        return sources["mulan"]
    given = f"--mulan {sources['mulan']} has none beside it" if "mulan" in sources else "a quantizer holds none"
    raise MissingCheckpoint(
        f"CLAP's texts are tokenized by RoBERTa's tokenizer, and {given}: give --tokenizer FOLDER with {VOCABULARY_FILE} and "
        f"{MERGES_FILE}, or {TOKENIZER_FILE}, of roberta-base.",
        "tokenizer",
    )


def infer_tokenizer(path: Path, roberta: bool = False) -> tuple[Checkpoint, Settings]:
    """Return a record of the file, which has no tensors, and its settings. ExportError if it is no tokenizer. roberta: of a CLAP."""
    tokenizer = _read(path, roberta)
    settings = Settings("tokenizer")
    settings.infer("model", tokenizer.model, "model")
    settings.infer("last_token", tokenizer.last_token, "largest id of the vocabulary")
    settings.infer("tokens", tokenizer.tokens, "that id and those before it")
    settings.infer("around", tuple(tokenizer.around), "what it makes of an empty text")
    settings.infer("padding_id", tokenizer.padding_id, "padding, or a token for it" if tokenizer.padding_id is not None else "not named")
    settings.infer("padded_to", tokenizer.padded_to, "padding")
    settings.infer("max_tokens", tokenizer.max_tokens, "truncation")
    files = tokenizer_files(path) if roberta else [path / TOKENIZER_FILE if path.is_dir() else path]
    return Checkpoint(files[0].name, {}, sha256=sha256_of(*files)), settings


def write_tokenizer(path: Path | None, folder: Path, roberta: bool = False) -> None:
    """Write a bundle's `tokenizer.json`: the user's file as it is, RoBERTa's in its canonical layout, or CLIP's tokenizer."""
    if path is None:
        ClipTokenizer.from_merges(clip_merges_path()).save(folder / TOKENIZER_FILE)
    else:
        (folder / TOKENIZER_FILE).write_text(_read(path, roberta).content, encoding="utf-8")


def tokens_of(tokenizer: Settings | None) -> int:
    """Return one more than the tokenizer's largest id. None: CLIP's tokenizer."""
    return CLIP_TOKENS if tokenizer is None else tokenizer["tokens"]


def most_tokens(mulan: Settings, tokenizer: Settings | None) -> int:
    """Return how many tokens a text may have: the tower's positions, or the length that the training's texts were cut to, if less."""
    positions = mulan["text.max_seq_len"]
    return positions if tokenizer is None or tokenizer["max_tokens"] is None else min(positions, tokenizer["max_tokens"])


def faults_of_tokenizer(mulan: Settings, tokenizer: Settings | None, names: dict[str, str]) -> list[str]:
    """Return why this text tower cannot take the ids of this tokenizer. names: of the files of `mulan` and `tokenizer`."""
    rows = mulan["text.num_tokens"]
    if tokenizer is None:
        if rows >= CLIP_TOKENS:
            return []
        return [
            f"{names['mulan']}: text.num_tokens is {rows}, but CLIP's tokenizer, which musiclm-pytorch uses unless it is given token ids, "
            f"has {CLIP_TOKENS}: give the tokenizer of the training with --tokenizer {TOKENIZER_FILE}"
        ]
    faults, name = [], names["tokenizer"]
    if tokenizer["tokens"] > rows:
        faults.append(
            f"{name}: {tokenizer['last_token']!r} has the id {tokenizer['tokens'] - 1}, but {names['mulan']}: text.num_tokens is {rows}: "
            "give the tokenizer that this MuLaN was trained with"
        )
    most, padded, around = most_tokens(mulan, tokenizer), tokenizer["padded_to"] or 0, len(tokenizer["around"])
    if padded > most:
        faults.append(f"{name}: pads every text to {padded} tokens, but {names['mulan']} takes {most}: give the file of the training")
    if around >= most:
        faults.append(f"{name}: puts {around} tokens around a text, but {names['mulan']} takes {most}, so that no word has room")
    padding, masked = tokenizer["padding_id"], dict(mulan.items())["text.pad_id"]
    if padding is not None and padding != masked.value and masked.source != "override":
        faults.append(
            f"{name}: pads with id {padding}, but {names['mulan']}: text.pad_id, which is masked, is {masked.value} ({masked.source}): "
            f"say which id TextTransformer was given with {_PAD_ID.format(padding)}, or {masked.value} if none"
        )
    return faults


def warnings_of_tokenizer(mulan: Settings, tokenizer: Settings | None, names: dict[str, str]) -> list[str]:
    """Return what may be wrong about a text tower and its tokenizer; arguments as of `faults_of_tokenizer`."""
    warnings = []
    rows, tokens = mulan["text.num_tokens"], tokens_of(tokenizer)
    if rows > tokens:
        whose = "CLIP's tokenizer" if tokenizer is None else names["tokenizer"]
        advice = f"If it was trained with another tokenizer, give that with --tokenizer {TOKENIZER_FILE}; if not"
        if tokenizer is not None:
            advice = "If it was trained with this tokenizer"
        warnings.append(
            f"{names['mulan']}: text.num_tokens is {rows}, but {whose} has {tokens}. {advice}, "
            f"the last {rows - tokens} rows are never used."
        )
    if tokenizer is not None:
        padding, masked = tokenizer["padding_id"], dict(mulan.items())["text.pad_id"]
        if padding is None:
            warnings.append(
                f"{names['tokenizer']}: names no padding id. MuLaN masks the id {masked.value}: check that the training padded with it, or "
                f"give the other with {_PAD_ID.format('N')}."
            )
        elif padding != masked.value and masked.source == "override":
            warnings.append(
                f"{names['tokenizer']}: pads with id {padding}, which text.pad_id = {masked.value} does not mask: in training MuLaN "
                "read the padding of a batch too, here it reads each text alone, without."
            )
    return warnings


def _read(path: Path, roberta: bool) -> FileTokenizer:
    try:
        return RobertaTokenizer.from_files(path) if roberta else FileTokenizer.from_file(path)
    except (OSError, ValueError) as error:
        raise ExportError(f"--tokenizer {error}.") from error
