"""What every stage needs: presets, files, data, network, training, command line.

An image travels from disk into a weight in the order of this file:
load_data -> epoch_table -> take_batch -> ResNet -> train. Stages decide who is trained, and on what.
"""

import argparse
import contextlib
import fcntl
import hashlib
import importlib.util
import io
import json
import math
import os
import platform
import re
import shlex
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.sgd import sgd
from tqdm import tqdm

# ------------------------------------------------------------ presets (paper, Table 1 and Appendix A)

CIFAR10 = dict(
    dataset="cifar10", depth=20, width=16, batch_size=128, lr=0.1, pretrain_lr=0.4, momentum=0.9,
    weight_decay=1e-4, milestones=[31200, 46800], lr_decay=0.1, total_steps=62400, t_star=400, networks=10,
    el2n_steps=7800, prune_fraction=0.2, levels=16, precision="auto", pad=4, flip=True,
)
PRESETS = {
    # the demonstration, found by a search on seeds 100 and 101; see README.md
    "digits": CIFAR10 | dict(
        dataset="digits", depth=14, width=4, batch_size=64, lr=0.3, pretrain_lr=0.3, milestones=[220, 290],
        total_steps=320, t_star=20, networks=8, el2n_steps=200, levels=15, precision="fp32", pad=1,
        flip=False,
    ),
    "cifar10": CIFAR10,
    "cifar100": CIFAR10 | dict(dataset="cifar100", depth=32, t_star=800),
    "cinic10": CIFAR10 | dict(
        dataset="cinic10", depth=56, batch_size=256, pretrain_lr=0.1, milestones=[15625, 23440],
        total_steps=31250, t_star=800, el2n_steps=8000, levels=12,
    ),
}  # fmt: skip

# flag: (type, is it usable?, what is, meaning and unit)
HYPERPARAMETERS = {
    "depth": (int, lambda v: 8 <= v < 1500 and v % 6 == 2, "6n + 2, 8 to 1496", "layers of the ResNet"),
    "width": (int, lambda v: 1 <= v <= 4096, "from 1 to 4096", "channels of the first stage"),
    "batch_size": (int, lambda v: v >= 1, "at least 1", "images"),
    "lr": (float, lambda v: 0 < v < 1e30, "above 0", "learning rate of scoring and of every IMP level"),
    "pretrain_lr": (float, lambda v: 0 < v < 1e30, "above 0", "learning rate of pre-training"),
    "momentum": (float, lambda v: 0 <= v < 1, "in [0, 1)", "momentum of SGD"),
    "weight_decay": (float, lambda v: 0 <= v < 1e30, "at least 0", "weight decay, on every parameter"),
    "milestones": (int, lambda v: v > 0, "above 0 and ascending", "optimizer steps at which the rate decays"),
    "lr_decay": (float, lambda v: 0 < v <= 1, "in (0, 1]", "factor of the rate at each milestone"),
    "total_steps": (int, lambda v: v >= 1, "at least 1", "optimizer steps of a full training"),
}
# What IMP trains with. Starting points may differ in the rest of the recipe and still train side by side.
SHARED = ("preset", "dataset", "fingerprint", "classes", "precision",
          *(name for name in HYPERPARAMETERS if name != "pretrain_lr"))  # fmt: skip
RECIPE = (*SHARED, "pretrain_lr", "rewind_step", "seed", "scheme", "subset_size", "subset_sha256",
          "class_balanced", "label_noise", "noise_seed")  # fmt: skip
SCHEMES = ["all", "random", "easy", "hard", "custom"]
# What files say beside their settings
RECORDED = ("recipe", "row", "rows", "made_by", "sha256")

# ------------------------------------------------------------ errors, random streams


class InputError(Exception):
    """Bad arguments or input: one line on stderr, exit status 2."""


class Failure(Exception):
    """A failure while running: one line on stderr, exit status 1."""


class Stopped(BaseException):
    """A signal arrived and everything is saved: exit status 128 + its number."""


INIT, ORDER, AUGMENT, SUBSET, NOISE, SCORING = range(6)  # purposes; a seed's meaning hangs on the numbers


def rng(purpose: int, seed: int, level: int = 0, epoch: int = 0) -> np.random.Generator:
    """The random stream of one purpose. Always four words: NumPy pads a shorter key with zeros."""
    return np.random.default_rng([purpose, seed, level, epoch])


# ------------------------------------------------------------ files


def sha256(*parts: bytes) -> str:
    h = hashlib.sha256()
    for part in parts:
        h.update(part)
    return h.hexdigest()


def to_json(value: object, indent: int | None = None) -> bytes:
    return json.dumps(value, sort_keys=True, allow_nan=False, indent=indent).encode()


def parse_json(path: Path, text: bytes | str) -> dict:
    """A JSON object; InputError for anything else, NaN and bottomless nesting included."""
    try:
        value = json.loads(text, parse_constant=int)  # which refuses NaN and Infinity
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not readable JSON ({error})") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: not a JSON object")
    return value


def read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None


def atomic_write(path: Path, content: bytes) -> None:
    """Write a file that is either the old one or complete, also after a power loss."""
    temporary = path.with_name(f".{path.name}.tmp")  # a fixed name: a killed process leaves one at most
    try:
        with open(temporary, "wb") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
    except OSError as error:
        raise Failure(f"cannot write {path}: {error.strerror}; what was finished before is kept") from None


