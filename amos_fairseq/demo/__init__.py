"""A corpus and labelled tasks of text that every installation brings: documentation of Python packages."""
