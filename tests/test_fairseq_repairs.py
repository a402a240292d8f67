"""Each repair of fairseq: what goes wrong without it, what happens with it, and that it knows the source it repairs."""
import collections
import gc
import inspect
import multiprocessing
import os
import pickle
import random
import re
import signal
import subprocess
import threading
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import numpy
import omegaconf
import pytest
import torch

pytest.importorskip("fairseq")
import fairseq_cli.train  # noqa: E402
from fairseq import checkpoint_utils, models, options, tasks, utils  # noqa: E402
from fairseq.data import Dictionary, indexed_dataset  # noqa: E402
from fairseq.data.iterators import CountingIterator, EpochBatchIterator, FrozenBatchSampler  # noqa: E402
from fairseq.dataclass import utils as dataclass_utils  # noqa: E402
from fairseq.dataclass.configs import DatasetConfig, DistributedTrainingConfig  # noqa: E402
from fairseq.dataclass.utils import convert_namespace_to_omegaconf  # noqa: E402
from fairseq.distributed import utils as distributed_utils  # noqa: E402
from fairseq.logging import metrics  # noqa: E402
from fairseq.optim import OPTIMIZER_REGISTRY, FairseqOptimizer, FP16Optimizer  # noqa: E402
from fairseq.trainer import Trainer  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter  # noqa: E402

from amos_fairseq import fairseq_options, fairseq_repairs, supervision  # noqa: E402
from amos_fairseq.checkpoints import storage, store  # noqa: E402
from amos_fairseq.data.loading import end_epoch  # noqa: E402
from amos_fairseq.random import mixed_seed  # noqa: E402
from amos_fairseq.user_errors import Damaged  # noqa: E402

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


def training_config(corpus, *more):
    parser = options.get_training_parser()
    return convert_namespace_to_omegaconf(
        options.parse_args_and_arch(parser, [corpus, "--task", "printing_masked_lm", *OPTIONS, *more])
    )


# install()

def test_every_repair_knows_the_source_of_the_installed_fairseq():
    assert len(fairseq_repairs.REPAIRS) == 38
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


# Options; what they do in the programs: tests/reliability/test_bad_options.py

def test_total_num_update_is_max_update_unless_given():
    def parse(function, *more):
        command = ["data", "--task", "masked_lm", *OPTIONS, "--lr-scheduler", "polynomial_decay", *more]
        return function(options.get_training_parser(), command).total_num_update

    assert parse(options.parse_args_and_arch.__wrapped__, "--max-update", "7") is None
    assert parse(options.parse_args_and_arch, "--max-update", "7") == 7
    assert parse(options.parse_args_and_arch, "--max-update", "7", "--total-num-update", "9") == "9"


@pytest.mark.parametrize("text", ["(", "(" * 300, "[1,"])
def test_a_list_that_does_not_parse_is_a_value_error(text):
    with pytest.raises((SyntaxError, MemoryError)):
        dataclass_utils.eval_str_list.__wrapped__(text)
    with pytest.raises(ValueError):
        dataclass_utils.eval_str_list(text)
    assert dataclass_utils.eval_str_list("1,2.5") == [1.0, 2.5]


@pytest.mark.parametrize("values, words", [
    ({"num_worker": 1}, "num_worker is no option, did you mean num_workers?"),
    ({"num_workers": "many"}, "num_workers: Value 'many' of type 'str' could not be converted to Integer"),
])
def test_a_configuration_s_unknown_key_or_wrong_type_is_told(capsys, values, words):
    cfg = OmegaConf.create(values)
    with pytest.raises(omegaconf.errors.OmegaConfBaseException):
        dataclass_utils.merge_with_parent.__wrapped__(DatasetConfig(), cfg)
    with pytest.raises(SystemExit) as ended:
        dataclass_utils.merge_with_parent(DatasetConfig(), cfg)
    assert ended.value.code == os.EX_USAGE and capsys.readouterr().err == f"amos_fairseq: error: {words}\n"


