import io

import pytest
from rich.console import Console

from amos_fairseq.analysis.inspection import (
    STYLES,
    cells_of,
    kind,
    legend,
    matched_threshold,
    render_masked,
    render_positions,
    render_stages,
    render_verdicts,
    summary,
)
from amos_fairseq.analysis.pipeline import Position, Proposal, Sentence, Token
from amos_fairseq.methods.coco_lm import CorrectionDetail
from amos_fairseq.methods.peer import Ranking
from amos_fairseq.methods.stages import TokenProbability as Says


def word(original, corrupted, probability, masked=None):
    """A token; selected if `masked` says what stands there."""
    replaced = None if original is None else original != corrupted
    logit = 2.0 if probability is not None else None
    return Token(original, masked or original, masked is not None, corrupted, replaced, logit, probability)


# <s> the cat->dog sleep s->ing .
TOKENS = [
    word("<s>", "<s>", 0.1),
    word("\u2581the", "\u2581the", 0.9),
    word("\u2581cat", "\u2581dog", 0.12, masked="<mask>"),
    word("\u2581sleep", "\u2581sleep", 0.3, masked="\u2581sleep"),
    word("s", "ing", 0.8, masked="\u2581up"),
    word(".", ".", 0.99),
]
SENTENCE = Sentence("amos_rtd", "the cat sleeps.", TOKENS, [])


def printed(renderable, width=100):
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    return console.file.getvalue()


def test_verdicts_compare_the_encoder_with_the_truth():
    assert [kind(token, 0.5) for token in TOKENS[1:]] == ["", "found", "mistaken", "missed", ""]
    assert [kind(token, 0.1) for token in TOKENS[1:]] == ["", "missed", "", "missed", ""]


def test_marks_say_everything_without_colour():
    assert render_verdicts(SENTENCE, 0.5).plain == "the [cat -> dog 0.12] {sleep 0.30}[-s -> -ing 0.80 missed]."


def test_colours_are_those_of_the_legend():
    text = render_verdicts(SENTENCE, 0.5)
    styles = {text.plain[span.start : span.end]: span.style for span in text.spans if span.style}
    assert styles == {
        "[cat -> dog 0.12]": STYLES["found"], "{sleep 0.30}": STYLES["mistaken"],
        "[-s -> -ing 0.80 missed]": STYLES["missed"],
    }
    assert [span.style for span in legend(stages=False).spans] == [
        STYLES["found"], STYLES["missed"], STYLES["mistaken"]
    ]


def test_selected_positions_are_numbered_with_what_became_of_them():
    assert render_masked(SENTENCE).plain == "the [1 <mask>] [2 kept: sleep][3 random: up]."


def test_what_cannot_be_seen_is_named_and_a_selected_end_is_shown():
    tokens = [word("<s>", "\u2581", 0.2, masked="<mask>"), word("</s>", "</s>", 0.9)]
    sentence = Sentence("", "", tokens, [])
    assert render_masked(sentence).plain == "[1 <mask>]"
    assert render_verdicts(sentence, 0.5).plain == "[<s> -> (space) 0.20]"


def test_lines_are_wrapped_between_words():
    sentence = Sentence("", "", [word("\u2581word", "\u2581word", 0.9)] * 50, [])
    lines = render_verdicts(sentence, 0.5, width=30).plain.split("\n")
    assert all(25 < len(line) <= 30 for line in lines[:-1])
    assert " ".join(lines) == " ".join(["word"] * 50)


def test_a_written_mask_is_filled_in_and_counts_neither_as_replaced_nor_as_original():
    sentence = Sentence("", "", [word(None, "\u2581dog", 0.1, masked="<mask>"), *TOKENS[1:]], [])
    assert render_verdicts(sentence, 0.5).plain.startswith("[<mask> -> dog 0.10] the")
    assert summary([sentence], 0.5).startswith("2 of 5 tokens were replaced")


def test_summary_counts_tokens():
    assert summary([SENTENCE], 0.5) == (
        "2 of 5 tokens were replaced; the encoder found 1 of them and took 1 of the other 3 for replaced."
    )


def test_matched_threshold_takes_as_many_for_replaced_as_were():
    values = (0.9, False), (0.8, True), (0.7, False), (0.6, True)
    tokens = [word("a", "b" if replaced else "a", p) for p, replaced in values]
    assert matched_threshold([Sentence("", "", tokens, [])]) == 0.8
    assert [kind(token, 0.8) for token in tokens] == ["", "missed", "mistaken", "found"]


