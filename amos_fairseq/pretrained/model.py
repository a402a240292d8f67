"""What was pre-trained, loaded to be used: `amos_fairseq.from_pretrained(path)`.

    model = amos_fairseq.from_pretrained("checkpoints")
    model.features(["a sentence", "another"])       # (2, C)
    model.fill_mask("the <mask> of an array")       # what its masked LM would put in
    model.detect("the shape on an array")           # how likely each token was replaced
    model.score(["a sentence", "a sentence not"])   # pseudo-log-likelihoods
"""

from dataclasses import dataclass
from typing import Callable, List, NamedTuple, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor

from amos_fairseq.data.tokenizer import Tokenizer, word_numbers
from amos_fairseq.data.vocabulary import MASK
from amos_fairseq.methods.base import PretrainingMethod
from amos_fairseq.modules.batching import BATCH_TOKENS, batches, padded
from amos_fairseq.modules.encoder import Encoder
from amos_fairseq.ops import full_precision
from amos_fairseq.pretrained.filling import finite
from amos_fairseq.pretrained.scoring import Score, Sequences, scores_of

POOLINGS = ("mean", "first")


class Filling(NamedTuple):
    """One word for a <mask>."""

    token: str  # SentencePiece's: with U+2581 where a word starts
    probability: float


class Detection(NamedTuple):
    """One token of a text, characters `begin` to `end` of it."""

    token: str
    begin: int
    end: int
    replaced: float  # probability that it is not the original one


