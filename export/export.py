"""Checkpoints to bundle: every stage exported, validated in a fresh process, written aside, then renamed into place.

In: paths of checkpoints, overrides. Out: a bundle directory, complete or not there at all.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from hashlib import file_digest
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .. import __version__
from ..runtime.aside import folder_aside, remove_abandoned, replace_folder
from ..runtime.bundle import MANIFEST, Conditioner, FileRecord, Manifest, Step
from ..runtime.engines.form import FOLDER as FORM
from . import graph, trace
from .arguments import list_of, overrides_of, path_of, sources_of
from .calibration import sounds_in
from .checkpoint import read_checkpoint
from .codec import export_codec
from .collect import Collected, collect, conditioner_tables, settings_table, warnings_of
from .errors import ExportError, naming
from .fit import conditioning_dim
from .kernels import capabilities_of, check_types, pack_kernels
from .mulan import export_conditioner
from .open_musiclm import is_open_musiclm
from .open_musiclm_config import with_model_config
from .precision import Chosen, choose, narrower, wanted
from .semantic_tokens import build_tokenizer, export_wav2vec
from .stage import export_stage
from .tensorrt import record_form, write_form
from .text_tokenizer import is_roberta, tokenizer_of, write_tokenizer
from .towers import build_towers, export_towers
from .trace_cache import traces_in
from .transformers import STAGES

_FATAL = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows has no SIGHUP
_STEPS = ("read", *STAGES, "mulan", "conditioner", "codec", "wav2vec", "validate", "write")  # and, for some, "tensorrt"


def export_checkpoints(
    *,
    semantic: str | os.PathLike,
    coarse: str | os.PathLike,
    fine: str | os.PathLike,
    codec: str | os.PathLike,
    quantizer: str | os.PathLike | Mapping[str, str | os.PathLike],
    out: str | os.PathLike,
    mulan: str | os.PathLike | None = None,
    semantic_features: str | os.PathLike | None = None,
    hubert: str | os.PathLike | None = None,
    kmeans: str | os.PathLike | None = None,
    tokenizer: str | os.PathLike | None = None,
    config: Mapping[str, Any] | None = None,
    open_musiclm_config: str | os.PathLike | None = None,
    target: str = "onnxruntime",
    precision: str | Mapping[str, str] = "fp32",
    force: bool = False,
    calibration: str | os.PathLike | None = None,
    kernels: Sequence[str] = (),
    compute_capabilities: Sequence[int] | None = None,
    trace_cache: str | os.PathLike | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> Path:
    """Export trained checkpoints to the bundle `out`.

    quantizer: one file for all stages, or {stage: file}. mulan: a MuLaN or a CLAP; may be left out where a quantizer file contains it.
    semantic_features: the file of the MelKmeans that the semantic transformer was trained with; or hubert and kmeans: the two that
    upstream's HubertWithKmeans takes, the first may be a Hugging Face folder. Without either the bundle makes no tokens of sounds.
    tokenizer: the `tokenizer.json` of the Hugging Face tokenizer whose ids MuLaN's text tower was trained on, or its folder; by default
    CLIP's tokenizer, as in musiclm-pytorch. Of a CLAP RoBERTa's files, by default those beside it.
    config: overrides, `{"semantic": {"cond_as_self_attn_prefix": True}}`, under upstream's argument names.
    open_musiclm_config: the JSON of the model that open-musiclm keeps beside its checkpoints, for what these do not tell.
    target: "onnxruntime"; or "tensorrt", for a bundle that also has what TensorRT's engines are built of, and kernels that draw its tokens.
    precision: of the transformers' large matrices: "fp32", "int8", "int4", or "auto", the narrowest that loses little; or {stage: one of
    these}. With the target tensorrt "fp32", "fp16" or "bf16", of all products there; ONNX Runtime has fp32 then. force: take a precision
    that loses more than it may. calibration: a folder of sounds to measure that on, in place of what the fp32 model makes of a few texts.
    kernels: types of weights, fp16, bf16, fp32, or int8 of a bundle of 8 bits, for which what device="cuda" launches is compiled into the
    bundle, by Triton and on any machine; compute_capabilities: of the GPUs that they are for, 90 for 9.0, all that the compiler knows by
    default.
    trace_cache: a folder that keeps what tracing MuLaN and the codec gives, without weights, so that the next export of the same settings
    takes a quarter to a half of the time; by default the one that MUSICLM_TRACE_CACHE names, or none.
    Raises ExportError when a checkpoint is refused or a stage misses its tolerance; then nothing is left behind.
    """
    files = {"semantic": semantic, "coarse": coarse, "fine": fine, "codec": codec}
    optional = {"mulan": mulan, "semantic-features": semantic_features, "hubert": hubert, "kmeans": kmeans, "tokenizer": tokenizer}
    sources, overrides, kernels = sources_of(files, optional, quantizer), overrides_of(config), list_of(kernels, "kernels")
    if open_musiclm_config is not None:
        overrides = with_model_config(overrides, path_of(open_musiclm_config, "open_musiclm_config"), sources)
    compute_capabilities = None if compute_capabilities is None else list_of(compute_capabilities, "compute_capabilities")
    trace_cache = None if trace_cache is None else path_of(trace_cache, "trace_cache")

    out, asked = path_of(out, "out"), wanted(precision, target)
    engines = asked[STAGES[0]] if target == "tensorrt" else None
    check_types(kernels)
    if "int8" in kernels and set(asked.values()) != {"int8"}:
        raise ExportError("kernels for int8 are those of stages of 8 bits: give precision int8, of all stages, too.")
    if kernels or engines:
        capabilities_of(compute_capabilities)  # now, and not when minutes have gone into the graphs
        _refuse_gpus(sources["semantic"])
    sounds = [] if calibration is None else _calibration(path_of(calibration, "calibration"), asked, sources)
    if out.parent.is_dir():
        remove_abandoned(out.parent, out.name)
    _check_out(out, overwrite)
    bar = tqdm(total=len(_STEPS) + (engines is not None), desc="export", unit="step", disable=quiet, file=sys.stderr)
    with bar, traces_in(trace_cache), _aside(out) as folder:
        manifest = write_stages(sources, overrides, folder, bar, quiet, bool(kernels))
        if engines is None:
            candidates = _write_narrow(sources, overrides, asked, folder)
        else:
            _step(bar, "tensorrt")
            candidates = write_form(collect(sources, overrides), manifest, folder, engines)
        _step(bar, "validate")
        measured = validate_in_new_process(folder, sources, overrides, candidates, sounds)
        chosen = choose(asked, measured["narrow"], force)
        if candidates and not quiet:
            bar.write("\n".join(f"{stage}: {item}" for stage, item in chosen.items()), file=sys.stderr)
        _step(bar, "write")
        quality = {stage: item.record() for stage, item in chosen.items()}
        if engines is None:
            manifest = _take(manifest, chosen, candidates, folder)
        else:
            record_form(folder, engines, candidates, records_of(folder / FORM))
            measured["fake_quantized"] |= quality
            quality = {stage: item.record() for stage, item in choose(wanted("fp32"), {}, force).items()}
        quality |= measured["quality"]
        for name, lost in measured["fake_quantized"].items():
            quality[name] = quality.get(name, {}) | {"tensorrt": lost}
        (folder / MANIFEST).write_text(replace(manifest, errors=measured["errors"], quality=quality).to_json(), encoding="utf-8")
        if kernels or engines:
            pack_kernels(folder, kernels, compute_capabilities, quiet, engines)
        _check_out(out, overwrite)  # once more: something may have been put there meanwhile
        replace_folder(folder, out)
        bar.update()
    return out


def _refuse_gpus(semantic: Path) -> None:
    """Raise ExportError for a transformer that runs on CPUs alone."""
    if is_open_musiclm(read_checkpoint(semantic, "semantic").state):
        raise ExportError(
            "open-musiclm's transformers run on CPUs alone: no kernel and no engine here computes their normalised attention and their "
            "convolution. Leave out --kernels and --target tensorrt."
        )


def _calibration(folder: Path, asked: Mapping[str, str], sources: Mapping[str, Path]) -> list[Path]:
    """Its sounds. What makes them useless is said before anything is exported."""
    if not any(narrower(name) for name in asked.values()):
        raise ExportError("calibration measures what 8 and 4 bits lose, and every stage is fp32: give a precision too, or leave it out.")
    if not {"semantic-features", "hubert"} & sources.keys():
        raise ExportError("calibration needs the semantic tokens of its sounds: give --semantic-features, or --hubert and --kmeans.")
    return sounds_in(folder)


def write_stages(
    sources: Mapping[str, Path], overrides: Mapping[str, Any], folder: Path, bar: tqdm, quiet: bool, kernels: bool
) -> Manifest:
    """Write every graph in fp32, the tokenizer and a manifest without measurements. kernels: whether a kernel makes MuLaN's patches."""
    _step(bar, "read", first=True)
    collected = collect(sources, overrides)
    if not quiet:
        bar.write("\n".join((settings_table(collected), *(f"warning: {text}" for text in warnings_of(collected)))), file=sys.stderr)
    settings, checkpoints = collected.settings, collected.checkpoints
    groups = settings["codec"]["rq_groups"]
    decoders = {}
    for stage in STAGES:
        _step(bar, stage)
        decoders[stage] = export_stage(stage, checkpoints[stage], settings[stage], folder, settings["semantic"]["max_length"], groups)

    _step(bar, "mulan")
    codec_hz = settings["codec"]["target_sample_hz"]
    with naming(checkpoints["mulan"].name):
        towers = build_towers(settings["mulan"], checkpoints["mulan"].state)
    mulan = export_towers(towers, checkpoints["mulan"], settings["mulan"], settings.get("tokenizer"), codec_hz, folder, kernels)
    write_tokenizer(tokenizer_of(sources, settings["mulan"]), folder, is_roberta(settings["mulan"]))
    _step(bar, "conditioner")
    conditioner = _export_conditioner(collected, folder)

    _step(bar, "codec")
    with naming(checkpoints["codec"].name):
        codec = export_codec(settings["codec"], checkpoints["codec"].state, folder)
    _step(bar, "wav2vec")
    wav2vec = None
    if "wav2vec" in checkpoints:
        tokenizer = build_tokenizer(checkpoints["wav2vec"], settings["wav2vec"])
        wav2vec = export_wav2vec(tokenizer, settings["wav2vec"], folder)

    manifest = Manifest(
        mulan=mulan,
        conditioner=conditioner,
        **decoders,
        codec=codec,
        wav2vec=wav2vec,
        seconds=settings["semantic"].values().get("output_seconds"),
        unique_consecutive=settings["semantic"]["unique_consecutive"],
        semantic_tokens_per_second=float(settings["semantic"]["tokens_per_second"]),
        made_by={
            "musiclm-deploy": __version__,
            **{name: version(name) for name in ("torch", "onnx", "onnxscript")},
            "opset": f"{graph.OPSET} (transformers), {trace.OPSET} (other stages)",
        },
        sources={
            name: {
                "file": item.name,
                "sha256": item.sha256 or "",
                "version": item.version or "",
                "weights": item.weights[0] if item.weights else "",
            }
            for name, item in checkpoints.items()
        },
        settings={name: {key: [item.value, item.source] for key, item in part.items()} for name, part in settings.items()},
        errors={},
        quality={},
        files=records_of(folder),
    )
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def _write_narrow(
    sources: Mapping[str, Path], overrides: Mapping[str, Any], asked: Mapping[str, str], folder: Path
) -> dict[str, dict[str, dict[str, Any]]]:
    """The transformers in the 8 and 4 bits that may be taken, in folders of that name beside `folder`: stage -> precision -> its `Step`."""
    if not any(narrower(asked[stage]) for stage in STAGES):
        return {}
    collected = collect(sources, overrides)
    settings, written = collected.settings, {}
    sizes = settings["semantic"]["max_length"], settings["codec"]["rq_groups"]
    for stage in STAGES:
        for precision in narrower(asked[stage]):
            beside = folder.with_name(precision)
            beside.mkdir(exist_ok=True)
            record = export_stage(stage, collected.checkpoints[stage], settings[stage], beside, *sizes, precision)
            written.setdefault(stage, {})[precision] = asdict(record.step)
    return written


