"""The decoder graph and its batch: prefill and decode agree, nothing is computed twice, and every weight is where it belongs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import musiclm_deploy as md
from musiclm_deploy.export.checkpoint import Checkpoint
from musiclm_deploy.export.stage import export_stage
from musiclm_deploy.export.transformers import STAGES, infer_transformer
from musiclm_deploy.export.validate import upstream_transformer
from musiclm_deploy.runtime.backend import open_session
from musiclm_deploy.runtime.batch import POSITIONS_AT_ONCE
from musiclm_deploy.runtime.bundle import Decoder, Sampling
from musiclm_deploy.runtime.forcing import forced, logits_of
from musiclm_deploy.runtime.host.graph import GraphBatch
from musiclm_deploy.runtime.sequence import Context, Draw, Sequence, coarse_sequence, fine_sequence, semantic_sequence
from musiclm_deploy.runtime.step import choose_step

B, CONDITIONING_TOKENS, FINE_FRAMES = 2, 3, 4
_RNG = np.random.default_rng(0)
_SEMANTIC = [_RNG.integers(0, 19, 7), _RNG.integers(0, 19, 4)]  # ragged
_COARSE = [_RNG.integers(0, 13, (FINE_FRAMES, 2)), _RNG.integers(0, 13, (FINE_FRAMES - 1, 2))]


GREEDY = Sampling(temperature=0.0, filter_thres=0.0, cond_scale=1.0)


def _sequence(
    stage: str, decoder: Decoder, folder: Path, row: int, prefix: np.ndarray, scale: float = 1.0, trained_frames: int | None = None
) -> Sequence:
    """One window of a row; prefix: its first tokens, int64 [n]."""
    context, draw = _context(decoder, folder, row), Draw(0, row, 0, Sampling(temperature=0.0, filter_thres=0.0, cond_scale=scale))
    if stage == "semantic":
        return semantic_sequence(decoder, 16, True, prefix, draw, context)
    if stage == "coarse":
        return coarse_sequence(decoder, _SEMANTIC[row], 8, 2, True, prefix.reshape(-1, 2), draw, context)
    return fine_sequence(decoder, _COARSE[row], 3, prefix.reshape(-1, 3), draw, context, trained_frames)


def _context(decoder: Decoder, folder: Path, row: int) -> Context:
    if not decoder.context:
        return Context()
    graph = open_session(folder / decoder.context, None)
    conditioning = np.random.default_rng(1).standard_normal((B, CONDITIONING_TOKENS, decoder.dim), np.float32)
    names = [output.name for output in graph.get_outputs()]
    arrays = dict(zip(names, graph.run(names, {"conditioning": conditioning}), strict=True))
    return Context({name: np.ascontiguousarray(array[row : row + 1]) for name, array in arrays.items()})


def _export(stage: str, state: dict[str, torch.Tensor], folder: Path, **overrides: Any) -> Decoder:
    checkpoint = Checkpoint(f"{stage}.pt", state, "2.4.0")
    window = {"max_length": 32} if stage == "semantic" else {"max_time_steps": 12}
    return export_stage(stage, checkpoint, infer_transformer(stage, checkpoint, overrides | window), folder, 32, 1)


def _logits(decoder: Decoder, folder: Path, sequences: list[Sequence], tokens: np.ndarray) -> np.ndarray:
    """Logits [B, steps + 1, V] of sequences that are given the tokens [B, steps] one by one."""
    batch = GraphBatch(open_session(folder / decoder.graph, None), decoder)
    fed = [forced(one, row, decoder.vocabulary) for one, row in zip(sequences, tokens, strict=True)]
    return np.stack([row[:, 0] for row in logits_of(batch, fed)[1]])


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("stage", STAGES)
def test_decode_equals_prefill(stage: str, prefix: bool, tmp_path: Path) -> None:
    """Fault: a cache entry, coordinate or mask that is right in a long call and wrong in single steps, or the other way round."""
    from dataclasses import replace

    from demo.checkpoints import TINY, build_models

    arguments = {"cond_as_self_attn_prefix": True} if prefix else {}
    state = build_models(replace(TINY, shared_arguments=arguments), seed=3)[stage].state_dict()
    decoder = _export(stage, state, tmp_path, **arguments)
    tokens, none = np.random.default_rng(2).integers(0, 12, (B, 9)), np.zeros(0, np.int64)
    stepwise = _logits(decoder, tmp_path, [_sequence(stage, decoder, tmp_path, row, none) for row in range(B)], tokens)
    for frames in (1, 2, 3):
        length = frames * decoder.outputs
        prompts = [_sequence(stage, decoder, tmp_path, row, tokens[row, :length]) for row in range(B)]
        in_one_call = _logits(decoder, tmp_path, prompts, tokens[:, length:length])[:, 0]
        np.testing.assert_allclose(in_one_call, stepwise[:, length], rtol=0, atol=2e-5 * np.abs(stepwise).max())  # fp32, other sums


class _Counting:
    """A session that counts its calls and bindings."""

    def __init__(self, session: Any) -> None:
        self._session, self.calls = session, 0
        self.bindings = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def io_binding(self) -> Any:
        self.bindings += 1
        return self._session.io_binding()

    def run_with_iobinding(self, binding: Any) -> None:
        self.calls += 1
        self._session.run_with_iobinding(binding)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_one_prefill_then_one_call_per_token(scale: float, tiny_models, tmp_path: Path) -> None:
    """Fault: a prompt fed again, a step that rebinds its inputs, a call more than there are tokens."""
    decoder = _export("coarse", tiny_models["coarse"].state_dict(), tmp_path)
    counting = _Counting(open_session(tmp_path / decoder.graph, None))
    batch = GraphBatch(counting, decoder)
    sequence = _sequence("coarse", decoder, tmp_path, 0, np.zeros(0, np.int64), scale)
    batch.join(sequence)
    batch.advance(1000, 1000)
    (made,) = batch.collect()
    passes, prompt = 1 + (scale != 1), len(sequence.prompt) - 1  # with guidance one with the condition, one without
    assert 0 < prompt <= POSITIONS_AT_ONCE and made.done and batch.fed == passes * prompt
    steps = len(made.tokens) + (len(made.tokens) < sequence.steps)  # the end token is sampled too
    assert counting.calls == passes + steps and counting.bindings == passes + 1  # one for each pass's prompt, one for all steps


def test_native_forms_need_no_graph(tiny_bundle: Path) -> None:
    """Fault: a graph of a transformer that is opened though nothing runs it."""
    if not choose_step("auto").native:
        pytest.skip(choose_step("auto").reason)
    for step in ("native", "graph"):
        with md.load(tiny_bundle, step=step) as music:
            music.generate(["a", "b"], seconds=0.2, max_semantic_tokens=1, seed=1)
            graphs = {getattr(music.bundle.manifest, stage).graph for stage in STAGES}
            assert music.graphs.opened & graphs == (set() if step == "native" else graphs) and music.graphs.opened - graphs


def test_a_step_costs_what_its_context_is_long(tmp_path: Path) -> None:
    """Fault: a step that recomputes its context. Four times the context may cost four times as much, sixteen times would be n squared."""
    from dataclasses import replace

    from demo.checkpoints import TINY, build_models

    state = build_models(replace(TINY, dim=64, heads=8, dim_head=64), seed=0)["semantic"].state_dict()
    checkpoint = Checkpoint("semantic.pt", state, "2.4.0")
    decoder = export_stage("semantic", checkpoint, infer_transformer("semantic", checkpoint, {"max_length": 4200}), tmp_path, 4200, 1)
    batch = GraphBatch(open_session(tmp_path / decoder.graph, 1), decoder)
    draw = Draw(0, 0, 0, GREEDY)
    batch.join(semantic_sequence(decoder, 4200, False, np.zeros(0, np.int64), draw, _context(decoder, tmp_path, 0)))
    batch.advance(0, batch.waiting())
    taken = np.zeros(4100)
    for step in range(len(taken)):
        started = time.thread_time()  # other load on the machine does not count; one thread computes
        batch.advance(1, 0)
        taken[step] = time.thread_time() - started
    short, long = taken[950:1050].min(), taken[4000:4100].min()
    assert long < 8 * short, f"{short * 1e6:.0f} us at 1000 tokens of context, {long * 1e6:.0f} us at 4050"


def test_over_capacity_is_refused(tiny_models, tmp_path: Path) -> None:
    """Fault: a cache written past its end."""
    decoder = _export("semantic", tiny_models["semantic"].state_dict(), tmp_path)
    batch = GraphBatch(open_session(tmp_path / decoder.graph, 1), decoder, capacity=15)
    with pytest.raises(ValueError, match="the caches hold 15 positions, this sequence needs 16"):
        batch.join(_sequence("semantic", decoder, tmp_path, 0, np.zeros(0, np.int64)))
    assert not batch.waiting() and not batch.collect()


def _reference(stage: str, decoder: Decoder, settings: Any, state: dict[str, torch.Tensor], tokens: np.ndarray) -> np.ndarray:
    """Upstream's logits [steps + 1, V] of row 0."""
    model = upstream_transformer(stage, settings, state)
    conditioning = np.random.default_rng(1).standard_normal((B, CONDITIONING_TOKENS, decoder.dim), np.float32)
    ids = torch.from_numpy(tokens[:1])
    condition = {"text_embeds": torch.from_numpy(conditioning[:1]), "cond_drop_prob": 0.0}
    with torch.inference_mode():
        if stage == "semantic":
            return model(ids=ids, **condition)[0].numpy()
        if stage == "coarse":
            semantic = torch.from_numpy(_SEMANTIC[0])[None]
            return model(semantic_token_ids=semantic, coarse_token_ids=ids, **condition)[1][0].numpy()
        return model(coarse_token_ids=torch.from_numpy(_COARSE[0])[None], fine_token_ids=ids, **condition)[1][0].numpy()


