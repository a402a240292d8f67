"""`amos-fairseq flops`: what methods cost, in the papers' convention and in the hardware's."""
import argparse
import ast
import contextlib
import json
from typing import Any, Dict, List

from amos_fairseq.terminal import table

HELP = (
    "Training FLOPs, forward and backward, per token, per sequence and for a run. hardware: matrix products, what MFU "
    "counts; electra: google ELECTRA's convention, for comparison with the papers' tables, without warm-ups of the "
    "generator alone. Or the groups of parameters that have learning rates of their own."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("methods", nargs="*", metavar="METHOD", help="registered names (default: all)")
    parser.add_argument("--size", default="base", help="tiny, small, base or large (default: base)")
    parser.add_argument("--vocab-size", type=int, default=32768, help="symbols of the vocabulary (default: 32768)")
    parser.add_argument("--length", type=int, default=512, help="tokens of a sequence (default: 512)")
    parser.add_argument("--sequences", type=int, default=2048, help="sequences of an update (default: 2048)")
    parser.add_argument("--updates", type=int, default=125000, help="updates of the run (default: 125000)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="OPTION=VALUE",
        help="an option of the methods, as encoder_lr_factor=0.5; may be given again",
    )
    parser.add_argument("--groups", action="store_true", help="list the groups of learning rates, not FLOPs")
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of a table")


def run(args: argparse.Namespace) -> None:
    from amos_fairseq.analysis.flops import Geometry, electra_flops, hardware_flops, without_memory
    from amos_fairseq.methods import METHODS, named
    from amos_fairseq.methods.config import ENCODER_SIZES

    methods = {name: named(name) for name in args.methods or METHODS}
    if args.size not in ENCODER_SIZES:
        raise ValueError(f"unknown --size {args.size}: choose from {', '.join(ENCODER_SIZES)}")
    for option in ("vocab_size", "length", "sequences", "updates"):
        if getattr(args, option) < 1:
            raise ValueError(f"--{option.replace('_', '-')} must be at least 1, got {getattr(args, option)}")

    geometry = Geometry(args.sequences, args.length, args.updates)
    rows: List[Dict[str, Any]] = []
    for name, chosen in methods.items():
        options = dict(option_of(chosen.config_class, name, given) for given in args.set)
        method = without_memory(name, args.size, args.vocab_size, geometry, options)
        if args.groups:
            for group in method.learning_rate_groups():
                size = sum(parameter.numel() for parameter in group.parameters)
                rows.append({"method": name, "group": group.name, "factor": group.factor, "parameters": size})
            continue
        costs = {"hardware": hardware_flops(method, geometry), "electra": electra_flops(method, args.length)}
        for mode, token in costs.items():
            sequence = token * args.length
            total = sequence * args.sequences * args.updates
            rows.append({"method": name, "mode": mode, "token": token, "sequence": sequence, "run": total})
    if args.json:
        print("\n".join(map(json.dumps, rows)))
    else:
        print(table((group_rows if args.groups else flops_rows)(rows), left=2))


def option_of(config_class: type, method: str, given: str):
    """(name, value) of OPTION=VALUE, the value as fairseq's command line and its configurations write it."""
    from amos_fairseq.options import declared

    name, _, text = given.partition("=")
    name = name.replace("-", "_")
    defaults = {option.name: option.default for option in declared(config_class)}
    if name not in defaults or not text:
        raise ValueError(f"--set {given}: write OPTION=VALUE with an option of {method}, as encoder_layers=6")
    value: Any = {"true": True, "false": False}.get(text, text)
    with contextlib.suppress(ValueError, SyntaxError):
        value = ast.literal_eval(text)
    kind = type(defaults[name])
    if kind is list:
        value = list(value) if isinstance(value, (list, tuple)) else [value]
    elif kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise ValueError(f"--set {given}: {text} is no value of {name}, whose default is {defaults[name]!r}")
    return name, value


def group_rows(rows: List[Dict]) -> List[List[str]]:
    lines = [[row["method"], row["group"], f"{row['factor']:g}", f"{row['parameters']:,}"] for row in rows]
    return [["method", "group", "learning rate x", "parameters"], *lines]


def flops_rows(rows: List[Dict]) -> List[List[str]]:
    """A method's name in its first row only."""
    lines = [["method", "FLOPs", "per token", "per sequence", "run"]]
    for above, row in zip([{}, *rows], rows):
        name = row["method"] if row["method"] != above.get("method") else ""
        lines.append([name, row["mode"], *(f"{row[per]:.3e}" for per in ("token", "sequence", "run"))])
    return lines
