"""What the papers searched when they fine-tuned, by name, and the results that they report.

A preset maps groups of tasks to grids; a grid lists values for each option, and all combinations are settings.
"""

import itertools
from typing import Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

from amos_fairseq.methods import METHODS

LARGE = ("MNLI", "QQP", "QNLI", "SST-2")
SMALL = ("CoLA", "RTE", "MRPC", "STS-B")
EIGHT = LARGE + SMALL  # of GLUE, in the papers' order; they leave out WNLI
SQUAD = ("SQuAD 1.1", "SQuAD 2.0")
FEW_SHOT = "few-shot MNLI"
ANY = ()  # every task without a grid of its own

BERT_BETAS, FAIRSEQ_BETAS = (0.9, 0.999), (0.9, 0.98)


class Setting(NamedTuple):
    """Hyper-parameters of one run. warmup: share of the updates; updates: their number, in place of epochs."""

    lr: float
    epochs: float
    batch_size: int
    warmup: float
    weight_decay: float = 0.01
    layer_decay: float = 1.0
    adam_betas: Tuple[float, float] = FAIRSEQ_BETAS
    updates: int = 0
    layer_decay_top: int = 0  # as `model.learning_rate_factors` has it

    @property
    def name(self) -> str:
        """For folders and tables: what a search varies, and of the rest what is unusual."""
        length = f"updates{self.updates}" if self.updates else f"epochs{self.epochs:g}"
        parts = [f"lr{self.lr:g}", length, f"batch{self.batch_size}", f"warmup{self.warmup:g}"]
        usual = Setting(*self[:4])
        for option, word in (("weight_decay", "wd"), ("layer_decay", "layerdecay"), ("layer_decay_top", "top")):
            if getattr(self, option) != getattr(usual, option):
                parts.append(f"{word}{getattr(self, option):g}")
        if self.adam_betas != usual.adam_betas:
            parts.append(f"betas{self.adam_betas[0]:g}-{self.adam_betas[1]:g}")
        return "_".join(parts)

    def num_updates(self, examples: int) -> int:
        """Of a training set of so many examples, whose last batch of an epoch may be smaller."""
        return self.updates or max(1, round(self.epochs * -(-examples // self.batch_size)))

    def num_warmup_updates(self, examples: int) -> int:
        return round(self.warmup * self.num_updates(examples))


Grid = Mapping[str, Union[List, float]]
FINE_TUNED_AS_BERT = dict(warmup=0.1, adam_betas=BERT_BETAS)


def grid(lr: List[float], epochs: List[float], batch_size: List[int], warmup: List[float], **others) -> Grid:
    return dict(lr=lr, epochs=epochs, batch_size=batch_size, warmup=warmup, **others)


def released(batch_size: int, lr: float, epochs: int, reciprocal_of_warmup: int) -> Grid:
    """A column of the table "Optimal Hyperparameters" of a released README."""
    return grid([lr], [epochs], [batch_size], [1 / reciprocal_of_warmup])


def coco_lm(small: List[float], large: List[float], squad: List[float]) -> Dict[Sequence[str], Grid]:
    """COCO-LM, Table 7, large and small tasks, and Table 8; tasks of one's own count as small."""
    return {
        SQUAD: grid(squad, [2, 3], [16, 32], [0.06, 0.1]),
        LARGE: grid(large, [2, 3, 5], [32], [0.06]),
        ANY: grid(small, [2, 3, 5, 10], [16, 32], [0.06, 0.1]),
    }


def teams(glue: float, squad: float, squad_batch_size: int, squad_epochs: int) -> Dict[Sequence[str], Grid]:
    """TEAMS, Table 6, which is silent on weight decay: that of pre-training, .01 (Table 5)."""
    return {
        SQUAD: grid([squad], [squad_epochs], [squad_batch_size], **FINE_TUNED_AS_BERT),
        ANY: grid([glue], [5], [32], **FINE_TUNED_AS_BERT),
    }


def peer(lr: List[float]) -> Dict[Sequence[str], Grid]:
    """PEER, Table 9. Seeds there: 5 for small tasks; 3 for QNLI and SST-2, 1 for MNLI and QQP."""
    return {
        tasks: grid(lr, [epochs], [16, 32], weight_decay=0.0, **FINE_TUNED_AS_BERT)
        for tasks, epochs in ((SMALL, 20), (LARGE, 4))
    }


def script(lr: float) -> Dict[Sequence[str], Grid]:
    """SCRIPT, Table 5, which is ELECTRA's; layers decay as in ELECTRA's code."""
    decay = dict(layer_decay=0.8, layer_decay_top=2, weight_decay=0.0)
    return {
        tasks: grid([lr], [epochs], [32], **decay, **FINE_TUNED_AS_BERT)
        for tasks, epochs in ((("RTE", "STS-B"), 10), (SQUAD, 2), (ANY, 3))
    }


def prompts(lr: List[float]) -> Dict[Sequence[str], Grid]:
    """LM-BFF, as COCO-LM, Section 5, follows it: constant batches of 2, 4 or 8 for 1,000 updates."""
    return {ANY: grid(lr, [0], [2, 4, 8], [0.0], weight_decay=0.0, adam_betas=BERT_BETAS, updates=1000)}


PRESETS: Dict[str, Dict[Sequence[str], Grid]] = {
    "quick": {ANY: grid([3e-5], [3], [32], [0.1])},  # the middle of what the papers search
    "amos": {  # AMOS, Table 6
        SQUAD: grid([2e-5, 3e-5, 4e-5, 5e-5], [2, 3], [16, 32], [0.06, 0.1]),
        ANY: grid([1e-5, 2e-5, 3e-5, 4e-5, 5e-5], [2, 3, 5, 10], [16, 32], [0.06, 0.1]),
    },
    "coco_lm": coco_lm([2e-5, 3e-5, 4e-5, 5e-5], [1e-5, 2e-5, 3e-5, 4e-5], [2e-5, 3e-5, 4e-5, 5e-5]),
    "coco_lm_large": coco_lm([7e-6, 1e-5, 2e-5, 3e-5], [5e-6, 7e-6, 1e-5, 2e-5], [7e-6, 1e-5, 2e-5, 3e-5]),
    "teams_small": teams(1e-4, 8e-5, 48, 5),
    "teams_base": teams(3e-5, 5e-5, 32, 2),
    "teams_large": teams(3e-5, 3e-5, 48, 2),
    "teams_search": {  # TEAMS, Appendix C
        ANY: grid([1e-5, 3e-5, 5e-5, 8e-5, 1e-4], [2, 3, 5], [32, 48], **FINE_TUNED_AS_BERT),
    },
    "peer_small": peer([1e-4, 7.5e-5]),
    "peer_base": peer([5e-5, 3e-5]),
    "script_small": script(3e-4),
    "script_base": script(1e-4),
    # README of the released AMOS and COCO-LM, the best of their searches; of MNLI for matched, of SQuAD for F1
    "amos_best": {
        ("MNLI",): released(32, 1e-5, 3, 16), ("QQP",): released(32, 2e-5, 5, 16), ("QNLI",): released(32, 2e-5, 3, 16),
        ("SST-2",): released(32, 1e-5, 5, 16), ("CoLA",): released(32, 2e-5, 10, 10),
        ("RTE",): released(32, 4e-5, 5, 10), ("MRPC",): released(32, 4e-5, 10, 16),
        ("STS-B",): released(16, 4e-5, 10, 16), ("SQuAD 2.0",): released(16, 2e-5, 3, 10),
    },
    "coco_lm_best": {
        ("MNLI",): released(32, 2e-5, 2, 16), ("QQP",): released(32, 3e-5, 5, 16), ("QNLI",): released(32, 1e-5, 5, 16),
        ("SST-2",): released(32, 2e-5, 5, 16), ("CoLA",): released(16, 2e-5, 10, 16),
        ("RTE",): released(16, 2e-5, 10, 10), ("MRPC",): released(16, 4e-5, 10, 16),
        ("STS-B",): released(16, 4e-5, 10, 16), ("SQuAD 2.0",): released(32, 2e-5, 3, 10),
    },
    "coco_lm_large_best": {
        ("MNLI",): released(32, 5e-6, 3, 16), ("QQP",): released(32, 1e-5, 5, 16), ("QNLI",): released(32, 7e-6, 2, 16),
        ("SST-2",): released(32, 5e-6, 2, 16), ("CoLA",): released(16, 1e-5, 10, 10),
        ("RTE",): released(32, 2e-5, 5, 16), ("MRPC",): released(16, 2e-5, 5, 16),
        ("STS-B",): released(16, 2e-5, 10, 16), ("SQuAD 2.0",): released(32, 2e-5, 3, 10),
    },
    "prompts": prompts([1e-5, 2e-5, 5e-5]),  # LM-BFF's for RoBERTa
    "prompts_coco_lm": prompts([3e-6, 4e-6, 5e-6]),  # COCO-LM, Section 5
}


def settings(preset: str, task: str, overrides: Mapping[str, List] = {}) -> List[Setting]:
    """The preset's settings for a task, each option in `overrides` with the values given there instead.

    Raises ValueError for an unknown preset, and for one without a grid for the task.
    """
    if preset not in PRESETS:
        raise ValueError(f"--preset {preset} is none of {', '.join(PRESETS)}")
    grids = {name: [grid for tasks, grid in PRESETS[name].items() if task in tasks or tasks == ANY] for name in PRESETS}
    if not grids[preset]:
        having = ", ".join(name for name in PRESETS if grids[name])
        raise ValueError(f"--preset {preset} has nothing for {task}: choose one of {having}")
    if "epochs" in overrides:
        overrides = {"updates": [0], **overrides}
    options = {
        name: value if isinstance(value, list) else [value] for name, value in {**grids[preset][0], **overrides}.items()
    }
    return list(dict.fromkeys(Setting(**dict(zip(options, values))) for values in itertools.product(*options.values())))


# Results of the papers on the dev sets


class Published(NamedTuple):
    """values: in per cent, by task; pairs are MNLI-m and mm, or EM and F1

    means: metrics, by task, whose mean over them and over its dev sets is the value
    """

    source: str
    values: Mapping[str, Union[float, Tuple[float, float]]]
    means: Mapping[str, Tuple[str, ...]] = {}


def table_1(source: str, *values, few_shot=None) -> Published:
    """A row of AMOS's or COCO-LM's Table 1: the eight tasks of GLUE, and EM and F1 of SQuAD 2.0."""
    *glue, em, f1 = values
    others = {} if few_shot is None else {FEW_SHOT: few_shot}
    return Published(source, {**dict(zip(EIGHT, glue)), "SQuAD 2.0": (em, f1), **others})


def teams_row(average, em1, f1_1, em2, f1_2) -> Published:
    """A row of TEAMS's Table 1, which gives no task of GLUE alone."""
    return Published("TEAMS, Table 1", {"average": average, "SQuAD 1.1": (em1, f1_1), "SQuAD 2.0": (em2, f1_2)})


def peer_row(source, average, mnli, cola, sst2, mrpc, stsb, qqp, qnli, rte) -> Published:
    """A row of PEER's Tables 3 and 4: MNLI is the mean of m and mm, STS-B that of Pearson and Spearman."""
    values = dict(zip(EIGHT, (mnli, qqp, qnli, sst2, cola, rte, mrpc, stsb)))
    return Published(source, {**values, "average": average}, {"MNLI": ("accuracy",), "STS-B": ("pearson", "spearman")})


PUBLISHED: Dict[str, Published] = {
    "bert_base": table_1("AMOS, Table 1", 84.5, 91.3, 91.7, 93.2, 58.9, 68.6, 87.3, 89.5, 73.7, 76.3),
    "electra_base": table_1("AMOS, Table 1", (86.9, 86.7), 91.9, 92.6, 93.6, 66.2, 75.1, 88.2, 89.7, 79.7, 82.6),
    "amos_base": table_1("AMOS, Table 1", (88.9, 88.7), 92.3, 93.6, 94.2, 70.7, 86.6, 90.9, 91.6, 84.2, 87.2),
    "amos_base++": table_1("AMOS, Table 1", (90.5, 90.4), 92.4, 94.4, 95.5, 71.8, 86.6, 91.7, 92.0, 85.0, 87.9),
    "coco_lm_base": table_1("COCO-LM, Table 1", (88.5, 88.3), 92.0, 93.1, 93.2, 63.9, 84.8, 91.4, 90.3, 82.4, 85.2),
    "coco_lm_base++": table_1(
        "COCO-LM, Tables 1 and 4", (90.2, 90.0), 92.2, 94.2, 94.6, 67.3, 87.4, 91.2, 91.8, 85.4, 88.1,
        few_shot=(66.5, 68.0),
    ),
    "coco_lm_large++": table_1(
        "COCO-LM, Tables 1 and 4", (91.4, 91.6), 92.8, 95.7, 96.9, 73.9, 91.0, 92.2, 92.7, 88.2, 91.0,
        few_shot=(72.0, 73.3),
    ),
    "teams_small": teams_row(80.70, 78.84, 86.40, 72.33, 75.24),
    "teams_small++": teams_row(81.99, 78.94, 86.65, 72.11, 75.11),
    "teams_base": teams_row(85.57, 85.21, 91.69, 81.59, 84.51),
    "teams_base++": teams_row(87.16, 86.05, 92.48, 82.73, 85.59),
    "teams_large": teams_row(89.44, 88.86, 94.61, 87.08, 89.86),
    # 250K updates
    "peer_small": peer_row("PEER, Table 3", 81.50, 81.19, 59.66, 89.29, 88.09, 87.66, 90.15, 88.55, 67.44),
    "peer_base": peer_row("PEER, Table 4", 86.77, 86.69, 68.57, 92.66, 91.18, 90.92, 91.78, 92.57, 79.78),
    # means of 8 seeds
    "script_small": Published("SCRIPT, Tables 1 and 2", {"MRPC": 88.23, "average": 81.32}),
    "script_base": Published("SCRIPT, Tables 1 and 2", {"CoLA": 65.04, "MNLI": 86.88, "average": 85.76}),
}


def published_for(method: str, dim: int) -> Optional[str]:
    """The row of PUBLISHED for a method's registered name and the width of its encoder, if there is one."""
    size = {256: "small", 768: "base", 1024: "large"}.get(dim)
    row = f"{METHODS[method].short_name}_{size}" if method in METHODS else ""
    names = (row, f"{row}++")
    return next((name for name in names if name in PUBLISHED), None)


def paper_with_means(preset: str) -> Optional[str]:
    """The row of PUBLISHED for a preset whose paper shows means, so that its results are shown alike by any model."""
    return preset if preset in PUBLISHED and PUBLISHED[preset].means else None
