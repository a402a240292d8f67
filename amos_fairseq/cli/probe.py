"""`amos-fairseq probe`: what each frozen layer of a model knows about labelled words."""
import argparse
import json
from pathlib import Path
from typing import List, Optional

from amos_fairseq.cli import trained

HELP = (
    "Train a linear probe on the frozen hidden states of each layer of a run's generator and encoder, beside the "
    "commonest label and the same network untrained. Files have a word, a tab and its label on each line; a blank line "
    "ends a sentence, and a word labelled _ is read but not probed. `amos-fairseq corpus --tasks` makes such files."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    trained.add_run(parser)
    parser.add_argument("--train", type=Path, required=True, metavar="FILE", help="labelled words to learn from")
    parser.add_argument("--test", type=Path, required=True, metavar="FILE", help="labelled words to be tested on")
    parser.add_argument("--layers", type=layers, default=None, metavar="N,..", help="0: embeddings (default: all)")
    parser.add_argument("--network", help="encoder or generator (default: each that the method has)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--png", type=Path, metavar="FILE", help="also draw accuracy over layers")


def layers(text: str) -> Optional[List[int]]:
    """Increasing layer numbers, or None for `all`."""
    try:
        return None if text == "all" else sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is neither `all` nor layer numbers: for example 0,4,8") from None


def run(args: argparse.Namespace) -> None:
    if args.png and args.png.exists():
        raise ValueError(f"--png {args.png} exists: name a new file")

    from tqdm import tqdm

    from amos_fairseq.analysis import linear_probes

    sentences = [linear_probes.read_labelled(path) for path in (args.train, args.test)]
    linear_probes.check_labels(*sentences, args.train, args.test)
    model = trained.load(args)
    if model.method is None:
        raise ValueError(f"{args.run} holds an encoder only, without its options: name a checkpoint of pre-training")
    networks = model.method.networks()
    if args.network is not None and args.network not in networks:
        raise ValueError(f"--network {args.network} is none of this {model.name} run's: {', '.join(networks)}")
    chosen = [args.network] if args.network else list(networks)
    encoded = [
        linear_probes.encode(of_file, model.tokenizer, model.max_tokens, path)
        for of_file, path in zip(sentences, (args.train, args.test))
    ]
    train_words, test_words = (len(of_file.labels) for of_file in encoded)
    twins = linear_probes.untrained_twin(model).networks()
    results = []
    for name in tqdm(chosen, unit="network", desc="probe", disable=None):
        results += linear_probes.probe_network(name, networks[name], twins[name], *encoded, args.layers)
    label, share = linear_probes.majority(*(of_file.labels for of_file in encoded))

    depths = {name: model.method.marked_layers(name) for name in chosen}
    if args.png:
        linear_probes.curves(results, share, depths).savefig(args.png, dpi=150)
    if args.json:
        words = {"train": train_words, "test": test_words}
        rows, majority = [result._asdict() for result in results], {"label": label, "accuracy": share}
        print(json.dumps({"words": words, "majority": majority, "probes": rows}, ensure_ascii=False))
    else:
        print_table(results, depths)
        print(f"\n{train_words:,} words to learn from, {test_words:,} to be tested on. "
              f"Always saying {label} is right for {100 * share:.1f} %.")
        print("layer 0: embeddings; *: with a head of AMOS's masked LM; untrained: the same network with new weights.")


def print_table(results: List, depths: dict) -> None:
    print(f"{'network':<16}{'layer':>6}{'accuracy':>11}{'macro-F1':>11}{'untrained':>13}{'macro-F1':>11}")
    for result in results:
        scores = "".join(f"{100 * score:>{width}.1f}" for score, width in zip(result[2:], (11, 11, 13, 11)))
        mark = "*" if result.layer in depths[result.network] else " "
        print(f"{result.network:<16}{result.layer:>5}{mark}{scores}".rstrip())
