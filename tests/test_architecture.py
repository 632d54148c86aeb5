"""The arrows between the folders, read from the source: a wrong import fails here before it costs a user torch, or a wheel its module.

In: every Python file of the project, parsed and never imported. Dynamic imports are not seen.
"""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from support import ROOT

PACKAGE = "musiclm_deploy"

# What a folder may import of ours, besides itself and the version; the front door, musiclm_deploy/, may import all of it.
# A name admits everything below it.
MAY_IMPORT = {
    "kernels": (),
    "runtime": tuple(
        f"kernels.{name}"
        for name in (
            "decoder_step",
            "engine_lists",
            "kernel_lists",
            "launch",
            "list_builder",
            "packing",
            "patches",
            "prompt.constants",
            "sampling.constants",
        )
    ),
    "model": ("runtime.audio", "runtime.install", "runtime.roberta_tokenizer", "runtime.tokenizer", "runtime.user_files"),
    "export": (
        *(
            f"runtime.{name}"
            for name in (
                *("arguments", "aside", "bundle", "engines.form", "install", "roberta_tokenizer", "tokenizer", "tokenizer_file"),
                "user_files",
            )
        ),
        "model",
        "kernels",
    ),
    "serve": ("runtime",),
}
# The files that may import more than their folder: they run a new bundle through the runtime, as a user would.
MAY_IMPORT_MORE = {f"export/{name}.py": ("runtime",) for name in ("validate", "calibration", "quality")}
# This one compiles what the runtime launches.
MAY_IMPORT_MORE["export/kernels.py"] = ("runtime",)
# What must stay importable, and make music, without torch: these packages appear in no import of theirs, not even inside a function.
TORCH_FREE = ("musiclm_deploy", "runtime", "serve")
TORCH_SIDE = {"audiolm_pytorch", "musiclm_pytorch", "onnx", "onnx_ir", "onnxscript", "torch", "torchaudio", "transformers", "triton"}

MAX_LINES = 400
SOURCES = {".py", ".cpp", ".cu", ".h"}


def imported_names(source: str, module: str, is_package: bool = False) -> set[str]:
    """Absolute dotted names of everything `source`, the text of `module`, imports: `from a import b` gives `a.b`."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: len(module.split(".")) + is_package - node.level] if node.level else []
            origin = ".".join([*above, *filter(None, [node.module])])
            names |= {f"{origin}.{alias.name}" for alias in node.names}
    return names


def imports_of(folder: str) -> dict[str, set[str]]:
    """`{path: imported names}` of the Python files below one folder at the root, which is imported as `musiclm_deploy.<folder>`."""
    imports = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if folder != PACKAGE:
            parts = (PACKAGE, *parts)
        module = ".".join(parts).removesuffix(".__init__")
        imports[f"{path.relative_to(ROOT)}"] = imported_names(path.read_text(encoding="utf-8"), module, path.name == "__init__.py")
    return imports


def within(name: str, allowed: str) -> bool:
    return name == allowed or name.startswith(f"{allowed}.")


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import torch.nn as nn", "torch.nn"),
        ("def f():\n    from torch import nn", "torch.nn"),
        ("from . import graph", "musiclm_deploy.export.graph"),
        ("from .. import runtime", "musiclm_deploy.runtime"),
        ("from ..runtime.bundle import Bundle", "musiclm_deploy.runtime.bundle.Bundle"),
        ("from musiclm_deploy.runtime import bundle", "musiclm_deploy.runtime.bundle"),
    ],
)
def test_every_form_of_import_is_read(source: str, name: str) -> None:
    """Fault: an import written in another form slips through the tests below."""
    assert imported_names(source, "musiclm_deploy.export.decoder") == {name}
    assert imported_names(source, "musiclm_deploy.export", is_package=True) == {name}


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_arrows(folder: str) -> None:
    """Fault: a folder reaches into another one that it should not know."""
    allowed = (folder, "__version__", *MAY_IMPORT[folder])
    wrong = [
        f"{path}: {name}"
        for path, names in imports_of(folder).items()
        for name in sorted(names)
        if within(name, PACKAGE) and not any(within(name, f"{PACKAGE}.{one}") for one in (*allowed, *MAY_IMPORT_MORE.get(path, ())))
    ]
    assert not wrong


def test_only_commands_know_the_server() -> None:
    """Fault: music that needs the packages of a server."""
    knowing = {
        path
        for folder in (*MAY_IMPORT, PACKAGE)
        for path, names in imports_of(folder).items()
        if not path.startswith("serve/") and any(within(name, f"{PACKAGE}.serve") for name in names)
    }
    assert knowing and not [path for path in knowing if not path.startswith("musiclm_deploy/commands/")]


def test_only_benchmarks_know_the_model() -> None:
    """Fault: an object below `MusicLM` that is handed the whole model, so that nothing can be understood or used without it."""
    knowing = {path for path, names in imports_of("runtime").items() if any(within(name, f"{PACKAGE}.runtime.musiclm") for name in names)}
    assert {path for path in knowing if not path.startswith("runtime/bench/")} == set()


def test_no_circle_in_the_runtime() -> None:
    """Fault: files that import each other, of which none can be read or changed first. What only type checkers see may point back."""
    files = {path.relative_to(ROOT).with_suffix("").as_posix().removesuffix("/__init__").replace("/", "."): path for path in _runtime()}
    arrows: dict[str, set[str]] = {}
    for module, path in files.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                node.body = [ast.Pass()]
        names = imported_names(ast.unparse(tree), f"{PACKAGE}.{module}", path.name == "__init__.py")
        arrows[module] = {other for other in files if other != module and any(_names_file(name, other, files) for name in names)}
    assert sum(map(len, arrows.values())) > 100
    TopologicalSorter(arrows).prepare()  # CycleError names the files


def _runtime() -> list[Path]:
    return sorted((ROOT / "runtime").rglob("*.py"))


def _names_file(name: str, module: str, files: dict[str, Path]) -> bool:
    """Return whether an imported name is a file, or what stands in it, but not another file of its folder."""
    own = name.removeprefix(f"{PACKAGE}.")
    longest = max((other for other in files if within(own, other)), key=len, default=None)
    return longest == module


def test_an_operation_stands_alone() -> None:
    """Fault: a fused operation cannot be read, tested or compiled without its neighbours. All hold products and launch early."""
    imports = {path: names for path, names in imports_of("kernels").items() if path.count("/") > 1}
    assert imports
    wrong = [
        f"{path}: {name}"
        for path, names in imports.items()
        for name in sorted(names)
        if within(name, PACKAGE)
        and not any(within(name, f"{PACKAGE}.kernels.{operation}") for operation in (path.split("/")[1], "quantized_product", "early"))
    ]
    assert not wrong


def test_triton_is_for_kernels_alone() -> None:
    """Fault: what reads a formula or places its ONNX form needs Triton; only a kernel's source does, and what compiles them."""
    imports = {path: names for folder in (*MAY_IMPORT, PACKAGE) for path, names in imports_of(folder).items()}
    users = {path for path, names in imports.items() if any(within(name, "triton") for name in names)}
    sources = {path for path in imports if path.startswith("kernels/") and path.endswith("/triton_form.py")}
    assert sources and users == sources | {"kernels/compile.py"}


