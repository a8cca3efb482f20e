"""EL2N against NumPy and SciPy and resumed network by network; subsets by their properties."""

import json

import numpy as np
import pytest
import scipy.stats
import torch
from conftest import TINY, equal, read_csv
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import common
import dataset
import make_subset
import score_el2n
import training

SHORT = ["score", *TINY, "--networks", 3, "--steps", 4, "--out"]
NAMES = [*"abcdefg"]  # of the classes
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(7), 40))
SIZES, SEEDS = st.integers(1, 280), st.integers(0, 2**32 - 1)


def test_el2n_equals_the_numpy_formula():
    draw = np.random.default_rng(0)
    logits, labels = draw.normal(0, 4, (200, 10)).astype(np.float32), draw.integers(0, 10, 200)
    p = np.exp(logits.astype(np.float64))
    p /= p.sum(1, keepdims=True)
    expected = np.sqrt(((p - np.eye(10)[labels]) ** 2).sum(1))
    ours = score_el2n.el2n(torch.from_numpy(logits), torch.from_numpy(labels))
    assert ours.dtype == torch.float32
    np.testing.assert_allclose(ours, expected, rtol=2e-5, atol=1e-6)


def test_reliability_equals_scipy():
    draw = np.random.default_rng(1)
    # with ties
    networks = draw.integers(0, 20, (4, 300)).astype(np.float32) + np.arange(300) * 0.05
    correlation, overlap = score_el2n.reliability(networks)
    means = networks[:2].mean(0), networks[2:].mean(0)
    assert correlation == pytest.approx(scipy.stats.spearmanr(*means)[0])
    easiest = [set(np.argsort(half, kind="stable")[:30]) for half in means]
    assert overlap == pytest.approx(len(easiest[0] & easiest[1]) / 30)


def test_scores_are_the_mean_of_the_networks_in_eval_mode_without_augmentation(
    call, tmp_path, digits
):
    """Label noise reaches training and scores."""
    status, out, err = call(
        *SHORT, tmp_path / "scores.npy", "--label-noise", 0.5, "--noise-seed", 3
    )
    assert (status, out.strip()[-10:]) == (0, "scores.npy")
    # a warning, of so short a training
    assert all(word in out + err for word in ("rank correlation", "warning: ", "--networks"))
    scores, single = (
        np.load(tmp_path / "scores.npy"),
        load_file(tmp_path / "scores.networks.safetensors"),
    )
    networks = np.stack([single[number].numpy() for number in "123"])
    assert (scores.shape, scores.dtype, networks.dtype) == ((1297,), np.float32, np.float32)
    np.testing.assert_allclose(scores, networks.mean(0), rtol=1e-6)
    info = json.loads((tmp_path / "scores.json").read_text())
    assert info["sha256"] == common.sha256((tmp_path / "scores.npy").read_bytes())
    assert (info["dataset"], info["fingerprint"]) == ("digits", digits.fingerprint)

    # the second network, by hand; a replicate's seed is below 2**32, so none shares a start with it
    seed = int(common.rng(common.SCORING, 0, 1).integers(2**32, 2**63))
    member, labels = training.Member("by hand", info, digits, seed), digits.labels.numpy()
    labels = torch.from_numpy(dataset.noisy_labels(labels, 10, 0.5, 3))
    list(training.train(training.Group([member], digits, info, labels=labels), 4, peak=info["lr"]))
    x = digits.normalise(digits.train_images()[:64])
    p = member.net.eval()(x).softmax(1).detach().numpy()
    error = np.linalg.norm(p - np.eye(10)[labels[:64]], axis=1)
    np.testing.assert_allclose(networks[1, :64], error, rtol=1e-4)


