"""Batches of random tokens for the core's tests, a vocabulary and checkpoints of random methods: no fairseq."""

import gc
import os
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from amos_fairseq.checkpoints import storage
from amos_fairseq.data.tokenizer import Tokenizer
from amos_fairseq.data.vocabulary import train_vocabulary
from amos_fairseq.methods import METHODS
from amos_fairseq.methods.batch import PretrainingBatch
from amos_fairseq.methods.config import Vocabulary

pytest_plugins = ["tests.runs"]

# Without a GPU, Triton's kernels run in its interpreter, which is chosen when triton is imported for the first time.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

VOCABULARY = Vocabulary(size=40, padding=1, excluded=[0, 1, 2, 3, 38, 39])
MASK = 39
SMALL = dict(
    encoder_layers=2,
    encoder_embed_dim=16,
    encoder_ffn_embed_dim=24,
    encoder_attention_heads=2,
    rel_pos_buckets=8,
    rel_pos_max_distance=16,
    max_positions=32,
)
GENERATOR = {
    "amos_rtd": dict(generator_depths=[1, 2, 4]),
    "coco_lm": dict(generator_layers=1, generator_dropout=0.0),
    "teams_mws": dict(generator_layers=2, generator_dropout=0.0),
    "peer_tqr": dict(generator_layers=2, generator_dropout=0.0),
    "script_selfcritic": {},
    "electra_rtd": dict(generator_embed_dim=8),
    "bert_mlm": {},
}


def make_batch(lengths=(12, 9, 12), num_masked=3, seed=0, first_id=0) -> PretrainingBatch:
    """Right-padded rows of random tokens between <s> and </s>, `num_masked` positions of each selected."""
    generator = torch.Generator().manual_seed(seed)
    rows, width = len(lengths), max(lengths)
    original = torch.full((rows, width), VOCABULARY.padding)
    positions = torch.zeros(rows, width, dtype=torch.bool)
    for row, length in enumerate(lengths):
        original[row, :length] = torch.randint(4, 38, (length,), generator=generator)
        original[row, 0], original[row, length - 1] = 0, 2
        positions[row, 1 + torch.randperm(length - 2, generator=generator)[:num_masked]] = True
    padding_mask = original == VOCABULARY.padding
    cropped = torch.full((rows, width - 1), VOCABULARY.padding)
    for row, length in enumerate(lengths):
        cropped[row, : length - 1] = torch.cat([original[row, :1], original[row, 2:length]])
    cropped_padding_mask = cropped == VOCABULARY.padding
    return PretrainingBatch(
        original_tokens=original,
        masked_tokens=original.masked_fill(positions, MASK),
        masked_positions=positions,
        masked_index=positions.flatten().nonzero().squeeze(-1),
        num_masked=[num_masked] * rows,
        sample_ids=torch.arange(first_id, first_id + rows),
        padding_mask=padding_mask if padding_mask.any() else None,
        cropped_tokens=cropped,
        cropped_padding_mask=cropped_padding_mask if cropped_padding_mask.any() else None,
    )


def rows_of(batch: PretrainingBatch, rows) -> PretrainingBatch:
    """Some of the batch's sequences, as wide as they were."""
    fields = {name: value[rows] for name, value in batch._asdict().items() if torch.is_tensor(value)}
    return batch._replace(
        **{**fields, "masked_index": fields["masked_positions"].flatten().nonzero().squeeze(-1)},
        num_masked=[batch.num_masked[row] for row in rows],
    )


def make_method(
    name, *, seed=0, dropout=0.0, dtype=torch.float32, total_updates=90, gain=1.0, vocabulary=VOCABULARY, **options
):
    """A method of 2 encoder layers, without dropout unless asked for; `gain` multiplies its initial matrices."""
    torch.manual_seed(seed)
    method = METHODS[name]
    options = {**SMALL, **GENERATOR.get(name, {}), "dropout": dropout, "attention_dropout": dropout, **options}
    built = method(method.config_class(**options), vocabulary, noise_seed=7, total_updates=total_updates).to(dtype)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.mul_(gain if parameter.dim() > 1 else 1.0)
    return built


