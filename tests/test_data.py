"""Data: against torchvision on the same crops, and with small files in the layouts of CIFAR and CINIC."""

import hashlib
import os
import pickle
import shutil
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
import torchvision.transforms.functional as TF
from conftest import TINY
from PIL import Image
from safetensors.torch import save_file

import common

CPU = torch.device("cpu")


def picture(seed, size=(32, 32), mode="RGB"):
    channels = () if mode == "L" else (3,)
    values = np.random.default_rng(seed).integers(0, 256, (*size[::-1], *channels), np.uint8)
    return Image.fromarray(values, mode)


@pytest.fixture
def tree(tmp_path):
    """A folder data set of 2 classes with 6 training and 2 test images each, as PNG (lossless)."""
    root = tmp_path / "images"
    for s, (split, count) in enumerate({"train": 6, "test": 2}.items()):
        for c, name in enumerate(["zebra", "ant"]):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                picture(100 * s + 10 * c + i).save(folder / f"{i:03d}.png")
    return root


def load(root, dataset="folder", preset="cifar10"):
    return common.load_data(dataset, preset, root, CPU)


# ---------------------------------------------------------------- augmentation and normalisation


def test_batches_equal_torchvision_on_the_same_crops(tree):
    data = load(tree)
    table = common.epoch_table(3, 1, 4, len(data.labels), 12, data.pad, data.flip)[:, 0]
    assert len(np.unique(table[1])) > 3  # crops differ,
    assert set(table[3]) == {0, 1}  # and some are flipped
    ours = common.take_batch(data, torch.from_numpy(table))
    raw = data.train_images().numpy()
    mean, std = raw.reshape(-1, 3).mean(0) / 255, raw.reshape(-1, 3).std(0) / 255
    for k, (example, top, left, flip) in enumerate(table.T):
        image = TF.crop(TF.pad(Image.fromarray(raw[example]), 4), int(top), int(left), 32, 32)
        image = TF.hflip(image) if flip else image
        theirs = TF.normalize(TF.to_tensor(image), mean.tolist(), std.tolist())
        torch.testing.assert_close(ours[k], theirs, rtol=1e-5, atol=2e-6)
    assert ours.is_contiguous(memory_format=torch.channels_last)


def test_normalised_training_set_has_mean_0_and_deviation_1(digits):
    x = digits.normalise(digits.train_images())
    assert abs(x.mean().item()) < 1e-6
    assert x.std(correction=0).item() == pytest.approx(1, abs=1e-6)


def test_an_epoch_is_a_pure_function_of_seed_level_and_epoch():
    one = common.epoch_table(5, 2, 7, 1000, 64, 4, True)
    assert np.array_equal(one, common.epoch_table(5, 2, 7, 1000, 64, 4, True))
    assert one.shape == (4, 15, 64)
    assert len(np.unique(one[0])) == 960  # without repetition, the rest left out
    assert one[1:3].min() == 0
    assert one[1:3].max() == 8
    for other in ((6, 2, 7), (5, 3, 7), (5, 2, 8)):
        assert not np.array_equal(one, common.epoch_table(*other, 1000, 64, 4, True))
    assert not common.epoch_table(5, 2, 7, 1000, 64, 4, False)[3].any()
    short = common.epoch_table(5, 2, 0, 1000, 64, 4, True)  # trailing zeros make no other key the same
    assert not np.array_equal(short[0], common.epoch_table(5, 0, 2, 1000, 64, 4, True)[0])


# ---------------------------------------------------------------- label noise


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_label_noise_redraws_that_share_uniformly(share):
    labels = np.repeat(np.arange(10), 2000)
    noisy = common.noisy_labels(labels, 10, share, 0)
    assert np.array_equal(noisy, common.noisy_labels(labels, 10, share, 0))
    assert (noisy != labels).mean() == pytest.approx(0.9 * share, abs=0.01)  # some draw their own again
    if share == 1:
        assert np.bincount(noisy).min() > 1800
    if share > 0:
        assert not np.array_equal(noisy, common.noisy_labels(labels, 10, share, 1))
    assert labels[1999] == 0  # the argument is untouched


