"""Pre-training of text encoders with ELECTRA-style methods, as a fairseq plugin (`--user-dir amos_fairseq`)."""
__version__ = "0.1.0"
