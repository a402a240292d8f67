"""NaN, infinity, want of memory and loss spikes: all processes do the same about them, and training goes on or ends."""

import functools

import pytest
import torch

from amos_fairseq.analysis import run_log
from amos_fairseq.methods import METHODS
from amos_fairseq.supervision import faults
from tests.reliability.test_resuming import error_of, last

soak = functools.partial(pytest.param, marks=pytest.mark.soak)


def parameters(outcome):
    """Of each process: (updates, digest of the parameters) after each update that it began."""
    lines = [[line for line in out.splitlines() if line.startswith("parameters ")] for out in outcome.out]
    return [[tuple(line.split()[1:]) for line in of_process] for of_process in lines]


# The rules

def test_a_budget_counts_the_skips_among_the_last_1000_updates():
    budget = faults.Budget(2)
    assert [budget.spend(update) for update in (1, 2, 1000, 1001, 1002, 3000)] == [1, 2, 3, 3, 3, 1]


def test_a_spike_is_more_than_factor_times_the_median_of_the_last_100():
    losses = faults.RecentLosses(2.0)
    assert not any(losses.spikes(loss) for loss in [1000.0, *range(1, 100)])  # the window is not full before
    # window: 1000, 1..99, median 50.5; a spike does not enter it
    assert not losses.spikes(101.0)  # now 1..99, 101, median 50.5
    assert losses.spikes(101.1) and losses.spikes(1e9)
    assert len(losses.losses) == 100 and losses.losses[-1] == 101.0
    assert not faults.RecentLosses(0.0, [1.0] * 100).spikes(1e9)


def scalar_model(value):
    weight = torch.tensor(value, requires_grad=True)
    return weight, lambda model, sample: (weight * sample["factor"], 1, {"loss": weight.detach()})


@pytest.mark.parametrize("factor, gradient", [(2.0, 2.0), (-3.0, -3.0), (float("inf"), float("nan"))])
def test_the_gradient_of_a_loss_is_its_own_or_nan_if_the_loss_is_not_finite(factor, gradient):
    weight, criterion = scalar_model(1.5)
    forward = faults.reversible(criterion, True, lambda: None)
    loss, sample_size, logs = forward(None, {"factor": factor})
    loss.backward()
    assert (sample_size, logs) == (1, {"loss": 1.5})
    assert weight.grad.item() == pytest.approx(gradient, nan_ok=True)


def out_of_memory_on_batches(rows_above):
    weight, seen = torch.tensor(1.5, requires_grad=True), []

    def criterion(model, sample):
        seen.append(sample)
        if len(sample["net_input"]["original_tokens"]) > rows_above:
            raise RuntimeError("CUDA out of memory. Tried to allocate")
        return weight * 2, 1, {"loss": 3.0}

    return weight, seen, criterion


def test_for_want_of_memory_the_first_sequence_stands_in_with_gradients_that_are_nan(batch):
    weight, seen, criterion = out_of_memory_on_batches(1)
    told = []
    forward = faults.reversible(criterion, True, lambda: told.append(True))
    loss, sample_size, logs = forward(None, {"net_input": batch._asdict(), "ntokens": 33})
    loss.backward()
    assert told == [True] and sample_size == 0 and logs == {"loss": 0.0} and weight.grad.isnan()
    inputs = seen[1]["net_input"]
    for key in "original_tokens", "masked_tokens", "masked_positions", "sample_ids", "padding_mask", "cropped_tokens":
        assert torch.equal(inputs[key], getattr(batch, key)[:1]), key
    assert inputs["num_masked"] == [3] and inputs["stand_in"]
    assert torch.equal(inputs["masked_index"], inputs["masked_positions"].flatten().nonzero().squeeze(-1))


@pytest.mark.parametrize("rows_above, repeatable", [(0, True), (1, False)])
def test_memory_that_does_not_suffice_for_one_sequence_or_must_not_be_tried_is_an_error(batch, rows_above, repeatable):
    _, seen, criterion = out_of_memory_on_batches(rows_above)
    with pytest.raises(RuntimeError, match="out of memory"):
        faults.reversible(criterion, repeatable, lambda: None)(None, {"net_input": batch._asdict()})
    assert len(seen) == 1 + repeatable


# Runs

SKIPPING = [  # processes, rank, what, options
    (2, 1, "nan loss", {}), (1, 0, "infinite gradient", dict(bf16=True, clip_norm=1.0)), (2, 0, "memory", {}),
    soak(2, 0, "nan loss", dict(bf16=True, clip_norm=1.0)), soak(2, 1, "infinite loss", {}),
    soak(2, 0, "infinite gradient", {}), soak(1, 0, "nan loss", {}), soak(1, 0, "infinite loss", dict(clip_norm=2.0)),
    soak(2, 1, "memory", dict(bf16=True)), soak(1, 0, "memory", {}), soak(1, 0, "memory in backward", {}),
    soak(2, 1, "nan loss", dict(ddp_backend="legacy_ddp")), soak(2, 1, "memory", dict(update_freq=[2])),
    soak(2, 0, "memory", dict(ddp_backend="legacy_ddp")),
    soak(2, 1, "infinite gradient", dict(fp16=True, fp16_no_flatten_grads=True)),
]


