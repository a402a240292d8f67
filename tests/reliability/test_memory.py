"""Out of memory on one of two processes: all make the update anew with smaller micro-batches, and nothing is lost."""

import functools

import pytest
import torch

from amos_fairseq.methods import METHODS
from amos_fairseq.tasks.pretraining import PretrainingTask
from tests.reliability.test_faults import parameters
from tests.reliability.test_resuming import error_of

soak = functools.partial(pytest.param, marks=pytest.mark.soak)
EXACT = dict(dropout=0, attention_dropout=0, max_update=5, num_workers=0)
TOLERANCE = 1e-5  # relative


# Parts of a batch

def split(sample, parts):
    return PretrainingTask.split_batch(PretrainingTask, sample, parts)


def collated(batch):
    """As the loader gives it, of lengths 12, 9, 12."""
    return {
        "net_input": batch._asdict(), "lengths": [12, 9, 12], "nsentences": 3, "ntokens": 33,
        "counts": {"selected": 9, "valid": 33, "words": 27, "sequences": 3}, "words": [10, 7, 10],
    }


def test_parts_of_a_batch_hold_its_sequences_and_their_counts(batch):
    whole = collated(batch)
    first, second = split(whole, 2)
    assert [part["nsentences"] for part in (first, second)] == [2, 1]
    assert [part["ntokens"] for part in (first, second)] == [21, 12]
    assert first["counts"] == {"selected": 6, "valid": 21, "words": 17, "sequences": 2}
    assert second["counts"] == {"selected": 3, "valid": 12, "words": 10, "sequences": 1}
    for name, value in batch._asdict().items():
        if torch.is_tensor(value) and name != "masked_index":
            assert torch.equal(torch.cat([part["net_input"][name] for part in (first, second)]), value), name
    for part in first, second:
        inputs = part["net_input"]
        assert inputs["num_masked"] == [3] * part["nsentences"]
        assert torch.equal(inputs["masked_index"], inputs["masked_positions"].flatten().nonzero().squeeze(-1))


@pytest.mark.parametrize("parts, sizes", [(1, [3]), (2, [2, 1]), (3, [1, 1, 1]), (8, [1, 1, 1])])
def test_a_batch_has_no_more_parts_than_sequences(batch, parts, sizes):
    assert [part["nsentences"] for part in split(collated(batch), parts)] == sizes


def test_an_empty_batch_stays_one():
    assert split({}, 4) == [{}]


# Runs

def losses(outcome):
    return {row["num_updates"]: row["loss"] for row in outcome.log.train}


