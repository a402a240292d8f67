"""Entry point of `amos-fairseq <command>`: finds the command's module, runs it, words its errors.

A command is a module of this package with `HELP`, `add_arguments(parser)` and `run(args)`. It is imported only when it
is asked for, and imports what takes long only when it runs, so that no `--help` waits for torch or fairseq.
"""
import argparse
import contextlib
import importlib
import os
import signal
import sys
from typing import Iterator, List, Optional

from amos_fairseq import __version__, plugins
from amos_fairseq.cli.processes import interrupt, signals_handled
from amos_fairseq.terminal import visible
from amos_fairseq.user_errors import one_line, status_of, tell_mistakes

COMMANDS = {
    "quickstart": "corpus, vocabulary, a small model, figures and examples in five minutes on a CPU",
    "corpus": "collect a small text corpus from this machine",
    "prepare": "turn text into a vocabulary and binarised training data",
    "train": "fairseq-train (or fairseq-hydra-train), filled in; --dry-run tells what it takes",
    "options": "what can be set for a method, with defaults, as a table or as yaml",
    "recipes": "the yaml files of the package: list them, or copy them with the Slurm scripts",
    "where": "the folder for fairseq-train's --user-dir, or of the recipes",
    "report": "a page of figures and a summary table of training runs",
    "inspect": "follow a text through a model: masked, proposed, drawn, corrupted, judged",
    "probe": "what frozen layers know: of labelled words, or of the order of words",
    "score": "pseudo-log-likelihoods of sentences and n-best lists",
    "minimal-pairs": "how often models prefer the better of two texts: BLiMP, EWoK, pairs of your own",
    "similarity": "pooled hidden states judged without training: STS pairs, BEIR folders",
    "fill-mask": "what a run's masked language model puts in the place of <mask>",
    "detect": "mark the tokens of a text that a run's encoder takes for replaced",
    "embed": "a vector for every line of a text",
    "predict": "what a fine-tuned model says of new texts: labels with probabilities, or numbers",
    "finetune": "GLUE, SQuAD or your own labelled files, over seeds and settings, from any checkpoint",
    "export": "a folder that Hugging Face's transformers loads, from any checkpoint",
    "average": "one checkpoint of several: the mean of their parameters",
    "convert": "checkpoints in the layouts of Microsoft's AMOS and COCO-LM, and between them",
    "flops": "what a method costs: FLOPs per token, per sequence and for a whole run",
    "doctor": "what this installation has, which ops are compiled, and how to get what is missing",
}


def main(arguments: Optional[List[str]] = None) -> int:
    """Run one command; returns the exit status: 0, one of `user_errors` for a mistake, 128 and a signal that ended it.
    """
    parser = build_parser()
    if not (sys.argv[1:] if arguments is None else arguments):
        parser.print_help()
        return os.EX_USAGE
    chosen = parser.parse_args(arguments)
    if chosen.user_dir is not None:
        os.environ[plugins.USER_DIR] = os.path.abspath(chosen.user_dir)
    try:
        plugins.load()
        # What is half-written is cleared away by whoever writes; training saves instead.
        numbers = [] if chosen.command == "train" else [signal.SIGTERM, signal.SIGHUP]
        with signals_handled(numbers, interrupt), printed(fails=chosen.command != "train"):
            return run_command(chosen.command, chosen.arguments)
    except KeyboardInterrupt as interrupted:
        return 128 + (interrupted.args or (signal.SIGINT,))[0]
    except BrokenPipeError:  # the reader, `head` for instance, has seen enough
        return 141
    except (ValueError, OSError) as error:
        # fairseq-train's tracebacks stay: an error after hours of training is no mistake in the input.
        if chosen.command == "train" or os.environ.get("AMOS_FAIRSEQ_TRACEBACK") == "1":
            raise
        print(f"amos-fairseq {chosen.command}: error: {visible(one_line(error))}", file=sys.stderr)
        return status_of(error)


@contextlib.contextmanager
def printed(fails: bool) -> Iterator[None]:
    """All that is printed inside has left this process at the end; fails: whether an error says that it could not.

    What a full disk or a reader that is gone did not take, Python would try again at its end, and end with 120.
    """
    try:
        yield
    finally:
        try:
            sys.stdout.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if fails:
                raise


def run_command(command: str, arguments: List[str]) -> int:
    """Parse a command's arguments and run it."""
    module = importlib.import_module(f"amos_fairseq.cli.{command.replace('-', '_')}")
    if command == "train":  # fairseq parses these
        return module.run(arguments) or 0
    parser = argparse.ArgumentParser(prog=f"amos-fairseq {command}", description=module.HELP)
    module.add_arguments(parser)
    tell_mistakes(parser, parser.prog)
    return module.run(parser.parse_args(arguments)) or 0


def build_parser() -> argparse.ArgumentParser:
    lines = "\n".join(f"  {name:<14}{text}" for name, text in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="amos-fairseq",
        usage="amos-fairseq [--user-dir FOLDER] <command> [options]",
        description="Pre-train text encoders with ELECTRA-style methods on fairseq.",
        epilog=f"commands:\n{lines}\n\n"
        "`amos-fairseq <command> --help` lists a command's options.\n"
        "--user-dir FOLDER, or AMOS_FAIRSEQ_USER_DIR: a package that registers methods of your own.\n"
        "AMOS_FAIRSEQ_TRACEBACK=1 shows where in the code an error arose.\n\n"
        "Exit status: 64 wrong command or configuration, 65 damaged files, 74 disk: slurm/README.md.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tell_mistakes(parser, parser.prog)
    parser.add_argument("--version", action="version", version=f"amos-fairseq {__version__}")
    parser.add_argument("--user-dir", help=argparse.SUPPRESS)
    parser.add_argument("command", choices=COMMANDS, help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
