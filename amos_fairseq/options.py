"""Options that know their rules: what a value may be, and what follows from it, stand where the option is declared.

    option      declares one, a field of a config dataclass
    declared    all of a config dataclass, with their rules
    check       holds a config against them
"""

import argparse
import dataclasses
import math
from collections.abc import Sequence
from typing import Any, FrozenSet, Iterable, List, Mapping, NamedTuple, Optional, Tuple


class Range(NamedTuple):
    low: float
    high: float = math.inf
    without_low: bool = False
    with_high: bool = False

    def holds(self, value: Any) -> bool:
        """False for nan and infinity, too."""
        if not isinstance(value, (int, float)) or not self.low <= value <= self.high or value == math.inf:
            return False
        return (value > self.low or not self.without_low) and (value < self.high or self.with_high)

    def __str__(self) -> str:
        low = f"{'above' if self.without_low else 'at least'} {self.low:g}"
        high = f"{'at most' if self.with_high else 'below'} {self.high:.10g}"
        return low if self.high == math.inf else f"{low} and {high}"

    def check(self, name: str, value: Any) -> None:
        """Raises ValueError unless the range holds `value`, or each number of a list. None is an option not given."""
        for number in value if isinstance(value, Sequence) and not isinstance(value, str) else [value]:
            if number is not None and not self.holds(number):
                raise ValueError(f"{name} {number} is out of range: it must be {self}")


POSITIVE, NOT_NEGATIVE, COUNT, SHARE = Range(0, without_low=True), Range(0), Range(1), Range(0, 1)


class Option(NamedTuple):
    name: str = ""
    default: Any = None
    help: Optional[str] = None
    range: Optional[Range] = None  # of a number, or of each number of a list
    choices: Tuple[str, ...] = ()  # none: any
    free: bool = False  # a resumed run may change it
    path: bool = False  # it names a place, and is free
    unseen: bool = False  # it changes what a network computes, but the shape of no parameter tells it

    @property
    def flag(self) -> str:
        return f"--{self.name.replace('_', '-')}"

    def check(self, value: Any) -> None:
        """Raises ValueError, in one line, if this is no value of the option."""
        if self.range is not None:
            self.range.check(self.name, value)
        if self.choices and value not in self.choices:
            raise ValueError(f"unknown {self.name} {value!r}: choose {', '.join(self.choices)}")


def option(
    default: Any = dataclasses.MISSING, help: Optional[str] = None, range: Optional[Range] = None,
    choices: Iterable[str] = (), free: bool = False, path: bool = False, unseen: bool = False,
) -> Any:
    """A config field with rules, those of `Option`; the help text becomes the command line's.

    Without a default, it must be given. Lists are copied for each instance.
    """
    rules = Option(help=help, range=range, choices=tuple(choices), free=free or path, path=path, unseen=unseen)
    value = dict(default_factory=lambda: list(default)) if isinstance(default, list) else dict(default=default)
    return dataclasses.field(**value, metadata={"help": help, "option": rules})


def declared(config_class: type) -> List[Option]:
    """All options of a config dataclass, inherited ones included; a field that is no `option` has no rules."""
    return [
        field.metadata.get("option", Option(help=field.metadata.get("help")))._replace(
            name=field.name,
            default=field.default if field.default_factory is dataclasses.MISSING else field.default_factory(),
        )
        for field in dataclasses.fields(config_class)
        if not field.name.startswith("_")
    ]


def check(config: Any) -> None:
    """Raises ValueError, in one line, for the first option of a config that breaks its rules."""
    for option in declared(type(config)):
        option.check(getattr(config, option.name))


def options_of(group: Any) -> Mapping[str, Any]:
    """Of one group of fairseq's configuration, whose components without a dataclass have a Namespace."""
    return vars(group) if isinstance(group, argparse.Namespace) else group or {}


def free_names(config_class: type) -> FrozenSet[str]:
    """Of the options that a resumed run may change: places, the run's length, what makes no difference undisturbed."""
    return frozenset(option.name for option in declared(config_class) if option.free)
