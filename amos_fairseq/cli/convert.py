"""`amos-fairseq convert`: a checkpoint as Microsoft's AMOS and COCO-LM have it, for their fairseq or `transformers`."""
import argparse
from pathlib import Path

from amos_fairseq.terminal import visible

HELP = (
    "Write an amos_rtd or coco_lm run, or a checkpoint of Microsoft's releases, in one of the two layouts of these. "
    "What is written is read again and compared bit by bit."
)
OF_A_RELEASE = (
    "method", "sentencepiece", "dictionary", "max_distance", "generator_depths", "allow_missing", "allow_unexpected"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="run, one of its checkpoints, or a release")
    parser.add_argument("--to", choices=["fairseq", "huggingface"], required=True, help="layout to write")
    parser.add_argument("--out", type=Path, required=True, help="new folder")
    parser.add_argument("--encoder-only", action="store_true", help="fairseq: leave out what pre-training alone needs")
    parser.add_argument("--data", type=Path, help="prepared data of a run whose checkpoints hold no vocabulary")
    release = parser.add_argument_group("of a release", "where neither the tensors nor files beside them tell")
    release.add_argument("--method", choices=["amos_rtd", "coco_lm"], help="which of the two it is")
    release.add_argument("--sentencepiece", type=Path, metavar="FILE", help="its sp.model (default: beside it)")
    release.add_argument("--dictionary", type=Path, metavar="FILE", help="its dict.txt (default: beside it)")
    release.add_argument("--max-distance", type=int, help="of relative positions (default: 128, of 128 buckets 256)")
    release.add_argument("--generator-depths", type=depths, metavar="4,6,8", help="layers with an MLM head, of AMOS")
    release.add_argument("--allow-missing", nargs="+", default=[], metavar="NAME", help="parameters it may lack")
    release.add_argument("--allow-unexpected", nargs="+", default=[], metavar="NAME", help="parameters to leave out")


def depths(text: str) -> list:
    return [int(depth) for depth in text.split(",")]


def run(args: argparse.Namespace) -> None:
    from amos_fairseq import from_pretrained
    from amos_fairseq.pretrained import released

    if args.encoder_only and args.to != "fairseq":
        raise ValueError("--encoder-only goes with --to fairseq: that of huggingface holds the encoder alone")
    is_released = released.is_released(args.checkpoint)
    for name in ["data"] if is_released else OF_A_RELEASE:
        if getattr(args, name):
            option, whose = name.replace("_", "-"), "run" if is_released else "release"
            raise ValueError(f"--{option} goes with a {whose}, which {args.checkpoint} is not: leave it out")
    if is_released:
        pretrained = released.load(
            args.checkpoint, args.sentencepiece, args.dictionary, name=args.method, max_distance=args.max_distance,
            generator_depths=args.generator_depths, allow_missing=args.allow_missing,
            allow_unexpected=args.allow_unexpected,
        )
    else:
        pretrained = from_pretrained(args.checkpoint, args.data)
    released.write(pretrained, args.out, args.to, args.encoder_only)
    print(visible(f"wrote {args.out}: {pretrained.name} of {pretrained.source}, read again and compared"))
