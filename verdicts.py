"""Compare pruned runs: accuracy of A minus accuracy of B, its 95% interval, and a verdict.

reads   RUNS_ROOT/**/results.csv and one level file beside each; paper_curves.json
writes  OUT/summary.csv (every number that plot.py draws), OUT/verdicts.csv (every comparison, also
        level by level), OUT/summary.md (the tables that are printed)

python verdicts.py runs/cifar10 --figure 2 --paper paper_curves.json --out figures/cifar10
python verdicts.py --paper paper_curves.json --figure 2 --preset cifar10 --out figures/paper
python verdicts.py runs/cifar10 --figure difference controls masks barrier --out figures/masks

A curve is the test accuracy of one setting by pruning level; the runs of this setting, one for each
seed, are its replicates. An experiment is all curves of one preset and one set of images. A panel
holds the curves of an experiment that are compared with each other: one label noise, one
pre-training rate, and one number of steps for which subsets were seen.

Two curves A and B are compared by accuracy(A) - accuracy(B) in points, averaged over levels 1 to
the last, with the 95% interval of Student's t over replicates. Replicates are paired by seed if A
and B have three or more seeds in common, or all seeds of the one with fewer; replicates without a
partner are then left out. Otherwise the interval is Welch's over all replicates. The margin is
--margin, in points. A is

better               if the interval lies above 0
worse within margin  if it lies below 0 and above minus the margin
worse                if it lies below 0, but not above minus the margin
no worse             if it contains 0 and lies above minus the margin
undecided            otherwise, and always with one replicate

A weakly dominates B (Definition 3.1 of the paper) if the interval lies above minus the margin, over
these levels and also over the sparsest third of them, since a mean can hide a collapse there. Then
A is better, no worse, or worse within margin. A is matching (Definition 3.2) if it weakly dominates
the curve on all data for t* steps that was otherwise trained alike. A published curve counts as
replicates that have its mean and deviation and whose levels move together, so that the deviation of
their mean over levels is never too small.

summary.csv has a row for each picture, panel (named by its title), curve and level. `order` numbers
the curves of a panel; a published curve has the order of our curve of the same setting. mean and
std are fractions; difference, low and high are points. For the pictures masks and barrier there is
a row for each run instead, with its folder and its mean accuracy from level 1 on.
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
from typing import NamedTuple

import numpy as np

import common
from common import KEY, InputError

HASHES = ("subset_sha256", "fingerprint", "test_set_sha256", "labels_sha256")
# These settings are never reported as departures from the preset: names or panels always show them,
# or no preset has a value for them. (pretrain_lr, the last of KEY, has one.)
NEVER_DEPARTURES = (
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
# The roles that a curve can have in its panel. Subsets are listed in this order.
ROLES = ("t*", "t*/2", "init", "random", "easy", "easy, balanced", "hard", "custom")


class Statement(NamedTuple):
    """What the paper says about role A against role B, in a range of label noise."""

    least_noise: float
    most_noise: float
    a: str
    b: str
    claim: str


# The statements are those of section 3 of the paper, about its figures 2 and 3.
STATEMENTS = (
    Statement(0, 0, "t*/2", "t*", "worse"),
    Statement(0, 0, "init", "t*/2", "worse"),
    Statement(0, 0, "random", "t*/2", "no worse"),
    Statement(0, 0, "easy", "t*", "no worse"),
    Statement(0, 0, "hard", "t*/2", "worse"),
    Statement(0, 0, "hard", "random", "worse"),
    Statement(0.01, 1, "easy", "t*", "better"),
    Statement(0.01, 1, "easy", "t*/2", "better"),
    Statement(0.01, 1, "easy", "init", "better"),
    Statement(0.01, 1, "easy", "random", "better"),
    Statement(0.5, 1, "init", "t*", "no worse"),
    Statement(0.5, 1, "init", "t*/2", "no worse"),
    Statement(0.5, 1, "random", "init", "no better"),
)


# ------------------------------------------------------------ curve


@dataclass(eq=False)
class Curve:
    """The test accuracy of one setting by pruning level, for each of its replicates.

    settings           what the replicates share: the recipe and the settings of imp.py
    weights_remaining  [levels], the fraction of weights that a level trains
    accuracy           {seed: [levels] in %}, for the levels that the replicate has finished
    diverged           {seed: a text that says where its loss was not finite}
    subsets            the sha256 of each subset that a replicate was pre-trained on
    folders            {seed: folder of the run}
    published          True for a curve of the paper
    name_suffix        the end of its name, which tells it apart from curves of the same key
    counterpart        the published curve of the same setting, or None
    """

    settings: dict
    weights_remaining: np.ndarray
    accuracy: dict = field(default_factory=dict)
    diverged: dict = field(default_factory=dict)
    subsets: set = field(default_factory=set)
    folders: dict = field(default_factory=dict)
    published: bool = False
    name_suffix: str = ""
    counterpart: "Curve | None" = None

    def __post_init__(self) -> None:
        self.key = tuple(self.settings[name] for name in KEY)
        # scheme is init, all, random, easy, hard or custom. size is a number of examples, or None
        # for all data. steps and rate are those of pre-training. noise is the share of random
        # labels.
        self.scheme, self.size, self.steps, self.noise, self.rate = self.key
        # A user's own labels stand in place of label noise; this is their sha256.
        self.labels = self.settings.get("labels_sha256") or ""
        self.departures = departures(self.settings)
        self.imp_settings = imp_settings(self.settings)
        # This names the starting point whose masks the runs were trained under; None stands for
        # their own masks.
        self.masks = self.settings.get("masks")

    @property
    def name(self) -> str:
        if self.scheme == "init":
            return "no pre-training" + self.name_suffix
        examples = "all data"
        if self.size is not None:
            examples = f"{self.scheme} {self.size}"
        return f"{examples}, {self.steps} steps{self.name_suffix}"

    @cached_property
    def accuracy_by_level(self) -> list[np.ndarray]:
        """Return for every level the accuracies in % of the replicates that have finished it."""
        by_level = []
        for level in range(len(self.weights_remaining)):
            replicates = self.accuracy.values()
            by_level.append(np.array([row[level] for row in replicates if level < len(row)]))
        return by_level

    @cached_property
    def replicate_count(self) -> np.ndarray:
        """Return [levels], how many replicates have finished each level."""
        return np.array([len(values) for values in self.accuracy_by_level])

    @cached_property
    def mean(self) -> np.ndarray:
        """Return [levels], the mean accuracy in %."""
        return np.array([np.mean(values) for values in self.accuracy_by_level])

    @cached_property
    def std(self) -> np.ndarray:
        """Return [levels], the sample standard deviation of the accuracy in %."""
        return np.array([deviation(values) for values in self.accuracy_by_level])

    def mean_over_levels(self, first: int, last: int) -> dict:
        """Return {seed: mean accuracy in % over levels first to last}.

        Replicates that lack one of these levels are left out.
        """
        means = {}
        for seed, values in self.accuracy.items():
            if first <= last < len(values):
                means[seed] = values[first : last + 1].mean()
        return means


def departures(settings: dict) -> dict:
    """Return the settings of a curve, with their values, that differ from those of its preset.

    A setting that no preset has, such as the name of a user's own network, is a departure unless
    it is None or in NEVER_DEPARTURES.
    """
    defaults = default_settings(settings["preset"], settings["scheme"])
    result = {}
    for name, value in settings.items():
        if name in NEVER_DEPARTURES or value is None:
            continue
        if value != defaults.get(name):
            result[name] = value
    return result


def default_settings(preset: str, scheme: str) -> dict:
    """Return what a preset and our scripts set for a scheme if nothing else is asked for."""
    defaults = dict(common.PRESETS.get(preset, {}))
    defaults["noise_seed"] = 0
    defaults["criterion"] = "magnitude"
    defaults["class_balanced"] = scheme == "random"
    defaults["score"] = "el2n"
    if scheme in ("all", "init", "random", "custom"):
        defaults["score"] = None
    if scheme == "init":
        defaults |= common.NO_PRETRAINING
    return defaults


def imp_settings(settings: dict) -> dict:
    """Return all settings but those of pre-training: curves that share them are pruned alike."""
    return {name: value for name, value in settings.items() if name not in common.PRETRAINING}


def deviation(values: np.ndarray) -> float:
    """Return the sample standard deviation; it is NaN for fewer than two values."""
    return values.std(ddof=1) if len(values) > 1 else np.nan


# ------------------------------------------------------------ names


def name_curves(curves: list[Curve]) -> dict:
    """Give the curves of an experiment names that differ; return the departures they all share.

    A name says scheme, size and steps. It goes on with the departures from the preset, except for
    those that all curves share. Curves that still have equal names also say in what they differ. No
    name depends on the order of the curves.
    """
    varying = varying_settings(curves)
    for curve in curves:
        for name in curve.departures:
            if name in varying:
                curve.name_suffix += name_part(curve, name)
    tell_equal_names_apart(curves, varying)
    return shared_departures(curves, varying)


def varying_settings(curves: list[Curve]) -> set[str]:
    """Return the settings, except for those of KEY, that are not the same in all curves."""
    varying = set()
    first = curves[0].settings
    for curve in curves:
        for name in first | curve.settings:
            if first.get(name) != curve.settings.get(name):
                varying.add(name)
    return varying - set(KEY)


def tell_equal_names_apart(curves: list[Curve], varying: set[str]) -> None:
    """Lengthen the names of curves that have the same name by the settings in which they differ."""
    groups = {}
    for curve in curves:
        groups.setdefault((curve.key, curve.name), []).append(curve)
    # All groups are complete before the first name grows, since a group consists of equal names.
    for group in groups.values():
        for curve in group:
            for name in distinguishing_settings(curve, group, varying):
                curve.name_suffix += name_part(curve, name)


def distinguishing_settings(curve: Curve, group: list[Curve], varying: set[str]) -> list[str]:
    """Return the settings in which a curve differs from others of a group.

    Hashes say little to a reader, so they are left out unless nothing else differs.
    """
    names = []
    for name in sorted(varying):
        value = curve.settings.get(name)
        if any(other.settings.get(name) != value for other in group):
            names.append(name)
    return [name for name in names if name not in HASHES] or names


def name_part(curve: Curve, name: str) -> str:
    """Return a setting as the name of a curve says it, or "" if the curve does not have it."""
    value = curve.settings.get(name)
    if value is None:
        return ""
    if value is True:
        return f", {name.removeprefix('class_')}"
    if name in HASHES:
        return f", #{value[:4]}"
    return f", {name}={value}"


def shared_departures(curves: list[Curve], varying: set[str]) -> dict:
    """Return the departures from the preset that all curves share, so that no name says them.

    Curves without pre-training do not count here, since settings of pre-training mean nothing to
    them.
    """
    pretrained = [curve for curve in curves if curve.steps]
    shared = {}
    for curve in curves:
        for name, value in curve.departures.items():
            if name in varying:
                continue
            if all(other.settings[name] == value for other in pretrained):
                shared[name] = value
    return shared


# ------------------------------------------------------------ reading


@dataclass
class Run:
    """What the folder of one run says.

    settings           what the run shares with the other replicates of its curve
    weights_remaining  [levels], fractions
    accuracy           [levels], test accuracy in %
    """

    seed: int
    settings: dict
    subset_sha256: str | None
    weights_remaining: np.ndarray
    accuracy: np.ndarray


def read_run(folder: Path) -> Run:
    """Read results.csv and one level file of a folder that imp.py wrote.

    One level file is enough, so that a user need not copy the other large ones along. Raises
    InputError if there is none, if another version made it, or if its row is not that of
    results.csv, which would mean that the two files are not of the same run.
    """
    path = folder / "results.csv"
    rows = read_results(path)
    level_files = sorted(folder.glob("level*.safetensors"))
    if not level_files:
        raise InputError(f"{path}: there is no level file beside it that says what was trained")
    level_file = level_files[0]
    info = common.load_info(level_file)
    with common.reading(level_file):
        common.check_version(level_file, info["recipe"])
        level = info["row"]["level"]
        if info["row"] != rows[level]:
            raise InputError(f"{path}: its level {level} is not that of {level_file.name}")
        seed, settings = common.replicate(info)
        subset = info["recipe"]["subset_sha256"]
    weights_remaining = np.array([row["weights_remaining"] for row in rows])
    accuracy = np.array([row["test_accuracy"] for row in rows])
    return Run(seed, settings, subset, weights_remaining, 100 * accuracy)


def read_results(path: Path) -> list[dict[str, float]]:
    """Read the rows of a results.csv, one for each level from 0 on.

    Raises InputError if a level is missing, if an entry is no number, or if an entry that is used
    here is not finite.
    """
    rows = []
    with common.reading(path), open(path, newline="") as file:
        for row in csv.DictReader(file):
            rows.append({name: float(text) for name, text in row.items()})
        if not rows:
            raise ValueError("it has no level")
        for level, row in enumerate(rows):
            if row["level"] != level:
                raise ValueError(f"level {level} is missing")
            if not np.isfinite([row["weights_remaining"], row["test_accuracy"]]).all():
                raise ValueError(f"a number of level {level} is not finite")
    return rows


def read_runs(root: Path) -> dict[str, list[Curve]]:
    """Read the runs in a folder and below it; return {experiment: its curves}.

    An experiment has one preset, one training set and one test set. Raises InputError if there are
    no runs.
    """
    curves = group_into_curves(root)
    attach_divergences(root, curves)
    experiments = by_experiment(curves)
    if not experiments:
        raise InputError(f"{root}: no folder in it has a results.csv of a run to compare")
    for name, members in experiments.items():
        note_departures(name, members[0].settings["preset"], name_curves(members))
    return experiments


def note_departures(experiment: str, preset: str, shared: dict) -> None:
    """Print the departures from the preset that all curves of an experiment share, if any."""
    defaults = common.PRESETS.get(preset, {})
    texts = []
    for name, value in shared.items():
        text = f"{name} {value}"
        if name in defaults:
            text += f" (preset: {defaults[name]})"
        texts.append(text)
    if texts:
        print(f"note: {experiment} departs from the paper's setting: {'; '.join(texts)}")


def group_into_curves(root: Path) -> list[Curve]:
    """Read all runs below a folder; return a curve for each setting, with its replicates."""
    curves = {}
    reordered = 0
    for path in common.find_files(root, "results.csv"):
        run = read_run(path.parent)
        if run.settings.get("order_seed") is not None:
            reordered += 1
            continue
        key = json.dumps(run.settings, sort_keys=True)
        if key not in curves:
            curves[key] = Curve(run.settings, run.weights_remaining)
        add_replicate(curves[key], run, path.parent)
    if reordered:
        print(f"note: {reordered} runs under a batch order of their own are for connectivity.py")
    return [*curves.values()]


def add_replicate(curve: Curve, run: Run, folder: Path) -> None:
    """Add a run to the curve of its setting, unless the curve has a replicate of its seed."""
    if run.seed in curve.accuracy:
        print(f"note: {folder} repeats seed {run.seed} of its setting and is left out")
        return
    curve.weights_remaining = max(curve.weights_remaining, run.weights_remaining, key=len)
    curve.accuracy[run.seed] = run.accuracy
    curve.folders[run.seed] = folder
    curve.subsets.add(run.subset_sha256)


def attach_divergences(root: Path, curves: list[Curve]) -> None:
    """Read every diverged.json below a folder and enter the replicate in the curves it belongs to.

    When pre-training diverged, the settings of imp.py are not known; the replicate then belongs to
    every curve that agrees with the settings that are known.
    """
    for path in common.find_files(root, "diverged.json"):
        with common.reading(path):
            info = json.loads(path.read_text())
            common.check_version(path, info["recipe"])
            seed, settings = common.replicate(info["settings"] | {"recipe": info["recipe"]})
            stage = "pre-training"
            if info["level"] is not None:
                stage = f"level {info['level']}"
            place = f"diverged in {stage}, step {info['step']}"
        print(f"note: {path.parent} {place}")
        for curve in curves:
            if settings.items() <= curve.settings.items():
                curve.diverged[seed] = place


def by_experiment(curves: list[Curve]) -> dict[str, list[Curve]]:
    """Sort curves into experiments; return {name of the experiment: its curves}.

    The name is made of preset and data set. If two experiments of one name have other images, four
    digits of a hash tell them apart.
    """
    groups = {}
    for curve in curves:
        groups.setdefault((experiment_name(curve), images_hash(curve)), []).append(curve)
        note_shared_subsets(curve)
    names = [name for name, _ in groups]
    experiments = {}
    for name, images in sorted(groups):
        ending = f"-{images[:4]}" if names.count(name) > 1 else ""
        # Files are named for experiments, so only characters that are safe in a name are kept.
        safe_name = re.sub(r"[^\w-]", "_", name + ending)
        experiments[safe_name] = groups[name, images]
    return experiments


def experiment_name(curve: Curve) -> str:
    """Return the preset of a curve, and its data set unless that is the preset's own."""
    preset = str(curve.settings.get("preset"))
    dataset = str(curve.settings.get("dataset"))
    if dataset == common.PRESETS.get(preset, {}).get("dataset"):
        return preset
    return f"{preset}-{dataset}"


