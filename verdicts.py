"""Say what pruned runs support: accuracy of A minus B, its interval, and a verdict.

reads   RUNS_ROOT/**/results.csv, and a level file beside each; paper_curves.json
writes  OUT/summary.csv (every number that plot.py draws), OUT/verdicts.csv (every comparison, also
        level by level), OUT/summary.md (the tables that are printed)

python verdicts.py runs/cifar10 --figure 2 --paper paper_curves.json --out figures/cifar10
python verdicts.py --paper paper_curves.json --figure 2 --preset cifar10 --out figures/paper
python verdicts.py runs/cifar10 --figure difference controls masks barrier --out figures/masks

Two starting points A and B are compared by accuracy(A) - accuracy(B) in points, averaged over
levels 1 to the last, with its 95% Student interval over replicates: paired by seed if three or
more seeds are common, or all of the smaller arm's; else Welch's over all of them. A is

better      if the interval lies above 0
worse       if it lies below 0 (worse within margin: and above minus the margin)
no worse    if it lies above minus the margin
undecided   otherwise, and always with one replicate

A weakly dominates B (Definition 3.1 of the paper) if it is better or no worse over these levels and
also over the sparsest third of them, since a mean can hide a collapse there. It is matching (3.2)
if B is all data for t* steps, trained alike. A published curve counts as replicates that have its
mean and deviation and whose levels move as one, so that its deviation over levels is never too
small.

summary.csv has a row for each picture, panel (its title), curve and level. `order` numbers the
curves of a panel; a published curve has the order of ours of the same setting. mean and std are
fractions; difference, low and high are points. For masks and barrier there is a row for each run
instead, with its folder and its mean accuracy from level 1 on.
"""

import argparse
import csv
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

import common
from common import KEY, InputError

HASHES = ("subset_sha256", "fingerprint", "test_set_sha256", "labels_sha256")
# settings that are no departure from a preset: names say them, panels part them, or no preset
# has a usual value
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
# what a curve is in its panel, in the order in which subsets are listed
ROLES = ("t*", "t*/2", "init", "random", "easy", "easy, balanced", "hard", "custom")
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
        # sha256 of labels of a user's own, which stand in place of label noise; "": none
        self.labels = self.settings.get("labels_sha256") or ""
        self.departures = departures(self.settings)
        self.imp_settings = imp_settings(self.settings)
        # the starting point whose masks it has; None: its own
        self.masks = self.settings.get("masks")

    @property
    def name(self) -> str:
        if self.scheme == "init":
            return "no pre-training" + self.variant
        examples = "all data" if self.size is None else f"{self.scheme} {self.size}"
        return f"{examples}, {self.step} steps{self.variant}"

    @cached_property
    def levels(self) -> list[np.ndarray]:
        """By level, the accuracies of the replicates that have reached it."""
        reached = self.accuracy.values()
        return [np.array([a[n] for a in reached if n < len(a)]) for n in range(len(self.remaining))]

    @cached_property
    def n(self) -> np.ndarray:
        return np.array([len(values) for values in self.levels])

    @cached_property
    def mean(self) -> np.ndarray:
        return np.array([np.mean(values) for values in self.levels])

    @cached_property
    def std(self) -> np.ndarray:
        return np.array([deviation(values) for values in self.levels])

    def over(self, first: int, last: int) -> dict:
        """{seed: mean accuracy over levels first to last} of the replicates that have them all."""
        reached = {
            seed: values for seed, values in self.accuracy.items() if first <= last < len(values)
        }
        return {seed: values[first : last + 1].mean() for seed, values in reached.items()}


def departures(settings: dict) -> dict:
    """The settings of a curve that its preset has otherwise, or that no preset has."""
    scheme = settings["scheme"]
    usual = common.PRESETS.get(settings["preset"], {}) | {
        "noise_seed": 0,
        "criterion": "magnitude",
        "class_balanced": scheme == "random",
        "score": None if scheme in ("all", "init", "random", "custom") else "el2n",
    }
    if scheme == "init":
        usual |= common.NO_PRETRAINING
    asked = {
        key: value
        for key, value in settings.items()
        if key not in NOT_IN_PRESETS and value is not None
    }
    return {key: value for key, value in asked.items() if value != usual.get(key)}


