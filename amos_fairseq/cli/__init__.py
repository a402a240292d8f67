"""The `amos-fairseq` command: one module per sub-command."""

import logging

logging.getLogger("fairseq.tasks.text_to_speech").setLevel(logging.WARNING)  # it recommends a package at import
