"""Figures show what is in the files."""

import json
import math
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import scipy.stats
from conftest import PAPER, ROOT, accuracies, comparisons, fake_runs, read_csv, table_rows

import common


def lines_of(ax):
    return {line.get_label(): line for line in ax.get_lines()}


def test_what_is_drawn_printed_and_written_is_what_is_in_the_files(draw, tmp_path, pages):
    random, runs, x = np.random.default_rng(0), tmp_path / "runs", 0.8 ** np.arange(7)
    expected = {
        "all data, 4 steps": ("all 4", "#0072b2", "."),
        "all data, 2 steps": ("all 2", "#e8820e", "."),
        "no pre-training": ("all 0", "#d9b800", "."),
        "random 64, 2 steps": ("random 64 2", "#009e73", "o"),
        "easy 64, 2 steps": ("easy 64 2", "#b2182b", "^"),
        "hard 64, 2 steps": ("hard 64 2", "#f07fc0", "x"),
    }
    for name, *_ in expected.values():
        fake_runs(runs, name, *random.uniform(0.7, 0.9, (3, 7)))
    printed = draw(runs, "--out", tmp_path)
    easy, top = accuracies(runs, "easy 64 2"), accuracies(runs, "all 4")

    (ax,) = pages[0].axes
    lines = lines_of(ax)
    assert set(lines) == {*(f"{name} (n=3)" for name in expected), "dense"}
    for label, (name, *look) in expected.items():
        line = lines[f"{label} (n=3)"]
        np.testing.assert_allclose(
            line.get_xydata(), np.c_[100 * x, accuracies(runs, name).mean(0)]
        )
        assert [line.get_color(), line.get_marker()] == look
    np.testing.assert_allclose(lines["dense"].get_ydata(), top[:, 0].mean())
    bands = [c.get_paths()[0].vertices[:, 1] for c in ax.collections if c.get_paths()]
    low, high = top.mean(0) - top.std(0, ddof=1), top.mean(0) + top.std(0, ddof=1)
    assert any(np.isclose(v.min(), low.min()) and np.isclose(v.max(), high.max()) for v in bands)
    assert (ax.get_xscale(), "64 examples" in ax.get_title()) == ("log", True)
    assert ax.get_xlim()[0] > ax.get_xlim()[1]  # It runs from dense to sparse.
    means = np.concatenate([line.get_ydata() for line in lines.values()])
    room = 0.05 * np.ptp(means)  # The range follows the means, not the widest band.
    np.testing.assert_allclose(ax.get_ylim(), (means.min() - room, means.max() + room))

    assert (tmp_path / "summary.md").read_text().strip() in printed
    assert "No run on all data" not in printed
    summary = read_csv(tmp_path / "summary.csv")
    row = next(r for r in summary if (r["scheme"], r["level"]) == ("easy", "3"))
    assert (len(summary), row["source"], row["curve"]) == (6 * 7, "runs", "easy 64, 2 steps")
    numbers = [float(row[key]) for key in ("replicates", "mean", "std", "weights_remaining")]
    np.testing.assert_allclose(
        numbers, [3, easy[:, 3].mean() / 100, easy[:, 3].std(ddof=1) / 100, x[3]]
    )
    for values in (easy[:, 3], easy[:, 6], easy[:, 1:].mean(1)):
        assert f"{values.mean():.2f} ± {values.std(ddof=1):.2f}" in printed
    # Each of 15 pairs has rows for all levels, for the sparsest third, and for each of 6 levels.
    assert len(read_csv(tmp_path / "verdicts.csv")) == 15 * (1 + 1 + 6)
    compared = comparisons(tmp_path, "easy 64, 2 steps", "all data, 4 steps")
    assert {*compared} == {(1, 6), (5, 6), *((n, n) for n in range(1, 7))}
    for (first, last), row in compared.items():
        differences = (easy - top)[:, first : last + 1].mean(1)
        interval = scipy.stats.ttest_1samp(differences, 0).confidence_interval()
        numbers = [float(row[key]) for key in ("difference", "low", "high")]
        np.testing.assert_allclose(numbers, [differences.mean(), *interval], rtol=1e-6)
    # The table has every third level and the deepest.
    ((_, *cells),) = table_rows(printed, "", "100.0%")
    assert cells == ["100.0%", "51.2%", "26.2%", "mean from level 1"]


