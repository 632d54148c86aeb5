"""The bundle: the one contract between exporter and runtime. A directory with a manifest, a tokenizer and one ONNX graph per stage.

In: a directory. Out: a checked `Manifest`. Both sides import this file, for TensorRT also `engines/form.py`. What else the export imports
of the runtime, the tokenizer and what validates a new bundle, is listed in tests/test_architecture.py. It reads no graph.

Inputs and outputs of the graphs (B rows, S positions in a call, T capacity of the cache, C conditioning tokens, Q quantizers):

    mulan_text    input_ids int64 [B, n], attention_mask int64 [B, n] -> latent [B, dim_latent]
    mulan_audio   wave [B, t] -> latent [B, dim_latent]
    mulan_patches patches [B, rows, columns, bins * frames] of a spectrogram -> latent [B, dim_latent]; in bundles with kernels
    conditioner   latent [B, dim_latent] -> codes.<namespace> int64 [B, C], conditioning.<namespace> [B, C, dim]; the codes alone where
                  the transformers read them as tokens
    <stage>_context   conditioning [B, C, dim] -> context.<layer>.key [B, D, C + 1], context.<layer>.value [B, C + 1, D]
                  or, with a prefix: prefix_embeddings [B, C, dim]
    <stage>       row_ids int64 [B, S], seqlens_k int32 [B] (positions of each row including this call, less one),
                  total_sequence_length int32 [1] (the largest seqlens_k + 1),
                  past_key_values.<layer>.key|value [B, 1, T, D] (bind past and present to the same memory)
                  with bias: query_coordinates int64 [B, S], key_coordinates int64 [B, T]; with several heads: head int64 [1]
                  with a prefix: prefix_mask bool [B, S, 1], prefix_embeddings [B, S, dim]; with cross-attention: the context
                  with absolute positions: position_ids int64 [B, S]; with a convolution: past_conv.<layer> [B, 2, 2 * inner]
                  -> logits [B, V] of each row's last position, present.<layer>.key|value, present_conv.<layer>
    codec_stream  codes int64 [B, n, Q] (the next n frames of a clip), state.frames int64 [1] (frames before them),
                  state.<name> float32 [B, ...], with the dimensions of `Codec.states`; all of them are 0 in the first call of a clip
                  -> wave [B, n * samples_per_frame], next.frames, next.<name> (the state of the next call)
    codec_encode  wave [B, frames * samples_per_frame] -> codes int64 [B, frames, Q]; not of every codec
    wav2vec       wave [B, t] -> tokens int64 [B, n], the semantic tokens of a sound; not in every bundle
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .consistency import inconsistencies
from .recorded_files import fault_of_file, identity
from .records import parse
from .user_files import escape_surrogates, expanded

FORMAT = 7  # rises when the layout changes
MANIFEST = "musiclm.json"
STAGES = ("semantic", "coarse", "fine")


class BundleError(ValueError):
    """The bundle cannot be used; the message lists every fault found."""


@dataclass(frozen=True)
class Sampling:
    """What a stage samples with unless the caller says otherwise."""

    temperature: float = 1.0
    filter_thres: float = 0.9  # the share of the vocabulary that top-k drops
    cond_scale: float = 3.0  # classifier-free guidance; without effect on a stage whose null condition was never trained


@dataclass(frozen=True)
class Spectrogram:
    """The entrance of MuLaN's audio tower, whose patches a kernel makes on a GPU (kernels/spectrogram)."""

    graph: str  # from the patches on
    n_fft: int
    win_length: int
    hop_length: int
    center: bool
    bins: int  # of a patch
    frames: int
    filters: str | None  # of a log-mel spectrogram: float32 [bands, n_fft // 2 + 1], as numpy saves it; None for one of power

    @property
    def layout(self) -> tuple[int, int, int, bool, tuple[int, int]]:
        """In the order of `kernels.patches` and of the operation's reference."""
        return self.n_fft, self.win_length, self.hop_length, self.center, (self.bins, self.frames)


