"""Iterative magnitude pruning with rewinding (paper, Algorithm 1), for one or many starting points.

Every level trains on the full training set with its clean labels: subsets and label noise are for
pre-training only.

reads   rewind.safetensors (weights at step t_r and the recipe), the training set
writes  beside it levelNN.safetensors (weight.*, mask.*, next.*), results.csv; state.safetensors
        while a level is unfinished; diverged.json where a loss was not finite
python imp.py runs/cifar10/easy-3200-t200/seed*/rewind.safetensors --levels 16
python imp.py new/rewind.safetensors --masks runs/cifar10/all-t400/seed0 --out new/under-its-masks
"""

import argparse
import contextlib
import itertools
import math
import sys
import time
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import common
import training
from common import InputError

# ------------------------------------------------------------ the pruning rule

CRITERION = "magnitude"  # the name of `importance`: results of two criteria are never mixed


def importance(
    net: nn.Module, data: training.Data, random: np.random.Generator
) -> dict[str, Tensor]:
    """Return how important each prunable weight of a trained network is, by name.

    The least important weights are pruned; after Algorithm 1 of the paper these are the smallest. A
    rule of your own may use data, gradients or chance. The network is in eval mode, and random is
    the stream of this run's seed and level.
    """
    return {name: weight.detach().abs() for name, weight in net.prunable().items()}


def prune(
    importances: dict[str, Tensor], masks: dict[str, Tensor], fraction: float
) -> dict[str, Tensor]:
    """Return new uint8 masks without the least important fraction of the weights still there.

    Exactly ceil(fraction x remaining) weights go, over all tensors together. The fraction counts as
    the decimal it was written as, and ties go by position in the order of masks.
    """
    kept = torch.cat([mask.flatten() for mask in masks.values()]).bool()
    remaining = kept.nonzero().squeeze(1)  # positions
    count = math.ceil(Fraction(str(fraction)) * len(remaining))
    values = torch.cat([importances[name].flatten() for name in masks])[remaining]
    if not values.isfinite().all():
        raise common.Failure(f"the {CRITERION} of a weight is not finite")
    # The sort is stable, so ties go by position; topk would break them arbitrarily.
    order = torch.sort(values, stable=True).indices
    kept[remaining[order[:count]]] = False
    parts = kept.to(torch.uint8).split([mask.numel() for mask in masks.values()])
    return {name: part.view(masks[name].shape) for name, part in zip(masks, parts)}


# ------------------------------------------------------------ the algorithm


@dataclass(eq=False)
class Run:
    """One starting point on its way through the levels."""

    folder: Path
    weights: dict[str, Tensor]  # w_{t_r} with its batch-norm statistics
    recipe: dict
    settings: dict  # what decides the result beside the recipe
    masks: dict[str, Tensor]  # uint8, in state-dict order; `level` is trained under them
    level: int = 0  # the level to train next
    # the masks that another run handed on after each level; empty: the run prunes for itself
    borrowed: list[dict[str, Tensor]] = field(default_factory=list)
    rows: list[dict] = field(default_factory=list)  # the rows of results.csv
    seconds: float = 0.0  # how long `level` has been trained so far
    network: training.Member | None = None  # there only while the run is trained

    @property
    def metadata(self) -> dict:
        """What every file of the run says about it."""
        return {"recipe": self.recipe, **self.settings}

    def advance(self, masks: dict[str, Tensor]) -> None:
        """Go on to the next level, under these masks."""
        self.masks = {name: mask.cpu() for name, mask in masks.items()}
        self.level, self.seconds = self.level + 1, 0.0


