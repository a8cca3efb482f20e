"""Draw what verdicts.py and connectivity.py have written to a folder.

reads   DIR/summary.csv; for masks and barrier every connectivity.csv in DIR and its subfolders;
        for scores DIR/classes.csv of make_subset.py --classes-table
writes  DIR/*.png, *.pdf

python verdicts.py runs/cifar10 --figure 2 --paper paper_curves.json --out figures/cifar10
python plot.py figures/cifar10

Without --figure it draws every picture of summary.csv. masks shows how alike the masks of the
compared runs are, barrier how far the error rises between networks of one start, and how that goes
with the accuracy of the start. Give verdicts.py these two as --figure as well: runs are then called
and coloured as in other pictures. Runs that summary.csv does not know are called as in
connectivity.csv. scores shows how often each class is among the easiest and the hardest examples.
"""

import csv
import io
import itertools
import math
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import common
from common import InputError

LEVELS_OF_FIGURE_4 = (8, 10, 12)
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
OVERLAP = "overlap |A and B| / |A or B| of the masks (%)"
TWO_SEEDS = "two seeds of one setting"
# columns of connectivity.csv that are numbers
MEASURED = (
    "weights_remaining",
    "overlap",
    "chance",
    "error_barrier",
    "loss_barrier",
    "at_most_0",
    "at_most_0.01",
)


# ------------------------------------------------------------ tables


@dataclass(eq=False)
class Curve:
    """A line of a picture with its band: mean and deviation of something by IMP level."""

    name: str
    role: str  # in its panel: t*, t*/2, init, other, or a subset's scheme
    key: tuple  # scheme, subset size, steps, label noise, pre-training rate
    weights: np.ndarray  # [levels] left, in %
    mean: np.ndarray  # [levels]
    std: np.ndarray  # [levels]
    n: np.ndarray  # [levels] replicates
    rows: list[dict] = field(default_factory=list)  # of summary.csv
    twin: "Curve | None" = None  # drawn thin behind it: the published curve, or chance

    def __post_init__(self) -> None:
        self.scheme, size, step, *_ = self.key
        self.size = int(size) if size else None  # examples; None: all data
        self.step = int(step) if step else 0

    @property
    def label(self) -> str:
        """Its name and how many replicates it has: n=2/3 if not all have reached every level."""
        return f"{self.name} (n={'/'.join(map(str, np.unique(self.n)))})"


@dataclass
class Panel:
    title: str
    curves: list[Curve]

    def __post_init__(self) -> None:
        self.weights = max((c.weights for c in self.curves), key=len)  # of the deepest curve

    @property
    def ticks(self) -> dict:
        """{weights remaining: its label} of an axis; every third of many levels."""
        named = self.weights[:: 3 if len(self.weights) > 6 else 1]
        return {weights: f"{weights:.3g}" for weights in named}


def read_table(path: Path) -> list[dict]:
    with common.reading(path), open(path, newline="") as f:
        return list(csv.DictReader(f))


def column(rows: list[dict], name: str) -> np.ndarray:
    """A column of numbers; what is empty is NaN."""
    return np.array([float(row[name]) if row[name] else np.nan for row in rows])


def grouped(rows: list[dict], *names: str) -> dict[tuple, list[dict]]:
    """The rows by what they have in these columns, in the order in which that first comes."""
    groups = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return groups


def read_panels(rows: list[dict]) -> list[Panel]:
    """The panels of a picture, from its rows of summary.csv."""
    panels = []
    for (title,), of_panel in grouped(rows, "panel").items():
        curves = []
        for of_one in grouped(of_panel, "order").values():
            lines = [read_curve(line) for line in grouped(of_one, "source").values()]
            ours, *published = lines  # what is published stands second, or alone
            ours.twin = published[0] if published else None
            curves.append(ours)
        panels.append(Panel(title, curves))
    return panels


def read_curve(rows: list[dict]) -> Curve:
    """A curve of accuracies from its rows of summary.csv, one for each level."""
    first = rows[0]
    return Curve(
        first["curve"],
        first["role"],
        key_of(first),
        weights=100 * column(rows, "weights_remaining"),
        mean=100 * column(rows, "mean"),
        std=100 * column(rows, "std"),
        n=column(rows, "replicates").astype(int),
        rows=rows,
    )


