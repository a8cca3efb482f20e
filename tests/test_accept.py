"""The checks for a new GPU: all of them with -m cuda, and as far as a CPU can do them."""

import subprocess
import sys

import benchmark
import pytest
import torch
from conftest import ROOT

import common

CPU = torch.device("cpu")
COMMAND = [sys.executable, ROOT / "tests" / "benchmark.py"]
BITS = ["50 replays, half-zero masks", "alone and in company", "stop, restore, go on"]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU, and -m cuda")
@pytest.mark.parametrize("name", benchmark.CHECKS)
def test_checks_hold_on_a_gpu(name):
    found, limit, ok = benchmark.run(name, torch.device("cuda"))
    assert ok, (found, limit)


@pytest.mark.parametrize("name", [*BITS, "tf32 is off", "two processes", "near the CPU"])
def test_checks_hold_on_a_cpu(name):
    found, limit, ok = benchmark.CHECKS[name](CPU)
    assert ok, (found, limit)


@pytest.mark.parametrize("name", BITS)
def test_a_step_that_depends_on_more_than_its_member_fails_them(name, monkeypatch):
    step, steps = common.Group.step, iter(range(10**6))

    def other(group, k):
        step(group, k)
        group.members[k].net.linear.bias.data.add_(1e-3 * next(steps))

    monkeypatch.setattr(common.Group, "step", other)
    assert not benchmark.CHECKS[name](CPU)[2]


def test_a_crash_and_a_hang_are_failed_lines():
    for (found, _, ok), word in ((benchmark.run("no such check", CPU), "KeyError"),
                                 (benchmark.run("two processes", CPU, seconds=0.01), "no end")):  # fmt: skip
        assert (ok, word in found) == (False, True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_is_one_line():
    done = subprocess.run([*COMMAND, "--accept"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


@pytest.mark.slow
def test_the_benchmark_runs():
    done = subprocess.run([*COMMAND, "--quick", "--rounds=1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "times faster" in done.stdout
