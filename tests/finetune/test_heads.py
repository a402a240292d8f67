"""Heads: losses on literal numbers, and whole networks against Hugging Face's classes with the same parameters."""

import math
import sys
from pathlib import Path

import pytest
import torch

from amos_fairseq.finetune.kinds import KINDS
from amos_fairseq.finetune.kinds.classification import SequenceHead
from amos_fairseq.finetune.kinds.prompt import PromptHead
from amos_fairseq.finetune.kinds.regression import RegressionHead
from amos_fairseq.finetune.kinds.token import TokenHead
from amos_fairseq.finetune.labelled import IGNORED, Batch
from amos_fairseq.finetune.model import Network
from amos_fairseq.modules.encoder import Encoder, EncoderConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "references"))
from huggingface import MPNET_LAYER, Twins, encoder_names, hide_torchaudio  # noqa: E402

transformers = pytest.importorskip("transformers")

SIZE = dict(vocab_size=60, padding_idx=1, layers=2, dim=32, heads=4, ffn_dim=48, max_positions=64, dropout=0.0)
SIZE |= dict(attention_dropout=0.0)
COMMON = dict(vocab_size=60, pad_token_id=1, num_hidden_layers=2, hidden_size=32, num_attention_heads=4)
COMMON |= dict(intermediate_size=48, layer_norm_eps=1e-5, num_labels=3)
cross_entropy, squared_error, span_cross_entropy = (
    KINDS[kind].loss for kind in ("classification", "regression", "span")
)
FIRST_ROWS = {"encoder.embeddings.positions.weight": 2}  # MPNet numbers positions from padding_idx + 1
MASK = 39


@pytest.fixture(autouse=True)
def without_torchaudio(monkeypatch):
    hide_torchaudio(monkeypatch)


def batch(**fields):
    return Batch(tokens=None, **fields)


# Literal numbers

def test_classification_loss_is_the_sum_of_cross_entropies():
    logits = torch.tensor([[2.0, 1.0, 0.5], [0.0, 0.0, 0.0]])
    loss = cross_entropy(logits, batch(targets=torch.tensor([1, 2])))
    # ln(e^2 + e + e^.5) - 1 = 1.464369;  ln 3 = 1.098612
    assert loss.item() == pytest.approx(1.464369 + 1.098612, abs=1e-6)


def test_regression_loss_is_the_sum_of_squared_errors():
    outputs, targets = torch.tensor([1.0, 2.5]), torch.tensor([0.5, 2.9], dtype=torch.float64)
    assert squared_error(outputs, batch(targets=targets)).item() == pytest.approx(0.25 + 0.16, abs=1e-6)


def test_multi_label_loss_is_the_mean_over_labels_of_binary_cross_entropies():
    logits, targets = torch.tensor([[2.0, -1.0], [0.0, 0.0]]), torch.tensor([[1, 1], [0, 1]])
    loss = KINDS["multi_label"].loss(logits, batch(targets=targets))
    # ln(1 + e^-2) = .126928, ln(1 + e) = 1.313262, ln 2 twice
    assert loss.item() == pytest.approx((0.126928 + 1.313262) / 2 + math.log(2), abs=1e-6)


def test_span_loss_is_half_of_both_cross_entropies_over_the_candidates():
    logits = torch.tensor([[[1.0, 0.0], [9.0, 9.0], [2.0, 1.0], [0.0, 3.0], [9.0, 9.0]]], requires_grad=True)
    candidates = torch.tensor([[True, False, True, True, False]])
    loss = span_cross_entropy(logits, batch(targets=torch.tensor([[2, 3]]), candidates=candidates))
    start = math.log(math.e + math.e**2 + 1) - 2  # 0.407606
    end = math.log(1 + math.e + math.e**3) - 3  # 0.169846
    assert loss.item() == pytest.approx(0.5 * (start + end), abs=1e-6) == pytest.approx(0.288726, abs=1e-6)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert not gradient[:, [1, 4]].any() and gradient[:, [0, 2, 3]].all()


