"""Compare runs in pairs: how similar are their masks, and does the loss rise between networks?

reads   level files of the run folders; where a barrier is measured also the images
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
loss barrier    at level 0, the loss of every clean training example at the midpoint minus the mean
                of both ends, in nats; the table has its mean, and the shares of examples at which
                it is at most 0 and at most 0.01

Barriers are measured between runs of one start in two batch orders (imp.py --order-seed), as long
as their masks are equal. On the line, batch-norm statistics are averaged like weights. Runs of one
start in one order can be compared if they were pruned in two ways; their networks are the same at
level 0.
If runs have gone on since, the same command measures again. Runs without a finished level are
named and left out, and the exit status is 1.
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

Tensors = dict[str, Tensor]  # the weights or the masks of a network by name


# ------------------------------------------------------------ measures


def overlap(masks_a: Tensors, masks_b: Tensors) -> tuple[float, float]:
    """Return |A and B| / |A or B| of the masks of two runs, and what chance gives.

    Chance is the expected |A and B| divided by the expected |A or B| of random masks that keep as
    many weights in every layer as these do.
    """
    remaining, shared = 0, 0
    expected_shared = []
    for name, mask_a in sorted(masks_a.items()):
        mask_b = masks_b[name]
        remaining_a, remaining_b = int(mask_a.sum()), int(mask_b.sum())
        remaining += remaining_a + remaining_b
        shared += int((mask_a & mask_b).sum())
        expected_shared.append(remaining_a * remaining_b / mask_a.numel())
    by_chance = sum(expected_shared)
    # |A or B| is |A| + |B| - |A and B|.
    return shared / (remaining - shared), by_chance / (remaining - by_chance)


def load_interpolation(net: nn.Module, weights_a: Tensors, weights_b: Tensors, t: float) -> None:
    """Load the point at t in [0, 1] of the straight line from a to b into net.

    Batch-norm statistics are interpolated like weights.
    """
    net.load_state_dict({name: w.lerp(weights_b[name], t) for name, w in weights_a.items()})


def error_barrier(
    net: nn.Module, weights_a: Tensors, weights_b: Tensors, data: training.Data
) -> float:
    """Return the highest test error at 11 points of the line minus the mean of both ends, in %.

    This is the linear interpolation instability of Frankle et al. 2020. net is overwritten.
    """
    errors = []
    for k in range(11):
        load_interpolation(net, weights_a, weights_b, k / 10)
        accuracy, _ = training.evaluate(net, data)
        errors.append(100 - 100 * accuracy)
    return max(errors) - (errors[0] + errors[-1]) / 2


def loss_barrier(
    net: nn.Module, weights_a: Tensors, weights_b: Tensors, data: training.Data
) -> np.ndarray:
    """Return the loss at the midpoint minus the mean of both ends, float64 [N] in nats.

    It has a value for each training example, under its clean label. net is overwritten.
    """
    losses = []
    for t in (0, 0.5, 1):
        load_interpolation(net, weights_a, weights_b, t)
        logits = training.predict(net, data, data.train_images())
        losses.append(F.cross_entropy(logits.double(), data.labels, reduction="none"))
    start, middle, end = losses
    return (middle - (start + end) / 2).cpu().numpy()


# ------------------------------------------------------------ pairs of runs


@dataclass
class RunInfo:
    """A run folder and what its level 0 says about it."""

    folder: Path
    recipe: dict
    seed: int  # of the replicate
    settings: dict  # those that all replicates share
    start_name: str  # the start as run_all.sh names folders
    start_sha256: str  # of the rewind file
    order_seed: int | None  # None is the replicate's own batch order


@dataclass
class Pair:
    """Two runs that are compared."""

    a: RunInfo
    b: RunInfo
    files: list[tuple[Path, Path]]  # the level files of both, for every level that both have

    @property
    def two_orders_of_a_start(self) -> bool:
        """Are both runs of one start, in two batch orders? Then their barriers are measured."""
        same_start = self.a.start_sha256 == self.b.start_sha256
        return same_start and self.a.order_seed != self.b.order_seed

    @property
    def settings_of_both(self) -> tuple[dict, dict]:
        """Return the settings of both runs, apart from the batch order.

        Loss barriers are averaged over pairs for which these are equal.
        """
        any_order = {"order_seed": None}
        return self.a.settings | any_order, self.b.settings | any_order


def read_run_info(folder: Path) -> RunInfo:
    """Return what the level 0 of a run says. InputError: it is missing or not readable."""
    path = folder / "level00.safetensors"
    info = common.load_info(path)
    with common.reading(path):
        recipe = info["recipe"]
        common.check_version(path, recipe)
        seed, settings = common.replicate(info)
        return RunInfo(
            folder=folder,
            recipe=recipe,
            seed=seed,
            settings=settings,
            start_name=common.start_name(recipe),
            start_sha256=info["rewind_sha256"],
            order_seed=info["order_seed"],
        )


def find_pairs(runs: list[Path], others: list[Path]) -> tuple[list[Pair], str]:
    """Return the pairs of finished runs, and the names of the folders without a finished level.

    InputError: no pair is left.
    """
    unfinished = []
    for folder in (*runs, *others):
        if not (folder / "level00.safetensors").exists() and folder not in unfinished:
            unfinished.append(folder)
    pairs = []
    for a, b in zip(runs, others):
        if a not in unfinished and b not in unfinished:
            pairs.append(make_pair(read_run_info(a), read_run_info(b)))
    names = ", ".join(map(str, unfinished))
    if not pairs:
        raise InputError(f"no pair of finished runs: no level00.safetensors in {names}")
    return pairs, names


def make_pair(a: RunInfo, b: RunInfo) -> Pair:
    """Return two runs with the levels that both have.

    InputError: nothing differs, neither start nor batch order nor how they were pruned.
    """
    if (a.start_sha256, a.seed, a.settings) == (b.start_sha256, b.seed, b.settings):
        raise InputError(
            f"{a.folder} and {b.folder} are of one start in one order, pruned in one way"
        )
    files = []
    for path_a in sorted(a.folder.glob("level*.safetensors")):
        path_b = b.folder / path_a.name
        if path_b.exists():
            files.append((path_a, path_b))
    return Pair(a, b, files)


def compare_masks(pair: Pair, out: Path) -> list[dict]:
    """Return the rows of a pair for connectivity.csv, one for each level, without barriers.

    Weights remaining are those of the first run. InputError: the shapes of the networks differ.
    """
    rows = []
    for path_a, path_b in pair.files:
        tensors_a, info = training.load_tensors(path_a)
        tensors_b, _ = training.load_tensors(path_b)
        masks_a = common.part(tensors_a, "mask")
        masks_b = common.part(tensors_b, "mask")
        with common.reading(path_a):
            level = info["row"]["level"]
            weights_remaining = info["row"]["weights_remaining"]
        if shapes(masks_a) != shapes(masks_b):
            raise InputError(f"{path_a} and {path_b} are of networks of other shapes")
        overlap_of_masks, chance = overlap(masks_a, masks_b)
        rows.append(
            {
                "a": relative_to(out, pair.a.folder),
                "b": relative_to(out, pair.b.folder),
                "name_a": pair.a.start_name,
                "seed_a": pair.a.seed,
                "name_b": pair.b.start_name,
                "seed_b": pair.b.seed,
                "level": level,
                "weights_remaining": weights_remaining,
                "overlap": overlap_of_masks,
                "chance": chance,
            }
        )
    return rows


def shapes(tensors: Tensors) -> dict[str, torch.Size]:
    """Return the shape of every tensor by name."""
    return {name: tensor.shape for name, tensor in tensors.items()}


def relative_to(out: Path, folder: Path) -> str:
    """Return the path that leads from the folder of this comparison to another folder."""
    return os.path.relpath(folder.resolve(), out.resolve())


# ------------------------------------------------------------ barriers of a pair


def measure_barriers(pair: Pair, data: training.Data) -> tuple[list[float], np.ndarray]:
    """Return the error barriers by level, in %, and the loss barriers at level 0, [N] in nats.

    The error barriers end where the masks of the runs begin to differ: from there on, the networks
    on the line have more weights than either of its ends.
    """
    device = data.labels.device
    net = make_network(pair.a.recipe, data)
    # Both runs are dense at level 0, so their masks are equal there.
    path_a, path_b = pair.files[0]
    weights_a, weights_b = read_weights(path_a, device), read_weights(path_b, device)
    loss_barriers = loss_barrier(net, weights_a, weights_b, data)
    error_barriers = []
    for path_a, path_b in pair.files:
        if not have_equal_masks(path_a, path_b):
            break
        weights_a, weights_b = read_weights(path_a, device), read_weights(path_b, device)
        error_barriers.append(error_barrier(net, weights_a, weights_b, data))
    return error_barriers, loss_barriers


def make_network(recipe: dict, data: training.Data) -> training.ResNet:
    """Return a network of a recipe on the device of the data; its weights are yet to be loaded."""
    channels = data.test.shape[3]
    net = training.ResNet(recipe["depth"], recipe["width"], channels, recipe["classes"])
    return net.to(data.labels.device, memory_format=torch.channels_last)


def read_weights(path: Path, device: torch.device) -> Tensors:
    """Return the weights and batch-norm statistics in a level file, on a device."""
    tensors, _ = training.load_tensors(path)
    weights = common.part(tensors, "weight")
    return {name: tensor.to(device) for name, tensor in weights.items()}


def have_equal_masks(path_a: Path, path_b: Path) -> bool:
    """Were the networks of two level files trained under the same masks?"""
    tensors_a, _ = training.load_tensors(path_a)
    tensors_b, _ = training.load_tensors(path_b)
    masks_a = common.part(tensors_a, "mask")
    masks_b = common.part(tensors_b, "mask")
    return all(mask.equal(masks_b[name]) for name, mask in masks_a.items())


def add_barriers(pair: Pair, rows: list[dict], data: training.Data) -> np.ndarray:
    """Fill the barriers of a pair into its rows, and return its loss barriers [N]."""
    error_barriers, loss_barriers = measure_barriers(pair, data)
    for row, barrier in zip(rows, error_barriers):
        row["error_barrier"] = barrier
    rows[0]["loss_barrier"] = loss_barriers.mean()
    rows[0]["at_most_0"] = (loss_barriers <= 0).mean()
    rows[0]["at_most_0.01"] = (loss_barriers <= 0.01).mean()
    return loss_barriers


def load_data(pairs: list[Pair], data_dir: Path, device: torch.device) -> training.Data:
    """Return the images on which the runs were trained, on a device.

    InputError: data_dir holds other images than those of a run.
    """
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


def hash_level_files(pairs: list[Pair], out: Path) -> list[dict]:
    """Return the manifest for connectivity.json: the folders and file hashes of every pair.

    The hashes are {file name: [sha256 of the first run's file, of the second's]}.
    """
    manifest = []
    for pair in pairs:
        hashes = {}
        for path_a, path_b in pair.files:
            with common.reading(path_a):
                hash_a = common.sha256(path_a.read_bytes())
                hash_b = common.sha256(path_b.read_bytes())
            hashes[path_a.name] = [hash_a, hash_b]
        manifest.append(
            {
                "a": relative_to(out, pair.a.folder),
                "b": relative_to(out, pair.b.folder),
                "levels": hashes,
            }
        )
    return manifest


def is_up_to_date(out: Path, manifest: list[dict]) -> bool:
    """Was connectivity.csv made from exactly these files?

    If it was made from some of them, because runs have gone on or a replicate was added, the answer
    is no, and everything is measured again. InputError: it covers a pair or a level that is not
    among these files, and that would be lost.
    """
    path = out / "connectivity.json"
    if not path.exists() or not (out / "connectivity.csv").exists():
        return False
    hashes = [pair["levels"] for pair in manifest]
    with common.reading(path):
        stored = json.loads(path.read_text())
        common.check_version(path, stored)
        # The folders are recorded but not compared, so that they may be moved.
        stored_hashes = [pair["levels"] for pair in stored["pairs"]]
        stored_names = [f"{pair['a']} with {pair['b']}" for pair in stored["pairs"]]
    if stored_hashes == hashes:
        return True
    for name, levels in zip(stored_names, stored_hashes):
        if not any(levels.items() <= current.items() for current in hashes):
            raise InputError(
                f"{path} exists for other files: {name} is not among these runs now, or has other "
                "levels (--force starts over)"
            )
    return False


def save_score(
    out: Path, pairs: list[Pair], loss_barriers: list[np.ndarray], made_by: dict
) -> list[Path]:
    """Save the loss barriers [N] of each pair, averaged over pairs, as a score; return its path.

    An old score is removed first. Without pairs, or if their settings differ, none is saved and the
    list of paths is empty.
    """
    path = out / "loss_barrier.npy"
    path.unlink(missing_ok=True)
    path.with_suffix(".json").unlink(missing_ok=True)
    if not pairs:
        return []
    if any(pair.settings_of_both != pairs[0].settings_of_both for pair in pairs):
        print(f"note: pairs of several settings, so no {path.name}: give each its own --out")
        return []
    recipe = pairs[0].a.recipe
    info = {
        "preset": recipe["preset"],
        "dataset": recipe["dataset"],
        "fingerprint": recipe["fingerprint"],
        "version": common.VERSION,
        "select": "barrier",
        "start": pairs[0].a.start_name,
        "pairs": len(pairs),
        "label_noise": 0.0,
        "made_by": made_by,
    }
    common.save_array(path, np.mean(loss_barriers, axis=0).astype(np.float32), info)
    return [path]


def save_table(out: Path, rows: list[dict]) -> Path:
    """Write connectivity.csv and return its path; a cell without a value is empty."""
    path = out / "connectivity.csv"
    lines = [COLUMNS]
    for row in rows:
        lines.append([row.get(column, "") for column in COLUMNS])
    return common.write_csv(path, lines)


def format_row(row: dict) -> str:
    """Return a row of the table as the line that is printed."""
    run_a, run_b = (f"{row['name_' + x]} seed {row['seed_' + x]}" for x in "ab")
    if run_a == run_b:  # only their folders tell them apart
        run_a, run_b = row["a"], row["b"]
    runs = f"{run_a} and {run_b}"
    text = f"{runs}   level {row['level']}   overlap {row['overlap']:.3f}"
    text += f"   chance {row['chance']:.3f}"
    if "error_barrier" in row:
        text += f"   error barrier {row['error_barrier']:.2f}"
    if "loss_barrier" in row:
        text += f"   loss barrier {row['loss_barrier']:.4f}"
    return text


# ------------------------------------------------------------ command line


def measure(pairs: list[Pair], manifest: list[dict], args: argparse.Namespace) -> list[Path]:
    """Measure all pairs, print the rows and write the files.

    Returns the paths of the table and, if there is one, of the score.
    """
    tables = [compare_masks(pair, args.out) for pair in pairs]
    loss_barriers, made_by = measure_two_orders(pairs, tables, args)
    rows = []
    for table in tables:
        rows += table
    for row in rows:
        print(format_row(row))
    # connectivity.json marks the folder as complete, so it is deleted first and written last.
    manifest_path = args.out / "connectivity.json"
    manifest_path.unlink(missing_ok=True)
    two_orders = [pair for pair in pairs if pair.two_orders_of_a_start]
    score_paths = save_score(args.out, two_orders, loss_barriers, made_by)
    table_path = save_table(args.out, rows)
    content = {"version": common.VERSION, "pairs": manifest, "made_by": made_by}
    common.atomic_write(manifest_path, common.to_json(content, indent=1) + b"\n")
    return [table_path, *score_paths]


def measure_two_orders(
    pairs: list[Pair], tables: list[list[dict]], args: argparse.Namespace
) -> tuple[list[np.ndarray], dict]:
    """Fill barriers into the tables of the pairs whose runs are of one start in two orders.

    Returns the loss barriers [N] of each such pair, and the record of this process. Without such a
    pair neither a device nor images are needed.
    """
    two_orders = [(pair, rows) for pair, rows in zip(pairs, tables) if pair.two_orders_of_a_start]
    if not two_orders:
        return [], common.made_by()
    device = training.resolve_device(args.device)
    data = load_data([pair for pair, _ in two_orders], args.data_dir, device)
    loss_barriers = []
    for pair, rows in tqdm(two_orders, "barriers", disable=None, leave=False):
        loss_barriers.append(add_barriers(pair, rows, data))
    return loss_barriers, training.made_by(device)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return the arguments. InputError: the two lists of runs are not equally long."""
    parser = common.Parser(__doc__)
    add = parser.add_argument
    add("runs", type=Path, nargs="+", metavar="RUN", help="Compare these run folders.")
    add(
        "--with",
        dest="others",
        type=Path,
        nargs="+",
        required=True,
        metavar="RUN",
        help="Compare them with these: as many run folders, in the same order.",
    )
    common.add_place_flags(parser)
    add(
        "--out",
        type=Path,
        required=True,
        help="Write into this folder, which is for this comparison alone.",
    )
    args = parser.parse_args(argv)
    if len(args.runs) != len(args.others):
        raise InputError(
            f"--with: {len(args.others)} run folders for {len(args.runs)} to compare in order"
        )
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    pairs, unfinished = find_pairs(args.runs, args.others)
    manifest = hash_level_files(pairs, args.out)
    if not args.force and is_up_to_date(args.out, manifest):
        print(f"already done: {args.out / 'connectivity.csv'}")
    else:
        with common.lock(args.out / ".lock"):
            paths = measure(pairs, manifest, args)
        print("", *paths, sep="\n")
    if unfinished:
        raise common.Failure(f"left out, as these have no level00.safetensors: {unfinished}")


if __name__ == "__main__":
    sys.exit(common.cli(main))
