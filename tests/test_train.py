"""Training: against hand-written loops, alone and in company, from any starting step."""



import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import recipe

import common


def run(members, data, stop, **more):
    schedule = {"peak": more.pop("peak", 0.1), "level": more.pop("level", 0)}
    group = common.Group(members, data, more.pop("recipe", recipe()), **more)
    return list(common.train(group, stop, **schedule))


def member(data, seed=0, name="m", **changes):
    return common.Member(name, recipe(**changes), data, seed)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.weights().values(), b.weights().values()))


def test_learning_rate_decays_at_its_milestones():
    r = {"lr_decay": 0.1, "milestones": [31200, 46800]}
    steps = [0, 31199, 31200, 46799, 46800, 62399]
    expected = [0.4, 0.4, 0.04, 0.04, 0.004, 0.004]
    assert [common.learning_rate(r, 0.4, t) for t in steps] == pytest.approx(expected)


def test_sgd_and_schedule_equal_a_hand_written_loop(digits):
    """v = momentum v + (g + decay w), w = w - rate v, mask; the rate falls at steps 3 and 5."""
    r = recipe(weight_decay=0.01, milestones=[3, 5], lr_decay=0.1)
    m = member(digits)
    mask = {name: (torch.rand(p.shape, generator=torch.Generator().manual_seed(1)) > 0.3).float()
            for name, p in m.prunable.items()}  # fmt: skip
    start = {name: t.clone() for name, t in m.weights().items()}
    m.rewind(start, mask, 1)
    twin = common.ResNet(r["depth"], r["width"], 1, 10)
    twin.load_state_dict(start)
    with torch.no_grad():
        for name, p in twin.named_parameters():
            p.mul_(mask.get(name, torch.tensor(1.0)))
    velocity = {name: torch.zeros_like(p) for name, p in twin.named_parameters()}
    losses = []
    for step in range(1, 7):
        table = common.epoch_table(0, 2, 0, 1297, 64, 1, False)[:, step]
        images = common.take_batch(digits, torch.from_numpy(table))
        loss = F.cross_entropy(twin(images), digits.labels[table[0]])
        losses.append(loss.item())
        gradients = torch.autograd.grad(loss, list(twin.parameters()))
        rate = 0.2 * {1: 1, 2: 1, 3: 0.1, 4: 0.1, 5: 0.01, 6: 0.01}[step]
        with torch.no_grad():
            for (name, p), g in zip(twin.named_parameters(), gradients):
                velocity[name] = 0.9 * velocity[name] + g + 0.01 * p
                p -= rate * velocity[name]
                p.mul_(mask.get(name, torch.tensor(1.0)))
    assert run([m], digits, 7, recipe=r, level=2, peak=0.2) == [2, 3, 4, 5, 6, 7]
    for name, t in twin.state_dict().items():
        torch.testing.assert_close(m.weights()[name], t, rtol=1e-4, atol=1e-6)
        assert name not in mask or not m.weights()[name][mask[name] == 0].any()
    assert m.loss_sum.item() == pytest.approx(sum(losses), rel=1e-5)


def test_pruned_weights_are_zero_at_every_step(digits):
    m = member(digits)
    masks = {name: (torch.arange(p.numel()).view(p.shape) % 3 > 0).float() for name, p in m.prunable.items()}
    m.rewind({name: t.clone() for name, t in m.weights().items()}, masks, 0)
    for _ in common.train(common.Group([m], digits, recipe()), 5, peak=0.1):
        assert not any(p[masks[name] == 0].any() for name, p in m.prunable.items())
        assert any(buffer.any() for buffer in m.momentum.values())


def test_members_side_by_side_equal_members_alone(digits):
    """Company, order and different first steps change no bit, at two levels with one group."""
    starts = [0, 7, 3, 25]
    alone, together = ([member(digits, seed, f"m{seed}") for seed in range(4)] for _ in range(2))
    group = common.Group(together[::-1], digits, recipe())
    for level in (1, 2):
        for m, start in zip([*alone, *together], starts * 2):
            m.rewind({name: t.clone() for name, t in m.weights().items()}, m.masks, start)
        for m in alone:
            run([m], digits, 25, level=level)
        for done in common.train(group, 25, peak=0.1, level=level):
            assert [m.step for m in together] == [max(done, start) for start in starts]
        assert all(same(a, b) for a, b in zip(alone, together))
        assert [a.loss_sum.item() for a in alone] == [b.loss_sum.item() for b in together]
        assert [m.loss_steps for m in together] == [20, 18, 20, 0]


