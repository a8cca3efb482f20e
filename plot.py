"""Draw the paper's figures from run folders, beside the published curves, and say what the numbers
support.

reads   RUNS_ROOT/**/results.csv and the level files beside each; paper_curves.json; for barrier the
        images
writes  OUT/*.png, *.pdf; summary.csv (every number drawn), verdicts.csv (every comparison),
        summary.md; for masks *-masks.csv, for barrier *-barrier.csv and barrier-*.npy (scores: low
        is stable)

python plot.py runs/cifar10 --figure 2 --paper paper_curves.json --out figures/cifar10
python plot.py --paper paper_curves.json --figure 2 --preset cifar10 --out figures/paper
python plot.py runs/cifar10 --figure difference controls masks barrier --out figures/masks
"""

import argparse
import csv
import io
import itertools
import json
import math
import os
import re
import sys
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import stdtrit  # quantiles of Student's t
from torch import Tensor, nn
from tqdm import tqdm

import common
import training
from common import InputError

# The subset size of figure 2 (and of the demonstration). CIFAR-10's is our reading of the published
# curves: 3200 loses least where it loses most, 12800 on average.
SIZE_OF_FIGURE_2 = {
    "cifar10": 3200,
    "cifar100": 2048,
    "cinic10": 51200,
    "cifar10-small": 3200,
    "digits": 256,
}
SIZE_OF_FIGURE_3 = {"cifar10": 2048, "cifar10-small": 3200, "digits": 256}  # under label noise
LEVELS_OF_FIGURE_4 = (8, 10, 12)
# of a curve, beside its name
KEY = ("scheme", "subset_size", "rewind_step", "label_noise", "pretrain_lr")
NO_PRETRAINING = dict(zip(KEY, ("init", None, 0, 0.0, 0.0)))
HASHES = ("subset_sha256", "fingerprint", "test_set_sha256", "labels_sha256")
# what a level file says beside what decides its results, and hashes of what is each replicate's own
RECORDED = (*common.RECORDED, "rewind_sha256", "masks_sha256")
NOT_IN_PRESETS = (
    *KEY[:4],
    *HASHES,
    "preset",
    "classes",
    "precision",
    "order_seed",
    "version",
    "image_size",
    "same_start",
)
# The paper's colours and markers by role. t* and t*/2 are all data; their dashes differ in grey
# print too.
STYLES = {
    "t*": dict(color="#0072b2", linestyle=(0, (8, 2)), marker="."),
    "t*/2": dict(color="#e8820e", linestyle=(0, (5, 1.5, 1, 1.5)), marker="."),
    "init": dict(color="#d9b800", linestyle=(0, (1.5, 1.5)), marker="."),
    "random": dict(color="#009e73", marker="o", markersize=5),
    "easy": dict(color="#b2182b", marker="^", markersize=6),
    "easy, balanced": dict(color="#5e3c99", marker="D", markersize=4.5),
    "hard": dict(color="#f07fc0", marker="x", markersize=6, markeredgewidth=1.6),
    "custom": dict(color="black", marker="s", markersize=4),
}
OTHER_STYLE = dict(linestyle=":", marker="s", markersize=4)
OTHER_COLORS = ("#56b4e9", "#7a5195", "#8c6d31", "#555555")  # other steps, other schemes
OTHER_LINES = (":", "-.", (0, (1, 3)), (0, (6, 2, 1, 2)))  # of further curves of one look
GREY = dict(color="grey", linestyle=(0, (1, 3)), linewidth=1)
# the published curve, or what chance gives, behind one
THIN = dict(marker=None, linewidth=0.7, zorder=1.5)
ACCURACY, WEIGHTS = "test accuracy (%)", "weights remaining (%)"
# (least and most label noise, A, B, what the paper says of A against B): its section 3, about
# figures 2 and 3
STATEMENTS = (
    (0, 0, "t*/2", "t*", "worse"),
    (0, 0, "init", "t*/2", "worse"),
    (0, 0, "random", "t*/2", "no worse"),
    (0, 0, "easy", "t*", "no worse"),
    (0, 0, "hard", "t*/2", "worse"),
    (0, 0, "hard", "random", "worse"),
    *((0.01, 1, "easy", other, "better") for other in ("t*", "t*/2", "init", "random")),
    (0.5, 1, "init", "t*", "no worse"),
    (0.5, 1, "init", "t*/2", "no worse"),
    (0.5, 1, "random", "init", "no better"),
)


# ------------------------------------------------------------ curve


@dataclass(eq=False)
class Curve:
    """What one setting reached: test accuracy in % of every replicate, by IMP level."""

    settings: dict  # what its replicates share, of the recipe and of imp.py
    remaining: np.ndarray  # [levels] fraction of weights
    accuracy: dict = field(default_factory=dict)  # {seed: [levels that this replicate has reached]}
    diverged: dict = field(default_factory=dict)  # {seed: where its loss was not finite}
    subsets: set = field(default_factory=set)  # sha256 of its replicates' subsets
    folders: dict = field(default_factory=dict)  # {seed: folder of the run}
    published: bool = False
    variant: str = ""  # in the name: what tells it apart from curves of the same key
    twin: "Curve | None" = None  # the published curve of the same setting

    def __post_init__(self) -> None:
        # scheme: init, all, random, easy, hard or custom; size: examples or None; noise: share of
        # random labels; rate: of the pre-training steps
        self.key = tuple(self.settings[key] for key in KEY)
        self.scheme, self.size, self.step, self.noise, self.rate = self.key
        usual = common.PRESETS.get(self.settings["preset"], {}) | {
            "noise_seed": 0,
            "criterion": "magnitude",
        }
        usual["class_balanced"] = self.scheme == "random"
        usual["score"] = None if self.scheme in ("all", "init", "random", "custom") else "el2n"
        usual |= NO_PRETRAINING if self.scheme == "init" else {}
        asked = {
            key: v
            for key, v in self.settings.items()
            if key not in NOT_IN_PRESETS and v is not None
        }
        # what a run has otherwise than its preset, or beside it
        self.departs = {key: v for key, v in asked.items() if v != usual.get(key)}
        self.pruned = {key: v for key, v in self.settings.items() if key not in common.PRETRAINING}
        # the starting point whose masks it has; None: its own
        self.masks = self.settings.get("masks")

    @property
    def name(self) -> str:
        who = "all data" if self.size is None else f"{self.scheme} {self.size}"
        return (
            "no pre-training" if self.scheme == "init" else f"{who}, {self.step} steps"
        ) + self.variant

    @cached_property
    def levels(self) -> list[np.ndarray]:
        """By level, the accuracies of the replicates that have reached it."""
        reached = self.accuracy.values()
        return [np.array([a[n] for a in reached if n < len(a)]) for n in range(len(self.remaining))]

    n = cached_property(lambda self: np.array([*map(len, self.levels)]))
    mean = cached_property(lambda self: np.array([*map(np.mean, self.levels)]))
    std = cached_property(lambda self: np.array([*map(deviation, self.levels)]))

    def over(self, first: int, last: int) -> dict:
        """{seed: mean accuracy over levels first to last} of the replicates that have them all."""
        reached = {
            seed: values for seed, values in self.accuracy.items() if first <= last < len(values)
        }
        return {seed: values[first : last + 1].mean() for seed, values in reached.items()}


