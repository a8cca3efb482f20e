"""Choose the examples that pre-training may see: random, easiest or hardest (paper, Section 3).

reads   the training labels, and for easy and hard scores.npy (float32 [N], low is easy)
writes  subset.npy (int64 [M], ascending indices into the training set), subset.json (how it was
        made)
python make_subset.py --preset cifar10 --select easy --size 3200 --scores el2n.npy --out easy.npy
"""

import argparse
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


def select_balanced(values: np.ndarray, labels: np.ndarray, classes: int, size: int) -> np.ndarray:
    """The same within each class, size // classes of each.

    The remainder goes, one each, to the lowest classes.
    """
    order = np.argsort(values, kind="stable")
    return take_first([order[labels[order] == c] for c in range(classes)], size, np.arange(classes))


def select_random(
    labels: np.ndarray, classes: int, size: int, seed: int, balanced=True
) -> np.ndarray:
    """Random examples, [M] int64, the same number of every class.

    The remainder goes to randomly drawn classes. One order of the classes and one permutation of
    each class depend on the seed alone, and a subset takes the first of each, so that the subsets
    of one seed are nested.
    """
    draw = common.rng(common.SUBSET, seed)
    if not balanced:
        return np.sort(draw.permutation(len(labels))[:size])
    order = draw.permutation(classes)
    members = [draw.permutation(np.flatnonzero(labels == c)) for c in range(classes)]
    return take_first(members, size, order)


def take_first(members: list[np.ndarray], size: int, order: np.ndarray) -> np.ndarray:
    """The first size // C members of each class, one more of the first size % C in `order`."""
    counts = np.full(len(order), size // len(order))
    counts[order[: size % len(order)]] += 1
    for c, (mine, count) in enumerate(zip(members, counts)):
        if len(mine) < count:
            raise InputError(f"--size needs {count} examples of class {c}, which has {len(mine)}")
    return np.sort(np.concatenate([mine[:count] for mine, count in zip(members, counts)]))


def main(argv: list[str] | None = None) -> None:
    parser = common.Parser(__doc__)
    add = parser.add_argument
    common.add_dataset_flags(parser)
    add("--select", choices=["random", *RULES], required=True)
    add("--size", type=common.COUNT, required=True, help="M, examples to choose")
    add("--scores", type=Path, help="scores.npy, for easy and hard")
    add("--class-balanced", action=argparse.BooleanOptionalAction, help="default: yes for random")
    add(
        "--seed",
        type=common.SEED,
        default=0,
        help="replicate; matters for random only (default: 0)",
    )
    add("--out", type=Path, required=True, help="subset.npy to write")
    common.add_place_flags(parser, device=False)
    args = parser.parse_args(argv)

    names = common.resolve_preset(args)
    random = args.select == "random"
    balanced = random if args.class_balanced is None else args.class_balanced
    if random == (args.scores is not None):
        raise InputError(f"--select {args.select} {'takes no' if random else 'needs'} --scores")
    common.check_output(args.out, ".npy")
    if args.scores and args.out.resolve() == args.scores.resolve():
        raise InputError(f"--out and --scores are the same file, {args.out}")

    data = dataset.load_images(names["dataset"], args.data_dir)
    clean, classes = data.labels, len(data.classes)
    if args.size > len(clean):
        raise InputError(
            f"--size must be at most the {len(clean)} training examples, not {args.size}"
        )
    scores, sidecar = None, {}
    if args.scores:
        scores, sidecar = common.load_array(args.scores, np.float32, clean.shape, data.fingerprint)
    noise = common.resolve_noise(args, sidecar)
    labels = dataset.noisy_labels(clean, classes, noise["label_noise"], noise["noise_seed"])
    config = (
        names
        | noise
        | {
            "version": common.VERSION,
            "fingerprint": data.fingerprint,
            "select": args.select,
            "size": args.size,
            "class_balanced": balanced,
            "seed": args.seed if random else None,
            "score": None if random else sidecar.get("select", "unnamed"),
            "scores_sha256": None if random else common.sha256(scores.tobytes()),
        }
    )
    held = common.open_output(
        args.out,
        args.force,
        args.out.with_suffix(".lock"),
        config,
        lambda: common.load_array(args.out, np.int64, (args.size,), data.fingerprint)[1],
    )
    if not held:
        return
    if random:
        subset = select_random(labels, classes, args.size, args.seed, balanced)
    elif balanced:
        subset = select_balanced(RULES[args.select](scores), labels, classes, args.size)
    else:
        subset = select(RULES[args.select](scores), args.size)
    common.save_array(args.out, subset, config | {"made_by": common.made_by()})
    counts = np.bincount(labels[subset], minlength=classes)
    print(
        "examples per class: "
        + "  ".join(f"{name} {count}" for name, count in zip(data.classes, counts))
    )
    lacking = (counts == 0).sum()
    if not balanced and (lacking or 2 * counts.max() > args.size):
        print(
            f"warning: {counts.max()} of {args.size} examples are {data.classes[counts.argmax()]}, "
            f"{lacking} of {classes} classes have none: --class-balanced takes the same number of "
            "every class",
            file=sys.stderr,
        )
    if noise["label_noise"]:
        wrong = labels != clean
        print(
            f"wrong labels: {wrong[subset].mean():.2%} of the subset, "
            f"{wrong.mean():.2%} of all examples"
        )
    print(args.out)


if __name__ == "__main__":
    sys.exit(common.cli(main))
