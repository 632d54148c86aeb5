"""ONNX Runtime, imported in one way: without its telemetry.

Since 1.32 the package reports its use by default. Its import makes a device id and a database below ~/.cache/Microsoft, looks up the
vendor's host, and complains where the home folder cannot be written. It reads the environment once, while it is imported, so
`onnxruntime.disable_telemetry_events()` comes too late. tests/test_architecture.py finds any other import of it.
"""

from __future__ import annotations

import os


def import_onnxruntime():
    """Return the module `onnxruntime`, imported with its telemetry off unless the user has set ORT_DISABLE_TELEMETRY, to whatever value.

    ImportError where ONNX Runtime is not installed. A program that has imported it before keeps what it chose then.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime
