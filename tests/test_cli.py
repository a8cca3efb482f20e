"""The command lines: bad input is one clear line, exit status 2, and nothing written or lost."""

import argparse
import errno
import fcntl
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from unittest.mock import Mock

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import FRACTION, ROOT, STAGES, TINY, equal, level, snapshot

import common
import dataset
import training

N = 1297
EASY = ["subset", "--select", "easy", "--size", 5, "--scores"]
RANDOM = ["subset", "--select", "random", "--size", 20, "--out"]
SCORE = ["score", *TINY, "--networks", 1, "--steps", 1, "--out"]
START = ["pretrain", *TINY, "--steps", 2, "--out"]


@pytest.fixture
def folder(ok, tmp_path):
    """A finished tiny chain to break."""
    ok(*SCORE, tmp_path / "work" / "scores.npy")
    ok(*START, tmp_path / "work" / "run" / "rewind.safetensors")
    ok("imp", tmp_path / "work" / "run" / "rewind.safetensors", "--levels", 0)
    return tmp_path / "work"


@pytest.fixture
def rewind(folder):
    return folder / "run" / "rewind.safetensors"


BAD = {  # each of these after the command; the line names the last two words
    "subset --select random": [
        "--size 0",
        "--size -5",
        "--size many",
        "--size 1298",
        "--size 5 --seed -1",
        "--size 5 --lr 0.1",
        *(f"--size 5 --label-noise {x}" for x in (1.5, -0.1, "nan")),
        "--size 5 --dataset folder",
    ],
    "subset --size 5": ["--select weird", "--select easy", "--scores x.npy --select random"],
    "pretrain": [
        *(f"--lr {x}" for x in ("nan", 0, "inf", -0.1, 1e300)),
        "--pretrain-lr -0.1",
        "--momentum 1",
        "--milestones 40 30",
        "--milestones 30 30",
        "--depth 21",
        "--depth 0",
        "--width 0",
        "--batch-size 0",
        "--total-steps 0",
        "--steps -1",
        f"--steps {common.PRESETS['digits']['total_steps'] + 1}",
        f"--seed {2**32}",
        "--device cuda:99",
        "--device mps",
        "--preset imagenet",
        "--bogus 1",
    ],
    "score": [
        "--networks 0",
        f"--networks {10**9}",
        "--steps 0",
        f"--steps {common.SCORING_PRESETS['digits']['total_steps'] + 1}",
        f"--noise-seed {2**32}",
    ],
    "imp x.safetensors": [
        *(f"--prune-fraction {x}" for x in (0, 1, "nan")),
        "--levels -1",
        "--at-once 0",
        "--save-every 0",
    ],
}


@pytest.mark.parametrize(
    "line", [f"{command} {bad}" for command, cases in BAD.items() for bad in cases]
)
def test_bad_arguments(refused, tmp_path, line):
    command = line.split()
    out = tmp_path / "new" / ("x.safetensors" if command[0] == "pretrain" else "x.npy")
    refused([*command, "--out", out], *command[-2:])
    assert not (tmp_path / "new").exists()


def test_settings_without_effect_are_noted(call, tmp_path):
    train = ["pretrain", *TINY, "--steps", 1, "--out", tmp_path / "rewind.safetensors", "--force"]
    status, _, err = call(*train)
    assert (status, err) == (0, "")
    status, _, err = call(*train, "--total-steps", 30, "--batch-size", 1298)
    late, batch = err.splitlines()  # TINY's milestones are 30 and 40
    assert status == 0
    assert re.search(r"step 30\b.*\b30, 40\b", late)
    assert "1298 holds all 1297 examples" in batch


