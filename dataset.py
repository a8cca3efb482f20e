"""Images and labels of every data set, as NumPy arrays. Run alone, it fetches and checks one.

reads   --data-dir, where a missing data set is downloaded if there is a network
writes  what it had to download there, and decoded copies of image files
python dataset.py cifar10 --data-dir data

An image tree is <split>/<class>/<file>. A file that Pillow reads is an image, each real file of a
split once. Names that begin with "." or "@", and __MACOSX, are not classes or images, and folders
within a class are not read; a note counts what was ignored.
"""

import argparse
import collections
import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from common import (
    DATASETS,
    IMAGE_SIZE,
    NOISE,
    Failure,
    InputError,
    Parser,
    add_image_flags,
    check_image_size,
    cli,
    load_tensors,
    lock,
    read_array,
    reading,
    rng,
    save_tensors,
    sha256,
)


@dataclass
class Images:
    """One data set as NumPy arrays; index i is example i in data-set order."""

    classes: list[str]
    train: np.ndarray  # [N, H, W, C] uint8
    labels: np.ndarray  # [N] int64, clean
    test: np.ndarray  # [n, H, W, C] uint8
    test_labels: np.ndarray  # [n] int64
    mean: np.ndarray  # [C] float32 of the training set, on the scale of the uint8 values
    std: np.ndarray  # [C] float32, likewise
    fingerprint: str  # sha256 of training images and clean labels


def load_images(name: str, data_dir: Path, image_size: int | None = None) -> Images:
    """A data set with the statistics and the fingerprint of its training set.

    image_size  pixels of a side, of a folder; the other data sets have one
    InputError: it is missing and cannot be fetched, damaged, or has a single class.
    """
    if name == "folder" and image_size is not None:
        classes, train, labels, test, test_labels = read_folder(data_dir, image_size)
    else:
        classes, train, labels, test, test_labels = READERS[name](data_dir)
    labels, test_labels = np.asarray(labels, np.int64), np.asarray(test_labels, np.int64)
    if len(classes) < 2:
        raise InputError(f"{data_dir}: only one class, {classes[0]}")
    fingerprint = sha256(str(train.shape).encode(), train.tobytes(), labels.tobytes())
    return Images(
        classes, train, labels, test, test_labels, *channel_statistics(train), fingerprint
    )