@dataclass(frozen=True)
class Mulan:
    text: str  # graph
    audio: str  # graph
    tokenizer: str  # tokenizer.json
    max_tokens: int  # of a text
    dim_latent: int
    sample_hz: int  # of the audio it embeds
    min_samples: int  # the shortest audio it embeds
    audio_heads: int  # of the audio transformer, and how long a wave is per patch: what its attention costs in memory
    samples_per_patch: float
    spectrogram: Spectrogram | None  # of bundles with kernels, where they have one for it
    trained_tokens: str | None = None  # a bit per token (`pack_tokens`): whether a caption had it; None if not known
    tokenizer_from_file: bool | None = None  # whether tokenizer.json decides everything (runtime/tokenizer_file.py); else it is CLIP's
    pad_id: int | None = None  # the token id that is masked; None: 0
    window_samples: int | None = None  # of a CLAP: the length of the windows whose latents' mean is a long wave's; None: it has no windows
    window_bytes: int | None = None  # what a window takes in memory


@dataclass(frozen=True)
class Conditioner:
    graph: str
    quantizers: int  # conditioning tokens per namespace
    codebook_size: int
    namespaces: dict[str, int]  # name -> width of its conditioning; 0 where codes are read as tokens


@dataclass(frozen=True)
class Bias:
    """The bias table, see kernels/attention: a query at coordinate q sees a key at k with entry clip(q - k, 0, entries - 1)."""

    entries: int
    stride: int  # 1: coordinates are positions; else frame * stride + quantizer (fine)
    frames: int | None = None  # fine: the number of frames that the table was trained for


@dataclass(frozen=True)
class Segment:
    """A sequence of tokens in the input of a transformer that reads several, one after the other: start token, tokens, end."""

    name: str  # "clap", "semantic", "coarse" or "fine"
    start: int  # row of its start token in the table of input embeddings
    first: int  # row of code 0; code c of quantizer q is at first + q * codebook + c
    quantizers: int
    codebook: int  # V: codes of a quantizer, and the number of the end
    positions: int | None  # row of its first token in the table of absolute positions; None in a model without


@dataclass(frozen=True)
class Step:
    """What a decode step that is not the graph's must know (kernels/decoder_step): the graph's own weights, and how they are meant."""

    dim_head: int  # of the model, before it is rounded up to the cache's
    inner: int  # width of the feed-forward
    streams: int
    value_residual: bool  # values of layer 0 are averaged into the later layers
    normalised_attention: bool  # queries and keys have length 1, then keys a scale
    convolution: bool  # over three positions, in the feed-forward
    positions: int | None  # rows of the table of absolute positions; None in a model without
    precision: str  # of the layers' matrices: "fp32", "int8" or "int4" (kernels/quantized_product); all else is float32
    block: int  # inputs that share a scale, at 8 and 4 bits
    weights: dict[str, list[Any]]  # name -> type, byte offset in `<graph>.data`, then the dimensions


@dataclass(frozen=True)
class Decoder:
    """One token transformer."""

    graph: str
    context: str | None  # graph; None for a stage without condition
    conditioning: str  # "none", "cross_attention", "prefix", or "tokens": the codes of the condition are the first segment
    guidance: bool  # whether a null condition was trained
    dim: int
    depth: int
    heads: int
    cache_head_size: int
    vocabulary: int  # V: entries of the logits, the end among them where there is one
    coarse_quantizers: int | None  # of the transformer, before residual groups
    fine_quantizers: int | None
    rows: dict[str, int]  # first row of each kind of token in the table of input embeddings; of segments "padding" alone
    segments: list[Segment] | None  # with conditioning "tokens": what it reads, and last what it predicts
    bias: Bias | None
    max_length: int  # trained window: semantic tokens, or frames
    semantic_window: int | None  # coarse: most semantic tokens that a window reads; None: all that sound with it
    step: Step
    sampling: Sampling = field(default_factory=Sampling)

    @property
    def outputs(self) -> int:
        """Output projections, one for each quantizer that the stage predicts: a frame's steps."""
        return self.fine_quantizers or self.coarse_quantizers or 1


