"""Inert stand-ins for the objects that training scripts save beside tensors: numbers of numpy, settings, paths, dates, meters, optimizers.

In: the names in a pickle. Out: classes which torch's weights-only loader takes in their place. A stand-in keeps the arguments and
the state that the object was saved with, and does nothing. So a file is read without importing or calling anything that it names. What no
training script saves, and what only a call could be for, is refused all the same: whoever made such a file had something else in mind.
"""

import pickletools
import re
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import Counter
from collections.abc import Mapping
from typing import Any, BinaryIO

from .archive import HostileFile

_CLASS, _ARGUMENTS = "(class)", "(arguments)"  # keys beside an object's attributes, which cannot be called so
# Classes of the standard library that hold data, and functions that make them.
_STANDARD = re.compile(
    r"(argparse|optparse|collections|datetime|decimal|enum|fractions|pathlib|types|typing|uuid|zoneinfo|dataclasses)\..+"
    r"|(_codecs\.encode|time\.struct_time|logging\.(Logger|getLogger)|random\.Random|functools\.partial|operator\.(attr|item)getter)"
    r"|(copyreg\.\w+|re\._compile|io\.(BytesIO|StringIO)|array\.\w+|string\.Template|configparser\.\w+|inspect\.\w+)"
    r"|builtins\.(object|dict|list|tuple|set|frozenset|str|int|float|complex|bool|bytes|slice|range|getattr|type|Ellipsis|NotImplemented)"
    r"|builtins\.\w+(Error|Exception|Warning)"
)
# Names of other packages: classes, by the way they are spelled, and the functions that unpickle arrays and numbers.
_FOREIGN = re.compile(
    r"(\w+\.)+(_*[A-Z]\w*|_*(pyx_)?(re(construct|build)|unpickle|mareconstruct)\w*|__\w+_ctor)"
    r"|numpy\.((\w+\.)*(scalar|_frombuffer|dtype|ndarray|matrix|record|recarray)|(u?int|float|complex)\d*|bool_?|(str|bytes|object)_|void)"
    r"|torch\.(device|dtype|serialization\._get_layout)|PIL\.\w+\.new"
)


class _StandIn(type):
    """A class or a function that a pickle names. The loader calls it as a pickle would, or makes an instance without a call."""

    name: str

    def __call__(cls, *args: Any) -> Any:
        if not (_is_standard(cls.name) or _FOREIGN.fullmatch(cls.name)):
            raise HostileFile(f"it names {cls.name}, which could run code")
        return _instance(cls.name, args)


def stand_ins(names: set[str]) -> list[Any]:
    """Return what `torch.serialization.safe_globals` takes, with a stand-in for each of `names`.

    Raises HostileFile for a name of the standard library that holds no data."""
    for name in sorted(names):
        if _is_standard(name) and not _STANDARD.fullmatch(name):
            raise HostileFile(f"it names {name}, which could run code")
    return [(_stand_in(name), name) for name in names]


def is_object(value: Any) -> bool:
    """Return whether a value stands for an object, rather than being a tensor or plain data."""
    return _CLASS in getattr(value, "__dict__", {})


def class_of(value: Any) -> str:
    """Return the name of the class that a value had when it was saved."""
    return vars(value)[_CLASS] if is_object(value) else type(value).__name__


def arguments_of(value: Any) -> tuple[Any, ...]:
    """Return the arguments that an object was saved with; none for plain data."""
    return getattr(value, "__dict__", {}).get(_ARGUMENTS, ())


def names_in(file: BinaryIO) -> tuple[set[str], int]:
    """Return the names in the pickle that begins where `file` stands, and its protocol; `file` stands behind it then.

    Raises whatever a damaged pickle raises."""
    names: set[str] = set()
    protocol = 0
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "PROTO":
            protocol = int(argument)  # pyright: ignore[reportArgumentType]
        elif opcode.name == "GLOBAL":
            module, _, name = str(argument).partition(" ")
            # protocol 2 writes names of Python 2; torch's loader translates most of them before it looks them up
            names |= {f"{module}.{name}", ".".join(NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name)))}
    return names, protocol


def _is_standard(name: str) -> bool:
    return name.partition(".")[0] in sys.stdlib_module_names


def _stand_in(name: str) -> Any:
    return _StandIn(name.rpartition(".")[2], (), {"__new__": lambda _, *args: _instance(name, args), "name": name})


def _instance(name: str, args: tuple[Any, ...]) -> Any:
    if name == "collections.deque":
        return list(*args[:1])
    if name == "builtins.getattr" and isinstance(args[0], _StandIn) and _FOREIGN.fullmatch(f"{args[0].name}.{args[1]}"):
        return args[0]  # in place of a class inside it, which protocol 2 names so
    # torch's loader sets items of dict, OrderedDict and Counter alone; of these only a Counter has attributes and takes their state
    made: Counter[Any] = Counter()

    def set_state(state: Any) -> None:
        if isinstance(state, Mapping):  # a class that makes its state itself may give it any form
            vars(made).update(state)

    vars(made).update({_CLASS: name, _ARGUMENTS: args, "__setstate__": set_state})
    return made
