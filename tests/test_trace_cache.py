"""Traces that are kept: a graph made of one is the graph that tracing makes, whatever the weights; nothing else is taken for the same."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from torch import nn

from musiclm_deploy.export.codec import export_codec_encode, export_codec_stream
from musiclm_deploy.export.mulan import export_mulan_text
from musiclm_deploy.export.trace_cache import key_of, read, traces_in, write
from musiclm_deploy.model import AudioSpectrogramTransformer, MuLaN, TextTransformer
from musiclm_deploy.model.encodec import EncodecConfig, EncodecDecoder
from musiclm_deploy.model.soundstream import SoundStreamConfig
from musiclm_deploy.model.soundstream_encoder import SoundStreamEncoder

CODEC = SoundStreamConfig(4, (2, 3), (2, 4), 16, 11, 2, 1, (1, 3, 9), (1, 3, 9), "reflect", False, True, 1, 2, 8, 8)
TOWER: dict[str, Any] = dict(dim=16, depth=1, heads=2, dim_head=8)


def encoder(seed: int, config: SoundStreamConfig = CODEC) -> SoundStreamEncoder:
    return with_weights(SoundStreamEncoder(config), seed)


def decoder(seed: int) -> EncodecDecoder:
    return with_weights(EncodecDecoder(EncodecConfig(2, (2, 2), 8, 11, 2)), seed)


def mulan(seed: int) -> MuLaN:
    audio = AudioSpectrogramTransformer(**TOWER, spec_n_fft=64, spec_win_length=32)
    return with_weights(MuLaN(audio, TextTransformer(**TOWER, num_tokens=50, max_seq_len=9), dim_latent=8), seed)


def with_weights(module: Any, seed: int) -> Any:
    """Return the module in evaluation mode, with random weights and codebooks."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if tensor.is_floating_point() and (isinstance(tensor, nn.Parameter) or "codebook" in name):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)
    return module.eval()


def content(path: Path) -> tuple[bytes, bytes]:
    return path.read_bytes(), path.with_name(f"{path.name}.data").read_bytes()


@pytest.mark.parametrize(
    ("build", "export"),
    [(encoder, export_codec_encode), (decoder, export_codec_stream), (mulan, export_mulan_text)],
    ids=["constants computed of weights", "LSTMs", "shared inputs"],
)
def test_cached_equals_fresh(build: Callable[[int], Any], export: Callable[[Any, Path], None], tmp_path: Path, monkeypatch) -> None:
    """Fault: something that depends on the weights stays as it was for the weights that were traced."""
    monkeypatch.delenv("MUSICLM_TRACE_CACHE")
    graph = tmp_path / "graph.onnx"  # the file's name stands in the graph
    export(build(2), graph)
    fresh = content(graph)
    with traces_in(tmp_path / "traces"):
        export(build(1), graph)
        assert content(graph) != fresh
        (kept,) = (tmp_path / "traces").iterdir()
        before = kept.stat().st_mtime_ns
        export(build(2), graph)
    assert content(graph) == fresh
    assert list((tmp_path / "traces").iterdir()) == [kept] and kept.stat().st_mtime_ns == before  # it was not traced again


def test_a_damaged_trace_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Fault: a file cut short by a full disk, or emptied, which protobuf may read without a word, fails every later export."""
    graph = tmp_path / "graph.onnx"
    with traces_in(tmp_path / "traces"), caplog.at_level(logging.INFO):
        export_mulan_text(mulan(1), graph)
        fresh = content(graph)
        (kept,) = (tmp_path / "traces").iterdir()
        for damaged in (kept.read_bytes()[:1000], b""):
            kept.write_bytes(damaged)
            caplog.clear()
            export_mulan_text(mulan(1), graph)
            assert f"{kept} is damaged: what it held is traced again." in caplog.text
            assert content(graph) == fresh
        export_mulan_text(mulan(1), graph)
        assert f"traced before: {kept}" in caplog.text


def test_a_folder_that_cannot_be_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Fault: the export ends, minutes in, for a folder that only spares time."""
    (tmp_path / "file").write_text("")
    with traces_in(tmp_path / "file"):
        assert read("key") is None
        write("key", ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 20}, name="g"), ir_version=10))
    assert f"a trace is not kept in {tmp_path / 'file'}: File exists. The next export traces it again." in caplog.text


def test_what_a_key_tells_apart() -> None:
    """Fault: one module's trace is taken for another's. Weights alone do not matter."""
    wave = torch.zeros(2, 60)
    layout = (["wave"], ["codes"], [{0: "batch"}], 20)
    key = key_of(encoder(1), (wave,), layout)
    assert key == key_of(encoder(2), (torch.ones(2, 60),), layout)
    others = [
        key_of(encoder(1, replace(CODEC, enc_cycle_dilations=(1, 2, 9))), (wave,), layout),  # the same shapes
        key_of(encoder(1, replace(CODEC, codebook_size=12)), (wave,), layout),
        key_of(encoder(1), (torch.zeros(2, 66),), layout),
        key_of(encoder(1), (wave.double(),), layout),
        key_of(encoder(1), (wave,), (["wave"], ["codes"], [{0: "batch", 1: "frames"}], 20)),
        key_of(encoder(1).double(), (wave,), layout),
        key_of(mulan(1), (wave,), layout),
    ]
    assert len({key, *others}) == 1 + len(others)
    holder = nn.Module()
    holder.scale = lambda x: 2 * x  # type: ignore[assignment]
    with pytest.raises(TypeError, match=r"scale is a .*function, which cannot be part of a key: make it a buffer"):
        key_of(holder, (wave,), layout)
