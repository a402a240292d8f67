"""`amos-fairseq score`: pseudo-log-likelihoods of sentences, in one pass each by a model trained with SCRIPT."""
import argparse
import sys
from pathlib import Path
from typing import Dict, List

from amos_fairseq.cli import trained
from amos_fairseq.terminal import json_line, visible

HELP = (
    "Print the pseudo-log-likelihood of every sentence, or find the best of each n-best list: in one pass with a "
    "script_selfcritic run, in one pass for every token with others. Higher is likelier; a longer sentence has more "
    "terms. Of n-best lists with a first pass's scores: (1 - W) first pass + W pseudo-log-likelihood."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    trained.add_run(parser)
    parser.add_argument("file", metavar="FILE", help="sentences, one a line; - for standard input")
    parser.add_argument("--nbest", action="store_true", help="lines are id<TAB>sentence; mark the best of each id")
    parser.add_argument("--first-pass", action="store_true", help="with --nbest: lines are id<TAB>score<TAB>sentence")
    parser.add_argument("--weight", type=float, metavar="W", help="of the model beside the first pass, 0 to 1")
    parser.add_argument("--tune", type=Path, nargs=2, metavar=("NBEST", "REFERENCES"), help="take the weight with the "
                        "fewest word errors on another list; references are lines of id<TAB>sentence")
    parser.add_argument("--references", type=Path, metavar="FILE", help="with --nbest: tell the word error rate")
    parser.add_argument("--include-special", action="store_true", help="count <s> and </s> as well")
    passes = parser.add_mutually_exclusive_group()
    passes.add_argument("--masked", action="store_true", help="mask each token in turn, of script_selfcritic, too")
    passes.add_argument("--within-word", action="store_true", help="mask with each token the rest of its word, too")
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of tab-separated columns")
    trained.add_batch_tokens(parser)


def run(args: argparse.Namespace) -> None:
    check(args)

    from amos_fairseq.analysis import rescoring

    layout = dict(nbest=args.nbest, first_pass=args.first_pass)
    hypotheses = rescoring.parse(trained.read(args.file), args.file, **layout)
    references = references_of(args.references) if args.references else None
    held_out = None
    if args.tune is not None:
        nbest, told = args.tune
        held_out = rescoring.parse(trained.read(nbest), str(nbest), **layout), references_of(told)

    model = trained.load(args)
    weight = args.weight
    if held_out is not None:
        scores = score(model, held_out[0], args, str(args.tune[0]))
        tuning = rescoring.Rescoring(held_out[0], *zip(*scores), held_out[1])
        weight = tuning.tuned()
        tell(f"weight {weight:.2f}, by {args.tune[0]}", tuning.word_errors(weight))
    weight = 1.0 if weight is None else weight
    scores = score(model, hypotheses, args, args.file)
    plls, tokens = zip(*scores)
    if not args.nbest:
        rows = [{**found._asdict(), "sentence": item.sentence} for item, found in zip(hypotheses, scores)]
        return print_rows(rows, args.json)
    totals = rescoring.combined(hypotheses, plls, weight)
    best = set(rescoring.best_of_each(hypotheses, totals, tokens).values())
    rows = []
    for place, (item, found, total) in enumerate(zip(hypotheses, scores, totals)):
        with_first = {"score": total, "first_pass": item.first_pass} if args.first_pass else {}
        row = {"id": item.group, "best": place in best, **with_first, **found._asdict(), "sentence": item.sentence}
        rows.append(row)
    print_rows(rows, args.json)
    if references is not None:
        tell(args.file, rescoring.Rescoring(hypotheses, plls, tokens, references).word_errors(weight))


def check(args: argparse.Namespace) -> None:
    for name, needed in (
        ("first_pass", "nbest"), ("references", "nbest"), ("weight", "first_pass"), ("tune", "first_pass")
    ):
        if getattr(args, name) not in (None, False) and not getattr(args, needed):
            option, other = (word.replace("_", "-") for word in (name, needed))
            raise ValueError(f"--{option} goes with --{other}: give both")
    if args.first_pass and (args.weight is None) == (args.tune is None):
        raise ValueError("--first-pass needs a weight: give --weight W, or --tune NBEST REFERENCES that finds one")
    if args.weight is not None and not 0 <= args.weight <= 1:
        raise ValueError(f"--weight must lie between 0, the first pass alone, and 1, got {args.weight:g}")


def references_of(path: Path) -> Dict[str, str]:
    from amos_fairseq.analysis import rescoring

    found: Dict[str, str] = {}
    for item in rescoring.parse(trained.read(path), str(path)):
        if item.group in found:
            raise ValueError(f"{path}, line {item.line}: a second reference for {item.group!r}: leave one")
        found[item.group] = item.sentence
    return found


def score(model, hypotheses: List, args: argparse.Namespace, path: str) -> List:
    """The model's scores; raises ValueError, with the line, for a sentence that is too long."""
    from tqdm import tqdm

    from amos_fairseq.pretrained.scoring import MASKED, WITHIN_WORD

    for hypothesis in hypotheses:
        tokens, most = len(model.tokenizer.sequence(model.tokenizer.encode(hypothesis.sentence))), model.max_tokens
        if tokens > most:
            where = f"{path}, line {hypothesis.line}"
            raise ValueError(f"{where}: {tokens} tokens, but the model reads {most}: split the sentence")
    scoring = WITHIN_WORD if args.within_word else MASKED if args.masked else None
    with tqdm(total=len(hypotheses), unit="sentence", desc="score", disable=None) as bar:
        options = dict(batch_tokens=args.batch_tokens, progress=bar.update)
        return model.score([hypothesis.sentence for hypothesis in hypotheses], scoring, args.include_special, **options)


def tell(what: str, rates) -> None:
    """On standard error, for the list is on standard output."""
    print(f"{visible(what)}: {100 * rates.chosen:.2f} % word errors; first in the first pass "
          f"{100 * rates.first_pass:.2f}, the best that there are {100 * rates.oracle:.2f}", file=sys.stderr)


def print_rows(rows: List[Dict], as_json: bool) -> None:
    if not as_json:
        print("\t".join(rows[0]))
    for row in rows:
        print(json_line(row) if as_json else visible("\t".join(map(cell, row.values()))))


def cell(value) -> str:
    if isinstance(value, bool):
        return "*" if value else ""
    return f"{value:.4f}" if isinstance(value, float) else str(value)
