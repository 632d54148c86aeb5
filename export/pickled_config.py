"""The arguments that a SoundStream was built with, from the pickle that audiolm-pytorch's `SoundStream.save` puts beside the tensors.

In: the pickle's bytes. Out: a dictionary of arguments. Nothing in the pickle is called or imported.
"""

import io
import pickle
import pickletools
from typing import Any

from .errors import ExportError

_MAX_CONFIG_BYTES = 64 * 1024  # upstream's own is about 1 KB
# All that upstream's arguments can name without being a whole module: a window function of the STFT discriminator, bare or in a partial.
_WINDOW_FUNCTION = {("functools", "partial"), ("builtins", "getattr"), ("torch._C", "_VariableFunctionsClass")}
_WITHOUT_CONFIG = "Remove the entry 'config' from the checkpoint and give what the tensors do not tell with --config."


class _Inert:
    """Stands where a pickle names a function: takes any arguments and state, does nothing."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


class _ConfigUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> type:
        if (module_name, global_name) not in _WINDOW_FUNCTION:
            raise ExportError(f"codec: the saved config names {module_name}.{global_name}, which could run code. {_WITHOUT_CONFIG}")
        return _Inert


def read_pickled_config(data: bytes) -> dict[str, Any]:
    """Return the arguments that `SoundStream` was built with, from the pickle it saves. Nothing in it is called or imported.

    Raises ExportError if it names anything but numbers, strings, containers and window functions, is damaged, or asks for much memory.
    """
    if len(data) > _MAX_CONFIG_BYTES:
        raise ExportError(f"codec: the saved config has {len(data)} bytes, expected at most {_MAX_CONFIG_BYTES}. {_WITHOUT_CONFIG}")
    try:
        for opcode, argument, _ in pickletools.genops(data):  # checks every length against the data
            if opcode.name in ("PUT", "LONG_BINPUT") and isinstance(argument, int) and argument > len(data):
                raise ValueError("a memo index beyond its own size")  # the unpickler would allocate a table up to it
        config = _ConfigUnpickler(io.BytesIO(data)).load()
    except ExportError:
        raise
    except Exception as error:  # a damaged pickle raises nearly anything
        raise ExportError(f"codec: the saved config is damaged ({error}). {_WITHOUT_CONFIG}") from error
    if not isinstance(config, dict):
        raise ExportError(f"codec: the saved config is a {type(config).__name__}, expected a dictionary of arguments. {_WITHOUT_CONFIG}")
    return config
