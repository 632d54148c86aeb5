"""Upstream's import is tested in processes of its own: what a process has imported once, it cannot import differently."""

from pathlib import Path

from support import ROOT
from support.processes import in_fresh_process


def test_import_leaves_the_process_as_it_was() -> None:
    """Fault: the import silences warnings and the root logger, or leaves a stand-in or our kernels/ in sys.modules for others to find."""
    in_fresh_process("""
import logging, sys, warnings
warn, level = warnings.warn, logging.root.level

from musiclm_deploy.model.upstream import load_upstream
load_upstream()
load_upstream()

import audiolm_pytorch, musiclm_pytorch, torch, torchaudio, transformers.integrations
assert warnings.warn is warn and logging.root.level == level
assert sys.modules["kernels"] is None, sys.modules["kernels"]
assert not {"fairseq", "torchvision"} & {name for name, module in sys.modules.items() if type(module).__name__ == "_StandIn"}
assert torchaudio.functional.resample(torch.zeros(1, 99), 3, 2).shape == (1, 66)
""")


def test_use_of_a_stand_in_names_the_package() -> None:
    """Fault: HuBERT without fairseq fails deep inside upstream with an error that does not say what to install."""
    in_fresh_process("""
import sys, tempfile
sys.modules["fairseq"] = sys.modules["torchvision"] = None  # as if not installed, also where they are

from musiclm_deploy.model.upstream import load_upstream
load_upstream()

import torch
from audiolm_pytorch import HubertWithKmeans
from x_clip import visual_ssl

def message(use):
    try:
        use()
    except ImportError as error:
        return str(error)

with tempfile.NamedTemporaryFile() as checkpoint:
    torch.save({}, checkpoint.name)
    hubert = message(lambda: HubertWithKmeans(checkpoint_path=checkpoint.name, kmeans_path=checkpoint.name))
assert hubert.startswith("fairseq is needed for upstream's HubertWithKmeans and FairseqVQWav2Vec"), hubert
augmentation = message(lambda: visual_ssl.T.RandomGrayscale(p=0.2))
assert augmentation.startswith("torchvision.transforms is needed for x-clip's augmentation of images"), augmentation
""")


def test_transformers_are_built_without_network() -> None:
    """Fault: each transformer asks a model hub for a T5 config, even when it is conditioned on MuLaN."""
    in_fresh_process("""
import os, socket
os.environ.pop("HF_HUB_OFFLINE", None)

from musiclm_deploy.model.upstream import load_upstream
load_upstream()

def refuse(*args, **kwargs):
    raise AssertionError("the network was asked")
socket.getaddrinfo = socket.create_connection = socket.socket.connect = refuse

from audiolm_pytorch import CoarseTransformer, FineTransformer, SemanticTransformer
sizes = dict(dim=8, depth=1, heads=1, dim_head=8, audio_text_condition=True)
SemanticTransformer(num_semantic_tokens=5, **sizes)
CoarseTransformer(num_semantic_tokens=5, codebook_size=6, num_coarse_quantizers=2, **sizes)
FineTransformer(codebook_size=6, num_coarse_quantizers=2, num_fine_quantizers=3, **sizes)
""")


def test_missing_upstream_names_the_pip_lines() -> None:
    """Fault: without upstream the user gets a bare ModuleNotFoundError, or pip lines whose versions are no longer the tested ones."""
    pins = [line for line in (ROOT / "requirements" / "upstream.txt").read_text().splitlines() if "==" in line]
    in_fresh_process(f"""
import sys
sys.modules["torchaudio"] = sys.modules["audiolm_pytorch"] = None

from musiclm_deploy.model.upstream import load_upstream
try:
    load_upstream()
except ImportError as error:
    message = str(error)
assert "torchaudio" in message, message
assert "pip install --no-deps {" ".join(pins)}" in message, message
""")


def test_sound_files_are_read_and_written_without_torchcodec(tmp_path: Path) -> None:
    """Fault: upstream's data set and codec trainer stop at the first file, since torchaudio leaves those to a package that needs FFmpeg."""
    in_fresh_process(f"""
import sys
sys.modules["torchcodec"] = None

from musiclm_deploy.model.upstream import load_upstream
load_upstream()

import torch, torchaudio
from audiolm_pytorch.data import SoundDataset
wave = torch.stack((torch.linspace(-0.5, 0.5, 900), torch.zeros(900)))
torchaudio.save({str(tmp_path)!r} + "/a.flac", wave, 8000)
read, hz = torchaudio.load({str(tmp_path)!r} + "/a.flac", frame_offset=100, num_frames=300)
assert hz == 8000 and (read - wave[:, 100:400]).abs().max() < 2**-15
(item,) = SoundDataset({str(tmp_path)!r}, target_sample_hz=8000)
assert (item - wave.mean(0)).abs().max() < 2**-15
""")
