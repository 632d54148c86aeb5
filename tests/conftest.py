"""Shared by all tests: few threads, no network, kernels interpreted, and one tiny MusicLM that went through the real export."""

import gc
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # the other cores are the other processes'
else:
    os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # some tests import ONNX Runtime themselves
if "MUSICLM_KERNELS_ON" not in os.environ:  # of benchmarks/gpu: a GPU that kernels are to be launched on
    os.environ["TRITON_INTERPRET"] = "1"  # kernels run on the CPU; triton reads it once, when it is imported

import pytest
from support.shared import FOLDER, shared

for _number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(_number) == signal.SIG_IGN:  # as a shell starts what runs behind it; processes of the tests would inherit that
        signal.signal(_number, signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL)

TRACE_CACHE = "MUSICLM_TRACE_CACHE"  # the variable of export/trace_cache.py, whose import would take seconds for torch

# The files that take longest, which begin first, so that no process is left with one of them at the end.
LONGEST = (
    *("test_traced", "test_cli", "test_kernels_compile", "test_engines_build", "test_batches", "test_demo_training", "test_export"),
    *("test_training_docs", "test_bench", "test_tokens", "test_demo", "test_tensorrt", "test_device", "test_tensorrt_export"),
)


def pytest_configure(config: pytest.Config) -> None:
    """Make the folder that the processes of this run share; what is traced in one of them is traced in no other."""
    if hasattr(config, "workerinput"):  # a process of pytest-xdist, which has inherited it
        return
    folder = tempfile.mkdtemp(prefix="musiclm-tests-")
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    os.environ |= {FOLDER: folder, TRACE_CACHE: os.path.join(folder, "traces")}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With --dist loadgroup, as in `make test`, a file's tests run in one process, since they share fixtures."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group(item.path.stem))
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def tiny_models():
    """Upstream's own modules of a tiny MusicLM, every parameter random."""
    from demo.checkpoints import TINY, build_models

    return build_models(TINY)


@pytest.fixture(scope="session")
def tiny_checkpoints(tiny_models) -> dict[str, Path]:
    """Their files in upstream's formats, by the names of the exporter's options. Read only, as all that is shared."""
    from demo.checkpoints import save_checkpoints

    folder = shared("checkpoints", lambda folder: save_checkpoints(tiny_models, folder))
    return {name: folder / f"{name}.pt" for name in tiny_models}


@pytest.fixture(scope="session")
def mel_kmeans():
    """A semantic tokenizer of 19 tokens, 50 a second at 8 kHz, fitted to noise and tones."""
    import torch

    from musiclm_deploy.model import MelKmeans

    time, noise = torch.arange(8000) / 8000, torch.randn(4, 8000, generator=torch.Generator().manual_seed(0)) * 0.1
    tones = [0.5 * torch.sin(2 * torch.pi * hz * time) for hz in (200, 500, 900, 1500, 2500)]
    tokenizer = MelKmeans(19, 8000, tokens_per_second=50, n_mels=20)
    tokenizer.fit([noise, *tones], seed=1)
    return tokenizer


@pytest.fixture(scope="session")
def packages(tiny_checkpoints) -> dict[str, dict[str, Any]]:
    """What each file holds; the codec without its discriminators, which nothing reads and which are nearly all of its 100 MB. Read only."""
    import torch

    found = {kind: torch.load(path, weights_only=True) for kind, path in tiny_checkpoints.items()}
    state = found["codec"]["model"]
    found["codec"]["model"] = {name: tensor for name, tensor in state.items() if name.startswith(("encoder", "decoder", "rq."))}
    return found


@pytest.fixture(scope="session")
def good(packages) -> dict[str, Path]:
    """Their files: small ones that the export takes."""
    import torch

    def save(folder: Path) -> None:
        folder.mkdir()
        for kind, package in packages.items():
            torch.save(package, folder / f"{kind}.pt")

    folder = shared("good", save)
    return {kind: folder / f"{kind}.pt" for kind in packages}


@pytest.fixture(scope="session")
def mel_file(mel_kmeans) -> Path:
    return shared("mel.pt", mel_kmeans.save)


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoints, mel_file) -> Path:
    """The bundle that the export makes of them. Read only: a test that changes it works on a copy."""
    from musiclm_deploy.export.export import export_checkpoints

    return shared("bundle", lambda out: export_checkpoints(**tiny_checkpoints, semantic_features=mel_file, out=out, quiet=True))


