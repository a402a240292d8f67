"""One update by fairseq's trainer on given samples, without taking the step: what it computes goes to a file.

Arguments: a file of jobs [{"options": [..], "layout": [ranks][micro-batches][indices]}, ..] and the file to write to,
to whose name the rank is appended.
"""

import functools
import json
import sys

import torch
from fairseq import options, tasks, utils
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.distributed import utils as distributed_utils
from fairseq.logging import meters, metrics
from fairseq.trainer import Trainer

GAIN = 10.0  # of the initial matrices, so that no gradient is tiny beside the others, as those of mixture weights are


def main():
    jobs_path, out = sys.argv[1:]
    with open(jobs_path) as file:
        jobs = json.load(file)
    configs = [training_config(*job["options"]) for job in jobs]
    layouts = [job["layout"] for job in jobs]
    distributed_utils.call_main(configs[0], update_all, configs=configs, layouts=layouts, out=out)


@functools.cache  # this is slow
def training_config(*arguments):
    sys.argv[1:] = arguments  # fairseq looks for --user-dir there
    return convert_namespace_to_omegaconf(options.parse_args_and_arch(options.get_training_parser()))


def update_all(first, configs, layouts, out):
    """`first` is a config that knows the process group."""
    rank = distributed_utils.get_global_rank() if torch.distributed.is_initialized() else 0
    results = []
    for config, layout in zip(configs, layouts):
        config.distributed_training = first.distributed_training
        results.append(one_update(config, layout[rank]))
    torch.save(results, f"{out}.{rank}")


def one_update(config, micro_batches):
    """Averaged gradients by parameter, unrounded metrics, drawn tokens by sample, and each micro-batch's own logs.

    Also the tokens counted, and what validation on the same samples says of all of them together.
    """
    utils.set_torch_seed(config.common.seed)
    task = tasks.setup_task(config.task)
    task.load_dataset("train")
    dataset = task.dataset("train")
    model, criterion = task.build_model(config.model), task.build_criterion(config.criterion)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(GAIN if parameter.dim() > 1 else 1.0)
    trainer = Trainer(config, task, model, criterion)
    result = {"gradients": {}, "metrics": {}, "sampled": {}, "micro_batches": []}

    def keep_gradients(optimizer, model, update_num):
        for name, parameter in trainer.get_model().named_parameters():
            result["gradients"][name] = parameter.grad.clone()

    def keep_samples(model, _, batch, output):
        if hasattr(output, "sampled_tokens"):
            drawn = output.sampled_tokens.split(batch["num_masked"])
            result["sampled"].update(zip(batch["sample_ids"].tolist(), (tokens.tolist() for tokens in drawn)))

    def keep_logs(criterion, _, output):
        if criterion.training:
            scalars = {key: value for key, value in output[2].items() if not torch.is_tensor(value) or not value.dim()}
            result["micro_batches"].append({key: float(value) for key, value in scalars.items()})

    def batch(indices):
        return dataset.collater([dataset[index] for index in indices])

    task.optimizer_step = keep_gradients
    model.register_forward_hook(keep_samples, with_kwargs=True)
    criterion.register_forward_hook(keep_logs)
    trainer.reset_dummy_batch(batch([0]))
    metrics.reset()
    trainer.train_step([batch(indices) for indices in micro_batches])
    averages = {k: m for k, m in metrics.get_meters("train").items() if isinstance(m, meters.AverageMeter)}
    result["metrics"] = {name: float(meter.avg) for name, meter in averages.items()}
    result["token_counts"] = model.token_counts.clone()
    for indices in micro_batches:
        trainer.valid_step(batch(indices))
    pooled = {k: m for k, m in metrics.get_meters("valid").items() if hasattr(m, "reading")}
    result["pooled"] = {name: meter.avg for name, meter in pooled.items()}
    return result