def test_all_data_pretraining_is_the_beginning_of_level_0(digits):
    whole, parts = member(digits), member(digits)
    run([whole], digits, 30)
    run([parts], digits, 11)
    run([parts], digits, 30)
    assert same(whole, parts)
    assert not same(whole, member(digits))


def test_a_rewound_member_sees_the_order_of_its_step(digits):
    """From step 25 on (epoch 1 from its 6th batch) training takes exactly those batches."""
    seen = []
    m = member(digits)
    m.rewind({name: t.clone() for name, t in m.weights().items()}, m.masks, 25)
    hook = m.net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    run([m], digits, 45, level=3)
    hook.remove()
    for step, images in zip(range(25, 45), seen, strict=True):
        table = common.epoch_table(0, 3, step // 20, 1297, 64, 1, False)[:, step % 20]
        assert torch.equal(images, common.take_batch(digits, torch.from_numpy(table)))


def test_train_loss_is_the_mean_over_the_last_epoch(digits):
    m = member(digits)
    sums = []
    for _ in common.train(common.Group([m], digits, recipe()), 45, peak=0.1):
        sums.append((m.loss_sum.item(), m.loss_steps))
    assert [n for _, n in sums] == [*range(1, 26), *range(1, 21)]  # 20 batches an epoch
    assert sums[-1][1] == 20


def test_a_subset_smaller_than_the_batch_is_one_batch(digits):
    subset = np.array([3, 700, 41])
    m = member(digits)
    seen = []
    m.net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[0]))
    run([m], digits, 4, subset=subset)
    assert seen == [3] * 4


def test_training_uses_the_subset_and_the_given_labels(digits):
    """With every label 4 the network learns to answer 4; it sees the images of the subset only."""
    m = member(digits)
    labels = torch.full_like(digits.labels, 4)
    subset = np.arange(100, 200)
    run([m], digits, 40, labels=labels, subset=subset)
    assert (common.predict(m.net, digits, digits.test).argmax(1) == 4).float().mean() > 0.95


def test_one_diverging_member_stops_and_the_others_go_on(digits):
    good, bad, alone = member(digits, 0, "good"), member(digits, 1, "bad"), member(digits, 0)
    with torch.no_grad():
        bad.net.linear.weight.fill_(math.inf)
    run([good, bad], digits, 10)
    run([alone], digits, 10)
    assert (bad.failed, bad.step) == (True, 1)
    assert not good.failed
    assert same(good, alone)


def test_rewind_restores_statistics_and_forgets_momentum(digits):
    m, fresh = member(digits), member(digits)
    start = {name: t.clone() for name, t in m.weights().items()}
    run([m], digits, 5)
    assert not torch.equal(m.net.bn.running_mean, start["bn.running_mean"])
    storage = m.net.conv.weight.data_ptr()
    m.rewind(start, m.masks, 0)
    assert same(m, fresh)
    assert not any(t.any() for t in m.momentum.values())
    assert m.net.conv.weight.data_ptr() == storage  # the same tensors: a captured graph would still use them
    run([m], digits, 5)
    run([fresh], digits, 5)
    assert same(m, fresh)


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


def test_evaluation_equals_numpy_and_is_in_eval_mode(digits):
    m = member(digits)
    run([m], digits, 20)
    accuracy, loss = common.evaluate(m.net, digits)
    again = common.evaluate(m.net, digits)
    assert (accuracy, loss) == again  # statistics did not move
    x = (digits.test.numpy().astype(np.float32) - digits.mean.item()) / digits.std.item()
    with torch.no_grad():
        logits = m.net.eval()(torch.from_numpy(x).permute(0, 3, 1, 2)).double().numpy()
    labels = digits.test_labels.numpy()
    logp = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert accuracy == (logits.argmax(1) == labels).mean()
    assert loss == pytest.approx(-logp[np.arange(500), labels].mean(), rel=1e-5)
