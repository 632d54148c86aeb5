"""The exceptions of the export: something about the checkpoints or the request that the person at the terminal can change."""

from collections.abc import Iterator
from contextlib import contextmanager


class ExportError(ValueError):
    """A checkpoint, an override or a measured error that the export refuses, in a sentence that says what to do."""


class MissingCheckpoint(ExportError):
    """A file that the export needs was not given; `kinds` names what."""

    def __init__(self, message: str, *kinds: str) -> None:
        super().__init__(message)
        self.kinds = kinds


@contextmanager
def naming(file: str) -> Iterator[None]:
    """Refusals from inside, where only tensors and settings are known, name the file that these are from."""
    try:
        yield
    except ExportError as error:
        if file in str(error):
            raise
        raise ExportError(f"{file}: {error}") from error