# ---------------------------------------------------------------- data sets


def test_digits_split(digits):
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    assert digits.train_images().shape == (1297, 8, 8, 1)
    assert digits.test.shape == (500, 8, 8, 1)
    assert np.bincount(digits.test_labels).tolist() == [50] * 10
    ours = np.concatenate([digits.train_images().numpy(), digits.test.numpy()]).reshape(1797, 64)
    assert sorted(map(tuple, ours)) == sorted(map(tuple, images.astype(np.uint8)))  # every image once
    first = digits.train_images().numpy().reshape(-1, 64)[:50]
    order = [np.flatnonzero((images == x).all(1))[0] for x in first]
    assert order == sorted(order)
    assert labels[order].tolist() == digits.labels[:50].tolist()


def test_folder_is_read_class_by_class_and_file_by_file(tree):
    data = load(tree)
    assert data.classes == ["ant", "zebra"]
    assert data.labels.tolist() == [0] * 6 + [1] * 6
    for i, seed in enumerate([10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5]):
        assert np.array_equal(data.train_images()[i], np.asarray(picture(seed)))
    assert np.array_equal(data.test[0], np.asarray(picture(110)))
    assert data.train.shape == (12, 40, 40, 3)
    assert not data.train[:, :4].any()  # black frame


def test_folder_cache_follows_the_files(tree):
    before = load(tree)
    assert (tree / ".images.safetensors").exists()
    assert load(tree).fingerprint == before.fingerprint
    picture(999).save(tree / "train" / "ant" / "003.png")
    after = load(tree)
    assert after.fingerprint != before.fingerprint
    assert np.array_equal(after.train_images()[3], np.asarray(picture(999)))


def test_folder_cache_follows_symlinks_and_not_the_spelling_of_the_path(tree, tmp_path, monkeypatch):
    target, link = tmp_path / "elsewhere.png", tree / "train" / "ant" / "003.png"
    link.rename(target)
    link.symlink_to(target)
    before = load(tree)
    monkeypatch.chdir(tree.parent)
    monkeypatch.setattr(common, "decode", None)  # from here on the cache must do
    assert load(Path(tree.name)).fingerprint == before.fingerprint
    monkeypatch.undo()
    picture(999).save(target)
    assert np.array_equal(load(tree).train_images()[3], np.asarray(picture(999)))


def test_folder_takes_grey_opaque_and_larger_images_under_any_name(tree):
    ant = tree / "train" / "ant"
    picture(7, mode="L").save(ant / "000.png")
    picture(8, size=(50, 40)).save(ant / "001.png")
    opaque = picture(9)
    opaque.putalpha(255)
    opaque.save(ant / "002.png")
    os.rename(ant / "005.png", os.path.join(os.fsencode(ant), b"006\xff.png"))  # not UTF-8
    images = load(tree).train_images()
    grey = np.asarray(picture(7, mode="L"))
    assert np.array_equal(images[0], np.stack([grey] * 3, -1))
    assert images[1].shape == (32, 32, 3)
    assert np.array_equal(images[2], np.asarray(picture(9)))
    assert np.array_equal(images[5], np.asarray(picture(15)))


