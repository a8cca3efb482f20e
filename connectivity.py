"""Compare runs in pairs: how alike are their masks, and does the loss rise between their networks?

reads   level files of the run folders; where a barrier is due also the images
writes  OUT/connectivity.csv, a row for each pair and level; OUT/connectivity.json, the sha256 of
        every level file that was read; OUT/loss_barrier.npy, a score for make_subset.py (float32,
        one number for each training example, low is stable), if pairs of one setting have barriers

python connectivity.py runs/all-t20/seed* --with runs/easy-256-t10/seed* --out figures/overlap
python connectivity.py runs/all-t20/seed* --with runs/all-t20-order1000/seed* --out figures/stable

The first run is compared with the first one after --with, the second with the second, and so on,
at every level that both have finished. There are three measures:

overlap         |A and B| / |A or B| of the two masks; chance is what random masks would have that
                keep as many weights in every layer
error barrier   highest test error at 11 points of the straight line between the two networks,
                minus the mean of both ends, in percent (Frankle et al. 2020)
loss barrier    at level 0, of every clean training example the loss at the midpoint minus the mean
                of both ends, in nats; the table has its mean, and the shares of examples at which
                it is at most 0 and at most 0.01

Barriers are measured between runs of one start in two batch orders (imp.py --order-seed), as long
as their masks are equal. On the line, batch-norm statistics are averaged like weights.
Where runs have gone on since, the same command measures again. Runs without a finished level are
named and left out (exit 1).
"""

import argparse
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import common
import training
from common import InputError

COLUMNS = (
    "a",
    "b",
    "name_a",
    "seed_a",
    "name_b",
    "seed_b",
    "level",
    "weights_remaining",
    "overlap",
    "chance",
    "error_barrier",
    "loss_barrier",
    "at_most_0",
    "at_most_0.01",
)
Weights = dict[str, Tensor]  # or masks, by name


# ------------------------------------------------------------ measures


def overlap(a: Weights, b: Weights) -> tuple[float, float]:
    """|A and B| / |A or B| of two runs' masks, and what chance gives at their counts by layer."""
    kept = [
        (int(a[name].sum()), int(b[name].sum()), mask.numel()) for name, mask in sorted(a.items())
    ]
    total, chance = sum(m + n for m, n, _ in kept), sum(m * n / size for m, n, size in kept)
    both = sum(int((a[name] & b[name]).sum()) for name in a)
    return both / (total - both), chance / (total - chance)


def between(net: nn.Module, a: Weights, b: Weights, t: float) -> nn.Module:
    """net, at t on the straight line from a to b, batch-norm statistics included."""
    net.load_state_dict({name: a[name].lerp(b[name], t) for name in a})
    return net


def error_barrier(net: nn.Module, a: Weights, b: Weights, data: training.Data) -> float:
    """Highest test error at 11 points of the line minus the mean of both ends, in %.

    After Frankle et al. 2020.
    """
    errors = [100 - 100 * training.evaluate(between(net, a, b, k / 10), data)[0] for k in range(11)]
    return max(errors) - (errors[0] + errors[10]) / 2


def loss_barrier(net: nn.Module, a: Weights, b: Weights, data: training.Data) -> np.ndarray:
    """Loss at the midpoint minus the mean of the ends, of each clean training example: [N] nats."""
    logits = [
        training.predict(between(net, a, b, t), data, data.train_images()) for t in (0, 0.5, 1)
    ]
    start, middle, end = (
        F.cross_entropy(x.double(), data.labels, reduction="none") for x in logits
    )
    return (middle - (start + end) / 2).cpu().numpy()


def barriers(
    files: list[tuple[Path, Path]], recipe: dict, data: training.Data
) -> tuple[np.ndarray, np.ndarray]:
    """The error barriers between two runs, level by level as long as their masks are equal.

    The second result is their loss barriers [N] at level 0.

    files  of every level, that of the one run and that of the other
    """
    errors, device = [], data.labels.device
    net = training.ResNet(recipe["depth"], recipe["width"], data.test.shape[3], recipe["classes"])
    net.to(device, memory_format=torch.channels_last)
    for pair in files:
        tensors = [training.load_tensors(file)[0] for file in pair]
        a, b = (common.part(t, "mask") for t in tensors)
        if any(not mask.equal(b[name]) for name, mask in a.items()):
            break
        a, b = (
            {name: t.to(device) for name, t in common.part(t, "weight").items()} for t in tensors
        )
        if not errors:
            examples = loss_barrier(net, a, b, data)
        errors.append(error_barrier(net, a, b, data))
    return np.array(errors), examples


# ------------------------------------------------------------ pairs of runs


@dataclass
class Run:
    """A run folder, and what its dense level says about it."""

    folder: Path
    recipe: dict
    seed: int  # which replicate it is
    settings: dict  # that it shares with other replicates
    name: str  # of its start, as run_all.sh names folders
    start: str  # sha256 of the starting point
    order: int | None  # seed of a batch order that is not the replicate's own