def test_token_loss_is_the_sum_of_cross_entropies_over_the_words():
    logits = torch.tensor([[[9.0, 0.0, 0.0], [2.0, 1.0, 0.5], [0.0, 0.0, 0.0]]], requires_grad=True)
    loss = KINDS["token"].loss(logits, batch(targets=torch.tensor([[IGNORED, 1, 2]])))
    assert loss.item() == pytest.approx(1.464369 + 1.098612, abs=1e-6)  # as of the classification above
    (gradient,) = torch.autograd.grad(loss, logits)
    assert not gradient[0, 0].any() and gradient[0, 1:].all()
    assert KINDS["token"].loss(logits, batch(targets=torch.full((1, 3), IGNORED))).item() == 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_losses_read_half_precision_in_full(dtype):
    """70,000 is beyond fp16, and 8.03 between two numbers of bf16."""
    outputs = torch.tensor([300.0, 8.0], dtype=dtype)
    loss = squared_error(outputs, batch(targets=torch.tensor([0.0, 8.03], dtype=torch.float64)))
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(90000.0009, rel=1e-7)
    logits = torch.zeros(70000, 2, dtype=dtype)
    loss = cross_entropy(logits, batch(targets=torch.zeros(70000, dtype=torch.long)))
    assert loss.item() == pytest.approx(70000 * math.log(2), rel=1e-6)


def test_dropout_acts_before_and_inside_the_sequence_head_in_training_only():
    torch.manual_seed(0)
    head, hidden = SequenceHead(64, 8, dropout=0.5), torch.ones(1, 64)
    plain = head.out_proj(torch.tanh(head.dense(hidden)))
    head.train()
    assert not torch.equal(head(hidden), head(hidden))
    head.eval()
    assert torch.equal(head(hidden), plain)
    seen = []
    head.dense.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    head.out_proj.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    head.train()(hidden)
    assert all(0 < (rows == 0).sum() < 64 for rows in seen) and set(seen[0].unique().tolist()) == {0.0, 2.0}


# Whole networks

def assert_twins(kind, head, theirs, names, targets, theirs_loss, first_rows=None, buckets=32, smallest=1e-5):
    """Equal loss and gradients; ours is a sum over sequences, theirs a mean."""
    encoder = Encoder(EncoderConfig(**SIZE, rel_pos_buckets=buckets))
    twins = Twins(Network(encoder, head).eval(), theirs.eval(), names, first_rows or {}).draw_parameters()
    tokens = torch.randint(4, SIZE["vocab_size"], (len(targets), 40))
    padding_mask = None
    if targets.dim() == 1:  # their loss of spans counts padding as an answer
        padding_mask = torch.arange(40) >= torch.tensor([40, 13, 25, 1])[:, None]
        tokens = tokens.masked_fill(padding_mask, 1)
    outputs = twins.ours(tokens, padding_mask)
    candidates = torch.ones_like(tokens, dtype=torch.bool)
    loss = KINDS[kind].loss(outputs, Batch(tokens, padding_mask, targets, candidates)) / len(targets)
    attention_mask = torch.ones_like(tokens) if padding_mask is None else (~padding_mask).long()
    expected = theirs_loss(tokens, attention_mask)
    print(f"losses {loss.item():.6f} {expected.item():.6f}")
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    loss.backward()
    expected.backward()
    twins.assert_equal_gradients(smallest)


def mpnet(name, **options):
    options = {**COMMON, **options}
    return getattr(transformers, name)(transformers.MPNetConfig(**options, max_position_embeddings=66))


def bert(name, **options):
    return getattr(transformers, name)(transformers.BertConfig(**{**COMMON, **options}, max_position_embeddings=64))


MPNET_NAMES = encoder_names(2, MPNET_LAYER, ours="encoder.", theirs="mpnet.")
BERT_NAMES = encoder_names(2, ours="encoder.", theirs="bert.")
MPNET_HEAD = {"head.dense": ["classifier.dense"], "head.out_proj": ["classifier.out_proj"]}


