"""Scripts run one after another, each in a fork of a process that has imported PyTorch and upstream: `python -P forked.py A.py B.py ...`.

It ends at the first script that fails, with status 1 and the script's name on standard error. A trainer of upstream's sets flags that a
second one in the same process trips over, and a process that begins from nothing imports for ten seconds.
"""

import os
import runpy
import sys
import time
import traceback
from importlib import import_module

from musiclm_deploy.model.upstream import load_upstream

# What the scripts import. Threads that a module starts on import would not be there after the fork; these start none.
SHARED = ("torch", "audiolm_pytorch", "musiclm_pytorch", "sklearn.cluster", "tensorboard", "musiclm_deploy.export.export")


def run(script: str) -> int:
    """Run one script in a fork of this process; returns its exit status."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        sys.argv = [script]
        sys.path.insert(0, os.path.dirname(os.path.abspath(script)))
        runpy.run_path(script, run_name="__main__")
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    load_upstream()
    for name in SHARED:
        import_module(name)
    for script in sys.argv[1:]:
        began = time.perf_counter()
        if run(script):
            sys.exit(f"{script} failed")
        print(f"{script}: {time.perf_counter() - began:.1f} s", flush=True)