def _take(manifest: Manifest, chosen: Mapping[str, Chosen], narrow: Mapping[str, Mapping[str, Any]], folder: Path) -> Manifest:
    """Put the graphs that were chosen in the place of those in fp32."""
    for stage, item in chosen.items():
        if item.precision in narrow.get(stage, {}):
            decoder = getattr(manifest, stage)
            for name in (decoder.graph, f"{decoder.graph}.data"):
                (folder.with_name(item.precision) / name).replace(folder / name)
                manifest.files[name] = record_of(folder / name)
            manifest = replace(manifest, **{stage: replace(decoder, step=Step(**narrow[stage][item.precision]))})
    return manifest


def _export_conditioner(collected: Collected, folder: Path) -> Conditioner:
    export_conditioner(conditioner_tables(collected), folder / "conditioner.onnx")
    settings = {stage: collected.settings[f"quantizer.{stage}"] for stage in collected.conditioned}
    last = settings[collected.conditioned[-1]]
    dims = {stage: conditioning_dim(quantizer, stage) or 0 for stage, quantizer in settings.items()}
    return Conditioner("conditioner.onnx", last["rq_num_quantizers"], last["codebook_size"], dims)


def validate_in_new_process(
    folder: Path, sources: Mapping[str, Path], overrides: Mapping[str, Any], candidates: Mapping[str, Any], sounds: list[Path]
) -> dict[str, Any]:
    """Run `export.validate` in a process of its own: what it loads is what a user would load, from disk and from scratch."""
    task: dict[str, Any] = {
        "bundle": str(folder),
        "sources": {name: str(path) for name, path in sources.items()},
        "overrides": dict(overrides),
        "candidates": candidates,
        "sounds": [str(path) for path in sounds],
    }
    result = subprocess.run(
        [sys.executable, "-m", "musiclm_deploy.export.validate"],
        input=json.dumps(task),
        encoding="utf-8",
        errors="backslashreplace",
        capture_output=True,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),  # the same packages as here
            "PYTHONIOENCODING": "utf-8:backslashreplace",
        },
    )
    if result.returncode != 0:
        raise ExportError(f"validation failed:\n{result.stderr.strip() or f'its process ended with status {result.returncode}'}")
    return json.loads(result.stdout.splitlines()[-1])


