"""Choose the examples that pre-training may see: random, easiest or hardest (paper, Section 3).

reads   the training labels, and for easy and hard scores.npy (float32 [N], low is easy)
writes  subset.npy (int64 [M], ascending indices into the training set), subset.json (how it was
        made)
python make_subset.py --preset cifar10 --select easy --size 3200 --scores el2n.npy --out easy.npy

Which classes would easy and hard subsets leave out? --classes-table writes how many examples of
each class are among the easiest and the hardest, at every size of the preset or of --sizes:

python make_subset.py --preset cifar10 --scores el2n.npy --classes-table figures/classes.csv

Scores of your own are such an .npy, with a .json beside it that names them: {"select": "margin"}.
Negate them if high is good. Ties go by index, so give coarse scores a little noise, and of
forgetting counts give an example that was never learned the highest.
"""

import argparse
import itertools
import sys
from pathlib import Path

import numpy as np

import common
import dataset
from common import InputError

# What --select offers beside random: the examples for which such a function is lowest are taken. A
# rule of your own is one line.
RULES = {"easy": lambda scores: scores, "hard": lambda scores: -scores}


def select(values: np.ndarray, size: int) -> np.ndarray:
    """Return the `size` examples of lowest value, [M] int64 ascending; ties go by index."""
    return np.sort(np.argsort(values, kind="stable")[:size])


def select_balanced(
    values: np.ndarray, labels: np.ndarray, names: list[str], size: int
) -> np.ndarray:
    """Return the examples of lowest value within each class, the same number of each.

    Of C classes, each has size // C. If r are left over, classes 0 to r - 1 have one more.
    """
    order = np.argsort(values, kind="stable")
    members = [order[labels[order] == c] for c in range(len(names))]
    return take_first(members, size, np.arange(len(names)), names)


def select_random(
    labels: np.ndarray, names: list[str], size: int, seed: int, balanced=True
) -> np.ndarray:
    """Return random examples, [M] int64 ascending, the same number of every class.

    If some are left over, randomly drawn classes have one more. One order of the classes and one
    permutation of each class depend on the seed alone, and a subset takes the first of each, so
    that the subsets of one seed are nested. Not balanced, it takes the first of one permutation.
    """
    random = common.rng(common.SUBSET, seed)
    if not balanced:
        return np.sort(random.permutation(len(labels))[:size])
    order = random.permutation(len(names))
    members = [random.permutation(np.flatnonzero(labels == c)) for c in range(len(names))]
    return take_first(members, size, order, names)


