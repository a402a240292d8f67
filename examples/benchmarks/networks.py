"""Networks of this package and batches for them, made without data: what the benchmarks train."""

import torch

from amos_fairseq.methods import METHODS, size_options
from amos_fairseq.methods.base import PretrainingMethod
from amos_fairseq.methods.batch import PretrainingBatch
from amos_fairseq.methods.config import Vocabulary

CROP = 0.9


def make_batch(device, sequences, length, masked, vocabulary_size, seed=0) -> PretrainingBatch:
    generator = torch.Generator().manual_seed(seed)
    original = torch.randint(4, vocabulary_size - 1, (sequences, length), generator=generator)
    positions = torch.zeros(sequences, length, dtype=torch.bool)
    for row in positions:
        row[1 + torch.randperm(length - 2, generator=generator)[:masked]] = True
    tensors = dict(
        original_tokens=original,
        masked_tokens=original.masked_fill(positions, vocabulary_size - 1),
        masked_positions=positions,
        masked_index=positions.flatten().nonzero().squeeze(-1),
        cropped_tokens=original[:, : int(CROP * length)],
        sample_ids=torch.arange(sequences),
    )
    tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
    return PretrainingBatch(num_masked=[masked] * sequences, **tensors)


def make_method(name, size, vocabulary_size, device, dtype, **options) -> PretrainingMethod:
    torch.manual_seed(0)
    method = METHODS[name]
    config = method.config_class(**{**size_options(name, size), **options})
    vocabulary = Vocabulary(vocabulary_size, padding=1, excluded=[0, 1, 2, 3, vocabulary_size - 1])
    return method(config, vocabulary).to(device, dtype).train()


def loss_of(method, batch) -> torch.Tensor:
    terms = method.losses(method(batch), batch)
    return sum(term.weight * term.mean for term in terms.values())