@dataclass
class Pair:
    a: Run
    b: Run
    files: list[tuple[Path, Path]]  # of every level that both have

    @property
    def of_one_start(self) -> bool:
        """Then their batch orders differ, and a barrier is due: see make_pair."""
        return self.a.start == self.b.start

    @property
    def setting(self) -> tuple[dict, dict]:
        """What pairs have in common over which loss barriers are averaged."""
        any_order = {"order_seed": None}
        return self.a.settings | any_order, self.b.settings | any_order


def read_run(folder: Path) -> Run:
    path = folder / "level00.safetensors"
    info = common.load_info(path)
    with common.reading(path):
        common.check_version(path, info["recipe"])
        seed, settings = common.replicate(info)
        return Run(
            folder,
            recipe=info["recipe"],
            seed=seed,
            settings=settings,
            name=common.start_name(info["recipe"]),
            start=info["rewind_sha256"],
            order=info["order_seed"],
        )


def find_pairs(runs: list[Path], others: list[Path]) -> tuple[list[Pair], str]:
    """The pairs of finished runs, and which folders are none. InputError: no pair is left."""
    missing = [f for f in (*runs, *others) if not (f / "level00.safetensors").exists()]
    pairs = []
    for a, b in zip(runs, others):
        if a not in missing and b not in missing:
            pairs.append(make_pair(read_run(a), read_run(b)))
    named = ", ".join(str(folder) for folder in dict.fromkeys(missing))
    if not pairs:
        raise InputError(f"no pair of finished runs: no level00.safetensors in {named}")
    return pairs, named


def make_pair(a: Run, b: Run) -> Pair:
    """Two runs and the levels that both have. InputError: they are one training."""
    if (a.start, a.order) == (b.start, b.order):
        raise InputError(f"{a.folder} and {b.folder} are of one start in one order")
    files = []
    for path in sorted(a.folder.glob("level*.safetensors")):
        other = b.folder / path.name
        if other.exists():
            files.append((path, other))
    return Pair(a, b, files)


def compare_masks(pair: Pair, out: Path) -> list[dict]:
    """The rows of a pair, without barriers. weights_remaining is that of the first run."""
    rows = []
    for path, other in pair.files:
        tensors, info = training.load_tensors(path)
        a = common.part(tensors, "mask")
        b = common.part(training.load_tensors(other)[0], "mask")
        with common.reading(path):
            row = {key: info["row"][key] for key in ("level", "weights_remaining")}
        if shapes(a) != shapes(b):
            raise InputError(f"{path} and {other} are of networks of other shapes")
        row["a"], row["b"] = (relative(run.folder, out) for run in (pair.a, pair.b))
        row |= {"name_a": pair.a.name, "seed_a": pair.a.seed}
        row |= {"name_b": pair.b.name, "seed_b": pair.b.seed}
        row["overlap"], row["chance"] = overlap(a, b)
        rows.append(row)
    return rows


def shapes(tensors: Weights) -> dict:
    return {name: t.shape for name, t in tensors.items()}


def relative(folder: Path, out: Path) -> str:
    return os.path.relpath(folder.resolve(), out.resolve())


def add_barriers(pair: Pair, rows: list[dict], data: training.Data) -> np.ndarray:
    """Fill the barriers of a pair into its rows; returns its loss barriers [N]."""
    errors, examples = barriers(pair.files, pair.a.recipe, data)
    for row, error in zip(rows, errors):
        row["error_barrier"] = error
    rows[0]["loss_barrier"] = examples.mean()
    rows[0]["at_most_0"] = (examples <= 0).mean()
    rows[0]["at_most_0.01"] = (examples <= 0.01).mean()
    return examples


def load_images(pairs: list[Pair], data_dir: Path, device: torch.device) -> training.Data:
    """The images that all these pairs were trained on. InputError: there are others."""
    recipe = pairs[0].a.recipe
    preset = common.PRESETS[recipe["preset"]]
    data = training.load_data(
        recipe["dataset"],
        data_dir,
        device,
        pad=preset["pad"],
        flip=preset["flip"],
        image_size=recipe["image_size"],
    )
    for pair in pairs:
        if pair.a.recipe["fingerprint"] != data.fingerprint:
            raise InputError(f"{data_dir}: not the images that {pair.a.folder} was trained on")
    return data


# ------------------------------------------------------------ files


def contents(pairs: list[Pair], out: Path) -> list[dict]:
    """For connectivity.json: of every pair its folders, and the sha256 of its files by level."""
    read = []
    for pair in pairs:
        hashes = {}
        for path, other in pair.files:
            with common.reading(path):
                hashes[path.name] = [common.sha256(f.read_bytes()) for f in (path, other)]
        folders = {"a": relative(pair.a.folder, out), "b": relative(pair.b.folder, out)}
        read.append(folders | {"levels": hashes})
    return read


