"""The decoder graph and its run: prefill and decode agree, nothing is computed twice, and every weight is where it belongs."""

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
from musiclm_deploy.kernels import decoder_step
from musiclm_deploy.runtime.backend import open_session
from musiclm_deploy.runtime.bundle import Decoder
from musiclm_deploy.runtime.decoder import DecoderRun
from musiclm_deploy.runtime.stages import Plan, Positions, plan_coarse, plan_fine, plan_semantic
from musiclm_deploy.runtime.step import choose_step

B, CONDITIONING_TOKENS, FINE_FRAMES = 2, 3, 4
_RNG = np.random.default_rng(0)
_SEMANTIC = [_RNG.integers(0, 19, 7), _RNG.integers(0, 19, 4)]  # ragged
_COARSE = [_RNG.integers(0, 13, (FINE_FRAMES, 2)), _RNG.integers(0, 13, (FINE_FRAMES - 1, 2))]


def _plan(stage: str, decoder: Decoder) -> Plan:
    if stage == "semantic":
        return plan_semantic(decoder, B, 16, True)
    if stage == "coarse":
        return plan_coarse(decoder, _SEMANTIC, 8, 2, True)
    return plan_fine(decoder, _COARSE, 3, None)


def _export(stage: str, state: dict[str, torch.Tensor], folder: Path, **overrides: Any) -> Decoder:
    checkpoint = Checkpoint(f"{stage}.pt", state, "2.4.0")
    window = {"max_length": 32} if stage == "semantic" else {"max_time_steps": 12}
    return export_stage(stage, checkpoint, infer_transformer(stage, checkpoint, overrides | window), folder, 32, 1)


def _run(decoder: Decoder, folder: Path, plan: Plan, capacity: int = 64, session: Any = None) -> DecoderRun:
    context: dict[str, np.ndarray] = {}
    if decoder.context:
        graph = open_session(folder / decoder.context, None)
        conditioning = np.random.default_rng(1).standard_normal((len(plan.prompts), CONDITIONING_TOKENS, decoder.dim), np.float32)
        names = [output.name for output in graph.get_outputs()]
        context = dict(zip(names, graph.run(names, {"conditioning": conditioning}), strict=True))
    return DecoderRun(session or open_session(folder / decoder.graph, None), decoder, context, len(plan.prompts), capacity)


def _steps(run: DecoderRun, plan: Plan, tokens: np.ndarray) -> np.ndarray:
    """Logits [B, steps + 1, V] of a prefill and of a step per token of tokens [B, steps]."""
    logits = [run.prefill(plan.prompts, plan.head(0)).copy()]
    for step in range(tokens.shape[1]):
        logits.append(run.step(plan.place(step, tokens[:, step]), plan.head(step + 1)).copy())
    return np.stack(logits, axis=1)


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("stage", STAGES)
def test_decode_equals_prefill(stage: str, prefix: bool, tmp_path: Path) -> None:
    """Fault: a cache entry, coordinate or mask that is right in a long call and wrong in single steps, or the other way round."""
    from dataclasses import replace

    from demo.checkpoints import TINY, build_models

    arguments = {"cond_as_self_attn_prefix": True} if prefix else {}
    state = build_models(replace(TINY, shared_arguments=arguments), seed=3)[stage].state_dict()
    decoder = _export(stage, state, tmp_path, **arguments)
    plan = _plan(stage, decoder)
    tokens = np.random.default_rng(2).integers(0, 12, (B, 9))
    stepwise = _steps(_run(decoder, tmp_path, plan), plan, tokens)
    for length in (0, 1, 4, 9):
        prompts = [
            Positions.join(prompt, *(_row(plan.place(step, tokens[:, step]), row) for step in range(length)))
            for row, prompt in enumerate(plan.prompts)
        ]
        long_call = _run(decoder, tmp_path, plan).prefill(prompts, plan.head(length))
        np.testing.assert_allclose(long_call, stepwise[:, length], rtol=0, atol=2e-5 * np.abs(stepwise).max())  # fp32, other sums


def _row(positions: Positions, row: int) -> Positions:
    return Positions(*(part[row : row + 1] for part in (positions.rows, positions.query, positions.key)))


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


