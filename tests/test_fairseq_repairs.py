"""Each repair of fairseq: what goes wrong without it, what happens with it, and that it knows the source it repairs."""
import inspect
import os
import pickle
import random
import re
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import torch

pytest.importorskip("fairseq")
from fairseq import checkpoint_utils, models, options, tasks, utils  # noqa: E402
from fairseq.data import Dictionary, indexed_dataset  # noqa: E402
from fairseq.dataclass.configs import DistributedTrainingConfig  # noqa: E402
from fairseq.dataclass.utils import convert_namespace_to_omegaconf  # noqa: E402
from fairseq.distributed import utils as distributed_utils  # noqa: E402
from fairseq.trainer import Trainer  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402

from amos_fairseq import fairseq_repairs  # noqa: E402
from amos_fairseq.random import mixed_seed  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[1]
PLUGIN = Path(__file__).parent / "repairs" / "repaired_plugin"
OPTIONS = """
    --arch roberta_base --criterion masked_lm --encoder-layers 1 --encoder-embed-dim 8 --encoder-ffn-embed-dim 8
    --encoder-attention-heads 1 --dropout 0 --attention-dropout 0 --tokens-per-sample 16 --sample-break-mode none
    --batch-size 1 --required-batch-size-multiple 1 --optimizer adam --lr 0.01 --lr-scheduler fixed --num-workers 0
    --log-interval 1 --log-format json --cpu --seed 1
""".split()


@pytest.fixture(scope="module", autouse=True)
def repaired():
    utils.import_user_module(Namespace(user_dir=str(PLUGIN)))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """15 lines of 7 tokens, which make seven blocks of 15: an odd number of micro-batches for two ranks."""
    folder, draw, dictionary = tmp_path_factory.mktemp("corpus"), random.Random(0), Dictionary()
    words = [f"word{i}" for i in range(20)]
    for word in words:
        dictionary.add_symbol(word)
    dictionary.save(str(folder / "dict.txt"))
    for split, lines in ("train", 15), ("valid", 3):
        builder = indexed_dataset.make_builder(str(folder / f"{split}.bin"), "mmap", vocab_size=len(dictionary))
        for _ in range(lines):
            builder.add_item(dictionary.encode_line(" ".join(draw.choices(words, k=6)), add_if_not_exist=False))
        builder.finalize(str(folder / f"{split}.idx"))
    return str(folder)


def run(*command):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def training_config(corpus, *more):
    parser = options.get_training_parser()
    return convert_namespace_to_omegaconf(
        options.parse_args_and_arch(parser, [corpus, "--task", "printing_masked_lm", *OPTIONS, *more])
    )


# install()

def test_every_repair_knows_the_source_of_the_installed_fairseq():
    assert len(fairseq_repairs.REPAIRS) == 8
    for target, (source, _) in fairseq_repairs.REPAIRS.items():
        assert fairseq_repairs.checked_original(target, source)


@pytest.mark.parametrize("target", ["fairseq.trainer:Trainer._set_seed", "fairseq.trainer:gone", "fairseq.gone:f"])
def test_an_unknown_source_is_refused_with_version_function_and_remedy(target):
    with pytest.raises(RuntimeError) as refusal:
        fairseq_repairs.checked_original(target, "0000")
    message = str(refusal.value)
    assert target in message and "fairseq-fixed 0." in message and "pip install fairseq-fixed==0.12.3.1" in message
    assert "\n" not in message


def test_one_changed_function_leaves_all_of_fairseq_as_it_was(monkeypatch):
    monkeypatch.setattr(fairseq_repairs, "_installed", False)
    monkeypatch.setitem(fairseq_repairs.REPAIRS, "fairseq.trainer:Trainer.valid_step", ("0000", None))
    before = Trainer._set_seed
    with pytest.raises(RuntimeError):
        fairseq_repairs.install()
    assert Trainer._set_seed is before


def test_installing_twice_changes_nothing():
    before = Trainer.train_step
    fairseq_repairs.install()
    assert Trainer.train_step is before


# --bf16