def test_a_folder_for_checkpoints_is_looked_for_and_not_made(tmp_path, capsys):
    checkpoint_utils.verify_checkpoint_directory(str(tmp_path / "a" / "b"))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as ended:
        checkpoint_utils.verify_checkpoint_directory(str(tmp_path / "file" / "a"))
    assert ended.value.code == os.EX_USAGE
    folder = tmp_path / "file"
    assert capsys.readouterr().err == (
        f"amos_fairseq: error: save_dir {folder}/a: {folder} is no folder that can be written to\n"
    )
    checkpoint_utils.verify_checkpoint_directory.__wrapped__(str(tmp_path / "a" / "b"))
    assert (tmp_path / "a" / "b").is_dir()


# Checkpoints

@pytest.fixture(scope="module")
def checkpoint(corpus, launch, tmp_path_factory):
    """What fairseq-train --bf16 writes for an architecture without dataclass."""
    folder = tmp_path_factory.mktemp("checkpoint")
    arguments = [corpus, "--task", "printing_masked_lm", *OPTIONS, "--save-dir", str(folder), "--max-update", "1"]
    launch("fairseq_cli.train:cli_main", [*arguments, "--user-dir", str(PLUGIN), "--bf16"])
    return str(folder / "checkpoint_last")


@pytest.fixture(scope="module")
def file(checkpoint, tmp_path_factory):
    """The same in a file of fairseq's."""
    path = str(tmp_path_factory.mktemp("file") / "checkpoint_last.pt")
    torch.save(storage.read(Path(checkpoint)), path)
    return path


@pytest.fixture
def nothing_allowed():
    """torch's list of harmless classes as a new process has it: without those that a repair entered before."""
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    yield
    torch.serialization.add_safe_globals(allowed)


@pytest.mark.skipif(torch.__version__ < "2.6", reason="torch.load trusted every file")
def test_fairseq_cannot_load_its_checkpoint(file, nothing_allowed):
    with pytest.raises(pickle.UnpicklingError):
        checkpoint_utils.load_checkpoint_to_cpu.__wrapped__(file)


@pytest.mark.parametrize("kind", ["checkpoint", "file"])
def test_checkpoint_of_an_architecture_without_dataclass_loads(kind, nothing_allowed, request):
    path = request.getfixturevalue(kind)
    assert isinstance(checkpoint_utils.load_checkpoint_to_cpu(path)["cfg"].model, Namespace)
    (model,), config, _ = checkpoint_utils.load_model_ensemble_and_task([path])  # fairseq-validate and hub
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
    with pytest.raises(Damaged, match="checkpoint.pt is refused") as refusal:
        checkpoint_utils.load_checkpoint_to_cpu(path)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 300 + len(path)
    assert not target.exists()


@pytest.fixture
def trainer(corpus, tmp_path):
    """trainer(*options): of the tiny model, with its checkpoints in `tmp_path`."""
    def build(*more):
        config = training_config(corpus, "--save-dir", str(tmp_path), *more)
        task = tasks.setup_task(config.task)
        return Trainer(config, task, task.build_model(config.model), task.build_criterion(config.criterion))

    return build


def test_a_save_that_fails_leaves_the_earlier_checkpoint(trainer, tmp_path, monkeypatch):
    trainer = trainer()
    position = trainer.get_train_iterator(epoch=1)
    position.next_epoch_itr()

    def half_a_copy(source, target):
        Path(target).write_bytes(Path(source).read_bytes()[:100])
        raise OSError

    def nothing(path, chunks):
        raise OSError

    theirs, ours = checkpoint_utils.save_checkpoint.__wrapped__, checkpoint_utils.save_checkpoint
    for save in theirs, ours:
        save(trainer.cfg.checkpoint, trainer, position, 1.0)
    assert checkpoint_utils.load_checkpoint_to_cpu(str(tmp_path / "checkpoint_last.pt"))
    monkeypatch.setattr("shutil.copyfile", half_a_copy)
    with pytest.raises(OSError):
        theirs(trainer.cfg.checkpoint, trainer, position, 1.0)
    with pytest.raises(Damaged):  # the only one that fairseq resumes from
        checkpoint_utils.load_checkpoint_to_cpu(str(tmp_path / "checkpoint_last.pt"))
    monkeypatch.setattr(storage, "write_durably", nothing)
    monkeypatch.setattr(store, "SECONDS_BETWEEN_ATTEMPTS", ())
    with pytest.raises(SystemExit) as ended:
        ours(trainer.cfg.checkpoint, trainer, position, 1.0)
    assert ended.value.code == os.EX_IOERR
    assert checkpoint_utils.load_checkpoint_to_cpu(str(tmp_path / "checkpoint_last"))["extra_state"]["best"] == 1.0


