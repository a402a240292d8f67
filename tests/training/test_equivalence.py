"""One update on the same samples is the same update, however processes and micro-batches share the samples."""

import json

import pytest
import torch

from amos_fairseq.methods import METHODS

TOLERANCE = 1e-6
# A soft sample divides the rounding of logits by 0.3, and leaves out what is below a millionth of its largest part.
OF_SOFT_SAMPLES = {"method.mixture_head.weight": 5e-6}
ABSOLUTE = {"candidate_tail": 1e-7}  # one less a sum near one
WHOLE = "one batch"
LAYOUTS = {  # [processes][micro-batches][samples]
    WHOLE: [[range(10)]],
    "2 micro-batches": [[range(7), range(7, 10)]],
    "3 micro-batches": [[range(2), range(2, 8), range(8, 10)]],
    "2 processes": [[range(7)], [range(7, 10)]],
    "2 processes, the last micro-batch of one empty": [[range(4), range(4, 7)], [range(7, 10), []]],
    "2 processes, one without data": [[range(10)], [[]]],
    "2 processes, 2 micro-batches": [[range(3), range(3, 7)], [[7], range(8, 10)]],
}
SAME_SAMPLES = [[range(4)], [range(4)]]
SHARED = "2 processes, 2 micro-batches"
VARIANTS = {  # of methods, with the layouts WHOLE and SHARED
    "on words": ("electra_rtd", dict(detection_on_words=True)),
    "generator alone": ("amos_rtd", dict(generator_warmup_updates=1, optimizer="fused_adamw")),
}


def options(name, dropout=0.0):
    """Those with which an update does not depend on chance, or on who shares a micro-batch, but for `dropout`."""
    of_generator = {key: 0.0 for key in ("generator_dropout",) if hasattr(METHODS[name].config_class, key)}
    batchwise = {f"{term}_weight": 0.0 for term in METHODS[name].batchwise_terms}
    return dict(of_generator, dropout=dropout, attention_dropout=dropout, **batchwise)


@pytest.fixture(scope="module")
def updates(launch, arguments, tmp_path_factory):
    """{(name, layout): one result per process}, and (name, dropout) for the same samples on two processes."""
    wanted = {(name, layout): (options(name), LAYOUTS[layout]) for name in METHODS for layout in LAYOUTS}
    for variant, (name, changes) in VARIANTS.items():
        named = {**options(name), **changes}
        wanted.update({(variant, layout): (named, LAYOUTS[layout]) for layout in (WHOLE, SHARED)})
    for name in METHODS:
        wanted.update({(name, dropout): (options(name, dropout), SAME_SAMPLES) for dropout in (0.0, 0.5)})
    folder, found = tmp_path_factory.mktemp("updates"), {}
    for processes in (1, 2):
        part = {key: value for key, value in wanted.items() if len(value[1]) == processes}
        jobs = [
            dict(
                options=arguments(VARIANTS.get(name, (name,))[0], **named),
                layout=[[list(batch) for batch in batches] for batches in layout],
            )
            for (name, _), (named, layout) in part.items()
        ]
        (folder / "jobs.json").write_text(json.dumps(jobs))
        launch("one_update:main", [folder / "jobs.json", folder / f"{processes}"], processes)
        results = [torch.load(folder / f"{processes}.{rank}") for rank in range(processes)]
        found.update(zip(part, zip(*results)))
    return found


@pytest.fixture(params=[layout for layout in LAYOUTS if layout != WHOLE])
def layout(request):
    return request.param


def test_every_layout_holds_ten_samples_once():
    for processes in LAYOUTS.values():
        assert sorted(index for batches in processes for batch in batches for index in batch) == list(range(10))


def test_gradients_are_those_of_one_batch(updates, name, layout):
    check_gradients(updates, name, layout)


def check_gradients(updates, name, layout):
    (whole,) = updates[name, WHOLE]
    scale = max(gradient.norm() for gradient in whole["gradients"].values())
    for result in updates[name, layout]:
        assert result["gradients"].keys() == whole["gradients"].keys()
        for parameter, expected in whole["gradients"].items():
            difference = (result["gradients"][parameter] - expected).norm()
            tolerance = OF_SOFT_SAMPLES.get(parameter, TOLERANCE)
            assert difference <= tolerance * max(expected.norm(), 1e-4 * scale), parameter


def test_logged_terms_and_statistics_are_those_of_one_batch(updates, name, layout):
    check_metrics(updates, name, layout)


@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_over_words_and_of_the_generator_alone_are_those_of_one_batch(updates, variant):
    check_gradients(updates, variant, SHARED)
    check_metrics(updates, variant, SHARED)
    terms = updates[variant, WHOLE][0]["metrics"].keys() & {"mlm", "rtd"}
    assert terms == ({"mlm"} if variant == "generator alone" else {"mlm", "rtd"})


def check_metrics(updates, name, layout):
    (whole,) = updates[name, WHOLE]
    expected = {
        key: pytest.approx(value, rel=TOLERANCE, abs=ABSOLUTE.get(key, 0.0)) for key, value in whole["metrics"].items()
    }
    for result in updates[name, layout]:
        assert result["metrics"] == expected


def test_tokens_counted_and_figures_of_a_whole_validation_are_those_of_one_batch(updates, name, layout):
    (whole,) = updates[name, WHOLE]
    assert bool(whole["token_counts"].sum()) == ("rtd_auc_words" in whole["pooled"])
    for result in updates[name, layout]:
        assert torch.equal(result["token_counts"], whole["token_counts"])
        assert result["pooled"] == pytest.approx(whole["pooled"], abs=1e-3)  # a rounded logit may change its bin


def test_drawn_tokens_are_those_of_one_batch(updates, name, layout):
    (whole,) = updates[name, WHOLE]
    drawn = {}
    for result in updates[name, layout]:
        drawn.update(result["sampled"])
    assert drawn == whole["sampled"]
    assert not drawn or len(drawn) == 10 and len(set(map(tuple, drawn.values()))) > 1


def test_loss_is_not_the_mean_of_micro_batches_means(updates, name):
    """The samples are ragged enough to tell: the micro-batches' own means differ, as do their counts."""
    (result,) = updates[name, "3 micro-batches"]
    terms = [key for key in result["micro_batches"][0] if key.startswith("term") and key.endswith("total")]
    for term in terms:
        counts = [logs[term.replace("total", "count")] for logs in result["micro_batches"]]
        means = [logs[term] / count for logs, count in zip(result["micro_batches"], counts)]
        name = term.split()[1]
        assert len(set(counts)) > 1
        assert abs(sum(means) / len(means) - result["metrics"][name]) > 10 * TOLERANCE * abs(result["metrics"][name])


def test_processes_drop_different_units_of_the_same_samples(updates, name):
    first, second = (result["micro_batches"][0] for result in updates[name, 0.5])
    totals = [key for key in first if key.startswith("term") and key.endswith("total")]
    assert any(first[key] != second[key] for key in totals)
    first, second = (result["micro_batches"][0] for result in updates[name, 0.0])
    assert all(first[key] == second[key] for key in totals)
