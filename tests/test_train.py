"""Training (its arithmetic: test_imp.py), and what recorded steps must prove (on a GPU: test_accept.py)."""

from itertools import count

import numpy as np
import pytest
import torch
from conftest import equal, recipe

import common


def member(data, seed=0):
    return common.Member(f"m{seed}", recipe(), data, seed)


def group_of(data, seeds, **more):
    return common.Group([member(data, seed) for seed in seeds], data, recipe(), **more)


def run(members, data, stop, level=0, **more):
    return list(common.train(common.Group(members, data, recipe(), **more), stop, peak=0.1, level=level))


def test_members_side_by_side_equal_members_alone(digits):
    """Company, order and different first steps change no bit, at two levels with one group."""
    starts = [0, 7, 3, 25]
    alone, together = ([member(digits, seed) for seed in range(4)] for _ in range(2))
    group, storage = common.Group(together[::-1], digits, recipe()), together[0].net.conv.weight.data_ptr()
    for level in (1, 2):
        for m, start in zip([*alone, *together], starts * 2):
            m.rewind({name: t.clone() for name, t in m.net.state_dict().items()}, m.masks, start)
        for m in alone:
            run([m], digits, 25, level=level)
        for done in common.train(group, 25, peak=0.1, level=level):
            assert [m.step for m in together] == [max(done, start) for start in starts]
        assert all(equal(a.state(), b.state()) for a, b in zip(alone, together))
        assert [m.loss_steps for m in together] == [20, 18, 20, 0]
    assert together[0].net.conv.weight.data_ptr() == storage  # a captured graph would still use it


def test_stopping_and_looking_change_nothing(digits):
    """Pre-training on all data is the beginning of level 0; an accuracy log leaves training in its mode."""
    whole, parts = member(digits), member(digits)
    run([whole], digits, 30)
    run([parts], digits, 11)
    for _ in common.train(common.Group([parts], digits, recipe()), 30, peak=0.1):
        common.evaluate(parts.net, digits)
    assert equal(whole.net.state_dict(), parts.net.state_dict())
    assert not equal(whole.state(), member(digits).state())
    whole.net.eval()
    common.predict(whole.net, digits, digits.test)
    assert not whole.net.training


def test_training_uses_the_subset_and_the_given_labels(digits):
    """With every label 4 the network learns to answer 4; a subset smaller than the batch is one batch."""
    m, seen = member(digits), []
    m.net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    labels = torch.full_like(digits.labels, 4)
    run([m], digits, 40, labels=labels, subset=np.arange(100, 200))
    assert (common.predict(m.net, digits, digits.test).argmax(1) == 4).float().mean() > 0.95
    seen.clear()
    run([member(digits), m], digits, 41, subset=np.array([3, 700, 41]))
    table = common.epoch_table(0, 0, 40, 3, 3, 1, False)[:, 0]
    table[0] = np.array([3, 700, 41])[table[0]]
    assert torch.equal(seen[0], common.take_batch(digits, torch.from_numpy(table)))


def everything(group):
    """All tensors of its members, masks included, as they are now."""
    return {f"{m.name} {name}": t.clone() for m in group.members
            for name, t in (m.state() | common.prefixed(mask=m.masks)).items()}  # fmt: skip


def trained(group, stop):
    list(common.train(group, stop, peak=0.1))
    return everything(group)


def in_turn(*acts):
    def replay():
        for act in acts:
            act()

    return replay


def honest(group, k):
    for _ in range(4):  # the real one warms up
        group.step(k)
    return lambda: group.step(k)


def failing(error):
    def record(group, k):
        group.step(k)
        raise error

    return record


def altering(group, k):
    weight = group.members[k].net.conv.weight.data.add_(1)
    return in_turn(lambda: group.step(k), lambda: weight.add_(1e-2))


def forgetting(group, k):
    turns = count()
    return lambda: None if next(turns) else group.step(k)


def with_stale(what):
    """Replays see the value that one or more tensors had when it was recorded."""
    def record(group, k):
        kept = [t.clone() for t in what(group, k)]

        def replay():
            current = [t.clone() for t in what(group, k)]
            torch._foreach_copy_(what(group, k), kept)
            group.step(k)
            torch._foreach_copy_(what(group, k), current)

        return replay

    return record


STAND_INS = {
    "raising": failing(RuntimeError("operation not permitted when stream is capturing")),
    "altering a weight": altering, "forgetting the second step": forgetting,
    "in eval mode": lambda group, k: in_turn(
        group.members[k].net.eval, lambda: group.step(k), group.members[k].net.train),
    "stepping twice": lambda group, k: in_turn(*[lambda: group.step(k)] * 2),
    "doing nothing": lambda group, k: lambda: None,
    "stale batch": with_stale(lambda group, k: [group.examples]),
    "stale rate": with_stale(lambda group, k: [group.rate]),
    "ignoring masks": with_stale(lambda group, k: [*group.members[k].masks.values()]),
    "NaN": lambda group, k: in_turn(
        lambda: group.step(k), lambda: group.members[k].loss_sum.fill_(torch.nan)),
    "another member's": lambda group, k: lambda: group.step(1 - k),
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
    assert (" is off by " in err) == (what != "raising")
    if what == "another member's":  # no recording of a member's own steps the other
        before, group.members = {k: t for k, t in before.items() if k[:2] == "m1"}, group.members[1:]
        assert equal(before, everything(group))
    else:
        assert equal(before, everything(group))
        assert equal(trained(group, 8), trained(plain, 8))


def test_an_honest_recording_is_used_without_a_word_and_changes_no_bit(digits, capfd):
    group, plain = group_of(digits, (0, 1)), group_of(digits, (0, 1))
    before, _ = trained(group, 3), trained(plain, 3)
    with pytest.raises(torch.OutOfMemoryError):  # which stays an error
        common.use_recording(group, 0, failing(torch.OutOfMemoryError("CUDA out of memory. Tried to ...")))
    assert equal(before, everything(group))
    for k in (0, 1):
        common.use_recording(group, k, honest)
    one_batch = group_of(digits, (0,), subset=np.array([5, 9, 1296]))
    common.use_recording(one_batch, 0, honest)
    assert capfd.readouterr().err == ""
    assert None not in group.replays + one_batch.replays
    assert equal(before, everything(group))
    assert equal(trained(group, 30), trained(plain, 30))
