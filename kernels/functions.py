"""The functions in Triton behind the names in a list of launches.

In: a launch. Out: its kernel, and its constants with functions in place of their names. Importing it takes Triton.
"""

from typing import Any

from .attention.triton_form import append, attend, merge, nothing
from .geglu.triton_form import measure, read_normed
from .hyper_connection.triton_form import choose, connect, read_branch
from .launch import Launch
from .product.triton_form import product
from .prompt.triton_form import embed
from .sampling.triton_form import sample
from .spectrogram.triton_form import log_mel, spectrogram

_KERNELS = {"append": append, "attend": attend, "connect": connect, "embed": embed, "product": product, "sample": sample}
_KERNELS |= {"spectrogram": spectrogram, "log_mel": log_mel}
_PARTS = {"measure": measure, "read_normed": read_normed, "nothing": nothing, "merge": merge}
_PARTS |= {"choose": choose, "read_branch": read_branch}


def functions_of(launch: Launch) -> tuple[Any, dict[str, Any]]:
    """The kernel, and what is known when it is compiled."""
    return _KERNELS[launch.kernel], {name: _PARTS[value] if isinstance(value, str) else value for name, value in launch.constants.items()}
