"""Images and labels of every data set, as NumPy arrays. Run alone, it fetches and checks one.

reads   --data-dir, where a missing data set is downloaded if there is a network
writes  what it had to download there, and decoded copies of image files
python dataset.py cifar10 --data-dir data

Each reader returns (class names, training images [N, H, W, C] uint8, labels, test images, labels).
"""

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
    NOISE,
    Failure,
    InputError,
    Parser,
    cli,
    load_tensors,
    lock,
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


def load_images(name: str, data_dir: Path) -> Images:
    """A data set with the statistics and the fingerprint of its training set.

    InputError: it is missing and cannot be fetched, damaged, or has a single class.
    """
    classes, train, labels, test, test_labels = READERS[name](data_dir)
    labels, test_labels = np.asarray(labels, np.int64), np.asarray(test_labels, np.int64)
    if len(classes) < 2:
        raise InputError(f"{data_dir}: only one class, {classes[0]}")
    fingerprint = sha256(str(train.shape).encode(), train.tobytes(), labels.tobytes())
    return Images(
        classes, train, labels, test, test_labels, *channel_statistics(train), fingerprint
    )


def channel_statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation by channel, [C] float32 each, exact up to the last rounding."""
    values = np.arange(256)
    counts = [np.bincount(images[..., c].ravel(), minlength=256) for c in range(images.shape[-1])]
    mean = np.array([count @ values / count.sum() for count in counts])
    variance = [count @ (values - m) ** 2 / count.sum() for count, m in zip(counts, mean)]
    return mean.astype(np.float32), np.sqrt(variance).astype(np.float32)


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
    return decode(listed, cache, stamp_of(tree, files))


def read_folder(root: Path) -> tuple:
    """Any train/<class>/* and test/<class>/* tree of images."""
    if (root / "valid").is_dir():
        print(f"note: --dataset folder ignores {root / 'valid'}", file=sys.stderr)
    listed = list_images(root, ["train", "test"])
    cache, stamp = root / ".images.safetensors", stamp_of(root, listed[1])
    if cache.exists() and (arrays := read_cache(cache, stamp)):
        return arrays
    return decode(listed, cache, stamp)


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
    split. InputError: a split is missing or empty, or its classes are not those of the first.
    """
    from torchvision.datasets import ImageFolder

    folders = []
    for split in splits:
        with reading(root / split):  # the folder may be missing, or have an empty class or none
            folders.append(ImageFolder(root / split))
        if folders[-1].classes != folders[0].classes:
            raise InputError(
                f"{root / split}: its class folders are not those of {root / splits[0]}"
            )
    samples = [sample for folder in folders for sample in folder.samples]
    files, labels = zip(*samples)
    return folders[0].classes, files, labels, len(files) - len(folders[-1])


def stamp_of(root: Path, files: list[str]) -> str:
    """A sha256 of names, sizes and times: if it is the same, no file has changed."""
    lines = []
    with reading(root):
        for file in files:
            stat = os.stat(file)
            name = os.fsencode(os.path.relpath(file, root))
            lines.append(b"%s %d %d\n" % (name, stat.st_size, stat.st_mtime_ns))
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


def decode(listed: tuple, cache: Path, stamp: str) -> tuple:
    """What a reader returns, from the files of list_images; written to cache for the next stage."""
    classes, files, labels, n = listed
    with ThreadPoolExecutor() as pool:
        decoded = pool.map(read_image, files)
        images = list(tqdm(decoded, "images", len(files), disable=None, leave=False))
    arrays = [np.array(part) for part in (images[:n], labels[:n], images[n:], labels[n:])]
    # two processes must not write one file at once; a read-only folder goes without
    with contextlib.suppress(InputError, Failure), lock(cache.parent / ".fetch.lock", wait=True):
        save_tensors(cache, dict(zip(ARRAYS, arrays)), {"classes": classes, "stamp": stamp})
    return classes, *arrays


def read_image(file: str) -> np.ndarray:
    """[32, 32, 3] uint8; grey images get three equal channels, other sizes are resized."""
    from PIL import Image

    with reading(file), Image.open(file) as image:
        if image.mode[0] in "IF":
            raise ValueError(f"pixels of mode {image.mode}, 8 bits a channel are expected")
        image = image.convert("RGB")  # resizing to the same size is a copy
        return np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR))


def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("name", choices=DATASETS, help="folder reads train/CLASS/*, test/CLASS/*")
    parser.add_argument(
        "--data-dir", type=Path, default=Path("data"), help="folder of its files (default: data)"
    )
    args = parser.parse_args(argv)
    images = load_images(args.name, args.data_dir)
    train = np.bincount(images.labels, minlength=len(images.classes))
    test = np.bincount(images.test_labels, minlength=len(images.classes))
    width = max(len("class"), *map(len, images.classes))
    print(f"{'class':{width}} {'training':>9} {'test':>7}")
    for row in zip([*images.classes, "all"], [*train, train.sum()], [*test, test.sum()]):
        print("{:{width}} {:>9} {:>7}".format(*row, width=width))
    height, columns, channels = images.train.shape[1:]
    print(f"{height} x {columns} pixels, {channels} channel{'s' if channels > 1 else ''}")


if __name__ == "__main__":
    sys.exit(cli(main))
