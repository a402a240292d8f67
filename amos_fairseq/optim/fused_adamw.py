"""`--optimizer fused_adamw`: torch.optim.AdamW as BERT and ELECTRA train, with matrices alone decayed."""

import ast
import contextlib
from dataclasses import dataclass
from typing import Any, Iterator, List, Optional, Tuple

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.optim import FairseqOptimizer, register_optimizer
from omegaconf import II
from torch import Tensor

from amos_fairseq.options import NOT_NEGATIVE, POSITIVE, option


def lr_factor(parameter: Tensor) -> float:
    """What the learning rate is multiplied by for this parameter: 1 unless a task has tagged it otherwise.

    The tag is fairseq's, which hands it on to the fp32 copies that it trains in half precision.
    """
    return getattr(parameter, "optim_overrides", {}).get("lr_factor", 1.0)


def set_lr_factor(parameter: Tensor, factor: float) -> None:
    parameter.optim_overrides = {"lr_factor": factor}  # type: ignore[attr-defined]


def check_takes_factors(option: str, factor: float, optimizer: Optional[str]) -> None:
    """Raises ValueError if an option asks for rates of its own of an optimizer that has one for all parameters."""
    if factor != 1.0 and optimizer != "fused_adamw":
        raise ValueError(
            f"{option} {factor} needs an optimizer with a rate for each layer, which {optimizer} is not: give "
            "--optimizer fused_adamw"
        )


def check_takes_pauses(option: str, updates: int, optimizer: Optional[str]) -> None:
    """Raises ValueError if an option asks for updates without some parameters of an optimizer that may move them."""
    if updates and optimizer != "fused_adamw":
        raise ValueError(
            f"{option} {updates} needs an optimizer that leaves parameters without a gradient as they are, which "
            f"{optimizer} may not: give --optimizer fused_adamw"
        )


def trained_copies(optimizer: FairseqOptimizer, parameters: List[Tensor]) -> List[Tensor]:
    """What the optimizer, wrapped or not, moves for each of the model's parameters: its fp32 copy, or itself."""
    copies = dict(zip(getattr(optimizer, "fp16_params", ()), getattr(optimizer, "fp32_params", ())))
    return [copies.get(parameter, parameter) for parameter in parameters]


def pause(optimizer: FairseqOptimizer, parameters: List[Tensor]) -> None:
    """Called before a step: it neither moves these parameters nor begins their moments."""
    for parameter in trained_copies(optimizer, parameters):
        parameter.grad = None


@torch.no_grad()
def copy_values(optimizer: FairseqOptimizer, copies: List[Tuple[Tensor, Tensor]]) -> None:
    """Give parameters the values of others, and their fp32 copies those of the others' copies."""
    parameters, values = ([pair[side] for pair in copies] for side in (0, 1))
    of_copies = zip(trained_copies(optimizer, parameters), trained_copies(optimizer, values))
    for parameter, value in [*copies, *of_copies]:
        parameter.copy_(value)


def decay_groups(parameters: List[Tensor], weight_decay: float) -> List[dict]:
    """Two parameter groups: what has two or more dimensions decays; biases and LayerNorm weights do not.

    Source: `exclude_from_weight_decay` of google-research/bert and electra, in terms of shapes, since the fp32 copies
    that fairseq trains in half precision have no names. The scripts of AMOS and COCO-LM decay all in fine-tuning, too.
    If parameters differ in `lr_factor`, two groups for each, those of the highest first.
    """
    groups = []
    for factor in sorted(set(map(lr_factor, parameters)), reverse=True):
        alike = [parameter for parameter in parameters if lr_factor(parameter) == factor]
        for is_matrix, decay in ((True, weight_decay), (False, 0.0)):
            params = [parameter for parameter in alike if (parameter.dim() > 1) == is_matrix]
            groups.append(dict(params=params, weight_decay=decay, lr_factor=factor))
    return groups


class AdamW(torch.optim.AdamW):
    """torch.optim.AdamW; parameters in half precision (`--memory-efficient-fp16`) have fp32 moments and arithmetic."""

    supports_memory_efficient_fp16 = True
    disable_mem_eff_fp16_loading_hack = True  # fairseq's remedy for what `load_state_dict` does right here

    @contextlib.contextmanager
    def _in_fp32(self) -> Iterator[None]:
        """Inside, fp32 copies stand for the parameters in half precision, with their gradients and their state."""
        originals = [group["params"] for group in self.param_groups]
        for group in self.param_groups:
            group["params"] = [self._fp32(parameter) for parameter in group["params"]]
        try:
            yield
        finally:
            for group, parameters in zip(self.param_groups, originals):
                for parameter, copy in zip(parameters, group["params"]):
                    if copy is not parameter:
                        parameter.data.copy_(copy)
                        if copy in self.state:
                            self.state[parameter] = self.state.pop(copy)
                group["params"] = parameters

    def _fp32(self, parameter: Tensor) -> Tensor:
        if parameter.dtype not in (torch.float16, torch.bfloat16):
            return parameter
        copy = parameter.detach().float()
        copy.grad = None if parameter.grad is None else parameter.grad.float()
        if parameter in self.state:
            self.state[copy] = self.state.pop(parameter)
        return copy

    def step(self, closure=None):
        with self._in_fp32():
            return super().step(closure)

    def load_state_dict(self, state_dict: dict) -> None:
        with self._in_fp32():  # torch casts the moments to the type of the parameters
            super().load_state_dict(state_dict)


