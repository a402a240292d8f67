"""Fine-tuning as a fairseq task: labelled data, what was pre-trained, and metrics over whole validation splits."""

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional

import numpy as np
import torch
from fairseq.data import FairseqDataset
from fairseq.logging import metrics
from fairseq.tasks import register_task
from omegaconf import II, MISSING

from amos_fairseq.checkpoints import storage
from amos_fairseq.checkpoints.training import gathered, goes_on_from
from amos_fairseq.data.vocabulary_files import load_tokenizer
from amos_fairseq.files import sha256_of
from amos_fairseq.finetune.evaluation import in_order, of_sequences
from amos_fairseq.finetune.kinds import kind_of
from amos_fairseq.finetune.labelled import PROBLEM, Collater, Examples, read_examples, read_problem
from amos_fairseq.finetune.model import Origin, described, learning_rate_factors, load_start, start_from, understood
from amos_fairseq.optim.fused_adamw import check_takes_factors, set_lr_factor
from amos_fairseq.options import Range, free_names, option
from amos_fairseq.pretrained.loading import FINETUNING, VOCABULARY, vocabulary_of
from amos_fairseq.pretrained.model import Pretrained
from amos_fairseq.supervision import SupervisedTask, SupervisionConfig
from amos_fairseq.user_errors import told_in_one_line


@dataclass
class FinetuningTaskConfig(SupervisionConfig):
    data: str = option(MISSING, "folder of labelled data that `amos-fairseq finetune` encoded", path=True)
    pretrained: str = option(
        MISSING, "a run's folder, or a checkpoint, to fine-tune: of pre-training or another task", path=True
    )
    from_scratch: bool = option(False, "train the same network from new parameters, to compare with")
    layer_decay: float = option(
        1.0,
        "times which each layer learns more slowly than the one above, from the top one on: 0.8 is usual, 1: alike",
        Range(0, 1, without_low=True, with_high=True),
    )
    layer_decay_top: int = option(
        0, "how often layer_decay slows the top layer already, beneath the head: 2 in ELECTRA's code", Range(0, 100)
    )
    allow_change: str = option(
        "", "what a resumed run may do otherwise than before, as the refusal names it: seed,..", free=True
    )
    allow_scratch: bool = option(False, "start anew if all checkpoints of the run are damaged", free=True)
    seed: int = II("common.seed")
    optimizer: Optional[str] = II("optimizer._name")
    max_tokens: Optional[int] = II("dataset.max_tokens")
    max_tokens_valid: Optional[int] = II("dataset.max_tokens_valid")
    max_valid_steps: Optional[int] = II("dataset.max_valid_steps")
    save_dir: str = II("checkpoint.save_dir")
    restore_file: str = II("checkpoint.restore_file")


class LabelledDataset(FairseqDataset):
    """One split in memory; training in an order drawn from (seed, epoch), all else by length."""

    def __init__(self, split: str, examples: Examples, padding: int, seed: int):
        super().__init__()
        self.split, self.seed, self.epoch = split, seed, 1
        self.collate = Collater(examples, padding)
        self.sizes, self.places = examples.longest, examples.sizes  # fairseq filters by these, and batches by those

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    @property
    def can_reuse_epoch_itr_across_epochs(self) -> bool:
        return False  # batches are drawn anew

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> int:
        return int(index)

    def size(self, index: int) -> int:
        return int(self.sizes[index])

    def num_tokens(self, index: int) -> int:
        return int(self.places[index])

    def num_tokens_vec(self, indices: np.ndarray) -> np.ndarray:
        return self.places[indices]

    def ordered_indices(self) -> np.ndarray:
        if self.split == "train":
            return np.random.default_rng([self.seed, self.epoch]).permutation(len(self))
        return np.argsort(-self.places, kind="stable")  # if memory does not suffice, the first batch tells

    def collater(self, rows: List[int]) -> Dict[str, Any]:
        if not rows:
            return {}
        batch = self.collate(rows)._asdict()
        lengths = self.collate.lengths[rows].tolist()
        inputs = {name: batch.pop(name) for name in ("tokens", "padding_mask")}
        sizes = {"lengths": lengths, "nsentences": len(rows), "ntokens": int(np.sum(lengths))}
        return {"id": torch.tensor(rows), "split": self.split, "net_input": inputs, **batch, **sizes}


def rows_of(sample: Dict[str, Any], rows: slice) -> Dict[str, Any]:
    """Some of a collated batch's examples, as wide as they were."""
    part = {key: value[rows] if isinstance(value, (torch.Tensor, list)) else value for key, value in sample.items()}
    inputs = {name: None if value is None else value[rows] for name, value in sample["net_input"].items()}
    return {**part, "net_input": inputs, "nsentences": len(part["lengths"]), "ntokens": int(np.sum(part["lengths"]))}