@dataclass(frozen=True)
class Codec:
    stream: str  # graph
    encode: str | None  # graph; None for a SoundStream whose search for codes the export does not cover
    sample_hz: int
    samples_per_frame: int
    quantizers: int  # columns of the codes, residual groups included
    groups: int
    codebook_size: int
    lookahead_frames: int  # K: the first call of a clip holds at least this many frames, where the clip has them; later calls 1
    min_frames: int  # the shortest clip it decodes
    states: dict[str, list[int]]  # name -> dimensions after the batch of each tensor that a call hands to the next
    min_encode_frames: int  # the shortest wave it encodes


@dataclass(frozen=True)
class SemanticTokenizer:
    """What turns a wave into the tokens that the semantic transformer was trained on, before repeats are collapsed."""

    graph: str
    kind: str  # "mel": k-means over log-mel frames; "hubert": k-means over a layer of HuBERT
    sample_hz: int
    samples_per_token: int
    min_samples: int  # the shortest wave that has a token
    codebook_size: int
    heads: int | None  # of its attention, whose memory grows with the square of the wave; None: it has none


@dataclass(frozen=True)
class FileRecord:
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    mulan: Mulan
    conditioner: Conditioner
    semantic: Decoder
    coarse: Decoder
    fine: Decoder
    codec: Codec
    wav2vec: SemanticTokenizer | None  # upstream's word for it; None in a bundle that takes no sound for its tokens
    seconds: float | None  # of a clip for which nothing else is asked; None: the longest that takes one window of every stage
    unique_consecutive: bool  # repeated semantic tokens were collapsed in training
    semantic_tokens_per_second: float
    made_by: dict[str, str]  # tool -> version; opset
    sources: dict[str, dict[str, str]]  # checkpoint -> file, sha256, version, weights: the file's entry that was taken
    settings: dict[str, dict[str, list[Any]]]  # stage -> name -> [value, where it came from]
    errors: dict[str, float]  # measured against PyTorch at export, the transformers before they were quantized
    quality: dict[str, dict[str, Any]]  # stage -> measure -> value; of a transformer what its precision loses (export/quality.py)
    files: dict[str, FileRecord]
    format: int = FORMAT

    @property
    def reads_segments(self) -> bool:
        """Whether the transformers are open-musiclm's, which read token sequences one after the other, the condition's codes first."""
        return self.semantic.segments is not None

    def columns(self, stage: str) -> int:
        """Return the coarse or fine tokens of a frame, those of all residual groups."""
        return getattr(self, stage).outputs * self.codec.groups

    def to_json(self) -> str:
        return escape_surrogates(json.dumps(asdict(self), indent=1, ensure_ascii=False)) + "\n"  # those of files' names


class Bundle:
    """A directory whose manifest and files were checked."""

    def __init__(self, root: Path, manifest: Manifest, sha256: str) -> None:
        self.given, self.manifest = root, manifest
        # Files are opened when they are first used: by then the program may have another current folder, and a link may lead elsewhere.
        self.root = root.resolve()
        self.sha256 = sha256  # of the manifest, which holds the hash of every other file: it names the whole bundle
        self._checked = {name: identity(self.root / name) for name in manifest.files}

    def __repr__(self) -> str:
        return f"Bundle({str(self.root)!r}, SHA-256 {self.sha256[:12]}...)"

    @classmethod
    def open(cls, root: str | os.PathLike) -> Bundle:
        """Check everything about the bundle at `root` before using any of it; all faults are listed together.

        `~` stands for the home folder. A link is followed if what it leads to has the size and SHA-256 that the manifest gives.
        """
        root = expanded(root)
        path = root / MANIFEST
        try:
            if root.name == MANIFEST and root.is_file():
                raise BundleError(f"{root} is not a bundle, but the manifest of one. Give its folder.")
            if not path.is_file():
                why = f"it has no {MANIFEST}" if root.exists() else "there is no such folder"
                raise BundleError(f"{root} is not a bundle: {why}. Make one with export_all.py.")
        except OSError as error:  # no permission, or a name that no folder can have
            raise BundleError(f"{root} is not a bundle that can be opened: {error.strerror}.") from error
        data = path.read_bytes()
        faults: list[str] = []
        manifest = _parse_manifest(data, faults)
        if manifest is not None:
            _check_files(root, manifest, faults)
        if faults:
            message = f"the bundle {root} cannot be used:\n" + "\n".join(f"  - {fault}" for fault in faults)
            raise BundleError(escape_surrogates(message))  # those of the manifest
        assert manifest is not None
        return cls(root, manifest, hashlib.sha256(data).hexdigest())

    def path(self, name: str) -> Path:
        """Return where a file of the bundle lies. Raises BundleError as `check_unchanged`."""
        self.check_unchanged(name)
        return self.root / name

    def check_unchanged(self, name: str) -> None:
        """Raise BundleError if a file, or the weights of a graph of that name, is not the one that was there when the bundle was opened.

        A new export in its place would otherwise lend its graphs to this bundle's manifest.
        """
        for file in (name, f"{name}.data"):
            if file in self._checked and identity(self.root / file) != self._checked[file]:
                raise BundleError(f"{self.root / file} was changed or replaced after the bundle was opened. Load the bundle again.")

    def data_to_map(self) -> dict[str, Path]:
        """Return the files of the graphs' weights by name if ONNX Runtime could not open them by itself, else {}.

        It refuses links that leave the folder, and takes no path that is not UTF-8.
        """
        within = all((self.root / name).resolve().is_relative_to(self.root) for name in self.manifest.files)
        if within and not re.search("[\ud800-\udfff]", str(self.root)):  # halves of characters, by which Python keeps other bytes
            return {}
        return {name: self.root / name for name, record in self.manifest.files.items() if name.endswith(".data") and record.bytes}