def test_a_reader_that_is_gone_is_one_line(tmp_path):
    """As head does, which reads a line and goes."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, ROOT / "verdicts.py", "--paper", ROOT / "paper_curves.json"]
    command += ["--figure", "2", "--out", tmp_path / "out"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.returncode != 0
    assert done.stderr == "verdicts.py: stopped, as nothing reads its output any more\n"


def test_what_imp_cannot_do_with_its_runs(ok, refused, folder, rewind):
    for out in ([], ["--out", rewind.parent]):
        refused(["imp", rewind, "--order-seed", 3, *out], "--order-seed", "--out")
    refused(["imp", rewind.parent], "is a folder")
    refused(["imp", rewind, "--out", "a", "b"], "--out", "1", "2")
    refused(
        ["imp", rewind, shutil.copy(rewind, rewind.with_name("twin.safetensors"))], "same folder"
    )
    other = folder / "other" / "rewind.safetensors"
    ok(*START, other, "--lr", 0.05)
    refused(["imp", rewind, other], "lr is 0.05, but 0.3 in")


def test_what_the_hardware_cannot_do(refused, folder, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert training.resolve_precision("auto", torch.device("cpu"), {}) == "fp32"
    refused([*START, folder / "x.safetensors", "--precision", "bf16"], "bf16 needs")
    imp_run = ["imp", rewrite_recipe(folder, precision="bf16"), "--out", folder / "new"]
    refused(imp_run, "was begun in bf16", "--precision fp32 in another folder")
    error = RuntimeError(
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
    )
    monkeypatch.setattr(training, "load_data", Mock(side_effect=error))
    refused([*START, folder / "x.safetensors"], "--at-once", status=1)


def test_outputs_that_cannot_be(refused, folder, rewind):
    """Unwritable or locked folders, other suffixes, and names of files that are imp.py's own."""
    scores = folder / "scores.npy"
    below = scores / "a-file"
    for command in (
        [*SCORE, below / "s.npy"],
        [*RANDOM, below / "s.npy"],
        [*START, below / "r.safetensors"],
        ["imp", rewind, "--out", below],
    ):
        refused(command, "cannot write to")
    with common.lock(rewind.parent / ".lock"):
        for command in (["imp", rewind], [*START, rewind, "--force"]):
            refused(command, f"is in use by process {os.getpid()} on")
    (folder / "folder.npy").mkdir()
    for command, name in (
        (SCORE, "scores.txt"),
        (SCORE, "folder.npy"),
        (START, "rewind.pt"),
        (START, "state.safetensors"),
        (START, "level03.safetensors"),
    ):
        refused([*command, folder / name], name)
    refused([*EASY, scores, "--out", scores, "--force"], "same file")


@pytest.mark.parametrize(
    ("command", "flag", "word"),
    [
        ([*SCORE, "s.npy"], ["--lr", 0.05], "lr 0.3 there, 0.05 now"),
        ([*RANDOM, "r.npy"], ["--seed", 1], "seed 0 there, 1 now"),
        ([*START, "r.safetensors"], ["--seed", 1], "seed 0 there, 1 now"),
    ],
)
def test_what_exists_is_done_or_another_setting_is_named(
    ok, refused, tmp_path, command, flag, word
):
    command = [*command[:-1], tmp_path / command[-1]]
    ok(*command)
    before = snapshot(tmp_path)
    assert "already done" in ok(*command)
    assert snapshot(tmp_path) == before
    refused([*command, *flag], word)
    ok(*command, *flag, "--force")
    assert snapshot(tmp_path) != before


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros(N - 1, np.float32), ["[1296]", "[1297]"]),
        (np.zeros((N, 1), np.float32), ["[1297, 1]"]),
        (np.zeros(N), ["float64", "float32"]),
        (np.full(N, np.nan, np.float32), ["finite"]),
        (np.array([None] * N), ["not readable"]),
        (np.array([0, N]), ["index 1297"]),
        (np.array([-1, 4]), ["index -1"]),
        (np.array([3, 3]), ["twice"]),
        (np.array([5, 3, 1]), ["ascending"]),
        (np.array([], np.int64), ["no index"]),
        (np.array([[1, 2]]), ["[1, 2]"]),
        (np.array([1.0, 2.0]), ["float64", "int64"]),
    ],
)
def test_bad_arrays(refused, tmp_path, array, words):
    """Scores, if there is one for each example, else a subset."""
    np.save(tmp_path / "mine.npy", array)
    subset = [*START, tmp_path / "x.safetensors", "--subset", tmp_path / "mine.npy"]
    scores = [*EASY, tmp_path / "mine.npy", "--out", tmp_path / "new.npy"]
    refused(subset if len(array) < 9 else scores, "mine.npy", *words)