def take_first(
    members: list[np.ndarray], size: int, order: np.ndarray, names: list[str]
) -> np.ndarray:
    """Return the first size // C members of each of C classes, [M] int64 ascending.

    The classes that come first in `order` give one more, until there are `size`.

    InputError: a class has too few members.
    """
    counts = np.full(len(order), size // len(order))
    counts[order[: size % len(order)]] += 1
    for name, of_class, count in zip(names, members, counts):
        if len(of_class) < count:
            raise InputError(
                f"--size {size} needs {count} examples of class {name}, which has {len(of_class)} "
                "(--no-class-balanced does not ask for as many of every class)"
            )
    return np.sort(np.concatenate([m[:count] for m, count in zip(members, counts)]))


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    data = dataset.load_images(args.dataset, args.data_dir, args.image_size)
    check_sizes(args, len(data.labels))
    scores, sidecar = None, {}
    if args.scores:
        shape = data.labels.shape
        scores, sidecar = common.load_array(args.scores, np.float32, shape, data.fingerprint)
    labels_file = common.labels_file(args, sidecar, args.scores)
    noise = common.resolve_noise(args, sidecar)
    labels, noise = dataset.labels_to_learn(data.labels, data.classes, noise, labels_file)
    if args.classes_table:
        rows = count_classes(scores, labels, data.classes, args.sizes)
        print(describe_classes(rows, data.classes))
        args.classes_table.parent.mkdir(parents=True, exist_ok=True)
        print(common.write_csv(args.classes_table, [CLASSES, *rows]))
        return
    settings = noise | describe(args, scores, sidecar) | {"fingerprint": data.fingerprint}
    if args.out.exists() and not args.force:
        _, stored = common.load_array(args.out, np.int64, (args.size,), data.fingerprint)
        common.refuse_difference(args.out, stored, settings)
        print(f"already done: {args.out}")
        return
    with common.lock(args.out.with_suffix(".lock")):
        subset = choose(args, scores, labels, data.classes)
        recorded = {
            "labels": common.place_of(labels_file, args.out),
            "made_by": common.made_by(),
        }
        common.save_array(args.out, subset, settings | recorded)
    report(args, subset, labels, data)
    print(args.out)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line and fill in all defaults."""
    parser = common.Parser(__doc__)
    add = parser.add_argument
    common.add_dataset_flags(parser)
    add("--select", choices=["random", *RULES], help="which examples; needs --size and --out")
    add("--size", type=common.COUNT, help="M, examples to choose")
    add("--scores", type=Path, help="scores.npy, for easy and hard")
    add("--class-balanced", action=argparse.BooleanOptionalAction, help="default: yes for random")
    add(
        "--seed",
        type=common.SEED,
        default=0,
        help="replicate; matters for random only (default: 0)",
    )
    add("--out", type=Path, help="subset.npy to write")
    add("--classes-table", type=Path, metavar="CSV", help="classes.csv to write, and no subset")
    add("--sizes", type=common.COUNT, nargs="+", metavar="M", help="of that table (the preset's)")
    common.add_place_flags(parser, device=False)
    args = parser.parse_args(argv)
    common.fill_from_preset(args)
    if args.classes_table:
        check_table_flags(args)
        return args
    for flag in ("select", "size", "out"):
        if getattr(args, flag) is None:
            raise InputError(f"--{flag} is needed")
    is_random = args.select == "random"
    if is_random and args.scores:
        raise InputError("--select random takes no --scores")
    if not is_random and not args.scores:
        raise InputError(f"--select {args.select} needs --scores")
    if args.class_balanced is None:
        args.class_balanced = is_random
    common.check_output(args.out, ".npy")
    if args.scores and args.out.resolve() == args.scores.resolve():
        raise InputError(f"--out and --scores are the same file, {args.out}")
    return args


def check_sizes(args: argparse.Namespace, n: int) -> None:
    """Raise InputError if more than the n training examples are asked for."""
    sizes = args.sizes if args.classes_table else [args.size]
    if max(sizes) > n:
        raise InputError(f"--size must be at most the {n} training examples, not {max(sizes)}")


def describe(args: argparse.Namespace, scores: np.ndarray | None, sidecar: dict) -> dict:
    """Return the settings of a subset, but for its data and labels.

    sidecar  what the sidecar of the scores says
    """
    settings = {
        "preset": args.preset,
        "dataset": args.dataset,
        "version": common.VERSION,
        "select": args.select,
        "size": args.size,
        "class_balanced": args.class_balanced,
    }
    if args.select == "random":
        return settings | {"seed": args.seed, "score": None, "scores_sha256": None}
    return settings | {
        "seed": None,  # the examples are the same for every replicate
        "score": sidecar.get("select", "unnamed"),
        "scores_sha256": common.sha256(scores.tobytes()),
    }


def check_table_flags(args: argparse.Namespace) -> None:
    """Raise InputError unless the flags are those of --classes-table."""
    if args.select or args.size or args.out:
        raise InputError("--classes-table chooses no subset: give no --select, --size or --out")
    if not args.scores:
        raise InputError("--classes-table needs --scores")
    if args.classes_table.suffix != ".csv" or args.classes_table.is_dir():
        raise InputError(f"--classes-table must end in .csv, not {args.classes_table}")


CLASSES = ("select", "size", "class", "count", "training_examples")  # the columns of classes.csv


def count_classes(
    scores: np.ndarray, labels: np.ndarray, names: list[str], sizes: list[int]
) -> list[list]:
    """Return the rows of classes.csv: how many examples of each class every subset would have."""
    of_all = np.bincount(labels, minlength=len(names))
    rows = []
    for rule, size in itertools.product(RULES, sorted(set(sizes))):
        subset = select(RULES[rule](scores), size)
        counts = np.bincount(labels[subset], minlength=len(names))
        for c, name in enumerate(names):
            rows.append([rule, size, name, counts[c], of_all[c]])
    return rows


def describe_classes(rows: list[list], names: list[str]) -> str:
    """Return these counts as a table with a line for each subset."""
    lines = [["", *names]]
    for rule, size, name, count, _ in rows:
        if name == names[0]:
            lines.append([f"{rule} {size}"])
        lines[-1].append(str(count))
    widths = [max(map(len, column)) for column in zip(*lines)]
    aligned = []
    for line in lines:
        aligned.append("  ".join(map(str.rjust, line, widths)))
    return "\n".join(aligned)


def choose(
    args: argparse.Namespace, scores: np.ndarray | None, labels: np.ndarray, names: list[str]
) -> np.ndarray:
    """Return the subset that the command line asks for, [M] int64 ascending."""
    if args.select == "random":
        return select_random(labels, names, args.size, args.seed, args.class_balanced)
    values = RULES[args.select](scores)
    if args.class_balanced:
        return select_balanced(values, labels, names, args.size)
    return select(values, args.size)


def report(
    args: argparse.Namespace, subset: np.ndarray, labels: np.ndarray, data: dataset.Images
) -> None:
    """Print how many examples of each class a subset has, and how many of its labels are wrong.

    Warn where it lacks classes or is mostly one class, and where scores seem to be reversed.
    """
    names = data.classes
    counts = np.bincount(labels[subset], minlength=len(names))
    counted = [f"{name} {count}" for name, count in zip(names, counts)]
    print(f"examples per class: {'  '.join(counted)}")
    lacking = (counts == 0).sum()
    largest = counts.max()
    most_frequent = names[counts.argmax()]
    if args.class_balanced and lacking:
        print(
            f"warning: {lacking} of {len(names)} classes have none: --size {len(subset)} is less "
            "than the number of classes",
            file=sys.stderr,
        )
    if not args.class_balanced and (lacking or 2 * largest > len(subset)):
        print(
            f"warning: {largest} of {len(subset)} examples are {most_frequent}, "
            f"{lacking} of {len(names)} classes have none: --class-balanced takes the same number "
            "of every class",
            file=sys.stderr,
        )
    wrong = labels != data.labels
    if not wrong.any():
        return
    of_subset = wrong[subset].mean()
    of_all = wrong.mean()
    print(f"wrong labels: {of_subset:.2%} of the subset, {of_all:.2%} of all examples")
    if args.select == "easy" and of_subset > of_all:
        print(
            "warning: among the easy examples more labels are wrong than among all: is a low score "
            f"easy in {args.scores}? Where high is good, negate them",
            file=sys.stderr,
        )


if __name__ == "__main__":
    sys.exit(common.cli(main))
