"""The methods by registered name: the same stages (generate, sample, corrupt, encode, heads), combined differently.

| name                | generator                             | sample             | gradient through it | objectives  |
|---------------------|---------------------------------------|--------------------|---------------------|-------------|
| `amos_rtd`          | one tower, MLM head at several depths | their mixture      | reversed, into the  | mlm_d, rtd  |
|                     |                                       |                    | mixture weights     |             |
| `coco_lm`           | one, shallow                          | categorical        | none                | mlm, rtd,   |
|                     |                                       |                    |                     | clm, scl    |
| `teams_mws`         | half as deep, on the encoder's bottom | categorical, and K | none                | mlm, rtd,   |
|                     | layers                                | candidates         |                     | mws         |
| `peer_tqr`          | as `teams_mws`                        | categorical        | none                | mlm, tqr    |
| `script_selfcritic` | the encoder itself                    | categorical        | none                | mlm, critic |
| `electra_rtd`       | one, narrow or shallow                | categorical        | none                | mlm, rtd    |
| `bert_mlm`          | none                                  | none               | none                | mlm         |

A method of another package is made known by `register`: see `amos_fairseq.plugins`.
"""

from dataclasses import fields
from typing import Any, Callable, Dict, List, Mapping, Type

from amos_fairseq.methods.amos import Amos
from amos_fairseq.methods.base import PretrainingMethod
from amos_fairseq.methods.coco_lm import CocoLM
from amos_fairseq.methods.config import ENCODER_SIZES, Vocabulary
from amos_fairseq.methods.continuation import EarlierRun, load_generator, start_from
from amos_fairseq.methods.electra import Electra
from amos_fairseq.methods.generator_first import start_from_generator
from amos_fairseq.methods.mlm import MaskedLM
from amos_fairseq.methods.peer import Peer
from amos_fairseq.methods.script import Script
from amos_fairseq.methods.teams import Teams

METHODS: Dict[str, Type[PretrainingMethod]] = {
    "amos_rtd": Amos,
    "coco_lm": CocoLM,
    "teams_mws": Teams,
    "peer_tqr": Peer,
    "script_selfcritic": Script,
    "electra_rtd": Electra,
    "bert_mlm": MaskedLM,
}
# Options that name an earlier run's checkpoint, and what takes from it.
STARTS: Dict[str, Callable[[PretrainingMethod, EarlierRun], None]] = {
    "init_checkpoint": start_from,
    "init_encoder_from_generator": start_from_generator,
    "generator_checkpoint": load_generator,
}
_followers: List[Callable[[str], object]] = []


def register(name: str, method: Type[PretrainingMethod]) -> None:
    """Make a method known by `name`: to every command and, with fairseq, as task, model, criterion and architectures.

    Raises ValueError if the name or that of the class, by which fairseq tells shells apart, is taken or is no name.
    """
    if not name.isidentifier():
        raise ValueError(f"method name {name!r} must be made of letters, digits and _: choose another")
    for other, known in METHODS.items():
        if other == name or known.__name__ == method.__name__:
            raise ValueError(
                f"method {name}, class {method.__name__}: {other} of {known.__module__} has class {known.__name__}; "
                "choose a name and a class name of its own"
            )
    METHODS[name] = method
    for follow in _followers:
        follow(name)


def named(name: str) -> Type[PretrainingMethod]:
    """The method of that registered name. Raises ValueError if there is none."""
    if name not in METHODS:
        raise ValueError(
            f"unknown method {name}: choose from {', '.join(METHODS)}, or name its package, --user-dir"
        )
    return METHODS[name]


def for_each_method(follow: Callable[[str], object]) -> Callable[[str], object]:
    """Call `follow(name)` for every method, those registered later, too."""
    for name in METHODS:
        follow(name)
    _followers.append(follow)
    return follow


def size_options(name: str, size: str) -> dict:
    """The options that architecture `<name>_<size>` sets."""
    return {**ENCODER_SIZES[size], **METHODS[name].sizes[size]}


def build(name: str, options: Mapping[str, Any], vocabulary: Vocabulary, **schedule) -> PretrainingMethod:
    """A new method of that registered name; `schedule`: of `PretrainingMethod`.

    Options that are none of its own are left out; one that is absent, as from a checkpoint before it existed, has its
    default.
    """
    method = METHODS[name]
    names = {field.name for field in fields(method.config_class)} & set(options)
    return method(method.config_class(**{option: options[option] for option in names}), vocabulary, **schedule)
