"""The default corpus: English documentation inside the Python packages that an installation brings anyway."""

import ast
import functools
import gc
import importlib.util
import inspect
import math
import os
import re
import sysconfig
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple, Optional, TypeVar

from tqdm import tqdm

from amos_fairseq.files import result_written

PACKAGES = ("torch", "numpy", "fairseq", "hydra", "omegaconf", "sympy", "networkx", "scipy", "sklearn", "torchaudio")
EXCLUDED_FOLDERS = {"tests", "test", "testing", "idlelib", "lib2to3", "site-packages", "dist-packages", "_vendor"}
LARGEST_SOURCE = 2_000_000  # larger ones are generated
FEWEST_WORDS, LEAST_LETTERS = 5, 0.75
PARAGRAPH = re.compile(r"\n\s*\n")
HELD_OUT = 8  # one module of so many is kept for labelled tasks, see `documentation_tasks`
MOST_PROCESSES = 8
Module = TypeVar("Module")
Read = TypeVar("Read")


class Source(NamedTuple):
    """A Python module: its file, the package it is from, or "stdlib", and its name, as in torch/hub.py."""

    path: str
    package: str
    name: str

    @property
    def held_out(self) -> bool:
        """Whether it is no part of the corpus; the same in every installation."""
        return zlib.crc32(self.name.encode()) % HELD_OUT == 0


def write_documentation(out: str, megabytes: float = 12, progress: bool = False) -> int:
    """Write up to `megabytes` of documentation to `out`, one document per Python module; returns the bytes written.

    A document's paragraphs are lines, a blank line ends it. The same installation gives the same file.
    """
    if not 1e-6 <= megabytes < math.inf:
        raise ValueError(f"--megabytes {megabytes} is no size: give a number above 0, such as 12")
    limit = int(megabytes * 1e6)
    with result_written(Path(out)) as stream, tqdm(
        total=limit, unit="B", unit_scale=True, desc="collect", disable=None if progress else True
    ) as bar:
        for document in _documents():
            data = f"{document}\n\n".encode()
            if stream.tell() + len(data) > limit:
                break
            stream.write(data)
            bar.update(len(data))
        return stream.tell()


def _documents() -> Iterator[str]:
    """Documents of all modules in a fixed order, each paragraph only where it comes first."""
    seen = set()
    for paragraphs in read_all(module_paragraphs, [source.path for source in sources() if not source.held_out]):
        new = [paragraph for paragraph in dict.fromkeys(paragraphs) if paragraph not in seen]
        seen.update(new)
        if new:
            yield "\n".join(new)


def read_all(read: Callable[[Module], Read], modules: Iterable[Module]) -> Iterator[Read]:
    """What `read` finds in each module, in their order, by several processes.

    What the caller has imported is frozen in them: else each collection of garbage would go through it.
    """
    with ProcessPoolExecutor(min(MOST_PROCESSES, os.cpu_count() or 1), initializer=gc.freeze) as pool:
        try:
            yield from pool.map(read, modules, chunksize=16)
        finally:
            pool.shutdown(cancel_futures=True)


def sources() -> list[Source]:
    """Modules of the standard library, then of each package that is installed."""
    roots = [("stdlib", sysconfig.get_paths()["stdlib"])]
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is not None:
            roots.extend((package, root) for root in spec.submodule_search_locations or [])
    return [
        Source(str(path), package, f"{package}/{path.relative_to(root).as_posix()}")
        for package, root in roots
        for path in _sources_below(Path(root))
    ]


def _sources_below(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in EXCLUDED_FOLDERS)
        for name in sorted(files):
            path = Path(folder, name)
            if name.endswith(".py") and path.stat().st_size <= LARGEST_SOURCE:
                yield path


def module_paragraphs(path: str) -> list[str]:
    """Paragraphs of prose in a module's docstrings and other texts of several lines, each as one line."""
    tree = syntax_tree(path)
    return [] if tree is None else [paragraph for text in texts_of(tree) for paragraph in prose_paragraphs(text)]


def held_out_paragraphs() -> list[str]:
    """Of the modules that are no part of the corpus."""
    paths = [source.path for source in sources() if source.held_out]
    return [text for paragraphs in read_all(module_paragraphs, paths) for text in paragraphs]


@functools.lru_cache(1)
def syntax_tree(path: str) -> Optional[ast.Module]:
    """Of a module, which more than one may ask for in turn; None if the file is not Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of invalid escapes in other people's code
            return ast.parse(Path(path).read_bytes())
    except (SyntaxError, ValueError):
        return None


def texts_of(tree: ast.AST) -> Iterable[str]:
    """Strings that stand alone or have several lines (some packages keep documentation in calls and tables)."""
    texts = []
    for node in ast.walk(tree):
        alone = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        constant = node.value if alone else node
        if isinstance(constant, ast.Constant) and isinstance(constant.value, str):
            if alone or constant.value.count("\n") > 1:
                texts.append((constant.lineno, constant.col_offset, constant.value))
    return [text for _, _, text in sorted(set(texts))]


def prose_paragraphs(text: str) -> Iterator[str]:
    """Paragraphs of a docstring that read as sentences; sessions, tables, rulers and code are dropped."""
    for block in PARAGRAPH.split(inspect.cleandoc(text)):
        lines = [line.strip() for line in block.split("\n")]
        if any(line.startswith((">>>", "... ", "In [", "$ ")) for line in lines):
            continue
        paragraph = " ".join(line for line in lines if any(map(str.isalnum, line)))
        paragraph = " ".join(paragraph.split())
        letters = sum(character.isalpha() or character == " " for character in paragraph)
        if len(paragraph.split()) >= FEWEST_WORDS and letters >= LEAST_LETTERS * len(paragraph):
            yield paragraph.encode(errors="replace").decode()
