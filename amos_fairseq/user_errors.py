"""What a user got wrong is told in one line, without a traceback, and ends the program with a status of sysexits.h.

    64 EX_USAGE    the command or its configuration is wrong
    65 EX_DATAERR  files are not what was written
    74 EX_IOERR    the disk is full, or fails
"""

import argparse
import contextlib
import errno
import os
import re
import sys
from typing import Iterable, NoReturn, Optional, Sequence, Tuple, Type, Union

from amos_fairseq.terminal import visible

DISK_ERRORS = {  # what is the matter with the disk, and the remedy
    errno.ENOSPC: ("is full", "make room there"),
    errno.EDQUOT: ("has no room left for you, whose quota is used up", "make room there"),
    errno.EROFS: ("is read-only", "name another folder, or have it mounted to be written to"),
    errno.EIO: ("fails", "see what the system's log says of it"),
}
SHOWN_CHOICES, SHOWN_SUGGESTIONS = 8, 3
LEAST_SHARE = 0.5  # of the letters of a name, for a suggestion that has fewer words
WORDS = re.compile(r"[^\W_]+")


class Damaged(ValueError):
    """A file does not hold what it should; nothing is wrong with the command that names it."""


def status_of(error: Exception) -> int:
    """The exit status that says what kind of trouble it is."""
    if isinstance(error, Damaged):
        return os.EX_DATAERR
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        return os.EX_IOERR
    return os.EX_USAGE


def one_line(error: Exception, path: str = "") -> str:
    """In one line: `path: reason` of a file, of a disk that takes no more also the remedy, else the error's message.

    path: for an error that names no file
    """
    if not (isinstance(error, OSError) and error.strerror):
        return " ".join(str(error).split()) or type(error).__name__
    path = os.fsdecode(error.filename if isinstance(error.filename, (str, bytes)) else path)
    if error.errno not in DISK_ERRORS:
        return f"{path}: {error.strerror}" if path else error.strerror
    (trouble, remedy), folder = DISK_ERRORS[error.errno], os.path.abspath(path)
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    if path and error.errno == errno.ENOSPC and out_of_files(folder):
        trouble, remedy = "can hold no more files, whatever their size", "delete some there"
    disk = f"{path}: the disk of {folder}" if path else "the disk"
    return f"{disk} {trouble}: {remedy}, then give the same command again"


def out_of_files(folder: str) -> bool:
    disk = os.statvfs(folder)
    return disk.f_files > 0 and disk.f_favail == 0 and disk.f_bavail > 0


@contextlib.contextmanager
def told_in_one_line(kind: Union[Type[Exception], Tuple[Type[Exception], ...]] = ValueError):
    """Turn an error of this kind, or of these, into the end of the program, its message on standard error."""
    try:
        yield
    except kind as error:
        stop(one_line(error), status_of(error))


@contextlib.contextmanager
def unreadable_is_damaged():
    """Turn what the file system says of a file that is read into Damaged."""
    try:
        yield
    except OSError as error:
        raise Damaged(f"{error.filename} cannot be read: {error.strerror}") from None


def stop(message: str, status: int, program: str = "amos_fairseq") -> NoReturn:
    """End the program with the message on standard error and a status that says what kind of trouble it is."""
    with contextlib.suppress(OSError):  # a full disk takes no words, either
        print(f"{program}: error: {visible(message)}", file=sys.stderr)
    raise SystemExit(status)


def seen_from(path: str) -> str:
    """A path for a message, with what it is relative to: hydra, for one, changes the working directory."""
    return path if os.path.isabs(path) else f"{path} (in {os.getcwd()})"


def suggestion(word: str, choices: Iterable[str]) -> str:
    """`, did you mean ..?` with those of the choices that the word could mean, else nothing.

    It could mean one whose words it has, in any order, mistyped or cut short: `warmup_update` or `updates-warmup` for
    `warmup_updates`, `layers` for `encoder_layers`. What has the fewest other words comes first, alone if it can.
    """
    costs = {choice: cost for choice in choices if (cost := misspelling(word, choice)) is not None}
    likely = [choice for choice in costs if costs[choice] == min(costs.values())]
    return f", did you mean {' or '.join(likely)}?" if 0 < len(likely) <= SHOWN_SUGGESTIONS else ""


def misspelling(word: str, choice: str) -> Optional[Tuple[int, int]]:
    """(words that only one of the two has, at most one; letters that differ in the others); None: these are two names.
    """
    theirs, own = WORDS.findall(choice), WORDS.findall(word)
    if "".join(own) == "".join(theirs):
        return 0, 0
    fewer, left = sorted((own, theirs), key=len)
    if not fewer or len(left) > len(fewer) + 1:
        return None
    if fewer is theirs and sum(map(len, theirs)) < LEAST_SHARE * sum(map(len, own)):
        return None  # lr for encoder-lr: too little of what was written
    letters = 0
    for part in fewer:
        nearest = min(left, key=lambda other: edit_distance(part, other))
        short, long = sorted((part, nearest), key=len)
        distance = edit_distance(short, long)
        # Of two short words, as long as each other, neither is a slip of the other: mlm and clm.
        differ = len(long) <= 4 and len(short) == len(long) and sorted(short) != sorted(long)
        slip = distance <= (2 if len(short) > 7 else 1) and not differ
        if distance and not slip and not (len(short) >= 3 and long.startswith(short)):
            return None
        letters += distance
        left = [other for other in left if other is not nearest]
    return len(left), letters


def edit_distance(first: Sequence, second: Sequence, exchanges: bool = True) -> int:
    """How many letters, or words, one is to insert, leave out, replace or, where `exchanges`, swap with the next."""
    rows = [[*range(len(second) + 1)]]
    for i, letter in enumerate(first, 1):
        row = [i]
        for j, counterpart in enumerate(second, 1):
            row.append(min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (letter != counterpart)))
            if exchanges and i > 1 and j > 1 and (letter, first[i - 2]) == (second[j - 2], counterpart):
                row[-1] = min(row[-1], rows[-2][j - 2] + 1)
        rows.append(row)
    return rows[-1][-1]


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
            known = [name for name in parser._option_string_actions if name.startswith("--")]
            message += next(filter(None, (suggestion(name, known) for name in names)), "")
        message = message.replace("invalid <lambda> value", "invalid list of numbers")
        stop(" ".join(message.splitlines()), os.EX_USAGE, program)

    parser.error = error  # type: ignore[method-assign]
