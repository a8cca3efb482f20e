"""Rank training examples by EL2N score: low is easy, high is hard (paper, Definition 2.1).

reads   the training set
writes  scores.npy (float32 [N], index i is training example i), scores.json (how it was made),
        scores.networks.safetensors (float32 [N] of each finished network, by its number)
python score_el2n.py --preset cifar10 --networks 10 --steps 7800 --out runs/cifar10/el2n.npy
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import common
import dataset
import training
from common import InputError

SCORE = "el2n"  # the name of the rule, which subsets, recipes and curves carry


def el2n(logits: Tensor, labels: Tensor) -> Tensor:
    """Return ||softmax(logits) - onehot(label)||_2 of each example, [N] float32.

    logits  [N, C]
    labels  [N] int64
    """
    error = logits.float().softmax(1)
    error[torch.arange(len(labels), device=labels.device), labels] -= 1
    return error.norm(dim=1)


def reliability(networks: np.ndarray) -> tuple[float, float]:
    """Return how far two halves of the networks agree: do so many networks and steps suffice?

    That is the rank correlation between the mean scores of the first and of the second half, and
    the share of the easiest tenth of the examples that both have in common.

    networks  [K, N] scores, K > 1
    """
    from scipy.stats import rankdata

    k, n = networks.shape
    halves = np.stack([networks[: k // 2].mean(0), networks[k // 2 :].mean(0)])
    correlation = float(np.corrcoef(rankdata(halves, axis=1))[0, 1])
    tenth = max(1, n // 10)
    first, second = np.argsort(halves, axis=1, kind="stable")[:, :tenth]
    return correlation, len(np.intersect1d(first, second)) / tenth


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    device = training.resolve_device(args.device)
    preset = common.PRESETS[args.preset]
    args.recipe["precision"] = training.resolve_precision(args.precision, device, made_before(args))
    data = training.load_data(
        args.dataset,
        args.data_dir,
        device,
        pad=preset["pad"],
        flip=preset["flip"],
        image_size=args.image_size,
    )
    labels, noise = dataset.labels_to_learn(
        data.labels.cpu().numpy(), data.classes, common.resolve_noise(args, {}), args.labels
    )
    settings = (
        args.recipe
        | noise
        | {
            "fingerprint": data.fingerprint,
            "select": SCORE,
            "networks": args.networks,
            "steps": args.steps,
            "seed": args.seed,
            "classes": len(data.classes),
            "image_size": data.test.shape[1],
        }
    )
    if args.out.exists() and not args.force:
        shape = data.labels.shape
        _, stored = common.load_array(args.out, np.float32, shape, data.fingerprint)
        common.refuse_difference(args.out, stored, settings)
        print(f"already done: {args.out}")
        return
    with common.lock(args.out.with_suffix(".lock")):
        networks = score_networks(args, settings, data, torch.from_numpy(labels).to(device))
        scores = networks.astype(np.float64).mean(0).astype(np.float32)
        recorded = {
            "labels": common.place_of(args.labels, args.out),
            "made_by": training.made_by(device),
        }
        common.save_array(args.out, scores, settings | recorded)
    report(networks, scores)
    print(args.out)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line and fill in all defaults; args.recipe says how networks train."""
    parser = common.Parser(__doc__)
    add = parser.add_argument
    common.add_dataset_flags(parser)
    common.add_training_flags(parser, common.SCORING_PRESETS)
    add(
        "--networks",
        type=common.within("[1, 10000]", int),
        help=f"K ({common.defaults('networks')})",
    )
    add(
        "--steps",
        type=common.COUNT,
        help=f"t, optimizer steps of each ({common.defaults('el2n_steps')})",
    )
    add(
        "--seed",
        type=common.SEED,
        default=0,
        help="another seed scores with other networks (default: 0)",
    )
    add("--out", type=Path, required=True, help="scores.npy to write")
    common.add_place_flags(parser, at_once=True)
    args = parser.parse_args(argv)
    args.recipe = common.resolve_recipe(args, common.SCORING_PRESETS)
    common.resolve_noise(args, {})  # so that a contradiction is named before images are read
    del args.recipe["pretrain_lr"]  # scoring does not use it
    if args.steps is None:
        args.steps = common.PRESETS[args.preset]["el2n_steps"]
    if args.steps > args.total_steps:
        raise InputError(
            f"--steps must be at most the {args.total_steps} total steps, not {args.steps}"
        )
    common.check_output(args.out, ".npy")
    return args


