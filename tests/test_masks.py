"""Masks on trial: training under the masks of another run, and the figures about it."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import FRACTION, TINY_RUNS, equal, level, made, read_csv, run_all, start

import common
import plot
import training


def part(folder, n, which):
    """{name: tensor} of the weights, masks or next masks of a level."""
    return common.part(level(folder, n)[0], which)


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
        "pretrain_lr": 0.5,
        "noise_seed": 0,
    }
    other = {"label_noise": 0.5, "score": "x", "noise_seed": 2}
    for change, name in (
        (other, "easy-32-t9-noise50-score=x-noise_seed=2"),
        ({"rewind_step": 0}, "all-t0"),
        ({"class_balanced": True, "scheme": "random"}, "random-32-t9"),
        ({"class_balanced": True, "pretrain_lr": 0.2}, "easy-balanced-32-t9-lr0.2"),
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


ALL, EASY = "all data, 20 steps", "easy 256, 10 steps, balanced"  # curves, and their runs:
FOLDERS = {ALL: "all-t20", EASY: "easy-balanced-256-t10"}


@pytest.fixture(scope="module")
def controls(tmp_path_factory):
    """The folder of `run_all.sh digits controls` at a tiny scale: two seeds, two prunings."""
    where = tmp_path_factory.mktemp("controls")
    flags = "--depth 8 --width 2 --total-steps 40 --milestones 30"
    done = run_all("digits", "controls", cwd=where, **TINY_RUNS | {"SEEDS": "0 1", "FLAGS": flags})
    assert done.returncode == 0, done.stdout + done.stderr
    return where


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
            for seed in (0, 1)
            for row in read_csv(controls / f"runs/digits/{name}/seed{seed}/results.csv")[1:]
        ]
        for name in ("all-t20-reinit", "all-t20")
    )
    difference = found["no pre-training, masks=all-t20", ALL]["difference"]
    assert float(difference) == pytest.approx(100 * (np.mean(reinit) - np.mean(own)))
    assert level(controls / "runs/digits/all-t20-reinit/seed1", 0)[1]["recipe"]["seed"] == 1001
    ok("plot", controls / "runs/digits", "--out", controls / "plain")  # other figures go without
    assert not any("masks=" in row["curve"] for row in read_csv(controls / "plain/summary.csv"))


def test_figure_masks_against_numpy_and_chance_against_a_simulation(controls):
    rows = read_csv(controls / "figures/digits/controls/digits-masks.csv")
    assert len(rows) == 3 * 4  # levels; two schemes of each seed, two seeds of each scheme
    draw = np.random.default_rng(0)
    for row in rows:
        runs = [controls / f"runs/digits/{FOLDERS[row[x]]}/seed{row['seed_' + x]}" for x in "ab"]
        masks = [sorted(part(folder, int(row["level"]), "mask").items()) for folder in runs]
        layers = [[mask.flatten().numpy().astype(bool) for _, mask in of] for of in masks]
        a, b = map(np.concatenate, layers)
        assert float(row["overlap"]) == (a & b).sum() / (a | b).sum()
        both = np.mean(
            [sum((draw.permutation(x) & y).sum() for x, y in zip(*layers)) for _ in range(50)]
        )
        assert float(row["chance"]) == pytest.approx(both / (a.sum() + b.sum() - both), abs=0.005)


def test_figure_barrier_and_its_scores_against_plain_pytorch(ok, controls, digits, tmp_path):
    root = tmp_path / "runs"
    own = [
        shutil.copytree(controls / "runs/digits/all-t20" / seed, root / "all-t20" / seed)
        for seed in ("seed0", "seed1")
    ]
    for name, masks in (("again", ["--masks", *own]), ("alone", [])):  # alone: masks of their own
        shutil.rmtree(root / "again", ignore_errors=True)
        starts, outs = (
            [folder / "rewind.safetensors" for folder in own],
            [root / name / x for x in "01"],
        )
        ok("imp", *starts, *masks, "--order-seed", 1000, "--levels", 2, "--out", *outs)
        ok("plot", root, "--figure", "barrier", "--out", tmp_path / name, "--device", "cpu")
    rows = read_csv(tmp_path / "again/digits-barrier.csv")
    assert [(row["seed"], row["level"]) for row in rows] == [
        (seed, n) for seed in "01" for n in "012"
    ]
    assert [row["level"] for row in read_csv(tmp_path / "alone/digits-barrier.csv")] == ["0", "0"]

    net, every = training.ResNet(8, 2, 1, 10).eval(), range(len(digits.labels))
    ends = [[part(folder, 0, "weight") for folder in (own[k], root / f"alone/{k}")] for k in (0, 1)]

    def at(k, t, images):
        net.load_state_dict(
            {name: (1 - t) * a + t * ends[k][1][name] for name, a in ends[k][0].items()}
        )
        with torch.no_grad():
            return net(((images.float() - digits.mean) / digits.std).permute(0, 3, 1, 2)).double()

    images, examples = digits.train_images(), []
    wrong = [at(0, k / 10, digits.test).argmax(1) != digits.test_labels for k in range(11)]
    errors = [100 * each.double().mean().item() for each in wrong]
    assert float(rows[0]["error_barrier"]) == pytest.approx(
        max(errors) - (errors[0] + errors[10]) / 2
    )
    for k in (0, 1):
        a, middle, b = (-at(k, t, images).log_softmax(1)[every, digits.labels] for t in (0, 0.5, 1))
        examples.append((middle - (a + b) / 2).numpy())
    shares = [(examples[0] <= most).mean() for most in (0, 0.01)]
    found = [float(rows[0][key]) for key in ("loss_barrier", "at_most_0", "at_most_0.01")]
    np.testing.assert_allclose(found, [examples[0].mean(), *shares], atol=2e-3)
    accuracy = [100 * float(row["test_accuracy"]) for row in read_csv(own[0] / "results.csv")[1:]]
    assert float(rows[0]["accuracy"]) == pytest.approx(np.mean(accuracy))
    scores = tmp_path / "alone/barrier-digits-all-data-20-steps.npy"
    np.testing.assert_allclose(np.load(scores), np.mean(examples, axis=0), atol=1e-4)
    ok(
        "subset",
        "--select",
        "easy",
        "--size",
        99,
        "--scores",
        scores,
        "--out",
        tmp_path / "connected.npy",
    )
    assert json.loads((tmp_path / "connected.json").read_text())["score"] == "barrier"
    for measure in (plot.loss_barrier, plot.error_barrier):  # exactly 0 of a network and itself
        assert not np.any(measure(net, ends[0][0], ends[0][0], digits))


def test_figure_difference_draws_the_intervals_of_the_verdicts(ok, controls, pages, tmp_path):
    ok("plot", controls / "runs/digits", "--figure", "difference", "--margin", 2, "--out", tmp_path)
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