def records_of(folder: Path) -> dict[str, FileRecord]:
    """Return the manifest's record of every file of a folder, by name."""
    return {path.name: record_of(path) for path in sorted(folder.iterdir())}


def record_of(path: Path) -> FileRecord:
    """Return the manifest's record of a file."""
    with path.open("rb") as file:
        return FileRecord(path.stat().st_size, file_digest(file, "sha256").hexdigest())


def _check_out(out: Path, overwrite: bool) -> None:
    if os.path.lexists(out) and not (overwrite and (out / MANIFEST).is_file()):
        raise ExportError(
            f"{out} exists already" + (" and is not a bundle." if overwrite else "; give another --out, or --overwrite to replace it.")
        )
    if not out.parent.is_dir():
        raise ExportError(f"{out.parent} is not a directory; make it first.")


@contextmanager
def _aside(out: Path) -> Iterator[Path]:
    """A folder beside `out`, gone again unless it was renamed: also after an interrupt, a termination, a hangup or a full disk."""
    in_main = threading.current_thread() is threading.main_thread()
    fatal = [number for number in _FATAL if in_main and signal.getsignal(number) == signal.SIG_DFL]
    for number in fatal:
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        with folder_aside(out) as folder:
            yield folder
    except OSError as error:
        # numpy gives no number for a file that ends early, which a full disk and ulimit -f bring about
        reason = error if error.errno is not None else f"No space left, or ulimit -f does not allow as much ({error})"
        raise ExportError(f"the bundle could not be written: {reason}. Nothing was left behind.") from error
    finally:
        for number in fatal:
            signal.signal(number, signal.SIG_DFL)


def _step(bar: tqdm, name: str, first: bool = False) -> None:
    if not first:
        bar.update()
    bar.set_description(f"export: {name}")
