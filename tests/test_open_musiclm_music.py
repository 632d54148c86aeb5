"""Music by open-musiclm's transformers: its own windows and tokens with compat="upstream", and what holds for every bundle."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.open_musiclm import GOLDEN, SAID, export_golden, model_config

import musiclm_deploy as md
from musiclm_deploy.export.checkpoint import read_checkpoint
from musiclm_deploy.export.doctor import diagnose
from musiclm_deploy.export.errors import ExportError
from musiclm_deploy.export.export import export_checkpoints
from musiclm_deploy.export.mulan import codebooks_of
from musiclm_deploy.model.residual_vq import nearest_codes
from musiclm_deploy.runtime.backend import open_session
from musiclm_deploy.runtime.bundle import STAGES, Bundle, Manifest
from musiclm_deploy.runtime.config import GenerationConfig
from musiclm_deploy.runtime.host.graph import GraphBatch
from musiclm_deploy.runtime.music import Tokens
from musiclm_deploy.runtime.noise import CallerNoise
from musiclm_deploy.runtime.open_musiclm import OpenMusicLM, output_frames
from musiclm_deploy.runtime.request import make_request
from musiclm_deploy.runtime.sampling import SamplingConfig
from musiclm_deploy.runtime.sequence import Context
from musiclm_deploy.runtime.windows import plan_windows

RATE, FRAMES = 10, 16  # semantic tokens and frames a second, in the golden file
DRAWN = {stage: SamplingConfig(filter_thres=0.3) for stage in STAGES}  # by default k would be 1 at this size
WINDOWS = {"semantic": 20, "coarse": 16, "fine": 8}


@pytest.fixture(scope="module")
def model(open_musiclm_bundle: Path) -> Iterator[md.MusicLM]:
    with md.load(open_musiclm_bundle) as model:
        yield model


@pytest.fixture(scope="module")
def windowed(open_musiclm_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, Path]:
    """A manifest whose transformers are those of the golden pipeline."""
    folder, manifest = tmp_path_factory.mktemp("pipeline"), Bundle.open(open_musiclm_bundle).manifest
    decoders = {}
    for stage in STAGES:
        with np.load(GOLDEN / f"{stage}.continuous.conv.p0.rel.npz") as file:
            said: dict[str, Any] = {"max_length": WINDOWS[stage]} if stage == "semantic" else {"max_time_steps": WINDOWS[stage]}
            said |= {"semantic_window": 9} if stage == "coarse" else {}
            decoders[stage] = export_golden(dict(file), stage, folder, **said)
    codec = replace(manifest.codec, sample_hz=320 * FRAMES, samples_per_frame=320, codebook_size=19)
    return replace(manifest, **decoders, codec=codec, semantic_tokens_per_second=float(RATE)), folder


class ByCall:
    """The golden file's noise: of a stage's call, and of a step in it."""

    def __init__(self, calls: list[dict[str, Any]], quantizers: dict[str, int]) -> None:
        self._ends = {
            stage: np.cumsum([(call["steps"] - (call["prime"] or 0)) * quantizers[stage] for call in calls if call["stage"] == stage])
            for stage in STAGES
        }

    def gumbel(self, stage: str, step: int, batch: int, vocab: int) -> np.ndarray:
        call = int(np.searchsorted(self._ends[stage], step, side="right"))
        first = self._ends[stage][call - 1] if call else 0
        return np.random.default_rng([7, STAGES.index(stage), call, step - first]).gumbel(size=(batch, vocab)).astype(np.float32)


@pytest.mark.parametrize("primed", [False, True], ids=["plain", "primed"])
def test_its_own_windows(windowed: tuple[Manifest, Path], primed: bool) -> None:
    """`MusicLM.forward` over windows, batch of two: each code that its own code gave."""
    manifest, folder = windowed
    with np.load(GOLDEN / "pipeline.npz") as file:
        golden = dict(file)
    name = "prime" if primed else "plain"
    expected, calls = golden[f"{name}.codes"], json.loads(str(golden[f"{name}.log"]))
    prime: list[Tokens | None] = [None, None]
    if primed:
        coarse, fine = np.split(expected[:, :20], [2], axis=2)
        prime = [Tokens(golden["prime.semantic"][item], coarse[item], fine[item]) for item in range(2)]
    sampling = {"filter_thres": 0.5}
    temperatures = {"semantic": 1.0, "coarse": 0.95, "fine": 0.4}
    configs = {stage: SamplingConfig(temperature=temperatures[stage], **sampling) for stage in STAGES}
    request = make_request(manifest, GenerationConfig(seconds=3, compat="upstream", sampling=configs), ["a", "b"])
    noise = CallerNoise(ByCall(calls, {"semantic": 1, "coarse": 2, "fine": 3}), 2)

    @contextmanager
    def decoding(stage: str) -> Iterator[GraphBatch]:
        yield GraphBatch(open_session(folder / f"{stage}.onnx", 1), getattr(manifest, stage))

    contexts = [dict.fromkeys(STAGES, Context(codes=row.ravel())) for row in golden["clap"]]
    made = OpenMusicLM(manifest, request, contexts, prime, noise.items(), lambda *_: None, decoding).run()
    for item, tokens in enumerate(made):
        assert tokens.coarse is not None and tokens.fine is not None
        assert np.concatenate([tokens.coarse, tokens.fine], axis=1).tolist() == expected[item].tolist()
    assert output_frames(manifest, 3, primed) == expected.shape[1] - (20 if primed else 0)


@pytest.mark.parametrize("seconds, expected", [(3.98, 4), (4, 4), (5, 4), (8, 8), (10, 10), (12, 14), (20, 20), (35, 34)])
def test_its_own_lengths(open_musiclm_bundle: Path, seconds: float, expected: int) -> None:
    """What its code gives at the published windows, of 10, 4 and 2 s."""
    assert output_frames(published(Bundle.open(open_musiclm_bundle).manifest), seconds, False) == 75 * expected


def test_too_short_for_its_windows(model: md.MusicLM) -> None:
    with pytest.raises(
        ValueError, match=r"seconds = 0\.1 is too short for open-musiclm's windows, whose coarse one reads 19 semantic tokens"
    ):
        model.generate("x", seconds=0.1, compat="upstream")


def published(manifest: Manifest) -> Manifest:
    """The windows of musiclm_large_small_context."""
    lengths = {"semantic": 500, "coarse": 300, "fine": 150}
    decoders = {stage: replace(getattr(manifest, stage), max_length=length) for stage, length in lengths.items()}
    decoders["coarse"] = replace(decoders["coarse"], semantic_window=199)
    return replace(manifest, **decoders, codec=replace(manifest.codec, sample_hz=24000, samples_per_frame=320))


def test_default_windows(open_musiclm_bundle: Path) -> None:
    """A coarse window reads the 199 tokens that it was trained with, from where its frames begin; seconds are exact."""
    manifest = published(Bundle.open(open_musiclm_bundle).manifest)
    plan = plan_windows(manifest, 750, 750 * 320, None, {})
    assert [(span.start, span.new, span.stop) for span in plan.coarse] == [(0, 0, 300), (150, 300, 450), (300, 450, 600), (450, 600, 750)]
    assert [(plan.seen(window).start, plan.seen(window).stop) for window in range(4)] == [(0, 199), (100, 299), (200, 399), (300, 499)]
    assert [(span.start, span.stop) for span in plan.fine] == [(start, start + 150) for start in range(0, 750, 150)]


def test_lengths(model: md.MusicLM) -> None:
    """As many seconds as asked for; 8 unless asked; with compat its own."""
    hz = model.bundle.manifest.codec.sample_hz
    assert len(model.generate("x", seconds=1.23).audio) == round(1.23 * hz)
    assert len(model.generate("x").audio) == 8 * hz
    assert len(model.generate("x", seconds=1.23, compat="upstream").audio) == output_frames(model.bundle.manifest, 1.23, False) * 320


@pytest.mark.parametrize("step", ["native", "graph"])
def test_alone_together_and_streamed(open_musiclm_bundle: Path, step: str) -> None:
    """The samples of a clip alone are those in a batch, among candidates, and streamed, by both plans."""
    with md.load(open_musiclm_bundle, step=step) as model:
        for plan in ("trained", "low_latency"):
            alone = model.generate("calm piano", seconds=2.3, seed=1, plan=plan, sampling=DRAWN)
            together = model.generate(["calm piano", "drums"], seconds=2.3, seed=[1, 2], plan=plan, sampling=DRAWN)
            several = model.generate("calm piano", seconds=2.3, seed=1, num_samples=8, plan=plan, sampling=DRAWN)
            with model.stream("calm piano", seconds=2.3, seed=1, plan=plan, sampling=DRAWN) as stream:
                streamed = np.concatenate([chunk.audio for chunk in stream])
            assert np.array_equal(alone.audio, together[0].audio) and not np.array_equal(alone.audio, together[1].audio)
            assert np.array_equal(alone.audio, several.candidates[0].audio) and np.array_equal(alone.audio, streamed)


def test_saved_tokens_go_on(model: md.MusicLM, tmp_path: Path) -> None:
    """What was made of saved semantic tokens is what was made at once."""
    whole = model.generate("calm piano", seconds=2.3, seed=1)
    for kept in (Tokens(whole.tokens.semantic), Tokens(whole.tokens.semantic, whole.tokens.coarse)):
        assert np.array_equal(model.generate("calm piano", seconds=2.3, seed=1, tokens=kept).audio, whole.audio)


def test_continues_a_sound(model: md.MusicLM) -> None:
    """A prime's codes begin the clip, and what follows depends on them."""
    sound = np.sin(np.arange(16000) / 20).astype(np.float32) * 0.3, 16000
    made = model.generate("calm piano", prime=sound, seconds=2.3, seed=1)
    codes = model.encode_audio(sound)[0]
    assert made.tokens.coarse is not None and np.array_equal(made.tokens.coarse[: len(codes)], codes[:, :2])
    assert len(made.audio) == round(2.3 * 16000)


