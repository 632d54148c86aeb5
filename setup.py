"""Describes the distribution; the settings of the tools are in pyproject.toml, the exact versions of the checks in requirements/.

The folders at the root are mapped below one name, so that no `export`, `runtime`, `kernels` or `model` lands bare in site-packages:
installed bare, `kernels` would overwrite the Hugging Face package of that name.

The native decode step is a plain shared library, opened with ctypes: one wheel of a platform serves every Python. It is optional: where no
C++17 compiler of GCC's or Clang's kind is found the install goes on without, and every step runs in the ONNX graph.
"""

from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
FOLDERS = ("export", "kernels", "model", "runtime", "serve")

package_dir = {"musiclm_deploy": "musiclm_deploy", "musiclm_deploy.commands": "musiclm_deploy/commands"}
for folder in FOLDERS:
    for init in sorted((ROOT / folder).rglob("__init__.py")):
        path = init.parent.relative_to(ROOT)
        package_dir[".".join(("musiclm_deploy", *path.parts))] = path.as_posix()

STEP = "kernels/decoder_step"
step_sources = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / STEP).glob("*.cpp"))
decoder_step = Extension(
    "musiclm_deploy.kernels.decoder_step.libdecoder_step",
    step_sources,
    depends=sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / STEP).glob("*.h")),
    language="c++",
    # the last: GCC 12 warns of its own AVX-512 headers
    extra_compile_args=["-std=c++17", "-O3", "-g0", "-ffp-contract=fast", "-fvisibility=hidden", "-pthread", "-Wno-maybe-uninitialized"],
    extra_link_args=["-pthread"],
    optional=True,
)


class BuildLibrary(build_ext):
    """No Python module: a name without Python's version, and no init function."""

    def get_ext_filename(self, fullname):
        return str(Path(*fullname.split(".")).with_suffix(".so"))

    def get_export_symbols(self, ext):
        return []


class PlatformWheel(bdist_wheel):
    """A wheel for this platform and any Python 3."""

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


# Read as text: importing the package would run it before it is built.
front_door = (ROOT / "musiclm_deploy" / "__init__.py").read_text(encoding="utf-8")
version = front_door.split('__version__ = "')[1].split('"')[0]

# The lower bounds are the versions that the tests run with; but no test runs onnxruntime-gpu, the full TensorRT or pycuda.
TORCH = "torch>=2.13,<3"
EXTRAS = {
    "cpu": ["onnxruntime>=1.32,<2"],
    "gpu": ["onnxruntime-gpu[cuda,cudnn]>=1.31,<2", "cuda-python>=13,<14"],
    "tensorrt": ["tensorrt>=10.15,<12", "cuda-python>=13,<14"],
    "tensorrt-rtx": ["tensorrt-rtx-cu13-bindings>=1.7,<2", "tensorrt-rtx-cu13-libs>=1.7,<2", "cuda-python>=13,<14"],
    "pycuda": ["pycuda>=2026.1"],  # whose arrays are taken as sounds; nothing here imports it
    "export": [
        TORCH,
        "einops>=0.8,<1",
        "onnx>=1.23,<2",
        "onnx-ir>=1.1,<2",
        "onnxscript>=0.7,<1",
        "safetensors>=0.8,<1",
        "vector-quantize-pytorch>=1.32,<2",
    ],
    "serve": [
        "fastapi>=0.165,<1",
        "opentelemetry-api>=1.45,<2",
        "prometheus-client>=0.26,<1",
        "python-multipart>=0.0.34,<1",
        "soxr>=1.1,<2",
        "uvicorn>=0.54,<1",
        "websockets>=17.4,<18",
    ],
    "load": ["httpx>=0.28,<1"],
    "kernels": ["triton>=3.7.1,<3.10"],  # for `export_all.py --kernels`
    # What upstream imports. Upstream itself cannot be resolved by pip, see requirements/upstream.txt.
    "train": [
        TORCH,
        "accelerate>=1.15,<2",
        "beartype>=0.23,<1",
        "ema-pytorch>=0.8,<1",
        "encodec>=0.1.1,<1",
        "gateloop-transformer>=0.2.5,<1",
        "hyper-connections>=0.4.11,<1",
        "joblib>=1.6,<2",
        "lion-pytorch>=0.2.5,<1",
        "local-attention>=1.11,<2",
        "pytorch-warmup>=0.2,<1",
        "scikit-learn>=1.9,<2",
        "sentencepiece>=0.2.3,<1",
        "tensorboard>=2.21,<3",
        "torchaudio>=2.11,<3",
        "transformers>=5.23,<6",
        "vector-quantize-pytorch>=1.32,<2",
        "wandb>=0.31,<1",
    ],
    # What the demo's own training needs besides: notes to MIDI, curves to pictures. FluidSynth comes from Debian, see demo/README.md.
    "demo": ["matplotlib>=3.11,<4", "mido>=1.3.3,<2"],
    "dev": [
        "cuda-bindings>=13,<14",
        "elevenlabs>=2.78,<3",
        "httpx>=0.28,<1",
        "hypothesis>=6.170,<7",
        "matplotlib>=3.11,<4",
        "openai>=3.57,<4",
        "opentelemetry-exporter-otlp-proto-http>=1.45,<2",
        "opentelemetry-sdk>=1.45,<2",
        "playwright>=1.65.2,<2",
        "pyright[nodejs]>=1.1.414,<2",
        "pytest>=9.2,<10",
        "pytest-xdist>=3.8,<4",
        "ruff>=0.17.6,<1",
        "schemathesis>=4.32.5,<5",
        "tensorrt-rtx-cu13-bindings>=1.7,<2",
        "tensorrt-rtx-cu13-libs>=1.7,<2",
        "triton>=3.7.1,<3.10",
    ],
}

setup(
    name="musiclm-deploy",
    version=version,
    description="Trained MusicLM checkpoints to a bundle of ONNX graphs, and a bundle to music without torch",
    license="MIT",
    author="musiclm-deploy contributors",
    python_requires=">=3.11,<3.14",
    packages=list(package_dir),
    package_dir=package_dir,
    package_data={"musiclm_deploy.kernels.decoder_step": ["decoder_step.h"], "musiclm_deploy.serve": ["page/*"]},
    ext_modules=[decoder_step],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": PlatformWheel},
    install_requires=[
        "ftfy>=6.3,<7",
        "numpy>=2.4,<3",
        "regex>=2026.11.15",
        "soundfile>=0.14,<1",
        "tokenizers>=0.23,<1",
        "tqdm>=4.70,<5",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["musiclm = musiclm_deploy.cli:main"]},
)
