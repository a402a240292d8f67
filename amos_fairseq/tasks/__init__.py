"""Of a `--user-dir`, fairseq imports `tasks` and `models`, but not `criterions` and `optim`: they are imported here.

The repairs of fairseq are in place before anything is registered.
"""

from amos_fairseq import fairseq_repairs

fairseq_repairs.install()

from amos_fairseq import criterions, optim  # noqa: E402, F401
from amos_fairseq.tasks import finetuning, pretraining  # noqa: E402, F401
