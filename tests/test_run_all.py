"""run_all.sh: what each figure runs, and the whole chain once at a tiny scale."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, TINY_RUNS, run_all, snapshot

import common


def plan(tmp_path, *arguments, **environment):
    """(what a dry run says first, its commands); it makes nothing."""
    done = run_all(*arguments, cwd=tmp_path, DRY_RUN=1, **environment)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())
    first, *lines = done.stdout.splitlines()
    return first, lines


def settings(lines):
    """Run folders that are pre-trained, and how many replicates each has."""
    folders = [re.search(r"--out \S*?/\w+/(\S+)/seed\d", line)[1] for line in lines if "pretrain.py" in line]
    return {name: folders.count(name) for name in folders}


def starts(lines):
    return [line.split()[-1] for line in lines if "pretrain.py" in line]


def pruned(lines):
    """The starting points of every imp.py."""
    return [re.findall(r"\S+/rewind\.safetensors", line) for line in lines if "imp.py" in line]


@pytest.mark.parametrize(
    ("arguments", "count", "scores"),
    [
        (["digits"], 6, 1),
        (["cifar10"], 6, 1),
        (["cifar10", "fig3"], 1 + 2 * 4, 2),
        (["cifar10", "fig5"], 27, 1),  # 8 sizes x 3 schemes and 3 baselines
        (["cifar100", "fig5"], 21, 1),
        (["cinic10", "fig6"], 4 + 9 + 12, 1),
        (["cifar10", "fig7"], 1 + 2 * (2 + 8), 2),
        (["cifar10", "tstar"], 1 + 15, 0),
    ],
)
def test_every_figure_has_its_settings(tmp_path, arguments, count, scores):
    _, lines = plan(tmp_path, *arguments)
    found = settings(lines)
    assert len(found) == count
    assert set(found.values()) == {3 if arguments == ["digits"] else 4}
    assert len(set(starts(lines))) == len(starts(lines))
    assert sorted(sum(pruned(lines), [])) == sorted(starts(lines))  # every run is in one task
    assert sum("score_el2n.py" in line for line in lines) == scores
    assert "plot.py" in lines[-1]


def test_the_paper_settings_of_a_run(tmp_path):
    _, lines = plan(tmp_path, "cifar10", "fig7", SEEDS="3")
    (line,) = [x for x in lines if "easy-2048-t200-noise50/seed3" in x and "pretrain" in x]
    for words in ("--steps 200", "--seed 3", "--label-noise 0.50", "subsets/easy-2048-noise50.npy"):
        assert words in line
    assert any("--label-noise 0.50 --out runs/cifar10/el2n-noise50.npy" in x for x in lines)
    assert not any("hard" in x for x in lines)


def test_steps_and_sizes_of_ones_own(tmp_path):
    _, lines = plan(tmp_path, "cifar10", "fig7", SEEDS="0", T_STAR="6", SIZES="8 20")
    noisy = [f"{name}-noise{n}" for n in (10, 50) for name in
             ("all-t3", "all-t6", "random-8-t3", "easy-8-t3", "random-20-t3", "easy-20-t3")]  # fmt: skip
    assert sorted(settings(lines)) == sorted(["all-t0", *noisy])


def test_flags_cannot_change_what_a_folder_is_named_for(tmp_path):
    for figure in ("fig2", "tstar"):
        _, lines = plan(tmp_path, "cifar10", figure, SEEDS="0", FLAGS="--steps 9 --pretrain-lr 0.05")
        for line in (line for line in lines if "pretrain.py" in line):  # the last one counts
            assert f"-t{re.findall('--steps ([0-9]+)', line)[-1]}" in line
            rate = re.search(r"-lr([\d.]+)/", line)
            assert not rate or re.findall(r"--pretrain-lr ([\d.]+)", line)[-1] == rate[1]


@pytest.mark.parametrize(
    ("name", "devices", "each"),
    [("cifar10", "0", [8, 8, 8]), ("cifar10", "0,1,2,3,4,5,6,7", [3] * 8), ("cifar10", "0,1", [6] * 4),
     ("cifar10", "", [1] * 24), ("digits", "", [3] * 6)],
)  # fmt: skip
def test_a_gpu_takes_up_to_eight_runs_and_all_have_work(tmp_path, name, devices, each):
    jobs = {} if devices else {"JOBS": 2}
    _, lines = plan(tmp_path, name, CUDA_VISIBLE_DEVICES=devices, **jobs)
    assert [len(task) for task in pruned(lines)] == each


def test_the_cost(tmp_path):
    """Steps of figure 2 by hand: 24 runs, 17 trainings each, 10 networks for the scores; then with flags."""
    first, _ = plan(tmp_path, "cifar10", STEP_MS=0.5, CUDA_VISIBLE_DEVICES="0")
    pre = [0, 200, 400, 200, 200, 200]
    steps = 10 * 7800 + 4 * sum(t + 17 * (62400 - t) for t in pre)
    assert "24 runs of 17 trainings in 3 tasks" in first
    assert f" {steps} training steps = {steps * 0.5e-3 / 3600:.2f} hours" in first
    flags = TINY_RUNS | {"LEVELS": "", "IMP_FLAGS": "--save-every 9 --levels=3", "SEEDS": "0 1"}
    first, _ = plan(tmp_path, **flags)
    steps = 2 * 5 + 2 * sum(t + 4 * (300 - t) for t in (0, 10, 20, 10, 10, 10))
    assert f" {steps} training steps" in first


def test_it_knows_the_presets_as_the_stages_do(tmp_path):
    """The few numbers that run_all.sh repeats are those of common.PRESETS."""
    for name, preset in common.PRESETS.items():
        first, lines = plan(tmp_path, name, SEEDS="7")
        pre = [int(re.search(r"--steps (\d+)", line)[1]) for line in lines if "pretrain.py" in line]
        trainings = preset["levels"] + 1
        steps = preset["networks"] * preset["el2n_steps"]
        steps += sum(t + trainings * (preset["total_steps"] - t) for t in pre)
        assert f"of {trainings} trainings" in first
        assert f" {steps} training steps" in first
        assert max(pre) == preset["t_star"]


@pytest.mark.parametrize(
    ("arguments", "environment", "named"),
    [(["imagenet"], {}, "imagenet"), (["cifar10", "fig9"], {}, "fig9"), (["digits", "tstar"], {}, "tstar"),
     (["cifar100", "fig6"], {}, "fig6"), (["cinic10", "fig5"], {}, "fig5"), (["a", "b", "c"], {}, "3"),
     *(([], {name: value}, name) for name, value in [
         ("JOBS", "0"), ("JOBS", "-1"), ("JOBS", "x"), ("LEVELS", "many"), ("LEVELS", "-1"), ("LEVELS", "08"),
         ("LEVELS", "9" * 20), ("STEP_MS", "fast"), ("LAUNCHER", "pbs"), ("WIDTH", "0"), ("SEEDS", "0,1"),
         ("SEEDS", " "), ("SIZES", "1k"), ("T_STAR", "5"), ("T_STAR", "0")]),
     ([], {"PYTHON": "no-such-python"}, "no-such-python"),
     ([], {"LAUNCHER": "slurm", "DRY_RUN": "1", "RUNS": "50%/runs"}, "50%/runs")],  # a pattern to Slurm
)  # fmt: skip
def test_bad_arguments_and_settings_are_one_line(tmp_path, arguments, environment, named):
    done = run_all(*arguments, cwd=tmp_path, **environment)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert named in done.stderr
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- the real stages


def test_the_demonstration_at_a_tiny_scale(demonstration):
    """The chain in a folder with a space; again: nothing is done twice; a failure names command and log."""
    where, said = demonstration
    assert re.findall(r"^== imp: (\d of 6 done) after \d+ minutes$", said, re.M) == [
        f"{n} of 6 done" for n in range(1, 7)
    ]
    assert "test accuracy in %" in said
    assert (where / "figures" / "digits" / "digits.png").exists()
    runs = where / "my runs" / "digits"
    assert len(list(runs.glob("*/seed0/level02.safetensors"))) == 6
    assert len(np.load(runs / "subsets" / "easy-256.npy")) == 256

    def kept():
        return {k: v for k, v in snapshot(runs).items() if "/logs/" not in k}

    before, logs = kept(), set(runs.glob("logs/*/*.log"))
    assert len(logs) == 1 + 3 + 6 + 1
    again = run_all(cwd=where, RUNS="my runs/digits", **TINY_RUNS)
    assert again.returncode == 0
    new = set(runs.glob("logs/*/*.log")) - logs
    assert sum(path.read_text().count("already done") for path in new) == 1 + 3 + 6 + 6
    assert kept() == before
    other = TINY_RUNS | {"SCORE_FLAGS": "--networks 3 --steps 5"}
    failed = run_all(cwd=where, RUNS="my runs/digits", **other)
    assert failed.returncode == 1
    assert "networks 2 there, 3 now" in failed.stderr
    assert re.search(r"^status 2 from \S+ \S+/score_el2n.py .*--networks 3.*\nmy runs/.*/score-0.log:\n",
                     failed.stderr, re.M)  # fmt: skip
    assert kept() == before


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_stopping_it_leaves_no_orphans(tmp_path, how):
    environment = os.environ | {"PYTHON": sys.executable, "SEEDS": "0", "SCORE_FLAGS": "--networks 500"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "start_new_session": True, "text": True}
    quiet["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # with pytest &: ignored
    process = subprocess.Popen(["bash", ROOT / "run_all.sh"], env=environment, cwd=tmp_path, **quiet)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("runs/digits/el2n.networks.*")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(how)
    assert process.wait(30) == 128 + how
    assert process.stderr.read().count("\n") == 1
    for pid in subprocess.run(["pgrep", "-f", str(ROOT)], capture_output=True, text=True).stdout.split():
        assert not os.path.exists(f"/proc/{pid}") or os.path.realpath(f"/proc/{pid}/cwd") != str(tmp_path)
    (log,) = tmp_path.glob("runs/digits/logs/*/score-0.log")
    assert "stopped by SIGTERM" in log.read_text()


# ---------------------------------------------------------------- tasks, with a Python that takes notes

NOTE = """#!/usr/bin/env bash
echo "${CUDA_VISIBLE_DEVICES-unset}|${OMP_NUM_THREADS-unset}|$*" >>noted
[[ $* != *$BREAKS* ]] || { echo "it broke" >&2; exit $STATUS; }
"""


@pytest.fixture
def fake(tmp_path):
    path = tmp_path / "fake python"
    path.write_text(NOTE)
    path.chmod(0o755)
    settings = {"PYTHON": path, "SEEDS": "0 1", "BREAKS": "nothing"}
    return lambda **environment: run_all("cifar10", cwd=tmp_path, **settings | environment)


def noted(tmp_path, what="imp.py"):
    """[devices, threads, command line] of every process whose command line holds a text."""
    lines = [line.split("|") for line in (tmp_path / "noted").read_text().splitlines()]
    return [line for line in lines if what in line[2]]


@pytest.mark.parametrize(
    ("devices", "jobs", "tasks", "used"),
    [
        ("0,1,2", {}, 3, {"0", "1", "2"}),
        ("GPU-5c,MIG-7f", {}, 2, {"GPU-5c", "MIG-7f"}),
        ("4,5", {"JOBS": 5}, 4, {"4", "5"}),  # more at a time than GPUs
        ("", {"JOBS": 2}, 12, {""}),
        ("-1", {"JOBS": 3}, 12, {"-1"}),
    ],
)
def test_a_task_has_a_gpu_or_one_thread(fake, tmp_path, devices, jobs, tasks, used):
    done = fake(CUDA_VISIBLE_DEVICES=devices, **jobs)
    assert done.returncode == 0, done.stderr
    found = noted(tmp_path)
    assert (len(found), {note[0] for note in found}) == (tasks, used)
    assert {note[1] for note in found} == {"1" if devices in ("", "-1") else "unset"}
    assert len(set(sum(pruned(note[2] for note in found), []))) == 12


@pytest.mark.parametrize(
    ("breaks", "status", "devices", "left"),
    [
        ("pretrain.py*all-t0/seed0", 1, "0", 11),  # one of the six runs of its task
        ("pretrain.py*all-t0/seed0", 1, "", 11),  # the only one
        ("imp.py*all-t0/seed0", 255, "", 12),  # a status at which xargs would stop
    ],
)
def test_what_fails_leaves_the_others(fake, tmp_path, breaks, status, devices, left):
    done = fake(CUDA_VISIBLE_DEVICES=devices, BREAKS=breaks, STATUS=status)
    assert done.returncode == 1
    assert len(set(sum(pruned(note[2] for note in noted(tmp_path)), []))) == left
    assert len(noted(tmp_path, "plot.py")) == 1
    (command, log) = re.findall(rf"^status {status} from (.*)\n(.*):\n  it broke$", done.stderr, re.M)[0]
    assert "all-t0/seed0/rewind" in command
    assert f", failed: {log}\n" in done.stdout
    assert "it broke" in (tmp_path / log).read_text()
    assert done.stderr.count("status ") == 1


def test_two_at_once_do_not_share_logs(fake, tmp_path):
    environment = os.environ | {"PYTHON": tmp_path / "fake python", "SEEDS": "0", "BREAKS": "nothing"}
    both = [subprocess.Popen(["bash", ROOT / "run_all.sh", "cifar10"], env=environment, cwd=tmp_path)
            for _ in range(2)]  # fmt: skip
    assert [process.wait() for process in both] == [0, 0]
    folders = list((tmp_path / "runs" / "cifar10" / "logs").iterdir())
    assert len(folders) == 2
    for folder in folders:
        assert [path.read_text().count("imp.py") for path in folder.glob("imp-*.log")] == [1] * 6


# ---------------------------------------------------------------- Slurm where there is none


def test_slurm_asks_for_what_the_partition_has(tmp_path):
    """What would be submitted can be looked at anywhere; submitting needs sbatch."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("bash", "awk", "sed", "tr", "grep", "cat", "dirname", "wc", "date", "mkdir", "sort", "paste"):
        (tools / tool).symlink_to(shutil.which(tool))
    path = {"LAUNCHER": "slurm", "PATH": tools}
    done = run_all(cwd=tmp_path, **path)
    assert (done.returncode, done.stderr) == (2, "run_all.sh: error: LAUNCHER=slurm needs sbatch\n")
    done = run_all("cifar10", cwd=tmp_path, **path, DRY_RUN=1, SBATCH_GRES="gpu:a100:1", WIDTH=2,
                   SBATCH_FLAGS="--mem=16G --nice")  # fmt: skip
    score, subset, imp, plot = re.findall("^# sbatch .*", done.stdout, re.M)
    assert all("--gres=gpu:a100:1" in wave for wave in (score, imp))
    assert all("gpu" not in wave for wave in (subset, plot))
    assert "--array=0-2%2 " in imp  # 24 runs, eight on a GPU
    assert done.stdout.count(" --mem=16G --nice\n") == 4
    (tools / "sinfo").write_text('''#!/bin/bash
[[ "$*" == *"-p gpu"* ]] || echo "cpu* (null)"
echo "gpu gpu:a100:4(S:0-1)"''')
    (tools / "sinfo").chmod(0o755)
    for more, asked in [({}, 0), ({"SBATCH_PARTITION": "gpu"}, 2), ({"SBATCH_GRES": "gpu:h100:1"}, 2),
                        ({"SBATCH_PARTITION": "gpu", "SBATCH_GRES": ""}, 0)]:  # fmt: skip
        done = run_all("cifar10", cwd=tmp_path, **path | more, DRY_RUN=1)
        assert done.stdout.count("--gres=") == asked
        assert f"--array=0-{2 if asked else 23} " in done.stdout
    assert [found.name for found in tmp_path.iterdir()] == ["bin"]


def test_help_is_the_comment_at_the_top(tmp_path):
    done = run_all("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith("The whole experiment")
    assert "STEP_MS" in done.stdout and "set -e" not in done.stdout
