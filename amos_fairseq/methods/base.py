"""What all methods share: what the package asks of a method, and the stages that more than one method uses.

Shapes: B batch, T time, C channels, E width of the token table, M selected positions of the batch, V vocabulary.
"""

import math
from typing import Any, Callable, Dict, Generic, List, NamedTuple, Optional, Sequence, Set, Tuple, Type, TypeVar, cast

import torch
from torch import Tensor, nn

from amos_fairseq import reference_flops as reference
from amos_fairseq.corruption import Corruption
from amos_fairseq.flops import BACKWARD_AND_FORWARD, encoder_flops, mlm_head_flops
from amos_fairseq.methods.batch import PretrainingBatch
from amos_fairseq.methods.config import ENCODER_SIZES, LR_FACTOR, JudgingConfig, PretrainingConfig, Vocabulary
from amos_fairseq.methods.stages import Proposals, Words
from amos_fairseq.modules.encoder import Encoder, PassKey
from amos_fairseq.modules.heads import DetectionHead, MaskedLMHead
from amos_fairseq.objectives import VALID, WORDS, LossTerm, Mean
from amos_fairseq.ops import MaskedLMReading, Noise, full_precision
from amos_fairseq.pooled import Pooled, ranking, similarity, spread
from amos_fairseq.quantities import Plan, Quantity
from amos_fairseq.random import mixed_seed

Look = Callable[[slice, Tensor], Tensor]
Config = TypeVar("Config", bound=PretrainingConfig)
Output = TypeVar("Output")
ATTENTION = 1  # sets the seeds of its dropout apart from those of sampling noise


class LearningRateGroup(NamedTuple):
    name: str
    factor: float  # times the learning rate
    parameters: List[nn.Parameter]


class Start(NamedTuple):
    """What an encoder takes from a generator's tower."""

    copies: List[Tuple[Tensor, Tensor]]  # (parameter of the encoder, value), without those that are one already
    words: str


