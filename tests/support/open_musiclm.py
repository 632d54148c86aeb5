"""A tiny MusicLM as open-musiclm keeps one, every weight random: three transformers, CLAP's codebooks, the JSON of the model.

And the golden files that its own code wrote.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from musiclm_deploy.export.checkpoint import Checkpoint
from musiclm_deploy.export.stage import export_stage
from musiclm_deploy.export.transformers import infer_transformer
from musiclm_deploy.model.open_musiclm import TokenConditionedTransformer
from musiclm_deploy.runtime.bundle import Decoder

GOLDEN = Path(__file__).parent.parent / "golden" / "open_musiclm"
SAID = {"non_causal_prefix_size": 0, "use_memory_efficient_attention": False}
CLAP, SEMANTIC, CODES, COARSE, FINE = (3, 11), (1, 19), 13, 2, 3
SEQUENCES = {
    "semantic": [CLAP, SEMANTIC],
    "coarse": [CLAP, SEMANTIC, (COARSE, CODES)],
    "fine": [CLAP, (COARSE, CODES), (FINE, CODES)],
}
SIZES = {"dim": 24, "depth": 2, "heads": 3}
SECONDS = {"semantic": 1.0, "coarse": 0.4, "fine": 0.2}  # of a window


def model_config(**of_stage: Any) -> dict[str, Any]:
    """Return the JSON of the model. of_stage: further settings of all three transformers."""
    stage = {**SIZES, "non_causal_prefix_size": 0, "use_memory_efficient_attention": False, **of_stage}
    return {
        "global_cfg": {f"{name}_audio_length_seconds": seconds for name, seconds in SECONDS.items()}
        | {"num_coarse_quantizers": COARSE, "num_fine_quantizers": FINE},
        "clap_rvq_cfg": {"rq_num_quantizers": CLAP[0], "codebook_size": CLAP[1]},
        "hubert_kmeans_cfg": {"model_name": "m-a-p/MERT-v0", "normalize_embeds": True, "embed_layer": 7, "output_hz": 50},
        "encodec_cfg": {"bandwidth": 6.0, "codebook_size": CODES, "output_hz": 50},
        **{f"{name}_cfg": stage for name in SEQUENCES},
    }


def write_checkpoints(folder: Path, latent: int = 32, seed: int = 0, dim_head: int = 8, **of_stage: Any) -> dict[str, Path]:
    """Write the files as open-musiclm's trainer does; return them by the names of `export_checkpoints`."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    files = {}
    for stage, sequences in SEQUENCES.items():
        sizes: dict[str, Any] = {**SIZES, **of_stage}
        transformer = TokenConditionedTransformer(sequences, sizes.pop("dim"), sizes.pop("depth"), dim_head=dim_head, **sizes)
        for name, parameter in transformer.named_parameters():
            if name.endswith(("gamma", "_scale")):
                torch.nn.init.normal_(parameter, 1.0, 0.2)
        files[stage] = folder / f"{stage}.transformer.10.pt"
        torch.save(transformer.state_dict(), files[stage])
    books: dict[str, torch.Tensor] = {}
    for index in range(CLAP[0]):
        at = f"layers.{index}._codebook."
        embed = torch.randn(1, CLAP[1], latent) * 0.3
        books |= {
            at + "initted": torch.tensor([True]),
            at + "cluster_size": torch.ones(1, CLAP[1]),
            at + "embed_avg": embed,
            at + "embed": embed,
        }
    files["quantizer"] = folder / "clap.rvq.10.pt"
    torch.save(books, files["quantizer"])
    files["open_musiclm_config"] = folder / "tiny.json"
    files["open_musiclm_config"].write_text(json.dumps(model_config(**of_stage)))
    return files


def export_golden(values: Any, stage: str, folder: Path, precision: str = "fp32", **said: Any) -> Decoder:
    """Export a stage of a golden file into `folder`."""
    checkpoint = checkpoint_of(values, stage)
    window = {"max_length": 20} if stage == "semantic" else {"max_time_steps": 8}
    window |= {"semantic_window": 20} if stage == "coarse" else {}
    inferred = infer_transformer(stage, checkpoint, SAID | window | said)
    return export_stage(stage, checkpoint, inferred, folder, 20, 1, precision)


def checkpoint_of(values: Any, stage: str) -> Checkpoint:
    """Return the weights of a golden file."""
    state = {name.removeprefix("w."): torch.from_numpy(values[name].astype(np.float32)) for name in values if name.startswith("w.")}
    return Checkpoint(f"{stage}.transformer.10.pt", state)
