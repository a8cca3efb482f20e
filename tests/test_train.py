"""Training: alone and in company, from any step, on a subset. Its arithmetic is compared in test_imp.py."""

import numpy as np
import torch
from conftest import equal, recipe

import common


def run(members, data, stop, level=0, **more):
    return list(common.train(common.Group(members, data, recipe(), **more), stop, peak=0.1, level=level))


def member(data, seed=0, name="m"):
    return common.Member(name, recipe(), data, seed)


def same(a, b):
    return equal(a.state(), b.state())


def test_members_side_by_side_equal_members_alone(digits):
    """Company, order and different first steps change no bit, at two levels with one group."""
    starts = [0, 7, 3, 25]
    alone, together = ([member(digits, seed, f"m{seed}") for seed in range(4)] for _ in range(2))
    group, storage = common.Group(together[::-1], digits, recipe()), together[0].net.conv.weight.data_ptr()
    for level in (1, 2):
        for m, start in zip([*alone, *together], starts * 2):
            m.rewind({name: t.clone() for name, t in m.net.state_dict().items()}, m.masks, start)
        for m in alone:
            run([m], digits, 25, level=level)
        for done in common.train(group, 25, peak=0.1, level=level):
            assert [m.step for m in together] == [max(done, start) for start in starts]
        assert all(same(a, b) for a, b in zip(alone, together))
        assert [m.loss_steps for m in together] == [20, 18, 20, 0]
    assert together[0].net.conv.weight.data_ptr() == storage  # a captured graph would still use it


def test_all_data_pretraining_is_the_beginning_of_level_0(digits):
    whole, parts = member(digits), member(digits)
    run([whole], digits, 30)
    run([parts], digits, 11)
    run([parts], digits, 30)
    assert equal(whole.net.state_dict(), parts.net.state_dict())
    assert not same(whole, member(digits))


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


def test_looking_into_a_network_in_the_middle_of_its_training_changes_nothing(digits):
    """An accuracy log or forgetting events: the training goes on in the mode that it was in."""
    watched, alone = member(digits), member(digits)
    for _ in common.train(common.Group([watched], digits, recipe()), 20, peak=0.1):
        common.evaluate(watched.net, digits)
    run([alone], digits, 20)
    assert same(watched, alone)
    alone.net.eval()
    common.predict(alone.net, digits, digits.test)
    assert not alone.net.training
