import copy

import pytest
import torch
from torch import nn

from amos_fairseq.modules.encoder import Encoder, EncoderConfig, compile_layers
from amos_fairseq.modules.queries import Queries

TINY = dict(vocab_size=50, padding_idx=1, layers=3, dim=16, heads=2, ffn_dim=32, max_positions=24)
TOKENS = torch.randint(2, 50, (3, 9), generator=torch.Generator().manual_seed(0))
KINDS = [dict(), dict(rel_pos_bucketing="released"), dict(rel_pos_buckets=0), dict(embedding_dim=8)]


def tiny(**options) -> Encoder:
    torch.manual_seed(0)
    return Encoder(EncoderConfig(**{**TINY, **options})).eval()


def output_and_gradients(encoder: Encoder, tokens, padding_mask, probe) -> list[torch.Tensor]:
    """Last hidden states at real positions, and every parameter's gradient of their product with `probe`."""
    hidden = encoder(tokens, padding_mask)
    real = hidden if padding_mask is None else hidden[~padding_mask]
    return [real, *torch.autograd.grad((real * probe).sum(), list(encoder.parameters()))]


@pytest.mark.parametrize("options", KINDS)
@pytest.mark.parametrize("other", ["unpadded", "longer", "other padding content"])
def test_padding_never_influences_real_positions(options, other):
    encoder = tiny(**options).double()
    padding_mask = torch.arange(9).expand(3, -1) >= torch.tensor([[9], [6], [4]])
    tokens = TOKENS.masked_fill(padding_mask, 1)
    probe = torch.randn((~padding_mask).sum(), 16, dtype=torch.double)
    expected = output_and_gradients(encoder, tokens, padding_mask, probe)
    if other == "unpadded":  # row by row
        rows = [encoder(tokens[i : i + 1, :length])[0] for i, length in enumerate((9, 6, 4))]
        real = torch.cat(rows)
        actual = [real, *torch.autograd.grad((real * probe).sum(), list(encoder.parameters()))]
    elif other == "longer":
        pad = torch.ones(3, 5, dtype=torch.long)
        padding_mask = torch.cat([padding_mask, pad.bool()], 1)
        actual = output_and_gradients(encoder, torch.cat([tokens, pad], 1), padding_mask, probe)
    else:
        actual = output_and_gradients(encoder, tokens.masked_fill(padding_mask, 7), padding_mask, probe)
    for one, another in zip(expected, actual):
        torch.testing.assert_close(one, another, atol=1e-11, rtol=0)


@pytest.mark.parametrize("options", KINDS)
def test_padding_on_the_left_is_ignored_and_keeps_positions(options):
    encoder = tiny(**options)
    padding_mask = (torch.arange(9) < 2).expand(3, -1)
    expected = encoder(TOKENS, padding_mask)[:, 2:]
    torch.testing.assert_close(encoder(TOKENS.masked_fill(padding_mask, 7), padding_mask)[:, 2:], expected)
    assert not torch.allclose(encoder(TOKENS[:, 2:]), expected, atol=1e-3)  # positions are 2..8 here, 0..6 there


@pytest.mark.parametrize("options", KINDS)
def test_row_of_nothing_but_padding_gives_no_nan(options):
    encoder = tiny(**options)
    padding_mask = torch.tensor([[False], [True], [False]]).expand(-1, 9)
    assert encoder.attention_bias(padding_mask, 9).isfinite().any(-1).all()  # no softmax over no key, on any backend
    hidden = encoder(TOKENS, padding_mask)
    hidden.square().sum().backward()
    assert hidden.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in encoder.parameters())
    torch.testing.assert_close(hidden[[0, 2]], encoder(TOKENS[[0, 2]]), atol=1e-6, rtol=1e-5)


def test_forward_is_begin_and_a_run_of_the_layers_split_anywhere():
    encoder = tiny()
    padding_mask = torch.arange(9).expand(3, -1) >= 7
    expected = encoder(TOKENS, padding_mask)
    embedded, layers = encoder.begin(encoder.token_embeddings(TOKENS), padding_mask)
    assert not embedded[padding_mask].any() and embedded[~padding_mask].all()
    for split in range(4):
        assert torch.equal(layers.run(layers.run(embedded, stop=split), split), expected)
    assert torch.equal(layers.run(embedded, 1, 1), embedded)
    assert torch.equal(encoder.layers[0](embedded, layers.attention_bias), layers.run(embedded, stop=1))


