"""Hugging Face's transformers: a folder that its Auto classes load, of any checkpoint, and back.

    config.json, model.safetensors           of the stock class that the network is equal to, where there is one
    modeling_amos.py                         else: the class itself, for trust_remote_code=True
    tokenizer.json, tokenizer_config.json    a fast tokenizer with our ids
    sentencepiece.model | vocabulary.json    what it was made of, which `load` reads
    generator/                               the same of a method's generator, a masked language model
    modules.json, 1_Pooling/config.json      for sentence-transformers, if a pooling is given
    README.md                                the model card

What is written is loaded again and its outputs are compared with ours before the folder gets its name.
"""

import contextlib
import json
import shutil
import sys
import tempfile
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple
from unittest import mock

import torch
from torch import Tensor, nn

from amos_fairseq import __version__
from amos_fairseq.checkpoints import storage
from amos_fairseq.data.tokenizer import Tokenizer
from amos_fairseq.export import card
from amos_fairseq.export.choices import Choice, Source, candidates, choose, left_out, method_name
from amos_fairseq.export.tokenizer import write_tokenizer
from amos_fairseq.files import new_folder, write_durably
from amos_fairseq.finetune.model import find, read_finetuned
from amos_fairseq.modules.batching import padded
from amos_fairseq.modules.encoder import EncoderConfig
from amos_fairseq.pretrained.exported import CARD, OURS, WEIGHTS
from amos_fairseq.pretrained.filling import finite
from amos_fairseq.pretrained.layouts import AUTO_CLASSES, CONFIG, Part, config_of, tensors_of
from amos_fairseq.pretrained.loading import FINETUNING, PRETRAINING, load

TOLERANCE, TOLERANCE_FLOAT64 = 1e-5, 1e-9
POOLINGS = ("mean", "cls")
MODELLING_FILE = Path(__file__).with_name("modeling_amos.py")
TEXTS = (
    "Pre-training gives every token a vector that depends on all the others.",
    "The caf\u00e9 on the corner was closed; we walked on to the river, in the rain.",
    "Yes.",
    "In 1969, three people flew 384,400 km, and two of them walked about where nobody had been before.",
)


Gaps = Dict[str, float]  # largest differences between a loaded model and ours: of hidden states, and of any logits


def told(gaps: Gaps) -> str:
    return ", ".join(f"{gap:.1e} in {what}" for what, gap in gaps.items())


class Report(NamedTuple):
    models: List[Tuple[Choice, Gaps]]  # the encoder's first
    left_out: List[str]  # modules of the checkpoint that are in none of them
    pooling: Optional[str]
    tokenizer: bool  # whether AutoTokenizer finds one


def import_transformers():
    """Hugging Face's transformers. Raises ValueError, with what to do, where it is not installed.

    Without torchaudio: one built for another torch, as fairseq may bring, would break the models that have no audio.
    """
    if find_spec("transformers") is None:
        raise ValueError("Hugging Face's transformers is not installed: pip install 'transformers>=4.48'")
    if find_spec("torchaudio"):
        sys.modules.setdefault("torchaudio", module_from_spec(ModuleSpec("torchaudio", None)))
    import transformers

    return transformers


def export(
    path, out, class_names: Sequence[str] = (), pooling: Optional[str] = None, data=None, tokenizer: bool = True
) -> Report:
    """Write the new folder `out` of a checkpoint or a run, pre-trained or fine-tuned.

    class_names   of transformers: the encoder's, and the generator's if it is wanted; default: those with most heads
    pooling       mean or cls: of a sentence-transformers model
    data          the run's prepared folder: for the card, and for a checkpoint that holds no vocabulary
    tokenizer     False: without the files of AutoTokenizer, for a vocabulary that has no equal there
    Raises ValueError, in one line; then nothing is left behind.
    """
    out = Path(out)
    transformers = import_transformers()
    if pooling not in (None, *POOLINGS):
        raise ValueError(f"pooling {pooling!r} is none of {', '.join(POOLINGS)}")
    with new_folder(out) as partial:
        source, checkpoint = read(path, data)
        chosen = choose(candidates(source), class_names)
        for choice in chosen:
            write_model(partial / choice.place, choice, source, tokenizer)
        shape = chosen[0].part.encoder.config
        if pooling is not None:
            write_pooling(partial, pooling, shape)
        with loading(transformers):
            if tokenizer:
                check_tokenizer(transformers, partial, source.tokenizer, shape.max_positions)
            models = [(choice, compare(transformers, partial, choice, source.tokenizer)) for choice in chosen]
        report = Report(models, left_out(source, chosen), pooling, tokenizer)
        (partial / CARD).write_text(card.text(out.name, source, report, checkpoint, data), encoding="utf-8")
    return report


