"""The one exception of the export: something about the checkpoints or the request that the person at the terminal can change."""


class ExportError(ValueError):
    """A checkpoint, an override or a measured error that the export refuses, in a sentence that says what to do."""