def images_hash(curve: Curve) -> str:
    """Return a hash that is the same for curves of the same training set and test set."""
    training_set = str(curve.settings.get("fingerprint"))
    test_set = str(curve.settings.get("test_set_sha256"))
    return common.sha256(training_set.encode(), test_set.encode())


def note_shared_subsets(curve: Curve) -> None:
    """Print a note if chance chose the subsets of a curve, yet some replicates have the same."""
    chosen_by_chance = curve.size and not curve.settings["subset_sha256"]
    seeds, subsets = len(curve.accuracy), len(curve.subsets)
    if chosen_by_chance and subsets < seeds:
        print(f"note: {curve.name}: {seeds} seeds share {subsets} subset(s)")


def read_published(path: Path, last: int = 0) -> dict[str, list[Curve]]:
    """Read the curves of the paper; return {preset: its curves}.

    They reach down to the deepest level that the paper draws, or to level `last` if that is deeper.
    The curves named dense are level 0 of all data, so they are left out. Raises InputError if the
    file is not one such as paper_curves.json.
    """
    presets = {}
    with common.reading(path):
        for entry in json.loads(path.read_text())["curves"]:
            if entry["scheme"] == "dense":
                continue
            curve = published_curve(entry, last)
            # The file repeats the curve without pre-training at every label noise; these are the
            # same runs, so one of them is kept.
            presets.setdefault(entry["dataset"], {})[curve.key] = curve
    return {name: [*curves.values()] for name, curves in presets.items()}