def imp_settings(settings: dict) -> dict:
    """All settings but those of pre-training: curves that share them are pruned alike."""
    return {key: value for key, value in settings.items() if key not in common.PRETRAINING}


def deviation(values: np.ndarray) -> float:
    """The sample standard deviation; NaN of fewer than two values."""
    return values.std(ddof=1) if len(values) > 1 else np.nan


# ------------------------------------------------------------ names


def name_curves(curves: list[Curve]) -> dict:
    """Name the curves of an experiment; returns the departures from their preset that no name says.

    A name has scheme, size, steps, and departures that not all share. Curves still called the same
    say in what they differ, and if in nothing but what was drawn, four digits of its hash.
    """
    differ = differing_settings(curves)
    for c in curves:
        c.variant = "".join(in_name(c, key) for key in c.departures if key in differ)
    # before any name grows: else what is alike would depend on the order of the curves
    alike = {c: [o for o in curves if (o.key, o.name) == (c.key, c.name)] for c in curves}
    for c, others in alike.items():
        c.variant += "".join(in_name(c, key) for key in telling_apart(c, others, differ))
    unsaid = {}
    for c in curves:
        for key, value in c.departures.items():
            if key in differ:  # names say it
                continue
            if all(o.settings[key] == value for o in curves if o.step):
                unsaid[key] = value
    return unsaid


def differing_settings(curves: list[Curve]) -> set[str]:
    """The settings beside KEY in which any two curves differ."""
    differ = set()
    for a, b in itertools.product(curves, curves):
        for key in a.settings.keys() - {*KEY}:
            if a.settings[key] != b.settings.get(key):
                differ.add(key)
    return differ


def telling_apart(c: Curve, others: list[Curve], differ: set[str]) -> list[str]:
    """The settings in which a curve differs from others of its name; hashes only if no other."""
    keys = []
    for key in sorted(differ):
        if any(o.settings.get(key) != c.settings.get(key) for o in others):
            keys.append(key)
    return [key for key in keys if key not in HASHES] or keys


def in_name(c: Curve, key: str) -> str:
    """A setting as a curve's name says it."""
    value = c.settings.get(key)
    if value is None:
        return ""
    if value is True:
        return f", {key.removeprefix('class_')}"
    return f", #{value[:4]}" if key in HASHES else f", {key}={value}"


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
    files = sorted(folder.glob("level*.safetensors"))
    if not files:
        raise InputError(f"{path}: no level file beside it says what was trained")
    file = files[0]  # the others need not be copied along
    info = common.load_info(file)
    with common.reading(file):
        common.check_version(file, info["recipe"])
        level = info["row"]["level"]
        if info["row"] != rows[level]:
            raise InputError(f"{path}: its level {level} is not that of {file.name}")
        seed, settings = common.replicate(info)
        return seed, settings, info["recipe"]["subset_sha256"], remaining, 100 * accuracy


def read_runs(root: Path) -> dict[str, list[Curve]]:
    """{experiment: curves} of the runs under root.

    An experiment has one preset, one training set and one test set.
    """
    curves = group_into_curves(root)
    attach_divergences(root, curves)
    experiments = by_experiment([c for c in curves if c.accuracy])
    if not experiments:
        raise InputError(f"{root}: no folder with a results.csv that has results to draw")
    for name, of_one in experiments.items():
        usual = common.PRESETS.get(of_one[0].settings["preset"], {})
        unsaid = []
        for key, value in name_curves(of_one).items():
            unsaid.append(f"{key} {value}" + (f" (preset: {usual[key]})" if key in usual else ""))
        if unsaid:
            print(f"note: {name} departs from the paper's setting: {'; '.join(unsaid)}")
    return experiments


def group_into_curves(root: Path) -> list[Curve]:
    """A curve for each setting; its replicates are the runs that have it."""
    curves, reordered = {}, 0
    for path in common.find_files(root, "results.csv"):
        seed, settings, subset, remaining, accuracy = read_run(path.parent)
        key = json.dumps(settings, sort_keys=True)
        c = curves.setdefault(key, Curve(settings, remaining))
        if settings.get("order_seed") is not None:
            reordered += 1
        elif seed in c.accuracy:
            print(f"note: {path.parent} repeats seed {seed} of its setting and is left out")
        else:
            c.remaining = max(c.remaining, remaining, key=len)
            c.accuracy[seed], c.folders[seed] = accuracy, path.parent
            c.subsets.add(subset)
    if reordered:
        print(f"note: {reordered} runs under a batch order of their own are for connectivity.py")
    return [*curves.values()]