def test_files_that_are_no_array_are_named_for_what_they_are(refused, tmp_path):
    scores = np.zeros(N, np.float32)
    np.savez(tmp_path / "a.npz", scores)
    torch.save(torch.from_numpy(scores), tmp_path / "a.pt")
    np.savetxt(tmp_path / "a.csv", scores)
    for name, words in (
        ("a.npz", ["is an archive", "numpy.save"]),
        ("a.pt", ["is an archive", "numpy.save"]),
        ("a.csv", ["is something else", "numpy.save"]),
    ):
        refused([*EASY, tmp_path / name, "--out", tmp_path / "new.npy"], name, *words)


@pytest.mark.parametrize("name", [7, None, "", "init", "all", ["margin"]])
def test_the_name_of_a_score_is_one_of_its_own(refused, tmp_path, name):
    np.save(tmp_path / "mine.npy", np.zeros(N, np.float32))
    (tmp_path / "mine.json").write_text(json.dumps({"select": name}))
    command = [*EASY, tmp_path / "mine.npy", "--out", tmp_path / "new.npy"]
    refused(command, "mine.json", f"{json.dumps(name)} is no name of one's own")


def test_a_class_with_too_few_examples_is_named(refused, tmp_path):
    """The digits have at most 133 training images of a class."""
    words = ["examples of class 8, which has 124", "--no-class-balanced"]
    command = ["subset", "--select", "random", "--size", 1260, "--out", tmp_path / "new.npy"]
    refused(command, "--size 1260 needs 126", *words)


def test_scores_of_which_high_is_good_get_a_warning_where_the_noise_is_known(call, tmp_path):
    clean = dataset.load_images("digits", tmp_path).labels
    right = (dataset.noisy_labels(clean, 10, 0.5, 0) == clean).astype(np.float32)
    for low_is, scores in (("easy", 1 - right), ("hard", right)):
        np.save(tmp_path / "s.npy", scores)
        status, out, err = call(
            *EASY, tmp_path / "s.npy", "--label-noise", 0.5, "--force", "--out", tmp_path / "e.npy"
        )
        assert ("wrong labels: 0.00%" in out, "wrong labels: 100.00%" in out) == (
            low_is == "easy",
            low_is == "hard",
        )
        assert ("is a low score easy in" in err) == (low_is == "hard")
        assert status == 0


@pytest.mark.parametrize("number", ["ENOSYS", "ENOLCK", "EOPNOTSUPP"])
def test_a_file_system_without_locks_gets_one_note(call, tmp_path, monkeypatch, number):
    def no_locks(handle, operation):
        raise OSError(getattr(errno, number), "no locks here")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    common.note_no_locks.cache_clear()
    commands = (
        [*START, tmp_path / "run/rewind.safetensors"],
        ["imp", tmp_path / "run/rewind.safetensors", "--levels", 0],
    )
    for command, notes in zip(commands, (1, 0)):  # once a process
        status, _, err = call(*command)
        assert (status, err.count("has no locks")) == (0, notes), err


def test_a_folder_that_cannot_be_synced_is_written_all_the_same(call, tmp_path, monkeypatch):
    fsync = os.fsync

    def files_only(fd):
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "no fsync of folders here")
        fsync(fd)

    monkeypatch.setattr(os, "fsync", files_only)
    command = [*START, tmp_path / "run/rewind.safetensors"]
    assert call(*command)[0] == 0
    assert "already done" in call(*command)[1]


def test_arrays_and_their_sidecars(call, ok, refused, folder):
    scores, sidecar, out = folder / "scores.npy", folder / "scores.json", folder / "new.npy"
    command = [*EASY, scores, "--out", out]
    whole, said = scores.read_bytes(), json.loads(sidecar.read_text())
    for content, word in ((whole[:-8], "not readable"), (whole[:-8] + b"\0\0\0\x3f" * 2, "sha256")):
        scores.write_bytes(content)
        refused(command, "scores.npy", word)
    scores.write_bytes(whole)
    sidecar.write_text(json.dumps(said | {"fingerprint": "0" * 64, "dataset": "else"}))
    refused(command, "scores.npy", "other data (else, 8 pixels a side)")
    sidecar.write_text(json.dumps(said | {"label_noise": 0.25}))
    (folder / "link.npy").symlink_to("scores.npy")  # a link keeps its sidecar
    ok(*EASY, folder / "link.npy", "--out", out)
    assert json.loads(out.with_suffix(".json").read_text())["label_noise"] == 0.25
    sidecar.unlink()
    status, _, err = call(*command, "--force")
    assert (status, "clean" in err) == (0, True)