def published_curve(entry: dict, last: int) -> Curve:
    """Return the curve of one entry of paper_curves.json, down to a level as in read_published."""
    preset = common.PRESETS[entry["dataset"]]
    levels = slice(1 + max(preset["levels"], last))
    weights_remaining = np.array(entry["weights_remaining"][levels])
    mean = np.array(entry["mean"][levels])
    std = np.array(entry["std"][levels])
    settings = {"preset": entry["dataset"], "pretrain_lr": preset["pretrain_lr"]}
    if entry["rewind_step"]:
        settings |= {name: entry[name] for name in KEY[:4]}
    else:
        settings |= common.NO_PRETRAINING
    count = entry["replicates"]
    # We do not know which replicates of two published curves are pairs. A seed that contains the
    # settings equals no seed of another curve, so compare() takes Welch's interval.
    setting = tuple(str(value) for value in settings.values())
    seeds = [(*setting, k) for k in range(count)]
    accuracy = 100 * pseudo_replicates(mean, std, count)
    return Curve(settings, weights_remaining, dict(zip(seeds, accuracy)), published=True)


def pseudo_replicates(mean: np.ndarray, std: np.ndarray, count: int) -> np.ndarray:
    """Return [count, levels] that have exactly this mean and deviation (ddof 0); count > 1.

    The paper gives only these two. The levels of a pseudo-replicate move together. The deviation
    of its mean over levels is then the mean deviation of the levels, which is never less than the
    real one.
    """
    z = np.arange(count) - (count - 1) / 2
    return mean + std * (z / z.std())[:, None]


# ------------------------------------------------------------ panels


@dataclass
class Panel:
    """Curves to compare: all data for t* and t*/2 steps, no pre-training, subsets for t*/2 steps.

    noise         share of random labels
    labels        the sha256 of a user's own labels, or ""
    rate          pre-training rate
    steps         for how many steps subsets were seen; None in a panel without subsets
    t_star        for how many steps the reference saw all data
    claimed_size  the size of the subsets about which the paper makes its statements; None if these
                  are not about this panel
    """

    noise: float
    labels: str
    rate: float
    steps: int | None
    t_star: int
    curves: list[Curve]
    title: str
    claimed_size: int | None

    def __post_init__(self) -> None:
        self.sizes = sorted({curve.size for curve in self.curves} - {None})
        # The deepest curve has the weights remaining at all levels.
        self.weights_remaining = max((curve.weights_remaining for curve in self.curves), key=len)
        # The references are the curves on all data for t* steps, pruned in one way or another.
        self.references = [curve for curve in self.curves if self.role(curve) == "t*"]

    def role(self, curve: Curve) -> str:
        """Return what a curve is in this panel: one of ROLES, or a scheme of a user's own.

        All data for another number of steps are "other".
        """
        if curve.size is not None:
            balanced = curve.scheme == "easy" and curve.settings.get("class_balanced")
            return "easy, balanced" if balanced else curve.scheme
        if curve.steps == 0:
            return "init"
        if curve.steps == self.t_star:
            return "t*"
        if curve.steps == self.t_star / 2:
            return "t*/2"
        return "other"

    def reference(self, curve: Curve) -> Curve | None:
        """Return the curve on all data for t* steps that is pruned like this one, or None.

        A curve that weakly dominates its reference is matching (section 3 of the paper).
        """
        for reference in self.references:
            if reference is not curve and reference.imp_settings == curve.imp_settings:
                return reference
        return None

    def only_size(self, size: int | None) -> "Panel":
        """Return the panel without the subsets of other sizes."""
        kept = [curve for curve in self.curves if curve.size in (None, size)]
        return replace(self, curves=kept)