def check_output(path: Path, suffix: str) -> None:
    """InputError where --out has another suffix, is a folder, or would replace somebody else's .json."""
    if path.suffix != suffix:
        raise InputError(f"--out must end in {suffix}: {path}")
    if path.is_dir():
        raise InputError(f"--out is a folder: {path}")
    sidecar = path.with_suffix(".json")
    there = suffix == ".npy" and sidecar.exists()
    if there and "fingerprint" not in parse_json(sidecar, read_bytes(sidecar)):
        raise InputError(f"{sidecar} is in the way, it was not written by this toolkit")


def is_level_or_state(path: Path) -> bool:
    """Does imp.py write files of this name?"""
    return re.fullmatch(r"(level\d{2,}|state)\.safetensors", path.name) is not None


def lock(path: Path) -> io.TextIOBase:
    """Hold path until this process ends or the result is closed; makes its folder.

    The file stays: unlinking it would race. InputError: another process holds it, or nothing can be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = open(path, "a+")  # noqa: SIM115
    except OSError as error:
        raise InputError(f"cannot write to {path.parent}: {error.strerror}") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.seek(0)
        raise InputError(f"{path.parent} is in use by {handle.read().strip() or 'another process'}") from None
    handle.truncate(0)
    handle.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    handle.flush()
    return handle


def digest(tensors: dict[str, Tensor], info: dict) -> str:
    """sha256 over names, dtypes, shapes and bytes of tensors, and over info."""
    parts = [to_json(info)]
    for name, t in sorted(tensors.items()):
        parts += [f"{name} {t.dtype} {list(t.shape)}".encode(), t.numpy().tobytes()]
    return sha256(*parts)


def save_tensors(path: Path, tensors: dict[str, Tensor], info: dict) -> None:
    """Write a safetensors file whose metadata are one key, `json`: info and a sha256 over everything."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    metadata = {"json": to_json(info | {"sha256": digest(tensors, info)}).decode()}
    atomic_write(path, safetensors.torch.save(tensors, metadata))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Read (tensors, info). InputError: missing, not safetensors, wrong checksum, values not finite."""
    content = read_bytes(path)
    try:
        tensors = safetensors.torch.load(content)
    except Exception as error:  # the library raises various ones of its own and of Python's
        raise InputError(f"{path}: not a readable safetensors file ({error})") from None
    header = parse_json(path, content[8 : 8 + int.from_bytes(content[:8], "little")])
    info = parse_json(path, header.get("__metadata__", {}).get("json", "{}"))
    stored = info.pop("sha256", None)
    for name, t in tensors.items():
        if t.dtype not in (torch.float32, torch.float64, torch.uint8, torch.int64):
            raise InputError(f"{path}: {name} is {t.dtype}")
        if not t.isfinite().all():
            raise InputError(f"{path}: {name} has values that are not finite")
    if stored is not None and stored != digest(tensors, info):
        raise InputError(f"{path}: damaged, its content does not match its sha256")
    return tensors, info


def save_array(path: Path, array: np.ndarray, info: dict) -> None:
    """Write path (.npy) and, first, its sidecar .json: info, the sha256 of the .npy and of the sidecar."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    sidecar = info | {"sha256": sha256(buffer.getvalue())}
    sidecar["json_sha256"] = sha256(to_json(sidecar))
    atomic_write(path.with_suffix(".json"), to_json(sidecar, indent=1) + b"\n")
    atomic_write(path, buffer.getvalue())


def read_sidecar(path: Path) -> dict:
    """What the .json beside an .npy says; {} where there is none: an array of the user's own."""
    sidecar = path.with_suffix(".json")
    info = parse_json(sidecar, read_bytes(sidecar)) if sidecar.exists() else {}
    stored = info.pop("json_sha256", None)
    if stored is not None and stored != sha256(to_json(info)):
        raise InputError(f"{sidecar}: does not match the json_sha256 in it; make it again or delete it")
    return info


def read_array(path: Path, dtype: type, shape: tuple) -> np.ndarray:
    """Read an .npy file of a dtype and shape, in which None stands for any length. InputError otherwise."""
    content = read_bytes(path)
    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # a crafted header can raise nearly anything
        raise InputError(f"{path}: not a readable .npy file ({error})") from None
    if not isinstance(array, np.ndarray) or array.dtype != dtype:
        kind, wanted = getattr(array, "dtype", None), np.dtype(dtype)
        raise InputError(f"{path}: dtype {kind}, expected {wanted}; save it as array.astype(np.{wanted})")
    if array.ndim != len(shape) or any(n not in (None, m) for n, m in zip(shape, array.shape)):
        expected = ", ".join("any length" if n is None else str(n) for n in shape)
        raise InputError(f"{path}: shape {list(array.shape)}, expected [{expected}]")
    return array


def load_array(path: Path, dtype: type, shape: tuple, fingerprint: str) -> tuple[np.ndarray, dict]:
    """(array, sidecar); InputError also where values are not finite or the sidecar speaks of others."""
    array, info = read_array(path, dtype, shape), read_sidecar(path)
    if not np.isfinite(array).all():
        raise InputError(f"{path}: has values that are not finite")
    if info and info.get("sha256") != sha256(read_bytes(path)):
        raise InputError(f"{path}: does not match the sha256 in {path.with_suffix('.json').name} beside it")
    if info.get("fingerprint", fingerprint) != fingerprint:
        raise InputError(f"{path}: made for other data ({info.get('dataset')}), its fingerprint differs")
    return array, info