def name_curves(curves: list[Curve]) -> dict:
    """Name the curves of a picture; returns the departures from their preset that no name says.

    A name has scheme, size, steps, and departures that not all share. Curves still called the same
    say in what they differ, and if in nothing but what was drawn, four digits of its hash.
    """

    def say(c: Curve, key: str) -> str:
        value = c.settings.get(key)
        if value is None or value is True:
            return f", {key.removeprefix('class_')}" if value else ""
        return f", #{value[:4]}" if key in HASHES else f", {key}={value}"

    differ = {
        key
        for a in curves
        for b in curves
        for key in {*a.settings} - {*KEY}
        if a.settings[key] != b.settings.get(key)
    }
    for c in curves:
        c.variant = "".join(say(c, key) for key in c.departs if key in differ)
    for c, same in [(c, [o for o in curves if (o.key, o.name) == (c.key, c.name)]) for c in curves]:
        keys = [
            k for k in sorted(differ) if any(o.settings.get(k) != c.settings.get(k) for o in same)
        ]
        keys = [k for k in keys if k not in HASHES] or keys
        c.variant += "".join(say(c, key) for key in keys)
    return {
        key: value
        for c in curves
        for key, value in c.departs.items()
        if key not in differ and all(o.settings[key] == value for o in curves if o.step)
    }


def deviation(values: np.ndarray) -> float:
    """The sample standard deviation; NaN of fewer than two values."""
    return values.std(ddof=1) if len(values) > 1 else np.nan


# ------------------------------------------------------------ reading


def read_run(folder: Path) -> tuple[int, dict, str | None, np.ndarray, np.ndarray]:
    """A run's seed, settings its replicates share, subset's sha256, weights left, accuracy in %."""
    path = folder / "results.csv"
    with common.reading(path), open(path, newline="") as f:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(f)]
        drawn = [(row["level"], row["weights_remaining"], row["test_accuracy"]) for row in rows]
        level, remaining, accuracy = np.array(drawn).T
        if [*level] != [*range(len(rows))] or not np.isfinite(drawn).all():
            raise ValueError("a level is missing, or a number")
    # the first alone is read: the others need not be copied along
    for file in sorted(folder.glob("level*.safetensors"))[:1]:
        info = common.load_info(file)
        with common.reading(file):
            common.check_version(file, info["recipe"])
            if info["row"] != rows[info["row"]["level"]]:
                raise InputError(
                    f"{path}: its level {info['row']['level']} is not that of {file.name}"
                )
            return *replicate(info), info["recipe"]["subset_sha256"], remaining, 100 * accuracy
    raise InputError(f"{path}: no level file beside it says what was trained")


def replicate(info: dict) -> tuple[int, dict]:
    """A level file's or diverged.json's seed, and all settings but that and what hangs on it."""
    shared = info["recipe"] | {key: value for key, value in info.items() if key not in RECORDED}
    seed = shared.pop("seed")
    # the replicate is the run that made them; its number is in no setting
    if masks := shared.get("masks"):
        seed = masks["seed"]
        shared |= {"masks": masks["setting"], "same_start": masks["same_start"]}
    if shared["rewind_step"] == 0:  # w_0 saw no data, whatever the subset was
        return seed, shared | dict.fromkeys(common.PRETRAINING) | NO_PRETRAINING
    if shared["scheme"] not in ("easy", "hard", "custom") and shared["score"] is None:
        shared["subset_sha256"] = None  # nothing but chance chose it, for each seed anew
    return seed, shared


def read_runs(root: Path) -> dict[str, list[Curve]]:
    """{picture: curves} of the runs under root.

    A picture has one preset, one training set and one test set.
    """
    found, reordered = {}, 0
    for path in sorted(root.rglob("results.csv")):
        seed, settings, subset, remaining, accuracy = read_run(path.parent)
        c = found.setdefault(json.dumps(settings, sort_keys=True), Curve(settings, remaining))
        if settings.get("order_seed") is not None:
            reordered += 1
        elif seed in c.accuracy:
            print(f"note: {path.parent} repeats seed {seed} of its setting and is left out")
        else:
            c.remaining = max(c.remaining, remaining, key=len)
            c.accuracy[seed], c.folders[seed] = accuracy, path.parent
            c.subsets.add(subset)
    if reordered:
        print(
            f"note: {reordered} runs under a batch order of their own are for --figure barrier "
            "alone"
        )
    for path in sorted(root.rglob("diverged.json")):
        with common.reading(path):
            told = json.loads(path.read_text())
            common.check_version(path, told["recipe"])
            seed, shared = replicate(told["settings"] | {"recipe": told["recipe"]})
            where = "pre-training" if told["level"] is None else f"level {told['level']}"
            where = f"diverged in {where}, step {told['step']}"
        print(f"note: {path.parent} {where}")
        # of pre-training that diverged, the settings of imp.py are not known
        for c in found.values():
            if shared.items() <= c.settings.items():
                c.diverged[seed] = where
    pictures = {}
    for c in (c for c in found.values() if c.accuracy):
        preset, dataset = (f"{c.settings.get(k)}" for k in ("preset", "dataset"))
        usual = common.PRESETS.get(preset, {}).get("dataset")
        images = common.sha256(
            *(f"{c.settings.get(k)}".encode() for k in ("fingerprint", "test_set_sha256"))
        )
        pictures.setdefault(
            (preset if dataset == usual else f"{preset}-{dataset}", images), []
        ).append(c)
        if c.size and not c.settings["subset_sha256"] and len(c.subsets) < len(c.accuracy):
            print(f"note: {c.name}: {len(c.accuracy)} seeds share {len(c.subsets)} subset(s)")
    if not pictures:
        raise InputError(f"{root}: no folder with a results.csv that has results to draw")
    names, named = [name for name, _ in pictures], {}
    for (name, images), curves in sorted(pictures.items()):
        name = re.sub(r"[^\w-]", "_", name + (f"-{images[:4]}" if names.count(name) > 1 else ""))
        usual, named[name] = common.PRESETS.get(curves[0].settings["preset"], {}), curves
        if shared := [
            f"{k} {v}" + (f" (preset: {usual[k]})" if k in usual else "")
            for k, v in name_curves(curves).items()
        ]:
            print(f"note: {name} departs from the paper's setting: {'; '.join(shared)}")
    return named


