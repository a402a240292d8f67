"""Every command of the documentation runs as typed: see tests/documented.py."""

import argparse
import dataclasses
import importlib
import json
import random
import re
import shlex

import pytest

from amos_fairseq.cli import main
from amos_fairseq.cli.prepare import train_command
from amos_fairseq.data.fast_tokenizer import train_fast
from amos_fairseq.data.manifest import load_manifest_for
from amos_fairseq.export.huggingface import import_transformers
from tests.analysis.test_minimal_pairs import BLIMP, EWOK
from tests.analysis.test_similarity import write_beir
from tests.documented import COMMANDS, PAGES, ROOT, Command, refusal_of, way_of
from tests.finetune.test_glue import FILES
from tests.runs import AMOS_FAIRSEQ

TABLE = "sentence\tlabel\tclass\n" + "".join(f"the {row}\t{'ab'[row % 2]}\t{row % 2}\n" for row in range(60))
REPOSITORY = "amos_fairseq", "examples", "slurm", "tests"  # what commands name of it
QUESTIONS = {"version": "v2.0", "data": [{"title": "t", "paragraphs": [{"context": "the first of them", "qas": [
    {"id": "a", "question": "which?", "answers": [{"text": "first", "answer_start": 4}], "is_impossible": False},
]}]}]}


ELSEWHERE = [
    Command("elsewhere", re.sub(r"(?<![\w/.-])(\$PWD/)?(?=(examples|tests)/|amos_fairseq( |$))", f"{ROOT}/", text))
    for text in {way_of(text): text for page, text in COMMANDS if re.search(r"\b(amos_fairseq|examples|tests)\b", text)
                 and "slurm/" not in text and "\n" not in text}.values()
]
NBEST = "a\t-3\tthe first\na\t-1\tthe last\nb\t-2\tanother\n"
LABELS = "neutral", "contradiction"
GLUE = {("examples/finetune/README.md", "FOLDER")}


