"""Every command of the documentation runs as typed: see tests/documented.py."""

import json

import pytest

from amos_fairseq.data.fast_tokenizer import train_fast
from amos_fairseq.export.huggingface import import_transformers
from tests.documented import COMMANDS, ROOT, way_of
from tests.finetune.test_glue import FILES

TABLE = "sentence\tlabel\tclass\nthe first\ta\t0\nand another\tb\t1\n" * 40
REPOSITORY = "amos_fairseq", "examples", "slurm", "tests"  # what commands name of it
QUESTIONS = {"version": "v2.0", "data": [{"title": "t", "paragraphs": [{"context": "the first of them", "qas": [
    {"id": "a", "question": "which?", "answers": [{"text": "first", "answer_start": 4}], "is_impossible": False},
]}]}]}


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


@pytest.fixture(scope="module")
def stories(request, text, launch, tmp_path_factory):
    """What becomes of each command, of the pages that tests are run of; README.md's run is what others look at."""
    pages = {item.callspec.params["command"].page for item in request.session.items if "stories" in item.fixturenames}
    told = [command for command in COMMANDS if command.page in pages | {"README.md"}]
    given, top = tmp_path_factory.mktemp("given"), tmp_path_factory.mktemp("stories")
    words = text.read_text()
    for name in ("text", "my_text", "corpus", "domain"):
        (given / name).mkdir()
        (given / name / "text.txt").write_text(words * (80 if name == "my_text" else 1))
    for name in ("GLUE", "glue"):
        for file, content in FILES.items():
            (given / name / file).parent.mkdir(parents=True, exist_ok=True)
            (given / name / file).write_bytes(content.encode())
    for name in ("a.tsv", "b.tsv", "train.tsv", "valid.tsv"):
        (given / name).write_text(TABLE)
    for name in ("train-v2.0.json", "dev-v2.0.json"):
        (given / name).write_text(json.dumps(QUESTIONS))
    for name in ("sentences.txt", "held_out.txt", "TEXT"):
        (given / name).write_text(words * 20)
    (given / "PATH").write_text(words * 80)
    for name in ("FOLDER", "bert-base-uncased"):
        stock_folder(given / name, text)
    jobs = []
    for page in dict.fromkeys(command.page for command in told):
        folder = top / page.replace("/", "-")
        folder.mkdir()
        for path in given.iterdir():
            (folder / path.name).symlink_to(given / "GLUE" if (page, path.name) in GLUE else path)
        for name in REPOSITORY:
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


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: f"{command.page}: {command.text[:60]}")
def test_command_runs_as_typed(command, stories):
    status, out, err, *_ = stories[command]
    refusal = "\n" not in command.text and way_of(command.text)[1]
    assert status == 0 or refusal and refusal in err.splitlines()[-1], (out + err)[-3000:]
