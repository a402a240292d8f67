"""How fast `amos-fairseq prepare` reads each format on one core, beside what encoding the same text takes.

    python examples/benchmarks/sources.py TEXT [--megabytes 64] [--folder FOLDER]

TEXT is text with blank lines between documents. Of each format a file is written to FOLDER (default: one that is
deleted) and read as `prepare` reads it: decompressed, parsed, cleaned, cut into documents. `MB/s`: bytes of text, best
of three; `share`: of the time that SentencePiece takes to encode them with a vocabulary of 32,768 learnt from TEXT;
`skip`: MB/s of what is only passed over, as after a kill; `160 GB`: core-hours to read and encode as much.
"""

import argparse
import bz2
import gzip
import json
import lzma
import tempfile
import time
from pathlib import Path

import pyarrow
import zstandard
from pyarrow import parquet

from amos_fairseq.data.corpus import BLANK_LINE
from amos_fairseq.data.encoding import TextEncoder
from amos_fairseq.data.options import Options
from amos_fairseq.data.sources import open_source
from amos_fairseq.data.vocabulary import train_vocabulary
from amos_fairseq.data.vocabulary_files import load_tokenizer

COMPRESS = {
    "": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lambda data: lzma.compress(data, preset=3),
    ".zst": zstandard.ZstdCompressor(level=10).compress,
}
TRIALS = 3
CORPUS_BYTES = 160e9


def write(folder, documents):
    """(format, path) of each file."""
    rows = [{"id": number, "text": text} for number, text in enumerate(documents)]
    contents = {
        "text": "\n\n".join(documents).encode(),
        "jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode(),
        "json": json.dumps(rows).encode(),
    }
    for kind, data in contents.items():
        for end, compress in COMPRESS.items():
            if kind != "json" or not end:
                path = folder / f"corpus.{kind}{end}"
                path.write_bytes(compress(data))
                yield kind, path
    table = pyarrow.Table.from_pylist(rows)
    parquet.write_table(table, folder / "corpus.parquet", row_group_size=1 << 16, compression="zstd")
    yield "parquet", folder / "corpus.parquet"
    with pyarrow.OSFile(str(folder / "corpus.arrow"), "wb") as file:
        with pyarrow.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=1000)
    yield "arrow", folder / "corpus.arrow"


def seconds(work):
    """The least of some trials."""
    times = []
    for _ in range(TRIALS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def read(source, use):
    for span in source.spans(1 << 25):
        for block in source.blocks(span):
            use(block)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, metavar="TEXT")
    parser.add_argument("--megabytes", type=float, default=64, help="of TEXT (default: 64)")
    parser.add_argument("--vocab-size", type=int, default=32768)
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    with args.text.open("rb") as stream:
        text = stream.read(int(args.megabytes * 1e6)).decode(errors="ignore")
    documents = [document.strip() for document in BLANK_LINE.split(text) if document.strip()]
    size = sum(len(document.encode()) for document in documents) / 1e6
    encoder = TextEncoder(load_tokenizer(train_vocabulary([text[:20_000_000]], args.vocab_size, uncased=True)))
    lines = [document.replace("\n", " ") for document in documents]
    encoding = seconds(lambda: encoder.processor.encode(lines, num_threads=1))
    print(f"{size:.1f} MB of text in {len(documents):,} documents; SentencePiece encodes {size / encoding:.2f} MB/s\n")
    print(f"{'format':<20}{'MB':>8}{'MB/s':>8}{'share':>8}{'skip':>8}{'160 GB':>9}")
    with tempfile.TemporaryDirectory() as temporary:
        for kind, path in write(args.folder or Path(temporary), documents):
            source = open_source(str(path), path.name, kind, Options())
            time_read = seconds(lambda: read(source, source.passages))
            time_skipped = seconds(lambda: read(source, len))
            hours = (time_read + encoding) / (size * 1e6) * CORPUS_BYTES / 3600
            print(
                f"{path.name:<20}{path.stat().st_size / 1e6:>8.1f}{size / time_read:>8.0f}{time_read / encoding:>8.1%}"
                f"{size / time_skipped:>8.0f}{hours:>7.1f} h"
            )


if __name__ == "__main__":
    main()