def channel_statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation by channel, [C] float32 each, exact up to the last rounding.

    The deviation of a channel that is constant is called infinite: normalised, it becomes zeros,
    black padding included.
    """
    values = np.arange(256)
    counts = [np.bincount(images[..., c].ravel(), minlength=256) for c in range(images.shape[-1])]
    mean = np.array([count @ values / count.sum() for count in counts])
    variance = [count @ (values - m) ** 2 / count.sum() for count, m in zip(counts, mean)]
    std = np.sqrt(variance).astype(np.float32)
    return mean.astype(np.float32), np.where(std > 0, std, np.float32(np.inf))


def noisy_labels(
    labels: np.ndarray, classes: int, label_noise: float, noise_seed: int
) -> np.ndarray:
    """Labels [N] int64, of which round(label_noise N) are drawn anew (paper, Appendix A).

    They are drawn uniformly over all classes.
    """
    draw = rng(NOISE, noise_seed)
    chosen = draw.choice(len(labels), round(label_noise * len(labels)), replace=False)
    labels = labels.copy()
    labels[chosen] = draw.integers(0, classes, len(chosen))
    return labels


def labels_to_learn(
    clean: np.ndarray, names: list[str], noise: dict, path: Path | None
) -> tuple[np.ndarray, dict]:
    """The labels [N] int64 of scoring and pre-training, and `noise` with their labels_sha256.

    They are those of a user's own file, or the clean ones with the noise of common.resolve_noise.
    InputError: the file has other numbers than those of the classes, or is not the one that an
    input was made with.
    """
    expected = noise["labels_sha256"]
    if path is None and expected is None:
        return noisy_labels(clean, len(names), noise["label_noise"], noise["noise_seed"]), noise
    if path is None:
        raise InputError("the input was made with labels of your own; give them again by --labels")
    labels, _ = read_array(path, np.int64, clean.shape)
    outside = labels[(labels < 0) | (labels >= len(names))]
    if len(outside):
        raise InputError(f"{path}: label {outside[0]}, but there are {len(names)} classes")
    found = sha256(labels.tobytes())
    if expected not in (None, found):
        raise InputError(f"{path}: not the labels that the input was made with")
    agree = (labels == clean).mean()
    if agree < 0.5:
        print(
            f"warning: {agree:.1%} of the labels in {path} are the data set's own: is their order "
            "the same? Index i must be training example i in data-set order",
            file=sys.stderr,
        )
    return labels, noise | {"labels_sha256": found}


# Each reader returns class names, training images [N, H, W, C] uint8, their labels, test images,
# and the labels of these.


def read_digits(root: Path) -> tuple:
    """UCI digits as scikit-learn ships them: 8x8, grey levels 0 to 16.

    50 fixed images of each class are for the test.
    """
    # Its file alone is read: importing scikit-learn takes a second, and the demonstration starts
    # dozens of processes.
    package = Path(importlib.util.find_spec("sklearn").origin).parent
    rows = np.loadtxt(package / "datasets" / "data" / "digits.csv.gz", np.uint8, delimiter=",")
    images, labels = rows[:, :-1].reshape(-1, 8, 8, 1), rows[:, -1]
    draw = np.random.default_rng(0)
    test = np.sort(
        np.concatenate([draw.permutation(np.flatnonzero(labels == c))[:50] for c in range(10)])
    )
    train = np.setdiff1d(np.arange(len(labels)), test)
    return [str(c) for c in range(10)], images[train], labels[train], images[test], labels[test]


def read_cifar(name: str, root: Path) -> tuple:
    """CIFAR10 or CIFAR100 in torchvision's files and order, downloaded when missing."""
    from torchvision import datasets

    kind = getattr(datasets, name)
    try:
        train, test = (kind(root, train=part) for part in (True, False))
    except RuntimeError:  # missing, or a checksum differs
        with fetching(root / kind.filename, kind.url, kind.tgz_md5):
            train, test = (kind(root, train=part, download=True) for part in (True, False))
    return train.classes, train.data, train.targets, test.data, test.targets


CINIC10_URL = "https://datashare.ed.ac.uk/bitstream/handle/10283/3192/CINIC-10.tar.gz"

# images for training, for the test
CINIC10_MD5, CINIC10_IMAGES = "6ee4d0c996905fe93221de577967a372", [180_000, 90_000]


def read_cinic10(root: Path) -> tuple:
    """CINIC-10, train and valid joined.

    Its images are decoded once; later calls read cinic10.safetensors alone.
    """
    cache = root / "cinic10.safetensors"
    if cache.exists():
        return read_cache(cache)
    tree = root if (root / "train").is_dir() else root / "CINIC-10"
    if not tree.is_dir():
        from torchvision.datasets.utils import download_and_extract_archive

        with fetching(root / "CINIC-10.tar.gz", CINIC10_URL, CINIC10_MD5):
            if not tree.is_dir():  # while this one waited, another process may have made it
                unpacked = root / ".CINIC-10.partial"
                download_and_extract_archive(CINIC10_URL, root, unpacked, md5=CINIC10_MD5)
                os.replace(
                    unpacked / "CINIC-10" if (unpacked / "CINIC-10").is_dir() else unpacked, tree
                )
    listed = list_images(tree, ["train", "valid", "test"])
    _, files, _, n = listed
    if [n, len(files) - n] != CINIC10_IMAGES:
        raise InputError(
            f"{tree}: incomplete, {CINIC10_IMAGES} images are expected for training and test"
        )
    return decode(listed, IMAGE_SIZE, cache, stamp_of(tree, files))


def read_folder(root: Path, size: int = IMAGE_SIZE) -> tuple:
    """Any train/<class>/* and test/<class>/* tree of images, resized to size x size pixels."""
    if (root / "valid").is_dir():
        print(f"note: --dataset folder ignores {root / 'valid'}", file=sys.stderr)
    listed = list_images(root, ["train", "test"])
    cache = root / f".images-{size}.safetensors"
    stamp = stamp_of(root, listed[1])
    if cache.exists() and (arrays := read_cache(cache, stamp)):
        return arrays
    return decode(listed, size, cache, stamp)


