"""The kinds of downstream problems by name, each one class in a file of its own.

| name             | what is asked                                    | read at       | transformers' class       |
|------------------|--------------------------------------------------|---------------|---------------------------|
| `classification` | one of the labels, of a text or a pair           | `<s>`         | ForSequenceClassification |
| `multi_label`    | those of the labels that hold, none to all       | `<s>`         | ForSequenceClassification |
| `choice`         | the best of several texts, each beside the first | `<s>`         | ForMultipleChoice         |
| `regression`     | a number, of a text or a pair                    | `<s>`         | ForSequenceClassification |
| `span`           | first and last token of an answer, or none       | all positions | ForQuestionAnswering      |
| `token`          | one of the labels for each word                  | all positions | ForTokenClassification    |
| `prompt`         | one of the labels, as its word in place of a gap | `<mask>`      | ForMaskedLM               |
"""

from typing import Dict

from amos_fairseq.finetune.kinds.base import Kind
from amos_fairseq.finetune.kinds.choice import Choice
from amos_fairseq.finetune.kinds.classification import Classification
from amos_fairseq.finetune.kinds.multi_label import MultiLabel
from amos_fairseq.finetune.kinds.prompt import Prompt
from amos_fairseq.finetune.kinds.regression import Regression
from amos_fairseq.finetune.kinds.span import QuestionAnswering
from amos_fairseq.finetune.kinds.token import TokenClassification

KINDS: Dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Classification(), MultiLabel(), Choice(), Regression(), QuestionAnswering(), TokenClassification(), Prompt()
    )
}


def kind_of(name: str) -> Kind:
    if name not in KINDS:
        raise ValueError(f"kind {name!r} is none of {', '.join(KINDS)}")
    return KINDS[name]