def test_classification_is_mpnets():
    theirs, labels = mpnet("MPNetForSequenceClassification"), torch.tensor([2, 0, 1, 1])
    assert_twins(
        "classification", SequenceHead(32, 3, 0.1), theirs, MPNET_NAMES | MPNET_HEAD, labels,
        lambda tokens, mask: theirs(tokens, attention_mask=mask, labels=labels).loss, FIRST_ROWS,
    )


def test_regression_is_mpnets():
    theirs, targets = mpnet("MPNetForSequenceClassification", num_labels=1), torch.tensor([0.5, -1.0, 2.0, 0.0])
    assert_twins(
        "regression", RegressionHead(32, 0.1), theirs, MPNET_NAMES | MPNET_HEAD, targets.double(),
        lambda tokens, mask: theirs(tokens, attention_mask=mask, labels=targets).loss, FIRST_ROWS,
    )


def test_multi_label_classification_is_mpnets():
    theirs = mpnet("MPNetForSequenceClassification", problem_type="multi_label_classification")
    targets = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
    head = SequenceHead(32, 3, 0.1)
    encoder = Encoder(EncoderConfig(**SIZE, rel_pos_buckets=32))
    twins = Twins(Network(encoder, head).eval(), theirs.eval(), MPNET_NAMES | MPNET_HEAD, FIRST_ROWS).draw_parameters()
    tokens = torch.randint(4, SIZE["vocab_size"], (4, 40))
    loss = KINDS["multi_label"].loss(twins.ours(tokens), batch(targets=targets)) / 4
    torch.testing.assert_close(loss, theirs(tokens, labels=targets.float()).loss, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family, dense", [
    ("MPNet", "mpnet.pooler.dense"), ("Bert", "bert.pooler.dense"), ("Electra", "sequence_summary.summary")
])
def test_choices_are_those_of_multiple_choice(family, dense):
    """Loss and gradients; of ELECTRA with the tanh that its config can have."""
    config = dict(COMMON, max_position_embeddings=66 if family == "MPNet" else 64, hidden_dropout_prob=0.0)
    own = dict(summary_activation="tanh", summary_last_dropout=0.0, embedding_size=32) if family == "Electra" else {}
    config = getattr(transformers, f"{family}Config")(**config, **own)
    theirs = getattr(transformers, f"{family}ForMultipleChoice")(config)
    names = MPNET_NAMES if family == "MPNet" else encoder_names(2, ours="encoder.", theirs=f"{family.lower()}.")
    names |= {"head.dense": [dense], "head.out_proj": ["classifier"]}
    encoder = Encoder(EncoderConfig(**SIZE, rel_pos_buckets=32 * (family == "MPNet")))
    first_rows = FIRST_ROWS if family == "MPNet" else {}
    twins = Twins(Network(encoder, RegressionHead(32)).eval(), theirs.eval(), names, first_rows).draw_parameters()
    tokens = torch.randint(4, SIZE["vocab_size"], (4, 3, 40))
    padding_mask = torch.arange(40) >= torch.randint(1, 41, (4, 3, 1))
    tokens, targets = tokens.masked_fill(padding_mask, 1), torch.tensor([2, 0, 1, 1])
    outputs = twins.ours(tokens, padding_mask)
    output = theirs(tokens, attention_mask=(~padding_mask).long(), labels=targets)
    torch.testing.assert_close(outputs, output.logits, rtol=1e-5, atol=1e-6)
    loss = KINDS["choice"].loss(outputs, batch(targets=targets)) / 4
    torch.testing.assert_close(loss, output.loss, rtol=1e-5, atol=1e-6)
    loss.backward()
    output.loss.backward()
    twins.assert_equal_gradients(-1.0)  # what all choices share changes no probability


