"""Draw the paper's figures from run folders, beside the published curves, and say what the numbers support.

reads   RUNS_ROOT/**/results.csv with the recipe from the level file beside each; paper_curves.json
writes  OUT/*.png, *.pdf; summary.csv (every number drawn), verdicts.csv (every comparison), summary.md

python plot.py runs/cifar10 --figure 2 --paper paper_curves.json --out figures/cifar10
python plot.py --paper paper_curves.json --figure 2 --preset cifar10 --out figures/paper
python plot.py runs/cifar10/easy-3200-t200/seed0 --figure run --out figures/run
python plot.py --figure examples scores --scores runs/cifar10/el2n.npy --out figures/el2n
"""

import argparse
import csv
import functools
import io
import itertools
import json
import os
import re
import signal
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors
import torch.nn.functional as F
from torch import Tensor, nn

import common

# (pre-training rate, t*, deepest level drawn, subset size of figure 2) of the paper and of the demonstration.
# CIFAR-10's size is our reading of the curves: 3200 loses least where it loses most, 12800 on average.
FIGURE_2 = {"cifar10": (0.4, 400, 16, 3200), "cifar100": (0.4, 800, 16, 2048),
            "cinic10": (0.1, 800, 12, 51200), "digits": (0.3, 20, 15, 256)}  # fmt: skip
SIZE_OF_FIGURE_3 = 2048
LEVELS_OF_FIGURE_4 = (8, 10, 12)
# What pre-training alone depends on: in these the curves of an experiment differ.
PRETRAINING = ("scheme", "subset_size", "rewind_step", "label_noise", "pretrain_lr", "noise_seed",
               "class_balanced", "subset_sha256")  # fmt: skip
# What a level file says beside the settings that its results depend on
RECORDED = ("recipe", "row", "made_by", "rewind_sha256", "sha256")
# The paper's colours, line styles and markers by role (t* and t*/2 are all data), dashes told apart in print.
STYLES = {
    "t*": dict(color="#0072b2", linestyle="--", dashes=(7, 2)),
    "t*/2": dict(color="#e8820e", linestyle="--", dashes=(4, 2)),
    "init": dict(color="#d9b800", linestyle="--", dashes=(2, 1.5)),
    "random": dict(color="#009e73", marker="o", markersize=5),
    "easy": dict(color="#b2182b", marker="^", markersize=6),
    "hard": dict(color="#f07fc0", marker="x", markersize=6, markeredgewidth=1.6),
    "custom": dict(color="black", marker="s", markersize=4),
}
ORDER = ("init", "all", *[*STYLES][3:])  # of curves
OTHER_STEPS = ("#56b4e9", "#7a5195", "#8c6d31", "#555555")  # all data in the search for t*
# (least and most label noise, A, B, what the paper says of A against B): its section 3, about figures 2 and 3
STATEMENTS = (
    (0, 0, "t*/2", "t*", "worse"),
    (0, 0, "init", "t*/2", "worse"),
    (0, 0, "random", "t*/2", "no worse"),
    (0, 0, "easy", "t*", "no worse"),
    (0, 0, "hard", "t*/2", "worse"),
    (0, 0, "hard", "random", "worse"),
    *((0.01, 1, "easy", other, "better") for other in ("t*", "t*/2", "init", "random")),
    *((0.5, 1, "init", other, "no worse") for other in ("t*", "t*/2")),
    (0.5, 1, "random", "init", "no better"),
)


class InputError(Exception):
    """Bad arguments or input: one line on stderr, exit status 2."""


class Curve(NamedTuple):
    """What one setting reached. Index l is IMP level l; accuracies in %, deviations are sample ones."""

    scheme: str  # init, all, random, easy, hard, custom
    size: int | None
    step: int  # t_r, optimizer steps
    noise: float
    rate: float  # of pre-training
    variant: str  # tells apart curves that are the same so far: other noise seeds, scores, balance
    remaining: np.ndarray  # [levels] fraction of weights
    n: np.ndarray  # [levels] replicates
    mean: np.ndarray  # [levels]
    std: np.ndarray  # [levels], NaN where there are fewer than two replicates
    seeds: tuple = ()  # of the rows of accuracy
    accuracy: np.ndarray | None = None  # [replicates, levels], NaN where missing; None: only means are known
    role: str = ""  # in its group: t*, t*/2, init, other (all data), or the scheme of a subset

    def name(self) -> str:
        if self.scheme == "init":
            return "no pre-training"
        who = "all data" if self.size is None else f"{self.scheme} {self.size}"
        return f"{who}, {self.step} steps{self.variant}"


class Group(NamedTuple):
    """Curves to compare: all data for t* and t*/2 steps, no pre-training, then subsets for t*/2 steps."""

    noise: float
    rate: float
    step: float  # t*/2
    title: str
    curves: list[Curve]
    claimed: int | None  # size of the subsets that the paper speaks about; None: not of these steps

    def reference(self) -> Curve | None:
        """All data for t* steps, which a matching initialisation weakly dominates (section 3)."""
        return next((c for c in self.curves if c.role == "t*"), None)

    def sizes(self) -> list[int]:
        return sorted({c.size for c in self.curves} - {None})

    def only(self, size: int | None) -> "Group":
        return self._replace(curves=[c for c in self.curves if c.size in (None, size)])


class Comparison(NamedTuple):
    """D = mean over levels of accuracy(A) - accuracy(B), in points, and its 95% interval, NaN if unknown."""

    first: int
    last: int
    replicates: str
    difference: float
    low: float
    high: float


# ------------------------------------------------------------ reading


BROKEN = (OSError, ValueError, TypeError, LookupError, RecursionError, csv.Error, safetensors.SafetensorError)


def read_run(path: Path) -> tuple[dict, np.ndarray, np.ndarray]:
    """(settings, fraction of weights remaining [levels], accuracy in % [levels]) of a run's results.csv."""
    try:
        with open(path, newline="") as f:
            rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(f)]
        found = [metadata(file) for file in sorted(path.parent.glob("level*.safetensors"))]
        if not found:
            raise ValueError("no level file beside it")
        info = found[0]
        own = {key: info[key] for key in ("prune_fraction", "order_seed", *info) if key not in RECORDED}
        settings = info["recipe"] | own
        check_setting(*(settings[key] for key in PRETRAINING[:5]))
        experiment_and_curve(settings)
        if [type(settings[key]) for key in ("preset", "dataset", "seed")] != [str, str, int]:
            raise ValueError("its recipe has no preset, data set or seed")
        drawn = [(row["level"], row["weights_remaining"], row["test_accuracy"]) for row in rows]
        level, remaining, accuracy = np.array(drawn).reshape(-1, 3).T
        possible = (remaining > 0) & (remaining <= 1) & (accuracy >= 0) & (accuracy <= 1)
        if list(level) != [*range(len(rows))] or not possible.all():
            raise ValueError("a level is missing, or a fraction is outside [0, 1]")
        for stored in (info["row"] for info in found if info["row"]["level"] < len(rows)):
            if any(stored[key] != value for key, value in rows[stored["level"]].items()):
                raise ValueError(f"its level {stored['level']} is not that of the level file")
    except BROKEN as error:
        raise InputError(f"{path} or a level file beside it is not readable: {str(error)[:200]}") from None
    return settings, remaining, 100 * accuracy


