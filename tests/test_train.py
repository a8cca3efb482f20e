"""Networks, their training (its arithmetic: test_imp.py), and what recorded steps must prove."""

import math
import subprocess
import sys
from itertools import count

import benchmark
import numpy as np
import pytest
import scipy.stats
import torch
from conftest import ROOT, equal, recipe

import common
import cudagraph
import training

# He et al.'s ResNets with option-A shortcuts have these many parameters for 10 classes; the two
# projections with their batch norms add 16*32 + 2*32 + 32*64 + 2*64, and 90 more classes add
# 90 * (64 + 1)
OPTION_A, PROJECTIONS = {20: 269722, 32: 464154, 56: 853018}, 2752


@pytest.mark.parametrize("depth", OPTION_A)
def test_parameter_and_layer_counts(depth):
    for classes in (10, 100):
        net = training.ResNet(depth, 16, 3, classes)
        count = sum(p.numel() for p in net.parameters())
        assert count == OPTION_A[depth] + PROJECTIONS + (classes - 10) * 65
        assert depth + classes != 30 or sum(p.numel() for p in net.prunable().values()) == 270896
        convolutions = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
        # the linear one is a layer, the two projections are not
        assert len(convolutions) == depth - 1 + 2
        assert all(m.bias is None for m in convolutions)
        assert net(torch.zeros(3, 3, 32, 32)).shape == (3, classes)
        assert "num_batches_tracked" not in " ".join(net.state_dict())


def test_initial_weights_have_their_distribution_and_depend_on_the_seed_alone():
    nets = [training.ResNet(20, 16, 3, 10) for _ in range(3)]
    for net, seed in zip(nets, (0, 0, 1)):
        training.initialise(net, seed)
    a, b, c = (net.state_dict() for net in nets)
    assert equal(a, b)
    assert not torch.equal(a["conv.weight"], c["conv.weight"])
    weight = a["blocks.8.conv1.weight"].flatten()  # of 64 x 64 x 3 x 3
    assert scipy.stats.kstest(weight / math.sqrt(2 / (64 * 9)), "norm").pvalue > 0.01
    gammas = torch.cat([t.flatten() for name, t in a.items() if t.dim() == 1 and "weight" in name])
    assert scipy.stats.kstest(gammas, "uniform").pvalue > 0.01
    assert a["linear.bias"].abs().max() <= 1 / math.sqrt(64)
    assert not a["blocks.0.bn1.bias"].any()
    nets[0].scale = torch.nn.Parameter(torch.ones(4))
    with pytest.raises(ValueError, match="scale"):  # a parameter without a rule
        training.initialise(nets[0], 0)


def test_bf16_autocast_keeps_weights_momentum_statistics_and_loss_in_fp32(digits):
    member, exact = (training.Member("m", recipe(), digits, 0) for _ in range(2))
    for m, precision in ((member, "bf16"), (exact, "fp32")):
        list(training.train(training.Group([m], digits, recipe(precision=precision)), 2, peak=0.1))
    kept = *member.net.state_dict().values(), *member.momentum.values()
    assert {t.dtype for t in kept} == {torch.float32}
    images = digits.normalise(digits.test[:5])
    assert (
        training.loss_of(member.net, images, digits.test_labels[:5], "bf16").dtype == torch.float32
    )
    assert not torch.equal(exact.net.conv.weight, member.net.conv.weight)  # bf16 did something
    a, b = (training.evaluate(m.net, digits)[1] for m in (exact, member))
    assert a == pytest.approx(b, rel=0.05)


def test_batch_norm_has_the_bits_of_torchs():
    """Where torch's sums are precise enough, in both precisions: forward, backward, statistics."""
    x = torch.randn(32, 16, 8, 8).to(memory_format=torch.channels_last)
    for dtype in (torch.float32, torch.bfloat16):
        found = []
        for norm in (training.BatchNorm(16), torch.nn.BatchNorm2d(16)):
            images = x.to(dtype, copy=True).requires_grad_()
            y = norm(images)
            y.float().pow(2).sum().backward()
            statistics = norm.running_mean, norm.running_var
            found.append((y, images.grad, norm.weight.grad, *statistics, norm.eval()(images)))
        assert all(torch.equal(a, b) for a, b in zip(*found))


