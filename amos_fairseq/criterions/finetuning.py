"""The criterion of fine-tuning: the kind's loss, summed over sequences, of which fairseq's trainer makes the mean."""

from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.logging import metrics

from amos_fairseq.finetune.labelled import Batch
from amos_fairseq.pretrained.loading import FINETUNING
from amos_fairseq.user_errors import told_in_one_line


@register_criterion(FINETUNING)
class FinetuningCriterion(FairseqCriterion):
    def __init__(self, task):
        super().__init__(task)
        with told_in_one_line():
            name = task.cfg._name
            if name != FINETUNING:
                raise ValueError(f"criterion finetuning is of task finetuning, not {name}: name the task's own")

    def forward(self, model, sample, reduce=True):
        batch = Batch(**sample["net_input"], targets=sample["targets"], candidates=sample["candidates"])
        outputs = model(**sample["net_input"])
        loss = self.task.kind.loss(outputs, batch)
        if not model.training:
            self.task.note(sample, outputs)
        sequences = sample["nsentences"]
        return loss, sequences, {"loss": loss.detach(), "ntokens": sample["ntokens"], "nsentences": sequences}

    @staticmethod
    def reduce_metrics(logging_outputs) -> None:
        total, sequences = (sum(float(logs[key]) for logs in logging_outputs) for key in ("loss", "nsentences"))
        metrics.log_scalar("loss", total / max(1, sequences), sequences, round=5)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        return True