class PanelKey(NamedTuple):
    """What the curves of a panel have in common, under the names of Panel."""

    noise: float
    labels: str
    rate: float
    steps: int | None


def make_panels(curves: list[Curve], preset: str) -> list[Panel]:
    """Return the panels of an experiment.

    There is a panel for every label noise, user's own labels, pre-training rate and number of steps
    for which subsets were seen. Where all data were seen for yet more numbers of steps, a panel
    without subsets follows. Raises InputError if every run is under the masks of another.
    """
    own_masks = [curve for curve in curves if not curve.masks]
    if not own_masks:
        raise InputError(
            "every run is under the masks of another; name a folder that has those too"
        )
    keys = panel_keys(own_masks)
    several_rates = len({key.rate for key in keys}) > 1
    return [make_panel(key, own_masks, preset, several_rates) for key in keys]


def panel_keys(curves: list[Curve]) -> list[PanelKey]:
    """Return the key of every panel that these curves need, those with subsets first."""
    with_subsets = set()
    covered = set()
    for curve in curves:
        if curve.size is not None:
            key = key_of_panel(curve)
            with_subsets.add(key)
            covered |= {key, key._replace(steps=2 * curve.steps)}
    whole = set()
    for curve in curves:
        key = key_of_panel(curve)
        if curve.steps and key not in covered:
            whole.add(key._replace(steps=None))
    keys = sorted(with_subsets) + sorted(whole)
    # Curves without pre-training alone have no label noise and no rate.
    return keys or [PanelKey(0.0, "", 0.0, None)]


def key_of_panel(curve: Curve) -> PanelKey:
    return PanelKey(curve.noise, curve.labels, curve.rate, curve.steps)


def make_panel(key: PanelKey, curves: list[Curve], preset: str, several_rates: bool) -> Panel:
    """Return the panel of a key, with those of the curves that belong to it."""
    related = []
    for curve in curves:
        # Without pre-training no labels are seen, so these curves are in every panel.
        if curve.scheme == "init" or key_of_panel(curve)[:3] == key[:3]:
            related.append(curve)
    t_star = reference_steps(related, key.steps, preset)
    # The paper has no labels of a user's own, and other steps are not those of its statements.
    claimed_size = None
    if t_star == preset_t_star(preset) and not key.labels:
        claimed_size = size_of_statements(preset, key.noise)
    ordered = curves_in_order(related, key.steps, t_star)
    return Panel(*key, t_star, ordered, panel_title(key, several_rates), claimed_size)


def panel_title(key: PanelKey, several_rates: bool) -> str:
    """Return what tells a panel apart from others of its experiment."""
    words = []
    if key.steps:
        words.append(f"{key.steps} steps")
    if several_rates or not key.steps:
        words.append(f"pre-training rate {key.rate}")
    if key.noise:
        words.append(f"{percent(key.noise)} random labels")
    if key.labels:
        words.append(f"labels #{key.labels[:4]}")
    return ", ".join(words)


def size_of_statements(preset: str, noise: float) -> int | None:
    """Return the size of the subsets about which the paper makes its statements, or None.

    Its statements about label noise are about CIFAR-10.
    """
    if noise and preset in ("cifar100", "cinic10"):
        return None
    name = "noisy_subset_size" if noise else "subset_size"
    return common.PRESETS.get(preset, {}).get(name)


def preset_t_star(preset: str) -> int | None:
    """Return the t* of a preset; it is None if there is no such preset."""
    return common.PRESETS.get(preset, {}).get("t_star")


def percent(share: float) -> str:
    """Return a share in %, with the three digits that titles need to tell panels apart."""
    return f"{100 * share:.3g}%"


def reference_steps(curves: list[Curve], steps: int | None, preset: str) -> int:
    """Return the t* of a panel whose subsets were seen for some steps (None: no subsets)."""
    if steps:
        # Subsets are seen for t*/2 steps, whatever t* the user has chosen.
        return 2 * steps
    available = {curve.steps for curve in curves}
    t_star = preset_t_star(preset)
    if t_star in available:
        return t_star
    return max(available)


def curves_in_order(curves: list[Curve], steps: int | None, t_star: int) -> list[Curve]:
    """Return the curves of a panel: all data first, then subsets by size and scheme.

    The references come before everything else, since `pairs_to_compare` makes the earlier curve of
    a pair B.
    """
    whole = []
    subsets = []
    for curve in curves:
        if curve.size is not None:
            if curve.steps == steps:
                subsets.append(curve)
        elif not steps or curve.steps in (0, steps, t_star):
            whole.append(curve)
    whole.sort(key=lambda curve: (curve.steps != t_star, -curve.steps, curve.name))
    subsets.sort(key=lambda curve: (curve.size, scheme_order(curve.scheme), curve.name_suffix))
    return whole + subsets


def scheme_order(scheme: str) -> int:
    """Return the place of a scheme among subsets; schemes of a user's own come last."""
    return ROLES.index(scheme) if scheme in ROLES else len(ROLES)


def merge_panels(panels: list[Panel]) -> Panel:
    """Return one panel with all curves, whose names now say what the titles said.

    Everything else, t* included, is that of the first panel; roles are those in that panel.
    """
    curves = []
    for panel in panels:
        curves += panel.curves
    # A curve without pre-training is in several panels.
    curves = list(dict.fromkeys(curves))
    rates = {curve.rate for curve in curves if curve.steps}
    renamed = []
    for curve in curves:
        suffix = curve.name_suffix
        if curve.noise:
            suffix += f", {percent(curve.noise)} random labels"
        if curve.labels:
            suffix += f", labels #{curve.labels[:4]}"
        if len(rates) > 1 and curve.steps:
            suffix += f", rate {curve.rate:g}"
        renamed.append(replace(curve, name_suffix=suffix))
    return replace(panels[0], curves=renamed)


def make_control_panels(curves: list[Curve]) -> list[Panel]:
    """Return a panel for each curve under whose masks other runs were trained.

    The panel holds this curve and those runs, which are its controls.
    """
    panels = []
    for own in curves:
        if own.masks:
            continue
        controls = controls_of(own, curves)
        if not controls:
            continue
        members = [own, *controls]
        t_star = max(steps_of_all_data(curve) for curve in members)
        title = f"masks of {own.name}"
        panels.append(Panel(own.noise, own.labels, own.rate, None, t_star, members, title, None))
    return panels


