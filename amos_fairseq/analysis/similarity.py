"""What pooled hidden states say without training: of how similar texts are (STS), of which documents answer a query
(BEIR, Thakur et al., 2021). And whether they say anything: those of a collapsed encoder are all alike.

    texts -> pooled hidden states of a layer -> cosine -> Spearman with people's scores | nDCG@10, recall@100

Texts longer than the encoder reads lose their ends, which is counted.
"""

from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from amos_fairseq.finetune import tables
from amos_fairseq.finetune.intervals import Estimate, mean, of_statistic
from amos_fairseq.finetune.metrics import spearman
from amos_fairseq.modules.batching import BATCH_TOKENS, batches, padded
from amos_fairseq.pooled import effective_rank, mean_cosine, similarity, spread
from amos_fairseq.pretrained.model import Pretrained

STS_COLUMNS = ("sentence1", "sentence2", "score")  # GLUE's STS-B
NDCG_AT, RECALL_AT = 10, 100
QUERIES = 64  # whose cosines with all documents are held at a time
STATES_OF = 1000  # texts whose words tell the anisotropy


class Sts(NamedTuple):
    """N pairs of texts, and how similar people find each."""

    name: str
    first: List[str]
    second: List[str]
    scores: np.ndarray

    @property
    def texts(self) -> List[str]:
        return [*self.first, *self.second]

    def judged(self, embed: "Embedder") -> Dict[str, Estimate]:
        """By metric."""
        cosines = (embed(self.first) * embed(self.second)).sum(dim=-1).cpu().numpy()
        return {"Spearman": of_statistic(lambda rows: spearman(cosines[rows], self.scores[rows]), len(cosines))}


class Retrieval(NamedTuple):
    """A folder of BEIR's layout. relevance: of queries, the documents that were judged, with their grades."""

    name: str
    documents: Dict[str, str]
    queries: Dict[str, str]
    relevance: Dict[str, Dict[str, int]]

    @property
    def texts(self) -> List[str]:
        return list(self.documents.values())

    def judged(self, embed: "Embedder") -> Dict[str, Estimate]:
        """By metric. A query's own document, if it is one, is not among the answers, as in BEIR."""
        names, queries = list(self.documents), list(self.relevance)
        documents, vectors = embed(self.texts), embed([self.queries[query] for query in queries])
        found: Dict[str, List[float]] = {f"nDCG@{NDCG_AT}": [], f"recall@{RECALL_AT}": []}
        for start in range(0, len(queries), QUERIES):
            cosines = vectors[start : start + QUERIES] @ documents.T
            best = cosines.topk(min(RECALL_AT + 1, len(names)), dim=-1).indices.tolist()
            for query, places in zip(queries[start : start + QUERIES], best):
                answers = [names[place] for place in places if names[place] != query][:RECALL_AT]
                grades = self.relevance[query]
                found[f"nDCG@{NDCG_AT}"].append(ndcg(answers, grades, NDCG_AT))
                found[f"recall@{RECALL_AT}"].append(recall(answers, grades))
        return {name: mean(np.array(values)) for name, values in found.items()}


def read_sts(path: Path, columns: Sequence[str] = STS_COLUMNS) -> Sts:
    """Raises ValueError, in one line, for a file without the columns, or fewer than two pairs."""
    table = tables.read(path, columns[:2], columns[2])
    scores = tables.numbers(table, tables.Scale(0.0, 1.0))
    if len(scores) < 2 or (scores == scores[0]).all():
        raise ValueError(f"{path}: all {len(scores)} scores are alike, with which nothing correlates")
    for row, texts in enumerate(table.texts):
        if not all(map(str.strip, texts)):
            raise ValueError(f"{table.where(row)}: there is no text")
    first, second = map(list, zip(*table.texts))
    return Sts(table.path.stem, first, second, scores)


def read_beir(folder: Path, split: str = "test") -> Retrieval:
    """corpus.jsonl (_id, title, text), queries.jsonl (_id, text), qrels/<split>.tsv (query-id, corpus-id, score)."""
    documents = {name: " ".join(filter(None, texts)) for name, texts in read_texts(folder / "corpus.jsonl")}
    queries = {name: text for name, (_, text) in read_texts(folder / "queries.jsonl")}
    relevance: Dict[str, Dict[str, int]] = {}
    path = folder / "qrels" / f"{split}.tsv"
    table = tables.read(path, ("query-id", "corpus-id"), "score")
    for row, ((query, document), grade) in enumerate(zip(table.texts, table.labels or ())):
        for name, known, file in ((query, queries, "queries.jsonl"), (document, documents, "corpus.jsonl")):
            if name not in known:
                raise ValueError(f"{table.where(row)}: {name!r} is not in {file}")
        if not grade.lstrip("-").isdecimal():
            raise ValueError(f"{table.where(row)}: score {grade!r} is no whole number")
        relevance.setdefault(query, {})[document] = int(grade)
    relevance = {query: grades for query, grades in relevance.items() if max(grades.values()) > 0}
    if not relevance:
        raise ValueError(f"{path}: no document is relevant, all scores are 0")
    return Retrieval(folder.name, documents, queries, relevance)