def metadata(path: Path) -> dict:
    with safetensors.safe_open(path, "np") as f:
        return json.loads(f.metadata()["json"])


def check_setting(scheme: str, size: int | None, step: int, noise: float, rate: float) -> None:
    """ValueError unless these can be a curve's: files hold anything."""
    if scheme not in ORDER[1:] or (size is None) != (scheme == "all"):
        raise ValueError(f"unknown scheme {scheme} of {size} examples")
    if any(type(n) is not int or not 0 <= n < 2**32 for n in (step, size or 0)):
        raise ValueError(f"{size} examples, {step} steps")
    if any(type(x) not in (int, float) or not 0 <= x < 1e30 for x in (noise, rate)) or noise > 1:
        raise ValueError(f"label noise {noise}, pre-training rate {rate}")


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


def read_runs(root: Path) -> dict[str, tuple[dict, list[Curve]]]:
    """{name: (settings, curves)} under root by experiment: what IMP trained alike."""
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    found = defaultdict(lambda: defaultdict(dict))
    for path in sorted(root.rglob("results.csv")):
        settings, remaining, accuracy = read_run(path)
        experiment, curve = experiment_and_curve(settings)
        replicates = found[experiment][curve]
        if settings["order_seed"] is not None:
            print(f"note: {path.parent} has a batch order of its own and is left out")
        elif settings["seed"] in replicates:
            print(f"note: {path.parent} repeats seed {settings['seed']} of its setting and is left out")
        elif not len(accuracy):
            print(f"note: {path.parent} has not finished a level yet")
        else:
            replicates[settings["seed"]] = remaining, accuracy, settings["subset_sha256"], path.parent
    named = {}
    for (preset, dataset, shared), by_curve in sorted(found.items()):
        settings, curves = json.loads(shared), {}
        for setting, replicates in by_curve.items():
            if not replicates:  # all were left out
                continue
            what = (*setting[:5], balance(setting))
            same = [other for other in curves if (*other[:5], balance(other)) == what]
            taken = f" ({len(same) + 1})" if same else ""
            curves[setting] = c = average(*setting[:5], what[5] + taken, replicates)
            _, _, subsets, folders = zip(*replicates.values())
            if setting[0] == "random" and len(set(subsets)) < len(subsets):
                print(f"note: {c.name()}: {len(subsets)} seeds share {len(set(subsets))} subset(s)")
            if same:
                there, here = (dict(zip(PRETRAINING, c)) for c in (same[0], setting))
                print(f"note: {c.name()} is {folders[0]}: {unlike(there, here)}")
        name = base = re.sub(r"[^\w-]", "_", preset if dataset == preset else f"{preset}-{dataset}")
        while name in named:  # the same preset with other hyperparameters
            name += "+"
        if curves:
            named[name] = settings, sorted(curves.values(), key=position)
            if name != base:
                print(f"note: {name}: {unlike(named[base][0], settings)}")
    if not named:
        raise InputError(f"{root}: no results.csv with results to draw below this folder")
    return named


def balance(setting: tuple) -> str:
    """What a name says of class balance: nothing where it is the paper's, whose random subsets have it."""
    balanced = dict(zip(PRETRAINING, setting)).get("class_balanced")
    if balanced is None or balanced == (setting[0] == "random"):
        return ""
    return ", class-balanced" if balanced else ", not class-balanced"


def unlike(there: dict, here: dict) -> str:
    keys = [key for key in there | here if there.get(key) != here.get(key)]
    text = "; ".join(f"{key} {here.get(key)} instead of {there.get(key)}" for key in keys)
    return re.sub(r"\b([0-9a-f]{8})[0-9a-f]{56}\b", r"\1...", text)


def position(c: Curve) -> tuple:
    return c.noise, c.size or 0, ORDER.index(c.scheme), c.step, c.rate


def average(scheme: str, size: int | None, step: int, noise: float, rate: float, variant: str,
            replicates: dict[int, tuple]) -> Curve:  # fmt: skip
    """The curve of {seed: (remaining [levels], accuracy [levels], ...)}, which may differ in their levels."""
    remaining = max((r for r, *_ in replicates.values()), key=len)
    accuracy = np.full((len(replicates), len(remaining)), np.nan)
    for row, (_, values, *_) in zip(accuracy, replicates.values()):
        row[: len(values)] = values
    known = np.ma.masked_invalid(accuracy)
    n, mean, std = known.count(0), known.mean(0).filled(np.nan), known.std(0, ddof=1).filled(np.nan)
    return Curve(scheme, size, step, noise, rate, variant, remaining, n, mean, std, (*replicates,), accuracy)


def read_published(path: Path, last: int) -> dict[str, list[Curve]]:
    """The paper's curves by preset, down to the level it draws, or further to level `last`.

    Its 'dense' lines are left out: they are level 0 of all data for t* steps (CINIC-10: for 400 steps).
    """
    named = defaultdict(dict)
    try:
        for c in json.loads(path.read_text())["curves"]:
            if c["scheme"] == "dense":
                continue
            rate, _, deepest, _ = FIGURE_2[c["dataset"]]
            keys, stop = ("weights_remaining", "mean", "std"), 1 + max(deepest, last)
            remaining, mean, std = np.array([c[key][:stop] for key in keys], float)
            possible = (remaining > 0) & (remaining <= 1) & (mean >= 0) & (mean <= 1) & (std >= 0)
            if type(c["replicates"]) is not int or c["replicates"] < 2 or not possible.all():
                raise ValueError("fewer than 2 replicates, or a fraction outside [0, 1]")
            what = (*(c[key] for key in ("scheme", "subset_size", "rewind_step", "label_noise")), rate)
            check_setting(*what)
            if what[2] == 0:  # the same runs, repeated at each label noise
                what = ("init", None, 0, 0.0, 0.0)
            n = np.full(len(mean), c["replicates"])
            std = 100 * std * np.sqrt(n / (n - 1))  # published with ddof 0
            named[c["dataset"]][what] = Curve(*what, "", remaining, n, 100 * mean, std)
    except BROKEN as error:
        raise InputError(f"{path}: not readable as published curves ({str(error)[:200]})") from None
    return {preset: sorted(curves.values(), key=position) for preset, curves in named.items()}