@dataclass
class FusedAdamWConfig(FairseqDataclass):
    """Names and defaults are those of fairseq's adam."""

    adam_betas: Any = option((0.9, 0.999), "decay rates of the two moments")
    adam_eps: float = option(1e-8, "added to the root of the second moment", POSITIVE)
    weight_decay: float = option(0.0, "weight decay of matrices, tables included", NOT_NEGATIVE)
    lr: List[float] = II("optimization.lr")


@register_optimizer("fused_adamw", dataclass=FusedAdamWConfig)
class FusedAdamW(FairseqOptimizer):
    """Beside fairseq's `adam`: one kernel for all parameters on GPUs without apex, and weight decay of `decay_groups`.

    `adam` takes apex's FusedAdam where it is installed, and decays every parameter. Its eps is added before the
    second moment is corrected for its zero start, here after (Kingma and Ba, 2015, Algorithm 1).
    """

    supports_flat_params = False  # one flat tensor would hide which of its parts are matrices

    def __init__(self, cfg: FusedAdamWConfig, params):
        super().__init__(cfg)
        parameters = list(params)
        groups = decay_groups(parameters, cfg.weight_decay)
        self._lr_factors = [group.pop("lr_factor") for group in groups]  # the command's, not a checkpoint's
        # `places` number the parameters as torch does where all factors are 1, in checkpoints of any factors
        alike = sorted(parameters, key=lambda parameter: parameter.dim() < 2)
        place_of = {parameter: place for place, parameter in enumerate(alike)}
        for group in groups:
            group["places"] = [place_of[parameter] for parameter in group["params"]]
        self._optimizer = AdamW(
            groups, fused=all(parameter.is_cuda for parameter in parameters) or None, **self.optimizer_config
        )
        self.set_lr(cfg.lr[0])

    @property
    def optimizer_config(self) -> dict:
        cfg = self.cfg
        return dict(lr=cfg.lr[0], betas=betas(cfg.adam_betas), eps=cfg.adam_eps, weight_decay=cfg.weight_decay)

    def get_lr(self) -> float:
        """Of the parameters with `lr_factor` 1."""
        return self._lr

    def set_lr(self, lr: float) -> None:
        """Called by the scheduler before every update."""
        self._lr = lr
        for group, factor in zip(self.param_groups, self._lr_factors):
            group["lr"] = factor * lr

    def load_state_dict(self, state_dict, optimizer_overrides=None):
        """Of a run with any factors: `places` tell whose moments are whose."""
        saved = state_dict["param_groups"]
        if len(saved) > 2 and "places" not in saved[0]:
            raise ValueError(f"the checkpoint's {len(saved)} groups do not say of which parameters: --reset-optimizer")
        places = (zip(group["params"], group.get("places", group["params"])) for group in saved)
        place_of = {index: place for group in places for index, place in group}
        own = sum(len(group["places"]) for group in self.param_groups)
        if len(place_of) != own:
            raise ValueError(f"the checkpoint's optimizer has {len(place_of)} parameters, not {own}: --reset-optimizer")
        moments = {place_of[index]: value for index, value in state_dict["state"].items()}
        groups = [
            {**saved[index % 2], "params": group["places"], "places": group["places"]}
            for index, group in enumerate(self.param_groups)
        ]
        state_dict = {**state_dict, "state": moments, "param_groups": groups}
        super().load_state_dict(state_dict, optimizer_overrides)
        for vectors in self.param_groups[1::2]:
            vectors["weight_decay"] = 0.0  # fairseq overrides all groups alike


def betas(value: Any) -> Tuple[float, float]:
    """The pair that `value`, a string or a list, spells."""
    try:
        first, second = map(float, ast.literal_eval(str(value)))
    except (ValueError, SyntaxError, TypeError):
        raise ValueError(f"adam_betas {value!r} is no pair of numbers: write it as '(0.9, 0.98)'") from None
    return first, second
