"""What makes a script a stage: presets, settings, files, command line.

Run alone, it prints a preset as name=value lines, quoted for the shell; run_all.sh reads them.

python common.py cifar10

A stage parses its arguments (Parser, add_..._flags) and fills in its preset (fill_from_preset,
resolve_...). If its output is there with the same settings, it says so and ends; with others,
refuse_difference raises. Else it locks the output (lock) and writes files that the next stage reads
(save_..., load_...). cli turns what a stage raises into one line and an exit status. This module
needs no torch.
"""

import argparse
import contextlib
import csv
import errno
import fcntl
import functools
import hashlib
import io
import json
import os
import platform
import re
import shlex
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

# ------------------------------------------------------------ presets (paper, Table 1 and App. A)

CIFAR10 = dict(
    dataset="cifar10", depth=20, width=16, batch_size=128, lr=0.1, pretrain_lr=0.4, momentum=0.9,
    weight_decay=1e-4, milestones=[31200, 46800], lr_decay=0.1, total_steps=62400, t_star=400,
    networks=10, el2n_steps=7800, scoring={}, prune_fraction=0.2, levels=16, precision="auto",
    pad=4, flip=True,
    # What run_all.sh runs: seeds, the subset sizes of figures 2, 3, 5 and 7, and where it looks for
    # t*. The paper does not say the size of figure 2. 3200 is our reading of the published curves:
    # there it loses least at the level where it loses most, and 12800 loses least on average.
    seeds=[0, 1, 2, 3], subset_size=3200, noisy_subset_size=2048,
    sizes=[256, 512, 1024, 2048, 3200, 6400, 12800, 25600], noisy_sizes=[512, 1024, 2048, 3200],
    t_search=[100, 200, 400, 800, 1600], lr_search=[0.1, 0.2, 0.4],
)  # fmt: skip

PRESETS = {
    # The demonstration was found by a search on seeds 100 to 105; see RESULTS.md.
    "digits": CIFAR10 | dict(
        dataset="digits", depth=8, width=12, batch_size=64, lr=1.2, pretrain_lr=1.2,
        milestones=[112, 144], total_steps=160, t_star=20, networks=8, el2n_steps=100,
        scoring=dict(width=16, lr=0.05), prune_fraction=0.488, levels=5, precision="fp32",
        pad=1, flip=False, seeds=list(range(8, 23)), subset_size=128, noisy_subset_size=128,
        sizes=[64, 128, 256, 512], noisy_sizes=[128], t_search=[4, 10, 20, 40], lr_search=[1.2],
    ),
    # CIFAR-10 for a laptop: two epochs a training, t* from a search on seeds 100 to 102.
    "cifar10-small": CIFAR10 | dict(
        depth=14, width=8, batch_size=64, lr=0.3, pretrain_lr=0.3, milestones=[1000, 1300],
        total_steps=1500, t_star=100, networks=4, el2n_steps=1500, scoring=dict(lr=0.1),
        prune_fraction=0.488, levels=5, seeds=[0, 1, 2, 3, 4, 5], noisy_subset_size=3200,
        sizes=[3200], t_search=[50, 100, 200, 400], lr_search=[0.3],
    ),
    "cifar10": CIFAR10,
    "cifar100": CIFAR10 | dict(
        dataset="cifar100", depth=32, t_star=800, subset_size=2048,
        sizes=[256, 512, 1024, 2048, 3200, 6400],
    ),
    "cinic10": CIFAR10 | dict(
        dataset="cinic10", depth=56, batch_size=256, pretrain_lr=0.1, milestones=[15625, 23440],
        total_steps=31250, t_star=800, el2n_steps=8000, levels=12, subset_size=51200,
        sizes=[12800, 25600, 51200, 102400],
    ),
}  # fmt: skip

# Scoring may use another network: small ones that prune well rank examples unreliably.
SCORING_PRESETS = {name: preset | preset["scoring"] for name, preset in PRESETS.items()}