# ------------------------------------------------------------ what belongs together


def groups(curves: list[Curve], preset: str) -> list[Group]:
    """One for each label noise, rate and rewind step of subsets; one for each rate with more of all data."""
    keys = sorted({(c.noise, c.rate, c.step) for c in curves if c.size is not None})
    shown = {(noise, rate, n * step) for noise, rate, step in keys for n in (1, 2)}
    more = {(c.noise, c.rate, c.step) for c in curves} - shown - {(0.0, 0.0, 0)}
    keys += [(*key, None) for key in sorted({key[:2] for key in more})]
    found, rates = [], {rate for _, rate, _ in keys}
    _, t_star, _, size = FIGURE_2.get(preset, (0, 0, 0, 0))
    for noise, rate, step in keys or [(0.0, 0.0, None)]:
        near = [c for c in curves if c.scheme == "init" or (c.noise, c.rate) == (noise, rate)]
        steps = [c.step for c in near]  # without subsets, the longest stands for a t* that is not there
        half = step or (t_star if t_star in steps else max(steps)) / 2
        with_noise = SIZE_OF_FIGURE_3 if preset == "cifar10" else None
        claimed = (with_noise if noise else size) if 2 * half == t_star else None
        roles = {2 * half: "t*", half: "t*/2", 0: "init"}
        whole = [c._replace(role=roles.get(c.step, "other")) for c in near if c.size is None]
        whole = [c for c in whole if step is None or c.role != "other"]
        subsets = [c._replace(role=c.scheme) for c in near if c.size is not None and c.step == step]
        title = f", {step} steps" if step else ""
        title += f", pre-training rate {rate}" if len(rates) > 1 or not step else ""
        title += f", {noise:.0%} random labels" if noise else ""
        whole = sorted(whole, key=lambda c: -c.step)
        found.append(Group(noise, rate, half, title, whole + subsets, claimed))
    return found


def select(figure: str | None, found: list[Group], preset: str, size: int | None) -> list[Group]:
    """The groups of a figure of the paper; figures 2 and 3 show one subset size."""
    if figure in ("3", "7"):
        found = [g for g in found if g.noise and g.sizes()]
    elif figure:
        found = [g for g in found if not g.noise and g.sizes()]
    if figure in ("5", "6"):
        found = [g for g in found if (preset == "cinic10") == (figure == "6")]
    if figure not in ("2", "3"):
        return found
    if figure == "2":  # the paper's steps, else the most
        longest = max((g.step for g in found), default=0)
        found = [g for g in found if g.claimed] or [g for g in found if g.step == longest]
    wanted = size or (SIZE_OF_FIGURE_3 if figure == "3" else FIGURE_2.get(preset, (0, 0, 0, 0))[3])
    if size and any(size not in g.sizes() for g in found):
        raise InputError(f"--size {size}: the subsets have {', '.join(map(str, found[0].sizes()))} examples")
    return [g.only(wanted) if wanted in g.sizes() else best_size(g) for g in found]


def best_size(group: Group) -> Group:
    """Its one size whose easy examples (without those, whose subset) did best; the title says so."""
    subsets = [c for c in group.curves if c.size]
    easy = [c for c in subsets if c.scheme == "easy"] or subsets
    size = max(easy, key=lambda c: c.mean[1:].mean() if len(c.mean) > 1 else c.mean[0]).size
    sizes = len(group.sizes())
    chosen = f", the best of {sizes} sizes on these results" if sizes > 1 else ""
    return group.only(size)._replace(title=group.title + chosen)


# ------------------------------------------------------------ what the numbers support


@functools.lru_cache(maxsize=4096)
def student(df: float) -> float:
    """The 97.5% quantile of Student's t: with t = sqrt(df) tan(a), a has the density cos(a)^(df - 1)."""
    angle = np.linspace(0, np.pi / 2, 20001)
    density = np.cos(angle).clip(0) ** (df - 1)
    mass = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return float(np.sqrt(df) * np.tan(np.interp(0.95, mass / mass[-1], angle)))


def compare(a: Curve, b: Curve, first: int = 1, last: int | None = None) -> Comparison:
    """A against B over levels first to last (default: all): Student's interval over replicates.

    Paired by seed where two seeds or more are common, else Welch's. Replicates that have not finished are
    left out, or the levels that they lack, whichever costs less.
    """
    part = slice(first, None if last is None else last + 1)
    seeds = sorted(set(a.seeds) & set(b.seeds))
    if len(seeds) > 1:
        shared = min(len(a.mean), len(b.mean))
        rows = [c.accuracy[[c.seeds.index(s) for s in seeds], :shared] for c in (a, b)]
        gap = (rows[0] - rows[1])[:, part]
        levels = finished(gap)
        mean, std, n = over_levels(gap[:, :levels])
        half = student(n - 1) * std / np.sqrt(n) if n > 1 else np.nan
        return Comparison(first, first + levels - 1, f"{n} paired", mean, mean - half, mean + half)
    levels = min(finished((c.mean[None] if c.accuracy is None else c.accuracy)[:, part]) for c in (a, b))
    (mean_a, std_a, n_a), (mean_b, std_b, n_b) = (level_mean(c, first, first + levels) for c in (a, b))
    mean, half = mean_a - mean_b, np.nan
    if min(n_a, n_b) > 1:
        v_a, v_b = std_a**2 / n_a, std_b**2 / n_b
        shares = v_a**2 / (n_a - 1) + v_b**2 / (n_b - 1)
        half = student(round((v_a + v_b) ** 2 / shares, 4)) * np.sqrt(v_a + v_b) if shares else 0.0
    return Comparison(first, first + levels - 1, f"{n_a} and {n_b}", mean, mean - half, mean + half)


def finished(values: np.ndarray) -> int:
    """Of [replicates, levels] with NaN: how many levels make degrees of freedom x levels largest.

    Where no two replicates share a level, as many levels as one has.
    """
    n = np.logical_and.accumulate(~np.isnan(values), axis=1).sum(0)
    gain = (np.maximum(n - 1, 1e-6 * n) * np.arange(1, len(n) + 1))[::-1]
    return len(n) - int(np.argmax(gain)) if gain.any() else 0


def level_mean(c: Curve, first: int, stop: int) -> tuple[float, float, int]:
    """(mean, sample deviation, count) over replicates of a curve's mean over levels first to stop - 1."""
    if c.accuracy is not None:
        return over_levels(c.accuracy[:, first:stop])
    if stop <= first:
        return np.nan, np.nan, 0
    # Of published curves each level's deviation is known, not how levels go together. If they move as one,
    # their mean deviates by the mean deviation: never less than if they were independent.
    return c.mean[first:stop].mean(), c.std[first:stop].mean(), int(c.n[0])


