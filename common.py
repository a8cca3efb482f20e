"""What every stage needs, in the order in which an image becomes a weight.

load_data -> epoch_table -> take_batch -> ResNet.forward -> Group.step -> Member.update; then files
and command line. Stages decide who is trained, and on what.
"""

import argparse
import contextlib
import copy
import csv
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

# ------------------------------------------------------------ presets (paper, Table 1 and App. A)

CIFAR10 = dict(
    dataset="cifar10", depth=20, width=16, batch_size=128, lr=0.1, pretrain_lr=0.4, momentum=0.9,
    weight_decay=1e-4, milestones=[31200, 46800], lr_decay=0.1, total_steps=62400, t_star=400,
    networks=10, el2n_steps=7800, scoring={}, prune_fraction=0.2, levels=16, precision="auto",
    pad=4, flip=True,
)  # fmt: skip
PRESETS = {
    # the demonstration, found by a search on seeds 100 to 107; see RESULTS.md
    "digits": CIFAR10 | dict(
        dataset="digits", depth=14, width=6, batch_size=64, lr=0.5, pretrain_lr=0.5,
        milestones=[224, 288], total_steps=320, t_star=20, networks=8, el2n_steps=100,
        scoring=dict(depth=8, width=16, lr=0.05), prune_fraction=0.488, levels=5, precision="fp32",
        pad=1, flip=False,
    ),
    # CIFAR-10 for a laptop, two epochs a training; t* by its own search on seeds 100 to 102
    "cifar10-small": CIFAR10 | dict(
        depth=14, width=8, batch_size=64, lr=0.3, pretrain_lr=0.3, milestones=[1000, 1300],
        total_steps=1500, t_star=100, networks=4, el2n_steps=1500, scoring=dict(lr=0.1),
        prune_fraction=0.488, levels=5,
    ),
    "cifar10": CIFAR10,
    "cifar100": CIFAR10 | dict(dataset="cifar100", depth=32, t_star=800),
    "cinic10": CIFAR10 | dict(
        dataset="cinic10", depth=56, batch_size=256, pretrain_lr=0.1, milestones=[15625, 23440],
        total_steps=31250, t_star=800, el2n_steps=8000, levels=12,
    ),
}  # fmt: skip
# Networks that score may differ: those that agree on what is easy are not those that are pruned.
SCORING_PRESETS = {name: preset | preset["scoring"] for name, preset in PRESETS.items()}
# Raised with every change after which the same settings give other numbers: nothing of another
# version is taken up.
VERSION = 1
# Have you changed the network, the optimiser, ...? Say so here, {"network": "cnn"}: recipes carry
# it, curves are named for it, and no stage takes up what other code has made.
OWN = {}
# In these, and in the seed, starting points may differ and still train side by side: IMP does not
# use them.
PRETRAINING = (
    "pretrain_lr",
    "rewind_step",
    "scheme",
    "subset_size",
    "subset_sha256",
    "score",
    "class_balanced",
    "label_noise",
    "noise_seed",
    "labels_sha256",
)

# ------------------------------------------------------------ errors, random streams


class InputError(Exception):
    """Bad arguments or input: one line on stderr, exit status 2."""


class Failure(Exception):
    """A failure while running: one line on stderr, exit status 1."""


class Stopped(BaseException):
    """A signal arrived and everything is saved: exit status 128 + its number."""


# purposes; what a seed means
INIT, ORDER, AUGMENT, SUBSET, NOISE, SCORING, PRUNE, SHUFFLE, OTHER_ORDER = range(9)


def rng(purpose: int, seed: int, level: int = 0, epoch: int = 0) -> np.random.Generator:
    """The random stream of one purpose. Always four words: NumPy pads a shorter key with zeros."""
    return np.random.default_rng([purpose, seed, level, epoch])


def seed_of_its_own(purpose: int, seed: int, k: int = 0) -> int:
    """A seed in [2**32, 2**63) of one purpose: no number that a user can choose is equal to it."""
    return int(rng(purpose, seed, k).integers(2**32, 2**63))


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
    fingerprint: str  # sha256 of training images and clean labels
    pad: int
    flip: bool

    def train_images(self) -> Tensor:
        """The training images themselves, [N, H, W, C] uint8."""
        end = self.train.shape[1] - self.pad
        return self.train[:, self.pad : end, self.pad : end]

    def normalise(self, images: Tensor) -> Tensor:
        """[B, H, W, C] uint8 -> [B, C, H, W] float32, channels-last in memory."""
        return ((images.float() - self.mean) / self.std).permute(0, 3, 1, 2)


def load_data(dataset: str, preset: str, data_dir: Path, device: torch.device) -> Data:
    """A data set on the device, padded, with statistics and fingerprint of its training set."""
    classes, images, labels, test, test_labels = READERS[dataset](data_dir)
    labels, test_labels = np.asarray(labels, np.int64), np.asarray(test_labels, np.int64)
    if len(classes) < 2:
        raise InputError(f"{data_dir}: only one class, {classes[0]}")
    mean, std = channel_statistics(images)
    pad, flip = PRESETS[preset]["pad"], PRESETS[preset]["flip"]
    fingerprint = sha256(str(images.shape).encode(), images.tobytes(), labels.tobytes())
    x, *rest = (
        torch.from_numpy(a).to(device) for a in (images, labels, test, test_labels, mean, std)
    )
    return Data(classes, F.pad(x, (0, 0, pad, pad, pad, pad)), *rest, fingerprint, pad, flip)


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
    """CINIC-10, train and valid joined; after the first time, from cinic10.safetensors alone."""
    cache = root / "cinic10.safetensors"
    tree = root if (root / "train").is_dir() else root / "CINIC-10"
    if not cache.exists() and not tree.is_dir():
        from torchvision.datasets.utils import download_and_extract_archive

        with fetching(root / "CINIC-10.tar.gz", CINIC10_URL, CINIC10_MD5):
            if not tree.is_dir():  # while this one waited, another process may have made it
                unpacked = root / ".CINIC-10.partial"
                download_and_extract_archive(CINIC10_URL, root, unpacked, md5=CINIC10_MD5)
                os.replace(
                    unpacked / "CINIC-10" if (unpacked / "CINIC-10").is_dir() else unpacked, tree
                )
    return read_trees(tree, ["train", "valid"], cache, CINIC10_IMAGES)


def read_folder(root: Path) -> tuple:
    """Any train/<class>/* and test/<class>/* tree of images."""
    if (root / "valid").is_dir():
        print(f"note: --dataset folder ignores {root / 'valid'}", file=sys.stderr)
    return read_trees(root, ["train"], root / ".images.safetensors")


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