@pytest.mark.parametrize("shape", [(64, 8, 32, 32), (3, 5, 40, 48), (128, 16, 32, 32)])
def test_batch_norm_is_precise_in_channels_last(shape):
    """Output, gradients and running statistics beside float64; torch's are off by up to 5e-4."""
    x = (2 + 3 * torch.randn(shape)).to(memory_format=torch.channels_last)
    g = torch.randn(shape).to(memory_format=torch.channels_last)
    found = []
    for norm, dtype in (
        (training.BatchNorm(shape[1]), torch.float32),
        (torch.nn.BatchNorm2d(shape[1]).double(), torch.float64),
    ):
        images = x.to(dtype, copy=True).requires_grad_()
        if dtype == torch.float64:
            images = images.detach().contiguous().requires_grad_()
        y = norm(images)
        y.backward(g.to(dtype))
        gradients = images.grad, norm.weight.grad, norm.bias.grad
        found.append((y, *gradients, norm.running_mean, norm.running_var))
    assert found[0][0].is_contiguous(memory_format=torch.channels_last)
    assert training.torch_sums_imprecisely(x)
    for ours, exact, most in zip(*found, (2e-6, 2e-6, 3e-5, 3e-5, 2e-6, 2e-6)):
        assert (ours - exact).norm() < most * exact.norm()


