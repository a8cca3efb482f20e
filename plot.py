"""Draw the tables that verdicts.py and connectivity.py have written to a folder.

reads   DIR/summary.csv; for masks and barrier every connectivity.csv in DIR and its subfolders;
        for scores DIR/classes.csv of make_subset.py --classes-table
writes  DIR/*.png, *.pdf

python verdicts.py runs/cifar10 --figure 2 --paper paper_curves.json --out figures/cifar10
python plot.py figures/cifar10

Without --figure it draws every figure of summary.csv. masks shows how similar the masks of two runs
are. barrier shows how far the error rises between two networks of one start, and whether starts
that are stable in this sense prune to a better accuracy. If you want both to use the names and
colours of the other figures, give them to verdicts.py as --figure as well; runs that summary.csv
does not list are named as in connectivity.csv. scores shows how often each class is among the
easiest and the hardest examples.
"""

import argparse
import csv
import io
import itertools
import math
import os
import sys
from collections import Counter, namedtuple
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path

import numpy as np

import common
from common import InputError

LEVELS_OF_FIGURE_4 = (8, 10, 12)

# The paper's colours and markers by role. The roles t* and t*/2 saw all data; their dashes differ
# so that a print in grey tells them apart.
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
# Every other role, such as other numbers of steps or a scheme of your own, gets one of these
# colours.
OTHER_STYLE = dict(linestyle=":", marker="s", markersize=4)
OTHER_COLORS = ("#56b4e9", "#7a5195", "#8c6d31", "#555555")
# Curves that would look the same otherwise differ by these.
OTHER_DASHES = (":", "-.", (0, (1, 3)), (0, (6, 2, 1, 2)))
# The accuracy of the dense network, and the margin.
GREY = dict(color="grey", linestyle=(0, (1, 3)), linewidth=1)
# The twin of a curve stands behind it, in its colour.
THIN = dict(marker=None, linewidth=0.7, zorder=1.5)

ACCURACY = "test accuracy (%)"
WEIGHTS = "weights remaining (%)"
OVERLAP = "overlap |A and B| / |A or B| of the masks (%)"
STANDARD_DEVIATION = "band: one sample std. deviation"
TWO_SEEDS = "two seeds of one setting"

# The columns of connectivity.csv that hold numbers.
MEASURED = (
    "weights_remaining",
    "overlap",
    "chance",
    "error_barrier",
    "loss_barrier",
    "at_most_0",
    "at_most_0.01",
)

# What identifies a curve: the text that a table has in these columns.
Key = namedtuple("Key", common.KEY, defaults=[""] * len(common.KEY))


# ------------------------------------------------------------ curves of the tables


@dataclass(eq=False)
class PlottedCurve:
    """The mean of something over replicates at every IMP level, and its standard deviation."""

    name: str
    role: str  # "t*", "t*/2", "init", "other", or the scheme of a subset
    key: Key
    weights: np.ndarray  # [levels], weights remaining in %
    mean: np.ndarray  # [levels]
    std: np.ndarray  # [levels], of the sample
    n: np.ndarray  # [levels], number of replicates
    rows: list[dict] = field(default_factory=list)  # its rows of summary.csv, one for each level
    twin: "PlottedCurve | None" = None  # the published curve, or chance: a thin line behind it

    def __post_init__(self) -> None:
        size, steps = self.key.subset_size, self.key.rewind_step
        self.size = int(size) if size else None  # examples in the subset; None is all data
        self.steps = int(steps) if steps else 0  # of pre-training

    @property
    def label(self) -> str:
        """Return the name and the number of replicates.

        "easy (n=2/3)" says that some levels have two replicates and others three.
        """
        counts = "/".join(map(str, np.unique(self.n)))
        return f"{self.name} (n={counts})"