def test_folder_mentions_an_ignored_valid(tree, ok, tmp_path, call):
    (tree / "valid" / "ant").mkdir(parents=True)
    flags = ["--preset", "cifar10", "--dataset", "folder", "--data-dir", tree]
    status, _, err = call("subset", *flags, "--select", "random", "--size", 4, "--out", tmp_path / "s.npy")
    assert status == 0
    assert "ignores" in err
    assert "valid" in err


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """CIFAR-10's pickled layout, 20 images a batch, with their checksums in torchvision's list."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    draw = np.random.default_rng(0)
    raw = {}
    for name in names:
        images, labels = draw.integers(0, 256, (20, 3072), np.uint8), draw.integers(0, 10, 20).tolist()
        raw[name] = {"data": images, "labels": labels}
        (folder / name).write_bytes(pickle.dumps(raw[name]))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {i}" for i in range(10)]}))
    kind = torchvision.datasets.CIFAR10
    monkeypatch.setattr(kind, "train_list", [[n, md5(folder / n)] for n in names[:5]])
    monkeypatch.setattr(kind, "test_list", [["test_batch", md5(folder / "test_batch")]])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": md5(folder / "batches.meta")}
    monkeypatch.setattr(kind, "meta", meta)
    return tmp_path, raw


def test_cifar_is_read_in_torchvisions_order(cifar):
    root, raw = cifar
    data = load(root, "cifar10")
    assert len(data.labels) == 100
    for b, name in enumerate(raw):
        images = data.test if name == "test_batch" else data.train_images()[20 * b : 20 * b + 20]
        planes = raw[name]["data"].reshape(20, 3, 32, 32).transpose(0, 2, 3, 1)
        assert np.array_equal(images, planes)
    assert data.labels[20:40].tolist() == raw["data_batch_2"]["labels"]


def test_a_damaged_cifar_without_a_network_is_one_line(cifar, call, tmp_path, monkeypatch):
    root, _ = cifar
    (root / "cifar-10-batches-py" / "data_batch_3").write_bytes(b"damaged")
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    flags = ["--preset", "cifar10", "--data-dir", root]
    status, _, err = call("pretrain", *flags, "--out", tmp_path / "r.safetensors")
    assert status == 2
    assert err.count("\n") == 1
    assert "cifar-10-python.tar.gz is missing and cannot be fetched" in err
    assert "--data-dir" in err


@pytest.fixture
def cinic(tmp_path, monkeypatch):
    """CINIC-10's archive with one image of each class in train, valid and test, one of them grey."""
    monkeypatch.setattr(common, "CINIC10_IMAGES", [20, 10])
    source = tmp_path / "source"
    for s, split in enumerate(["train", "valid", "test"]):
        for c in range(10):
            folder = source / split / f"class{c}"
            folder.mkdir(parents=True)
            mode = "L" if (s, c) == (1, 4) else "RGB"
            picture(10 * s + c, mode=mode).save(folder / "image.png")
    root = tmp_path / "data"
    root.mkdir()
    with tarfile.open(root / "CINIC-10.tar.gz", "w:gz") as archive:
        for split in ("train", "valid", "test"):
            archive.add(source / split, split)
    return root, source


def check_cinic(root):
    data = load(root, "cinic10", "cinic10")
    assert data.labels.tolist() == list(range(10)) * 2  # all of train, then all of valid
    assert np.array_equal(data.train_images()[3], np.asarray(picture(3)))
    grey = np.asarray(picture(14, mode="L"))
    assert np.array_equal(data.train_images()[14], np.stack([grey] * 3, -1))
    assert np.array_equal(data.test[9], np.asarray(picture(29)))
    return data.fingerprint


