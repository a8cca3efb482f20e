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
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

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
    """One data set as NumPy arrays. Index i is example i in data-set order."""

    classes: list[str]  # their names
    train: np.ndarray  # [N, H, W, C] uint8
    labels: np.ndarray  # [N] int64, the clean ones
    test: np.ndarray  # [n, H, W, C] uint8
    test_labels: np.ndarray  # [n] int64
    mean: np.ndarray  # [C] float32, of the training set, on the scale of the uint8 values
    std: np.ndarray  # [C] float32, of the training set, on the same scale
    fingerprint: str  # the sha256 of the training images and the clean labels


class Arrays(NamedTuple):
    """What a reader returns."""

    classes: list[str]
    train: np.ndarray  # [N, H, W, C] uint8
    labels: Sequence[int]  # [N]
    test: np.ndarray  # [n, H, W, C] uint8
    test_labels: Sequence[int]  # [n]


class ImageFiles(NamedTuple):
    """The images of a tree, those for training first."""

    classes: list[str]
    paths: list[str]
    labels: list[int]  # the class of each
    training: int  # how many of them are for training


def load_images(name: str, data_dir: Path, image_size: int | None = None) -> Images:
    """Read a data set, with the statistics and the fingerprint of its training set.

    image_size  pixels of a side, for a folder of images; the other data sets have a size

    InputError: the data set is missing and cannot be fetched, damaged, or has a single class.
    """
    if name == "folder" and image_size is not None:
        arrays = read_folder(data_dir, image_size)
    else:
        arrays = READERS[name](data_dir)
    if len(arrays.classes) < 2:
        raise InputError(f"{data_dir}: only one class, {arrays.classes[0]}")
    train, labels = arrays.train, np.asarray(arrays.labels, np.int64)
    mean, std = channel_statistics(train)
    return Images(
        classes=arrays.classes,
        train=train,
        labels=labels,
        test=arrays.test,
        test_labels=np.asarray(arrays.test_labels, np.int64),
        mean=mean,
        std=std,
        fingerprint=sha256(str(train.shape).encode(), train.tobytes(), labels.tobytes()),
    )


def channel_statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation by channel, [C] float32 each, exact but for rounding.

    The deviation of a channel that is constant is called infinite: normalised, it becomes zeros,
    black padding included.
    """
    values = np.arange(256)
    means, variances = [], []
    for channel in range(images.shape[-1]):
        counts = np.bincount(images[..., channel].ravel(), minlength=256)
        mean = counts @ values / counts.sum()
        means.append(mean)
        variances.append(counts @ (values - mean) ** 2 / counts.sum())
    std = np.sqrt(variances).astype(np.float32)
    return np.array(means).astype(np.float32), np.where(std > 0, std, np.float32(np.inf))


def noisy_labels(
    labels: np.ndarray, classes: int, label_noise: float, noise_seed: int
) -> np.ndarray:
    """Return labels [N] int64, of which round(label_noise N) are drawn anew (paper, Appendix A).

    They are drawn uniformly from all classes, so that some become what they were.
    """
    random = rng(NOISE, noise_seed)
    chosen = random.choice(len(labels), round(label_noise * len(labels)), replace=False)
    labels = labels.copy()
    labels[chosen] = random.integers(0, classes, len(chosen))
    return labels


def labels_to_learn(
    clean: np.ndarray, names: list[str], noise: dict, path: Path | None
) -> tuple[np.ndarray, dict]:
    """Return the labels [N] int64 to learn, and what recipes say about them.

    They are those of a user's own file, or the clean ones with label noise.

    names  the classes
    noise  what common.resolve_noise returns
    path   the file, if there is one

    InputError: a label in the file is no class, or an input was made with other labels.
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


# ------------------------------------------------------------ readers of the data sets


def read_digits(root: Path) -> Arrays:
    """Read the UCI digits that scikit-learn ships: 8x8 pixels, grey levels 0 to 16.

    50 fixed images of each class are the test set. Like every reader it takes a folder, but it
    needs none.
    """
    # Only the file is read: importing scikit-learn takes a second, and the demonstration starts
    # dozens of processes.
    package = Path(importlib.util.find_spec("sklearn").origin).parent
    rows = np.loadtxt(package / "datasets" / "data" / "digits.csv.gz", np.uint8, delimiter=",")
    images, labels = rows[:, :-1].reshape(-1, 8, 8, 1), rows[:, -1]
    random = np.random.default_rng(0)
    chosen = [random.permutation(np.flatnonzero(labels == c))[:50] for c in range(10)]
    test = np.sort(np.concatenate(chosen))
    train = np.setdiff1d(np.arange(len(labels)), test)
    return Arrays([*"0123456789"], images[train], labels[train], images[test], labels[test])


