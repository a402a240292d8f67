"""Commands that the documentation shows, run as a reader would type them: on tiny data, with little to wait for.

A page is a story: its commands run one after the other in one folder, which is like the repository's and has what the
page takes for granted. WAYS says, for every command, what is done in the place of long work; no command is left out.
"""

import argparse
import functools
import importlib
import os
import pkgutil
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Callable, Dict, Iterator, List, NamedTuple, Optional
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "slurm/README.md", *sorted(ROOT.glob("examples/*/*.md"))]
HEADS = sorted(path for kind in ("examples/*/*.yaml", "examples/*/*.py", "examples/*/*.sh", "slurm/*.sh")
               for path in ROOT.glob(kind))
PROGRAMS = (
    "amos-fairseq ", "fairseq-", "python", "bash ", "sbatch ", "pip ", "torchrun ", "env ", "DRY_RUN=1 ", "pytest "
)


class Command(NamedTuple):
    page: str
    text: str


# --- What is shown


def commands() -> List[Command]:
    """Those of pages; of heads, what no page shows."""
    shown = [Command(str(path.relative_to(ROOT)), text) for path in PAGES for text in of_page(path.read_text())]
    known = {text for _, text in shown}
    heads = [Command(str(path.relative_to(ROOT)), text) for path in HEADS for text in of_head(path.read_text())]
    return list(dict.fromkeys([*shown, *(command for command in heads if command.text not in known)]))


def of_page(text: str) -> Iterator[str]:
    """Those in bash blocks, after `$` in other blocks, and indented; Python blocks; of those in sentences, whole ones.
    """
    language, block = None, ""
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("```"):
            if language == "python":
                yield block
            language, block = line[3:] if language is None else None, ""
        elif language == "python":
            block += line + "\n"
        elif language is None and line.startswith("    ") and line.strip().startswith(PROGRAMS):
            yield " ".join(line.split())
        elif language == "bash" and line.strip() and not line.startswith("#"):
            block += " ".join(line.split())
            if re.sub(r"#.*", "", block).count("'") % 2 == 0:  # else what is quoted goes on
                yield block
                block = ""
        elif language == "" and line.startswith("$ "):
            yield line[2:]
    sentences = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for span in re.findall(r"`((?:fairseq-validate|amos-fairseq\s(?:flops|options))\s[^`]+)`", sentences):
        yield " ".join(span.split())


def of_head(text: str) -> Iterator[str]:
    """Those in the comment or docstring at the head of a file; what a synopsis has in brackets, too, with N = 2."""
    head = re.match(r'(?:#.*\n)+|"""(?s:.*?)"""', text)
    for line in re.sub(r"\\\n#? *", "", head[0] if head else "").splitlines():
        line = re.sub(r"^#? {3,}", "", line)
        if line.startswith(PROGRAMS):
            line = re.sub(r"\bN\b", "2", line)
            yield re.sub(r"\[?(OVERRIDE|ARGUMENT)\.\.\]?|[][]|\.\.(?!\S)| {3}.*", "", line).strip()


COMMANDS = commands()


