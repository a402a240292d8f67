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


def test_options_change_the_cost_and_a_warm_up_of_the_generator_is_known(capsys):
    def run(*options):
        assert main.main(["flops", "amos_rtd", "--size", "tiny", "--updates", "10", "--json", *options]) == 0
        return json.loads(capsys.readouterr().out.splitlines()[0])["run"]

    whole, warmed_up, shallow = run(), run("--set", "generator_warmup_updates=5"), run("--set", "generator-depths=1")
    assert 0.5 * whole < warmed_up < whole and shallow < whole
    alone = 2 * warmed_up - whole  # all ten updates of the generator alone
    assert run("--set", "generator_warmup_updates=9") == pytest.approx(0.9 * alone + 0.1 * whole)


def test_groups_of_learning_rates_are_listed(capsys):
    assert main.main(["flops", "amos_rtd", "--size", "tiny", "--groups", "--set", "encoder_lr_factor=0.5"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert {row[1]: row[2] for row in lines[1:]} == dict(shared="1", encoder="0.5", rel_pos="1", generator="1")
    assert lines[1][0] == "amos_rtd" and ["amos_rtd", "shared", "1", f"{32768 * 128:,}"] in lines


@pytest.mark.parametrize("given, words", [
    ("encoder_lr_factr=1", "write OPTION=VALUE with an option of amos_rtd"), ("encoder_layers", "write OPTION=VALUE"),
    ("encoder_layers=two", "two is no value of encoder_layers, whose default is 12"),
    ("detection_on_words=1", "1 is no value of detection_on_words, whose default is False"),
])
def test_a_wrong_option_is_told_in_one_line(capsys, given, words):
    assert main.main(["flops", "amos_rtd", "--set", given]) == 64
    error = capsys.readouterr().err
    assert error.startswith(f"amos-fairseq flops: error: --set {given}: {words}") and error.count("\n") == 1