@dataclass(frozen=True)
class Pretrained:
    """An encoder and its vocabulary, in evaluation mode; `method` has its heads and generator, where they are known.

    source      where it was found
    name        registered name of its method
    token_counts    (V,) how often training met each token, where it counted
    B texts, T tokens of the longest, C width of the encoder. Every function that reads text raises ValueError for one
    of more tokens than the encoder has positions.
    """

    source: str
    name: str
    encoder: Encoder
    tokenizer: Tokenizer
    method: Optional[PretrainingMethod] = None
    token_counts: Optional[Tensor] = None

    @property
    def max_tokens(self) -> int:
        """Of a text, <s> and </s> included."""
        return self.encoder.config.max_positions

    @property
    def device(self) -> torch.device:
        return self.encoder.token_embeddings.weight.device

    def to(self, device) -> "Pretrained":
        """The same networks, moved."""
        for module in filter(None, (self.encoder, self.method)):
            module.to(device)
        return self

    def encode(self, text: str, pair: Optional[str] = None) -> Tensor:
        """(T,) ids: <s> text </s>, or <s> text </s> </s> pair </s>."""
        parts = [text] if pair is None else [text, pair]
        return self._checked(self.tokenizer.sequence(*map(self.tokenizer.encode, parts)), text)

    def _checked(self, ids: List[int], text: str) -> Tensor:
        if len(ids) > self.max_tokens:
            raise ValueError(f"{len(ids)} tokens, but the model reads {self.max_tokens}: shorten {text[:40]!r}..")
        return torch.tensor(ids)

    @torch.no_grad()
    def features(
        self, texts: Union[str, Sequence[str]], pooling: str = "mean", batch_tokens: int = BATCH_TOKENS,
        progress: Callable[[int], object] = lambda texts: None, layer: int = -1,
    ) -> Tensor:
        """(B, C), or (C,) of a single string: each text's hidden states, their mean over tokens or the first, <s>'s.

        layer: whose states, 0: of the embeddings, 1 to L: of the encoder's L layers; -1 to -L - 1: from the top
        """
        if isinstance(texts, str):
            return self.features([texts], pooling, batch_tokens, layer=layer)[0]
        return self.pooled([self.encode(text) for text in texts], pooling, batch_tokens, progress, layer)

    @torch.no_grad()
    def pooled(
        self, sequences: Sequence[Tensor], pooling: str = "mean", batch_tokens: int = BATCH_TOKENS,
        progress: Callable[[int], object] = lambda sequences: None, layer: int = -1,
    ) -> Tensor:
        """`features` of sequences of ids (T,), with <s> and </s>.

        At most `batch_tokens` positions are read, and their states held, at a time. `progress` is told how many
        sequences each pass has finished.
        """
        if pooling not in POOLINGS:
            raise ValueError(f"pooling {pooling!r} is none of {', '.join(POOLINGS)}")
        layer = self.layer_number(layer)
        features = self.encoder.token_embeddings.weight.new_empty(len(sequences), self.encoder.config.dim)
        for rows in batches([len(sequence) for sequence in sequences], batch_tokens):
            tokens, padding_mask = padded([sequences[row] for row in rows], self.encoder)
            hidden, layers = self.encoder.begin(self.encoder.token_embeddings(tokens), padding_mask)
            hidden = layers.run(hidden, stop=layer)
            for row, states in zip(rows, hidden):
                features[row] = states[: len(sequences[row])].mean(dim=0) if pooling == "mean" else states[0]
            progress(len(rows))
        return finite(features, self.source)

    def layer_number(self, layer: int) -> int:
        """0 to the number of layers, of one that may be counted from the top. Raises ValueError."""
        layers = len(self.encoder.layers)
        if not -layers - 1 <= layer <= layers:
            raise ValueError(f"layer {layer} must lie between {-layers - 1} and {layers}, the encoder's last layer")
        return layer % (layers + 1)

    @torch.no_grad()
    def fill_mask(self, text: str, top: int = 5) -> List[List[Filling]]:
        """The likeliest tokens for each <mask> of a text, likeliest first, by the masked language model.

        That is the generator, of AMOS its deepest; of BERT and SCRIPT the encoder itself.
        """
        method = self.method_with("a masked language model")
        if MASK not in text:
            raise ValueError(f"there is no {MASK} in {text[:40]!r}: write one for each token to be filled in")
        if not 0 < top <= len(self.tokenizer):
            raise ValueError(f"top {top} must lie between 1 and the vocabulary's {len(self.tokenizer)}")
        tokens = self._checked(self.tokenizer.sequence(self.tokenizer.encode_masked(text)), text).to(self.device)
        hidden = method.masked_lm_encoder(tokens[None])[0, tokens == self.tokenizer.mask]
        logits = finite(full_precision(method.mlm_head(hidden)), self.source)
        logits[:, method.excluded_tokens] = float("-inf")
        best = logits.softmax(dim=-1).topk(top)
        return [
            [Filling(self.tokenizer.shown[token], probability) for token, probability in zip(*row)]
            for row in zip(best.indices.tolist(), best.values.tolist())
        ]

    @torch.no_grad()
    def detect(self, text: str) -> List[Detection]:
        """How likely each token of a text was replaced, as the encoder learnt to tell."""
        ids, spans = self.tokenizer.encode_with_spans(text)
        tokens = self._checked(self.tokenizer.sequence(ids), text)
        logits = self.method_with("a detection head").detection_logits(tokens[None].to(self.device))
        replaced = (-finite(full_precision(logits[0, 1:-1]), self.source)).sigmoid().tolist()
        return [Detection(self.tokenizer.shown[i], *span, p) for i, span, p in zip(ids, spans, replaced)]

    def score(
        self, texts: Sequence[str], scoring: Optional[str] = None, special_tokens: bool = False,
        contexts: Optional[Sequence[str]] = None, **options,
    ) -> List[Score]:
        """Pseudo-log-likelihood of each text, by one of SCORINGS.

        scoring          one-pass: a pass a text, by the critic or detection head; masked, within-word: a pass a token,
                         see `scoring.masked_scores`; by default one-pass of a SCRIPT model, masked of others
        special_tokens   count <s> and </s>, too
        contexts         read before each text, and not counted
        options          of `scoring.one_pass_scores`
        """
        method = self.method_with("a language model")
        sequences = self.sequences(texts, special_tokens, contexts)
        scores = scores_of(method, sequences, scoring, self.tokenizer.mask, **options)
        finite(torch.tensor([score.pll for score in scores]), self.source)
        return scores

    def sequences(
        self, texts: Sequence[str], special_tokens: bool = False, contexts: Optional[Sequence[str]] = None
    ) -> Sequences:
        """What `score` reads and counts."""
        pairs = zip(contexts or [""] * len(texts), texts)
        rows = [self._sequence(context, text, special_tokens) for context, text in pairs]
        return Sequences(*([row[part] for row in rows] for part in range(3)))

    def _sequence(self, context: str, text: str, special_tokens: bool) -> Tuple[Tensor, Tensor, Tensor]:
        start = len(context) + 1 if context else 0
        whole = f"{context} {text}" if context else text
        ids, spans = self.tokenizer.encode_with_spans(whole)
        tokens = self._checked(self.tokenizer.sequence(ids), whole)
        counted = [span.begin >= start for span in spans]
        words = word_numbers(whole, spans)
        return tokens, torch.tensor([special_tokens, *counted, special_tokens]), torch.tensor([-1, *words, -2])

    def method_with(self, part: str) -> PretrainingMethod:
        """Raises ValueError, in one line, if there is only the encoder, and not `part`."""
        if self.method is None:
            raise ValueError(f"{self.source} holds an encoder only, not {part}: name a checkpoint of pre-training")
        return self.method
