"""Choose the examples that pre-training may see: random, easiest or hardest (paper, Section 3).

reads   the training labels, and for easy and hard scores.npy (float32 [N], low is easy)
writes  subset.npy (int64 [M], ascending indices into the training set), subset.json (how it was
        made)
python make_subset.py --preset cifar10 --select easy --size 3200 --scores el2n.npy --out easy.npy

Which classes would easy and hard subsets leave out? --classes-table writes how many examples of
each class are among the easiest and the hardest, at every size of the preset or of --sizes:

python make_subset.py --preset cifar10 --scores el2n.npy --classes-table figures/classes.csv
"""

import argparse
import itertools
import sys
from pathlib import Path

import numpy as np

import common
import dataset
from common import InputError

# What --select offers beside random: it takes the examples of lowest value. A rule of your own is
# one line.
RULES = {"easy": lambda scores: scores, "hard": lambda scores: -scores}


def select(values: np.ndarray, size: int) -> np.ndarray:
    """The `size` examples of lowest value, [M] int64 ascending; ties go to the lower index."""
    return np.sort(np.argsort(values, kind="stable")[:size])


def select_balanced(
    values: np.ndarray, labels: np.ndarray, names: list[str], size: int
) -> np.ndarray:
    """The same within each class, size // C of each of the C classes with these names.

    The remainder goes, one each, to the lowest classes.
    """
    order = np.argsort(values, kind="stable")
    members = [order[labels[order] == c] for c in range(len(names))]
    return take_first(members, size, np.arange(len(names)), names)


def select_random(
    labels: np.ndarray, names: list[str], size: int, seed: int, balanced=True
) -> np.ndarray:
    """Random examples, [M] int64, the same number of every class.

    The remainder goes to randomly drawn classes. One order of the classes and one permutation of
    each class depend on the seed alone, and a subset takes the first of each, so that the subsets
    of one seed are nested.
    """
    draw = common.rng(common.SUBSET, seed)
    if not balanced:
        return np.sort(draw.permutation(len(labels))[:size])
    order = draw.permutation(len(names))
    members = [draw.permutation(np.flatnonzero(labels == c)) for c in range(len(names))]
    return take_first(members, size, order, names)


