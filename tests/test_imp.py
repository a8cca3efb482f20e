"""Iterative magnitude pruning: against torch's pruning, exact counts, a plain re-implementation."""

import imp
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from decimal import Decimal
from itertools import count

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import FRACTION, ROOT, equal, level, made, read_csv, snapshot, start
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn.utils import prune as torch_prune

import common
import training


def test_sixteen_levels_of_resnet20_equal_torchs_global_magnitude_pruning():
    net = training.ResNet(20, 16, 3, 10)
    training.initialise(net, 0)
    worth = {name: t.clone() for name, t in imp.importance(net, None, None).items()}
    masks = {
        n: torch.ones(p.shape, dtype=torch.uint8) for n, p in net.named_parameters() if p.dim() > 1
    }
    kinds = torch.nn.Conv2d | torch.nn.Linear
    modules = {f"{n}.weight": m for n, m in net.named_modules() if isinstance(m, kinds)}
    remaining = 270896
    for _ in range(16):
        gone = -(-remaining // 5)  # ceil(n / 5)
        masks = imp.prune(worth, masks, 0.2)
        torch_prune.global_unstructured(
            [(m, "weight") for m in modules.values()], torch_prune.L1Unstructured, amount=gone
        )
        assert equal(masks, {n: m.weight_mask.to(torch.uint8) for n, m in modules.items()})
        remaining -= gone
        assert sum(int(m.sum()) for m in masks.values()) == remaining
    assert remaining == 7623


@given(st.lists(st.integers(-3, 3), min_size=2, max_size=60), st.integers(1, 99), st.integers(1, 3))
@example([1] * 100, 7, 1)  # the decimal counts: a float makes 8 of 0.07 * 100
@settings(max_examples=200, deadline=None)
def test_exact_count_and_ties_by_position(values, percent, parts):
    fraction = percent / 100
    pieces = dict(enumerate(torch.tensor(values, dtype=torch.float32).chunk(parts)))
    masks = {k: torch.ones(p.shape, dtype=torch.uint8) for k, p in pieces.items()}
    for _ in range(2):
        alive = torch.cat(list(masks.values())).nonzero().squeeze(1).tolist()
        count = math.ceil(Decimal(str(fraction)) * len(alive))
        gone = sorted(alive, key=lambda i: (abs(values[i]), i))[:count]
        masks = imp.prune({k: p.abs() for k, p in pieces.items()}, masks, fraction)
        assert torch.cat(list(masks.values())).nonzero().squeeze(1).tolist() == sorted(
            set(alive) - set(gone)
        )


def plain_imp(rewind, levels, digits, seed):
    """Algorithm 1 written plainly for one network; returns (weights, masks, row) of each level."""
    tensors, _ = training.load_tensors(rewind)
    images, labels = digits.train_images().numpy(), digits.labels.numpy()
    batch, per_epoch = 64, len(images) // 64
    mean, std = (value.astype(np.float32) for value in (np.mean(images), np.std(images)))
    framed = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    found, masks = [], None

    def normalised(x):
        return torch.from_numpy((x.astype(np.float32) - mean) / std).permute(0, 3, 1, 2)

    for n in range(levels + 1):
        net = training.ResNet(8, 2, 1, 10).to(memory_format=torch.channels_last)
        net.load_state_dict(tensors)
        prunable = {k: p for k, p in net.named_parameters() if p.dim() > 1}
        masks = masks or {k: torch.ones_like(p) for k, p in prunable.items()}
        for k, p in prunable.items():
            p.data *= masks[k]
        sgd = torch.optim.SGD(
            net.parameters(), torch.tensor(0.0), 0.9, weight_decay=1e-4, fused=True
        )
        losses = []
        for step in range(21, 45):
            epoch, i = divmod(step, per_epoch)
            order = np.random.default_rng([1, seed, n, epoch]).permutation(len(images))
            top, left = np.random.default_rng([2, seed, n, epoch]).integers(
                0, 3, (2, per_epoch * batch)
            )
            picks = range(i * batch, (i + 1) * batch)
            crops = [framed[order[j], top[j] : top[j] + 8, left[j] : left[j] + 8] for j in picks]
            loss = F.cross_entropy(
                net(normalised(np.stack(crops))), torch.from_numpy(labels[order[picks]])
            )
            losses.append(loss.item())
            sgd.zero_grad()
            loss.backward()
            sgd.param_groups[0]["lr"].fill_(0.3 * 0.1 ** sum(m <= step for m in (30, 40)))
            sgd.step()
            for k, p in prunable.items():
                p.data *= masks[k]
        with torch.no_grad():
            logits = net.eval()(normalised(digits.test.numpy())).double()
        kept, of = (
            sum(int(m.sum()) for m in masks.values()),
            sum(p.numel() for p in prunable.values()),
        )
        row = {
            "level": n,
            "weights_remaining": kept / of,
            "weights_remaining_count": kept,
            "test_accuracy": (logits.argmax(1) == digits.test_labels).double().mean().item(),
            "test_loss": F.cross_entropy(logits, digits.test_labels).item(),
            "train_loss": np.mean(losses[-per_epoch:]),
            "steps": len(losses),
        }
        found.append((net.state_dict(), masks, row))
        alive = [
            (abs(p.flatten()[j].item()), name, j)
            for name, p in prunable.items()
            for j in masks[name].flatten().nonzero().squeeze(1).tolist()
        ]
        masks, gone = (
            {k: m.clone() for k, m in masks.items()},
            math.ceil(Decimal(str(FRACTION)) * len(alive)),
        )
        for _, name, j in sorted(alive, key=lambda weight: weight[0])[:gone]:
            masks[name][np.unravel_index(j, masks[name].shape)] = 0
    return found


@pytest.mark.parametrize("order", [[], ["--order-seed", 9]])
def test_three_levels_equal_a_plain_reimplementation_bit_for_bit(ok, tmp_path, digits, order):
    """Order, crops, schedule, SGD, masks, rewinding, evaluation and pruning.

    Training goes from the 2nd step of epoch 1 on.
    """
    rewind = start(ok, tmp_path, "--seed", 4, "--steps", 21, "--label-noise", 0.5)  # there alone
    clean = start(ok, tmp_path / "clean", "--seed", 4, "--steps", 21)
    assert not equal(*(training.load_tensors(path)[0] for path in (rewind, clean)))
    out = tmp_path / "out"
    assert ok("imp", rewind, "--levels", 3, "--out", out, *order).strip().endswith("results.csv")
    assert not (out / "state.safetensors").exists()
    other_order = int(np.random.default_rng([8, 9, 0, 0]).integers(2**32, 2**63))  # no replicate's
    expected = plain_imp(rewind, 3, digits, other_order if order else 4)
    rows = read_csv(out / "results.csv")
    for n, (weights, masks, row) in enumerate(expected):
        tensors, info = level(out, n)
        assert equal(common.part(tensors, "weight"), weights)
        assert equal(
            common.part(tensors, "mask"), {k: mask.to(torch.uint8) for k, mask in masks.items()}
        )
        if n < 3:
            following = {k: mask.to(torch.uint8) for k, mask in expected[n + 1][1].items()}
            assert equal(common.part(tensors, "next"), following)
        assert not any(tensors[f"weight.{name}"][mask == 0].any() for name, mask in masks.items())
        assert {key: info["row"][key] for key in row} == pytest.approx(row, rel=1e-6)
        assert [*rows[n].items()] == [(key, str(info["row"][key])) for key in (*row, "seconds")]
        assert info["recipe"] == common.load_info(rewind)["recipe"]
    assert set(common.RECIPE) == set(info["recipe"])
    content = (out / "level01.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert list(header["__metadata__"]) == ["json"]


def test_more_levels_go_on_the_same_is_already_done_another_setting_needs_force(
    ok, call, refused, tmp_path
):
    rewind, whole, parts = start(ok, tmp_path), tmp_path / "whole", tmp_path / "parts"
    command = ["imp", rewind, "--out", parts, "--levels"]
    ok("imp", rewind, "--levels", 2, "--out", whole)
    for levels in (0, 2):
        ok(*command, levels)
    assert made(parts) == made(whole)
    before = snapshot(tmp_path)
    (parts / "results.csv").write_text("level\n0\n")  # heals from the level files
    assert "already done" in ok(*command, 1)
    assert snapshot(tmp_path) == before
    other = [*command, 1, "--prune-fraction", 0.3]
    refused(other, f"prune_fraction {FRACTION} there, 0.3 now")
    kept = shutil.copy(rewind, parts / "level03-copy.safetensors")

    def stop(*args, **more):
        raise common.Stopped(15)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "train", stop)
        assert call(*other, "--force")[0] == 143  # and no results of the old levels are left
    assert {path.name for path in parts.iterdir()} == {".lock", kept.name}
    ok(*other)
    assert level(parts, 1)[1]["prune_fraction"] == 0.3
    start(ok, tmp_path, "--seed", 1, "--force")  # another starting point under the same name
    refused(other, "seed 0 there, 1 now", "rewind_sha256")


def test_a_diverging_run_stops_and_its_company_finishes(ok, refused, tmp_path):
    good, bad = start(ok, tmp_path / "good"), start(ok, tmp_path / "bad", "--seed", 1)
    weights, info = training.load_tensors(bad)
    weights["linear.weight"] *= 1e38
    training.save_tensors(bad, weights, info)
    ok("imp", good, "--levels", 1, "--out", tmp_path / "alone")
    outs = ["--out", tmp_path / "lost", tmp_path / "goes on"]
    together = ["imp", bad, good, "--levels", 1, "--at-once", 2, *outs]
    refused(together, "lost: the loss is not finite at level 0, step 6", status=1)  # its first
    assert made(tmp_path / "goes on") == made(tmp_path / "alone")
    assert not (tmp_path / "lost" / "results.csv").exists()


def test_a_start_that_is_missing_is_named_and_the_others_are_trained(ok, refused, tmp_path):
    first, last = (start(ok, tmp_path / f"seed{n}", "--seed", n) for n in (0, 2))
    missing = [tmp_path / f"seed{n}" / "rewind.safetensors" for n in (1, 3)]
    alone = tmp_path / "alone"
    ok("imp", last, "--levels", 1, "--out", alone)
    command = ["imp", missing[0], first, missing[1], last, "--levels", 1]
    for _ in range(2):  # also where the others are done
        refused(command, *(f"{path}: No such file" for path in missing), status=1)
    assert [path.parent.exists() for path in missing] == [False, False]
    assert len(read_csv(first.parent / "results.csv")) == 2
    assert made(last.parent).items() >= made(alone).items()
    own = ["--masks", tmp_path / "gone", first.parent, "--out", tmp_path / "a", tmp_path / "b"]
    refused(["imp", missing[0], first, "--levels", 1, *own], f"{missing[0]}: No such", status=1)
    assert (tmp_path / "b" / "results.csv").exists()  # the masks go with their start
    refused(["imp", *missing], *(f"{path}: No such file" for path in missing))


# without a save before the signal; at level 1 with those of level 0, where c has nothing to train
@pytest.mark.parametrize(
    ("stop_at", "every", "expected"), [(8, 60, "a"), (30, 60, "ab"), (50, 1e-9, "abc")]
)
def test_a_signal_saves_whose_turn_has_come(
    ok, call, tmp_path, monkeypatch, stop_at, every, expected
):
    """Three different starts in one group, stopped before b's turn, after it, and at level 1.

    Then each goes on alone.
    """
    steps = {"a": 0, "b": 20, "c": 45}
    starts = [start(ok, tmp_path / name, "--seed", n, "--steps", n) for name, n in steps.items()]
    whole, stopped = ([tmp_path / where / name for name in steps] for where in ("whole", "stopped"))
    for path, out in zip(starts, whole):
        ok("imp", path, "--levels", 1, "--out", out)
    command = ["imp", *starts, "--levels", 1, "--out", *stopped]
    calls, steps_of_all = count(1), training.Group.step_all

    def step(group, active):
        steps_of_all(group, active)
        if next(calls) == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(training.Group, "step_all", step)
        assert call(*command, "--at-once", 3, "--save-every", every)[0] == 128 + signal.SIGTERM
    assert "".join(out.name for out in stopped if (out / "state.safetensors").exists()) == expected
    ok(*command)
    assert made(tmp_path / "stopped") == made(tmp_path / "whole")


def test_a_rule_of_ones_own(ok, refused, tmp_path, monkeypatch):
    """SNIP as one would write it at first, in train mode, and chance.

    Resumed it is as in one go, and never mixed with another rule.
    """
    mine, other, magnitude = (
        start(ok, tmp_path / n, "--seed", s) for n, s in (("a", 0), ("b", 1), ("c", 0))
    )
    whole, parts, drawn = tmp_path / "whole", tmp_path / "parts", []
    ok("imp", magnitude, "--levels", 0)

    def snip(net, data, draw):
        assert not net.training
        net.train()
        F.cross_entropy(net(data.normalise(data.train_images()[:64])), data.labels[:64]).backward()
        drawn.append(draw.random())
        return {
            name: (p * p.grad).abs().detach() ** drawn[-1] for name, p in net.prunable().items()
        }

    monkeypatch.setattr(imp, "CRITERION", "snip")
    monkeypatch.setattr(imp, "importance", snip)
    refused(["imp", magnitude, "--levels", 1], "criterion magnitude there, snip now")
    ok("imp", other, mine, "--levels", 2, "--at-once", 1, "--out", tmp_path / "other", whole)
    assert len({*drawn}) == 2 * 3  # runs, levels
    for n in (0, 1, 2):
        ok("imp", mine, "--levels", n, "--out", parts)
    assert (made(parts), drawn[6:]) == (made(whole), drawn[3:6])
    monkeypatch.setattr(
        imp, "importance", lambda *_: {k: p * torch.nan for k, p in snip(*_).items()}
    )
    refused(["imp", mine, "--levels", 1, "--out", tmp_path / "broken"], "snip", status=1)
    monkeypatch.setattr(imp, "importance", None)
    assert "already done" in ok("imp", mine, "--levels", 2, "--out", parts)


def test_a_full_disk_keeps_what_is_finished(ok, tmp_path):
    """A real limit on the size of files, below that of a level."""
    rewind = start(ok, tmp_path)
    ok("imp", rewind, "--levels", 0)
    before = snapshot(tmp_path)
    command = f"ulimit -f 8; exec {sys.executable} {ROOT / 'imp.py'} {rewind} --levels 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "level01.safetensors: File too large; what was finished before is kept" in done.stderr
    (tmp_path / ".level01.safetensors.tmp").unlink()
    assert snapshot(tmp_path) == before
    ok("imp", rewind, "--levels", 1)
