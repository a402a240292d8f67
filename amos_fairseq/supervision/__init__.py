"""What a run does about signals, time limits, hangs, faults, and a second run in its folder.

    status 75   asked to stop by a signal or --stop-after-minutes: saved, the same command goes on
           70   no progress within a phase's time-out; the stacks of all threads are on standard error
           76   more updates were skipped for faults than --max-skipped-updates allows, or memory ran out for good
           64   another run uses the folder

Beside these, it keeps what the run measures (`history`) and shows it (`display`).

`faults` decides and knows no trainer, `watch` is the thread that hears signals and sees deadlines, `lock` keeps a
folder to one run, `supervisor` ties them to fairseq's trainer, `task` is what a task derives from to be made under it.
The other hooks are in `fairseq_repairs`.
"""

from amos_fairseq.supervision.options import SupervisionConfig  # noqa: F401
from amos_fairseq.supervision.supervisor import (  # noqa: F401
    begin,
    check,
    check_options,
    current,
    end,
    run_in_processes,
    saving,
    spawns,
)
from amos_fairseq.supervision.task import SupervisedTask  # noqa: F401
