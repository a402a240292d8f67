"""`amos-fairseq options`: what can be set for a method, with defaults, as a table or as a recipe's groups."""
import argparse
import importlib
import json
from typing import TYPE_CHECKING, Dict, List

if TYPE_CHECKING:
    from amos_fairseq.options import Option

HELP = "The options of a method's task, model and optimizer, with defaults; of --size, what its architecture sets."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("method", metavar="METHOD", help="registered name")
    parser.add_argument("--size", help="tiny, small, base or large (default: what the options have by themselves)")
    parser.add_argument("--optimizer", help="registered name (default: as in the recipes)")
    parser.add_argument("--yaml", action="store_true", help="as the groups of a configuration, not as a table")


def run(args: argparse.Namespace) -> None:
    from amos_fairseq.methods import named
    from amos_fairseq.methods.config import ENCODER_SIZES

    named(args.method)
    if args.size not in (None, *ENCODER_SIZES):
        raise ValueError(f"unknown --size {args.size}: choose from {', '.join(ENCODER_SIZES)}")
    importlib.import_module("amos_fairseq.tasks")  # registers all
    from fairseq.optim import OPTIMIZER_REGISTRY

    from amos_fairseq.fairseq_help import OPTIMIZER, options_by_group, table

    optimizer = args.optimizer or OPTIMIZER
    if optimizer not in OPTIMIZER_REGISTRY:
        known = ", ".join(sorted(OPTIMIZER_REGISTRY))
        raise ValueError(f"unknown --optimizer {optimizer}: choose from {known}")
    names = {"task": args.method, "model": args.method, "criterion": args.method, "optimizer": optimizer}
    size = f"_{args.size}" if args.size else ""
    groups = options_by_group({**names, "model": args.method + size})
    print(yaml(groups, names) if args.yaml else table(groups))


def yaml(groups: Dict[str, List["Option"]], names: Dict[str, str]) -> str:
    """JSON's values are yaml's; ??? is a value that must be given."""
    lines = []
    for group, name in names.items():
        lines += [f"{group}:", f"  _name: {name}"]
        for option in groups.get(group, []):
            value = "???" if str(option.default) == "???" else json.dumps(option.default)
            lines.append(f"  {option.name}: {value}")
    return "\n".join(lines)
