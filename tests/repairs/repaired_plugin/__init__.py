"""A user directory with the repairs and fairseq's masked language modelling, printing what each update is made of."""
import sys

import torch
from fairseq.tasks import register_task
from fairseq.tasks.masked_lm import MaskedLMConfig, MaskedLMTask

from amos_fairseq import fairseq_repairs

fairseq_repairs.install()


@register_task("printing_masked_lm", dataclass=MaskedLMConfig)
class PrintingMaskedLMTask(MaskedLMTask):
    def begin_update(self, samples, device):
        self.sizes = [sample["nsentences"] if sample else 0 for sample in samples]

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        sys.stdout.write(f"micro-batch {rank} {update_num} {self.sizes} {torch.rand(()).item()}\n")  # in one piece
        loss, sample_size, logs = super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad)
        if ignore_grad:  # the stand-in for an empty micro-batch counts nothing
            sample_size, logs = sample_size * 0, {key: value * 0 for key, value in logs.items()}
        return loss, sample_size, logs
