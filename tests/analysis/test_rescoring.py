"""Rescoring of n-best lists, on literal numbers."""
import pytest

from amos_fairseq.analysis import rescoring

LIST = """u1\t-1\tthe cat sat
u1\t-2\tthe cat sits
u2\t-5\ta dogs
u2\t-3\ta a dog
"""
REFERENCES = {"u1": "the cat sits", "u2": "a dog"}
PLLS, TOKENS = [-9.0, -6.0, -4.0, -9.0], [3, 3, 2, 3]


@pytest.mark.parametrize(
    "hypothesis, reference, errors",
    [("a b c", "a b c", 0), ("a x c", "a b c", 1), ("a c", "a b c", 1), ("a b b c", "a b c", 1), ("", "a b", 2),
     ("b a", "a b", 2), ("x y z", "", 3), ("a  b", "a b", 0)],
)
def test_word_errors_are_the_fewest_edits(hypothesis, reference, errors):
    assert rescoring.word_errors(hypothesis, reference) == errors


def test_the_weight_is_the_middle_of_those_with_the_fewest_errors():
    """u1 turns right at w > 1/4: 1 - w = 3 w. u2 errs by one word either way."""
    hypotheses = rescoring.parse(LIST, "x", first_pass=True)
    assert hypotheses[2] == (3, "u2", -5.0, "a dogs")
    found = rescoring.Rescoring(hypotheses, PLLS, TOKENS, REFERENCES)
    assert found.errors == [1, 0, 1, 1]
    assert found.word_errors(0.2) == (2 / 5, 2 / 5, 1 / 5) and found.word_errors(0.3) == (1 / 5, 2 / 5, 1 / 5)
    assert found.tuned() == pytest.approx(0.63)  # of 0.26 to 1
    assert rescoring.combined(hypotheses, PLLS, 0.25)[:2] == [-3.0, -3.0]


def test_references_without_hypotheses_would_not_count_and_are_refused():
    hypotheses, references = rescoring.parse(LIST, "x", first_pass=True), {**REFERENCES, "u3": "a", "u4": "b"}
    with pytest.raises(ValueError, match="2 references have no hypothesis, first 'u3': leave them out"):
        rescoring.Rescoring(hypotheses, PLLS, TOKENS, references)


def test_references_are_needed_for_every_id():
    with pytest.raises(ValueError, match="there is no reference for 'u2': lines are id<TAB>sentence"):
        rescoring.Rescoring(rescoring.parse(LIST, "x", first_pass=True), PLLS, TOKENS, {"u1": "a"})