def refuse_difference(path: Path, found: dict, wanted: dict) -> None:
    """InputError naming every setting in which the file at path differs from what is asked for now.

    A setting that one side does not know counts as None there: so an option of your own makes a difference.
    """
    differ = [key for key in wanted | found if key not in RECORDED and found.get(key) != wanted.get(key)]
    if differ:
        said = [f"{k} {found.get(k, 'unknown')} there, {wanted.get(k, 'unknown')} now" for k in differ]
        raise InputError(f"{path} exists with other settings: {'; '.join(said)} (--force starts over)")


# ------------------------------------------------------------ data


@dataclass
class Data:
    """One data set on one device. Images are uint8; index i is example i in data-set order."""

    classes: list[str]
    train: Tensor  # [N, H + 2 pad, W + 2 pad, C] uint8, framed with black: a crop is a slice
    labels: Tensor  # [N] int64, clean
    test: Tensor  # [n, H, W, C] uint8
    test_labels: Tensor  # [n] int64
    mean: Tensor  # [C] float32 of the full training set, on the scale of the uint8 values
    std: Tensor  # [C] float32, likewise
    fingerprint: str
    pad: int
    flip: bool

    def train_images(self) -> Tensor:
        """The training images themselves, [N, H, W, C] uint8."""
        end = self.train.shape[1] - self.pad
        return self.train[:, self.pad : end, self.pad : end]

    def normalise(self, images: Tensor) -> Tensor:
        """[B, H, W, C] uint8 -> [B, C, H, W] float32, channels-last in memory."""
        return ((images.float() - self.mean) / self.std).permute(0, 3, 1, 2)


# Each reader returns (class names, training images [N, H, W, C] uint8, labels, test images, test labels).


def read_digits(root: Path) -> tuple:
    """UCI digits as scikit-learn ships them: 8x8, grey levels 0 to 16; 50 fixed test images of each class."""
    # its file alone: importing scikit-learn takes a second, and the demonstration starts dozens of processes
    package = Path(importlib.util.find_spec("sklearn").origin).parent
    rows = np.loadtxt(package / "datasets" / "data" / "digits.csv.gz", np.uint8, delimiter=",")
    images, labels = rows[:, :-1].reshape(-1, 8, 8, 1), rows[:, -1]
    draw = np.random.default_rng(0)
    test = np.sort(np.concatenate([draw.permutation(np.flatnonzero(labels == c))[:50] for c in range(10)]))
    train = np.setdiff1d(np.arange(len(labels)), test)
    return [str(c) for c in range(10)], images[train], labels[train], images[test], labels[test]


def read_cifar(name: str, root: Path) -> tuple:
    """CIFAR10 or CIFAR100 in torchvision's files and order, downloaded when missing."""
    from torchvision import datasets

    kind = getattr(datasets, name)
    try:
        train, test = (kind(root, train=part) for part in (True, False))
    except RuntimeError:  # missing, or a checksum differs
        with fetching(root, kind.filename, kind.url, kind.tgz_md5):
            train, test = (kind(root, train=part, download=True) for part in (True, False))
    return train.classes, train.data, train.targets, test.data, test.targets


def read_cinic10(root: Path) -> tuple:
    """CINIC-10 with train and valid joined; after the first time, from cinic10.safetensors alone."""
    name, md5 = "CINIC-10.tar.gz", "6ee4d0c996905fe93221de577967a372"
    url = f"https://datashare.ed.ac.uk/bitstream/handle/10283/3192/{name}"
    cache = root / "cinic10.safetensors"
    tree = root if (root / "train").is_dir() else root / "CINIC-10"
    if not cache.exists() and not tree.is_dir():
        with fetching(root, name, url, md5):
            if not tree.is_dir():  # while this one waited, another process may have made it
                fetch_archive(url, root / name, md5, tree)
    return read_trees(tree, ["train", "valid"], cache, trust=True)


def read_folder(root: Path) -> tuple:
    """Any train/<class>/* and test/<class>/* tree of images."""
    if (root / "valid").is_dir():
        print(f"note: --dataset folder ignores {root / 'valid'}", file=sys.stderr)
    return read_trees(root, ["train"], root / ".images.safetensors")


READERS = {"digits": read_digits, "cifar10": partial(read_cifar, "CIFAR10"), "folder": read_folder,
           "cifar100": partial(read_cifar, "CIFAR100"), "cinic10": read_cinic10}  # fmt: skip


