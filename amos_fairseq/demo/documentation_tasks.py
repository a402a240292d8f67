"""Labelled tasks made from the documentation on this machine, of modules that `write_documentation` leaves out.

    glue/CoLA     does a sentence stand as it was written (1), or were the words of half of it shuffled (0)?
    glue/RTE      does a summary describe the function whose signature comes first, or another one of its package?
    package/      which package is a sentence from? train.tsv, valid.tsv, test.tsv with columns sentence, package
    cloze/        which of eight words was left out of a sentence? train.tsv, test.tsv: columns before, after, word
    squad/        what does a function of a page do? train-v2.0.json, dev-v2.0.json; some are not on the page
    probe/        did a word stand in backticks, as code? train.tsv, valid.tsv, test.tsv for `amos-fairseq probe`

The first two have GLUE's file layouts, the last one SQuAD's, so that they go wherever those do; their names say that,
no more: results on them are not results on GLUE. The same installation gives the same files.
"""

import ast
import json
import random
import re
import zlib
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Sequence, Tuple

from amos_fairseq.demo.documentation import Source, module_paragraphs, prose_paragraphs, read_all, sources, syntax_tree
from amos_fairseq.files import new_folder

SPLITS = ("train", "dev", "test")  # of modules: half, a quarter, a quarter
PACKAGES = ("stdlib", "torch", "numpy", "fairseq", "sympy", "networkx", "scipy", "sklearn")
ENTRIES_OF_PAGE = 4
WORDS_OF_SENTENCE = range(6, 25)
COLUMNS = {  # as `amos-fairseq finetune` asks for them
    "package": ["--text", "sentence", "--label", "package"],
    "cloze": ["--text", "before", "--text-b", "after", "--label", "word"],
}
LEFT_OUT = ("the", "of", "to", "in", "is", "for", "and", "a")
AROUND = 6  # words on either side of the one that is left out
CODE, TEXT, UNLABELLED = "code", "text", "_"
BACKTICKS = re.compile(r"(?::[\w:]+:)?`+")  # with Sphinx's role, as in :func:`name`


class Entry(NamedTuple):
    """A documented function or class."""

    package: str
    signature: str  # name and arguments
    summary: str  # the first sentence of its documentation

    @property
    def name(self) -> str:
        return self.signature.split("(")[0]


class Sentence(NamedTuple):
    package: str
    text: str


class HeldOut(NamedTuple):
    """What modules outside of the corpus say; none of it comes twice."""

    sentences: List[Sentence]
    entries: List[Entry]


