"""`amos-fairseq score`: pseudo-log-likelihoods of sentences, in one pass each by a model trained with SCRIPT."""
import argparse
from typing import Dict, List, NamedTuple

from amos_fairseq.cli import trained
from amos_fairseq.terminal import json_line, visible

HELP = (
    "Print the pseudo-log-likelihood of every sentence, or find the best of each n-best list: in one pass with a "
    "script_selfcritic run, in one pass for every token with others. Higher is likelier; a longer sentence has more "
    "terms."
)


class Hypothesis(NamedTuple):
    line: int
    group: str  # of an n-best list; else empty
    sentence: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    trained.add_run(parser)
    parser.add_argument("file", metavar="FILE", help="sentences, one a line; - for standard input")
    parser.add_argument("--nbest", action="store_true", help="lines are id<TAB>sentence; mark the best of each id")
    parser.add_argument("--include-special", action="store_true", help="count <s> and </s> as well")
    passes = parser.add_mutually_exclusive_group()
    passes.add_argument("--masked", action="store_true", help="mask each token in turn, of script_selfcritic, too")
    passes.add_argument("--within-word", action="store_true", help="mask with each token the rest of its word, too")
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of tab-separated columns")
    parser.add_argument("--batch-tokens", type=int, default=16384, help="tokens in one pass (default: 16384)")


def run(args: argparse.Namespace) -> None:
    if args.batch_tokens < 1:
        raise ValueError(f"--batch-tokens must be at least 1, got {args.batch_tokens}")
    hypotheses = parse(trained.read(args.file), args.nbest, args.file)

    from tqdm import tqdm

    from amos_fairseq.pretrained.scoring import MASKED, WITHIN_WORD

    model = trained.load(args)
    for hypothesis in hypotheses:
        tokens, most = len(model.tokenizer.sequence(model.tokenizer.encode(hypothesis.sentence))), model.max_tokens
        if tokens > most:
            where = f"{args.file}, line {hypothesis.line}"
            raise ValueError(f"{where}: {tokens} tokens, but the model reads {most}: split the sentence")
    _, groups, sentences = zip(*hypotheses)
    with tqdm(total=len(sentences), unit="sentence", desc="score", disable=None) as bar:
        options = dict(batch_tokens=args.batch_tokens, progress=bar.update)
        scoring = WITHIN_WORD if args.within_word else MASKED if args.masked else None
        scores = model.score(sentences, scoring, args.include_special, **options)

    rows = [
        {"id": group, "best": False, **score._asdict(), "sentence": sentence}
        for group, score, sentence in zip(groups, scores, sentences)
    ]
    if args.nbest:
        mark_best(rows)
    print_rows(rows, list(rows[0]) if args.nbest else ["pll", "tokens", "sentence"], args.json)


def parse(text: str, nbest: bool, path: str) -> List[Hypothesis]:
    """The lines that are not blank; in n-best lists a sentence may be empty, an id not."""
    hypotheses = []
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.removesuffix("\r")
        if not line.strip():
            continue
        group, tab, sentence = line.partition("\t") if nbest else ("", "\t", line)
        if not tab or (nbest and not group):
            raise ValueError(f"{path}, line {number}: n-best lines are id<TAB>sentence, got {line[:40]!r}")
        hypotheses.append(Hypothesis(number, group, sentence))
    if not hypotheses:
        raise ValueError(f"{path}: there is no sentence to score")
    return hypotheses


def mark_best(rows: List[Dict]) -> None:
    """The likeliest of the rows with the same id, the first of equals; one without a token only among its like."""
    groups = {}
    for row in rows:
        groups.setdefault(row["id"], []).append(row)
    for group in groups.values():
        max(group, key=lambda row: (row["tokens"] > 0, row["pll"]))["best"] = True


def print_rows(rows: List[Dict], columns: List[str], as_json: bool) -> None:
    if not as_json:
        print("\t".join(columns))
    for row in rows:
        row = {column: row[column] for column in columns}
        print(json_line(row) if as_json else visible("\t".join(map(cell, row.values()))))


def cell(value) -> str:
    if isinstance(value, bool):
        return "*" if value else ""
    return f"{value:.4f}" if isinstance(value, float) else str(value)