def controls_of(own: Curve, curves: list[Curve]) -> list[Curve]:
    """Return the curves that were trained under the masks of this one and pruned alike.

    The masks may be shuffled, and the starting weights may be the curve's own or new.
    """
    ignored = {"shuffled": None, "same_start": None}
    wanted = own.imp_settings | {"masks": common.start_name(own.settings)} | ignored
    return [curve for curve in curves if (curve.imp_settings | ignored) == wanted]


def steps_of_all_data(curve: Curve) -> int:
    """Return for how many steps all data would be seen beside this curve.

    Subsets are seen for half of the steps for which all data are seen.
    """
    return curve.steps if curve.size is None else 2 * curve.steps


def panels_of_figure(figure: str, panels: list[Panel], preset: str) -> list[Panel]:
    """Return the panels that a figure of the paper shows; "all" and "difference" show every panel.

    Figures 2 and 3 show only the steps and the subset size of the paper's statements if the runs
    have them.
    """
    if figure in ("all", "difference"):
        return panels
    # Figures 3 and 7 are those with random labels. Labels of a user's own are in every figure.
    noisy = figure in ("3", "7")
    fitting = []
    for panel in panels:
        if panel.sizes and (panel.labels or (panel.noise > 0) == noisy):
            fitting.append(panel)
    if figure in ("5", "6"):
        # Figure 6 is figure 5 for CINIC-10.
        return fitting if (preset == "cinic10") == (figure == "6") else []
    if figure in ("2", "3"):
        claimed = [panel for panel in fitting if panel.claimed_size]
        return [only_claimed_size(panel) for panel in claimed or fitting]
    return fitting


def only_claimed_size(panel: Panel) -> Panel:
    """Return the panel with subsets of the size of the paper's statements alone, if it has them."""
    if panel.claimed_size in panel.sizes:
        return panel.only_size(panel.claimed_size)
    return panel


# ------------------------------------------------------------ comparison


@dataclass
class Comparison:
    """The mean over levels first to last of accuracy(A) - accuracy(B), with its 95% interval.

    replicates  how many there are, in words: "3 paired", or "4 and 3"
    difference  in points; NaN if A or B has no replicate with these levels
    low, high   the ends of the interval in points; NaN with one replicate
    without     the replicates that lack some of the levels, and why
    by_level    the comparison at every level; empty if this is one of them
    sparsest    the comparison over the sparsest third of the levels; None if this is a part itself
    """

    a: Curve
    b: Curve
    first: int
    last: int
    replicates: str
    difference: float
    low: float
    high: float
    without: str = ""
    by_level: "list[Comparison]" = field(default_factory=list)
    sparsest: "Comparison | None" = None

    @property
    def levels(self) -> str:
        if self.last > self.first:
            return f"{self.first}-{self.last}"
        return f"{self.last}"


def compare(a: Curve, b: Curve, first: int = 1, last: int | None = None) -> Comparison:
    """Compare A with B over levels first to last (default: the deepest level that both have).

    Replicates that lack some of these levels are left out. The others are paired by seed if A and B
    have three or more seeds in common, or all seeds of the one with fewer; those without a partner
    are then left out too. Otherwise the interval is Welch's over all of them.
    """
    deepest = min(len(a.weights_remaining), len(b.weights_remaining)) - 1
    last = deepest if last is None else min(last, deepest)
    means_a = a.mean_over_levels(first, last)
    means_b = b.mean_over_levels(first, last)
    paired = [means_a[seed] - means_b[seed] for seed in means_a if seed in means_b]
    if paired and len(paired) >= min(3, len(means_a), len(means_b)):
        replicates = f"{len(paired)} paired"
        difference, low, high = paired_interval(paired)
    else:
        replicates = f"{len(means_a)} and {len(means_b)}"
        difference, low, high = welch_interval([*means_a.values()], [*means_b.values()])
    without = "; ".join(lacking("A", a, means_a) + lacking("B", b, means_b))
    return Comparison(a, b, first, last, replicates, difference, low, high, without)


def paired_interval(differences: list[float]) -> tuple[float, float, float]:
    """Return (mean, low, high) of the differences between paired replicates, at least one."""
    mean = np.mean(differences)
    half = half_width([differences])
    return mean, mean - half, mean + half


def welch_interval(a: list[float], b: list[float]) -> tuple[float, float, float]:
    """Return (mean of a minus mean of b, low, high) by Welch (1947); NaN if one of them is empty.

    The samples are not paired and may differ in size and variance.
    """
    if not a or not b:
        return np.nan, np.nan, np.nan
    difference = np.mean(a) - np.mean(b)
    half = half_width([a, b])
    return difference, difference - half, difference + half


def half_width(samples: list[list[float]]) -> float:
    """Return half of the 95% interval of the mean of one sample, or of the difference of two means.

    It is NaN if a sample has fewer than two values.
    """
    # stdtrit gives quantiles of Student's t. It is imported here because --help needs no scipy.
    from scipy.special import stdtrit

    counts = np.array([len(sample) for sample in samples])
    if counts.min() < 2:
        return np.nan
    variances = np.array([np.var(sample, ddof=1) for sample in samples])
    squared_errors = variances / counts
    # These are the degrees of freedom of Welch and Satterthwaite, which for one sample are its
    # count minus 1. Without variance the quantile does not matter.
    degrees = np.inf
    denominator = (squared_errors**2 / (counts - 1)).sum()
    if denominator:
        degrees = squared_errors.sum() ** 2 / denominator
    return stdtrit(degrees, 0.975) * np.sqrt(squared_errors.sum())


def lacking(arm: str, curve: Curve, compared: dict) -> list[str]:
    """Return the seed and the reason, as a text, for each replicate that lacks compared levels.

    arm       "A" or "B"
    compared  the replicates by seed that have the levels
    """
    texts = []
    for seed in sorted({*curve.accuracy, *curve.diverged} - {*compared}):
        reason = curve.diverged.get(seed, "unfinished")
        texts.append(f"{arm}'s seed {seed}: {reason}")
    return texts


def compare_pairs(panel: Panel, first: int, last: int | None) -> list[Comparison]:
    """Compare the pairs of a panel over levels first to last.

    Each comparison also holds the one over the sparsest third of the levels and those at single
    levels. Pairs that have no level in common are left out.
    """
    compared = []
    for a, b in pairs_to_compare(panel):
        whole = compare(a, b, first, last)
        if np.isnan(whole.difference):
            continue
        for level in range(whole.first, whole.last + 1):
            whole.by_level.append(compare(a, b, level, level))
        third = math.ceil(len(whole.by_level) / 3)
        whole.sparsest = compare(a, b, whole.last + 1 - third, whole.last)
        compared.append(whole)
    return compared


def pairs_to_compare(panel: Panel) -> list[tuple[Curve, Curve]]:
    """Return the pairs (A, B) of a panel, those of a curve with its reference first.

    Subsets of different sizes are not compared. A published curve that stands behind ours is
    compared only with our curve of the same setting.
    """
    pairs = []
    # The earlier curve of a pair becomes B: curves_in_order puts references first.
    for b, a in itertools.combinations(panel.curves, 2):
        if None not in (a.size, b.size) and a.size != b.size:
            continue
        # The paper draws its CIFAR-10 runs on all data for 200 steps a second time, as 25600 random
        # examples.
        if a.published and np.array_equal(a.mean, b.mean):
            continue
        pairs.append((a, b))
    pairs.sort(key=lambda pair: pair[1] is not panel.reference(pair[0]))
    for curve in panel.curves:
        if curve.counterpart:
            pairs.append((curve, curve.counterpart))
    return pairs


