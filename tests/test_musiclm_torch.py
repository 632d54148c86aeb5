"""MusicLM in PyTorch against musiclm-pytorch and against the runtime: the same noise must give the same music."""

from typing import Any

import numpy as np
import pytest
import torch
from support.seeded import Seeded
from torch import Tensor

import musiclm_deploy as md
from musiclm_deploy.model import AudioSpectrogramTransformer, MuLaN, MuLaNEmbedQuantizer, MusicLM, TextTransformer, music_spectrogram
from musiclm_deploy.model.upstream import load_upstream
from musiclm_deploy.runtime.tokenizer_file import FileTokenizer

load_upstream()
import audiolm_pytorch  # noqa: E402 (imports only after load_upstream)
import musiclm_pytorch  # noqa: E402 (imports only after load_upstream)
from audiolm_pytorch import audiolm_pytorch as wrappers  # noqa: E402 (imports only after load_upstream)

PROMPTS = ["calm piano", "brass band in the rain"]
FRAMES, SEMANTIC = 9, 14


def audio_lm(models: dict[str, Any]) -> Any:
    parts = {f"{stage}_transformer": models[stage] for stage in ("semantic", "coarse", "fine")}
    return audiolm_pytorch.AudioLM(wav2vec=None, codec=models["codec"], **parts)


def quantizer(models: dict[str, Any] | None = None, **audio: Any) -> MuLaNEmbedQuantizer:
    tower: dict[str, Any] = dict(dim=32, depth=2, heads=2, dim_head=16)
    mulan = MuLaN(AudioSpectrogramTransformer(**tower, **audio), TextTransformer(**tower), dim_latent=16)
    made = MuLaNEmbedQuantizer(mulan, conditioning_dims=(24, 24, 24), rq_num_quantizers=3, codebook_size=11)
    if models is not None:
        made.load_state_dict(models["quantizer"].state_dict())
    return made


@pytest.fixture(scope="module")
def live(tiny_models) -> MusicLM:
    return MusicLM(audio_lm(tiny_models), quantizer(tiny_models))


