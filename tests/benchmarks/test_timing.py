"""The harness: ratios by a clock of the test's own, memory by tensors of known size."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "benchmarks"))
import timing  # noqa: E402
from timing import LEAST_TRIALS, Comparison, Meter, compare, main, quartiles, relative_errors, row_line  # noqa: E402

CPU = torch.device("cpu")
MIB = 2**20


class Clock:
    """Time that passes only when told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def sides_of(clock, calls, **seconds):
    """Sides that take their seconds times the number in their inputs."""

    def side(name):
        def run(factor):
            calls.append(name)
            clock.now += factor * seconds[name]

        return run

    return {name: side(name) for name in seconds}


def test_a_side_three_times_as_slow_has_ratio_three_although_the_machine_slows_down():
    clock = Clock()
    sides = sides_of(clock, [], ours=2.0, other=6.0)
    comparison = Comparison({}, sides, inputs=lambda trial: trial + 1.0, tokens=12, flops={"other": 60})
    ours, other = compare(comparison, Meter(CPU, clock), seconds=1e9, trials=5).values()
    assert ours["milliseconds"] == {"median": 6000.0, "first_quartile": 4000.0, "third_quartile": 8000.0}
    assert other["times_ours"] == {"median": 3.0, "first_quartile": 3.0, "third_quartile": 3.0}
    assert ours["times_ours"]["median"] == 1.0
    assert (ours["tokens_per_second"], other["tokens_per_second"]) == (2.0, 12 / 18)
    assert "flops_per_second" not in ours and other["flops_per_second"] == 60 / 18


def test_sides_take_turns_to_be_first():
    clock, calls = Clock(), []
    comparison = Comparison({}, sides_of(clock, calls, a=1.0, b=1.0), inputs=lambda trial: 1.0)
    compare(comparison, Meter(CPU, clock), seconds=1e9, trials=3)
    warm_up = ["a", "a", "b", "b"]  # once for its own sake, once for memory
    assert calls == warm_up + ["a", "b", "b", "a", "a", "b"]


def test_no_trial_starts_when_the_time_is_over_but_a_few_are_always_made():
    clock = Clock()
    comparison = Comparison({}, sides_of(clock, [], a=1.0), inputs=lambda trial: 1.0)
    assert compare(comparison, Meter(CPU, clock), seconds=0.0)["a"]["trials"] == LEAST_TRIALS
    assert compare(comparison, Meter(CPU, clock), seconds=8.5)["a"]["trials"] == 9


def test_a_side_that_fails_is_a_row_with_the_reason():
    clock = Clock()

    def missing(inputs):
        raise ImportError("no such package\nand more")

    for sides in ({"ours": missing, **sides_of(clock, [], other=1.0)}, {**sides_of(clock, [], ours=1.0), "b": missing}):
        results = compare(Comparison({}, sides, inputs=lambda trial: 1.0), Meter(CPU, clock))
        (failed,) = (result for result in results.values() if "unavailable" in result)
        (measured,) = (result for result in results.values() if "unavailable" not in result)
        assert failed == {"unavailable": "ImportError: no such package"}
        assert measured["milliseconds"]["median"] == 1000.0
        assert ("times_ours" in measured) == ("ours" in sides and sides["ours"] is not missing)
        assert row_line("b", failed, colour=False).split() == ["b", "ImportError:", "no", "such", "package"]


def test_extra_memory_is_the_peak_of_what_is_alive_at_a_time():
    meter, before = Meter(CPU), [torch.empty(MIB)]

    def one_after_another():
        for _ in range(3):
            torch.empty(MIB // 4)

    def together():
        return [torch.empty(MIB // 4) for _ in range(3)]

    def by_an_operator():  # its double is a temporary
        return torch.ones(MIB // 8).double().sum()

    assert meter.extra_bytes(one_after_another) == MIB
    assert meter.extra_bytes(together) == 3 * MIB
    assert meter.extra_bytes(by_an_operator) == pytest.approx(1.5 * MIB, rel=1e-3)
    assert meter.extra_bytes(before.clear) == 0


def test_quartiles_and_relative_errors_of_known_numbers():
    assert quartiles([4.0, 1.0, 3.0, 2.0, 5.0]) == {"median": 3.0, "first_quartile": 2.0, "third_quartile": 4.0}
    found = dict(a=torch.tensor([3.0, 4.0]), not_expected=torch.ones(1))
    assert relative_errors(found, dict(a=torch.tensor([0.0, 8.0]))) == {"a": 5 / 8}


def test_results_are_written_after_every_comparison(tmp_path, monkeypatch):
    out, written = tmp_path / "results.json", []
    monkeypatch.setattr(timing, "product_flops", lambda settings: 8e12)
    monkeypatch.setattr(timing, "peak_flops", lambda device: 16e12)

    def section(settings):
        for size in (1, 2):
            yield Comparison({"size": size}, {"ours": lambda x: x}, inputs=lambda trial: 0, flops={"ours": 1})
            written.append(len(json.loads(out.read_text())["rows"]))

    arguments = ["--device", "cpu", "--threads", "1", "--seconds", "0", "--out", str(out)]
    report = main({"a": section, "b": section}, arguments)
    assert written == [1, 2, 3, 4] and json.loads(out.read_text()) == report
    rows = [(row["section"], row["shape"]["size"]) for row in report["rows"]]
    assert rows == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]
    assert report["dtype"] == "float32" and report["threads"] == 1 and report["command"].endswith(" ".join(arguments))
    for row in report["rows"]:
        assert row["mfu"] == row["flops_per_second"] / 16e12
        assert row["share_of_products"] == row["flops_per_second"] / 8e12


@pytest.fixture(autouse=True)
def same_threads_afterwards():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
