"""The Slurm scripts: what they start with which numbers, and when a job goes back into the queue."""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLES = REPOSITORY / "examples"
RECIPES = sorted(str(path.relative_to(EXAMPLES).with_suffix("")) for path in EXAMPLES.glob("*/*.yaml"))


def dry_run(cluster, script, *arguments, **environment):
    done = cluster.run(script, *arguments, DRY_RUN="1", **environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1
    command = shlex.split(done.stdout)
    assert cluster.calls()[-1]["arguments"] == [*command[command.index("amos-fairseq") + 1 :], "--dry-run"]
    return command


@pytest.mark.parametrize("nodes, update_freq", [(1, 2), (2, 1)])
def test_a_dry_run_prints_the_command_of_the_paper_on_any_number_of_nodes(cluster, nodes, update_freq):
    here = cluster.folder
    assert dry_run(cluster, "pretrain_base.sh", "common.seed=2", **cluster.job(nodes)) == [
        "srun", "--nodes", f"{nodes}", "--ntasks", f"{8 * nodes}", "--ntasks-per-node", "8", "--distribution", "block",
        "--kill-on-bad-exit=0", "--wait=600", "--cpus-per-task", "4",
        "bash", "-c", 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec "$@"', "task",
        "amos-fairseq", "train", "--config-dir", f"{here}/examples/amos_rtd", "--config-name", "base", "common.seed=2",
        f"task.data={here}/data", f"checkpoint.save_dir={here}/runs/amos_rtd-base",
        f"hydra.run.dir={here}/runs/amos_rtd-base",
        "dataset.batch_size=128", f"optimization.update_freq=[{update_freq}]",
        f"distributed_training.distributed_world_size={8 * nodes}",
    ]


def test_without_slurm_the_command_runs_under_torchrun(cluster):
    command = dry_run(cluster, "pretrain.sh", "coco_lm/large_plus_plus", CUDA_VISIBLE_DEVICES="0,1,2,3")
    assert command[:5] == ["torchrun", "--nproc-per-node", "4", "--no-python", "--master-port"]
    assert "optimization.update_freq=[32]" in command and "--config-name large_plus_plus" in " ".join(command)
    command = dry_run(cluster, "pretrain_base.sh", CUDA_VISIBLE_DEVICES="0")
    assert command[:2] == ["amos-fairseq", "train"] and "optimization.update_freq=[16]" in command


def test_a_dry_run_needs_no_gpu_no_data_and_ends_as_its_checks_do(cluster):
    shutil.rmtree(cluster.folder / "data")
    command = dry_run(cluster, "pretrain.sh", "coco_lm/large_plus_plus", CUDA_VISIBLE_DEVICES="")
    assert command[:3] == ["torchrun", "--nproc-per-node", "8"]
    cluster.behaves("exit 64")
    assert cluster.run("pretrain.sh", "bert_mlm/base", "common.sed=2", DRY_RUN="1").returncode == 64


@pytest.mark.parametrize("recipe", RECIPES)
def test_on_8_gpus_every_recipe_has_its_own_update_freq(cluster, recipe):
    text = (EXAMPLES / f"{recipe}.yaml").read_text()
    own = re.search(r"update_freq: (\[\d+\])", text)[1]
    assert f"optimization.update_freq={own}" in dry_run(cluster, "pretrain.sh", recipe, **cluster.job())


@pytest.mark.parametrize(
    "arguments, job, update_freq",
    [
        (["dataset.batch_size=16"], dict(nodes=1), 16),
        (["dataset.batch_size=64", "dataset.batch_size=128"], dict(nodes=2), 1),
        ([], dict(nodes=4, gpus=2), 2),
        ([], dict(nodes=1, gpus=1), 16),
    ],
)
def test_the_sequences_per_update_stay_for_any_layout(cluster, arguments, job, update_freq):
    command = dry_run(cluster, "pretrain_base.sh", *arguments, **cluster.job(**job))
    assert f"optimization.update_freq=[{update_freq}]" in command


def test_the_sequences_per_update_can_be_chosen(cluster):
    command = dry_run(cluster, "pretrain_base.sh", **cluster.job(), TARGET_BATCH="512")
    assert {"optimization.update_freq=[1]", "dataset.batch_size=64"} <= set(command)


def test_more_gpus_than_a_recipe_is_for_take_smaller_batches(cluster):
    command = dry_run(cluster, "pretrain_base.sh", **cluster.job(nodes=4))
    assert {"optimization.update_freq=[1]", "dataset.batch_size=64"} <= set(command)


BAD = {
    "unknown recipe": (["amos"], {}, f"unknown recipe 'amos': choose one of {' '.join(RECIPES)}"),
    "no recipe": ([], {}, f"unknown recipe '': choose one of {' '.join(RECIPES)}"),
    "no data": (
        ["bert_mlm/base", "task.data=text"], {},
        "{here}/text holds no prepared data: task.data=FOLDER names it, amos-fairseq prepare writes it",
    ),
    "batch": (
        ["bert_mlm/base"], dict(SLURM_NTASKS_PER_NODE="6", SLURM_GPUS_ON_NODE="6"),
        "6 processes x dataset.batch_size=128 do not divide 2048 sequences per update: "
        "choose other numbers, or TARGET_BATCH=N",
    ),
    "batch too large": (
        ["bert_mlm/base", "dataset.batch_size=512"], {},
        "8 processes x dataset.batch_size=512 do not divide 2048 sequences per update: "
        "choose other numbers, or TARGET_BATCH=N",
    ),
    "update_freq": (
        ["bert_mlm/base", "optimization.update_freq=[4]"], {},
        "leave out optimization.update_freq: the sequences per update give it, TARGET_BATCH=N changes these",
    ),
    "no GPU": (
        ["bert_mlm/base"], dict(SLURM_GPUS_ON_NODE="0"),
        "no GPU found on {host}: ask for some by sbatch --gpus-per-node=N",
    ),
    "tasks": (
        ["bert_mlm/base"], dict(SLURM_GPUS_ON_NODE="4"),
        "8 tasks per node but 4 GPUs: sbatch --gpus-per-node=N --ntasks-per-node=N has one for each",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_one_line_before_anything_runs(cluster, case):
    arguments, environment, message = BAD[case]
    done = cluster.run("pretrain.sh", *arguments, **{**cluster.job(), **environment})
    host = subprocess.run(["hostname"], capture_output=True, text=True).stdout.strip()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {message.format(here=cluster.folder, host=host)}\n"
    assert cluster.calls() == []


def test_a_missing_installation_is_one_line(cluster):
    done = cluster.run("pretrain_base.sh", **cluster.job(), PATH="/usr/bin:/bin")
    assert done.returncode == 2
    assert done.stderr == "error: amos-fairseq is not on PATH: activate the environment that it is installed in\n"


def test_shards_are_data(cluster):
    for shard in ("data0", "data1"):
        (cluster.folder / "data" / shard).mkdir()
    data = f"{cluster.folder}/data/data0:{cluster.folder}/data/data1"
    assert f"task.data={data}" in dry_run(cluster, "pretrain_base.sh", f"task.data={data}", **cluster.job())


@pytest.mark.parametrize("nodes, gpus", [(1, 2), (2, 2)])
def test_every_task_knows_its_rank_and_where_to_meet(cluster, nodes, gpus):
    done = cluster.run("pretrain_base.sh", **cluster.job(nodes, gpus, number=987654))
    assert (done.returncode, done.stderr, cluster.requeued) == (0, "", [])
    calls = cluster.calls()
    assert [call["RANK"] for call in calls] == [str(rank) for rank in range(nodes * gpus)]
    assert [call["LOCAL_RANK"] for call in calls] == [str(rank % gpus) for rank in range(nodes * gpus)]
    for call in calls:
        assert (call["WORLD_SIZE"], call["MASTER_ADDR"]) == (str(nodes * gpus), "node1")
        assert call["MASTER_PORT"] == "27654"  # 20000 + the last four digits of the job's number
        assert call["arguments"] == calls[0]["arguments"]


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
@pytest.mark.parametrize("nodes", [1, 2])
def test_a_signal_reaches_all_tasks_and_the_job_is_requeued_until_it_is_done(cluster, nodes, number):
    job = cluster.job(nodes, gpus=2)
    for attempt in (1, 2):
        cluster.behaves(f"train {100 * attempt}")
        process = cluster.start("pretrain_base.sh", **job)
        status, err = cluster.stop(process, calls=attempt * nodes * 2, number=number)
        assert (status, err) == (0, "stopped: job 123456 goes back into the queue\n")
        assert cluster.requeued == ["123456"] * attempt
    cluster.behaves("exit 0")
    assert cluster.run("pretrain_base.sh", **job).returncode == 0
    assert len(cluster.calls()) == 3 * nodes * 2 and len(cluster.requeued) == 2


def test_an_attempt_without_progress_is_the_last(cluster):
    for attempt in (1, 2):
        cluster.behaves("train 100")
        process = cluster.start("pretrain_base.sh", **cluster.job(gpus=2))
        status, err = cluster.stop(process, calls=2 * attempt)
    assert status == 75 and cluster.requeued == ["123456"]
    assert err == "error: stopped, and not started again: this attempt got no further than the one before it\n"


def test_updates_are_compared_as_numbers(cluster):
    saved = cluster.folder / "runs" / "amos_rtd-base"
    for name in ("checkpoint_1_900", "checkpoint_2_9999.tmp", "checkpoint_last", "checkpoint_1_100.pt"):
        (saved / name).mkdir(parents=True)
    cluster.behaves("train 1000")
    cluster.stop(cluster.start("pretrain_base.sh", **cluster.job(gpus=1)), calls=1)
    assert cluster.requeued == ["123456"]
    (saved / "checkpoint_1_1000").rename(saved / "checkpoint_1_1000-2")  # a second one of the same update
    assert cluster.stop(cluster.start("pretrain_base.sh", **cluster.job(gpus=1)), calls=2)[0] == 75
    assert cluster.requeued == ["123456"]


@pytest.mark.parametrize("status", [1, 70, 137])
def test_a_run_that_lost_a_node_or_hung_is_requeued_until_an_attempt_gets_no_further(cluster, status):
    cluster.behaves(f"lose {status}")
    done = cluster.run("pretrain_base.sh", **cluster.job(gpus=2))
    assert (done.returncode, cluster.requeued) == (0, ["123456"])
    assert f"ended with status {status}: job 123456 goes back into the queue\n" in done.stderr
    cluster.behaves(f"exit {status}")
    done = cluster.run("pretrain_base.sh", **cluster.job(gpus=2))
    assert (done.returncode, cluster.requeued) == (status, ["123456"])
    assert f"error: ended with status {status}, and not started again: this attempt got no further" in done.stderr


@pytest.mark.parametrize("status", [64, 65])
def test_what_only_the_user_can_change_ends_the_job_even_after_progress(cluster, status):
    cluster.behaves(f"lose {status}")
    done = cluster.run("pretrain_base.sh", **cluster.job(gpus=2))
    assert (done.returncode, cluster.requeued) == (status, [])
    assert "not started again: starting it again would change nothing\n" in done.stderr


def test_a_job_ends_with_the_errors_of_its_processes(cluster):
    cluster.behaves("exit 1")
    err = cluster.run("pretrain_base.sh", **cluster.job(gpus=2)).stderr
    said, _, repeated = err.partition("error: ended with status 1, ")
    for text in (said, repeated):  # of two processes, whose lines may mix
        assert sorted(re.findall(r"ValueError: error of rank (\d)", text)) == ["0", "1"]


@pytest.mark.parametrize("full", [True, False])
def test_a_disk_error_ends_the_job_only_where_there_is_no_room_yet(cluster, full):
    (cluster.folder.parent / "bin" / "head").write_text(f"#!/bin/bash\nexit {int(full)}\n")
    (cluster.folder.parent / "bin" / "head").chmod(0o700)
    cluster.behaves("lose 74")
    done = cluster.run("pretrain_base.sh", **cluster.job(gpus=1))
    assert (done.returncode, cluster.requeued) == ((74, []) if full else (0, ["123456"]))
    assert full == (f"there is no room in {cluster.folder}/runs/amos_rtd-base\n" in done.stderr)
    assert not list(cluster.folder.rglob(".room"))


def test_a_port_that_is_taken_is_followed_by_another(cluster):
    cluster.behaves("taken 2")  # after the look for what listens
    first = 20_000 + os.getpid() % 10_000
    with socket.create_server(("localhost", first)):
        done = cluster.run("pretrain_base.sh", **cluster.job(gpus=1, number=first))
    assert done.returncode == 0, done.stderr
    ports = [int(call["MASTER_PORT"]) for call in cluster.calls()]
    assert first < ports[0] < ports[1] < ports[2] and cluster.requeued == []


def test_a_requeued_job_meets_at_another_port(cluster):
    cluster.run("pretrain_base.sh", **cluster.job(gpus=1, number=987654), SLURM_RESTART_COUNT="3")
    assert cluster.calls()[0]["MASTER_PORT"] == "27657"


def test_a_job_that_is_stopped_at_once_is_not_requeued(cluster):
    """Its processes die of the signal, since they do not listen yet."""
    (cluster.folder.parent / "bin" / "amos-fairseq").write_text(
        '#!/bin/bash\ntouch "$FAKE/call-0-$RANK"; echo {} > "$FAKE/call-0-$RANK"; exec sleep 900\n'
    )
    process = cluster.start("pretrain_base.sh", **cluster.job(gpus=2))
    while len(list(cluster.fake.glob("call-*"))) < 2:
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR2)
    assert "got no further" in process.communicate(timeout=900)[1]
    assert (process.returncode, cluster.requeued) == (140, [])


def test_torchrun_passes_signals_on_and_starts_again_until_done(cluster):
    pytest.importorskip("torch")
    arguments = ["common.cpu=true", "distributed_training.distributed_world_size=2"]
    cluster.behaves("train 100")
    process = cluster.start("pretrain_base.sh", *arguments)
    while len(cluster.calls()) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    cluster.behaves("exit 0")  # of the second attempt
    status, err = cluster.stop(process, calls=2)
    assert status == 0 and "stopped: the same command goes on\n" in err
    calls = cluster.calls()
    assert [call["RANK"] for call in calls] == ["0", "1", "0", "1"]
    assert {call["WORLD_SIZE"] for call in calls} == {"2"}
    cluster.behaves("exit 3")
    assert cluster.run("pretrain_base.sh", *arguments).returncode == 3  # torchrun's word for any failure is 1


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_ctrl_c_on_a_plain_machine_ends_a_run_that_has_saved(cluster, processes, number):
    """The terminal signals all of its group at once, of which torchrun, impatient, is none."""
    cluster.behaves("train 100")
    words = ["common.cpu=true", f"distributed_training.distributed_world_size={processes}"]
    process = cluster.start("pretrain_base.sh", *words)
    while len(cluster.calls()) < processes:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    os.killpg(process.pid, number)
    process.communicate(timeout=900)
    saved = cluster.folder / "runs/amos_rtd-base/checkpoint_1_100"
    assert (process.returncode, len(cluster.calls()), saved.is_dir()) == (75, processes, True)


def test_one_process_without_slurm_is_started_again_until_done(cluster):
    cluster.behaves("train 100")
    process = cluster.start("pretrain_base.sh", "common.cpu=true")
    while not cluster.calls():
        time.sleep(0.02)
    cluster.behaves("exit 0")
    status, err = cluster.stop(process, calls=1)
    assert (status, err) == (0, "stopped: the same command goes on\n")
    assert [call["RANK"] for call in cluster.calls()] == [None, None]


def test_fine_tuning_takes_its_arguments_through_on_one_gpu(cluster):
    arguments = ["glue", "--task", "RTE", "--out", "fine tuned"]
    done = cluster.run("finetune.sh", *arguments, **cluster.job(gpus=1))
    assert (done.returncode, done.stderr) == (0, "")
    (call,) = cluster.calls()
    assert call["arguments"] == ["finetune", *arguments] and call["WORLD_SIZE"] == "1"


def array(task, count=4):
    first = 1
    return {
        "SLURM_JOB_ID": str(500 + task), "SLURM_ARRAY_TASK_ID": str(first + task), "SLURM_ARRAY_TASK_COUNT": str(count),
        "SLURM_ARRAY_TASK_MIN": str(first), "SLURM_ARRAY_TASK_MAX": str(first + count - 1), "SLURM_CPUS_PER_TASK": "32",
        "SLURM_SUBMIT_DIR": ".",
    }


@pytest.mark.parametrize("task", [0, 3])
def test_a_task_of_an_array_prepares_its_part(cluster, task):
    done = cluster.run("prepare.sh", "text", "--out", "data", **array(task))
    assert (done.returncode, done.stderr) == (0, "")
    (call,) = cluster.calls()
    assert call["arguments"] == ["prepare", "text", "--out", "data", "--workers", "32", "--part", f"{task}/4"]


def test_preparation_without_an_array_is_whole(cluster):
    done = cluster.run("prepare.sh", "text", "--out", "data", SLURM_JOB_ID="7", SLURM_CPUS_PER_TASK="3")
    assert done.returncode == 0, done.stderr
    assert cluster.calls()[0]["arguments"] == ["prepare", "text", "--out", "data", "--workers", "3"]


def test_an_array_with_gaps_is_refused(cluster):
    done = cluster.run("prepare.sh", "text", "--out", "data", **{**array(0), "SLURM_ARRAY_TASK_MAX": "9"})
    assert (done.returncode, done.stderr) == (2, "error: the array has gaps: use sbatch --array=0-3\n")


@pytest.mark.parametrize("out", [["--out", "data"], ["--out=data"]])
def test_a_stopped_preparation_is_requeued_if_it_encoded_more(cluster, out):
    (cluster.folder.parent / "bin" / "amos-fairseq").write_text(
        '#!/bin/bash\nmkdir -p data.partial/encoded; touch data.partial/encoded/000000.npz\n'
        'echo {} > "$FAKE/call-$$-0"; exec sleep 900\n'
    )
    for attempt, status in ((1, 0), (2, 140)):
        process = cluster.start("prepare.sh", "text", *out, **array(0))
        assert cluster.stop(process, calls=attempt)[0] == status
    assert cluster.requeued == ["500"]


@pytest.mark.parametrize("script", ["pretrain_base", "pretrain", "finetune", "prepare"])
def test_jobs_ask_for_the_signal_in_time_and_for_one_task_per_gpu(script):
    lines = (REPOSITORY / "slurm" / f"{script}.sh").read_text().splitlines()
    asked = dict(line.removeprefix("#SBATCH --").partition("=")[::2] for line in lines if line.startswith("#SBATCH"))
    assert asked["signal"] in ("B:USR2@600", "B:USR2@300", "B:USR2@60")
    assert {"requeue", "open-mode"} <= set(asked)  # a requeued job appends to its log
    if "gpus-per-node" in asked:
        assert asked["gpus-per-node"] == asked["ntasks-per-node"]


def test_shellcheck_finds_nothing():
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    scripts = sorted((REPOSITORY / "slurm").glob("*.sh"))
    done = subprocess.run(["shellcheck", "-x", *scripts], cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    assert len(scripts) == 5
