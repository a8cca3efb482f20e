"""run_all.sh: what each figure runs, and the whole chain once at a tiny scale."""

import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, snapshot


def run_all(*arguments, cwd, **environment):
    environment = {k: str(v) for k, v in environment.items()} | {"PYTHON": sys.executable}
    inherited = {k: v for k, v in os.environ.items() if k not in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")}
    return subprocess.run(["bash", ROOT / "run_all.sh", *arguments], env=inherited | environment, cwd=cwd,
                          capture_output=True, text=True)  # fmt: skip


def plan(tmp_path, *arguments, **environment):
    done = run_all(*arguments, cwd=tmp_path, DRY_RUN=1, **environment)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())  # a dry run makes nothing
    return done.stdout.splitlines()


def settings(lines):
    """Run folders that are pre-trained, and how many replicates each has."""
    folders = [re.search(r"--out \S*?/\w+/(\S+)/seed\d", line)[1] for line in lines if "pretrain.py" in line]
    return {name: folders.count(name) for name in folders}


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        (["cifar10"], 6),
        (["cifar10", "fig3"], 1 + 2 * 4),
        (["cifar10", "fig5"], 27),  # 8 sizes x 3 schemes and 3 baselines
        (["cifar100", "fig5"], 21),
        (["cinic10", "fig6"], 4 + 9 + 12),
        (["cifar10", "fig7"], 1 + 2 * (2 + 8)),
        (["cifar10", "tstar"], 1 + 15),
    ],
)
def test_every_figure_has_its_settings(tmp_path, arguments, count):
    lines = plan(tmp_path, *arguments)
    found = settings(lines)
    assert len(found) == count
    assert set(found.values()) == {4}
    starts = [line.split()[-1] for line in lines if "pretrain.py" in line]
    assert len(set(starts)) == len(starts)
    pruned = [
        word
        for line in lines
        if "imp.py" in line
        for word in line.split()
        if word.endswith("rewind.safetensors")
    ]
    assert sorted(pruned) == sorted(starts)  # every run is dealt once
    assert sum("score_el2n.py" in line for line in lines) == {"fig3": 2, "fig7": 2, "tstar": 0}.get(
        arguments[-1], 1
    )
    assert "plot.py" in lines[-1]


def test_the_paper_settings_of_a_run(tmp_path):
    lines = plan(tmp_path, "cifar10", "fig7", SEEDS="3")
    (line,) = [x for x in lines if "easy-2048-t200-noise50/seed3" in x and "pretrain" in x]
    for words in ("--steps 200", "--seed 3", "--label-noise 0.5", "subsets/easy-2048-noise50.npy"):
        assert words in line
    assert any("--label-noise 0.5 --out runs/cifar10/el2n-noise50.npy" in x for x in lines)
    assert not any("hard" in x for x in lines)


@pytest.mark.parametrize("gpus", [1, 3])
def test_runs_are_dealt_round_robin_to_the_gpus(tmp_path, gpus):
    lines = plan(tmp_path, "cifar10", CUDA_VISIBLE_DEVICES=",".join(map(str, range(gpus))))
    groups = [line for line in lines if "imp.py" in line]
    assert len(groups) == gpus
    assert {line.count("rewind.safetensors") for line in groups} == {24 // gpus}


@pytest.mark.parametrize("arguments", [["imagenet"], ["cifar10", "fig9"]])
def test_bad_arguments_are_one_line(tmp_path, arguments):
    done = run_all(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert arguments[-1] in done.stderr


@pytest.mark.parametrize("jobs", [0, -1, "x"])
def test_jobs_must_be_a_number(tmp_path, jobs):
    done = run_all(cwd=tmp_path, JOBS=jobs)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "JOBS must be" in done.stderr


TINY = dict(SEEDS=0, LEVELS=1, FLAGS="--depth 8 --width 2 --total-steps 30 --milestones 25",
            SCORE_FLAGS="--networks 2 --steps 5")  # fmt: skip


def test_the_demonstration_at_a_tiny_scale(tmp_path):
    """The chain in a folder with a space; again: nothing is done twice; a failure names its command."""
    where = tmp_path / "a folder"
    where.mkdir()
    done = run_all(cwd=where, RUNS="my runs/digits", **TINY)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("results.csv") == 6
    assert "test accuracy in %" in done.stdout
    assert (where / "figures" / "digits" / "digits.png").exists()
    runs = where / "my runs" / "digits"
    assert len(list(runs.glob("*/seed0/level01.safetensors"))) == 6
    assert len(np.load(runs / "subsets" / "easy-256.npy")) == 256
    before = {k: v for k, v in snapshot(runs).items() if "logs" not in k}
    again = run_all(cwd=where, RUNS="my runs/digits", **TINY)
    assert again.returncode == 0
    assert again.stdout.count("already done") == 1 + 3 + 6 + 6
    assert {k: v for k, v in snapshot(runs).items() if "logs" not in k} == before
    failed = run_all(cwd=where, RUNS="my runs/digits", **TINY | {"SCORE_FLAGS": "--networks 3 --steps 5"})
    assert failed.returncode == 1
    assert "networks 2 there, 3 now" in failed.stdout + failed.stderr
    assert "run_all.sh: status 2 from\n" in failed.stderr
    assert "The end of my runs/digits/logs/score-0.log" in failed.stderr
    assert "pretrain" not in failed.stdout


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_stopping_it_leaves_no_orphans(tmp_path, how):
    environment = os.environ | {"PYTHON": sys.executable, "SEEDS": "0", "SCORE_FLAGS": "--networks 500"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    process = subprocess.Popen(["bash", ROOT / "run_all.sh"], env=environment, cwd=tmp_path, **quiet)
    progress = tmp_path / "runs" / "digits" / "el2n.networks.npy"
    deadline = time.monotonic() + 60
    while not progress.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(how)
    assert process.wait(30) == 128 + how
    alive = subprocess.run(
        ["pgrep", "-f", str(ROOT / "score_el2n.py")], capture_output=True, text=True
    ).stdout
    assert not [pid for pid in alive.split() if os.path.realpath(f"/proc/{pid}/cwd") == str(tmp_path)]