def test_scoring_goes_on_with_the_networks_missing_however_many_at_once(
    call, ok, tmp_path, monkeypatch
):
    whole, parts = tmp_path / "whole" / "s.npy", tmp_path / "parts" / "s.npy"
    ok(*SHORT, whole, "--at-once", 3)
    predict, calls = training.predict, iter(range(99))

    def stop_after_two(*args):
        if next(calls) == 3:  # each network is scored and evaluated
            raise common.Stopped(15)
        return predict(*args)

    with monkeypatch.context() as patch:
        patch.setattr(training, "predict", stop_after_two)
        assert call(*SHORT, parts)[0] == 143
    assert load_file(parts.with_suffix(".networks.safetensors")).keys() == {"1", "2"}
    out = ok(*SHORT, parts, "--at-once", 2)
    assert ("network   1" in out, "network   3 of 3" in out) == (False, True)
    assert parts.read_bytes() == whole.read_bytes()
    assert equal(*(load_file(path.with_suffix(".networks.safetensors")) for path in (parts, whole)))


def test_a_preset_may_score_with_networks_of_its_own_and_flags_win(ok, tmp_path):
    own = common.PRESETS["digits"]["scoring"]
    for flags, expected in (([], own), (["--width=3"], own | {"width": 3})):
        out = tmp_path / f"{len(flags)}.npy"
        ok("score", "--networks", 1, "--steps", 1, *flags, "--out", out)
        said = json.loads(out.with_suffix(".json").read_text())
        assert {name: said[name] for name in own} == expected
    # what is pruned is the preset's
    ok("pretrain", "--steps", 0, "--out", tmp_path / "rewind.safetensors")
    recipe = common.load_info(tmp_path / "rewind.safetensors")["recipe"]
    assert all(recipe[name] == common.PRESETS["digits"][name] for name in own)


@given(SIZES, SIZES, SEEDS)
@settings(max_examples=100, deadline=None)
def test_random_is_unique_balanced_and_nested(a, b, seed):
    for balanced in (False, True):
        small, subset = (
            make_subset.select_random(LABELS, NAMES, n, seed, balanced) for n in sorted((a, b))
        )
        assert (len(subset), subset.dtype) == (max(a, b), np.int64)
        assert np.array_equal(subset, np.unique(subset))
        assert np.isin(small, subset).all()
        assert np.array_equal(
            subset, make_subset.select_random(LABELS, NAMES, max(a, b), seed, balanced)
        )
    assert np.ptp(np.bincount(LABELS[subset], minlength=7)) <= 1


