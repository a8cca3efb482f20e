"""Masks on trial: training under the masks of another run, and how that compares."""

import numpy as np
import pytest
from conftest import ALL, EASY, FRACTION, equal, level, made, part, read_csv, start

import common
import training


@pytest.fixture
def pruned(ok, tmp_path):
    """A finished run of two prunings, and a starting point of another seed at step 0."""
    ok("imp", start(ok, tmp_path / "own"), "--levels", 2)
    return tmp_path / "own", start(ok, tmp_path / "other", "--seed", 1000, "--steps", 0)


def test_training_under_the_masks_of_another_run(ok, refused, pruned, tmp_path):
    own, other = pruned
    out = tmp_path / "control"
    ok("imp", other, "--masks", own, "--levels", 2, "--out", out)
    ok("imp", other, "--levels", 0)
    assert equal(part(out, 0, "weight"), part(other.parent, 0, "weight"))  # its own dense training
    for n in range(3):
        weights, mask = part(out, n, "weight"), part(out, n, "mask")
        assert equal(mask, part(own, n, "mask"))
        assert equal(part(out, n, "next"), part(own, n, "next"))
        assert not any(weights[name][mask[name] == 0].any() for name in mask)
    # Under its own masks a run is itself, also beside another one in a group and after a stop
    # between levels.
    folders = ["--masks", own, own, "--out", tmp_path / "self", tmp_path / "more"]
    for last in (0, 2):
        ok("imp", own / "rewind.safetensors", other, *folders, "--levels", last, "--at-once", 2)
    assert all(equal(level(own, n)[0], level(tmp_path / "self", n)[0]) for n in range(3))
    assert made(tmp_path / "more") == made(out)
    assert "already done" in ok("imp", other, "--masks", own, "--levels", 1, "--out", out)
    # a run without its last level, as one that diverged, stops its own control alone
    folders = ["--masks", tmp_path / "lost", own, "--out", tmp_path / "x", tmp_path / "y"]
    refused(
        ["imp", other, other, *folders, "--levels", 2], "lost has not finished level 2", status=1
    )
    assert made(tmp_path / "y") == made(out)


def test_shuffled_masks_keep_the_count_of_every_layer_and_stay_nested(ok, pruned, tmp_path):
    own, other = pruned
    out, again = tmp_path / "shuffled", tmp_path / "again"
    for rewind, folder in ((other, out), (own / "rewind.safetensors", again)):
        ok("imp", rewind, "--masks", own, "--shuffle-masks", "--levels", 2, "--out", folder)
    for n in range(3):
        mask, following, theirs = part(out, n, "mask"), part(out, n, "next"), part(own, n, "next")
        assert all(following[name].sum() == theirs[name].sum() for name in theirs)
        assert all((following[name] <= mask[name]).all() for name in mask)
        assert not equal(following, theirs)
    # the start's seed draws the permutation
    assert not equal(part(out, 0, "next"), part(again, 0, "next"))


def test_settings_name_the_masks_and_are_compared_by_content(ok, refused, pruned, tmp_path):
    own, other = pruned
    out = ["--levels", 1, "--out", tmp_path / "control"]
    command = ["imp", other, "--masks", own, *out]
    ok(*command)
    _, info = level(tmp_path / "control", 1)
    assert (info["masks"], info["prune_fraction"], info["criterion"]) == (
        {"setting": "all-t5-lr0.3", "seed": 0, "same_start": False},
        FRACTION,
        "magnitude",
    )
    assert not {"masks", "masks_sha256", "shuffled"} & level(own, 1)[1].keys()
    refused([*command, "--shuffle-masks"], "shuffled unknown there, True now")
    refused(["imp", other, *out], "masks {", "'all-t5-lr0.3'} there, unknown now")
    for changed, word in ((1, "level01.safetensors: its next masks"), (0, "masks_sha256")):
        tensors, about = level(own, changed)
        tensors["next.conv.weight"] = 1 - tensors["next.conv.weight"]
        training.save_tensors(own / f"level0{changed}.safetensors", tensors, about)
        refused(command, word)

    easy = {
        "scheme": "easy",
        "subset_size": 32,
        "class_balanced": False,
        "label_noise": 0,
        "rewind_step": 9,
        "preset": "digits",
        "score": "el2n",
        "pretrain_lr": common.PRESETS["digits"]["pretrain_lr"],
        "noise_seed": 0,
        "labels_sha256": None,
    }
    other = {"label_noise": 0.5, "score": "x", "noise_seed": 2}
    for change, name in (
        (other, "easy-32-t9-noise50-score=x-noise_seed=2"),
        ({"rewind_step": 0}, "all-t0"),
        ({"class_balanced": True, "scheme": "random"}, "random-32-t9"),
        ({"class_balanced": True, "pretrain_lr": 0.2}, "easy-balanced-32-t9-lr0.2"),
        ({"labels_sha256": "abcd" * 16}, "easy-32-t9-labelsabcd"),
    ):
        assert common.start_name(easy | change) == name