@pytest.mark.parametrize("num_samples", [1, 3])
def test_compat_equals_upstreams(num_samples: int, tiny_models, live: MusicLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """A draw more or less, another namespace, or another of the candidates than musiclm-pytorch returns."""
    model = wrappers
    top_k = model.top_k
    # Every entry can be drawn but the coarse stage's end: in the first frames it gives a clip that upstream cannot decode.
    monkeypatch.setattr(model, "top_k", lambda logits, thres: top_k(logits - 1e4 * (torch.arange(logits.shape[-1]) == 13), 0.0))
    coarse = live.audio_lm.coarse.generate  # always 512 frames there, which takes minutes
    monkeypatch.setattr(live.audio_lm.coarse, "generate", lambda **arguments: coarse(**arguments | {"max_time_steps": FRAMES}))
    theirs = musiclm_pytorch.MusicLM(live.audio_lm, tiny_models["quantizer"])
    for prompt in PROMPTS:
        torch.manual_seed(3)
        expected = theirs(prompt, num_samples=num_samples, max_length=SEMANTIC)
        torch.manual_seed(3)
        actual = live(prompt, num_samples=num_samples, max_length=SEMANTIC, compat="upstream")
        assert torch.equal(actual, expected if isinstance(expected, Tensor) else expected[0][None])  # type: ignore[arg-type]


def test_tokens_equal_the_runtimes(live: MusicLM, music, tiny_models, monkeypatch: pytest.MonkeyPatch) -> None:
    """A condition of another stage, or padding that reaches the next stage, than in the deployed model.

    Compared up to the coarse tokens, in the wave they decode to: the fine stage's position bias depends on the length of a clip there and
    on the trained window here. Its condition is looked at instead.
    """
    model = wrappers
    steps = {"semantic": -1, "coarse": -1}

    def gumbel_noise(logits: Tensor) -> Tensor:
        stage = "semantic" if logits.shape[-1] == 20 else "coarse"
        steps[stage] += 1
        return torch.from_numpy(Seeded([(5, 0)]).gumbel(stage, steps[stage], 1, logits.shape[-1]))

    with monkeypatch.context() as patched:
        patched.setattr(model, "gumbel_noise", gumbel_noise)
        patched.setattr(model, "top_k", lambda logits, thres: logits)
        lengths = set()
        for prompt in PROMPTS:
            steps.update(semantic=-1, coarse=-1)
            arguments: dict[str, Any] = dict(max_length=SEMANTIC, max_time_steps=FRAMES, return_coarse_generated_wave=True)
            actual = live(prompt, **arguments)
            everything = {stage: md.SamplingConfig(filter_thres=0.0) for stage in ("semantic", "coarse", "fine")}
            limits: dict[str, Any] = dict(seconds=FRAMES * 320 / 16000, max_semantic_tokens=SEMANTIC, stop="eos")
            tokens = music.generate(prompt, seed=5, sampling=everything, **limits).tokens
            expected = tiny_models["codec"].decode_from_codebook_indices(torch.from_numpy(tokens.coarse)[None])
            assert isinstance(actual, Tensor) and torch.equal(actual, expected.reshape(1, -1))
            lengths.add((len(tokens.semantic), len(tokens.coarse)))
    assert len(lengths) == 2 and min(lengths)[0] < SEMANTIC, "no row ended early: there was no padding to leave out"

    conditions = {}
    for stage in ("semantic", "coarse", "fine"):
        wrapper = getattr(live.audio_lm, stage)
        generate = wrapper.generate
        monkeypatch.setattr(
            wrapper,
            "generate",
            lambda s=stage, g=generate, **arguments: (conditions.update({s: arguments["text_embeds"]}), g(**arguments))[1],
        )
    live("x", max_length=SEMANTIC, max_time_steps=FRAMES)
    ids = live.mulan_embed_quantizer.mulan.text.tokenize(["x"])
    for stage, condition in conditions.items():
        assert torch.equal(condition, live.mulan_embed_quantizer(texts=ids, namespace=stage))
    assert len({condition.sum().item() for condition in conditions.values()}) == 3


def test_a_list_gives_each_prompt_its_wave(live: MusicLM) -> None:
    """Rows that see each other, or one wave for all prompts."""
    torch.manual_seed(0)
    waves = live(PROMPTS, max_length=SEMANTIC, max_time_steps=FRAMES)
    torch.manual_seed(0)
    alone = [live(prompt, max_length=SEMANTIC, max_time_steps=FRAMES) for prompt in PROMPTS]
    assert isinstance(waves, list) and all(torch.equal(wave, other) for wave, other in zip(waves, alone, strict=True))  # type: ignore[arg-type]
    assert not torch.equal(waves[0], waves[1])


def test_candidates_are_ranked_at_mulans_rate(tiny_models, monkeypatch: pytest.MonkeyPatch) -> None:
    """Waves of the codec's rate played to MuLaN at another, so that it hears another pitch."""
    log_mel = quantizer(**music_spectrogram(8000, n_mels=32), patch_size=(16, 2))
    log_mel.fit(torch.nn.functional.normalize(torch.randn(50, 16), dim=-1))
    live = MusicLM(audio_lm(tiny_models), log_mel)
    assert live.mulan_sample_hz == 8000
    heard = []
    monkeypatch.setattr(
        type(log_mel.mulan), "forward", lambda _, wave, ids, **__: (heard.append(wave.shape[1]), torch.tensor([float(len(heard))]))[1]
    )
    live("x", num_samples=2, max_length=SEMANTIC, max_time_steps=FRAMES)
    assert heard == [FRAMES * 160] * 2  # half of the codec's 320 samples a frame


def test_an_end_at_once_is_an_empty_wave(live: MusicLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage without tokens that raises deep inside the next one."""
    model = wrappers
    ended = torch.tensor([0.0] * 13 + [1000.0])
    monkeypatch.setattr(model, "gumbel_noise", lambda logits: ended if logits.shape[-1] == 14 else torch.zeros_like(logits))
    monkeypatch.setattr(model, "top_k", lambda logits, thres: torch.nan_to_num(logits, neginf=0.0))
    assert live("x", max_length=SEMANTIC, max_time_steps=FRAMES).shape == (1, 0)  # type: ignore[union-attr]


def test_ours_exports(live: MusicLM, tiny_bundle, tmp_path) -> None:
    """A live MusicLM of this project whose bundle differs from the one its checkpoints give, or that lacks MuLaN's rate, or its tokenizer:
    the one given here is CLIP's, as any other host of the format reads it."""
    rated = MusicLM(live.audio_lm, live.mulan_embed_quantizer, mulan_sample_hz=12000)
    out = md.export_musiclm(rated, tmp_path / "bundle", tokenizer=tiny_bundle / "tokenizer.json", quiet=True)
    with md.load(out) as exported, md.load(tiny_bundle) as expected:
        assert exported.bundle.manifest.mulan.sample_hz == 12000
        assert isinstance(exported.encoders.tokenizer, FileTokenizer)
        assert exported.bundle.manifest.sources["tokenizer"]["file"] == "tokenizer.json"
        one, other = (model.generate("x", seconds=0.2).audio for model in (exported, expected))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda live: live("x", compat="old"), "compat must be None or 'upstream'"),
        (lambda live: live("x", compat="upstream", max_time_steps=9), "always runs 512 frames"),
        (lambda live: live([]), "a prompt or a list of them"),
        (lambda live: live("x", num_samples=0), "num_samples of at least 1"),
        (lambda live: MusicLM(live.audio_lm, quantizer(**music_spectrogram(8000, n_mels=32)), 16000), "made for 8000 Hz"),
    ],
)
def test_misuse_is_named(call: Any, message: str, live: MusicLM) -> None:
    """A request that fails deep inside upstream, or is silently something else."""
    with pytest.raises(ValueError, match=message):
        call(live)
