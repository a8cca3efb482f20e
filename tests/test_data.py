"""Data: against torchvision on the same crops, and from small files laid out as CIFAR and CINIC."""

import hashlib
import json
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

FOLDER = ["--preset", "cifar10", "--dataset", "folder", "--data-dir"]
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
        (lambda ant, root: [p.unlink() for p in ant.iterdir()], "ant: has no image"),
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
            "its classes are not those of",
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
            lambda ant, root: save_file({"x": torch.zeros(1)}, root / ".images-32.safetensors"),
            "delete it",
        ),
        (lambda ant, root: (root / ".images-32.safetensors").write_bytes(b"torn"), "delete it"),
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


def test_only_a_users_own_images_are_read_and_what_is_ignored_is_counted(tree, capfd):
    before = load(tree)
    ant = tree / "train" / "ant"
    for split in ("train", "test"):  # what editors and file servers leave behind
        for name in (".ipynb_checkpoints", "__MACOSX", "@eaDir"):
            (tree / split / name).mkdir()
            picture(1).save(tree / split / name / "000.png")
    (ant / "@eaDir").mkdir()
    picture(2).save(ant / "@eaDir" / "000.png")
    picture(3).save(ant / "._000.png")
    (ant / "notes.txt").write_text("ants")
    (tree / "train" / "README").write_text("ants and zebras")
    (ant / "itself").symlink_to(ant)
    (ant / "copy.png").symlink_to(ant / "000.png")
    capfd.readouterr()
    assert load(tree).fingerprint == before.fingerprint
    counts = ["2 .ipynb_checkpoints/", "2 @eaDir/", "2 __MACOSX/", "1 folders within a class"]
    counts += ["2 hidden", "1 .txt", "1 beside the classes", "1 links to a file"]
    said = capfd.readouterr().err
    assert [count for count in counts if count not in said] == []
    assert said.count("\n") == 1


def test_whatever_pillow_reads_is_an_image(tree):
    ant = tree / "train" / "ant"
    for k, ending in enumerate((".jfif", ".gif", ".webp", ".TIFF", ".bmp")):
        kind = {"format": "JPEG"} if ending == ".jfif" else {}
        picture(50 + k).save(ant / f"9{k}{ending}", **kind)
    data = load(tree)
    assert np.bincount(data.labels).tolist() == [11, 6]
    assert np.array_equal(data.train_images()[9], pixels(53))  # TIFF and BMP lose nothing
    assert np.array_equal(data.train_images()[10], pixels(54))


def test_classes_that_differ_between_splits_are_named(tree):
    for split, name in (("train", "bee"), ("test", "wasp")):
        (tree / split / name).mkdir()
        picture(1).save(tree / split / name / "000.png")
    with pytest.raises(common.InputError, match="it lacks bee and has wasp beside them"):
        load(tree)


def test_a_constant_channel_becomes_zeros_and_trains(tree, ok, tmp_path):
    """Two-colour microscopy that was stored as RGB."""
    for path in tree.rglob("*.png"):
        values = np.array(Image.open(path))
        values[..., 2] = 200
        Image.fromarray(values).save(path)
    data = load(tree)
    table = training.epoch_table(0, 0, 0, len(data.labels), 12, data.pad, data.flip)[:, 0]
    batch = training.take_batch(data, torch.from_numpy(table))  # black frames included
    assert (batch[:, 2] == 0).all()
    assert batch[:, 1].std() == pytest.approx(1, abs=0.2)
    start = tmp_path / "run" / "rewind.safetensors"
    ok("pretrain", *FOLDER, tree, *TINY, "--steps", 3, "--out", start)
    weights, _ = training.load_tensors(start)
    assert all(t.isfinite().all() for t in weights.values())


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_are_put_on_black_and_it_is_said_once(tree, capfd, mode):
    """Sprites that are drawn by their alpha channel alone."""
    alpha = np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)
    sprite = np.full((32, 32, 4), 255, np.uint8)
    sprite[..., 3] = alpha
    path = tree / "train" / "ant" / "000.png"
    if mode == "P":  # a palette with one transparent entry
        indexed = Image.fromarray((alpha > 127).astype(np.uint8), "P")
        indexed.putpalette([9, 9, 9, 255, 255, 255])
        indexed.save(path, transparency=0)
        expected = np.where(alpha > 127, 255, 0)
    else:
        Image.fromarray(sprite).convert(mode).save(path)
        expected = alpha
    image = load(tree).train_images()[0].numpy()
    assert np.array_equal(image, np.repeat(expected[..., None], 3, axis=2))
    assert capfd.readouterr().err.count("note: 1 images have transparent pixels") == 1
    load(tree)
    assert "transparent" not in capfd.readouterr().err


