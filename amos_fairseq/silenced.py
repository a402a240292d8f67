"""What dependencies tell a user who cannot act on it: warnings and lines of a log, each by its words."""

import logging
import re
import warnings

# Of fairseq's use of hydra, of PyTorch and of pin_memory, all of them fixed at the versions that it runs on.
WARNINGS = (
    r"hydra\.experimental\.\w+\(\) is no longer experimental",
    r"\s*The version_base parameter is not specified",
    r"In '.*': Usage of deprecated keyword in package header",
    r"\s*'.*' is validated against ConfigStore schema with the same name",
    r"\s*The strict flag in the compose API is deprecated",
    r"Future Hydra versions will no longer change working directory at job runtime",
    r"`torch\.cuda\.amp\.\w+\(args\.\.\.\)` is deprecated",
    r"`broadcast_buffers` is deprecated",
    r"'pin_memory' argument is set as true but no accelerator is found",
)
LOG_LINES = {"fairseq.utils": r"--user-dir=.* has already been imported"}  # by our command, for a purpose


def install() -> None:
    """A user's own filters, of Python's -W and PYTHONWARNINGS, go before these. Further calls change nothing.

    Lines of the log that a full disk does not take are lost without a traceback of each.
    """
    logging.raiseExceptions = False
    for message in WARNINGS:
        warnings.filterwarnings("ignore", message, append=True)
    for name, words in LOG_LINES.items():
        logging.getLogger(name).addFilter(_Others(words))


class _Others(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not re.match(self.name, record.getMessage())
