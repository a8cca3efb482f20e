"""run_all.sh: what each figure runs, the whole chain at a tiny scale, and once on a real Slurm."""

import contextlib
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import ROOT, TINY_RUNS, made, noted, read_csv, run_all, taking_notes


def plan(tmp_path, *arguments, **environment):
    """Comments and commands of a dry run, one a line; it makes nothing."""
    done = run_all(*arguments, cwd=tmp_path, DRY_RUN=1, **environment)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())
    lines = []
    for line in done.stdout.splitlines():
        lines += [line] if line.startswith("#") else line.split("\t")[3:]
    return lines


def outputs(line):
    """The starting points that a pretrain.py makes."""
    return re.findall(r"\S+/rewind\.safetensors", line.partition(" --out ")[2])


def calling(lines, stage):
    return [line for line in lines if f"{stage}.py" in line]


def settings(lines):
    """Run folders that are pre-trained, and how many replicates each has."""
    paths = [path for line in calling(lines, "pretrain") for path in outputs(line)]
    folders = [path.split("/")[-3] for path in paths]
    return {name: folders.count(name) for name in folders}


def pruned(lines):
    """The starting points of every imp.py."""
    return [re.findall(r"\S+/rewind\.safetensors", line) for line in calling(lines, "imp")]


INPUTS = r" (?:--scores|--subset) ((?:(?!--)\S+ )+)"


@pytest.mark.parametrize("arguments", ["digits", "cinic10 fig6", "digits controls"])
def test_what_a_wave_reads_was_made_by_one_before(tmp_path, arguments):
    done = run_all(*arguments.split(), cwd=tmp_path, DRY_RUN=1)
    tasks = [line.split("\t") for line in done.stdout.splitlines() if not line.startswith("#")]
    waves = list(dict.fromkeys(wave for wave, *_ in tasks))  # in the order of launch.sh
    data = ["data"] if "cinic10" in arguments else []
    control = ["control", "connect"] if "controls" in arguments else []
    assert waves == [*data, "score", "subset", "imp", *control, "plot"]
    made = set()
    for wave in waves:
        commands = [c for name, _, _, *commands in tasks if name == wave for c in commands]
        for words in (words for command in commands for words in re.findall(INPUTS, command)):
            assert made.issuperset(words.split())
        made |= {c.split()[-1] for c in commands}


@pytest.mark.parametrize(
    ("arguments", "count", "scores"),
    [
        ("digits", 3 + 4 + 2 + 3, 2),  # clean labels, and noisy ones without hard examples
        ("digits fig5", 3 + 4 * 4, 1),
        ("cifar10-small", 3 + 4, 1),
        ("cifar10-small fig3", 1 + 2 * (2 + 3), 2),
        ("cifar10", 6, 1),
        ("cifar10 fig3", 1 + 2 * 4, 2),
        ("cifar10 fig5", 3 + 8 * 3, 1),
        ("cifar100 fig5", 3 + 6 * 3, 1),
        ("cinic10 fig6", 4 + 9 + 12, 1),
        ("cifar10 fig7", 1 + 2 * (2 + 8), 2),
        ("cifar10 tstar", 1 + 5 * 3, 0),
        ("cifar10-small tstar", 1 + 4, 0),
        ("digits stability", 3 + 4, 1),
        ("cifar10-small stability", 3 + 4, 1),
        ("cifar10 stability", 6, 1),
        ("cinic10 stability", 6, 1),
    ],
)
def test_every_figure_has_its_settings(tmp_path, arguments, count, scores):
    lines = plan(tmp_path, *arguments.split())
    assert len(settings(lines)) == count
    replicates = {"digits": 15, "cifar10-small": 6}.get(arguments.split()[0], 4)
    assert set(settings(lines).values()) == {replicates}
    starts = [path for line in calling(lines, "pretrain") for path in outputs(line)]
    assert len(calling(lines, "score_el2n")) == scores
    assert calling(lines, "plot") == lines[-1:]
    for second in (False, "stability" in arguments):  # also in a second order, dense
        runs = [line for line in calling(lines, "imp") if ("--masks" in line) == second]
        assert [run for task in pruned(runs) for run in task] == starts  # every run is in one task
        assert not second or all(
            "--levels 0" in line and "--order-seed 1000" in line for line in runs
        )