class PretrainingMethod(nn.Module, Generic[Config, Output]):
    """A method: `forward` makes its output, `losses` and `statistics` read it.

    `encoder` is what pre-training is for; what is kept of it, `exported_encoder`. `noise_seed` keys the sampling noise;
    `total_updates` is the length of the run, for schedules that depend on it. All that the rest of the package needs to
    know of a method is said here and below, and by a method that differs in its own file.
    """

    config_class: Type[PretrainingConfig] = PretrainingConfig
    masking = (1.0, 0.0, 0.0)  # default shares of <mask>, kept and random tokens at the selected positions
    cropping: Optional[float] = None  # default share of a sequence that its cropped view keeps; None: no such view
    batchwise_terms: Tuple[str, ...] = ()  # loss terms that depend on which sequences share a micro-batch
    sizes: Dict[str, dict] = {size: {} for size in ENCODER_SIZES}  # what each size sets beside the encoder's shape
    generator_modules: Tuple[str, ...] = ()  # of its modules, those that are the generator and read it

    citation = ""  # of its paper, for model cards
    short_name = ""  # in front of the names of its presets and published results in `finetune.presets`
    quantities: Dict[str, Quantity] = {}  # all that it logs, in the order of tables
    figures: Dict[str, Plan] = {}  # its paper's, of these, by file name
    encoder_lm_head_class: Optional[Type[nn.Module]] = None  # of `encoder_lm_head`: made of a width and a token table
    scores_in_one_pass = False  # whether the sum of log sigmoid(detection_logits) is a pseudo-log-likelihood
    judge = "encoder"  # what `detection_logits` are called

    excluded_tokens: Tensor
    mlm_head: MaskedLMHead
    rtd_head: Any

    def __init__(self, config: Config, vocabulary: Vocabulary, noise_seed: int = 1, total_updates: int = 0):
        super().__init__()
        self.config = config
        self.noise_seed = noise_seed
        self.total_updates = total_updates
        self.num_updates = 0
        if 0 < total_updates <= self.generator_warmup:
            raise ValueError(
                f"generator_warmup_updates {self.generator_warmup} leaves the encoder nothing of max_update "
                f"{total_updates}: lower it"
            )
        warmup, left = getattr(config, "rtd_warmup_updates", 0), total_updates - self.generator_warmup
        if 0 < left < warmup:
            after = f" less generator_warmup_updates {self.generator_warmup}" if self.generator_warmup else ""
            raise ValueError(f"rtd_warmup_updates {warmup} exceeds max_update {total_updates}{after}: lower it")
        if getattr(config, "sampling_temperature_decay", 0.0) and total_updates < 1:
            raise ValueError("sampling_temperature_decay is a share of the run: give its length with --max-update")
        self.encoder = Encoder(config.encoder_config(vocabulary))
        excluded = torch.zeros(vocabulary.size, dtype=torch.bool)
        excluded[vocabulary.excluded] = True
        self.register_buffer("excluded_tokens", excluded, persistent=False)  # (V,) True = never drawn

    def check_schedule(self) -> None:
        """Raises ValueError if a run of `total_updates` that is to be made would end before all of it has learned."""

    def set_num_updates(self, num_updates: int) -> None:
        """Called by fairseq before every update."""
        self.num_updates = num_updates

    @property
    def generator_warmup(self) -> int:
        """In how many updates, the first ones, only the generator learns."""
        return getattr(self.config, "generator_warmup_updates", 0)

    @property
    def joint_updates(self) -> int:
        """How many updates all of it has learned in: `num_updates` but for the generator's warm-up."""
        return max(0, self.num_updates - self.generator_warmup)

    def idle_parameters(self) -> List[nn.Parameter]:
        """What does not learn while the generator learns alone: nothing where one network is all."""
        return []

    def encoder_start(self) -> Start:
        """What the encoder takes from the generator when the warm-up of that ends."""
        return Start([], "one network")

    def learning_rate_groups(self) -> List[LearningRateGroup]:
        """What is trained, in the groups of the options `<group>_lr_factor`; the rest has the factor 1.

        rel_pos    the relative position biases, of whichever network
        encoder    what only the encoder and its heads use
        generator  what only the generator and its heads use
        shared     what both do: token table, shared layers, a shared embedding network; it always has the factor 1,
                   for it gets both networks' gradients

        Raises ValueError for a factor of no parameter.
        """
        groups: Dict[nn.Parameter, Set[str]] = {}
        for name, parameter in self.named_parameters(remove_duplicate=False):
            path = name.split(".")
            network = "generator" if path[0] in self.generator_modules else "encoder"
            if parameter.requires_grad:
                groups.setdefault(parameter, set()).add("rel_pos" if "relative_position_bias" in path else network)
        parameters: Dict[str, List[nn.Parameter]] = {}
        for parameter, names in groups.items():
            parameters.setdefault("shared" if len(names) > 1 else next(iter(names)), []).append(parameter)
        factors = self.config.lr_factors()
        for name, factor in factors.items():
            if factor != 1.0 and name.removesuffix(LR_FACTOR) not in parameters:
                raise ValueError(f"{name} {factor} is of no parameter that this run trains: leave it out")
        return [
            LearningRateGroup(name, factors.get(f"{name}{LR_FACTOR}", 1.0), alike) for name, alike in parameters.items()
        ]

    def start_biases(self, token_counts: Sequence[int], mask_prob: float) -> None:
        """Called on a new method, before it takes anything from an earlier run: what the options draw from the data.

        token_counts: V of the prepared data   mask_prob: share of the words that are selected
        """
        if self.config.output_bias_init == "log_frequency":
            counts = torch.as_tensor(token_counts, device=self.excluded_tokens.device)
            self.start_output_bias(log_frequencies(counts.masked_fill(self.excluded_tokens, 0)))
        if getattr(self.config, "detection_bias_init", "zero") == "prior":
            self.start_detection_bias(math.log((1 - mask_prob) / mask_prob))

    @torch.no_grad()
    def start_output_bias(self, log_frequencies: Tensor) -> None:
        self.mlm_head.bias.copy_(log_frequencies)

    @torch.no_grad()
    def start_detection_bias(self, logit: float) -> None:
        """So that the logit of 'original' starts near `logit`. TEAMS has no such head with rtd_weight 0."""
        self.rtd_head.score.bias.fill_(logit)

    def warmed_up(self, weight: float) -> float:
        """`weight` of a loss by which the encoder judges: in training times u / rtd_warmup_updates up to 1."""
        updates = cast(JudgingConfig, self.config).rtd_warmup_updates
        if not self.training or self.joint_updates >= updates:
            return weight
        return weight * self.joint_updates / updates

    def judged(self, batch: PretrainingBatch, weight: float) -> Tuple[Tensor, float, str]:
        """The (B, T) positions that the encoder's verdicts are averaged over, their weight by now, and their name."""
        positions, weight = batch.valid_positions, self.warmed_up(weight)
        if not cast(JudgingConfig, self.config).detection_on_words:
            return positions, weight, VALID
        return self.words(batch), weight, WORDS

    @property
    def draw_temperature(self) -> float:
        """T_u of the draws of this update: 1 + (T - 1) exp(-u / (tau U)) in training, 1 in validation."""
        config = cast(JudgingConfig, self.config)
        start, decay = config.sampling_temperature, config.sampling_temperature_decay
        if not self.training or not decay:
            return start if self.training else 1.0
        return 1 + (start - 1) * math.exp(-self.num_updates / (decay * self.total_updates))

    def check_batch_size(self, sequences: int, split: str) -> None:
        """Refuse, with a ValueError, a run whose largest batches of a split hold too few sequences per process."""

    @property
    def divides_batches(self) -> bool:
        """Whether an update is the same if its micro-batches are made in parts."""
        return not any(getattr(self.config, f"{term}_weight") for term in self.batchwise_terms)

    @property
    def forward_is_local(self) -> bool:
        """Whether no forward pass of training waits for other processes."""
        return True

    def forward(self, batch: PretrainingBatch) -> Output:
        raise NotImplementedError

    def losses(self, output: Output, batch: PretrainingBatch) -> Dict[str, LossTerm]:
        """The terms whose weighted means add up to the loss."""
        raise NotImplementedError

    def statistics(self, output: Output, batch: PretrainingBatch) -> Dict[str, Mean]:
        """What is logged beside the losses, without gradient."""
        raise NotImplementedError

    def forward_flops(self, tokens: int, length: int, masked: int) -> int:
        """Matrix-product FLOPs of one forward pass over `tokens` positions, `masked` of them selected."""
        raise NotImplementedError

    def generator_flops(self, tokens: int, length: int, masked: int) -> int:
        """Of one forward pass of the generator and its heads."""
        raise NotImplementedError

    def reference_flops(self, length: int) -> float:
        """FLOPs per token of a forward pass, as the papers' tables count them (see `amos_fairseq.reference_flops`).

        Here: each network once, with an MLM head on each generator, or on the encoder if it is alone.
        """
        encoder, *generators = (network.config for network in self.networks().values())
        heads = sum(map(reference.mlm_head, generators or [encoder]))
        networks = sum(reference.network(config, length) for config in (encoder, *generators))
        return networks + reference.PREDICTED * heads

    def training_flops(self, batch: PretrainingBatch) -> int:
        """Model FLOPs of one training step on `batch`, padding included."""
        tokens, length = batch.original_tokens.numel(), batch.original_tokens.size(1)
        return BACKWARD_AND_FORWARD * self.forward_flops(tokens, length, sum(batch.num_masked))

    def sampling_noise(self, batch: PretrainingBatch, stream: int = 0) -> Noise:
        """Gumbel noise of M rows, a function of (seed, update, stream, sample id, position), validation being update 0.

        The same sequence gets the same noise whichever process or micro-batch it falls into, and after a resume.
        Draws of one update that must be independent use different streams.
        """
        update = self.num_updates if self.training else 0
        length = batch.original_tokens.size(1)
        samples = batch.sample_ids[batch.masked_index // length]
        rows = torch.stack([samples, batch.masked_index % length], dim=1)
        return Noise(mixed_seed(self.noise_seed, update, stream), rows)

    def masked_lm_statistics(self, masked_lm: MaskedLMReading, batch: PretrainingBatch) -> Dict[str, Mean]:
        """Of `statistics`, those of a generator that learns alone."""
        return {"generator_accuracy": accuracy(masked_lm.predicted[:, 0], batch.mlm_targets)}

    def pass_key(self, batch: PretrainingBatch, stream: int) -> PassKey:
        """Of a pass's attention dropout where kernels draw it: a function of what `sampling_noise` is one of.

        Passes of one update have different streams: 0 is the generator's, 1 the encoder's on corrupted sequences.
        """
        seed = mixed_seed(self.noise_seed, self.num_updates, stream, ATTENTION)
        return PassKey(seed >> 1, batch.sample_ids)

    def generator_statistics(
        self, predicted: Tensor, sampled_tokens: Tensor, batch: PretrainingBatch
    ) -> Dict[str, Mean]:
        """How often the generator's likeliest token (M,), and what was drawn from it, is the original."""
        return {
            "generator_accuracy": accuracy(predicted, batch.mlm_targets),
            "sampled_accuracy": accuracy(sampled_tokens, batch.mlm_targets),
        }

    def words(self, batch: PretrainingBatch) -> Tensor:
        """(B, T) bool, the positions that can be masked: neither padding nor special tokens."""
        return batch.valid_positions & ~self.excluded_tokens[batch.original_tokens]

    def detection_statistics(
        self, rtd_logits: Tensor, corruption: Corruption, batch: PretrainingBatch
    ) -> Dict[str, Mean]:
        """`detection_accuracy` of (B, T) logits, positive = original."""
        return detection_accuracy(rtd_logits, corruption, batch.valid_positions, self.words(batch))

    def count_tokens(self, corruption: Corruption, batch: PretrainingBatch) -> Tensor:
        """(2, V) how often each token stands at a word's position as the original, and as a replacement."""
        words, vocabulary = self.words(batch), len(self.excluded_tokens)
        kinds = corruption.corrupted_tokens + vocabulary * corruption.replaced_positions  # (B, T)
        counts = kinds.new_zeros(2 * vocabulary)  # to choose the words' would have the host wait for their number
        return counts.index_add_(0, kinds.flatten(), words.flatten().to(kinds.dtype)).view(2, vocabulary)

    def validation_statistics(
        self, output: Any, batch: PretrainingBatch, token_counts: Tensor
    ) -> Dict[str, Pooled]:
        """What validation logs beside `statistics`, of the whole validation set.

        rtd_auc_words     detection AUC over words: <s> and </s>, which are never replaced, are easily told
        rtd_auc_all       over all positions
        rtd_auc_identity  of words by their token alone, from `token_counts` (2, V) of training, see `count_tokens`
        hidden_cosine, hidden_rank   how alike the encoder's last hidden states of words are, the text being uncorrupted
        """
        words, statistics = self.words(batch), {}
        logits, valid = self.judged_logits(output), batch.valid_positions
        if logits is not None:
            corrupted, replaced = output.corruption
            statistics = {
                "rtd_auc_words": ranking(logits[words], replaced[words]),
                "rtd_auc_all": ranking(logits[valid], replaced[valid]),
                "rtd_auc_identity": ranking(identity_logits(token_counts)[corrupted[words]], replaced[words]),
            }
        hidden = self.encoder(batch.original_tokens, batch.padding_mask)[words]
        return {**statistics, "hidden_cosine": similarity(hidden), "hidden_rank": spread(hidden)}

    def network_flops(self, network: Encoder, tokens: int, length: int, queries: Optional[int] = None) -> int:
        return encoder_flops(network.config, tokens, length, len(network.layers), queries)

    def head_flops(self, head, masked: int) -> int:
        rows, width = head.token_embeddings.weight.shape
        return mlm_head_flops(head.dense.in_features, rows, width, masked)

    # What is asked of a trained method.

    def exported_encoder(self) -> Encoder:
        """What fine-tuning, embedding and export keep: a copy where the encoder's weights are not all its own."""
        return self.encoder

    def networks(self) -> Dict[str, Encoder]:
        """The networks that read text, by name, the encoder first."""
        return {"encoder": self.exported_encoder()}

    def marked_layers(self, network: str) -> List[int]:
        """Layers of one of `networks`, below its last, too, that carry an MLM head."""
        return []

    @property
    def masked_lm_encoder(self) -> Encoder:
        """The network whose hidden states `mlm_head` reads. Raises ValueError if there is no masked language model."""
        return self.encoder

    def masked_lm_states(self, batch: PretrainingBatch) -> Tensor:
        """(M, C), or (G, M, C) of several: what `mlm_head` reads at the selected positions."""
        return self.masked_lm_encoder(
            batch.masked_tokens, batch.padding_mask, batch.queries, self.pass_key(batch, stream=0)
        )

    @property
    def encoder_lm_head(self) -> Optional[nn.Module]:
        """The language model on the encoder itself, of which prompts ask: `mlm_head`, unless the class says None."""
        return None if self.encoder_lm_head_class is None else self.mlm_head

    @property
    def detection_head(self) -> Optional[DetectionHead]:
        """The head on the encoder itself that detects replaced tokens, positive = original: `rtd_head`, if any."""
        return getattr(self, "rtd_head", None)

    def detection_logits(self, tokens: Tensor, padding_mask: Optional[Tensor] = None) -> Tensor:
        """(B, T): how original each token of a text as it stands looks to the encoder, positive = original.

        Raises ValueError if the method does not learn that.
        """
        if self.detection_head is None:
            raise ValueError(f"{type(self).__name__} learns to predict masked tokens, not to detect replaced ones")
        return self.detection_head(self.encoder(tokens, padding_mask))

    # What is told of a text: in the words of `amos_fairseq.methods.stages`.

    def proposals(self, output, batch: PretrainingBatch) -> Dict[str, Proposals]:
        """What each masked language model proposes at the selected positions, by name; {} without one."""
        name = "encoder" if self.masked_lm_encoder is self.encoder else "generator"
        return {name: Proposals(full_precision(self.mlm_head(self.masked_lm_states(batch))))}

    def judged_logits(self, output) -> Optional[Tensor]:
        """(B, T) `detection_logits` of the corrupted tokens, None without any."""
        return getattr(output, "rtd_logits", None)

    def details(self, output, batch: PretrainingBatch, words: Words) -> Dict[str, List[Any]]:
        """By name, what only this method says of the M selected positions; None where it says nothing."""
        return {}

    def corruptions(self, batch: PretrainingBatch) -> Dict[str, Corruption]:
        """By generator, what each alone makes of a batch; {} of a method that replaces nothing."""
        corruption = getattr(self(batch), "corruption", None)
        return {} if corruption is None else {"generator": corruption}


def log_frequencies(counts: Tensor) -> Tensor:
    """(V,) -> (V,) in fp32: log (c_v + 1) / (sum of c + V), whose exponentials sum to 1."""
    smoothed = counts.double() + 1
    return (smoothed / smoothed.sum()).log().float()


def accuracy(predictions: Tensor, targets: Tensor) -> Mean:
    """Share of equal elements."""
    return Mean((predictions == targets).sum(), targets.numel())


def detection_accuracy(
    rtd_logits: Tensor, corruption: Corruption, valid_positions: Tensor, words: Tensor
) -> Dict[str, Mean]:
    """Share of positions replaced, and detection accuracy on original and on replaced positions (threshold 1/2).

    Of original positions also those that are `words` (B, T) bool, as all replaced ones are.
    """
    replaced = corruption.replaced_positions
    original = valid_positions & ~replaced
    called_original = rtd_logits > 0

    def accuracy_original(where: Tensor) -> Mean:
        return Mean((called_original & original & where).sum(), (original & where).sum())

    return {
        "replaced_share": Mean(replaced.sum(), valid_positions.sum()),
        "rtd_accuracy_original_words": accuracy_original(words),
        "rtd_accuracy_original_all": accuracy_original(valid_positions),
        "rtd_accuracy_replaced": Mean((~called_original & replaced).sum(), replaced.sum()),
    }


def identity_logits(token_counts: Tensor) -> Tensor:
    """(V,) how likely each token is the original, from its counts (2, V) as the original and as a replacement.

    log odds of (count + prior) / (sum of both + 1), where the prior is the share over all tokens: that of a new one.
    """
    totals = token_counts.sum(dim=1, dtype=torch.double) + 0.5
    originals, replaced = token_counts + (totals / totals.sum())[:, None]
    return originals.log() - replaced.log()