def read_cifar(name: str, root: Path) -> Arrays:
    """Read CIFAR10 or CIFAR100 from torchvision's files, which are downloaded when missing."""
    from torchvision import datasets

    kind = getattr(datasets, name)
    try:
        train, test = kind(root, train=True), kind(root, train=False)
    except RuntimeError:  # a file is missing, or its checksum differs
        with fetching(root / kind.filename, kind.url, kind.tgz_md5):
            train = kind(root, train=True, download=True)
            test = kind(root, train=False, download=True)
    return Arrays(train.classes, train.data, train.targets, test.data, test.targets)


CINIC10_URL = "https://datashare.ed.ac.uk/bitstream/handle/10283/3192/CINIC-10.tar.gz"
CINIC10_MD5 = "6ee4d0c996905fe93221de577967a372"
CINIC10_IMAGES = [180_000, 90_000]  # for training and for the test


def read_cinic10(root: Path) -> Arrays:
    """Read CINIC-10, with train and valid joined.

    Its images are decoded once, and later calls read cinic10.safetensors alone.
    """
    cache = root / "cinic10.safetensors"
    if cache.exists():
        return read_cache(cache)
    tree = root if (root / "train").is_dir() else root / "CINIC-10"
    if not tree.is_dir():
        from torchvision.datasets.utils import download_and_extract_archive

        with fetching(root / "CINIC-10.tar.gz", CINIC10_URL, CINIC10_MD5):
            if not tree.is_dir():  # another process may have made it while this one waited
                unpacked = root / ".CINIC-10.partial"
                download_and_extract_archive(CINIC10_URL, root, unpacked, md5=CINIC10_MD5)
                inner = unpacked / "CINIC-10"
                os.replace(inner if inner.is_dir() else unpacked, tree)
    images = list_images(tree, ["train", "valid", "test"])
    if [images.training, len(images.paths) - images.training] != CINIC10_IMAGES:
        raise InputError(
            f"{tree}: incomplete, {CINIC10_IMAGES} images are expected for training and test"
        )
    return decode(images, IMAGE_SIZE, cache, stamp_of(tree, images.paths))


def read_folder(root: Path, size: int = IMAGE_SIZE) -> Arrays:
    """Read any tree of train/<class>/* and test/<class>/*, resized to size x size pixels.

    The decoded images are kept beside it until a file changes.
    """
    if (root / "valid").is_dir():
        print(f"note: --dataset folder ignores {root / 'valid'}", file=sys.stderr)
    images = list_images(root, ["train", "test"])
    cache = root / f".images-{size}.safetensors"
    stamp = stamp_of(root, images.paths)
    if cache.exists() and (arrays := read_cache(cache, stamp)):
        return arrays
    return decode(images, size, cache, stamp)


READERS = {
    "digits": read_digits,
    "cifar10": partial(read_cifar, "CIFAR10"),
    "folder": read_folder,
    "cifar100": partial(read_cifar, "CIFAR100"),
    "cinic10": read_cinic10,
}


@contextlib.contextmanager
def fetching(archive: Path, url: str, md5: str) -> Iterator[None]:
    """Let one process download at a time, while others wait.

    Whatever goes wrong becomes an InputError that says which file to put where.
    """
    try:
        with lock(archive.parent / ".fetch.lock", wait=True):
            yield
    except (InputError, OSError, RuntimeError) as error:
        why = str(error).splitlines()[0]
        raise InputError(
            f"{archive} is missing and cannot be fetched ({why}): put {url} there (md5 {md5}), "
            "or name the folder that has it with --data-dir"
        ) from None


# ------------------------------------------------------------ trees of image files


def list_images(root: Path, splits: list[str]) -> ImageFiles:
    """List the images of the trees <split>/<class>/<file>; the last split is the test set.

    They come in the order split, class name, file name, each sorted. A note counts what is ignored.

    InputError: a split is missing, its classes are not those of the first, or one of them has no
    image.
    """
    suffixes = readable_suffixes()
    ignored = collections.Counter()
    classes, paths, labels, training = [], [], [], 0
    for split in splits:
        if not (root / split).is_dir():
            raise InputError(
                f"{root / split}: No such file or directory; --data-dir names the folder that has "
                f"{', '.join(splits)}"
            )
        with reading(root / split):
            names = sorted(os.listdir(root / split))
        names = [name for name in names if is_class(root / split / name, ignored)]
        if split == splits[0]:
            classes = names
        check_classes(root / split, names, root / splits[0], classes)
        training = len(paths)  # those before the last split
        listed = set()  # the real paths in this split
        for label, name in enumerate(names):
            of_class = images_of(root / split / name, suffixes, listed, ignored)
            if not of_class:
                raise InputError(f"{root / split / name}: has no image, or none of its own")
            paths += of_class
            labels += [label] * len(of_class)
    if ignored:
        counts = ", ".join(f"{count} {what}" for what, count in sorted(ignored.items()))
        print(f"note: {root}: ignored {counts}", file=sys.stderr)
    return ImageFiles(classes, paths, labels, training)