@dataclass
class PlottedPanel:
    """The curves that share one chart, or one chart for each level in figure 4."""

    title: str
    curves: list[PlottedCurve]

    @property
    def weights(self) -> np.ndarray:
        """Return the weights remaining in %, [levels], of the curve that has most levels."""
        deepest = max(self.curves, key=lambda curve: len(curve.weights))
        return deepest.weights

    @property
    def ticks(self) -> dict[float, str]:
        """Return the labels of the axis of weights remaining, for every third of many levels."""
        stride = 3 if len(self.weights) > 6 else 1
        return {weights: f"{weights:.3g}" for weights in self.weights[::stride]}

    @property
    def has_published(self) -> bool:
        """Does a published curve stand behind one of ours?"""
        return any(curve.twin for curve in self.curves)


def read_table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a csv file. InputError: the file is missing or not readable."""
    with common.reading(path), open(path, newline="") as file:
        return list(csv.DictReader(file))


def to_number(cell: str) -> float:
    """Return the number in a cell of a table, or NaN if the cell is empty."""
    if not cell:
        return np.nan
    return float(cell)


def numbers(rows: list[dict], column: str) -> np.ndarray:
    """Return a column of a table as float64 [rows], with NaN where a cell is empty."""
    return np.array([to_number(row[column]) for row in rows])


def group_by(items: Iterable, key: Callable) -> dict:
    """Return {key(item): items that have this key}; keys and items stay in their order."""
    groups = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def read_panels(rows: list[dict]) -> list[PlottedPanel]:
    """Return the panels of one figure and experiment from their rows of summary.csv."""
    panels = []
    for title, panel_rows in group_by(rows, itemgetter("panel")).items():
        rows_by_curve = group_by(panel_rows, itemgetter("order"))
        curves = [read_curve_with_twin(curve_rows) for curve_rows in rows_by_curve.values()]
        panels.append(PlottedPanel(title, curves))
    return panels


def read_curve_with_twin(rows: list[dict]) -> PlottedCurve:
    """Return the curve of our runs, with the published one as its twin if the rows have both.

    verdicts.py writes the rows of the runs first. A curve that is only published has no twin.
    """
    rows_by_source = group_by(rows, itemgetter("source"))
    curve, *published = map(read_curve, rows_by_source.values())
    if published:
        curve.twin = published[0]
    return curve


def read_curve(rows: list[dict]) -> PlottedCurve:
    """Return the curve of accuracies in % that these rows of summary.csv hold level by level."""
    first = rows[0]
    return PlottedCurve(
        name=first["curve"],
        role=first["role"],
        key=read_key(first),
        weights=100 * numbers(rows, "weights_remaining"),
        mean=100 * numbers(rows, "mean"),
        std=100 * numbers(rows, "std"),
        n=numbers(rows, "replicates").astype(int),
        rows=rows,
    )


def read_key(row: dict) -> Key:
    """Return what identifies the curve to which a row of summary.csv belongs."""
    return Key(*(row[column] for column in common.KEY))


# ------------------------------------------------------------ one page


@dataclass
class Line:
    """A line of a chart."""

    label: str
    style: dict  # keyword arguments of matplotlib's plot
    x: np.ndarray  # [points]
    y: np.ndarray  # [points]
    half_band: np.ndarray | float = 0  # how far its band reaches above and below it
    in_legend: bool = True


@dataclass
class Chart:
    """Lines in one pair of axes; a figure is a page of charts."""

    lines: list[Line]
    title: str
    xlabel: str
    ylabel: str = ACCURACY
    ticks: dict | None = None  # {x: label} of a logarithmic x axis; None is a linear axis


def import_matplotlib():
    """Return matplotlib under our own settings, whatever a user has elsewhere."""
    # A shell cell of a notebook hands on the notebook's backend, which need not be installed here.
    os.environ["MPLBACKEND"] = "agg"
    # The import takes a second. pyplot is left alone because it would look for a screen.
    import matplotlib.figure

    matplotlib.rcdefaults()
    matplotlib.rcParams["text.parse_math"] = False  # A $ in a name is a $.
    return matplotlib


def draw_page(
    path: Path, charts: list[Chart], note: str, columns: int = 4, own_ranges: bool = False
) -> list[Path]:
    """Draw charts side by side, write them as path.png and path.pdf, and return both paths.

    All charts have the same vertical range, or with own_ranges each has its own.
    """
    matplotlib = import_matplotlib()
    columns = min(columns, len(charts))
    rows = math.ceil(len(charts) / columns)
    most_lines = max(len(chart.lines) for chart in charts)
    width = 4.6 * columns  # inches
    height = (4 + 0.17 * most_lines) * rows  # The legend below a chart grows with its lines.
    page = matplotlib.figure.Figure(figsize=(width, height), layout="constrained")
    axes = page.subplots(rows, columns, squeeze=False).flatten()
    for ax in axes[len(charts) :]:
        ax.remove()
    shared_range = vertical_range(charts)
    for ax, chart in zip(axes, charts):
        draw_chart(ax, chart)
        low, high = vertical_range([chart]) if own_ranges else shared_range
        ax.set_ylim(low, high)
    page.suptitle(f"{path.name}\n{note}", fontsize=11)
    return save_page(page, path)


def save_page(page, path: Path) -> list[Path]:
    """Write a page of matplotlib as path.png and path.pdf, and return both paths."""
    paths = []
    for kind in ("png", "pdf"):
        content = io.BytesIO()
        page.savefig(content, format=kind, dpi=150, bbox_inches="tight")
        target = path.with_name(f"{path.name}.{kind}")
        common.atomic_write(target, content.getvalue())
        paths.append(target)
    return paths


def draw_chart(ax, chart: Chart) -> None:
    """Draw a chart into axes of matplotlib, with its legend below."""
    for line in chart.lines:
        draw_line(ax, line)
    ax.set(xlabel=chart.xlabel, ylabel=chart.ylabel)
    ax.set_title(chart.title, fontsize=10)
    if chart.ticks:
        ax.set_xscale("log")
        ax.set_xticks(list(chart.ticks), chart.ticks.values(), fontsize=8)
        ax.minorticks_off()
        # Weights remaining descend, so that their axis runs from dense to sparse.
        if list(chart.ticks) != sorted(chart.ticks):
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


def draw_line(ax, line: Line) -> None:
    """Draw a line and its band."""
    # matplotlib leaves a label that begins with _ out of the legend.
    label = line.label if line.in_legend else f"_{line.label}"
    style = {"linewidth": 1.6} | line.style
    ax.plot(line.x, line.y, label=label, **style)
    # The band of a single point has no width, so its edge is drawn thick, as a bar.
    edge = 0 if len(line.x) > 1 else 8
    ax.fill_between(
        line.x,
        line.y - line.half_band,
        line.y + line.half_band,
        color=style["color"],
        alpha=0.15,
        linewidth=edge,
    )


def vertical_range(charts: list[Chart]) -> tuple[float, float]:
    """Return a range a little larger than that of the lines.

    It does not follow the bands, because a single wide one would flatten all lines.
    """
    lines = itertools.chain.from_iterable(chart.lines for chart in charts)
    heights = np.concatenate([line.y for line in lines])
    low, high = np.nanmin(heights), np.nanmax(heights)
    room = 0.05 * (high - low)
    if room == 0:
        room = 1
    return low - room, high + room


def assign_styles(curves: list[PlottedCurve]) -> dict[PlottedCurve, dict]:
    """Return how to draw each curve of a panel and its twin, as arguments of matplotlib's plot.

    A role of the paper has its own style, and other roles have a colour for each key. Of several
    curves with the same role, subset size and number of steps, all but the first have other dashes.
    """
    colors = itertools.cycle(OTHER_COLORS)
    color_of_key = {}
    curves_of_kind = Counter()
    styles = {}
    for curve in curves:
        if curve.role in STYLES:
            style = STYLES[curve.role]
        else:
            if curve.key not in color_of_key:
                color_of_key[curve.key] = next(colors)
            style = OTHER_STYLE | {"color": color_of_key[curve.key]}
        kind = (curve.role, curve.size, curve.steps)
        if curves_of_kind[kind]:
            dashes = OTHER_DASHES[(curves_of_kind[kind] - 1) % len(OTHER_DASHES)]
            style = style | {"linestyle": dashes}
        curves_of_kind[kind] += 1
        styles[curve] = style
        if curve.twin:
            styles[curve.twin] = style | THIN
    return styles


# ------------------------------------------------------------ accuracies


def draw_figure(figure: str, panels: list[PlottedPanel], path: Path) -> list[Path]:
    """Draw one figure of summary.csv and return the paths of its files."""
    if figure == "difference":
        charts = [difference_chart(panel) for panel in panels]
        return draw_page(path, charts, "bands: 95% intervals; grey: the margin")
    note = STANDARD_DEVIATION
    if any(panel.has_published for panel in panels):
        note += "; thin: published"
    if figure != "4":
        return draw_page(path, [accuracy_chart(panel) for panel in panels], note)
    charts = []
    for panel in panels:
        for level in levels_of_figure_4(panel):
            charts.append(size_chart(panel, level))
    return draw_page(path, charts, note, columns=3, own_ranges=True)


def levels_of_figure_4(panel: PlottedPanel) -> list[int]:
    """Return the levels of the paper's figure 4, or the last level if no curve is that deep."""
    depth = len(panel.weights)
    levels = [level for level in LEVELS_OF_FIGURE_4 if level < depth]
    if not levels:
        return [depth - 1]
    return levels