@contextlib.contextmanager
def fetching(root: Path, name: str, url: str, md5: str) -> Iterator[None]:
    """One process fetches, the others wait; without a network, one line that says what to put where."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        with exclusive(root):
            yield
    except (OSError, RuntimeError) as error:
        reason = str(error).split("\n")[0]
        raise InputError(
            f"{root / name} is missing and cannot be fetched ({reason}): put {url} there (md5 {md5}), "
            "or name the folder that has it with --data-dir"
        ) from None


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Wait until no other process writes to a data folder."""
    with open(folder / ".fetch.lock", "a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def fetch_archive(url: str, path: Path, md5: str, tree: Path) -> None:
    from torchvision.datasets.utils import download_and_extract_archive

    unpacked = path.parent / ".CINIC-10.partial"
    download_and_extract_archive(url, path.parent, unpacked, path.name, md5)
    os.replace(unpacked / "CINIC-10" if (unpacked / "CINIC-10").is_dir() else unpacked, tree)


CACHED = ("train", "labels", "test", "test_labels")


def read_trees(root: Path, train: list[str], cache: Path, trust=False) -> tuple:
    """Image trees <split>/<class>/<file> as 32x32 RGB, in the order split, class name, file name.

    Every stage would decode the small files anew, so the arrays are kept in `cache` until a file changes.
    """
    stamp = None
    if not (trust and cache.exists()):
        classes = class_names(root / "train")
        parts = [list_images(root, splits, classes) for splits in (train, ["test"])]
        stats = [(file, os.lstat(file)) for files, _ in parts for file in files]
        stamp = sha256(*(f"{file} {s.st_size} {s.st_mtime_ns}".encode() for file, s in stats))
    if cache.exists():
        tensors, info = load_tensors(cache)
        if not {"stamp", "classes"} <= info.keys() or sorted(tensors) != sorted(CACHED):
            raise InputError(f"{cache}: not a cache of decoded images; delete it")
        if stamp in (None, info["stamp"]):
            return info["classes"], *(tensors[name].numpy() for name in CACHED)
    arrays = [a for files, labels in parts for a in (decode(files), np.array(labels, np.int64))]
    info = {"classes": classes, "stamp": stamp}
    with contextlib.suppress(OSError, Failure), exclusive(cache.parent):  # a read-only folder goes without
        save_tensors(cache, {name: torch.from_numpy(a) for name, a in zip(CACHED, arrays)}, info)
    return classes, *arrays


def class_names(folder: Path) -> list[str]:
    try:
        names = sorted(d.name for d in os.scandir(folder) if d.is_dir() and not d.name.startswith("."))
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror}; class folders belong there, see --data-dir") from None
    if not names:
        raise InputError(f"{folder}: no class folders")
    return names


def list_images(root: Path, splits: list[str], classes: list[str]) -> tuple[list[Path], list[int]]:
    files, labels = [], []
    for split in splits:
        if class_names(root / split) != classes:
            raise InputError(f"{root / split}: its class folders are not those of {root / 'train'}")
        for label, name in enumerate(classes):
            folder = root / split / name
            members = sorted(name for name in os.listdir(folder) if not name.startswith("."))
            if not members:
                raise InputError(f"{folder}: an empty class folder")
            files += [folder / member for member in members]
            labels += [label] * len(members)
    return files, labels


def decode(files: list[Path]) -> np.ndarray:
    """[N, 32, 32, 3] uint8; grey images get three equal channels, other sizes are resized."""
    from PIL import Image

    def read(file: Path) -> np.ndarray:
        try:
            with Image.open(file) as image:
                if image.mode[0] in "IF":  # convert would clip them
                    raise ValueError(f"pixels of mode {image.mode}, 8 bits a channel are expected")
                image = image.convert("RGB")
                small = image.size == (32, 32)
                return np.asarray(image if small else image.resize((32, 32), Image.Resampling.BILINEAR))
        except Exception as error:  # a decoder fed with a corrupt file raises anything
            raise InputError(f"{file}: not a readable image ({error})") from None

    with ThreadPoolExecutor() as pool:
        return np.stack(list(tqdm(pool.map(read, files), "images", len(files), disable=None, leave=False)))


def load_data(dataset: str, preset: str, data_dir: Path, device: torch.device) -> Data:
    """A data set on the device, padded, with the statistics and the fingerprint of its training set."""
    classes, images, labels, test, test_labels = READERS[dataset](data_dir)
    labels, test_labels = np.asarray(labels, np.int64), np.asarray(test_labels, np.int64)
    if len(classes) < 2:
        raise InputError(f"{data_dir}: only one class, {classes[0]}")
    mean, std = channel_statistics(images)
    if not std.all():
        raise InputError(f"{dataset}: a channel of the training images is constant")
    pad = PRESETS[preset]["pad"]

    def put(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device)

    return Data(
        list(classes), F.pad(put(images), (0, 0, pad, pad, pad, pad)), put(labels), put(test),
        put(test_labels), put(mean), put(std),
        sha256(str(images.shape).encode(), images.tobytes(), labels.tobytes()), pad, PRESETS[preset]["flip"],
    )  # fmt: skip