@pytest.mark.parametrize(
    "flags, tpu", [(["--bf16"], False), (["--memory-efficient-bf16"], False), (["--bf16", "--tpu"], True), ([], False)]
)
def test_bf16_asks_for_a_tpu_only_with_tpu(flags, tpu):
    def parse(function):
        return function(options.get_training_parser(), ["data", "--task", "masked_lm", *OPTIONS, *flags])

    assert parse(options.parse_args_and_arch.__wrapped__).tpu == bool(flags)  # fairseq: always
    assert parse(options.parse_args_and_arch).tpu == tpu
    assert parse(options.parse_args_and_arch).bf16 == bool(flags)


# Checkpoints

@pytest.fixture(scope="module")
def checkpoint(corpus, tmp_path_factory):
    """What fairseq-train --bf16 writes for an architecture without dataclass."""
    folder = tmp_path_factory.mktemp("checkpoint")
    arguments = [corpus, "--task", "printing_masked_lm", *OPTIONS, "--save-dir", str(folder), "--max-update", "1"]
    run("-m", "fairseq_cli.train", *arguments, "--user-dir", str(PLUGIN), "--bf16")
    return str(folder / "checkpoint_last.pt")


@pytest.fixture
def nothing_allowed():
    """torch's list of harmless classes as a new process has it: without those that a repair entered before."""
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    yield
    torch.serialization.add_safe_globals(allowed)


@pytest.mark.skipif(torch.__version__ < "2.6", reason="torch.load trusted every file")
def test_fairseq_cannot_load_its_checkpoint(checkpoint, nothing_allowed):
    with pytest.raises(pickle.UnpicklingError):
        checkpoint_utils.load_checkpoint_to_cpu.__wrapped__(checkpoint)


def test_checkpoint_of_an_architecture_without_dataclass_loads(checkpoint, nothing_allowed):
    assert isinstance(checkpoint_utils.load_checkpoint_to_cpu(checkpoint)["cfg"].model, Namespace)
    (model,), config, _ = checkpoint_utils.load_model_ensemble_and_task([checkpoint])  # fairseq-validate and hub
    assert config.common.bf16 and not config.common.tpu
    assert model.encoder.sentence_encoder.embed_tokens.embedding_dim == 8


def write_checkpoint(path, content):
    optimizer_history = [{"num_updates": 1, "optimizer_name": "", "criterion_name": "", "lr_scheduler_state": {}}]
    extra_state = {"train_iterator": {"epoch": 1}, "content": content}
    torch.save({"model": {}, "optimizer_history": optimizer_history, "extra_state": extra_state}, path)
    return str(path)


@pytest.mark.parametrize("value", [numpy.float64(1.5), numpy.float32(2.5), numpy.int64(3), numpy.bool_(True)], ids=repr)
def test_checkpoint_with_a_logged_numpy_scalar_loads(tmp_path, nothing_allowed, value):
    path = write_checkpoint(tmp_path / "checkpoint.pt", value)
    assert checkpoint_utils.load_checkpoint_to_cpu(path)["extra_state"]["content"] == value


class Runs:
    """Pickled, this is a call of `function`."""
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("function", [os.mkdir, exec, Path.mkdir, subprocess.call, getattr], ids=lambda f: f.__name__)
def test_checkpoint_that_would_run_code_is_refused_in_one_line(tmp_path, monkeypatch, function):
    target = tmp_path / "ran"
    arguments = {exec: (f"import os; os.mkdir({str(target)!r})",), subprocess.call: (["mkdir", str(target)],)}
    path = write_checkpoint(tmp_path / "checkpoint.pt", Runs(function, *arguments.get(function, (str(target),))))
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(RuntimeError, match="checkpoint.pt is refused") as refusal:
        checkpoint_utils.load_checkpoint_to_cpu(path)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 300 + len(path)
    assert not target.exists()


# Random numbers

def test_mixed_seed_depends_on_every_number_and_on_their_order():
    inputs = [(1, 10), (2, 9), (10, 1), (1, 1, 0), (11, 0), (1,), (1, 10, 0), (1, 10, 1), (-1, 10), (), (2**70, 1)]
    seeds = [mixed_seed(*numbers) for numbers in inputs]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert mixed_seed(1, 10) == mixed_seed(numpy.int64(1), torch.tensor(10)) == 2209474073626724394
    with pytest.raises(TypeError):
        mixed_seed(1.5)


