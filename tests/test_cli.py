"""The command lines: every bad input is one clear line, exit status 2, and nothing written or lost."""

import argparse
import json
import subprocess
import sys

import numpy as np
import pytest
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
    import shutil

    shutil.copytree(good, tmp_path / "work")
    return tmp_path / "work"


def refused(call, folder, stage, *argv):
    """The one line that a command is refused with, after checking that it changed nothing."""
    before = snapshot(folder)
    status, out, err = call(stage, *argv)
    assert status == 2, (status, out, err)
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    assert "usage" not in err
    assert snapshot(folder) == before
    return err


# ---------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("stage", "argv", "message"),
    [
        ("subset", ["--select", "random", "--size", 0], "--size must be from 1 to the 1297"),
        ("subset", ["--select", "random", "--size", -5], "--size must be from 1 to the 1297"),
        ("subset", ["--select", "random", "--size", 1298], "--size must be from 1 to the 1297"),
        ("subset", ["--select", "easy", "--size", 5], "needs --scores"),
        ("subset", ["--select", "weird", "--size", 5], "invalid choice: 'weird'"),
        ("subset", ["--select", "random", "--size", "many"], "invalid int value"),
        ("subset", ["--select", "random"], "required: --size"),
        (
            "subset",
            ["--select", "random", "--size", 5, "--label-noise", 1.5],
            "--label-noise must be in [0, 1]",
        ),
        (
            "subset",
            ["--select", "random", "--size", 5, "--label-noise", -0.1],
            "--label-noise must be in [0, 1]",
        ),
        (
            "subset",
            ["--select", "random", "--size", 5, "--label-noise", "nan"],
            "--label-noise must be in [0, 1]",
        ),
        ("subset", ["--select", "random", "--size", 5, "--seed", -1], "--seed must be from 0"),
        ("subset", ["--select", "random", "--size", 5, "--dataset", "folder"], "folder needs --preset"),
        ("pretrain", ["--lr", "nan"], "--lr must be above 0, not nan"),
        ("pretrain", ["--lr", 0], "--lr must be above 0"),
        ("pretrain", ["--lr", "inf"], "--lr must be above 0"),
        ("pretrain", ["--pretrain-lr", -0.1], "--pretrain-lr must be above 0"),
        ("pretrain", ["--milestones", 40, 30], "--milestones must be above 0 and ascending, not 40 30"),
        ("pretrain", ["--milestones", 30, 30], "--milestones must be above 0 and ascending"),
        ("pretrain", ["--depth", 21], "--depth must be 6n + 2"),
        ("pretrain", ["--depth", 2], "--depth must be 6n + 2"),
        ("pretrain", ["--width", 0], "--width must be from 1 to 4096"),
        ("pretrain", ["--batch-size", 0], "--batch-size must be at least 1"),
        ("pretrain", ["--momentum", 1], "--momentum must be in [0, 1)"),
        ("pretrain", ["--total-steps", 0], "--total-steps must be at least 1"),
        ("pretrain", ["--steps", -1], "--steps must be from 0 to the 320"),
        ("pretrain", ["--steps", 321], "--steps must be from 0 to the 320"),
        ("pretrain", ["--device", "cuda:99"], "no such GPU"),
        ("pretrain", ["--device", "gpu"], "--device must be"),
        ("pretrain", ["--device", "mps"], "--device must be"),
        ("pretrain", ["--preset", "imagenet"], "invalid choice: 'imagenet'"),
        ("pretrain", ["--bogus"], "unrecognized arguments: --bogus"),
        ("score", ["--networks", 0], "--networks must be at least 1"),
        ("score", ["--steps", 0], "--steps must be from 1 to the 320"),
        ("score", ["--noise-seed", 2**32], "--noise-seed must be from 0"),
    ],
)
def test_bad_arguments(call, tmp_path, stage, argv, message):
    suffix = ".safetensors" if stage == "pretrain" else ".npy"
    assert message in refused(call, tmp_path, stage, *argv, "--out", tmp_path / "new" / f"x{suffix}")
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_without_a_gpu(call, folder):
    assert "no such GPU" in refused(
        call, folder, "imp", folder / "run" / "rewind.safetensors", "--device", "cuda"
    )