def channel_statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel, [C] float32 each, exact up to the last rounding."""
    values = np.arange(256)
    counts = [np.bincount(images[..., c].ravel(), minlength=256) for c in range(images.shape[-1])]
    mean = np.array([count @ values / count.sum() for count in counts])
    variance = [count @ (values - m) ** 2 / count.sum() for count, m in zip(counts, mean)]
    return mean.astype(np.float32), np.sqrt(variance).astype(np.float32)


def noisy_labels(labels: np.ndarray, classes: int, label_noise: float, noise_seed: int) -> np.ndarray:
    """Labels [N] int64, round(label_noise N) of them drawn anew, uniformly over all classes (P, App. A)."""
    draw = rng(NOISE, noise_seed)
    chosen = draw.choice(len(labels), round(label_noise * len(labels)), replace=False)
    labels = labels.copy()
    labels[chosen] = draw.integers(0, classes, len(chosen))
    return labels


def epoch_table(seed: int, level: int, epoch: int, n: int, batch: int, pad: int, flip: bool) -> np.ndarray:
    """Which examples an epoch takes and how it cuts them: [4, n // batch, batch] int64.

    The four are example, top, left and flip (0 or 1). A pure function of its arguments: any step can be made
    again without the ones before, and every device sees the same order.
    """
    steps = n // batch
    order = rng(ORDER, seed, level, epoch).permutation(n)[: steps * batch]
    draw = rng(AUGMENT, seed, level, epoch)
    top, left = draw.integers(0, 2 * pad + 1, (2, steps * batch))
    flips = draw.integers(0, 2 if flip else 1, steps * batch)
    return np.stack([order, top, left, flips]).reshape(4, steps, batch)


def take_batch(data: Data, table: Tensor) -> Tensor:
    """Crop, flip and normalise one batch of an epoch table: [4, B] int64 -> [B, C, H, W] float32."""
    example, top, left, flips = table
    line = torch.arange(data.test.shape[1], device=table.device)
    rows = top[:, None] + line
    columns = left[:, None] + torch.where(flips[:, None] == 1, line.flip(0), line)
    return data.normalise(data.train[example[:, None, None], rows[:, :, None], columns[:, None, :]])


# ------------------------------------------------------------ network


class BatchNorm(nn.Module):
    """torch's BatchNorm2d without the step counter, which nothing reads and every file would carry."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training)


class Block(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = BatchNorm(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = BatchNorm(c_out)
        self.shortcut = nn.Sequential()
        if c_in != c_out:  # a projection, as in the code of the figures; He et al.'s option A has none
            self.shortcut = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), BatchNorm(c_out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x)).relu_()  # in place: no backward pass needs what batch norm put out
        y = self.bn2(self.conv2(y)).add_(self.shortcut(x))
        return y.relu_()


class ResNet(nn.Module):
    """CIFAR ResNet of depth 6n + 2 (He et al. 2016): [B, channels, H, W] -> logits [B, classes]."""

    def __init__(self, depth: int, width: int, channels: int, classes: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn = BatchNorm(width)
        widths = [w for w in (width, 2 * width, 4 * width) for _ in range((depth - 2) // 6)]
        blocks = [Block(a, b, 1 if a == b else 2) for a, b in zip([width, *widths], widths)]
        self.blocks = nn.Sequential(*blocks)
        self.linear = nn.Linear(4 * width, classes)

    def prunable(self) -> dict[str, nn.Parameter]:
        """Weights of convolutions and of the linear layer, in state-dict order."""
        return {name: p for name, p in self.named_parameters() if p.dim() > 1}

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.bn(self.conv(x)).relu_())
        return self.linear(x.mean((2, 3)))


@torch.no_grad()
def initialise(net: ResNet, seed: int) -> None:
    """Draw w_0: Kaiming-normal weights (fan-in, ReLU), batch-norm weights in [0, 1), torch's linear bias."""
    draw = rng(INIT, seed)
    for name, p in net.named_parameters():
        if p.dim() > 1:
            value = draw.standard_normal(p.shape) * math.sqrt(2 / p[0].numel())
        elif name == "linear.bias":
            value = draw.uniform(-1, 1, p.shape) / math.sqrt(net.linear.in_features)
        elif name.endswith(".weight"):
            value = draw.random(p.shape)
        elif name.endswith(".bias"):
            value = np.zeros(p.shape)
        else:
            raise ValueError(f"initialise has no rule for {name}")
        p.copy_(torch.from_numpy(value))


# ------------------------------------------------------------ training


class Member:
    """One network in training: weights, momentum, masks, data order, next step, loss of the last epoch."""

    def __init__(self, name: str, recipe: dict, data: Data, seed: int):
        self.name, self.seed, self.step, self.failed = name, seed, 0, False
        self.net = ResNet(recipe["depth"], recipe["width"], data.test.shape[3], recipe["classes"])
        initialise(self.net, seed)
        self.net.to(data.labels.device, memory_format=torch.channels_last)
        self.parameters = dict(self.net.named_parameters())
        self.momentum = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self.prunable = self.net.prunable()
        self.masks = {name: torch.ones_like(p) for name, p in self.prunable.items()}
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=data.labels.device)
        self.loss_steps = 0

    def weights(self) -> dict[str, Tensor]:
        """Parameters and batch-norm statistics by name; writing into them changes the network."""
        return self.net.state_dict()

    def state(self) -> dict[str, Tensor]:
        """Everything that a step changes, by name; writing into it changes the member."""
        tensors = {f"weight.{name}": t for name, t in self.weights().items()} | {"loss_sum": self.loss_sum}
        return tensors | {f"momentum.{name}": t for name, t in self.momentum.items()}

    def copy(self) -> dict[str, Tensor]:
        return {name: t.clone() for name, t in self.state().items()}

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor]) -> None:
        for name, t in self.state().items():
            t.copy_(state[name])

    @torch.no_grad()
    def rewind(self, weights: dict[str, Tensor], masks: dict[str, Tensor], step: int) -> None:
        """Start again from weights * masks at a step of the schedule, with fresh momentum."""
        self.step, self.failed, self.loss_steps = step, False, 0
        for name, t in self.weights().items():
            t.copy_(weights[name])
        for name, t in self.masks.items():
            t.copy_(masks[name])
        for t in (self.loss_sum, *self.momentum.values()):
            t.zero_()
        self.apply_masks()

    @torch.no_grad()
    def update(self, recipe: dict, rate: Tensor) -> None:
        """One step of SGD, then pruned weights back to zero; spends the gradients."""
        parameters = list(self.parameters.values())
        # the function behind torch.optim.SGD, whose class imports the compiler, over a second a process;
        # fused takes the rate as a tensor, the other implementations read it on the host
        sgd(parameters, [p.grad for p in parameters], list(self.momentum.values()), lr=rate,
            momentum=recipe["momentum"], weight_decay=recipe["weight_decay"], dampening=0.0, nesterov=False,
            maximize=False, fused=True)  # fmt: skip
        self.apply_masks()
        for p in parameters:
            p.grad = None

    @torch.no_grad()
    def apply_masks(self) -> None:
        torch._foreach_mul_(list(self.prunable.values()), list(self.masks.values()))


