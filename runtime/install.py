"""The command that installs an extra, for messages: it runs nothing but this project's code and the packages that it names.

The project is on no package index. So no message may say `pip install` and the project's bare name: whoever registers that name there
would run code on the machines of our users.
"""

from __future__ import annotations

import re
import shlex
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

_DISTRIBUTION = "musiclm-deploy"
_ROOT = Path(__file__).resolve().parents[1]  # the checkout, or the installed package


def install_command(*extras: str) -> str:
    """Return the command for these extras of setup.py: in a checkout `pip install '.[gpu]'` and its folder, elsewhere pip and the packages.

    ValueError for an extra that setup.py does not have.
    """
    if (_ROOT / "setup.py").is_file():
        return f"pip install '.[{','.join(extras)}]' in {_ROOT}"
    return f"pip install {shlex.join(packages_of(*extras))}"


def packages_of(*extras: str) -> list[str]:
    """Return the requirements of these extras as the installed distribution lists them, `["onnxruntime<2,>=1.32"]`."""
    try:
        lines = requires(_DISTRIBUTION) or []
    except PackageNotFoundError as error:
        raise RuntimeError(f"{_ROOT} is neither a checkout nor an installed wheel, so nothing says what {extras} need.") from error
    packages = {extra: [] for extra in extras}
    for line in lines:
        requirement, _, marker = line.partition(";")
        extra = re.fullmatch(r"""\s*extra == ['"]([\w-]+)['"]""", marker)
        if extra and extra[1] in packages:
            packages[extra[1]].append(requirement.strip())
    if unknown := [extra for extra, found in packages.items() if not found]:
        raise ValueError(f"there is no extra {', '.join(unknown)}.")
    return list(dict.fromkeys(package for found in packages.values() for package in found))
