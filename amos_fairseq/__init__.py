"""Pre-training of text encoders with ELECTRA-style methods, as a fairseq plugin (`--user-dir amos_fairseq`)."""
__version__ = "0.1.0"


def from_pretrained(path, data=None):
    """A trained encoder to be used, see `amos_fairseq.pretrained`; needs torch, not fairseq."""
    from amos_fairseq import plugins
    from amos_fairseq.pretrained.loading import from_pretrained

    plugins.load()
    return from_pretrained(path, data)