def attach_divergences(root: Path, curves: list[Curve]) -> None:
    """Note of every replicate whose loss was not finite where that was."""
    for path in common.find_files(root, "diverged.json"):
        with common.reading(path):
            told = json.loads(path.read_text())
            common.check_version(path, told["recipe"])
            seed, shared = common.replicate(told["settings"] | {"recipe": told["recipe"]})
            where = "pre-training" if told["level"] is None else f"level {told['level']}"
            where = f"diverged in {where}, step {told['step']}"
        print(f"note: {path.parent} {where}")
        # of pre-training that diverged, the settings of imp.py are not known
        for c in curves:
            if shared.items() <= c.settings.items():
                c.diverged[seed] = where


def by_experiment(curves: list[Curve]) -> dict[str, list[Curve]]:
    """{experiment: its curves}, the name from preset, data set and, if need be, images."""
    experiments = {}
    for c in curves:
        preset, dataset = (f"{c.settings.get(key)}" for key in ("preset", "dataset"))
        usual = common.PRESETS.get(preset, {}).get("dataset")
        name = preset if dataset == usual else f"{preset}-{dataset}"
        hashes = [f"{c.settings.get(key)}" for key in ("fingerprint", "test_set_sha256")]
        images = common.sha256(*(text.encode() for text in hashes))
        experiments.setdefault((name, images), []).append(c)
        if c.size and not c.settings["subset_sha256"] and len(c.subsets) < len(c.accuracy):
            print(f"note: {c.name}: {len(c.accuracy)} seeds share {len(c.subsets)} subset(s)")
    names = [name for name, _ in experiments]
    named = {}
    for (name, images), of_one in sorted(experiments.items()):
        which = f"-{images[:4]}" if names.count(name) > 1 else ""
        named[re.sub(r"[^\w-]", "_", name + which)] = of_one
    return named


def read_published(path: Path, last: int = 0) -> dict[str, list[Curve]]:
    """The paper's curves by preset, down to the deepest level it draws, or to level `last`.

    No two curves share a replicate. 'dense' is level 0 of all data, and left out.
    """
    presets = {}
    with common.reading(path):
        for c in json.loads(path.read_text())["curves"]:
            if c["scheme"] == "dense":
                continue
            preset = common.PRESETS[c["dataset"]]
            levels = slice(1 + max(preset["levels"], last))
            remaining, mean, std = (
                np.array(c[key][levels]) for key in ("weights_remaining", "mean", "std")
            )
            settings = {"preset": c["dataset"], "pretrain_lr": preset["pretrain_lr"]}
            if c["rewind_step"]:
                settings |= {key: c[key] for key in KEY[:4]}
            else:
                settings |= common.NO_PRETRAINING
            made_up = 100 * pseudo_replicates(mean, std, c["replicates"])
            seeds = [(*map(str, settings.values()), k) for k in range(c["replicates"])]
            curve = Curve(settings, remaining, dict(zip(seeds, made_up)), published=True)
            # no pre-training is repeated at each label noise, the same runs
            presets.setdefault(c["dataset"], {})[curve.key] = curve
    return {name: [*curves.values()] for name, curves in presets.items()}


def pseudo_replicates(mean: np.ndarray, std: np.ndarray, n: int) -> np.ndarray:
    """[n, levels] of exactly these means and deviations (ddof 0): the paper prints no more.

    Their levels move as one. So their mean over levels deviates by the levels' mean deviation,
    never less than the real one.
    """
    z = np.arange(n) - (n - 1) / 2
    return mean + std * (z / z.std())[:, None]


# ------------------------------------------------------------ panels


