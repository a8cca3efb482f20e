"""Iterative magnitude pruning: against torch's pruning, exact counts, and a plain re-implementation."""

import csv
import imp
import json
import math
import os
import signal
import subprocess
import sys
import time
from decimal import Decimal
from itertools import count

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, TINY, snapshot
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils import prune as torch_prune

import common


def start(ok, folder, *flags):
    """A starting point at step 5 in folder; returns the path of its rewind file."""
    path = folder / "rewind.safetensors"
    ok("pretrain", *TINY, "--steps", 5, *flags, "--out", path)
    return path


def results(folder):
    with open(folder / "results.csv") as f:
        return list(csv.DictReader(f))


def level(folder, n):
    tensors, info = common.load_tensors(folder / f"level{n:02d}.safetensors")
    return tensors, info


def same_levels(a, b, levels):
    for n in range(levels + 1):
        (x, xi), (y, yi) = level(a, n), level(b, n)
        assert x.keys() == y.keys()
        assert all(torch.equal(x[k], y[k]) for k in x)
        for info in (xi, yi):
            info["row"].pop("seconds")
            info["made_by"].pop("command")
        assert xi == yi
    strip = [[{k: v for k, v in row.items() if k != "seconds"} for row in results(f)] for f in (a, b)]
    assert strip[0] == strip[1]


# ---------------------------------------------------------------- the pruning rule


def magnitudes(net):
    return imp.importance(net, None, None)


