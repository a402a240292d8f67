"""The options of what a run names, with their defaults: what `--help` lists before fairseq's hundreds."""

import argparse
from types import SimpleNamespace
from typing import Dict, List, Mapping, Sequence

from fairseq import models

from amos_fairseq.fairseq_options import options_declared
from amos_fairseq.options import Option

GROUPS = ("task", "model", "criterion", "optimizer", "lr_scheduler")  # of fairseq's configuration
OPTIMIZER = "fused_adamw"  # where none is named; the recipes have it, too


def show(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> None:
    """If these arguments of fairseq-train ask for help: what precedes fairseq's, whose own lines become no wider.

    Nothing precedes it unless they name a task.
    """
    if {"-h", "--help"}.isdisjoint(arguments):
        return
    for action in parser._actions:
        if action.choices:
            action.metavar = action.dest.upper()
            action.help = f"{action.help or ''} ({', '.join(map(str, action.choices))})".strip()
    naming = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for group in ("arch", *GROUPS):
        naming.add_argument(f"--{group.replace('_', '-')}", nargs="?")
    names = vars(naming.parse_known_args(arguments)[0])
    names["model"] = names["arch"] or names["task"]
    if names["task"] is not None:
        named = {group: names[group] for group in GROUPS if names[group] is not None}
        print(f"{table(options_by_group({'optimizer': OPTIMIZER, **named}))}\n\nfairseq's options, of every task:\n")


def options_by_group(names: Mapping[str, str]) -> Dict[str, List[Option]]:
    """names: registered ones by group; a model's may be of an architecture, whose defaults are given then.

    Without the options that only repeat one of another group.
    """
    of_arch = argparse.Namespace()
    models.ARCH_CONFIG_REGISTRY.get(names["model"], lambda options: None)(of_arch)
    defaults = {"model": vars(of_arch)}
    return {
        group: [
            option._replace(default=defaults.get(group, {}).get(option.name, option.default))
            for option in options_declared(group, SimpleNamespace(_name=names[group]))
            if not str(option.default).startswith("${")
        ]
        for group in GROUPS if group in names
    }


def table(groups: Mapping[str, Sequence[Option]]) -> str:
    """As the command line has them, each with its default and what it is, as wide as the terminal."""
    parser = argparse.ArgumentParser(
        add_help=False, usage=argparse.SUPPRESS,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=32),
    )
    for group, options in groups.items():  # argparse leaves out empty ones
        section = parser.add_argument_group(group)
        for option in options:
            choices = f" ({', '.join(option.choices)})" if option.choices else ""
            words = f"{' '.join((option.help or '').split())}{choices}".replace("%", "%%")
            section.add_argument(option.flag, metavar=shown(option.default), help=words)
    return parser.format_help().strip()


def shown(default) -> str:
    if str(default) == "???":
        return "(required)"
    if isinstance(default, bool):
        return "on" if default else "off"
    return ",".join(map(str, default)) if isinstance(default, list) else str(default)