@dataclass
class Panel:
    """Curves to compare: all data for t* and t*/2 steps, no pre-training, subsets for t*/2."""

    noise: float
    labels: str  # sha256 of a user's own, or ""
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

    def role(self, c: Curve) -> str:
        """t*, t*/2, init, other (steps on all data), or a subset's scheme, balanced if easy."""
        if c.size is None:
            return {self.t_star: "t*", self.t_star / 2: "t*/2", 0: "init"}.get(c.step, "other")
        if c.scheme == "easy" and c.settings.get("class_balanced"):
            return "easy, balanced"
        return c.scheme

    def reference(self, c: Curve) -> Curve | None:
        """All data for t* steps, else trained alike.

        A matching c weakly dominates it (paper, section 3).
        """
        alike = [o for o in self.whole if o is not c and o.imp_settings == c.imp_settings]
        return alike[0] if alike else None

    def only(self, size: int | None) -> "Panel":
        return replace(self, curves=[c for c in self.curves if c.size in (None, size)])


def make_panels(curves: list[Curve], preset: str) -> list[Panel]:
    """A panel for each label noise, labels of a user's own, rate and steps of subsets.

    And one for each label noise, labels and rate with more steps on all data.
    """
    curves = [c for c in curves if not c.masks]
    if not curves:
        raise InputError(
            "every run is under the masks of another; name a folder that has those too"
        )
    keys = panel_keys(curves)
    several_rates = len({rate for *_, rate, _ in keys}) > 1
    panels = []
    for noise, labels, rate, step in keys or [(0.0, "", 0.0, None)]:
        same = (noise, labels, rate)
        near = [c for c in curves if c.scheme == "init" or (c.noise, c.labels, c.rate) == same]
        t_star = reference_steps(near, step, preset)
        title = [f"{step} steps"] if step else []
        if several_rates or not step:
            title.append(f"pre-training rate {rate}")
        if noise:
            title.append(f"{percent(noise)} random labels")
        if labels:
            title.append(f"labels #{labels[:4]}")
        # the paper has no labels but clean and random ones
        of_paper = t_star == preset_t_star(preset) and not labels
        claimed = claimed_size(preset, noise) if of_paper else None
        shown = in_order(near, step, t_star)
        panels.append(Panel(noise, labels, rate, step, t_star, shown, ", ".join(title), claimed))
    return panels


def claimed_size(preset: str, noise: float) -> int | None:
    """The subset size of the paper's statements; those under label noise are about CIFAR-10."""
    if noise and preset in ("cifar100", "cinic10"):
        return None
    return common.PRESETS.get(preset, {}).get("noisy_subset_size" if noise else "subset_size")


def preset_t_star(preset: str) -> int | None:
    """The t* of a preset; None if there is no such preset."""
    return common.PRESETS.get(preset, {}).get("t_star")


def percent(share: float) -> str:
    """As precise as titles must be to tell panels apart."""
    return f"{100 * share:.3g}%"


def panel_keys(curves: list[Curve]) -> list[tuple]:
    """(label noise, labels, rate, steps of subsets) of every panel; steps None: all data alone."""
    keys = sorted({(c.noise, c.labels, c.rate, c.step) for c in curves if c.size is not None})
    with_subsets = set()
    for *same, step in keys:
        with_subsets |= {(*same, step), (*same, 2 * step)}
    more = {(c.noise, c.labels, c.rate, c.step) for c in curves if c.step} - with_subsets
    return keys + [(*same, None) for same in sorted({key[:3] for key in more})]


def reference_steps(curves: list[Curve], step: int | None, preset: str) -> int:
    """t* of a panel whose subsets were seen for some steps (None: it has no subsets)."""
    if step:  # subsets are seen for t*/2 steps, whatever t* a user has chosen
        return 2 * step
    t_star = common.PRESETS.get(preset, {}).get("t_star")
    steps = {c.step for c in curves}
    return t_star if t_star in steps else max(steps)


def in_order(curves: list[Curve], step: int | None, t_star: int) -> list[Curve]:
    """The curves of a panel: all data, the reference first; then subsets by size and scheme."""
    whole = [c for c in curves if c.size is None and (not step or c.step in (0, step, t_star))]
    whole.sort(key=lambda c: (c.step != t_star, -c.step, c.name))
    subsets = [c for c in curves if c.size is not None and c.step == step]
    # other schemes come last
    subsets.sort(key=lambda c: (c.size, [*ROLES, c.scheme].index(c.scheme), c.variant))
    return whole + subsets