def test_sixteen_levels_of_resnet20_have_exact_counts():
    net = common.ResNet(20, 16, 3, 10)
    common.initialise(net, 0)
    weights = net.state_dict()
    masks = {n: torch.ones(p.shape, dtype=torch.uint8) for n, p in net.named_parameters() if p.dim() > 1}
    remaining = 270896
    for _ in range(16):
        before = masks
        masks = imp.prune(magnitudes(net), masks, 0.2)
        remaining -= -(-remaining // 5)  # ceil(n / 5) go
        assert sum(int(m.sum()) for m in masks.values()) == remaining
        assert all((masks[k] <= before[k]).all() for k in masks)  # what is gone stays gone
        kept = torch.cat([weights[k][masks[k] == 1].abs() for k in masks])
        gone = torch.cat([weights[k][(before[k] == 1) & (masks[k] == 0)].abs() for k in masks])
        assert gone.max() <= kept.min()
    assert remaining == 7623


def test_pruning_equals_torchs_global_magnitude_pruning():
    net = common.ResNet(8, 4, 1, 10)
    common.initialise(net, 3)
    masks = {n: torch.ones(p.shape, dtype=torch.uint8) for n, p in net.named_parameters() if p.dim() > 1}
    kinds = torch.nn.Conv2d | torch.nn.Linear
    modules = {f"{n}.weight": m for n, m in net.named_modules() if isinstance(m, kinds)}
    worth = {n: t.clone() for n, t in magnitudes(net).items()}
    for _ in range(5):
        remaining = sum(int(m.sum()) for m in masks.values())
        masks = imp.prune(worth, masks, 0.2)
        torch_prune.global_unstructured([(m, "weight") for m in modules.values()], torch_prune.L1Unstructured,
                                        amount=math.ceil(remaining / 5))  # fmt: skip
        assert all(torch.equal(masks[n], m.weight_mask.to(torch.uint8)) for n, m in modules.items())


@given(st.lists(st.integers(-3, 3), min_size=2, max_size=60), st.integers(1, 99), st.integers(1, 3))
@settings(max_examples=200, deadline=None)
def test_exact_count_and_ties_by_position(values, percent, parts):
    fraction = percent / 100
    flat = torch.tensor(values, dtype=torch.float32)
    pieces = dict(enumerate(flat.chunk(parts)))
    masks = {k: torch.ones(p.shape, dtype=torch.uint8) for k, p in pieces.items()}
    for _ in range(2):
        alive = torch.cat(list(masks.values())).nonzero().squeeze(1).tolist()
        count = math.ceil(Decimal(str(fraction)) * len(alive))
        gone = sorted(alive, key=lambda i: (abs(values[i]), i))[:count]
        masks = imp.prune({k: p.abs() for k, p in pieces.items()}, masks, fraction)
        assert torch.cat(list(masks.values())).nonzero().squeeze(1).tolist() == sorted(set(alive) - set(gone))


def test_the_fraction_is_the_decimal_it_was_written_as():
    assert math.ceil(0.07 * 100) == 8  # what a float makes of it
    for n, fraction, gone in ((100, 0.07, 7), (270896, 0.2, 54180)):
        masks = imp.prune({"w": torch.arange(n)}, {"w": torch.ones(n, dtype=torch.uint8)}, fraction)
        assert n - int(masks["w"].sum()) == gone


# ---------------------------------------------------------------- the whole loop


def plain_imp(rewind, levels, images, labels, test):
    """Algorithm 1 as one would write it for one network; returns (weights, mask, accuracy) of each level."""
    tensors, info = common.load_tensors(rewind)
    r, names = info["recipe"], None
    mean = images.astype(np.float64).mean().astype(np.float32)
    std = images.astype(np.float64).std().astype(np.float32)
    framed = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    out, masks = [], None
    for n in range(levels + 1):
        net = common.ResNet(r["depth"], r["width"], 1, 10).to(memory_format=torch.channels_last)
        net.load_state_dict(tensors)
        prunable = {k: p for k, p in net.named_parameters() if p.dim() > 1}
        names = list(prunable)
        masks = masks or {k: torch.ones_like(p) for k, p in prunable.items()}
        for k, p in prunable.items():
            p.data *= masks[k]
        sgd = torch.optim.SGD(net.parameters(), torch.tensor(0.0), 0.9, weight_decay=1e-4, fused=True)
        for step in range(r["rewind_step"], r["total_steps"]):
            epoch, i = divmod(step, len(images) // r["batch_size"])
            order = np.random.default_rng([1, r["seed"], n, epoch]).permutation(len(images))
            draw = np.random.default_rng([2, r["seed"], n, epoch])
            top, left = draw.integers(0, 3, (2, len(images) // r["batch_size"] * r["batch_size"]))
            picks = range(i * r["batch_size"], (i + 1) * r["batch_size"])
            crops = [framed[order[j], top[j] : top[j] + 8, left[j] : left[j] + 8] for j in picks]
            x = torch.from_numpy((np.stack(crops).astype(np.float32) - mean) / std).permute(0, 3, 1, 2)
            loss = F.cross_entropy(net(x), torch.from_numpy(labels[order[picks]]))
            sgd.zero_grad()
            loss.backward()
            sgd.param_groups[0]["lr"].fill_(0.3 * 0.1 ** sum(m <= step for m in r["milestones"]))
            sgd.step()
            for k, p in prunable.items():
                p.data *= masks[k]
        net.eval()
        with torch.no_grad():
            x = torch.from_numpy((test[0].astype(np.float32) - mean) / std).permute(0, 3, 1, 2)
            accuracy = (net(x).argmax(1).numpy() == test[1]).mean()
        out.append((net.state_dict(), masks, accuracy))
        alive = [(abs(p.flatten()[j].item()), a, j) for a, p in enumerate(prunable.values())
                 for j in masks[names[a]].flatten().nonzero().squeeze(1).tolist()]  # fmt: skip
        masks = {k: m.clone() for k, m in masks.items()}
        for _, a, j in sorted(alive)[: -(-len(alive) // 5)]:
            masks[names[a]][np.unravel_index(j, masks[names[a]].shape)] = 0
    return out


def test_three_levels_equal_a_plain_reimplementation_bit_for_bit(ok, tmp_path, digits):
    rewind = start(ok, tmp_path, "--seed", 4)
    ok("imp", rewind, "--levels", 3)
    test = digits.test.numpy(), digits.test_labels.numpy()
    expected = plain_imp(rewind, 3, digits.train_images().numpy(), digits.labels.numpy(), test)
    for n, (weights, masks, accuracy) in enumerate(expected):
        tensors, info = level(tmp_path, n)
        for name, t in weights.items():
            assert torch.equal(tensors[f"weight.{name}"], t), (n, name)
        for name, mask in masks.items():
            assert torch.equal(tensors[f"mask.{name}"], mask.to(torch.uint8))
            if n < 3:
                assert torch.equal(tensors[f"next.{name}"], expected[n + 1][1][name].to(torch.uint8))
            assert not tensors[f"weight.{name}"][mask == 0].any()
        assert info["row"]["test_accuracy"] == accuracy


def test_files_and_rows_say_what_the_design_says(ok, tmp_path):
    rewind = start(ok, tmp_path)
    out = ok("imp", rewind, "--levels", 2)
    rows = results(tmp_path)
    assert list(rows[0]) == imp.COLUMNS
    assert {"test_loss", "train_loss", "steps", "seconds"} < set(rows[0])
    counts = [int(row["weights_remaining_count"]) for row in rows]
    assert counts[1:] == [n - -(-n // 5) for n in counts[:-1]]
    assert [float(row["weights_remaining"]) for row in rows] == [n / counts[0] for n in counts]
    assert {row["steps"] for row in rows} == {"40"}
    assert out.strip().endswith("results.csv")
    assert not (tmp_path / "state.safetensors").exists()
    _, info = level(tmp_path, 1)
    _, source = common.load_tensors(rewind)
    assert info["recipe"] == source["recipe"]
    assert {k: str(v) for k, v in info["row"].items()} == rows[1]
    assert set(common.RECIPE) == set(info["recipe"])
    content = (tmp_path / "level01.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert list(header["__metadata__"]) == ["json"]


def test_starting_points_together_equal_each_alone(ok, tmp_path):
    """Different seeds and rewind steps, side by side in one group on the CPU, and one after another."""
    flags = {"a": ["--seed", 0], "b": ["--seed", 1, "--steps", 0], "c": ["--seed", 2, "--pretrain-lr", 0.1]}
    for name, extra in flags.items():
        for place in ("alone", "group", "list"):
            start(ok, tmp_path / place / name, *extra)
        ok("imp", tmp_path / "alone" / name / "rewind.safetensors", "--levels", 1)
    for place, at_once in (("group", 3), ("list", 1)):
        paths = [tmp_path / place / name / "rewind.safetensors" for name in "cab"]
        ok("imp", *paths, "--levels", 1, "--at-once", at_once)
        for name in flags:
            same_levels(tmp_path / "alone" / name, tmp_path / place / name, 1)


def test_more_levels_go_on_and_the_same_command_is_already_done(ok, call, tmp_path):
    whole, parts = start(ok, tmp_path / "whole"), start(ok, tmp_path / "parts")
    ok("imp", whole, "--levels", 2)
    ok("imp", parts, "--levels", 0)
    ok("imp", parts, "--levels", 2)
    same_levels(whole.parent, parts.parent, 2)
    before = snapshot(tmp_path)
    assert "already done" in ok("imp", parts, "--levels", 1)
    assert snapshot(tmp_path) == before
    status, _, err = call("imp", parts, "--levels", 2, "--prune-fraction", 0.3)
    assert status == 2
    assert "prune_fraction 0.2 there, 0.3 now" in err
    assert snapshot(tmp_path) == before
    ok("imp", parts, "--levels", 1, "--prune-fraction", 0.3, "--force")
    assert not (parts.parent / "level02.safetensors").exists()
    counts = [results(path.parent)[1]["weights_remaining_count"] for path in (parts, whole)]
    assert counts[0] != counts[1]


def test_another_starting_point_under_the_same_name_is_refused(ok, call, tmp_path):
    rewind = start(ok, tmp_path)
    ok("imp", rewind, "--levels", 0)
    start(ok, tmp_path, "--seed", 1, "--force")
    status, _, err = call("imp", rewind, "--levels", 0)
    assert status == 2
    assert "seed 0 there, 1 now" in err
    assert "rewind_sha256" in err


def test_order_seed_changes_the_order_alone(ok, call, tmp_path):
    rewind = start(ok, tmp_path)
    ok("imp", rewind, "--levels", 1)
    ok("imp", rewind, "--levels", 1, "--order-seed", 9, "--out", tmp_path / "other")
    ok("imp", rewind, "--levels", 1, "--order-seed", 0, "--out", tmp_path / "same")
    mine, other, same = (level(folder, 1)[0] for folder in (tmp_path, tmp_path / "other", tmp_path / "same"))
    assert not torch.equal(mine["weight.conv.weight"], other["weight.conv.weight"])
    assert all(torch.equal(mine[k], same[k]) for k in mine)
    for own in ([], ["--out", rewind.parent]):  # would mix with the run's own levels
        assert call("imp", rewind, "--order-seed", 9, *own)[0] == 2


def test_results_csv_heals_from_the_level_files(ok, tmp_path):
    rewind = start(ok, tmp_path)
    ok("imp", rewind, "--levels", 1)
    good = (tmp_path / "results.csv").read_bytes()
    (tmp_path / "results.csv").write_text("level\n0\n")
    ok("imp", rewind, "--levels", 1)
    assert (tmp_path / "results.csv").read_bytes() == good


def test_force_leaves_no_results_of_the_old_levels(ok, call, tmp_path, monkeypatch):
    rewind = start(ok, tmp_path)
    ok("imp", rewind, "--levels", 1)
    kept = tmp_path / "level03-copy.safetensors"
    kept.write_bytes(rewind.read_bytes())

    def stop(*args, **more):
        raise common.Stopped(15)

    monkeypatch.setattr(common, "train", stop)
    assert call("imp", rewind, "--levels", 1, "--force")[0] == 143
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"rewind.safetensors", ".lock", kept.name}


def test_a_diverging_run_stops_and_its_company_finishes(ok, call, tmp_path):
    good, bad = start(ok, tmp_path / "good"), start(ok, tmp_path / "bad", "--seed", 1)
    weights, info = common.load_tensors(bad)
    weights["linear.weight"] *= 1e38
    info.pop("test_accuracy")
    common.save_tensors(bad, weights, info)
    status, _, err = call("imp", bad, good, "--levels", 1, "--at-once", 2)
    assert status == 1
    assert "bad: the loss is not finite at level 0, step 6" in err
    assert len(results(tmp_path / "good")) == 2
    assert not (tmp_path / "bad" / "results.csv").exists()


# ---------------------------------------------------------------- killed and continued


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_killed_run_continues_bit_for_bit(ok, tmp_path, how):
    """The real process in the background of a shell, stopped once its first state is on disk."""
    flags = ["--total-steps", 120]
    whole, killed = start(ok, tmp_path / "whole", *flags), start(ok, tmp_path / "killed", *flags)
    ok("imp", whole, "--levels", 2)
    command = [sys.executable, ROOT / "imp.py", killed, "--levels", 2, "--save-every", 0.001]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    script = f"{' '.join(map(str, command))} & echo $!; wait $!"
    shell = subprocess.Popen(["bash", "-c", script], env=environment, stdout=subprocess.PIPE, text=True)
    process = int(shell.stdout.readline())
    state = killed.parent / "state.safetensors"
    deadline = time.monotonic() + 60
    while not (killed.parent / "level00.safetensors").exists() or not state.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process, how)
    shell.wait(60)
    shell.stdout.close()
    assert shell.returncode == 128 + how
    assert not (killed.parent / "level02.safetensors").exists()  # it was stopped on its way
    _, info = common.load_tensors(state)
    ok("imp", killed, "--levels", 2)
    same_levels(whole.parent, killed.parent, 2)
    assert not state.exists()
    assert 5 < info["step"] <= 120


@pytest.mark.parametrize("stop_at", [8, 30, 50])
def test_a_member_whose_turn_has_not_come_is_not_saved(ok, call, tmp_path, monkeypatch, stop_at):
    """Three different starts in one group, stopped before b's turn, after it, and at level 1."""
    steps = {"a": 0, "b": 20, "c": 45}  # c has nothing left to train
    for place in ("whole", "stopped"):
        for name, n in steps.items():
            start(ok, tmp_path / place / name, "--seed", n, "--steps", n)
    ok("imp", *(tmp_path / "whole" / name / "rewind.safetensors" for name in steps), "--levels", 1)
    calls, steps_of_all = count(1), common.Group.steps

    def step(group, active):
        steps_of_all(group, active)
        if next(calls) == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    command = ["imp", *(tmp_path / "stopped" / name / "rewind.safetensors" for name in steps), "--levels", 1]
    with monkeypatch.context() as patch:
        patch.setattr(common.Group, "steps", step)
        status, _, err = call(*command, "--at-once", 3, "--save-every", 1e-9)
    assert status == 128 + signal.SIGTERM, err
    saved = {name for name in steps if (tmp_path / "stopped" / name / "state.safetensors").exists()}
    assert saved == {8: {"a"}, 30: {"a", "b"}, 50: {"a", "b", "c"}}[stop_at]  # c at the end of level 0
    ok(*command)
    for name in steps:
        same_levels(tmp_path / "whole" / name, tmp_path / "stopped" / name, 1)


def test_a_folder_moved_away_and_made_anew_while_it_trains_is_a_failure(ok, call, tmp_path, monkeypatch):
    rewind, finish = start(ok, tmp_path / "run"), imp.finish_level

    def finish_and_move(run, *rest):
        finish(run, *rest)
        if run.level == 1:
            (tmp_path / "run").rename(tmp_path / "moved")
            (tmp_path / "run").mkdir()

    monkeypatch.setattr(imp, "finish_level", finish_and_move)
    status, _, err = call("imp", rewind, "--levels", 1)
    assert (status, err.count("\n")) == (1, 1)
    assert "disappeared" in err


def test_a_criterion_from_chance_resumes_and_is_never_mixed_with_magnitude(ok, call, tmp_path, monkeypatch):
    """One function and its name: masks differ by seed and level, and a resumed run never prunes again."""
    rewinds = [start(ok, tmp_path / name, "--seed", seed) for name, seed in (("a", 0), ("b", 1), ("c", 0))]
    ok("imp", rewinds[2], "--levels", 1)
    with monkeypatch.context() as patch:
        patch.setattr(imp, "CRITERION", "random")
        patch.setattr(imp, "importance", lambda net, data, draw: {
            name: torch.from_numpy(draw.random(p.shape)) for name, p in net.prunable().items()})  # fmt: skip
        for rewind in rewinds[:2]:
            ok("imp", rewind, "--levels", 1)
        a, b = (level(rewind.parent, 0)[0]["next.conv.weight"] for rewind in rewinds[:2])
        assert not torch.equal(a, b)
        patch.setattr(imp, "importance", None)
        assert "already done" in ok("imp", rewinds[0], "--levels", 1)
        status, _, err = call("imp", rewinds[2], "--levels", 2)
        assert status == 2
        assert "criterion magnitude there, random now" in err


def test_a_rule_that_leaves_gradients_behind_changes_no_later_level(ok, call, tmp_path, monkeypatch):
    """SNIP as one would write it at first, with backward() in train mode: level by level as in one go."""
    rewinds = [start(ok, tmp_path / name) for name in ("whole", "parts", "broken")]

    def snip(net, data, draw):
        net.train()
        F.cross_entropy(net(data.normalise(data.train_images()[:64])), data.labels[:64]).backward()
        return {name: (p * p.grad).abs().detach() for name, p in net.prunable().items()}

    monkeypatch.setattr(imp, "CRITERION", "snip")
    monkeypatch.setattr(imp, "importance", snip)
    ok("imp", rewinds[0], "--levels", 2)
    for n in (0, 1, 2):
        ok("imp", rewinds[1], "--levels", n)
    same_levels(rewinds[0].parent, rewinds[1].parent, 2)
    monkeypatch.setattr(imp, "importance", lambda *_: {k: p * torch.nan for k, p in snip(*_).items()})
    status, _, err = call("imp", rewinds[2], "--levels", 1)
    assert (status, err.count("\n")) == (1, 1)
    assert "snip" in err


def test_a_full_disk_keeps_what_is_finished(ok, tmp_path):
    """A real limit on the size of files, below that of a level."""
    rewind = start(ok, tmp_path)
    ok("imp", rewind, "--levels", 0)
    before = snapshot(tmp_path)
    command = f"ulimit -f 8; exec {sys.executable} {ROOT / 'imp.py'} {rewind} --levels 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "level01.safetensors: File too large; what was finished before is kept" in done.stderr
    (tmp_path / ".level01.safetensors.tmp").unlink()
    assert snapshot(tmp_path) == before
    ok("imp", rewind, "--levels", 1)


def test_two_processes_on_one_folder(ok, call, tmp_path):
    rewind = start(ok, tmp_path)
    held = common.lock(tmp_path / ".lock")
    for stage, *argv in (["imp", rewind], ["pretrain", *TINY, "--steps", 5, "--force", "--out", rewind]):
        status, _, err = call(stage, *argv)
        assert status == 2
        assert f"is in use by process {os.getpid()} on" in err
    held.close()
    ok("imp", rewind, "--levels", 0)
