"""Control characters, colour, and what asks for neither."""
import ast
import io
import json
import os
import re
from pathlib import Path

import pytest

from amos_fairseq import terminal
from amos_fairseq.cli import main, report
from amos_fairseq.cli.detect import marked
from amos_fairseq.cli.score import print_rows
from amos_fairseq.finetune.results import markdown
from amos_fairseq.pretrained.model import Detection
from amos_fairseq.user_errors import stop

CLIPBOARD = "a\x1b]52;c;cm0=\x07b"
ESCAPED = "a\\x1b]52;c;cm0=\\x07b"


@pytest.mark.parametrize(
    "text, shown",
    [
        (CLIPBOARD, ESCAPED),
        ("\x1b[2J\x9b2J", "\\x1b[2J\\x9b2J"),
        ("one\rtwo\x08\x00\x7f\x85", "one\\rtwo\\x08\\x00\\x7f\\x85"),
        ("\u202eabc\u202c \u2066x\u2069", "\\u202eabc\\u202c \\u2066x\\u2069"),
        ("name\udcff", "name\\udcff"),
        ("tab\tline\n caf\u00e9 \u05e9\u05c1\u200f \U0001f469\u200d\U0001f52c \\x1b", None),
    ],
)
def test_controls_are_written_out_and_all_else_stays(text, shown):
    assert terminal.visible(text) == (text if shown is None else shown)


def test_json_is_the_same_value_without_raw_controls():
    value = {"text": f"{CLIPBOARD}\x9b\u202e caf\u00e9"}
    line = terminal.json_line(value)
    assert line == '{"text": "a\\u001b]52;c;cm0=\\u0007b\\u009b\\u202e caf\u00e9"}' and json.loads(line) == value


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    "stream, environment, shown",
    [
        (Terminal(), {}, "\x1b[1;31mx\x1b[0m"), (Terminal(), {"NO_COLOR": "1"}, "x"),
        (Terminal(), {"TERM": "dumb"}, "x"), (io.StringIO(), {}, "x"),
    ],
)
def test_colour_is_for_terminals_of_users_who_want_it(stream, environment, shown, monkeypatch):
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert terminal.coloured("x", stream, terminal.BOLD, terminal.RED) == shown


TABLE = [["", "first", "second", "third"], ["loss", "1.0 *", "2.0  ", "3.0  "], ["only", "-  ", "-  ", 4.25]]
WHOLE = ["      first  second  third", "loss  1.0 *   2.0    3.0", "only    -       -     4.25"]
IN_PARTS = ["      first  second", "loss  1.0 *   2.0", "", "      third", "loss  3.0", "only   4.25"]


@pytest.mark.parametrize("columns, lines", [(26, WHOLE), (25, IN_PARTS)])
def test_columns_that_do_not_fit_go_below_without_rows_that_have_nothing_there(columns, lines, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert terminal.table(TABLE).splitlines() == lines


def test_a_cell_that_is_wider_than_the_terminal_goes_on_below_itself(monkeypatch):
    monkeypatch.setenv("COLUMNS", "8")
    assert terminal.table([["", "x"], ["a", "abcdefg"]], left=2) == "   x\na  abcde\n   fg"
    monkeypatch.setenv("COLUMNS", "1")
    assert terminal.table([["", "x"], ["ab", "c"]]).split() == ["x", "a", "c", "b"]


def test_titles_and_what_has_an_asterisk_are_bold(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert terminal.table([["", "t"], ["a", "1*"], ["b", "2"]], stream=Terminal()).splitlines() == [
        "\x1b[1m    t\x1b[0m", "a  \x1b[1m1*\x1b[0m", "b   2",
    ]


def test_lines_are_broken_between_words(monkeypatch):
    monkeypatch.setenv("COLUMNS", "9")
    shown = "one two\n  three\n\na/very/long/path\n  x\\x1b"
    assert terminal.filled("one two three\n\na/very/long/path x\x1b", hanging=2) == shown


def test_errors_name_files_without_their_controls(capsys):
    assert main.main(["score", CLIPBOARD, f"/{CLIPBOARD}"]) == os.EX_USAGE
    assert capsys.readouterr().err == f"amos-fairseq score: error: /{ESCAPED}: No such file or directory\n"
    with pytest.raises(SystemExit):
        stop(CLIPBOARD, os.EX_USAGE)
    assert capsys.readouterr().err == f"amos_fairseq: error: {ESCAPED}\n"


@pytest.mark.parametrize("words", [["recipes", "copy"], ["corpus", "--megabytes", "0.01", "--out"]])
def test_paths_that_are_told_of_are_shown_without_their_controls(tmp_path, capsys, words):
    assert main.main([*words, str(tmp_path / CLIPBOARD)]) == 0 and (tmp_path / CLIPBOARD).exists()
    assert capsys.readouterr().out.startswith(f"{tmp_path / ESCAPED}: ")


def test_what_commands_print_of_paths_has_its_controls_written_out():
    path = re.compile(r"(args\.)?(out|folder|path|log|tasks)( /.*)?")
    for source in sorted(Path(main.__file__).parent.glob("*.py")):
        calls = (node for node in ast.walk(ast.parse(source.read_text())) if isinstance(node, ast.Call))
        texts = [text for call in calls if ast.unparse(call.func) == "print" for text in call.args]
        values = [value for text in texts for value in getattr(text, "values", []) if hasattr(value, "conversion")]
        assert not [value.lineno for value in values if path.fullmatch(ast.unparse(value.value))], source.name


def test_texts_are_shown_without_their_controls(capsys):
    line = f"{CLIPBOARD} {CLIPBOARD}"
    half = len(CLIPBOARD)
    assert marked(line, [Detection("", 0, half, 0.75)], 0.5) == f"[{ESCAPED} 0.75] {ESCAPED}"
    print_rows([{"pll": -1.0, "sentence": CLIPBOARD}], as_json=False)
    report.print_table([["", "\x1b]0;\x07"], ["loss", "1"]])
    table = "      \\x1b]0;\\x07\nloss            1\n"
    assert capsys.readouterr().out == f"pll\tsentence\n-1.0000\t{ESCAPED}\n{table}"
    assert terminal.visible(markdown(["task"], [[CLIPBOARD]])) == f"| task |\n|---|\n| {ESCAPED} |"
