"""Iterative magnitude pruning with rewinding (paper, Algorithm 1), for one or many starting points.

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


def importance(net: nn.Module, data: training.Data, draw: np.random.Generator) -> dict[str, Tensor]:
    """What each prunable weight of a trained network is worth, by name (paper, Algorithm 1).

    The least important go. A rule of your own may use data, gradients or chance; the network is in
    eval mode, draw is the stream of this run's seed and level.
    """
    return {name: weight.detach().abs() for name, weight in net.prunable().items()}


def prune(worth: dict[str, Tensor], masks: dict[str, Tensor], fraction: float) -> dict[str, Tensor]:
    """Drop the least important fraction of the weights still there, over all masked tensors.

    Exactly ceil(fraction x remaining) go, the fraction as the decimal it was written as; ties go by
    position in the order of masks. Returns new uint8 masks.
    """
    alive = torch.cat([mask.flatten() for mask in masks.values()]).bool()
    index = alive.nonzero().squeeze(1)
    count = math.ceil(Fraction(str(fraction)) * len(index))
    values = torch.cat([worth[name].flatten() for name in masks])[index]
    if not values.isfinite().all():
        raise common.Failure(f"the {CRITERION} of a weight is not finite")
    order = torch.sort(values, stable=True).indices
    alive[index[order[:count]]] = False  # topk would break ties arbitrarily
    parts = alive.to(torch.uint8).split([mask.numel() for mask in masks.values()])
    return {name: part.view(mask.shape) for (name, mask), part in zip(masks.items(), parts)}


# ------------------------------------------------------------ the algorithm


@dataclass(eq=False)
class Run:
    """One starting point on its way through the levels."""

    folder: Path
    weights: dict[str, Tensor]  # w_{t_r} and its batch-norm statistics
    recipe: dict
    settings: dict  # what else decides the result
    masks: dict[str, Tensor]  # uint8, of the next level, in state-dict order; ones at first
    level: int = 0  # the next to train
    # `next.` masks by level, of another run
    borrowed: list[dict[str, Tensor]] = field(default_factory=list)
    rows: list[dict] = field(default_factory=list)  # of results.csv
    seconds: float = 0.0  # training time so far of that level
    network: training.Member | None = None  # while it is trained
    described = property(lambda self: {"recipe": self.recipe, **self.settings})  # in its files

    def advance(self, masks: dict[str, Tensor]) -> None:
        """Go on to the next level, under these masks."""
        self.masks = {name: mask.cpu() for name, mask in masks.items()}
        self.level, self.seconds = self.level + 1, 0.0


def prune_iteratively(
    runs: list[Run], levels: int, data: training.Data, save_every: float, received: list[int]
) -> list[str]:
    """Algorithm 1 of the paper for several starts side by side: train, prune, rewind, repeat.

    A run that has finished a level before sits it out. Returns a line for every run that had to
    stop because its loss was not finite.
    """
    group, stopped = make_group(runs, data), []
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
                worth = importance_for(run, data)
                masks = prune(worth, run.network.masks, run.settings["prune_fraction"])
            save_level(run, trained, masks)
            run.advance(masks)
    return stopped


def make_group(runs: list[Run], data: training.Data) -> training.Group:
    """Give every run a network, and let these networks take their steps side by side."""
    recipe = runs[0].recipe
    for run in runs:
        seed = order_of(run.recipe["seed"], run.settings["order_seed"])
        run.network = training.Member(str(run.folder), recipe, data, seed)
    return training.Group([run.network for run in runs], data, recipe)


def order_of(seed: int, order_seed: int | None) -> int:
    """The seed of a run's batch order.

    One that was asked for is no replicate's own, whatever its number.
    """
    return seed if order_seed is None else common.seed_of_its_own(common.OTHER_ORDER, order_seed)


def train_level(
    group: training.Group, active: list[Run], level: int, save_every: float, received: list[int]
) -> None:
    """Train the active runs to the end of a level; each adds its share of the time to run.seconds.

    Unfinished levels are saved every save_every seconds, and when a signal was received; then
    Stopped is raised.
    """
    if not active:
        return
    recipe, networks = group.recipe, [run.network for run in active]
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
        clock = time.monotonic()  # saving is no training
    spent = time.monotonic() - clock
    for run in active:
        run.seconds += spent / len(active)


def importance_for(run: Run, data: training.Data) -> dict[str, Tensor]:
    """What the weights of a run's trained network are worth, by the rule above.

    The rule may look at the network and compute gradients; neither statistics nor gradients stay.
    """
    random = common.rng(common.PRUNE, run.recipe["seed"], run.level)
    run.network.net.eval()
    worth = importance(run.network.net, data, random)
    run.network.net.zero_grad()
    return worth


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
LINE = "{}   {:>5} {:>8} {:>9} {:>10} {:>11} {:>6} {:>8}"  # the same, on stdout
HEADER = ["level", "weights", "accuracy", "test loss", "train loss", "steps", "seconds"]


@dataclass
class Trained:
    """A network at the end of a level."""

    weights: dict[str, Tensor]  # on the host, batch-norm statistics included
    test_accuracy: float  # a fraction
    test_loss: float
    train_loss: float  # the mean of the last epoch


def evaluate_level(run: Run, data: training.Data) -> Trained | None:
    """What training has made of a run's network; None if its loss was not finite."""
    network = run.network
    accuracy, loss = training.evaluate(network.net, data)
    if network.failed or not math.isfinite(loss):
        return None
    weights = {name: t.cpu().clone() for name, t in network.net.state_dict().items()}
    train_loss = network.loss_sum.item() / max(1, network.loss_steps)
    return Trained(weights, accuracy, loss, train_loss)


