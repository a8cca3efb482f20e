"""What the tests share: one thread, the real command lines called in-process, a tiny network."""

import csv
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parent.parent
PAPER = ROOT / "paper_curves.json"
sys.path.insert(0, str(ROOT))

import imp  # noqa: E402

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

import common  # noqa: E402
import connectivity  # noqa: E402
import dataset  # noqa: E402
import make_subset  # noqa: E402
import plot  # noqa: E402
import pretrain  # noqa: E402
import score_el2n  # noqa: E402
import training  # noqa: E402
import verdicts  # noqa: E402

torch.set_num_threads(1)
STAGES = {
    "dataset": dataset,
    "score": score_el2n,
    "subset": make_subset,
    "pretrain": pretrain,
    "imp": imp,
    "connectivity": connectivity,
    "verdicts": verdicts,
    "plot": plot,
}
TINY = [
    "--depth=8",
    "--width=2",
    "--batch-size=64",
    "--lr=0.3",
    "--pretrain-lr=0.3",
    "--total-steps=45",
    "--milestones",
    "30",
    "40",
]
FRACTION = common.PRESETS["digits"]["prune_fraction"]


def pytest_configure(config):
    # the other tests compare bits with those of a CPU
    if "cuda" not in config.getoption("-m").replace("not cuda", ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(scope="session")
def digits():
    return training.load_data("digits", Path("data"), torch.device("cpu"), pad=1, flip=False)


def recipe(**changes):
    """A complete tiny recipe for calling functions directly."""
    preset = common.PRESETS["digits"] | {
        "preset": "digits",
        "classes": 10,
        "depth": 8,
        "width": 2,
        "lr": 0.3,
    }
    return preset | {"batch_size": 64, "total_steps": 45, "milestones": [30, 40]} | changes


@pytest.fixture
def call(capfd):
    """call("imp", "x.safetensors", ...) -> (status, stdout, stderr) of the real command line."""

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


@pytest.fixture
def draw(ok):
    """draw("runs", ..., "--out", folder): verdicts.py, then plot.py; returns what they print."""

    def draw(*argv):
        folder = argv[argv.index("--out") + 1]
        return ok("verdicts", *argv) + ok("plot", folder)

    return draw


@pytest.fixture
def refused(call, tmp_path):
    """refused(command, "a word", ...): status 2, one line with all the words, no file changed."""

    def refused(command, *words, status=2):
        before = snapshot(tmp_path)
        found, _, err = call(*command)
        (line,) = [line for line in err.splitlines() if not line.startswith("note: ")]
        assert (found, [word for word in words if word not in line]) == (status, []), line
        assert "Traceback" not in line
        assert "usage" not in line
        assert status == 1 or snapshot(tmp_path) == before

    return refused


def snapshot(folder):
    """The content of all files below a folder but locks and caches, to show that none changed."""
    aside = re.compile(r"\.lock$|^\.images")
    files = [p for p in Path(folder).rglob("*") if p.is_file() and not aside.search(p.name)]
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def start(ok, folder, *flags):
    """A starting point at step 5 in folder; returns the path of its rewind file."""
    path = folder / "rewind.safetensors"
    ok("pretrain", *TINY, "--steps", 5, *flags, "--out", path)
    return path


def read_csv(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def level(folder, n):
    """(tensors, info) of a finished level."""
    return training.load_tensors(folder / f"level{n:02d}.safetensors")


def part(folder, n, which):
    """{name: tensor} of the weights, masks or next masks of a level."""
    return common.part(level(folder, n)[0], which)


def equal(a, b):
    """Do two dictionaries of tensors hold the same bits?"""
    return a.keys() == b.keys() and all(torch.equal(t, b[name]) for name, t in a.items())


@pytest.fixture
def pages(monkeypatch):
    """The pages that a command draws, kept instead of written."""
    from matplotlib.figure import Figure

    kept = []  # each is saved as png and as pdf
    monkeypatch.setattr(Figure, "savefig", lambda page, *_, **__: page in kept or kept.append(page))
    return kept


def made(folder):
    """A folder's files by name, without seconds and commands: what the same work makes again."""
    found = {}
    for path in Path(folder).rglob("*.*"):
        name = str(path.relative_to(folder))
        if path.suffix == ".safetensors":
            tensors, info = training.load_tensors(path)
            info.get("row", {}).pop("seconds", None)
            info.get("made_by", {}).pop("command", None)
            found[name] = common.digest(training.to_numpy(tensors), info)
        elif path.suffix == ".csv":
            found[name] = [row | {"seconds": ""} for row in read_csv(path)]
        elif path.suffix in (".json", ".npy", ".png"):
            found[name] = re.sub(rb'"command": .*', b"", path.read_bytes())
    return found


def fake_runs(root, name, *rows, first=0, noise=0.0, rate=0.4, own=None, **settings):
    """Folders as imp.py leaves them, a seed for each row of accuracies.

    name  scheme, examples if it is a subset, and steps: "easy 64 2" or "all 4"
    """
    scheme, *size, step = name.split()
    recipe = {
        "preset": "cifar10",
        "dataset": "cifar10",
        "depth": 20,
        "lr": 0.1,
        "scheme": scheme,
        "subset_size": int(*size) if size else None,
        "rewind_step": int(step),
        "label_noise": noise,
        "noise_seed": 0,
        "pretrain_lr": rate,
        "class_balanced": None,
        "score": None,
        "labels_sha256": None,
        "version": common.VERSION,
    }
    info = {"prune_fraction": 0.2, "order_seed": None, "criterion": "magnitude"} | (own or {})
    for seed, accuracy in enumerate(rows, first):
        folder = Path(root, f"{name}-{noise}-{rate}", f"seed{seed}")
        folder.mkdir(parents=True)
        recipe["subset_sha256"] = (
            f"{scheme}{seed if scheme == 'random' else ''}{0:064}" if size else None
        )
        info |= {"rewind_sha256": f"{folder}", "recipe": recipe | {"seed": seed}}
        for key, value in settings.items():
            (info if key in info else info["recipe"])[key] = value
        for n, a in enumerate(accuracy[:2]):  # the others were not copied along
            row = {"level": n, "weights_remaining": 0.8**n, "test_accuracy": float(a)}
            common.save_tensors(folder / f"level{n:02d}.safetensors", {}, info | {"row": row})
        lines = [f"{n},{0.8**n},{float(a)}\n" for n, a in enumerate(accuracy)]
        (folder / "results.csv").write_text(
            "level,weights_remaining,test_accuracy\n" + "".join(lines)
        )
    return folder


def diverge(folder, level, step, seed, **more):
    """The diverged.json of a replicate: of imp.py or, without a level, of pretrain.py."""
    info = common.load_info(folder / "level00.safetensors")
    recipe = info.pop("recipe") | {"seed": seed}
    own = {key: value for key, value in info.items() if key != "row" and level is not None}
    told = {"recipe": recipe, "settings": own | more, "level": level, "step": step}
    (folder / "diverged.json").write_text(json.dumps(told))


def comparisons(folder, a, b):
    """{(first level, last level): row of verdicts.csv} of A against B."""
    rows = [row for row in read_csv(folder / "verdicts.csv") if (row["a"], row["b"]) == (a, b)]
    return {(int(row["first_level"]), int(row["last_level"])): row for row in rows}


def table_rows(text, *starts):
    """The cells of a Markdown table's rows whose first cells begin with these."""
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in text.splitlines()
        if line[:1] == "|"
    ]
    return [row for row in rows if all(cell.startswith(start) for cell, start in zip(row, starts))]


def accuracies(root, name):
    """[replicates, levels] in %, from the files."""
    rows = [read_csv(path) for path in sorted(Path(root).glob(f"{name}-*/*/results.csv"))]
    return 100 * np.array([[float(row["test_accuracy"]) for row in run] for run in rows])


TINY_RUNS = {
    "SEEDS": "0",
    "LEVELS": "2",
    "T_STAR": "20",
    "SIZES": "256",
    "SCORE_FLAGS": "--networks 2 --steps 5",
    "FLAGS": "--depth 8 --width 2 --total-steps 150 --milestones 125",
}


def taking_notes(folder):
    """A Python that only notes how it was called, for noted(), under a name with a space."""
    text = (ROOT / "tests" / "noting_python.sh").read_text()
    path = folder / "fake python"
    path.write_text(text.replace("python3", shlex.quote(sys.executable)))
    path.chmod(0o755)
    return path


def noted(folder):
    """[devices, threads, command line] of every process."""
    return [line.split("|") for line in (folder / "noted").read_text().splitlines()]


def run_all(*arguments, cwd, **environment):
    """`bash run_all.sh ...` with this Python and these variables, free of the machine's own."""
    environment = {"PYTHON": sys.executable} | {k: str(v) for k, v in environment.items()}
    inherited = {
        k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS" and k[:7] != "SBATCH_"
    }
    return subprocess.run(
        ["bash", ROOT / "run_all.sh", *arguments],
        env=inherited | environment,
        cwd=cwd,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="session")
def demonstration(tmp_path_factory):
    """The demonstration, tiny and local, in a folder with a space; (folder, what it printed)."""
    where = tmp_path_factory.mktemp("a folder")
    done = run_all(cwd=where, RUNS="my runs/digits", PYTHONIOENCODING="ascii", **TINY_RUNS)
    assert done.returncode == 0, done.stdout + done.stderr
    return where, done.stdout


ALL, EASY = "all data, 20 steps", "easy 256, 10 steps, balanced"  # curves


@pytest.fixture(scope="session")
def controls(tmp_path_factory):
    """The folder of `run_all.sh digits controls` at a tiny scale: two seeds, two prunings.

    The seeds differ by 1000, and one is also an order seed of ours: numbers of seeds mean nothing.
    """
    where = tmp_path_factory.mktemp("controls")
    flags = "--depth 8 --width 2 --total-steps 40 --milestones 30"
    done = run_all(
        "digits", "controls", cwd=where, **TINY_RUNS | {"SEEDS": "0 1000", "FLAGS": flags}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return where