def over_levels(values: np.ndarray) -> tuple[float, float, int]:
    """(mean, sample deviation, count) of complete rows' means over levels, of [replicates, levels]."""
    each = values[~np.isnan(values).any(1)].mean(1) if values.size else np.array([])
    mean = each.mean() if len(each) else np.nan
    return mean, each.std(ddof=1) if len(each) > 1 else np.nan, len(each)


def verdict(c: Comparison, margin: float) -> str:
    """better, no worse (by the margin, in points), worse, or undecided, as with one replicate.

    A loss that is sure but smaller than the margin is both worse and no worse: 'worse within margin'.
    """
    if c.low > 0:
        return "better"
    if c.low > -margin:
        return "worse within margin" if c.high < 0 else "no worse"
    return "worse" if c.high < 0 else "undecided"


def margin_needed(c: Comparison) -> float:
    """The loss that the interval does not exclude: an undecided A is 'no worse' at margins above it."""
    return c.low if np.isnan(c.low) else max(0.0, -c.low)


def beside_the_paper(group: Group, a: Curve, b: Curve, d: Comparison, margin: float) -> str:
    """What the paper says of A against B, if anything, and whether the comparison supports it."""
    if group.claimed is None or any(c.variant or c.size not in (None, group.claimed) for c in (a, b)):
        return ""
    for least, most, role_a, role_b, said in STATEMENTS:
        if least <= group.noise <= most and (a.role, b.role) == (role_a, role_b):
            true = {"better": d.low > 0, "no worse": d.low > -margin,
                    "worse": d.high < 0, "no better": d.high < margin}  # fmt: skip
            opposite = true["worse" if said in ("better", "no worse") else "better"]
            return f"{said}: {'supported' if true[said] else 'contradicted' if opposite else 'undecided'}"
    return ""


def deepest_like_dense(c: Curve, reference: Curve, margin: float) -> str:
    """Weights left at the deepest level that is no worse than the dense network: level 0 of all@t*."""
    level_0 = np.zeros(len(c.mean), int)
    dense = reference._replace(mean=reference.mean[level_0], std=reference.std[level_0])
    if dense.accuracy is not None:
        dense = dense._replace(accuracy=dense.accuracy[:, level_0])
    fine = [n for n in range(len(c.mean)) if compare(c, dense, n, n).low > -margin]
    return f"{c.remaining[fine[-1]]:.1%}" if fine else "none"


# ------------------------------------------------------------ figures of many runs


def pyplot():
    import matplotlib  # takes a second

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams["text.parse_math"] = False  # a $ in a path or a class name is a $
    return plt


def save(figure, path: Path) -> list[Path]:
    paths = []
    for kind in ("png", "pdf"):
        content = io.BytesIO()
        figure.savefig(content, format=kind, dpi=150, bbox_inches="tight")
        paths.append(put(path.with_name(f"{path.name}.{kind}"), content.getvalue()))
    pyplot().close(figure)
    return paths


def put(path: Path, content: bytes) -> Path:
    """Write a file that is either the old one or complete. (common.atomic_write would bring in torch.)"""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
    return path


def draw_figure(figure: str | None, name: str, found: list[Group], published: list[Curve], out: Path) -> list:
    """Draw one figure of the paper, or without its number every panel there is; returns the paths."""
    if figure == "4":
        rows = [[(draw_sizes, f"{name}{g.title}", g, published, level) for level in levels_to_draw(g)]
                for g in found]  # fmt: skip
    else:
        rows = [[(draw_levels, f"{name}{g.title}", g.only(size), published) for size in g.sizes() or [None]]
                for g in found]  # fmt: skip
    if max(map(len, rows)) == 1:
        rows = [[panel for row in rows for panel in row]]
    rows = [row[i : i + 4] for row in rows for i in range(0, len(row), 4)]
    columns, share = max(map(len, rows)), "row" if figure != "4" else False
    size = (4.6 * columns, 4.9 * len(rows))
    page, axes = pyplot().subplots(len(rows), columns, figsize=size, squeeze=False, sharey=share)
    for ax in axes.flat:
        ax.set_visible(False)
    panels = [(ax, panel) for line, row in zip(axes, rows) for ax, panel in zip(line, row)]
    for ax, (draw, *what) in panels:
        ax.set_visible(True)
        draw(ax, *what)
        ax.set_ylabel("test accuracy (%)")
        ax.tick_params(labelleft=True)
        ax.grid(alpha=0.25, linewidth=0.5)
        ax.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, frameon=False)
    page.tight_layout()
    return save(page, out / (f"{name}-figure{figure}" if figure else name))


def style(c: Curve, group: Group) -> dict:
    """The look of a role, with another line for a second curve of it; a lone point has a marker."""
    others = [o.step for o in group.curves if o.role == "other"]
    look = STYLES.get(c.role) or dict(color=OTHER_STEPS[others.index(c.step) % 4], linestyle=":")
    if c.variant:
        same = [o.variant for o in group.curves if (o.role, o.size, o.step) == (c.role, c.size, c.step)]
        look = {key: v for key, v in look.items() if key != "dashes"}
        look["linestyle"] = (":", "-.", (0, (1, 3)), (0, (6, 2, 1, 2)))[same.index(c.variant) % 4]
    return look if len(c.mean) > 1 else dict(marker="D", markersize=4) | look


def draw_levels(ax, title: str, group: Group, published: list[Curve]) -> None:
    """Accuracy against weights remaining: mean and standard deviation; the published mean behind, thin."""
    if group.reference():
        dense = group.reference().mean[0]
        ax.axhline(dense, color="grey", linestyle=(0, (6, 2)), linewidth=1, label="dense", zorder=1)
    for c in group.curves:
        look = style(c, group)
        ax.plot(100 * c.remaining, c.mean, linewidth=1.6, label=f"{c.name()} (n={count(c.n)})", **look)
        x, low, high = 100 * c.remaining, c.mean - c.std, c.mean + c.std
        ax.fill_between(x, low, high, color=look["color"], alpha=0.15, linewidth=0)
        for theirs in same_setting(c, published):
            ax.plot(100 * theirs.remaining, theirs.mean, **thin(look, c.name()))
    label_thin(ax)
    size = f": {group.sizes()[0]} examples" if group.sizes() else ": all data"
    ax.set_title(title + size, fontsize=10)
    weights_axis(ax, max((c.remaining for c in group.curves), key=len))


def same_setting(c: Curve, published: list[Curve], level: int = 0) -> list[Curve]:
    """The published counterpart, if there is one that reaches the level and was pruned alike."""
    found = [theirs for theirs in published if theirs[:6] == c[:6] and level < len(theirs.mean)]
    return [t for t in found if all(0.99 < a / b < 1.01 for a, b in zip(c.remaining, t.remaining))]


