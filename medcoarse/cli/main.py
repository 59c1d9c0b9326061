"""The command `medcoarse`: which commands there are, and what becomes of errors.

Exit codes: 0 fine, 1 failed, with one line that says why, 2 wrong usage, 130 stopped with Ctrl-C.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Sequence

COMMANDS = {
    "train": "learn to segment from images and rough drawings of them",
    "predict": "segment images with a trained bundle",
    "evaluate": "compare segmentations with masks",
    "simulate": "draw rough annotations of masks",
    "fuse": "make one label map out of several annotators'",
    "budget": "say what to draw with the hours that there are",
    "report": "review who drew: reliability, errors, drawings to look at again",
}
_EXAMPLES = """examples:
  medcoarse train images/ drawings/ --output_dir run --background 3
  medcoarse predict run new_images/ --output_dir segmented
  medcoarse evaluate segmented/ masks/
`medcoarse COMMAND --help` explains a command. Research software, not a medical device.
"""


class CommandError(Exception):
    """What is wrong with what a command was given, in one line."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code."""
    options = _parser(sys.argv[1:] if argv is None else list(argv))
    warnings.simplefilter("ignore")  # third parties' warnings are for programmers, and some quote DICOM headers
    for name in ("pydicom", "highdicom", "monai.data.nvimgcodec_pydicom_plugin"):
        logging.getLogger(name).setLevel(logging.ERROR)  # for the same reasons
    try:
        return int(options.call(options) or 0)
    except KeyboardInterrupt:
        print("\nstopped; what was finished is kept", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `medcoarse ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except SystemExit as error:
        if options.debug or isinstance(error.code, int) or error.code is None:
            raise
        return _failed(str(error.code))
    except Exception as error:
        if options.debug:
            raise
        return _failed(in_one_line(error))


def in_one_line(error: BaseException) -> str:
    """What an error says, without that of the machinery around it.

    MONAI's parser of configurations wraps errors in RuntimeErrors; the user's is the one inside.

    Example:
        >>> in_one_line(ValueError("a: wrong\\n  - this"))
        'a: wrong - this'
        >>> in_one_line(KeyError("x"))
        "KeyError: 'x'"
        >>> in_one_line(FileNotFoundError(2, "No such file or directory", "a.png"))
        'a.png: No such file or directory'
    """
    while error.__cause__ is not None and type(error) is RuntimeError:
        error = error.__cause__
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    text = " ".join(str(error).split())
    plain = isinstance(error, CommandError | ValueError | OSError | SystemExit) and text
    return text if plain else f"{type(error).__name__}: {text}" if text else type(error).__name__


def _failed(text: str) -> int:
    print(f"medcoarse: error: {text}", file=sys.stderr)
    return 1


def _parser(argv: list[str]) -> argparse.Namespace:
    """Parsed options. Only the command that is asked for is imported: torch takes seconds."""
    parser = argparse.ArgumentParser(
        prog="medcoarse",
        description="Dense medical-image segmentation learned from rough drawings.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="say which version this is")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    wanted = next((word for word in argv if not word.startswith("-")), None)
    for name, what in COMMANDS.items():
        command = commands.add_parser(name, help=what, formatter_class=argparse.RawDescriptionHelpFormatter)
        if name == wanted:
            module = importlib.import_module(f"medcoarse.cli.{name}")
            command.description, command.epilog = module.__doc__, module.EXAMPLES
            module.add_arguments(command)
            command.set_defaults(call=module.run)
            command.add_argument("--debug", action="store_true", help="show where in the program an error comes from")
    options, unknown = parser.parse_known_args(argv)
    if unknown:  # argparse would show the usage of all commands, which does not help to spell an option
        commands.choices.get(options.command, parser).error(f"unrecognized arguments: {' '.join(unknown)}")
    if options.version:
        from medcoarse import __version__

        print(__version__)
        parser.exit(0)
    if options.command is None:
        parser.error("which command? one of " + ", ".join(COMMANDS))
    return options