READERS = {
    "digits": read_digits,
    "cifar10": partial(read_cifar, "CIFAR10"),
    "folder": read_folder,
    "cifar100": partial(read_cifar, "CIFAR100"),
    "cinic10": read_cinic10,
}


@contextlib.contextmanager
def fetching(archive: Path, url: str, md5: str) -> Iterator[None]:
    """One process fetches, the others wait; without a network one line says what to put where."""
    try:
        with lock(archive.parent / ".fetch.lock", wait=True):
            yield
    except (InputError, OSError, RuntimeError) as error:
        why = str(error).splitlines()[0]
        raise InputError(
            f"{archive} is missing and cannot be fetched ({why}): put {url} there (md5 {md5}), "
            "or name the folder that has it with --data-dir"
        ) from None


def list_images(root: Path, splits: list[str]) -> tuple[list[str], list[str], list[int], int]:
    """The image files of trees <split>/<class>/<file>, in the order split, class name, file name.

    Returns class names, files, the class of each file, and how many there are before the last
    split. InputError: a split is missing, its classes are not those of the first, or one of them
    has no image.
    """
    endings = readable_endings()
    ignored = collections.Counter()
    classes, files, labels, before_last = [], [], [], 0
    for split in splits:
        with reading(root / split):
            names = sorted(os.listdir(root / split))
        names = [name for name in names if is_class(root / split / name, ignored)]
        classes = classes or names
        check_classes(root / split, names, root / splits[0], classes)
        before_last = len(files)
        read_already = set()  # real paths
        for label, name in enumerate(names):
            of_class = images_of(root / split / name, endings, read_already, ignored)
            if not of_class:
                raise InputError(f"{root / split / name}: has no image, or none of its own")
            files += of_class
            labels += [label] * len(of_class)
    if ignored:
        counts = ", ".join(f"{count} {what}" for what, count in sorted(ignored.items()))
        print(f"note: {root}: ignored {counts}", file=sys.stderr)
    return classes, files, labels, before_last


def readable_endings() -> set[str]:
    """The endings of files that this Pillow reads, such as .png and .jfif."""
    from PIL import Image

    return {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}


def is_class(path: Path, ignored: collections.Counter) -> bool:
    """Is this name in a split a class? What is a folder, but none, is counted."""
    if not path.is_dir():
        if not is_hidden(path.name):
            ignored["beside the classes"] += 1
        return False
    if is_hidden(path.name):
        ignored[f"{path.name}/"] += 1
        return False
    return True


def is_hidden(name: str) -> bool:
    """Is this the name of something that editors and file servers leave behind?"""
    return name[0] in ".@" or name == "__MACOSX"


def check_classes(split: Path, names: list[str], first: Path, classes: list[str]) -> None:
    """InputError unless a split has classes, and the same as the first split."""
    if not names:
        raise InputError(f"{split}: has no class folders")
    missing, more = sorted({*classes} - {*names}), sorted({*names} - {*classes})
    if missing or more:
        parts = [f"lacks {', '.join(missing)}"] * bool(missing)
        parts += [f"has {', '.join(more)} beside them"] * bool(more)
        raise InputError(f"{split}: its classes are not those of {first}: it {' and '.join(parts)}")


def images_of(
    folder: Path, endings: set[str], read_already: set, ignored: collections.Counter
) -> list[str]:
    """The image files of a class folder by name; what is ignored is counted by its ending."""
    files = []
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        ending = os.path.splitext(name)[1].lower()
        real = os.path.realpath(path)
        if is_hidden(name):
            ignored["hidden"] += 1
        elif os.path.isdir(path):
            ignored["folders within a class"] += 1
        elif ending not in endings:
            ignored[ending or "without an ending"] += 1
        elif real in read_already:
            ignored["links to a file that was read already"] += 1
        else:
            read_already.add(real)
            files.append(path)
    return files


