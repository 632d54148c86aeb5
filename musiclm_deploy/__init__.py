"""MusicLM, deployed: trained checkpoints to a bundle of ONNX graphs, and a bundle to music without torch.

The public names load on first use, so `import musiclm_deploy` costs nothing and needs none of the optional packages.
"""

from importlib import import_module
from pathlib import Path

__version__ = "0.1.0"

_PUBLIC = {
    "Blend": ".runtime.prompts",
    "BackendError": ".runtime.backend",
    "BundleError": ".runtime.bundle",
    "ExportError": ".export.errors",
    "Chunk": ".runtime.track",
    "GenerationCancelled": ".runtime.pipeline",
    "GenerationConfig": ".runtime.config",
    "MusicLM": ".runtime.musiclm",
    "QueueFull": ".runtime.scheduler",
    "SamplingConfig": ".runtime.sampling",
    "Stream": ".runtime.stream",
    "Window": ".runtime.windows",
    "diagnose": ".export.doctor",
    "export_checkpoints": ".export.export",
    "export_musiclm": ".export.live",
    "generate_arguments": ".runtime.provenance",
    "load": ".runtime.musiclm",
    "read_record": ".runtime.provenance_file",
}

# In a checkout the folders export/, runtime/, kernels/ and model/ stand beside this one; in an installed wheel they stand inside it.
_ROOT = Path(__file__).resolve().parent.parent
if (_ROOT / "setup.py").is_file() and (_ROOT / "runtime" / "bundle.py").is_file():
    __path__.append(str(_ROOT))


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(_PUBLIC[name], __name__), name)
    except ModuleNotFoundError as error:
        if not _PUBLIC[name].startswith(".export"):
            raise
        from .runtime.install import install_command

        advice = f"{install_command('cpu', 'export', 'train')}, and upstream as the README says"
        raise ImportError(f"{name} needs the package {error.name}, which is not installed: {advice}.") from error


def __dir__() -> list[str]:
    return sorted([*_PUBLIC, "__version__"])
