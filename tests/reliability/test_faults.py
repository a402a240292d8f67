"""NaN, infinity and loss spikes: all processes do the same about them, and training goes on or ends."""

import functools
import math
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from amos_fairseq import run_log
from amos_fairseq.checkpoints import storage, training
from amos_fairseq.methods import METHODS
from amos_fairseq.supervision import faults, supervisor
from amos_fairseq.user_errors import Damaged
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
    loss, sample_size, logs = faults.finite_or_nan(criterion)(None, {"factor": factor})
    loss.backward()
    assert (sample_size, logs) == (1, {"loss": 1.5})
    assert weight.grad.item() == pytest.approx(gradient, nan_ok=True)


def test_what_stands_in_for_a_batch_has_gradients_that_are_nan_and_does_not_count():
    weight, criterion = scalar_model(1.5)
    loss, sample_size, logs = faults.nan_that_does_not_count(criterion)(None, {"factor": 2.0})
    loss.backward()
    assert (sample_size, logs) == (0, {"loss": 0.0}) and weight.grad.isnan()


def test_frozen_parameters_get_no_gradient_until_they_are_thawed():
    first, second = (torch.tensor(value, requires_grad=True) for value in (2.0, 3.0))
    with faults.frozen({first}):
        (first * second).backward()
    assert first.grad is None and second.grad == 2.0 and first.requires_grad
    (first * second).backward()
    assert first.grad == 3.0 and second.grad == 4.0


def test_the_logged_sums_that_are_not_finite_are_named():
    logs = {"a": torch.tensor(float("nan")), "b": 1, "c": torch.tensor(2.0), "d": float("inf"), "e": torch.ones(2, 3)}
    assert faults.not_finite(logs) == ["a", "d"]


def test_all_that_is_awaited_becomes_numbers_but_tensors_of_many():
    many = torch.ones(2, 3)
    first = {"a": torch.tensor(0.1), "b": torch.tensor([2**40 + 1]), "c": 3, "d": many, "e": torch.tensor(True)}
    second = {"a": torch.tensor(float("inf"), dtype=torch.half), "f": torch.tensor(0.1, dtype=torch.double), "g": None}
    supervisor.to_host([first, {}, second])
    assert first == {"a": torch.tensor(0.1).item(), "b": 2**40 + 1, "c": 3, "d": many, "e": 1}
    assert second == {"a": math.inf, "f": 0.1, "g": None}
    supervisor.to_host([])


def test_norm_votes_and_logs_of_an_update_are_awaited_together():
    options = SimpleNamespace(
        **{f"{phase}_timeout": 0.0 for phase in supervisor.PHASES}, stop_after_minutes=0.0, max_skipped_updates=0,
        loss_spike_factor=0.0,
    )
    supervised = supervisor.Supervisor(options)
    try:
        supervised.logs, supervised.stop_votes = [{"loss": torch.tensor(2.5)}], torch.tensor(1.0, dtype=torch.double)
        trainer = SimpleNamespace(optimizer=None, cfg=SimpleNamespace(common=SimpleNamespace(amp=False)))
        norm = supervised.clip_grad_norm(trainer, lambda trainer, clip_norm: torch.tensor(0.7), 1.0)
    finally:
        supervised.watch.close()
    assert torch.equal(norm, torch.tensor(0.7)) and supervised.logs == [{"loss": 2.5}] and supervised._stopping


class Pair(torch.nn.Module):
    """(input, layer(input)), where `layer` divides by its weight."""

    def __init__(self, weight):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1, bias=False)
        self.layer.weight.data.fill_(weight)

    def forward(self, hidden):
        return hidden, self.layer(hidden)


@pytest.mark.parametrize(
    "weights, found", [((1.0, 1.0), None), ((float("nan"), 1.0), "0.layer"), ((1.0, float("inf")), "1.layer")]
)
def test_the_first_module_with_an_output_that_is_not_finite_is_named(weights, found):
    model = torch.nn.ModuleList(Pair(weight) for weight in weights)

    def forward():
        hidden = torch.ones(1, 1)
        for pair in model:
            hidden = pair(hidden)[1]
        assert not hidden.requires_grad

    assert faults.first_not_finite(model, forward) == found
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("name", METHODS)
def test_every_output_of_a_method_is_finite_if_nothing_is_wrong(make_method, batch, name):
    method = make_method(name)
    assert faults.first_not_finite(method, lambda: method.losses(method(batch), batch)) is None