def test_attention_bias_is_one_block_without_padding_and_none_without_anything():
    padding_mask = torch.arange(9).expand(3, -1) >= 7
    assert tiny().attention_bias(None, 9).shape == (1, 2, 9, 9)
    padded = tiny().attention_bias(padding_mask, 9)
    assert padded.shape == (3, 2, 9, 9)
    assert padded[..., 7:].eq(float("-inf")).all() and padded[..., :7].isfinite().all()
    absolute = tiny(rel_pos_buckets=0)
    assert absolute.relative_position_bias is None
    assert absolute.attention_bias(None, 9) is None
    assert absolute.attention_bias(padding_mask, 9).shape == (3, 1, 9, 9)


@pytest.mark.parametrize("length", [8, 9])
@pytest.mark.parametrize("padded", [False, True], ids=["", "padded"])
@pytest.mark.parametrize("options", KINDS)
def test_attention_bias_has_the_layout_that_fused_kernels_read(options, padded, length):
    encoder = tiny(**options)
    padding_mask = torch.arange(length).expand(3, -1) >= 7 if padded else None
    bias = encoder.attention_bias(padding_mask, length)
    if bias is not None:  # absolute positions without padding have none
        assert bias.stride(-1) == 1
        assert not any(stride % 8 for stride, size in zip(bias.stride()[:-1], bias.shape) if size > 1)


def test_shared_table_is_one_parameter_and_keeps_its_values():
    first = tiny()
    values = first.token_embeddings.weight.clone()
    second = Encoder(first.config, first.token_embeddings)
    assert torch.equal(first.token_embeddings.weight, values)
    both = nn.ModuleList([first, second])
    assert len(list(both.parameters())) == 2 * len(list(first.parameters())) - 1
    both.half()
    assert first.token_embeddings.weight is second.token_embeddings.weight


def test_table_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"\(50, 8\).*\(50, 16\)"):
        Encoder(EncoderConfig(**TINY), nn.Embedding(50, 8))


@pytest.mark.parametrize("options", KINDS)
def test_shared_bottom_is_one_set_of_modules(options):
    upper, lower = tiny(**options), tiny(**options, layers=2)
    values = [parameter.clone() for parameter in upper.parameters()]
    assert lower.share_bottom(upper, 1) is lower
    assert lower.token_embeddings is upper.token_embeddings and lower.embeddings is upper.embeddings
    assert lower.layers[0] is upper.layers[0] and lower.layers[1] is not upper.layers[1]
    assert all(torch.equal(parameter, value) for parameter, value in zip(upper.parameters(), values))
    own = [name for name, _ in nn.ModuleList([upper, lower]).named_parameters() if name.startswith("1.")]
    assert all(name.startswith(("1.layers.1.", "1.relative_position_bias.")) for name in own)
    assert len(own) == len(list(upper.layers[0].parameters())) + (upper.relative_position_bias is not None)


def test_shared_bottom_gets_the_gradients_of_both_networks():
    upper, lower = tiny().double(), tiny(layers=2).double()
    lower.share_bottom(upper, 1)
    shared = [upper.token_embeddings.weight, *upper.embeddings.parameters(), *upper.layers[0].parameters()]
    losses = [network(TOKENS).square().mean() for network in (upper, lower)]
    losses = [loss + network(TOKENS)[..., 0].sum() for loss, network in zip(losses, (upper, lower))]
    apart = [torch.autograd.grad(loss, shared, retain_graph=True) for loss in losses]
    for together, one, other in zip(torch.autograd.grad(sum(losses), shared), *apart):
        torch.testing.assert_close(together, one + other)
        assert one.abs().max() > 0 and other.abs().max() > 0


def test_networks_that_share_everything_below_agree_there():
    upper, lower = tiny(rel_pos_buckets=0), tiny(rel_pos_buckets=0, layers=2)
    lower.share_bottom(upper, 2)
    embedded, layers = upper.begin(upper.token_embeddings(TOKENS))
    assert torch.equal(lower(TOKENS), layers.run(embedded, stop=2))


def test_sharing_survives_a_copy_and_a_change_of_precision():
    upper, lower = tiny(), tiny(layers=2)
    lower.share_bottom(upper, 1)
    upper, lower = copy.deepcopy(nn.ModuleList([upper, lower])).half()
    assert lower.layers[0].fc1.weight is upper.layers[0].fc1.weight
    assert lower.embeddings.positions.weight is upper.embeddings.positions.weight


