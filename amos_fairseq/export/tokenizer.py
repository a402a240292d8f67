"""Our tokenizer as a fast one of Hugging Face: equal ids, without SentencePiece."""

import json
from pathlib import Path
from typing import Dict, List, Tuple

from amos_fairseq.data.fast_tokenizer import ROLES
from amos_fairseq.data.sentencepiece_model import UNIGRAM, SentencePieceModel, parse
from amos_fairseq.data.tokenizer import SPACE, Tokenizer
from amos_fairseq.data.vocabulary import BOS, EOS, MASK, SPECIALS, UNK

ISOLATOR = "\uffff"  # no character, so in no text
NEVER = -1e4  # log-probability of a special token in a unigram model: text never makes one


def fast_tokenizer(tokenizer: Tokenizer):
    """A `tokenizers.Tokenizer` with the ids of `tokenizer`; <s> .. </s> around a text, <s> .. </s> </s> .. </s> a pair.

    Known differences: accents in an order that is not Unicode's, which SentencePiece leaves and this corrects; U+2581
    in a text, unless the model makes a space of it, as those of our preparation do; of unigram models, pieces as likely
    as others, ".." "." or "." "..", among which rounding errors choose.
    Raises ValueError if the SentencePiece model does what the tokenizers library cannot do.
    """
    from tokenizers import Regex, decoders, normalizers, pre_tokenizers, processors
    from tokenizers import Tokenizer as FastTokenizer

    if obstacle := tokenizer.obstacle:
        raise ValueError(f"{obstacle}, which Hugging Face's tokenizers have no equal for: add --no-tokenizer")
    model = parse(tokenizer.model)
    fast = FastTokenizer(pieces_model(model, tokenizer))

    steps = [normalizers.Replace("\n", " "), normalizers.Replace("\r", " ")]
    if model.charsmap:
        # `Precompiled` applies a rule for the first character of a grapheme to all of it, so that "A" with an accent
        # would become "a": it gets the characters one by one, and accents are composed before and after.
        isolate = normalizers.Replace(Regex(r"(?<=.)(?=[^\x00-\x7f])"), ISOLATOR)
        join = normalizers.Replace(ISOLATOR, "")
        steps += [normalizers.NFC(), isolate, normalizers.Precompiled(model.charsmap), join, normalizers.NFC()]
    steps += [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Replace(Regex(f"[ {SPACE}]+$"), "")]
    fast.normalizer = normalizers.Sequence(steps)

    # A text begins a word, but what follows <mask> does only after a space. No piece reaches into the next word, so
    # words can be taken one by one, which is faster.
    words_apart = not any(SPACE in piece.text[1:] for piece in model.pieces)
    fast.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="first", split=words_apart)
    fast.decoder = decoders.Metaspace(SPACE, prepend_scheme="first")
    bos, eos = SPECIALS[BOS], SPECIALS[EOS]
    fast.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {eos}", pair=f"{bos} $A {eos} {eos} $B {eos}", special_tokens=[(bos, BOS), (eos, EOS)]
    )
    return fast


def pieces_model(model: SentencePieceModel, tokenizer: Tokenizer):
    from tokenizers import models

    scores = {piece.text: piece.score for piece in model.pieces}
    text_tokens = set(range(len(tokenizer))) - set(tokenizer.excluded)
    if model.model_type == UNIGRAM:
        symbols = enumerate(tokenizer.symbols)
        vocabulary = [(symbol, scores[symbol] if token in text_tokens else NEVER) for token, symbol in symbols]
        return models.Unigram(vocabulary, unk_id=UNK, byte_fallback=model.byte_fallback)
    vocabulary = {symbol: token for token, symbol in enumerate(tokenizer.symbols)}
    pieces = {tokenizer.symbols[token]: scores[tokenizer.symbols[token]] for token in text_tokens}
    options = dict(unk_token=SPECIALS[UNK], fuse_unk=True, byte_fallback=model.byte_fallback)
    return models.BPE(vocabulary, merges(pieces), **options)


def merges(scores: Dict[str, float]) -> List[Tuple[str, str]]:
    """Every way to make a piece of two, best piece first: what SentencePiece joins next is what has the best score."""
    pieces = sorted(scores, key=scores.get, reverse=True)
    halves = ((piece[:cut], piece[cut:]) for piece in pieces for cut in range(1, len(piece)))
    return [(left, right) for left, right in halves if left in scores and right in scores]


def write_tokenizer(tokenizer: Tokenizer, max_tokens: int, folder: Path) -> None:
    """The files that AutoTokenizer reads; texts are cut to `max_tokens` where truncation is asked for."""
    from tokenizers import AddedToken

    fast = tokenizer.fast
    if fast is None:
        fast = fast_tokenizer(tokenizer)
        # In a text they stand for themselves: transformers has it so, unless `split_special_tokens=True` is given.
        fast.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in (*SPECIALS, MASK)])
    # Its own `save` raises a bare Exception where the disk is full.
    (folder / "tokenizer.json").write_text(fast.to_str(pretty=True), encoding="utf-8")
    keys = {key: tokenizer.roles.get(role) for role, (keys, _) in ROLES.items() for key in keys}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_tokens,
        "model_input_names": ["input_ids", "attention_mask"], "clean_up_tokenization_spaces": False,
        **{key: name for key, name in keys.items() if name is not None},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
