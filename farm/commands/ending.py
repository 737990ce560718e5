"""How a command ends that something stopped: one line that says what, and an exit code."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import traceback

from typer.exceptions import TyperException

from farm.commands.output import say, say_bad_lines
from farm.errors import BadInput, FarmError

FAILED, USAGE, INTERRUPTED = 1, 2, 130
MOST_SAID = 300  # letters of an error that nobody put in words


def told(error: Exception | KeyboardInterrupt) -> int:
    match error:
        case KeyboardInterrupt():
            return INTERRUPTED
        case BrokenPipeError():  # whoever read our output has left
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        case TyperException():
            context = getattr(error, "ctx", None)
            command = context.command_path if context else "farm"
            say(f"farm: {' '.join(error.format_message().split())} ({command} --help says how)")
            return error.exit_code
        case FarmError():
            say(f"farm: {error}")
            say_bad_lines(error.more.get("bad_lines", []), error.more.get("bad_line_count", 0))
            return USAGE if isinstance(error, BadInput) else FAILED
        case OSError():  # a file or folder that cannot be read or written
            say(f"farm: {f'{error.filename}: ' if error.filename else ''}{error.strerror or error}")
        case _:
            say(f"farm: {_crashed(error)}")
    return FAILED


def _crashed(error: Exception) -> str:
    """What should not have happened. Its traceback goes to the log, or to a file where there is none."""
    said = " ".join(f"{type(error).__name__}: {error}".split())[:MOST_SAID]
    if logging.getLogger().handlers:
        logging.getLogger("farm").error("crashed", exc_info=error)
        return said
    try:
        with tempfile.NamedTemporaryFile("w", prefix="farm-", suffix=".log", delete=False) as file:
            traceback.print_exception(error, file=file)
    except OSError:
        return said
    return f"{said} (a fault of Farm's own: {file.name} says where)"
