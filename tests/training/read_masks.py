"""Reads the training data as fairseq's trainer does, epoch after epoch; what is masked goes to a file.

Arguments: the file, the number of epochs, and those of fairseq-train.
"""

import sys

import torch
from fairseq import options, tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.trainer import Trainer


def main():
    out, epochs = sys.argv[1], int(sys.argv[2])
    del sys.argv[1:3]
    config = convert_namespace_to_omegaconf(options.parse_args_and_arch(options.get_training_parser()))
    task = tasks.setup_task(config.task)
    trainer = Trainer(config, task, task.build_model(config.model), task.build_criterion(config.criterion))
    found = []
    for epoch in range(1, epochs + 1):
        iterator = trainer.get_train_iterator(epoch=epoch, load_dataset=epoch == 1)
        masked = {}
        for batch in iterator.next_epoch_itr(shuffle=True):
            inputs = batch["net_input"]
            fields = (inputs[key].tolist() for key in ("original_tokens", "masked_tokens", "masked_positions"))
            masked.update(zip(inputs["sample_ids"].tolist(), zip(*fields)))
        found.append(masked)
    torch.save(found, out)
