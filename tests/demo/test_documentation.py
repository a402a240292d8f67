"""The documentation corpus: prose only, each paragraph once, the same every time."""

import pytest

from amos_fairseq.cli.main import main
from amos_fairseq.demo import documentation

SOURCE = '''
"""One line of documentation here."""
def f(x):
    """Add one to the given number.

    The sum is what
    one would expect.

    >>> f(1) is not a sentence of prose
    2

    ======  ======
    1 2 3   4 5 6 7 8
    """
    message = "a string of one line is not documentation"
    return x
register("f", """
Texts of several lines in calls
are documentation too.
""")
'''


def test_a_module_yields_its_prose_as_one_line_per_paragraph(tmp_path):
    (tmp_path / "module.py").write_text(SOURCE)
    assert documentation.module_paragraphs(str(tmp_path / "module.py")) == [
        "One line of documentation here.",
        "Add one to the given number.",
        "The sum is what one would expect.",
        "Texts of several lines in calls are documentation too.",
    ]


def test_a_file_that_is_not_python_yields_nothing(tmp_path):
    (tmp_path / "module.py").write_bytes(b"\0\xff def")
    assert documentation.module_paragraphs(str(tmp_path / "module.py")) == []


def test_corpus_has_the_size_no_repetition_and_is_deterministic(tmp_path):
    first, second = str(tmp_path / "a.txt"), str(tmp_path / "b.txt")
    size = documentation.write_documentation(first, megabytes=0.1)
    assert 80_000 < size <= 100_000
    assert documentation.write_documentation(second, megabytes=0.1) == size
    text = (tmp_path / "a.txt").read_text()
    assert text == (tmp_path / "b.txt").read_text()
    paragraphs = [line for line in text.split("\n") if line]
    assert len(paragraphs) == len(set(paragraphs)) > 500
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.txt"]


@pytest.mark.parametrize("megabytes", [0, -1, float("inf"), float("nan")])
def test_what_is_no_size_is_refused(tmp_path, megabytes):
    with pytest.raises(ValueError, match=f"--megabytes {megabytes} is no size: give a number above 0, such as 12"):
        documentation.write_documentation(str(tmp_path / "a.txt"), megabytes)


def test_a_file_that_is_there_is_not_replaced(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["corpus", "--out", str(tmp_path / "notes.txt"), "--tasks", str(tmp_path / "tasks")]) == 64
    assert capsys.readouterr().err.endswith("/notes.txt exists: name a new file\n")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_modules_are_read_in_their_order_whatever_process_reads_them():
    assert list(documentation.read_all(abs, range(-100, 0))) == list(range(100, 0, -1))


def test_a_failed_collection_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(documentation, "sources", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        documentation.write_documentation(str(tmp_path / "a.txt"))
    assert list(tmp_path.iterdir()) == []
