"""What a user got wrong is told in one line, without a traceback."""

import contextlib


@contextlib.contextmanager
def told_in_one_line():
    """Turn a `ValueError` into the end of the program, its message on standard error."""
    try:
        yield
    except ValueError as error:
        raise SystemExit(f"amos_fairseq: error: {error}") from None