def key_of(row: dict) -> tuple:
    return tuple(row[name] for name in common.KEY)


# ------------------------------------------------------------ page


@dataclass
class Line:
    label: str
    look: dict  # for matplotlib
    x: np.ndarray  # [points]
    y: np.ndarray  # [points]
    half: np.ndarray | float = 0  # of the band's height
    in_legend: bool = True


@dataclass
class Picture:
    lines: list[Line]
    title: str
    xlabel: str
    ylabel: str = ACCURACY
    ticks: dict | None = None  # {x: its label} of a logarithmic axis; None: a linear one


def import_matplotlib():
    """matplotlib under settings of our own, whatever a user has elsewhere."""
    # A shell cell of a notebook hands on the notebook's backend, which need not be installed here.
    os.environ["MPLBACKEND"] = "agg"
    import matplotlib.figure  # takes a second; and without pyplot, which would look for a screen

    matplotlib.rcdefaults()
    matplotlib.rcParams["text.parse_math"] = False  # a $ in a name is a $
    return matplotlib


def draw_page(
    path: Path, pictures: list[Picture], note: str, columns: int = 4, apart: bool = False
) -> list[Path]:
    """Pictures side by side, as png and pdf; unless apart, of one vertical range."""
    matplotlib = import_matplotlib()
    columns = min(columns, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    size = 4.6 * columns, (4 + 0.17 * max(len(p.lines) for p in pictures)) * rows  # inches
    page = matplotlib.figure.Figure(figsize=size, layout="constrained")
    axes = page.subplots(rows, columns, squeeze=False)
    for ax in axes.flat[len(pictures) :]:
        ax.remove()
    for ax, p in zip(axes.flat, pictures):
        for line in p.lines:
            draw_line(ax, line)
        label_axes(ax, p)
        low, high = vertical_range([p] if apart else pictures)
        ax.set_ylim(low, high)
    page.suptitle(f"{path.name}\n{note}", fontsize=11)
    paths = [path.with_name(f"{path.name}.{kind}") for kind in ("png", "pdf")]
    for target in paths:
        content = io.BytesIO()
        page.savefig(content, format=target.suffix[1:], dpi=150, bbox_inches="tight")
        common.atomic_write(target, content.getvalue())
    return paths


def draw_line(ax, line: Line) -> None:
    # matplotlib leaves what begins with _ out of the legend
    label = line.label if line.in_legend else f"_{line.label}"
    ax.plot(line.x, line.y, label=label, **{"linewidth": 1.6} | line.look)
    ax.fill_between(
        line.x,
        line.y - line.half,
        line.y + line.half,
        color=line.look["color"],
        alpha=0.15,
        linewidth=0 if len(line.x) > 1 else 8,  # of one point the band is a bar
    )


def label_axes(ax, p: Picture) -> None:
    ax.set(xlabel=p.xlabel, ylabel=p.ylabel)
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


def vertical_range(pictures: list[Picture]) -> tuple[float, float]:
    """The range of the lines and a little more; a wide band is cut."""
    heights = np.concatenate([line.y for p in pictures for line in p.lines])
    low, high = np.nanmin(heights), np.nanmax(heights)
    room = 0.05 * (high - low) or 1
    return low - room, high + room


def looks(curves: list[Curve]) -> dict[Curve, dict]:
    """How each curve of a panel looks: as its role, and further ones of it with another line."""
    colors = itertools.cycle(OTHER_COLORS)
    chosen = {}  # {key: colour} of roles that have no style
    alike = {}  # how many curves there were of a role, size and number of steps
    found = {}
    for c in curves:
        if c.role in STYLES:
            look = STYLES[c.role]
        else:
            if c.key not in chosen:
                chosen[c.key] = next(colors)
            look = OTHER_STYLE | {"color": chosen[c.key]}
        kind = c.role, c.size, c.step
        before = alike.get(kind, 0)
        if before:
            look = look | {"linestyle": OTHER_LINES[(before - 1) % len(OTHER_LINES)]}
        alike[kind] = before + 1
        found[c] = look
    return found


# ------------------------------------------------------------ accuracy


def draw_figure(figure: str, panels: list[Panel], path: Path) -> list[Path]:
    """One picture of summary.csv; returns the paths."""
    thin = "; thin: published" if any(c.twin for p in panels for c in p.curves) else ""
    note = f"band: one sample std. deviation{thin}"
    if figure == "4":
        pictures = []
        for p in panels:
            depth = len(p.weights)
            levels = [n for n in LEVELS_OF_FIGURE_4 if n < depth] or [depth - 1]
            pictures += [by_size(p, level) for level in levels]
        return draw_page(path, pictures, note, columns=3, apart=True)
    if figure == "difference":
        pictures = [differences(p) for p in panels]
        return draw_page(path, pictures, "bands: 95% intervals; grey: the margin")
    return draw_page(path, [accuracies(p) for p in panels], note)


def by_level(panel: Panel, ylabel: str) -> Picture:
    """Mean and deviation by weights remaining."""
    look_of = looks(panel.curves)
    lines = []
    for c in panel.curves:
        lines.append(Line(c.label, look_of[c], c.weights, c.mean, c.std))
        if c.twin:
            thin = look_of[c] | THIN
            lines.append(Line(c.label, thin, c.twin.weights, c.twin.mean, in_legend=False))
    return Picture(lines, panel.title, WEIGHTS, ylabel, panel.ticks)


def accuracies(panel: Panel) -> Picture:
    """Accuracy by weights remaining, and that of the dense network: level 0 of all data for t*."""
    picture = by_level(panel, ACCURACY)
    references = [c for c in panel.curves if c.role == "t*"]
    if references:
        top = references[0]
        dense = Line("dense", GREY, top.weights, top.mean[:1].repeat(len(top.mean)))
        picture.lines.insert(0, dense)
    return picture


def differences(panel: Panel) -> Picture:
    """Accuracy minus that of all data for t* steps by level, with 95% intervals."""
    look_of = looks(panel.curves)
    margin = float(panel.curves[0].rows[0]["margin"])
    nothing = np.zeros(len(panel.weights))
    lines = [Line(f"margin {margin:g}", GREY, panel.weights, nothing, margin)]
    for c in panel.curves:
        rows = [row for row in c.rows if row["difference"]]
        if rows:
            label = f"{c.name} (n={rows[0]['pairs']})"
            weights = 100 * column(rows, "weights_remaining")
            mean = column(rows, "difference")
            half = column(rows, "high") - mean
            lines.append(Line(label, look_of[c], weights, mean, half))
    ylabel = "accuracy minus that of all data for t* steps"
    return Picture(lines, panel.title, WEIGHTS, ylabel, panel.ticks)


def by_size(panel: Panel, level: int) -> Picture:
    """Accuracy against subset size at one level; all data as horizontal lines (figure 4)."""
    look_of = looks(panel.curves)
    sizes = sorted({c.size for c in panel.curves} - {None})
    ends = sizes[0] / 1.1, sizes[-1] * 1.1
    ours, published = {}, {}  # {name: curves}, of one scheme a curve for each size
    for c in panel.curves:
        name = c.name.replace(f" {c.size},", ",", 1) if c.size else c.name
        ours.setdefault(name, []).append((c, look_of[c]))
        if c.twin:
            published.setdefault(name, []).append((c.twin, look_of[c] | THIN))
    lines = []
    for name, curves in ours.items():
        lines += line_over_sizes(name, curves, level, ends)
        for line in line_over_sizes(name, published.get(name, []), level, ends):
            line.half, line.in_legend = 0, False
            lines.append(line)
    title = f"level {level}, {panel.weights[level] / 100:.1%} of weights, {panel.title}"
    ticks = {size: size for size in sizes}
    return Picture(lines, title, "examples in the subset", ticks=ticks)


def line_over_sizes(name: str, curves: list[tuple], level: int, ends: tuple) -> list[Line]:
    """The points of (curve, look) at one level, as one line; none if no curve is that deep."""
    deep = [(c, look) for c, look in curves if level < len(c.mean)]
    if not deep:
        return []
    x, mean, std = [], [], []
    for c, _ in deep:
        at = [c.size] if c.size else ends
        x += at
        mean += [c.mean[level]] * len(at)
        std += [c.std[level]] * len(at)
    n = max(c.n[level] for c, _ in deep)
    _, look = deep[0]
    return [Line(f"{name} (n={n})", look, np.array(x), np.array(mean), np.array(std))]


# ------------------------------------------------------------ pairs of runs


@dataclass(frozen=True)
class Run:
    """A run folder, called as in the other pictures."""

    experiment: str
    curve: str
    role: str
    key: tuple
    order: int = 0  # of its curve in pictures
    accuracy: float = np.nan  # in %, mean from level 1 on; NaN: unknown, or levels are missing


def read_names(folder: Path, rows: list[dict]) -> dict[Path, Run]:
    """{run folder: what summary.csv calls it}."""
    names = {}
    for row in rows:
        if row["folder"]:
            accuracy = 100 * float(row["mean"]) if row["mean"] else np.nan
            names[(folder / row["folder"]).resolve()] = Run(
                row["experiment"],
                row["curve"],
                row["role"],
                key_of(row),
                int(row["order"]),
                accuracy,
            )
    return names


def read_pairs(folder: Path, names: dict[Path, Run]) -> dict[str, list[list[dict]]]:
    """{experiment: pairs} of every connectivity.csv in a folder; a pair is its rows, by level.

    Each row has two values more, run_a and run_b.
    """
    experiments = {}
    for path in common.find_files(folder, "connectivity.csv"):
        table = read_table(path)
        with common.reading(path):
            for row in table:
                for key in MEASURED:
                    row[key] = float(row[key]) if row[key] else np.nan
            for folders, rows in grouped(table, "a", "b").items():
                places = tuple((path.parent / name).resolve() for name in folders)
                runs = call_runs(rows[0], [names.get(place) for place in places], folder)
                of_one = experiments.setdefault(runs["run_a"].experiment, {})
                # a pair counts once, however many tables have it
                of_one[places] = [row | runs for row in rows]
    return {name: [*pairs.values()] for name, pairs in experiments.items()}


def call_runs(row: dict, known: list[Run | None], folder: Path) -> dict[str, Run]:
    """run_a and run_b of a pair, of which summary.csv knows both, one or none.

    A run that it does not know is called like the other one if both are of one start, as where one
    of them has another batch order; else as in connectivity.csv.
    """
    runs = {}
    for which, run, other in (("a", *known), ("b", *reversed(known))):
        name = row[f"name_{which}"]
        if run is None and row["name_a"] == row["name_b"]:
            run = other
        if run is None:
            run = Run(folder.resolve().name, name, "", (name, "", "", "", ""))
        runs[f"run_{which}"] = run
    return runs


def curve_over_pairs(run: Run, pairs: list[list[dict]], what: str, factor: float = 1) -> Curve:
    """A column of pairs' rows as a curve: mean and deviation over the pairs, by level."""
    deepest = max(pairs, key=len)
    levels = []
    for k in range(len(deepest)):
        levels.append(factor * np.array([rows[k][what] for rows in pairs if k < len(rows)]))
    return Curve(
        run.curve,
        run.role,
        run.key,
        weights=100 * np.array([row["weights_remaining"] for row in deepest]),
        mean=np.array([values.mean() for values in levels]),
        std=np.array([values.std(ddof=1) if len(values) > 1 else np.nan for values in levels]),
        n=np.array([len(values) for values in levels]),
    )


def draw_masks(pairs: list[list[dict]], path: Path) -> list[Path]:
    """How alike the masks of two runs are, beside chance; returns the paths."""
    panels = {}  # {title: {run: pairs}}
    for rows in pairs:
        title, run = mask_panel(rows[0]), rows[0]["run_b"]
        panels.setdefault(title, {}).setdefault(run.curve, []).append(rows)
    pictures = []
    for title, of_panel in sorted(panels.items(), key=lambda item: item[0] != TWO_SEEDS):
        curves = []
        for compared in sorted(of_panel.values(), key=lambda some: some[0][0]["run_b"].order):
            run = compared[0][0]["run_b"]
            c = curve_over_pairs(run, compared, "overlap", factor=100)
            c.twin = curve_over_pairs(run, compared, "chance", factor=100)
            curves.append(c)
        pictures.append(by_level(Panel(title, curves), OVERLAP))
    return draw_page(path, pictures, "band: one sample std. deviation; thin: chance")


def mask_panel(row: dict) -> str:
    """The title of the picture that a pair belongs to."""
    one_setting = row["run_a"].curve == row["run_b"].curve
    one_seed = row["seed_a"] == row["seed_b"]
    if one_setting and one_seed:
        return "two orders of one start"
    if one_setting:
        return TWO_SEEDS
    return f"{'one seed' if one_seed else 'two seeds'}, with {row['run_a'].curve}"


def draw_barrier(pairs: list[list[dict]], path: Path) -> list[Path]:
    """How stable training from a start is: barriers between its networks of two batch orders."""
    by_curve = {}
    for rows in sorted(pairs, key=lambda rows: rows[0]["run_a"].order):
        by_curve.setdefault(rows[0]["run_a"].curve, []).append(rows)
    curves = []
    for of_curve in by_curve.values():
        curves.append(curve_over_pairs(of_curve[0][0]["run_a"], of_curve, "error_barrier"))
    title = "between networks of two batch orders"
    pictures = [by_level(Panel(title, curves), "error barrier (points)")]
    starts = [[rows[0] for rows in of_curve] for of_curve in by_curve.values()]
    accuracies = [row["run_a"].accuracy for of_curve in starts for row in of_curve]
    if not np.isnan(accuracies).all():  # else nothing but the dense networks was trained
        pictures.append(barrier_and_accuracy(curves, starts))
    return draw_page(path, pictures, "band: one sample std. deviation", apart=True)


def barrier_and_accuracy(curves: list[Curve], starts: list[list[dict]]) -> Picture:
    """Do stable starts prune better? Loss barrier and accuracy of each start, a point for each.

    starts  the rows of level 0 of every curve
    """
    from scipy.stats import spearmanr  # takes half a second

    look_of = looks(curves)
    lines, barriers, accuracies = [], [], []
    for c, rows in zip(curves, starts):
        known = [row for row in rows if not np.isnan(row["run_a"].accuracy)]
        x = np.array([row["loss_barrier"] for row in known])
        y = np.array([row["run_a"].accuracy for row in known])
        if known:
            lines.append(Line(c.name, look_of[c] | {"linestyle": ""}, x, y))
        barriers += [*x]
        accuracies += [*y]
    rho = spearmanr(barriers, accuracies).statistic if len(barriers) > 1 else np.nan
    title = f"{len(barriers)} starts, rank correlation {rho:+.2f}"
    xlabel = "loss barrier at level 0, mean (nats)"
    return Picture(lines, title, xlabel, f"{ACCURACY}, mean from level 1")


# ------------------------------------------------------------ classes of easy and hard examples


def draw_scores(table: Path) -> list[Path]:
    """How often each class is among the easiest and the hardest examples; returns the paths."""
    rows = read_table(table)
    with common.reading(table):
        sizes = sorted({int(row["size"]) for row in rows})
        shares = {rule: class_shares(of_one) for (rule,), of_one in grouped(rows, "select").items()}
    look_of = class_looks(next(iter(shares.values())))
    ticks = {size: size for size in sizes}
    pictures = []
    for rule, of_classes in shares.items():
        lines = []
        for name, look in look_of.items():
            named = "marker" in look
            lines.append(Line(name, look, np.array(sizes), of_classes[name], in_legend=named))
        ylabel = "share of a class / its share of all examples"
        title, xlabel = f"{rule} examples", "examples in the subset"
        pictures.append(Picture(lines, title, xlabel, ylabel, ticks))
    note = "1: as frequent as among all examples; 0: left out"
    return draw_page(table.with_name("classes"), pictures, note)


def class_shares(rows: list[dict]) -> dict[str, np.ndarray]:
    """{class: [sizes] its share of the subsets of one rule, over its share of all examples}."""
    shares = {}
    classes = grouped(rows, "class")
    total = sum(int(of_class[0]["training_examples"]) for of_class in classes.values())
    for (name,), of_class in classes.items():
        of_class.sort(key=lambda row: int(row["size"]))
        among_all = column(of_class, "training_examples") / total
        shares[name] = column(of_class, "count") / column(of_class, "size") / among_all
    return shares


def class_looks(shares: dict[str, np.ndarray]) -> dict[str, dict]:
    """How the line of each class looks, the most frequent class first.

    Of many classes only the six most and the six least frequent have a colour and a marker.
    """
    ordered = sorted(shares, key=lambda name: -shares[name].mean())
    named = ordered if len(ordered) <= 12 else ordered[:6] + ordered[-6:]
    colors = import_matplotlib().colormaps["turbo"](np.linspace(0.05, 0.95, len(named)))
    found = {name: dict(color="#cccccc", linewidth=0.7) for name in ordered}
    for name, color in zip(named, colors):
        found[name] = dict(color=color, marker=".")
    return found


# ------------------------------------------------------------ command line


WITHOUT_SUMMARY = ("masks", "barrier", "scores")  # pictures of other tables than summary.csv


def draw_accuracies(figure: str, table: Path, rows: list[dict]) -> list[Path]:
    """A picture of summary.csv, of every experiment; returns the paths."""
    with common.reading(table):
        of_figure = [row for row in rows if row["picture"] == figure]
        experiments = grouped(of_figure, "experiment")
        panels = {name: read_panels(some) for (name,), some in experiments.items()}
    paths = []
    for experiment, of_one in panels.items():
        paths += draw_figure(figure, of_one, table.parent / (experiment + ending(figure)))
    return paths


def draw_pairs(figure: str, table: Path, rows: list[dict]) -> list[Path]:
    """The picture masks or barrier, of every experiment; returns the paths."""
    with common.reading(table):
        names = read_names(table.parent, rows)
    paths = []
    for experiment, pairs in read_pairs(table.parent, names).items():
        path = table.parent / f"{experiment}-{figure}"
        if figure == "masks":
            paths += draw_masks(pairs, path)
            continue
        measured = [[row for row in pair if not np.isnan(row["error_barrier"])] for pair in pairs]
        measured = [pair for pair in measured if pair]
        if measured:
            paths += draw_barrier(measured, path)
    return paths


def main(argv: list[str] | None = None) -> None:
    parser = common.Parser(__doc__)
    add = parser.add_argument
    add("folder", type=Path, metavar="DIR", help="folder with the tables, and for the pictures")
    add(
        "--figure",
        nargs="+",
        choices=[*"234567", "difference", "controls", *WITHOUT_SUMMARY],
        metavar="F",
        help="2 to 7 of the paper; difference, controls, masks, barrier, scores "
        "(default: all that summary.csv has)",
    )
    args = parser.parse_args(argv)
    path = args.folder / "summary.csv"
    without = args.figure and {*args.figure} <= {*WITHOUT_SUMMARY}
    rows = [] if without and not path.exists() else read_table(path)
    paths = []
    with common.reading(path):
        figures = args.figure or [row["picture"] for row in rows]
    for figure in dict.fromkeys(figures):
        if figure == "scores":
            drawn = draw_scores(args.folder / "classes.csv")
        elif figure in ("masks", "barrier"):
            drawn = draw_pairs(figure, path, rows)
        else:
            drawn = draw_accuracies(figure, path, rows)
        if not drawn:
            print(f"note: the tables in {args.folder} have nothing for figure {figure}")
        paths += drawn
    if not paths:
        raise InputError(f"{args.folder}: nothing to draw; see verdicts.py and connectivity.py")
    print("", *paths, sep="\n")


def ending(figure: str) -> str:
    """Of the name of a picture, after that of its experiment."""
    if figure == "all":
        return ""
    return f"-figure{figure}" if figure in "234567" else f"-{figure}"


if __name__ == "__main__":
    sys.exit(common.cli(main))