def thin(look: dict, name: str) -> dict:
    """The look of the published counterpart; the legend passes over labels that begin with _."""
    return look | dict(marker=None, linewidth=0.7, zorder=1.5, label=f"_published {name}")


def label_thin(ax) -> None:
    if any(line.get_label().startswith("_published") for line in ax.get_lines()):
        ax.plot([], [], color="black", linewidth=0.7, label="thin: published")


def count(n: np.ndarray) -> str:
    """Replicates, and where it is not the same number throughout, from how many to how many."""
    return f"{n[0]:.0f}" if n.min() == n.max() else f"{n.min():.0f} to {n.max():.0f}"


def weights_axis(ax, remaining: np.ndarray) -> None:
    ticks = 100 * remaining[:: 3 if len(remaining) > 6 else 1]
    ax.set_xscale("log")
    ax.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
    ax.minorticks_off()
    ax.set_xlim(100 * remaining[0] * 1.06, 100 * remaining[-1] / 1.06)
    ax.set_xlabel("weights remaining (%)")


def levels_to_draw(group: Group) -> list[int]:
    deepest = max(len(c.mean) for c in group.curves) - 1
    return [n for n in LEVELS_OF_FIGURE_4 if n <= deepest] or [deepest]


def draw_sizes(ax, title: str, group: Group, published: list[Curve], level: int) -> None:
    """Accuracy against subset size at one level; all data as horizontal lines (figure 4)."""
    curves = [c for c in group.curves if level < len(c.mean)]
    others = [c.mean[level] for c in curves if c.scheme != "init"] or [np.nan]
    for c in (c for c in curves if c.size is None):
        look, low, high = style(c, group), c.mean[level] - c.std[level], c.mean[level] + c.std[level]
        label = f"{c.name()} (n={c.n[level]})"
        if c.mean[level] < 2 * min(others) - max(others):  # it would press the others together
            ax.plot([], [], label=f"{label}: {c.mean[level]:.1f}%", **look)
            continue
        ax.axhline(c.mean[level], linewidth=1.4, label=label, **look)
        ax.axhspan(low, high, color=look["color"], alpha=0.1, lw=0)
        for theirs in same_setting(c, published, level):
            ax.axhline(theirs.mean[level], **thin(look, c.name()))
    kinds = {(ORDER.index(c.scheme), c.scheme, c.variant) for c in curves if c.size}
    for _, scheme, variant in sorted(kinds):
        mine = sorted((c for c in curves if (c.scheme, c.variant) == (scheme, variant)), key=lambda c: c.size)
        x, mean, std, n = np.array([(c.size, c.mean[level], c.std[level], c.n[level]) for c in mine]).T
        look = style(mine[0], group)
        ax.plot(x, mean, linewidth=1.6, label=f"{scheme}, {group.step} steps{variant} (n={count(n)})", **look)
        ax.fill_between(x, mean - std, mean + std, color=look["color"], alpha=0.15, lw=0)
        theirs = [(t.size, t.mean[level]) for c in mine for t in same_setting(c, published, level)]
        if theirs:
            ax.plot(*zip(*theirs), **thin(look, scheme))
    label_thin(ax)
    ax.set_xscale("log")
    ax.set_xticks(group.sizes(), map(str, group.sizes()), fontsize=7)
    ax.minorticks_off()
    ax.set_xlabel("examples in the subset")
    left = max((c.remaining for c in curves), key=len)[level]
    ax.set_title(f"{title}: level {level}, {left:.1%} of weights", fontsize=10)


# ------------------------------------------------------------ tables


