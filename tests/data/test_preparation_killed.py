"""Preparation that is killed, shared among machines or given hostile text: the same bytes in the end."""

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from amos_fairseq.data import corpus, encoding, packing, preparation
from amos_fairseq.data.manifest import read_manifest
from amos_fairseq.data.packing import SeenDocuments
from amos_fairseq.data.preparation import parse_part, prepare

OPTIONS = dict(vocab_size=300, tokens_per_sample=32, shards=3, valid_fraction=0.1)
SLICES = 24  # of `text`
START = (
    "import sys; from amos_fairseq.data import corpus, preparation; corpus.CHUNK_BYTES = 700; "
    f"preparation.prepare([sys.argv[1]], sys.argv[2], workers=int(sys.argv[3]), **{OPTIONS!r})"
)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    generator = random.Random(0)
    words = ["".join(generator.choices("abcdefghijklmnopqrstuvwxyz", k=generator.randint(2, 7))) for _ in range(150)]
    documents = (" ".join(generator.choices(words, k=generator.randint(3, 60))) for _ in range(90))
    path = tmp_path_factory.mktemp("text") / "corpus.txt"
    path.write_text("\n\n".join(documents))
    return str(path)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(corpus, "CHUNK_BYTES", 700)


@pytest.fixture(scope="module")
def expected(text, tmp_path_factory):
    """The prepared folder of a run that nothing disturbs."""
    out = tmp_path_factory.mktemp("expected") / "out"
    subprocess.run([sys.executable, "-c", START, text, out, "1"], check=True)
    return tree_of(out)


def found(counts):
    return {name: count for name, count in counts.items() if count}


def tree_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def encoded_files(out):
    return sorted(Path(f"{out}.partial", "encoded").glob("*.npz"))


def killed_at(step, text, out):
    """Prepare in a process that is killed just before its `step`-th renaming or removal; whether it was."""

    def run():
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        steps = iter(range(1, step + 1))

        def counted(function):
            def call(*arguments, **options):
                if next(steps) == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **options)

            return call

        for name in ("rename", "unlink", "rmdir"):  # removals are those of shutil.rmtree
            setattr(os, name, counted(getattr(os, name)))
        prepare([text], str(out), workers=1, **OPTIONS)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.soak)])
def test_a_kill_at_any_renaming_or_removal_changes_no_byte(text, expected, tmp_path, every):
    """Every renaming makes something complete: a kill between two of them leaves what one at the second leaves."""
    step, kept = 1, []
    while killed_at(step, text, out := tmp_path / str(step)):
        kept.append(len(encoded_files(out)))
        prepare([text], str(out), workers=1, **OPTIONS)
        assert tree_of(out) == expected, step
        assert not Path(f"{out}.partial").exists()
        step += every
    assert step > SLICES + 40
    assert max(kept) == SLICES


def test_one_preparation_killed_again_and_again_ends_with_the_same_bytes(text, expected, tmp_path):
    out, kills = tmp_path / "out", 0
    while killed_at(30, text, out):
        kills += 1
        assert kills < 10
    assert kills > 1
    assert tree_of(out) == expected