IMAGE_SIZE = 32  # to which the images of a folder are resized, if nothing else is asked for

DATASETS = ("digits", "cifar10", "folder", "cifar100", "cinic10")  # dataset.py reads them
# This number is raised with every change after which the same settings give other numbers. No stage
# takes up what another version has made.
VERSION = 1

# If you change the network, the optimiser or the like, name the change here, as in
# {"network": "cnn"}. Recipes then carry it, curves are named for it, and no stage takes up what
# other code has made.
OWN = {}

# Settings of pre-training, which IMP does not use: starting points that differ only in these and in
# the seed may be pruned in one call.
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

# The settings that the name or the panel of a curve always says.
KEY = ("scheme", "subset_size", "rewind_step", "label_noise", "pretrain_lr")
# Their values for a start without pre-training: it saw no data, whatever its subset was.
NO_PRETRAINING = {
    "scheme": "init",
    "subset_size": None,
    "rewind_step": 0,
    "label_noise": 0.0,
    "pretrain_lr": 0.0,
}


# ------------------------------------------------------------ errors, random streams


class InputError(Exception):
    """Bad arguments or input: one line on stderr, exit status 2."""


class Failure(Exception):
    """A failure while running: one line on stderr, exit status 1."""


class Stopped(BaseException):
    """A signal arrived and everything is saved: exit status 128 + its number."""


# The purposes of random streams. Two purposes never share numbers, whatever their seeds.
INIT, ORDER, AUGMENT, SUBSET, NOISE, SCORING, PRUNE, SHUFFLE, OTHER_ORDER = range(9)


def rng(purpose: int, seed: int, level: int = 0, epoch: int = 0) -> np.random.Generator:
    """Return the random stream of one purpose, seed, level and epoch.

    The level and the epoch are always part of its key: NumPy pads a shorter key with zeros.
    """
    return np.random.default_rng([purpose, seed, level, epoch])


def seed_of_its_own(purpose: int, seed: int, k: int = 0) -> int:
    """Return a seed that belongs to one purpose.

    It is in [2**32, 2**63), so that no number that a user can choose is equal to it.
    """
    return int(rng(purpose, seed, k).integers(2**32, 2**63))


def prefixed(**parts: dict) -> dict:
    """Join dictionaries: {"conv.weight": t} given as mask becomes {"mask.conv.weight": t}."""
    joined = {}
    for prefix, tensors in parts.items():
        joined |= {f"{prefix}.{name}": t for name, t in tensors.items()}
    return joined


def part(tensors: dict, prefix: str) -> dict:
    """Return one of the dictionaries that prefixed has joined."""
    start = prefix + "."
    return {key.removeprefix(start): t for key, t in tensors.items() if key.startswith(start)}


# what CUDA, cuBLAS and the CPU say
OUT_OF_MEMORY = re.compile("out of memory|ALLOC_FAILED|allocate memory")


# ------------------------------------------------------------ files

# The error numbers of a file system that has no locks, or cannot fsync a folder.
UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)


def sha256(*parts: bytes) -> str:
    """Return the sha256 of these parts, one after another, in hexadecimal."""
    return hashlib.sha256(b"".join(parts)).hexdigest()


def to_json(value: object, indent: int | None = None) -> bytes:
    """Return a value as sorted JSON; ValueError if it has a number that is not finite."""
    return json.dumps(value, sort_keys=True, allow_nan=False, indent=indent).encode()


@contextlib.contextmanager
def reading(path: Path | str) -> Iterator[None]:
    """Turn whatever goes wrong while a file is read and decoded into one line that names it."""
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{error.filename or path}: {error.strerror or error}") from None
    except Exception as error:  # a decoder may raise anything when a file is damaged
        raise InputError(
            f"{path}: not readable ({type(error).__name__}: {str(error)[:200]})"
        ) from None


