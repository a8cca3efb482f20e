"""Recorded steps: what they must prove before they are used, with stand-ins on a CPU; real ones on a GPU."""

from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, recipe

import common


def group_of(data, seeds, **more):
    return common.Group([common.Member(f"m{s}", recipe(), data, s) for s in seeds], data, recipe(), **more)


def everything(m):
    return m.copy() | {f"mask.{name}": mask.clone() for name, mask in m.masks.items()}


def same(a, b):
    return all(torch.equal(t, b[name]) for name, t in a.items())


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


def raising(group, k):
    group.step(k)
    raise RuntimeError("operation not permitted when stream is capturing")


def altering(group, k):
    with torch.no_grad():
        group.members[k].net.conv.weight.add_(1)
    return replay_of(group, k, after=lambda: group.members[k].net.conv.weight.data.add_(1e-2))


def forgetting(group, k):
    turns = count()
    return lambda: None if next(turns) else group.step(k)


def with_stale(name):
    def stale(group, k):
        kept = getattr(group, name).clone()

        def replay():
            current = getattr(group, name).clone()
            getattr(group, name).copy_(kept)
            group.step(k)
            getattr(group, name).copy_(current)

        return replay

    return stale


def ignoring_masks(group, k):
    m = group.members[k]

    def replay():
        masks = {name: mask.clone() for name, mask in m.masks.items()}
        for mask in m.masks.values():
            mask.fill_(1)
        group.step(k)
        for name, mask in masks.items():
            m.masks[name].copy_(mask)

    return replay


def in_eval_mode(group, k):
    net = group.members[k].net
    return replay_of(group, k, net.eval, net.train)


STAND_INS = {
    "raising": raising, "altering a weight": altering, "forgetting the second step": forgetting,
    "stepping twice": lambda group, k: replay_of(group, k, times=2),
    "doing nothing": lambda group, k: lambda: None, "stale batch": with_stale("examples"),
    "stale rate": with_stale("rate"), "ignoring masks": ignoring_masks,
    "in eval mode": in_eval_mode,
    "NaN": lambda group, k: replay_of(group, k, after=lambda: group.members[k].loss_sum.fill_(torch.nan)),
    "another member's": lambda group, k: replay_of(group, 1 - k),
}  # fmt: skip


@pytest.mark.parametrize("what", STAND_INS)
def test_a_recording_that_is_not_the_step_is_refused_and_leaves_no_trace(digits, capfd, what):
    group, plain = group_of(digits, (0, 1)), group_of(digits, (0, 1))
    for m in (*group.members, *plain.members):
        for mask in m.masks.values():
            mask[::3] = 0
    list(common.train(group, 3, peak=0.1))
    list(common.train(plain, 3, peak=0.1))
    before = everything(group.members[1])
    common.use_recording(group, 1, STAND_INS[what])
    err = capfd.readouterr().err
    assert err.startswith("note: m1: ")
    assert err.count("\n") == 1
    assert group.replays == [None, None]
    assert same(before, everything(group.members[1]))
    if what != "another member's":  # no recording of a member's own steps the other
        list(common.train(group, 8, peak=0.1))
        list(common.train(plain, 8, peak=0.1))
        assert all(same(everything(a), everything(b)) for a, b in zip(group.members, plain.members))


def test_an_honest_recording_is_used_without_a_word_and_changes_no_bit(digits, capfd):
    group, plain = group_of(digits, (0, 1)), group_of(digits, (0, 1))
    list(common.train(group, 3, peak=0.1))
    list(common.train(plain, 3, peak=0.1))
    before = [everything(m) for m in group.members]
    for k in (0, 1):
        common.use_recording(group, k, honest)
    assert capfd.readouterr().err == ""
    assert None not in group.replays
    assert all(same(a, everything(m)) for a, m in zip(before, group.members))
    list(common.train(group, 30, peak=0.1))
    list(common.train(plain, 30, peak=0.1))
    assert all(same(everything(a), everything(b)) for a, b in zip(group.members, plain.members))


def test_a_subset_of_one_batch_can_be_recorded_too(digits, capfd):
    group = group_of(digits, (0,), subset=np.array([5, 9, 1296]))
    common.use_recording(group, 0, honest)
    assert (capfd.readouterr().err, group.replays[0] is None) == ("", False)


def test_running_out_of_memory_while_recording_stays_an_error(digits):
    def out_of_memory(group, k):
        group.step(k)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    group = group_of(digits, (0,))
    before = everything(group.members[0])
    with pytest.raises(torch.OutOfMemoryError):
        common.use_recording(group, 0, out_of_memory)
    assert same(before, everything(group.members[0]))


def test_batch_norm_has_the_bits_of_torchs(digits):
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


# ---------------------------------------------------------------- on a GPU

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU, and -m cuda")