@pytest.mark.parametrize("folder", TORCH_FREE)
def test_no_torch(folder: str) -> None:
    """Fault: music needs the packages of training or export."""
    wrong = [f"{path}: {name}" for path, names in imports_of(folder).items() for name in names if name.split(".")[0] in TORCH_SIDE]
    assert not wrong


@pytest.mark.parametrize("folder", [*MAY_IMPORT, PACKAGE, "benchmarks", "demo"])
def test_onnx_runtime_is_imported_in_one_place(folder: str) -> None:
    """Fault: an import that runtime/ort.py does not make, with which ONNX Runtime reports that it is used."""
    importers = set()
    for path in (ROOT / folder).rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                node.body = [ast.Pass()]  # type checkers alone read it
        source = ast.unparse(tree)
        by_name = re.search(r"import(_module|lib\.import_module|__)\('onnxruntime", source)  # unparsed, strings have single quotes
        if by_name or any(within(name, "onnxruntime") for name in imported_names(source, PACKAGE)):
            importers.add(path.relative_to(ROOT).as_posix())
    assert importers == ({"runtime/ort.py"} if folder == "runtime" else set())


@pytest.mark.parametrize("folder", [*MAY_IMPORT, PACKAGE, "benchmarks", "demo", "tests"])
def test_no_bare_folder_names(folder: str) -> None:
    """Fault: `from runtime import ...` works in a checkout's root, fails from the wheel, and loads a module a second time."""
    wrong = [f"{path}: {name}" for path, names in imports_of(folder).items() for name in names if name.split(".")[0] in MAY_IMPORT]
    assert not wrong


def test_no_test_imports_another() -> None:
    """Fault: a test module that is run twice, or not at all, because another one needs its helpers. They stand in tests/support/."""
    modules = {path.stem for path in (ROOT / "tests").glob("test_*.py")}
    wrong = [f"{path}: {name}" for path, names in imports_of("tests").items() for name in names if name.split(".")[0] in modules]
    assert not wrong


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_every_folder_is_a_package(folder: str) -> None:
    """Fault: setup.py finds packages by their `__init__.py`, so that a folder without one is missing from the wheel."""
    folders = {path.parent for path in (ROOT / folder).rglob("*.py")}
    assert folders
    assert not [str(path) for path in folders if not (path / "__init__.py").is_file()]


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_no_file_is_too_long(folder: str) -> None:
    """Fault: a second idea has moved into a file."""
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / folder).rglob("*") if path.suffix in SOURCES}
    assert not {str(path): lines for path, lines in lengths.items() if lines > MAX_LINES}
