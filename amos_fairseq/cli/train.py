"""`amos-fairseq train`: fairseq's own trainer, which finds this package and its repairs without being told."""
import contextlib
import importlib
import os
import re
import sys
from pathlib import Path
from typing import Dict, Iterator, List, NoReturn

from amos_fairseq import recipes, silenced
from amos_fairseq.cli import dry_run
from amos_fairseq.user_errors import one_line, status_of, stop, suggestion

HELP = "fairseq-train with --user-dir filled in; with --config-name or --config-dir, fairseq-hydra-train; --dry-run"
HYDRA = "fairseq-hydra-train"
HYDRA_NAMES = ("--config-dir", "-cd"), ("--config-name", "-cn")
HYDRA_OPTIONS = (*HYDRA_NAMES[0], *HYDRA_NAMES[1], "--config-path", "-cp")
HYDRA_VALUES = (*HYDRA_OPTIONS, "--cfg", "-c", "--package", "-p", "--info", "-i", "--experimental-rerun")


def run(arguments: List[str]) -> None:
    """Hand all arguments to fairseq, the repairs of `fairseq_repairs` in place before it parses them."""
    plans, arguments = dry_run.OPTION in arguments, [word for word in arguments if word != dry_run.OPTION]
    sys.argv = fairseq_command(arguments)
    by_hydra = sys.argv[0] == HYDRA
    sys.argv += dry_run.NOTHING_WRITTEN if plans and by_hydra else []
    instead = dry_run.instead_of_training(by_hydra) if plans else contextlib.nullcontext()
    silenced.install()  # before the first warning
    # First of all fairseq, since the program sets up logging.
    program = importlib.import_module("fairseq_cli." + sys.argv[0].removeprefix("fairseq-").replace("-", "_"))
    # Tasks and models of a user directory are imported by fairseq unless its package is imported already, as here.
    importlib.import_module("amos_fairseq.tasks")  # and with it all the others
    # Processes that fairseq spawns, one per GPU, import the main program. It has to be fairseq's: with ours they would
    # have this package imported, too.
    ours, sys.modules["__main__"] = sys.modules["__main__"], program
    try:
        with mistakes_in_configurations_told(arguments), instead:
            program.cli_main()
    finally:
        sys.modules["__main__"] = ours


@contextlib.contextmanager
def mistakes_in_configurations_told(arguments: List[str]) -> Iterator[None]:
    """hydra's errors about what it composes in one line; it alone would end with 1 after several.

    What the training itself raises keeps its traceback.
    """
    import yaml
    from hydra.errors import HydraException

    os.environ["HYDRA_FULL_ERROR"] = "1"  # let errors through
    try:
        yield
    except (HydraException, yaml.YAMLError) as error:
        stop(worded(error, arguments), os.EX_USAGE)
    except (OSError, ValueError) as error:  # hydra writes, too, before the training does, and logs
        cause = error.__cause__ or error
        if status_of(cause) != os.EX_IOERR:
            raise
        stop(one_line(cause), os.EX_IOERR)


def worded(error: Exception, arguments: List[str]) -> str:
    """What hydra or yaml refuses, and the remedy, in one line."""
    from hydra.errors import MissingConfigException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException

    from amos_fairseq.fairseq_options import described

    given = values_of(arguments)
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override} is no override: write GROUP.OPTION=VALUE, a list in brackets, and what has commas or "
            "parentheses in quotes of its own, as in \"optimizer.adam_betas='(0.9,0.98)'\""
        )
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        file, folder = Path(error.missing_cfg_file), given.get("--config-dir", given.get("-cd", os.devnull))
        names = sorted(path.stem for path in Path(folder, file.parent).glob("*.yaml")) or error.options or ()
        return f"{file.parent} {file.name} is not known{suggestion(file.name, names)}: choose {', '.join(names)}"
    if isinstance(error.__cause__, OmegaConfBaseException):
        return described(error.__cause__)
    message = " ".join(str(error).split("\nTo append")[0].split())
    if group := re.fullmatch(r"Could not override '(.*)'\. No match in the defaults list\.", message):
        name = group[1]
        return f"{name} is no group of files in this configuration: write {name}._name={given.get(name, '..')}"
    return message


def fairseq_command(arguments: List[str]) -> List[str]:
    """The full command line: the program's name, the user directory unless it is given, then the arguments."""
    user_dir = str(recipes.PACKAGE)
    arguments = recipe_found(arguments)
    options = values_of(arguments)
    check_places(options)
    if any(option in HYDRA_OPTIONS for option in options):
        given = "common.user_dir" in options
        overrides = [] if given else [f"common.user_dir={user_dir}"]
        return [HYDRA, *options_first(arguments), *overrides]
    given = "--user-dir" in options
    return ["fairseq-train", *([] if given else ["--user-dir", user_dir]), *arguments]


def recipe_found(arguments: List[str]) -> List[str]:
    """`--config-name METHOD/NAME`, a recipe of the package, as the folder and the name there that hydra is to read."""
    options = values_of(arguments)
    name = next((options[option] for option in HYDRA_NAMES[1] if option in options), "")
    if "/" not in name or not options.keys().isdisjoint({*HYDRA_NAMES[0], "--config-path", "-cp"}):
        return arguments
    folder = recipes.config_dir(name)
    if folder is None:
        refuse(f"--config-name {name} is none of {', '.join(recipes.recipes())}")
    given = {name, *(f"{option}={name}" for option in HYDRA_NAMES[1])}
    inside = [word.removesuffix(name) + name.partition("/")[2] if word in given else word for word in arguments]
    return ["--config-dir", str(folder), *inside]


def options_first(arguments: List[str]) -> List[str]:
    """hydra reads its overrides from one place alone: those before --cfg job, say, or those after it."""
    options, overrides, before = [], [], ""
    for argument in arguments:
        is_value = before in HYDRA_VALUES and not ("=" in argument and before in ("--info", "-i"))
        (options if argument.startswith("-") or is_value else overrides).append(argument)
        before = argument
    return [*options, *overrides]


def values_of(arguments: List[str]) -> Dict[str, str]:
    """What follows each argument, after = or as the next one."""
    pairs = zip((argument.partition("=") for argument in arguments), [*arguments[1:], ""])
    return {option: value if equals else following for (option, equals, value), following in pairs}


def check_places(options: Dict[str, str]) -> None:
    """Refuse a user directory that is not there, which fairseq answers with a traceback, and a missing configuration.

    For want of a file of that name, hydra would take fairseq's defaults.
    """
    for option in ("--user-dir", "common.user_dir"):
        path = options.get(option)
        if path is not None and not Path(path).is_dir():
            refuse(f"{option} {path} is no folder, seen from {Path.cwd()}: leave it out, this package fills it in")
    folder, name = (options.get(long, options.get(short)) for long, short in HYDRA_NAMES)
    if folder and name and not Path(folder, f"{name.removesuffix('.yaml')}.yaml").is_file():
        refuse(f"--config-dir {folder} holds no {name.removesuffix('.yaml')}.yaml, seen from {Path.cwd()}")


def refuse(message: str) -> NoReturn:
    stop(message, os.EX_USAGE, "amos-fairseq train")
