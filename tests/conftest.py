"""What the tests share: one thread, the real command lines called in-process, a tiny network."""

import hashlib
import os
import subprocess
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


def pytest_configure(config):
    # the other tests compare bits with those of a CPU
    if "cuda" not in config.getoption("-m").replace("not cuda", ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


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


# ---------------------------------------------------------------- run_all.sh

TINY_RUNS = {"SEEDS": "0", "LEVELS": "2", "SCORE_FLAGS": "--networks 2 --steps 5",
             "FLAGS": "--depth 8 --width 2 --total-steps 300 --milestones 250"}  # fmt: skip


def run_all(*arguments, cwd, **environment):
    """`bash run_all.sh ...` with this Python and these variables, free of those of the caller's machine."""
    environment = {"PYTHON": sys.executable} | {k: str(v) for k, v in environment.items()}
    inherited = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS" and k[:7] != "SBATCH_"}
    return subprocess.run(["bash", ROOT / "run_all.sh", *arguments], env=inherited | environment, cwd=cwd,
                          capture_output=True, text=True)  # fmt: skip


@pytest.fixture(scope="session")
def demonstration(tmp_path_factory):
    """The demonstration at a tiny scale, local, in a folder with a space; (folder, what it printed)."""
    where = tmp_path_factory.mktemp("a folder")
    done = run_all(cwd=where, RUNS="my runs/digits", **TINY_RUNS)
    assert done.returncode == 0, done.stdout + done.stderr
    return where, done.stdout