def is_done(out: Path, wanted: list[dict]) -> bool:
    """Does connectivity.csv come from these files, as they are now?

    If it comes from some of them, as when runs have gone on or a replicate has come, it is to be
    made again: False. InputError: it comes from others.
    """
    path = out / "connectivity.json"
    if not path.exists() or not (out / "connectivity.csv").exists():
        return False
    with common.reading(path):
        found = json.loads(path.read_text())
        common.check_version(path, found)
        # where folders lie is recorded, and not compared
        before = [pair["levels"] for pair in found["pairs"]]
        labels = [f"{pair['a']} with {pair['b']}" for pair in found["pairs"]]
    now = [pair["levels"] for pair in wanted]
    if before == now:
        return True
    for label, levels in zip(labels, before):
        if not any(levels.items() <= others.items() for others in now):
            raise InputError(
                f"{path} exists for other files: {label} is not among these runs now, or has other "
                "levels (--force starts over)"
            )
    return False


def save_score(
    out: Path, pairs: list[Pair], examples: list[np.ndarray], made_by: dict
) -> list[Path]:
    """Save the mean loss barrier of each example as a score, if there are pairs of one setting.

    Returns its path; nothing if there is none.
    """
    path = out / "loss_barrier.npy"
    path.unlink(missing_ok=True)
    path.with_suffix(".json").unlink(missing_ok=True)
    if not pairs:
        return []
    if any(pair.setting != pairs[0].setting for pair in pairs):
        print(f"note: pairs of several settings, so no {path.name}: give each its own --out")
        return []
    recipe = pairs[0].a.recipe
    about = {key: recipe[key] for key in ("preset", "dataset", "fingerprint")}
    about |= {
        "version": common.VERSION,
        "select": "barrier",
        "start": pairs[0].a.name,
        "pairs": len(pairs),
        "label_noise": 0.0,
        "made_by": made_by,
    }
    common.save_array(path, np.mean(examples, axis=0).astype(np.float32), about)
    return [path]


def describe(row: dict) -> str:
    """A row of the table in words."""
    runs = f"{row['name_a']} seed {row['seed_a']} and {row['name_b']} seed {row['seed_b']}"
    text = f"{runs}   level {row['level']}   overlap {row['overlap']:.3f}"
    text += f"   chance {row['chance']:.3f}"
    if "error_barrier" in row:
        text += f"   error barrier {row['error_barrier']:.2f}"
    if "loss_barrier" in row:
        text += f"   loss barrier {row['loss_barrier']:.4f}"
    return text


# ------------------------------------------------------------ command line


def measure(pairs: list[Pair], read: list[dict], args: argparse.Namespace) -> list[Path]:
    """Measure all pairs and write the files; returns the paths of those to be looked at.

    read  what connectivity.json says of the pairs
    """
    rows = [compare_masks(pair, args.out) for pair in pairs]
    crossed = [k for k, pair in enumerate(pairs) if pair.of_one_start]
    examples, made_by = measure_barriers(
        [pairs[k] for k in crossed], [rows[k] for k in crossed], args
    )
    lines = [row for of_pair in rows for row in of_pair]
    for line in lines:
        print(describe(line))
    # connectivity.json says that the others are complete: so it is removed first and written last
    path, done = args.out / "connectivity.csv", args.out / "connectivity.json"
    done.unlink(missing_ok=True)
    score = save_score(args.out, [pairs[k] for k in crossed], examples, made_by)
    common.write_csv(path, [COLUMNS, *([line.get(key, "") for key in COLUMNS] for line in lines)])
    about = {"version": common.VERSION, "pairs": read, "made_by": made_by}
    common.atomic_write(done, common.to_json(about, indent=1) + b"\n")
    return [path, *score]


def measure_barriers(
    pairs: list[Pair], rows: list[list[dict]], args: argparse.Namespace
) -> tuple[list[np.ndarray], dict]:
    """Fill the barriers of pairs of one start into their rows.

    Returns the loss barriers [N] of each pair, and what is recorded of this process.
    """
    if not pairs:  # so no device and no image is needed
        return [], common.made_by()
    device = training.resolve_device(args.device)
    data = load_images(pairs, args.data_dir, device)
    examples = []
    for pair, of_pair in tqdm([*zip(pairs, rows)], "barriers", disable=None, leave=False):
        examples.append(add_barriers(pair, of_pair, data))
    return examples, training.made_by(device)


def main(argv: list[str] | None = None) -> None:
    parser = common.Parser(__doc__)
    add = parser.add_argument
    add("runs", type=Path, nargs="+", metavar="RUN", help="run folders")
    add(
        "--with",
        dest="others",
        type=Path,
        nargs="+",
        required=True,
        metavar="RUN",
        help="as many run folders to compare them with, in the same order",
    )
    common.add_place_flags(parser)
    add("--out", type=Path, required=True, help="folder of this comparison alone")
    args = parser.parse_args(argv)
    if len(args.runs) != len(args.others):
        raise InputError(
            f"--with: {len(args.others)} run folders for {len(args.runs)} to compare in order"
        )
    pairs, missing = find_pairs(args.runs, args.others)
    read = contents(pairs, args.out)
    if not args.force and is_done(args.out, read):
        print(f"already done: {args.out / 'connectivity.csv'}")
    else:
        with common.lock(args.out / ".lock"):
            paths = measure(pairs, read, args)
        print("", *paths, sep="\n")
    if missing:
        raise common.Failure(f"left out, as these have no level00.safetensors: {missing}")


if __name__ == "__main__":
    sys.exit(common.cli(main))