# ------------------------------------------------------------ verdict


def verdict(comparison: Comparison, margin: float) -> str:
    """Return what A is by the interval of a comparison and the margin in points.

    better               low > 0
    worse within margin  high < 0 and low > -margin
    worse                high < 0, but not low > -margin
    no worse             low <= 0 <= high and low > -margin
    undecided            otherwise, also where the interval is unknown
    """
    if comparison.low > 0:
        return "better"
    if comparison.high < 0:
        return "worse within margin" if comparison.low > -margin else "worse"
    return "no worse" if comparison.low > -margin else "undecided"


def full_verdict(whole: Comparison, margin: float) -> tuple[str, bool | None]:
    """Return the verdict over all levels, and whether A weakly dominates B.

    The verdict is followed by the levels at which it does not hold. The second value is that of
    weakly_dominates.
    """
    overall = verdict(whole, margin)
    dominates = weakly_dominates(whole, margin)
    exceptions = exceptions_to_verdict(whole, margin)
    # Where A is worse over all levels, levels at which it is worse are no exceptions.
    if not exceptions or overall == "worse":
        return overall, dominates
    return f"{overall}, but {' and '.join(exceptions)}", dominates


def weakly_dominates(whole: Comparison, margin: float) -> bool | None:
    """Return whether A weakly dominates B (Definition 3.1 of the paper); None if undecided.

    A must lose less than the margin over all levels and over the sparsest third of them, where a
    mean can hide a collapse. Since both are needed, no correction for testing twice is due.
    """
    if lowest_end(whole) > -margin:
        return True
    if "worse" in (verdict(whole, margin), verdict(whole.sparsest, margin)):
        return False
    return None


def lowest_end(comparison: Comparison) -> float:
    """Return the lower end of the interval, or that of the sparsest third if it is still lower.

    Both intervals end at the same level and so are over the same replicates: either both are NaN,
    or neither is.
    """
    if comparison.sparsest is None:
        return comparison.low
    return min(comparison.low, comparison.sparsest.low)


def margin_needed(comparison: Comparison) -> float:
    """Return the margin, in points, above which A would weakly dominate B; NaN with one replicate.

    For a part of a comparison it is the margin above which the interval of this part would pass.
    """
    return float(np.maximum(0, -lowest_end(comparison)))


def exceptions_to_verdict(whole: Comparison, margin: float) -> list[str]:
    """Return in words the levels at which the verdict over all levels does not hold.

    These are the sparsest third, if it is not known to lose less than the margin, and each level
    at which A is known to lose more.
    """
    exceptions = []
    sparsest = whole.sparsest
    word = verdict(sparsest, margin)
    if sparsest.low <= -margin and word != verdict(whole, margin):
        exceptions.append(f"{word} at levels {sparsest.levels}")
    weights = []
    for at_level in whole.by_level:
        if at_level.high < -margin:
            weights.append(f"{whole.a.weights_remaining[at_level.first]:.1%}")
    if weights:
        exceptions.append(f"worse at {' '.join(weights)}")
    return exceptions


def the_paper_says(panel: Panel, whole: Comparison, margin: float) -> str:
    """Return the paper's claim about A against B and how it fares here; "" if there is none.

    The paper makes statements about its own settings and one size of subsets.
    """
    if not panel.claimed_size:
        return ""
    for curve in (whole.a, whole.b):
        if curve.departures or curve.size not in (None, panel.claimed_size):
            return ""
    roles = (panel.role(whole.a), panel.role(whole.b))
    for statement in STATEMENTS:
        applies = statement.least_noise <= panel.noise <= statement.most_noise
        if applies and roles == (statement.a, statement.b):
            return f"{statement.claim}: {support(statement.claim, whole, margin)}"
    return ""


def support(claim: str, whole: Comparison, margin: float) -> str:
    """Return whether a comparison leaves a claim about A supported, contradicted or undecided.

    "no better" means that A is not better by as much as the margin. With a margin of 0.5, an
    interval from 0.1 to 0.4 supports that, although it also shows that A is better by a little.
    """
    dominates = weakly_dominates(whole, margin)
    if claim == "better":
        supported = dominates and whole.low > 0
        contradicted = whole.high < 0
    elif claim == "no worse":
        supported = dominates
        contradicted = dominates is False
    elif claim == "worse":
        supported = whole.high < 0
        contradicted = whole.low > 0
    else:
        supported = whole.high < margin
        contradicted = whole.low > 0
    if supported:
        return "supported"
    return "contradicted" if contradicted else "undecided"


# ------------------------------------------------------------ printed tables

VERDICT_HEAD = [
    "A",
    "B",
    "A - B",
    "95% interval",
    "n",
    "levels",
    "A is",
    "the paper says",
    "without",
]


def markdown_table(title: str, rows: list[list[str]]) -> str:
    """Return a Markdown table whose first row is the head, aligned so that a terminal shows it."""
    widths = []
    for column in zip(*rows):
        widths.append(max(len(cell) for cell in column))
    lines = []
    for row in rows:
        name = row[0].ljust(widths[0])
        numbers = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
        lines.append(f"| {' | '.join([name, *numbers])} |")
    # A colon at the end of a rule aligns the column to the right.
    rules = ["-" * (widths[0] + 2)]
    rules += ["-" * (width + 1) + ":" for width in widths[1:]]
    lines.insert(1, f"|{'|'.join(rules)}|")
    return "\n".join(["", title, "", *lines])


def mean_and_deviation(values: np.ndarray) -> str:
    """Return the mean of values and, if there are two or more, their deviation; "" for none."""
    if len(values) == 0:
        return ""
    if len(values) == 1:
        return f"{values.mean():.2f}"
    return f"{values.mean():.2f} ± {deviation(values):.2f}"


def accuracy_table(head: str, panel: Panel) -> str:
    """Return a table of the accuracy of each curve: at some levels, and of its mean over levels.

    The levels are every third and the deepest; if there are few, all of them.
    """
    deepest = len(panel.weights_remaining) - 1
    apart = 3 if deepest > 5 else 1
    levels = [*range(0, deepest, apart), deepest]
    weights = [f"{panel.weights_remaining[level]:.1%}" for level in levels]
    rows = [["", *weights, "mean from level 1"]]
    for curve in panel.curves:
        row = [curve.name]
        for level in levels:
            reached = level < len(curve.weights_remaining)
            row.append(mean_and_deviation(curve.accuracy_by_level[level]) if reached else "")
        means = curve.mean_over_levels(1, deepest)
        row.append(mean_and_deviation(np.array([*means.values()])))
        rows.append(row)
    title = f"{head}: test accuracy in %, mean ± standard deviation, by weights left"
    return markdown_table(title, rows)