def test_a_missing_checkpoint_ends_the_run_instead_of_training_from_scratch(trainer, tmp_path, capsys):
    trainer = trainer("--restore-file", str(tmp_path / "gone"))
    state, position = checkpoint_utils.load_checkpoint.__wrapped__(trainer.cfg.checkpoint, trainer)
    assert state is None and position.epoch == 1  # fairseq: from scratch
    with pytest.raises(SystemExit) as ended:
        checkpoint_utils.load_checkpoint(trainer.cfg.checkpoint, trainer)
    assert ended.value.code == os.EX_USAGE
    assert capsys.readouterr().err == f"amos_fairseq: error: {tmp_path / 'gone'} does not exist\n"


def test_half_as_many_processes_go_on_where_all_stood_in_the_data():
    def iterator(processes):
        dataset = torch.utils.data.TensorDataset(torch.arange(12))
        return EpochBatchIterator(dataset, list, [[index] for index in range(12)], num_shards=processes)

    read = iterator(2)
    batches = read.next_epoch_itr(shuffle=False)
    for _ in range(3):
        next(batches)
    states = [cls(read) for cls in (EpochBatchIterator.state_dict.__wrapped__, EpochBatchIterator.state_dict)]
    assert [state.get("samples_in_epoch") for state in states] == [None, 6]
    resumed = []
    for state in states:
        resumed.append(iterator(1))
        resumed[-1].load_state_dict(state)
    assert [one.iterations_in_epoch for one in resumed] == [3, 6]  # fairseq: reads three batches again


# Loader workers

@pytest.fixture
def epoch_iterator(monkeypatch):
    """epoch_iterator(buffer_size): over four batches, with two worker processes; who ended them is in `.threads`."""
    fairseq_repairs.install()
    shut_down, threads = _MultiProcessingDataLoaderIter._shutdown_workers, []

    def noted(self):
        threads.extend([] if self._shutdown else [threading.current_thread()])
        shut_down(self)

    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_shutdown_workers", noted)

    def epoch_iterator(buffer_size, length=4):
        batches = [[index] for index in range(length)]
        dataset = torch.utils.data.TensorDataset(torch.arange(length))
        return EpochBatchIterator(dataset, list, batches, num_workers=2, buffer_size=buffer_size)

    epoch_iterator.threads = threads
    return epoch_iterator


@pytest.mark.parametrize("buffer_size", [0, 1, 10])
@pytest.mark.parametrize("repaired", [True, False])
def test_the_workers_of_a_loader_end_with_the_last_batch(epoch_iterator, monkeypatch, buffer_size, repaired):
    if not repaired:
        monkeypatch.setattr(CountingIterator, "__next__", CountingIterator.__next__.__wrapped__)
    iterator, others = epoch_iterator(buffer_size), set(multiprocessing.active_children())
    batches, workers = iterator.next_epoch_itr(shuffle=False), []
    for number, batch in enumerate(batches):
        assert [index.item() for index, in batch] == [number]
        workers.append(len(set(multiprocessing.active_children()) - others))
    assert workers == [2, 2, 2, 0 if repaired else 2]
    assert epoch_iterator.threads == [threading.main_thread()] * repaired
    assert iterator.end_of_epoch()
    end_epoch(iterator)
    assert set(multiprocessing.active_children()) == others and len(epoch_iterator.threads) == 1