def pack_tokens(trained: np.ndarray) -> str:
    """Pack bool [V] for `Mulan.trained_tokens`: base64 of one bit per token, the first token in the highest bit of the first byte."""
    return base64.b64encode(np.packbits(trained).tobytes()).decode("ascii")


def unpack_tokens(packed: str, tokens: int) -> np.ndarray:
    """Return the bool [V] that `pack_tokens` packed. tokens: V. Raises BundleError if there are bits for another number of tokens."""
    try:
        data = np.frombuffer(base64.b64decode(packed, validate=True), np.uint8)
    except (binascii.Error, ValueError) as error:
        raise BundleError(f"mulan: trained_tokens is not base64: {error}") from error
    if len(data) != -(-tokens // 8):
        raise BundleError(f"mulan: trained_tokens has {len(data)} bytes, expected {-(-tokens // 8)}: a bit for each of {tokens} tokens")
    return np.unpackbits(data, count=tokens).astype(bool)


def _parse_manifest(data: bytes, faults: list[str]) -> Manifest | None:
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        faults.append(f"{MANIFEST} is not JSON: {error}")
        return None
    found = values.get("format") if isinstance(values, dict) else None
    if found != FORMAT:
        advice = "update musiclm-deploy" if isinstance(found, int) and found > FORMAT else "export the checkpoints again"
        faults.append(f"{MANIFEST} has format {found!r}, this version reads {FORMAT}: {advice}")
        return None
    manifest = parse(Manifest, values, MANIFEST, faults)
    return manifest if not faults else None


def _check_files(root: Path, manifest: Manifest, faults: list[str]) -> None:
    decoders = [getattr(manifest, stage) for stage in STAGES]
    named = [manifest.mulan.text, manifest.mulan.audio, manifest.mulan.tokenizer, manifest.conditioner.graph, manifest.codec.stream]
    if spectrogram := manifest.mulan.spectrogram:
        named += [name for name in (spectrogram.graph, spectrogram.filters) if name]
    named += [manifest.wav2vec.graph] if manifest.wav2vec else []
    named += [name for decoder in decoders for name in (decoder.graph, f"{decoder.graph}.data", decoder.context) if name]
    named += [manifest.codec.encode] if manifest.codec.encode else []
    faults += [f"{name}: the manifest uses this file but does not list it" for name in named if name not in manifest.files]
    faults += [f"{MANIFEST}: {fault}" for fault in inconsistencies(manifest)]
    with ThreadPoolExecutor() as pool:  # hashing leaves Python's lock
        found = pool.map(lambda item: fault_of_file(root, *item), manifest.files.items())
        faults += [f"{name!r}: {fault}" for name, fault in zip(manifest.files, found, strict=True) if fault]