def verdict_table(head: str, panel: Panel, compared: list[Comparison], margin: float) -> str:
    """Return a table of the comparisons that are worth printing; "" if there are none."""
    rows = [VERDICT_HEAD]
    for whole in compared:
        if is_printed(panel, whole, margin):
            rows.append(verdict_row(panel, whole, compared, margin))
    if len(rows) == 1:
        return ""
    if not any(row[-1] for row in rows[1:]):
        # The last column, `without`, is empty and only takes room.
        rows = [row[:-1] for row in rows]
    head += f": accuracy of A minus B in points, mean over levels; margin {margin:g}"
    if panel.steps and not panel.references:
        head += f". No run on all data for {panel.t_star} steps, so none can be called matching"
    return markdown_table(head, rows)


def is_printed(panel: Panel, whole: Comparison, margin: float) -> bool:
    """Return whether the printed table has this comparison; verdicts.csv has all of them.

    It has those that show what is matching, how our curve differs from the published one, what
    other masks or one setting outside KEY change, and how statements of the paper fare. Where no
    curve is the reference, it has all.
    """
    if not panel.references:
        return True
    a, b = whole.a, whole.b
    if b is panel.reference(a) or b is a.counterpart:
        return True
    if a.key == b.key or a.masks:
        return True
    return the_paper_says(panel, whole, margin) != ""


def verdict_row(
    panel: Panel, whole: Comparison, compared: list[Comparison], margin: float
) -> list[str]:
    """Return the cells of one comparison, in the columns of VERDICT_HEAD."""
    name = whole.a.name
    words, dominates = full_verdict(whole, margin)
    if whole.b is panel.reference(whole.a):
        name += best_of_sizes(panel, whole, compared)
        if dominates is not None:
            words += ": matching" if dominates else ": not matching"
    interval = "none"
    if not np.isnan(whole.low):
        interval = f"{whole.low:+.2f} to {whole.high:+.2f}"
    return [
        name,
        whole.b.name,
        f"{whole.difference:+.2f}",
        interval,
        whole.replicates,
        whole.levels,
        words,
        the_paper_says(panel, whole, margin),
        whole.without,
    ]


def best_of_sizes(panel: Panel, whole: Comparison, compared: list[Comparison]) -> str:
    """Return a warning if A is the best of several sizes of its scheme, otherwise "".

    Such a size was chosen on these results, so its verdict is too favourable.
    """
    role = panel.role(whole.a)
    sizes = set()
    best = -np.inf
    for rival in compared:
        if rival.b is whole.b and panel.role(rival.a) == role:
            sizes.add(rival.a.size)
            best = max(best, rival.difference)
    if len(sizes) > 1 and whole.difference == best:
        return f" (best of {len(sizes)} sizes on these results)"
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


def drawn_panels(figure: str, panels: list[Panel]) -> list[Panel]:
    """Return the panels as a picture draws them: one for each size of subsets.

    Figure 4 has the size on its axis, and controls are not divided by size.
    """
    if figure in ("4", "controls"):
        return panels
    drawn = []
    for panel in panels:
        if not panel.sizes:
            drawn.append(replace(panel, title=f"all data, {panel.title}"))
        for size in panel.sizes:
            drawn.append(replace(panel.only_size(size), title=f"{size} examples, {panel.title}"))
    return drawn


def curve_rows(panel: Panel) -> list[dict]:
    """Return the rows of summary.csv for a panel: those of a curve, then of its counterpart."""
    rows = []
    for order, curve in enumerate(panel.curves):
        rows += level_rows(panel, order, curve, curve)
        if curve.counterpart:
            rows += level_rows(panel, order, curve, curve.counterpart)
    return rows


def level_rows(panel: Panel, order: int, curve: Curve, drawn: Curve) -> list[dict]:
    """Return the rows of summary.csv for a curve of a panel, one for each level.

    drawn  the curve whose numbers these are: the curve itself or its counterpart
    """
    rows = []
    for level, weights in enumerate(drawn.weights_remaining):
        row = describe_curve(panel, order, curve)
        row["curve"] = drawn.name
        row["source"] = source_of(drawn)
        row["level"] = level
        row["weights_remaining"] = weights
        row["replicates"] = drawn.replicate_count[level]
        row["mean"] = drawn.mean[level] / 100
        row["std"] = drawn.std[level] / 100
        rows.append(row)
    return rows


def describe_curve(panel: Panel, order: int, curve: Curve) -> dict:
    """Return what all rows of summary.csv say about a curve of a panel, by column."""
    row = {"panel": panel.title, "role": panel.role(curve), "order": order, "curve": curve.name}
    return row | dict(zip(KEY, curve.key))


def source_of(curve: Curve) -> str:
    return "paper" if curve.published else "runs"


def add_differences(panel: Panel, rows: list[dict], margin: float) -> None:
    """Enter into the rows of a panel the accuracy minus that of the reference, with its interval.

    Rows of level 0, rows without a reference, and rows of published curves behind ours get only the
    margin.
    """
    for row in rows:
        row["margin"] = margin
        curve = panel.curves[row["order"]]
        reference = panel.reference(curve)
        if reference is None or row["source"] != source_of(curve):
            continue
        level = row["level"]
        if not 1 <= level < len(reference.weights_remaining):
            continue
        comparison = compare(curve, reference, level, level)
        row["difference"] = comparison.difference
        row["low"] = comparison.low
        row["high"] = comparison.high
        row["pairs"] = comparison.replicates


def run_rows(panel: Panel, out: Path) -> list[dict]:
    """Return a row of summary.csv for every run; plot.py finds the runs of connectivity.py there.

    out  the folder of summary.csv, to which folders of runs are relative
    """
    rows = []
    deepest = len(panel.weights_remaining) - 1
    for order, curve in enumerate(panel.curves):
        accuracy = curve.mean_over_levels(1, deepest)
        for seed, folder in curve.folders.items():
            row = describe_curve(panel, order, curve)
            row["panel"] = ""
            row["source"] = "runs"
            row["seed"] = seed
            row["folder"] = os.path.relpath(folder.resolve(), out.resolve())
            if seed in accuracy:
                row["mean"] = accuracy[seed] / 100
            rows.append(row)
    return rows


def comparison_rows(panel: Panel, compared: list[Comparison], margin: float) -> list[dict]:
    """Return the rows of verdicts.csv: every comparison, over its sparsest third, and by level."""
    rows = []
    for whole in compared:
        rows.append(comparison_row(panel, whole, margin))
        words, dominates = full_verdict(whole, margin)
        rows[-1] |= {"verdict": words, "dominates": dominates}
        for part in (whole.sparsest, *whole.by_level):
            rows.append(comparison_row(panel, part, margin))
    return rows


def comparison_row(panel: Panel, comparison: Comparison, margin: float) -> dict:
    """Return a row of verdicts.csv for a comparison or a part of it; a part cannot dominate."""
    return {
        "label_noise": panel.noise,
        "pretrain_lr": panel.rate,
        "a": comparison.a.name,
        "b": comparison.b.name,
        "first_level": comparison.first,
        "last_level": comparison.last,
        "replicates": comparison.replicates,
        "without": comparison.without,
        "difference": comparison.difference,
        "low": comparison.low,
        "high": comparison.high,
        "margin_needed": margin_needed(comparison),
        "verdict": verdict(comparison, margin),
        "dominates": "",
    }


