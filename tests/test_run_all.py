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
    done = run_all(*arguments, cwd=tmp_path, DRY_RUN=1, **environment)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())  # a dry run makes nothing
    return [line for line in done.stdout.splitlines() if line[0] != "#"]


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


@pytest.mark.parametrize(
    "arguments", [["imagenet"], ["cifar10", "fig9"], ["digits", "tstar"], ["cifar100", "fig6"]]
)
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


def test_the_demonstration_at_a_tiny_scale(demonstration):
    """The chain in a folder with a space; again: nothing is done twice; a failure names its command."""
    where, said = demonstration
    assert said.count("results.csv") == 6
    assert "test accuracy in %" in said
    assert (where / "figures" / "digits" / "digits.png").exists()
    runs = where / "my runs" / "digits"
    assert len(list(runs.glob("*/seed0/level02.safetensors"))) == 6
    assert len(np.load(runs / "subsets" / "easy-256.npy")) == 256
    logs = re.findall(r"^   (\S.*\.log)$", said, re.M)
    assert {path.name for path in (runs / "logs").glob("*.log")} == {Path(log).name for log in logs}
    before = {k: v for k, v in snapshot(runs).items() if "logs" not in k}
    again = run_all(cwd=where, RUNS="my runs/digits", **TINY_RUNS)
    assert again.returncode == 0
    assert again.stdout.count("already done") == 1 + 3 + 6 + 6
    assert {k: v for k, v in snapshot(runs).items() if "logs" not in k} == before
    other = TINY_RUNS | {"SCORE_FLAGS": "--networks 3 --steps 5"}
    failed = run_all(cwd=where, RUNS="my runs/digits", **other)
    assert failed.returncode == 1
    assert "networks 2 there, 3 now" in failed.stdout + failed.stderr
    assert "run_all.sh: status 2 from\n" in failed.stderr
    assert "The end of my runs/digits/logs/score-0.log" in failed.stderr
    assert "pretrain" not in failed.stdout


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_stopping_it_leaves_no_orphans(tmp_path, how):
    environment = os.environ | {"PYTHON": sys.executable, "SEEDS": "0", "SCORE_FLAGS": "--networks 500"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    quiet["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # with pytest &: ignored
    process = subprocess.Popen(["bash", ROOT / "run_all.sh"], env=environment, cwd=tmp_path, **quiet)
    progress = tmp_path / "runs" / "digits" / "el2n.networks.safetensors"
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


# ---------------------------------------------------------------- dealing, with a Python that takes notes

NOTE = """#!/usr/bin/env bash
echo "${CUDA_VISIBLE_DEVICES-unset}|${OMP_NUM_THREADS-unset}|$*" >>noted
how=$(cat how 2>/dev/null)
case "$how $*" in
  "slowly "*imp.py*all-t0/seed0*) sleep 0.5; echo "it broke" >&2; exit 1 ;;
  "at once "*imp.py*all-t0/seed0*) exit 1 ;;
  "stopped "*imp.py*all-t0/seed0*) sleep 0.5; kill -TERM $$ ;;
  "slowly "*imp.py* | "at once "*imp.py*)
    sleep 60 &
    trap 'kill $!; echo "||saved" >>noted; exit 143' TERM
    wait ;;
esac
"""


@pytest.fixture
def fake(tmp_path):
    path = tmp_path / "fake python"
    path.write_text(NOTE)
    path.chmod(0o755)
    settings = {"PYTHON": str(path), "SEEDS": "0 1"}
    return lambda **environment: run_all("cifar10", cwd=tmp_path, **settings | environment)


def noted(tmp_path, what="imp.py"):
    """(devices, threads, starting points) of every process whose command line holds a text."""
    lines = [line.split("|") for line in (tmp_path / "noted").read_text().splitlines()]
    rewinds = r"\S+/rewind\.safetensors"
    return [(devices, threads, re.findall(rewinds, rest)) for devices, threads, rest in lines if what in rest]


@pytest.mark.parametrize(
    ("devices", "jobs", "dealt"),
    [
        ("0,1,2", {}, {"0": 4, "1": 4, "2": 4}),
        ("GPU-5c,MIG-7f", {}, {"GPU-5c": 6, "MIG-7f": 6}),
        ("4,5", {"JOBS": 5}, {"4": 3 + 2 + 2, "5": 3 + 2}),  # more groups than GPUs
        ("", {"JOBS": 2}, {"": 12}),
        ("-1", {"JOBS": 3}, {"-1": 12}),
    ],
)
def test_every_run_goes_to_one_group(fake, tmp_path, devices, jobs, dealt):
    done = fake(CUDA_VISIBLE_DEVICES=devices, **jobs)
    assert done.returncode == 0, done.stderr
    groups = noted(tmp_path)
    found = dict.fromkeys(dealt, 0)
    for device, _, runs in groups:
        found[device] += len(runs)
    assert found == dealt
    assert len(groups) == jobs.get("JOBS", len(dealt))
    assert len({run for _, _, runs in groups for run in runs}) == 12
    assert {threads for _, threads, _ in groups} == {"1" if devices in ("", "-1") else "unset"}
    for w in range(len(groups)):
        assert f"   runs/cifar10/logs/imp-{w}.log\n" in done.stdout


def test_what_is_finished_is_dealt_evenly_too(fake, tmp_path):
    """Two more replicates after the first two: neither GPU gets them all."""
    assert fake(CUDA_VISIBLE_DEVICES="0,1").returncode == 0
    finished = noted(tmp_path)[0][2]  # all that the first GPU had
    for run in finished:
        folder = (tmp_path / run).parent
        folder.mkdir(parents=True)
        for level in range(17):
            (folder / f"level{level:02d}.safetensors").touch()
    (tmp_path / "noted").unlink()
    again = fake(CUDA_VISIBLE_DEVICES="0,1")
    assert "12 IMP runs of 17 trainings (6 finished)" in fake(CUDA_VISIBLE_DEVICES="0,1", DRY_RUN=1).stdout
    assert again.returncode == 0
    assert [len(set(runs) - set(finished)) for _, _, runs in noted(tmp_path)] == [3, 3]


def test_a_failing_group_stops_the_others_and_is_named(fake, tmp_path):
    (tmp_path / "how").write_text("slowly")
    began = time.monotonic()
    done = fake(CUDA_VISIBLE_DEVICES="0,1,2")
    assert done.returncode == 1
    assert time.monotonic() - began < 30
    assert "run_all.sh: status 1 from\n" in done.stderr
    assert re.search(r"The end of runs/cifar10/logs/imp-0.log:\n(  .*\n)*  it broke\n", done.stderr)
    assert "plot.py" not in (tmp_path / "noted").read_text()
    assert len(noted(tmp_path, "saved")) == 2  # the two others had the time to save
    assert not subprocess.run(["pgrep", "-f", f"{tmp_path}/fake python"], capture_output=True).stdout


@pytest.mark.parametrize("times", range(3))
def test_a_failure_while_groups_are_still_being_started(fake, tmp_path, times):
    (tmp_path / "how").write_text("at once")
    done = fake(CUDA_VISIBLE_DEVICES="", JOBS=12)
    assert done.returncode == 1
    assert not subprocess.run(["pgrep", "-f", f"{tmp_path}/fake python"], capture_output=True).stdout


def test_a_group_that_was_stopped_is_no_success(fake, tmp_path):
    (tmp_path / "how").write_text("stopped")
    done = fake(CUDA_VISIBLE_DEVICES="0,1")
    assert done.returncode == 1
    assert "run_all.sh: status 143 from\n" in done.stderr
    assert "plot.py" not in (tmp_path / "noted").read_text()


# ---------------------------------------------------------------- the plan of cost


def test_the_plan_of_cost(tmp_path):
    """Steps of figure 2 by hand: 24 runs, 17 trainings each, 10 networks for the scores."""
    done = run_all("cifar10", cwd=tmp_path, DRY_RUN=1, STEP_MS=0.5, CUDA_VISIBLE_DEVICES="0,1")
    runs, steps = done.stdout.splitlines()[-2:]
    assert runs == "# 24 IMP runs of 17 trainings (0 finished) in 2 groups, 24 pre-trainings, 1 x EL2N"
    starts = [0, 200, 400, 200, 200, 200]
    expected = 10 * 7800 + 4 * sum(t + 17 * (62400 - t) for t in starts)
    hours = f"{expected * 0.5e-3 / 3600:.2f} GPU hours"
    assert steps == f"# {expected} training steps, {expected} of them to do; at 0.5 ms each {hours}"


def test_the_plan_knows_flags_and_what_is_there(demonstration):
    where, _ = demonstration
    more = TINY_RUNS | {"LEVELS": "", "IMP_FLAGS": "--save-every 9 --levels=3", "SEEDS": "0 1"}
    done = run_all(cwd=where, RUNS="my runs/digits", DRY_RUN=1, **more)
    left = 2 * sum(300 - t for t in (0, 10, 20, 10, 10, 10)) - sum(300 - t for t in (0, 10, 20, 10, 10, 10))
    seed1 = sum(t + 4 * (300 - t) for t in (0, 10, 20, 10, 10, 10))
    assert f"# {2 * 5 + 2 * seed1} training steps, {left + seed1} of them to do\n" in done.stdout


def test_steps_and_sizes_of_ones_own(tmp_path):
    done = run_all("cifar10", "fig7", cwd=tmp_path, DRY_RUN=1, SEEDS="0", T_STAR="6", SIZES="8 20")
    starts = [line for line in done.stdout.splitlines() if "pretrain.py" in line]
    folders = [re.search(r"cifar10/([^/]*)/seed0/rewind", line)[1] for line in starts]
    noisy = [f"{name}-noise{n}" for n in (10, 50) for name in
             ("all-t3", "all-t6", "random-8-t3", "easy-8-t3", "random-20-t3", "easy-20-t3")]  # fmt: skip
    assert sorted(folders) == sorted(["all-t0", *noisy])


def test_flags_cannot_change_what_a_folder_is_named_for(tmp_path):
    done = run_all("cifar10", cwd=tmp_path, DRY_RUN=1, SEEDS="0", FLAGS="--steps 9 --pretrain-lr 0.05")
    starts = [line for line in done.stdout.splitlines() if "pretrain.py" in line]
    for line in starts:  # the last one counts
        assert f"-t{re.findall('--steps ([0-9]+)', line)[-1]}/" in line
    done = run_all("cifar10", "tstar", cwd=tmp_path, DRY_RUN=1, FLAGS="--pretrain-lr 0.05")
    assert done.returncode == 2
    assert "--pretrain-lr" in done.stderr


def test_the_plan_and_the_stages_know_the_same_presets(tmp_path):
    """The few numbers that run_all.sh repeats are those of common.PRESETS."""
    for name, preset in common.PRESETS.items():
        done = run_all(name, cwd=tmp_path, DRY_RUN=1, SEEDS="7")
        lines = done.stdout.splitlines()
        starts = [int(re.search(r"--steps (\d+)", line)[1]) for line in lines if "pretrain.py" in line]
        trainings = preset["levels"] + 1
        total = preset["networks"] * preset["el2n_steps"]
        total += sum(t + trainings * (preset["total_steps"] - t) for t in starts)
        assert f"of {trainings} trainings" in lines[-2]
        assert lines[-1] == f"# {total} training steps, {total} of them to do"
        assert max(starts) == preset["t_star"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("LEVELS", "many"), ("LEVELS", "-1"), ("LEVELS", "08"), ("LEVELS", "9" * 20), ("STEP_MS", "fast"),
     ("LAUNCHER", "pbs"), ("WIDTH", "0"), ("SEEDS", "0,1"), ("SEEDS", " "), ("SIZES", "1k"),
     ("T_STAR", "5"), ("T_STAR", "0")],
)
def test_bad_settings_are_one_line(tmp_path, name, value):
    done = run_all(cwd=tmp_path, DRY_RUN=1, **{name: value})
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert name in done.stderr


def test_slurm_where_there_is_none(tmp_path):
    """Job scripts can be looked at anywhere; submitting needs sbatch."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("bash", "awk", "sed", "tr", "grep", "cat", "dirname", "nproc", "env", "mkdir"):
        (tools / tool).symlink_to(shutil.which(tool))
    done = run_all(cwd=tmp_path, LAUNCHER="slurm", PATH=tools)
    assert (done.returncode, done.stderr) == (2, "run_all.sh: error: LAUNCHER=slurm needs sbatch\n")
    done = run_all("cifar10", cwd=tmp_path, LAUNCHER="slurm", PATH=tools, DRY_RUN=1, SBATCH_GRES="gpu:a100:1",
                   SBATCH_TIMELIMIT="2:00:00", WIDTH=2, SBATCH_FLAGS="--mem=16G --nice")  # fmt: skip
    assert done.returncode == 0, done.stderr
    prepare, imp, plot = done.stdout.split("#!/bin/bash")[1:]
    for script in (prepare, imp):
        assert "#SBATCH --gres=gpu:a100:1\n" in script
        assert "OMP_NUM_THREADS" not in script
    assert "gpu" not in plot
    assert "#SBATCH --array=0-2%2\n" in imp  # 24 runs, eight on a GPU
    assert done.stdout.count(" --time=2:00:00\n") == 3
    assert done.stdout.count(" --mem=16G --nice") == 3
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


def test_slurm_asks_for_what_the_partition_has(tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "sinfo").write_text('''#!/bin/bash
[[ "$*" == *"-p gpu"* ]] || echo "cpu* (null)"
echo "gpu gpu:a100:4(S:0-1)"''')
    (tools / "sinfo").chmod(0o755)
    path = f"{tools}:{os.environ['PATH']}"
    for settings, asked in [({}, 0), ({"SBATCH_PARTITION": "gpu"}, 2), ({"SBATCH_GRES": "gpu:h100:1"}, 2),
                            ({"SBATCH_PARTITION": "gpu", "SBATCH_GRES": ""}, 0)]:  # fmt: skip
        done = run_all(cwd=tmp_path, LAUNCHER="slurm", DRY_RUN=1, PATH=path, **settings)
        assert done.stdout.count("#SBATCH --gres=") == asked
        assert f"#SBATCH --array=0-{2 if asked else 17}\n" in done.stdout  # 18 runs, eight on a GPU


def test_a_log_path_that_slurm_would_take_for_a_pattern(tmp_path):
    done = run_all(cwd=tmp_path, LAUNCHER="slurm", DRY_RUN=1, RUNS="50%/runs")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "50%/runs" in done.stderr