def level_chart(panel: PlottedPanel, ylabel: str) -> Chart:
    """Return the chart of all curves of a panel and their twins against weights remaining."""
    styles = assign_styles(panel.curves)
    lines = []
    for curve in panel.curves:
        lines.append(Line(curve.label, styles[curve], curve.weights, curve.mean, curve.std))
        twin = curve.twin
        if twin:
            lines.append(Line(curve.label, styles[twin], twin.weights, twin.mean, in_legend=False))
    return Chart(lines, panel.title, WEIGHTS, ylabel, panel.ticks)


def accuracy_chart(panel: PlottedPanel) -> Chart:
    """Return the chart of accuracy against weights remaining.

    A horizontal line is the accuracy of the dense network, level 0 of all data for t* steps.
    """
    chart = level_chart(panel, ACCURACY)
    references = [curve for curve in panel.curves if curve.role == "t*"]
    if references:
        reference = references[0]
        dense = np.full(len(reference.mean), reference.mean[0])
        chart.lines.insert(0, Line("dense", GREY, reference.weights, dense))
    return chart


def difference_chart(panel: PlottedPanel) -> Chart:
    """Return the chart of accuracy minus that of all data for t* steps, with 95% intervals.

    A grey band around zero is the margin.
    """
    styles = assign_styles(panel.curves)
    margin = float(panel.curves[0].rows[0]["margin"])
    zero = np.zeros(len(panel.weights))
    lines = [Line(f"margin {margin:g}", GREY, panel.weights, zero, margin)]
    for curve in panel.curves:
        rows = [row for row in curve.rows if row["difference"]]
        if not rows:
            continue
        label = f"{curve.name} (n={rows[0]['pairs']})"
        weights = 100 * numbers(rows, "weights_remaining")
        difference = numbers(rows, "difference")
        half_interval = numbers(rows, "high") - difference
        lines.append(Line(label, styles[curve], weights, difference, half_interval))
    ylabel = "accuracy minus that of all data for t* steps"
    return Chart(lines, panel.title, WEIGHTS, ylabel, panel.ticks)


