"""Tables and verdicts: their numbers are those of the files, and their words follow from them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import scipy.stats
from conftest import PAPER, comparisons, diverge, fake_runs, read_csv, table_rows

import common
import verdicts


def curve(accuracy, scheme="easy", size=64, step=2, seeds=None):
    """Return a Curve whose accuracy in % is [replicates, levels]."""
    rows = [np.array(row, float) for row in accuracy]
    settings = {"preset": "cifar10", "pretrain_lr": 0.4 if step else 0.0}
    settings |= dict(zip(common.KEY[:4], (scheme, size, step, 0.0)))
    by_seed = dict(zip(range(len(rows)) if seeds is None else seeds, rows))
    return verdicts.Curve(settings, 0.8 ** np.arange(max(map(len, rows))), by_seed)


def test_no_pretraining_is_one_curve_and_noise_and_rates_have_panels_of_their_own(tmp_path):
    for noise, rate in ((0.0, 0.4), (0.5, 0.4), (0.0, 0.1)):
        for name in ("all 4", "easy 32 2"):
            fake_runs(tmp_path, name, [0.9, 0.8], noise=noise, rate=rate)
    fake_runs(tmp_path, "all 0", [0.9, 0.8])
    fake_runs(tmp_path, "easy 32 0", [0.7, 0.6], first=1, noise=0.5)
    panels = verdicts.make_panels(verdicts.read_runs(tmp_path)["cifar10"], "cifar10")
    assert [(p.noise, p.rate) for p in panels] == [(0.0, 0.1), (0.0, 0.4), (0.5, 0.4)]
    for p in panels:
        assert [(p.role(c), len(c.accuracy)) for c in p.curves] == [
            ("t*", 1),
            ("init", 2),
            ("easy", 1),
        ]
        assert {c.noise for c in p.curves if c.scheme != "init"} == {p.noise}
        assert (f"rate {p.rate}" in p.title, "50% random labels" in p.title) == (
            True,
            p.noise == 0.5,
        )
    # In one panel, names say what the titles of the panels said.
    for merged, ending in ((panels, ", rate 0.4"), (panels[1:], "")):
        curves = verdicts.merge_panels(merged).curves
        names = [c.name for c in curves if c.scheme == "easy" and c.rate == 0.4]
        assert names == [
            f"easy 32, 2 steps{noise}{ending}" for noise in ("", ", 50% random labels")
        ]


def test_t_star_is_the_papers_where_it_was_run_and_otherwise_the_users(draw, tmp_path):
    for step in (0, 100, 200, 400, 800, 1600):  # run_all.sh cifar10 tstar
        fake_runs(tmp_path, f"all {step}", [0.9])
    # A picture without curves beside the reference is drawn all the same.
    assert "difference.png" in draw(tmp_path, "--figure", "difference", "--out", tmp_path)
    (panel,) = verdicts.make_panels(verdicts.read_runs(tmp_path)["cifar10"], "cifar10")
    roles = {c.steps: panel.role(c) for c in panel.curves}
    assert roles == {400: "t*", 200: "t*/2", 0: "init", 1600: "other", 800: "other", 100: "other"}
    for name in ("easy 3200 200", "easy 3200 300", "all 600"):
        fake_runs(tmp_path, name, [0.9])
    panels = verdicts.make_panels(verdicts.read_runs(tmp_path)["cifar10"], "cifar10")
    panel_steps = [(p.steps, p.t_star, p.claimed_size) for p in panels]
    assert panel_steps == [(200, 400, 3200), (300, 600, None), (None, 400, 3200)]
    assert [p.steps for p in verdicts.panels_of_figure("2", panels, "cifar10")] == [200]


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        *(
            ({key: value}, ["", f", {key}={value}"])
            for key, value in (
                ("criterion", "random"),
                ("depth", 32),
                ("prune_fraction", 0.5),
                ("precision", "bf16"),
                ("score", "margin"),
                ("noise_seed", 3),
            )
        ),
        ({"own": {"rule": "snip"}}, ["", ", rule=snip"]),
        ({"own": {"shuffled": True}}, ["", ", shuffled"]),
        ({"class_balanced": True}, ["", ", balanced"]),
        ({"subset_sha256": "abcdef"}, [", #abcd", ", #easy"]),
    ],
)
def test_names_say_what_departs(draw, pages, tmp_path, changed, names):
    """The baseline keeps its name whichever of the two is read first, and a row compares them."""
    for a, b in ("ab", "ba"):
        root = tmp_path / f"{a} before {b}"
        fake_runs(root / a, "easy 32 2", *([0.9, 0.8 + k / 100] for k in range(3)))
        fake_runs(root / b, "easy 32 2", *([0.9, 0.7 + k / 100] for k in range(3)), **changed)
        printed = draw(root, "--out", tmp_path)
        row, *_ = read_csv(tmp_path / "verdicts.csv")
        assert {row["a"], row["b"]} == {f"easy 32, 2 steps{name}" for name in names}
        assert abs(float(row["difference"])) == pytest.approx(10)
        assert table_rows(printed, row["a"], row["b"])
        assert "No run on all data for 4 steps" in printed
        looks = [
            (line.get_color(), line.get_linestyle(), line.get_marker())
            for line in pages[-1].axes[0].get_lines()
        ]
        assert looks[0] != looks[1]


def test_without_a_reference_every_pair_is_printed(ok, tmp_path):
    """As with all data and a subset for the same number of steps."""
    fake_runs(tmp_path, "all 10", *([0.9, 0.8 + k / 100] for k in range(3)))
    fake_runs(tmp_path, "easy 32 10", *([0.9, 0.7 + k / 100] for k in range(3)))
    printed = ok("verdicts", tmp_path, "--out", tmp_path / "figures")
    ((_, _, difference, *_, word, _),) = table_rows(printed, "easy 32, 10", "all data, 10")
    assert (difference, word) == ("-10.00", "worse")


def test_a_departure_of_all_is_a_note_and_not_the_papers_setting(ok, tmp_path):
    flags = ["--paper", PAPER, "--out", tmp_path / "figures"]
    for where, own in (("paper", {}), ("other", {"own": {"net": "cnn"}, "depth": 14})):
        for name in ("all 400", "easy 3200 200"):
            fake_runs(tmp_path / where, name, [0.9, 0.8], [0.9, 0.81], **own)
        printed, departs = ok("verdicts", tmp_path / where, *flags), where == "other"
        assert [word in printed for word in ("net cnn", "depth 14 (preset: 20)")] == [
            departs,
            departs,
        ]
        assert bool(table_rows(printed, "easy 3200", "easy 3200, 200 steps (published)")) == (
            not departs
        )
        # A setting that all curves share is in no name.
        assert "easy 3200, 200 steps, " not in printed
        # The paper's statements are about its own setting.
        assert (": supported" in printed) == (not departs)
    # Once there are two rates, neither is shared by all curves.
    for rate, is_shared in ((0.05, True), (0.4, False)):
        fake_runs(tmp_path / "rate", "easy 3200 200", [0.8, 0.7], rate=rate)
        assert (
            "pretrain_lr 0.05 (preset: 0.4)" in ok("verdicts", tmp_path / "rate", *flags)
        ) == is_shared


def test_matching_refers_to_all_data_trained_alike(ok, tmp_path):
    for where, changed in ((tmp_path, {}), (tmp_path / "hack", {"depth": 32})):
        fake_runs(where, "easy 32 2", *[[0.9, 0.8]] * 3, **changed)
    fake_runs(tmp_path, "all 4", *[[0.9, 0.8]] * 3)
    for own_reference in (False, True):
        printed = ok("verdicts", tmp_path, "--out", tmp_path)
        (row,) = table_rows(printed, "easy 32, 2 steps", "all data, 4 steps")[:1]
        assert (row[0], row[6]) == ("easy 32, 2 steps", "no worse: matching")
        assert (1, 1) in comparisons(tmp_path, "easy 32, 2 steps, depth=32", "all data, 4 steps")
        rows = table_rows(printed, "easy 32, 2 steps, depth=32", "all data, 4 steps, depth=32")
        assert [row[6] for row in rows] == ["worse: not matching"] * own_reference
        if not own_reference:
            fake_runs(tmp_path / "hack", "all 4", *[[0.9, 0.85]] * 3, depth=32)


def test_a_picture_has_one_preset_data_set_and_test_set(tmp_path):
    first, other = {"own": {"test_set_sha256": "a"}}, {"own": {"test_set_sha256": "b"}}
    changes = first, other, other | {"fingerprint": "other"}, {"preset": "../../evil"}
    for where, changed in zip("abcd", changes):
        fake_runs(tmp_path / where, "easy 32 2", [0.9], **changed)
    names = [*verdicts.read_runs(tmp_path)]
    assert [name.rpartition("-")[0] for name in names] == ["______evil", *["cifar10"] * 3]
    assert len(set(names)) == 4


def test_what_is_no_replicate_is_said_and_left_out(tmp_path, capsys):
    for where, own in (("a", {}), ("copy", {}), ("order", {"order_seed": 3})):
        fake_runs(tmp_path / where, "easy 32 2", [0.9, 0.8], own=own)
    fake_runs(tmp_path, "easy 32 2", [0.7, 0.6], first=1)
    for name, subset in (
        ("random 64 2", ["the same"] * 3),
        ("rule 32 2", "012"),
        ("random 32 2", "345"),
    ):
        for seed, sha256 in enumerate(subset):
            fake_runs(tmp_path, name, [0.9, 0.8], first=seed, subset_sha256=sha256)
    ((_, curves),) = verdicts.read_runs(tmp_path).items()
    counts = {c.name.removesuffix(", 2 steps"): len(c.accuracy) for c in curves}
    assert counts == {"easy 32": 2, "random 64": 3, "random 32": 3, "rule 32": 3}
    np.testing.assert_allclose(next(c for c in curves if c.scheme == "easy").mean, [80, 70])
    printed = capsys.readouterr().out
    for words in ("copy", "repeats seed 0"), ("order", "batch order"), ("64", "share 1"):
        assert any(all(word in line for word in words) for line in printed.splitlines()), words
    assert "random 32" not in printed


@pytest.mark.parametrize(
    ("level", "step", "where"), [(2, 17, "level 2, step 17"), (None, 3, "pre-training")]
)
def test_replicates_that_diverged_or_are_unfinished_are_named(draw, tmp_path, level, step, where):
    whole = [0.9, 0.8, 0.7]
    fake_runs(tmp_path / "runs", "all 4", *[whole] * 5)
    folder = fake_runs(tmp_path / "runs", "easy 32 2", whole, whole, whole[:1], whole[: level or 1])
    # This run has finished one level so far.
    fake_runs(tmp_path / "runs", "hard 32 2", [0.9])
    diverge(folder, level, step, seed=3)
    if level is None:
        for path in (folder / "results.csv", folder / "level00.safetensors"):
            path.unlink()
    printed = draw(tmp_path / "runs", "--figure", 5, 4, "difference", "--out", tmp_path)
    assert f"{folder} diverged" in printed
    assert table_rows(printed, "hard 32", "90.00") == [["hard 32, 2 steps", "90.00", "", "", ""]]
    (row,) = table_rows(printed, "easy 32", "all data, 4 steps")
    assert (row[4], row[5]) == ("2 paired", "1-2") or row[4] == "2 and 5"
    for words in (where, "seed 3"), ("seed 2", "unfinished"):
        assert all(word in row[-1] for word in words)
    rows = comparisons(tmp_path, "easy 32, 2 steps", "all data, 4 steps")
    assert where in rows[1, 2]["without"]
    assert "diverged" in rows[2, 2]["without"]
    # The replicate that diverged in level 2 has finished level 1.
    assert ("seed 3" in rows[1, 1]["without"]) == (level is None)


def test_a_new_start_under_masks_is_the_replicate_that_made_them_also_where_it_diverged(tmp_path):
    fake_runs(tmp_path, "all 4", *[[0.9, 0.8]] * 3)
    # Neither the seed of the start nor its distance from that of the masks means anything.
    for seed in (5, 6, 1005):
        masks = {"setting": "all-t4", "seed": seed, "same_start": False}
        where = tmp_path / f"c{seed}"
        under = fake_runs(where, "all 0", [0.9, 0.7], first=1000 + seed, own={"masks": masks})
    diverge(under, 1, 7, seed=1003, masks=masks | {"seed": 3})
    (control,) = (c for c in verdicts.read_runs(tmp_path)["cifar10"] if c.masks)
    assert ({*control.accuracy}, [*control.diverged]) == ({5, 6, 1005}, [3])


def test_runs_behind_links_are_found_and_each_real_folder_counts_once(tmp_path, capfd):
    elsewhere, root = tmp_path / "another disk", tmp_path / "runs"
    fake_runs(elsewhere, "all 4", *[[0.9, 0.8]] * 3)
    fake_runs(root, "easy 32 2", *[[0.9, 0.8]] * 2)
    (root / "all-t4").symlink_to(elsewhere / "all 4-0.0-0.4")
    (root / "again").symlink_to(elsewhere)
    (root / "round").symlink_to(root)  # This link leads to the folder it is in.
    (root / "nowhere").symlink_to(tmp_path / "gone")
    curves = {c.name: [*c.accuracy] for c in verdicts.read_runs(root)["cifar10"]}
    assert curves == {"all data, 4 steps": [0, 1, 2], "easy 32, 2 steps": [0, 1]}
    assert "repeats seed" not in capfd.readouterr().out


def test_labels_of_ones_own_are_a_panel_of_their_own_and_in_names(tmp_path):
    fake_runs(tmp_path / "a", "all 4", *[[0.9, 0.8]] * 3)
    fake_runs(tmp_path / "a", "all 0", *[[0.9, 0.6]] * 3)
    for name in ("all 4", "easy 32 2"):
        fake_runs(tmp_path / "b", name, *[[0.9, 0.7]] * 3, labels_sha256="abcd" * 16)
    curves = verdicts.read_runs(tmp_path)["cifar10"]
    panels = verdicts.make_panels(curves, "cifar10")
    titles = {p.title: {c.name for c in p.curves} for p in panels}
    assert titles == {
        "2 steps, labels #abcd": {
            "all data, 4 steps, #abcd",
            "easy 32, 2 steps",
            "no pre-training",
        },
        "pre-training rate 0.4": {"all data, 4 steps", "no pre-training"},
    }
    (panel,) = (p for p in panels if p.labels)
    easy = next(c for c in panel.curves if c.scheme == "easy")
    assert panel.reference(easy).name == "all data, 4 steps, #abcd"
    for figure in "235":
        assert panel in verdicts.panels_of_figure(figure, panels, "cifar10")
    assert common.start_name(easy.settings).endswith("-labelsabcd")


def test_pairs_need_three_seeds_or_all_of_an_arm_and_others_have_scipys_interval_of_welch():
    for seeds, replicates in (
        ([0, 1, 2], "3 paired"),
        ([0, 1, 2, 9], "3 paired"),
        ([0, 1, 9, 10], "4 and 4"),
        ([0], "1 paired"),
        ([0, 1], "2 paired"),
        ([0, 1, 9], "4 and 3"),
        ([0, 9], "4 and 2"),
        ([9], "4 and 1"),
    ):
        comparison = verdicts.compare(
            curve(np.ones((4, 6))), curve(np.ones((len(seeds), 6)), seeds=seeds)
        )
        assert (comparison.replicates, np.isnan(comparison.low)) == (
            replicates,
            replicates in ("1 paired", "4 and 1"),
        )
    a, b = np.random.default_rng(0).normal(90, 1, (2, 4, 6))
    ours = verdicts.compare(curve(a), curve(b[:3], seeds=[7, 8, 9]), 2, 4)
    theirs = scipy.stats.ttest_ind(a[:, 2:5].mean(1), b[:3, 2:5].mean(1), equal_var=False)
    np.testing.assert_allclose((ours.low, ours.high), theirs.confidence_interval())
    assert (ours.first, ours.last, ours.replicates) == (2, 4, "4 and 3")
    ours = verdicts.compare(curve(a), curve(b[:3, :4]))  # Levels 1 to 3 are those that both have.
    assert (ours.last, ours.replicates, ours.without) == (3, "3 paired", "")
    # B has level 0 alone, which is not pruned.
    assert np.isnan(verdicts.compare(curve(a), curve(b[:, :1])).difference)


# Each row is a claim of the paper, the share of random labels, and the roles of A and B.
CLAIMS = [
    ("no worse", 0.0, "easy", "t*"),
    ("worse", 0.0, "hard", "random"),
    ("better", 0.1, "easy", "t*"),
    ("no better", 0.5, "random", "init"),
]


@pytest.mark.parametrize(
    ("gaps", "word", "needed", "statements"),
    [
        ([1.0, 1.2, 0.8], "better", 0, "supported contradicted supported contradicted"),
        ([-1.0, -1.2, -0.8], "worse", 1.497, "contradicted supported contradicted supported"),
        # This is a clear tie.
        ([0.01, -0.02, 0.01], "no worse", 0.043, "supported undecided undecided supported"),
        ([0.0, 0.0, 0.0], "no worse", 0.0, "supported undecided undecided supported"),
        # This is a loss beyond doubt that is smaller than the margin.
        (
            [-0.24, -0.25, -0.23],
            "worse within margin",
            0.265,
            "supported supported contradicted supported",
        ),
        ([2.0, -2.0, 1.0], "undecided", 4.838, "undecided undecided undecided undecided"),
        # One replicate decides nothing, however good it is.
        ([3.0], "undecided", np.nan, "undecided undecided undecided undecided"),
    ],
)
def test_verdicts_and_what_they_mean_for_a_statement(gaps, word, needed, statements):
    base, keys = np.linspace(80, 90, 5), {"t*": ("all", None, 4), "init": ("init", None, 0)}
    for (claim, noise, *roles), support in zip(CLAIMS, statements.split()):
        a, b = (
            curve([base + gap for gap in arm], *keys.get(role, (role, 64)))
            for arm, role in zip((gaps, [0] * len(gaps)), roles)
        )
        panel = verdicts.Panel(noise, "", 0.4, 2, 4, [b, a], "", 64)
        (whole,) = verdicts.compare_pairs(panel, 1, None)
        assert verdicts.the_paper_says(panel, whole, 0.5) == f"{claim}: {support}"
        for size in (None, 32):  # The paper says nothing about other steps and other sizes.
            assert verdicts.the_paper_says(replace(panel, claimed_size=size), whole, 0.5) == ""
    assert whole.difference == pytest.approx(np.mean(gaps))
    assert verdicts.verdict(whole, 0.5) == word
    assert verdicts.margin_needed(whole) == pytest.approx(needed, abs=1e-3, nan_ok=True)
    if word == "undecided" and needed > 0:  # 'no worse' begins there.
        assert verdicts.verdict(whole, needed - 0.01) == "undecided"
        assert verdicts.verdict(whole, needed + 0.01) == "no worse"


@pytest.mark.parametrize(
    ("early", "late", "scatter", "text", "dominates"),
    [
        # The mean hides the loss at the sparsest levels.
        (1.0, -3.0, 0, "better|worse at levels 11-15|worse at 5.5% 4.4% 3.5%", False),
        (1.0, 0.0, 0, "better", True),
        (1.0, 0.0, 1, "better|undecided at levels 11-15", None),
        (0.2, -0.8, 0, "no worse|worse at 5.5% 4.4% 3.5%", True),
    ],
)
def test_weak_dominance_needs_the_sparsest_third(early, late, scatter, text, dominates):
    each = np.array([[-1.0], [0.0], [1.0]])
    gap = np.hstack([np.tile(early + 0.01 * each, 13), np.tile(late + (scatter + 0.01) * each, 3)])
    a, b = curve(90 + gap), curve(90 + 0 * gap, "all", None, 4)
    panel = verdicts.Panel(0.0, "", 0.4, 2, 4, [b, a], "", None)
    (d,) = verdicts.compare_pairs(panel, 1, None)
    assert verdicts.full_verdict(d, 0.5) == (
        text.replace("|", ", but ", 1).replace("|", " and "),
        dominates,
    )
    table = verdicts.verdict_table("x", panel, [d], 0.5)
    assert (": matching" in table, ": not matching" in table) == (
        dominates is True,
        dominates is False,
    )
    assert verdicts.margin_needed(d) == pytest.approx(
        max(0, -d.low, -verdicts.compare(a, b, 11, 15).low)
    )


def test_the_best_of_several_sizes_is_marked_with_the_number_of_sizes():
    """A second curve of a size, here one whose subsets are another rule's, is no further size."""
    top = curve([[90.0] * 5] * 3, "all", None, 4)
    subsets = [
        curve([[90 + gain] * 5] * 3, "easy", size)
        for gain, size in ((0.1, 32), (0.3, 64), (0.2, 64))
    ]
    for members, mark in ((subsets, " (best of 2 sizes on these results)"), (subsets[1:], "")):
        panel = verdicts.Panel(0.0, "", 0.4, 2, 4, [top, *members], "", None)
        compared = verdicts.compare_pairs(panel, 1, None)
        for whole in compared:
            is_best = whole.b is top and whole.difference == pytest.approx(0.3)
            marked = verdicts.best_of_sizes(panel, whole, compared)
            assert marked == (mark if is_best else "")


