"""Where nothing moves, every process that can ends itself, and shows where it was."""

import functools
import re
import time
from pathlib import Path

import pytest

TIMEOUT = 3
soak = functools.partial(pytest.param, marks=pytest.mark.soak)

# The clock starts in the update before which nothing may stand, by where something is to.
CLOCK_STARTS = {
    "startup": ("startup", 0), "update": ("update", 3), "loader": ("update", 0), "validation": ("update", 1),
    "save": ("update", 1),
}
CASES = [  # processes, events, the phase whose time-out is set, codes
    (2, [(1, "update", 3, "SIGSTOP")], "update", [70, None]),
    (1, [(0, "startup", 0, "nothing"), (0, "loader", 30, "stopped worker")], "startup", [70]),
    soak(1, [(0, "loader", 30, "stuck")], "update", [70]),
    (2, [(0, "save", 0, "stuck")], "save", [70, 70]),
    soak(2, [(0, "update", 3, "SIGSTOP")], "update", [None, 70]),
    soak(2, [(1, "loader", 15, "stuck")], "update", [70, 70]),
    soak(2, [(1, "update", 3, "stuck")], "update", [70, 70]),
    soak(2, [(1, "validation", 1, "stuck")], "validation", [70, 70]),
    soak(1, [(0, "validation", 1, "stuck")], "validation", [70]),
    soak(2, [(1, "validation", 1, "SIGSTOP")], "validation", [70, None]),
    soak(2, [(1, "startup", 0, "stuck")], "startup", [70, 70]),
    soak(1, [(0, "startup", 0, "stuck")], "startup", [70]),
    soak(1, [(0, "save", 0, "stuck")], "save", [70]),
    soak(2, [(0, "save", 0, "SIGSTOP")], "save", [None, 70]),
]


def is_alive(process):
    try:
        return ") Z " not in Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("processes, events, phase, codes", CASES)
def test_every_process_that_is_not_stopped_itself_ends_in_the_time_out_with_its_stacks(
    disturbed, processes, events, phase, codes
):
    options = {f"{phase}_timeout": TIMEOUT, "save_interval_updates": 2}
    outcome = disturbed(processes, [(None, *CLOCK_STARTS[events[0][1]], "clock"), *events], True, **options)
    for rank, code in enumerate(codes):
        if code is None:
            assert outcome.codes[rank] == -9  # by the launcher
            continue
        err = outcome.err[rank]
        first_to_end = [number for number, *_, what in events if what == "stuck"]
        if outcome.codes[rank] == 1 and rank not in first_to_end and first_to_end:
            assert "Connection closed by peer" in err  # the stuck one's time-out came a moment before its own
            continue
        assert outcome.codes[rank] == code, err
        line = next(line for line in err.splitlines() if "error:" in line)
        assert line.startswith(f"amos_fairseq: rank {rank}: error: no progress in {phase} at update ")
        assert f"for {TIMEOUT} s (--{phase}-timeout)" in line
        assert "Thread 0x" in err and "fairseq_cli/train.py" in err  # the main thread, down to the program
        for worker in re.findall(r"^stopped (\d+)$", outcome.out[rank], re.MULTILINE):
            while is_alive(worker):  # it does not outlive the process that it worked for
                time.sleep(0.01)


@pytest.mark.soak
def test_c_code_that_lets_no_python_run_is_ended_too(disturbed):
    outcome = disturbed(1, [(0, "update", 3, "stuck in C")], True, update_timeout=TIMEOUT)
    assert outcome.codes == [1] and "Timeout (" in outcome.err[0] and "stuck_in_c" in outcome.err[0]


@pytest.mark.parametrize("rank", [1, soak(0)])
def test_a_killed_process_ends_the_others(disturbed, rank):
    events = [(None, "update", 3, "clock"), (rank, "update", 3, "SIGKILL")]
    outcome = disturbed(2, events, True, update_timeout=TIMEOUT)
    assert outcome.codes[rank] == -9 and outcome.codes[1 - rank] in (1, 70)


def test_time_outs_that_are_not_reached_or_zero_end_nothing(disturbed):
    disturbed(1, startup_timeout=0, update_timeout=TIMEOUT, validation_timeout=TIMEOUT, save_timeout=0)