def test_cinic_from_its_archive_then_from_the_cache_alone(cinic, monkeypatch):
    root, _ = cinic
    monkeypatch.setattr(common, "CINIC10_MD5", md5(root / "CINIC-10.tar.gz"))
    first = check_cinic(root)
    for path in sorted((root / "CINIC-10").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (root / "CINIC-10").rmdir()
    (root / "CINIC-10.tar.gz").unlink()
    assert check_cinic(root) == first


def test_cinic_from_an_unpacked_folder(cinic):
    _, source = cinic
    check_cinic(source)


def test_an_incomplete_cinic_is_refused_and_not_cached(cinic):
    _, source = cinic
    (source / "valid" / "class3" / "image.png").unlink()
    picture(3).save(source / "test" / "class3" / "more.png")
    with pytest.raises(common.InputError, match="class3"):  # an empty class
        check_cinic(source)
    picture(13).save(source / "valid" / "class3" / "image.png")
    with pytest.raises(common.InputError, match="incomplete"):  # 20 and 11 images
        check_cinic(source)
    assert not (source / "cinic10.safetensors").exists()


def test_cinic_with_a_wrong_checksum_is_refused(cinic, monkeypatch):
    root, _ = cinic
    nowhere = lambda *a, **k: "http://127.0.0.1:9/x"  # noqa: E731
    monkeypatch.setattr(torchvision.datasets.utils, "_get_redirect_url", nowhere)
    with pytest.raises(common.InputError, match=r"CINIC-10\.tar\.gz is missing and cannot be fetched"):
        load(root, "cinic10", "cinic10")
    assert not (root / "CINIC-10").exists()


# ---------------------------------------------------------------- bad trees


BAD_TREES = [
    (lambda ant, root: [p.unlink() for p in ant.iterdir()], "the classes ant"),
    (lambda ant, root: (ant / "002.png").write_bytes(b"no image"), "002.png: "),
    (lambda ant, root: (ant / "002.png").write_bytes((ant / "002.png").read_bytes()[:200]), "002.png: "),
    (lambda ant, root: (ant / "gone.png").symlink_to("nowhere"), "gone.png: No such file"),
    (lambda ant, root: deep(ant / "001.png"), "001.png: not readable (ValueError: pixels of mode I;16"),
    (lambda ant, root: deep_rgb(ant / "001.png"), "001.png: not readable (ValueError: pixels of mode RGB"),
    (lambda ant, root: see_through(ant / "001.png"), "001.png: not readable (ValueError: transparent"),
    (lambda ant, root: (root / "test" / "ant").rename(root / "test" / "bee"), "its class folders are not"),
    (lambda ant, root: (root / "test").rename(root / "tset"), "test: No such file or directory"),
    (lambda ant, root: [shutil.rmtree(root / part / "ant") for part in ("train", "test")], "only one class"),
    (lambda ant, root: save_file({"x": torch.zeros(1)}, root / ".images.safetensors"), "delete it"),
    (lambda ant, root: (root / ".images.safetensors").write_bytes(b"torn"), "delete it"),
]


@pytest.mark.parametrize(("break_it", "message"), BAD_TREES)
def test_a_bad_tree_is_one_clear_line(tree, break_it, message, call, tmp_path):
    break_it(tree / "train" / "ant", tree)
    out = tmp_path / "out" / "r.safetensors"
    flags = ["--preset", "cifar10", "--dataset", "folder", "--data-dir", tree]
    status, _, err = call("pretrain", *flags, *TINY, "--steps", 1, "--out", out)
    assert status == 2
    assert err.count("\n") == 1
    assert message in err
    assert not Path(out).exists()


def deep(path):
    Image.fromarray(np.full((32, 32), 3000, np.uint16)).save(path)


def deep_rgb(path):
    """A PNG of 16 bits a channel, written by hand: PIL cannot."""

    lines = zlib.compress((b"\0" + bytes(range(192))) * 32)
    head = struct.pack(">IIBBBBB", 32, 32, 16, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", head), (b"IDAT", lines), (b"IEND", b"")):
        content += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    path.write_bytes(content)


def see_through(path):
    image = picture(1)
    image.putalpha(Image.fromarray(np.full((32, 32), 128, np.uint8)))
    image.save(path)


def test_accuracies_of_two_test_sets_are_not_mixed(tree, ok, call, tmp_path):
    """Scores, subsets and starting points do not depend on test images; finished levels do."""
    where, out = ["--data-dir", tree], tmp_path / "run" / "rewind.safetensors"
    ok("pretrain", *TINY, "--preset", "cifar10", "--dataset", "folder", *where, "--steps", 2, "--out", out)
    ok("imp", out, *where, "--levels", 0)
    picture(999).save(tree / "test" / "ant" / "000.png")
    status, _, err = call("imp", out, *where, "--levels", 1)
    assert status == 2
    assert "level00.safetensors exists with other settings: test_set_sha256" in err
    ok("imp", out, *where, "--levels", 0, "--out", tmp_path / "other")
