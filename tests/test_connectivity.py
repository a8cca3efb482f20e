"""Pairs of runs: the overlap of masks, the barriers between networks, and their figures."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import ALL, level, part, read_csv, start

import connectivity
import training


def test_overlap_against_numpy_and_chance_against_a_simulation(controls):
    (path,) = (controls / "figures/digits/controls").glob("*/connectivity.csv")
    rows = read_csv(path)
    assert (path.parents[1] / "digits-masks.png").exists()
    # At each of three levels both seeds compare two schemes, and both schemes two seeds.
    assert len(rows) == 3 * 4
    random = np.random.default_rng(0)
    for row in rows:
        runs = [controls / f"runs/digits/{row['name_' + x]}/seed{row['seed_' + x]}" for x in "ab"]
        assert [(path.parent / row[x]).resolve() for x in "ab"] == runs
        masks = [sorted(part(folder, int(row["level"]), "mask").items()) for folder in runs]
        layers = [[mask.flatten().numpy().astype(bool) for _, mask in run] for run in masks]
        a, b = map(np.concatenate, layers)
        assert float(row["overlap"]) == (a & b).sum() / (a | b).sum()
        both = np.mean(
            [sum((random.permutation(x) & y).sum() for x, y in zip(*layers)) for _ in range(50)]
        )
        assert float(row["chance"]) == pytest.approx(both / (a.sum() + b.sum() - both), abs=0.005)


def test_barriers_and_their_scores_against_plain_pytorch(ok, controls, pages, digits, tmp_path):
    root = tmp_path / "runs"
    own = [
        shutil.copytree(controls / "runs/digits/all-t20" / seed, root / "all-t20" / seed)
        for seed in ("seed0", "seed1000")
    ]
    # The runs in "again" train under the masks of the first ones, those in "alone" under their own.
    for name, masks in (("again", ["--masks", *own]), ("alone", [])):
        shutil.rmtree(root / "again", ignore_errors=True)
        starts, outs = (
            [folder / "rewind.safetensors" for folder in own],
            [root / name / x for x in "01"],
        )
        ok("imp", *starts, *masks, "--order-seed", 1000, "--levels", 2, "--out", *outs)
        ok("connectivity", *own, "--with", *outs, "--out", tmp_path / name, "--device", "cpu")
    rows = read_csv(tmp_path / "again/connectivity.csv")
    assert [(row["seed_a"], row["level"]) for row in rows if row["error_barrier"]] == [
        (seed, n) for seed in ("0", "1000") for n in "012"
    ]
    # --order-seed 1000 is not the order of the replicate with seed 1000.
    weights = [part(folder, 0, "weight") for folder in (own[1], root / "alone/1")]
    assert not any(t.equal(weights[1][name]) for name, t in weights[0].items())
    alone = read_csv(tmp_path / "alone/connectivity.csv")
    assert len(alone) == 6
    assert [row["level"] for row in alone if row["error_barrier"]] == ["0", "0"]

    net, indices = training.ResNet(8, 2, 1, 10).eval(), range(len(digits.labels))
    ends = [[part(folder, 0, "weight") for folder in (own[k], root / f"alone/{k}")] for k in (0, 1)]

    def logits_at(k, t, images):
        net.load_state_dict(
            {name: (1 - t) * a + t * ends[k][1][name] for name, a in ends[k][0].items()}
        )
        with torch.no_grad():
            return net(((images.float() - digits.mean) / digits.std).permute(0, 3, 1, 2)).double()

    images, examples = digits.train_images(), []
    errors = []
    for k in range(11):
        wrong = logits_at(0, k / 10, digits.test).argmax(1) != digits.test_labels
        errors.append(100 * wrong.double().mean().item())
    assert float(rows[0]["error_barrier"]) == pytest.approx(
        max(errors) - (errors[0] + errors[10]) / 2
    )
    for k in (0, 1):
        a, middle, b = (
            -logits_at(k, t, images).log_softmax(1)[indices, digits.labels] for t in (0, 0.5, 1)
        )
        examples.append((middle - (a + b) / 2).numpy())
    shares = [(examples[0] <= most).mean() for most in (0, 0.01)]
    measured = [float(rows[0][key]) for key in ("loss_barrier", "at_most_0", "at_most_0.01")]
    np.testing.assert_allclose(measured, [examples[0].mean(), *shares], atol=2e-3)
    accuracy = [100 * float(row["test_accuracy"]) for row in read_csv(own[0] / "results.csv")[1:]]
    ok("verdicts", root, "--figure", "barrier", "--out", tmp_path / "alone")
    ok("plot", tmp_path / "alone")
    assert {line.get_label() for line in pages[0].axes[0].get_lines()} == {f"{ALL} (n=2)"}
    (dots,) = pages[0].axes[1].get_lines()  # accuracy against loss barrier, of both starts
    assert dots.get_xydata()[0] == pytest.approx(
        [float(rows[0]["loss_barrier"]), np.mean(accuracy)]
    )
    scores = tmp_path / "alone/loss_barrier.npy"
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
    # Between a network and itself a barrier is exactly 0.
    for measure in (connectivity.loss_barrier, connectivity.error_barrier):
        assert not np.any(measure(net, ends[0][0], ends[0][0], digits))


@pytest.fixture
def runs(ok, tmp_path):
    """Return the folders of three tiny runs: two seeds, and the first in another batch order.

    The third one trains under the masks of the first.
    """
    a, b, again = (tmp_path / name for name in ("a", "b", "again"))
    for folder, seed in ((a, 0), (b, 1)):
        ok("imp", start(ok, folder, "--seed", seed), "--levels", 1)
    flags = ["--order-seed", 3, "--masks", a, "--levels", 1, "--out", again]
    ok("imp", a / "rewind.safetensors", *flags)
    return a, b, again


def test_what_is_done_is_measured_again_only_where_runs_have_gone_on(
    ok, refused, runs, tmp_path, monkeypatch
):
    a, b, again = runs
    out, other = tmp_path / "out", ["--with", b, "--out", tmp_path / "out"]
    monkeypatch.setattr(training, "load_data", None)  # Without a barrier no image is needed.
    assert len(ok("connectivity", a, *other).splitlines()) == 4
    table = (out / "connectivity.csv").read_bytes()
    assert {path.name for path in out.iterdir()} == {
        ".lock",
        "connectivity.csv",
        "connectivity.json",
    }
    assert "already done" in ok("connectivity", a, *other)
    shutil.copytree(a, tmp_path / "copy")  # Where folders lie is not compared.
    assert "already done" in ok("connectivity", tmp_path / "copy", *other)
    refused(["connectivity", again, *other], "connectivity.json", "a with ../b", "--force")
    ok("connectivity", again, *other, "--force")
    assert "../again" in (out / "connectivity.csv").read_text()
    ok("connectivity", a, *other, "--force")
    assert (out / "connectivity.csv").read_bytes() == table
    monkeypatch.undo()
    for folder in (a, b):
        ok("imp", folder / "rewind.safetensors", "--levels", 2)
    ok("connectivity", a, *other)  # Both runs have one level more now.
    assert [row["level"] for row in read_csv(out / "connectivity.csv")] == ["0", "1", "2"]
    (out / "connectivity.csv").unlink()
    assert "already done" not in ok("connectivity", a, *other)


def test_pairs_of_several_settings_give_no_score_and_missing_runs_are_named(
    ok, call, runs, tmp_path
):
    a, _, again = runs
    out = tmp_path / "out"
    more, second = tmp_path / "more", tmp_path / "second"
    ok("imp", start(ok, more, "--steps", 7), "--levels", 0)
    ok("imp", more / "rewind.safetensors", "--order-seed", 3, "--levels", 0, "--out", second)
    ok("connectivity", a, "--with", again, "--out", out)
    info = json.loads((out / "loss_barrier.json").read_text())
    assert (info["select"], info["pairs"], info["label_noise"]) == ("barrier", 1, 0.0)
    printed = ok("connectivity", a, more, "--with", again, second, "--out", out)
    assert "several settings" in printed
    assert not list(out.glob("loss_barrier*"))
    assert len([row for row in read_csv(out / "connectivity.csv") if row["loss_barrier"]]) == 2

    command = ["connectivity", a, tmp_path / "lost", "--with", again, second]
    status, _, err = call(*command, "--out", tmp_path / "some")
    assert (status, len(read_csv(tmp_path / "some/connectivity.csv"))) == (1, 2)
    assert "lost" in err
    assert "second" not in err


def test_a_start_pruned_in_two_ways_has_overlaps_and_no_barrier(ok, runs, tmp_path):
    a, _, _ = runs
    other, out = tmp_path / "other", tmp_path / "out"
    ok("imp", a / "rewind.safetensors", "--levels", 1, "--prune-fraction", 0.3, "--out", other)
    ok("connectivity", a, "--with", other, "--out", out)
    dense, pruned = read_csv(out / "connectivity.csv")
    assert [dense["overlap"], dense["error_barrier"], pruned["error_barrier"]] == ["1.0", "", ""]
    kept = [
        np.concatenate([t.flatten().numpy() for _, t in sorted(part(run, 1, "mask").items())])
        for run in (a, other)
    ]
    shared, either = (kept[0] & kept[1]).sum(), (kept[0] | kept[1]).sum()
    assert float(pruned["overlap"]) == shared / either < 1
    assert not list(out.glob("loss_barrier*"))


def test_pairs_that_cannot_be_compared_are_one_line(ok, refused, runs, tmp_path):
    a, b, again = runs
    out = ["--out", tmp_path / "out"]
    ok("imp", start(ok, tmp_path / "wide", "--width", 3), "--levels", 0)
    refused(["connectivity", a, b, "--with", b, *out], "--with: 1 run folders for 2")
    refused(["connectivity", a, "--with", a, *out], "one start in one order")
    refused(["connectivity", a, "--with", tmp_path / "wide", *out], "other shapes")
    refused(["connectivity", a, "--with", tmp_path / "lost", *out], "lost")
    refused(["connectivity", a, *out], "--with")
    tensors, info = level(again, 0)
    info["recipe"]["fingerprint"] = "other"
    training.save_tensors(again / "level00.safetensors", tensors, info)
    refused(["connectivity", again, "--with", a, *out], "not the images")
    (again / "level00.safetensors").write_bytes(b"")
    refused(["connectivity", a, "--with", again, *out], "level00.safetensors")


def test_runs_that_no_table_knows_are_called_as_in_connectivity_csv(ok, runs, pages, tmp_path):
    a, b, again = runs
    ok("connectivity", a, a, "--with", b, again, "--out", tmp_path / "out")
    for figure, name in (("masks", "all-t5-lr0.3 (n=1)"), ("barrier", "all-t5-lr0.3 (n=1)")):
        ok("plot", tmp_path / "out", "--figure", figure)
        labels = [line.get_label() for line in pages[-1].axes[0].get_lines()]
        assert labels[0] == name
    titles = [ax.get_title() for ax in pages[0].axes]
    assert titles == ["two seeds of one setting", "two orders of one start"]