def even_groups(items: list, at_once: int) -> list[list]:
    """Split into the fewest groups of at most at_once, as even as they come."""
    groups = -(-len(items) // at_once)
    return [items[i::groups] for i in range(groups)]


def default_at_once(device: torch.device) -> int:
    """Networks side by side unless --at-once says otherwise; on a CPU one has the processor to itself."""
    return 8 if device.type == "cuda" else 1


def learning_rate(recipe: dict, peak: float, step: int) -> float:
    """The rate of update number `step`, counted from 0."""
    return peak * recipe["lr_decay"] ** sum(m <= step for m in recipe["milestones"])


def loss_of(net: ResNet, images: Tensor, labels: Tensor, precision: str) -> Tensor:
    bf16 = precision == "bf16"
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16, cache_enabled=False):
        logits = net(images)
    return F.cross_entropy(logits.float(), labels)


class Group:
    """Networks of one recipe that take their steps side by side; on a GPU these are one CUDA graph.

    labels  [N] int64 on the device, default the clean ones
    subset  [M] int64 indices of the examples to train on, default all
    """

    def __init__(self, members: list[Member], data: Data, recipe: dict, *, labels: Tensor | None = None,
                 subset: np.ndarray | None = None):  # fmt: skip
        self.members, self.data, self.recipe = members, data, recipe
        self.labels = data.labels if labels is None else labels
        self.subset = np.arange(len(self.labels)) if subset is None else subset
        batch = min(recipe["batch_size"], len(self.subset))  # a smaller subset is one batch
        self.per_epoch = len(self.subset) // batch
        place = {"device": self.labels.device}
        # what a recorded step reads; the rest of it is in the members
        self.rate = torch.zeros((), **place)
        self.examples = torch.zeros(len(members), 4, batch, dtype=torch.int64, **place)
        self.tables = torch.zeros(len(members), 4, self.per_epoch, batch, dtype=torch.int64, **place)
        self.replay = record(self) if self.labels.is_cuda else None

    def load_epoch(self, level: int, epoch: int) -> None:
        """Fill the tables: what every member sees in this epoch."""
        batch, data = self.examples.shape[2], self.data
        for m, kept in zip(self.members, self.tables):
            table = epoch_table(m.seed, level, epoch, len(self.subset), batch, data.pad, data.flip)
            table[0] = self.subset[table[0]]
            new = torch.from_numpy(table)
            # from a pinned buffer of its own, which the copy may still read when the next epoch is drawn
            kept.copy_(new.pin_memory() if kept.is_cuda else new, non_blocking=True)

    def step(self, m: Member) -> None:
        """The training step of one member: batch, loss, gradients, SGD, masks."""
        examples = self.examples[self.members.index(m)]
        images, labels = take_batch(self.data, examples), self.labels[examples[0]]
        loss = loss_of(m.net, images, labels, self.recipe["precision"])
        loss.backward()
        m.update(self.recipe, self.rate)
        m.loss_sum += loss.detach()


def record(group: Group) -> Callable[[], None]:
    """Record one step of every member, on parallel streams, as a CUDA graph; returns what replays it.

    The members stay as they are. A replay costs the host one launch instead of a thousand, and works on the
    very tensors that it was recorded with: whoever changes them copies into them.
    """
    streams = [torch.cuda.Stream() for _ in group.members]

    def steps() -> None:
        here = torch.cuda.current_stream()
        for m, stream in zip(group.members, streams):
            stream.wait_stream(here)
            with torch.cuda.stream(stream):
                group.step(m)
        for stream in streams:
            here.wait_stream(stream)

    kept = [m.copy() for m in group.members]
    for m in group.members:
        m.net.train()
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # cuDNN and cuBLAS set themselves up, stream by stream
        for _ in range(3):
            steps()
    torch.cuda.synchronize()
    try:
        with torch.cuda.graph(graph, stream=stream):
            steps()
    except RuntimeError as error:  # what cut a recording short (memory, a signal) makes its end fail too
        raise error.__context__ or error from None
    for m, state in zip(group.members, kept):
        m.restore(state)
    return graph.replay