def read_trees(root: Path, train: list[str], cache: Path, sizes: list[int] | None = None) -> tuple:
    """Image trees <split>/<class>/<file> as 32x32 RGB, in the order split, class name, file name.

    Every stage would decode the small files anew, so the arrays are kept in `cache` until a file
    changes.
    sizes  how many images for training and for the test there must be; a cache of them stands for
           the files
    """
    from torchvision.datasets import ImageFolder

    stamp, folders, keys = None, [], ("train", "labels", "test", "test_labels")
    if not (sizes and cache.exists()):
        for split in (*train, "test"):
            # the folder may be missing, or have an empty class folder or none
            with reading(root / split):
                folders.append(ImageFolder(root / split))
            if folders[-1].classes != folders[0].classes:
                raise InputError(
                    f"{root / split}: its class folders are not those of {root / 'train'}"
                )
        files, labels = zip(*(sample for folder in folders for sample in folder.samples))
        n = len(files) - len(folders[-1])  # for training
        if sizes not in (None, [n, len(folders[-1])]):
            raise InputError(
                f"{root}: incomplete, {sizes} images are expected for training and test"
            )
        with reading(root):
            stats = [(os.path.relpath(file, root), os.stat(file)) for file in files]
        stamp = sha256(
            *(b"%s %d %d\n" % (os.fsencode(f), s.st_size, s.st_mtime_ns) for f, s in stats)
        )
    if cache.exists():
        try:
            tensors, info = load_tensors(cache)
            if stamp in (None, info["stamp"]):
                return info["classes"], *(tensors[key].numpy() for key in keys)
        except (InputError, KeyError) as error:
            raise InputError(
                f"{cache}: not a cache of decoded images; delete it ({error})"
            ) from None
    with ThreadPoolExecutor() as pool:
        images = list(
            tqdm(pool.map(read_image, files), "images", len(files), disable=None, leave=False)
        )
    arrays = [np.array(each) for each in (images[:n], labels[:n], images[n:], labels[n:])]
    tensors = {key: torch.from_numpy(a) for key, a in zip(keys, arrays)}
    # two processes must not write one file at once; a read-only folder goes without
    with contextlib.suppress(InputError, Failure), lock(cache.parent / ".fetch.lock", wait=True):
        save_tensors(cache, tensors, {"classes": folders[0].classes, "stamp": stamp})
    return folders[0].classes, *arrays


def read_image(file: str) -> np.ndarray:
    """[32, 32, 3] uint8; grey images get three equal channels, other sizes are resized."""
    from PIL import Image

    with reading(file), Image.open(file) as image:
        if image.mode[0] in "IF":
            raise ValueError(f"pixels of mode {image.mode}, 8 bits a channel are expected")
        image = image.convert("RGB")  # resizing to the same size is a copy
        return np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR))


# ------------------------------------------------------------ order and crops


def epoch_table(
    seed: int, level: int, epoch: int, n: int, batch: int, pad: int, flip: bool
) -> np.ndarray:
    """Which examples an epoch takes and how it cuts them: [4, n // batch, batch] int64.

    The four are example, top, left and flip (0 or 1). A pure function of its arguments: any step
    can be made again without the ones before, and every device sees the same order.
    """
    steps = n // batch
    order = rng(ORDER, seed, level, epoch).permutation(n)[: steps * batch]
    draw = rng(AUGMENT, seed, level, epoch)
    top, left = draw.integers(0, 2 * pad + 1, (2, steps * batch))
    flips = draw.integers(0, 2 if flip else 1, steps * batch)
    return np.stack([order, top, left, flips]).reshape(4, steps, batch)


def take_batch(data: Data, table: Tensor) -> Tensor:
    """Crop, flip and normalise a batch of an epoch table: [4, B] int64 -> [B, C, H, W] float32."""
    example, top, left, flips = table
    line = torch.arange(data.test.shape[1], device=table.device)
    rows = top[:, None] + line
    columns = left[:, None] + torch.where(flips[:, None] == 1, line.flip(0), line)
    return data.normalise(data.train[example[:, None, None], rows[:, :, None], columns[:, None, :]])


# ------------------------------------------------------------ network


class BatchNorm(nn.Module):
    """torch's BatchNorm2d without step counter, its statistics precise in every memory format."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.ones(channels)),
            nn.Parameter(torch.zeros(channels)),
        )
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and sums_naively(x):
            return PreciseBatchNorm.apply(
                x, self.weight, self.bias, self.running_mean, self.running_var
            )
        # Not F.batch_norm: on a GPU in fp32 it takes persistent kernels, which are reported to
        # stall beside others.
        return torch.native_batch_norm(
            x,
            self.weight,
            self.bias,
            self.running_mean,
            self.running_var,
            self.training,
            MOMENTUM,
            EPSILON,
        )[0]


# of batch norm: the weight of a new batch in running statistics; torch's defaults
MOMENTUM, EPSILON = 0.1, 1e-5


def sums_naively(x: Tensor) -> bool:
    """Would torch's batch norm sum so many values of a channel one after another that it matters?

    It does so on a CPU in channels-last memory: after 131,072 values (ResNet-20, batch 128) its
    output is off by 1e-4 and the gradients of all convolutions by 1%. Up to 4,096 values (every
    layer of the digits) it is off by 4e-6 at most, and its one call takes a third of the time of
    ours; in bf16 rounding is far more than that.
    """
    several = x.dtype == torch.float32 and x.numel() // x.shape[1] > 4096
    return several and not x.is_cuda and x.is_contiguous(memory_format=torch.channels_last)


class PreciseBatchNorm(torch.autograd.Function):
    """Batch norm in training mode on a CPU in channels-last memory, with better statistics.

    torch's own kernels are given them. Every pixel of an image is first treated as a channel of its
    own, whose statistics sum over the batch alone; those of its pixels make up a channel's.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, running_mean, running_var):
        batch, channels, height, width = x.shape
        # a view of the same memory
        pixels = x.permute(0, 2, 3, 1).reshape(batch, height * width * channels)
        means, variances = torch.batch_norm_update_stats(pixels, None, None, MOMENTUM)
        means = means.view(-1, channels)
        mean = means.mean(0)
        variance = variances.view(-1, channels).mean(0) + (means - mean).square_().mean(0)
        n = batch * height * width
        running_mean.lerp_(mean, MOMENTUM)
        running_var.lerp_(variance * (n / (n - 1)), MOMENTUM)  # the unbiased one, as torch keeps
        ctx.save_for_backward(x, weight, mean, (variance + EPSILON).rsqrt())
        return torch.native_batch_norm(x, weight, bias, mean, variance, False, MOMENTUM, EPSILON)[0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        x, weight, mean, inverse_std = ctx.saved_tensors
        gradients = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, None, None, mean, inverse_std, True, EPSILON, [True, True, True]
        )
        return *gradients, None, None