def as_one(panels: list[Panel]) -> Panel:
    """All curves in one panel; their names say what else its title would."""
    curves = [*dict.fromkeys(c for p in panels for c in p.curves)]
    several = len({c.rate for c in curves if c.step}) > 1
    for k, c in enumerate(curves):
        noise = f", {percent(c.noise)} random labels" if c.noise else ""
        noise += f", labels #{c.labels[:4]}" if c.labels else ""
        rate = f", rate {c.rate:g}" if several and c.step else ""
        curves[k] = replace(c, variant=c.variant + noise + rate)
    return replace(panels[0], curves=curves)


def make_controls(curves: list[Curve]) -> list[Panel]:
    """For every curve under whose masks others were trained: it and those."""
    panels = []
    either = {"shuffled": None, "same_start": None}
    for own in curves:
        if own.masks:
            continue
        wanted = own.imp_settings | {"masks": common.start_name(own.settings)} | either
        controls = [c for c in curves if c.imp_settings | either == wanted]
        shown = [own, *controls]
        t_star = max(c.step if c.size is None else 2 * c.step for c in shown)
        if controls:
            title = f"masks of {own.name}"
            panels.append(Panel(own.noise, own.labels, own.rate, None, t_star, shown, title, None))
    return panels


def choose(figure: str | None, panels: list[Panel], preset: str) -> list[Panel]:
    """The panels of a figure of the paper, None: all.

    Figures 2 and 3 show its steps and size, else all.
    """
    if figure in (None, "difference"):
        return panels
    # with random labels they are figures 3 and 7; labels of a user's own are in every figure
    panels = [p for p in panels if p.sizes and (p.labels or bool(p.noise) == (figure in "37"))]
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
    if paired and len(paired) >= min(3, len(of_a), len(of_b)):
        replicates = f"{len(paired)} paired"
        found = paired_interval(paired)
    else:
        replicates = f"{len(of_a)} and {len(of_b)}"
        found = welch_interval([*of_a.values()], [*of_b.values()])
    without = lacking("A", a, of_a) + lacking("B", b, of_b)
    return Comparison(a, b, first, last, replicates, *found, "; ".join(without))


def paired_interval(differences: list[float]) -> tuple[float, float, float]:
    """(mean, low, high) of differences between replicates of one seed, at least one."""
    mean = np.mean(differences)
    half = half_width([differences])
    return mean, mean - half, mean + half


def welch_interval(a: list[float], b: list[float]) -> tuple[float, float, float]:
    """(mean of a minus that of b, low, high), not paired, of unlike variances; NaN if one is empty.

    After Welch (1947).
    """
    if not a or not b:
        return np.nan, np.nan, np.nan
    difference = np.mean(a) - np.mean(b)
    half = half_width([a, b])
    return difference, difference - half, difference + half


def half_width(samples: list[list[float]]) -> float:
    """Half of the 95% interval of a sample's mean, or of the difference of two; NaN if unknown."""
    from scipy.special import stdtrit  # quantiles of Student's t

    n = np.array([len(sample) for sample in samples])
    if n.min() < 2:
        return np.nan
    squares = np.array([np.var(sample, ddof=1) for sample in samples]) / n  # of standard errors
    parts = (squares**2 / (n - 1)).sum()
    freedom = squares.sum() ** 2 / parts if parts else np.inf  # n - 1 of one sample
    return stdtrit(freedom, 0.975) * np.sqrt(squares.sum())


def lacking(arm: str, c: Curve, compared: dict) -> list[str]:
    """The replicates of a curve that a comparison goes without, and why."""
    missing = sorted({*c.accuracy, *c.diverged} - {*compared})
    return [f"{arm}'s seed {seed}: {c.diverged.get(seed, 'unfinished')}" for seed in missing]


def compare_pairs(panel: Panel, first: int, last: int | None) -> list[Comparison]:
    """Compare any two curves of a panel, over all levels and level by level.

    Those of a curve with its reference come first. Subsets of different sizes are not compared, and
    ours only with the published curve of the same setting.
    """
    pairs = []
    for b, a in itertools.combinations(panel.curves, 2):
        of_one_size = None in (a.size, b.size) or a.size == b.size
        # the paper draws its CIFAR-10 runs on all data for 200 steps as 25600 random examples too
        same_runs = a.published and np.array_equal(a.mean, b.mean)
        if of_one_size and not same_runs:
            pairs.append((a, b))
    pairs.sort(key=lambda pair: pair[1] is not panel.reference(pair[0]))
    pairs += [(c, c.twin) for c in panel.curves if c.twin]
    compared = [compare(a, b, first, last) for a, b in pairs]
    compared = [d for d in compared if not np.isnan(d.difference)]
    for d in compared:
        d.each = [compare(d.a, d.b, n, n) for n in range(d.first, d.last + 1)]
        d.sparse = compare(d.a, d.b, d.last + 1 - math.ceil(len(d.each) / 3), d.last)
    return compared