def rewrite_recipe(folder, **changes):
    """The rewind file with another recipe and a checksum that fits it."""
    path = folder / "run" / "rewind.safetensors"
    tensors, info = training.load_tensors(path)
    recipe = {key: v for key, v in (info["recipe"] | changes).items() if v != "drop"}
    training.save_tensors(path, tensors, info | {"recipe": recipe})
    return path


def test_starting_points_that_do_not_fit(refused, folder, rewind):
    content, other = rewind.read_bytes(), "other digits images"
    for changes, word in (
        ({"depth": 14}, "blocks.1.shortcut.0.weight"),
        ({"width": 3}, "recipe needs"),
        ({"fingerprint": "0" * 64}, other),
        ({"seed": "drop"}, "lacks seed"),
    ):
        rewind.write_bytes(content)
        refused(["imp", rewrite_recipe(folder, **changes)], word)
    safetensors.torch.save_file({"w": torch.zeros(3)}, rewind)
    refused(["imp", rewind], str(rewind), "not a file of this pretrain.py")
    rewind.unlink()
    refused(["imp", rewind], "No such file")


def test_levels_that_do_not_fit(refused, rewind):
    """Masks that do not follow, masks that are missing, a torn state."""
    path, state = rewind.with_name("level00.safetensors"), rewind.with_name("state.safetensors")
    tensors, info = level(rewind.parent, 0)
    other = tensors["mask.conv.weight"].clone()
    other[0] = 0
    without_next = {name: t for name, t in tensors.items() if not name.startswith("next.")}
    for changed, word in (
        (tensors | {"mask.conv.weight": other}, "masks"),
        (without_next, "next.blocks.0.conv1.weight is missing"),
    ):
        training.save_tensors(path, changed, info)
        refused(["imp", rewind, "--levels", 1], "level00.safetensors", word)
    training.save_tensors(path, tensors, info)
    state.write_bytes(b"torn")
    refused(["imp", rewind, "--levels", 1], "state.safetensors", "delete it")


def test_a_setting_that_other_code_does_not_know_makes_a_difference(
    ok, refused, folder, rewind, monkeypatch
):
    """What a changed copy of the toolkit has made is not taken up here, nor the reverse."""
    mine, other = folder / "mine" / "rewind.safetensors", folder / "other" / "rewind.safetensors"
    ok(*START, other)
    # a network of their own, with tensors of the same names and shapes
    with monkeypatch.context() as patch:
        patch.setattr(common, "OWN", {"network": "silu"})
        refused(["imp", rewind, "--levels", 1], "{'network': 'silu'} here")
        refused([*START, rewind], "silu")
        ok(*START, mine)
        ok("imp", mine, "--levels", 0)
    refused(["imp", mine, "--levels", 1], "{'network': 'silu'} there")
    path = rewrite_recipe(folder, optimizer="adam")
    for command in ([*START, path], ["imp", path, other], ["imp", other, path]):
        refused(command, "optimizer", "adam")
    tensors, info = level(folder / "run", 0)
    training.save_tensors(
        folder / "run" / "level00.safetensors", tensors, info | {"rule": "random"}
    )
    refused(["imp", rewrite_recipe(folder, optimizer="drop")], "rule random there")


def test_a_divergence_in_the_very_last_step_is_noticed_and_kept_in_a_file(ok, refused, tmp_path):
    flags = ["--depth=8", "--width=2", "--total-steps=1", "--milestones", "--momentum=0"]
    score = [
        "score",
        *flags,
        "--steps",
        1,
        "--lr",
        9e29,
        "--networks",
        2,
        "--out",
        tmp_path / "s.npy",
    ]
    refused(score, "network 1 at step 1, network 2 at step 1", status=1)
    assert not (tmp_path / "s.npy").exists()
    path = tmp_path / "x" / "rewind.safetensors"
    start = ["pretrain", *flags, "--steps", 1, "--out", path, "--pretrain-lr"]
    refused([*start, 9e29], "not finite", status=1)
    assert not path.exists()
    said = json.loads((path.parent / "diverged.json").read_text())
    found = said["recipe"]["pretrain_lr"], said["settings"], said["level"], said["step"]
    assert found == (9e29, {}, None, 1)
    ok(*start, 0.1)
    assert not (path.parent / "diverged.json").exists()
    ok("pretrain", *flags, "--lr", 9e29, "--steps", 0, "--out", path, "--force")
    for _ in range(2):  # the same command tries again
        refused(
            ["imp", path, "--levels", 0], "x: the loss is not finite at level 0, step 1", status=1
        )
        said = json.loads((path.parent / "diverged.json").read_text())
        assert (said["recipe"]["lr"], said["level"], said["step"]) == (9e29, 0, 1)
        assert said["settings"]["prune_fraction"] == FRACTION


