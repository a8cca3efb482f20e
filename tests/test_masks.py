"""Masks on trial: training under the masks of another run, and the figures about masks."""

import numpy as np
import pytest
import torch
from conftest import TINY, snapshot
from test_crash import crash_everywhere, run  # noqa: F401 - a server whose processes are killed at any write
from test_imp import level, same_levels, start

import common
import plot


def part(folder, n, which):
    """{name: tensor} of the weights, masks or next masks of a level."""
    cut = len(which) + 1
    return {name[cut:]: t for name, t in level(folder, n)[0].items() if name[:cut] == which + "."}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ------------------------------------------------------------ imp.py --masks


@pytest.fixture
def pruned(ok, tmp_path):
    """A finished run of two prunings, and a starting point of another seed at step 0."""
    ok("imp", start(ok, tmp_path / "own"), "--levels", 2)
    return tmp_path / "own", start(ok, tmp_path / "other", "--seed", 1000, "--steps", 0)


def test_training_under_the_masks_of_another_run(ok, pruned, tmp_path):
    own, other = pruned
    out = tmp_path / "control"
    ok("imp", other, "--masks", own, "--levels", 2, "--out", out)
    ok("imp", other, "--levels", 0)
    assert equal(part(out, 0, "weight"), part(other.parent, 0, "weight"))  # its own dense training
    for n in range(3):
        weights, mask = part(out, n, "weight"), part(out, n, "mask")
        assert equal(mask, part(own, n, "mask"))
        assert equal(part(out, n, "next"), part(own, n, "next"))
        assert not any(weights[name][mask[name] == 0].any() for name in mask)
    # under its own masks a run is itself, also beside another one in a group and after a stop between levels
    folders = ["--masks", own, own, "--out", tmp_path / "self", tmp_path / "more"]
    for last in (0, 2):
        ok("imp", own / "rewind.safetensors", other, *folders, "--levels", last, "--at-once", 2)
    assert all(equal(level(own, n)[0], level(tmp_path / "self", n)[0]) for n in range(3))
    same_levels(out, tmp_path / "more", 2)
    assert "already done" in ok("imp", other, "--masks", own, "--levels", 1, "--out", out)


def test_shuffled_masks_keep_the_count_of_every_layer_and_stay_nested(ok, pruned, tmp_path):
    own, other = pruned
    out, again = tmp_path / "shuffled", tmp_path / "again"
    for rewind, folder in ((other, out), (own / "rewind.safetensors", again)):
        ok("imp", rewind, "--masks", own, "--shuffle-masks", "--levels", 2, "--out", folder)
    for n in range(3):
        mask, following, theirs = part(out, n, "mask"), part(out, n, "next"), part(own, n, "next")
        assert all(following[name].sum() == theirs[name].sum() for name in theirs)
        assert all((following[name] <= mask[name]).all() for name in mask)
        assert not equal(following, theirs)
    assert not equal(part(out, 0, "next"), part(again, 0, "next"))  # the start's seed draws the permutation


def test_settings_name_the_masks_and_are_compared_by_content(ok, call, pruned, tmp_path):
    own, other = pruned
    command = ["imp", other, "--masks", own, "--levels", 1, "--out", tmp_path / "control"]
    ok(*command)
    _, info = level(tmp_path / "control", 1)
    assert (info["masks"], info["prune_fraction"], info["criterion"]) == ("all 5", 0.2, "magnitude")
    assert not {"masks", "masks_sha256", "shuffled"} & level(own, 1)[1].keys()
    before = snapshot(tmp_path)
    assert "shuffled unknown there, True now" in call(*command, "--shuffle-masks")[2]
    assert "masks all 5 there, unknown now" in call("imp", other, *command[-2:])[2]
    assert snapshot(tmp_path) == before
    for changed, word in ((0, "masks_sha256"), (1, "level01.safetensors: its next masks")):
        path = own / f"level0{changed}.safetensors"
        content, (tensors, about) = path.read_bytes(), level(own, changed)
        tensors["next.conv.weight"] = 1 - tensors["next.conv.weight"]
        common.save_tensors(path, tensors, about)
        status, _, err = call(*command)
        assert (status, word in err) == (2, True)
        path.write_bytes(content)


def test_names_of_starting_points():
    all_data = {"scheme": "all", "subset_size": None, "class_balanced": None, "label_noise": 0.0}
    subset = {"scheme": "easy", "subset_size": 3200, "class_balanced": False, "label_noise": 0.5}
    assert [common.start_name(recipe | {"rewind_step": step}) for recipe, step in (
        (all_data, 400), (subset, 200), (subset | {"class_balanced": True}, 200), (subset, 0),
        (subset | {"scheme": "random", "class_balanced": True, "label_noise": 0.0}, 200))] == [
        "all 400", "easy 3200 200 noise 50%", "easy balanced 3200 200 noise 50%", "init", "random 3200 200",
    ]  # fmt: skip