def test_one_prefill_then_one_call_per_token(tiny_bundle: Path) -> None:
    """Fault: a prompt fed again, a step that rebinds its inputs, a call more than there are tokens."""
    with md.load(tiny_bundle, step="graph") as music:
        manifest, sessions = music.bundle.manifest, music._sessions
        assert sessions is not None
        graphs = {stage: getattr(manifest, stage).graph for stage in STAGES}
        counting = {stage: _Counting(music.session(graph)) for stage, graph in graphs.items()}
        sessions.update({graphs[stage]: counted for stage, counted in counting.items()})
        music.generate(["a", "b"], seconds=0.2, max_semantic_tokens=5, seed=1)
    calls = {stage: counted.calls for stage, counted in counting.items()}
    frames = 10  # 0.2 s at 50 frames a second
    expected = {"coarse": frames * manifest.coarse.coarse_quantizers, "fine": frames * manifest.fine.fine_quantizers}
    assert calls == {"semantic": calls["semantic"], **expected} and 1 <= calls["semantic"] <= 5  # the prefill gives the first token
    assert all(counted.bindings <= 2 for counted in counting.values())  # one for the prefill, one for all steps


def test_native_forms_need_no_graph(tiny_bundle: Path, monkeypatch) -> None:
    """Fault: a graph of a transformer that is opened though nothing runs it; a native step that binds anew, or one more than the tokens."""
    if not choose_step("auto").native:
        pytest.skip(choose_step("auto").reason)
    bound, calls, step = [], [], decoder_step.Run.step
    monkeypatch.setattr(
        "musiclm_deploy.runtime.decoder.Run",
        lambda *args, **arrays: bound.append(len(arrays["row_ids"])) or decoder_step.Run(*args, **arrays),
    )
    monkeypatch.setattr(decoder_step.Run, "step", lambda run, *args: calls.append(args) or step(run, *args))
    with md.load(tiny_bundle, step="native") as music:
        music.generate(["a", "b"], seconds=0.2, max_semantic_tokens=1, seed=1)
        manifest, opened = music.bundle.manifest, music._sessions
    assert opened and not any(getattr(manifest, stage).graph in opened for stage in STAGES)
    tokens = 1 + 10 * (manifest.coarse.coarse_quantizers + manifest.fine.fine_quantizers)
    assert len(calls) == tokens, "the positions of these prompts fit in one call, which gives the first token"
    assert len(bound) == 3 + 2, "a prefill of each stage, the steps of those that have more than a token"


def test_a_step_costs_what_its_context_is_long(tmp_path: Path) -> None:
    """Fault: a step that recomputes its context. Four times the context may cost four times as much, sixteen times would be n squared."""
    from dataclasses import replace

    from demo.checkpoints import TINY, build_models

    state = build_models(replace(TINY, dim=64, heads=8, dim_head=64), seed=0)["semantic"].state_dict()
    checkpoint = Checkpoint("semantic.pt", state, "2.4.0")
    decoder = export_stage("semantic", checkpoint, infer_transformer("semantic", checkpoint, {"max_length": 4200}), tmp_path, 4200, 1)
    plan = plan_semantic(decoder, 1, 4200, True)
    run = _run(decoder, tmp_path, plan, capacity=4200, session=open_session(tmp_path / decoder.graph, 1))
    run.prefill(plan.prompts, 0)
    taken = np.zeros(4100)
    for step in range(len(taken)):
        position = plan.place(step, np.array([step % 19]))
        started = time.thread_time()  # other load on the machine does not count; one thread computes
        run.step(position, 0)
        taken[step] = time.thread_time() - started
    short, long = taken[950:1050].min(), taken[4000:4100].min()
    assert long < 8 * short, f"{short * 1e6:.0f} us at 1000 tokens of context, {long * 1e6:.0f} us at 4050"


def test_over_capacity_is_refused(tiny_models, tmp_path: Path) -> None:
    """Fault: a cache written past its end."""
    decoder = _export("semantic", tiny_models["semantic"].state_dict(), tmp_path)
    plan = _plan("semantic", decoder)
    run = _run(decoder, tmp_path, plan, capacity=3)
    run.prefill(plan.prompts, 0)
    for step in range(2):
        run.step(plan.place(step, np.zeros(B, np.int64)), 0)
    with pytest.raises(RuntimeError, match="the cache holds 3 positions, 4 were asked for"):
        run.step(plan.place(2, np.zeros(B, np.int64)), 0)


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
        plan = plan_fine(decoder, _COARSE, 3, FINE_FRAMES) if stage == "fine" else _plan(stage, decoder)
        settings = infer_transformer(stage, Checkpoint("", changed, "2.4.0"), {})
        return _steps(_run(decoder, tmp_path, plan), plan, tokens)[0], _reference(stage, decoder, settings, changed, tokens)

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
