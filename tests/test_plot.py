"""Figures and tables: what is drawn is what is in the files."""

import csv
import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
import safetensors.numpy

import plot


def fake_run(root, scheme, size, step, seed, accuracy, noise=0.0, rate=0.4, **settings):
    """A run folder as imp.py leaves it, with a level file whose metadata are complete."""
    subset = None if size is None else f"{scheme}{seed if scheme == 'random' else ''}"
    folder = root / f"{scheme}-{size}-t{step}-{noise}-{rate}" / f"seed{seed}"
    folder.mkdir(parents=True)
    recipe = {"preset": "cifar10", "dataset": "cifar10", "depth": 20, "lr": 0.1, "scheme": scheme,
              "subset_size": size, "rewind_step": step, "seed": seed, "label_noise": noise,
              "noise_seed": 0, "pretrain_lr": rate,
              "class_balanced": None, "subset_sha256": subset}  # fmt: skip
    info = {"recipe": recipe, "prune_fraction": 0.2, "order_seed": None}
    for key, value in settings.items():
        (info if key in info else recipe)[key] = value
    safetensors.numpy.save_file({}, folder / "level00.safetensors", {"json": json.dumps(info)})
    with open(folder / "results.csv", "w") as f:
        f.write("level,weights_remaining,test_accuracy\n")
        f.writelines(f"{n},{0.8**n},{a}\n" for n, a in enumerate(accuracy))


@pytest.fixture
def root(tmp_path):
    draw = np.random.default_rng(0)
    for seed in range(3):
        for scheme, size, step in (("all", None, 0), ("all", None, 2), ("all", None, 4), ("random", 64, 2),
                                   ("easy", 64, 2), ("hard", 64, 2)):  # fmt: skip
            fake_run(tmp_path / "runs", scheme, size, step, seed, draw.uniform(0.7, 0.9, 6))
    return tmp_path / "runs"


def accuracies(root, pattern):
    rows = [list(csv.DictReader(path.read_text().splitlines())) for path in sorted(root.glob(pattern))]
    return 100 * np.array([[float(row["test_accuracy"]) for row in run] for run in rows])


def test_numbers_drawn_equal_the_numbers_in_the_files(root):
    (curves,) = plot.read_runs(root).values()
    ((title, mine),) = plot.panels(curves)
    assert title == "64 examples"
    _, ax = plt.subplots()
    plot.draw_panel(ax, title, mine)
    lines = {line.get_label(): line for line in ax.get_lines()}
    expected = {
        "all data, 4 steps (n=3)": ("all-None-t4*/*/results.csv", "#0072b2", "--"),
        "all data, 2 steps (n=3)": ("all-None-t2*/*/results.csv", "#e8820e", "--"),
        "no pre-training (n=3)": ("all-None-t0*/*/results.csv", "#d9c000", "--"),
        "random 64, 2 steps (n=3)": ("random*/*/results.csv", "#009e73", "-"),
        "easy 64, 2 steps (n=3)": ("easy*/*/results.csv", "#c8102e", "-"),
        "hard 64, 2 steps (n=3)": ("hard*/*/results.csv", "#e377c2", "-"),
    }
    assert set(lines) == {*expected, "dense"}
    for label, (pattern, color, style) in expected.items():
        line = lines[label]
        np.testing.assert_allclose(line.get_ydata(), accuracies(root, pattern).mean(0))
        np.testing.assert_allclose(line.get_xdata(), 100 * 0.8 ** np.arange(6))
        assert (line.get_color(), line.get_linestyle()) == (color, style)
    dense = accuracies(root, "all-None-t4*/*/results.csv")[:, 0].mean()
    np.testing.assert_allclose(lines["dense"].get_ydata(), dense)
    bands = [c.get_paths()[0].vertices[:, 1] for c in ax.collections]
    values = accuracies(root, "all-None-t4*/*/results.csv")
    low, high = values.mean(0) - values.std(0, ddof=1), values.mean(0) + values.std(0, ddof=1)
    assert any(np.isclose(v.min(), low.min()) and np.isclose(v.max(), high.max()) for v in bands)
    assert ax.get_xscale() == "log"
    assert ax.get_xlim()[0] > ax.get_xlim()[1]  # from dense to sparse
    plt.close("all")


