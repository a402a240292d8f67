"""What a network answers for a whole split; its kind of problem says what that is worth."""

from typing import Callable

import numpy as np
import torch

from amos_fairseq.finetune.labelled import Collater, Examples
from amos_fairseq.finetune.model import Network
from amos_fairseq.modules.batching import BATCH_TOKENS, batches


@torch.no_grad()
def predict(
    network: Network, examples: Examples, batch_tokens: int = BATCH_TOKENS,
    progress: Callable[[int], object] = lambda sequences: None,
) -> np.ndarray:
    """The outputs in the order of the examples, in fp32: (N, ..) of sequences, or (sum of lengths, ..) of tokens.

    Without dropout, on the network's device; at most `batch_tokens` positions at a time, padding included.
    """
    table = network.encoder.token_embeddings
    collate, outputs = Collater(examples, table.padding_idx), {}
    network.eval()
    for rows in batches(examples.sizes.tolist(), batch_tokens):
        batch = collate(rows)
        inputs = (None if tensor is None else tensor.to(table.weight.device) for tensor in batch[:2])
        answers = network(*inputs)
        outputs.update(zip(rows, of_sequences(answers, examples.lengths[rows])))
        progress(len(rows))
    return in_order([outputs[row] for row in range(len(examples.lengths))])


def of_sequences(outputs: torch.Tensor, lengths) -> list:
    """Each sequence's own part of a batch's outputs, in fp32."""
    outputs = outputs.float().cpu().numpy()
    return [row[:length] for row, length in zip(outputs, lengths)] if outputs.ndim == 3 else list(outputs)


def in_order(outputs: list) -> np.ndarray:
    """Those of all sequences, one after the other. Raises ValueError if one is no finite number."""
    wrong = [number for number, output in enumerate(outputs) if not np.isfinite(output).all()]
    if wrong:
        raise ValueError(
            f"the network answers nan or infinity to {len(wrong)} of {len(outputs)} sequences, first to number "
            f"{wrong[0]}: it has diverged; take a lower --lr, or --precision fp32"
        )
    return np.concatenate(outputs) if outputs[0].ndim == 2 else np.stack(outputs)
