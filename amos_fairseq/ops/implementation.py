"""Which implementation of an operation runs: kernels where they were built or Triton compiles them, else PyTorch."""

import contextlib
import os
import warnings
from types import ModuleType
from typing import Iterator

import torch
from torch import Tensor

from amos_fairseq.ops import attention, compiled, pytorch

CHOICES = ("auto", "pytorch", "compiled")
_choice = os.environ.get("AMOS_FAIRSEQ_OPS", "auto")


@contextlib.contextmanager
def use(choice: str) -> Iterator[None]:
    """`with use("pytorch"):` or "compiled", or "auto": the kernels where they were built, the default.

    The environment variable AMOS_FAIRSEQ_OPS does the same for a whole run.
    """
    global _choice
    before, _choice = _choice, choice
    try:
        yield
    finally:
        _choice = before


def row_functions(tensor: Tensor) -> ModuleType:
    """The module whose functions read logits of this tensor's device and type; see `functions_for`."""
    return functions_for(tensor.device.type, tensor.dtype)


def functions_for(device: str, dtype: torch.dtype) -> ModuleType:
    """The module whose functions read logits of this type on this kind of device.

    Raises ValueError if the choice is "compiled" and there is no kernel, naming the build command.
    """
    _check_choice()
    if _choice == "pytorch":
        return pytorch
    if compiled.available(device) and compiled.supports(device, dtype):
        return compiled
    if _choice == "auto":
        if device == "cuda" and not compiled.available(device):
            warnings.warn(f"the ops run in PyTorch and are slow; `{compiled.BUILD_COMMAND[device]}` compiles them")
        return pytorch
    if not compiled.supports(device, dtype):
        raise ValueError(f"there are no compiled ops for {dtype} on {device}: use AMOS_FAIRSEQ_OPS=auto")
    raise ValueError(f"the compiled ops for {device} are not built: run `{compiled.BUILD_COMMAND[device]}`")


def attention_kernels(device: str, dtype: torch.dtype, width: int = 64, length: int = 1) -> bool:
    """Whether `ops.relative_attention` takes a relative bias, for heads of `width` channels over `length` positions.

    Only the choice "compiled" takes the kernels: Triton's interpreter and compiler have seen them, but no GPU yet. On
    CPUs PyTorch's attention is the only one. Raises ValueError if a GPU has no kernel.
    """
    _check_choice()
    if _choice != "compiled" or device not in ("cuda", "cpu"):
        return False
    if attention.available(device) and attention.supports(dtype, width, length):
        return True
    if device == "cuda":
        what = f"for heads of {width} channels in {dtype}"
        remedy = "they read 16 to 128 in steps of 8, no float64, and 65536 positions at most"
        if not attention.available(device):
            what, remedy = "here", "they need a GPU from A100 on, and triton 3.5, which torch 2.9 brings, or newer"
        raise ValueError(f"there are no attention kernels {what}: {remedy}, or AMOS_FAIRSEQ_OPS=auto")
    return False


def _check_choice() -> None:
    if _choice not in CHOICES:
        raise ValueError(f"AMOS_FAIRSEQ_OPS is {_choice!r}: choose {', '.join(CHOICES)}")