# ------------------------------------------------------------ verdict


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
    overall, sparse = verdict(d, margin), verdict(d.sparse, margin)
    if min(d.low, d.sparse.low) > -margin:
        dominates = True
    elif "worse" in (overall, sparse):
        dominates = False
    else:
        dominates = None  # undecided
    exceptions = []
    if d.sparse.low <= -margin and sparse != overall:
        exceptions.append(f"{sparse} at levels {span(d.sparse)}")
    weights = " ".join(f"{d.a.remaining[e.first]:.1%}" for e in d.each if e.high < -margin)
    if weights:
        exceptions.append(f"worse at {weights}")
    if exceptions and overall != "worse":
        return f"{overall}, but {' and '.join(exceptions)}", dominates
    return overall, dominates


def the_paper_says(panel: Panel, d: Comparison, margin: float) -> str:
    """What the paper says of A against B, if anything, and whether the comparison supports it."""
    plain = all(not c.departures and c.size in (None, panel.claimed) for c in (d.a, d.b))
    if not panel.claimed or not plain:
        return ""
    roles = panel.role(d.a), panel.role(d.b)
    for least, most, role_a, role_b, statement in STATEMENTS:
        if least <= panel.noise <= most and roles == (role_a, role_b):
            return f"{statement}: {support(statement, d, margin)}"
    return ""


def support(statement: str, d: Comparison, margin: float) -> str:
    """Is it supported, contradicted or undecided that A is better, no worse, ... than B?"""
    _, dominates = full_verdict(d, margin)
    if statement == "better":
        supported, contradicted = dominates and d.low > 0, d.high < 0
    elif statement == "no worse":
        supported, contradicted = dominates, dominates is False
    elif statement == "worse":
        supported, contradicted = d.high < 0, d.low > 0
    else:  # no better
        supported, contradicted = d.high < margin, d.low > 0
    if supported:
        return "supported"
    return "contradicted" if contradicted else "undecided"


def margin_needed(d: Comparison) -> float:
    """The margin from which A is no worse, also over the sparsest third; NaN of one replicate."""
    return float(np.maximum(0, -min(d.low, (d.sparse or d).low)))


def span(d: Comparison) -> str:
    return f"{d.first}-{d.last}" if d.last > d.first else f"{d.last}"


# ------------------------------------------------------------ printed tables