def test_command_writes_pictures_and_a_summary(root, tmp_path, capsys):
    plot.main([str(root), "--out", str(tmp_path / "figures")])
    out = capsys.readouterr().out
    assert (tmp_path / "figures" / "cifar10.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "figures" / "cifar10.pdf").read_bytes()[:4] == b"%PDF"
    summary = list(csv.DictReader((tmp_path / "figures" / "summary.csv").read_text().splitlines()))
    assert len(summary) == 6 * 6
    easy = accuracies(root, "easy*/*/results.csv")
    row = next(r for r in summary if (r["scheme"], r["level"]) == ("easy", "3"))
    assert float(row["mean"]) == pytest.approx(easy[:, 3].mean() / 100)
    assert float(row["std"]) == pytest.approx(easy[:, 3].std(ddof=1) / 100)
    overall = easy[:, 1:].mean(1)
    assert f"{overall.mean():.2f} ± {overall.std(ddof=1):.2f}" in out
    assert f"{easy[:, 3].mean():.2f} ± {easy[:, 3].std(ddof=1):.2f}" in out


def test_partial_results_are_named(tmp_path, capsys):
    fake_run(tmp_path / "runs", "all", None, 0, 0, [0.9, 0.8, 0.7])
    fake_run(tmp_path / "runs", "all", None, 0, 1, [0.8])
    fake_run(tmp_path / "runs", "all", None, 4, 0, [0.5, 0.4])
    plot.main([str(tmp_path / "runs"), "--out", str(tmp_path / "figures")])
    out = capsys.readouterr().out
    assert "note: no pre-training: 1 of 2 runs have not reached every level" in out
    assert "note: all data, 4 steps: 1 of 1 runs" in out
    (curves,) = plot.read_runs(tmp_path / "runs").values()
    init = next(c for c in curves if c.scheme == "init")
    np.testing.assert_allclose(init.mean(), [85, 80, 70])
    np.testing.assert_allclose(init.deviation()[0], np.std([90, 80], ddof=1))
    assert np.isnan(init.deviation()[1:]).all()


def test_no_pretraining_is_one_curve_and_noise_has_panels_of_its_own(tmp_path):
    for noise in (0.0, 0.5):
        fake_run(tmp_path, "all", None, 4, 0, [0.9, 0.8], noise)
        fake_run(tmp_path, "easy", 32, 2, 0, [0.9, 0.8], noise)
    fake_run(tmp_path, "all", None, 0, 0, [0.9, 0.8])
    fake_run(tmp_path, "easy", 32, 0, 1, [0.7, 0.6], 0.5)
    (curves,) = plot.read_runs(tmp_path).values()
    found = plot.panels(curves)
    assert [title for title, _ in found] == ["32 examples", "32 examples, 50% random labels"]
    for (_, mine), noise in zip(found, (0.0, 0.5)):
        assert sorted(c.scheme for c in mine) == ["all", "easy", "init"]
        assert {c.noise for c in mine if c.scheme != "init"} == {noise}
        assert len(next(c for c in mine if c.scheme == "init").accuracy) == 2


def test_runs_of_other_hyperparameters_or_orders_are_not_mixed(tmp_path, capsys):
    fake_run(tmp_path / "a", "all", None, 4, 0, [0.9])
    fake_run(tmp_path / "b", "all", None, 4, 0, [0.8], order_seed=3)
    fake_run(tmp_path / "c", "all", None, 4, 1, [0.7], prune_fraction=0.5)
    experiments = plot.read_runs(tmp_path)
    assert [len(curves[0].accuracy) for curves in experiments.values()] == [1, 1]
    assert "batch order of its own" in capsys.readouterr().out


def test_the_search_for_t_star_has_a_panel_for_each_rate(tmp_path):
    for rate in (0.1, 0.4):
        for step in (100, 200, 400):
            fake_run(tmp_path, "all", None, step, 0, [0.9, 0.8], rate=rate)
    fake_run(tmp_path, "all", None, 0, 0, [0.9, 0.8])
    (curves,) = plot.read_runs(tmp_path).values()
    assert [(title, len(mine)) for title, mine in plot.panels(curves)] == [
        ("all data, pre-training rate 0.1", 4),
        ("all data, pre-training rate 0.4", 4),
    ]


def test_bad_results_are_one_line(tmp_path):
    with pytest.raises(plot.InputError, match=r"no results\.csv below"):
        plot.read_runs(tmp_path)
    (tmp_path / "results.csv").write_text("level,weights_remaining,test_accuracy\n0,1,0.5\n")
    with pytest.raises(plot.InputError, match="no level file beside it"):
        plot.read_runs(tmp_path)
    fake_run(tmp_path / "x", "all", None, 4, 0, [0.9])
    (tmp_path / "results.csv").unlink()
    path = next((tmp_path / "x").rglob("results.csv"))
    path.write_text("level,weights_remaining,test_accuracy\n0,1,many\n")
    with pytest.raises(plot.InputError, match="not readable"):
        plot.read_runs(tmp_path)


def test_a_copy_of_a_run_and_other_scores_do_not_count_as_replicates(tmp_path, capsys):
    fake_run(tmp_path / "a", "easy", 32, 2, 0, [0.9, 0.8])
    fake_run(tmp_path / "copy", "easy", 32, 2, 0, [0.9, 0.8])
    fake_run(tmp_path / "b", "easy", 32, 2, 1, [0.7, 0.6])
    fake_run(tmp_path / "other", "easy", 32, 2, 2, [0.1, 0.1], subset_sha256="other scores")
    fake_run(tmp_path / "balanced", "easy", 32, 2, 3, [0.2, 0.2], class_balanced=True)
    (curves,) = plot.read_runs(tmp_path).values()
    assert [(c.name(), len(c.accuracy)) for c in curves] == [
        ("easy 32, 2 steps", 2),
        ("easy 32, 2 steps (2)", 1),
        ("easy 32, 2 steps (3)", 1),
    ]
    np.testing.assert_allclose(curves[0].mean(), [80, 70])
    assert "repeats seed 0" in capsys.readouterr().out


def test_odd_recipes_are_one_line(tmp_path):
    fake_run(tmp_path / "a", "weird", 32, 2, 0, [0.9])
    with pytest.raises(plot.InputError, match="unknown scheme weird"):
        plot.read_runs(tmp_path / "a")
    fake_run(tmp_path / "b", "easy", 32, 2, 0, [0.9], noise_seed=[1])
    with pytest.raises(plot.InputError, match="not readable"):
        plot.read_runs(tmp_path / "b")


def test_numbers_that_are_not_finite_are_refused_and_names_make_no_paths(tmp_path):
    fake_run(tmp_path, "easy", 32, 2, 0, [float("nan")], preset="../../evil")
    with pytest.raises(plot.InputError, match="not finite"):
        plot.read_runs(tmp_path)
    path = next(tmp_path.rglob("results.csv"))
    path.write_text(path.read_text().replace("nan", "0.5"))
    assert list(plot.read_runs(tmp_path)) == ["______evil-cifar10"]