def size_chart(panel: PlottedPanel, level: int) -> Chart:
    """Return the chart of accuracy against subset size at one level (figure 4).

    A curve that saw all data becomes a horizontal line.
    """
    styles = assign_styles(panel.curves)
    sizes = sorted({curve.size for curve in panel.curves} - {None})
    ends = [sizes[0] / 1.1, sizes[-1] * 1.1]  # where a horizontal line begins and ends
    lines = []
    for name, curves in group_by(panel.curves, name_without_size).items():
        line = line_over_sizes(name, curves, styles, level, ends)
        if line:
            lines.append(line)
        twins = [curve.twin for curve in curves if curve.twin]
        thin_line = line_over_sizes(name, twins, styles, level, ends)
        if thin_line:
            lines.append(replace(thin_line, half_band=0, in_legend=False))
    title = f"level {level}, {panel.weights[level] / 100:.1%} of weights, {panel.title}"
    ticks = dict(zip(sizes, sizes))
    return Chart(lines, title, "examples in the subset", ticks=ticks)


def name_without_size(curve: PlottedCurve) -> str:
    """Return the name that the curves of all sizes share: "easy, 5 steps" of "easy 64, 5 steps"."""
    if curve.size is None:
        return curve.name
    return curve.name.replace(f" {curve.size},", ",", 1)