VERDICT_HEAD = [
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
    """Mean and deviation, as far as there are values."""
    if not len(values):
        return ""
    return f"{values.mean():.2f} ± {deviation(values):.2f}".replace(" ± nan", "")


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
    rows = [VERDICT_HEAD]
    for d in compared:
        matching = d.b is panel.reference(d.a)
        one_setting = d.b is d.a.twin or d.a.key == d.b.key or d.a.masks
        if matching or one_setting or the_paper_says(panel, d, margin):
            rows.append(verdict_row(panel, d, compared, margin))
    if not any(row[-1] for row in rows[1:]):
        rows = [row[:-1] for row in rows]
    head += f": accuracy of A minus B in points, mean over levels; margin {margin:g}"
    if panel.step and not panel.whole:
        head += f". No run on all data for {panel.t_star} steps, so none can be called matching"
    return table(head, rows) if rows[1:] else ""


def verdict_row(panel: Panel, d: Comparison, compared: list[Comparison], margin: float) -> list:
    """The cells of VERDICT_HEAD for one comparison of a panel."""
    name = d.a.name
    words, dominates = full_verdict(d, margin)
    if d.b is panel.reference(d.a):
        name += best_of_sizes(panel, d, compared)
        words += {True: ": matching", False: ": not matching", None: ""}[dominates]
    worst = min(d.each, key=lambda e: e.difference)
    return [
        name,
        d.b.name,
        f"{d.difference:+.2f}",
        "none" if np.isnan(d.low) else f"{d.low:+.2f} to {d.high:+.2f}",
        d.replicates,
        span(d),
        words,
        f"{margin_needed(d):.2f}".replace("nan", ""),
        f"{worst.first}: {worst.difference:+.2f}",
        the_paper_says(panel, d, margin),
        d.without,
    ]


def best_of_sizes(panel: Panel, d: Comparison, compared: list[Comparison]) -> str:
    """A warning where A is the best of several sizes of its scheme: chosen on these results."""
    role = panel.role(d.a)
    same = [o for o in compared if o.b is d.b and panel.role(o.a) == role]
    several = len({o.a.size for o in same}) > 1
    if several and d.difference == max(o.difference for o in same):
        return f" (best of {len(same)} sizes on these results)"
    return ""


# ------------------------------------------------------------ files

SUMMARY = (
    "experiment",
    "picture",
    "panel",
    "role",
    "order",
    "source",
    "curve",
    *KEY,
    "level",
    "weights_remaining",
    "replicates",
    "mean",
    "std",
    "difference",
    "low",
    "high",
    "pairs",
    "margin",
    "seed",
    "folder",
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


def cells(figure: str | None, panels: list[Panel]) -> list[Panel]:
    """The panels that are drawn: one for each subset size, but in figure 4 and of controls."""
    if figure in ("4", "controls"):
        return panels
    drawn = []
    for p in panels:
        for size in p.sizes or [None]:
            what = f"{size} examples" if size else "all data"
            drawn.append(replace(p.only(size), title=f"{what}, {p.title}"))
    return drawn


def curve_rows(panel: Panel) -> list[dict]:
    """The rows of summary.csv for a panel: of every curve, and of the published one behind it."""
    rows = []
    for order, c in enumerate(panel.curves):
        for shown in (c, c.twin):
            if shown:
                about = head_of_row(panel, order, c)
                about |= {"curve": shown.name, "source": source(shown)}
                rows += [about | numbers for numbers in numbers_by_level(shown)]
    return rows


def numbers_by_level(c: Curve) -> list[dict]:
    numbers = []
    for level, weights in enumerate(c.remaining):
        numbers.append(
            {
                "level": level,
                "weights_remaining": weights,
                "replicates": c.n[level],
                "mean": c.mean[level] / 100,
                "std": c.std[level] / 100,
            }
        )
    return numbers


def head_of_row(panel: Panel, order: int, c: Curve) -> dict:
    """What a row of summary.csv says about a curve of ours, or about a published one alone."""
    about = {"panel": panel.title, "role": panel.role(c), "order": order, "curve": c.name}
    return about | dict(zip(KEY, c.key))


def add_differences(panel: Panel, rows: list[dict], margin: float) -> None:
    """Fill in accuracy minus that of all data for t* steps, with 95% intervals, level by level."""
    for row in rows:
        row["margin"] = margin
        c = panel.curves[row["order"]]
        top = panel.reference(c)
        level = row["level"]
        if not top or row["source"] != source(c) or not 1 <= level < len(top.remaining):
            continue
        d = compare(c, top, level, level)
        row |= {"difference": d.difference, "low": d.low, "high": d.high, "pairs": d.replicates}


def source(c: Curve) -> str:
    return "paper" if c.published else "runs"


def replicate_rows(panel: Panel, out: Path) -> list[dict]:
    """The rows of summary.csv for pictures of connectivity.csv: what its run folders are called."""
    rows = []
    for order, c in enumerate(panel.curves):
        accuracy = c.over(1, len(panel.remaining) - 1)
        for seed, folder in c.folders.items():
            row = head_of_row(panel, order, c) | {"panel": "", "source": "runs", "seed": seed}
            row["folder"] = os.path.relpath(folder.resolve(), out.resolve())
            if seed in accuracy:
                row["mean"] = accuracy[seed] / 100
            rows.append(row)
    return rows


def comparison_rows(panel: Panel, compared: list[Comparison], margin: float) -> list[list]:
    """The rows of verdicts.csv: every comparison, over its sparsest third, and level by level."""
    rows = []
    for whole in compared:
        for d in (whole, whole.sparse, *whole.each):
            pair = [panel.noise, panel.rate, d.a.name, d.b.name]
            levels = [d.first, d.last, d.replicates, d.without]
            found = full_verdict(d, margin) if d.sparse else (verdict(d, margin), "")
            rows.append([*pair, *levels, d.difference, d.low, d.high, margin_needed(d), *found])
    return rows


def widest(panels: list[Panel]) -> list[Panel]:
    """Of one panel in several figures, the one with most sizes."""
    chosen = {}
    for panel in sorted(panels, key=lambda panel: len(panel.sizes)):
        chosen[panel.noise, panel.rate, panel.title] = panel  # it has at least as many sizes
    return [*chosen.values()]


# ------------------------------------------------------------ command line


def read_experiments(args: argparse.Namespace) -> dict[str, list[Curve]]:
    """{experiment: curves}, those of the runs with their published twins, or the published ones."""
    last = args.levels[1] if args.levels else 0
    published = read_published(args.paper, last) if args.paper else {}
    if not args.runs:
        return {f"{preset}-published": curves for preset, curves in published.items()}
    experiments = read_runs(args.runs)
    for curves in experiments.values():
        theirs = published.get(curves[0].settings["preset"], [])
        twins = {c.key: replace(c, variant=" (published)") for c in theirs}
        for c in curves:
            c.twin = None if c.departures else twins.get(c.key)
    return experiments


def summarise(
    name: str, curves: list[Curve], panels: list[Panel], args: argparse.Namespace
) -> tuple[list[dict], list[Panel]]:
    """The rows of summary.csv for an experiment, and the panels that its tables are about."""
    rows, shown = [], []
    for figure in args.figure:
        about = {"experiment": name, "picture": figure or "all"}
        if figure in ("masks", "barrier"):
            rows += [about | row for row in replicate_rows(as_one(panels), args.out)]
            continue
        if figure == "controls":
            chosen = make_controls(curves)
        else:
            chosen = choose(figure, panels, curves[0].settings["preset"])
        if not chosen:
            print(f"note: {name} has nothing for figure {figure}")
        for panel in cells(figure, chosen):
            of_panel = curve_rows(panel)
            if figure == "difference":
                add_differences(panel, of_panel, args.margin)
            rows += [about | row for row in of_panel]
        shown += chosen
    return rows, widest(shown)


def report(args: argparse.Namespace) -> list[Path]:
    """Print the tables and write the files of all experiments; returns the paths."""
    experiments = read_experiments(args)
    numbers, comparisons, tables = [], [], []
    for name, curves in experiments.items():
        preset = curves[0].settings["preset"]
        if args.preset not in (None, preset):
            continue
        if args.levels and args.levels[0] >= max(len(c.remaining) for c in curves):
            raise InputError(f"--levels: {name} has no level {args.levels[0]}")
        rows, panels = summarise(name, curves, make_panels(curves, preset), args)
        numbers += [[row.get(key, "") for key in SUMMARY] for row in rows]
        for panel in panels:
            rows, texts = judge(name, panel, args)
            comparisons += rows
            tables += texts
    if not numbers:
        known = ", ".join(sorted({curves[0].settings["preset"] for curves in experiments.values()}))
        raise InputError(
            f"nothing of this preset and figure in {args.runs or args.paper}; it has {known}"
        )
    text = "\n".join(filter(None, tables))
    print(text)
    paths = [args.out / name for name in ("summary.csv", "verdicts.csv", "summary.md")]
    common.write_csv(paths[0], [SUMMARY, *numbers])
    common.write_csv(paths[1], [VERDICTS, *comparisons])
    common.atomic_write(paths[2], (text.lstrip() + "\n").encode())
    return paths


def judge(name: str, panel: Panel, args: argparse.Namespace) -> tuple[list[list], list[str]]:
    """A panel's rows of verdicts.csv, and its two tables."""
    first, last = args.levels or (1, None)
    compared = compare_pairs(panel, first, last)
    rows = [[name, *row] for row in comparison_rows(panel, compared, args.margin)]
    head = f"{name}, {panel.title}"
    tables = [accuracy_table(head, panel), verdict_table(head, panel, compared, args.margin)]
    return rows, tables


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
    add("--out", type=Path, default=Path("figures"), help="folder for the tables (figures)")
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
    print("", *report(args), sep="\n")


if __name__ == "__main__":
    sys.exit(common.cli(main))