def prune_iteratively(
    runs: list[Run], levels: int, data: training.Data, save_every: float, received: list[int]
) -> list[str]:
    """Algorithm 1 of the paper for several starts side by side: train, prune, rewind, repeat.

    Runs that are at another level sit this one out. Returns a line for every run that had to stop
    because its loss was not finite.

    save_every  seconds between two saves within a level
    received    the numbers of signals that have arrived; the first one ends the work
    """
    group = make_group(runs, data)
    stopped = []
    for level in range(levels + 1):
        active = [run for run in runs if run.level == level]
        for run in active:
            run.network.rewind(run.weights, run.masks, run.recipe["rewind_step"])
            resume_inside_level(run)
        train_level(group, active, level, save_every, received)
        for run in active:
            trained = evaluate_level(run, data)
            if trained is None:
                stopped.append(note_divergence(run))
                continue
            if run.borrowed:
                masks = run.borrowed[level]
            else:
                importances = importances_of(run, data)
                masks = prune(importances, run.network.masks, run.settings["prune_fraction"])
            save_level(run, trained, masks)
            run.advance(masks)
    return stopped


def make_group(runs: list[Run], data: training.Data) -> training.Group:
    """Give every run a network, and let these networks take their steps side by side."""
    recipe = runs[0].recipe
    for run in runs:
        seed = batch_order_seed(run.recipe["seed"], run.settings["order_seed"])
        run.network = training.Member(str(run.folder), recipe, data, seed)
    return training.Group([run.network for run in runs], data, recipe)


def batch_order_seed(seed: int, order_seed: int | None) -> int:
    """Return the seed of a run's batch order: that of the replicate, unless --order-seed is given.

    An order seed becomes a number above 2**32, so that it never is the seed of a replicate.
    """
    if order_seed is None:
        return seed
    return common.seed_of_its_own(common.OTHER_ORDER, order_seed)


def train_level(
    group: training.Group, active: list[Run], level: int, save_every: float, received: list[int]
) -> None:
    """Train the active runs to the end of a level; each adds its share of the time to run.seconds.

    Unfinished levels are saved every save_every seconds, and when a signal has been received. Then
    Stopped is raised.
    """
    if not active:
        return
    recipe = group.recipe
    networks = [run.network for run in active]
    for run in active:
        run.network.name = f"{run.folder}, level {level}"
    clock = time.monotonic()
    steps = training.train(
        group, recipe["total_steps"], peak=recipe["lr"], level=level, only=networks
    )
    for step in steps:
        now = time.monotonic()
        if not received and now - clock < save_every:
            continue
        for run in active:
            run.seconds += (now - clock) / len(active)
            if run.network.step == step and not run.network.failed:
                save_state(run)
        if received:
            raise common.Stopped(received[0])
        clock = time.monotonic()  # so saving does not count as training time
    spent = time.monotonic() - clock
    for run in active:
        run.seconds += spent / len(active)


def importances_of(run: Run, data: training.Data) -> dict[str, Tensor]:
    """Return how important the weights of a run's trained network are, by the rule above.

    The network is in eval mode, so its statistics stay as they are, and gradients that the rule
    computes are dropped.
    """
    random = common.rng(common.PRUNE, run.recipe["seed"], run.level)
    net = run.network.net
    net.eval()
    importances = importance(net, data, random)
    net.zero_grad()
    return importances


# ------------------------------------------------------------ the end of a level

COLUMNS = [
    "level",
    "weights_remaining",
    "weights_remaining_count",
    "test_accuracy",
    "test_loss",
    "train_loss",
    "steps",
    "seconds",
]
# a finished level as a line on stdout, which leaves out one of these columns
LINE = "{}   {:>5} {:>8} {:>9} {:>10} {:>11} {:>6} {:>8}"
HEADER = ["level", "weights", "accuracy", "test loss", "train loss", "steps", "seconds"]


@dataclass
class Trained:
    """A network at the end of a level."""

    weights: dict[str, Tensor]  # on the host, batch-norm statistics included
    test_accuracy: float  # a fraction
    test_loss: float
    train_loss: float  # the mean of the last epoch


def evaluate_level(run: Run, data: training.Data) -> Trained | None:
    """Evaluate a run's network at the end of a level; None if its loss was not finite."""
    network = run.network
    accuracy, loss = training.evaluate(network.net, data)
    if network.failed or not math.isfinite(loss):
        return None
    weights = {name: t.cpu().clone() for name, t in network.net.state_dict().items()}
    train_loss = network.loss_sum.item() / max(1, network.loss_steps)
    return Trained(weights, accuracy, loss, train_loss)