def line_over_sizes(
    name: str, curves: list[PlottedCurve], styles: dict, level: int, ends: list[float]
) -> Line | None:
    """Return the line through the accuracies of these curves at a level.

    None means that no curve has that level.
    """
    deep_enough = [curve for curve in curves if level < len(curve.mean)]
    if not deep_enough:
        return None
    x, mean, std = [], [], []
    for curve in deep_enough:
        positions = ends if curve.size is None else [curve.size]
        for position in positions:
            x.append(position)
            mean.append(curve.mean[level])
            std.append(curve.std[level])
    n = max(curve.n[level] for curve in deep_enough)
    style = styles[deep_enough[0]]
    return Line(f"{name} (n={n})", style, np.array(x), np.array(mean), np.array(std))


# ------------------------------------------------------------ pairs of runs


@dataclass(frozen=True)
class RunLabel:
    """What a run is called in figures, and how accurate it is."""

    experiment: str
    curve: str
    role: str
    key: Key
    order: int = 0  # the place of its curve among the curves
    accuracy: float = np.nan  # mean from level 1 on, in %; NaN if unknown or a level is missing


@dataclass
class Pair:
    """Two runs, and what connectivity.py measured between them."""

    a: RunLabel
    b: RunLabel
    same_seed: bool
    measured: dict[str, np.ndarray]  # {column of MEASURED: [levels]}

    @property
    def depth(self) -> int:
        """Return the number of levels."""
        return len(self.measured["weights_remaining"])

    def levels_with_barrier(self) -> "Pair":
        """Return this pair with only those levels at which an error barrier was measured."""
        has_barrier = ~np.isnan(self.measured["error_barrier"])
        measured = {column: values[has_barrier] for column, values in self.measured.items()}
        return replace(self, measured=measured)


def read_run_labels(folder: Path, rows: list[dict]) -> dict[Path, RunLabel]:
    """Return {run folder: its label} from the rows of the summary.csv in a folder."""
    labels = {}
    for row in rows:
        if not row["folder"]:
            continue
        run_folder = (folder / row["folder"]).resolve()
        labels[run_folder] = RunLabel(
            experiment=row["experiment"],
            curve=row["curve"],
            role=row["role"],
            key=read_key(row),
            order=int(row["order"]),
            accuracy=100 * to_number(row["mean"]),
        )
    return labels


def read_pairs(folder: Path, labels: dict[Path, RunLabel]) -> dict[str, list[Pair]]:
    """Return {experiment: pairs} from every connectivity.csv in a folder and its subfolders.

    A pair counts once, however many tables have it.
    """
    experiments = {}
    for path in common.find_files(folder, "connectivity.csv"):
        table = read_table(path)
        with common.reading(path):
            for places, rows in group_by(table, itemgetter("a", "b")).items():
                folder_a, folder_b = [(path.parent / place).resolve() for place in places]
                a, b = label_pair(rows[0], labels.get(folder_a), labels.get(folder_b), folder)
                pairs = experiments.setdefault(a.experiment, {})
                pairs[folder_a, folder_b] = read_pair(rows, a, b)
    return {experiment: list(pairs.values()) for experiment, pairs in experiments.items()}


def read_pair(rows: list[dict], a: RunLabel, b: RunLabel) -> Pair:
    """Return a pair from its rows of connectivity.csv, one for each level."""
    first = rows[0]
    measured = {column: numbers(rows, column) for column in MEASURED}
    return Pair(a, b, same_seed=first["seed_a"] == first["seed_b"], measured=measured)


