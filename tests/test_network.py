"""Networks: parameter counts from the literature, initial weights by their definition."""

import math

import numpy as np
import pytest
import torch
from conftest import TINY, recipe

import common

# He et al.'s ResNets with option-A shortcuts have these many parameters for 10 classes; the two projections
# with their batch norms add 16*32 + 2*32 + 32*64 + 2*64, and 90 more classes add 90 * (64 + 1)
OPTION_A = {20: 269722, 32: 464154, 56: 853018}
PROJECTIONS = 2752


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("depth", [20, 32, 56])
def test_parameter_counts(depth, classes):
    net = common.ResNet(depth, 16, 3, classes)
    count = sum(p.numel() for p in net.parameters())
    assert count == OPTION_A[depth] + PROJECTIONS + (classes - 10) * 65


def test_resnet20_prunable_count_and_layer_count(digits):
    net = common.ResNet(20, 16, 3, 10)
    assert sum(p.numel() for p in net.parameters() if p.dim() > 1) == 270896
    convolutions = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) == 19 + 2  # 20 layers with the linear one, and two projections
    assert all(m.bias is None for m in convolutions)


@pytest.mark.parametrize(("depth", "width"), [(8, 2), (14, 5), (26, 3)])
def test_any_depth_and_width_give_logits(depth, width):
    net = common.ResNet(depth, width, 1, 7)
    assert net(torch.zeros(3, 1, 8, 8)).shape == (3, 7)
    assert net.linear.in_features == 4 * width
    assert "num_batches_tracked" not in " ".join(net.state_dict())


def test_initial_weights_have_their_distribution_and_depend_on_the_seed_alone():
    nets = [common.ResNet(20, 16, 3, 10) for _ in range(3)]
    for net, seed in zip(nets, (0, 0, 1)):
        common.initialise(net, seed)
    a, b, c = (net.state_dict() for net in nets)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["conv.weight"], c["conv.weight"])
    weight = a["blocks.8.conv1.weight"]  # 64 x 64 x 3 x 3
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.02)
    gammas = torch.cat([p.flatten() for n, p in nets[0].named_parameters() if p.dim() == 1 and "weight" in n])
    assert 0 <= gammas.min() < 0.02
    assert 0.98 < gammas.max() < 1
    assert gammas.mean().item() == pytest.approx(0.5, abs=0.05)
    assert a["linear.bias"].abs().max() <= 1 / math.sqrt(64)
    assert not a["blocks.0.bn1.bias"].any()


def test_scoring_networks_share_no_start_with_a_replicate(digits, ok, tmp_path, monkeypatch):
    seeds = []
    real = common.Member
    monkeypatch.setattr(
        common, "Member", lambda name, r, data, seed: seeds.append(seed) or real(name, r, data, seed)
    )
    ok("score", "--networks", 3, "--steps", 1, *TINY, "--out", tmp_path / "s.npy")
    assert len(set(seeds)) == 3
    assert min(seeds) >= 2**32  # a replicate's seed is below


def test_bf16_autocast_keeps_weights_momentum_statistics_and_loss_in_fp32(digits):
    member = common.Member("m", recipe(), digits, 0)
    list(common.train(common.Group([member], digits, recipe(precision="bf16")), 2, peak=0.1))
    state = [*member.weights().values(), *member.momentum.values()]
    assert {t.dtype for t in state} == {torch.float32}
    assert not member.failed
    images = digits.normalise(digits.test[:5])
    assert common.loss_of(member.net, images, digits.test_labels[:5], "bf16").dtype == torch.float32
    exact = common.Member("m", recipe(), digits, 0)
    list(common.train(common.Group([exact], digits, recipe()), 2, peak=0.1))
    assert not torch.equal(exact.net.conv.weight, member.net.conv.weight)  # bf16 did something
    assert np.isclose(
        common.evaluate(exact.net, digits)[1], common.evaluate(member.net, digits)[1], rtol=0.05
    )


def test_a_parameter_without_a_rule_is_not_initialised_silently():
    net = common.ResNet(8, 2, 1, 10)
    net.scale = torch.nn.Parameter(torch.ones(4))
    with pytest.raises(ValueError, match="scale"):
        common.initialise(net, 0)