def test_two_exchanged_files_of_equal_size_and_time_are_seen(tree):
    for name, seed in (("ant", 20), ("zebra", 21)):
        picture(seed).save(tree / "train" / name / "000.bmp")
        os.utime(tree / "train" / name / "000.bmp", (10**9, 10**9))
    before = load(tree).train_images()
    one, other = (tree / "train" / name / "000.bmp" for name in ("ant", "zebra"))
    one.rename(tree / "between")
    other.rename(one)
    (tree / "between").rename(other)
    after = load(tree).train_images()
    assert torch.equal(before[[0, 7]], after[[7, 0]])


def test_labels_of_ones_own_go_through_the_whole_chain(call, ok, refused, tree, tmp_path):
    clean = load(tree).labels.numpy()
    human = clean.copy()
    human[[0, 7]] = 1 - human[[0, 7]]
    labels, scores, easy = (tmp_path / f"{name}.npy" for name in ("human", "scores", "easy"))
    np.save(labels, human)
    score = ["score", *FOLDER, tree, *TINY, "--networks", 1, "--steps", 2, "--out", scores]
    ok(*score, "--labels", labels)
    sha = hashlib.sha256(human.tobytes()).hexdigest()
    assert json.loads(scores.with_suffix(".json").read_text())["labels_sha256"] == sha
    refused(score, "exists with other settings", "labels_sha256")

    subset = ["subset", *FOLDER, tree, "--select", "easy", "--size", 4, "--scores", scores]
    out = ok(*subset, "--class-balanced", "--out", easy)  # the labels come with the scores
    chosen = np.load(easy)
    assert np.bincount(human[chosen]).tolist() == [2, 2]
    wrong = human != clean
    assert f"wrong labels: {wrong[chosen].mean():.2%} of the subset, 16.67% of all" in out

    starts = [tmp_path / name / "rewind.safetensors" for name in ("human", "clean", "given")]
    start = ["pretrain", *FOLDER, tree, *TINY, "--steps", 3, "--subset", easy, "--out"]
    ok(*start, starts[0])
    ok(*start[:-3], "--labels", labels, "--out", starts[2])  # all examples
    recipes = [training.load_tensors(path)[1]["recipe"] for path in (starts[0], starts[2])]
    assert [recipe["labels_sha256"] for recipe in recipes] == [sha, sha]
    refused([*start, starts[1], "--label-noise", 0.1], "--label-noise")

    # by hand: the same start, but that the data set's own labels are these
    data = load(tree)
    data.labels = torch.from_numpy(human)
    member = training.Member("", recipes[0], data, 0)
    group = training.Group([member], data, recipes[0], subset=chosen)
    for _ in training.train(group, 3, peak=0.3):
        pass
    found = training.load_tensors(starts[0])[0]
    assert all(torch.equal(t, found[name]) for name, t in member.net.state_dict().items())

    ok("imp", starts[0], "--data-dir", tree, "--levels", 0)
    np.save(labels, 1 - human)
    refused([*subset, "--out", tmp_path / "new.npy"], "not the labels that the input was made with")
    status, _, err = call(*start[:-3], "--labels", labels, "--out", starts[1])
    assert (status, "16.7% of the labels" in err, "order the same" in err) == (0, True, True)
    labels.unlink()
    refused([*subset, "--out", tmp_path / "new.npy"], "human.npy", "No such file")
    np.save(labels, human + 5)
    refused(
        [*start[:-3], "--labels", labels, "--out", tmp_path / "x.safetensors"],
        "label 6",
        "2 classes",
    )


def test_another_image_size_goes_through_the_whole_chain(ok, refused, tree, tmp_path):
    scores, start = tmp_path / "scores.npy", tmp_path / "run" / "rewind.safetensors"
    size = ["--image-size", 12]
    ok("score", *FOLDER, tree, *size, *TINY, "--networks", 1, "--steps", 2, "--out", scores)
    subset = ["subset", *FOLDER, tree, "--select", "easy", "--size", 4, "--scores", scores]
    refused([*subset, "--out", tmp_path / "easy.npy"], "other data (folder, 12 pixels a side)")
    ok(*subset, *size, "--out", tmp_path / "easy.npy")
    ok("pretrain", *FOLDER, tree, *size, *TINY, "--steps", 2, "--out", start)
    ok("imp", start, "--data-dir", tree, "--levels", 1)
    assert training.load_tensors(start)[1]["recipe"]["image_size"] == 12
    image = training.load_data(
        "folder", tree, torch.device("cpu"), pad=4, flip=True, image_size=12
    ).train_images()[0]
    assert np.array_equal(image, picture(10).resize((12, 12), Image.Resampling.BILINEAR))
    assert "12 x 12 pixels" in ok("dataset", "folder", "--data-dir", tree, *size)
    for stage in ("dataset digits", "pretrain --out x.safetensors"):
        refused([*stage.split(), *size], "--image-size is for --dataset folder")
