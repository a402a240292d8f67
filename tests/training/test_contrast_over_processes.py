"""COCO-LM with `scl_gather`: the sequences of all processes are each other's negatives, as in one batch of them."""

import json

import pytest
import torch

TOLERANCE = 1e-6
# Of the SCL head, whose gradient has few right digits in fp32: an untrained encoder's views are nearly parallel. For
# float64 see tests/methods/test_coco_lm.py.
HEAD_TOLERANCE = 0.1
ONE = [[range(10)]]
TWO = {
    "uneven": [[range(7)], [range(7, 10)]],
    "one sequence in one process": [[[0]], [range(1, 10)]],
    "one without data": [[range(10)], [[]]],
    "one without data in the first of two micro-batches": [[range(6), range(6, 9)], [[9], []]],
}
FIRST_OF_TWO = [[range(6), [*range(6, 9), 9]]]  # empty micro-batches come first, so 9 meets 6, 7, 8


@pytest.fixture(scope="module")
def update(launch, arguments, tmp_path_factory):
    """update(layout, **options): the results of an update, one per process."""
    folder = tmp_path_factory.mktemp("contrast")

    def update(layout, **options):
        options = dict(dropout=0, attention_dropout=0, generator_dropout=0, **options)
        layout = [[list(batch) for batch in batches] for batches in layout]
        (folder / "jobs").write_text(json.dumps([dict(options=arguments("coco_lm", **options), layout=layout)]))
        launch("one_update:main", [folder / "jobs", folder / "out"], len(layout))
        results = (torch.load(f"{folder / 'out'}.{rank}") for rank in range(len(layout)))
        return [result[0] for result in results]

    return update


@pytest.mark.parametrize("layout", TWO)
def test_two_processes_contrast_as_one(update, layout):
    expected = FIRST_OF_TWO if "micro-batches" in layout else ONE
    (whole,) = update(expected)
    scale = max(gradient.norm() for gradient in whole["gradients"].values())
    for result in update(TWO[layout], scl_gather=True):
        for term in ("mlm", "rtd", "clm", "scl"):
            assert result["metrics"][term] == pytest.approx(whole["metrics"][term], rel=TOLERANCE)
        for name, gradient in whole["gradients"].items():
            difference = (result["gradients"][name] - gradient).norm()
            if name.startswith("method.scl_head"):
                assert difference <= HEAD_TOLERANCE * gradient.norm(), name
            else:
                assert difference <= TOLERANCE * max(gradient.norm(), 1e-3 * scale), name


def test_without_gathering_two_processes_contrast_within_themselves(update):
    (whole,) = update(ONE)
    (apart,) = update([[range(7), range(7, 10)]])
    result, _ = update(TWO["uneven"])
    assert result["metrics"]["scl"] == pytest.approx(apart["metrics"]["scl"], rel=TOLERANCE)
    assert result["metrics"]["scl"] < 0.95 * whole["metrics"]["scl"]