def test_a_checkpoint_whose_parameters_are_no_numbers_is_not_gone_on_from(tmp_path):
    storage.write(tmp_path / "one", {"model": {"a": torch.ones(2), "b": torch.tensor([1.0, math.nan])}}, {})
    with pytest.raises(Damaged, match=f"{tmp_path}/one: b holds nan or infinite numbers: name an earlier checkpoint"):
        training.load_to_cpu(tmp_path / "one")


@pytest.mark.parametrize("name", METHODS)
def test_a_masked_lm_that_answers_nan_has_losses_that_are_nan_whatever_it_draws(make_method, batch, name):
    method = make_method(name)
    for parameter in method.mlm_head.parameters():
        parameter.data.fill_(math.nan)
    losses = method.losses(method(batch), batch)
    sum(term.weight * term.mean for term in losses.values()).backward()
    assert any(term.total.isnan() for term in losses.values())


# Runs

SKIPPING = [  # processes, rank, what, options
    (2, 1, "nan loss", {}), (1, 0, "infinite gradient", dict(bf16=True, clip_norm=1.0)),
    soak(2, 0, "nan loss", dict(bf16=True, clip_norm=1.0)), soak(2, 1, "infinite loss", {}),
    soak(2, 0, "infinite gradient", {}), soak(1, 0, "nan loss", {}), soak(1, 0, "infinite loss", dict(clip_norm=2.0)),
    soak(2, 1, "nan loss", dict(ddp_backend="legacy_ddp")), soak(2, 1, "nan loss", dict(update_freq=[2])),
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


FROM = [  # what, what the log of rank 1 says of it
    ("nan loss", "nan or inf in term mlm total of samples %s, first in no module's output when repeated"),
    ("nan layer", "nan or inf in term mlm total, term mlm weighted of samples %s, "
                  "first in the output of method.encoder.layers.0.fc1"),
]


@pytest.mark.parametrize("what, told", FROM)
def test_the_samples_and_the_first_module_of_a_loss_that_is_nan_are_named(disturbed, what, told):
    outcome = disturbed(2, [(1, "update", 1, what)], max_update=3, num_workers=0)
    pattern = "rank 1: " + re.escape(told).replace("%s", r"\d+ \d+ \d+ \d+") + "\n"
    assert re.search(pattern, outcome.out[1]), outcome.out[1]
    assert "rank 0: nan or inf in" not in outcome.out[0]
    assert "update 1 is skipped: loss or gradient is nan or infinite" in outcome.out[0]


def test_gradients_that_are_infinite_after_a_loss_that_is_finite_are_named(disturbed):
    outcome = disturbed(1, [(0, "update", 1, "infinite gradient")], max_update=2, num_workers=0)
    count = int(re.search(r"nan or inf in the gradients of (\d+) parameters: method\.encoder\.", outcome.out[0])[1])
    assert count > 10


@pytest.mark.soak
@pytest.mark.parametrize("name", [name for name in METHODS if name != "bert_mlm"])
def test_methods_with_a_generator_skip_alike(disturbed, name):
    first, other = parameters(disturbed(2, [(1, "update", 3, "nan loss")], max_update=5, name=name))
    assert first == other and [int(update) for update, _ in first] == [1, 2, 3, 3, 4, 5]


@pytest.mark.parametrize("processes", [2, soak(1)])
def test_more_skips_than_allowed_end_the_run_in_one_line(disturbed, processes):
    events = [(0, "update", number, "nan loss") for number in (3, 4, 6)]
    outcome = disturbed(processes, events, True, max_skipped_updates=2, save_interval_updates=2)
    assert outcome.codes == [76] * processes
    assert "3 of the last 1000 updates skipped, 2 allowed" in error_of(outcome)
    assert all(torch.isfinite(value).all() for value in last(disturbed.folder)["model"].values())


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


def test_a_process_that_froze_what_it_imported_ends_without_a_report_of_leaks():
    pytest.importorskip("triton")
    program = "import triton.language; from amos_fairseq.supervision.supervisor import freeze; freeze()"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "leaked" not in ended.stderr
