"""The model card of an exported folder: what was trained, on what and how well, and how it is used."""

import contextlib
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

from amos_fairseq import __version__, json_files, run_log
from amos_fairseq.checkpoints import storage
from amos_fairseq.data.manifest import Manifest, located, read_manifest
from amos_fairseq.data.tokenizer import Tokenizer
from amos_fairseq.export.choices import Choice, Source, method_name
from amos_fairseq.finetune.kinds import kind_of
from amos_fairseq.finetune.model import Finetuned
from amos_fairseq.finetune.results import markdown
from amos_fairseq.methods import named
from amos_fairseq.options import declared
from amos_fairseq.pretrained.layouts import AUTO_CLASSES

PIPELINES = {
    "encoder": "feature-extraction", "masked_lm": "fill-mask", "sequence": "text-classification",
    "span": "question-answering", "token": "token-classification",
}
# Of a run's configuration.
OPTIONS = {
    "task": ("tokens_per_sample", "mask_prob", "mask_token_prob", "keep_prob", "random_prob", "seed", "layer_decay"),
    "dataset": ("batch_size", "max_tokens"),
    "distributed_training": ("distributed_world_size",),
    "optimization": ("update_freq", "max_update", "lr", "clip_norm"),
    "optimizer": ("_name", "adam_betas", "adam_eps", "weight_decay"),
    "lr_scheduler": ("_name", "warmup_updates", "total_num_update", "power"),
    "common": ("fp16", "bf16"),
}


def text(name: str, source: Source, report, checkpoint: Optional[Path], data) -> str:
    """README.md of the folder `name`; report: of `huggingface.export`; checkpoint: None if it is not one of ours."""
    (choice, _), *_ = report.models
    method = method_name(source)
    state = {} if checkpoint is None else read_state(checkpoint)
    block = state["cfg"]["task"].get("tokens_per_sample") if state else None
    options = training(state, method) if state else []
    measured = validation(state, checkpoint.resolve().parent) if state else []
    sections = [
        front_matter(choice, method, report.pooling),
        f"# {name}",
        introduction(choice, source, method, block),
        "## Use",
        usage(report, source.tokenizer),
        "## Training",
        markdown(("option", ""), options) if state else "Not known: the model comes from another format.",
        "## Data",
        data_counts(manifest_of(state, source.tokenizer, data), source),
        "## Validation",
        markdown(("at the last validation", ""), measured) if measured else "Not known.",
        "## Contents",
        contents(report),
        "## Citation",
        f"{named(method).citation or method}. Trained and exported by amos_fairseq {__version__}.",
        "## Licence",
        "Not stated. Whoever publishes this model states one, here and as `license` above.",
    ]
    return "\n\n".join(sections) + "\n"


def front_matter(choice: Choice, method: str, pooling: Optional[str]) -> str:
    task = choice.part.task
    tags = ["amos_fairseq", method, *(["sentence-transformers"] if pooling else [])]
    pipeline = [f"pipeline_tag: {PIPELINES[task]}"] if task in PIPELINES else []
    return "\n".join(["---", "library_name: transformers", f"tags: [{', '.join(tags)}]", *pipeline, "---"])


def introduction(choice: Choice, source: Source, method: str, block: Optional[int]) -> str:
    """block: tokens of a pre-training sequence, if known"""
    shape = choice.part.encoder.config
    positions = "absolute positions"
    if shape.rel_pos_buckets:
        bucketing = "" if shape.rel_pos_bucketing == "t5" else f" ({shape.rel_pos_bucketing} bucketing)"
        positions += f" and {shape.rel_pos_buckets} buckets of distances up to {shape.rel_pos_max_distance}{bucketing}"
    parameters = sum(parameter.numel() for parameter in choice.part.encoder.parameters())
    sentences = [
        f"A text encoder, pre-trained with `{method}`: {shape.layers} layers, width {shape.dim}, {shape.heads} heads, "
        f"{positions}, {parameters:,} parameters. It reads up to {shape.max_positions} tokens of a vocabulary of "
        f"{shape.vocab_size:,}."
    ]
    if isinstance(source, Finetuned):
        problem = source.problem
        labels = f" into {', '.join(problem.labels)}" if problem.labels else ""
        sentences.append(f"It was fine-tuned on `{problem.name}`, a problem of {problem.kind}{labels}.")
        sentences.append(kind_of(problem.kind).reading(problem, source.tokenizer))
    elif block and block < shape.max_positions:
        sentences.append(f"It was trained on sequences of at most {block}: later positions are as they were drawn.")
    return " ".join(filter(None, sentences))