@pytest.mark.parametrize("buffer_size", [0, 1, 10])
def test_the_workers_of_an_epoch_that_is_left_early_end_when_told(epoch_iterator, buffer_size):
    iterator, others = epoch_iterator(buffer_size), set(multiprocessing.active_children())
    end_epoch(iterator)  # before it began
    next(iterator.next_epoch_itr(shuffle=False))
    assert len(set(multiprocessing.active_children()) - others) == 2
    for _ in range(2):
        end_epoch(iterator)
        assert set(multiprocessing.active_children()) == others
    assert epoch_iterator.threads == [threading.main_thread()]


@pytest.mark.parametrize("buffer_size", [0, 10])
@pytest.mark.parametrize("repaired", [True, False])
def test_validations_leave_no_descriptors_behind(epoch_iterator, monkeypatch, buffer_size, repaired):
    if not repaired:
        monkeypatch.setattr(FrozenBatchSampler, "__init__", FrozenBatchSampler.__init__.__wrapped__)
    gc.collect()
    gc.disable()  # whose full rounds are rare
    try:
        counts = []
        for _ in range(6):
            iterator = epoch_iterator(buffer_size)
            iterator.itself = iterator  # as what else refers to it in circles
            list(iterator.next_epoch_itr(shuffle=False))
            counts.append(len(os.listdir("/proc/self/fd")))
    finally:
        gc.enable()
        gc.collect()
    grown = (counts[-1] - counts[0]) / (2 * 2 + 2)  # by the pipes of so many loaders
    assert grown < 1 if repaired else grown > 3, counts


@pytest.mark.parametrize("buffer_size", [0, 1, 10])
def test_a_worker_that_is_killed_stops_the_run_after_the_batches_that_it_owed(epoch_iterator, monkeypatch, buffer_size):
    asked = []
    watch = SimpleNamespace(ask_to_stop=asked.append)
    monkeypatch.setattr(supervision, "current", lambda: SimpleNamespace(watch=watch))
    monkeypatch.setattr(torch.utils.data._utils.signal_handling, "_SIGCHLD_handler_set", True)  # as supervision does
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    others = set(multiprocessing.active_children())
    batches = epoch_iterator(buffer_size, length=100).next_epoch_itr(shuffle=False)
    drawn = [next(batches) for _ in range(3)]
    for child in set(multiprocessing.active_children()) - others:
        os.kill(child.pid, signal.SIGKILL)
    drawn += batches
    assert [index.item() for ((index,),) in drawn] == list(range(100))
    assert asked == ["a worker process of the data loader is gone"]
    assert set(multiprocessing.active_children()) == others


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


def test_the_process_that_starts_others_asks_nothing_of_its_gpus(monkeypatch, corpus):
    """Each context takes half a gigabyte, which the first process to train would miss."""
    def refuse(*_):
        raise AssertionError("CUDA is asked")

    started = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)  # torch counts by NVML
    for name in "is_available", "get_device_capability", "current_device", "_lazy_init":
        monkeypatch.setattr(torch.cuda, name, refuse)
    monkeypatch.setattr(torch.multiprocessing, "spawn", lambda **given: started.append(given["nprocs"]))
    monkeypatch.setattr(supervision, "check", lambda cfg: fairseq_options.check(cfg) or True)
    config = training_config(corpus, "--distributed-world-size", "2", "--max-update", "1")
    config.common.cpu = False
    distributed_utils.call_main(config, fairseq_cli.train.main)
    assert started == [2]


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
    metrics.reset()  # of what other tests of this process have logged under the same names
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


# Half precision

