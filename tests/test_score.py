"""EL2N: against NumPy and SciPy; resumed network by network."""

import json

import numpy as np
import pytest
import scipy.stats
import torch
from conftest import TINY, equal
from safetensors.torch import load_file

import common
import score_el2n

SHORT = ["score", *TINY, "--networks", 3, "--steps", 4, "--out"]


def test_el2n_equals_the_numpy_formula():
    draw = np.random.default_rng(0)
    logits, labels = draw.normal(0, 4, (200, 10)).astype(np.float32), draw.integers(0, 10, 200)
    p = np.exp(logits.astype(np.float64))
    p /= p.sum(1, keepdims=True)
    expected = np.sqrt(((p - np.eye(10)[labels]) ** 2).sum(1))
    ours = score_el2n.el2n(torch.from_numpy(logits), torch.from_numpy(labels))
    assert ours.dtype == torch.float32
    np.testing.assert_allclose(ours, expected, rtol=2e-5, atol=1e-6)
    sure = torch.tensor([[100.0, 0, 0], [100.0, 0, 0], [0, 0, 0]])
    scores = score_el2n.el2n(sure, torch.tensor([0, 1, 2])).tolist()
    assert scores == pytest.approx([0, np.sqrt(2), np.sqrt(6) / 3])


def test_reliability_equals_scipy():
    draw = np.random.default_rng(1)
    networks = draw.integers(0, 20, (4, 300)).astype(np.float32) + np.arange(300) * 0.05  # with ties
    pairs = [scipy.stats.spearmanr(networks[i], networks[j])[0] for i in range(4) for j in range(i)]
    rho, of_mean, between, overlap = score_el2n.reliability(networks)
    assert rho == pytest.approx(np.mean(pairs))
    assert of_mean == pytest.approx(4 * rho / (1 + 3 * rho))
    means = networks[:2].mean(0), networks[2:].mean(0)
    assert between == pytest.approx(scipy.stats.spearmanr(*means)[0])
    easiest = [set(np.argsort(half, kind="stable")[:30]) for half in means]
    assert overlap == pytest.approx(len(easiest[0] & easiest[1]) / 30)


def test_scores_are_the_mean_of_the_networks_in_eval_mode_without_augmentation(call, tmp_path, digits):
    status, out, err = call(*SHORT, tmp_path / "scores.npy")
    assert (status, out.strip()[-10:]) == (0, "scores.npy")
    assert "rank correlation" in out
    assert all(word in err for word in ("warning: ", "--networks"))  # after 4 steps halves do not agree
    scores, single = np.load(tmp_path / "scores.npy"), load_file(tmp_path / "scores.networks.safetensors")
    networks = np.stack([single[number].numpy() for number in "123"])
    assert scores.dtype == networks.dtype == np.float32
    assert scores.shape == (1297,)
    np.testing.assert_allclose(scores, networks.mean(0), rtol=1e-6)
    info = json.loads((tmp_path / "scores.json").read_text())
    assert info["sha256"] == common.sha256((tmp_path / "scores.npy").read_bytes())
    assert (info["dataset"], info["fingerprint"]) == ("digits", digits.fingerprint)

    # the second network, by hand; a replicate's seed is below 2**32, so none shares a start with it
    seed = int(common.rng(common.SCORING, 0, 1).integers(2**32, 2**63))
    member = common.Member("by hand", info, digits, seed)
    list(common.train(common.Group([member], digits, info), 4, peak=info["lr"]))
    x = digits.normalise(digits.train_images()[:64])
    p = member.net.eval()(x).softmax(1).detach().numpy()
    error = np.linalg.norm(p - np.eye(10)[digits.labels[:64]], axis=1)
    np.testing.assert_allclose(networks[1, :64], error, rtol=1e-4)


def test_label_noise_reaches_training_and_scores(ok, tmp_path, digits):
    """At 50% the noisy examples score higher: the network learns the clean majority first."""
    flags = ["--depth=8", "--width=8", "--lr=0.3", "--networks=2", "--steps=100"]
    ok("score", *flags, "--label-noise=0.5", "--noise-seed=3", "--out", tmp_path / "scores.npy")
    scores, clean = np.load(tmp_path / "scores.npy"), digits.labels.numpy()
    wrong = common.noisy_labels(clean, 10, 0.5, 3) != clean
    u = scipy.stats.mannwhitneyu(scores[wrong], scores[~wrong]).statistic
    assert u / (wrong.sum() * (~wrong).sum()) > 0.8


def test_scoring_goes_on_with_the_networks_missing_however_many_at_once(call, ok, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole" / "s.npy", tmp_path / "parts" / "s.npy"
    ok(*SHORT, whole, "--at-once", 3)
    ok(*SHORT, parts, "--lr", 0.05)  # other settings, to be replaced
    predict, calls = common.predict, iter(range(99))

    def stop_after_two(*args):
        if next(calls) == 3:  # each network is scored and evaluated
            raise common.Stopped(15)
        return predict(*args)

    with monkeypatch.context() as patch:
        patch.setattr(common, "predict", stop_after_two)
        assert call(*SHORT, parts, "--force")[0] == 143
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
    ok("pretrain", "--steps", 0, "--out", tmp_path / "rewind.safetensors")  # what is pruned is the preset's
    recipe = common.load_info(tmp_path / "rewind.safetensors")["recipe"]
    assert all(recipe[name] == common.PRESETS["digits"][name] for name in own)
