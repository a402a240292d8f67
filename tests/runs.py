"""A corpus, and fairseq's commands run on it by method name with tiny models; for all tests of a process."""

import contextlib
import functools
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Dict, List, NamedTuple

import pytest

from amos_fairseq import run_log
from amos_fairseq.methods import size_options

REPOSITORY = Path(__file__).resolve().parents[1]
USER_DIR = REPOSITORY / "amos_fairseq"
AMOS_FAIRSEQ = "amos_fairseq.cli.main:main"  # for `launch`

# Options by the group of fairseq's configuration that they belong to; `_name` is the option that selects the group.
OPTIONS = {
    "common": dict(cpu=True, log_format="json", log_interval=1, seed=3),
    "dataset": dict(batch_size=8, required_batch_size_multiple=1, num_workers=0),
    "optimization": dict(max_update=8, lr=[0.002]),
    "optimizer": dict(_name="adam", adam_betas="(0.9,0.98)"),
    "lr_scheduler": dict(_name="polynomial_decay", warmup_updates=2, total_num_update=20),
}
TASK = dict(tokens_per_sample=32)
MODEL = dict(
    encoder_layers=1,
    encoder_embed_dim=16,
    encoder_ffn_embed_dim=32,
    encoder_attention_heads=2,
    max_positions=32,
    rel_pos_buckets=8,
    rel_pos_max_distance=16,
)
GENERATOR = {
    "amos_rtd": dict(generator_depths=[1, 2]),
    "teams_mws": dict(generator_layers=2),
    "peer_tqr": dict(generator_layers=2),
    "electra_rtd": dict(generator_embed_dim=8),
}


class Outcome(NamedTuple):
    codes: List[int]
    out: List[str]
    err: List[str]

    @property
    def log(self) -> run_log.RunLog:
        """Of the first process, which is the one that logs."""
        return run_log.parse(self.out[0].splitlines())


@pytest.fixture(scope="session")
def launch(tmp_path_factory):
    """launch(function, arguments, processes=1, fails=False, folder=None): its Outcome; None is a new folder."""
    pytest.importorskip("fairseq")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "HYDRA_FULL_ERROR": "1"}
    environment.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
    errors = tmp_path_factory.mktemp("launcher") / "err"
    with open(errors, "w") as stderr:
        launcher = subprocess.Popen(
            [sys.executable, str(REPOSITORY / "tests/training/launcher.py")], env=environment, stderr=stderr, **pipes
        )

    def launch(function, arguments, processes=1, fails=False, folder=None):
        streams = tmp_path_factory.mktemp("job")
        job = dict(function=function, arguments=[str(a) for a in arguments], processes=processes, fails=fails)
        job["streams"], job["folder"] = str(streams), str(folder or streams)
        launcher.stdin.write(json.dumps(job) + "\n")
        answer = launcher.stdout.readline()
        assert answer, errors.read_text()
        outputs = ([read(streams / f"{rank}.{kind}") for rank in range(processes)] for kind in ("out", "err"))
        outcome = Outcome(json.loads(answer), *outputs)
        report = "\n".join(text[-3000:] for text in outcome.out + outcome.err)
        assert all(outcome.codes) if fails else not any(outcome.codes), report
        return outcome

    yield launch
    launcher.terminate()
    launcher.wait()


@pytest.fixture
def started(launch):
    """In the place of `processes.started`: what a fork of `launch` makes of the arguments, ended when it is yielded."""
    @contextlib.contextmanager
    def started(arguments, log, jobs=1, pass_fds=(), function=AMOS_FAIRSEQ):
        outcome = launch(function, arguments)
        with open(log, "a") as stream:
            stream.write(outcome.out[0] + outcome.err[0])
        yield SimpleNamespace(returncode=0, wait=int, poll=int, terminate=int)

    return started


def read(stream):
    """Without what triton's bindings say at the end of a fork, in which they are never freed."""
    return stream.read_text().partition("nanobind: leaked")[0]


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """Documents of sentences from a seeded grammar: each noun has its own adjectives, each verb its own objects."""
    draw = random.Random(1)
    words = ["".join(draw.choice("bdfgklmnprst") + draw.choice("aeiou") for _ in range(3)) for _ in range(300)]
    nouns, verbs, adjectives = words[:120], words[120:200], words[200:]

    def sentence():
        subject, verb = draw.randrange(len(nouns)), draw.randrange(len(verbs))
        parts = [adjectives[(subject * 7 + draw.randrange(3)) % len(adjectives)], nouns[subject], verbs[verb]]
        return " ".join(["the", *parts, "the", nouns[(verb * 5 + draw.randrange(4)) % len(nouns)]]) + "."

    documents = ["\n".join(sentence() for _ in range(draw.randint(1, 7))) for _ in range(26)]
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n".join(documents) + "\n")
    return path


@pytest.fixture(scope="session")
def corpus(text):
    """Blocks of up to 32 tokens whose lengths differ; their number leaves the last batch of an epoch ragged."""
    from amos_fairseq.data.preparation import prepare

    out = text.with_name("prepared")
    prepare(
        [str(text)], str(out), vocab_size=300, tokens_per_sample=32, documents_whole=True, valid_fraction=0.2, workers=1
    )
    return str(out)


def flags(options: Dict[str, object]) -> List[str]:
    """Options as fairseq's command line spells them; None leaves one out."""
    arguments = []
    for name, value in options.items():
        if value is None:
            continue
        if isinstance(value, list):
            value = ",".join(map(str, value))
        arguments += ["--" + name.replace("_", "-"), *([] if value is True else [str(value)])]
    return arguments


@pytest.fixture(scope="session")
def arguments(corpus):
    """arguments(name, **options): a tiny run of the named method on the corpus; options replace or add."""

    def arguments(name, **options):
        named = {group: group_options["_name"] for group, group_options in OPTIONS.items() if "_name" in group_options}
        for group_options in OPTIONS.values():
            named.update({key: value for key, value in group_options.items() if key != "_name"})
        named.update(user_dir=USER_DIR, task=name, arch=f"{name}_tiny", criterion=name)
        named.update(**TASK, **MODEL, **GENERATOR.get(name, {}))
        named.update(options)
        return [str(named.pop("data", corpus)), *flags(named)]

    return arguments


@pytest.fixture(scope="session")
def yaml_config(corpus):
    """yaml_config(name): the same run as fairseq-hydra-train's configuration, which knows no architectures."""

    def yaml_config(name):
        config = {group: dict(group_options) for group, group_options in OPTIONS.items()}
        config["common"]["user_dir"] = str(USER_DIR)
        config["task"] = dict(_name=name, data=corpus, **TASK)
        config["model"] = {"_name": name, **size_options(name, "tiny"), **MODEL, **GENERATOR.get(name, {})}
        config["criterion"] = dict(_name=name)
        return config

    return yaml_config


class Training(NamedTuple):
    folder: Path
    outcome: Outcome


@pytest.fixture(scope="session")
def training(launch, arguments, tmp_path_factory):
    """training(name, processes): 8 updates with dropout, of the same size for 1 and 2 processes; saves every 3."""

    @functools.cache
    def training(name, processes=1):
        folder = tmp_path_factory.mktemp("training")
        options = dict(batch_size=8 // processes, save_interval_updates=3, save_dir=folder)
        return Training(folder, launch("fairseq_cli.train:cli_main", arguments(name, **options), processes))

    return training


@pytest.fixture(scope="session")
def user_dir():
    return USER_DIR