def test_bf16_on_hardware_without_it(call, folder, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert common.resolve_precision("auto", torch.device("cpu")) == "fp32"
    argv = [*TINY, "--precision", "bf16", "--out", folder / "x.safetensors"]
    assert "bf16 needs" in refused(call, folder, "pretrain", *argv)
    rewrite_recipe(folder, precision="bf16")
    assert "bf16 needs" in refused(call, folder, "imp", folder / "run" / "rewind.safetensors")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--prune-fraction", 0], "--prune-fraction must be in (0, 1)"),
        (["--prune-fraction", 1], "--prune-fraction must be in (0, 1)"),
        (["--prune-fraction", "nan"], "--prune-fraction must be in (0, 1)"),
        (["--levels", -1], "--levels must be at least 0"),
        (["--levels", 500, "--prune-fraction", 0.5], "no weight is left at level"),
        (["--at-once", 0], "--at-once must be at least 1"),
        (["--save-every", 0], "--save-every must be above 0"),
        (["--order-seed", 3], "--order-seed needs --out"),
        (["."], ". is a folder; name the file in it"),
    ],
)
def test_bad_arguments_of_imp(call, folder, argv, message):
    assert message in refused(call, folder, "imp", folder / "run" / "rewind.safetensors", *argv)


def test_unwritable_folders(call, folder):
    blocked = folder / "scores.npy" / "below-a-file"
    rewind = folder / "run" / "rewind.safetensors"
    for stage, *argv in (
        ["score", *TINY, "--networks", 1, "--steps", 1, "--out", blocked / "s.npy"],
        ["subset", "--select", "random", "--size", 5, "--out", blocked / "s.npy"],
        ["pretrain", *TINY, "--steps", 1, "--out", blocked / "r.safetensors"],
        ["imp", rewind, "--out", blocked],
    ):
        assert "cannot write to" in refused(call, folder, stage, *argv)


def test_an_output_needs_its_suffix(call, folder):
    assert "must end in .npy" in refused(call, folder, "score", "--out", folder / "scores.txt")
    assert "must end in .safetensors" in refused(call, folder, "pretrain", "--out", folder / "rewind.pt")


# ---------------------------------------------------------------- arrays


def bad_scores(folder, array):
    path = folder / "mine.npy"
    np.save(path, array)
    return "subset", "--select", "easy", "--size", 5, "--scores", path, "--out", folder / "new.npy"


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(N - 1, np.float32), "shape [1296], expected [1297]"),
        (np.zeros((N, 1), np.float32), "shape [1297, 1], expected [1297]"),
        (np.zeros(N), "dtype float64, expected float32"),
        (np.full(N, np.nan, np.float32), "not finite"),
        (np.array([None] * N), "not a readable .npy file"),
    ],
)
def test_bad_scores(call, folder, array, message):
    assert message in refused(call, folder, *bad_scores(folder, array))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([0, N]), "index 1297, but there are 1297"),
        (np.array([-1, 4]), "index -1, but"),
        (np.array([3, 3]), "holds an index twice"),
        (np.array([5, 3, 1]), "not ascending"),
        (np.array([], np.int64), "holds no index"),
        (np.array([[1, 2]]), "shape [1, 2], expected [any length]"),
        (np.array([1.0, 2.0]), "dtype float64, expected int64"),
    ],
)
def test_bad_subsets(call, folder, array, message):
    np.save(folder / "mine.npy", array)
    argv = [*TINY, "--subset", folder / "mine.npy", "--out", folder / "x.safetensors"]
    assert message in refused(call, folder, "pretrain", *argv)


