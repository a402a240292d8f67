"""Vocabularies of Hugging Face's models: a fast tokenizer as it is, with the model's own ids, read by `tokenizers`.

    tokenizer.json, and beside it, where they are, tokenizer_config.json (which token has which role) and config.json
    (rows of the model's table)  ->  FastTokenizer  ->  model, the bytes that prepared data and checkpoints keep
"""

import json
import os
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Dict, List, Optional, Tuple, TypedDict, Union

import numpy as np

from amos_fairseq import json_files
from amos_fairseq.data.corpus import without_surrogates
from amos_fairseq.data.tokenizer import SPACE, Span, Tokenizer
from amos_fairseq.data.vocabulary import MASK, text_sample
from amos_fairseq.options import Range

FAST_NAME = "vocabulary.json"  # in a prepared folder
TOKENIZER_NAME, ROLES_NAME = "tokenizer.json", "tokenizer_config.json"
# Of each role: its keys in tokenizer_config.json, and its usual names where that tells nothing.
ROLES = {
    "bos": (("cls_token", "bos_token"), ("[CLS]", "<s>")),
    "pad": (("pad_token",), ("[PAD]", "<pad>")),
    "eos": (("sep_token", "eos_token"), ("[SEP]", "</s>")),
    "unk": (("unk_token",), ("[UNK]", "<unk>")),
    "mask": (("mask_token",), ("[MASK]", MASK)),
}
BERT_NAMES = {"pad": "[PAD]", "unk": "[UNK]", "bos": "[CLS]", "eos": "[SEP]", "mask": "[MASK]"}
UNUSED = re.compile(r"\[unused\d+\]|<unused\d+>|madeupword\d+")
SLOW = ("vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")  # of slow tokenizers


def import_tokenizers():
    """Hugging Face's tokenizers, one thread a process. Raises ValueError, with what to do, where it is missing."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # `prepare` has one process per CPU
    try:
        import tokenizers
    except ImportError:
        raise ValueError("Hugging Face's tokenizers is not installed: pip install 'tokenizers>=0.15'") from None
    return tokenizers


class AddedToken(TypedDict):
    content: str


Role = Union[str, AddedToken, None]


class Kept(TypedDict):
    """A vocabulary as prepared data and checkpoints keep it."""

    tokenizer: Dict[str, Any]
    roles: Dict[str, str]  # symbols
    size: Annotated[int, Range(1, 1 << 24)]


# What is read of tokenizer_config.json: a symbol, or an object with it.
Roles = TypedDict("Roles", {key: Role for keys, _ in ROLES.values() for key in keys}, total=False)  # type: ignore[misc]


class Table(TypedDict, total=False):
    """What is read of config.json."""

    vocab_size: Annotated[int, Range(1, 1 << 24)]


class FastTokenizer(Tokenizer):
    """A fast tokenizer of Hugging Face. Names of special tokens in a text are text.

    model   JSON: tokenizer.json, names of the special tokens by role, rows of the table
    """

    file_name = FAST_NAME
    name = "Hugging Face's tokenizers"
    obstacle = None

    def __init__(self, model: bytes, name: str = "the tokenizer"):
        document = json_files.parsed(model, Kept, name)
        self.model, self.roles = model, document["roles"]
        self.fast = parsed(document["tokenizer"], name)
        self.fast.no_truncation()
        self.fast.no_padding()
        self.fast.encode_special_tokens = True
        names = {token: symbol for symbol, token in self.fast.get_vocab(with_added_tokens=True).items()}
        size = document["size"]
        self.symbols = [names.get(token, f"madeupword{token:04d}") for token in range(size)]
        lacking = [role for role in ROLES if role != "unk" and self.roles.get(role) not in self.symbols]
        if lacking or not {*self.roles.values()} <= {*self.symbols}:
            raise ValueError(f"{name}: roles name no symbols of its table: {', '.join(lacking) or self.roles}")
        ids: Dict[str, int] = {role: self.symbols.index(symbol) for role, symbol in self.roles.items()}
        self.bos, self.pad, self.eos, self.mask = ids["bos"], ids["pad"], ids["eos"], ids["mask"]
        self.unk = unk = ids.get("unk")
        # A unigram model has a piece for each name: one that a text spells is unknown.
        hidden = () if unk is None else self.special
        self.id_of_text = [token if unk is None or token not in hidden else unk for token in range(size)]
        self.ids_of_text = np.array(self.id_of_text)
        self.separators = 2 if self.fast.encode("", "").ids.count(self.eos) == 3 else 1

    @property
    def listed(self) -> range:
        return range(len(self))

    @cached_property
    def special(self) -> List[int]:
        added = self.fast.get_added_tokens_decoder()
        special = {token for token, added_token in added.items() if added_token.special}
        return sorted(special | {self.fast.token_to_id(symbol) for symbol in self.roles.values()})

    @cached_property
    def excluded(self) -> List[int]:
        unused = [token for token, symbol in enumerate(self.symbols) if UNUSED.fullmatch(symbol)]
        return sorted({*self.special, *unused})

    @cached_property
    def shown(self) -> List[str]:
        kind = json.loads(self.fast.to_str())["model"]
        return [
            MASK if token == self.mask else symbol if token in self.special else as_sentencepiece(symbol, kind)
            for token, symbol in enumerate(self.symbols)
        ]

    def encode(self, text: str) -> List[int]:
        """Ids of `text` without special tokens."""
        return [self.id_of_text[token] for token in self._encoding(text).ids]

    def encode_batch(self, texts: Sequence[str]) -> Tuple[np.ndarray, List[int]]:
        ids = [encoding.ids for encoding in self.fast.encode_batch(list(texts), add_special_tokens=False)]
        flat = np.array([token for part in ids for token in part], dtype=np.int64)
        return self.ids_of_text[flat], [len(part) for part in ids]

    def encode_with_spans(self, text: str) -> Tuple[List[int], List[Span]]:
        encoding, spans, last = self._encoding(text), [], 0
        for token, (begin, end) in zip(encoding.ids, encoding.offsets):
            if self.shown[token] == SPACE:  # a space alone, which `tokenizers` has begin with the next character
                end = begin
            surface = text[begin:end]
            last = max(last, end)
            spans.append(Span(min(begin + len(surface) - len(surface.lstrip()), last), last))
        return [self.id_of_text[token] for token in encoding.ids], spans

    def _encoding(self, text: str):
        return self.fast.encode(without_surrogates(text)[0], add_special_tokens=False)

    def encode_masked(self, text: str) -> List[int]:
        """As transformers has a text with the mask's own name: of what is around it, other special names count, too."""
        self.fast.encode_special_tokens = False
        try:
            return self._encoding(text.replace(MASK, self.roles["mask"])).ids
        finally:
            self.fast.encode_special_tokens = True

    def decode(self, ids: Sequence[int]) -> str:
        return self.fast.decode(list(ids), skip_special_tokens=False)