class Block(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = BatchNorm(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = BatchNorm(c_out)
        self.shortcut = nn.Sequential()
        # a projection, as in the code of the figures; He et al.'s option A has none
        if c_in != c_out:
            self.shortcut = nn.Sequential(nn.Conv2d(c_in, c_out, 1, bias=False), BatchNorm(c_out))

    def forward(self, x: Tensor) -> Tensor:
        # in place: no backward pass needs what batch norm put out
        y = self.bn1(self.conv1(x)).relu_()
        if self.stride > 1:
            # Take every second row and column first, so that the projection has stride 1: the same
            # numbers, without oneDNN's kernel for the weight gradient of a strided 1x1 convolution,
            # which can write outside its memory (oneDNN issue 6035). Pooling single pixels costs a
            # ResNet-20 step 1%, slicing 4%.
            x = F.avg_pool2d(x, 1, self.stride)
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
    """Draw the weights w_0 of a seed.

    Kaiming-normal weights (fan-in, ReLU), batch-norm weights in [0, 1), torch's linear bias.
    """
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
    """A network in training: weights, momentum, masks, data order, next step, last epoch's loss."""

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

    def state(self) -> dict[str, Tensor]:
        """Everything that a step changes, by name; writing into it changes the member."""
        return prefixed(weight=self.net.state_dict(), momentum=self.momentum) | {
            "loss_sum": self.loss_sum
        }

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
        self.net.load_state_dict(weights)  # into the same tensors
        for name, mask in self.masks.items():
            mask.copy_(masks[name])
        for t in (self.loss_sum, *self.momentum.values()):
            t.zero_()
        self.apply_masks()

    @torch.no_grad()
    def update(self, recipe: dict, rate: Tensor) -> None:
        """One step of SGD, then pruned weights back to zero; spends the gradients.

        A parameter without a gradient stays as it is, as with torch.optim.SGD: a frozen layer, an
        unused head.
        """
        trained = {name: p for name, p in self.parameters.items() if p.grad is not None}
        parameters = list(trained.values())
        # The function behind torch.optim.SGD, whose class imports the compiler, over a second a
        # process. fused takes the rate as a tensor, the other implementations read it on the host.
        sgd(
            parameters,
            [p.grad for p in parameters],
            [self.momentum[name] for name in trained],
            lr=rate,
            momentum=recipe["momentum"],
            weight_decay=recipe["weight_decay"],
            dampening=0.0,
            nesterov=False,
            maximize=False,
            fused=True,
        )
        self.apply_masks()
        for p in parameters:
            p.grad = None

    @torch.no_grad()
    def apply_masks(self) -> None:
        torch._foreach_mul_(list(self.prunable.values()), list(self.masks.values()))

    def finite(self) -> bool:
        """Are all weights and statistics finite? One copy to the host for all tensors together."""
        return bool(torch.stack([t.isfinite().all() for t in self.net.state_dict().values()]).all())


def prefixed(**parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Dictionaries as one: {"conv.weight": t} given as mask becomes {"mask.conv.weight": t}."""
    return {f"{part}.{name}": t for part, tensors in parts.items() for name, t in tensors.items()}


def part(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """One of those dictionaries again."""
    return {
        key.removeprefix(name + "."): t for key, t in tensors.items() if key.startswith(name + ".")
    }


def even_groups(items: list, at_once: int | None, device: torch.device) -> list[list]:
    """The fewest even groups of at most at_once.

    The default is 8 on a GPU and 1 on a CPU, which has one to itself.
    """
    groups = -(-len(items) // (at_once or (8 if device.type == "cuda" else 1)))
    return [items[i::groups] for i in range(groups)]


def loss_of(net: ResNet, images: Tensor, labels: Tensor, precision: str) -> Tensor:
    with torch.autocast(
        images.device.type, torch.bfloat16, precision == "bf16", cache_enabled=False
    ):
        logits = net(images)
    return F.cross_entropy(logits.float(), labels)


class Group:
    """Networks of one recipe that take their steps side by side; on a GPU each is a CUDA graph.

    labels  [N] int64 on the device, default the clean ones
    subset  [M] int64 indices of the examples to train on, default all
    """

    def __init__(
        self,
        members: list[Member],
        data: Data,
        recipe: dict,
        *,
        labels: Tensor | None = None,
        subset: np.ndarray | None = None,
    ):
        self.members, self.data, self.recipe = members, data, recipe
        self.labels = data.labels if labels is None else labels
        self.subset = np.arange(len(self.labels)) if subset is None else subset
        batch = min(recipe["batch_size"], len(self.subset))  # a smaller subset is one batch
        self.per_epoch = len(self.subset) // batch
        place = {"device": self.labels.device}
        # what a recorded step reads; the rest of it is in the members
        self.rate = torch.zeros((), **place)
        self.examples = torch.zeros(len(members), 4, batch, dtype=torch.int64, **place)
        self.tables = torch.zeros(
            len(members), 4, self.per_epoch, batch, dtype=torch.int64, **place
        )
        self.replays = [None] * len(members)  # of recorded steps; None: plain ones
        self.prepared = False

    def prepare(self, k: int) -> None:
        """Before the very first step: prove that of member k, whose turn it is; on a GPU record."""
        self.prepared = True
        prove_once(self, k)
        if self.labels.is_cuda and not environment_flag("NO_GRAPH"):
            torch.cuda.empty_cache()  # of the proof
            for k in range(len(self.members)):
                use_recording(self, k)

    def load_epoch(self, level: int, epoch: int) -> None:
        """Fill the tables: what every member sees in this epoch."""
        batch, data = self.examples.shape[2], self.data
        for m, kept in zip(self.members, self.tables):
            table = epoch_table(m.seed, level, epoch, len(self.subset), batch, data.pad, data.flip)
            table[0] = self.subset[table[0]]
            new = torch.from_numpy(table)
            # From a pinned buffer of its own, which the copy may still read when the next epoch is
            # drawn.
            kept.copy_(new.pin_memory() if kept.is_cuda else new, non_blocking=True)

    def step(self, k: int) -> None:
        """The training step of member k: batch, loss, gradients, SGD, masks."""
        m, examples = self.members[k], self.examples[k]
        images, labels = take_batch(self.data, examples), self.labels[examples[0]]
        loss = loss_of(m.net, images, labels, self.recipe["precision"])
        loss.backward()
        m.update(self.recipe, self.rate)
        m.loss_sum += loss.detach()

    def steps(self, active: list[int]) -> None:
        """A step of each of these members; on a GPU all of them at the same time."""
        started = [(self.replays[k] or partial(self.step, k))() for k in active]
        # after all have started: joined one by one they would wait for each other
        for stream in started:
            if stream:
                torch.cuda.current_stream().wait_stream(stream)


def record(group: Group, k: int) -> Callable[[], "torch.cuda.Stream"]:
    """Record the step of member k as a CUDA graph; returns what starts it on a stream of its own.

    A replay costs the host one launch instead of a thousand, and works on the very tensors that it
    was recorded with: whoever changes them copies into them. The member takes a few steps here.
    """
    graph, stream, pool = (
        torch.cuda.CUDAGraph(),
        torch.cuda.Stream(),
        torch.cuda.graph_pool_handle(),
    )
    stream.wait_stream(torch.cuda.current_stream())
    failure = None
    try:
        with torch.cuda.stream(stream):  # a failing capture would leave its stream current
            for _ in range(3):  # cuDNN and cuBLAS set themselves up, stream by stream
                group.step(k)
            with torch.cuda.graph(graph, pool, stream):
                group.step(k)
    except RuntimeError as error:
        # what cut a recording short (memory, a signal) makes its end fail too
        cut = error.__context__
        failure = cut if isinstance(cut, RuntimeError | Stopped) else error
        failure.__traceback__ = None  # it holds the graph, which must go first
    if failure:
        del graph
        torch.cuda.current_stream().wait_stream(stream)
        # torch 2.11 goes on allocating there; later ones raise
        with contextlib.suppress(RuntimeError):
            torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
            torch._C._cuda_releasePool(torch.cuda.current_device(), pool)
        raise failure

    def replay() -> torch.cuda.Stream:
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            graph.replay()
        return stream

    return replay


# of CUDA, cuBLAS or the CPU
OUT_OF_MEMORY = re.compile("out of memory|ALLOC_FAILED|allocate memory")


def use_recording(group: Group, k: int, record: Callable = record) -> None:
    """Let member k of a group take recorded steps if these prove to be its plain ones; else say so.

    From one state, with a batch, a rate and half-zero masks that the recording has not seen, a
    plain step and two replays must change every tensor alike: the gap may be 5% of what the step
    moved at most (0 is expected).
    """
    m = group.members[k]
    kept, masks = m.copy(), {name: mask.clone() for name, mask in m.masks.items()}
    m.net.train()
    group.examples.copy_(group.tables[:, :, 0])
    group.rate.fill_(group.recipe["lr"])
    try:
        replay, found = record(group, k), []
        group.examples[k, 0] = (group.examples[k, 0] + 1) % len(group.labels)
        group.rate.div_(2)
        for mask in m.masks.values():
            mask[::2] = 0
        m.restore(kept)
        m.apply_masks()
        start = m.copy()
        for way in (None, replay, replay):
            group.replays[k] = way
            m.restore(start)
            group.steps([k])
            found.append(m.copy())
        plain, *others = found
        for name, t in plain.items():
            moved, gaps = (t - start[name]).abs().max(), [(o[name] - t).abs().max() for o in others]
            if not all(gap <= 0.05 * moved for gap in gaps):
                raise RuntimeError(
                    f"replayed, {name} is off by {max(gaps):.1e}, a step moves {moved:.1e}"
                )
    except RuntimeError as error:
        group.replays[k] = None
        if OUT_OF_MEMORY.search(str(error)):
            raise
        print(
            f"note: {m.name}: plain steps, no recorded ones: {error}".splitlines()[0],
            file=sys.stderr,
        )
    finally:
        m.restore(kept)
        for name, mask in masks.items():
            m.masks[name].copy_(mask)


# ------------------------------------------------------------ a first step proves itself

# Of ||r||. Honest networks were within 1.2e-4 and 3e-3 (Zen 4, AVX2 and AVX-512, dense to 1% of the
# weights), within 1.6e-2 on other bf16 units; the known fault of oneDNN is above 6e-2.
TOLERANCE = {"fp32": 1e-3, "bf16": 4e-2}
CANCELLED = 5e-6  # of ||a|| ||b||; honest networks were within 8e-7
PROVED = set()  # recipes and batches of which this process has proved a step


def prove_once(group: Group, k: int) -> None:
    """Call prove_first_step once a process for each recipe and batch.

    NO_PROOF=1 leaves it out, and says so.
    """
    if environment_flag("NO_PROOF"):
        print("note: NO_PROOF=1: gradients of the first step are not checked", file=sys.stderr)
        return
    recipe = {key: v for key, v in group.recipe.items() if key not in ("seed", *PRETRAINING)}
    step = to_json([recipe, [*group.examples.shape[1:]], f"{group.labels.device}"])
    if step not in PROVED:
        prove_first_step(group, k)
        PROVED.add(step)


def prove_first_step(group: Group, k: int) -> None:
    """Failure unless member k's next step has right gradients at each convolution and linear layer.

    A forward and backward pass of its batch, on a copy of its network, at the precision and in the
    memory format of the training. The gradients g of each layer's weight and input are held beside
    r, computed again from the same operands a and b (what the layer saw and the gradient of its
    output, rounded as they were) in float32, contiguous, without oneDNN and cuDNN. ||g - r|| may be
    TOLERANCE x ||r|| + CANCELLED x ||a|| ||b||: the second term is for sums that cancel, as where a
    pruned network hands a layer a constant input. Comparing whole networks would not do: signs of
    ReLU flip with rounding, so that honest gradients differ by per cents.

    A network that draws random numbers, as dropout does, is a Failure too, since its result would
    depend on its company. Left out are parameters without a gradient, layers of somebody's own
    class, and values that are not finite, which the loss will tell.
    """
    m, device, precision = group.members[k], group.labels.device, group.recipe["precision"]
    images, labels = take_batch(group.data, group.examples[k]), group.labels[group.examples[k, 0]]
    net, found = copy.deepcopy(m.net).train(), []
    for name, layer in net.named_modules():
        if type(layer) in (nn.Conv2d, nn.Linear) and isinstance(layer.weight, nn.Parameter):
            compare_gradients(layer, name, precision, found)
    with torch.random.fork_rng([device.index or 0] if device.type == "cuda" else []):
        before = random_states(device)
        loss_of(net, images, labels, precision).backward()
        if any(not torch.equal(a, b) for a, b in zip(before, random_states(device))):
            raise Failure(
                "the network draws random numbers while it trains (dropout?): its result would "
                "depend on the networks beside it and on where a run was stopped"
            )
    for what, gap, norm, operands in found:
        if not gap <= TOLERANCE[precision] * norm + CANCELLED * operands:
            raise Failure(
                f"wrong gradient: {what} is off by {gap / norm:.1%}, rounding explains "
                f"{TOLERANCE[precision]:.1%} at most ({describe(device, precision)}, torch "
                f"{torch.__version__}). Not your settings but a kernel is wrong: try "
                "OMP_NUM_THREADS=1, another --precision, or another version of torch; NO_PROOF=1 "
                "trains all the same"
            )


def random_states(device: torch.device) -> list[Tensor]:
    """The states of torch's generators that a network on this device could draw from."""
    return [
        torch.get_rng_state(),
        *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else []),
    ]


def compare_gradients(layer: nn.Module, name: str, precision: str, found: list) -> None:
    """Let a layer's next backward pass add (what, ||g - r||, ||r||, ||a|| ||b||) to found."""
    of_input, of_weight = [], []  # (r, ||a|| ||b||) of every use; those of the weight are added up

    def compare(what: str, g: Tensor, r: Tensor, operands: float) -> None:
        gap, norm = length(g - r), length(r)
        if math.isfinite(norm):
            found.append((f"{name}, that of its {what},", gap, norm, operands))

    def rename_input(_, inputs: tuple) -> tuple:
        x = inputs[0].view_as(inputs[0])  # another name, whose gradient is that of this use alone
        if x.requires_grad:
            x.register_hook(lambda g: compare("input", g.float(), *of_input.pop()))
        return (x,)

    def compute_again(_, inputs: tuple, output: Tensor) -> None:
        def when_known(of_output: Tensor) -> None:
            r_input, r_weight = gradients_again(layer, inputs[0], of_output, precision)
            of_input.append((r_input, length(layer.weight) * length(of_output)))
            of_weight.append((r_weight, length(inputs[0]) * length(of_output)))

        if output.requires_grad:
            output.register_hook(when_known)

    layer.register_forward_pre_hook(rename_input)
    layer.register_forward_hook(compute_again)
    if layer.weight.requires_grad:
        layer.weight.register_hook(lambda g: compare("weight", g, *map(sum, zip(*of_weight))))


def length(t: Tensor) -> float:
    """||t||, summed in float64."""
    return torch.linalg.vector_norm(t.detach(), dtype=torch.float64).item()


@contextlib.contextmanager
def plain_kernels() -> Iterator[None]:
    """No oneDNN, no cuDNN, and one thread: the plain kernels start threads image by image."""
    before = torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled, torch.get_num_threads()
    torch.backends.mkldnn.enabled = torch.backends.cudnn.enabled = False
    torch.set_num_threads(1)
    try:
        with torch.enable_grad():
            yield
    finally:
        torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled = before[:2]
        torch.set_num_threads(before[2])


def gradients_again(
    layer: nn.Module, x: Tensor, of_output: Tensor, precision: str
) -> tuple[Tensor, Tensor]:
    """Gradients of a layer's input and weight, float32, from the operands of its training pass."""
    rounded = torch.bfloat16 if precision == "bf16" else torch.float32
    operands = (x, layer.weight)
    x, weight = (t.detach().to(rounded).float().contiguous().requires_grad_() for t in operands)
    with plain_kernels():
        if isinstance(layer, nn.Linear):
            y = F.linear(x, weight)
        else:
            y = layer._conv_forward(x, weight, None)
        return torch.autograd.grad(y, (x, weight), of_output.float().contiguous())


# ------------------------------------------------------------ the loop


def train(group: Group, stop: int, *, peak: float, level: int = 0) -> Iterator[int]:
    """Train the members of a group to step `stop`; yields the number of steps after every step.

    Each starts at its own member.step, and its result does not depend on its company. One whose
    loss is not finite stops there (member.failed) and the others go on.
    peak  learning rate before the first milestone
    """
    members, recipe, per_epoch = group.members, group.recipe, group.per_epoch
    first = min(m.step for m in members)
    for m in members:
        m.net.train()
    name = members[0].name + (f" and {len(members) - 1} more" if len(members) > 1 else "")
    for step in tqdm(range(first, stop), name, stop, initial=first, disable=None, leave=False):
        epoch, i = divmod(step, per_epoch)
        if step == first or i == 0:
            group.load_epoch(level, epoch)
        active = [k for k, m in enumerate(members) if m.step == step and not m.failed]
        if active and not group.prepared:
            group.examples.copy_(group.tables[:, :, i])
            group.prepare(active[0])
        # of update number `step`, counted from 0
        group.rate.fill_(peak * recipe["lr_decay"] ** sum(m <= step for m in recipe["milestones"]))
        group.examples.copy_(group.tables[:, :, i])
        if step == stop - per_epoch:  # the loss reported is the mean over the last epoch
            for k in active:
                members[k].loss_sum.zero_()
                members[k].loss_steps = 0
        group.steps(active)
        for m in (members[k] for k in active):
            m.loss_steps += 1
            m.step = step + 1
            # on a GPU looking at the loss waits for it
            if not m.loss_sum.is_cuda or m.step % 200 == 0 or m.step == stop:
                m.failed = not math.isfinite(m.loss_sum)
            if m.step == stop:  # no loss has seen the last update
                m.failed = m.failed or not m.finite()
        yield step + 1


@torch.no_grad()
def predict(net: nn.Module, data: Data, images: Tensor) -> Tensor:
    """Logits [n, classes] float32 in eval mode of images [n, H, W, C] uint8, not augmented."""
    training = net.training
    net.eval()
    # 128 of 32x32 fit a CPU's cache
    size = 1000 if images.is_cuda else 2**17 // images[0, :, :, 0].numel()
    logits = torch.cat([net(data.normalise(part)) for part in images.split(size)])
    net.train(training)  # the caller may be in the middle of a training
    return logits


def evaluate(net: nn.Module, data: Data) -> tuple[float, float]:
    """(accuracy as a fraction, mean cross-entropy) on the test set."""
    logits = predict(net, data, data.test)
    accuracy = (logits.argmax(1) == data.test_labels).double().mean().item()
    return accuracy, F.cross_entropy(logits.double(), data.test_labels).item()


# ------------------------------------------------------------ files


def sha256(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()


def to_json(value: object, indent: int | None = None) -> bytes:
    return json.dumps(value, sort_keys=True, allow_nan=False, indent=indent).encode()


@contextlib.contextmanager
def reading(path: Path | str) -> Iterator[None]:
    """Whatever goes wrong while a file is read and decoded becomes one line that names it."""
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{error.filename or path}: {error.strerror or error}") from None
    except Exception as error:  # a decoder fed with a damaged file raises anything
        raise InputError(
            f"{path}: not readable ({type(error).__name__}: {str(error)[:200]})"
        ) from None


def atomic_write(path: Path, content: bytes) -> None:
    """Write a file that is either the old one or complete, also after a power loss."""
    # a fixed name: a killed process leaves one at most
    temporary = path.with_name(f".{path.name}.tmp")
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
        raise Failure(
            f"cannot write {path}: {error.strerror}; what was finished before is kept"
        ) from None


def write_csv(path: Path, rows: list) -> Path:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    atomic_write(path, text.getvalue().encode())
    return path


def digest(tensors: dict[str, Tensor], info: dict) -> str:
    """sha256 over names, dtypes, shapes and bytes of tensors, and over info."""
    parts = [to_json(info)]
    for name, t in sorted(tensors.items()):
        parts += [f"{name} {t.dtype} {list(t.shape)}".encode(), t.numpy().tobytes()]
    return sha256(*parts)


def save_tensors(path: Path, tensors: dict[str, Tensor], info: dict) -> None:
    """Write a safetensors file with one metadata key, `json`: info and a sha256 over everything."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    metadata = {"json": to_json(info | {"sha256": digest(tensors, info)}).decode()}
    atomic_write(path, safetensors.torch.save(tensors, metadata))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Read (tensors, info). InputError: missing, not safetensors, wrong checksum."""
    with reading(path):
        tensors = safetensors.torch.load(path.read_bytes())
        info = load_info(path)
        stored = info.pop("sha256", None)
        if stored is not None and stored != digest(tensors, info):
            raise ValueError("damaged, its content does not match its sha256")
    return tensors, info


def load_info(path: Path) -> dict:
    """What the metadata of a safetensors file say, its sha256 included and not verified."""
    with reading(path), safetensors.safe_open(path, "np") as f:
        return dict(json.loads((f.metadata() or {}).get("json", "{}")))


def save_array(path: Path, array: np.ndarray, info: dict) -> None:
    """Write path (.npy) and, first, its sidecar .json: info and the sha256 of the .npy."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    path.unlink(missing_ok=True)  # never an old array under a new sidecar
    sidecar = to_json(info | {"sha256": sha256(buffer.getvalue())}, indent=1)
    atomic_write(path.with_suffix(".json"), sidecar + b"\n")
    atomic_write(path, buffer.getvalue())


def load_array(path: Path, dtype: type, shape: tuple, fingerprint: str) -> tuple[np.ndarray, dict]:
    """An .npy file of a dtype and shape (None: any length), and what its sidecar says, {} if none.

    InputError: other dtype or shape, values not finite, or a sidecar about another array or data
    set.
    """
    with reading(path):
        content = path.read_bytes()
        array = np.load(io.BytesIO(content), allow_pickle=False)
        if array.dtype != dtype:
            raise ValueError(f"dtype {array.dtype}, expected {np.dtype(dtype)}; see array.astype")
        if array.ndim != len(shape) or any(n not in (None, m) for n, m in zip(shape, array.shape)):
            raise ValueError(f"shape {list(array.shape)}, expected {list(shape)}")
        if not np.isfinite(array).all():
            raise ValueError("has values that are not finite")
    sidecar = path.resolve().with_suffix(".json")
    if not sidecar.exists():  # an array of the user's own
        print(
            f"note: no .json beside {path}: its labels are clean but for --label-noise",
            file=sys.stderr,
        )
        return array, {}
    with reading(sidecar):
        info = dict(json.loads(sidecar.read_text()))
        LABEL_NOISE(str(info.get("label_noise", 0)))
        SEED(str(info.get("noise_seed", 0)))
    if "made_by" in info:  # else it is a user's own
        check_version(path, info)
    if info.get("sha256", sha256(content)) != sha256(content):
        raise InputError(f"{path}: does not match the sha256 in the .json beside it")
    if info.get("fingerprint", fingerprint) != fingerprint:
        raise InputError(
            f"{path}: made for other data ({info.get('dataset')}), its fingerprint differs"
        )
    return array, info


def check_version(path: Path, info: dict) -> None:
    """InputError if a file was made by a version of this toolkit whose numbers differ from ours."""
    version = info.get("version", "before 1")
    if version != VERSION:
        raise InputError(
            f"{path}: made by version {version} of this toolkit, this is version {VERSION}; "
            "the same settings give other numbers now, so use another folder"
        )


# what files say beside the settings that decide the result
RECORDED = ("recipe", "row", "made_by", "sha256")


def refuse_difference(path: Path, found: dict, wanted: dict) -> None:
    """InputError naming every setting in which the file at path differs from what is asked for now.

    A setting that one side does not know counts as None there: so an option of your own makes a
    difference.
    """
    check_version(path, found)
    differ = [
        key for key in wanted | found if key not in RECORDED and found.get(key) != wanted.get(key)
    ]
    if differ:
        said = [
            f"{k} {found.get(k, 'unknown')} there, {wanted.get(k, 'unknown')} now" for k in differ
        ]
        raise InputError(
            f"{path} exists with other settings: {'; '.join(said)} (--force starts over)"
        )


def lock(path: Path, wait: bool = False) -> io.TextIOBase:
    """Hold path until this process ends or the result is closed; makes its folder.

    The file stays: unlinking it would race. InputError: another process holds it, or nothing can be
    written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = open(path, "a+")  # noqa: SIM115
    except OSError as error:
        raise InputError(f"cannot write to {path.parent}: {error.strerror}") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        handle.seek(0)
        raise InputError(
            f"{path.parent} is in use by {handle.read().strip() or 'another process'}"
        ) from None
    handle.truncate(0)
    handle.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    handle.flush()
    return handle


def open_output(
    args: argparse.Namespace, lock_at: Path, wanted: dict, found: Callable
) -> io.IOBase | None:
    """The lock to hold while --out is made; None if it is there with these settings, which is said.

    found  reads the settings of the file there. InputError: they differ, or another process is at
           work.
    """
    if args.out.exists() and not args.force:  # before any lock: it may lie on a read-only disk
        refuse_difference(args.out, found(), wanted)
        print(f"already done: {args.out}")
        return None
    return lock(lock_at)


def save_divergence(folder: Path, **about: object) -> None:
    """Keep recipe, settings, level and step of a loss that was not finite.

    No verdict may pass over it.
    """
    atomic_write(folder / "diverged.json", to_json(about, indent=1) + b"\n")


# what imp.py writes
OF_IMP = re.compile(r"(level\d{2,}|state)\.safetensors|diverged\.json|results\.csv")


# ------------------------------------------------------------ command line


def within(interval: str, kind: type = float) -> Callable[[str], float]:
    """An argparse type: a number of a kind in an interval such as "[0, 1)"; never NaN."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    closed = [end for bracket, end in (("[", low), ("]", high)) if bracket in interval]

    def parse(text: str) -> float:
        value = kind(text)
        if not (low < value < high or value in closed):
            raise argparse.ArgumentTypeError(f"must be in {interval}, not {text}")
        return value

    parse.__name__ = kind.__name__  # argparse: invalid float value: 'x'
    return parse


COUNT, SEED, LABEL_NOISE = within("[1, inf)", int), within("[0, 4294967296)", int), within("[0, 1]")
HYPERPARAMETERS = {  # of every training: argparse type, meaning and unit
    "depth": (within("[8, 1500)", int), "layers of the ResNet, 6n + 2"),
    "width": (within("[1, 4096]", int), "channels of the first stage"),
    "batch_size": (COUNT, "images"),
    "lr": (within("(0, 1e30)"), "learning rate of scoring and of every IMP level"),
    "pretrain_lr": (within("(0, 1e30)"), "learning rate of pre-training"),
    "momentum": (within("[0, 1)"), "momentum of SGD"),
    "weight_decay": (within("[0, 1e30)"), "weight decay, on every parameter"),
    "milestones": (COUNT, "optimizer steps at which the rate decays, ascending"),
    "lr_decay": (within("(0, 1]"), "factor of the rate at each milestone"),
    "total_steps": (COUNT, "optimizer steps of a full training"),
}
RECIPE = {
    "preset",
    "dataset",
    "fingerprint",
    "classes",
    "image_size",
    "precision",
    "seed",
    "version",
    *HYPERPARAMETERS,
    *PRETRAINING,
}


class Parser(argparse.ArgumentParser):
    """A script's docstring is its help, and an error is one line without the usage."""

    def __init__(self, doc: str):
        super().__init__(
            description=doc,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> None:
        raise InputError(message.removeprefix("argument "))


def add_dataset_flags(parser: Parser) -> None:
    add = parser.add_argument
    add(
        "--preset",
        choices=PRESETS,
        help="experiment of the paper (default: digits, or what --dataset says)",
    )
    add(
        "--dataset",
        choices=READERS,
        help="default: the preset's; folder reads train/CLASS/*, test/CLASS/*",
    )
    add(
        "--label-noise",
        type=LABEL_NOISE,
        help="share of labels drawn anew (default: the input's, else 0)",
    )
    add(
        "--noise-seed",
        type=SEED,
        help="which draw of the label noise (default: the input's, else 0)",
    )


def add_training_flags(parser: Parser, presets: dict = PRESETS) -> None:
    add = parser.add_argument
    for name, (kind, meaning) in HYPERPARAMETERS.items():
        nargs, text = (
            "*" if name == "milestones" else None,
            f"{meaning} ({defaults(name, presets)})",
        )
        add("--" + name.replace("_", "-"), type=kind, nargs=nargs, metavar="X", help=text)
    add(
        "--precision",
        choices=["auto", "fp32", "bf16"],
        help=f"auto: bf16 if fast ({defaults('precision')})",
    )


def add_place_flags(parser: Parser, *, device: bool = True, at_once: bool = False) -> None:
    add = parser.add_argument
    add(
        "--data-dir",
        type=Path,
        default=Path("data"),
        help="folder of the data set's files (default: data)",
    )
    if device:
        add("--device", default="auto", help="auto, cpu, cuda or cuda:i (default: a GPU if any)")
    if at_once:
        add(
            "--at-once",
            type=COUNT,
            help="networks trained side by side (default: 8 on a GPU, 1 on a CPU)",
        )
    add("--force", action="store_true", help="start over where the output exists")


def defaults(name: str, presets: dict = PRESETS) -> str:
    """What presets say, for a help text: the paper's CIFAR-10 value, and which of them differ."""
    others = [
        f", {key}: {preset[name]}"
        for key, preset in presets.items()
        if preset[name] != CIFAR10[name]
    ]
    return f"default: {CIFAR10[name]}{''.join(others)}"


def check_output(path: Path, suffix: str) -> None:
    if path.suffix != suffix or path.is_dir():
        raise InputError(f"--out must be a file that ends in {suffix}, not {path}")


def resolve_preset(args: argparse.Namespace, presets: dict = PRESETS) -> dict:
    """Preset and data set by name; flags not given get the preset's values.

    Without --preset, the data set names it.
    """
    if args.dataset == "folder" and not args.preset:
        raise InputError("--dataset folder needs --preset")
    preset = args.preset or args.dataset or "digits"
    for name, value in presets[preset].items():
        if getattr(args, name, value) is None:
            setattr(args, name, value)
    return {"preset": preset, "dataset": args.dataset}


def resolve_recipe(
    args: argparse.Namespace, device: torch.device, made: dict, presets: dict = PRESETS
) -> dict:
    """Preset, data set, hyperparameters and precision; checked before any data are read.

    made  the recipe in the output, or in its progress file, if a call before has begun it; else {}
    """
    recipe = resolve_preset(args, presets) | {name: getattr(args, name) for name in HYPERPARAMETERS}
    if recipe["depth"] % 6 != 2:
        raise InputError(f"--depth must be 6n + 2, not {recipe['depth']}")
    if recipe["milestones"] != sorted(set(recipe["milestones"])):
        raise InputError(f"--milestones must be ascending, not {recipe['milestones']}")
    recipe["precision"] = resolve_precision(args.precision, device, made)
    return recipe | {"version": VERSION} | OWN


def check_recipe(path: Path, info: dict) -> dict:
    """The recipe in a file's metadata; InputError names the file and what is wrong with it."""
    with reading(path):
        recipe = dict(info.get("recipe", {}))
        if recipe:
            check_version(path, recipe)
        if missing := sorted(RECIPE - recipe.keys()):
            raise ValueError(
                f"not a file of this pretrain.py, its recipe lacks {', '.join(missing)}"
            )
        own = {key: value for key, value in recipe.items() if key not in RECIPE}
        if own != OWN:
            raise ValueError(f"made by other code: {own} there, {OWN} here")
        kinds = {name: kind for name, (kind, _) in HYPERPARAMETERS.items()}
        kinds |= {
            "seed": SEED,
            "preset": PRESETS.__getitem__,
            "dataset": READERS.__getitem__,
            "rewind_step": within(f"[0, {recipe['total_steps']}]", int),
        }
        for key, kind in kinds.items():
            for value in recipe[key] if key == "milestones" else [recipe[key]]:
                kind(str(value))
    return recipe


def start_name(recipe: dict) -> str:
    """A starting point in short, as run_all.sh names folders: easy-3200-t200.

    It is the same for all replicates.
    """
    if not recipe["rewind_step"]:
        return "all-t0"
    balanced = "-balanced" if recipe["class_balanced"] and recipe["scheme"] != "random" else ""
    size = "" if recipe["subset_size"] is None else f"-{recipe['subset_size']}"
    noise = f"-noise{100 * recipe['label_noise']:g}" if recipe["label_noise"] else ""
    rate = recipe["pretrain_lr"]
    lr = "" if rate == PRESETS[recipe["preset"]]["pretrain_lr"] else f"-lr{rate:g}"
    more = "".join(
        f"-{key}={recipe[key]}"
        for key, usual in (("score", "el2n"), ("noise_seed", 0))
        if recipe[key] not in (None, usual)
    )
    return f"{recipe['scheme']}{balanced}{size}-t{recipe['rewind_step']}{noise}{lr}{more}"


def resolve_noise(args: argparse.Namespace, sidecar: dict) -> dict:
    """label_noise, noise_seed and labels_sha256 from the flags or the input's sidecar.

    These two must not contradict each other.
    """
    if sidecar.get("label_noise") == 0:
        sidecar = {"label_noise": 0.0}  # its seed means nothing
    noise = {}
    for name in ("label_noise", "noise_seed"):
        given = getattr(args, name)
        noise[name] = sidecar.get(name, 0 if given is None else given)
        if given not in (None, noise[name]):
            flag = "--" + name.replace("_", "-")
            raise InputError(f"{flag} {given} contradicts the input, made with {noise[name]}")
    share = float(noise["label_noise"])
    # labels_sha256: of labels of a user's own, which no stage takes so far
    return {
        "label_noise": share,
        "noise_seed": noise["noise_seed"] if share else 0,
        "labels_sha256": None,
    }


def resolve_device(name: str) -> torch.device:
    """The device by name, set up so that the same command gives the same numbers."""
    # Read when CUDA starts. cuBLASLt's workspace (KiB) is part of cuBLAS's, and torch warns if it
    # is larger.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    os.environ.setdefault("CUBLASLT_WORKSPACE_SIZE", "128")
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise InputError(f"--device must be auto, cpu, cuda or cuda:i, not {name}")
    device = torch.device(name)
    if device.type == "cuda":
        if (device.index or 0) >= torch.cuda.device_count():
            raise InputError(f"--device {name}: no such GPU, {torch.cuda.device_count()} found")
        torch.cuda.set_device(device.index or 0)  # streams and graphs are made on the current one
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    return device


def environment_flag(name: str) -> bool:
    """Is a variable such as NO_GRAPH set, to something else than 0?"""
    return os.environ.get(name, "0") not in ("", "0")


def has_fast_bf16(device: torch.device) -> bool:
    """Does this hardware multiply bf16 faster than fp32?"""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def resolve_precision(precision: str, device: torch.device, made: dict) -> str:
    """fp32 or bf16. `auto` is that of the recipe in a file made before, else what is fast here.

    So what one machine has begun or finished is the same work on another.
    """
    if precision != "auto":
        return precision
    return made.get("precision", "bf16" if has_fast_bf16(device) else "fp32")


def check_precision(precision: str, device: torch.device, source: Path | None = None) -> None:
    """InputError where the hardware is slow at a precision.

    source  the unfinished file that has it, if there is one
    """
    if precision == "bf16" and not has_fast_bf16(device):
        there = f"{source} was begun in bf16, which" if source else "--precision bf16"
        instead = (
            "go on where it was begun, or make the start anew with --precision fp32 "
            "in another folder"
            if source
            else "use fp32"
        )
        raise InputError(
            f"{there} needs a GPU of compute capability 8.0, or a CPU with AMX or AVX512-BF16: "
            f"{instead}"
        )


def describe(device: torch.device, precision: str) -> str:
    """On what this process trains: device or instruction sets, threads, precision."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {precision}"
    threads = torch.get_num_threads()
    return f"{processor()}, {threads} thread{'s' if threads > 1 else ''}, {precision}"


def processor() -> str:
    """Instruction sets of torch's kernels and of oneDNN's, each as far as its variable allows."""
    sets = {
        "AMX": torch.cpu._is_amx_tile_supported,
        "AVX512_BF16": torch.cpu._is_avx512_bf16_supported,
        "AVX512": torch.cpu._is_avx512_supported,
        "AVX2": torch.cpu._is_avx2_supported,
    }
    of_machine = next((name for name, supported in sets.items() if supported()), platform.machine())
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA")
    onednn = f"at most {limit}" if limit else of_machine
    return f"CPU, torch {torch.backends.cpu.get_cpu_capability()}, oneDNN {onednn}"


def say_where(device: torch.device, precision: str) -> None:
    """Said once by every stage that trains, before it does."""
    print(f"training on: {describe(device, precision)}", flush=True)


def made_by(device: torch.device) -> dict:
    """What is recorded but never compared."""
    cuda = device.type == "cuda"
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    unproved = {"NO_PROOF": True} if environment_flag("NO_PROOF") else {}
    return {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "processor": torch.cuda.get_device_name(device) if cuda else processor(),
        "host": socket.gethostname(),
        "command": command,
    } | unproved


def on_signals(received: list | None = None) -> dict:
    """Let SIGTERM and SIGINT raise Stopped, or only add their number to a list.

    Returns the old handlers.
    """

    def handle(number: int, frame: object) -> None:
        # A second SIGINT ends us. A second SIGTERM does not: Slurm sends it to us and to our
        # parent, who passes it on.
        signal.signal(number, signal.SIG_IGN if number == signal.SIGTERM else signal.SIG_DFL)
        if received is None:
            raise Stopped(number)
        received.append(number)

    return {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}


def cli(main: Callable[[list[str] | None], None], argv: list[str] | None = None) -> int:
    """Run a stage's main and turn what it raises into one line on stderr and the exit status."""
    # set explicitly: a background job of a shell inherits an ignored SIGINT
    before = on_signals()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a terminal that has no UTF-8 gets "?"
    name = Path(main.__code__.co_filename).name
    try:
        main(argv)
        return 0
    except Stopped as stopped:
        message, status = (
            f"stopped by {signal.Signals(stopped.args[0]).name}",
            128 + stopped.args[0],
        )
    except InputError as error:
        message, status = f"error: {error}", 2
    except (Failure, OSError) as error:
        message, status = str(error), 1
    except RuntimeError as error:
        if not OUT_OF_MEMORY.search(str(error)):
            raise
        message, status = "out of memory: lower --at-once or --batch-size", 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    # one line, whatever a path holds
    print(f"{name}: {' '.join(message.split())}", file=sys.stderr)
    return status
