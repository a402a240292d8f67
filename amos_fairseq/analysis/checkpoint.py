"""A trained run, loaded to look at what it does with text."""
from pathlib import Path
from typing import List, NamedTuple, Optional, Sequence

import torch
from torch import Tensor

from amos_fairseq import checkpoints
from amos_fairseq.analysis.inspection import Verdict, verdicts
from amos_fairseq.data.masking import MaskedBlockDataset
from amos_fairseq.data.tokenizer import Tokenizer
from amos_fairseq.data.vocabulary import MODEL_NAME
from amos_fairseq.methods.base import PretrainingBatch, PretrainingMethod

DETECTION_LOGITS = ("rtd_logits", "critic_logits")  # fields of a method's output: (B, T), positive = original
WITHOUT_DETECTION = ("bert_mlm",)


class TrainedRun(NamedTuple):
    """`method` in evaluation mode, with the task that its run was trained on."""

    method: PretrainingMethod
    task: "amos_fairseq.tasks.pretraining.PretrainingTask"  # noqa: F821
    data: Path

    def inspect_held_out(self, count: int) -> List[List[Verdict]]:
        """Blocks from all over the validation data, with the masks of validation."""
        self.task.load_dataset("valid")
        dataset = self.task.dataset("valid")
        count = min(count, len(dataset))
        return self.inspect(dataset, [len(dataset) * (2 * i + 1) // (2 * count) for i in range(count)])

    def inspect_text(self, lines: Sequence[str]) -> List[List[Verdict]]:
        """Lines of text, each a sequence of its own, cut to what the model can read."""
        longest = self.task.max_positions()
        blocks = [
            tokens if len(tokens) <= longest else torch.cat([tokens[: longest - 1], tokens[-1:]])
            for tokens in self.encode(lines)
        ]
        sizes = [len(block) for block in blocks]
        dataset = self.task.masked_blocks(blocks, sizes)
        return self.inspect(dataset, range(len(dataset)))

    def encode(self, lines: Sequence[str]) -> List[Tensor]:
        """Ids of each line, between <s> and </s>."""
        tokenizer = Tokenizer((self.data / MODEL_NAME).read_bytes(), str(self.data / MODEL_NAME))
        return [torch.tensor(tokenizer.sequence(tokenizer.encode(line))) for line in lines]

    @torch.no_grad()
    def inspect(self, dataset: MaskedBlockDataset, indices: Sequence[int]) -> List[List[Verdict]]:
        sequences = []
        for index in indices:
            batch = PretrainingBatch(**dataset.collater([dataset[index]])["net_input"])
            output = self.method(batch)
            fields = [getattr(output, name, None) for name in DETECTION_LOGITS]
            logits = next((field for field in fields if field is not None), None)
            if logits is None:
                raise ValueError(f"{self.task.method_name} was trained without detection of replaced tokens")
            corruption = output.corruption
            arrays = (
                batch.original_tokens, corruption.corrupted_tokens, corruption.replaced_positions, logits.sigmoid()
            )
            dictionary = self.task.dictionary
            hidden = [dictionary.bos(), dictionary.eos(), dictionary.pad()]
            sequences.append(verdicts(*(array[0].tolist() for array in arrays), dictionary.symbols, hidden))
        return sequences


def load_run(run: Path, data: Optional[Path] = None) -> TrainedRun:
    """The run's newest valid checkpoint, or the checkpoint `run`; `data` if the prepared folder is not RUN/data."""
    checkpoint = checkpoints.find(run)
    if data is None and (checkpoint.parent / "data").is_dir():
        data = checkpoint.parent / "data"

    from fairseq import checkpoint_utils

    import amos_fairseq.models.pretraining  # noqa: F401  registers the models, and tasks their repairs of fairseq
    import amos_fairseq.tasks  # noqa: F401

    changes = {"data": str(data)} if data else None
    (model,), _, task = checkpoint_utils.load_model_ensemble_and_task([str(checkpoint)], arg_overrides=changes)
    if task.method_name in WITHOUT_DETECTION:
        raise ValueError(f"{checkpoint} was trained with {task.method_name}, which detects no replaced tokens")
    model.eval()
    return TrainedRun(model.method, task, Path(task.cfg.data))