def test_masks_that_cannot_be_used_are_one_line(ok, call, pruned, tmp_path):
    own, other = pruned
    wide = start(ok, tmp_path / "wide", "--width", 3)
    deep = start(ok, tmp_path / "deep", "--depth", 14)
    ok("imp", other, "--masks", own, "--levels", 0, "--out", tmp_path / "control")
    out = tmp_path / "out"
    before = snapshot(tmp_path)
    for rewind, flags, words in (
        (other, ["--masks", own, "--levels", 3], ["own has not finished level 3"]),
        (other, ["--masks", tmp_path / "nowhere"], ["nowhere has not finished level 0"]),
        (wide, ["--masks", own], ["level00.safetensors", "conv.weight", "recipe needs"]),
        (deep, ["--masks", own], ["level00.safetensors", "tensor blocks.1"]),
        (other, ["--masks", own, own], ["--masks: 2 folders for 1"]),
        (other, ["--masks", tmp_path / "control"], ["control", "itself under the masks of all 5"]),
        (other, ["--masks", own, "--levels", 0, "--prune-fraction", 0.3], ["0.3 contradicts 0.2"]),
        (other, ["--shuffle-masks"], ["--shuffle-masks needs --masks"]),
    ):
        status, _, err = call("imp", rewind, *flags, "--out", out)
        assert (status, err.count("\n")) == (2, 1), err
        assert all(word in err for word in words), err
    for same in (own, own / ".." / "own"):
        status, _, err = call("imp", other, "--masks", own, "--out", same, "--force")
        assert (status, "is a folder to write to" in err) == (2, True)
    assert snapshot(tmp_path) == before


def test_a_control_killed_inside_every_write_ends_with_the_same_bits(run, tmp_path):  # noqa: F811
    own, rewind, whole, killed = (tmp_path / name for name in ("own", "start/rewind.safetensors", "a", "b"))
    short = [*TINY[:3], "--total-steps=4", "--milestones", "2"]
    assert run(["pretrain", *short, "--steps", 2, "--out", own / "rewind.safetensors"]) == [0]
    assert run(["pretrain", *short, "--steps", 0, "--seed", 1000, "--out", rewind]) == [0]
    assert run(["imp", own / "rewind.safetensors", "--levels", 1]) == [0]
    command = ["imp", rewind, "--masks", own, "--shuffle-masks", "--levels", 1, "--save-every", 1e-9, "--out"]
    assert run([*command, whole]) == [0]

    def fresh():
        for path in killed.iterdir() if killed.exists() else ():
            path.unlink()

    # three events a write; written: 2 levels, results.csv twice, a state after each of 2 x 4 steps
    assert crash_everywhere(run, [*command, killed], fresh, lambda: same_levels(whole, killed, 1), True) == 36


# ------------------------------------------------------------ overlap and barriers


def random_masks(draw, shares, shapes=((4, 3, 3, 3), (8, 4), (50, 7))):
    return {str(k): torch.from_numpy((draw.random(shape) < share).astype(np.uint8))
            for k, (share, shape) in enumerate(zip(shares, shapes))}  # fmt: skip


def test_overlap_against_numpy_and_chance_against_a_simulation():
    draw = np.random.default_rng(0)
    a, b = random_masks(draw, (0.9, 0.5, 0.1)), random_masks(draw, (0.5, 0.6, 0.2))
    flat = [np.concatenate([m.numpy().ravel() for m in x.values()]).astype(bool) for x in (a, b)]
    found, chance = plot.overlap(a, b)
    assert found == (flat[0] & flat[1]).sum() / (flat[0] | flat[1]).sum()
    assert plot.overlap(a, a)[0] == 1
    both = []  # of masks with these layer counts, drawn at random
    for _ in range(2000):
        both.append(sum((draw.permutation(a[k].flatten()) & b[k].flatten().numpy()).sum() for k in a))
    total = sum(map(np.sum, flat))
    assert chance == pytest.approx(np.mean(both) / (total - np.mean(both)), abs=0.002)


@pytest.fixture(scope="module")
def ends(digits):
    """Two trained networks, as state dicts."""
    from conftest import recipe

    weights = []
    for seed in (1, 2):
        member = common.Member("x", recipe(), digits, 0)
        member.seed = seed
        for _ in common.train(common.Group([member], digits, recipe()), 40, peak=0.3):
            pass
        weights.append({name: t.clone() for name, t in member.weights().items()})
    return weights


def test_barriers_against_plain_pytorch(digits, ends):
    def at(t, images):
        net = common.ResNet(8, 2, 1, 10).eval()
        net.load_state_dict({name: (1 - t) * ends[0][name] + t * ends[1][name] for name in ends[0]})
        x = (images.float() - digits.mean) / digits.std
        with torch.no_grad():
            return net(x.permute(0, 3, 1, 2))

    net = common.ResNet(8, 2, 1, 10)
    mine = plot.loss_barrier(net, *ends, digits)
    assert (mine.shape, mine.dtype) == ((len(digits.labels),), np.float64)
    for k in range(0, len(mine), 97):
        losses = [-at(t, digits.train_images()[k : k + 1]).double()[0].log_softmax(0)[digits.labels[k]]
                  for t in (0, 0.5, 1)]  # fmt: skip
        assert mine[k] == pytest.approx((losses[1] - (losses[0] + losses[2]) / 2).item(), abs=1e-4)
    errors = [100 * (at(k / 10, digits.test).argmax(1) != digits.test_labels).double().mean().item()
              for k in range(11)]  # fmt: skip
    assert plot.error_barrier(net, *ends, digits) == pytest.approx(max(errors) - (errors[0] + errors[10]) / 2)
    assert max(errors) > min(errors)


def test_a_network_and_itself_have_barrier_0(digits, ends):
    net = common.ResNet(8, 2, 1, 10)
    assert plot.error_barrier(net, ends[0], ends[0], digits) == 0
    assert not plot.loss_barrier(net, ends[0], ends[0], digits).any()
