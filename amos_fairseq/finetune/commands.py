"""The sub-commands of `amos-fairseq finetune` that make labelled folders of a user's files.

They import what they need when they need it, so that their options can be told without torch.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Dict, List, Mapping, Sequence, Tuple

from amos_fairseq.terminal import visible

if TYPE_CHECKING:
    from amos_fairseq.data.tokenizer import Tokenizer
    from amos_fairseq.finetune.labelled import Problem


class Command:
    """One sub-command, without state.

    name, help     on the command line
    data_options   those of its options that say what the labelled data are: the same in all runs of a folder
    seeds          by default
    predicts       whether there can be test files to predict
    """

    name: str
    help: str
    data_options: Tuple[str, ...]
    seeds = "1,2,3,4,5"
    predicts = True

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        raise NotImplementedError

    def preset(self, method: str) -> str:
        """Which of `presets` is the default for an encoder that `method` trained."""
        return "quick"

    def tasks(self, args: argparse.Namespace) -> List[str]:
        """The names of the tasks that are asked for; raises ValueError for what can be refused before any work."""
        return [own_task(args)]

    def prepare(
        self, args: argparse.Namespace, name: str, folder: Path, tokenizer: "Tokenizer", max_length: int,
        seeds: Sequence[int],
    ) -> Mapping[int, Path]:
        """Encode a task into the new `folder`, unless it is there already; the labelled folder of each seed."""
        tell(self.encode(args, name, folder, tokenizer, max_length))
        return dict.fromkeys(seeds, folder)

    def encode(
        self, args: argparse.Namespace, name: str, folder: Path, tokenizer: "Tokenizer", max_length: int
    ) -> "Problem":
        """The one labelled folder of a task."""
        raise NotImplementedError


class Glue(Command):
    name = "glue"
    help = "the tasks of GLUE, from its public folders"
    data_options = ("glue",)

    def add_arguments(self, parser):
        parser.add_argument("--glue", type=Path, required=True, metavar="FOLDER", help="holds CoLA/, RTE/ and so on")
        parser.add_argument("--tasks", metavar="NAME,..", help="default: the eight of the papers")

    def tasks(self, args):
        from amos_fairseq.finetune import glue, presets

        by_lower = {name.lower(): name for name in glue.TASKS}
        asked = presets.EIGHT if args.tasks is None else args.tasks.split(",")
        unknown = [name for name in asked if name.lower() not in by_lower]
        if unknown:
            raise ValueError(f"--tasks {unknown[0]}: GLUE has {', '.join(glue.TASKS)}")
        names = list(dict.fromkeys(by_lower[name.lower()] for name in asked))
        for name in names:
            glue.files_of(name, args.glue)
        return names

    def encode(self, args, name, folder, tokenizer, max_length):
        from amos_fairseq.finetune import glue

        return glue.prepare(folder, name, args.glue, tokenizer, max_length)


class OwnFiles(Command):
    name = "file"
    help = "your own classification, pair, regression or multiple-choice task: .tsv, .csv or .jsonl"
    data_options = (
        "train", "valid", "test", "text", "text_b", "label", "multi_label", "choices", "regression", "metric"
    )

    def add_arguments(self, parser):
        add_files(parser)
        add_columns(parser)
        kind = parser.add_mutually_exclusive_group()
        kind.add_argument("--multi-label", action="store_true", help="labels are sets: a,b or a list of JSON")
        kind.add_argument("--regression", action="store_true", help="labels are numbers")
        kind.add_argument("--choices", metavar="COLUMN,..", help="texts of which one goes with --text; labels say "
                          "which: 0, 1, ..")
        add_selection(parser, "accuracy, sets micro_f1, numbers spearman")

    def tasks(self, args):
        if args.choices and (args.text_b or len(args.choices.split(",")) < 2):
            raise ValueError("--choices are two columns or more, and go with --text alone: leave out --text-b")
        return super().tasks(args)

    def encode(self, args, name, folder, tokenizer, max_length):
        from amos_fairseq.finetune import own_files

        kinds = {"regression": args.regression, "multi_label": args.multi_label, "choice": args.choices}
        kind = next((kind for kind, asked in kinds.items() if asked), "classification")
        columns = texts_of(args) + (args.choices.split(",") if args.choices else []), args.label
        return own_files.prepare(folder, name, splits_of(args), *columns, tokenizer, max_length, kind, args.metric)


class Tokens(Command):
    name = "tokens"
    help = "a tag for each word, as of entities or parts of speech: CoNLL columns, CoNLL-U or .jsonl"
    data_options = ("train", "valid", "test", "words", "tags", "metric")

    def add_arguments(self, parser):
        add_files(parser)
        parser.add_argument("--words", metavar="COLUMN", help="its number, 1 by default; of .jsonl its name, tokens")
        parser.add_argument("--tags", metavar="COLUMN", help="by default the last, -1; of .jsonl tags, of .conllu 4")
        add_selection(parser, "span_f1, of others accuracy")

    def encode(self, args, name, folder, tokenizer, max_length):
        from amos_fairseq.finetune import tagged

        files, options = splits_of(args), (args.words, args.tags, args.metric)
        return tagged.prepare(folder, name, files, tokenizer, max_length, *options)


class Squad(Command):
    name = "squad"
    help = "SQuAD 1.1 or 2.0, from its public files"
    data_options = ("train", "valid", "test", "stride", "max_question")

    def add_arguments(self, parser):
        parser.add_argument("--train", type=Path, required=True, metavar="FILE", help="train-v2.0.json, or of 1.1")
        parser.add_argument("--valid", type=Path, required=True, metavar="FILE", help="dev-v2.0.json, or of 1.1")
        parser.add_argument("--test", type=Path, metavar="FILE", help="to predict")
        parser.add_argument("--stride", type=int, default=128, help="tokens from one window to the next (default: 128)")
        parser.add_argument("--max-question", type=int, default=64, help="tokens of a question (default: 64)")

    def tasks(self, args):
        from amos_fairseq.finetune import squad

        return [f"SQuAD {squad.read(args.train).version}"]

    def encode(self, args, name, folder, tokenizer, max_length):
        from amos_fairseq.finetune import squad

        return squad.prepare(folder, splits_of(args), tokenizer, max_length, args.stride, args.max_question)


class FewExamples(Command):
    name = "prompt"
    help = "few examples, as prompts with demonstrations (LM-BFF; COCO-LM, Table 4)"
    data_options = (
        "glue", "train", "test", "text", "text_b", "label", "template", "label_words", "per_class", "samples"
    )
    seeds = "13,21,42,87,100"  # of LM-BFF's five splits
    predicts = False

    def preset(self, method):
        from amos_fairseq.finetune.presets import PRESETS
        from amos_fairseq.methods import named

        own = f"prompts_{named(method).short_name}"
        return own if own in PRESETS else "prompts"

    def add_arguments(self, parser):
        parser.add_argument("--glue", type=Path, metavar="FOLDER", help="holds MNLI/")
        parser.add_argument("--train", type=Path, metavar="FILE", help="or your own examples, to draw from")
        parser.add_argument("--test", type=Path, metavar="FILE", help="your own examples, to measure")
        add_columns(parser, required=False)
        parser.add_argument("--template", metavar="TEXT", help="default: that of MNLI, '{text} ? {mask} , {text_b}'")
        parser.add_argument("--label-words", metavar="LABEL=WORD,..", help="default: Yes, Maybe, No")
        parser.add_argument("--per-class", type=int, default=16, help="examples to train on (default: 16)")
        parser.add_argument(
            "--samples", type=int, metavar="N",
            help="sets of demonstrations to average over, 0 for prompts alone (default: 16, of MNLI 4)",
        )

    def tasks(self, args):
        from amos_fairseq.finetune.presets import FEW_SHOT

        own = (args.train, args.test, args.text, args.label)
        if not (args.glue and not any(own)) and not (all(own) and not args.glue):
            raise ValueError("a prompt needs --glue FOLDER, or --train, --test, --text and --label of your own")
        if args.train and not (args.template and args.label_words):
            raise ValueError("your own prompt needs --template and --label-words")
        return [FEW_SHOT if args.glue else f"few-shot {own_name(args.train)}"]

    def prepare(self, args, name, folder, tokenizer, max_length, seeds):
        from amos_fairseq.finetune import glue, prompts, tables

        if args.glue:
            files = glue.files_of("MNLI", args.glue)
            splits = {"train": "train", "test": "valid", "test1": "valid1"}
            tests = {test: glue.read(glue.TASKS["MNLI"], split, files[split]) for test, split in splits.items()}
        else:
            tests = {split: tables.read(path, texts_of(args), args.label) for split, path in splits_of(args).items()}
        train, samples = tests.pop("train"), args.samples if args.samples is not None else (4 if args.glue else 16)
        options = dict(max_length=max_length, per_class=args.per_class, samples=samples)
        if args.template:
            options["template"] = args.template
        if args.label_words:
            options["label_words"] = prompts.parse_label_words(args.label_words)
        folders = {seed: folder / f"split{seed}" for seed in seeds}
        made = [prompts.prepare(path, name, train, tests, tokenizer, seed, **options) for seed, path in folders.items()]
        cut = sum(problem.about["cut_prompts"] for problem in made)
        longer = f", {cut:,} prompts longer than {max_length} tokens are cut" if cut else ""
        print(visible(f"{name}: {len(seeds)} splits of {args.per_class} examples per class{longer}"), flush=True)
        return folders


COMMANDS: Dict[str, Command] = {
    command.name: command for command in (Glue(), OwnFiles(), Tokens(), Squad(), FewExamples())
}


# What several have


def add_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--train", type=Path, required=True, metavar="FILE")
    parser.add_argument("--valid", type=Path, metavar="FILE", help="default: a tenth of --train")
    parser.add_argument("--test", type=Path, metavar="FILE", help="is measured if it has labels; it may be predicted")


def add_selection(parser: argparse.ArgumentParser, metric: str) -> None:
    """What an own task is selected by, and called."""
    parser.add_argument("--metric", metavar="NAME", help=f"selects the best; default: {metric}")
    parser.add_argument("--name", help="of the task; default: that of --train")


def add_columns(parser: argparse.ArgumentParser, required: bool = True) -> None:
    parser.add_argument("--text", required=required, metavar="COLUMN", help="or several in a row: a+b")
    parser.add_argument("--text-b", metavar="COLUMN", help="of the second text of a pair")
    parser.add_argument("--label", required=required, metavar="COLUMN")


def texts_of(args: argparse.Namespace) -> List[str]:
    return [args.text, *([args.text_b] if args.text_b else [])]


def splits_of(args: argparse.Namespace) -> Dict[str, Path]:
    return {split: path for split in ("train", "valid", "test") if (path := getattr(args, split, None))}


def own_task(args: argparse.Namespace) -> str:
    if args.name and Path(args.name).name != args.name:
        raise ValueError(f"--name {args.name} is no name of a folder: leave out '/'")
    return args.name or own_name(args.train)


def own_name(path: Path) -> str:
    return path.stem if path.stem != "train" else path.resolve().parent.name


def tell(problem: "Problem") -> None:
    """How many examples there are, and what the encoding has noted."""
    about = problem.about
    counts = ", ".join(
        f"{count:,} {split}{' without labels' * (split in about.get('unlabelled', ()))}"
        for split, count in about.get("examples", {}).items()
    )
    for line in (counts, *about.get("notes", ())):
        print(visible(f"{problem.name}: {line}"), flush=True)