def readable_suffixes() -> set[str]:
    """Return the endings of files that this Pillow reads, such as .png and .jfif."""
    from PIL import Image

    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}


def is_class(path: Path, ignored: collections.Counter) -> bool:
    """Return whether an entry of a split is a class; what is not is counted."""
    if not path.is_dir():
        if not is_hidden(path.name):
            ignored["beside the classes"] += 1
        return False
    if is_hidden(path.name):
        ignored[f"{path.name}/"] += 1
        return False
    return True


def is_hidden(name: str) -> bool:
    """Return whether this is a name of what editors and file servers leave behind."""
    return name[0] in ".@" or name == "__MACOSX"


def check_classes(split: Path, names: list[str], first: Path, classes: list[str]) -> None:
    """Raise InputError unless a split has classes, and the same as the first split."""
    if not names:
        raise InputError(f"{split}: has no class folders")
    differences = []
    missing, more = sorted({*classes} - {*names}), sorted({*names} - {*classes})
    if missing:
        differences.append(f"lacks {', '.join(missing)}")
    if more:
        differences.append(f"has {', '.join(more)} beside them")
    if differences:
        raise InputError(
            f"{split}: its classes are not those of {first}: it {' and '.join(differences)}"
        )


def images_of(
    folder: Path, suffixes: set[str], listed: set[str], ignored: collections.Counter
) -> list[str]:
    """Return the image files of a class folder, sorted; what is ignored is counted by its ending.

    listed  the real paths of the images of this split so far; those of this class are added
    """
    paths = []
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        suffix = os.path.splitext(name)[1].lower()
        real = os.path.realpath(path)
        if is_hidden(name):
            ignored["hidden"] += 1
        elif os.path.isdir(path):
            ignored["folders within a class"] += 1
        elif suffix not in suffixes:
            ignored[suffix or "without an ending"] += 1
        elif real in listed:
            ignored["links to a file that was read already"] += 1
        else:
            listed.add(real)
            paths.append(path)
    return paths


def stamp_of(root: Path, files: list[str]) -> str:
    """Return a sha256 that stays the same while no file changes, is exchanged or is renamed.

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


def read_cache(cache: Path, stamp: str | None = None) -> Arrays | None:
    """Return arrays that were decoded before; None if the files have changed since.

    stamp  the stamp of the files now; with None the cache is taken for what it is
    """
    try:
        tensors, info = load_tensors(cache)
        if stamp not in (None, info["stamp"]):
            return None
        return Arrays(classes=info["classes"], **tensors)
    except (InputError, KeyError, TypeError) as error:
        raise InputError(f"{cache}: not a cache of decoded images; delete it ({error})") from None


def decode(files: ImageFiles, size: int, cache: Path, stamp: str) -> Arrays:
    """Decode image files, resized to size x size pixels, and write the arrays to a cache."""
    with ThreadPoolExecutor() as pool:
        decoded = pool.map(partial(read_image, size=size), files.paths)
        decoded = list(tqdm(decoded, "images", len(files.paths), disable=None, leave=False))
    transparent = sum(is_transparent for _, is_transparent in decoded)
    if transparent:
        print(
            f"note: {transparent} images have transparent pixels, which are shown on black",
            file=sys.stderr,
        )
    images, n = [image for image, _ in decoded], files.training
    tensors = {
        "train": np.array(images[:n]),
        "labels": np.array(files.labels[:n]),
        "test": np.array(images[n:]),
        "test_labels": np.array(files.labels[n:]),
    }
    # Two processes must not write the cache at the same time, and a read-only folder has none.
    with contextlib.suppress(InputError, Failure), lock(cache.parent / ".fetch.lock", wait=True):
        save_tensors(cache, tensors, {"classes": files.classes, "stamp": stamp})
    return Arrays(classes=files.classes, **tensors)


def read_image(file: str, size: int) -> tuple[np.ndarray, bool]:
    """Return an image as [size, size, 3] uint8, and whether it has transparent pixels.

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
        image = image.convert("RGB")
        resized = image.resize((size, size), Image.Resampling.BILINEAR)
        return np.asarray(resized), transparent


# ------------------------------------------------------------ command line


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
    """Parse the command line; InputError if a size is asked for images that have one."""
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