def parsed(document: Dict[str, Any], name: str):
    tokenizers = import_tokenizers()
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(document))
    except Exception as error:  # its word for what it cannot read
        raise ValueError(f"{name} is no tokenizer that `tokenizers` {tokenizers.__version__} reads: {error}") from None


def as_sentencepiece(symbol: str, model: Dict[str, Any]) -> str:
    """With U+2581 where a word starts, for people to read."""
    if model["type"] == "WordPiece":
        prefix = model["continuing_subword_prefix"]
        return symbol.removeprefix(prefix) if symbol.startswith(prefix) else SPACE + symbol
    return readable_bytes(symbol).replace(" ", SPACE) if model["type"] == "BPE" and SPACE not in symbol else symbol


def readable_bytes(symbol: str) -> str:
    """Of byte-level BPE, whose characters stand for bytes; half characters stay as they are."""
    text = import_tokenizers().decoders.ByteLevel().decode([symbol])
    return symbol if "\ufffd" in text else text


# Reading a model's folder

def is_fast(path: str) -> bool:
    """Whether `path` is a tokenizer.json or a folder of a Hugging Face model, its tokenizer a slow one perhaps."""
    folder = Path(path)
    return folder.suffix == ".json" or any((folder / name).is_file() for name in (TOKENIZER_NAME, *SLOW))


def read_fast(path: str) -> FastTokenizer:
    """Of a folder or a tokenizer.json. Raises ValueError, in one line, for what cannot be a vocabulary."""
    file = Path(path)
    if file.is_dir():
        file /= TOKENIZER_NAME
        if not file.is_file():
            slow = next((name for name in SLOW if (file.parent / name).is_file()), None)
            if slow is None:
                raise ValueError(f"{path} holds no {TOKENIZER_NAME}: save the model's tokenizer there, too")
            raise ValueError(
                f"{path} holds a slow tokenizer ({slow}): load it with transformers' AutoTokenizer, which makes a fast "
                "one of it, and name the folder that its save_pretrained writes"
            )
    document, config = read_json(file), read_json(file.parent / ROLES_NAME, Roles)
    if {"roles", "tokenizer", "size"} <= document.keys():  # what we keep
        return FastTokenizer(file.read_bytes(), str(file))
    rows = read_json(file.parent / "config.json", Table).get("vocab_size")
    return assembled(parsed(document, str(file)), config, rows, str(file))


