"""How a method says what it logs: each quantity in words, and which of them its paper's figures show."""

from typing import NamedTuple, Optional, Sequence, Tuple, Union

LOWER, HIGHER = -1, 1


class Quantity(NamedTuple):
    """One logged name, or its part before a number, as in mlm_4."""

    words: str
    unit: str = ""  # on an axis; "%" of something: values are shares, drawn times 100; "nats" per something: a loss
    better: int = 0  # LOWER, HIGHER; 0: neither
    counted: str = "layer"  # what the number is of
    of_course: bool = False  # of the course of a run, not of what it learnt

    @property
    def scale(self) -> float:
        return 100.0 if self.unit.startswith("%") else 1.0

    @property
    def is_loss(self) -> bool:
        return self.unit.startswith("nats")

    @property
    def title(self) -> str:
        """For a table, whose values are not scaled."""
        return f"{self.words} (nats)" if self.is_loss else self.words


class Overlay(NamedTuple):
    """Plan of a figure: a panel for each quantity, in it a line for each run that logs it; of depths, the deepest."""

    title: str
    caption: str  # which figure of which paper, and what to look for
    names: Sequence[str]
    needs: str = ""  # only runs that log this are in the figure
    log_updates: bool = False
    validation: bool = True  # mark it, beside training


class ByRun(NamedTuple):
    """Plan of a figure: a panel for each run that logs two of the quantities, or one at two depths, a line for each."""

    title: str
    caption: str
    names: Sequence[str]
    limits: Optional[Tuple[Optional[float], float]] = None
    uniform: bool = False  # also a line where all of them would be equal, with a sum of 1
    log_updates: bool = False


Plan = Union[Overlay, ByRun]

# What all methods log, in validation.
HIDDEN_STATES = {
    "hidden_cosine": Quantity("cosine of different words", "1: collapsed", LOWER),
    "hidden_rank": Quantity("effective rank of hidden states", "1: collapsed", HIGHER),
}
# What several methods log.
MASKED_LM = {
    "mlm": Quantity("masked LM loss", "nats per masked token", LOWER),
    "mlm_accuracy": Quantity("masked LM accuracy", "% of masked tokens", HIGHER),
}
GENERATOR = {
    "mlm": MASKED_LM["mlm"],
    "generator_accuracy": Quantity("generator accuracy", "% of masked tokens", HIGHER),
    "sampled_accuracy": Quantity("accuracy of draws", "% of masked tokens"),
}
RTD = {"rtd": Quantity("detection loss", "nats per token", LOWER)}
DETECTION = {  # words: not <s> and </s>, which nothing replaces, so that they are easily told to be original
    "rtd_accuracy_original_words": Quantity("detection accuracy, original words", "% of original words", HIGHER),
    "rtd_accuracy_original_all": Quantity(
        "detection accuracy, original, all positions", "% of original tokens", HIGHER
    ),
    "rtd_accuracy_replaced": Quantity("detection accuracy, replaced", "% of replaced tokens", HIGHER),
    "rtd_auc_words": Quantity("detection AUC, words", "0.5 by chance", HIGHER),
    "rtd_auc_identity": Quantity("AUC by the token alone, words", "0.5 by chance"),
    "rtd_auc_all": Quantity("detection AUC, all positions", "0.5 by chance", HIGHER),
    "replaced_share": Quantity("share of tokens replaced", "% of tokens"),
}