def note_divergence(run: Run) -> str:
    """Write diverged.json of a run whose loss is not finite; returns a line about it."""
    step = run.network.step
    common.save_divergence(
        run.folder, recipe=run.recipe, settings=run.settings, level=run.level, step=step
    )
    return f"{run.folder}: the loss is not finite at level {run.level}, step {step}"


def save_level(run: Run, trained: Trained, masks: dict[str, Tensor]) -> None:
    """Save a trained level with the masks of the next one, and add its row to results.csv."""
    assert not any(trained.weights[name][mask == 0].any() for name, mask in run.masks.items())
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
    info = run.described | {"row": row, "made_by": training.made_by(device)}
    tensors = common.prefixed(weight=trained.weights, mask=run.masks, next=masks)
    training.save_tensors(level_path(run.folder, run.level), tensors, info)
    (run.folder / "diverged.json").unlink(missing_ok=True)
    run.rows.append(row)
    write_results(run)
    print(format_row(run.folder, row), flush=True)


def format_row(folder: Path, row: dict) -> str:
    """A finished level as a line on stdout."""
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
    common.write_csv(run.folder / "results.csv", [COLUMNS, *map(dict.values, run.rows)])


def level_path(folder: Path, level: int) -> Path:
    return folder / f"level{level:02d}.safetensors"


# ------------------------------------------------------------ starting points, resuming


def read_start(path: Path, folder: Path, first: dict, data: training.Data, settings: dict) -> Run:
    """A starting point in a file; InputError unless it fits the data and the first one's recipe."""
    weights, info = training.load_tensors(path)
    recipe = common.check_recipe(path, info)
    for key in sorted(recipe.keys() | first.keys()):  # of somebody's own, too
        mine, other = recipe.get(key, "unknown"), first.get(key, "unknown")
        if mine != other and key not in ("seed", *common.PRETRAINING):
            raise InputError(
                f"{path}: {key} is {mine}, but {other} in the first file; one call, one recipe"
            )
    if recipe["fingerprint"] != data.fingerprint or recipe["classes"] != len(data.classes):
        raise InputError(
            f"{path}: made from other {recipe['dataset']} images than those in --data-dir"
        )
    with torch.device("meta"):
        net = training.ResNet(
            recipe["depth"], recipe["width"], data.test.shape[3], recipe["classes"]
        )
    check_tensors(path, weights, net.state_dict())
    masks = {name: torch.ones(p.shape, dtype=torch.uint8) for name, p in net.prunable().items()}
    return Run(
        folder,
        weights,
        recipe,
        settings | {"rewind_sha256": common.digest(training.to_numpy(weights), recipe)},
        masks,
    )