def read_json(path: Path, form: Any = Dict[str, Any]) -> Dict[str, Any]:
    """{} of a file that is not there."""
    return json_files.read(path, form) if path.is_file() else {}


def assembled(fast, config: Dict[str, Any], rows: Optional[int], name: str) -> FastTokenizer:
    """The vocabulary of a `tokenizers.Tokenizer`; rows: of the model's table, None if it is not known."""
    ids = fast.get_vocab(with_added_tokens=True)
    roles = {}
    for role, (keys, usual) in ROLES.items():
        told = [config[key] for key in keys if config.get(key)]
        names = [symbol["content"] if isinstance(symbol, dict) else symbol for symbol in told] or usual
        found = next((symbol for symbol in names if symbol in ids), None)
        if found is not None:
            roles[role] = found
        elif role != "unk":
            raise ValueError(f"{name} has no {role} token ({', '.join(names)}): a vocabulary to train with needs one")
    size = 1 + max(ids.values())
    if rows is not None and size > rows:
        beyond = next(symbol for symbol, token in ids.items() if token >= rows)
        raise ValueError(f"{name}: {beyond!r} has id {ids[beyond]}, beyond the model's table of {rows} rows: remove it")
    if any("\n" in symbol for symbol in ids):
        raise ValueError(f"{name}: a token holds a line break, which fairseq's dict.txt cannot")
    bos, eos = ids[roles["bos"]], ids[roles["eos"]]
    if fast.encode("").ids != [bos, eos] or fast.encode("", "").ids not in ([bos, eos, eos], [bos, eos, eos, eos]):
        begin, end = roles["bos"], roles["eos"]
        fast.post_processor = import_tokenizers().processors.TemplateProcessing(
            single=f"{begin} $A {end}", pair=f"{begin} $A {end} $B:1 {end}:1", special_tokens=[(begin, bos), (end, eos)]
        )
    document = {"tokenizer": json.loads(fast.to_str()), "roles": roles, "size": rows or size}
    return FastTokenizer(json.dumps(document, ensure_ascii=False).encode(), name)


# Training

def train_fast(texts: Iterable[str], kind: str, vocab_size: int, uncased: bool) -> FastTokenizer:
    """BERT's WordPieces, RoBERTa's byte-level BPE, or a unigram model, `vocab_size` symbols in all."""
    import_tokenizers()
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Fast

    roles = BERT_NAMES if kind == "wordpiece" else Tokenizer.roles
    options: Dict[str, Any] = dict(vocab_size=vocab_size, special_tokens=[*roles.values()], show_progress=False)
    lower = [normalizers.Lowercase()] if uncased else []
    trainer: Any
    if kind == "wordpiece":
        fast = Fast(models.WordPiece(unk_token=roles["unk"]))
        fast.normalizer = normalizers.BertNormalizer(lowercase=uncased)
        fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        fast.decoder, trainer = decoders.WordPiece(), trainers.WordPieceTrainer(**options)
    elif kind == "bpe":
        fast = Fast(models.BPE(unk_token=roles["unk"]))
        fast.normalizer = normalizers.Sequence(lower)
        fast.pre_tokenizer, fast.decoder = pre_tokenizers.ByteLevel(add_prefix_space=True), decoders.ByteLevel()
        trainer = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **options)
    else:
        fast = Fast(models.Unigram())
        fast.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " "), *lower])
        fast.pre_tokenizer, fast.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.UnigramTrainer(unk_token=roles["unk"], **options)
    fast.train_from_iterator(text_sample(texts), trainer)
    size = fast.get_vocab_size()
    if size != vocab_size:
        remedy = f"{size} or less" if size < vocab_size else f"{size} or more"
        how = "too small for a vocabulary" if size < vocab_size else "too varied for a vocabulary"
        raise ValueError(f"the corpus is {how} of {vocab_size}: use --vocab-size {remedy}")
    return assembled(fast, {}, None, "the trained tokenizer")
