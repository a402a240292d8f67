"""What a user got wrong is told in one line, without a traceback."""

import contextlib
import sys
from typing import NoReturn


@contextlib.contextmanager
def told_in_one_line():
    """Turn a `ValueError` into the end of the program, its message on standard error."""
    try:
        yield
    except ValueError as error:
        raise SystemExit(f"amos_fairseq: error: {error}") from None


def stop(message: str, status: int) -> NoReturn:
    """End the program with the message on standard error and a status that says what kind of trouble it is."""
    print(f"amos_fairseq: error: {message}", file=sys.stderr)
    raise SystemExit(status)