def check_tensors(path: Path, tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    differ = sorted(tensors.keys() ^ expected.keys())
    if differ:
        what = "unexpected" if differ[0] in tensors else "missing"
        raise InputError(f"{path}: tensor {differ[0]} is {what}")
    for name, t in expected.items():
        have = tensors[name]
        if have.shape != t.shape or have.dtype != t.dtype:
            needed = f"the recipe needs {list(t.shape)} {t.dtype}"
            raise InputError(f"{path}: {name} is {list(have.shape)} {have.dtype}, {needed}")


def borrow(run: Run, other: Path, levels: int, fraction: float | None, shuffle: bool) -> None:
    """From now on run takes the masks that the run in folder other hands on; it prunes no more."""
    for level in range(levels + 1):
        path = level_path(other, level)
        tensors, info = training.load_tensors(path)
        if info.get("masks"):
            raise InputError(
                f"--masks: {other} is itself under the masks of {info['masks']['setting']}; "
                "name that run"
            )
        masks = common.part(tensors, "next")
        check_tensors(path, masks, run.masks)
        run.borrowed.append(shuffled(masks, run.recipe["seed"]) if shuffle else masks)
    recipe = common.check_recipe(path, info)
    # the replicate of a control is the seed of the run that made its masks
    run.settings["masks"] = {
        "setting": common.start_name(recipe),
        "seed": recipe["seed"],
        "same_start": info["rewind_sha256"] == run.settings["rewind_sha256"],
    }
    if fraction not in (None, info["prune_fraction"]):
        raise InputError(
            f"--prune-fraction {fraction} contradicts {info['prune_fraction']} of {other}"
        )
    # of the run that made these masks
    run.settings |= {key: info[key] for key in ("prune_fraction", "criterion")}
    # Of the first masks only: a run may go on to more levels, and resume compares the others
    # themselves.
    run.settings["masks_sha256"] = common.digest(training.to_numpy(run.borrowed[0]), {})
    run.settings |= {"shuffled": True} if shuffle else {}


def shuffled(masks: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Every layer's mask, permuted, at every level alike: so nested masks stay nested."""
    random = common.rng(common.SHUFFLE, seed)
    orders = {}
    for name in sorted(masks):
        orders[name] = torch.from_numpy(random.permutation(masks[name].numel()))
    return {name: mask.flatten()[orders[name]].view(mask.shape) for name, mask in masks.items()}


def resume(run: Run) -> None:
    """Take up the finished levels in the folder: rows, masks of the next level, results.csv."""
    for level in itertools.count():
        path = level_path(run.folder, level)
        if not path.exists():
            break
        tensors, info = training.load_tensors(path)
        with common.reading(path):
            common.refuse_difference(path, info | info["recipe"], run.recipe | run.settings)
            if not any(name.startswith("next.") for name in tensors):
                raise InputError(
                    f"{path}: of an earlier version, holds no next masks; --force starts over"
                )
            check_tensors(
                path, tensors, common.prefixed(weight=run.weights, mask=run.masks, next=run.masks)
            )
            if any(
                not torch.equal(tensors[f"mask.{name}"], mask) for name, mask in run.masks.items()
            ):
                raise InputError(f"{path}: its masks are not those that the level before hands on")
            given = run.borrowed[level] if level < len(run.borrowed) else {}
            if any(not torch.equal(tensors[f"next.{name}"], mask) for name, mask in given.items()):
                raise InputError(
                    f"{path}: its next masks are not those of --masks (--force starts over)"
                )
            run.rows.append({column: info["row"][column] for column in COLUMNS})
        run.masks = {name: tensors[f"next.{name}"] for name in run.masks}
        run.level = level + 1
    if run.rows:  # a crash between level file and results.csv heals here
        write_results(run)


def save_state(run: Run) -> None:
    """Save an unfinished level. Its masks are not needed: the previous level has them."""
    network = run.network
    if not network.finite() or not network.loss_sum.isfinite():
        return  # about to be stopped for that
    info = run.described | {
        "level": run.level,
        "step": network.step,
        "loss_steps": network.loss_steps,
        "seconds": run.seconds,
    }
    training.save_tensors(run.folder / "state.safetensors", network.state(), info)


def resume_inside_level(run: Run) -> None:
    """Put the unfinished level of this run, if there is one, back where it stopped."""
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
        if level != run.level or info != run.described:
            return
        check_tensors(path, tensors, network.state())
    except InputError as error:
        raise InputError(f"{error}; delete it, and the level starts again") from None
    network.restore(tensors)
    network.step, network.loss_steps, run.seconds = step, loss_steps, seconds


# ------------------------------------------------------------ command line


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
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
    args.out = args.out or [path.parent for path in args.rewind]
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
        if [other.resolve() for other in args.out].count(out.resolve()) > 1:
            raise InputError(f"{path}: another starting point writes to the same folder, {out}")
        if out.resolve() in [folder.resolve() for folder in args.masks or ()]:
            raise InputError(f"--masks: {out} is a folder to write to")
        if args.order_seed is not None and out.resolve() == path.resolve().parent:
            raise InputError("--order-seed needs --out, a folder of its own")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    device = training.resolve_device(args.device)
    # a start that is not there is named at the end, and the others are trained
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
    with contextlib.ExitStack() as locks:  # of all runs or of none
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
    """A run for every starting point that is there, and a line for each whose masks are not.

    recipe  of the first starting point, with which the others must agree
    """
    settings = {
        "prune_fraction": args.prune_fraction,
        "criterion": CRITERION,
        "order_seed": args.order_seed,
    }
    if args.prune_fraction is None:
        settings["prune_fraction"] = common.PRESETS[recipe["preset"]]["prune_fraction"]
    tested = (t.cpu().numpy().tobytes() for t in (data.test, data.test_labels))
    settings["test_set_sha256"] = common.sha256(*tested)
    runs, unfinished = [], []
    for path, out, other in itertools.zip_longest(args.rewind, args.out, args.masks or ()):
        if not path.exists():
            continue
        if other and not level_path(other, levels).exists():  # it diverged, or is still at work
            unfinished.append(f"--masks: {other} has not finished level {levels}")
            continue
        run = read_start(path, out, recipe, data, settings)
        if other:
            borrow(run, other, levels, args.prune_fraction, args.shuffle_masks)
        runs.append(run)
    return runs, unfinished


def take_up(runs: list[Run], levels: int, force: bool) -> None:
    """Take up what is in the folders of runs; with force, remove it first."""
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
    """Prune these runs, as many side by side as --at-once says; returns what diverged."""
    received, diverged = [], []
    common.on_signals(received)
    for group in training.even_groups(runs, args.at_once, data.labels.device):
        diverged += prune_iteratively(group, levels, data, args.save_every, received)
        for run in group:
            run.network = None  # lets its memory and recordings go before the next group
    return diverged


if __name__ == "__main__":
    sys.exit(common.cli(main))