def train(group: Group, stop: int, *, peak: float, level: int = 0) -> Iterator[int]:
    """Train the members of a group to step `stop`; yields the number of steps after every step.

    Each starts at its own member.step, and its result does not depend on its company. One whose loss is not
    finite stops there (member.failed) and the others go on. While it yields, a member holds its own weights
    if its step is the number yielded: on a GPU those whose turn has not come are stepped all the same.
    peak  learning rate before the first milestone
    """
    members, recipe, per_epoch = group.members, group.recipe, group.per_epoch
    first = min(m.step for m in members)
    for m in members:
        m.net.train()
    # a recorded step is one of all members; those that start later get their state back in time
    later = {m: m.copy() for m in members if m.step > first} if group.replay else {}
    name = members[0].name + (f" and {len(members) - 1} more" if len(members) > 1 else "")
    for step in tqdm(range(first, stop), name, stop, initial=first, disable=None, leave=False):
        epoch, i = divmod(step, per_epoch)
        if step == first or i == 0:
            group.load_epoch(level, epoch)
        group.rate.fill_(learning_rate(recipe, peak, step))
        group.examples.copy_(group.tables[:, :, i])
        active = [m for m in members if m.step == step and not m.failed]
        for m in active:
            if step == stop - per_epoch:  # the loss reported is the mean over the last epoch
                m.loss_sum.zero_()
                m.loss_steps = 0
        if group.replay:
            group.replay()
            for m in [m for m in later if m.step == step + 1]:
                m.restore(later.pop(m))
        else:
            for m in active:
                group.step(m)
        for m in active:
            m.loss_steps += 1
            m.step = step + 1
            if not group.replay or m.step % 200 == 0 or m.step == stop:  # on a GPU looking waits
                m.failed = not math.isfinite(m.loss_sum)
            if m.step == stop:  # no loss has seen the last update
                m.failed = m.failed or not all(t.isfinite().all() for t in m.weights().values())
        yield step + 1


@torch.no_grad()
def predict(net: ResNet, data: Data, images: Tensor) -> Tensor:
    """Logits [n, classes] float32 in eval mode of images [n, H, W, C] uint8, not augmented."""
    net.eval()
    return torch.cat([net(data.normalise(part)) for part in images.split(1000)])


def evaluate(net: ResNet, data: Data) -> tuple[float, float]:
    """(accuracy as a fraction, mean cross-entropy) on the test set."""
    logits = predict(net, data, data.test)
    accuracy = (logits.argmax(1) == data.test_labels).double().mean().item()
    return accuracy, F.cross_entropy(logits.double(), data.test_labels).item()


# ------------------------------------------------------------ command line


class Parser(argparse.ArgumentParser):
    """A script's docstring is its help, and an error is one line without the usage."""

    def __init__(self, doc: str):
        super().__init__(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter,
                         allow_abbrev=False)  # fmt: skip

    def error(self, message: str) -> None:
        raise InputError(message)


def add_data_flags(parser: Parser) -> None:
    """One set of flags serves score_el2n.py, make_subset.py and pretrain.py; the second trains nothing."""
    add = parser.add_argument
    add("--preset", choices=PRESETS, help="experiment of the paper (default: digits, or what --dataset says)")
    add("--dataset", choices=READERS, help="default: the preset's; folder reads train/CLASS/*, test/CLASS/*")
    add("--label-noise", type=float, help="share of labels drawn anew, 0 to 1 (default: the input's, else 0)")
    add("--noise-seed", type=int, help="which draw of the label noise (default: the input's, else 0)")
    for name, (kind, _, _, meaning) in HYPERPARAMETERS.items():
        nargs, text = "*" if name == "milestones" else None, f"{meaning} ({defaults(name)})"
        add(spell(name), type=kind, nargs=nargs, metavar="X", help=text)
    meaning = f"auto is bf16 where it is faster ({defaults('precision')})"
    add("--precision", choices=["auto", "fp32", "bf16"], help=meaning)
    add_place_flags(parser)


def add_place_flags(parser: Parser) -> None:
    add = parser.add_argument
    add("--data-dir", type=Path, default=Path("data"), help="folder of the data set's files (default: data)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:i (default: a GPU if any)")
    add("--force", action="store_true", help="start over where the output exists")


def defaults(name: str) -> str:
    """What the presets say, for a help text: the paper's CIFAR-10 value, and which presets differ."""
    usual = CIFAR10[name]
    others = [f", {preset}: {show(p[name])}" for preset, p in PRESETS.items() if p[name] != usual]
    return f"default: {show(usual)}{''.join(others)}"


def spell(name: str) -> str:
    return "--" + name.replace("_", "-")


