"""Draw test accuracy against weights remaining for all runs under a folder, as in the paper's figures 2 to 7.

reads   RUNS_ROOT/**/results.csv, and the recipe from the level file beside each
writes  figures/<preset>.png, .pdf, and summary.csv with every number drawn; prints a table
python plot.py runs/cifar10 --out figures/cifar10
"""

import argparse
import csv
import json
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors

# What pre-training alone depends on: in these the curves of an experiment differ.
PRETRAINING = ("scheme", "subset_size", "rewind_step", "label_noise", "pretrain_lr", "noise_seed",
               "class_balanced", "subset_sha256")  # fmt: skip
# the paper's colours: all data at t* blue, at t*/2 orange, no pre-training yellow
BASELINES = ("#0072b2", "#e8820e", "#d9c000")
ORDER = ("init", "all", "random", "easy", "hard", "custom")
SUBSETS = {"random": ("#009e73", "o"), "easy": ("#c8102e", "^"), "hard": ("#e377c2", "x"),
           "custom": ("black", "s")}  # fmt: skip


class InputError(Exception):
    """Bad arguments or input: one line on stderr, exit status 2."""


class Curve(NamedTuple):
    """What one setting reached: accuracy is [replicates, levels], fractions, NaN where a level is missing."""

    scheme: str  # init, all, random, easy, hard, custom
    size: int | None
    step: int  # t_r, optimizer steps
    noise: float
    rate: float  # of pre-training
    variant: str  # tells apart curves that are the same so far: other noise seeds, scores, balance
    remaining: np.ndarray  # [levels] fraction of weights
    accuracy: np.ndarray

    def name(self) -> str:
        if self.scheme == "init":
            return "no pre-training"
        who = "all data" if self.size is None else f"{self.scheme} {self.size}"
        return f"{who}, {self.step} steps{self.variant}"

    def mean(self) -> np.ndarray:
        return 100 * nan_mean(self.accuracy)

    def deviation(self) -> np.ndarray:
        """Sample standard deviation over replicates in points, NaN where there are fewer than two."""
        n = (~np.isnan(self.accuracy)).sum(0)
        squares = (100 * self.accuracy - self.mean()) ** 2
        return np.sqrt(np.where(n > 1, np.nansum(squares, 0) / np.maximum(n - 1, 1), np.nan))


def nan_mean(values: np.ndarray) -> np.ndarray:
    """Mean over axis 0 without NaN; NaN where there is nothing."""
    n = (~np.isnan(values)).sum(0)
    return np.where(n > 0, np.nansum(values, 0) / np.maximum(n, 1), np.nan)


# ------------------------------------------------------------ reading


def read_run(path: Path) -> tuple[dict, list[dict]]:
    """(settings, rows) of the run whose results.csv is at path."""
    try:
        with open(path, newline="") as f:
            rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(f)]
        levels = sorted(path.parent.glob("level*.safetensors"))
        with safetensors.safe_open(levels[0], "np") as f:
            info = json.loads(f.metadata()["json"])
        settings = info["recipe"] | {key: info[key] for key in ("prune_fraction", "order_seed")}
        drawn = [row[key] for row in rows for key in ("level", "weights_remaining", "test_accuracy")]
        experiment_and_curve(settings)
        known = settings["scheme"] in ORDER and np.isfinite(drawn).all()
    except (OSError, ValueError, TypeError, LookupError, safetensors.SafetensorError) as error:
        raise InputError(f"{path}: not readable, or no level file beside it ({error!r})") from None
    if not known:
        raise InputError(f"{path}: unknown scheme {settings['scheme']}, or values that are not finite")
    return settings, rows


