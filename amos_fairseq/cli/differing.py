"""What a run is by name, and which of its options are not as the recipe or the architecture has them."""

import sys
from typing import Any, Dict, List, Mapping, Tuple

NOT_TOLD = {"common.user_dir", "task.data", "checkpoint.save_dir"}  # or elsewhere


def method_and_size(cfg) -> str:
    """A size is what the options of an architecture are, all or but for some."""
    from amos_fairseq.methods import size_options
    from amos_fairseq.methods.config import ENCODER_SIZES

    method, options = cfg.task._name, cfg.model
    unlike = {
        size: [name for name, value in size_options(method, size).items() if plain(options.get(name)) != plain(value)]
        for size in ENCODER_SIZES
    }
    size = min(unlike, key=lambda size: len(unlike[size]))
    changed = ", ".join(f"{name} {plain(options[name])}" for name in unlike[size])
    return f"{method}, size {size}" + (f" but for {changed}" if changed else "")


def differing(cfg, by_hydra: bool) -> List[str]:
    """Lines: the resolved options that are not the recipe's, or not the architecture's defaults."""
    chosen, baseline = recipe() if by_hydra else ([], architecture(cfg))
    now, then = flat(cfg), flat(baseline)
    copies = copied_options(cfg)
    lines = [*chosen, *(
        f"{key} {then[key]} -> {value}" for key, value in now.items()
        if then.get(key, "???") not in ("???", value) and key not in NOT_TOLD
        and not (key in copies and value == now.get(copies[key]))
    )]
    of = "the recipe's" if by_hydra else "the defaults of the architecture"
    return [f"{len(lines)} are not {of}:", *lines] if lines else [f"all are {of}"]


def copied_options(cfg) -> Dict[str, str]:
    """Options that have the value of another one unless they are given."""
    from amos_fairseq.fairseq_options import options_declared

    return {
        "dataset.batch_size_valid": "dataset.batch_size", "dataset.max_tokens_valid": "dataset.max_tokens",
        **{f"{group}.{option.name}": option.default[2:-1]
           for group in ("task", "model", "optimizer", "lr_scheduler")
           for option in options_declared(group, cfg[group]) if str(option.default).startswith("${")},
    }


def recipe() -> Tuple[List[str], Any]:
    """The groups that were chosen, and the yaml with them and without any other override."""
    from fairseq.dataclass.initialize import add_defaults
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import open_dict

    def load(overrides: List[str]):
        return loader.load_configuration(of_job.job.config_name, overrides=overrides, run_mode=RunMode.RUN)

    of_job, loader = HydraConfig.get(), GlobalHydra.instance().config_loader()
    choices = load([]).hydra.runtime.choices
    given = (override.partition("=") for override in of_job.overrides.task)
    chosen = [f"{group}={name}" for group, _, name in given if choices.get(group, name) != name]
    baseline = load(chosen)
    with open_dict(baseline):
        del baseline["hydra"]
    add_defaults(baseline)
    return chosen, baseline


def architecture(cfg) -> Any:
    """The configuration of a command with nothing but what names the components."""
    from fairseq import options
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf

    names = {"task": cfg.task, "arch": cfg.model, "criterion": cfg.criterion, "optimizer": cfg.optimizer}
    names["lr-scheduler"] = cfg.lr_scheduler
    command = [cfg.task.data, *(word for name, group in names.items() for word in (f"--{name}", group._name))]
    given, sys.argv = sys.argv, [sys.argv[0], *command]  # fairseq looks there, too
    try:
        parsed = options.parse_args_and_arch(options.get_training_parser(), command)
        return convert_namespace_to_omegaconf(parsed)
    finally:
        sys.argv = given


def flat(cfg) -> Dict[str, str]:
    from omegaconf import OmegaConf

    groups = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    return {
        f"{group}.{name}": plain(value) for group, options in groups.items() if isinstance(options, Mapping)
        for name, value in options.items() if name != "_name"
    }


def plain(value: Any) -> str:
    """As one writes it: numbers of any kind alike, lists and tuples, too."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"{value:.12g}"
    return str(value) if isinstance(value, str) or not hasattr(value, "__iter__") else ",".join(map(plain, value))
