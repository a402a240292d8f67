"""Which of Hugging Face's classes a checkpoint can be written as, and which of them are."""

from typing import Iterator, List, NamedTuple, Sequence, Union

from amos_fairseq.finetune.kinds import kind_of
from amos_fairseq.finetune.model import Finetuned
from amos_fairseq.modules.heads import DetectionHead, MaskedLMHead
from amos_fairseq.pretrained.layouts import AMOS, BERT, ELECTRA, MPNET, Layout, Part
from amos_fairseq.pretrained.model import Pretrained

GENERATOR = "generator"  # subfolder
ONE_LAYER = " (one linear layer, where ElectraForPreTraining has two)"

Source = Union[Pretrained, Finetuned]


def method_name(source: Source) -> str:
    return source.origin.method if isinstance(source, Finetuned) else source.name


class Choice(NamedTuple):
    """One model: "" or the subfolder that it is written to, and as what."""

    place: str
    layout: Layout
    part: Part

    @property
    def class_name(self) -> str:
        return self.layout.class_name(self.part.task)

    @property
    def needs_code(self) -> bool:
        """Whether the class is in modeling_amos.py, not in transformers."""
        return self.layout is AMOS


def candidates(source: Source) -> List[Choice]:
    """All that are equal to a network of the checkpoint: the encoder's first, and of each those with a head first."""
    method = None if isinstance(source, Finetuned) else source.method
    has_generator = method is not None and len(method.networks()) > 1
    order = (MPNET, ELECTRA, BERT, AMOS) if has_generator else (MPNET, BERT, ELECTRA, AMOS)
    parts = finetuned_parts(source) if isinstance(source, Finetuned) else pretrained_parts(source)
    places = [("", part) for part in parts]
    if has_generator:
        places.append((GENERATOR, Part("masked_lm", method.masked_lm_encoder, method.mlm_head)))
    return [
        Choice(place, layout, part) for place, part in places for layout in order
        if layout.fits(part.encoder.config) and (part.head is None or part.task in layout.heads)
    ]


def pretrained_parts(source: Pretrained) -> Iterator[Part]:
    """The encoder with a head that they have, too, then without."""
    if source.method is not None:
        lm_head, detection_head = source.method.encoder_lm_head, source.method.detection_head
        tied = isinstance(lm_head, MaskedLMHead) and lm_head.token_embeddings is source.encoder.token_embeddings
        if tied:  # as it is there
            yield Part("masked_lm", source.encoder, lm_head)
        if detection_head is not None and detection_head.dense is not None:
            yield Part("detection", source.encoder, detection_head)
    yield Part("encoder", source.encoder)


def finetuned_parts(source: Finetuned) -> Iterator[Part]:
    """Raises ValueError if no class of theirs is for this kind of problem."""
    problem, kind, encoder = source.problem, kind_of(source.problem.kind), source.network.encoder
    if kind.head_class is None:
        raise ValueError(
            f"{problem.name} is a problem of {kind.name}, for which transformers has no class that is equal: use the "
            "checkpoint itself, with amos_fairseq.finetune.model.load_finetuned"
        )
    head = kind.exported_head(problem, source.network.head)
    if head is not None:
        yield Part(kind.head_class, encoder, head, problem.labels, kind.sets)
    yield Part("encoder", encoder)


def choose(found: List[Choice], class_names: Sequence[str]) -> List[Choice]:
    """Those with these names, or the first of each place; the encoder's is the first. Raises ValueError."""
    if not class_names:
        return list({choice.place: choice for choice in reversed(found)}.values())[::-1]
    by_name = {choice.class_name: choice for choice in reversed(found)}
    for name in class_names:
        if name not in by_name:
            raise ValueError(f"class {name} does not fit this checkpoint: choose {', '.join(reversed(by_name))}")
    chosen = sorted((by_name[name] for name in dict.fromkeys(class_names)), key=lambda choice: choice.place)
    encoders = [choice.class_name for choice in chosen if not choice.place]
    if len(encoders) != 1:
        names = {choice.class_name for choice in found if not choice.place}
        raise ValueError(f"name one class for the encoder, not {len(encoders)}: of {', '.join(sorted(names))}")
    return chosen


def left_out(source: Source, chosen: Sequence[Choice]) -> List[str]:
    """Modules of the method, or of the fine-tuned network, that are in none of the chosen."""
    whole = source.network if isinstance(source, Finetuned) else source.method
    modules = [module for choice in chosen for module in (choice.part.encoder, choice.part.head) if module is not None]
    if isinstance(source, Pretrained) and source.method is not None:
        modules.append(source.method.encoder)  # of which the exported one may be a copy
    written = {id(parameter) for module in modules for parameter in module.parameters()}
    children = whole.named_children() if whole is not None else ()
    return [
        f"{name}{ONE_LAYER}" if isinstance(child, DetectionHead) and child.dense is None else name
        for name, child in children if any(id(parameter) not in written for parameter in child.parameters())
    ]
