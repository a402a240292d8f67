"""`amos-fairseq minimal-pairs`: how often models prefer the better of two texts."""
import argparse
from pathlib import Path
from typing import Dict, List, Optional

from amos_fairseq.cli import trained
from amos_fairseq.files import check_new, result_written
from amos_fairseq.terminal import filled, json_line, table, visible

HELP = (
    "Print how often the pseudo-log-likelihood of models is higher for the good text of a pair, by phenomenon, with "
    "bootstrap intervals, beside what the frequencies of tokens alone say. Files: BLiMP's (sentence_good, "
    "sentence_bad), EWoK's (Context1, Context2, Target1, Target2), or any with the columns good, bad and, if you like, "
    "phenomenon; .jsonl, .tsv or .csv."
)
UNIGRAM = "unigram"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    trained.add_run(parser, nargs="+")
    parser.add_argument("--pairs", type=Path, nargs="+", required=True, metavar="PATH", help="files or folders")
    parser.add_argument("--scores", metavar="SCORE,..", help="one-pass: by the critic or detection head, a pass for a "
                        "text; masked: each token masked in turn; within-word: and with it the rest of its word "
                        "(default: all that a model has)")
    parser.add_argument("--by", metavar="COLUMN", help="the phenomenon (default: linguistics_term of BLiMP, Domain of "
                        "EWoK, phenomenon, or the file's name)")
    parser.add_argument("--per-token", action="store_true", help="compare means over tokens instead of sums")
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl", help="new file for the scores of every pair")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    trained.add_batch_tokens(parser)


def run(args: argparse.Namespace) -> None:
    if args.out is not None:
        check_new("--out", args.out)

    from tqdm import tqdm

    from amos_fairseq.analysis import minimal_pairs
    from amos_fairseq.pretrained.scoring import SCORINGS, WITHIN_WORD

    asked = SCORINGS if args.scores is None else args.scores.split(",")
    for scoring in asked:
        if scoring not in SCORINGS:
            raise ValueError(f"--scores {scoring} is none of {', '.join(SCORINGS)}")
    pairs = minimal_pairs.read(args.pairs, args.by)
    names, scored, notes = trained.short_names(args.run), [], []
    vocabularies, frequencies = {}, {}  # by model; by vocabulary, of the first model whose tokens were counted
    for path, name in zip(args.run, names):
        model = trained.load(args, path)
        has = minimal_pairs.available(model)
        if lacking := [scoring for scoring in asked if scoring not in has]:
            notes.append(f"{name} has no score {', '.join(lacking)}.")
        if WITHIN_WORD in has and model.method.masked_lm_encoder is not model.method.encoder:
            notes.append(f"Masked and within-word scores of {name} are its generator's.")
        chosen = [scoring for scoring in asked if scoring in has]
        texts = minimal_pairs.Texts(pairs, model)
        vocabularies[name] = model.tokenizer.sha256
        counts = minimal_pairs.counts_of(model, args.data)
        if counts is not None and vocabularies[name] not in frequencies:
            frequencies[vocabularies[name]] = minimal_pairs.Scored(name, UNIGRAM, texts.unigram_score(counts))
        with tqdm(total=len(chosen) * len(texts.distinct), unit="text", desc=visible(name), disable=None) as bar:
            for scoring in chosen:
                scored.append(minimal_pairs.Scored(name, scoring, texts.score(scoring, args.batch_tokens, bar.update)))
    if not scored:
        raise ValueError(" ".join(notes))
    for name in names:
        if vocabularies[name] not in frequencies:
            notes.append(f"{name} did not count its tokens: give its prepared data, --data, for their frequencies.")

    judged = []
    for column in scored:
        unigram = frequencies.get(vocabularies[column.model])
        judged.append(minimal_pairs.judge(pairs, column.scores, unigram and unigram.scores, args.per_token))
    for unigram in frequencies.values():
        scored.append(unigram)
        judged.append(minimal_pairs.judge(pairs, unigram.scores, None, args.per_token))
    if args.out is not None:
        rows = (minimal_pairs.as_row(number, pair, scored) for number, pair in enumerate(pairs))
        with result_written(args.out) as stream:
            stream.writelines(f"{json_line(row)}\n".encode() for row in rows)
    if args.json:
        columns = zip(scored, judged)
        rows = [{"model": column.model, "score": column.scoring, **as_json(result)} for column, result in columns]
        print(json_line({"pairs": len(pairs), "per_token": args.per_token, "models": rows, "notes": notes}))
    else:
        print_table(scored, judged, args.per_token)
        print(filled(f"\n% of {len(pairs):,} pairs whose good text has the higher score, equal ones being half of one, "
                     "with 95 % bootstrap intervals over items."))
        unigram = "unigram: by the frequencies of tokens in training alone, of each vocabulary once."
        print(filled(" ".join([unigram, *notes])))


def as_json(judged) -> Dict:
    phenomena = {name: estimate._asdict() for name, estimate in judged.phenomena.items()}
    estimates = {name: getattr(judged, name)._asdict() for name in ("overall", "of_phenomena", "other")}
    return {**judged._asdict(), "phenomena": phenomena, **estimates}


def print_table(scored: List, judged: List, per_token: bool) -> None:
    """A column for each score of each model."""
    rows = [["", *(column.model for column in scored)], ["", *(column.scoring for column in scored)]]
    rows += [[name, *(str(result.phenomena[name]) for result in judged)] for name in judged[0].phenomena]
    rows += [
        ["overall", *(str(result.overall) for result in judged)],
        ["mean of phenomena", *(str(result.of_phenomena) for result in judged)],
        [f"overall, {'summed' if per_token else 'per token'}", *(str(result.other) for result in judged)],
        ["where unigram is right", *(shown(result.with_frequency) for result in judged)],
        ["where it is not", *(shown(result.without_frequency) for result in judged)],
        ["ties", *(f"{result.ties:,}" for result in judged)],
    ]
    print(table(rows))


def shown(share: Optional[float]) -> str:
    return "" if share is None else f"{100 * share:.1f}"