def label_pair(
    row: dict, a: RunLabel | None, b: RunLabel | None, folder: Path
) -> tuple[RunLabel, RunLabel]:
    """Return the labels of both runs of a pair; None stands for a run that summary.csv lacks.

    row is any row of the pair in connectivity.csv.
    """
    # verdicts.py leaves out runs in another batch order. They have the name of their start, so they
    # take the label of the run with which they are paired.
    if row["name_a"] == row["name_b"]:
        if a is None:
            a = b
        if b is None:
            b = a
    if a is None:
        a = label_from_name(row["name_a"], folder)
    if b is None:
        b = label_from_name(row["name_b"], folder)
    return a, b


def label_from_name(name: str, folder: Path) -> RunLabel:
    """Return a label for a run that summary.csv lacks, from its name in connectivity.csv."""
    return RunLabel(folder.resolve().name, curve=name, role="", key=Key(scheme=name))


def curve_over_pairs(
    label: RunLabel, pairs: list[Pair], column: str, factor: float = 1
) -> PlottedCurve:
    """Return the mean and standard deviation over pairs of a measured column, level by level."""
    deepest = max(pairs, key=lambda pair: pair.depth)
    mean, std, n = [], [], []
    for level in range(deepest.depth):
        values = [pair.measured[column][level] for pair in pairs if level < pair.depth]
        sample = factor * np.array(values)
        mean.append(sample.mean())
        std.append(sample_deviation(sample))
        n.append(len(sample))
    return PlottedCurve(
        name=label.curve,
        role=label.role,
        key=label.key,
        weights=100 * deepest.measured["weights_remaining"],
        mean=np.array(mean),
        std=np.array(std),
        n=np.array(n),
    )


def sample_deviation(sample: np.ndarray) -> float:
    """Return the sample standard deviation, or NaN of a single value."""
    if len(sample) < 2:
        return np.nan
    return sample.std(ddof=1)


def draw_masks(pairs: list[Pair], path: Path) -> list[Path]:
    """Draw how similar the masks of two runs are, beside chance; return the paths of the files."""
    pairs_by_title = group_by(pairs, mask_chart_title)
    charts = []
    # Two seeds of one setting come first, because the other charts are read against them.
    for title in sorted(pairs_by_title, key=lambda title: title != TWO_SEEDS):
        pairs_by_curve = group_by(pairs_by_title[title], lambda pair: pair.b.curve)
        groups = sorted(pairs_by_curve.values(), key=lambda group: group[0].b.order)
        curves = [overlap_curve(group) for group in groups]
        charts.append(level_chart(PlottedPanel(title, curves), OVERLAP))
    return draw_page(path, charts, f"{STANDARD_DEVIATION}; thin: chance")


def overlap_curve(pairs: list[Pair]) -> PlottedCurve:
    """Return the overlap of masks in %, with chance as its twin."""
    label = pairs[0].b
    curve = curve_over_pairs(label, pairs, "overlap", factor=100)
    curve.twin = curve_over_pairs(label, pairs, "chance", factor=100)
    return curve


def mask_chart_title(pair: Pair) -> str:
    """Return the title of the chart that a pair belongs to."""
    same_setting = pair.a.curve == pair.b.curve
    if same_setting and pair.same_seed:
        return "two orders of one start"
    if same_setting:
        return TWO_SEEDS
    seeds = "one seed" if pair.same_seed else "two seeds"
    return f"{seeds}, with {pair.a.curve}"


def draw_barrier(pairs: list[Pair], path: Path) -> list[Path]:
    """Draw how stable training from a start is, and return the paths of the files.

    A start is stable if the error hardly rises between its networks of two batch orders. Nothing is
    drawn if no pair has a barrier.
    """
    measured = []
    for pair in pairs:
        with_barrier = pair.levels_with_barrier()
        if with_barrier.depth:
            measured.append(with_barrier)
    if not measured:
        return []
    in_order = sorted(measured, key=lambda pair: pair.a.order)
    groups = list(group_by(in_order, lambda pair: pair.a.curve).values())
    curves = [curve_over_pairs(group[0].a, group, "error_barrier") for group in groups]
    panel = PlottedPanel("between networks of two batch orders", curves)
    charts = [level_chart(panel, "error barrier (points)")]
    # If only dense networks were trained, no start has an accuracy after pruning.
    if not all(np.isnan(pair.a.accuracy) for pair in measured):
        charts.append(stability_chart(curves, groups))
    return draw_page(path, charts, STANDARD_DEVIATION, own_ranges=True)