def atomic_write(path: Path, content: bytes) -> None:
    """Write a file that is either the old one or complete, also after a power loss."""
    # The name is fixed, so that a killed process leaves at most one such file.
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise Failure(
            f"cannot write {path}: {error.strerror}; what was finished before is kept"
        ) from None


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power loss, where the file system can (CIFS cannot)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
    finally:
        os.close(descriptor)


def find_files(root: Path, name: str) -> list[Path]:
    """All files of a name in a folder and below, sorted; links to folders are followed.

    Each real folder counts once, however many links lead to it.
    """
    paths, visited = [], set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:
            subfolders.clear()
            continue
        visited.add(real)
        subfolders.sort()
        if name in files:
            paths.append(Path(folder, name))
    return sorted(paths)


def write_csv(path: Path, rows: list) -> Path:
    """Write rows, of which the first is the header, and return the path."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    atomic_write(path, text.getvalue().encode())
    return path


def digest(tensors: dict[str, np.ndarray], info: dict) -> str:
    """Return the sha256 over names, dtypes (torch's names), shapes and bytes, and over info."""
    parts = [to_json(info)]
    for name, t in sorted(tensors.items()):
        parts += [f"{name} torch.{t.dtype} {list(t.shape)}".encode(), t.tobytes()]
    return sha256(*parts)


def save_tensors(path: Path, tensors: dict[str, np.ndarray], info: dict) -> None:
    """Write a safetensors file; its one metadata key, `json`, holds info and a sha256 over all."""
    # safetensors 0.8.0 stores an array that is not contiguous in another order, without a word.
    tensors = {name: np.asarray(t, order="C") for name, t in tensors.items()}
    metadata = {"json": to_json(info | {"sha256": digest(tensors, info)}).decode()}
    atomic_write(path, safetensors.numpy.save(tensors, metadata))


def load_tensors(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    """Read a safetensors file and return (tensors, info).

    InputError: it is missing, no safetensors file, or does not match its checksum. A file without a
    checksum, which other tools may have written, is taken for what it is.
    """
    with reading(path):
        tensors = safetensors.numpy.load(path.read_bytes())
        info = load_info(path)
        stored = info.pop("sha256", None)
        if stored is not None and stored != digest(tensors, info):
            raise ValueError("damaged, its content does not match its sha256")
    return tensors, info


def load_info(path: Path) -> dict:
    """Return the metadata of a safetensors file; its sha256 is included and not verified."""
    with reading(path), safetensors.safe_open(path, "np") as f:
        return dict(json.loads((f.metadata() or {}).get("json", "{}")))


def save_array(path: Path, array: np.ndarray, info: dict) -> None:
    """Write an array to path (.npy), and before it its sidecar .json: info and a sha256."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    path.unlink(missing_ok=True)  # so that an old array never lies beside a new sidecar
    sidecar = to_json(info | {"sha256": sha256(buffer.getvalue())}, indent=1)
    atomic_write(path.with_suffix(".json"), sidecar + b"\n")
    atomic_write(path, buffer.getvalue())


def read_array(path: Path, dtype: type, shape: tuple) -> tuple[np.ndarray, str]:
    """Read an .npy file of a dtype and shape (None: any length); returns it and its sha256.

    InputError: the file has another dtype or shape, or values that are not finite.
    """
    with reading(path):
        content = path.read_bytes()
        if content[:6] != b"\x93NUMPY":
            what = "an archive such as .npz or .pt" if content[:2] == b"PK" else "something else"
            raise InputError(f"{path}: is {what}, an array that numpy.save wrote is expected")
        array = np.load(io.BytesIO(content), allow_pickle=False)
    if array.dtype != dtype:
        raise InputError(
            f"{path}: dtype {array.dtype}, expected {np.dtype(dtype)} (scores are float32, subsets "
            "and labels int64)"
        )
    if array.ndim != len(shape) or any(n not in (None, m) for n, m in zip(shape, array.shape)):
        raise InputError(
            f"{path}: shape {list(array.shape)}, expected {list(shape)}: is it of other data than "
            "--preset, --dataset and --data-dir say?"
        )
    if not np.isfinite(array).all():
        raise InputError(f"{path}: has values that are not finite")
    return array, sha256(content)


def load_array(path: Path, dtype: type, shape: tuple, fingerprint: str) -> tuple[np.ndarray, dict]:
    """Read an array as read_array does; returns it and what its sidecar says, {} if it has none.

    InputError: the sidecar is about another array or about other images.
    """
    array, hashed = read_array(path, dtype, shape)
    sidecar = path.resolve().with_suffix(".json")
    if not sidecar.exists():  # an array of the user's own
        print(
            f"note: no .json beside {path}, so its labels are taken as clean, if --label-noise or "
            "--labels do not say otherwise",
            file=sys.stderr,
        )
        return array, {}
    with reading(sidecar):
        info = dict(json.loads(sidecar.read_text()))
        LABEL_NOISE(str(info.get("label_noise", 0)))
        SEED(str(info.get("noise_seed", 0)))
        rule = info.get("select", "unnamed")
        if not isinstance(rule, str) or not rule.strip() or rule in ("init", "all"):
            raise ValueError(f"select names the rule; {json.dumps(rule)} is no name of one's own")
    if "made_by" in info:  # a sidecar of a user's own needs no version
        check_version(path, info)
    if info.get("sha256", hashed) != hashed:
        raise InputError(f"{path}: does not match the sha256 in the .json beside it")
    if info.get("fingerprint", fingerprint) != fingerprint:
        size = info.get("image_size")
        what = f"{info.get('dataset')}{f', {size} pixels a side' if size else ''}"
        raise InputError(
            f"{path}: made for other data ({what}) than --preset, --dataset, --data-dir and "
            "--image-size say, its fingerprint differs"
        )
    return array, info


def check_version(path: Path, info: dict) -> None:
    """Raise InputError if a file was made by a version whose numbers differ from ours."""
    version = info.get("version", "before 1")
    if version != VERSION:
        raise InputError(
            f"{path}: made by version {version} of this toolkit, this is version {VERSION}; "
            "the same settings give other numbers now, so use another folder"
        )


# What metadata and sidecars hold beside the settings that decide the result; it is not compared.
RECORDED = ("recipe", "row", "made_by", "sha256", "labels")


def refuse_difference(path: Path, stored: dict, wanted: dict) -> None:
    """Raise InputError if a file was made with other settings than those wanted now; name them.

    A setting that is missing on one side counts as None there, so that an option of a user's own
    makes a difference.
    """
    check_version(path, stored)
    differences = []
    for key in wanted | stored:
        if key not in RECORDED and stored.get(key) != wanted.get(key):
            there, now = stored.get(key, "unknown"), wanted.get(key, "unknown")
            differences.append(f"{key} {there} there, {now} now")
    if differences:
        raise InputError(
            f"{path} exists with other settings: {'; '.join(differences)} (--force starts over)"
        )


def lock(path: Path, wait: bool = False) -> io.TextIOBase:
    """Lock a file, and make its folder; it is held until this process ends or the result is closed.

    The file is never unlinked, since that would race. Where the file system has no locks, a note
    says so and work goes on.

    InputError: another process holds it, or nothing can be written.
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
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        note_no_locks()
    handle.truncate(0)
    handle.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    handle.flush()
    return handle


@functools.cache  # it is said once in a process
def note_no_locks() -> None:
    print(
        "note: this file system has no locks: no two commands may write to one folder at a time",
        file=sys.stderr,
    )


def made_by() -> dict:
    """Return what is recorded for information and never compared: versions, host, command."""
    return {
        "numpy": np.__version__,
        "python": platform.python_version(),
        "host": socket.gethostname(),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def save_divergence(folder: Path, **about: object) -> None:
    """Write down that a loss was not finite, with recipe, settings, level and step.

    verdicts.py reads it, so that a replicate that diverged is named and not merely missing.
    """
    atomic_write(folder / "diverged.json", to_json(about, indent=1) + b"\n")


# the names of the files that imp.py writes
OF_IMP = re.compile(r"(level\d{2,}|state)\.safetensors|diverged\.json|results\.csv")


# ------------------------------------------------------------ command line


def within(interval: str, kind: type = float) -> Callable[[str], float]:
    """Return an argparse type: a number of a kind in an interval such as "[0, 1)", never NaN."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    closed = [end for bracket, end in (("[", low), ("]", high)) if bracket in interval]

    def parse(text: str) -> float:
        value = kind(text)
        if not (low < value < high or value in closed):
            raise argparse.ArgumentTypeError(f"must be in {interval}, not {text}")
        return value

    parse.__name__ = kind.__name__  # argparse uses it: "invalid float value: 'x'"
    return parse


COUNT, SEED, LABEL_NOISE = within("[1, inf)", int), within("[0, 4294967296)", int), within("[0, 1]")

# The hyperparameters of every training: argparse type, meaning and unit.
HYPERPARAMETERS = {
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

# The keys that every recipe has.
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
    """A parser whose help is the docstring of a script, and whose errors are one line."""

    def __init__(self, doc: str):
        super().__init__(
            description=doc,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> None:
        raise InputError(message.removeprefix("argument "))


def add_dataset_flags(parser: Parser) -> None:
    """Add the flags that say which images and which labels."""
    add = parser.add_argument
    add(
        "--preset",
        choices=PRESETS,
        help="experiment of the paper (default: digits, or what --dataset says)",
    )
    add(
        "--dataset",
        choices=DATASETS,
        help="default: the preset's; folder reads train/CLASS/*, test/CLASS/*",
    )
    add_image_flags(parser)
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


def add_image_flags(parser: Parser) -> None:
    """Add --image-size and --labels, which dataset.py has too."""
    add = parser.add_argument
    add(
        "--image-size",
        type=within("[4, 2048]", int),
        metavar="X",
        help=f"pixels of a side, to which --dataset folder resizes bilinearly ({IMAGE_SIZE})",
    )
    add(
        "--labels",
        type=Path,
        help="labels.npy, int64 [N]: learn these, such as human ones, in scoring and pre-training "
        "(default: the input's, else the data set's own)",
    )


def add_training_flags(parser: Parser, presets: dict = PRESETS) -> None:
    """Add a flag for each hyperparameter, and --precision."""
    add = parser.add_argument
    for name, (kind, meaning) in HYPERPARAMETERS.items():
        add(
            "--" + name.replace("_", "-"),
            type=kind,
            nargs="*" if name == "milestones" else None,
            metavar="X",
            help=f"{meaning} ({defaults(name, presets)})",
        )
    add(
        "--precision",
        choices=["auto", "fp32", "bf16"],
        help=f"auto: bf16 if fast ({defaults('precision')})",
    )


def add_place_flags(parser: Parser, *, device: bool = True, at_once: bool = False) -> None:
    """Add the flags that say where: folder of the data, device, networks side by side, --force."""
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
    """Say in a help text what the default is: the paper's for CIFAR-10, and presets that differ."""
    text = f"default: {CIFAR10[name]}"
    for preset_name, preset in presets.items():
        if preset[name] != CIFAR10[name]:
            text += f", {preset_name}: {preset[name]}"
    return text


def check_output(path: Path, suffix: str) -> None:
    """Raise InputError unless --out has this suffix and is no folder."""
    if path.suffix != suffix or path.is_dir():
        raise InputError(f"--out must be a file that ends in {suffix}, not {path}")


def fill_from_preset(args: argparse.Namespace, presets: dict = PRESETS) -> None:
    """Give every flag of args that was not given the preset's value, the preset itself included.

    Without --preset, the data set names it. InputError: a folder of images names none.
    """
    if args.preset is None and args.dataset == "folder":
        raise InputError(
            "--dataset folder needs --preset, from which the other settings come; for few or small "
            "images take cifar10-small"
        )
    if args.preset is None:
        args.preset = args.dataset or "digits"
    for name, value in presets[args.preset].items():
        if getattr(args, name, value) is None:
            setattr(args, name, value)
    check_image_size(args.dataset, args.image_size)


def check_image_size(dataset: str, size: int | None) -> None:
    """Raise InputError if a size is asked for images that have one."""
    if size is not None and dataset != "folder":
        raise InputError(f"--image-size is for --dataset folder; the images of {dataset} have one")


def resolve_recipe(args: argparse.Namespace, presets: dict = PRESETS) -> dict:
    """Return preset, data set and hyperparameters, checked before any data are read."""
    fill_from_preset(args, presets)
    recipe = {name: getattr(args, name) for name in ("preset", "dataset", *HYPERPARAMETERS)}
    if recipe["depth"] % 6 != 2:
        raise InputError(f"--depth must be 6n + 2, not {recipe['depth']}")
    if recipe["milestones"] != sorted(set(recipe["milestones"])):
        raise InputError(f"--milestones must be ascending, not {recipe['milestones']}")
    return recipe | {"version": VERSION} | OWN


def check_recipe(path: Path, info: dict) -> dict:
    """Return the recipe in the metadata of a file.

    InputError: it lacks a key, has a value that is not allowed, or was made by other code.
    """
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
        if recipe["preset"] not in PRESETS or recipe["dataset"] not in DATASETS:
            raise ValueError(f"no preset or data set: {recipe['preset']}, {recipe['dataset']}")
        # An argparse type raises for a value that is not allowed.
        for name, (parse, _) in HYPERPARAMETERS.items():
            for value in recipe[name] if name == "milestones" else [recipe[name]]:
                parse(str(value))
        SEED(str(recipe["seed"]))
        within(f"[0, {recipe['total_steps']}]", int)(str(recipe["rewind_step"]))
    return recipe


def start_name(recipe: dict) -> str:
    """Return the name of a starting point as run_all.sh names folders, such as easy-3200-t200.

    It is the same for all replicates.
    """
    if not recipe["rewind_step"]:
        return "all-t0"
    name = recipe["scheme"]
    if recipe["class_balanced"] and recipe["scheme"] != "random":
        name += "-balanced"
    if recipe["subset_size"] is not None:
        name += f"-{recipe['subset_size']}"
    name += f"-t{recipe['rewind_step']}"
    if recipe["label_noise"]:
        name += f"-noise{100 * recipe['label_noise']:g}"
    if recipe["labels_sha256"]:
        name += f"-labels{recipe['labels_sha256'][:4]}"
    if recipe["pretrain_lr"] != PRESETS[recipe["preset"]]["pretrain_lr"]:
        name += f"-lr{recipe['pretrain_lr']:g}"
    if recipe["score"] not in (None, "el2n"):
        name += f"-score={recipe['score']}"
    if recipe["noise_seed"]:
        name += f"-noise_seed={recipe['noise_seed']}"
    return name


def replicate(info: dict) -> tuple[int, dict]:
    """Return the seed of a replicate, and the settings that it shares with all replicates.

    info  what a level file or diverged.json says
    """
    settings = info["recipe"] | {key: v for key, v in info.items() if key not in RECORDED}
    for key in ("rewind_sha256", "masks_sha256"):  # every replicate has its own
        settings.pop(key, None)
    seed = settings.pop("seed")
    if masks := settings.get("masks"):
        # A run under the masks of another counts as the replicate that made them.
        seed = masks["seed"]
        settings |= {"masks": masks["setting"], "same_start": masks["same_start"]}
    if settings["rewind_step"] == 0:
        return seed, settings | dict.fromkeys(PRETRAINING) | NO_PRETRAINING
    if settings["scheme"] not in ("easy", "hard", "custom") and settings["score"] is None:
        settings["subset_sha256"] = None  # chance chose it, for each seed anew
    return seed, settings


def resolve_noise(args: argparse.Namespace, sidecar: dict) -> dict:
    """Return label_noise, noise_seed and labels_sha256 from the flags or the input's sidecar.

    labels_sha256 is that of the sidecar; dataset.labels_to_learn fills in that of --labels.
    InputError: a flag contradicts the sidecar, or the labels would be given twice.
    """
    labels_sha256 = sidecar.get("labels_sha256")
    if args.labels and sidecar.get("labels_sha256", "not said") is None:
        raise InputError(f"--labels {args.labels} contradicts the input, made without --labels")
    if sidecar.get("label_noise") == 0:
        sidecar = {"label_noise": 0.0}  # without noise, its seed means nothing
    noise = {}
    for name in ("label_noise", "noise_seed"):
        given = getattr(args, name)
        noise[name] = sidecar.get(name, 0 if given is None else given)
        if given not in (None, noise[name]):
            flag = "--" + name.replace("_", "-")
            raise InputError(f"{flag} {given} contradicts the input, made with {noise[name]}")
    share = float(noise["label_noise"])
    if share and (args.labels or labels_sha256):
        raise InputError("--label-noise and --labels exclude each other")
    return {
        "label_noise": share,
        "noise_seed": noise["noise_seed"] if share else 0,
        "labels_sha256": labels_sha256,
    }


def labels_file(args: argparse.Namespace, sidecar: dict, source: Path | None) -> Path | None:
    """Return where labels of the user's own are: --labels, or what the sidecar of source says."""
    if args.labels or not sidecar.get("labels"):
        return args.labels
    return source.parent / sidecar["labels"]


def place_of(file: Path | None, out: Path) -> str | None:
    """Return a file's path relative to the folder of an output, so that both may move."""
    return None if file is None else os.path.relpath(file.resolve(), out.resolve().parent)


def environment_flag(name: str) -> bool:
    """Return whether a variable such as NO_GRAPH is set, to something else than 0."""
    return os.environ.get(name, "0") not in ("", "0")


def on_signals(received: list | None = None) -> dict:
    """Let SIGTERM and SIGINT raise Stopped, or append their number to a list if there is one.

    Returns the old handlers.
    """

    def handle(number: int, frame: object) -> None:
        # A second SIGINT ends the process. A second SIGTERM does not: Slurm sends it to the process
        # and to its parent, which passes it on.
        signal.signal(number, signal.SIG_IGN if number == signal.SIGTERM else signal.SIG_DFL)
        if received is None:
            raise Stopped(number)
        received.append(number)

    return {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}


def cli(main: Callable[[list[str] | None], None], argv: list[str] | None = None) -> int:
    """Run a stage's main and turn what it raises into one line on stderr and the exit status."""
    # A background job of a shell inherits an ignored SIGINT, so the handlers are set in any case.
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
    except BrokenPipeError:
        message, status = "stopped, as nothing reads its output any more", 1
    except (Failure, OSError) as error:
        message, status = str(error), 1
    except RuntimeError as error:
        if not OUT_OF_MEMORY.search(str(error)):
            raise
        message, status = "out of memory: lower --at-once or --batch-size", 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    # A path may hold line breaks, but the message is one line.
    print(f"{name}: {' '.join(message.split())}", file=sys.stderr)
    return status


def shell_assignments(preset: dict) -> list[str]:
    """Return a name=value line for each entry of a preset; a list becomes words in quotes."""
    lines = []
    for name, value in preset.items():
        if name == "scoring":  # what differs for score_el2n.py, as in scoring_lr=0.05
            lines += shell_assignments({f"scoring_{key}": v for key, v in value.items()})
            continue
        words = value if isinstance(value, list) else [value]
        lines.append(f"{name}={shlex.quote(' '.join(map(str, words)))}")
    return lines


def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("preset", choices=PRESETS, help="experiment of the paper, or a small one")
    print(*shell_assignments(PRESETS[parser.parse_args(argv).preset]), sep="\n")


if __name__ == "__main__":
    sys.exit(cli(main))