def write_tasks(folder: Path, examples: int = 2000, seed: int = 1) -> Dict[str, int]:
    """Write the tasks with at most `examples` of each for training, half as many for the other splits.

    Returns the number of training examples by task. Raises ValueError if the folder exists, which is there in full or
    not at all.
    """
    sizes = {split: examples if split == "train" else examples // 2 for split in SPLITS}
    written: Dict[str, int] = {}
    Path(folder).parent.mkdir(parents=True, exist_ok=True)
    with new_folder(Path(folder)) as partial:
        held_out = read_held_out()
        for task, write in TASKS.items():
            draw = random.Random(f"{seed} {task}")
            for split in SPLITS:
                shuffled = HeldOut(*(draw.sample(part, len(part)) for part in held_out[split]))
                count = write(partial, split, shuffled, sizes[split], draw)
                written.setdefault(task, count)
    return written


def read_held_out() -> Dict[str, HeldOut]:
    """By split; all that a module says is in one."""
    held_out = {split: HeldOut([], []) for split in SPLITS}
    seen = set()
    chosen = [source for source in sources() if source.held_out and source.package in PACKAGES]
    for source, (found, paragraphs) in zip(chosen, read_all(entries_and_paragraphs, chosen)):
        split = ("train", "train", "dev", "test")[zlib.crc32(b"split " + source.name.encode()) % 4]
        sentences, entries = held_out[split]
        for entry in found:
            if entry.summary not in seen:
                seen.add(entry.summary)
                entries.append(entry)
        for paragraph in paragraphs:
            for text in split_sentences(paragraph):
                if len(text.split()) in WORDS_OF_SENTENCE and "\t" not in text and ("s", text) not in seen:
                    seen.add(("s", text))
                    sentences.append(Sentence(source.package, text))
    return held_out


def entries_and_paragraphs(source: Source) -> Tuple[List[Entry], List[str]]:
    return module_entries(source.path, source.package), module_paragraphs(source.path)


def split_sentences(paragraph: str) -> List[str]:
    """Without their full stops."""
    return [text.rstrip(".") for text in paragraph.split(". ")]


def module_entries(path: str, package: str) -> List[Entry]:
    """Public functions and classes of a module whose documentation begins with a sentence."""
    tree = syntax_tree(path)
    found = []
    for node in ast.walk(tree) if tree is not None else ():
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith("_"):
            continue
        paragraphs = list(prose_paragraphs(ast.get_docstring(node) or ""))
        if paragraphs:
            arguments = [a.arg for a in node.args.args if a.arg != "self"] if isinstance(node, ast.FunctionDef) else []
            summary = paragraphs[0].split(". ")[0].rstrip(".")
            if "\t" not in summary and len(summary.split()) > 3:
                found.append(Entry(package, f"{node.name}({', '.join(arguments)})", summary))
    return found


def write_acceptability(folder: Path, split: str, held_out: HeldOut, size: int, draw: random.Random) -> int:
    rows = []
    for number, sentence in enumerate(held_out.sentences[:size]):
        original = number % 2
        text = sentence.text if original else with_half_shuffled(sentence.text, draw)
        rows.append([str(number), text] if split == "test" else ["docs", str(original), "", text])
    header = [["index", "sentence"]] if split == "test" else []
    return write_table(folder / "glue/CoLA" / f"{split}.tsv", header, rows)


def with_half_shuffled(sentence: str, draw: random.Random) -> str:
    """Half of the words, neighbours, in another order."""
    words = sentence.split()
    length = (len(words) + 1) // 2
    start = draw.randrange(len(words) - length + 1)
    half = words[start : start + length]
    while half == words[start : start + length] and len(set(half)) > 1:
        draw.shuffle(half)
    return " ".join([*words[:start], *half, *words[start + length :]])


def write_entailment(folder: Path, split: str, held_out: HeldOut, size: int, draw: random.Random) -> int:
    entries = held_out.entries
    by_package = {entry.package: [other for other in entries if other.package == entry.package] for entry in entries}
    rows = []
    for entry in entries[:size]:
        others = [other for other in by_package[entry.package] if other.name != entry.name]
        belongs = len(rows) % 2 == 0
        if others or belongs:
            summary = entry.summary if belongs else draw.choice(others).summary
            label = [] if split == "test" else ["entailment" if belongs else "not_entailment"]
            rows.append([str(len(rows)), entry.signature, summary, *label])
    header = ["index", "sentence1", "sentence2", *([] if split == "test" else ["label"])]
    return write_table(folder / "glue/RTE" / f"{split}.tsv", [header], rows)


def write_packages(folder: Path, split: str, held_out: HeldOut, size: int, draw: random.Random) -> int:
    """As many of each package as there are, within its share of `size`."""
    rows = []
    for package in PACKAGES:
        texts = [sentence.text for sentence in held_out.sentences if sentence.package == package]
        rows += [[text, package] for text in texts[: size // len(PACKAGES)]]
    name = "valid" if split == "dev" else split
    return write_table(folder / "package" / f"{name}.tsv", [["sentence", "package"]], draw.sample(rows, len(rows)))


def write_cloze(folder: Path, split: str, held_out: HeldOut, size: int, draw: random.Random) -> int:
    """As many of each word as there are, within its share of `size`."""
    if split == "dev":  # few-shot fine-tuning draws its own from train
        return 0
    rows: Dict[str, List[List[str]]] = {word: [] for word in LEFT_OUT}
    for sentence in held_out.sentences:
        words = sentence.text.split()
        wanted = [word for word in LEFT_OUT if len(rows[word]) < size // len(LEFT_OUT)]
        places = [i for i in range(2, len(words) - 2) if words[i] in wanted]
        if places:
            i = draw.choice(places)
            before, after = words[max(0, i - AROUND) : i], words[i + 1 : i + 1 + AROUND]
            rows[words[i]].append([" ".join(before), " ".join(after), words[i]])
    table = [row for word in LEFT_OUT for row in rows[word]]
    header = ["before", "after", "word"]
    return write_table(folder / "cloze" / f"{split}.tsv", [header], draw.sample(table, len(table)))


def write_questions(folder: Path, split: str, held_out: HeldOut, size: int, draw: random.Random) -> int:
    if split == "test":  # SQuAD's is not public
        return 0
    entries, paragraphs, number = held_out.entries, [], 0
    for page in pages(entries):
        if number >= size:
            break
        context, questions = "", []
        for entry in page:
            context += f"{entry.name}: "
            answer = {"text": entry.summary, "answer_start": len(context)}
            context += f"{entry.summary}. "
            questions.append(question(f"{split}-{number}", entry.name, [answer]))
            number += 1
        stranger = draw.choice(entries)
        if stranger.name not in {entry.name for entry in page}:
            questions.append(question(f"{split}-{number}", stranger.name, []))
            number += 1
        paragraphs.append({"context": context.rstrip(), "qas": questions})
    path = folder / "squad" / f"{split}-v2.0.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    data = [{"title": "documentation", "paragraphs": paragraphs}]
    path.write_text(json.dumps({"version": "v2.0", "data": data}, ensure_ascii=False), encoding="utf-8")
    return number


def question(id: str, name: str, answers: List[dict]) -> dict:
    return {"id": id, "question": f"What does {name} do?", "answers": answers, "is_impossible": not answers}


def pages(entries: Sequence[Entry]) -> Iterator[List[Entry]]:
    """ENTRIES_OF_PAGE entries of different names each."""
    page: Dict[str, Entry] = {}
    for entry in entries:
        page.setdefault(entry.name, entry)
        if len(page) == ENTRIES_OF_PAGE:
            yield list(page.values())
            page = {}


def write_code_words(folder: Path, split: str, held_out: HeldOut, size: int, draw: random.Random) -> int:
    """Up to `size` sentences. Each word, as written, is labelled CODE as often as TEXT, so that alone it tells nothing.

    CODE is what stood in backticks, which are taken away; authors are not always consistent. Words that would be
    too many of one label are UNLABELLED, and so is punctuation.
    """
    sentences = [words for words in map(code_words, held_out.sentences) if words][:size]
    places: Dict[Tuple[str, str], List[Tuple[int, int]]] = {}  # by word and label
    for row, words in enumerate(sentences):
        for column, (word, label) in enumerate(words):
            if any(map(str.isalnum, word)):
                places.setdefault((word, label), []).append((row, column))
    labelled = set()
    for (word, label), found in places.items():
        others = places.get((word, TEXT if label == CODE else CODE), [])
        labelled.update(draw.sample(found, min(len(found), len(others))))
    rows: List[List[str]] = []
    for row, words in enumerate(sentences):
        rows += [[word, label if (row, n) in labelled else UNLABELLED] for n, (word, label) in enumerate(words)]
        rows.append([])
    name = "valid" if split == "dev" else split
    write_table(folder / "probe" / f"{name}.tsv", [], rows)
    return len(sentences)


def code_words(sentence: Sentence) -> List[Tuple[str, str]]:
    """Words with their labels; [] if none stood in backticks, or some began or ended elsewhere."""
    parts = BACKTICKS.split(sentence.text)
    if len(parts) == 1 or len(parts) % 2 == 0:
        return []
    parts[1::2] = [" ".join(f"`{word}" for word in part.split()) for part in parts[1::2]]
    words = [(word.replace("`", ""), CODE if "`" in word else TEXT) for word in "".join(parts).split()]
    return [(word, label) for word, label in words if word]


def write_table(path: Path, header: List[List[str]], rows: List[List[str]]) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(row) + "\n" for row in [*header, *rows]), encoding="utf-8")
    return len(rows)


TASKS = {
    "CoLA": write_acceptability, "RTE": write_entailment, "package": write_packages, "cloze": write_cloze,
    "squad": write_questions, "probe": write_code_words,
}
