"""The command `musiclm`: generate, serve, load, inspect, bench, export, build, doctor, each in a file of commands/.

Exit status: 0 done, 1 refused or failed (the reason is on standard error), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import errno
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import __version__
from .commands import bench, build, doctor, export, generate, inspect, load, serve
from .commands.console import leave_output, open_console
from .commands.output import STDOUT

_COMMANDS = (generate, serve, load, inspect, bench, export, build, doctor)
_EXAMPLES = """examples:
  musiclm generate bundle "calm piano in a ballroom" -o out.wav --seconds 10 --seed 0
  musiclm generate bundle "brass band" -o best.flac --num-samples 4 --save-tokens tokens.npz
  musiclm generate bundle "brass band" --prime intro.wav -o on.wav --seconds 20
  musiclm generate bundle "brass band" -o - | aplay
  musiclm generate --again best.flac
  musiclm generate bundle --prompts prompts.txt -o clip.wav --seed random
  musiclm serve bundle --port 8000
  musiclm load http://127.0.0.1:8000 --rate 2
  musiclm inspect bundle
  musiclm bench bundle --seconds 10
  musiclm build bundle --compute-capability 89
  musiclm doctor checkpoints/*.pt
  musiclm export --semantic S.pt --coarse C.pt --fine F.pt --codec K.pt --mulan M.pt --quantizer Q.pt --out bundle
"""


def make_parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "musiclm", description="MusicLM, deployed: checkpoints to a bundle, a bundle to music.", epilog=_EXAMPLES, formatter_class=raw
    )
    parser.add_argument("--version", action="version", version=f"musiclm-deploy {__version__}")
    _add_verbose(parser, False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add_options(commands)
    for command in commands.choices.values():
        _add_verbose(command, argparse.SUPPRESS)  # a default would undo the option before the command
    return parser


def _add_verbose(parser: argparse.ArgumentParser, default: Any) -> None:
    parser.add_argument("-v", "--verbose", action="store_true", default=default, help="log what is done, and the memory it takes")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    open_console()
    parser = make_parser()
    options, rest = parser.parse_known_args(arguments)
    for name, kind in (("bundle", Path), ("text", str)):
        # argparse gives up positionals that may be missing at the first option before them
        if rest and (rest[0] == "-" or not rest[0].startswith("-")) and getattr(options, name, "") is None:
            setattr(options, name, kind(rest.pop(0)))
    if rest:
        words = options.command == "generate" and not any(argument.startswith("-") for argument in rest)
        parser.error(f"unrecognized arguments: {' '.join(rest)}{'. A TEXT of several words needs quotes around it' if words else ''}")
    plain, full = (logging.WARNING, "musiclm: warning: %(message)s"), (logging.INFO, "%(levelname)s %(name)s: %(message)s")
    level, form = full if options.verbose else plain
    logging.basicConfig(level=level, format=form)
    try:
        status = options.run(options)
        print(end="", flush=True)  # a reader that is gone shows here, not when Python ends
        return status
    except KeyboardInterrupt:
        return _interrupted()
    except BrokenPipeError:
        leave_output()
        return 1
    except (ValueError, OSError, RuntimeError, MemoryError, ImportError) as error:
        if isinstance(error.__cause__, KeyboardInterrupt):  # while a module of machine code was loaded
            return _interrupted()
        print(f"musiclm: {_sentence(error)}", file=sys.stderr)
        return 1
    except Exception as error:  # ONNX Runtime's own, which have no common base; or a mistake of ours
        logging.getLogger(__name__).info("unexpected", exc_info=True)
        print(f"musiclm: {type(error).__name__}: {error} (musiclm -v says where)", file=sys.stderr)
        return 1


def _sentence(error: Exception) -> str:
    """Return an error's text; of one that the system gave, the file and the reason, without its number."""
    from .runtime.outputs import named_errors

    if isinstance(error, OSError) and error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        try:
            with named_errors(STDOUT):  # errors of files name the file
                raise error
        except OSError as named:
            return str(named)
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        return f"{'' if error.filename is None else f'{error.filename}: '}{error.strerror[0].lower()}{error.strerror[1:]}."
    return str(error) or type(error).__name__


def _interrupted() -> int:
    print("musiclm: interrupted; nothing half-written was left behind.", file=sys.stderr)
    return 130


if __name__ == "__main__":
    sys.exit(main())
