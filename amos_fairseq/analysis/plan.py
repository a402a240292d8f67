"""What an update takes of a device's memory, found without one: it is made of tensors that have shapes and no values.

On the device "meta" the same operations run, forward and backward, and what each would allocate is counted while it is
alive. Only attention is told otherwise: where a GPU has a fused kernel, "meta" has none, and would count the
probabilities. The row functions are PyTorch's, whose temporaries are larger than those of the compiled kernels, and a
chunk of logits is as on a GPU of at most 32 GiB.
"""

import contextlib
import weakref
from typing import Iterable, List, NamedTuple, Optional

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from amos_fairseq.data.masking import padded_width
from amos_fairseq.methods.base import PretrainingMethod
from amos_fairseq.methods.batch import PretrainingBatch
from amos_fairseq.ops import use

FP32 = 4


class Memory(NamedTuple):
    """Bytes of one device."""

    parameters: int
    gradients: int  # kept over an update's micro-batches; of several devices also the buckets in which they are sent
    optimizer: int  # two fp32 moments, as Adam has, and in half precision fp32 copies of the parameters
    activations: int  # what the backward pass needs, alive when it begins
    temporaries: int  # the most alive beside all these, in either pass or in the optimizer's step

    @property
    def total(self) -> int:
        return sum(self)


class Alive(TorchDispatchMode):
    """Counts the bytes of all that operations make, as long as it is alive; of tensors without values, too.

    there: what they are given, of which views are nothing new
    """

    def __init__(self, there: Iterable[Tensor]):
        super().__init__()
        self.now = self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in there}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._known:
                    self._known.add(storage._cdata)
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def _forget(self, identity: int, size: int) -> None:
        self._known.discard(identity)
        self.now -= size


class _Fused(torch.autograd.Function):
    """The shapes of a fused kernel's forward and backward pass: no probabilities, but a bias' whole gradient."""

    @staticmethod
    def forward(ctx, query, key, value, bias):
        result, logsumexp = torch.empty_like(query), query.new_empty(query.shape[:-1], dtype=torch.float)
        ctx.save_for_backward(query, key, value, bias, result, logsumexp)
        return result

    @staticmethod
    def backward(ctx, gradient):
        *inputs, _, _ = ctx.saved_tensors
        needed = zip(inputs, ctx.needs_input_grad)
        return tuple(tensor.new_empty(tensor.shape) if needs else None for tensor, needs in needed)


class FusedAttention(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.scaled_dot_product_attention:
            return _Fused.apply(*args, (kwargs or {}).get("attn_mask"))
        return function(*args, **(kwargs or {}))


def batch_without_values(
    sequences: int, length: int, mask_prob: float, cropping: Optional[float] = None
) -> PretrainingBatch:
    """Full blocks of `length` tokens, all but two of them words; cropping: share that a cropped view keeps."""
    tokens = torch.empty(sequences, length, dtype=torch.long, device="meta")
    masked = [round(mask_prob * (length - 2))] * sequences
    cropped = None if cropping is None else tokens.new_empty(sequences, padded_width(round(cropping * length)))
    positions, index = tokens.new_empty(tokens.shape, dtype=torch.bool), tokens.new_empty(sum(masked))
    return PretrainingBatch(
        tokens, tokens.clone(), positions, index, masked, tokens.new_empty(sequences), cropped_tokens=cropped
    )


def memory(
    method: PretrainingMethod, batch: PretrainingBatch, masters: bool = True, devices: int = 1, fused: bool = True
) -> Memory:
    """Of a method without values, in the precision of the run, in its updates with all of `batch` at a time.

    masters: whether half precision has fp32 copies, as all but fairseq's memory-efficient kinds   fused: attention is
    one kernel, as on GPUs; on a CPU it is not, unless there is neither dropout nor a relative bias
    Raises NotImplementedError or RuntimeError if the forward pass asks a tensor for its values.
    """
    learned = [parameter for parameter in method.parameters() if parameter.requires_grad]
    size = sum(parameter.numel() for parameter in learned)
    gradients = sum(parameter.nbytes for parameter in learned)
    half = any(parameter.element_size() < FP32 for parameter in learned)
    for parameter in learned:  # of an earlier micro-batch
        parameter.grad = torch.empty_like(parameter)
    method.set_num_updates(method.generator_warmup)  # in which less runs
    alive = Alive([*method.parameters(), *method.buffers(), *(p.grad for p in learned)])
    with torch.device("meta"), use("pytorch"), alive, FusedAttention() if fused else contextlib.nullcontext():
        terms = method.losses(method(batch), batch).values()
        loss = torch.stack([term.weight * term.total for term in terms]).sum()
        activations, peak = alive.now, alive.peak
        loss.backward()
    method.zero_grad(set_to_none=True)
    step = size * FP32 if half else 0  # fp32 gradients, when the activations are gone
    temporaries = max(peak, alive.peak, step) - activations
    return Memory(
        sum(parameter.nbytes for parameter in method.parameters()), gradients * (2 if devices > 1 else 1),
        _trainer_bytes(learned, masters), activations, temporaries,
    )


def checkpoint_bytes(model: torch.nn.Module, masters: bool = True) -> int:
    """Of a checkpoint's tensors: the model's, each once, two fp32 moments and, in half precision, fp32 parameters.

    Vocabulary and options, below a megabyte, come on top.
    """
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    saved = sum(named[name].nbytes for name in named.keys() & model.state_dict().keys())
    return saved + _trainer_bytes([parameter for parameter in model.parameters() if parameter.requires_grad], masters)


def _trainer_bytes(learned: List[Tensor], masters: bool) -> int:
    half = any(parameter.element_size() < FP32 for parameter in learned)
    return (2 + (half and masters)) * FP32 * sum(parameter.numel() for parameter in learned)