@pytest.mark.parametrize("seed", range(6))
def test_an_end_that_may_come_at_once(model: md.MusicLM, seed: int) -> None:
    """A clip that may end early is not empty, streamed or not."""
    sampling = {stage: SamplingConfig(temperature=3.0, filter_thres=0.0) for stage in STAGES}
    made = model.generate("x", seconds=1, seed=seed, stop="eos", sampling=sampling)
    with model.stream("x", seconds=1, seed=seed, stop="eos", sampling=sampling) as stream:
        assert np.array_equal(np.concatenate([chunk.audio for chunk in stream]), made.audio) and len(made.audio)


def test_a_prime_beyond_its_window(model: md.MusicLM) -> None:
    sound = np.zeros(16000 * 2, np.float32), 16000
    with pytest.raises(ValueError, match=r"hears the first 1 s of a prime, as open-musiclm does, got 2 s\. Cut"):
        model.generate("x", prime=sound, seconds=2, compat="upstream")


def test_guidance_is_refused(model: md.MusicLM) -> None:
    with pytest.raises(ValueError, match="cond_scale has no effect on the coarse stage, which was trained without a null condition"):
        model.generate("x", sampling={"coarse": SamplingConfig(cond_scale=2.0)})


def test_sampling_of_the_bundle(model: md.MusicLM) -> None:
    manifest = model.bundle.manifest
    assert [getattr(manifest, stage).sampling.temperature for stage in STAGES] == [1.0, 0.95, 0.4]
    assert manifest.seconds == 8 and not manifest.unique_consecutive and manifest.semantic.bias is not None
    assert manifest.semantic.bias.entries == 1 + manifest.conditioner.quantizers + 3 + manifest.semantic.max_length + 1
    assert math.isclose(manifest.semantic_tokens_per_second, 50)


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_gpus_are_refused(open_musiclm_bundle: Path, device: str) -> None:
    with pytest.raises(md.BackendError, match=f"device='{device}': the transformers of this bundle are open-musiclm's"):
        md.load(open_musiclm_bundle, device=device)