def read_published(path: Path, last: int = 0) -> dict[str, list[Curve]]:
    """The paper's curves by preset, down to the deepest level it draws, or to level `last`.

    Only mean and deviation (ddof 0) of each level are published. Here they become replicates that
    have them, and whose levels move as one: so their mean over levels deviates by the levels' mean
    deviation, never less than the real one. No two curves share a replicate. 'dense' is level 0 of
    all data, and left out.
    """
    presets = {}
    with common.reading(path):
        for c in json.loads(path.read_text())["curves"]:
            if c["scheme"] == "dense":
                continue
            preset, z = (
                common.PRESETS[c["dataset"]],
                np.arange(c["replicates"]) - (c["replicates"] - 1) / 2,
            )
            levels = slice(1 + max(preset["levels"], last))
            remaining, mean, std = (
                np.array(c[key][levels]) for key in ("weights_remaining", "mean", "std")
            )
            settings = {"preset": c["dataset"], "pretrain_lr": preset["pretrain_lr"]}
            settings |= {key: c[key] for key in KEY[:4]} if c["rewind_step"] else NO_PRETRAINING
            replicates = enumerate(100 * (mean + std * (z / z.std())[:, None]))
            accuracy = {(*map(str, settings.values()), k): values for k, values in replicates}
            curve = Curve(settings, remaining, accuracy, published=True)
            # no pre-training is repeated at each label noise, the same runs
            presets.setdefault(c["dataset"], {})[curve.key] = curve
    return {name: [*curves.values()] for name, curves in presets.items()}


# ------------------------------------------------------------ panels


@dataclass
class Panel:
    """Curves to compare: all data for t* and t*/2 steps, no pre-training, subsets for t*/2."""

    noise: float
    rate: float
    step: int | None  # of its subsets; None: all data only
    t_star: int
    curves: list[Curve]
    title: str
    claimed: int | None  # size of the subsets that the paper speaks about; None: not of these steps

    def __post_init__(self) -> None:
        self.sizes = sorted({c.size for c in self.curves} - {None})
        self.remaining = max((c.remaining for c in self.curves), key=len)
        self.whole = [c for c in self.curves if self.role(c) == "t*"]  # all data for t* steps
        named = 100 * self.remaining[:: 3 if len(self.remaining) > 6 else 1]
        # of an axis of weights remaining
        self.ticks = {weights: f"{weights:.3g}" for weights in named}

    def role(self, c: Curve) -> str:
        """t*, t*/2, init, other (steps on all data), or a subset's scheme, balanced if easy."""
        if c.size is not None:
            return (
                "easy, balanced"
                if c.scheme == "easy" and c.settings.get("class_balanced")
                else c.scheme
            )
        return {self.t_star: "t*", self.t_star / 2: "t*/2", 0: "init"}.get(c.step, "other")

    def reference(self, c: Curve) -> Curve | None:
        """All data for t* steps, else trained alike.

        A matching c weakly dominates it (paper, section 3).
        """
        return next((o for o in self.whole if o is not c and o.pruned == c.pruned), None)

    def only(self, size: int | None) -> "Panel":
        return replace(self, curves=[c for c in self.curves if c.size in (None, size)])


def make_panels(curves: list[Curve], preset: str) -> list[Panel]:
    """A panel for each label noise, rate and steps of subsets.

    And one for each label noise and rate with more steps on all data.
    """
    curves = [c for c in curves if not c.masks]
    if not curves:
        raise InputError(
            "every run is under the masks of another; name a folder that has those too"
        )
    t_star = common.PRESETS.get(preset, {}).get("t_star")
    keys = sorted({(c.noise, c.rate, c.step) for c in curves if c.size is not None})
    with_subsets = {(noise, rate, n * step) for noise, rate, step in keys for n in (1, 2)}
    more = {(c.noise, c.rate, c.step) for c in curves if c.step} - with_subsets
    keys += [(noise, rate, None) for noise, rate in sorted({key[:2] for key in more})]
    panels, rates = [], {rate for _, rate, _ in keys}
    for noise, rate, step in keys or [(0.0, 0.0, None)]:
        near = [c for c in curves if c.scheme == "init" or (c.noise, c.rate) == (noise, rate)]
        steps = {c.step for c in near}
        # Subsets are seen for t*/2 steps, whatever t* a user has chosen; without any, take the
        # longest.
        top = 2 * step if step else t_star if t_star in steps else max(steps)
        whole = [c for c in near if c.size is None and (not step or c.step in (0, step, top))]
        whole.sort(key=lambda c: (c.step != top, -c.step, c.name))  # the reference first
        subsets = [c for c in near if c.size is not None and c.step == step]
        subsets.sort(key=lambda c: (c.size, [*STYLES, c.scheme].index(c.scheme), c.variant))
        title = [f"{step} steps"] if step else []
        title += [f"pre-training rate {rate}"] if len(rates) > 1 or not step else []
        title += [f"{noise:.0%} random labels"] if noise else []
        claimed = (
            (SIZE_OF_FIGURE_3 if noise else SIZE_OF_FIGURE_2).get(preset) if top == t_star else None
        )
        panels.append(Panel(noise, rate, step, top, whole + subsets, ", ".join(title), claimed))
    return panels


