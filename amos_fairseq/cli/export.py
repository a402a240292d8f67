"""`amos-fairseq export`: a checkpoint as a folder that Hugging Face's transformers loads."""
import argparse
from pathlib import Path

from amos_fairseq.terminal import visible

HELP = (
    "Write a trained checkpoint as a Hugging Face folder: weights, tokenizer and model card. It is loaded again and "
    "compared with the checkpoint before it gets its name."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="a run, pre-trained or fine-tuned, or a checkpoint")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="new folder to write")
    parser.add_argument(
        "--classes", nargs="+", default=[], metavar="CLASS",
        help="classes of transformers to write: one for the encoder, and one for the generator if it is wanted "
        "(default: those that fit with most heads, stock ones first)",
    )
    parser.add_argument(
        "--pooling", choices=("mean", "cls"), help="also what sentence-transformers needs to make one vector of a text"
    )
    parser.add_argument(
        "--no-tokenizer", dest="tokenizer", action="store_false",
        help="without the files of transformers' AutoTokenizer, which has no equal for some SentencePiece models",
    )
    parser.add_argument("--data", type=Path, help="prepared data, for the card (default: where the run found them)")


def run(args: argparse.Namespace) -> None:
    from amos_fairseq.export import huggingface

    report = huggingface.export(args.run, args.out, args.classes, args.pooling, args.data, args.tokenizer)
    for choice, gaps in report.models:
        differs = f"loaded again, it differs by {huggingface.told(gaps)}"
        print(visible(f"{args.out / choice.place}  {choice.class_name}; {differs}"))
        if choice.needs_code:
            print("  no class of transformers has this shape: trust_remote_code=True lets modeling_amos.py run")
    if report.left_out:
        print(visible(f"not in it: {'; '.join(report.left_out)}"))