@pytest.fixture(scope="module")
def undisturbed(launch, arguments):
    """undisturbed(processes, name, **options): that run's Outcome."""
    @functools.cache
    def run(processes, command):
        return launch("tests.reliability.disturbed:main", ["[]", *command, "--no-save"], processes)

    def undisturbed(processes, name, **options):
        return run(processes, tuple(arguments(name, **{"batch_size": 8 // processes, **options})))

    return undisturbed


IN_TRAINING = [  # processes, rank, what, options
    (2, 1, "memory", {}), (2, 0, "memory amid backward", {}), soak(1, 0, "memory in backward", {}),
    soak(2, 0, "memory", {}), soak(2, 1, "memory amid backward", {}),
    soak(2, 0, "memory in backward", {}), soak(2, 1, "memory in backward", {}),
    soak(1, 0, "memory", {}), soak(1, 0, "memory amid backward", {}),
    soak(2, 1, "memory amid backward", dict(ddp_backend="legacy_ddp")),
    soak(2, 0, "memory", dict(ddp_backend="legacy_ddp")),
    soak(2, 1, "memory", dict(update_freq=[2], batch_size=2)),
    soak(2, 0, "memory amid backward", dict(update_freq=[2], batch_size=2)),
    soak(2, 1, "memory amid backward", dict(bf16=True, clip_norm=1.0)),
    soak(2, 1, "memory amid backward", dict(fp16=True, fp16_no_flatten_grads=True)),
    soak(2, 1, "memory amid backward", dict(name="amos_rtd")),
    soak(2, 1, "memory amid backward", dict(name="coco_lm", scl_weight=0.0)),
    soak(2, 1, "memory amid backward", dict(name="teams_mws")),
    soak(2, 1, "memory amid backward", dict(name="peer_tqr")),
    soak(2, 1, "memory amid backward", dict(name="script_selfcritic")),
    soak(2, 1, "memory amid backward", dict(name="electra_rtd")),
]


@pytest.mark.parametrize("processes, rank, what, options", IN_TRAINING)
def test_an_update_without_memory_is_made_in_halves_with_the_same_loss(
    disturbed, undisturbed, processes, rank, what, options
):
    options = {"name": "bert_mlm", **EXACT, **options}
    forward_passes = 2 * options.get("update_freq", [1])[0]
    outcome = disturbed(processes, [(rank, "update", forward_passes, what)], **options)
    first, *others = parameters(outcome)
    assert all(other == first for other in others)
    assert [int(update) for update, _ in first] == [1, 2, 3, 4, 5]
    assert f"rank {rank} is out of memory in update 2" in outcome.out[rank]
    assert "from here on micro-batches are made in 2 parts" in outcome.out[0]
    half = options.get("bf16") or options.get("fp16")
    expected = losses(undisturbed(processes, **options))
    assert losses(outcome) == pytest.approx(expected, rel=1e-2 if half else TOLERANCE)
    made_in = [row.get("micro_batch_parts") for row in outcome.log.train]
    assert made_in == [None, None, 2, 2, 2]


@pytest.mark.parametrize("processes", [2, soak(1)])
def test_memory_that_runs_out_again_halves_again_until_one_sequence_is_too_much(disturbed, undisturbed, processes):
    events = [(0, "update", number, "memory") for number in (1, 3)]  # visit 2: what stood in for it
    outcome = disturbed(processes, events, name="bert_mlm", **EXACT)
    assert "made in 2 parts" in outcome.out[0] and "made in 4 parts" in outcome.out[0]
    assert losses(outcome) == pytest.approx(losses(undisturbed(processes, "bert_mlm", **EXACT)), rel=TOLERANCE)


def test_one_sequence_without_memory_ends_the_run_with_the_remedy(disturbed):
    outcome = disturbed(1, [(0, "update", 1, "memory")], True, batch_size=1, num_workers=0)
    assert outcome.codes == [76]
    assert "update 1: out of memory for one sequence: take shorter --tokens-per-sample" in error_of(outcome)


@pytest.mark.parametrize("rank", [1, soak(0)])
def test_validation_without_memory_is_made_in_halves_with_the_same_loss(disturbed, undisturbed, rank):
    outcome = disturbed(2, [(rank, "validation pass", 0, "memory")], name="bert_mlm", **EXACT)
    assert "out of memory: batches of validation are made in 2 parts" in outcome.out[rank]
    expected = [row["loss"] for row in undisturbed(2, "bert_mlm", **EXACT).log.validation]
    assert [row["loss"] for row in outcome.log.validation] == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize("rank", [soak(0), soak(1)])
def test_no_memory_for_one_sequence_of_validation_ends_all_processes(disturbed, rank):
    events = [(None, "validation pass", 0, "clock")]
    events += [(rank, "validation pass", number, "memory") for number in range(2)]
    outcome = disturbed(2, events, True, validation_timeout=5, num_workers=0, batch_size_valid=1)
    assert outcome.codes[rank] == 76 and outcome.codes[1 - rank] in (1, 70)
    told = f"rank {rank}: error: out of memory in validation at update 4: give a smaller --batch-size-valid"
    assert told in outcome.err[rank]


@pytest.mark.parametrize("rank", [0, soak(1)])
def test_no_memory_for_the_optimizers_step_ends_all_processes(disturbed, rank):
    events = [(None, "optimizer", 0, "clock"), (rank, "optimizer", 0, "out of memory")]
    outcome = disturbed(2, events, True, update_timeout=5, num_workers=0)
    assert outcome.codes[rank] == 76 and outcome.codes[1 - rank] in (1, 70)
    assert f"rank {rank}: error: out of memory in update 0: the optimizer's state does not fit" in outcome.err[rank]


def test_an_update_with_a_batchwise_term_is_skipped_instead(disturbed):
    outcome = disturbed(2, [(1, "update", 2, "memory")], name="coco_lm", **EXACT)
    first, other = parameters(outcome)
    assert first == other and [int(update) for update, _ in first] == [1, 2, 2, 3, 4, 5]
    assert "update 2 is skipped: out of memory" in outcome.out[0]


@pytest.mark.parametrize("rank", [soak(1), soak(0)])
def test_memory_that_runs_out_where_others_wait_in_the_forward_pass_ends_all_processes(disturbed, rank):
    events = [(None, "update", 3, "clock"), (rank, "update", 3, "memory")]
    options = dict(name="coco_lm", scl_gather=True, update_timeout=5)
    outcome = disturbed(2, events, True, num_workers=0, **options)
    assert outcome.codes[rank] == 76 and outcome.codes[1 - rank] in (1, 70)
    assert f"rank {rank}: error: out of memory in update 3: give a smaller --batch-size" in outcome.err[rank]


def test_every_method_without_batchwise_terms_divides_its_batches():
    assert [name for name, method in METHODS.items() if method.batchwise_terms] == ["coco_lm"]