def read(path, data) -> Tuple[Source, Optional[Path]]:
    """What is to be written, and its checkpoint unless that is in another's format."""
    found = find(path)
    if found.kind == FINETUNING:
        return read_finetuned(found.path), found.path
    return load(found, data), found.path if found.kind == PRETRAINING else None


# Writing

def write_model(folder: Path, choice: Choice, source: Source, tokenizer: bool) -> None:
    folder.mkdir(exist_ok=True)
    ids = {"bos_token_id": source.tokenizer.bos, "eos_token_id": source.tokenizer.eos}
    ours = {"method": method_name(source), "version": __version__}
    config = {**config_of(choice.part, choice.layout), **ids, OURS: ours}
    write_json(folder / CONFIG, config)
    write_durably(folder / WEIGHTS, storage.safetensors_bytes(tensors_of(choice.part, choice.layout)))
    if choice.needs_code:
        shutil.copyfile(MODELLING_FILE, folder / MODELLING_FILE.name)
    if tokenizer:
        write_tokenizer(source.tokenizer, choice.part.encoder.config.max_positions, folder)
    (folder / source.tokenizer.file_name).write_bytes(source.tokenizer.model)


def write_pooling(folder: Path, pooling: str, shape: EncoderConfig) -> None:
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate((("", "Transformer"), ("1_Pooling", "Pooling")))
    ]
    write_json(folder / "modules.json", modules)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": shape.max_positions, "do_lower_case": False})
    (folder / "1_Pooling").mkdir()
    modes = {"pooling_mode_cls_token": pooling == "cls", "pooling_mode_mean_tokens": pooling == "mean"}
    write_json(folder / "1_Pooling" / CONFIG, {"word_embedding_dimension": shape.dim, **modes})