def usage(report, tokenizer: Tokenizer) -> str:
    (choice, _), *others = report.models
    symbols = ", ".join(f"`{symbol}`" for symbol in tokenizer.roles.values())
    begin, end = tokenizer.roles["bos"], tokenizer.roles["eos"]
    pair = " ".join([begin, "A", *[end] * tokenizer.separators, "B", end])
    task = choice.part.task
    auto_class = AUTO_CLASSES[task]
    trust = ", trust_remote_code=True" if choice.needs_code else ""
    inputs = {"span": '"A question?", "A text."', "choice": '["A text."] * 2, ["A choice.", "Another."], padding=True'}
    inputs = inputs.get(task, '["A text.", "Another one."], padding=True')
    inputs = f'tokenizer({inputs}, truncation=True, return_tensors="pt")'
    if task == "choice":
        inputs = f"{{name: ids[None] for name, ids in {inputs}.items()}}"
    reads = f"""from transformers import {auto_class}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = {auto_class}.from_pretrained("FOLDER"{trust})
output = model(**{inputs})"""
    if not report.tokenizer:
        reads = f"""import torch
from transformers import {auto_class}

import amos_fairseq

tokenizer = amos_fairseq.from_pretrained("FOLDER").tokenizer  # transformers has no equal for it
model = {auto_class}.from_pretrained("FOLDER"{trust})
output = model(torch.tensor([tokenizer.sequence(tokenizer.encode("A text."))]){'[None]' * (task == 'choice')})"""
    code = f"```python\n{reads}\n```"
    states = "the mean of all states" if report.pooling == "mean" else f"the state of `{begin}`"
    notes = {
        f"A pair of texts is `{pair}`. {symbols} in a text are the special tokens; with "
        "`split_special_tokens=True` they are text, as in training.": report.tokenizer,
        "A positive logit means that the token was replaced.": task == "detection",
        f"No pooler was trained: `pooler_output`, where there is one, is tanh of the state of `{begin}`.":
            task == "encoder",
        f"No class of transformers has this shape: `{auto_class}` runs `modeling_amos.py` of this folder.":
            choice.needs_code,
        '`"FOLDER/generator"` holds the generator, of `AutoModelForMaskedLM`.': others,
        f"`SentenceTransformer(\"FOLDER\"{trust})` gives {states}; it was not trained for similarity.": report.pooling,
    }
    return f"{code}\n\n{' '.join(note for note, holds in notes.items() if holds)}"


def training(state: Mapping[str, Any], method: str) -> List[Tuple[str, Any]]:
    """The updates that were made, and the options of the network and of training."""
    config, places = state["cfg"], {option.name for option in declared(named(method).config_class) if option.path}
    rows = [("updates", state["optimizer_history"][-1]["num_updates"])] if state.get("optimizer_history") else []
    for section, names in {"model": tuple(config["model"]), **OPTIONS}.items():
        values = config.get(section) or {}
        for name in names:
            value = values.get(name)
            if value not in (None, "") and name not in places:
                rows.append((section if name == "_name" else name, value))
    return rows


def validation(state: Mapping[str, Any], run: Path) -> List[Tuple[str, str]]:
    """The last one until the checkpoint, from the history of its run; without, the loss that the checkpoint holds."""
    extra, rows = state.get("extra_state") or {}, []
    if extra.get("val_loss") is not None:
        rows.append((state["cfg"]["checkpoint"]["best_checkpoint_metric"], f"{float(extra['val_loss']):.4f}"))
    updates = state["optimizer_history"][-1]["num_updates"] if state.get("optimizer_history") else 0
    before = [row for row in run_log.read(run).validation if row["num_updates"] <= updates]
    without = (*run_log.BOOKKEEPING, *run_log.RATES)
    measured = [(name, f"{value:.4f}") for row in before[-1:] for name, value in row.items() if name not in without]
    return rows + [row for row in measured if row[0] not in dict(rows)]


def manifest_of(state: Mapping[str, Any], tokenizer: Tokenizer, data) -> Optional[Manifest]:
    """Of the prepared data at `data`, or where they were, if they still are there. Raises ValueError for `data`."""
    manifest = read_manifest(located(data)[0]) if data else None
    if manifest is None and state and state["cfg"]["task"].get("data"):
        with contextlib.suppress(ValueError):
            manifest = read_manifest(located(state["cfg"]["task"]["data"])[0])
    return manifest if manifest is not None and manifest.sentencepiece_sha256 == tokenizer.sha256 else None


def data_counts(manifest: Optional[Manifest], source: Source) -> str:
    tokenizer = source.tokenizer
    vocabulary = f"Vocabulary: {len(tokenizer):,} symbols, {tokenizer.name}, `{tokenizer.file_name}`."
    if isinstance(source, Finetuned):
        about = [(name, value) for name, value in source.problem.about.items() if isinstance(value, (str, int, float))]
        return "\n\n".join([*([markdown(("of fine-tuning", ""), about)] if about else []), vocabulary])
    if manifest is None:
        return f"{vocabulary} What the text was is not known: `--data` names the prepared folder."
    counts = [
        (name, f"{split.documents:,}", f"{split.characters:,}", f"{split.text_tokens:,}")
        for name, split in manifest.splits.items()
    ]
    lines = markdown(("split", "documents", "characters", "tokens"), counts)
    return f"{lines}\n\n{vocabulary} Say here where the text comes from."


def contents(report) -> str:
    """Which classes, and how close they are."""
    rows = []
    for choice, gaps in report.models:
        figures = (f"{gaps[what]:.1e}" if what in gaps else "" for what in ("hidden states", "logits"))
        rows.append((f"`{choice.place or '.'}`", f"`{choice.class_name}`", *figures))
    lines = [markdown(("folder", "class", "hidden states", "logits"), rows), ""]
    lines.append("The figures are largest differences from the trained network, in float32, as loaded again.")
    if report.left_out:
        lines.append(f"Not in it: {'; '.join(report.left_out)}.")
    return "\n".join(lines)


def read_state(checkpoint: Path) -> Dict[str, Any]:
    """What the card tells of."""
    document, tensors = json_files.read(checkpoint / storage.STATE), storage.Tensors(checkpoint)
    keys = {"cfg", "optimizer_history", "extra_state"} & set(document)
    return {key: storage.decode(document[key], tensors) for key in keys}
