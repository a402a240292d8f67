"""The encoder's token table: the generator's, its own, or the generator's and a difference."""

import pytest
import torch
from torch import nn

import amos_fairseq
from amos_fairseq.finetune.kinds import prompt
from amos_fairseq.methods.config import Vocabulary
from amos_fairseq.methods.continuation import EarlierRun, start_from
from amos_fairseq.modules.token_table import DisentangledTable

METHODS = ("amos_rtd", "electra_rtd", "coco_lm", "teams_mws", "peer_tqr")
UNTIED = {"teams_mws": dict(tied_layers="none"), "peer_tqr": dict(tied_layers="none")}
DELTA = "encoder.token_embeddings.delta"


@pytest.fixture
def make(make_method):
    """A method whose networks share no layers."""
    return lambda name, **options: make_method(name, **{**UNTIED.get(name, {}), **options})


@pytest.fixture
def learned(make):
    """One whose tables and positions have parted."""

    def learned(name, **options):
        method = make(name, seed=5, gain=5.0, **options)
        with torch.no_grad():
            for key, parameter in method.named_parameters():
                if key.endswith("delta") or key == "encoder.token_embeddings.weight":
                    parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(len(key)))
        return method

    return learned


def terms(method, batch):
    return {name: term.total for name, term in method.losses(method(batch), batch).items()}


def table_of(method):
    return method.masked_lm_encoder.token_embeddings.weight


@pytest.mark.parametrize("name", METHODS)
def test_at_the_start_both_networks_read_the_same_table(make, batch, name):
    shared, separate, gdes = (terms(make(name, token_table=kind), batch) for kind in ("shared", "separate", "gdes"))
    assert separate.keys() == gdes.keys() and all(torch.equal(separate[term], gdes[term]) for term in gdes)
    if name in ("amos_rtd", "electra_rtd"):  # the others' shared embedding network starts anew, too
        assert all(torch.equal(shared[term], gdes[term]) for term in shared)


@pytest.mark.parametrize("name", METHODS)
def test_the_masked_lm_trains_the_generators_table_and_all_else_the_encoders_difference(make, batch, gradients, name):
    options = dict(mixture="uniform") if name == "amos_rtd" else {}  # a learned one is trained by detection, reversed
    method = make(name, token_table="gdes", **options)
    names = {parameter: key for key, parameter in method.named_parameters()}
    table, others = names[table_of(method)], [term for term in terms(method, batch) if term != "mlm"]
    assert not [key for key in gradients(method, batch, "mlm") if key.startswith("encoder")]
    assert table_of(method).grad.any()
    reached = gradients(method, batch, *others)
    assert DELTA in reached and table not in reached and not [key for key in reached if key.startswith("generator")]


@pytest.mark.parametrize("kind, encoders", [("gdes", DELTA), ("separate", "encoder.token_embeddings.weight")])
@pytest.mark.parametrize("name", ["amos_rtd", "electra_rtd"])
def test_the_parts_gradients_are_those_that_a_shared_table_adds_up(make, batch, name, kind, encoders):
    """In float64, by term."""
    options = dict(dtype=torch.double, gain=5.0, **(dict(mixture="uniform") if name == "amos_rtd" else {}))
    shared, parted = make(name, **options), make(name, token_table=kind, **options)
    for term, parameter in (("mlm", table_of(parted)), ("rtd", dict(parted.named_parameters())[encoders])):
        found, expected = (
            torch.autograd.grad(method.losses(method(batch), batch)[term].total, of)[0]
            for method, of in ((parted, parameter), (shared, table_of(shared)))
        )
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
        assert found.any()


@pytest.mark.parametrize("name", METHODS)
def test_an_encoder_never_makes_the_whole_table_unless_its_heads_or_amoss_mixture_read_it(
    make, batch, monkeypatch, name
):
    options = {"coco_lm": dict(clm_weight=0.0), "amos_rtd": dict(mixture="uniform")}
    method = make(name, token_table="gdes", **options.get(name, {}))
    monkeypatch.setattr(DisentangledTable, "weight", property(lambda self: pytest.fail("the table was made")))
    sum(terms(method, batch).values()).backward()


