"""How parameters start, and the numerical constants of BERT's family."""

import torch
from torch import nn

INIT_STD = 0.02
LAYER_NORM_EPS = 1e-5


@torch.no_grad()
def initialize(module: nn.Module) -> None:
    """N(0, 0.02) for Linear and Embedding weights, zero biases and padding row; LayerNorm keeps (1, 0).

    Meant for `model.apply(initialize)`. A tied table may be met more than once: it is drawn again from the same law.
    """
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=INIT_STD)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        module.weight[module.padding_idx].zero_()