def write_json(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


# Loading again

@contextlib.contextmanager
def loading(transformers) -> Iterator[None]:
    """Without what it says of classes that use a part of a folder, as AutoModel does, and the copy that it keeps of a
    modelling file: else each export would leave one in the user's cache."""
    from transformers import dynamic_module_utils

    logging = transformers.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    path = list(sys.path)  # it adds the folder of copies
    try:
        with tempfile.TemporaryDirectory() as copies:
            with mock.patch.object(dynamic_module_utils, "HF_MODULES_CACHE", copies):
                yield
    finally:
        sys.path[:] = path
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def samples(tokenizer: Tokenizer, max_positions: int) -> Tuple[List[str], List[List[int]]]:
    """Texts of several lengths, one longer than a model reads; their ids, each cut to what it reads."""
    texts = [*TEXTS, " ".join(TEXTS * (1 + max_positions // len(TEXTS)))]
    return texts, [tokenizer.sequence(tokenizer.encode(text)[: max_positions - 2]) for text in texts]


def check_tokenizer(transformers, folder: Path, tokenizer: Tokenizer, max_positions: int) -> None:
    """Raises ValueError unless it gives our ids."""
    loaded = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    texts, expected = samples(tokenizer, max_positions)
    expected.append(tokenizer.sequence(*map(tokenizer.encode, TEXTS[:2])))
    ids = [*loaded(texts, truncation=True)["input_ids"], loaded(*TEXTS[:2])["input_ids"]]
    if ids != expected or loaded.mask_token_id != tokenizer.mask:
        raise ValueError("the exported tokenizer gives other ids than ours: nothing was written; please report this")


@torch.no_grad()
def compare(transformers, folder: Path, choice: Choice, tokenizer: Tokenizer) -> Gaps:
    """On short texts, with padding, and on one as long as can be. Raises ValueError unless they are equal.

    That is, within TOLERANCE in float32. Rounding alone exceeds that where a deep network has large states; then
    float64 decides, in which only rounding is within TOLERANCE_FLOAT64.
    """
    place, networks = folder / choice.place, [m for m in (choice.part.encoder, choice.part.head) if m is not None]
    names = dict.fromkeys(["AutoModel", AUTO_CLASSES[choice.part.task]])
    models = [load_again(transformers, name, place, choice) for name in names]
    *short, longest = map(torch.tensor, samples(tokenizer, choice.part.encoder.config.max_positions)[1])
    batches = [padded(rows, choice.part.encoder) for rows in (short, [longest])]
    gaps = gaps_between(models, choice.part, batches)
    finite(torch.tensor(list(gaps.values())), choice.class_name)
    if within(gaps, TOLERANCE):
        return gaps
    for network in (*models, *networks):
        network.double()
    exact = gaps_between(models, choice.part, batches)
    for network in networks:
        network.float()
    if not within(exact, TOLERANCE_FLOAT64):
        raise ValueError(different(choice, told(gaps)))
    return gaps


def within(gaps: Gaps, tolerance: float) -> bool:
    return all(gap <= tolerance for gap in gaps.values())  # NaN is not


def gaps_between(models: Sequence[nn.Module], part: Part, batches: Sequence[Tuple[Tensor, Optional[Tensor]]]) -> Gaps:
    """models: as AutoModel has it, and with its head"""
    masks = [padding_mask for _, padding_mask in batches]
    hidden = [part.encoder(*batch) for batch in batches]
    theirs = [run(models[0], *batch).last_hidden_state for batch in batches]
    gaps = {"hidden states": largest_gap(theirs, hidden, masks)}
    if part.head is None:
        return gaps
    masks = [None] * len(batches) if part.task in ("sequence", "choice") else masks  # one output for each text
    if part.task == "choice":  # each text as the only one
        batches = [[None if rows is None else rows[:, None] for rows in batch] for batch in batches]
    theirs = [logits_of(run(models[-1], *batch)) for batch in batches]
    return {**gaps, "logits": largest_gap(theirs, [part.logits(states) for states in hidden], masks)}


def run(model, tokens: Tensor, padding_mask: Optional[Tensor]):
    return model(input_ids=tokens, attention_mask=None if padding_mask is None else (~padding_mask).long())


def logits_of(output) -> Tensor:
    if hasattr(output, "start_logits"):
        return torch.stack([output.start_logits, output.end_logits], dim=-1)
    return output.logits


def largest_gap(theirs: List[Tensor], ours: List[Tensor], masks: List[Optional[Tensor]]) -> float:
    """Over batches; masks: where each is padding, which does not count, or None."""
    gaps = [(left - right).abs() for left, right in zip(theirs, ours)]
    return torch.stack([(gap if mask is None else gap[~mask]).max() for gap, mask in zip(gaps, masks)]).max().item()


def load_again(transformers, auto_class: str, folder: Path, choice: Choice):
    """By an Auto class; of their code nothing is run but the file that was written."""
    own_code = {"trust_remote_code": True} if choice.needs_code else {}
    model, info = getattr(transformers, auto_class).from_pretrained(folder, output_loading_info=True, **own_code)
    if auto_class == AUTO_CLASSES[choice.part.task]:
        strange = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
        if strange or type(model).__name__ != choice.class_name:
            raise ValueError(different(choice, f"{type(model).__name__}, parameters {strange}"))
    return model.float().eval()


def different(choice: Choice, how: str) -> str:
    return f"{choice.class_name} as loaded again differs from the checkpoint by {how}: nothing was written"