def progress_file(out: Path) -> Path:
    """Return where the scores of the finished networks are kept."""
    return out.with_suffix(".networks.safetensors")


def made_before(args: argparse.Namespace) -> dict:
    """Return how the scores, or the networks finished so far, were made; {} if there are none."""
    sidecar, progress = args.out.with_suffix(".json"), progress_file(args.out)
    if args.force:
        return {}
    if args.out.exists() and sidecar.exists():
        with common.reading(sidecar):
            return dict(json.loads(sidecar.read_text()))
    return common.load_info(progress) if progress.exists() else {}


def score_networks(
    args: argparse.Namespace, settings: dict, data: training.Data, labels: Tensor
) -> np.ndarray:
    """Return the scores of every network, [K, N] float32; finished ones are read from their file.

    Failure: the loss of a network was not finite; the others are kept.
    """
    progress = progress_file(args.out)
    device = labels.device
    begun = progress.exists() and not args.force
    training.check_precision(settings["precision"], device, progress if begun else None)
    training.say_where(device, settings["precision"])
    if args.force:  # they go now, so that the command can go on without --force after a kill
        args.out.unlink(missing_ok=True)
        progress.unlink(missing_ok=True)
    scored = {}
    if begun:
        scored, stored = common.load_tensors(progress)
        common.refuse_difference(progress, stored, settings)
    failed = score_missing(scored, progress, settings, data, labels, args.at_once)
    if failed:
        raise common.Failure(f"the loss was not finite in {', '.join(failed)}: try a lower --lr")
    return np.stack([scored[str(k + 1)] for k in range(args.networks)])


def score_missing(
    scored: dict[str, np.ndarray],
    path: Path,
    settings: dict,
    data: training.Data,
    labels: Tensor,
    at_once: int | None,
) -> list[str]:
    """Train the networks that are missing in scored, and add and save their scores.

    Returns the names of those whose loss was not finite.

    scored  {number of a network, from 1: its scores [N] float32}
    path    where they are saved
    """
    received, failed = [], []
    common.on_signals(received)
    missing = [k for k in range(settings["networks"]) if str(k + 1) not in scored]
    for numbers in training.even_groups(missing, at_once, labels.device):
        members = []
        for k in numbers:
            # No network shares its initial weights or its order with a replicate that its scores
            # will judge.
            seed = common.seed_of_its_own(common.SCORING, settings["seed"], k)
            members.append(training.Member(f"network {k + 1}", settings, data, seed))
        group = training.Group(members, data, settings, labels=labels)
        for _ in training.train(group, settings["steps"], peak=settings["lr"]):
            if received:
                raise common.Stopped(received[0])
        for k, member in zip(numbers, members):
            scores = el2n(training.predict(member.net, data, data.train_images()), labels)
            if member.failed or not scores.isfinite().all():
                failed.append(f"{member.name} at step {member.step}")
                continue
            scored[str(k + 1)] = scores.cpu().numpy()
            common.save_tensors(path, scored, settings)
            accuracy, _ = training.evaluate(member.net, data)
            print(
                f"network {k + 1:3d} of {settings['networks']}   test accuracy {accuracy:.4f}   "
                f"mean {SCORE} {scores.mean():.4f}",
                flush=True,
            )
        del group  # its CUDA graphs go before those of the next group are recorded
    return failed


def report(networks: np.ndarray, scores: np.ndarray) -> None:
    """Print the range of the scores [N], and how far two halves of the networks [K, N] agree."""
    if len(networks) > 1:
        correlation, overlap = reliability(networks)
        print(
            f"two halves of the networks: rank correlation {correlation:.3f}, "
            f"{overlap:.1%} of the easiest tenth in common"
        )
        if correlation < 0.7:
            print(
                f"warning: two halves of the networks agree by {correlation:.2f} only, so what is "
                "easy is partly chance: take more --networks or --steps",
                file=sys.stderr,
            )
    print(
        f"scores of {len(scores)} examples: min {scores.min():.4f}, "
        f"median {np.median(scores):.4f}, max {scores.max():.4f}"
    )


if __name__ == "__main__":
    sys.exit(common.cli(main))
