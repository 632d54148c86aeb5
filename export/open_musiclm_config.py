"""The JSON of a model that open-musiclm keeps in configs/ beside its checkpoints, as overrides of the parts of an export.

In: the file. Out: `{part: {setting: value}}`: what no tensor tells, and windows of seconds as tokens and frames.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..runtime.user_files import read_text
from .errors import ExportError
from .open_musiclm import SEQUENCES, UNTOLD

_MOST_HZ, _MOST_SECONDS = 1000, 600  # beyond what anybody trains: a table of biases has an entry for each position of a window
_OF_STAGE = ("dim", "depth", "heads", "relative_position_bias_type", "use_conv_ff", "use_absolute_position_embeddings")


def with_model_config(
    overrides: Mapping[str, Mapping[str, Any]], path: Path | None, sources: Mapping[str, Path]
) -> Mapping[str, Mapping[str, Any]]:
    """Return the overrides of parts with what the JSON says beneath them, as far as it is of files among `sources`."""
    if path is None:
        return overrides
    files = {"wav2vec": "hubert"}
    found = {part: values for part, values in read_model_config(path).items() if files.get(part, part) in sources}
    return {**overrides, **{part: values | dict(overrides.get(part, {})) for part, values in found.items()}}


def read_model_config(path: Path) -> dict[str, dict[str, Any]]:
    """Return the overrides that the JSON means: part -> setting -> value. Raises ExportError for another file."""
    option = f"--open-musiclm-config {path}"
    try:
        given = json.loads(read_text(path))
    except OSError as error:
        raise ExportError(f"{option}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{option}: not JSON: {error}") from error
    wanted = ("global_cfg", "hubert_kmeans_cfg", "encodec_cfg", *(f"{stage}_cfg" for stage in SEQUENCES))
    missing = [name for name in wanted if not isinstance(given, dict) or not isinstance(given.get(name), dict)]
    if missing:
        raise ExportError(f"{option}: not the JSON of a model of open-musiclm: it has no {', '.join(missing)}.")
    hubert, clip, codec = given["hubert_kmeans_cfg"], given["global_cfg"], given["encodec_cfg"]

    def number(record: str, name: str, most: float) -> float:
        value = given[record].get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
            raise ExportError(f"{option}: {record}: {name}: expected a number above 0 and at most {most:g}, got {value!r}.")
        return float(value)

    tokens, frames = (number(record, "output_hz", _MOST_HZ) for record in ("hubert_kmeans_cfg", "encodec_cfg"))
    seconds = {stage: number("global_cfg", f"{stage}_audio_length_seconds", _MOST_SECONDS) for stage in SEQUENCES}
    codes = _known(given.get("clap_rvq_cfg"), num_clap_quantizers="rq_num_quantizers", clap_codebook_size="codebook_size")
    semantic, acoustic = _known(hubert, num_semantic_tokens="codebook_size"), _known(codec, codebook_size="codebook_size")
    coarse, fine = (_known(clip, **{f"num_{name}_quantizers": f"num_{name}_quantizers"}) for name in ("coarse", "fine"))
    read = {"semantic": semantic, "coarse": semantic | acoustic | coarse, "fine": acoustic | coarse | fine}
    found: dict[str, dict[str, Any]] = {}
    for stage in SEQUENCES:
        of_stage = given[f"{stage}_cfg"]
        found[stage] = {name: of_stage.get(name, default) for name, default in zip(UNTOLD, (0, False), strict=True)}
        found[stage] |= codes | read[stage] | {name: of_stage[name] for name in _OF_STAGE if name in of_stage}
    found["semantic"] |= {"max_length": int(seconds["semantic"] * tokens), "tokens_per_second": tokens}
    found["coarse"] |= {"max_time_steps": int(seconds["coarse"] * frames), "semantic_window": int(seconds["coarse"] * tokens - 1)}
    found["fine"]["max_time_steps"] = int(seconds["fine"] * frames)
    for stage, name in itertools.product(SEQUENCES, ("max_length", "max_time_steps", "semantic_window")):
        if (length := found[stage].get(name, 2)) < 2:
            made = f"{stage}_audio_length_seconds = {seconds[stage]:g} makes {name} = {length}"
            raise ExportError(f"{option}: {made}, less than the two of which a window goes on by one.")
    found["wav2vec"] = {"output_layer": hubert.get("embed_layer", 7), "normalize": True, "normalize_eps": 1e-7}
    found["wav2vec"]["normalize_features"] = hubert.get("normalize_embeds", False)
    found["wav2vec"]["seq_len_multiple_of"] = hubert.get("seq_len_multiple_of", 320)
    return found


def _known(record: Any, **names: str) -> dict[str, Any]:
    """Return what a record says, by the names of our settings."""
    return {ours: record[name] for ours, name in names.items() if isinstance(record, dict) and name in record}
