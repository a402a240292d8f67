"""Continued pre-training: a run that starts from what an earlier one learned, with the same method or another."""

import logging
import re
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from amos_fairseq.methods.base import PretrainingMethod
from amos_fairseq.methods.config import PretrainingConfig, heads_of_generator
from amos_fairseq.options import declared

logger = logging.getLogger(__name__)

GENERATOR = re.compile(r"^(generators\.\d+|generator)\.")  # how the methods call their generators
MODULES_OF_GENERATOR = ("generators", "generator", "mlm_head")
HEADS, WIDTH = "encoder_attention_heads", "generator_embed_dim"
TABLES, WEIGHT, DELTA = ("token_embeddings", "positions"), ".weight", ".delta"  # of ordinary and disentangled tables
DISENTANGLED = tuple(f"{table}{DELTA}" for table in TABLES)


class EarlierRun(NamedTuple):
    """What a checkpoint holds of the run that wrote it."""

    source: str  # what errors and the log call it
    state: Mapping[str, Tensor]  # its method's
    options: Mapping[str, Any] = {}  # its model's; one that is absent is taken to be the same here


def start_from(method: PretrainingMethod, run: EarlierRun) -> None:
    """Give a new `method` what an earlier run, of the same method or another, has learned for it.

    encoder    all of it, token table and relative bias included: it must be the same network
    generator  with its MLM head, if the run had one of the same shape, and what it shares with the encoder here (the
               token table, in some methods bottom layers) was shared there, too
    tables     the encoder's, token or position, as ordinary or as disentangled ones (`DisentangledTable`), as they are
               here: a difference is added to the generator's table that it was taken to; an ordinary one becomes the
               difference to the generator's if that is taken, else both have its values and the difference is 0
    heads      only if the two methods' parameters are alike throughout: a head is of use on the networks that it was
               trained on, and one name may stand for heads of two, as `mlm_head` does for BERT's and for ELECTRA's

    What is not taken keeps its start. Logs once which is which. If the encoder is not the same, raises ValueError that
    names the first difference, and changes nothing. Whether the ids mean the same words is the caller's to know.
    """
    wanted = method.state_dict()
    heads, heads_there = generator_heads(method.config, run)
    same_heads = heads == heads_there
    state, followed = with_tables_of(wanted, named_alike(run.state, wanted), same_heads)
    encoder, generator = part(state, ["encoder"]), part(state, MODULES_OF_GENERATOR)
    check_same_options(method.config, run)
    check_same_shapes(
        "encoder", part(wanted, ["encoder"]), encoder, run.source, "the encoder's options and the vocabulary"
    )
    if same_heads and fits(method, wanted, state):
        taken = state
    elif same_heads and fits(method, part(wanted, ["encoder", *MODULES_OF_GENERATOR]), {**encoder, **generator}):
        taken = {**encoder, **generator}
    else:
        taken = encoder
    method.load_state_dict({**taken, **followed}, strict=False)
    new = [module for module in modules(wanted) if module not in modules(taken)]
    logger.info("%s: took %s; new: %s", run.source, ", ".join(modules(taken)), ", ".join(new) or "nothing")


def load_generator(method: PretrainingMethod, run: EarlierRun) -> None:
    """Give `method` the generator and MLM head of an earlier run of any method that has one.

    Raises ValueError that names the first difference if it is not the same network.
    """
    wanted = method.state_dict()
    taken = part(named_alike(run.state, wanted), MODULES_OF_GENERATOR)
    check_same_options(method.config, run, generator_heads(method.config, run))
    check_same_shapes(
        "generator", part(wanted, MODULES_OF_GENERATOR), taken, run.source,
        "generator_layers, generator_embed_dim and the encoder's options",
    )
    method.load_state_dict(taken, strict=False)
    logger.info("%s: took %s", run.source, ", ".join(modules(taken)))


def named_alike(state: Mapping[str, Tensor], wanted: Iterable[str]) -> Dict[str, Tensor]:
    """`state` with its generators called as those of `wanted` are, if there are as many."""
    there, here = generators(state), generators(wanted)
    names = dict(zip(there, here)) if len(there) == len(here) else {}
    return {GENERATOR.sub(lambda match: f"{names.get(match[1], match[1])}.", key): state[key] for key in state}