def test_a_score_of_ones_own_goes_through_the_whole_chain(ok, tmp_path):
    """No sidecar anywhere: scheme custom. With sidecars the recipe names subset and score."""
    scores, easy, bare = (tmp_path / f"{name}.npy" for name in ("mine", "easy", "bare"))
    np.save(scores, np.arange(N, dtype=np.float32))
    scores.with_suffix(".json").write_text(json.dumps({"select": "margin"}))
    ok(*EASY, scores, "--out", easy)
    assert np.load(easy).tolist() == [0, 1, 2, 3, 4]
    # the seed is for random alone
    assert "already done" in ok(*EASY, scores, "--out", easy, "--seed", 1)
    shutil.copy(easy, bare)
    paths = [tmp_path / name / "rewind.safetensors" for name in ("easy", "bare")]
    for subset, path in zip((easy, bare), paths):
        assert "test accuracy" in ok(*START, path, "--subset", subset)
    (a, named), (b, custom) = ((t, info["recipe"]) for t, info in map(training.load_tensors, paths))
    assert equal(a, b)
    assert (named["scheme"], custom["scheme"]) == ("easy", "custom")
    assert (named["score"], custom["score"]) == ("margin", None)
    assert named["subset_sha256"] == custom["subset_sha256"]
    scores.with_suffix(".json").unlink()
    ok(*EASY, scores, "--force", "--out", easy)
    # a score without a name is not EL2N's
    assert json.loads(easy.with_suffix(".json").read_text())["score"] == "unnamed"


@pytest.mark.parametrize("stage", STAGES)
def test_help_is_the_docstring(stage, capsys):
    with pytest.raises(SystemExit, match="0"):
        STAGES[stage].main(["--help"])
    said = capsys.readouterr().out
    assert all(
        words in said for words in (f"python {STAGES[stage].__name__}.py", "reads ", "writes ")
    )


def test_presets_hold_the_papers_table_1_and_a_dataset_names_its_own():
    args = argparse.Namespace(preset=None, dataset="cifar100", depth=None, width=8, image_size=None)
    common.fill_from_preset(args)
    assert (args.preset, args.dataset) == ("cifar100", "cifar100")
    assert (args.depth, args.width) == (32, 8)
    names = (
        "depth",
        "batch_size",
        "pretrain_lr",
        "lr",
        "momentum",
        "weight_decay",
        "lr_decay",
        "milestones",
        "total_steps",
        "t_star",
        "networks",
        "el2n_steps",
        "prune_fraction",
        "levels",
    )
    cifar = (0.1, 0.9, 1e-4, 0.1, [31200, 46800], 62400)
    cinic = (0.1, 0.9, 1e-4, 0.1, [15625, 23440], 31250)
    for preset, *expected in (
        ("cifar10", 20, 128, 0.4, *cifar, 400, 10, 7800, 0.2, 16),
        ("cifar100", 32, 128, 0.4, *cifar, 800, 10, 7800, 0.2, 16),
        ("cinic10", 56, 256, 0.1, *cinic, 800, 10, 8000, 0.2, 12),
    ):
        assert [common.PRESETS[preset][name] for name in names] == expected


