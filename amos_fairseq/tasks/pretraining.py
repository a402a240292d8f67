"""The pre-training task under each method's name: a prepared corpus, its vocabulary, and masked batches."""

import os
from dataclasses import dataclass, make_dataclass

import torch
from fairseq.data import Dictionary, data_utils
from fairseq.dataclass import FairseqDataclass
from fairseq.distributed import utils as distributed_utils
from fairseq.tasks import FairseqTask, register_task
from omegaconf import II, MISSING

from amos_fairseq.data.manifest import load_manifest_for
from amos_fairseq.data.masking import MaskedBlockDataset, MaskingOptions, excluded_tokens
from amos_fairseq.methods import METHODS
from amos_fairseq.methods.base import Vocabulary, option
from amos_fairseq.objectives import COUNTED
from amos_fairseq.user_errors import told_in_one_line


@dataclass
class PretrainingTaskConfig(FairseqDataclass):
    data: str = option(MISSING, "folder written by `amos-fairseq prepare`, or its shards data0:data1:..")
    tokens_per_sample: int = option(512, "longest block of tokens; the corpus is prepared with at most this")
    mask_prob: float = option(0.15, "share of the maskable positions that are selected for prediction")
    mask_special_tokens: bool = option(False, "let <s> and </s> be selected as well (COCO-LM, App.)")
    # The loader's workers keep the dataset's epoch, hence its masks, unless they are started anew for every epoch.
    reuse_dataloader: bool = option(False, "keep the loader's workers over epochs; freezes the masks, so leave it off")
    seed: int = II("common.seed")
    max_update: int = II("optimization.max_update")


class PretrainingTask(FairseqTask):
    method_name: str

    @classmethod
    def setup_task(cls, cfg, **kwargs):
        with told_in_one_line():
            return cls(cfg)

    def __init__(self, cfg):
        super().__init__(cfg)
        self.masking = MaskingOptions(
            cfg.mask_prob, cfg.mask_token_prob, cfg.keep_prob, cfg.random_prob, cfg.mask_special_tokens
        )
        self.manifest, self.shards = load_manifest_for(cfg.data)
        if self.manifest.tokens_per_sample > cfg.tokens_per_sample:
            raise ValueError(
                f"{cfg.data} holds blocks of {self.manifest.tokens_per_sample} tokens, more than tokens_per_sample "
                f"{cfg.tokens_per_sample}: raise --tokens-per-sample, or prepare the corpus with shorter blocks"
            )
        self.dictionary = Dictionary.load(os.path.join(self.shards[0], "dict.txt"))
        self.dictionary.add_symbol("<mask>")
        self.term_scales = None

    @property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(len(self.dictionary), self.dictionary.pad(), excluded_tokens(self.dictionary))

    def build_model(self, cfg, from_checkpoint=False):
        with told_in_one_line():
            return super().build_model(cfg, from_checkpoint)

    def load_dataset(self, split, epoch=1, combine=False, **kwargs):
        """Shard (epoch - 1) modulo their number for training, the first for any other split."""
        shard = self.shards[(epoch - 1) % len(self.shards) if split == "train" else 0]
        blocks = data_utils.load_indexed_dataset(os.path.join(shard, split), self.dictionary)
        if blocks is None:
            raise SystemExit(f"amos_fairseq: error: {shard} holds no split {split!r}: prepare writes train and valid")
        self.datasets[split] = MaskedBlockDataset(blocks, blocks.sizes, self.dictionary, self.masking, self.cfg.seed)

    def has_sharded_data(self, split):
        return len(self.shards) > 1

    def begin_update(self, samples, device) -> None:
        """Called before each update with all its micro-batches: find what its loss terms are divided by.

        `term_scales[over]` is (micro-batches / elements of that kind), both summed over the update's micro-batches
        and processes. The counts come with the data, so every mean is exact for any number of processes and
        micro-batches, ragged ones included, at the price of one reduction of four numbers per update.
        """
        present = [sample["counts"] for sample in samples if sample]
        counts = [sum(part[over] for part in present) for over in COUNTED]
        counts = torch.tensor([len(present), *counts], dtype=torch.double)
        if distributed_utils.get_data_parallel_world_size() > 1:
            counts = counts.to(device)
            distributed_utils.all_reduce(counts, group=distributed_utils.get_data_parallel_group())
        scales = (counts[0] / counts[1:].clamp(min=1)).float()
        self.term_scales = dict(zip(COUNTED, scales))

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False, **kwargs):
        loss, sample_size, logs = super().train_step(
            sample, model, criterion, optimizer, update_num, ignore_grad, **kwargs
        )
        if ignore_grad:  # a process without data repeats an earlier batch, which must not count
            return loss, 0, {key: 0 * value for key, value in logs.items()}
        return loss, sample_size, logs

    def max_positions(self):
        return self.cfg.tokens_per_sample

    @property
    def source_dictionary(self):
        return self.dictionary

    @property
    def target_dictionary(self):
        return self.dictionary


def _register(name: str) -> None:
    shares = ("mask_token_prob", "keep_prob", "random_prob")
    words = ("become <mask>", "keep their token", "get a random token")
    fields = [
        (share, float, option(default, f"share of the selected positions that {fate}"))
        for share, fate, default in zip(shares, words, METHODS[name].masking)
    ]
    config = make_dataclass(f"{METHODS[name].__name__}PretrainingTaskConfig", fields, bases=(PretrainingTaskConfig,))
    # fairseq wants class names, too, to be unique among all tasks
    task = type(f"{METHODS[name].__name__}PretrainingTask", (PretrainingTask,), {"method_name": name})
    register_task(name, dataclass=config)(task)


for _name in METHODS:
    _register(_name)
