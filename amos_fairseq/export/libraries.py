"""Packages that only the export needs."""

import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec


def import_transformers():
    """Hugging Face's transformers. Raises ValueError, with what to do, where it is not installed.

    Without torchaudio: one built for another torch, as fairseq may bring, would break the models that have no audio.
    """
    if find_spec("transformers") is None:
        raise ValueError("Hugging Face's transformers is not installed: pip install 'transformers>=4.48'")
    if find_spec("torchaudio"):
        sys.modules.setdefault("torchaudio", module_from_spec(ModuleSpec("torchaudio", None)))
    import transformers

    return transformers