@pytest.mark.parametrize("options", [{"kernels": ["fp16"]}, {"target": "tensorrt", "precision": "fp16"}], ids=["kernels", "tensorrt"])
def test_export_for_gpus_is_refused(open_musiclm_files: dict[str, Path], tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ExportError, match="open-musiclm's transformers run on CPUs alone"):
        export_checkpoints(**open_musiclm_files, out=tmp_path / "bundle", quiet=True, **options)
    assert not list(tmp_path.iterdir())


def test_doctor(open_musiclm_files: dict[str, Path]) -> None:
    """Each file is known by its tensors; without the JSON of the model the doctor asks for it."""
    config = open_musiclm_files["open_musiclm_config"]
    files = [path for name, path in open_musiclm_files.items() if name != "open_musiclm_config"]
    report = diagnose(files, open_musiclm_config=config)
    kinds = {Path(file.path).name: file.kind for file in report.files}
    assert {kinds[f"{stage}.transformer.10.pt"]: stage for stage in STAGES} == {stage: stage for stage in STAGES}
    words = {Path(file.path).name: file.what for file in report.files}
    assert words["fine.transformer.10.pt"] == "a fine transformer of open-musiclm"
    assert words["clap.rvq.10.pt"] == "a residual quantizer of CLAP's latents, as open-musiclm has it"
    assert kinds["clap.rvq.10.pt"] == "quantizer" and not report.faults and not report.missing
    report = diagnose(files)
    assert len(report.faults) == 3 and all("--open-musiclm-config" in fault for fault in report.faults)