@pytest.fixture(scope="session")
def second_bundle(tiny_bundle, tiny_checkpoints, mel_file) -> Path:
    """The tiny bundle with matrices of 8 and 4 bits, and an EnCodec. Read only."""
    from support.second_bundle import write_second_bundle

    files = {**tiny_checkpoints, "semantic-features": mel_file}
    return shared("second", lambda out: write_second_bundle(tiny_bundle, files, out))


@pytest.fixture(scope="session")
def open_musiclm_files(tiny_checkpoints, mel_file) -> dict[str, Path]:
    """The files of a tiny open-musiclm and of a tiny CLAP, by the arguments of the export. Read only."""
    from support.clap import clap_folder
    from support.open_musiclm import write_checkpoints

    def save(folder: Path) -> None:
        write_checkpoints(folder)
        clap_folder(folder / "clap")

    folder = shared("open-musiclm-files", save)
    names = {"quantizer": "clap.rvq.10.pt", "open_musiclm_config": "tiny.json"}
    files = {name: folder / file for name, file in names.items()}
    files |= {stage: folder / f"{stage}.transformer.10.pt" for stage in ("semantic", "coarse", "fine")}
    return files | {"codec": tiny_checkpoints["codec"], "mulan": folder / "clap", "semantic_features": mel_file}


@pytest.fixture(scope="session")
def open_musiclm_bundle(open_musiclm_files) -> Path:
    """The bundle that the export makes of them: 16 kHz, 50 frames a second, windows of 1, 0.4 and 0.2 s. Read only."""
    from musiclm_deploy.export.export import export_checkpoints

    return shared("open-musiclm", lambda out: export_checkpoints(**open_musiclm_files, out=out, quiet=True))


@pytest.fixture(scope="session")
def add_form():
    """A function that puts TensorRT's form beside the graphs of a fresh bundle, as the export does where it compiles kernels too."""

    def add(bundle: Path, checkpoints: dict[str, Path], precision: str) -> None:
        from musiclm_deploy.export.collect import collect
        from musiclm_deploy.export.export import records_of
        from musiclm_deploy.export.tensorrt import record_form, write_form
        from musiclm_deploy.runtime.bundle import Bundle

        made = write_form(collect(checkpoints, {}), Bundle.open(bundle).manifest, bundle, precision)
        record_form(bundle, precision, made, records_of(bundle / "tensorrt"))

    return add


@pytest.fixture(scope="session")
def static_bundle(tiny_bundle, tiny_checkpoints, mel_file, add_form, tmp_path_factory) -> Path:
    """The tiny bundle with TensorRT's form of it, in fp32. Read only."""
    import shutil

    folder = tmp_path_factory.mktemp("static") / "bundle"
    shutil.copytree(tiny_bundle, folder)
    add_form(folder, {**tiny_checkpoints, "semantic-features": mel_file}, "fp32")
    return folder


