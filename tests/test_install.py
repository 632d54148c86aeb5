"""Messages tell the user to install nothing but this checkout, or packages by their own names."""

import ast
import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from support import ROOT

from musiclm_deploy.runtime import install

TEXTS = {".py", ".md", ".toml", ".txt", ".sh", ".h", ".c", ".cpp", ""}
FOLDERS = (
    "benchmarks",
    "demo",
    "docs",
    "embed",
    "export",
    "kernels",
    "model",
    "musiclm_deploy",
    "requirements",
    "runtime",
    "serve",
    "tests",
    ".ci",
)


@pytest.fixture(scope="module")
def extras() -> dict[str, list[str]]:
    """The extras of setup.py."""
    tree, names = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")), {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in ("TORCH", "EXTRAS"):
            exec(compile(ast.Module([node], []), "setup.py", "exec"), names)
    return names["EXTRAS"]


@pytest.fixture
def as_wheel(tmp_path) -> ModuleType:
    """runtime/install.py as it lies in a wheel's folder, with no checkout around it."""
    path = tmp_path / "musiclm_deploy" / "runtime" / "install.py"
    path.parent.mkdir(parents=True)
    path.write_text(Path(install.__file__).read_text(encoding="utf-8"), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("install_of_a_wheel", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_in_a_checkout() -> None:
    """Fault: advice that works from one folder alone and does not name it."""
    assert install.install_command("cpu", "export") == f"pip install '.[cpu,export]' in {ROOT}"


@pytest.mark.parametrize("names", [("cpu",), ("gpu",), ("tensorrt-rtx",), ("cpu", "export", "train")])
def test_in_a_wheel(as_wheel, extras, names) -> None:
    """Fault: advice that names this project, which is on no index, or packages other than those of setup.py."""
    pip, verb, *packages = shlex.split(as_wheel.install_command(*names))
    wanted = [Requirement(text) for name in names for text in extras[name]]
    assert (pip, verb) == ("pip", "install") and [Requirement(text) for text in packages] == list(dict.fromkeys(wanted))


def test_unknown_extra(as_wheel) -> None:
    """Fault: `pip install` without any package, for an extra whose name is misspelt."""
    with pytest.raises(ValueError, match="there is no extra gpus"):
        as_wheel.install_command("cpu", "gpus")


def test_no_text_installs_by_our_name() -> None:
    """Fault: a message or a page says to install the project by its name. Whoever registers the name on an index gets to run code."""
    paths = [path for path in ROOT.iterdir() if path.is_file()]
    paths += [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
    texts = {path: path.read_text(encoding="utf-8") for path in paths if path.suffix in TEXTS and path.name != Path(__file__).name}
    assert len(texts) > 200
    wrong = re.compile(r"musiclm-deploy\[|pip3? install [^\n`]*musiclm[-_]deploy(?!\S*\.whl)")
    assert not {str(path): found[0] for path, text in texts.items() if (found := wrong.search(text))}