def test_damaged_arrays_and_sidecars(call, folder):
    scores = folder / "scores.npy"
    command = ["subset", "--select", "easy", "--size", 5, "--scores", scores, "--out", folder / "new.npy"]
    whole = scores.read_bytes()
    scores.write_bytes(whole[:-8])
    assert "not a readable .npy file" in refused(call, folder, *command)
    scores.write_bytes(whole[:-8] + b"\0\0\0\x3f" * 2)
    assert "does not match the sha256 in scores.json" in refused(call, folder, *command)
    scores.write_bytes(whole)
    (folder / "scores.json").write_text("{")
    assert "not readable JSON" in refused(call, folder, *command)
    for text in ("[" * 200000, "null", '{"label_noise": NaN}'):
        (folder / "scores.json").write_text(text)
        assert "JSON" in refused(call, folder, *command)
    scores.write_bytes(b"PK\x03\x04" + whole)
    assert "not a readable .npy file" in refused(call, folder, *command)
    for header in (
        b"{'descr': ('<i8',), 'fortran_order': False, 'shape': (3,)}",
        b"{'shape': (3,",
        b"{[]: 1}",
    ):
        scores.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(24))
        assert "not a readable .npy file" in refused(call, folder, *command)
    scores.unlink()
    assert "No such file" in refused(call, folder, *command)


def test_scores_and_subsets_of_other_data(call, folder):
    for name in ("scores", "subset"):
        sidecar = folder / f"{name}.json"
        said = json.loads(sidecar.read_text()) | {"fingerprint": "0" * 64, "dataset": "else"}
        sidecar.write_text(json.dumps(said))
        command = [
            "--select",
            "easy",
            "--size",
            5,
            "--scores",
            folder / "scores.npy",
            "--out",
            folder / "y.npy",
        ]
        if name == "scores":
            assert "does not match the json_sha256" in refused(call, folder, "subset", *command)
        del said["json_sha256"]  # as someone who means it would
        sidecar.write_text(json.dumps(said))
    easy = ["--select", "easy", "--size", 5, "--scores", folder / "scores.npy", "--out", folder / "new.npy"]
    same = [*easy[:-1], folder / "scores.npy", "--force"]
    assert "--out and --scores are the same file" in refused(call, folder, "subset", *same)
    assert "made for other data (else)" in refused(call, folder, "subset", *easy)
    start = [*TINY, "--subset", folder / "subset.npy", "--out", folder / "x.safetensors"]
    assert "made for other data (else)" in refused(call, folder, "pretrain", *start)


def test_a_damaged_sidecar_is_refused_and_made_anew_with_force(call, ok, folder):
    command = ["--select", "random", "--size", 20, "--out", folder / "subset.npy"]
    before = snapshot(folder)
    sidecar = folder / "subset.json"
    sidecar.write_text(sidecar.read_text().replace('"size": 20', '"size": 21'))
    assert "does not match the json_sha256" in refused(call, folder, "subset", *command)
    ok("subset", *command, "--force")
    assert snapshot(folder) == before


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
    command = ["imp", path]
    path.write_bytes(whole[: len(whole) // 2])
    assert "not a readable safetensors file" in refused(call, folder, *command)
    path.write_bytes(b"PK\x03\x04" + bytes(1000))
    assert "not a readable safetensors file" in refused(call, folder, *command)
    path.write_bytes(b"")
    assert "not a readable safetensors file" in refused(call, folder, *command)
    path.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
    assert "damaged" in refused(call, folder, *command)
    path.write_bytes((2**40).to_bytes(8, "little") + whole[8:])
    assert "not a readable safetensors file" in refused(call, folder, *command)
    path.unlink()
    assert "No such file" in refused(call, folder, *command)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 14}, "tensor blocks.1.shortcut.0.weight is unexpected"),
        ({"width": 3}, "its recipe needs"),
        ({"classes": 11}, "other digits images"),
        ({"depth": "8"}, "depth must be 6n + 2"),
        ({"lr": None}, "lr must be above 0"),
        ({"milestones": 5}, "milestones must be"),
        ({"seed": "drop"}, "recipe lacks seed"),
        ({"preset": "../../etc"}, "recipe cannot be: preset"),
        ({"rewind_step": 46}, "recipe cannot be: rewind_step 46"),
        ({"fingerprint": "0" * 64}, "other digits images"),
        ({"lr": 10**400}, "lr must be"),
        ({"width": 10**15}, "width must be"),
        ({"label_noise": "x"}, "recipe cannot be: label_noise x"),
        ({"subset_size": "a"}, "recipe cannot be: subset_size a"),
        ({"preset": ["digits"]}, "recipe cannot be: preset"),
    ],
)
def test_recipes_that_do_not_fit(call, folder, changes, message):
    path = rewrite_recipe(folder, **changes)
    assert message in refused(call, folder, "imp", path)