def test_what_a_run_is_called_with(tmp_path):
    """The paper's settings; steps and sizes of one's own.

    Flags do not change what a folder is named for.
    """
    lines = plan(tmp_path, "cifar10", "fig7", SEEDS="3")
    (line,) = [x for x in calling(lines, "pretrain") if "easy-2048-t200-noise50/seed3" in x]
    for words in ("--steps 200", "--seed 3", "--label-noise 0.50", "subsets/easy-2048-noise50.npy"):
        assert words in line
    assert any("--label-noise 0.50 --out runs/cifar10/el2n-noise50.npy" in x for x in lines)
    lines = plan(tmp_path, "cifar10", "fig7", SEEDS="0", T_STAR="6", SIZES="8 20")
    names = ("all-t3", "all-t6", "random-8-t3", "easy-8-t3", "random-20-t3", "easy-20-t3")
    assert settings(lines).keys() == {
        "all-t0",
        *(f"{name}-noise{n}" for n in (10, 50) for name in names),
    }
    lines = plan(tmp_path, "cifar10", "tstar", SEEDS="0", FLAGS="--steps 9 --pretrain-lr 0.05")
    for line in (line for line in calling(lines, "pretrain") if "all-t0" not in line):
        named = re.search(r"-t(\d+)(?:-lr([\d.]+))?/seed0", line)
        assert re.findall(r"--steps (\d+)", line)[-1] == named[1]  # the last one counts
        assert re.findall(r"--pretrain-lr ([\d.]+)", line)[-1] == (named[2] or "0.4")


def test_the_cost(tmp_path):
    """Steps of figure 2: scoring, and of every run pre-training and the rest of each training."""
    few = TINY_RUNS | {"LEVELS": "", "IMP_FLAGS": "--save-every 9 --levels=3"}
    for name, runs, trainings, steps, more in (
        ("cifar10", 6, 17, 10 * 7800 + 6 * 17 * 62400 - 16 * (400 + 4 * 200), {}),
        ("cifar100", 6, 17, 10 * 7800 + 6 * 17 * 62400 - 16 * (800 + 4 * 400), {}),
        ("cinic10", 6, 13, 10 * 8000 + 6 * 13 * 31250 - 12 * (800 + 4 * 400), {}),
        ("cifar10-small", 7, 6, 4 * 1500 + 7 * 6 * 1500 - 5 * (100 + 5 * 50), {}),
        ("digits", 12, 6, 2 * 8 * 100 + 12 * 6 * 160 - 5 * (2 * 20 + 9 * 10), {}),
        ("digits", 12, 4, 2 * 2 * 5 + 12 * 4 * 150 - 3 * (2 * 20 + 9 * 10), few),
    ):
        first, second, *_ = plan(tmp_path, name, **{"SEEDS": "7"} | more)
        assert f" {runs} starting points of {trainings} trainings" in first
        assert f" {steps} training steps" in second


def test_flags_go_to_the_stages_that_they_are_named_for(tmp_path):
    more = {"DATA_FLAGS": "--d 1", "SUBSET_FLAGS": "--s 2", "SEEDS": "0 1"}
    lines = plan(tmp_path, "cifar10", **more)[2:]
    stages = ("dataset", "score_el2n", "make_subset", "pretrain")
    for line in lines:  # the others know it from the starting points, or read no images
        assert ("--d 1" in line) == any(f"{stage}.py" in line for stage in stages)
    assert calling(lines, "make_subset") == [line for line in lines if "--s 2" in line]


def test_one_call_makes_all_seeds_of_a_curve(tmp_path):
    """On a GPU that takes eight runs: two curves; random subsets are one for each seed."""
    done = run_all("cifar10", cwd=tmp_path, DRY_RUN=1, SLOTS="gpu 1")
    tasks = [line.split("\t")[3:] for line in done.stdout.splitlines() if line[:4] == "imp\t"]
    assert [len(commands) for commands in tasks] == [3] * 3
    calls = [command for commands in tasks for command in commands[:-1]]
    assert all(re.search(r"--seed 0 1 2 3 --out( \S+/seed\d/rewind\S+){4}$", c) for c in calls)
    given = [re.search(r"--subset ((?:\S+npy )+)", c) for c in calls]
    assert [match and match[1].count(".npy") for match in given] == [None, None, None, 4, 1, 1]