def table(title: str, rows: list[list]) -> str:
    """A Markdown table, aligned so that a terminal shows it well; the first row is the head."""
    rows = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [" | ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    rule = "|".join(["-" * (widths[0] + 2), *("-" * (w + 1) + ":" for w in widths[1:])])
    return "\n".join([f"\n{title}\n", f"| {lines[0]} |", f"|{rule}|", *(f"| {line} |" for line in lines[1:])])


def spread(mean: float, std: float) -> str:
    return f"{mean:.2f}" + ("" if np.isnan(std) else f" ± {std:.2f}")


def interval(c: Comparison) -> str:
    return "none" if np.isnan(c.low) else f"{c.low:+.2f} to {c.high:+.2f}"


def span(c: Comparison) -> str:
    return f"{c.first}-{c.last}" if c.last > c.first else f"{c.last}"


def accuracy_tables(name: str, group: Group, margin: float) -> list[str]:
    """[with every level, with every third]."""
    longest, top = max((c.remaining for c in group.curves), key=len), group.reference()
    levels = range(len(longest))
    rows = [["", *(f"{longest[n]:.1%}" for n in levels), "mean from level 1", "like dense down to"]]
    for c in group.curves:
        cells = [spread(c.mean[n], c.std[n]) if n < len(c.mean) else "" for n in levels]
        mean, std, n = level_mean(c, 1, len(longest) if len(c.mean) == len(longest) else 1)
        rows.append([c.name(), *cells, spread(mean, std) if n else "",
                     deepest_like_dense(c, top, margin) if top else ""])  # fmt: skip
    title = f"{name}{group.title}: test accuracy in %, mean ± standard deviation, by weights left"
    third = [n for n in levels if n % 3 == 0 or len(longest) <= 6 or n == levels[-1]]
    return [table(title, [[row[0], *(row[1 + n] for n in some), *row[-2:]] for row in rows])
            for some in (levels, third)]  # fmt: skip


def compare_pairs(group: Group, first: int, last: int | None) -> list[tuple]:
    """(A, B, over all levels, [level by level]) of any two curves of a panel; against all@t* first."""
    pairs = [(a, b) for b, a in itertools.combinations(group.curves, 2)
             if (None in (a.size, b.size) or a.size == b.size) and not same_runs(a, b)]  # fmt: skip
    roles, compared = [*STYLES, "other"], []
    for a, b in sorted(pairs, key=lambda pair: (roles.index(pair[1].role), pair[1].size or 0)):
        whole = compare(a, b, first, last)
        if np.isnan(whole.difference):
            continue  # they have no such level yet
        compared.append((a, b, whole, [compare(a, b, n, n) for n in range(first, whole.last + 1)]))
    return compared


def same_runs(a: Curve, b: Curve) -> bool:
    """The paper draws its CIFAR-10 runs on all data for 200 steps as 25600 random examples too."""
    return a.accuracy is b.accuracy is None and np.array_equal(a.mean, b.mean)


def verdict_table(name: str, group: Group, compared: list[tuple], margin: float, short: bool) -> str:
    """Every comparison; short: those with all@t*, which say what is matching, and those of the paper."""
    rows = [["A", "B", "A - B", "95% interval", "n", "levels", "A is", "margin needed", "worst level",
             "the paper says"]]  # fmt: skip
    for a, b, d, each in compared:
        who, found = a.name(), verdict(d, margin)
        said = beside_the_paper(group, a, b, d, margin)
        if short and b.role != "t*" and not said:
            continue
        if b.role == "t*":  # is A matching?
            same = [(c, r) for c, top, r, _ in compared if top is b and c.scheme == a.scheme]
            sizes = {c.size for c, _ in same}
            if a.size and len(sizes) > 1 and d.difference == max(r.difference for _, r in same):
                who += f" (best of {len(sizes)} sizes on these results)"
            found += {"undecided": "", "worse": ": not matching"}.get(found, ": matching")
        worst = min(each, key=lambda e: e.difference, default=None)
        where = f"{worst.first}: {worst.difference:+.2f}" if worst else ""
        rows.append([who, b.name(), f"{d.difference:+.2f}", interval(d), d.replicates, span(d), found,
                     f"{margin_needed(d):.2f}".replace("nan", ""), where, said])  # fmt: skip
    head = f"{name}{group.title}: accuracy of A minus B in points, mean over levels; margin {margin:g}"
    if not group.reference():
        head += f". No run on all data for {2 * group.step:g} steps, so none can be called matching"
    return table(head, rows) if rows[1:] else ""


def paper_table(ours: Curve, theirs: Curve, first: int, last: int | None) -> str:
    """Level by level beside the published numbers, and whether the difference is inside the joint interval.

    A single replicate of ours is taken to deviate as theirs do.
    """
    rows, inside = [["level", "weights", "ours", "the paper's", "difference", "inside 95%"]], []
    for n in range(min(len(ours.mean), len(theirs.mean))):
        d = compare(ours, theirs, n, n)
        half = d.high - d.difference
        if ours.n[n] == 1:
            half = student(theirs.n[n] - 1) * theirs.std[n] * np.sqrt(1 + 1 / theirs.n[n])
        inside.append(abs(d.difference) <= half)
        rows.append([n, f"{ours.remaining[n]:.1%}", spread(ours.mean[n], ours.std[n]),
                     spread(theirs.mean[n], theirs.std[n]), f"{d.difference:+.2f}",
                     "yes" if inside[-1] else "no"])  # fmt: skip
    d = compare(ours, theirs, first, last)
    noise = f", {ours.noise:.0%} random labels" if ours.noise else ""
    return table(
        f"{ours.name()}{noise}: ours (n={ours.n[0]}) beside the paper's (n={theirs.n[0]}), inside the joint "
        f"95% interval at {sum(inside)} of {len(inside)} levels; mean difference over levels {span(d)}: "
        f"{d.difference:+.2f} points (95% interval {interval(d)})", rows)  # fmt: skip


def missing(curves: list[Curve]) -> list[str]:
    """A line for each curve that lacks replicates or levels which others have."""
    seeds, lines = sorted({s for c in curves for s in c.seeds}), []
    levels = max((len(c.mean) for c in curves), default=0)
    for c in (c for c in curves if c.seeds):
        without = [f"no run of seed {s}" for s in seeds if s not in c.seeds]
        reached = zip(c.seeds, (~np.isnan(c.accuracy)).sum(1))
        without += [f"seed {s} has reached level {n - 1} of {levels - 1}" for s, n in reached if n < levels]
        if without:
            lines.append(f"note: {c.name()}: {', '.join(without)}")
    return lines


def departures(settings: dict, curves: list[Curve]) -> str:
    """Where an experiment departs from the paper's Table 1, for who compares them; '' if nowhere."""
    import common  # and with it torch, which takes seconds

    preset = common.PRESETS[settings["preset"]]
    keys = ["dataset", "prune_fraction", *(key for key in common.HYPERPARAMETERS if key != "pretrain_lr")]
    other = [(key, settings.get(key)) for key in keys if settings.get(key) != preset[key]]
    rates = sorted({c.rate for c in curves if c.step} - {preset["pretrain_lr"]})
    other += [("pretrain_lr", rate) for rate in rates]
    return "; ".join(f"{key} {value} (paper: {preset[key]})" for key, value in other)


SUMMARY = ("experiment", "source", "scheme", "subset_size", "rewind_step", "label_noise", "pretrain_lr",
           "variant", "level", "weights_remaining", "replicates", "mean", "std")  # fmt: skip
VERDICTS = ("experiment", "label_noise", "pretrain_lr", "a", "b", "first_level", "last_level", "replicates",
            "difference", "low", "high", "verdict", "margin_needed")  # fmt: skip


def put_csv(path: Path, head: tuple, rows: list[list]) -> Path:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *rows])
    return put(path, text.getvalue().encode())


def draw_experiments(args: argparse.Namespace) -> list[Path]:
    """The figures of the paper, the tables and the verdicts of every experiment."""
    first, last = args.levels or (1, None)
    published = read_published(args.paper, last or 0) if args.paper else {}
    experiments = {f"{p}-published": ({"preset": p}, curves) for p, curves in published.items()}
    if args.runs:
        experiments = read_runs(args.runs)
    paths, numbers, verdicts, report, brief = [], [], [], [], []
    for name, (settings, curves) in experiments.items():
        preset, source = settings["preset"], "runs" if args.runs else "paper"
        theirs = published.get(preset, []) if args.runs else []
        shown, together = {}, groups(curves, preset)
        for figure in args.figure if args.preset in (None, preset) else ():
            found = select(figure, together, preset, args.size)
            for g in found:  # the same group with more sizes stands for both
                key = (g.noise, g.rate, g.step)
                shown[key] = max(shown.get(key, g), g, key=lambda g: len(g.sizes()))
            if found:
                paths += draw_figure(figure, name, found, theirs, args.out)
            else:
                print(f"note: {name} has nothing for figure {figure}")
        mine = list({c[:6]: c for g in shown.values() for c in g.curves}.values())
        if mine and first >= max(len(c.mean) for c in mine) and args.levels:
            raise InputError(f"--levels: {name} has no level {first}")
        beside = [(c, t) for c in mine for t in same_setting(c, theirs)]
        for source_of, c in [*((source, c) for c in mine), *(("paper", t) for _, t in beside)]:
            values = zip(c.remaining, c.n, c.mean / 100, c.std / 100)
            numbers += [[name, source_of, *c[:6], level, *row] for level, row in enumerate(values)]
        for g in shown.values():
            compared = compare_pairs(g, first, last)
            for a, b, whole, each in compared:
                pair = [name, g.noise, g.rate, a.name(), b.name()]
                judged = [[*d, verdict(d, args.margin), margin_needed(d)] for d in (whole, *each)]
                verdicts += [pair + row for row in judged]
            every, third = accuracy_tables(name, g, args.margin)
            full, short = (verdict_table(name, g, compared, args.margin, short) for short in (False, True))
            report += [f"\n# {name}{g.title}", every, full]
            brief += [third, short]
        more = [paper_table(c, t, first, last) for c, t in beside]
        if theirs and (elsewhere := departures(settings, mine)):
            more.insert(0, f"\nnote: {name} departs from the paper's setting: {elsewhere}")
        more += missing(mine)
        report += more
        brief += more
    if not numbers:
        known = sorted({settings["preset"] for settings, _ in experiments.values()})
        where = args.runs or args.paper
        raise InputError(f"nothing of this preset and figure in {where}; it has {', '.join(known)}")
    paths += [put_csv(args.out / "summary.csv", SUMMARY, numbers),
              put_csv(args.out / "verdicts.csv", VERDICTS, verdicts),
              put(args.out / "summary.md", ("\n".join(report).lstrip() + "\n").encode())]  # fmt: skip
    print(*brief, sep="\n")
    return paths


