"""Each method as a fairseq model, and each of its sizes as an architecture `<name>_<size>`."""

from dataclasses import dataclass
from functools import partial

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.models import register_model, register_model_architecture
from omegaconf import OmegaConf

from amos_fairseq.methods import METHODS, build, for_each_method, size_options
from amos_fairseq.methods.batch import PretrainingBatch
from amos_fairseq.methods.config import ENCODER_SIZES
from amos_fairseq.methods.generator_first import learner
from amos_fairseq.models.base import Model
from amos_fairseq.modules.encoder import compile_layers

WORDS_COUNTED = 1000  # words for each token of the vocabulary, after which counts are halved


class PretrainingModel(Model):
    """`method` holds the networks; its `encoder` is what is kept after pre-training."""

    method_name: str

    def __init__(self, method):
        super().__init__()
        self.method = method
        # (2, V) of the run, not of its networks: see `PretrainingMethod.count_tokens`
        self.register_buffer("token_counts", torch.zeros(2, len(method.excluded_tokens), dtype=torch.long))

    def add_token_counts(self, counts: torch.Tensor) -> None:
        """Of one update. All are halved as they become many, for an old generator's draws say little."""
        self.token_counts += counts.to(self.token_counts)
        self.token_counts >>= (self.token_counts.sum() > WORDS_COUNTED * self.token_counts.size(1)).long()

    def upgrade_state_dict(self, state_dict):
        """A checkpoint of before tokens were counted has none."""
        super().upgrade_state_dict(state_dict)
        state_dict.setdefault("token_counts", torch.zeros_like(self.token_counts))

    @classmethod
    def build_model(cls, cfg, task):
        if cls.method_name != task.method_name:
            raise ValueError(
                f"arch {cls.method_name} and task {task.method_name} are two methods: use one name for task, arch "
                "and criterion"
            )
        length, width = task.cfg.tokens_per_sample, task.width
        if width > cfg.max_positions:
            padded = f", padded to {width}," if width > length else ""
            raise ValueError(
                f"tokens_per_sample {length}{padded} exceeds max_positions {cfg.max_positions}: raise --max-positions, "
                "or shorten the blocks"
            )
        options = OmegaConf.to_container(cfg, resolve=True)
        schedule = dict(noise_seed=task.cfg.seed, total_updates=task.cfg.max_update)
        method = build(cls.method_name, options, task.vocabulary, **schedule)
        method.check_schedule()
        if method.config.compile_layers:
            compile_layers(method)
        return cls(method)

    def forward(self, **net_input):
        return learner(self.method)(PretrainingBatch(**net_input))

    def max_positions(self):
        return self.method.config.max_positions


def _preset(options: dict, args) -> None:
    """An architecture: options that were not given get the size's values."""
    for key, value in options.items():
        setattr(args, key, getattr(args, key, value))


@for_each_method
def _register(name: str) -> None:
    method = METHODS[name]
    config = dataclass(type(f"{method.__name__}ModelConfig", (method.config_class, FairseqDataclass), {}))
    model = type(f"{method.__name__}Model", (PretrainingModel,), {"method_name": name})
    register_model(name, dataclass=config)(model)
    for size in ENCODER_SIZES:
        register_model_architecture(name, f"{name}_{size}")(partial(_preset, size_options(name, size)))