@pytest.mark.parametrize("processes, rank, what, options", SKIPPING)
def test_all_processes_skip_the_same_update_and_keep_their_parameters(disturbed, processes, rank, what, options):
    forward_passes = 3 * options.get("update_freq", [1])[0]
    outcome = disturbed(processes, [(rank, "update", forward_passes, what)], max_update=6, **options)
    first, *others = parameters(outcome)
    assert all(other == first for other in others)
    assert [int(update) for update, _ in first] == [1, 2, 3, 3, 4, 5, 6]
    assert first[3][1] == first[2][1] and len({digest for _, digest in first}) == 6
    scaled = options.get("fp16")
    assert ("gradient overflow" if scaled else "update 3 is skipped") in "".join(outcome.out)
    assert scaled or "1 of the last 1000 updates skipped, 10 allowed" in outcome.out[0]
    assert all(torch.isfinite(value).all() for value in last(disturbed.folder)["model"].values())


def test_the_samples_of_a_loss_that_is_nan_are_named(disturbed):
    outcome = disturbed(2, [(1, "update", 1, "nan loss")], max_update=3)
    assert "rank 1: nan or inf in term mlm total of samples " in outcome.out[1]
    assert "nan or inf in" not in outcome.out[0]


@pytest.mark.soak
@pytest.mark.parametrize("name", [name for name in METHODS if name != "bert_mlm"])
def test_methods_with_a_generator_skip_alike(disturbed, name):
    for what in "nan loss", "memory":
        outcome = disturbed(2, [(1, "update", 3, what)], max_update=5, name=name, save_dir=disturbed.folder / what)
        first, other = parameters(outcome)
        assert first == other and [int(update) for update, _ in first] == [1, 2, 3, 3, 4, 5]


@pytest.mark.parametrize("processes", [2, soak(1)])
def test_more_skips_than_allowed_end_the_run_in_one_line(disturbed, processes):
    events = [(0, "update", number, "nan loss") for number in (3, 4, 6)]
    outcome = disturbed(processes, events, True, max_skipped_updates=2, save_interval_updates=2)
    assert outcome.codes == [76] * processes
    assert "3 of the last 1000 updates skipped, 2 allowed" in error_of(outcome)
    assert all(torch.isfinite(value).all() for value in last(disturbed.folder)["model"].values())


@pytest.mark.parametrize("rank, options", [(0, {}), soak(1, {}), soak(1, dict(ddp_backend="legacy_ddp"))])
def test_memory_that_runs_out_too_late_to_be_agreed_on_ends_all_processes(disturbed, rank, options):
    outcome = disturbed(2, [(rank, "update", 3, "memory in backward")], True, patience=30, update_timeout=5, **options)
    assert outcome.codes[rank] == 76 and outcome.codes[1 - rank] in (1, 70)
    assert f"rank {rank}: error: out of memory in update 3: give a smaller --batch-size" in outcome.err[rank]


@pytest.mark.parametrize("processes, save_interval, back_to", [(1, 1000, 100), soak(2, 1000, 100), soak(1, 1, 15)])
def test_a_loss_spike_takes_the_run_back_and_skips_200_updates_data(disturbed, processes, save_interval, back_to):
    """From update 115 back to the farthest checkpoint of at most 100 updates before; one is written every 100."""
    options = dict(disable_validation=True, num_workers=0, loss_spike_factor=2, lr=[1e-5], save_interval=save_interval)
    outcome = disturbed(processes, [(None, "update", 115, "spike")], max_update=120, **options)
    first, *others = parameters(outcome)
    assert all(other == first for other in others)
    made = [int(update) for update, _ in first]
    assert made[:116] == [*range(1, 116), back_to] and first[115] == first[back_to - 1]  # its parameters
    assert [update for update in made[116:] if update != back_to] == list(range(back_to + 1, 121))
    told = f"back to update {back_to}, the next {back_to + 200 - 116} updates' data are skipped"
    assert told in outcome.out[0]
    rows = run_log.parse(outcome.out[0].splitlines()).train
    per_epoch = max(row["num_updates"] for row in rows if row["epoch"] == 1)
    after = next(row for row in rows if row["num_updates"] == back_to + 1)  # the second time: the log has one
    assert after["epoch"] == 1 + (back_to + 200) // per_epoch


@pytest.mark.soak
def test_without_spikes_the_guard_changes_nothing(disturbed):
    options = dict(disable_validation=True, num_workers=0, lr=[1e-5], max_update=150)
    guarded = disturbed(1, loss_spike_factor=2, save_dir=disturbed.folder / "guarded", **options)
    assert parameters(guarded) == parameters(disturbed(1, save_dir=disturbed.folder / "plain", **options))
    assert len(last(disturbed.folder / "guarded")["extra_state"]["recent_losses"]) == 100