def test_random_depends_on_the_seed_and_spreads_the_remainder():
    drawn = [make_subset.select_random(LABELS, NAMES, 38, seed) for seed in range(200)]
    assert len({tuple(s) for s in drawn}) == 200
    extra = sum(np.bincount(LABELS[s], minlength=7) - 5 for s in drawn)
    assert (abs(extra - 600 / 7) < 30).all()  # 3 of 7 classes, drawn anew each time


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.data(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_easy_and_hard_take_the_extremes_and_the_lower_index_among_ties(values, data, hardest):
    scores = np.array(values, np.float32)
    size = data.draw(st.integers(1, len(scores)))
    subset = make_subset.select(make_subset.RULES["hard" if hardest else "easy"](scores), size)
    expected = sorted(range(len(values)), key=lambda i: (-values[i] if hardest else values[i], i))[
        :size
    ]
    assert subset.tolist() == sorted(expected)


@given(SIZES, st.booleans())
@settings(max_examples=60, deadline=None)
def test_balanced_easy_and_hard_are_extreme_within_each_class(size, hardest):
    scores = np.random.default_rng(1).normal(size=280).astype(np.float32)
    values = make_subset.RULES["hard" if hardest else "easy"](scores)
    subset = make_subset.select_balanced(values, LABELS, NAMES, size)
    for c in range(7):
        count = size // 7 + (c < size % 7)  # the remainder to the lowest classes
        mine = sorted(np.flatnonzero(c == LABELS), key=lambda i: scores[i], reverse=hardest)[:count]
        assert sorted(mine) == subset[LABELS[subset] == c].tolist()
    with pytest.raises(common.InputError, match="needs 41 examples of class a, which has 40"):
        make_subset.select_balanced(values, LABELS, NAMES, 281)


def test_command_prints_counts_and_noise_and_passes_the_noise_on(ok, refused, tmp_path, digits):
    scores, easy = tmp_path / "s.npy", tmp_path / "easy.npy"
    noise = ["--label-noise", 0.4, "--noise-seed", 5]
    ok("score", *TINY, "--networks", 1, "--steps", 2, *noise, "--out", scores)
    command = ["subset", "--select", "easy", "--size", 50, "--scores", scores, "--out"]
    out = ok(*command, easy)
    subset, clean = np.load(easy), digits.labels.numpy()
    noisy = dataset.noisy_labels(clean, 10, 0.4, 5)
    wrong = noisy != clean
    assert (
        f"wrong labels: {wrong[subset].mean():.2%} of the subset, {wrong.mean():.2%} of all" in out
    )
    counts = np.bincount(noisy[subset], minlength=10)
    assert "  ".join(f"{c} {n}" for c, n in enumerate(counts)) in out
    info = json.loads(easy.with_suffix(".json").read_text())
    assert (info["label_noise"], info["noise_seed"], info["select"], info["seed"]) == (
        0.4,
        5,
        "easy",
        None,
    )
    other = [*command, tmp_path / "other.npy", "--label-noise", 0.1]
    refused(other, "--label-noise 0.1 contradicts the input, made with 0.4")
    start = ["pretrain", *TINY, "--subset", easy, "--steps", 1, "--out", tmp_path / "r.safetensors"]
    refused([*start, "--noise-seed", 1], "--noise-seed 1 contradicts")
    ok("subset", "--select", "random", "--size", 40, *noise, "--out", tmp_path / "random.npy")
    # by the noisy labels
    assert np.bincount(noisy[np.load(tmp_path / "random.npy")]).tolist() == [4] * 10


def test_a_subset_that_lacks_classes_or_is_mostly_one_gets_a_warning(call, tmp_path, digits):
    """As `easy 1000` of a small trial was: 887 airplanes."""
    labels, scores = digits.labels.numpy(), tmp_path / "s.npy"
    np.save(scores, ((labels != 3) + labels / 100).astype(np.float32))  # 3, then 0, 1, 2, 4, ...
    command = [
        "subset",
        "--select",
        "easy",
        "--scores",
        scores,
        "--force",
        "--out",
        tmp_path / "e.npy",
    ]
    sizes = [150], [1290], [7, "--class-balanced"]  # the last as far as seven can be
    said = [line for size in sizes for line in call(*command, "--size", *size)[2].splitlines()]
    warning, of_seven = [line for line in said if line.startswith("warning")]
    assert "3 of 10 classes have none: --size 7 is less" in of_seven
    words = ("--class-balanced", f"{(labels == 3).sum()} of 150", "8 of 10 classes have none")
    assert all(word in warning for word in words)


def test_the_table_of_classes_counts_what_subsets_would_have(ok, refused, pages, tmp_path, digits):
    scores = np.random.default_rng(0).random(1297).astype(np.float32)
    np.save(tmp_path / "s.npy", scores)
    table = tmp_path / "figures" / "classes.csv"
    command = ["subset", "--scores", tmp_path / "s.npy", "--classes-table", table]
    out = ok(*command)
    rows = read_csv(table)
    assert len(rows) == 2 * len(common.PRESETS["digits"]["sizes"]) * 10
    found = {(row["select"], int(row["size"]), row["class"]): int(row["count"]) for row in rows}
    labels = digits.labels.numpy()
    for select, order in (("easy", np.argsort(scores)), ("hard", np.argsort(-scores))):
        counts = np.bincount(labels[order[:128]], minlength=10)
        assert [found[select, 128, str(c)] for c in range(10)] == counts.tolist()
        assert f"{select} 128" in out
    ok("plot", table.parent, "--figure", "scores")
    easy, _ = pages[0].axes
    lines = {line.get_label(): line.get_ydata() for line in easy.get_lines()}
    share = found["easy", 256, "3"] / 256 / (labels == 3).mean()
    assert lines["3"][2] == pytest.approx(share)
    ok(*command, "--sizes", 7)
    assert {row["size"] for row in read_csv(table)} == {"7"}
    refused([*command, "--size", 5], "--classes-table chooses no subset")
    refused([*command[:1], *command[3:]], "needs --scores")