def widest_panels(panels: list[Panel]) -> list[Panel]:
    """Return each panel once: where several figures show it, the one with most sizes."""
    chosen = {}
    for panel in sorted(panels, key=lambda panel: len(panel.sizes)):
        # A later panel has at least as many sizes, so it takes the place of an earlier one.
        chosen[panel.noise, panel.rate, panel.title] = panel
    return [*chosen.values()]


def write_table(path: Path, columns: tuple[str, ...], rows: list[dict]) -> None:
    """Write rows to a CSV file under a head; a column that a row does not have stays empty."""
    lines = [columns]
    for row in rows:
        lines.append([row.get(column, "") for column in columns])
    common.write_csv(path, lines)


# ------------------------------------------------------------ command line


@dataclass
class Report:
    """What is written and printed: rows of summary.csv and verdicts.csv, and tables in Markdown."""

    summary: list[dict] = field(default_factory=list)
    verdicts: list[dict] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    with common.reading(args.out):
        args.out.mkdir(parents=True, exist_ok=True)
    if not os.access(args.out, os.W_OK):
        raise InputError(f"cannot write to {args.out}")
    report = make_report(read_experiments(args), args)
    text = "\n".join(report.tables)
    print(text)
    summary, comparisons = args.out / "summary.csv", args.out / "verdicts.csv"
    tables = args.out / "summary.md"
    write_table(summary, SUMMARY, report.summary)
    write_table(comparisons, VERDICTS, report.verdicts)
    common.atomic_write(tables, (text.lstrip() + "\n").encode())
    print("", summary, comparisons, tables, sep="\n")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return the arguments; raise InputError if they contradict each other."""
    parser = common.Parser(__doc__)
    parser.add_argument(
        "runs",
        type=Path,
        nargs="?",
        metavar="RUNS_ROOT",
        help="The folder that holds the runs, at any depth.",
    )
    parser.add_argument(
        "--figure",
        nargs="+",
        choices=[*"234567", "difference", "controls", "masks", "barrier"],
        default=["all"],
        metavar="F",
        help="The figures to make: 2 to 7 of the paper, difference, controls, masks, barrier. "
        "By default every panel is shown.",
    )
    parser.add_argument(
        "--paper",
        type=Path,
        metavar="JSON",
        help="This is paper_curves.json, whose curves are shown behind yours, or alone.",
    )
    parser.add_argument(
        "--preset", choices=common.PRESETS, help="Only the experiments of this preset are shown."
    )
    parser.add_argument(
        "--margin",
        type=common.within("[0, 100]"),
        default=0.5,
        help="A is no worse if it surely loses less than this many points (default: 0.5).",
    )
    parser.add_argument(
        "--levels",
        type=int,
        nargs=2,
        metavar=("FIRST", "LAST"),
        help="Verdicts are about these pruning levels (default: 1 to the deepest).",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("figures"),
        help="The folder to write the tables to (default: figures).",
    )
    args = parser.parse_args(argv)
    # A figure that is named twice is made once.
    args.figure = list(dict.fromkeys(args.figure))
    if args.levels and not 0 <= args.levels[0] <= args.levels[1]:
        raise InputError("--levels needs FIRST and LAST with 0 <= FIRST <= LAST")
    needs_runs = {"controls", "masks", "barrier"} & set(args.figure)
    if not args.runs and (not args.paper or needs_runs):
        raise InputError(
            "name a folder with runs, or give --paper to compare the published curves alone"
        )
    return args


def read_experiments(args: argparse.Namespace) -> dict[str, list[Curve]]:
    """Return {experiment: its curves}: those of the runs, or the published ones without runs.

    Curves of runs whose settings are the paper's get the published curve as their counterpart.
    """
    last = args.levels[1] if args.levels else 0
    published = read_published(args.paper, last) if args.paper else {}
    if not args.runs:
        return {f"{preset}-published": curves for preset, curves in published.items()}
    experiments = read_runs(args.runs)
    for curves in experiments.values():
        counterparts = {}
        for curve in published.get(curves[0].settings["preset"], []):
            counterparts[curve.key] = replace(curve, name_suffix=" (published)")
        for curve in curves:
            if not curve.departures:
                curve.counterpart = counterparts.get(curve.key)
    return experiments


def make_report(experiments: dict[str, list[Curve]], args: argparse.Namespace) -> Report:
    """Return the rows and tables of all experiments of args.preset (None: of all experiments).

    Raises InputError if an experiment does not have the levels that were asked for, or if there is
    nothing to report.
    """
    report = Report()
    presets = set()
    for name, curves in experiments.items():
        preset = curves[0].settings["preset"]
        presets.add(preset)
        if args.preset not in (None, preset):
            continue
        deepest = max(len(curve.weights_remaining) for curve in curves) - 1
        if args.levels and args.levels[0] > deepest:
            raise InputError(f"--levels: {name} has no level {args.levels[0]}")
        add_experiment(report, name, curves, args)
    if not report.summary:
        raise InputError(
            f"{args.runs or args.paper} has nothing of this preset and figure; "
            f"its presets are {', '.join(sorted(presets))}"
        )
    return report


def add_experiment(
    report: Report, name: str, curves: list[Curve], args: argparse.Namespace
) -> None:
    """Add to a report the rows and tables of an experiment, whose curves these are."""
    panels = make_panels(curves, curves[0].settings["preset"])
    reported = []
    for figure in args.figure:
        if figure in ("masks", "barrier"):
            rows = run_rows(merge_panels(panels), args.out)
        else:
            chosen = choose_panels(figure, panels, curves)
            if not chosen:
                print(f"note: {name} has nothing for figure {figure}")
            rows = figure_rows(figure, chosen, args.margin)
            reported += chosen
        for row in rows:
            report.summary.append(row | {"experiment": name, "picture": figure})
    for panel in widest_panels(reported):
        judge(report, name, panel, args)


def choose_panels(figure: str, panels: list[Panel], curves: list[Curve]) -> list[Panel]:
    """Return the panels of a figure; those of the controls are made for it from all curves."""
    if figure == "controls":
        return make_control_panels(curves)
    return panels_of_figure(figure, panels, curves[0].settings["preset"])


def figure_rows(figure: str, panels: list[Panel], margin: float) -> list[dict]:
    """Return the rows of summary.csv for the panels of a figure."""
    rows = []
    for panel in drawn_panels(figure, panels):
        panel_rows = curve_rows(panel)
        if figure == "difference":
            add_differences(panel, panel_rows, margin)
        rows += panel_rows
    return rows


def judge(report: Report, name: str, panel: Panel, args: argparse.Namespace) -> None:
    """Compare the curves of a panel; add the rows of verdicts.csv and the tables to a report."""
    first, last = args.levels or (1, None)
    compared = compare_pairs(panel, first, last)
    for row in comparison_rows(panel, compared, args.margin):
        report.verdicts.append(row | {"experiment": name})
    head = f"{name}, {panel.title}"
    report.tables.append(accuracy_table(head, panel))
    verdicts = verdict_table(head, panel, compared, args.margin)
    if verdicts:
        report.tables.append(verdicts)


if __name__ == "__main__":
    sys.exit(common.cli(main))