def test_presets_are_printed_for_the_shell(capfd):
    """What a shell reads back is the preset, word by word; common.py imports no torch."""
    for name, preset in common.PRESETS.items():
        assert common.cli(common.main, [name]) == 0
        for line in capfd.readouterr().out.splitlines():
            key, value = line.split("=", 1)
            (words,) = shlex.split(value)
            if key.startswith("scoring_"):
                expected = preset["scoring"][key.removeprefix("scoring_")]
            else:
                expected = preset[key]
            expected = expected if isinstance(expected, list) else [expected]
            assert words.split() == [str(word) for word in expected]
    assert common.cli(common.main, ["imagenet"]) == 2
    assert re.fullmatch(".*imagenet.*cifar10-small.*\n", capfd.readouterr().err)
    code = "import sys, common; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_auto_is_the_precision_of_what_is_there_and_done_needs_no_hardware(
    ok, refused, tmp_path, monkeypatch
):
    """The same commands on a machine with bf16 units and on one without, both ways round."""
    scores, rewind = tmp_path / "scores.npy", tmp_path / "run" / "rewind.safetensors"
    auto = [*TINY, "--precision", "auto"]
    score = ["score", *auto, "--networks", 2, "--steps", 1, "--out", scores]
    start = ["pretrain", *auto, "--steps", 2, "--out", rewind]
    prune = ["imp", rewind, "--levels", 0]

    def precisions():
        recipes = (
            json.loads(scores.with_suffix(".json").read_text()),
            common.load_info(rewind)["recipe"],
        )
        return {recipe["precision"] for recipe in recipes}

    for units, here, elsewhere in ((True, "bf16", "fp32"), (False, "fp32", "bf16")):
        monkeypatch.setattr(training, "has_fast_bf16", lambda device, units=units: units)
        for command in (score, start, prune):
            ok(*command, *(["--force"] if command is not prune or not units else []))
        assert precisions() == {here}
        before = snapshot(tmp_path)
        monkeypatch.setattr(training, "has_fast_bf16", lambda device, units=units: not units)
        for command in (score, start, prune):
            assert "already done" in ok(*command)
        for command in (score, start):  # one that is asked for is compared
            refused(
                [*command, "--precision", elsewhere], f"precision {here} there, {elsewhere} now"
            )
        assert snapshot(tmp_path) == before
        more = ["imp", rewind, "--levels", 1]
        scores.unlink()  # the networks of its progress file are finished
        if units:  # unfinished bf16 work, and no such units here
            refused(more, "rewind.safetensors was begun in bf16", "in another folder")
            refused(score, "scores.networks.safetensors was begun in bf16")
            ok(*start, "--force")  # resolved anew
            assert common.load_info(rewind)["recipe"]["precision"] == "fp32"
        else:
            ok(*more)
            ok(*score)
            assert precisions() == {"fp32"}


def test_what_another_version_made_is_refused_with_one_line(
    ok, refused, folder, rewind, monkeypatch
):
    subset, new = folder / "random.npy", folder / "new.npy"
    ok(*RANDOM, subset)
    monkeypatch.setattr(common, "VERSION", common.VERSION + 1)
    commands = [
        [*SCORE, folder / "scores.npy"],
        [*EASY, folder / "scores.npy", "--out", new],
        [*RANDOM, subset],
        [*START, folder / "other.safetensors", "--subset", subset],
        [*START, rewind],
        ["imp", rewind, "--levels", 1],
        ["verdicts", folder, "--out", folder],
        ["connectivity", rewind.parent, "--with", rewind.parent, "--out", folder],
    ]
    for command in commands:
        refused(
            command, "made by version 1 of this toolkit, this is version 2", "use another folder"
        )
    (folder / "scores.npy").unlink()  # its progress
    refused([*SCORE, folder / "scores.npy"], "scores.networks.safetensors", "version 1")
    sidecar = subset.with_suffix(".json")  # a user's own, which says no more than a name
    sidecar.write_text(json.dumps({"select": "mine"}))
    ok(*START, folder / "other.safetensors", "--subset", subset)
    path = rewrite_recipe(folder, version="drop")  # before there was one
    refused(["imp", path], "made by version before 1")


def test_stages_that_train_say_on_what(ok, tmp_path):
    out = ok("pretrain", *TINY, "--steps", 1, "--out", tmp_path / "rewind.safetensors")
    line = f"training on: {training.processor()}, 1 thread, fp32"
    assert out.splitlines().count(line) == 1
    assert f"torch {torch.backends.cpu.get_cpu_capability()}" in line
    assert ok("imp", tmp_path / "rewind.safetensors", "--levels", 1).splitlines().count(line) == 1
    again = ok("imp", tmp_path / "rewind.safetensors", "--levels", 1)
    assert "training on" not in again
    assert ok(*SCORE, tmp_path / "scores.npy").splitlines().count(line) == 1
