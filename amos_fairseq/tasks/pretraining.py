"""The pre-training task under each method's name: a prepared corpus, its vocabulary, and masked batches."""

import hashlib
import json
import logging
import os
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Dict, List, Optional

import numpy as np
import torch
from fairseq import checkpoint_utils
from fairseq.data import Dictionary, data_utils
from fairseq.distributed import utils as distributed_utils
from fairseq.tasks import register_task
from omegaconf import II, MISSING

from amos_fairseq import supervision
from amos_fairseq.checkpoints import storage
from amos_fairseq.checkpoints.training import goes_on_from
from amos_fairseq.criterions.pretraining import TOKENS
from amos_fairseq.data import loading
from amos_fairseq.data.manifest import VALID_SHARD, load_manifest_for, located, verify_tokens, with_validation
from amos_fairseq.data.masking import MaskedBlockDataset, MaskingOptions, padded_width, rows_of
from amos_fairseq.data.vocabulary import DICTIONARY_NAME
from amos_fairseq.data.vocabulary_files import load_tokenizer, vocabulary_file
from amos_fairseq.fairseq_options import told_with_recipe_named
from amos_fairseq.methods import METHODS, STARTS, for_each_method
from amos_fairseq.methods.config import Vocabulary
from amos_fairseq.methods.continuation import EarlierRun
from amos_fairseq.objectives import COUNTED
from amos_fairseq.optim.fused_adamw import check_takes_factors, check_takes_pauses, copy_values, pause, set_lr_factor
from amos_fairseq.options import COUNT, Range, free_names, option
from amos_fairseq.pooled import mean_cosine
from amos_fairseq.pretrained import stock
from amos_fairseq.pretrained.loading import VOCABULARY, parameters_of
from amos_fairseq.quantities import HIDDEN_STATES
from amos_fairseq.supervision import SupervisedTask, SupervisionConfig
from amos_fairseq.user_errors import Damaged, stop

logger = logging.getLogger(__name__)

COSINE = "hidden_cosine cosine"  # as the criterion logs it
COLLAPSED = 0.95
VALIDATION_SEED = 1  # without fairseq's --fixed-validation-seed
COLLAPSE = (
    "the encoder has collapsed: its hidden states of different words have a mean cosine of %.3f (hidden_cosine, 1: all "
    "alike). What can help, where the method has it: --rel-pos-lr-factor 100, --generator-warmup-updates, "
    "--encoder-lr-factor 0.2; or a lower --lr. See \"A collapsed encoder\" in examples/guides/troubleshooting.md"
)


@dataclass
class PretrainingTaskConfig(MaskingOptions, SupervisionConfig):
    data: str = option(MISSING, "folder written by `amos-fairseq prepare`, or its shards data0:data1:..", path=True)
    tokens_per_sample: int = option(512, "longest block of tokens; the corpus is prepared with at most this", COUNT)
    verify_data: bool = option(
        False, "compare all data with the SHA-256 that prepare recorded before training; each process a share of them",
        free=True,
    )
    allow_change: str = option(
        "", "what a resumed run may do otherwise than before, as the refusal names it: seed,..", free=True
    )
    allow_scratch: bool = option(False, "start anew if all checkpoints of the run are damaged", free=True)
    seed: int = II("common.seed")
    fixed_validation_seed: Optional[int] = II("dataset.fixed_validation_seed")
    optimizer: Optional[str] = II("optimizer._name")
    max_update: int = II("optimization.max_update")
    max_tokens: Optional[int] = II("dataset.max_tokens")
    max_tokens_valid: Optional[int] = II("dataset.max_tokens_valid")
    save_dir: str = II("checkpoint.save_dir")
    restore_file: str = II("checkpoint.restore_file")