# ------------------------------------------------------------ figures of one run, and of scores


def draw_run(folder: Path, out: Path) -> list[Path]:
    """Test accuracy by level, and which layers global pruning empties."""
    import common

    if not (folder / "results.csv").exists():
        raise InputError(f"{folder}: no results.csv; --figure run takes one run, such as runs/x/seed0")
    settings, remaining, accuracy = read_run(folder / "results.csv")
    if not len(accuracy):
        raise InputError(f"{folder} has not finished a level yet")
    recipe = common.check_recipe(folder / "level00.safetensors", {"recipe": settings})
    order = common.ResNet(recipe["depth"], recipe["width"], 3, recipe["classes"]).prunable()
    shares, counts = [], {}
    for level in range(len(accuracy)):
        path = folder / f"level{level:02d}.safetensors"
        tensors, info = common.load_tensors(path)
        if info["row"]["level"] != level:
            raise InputError(f"{path}: holds level {info['row']['level']}")
        masks = {name: tensors[f"mask.{name}"] for name in order if f"mask.{name}" in tensors}
        counts = {name: (int(m.sum()), m.numel()) for name, m in masks.items()}
        shares.append([left / total for left, total in counts.values()])
    short = "/".join(folder.parts[-2:])
    rows = [[name, left, total, f"{left / total:.2%}"] for name, (left, total) in counts.items()]
    rows.insert(0, ["layer", "left", "of", "share"])
    print(table(f"{folder}: weights left at level {len(shares) - 1}", rows))
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, max(4.5, 0.2 * len(counts) + 1.5)))
    left.plot(100 * remaining, accuracy, "o-", color=STYLES["t*"]["color"], markersize=4)
    left.set(ylabel="test accuracy (%)", title=short)
    weights_axis(left, remaining)
    left.grid(alpha=0.25)
    share = np.ma.masked_equal(100 * np.array(shares).T, 0)  # [layers, levels]
    colors = plt.get_cmap("viridis").with_extremes(bad="black")
    image = right.imshow(share, aspect="auto", norm="log", cmap=colors, interpolation="nearest")
    right.set_yticks(range(len(counts)), counts, fontsize=7)
    right.set(xlabel="level", title="weights left in each layer (%), black: none")
    right.set_xticks(range(0, len(shares), 2 if len(shares) > 8 else 1))
    ticks = np.geomspace(share.min(), 100, 6) if share.min() < 100 else [100]
    figure.colorbar(image, ax=right, ticks=ticks, format="%.3g").ax.minorticks_off()
    figure.tight_layout()
    return save(figure, out / "run")


def load_scores(args: argparse.Namespace) -> tuple:
    """(Data, scores [N], the labels that were scored [N], their wrongness [N]) of --scores."""
    import torch

    import common

    sidecar = common.read_sidecar(args.scores)
    args.preset = args.preset or sidecar.get("preset")
    args.dataset = args.dataset or sidecar.get("dataset")
    args.label_noise = args.noise_seed = None
    for name, choices in (("preset", [*common.PRESETS]), ("dataset", [*common.READERS])):
        if getattr(args, name) not in (None, *choices):
            raise InputError(f"no {name} {getattr(args, name)}: {', '.join(choices)}")
    known = common.resolve_preset(args)
    data = common.load_data(known["dataset"], known["preset"], args.data_dir, torch.device("cpu"))
    scores, _ = common.load_array(args.scores, np.float32, (len(data.labels),), data.fingerprint)
    clean = data.labels.numpy()
    labels = common.noisy_labels(clean, len(data.classes), **common.resolve_noise(args, sidecar))
    return data, scores, labels, labels != clean


def draw_examples(loaded: tuple, out: Path, each: int = 6) -> list[Path]:
    """Of every class (as labelled when scored) the lowest and highest scores; wrong labels framed in red."""
    data, scores, labels, wrong = loaded
    images, clean = data.train_images().numpy(), data.labels.numpy()
    plt = pyplot()
    rows = len(data.classes)
    size = (1.15 * (2 * each + 1), 1.4 * rows)
    figure, axes = plt.subplots(rows, 2 * each + 1, figsize=size, squeeze=False)
    for c, line in enumerate(axes):
        mine = np.flatnonzero(labels == c)
        order = mine[np.argsort(scores[mine], kind="stable")]
        for ax in line:
            ax.axis("off")
        where = dict(fontsize=10, ha="right", va="center", transform=line[0].transAxes)
        line[0].text(-0.12, 0.5, data.classes[c], **where)
        places = [*zip(line[:each], order[:each]), *zip(line[each + 1 :], order[each:][-each:])]
        for ax, i in places:
            image = images[i]
            ax.axis("on")
            ax.set(xticks=[], yticks=[])
            ax.imshow(image.squeeze(), cmap="gray_r" if image.shape[-1] == 1 else None)
            true = f"is {data.classes[clean[i]]}" if wrong[i] else ""
            color = STYLES["easy"]["color"] if wrong[i] else "black"
            ax.set_title(f"#{i}: {scores[i]:.3f}", fontsize=7, pad=2)
            ax.set_xlabel(true, fontsize=7, labelpad=1, color=color)
            for edge in ax.spines.values():
                edge.set(color=color if wrong[i] else "none", linewidth=2)
    axes[0, 0].text(0, 1.4, "lowest scores", fontsize=11, transform=axes[0, 0].transAxes)
    axes[0, each + 1].text(0, 1.4, "highest scores", fontsize=11, transform=axes[0, each + 1].transAxes)
    return save(figure, out / "examples")


