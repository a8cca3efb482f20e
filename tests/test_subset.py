"""Subsets as properties: sizes, balance, nesting, ties."""

import json

import numpy as np
import pytest
from conftest import TINY
from hypothesis import given, settings
from hypothesis import strategies as st

import common
import make_subset

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(7), 40))
SIZES, SEEDS = st.integers(1, 280), st.integers(0, 2**32 - 1)


@given(SIZES, SIZES, SEEDS)
@settings(max_examples=100, deadline=None)
def test_random_is_unique_balanced_and_nested(a, b, seed):
    for balanced in (False, True):
        small, subset = (make_subset.select_random(LABELS, 7, n, seed, balanced) for n in sorted((a, b)))
        assert (len(subset), subset.dtype) == (max(a, b), np.int64)
        assert np.array_equal(subset, np.unique(subset))
        assert np.isin(small, subset).all()
        assert np.array_equal(subset, make_subset.select_random(LABELS, 7, max(a, b), seed, balanced))
    assert np.ptp(np.bincount(LABELS[subset], minlength=7)) <= 1


def test_random_depends_on_the_seed_and_spreads_the_remainder():
    drawn = [make_subset.select_random(LABELS, 7, 38, seed) for seed in range(200)]
    assert len({tuple(s) for s in drawn}) == 200
    extra = sum(np.bincount(LABELS[s], minlength=7) - 5 for s in drawn)
    assert extra.sum() == 600
    assert (abs(extra - 600 / 7) < 30).all()  # 3 of 7 classes, drawn anew each time


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.data(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_easy_and_hard_take_the_extremes_and_the_lower_index_among_ties(values, data, hardest):
    scores = np.array(values, np.float32)
    size = data.draw(st.integers(1, len(scores)))
    subset = make_subset.select(make_subset.RULES["hard" if hardest else "easy"](scores), size)
    sign = -1 if hardest else 1
    expected = sorted(range(len(values)), key=lambda i: (sign * values[i], i))[:size]
    assert subset.tolist() == sorted(expected)


@given(SIZES, st.booleans())
@settings(max_examples=60, deadline=None)
def test_balanced_easy_and_hard_are_extreme_within_each_class(size, hardest):
    scores = np.random.default_rng(1).normal(size=280).astype(np.float32)
    values = make_subset.RULES["hard" if hardest else "easy"](scores)
    subset = make_subset.select_balanced(values, LABELS, 7, size)
    for c in range(7):
        count = size // 7 + (c < size % 7)  # the remainder to the lowest classes
        mine = sorted(np.flatnonzero(c == LABELS), key=lambda i: scores[i], reverse=hardest)[:count]
        assert sorted(mine) == subset[LABELS[subset] == c].tolist()
    with pytest.raises(common.InputError, match="needs 41 examples of class 0, which has 40"):
        make_subset.select_balanced(values, LABELS, 7, 281)


def test_command_prints_counts_and_noise_and_passes_the_noise_on(ok, refused, tmp_path, digits):
    scores, easy = tmp_path / "s.npy", tmp_path / "easy.npy"
    noise = ["--label-noise", 0.4, "--noise-seed", 5]
    ok("score", *TINY, "--networks", 1, "--steps", 2, *noise, "--out", scores)
    command = ["subset", "--select", "easy", "--size", 50, "--scores", scores, "--out"]
    out = ok(*command, easy)
    subset, clean = np.load(easy), digits.labels.numpy()
    noisy = common.noisy_labels(clean, 10, 0.4, 5)
    wrong = noisy != clean
    assert f"wrong labels: {wrong[subset].mean():.2%} of the subset, {wrong.mean():.2%} of all" in out
    counts = np.bincount(noisy[subset], minlength=10)
    assert "  ".join(f"{c} {n}" for c, n in enumerate(counts)) in out
    info = json.loads(easy.with_suffix(".json").read_text())
    assert (info["label_noise"], info["noise_seed"], info["select"], info["seed"]) == (0.4, 5, "easy", None)
    other = [*command, tmp_path / "other.npy", "--label-noise", 0.1]
    refused(other, "--label-noise 0.1 contradicts the input, made with 0.4")
    start = ["pretrain", *TINY, "--subset", easy, "--steps", 1, "--out", tmp_path / "r.safetensors"]
    refused([*start, "--noise-seed", 1], "--noise-seed 1 contradicts")
    ok("subset", "--select", "random", "--size", 40, *noise, "--out", tmp_path / "random.npy")
    assert np.bincount(noisy[np.load(tmp_path / "random.npy")]).tolist() == [4] * 10  # by the noisy labels


def test_a_subset_that_lacks_classes_or_is_mostly_one_gets_a_warning(call, tmp_path, digits):
    """As `easy 1000` of a small trial was: 887 airplanes."""
    labels, scores = digits.labels.numpy(), tmp_path / "s.npy"
    np.save(scores, ((labels != 3) + labels / 100).astype(np.float32))  # 3, then 0, 1, 2, 4, ...
    command = ["subset", "--select", "easy", "--scores", scores, "--force", "--out", tmp_path / "e.npy"]
    sizes = [150], [1290], [7, "--class-balanced"]  # the last as far as seven can be
    said = [line for size in sizes for line in call(*command, "--size", *size)[2].splitlines()]
    (warning,) = [line for line in said if line.startswith("warning")]
    words = ("--class-balanced", f"{(labels == 3).sum()} of 150", "8 of 10 classes have none")
    assert all(word in warning for word in words)