def words_of(text: str, folder: Path) -> List[str]:
    """What a shell makes of it, in which no program is found: variables, quotes and comments are bash's business."""
    shell = "which() { echo $1; }; command_not_found_handle() { printf '%s\\0' \"$@\"; }; PATH=/nowhere\n"
    done = subprocess.run(["bash", "-c", shell + text], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout.split("\0")[:-1]


# --- What is run of it

TINY = (
    "--batch-size 8 --tokens-per-sample 16 --update-freq 1 --max-update 2 --warmup-updates 1 --total-num-update 2 "
    "--num-workers 0 --cpu"
).split()


def program(words: List[str]) -> None:
    """Run it in this process."""
    name, *sys.argv[1:] = words
    sys.argv[0] = name
    if name == "amos-fairseq":
        sys.exit(importlib.import_module("amos_fairseq.cli.main").main())
    if name.startswith("fairseq-"):
        importlib.import_module("fairseq_cli." + name[8:].replace("-", "_")).cli_main()
    elif words[:2] == ["python", "-m"]:
        sys.argv = words[2:]
        runpy.run_module(words[2], run_name="__main__")
    else:
        assert name in ("python", "python3"), f"there is no program {name}"
        sys.argv = words[1:]
        sys.path.insert(0, str(Path(words[1]).parent))
        runpy.run_path(words[1], run_name="__main__")


def done(*_, **__) -> None:
    sys.stdout.flush()
    os._exit(0)


def stopped_at(place: str, words: List[str]) -> None:
    """All that is checked before the work is, which begins at this place."""
    owner, name = place.rsplit(".", 1)
    with mock.patch.object(pkgutil.resolve_name(owner), name, done):
        program(words)
    sys.exit(f"{place} was not called")


def parsed(words: List[str]) -> None:
    """The options are, and no more."""
    parse = argparse.ArgumentParser.parse_args
    with mock.patch.object(argparse.ArgumentParser, "parse_args", lambda *args: done(parse(*args))):
        program(words)
    sys.exit("no options were read")


def options_of(words: List[str]) -> Dict[str, List[str]]:
    """What follows each option."""
    values: Dict[str, List[str]] = {}
    for word in words:
        if word.startswith("--"):
            values[word] = []
        elif values:
            [*values.values()][-1].append(word)
    return values


def planned(words: List[str]) -> None:
    """All options are checked and the network is built, as large as it is, without memory."""
    from amos_fairseq.cli import dry_run

    with dry_run.instead_of_training(by_hydra=words[0] == "fairseq-hydra-train"), \
            mock.patch.object(dry_run, "costs", lambda *_: []):
        program(words)


def trained(words: List[str]) -> None:
    """Planned; then two updates of the smallest network. `...` are the other options of README.md's command."""
    if "..." in words:
        given, text = options_of(words), next(c.text for c in COMMANDS if c.text.startswith("fairseq-train data"))
        readme = options_of(words_of(text, Path()))
        others = [word for name in readme if name not in given for word in (name, *readme[name])]
        words = [word for word in words if word != "..."] + others
    options = options_of(words)
    replace(options["--save-dir"][0])
    small = [*words, "--arch", f"{options['--task'][0]}_tiny", *TINY]
    try:
        planned(small if "--init-checkpoint" in options else words)  # the earlier run here is small
    except SystemExit as ended:
        if ended.code:
            raise
    program(small)


def launched(words: List[str]) -> None:
    """torchrun reads its own options; what it would start is trained."""
    from torch.distributed.run import parse_args

    parse_args(words[1:])
    trained(words[words.index("fairseq-train") :])


def prepared(words: List[str]) -> None:
    """In blocks as short as the shortest of a documented training."""
    options = options_of(words)
    replace(options["--out"][0])
    size = [] if "--vocabulary" in options else ["--vocab-size", "300"]
    program([*words, *size, "--tokens-per-sample", "16", "--workers", "1"])


def finetuned(words: List[str]) -> None:
    """Every run has a made-up result."""
    from amos_fairseq.cli import finetune
    from amos_fairseq.finetune import labelled, results, sweep

    def carry_out(args, jobs, model, devices):
        for job in jobs:
            problem = labelled.read_problem(job.data)
            job.folder.mkdir(parents=True)
            scores = {"valid": dict.fromkeys(problem.metrics, 0.5)}
            result = (job.task, problem.kind, problem.metrics, job.setting, job.seed, scores, 9, 1.0)
            results.write(job.folder, results.Result(*result))
        return sweep.Outcome({}, False)

    if words[2] != "results":
        replace(options_of(words)["--out"][0])
    with mock.patch.object(finetune, "carry_out", carry_out):
        program(words)


def probed(words: List[str]) -> None:
    """As if this machine's documentation were a text of the page's folder."""
    paragraphs = Path("held_out.txt").read_text().split("\n\n")
    with mock.patch("amos_fairseq.demo.documentation.held_out_paragraphs", lambda: paragraphs):
        shallow(words)


def shallow(words: List[str]) -> None:
    """A network of two layers."""
    values = {"--layer": "1", "--layers": "0,1"}
    program([values.get(before, word) for before, word in zip(["", *words], words)])


def replace(path: str) -> None:
    """What the page's folder has in the place of what the command writes goes away."""
    if os.path.islink(path):
        os.unlink(path)
    else:
        shutil.rmtree(path, ignore_errors=True)


def submitted(words: List[str]) -> None:
    """The script prints its command, as on the nodes that Slurm would have given; with bash, on this machine."""
    from tests.slurm.conftest import Cluster

    at = next(number for number, word in enumerate(words) if word.startswith("slurm/"))
    asked, cluster = options_of(words[:at]), Cluster(Path(tempfile.mkdtemp()))
    (cluster.folder / "FOLDER").symlink_to(cluster.folder / "data")
    job = {}
    if words[0] == "sbatch":
        nodes = next((int(word[8:]) for word in asked if word.startswith("--nodes=")), 1)
        job = cluster.job(nodes)
    if array := next((word[8:] for word in asked if word.startswith("--array=")), None):
        first, last = array.split("-")
        job.update(SLURM_ARRAY_TASK_ID=last, SLURM_ARRAY_TASK_MIN=first, SLURM_ARRAY_TASK_MAX=last,
                   SLURM_ARRAY_TASK_COUNT=str(int(last) - int(first) + 1))
    made = cluster.run(words[at].removeprefix("slurm/"), *words[at + 1 :], DRY_RUN="1", **job)
    shutil.rmtree(cluster.folder.parent)
    assert made.stdout.count("amos-fairseq ") == 1 or made.returncode, made.stdout
    sys.exit(made.stderr or None if made.returncode else None)


def scripted(*others: str) -> Callable[[List[str]], None]:
    """The shell reads the script, and the options of the program that it starts are read."""
    def way(words):
        subprocess.run(["bash", "-n", words[1]], check=True)
        if others:
            parsed([*others, *words[2:]])
    return way


def collected(words: List[str]) -> None:
    """pytest finds tests by the words."""
    import pytest

    subprocess.run(["bash", "-n", words[1]], check=True)
    if words[2:]:
        sys.exit(pytest.main(["--collect-only", "--quiet", "-p", "no:cacheprovider", *words[2:]]))


def exported(words: List[str]) -> None:
    """By the shell; nothing else is to be seen of it."""
    assert not words


def installed(words: List[str]) -> None:
    """pip reads the options; it would download hours' worth."""
    from pip._internal.commands import create_command

    create_command("install").parse_args(words[words.index("install") + 1 :])


def starts_quickly(words: List[str]) -> None:
    subprocess.run(["bash", "-n", words[1]], check=True)
    replace(options_of(words).get("--out", [""])[0])
    stopped_at("amos_fairseq.cli.quickstart.make", ["amos-fairseq", "quickstart", *words[2:]])


# What is done, by the longest beginning of a command that is here.
WAYS: Dict[str, Callable[[List[str]], None]] = {
    "amos-fairseq ": program,
    "amos-fairseq prepare ": prepared,
    "amos-fairseq finetune ": finetuned,
    "amos-fairseq corpus ": functools.partial(stopped_at, "amos_fairseq.demo.documentation_tasks.write_tasks"),
    "amos-fairseq predict ": parsed,
    "amos-fairseq similarity ": shallow,
    "amos-fairseq probe ": probed,
    "fairseq-train ": trained,
    "fairseq-validate ": lambda words: program([*words, "--cpu"]),
    "torchrun ": launched,
    "fairseq-hydra-train ": planned,
    "python examples/": parsed,
    "python3 examples/": parsed,
    "python examples/benchmarks/attention_resources.py ": functools.partial(stopped_at, "triton.compile"),
    "python -m amos_fairseq.csrc.build cuda": functools.partial(stopped_at, "subprocess.run"),
    "bash examples/quickstart/run.sh": starts_quickly,
    "bash examples/benchmarks/gpu.sh ": scripted("python", f"{ROOT}/examples/benchmarks/gpu.py"),
    "bash examples/benchmarks/pack.sh ": scripted(),
    "bash tests/run.sh": collected,
    "sbatch ": submitted,
    "DRY_RUN=1 bash slurm/": submitted,
    "export PIP_CONSTRAINT=": exported,
    "pip install ": installed,
    "env -u CUDA_HOME pip install ": installed,
}
# What is right to be refused here, with words of the refusal.
REFUSALS = {
    "amos-fairseq minimal-pairs RUN --pairs ewok-core-1.0/ --scores one-pass ": "one-pass",  # which is SCRIPT's alone
    "amos-fairseq convert checkpoints ": "--rel-pos-bucketing released",  # which this run is not
    "python -m amos_fairseq.csrc.build cuda": "nvcc",
}


def way_of(text: str) -> Callable[[List[str]], None]:
    return WAYS[max(filter(in_repository(text).startswith, WAYS), key=len)]


def refusal_of(text: str) -> Optional[str]:
    return next((words for beginning, words in REFUSALS.items() if in_repository(text).startswith(beginning)), None)


def in_repository(text: str) -> str:
    return text.replace(f"{ROOT}/", "")


def run() -> None:
    """Arguments: the command, and the folder that it is typed in."""
    text, folder = sys.argv[1:]
    os.chdir(folder)
    import amos_fairseq

    # fairseq refuses a second package of that name, by its path: this link is the one that is imported already.
    amos_fairseq.__path__.append(os.path.join(folder, "amos_fairseq"))
    if "\n" in text:
        exec(text, dict(model=amos_fairseq.from_pretrained("RUN"), texts=Path("held_out.txt").read_text().splitlines()))
    else:
        way_of(text)(words_of(text, Path(folder)))
