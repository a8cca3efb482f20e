"""Networks: parameter counts from the literature, initial weights by their definition."""

import math

import pytest
import torch
from conftest import equal, recipe

import common

# He et al.'s ResNets with option-A shortcuts have these many parameters for 10 classes; the two projections
# with their batch norms add 16*32 + 2*32 + 32*64 + 2*64, and 90 more classes add 90 * (64 + 1)
OPTION_A = {20: 269722, 32: 464154, 56: 853018}
PROJECTIONS = 2752


@pytest.mark.parametrize("depth", OPTION_A)
def test_parameter_and_layer_counts(depth):
    for classes in (10, 100):
        net = common.ResNet(depth, 16, 3, classes)
        count = sum(p.numel() for p in net.parameters())
        assert count == OPTION_A[depth] + PROJECTIONS + (classes - 10) * 65
        assert depth + classes != 30 or sum(p.numel() for p in net.prunable().values()) == 270896
        convolutions = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
        assert len(convolutions) == depth - 1 + 2  # the linear one is a layer, the two projections are not
        assert all(m.bias is None for m in convolutions)
        assert net(torch.zeros(3, 3, 32, 32)).shape == (3, classes)
        assert "num_batches_tracked" not in " ".join(net.state_dict())


def test_initial_weights_have_their_distribution_and_depend_on_the_seed_alone():
    nets = [common.ResNet(20, 16, 3, 10) for _ in range(3)]
    for net, seed in zip(nets, (0, 0, 1)):
        common.initialise(net, seed)
    a, b, c = (net.state_dict() for net in nets)
    assert equal(a, b)
    assert not torch.equal(a["conv.weight"], c["conv.weight"])
    weight = a["blocks.8.conv1.weight"]  # 64 x 64 x 3 x 3
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.02)
    gammas = torch.cat([p.flatten() for n, p in nets[0].named_parameters() if p.dim() == 1 and "weight" in n])
    assert 0 <= gammas.min() < 0.02
    assert 0.98 < gammas.max() < 1
    assert gammas.mean().item() == pytest.approx(0.5, abs=0.05)
    assert a["linear.bias"].abs().max() <= 1 / math.sqrt(64)
    assert not a["blocks.0.bn1.bias"].any()
    nets[0].scale = torch.nn.Parameter(torch.ones(4))
    with pytest.raises(ValueError, match="scale"):  # a parameter without a rule
        common.initialise(nets[0], 0)


def test_bf16_autocast_keeps_weights_momentum_statistics_and_loss_in_fp32(digits):
    member, exact = (common.Member("m", recipe(), digits, 0) for _ in range(2))
    for m, precision in ((member, "bf16"), (exact, "fp32")):
        list(common.train(common.Group([m], digits, recipe(precision=precision)), 2, peak=0.1))
    kept = *member.net.state_dict().values(), *member.momentum.values()
    assert {t.dtype for t in kept} == {torch.float32}
    assert not member.failed
    images = digits.normalise(digits.test[:5])
    assert common.loss_of(member.net, images, digits.test_labels[:5], "bf16").dtype == torch.float32
    assert not torch.equal(exact.net.conv.weight, member.net.conv.weight)  # bf16 did something
    a, b = (common.evaluate(m.net, digits)[1] for m in (exact, member))
    assert a == pytest.approx(b, rel=0.05)


def test_batch_norm_has_the_bits_of_torchs():
    """In both precisions, forward, backward and statistics: the entry point differs, the numbers do not."""
    x = torch.randn(32, 16, 8, 8).to(memory_format=torch.channels_last)
    for dtype in (torch.float32, torch.bfloat16):
        found = []
        for norm in (common.BatchNorm(16), torch.nn.BatchNorm2d(16)):
            images = x.to(dtype, copy=True).requires_grad_()
            y = norm(images)
            y.float().pow(2).sum().backward()
            statistics = norm.running_mean, norm.running_var
            found.append((y, images.grad, norm.weight.grad, *statistics, norm.eval()(images)))
        assert all(torch.equal(a, b) for a, b in zip(*found))