@pytest.fixture(scope="session")
def export_by_command():
    """A function that exports files by the command, in a process of its own: where Triton interprets kernels it compiles none. Returns what
    it said meanwhile."""
    import subprocess
    import sys

    def export(checkpoints: dict[str, Path], out: Path, *options: str) -> str:
        files = [part for name, path in checkpoints.items() for part in (f"--{name}", str(path))]
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        command = [sys.executable, "-m", "musiclm_deploy.cli", "export", *files, *options, "--out", str(out)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stderr

    return export


@pytest.fixture(scope="session")
def patches_bundle(tiny_bundle, tiny_checkpoints, mel_file, tmp_path_factory) -> Path:
    """The tiny bundle with MuLaN's graph from the patches on, as the export writes it where kernels are asked for; without kernels. Read
    only."""
    import shutil
    from dataclasses import replace

    from musiclm_deploy.export.collect import collect
    from musiclm_deploy.export.export import records_of
    from musiclm_deploy.export.mulan import build_mulan
    from musiclm_deploy.export.patches import export_patches
    from musiclm_deploy.runtime.bundle import MANIFEST, Bundle

    folder = tmp_path_factory.mktemp("patches") / "bundle"
    shutil.copytree(tiny_bundle, folder)
    collected, manifest = collect({**tiny_checkpoints, "semantic-features": mel_file}, {}), Bundle.open(folder).manifest
    mulan = build_mulan(collected.settings["mulan"], collected.checkpoints["mulan"].state)
    spectrogram = export_patches(mulan, folder / manifest.mulan.audio)
    assert spectrogram is not None
    (folder / MANIFEST).unlink()
    made = replace(manifest, mulan=replace(manifest.mulan, spectrogram=spectrogram), files=records_of(folder))
    (folder / MANIFEST).write_text(made.to_json(), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def kernel_bundle(good, export_by_command, tmp_path_factory) -> Path:
    """A tiny bundle with kernels in fp32 for one capability, by the command. Read only."""
    out = tmp_path_factory.mktemp("kernels") / "bundle"
    assert "kernels: 100%" in export_by_command(good, out, "--kernels", "fp32", "--compute-capability", "90")
    return out


@pytest.fixture(autouse=True)
def no_clip_left() -> Iterator[None]:
    """No clip runs any more when a test has ended: it would keep its rows, and the processor busy, for all that follow."""
    yield
    if running := [thread for thread in threading.enumerate() if thread.name == "musiclm"]:
        gc.collect()  # a stream in the traceback of an error that was expected
        for thread in running:
            thread.join(20)
        assert not any(thread.is_alive() for thread in running), "a clip runs on after this test"


@pytest.fixture
def collector_off() -> Iterator[None]:
    """Python's collector of cycles does not run: a GPU's memory must be free as soon as nothing refers to it, for what is asked of it next
    may need it."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(scope="session")
def music(tiny_bundle):
    """The tiny bundle, loaded on the CPU."""
    import musiclm_deploy as md

    with md.load(tiny_bundle, device="cpu") as model:
        yield model


@pytest.fixture(scope="module")
def bundle(request: pytest.FixtureRequest) -> Path:
    """The demo's bundle, where it was made: it makes music. Otherwise the tiny one, which makes noise."""
    from support.browser import DEMO

    return DEMO if (DEMO / "musiclm.json").is_file() else request.getfixturevalue("tiny_bundle")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window."""
    from support.browser import chromium

    with chromium() as started:
        yield started


@pytest.fixture
def run(capsys, monkeypatch, tmp_path) -> Callable[..., tuple[int, str, str]]:
    """`run("inspect", ...)`, the command line in an empty folder, gives the exit status, standard output and standard error."""
    from musiclm_deploy import cli

    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        try:
            status = cli.main([str(argument) for argument in arguments])
        except SystemExit as error:  # argparse
            status = error.code if isinstance(error.code, int) else 1
        return status, *capsys.readouterr()

    return call


@pytest.fixture
def never_loads(monkeypatch) -> None:
    """A test with this fixture fails if a model is loaded: arguments that can be refused at once must not cost that."""
    from musiclm_deploy.runtime import musiclm

    def load(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(musiclm, "load", load)


@pytest.fixture(scope="session")
def stages(tmp_path_factory):
    """Transformers by variant, name and precision (support/stages.py), exported when first asked for."""
    from support.stages import OPEN_MUSICLM, VARIANTS, Stage

    variants = VARIANTS | OPEN_MUSICLM
    made: dict[tuple[str, str, str], Stage] = {}

    def get(variant: str, stage: str, precision: str = "fp32") -> Stage:
        key = variant, stage, precision
        if key not in made:
            made[key] = Stage(stage, *variants[variant], tmp_path_factory.mktemp("stage"), precision)
        return made[key]

    return get


@pytest.fixture(scope="session")
def static_stages(tmp_path_factory):
    """The same by variant and name, in TensorRT's form, with caches of CAPACITY positions."""
    from support.stages import CAPACITY, VARIANTS, Stage

    made: dict[tuple[str, str], Stage] = {}

    def get(variant: str, stage: str) -> Stage:
        if (variant, stage) not in made:
            made[variant, stage] = Stage(stage, *VARIANTS[variant], tmp_path_factory.mktemp("stage"), capacity=CAPACITY)
        return made[variant, stage]

    return get


@pytest.fixture(scope="module")
def pools():
    """Pools of the native step by their threads; what is small is shared among them, too."""
    from musiclm_deploy.kernels.decoder_step import Pool, Unavailable

    try:
        return {threads: Pool(threads, least_bytes=0) for threads in (1, 2, 3)}
    except Unavailable as missing:  # no compiler here
        pytest.skip(str(missing))