def note_divergence(run: Run) -> str:
    """Write diverged.json for a run whose loss is not finite; returns a line about it."""
    step = run.network.step
    common.save_divergence(
        run.folder, recipe=run.recipe, settings=run.settings, level=run.level, step=step
    )
    return f"{run.folder}: the loss is not finite at level {run.level}, step {step}"


def save_level(run: Run, trained: Trained, masks: dict[str, Tensor]) -> None:
    """Save a trained level with the masks of the next one, and add its row to results.csv."""
    for name, mask in run.masks.items():
        assert not trained.weights[name][mask == 0].any(), f"pruned weights of {name} are not zero"
    remaining = sum(int(mask.sum()) for mask in run.masks.values())
    row = {
        "level": run.level,
        "weights_remaining": remaining / sum(mask.numel() for mask in run.masks.values()),
        "weights_remaining_count": remaining,
        "test_accuracy": trained.test_accuracy,
        "test_loss": trained.test_loss,
        "train_loss": trained.train_loss,
        "steps": run.network.step - run.recipe["rewind_step"],
        "seconds": round(run.seconds, 3),
    }
    device = run.network.loss_sum.device
    info = run.metadata | {"row": row, "made_by": training.made_by(device)}
    tensors = common.prefixed(weight=trained.weights, mask=run.masks, next=masks)
    training.save_tensors(level_path(run.folder, run.level), tensors, info)
    (run.folder / "diverged.json").unlink(missing_ok=True)
    run.rows.append(row)
    write_results(run)
    print(format_row(run.folder, row), flush=True)


def format_row(folder: Path, row: dict) -> str:
    """Return a finished level as a line for stdout."""
    return LINE.format(
        folder,
        row["level"],
        f"{row['weights_remaining']:.2%}",
        f"{row['test_accuracy']:.4f}",
        f"{row['test_loss']:.4f}",
        f"{row['train_loss']:.4f}",
        row["steps"],
        f"{row['seconds']:.1f}",
    )


def write_results(run: Run) -> None:
    """Write results.csv from the rows of the finished levels."""
    rows = [[row[column] for column in COLUMNS] for row in run.rows]
    common.write_csv(run.folder / "results.csv", [COLUMNS, *rows])


def level_path(folder: Path, level: int) -> Path:
    """Return the path of a level file in the folder of a run."""
    return folder / f"level{level:02d}.safetensors"


# ------------------------------------------------------------ starting points, resuming


def read_start(path: Path, folder: Path, first: dict, data: training.Data, settings: dict) -> Run:
    """Read a starting point and return its run, in a folder to write to.

    InputError: it does not fit the data, or its recipe is not that of the first starting point.
    """
    weights, info = training.load_tensors(path)
    recipe = common.check_recipe(path, info)
    check_same_recipe(path, recipe, first)
    if recipe["fingerprint"] != data.fingerprint or recipe["classes"] != len(data.classes):
        raise InputError(
            f"{path}: made from other {recipe['dataset']} images than those in --data-dir"
        )
    with torch.device("meta"):
        net = training.ResNet(
            recipe["depth"], recipe["width"], data.test.shape[3], recipe["classes"]
        )
    check_tensors(path, weights, net.state_dict())
    ones = {name: torch.ones(p.shape, dtype=torch.uint8) for name, p in net.prunable().items()}
    settings = settings | {"rewind_sha256": common.digest(training.to_numpy(weights), recipe)}
    return Run(folder, weights, recipe, settings, masks=ones)


def check_same_recipe(path: Path, recipe: dict, first: dict) -> None:
    """Raise InputError if two starting points cannot be trained in one call.

    Their recipes may differ in the seed and in pre-training, and in nothing else, keys of a user's
    own included.
    """
    for key in sorted(recipe.keys() | first.keys()):
        value, of_first = recipe.get(key, "unknown"), first.get(key, "unknown")
        if value == of_first or key in ("seed", *common.PRETRAINING):
            continue
        message = (
            f"{path}: {key} is {value}, but {of_first} in the first file; one call, one recipe"
        )
        if key == "precision":
            message += ' (FLAGS="--precision fp32" keeps the starts of unlike machines alike)'
        raise InputError(message)