def as_one(panels: list[Panel]) -> Panel:
    """All curves in one panel; their names say what else its title would."""
    curves = [*dict.fromkeys(c for p in panels for c in p.curves)]
    several = len({c.rate for c in curves if c.step}) > 1
    for k, c in enumerate(curves):
        noise = f", {c.noise:.0%} random labels" if c.noise else ""
        rate = f", rate {c.rate:g}" if several and c.step else ""
        curves[k] = replace(c, variant=c.variant + noise + rate)
    return replace(panels[0], curves=curves)


def make_controls(curves: list[Curve]) -> list[Panel]:
    """For every curve under whose masks others were trained: it and those."""
    panels = []
    for own in (c for c in curves if not c.masks):
        either = {"shuffled": None, "same_start": None}
        wanted = own.pruned | {"masks": common.start_name(own.settings)} | either
        shown = [own, *(c for c in curves if c.pruned | either == wanted)]
        t_star = max(c.step if c.size is None else 2 * c.step for c in shown)
        if shown[1:]:
            panels.append(
                Panel(own.noise, own.rate, None, t_star, shown, f"masks of {own.name}", None)
            )
    return panels


def choose(figure: str | None, panels: list[Panel], preset: str) -> list[Panel]:
    """The panels of a figure of the paper, None: all.

    Figures 2 and 3 show its steps and size, else all.
    """
    if figure in (None, "difference"):
        return panels
    panels = [p for p in panels if p.sizes and bool(p.noise) == (figure in "37")]
    if figure in "56":
        return panels if (preset == "cinic10") == (figure == "6") else []
    if figure in "23":
        panels = [p for p in panels if p.claimed] or panels
        panels = [p.only(p.claimed) if p.claimed in p.sizes else p for p in panels]
    return panels


# ------------------------------------------------------------ comparison


@dataclass
class Comparison:
    """D = mean over levels of accuracy(A) - accuracy(B), in points, and its 95% interval.

    What is unknown is NaN.
    """

    a: Curve
    b: Curve
    first: int
    last: int
    replicates: str
    difference: float
    low: float
    high: float
    without: str = ""  # which replicates, and why
    each: "list[Comparison]" = ()  # level by level
    sparse: "Comparison | None" = None  # over the sparsest third of them


def compare(a: Curve, b: Curve, first: int = 1, last: int | None = None) -> Comparison:
    """A against B over levels first to last (default: all that both have reached).

    Student's 95% interval, paired by seed if three or more seeds are common, or all of the smaller
    arm's; else Welch's over all. Replicates that lack levels are left out.
    """
    deepest = min(len(a.remaining), len(b.remaining)) - 1
    last = deepest if last is None else min(last, deepest)
    of_a, of_b = a.over(first, last), b.over(first, last)
    paired = [of_a[seed] - of_b[seed] for seed in of_a if seed in of_b]
    samples, replicates = (
        [[*of_a.values()], [-b for b in of_b.values()]],
        f"{len(of_a)} and {len(of_b)}",
    )
    if paired and len(paired) >= min(3, len(of_a), len(of_b)):
        samples, replicates = [paired], f"{len(paired)} paired"
    lacking = [
        f"{who}'s seed {seed}: {c.diverged.get(seed, 'unfinished')}"
        for who, c, of in (("A", a, of_a), ("B", b, of_b))
        for seed in sorted({*c.accuracy, *c.diverged} - {*of})
    ]
    n, difference, half = np.array([*map(len, samples)]), np.nan, np.nan
    if n.min() > 0:
        difference = sum(map(np.mean, samples))
    if n.min() > 1:
        squares = np.array([np.var(sample, ddof=1) for sample in samples]) / n  # of standard errors
        parts = (squares**2 / (n - 1)).sum()
        freedom = squares.sum() ** 2 / parts if parts else np.inf  # Welch's; n - 1 of one sample
        half = stdtrit(freedom, 0.975) * np.sqrt(squares.sum())
    low, high = difference - half, difference + half
    return Comparison(a, b, first, last, replicates, difference, low, high, "; ".join(lacking))


def verdict(d: Comparison, margin: float) -> str:
    """better, no worse (by the margin in points), worse, worse within margin (both), undecided."""
    if d.low > 0:
        return "better"
    if d.low > -margin:
        return "worse within margin" if d.high < 0 else "no worse"
    return "worse" if d.high < 0 else "undecided"


def full_verdict(d: Comparison, margin: float) -> tuple[str, bool | None]:
    """(verdict over all levels and where it does not hold, does A weakly dominate B?).

    None: undecided. It must dominate over the sparsest third too, where a mean can hide a collapse;
    needing both needs no correction.
    """
    found, sparse = verdict(d, margin), verdict(d.sparse, margin)
    dominates = (
        True
        if min(d.low, d.sparse.low) > -margin
        else False
        if "worse" in (found, sparse)
        else None
    )
    but = (
        [f"{sparse} at levels {span(d.sparse)}"]
        if d.sparse.low <= -margin and sparse != found
        else []
    )
    weights = " ".join(f"{d.a.remaining[e.first]:.1%}" for e in d.each if e.high < -margin)
    but += [f"worse at {weights}"] if weights else []
    return found + (f", but {' and '.join(but)}" if but and found != "worse" else ""), dominates


def the_paper_says(panel: Panel, d: Comparison, margin: float) -> str:
    """What the paper says of A against B, if anything, and whether the comparison supports it."""
    plain = all(not c.departs and c.size in (None, panel.claimed) for c in (d.a, d.b))
    for least, most, role_a, role_b, said in STATEMENTS if panel.claimed and plain else ():
        if least <= panel.noise <= most and (role_a, role_b) == (panel.role(d.a), panel.role(d.b)):
            _, dominates = full_verdict(d, margin)
            true, false = {
                "better": (dominates and d.low > 0, d.high < 0),
                "no worse": (dominates, dominates is False),
                "worse": (d.high < 0, d.low > 0),
                "no better": (d.high < margin, d.low > 0),
            }[said]
            return f"{said}: {'supported' if true else 'contradicted' if false else 'undecided'}"
    return ""


