"""The checks for a new GPU, as far as a CPU can do them."""

import subprocess
import sys

import accept
import pytest
import torch
from conftest import ROOT

import common

CPU = torch.device("cpu")


BITS = [accept.fifty_replays, accept.company, accept.stop_and_go_on]


@pytest.mark.parametrize("check", [*BITS, accept.tf32_is_off])
def test_checks_hold_on_a_cpu(check):
    found, limit, ok = check(CPU)
    assert ok, (found, limit)


def test_two_processes_train_the_same_bits():
    assert accept.two_processes(CPU) == ("equal", "equal", True)


@pytest.mark.parametrize("check", BITS)
def test_a_step_that_depends_on_more_than_its_member_fails_them(check, monkeypatch):
    step, steps = common.Group.step, iter(range(10**6))

    def other(group, k):
        step(group, k)
        with torch.no_grad():
            group.members[k].net.linear.bias.add_(1e-3 * next(steps))

    monkeypatch.setattr(common.Group, "step", other)
    assert not check(CPU)[2]


def test_a_crash_and_a_hang_are_failed_lines():
    found, _, ok = accept.run("no such check", CPU)
    assert not ok
    assert "KeyError" in found
    found, _, ok = accept.run("two processes", CPU, seconds=0.01)
    assert not ok
    assert "no end" in found


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_is_one_line():
    command = [sys.executable, ROOT / "tests" / "benchmark.py", "--accept"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


@pytest.mark.slow
def test_the_benchmark_runs(tmp_path):
    command = [sys.executable, ROOT / "tests" / "benchmark.py", "--quick", "--rounds=1", "--steps=1"]
    done = subprocess.run([*command, "--out", tmp_path / "b.csv"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "times faster" in (tmp_path / "b.csv").read_text()