def test_tensors_that_do_not_fit(call, folder):
    tensors, _ = common.load_tensors(folder / "run" / "rewind.safetensors")
    path = rewrite_recipe(folder, tensors | {"extra": torch.zeros(2)})
    assert "tensor extra is unexpected" in refused(call, folder, "imp", path)
    rewrite_recipe(folder, tensors | {"bn.bias": tensors["bn.bias"].double()})
    assert "bn.bias is [2] torch.float64" in refused(call, folder, "imp", path)
    rewrite_recipe(folder, tensors | {"bn.bias": tensors["bn.bias"] * torch.nan})
    assert "bn.bias has values that are not finite" in refused(call, folder, "imp", path)


def test_files_keep_their_names_to_themselves(call, folder):
    """A starting point under a name that imp.py writes would be lost, and so would somebody's notes."""
    rewind = folder / "run" / "rewind.safetensors"
    for name in ("state.safetensors", "level03.safetensors"):
        assert "imp.py writes" in refused(call, folder, "pretrain", *TINY, "--out", folder / name)
        (folder / name).write_bytes(rewind.read_bytes())
        assert "imp.py writes" in refused(call, folder, "imp", folder / name)
    (folder / "notes.json").write_text('{"my": "notes"}')
    random = ["--select", "random", "--size", 5, "--out", folder / "notes.npy"]
    assert "in the way" in refused(call, folder, "subset", *random)
    (folder / "folder.npy").mkdir()
    assert "is a folder" in refused(call, folder, "subset", *random[:-1], folder / "folder.npy")


def test_level_and_state_files_with_odd_content(call, folder):
    rewind, path = folder / "run" / "rewind.safetensors", folder / "run" / "level00.safetensors"
    tensors, info = common.load_tensors(path)
    for row in (None, 5, ["level"], {}, info["row"] | {"test_loss": "low"}):
        common.save_tensors(path, tensors, info | {"row": row})
        assert "row of results.csv" in refused(call, folder, "imp", rewind, "--levels", 1)
    common.save_tensors(path, tensors, info | {"recipe": []})
    assert "preset unknown there" in refused(call, folder, "imp", rewind, "--levels", 1)
    common.save_tensors(path, tensors, info)
    of_run = {key: value for key, value in info.items() if key not in ("row", "made_by")}
    state = of_run | {"level": 1, "step": 7, "loss_steps": 1, "seconds": 1.0}
    common.save_tensors(folder / "run" / "state.safetensors", {"x": torch.zeros(1)}, state)
    assert "is missing" in refused(call, folder, "imp", rewind, "--levels", 1)


def test_bf16_weights_are_refused(call, folder):
    import safetensors.torch

    path = folder / "run" / "rewind.safetensors"
    tensors, info = common.load_tensors(path)
    half = {name: t.bfloat16() for name, t in tensors.items()}
    safetensors.torch.save_file(half, path, {"json": json.dumps(info)})
    assert "torch.bfloat16" in refused(call, folder, "imp", path)


def test_a_divergence_in_the_very_last_step_is_noticed(call, ok, tmp_path):
    flags = ["--depth=8", "--width=2", "--total-steps=1", "--milestones", "--momentum=0"]
    status, _, err = call(
        "score", *flags, "--steps", 1, "--lr", 9e29, "--networks", 2, "--out", tmp_path / "s.npy"
    )
    assert (status, err.count("\n")) == (1, 1)
    assert "network 1 at step 1, network 2 at step 1" in err
    assert not (tmp_path / "s.npy").exists()
    path = tmp_path / "x" / "rewind.safetensors"
    status, _, err = call("pretrain", *flags, "--steps", 1, "--pretrain-lr", 9e29, "--out", path)
    assert (status, err.count("\n"), path.exists()) == (1, 1, False)
    for seed in (0, 1):
        ok(
            "pretrain",
            *flags,
            "--lr",
            9e29,
            "--steps",
            0,
            "--seed",
            seed,
            "--out",
            tmp_path / f"{seed}/r.safetensors",
        )
    paths = [tmp_path / f"{seed}/r.safetensors" for seed in (0, 1)]
    status, _, err = call("imp", *paths, "--levels", 0)
    assert (status, err.count("\n"), err.count("not finite at level 0, step 1")) == (1, 1, 2)


