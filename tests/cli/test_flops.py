import json

import pytest

from amos_fairseq.cli import main


def test_table_has_two_rows_a_method(capsys):
    assert main.main(["flops", "electra_rtd", "bert_mlm", "--vocab-size", "30522", "--sequences", "256"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["method", "electra_rtd", "electra", "bert_mlm", "electra"]
    assert len({len(line) for line in lines}) == 1


def test_json_multiplies_tokens_to_sequences_and_runs(capsys):
    options = "--size small --length 128 --sequences 128 --updates 1000000 --vocab-size 30522 --json".split()
    assert main.main(["flops", "electra_rtd", *options]) == 0
    hardware, electra = map(json.loads, capsys.readouterr().out.splitlines())
    assert (hardware["mode"], electra["mode"]) == ("hardware", "electra")
    assert electra["sequence"] == 128 * electra["token"] and electra["run"] == 128 * 1e6 * electra["sequence"]
    assert electra["run"] == pytest.approx(1.294e18, rel=1e-3)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["elektra"], "unknown method elektra: choose from amos_rtd, "),
        (["--size", "huge"], "unknown --size huge: choose from tiny, small, base, large"),
        (["--vocab-size", "0"], "--vocab-size must be at least 1, got 0"),
    ],
)
def test_mistakes_are_told_in_one_line(capsys, arguments, message):
    assert main.main(["flops", *arguments]) == 64
    error = capsys.readouterr().err
    assert error.startswith(f"amos-fairseq flops: error: {message}") and error.count("\n") == 1
