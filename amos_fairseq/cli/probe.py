"""`amos-fairseq probe`: what frozen layers know, of labelled words or of the order of words."""
import argparse
from pathlib import Path
from typing import Iterable, List, Union

from amos_fairseq.cli import trained
from amos_fairseq.files import check_new, result_written
from amos_fairseq.terminal import filled, json_line, show_log, table

HELP = (
    "Train a linear probe on the frozen hidden states of each layer of a run's generator and encoder, beside the "
    "commonest label and the same network untrained. Files have a word, a tab and its label on each line; a blank line "
    "ends a sentence, and a word labelled _ is read but not probed. `amos-fairseq corpus --tasks` makes such files. "
    "Without files of labelled words: probe the encoders of runs, beside each other and untrained, for whether words "
    "stand as they were written, on documentation of this machine or any text. It takes seconds and no seed. "
    "--labelled probes runs, k-fold, on any one file of labelled words or texts."
)
ALL = "all"  # layers
FILES, ORDER, FOLDS = "with --train and --test", "without --train, --test and --labelled", "with --labelled"  # modes
OPTIONS = {
    FILES: ("train", "test", "layers", "network", "png"), ORDER: ("tasks", "text", "part", "items"),
    FOLDS: ("labelled", "columns", "label", "folds", "pooling", "layers"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    trained.add_run(parser, nargs="+")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    words = parser.add_argument_group("labelled words, of one RUN")
    words.add_argument("--train", type=Path, metavar="FILE", help="labelled words to learn from")
    words.add_argument("--test", type=Path, metavar="FILE", help="labelled words to be tested on")
    words.add_argument("--layers", type=layers, default=None, metavar="N,..", help="0: embeddings (default: all; with "
                       "--labelled the last)")
    words.add_argument("--network", help="encoder or generator (default: each that the method has)")
    words.add_argument("--png", type=Path, metavar="FILE", help="also draw accuracy over layers")
    folds = parser.add_argument_group("a labelled file, of one RUN or more, tested fold by fold")
    folds.add_argument("--labelled", type=Path, metavar="FILE", help="labelled words, also CoNLL, .conllu or .jsonl as "
                       "of finetune tokens; with --columns texts, a .tsv, .csv or .jsonl")
    folds.add_argument("--columns", metavar="NAME,..", help="column of the text, or of both of a pair")
    folds.add_argument("--label", metavar="NAME", help="column of the label (default: label)")
    folds.add_argument("--folds", type=int, metavar="K", help="default: 5")
    folds.add_argument("--pooling", choices=("mean", "first"), help="of texts, as of embed (default: mean)")
    order = parser.add_argument_group("order of words, of one RUN or more")
    order.add_argument("--tasks", metavar="TASK,..", help="swap,acceptability (the default) or one of them")
    order.add_argument("--text", type=Path, metavar="PATH", help="held-out text, a file or folder as prepare reads "
                       "(default: documentation of this machine that `amos-fairseq corpus` leaves out)")
    order.add_argument("--part", help="development (the default) or held_out: what is tested on, to search with the "
                       "first and to confirm with the second")
    order.add_argument("--items", type=int, metavar="N", help="pairs to be tested on, at most (default: 2000), and as "
                       "many to learn from")


def layers(text: str) -> Union[str, List[int]]:
    """Increasing layer numbers, or ALL."""
    try:
        return ALL if text == ALL else sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is neither `all` nor layer numbers: for example 0,4,8") from None


def run(args: argparse.Namespace) -> None:
    mode = FOLDS if args.labelled is not None else ORDER if args.train is args.test is None else FILES
    for other, names in OPTIONS.items():
        for name in names:
            if name not in OPTIONS[mode] and getattr(args, name) is not None:
                raise ValueError(f"--{name} goes {other}")
    if mode == ORDER:
        return probe_order(args)
    if mode == FOLDS:
        return probe_folds(args)
    if args.train is None or args.test is None:
        raise ValueError("--train and --test go together: name both")
    if len(args.run) > 1:
        raise ValueError(f"labelled words are probed in one RUN, got {len(args.run)}")
    (args.run,) = args.run
    probe_words(args)


def with_untrained(args: argparse.Namespace, names: Iterable[str]) -> List:
    """(name, model) of each run, then the same with untrained encoders, one of each shape and vocabulary."""
    from amos_fairseq.analysis.sentence_probes import shape, untrained_twin

    models, twins = [], {}
    for path, name in zip(args.run, names):
        model = trained.load(args, path)
        models.append((name, model))
        twins.setdefault((shape(model.encoder), model.tokenizer.sha256), (f"{name}, untrained", untrained_twin(model)))
    return [*models, *twins.values()]


def probe_order(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from amos_fairseq.analysis import sentence_probes
    from amos_fairseq.demo.documentation import held_out_paragraphs
    from amos_fairseq.finetune.intervals import Estimate

    names = list(sentence_probes.TASKS) if args.tasks is None else args.tasks.split(",")
    part = sentence_probes.DEVELOPMENT if args.part is None else args.part
    most = sentence_probes.ITEMS if args.items is None else args.items
    texts = held_out_paragraphs() if args.text is None else sentence_probes.read_texts(args.text)
    tasks = {name: sentence_probes.make_items(name, texts, part, most) for name in names}
    models = with_untrained(args, map(str, args.run))

    total = 2 * len(models) * sum(len(side) for items in tasks.values() for side in items)
    with tqdm(total=total, unit="text", desc="probe", disable=None) as bar:
        results = {
            name: {
                task: sentence_probes.probe_items(model.encoder, model.tokenizer, items, bar.update)
                for task, items in tasks.items()
            }
            for name, model in models
        }
    if args.json:
        counts = {task: {"train": len(items.train), "test": len(items.test)} for task, items in tasks.items()}
        rows = [
            {"network": name, "task": task, **result._asdict()}
            for name, of_network in results.items() for task, result in of_network.items()
        ]
        print(json_line({"part": part, "items": counts, "probes": rows}))
        return
    rows = [
        [name, *(Estimate(result.accuracy, *result.interval) for result in of_network.values())]
        for name, of_network in results.items()
    ]
    print(table([["", *tasks], *rows]))
    print(filled(f"\n% of {part} pairs of which the text as written is told from the changed one, and Wilson's 95 % "
                 "interval. A bag of words has 50. Untrained: the same network with new weights."))
    for task, items in tasks.items():
        few = f"; the text makes no more, {most:,} were asked for" if len(items.test) < most else ""
        print(filled(f"{task}: {len(items.train):,} pairs to learn from, {len(items.test):,} to be tested on{few}. "
                     f"Favours {sentence_probes.TASKS[task].favours}."))


def probe_folds(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from amos_fairseq.analysis import folds

    show_log()
    many = folds.FOLDS if args.folds is None else args.folds
    if args.columns is None:
        for name in ("label", "pooling"):
            if getattr(args, name) is not None:
                raise ValueError(f"--{name} goes with --columns, which names the texts of the file")
        found, what = folds.read_words(args.labelled, many), "words"
    else:
        found = folds.read_texts(args.labelled, args.columns.split(","), args.label or "label", many)
        what = "texts"
    models = with_untrained(args, trained.short_names(args.run))

    def layers_of(model) -> List[int]:
        if args.layers == ALL:
            return [*range(1 + model.encoder.config.layers)]
        return list(map(model.layer_number, args.layers or [-1]))

    rows = []
    with tqdm(total=sum(len(layers_of(model)) for _, model in models), unit="layer", desc="probe", disable=None) as bar:
        for name, model in models:
            numbers = layers_of(model)
            rows += zip([name] * len(numbers), numbers, folds.probe(
                model, found, numbers, args.pooling or "mean", bar.update
            ))
    if args.json:
        probes = [
            {"network": name, "layer": layer, **result._asdict(), "accuracy": result.accuracy._asdict()}
            for name, layer, result in rows
        ]
        print(json_line({what: len(found.labels), "folds": many, "probes": probes}))
        return
    lines = [[name, layer, result.accuracy, f"{100 * result.macro_f1:.1f}"] for name, layer, result in rows]
    print(table([["network", "layer", "accuracy", "macro-F1"], *lines]))
    print(filled(f"\n% of {len(found.labels):,} {what}, each tested once by a probe on the other {many - 1} of {many} "
                 f"folds, with 95 % bootstrap intervals. The commonest label: {100 * rows[0][2].commonest:.1f}."))


def probe_words(args: argparse.Namespace) -> None:
    if args.png:
        check_new("--png", args.png)

    from tqdm import tqdm

    from amos_fairseq.analysis import linear_probes
    from amos_fairseq.analysis.sentence_probes import untrained

    sentences = [linear_probes.read_labelled(path) for path in (args.train, args.test)]
    linear_probes.check_labels(*sentences, args.train, args.test)
    model = trained.load(args)
    networks = model.method_with("its options").networks()
    if args.network is not None and args.network not in networks:
        raise ValueError(f"--network {args.network} is none of this {model.name} run's: {', '.join(networks)}")
    chosen = [args.network] if args.network else list(networks)
    encoded = [
        linear_probes.encode(of_file, model.tokenizer, model.max_tokens, path)
        for of_file, path in zip(sentences, (args.train, args.test))
    ]
    train_words, test_words = (len(of_file.labels) for of_file in encoded)
    results, numbers = [], None if args.layers == ALL else args.layers
    for name in tqdm(chosen, unit="network", desc="probe", disable=None):
        twin = untrained(networks[name])
        results += linear_probes.probe_network(name, networks[name], twin, *encoded, numbers)
    label, share = linear_probes.majority(*(of_file.labels for of_file in encoded))

    depths = {name: model.method.marked_layers(name) for name in chosen}
    if args.png:
        with result_written(args.png) as stream:
            linear_probes.curves(results, share, depths).savefig(stream, format="png", dpi=150)
    if args.json:
        words = {"train": train_words, "test": test_words}
        rows, majority = [result._asdict() for result in results], {"label": label, "accuracy": share}
        print(json_line({"words": words, "majority": majority, "probes": rows}))
    else:
        rows = [["network", "layer", "accuracy", "macro-F1", "untrained", "macro-F1"]]
        for result in results:
            mark = "*" if result.layer in depths[result.network] else " "
            rows.append([result.network, f"{result.layer}{mark}", *(f"{100 * score:.1f}" for score in result[2:])])
        print(table(rows))
        print(filled(f"\n{train_words:,} words to learn from, {test_words:,} to be tested on. Always saying {label} is "
                     f"right for {100 * share:.1f} %.\nlayer 0: embeddings; *: with a head of AMOS's masked LM; "
                     "untrained: the same network with new weights."))