def take_first(
    members: list[np.ndarray], size: int, order: np.ndarray, names: list[str]
) -> np.ndarray:
    """The first size // C members of each class, one more of the first size % C in `order`.

    InputError: a class has fewer members.
    """
    counts = np.full(len(order), size // len(order))
    counts[order[: size % len(order)]] += 1
    for name, found, count in zip(names, members, counts):
        if len(found) < count:
            raise InputError(
                f"--size {size} needs {count} examples of class {name}, which has {len(found)} "
                "(--no-class-balanced does not ask for as many of every class)"
            )
    return np.sort(np.concatenate([found[:count] for found, count in zip(members, counts)]))


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    data = dataset.load_images(args.dataset, args.data_dir, args.image_size)
    clean = data.labels
    largest = max(args.sizes) if args.classes_table else args.size
    if largest > len(clean):
        raise InputError(
            f"--size must be at most the {len(clean)} training examples, not {largest}"
        )
    scores, sidecar = None, {}
    if args.scores:
        scores, sidecar = common.load_array(args.scores, np.float32, clean.shape, data.fingerprint)
    labels_file = common.labels_file(args, sidecar, args.scores)
    labels, noise = dataset.labels_to_learn(
        clean, data.classes, common.resolve_noise(args, sidecar), labels_file
    )
    if args.classes_table:
        rows = count_classes(scores, labels, data.classes, args.sizes)
        print(describe_classes(rows, data.classes))
        print(common.write_csv(args.classes_table, [CLASSES, *rows]))
        return
    settings = noise | {
        "preset": args.preset,
        "dataset": args.dataset,
        "version": common.VERSION,
        "fingerprint": data.fingerprint,
        "select": args.select,
        "size": args.size,
        "class_balanced": args.class_balanced,
        "seed": args.seed if args.select == "random" else None,
        "score": sidecar.get("select", "unnamed") if args.scores else None,
        "scores_sha256": common.sha256(scores.tobytes()) if args.scores else None,
    }
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
    report(args, subset, labels, clean, data.classes)
    print(args.out)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line with all defaults filled in."""
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
    if args.select == "random" and args.scores:
        raise InputError("--select random takes no --scores")
    if args.select != "random" and not args.scores:
        raise InputError(f"--select {args.select} needs --scores")
    if args.class_balanced is None:
        args.class_balanced = args.select == "random"
    common.check_output(args.out, ".npy")
    if args.scores and args.out.resolve() == args.scores.resolve():
        raise InputError(f"--out and --scores are the same file, {args.out}")
    return args


def check_table_flags(args: argparse.Namespace) -> None:
    """InputError unless the flags are those of --classes-table."""
    if args.select or args.size or args.out:
        raise InputError("--classes-table chooses no subset: give no --select, --size or --out")
    if not args.scores:
        raise InputError("--classes-table needs --scores")
    if args.classes_table.suffix != ".csv" or args.classes_table.is_dir():
        raise InputError(f"--classes-table must end in .csv, not {args.classes_table}")
    if not args.classes_table.parent.is_dir():
        args.classes_table.parent.mkdir(parents=True)


CLASSES = ("select", "size", "class", "count", "training_examples")  # the columns of classes.csv


def count_classes(
    scores: np.ndarray, labels: np.ndarray, names: list[str], sizes: list[int]
) -> list[list]:
    """The rows of classes.csv: how many of the easiest and hardest examples are of each class."""
    of_all = np.bincount(labels, minlength=len(names))
    rows = []
    for rule, size in itertools.product(RULES, sorted(set(sizes))):
        chosen = labels[select(RULES[rule](scores), size)]
        counts = np.bincount(chosen, minlength=len(names))
        for name, count, training_examples in zip(names, counts, of_all):
            rows.append([rule, size, name, count, training_examples])
    return rows


def describe_classes(rows: list[list], names: list[str]) -> str:
    """The same counts as a table, a line for each subset."""
    lines = [["", *names]]
    for first in range(0, len(rows), len(names)):
        of_subset = rows[first : first + len(names)]
        rule, size, *_ = of_subset[0]
        lines.append([f"{rule} {size}", *(str(count) for _, _, _, count, _ in of_subset)])
    widths = [max(map(len, column)) for column in zip(*lines)]
    aligned = ["  ".join(map(str.rjust, line, widths)) for line in lines]
    return "\n".join(aligned)


def choose(
    args: argparse.Namespace, scores: np.ndarray | None, labels: np.ndarray, names: list[str]
) -> np.ndarray:
    """The subset that the command line asks for, [M] int64 ascending."""
    if args.select == "random":
        return select_random(labels, names, args.size, args.seed, args.class_balanced)
    values = RULES[args.select](scores)
    if args.class_balanced:
        return select_balanced(values, labels, names, args.size)
    return select(values, args.size)


def report(
    args: argparse.Namespace,
    subset: np.ndarray,
    labels: np.ndarray,
    clean: np.ndarray,
    names: list[str],
) -> None:
    """Print how many examples of each class a subset has, and how many of its labels are wrong."""
    counts = np.bincount(labels[subset], minlength=len(names))
    print(
        "examples per class: " + "  ".join(f"{name} {count}" for name, count in zip(names, counts))
    )
    lacking = (counts == 0).sum()
    if not args.class_balanced and (lacking or 2 * counts.max() > len(subset)):
        print(
            f"warning: {counts.max()} of {len(subset)} examples are {names[counts.argmax()]}, "
            f"{lacking} of {len(names)} classes have none: --class-balanced takes the same number "
            "of every class",
            file=sys.stderr,
        )
    wrong = labels != clean
    if not wrong.any():
        return
    of_subset, of_all = wrong[subset].mean(), wrong.mean()
    print(f"wrong labels: {of_subset:.2%} of the subset, {of_all:.2%} of all examples")
    if args.select == "easy" and of_subset > of_all:
        print(
            "warning: among the easy examples more labels are wrong than among all: is a low score "
            f"easy in {args.scores}? Where high is good, negate them",
            file=sys.stderr,
        )


if __name__ == "__main__":
    sys.exit(common.cli(main))
