"""open-musiclm's transformers from its files: logits and tokens of its own code, which wrote the golden files with random weights.

`tests/golden/open_musiclm/<stage>.<bias>.<feed-forward>.p0.<positions>.npz` hold settings, weights, noise by its seed, and what its
`TokenConditionedTransformerWrapper.generate` gave: `tokens.*` of a batch of two, `logits.*` of prompts and of each step.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.open_musiclm import GOLDEN, SAID, checkpoint_of, export_golden

from musiclm_deploy.export.checkpoint import Checkpoint
from musiclm_deploy.export.errors import ExportError
from musiclm_deploy.export.open_musiclm import open_musiclm_transformer
from musiclm_deploy.export.stage import export_stage
from musiclm_deploy.export.transformers import infer_transformer
from musiclm_deploy.model.open_musiclm import TokenConditionedTransformer
from musiclm_deploy.runtime.backend import open_session
from musiclm_deploy.runtime.bundle import Decoder, Sampling
from musiclm_deploy.runtime.forcing import HostBatch, forced, logits_of
from musiclm_deploy.runtime.host.graph import GraphBatch
from musiclm_deploy.runtime.host.native import NativeBatch
from musiclm_deploy.runtime.sequence import Context, Draw, Sequence, segment_sequence
from musiclm_deploy.runtime.step import open_native, open_pool

NAMES = sorted(path.stem for path in GOLDEN.glob("*.p0.*.npz"))
LOGITS = 1e-4  # absolute, of logits of about 8


@dataclass
class Golden:
    values: Any
    settings: dict[str, Any]
    decoder: Decoder
    folder: Path

    @property
    def quantizers(self) -> int:
        return self.values["tokens.greedy"].shape[2]

    def sequence(self, item: int, steps: int, draw: Draw, known: np.ndarray, end_allowed: bool = False, hide: bool = False) -> Sequence:
        read = [self.values[f"cond.{index}"][item].ravel() for index in range(len(self.decoder.segments or []) - 1)]
        return segment_sequence(self.decoder, read, steps * self.quantizers, end_allowed, known, draw, Context(codes=read[0]), hide)

    def draw(self, item: int, filter_thres: float, temperature: float) -> Draw:
        def noise(step: int) -> np.ndarray:
            drawn = np.random.default_rng([self.settings["noise_seed"], self.settings["stage_index"], step])
            return drawn.gumbel(size=(2, self.decoder.vocabulary)).astype(np.float32)[item]

        return Draw(0, item, 0, Sampling(temperature, filter_thres, 1.0), noise)


@pytest.fixture(scope="module", params=NAMES)
def golden(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Golden:
    with np.load(GOLDEN / f"{request.param}.npz") as file:
        values = dict(file)
    settings = json.loads(str(values["settings"]))
    folder = tmp_path_factory.mktemp(request.param)
    return Golden(values, settings, export_golden(values, settings["stage"], folder), folder)


@pytest.fixture(params=["graph", "native"])
def batch(request: pytest.FixtureRequest, golden: Golden) -> Iterator[HostBatch]:
    made: HostBatch
    if request.param == "graph":
        made = GraphBatch(open_session(golden.folder / golden.decoder.graph, 1), golden.decoder)
    else:
        made = NativeBatch(open_native(golden.folder, golden.decoder, open_pool(1)))
    yield made
    made.close()


@pytest.mark.parametrize(
    "name, filter_thres, temperature, ends",
    [
        ("greedy", 0.5, 0.0, False),
        ("noise", 0.5, 0.95, False),
        ("noise_default", 0.9, 1.0, False),
        ("primed", 0.5, 0.95, False),
        ("eos", 0.0, 3.0, True),
    ],
)
def test_tokens(golden: Golden, batch: HostBatch, name: str, filter_thres: float, temperature: float, ends: bool) -> None:
    """Two items in one batch; what follows an end, -1 there, is not made here."""
    expected = golden.values[f"tokens.{name}"]
    prime = golden.values["prime"] if name == "primed" else np.zeros((2, 0), np.int64)
    draws = [golden.draw(item, filter_thres, temperature) for item in range(2)]
    sequences = [golden.sequence(item, expected.shape[1], draws[item], prime[item].ravel(), ends) for item in range(2)]
    made, _ = logits_of(batch, sequences)
    for item in range(2):
        found = np.concatenate([prime[item].ravel(), made[item]])
        whole = expected[item].ravel()
        kept = whole[: np.argmax(whole < 0)] if (whole < 0).any() else whole
        assert found.tolist() == kept.tolist()


@pytest.mark.parametrize("hide, name", [(False, "logits.teacher"), (True, "logits.teacher_masked")], ids=["seen", "hidden"])
def test_logits(golden: Golden, batch: HostBatch, hide: bool, name: str) -> None:
    """Of the prompt and each step, with ends as inference has them, and as training had them."""
    tokens, expected = golden.values["tokens.noise"].reshape(2, -1), golden.values[name]
    sequences = [golden.sequence(item, len(tokens[0]), golden.draw(item, 0, 1), np.zeros(0, np.int64), hide=hide) for item in range(2)]
    _, logits = logits_of(batch, [forced(one, row[:-1], golden.decoder.vocabulary) for one, row in zip(sequences, tokens, strict=True)])
    for item in range(2):
        np.testing.assert_allclose(logits[item][:, 0], expected[item, : tokens.shape[1]], rtol=0, atol=LOGITS)


def test_primed_logits(golden: Golden, batch: HostBatch) -> None:
    """Of a prompt that ends with tokens of the stage itself."""
    index = len(golden.decoder.segments or []) - 1
    prime, expected = golden.values["prime"], golden.values[f"logits.primed.{index}"]
    steps = golden.values["tokens.primed"].shape[1]
    sequences = [golden.sequence(item, steps, golden.draw(item, 0, 1), prime[item].ravel()) for item in range(2)]
    none = np.zeros(0, np.int64)
    _, logits = logits_of(batch, [forced(one, none, golden.decoder.vocabulary) for one in sequences])
    for item in range(2):
        np.testing.assert_allclose(logits[item][0, 0], expected[item, -1], rtol=0, atol=LOGITS)


@pytest.mark.parametrize(
    "said, message",
    [
        ({"non_causal_prefix_size": 5}, "non_causal_prefix_size = 5 is not covered"),
        ({"non_causal_prefix_size": None}, "non_causal_prefix_size and use_memory_efficient_attention leave no trace in the file"),
    ],
)
def test_what_no_tensor_tells(said: dict[str, Any], message: str) -> None:
    with np.load(GOLDEN / "semantic.continuous.conv.p0.rel.npz") as file:
        checkpoint = checkpoint_of(dict(file), "semantic")
    overrides = {} if said["non_causal_prefix_size"] is None else SAID | said
    with pytest.raises(ExportError, match=message):
        infer_transformer("semantic", checkpoint, overrides)


def test_scale_of_xformers(tmp_path: Path) -> None:
    """With its attention scores are scaled by the root of the head size, and no longer by 8: logits of the reference in PyTorch."""
    with np.load(GOLDEN / "semantic.continuous.conv.p0.rel.npz") as file:
        values = dict(file)
    said = {"use_memory_efficient_attention": True}
    decoder = export_golden(values, "semantic", tmp_path, use_memory_efficient_attention=True)
    checkpoint = checkpoint_of(values, "semantic")
    reference = open_musiclm_transformer("semantic", infer_transformer("semantic", checkpoint, SAID | said), checkpoint.state)
    codes, tokens = values["cond.0"].reshape(2, -1), values["tokens.noise"].reshape(2, -1)
    with torch.inference_mode():
        expected = reference(torch.from_numpy(codes), torch.from_numpy(tokens)).numpy()
    draw, none = Draw(0, 0, 0, Sampling(cond_scale=1.0)), np.zeros(0, np.int64)
    sequences = [segment_sequence(decoder, [row], 12, False, none, draw, Context(codes=row)) for row in codes]
    batch = NativeBatch(open_native(tmp_path, decoder, open_pool(1)))
    _, logits = logits_of(batch, [forced(one, row[:-1], decoder.vocabulary) for one, row in zip(sequences, tokens, strict=True)])
    found = np.stack([row[:, 0] for row in logits])
    np.testing.assert_allclose(found, expected[:, :12], rtol=0, atol=LOGITS)
    assert np.abs(found - values["logits.teacher_masked"][:, :12]).max() > 0.5, "the scale makes no difference"


@pytest.mark.nightly
def test_full_width(tmp_path: Path) -> None:
    """24 layers of the published width, whose sums are longest: logits against the reference in float64."""
    torch.manual_seed(0)
    sequences = [(12, 1024), (3, 1024), (5, 1024)]
    reference = TokenConditionedTransformer(sequences, 1024, 24, 16)
    checkpoint = Checkpoint("fine.transformer.0.pt", reference.state_dict())
    settings = infer_transformer("fine", checkpoint, SAID)
    decoder = export_stage("fine", checkpoint, settings, tmp_path, 500, 1)
    codes, coarse, tokens = torch.randint(0, 1024, (1, 12)), torch.randint(0, 1024, (1, 90)), torch.randint(0, 1024, (1, 20))
    with torch.inference_mode():
        expected = reference.double().eval()(codes, coarse, tokens)[0].numpy()
    draw, context = Draw(0, 0, 0, Sampling(cond_scale=1.0)), Context(codes=codes[0].numpy())
    none = np.zeros(0, np.int64)
    window = segment_sequence(decoder, [codes[0].numpy(), coarse[0].numpy()], 20, False, none, draw, context)
    for batch in (
        GraphBatch(open_session(tmp_path / decoder.graph, None), decoder),
        NativeBatch(open_native(tmp_path, decoder, open_pool(None))),
    ):
        _, logits = logits_of(batch, [forced(window, tokens[0, :-1].numpy(), decoder.vocabulary)])
        np.testing.assert_allclose(logits[0][:, 0], expected[:20], rtol=0, atol=1e-5 * np.abs(expected).max())
        batch.close()


def test_windows_beyond_the_absolute_positions(tmp_path: Path) -> None:
    """A window that the model has no positions for is refused by the export, and not when music is made."""
    with np.load(GOLDEN / "semantic.t5.plain.p0.abs.npz") as file:
        values = dict(file)
    with pytest.raises(ExportError, match=r"a window of 500 semantic tokens needs 499 absolute positions, the model has 40\. Say which"):
        export_golden(values, "semantic", tmp_path, max_length=500)
    assert export_golden(values, "semantic", tmp_path, max_length=41).step.positions == 81