def draw_scores(loaded: tuple, out: Path) -> list[Path]:
    """The distribution of scores, of clean and wrong labels apart, and the quartiles of each class."""
    data, scores, labels, wrong = loaded
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(13, max(4.5, 0.22 * len(data.classes) + 1.5)))
    bins = np.linspace(min(scores.min(), 0), max(scores.max(), 1e-6), 61)
    kinds = [("labels as in the data set", ~wrong, STYLES["t*"]["color"])]
    if wrong.any():
        kinds.append(("labels redrawn to another class", wrong, STYLES["easy"]["color"]))
    for what, which, color in kinds:
        text = f"{what}: {which.sum()}, median {np.median(scores[which]):.3f}"
        left.hist(scores[which], bins, color=color, alpha=0.6, label=text)
    left.set(xlabel="score", ylabel="training examples", yscale="log")
    left.yaxis.set_major_formatter("{x:g}")
    left.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False)
    by_class = [scores[labels == c] for c in range(len(data.classes))]
    right.boxplot(by_class, orientation="horizontal", flierprops=dict(markersize=2, alpha=0.4),
                  medianprops=dict(color="black"), whis=(5, 95))  # fmt: skip
    right.set_yticks(range(1, len(by_class) + 1), data.classes, fontsize=8)
    right.invert_yaxis()
    right.set(xlabel="score: quartiles, 5% and 95%", title="by class, as labelled when scored")
    figure.tight_layout()
    rows = [["class", "examples", "5%", "median", "95%", "wrong labels"]]
    for name, values, c in zip(data.classes, by_class, range(len(by_class))):
        quantiles = np.percentile(values, [5, 50, 95]) if len(values) else [np.nan] * 3
        rows.append([name, len(values), *(f"{q:.3f}" for q in quantiles), f"{wrong[labels == c].sum()}"])
    print(table("scores by class, as labelled when scored", rows))
    return save(figure, out / "scores")


# ------------------------------------------------------------ masks on trial


def overlap(a: dict[str, Tensor], b: dict[str, Tensor]) -> tuple[float, float]:
    """|A and B| / |A or B| of two runs' masks, by layer, and what chance gives at their layer counts."""
    kept = [(int(a[name].sum()), int(b[name].sum()), mask.numel()) for name, mask in a.items()]
    both = sum(int((a[name] & b[name]).sum()) for name in a)
    chance = sum(m * n / size for m, n, size in kept)
    total = sum(m + n for m, n, _ in kept)
    return both / (total - both), chance / (total - chance)


def between(a: dict[str, Tensor], b: dict[str, Tensor], t: float) -> dict[str, Tensor]:
    """The point at t on the straight line from a to b, batch-norm statistics included."""
    return {name: a[name].lerp(b[name], t) for name in a}


def error_barrier(net: nn.Module, a: dict[str, Tensor], b: dict[str, Tensor], data: common.Data) -> float:
    """Highest test error at 11 points of the line minus the mean of both ends, in % (Frankle et al. 2020)."""
    errors = []
    for t in np.linspace(0, 1, 11):
        net.load_state_dict(between(a, b, t))
        errors.append(100 - 100 * common.evaluate(net, data)[0])
    return max(errors) - (errors[0] + errors[-1]) / 2


def loss_barrier(net: nn.Module, a: dict[str, Tensor], b: dict[str, Tensor], data: common.Data) -> np.ndarray:
    """Of every clean training example the loss at the midpoint minus the mean of both ends, not augmented.

    In nats, [N] float64. Those at most about 0 are linearly mode connected (arXiv 2206.01278).
    """
    losses = []
    for t in (0, 0.5, 1):
        net.load_state_dict(between(a, b, t))
        logits = common.predict(net, data, data.train_images()).double()
        losses.append(F.cross_entropy(logits, data.labels, reduction="none").cpu().numpy())
    return losses[1] - (losses[0] + losses[2]) / 2


# ------------------------------------------------------------ command line


def refuse(message: str) -> None:
    raise InputError(message)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw, allow_abbrev=False)
    parser.error = refuse
    add = parser.add_argument
    add("runs", type=Path, nargs="?", metavar="RUNS_ROOT", help="folder with runs at any depth")
    add("--figure", nargs="+", choices=[*"234567", "run", "examples", "scores"], metavar="F",
        help="2 to 7 of the paper; run, examples, scores (default: every panel there is)")  # fmt: skip
    add("--paper", type=Path, metavar="JSON", help="paper_curves.json: its curves behind yours, or alone")
    add("--preset", help="only this experiment; for examples and scores, what the sidecar does not say")
    add("--size", type=int, help="of the subsets in figures 2 and 3 (the paper's, else the best easy one)")
    add("--margin", type=float, default=0.5, help="what 'no worse' may lose, in points of accuracy (0.5)")
    add("--levels", type=int, nargs=2, metavar=("FIRST", "LAST"), help="of the verdicts (1 to the deepest)")
    add("--scores", type=Path, metavar="NPY", help="scores of score_el2n.py, for examples and scores")
    add("--dataset", help="for examples and scores, what the sidecar does not say")
    add("--data-dir", type=Path, default=Path("data"), help="folder of the data set's files (data)")
    add("--out", type=Path, default=Path("figures"), help="folder for the figures (figures)")
    args = parser.parse_args(argv)
    args.figure = list(dict.fromkeys(args.figure or [None]))
    if not 0 <= args.margin <= 100:
        raise InputError(f"--margin must be from 0 to 100 points, not {args.margin}")
    if args.size is not None and not {"2", "3"} & set(args.figure):
        raise InputError("--size belongs to --figure 2 and 3")
    if args.scores and not {"examples", "scores"} & set(args.figure):
        raise InputError("--scores belongs to --figure examples and scores")
    if args.levels and not 0 <= args.levels[0] <= args.levels[1]:
        raise InputError(f"--levels must be FIRST <= LAST, from 0, not {args.levels[0]} {args.levels[1]}")
    return args


def draw_inside(args: argparse.Namespace) -> list[Path]:
    """The figures of one run and of scores, which read tensors and images."""
    import common

    try:
        paths = draw_run(args.runs, args.out) if "run" in args.figure else []
        loaded = load_scores(args) if args.scores else None
        if "examples" in args.figure:
            paths += draw_examples(loaded, args.out)
        return paths + (draw_scores(loaded, args.out) if "scores" in args.figure else [])
    except (common.InputError, common.Failure) as error:
        raise InputError(str(error)) from None


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    inside = {"run", "examples", "scores"} & set(args.figure)
    if inside and inside != set(args.figure):
        raise InputError("--figure: run, examples and scores do not go with the paper's figures")
    if inside - {"run"} and not args.scores:
        raise InputError(f"--figure {' '.join(sorted(inside - {'run'}))} needs --scores")
    if not args.runs and ("run" in inside or not (inside or args.paper)):
        raise InputError("a folder with runs is needed, or --paper to draw the published curves alone")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        paths = draw_inside(args) if inside else draw_experiments(args)
    except OSError as error:
        raise InputError(f"{error.filename or args.out}: {error.strerror}") from None
    print("", *paths, sep="\n")


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # plot.py ... | head
    try:
        main()
    except InputError as error:
        print(f"plot.py: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