@pytest.mark.parametrize("preset", ["cifar10", "cifar100", "cinic10"])
def test_every_figure_and_interval_of_the_paper_from_its_own_curves(draw, preset, tmp_path):
    """Deviations scaled from ddof 0 and taken as fully correlated over levels; Welch's interval."""
    figures = {"cifar10": "23457", "cifar100": "245", "cinic10": "246"}[preset]
    draw("--paper", PAPER, "--preset", preset, "--figure", *"234567", "--out", tmp_path)
    pictures = [f"{preset}-published-figure{n}.{kind}" for n in figures for kind in ("png", "pdf")]
    files = {path.name: path.read_bytes()[:4] for path in tmp_path.iterdir()}
    assert files.keys() == {*pictures, "summary.csv", "summary.md", "verdicts.csv"}
    assert [files[name] for name in pictures] == [b"\x89PNG", b"%PDF"] * len(figures)
    raw = {
        (c["scheme"], c["subset_size"], c["rewind_step"], c["label_noise"]): c
        for c in json.loads(PAPER.read_text())["curves"]
        if c["dataset"] == preset
    }
    curves = {}
    # The means and deviations are the published ones.
    for row in read_csv(tmp_path / "summary.csv"):
        scheme, size = row["scheme"].replace("init", "all"), int(row["subset_size"] or 0) or None
        c, n = (
            raw[scheme, size, int(row["rewind_step"]), float(row["label_noise"])],
            int(row["level"]),
        )
        std = c["std"][n] * math.sqrt(c["replicates"] / (c["replicates"] - 1))
        np.testing.assert_allclose(
            [float(row["mean"]), float(row["std"])], [c["mean"][n], std], atol=1e-12
        )
        assert row["source"] == "paper"
        curves[row["curve"], row["label_noise"]] = c
    rows = read_csv(tmp_path / "verdicts.csv")
    # These are the comparisons of all panels.
    assert len(rows) == {"cifar10": 2880, "cifar100": 1350, "cinic10": 1260}[preset]
    for row in rows:
        pair = [curves.get((row[x], row["label_noise"])) or curves[row[x], "0.0"] for x in "ab"]
        levels = slice(int(row["first_level"]), int(row["last_level"]) + 1)
        a, b = (100 * np.mean(c["mean"][levels]) for c in pair)
        free = [c["replicates"] - 1 for c in pair]
        squares = [np.mean(100 * np.array(c["std"][levels])) ** 2 / n for c, n in zip(pair, free)]
        df = sum(squares) ** 2 / sum(s**2 / n for s, n in zip(squares, free))
        half = scipy.stats.t.ppf(0.975, df) * math.sqrt(sum(squares))
        interval = [float(row[key]) for key in ("difference", "low", "high")]
        np.testing.assert_allclose(interval, [a - b, a - b - half, a - b + half], atol=1e-9)


@pytest.mark.parametrize(("preset", "size"), [("cifar10-small", 3200), ("digits", 128)])
def test_figures_2_and_3_of_small_presets_have_balanced_easy_beside_easy(
    draw, tmp_path, pages, preset, size
):
    t = common.PRESETS[preset]["t_star"]
    usual = {
        key: value for key, value in common.PRESETS[preset].items() if key in common.HYPERPARAMETERS
    }
    usual |= {
        "preset": preset,
        "dataset": common.PRESETS[preset]["dataset"],
        "prune_fraction": 0.488,
    }
    easy, top, low = (
        f"easy {size} {t // 2}",
        *([[0.9, a + k / 1000] for k in range(3)] for a in (0.8, 0.7)),
    )
    usual["rate"] = usual.pop("pretrain_lr")
    for usual["noise"] in (0.0, 0.5):
        for name in (f"all {t // 2}", f"all {t}"):
            fake_runs(tmp_path, name, *low, **usual)
        for balanced in (False, True):
            fake_runs(
                tmp_path / f"{balanced}", easy, *top, class_balanced=balanced, score="el2n", **usual
            )
    printed = draw(tmp_path, "--figure", 2, 3, "--out", tmp_path)
    for page in pages:
        lines = lines_of(page.axes[0])
        colors = {
            lines[f"easy {size}, {t // 2} steps{kind} (n=3)"].get_color()
            for kind in ("", ", balanced")
        }
        assert len(colors) == 2
    for text, says in zip(printed.split("50% random labels: accuracy"), ("no worse", "better")):
        rows = table_rows(text, f"easy {size}, {t // 2} steps", f"all data, {t} steps")
        # The paper has no balanced subsets, so nothing is claimed about the second one.
        assert [row[7] for row in rows] == [f"{says}: supported", ""]


