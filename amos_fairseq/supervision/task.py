"""What a task is to supervision; one that derives from this, with a config derived from SupervisionConfig, has it."""

import logging
from typing import Any, Callable, Collection, Dict, List, Optional, Sequence

from fairseq.tasks import FairseqTask

from amos_fairseq.fairseq_options import told_with_recipe_named
from amos_fairseq.options import free_names
from amos_fairseq.supervision import faults, supervisor
from amos_fairseq.supervision.options import SupervisionConfig

logger = logging.getLogger(__name__)


class SupervisedTask(FairseqTask):
    """fairseq's task, whose steps are made under supervision. Its batches have `nsentences`, as fairseq's have."""

    forward_is_local = True  # no forward pass of training waits for other processes
    free_options = free_names(SupervisionConfig)  # of the task and its model, that a resumed run may change
    loss_names: Sequence[str] = ()  # of logged quantities: what the loss is made of
    divides_batches = False  # an update is the same if its micro-batches are made in parts, which `split_batch` makes
    rows_of: Optional[Callable[[Dict[str, Any], slice], Dict[str, Any]]] = None  # some of a batch's sequences
    _validation_parts = 1  # that each batch of validation is made in since memory ran out

    @classmethod
    def setup_task(cls, cfg, **kwargs):
        with told_with_recipe_named():
            return cls(cfg)

    @classmethod
    def logged(cls, cfg) -> Optional[Collection[str]]:
        """What validation logs, less numbers at the end, by which the best checkpoint can be told; None: not known."""
        return None

    def split_batch(self, sample: Dict[str, Any], parts: int) -> List[Dict[str, Any]]:
        """The batch in `parts` of equally many sequences, the last of fewer, or one of each sequence; an empty one, or
        without `rows_of`, as it is.
        """
        if self.rows_of is None or not sample or parts == 1:  # as it is, in pinned memory
            return [sample]
        size = -(-sample["nsentences"] // parts)
        return [self.rows_of(sample, slice(start, start + size)) for start in range(0, sample["nsentences"], size)]

    def sample_ids(self, sample: Dict[str, Any]) -> List[int]:
        """What the log names the batch's sequences by."""
        return sample["id"].tolist()

    def get_checkpoint_dict(self) -> Dict[str, Any]:
        """Part of every checkpoint, as fairseq's `extra_state`."""
        return {} if supervisor.current() is None else supervisor.current().state_dict()

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False, **kwargs):
        step, arguments = super().train_step, (sample, model, criterion, optimizer, update_num, ignore_grad)
        if supervisor.current() is None:
            loss, sample_size, logs = step(*arguments, **kwargs)
        else:
            loss, sample_size, logs = supervisor.current().micro_batch(self, step, *arguments, **kwargs)
        if ignore_grad:  # a process without data repeats an earlier batch, which must not count
            return loss, 0, {key: 0 * value for key, value in logs.items()}
        return loss, sample_size, logs

    def valid_step(self, sample, model, criterion, **kwargs):
        """If memory runs out, the batch, and every one from then on, is made in twice as many parts.

        Their logs add up to its own but for statistics that compare the sequences of a batch.
        """
        step = super().valid_step
        while True:
            parts = self.split_batch(sample, self._validation_parts)
            try:
                outputs = [step(part, model, criterion, **kwargs) for part in parts]
                break
            except RuntimeError as error:
                if not faults.is_out_of_memory(error) or len(self.split_batch(sample, 2 * len(parts))) == len(parts):
                    raise
            self._validation_parts *= 2
            logger.warning("out of memory: batches of validation are made in %d parts", self._validation_parts)
            model.zero_grad(set_to_none=True)
            faults.empty_cache()
        losses, sizes, logs = zip(*outputs)
        return sum(losses), sum(sizes), {key: sum(of_part[key] for of_part in logs) for key in logs[0]}