def test_two_packages_do_not_mix(open_musiclm_files: dict[str, Path], tiny_checkpoints: dict[str, Path]) -> None:
    files = {**open_musiclm_files, "coarse": tiny_checkpoints["coarse"]}
    config = files.pop("open_musiclm_config")
    report = diagnose(list(files.values()), open_musiclm_config=config)
    assert any("coarse.pt: a transformer of audiolm-pytorch, but non_causal_prefix_size" in fault for fault in report.faults)
    report = diagnose(list(files.values()), config={"semantic": SAID, "fine": SAID})
    assert any("the transformers are of two packages" in fault for fault in report.faults)
    assert any("takes embeddings of codes, but clap.rvq.10.pt is codebooks alone" in fault for fault in report.faults)


def with_value(record: str, name: str, value: float) -> dict[str, Any]:
    """Return the tiny model's JSON with another value."""
    given = model_config()
    given[record][name] = value
    return given


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "not JSON"),
        ("[]", "not the JSON of a model of open-musiclm: it has no global_cfg"),
        (
            '{"global_cfg": {}, "hubert_kmeans_cfg": {}, "encodec_cfg": {}, "semantic_cfg": {}, "coarse_cfg": {}, "fine_cfg": {}}',
            "output_hz",
        ),
    ],
)
def test_another_json(open_musiclm_files: dict[str, Path], tmp_path: Path, content: str, message: str | None) -> None:
    """What is no such file, has values that cannot be, or is of another model than the checkpoints."""
    path = tmp_path / "model.json"
    path.write_text(content)
    wanted = "num_fine_quantizers = 1 contradicts" if message is None else rf"--open-musiclm-config .*model\.json: .*{message}"
    with pytest.raises(ExportError, match=wanted):
        export_checkpoints(**{**open_musiclm_files, "open_musiclm_config": path}, out=tmp_path / "bundle", quiet=True)


@pytest.mark.parametrize("version", ["1.6.30", "installed"])
def test_codes_of_its_quantizer(version: str) -> None:
    """Codebooks as vector-quantize-pytorch of two ages saved them, and the codes that it found with them."""
    checkpoint = read_checkpoint(GOLDEN / f"clap.rvq.{version}.pt", "quantizer")
    with np.load(GOLDEN / f"clap_rvq_{version}.npz") as file:
        found = nearest_codes(torch.from_numpy(file["x"]), codebooks_of(checkpoint.state))
        assert found.tolist() == file["codes"].tolist()


def test_narrow_precisions(open_musiclm_files: dict[str, Path], tmp_path: Path) -> None:
    """8 and 4 bits, native and by the graph: the same lengths, samples alone as in a batch."""
    for precision in ("int8", "int4"):
        out = export_checkpoints(**open_musiclm_files, out=tmp_path / precision, precision=precision, force=True, quiet=True)
        for step in ("native", "graph"):
            with md.load(out, step=step) as model:
                alone = model.generate("calm piano", seconds=1.1, seed=1, sampling=DRAWN)
                together = model.generate(["drums", "calm piano"], seconds=1.1, seed=[2, 1], sampling=DRAWN)
                assert len(alone.audio) == 17600 and np.array_equal(alone.audio, together[1].audio)
