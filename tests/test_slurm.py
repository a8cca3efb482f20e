"""LAUNCHER=slurm on a real Slurm: one machine is the whole cluster (see slurm_cluster.sh)."""

import contextlib
import os
import re
import shutil
import subprocess
import time

import pytest
from conftest import ROOT, TINY_RUNS, made, noted, read_csv, run_all, taking_notes

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch")
FOUND = [shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin") for name in PROGRAMS]
pytestmark = pytest.mark.skipif(not all(FOUND), reason="no Slurm to start: apt-get install slurm-wlm munge")


@contextlib.contextmanager
def running(folder, gpus=0):
    script = ["bash", ROOT / "tests" / "slurm_cluster.sh"]
    with pytest.MonkeyPatch.context() as patch:
        try:
            subprocess.run([*script, "start", folder, str(gpus)], check=True)
            patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
            yield
            subprocess.run(["scancel", "--user", str(os.getuid())], check=True)
        finally:
            subprocess.run([*script, "stop", folder], check=True)


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory):
    with running(tmp_path_factory.mktemp("cluster")):
        yield


def shell(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def job(number):
    """What Slurm knows of a job, or of a task `job_index`."""
    return dict(re.findall(r"(\w+)=(\S*)", shell("scontrol", "show", "job", number)))


def state(number):
    return job(number)["JobState"]


def wait_for(what, seconds=120):
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, shell("squeue")
        time.sleep(0.1)


def submit(where, *arguments, **environment):
    """Numbers of the four jobs: score, subset, imp, plot."""
    done = run_all(*arguments, cwd=where, LAUNCHER="slurm", **TINY_RUNS | environment)
    assert done.returncode == 0, done.stderr
    return re.search(r"scancel ([\d ]+) stops", done.stdout)[1].split()


def log(where, name):
    """What a task of the last submission said."""
    paths = sorted(where.glob(f"*/digits/logs/*/{name}.log"))
    return paths[-1].read_text() if paths else ""


def in_the_middle(where, task):
    """The task has finished a level since it was last started, and is at work on another."""
    said = log(where, f"imp-{task}").rpartition("$ ")[2]
    return re.search(r"^my runs/.*%", said, re.M) and not re.search(r"^my runs/.*csv$", said, re.M)


def go_on(task):
    """A requeued task waits out a delay of minutes; not here."""
    wait_for(lambda: state(task) == "PENDING")
    shell("scontrol", "update", f"job={task}", "StartTime=now")


def test_interrupted_in_every_way_it_gives_what_the_local_way_gives(demonstration, tmp_path):
    """Three tasks of two runs: one is told that its time ends, one requeued, one cancelled. Then again."""
    where, (local, _) = tmp_path / "a folder", demonstration
    where.mkdir()
    figure = {"RUNS": "my runs/digits", "NOISE": 50}  # half of the demonstration
    *_, imp, plot = submit(where, "digits", "fig3", JOBS=3, **figure)
    assert (state(imp), state(plot)) == ("PENDING", "PENDING")

    wait_for(lambda: in_the_middle(where, 0))
    shell("scancel", "--signal=USR1", "--batch", f"{imp}_0")  # what Slurm does 120 s before the time limit
    wait_for(lambda: in_the_middle(where, 1))
    shell("scontrol", "requeue", f"{imp}_1")
    wait_for(lambda: in_the_middle(where, 2))
    shell("scancel", f"{imp}_2")
    wait_for(lambda: state(f"{imp}_2") == "CANCELLED")
    interrupted = f"{imp}_0", f"{imp}_1"
    for task in interrupted:
        assert state(plot) == "PENDING"
        go_on(task)
    wait_for(lambda: [state(task) for task in interrupted] == ["COMPLETED"] * 2)
    assert [job(task)["Restarts"] for task in interrupted] == ["1", "1"]
    for task in range(3):
        assert log(where, f"imp-{task}").count("imp.py: stopped by SIGTERM") == 1
    wait_for(lambda: state(plot) == "COMPLETED")  # drawn of what there is
    runs = where / "my runs" / "digits"
    assert 4 <= len(list(runs.glob("*/seed0/level02.safetensors"))) < 6

    # Again: only what the cancelled task had left. It is preempted by a job of a more important partition.
    finished = {path: path.stat().st_mtime_ns for path in runs.rglob("level*.safetensors")}
    *_, imp, plot = submit(where, "digits", "fig3", JOBS=1, **figure)
    wait_for(lambda: in_the_middle(where, 0))
    shell("sbatch", "--partition=urgent", "--ntasks=2", "--output=/dev/null", "--wrap=sleep 1")
    go_on(f"{imp}_0")
    wait_for(lambda: state(plot) == "COMPLETED")
    assert job(f"{imp}_0")["Restarts"] == "1"
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert "test accuracy in %" in log(where, "plot-0")

    found, expected = made(runs), made(local / "my runs" / "digits")
    assert len(list(runs.glob("*/seed0/level02.safetensors"))) == 6
    assert found == {name: expected[name] for name in found}
    drawn, everything = (read_csv(place / "figures" / "digits" / "summary.csv") for place in (where, local))
    assert len(drawn) == 6 * 3  # curves, levels
    assert all(row in everything for row in drawn)


def test_a_second_submission_waits_for_the_first(tmp_path):
    first = submit(tmp_path)
    for last in (False, True):  # the third waits for the first, too, when the second is gone
        later = submit(tmp_path)
        assert job(later[0])["Dependency"] == ",".join(f"afterany:{n}_*(unfulfilled)" for n in first)
        shell("scancel", *(first if last else later))
    wait_for(lambda: state(later[0]) == "RUNNING")
    shell("scancel", *later)


def test_a_refused_submission_leaves_nothing_in_the_queue(tmp_path):
    before = set(shell("squeue", "-h", "-o", "%F").split())
    many = {"SEEDS": "0 1", "JOBS": 24}  # this cluster takes arrays of 16
    done = run_all(cwd=tmp_path, LAUNCHER="slurm", **TINY_RUNS | many)
    assert done.returncode == 1
    assert "sbatch: error" in done.stderr
    assert len(re.findall("^# sbatch", done.stdout, re.M)) == 3  # two had been accepted
    wait_for(lambda: set(shell("squeue", "-h", "-o", "%F").split()) <= before)


def test_where_there_are_gpus_every_task_gets_one(tmp_path):
    """Runs share a GPU, drawing needs none, what fails leaves the others; by a Python that takes notes."""
    settings = {"PYTHON": taking_notes(tmp_path), "SEEDS": "0 1", "BREAKS": "pretrain.py*all-t0/seed0",
                "SLEEP": 3, "SBATCH_FLAGS": "--cpus-per-task=1"}  # fmt: skip - of two, at the same time
    with running(tmp_path / "cluster", gpus=2):
        *_, imp, plot = submit(tmp_path, "cifar10", **settings)
        wait_for(lambda: state(plot) == "COMPLETED")
        assert [state(f"{imp}_{task}") for task in (0, 1)] == ["FAILED", "COMPLETED"]
    (failed,) = tmp_path.glob("runs/cifar10/logs/*/failed")
    assert re.search(r"^status 1 from .*all-t0/seed0/.*\n\S+/imp-0.log", failed.read_text())
    notes = noted(tmp_path)
    pruned = [note for note in notes if "imp.py" in note[2]]
    assert sorted(gpu for gpu, *_ in pruned) == ["0", "1"]
    assert sorted(words.count("rewind.safetensors") for *_, words in pruned) == [5, 6]
    for gpu, _, words in pruned:  # a task makes the starting points of its runs
        starts = {note[2].split()[-1] for note in notes if "pretrain.py" in note[2] and note[0] == gpu}
        assert starts >= {word for word in words.split() if "rewind" in word}
    for gpu, threads, words in notes:
        trains = re.search("score_el2n|pretrain|imp", words) is not None
        assert (gpu != "none", threads == "free") == (trains, trains)