def stability_chart(curves: list[PlottedCurve], groups: list[list[Pair]]) -> Chart:
    """Return the chart that asks whether stable starts prune better.

    It has a point for each start: its accuracy against its loss barrier. groups holds the pairs of
    each curve.
    """
    from scipy.stats import spearmanr  # The import takes half a second.

    styles = assign_styles(curves)
    lines, barriers, accuracies = [], [], []
    for curve, pairs in zip(curves, groups):
        x, y = [], []
        for pair in pairs:
            if not np.isnan(pair.a.accuracy):
                x.append(pair.measured["loss_barrier"][0])
                y.append(pair.a.accuracy)
        if x:
            dots = styles[curve] | {"linestyle": ""}
            lines.append(Line(curve.name, dots, np.array(x), np.array(y)))
        barriers += x
        accuracies += y
    correlation = np.nan
    if len(barriers) > 1:
        correlation = spearmanr(barriers, accuracies).statistic
    title = f"{len(barriers)} starts, rank correlation {correlation:+.2f}"
    xlabel = "loss barrier at level 0, mean (nats)"
    return Chart(lines, title, xlabel, f"{ACCURACY}, mean from level 1")


# ------------------------------------------------------------ classes of easy and hard examples


def draw_scores(table: Path) -> list[Path]:
    """Draw how often each class is among the easiest and the hardest examples.

    table is classes.csv. Returns the paths of the files.
    """
    rows = read_table(table)
    shares_by_rule = {}
    with common.reading(table):
        sizes = sorted({int(row["size"]) for row in rows})
        for rule, rule_rows in group_by(rows, itemgetter("select")).items():
            shares_by_rule[rule] = class_shares(rule_rows)
    if not shares_by_rule:
        raise InputError(f"{table}: has no rows")
    # The colours are those of the first rule, so that a class looks the same in both charts.
    styles = class_styles(next(iter(shares_by_rule.values())))
    charts = [class_chart(rule, sizes, shares, styles) for rule, shares in shares_by_rule.items()]
    note = "1: as frequent as among all examples; 0: left out"
    return draw_page(table.with_name("classes"), charts, note)


def class_chart(
    rule: str, sizes: list[int], shares: dict[str, np.ndarray], styles: dict[str, dict]
) -> Chart:
    """Return the chart of the share of each class against the size of the subset."""
    lines = []
    for name, style in styles.items():
        is_named = "marker" in style
        lines.append(Line(name, style, np.array(sizes), shares[name], in_legend=is_named))
    ticks = dict(zip(sizes, sizes))
    ylabel = "share of a class / its share of all examples"
    return Chart(lines, f"{rule} examples", "examples in the subset", ylabel, ticks)


def class_shares(rows: list[dict]) -> dict[str, np.ndarray]:
    """Return {class: [sizes]}: its share of each subset divided by its share of all examples.

    The rows are those of one selection rule.
    """
    rows_by_class = group_by(rows, itemgetter("class"))
    total = sum(int(class_rows[0]["training_examples"]) for class_rows in rows_by_class.values())
    shares = {}
    for name, class_rows in rows_by_class.items():
        class_rows.sort(key=lambda row: int(row["size"]))
        share_of_all = numbers(class_rows, "training_examples") / total
        share_of_subset = numbers(class_rows, "count") / numbers(class_rows, "size")
        shares[name] = share_of_subset / share_of_all
    return shares


