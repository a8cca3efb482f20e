"""Data: against torchvision on the same crops, and from small files laid out as CIFAR and CINIC."""

import hashlib
import os
import pickle
import shutil
import tarfile
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
import dataset
import training

NOWHERE = "http://127.0.0.1:9/"


def picture(seed, size=(32, 32), mode="RGB"):
    values = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    return Image.fromarray(values).convert(mode)


def pixels(seed, mode="RGB"):
    return np.asarray(picture(seed, mode=mode).convert("RGB"))


def load(root, name="folder"):
    return training.load_data(name, root, torch.device("cpu"), pad=4, flip=True)


def plant(root, counts, classes):
    """A tree of lossless PNG images: root/split/class/000.png is picture(100 split + 10 class)."""
    for s, (split, count) in enumerate(counts.items()):
        for c, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                picture(100 * s + 10 * c + i).save(root / split / name / f"{i:03d}.png")
    return root


@pytest.fixture
def tree(tmp_path):
    """A folder data set of 2 classes with 6 training and 2 test images each."""
    return plant(tmp_path / "images", {"train": 6, "test": 2}, ["zebra", "ant"])


def test_batches_equal_torchvision_on_the_same_crops(tree):
    data = load(tree)
    table = training.epoch_table(3, 1, 4, len(data.labels), 12, data.pad, data.flip)[:, 0]
    assert len(np.unique(table[1])) > 3  # crops differ,
    assert set(table[3]) == {0, 1}  # and some are flipped
    ours = training.take_batch(data, torch.from_numpy(table))
    raw = data.train_images().numpy()
    mean, std = raw.reshape(-1, 3).mean(0) / 255, raw.reshape(-1, 3).std(0) / 255
    for k, (example, top, left, flip) in enumerate(table.T):
        image = TF.crop(TF.pad(Image.fromarray(raw[example]), 4), int(top), int(left), 32, 32)
        image = TF.hflip(image) if flip else image
        theirs = TF.normalize(TF.to_tensor(image), mean.tolist(), std.tolist())
        torch.testing.assert_close(ours[k], theirs, rtol=1e-5, atol=2e-6)
    assert ours.is_contiguous(memory_format=torch.channels_last)


def test_an_epoch_is_a_pure_function_of_seed_level_and_epoch():
    one = training.epoch_table(5, 2, 7, 1000, 64, 4, True)
    assert np.array_equal(one, training.epoch_table(5, 2, 7, 1000, 64, 4, True))
    assert one.shape == (4, 15, 64)
    assert len(np.unique(one[0])) == 960  # without repetition, the rest left out
    assert (one[1:3].min(), one[1:3].max()) == (0, 8)
    for other in ((6, 2, 7), (5, 3, 7), (5, 2, 8)):
        assert not np.array_equal(one, training.epoch_table(*other, 1000, 64, 4, True))
    assert not training.epoch_table(5, 2, 7, 1000, 64, 4, False)[3].any()
    # trailing zeros make no other key the same
    short = training.epoch_table(5, 2, 0, 1000, 64, 4, True)
    assert not np.array_equal(short[0], training.epoch_table(5, 0, 2, 1000, 64, 4, True)[0])


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_label_noise_redraws_that_share_uniformly(share):
    labels = np.repeat(np.arange(10), 2000)
    noisy = dataset.noisy_labels(labels, 10, share, 0)
    assert np.array_equal(noisy, dataset.noisy_labels(labels, 10, share, 0))
    assert np.array_equal(noisy, dataset.noisy_labels(labels, 10, share, 1)) == (share == 0)
    # some draw their own again
    assert (noisy != labels).mean() == pytest.approx(0.9 * share, abs=0.01)
    assert share < 1 or np.bincount(noisy).min() > 1800
    assert labels[1999] == 0  # the argument is untouched


def test_digits_split(digits):
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    train = digits.train_images().numpy().reshape(-1, 64)
    assert (digits.train_images().shape, digits.test.shape) == ((1297, 8, 8, 1), (500, 8, 8, 1))
    assert np.bincount(digits.test_labels).tolist() == [50] * 10
    ours = np.concatenate([train, digits.test.numpy().reshape(-1, 64)])
    # every image once
    assert sorted(map(tuple, ours)) == sorted(map(tuple, images.astype(np.uint8)))
    order = [np.flatnonzero((images == x).all(1))[0] for x in train[:50]]
    assert order == sorted(order)
    assert labels[order].tolist() == digits.labels[:50].tolist()


