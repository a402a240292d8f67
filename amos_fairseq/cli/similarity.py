"""`amos-fairseq similarity`: what pooled hidden states say of similarity and retrieval, without training."""
import argparse
from pathlib import Path

from amos_fairseq.cli import trained
from amos_fairseq.terminal import filled, json_line, table, visible

HELP = (
    "Judge encoders by the cosine of their pooled hidden states, without training: by Spearman's correlation with "
    "people's scores of pairs of texts, or by nDCG@10 and recall@100 of folders in the layout of BEIR (corpus.jsonl, "
    "queries.jsonl, qrels/test.tsv). Below stands how alike the hidden states are."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    trained.add_run(parser, nargs="+")
    parser.add_argument("--tasks", type=Path, nargs="+", required=True, metavar="PATH",
                        help="files of scored pairs, .tsv, .csv or .jsonl, and folders of BEIR")
    parser.add_argument("--columns", metavar="A,B,SCORE", help="of scored pairs (default: sentence1,sentence2,score)")
    parser.add_argument("--split", default="test", help="of BEIR's qrels (default: test)")
    trained.add_pooling(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    trained.add_batch_tokens(parser)


def run(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from amos_fairseq.analysis import similarity

    columns = similarity.STS_COLUMNS if args.columns is None else args.columns.split(",")
    if len(columns) != 3:
        raise ValueError(f"--columns {args.columns} must be three: of both texts and of their score")
    tasks = [
        similarity.read_beir(path, args.split) if path.is_dir() else similarity.read_sts(path, columns)
        for path in args.tasks
    ]
    names, found, notes = trained.short_names(args.run), {}, []
    for path, name in zip(args.run, names):
        model = trained.load(args, path)
        with tqdm(unit="text", desc=visible(name), disable=None) as bar:
            embed = similarity.Embedder(model, args.pooling, args.layer, args.batch_tokens, bar.update)
            results = [task.judged(embed) for task in tasks]
            found[name] = results, embed.anisotropy(tasks[0].texts), embed.truncated
        if embed.truncated:
            notes.append(f"{name} reads {model.max_tokens} tokens: {embed.truncated:,} texts lost their ends.")
    if args.json:
        rows = [
            {"model": name, "tasks": [
                {"task": task.name, **{metric: estimate._asdict() for metric, estimate in result.items()}}
                for task, result in zip(tasks, results)
            ], "anisotropy": anisotropy, "truncated": truncated}
            for name, (results, anisotropy, truncated) in found.items()
        ]
        print(json_line({"pooling": args.pooling, "layer": args.layer, "models": rows}))
        return
    rows = [["", *found]]
    for number, task in enumerate(tasks):
        results = [of_tasks[number] for of_tasks, *_ in found.values()]
        rows += [[f"{task.name}, {metric}", *(str(result[metric]) for result in results)] for metric in results[0]]
    shapes = [anisotropy for _, anisotropy, _ in found.values()]
    for field in shapes[0]:
        values = [anisotropy[field] for anisotropy in shapes]
        rows.append([field.replace("_", " "), *("-" if value is None else f"{value:.2f}" for value in values)])
    print(table(rows))
    print(filled("\n".join([
        "\nIn per cent, with 95 % bootstrap intervals over pairs or queries. Cosine and effective rank of words and of "
        f"pooled texts of {tasks[0].name}: near 1, all are alike, as those of a collapsed encoder.", *notes
    ])))