def show(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def resolve_preset(args: argparse.Namespace) -> dict:
    """Preset and data set by name; a data set that names a preset selects it."""
    if args.dataset == "folder" and not args.preset:
        raise InputError("--dataset folder needs --preset")
    preset = args.preset or args.dataset or "digits"
    return {"preset": preset, "dataset": args.dataset or PRESETS[preset]["dataset"]}


def resolve_recipe(args: argparse.Namespace, device: torch.device | None = None) -> dict:
    """Preset, data set, hyperparameters and, for a device, precision; checked before any data are read."""
    recipe = resolve_preset(args)
    preset = PRESETS[recipe["preset"]]
    for name in HYPERPARAMETERS:
        given = getattr(args, name)
        recipe[name] = preset[name] if given is None else given
    check_hyperparameters(recipe, spell)
    if device:
        recipe["precision"] = resolve_precision(args.precision or preset["precision"], device)
    return recipe


def check_hyperparameters(recipe: dict, spell: Callable[[str], str]) -> None:
    """InputError unless every hyperparameter has its type and a usable value."""
    for name, (kind, usable, what, _) in HYPERPARAMETERS.items():
        values = recipe[name] if name == "milestones" else [recipe[name]]
        types = (int, float) if kind is float else (int,)
        fine = isinstance(values, list) and all(type(v) in types and abs(v) < math.inf for v in values)
        if not fine or not all(map(usable, values)) or values != sorted(set(values)):
            raise InputError(f"{spell(name)} must be {what}, not {show(recipe[name])}")


def check_recipe(path: Path, recipe: object) -> dict:
    """The recipe from a file's metadata; InputError names the file and what is wrong with it."""
    missing = sorted(set(RECIPE) - set(recipe if isinstance(recipe, dict) else ()))
    if missing:
        raise InputError(f"{path}: not a file of pretrain.py, its recipe lacks {', '.join(missing)}")
    check_hyperparameters(recipe, lambda name: f"{path}: {name}")
    choices = {"preset": [*PRESETS], "dataset": [*READERS], "precision": ["fp32", "bf16"], "scheme": SCHEMES}
    word = 2**32 - 1
    ranges = {"classes": word, "seed": word, "noise_seed": word, "rewind_step": recipe["total_steps"]}
    share, size = recipe["label_noise"], recipe["subset_size"]
    wrong = [key for key, known in choices.items() if recipe[key] not in known]
    wrong += ["label_noise"] * (type(share) not in (int, float) or not 0 <= share <= 1)
    wrong += ["subset_size"] * (size is not None and type(size) is not int)
    wrong += [k for k, top in ranges.items() if type(recipe[k]) is not int or not 0 <= recipe[k] <= top]
    if wrong:
        raise InputError(f"{path}: its recipe cannot be: {', '.join(f'{k} {recipe[k]}' for k in wrong)}")
    return recipe


def resolve_noise(args: argparse.Namespace, sidecar: dict) -> dict:
    """label_noise and noise_seed from the flags or the input's sidecar; they must not contradict."""
    noise = {}
    if sidecar.get("label_noise") == 0:
        sidecar = {"label_noise": 0.0}  # its seed means nothing
    for name in ("label_noise", "noise_seed"):
        given, stored = getattr(args, name), sidecar.get(name)
        if given is not None and stored is not None and given != stored:
            raise InputError(f"{spell(name)} {given} contradicts the input, which was made with {stored}")
        noise[name] = next((v for v in (given, stored) if v is not None), 0)
    share = noise["label_noise"]
    if type(share) not in (int, float) or not 0 <= share <= 1:
        raise InputError(f"--label-noise must be in [0, 1], not {share}")
    check_seed("--noise-seed", noise["noise_seed"])
    return {"label_noise": float(share), "noise_seed": noise["noise_seed"] if share else 0}


def check_seed(flag: str, seed: object) -> None:
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise InputError(f"{flag} must be from 0 to 2^32 - 1, not {seed}")


def resolve_device(name: str) -> torch.device:
    """The device by name, set up so that the same command gives the same numbers."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # both are read when CUDA starts
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise InputError(f"--device must be auto, cpu, cuda or cuda:i, not {name}")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device {name}: no such GPU, {torch.cuda.device_count()} found")
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)  # streams and graphs are made on the current one
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    return device


def resolve_precision(precision: str, device: torch.device) -> str:
    """auto -> bf16 where the hardware multiplies it faster than fp32, else fp32."""
    if device.type == "cuda":
        has_bf16 = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        has_bf16 = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    if precision == "bf16" and not has_bf16:
        raise InputError("bf16 needs a GPU of compute capability 8.0, or a CPU with AMX or AVX512-BF16")
    return ("bf16" if has_bf16 else "fp32") if precision == "auto" else precision


def made_by(device: torch.device) -> dict:
    """What is recorded but never compared."""
    cuda = device.type == "cuda"
    return {
        "torch": torch.__version__, "numpy": np.__version__, "threads": torch.get_num_threads(),
        "device": str(device),
        "processor": torch.cuda.get_device_name(device) if cuda else torch.backends.cpu.get_cpu_capability(),
        "host": socket.gethostname(), "python": platform.python_version(),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }  # fmt: skip


def defer_signals() -> list[int]:
    """From now on SIGTERM and SIGINT only add their number to the list; a second SIGINT ends the process."""
    received = []

    def note(number: int, frame: object) -> None:
        received.append(number)
        if number == signal.SIGINT:  # not SIGTERM: Slurm sends it to us and to our parent, who passes it on
            signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, note)
    return received


def raise_stopped(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_IGN if number == signal.SIGTERM else signal.SIG_DFL)
    raise Stopped(number)


def cli(main: Callable[[list[str] | None], None], argv: list[str] | None = None) -> int:
    """Run a stage's main and turn what it raises into one line on stderr and the exit status."""
    # set explicitly: a background job of a shell inherits an ignored SIGINT
    before = {n: signal.signal(n, raise_stopped) for n in (signal.SIGTERM, signal.SIGINT)}
    name = Path(main.__code__.co_filename).name
    try:
        main(argv)
        return 0
    except Stopped as stopped:
        message, status = f"stopped by {signal.Signals(stopped.args[0]).name}", 128 + stopped.args[0]
    except InputError as error:
        message, status = f"error: {error}", 2
    except torch.cuda.OutOfMemoryError:
        message, status = "out of GPU memory: lower --at-once (of imp.py) or --batch-size", 1
    except (Failure, OSError) as error:
        message, status = str(error), 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    print(f"{name}: {' '.join(message.split())}", file=sys.stderr)  # one line, whatever a path holds
    return status
