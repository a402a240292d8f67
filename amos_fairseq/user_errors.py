"""What a user got wrong is told in one line, without a traceback, and ends the program with a status of sysexits.h.

    64 EX_USAGE    the command or its configuration is wrong
    65 EX_DATAERR  files are not what was written
    74 EX_IOERR    the disk is full, or fails
"""

import argparse
import contextlib
import difflib
import errno
import os
import re
import sys
from typing import Iterable, NoReturn, Tuple, Type, Union

from amos_fairseq.terminal import visible

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)
SHOWN_CHOICES = 8


class Damaged(ValueError):
    """A file does not hold what it should; nothing is wrong with the command that names it."""


def status_of(error: Exception) -> int:
    """The exit status that says what kind of trouble it is."""
    if isinstance(error, Damaged):
        return os.EX_DATAERR
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        return os.EX_IOERR
    return os.EX_USAGE


@contextlib.contextmanager
def told_in_one_line(kind: Union[Type[Exception], Tuple[Type[Exception], ...]] = ValueError):
    """Turn an error of this kind, or of these, into the end of the program, its message on standard error."""
    try:
        yield
    except kind as error:
        stop(" ".join(str(error).splitlines()), status_of(error))


def stop(message: str, status: int, program: str = "amos_fairseq") -> NoReturn:
    """End the program with the message on standard error and a status that says what kind of trouble it is."""
    print(f"{program}: error: {visible(message)}", file=sys.stderr)
    raise SystemExit(status)


def seen_from(path: str) -> str:
    """A path for a message, with what it is relative to: hydra, for one, changes the working directory."""
    return path if os.path.isabs(path) else f"{path} (in {os.getcwd()})"


def suggestion(word: str, choices: Iterable[str]) -> str:
    """`, did you mean ..?` if one of the choices is like the word, else nothing."""
    close = difflib.get_close_matches(word, list(choices), n=1)
    return f", did you mean {close[0]}?" if close else ""


def tell_mistakes(parser: argparse.ArgumentParser, program: str = "amos_fairseq") -> None:
    """Let a parser end with one line and status 64, where argparse prints its whole usage and ends with 2."""

    def error(message: str) -> NoReturn:
        if choice := re.search(r"invalid choice: (?P<given>.*?) \(choose from (?P<choices>.*)\)", message):
            choices = [name.strip("'") for name in choice["choices"].split(", ")]
            likely = suggestion(choice["given"].strip("'"), choices)
            if likely or len(choices) > SHOWN_CHOICES:
                message = message[: choice.start()] + f"invalid choice: {choice['given']}{likely}"
        elif message.startswith("unrecognized arguments: "):
            names = [word.split("=")[0] for word in message.split() if word.startswith("--")]
            message += suggestion(names[0], parser._option_string_actions) if names else ""
        message = message.replace("invalid <lambda> value", "invalid list of numbers")
        stop(" ".join(message.splitlines()), os.EX_USAGE, program)

    parser.error = error  # type: ignore[method-assign]
