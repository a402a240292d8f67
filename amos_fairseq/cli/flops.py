"""`amos-fairseq flops`: what methods cost, in the papers' convention and in the hardware's."""
import argparse
import json
from typing import Dict, List

HELP = (
    "Training FLOPs, forward and backward, per token, per sequence and for a run. hardware: matrix products, what MFU "
    "counts; electra: google ELECTRA's convention, for comparison with the papers' tables."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("methods", nargs="*", metavar="METHOD", help="registered names (default: all)")
    parser.add_argument("--size", default="base", help="tiny, small, base or large (default: base)")
    parser.add_argument("--vocab-size", type=int, default=32768, help="symbols of the vocabulary (default: 32768)")
    parser.add_argument("--length", type=int, default=512, help="tokens of a sequence (default: 512)")
    parser.add_argument("--sequences", type=int, default=2048, help="sequences of an update (default: 2048)")
    parser.add_argument("--updates", type=int, default=125000, help="updates of the run (default: 125000)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of a table")


def run(args: argparse.Namespace) -> None:
    from amos_fairseq.analysis.flops import Geometry, electra_flops, hardware_flops, without_memory
    from amos_fairseq.methods import METHODS
    from amos_fairseq.methods.base import ENCODER_SIZES

    for name in args.methods:
        if name not in METHODS:
            raise ValueError(f"unknown method {name}: choose from {', '.join(METHODS)}")
    if args.size not in ENCODER_SIZES:
        raise ValueError(f"unknown --size {args.size}: choose from {', '.join(ENCODER_SIZES)}")
    for option in ("vocab_size", "length", "sequences", "updates"):
        if getattr(args, option) < 1:
            raise ValueError(f"--{option.replace('_', '-')} must be at least 1, got {getattr(args, option)}")

    geometry = Geometry(args.sequences, args.length, args.updates)
    rows = []
    for name in args.methods or METHODS:
        method = without_memory(name, args.size, args.vocab_size, geometry)
        costs = {"hardware": hardware_flops(method, geometry), "electra": electra_flops(method, args.length)}
        for mode, token in costs.items():
            sequence = token * args.length
            total = sequence * args.sequences * args.updates
            rows.append({"method": name, "mode": mode, "token": token, "sequence": sequence, "run": total})
    print("\n".join(map(json.dumps, rows)) if args.json else table(rows))


def table(rows: List[Dict]) -> str:
    """Aligned columns, a method's name in its first row only."""
    lines = [f"{'method':<18}{'FLOPs':<10}{'per token':>12}{'per sequence':>14}{'run':>12}"]
    for above, row in zip([{}, *rows], rows):
        name = row["method"] if row["method"] != above.get("method") else ""
        numbers = f"{row['token']:>12.3e}{row['sequence']:>14.3e}{row['run']:>12.3e}"
        lines.append(f"{name:<18}{row['mode']:<10}{numbers}")
    return "\n".join(lines)