@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_the_exported_encoder_has_ordinary_tables_and_the_same_hidden_states(learned, make, batch, name, positions):
    method = learned(name, token_table="gdes", gdes_positions=positions).eval()
    exported = method.exported_encoder()
    assert exported.state_dict().keys() == make(name).encoder.state_dict().keys()
    assert type(exported.token_embeddings) is type(exported.embeddings.positions) is nn.Embedding
    assert torch.equal(exported(batch.original_tokens), method.encoder(batch.original_tokens))
    assert [*method.networks().values()][0](batch.original_tokens).equal(method.encoder(batch.original_tokens))


@pytest.mark.parametrize("name", METHODS)
def test_positions_follow_the_generators(learned, batch, gradients, name):
    method = learned(name, token_table="gdes", gdes_positions=True)
    assert method.encoder.embeddings.positions.table is method.masked_lm_encoder.embeddings.positions
    key = "encoder.embeddings.positions.delta"
    assert key in gradients(method, batch) and key not in gradients(method, batch, "mlm")
    names = {parameter: name for name, parameter in method.named_parameters()}
    assert names[method.masked_lm_encoder.embeddings.positions.weight] in gradients(method, batch, "mlm")


@pytest.mark.parametrize("kind", ["separate", "gdes"])
@pytest.mark.parametrize("name", METHODS)
def test_no_parameter_is_of_both_networks(make, name, kind):
    method, shared = make(name, token_table=kind), make(name)
    names = {parameter: key for key, parameter in method.named_parameters()}
    groups = {group.name: {names[p] for p in group.parameters} for group in method.learning_rate_groups()}
    assert groups.keys() == {"encoder", "generator", *({"rel_pos"} & groups.keys())}
    assert names[table_of(method)] in groups["generator"]
    assert {DELTA, "encoder.token_embeddings.weight"} & groups["encoder"]
    embeddings = 0 if name in ("amos_rtd", "electra_rtd") else 32 * 16 + 2 * 16  # positions and LayerNorm
    sizes = (sum(p.numel() for p in network.parameters()) for network in (method, shared))
    assert next(sizes) - next(sizes) == 40 * 16 + embeddings


@pytest.mark.parametrize("name", METHODS)
def test_flops_are_those_of_a_shared_table(make, batch, name):
    assert len({make(name, token_table=kind).training_flops(batch) for kind in ("shared", "separate", "gdes")}) == 1


# Continued runs.

KINDS = dict(shared={}, separate=dict(token_table="separate"), gdes=dict(token_table="gdes"))
KINDS["gdes positions"] = dict(token_table="gdes", gdes_positions=True)


@pytest.mark.parametrize("here", KINDS)
@pytest.mark.parametrize("there", KINDS)
@pytest.mark.parametrize("name", METHODS)
def test_a_run_goes_on_from_the_encoder_of_any_other(learned, make, batch, name, there, here):
    earlier, method = learned(name, **KINDS[there]).eval(), make(name, **KINDS[here]).eval()
    start_from(method, EarlierRun("old.pt", earlier.state_dict()))
    expected, found = (network.encoder(batch.original_tokens) for network in (earlier, method))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    if there == here:
        assert torch.equal(found, expected)
    if there == "shared" and here == "gdes":
        assert not method.encoder.token_embeddings.delta.any()
        assert torch.equal(table_of(method), table_of(earlier))