def test_a_second_derivative_through_the_precise_batch_norm_is_refused_and_not_wrong():
    x = torch.randn(8, 4, 32, 32).to(memory_format=torch.channels_last).requires_grad_()
    (gradient,) = torch.autograd.grad(training.BatchNorm(4)(x).pow(3).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def member(data, seed=0):
    return training.Member(f"m{seed}", recipe(), data, seed)


def group_of(data, seeds, **more):
    return training.Group([member(data, seed) for seed in seeds], data, recipe(), **more)


def run(members, data, stop, level=0, **more):
    return list(
        training.train(training.Group(members, data, recipe(), **more), stop, peak=0.1, level=level)
    )


def test_members_side_by_side_equal_members_alone(digits):
    """Company, order and different first steps change no bit, at two levels with one group."""
    starts = [0, 7, 3, 25]
    alone, together = ([member(digits, seed) for seed in range(4)] for _ in range(2))
    group, storage = (
        training.Group(together[::-1], digits, recipe()),
        together[0].net.conv.weight.data_ptr(),
    )
    for level in (1, 2):
        for m, start in zip([*alone, *together], starts * 2):
            m.rewind({name: t.clone() for name, t in m.net.state_dict().items()}, m.masks, start)
        for m in alone:
            run([m], digits, 25, level=level)
        for done in training.train(group, 25, peak=0.1, level=level):
            assert [m.step for m in together] == [max(done, start) for start in starts]
        assert all(equal(a.state(), b.state()) for a, b in zip(alone, together))
        assert [m.loss_steps for m in together] == [20, 18, 20, 0]
    assert together[0].net.conv.weight.data_ptr() == storage  # a captured graph would still use it


def test_stopping_and_looking_change_nothing(digits):
    """Pre-training on all data is the beginning of level 0."""
    whole, parts = member(digits), member(digits)
    run([whole], digits, 30)
    run([parts], digits, 11)
    for _ in training.train(training.Group([parts], digits, recipe()), 30, peak=0.1):
        training.evaluate(parts.net, digits)
    assert equal(whole.net.state_dict(), parts.net.state_dict())


def test_training_uses_the_subset(digits):
    """One smaller than the batch is one batch."""
    m, seen = member(digits), []
    m.net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    run([m], digits, 2, subset=np.array([3, 700, 41]))
    table = training.epoch_table(0, 0, 1, 3, 3, 1, False)[:, 0]
    table[0] = np.array([3, 700, 41])[table[0]]
    assert torch.equal(seen[-1], training.take_batch(digits, torch.from_numpy(table)))


def everything(group):
    """All tensors of its members, masks included, as they are now."""
    return {
        f"{m.name} {name}": t.clone()
        for m in group.members
        for name, t in (m.state() | common.prefixed(mask=m.masks)).items()
    }


def trained(group, stop):
    list(training.train(group, stop, peak=0.1))
    return everything(group)


def honest(group, k):
    for _ in range(4):  # the real one warms up
        group.step_one(k)
    return lambda: group.step_one(k)


def failing(error):
    def record(group, k):
        group.step_one(k)
        raise error

    return record


def forgetting(group, k):
    turns = count()
    return lambda: None if next(turns) else group.step_one(k)


def stale(group, k, tensors):
    """Replays see the values that tensors had when it was recorded."""
    kept = [t.clone() for t in tensors]

    def replay():
        current = [t.clone() for t in tensors]
        torch._foreach_copy_(tensors, kept)
        group.step_one(k)
        torch._foreach_copy_(tensors, current)

    return replay


STAND_INS = {  # their replays return None, as a step does; the real ones a stream
    "raising": failing(RuntimeError("operation not permitted when stream is capturing")),
    "forgetting the second step": forgetting,
    "in eval mode": lambda group, k: (
        lambda: (group.members[k].net.eval(), group.step_one(k), group.members[k].net.train())[1]
    ),
    "stepping twice": lambda group, k: lambda: (group.step_one(k), group.step_one(k))[0],
    "NaN": lambda group, k: (
        lambda: (group.step_one(k), group.members[k].loss_sum.fill_(torch.nan))[0]
    ),
    "doing nothing": lambda group, k: lambda: None,
    "stale batch": lambda group, k: stale(group, k, [group.examples]),
    "stale rate": lambda group, k: stale(group, k, [group.rate]),
    "ignoring masks": lambda group, k: stale(group, k, [*group.members[k].masks.values()]),
}


@pytest.mark.parametrize("what", STAND_INS)
def test_a_recording_that_is_not_the_step_is_refused_and_leaves_no_trace(digits, capfd, what):
    group, plain = group_of(digits, (0, 1)), group_of(digits, (0, 1))
    for m in (*group.members, *plain.members):
        for mask in m.masks.values():
            mask[::3] = 0
    before, _ = trained(group, 3), trained(plain, 3)
    cudagraph.use_recording(group, 1, STAND_INS[what])
    err = capfd.readouterr().err
    assert (err[:10], err.count("\n"), group.replays) == ("note: m1: ", 1, [None, None])
    assert (" is off by " in err) == (what != "raising")
    assert equal(before, everything(group))
    assert equal(trained(group, 8), trained(plain, 8))


def test_an_honest_recording_is_used_without_a_word_and_changes_no_bit(digits, capfd):
    group, plain = group_of(digits, (0, 1)), group_of(digits, (0, 1))
    before, _ = trained(group, 3), trained(plain, 3)
    with pytest.raises(torch.OutOfMemoryError):  # which stays an error
        cudagraph.use_recording(
            group, 0, failing(torch.OutOfMemoryError("CUDA out of memory. Tried to ..."))
        )
    assert equal(before, everything(group))
    for k in (0, 1):
        cudagraph.use_recording(group, k, honest)
    one_batch = group_of(digits, (0,), subset=np.array([5, 9, 1296]))
    cudagraph.use_recording(one_batch, 0, honest)
    assert capfd.readouterr().err == ""
    assert None not in group.replays + one_batch.replays
    assert equal(before, everything(group))
    assert equal(trained(group, 30), trained(plain, 30))


CPU = torch.device("cpu")
COMMAND = ["env", "CUDA_VISIBLE_DEVICES=", sys.executable, ROOT / "tests" / "benchmark.py"]
BITS = ["50 replays, half-zero masks", "alone and in company", "stop, restore, go on"]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU, and -m cuda")
@pytest.mark.parametrize("name", benchmark.CHECKS)
def test_checks_hold_on_a_gpu(name):
    found, limit, ok = benchmark.run(name, torch.device("cuda"))
    assert ok, (found, limit)


@pytest.mark.parametrize(
    "name",
    [
        *BITS,
        *(
            f"{check} {p}"
            for check in ("first step", "wrong convolution")
            for p in ("fp32", "bf16")
        ),
        "tf32 is off",
        "two processes",
        "near the CPU",
        "a level change",
    ],
)
def test_checks_hold_on_a_cpu(name):
    found, limit, ok = (benchmark.CHECKS | benchmark.SPEEDS)[name](CPU)
    assert ok, (found, limit)


@pytest.mark.parametrize("name", BITS)
def test_a_step_that_depends_on_more_than_its_member_fails_them(name, monkeypatch):
    step, steps = training.Group.step_one, iter(range(10**6))

    def other(group, k):
        step(group, k)
        group.members[k].net.linear.bias.data.add_(1e-3 * next(steps))

    monkeypatch.setattr(training.Group, "step_one", other)
    assert not benchmark.CHECKS[name](CPU)[2]


def test_a_crash_and_a_hang_are_failed_lines_and_no_gpu_is_one():
    for (found, _, ok), word in (
        (benchmark.run("no such check", CPU), "KeyError"),
        (benchmark.run("two processes", CPU, seconds=0.01), "no end"),
    ):
        assert (ok, word in found) == (False, True)
    done = subprocess.run([*COMMAND, "--accept"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


@pytest.mark.slow
def test_the_benchmark_runs():
    done = subprocess.run([*COMMAND, "--quick", "--rounds=1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "times faster" in done.stdout