def test_mixed_seed_uses_all_bits():
    seeds = [mixed_seed(1, update) for update in range(1000)]
    shares = [sum(seed >> bit & 1 for seed in seeds) / 1000 for bit in range(63)]
    assert min(shares) > 0.4 and max(shares) < 0.6


def first_draw(set_seed, seed, update, rank):
    common = SimpleNamespace(seed=seed)
    trainer = SimpleNamespace(
        cfg=SimpleNamespace(common=common), get_num_updates=lambda: update, data_parallel_rank=rank
    )
    set_seed(trainer)
    return torch.rand(()).item()


def test_noise_differs_between_ranks_seeds_and_updates_and_repeats():
    cases = [(1, 10, 0), (1, 10, 1), (2, 9, 0), (1, 11, 0)]
    assert len({first_draw(Trainer._set_seed.__wrapped__, *case) for case in cases[:3]}) == 1  # fairseq: all alike
    assert len({first_draw(Trainer._set_seed, *case) for case in cases}) == 4
    assert [first_draw(Trainer._set_seed, *case) for case in cases * 2][4:] == [
        first_draw(Trainer._set_seed, *case) for case in cases
    ]


# torchrun

def inferred(infer, monkeypatch, gpus, world_size, **options):
    environment = {"MASTER_ADDR": "node1", "MASTER_PORT": "29500", "WORLD_SIZE": str(world_size), "RANK": "11"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    config = OmegaConf.structured(DistributedTrainingConfig(distributed_world_size=max(1, gpus)))  # the default
    OmegaConf.update(config, "tpu", False)
    for name, value in options.items():
        config[name] = value
    infer(config)
    return config


@pytest.mark.parametrize("gpus, device", [(0, 0), (1, 0), (8, 3)], ids=["CPU", "1 GPU per process", "8 GPUs per node"])
def test_torchrun_starts_one_training_of_all_processes(monkeypatch, gpus, device):
    config = inferred(distributed_utils.infer_init_method, monkeypatch, gpus, 16)
    assert (config.distributed_world_size, config.distributed_rank, config.device_id) == (16, 11, device)
    assert config.distributed_init_method == "env://" and config.distributed_no_spawn
    theirs = inferred(distributed_utils.infer_init_method.__wrapped__, monkeypatch, gpus, 16)
    alone = theirs.distributed_init_method is None and theirs.distributed_world_size == 1
    assert alone == (gpus < 2)
    if not alone:
        assert theirs.device_id == device


def test_torchrun_of_one_process_and_a_given_init_method_stay_with_fairseq(monkeypatch):
    assert inferred(distributed_utils.infer_init_method, monkeypatch, 1, 1).distributed_init_method is None
    given = inferred(distributed_utils.infer_init_method, monkeypatch, 1, 16, distributed_init_method="tcp://a:1")
    assert given.distributed_init_method == "tcp://a:1" and given.distributed_world_size == 1


@pytest.mark.parametrize(
    "cpu, cuda, asked, backend",
    [(True, True, "nccl", "gloo"), (False, False, "nccl", "gloo"), (False, True, "nccl", "nccl"),
     (True, False, "mpi", "mpi")],
)
def test_cpu_processes_use_gloo_instead_of_nccl(monkeypatch, cpu, cuda, asked, backend):
    class Asked(Exception):
        pass

    def init_process_group(backend, **_):
        raise Asked(backend)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.distributed, "init_process_group", init_process_group)
    config = OmegaConf.create({
        "common": {"cpu": cpu, "tpu": False},
        "distributed_training": {
            "distributed_backend": asked, "distributed_init_method": "env://", "distributed_rank": 0,
            "distributed_world_size": 2,
        },
    })
    with pytest.raises(Asked, match=backend):
        distributed_utils.distributed_init(config)


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", world_size=1, rank=0)
    yield torch.distributed.group.WORLD
    torch.distributed.destroy_process_group()


def test_default_ddp_backend_takes_a_model_on_cpu(process_group):
    arguments = OmegaConf.structured(DistributedTrainingConfig()), torch.nn.Linear(2, 1), process_group
    OmegaConf.update(arguments[0], "tpu", False)
    OmegaConf.update(arguments[0], "fp16", False)
    with pytest.raises(ValueError, match="device_ids"):
        models.DistributedFairseqModel.__wrapped__(*arguments, torch.device("cpu"))
    wrapped = models.DistributedFairseqModel(*arguments, torch.device("cpu"))
    assert isinstance(wrapped.module, torch.nn.parallel.DistributedDataParallel)
    assert wrapped(torch.ones(1, 2)).shape == (1, 1)