class PretrainingTask(SupervisedTask):
    method_name: str

    def __init__(self, cfg):
        super().__init__(cfg)
        self.masking = MaskingOptions.of(cfg)
        self.cropping = getattr(cfg, "crop_keep_fraction", None)
        self.term_scales = None
        self.has_collapsed = False  # as far as validation has seen
        self.iterators = {}  # by split, the current one
        self.open_data()

    @classmethod
    def logged(cls, cfg):
        return ["loss", *METHODS[cls.method_name].quantities, *HIDDEN_STATES]

    def open_data(self) -> None:
        cfg = self.cfg
        self.manifest, self.shards = load_manifest_for(cfg.data)
        self.folder = os.path.abspath(located(cfg.data)[0])
        if self.manifest.tokens_per_sample > cfg.tokens_per_sample:
            raise ValueError(
                f"{cfg.data} holds blocks of {self.manifest.tokens_per_sample} tokens, more than tokens_per_sample "
                f"{cfg.tokens_per_sample}: raise --tokens-per-sample, or prepare the corpus with shorter blocks"
            )
        for name in ("max_tokens", "max_tokens_valid"):
            limit, block = getattr(cfg, name), self.manifest.tokens_per_sample
            if limit is not None and limit < block:
                raise ValueError(
                    f"{name} {limit} is less than one block of {cfg.data}, {block}: raise --{name.replace('_', '-')}, "
                    "or leave it out and give --batch-size"
                )
        if cfg.verify_data:
            process, processes = distributed_utils.get_global_rank(), distributed_utils.get_global_world_size()
            verify_tokens(self.manifest, with_validation(self.folder, self.shards), process, processes)
        self.vocabulary_bytes = self.read_vocabulary()
        self.tokenizer = load_tokenizer(self.vocabulary_bytes.numpy().tobytes())
        self.dictionary = self.load_dictionary()

    def load_dictionary(self) -> Dictionary:
        """Of the tokenizer's ids, with the counts of dict.txt, 1 of what that does not list."""
        path, tokenizer = os.path.join(self.shards[0], DICTIONARY_NAME), self.tokenizer
        try:
            lines = Path(path).read_text(encoding="utf-8").removesuffix("\n").split("\n")
            listed = [(symbol, int(count)) for symbol, _, count in (line.rpartition(" ") for line in lines)]
        except ValueError as error:
            raise Damaged(f"{path} is no dictionary: {error}: run amos-fairseq prepare again") from None
        if [symbol for symbol, _ in listed] != [tokenizer.symbols[token] for token in tokenizer.listed]:
            raise Damaged(f"{path} is not of {self.manifest.vocabulary_size} symbols: run amos-fairseq prepare again")
        dictionary = Dictionary()
        dictionary.symbols = list(tokenizer.symbols)
        dictionary.indices = {symbol: token for token, symbol in enumerate(tokenizer.symbols)}
        dictionary.count = [1] * len(tokenizer)
        dictionary.count[tokenizer.listed.start : tokenizer.listed.stop] = [count for _, count in listed]
        dictionary.bos_index, dictionary.pad_index, dictionary.eos_index = tokenizer.bos, tokenizer.pad, tokenizer.eos
        dictionary.unk_index = tokenizer.pad if tokenizer.unk is None else tokenizer.unk
        return dictionary

    def read_vocabulary(self) -> torch.Tensor:
        """The tokenizer's bytes, as checkpoints have them: to be saved whatever has become of the data by then."""
        path = vocabulary_file(self.folder)
        if not os.path.isfile(path):  # a pipe would be waited for
            raise Damaged(f"{path} does not exist: run amos-fairseq prepare again")
        try:
            model = np.fromfile(path, np.uint8)
        except OSError as error:
            raise Damaged(f"{path} cannot be read: {error.strerror}: run amos-fairseq prepare again") from None
        if hashlib.sha256(model).hexdigest() != self.manifest.sentencepiece_sha256:
            raise Damaged(f"{path} differs from what was written: run amos-fairseq prepare again")
        return torch.from_numpy(model)

    @property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary.of(self.tokenizer)

    @property
    def width(self) -> int:
        """Of a batch with a full block, in tokens."""
        return padded_width(self.cfg.tokens_per_sample)

    def build_model(self, cfg, from_checkpoint=False):
        with told_with_recipe_named():
            model = super().build_model(cfg, from_checkpoint)
            if not from_checkpoint:
                model.method.start_biases([*self.dictionary.count], self.masking.mask_prob)
                for name, load in STARTS.items():
                    path = getattr(model.method.config, name, "")
                    if path and goes_on_from(self.cfg) is None:  # else its own checkpoint holds what was taken
                        self.take_up(model.method, load, path, name)
                self.scale_learning_rates(model.method)
        self.model, method = model, model.method
        self.check_batch_size = method.check_batch_size
        self.forward_is_local = method.forward_is_local
        self.divides_batches = method.divides_batches
        self.loss_names = [name for name, quantity in method.quantities.items() if quantity.is_loss]
        return model

    def take_up(self, method, load, path: str, option_name: str) -> None:
        with torch.device("cpu"):  # also where the network is only planned, on no device
            run = self.earlier_run(path, option_name)
        load(method, run)

    def scale_learning_rates(self, method) -> None:
        for option_name, factor in method.config.lr_factors().items():
            check_takes_factors(option_name, factor, self.cfg.optimizer)
        if method.idle_parameters():
            check_takes_pauses("generator_warmup_updates", method.generator_warmup, self.cfg.optimizer)
        told: Dict[float, List[str]] = {}
        for group in method.learning_rate_groups():
            size = sum(parameter.numel() for parameter in group.parameters)
            told.setdefault(group.factor, []).append(f"{group.name} {size:,}")
            for parameter in group.parameters:
                if group.factor != 1.0:
                    set_lr_factor(parameter, group.factor)
        for factor, groups in told.items():
            logger.info("learning rate x %g: %s parameters", factor, ", ".join(groups))

    def earlier_run(self, path: str, option_name: str) -> EarlierRun:
        source = f"{option_name} {path}"
        if not os.path.exists(path):
            raise ValueError(f"{source} does not exist: give a local folder, nothing is downloaded")
        if stock.is_stock(path):
            if stock.tokenizer_of(path).symbols != self.tokenizer.symbols:
                raise ValueError(
                    f"{source} has another vocabulary than {self.cfg.data}: prepare the text anew with "
                    f"`amos-fairseq prepare --vocabulary {path}`"
                )
            return stock.earlier_run(path, source)
        try:
            checkpoint = checkpoint_utils.load_checkpoint_to_cpu(path)
            model, task, vocabulary = checkpoint["cfg"]["model"], checkpoint["cfg"]["task"], checkpoint["task_state"]
        except ValueError as error:
            kind = Damaged if isinstance(error, Damaged) else ValueError
            raise kind(f"{option_name} {error}") from None
        except (LookupError, TypeError) as error:
            raise Damaged(f"{source} is no checkpoint that training wrote: {error}") from None
        if task._name not in METHODS:
            raise ValueError(f"{source} is of a run of {task._name}, none of {', '.join(METHODS)}")
        own = self.manifest.dictionary_sha256
        if vocabulary.get("dictionary_sha256", own) != own:
            raise ValueError(
                f"{source} was trained with another vocabulary than {self.cfg.data} has: prepare the text anew with "
                "`amos-fairseq prepare --vocabulary` and the folder that the run was trained on"
            )
        state = parameters_of(checkpoint["model"])
        storage.check_finite(state, source)
        return EarlierRun(source, state, model)

    def state_dict(self):
        """Part of every checkpoint: by it, a later run knows whether the ids mean the same words, and the text."""
        return {
            **super().state_dict(), "dictionary_sha256": self.manifest.dictionary_sha256,
            "data_sha256": self.data_sha256(), VOCABULARY: self.vocabulary_bytes,
        }

    def data_sha256(self) -> str:
        """Of all that the blocks which this run reads were recorded as."""
        folders = [os.path.basename(path) for path in self.shards]
        records = [shard.files for split in self.manifest.splits.values() for shard in split.shards]
        return hashlib.sha256(json.dumps([folders, records], sort_keys=True).encode()).hexdigest()

    def load_dataset(self, split, epoch=1, combine=False, **kwargs):
        """Shard (epoch - 1) modulo their number for training."""
        shard = os.path.join(self.folder, VALID_SHARD)
        if split == "train":
            shard = self.shards[(epoch - 1) % len(self.shards)]
        blocks = None
        if split in self.manifest.splits:
            blocks = data_utils.load_indexed_dataset(os.path.join(shard, split), self.dictionary)
        if blocks is None:
            stop(f"{shard} holds no split {split!r}: prepare writes train and valid", os.EX_USAGE)
        options = self.masking, self.cfg.seed if split == "train" else self.validation_seed, self.cropping
        self.datasets[split] = MaskedBlockDataset(blocks, blocks.sizes, self.tokenizer, *options)

    def get_batch_iterator(self, dataset, *args, **kwargs):
        # fairseq drops a last batch that is no multiple of this, in validation, too
        kwargs["required_batch_size_multiple"] = 1
        # The batches that fairseq keeps for all epochs are those of the epoch that the process started with.
        kwargs["disable_iterator_cache"] = True
        iterator = super().get_batch_iterator(dataset, *args, **kwargs)
        # Workers keep the epoch, hence the masks, that they were started with: start them anew for every epoch.
        iterator.reuse_dataloader = False
        name = next(name for name, loaded in self.datasets.items() if loaded is dataset)
        loading.end_epoch(self.iterators.get(name))  # left early, as by --max-valid-steps
        self.iterators[name] = iterator
        with told_with_recipe_named():
            self.check_batch_size(max(map(len, iterator.frozen_batches)), name)
        return iterator

    def has_sharded_data(self, split):
        return len(self.shards) > 1

    def begin_update(self, samples, device) -> None:
        """Called before each update with all its micro-batches: find what its loss terms are divided by.

        `term_scales[over]` is (micro-batches / elements of that kind), both summed over the update's micro-batches
        and processes. The counts come with the data, so every mean is exact for any number of processes and
        micro-batches, ragged ones included, at the price of one reduction of six numbers per update, of which the
        last says how many processes were asked to stop.
        """
        self.refuse_impossible(samples)
        present = [sample["counts"] for sample in samples if sample]
        counts = [sum(part[over] for part in present) for over in COUNTED]
        supervisor = supervision.current()
        asked_to_stop = supervisor is not None and bool(supervisor.watch.requested)
        counts = torch.tensor([len(present), *counts, asked_to_stop], dtype=torch.double)
        if distributed_utils.get_data_parallel_world_size() > 1:
            counts = counts.to(device, non_blocking=True)  # or it waits for the last update's step
            distributed_utils.all_reduce(counts, group=distributed_utils.get_data_parallel_group())
        scales = (counts[0] / counts[1:-1].clamp(min=1)).float()
        self.term_scales = dict(zip(COUNTED, scales))
        if supervisor is not None:
            supervisor.stop_votes = counts[-1]

    def refuse_impossible(self, samples) -> None:
        """End the run if a batch holds ids beyond the vocabulary: of what else is damaged, see `load_manifest_for`."""
        for sample in filter(None, samples):
            tokens = sample["net_input"]["original_tokens"]
            impossible = (tokens >= len(self.tokenizer)) | (tokens == self.tokenizer.mask)
            if impossible.any():
                blocks = [block for block, row in zip(self.sample_ids(sample), impossible) if row.any()]
                stop(
                    f"{self.cfg.data}: ids beyond the vocabulary in blocks {blocks}, so files are damaged: "
                    "--verify-data says which; run amos-fairseq prepare again", os.EX_DATAERR,
                )

    def valid_step(self, sample, model, criterion, **kwargs):
        self.refuse_impossible([sample])
        method = self.model.method
        seed, method.noise_seed = method.noise_seed, self.validation_seed
        try:
            return super().valid_step(sample, model, criterion, **kwargs)
        finally:
            method.noise_seed = seed

    @property
    def validation_seed(self) -> int:
        """Of its masks and draws: the same for runs of any --seed, which then differ by what they learned alone."""
        given = getattr(self.cfg, "fixed_validation_seed", None)
        return VALIDATION_SEED if given is None else given

    rows_of = staticmethod(rows_of)

    def sample_ids(self, sample):
        return sample["net_input"]["sample_ids"].tolist()

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False, **kwargs):
        if ignore_grad:  # the batch does not count: one sequence of it will do
            sample = rows_of(sample, slice(0, 1))
            sample = {**sample, "net_input": {**sample["net_input"], "stand_in": True}}
        return super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad, **kwargs)

    def optimizer_step(self, optimizer, model, update_num):
        """The first updates may leave out the encoder, which then starts from the generator.

        It does so with the last of these updates, so every checkpoint has what the run goes on from.
        """
        method = self.model.method
        if update_num < method.generator_warmup:
            pause(optimizer, method.idle_parameters())
        super().optimizer_step(optimizer, model, update_num)
        if update_num + 1 == method.generator_warmup:
            start = method.encoder_start()
            copy_values(optimizer, start.copies)
            if supervision.current() is not None:
                supervision.current().losses.forget()
            logger.info("generator -> encoder after %d updates: %s", method.generator_warmup, start.words)

    def reduce_metrics(self, logging_outputs, criterion):
        """Called with the logs of all processes, or with their sum."""
        counted = [logs.pop(TOKENS) for logs in logging_outputs if TOKENS in logs]
        if counted:
            self.model.add_token_counts(sum(counted))
        super().reduce_metrics(logging_outputs, criterion)
        if not self.has_collapsed:
            self.tell_of_collapse(logging_outputs)

    def tell_of_collapse(self, logging_outputs) -> None:
        """Warn, once, if hidden states of a batch of validation hardly differ."""
        key = f"pooled {COSINE}"
        sums = [logs[key] for logs in logging_outputs if key in logs]
        cosine = mean_cosine(sum(sums)) if sums else None
        self.has_collapsed = cosine is not None and cosine > COLLAPSED
        if self.has_collapsed and distributed_utils.get_global_rank() == 0:
            logger.warning(COLLAPSE, cosine)

    def max_positions(self):
        return self.cfg.tokens_per_sample

    source_dictionary = target_dictionary = property(lambda self: self.dictionary)


@for_each_method
def _register(name: str) -> None:
    method = METHODS[name]
    shares = zip(("mask_token_prob", "keep_prob", "random_prob"), method.masking)
    inherited = MaskingOptions.__dataclass_fields__
    own = [(name, float, field(default=default, metadata=inherited[name].metadata)) for name, default in shares]
    if method.cropping is not None:
        kept = Range(0, 1, without_low=True, with_high=True)
        keep_fraction = option(method.cropping, "share of a sequence that its cropped view keeps", kept)
        own.append(("crop_keep_fraction", float, keep_fraction))
    config = make_dataclass(f"{method.__name__}PretrainingTaskConfig", own, bases=(PretrainingTaskConfig,))
    # fairseq wants class names, too, to be unique among all tasks
    attributes = {"method_name": name, "free_options": free_names(config) | free_names(method.config_class)}
    task = type(f"{method.__name__}PretrainingTask", (PretrainingTask,), attributes)
    register_task(name, dataclass=config)(task)
