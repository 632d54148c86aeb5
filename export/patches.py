"""MuLaN's audio tower from its patches on, for GPUs, where a kernel makes them of the wave (kernels/spectrogram).

In: a MuLaN, the folder with its graph `mulan_audio.onnx`. Out: `mulan_patches.onnx`, which reads its weights in that graph's data, and the
manifest's `Spectrogram`; nothing for a spectrogram that the kernel does not make.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx.external_data_helper import ExternalDataInfo, set_external_data, uses_external_data
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from ..model import MuLaN
from ..runtime.bundle import Spectrogram
from .trace import trace

_FILTERS = "mulan_filters.npy"


def export_patches(mulan: MuLaN, audio: Path) -> Spectrogram | None:
    """Write `patches` [batch, rows, columns, bins * frames] fp32 -> `latent` [batch, dim_latent], beside the graph `audio` of the MuLaN."""
    spec, (bins, frames) = mulan.audio.spec, mulan.audio.patch_size
    is_hann = torch.equal(spec.window, torch.hann_window(len(spec.window)))
    if spec.power != 2 or spec.pad or not is_hann or (spec.center and spec.pad_mode != "reflect"):
        return None
    rows, graph = spec.rows // bins, audio.with_name("mulan_patches.onnx")
    dims = {0: Dim("batch"), 2: Dim("columns")}
    trace(_PatchLatents(mulan), (torch.zeros(2, rows, 3, bins * frames),), graph, ["patches"], ["latent"], [dims])
    _share_weights(graph, audio)
    if spec.mel is not None:
        np.save(audio.with_name(_FILTERS), spec.mel.numpy(), allow_pickle=False)
    filters = None if spec.mel is None else _FILTERS
    return Spectrogram(graph.name, spec.n_fft, len(spec.window), spec.hop_length, spec.center, bins, frames, filters)


class _PatchLatents(nn.Module):
    def __init__(self, mulan: MuLaN) -> None:
        super().__init__()
        self.mulan = mulan

    def forward(self, patches: Tensor) -> Tensor:
        return F.normalize(self.mulan.audio_to_latents(self.mulan.audio.embed_patches(patches)), dim=-1)


def _share_weights(graph: Path, other: Path) -> None:
    """Let a graph read its weights in the data of another, which must have them, and remove its own; what that lacks is put inside."""
    there, own = _weights(other), _weights(graph)
    data = {name: path.with_name(f"{path.name}.data").read_bytes() for name, path in (("there", other), ("own", graph))}
    places = {hashlib.sha256(data["there"][first:after]).digest(): first for first, after in there.values()}
    model = onnx.load(graph, load_external_data=False)
    for tensor in model.graph.initializer:
        if tensor.name in own:
            first, after = own[tensor.name]
            content = data["own"][first:after]
            tensor.raw_data = content
            if (place := places.get(hashlib.sha256(content).digest())) is not None:
                set_external_data(tensor, f"{other.name}.data", place, len(content))
                tensor.ClearField("raw_data")
            else:
                tensor.data_location = onnx.TensorProto.DEFAULT
                del tensor.external_data[:]
    graph.write_bytes(model.SerializeToString())
    graph.with_name(f"{graph.name}.data").unlink()


def _weights(graph: Path) -> dict[str, tuple[int, int]]:
    """Where each weight begins and ends in the graph's data."""
    found = {}
    for tensor in onnx.load(graph, load_external_data=False).graph.initializer:
        if uses_external_data(tensor):
            info = ExternalDataInfo(tensor)
            found[tensor.name] = int(info.offset or 0), int(info.offset or 0) + int(info.length or 0)
    return found