def position(**fields):
    top = [Says("\u2581dog", 0.5), Says("\u2581cat", 0.25)]
    return Position(2, [Proposal("layer 4", top, 0.25, 0.75)], **fields)


def test_a_position_shows_proposals_weight_draw_and_verdict():
    cells = cells_of(SENTENCE, position(sampled=Says("\u2581dog", 0.4)), 0.5)
    assert {title: cell.plain for title, cell in cells.items()} == {
        "original": "cat",
        "layer 4": "weight 0.750\ndog 0.500\n=cat 0.250\n(original 0.250)",
        "drawn": "dog 0.400",
        "encoder": "p 0.120\nlogit 2.00\nreplaced, found",
    }


@pytest.mark.parametrize(
    "fields, title, text",
    [
        ({"candidates": [Says("\u2581cat", 0.9), Says("\u2581dog", 0.1)]}, "candidates", "=cat 0.900\ndog 0.100"),
        ({"ranking": Ranking(2.0, 3, [0.1, 0.2, 0.7], 1.25)}, "level", "2 of 3\nencoder 3, p 0.700\nscore 1.25"),
        ({"ranking": Ranking(1.5, 1, [0.9, 0.1, 0.0], -4.0)}, "level", "1|2 of 3\nencoder 1, p 0.900\nscore -4.00"),
        ({"ranking": Ranking(None, 1, [1.0, 0.0], 0.0)}, "level", "unknown of 2\nencoder 1, p 1.000\nscore 0.00"),
        (
            {"correction": CorrectionDetail(0.8, [Says("ing", 0.6)], Says("\u2581cat", 0.7), 0.7)},
            "correction", "copy 0.800\n-ing 0.600\n-> =cat 0.700\n(original 0.700)",
        ),
    ],
)
def test_what_only_one_method_has_has_a_column(fields, title, text):
    assert cells_of(SENTENCE, position(details=fields), 0.5)[title].plain == text


def test_scripts_verdict_is_the_critics():
    assert "critic" in cells_of(Sentence("script_selfcritic", "", TOKENS, []), position(), 0.5)


def test_all_stages_are_printed_in_order():
    sentence = Sentence("amos_rtd", "the cat sleeps.", TOKENS, [position(sampled=Says("\u2581dog", 0.4))])
    text = printed(render_stages(sentence, 0.5))
    parts = ["amos_rtd: original", "the cat sleeps.", "masked", "[1 <mask>]", "proposed", "weight 0.750", "[cat -> dog"]
    assert [text.index(part) for part in parts] == sorted(text.index(part) for part in parts)
    assert "\033" not in text


def test_without_detection_no_verdicts_are_printed():
    tokens = [Token("\u2581cat", "<mask>", True)]
    sentence = Sentence("bert_mlm", "cat", tokens, [Position(0, [Proposal("encoder", [Says("s", 0.5)], 0.1)])])
    text = printed(render_stages(sentence, 0.5))
    assert "-s 0.500" in text and "corrupted" not in text and "drawn" not in text


def test_the_table_has_a_row_for_each_position():
    sentence = Sentence("amos_rtd", "", TOKENS, [position()] * 3)
    assert render_positions(sentence, 0.5).row_count == 3


def test_wide_letters_are_wrapped_by_their_columns():
    sentence = Sentence("", "", [word("\u2581\u65e5\u672c", "\u2581\u65e5\u672c", 0.9)] * 20, [])
    lines = render_verdicts(sentence, 0.5, width=30).plain.split("\n")
    assert [len(line.split()) for line in lines] == [6, 6, 6, 2]


def test_control_characters_are_written_out_in_every_stage():
    escape = "\u2581\x1b]0;x\x07"
    sentence = Sentence(
        "electra_rtd", "the \x1b]0;x\x07", [word(escape, "\x9b", 0.3, masked="<mask>")],
        [Position(0, [Proposal("generator", [Says(escape, 0.5)], 0.1)], sampled=Says("\x9b", 0.1))],
    )
    text = printed(render_stages(sentence, 0.5))
    assert not set(text) & set("\x1b\x07\x9b")
    assert text.count("\\x1b]0;x\\x07") == 4 and text.count("\\x9b") == 2
