"""`amos-fairseq options`: what can be set for a method, with defaults, as a table or as a recipe's groups."""
import argparse
import importlib
import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Dict, List, Optional

if TYPE_CHECKING:
    from amos_fairseq.options import Option

HELP = "The options of a method's task, model and optimizer, with defaults; of --size, what its architecture sets."
OPTIMIZER = "fused_adamw"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("method", metavar="METHOD", help="registered name")
    parser.add_argument("--size", help="tiny, small, base or large (default: what the options have by themselves)")
    parser.add_argument("--optimizer", default=OPTIMIZER, help=f"registered name (default: {OPTIMIZER})")
    parser.add_argument("--yaml", action="store_true", help="as the groups of a configuration, not as a table")


def run(args: argparse.Namespace) -> None:
    from amos_fairseq.methods import METHODS
    from amos_fairseq.methods.base import ENCODER_SIZES

    if args.method not in METHODS:
        raise ValueError(f"unknown method {args.method}: choose from {', '.join(METHODS)}")
    if args.size not in (None, *ENCODER_SIZES):
        raise ValueError(f"unknown --size {args.size}: choose from {', '.join(ENCODER_SIZES)}")
    groups = options_by_group(args.method, args.size, args.optimizer)
    names = {"task": args.method, "model": args.method, "criterion": args.method, "optimizer": args.optimizer}
    print(yaml(groups, names) if args.yaml else table(groups))


def options_by_group(method: str, size: Optional[str], optimizer: str) -> Dict[str, List["Option"]]:
    """Without those that only repeat an option of another group. Raises ValueError if there is no such optimizer."""
    importlib.import_module("amos_fairseq.tasks")  # registers all
    from fairseq.optim import OPTIMIZER_REGISTRY

    from amos_fairseq.fairseq_options import options_declared
    from amos_fairseq.methods import size_options

    if optimizer not in OPTIMIZER_REGISTRY:
        raise ValueError(f"unknown --optimizer {optimizer}: choose from {', '.join(sorted(OPTIMIZER_REGISTRY))}")
    of_size = size_options(method, size) if size else {}
    groups = {"task": method, "model": method, "optimizer": optimizer}
    return {
        group: [
            option._replace(default=of_size.get(option.name, option.default) if group == "model" else option.default)
            for option in options_declared(group, SimpleNamespace(_name=name))
            if not str(option.default).startswith("${")
        ]
        for group, name in groups.items()
    }


def table(groups: Dict[str, List["Option"]]) -> str:
    """A line for each option: how the command line has it, its default, what it is."""
    lines = []
    for group, options in groups.items():
        lines += ["", f"{group}:"]
        for option in options:
            flag, default = f"--{option.name.replace('_', '-')}", shown(option.default)
            choices = f" ({', '.join(option.choices)})" if option.choices else ""
            lines.append(f"  {flag:<32}{default:<16} {' '.join((option.help or '').split())}{choices}".rstrip())
    return "\n".join(lines[1:])


def shown(default) -> str:
    if str(default) == "???":
        return "(required)"
    if isinstance(default, bool):
        return "on" if default else "off"
    return ",".join(map(str, default)) if isinstance(default, list) else str(default)


def yaml(groups: Dict[str, List["Option"]], names: Dict[str, str]) -> str:
    """JSON's values are yaml's; ??? is a value that must be given."""
    lines = []
    for group, name in names.items():
        lines += [f"{group}:", f"  _name: {name}"]
        for option in groups.get(group, []):
            value = "???" if str(option.default) == "???" else json.dumps(option.default)
            lines.append(f"  {option.name}: {value}")
    return "\n".join(lines)