@register_task(FINETUNING, dataclass=FinetuningTaskConfig)
class FinetuningTask(SupervisedTask):
    """The loss of an update is the mean over its sequences, for any number of processes and micro-batches."""

    free_options = free_names(FinetuningTaskConfig)
    divides_batches = True
    rows_of = staticmethod(rows_of)
    method_name = FINETUNING  # by which models and criterions of pre-training see that it is not theirs
    source_dictionary = target_dictionary = None

    def __init__(self, cfg):
        super().__init__(cfg)
        check_takes_factors("layer_decay", cfg.layer_decay, cfg.optimizer)
        if cfg.max_valid_steps is not None:
            raise ValueError(f"max_valid_steps {cfg.max_valid_steps}: metrics are of whole splits: leave it out")
        self.problem = read_problem(Path(cfg.data))
        self.kind = kind_of(self.problem.kind)
        self.origin: Optional[Origin] = None
        self.answers: Dict[str, Dict[int, np.ndarray]] = {}  # of a validation, by split and example
        self.results: Dict[str, Dict[str, float]] = {}

    @classmethod
    def logged(cls, cfg):
        return ["loss", *read_problem(Path(cfg.data)).metrics]

    # Networks

    def build_model(self, cfg, from_checkpoint=False):
        with told_in_one_line():
            pretrained = self.find_origin() if self.origin is None else None
            if self.tokenizer.sha256 != self.problem.sentencepiece_sha256:
                raise ValueError(
                    f"{self.cfg.data} is encoded with another vocabulary than {self.cfg.pretrained} has: encode it "
                    "anew for that model, in another folder"
                )
            model = super().build_model(cfg, from_checkpoint)
            if pretrained is not None and not self.cfg.from_scratch:
                start_from(model.network, self.problem, pretrained)
        if self.cfg.layer_decay != 1.0:
            factors = learning_rate_factors(model.network, self.cfg.layer_decay, self.cfg.layer_decay_top)
            for name, parameter in model.network.named_parameters():
                set_lr_factor(parameter, factors[name])
        return model

    def find_origin(self) -> Optional[Pretrained]:
        """Of this run's own checkpoint if it goes on from one, else of what was pre-trained, which is returned."""
        path = goes_on_from(self.cfg)
        if path is not None and path.is_dir():
            storage.verify(path)
            self.load_state_dict(storage.read_state(path, ["task_state"])["task_state"])
            return None
        pretrained = load_start(self.cfg.pretrained)
        self.origin, self.tokenizer = Origin(pretrained.name, pretrained.encoder.config), pretrained.tokenizer
        return pretrained

    def state_dict(self):
        """Part of every checkpoint: all that the network can be built of again, and what a resumed run must not change.
        """
        return {
            **super().state_dict(), "finetuned": described(self.origin, self.problem),
            VOCABULARY: torch.from_numpy(np.frombuffer(self.tokenizer.model, np.uint8).copy()),
            "dictionary_sha256": self.problem.sentencepiece_sha256, "data_sha256": self.data_sha256,
        }

    def load_state_dict(self, state):
        self.origin, _ = understood(state, self.cfg.save_dir)
        self.tokenizer = load_tokenizer(vocabulary_of(state, None, self.cfg.save_dir), self.cfg.save_dir)

    @functools.cached_property
    def data_sha256(self) -> str:
        paths = sorted([Path(self.cfg.data) / PROBLEM, *Path(self.cfg.data).glob("*.npz")])
        return hashlib.sha256("".join(sha256_of(str(path)) for path in paths).encode()).hexdigest()

    # Data

    def load_dataset(self, split, epoch=1, combine=False, **kwargs):
        if split in self.datasets:
            return
        with told_in_one_line():
            examples = read_examples(Path(self.cfg.data), split)
            source, tokenizer = f"{split} of {self.cfg.data}", self.tokenizer
            self.kind.check(self.problem, examples, source, len(tokenizer), tokenizer.mask, self.max_positions())
            of_all = split == "train" or self.cfg.max_tokens_valid == self.cfg.max_tokens  # fairseq's default
            name = "max_tokens" if of_all else "max_tokens_valid"
            limit, longest = getattr(self.cfg, name), examples.sizes.max()
            if limit is not None and limit < longest:
                raise ValueError(
                    f"{name} {limit} is less than the longest sequence of {split}, {longest}: raise "
                    f"--{name.replace('_', '-')}, or leave it out and give --batch-size"
                )
        self.datasets[split] = LabelledDataset(split, examples, self.tokenizer.pad, self.cfg.seed)

    def get_batch_iterator(self, dataset, *args, **kwargs):
        kwargs["required_batch_size_multiple"] = 1  # fairseq drops a last batch that is none
        kwargs["num_workers"] = 0  # the data are in memory: to wait for a new process costs more than to collate
        return super().get_batch_iterator(dataset, *args, **kwargs)

    def max_positions(self):
        return self.origin.encoder.max_positions

    # Steps

    def begin_valid_epoch(self, epoch, model):
        self.answers, self.results = {}, {}

    def valid_step(self, sample, model, criterion, **kwargs):
        outputs = super().valid_step(sample, model, criterion, **kwargs)
        for name in self.problem.metrics:  # called when fairseq asks for the results of the split
            metrics.log_derived(name, functools.partial(self.metric, sample["split"], name))
        return outputs

    def note(self, sample, outputs: torch.Tensor) -> None:
        """What the network answered to a batch of validation."""
        answers = of_sequences(outputs, sample["lengths"])
        self.answers.setdefault(sample["split"], {}).update(zip(sample["id"].tolist(), answers))

    def metric(self, split: str, name: str, meters) -> float:
        """Of all processes' answers to the split; all must ask for it."""
        if split not in self.results:
            answers = {}
            for part in gathered(self.answers[split]):
                answers.update(part)
            with told_in_one_line():
                outputs = in_order([answers[index] for index in range(len(self.datasets[split]))])
            self.results[split] = self.kind.evaluate(Path(self.cfg.data), self.problem, split, outputs)
        return self.results[split][name]
