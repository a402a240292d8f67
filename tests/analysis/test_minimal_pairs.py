"""Minimal pairs: files of the public layouts, what is right, and the table, from literal scores."""
import json

import numpy as np
import pytest

from amos_fairseq.analysis import minimal_pairs
from amos_fairseq.analysis.minimal_pairs import Text
from amos_fairseq.finetune import intervals
from amos_fairseq.pretrained.scoring import Score

BLIMP = {
    "sentence_good": "Many girls insulted themselves.", "sentence_bad": "Many girls insulted herself.",
    "field": "morphology", "linguistics_term": "anaphor_agreement", "UID": "anaphor_number_agreement",
    "simple_LM_method": True, "one_prefix_method": True, "two_prefix_method": False, "pairID": "0",
}
EWOK = {
    "Domain": "social-relations", "ConceptA": "friend", "ConceptB": "enemy", "Context1": "Ali is Lee's friend.",
    "Context2": "Ali is Lee's enemy.", "Target1": "Ali helps Lee.", "Target2": "Ali hurts Lee.",
}


def write_lines(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_a_line_of_blimp_is_a_pair_of_its_phenomenon_and_by_another_column_of_that(tmp_path):
    path = write_lines(tmp_path / "anaphor.jsonl", BLIMP)
    pair, = minimal_pairs.read([path])
    assert pair == (
        path, 1, "anaphor_agreement", ("", "Many girls insulted themselves."), ("", "Many girls insulted herself.")
    )
    assert minimal_pairs.read([tmp_path], by="UID")[0].phenomenon == "anaphor_number_agreement"


def test_a_line_of_ewok_is_two_pairs_of_one_target_after_both_contexts(tmp_path):
    first, second = minimal_pairs.read([write_lines(tmp_path / "ewok.jsonl", EWOK)])
    friend, enemy = EWOK["Context1"], EWOK["Context2"]
    assert first[3:] == (Text(friend, "Ali helps Lee."), Text(enemy, "Ali helps Lee."))
    assert second[3:] == (Text(enemy, "Ali hurts Lee."), Text(friend, "Ali hurts Lee."))
    assert first[:3] == second[:3] == (tmp_path / "ewok.jsonl", 1, "social-relations")


def test_pairs_of_ones_own_are_tsv_and_a_file_without_phenomena_is_one(tmp_path):
    (tmp_path / "verbs.TSV").write_text("good\tbad\nit is\tit are\n")
    (tmp_path / "x.csv").write_text('phenomenon,good,bad\ncommas,"a, b","b ,a"\n')
    (tmp_path / "README.txt").write_text("not read of a folder")
    pairs = minimal_pairs.read([tmp_path])
    assert [(pair.phenomenon, pair.good.text) for pair in pairs] == [("verbs", "it is"), ("commas", "a, b")]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.tsv", "a\tb\n1\t2\n", r"a.tsv, line 2: columns a, b hold no pair: needed are sentence_good, sentence_bad"),
        ("a.tsv", "good\tbad\n1\t \n", r"a.tsv, line 2: bad is ' ', no text"),
        ("a.tsv", "good\tbad\n", "a.tsv: there is no pair"),
        ("a.jsonl", '{"good": "x", "bad": 3}\n', r"a.jsonl, line 1: bad is '3', no text"),
        ("a.jsonl", "{\n", r"a.jsonl, line 1: is no JSON"),
        ("a.zip", "", r"a.zip is none of .tsv, .txt, .csv, .jsonl"),
    ],
)
def test_a_file_of_something_else_is_told_with_its_line(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=f"{message}[^\n]*$"):
        minimal_pairs.read([tmp_path / name])


def scores(*plls, tokens=1):
    return [Score(pll, tokens) for pll in plls]


def test_the_higher_score_is_preferred_and_equal_ones_are_half():
    assert minimal_pairs.preferences(scores(-1.0, -2.0, -2.0, -1.0, -3.0, -3.0), False).tolist() == [1.0, 0.0, 0.5]
    lengths = [Score(-4.0, 4), Score(-3.0, 2)]  # -1 against -1.5 a token
    assert [minimal_pairs.preferences(lengths, per_token).item() for per_token in (False, True)] == [0.0, 1.0]


def test_items_phenomena_overall_and_what_frequency_explains(tmp_path):
    """Four pairs of phenomenon a: right, right, wrong, tied; of EWoK's item one right and one wrong."""
    rows = "".join(f"a\t{i}\t{i}\n" for i in range(4))
    (tmp_path / "a.tsv").write_text("phenomenon\tgood\tbad\n" + rows)
    pairs = minimal_pairs.read([tmp_path / "a.tsv", write_lines(tmp_path / "b.jsonl", EWOK)])
    found = scores(2.0, 1.0, 2.0, 1.0, 1.0, 2.0, 1.0, 1.0, 2.0, 1.0, 1.0, 2.0)
    frequencies = scores(2.0, 1.0, 1.0, 2.0, 1.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    judged = minimal_pairs.judge(pairs, found, frequencies)
    assert judged.phenomena["a"].value == 2.5 / 4 and judged.phenomena["social-relations"].value == 0.5
    assert judged.overall.value == pytest.approx(3 / 5) and judged.of_phenomena.value == pytest.approx(4.5 / 8)
    assert judged.phenomena["social-relations"] == (0.5, 0.5, 0.5)  # of one item
    assert judged.ties == 1 and judged.with_frequency == 1.0 and judged.without_frequency == 2.5 / 5
    assert minimal_pairs.judge(pairs, found, None)[-2:] == (None, None)


def test_intervals_are_those_of_the_binomial_distribution():
    values = np.array([1.0] * 300 + [0.0] * 100)
    estimate = intervals.mean(values)
    width = 1.96 * (0.75 * 0.25 / 400) ** 0.5
    assert estimate.value == 0.75 and estimate == intervals.mean(values[::-1])
    assert estimate.low == pytest.approx(0.75 - width, abs=0.005)
    assert estimate.high == pytest.approx(0.75 + width, abs=0.005)
    assert intervals.mean_of_strata([values, values], [1, 1]).low > estimate.low  # of twice as many