def with_tables_of(
    wanted: Mapping[str, Tensor], state: Mapping[str, Tensor], same_heads: bool
) -> Tuple[Dict[str, Tensor], ...]:
    """`state` with the encoder's tables as `wanted` has them, and the generator's that these are differences to.

    same_heads: of both generators
    """
    followed: Dict[str, Tensor] = {}
    state = dict(state)
    there, here = ([key for key in keys if key.endswith(DISENTANGLED)] for keys in (state, wanted))
    of_generators = (part(keys, MODULES_OF_GENERATOR) for keys in (wanted, state))
    same_generator = same_heads and not first_difference(*of_generators)
    if there == here and same_generator:
        return state, followed
    for key in there:
        state[key.removesuffix(DELTA) + WEIGHT] = state[followed_by(key, state)] + state.pop(key)
    for key in here:
        weight, name = state.pop(key.removesuffix(DELTA) + WEIGHT, None), followed_by(key, wanted)
        if weight is not None:
            known = same_generator and state[name].shape == weight.shape
            followed[name] = state[name] if known else weight
            state[key] = weight - followed[name]
    return state, followed


def followed_by(delta: str, keys: Iterable[str]) -> str:
    """Of `keys`, the generator's table that the difference `delta` is added to."""
    table = delta.removesuffix(DELTA).split(".")[-1]
    return next(key for key in keys if GENERATOR.match(key) and key.endswith(f".{table}{WEIGHT}"))


def generators(keys: Iterable[str]) -> List[str]:
    return list(dict.fromkeys(match[1] for match in map(GENERATOR.match, keys) if match))


def modules(keys: Iterable[str]) -> List[str]:
    return list(dict.fromkeys(key.split(".")[0] for key in keys))


def part(state: Mapping[str, Tensor], names: Iterable[str]) -> Dict[str, Tensor]:
    """What belongs to the modules `names`."""
    return {key: state[key] for key in state if key.split(".")[0] in names}


def first_difference(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> Optional[str]:
    """The first parameter that is not in both with the same shape, in words; None if there is none."""
    for key in [*wanted, *found]:
        here, there = (tuple(state[key].shape) if key in state else "absent" for state in (wanted, found))
        if here != there:
            return f"{key} is {there}, not {here}"
    return None


def fits(method: PretrainingMethod, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> bool:
    """Whether `found` is `wanted` with other values, equal wherever they belong to one parameter of `method`."""
    if first_difference(wanted, found):
        return False
    first: Dict[Tensor, str] = {}
    return all(
        torch.equal(found[key], found[first.setdefault(parameter, key)])
        for key, parameter in method.named_parameters(remove_duplicate=False)
        if key in found
    )


def check_same_shapes(
    network: str, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], source: str, remedy: str
) -> None:
    if difference := first_difference(wanted, found):
        raise ValueError(
            f"{source} does not hold the {network} that the options describe: {difference}; set {remedy} as in that run"
        )


def generator_heads(config: PretrainingConfig, run: EarlierRun) -> Tuple[int, int]:
    """Of the generators here and there."""
    width, heads = getattr(config, WIDTH, 0), config.encoder_attention_heads
    width_there = run.options.get(WIDTH, 0) if run.options else width  # not every method's has a width of its own
    return heads_of_generator(width, heads), heads_of_generator(width_there, run.options.get(HEADS, heads))


def check_same_options(config: PretrainingConfig, run: EarlierRun, heads: Optional[Tuple[int, int]] = None) -> None:
    """heads: of the network here and of the one there, where they are not both the encoder"""
    here = {option.name: getattr(config, option.name) for option in declared(type(config)) if option.unseen}
    there = {name: run.options.get(name, value) for name, value in here.items()}
    if heads is not None:
        here[HEADS], there[HEADS] = heads
    for name, value in here.items():
        if value != there[name] and (config.rel_pos_buckets or not name.startswith("rel_pos")):
            raise ValueError(f"{run.source} was trained with {name} {there[name]}, not {value}: set it as in that run")