def images_like_cifar10(device):
    draw = np.random.default_rng(0)
    images, labels = draw.integers(0, 256, (1000, 32, 32, 3), np.uint8), draw.integers(0, 10, 1000)
    x, y, mean, std = (
        torch.from_numpy(a).to(device) for a in (images, labels, *common.channel_statistics(images))
    )
    return common.Data([*"0123456789"], F.pad(x, (0, 0, 4, 4, 4, 4)), y, x, y, mean, std, "", 4, True)


def test_a_device_without_a_number_is_the_first(monkeypatch):
    """What can be seen without a GPU: `auto` and `cuda` name one that CUDA accepts."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch._C, "_cuda_setDevice", chosen.append, raising=False)
    for name in ("auto", "cuda", "cuda:1"):
        assert common.resolve_device(name).type == "cuda"
    assert chosen == [0, 0, 1]


def gpu_group(seeds, data, precision="fp32", steps=20):
    settings = common.PRESETS["cifar10"] | {"classes": 10, "precision": precision, "total_steps": steps}
    return common.Group([common.Member(f"m{s}", settings, data, s) for s in seeds], data, settings)


def from_starts(group, starts, level):
    """Half-zero masks, as after prunings, and a training of every member from its own step."""
    for m, start in zip(group.members, starts):
        masks = {name: mask.clone() for name, mask in m.masks.items()}
        for mask in masks.values():
            mask[::2] = 0
        m.rewind({name: t.clone() for name, t in m.weights().items()}, masks, start)
    list(common.train(group, 20, peak=0.1, level=level))


@pytest.mark.cuda
@needs_gpu
def test_a_gpu_follows_the_cpu(digits):
    gpu_digits = common.load_data("digits", "digits", Path("data"), common.resolve_device("cuda"))
    ours, theirs = group_of(digits, (0,)), group_of(gpu_digits, (0,))
    for group in (ours, theirs):
        list(common.train(group, 10, peak=0.1))
    for name, t in ours.members[0].weights().items():
        torch.testing.assert_close(theirs.members[0].weights()[name].cpu(), t, rtol=1e-2, atol=1e-3)


@pytest.mark.cuda
@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_recorded_step_is_the_step_and_company_changes_nothing(precision, capfd):
    """Eight starts of ResNet-20, half-zero masks, two levels with one recording: plain, recorded, alone."""
    data, starts = images_like_cifar10(common.resolve_device("cuda")), (3, 0, 7, 0, 20, 0, 1, 2)
    fresh = [common.Member(f"m{s}", common.CIFAR10 | {"classes": 10}, data, s).copy() for s in range(8)]
    plain, recorded, alone = (gpu_group(range(n), data, precision) for n in (8, 8, 1))
    assert capfd.readouterr().err == ""
    assert None not in recorded.replays + alone.replays
    assert all(same(state, m.copy()) for state, m in zip(fresh, recorded.members))  # as they were
    plain.replays = [None] * 8
    for level in (0, 1):
        for group in (plain, recorded, alone):
            from_starts(group, starts, level)
        for a, b in [*zip(plain.members, recorded.members), (alone.members[0], recorded.members[0])]:
            assert same(everything(a), everything(b))


@pytest.mark.cuda
@needs_gpu
def test_a_recording_that_fails_leaves_a_clean_device(monkeypatch, capfd):
    """A step that asks the GPU for a number cannot be recorded; plain steps train, the next group records."""
    data, step = images_like_cifar10(common.resolve_device("cuda")), common.Group.step
    stream, asked = torch.cuda.current_stream(), []

    def asking(group, k):
        step(group, k)
        asked.append(group.members[k].loss_sum.item())

    with monkeypatch.context() as patch:
        patch.setattr(common.Group, "step", asking)
        failed = gpu_group((0, 1), data)
        assert failed.replays == [None, None]
        assert capfd.readouterr().err.count("note: ") == 2
        assert torch.cuda.current_stream() == stream
        list(common.train(failed, 5, peak=0.1))
    assert asked
    torch.cuda.empty_cache()
    torch.cuda.synchronize()
    good = gpu_group((0, 1), data)
    assert None not in good.replays
    list(common.train(good, 5, peak=0.1))
    assert all(same(everything(a), everything(b)) for a, b in zip(failed.members, good.members))


@pytest.mark.cuda
@needs_gpu
def test_out_of_gpu_memory_says_what_to_lower(ok, call, tmp_path):
    rewind = tmp_path / "rewind.safetensors"
    ok("pretrain", *TINY, "--steps", 0, "--device", "cpu", "--out", rewind)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-6)
    try:
        status, _, err = call("imp", rewind, "--device", "cuda")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert status == 1
    assert "lower --at-once" in err