@pytest.mark.parametrize("replicates", [3, 4, 8])
def test_without_a_difference_better_and_worse_are_rare(replicates):
    """Each is at most 3.5% of verdicts (nominal: 2.5%), however much the levels move together."""
    random, times, counts = np.random.default_rng(replicates), 2000, {}
    for shared in (0.0, 0.9):
        rows = np.sqrt(1 - shared) * random.normal(size=(2 * times, replicates, 9))
        rows += np.sqrt(shared) * random.normal(size=(2 * times, replicates, 1))
        for kind in ("paired", "unpaired", "published"):
            words = []
            for a, b in rows.reshape(times, 2, replicates, 9):
                # Of published curves only the mean and the deviation of each level are known.
                if kind == "published":
                    z = (np.arange(replicates) - (replicates - 1) / 2)[:, None]
                    a, b = (x.mean(0) + x.std(0) * z / z.std() for x in (a, b))
                seeds = range(100, 100 + replicates) if kind != "paired" else None
                words.append(
                    verdicts.verdict(verdicts.compare(curve(a), curve(b, seeds=seeds)), 0.5)
                )
            counts[shared, kind] = words.count("better") / times, words.count("worse") / times
    assert max(max(pair) for pair in counts.values()) <= 0.035, counts
    # An interval that is never wrong would be too wide.
    assert min(counts[0.0, "paired"]) > 0.015


