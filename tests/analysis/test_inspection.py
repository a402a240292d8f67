from amos_fairseq.analysis.inspection import (
    ANSI,
    ANSI_END,
    FOUND,
    MISSED,
    Verdict,
    judged,
    legend,
    matched_threshold,
    render,
    summary,
    verdicts,
)

PIECES = ["<s>", "\u2581the", "\u2581cat", "\u2581dog", "\u2581sleep", "s", "ing", "."]
#            the   cat->dog  sleep  s->ing  .
ORIGINAL = [0, 1, 2, 4, 5, 7]
CORRUPTED = [0, 1, 3, 4, 6, 7]
REPLACED = [False, False, True, False, True, False]
PROBABILITIES = [0.1, 0.9, 0.12, 0.3, 0.8, 0.99]

SEQUENCE = verdicts(ORIGINAL, CORRUPTED, REPLACED, PROBABILITIES, PIECES, hidden_tokens=[0])


def test_verdicts_compare_the_encoder_with_the_truth():
    assert [verdict.kind for verdict in SEQUENCE] == ["", "found", "mistaken", "missed", ""]


def test_markers_say_everything_without_colour():
    assert render(SEQUENCE, color=False) == "the [cat -> dog 0.12] {sleep 0.30}[-s -> -ing 0.80 missed]."


def test_colour_adds_nothing_but_colour():
    colored = render(SEQUENCE, color=True)
    assert f"{ANSI[FOUND]}[cat -> dog 0.12]{ANSI_END}" in colored
    assert f"{ANSI[MISSED]}[-s -> -ing 0.80 missed]{ANSI_END}" in colored
    for code in (*ANSI.values(), ANSI_END):
        colored = colored.replace(code, "")
    assert colored == render(SEQUENCE, color=False)


def test_lines_are_wrapped_between_words():
    words = [Verdict("\u2581word", "\u2581word", False, 0.9)] * 50
    lines = render(words, color=True).split("\n")
    assert all(len(line) <= 100 for line in lines)
    assert " ".join(lines) == " ".join(["word"] * 50)


def test_piece_inside_a_word_is_told_from_a_word():
    inside = [Verdict("\u2581run", "\u2581run", False, 0.9), Verdict("s", "\u2581dog", True, 0.1)]
    assert render(inside, color=False) == "run[-s -> dog 0.10]"
    assert render([Verdict(",", ".", True, 0.1)], color=False) == "[, -> . 0.10]"


def test_summary_counts_tokens():
    assert summary([SEQUENCE]) == (
        "2 of 5 tokens were replaced; the encoder found 1 of them and took 1 of the other 3 for replaced."
    )


def test_matched_threshold_takes_as_many_for_replaced_as_were():
    probabilities, replaced = [0.9, 0.8, 0.7, 0.6], [False, True, False, True]
    sequence = [Verdict("a", "b", r, p) for r, p in zip(replaced, probabilities)]
    assert matched_threshold([sequence]) == 0.8
    kinds = [verdict.kind for verdict in judged([sequence], 0.8)[0]]
    assert kinds == ["", "missed", "mistaken", "found"]


def test_legend_explains_each_marker():
    assert len(legend(color=False).splitlines()) == 3