def stamp_of(root: Path, files: list[str]) -> str:
    """A sha256 that stays the same as long as no file changes, is exchanged or is renamed.

    Size and time of modification do not suffice: two files of equal ones may change places. The
    time of change and the inode see that.
    """
    lines = []
    with reading(root):
        for file in files:
            stat = os.stat(file)
            name = os.fsencode(os.path.relpath(file, root))
            numbers = stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino
            lines.append(b"%s %d %d %d %d\n" % (name, *numbers))
    return sha256(*lines)


ARRAYS = ("train", "labels", "test", "test_labels")  # of a cache, in a reader's order


def read_cache(cache: Path, stamp: str | None = None) -> tuple | None:
    """What a reader returns, from arrays decoded before; None if the files have changed since.

    stamp  of the files now; None takes the cache for what it is
    """
    try:
        tensors, info = load_tensors(cache)
        if stamp not in (None, info["stamp"]):
            return None
        return info["classes"], *(tensors[name] for name in ARRAYS)
    except (InputError, KeyError) as error:
        raise InputError(f"{cache}: not a cache of decoded images; delete it ({error})") from None


def decode(listed: tuple, size: int, cache: Path, stamp: str) -> tuple:
    """What a reader returns, from the files of list_images; written to cache for the next stage."""
    classes, files, labels, n = listed
    with ThreadPoolExecutor() as pool:
        decoded = pool.map(partial(read_image, size=size), files)
        decoded = list(tqdm(decoded, "images", len(files), disable=None, leave=False))
    transparent = sum(is_transparent for _, is_transparent in decoded)
    if transparent:
        print(
            f"note: {transparent} images have transparent pixels, which are shown on black",
            file=sys.stderr,
        )
    images = [image for image, _ in decoded]
    arrays = [np.array(part) for part in (images[:n], labels[:n], images[n:], labels[n:])]
    # two processes must not write one file at once; a read-only folder goes without
    with contextlib.suppress(InputError, Failure), lock(cache.parent / ".fetch.lock", wait=True):
        save_tensors(cache, dict(zip(ARRAYS, arrays)), {"classes": classes, "stamp": stamp})
    return classes, *arrays


def read_image(file: str, size: int) -> tuple[np.ndarray, bool]:
    """An image as [size, size, 3] uint8, and whether it has transparent pixels.

    Grey images get three equal channels, transparent pixels are put on black, other sizes are
    resized by Pillow's bilinear filter, which smooths what it enlarges.
    """
    from PIL import Image

    with reading(file), Image.open(file) as image:
        if image.mode[0] in "IF":
            raise ValueError(f"pixels of mode {image.mode}, 8 bits a channel are expected")
        transparent = False
        if image.has_transparency_data:
            image = image.convert("RGBA")
            transparent = image.getextrema()[3][0] < 255
            black = Image.new("RGBA", image.size, (0, 0, 0, 255))
            image = Image.alpha_composite(black, image)
        image = image.convert("RGB")  # resizing to the same size is a copy
        resized = image.resize((size, size), Image.Resampling.BILINEAR)
        return np.asarray(resized), transparent


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    images = load_images(args.name, args.data_dir, args.image_size)
    labels = images.labels
    if args.labels:
        noise = {"labels_sha256": None}
        labels, _ = labels_to_learn(images.labels, images.classes, noise, args.labels)
    train = np.bincount(labels, minlength=len(images.classes))
    test = np.bincount(images.test_labels, minlength=len(images.classes))
    width = max(len("class"), *map(len, images.classes))
    print(f"{'class':{width}} {'training':>9} {'test':>7}")
    for row in zip([*images.classes, "all"], [*train, train.sum()], [*test, test.sum()]):
        print("{:{width}} {:>9} {:>7}".format(*row, width=width))
    height, columns, channels = images.train.shape[1:]
    print(f"{height} x {columns} pixels, {channels} channel{'s' if channels > 1 else ''}")
    if args.labels:
        print(f"wrong labels: {(labels != images.labels).mean():.2%} of the training examples")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("name", choices=DATASETS, help="folder reads train/CLASS/*, test/CLASS/*")
    parser.add_argument(
        "--data-dir", type=Path, default=Path("data"), help="folder of its files (default: data)"
    )
    add_image_flags(parser)
    args = parser.parse_args(argv)
    check_image_size(args.name, args.image_size)
    return args


if __name__ == "__main__":
    sys.exit(cli(main))
