"""One of two processes that train COCO-LM's first micro-batch with `scl_gather`; the first writes what they add up to.

Arguments: the rank, and a folder that holds `cases`, {name: sequences of each process, None for a stand-in}.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[1]))
from conftest import make_batch, make_method, rows_of  # noqa: E402

LENGTHS = (12, 9, 12, 10)


def main(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    results = {}
    for case, processes in torch.load(folder / "cases").items():
        whole = make_batch(lengths=LENGTHS[: sum(len(rows) for rows in processes if rows)])
        results[case] = joined(whole, processes[rank])
    if rank == 0:
        torch.save(results, folder / "results")
    dist.destroy_process_group()


def joined(whole, rows):
    """Gradients and loss totals, summed over processes as the trainer does; each term by its joined count."""
    method = make_method("coco_lm", dtype=torch.double, gain=3.0, scl_gather=True)
    batch = whole._replace(stand_in=True) if rows is None else rows_of(whole, rows)
    terms = method.losses(method(batch), batch)
    counts = {"selected": sum(whole.num_masked), "valid": int(whole.valid_positions.sum())}
    counts["sequences"] = len(whole.sample_ids)
    loss = sum(term.weight * term.total / counts[term.over] for term in terms.values())
    (loss * (rows is not None)).backward()
    totals = torch.stack([term.total.detach() * (rows is not None) for term in terms.values()])
    gradients = {name: parameter.grad for name, parameter in method.named_parameters()}
    for tensor in (totals, *gradients.values()):
        dist.all_reduce(tensor)
    return gradients, dict(zip(terms, totals.tolist()))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