def test_classification_without_relative_bias_is_berts_pooler_and_classifier():
    theirs, labels = bert("BertForSequenceClassification"), torch.tensor([2, 0, 1, 1])
    head = {"head.dense": ["bert.pooler.dense"], "head.out_proj": ["classifier"]}
    assert_twins(
        "classification", SequenceHead(32, 3, 0.1), theirs, BERT_NAMES | head, labels,
        lambda tokens, mask: theirs(tokens, attention_mask=mask, labels=labels).loss, buckets=0,
    )


@pytest.mark.parametrize("family", ["MPNet", "Bert"])
def test_spans_are_those_of_question_answering(family):
    make, names, first_rows, buckets = (
        (mpnet, MPNET_NAMES, FIRST_ROWS, 32) if family == "MPNet" else (bert, BERT_NAMES, None, 0)
    )
    theirs = make(f"{family}ForQuestionAnswering", num_labels=2)
    targets = torch.tensor([[3, 9], [0, 0], [39, 39], [5, 6]])
    start, end = targets.T
    assert_twins(
        "span", TokenHead(32, 2), theirs, names | {"head.out_proj": ["qa_outputs"]}, targets,
        lambda tokens, mask: theirs(tokens, attention_mask=mask, start_positions=start, end_positions=end).loss,
        first_rows, buckets, smallest=-1.0,  # what all positions share changes no probability: its gradient is 0
    )


@pytest.mark.parametrize("family", ["MPNet", "Bert"])
def test_tags_are_those_of_token_classification(family):
    """Their loss is a mean over tokens, ours over sequences."""
    make, names, first_rows, buckets = (
        (mpnet, MPNET_NAMES, FIRST_ROWS, 32) if family == "MPNet" else (bert, BERT_NAMES, None, 0)
    )
    theirs = make(f"{family}ForTokenClassification")
    targets = torch.randint(3, (4, 40)).masked_fill(torch.arange(40) % 3 == 0, IGNORED)
    tokens_each = (targets != IGNORED).sum() / len(targets)
    assert_twins(
        "token", TokenHead(32, 3), theirs, names | {"head.out_proj": ["classifier"]}, targets,
        lambda tokens, mask: tokens_each * theirs(tokens, attention_mask=mask, labels=targets).loss,
        first_rows, buckets,
    )


@pytest.mark.parametrize("name", ["bert_mlm", "script_selfcritic", "coco_lm"])
@pytest.mark.parametrize("factorised", [False, True])
def test_prompts_read_the_pretrained_language_model_at_the_mask(make_method, name, factorised):
    method = make_method(name, gain=4.0, **(dict(token_embed_dim=8) if factorised else {})).eval()
    tokens = torch.tensor([[0, 9, MASK, 7, 2], [0, MASK, 8, 2, 1]])
    lm_head = method.clm_head if name == "coco_lm" else method.mlm_head
    network = Network(method.encoder, PromptHead(lm_head, [11, 30, 5], MASK))
    padding_mask = tokens == 1
    hidden = method.encoder(tokens, padding_mask)[[0, 1], [2, 1]]
    if name == "coco_lm":
        logits = lm_head.narrow(hidden) @ method.encoder.token_embeddings.weight.T + lm_head.bias
    else:
        logits = lm_head(hidden)
    torch.testing.assert_close(network(tokens, padding_mask), logits[:, [11, 30, 5]], rtol=1e-5, atol=1e-6)


def test_a_network_that_reads_one_position_is_the_whole_one_read_there():
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig(**SIZE)).eval()
    network = Network(encoder, SequenceHead(32, 3).eval())
    tokens = torch.randint(4, 60, (3, 9)).masked_fill(torch.arange(9) >= torch.tensor([9, 4, 7])[:, None], 1)
    for padding_mask in (tokens == 1, None):
        expected = network.head(encoder(tokens, padding_mask)[:, 0])
        torch.testing.assert_close(network(tokens, padding_mask), expected, rtol=1e-5, atol=1e-6)