def test_new_weights_have_seeds_that_are_no_replicates(tmp_path):
    lines = plan(tmp_path, "digits", "controls", SEEDS="0 1000 1 1001 2001")
    seeds = {
        tuple(re.search(r"--seed ([\d ]+) --out", line)[1].split())
        for line in calling(lines, "pretrain")
        if "-reinit/" in line
    }
    assert seeds == {("1002", "2000", "1003", "2002", "3001")}


def test_planning_is_quick(tmp_path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    plan(tmp_path, "cifar10", "fig5")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5


@pytest.mark.parametrize(
    "words",
    [
        "imagenet",
        "cifar10 fig9",
        "digits fig7",
        "cifar100 fig6",
        "cinic10 fig5",
        "cifar10 fig2 more",
        "JOBS=0",
        "JOBS=-1",
        "JOBS=x",
        "LEVELS=many",
        "LEVELS=-1",
        "LEVELS=08",
        "LEVELS=9999999999999",
        "WIDTH=0",
        "LAUNCHER=pbs",
        "NOISE=half",
        "SEEDS=0,1",
        "SIZES=1k",
        "T_STAR=5",
        "T_STAR=0",
        "PYTHON=none",
        "SEEDS=07",  # an octal number to bash
        "SLOTS=many",
    ],
)
def test_bad_arguments_and_settings_are_one_line(tmp_path, words):
    environment = dict(re.findall(r"(\w+)=(\S+)", words))
    done = run_all(
        *(word for word in words.split() if "=" not in word), cwd=tmp_path, **environment
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert words.split()[-1].split("=")[0] in done.stderr
    assert not list(tmp_path.iterdir())


def test_slurm_takes_no_path_that_is_a_pattern(tmp_path):
    done = run_all(cwd=tmp_path, LAUNCHER="slurm", DRY_RUN=1, RUNS="50%/runs")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "50%/runs/logs" in done.stderr


def test_the_demonstration_at_a_tiny_scale(demonstration, tmp_path):
    """The chain in a folder with a space. That nothing is done twice, Slurm's test looks at."""
    (where, said), lines = demonstration, plan(tmp_path, **TINY_RUNS)
    count = len(settings(lines))
    done = re.findall(rf"^== imp: (\d+) of {count} done after \d+ minutes$", said, re.M)
    assert done == [str(n) for n in range(1, count + 1)]
    assert "test accuracy in %, mean ? standard deviation" in said  # a terminal without UTF-8
    assert (where / "figures" / "digits" / "digits.png").exists()
    runs = where / "my runs" / "digits"
    assert len(list(runs.glob("*/seed0/level02.safetensors"))) == count
    assert len([*runs.glob("logs/*/*.log")]) == sum(" --out " in line for line in lines)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_stopping_it_leaves_no_orphans(tmp_path, how):
    environment = os.environ | {
        "PYTHON": sys.executable,
        "SEEDS": "0",
        "SCORE_FLAGS": "--networks 500",
    }
    process = subprocess.Popen(
        ["bash", ROOT / "run_all.sh"],
        env=environment,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # In the background pytest ignores SIGINT, under nohup SIGHUP; bash cannot trap these then.
        preexec_fn=lambda: signal.signal(how, signal.SIG_DFL),
    )
    wait_for(lambda: list(tmp_path.glob("runs/digits/el2n.networks.*")))
    process.send_signal(how)
    assert process.wait(30) == 128 + how
    assert process.stderr.read().count("\n") == 1
    for pid in subprocess.run(
        ["pgrep", "-f", str(ROOT)], capture_output=True, text=True
    ).stdout.split():
        assert os.path.realpath(f"/proc/{pid}/cwd") != str(tmp_path)
    (log,) = tmp_path.glob("runs/digits/logs/*/score-0.log")
    assert "stopped by SIGTERM" in log.read_text()


@pytest.fixture
def fake(tmp_path):
    settings = {"PYTHON": taking_notes(tmp_path), "SEEDS": "0 1"}
    return lambda name="cifar10", **more: run_all(name, cwd=tmp_path, **settings | more)


@pytest.mark.parametrize(
    ("name", "devices", "jobs", "each"),
    [
        ("cifar10", "0", "", [8, 8, 8]),
        ("cifar10", "0,1,2,3,4,5,6,7", "", [3] * 8),
        ("cifar10", "GPU-5c, MIG-7f", "", [6] * 4),
        ("cifar10", "4,5", 5, [5] * 4 + [4]),  # 5 tasks share 2 GPUs
        ("cifar10", "", 2, [1] * 24),
        ("cifar10", "-1", 3, [1] * 24),
        ("cifar10", "NoDevFiles", 3, [1] * 24),  # what Slurm says where there are none
        ("digits", "", 2, [4] * 12),
    ],
)
def test_a_task_has_up_to_eight_runs_and_a_gpu_or_one_thread(
    fake, tmp_path, name, devices, jobs, each
):
    """As many for every GPU.

    Without one, a run or, of the demonstration, a setting with its replicates.
    """
    seen = len(re.findall(r"\b(\d+|GPU-\w+|MIG-\w+)\b", devices.replace("-1", "")))
    done = fake(name, SEEDS="0 1 2 3", CUDA_VISIBLE_DEVICES=devices, JOBS=jobs, GPUS=seen)
    assert done.returncode == 0, done.stderr
    used, threads, lines = zip(*noted(tmp_path))
    tasks = pruned(lines)
    assert sorted(map(len, tasks), reverse=True) == each
    assert len({run for task in tasks for run in task}) == sum(each)
    trains = [device for device, line in zip(used, lines) if "imp.py" in line]
    assert set(trains) <= set(devices.replace(" ", "").split(","))
    assert set(threads) == {"free" if seen else "1"}


@pytest.mark.parametrize(
    ("breaks", "status", "gpus"),
    [
        ("pretrain.py*all-t0/seed0", 1, "0"),  # one of the six curves of its task
        ("pretrain.py*all-t0/seed0", 1, ""),  # the only one; imp.py is left to say what is missing
        ("imp.py*all-t0/seed0", 255, ""),  # a status at which xargs would stop
    ],
)
def test_what_fails_leaves_the_others(fake, tmp_path, breaks, status, gpus):
    done = fake(CUDA_VISIBLE_DEVICES=gpus, GPUS=len(gpus), BREAKS=breaks, STATUS=status)
    assert done.returncode == 1
    lines = [line for *_, line in noted(tmp_path)]
    assert len({run for task in pruned(lines) for run in task}) == 12
    assert len(calling(lines, "plot")) == 1
    ((command, log),) = re.findall(
        rf"^status {status} from (.*)\n(.*):\n  it broke$", done.stderr, re.M
    )
    assert "all-t0/seed0/rewind" in command
    assert f", failed: {log}\n" in done.stdout
    assert "it broke" in (tmp_path / log).read_text()


def test_two_at_once_do_not_share_logs(fake, tmp_path):
    with ThreadPoolExecutor() as pool:
        both = list(pool.map(lambda _: fake(), range(2)))
    assert [done.returncode for done in both] == [0, 0]
    folders = {folder for done in both for folder in re.findall(r"logs: (.*)/imp-\*", done.stdout)}
    assert len(folders) == 2
    for folder in folders:
        logs = (tmp_path / folder).glob("imp-*.log")
        assert [path.read_text().count("imp.py") for path in logs] == [1] * 12


def test_slurm_asks_for_what_the_partition_has(tmp_path):
    """What would be submitted can be looked at anywhere."""
    sinfo = tmp_path / "sinfo"
    sinfo.write_text('''#!/bin/bash
[[ "$*" == *"-p gpu"* ]] || echo "cpu* (null)"
echo "gpu gpu:a100:4(S:0-1)"''')
    sinfo.chmod(0o755)
    slurm = {
        "LAUNCHER": "slurm",
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "DRY_RUN": 1,
        "WIDTH": 2,
    }
    slurm |= {"SBATCH_FLAGS": "--mem=16G --nice"}
    for settings, asked in [
        ({}, ""),
        ({"SBATCH_PARTITION": "gpu"}, "--gres=gpu:1 "),
        ({"SBATCH_GRES": "gpu:h100:1"}, "--gres=gpu:h100:1 "),
        ({"SBATCH_PARTITION": "gpu", "SBATCH_GRES": ""}, ""),
    ]:
        done = run_all("cifar10", cwd=tmp_path, **slurm | settings)
        waves = re.findall("^# sbatch .*--mem=16G --nice$", done.stdout, re.M)
        assert [asked in wave and "gres" in wave for wave in waves] == [bool(asked), False] * 2
        assert f"--array=0-{2 if asked else 23}%2 " in waves[2]  # 24 runs, eight on a GPU
    assert [*tmp_path.iterdir()] == [sinfo]


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


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """One machine is the whole cluster (see slurm_cluster.sh)."""
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    if not all(
        shutil.which(name, path=path) for name in ("slurmctld", "slurmd", "munged", "sbatch")
    ):
        pytest.skip("no Slurm to start: apt-get install slurm-wlm munge")
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


def test_interrupted_in_every_way_it_gives_what_the_local_way_gives(
    cluster, demonstration, tmp_path
):
    """Three tasks of two runs: one is told that its time ends, one requeued, one cancelled.

    Then all of it again.
    """
    where, (local, _) = tmp_path / "a folder", demonstration
    where.mkdir()
    figure = {"RUNS": "my runs/digits", "NOISE": 50}  # half of the demonstration
    *_, imp, plot = submit(where, "digits", "fig3", JOBS=3, **figure)
    assert (state(imp), state(plot)) == ("PENDING", "PENDING")

    wait_for(lambda: in_the_middle(where, 0))
    # what Slurm does 120 s before the time limit
    shell("scancel", "--signal=USR1", "--batch", f"{imp}_0")
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

    # Again: only what the cancelled task had left. It is preempted by a job of a more important
    # partition.
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
    drawn, everything = (
        read_csv(place / "figures" / "digits" / "summary.csv") for place in (where, local)
    )
    assert len(drawn) == 6 * 3  # curves, levels
    assert all(row in everything for row in drawn)


def test_a_second_submission_waits_for_the_first(cluster, tmp_path):
    first = submit(tmp_path)
    for last in (False, True):  # the third waits for the first, too, when the second is gone
        later = submit(tmp_path)
        assert job(later[0])["Dependency"] == ",".join(
            f"afterany:{n}_*(unfulfilled)" for n in first
        )
        shell("scancel", *(first if last else later))
    wait_for(lambda: state(later[0]) == "RUNNING")
    shell("scancel", *later)


def test_a_refused_submission_leaves_nothing_in_the_queue(cluster, tmp_path):
    before = set(shell("squeue", "-h", "-o", "%F").split())
    many = {"SEEDS": "0 1", "JOBS": 24}  # this cluster takes arrays of 16
    done = run_all(cwd=tmp_path, LAUNCHER="slurm", **TINY_RUNS | many)
    assert done.returncode == 1
    assert "sbatch: error" in done.stderr
    assert len(re.findall("^# sbatch", done.stdout, re.M)) == 3  # two had been accepted
    wait_for(lambda: set(shell("squeue", "-h", "-o", "%F").split()) <= before)


def test_where_there_are_gpus_every_task_gets_one(cluster, tmp_path):
    """Runs share a GPU, drawing needs none, what fails leaves the others.

    The Python only takes notes.
    """
    settings = {
        "PYTHON": taking_notes(tmp_path),
        "SEEDS": "0 1",
        "BREAKS": "pretrain.py*all-t0/seed0",
        "SLEEP": 3,
        "SBATCH_FLAGS": "--cpus-per-task=1",  # of two, at the same time
    }
    with running(tmp_path / "cluster", gpus=2):
        *_, imp, plot = submit(tmp_path, "cifar10", **settings)
        wait_for(lambda: state(plot) == "COMPLETED")
        assert [state(f"{imp}_{task}") for task in (0, 1)] == ["FAILED", "COMPLETED"]
    (failed,) = tmp_path.glob("runs/cifar10/logs/*/failed")
    assert re.search(r"^status 1 from .*all-t0/seed0/.*\n\S+/imp-0.log", failed.read_text())
    notes = noted(tmp_path)
    pruned = [note for note in notes if "imp.py" in note[2]]
    assert sorted(gpu for gpu, *_ in pruned) == ["0", "1"]
    assert [words.count("rewind.safetensors") for *_, words in pruned] == [6, 6]
    for gpu, _, words in pruned:  # a task makes the starting points of its runs
        commands = [note[2] for note in notes if "pretrain.py" in note[2] and note[0] == gpu]
        starts = {path for command in commands for path in outputs(command)}
        assert starts >= {word for word in words.split() if "rewind" in word}
    data, *rest = notes  # the data are fetched here, before anything is submitted
    assert "dataset.py cifar10 --data-dir data" in data[2]
    for gpu, threads, words in rest:
        trains = re.search("score_el2n|pretrain|imp", words) is not None
        assert (gpu != "none", threads == "free") == (trains, trains)