def test_a_file_of_another_program(call, folder):
    import safetensors.torch

    path = folder / "run" / "rewind.safetensors"
    safetensors.torch.save_file({"w": torch.zeros(3)}, path)
    assert "not a file of pretrain.py" in refused(call, folder, "imp", path)


def test_a_mask_that_does_not_follow(call, folder):
    path = folder / "run" / "level00.safetensors"
    tensors, info = common.load_tensors(path)
    tensors["mask.conv.weight"][0] = 0
    common.save_tensors(path, tensors, info)
    rewind = folder / "run" / "rewind.safetensors"
    assert "its mask does not follow" in refused(call, folder, "imp", rewind, "--levels", 1)


def test_a_setting_that_this_code_does_not_know_makes_a_difference(call, folder):
    """What a changed copy of the toolkit has made is not taken up by the original."""
    path = rewrite_recipe(folder, optimizer="adam")
    again = ["pretrain", *TINY, "--steps", 2, "--out", path]
    assert "optimizer adam there, unknown now" in refused(call, folder, *again)
    level = folder / "run" / "level00.safetensors"
    tensors, info = common.load_tensors(level)
    common.save_tensors(level, tensors, info | {"rule": "random"})
    original = rewrite_recipe(folder, optimizer="drop")
    assert "rule random there, unknown now" in refused(call, folder, "imp", original)


def test_several_starting_points(call, ok, folder):
    first = folder / "run" / "rewind.safetensors"
    other = folder / "other" / "rewind.safetensors"
    ok("pretrain", *TINY, "--steps", 2, "--lr", 0.05, "--out", other)
    assert "lr is 0.05, but 0.3 in" in refused(call, folder, "imp", first, other)
    twin = folder / "run" / "twin.safetensors"
    twin.write_bytes(first.read_bytes())
    assert "another starting point writes to the same folder" in refused(call, folder, "imp", first, twin)
    assert "--out takes a single starting point" in refused(
        call, folder, "imp", first, other, "--out", folder / "x"
    )


# ---------------------------------------------------------------- the chain


def test_a_score_of_ones_own_goes_through_the_whole_chain(ok, tmp_path):
    """No sidecar anywhere: scheme custom. With sidecars: the recipe says what the subset was."""
    np.save(tmp_path / "mine.npy", np.arange(N, dtype=np.float32))
    ok(
        "subset",
        "--select",
        "easy",
        "--size",
        30,
        "--scores",
        tmp_path / "mine.npy",
        "--out",
        tmp_path / "easy.npy",
    )
    assert np.load(tmp_path / "easy.npy").tolist() == list(range(30))
    (tmp_path / "bare.npy").write_bytes((tmp_path / "easy.npy").read_bytes())
    recipes = {}
    for name in ("easy", "bare"):
        path = tmp_path / name / "rewind.safetensors"
        out = ok("pretrain", *TINY, "--subset", tmp_path / f"{name}.npy", "--steps", 3, "--out", path)
        assert "test accuracy" in out
        recipes[name] = common.load_tensors(path)[1]["recipe"]
    assert (recipes["easy"]["scheme"], recipes["bare"]["scheme"]) == ("easy", "custom")
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
    assert f"python {stage}.py" in done.stdout
    assert "reads " in done.stdout
    assert "writes " in done.stdout


@pytest.mark.parametrize(
    ("preset", "dataset", "expected"),
    [
        (None, None, ("digits", "digits")),
        (None, "cifar100", ("cifar100", "cifar100")),
        ("cinic10", None, ("cinic10", "cinic10")),
        ("cifar10", "folder", ("cifar10", "folder")),
    ],
)
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
