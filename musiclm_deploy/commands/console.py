"""Standard output and standard error of the commands: whatever they can show, a command does its work and says so.

In: texts with the names of files, which may hold any bytes. Out: lines on terminals, pipes and files of any encoding, or on none.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys

_MAY_FAIL = ("strict", "surrogateescape")  # Python's defaults; any other way with what cannot be encoded was asked for, and never fails


def open_console() -> None:
    """Let standard output and standard error take any text: what their encoding does not have is printed as `\\xe9` or `\\u65e5`."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # closed by the caller: the next file that is opened would become standard output, warnings of libraries in it
            os.open(os.devnull, os.O_RDWR)
    sys.stderr = sys.stderr or io.StringIO()  # a progress bar cannot do without
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in _MAY_FAIL:
            stream.reconfigure(errors="backslashreplace")


def print_json(text: str) -> None:
    """Print a JSON text, with JSON's own escapes for what standard output cannot show."""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        text = re.sub(r"[^\x00-\x7f]", lambda found: json.dumps(found[0])[1:-1], text)
    print(text, end="")


def print_done(text: str) -> None:
    """Print what a command has made. A reader that is gone, as after `| head -0`, does not turn the work that is done into a failure."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        leave_output()


def leave_output() -> None:
    """Send what is printed from now on, and what Python flushes when it ends, nowhere: the reader of standard output is gone."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
