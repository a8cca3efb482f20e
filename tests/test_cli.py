"""The command lines: every bad input is one clear line, exit status 2, and nothing written or lost."""

import argparse
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import ROOT, TINY, snapshot

import common

N = 1297


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A finished tiny chain to break copies of."""
    folder = tmp_path_factory.mktemp("good")
    run = [
        ("score_el2n", [*TINY, "--networks", 1, "--steps", 1, "--out", folder / "scores.npy"]),
        ("make_subset", ["--select", "random", "--size", 20, "--out", folder / "subset.npy"]),
        ("pretrain", [*TINY, "--steps", 2, "--out", folder / "run" / "rewind.safetensors"]),
        ("imp", [folder / "run" / "rewind.safetensors", "--levels", 0]),
    ]
    for stage, argv in run:
        assert common.cli(sys.modules[stage].main, [str(a) for a in argv]) == 0
    return folder


@pytest.fixture
def folder(good, tmp_path):
    return shutil.copytree(good, tmp_path / "work")


def refused(call, folder, stage, *argv):
    """The one line that a command is refused with, after checking that it changed nothing."""
    before = snapshot(folder)
    status, out, err = call(stage, *argv)
    assert status == 2, (status, out, err)
    (line,) = [line for line in err.splitlines() if not line.startswith("note: ")]
    assert "Traceback" not in line
    assert "usage" not in line
    assert snapshot(folder) == before
    return line


def say(line, words):
    assert all(word in line for word in words), line


# ---------------------------------------------------------------- arguments

SUBSET, EASY = ["--select", "random", "--size"], ["--select", "easy", "--size", 5]


@pytest.mark.parametrize(("stage", "argv", "words"), [
    ("subset", [*SUBSET, 0], ["--size", "0"]), ("subset", [*SUBSET, -5], ["--size", "-5"]),
    ("subset", [*SUBSET, 1298], ["--size", "1297", "1298"]), ("subset", [*SUBSET, "many"], ["many"]),
    ("subset", EASY, ["--scores"]), ("subset", ["--select", "weird", "--size", 5], ["weird"]),
    ("subset", ["--select", "random"], ["--size"]), ("subset", [*SUBSET, 5, "--seed", -1], ["--seed", "-1"]),
    ("subset", [*SUBSET, 5, "--scores", "x.npy"], ["--scores"]),
    *(("subset", [*SUBSET, 5, "--label-noise", x], ["--label-noise", str(x)]) for x in (1.5, -0.1, "nan")),
    ("subset", [*SUBSET, 5, "--dataset", "folder"], ["--preset"]),
    ("subset", [*SUBSET, 5, "--lr", 0.1], ["--lr"]),  # it trains nothing
    *(("pretrain", ["--lr", x], ["--lr", str(x)]) for x in ("nan", 0, "inf", -0.1, 1e300)),
    ("pretrain", ["--pretrain-lr", -0.1], ["--pretrain-lr"]), ("pretrain", ["--momentum", 1], ["--momentum"]),
    ("pretrain", ["--milestones", 40, 30], ["--milestones", "40, 30"]),
    ("pretrain", ["--milestones", 30, 30], ["--milestones"]), ("pretrain", ["--depth", 21], ["6n + 2"]),
    *(("pretrain", [flag, 0], [flag]) for flag in ("--depth", "--width", "--batch-size", "--total-steps")),
    ("pretrain", ["--steps", -1], ["--steps"]), ("pretrain", ["--steps", 321], ["--steps", "320", "321"]),
    ("pretrain", ["--seed", 2**32], ["--seed"]), ("pretrain", ["--device", "cuda:99"], ["no such GPU"]),
    ("pretrain", ["--device", "mps"], ["mps"]), ("pretrain", ["--preset", "imagenet"], ["imagenet"]),
    ("pretrain", ["--bogus"], ["--bogus"]), ("score", ["--networks", 0], ["--networks"]),
    ("score", ["--networks", 10**9], ["--networks"]), ("score", ["--steps", 0], ["--steps"]),
    ("score", ["--steps", 321], ["--steps", "320"]), ("score", ["--noise-seed", 2**32], ["--noise-seed"]),
])  # fmt: skip
def test_bad_arguments(call, tmp_path, stage, argv, words):
    suffix = ".safetensors" if stage == "pretrain" else ".npy"
    say(refused(call, tmp_path, stage, *argv, "--out", tmp_path / "new" / f"x{suffix}"), words)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("argv", "words"), [
    *((["--prune-fraction", x], ["--prune-fraction"]) for x in (0, 1, "nan")),
    *(([flag, x], [flag]) for flag, x in (("--levels", -1), ("--at-once", 0), ("--save-every", 0))),
    (["--order-seed", 3], ["--order-seed", "--out"]), (["."], ["is a folder"]), (["--out", "a", "b"], ["2"]),
])  # fmt: skip
def test_bad_arguments_of_imp(call, folder, argv, words):
    say(refused(call, folder, "imp", folder / "run" / "rewind.safetensors", *argv), words)


def test_bf16_on_hardware_without_it(call, folder, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert common.resolve_precision("auto", torch.device("cpu")) == "fp32"
    argv = [*TINY, "--precision", "bf16", "--out", folder / "x.safetensors"]
    say(refused(call, folder, "pretrain", *argv), ["bf16 needs"])
    say(refused(call, folder, "imp", rewrite_recipe(folder, precision="bf16")), ["bf16 needs"])


def test_outputs_that_cannot_be(call, folder):
    """Unwritable folders, other suffixes, folders, and names that imp.py takes for its own files."""
    scores, rewind = folder / "scores.npy", folder / "run" / "rewind.safetensors"
    below = scores / "a-file"
    (folder / "folder.npy").mkdir()
    score = ["score", *TINY, "--networks", 1, "--steps", 1, "--out"]
    for words, stage, *argv in (
        (["cannot write to"], *score, below / "s.npy"),
        (["cannot write to"], "subset", *SUBSET, 5, "--out", below / "s.npy"),
        (["cannot write to"], "pretrain", *TINY, "--steps", 1, "--out", below / "r.safetensors"),
        (["cannot write to"], "imp", rewind, "--out", below),
        ([".npy", "scores.txt"], *score, folder / "scores.txt"),
        ([".safetensors", "rewind.pt"], "pretrain", "--out", folder / "rewind.pt"),
        (["folder.npy"], *score, folder / "folder.npy"),
        (["same file"], "subset", *EASY, "--scores", scores, "--out", scores, "--force"),
        (["state.safetensors"], "pretrain", *TINY, "--out", folder / "state.safetensors"),
        (["level03"], "pretrain", *TINY, "--out", folder / "level03.safetensors"),
    ):  # fmt: skip
        say(refused(call, folder, stage, *argv), words)
    level = shutil.copy(rewind, folder / "level03.safetensors")
    say(refused(call, folder, "imp", level), ["level03"])


# ---------------------------------------------------------------- arrays


@pytest.mark.parametrize(("stage", "array", "words"), [
    ("subset", np.zeros(N - 1, np.float32), ["[1296]", "[1297]"]),
    ("subset", np.zeros((N, 1), np.float32), ["[1297, 1]", "[1297]"]),
    ("subset", np.zeros(N), ["float64", "float32"]), ("subset", np.full(N, np.nan, np.float32), ["finite"]),
    ("subset", np.array([None] * N), ["not readable"]), ("pretrain", np.array([0, N]), ["index 1297"]),
    ("pretrain", np.array([-1, 4]), ["index -1"]), ("pretrain", np.array([3, 3]), ["twice"]),
    ("pretrain", np.array([5, 3, 1]), ["not ascending"]), ("pretrain", np.array([], np.int64), ["no index"]),
    ("pretrain", np.array([[1, 2]]), ["[1, 2]"]), ("pretrain", np.array([1.0, 2.0]), ["float64", "int64"]),
])  # fmt: skip
def test_bad_arrays(call, folder, stage, array, words):
    path = folder / "mine.npy"
    np.save(path, array)
    pretrain = [*TINY, "--subset", path, "--out", folder / "x.safetensors"]
    argv = pretrain if stage == "pretrain" else [*EASY, "--scores", path, "--out", folder / "new.npy"]
    say(refused(call, folder, stage, *argv), ["mine.npy", *words])


def test_damaged_arrays_and_sidecars(call, folder):
    scores, sidecar = folder / "scores.npy", folder / "scores.json"
    command = ["subset", *EASY, "--scores", scores, "--out", folder / "new.npy"]
    whole, said = scores.read_bytes(), json.loads(sidecar.read_text())
    odd = b"\x93NUMPY\x01\x00\x06\x00{[]: 1" + bytes(24)
    for content, word in ((whole[:-8], "not readable"), (whole[:-8] + b"\0\0\0\x3f" * 2, "sha256"),
                          (b"PK\x03\x04" + whole, "not readable"), (odd, "not readable")):  # fmt: skip
        scores.write_bytes(content)
        say(refused(call, folder, *command), ["scores.npy", word])
    scores.write_bytes(whole)
    for text in ("{", "[" * 200000, "null", *(json.dumps(said | more) for more in (
        {"label_noise": "x"}, {"label_noise": 7}, {"noise_seed": [1]}, {"noise_seed": -1}))):  # fmt: skip
        sidecar.write_text(text)
        say(refused(call, folder, *command), ["scores.json"])
    sidecar.write_text(json.dumps(said | {"fingerprint": "0" * 64, "dataset": "else"}))
    say(refused(call, folder, *command), ["scores.npy", "other data (else)"])
    scores.unlink()
    say(refused(call, folder, *command), ["No such file"])


def test_an_array_without_a_sidecar_is_taken_as_clean_and_says_so(call, folder):
    np.save(folder / "mine.npy", np.zeros(N, np.float32))
    status, _, err = call("subset", *EASY, "--scores", folder / "mine.npy", "--out", folder / "new.npy")
    assert status == 0
    say(err, ["note: ", "mine.npy", "clean"])


def test_scores_by_a_symlink_keep_their_sidecar(ok, folder):
    ok("score", *TINY, "--networks", 1, "--steps", 1, "--label-noise", 0.25, "--out", folder / "noisy.npy")
    (folder / "link.npy").symlink_to("noisy.npy")
    ok("subset", *EASY, "--scores", folder / "link.npy", "--out", folder / "new.npy")
    assert json.loads((folder / "new.json").read_text())["label_noise"] == 0.25


# ---------------------------------------------------------------- checkpoints


def rewrite_recipe(folder, weights=None, **changes):
    """The rewind file with another recipe and a checksum that fits it."""
    path = folder / "run" / "rewind.safetensors"
    tensors, info = common.load_tensors(path)
    recipe = {key: v for key, v in (info["recipe"] | changes).items() if v != "drop"}
    common.save_tensors(path, weights or tensors, info | {"recipe": recipe})
    return path


def test_damaged_checkpoints(call, folder):
    path = folder / "run" / "rewind.safetensors"
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"PK\x03\x04" + bytes(1000), b"",
                    whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:],
                    (2**40).to_bytes(8, "little") + whole[8:]):  # fmt: skip
        path.write_bytes(content)
        say(refused(call, folder, "imp", path), [str(path)])
    safetensors.torch.save_file({"w": torch.zeros(3)}, path)
    say(refused(call, folder, "imp", path), [str(path), "not a file of this pretrain.py"])
    path.unlink()
    say(refused(call, folder, "imp", path), ["No such file"])


@pytest.mark.parametrize(("changes", "words"), [
    ({"depth": 14}, ["blocks.1.shortcut.0.weight"]), ({"width": 3}, ["recipe needs"]),
    ({"classes": 11}, ["other digits images"]), ({"fingerprint": "0" * 64}, ["other digits images"]),
    ({"seed": "drop"}, ["lacks seed"]), ({"rewind_step": 46}, ["46"]), ({"preset": "../etc"}, ["../etc"]),
    *(({key: odd}, ["rewind.safetensors"]) for key, odd in (("lr", None), ("lr", "x"), ("milestones", 5),
      ("seed", []), ("rewind_step", "x"), ("preset", ["digits"]), ("width", 10**15))),
])  # fmt: skip
def test_recipes_that_do_not_fit(call, folder, changes, words):
    say(refused(call, folder, "imp", rewrite_recipe(folder, **changes)), words)


def test_tensors_that_do_not_fit(call, folder):
    tensors, _ = common.load_tensors(folder / "run" / "rewind.safetensors")
    bias = tensors["bn.bias"]
    for more, words in (({"extra": bias.clone()}, ["extra", "unexpected"]),
                        ({"bn.bias": bias.double()}, ["bn.bias", "float64"]),
                        ({"bn.bias": bias.half()}, ["bn.bias", "float16"]),
                        ({"bn.bias": bias * torch.nan}, ["bn.bias", "not finite"])):  # fmt: skip
        say(refused(call, folder, "imp", rewrite_recipe(folder, tensors | more)), words)


def test_levels_that_do_not_fit(call, folder):
    """Rows of another level, masks that do not follow, an earlier version, a state of something else."""
    rewind, path = folder / "run" / "rewind.safetensors", folder / "run" / "level00.safetensors"
    tensors, info = common.load_tensors(path)
    command = ["imp", rewind, "--levels", 1]
    for row in (None, ["level"], {}, info["row"] | {"level": 1}, info["row"] | {"test_accuracy": 17},
                info["row"] | {"test_accuracy": "high"}):  # fmt: skip
        common.save_tensors(path, tensors, info | {"row": row})
        say(refused(call, folder, *command), ["level00.safetensors"])
    mask = tensors["mask.conv.weight"].clone()
    mask[0] = 0
    common.save_tensors(path, tensors | {"mask.conv.weight": mask}, info)
    say(refused(call, folder, *command), ["level00.safetensors", "masks"])
    common.save_tensors(path, {k: t for k, t in tensors.items() if k[:5] != "next."}, info)
    say(refused(call, folder, *command), ["level00.safetensors", "earlier version"])
    common.save_tensors(path, tensors, info)
    settings = {key: value for key, value in info.items() if key not in ("row", "made_by")}
    state = settings | {"level": 1, "step": 7, "loss_steps": 1, "seconds": 1.0}
    common.save_tensors(folder / "run" / "state.safetensors", {"x": torch.zeros(1)}, state)
    say(refused(call, folder, *command), ["state.safetensors", "delete it"])
    (folder / "run" / "state.safetensors").write_bytes(b"torn")
    say(refused(call, folder, *command), ["state.safetensors", "delete it"])


def test_a_setting_that_other_code_does_not_know_makes_a_difference(call, ok, folder, monkeypatch):
    """What a changed copy of the toolkit has made is not taken up here, nor the reverse."""
    rewind, other = folder / "run" / "rewind.safetensors", folder / "other" / "rewind.safetensors"
    ok("pretrain", *TINY, "--steps", 2, "--out", other)
    with monkeypatch.context() as patch:  # network.py of their own, with tensors of the same names and shapes
        patch.setattr(common, "OWN", {"network": "silu"})
        say(refused(call, folder, "imp", rewind, "--levels", 1), ["{'network': 'silu'} here"])
        say(refused(call, folder, "pretrain", *TINY, "--steps", 2, "--out", rewind), ["silu"])
        mine = folder / "mine" / "rewind.safetensors"
        ok("pretrain", *TINY, "--steps", 2, "--out", mine)
        ok("imp", mine, "--levels", 0)
        assert common.load_info(folder / "mine" / "level00.safetensors")["recipe"]["network"] == "silu"
    say(refused(call, folder, "imp", mine, "--levels", 1), ["{'network': 'silu'} there"])
    path = rewrite_recipe(folder, optimizer="adam")
    say(refused(call, folder, "pretrain", *TINY, "--steps", 2, "--out", path), ["adam"])
    for pair in ((path, other), (other, path)):
        say(refused(call, folder, "imp", *pair), ["optimizer", "adam"])
    level = folder / "run" / "level00.safetensors"
    tensors, info = common.load_tensors(level)
    common.save_tensors(level, tensors, info | {"rule": "random"})
    say(refused(call, folder, "imp", rewrite_recipe(folder, optimizer="drop")), ["rule random there"])


def test_several_starting_points(call, ok, folder):
    first, other = folder / "run" / "rewind.safetensors", folder / "other" / "rewind.safetensors"
    ok("pretrain", *TINY, "--steps", 2, "--lr", 0.05, "--out", other)
    say(refused(call, folder, "imp", first, other), ["lr is 0.05, but 0.3 in"])
    twin = shutil.copy(first, folder / "run" / "twin.safetensors")
    say(refused(call, folder, "imp", first, twin), ["same folder"])
    say(refused(call, folder, "imp", first, other, "--out", folder / "x"), ["--out", "1", "2"])


def test_a_finished_run_that_cannot_be_written_to_is_done(ok, folder, monkeypatch):
    """As on a read-only disk; root may write anywhere, so the question whether it may is answered for it."""
    rewind = folder / "run" / "rewind.safetensors"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    before = snapshot(folder)
    assert "already done" in ok("imp", rewind, "--levels", 0)
    assert "already done" in ok("pretrain", *TINY, "--steps", 2, "--out", rewind)
    assert snapshot(folder) == before


# ---------------------------------------------------------------- divergence


def test_a_divergence_in_the_very_last_step_is_noticed_and_kept_in_a_file(call, ok, tmp_path):
    flags = ["--depth=8", "--width=2", "--total-steps=1", "--milestones", "--momentum=0"]
    score = ["score", *flags, "--steps", 1, "--lr", 9e29, "--networks", 2, "--out", tmp_path / "s.npy"]
    status, _, err = call(*score)
    assert (status, err.count("\n")) == (1, 1)
    assert "network 1 at step 1, network 2 at step 1" in err
    assert not (tmp_path / "s.npy").exists()
    path = tmp_path / "x" / "rewind.safetensors"
    start = ["pretrain", *flags, "--steps", 1, "--out", path, "--pretrain-lr"]
    status, _, err = call(*start, 9e29)
    assert (status, err.count("\n"), path.exists()) == (1, 1, False)
    said = json.loads((path.parent / "diverged.json").read_text())
    assert said["recipe"]["pretrain_lr"] == 9e29
    assert (said["settings"], said["level"], said["step"]) == ({}, None, 1)
    ok(*start, 0.1)
    assert not (path.parent / "diverged.json").exists()
    paths = [tmp_path / f"{seed}" / "r.safetensors" for seed in (0, 1)]
    for seed, path in enumerate(paths):
        ok("pretrain", *flags, "--lr", 9e29, "--steps", 0, "--seed", seed, "--out", path)
    for _ in range(2):  # the same command tries again
        status, _, err = call("imp", *paths, "--levels", 0)
        assert (status, err.count("\n"), err.count("not finite at level 0, step 1")) == (1, 1, 2)
        for seed, path in enumerate(paths):
            said = json.loads((path.parent / "diverged.json").read_text())
            assert (said["recipe"]["seed"], said["level"], said["step"]) == (seed, 0, 1)
            assert said["settings"]["prune_fraction"] == 0.2


def test_out_of_memory_in_other_words_is_one_line(call, monkeypatch, tmp_path):
    def fail(*args, **more):
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")

    monkeypatch.setattr(common, "load_data", fail)
    status, _, err = call("pretrain", *TINY, "--out", tmp_path / "r.safetensors")
    assert (status, err.count("\n")) == (1, 1)
    assert "--at-once" in err


# ---------------------------------------------------------------- the chain


def test_a_score_of_ones_own_goes_through_the_whole_chain(ok, tmp_path):
    """No sidecar anywhere: scheme custom. With sidecars the recipe names subset and score."""
    np.save(tmp_path / "mine.npy", np.arange(N, dtype=np.float32))
    (tmp_path / "mine.json").write_text(json.dumps({"select": "margin"}))
    easy = tmp_path / "easy.npy"
    ok("subset", "--select", "easy", "--size", 30, "--scores", tmp_path / "mine.npy", "--out", easy)
    assert np.load(easy).tolist() == list(range(30))
    shutil.copy(easy, tmp_path / "bare.npy")
    recipes = {}
    for name in ("easy", "bare"):
        path = tmp_path / name / "rewind.safetensors"
        out = ok("pretrain", *TINY, "--subset", tmp_path / f"{name}.npy", "--steps", 3, "--out", path)
        assert "test accuracy" in out
        recipes[name] = common.load_tensors(path)[1]["recipe"]
    assert [recipes[name]["scheme"] for name in recipes] == ["easy", "custom"]
    assert [recipes[name]["score"] for name in recipes] == ["margin", None]
    (tmp_path / "mine.json").unlink()
    again = ["--select", "easy", "--size", 30, "--scores", tmp_path / "mine.npy", "--force"]
    ok("subset", *again, "--out", easy)
    assert json.loads((tmp_path / "easy.json").read_text())["score"] == "unnamed"  # it is not EL2N's
    assert recipes["easy"]["subset_size"] == recipes["bare"]["subset_size"] == 30
    assert recipes["easy"]["subset_sha256"] == recipes["bare"]["subset_sha256"]
    a, b = (common.load_tensors(tmp_path / name / "rewind.safetensors")[0] for name in recipes)
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_every_scheme_of_a_replicate_starts_from_the_same_weights(ok, folder):
    starts = []
    for name, flags in {"all": [], "some": ["--subset", folder / "subset.npy"]}.items():
        path = folder / name / "rewind.safetensors"
        ok("pretrain", *TINY, *flags, "--steps", 0, "--seed", 7, "--out", path)
        starts.append(common.load_tensors(path)[0])
    assert all(torch.equal(starts[0][k], starts[1][k]) for k in starts[0])


def test_label_noise_changes_pretraining_and_not_imp(ok, tmp_path):
    for name, noise in {"clean": [], "noisy": ["--label-noise", 0.5]}.items():
        ok("pretrain", *TINY, *noise, "--steps", 3, "--out", tmp_path / name / "rewind.safetensors")
    clean, noisy = (common.load_tensors(tmp_path / n / "rewind.safetensors") for n in ("clean", "noisy"))
    assert not torch.equal(clean[0]["conv.weight"], noisy[0]["conv.weight"])
    swapped = tmp_path / "swapped" / "rewind.safetensors"  # clean weights under the noisy recipe
    swapped.parent.mkdir()
    common.save_tensors(swapped, clean[0], noisy[1])
    ok("imp", tmp_path / "clean" / "rewind.safetensors", "--levels", 0)
    ok("imp", swapped, "--levels", 0)
    a, b = (common.load_tensors(tmp_path / n / "level00.safetensors")[0] for n in ("clean", "swapped"))
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("stage", ["score_el2n", "make_subset", "pretrain", "imp", "plot"])
def test_help_is_the_docstring(stage):
    done = subprocess.run([sys.executable, ROOT / f"{stage}.py", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    say(done.stdout, [f"python {stage}.py", "reads ", "writes "])


@pytest.mark.parametrize(("preset", "dataset", "expected"), [
    (None, None, ("digits", "digits")), (None, "cifar100", ("cifar100", "cifar100")),
    ("cinic10", None, ("cinic10", "cinic10")), ("cifar10", "folder", ("cifar10", "folder")),
])  # fmt: skip
def test_a_dataset_that_names_a_preset_selects_it(preset, dataset, expected):
    names = common.resolve_preset(argparse.Namespace(preset=preset, dataset=dataset))
    assert (names["preset"], names["dataset"]) == expected


def test_presets_hold_the_papers_table_1():
    expected = {  # depth, batch, pre-training rate, rate, decay, factor, milestones, total, fraction
        "cifar10": (20, 128, 0.4, 0.1, 1e-4, 0.1, [31200, 46800], 62400, 0.2),
        "cifar100": (32, 128, 0.4, 0.1, 1e-4, 0.1, [31200, 46800], 62400, 0.2),
        "cinic10": (56, 256, 0.1, 0.1, 1e-4, 0.1, [15625, 23440], 31250, 0.2),
    }
    names = ("depth", "batch_size", "pretrain_lr", "lr", "weight_decay", "lr_decay", "milestones")
    names += ("total_steps", "prune_fraction")
    for preset, values in expected.items():
        assert tuple(common.PRESETS[preset][name] for name in names) == values
    assert [common.PRESETS[p]["t_star"] for p in expected] == [400, 800, 800]
    assert [common.PRESETS[p]["el2n_steps"] for p in expected] == [7800, 7800, 8000]
    assert [common.PRESETS[p]["networks"] for p in expected] == [10, 10, 10]