@pytest.fixture
def batch():
    return make_batch()


@pytest.fixture(name="make_batch")
def _make_batch():
    return make_batch


@pytest.fixture(name="rows_of")
def _rows_of():
    return rows_of


@pytest.fixture(name="make_method")
def _make_method():
    return make_method


WORDS = "alpha beta gamma delta epsilon zeta eta theta".split()


@pytest.fixture(scope="session")
def tokenizer():
    """Of 56 symbols; each of WORDS is one."""
    texts = (" ".join(WORDS[(3 * row + column) % 8] for column in range(6)) + "," for row in range(80))
    return Tokenizer(train_vocabulary(texts, 56, uncased=True))


@pytest.fixture
def save_checkpoint():
    """save_checkpoint(path, name, method, tokenizer=None, of_run={}): as training leaves it, less the trainer."""

    def save_checkpoint(path, name, method, tokenizer=None, of_run={}):
        vocabulary = {}
        if tokenizer is not None:
            vocabulary["sentencepiece_model"] = torch.frombuffer(bytearray(tokenizer.model), dtype=torch.uint8)
        cfg = {
            "task": {"_name": name}, "optimization": {"max_update": method.total_updates},
            "model": {"_name": name, "option_of_later": 1, **vars(method.config)},
        }
        state = {**{f"method.{key}": tensor for key, tensor in method.state_dict().items()}, **of_run}
        path.parent.mkdir(parents=True, exist_ok=True)
        about = dict(number=1, score=None, purposes=[])
        storage.write(path, {"cfg": cfg, "task_state": vocabulary, "model": state}, about)

    return save_checkpoint


LONGEST = ["test_documented_commands.py", "test_quickstart.py", "test_replicate.py"]  # first: none is left alone
LONG = {"nightly": "a long story or a whole table of cases", "soak": "long, or one of many repetitions"}


def pytest_addoption(parser):
    parser.addoption("--nightly", action="store_true", help="also run long stories and whole tables of cases")
    parser.addoption("--soak", action="store_true", help="also run those, and what repeats for long")


def pytest_configure(config):
    for name, meaning in LONG.items():
        config.addinivalue_line("markers", f"{name}: {meaning}; run with --{name}")


def pytest_unconfigure(config):
    gc.unfreeze()  # or triton's bindings report what was never freed


def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda item: item.path.name not in LONGEST)
    soak, nightly = config.getoption("--soak"), config.getoption("--nightly")
    for item in items:
        for name, given in (("nightly", nightly or soak), ("soak", soak)):
            if name in item.keywords and not given:
                item.add_marker(pytest.mark.skip(reason=f"--{name} is not given"))


@pytest.fixture(scope="module", autouse=True)
def collections_visit_what_is_new():
    """And not what was imported before, transformers and all, in each epoch that a test trains."""
    gc.collect()
    gc.freeze()


class Allocations(TorchDispatchMode):
    """What operations allocate, backward passes included: element counts, and the most bytes alive at a time."""

    def __enter__(self):
        self.elements, self.peak_bytes, self._living = set(), 0, {}
        return super().__enter__()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.elements.add(tensor.numel())
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in self._living:
                    self._living[storage.data_ptr()] = storage.nbytes()
                    weakref.finalize(storage, self._living.pop, storage.data_ptr(), None)
        self.peak_bytes = max(self.peak_bytes, sum(self._living.values()))
        return result


@pytest.fixture
def allocations():
    return Allocations()


@pytest.fixture
def gradients():
    """gradients(method, batch, *names): what the weighted sum of the named terms, or of all, reaches by name."""

    def gradients(method, batch, *names):
        method.zero_grad()
        terms = method.losses(method(batch), batch)
        sum(terms[name].weight * terms[name].mean for name in names or terms).backward()
        return {n for n, p in method.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}

    return gradients