def test_masks_that_cannot_be_used_are_one_line(ok, refused, pruned, tmp_path):
    own, other = pruned
    wide, deep = (
        start(ok, tmp_path / "wide", "--width", 3),
        start(ok, tmp_path / "deep", "--depth", 14),
    )
    ok("imp", other, "--masks", own, "--levels", 0, "--out", tmp_path / "control")
    for rewind, flags, *words in (
        (other, ["--masks", own, "--levels", 3], "own has not finished level 3"),
        (
            other,
            ["--masks", tmp_path / "nowhere", "--levels", 0],
            "nowhere has not finished level 0",
        ),
        (wide, ["--masks", own], "level00.safetensors", "conv.weight", "recipe needs"),
        (deep, ["--masks", own], "level00.safetensors", "tensor blocks.1"),
        (other, ["--masks", own, own], "--masks: 2 folders for 1"),
        (
            other,
            ["--masks", tmp_path / "control", "--levels", 0],
            "control",
            "under the masks of all-t5",
        ),
        (
            other,
            ["--masks", own, "--levels", 0, "--prune-fraction", 0.3],
            f"0.3 contradicts {FRACTION}",
        ),
        (
            other,
            ["--masks", own, "--out", own / ".." / "own", "--force"],
            "is a folder to write to",
        ),
        (other, ["--shuffle-masks"], "--shuffle-masks needs --masks"),
    ):
        refused(["imp", rewind, "--levels", 2, "--out", tmp_path / "out", *flags], *words)


def test_controls_are_paired_with_the_run_whose_masks_they_have(ok, controls):
    rows = read_csv(controls / "figures/digits/controls/verdicts.csv")
    found = {(row["a"], row["b"]): row for row in rows if row["first_level"] != row["last_level"]}
    for own, masks in ((ALL, "all-t20"), (EASY, "easy-balanced-256-t10")):
        for control in (f"no pre-training, masks={masks}", f"{own}, masks={masks}, shuffled"):
            assert found[control, own]["replicates"] == "2 paired"
    assert (f"{EASY}, masks=all-t20", ALL) in found
    reinit, own = (
        [
            float(row["test_accuracy"])
            for seed in (0, 1000)
            for row in read_csv(controls / f"runs/digits/{name}/seed{seed}/results.csv")[1:]
        ]
        for name in ("all-t20-reinit", "all-t20")
    )
    difference = found["no pre-training, masks=all-t20", ALL]["difference"]
    assert float(difference) == pytest.approx(100 * (np.mean(reinit) - np.mean(own)))
    for seed, new in ((0, 1001), (1000, 2000)):
        info = level(controls / f"runs/digits/all-t20-reinit/seed{seed}", 0)[1]
        assert info["recipe"]["seed"] == new
    ok(
        "verdicts", controls / "runs/digits", "--out", controls / "plain"
    )  # other figures go without
    assert not any("masks=" in row["curve"] for row in read_csv(controls / "plain/summary.csv"))


def test_figure_difference_draws_the_intervals_of_the_verdicts(draw, controls, pages, tmp_path):
    draw(controls / "runs/digits", "--figure", "difference", "--margin", 2, "--out", tmp_path)
    (ax,) = pages[0].axes
    rows = read_csv(tmp_path / "verdicts.csv")[-2:]  # of levels 1 and 2
    differences, low, high = (
        [float(row[key]) for row in rows] for key in ("difference", "low", "high")
    )
    _, line = ax.get_lines()  # of the margin, and of the only curve beside all data
    margin, band = (c.get_paths()[0].vertices[:, 1] for c in ax.collections)
    assert line.get_ydata() == pytest.approx(differences)
    assert {*band.round(6)} == {*np.round(low + high, 6)}
    assert [margin.min(), margin.max()] == [-2, 2]
