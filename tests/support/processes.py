"""Code in a process of its own."""

import subprocess
import sys

from . import ROOT


def in_fresh_process(code: str) -> None:
    """Run code with the checkout's root first on sys.path, where `import kernels` would find our folder."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