def test_folder_is_read_class_by_class_and_file_by_file(tree, capfd):
    """Grey and larger images too, under any name."""
    (tree / "valid" / "ant").mkdir(parents=True)
    ant = tree / "train" / "ant"
    picture(7, mode="L").save(ant / "000.png")
    picture(8, size=(50, 40)).save(ant / "001.png")
    os.rename(ant / "005.png", os.path.join(os.fsencode(ant), b"006\xff.png"))  # not UTF-8
    data, said = load(tree), capfd.readouterr().err
    assert all(word in said for word in ("note", "ignores", "valid"))
    assert (data.classes, data.labels.tolist()) == (["ant", "zebra"], [0] * 6 + [1] * 6)
    resized = picture(8, size=(50, 40)).resize((32, 32), Image.Resampling.BILINEAR)
    expected = [pixels(7, "L"), np.asarray(resized), *map(pixels, (12, 13, 14, 15, *range(6)))]
    assert np.array_equal(data.train_images(), expected)
    assert np.array_equal(data.test[0], pixels(110))
    assert data.train.shape == (12, 40, 40, 3)
    assert not data.train[:, :4].any()  # black frame


def test_folder_cache_follows_files_and_links_and_not_the_spelling_of_the_path(
    tree, tmp_path, monkeypatch
):
    target, link = tmp_path / "elsewhere.png", tree / "train" / "ant" / "003.png"
    link.rename(target)
    link.symlink_to(target)
    before = load(tree)
    with monkeypatch.context() as patch:
        patch.chdir(tree.parent)
        patch.setattr(dataset, "read_image", None)  # the cache must do
        assert load(Path(tree.name)).fingerprint == before.fingerprint
    picture(999).save(target)
    after = load(tree)
    assert np.array_equal(after.train_images()[3], pixels(999))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda ant, root: [p.unlink() for p in ant.iterdir()], "the classes ant"),
        (lambda ant, root: (ant / "002.png").write_bytes(b"no image"), "002.png: "),
        (
            lambda ant, root: (ant / "002.png").write_bytes((ant / "002.png").read_bytes()[:200]),
            "002.png: ",
        ),
        (lambda ant, root: (ant / "gone.png").symlink_to("nowhere"), "gone.png: No such file"),
        (
            lambda ant, root: Image.fromarray(np.ones((32, 32), np.uint16)).save(ant / "001.png"),
            "mode I;16",
        ),
        (
            lambda ant, root: (root / "test" / "ant").rename(root / "test" / "bee"),
            "its class folders are not",
        ),
        (
            lambda ant, root: (root / "test").rename(root / "tset"),
            "test: No such file or directory",
        ),
        (
            lambda ant, root: [shutil.rmtree(root / part / "ant") for part in ("train", "test")],
            "only one class",
        ),
        (
            lambda ant, root: save_file({"x": torch.zeros(1)}, root / ".images.safetensors"),
            "delete it",
        ),
        (lambda ant, root: (root / ".images.safetensors").write_bytes(b"torn"), "delete it"),
    ],
)
def test_a_bad_tree_is_one_clear_line(tree, break_it, message, refused, tmp_path):
    break_it(tree / "train" / "ant", tree)
    flags = ["--preset", "cifar10", "--dataset", "folder", "--data-dir", tree]
    refused(["pretrain", *flags, *TINY, "--steps", 1, "--out", tmp_path / "r.safetensors"], message)


def test_accuracies_of_two_test_sets_are_not_mixed(tree, ok, refused, tmp_path):
    """Scores, subsets and starting points do not depend on test images; finished levels do."""
    where, out = ["--data-dir", tree], tmp_path / "run" / "rewind.safetensors"
    ok(
        "pretrain",
        *TINY,
        "--preset",
        "cifar10",
        "--dataset",
        "folder",
        *where,
        "--steps",
        2,
        "--out",
        out,
    )
    ok("imp", out, *where, "--levels", 0)
    picture(999).save(tree / "test" / "ant" / "000.png")
    refused(
        ["imp", out, *where, "--levels", 1],
        "level00.safetensors exists with other",
        "test_set_sha256",
    )
    ok("imp", out, *where, "--levels", 0, "--out", tmp_path / "other")