def test_figure_4_is_accuracy_against_size_and_ours_are_before_the_published_curves(
    draw, tmp_path, pages
):
    random, runs = np.random.default_rng(3), tmp_path / "runs"
    for name in ("easy 3200 200", "all 400", "random 77 200", "easy 512 200"):
        fake_runs(runs, name, *random.uniform(0.7, 0.9, (2, 17)))
    fake_runs(runs / "b", "easy 512 200", *random.uniform(0.7, 0.9, (2, 17)), class_balanced=True)
    printed = draw(runs, "--figure", 5, 4, "--paper", PAPER, "--out", tmp_path)
    raw = {
        c["subset_size"]: c["mean"]
        for c in json.loads(PAPER.read_text())["curves"]
        if (c["dataset"], c["label_noise"], c["scheme"]) == ("cifar10", 0.0, "easy")
    }
    assert [ax.get_title()[:8] for ax in pages[1].axes[:2]] == ["level 8,", "level 10"]
    by_level, by_size = lines_of(pages[0].axes[2]), lines_of(pages[1].axes[1])
    for lines, wanted in ((by_level, raw[3200][:17]), (by_size, [raw[512][10], raw[3200][10]])):
        thin = [name for name in lines if name[0] == "_"]
        assert len(thin) == 2  # easy and all data; the paper has no subset of 77 random examples
        (easy,) = (name for name in thin if "easy" in name)
        np.testing.assert_allclose(lines[easy].get_ydata(), 100 * np.array(wanted))
    easy, small, top = (
        accuracies(runs, name) for name in ("easy 3200 200", "easy 512 200", "all 400")
    )
    line = by_size["easy, 200 steps (n=2)"]
    expected = [[512, small[:, 10].mean()], [3200, easy[:, 10].mean()]]
    np.testing.assert_allclose(line.get_xydata(), expected)
    np.testing.assert_allclose(by_size["all data, 400 steps (n=2)"].get_ydata(), top[:, 10].mean())
    # A curve of a single size is a point with a bar.
    assert (*by_size["easy, 200 steps, balanced (n=2)"].get_xdata(),) == (512,)
    assert {band.get_linewidth()[0] for band in pages[1].axes[1].collections} == {0, 8}
    (row,) = table_rows(printed, "easy 3200", "easy 3200, 200 steps (published)")
    expected = easy[:, 1:].mean() - 100 * np.mean(raw[3200][1:17])
    assert float(row[2]) == pytest.approx(expected, abs=0.005)


def test_tables_that_cannot_be_drawn_are_one_line(ok, refused, tmp_path):
    refused(["plot", tmp_path / "nowhere"], "nowhere")
    # There is no connectivity.csv yet.
    refused(["plot", tmp_path, "--figure", "masks"], "nothing to draw")
    path = tmp_path / "summary.csv"
    for text in ("", "a,b\n1,2\n", "experiment,picture,panel\ndigits,all,0\n"):
        path.write_text(text)
        refused(["plot", tmp_path], str(tmp_path))
    ok("verdicts", "--paper", PAPER, "--preset", "cifar100", "--figure", 2, "--out", tmp_path)
    refused(["plot", tmp_path, "--figure", 7], "nothing to draw")
    refused(["plot", tmp_path, "--figure", 9], "--figure")
    (tmp_path / "connectivity.csv").write_text("a,b\n1,2\n")
    refused(["plot", tmp_path, "--figure", "masks"], "connectivity.csv")


@pytest.mark.parametrize("stage", ["verdicts", "plot"])
def test_tables_and_help_need_neither_torch_nor_matplotlib(stage):
    heavy = "{'torch', 'matplotlib', 'scipy', 'tqdm'}"
    code = f"import sys, {stage}; print({heavy} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


def test_settings_of_matplotlib_that_a_user_has_elsewhere_change_no_picture(ok, tmp_path):
    """A shell cell of a notebook inherits the notebook's backend, which need not be installed."""
    ok("verdicts", "--paper", PAPER, "--preset", "cifar10", "--figure", 2, "--out", tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    rc = tmp_path / "matplotlibrc"
    rc.write_text("text.usetex: True\nsavefig.facecolor: red\nfont.size: 30\nimage.cmap: none\n")
    backend = "module://a_backend_that_is_not_here"
    for folder, settings in (("a", {}), ("b", {"MPLBACKEND": backend, "MATPLOTLIBRC": str(rc)})):
        command = [sys.executable, ROOT / "plot.py", tmp_path / folder]
        subprocess.run(command, env=os.environ | settings, check=True, capture_output=True)
    one, other = ((tmp_path / x / "cifar10-published-figure2.png").read_bytes() for x in "ab")
    assert one == other