def read_runs(root: Path) -> dict[str, list[Curve]]:
    """The curves under root by experiment: what IMP trained alike, whatever it was pre-trained on."""
    groups = defaultdict(dict)
    for path in sorted(root.rglob("results.csv")):
        settings, rows = read_run(path)
        replicates = groups[experiment_and_curve(settings)]
        if settings["order_seed"] is not None:
            print(f"note: {path.parent} has a batch order of its own and is left out")
        elif settings["seed"] in replicates:
            print(f"note: {path.parent} repeats seed {settings['seed']} of its setting and is left out")
        elif rows:
            replicates[settings["seed"]] = rows
    experiments = defaultdict(list)
    for (experiment, curve), replicates in groups.items():
        runs, same = list(replicates.values()), sum(c[:5] == curve[:5] for c in experiments[experiment])
        if not runs:
            continue
        remaining = {row["level"]: row["weights_remaining"] for rows in runs for row in rows}
        levels = sorted(remaining)
        accuracy = np.full((len(runs), len(levels)), np.nan)
        for run, rows in zip(accuracy, runs):
            for row in rows:
                run[levels.index(row["level"])] = row["test_accuracy"]
        shares, variant = np.array([remaining[n] for n in levels]), f" ({same + 1})" if same else ""
        experiments[experiment].append(Curve(*curve[:5], variant, shares, accuracy))
    experiments = {name: curves for name, curves in experiments.items() if curves}
    if not experiments:
        raise InputError(f"{root}: no results.csv below this folder")
    def position(c: Curve) -> tuple:
        return c.noise, c.size or 0, ORDER.index(c.scheme), c.step, c.rate

    named = {}
    for (preset, dataset, _), curves in sorted(experiments.items()):
        name = re.sub(r"[^\w-]", "_", preset if dataset == preset else f"{preset}-{dataset}")
        while name in named:  # the same preset with other hyperparameters
            name += "+"
        named[name] = sorted(curves, key=position)
    return named


def experiment_and_curve(settings: dict) -> tuple[tuple, tuple]:
    shared = {key: v for key, v in settings.items() if key not in (*PRETRAINING, "seed")}
    experiment = (settings["preset"], settings["dataset"], json.dumps(shared, sort_keys=True))
    if settings["rewind_step"] == 0:  # w_0 saw no data, whatever the subset was
        return experiment, ("init", None, 0, 0.0, 0.0)
    if settings["scheme"] == "random":  # every seed draws its own
        settings = settings | {"subset_sha256": None}
    curve = tuple(settings[key] for key in PRETRAINING)
    hash(curve)  # a list in a recipe cannot name a curve: TypeError here, where the reader expects it
    return experiment, curve


# ------------------------------------------------------------ drawing


def panels(curves: list[Curve]) -> list[tuple[str, list[Curve]]]:
    """(title, curves) of each panel: one for every label noise, rewind step and subset size."""
    found = []
    settings = sorted({(c.noise, c.rate, c.step, c.size) for c in curves if c.size is not None})
    for noise, rate, step, size in settings:
        mine = [c for c in curves if (c.noise, c.rate, c.step, c.size) == (noise, rate, step, size)]
        whole = [c for c in curves if c.size is None and c.step in (0, step, 2 * step)]
        whole = [c for c in whole if c.scheme == "init" or (c.noise, c.rate) == (noise, rate)]
        found.append((f"{size} examples" + (f", {noise:.0%} random labels" if noise else ""), whole + mine))
    if not settings:  # all data only: the search for t*
        for noise, rate in sorted({(c.noise, c.rate) for c in curves if c.step}) or [(0.0, 0.0)]:
            mine = [c for c in curves if c.scheme == "init" or (c.noise, c.rate) == (noise, rate)]
            found.append((f"all data, pre-training rate {rate}", mine))
    return found


