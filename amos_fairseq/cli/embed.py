"""`amos-fairseq embed`: a vector for every line of a text."""
import argparse
from pathlib import Path

from amos_fairseq.cli import trained
from amos_fairseq.files import check_new
from amos_fairseq.terminal import visible

HELP = "Write the encoder's features of every line of a text as a NumPy array (lines, width), by a run of any method."
CHUNK = 8192  # lines whose features are held at a time


def add_arguments(parser: argparse.ArgumentParser) -> None:
    trained.add_run(parser)
    parser.add_argument("file", metavar="FILE", help="texts, one a line, none of them empty; - for standard input")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.npy", help="new file to write")
    trained.add_pooling(parser)
    trained.add_batch_tokens(parser)


def run(args: argparse.Namespace) -> None:
    check_new("--out", args.out)
    lines = trained.read(args.file).removesuffix("\n").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise ValueError(f"{args.file}, line {number} is empty: each line gets a row, so leave none empty")

    import numpy as np
    from tqdm import tqdm

    from amos_fairseq.files import result_written

    model = trained.load(args)
    layer = model.layer_number(args.layer)
    for number, line in enumerate(lines, start=1):
        try:
            model.encode(line)
        except ValueError as error:
            raise ValueError(f"{args.file}, line {number}: {error}") from None
    shape = (len(lines), model.encoder.config.dim)
    options = dict(total=len(lines), unit="line", desc="embed", disable=None)
    with result_written(args.out) as stream, tqdm(**options) as bar:
        np.lib.format.write_array_header_1_0(stream, dict(descr="<f4", fortran_order=False, shape=shape))
        for start in range(0, len(lines), CHUNK):
            chunk = lines[start : start + CHUNK]
            features = model.features(chunk, args.pooling, args.batch_tokens, bar.update, layer)
            stream.write(features.cpu().numpy().astype("<f4", copy=False).tobytes())
    print(visible(f"{args.out}: {shape[0]:,} texts x {shape[1]} features, {args.pooling} of layer {layer}"))
