"""pretrain.py with several seeds: what one call makes is what a call for each would make."""

import json

import pytest
from conftest import TINY, made, snapshot

import common

START = ["pretrain", *TINY, "--steps", 2]
SEEDS = (4, 5, 6)


@pytest.fixture
def files(tmp_path):
    """files("a") are the outputs of three seeds below a folder."""

    def files(name):
        return [tmp_path / name / f"seed{seed}" / "rewind.safetensors" for seed in SEEDS]

    return files


def subsets_of(ok, folder, seeds=SEEDS):
    paths = [folder / f"random{seed}.npy" for seed in seeds]
    for seed, path in zip(seeds, paths):
        noise = ["--label-noise", 0.5]
        ok("subset", "--select", "random", "--size", 100, "--seed", seed, *noise, "--out", path)
    return paths


@pytest.mark.parametrize("which", ["no subset", "one", "one a seed"])
def test_one_call_makes_what_a_call_for_each_seed_makes(ok, tmp_path, files, which):
    chosen = {
        "no subset": lambda: [],
        "one": lambda: subsets_of(ok, tmp_path, [9]),
        "one a seed": lambda: subsets_of(ok, tmp_path),
    }[which]()
    flags = ["--subset", *chosen] if chosen else []
    out = ok(*START, *flags, "--seed", *SEEDS, "--out", *files("together"))
    assert out.count("training on:") == 1  # device and precision are said once
    assert [line for line in out.splitlines() if line.endswith(".safetensors")] == [
        str(path) for path in files("together")
    ]
    for k, (seed, path) in enumerate(zip(SEEDS, files("alone"))):
        own = ["--subset", chosen[k % len(chosen)]] if chosen else []
        ok(*START, *own, "--seed", seed, "--out", path)
    assert made(tmp_path / "together") == made(tmp_path / "alone")
    done = ok(*START, *flags, "--seed", *SEEDS, "--out", *files("together"))
    assert done.splitlines() == [f"already done: {path}" for path in files("together")]


def test_each_file_is_refused_locked_or_done_by_itself(ok, call, tmp_path, files):
    first, second, third = files("runs")
    ok(*START, "--seed", 9, "--out", first)
    before = snapshot(first.parent)
    command = [*START, "--seed", *SEEDS, "--out", first, second, third]
    with common.lock(second.parent / ".lock"):
        status, out, err = call(*command)
    assert status == 2
    assert "seed 9 there, 4 now" in err
    assert f"{second.parent} is in use by" in err
    assert (err.count("\n"), second.exists()) == (1, False)
    assert out.splitlines()[-1] == str(third)
    status, out, err = call(*command)
    assert (status, second.exists()) == (2, True)
    assert f"already done: {third}" in out
    assert snapshot(first.parent) == before


def test_a_subset_that_cannot_be_read_stops_its_seed_alone(ok, call, tmp_path, files):
    chosen = subsets_of(ok, tmp_path)
    chosen[1].unlink()
    status, _, err = call(*START, "--subset", *chosen, "--seed", *SEEDS, "--out", *files("runs"))
    assert (status, err.count("\n")) == (2, 1)
    assert f"{chosen[1]}: No such file" in err
    assert [path.exists() for path in files("runs")] == [True, False, True]
    # one that serves all is named once
    status, _, err = call(*START, "--subset", chosen[1], "--seed", *SEEDS, "--out", *files("none"))
    assert (status, err.count("No such file")) == (2, 1)


def test_one_that_diverges_is_recorded_and_the_others_go_on(ok, call, tmp_path, files, monkeypatch):
    import training

    evaluate = training.evaluate
    losses = iter([None, float("inf"), None])

    def diverging(net, data):
        accuracy, loss = evaluate(net, data)
        return accuracy, next(losses, None) or loss

    with monkeypatch.context() as patch:
        patch.setattr(training, "evaluate", diverging)
        status, _, err = call(*START, "--seed", *SEEDS, "--out", *files("runs"))
    assert (status, err.count("\n")) == (1, 1)
    _, lost, _ = files("runs")
    assert f"{lost}: the loss is not finite at step 2" in err
    assert [path.exists() for path in files("runs")] == [True, False, True]
    assert json.loads((lost.parent / "diverged.json").read_text())["recipe"]["seed"] == SEEDS[1]
    ok(*START, "--seed", *SEEDS, "--out", *files("runs"))  # the same command tries again
    assert not (lost.parent / "diverged.json").exists()


def test_counts_must_fit(ok, refused, tmp_path, files):
    a, b, c = files("runs")
    refused([*START, "--seed", 1, 2, "--out", a, b, c], "--out", "3 files for 2 seeds")
    refused([*START, "--out", a, b], "--out", "2 files for 1 seeds")
    refused([*START, "--seed", 1, 2, "--out", a, a], "--out", "named twice")
    chosen = subsets_of(ok, tmp_path)
    refused(
        [*START, "--subset", *chosen[:2], "--seed", *SEEDS, "--out", a, b, c],
        "--subset",
        "2 files for 3 seeds",
    )