def draw(name: str, curves: list[Curve], out: Path) -> list[Path]:
    """Draw the panels of one experiment; returns the paths written."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = panels(curves)
    columns = min(4, len(found))
    rows = -(-len(found) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(5.6 * columns, 5 * rows), squeeze=False)
    for ax, (title, mine) in zip(axes.flat, found):
        draw_panel(ax, f"{name}: {title}", mine)
    for ax in axes.flat[len(found) :]:
        ax.set_visible(False)
    figure.tight_layout()
    paths = [out / f"{name}.{kind}" for kind in ("png", "pdf")]
    for path in paths:
        figure.savefig(path, dpi=150)
    plt.close(figure)
    return paths


def draw_panel(ax, title: str, curves: list[Curve]) -> None:
    whole = sorted((c for c in curves if c.size is None), key=lambda c: -c.step)
    if whole and whole[0].step:
        dense = 100 * nan_mean(whole[0].accuracy)[0]
        ax.axhline(dense, color="grey", linestyle=(0, (6, 2)), linewidth=1, label="dense")
    colors = [BASELINES[2] if c.step == 0 else (*BASELINES[:2], "C2", "C3", "C4", "C5")[i % 6]
              for i, c in enumerate(whole)]  # fmt: skip
    styles = [(c, color, dict(linestyle="--")) for c, color in zip(whole, colors)]
    for c in curves:
        if c.size is not None:
            color, marker = SUBSETS[c.scheme]
            styles.append((c, color, dict(linestyle="-", marker=marker, markersize=5)))
    for c, color, style in styles:
        x, mean, deviation = 100 * c.remaining, c.mean(), c.deviation()
        ax.plot(x, mean, color=color, linewidth=1.6, label=f"{c.name()} (n={len(c.accuracy)})", **style)
        ax.fill_between(x, mean - deviation, mean + deviation, color=color, alpha=0.12, linewidth=0)
    ax.set_xscale("log")
    longest = max((100 * c.remaining for c in curves), key=len)
    ticks = longest[:: 3 if len(longest) > 6 else 1]
    ax.set_xticks(ticks, [f"{tick:.1f}" for tick in ticks])
    ax.minorticks_off()
    ax.invert_xaxis()
    ax.set_xlabel("weights remaining (%)")
    ax.set_ylabel("test accuracy (%)")
    ax.set_title(title, fontsize=11)
    ax.grid(alpha=0.25, linewidth=0.5)
    ax.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False)


# ------------------------------------------------------------ tables


def print_table(name: str, curves: list[Curve]) -> None:
    """Mean and sample deviation over replicates of the accuracy in %: a row a curve, a column a level."""
    longest = max((c.remaining for c in curves), key=len)
    levels = [*range(0, len(longest), 3 if len(longest) > 6 else 1)]
    labels = [c.name() + (f", {c.noise:.0%} noise" if c.noise else "") for c in curves]
    first = max(map(len, labels))
    print(f"\n{name}: test accuracy in %, mean ± standard deviation over replicates, by weights remaining")
    heads = [*(f"{longest[level]:.1%}" for level in levels), "mean from level 1"]
    print(" " * first + "".join(f"{head:>15}" for head in heads[:-1]) + f"{heads[-1]:>20}")
    for c, label in zip(curves, labels):
        cells = [cell(c.mean()[n], c.deviation()[n]) if n < len(c.remaining) else "" for n in levels]
        each = 100 * c.accuracy[~np.isnan(c.accuracy).any(1), 1:]  # replicates that have every level
        means = each.mean(1) if each.size else np.array([])
        overall = cell(means.mean(), means.std(ddof=1) if len(means) > 1 else np.nan) if len(means) else ""
        print(f"{label:{first}}" + "".join(f"{text:>15}" for text in cells) + f"{overall:>20}")
    for c, label in zip(curves, labels):
        short = sum((~np.isnan(c.accuracy)).sum(1) < len(longest))
        if short:
            print(f"note: {label}: {short} of {len(c.accuracy)} runs have not reached every level")


def cell(mean: float, deviation: float) -> str:
    return f"{mean:.2f}" + ("" if np.isnan(deviation) else f" ± {deviation:.2f}")


def write_summary(path: Path, experiments: dict[str, list[Curve]]) -> None:
    with open(path, "w", newline="") as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(["experiment", "scheme", "subset_size", "rewind_step", "label_noise", "pretrain_lr",
                         "variant", "level", "weights_remaining", "replicates", "mean", "std"])  # fmt: skip
        for name, curves in experiments.items():
            for c in curves:
                n = (~np.isnan(c.accuracy)).sum(0)
                values = zip(c.remaining, n, c.mean() / 100, c.deviation() / 100)
                writer.writerows([name, *c[:6], level, *row] for level, row in enumerate(values))


def refuse(message: str) -> None:
    raise InputError(message)


def main(argv: list[str] | None = None) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.error = refuse
    parser.add_argument("runs", type=Path, metavar="RUNS_ROOT", help="folder with runs, at any depth")
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder for the figures (figures)")
    args = parser.parse_args(argv)
    experiments = read_runs(args.runs)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        paths = [path for name, curves in experiments.items() for path in draw(name, curves, args.out)]
        write_summary(args.out / "summary.csv", experiments)
    except OSError as error:
        raise InputError(f"cannot write to {args.out}: {error.strerror}") from None
    for name, curves in experiments.items():
        print_table(name, curves)
    print(*paths, args.out / "summary.csv", sep="\n")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        print(f"plot.py: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
