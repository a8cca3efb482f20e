"""launch.sh with plans of its own: order, failures, threads, slots. Slurm: test_run_all.py."""

import os
import subprocess

import pytest
from conftest import ROOT, taking_notes


@pytest.fixture
def launch(tmp_path):
    """launch(plan, arguments, NAME=value) -> what came of it; GPUS of them are seen by "torch"."""
    fake = taking_notes(tmp_path)
    aside = ("SLOTS", "LAUNCHER", "DRY_RUN", "JOBS", "OMP_NUM_THREADS")

    def launch(plan, *arguments, **environment):
        inherited = {k: v for k, v in os.environ.items() if k not in aside and k[:7] != "SBATCH_"}
        more = {name: str(value) for name, value in environment.items()}
        return subprocess.run(
            ["bash", ROOT / "launch.sh", *(arguments or ("my logs", "name"))],
            env=inherited | {"PYTHON": fake} | more,
            cwd=tmp_path,
            input=plan,
            capture_output=True,
            text=True,
        )

    return launch


def task(wave, *commands, kind="cpu", steps=5):
    return "\t".join([wave, kind, str(steps), *commands]) + "\n"


def test_waves_come_in_order_and_a_task_goes_on_after_a_failure(launch, tmp_path):
    plan = "# a comment\n" + task("first", "sleep 0.5", "echo 1 >>order")
    plan += task("second", "echo 3 >>order", "echo said by the last") + task(
        "first", "bash -c 'exit 255'"
    )
    plan += task("first", "ls no\\ such\\ file", "echo 2 >>order")
    done = launch(plan, JOBS=3)
    assert done.returncode == 1
    assert sorted((tmp_path / "order").read_text().split()) == ["1", "2", "3"]
    assert (tmp_path / "order").read_text().split()[-1] == "3"
    assert "# 4 tasks in 2 waves: 20 training steps" in done.stdout
    lines = [line.partition(", failed: ") for line in done.stdout.splitlines()]
    counts = [f"== first: {n} of 3 done after 0 minutes" for n in (1, 2, 3)]
    assert [line for line, *_ in lines if line.startswith("== first") and "to do" not in line] == (
        counts
    )
    assert sum(bool(log) for *_, log in lines) == 2
    assert done.stdout.splitlines()[-1] == "said by the last"
    assert "status 255 from bash -c 'exit 255'\n" in done.stderr
    assert "cannot access 'no such file'" in done.stderr
    (logs,) = (tmp_path / "my logs").iterdir()
    assert (logs / "first-2.log").read_text().startswith("$ ls no\\ such\\ file\n")
    # DRY_RUN prints what can be handed over again
    dry = launch(plan, DRY_RUN=1)
    assert (dry.returncode, len(list((tmp_path / "my logs").iterdir()))) == (0, 1)
    assert launch(dry.stdout, DRY_RUN=1).stdout == dry.stdout


def test_a_task_has_one_thread_or_a_gpu_of_its_own(launch, tmp_path):
    (tmp_path / "say").write_text(
        "sleep 0.3; echo ${CUDA_VISIBLE_DEVICES-none} ${OMP_NUM_THREADS-free} >>said"
    )
    plan = task("w", "bash say", kind="gpu") * 4
    for devices, gpus, expected in (
        ("", 0, {"1"}),
        ("void", 0, {"void 1"}),
        ("3,7", 2, {"3 free", "7 free"}),
        ("3,7,-1", 2, {"3 free", "7 free"}),  # as many as torch sees
    ):
        done = launch(plan, CUDA_VISIBLE_DEVICES=devices, GPUS=gpus)
        assert done.returncode == 0, done.stderr
        assert set((tmp_path / "said").read_text().splitlines()) == expected
        (tmp_path / "said").unlink()


@pytest.mark.parametrize(
    ("settings", "answer", "note"),
    [
        ({"GPUS": 2}, "gpu 2", False),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, "cpu", True),  # listed, but torch does not see them
        ({"CUDA_VISIBLE_DEVICES": ""}, "cpu", False),  # on purpose
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, "cpu", False),
        ({"GPUS": 2, "DRY_RUN": 1}, "cpu 1", False),
        ({"GPUS": 2, "SLOTS": "cpu 3"}, "cpu 3", False),
        ({"GPUS": 2, "LAUNCHER": "slurm", "SBATCH_GRES": ""}, "cpu 1", False),
        ({"LAUNCHER": "slurm", "SBATCH_GRES": "gpu:a100:1"}, "gpu 1", False),
        ({"LAUNCHER": "slurm", "SBATCH_PARTITION": "big"}, "gpu 1", False),
    ],
)
def test_slots(launch, tmp_path, settings, answer, note):
    for name, said in (
        ("nvidia-smi", "GPU 0: one\nGPU 1: two"),
        ("sinfo", "big gpu:h100:8(S:0-1)"),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\necho '{said}'\n")
        (tmp_path / name).chmod(0o755)
    done = launch("", "--slots", PATH=f"{tmp_path}:{os.environ['PATH']}", **settings)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(answer)
    assert ("nvidia-smi lists 2 GPUs, but torch sees none" in done.stderr) == note


def test_data_are_fetched_here_and_without_them_nothing_is_submitted(launch, tmp_path):
    (tmp_path / "sbatch").write_text('#!/bin/sh\necho "$@" >>submitted\necho 7\n')
    (tmp_path / "sbatch").chmod(0o755)
    slurm = {"LAUNCHER": "slurm", "PATH": f"{tmp_path}:{os.environ['PATH']}", "SBATCH_GRES": ""}
    done = launch(task("data", "ls gone") + task("w", "true"), **slurm)
    assert (done.returncode, (tmp_path / "submitted").exists()) == (1, False)
    assert "cannot access 'gone'" in done.stderr
    done = launch(task("data", "touch fetched") + task("w", "true"), **slurm)
    assert (done.returncode, (tmp_path / "fetched").exists()) == (0, True)
    assert done.stdout.splitlines()[-1] == "== squeue --me shows them, scancel 7 stops them"
    assert (tmp_path / "submitted").read_text().count("--job-name=w-name --array=0-0 ") == 1


@pytest.mark.parametrize(
    ("plan", "word"),
    [
        ("", "empty"),
        ("# nothing\n", "empty"),
        ("w\tcpu\t5\n", "no task"),
        ("w\ttpu\t5\ttrue\n", "no task"),
        ("w\tcpu\tmany\ttrue\n", "no task"),
        ("../w\tcpu\t5\ttrue\n", "no task"),
    ],
)
def test_what_is_no_plan_is_one_line(launch, tmp_path, plan, word):
    done = launch(plan, SLOTS="cpu 1")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert word in done.stderr
    assert not (tmp_path / "my logs").exists()