@pytest.mark.parametrize(
    "options, layers, message",
    [
        (dict(), 4, "cannot share 4 layers of networks of 3 and 3"),
        (dict(layers=1), 2, "cannot share 2 layers of networks of 1 and 3"),
        (dict(dim=32), 1, "dim is 32 here and 16 in"),
        (dict(embedding_dim=8), 1, "embedding_width is 8 here and 16 in"),
        (dict(max_positions=30), 1, "max_positions is 30 here and 24 in"),
    ],
)
def test_a_bottom_that_does_not_fit_is_refused(options, layers, message):
    with pytest.raises(ValueError, match=message):
        tiny(**options).share_bottom(tiny(), layers)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", KINDS)
def test_half_precision_and_autocast_are_finite_and_close(dtype, options):
    encoder = tiny(**options)
    padding_mask = torch.arange(9).expand(3, -1) >= 7
    expected = encoder(TOKENS, padding_mask)
    with torch.autocast("cpu", dtype):
        assert encoder.attention_bias(padding_mask, 9).dtype == dtype
        autocast = encoder(TOKENS, padding_mask)
    halved = encoder.to(dtype)(TOKENS, padding_mask)
    assert halved.dtype == dtype
    halved.float().square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in encoder.parameters())
    for actual in (autocast, halved):
        torch.testing.assert_close(actual.float(), expected, atol=0.05, rtol=0.05)


def test_compiled_layers_give_the_same_and_keep_the_names_of_parameters():
    eager, compiled = tiny(), tiny()
    compile_layers(compiled, backend="aot_eager", fullgraph=True)  # no break of the graph
    assert compiled.state_dict().keys() == eager.state_dict().keys()
    padding_mask = torch.arange(9).expand(3, -1) >= 7
    queries = Queries.of(torch.tensor([1, 10, 13]), [1, 2, 0], 9)
    for options in (dict(padding_mask=padding_mask), dict(), dict(at=queries)):
        expected, actual = (encoder(TOKENS, **options) for encoder in (eager, compiled))
        probe = torch.randn(expected.shape)
        pairs = [(expected, actual)]
        pairs += zip(*(torch.autograd.grad((x * probe).sum(), list(encoder.parameters()))
                       for x, encoder in ((expected, eager), (actual, compiled))))
        for one, another in pairs:
            torch.testing.assert_close(one, another, atol=1e-5, rtol=1e-5)


def test_dropout_acts_in_training_only():
    encoder = tiny()
    assert torch.equal(encoder(TOKENS), encoder(TOKENS))
    encoder.train()
    assert not torch.equal(encoder(TOKENS), encoder(TOKENS))


def test_input_longer_than_max_positions_is_refused_with_both_numbers():
    assert tiny()(torch.full((1, 24), 2)).shape == (1, 24, 16)
    with pytest.raises(ValueError, match="25.*24"):
        tiny()(torch.full((1, 25), 2))


@pytest.mark.parametrize(
    "options, millions",
    [
        (dict(vocab_size=32768), 110.6),
        (dict(vocab_size=64000, rel_pos_buckets=64), 134.6),
        (dict(vocab_size=64000, rel_pos_buckets=128, layers=24, dim=1024, ffn_dim=4096, heads=16), 368.4),
    ],
)
def test_number_of_parameters(options, millions):
    base = dict(padding_idx=1, layers=12, dim=768, heads=12, ffn_dim=3072)
    with torch.device("meta"):
        encoder = Encoder(EncoderConfig(**{**base, **options}))
        assert encoder(torch.zeros(1, 8, dtype=torch.long)).shape == (1, 8, encoder.config.dim)
    assert round(sum(parameter.numel() for parameter in encoder.parameters()) / 1e6, 1) == millions


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(heads=3), "dim 16 is not divisible by heads 3"),
        (dict(layers=0), "layers 0 is out of range: it must be at least 1"),
        (dict(dropout=1.0), "dropout 1.0 is out of range: it must be at least 0 and below 1"),
        (dict(padding_idx=50), "padding_idx 50"),
        (dict(embedding_dim=-1), "embedding_dim -1 is out of range: it must be at least 0"),
        (dict(rel_pos_bucketing="alibi"), "unknown rel_pos_bucketing 'alibi': choose t5, released"),
        (dict(rel_pos_buckets=7), "rel_pos_buckets 7"),
        (dict(rel_pos_max_distance=16), "rel_pos_max_distance 16.*32"),
    ],
)
def test_wrong_configuration_is_refused_in_one_line(options, message):
    with pytest.raises(ValueError, match=message) as error:
        EncoderConfig(**{**TINY, **options})
    assert "\n" not in str(error.value)
