"""Logs as JSON, a line each, with what was logged by name."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time


class JsonLines(logging.Formatter):
    """One JSON object for a record."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _as_a_sentence(record: logging.LogRecord) -> bool:
    """Say in one line what uvicorn logs as a failure of the application: that it has cancelled a request at the end of the drain."""
    if record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError):
        record.msg, record.args, record.exc_info = "a request was cut off: it went on when the time to stop was over", (), None
        record.levelno, record.levelname = logging.WARNING, "WARNING"
    return True


def log(verbose: bool, as_json: bool) -> None:
    """Log on standard error, as sentences or as JSON.

    verbose: also what is asked by those who watch, what memory is for, and which words of prompts MuLaN does not know.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if as_json else logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("uvicorn.error").addFilter(_as_a_sentence)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)  # its access log is off: requests are logged by us, with their ids
    logging.getLogger("musiclm_deploy").setLevel(logging.DEBUG if verbose else logging.INFO)
    logging.getLogger("musiclm_deploy.runtime.memory").setLevel(logging.INFO if verbose else logging.WARNING)  # several lines a request
    logging.getLogger("musiclm_deploy.runtime.musiclm").setLevel(logging.INFO if verbose else logging.ERROR)  # words of prompts