def kill_at_random(text, out, workers, generator):
    """SIGKILL three preparations at random moments, then let one end."""
    command = [sys.executable, "-c", START, text, out, str(workers)]
    kills, seconds = 0, 1.0
    while kills < 3:
        process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
        try:
            assert process.wait(timeout=generator.uniform(0.3, 1) * seconds) == 0
            shutil.rmtree(out)  # it was faster than the kill
            seconds *= 0.7
        except subprocess.TimeoutExpired:
            whom = generator.choice([os.kill, os.killpg])  # workers of a killed process leave by themselves
            whom(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
    subprocess.run(command, check=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_kills_at_random_moments_change_no_byte(text, expected, tmp_path, workers):
    kill_at_random(text, tmp_path / "out", workers, random.Random(workers))
    assert tree_of(tmp_path / "out") == expected


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(20))
def test_kills_at_random_moments_change_no_byte_20_times(text, expected, tmp_path, seed):
    kill_at_random(text, tmp_path / "out", (1, 2, 4)[seed % 3], random.Random(100 + seed))
    assert tree_of(tmp_path / "out") == expected


def test_complete_slices_are_not_encoded_again(text, tmp_path, monkeypatch):
    out = str(tmp_path / "out")
    write = encoding.write_encoded

    def interrupted(path, encoded):
        if path.endswith("10.npz"):
            raise KeyboardInterrupt
        write(path, encoded)

    monkeypatch.setattr(encoding, "write_encoded", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare([text], out, workers=1, **OPTIONS)
    assert len(encoded_files(out)) == 10
    written = []
    monkeypatch.setattr(encoding, "write_encoded", lambda path, encoded: (written.append(path), write(path, encoded)))
    monkeypatch.setattr(preparation, "train_vocabulary", lambda *arguments: pytest.fail("trained again"))
    prepare([text], out, workers=1, **OPTIONS)
    assert [os.path.basename(path) for path in written] == [f"{i:06d}.npz" for i in range(10, SLICES)]


def interrupt_packing(text, out, monkeypatch, **options):
    def interrupted(*arguments):
        raise KeyboardInterrupt  # not by a signal, which processes in the background ignore

    with monkeypatch.context() as patched:
        patched.setattr(preparation, "_pack", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare([text], out, workers=1, **{**OPTIONS, **options})


def test_what_overwrite_has_begun_is_kept_if_the_option_is_forgotten_or_the_old_command_given(
    text, tmp_path, monkeypatch
):
    out, options = str(tmp_path / "out"), {**OPTIONS, "vocab_size": 310}
    manifest = prepare([text], out, workers=1, **OPTIONS)
    interrupt_packing(text, out, monkeypatch, vocab_size=310, overwrite=True)
    with pytest.raises(ValueError, match="other inputs or options: choose another --out or add --overwrite"):
        prepare([text], out, workers=1, **options)
    assert prepare([text], out, workers=1, **OPTIONS) == manifest and len(encoded_files(out)) == SLICES
    monkeypatch.setattr(encoding, "write_encoded", lambda *arguments: pytest.fail("encoded again"))
    assert prepare([text], out, workers=1, overwrite=True, **options).vocabulary_size == 312
    assert os.listdir(tmp_path) == ["out"]


def test_what_is_encoded_serves_other_options_of_packing(text, expected, tmp_path, monkeypatch):
    out = str(tmp_path / "out")
    interrupt_packing(text, out, monkeypatch)
    monkeypatch.setattr(encoding, "write_encoded", lambda *arguments: pytest.fail("encoded again"))
    manifest = prepare([text], out, workers=1, **{**OPTIONS, "shards": 2, "tokens_per_sample": 64})
    assert len(manifest.splits["train"].shards) == 2 and manifest.tokens_per_sample == 64


def test_an_unfinished_preparation_of_other_text_is_kept_unless_overwritten(text, tmp_path, monkeypatch):
    out = str(tmp_path / "out")
    interrupt_packing(text, out, monkeypatch)
    with pytest.raises(OSError) as error:
        prepare([text], out, workers=1, **{**OPTIONS, "vocab_size": 310})
    remedy = "give its command again, choose another --out, or add --overwrite"
    assert str(error.value) == f"{out}.partial is an unfinished preparation of other inputs or options: {remedy}"
    assert len(encoded_files(out)) == SLICES
    manifest = prepare([text], out, workers=1, overwrite=True, **{**OPTIONS, "vocab_size": 310})
    assert manifest.vocabulary_size == 312
    assert os.listdir(tmp_path) == ["out"]


def test_a_damaged_slice_is_named_and_nothing_else_is_lost(text, expected, tmp_path, monkeypatch):
    out = str(tmp_path / "out")
    interrupt_packing(text, out, monkeypatch)
    damaged = encoded_files(out)[3]
    data = bytearray(damaged.read_bytes())
    data[len(data) // 4] ^= 1
    damaged.write_bytes(data)
    with pytest.raises(OSError) as error:
        prepare([text], out, workers=1, **OPTIONS)
    assert str(error.value) == f"{damaged} is damaged: delete it and give the same command again"
    damaged.unlink()
    prepare([text], out, workers=1, **OPTIONS)
    assert tree_of(out) == expected


def test_a_killed_worker_is_told_and_its_slices_are_made_up_for(text, expected, tmp_path, monkeypatch):
    out = str(tmp_path / "out")
    with monkeypatch.context() as patched:
        patched.setattr(encoding, "_encode_in_worker", kill_own_process)
        with pytest.raises(ChildProcessError, match="a worker process was killed, .*: the same command goes on"):
            prepare([text], out, workers=2, **OPTIONS)
    prepare([text], out, workers=2, **OPTIONS)
    assert tree_of(out) == expected


def kill_own_process(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 1, 2, 0]])
def test_parts_in_any_order_give_the_bytes_of_one_machine(text, expected, tmp_path, order):
    out = str(tmp_path / "out")
    for number, index in enumerate(order):
        manifest = prepare([text], out, workers=1, part=(index, 3), **OPTIONS)
        assert (manifest is None) == (number + 1 < len(order))
    assert manifest == read_manifest(out)
    assert tree_of(out) == expected
    assert os.listdir(tmp_path) == ["out"]
    assert prepare([text], out, workers=1, part=(0, 3), **OPTIONS) == manifest  # started once more, late


def test_parts_at_the_same_time_train_one_vocabulary_and_one_of_them_packs(text, expected, tmp_path):
    out = tmp_path / "out"
    program = START.replace("workers=int(sys.argv[3])", "workers=1, part=(int(sys.argv[3]), 3)")
    program = "import logging; logging.basicConfig(level='INFO', format='%(message)s'); " + program
    command = [sys.executable, "-c", program, text, out]
    parts = [subprocess.Popen([*command, str(index)], stderr=subprocess.PIPE, text=True) for index in range(3)]
    said = [part.communicate()[1] for part in parts]
    assert [part.returncode for part in parts] == [0, 0, 0]
    assert "".join(said).count("training a vocabulary") == 1
    assert "".join(said).count("is encoded; the last part to be done puts all together") == 2
    assert tree_of(out) == expected


def test_a_whole_preparation_and_a_part_exclude_each_other(text, tmp_path):
    out = tmp_path / "out"
    fork = multiprocessing.get_context("fork")
    for shared, part in ((True, None), (False, (0, 2))):
        taken, leave = fork.Event(), fork.Event()
        holder = fork.Process(target=hold, args=(out, shared, taken, leave))
        holder.start()
        assert taken.wait(900)
        with pytest.raises(ValueError, match=f"^{out}.partial is in use by another prepare$"):
            prepare([text], str(out), workers=1, part=part, **OPTIONS)
        leave.set()
        holder.join()


def hold(out, shared, taken, leave):
    with preparation._partial_folder(str(out), shared):
        taken.set()
        leave.wait(900)


@pytest.mark.parametrize("part", ["3/3", "1", "-1/2", "a/b", "1/2/3"])
def test_a_part_is_one_of_so_many(part):
    with pytest.raises(ValueError, match=f"^--part {part} is none of 0/N, 1/N, .., N-1/N$"):
        parse_part(part)
    assert parse_part("2/3") == (2, 3)


def test_standard_input_and_overwrite_are_not_for_parts(text, tmp_path):
    with pytest.raises(ValueError, match="^--part needs input that can be read again, which - cannot$"):
        prepare(["-"], str(tmp_path / "out"), part=(0, 2))
    with pytest.raises(ValueError, match="^--overwrite is not for one --part of the work: delete .*/out first$"):
        prepare([text], str(tmp_path / "out"), part=(0, 2), overwrite=True)


def test_deduplication_keeps_the_first_of_equal_documents(text, tmp_path):
    first = Path(text).read_text().split("\n\n")[:40]
    (tmp_path / "a.txt").write_text("\n\n".join([*first, first[3], "AB ab", first[20].replace(" ", "\n")]))
    (tmp_path / "b.txt").write_text("\n\n".join([first[39], "one more", first[7]]))
    (tmp_path / "once.txt").write_text("\n\n".join([*first, "AB ab", "one more"]))
    inputs = [str(tmp_path / name) for name in ("a.txt", "b.txt")]
    once = prepare([str(tmp_path / "once.txt")], str(tmp_path / "once"), workers=1, **OPTIONS)
    options = dict(vocabulary=str(tmp_path / "once"), tokens_per_sample=32, shards=3, valid_fraction=0.1)
    manifest = prepare(inputs, str(tmp_path / "out"), workers=1, deduplicate=True, **options)
    assert found(manifest.dropped) == {"duplicate_documents": 4}
    assert manifest.splits == once.splits  # sha256 of the blocks included
    manifest = prepare(inputs, str(tmp_path / "all"), workers=1, **options)
    assert sum(split.documents for split in manifest.splits.values()) == 46


def test_documents_too_long_to_hold_are_kept(text, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "LONGEST_COMPARED", 60)
    words = " ".join(Path(text).read_text().split()[:200])
    (tmp_path / "a.txt").write_text("\n\n".join([words, words, "ab cd", "ab cd"]))
    manifest = prepare([str(tmp_path / "a.txt")], str(tmp_path / "out"), deduplicate=True, workers=1, vocab_size=100)
    assert manifest.dropped["duplicate_documents"] == 1
    assert sum(split.documents for split in manifest.splits.values()) == 3


def test_seen_documents_are_told_apart_and_take_nine_bytes_each():
    seen = SeenDocuments()
    documents = ([b"ab", b"c"], [b"abd"], [b"a", b"bc"], [b"abd"])
    assert [seen.add(parts) for parts in documents] == [True, True, False, False]
    seen.buckets = seen.buckets[:1] * (1 << 16)  # one that is as long as all are with 65,536 times as many documents
    assert all(seen.add([number.to_bytes(4, "big")]) for number in range(20_000))
    assert not any(seen.add([number.to_bytes(4, "big")]) for number in range(20_000))
    assert 8 * 20_000 < sys.getsizeof(seen.buckets[0]) < 9 * 20_000


HOSTILE = {
    "one line": (b"abcd efgh ", {"long_lines_split": 1}),
    "no space": (b"abcdefghij", {"long_lines_split": 1}),
    "NULs": (b"ab cd ef" + b"ab cd ef" * 30 + b"\0", {"nul_characters": None, "long_lines_split": 1}),
    "invalid": (b"ab cd ef" + b"ab cd ef" * 30 + b"\xff", {"invalid_utf8_bytes": None, "long_lines_split": 1}),
    "blank": (b"\n", {}),
}


@pytest.mark.soak
@pytest.mark.parametrize("name", HOSTILE)
def test_100_MB_of_hostile_text_take_less_than_half_a_gigabyte(name, tmp_path):
    unit, counted = HOSTILE[name]
    times = 100_000_000 // len(unit)
    (tmp_path / "a.txt").write_bytes(b"first document ab\n\nsecond one cd\n\n" + unit * times)
    program = (
        "import sys, resource, amos_fairseq.data.preparation as p; "
        "p.prepare([sys.argv[1]], sys.argv[2], workers=1, vocab_size=24, vocabulary_sample=10**7, deduplicate=True, "
        "encoding='utf-8'); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    command = [sys.executable, "-c", program, tmp_path / "a.txt", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 500_000  # KB
    repaired = read_manifest(tmp_path / "out").repaired
    for key, count in repaired.items():
        assert count == (counted[key] or times if key in counted else 0), key
