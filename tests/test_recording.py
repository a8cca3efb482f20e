"""Recorded steps: what they must prove before use, with stand-ins on a CPU (on a GPU: test_accept.py)."""

from itertools import count

import numpy as np
import pytest
import torch
from conftest import equal, recipe

import common


def group_of(data, seeds, **more):
    return common.Group([common.Member(f"m{s}", recipe(), data, s) for s in seeds], data, recipe(), **more)


def everything(group):
    """All tensors of its members, masks included, as they are now."""
    return {f"{m.name} {name}": t.clone() for m in group.members
            for name, t in (m.state() | common.prefixed(mask=m.masks)).items()}  # fmt: skip


def trained(group, stop):
    list(common.train(group, stop, peak=0.1))
    return everything(group)


# ---------------------------------------------------------------- stand-ins: what may go wrong


def replay_of(group, k, before=lambda: None, after=lambda: None, times=1):
    def replay():
        before()
        for _ in range(times):
            group.step(k)
        after()

    return replay


def honest(group, k):
    for _ in range(4):  # the real one warms up
        group.step(k)
    return replay_of(group, k)


def failing(error):
    def record(group, k):
        group.step(k)
        raise error

    return record


def altering(group, k):
    group.members[k].net.conv.weight.data.add_(1)
    return replay_of(group, k, after=lambda: group.members[k].net.conv.weight.data.add_(1e-2))


def forgetting(group, k):
    turns = count()
    return lambda: None if next(turns) else group.step(k)


def with_stale(what):
    """Replays see the value that one or more tensors had when it was recorded."""

    def record(group, k):
        tensors = what(group, k)
        kept, current = [t.clone() for t in tensors], []

        def before():
            current[:] = [t.clone() for t in tensors]
            for t, value in zip(tensors, kept):
                t.copy_(value)

        def after():
            for t, value in zip(tensors, current):
                t.copy_(value)

        return replay_of(group, k, before, after)

    return record


def in_eval_mode(group, k):
    net = group.members[k].net
    return replay_of(group, k, net.eval, net.train)


STAND_INS = {
    "raising": failing(RuntimeError("operation not permitted when stream is capturing")),
    "altering a weight": altering, "forgetting the second step": forgetting, "in eval mode": in_eval_mode,
    "stepping twice": lambda group, k: replay_of(group, k, times=2),
    "doing nothing": lambda group, k: lambda: None,
    "stale batch": with_stale(lambda group, k: [group.examples]),
    "stale rate": with_stale(lambda group, k: [group.rate]),
    "ignoring masks": with_stale(lambda group, k: [*group.members[k].masks.values()]),
    "NaN": lambda group, k: replay_of(group, k, after=lambda: group.members[k].loss_sum.fill_(torch.nan)),
    "another member's": lambda group, k: replay_of(group, 1 - k),
}  # fmt: skip


@pytest.mark.parametrize("what", STAND_INS)
def test_a_recording_that_is_not_the_step_is_refused_and_leaves_no_trace(digits, capfd, what):
    group, plain = group_of(digits, (0, 1)), group_of(digits, (0, 1))
    for m in (*group.members, *plain.members):
        for mask in m.masks.values():
            mask[::3] = 0
    before, _ = trained(group, 3), trained(plain, 3)
    common.use_recording(group, 1, STAND_INS[what])
    err = capfd.readouterr().err
    assert (err[:10], err.count("\n"), group.replays) == ("note: m1: ", 1, [None, None])
    if what == "another member's":  # no recording of a member's own steps the other
        before, group.members = {k: t for k, t in before.items() if k[:2] == "m1"}, group.members[1:]
        assert equal(before, everything(group))
    else:
        assert equal(before, everything(group))
        assert equal(trained(group, 8), trained(plain, 8))


def test_an_honest_recording_is_used_without_a_word_and_changes_no_bit(digits, capfd):
    group, plain = group_of(digits, (0, 1)), group_of(digits, (0, 1))
    before, _ = trained(group, 3), trained(plain, 3)
    for k in (0, 1):
        common.use_recording(group, k, honest)
    one_batch = group_of(digits, (0,), subset=np.array([5, 9, 1296]))
    common.use_recording(one_batch, 0, honest)
    assert capfd.readouterr().err == ""
    assert None not in group.replays + one_batch.replays
    assert equal(before, everything(group))
    assert equal(trained(group, 30), trained(plain, 30))


def test_running_out_of_memory_while_recording_stays_an_error(digits):
    group = group_of(digits, (0,))
    before = everything(group)
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    with pytest.raises(torch.OutOfMemoryError):
        common.use_recording(group, 0, failing(error))
    assert equal(before, everything(group))


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