def check_tensors(path: Path, tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Raise InputError unless a file has tensors of these names, shapes and dtypes."""
    differ = sorted(tensors.keys() ^ expected.keys())
    if differ:
        what = "unexpected" if differ[0] in tensors else "missing"
        raise InputError(f"{path}: tensor {differ[0]} is {what}")
    for name, t in expected.items():
        actual = tensors[name]
        if actual.shape != t.shape or actual.dtype != t.dtype:
            needed = f"the recipe needs {list(t.shape)} {t.dtype}"
            raise InputError(f"{path}: {name} is {list(actual.shape)} {actual.dtype}, {needed}")


def borrow(run: Run, donor: Path, levels: int, fraction: float | None, shuffle: bool) -> None:
    """Let a run use the masks of a finished run, the donor, instead of pruning.

    Level L + 1 is trained under the masks that the donor handed on after level L.
    """
    first = level_path(donor, 0)
    info = common.load_info(first)
    recipe = common.check_recipe(first, info)
    if info.get("masks"):
        raise InputError(
            f"--masks: {donor} is itself under the masks of {info['masks']['setting']}; "
            "name that run"
        )
    if fraction not in (None, info["prune_fraction"]):
        raise InputError(
            f"--prune-fraction {fraction} contradicts {info['prune_fraction']} of {donor}"
        )
    for level in range(levels + 1):
        path = level_path(donor, level)
        masks = common.part(training.load_tensors(path)[0], "next")
        check_tensors(path, masks, run.masks)
        run.borrowed.append(shuffled(masks, run.recipe["seed"]) if shuffle else masks)
    run.settings |= {
        # A control counts as the replicate of the run that made its masks.
        "masks": {
            "setting": common.start_name(recipe),
            "seed": recipe["seed"],
            "same_start": info["rewind_sha256"] == run.settings["rewind_sha256"],
        },
        "prune_fraction": info["prune_fraction"],
        "criterion": info["criterion"],
        # The first masks suffice here: a run may go on to more levels, and resume compares the
        # others themselves.
        "masks_sha256": common.digest(training.to_numpy(run.borrowed[0]), {}),
    }
    if shuffle:
        run.settings["shuffled"] = True


def shuffled(masks: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Permute the mask of every layer, at every level alike, so that nested masks stay nested."""
    random = common.rng(common.SHUFFLE, seed)
    orders = {}
    for name in sorted(masks):
        orders[name] = torch.from_numpy(random.permutation(masks[name].numel()))
    return {name: mask.flatten()[orders[name]].view(mask.shape) for name, mask in masks.items()}


def resume(run: Run) -> None:
    """Take up the finished levels in a run's folder: its rows, its next masks, its next level.

    InputError: a level is of other settings, or does not fit the level before it.
    """
    for level in itertools.count():
        path = level_path(run.folder, level)
        if not path.exists():
            break
        tensors, info = training.load_tensors(path)
        with common.reading(path):
            common.refuse_difference(path, info | info["recipe"], run.recipe | run.settings)
            expected = common.prefixed(weight=run.weights, mask=run.masks, next=run.masks)
            check_tensors(path, tensors, expected)
            if not equal(common.part(tensors, "mask"), run.masks):
                raise InputError(f"{path}: its masks are not those that the level before hands on")
            masks = common.part(tensors, "next")
            if level < len(run.borrowed) and not equal(masks, run.borrowed[level]):
                raise InputError(
                    f"{path}: its next masks are not those of --masks (--force starts over)"
                )
            run.rows.append({column: info["row"][column] for column in COLUMNS})
        run.masks = {name: masks[name] for name in run.masks}  # in state-dict order
        run.level = level + 1
    if run.rows:  # this heals a crash between a level file and results.csv
        write_results(run)


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Return whether two dictionaries with the same names hold the same tensors."""
    return all(torch.equal(t, b[name]) for name, t in a.items())


def save_state(run: Run) -> None:
    """Save an unfinished level. Its masks are not needed: the level before has them."""
    network = run.network
    if not network.finite() or not network.loss_sum.isfinite():
        return  # the run is about to be stopped
    info = run.metadata | {
        "level": run.level,
        "step": network.step,
        "loss_steps": network.loss_steps,
        "seconds": run.seconds,
    }
    training.save_tensors(run.folder / "state.safetensors", network.state(), info)


def resume_inside_level(run: Run) -> None:
    """Put the network of a run back to where its unfinished level was saved, if it was.

    A state of another level or of other settings is ignored, and overwritten by the next save.
    """
    path, network = run.folder / "state.safetensors", run.network
    if not path.exists():
        return
    try:
        tensors, info = training.load_tensors(path)
        with common.reading(path):
            level = info.pop("level")
            step = info.pop("step")
            loss_steps = info.pop("loss_steps")
            seconds = info.pop("seconds")
        if level != run.level or info != run.metadata:
            return
        check_tensors(path, tensors, network.state())
    except InputError as error:
        raise InputError(f"{error}; delete it, and the level starts again") from None
    network.restore(tensors)
    network.step, network.loss_steps, run.seconds = step, loss_steps, seconds


# ------------------------------------------------------------ command line


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line; InputError if its paths contradict each other."""
    parser = common.Parser(__doc__)
    add = parser.add_argument
    add(
        "rewind",
        type=Path,
        nargs="+",
        help="rewind.safetensors of pretrain.py; several must share a recipe",
    )
    whole = common.within("[0, inf)", int)
    add("--levels", type=whole, help=f"prunings; level 0 is dense ({common.defaults('levels')})")
    add(
        "--prune-fraction",
        type=common.within("(0, 1)"),
        help=f"of the weights left ({common.defaults('prune_fraction')})",
    )
    add(
        "--order-seed",
        type=common.SEED,
        help="another batch order (default: the recipe's); needs --out",
    )
    add(
        "--masks",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="take the masks of finished runs, one a start",
    )
    add("--shuffle-masks", action="store_true", help="permute those masks within every layer")
    add(
        "--out",
        type=Path,
        nargs="+",
        help="a folder for each starting point (default: that of its file)",
    )
    add(
        "--save-every",
        type=common.within("(0, inf)"),
        default=60,
        help="seconds between saves within a level (default: 60)",
    )
    common.add_place_flags(parser, at_once=True)
    args = parser.parse_args(argv)
    if args.out is None:
        args.out = [path.parent for path in args.rewind]
    check_folders(args)
    return args


def check_folders(args: argparse.Namespace) -> None:
    """Raise InputError unless every starting point has a folder of its own to write to."""
    for flag, folders in (("--out", args.out), ("--masks", args.masks)):
        if folders and len(folders) != len(args.rewind):
            raise InputError(
                f"{flag}: {len(folders)} folders for {len(args.rewind)} starting points"
            )
    if args.shuffle_masks and not args.masks:
        raise InputError("--shuffle-masks needs --masks")
    for path, out in zip(args.rewind, args.out):
        if path.is_dir():
            raise InputError(
                f"{path} is a folder; name the file in it, {path / 'rewind.safetensors'}"
            )
        if common.OF_IMP.fullmatch(path.name):
            raise InputError(f"{path} is a file of imp.py; name the start that pretrain.py wrote")
        if [other.resolve() for other in args.out].count(out.resolve()) > 1:
            raise InputError(f"{path}: another starting point writes to the same folder, {out}")
        if out.resolve() in [folder.resolve() for folder in args.masks or ()]:
            raise InputError(f"--masks: {out} is a folder to write to")
        if args.order_seed is not None and out.resolve() == path.resolve().parent:
            raise InputError("--order-seed needs --out, a folder of its own")


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    device = training.resolve_device(args.device)
    # A start that is missing is named at the end, and the others are trained.
    missing = [f"{path}: No such file or directory" for path in args.rewind if not path.exists()]
    if len(missing) == len(args.rewind):
        raise InputError("; ".join(missing))
    first = next(path for path in args.rewind if path.exists())
    recipe = common.check_recipe(first, common.load_info(first))
    preset = common.PRESETS[recipe["preset"]]
    levels = preset["levels"] if args.levels is None else args.levels
    data = training.load_data(
        recipe["dataset"],
        args.data_dir,
        device,
        pad=preset["pad"],
        flip=preset["flip"],
        image_size=recipe["image_size"],
    )
    runs, unfinished = read_runs(args, recipe, levels, data)
    if not runs:
        raise InputError("; ".join(missing + unfinished))
    with contextlib.ExitStack() as locks:  # the locks of all runs, or of none
        for folder in sorted(run.folder for run in runs):
            locks.enter_context(common.lock(folder / ".lock"))
        take_up(runs, levels, args.force)
        todo = [run for run in runs if run.level <= levels]
        if todo:
            training.check_precision(recipe["precision"], device, first)
            training.say_where(device, recipe["precision"])
            print(LINE.format("run".ljust(len(str(todo[0].folder))), *HEADER), flush=True)
        diverged = train_and_prune(todo, levels, data, args)
        for run in runs:
            if run.level > levels:
                (run.folder / "state.safetensors").unlink(missing_ok=True)
    for run in todo:
        if run.rows:
            print(run.folder / "results.csv")
    if missing + unfinished + diverged:
        raise common.Failure("; ".join(missing + unfinished + diverged))


def read_runs(
    args: argparse.Namespace, recipe: dict, levels: int, data: training.Data
) -> tuple[list[Run], list[str]]:
    """Return a run for every starting point, and a message for each that has to be left out.

    Left out are those for which the run named by --masks has not finished all levels.

    recipe  the recipe of the first starting point, with which the others must agree
    """
    settings = {
        "prune_fraction": args.prune_fraction,
        "criterion": CRITERION,
        "order_seed": args.order_seed,
    }
    if args.prune_fraction is None:
        settings["prune_fraction"] = common.PRESETS[recipe["preset"]]["prune_fraction"]
    test_set = [t.cpu().numpy().tobytes() for t in (data.test, data.test_labels)]
    settings["test_set_sha256"] = common.sha256(*test_set)
    runs, unfinished = [], []
    donors = args.masks or [None] * len(args.rewind)
    for path, out, donor in zip(args.rewind, args.out, donors):
        if not path.exists():
            continue
        if donor and not level_path(donor, levels).exists():  # it diverged, or is still at work
            unfinished.append(f"--masks: {donor} has not finished level {levels}")
            continue
        run = read_start(path, out, recipe, data, settings)
        if donor:
            borrow(run, donor, levels, args.prune_fraction, args.shuffle_masks)
        runs.append(run)
    return runs, unfinished


def take_up(runs: list[Run], levels: int, force: bool) -> None:
    """Take up what the folders of runs hold from earlier calls; with force, remove it first."""
    for run in runs:
        for path in run.folder.iterdir():
            if force and common.OF_IMP.fullmatch(path.name):
                path.unlink()
        resume(run)
        if run.level > levels:
            print(f"already done: {run.folder / 'results.csv'}")


def train_and_prune(
    runs: list[Run], levels: int, data: training.Data, args: argparse.Namespace
) -> list[str]:
    """Prune these runs, as many side by side as --at-once says.

    Returns a line for every run whose loss was not finite.
    """
    received, diverged = [], []
    common.on_signals(received)
    for group in training.even_groups(runs, args.at_once, data.labels.device):
        diverged += prune_iteratively(group, levels, data, args.save_every, received)
        for run in group:
            run.network = None  # lets its memory and recordings go before the next group
    return diverged


if __name__ == "__main__":
    sys.exit(common.cli(main))