# A constant added to every bias of a row leaves its softmax as it is; the others predict a stage's own prompt in training only.
_WITHOUT_EFFECT = {
    "semantic": {"transformer.rel_pos_bias.net.3.bias"},
    "coarse": {"to_semantic_logits.weight", "to_semantic_logits.bias"},
    "fine": {"coarse_logit_weights"},
}


@pytest.mark.parametrize("stage", STAGES)
def test_every_tensor_moves_the_logits_as_in_pytorch(stage: str, tiny_models, tmp_path: Path) -> None:
    """Fault: a tensor that the export forgets, swaps with another or puts in a wrong place, where unperturbed values would hide it."""
    state = {name: tensor.clone() for name, tensor in tiny_models[stage].state_dict().items()}
    tokens = np.random.default_rng(4).integers(0, 12, (B, 6))

    def logits(changed: dict[str, torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
        decoder = _export(stage, changed, tmp_path)
        # N of the fine stage's bias is the number of frames that upstream sees in this call
        sequence = _sequence(stage, decoder, tmp_path, 0, np.zeros(0, np.int64), trained_frames=FINE_FRAMES if stage == "fine" else None)
        settings = infer_transformer(stage, Checkpoint("", changed, "2.4.0"), {})
        return _logits(decoder, tmp_path, [sequence], tokens[:1])[0], _reference(stage, decoder, settings, changed, tokens)

    found, expected = logits(state)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * scale)
    generator = torch.Generator().manual_seed(0)
    unmoved = set()
    for name, tensor in state.items():
        changed = state | {name: tensor + 0.3 * torch.randn(tensor.shape, generator=generator)}
        new_found, new_expected = logits(changed)
        np.testing.assert_allclose(new_found, new_expected, rtol=0, atol=3e-5 * scale, err_msg=name)
        if np.abs(new_expected - expected).max() < 1e-5 * scale:
            unmoved.add(name)
    assert unmoved <= _WITHOUT_EFFECT[stage]