def stock_folder(folder, text):
    """A BERT of the size of our tiny models, with a tokenizer of the text."""
    transformers = import_transformers()
    fast = json.loads(train_fast(text.read_text().splitlines(), "wordpiece", 300, uncased=True).model)
    shape = dict(vocab_size=300, hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=512)
    transformers.BertForMaskedLM(transformers.BertConfig(pad_token_id=0, **shape)).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(fast["tokenizer"]))
    roles = dict(cls_token="bos", sep_token="eos", pad_token="pad", unk_token="unk", mask_token="mask")
    names = {key: fast["roles"][role] for key, role in roles.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", **names}))


def write_judged(folder):
    """What the guide to judging takes for granted."""
    for name, lines in (("blimp/data", BLIMP), ("ewok-core-1.0", EWOK)):
        (folder / name).mkdir(parents=True)
        (folder / name / "pairs.jsonl").write_text(json.dumps(lines) + "\n")
    write_beir(folder / "scifact")
    stars = "".join(f"{'good' if row % 2 else 'bad'} {row}\t{row % 2}\n" for row in range(60))
    pairs = "".join(f"the {row}\tthe {row % 3}\t{row}\n" for row in range(9))
    for name, content in {
        "sts-dev.tsv": f"sentence1\tsentence2\tscore\n{pairs}", **dict.fromkeys(["test.tsv", "dev.tsv"], NBEST),
        "reviews.tsv": "text\tstars\n" + stars, "pos.conll": stars.replace(" ", "").replace("\n", "\n\n"),
        **dict.fromkeys(["test.ref", "dev.ref"], "a\tthe first\nb\tanother\n"),
        **dict.fromkeys(["train.conll", "dev.conll", "test.conll"], "the O\nfirst B-X\n\nand O\nanother B-X\n\n" * 9),
    }.items():
        (folder / name).write_text(content)


@pytest.fixture(scope="module")
def stories(request, text, launch, tmp_path_factory):
    """What becomes of each command, of the pages that tests are run of; README.md's run is what others look at."""
    pages = {item.callspec.params["command"].page for item in request.session.items if "stories" in item.fixturenames}
    told = [command for command in COMMANDS + ELSEWHERE if command.page in pages | {"README.md"}]
    given, top = tmp_path_factory.mktemp("given"), tmp_path_factory.mktemp("stories")
    words = text.read_text() + "\n" + "yes maybe no\n" * 80  # each a token, for prompts
    for name in ("text", "my_text", "corpus", "domain"):
        (given / name).mkdir()
        (given / name / "text.txt").write_text(words * (80 if name == "my_text" else 1))
    for name in ("GLUE", "glue"):
        for file, content in FILES.items():
            (given / name / file).parent.mkdir(parents=True, exist_ok=True)
            header, *rows = content.splitlines(keepends=True)
            examples = [*rows, *(row.replace("entailment", label) for row in rows for label in LABELS)] * 40
            (given / name / file).write_text(header + "".join(examples if file == "MNLI/train.tsv" else rows))
    for name in ("a.tsv", "b.tsv", "train.tsv", "valid.tsv"):
        (given / name).write_text(TABLE)
    for name in ("train-v2.0.json", "dev-v2.0.json"):
        (given / name).write_text(json.dumps(QUESTIONS))
    (given / "sentences.txt").write_text("The first sentence.\nAnother.\n")
    (given / "TEXT").write_text(words)
    draw = random.Random(1)
    syllables = [a + b for a in "bdfgk" for b in "aeiou"]
    sentences = (" ".join("".join(draw.sample(syllables, 2)) for _ in range(12)).capitalize() for _ in range(1200))
    (given / "held_out.txt").write_text("".join(f"{sentence}.\n\n" for sentence in sentences))
    (given / "tasks/probe").mkdir(parents=True)
    for split in ("train", "test"):
        (given / "tasks/probe" / f"{split}.tsv").write_text("the\t_\nfirst\tcode\n\nand\t_\nanother\ttext\n\n" * 20)
    (given / "PATH").write_text(words * 80)
    write_judged(given)
    for name in ("FOLDER", "bert-base-uncased"):
        stock_folder(given / name, text)
    jobs = []
    for page in dict.fromkeys(command.page for command in told):
        folder = top / page.replace("/", "-")
        folder.mkdir()
        for path in given.iterdir():
            (folder / path.name).symlink_to(given / "GLUE" if (page, path.name) in GLUE else path)
        for name in REPOSITORY if page != "elsewhere" else ():
            (folder / name).symlink_to(ROOT / name)
        if page != "README.md":
            for name in ("checkpoints", "RUN", "OTHER_RUN"):
                (folder / name).symlink_to(top / "README.md" / "checkpoints")
            (folder / "data").symlink_to(top / "README.md" / "data")
        else:
            for name in ("RUN", "OTHER_RUN"):
                (folder / name).symlink_to(folder / "checkpoints")
        jobs += [["tests.documented:run", [command.text, str(folder)]] for command in told if command.page == page]
    launch("tests.reliability.many:main", [json.dumps(jobs), top])
    return dict(zip(told, json.loads((top / "outcomes.json").read_text())))


@pytest.mark.parametrize("command", COMMANDS + ELSEWHERE, ids=lambda command: f"{command.page}: {command.text[:60]}")
def test_command_runs_as_typed(command, stories):
    """In the repository's folder; one of each kind in another, which the repository's path stands before."""
    status, out, err, *_ = stories[command]
    refusal = refusal_of(command.text)
    assert status == 0 or refusal and refusal in err, (out + err)[-3000:]


def test_every_command_of_a_bash_block_is_taken():
    """Counted otherwise: lines of bash blocks that neither go on the line before nor are comments."""
    for page in PAGES:
        blocks = page.read_text().split("```bash\n")[1:]
        lines = "".join(block.split("```")[0] for block in blocks).replace("\\\n", "").splitlines()
        shown = {" ".join(line.split()) for line in lines if line.strip() and not line.startswith("#")}
        taken = "\n".join(text for source, text in COMMANDS if source == str(page.relative_to(ROOT)))
        assert not [line for line in shown if line not in taken], page


@pytest.mark.parametrize("length", [32, 1024])
def test_what_prepare_suggests_trains_here(corpus, launch, length):
    """Two updates of it."""
    manifest, _ = load_manifest_for(corpus)
    printed = train_command(dataclasses.replace(manifest, tokens_per_sample=length), corpus, gpus=0)
    words = shlex.split(printed)[1:]
    outcome = launch(AMOS_FAIRSEQ, [*words, "--max-update", "2", "--log-format", "json", "--log-interval", "1"])
    assert [update["num_updates"] for update in outcome.log.train] == [1, 2]


@pytest.mark.parametrize("gpus, update_freq", [(1, 64), (2, 32), (8, 8), (128, 1)])
def test_what_prepare_suggests_has_the_papers_batch_on_any_number_of_gpus(corpus, gpus, update_freq):
    command = train_command(load_manifest_for(corpus)[0], corpus, gpus)
    assert f"--arch amos_rtd_base --criterion amos_rtd --batch-size 32 --update-freq {update_freq} --bf16 " in command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_within_sentences_have_programs_and_options_that_exist(page):
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for span in re.findall(r"`((?:amos-fairseq|python|bash) [^`]+)`", prose):
        program, name, *words = span.split()
        if program != "amos-fairseq":
            assert (ROOT / name).is_file(), span
        elif not name.startswith("-") and name != "train":  # whose options are fairseq's
            for command in name.split("|"):
                known = options_of(command)
                assert {word for word in words if word.startswith("--")} <= known, span


def options_of(command):
    assert command in main.COMMANDS
    parser = argparse.ArgumentParser()
    importlib.import_module(f"amos_fairseq.cli.{command.replace('-', '_')}").add_arguments(parser)
    parsers = [parser, *(sub for action in parser._actions if isinstance(action, argparse._SubParsersAction)
                         for sub in action.choices.values())]
    return {option for each in parsers for option in each._option_string_actions}