def test_verdicts_and_statements_of_the_paper(ok, tmp_path):
    """Compare the published curves of CIFAR-10 with each other and with what the paper says."""
    flags = ["--paper", PAPER, "--preset", "cifar10", "--out", tmp_path, "--figure"]
    sizes, top, half = ok("verdicts", *flags, 5), "all data, 400 steps", "all data, 200 steps"
    words = [
        comparisons(tmp_path, f"easy {n}, 200 steps", top)[1, 16]["verdict"].split(",")[0]
        for n in (256, 512, 1024, 2048, 3200, 6400, 12800)
    ]
    assert words == ["worse", "worse", "undecided", "worse", *["undecided"] * 3]
    # The paper draws these runs twice, and runs are not compared with themselves.
    same = "random 25600, 200 steps"
    assert [(1, 16) in comparisons(tmp_path, same, other) for other in (top, half)] == [True, False]
    best = [row[0] for row in table_rows(sizes, "") if "best of 8 sizes on these results" in row[0]]
    assert [name[:12] for name in best] == ["random 3200,", "easy 12800, ", "hard 25600, "]

    clean, _, noisy = ok("verdicts", *flags, 2, 3).split("random labels: accuracy")
    for text, a, b, is_a, claim in (
        (clean, half, top, "worse: not matching", "worse: supported"),
        (clean, "random 3200", half, "no worse", "no worse: supported"),
        (clean, "easy 3200", top, "undecided", "no worse: undecided"),
        (clean, "hard 3200", "random 3200", "worse", "worse: supported"),
        (noisy, "easy 2048", top, "better: matching", "better: supported"),
        (noisy, "no pre-training", top, "worse: not matching", "no worse: contradicted"),
    ):
        (row,) = table_rows(text, a, b)
        assert (row[6], row[7]) == (is_a, claim)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(
            ("results.csv", f"level,weights_remaining,test_accuracy\n{rows}\n")
            for rows in (
                "",
                "0,1,many",
                "0,1",
                "1,1,0.5",
                "0,1,nan",
                "0,2,0.5",
                "0,1,0.8\n1,0.8,0.8",  # The level files say something else.
            )
        ),
        *(
            (name, text)
            for name in ("level00.safetensors", "paper.json")
            for text in (
                "",
                "[]",
                "{}",
                "[" * 100000,
                '{"curves": [{}]}',
                '{"curves": 3}',
                '{"curves": [{"scheme": "easy", "dataset": "mnist"}]}',
            )
        ),
    ],
)
def test_bad_files_are_one_line(refused, tmp_path, name, text):
    path = fake_runs(tmp_path, "all 4", [0.9, 0.8]) / name
    if name.startswith("level"):
        safetensors.numpy.save_file({}, path, {"json": text})
    else:
        path.write_text(text)
    argv = ["--paper", path] if name == "paper.json" else [tmp_path]
    refused(["verdicts", *argv, "--out", tmp_path / "figures"], str(path))


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("", "folder with runs"),
        (f"--paper {PAPER} --figure 2 masks", "folder with runs"),
        ("--preset x", "--preset"),
        ("--figure 9", "--figure"),
        ("--margin -1", "--margin"),
        ("--margin nan", "--margin"),
        (f"--paper {PAPER} --levels 5 2", "--levels"),
        (f"--paper {PAPER} --preset=cifar10 --figure=2 --levels 30 40", "no level 30"),
        (f"--paper {PAPER} --preset digits", "cifar10, cifar100, cinic10"),
        (f"--paper {PAPER} --preset cifar100 --figure 3", "cifar10, cifar100, cinic10"),
        ("--paper nowhere.json", "nowhere.json"),
        (".", "results.csv"),
        ("nowhere", "nowhere"),
        (f"--paper {PAPER} --out file/figures", "file"),
    ],
)
def test_wrong_arguments_are_one_line(refused, words, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    refused(["verdicts", *words.split()], names)
