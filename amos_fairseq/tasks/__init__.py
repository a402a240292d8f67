"""All that is registered with fairseq, which of a `--user-dir` imports `tasks` and `models`, but no more.

The repairs of fairseq are in place before anything is registered.
"""

from amos_fairseq import fairseq_repairs, plugins
from amos_fairseq.user_errors import told_in_one_line

fairseq_repairs.install()

from amos_fairseq import criterions, models, optim  # noqa: E402, F401
from amos_fairseq.tasks import finetuning, pretraining  # noqa: E402, F401

with told_in_one_line():
    plugins.load()