def read_texts(path: Path) -> List[Tuple[str, Tuple[str, str]]]:
    """Of each line its _id, its title, which may be absent, and its text."""
    found: Dict[str, Tuple[str, str]] = {}
    for number, record in tables.json_records(path):
        values = [record.get("_id"), record.get("title") or "", record.get("text")]
        if not all(isinstance(value, str) for value in values) or not "".join(values[1:]).strip():
            raise ValueError(f"{path}, line {number}: needed are _id and text, got {', '.join(map(str, record))}"[:500])
        if values[0] in found:
            raise ValueError(f"{path}, line {number}: _id {values[0]!r} is there already")
        found[values[0]] = values[1], values[2]
    if not found:
        raise ValueError(f"{path} holds no text")
    return list(found.items())


class Embedder:
    """A model with the layer and the pooling of its hidden states. truncated: texts that lost their ends so far"""

    def __init__(
        self, model: Pretrained, pooling: str = "mean", layer: int = -1, batch_tokens: int = BATCH_TOKENS,
        progress: Callable[[int], object] = lambda texts: None,
    ):
        self.model, self.pooling, self.layer = model, pooling, model.layer_number(layer)
        self.batch_tokens, self.progress = batch_tokens, progress
        self.truncated = 0

    def sequences(self, texts: Sequence[str]) -> List[Tensor]:
        tokenizer, room = self.model.tokenizer, self.model.max_tokens - 2
        ids = [tokenizer.encode(text) for text in texts]
        self.truncated += sum(len(tokens) > room for tokens in ids)
        return [torch.tensor(tokenizer.sequence(tokens[:room])) for tokens in ids]

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(N, C) of length 1."""
        sequences = self.sequences(texts)
        features = self.model.pooled(sequences, self.pooling, self.batch_tokens, self.progress, self.layer)
        return F.normalize(features, dim=-1)

    @torch.no_grad()
    def anisotropy(self, texts: Sequence[str]) -> Dict[str, Optional[float]]:
        """How alike hidden states of the first STATES_OF texts are: cosine 1 or rank 1, all of them; None of only one.

        Of words, without <s> and </s>, as validation logs it; of texts: of the pooled ones.
        """
        chosen, truncated = list(texts)[:STATES_OF], self.truncated
        sequences, encoder = self.sequences(chosen), self.model.encoder
        self.truncated = truncated
        sums = [0.0, 0.0]
        for rows in batches(list(map(len, sequences)), self.batch_tokens):
            tokens, padding_mask = padded([sequences[row] for row in rows], encoder)
            hidden, layers = encoder.begin(encoder.token_embeddings(tokens), padding_mask)
            special = tokens.new_tensor([self.model.tokenizer.bos, self.model.tokenizer.eos, self.model.tokenizer.pad])
            words = layers.run(hidden, stop=self.layer)[~torch.isin(tokens, special)]
            sums = [sums[0] + similarity(words).sums, sums[1] + spread(words).sums]
        pooled = self.model.pooled(sequences, self.pooling, self.batch_tokens, layer=self.layer)
        of_texts = similarity(pooled).sums, spread(pooled).sums
        return {
            "word_cosine": mean_cosine(sums[0]), "word_rank": effective_rank(sums[1]),
            "text_cosine": mean_cosine(of_texts[0]), "text_rank": effective_rank(of_texts[1]),
        }


def ndcg(answers: Sequence[str], grades: Dict[str, int], at: int) -> float:
    """sum_i grade_i / log2(i + 1) of the first answers, over what the best order would have (trec_eval's ndcg_cut)."""
    def gain(values: Sequence[int]) -> float:
        return sum(max(value, 0) / np.log2(place + 1) for place, value in enumerate(values[:at], start=1))

    return gain([grades.get(answer, 0) for answer in answers]) / gain(sorted(grades.values(), reverse=True))


def recall(answers: Sequence[str], grades: Dict[str, int]) -> float:
    relevant = {document for document, grade in grades.items() if grade > 0}
    return len(relevant & set(answers)) / len(relevant)