# Empty micro-batches

def after_one_update(corpus, train_step, micro_batches):
    """The tiny model's weights after one update on the named micro-batches; None is an empty one."""
    config = training_config(corpus, "--optimizer", "sgd")
    utils.set_torch_seed(1)
    task = tasks.setup_task(config.task)
    trainer = Trainer(config, task, task.build_model(config.model), task.build_criterion(config.criterion))
    batches = list(trainer.get_train_iterator(epoch=1).next_epoch_itr(shuffle=False))
    task.sizes = None
    train_step(trainer, [{} if index is None else batches[index] for index in micro_batches])
    return torch.nn.utils.parameters_to_vector(trainer.model.parameters()).detach(), task.sizes


def test_an_empty_micro_batch_changes_nothing_wherever_it_is(corpus):
    expected, _ = after_one_update(corpus, Trainer.train_step, [0, 1])
    for micro_batches in [0, 1, None], [0, None, 1], [None, 0, None, 1]:
        weights, sizes = after_one_update(corpus, Trainer.train_step, micro_batches)
        torch.testing.assert_close(weights, expected, rtol=0, atol=0)
        assert sizes == [0] * (len(micro_batches) - 2) + [1, 1]  # what begin_update(samples, device) saw
    theirs, _ = after_one_update(corpus, Trainer.train_step.__wrapped__, [0, 1, None])
    assert (theirs - expected).abs().max() > 1e-3  # a step longer by the sample size


def test_real_micro_batches_keep_their_order(corpus):
    seen = []
    trainer = SimpleNamespace(task=SimpleNamespace(begin_update=lambda samples, device: seen.append((samples, device))))
    trainer.device = torch.device("cpu")
    with pytest.raises(AttributeError):  # fairseq's own part needs a real trainer
        Trainer.train_step(trainer, [{"id": 3}, None, {"id": 1}, {}, {"id": 2}])
    assert seen == [([None, {}, {"id": 3}, {"id": 1}, {"id": 2}], torch.device("cpu"))]


def test_train_step_still_aggregates_its_metrics():
    assert inspect.unwrap(Trainer.train_step) is not Trainer.train_step.__wrapped__  # the decorator is inside


# Two processes, end to end

def micro_batches(output):
    """{(rank, update): (sizes, random numbers)} of what the plugin printed."""
    found = {}
    for rank, update, sizes, number in re.findall(r"micro-batch (\d+) (\d+) (\[.*?\]) (\S+)", output):
        found.setdefault((int(rank), int(update)), (sizes, []))[1].append(float(number))
    return found


def test_two_processes_train_one_model_and_resume(corpus, tmp_path):
    """Seven micro-batches of one block each, two ranks, two micro-batches per update: the epoch ends with 2 + 1."""
    def train(*more):
        return run(
            "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "fairseq_cli.train",
            corpus, "--user-dir", str(PLUGIN), "--task", "printing_masked_lm", *OPTIONS, "--update-freq", "2",
            "--save-dir", str(tmp_path), "--no-epoch-checkpoints", "--disable-validation", *more,
        )

    through = train("--max-update", "4", "--save-interval-updates", "3")
    batches = micro_batches(through)
    logged = re.findall(r'"bsz": "(\d+)", "num_updates": "(\d)"', through)
    assert logged[:2] == [("4", "1"), ("3", "2")]  # one training, and the odd micro-batch of the second update counts
    assert sorted(batches[rank, 1][0] for rank in range(2)) == ["[0, 1]", "[1, 1]"]
    assert sorted(batches) == [(rank, update) for rank in range(2) for update in range(4)]
    numbers = [number for _, drawn in batches.values() for number in drawn]
    assert len(set(numbers)) == len(numbers) == 16

    resumed = train("--max-update", "4", "--restore-file", str(tmp_path / "checkpoint_2_3.pt"))
    assert "Loaded checkpoint" in resumed
    assert micro_batches(resumed) == {key: batches[key] for key in batches if key[1] == 3}