def compare_pairs(panel: Panel, first: int, last: int | None) -> list[Comparison]:
    """Compare any two curves of a panel, over all levels and level by level.

    Those of a curve with its reference come first. Subsets of different sizes are not compared, and
    ours only with the published curve of the same setting.
    """
    pairs = [
        (a, b)
        for b, a in itertools.combinations(panel.curves, 2)
        if (None in (a.size, b.size) or a.size == b.size)
        # the paper draws its CIFAR-10 runs on all data for 200 steps as 25600 random examples too
        and not (a.published and np.array_equal(a.mean, b.mean))
    ]
    pairs.sort(key=lambda pair: pair[1] is not panel.reference(pair[0]))
    pairs += [(c, c.twin) for c in panel.curves if c.twin]
    compared = [
        d for d in (compare(a, b, first, last) for a, b in pairs) if not np.isnan(d.difference)
    ]
    for d in compared:
        d.each = [compare(d.a, d.b, n, n) for n in range(d.first, d.last + 1)]
        d.sparse = compare(d.a, d.b, d.last + 1 - math.ceil(len(d.each) / 3), d.last)
    return compared


# ------------------------------------------------------------ drawing


@dataclass
class Picture:
    """Lines with bands: (label, look, x, y, half the band's height), the last three [points]."""

    lines: list[tuple]
    title: str
    xlabel: str
    ylabel: str = ACCURACY
    ticks: dict | None = None  # {x: its label} of a logarithmic axis; None: a linear one


