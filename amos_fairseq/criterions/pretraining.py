"""One criterion under each method's name: it adds up the method's loss terms and logs them.

Normalisation. The loss of an update is sum_terms weight * (total / count), where total and count run over all
micro-batches and processes of the update: exactly the loss of their concatenation. fairseq divides the summed
gradients by the summed `sample_size`, so each micro-batch returns

    loss        = sum_terms weight * total * (micro-batches of the update / count of the update)
    sample_size = 1

Its loss is then near the mean loss of one micro-batch, whatever the batch size, the number of GPUs and the update
frequency, so fp16 gradients stay where fairseq's default loss scale expects them.
"""

import os

import torch
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.distributed import utils as distributed_utils
from fairseq.logging import meters, metrics

from amos_fairseq.flops import peak_flops
from amos_fairseq.methods import METHODS, for_each_method
from amos_fairseq.methods.batch import PretrainingBatch
from amos_fairseq.methods.generator_first import learner
from amos_fairseq.objectives import COUNTED
from amos_fairseq.pooled import READINGS
from amos_fairseq.user_errors import stop

DIGITS = 5
HIDDEN = "_weighted "  # fairseq prints no metric whose name starts with an underscore


TOKENS = "tokens"  # in the logs of a training step: what `PretrainingModel.token_counts` adds up


class PooledMeter(meters.MetersDict._DerivedMeter):
    """What the sums of all batches say, by one of READINGS; as a derived one it is in no checkpoint."""

    def __init__(self, reading: str):
        super().__init__(self.rounded)
        self.reading, self.sums = reading, 0

    def update(self, sums):
        self.sums = self.sums + sums

    def reset(self):
        self.sums = 0

    @property
    def avg(self):
        return READINGS[self.reading](self.sums)

    def rounded(self, _):
        value = self.avg
        return value if value is None else round(value, DIGITS)


def weighted_sum(meters) -> float:
    """The loss of all that the meters have seen: a mean of batches' losses would differ where batches are ragged."""
    terms = [meter.avg for name, meter in meters.items() if name.startswith(HIDDEN) and meter.count]
    return round(sum(terms), DIGITS)


class PretrainingCriterion(FairseqCriterion):
    method_name: str

    def __init__(self, task):
        super().__init__(task)
        if task.method_name != self.method_name:
            stop(
                f"criterion {self.method_name} and task {task.method_name} are two methods: use one name for task, "
                "arch and criterion", os.EX_USAGE,
            )

    def forward(self, model, sample, reduce=True):
        batch = PretrainingBatch(**sample["net_input"])
        method = learner(model.method)
        output = model(**sample["net_input"])
        terms = method.losses(output, batch)
        logs = {"ntokens": sample["ntokens"], "nsentences": sample["nsentences"]}
        with torch.no_grad():
            statistics = method.statistics(output, batch)
            if not model.training:
                for name, pooled in model.method.validation_statistics(output, batch, model.token_counts).items():
                    logs[f"pooled {name} {pooled.reading}"] = pooled.sums
            elif method.judged_logits(output) is not None:
                logs[TOKENS] = model.method.count_tokens(output.corruption, batch)

        if model.training:
            scales = self.task.term_scales
        else:
            scales = {over: 1 / max(1, sample["counts"][over]) for over in COUNTED}
        loss = sum(term.weight * term.total * scales[term.over] for term in terms.values())

        for name, term in terms.items():
            logs[f"term {name} total"] = term.total.detach()
            logs[f"term {name} count"] = term.count
            logs[f"term {name} weighted"] = term.weight * term.total.detach()
        for name, mean in statistics.items():
            logs[f"mean {name} total"] = mean.total
            logs[f"mean {name} count"] = mean.count
        if model.training:
            flops_per_device = method.training_flops(batch) / distributed_utils.get_data_parallel_world_size()
            logs["tflop"] = flops_per_device / 1e12
            logs["peak_seconds"] = flops_per_device / peak_flops(batch.original_tokens.device)
        return loss, 1, logs

    @staticmethod
    def reduce_metrics(logging_outputs) -> None:
        """Log each term's and statistic's mean over all that was counted, and the terms' weighted sum as `loss`.

        Also what sums of the whole validation set say.
        """
        sums = {}
        for logs in logging_outputs:
            for key, value in logs.items():
                sums[key] = sums.get(key, 0) + (value if key.startswith("pooled ") else float(value))
        for key, count in sums.items():
            if key.startswith("pooled "):
                _, name, reading = key.split()
                metrics.log_custom(lambda: PooledMeter(reading), name, count)  # noqa: B023 (is called at once)
                continue
            if not key.endswith(" count") or not count:
                continue
            kind, name, _ = key.split()
            metrics.log_scalar(name, sums[f"{kind} {name} total"] / count, count, round=DIGITS)
            if kind == "term":
                metrics.log_scalar(f"{HIDDEN}{name}", sums[f"term {name} weighted"] / count, count)
        metrics.log_derived("loss", weighted_sum, priority=0)
        if "tflop" in sums:
            # Rates: model FLOPs, and the seconds that they would take at the device's peak, per second of wall time.
            # Not rounded: fairseq prints six significant digits, and decimals would make a small rate 0.
            metrics.log_speed("tflops", sums["tflop"], priority=91)
            metrics.log_speed("mfu", sums["peak_seconds"], priority=92)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        return True


@for_each_method
def _register(name: str) -> None:
    criterion = type(f"{METHODS[name].__name__}Criterion", (PretrainingCriterion,), {"method_name": name})
    register_criterion(name)(criterion)