def test_what_was_taken_is_told(learned, make, caplog):
    for there, here, told in (
        ("shared", "gdes", "took encoder, generators, mlm_head, mixture_head, rtd_head; new: nothing"),
        ("gdes", "gdes", "took encoder, generators, mlm_head, mixture_head, rtd_head; new: nothing"),
        ("gdes", "shared", "took encoder; new: generators, mlm_head, mixture_head, rtd_head"),
    ):
        caplog.clear()
        with caplog.at_level("INFO", logger="amos_fairseq"):
            earlier = learned("amos_rtd", **KINDS[there])
            start_from(make("amos_rtd", **KINDS[here]), EarlierRun("old", earlier.state_dict()))
        found, expected = (sorted(line.replace(";", ",").split(", ")) for line in (caplog.messages[0][5:], told))
        assert found == expected


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("earlier, options", [("bert_mlm", {}), ("electra_rtd", dict(token_table="gdes"))])
def test_without_a_generator_to_take_its_table_becomes_the_encoders(learned, make, batch, name, earlier, options):
    earlier = learned(earlier, **options).eval()
    method = make(name, token_table="gdes", **(dict(generator_embed_dim=4) if name == "electra_rtd" else {})).eval()
    start_from(method, EarlierRun("old.pt", earlier.state_dict()))
    assert torch.equal(method.encoder(batch.original_tokens), earlier.encoder(batch.original_tokens))
    assert not method.encoder.token_embeddings.delta.any()
    assert torch.equal(table_of(method), earlier.exported_encoder().token_embeddings.weight)


@pytest.mark.parametrize("name", METHODS)
def test_another_vocabulary_is_refused_in_one_line(learned, make, name):
    run = EarlierRun("old.pt", learned("bert_mlm", vocabulary=Vocabulary(50, 1, [0, 1])).state_dict())
    with pytest.raises(ValueError, match=r"old.pt does not hold the encoder .*token_embeddings\.\w+ is \(50, 16\)"):
        start_from(make(name, token_table="gdes"), run)


# What is made of a checkpoint.


def test_a_loaded_checkpoint_reads_its_generators_table_and_its_difference(
    learned, save_checkpoint, tokenizer, tmp_path
):
    vocabulary = Vocabulary.of(tokenizer)
    method = learned("coco_lm", token_table="gdes", gdes_positions=True, vocabulary=vocabulary).eval()
    save_checkpoint(tmp_path / "run" / "checkpoint_last", "coco_lm", method, tokenizer)
    found = amos_fairseq.from_pretrained(tmp_path / "run" / "checkpoint_last")
    tokens = torch.tensor([[0, 10, 11, 2]])
    assert torch.equal(found.encoder(tokens), method.encoder(tokens))
    assert torch.equal(found.method.detection_logits(tokens), method.detection_logits(tokens))
    assert type(found.encoder.token_embeddings) is nn.Embedding
    kind = prompt.Prompt()
    head = prompt.PromptHead(type(method.clm_head)(16, found.encoder.token_embeddings), [10, 11], tokenizer.mask)
    kind.start_head(head, found)
    assert torch.equal(head.lm_head.token_embeddings.weight, method.encoder.token_embeddings.weight)


# What cannot be meant.


@pytest.mark.parametrize("name, options, words", [
    ("electra_rtd", dict(token_table="own"), "unknown token_table 'own': choose shared, separate, gdes"),
    ("electra_rtd", dict(gdes_positions=True), "gdes_positions needs token_table gdes, got shared"),
    ("coco_lm", dict(gdes_positions=True, token_table="separate"), "gdes_positions needs token_table gdes, got separ"),
    ("teams_mws", dict(token_table="gdes"), "token_table gdes leaves no layers to share: set tied_layers none"),
    ("peer_tqr", dict(token_table="separate", tied_layers="all"), "token_table separate leaves no layers to share"),
    ("coco_lm", dict(token_table="gdes", random_replacements=True), "token_table 'gdes' is of a generator, which"),
    ("amos_rtd", dict(token_table="gdes", gdes_positions=True, separate_generators=True), "gdes_positions follow"),
    ("amos_rtd", dict(token_table="gdes", init_checkpoint="a", generator_checkpoint="b"), "of both init_checkpoint"),
])
def test_what_cannot_be_meant_is_refused(make_method, name, options, words):
    with pytest.raises(ValueError, match=words):
        make_method(name, **options)