def draw_page(
    path: Path, pictures: list[Picture], note: str, columns: int = 4, apart: bool = False
) -> list:
    """Pictures side by side, as png and pdf; unless apart, of one vertical range."""
    import matplotlib.figure  # takes a second; and without pyplot, which would look for a screen

    matplotlib.rcParams["text.parse_math"] = False  # a $ in a name is a $
    columns = min(columns, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    size = 4.6 * columns, (4 + 0.17 * max(len(p.lines) for p in pictures)) * rows  # inches
    page = matplotlib.figure.Figure(figsize=size, layout="constrained")
    axes = page.subplots(rows, columns, squeeze=False)
    for ax in axes.flat[len(pictures) :]:
        ax.remove()
    for ax, p in zip(axes.flat, pictures):
        for label, look, x, y, half in p.lines:
            ax.plot(x, y, label=label, **{"linewidth": 1.6} | look)
            wide = 0 if len(x) > 1 else 8  # of one point the band is a bar
            ax.fill_between(x, y - half, y + half, color=look["color"], alpha=0.15, linewidth=wide)
        shown = [y for q in ([p] if apart else pictures) for _, _, _, y, _ in q.lines]
        low, high = np.nanmin(np.concatenate(shown)), np.nanmax(np.concatenate(shown))
        room = 0.05 * (high - low) or 1  # the range is that of the lines: a wide band is cut
        ax.set(xlabel=p.xlabel, ylabel=p.ylabel, ylim=(low - room, high + room))
        ax.set_title(p.title, fontsize=10)
        if p.ticks:
            ax.set_xscale("log")
            ax.set_xticks([*p.ticks], p.ticks.values(), fontsize=8)
            ax.minorticks_off()
            if [*p.ticks] != sorted(p.ticks):  # from dense to sparse
                ax.invert_xaxis()
        ax.grid(alpha=0.25, linewidth=0.5)
        ax.legend(
            fontsize=8,
            loc="upper center",
            bbox_to_anchor=(0.5, 0),
            borderaxespad=4.5,
            frameon=False,
            handlelength=3.2,
        )
    page.suptitle(f"{path.name}\n{note}", fontsize=11)
    paths = [path.with_name(f"{path.name}.{kind}") for kind in ("png", "pdf")]
    for target in paths:
        content = io.BytesIO()
        page.savefig(content, format=target.suffix[1:], dpi=150, bbox_inches="tight")
        common.atomic_write(target, content.getvalue())
    return paths


def draw_figure(figure: str | None, panels: list[Panel], margin: float, path: Path) -> list[Path]:
    """One figure of panels, None: every panel there is; returns the paths."""
    thin = "; thin: published" if any(c.twin for p in panels for c in p.curves) else ""
    note = f"band: one sample std. deviation{thin}"
    if figure == "4":
        pictures = [
            by_size(p, level)
            for p in panels
            for level in [n for n in LEVELS_OF_FIGURE_4 if n < len(p.remaining)]
            or [len(p.remaining) - 1]
        ]
        return draw_page(path, pictures, note, columns=3, apart=True)
    if figure == "controls":
        return draw_page(path, [by_level(p, p.title) for p in panels], note)
    cells = [
        (p.only(size), f"{size} examples, {p.title}" if size else f"all data, {p.title}")
        for p in panels
        for size in p.sizes or [None]
    ]
    if figure == "difference":
        pictures = [differences(p, title, margin) for p, title in cells]
        return draw_page(path, pictures, "bands: 95% intervals; grey: the margin")
    return draw_page(path, [by_level(p, title) for p, title in cells], note)


def style(c: Curve, panel: Panel) -> dict:
    """The look of a role, with another line for further curves of it."""
    role = panel.role(c)
    new = [o.key for o in panel.curves if panel.role(o) not in STYLES]
    look = STYLES.get(role) or OTHER_STYLE | {"color": OTHER_COLORS[new.index(c.key) % 4]}
    same = [o for o in panel.curves if (panel.role(o), o.size, o.step) == (role, c.size, c.step)]
    return look if c is same[0] else look | {"linestyle": OTHER_LINES[(same.index(c) - 1) % 4]}


def by_level(panel: Panel, title: str, ylabel: str = ACCURACY) -> Picture:
    """Accuracy, or what else curves are of, by weights remaining: mean and standard deviation."""
    lines = []
    for top in panel.whole[:1] if ylabel == ACCURACY else []:
        lines.append(("dense", GREY, 100 * top.remaining, top.mean[:1].repeat(len(top.mean)), 0))
    for c in panel.curves:
        # n=2/3: not all have reached every level
        label = f"{c.name} (n={'/'.join(map(str, np.unique(c.n)))})"
        lines.append((label, style(c, panel), 100 * c.remaining, c.mean, c.std))
        if c.twin:
            lines.append(
                (f"_{label}", style(c, panel) | THIN, 100 * c.twin.remaining, c.twin.mean, 0)
            )
    return Picture(lines, title, WEIGHTS, ylabel, panel.ticks)


def differences(panel: Panel, title: str, margin: float) -> Picture:
    """Accuracy minus that of all data for t* steps by level, with 95% intervals."""
    x = 100 * panel.remaining
    lines = [(f"margin {margin:g}", GREY, x, 0 * x, margin)]
    for c in panel.curves:
        top = panel.reference(c)
        levels = range(1, min(len(c.remaining), len(top.remaining))) if top else ()
        each = [compare(c, top, n, n) for n in levels]
        if each:
            mean, high = np.array([(d.difference, d.high) for d in each]).T
            label = f"{c.name} (n={each[0].replicates})"
            lines.append((label, style(c, panel), 100 * c.remaining[levels], mean, high - mean))
    return Picture(
        lines, title, WEIGHTS, "accuracy minus that of all data for t* steps", panel.ticks
    )


def by_size(panel: Panel, level: int) -> Picture:
    """Accuracy against subset size at one level; all data as horizontal lines (figure 4)."""
    found, lines, ends = {}, [], (panel.sizes[0] / 1.1, panel.sizes[-1] * 1.1)
    for c in panel.curves:
        name = f"{c.scheme}, {c.step} steps{c.variant}" if c.size else c.name
        for shown, behind, look in ((c, "", {}), (c.twin, "_", THIN)):
            if shown and level < len(shown.mean):
                at = shown.mean[level], 0 if behind else shown.std[level], shown.n[level]
                _, points = found.setdefault(behind + name, (style(c, panel) | look, []))
                points += [(x, *at) for x in ([c.size] if c.size else ends)]
    for name, (look, points) in found.items():
        x, mean, half, n = np.array(points).T
        lines.append((f"{name} (n={n.max():.0f})", look, x, mean, half))
    title = f"level {level}, {panel.remaining[level]:.1%} of weights, {panel.title}"
    return Picture(
        lines, title, "examples in the subset", ticks={size: size for size in panel.sizes}
    )


# ------------------------------------------------------------ tables

SUMMARY = (
    "experiment",
    "source",
    "curve",
    *KEY,
    "level",
    "weights_remaining",
    "replicates",
    "mean",
    "std",
)
VERDICTS = (
    "experiment",
    "label_noise",
    "pretrain_lr",
    "a",
    "b",
    "first_level",
    "last_level",
    "replicates",
    "without",
    "difference",
    "low",
    "high",
    "margin_needed",
    "verdict",
    "dominates",
)


def table(title: str, rows: list[list]) -> str:
    """A Markdown table, aligned so that a terminal shows it well; the first row is the head."""
    rows = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [
        " | ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]
    rule = "|".join(["-" * (widths[0] + 2), *("-" * (w + 1) + ":" for w in widths[1:])])
    return "\n".join(
        [f"\n{title}\n", f"| {lines[0]} |", f"|{rule}|", *(f"| {line} |" for line in lines[1:])]
    )


def spread(values: np.ndarray) -> str:
    return (f"{values.mean():.2f} ± {deviation(values):.2f}" if len(values) else "").replace(
        " ± nan", ""
    )


def accuracy_table(head: str, panel: Panel) -> str:
    """Mean and deviation at every third level and the deepest, and of the mean over levels.

    Of few levels, at each.
    """
    deepest = len(panel.remaining) - 1
    levels = [*range(0, deepest, 3 if deepest > 5 else 1), deepest]
    rows = [["", *(f"{panel.remaining[n]:.1%}" for n in levels), "mean from level 1"]]
    for c in panel.curves:
        means = np.array([*c.over(1, deepest).values()])
        reached = [spread(c.levels[n]) if n < len(c.levels) else "" for n in levels]
        rows.append([c.name, *reached, spread(means)])
    return table(f"{head}: test accuracy in %, mean ± standard deviation, by weights left", rows)


def verdict_table(head: str, panel: Panel, compared: list[Comparison], margin: float) -> str:
    """What is matching, the effect of one setting, and what the paper or its runs say.

    It is "" if there is nothing of these.
    """
    rows = [
        [
            "A",
            "B",
            "A - B",
            "95% interval",
            "n",
            "levels",
            "A is",
            "margin needed",
            "worst level",
            "the paper says",
            "without",
        ]
    ]
    for d in compared:
        who, said, matching = (
            d.a.name,
            the_paper_says(panel, d, margin),
            d.b is panel.reference(d.a),
        )
        if not (matching or said or d.b is d.a.twin or d.a.key == d.b.key or d.a.masks):
            continue
        found, dominates = full_verdict(d, margin)
        if matching:
            same = [o for o in compared if o.b is d.b and panel.role(o.a) == panel.role(d.a)]
            if len({o.a.size for o in same}) > 1 and d.difference == max(
                o.difference for o in same
            ):
                who += f" (best of {len(same)} sizes on these results)"
            found += {True: ": matching", False: ": not matching", None: ""}[dominates]
        worst = min(d.each, key=lambda e: e.difference)
        interval = "none" if np.isnan(d.low) else f"{d.low:+.2f} to {d.high:+.2f}"
        rows.append(
            [
                who,
                d.b.name,
                f"{d.difference:+.2f}",
                interval,
                d.replicates,
                span(d),
                found,
                f"{margin_needed(d):.2f}".replace("nan", ""),
                f"{worst.first}: {worst.difference:+.2f}",
                said,
                d.without,
            ]
        )
    if not any(row[-1] for row in rows[1:]):
        rows = [row[:-1] for row in rows]
    head += f": accuracy of A minus B in points, mean over levels; margin {margin:g}"
    if panel.step and not panel.whole:
        head += f". No run on all data for {panel.t_star} steps, so none can be called matching"
    return table(head, rows) if rows[1:] else ""


def span(d: Comparison) -> str:
    return f"{d.first}-{d.last}" if d.last > d.first else f"{d.last}"


def margin_needed(d: Comparison) -> float:
    """The margin from which A is no worse, also over the sparsest third; NaN of one replicate."""
    return float(np.maximum(0, -min(d.low, (d.sparse or d).low)))


def draw_experiments(args: argparse.Namespace) -> list[Path]:
    """The paper's figures, the tables and the verdicts of every experiment; returns the paths."""
    first, last = args.levels or (1, None)
    paths, numbers, verdicts, tables = [], [SUMMARY], [VERDICTS], []
    published = read_published(args.paper, last or 0) if args.paper else {}
    alone = {f"{preset}-published": curves for preset, curves in published.items()}
    experiments = read_runs(args.runs) if args.runs else alone
    for name, curves in experiments.items():
        preset = curves[0].settings["preset"]
        if args.preset not in (None, preset):
            continue
        if args.levels and first >= max(len(c.remaining) for c in curves):
            raise InputError(f"--levels: {name} has no level {first}")
        theirs = {
            c.key: replace(c, variant=" (published)")
            for c in published.get(preset, [])
            if args.runs
        }
        for c in curves:
            c.twin = None if c.departs else theirs.get(c.key)
        panels, shown = make_panels(curves, preset), []
        for figure in args.figure:
            if figure in ("masks", "barrier"):
                draw = draw_masks if figure == "masks" else draw_barrier
                paths += draw(name, as_one(panels), args)
                continue
            chosen = (
                make_controls(curves) if figure == "controls" else choose(figure, panels, preset)
            )
            if chosen:
                ending = (
                    f"-figure{figure}" if figure in [*"234567"] else f"-{figure}" if figure else ""
                )
                paths += draw_figure(figure, chosen, args.margin, args.out / (name + ending))
            else:
                print(f"note: {name} has nothing for figure {figure}")
            shown += chosen
        # of one panel in several figures, the tables take the one with most sizes
        shown = {
            (p.noise, p.rate, p.title): p for p in sorted(shown, key=lambda p: len(p.sizes))
        }.values()
        drawn = list(dict.fromkeys(c for p in shown for c in p.curves))
        for c in [*drawn, *(c.twin for c in drawn if c.twin)]:
            of = [name, "paper" if c.published else "runs", c.name, *c.key]
            values = zip(c.remaining, c.n, c.mean / 100, c.std / 100)
            numbers += [[*of, level, *row] for level, row in enumerate(values)]
        for p in shown:
            head, compared = f"{name}, {p.title}", compare_pairs(p, first, last)
            for d in (d for whole in compared for d in (whole, whole.sparse, *whole.each)):
                pair = [
                    name,
                    p.noise,
                    p.rate,
                    d.a.name,
                    d.b.name,
                    d.first,
                    d.last,
                    d.replicates,
                    d.without,
                ]
                found = full_verdict(d, args.margin) if d.sparse else (verdict(d, args.margin), "")
                verdicts.append([*pair, d.difference, d.low, d.high, margin_needed(d), *found])
            tables += [accuracy_table(head, p), verdict_table(head, p, compared, args.margin)]
    if tables:
        text = "\n".join(filter(None, tables))
        print(text)
        common.atomic_write(args.out / "summary.md", (text.lstrip() + "\n").encode())
        paths += [common.write_csv(args.out / "summary.csv", numbers)]
        paths += [common.write_csv(args.out / "verdicts.csv", verdicts), args.out / "summary.md"]
    elif not paths:
        known = ", ".join(sorted({curves[0].settings["preset"] for curves in experiments.values()}))
        raise InputError(
            f"nothing of this preset and figure in {args.runs or args.paper}; it has {known}"
        )
    return paths


# ------------------------------------------------------------ masks on trial

Weights = dict[str, Tensor]  # or masks, by name
OF_A_START = {
    "loss_barrier": "loss barrier at level 0, mean (nats)",
    "at_most_0": "share of examples at most 0",
    "at_most_0.01": "share of examples at most 0.01 nats",
    "accuracy": "test accuracy (%), mean from level 1",
}


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
    folders: list[Path], settings: dict, data: training.Data
) -> tuple[np.ndarray, np.ndarray]:
    """The error barriers between two runs, level by level as long as their masks are equal.

    The second result is their loss barriers [N] at level 0.
    """
    errors, device = [], data.labels.device
    net = training.ResNet(
        settings["depth"], settings["width"], data.test.shape[3], settings["classes"]
    )
    net.to(device, memory_format=torch.channels_last)
    for files in zip(*(sorted(folder.glob("level*.safetensors")) for folder in folders)):
        tensors = [training.load_tensors(file)[0] for file in files]
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


def curve_of(c: Curve, values: dict, thin: dict | None = None) -> Curve:
    """A curve like c of something else than accuracy, {replicate: [levels]}.

    thin  those of one to draw behind it
    """
    c = replace(c, accuracy=values, remaining=c.remaining[: max(map(len, values.values()))])
    return replace(c, twin=thin and replace(c, accuracy=thin))


def draw_masks(name: str, panel: Panel, args: argparse.Namespace) -> list[Path]:
    """How alike the masks are that runs found for themselves.

    Two settings of one seed are compared, and two seeds of one setting.
    """
    found, shown, rows = {}, {}, [["a", "b", "seed_a", "seed_b", "level", "overlap", "chance"]]
    for c in panel.curves:
        for seed, folder in c.folders.items():
            files = [folder / f"level{n:02d}.safetensors" for n in range(len(c.accuracy[seed]))]
            found[c, seed] = [common.part(training.load_tensors(file)[0], "mask") for file in files]
    shapes = {
        run: {name: mask.shape for name, mask in masks[0].items()} for run, masks in found.items()
    }
    for (a, s), (b, t) in itertools.combinations(found, 2):
        if (a is b) == (s == t) or shapes[a, s] != shapes[b, t]:  # of other networks
            continue
        each = [overlap(*masks) for masks in zip(found[a, s], found[b, t])]
        rows += [[a.name, b.name, s, t, level, *both] for level, both in enumerate(each)]
        if a in (b, panel.curves[0]):
            title = "two seeds of one setting" if a is b else f"one seed, with {a.name}"
            mine, chance = shown.setdefault(title, {}).setdefault(b, ({}, {}))
            mine[s, t], chance[s, t] = 100 * np.array(each).T
    what = "overlap |A and B| / |A or B| of the masks (%)"
    pictures = [
        by_level(replace(panel, curves=[curve_of(c, *both) for c, both in of.items()]), title, what)
        for title, of in shown.items()
    ]
    note = "band: one sample std. deviation; thin: chance"
    paths = draw_page(args.out / f"{name}-masks", pictures, note) if pictures else []
    return [*paths, common.write_csv(args.out / f"{name}-masks.csv", rows)]


def draw_barrier(name: str, panel: Panel, args: argparse.Namespace) -> list[Path]:
    """How stable training from a start is: barriers between its networks of two batch orders."""
    device, settings, again, found = (
        training.resolve_device(args.device),
        panel.curves[0].settings,
        {},
        {},
    )
    preset = common.PRESETS[settings["preset"]]
    data = training.load_data(
        settings["dataset"], args.data_dir, device, pad=preset["pad"], flip=preset["flip"]
    )
    if data.fingerprint != settings["fingerprint"]:
        raise InputError(f"{args.data_dir}: not the images that {name} was trained on")
    # again: by starting point, its run of another order
    for path in sorted(args.runs.rglob("level00.safetensors")):
        info = common.load_info(path)
        if info.get("order_seed") is not None:
            again[info["rewind_sha256"]] = path.parent
    for c in panel.curves:
        for seed, folder in tqdm(c.folders.items(), c.name, disable=None, leave=False):
            start = common.load_info(folder / "level00.safetensors").get("rewind_sha256")
            if start in again:
                found.setdefault(c, {})[seed] = barriers([folder, again[start]], c.settings, data)
    if not found:
        print(f"note: {name} has no two runs of one starting point under different batch orders")
        return []
    paths, lines, starts, said = [], [], [], [["", "starts", *OF_A_START]]
    rows = [["curve", "seed", "level", "weights_remaining", "error_barrier", *OF_A_START]]
    for c, each in found.items():
        accuracy = c.over(1, len(panel.remaining) - 1)
        of = {
            seed: (b.mean(), (b <= 0).mean(), (b <= 0.01).mean(), accuracy.get(seed, np.nan))
            for seed, (_, b) in each.items()
        }
        rows += [
            [c.name, seed, n, c.remaining[n], error, *(of[seed] if n == 0 else [""] * 4)]
            for seed, (errors, _) in each.items()
            for n, error in enumerate(errors)
        ]
        lines.append(curve_of(c, {seed: errors for seed, (errors, _) in each.items()}))
        starts.append(np.array([*of.values()]))
        said.append([c.name, len(each), *map(spread, starts[-1].T)])
        paths.append(args.out / f"barrier-{name}-{re.sub('[^A-Za-z0-9_.=-]+', '-', c.name)}.npy")
        about = {
            "version": common.VERSION,
            "select": "barrier",
            "curve": c.name,
            "starts": len(each),
            "label_noise": 0.0,
            "made_by": training.made_by(device),
        }
        about |= {key: settings[key] for key in ("preset", "dataset", "fingerprint")}
        score = np.mean([examples for _, examples in each.values()], axis=0)
        common.save_array(paths[-1], score.astype(np.float32), about)
    print(table(f"{name}: one start, two batch orders, level 0", said))
    title = "between networks of two batch orders"
    pictures = [by_level(replace(panel, curves=lines), title, "error barrier (points)")]
    # else nothing but the dense networks was trained
    known = not np.isnan(np.concatenate(starts)[:, 3]).all()
    drawn = [(0, 2), (0, 3), (2, 3)] if known else [(0, 2)]
    pictures += [of_starts(panel, found, starts, x, y) for x, y in drawn]
    paths += draw_page(
        args.out / f"{name}-barrier", pictures, "band: one sample std. deviation", apart=True
    )
    return [*paths, common.write_csv(args.out / f"{name}-barrier.csv", rows)]


def of_starts(
    panel: Panel, curves: list[Curve], starts: list[np.ndarray], x: int, y: int
) -> Picture:
    """Two columns of OF_A_START against each other, a point for each start.

    starts  [starts, 4] of every curve
    """
    from scipy.stats import spearmanr  # takes half a second

    every, what = np.concatenate(starts), [*OF_A_START.values()]
    known = every[~np.isnan(every[:, y])]
    rho = spearmanr(known[:, x], known[:, y]).statistic if len(known) > 1 else np.nan
    lines = [
        (c.name, style(c, panel) | {"linestyle": ""}, of[:, x], of[:, y], 0)
        for c, of in zip(curves, starts)
    ]
    return Picture(lines, f"{len(known)} starts, rank correlation {rho:+.2f}", what[x], what[y])


# ------------------------------------------------------------ command line


def main(argv: list[str] | None = None) -> None:
    parser = common.Parser(__doc__)
    add = parser.add_argument
    add("runs", type=Path, nargs="?", metavar="RUNS_ROOT", help="folder with runs at any depth")
    add(
        "--figure",
        nargs="+",
        choices=[*"234567", "difference", "controls", "masks", "barrier"],
        metavar="F",
        help="2 to 7 of the paper; difference, controls, masks, barrier "
        "(default: every panel there is)",
    )
    add(
        "--paper",
        type=Path,
        metavar="JSON",
        help="paper_curves.json: its curves behind yours, or alone",
    )
    add("--preset", choices=common.PRESETS, help="only the experiments of this one")
    add(
        "--margin",
        type=common.within("[0, 100]"),
        default=0.5,
        help="'no worse' may lose, points (0.5)",
    )
    add(
        "--levels",
        type=int,
        nargs=2,
        metavar=("FIRST", "LAST"),
        help="of the verdicts (1 to the deepest)",
    )
    add(
        "--data-dir",
        type=Path,
        default=Path("data"),
        help="for barrier: folder of the images (data)",
    )
    add(
        "--device",
        default="auto",
        help="for barrier: auto, cpu, cuda or cuda:i (default: a GPU if any)",
    )
    add("--out", type=Path, default=Path("figures"), help="folder for the figures (figures)")
    args = parser.parse_args(argv)
    args.figure = list(dict.fromkeys(args.figure or [None]))
    if args.levels and not 0 <= args.levels[0] <= args.levels[1]:
        raise InputError("--levels must be FIRST <= LAST, from 0")
    if not args.runs and (not args.paper or {*args.figure} & {"controls", "masks", "barrier"}):
        raise InputError(
            "a folder with runs is needed, or --paper to draw the published curves alone"
        )
    with common.reading(args.out):
        args.out.mkdir(parents=True, exist_ok=True)
    if not os.access(args.out, os.W_OK):
        raise InputError(f"cannot write to {args.out}")
    print("", *draw_experiments(args), sep="\n")


if __name__ == "__main__":
    sys.exit(common.cli(main))