def test_cifar_is_read_in_torchvisions_order_and_fetched_if_damaged(refused, tmp_path, monkeypatch):
    """CIFAR-10's pickled layout, 20 images a batch, with their checksums in torchvision's list."""
    kind, draw, sums = torchvision.datasets.CIFAR10, np.random.default_rng(0), {}
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    raw = {
        name: {
            "data": draw.integers(0, 256, (20, 3072), np.uint8),
            "labels": draw.integers(0, 10, 20).tolist(),
        }
        for name in names
    }
    for name, content in (raw | {"batches.meta": {"label_names": [*"0123456789"]}}).items():
        (folder / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5(pickle.dumps(content)).hexdigest()
    monkeypatch.setattr(kind, "train_list", [[name, sums[name]] for name in names[:5]])
    monkeypatch.setattr(kind, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": sums["batches.meta"]})
    data = load(tmp_path, "cifar10")
    images = torch.cat([data.train_images(), data.test])
    planes = np.concatenate([batch["data"].reshape(20, 3, 32, 32) for batch in raw.values()])
    assert np.array_equal(images, planes.transpose(0, 2, 3, 1))
    labels = [*data.labels.tolist(), *data.test_labels.tolist()]
    assert labels == [label for batch in raw.values() for label in batch["labels"]]

    (folder / "data_batch_3").write_bytes(b"damaged")
    monkeypatch.setattr(kind, "url", f"{NOWHERE}cifar-10-python.tar.gz")  # without a network
    command = [
        "pretrain",
        "--preset",
        "cifar10",
        "--data-dir",
        tmp_path,
        "--out",
        tmp_path / "r.safetensors",
    ]
    refused(command, "cifar-10-python.tar.gz is missing and cannot be fetched", "--data-dir")


def test_cinic_from_a_folder_from_its_archive_and_from_the_cache_alone(tmp_path, monkeypatch):
    """One image of each class in train, valid and test, one of them grey."""
    monkeypatch.setattr(dataset, "CINIC10_IMAGES", [20, 10])
    monkeypatch.setattr(torchvision.datasets.utils, "_get_redirect_url", lambda *a, **k: NOWHERE)
    splits, root = ("train", "valid", "test"), tmp_path / "data"
    source = plant(tmp_path / "source", dict.fromkeys(splits, 1), [f"class{c}" for c in range(10)])
    picture(140, mode="L").save(source / "valid" / "class4" / "000.png")
    root.mkdir()
    archive = root / "CINIC-10.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for split in splits:
            tar.add(source / split, split)

    lost, more = source / "valid" / "class3" / "000.png", source / "test" / "class3" / "more.png"
    lost.unlink()
    picture(3).save(more)
    with pytest.raises(common.InputError, match="class3"):  # an empty class
        load(source, "cinic10")
    picture(130).save(lost)
    with pytest.raises(common.InputError, match="incomplete"):  # 20 and 11 images
        load(source, "cinic10")
    assert not (source / "cinic10.safetensors").exists()
    more.unlink()
    data = load(source, "cinic10")
    assert data.labels.tolist() == list(range(10)) * 2  # all of train, then all of valid
    assert np.array_equal(data.train_images()[[3, 14]], [pixels(30), pixels(140, "L")])
    assert np.array_equal(data.test[9], pixels(290))

    with pytest.raises(
        common.InputError, match=r"CINIC-10\.tar\.gz is missing and cannot be fetched"
    ):
        load(root, "cinic10")  # its checksum is wrong
    assert not (root / "CINIC-10").exists()
    monkeypatch.setattr(dataset, "CINIC10_MD5", hashlib.md5(archive.read_bytes()).hexdigest())
    assert load(root, "cinic10").fingerprint == data.fingerprint
    shutil.rmtree(root / "CINIC-10")
    archive.unlink()
    assert load(root, "cinic10").fingerprint == data.fingerprint


def test_dataset_alone_fetches_checks_and_says_classes_and_counts(ok, refused, tree, tmp_path):
    out = ok("dataset", "folder", "--data-dir", tree)
    rows = [line.split() for line in out.splitlines()]
    assert rows[1:4] == [["ant", "6", "2"], ["zebra", "6", "2"], ["all", "12", "4"]]
    assert "32 x 32 pixels, 3 channels" in out
    assert "1297" in ok("dataset", "digits")
    refused(["dataset", "folder", "--data-dir", tmp_path / "nowhere"], "nowhere")
    refused(["dataset", "imagenet"], "imagenet")