@pytest.fixture
def half_precision_optimizer(monkeypatch):
    """half_precision_optimizer(parameters, flat=True): fairseq's for --fp16 around SGD."""
    def build(parameters, flat=True):
        class Optimizer(FairseqOptimizer):
            def __init__(self, cfg, params):
                super().__init__(cfg)
                self._optimizer = torch.optim.SGD(params, lr=1.0)
                self._optimizer.supports_flat_params = True

        if not flat:
            Optimizer.supports_flat_params = False
        monkeypatch.setitem(OPTIMIZER_REGISTRY, "mine", Optimizer)
        cfg = OmegaConf.create(dict(
            optimizer=dict(_name="mine"), optimization=dict(update_freq=[1]),
            distributed_training=dict(distributed_world_size=1),
            common=dict(
                fp16_no_flatten_grads=False, fp16_scale_window=1, fp16_init_scale=1,
                fp16_scale_tolerance=0.0, threshold_loss_scale=None, min_loss_scale=1e-4,
            ),
        ))
        return FP16Optimizer.build_optimizer(cfg, parameters)

    monkeypatch.setattr(torch.cuda, "current_device", lambda: "cpu")
    return build


@pytest.mark.parametrize("flat, shapes", [(True, [(9,)]), (False, [(2, 3), (3,)])])
def test_fp16_joins_parameters_only_for_an_optimizer_that_supports_it(half_precision_optimizer, flat, shapes):
    parameters = [torch.nn.Parameter(torch.ones(size, dtype=torch.half)) for size in ((2, 3), (3,))]
    optimizer = half_precision_optimizer(parameters, flat)
    assert [parameter.shape for parameter in optimizer.fp32_optimizer.params] == shapes


@pytest.mark.parametrize("repaired", [True, False])
def test_half_precision_resumes_from_parameters_that_are_not_rounded(half_precision_optimizer, repaired):
    parameter = torch.nn.Parameter(torch.ones(2, dtype=torch.half))
    optimizer = half_precision_optimizer([parameter], flat=False)
    optimizer.fp32_params[0].data -= 1e-5  # too little for half precision
    resumed = half_precision_optimizer([parameter], flat=False)
    state = (FP16Optimizer.state_dict if repaired else FP16Optimizer.state_dict.__wrapped__)(optimizer)
    resumed.load_state_dict(state)
    assert torch.equal(resumed.fp32_params[0], optimizer.fp32_params[0]) == repaired


REPAIRED = ("zero_grad", "_sync_fp16_grads_to_fp32", "_sync_fp32_params_to_fp16")
SHAPES = [(2, 3), (3,), (), (4, 1), (5,)]


class Operations(TorchDispatchMode):
    """How many are called inside, by name; on a GPU each is a launch, one over a list a launch for many tensors."""

    def __init__(self):
        super().__init__()
        self.names = collections.Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


@pytest.fixture
def after_20_updates(half_precision_optimizer):
    """after_20_updates(): parameters in half precision, in fp32, norms, and the operations of one update."""
    def train():
        draw = torch.Generator().manual_seed(0)
        parameters = [torch.nn.Parameter(torch.randn(shape, generator=draw).half()) for shape in SHAPES]
        optimizer, norms = half_precision_optimizer(parameters, flat=False), []
        for _ in range(20):
            with Operations() as operations:
                optimizer.zero_grad()
                for parameter in parameters:
                    parameter.grad = torch.randn(parameter.shape, generator=draw).half()
                optimizer._needs_sync = True  # as after backward()
                optimizer.multiply_grads(0.5)
                norms.append(optimizer.clip_grad_norm(1.0).item())
                optimizer.step()
        return parameters, optimizer.fp32_params, norms, operations.names

    return train


def test_half_precision_trains_with_the_same_bits_in_a_few_operations(after_20_updates, monkeypatch):
    *found, operations = after_20_updates()
    for name in REPAIRED:
        monkeypatch.setattr(FP16Optimizer, name, getattr(FP16Optimizer, name).__wrapped__)
    monkeypatch.setattr(utils, "clip_grad_norm_", utils.clip_grad_norm_.__wrapped__)
    *expected, theirs = after_20_updates()
    assert found[2] == expected[2] and len(set(found[2])) == 20
    for tensors, same in zip(found[:2], expected[:2]):
        assert all(map(torch.equal, tensors, same))
    assert theirs["copy_"] == 2 * len(SHAPES) and theirs["zero_"] == theirs["linalg_vector_norm"] - 1 == len(SHAPES)
    assert (operations["_foreach_copy_"], operations["_foreach_norm"], operations["linalg_vector_norm"]) == (2, 1, 1)
    assert not {"copy_", "zero_"} & operations.keys()


