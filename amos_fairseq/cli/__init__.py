"""The `amos-fairseq` command: one module per sub-command."""
