"""What the tests share: one thread, the real command lines called in-process, a tiny network."""

import hashlib
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import imp  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402

import common  # noqa: E402
import make_subset  # noqa: E402
import pretrain  # noqa: E402
import score_el2n  # noqa: E402

STAGES = {"score": score_el2n, "subset": make_subset, "pretrain": pretrain, "imp": imp}
TINY = ["--depth=8", "--width=2", "--batch-size=64", "--total-steps=45", "--milestones", "30", "40"]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def call(capfd):
    """call("imp", "x.safetensors", ...) -> (exit status, stdout, stderr) of the real command line."""

    def call(stage, *argv):
        capfd.readouterr()
        status = common.cli(STAGES[stage].main, [str(a) for a in argv])
        return (status, *capfd.readouterr())

    return call


@pytest.fixture
def ok(call):
    """The same for a command that must succeed; returns its stdout."""

    def ok(stage, *argv):
        status, out, err = call(stage, *argv)
        assert status == 0, err
        return out

    return ok


@pytest.fixture(scope="session")
def digits():
    return common.load_data("digits", "digits", Path("data"), torch.device("cpu"))


def recipe(**changes):
    """A complete tiny recipe for calling functions directly."""
    preset = common.PRESETS["digits"] | {"preset": "digits", "classes": 10, "depth": 8, "width": 2}
    return preset | {"batch_size": 64, "total_steps": 45, "milestones": [30, 40]} | changes


def snapshot(folder):
    """Content of every file below a folder, to show that a command changed nothing."""
    files = sorted(
        p for p in Path(folder).rglob("*") if p.is_file() and p.suffix != ".lock" and p.name != ".lock"
    )
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