@pytest.mark.parametrize("repaired", [True, False])
def test_a_gradient_that_is_none_stays_none_in_fp32(half_precision_optimizer, monkeypatch, repaired):
    for name in () if repaired else REPAIRED:
        monkeypatch.setattr(FP16Optimizer, name, getattr(FP16Optimizer, name).__wrapped__)
    parameters = [torch.nn.Parameter(torch.ones(2, dtype=torch.half)) for _ in range(2)]
    optimizer = half_precision_optimizer(parameters, flat=False)
    optimizer.zero_grad()
    assert all((exact.grad is None) == repaired for exact in optimizer.fp32_params)
    optimizer.backward(parameters[0].sum())
    optimizer.step()
    assert (optimizer.fp32_params[1].grad is None) == repaired  # fairseq: zeros
    assert parameters[0].tolist() == [0.0, 0.0] and parameters[1].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("sizes", [[3], [3, 1, 4]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.half])
def test_the_norm_of_all_gradients_is_fairseq_s_and_they_are_clipped_alike(sizes, dtype):
    results = []
    for clip in utils.clip_grad_norm_, utils.clip_grad_norm_.__wrapped__:
        parameters = [torch.nn.Parameter(torch.zeros(size, dtype=dtype)) for size in [*sizes, 2]]
        for parameter in parameters[:-1]:
            parameter.grad = torch.full_like(parameter, 2.0)
        results.append((clip(parameters, 1.0), [parameter.grad for parameter in parameters]))
    (norm, gradients), (same_norm, same_gradients) = results
    assert norm.item() == pytest.approx(2 * sum(sizes) ** 0.5) and norm.dtype == torch.float32
    assert torch.equal(norm, same_norm) and all(map(torch.equal, gradients[:-1], same_gradients[:-1]))
    assert gradients[-1] is None and utils.clip_grad_norm_([], 1.0) == 0.0


# Two processes, end to end

def micro_batches(output):
    """{(rank, update): (sizes, random numbers)} of what the plugin printed."""
    found = {}
    for rank, update, sizes, number in re.findall(r"micro-batch (\d+) (\d+) (\[.*?\]) (\S+)", output):
        found.setdefault((int(rank), int(update)), (sizes, []))[1].append(float(number))
    return found


def test_two_processes_train_one_model_and_resume(corpus, launch, tmp_path):
    """Seven micro-batches of one block each, two ranks, two micro-batches per update: the epoch ends with 2 + 1."""
    def train(*more):
        return "".join(launch("fairseq_cli.train:cli_main", [
            corpus, "--user-dir", str(PLUGIN), "--task", "printing_masked_lm", *OPTIONS, "--update-freq", "2",
            "--save-dir", str(tmp_path), "--no-epoch-checkpoints", "--disable-validation", *more,
        ], 2).out)

    through = train("--max-update", "4", "--save-interval-updates", "3")
    batches = micro_batches(through)
    logged = re.findall(r'"bsz": "(\d+)", "num_updates": "(\d)"', through)
    assert logged[:2] == [("4", "1"), ("3", "2")]  # one training, and the odd micro-batch of the second update counts
    assert sorted(batches[rank, 1][0] for rank in range(2)) == ["[0, 1]", "[1, 1]"]
    assert sorted(batches) == [(rank, update) for rank in range(2) for update in range(4)]
    numbers = [number for _, drawn in batches.values() for number in drawn]
    assert len(set(numbers)) == len(numbers) == 16

    resumed = train("--max-update", "4", "--restore-file", str(tmp_path / "checkpoint_2_3"))
    assert "Loaded checkpoint" in resumed
    assert micro_batches(resumed) == {key: batches[key] for key in batches if key[1] == 3}