def class_styles(shares: dict[str, np.ndarray]) -> dict[str, dict]:
    """Return how to draw the line of each class, the class of the largest mean share first.

    Of more than twelve classes, only the first six and the last six have a colour and a marker. The
    legend leaves out the others.
    """
    ordered = sorted(shares, key=lambda name: -shares[name].mean())
    named = ordered
    if len(ordered) > 12:
        named = ordered[:6] + ordered[-6:]
    styles = {name: dict(color="#cccccc", linewidth=0.7) for name in ordered}
    colors = import_matplotlib().colormaps["turbo"](np.linspace(0.05, 0.95, len(named)))
    for name, color in zip(named, colors):
        styles[name] = dict(color=color, marker=".")
    return styles


# ------------------------------------------------------------ command line


FROM_OTHER_TABLES = ("masks", "barrier", "scores")  # These figures need no summary.csv.


def draw_from_summary(figure: str, table: Path, rows: list[dict]) -> list[Path]:
    """Draw a figure for every experiment that has it in summary.csv, and return the paths."""
    with common.reading(table):
        figure_rows = [row for row in rows if row["picture"] == figure]
        experiments = {}
        for name, experiment_rows in group_by(figure_rows, itemgetter("experiment")).items():
            experiments[name] = read_panels(experiment_rows)
    paths = []
    for name, panels in experiments.items():
        path = table.parent / (name + file_suffix(figure))
        paths += draw_figure(figure, panels, path)
    return paths


def draw_from_connectivity(figure: str, table: Path, rows: list[dict]) -> list[Path]:
    """Draw the figure masks or barrier for every experiment, and return the paths.

    table is summary.csv and rows are its rows, from which the names of runs are taken.
    """
    with common.reading(table):
        labels = read_run_labels(table.parent, rows)
    paths = []
    for experiment, pairs in read_pairs(table.parent, labels).items():
        path = table.parent / (experiment + file_suffix(figure))
        if figure == "masks":
            paths += draw_masks(pairs, path)
        else:
            paths += draw_barrier(pairs, path)
    return paths


def file_suffix(figure: str) -> str:
    """Return what follows the experiment in the name of a file, such as "-figure2"."""
    if figure == "all":
        return ""
    if figure.isdigit():  # It has a number in the paper.
        return f"-figure{figure}"
    return f"-{figure}"


def draw(figure: str, table: Path, rows: list[dict]) -> list[Path]:
    """Draw a figure of any kind and return the paths; table is summary.csv with these rows."""
    if figure == "scores":
        return draw_scores(table.with_name("classes.csv"))
    if figure in FROM_OTHER_TABLES:
        return draw_from_connectivity(figure, table, rows)
    return draw_from_summary(figure, table, rows)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = common.Parser(__doc__)
    parser.add_argument(
        "folder",
        type=Path,
        metavar="DIR",
        help="This folder holds the tables and receives the figures.",
    )
    parser.add_argument(
        "--figure",
        nargs="+",
        choices=[*"234567", "difference", "controls", *FROM_OTHER_TABLES],
        metavar="F",
        help="Draw only these: 2 to 7 of the paper, difference, controls, masks, barrier, scores. "
        "The default is every figure of summary.csv.",
    )
    return parser.parse_args(argv)


def read_summary(table: Path, figures: list[str] | None) -> list[dict]:
    """Return the rows of summary.csv, which may be missing if none of these figures is from it."""
    needs_summary = not figures or not set(figures) <= set(FROM_OTHER_TABLES)
    if table.exists():
        return read_table(table)
    if needs_summary:
        raise InputError(f"{table}: No such file; verdicts.py writes it")
    return []


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    table = args.folder / "summary.csv"
    rows = read_summary(table, args.figure)
    with common.reading(table):
        figures = args.figure or [row["picture"] for row in rows]
    paths = []
    for figure in dict.fromkeys(figures):  # Each is drawn once, however often a row names it.
        new_paths = draw(figure, table, rows)
        if not new_paths:
            print(f"note: the tables in {args.folder} have nothing for figure {figure}")
        paths += new_paths
    if not paths:
        raise InputError(f"{args.folder}: nothing to draw; see verdicts.py and connectivity.py")
    print("", *paths, sep="\n")


if __name__ == "__main__":
    sys.exit(common.cli(main))
