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
from scipy.stats import rankdata
from torch import Tensor

import common
import dataset
import training
from common import InputError

SCORE = "el2n"  # the name of the rule: subsets, recipes and curves carry it


def el2n(logits: Tensor, labels: Tensor) -> Tensor:
    """||softmax(logits) - onehot(label)||_2 by example: [N, C] and [N] int64 -> [N] float32."""
    error = logits.float().softmax(1)
    error[torch.arange(len(labels), device=labels.device), labels] -= 1
    return error.norm(dim=1)


def reliability(networks: np.ndarray) -> tuple[float, float, float, float]:
    """Do K and t suffice? [K, N] scores -> (rho, reliability of the mean, halves' rho and overlap).

    rho is the mean pairwise rank correlation; K rho / (1 + (K - 1) rho) predicts the correlation of
    the mean rank with that of K other networks (Spearman-Brown). That is too much for the mean
    score where networks differ in scale; what the means of two halves of them have in common shows
    it: rank correlation, easiest tenth.
    """
    k, n = networks.shape
    rho = float(np.corrcoef(rankdata(networks, axis=1))[np.triu_indices(k, 1)].mean())
    halves = np.stack([networks[: k // 2].mean(0), networks[k // 2 :].mean(0)])
    between = float(np.corrcoef(rankdata(halves, axis=1))[0, 1])
    easiest = [np.argsort(half, kind="stable")[: max(1, n // 10)] for half in halves]
    return (
        rho,
        k * rho / (1 + (k - 1) * rho),
        between,
        len(np.intersect1d(*easiest)) / len(easiest[0]),
    )


def score_missing(
    scored: dict[str, np.ndarray],
    path: Path,
    config: dict,
    data: training.Data,
    labels: Tensor,
    at_once: int | None,
) -> list[str]:
    """Train, score and save the networks not in scored {number: [N]}; returns those that failed."""
    received, failed = [], []
    common.on_signals(received)
    todo = [k for k in range(config["networks"]) if str(k + 1) not in scored]
    for share in training.even_groups(todo, at_once, labels.device):
        # seeds of their own: none shares w_0 or order with a replicate its scores will judge
        seeds = [common.seed_of_its_own(common.SCORING, config["seed"], k) for k in share]
        members = [
            training.Member(f"network {k + 1}", config, data, seed) for k, seed in zip(share, seeds)
        ]
        group = training.Group(members, data, config, labels=labels)
        for _ in training.train(group, config["steps"], peak=config["lr"]):
            if received:
                raise common.Stopped(received[0])
        for k, member in zip(share, members):
            scores = el2n(training.predict(member.net, data, data.train_images()), labels)
            if member.failed or not scores.isfinite().all():
                failed.append(f"{member.name} at step {member.step}")
                continue
            scored[str(k + 1)] = scores.cpu().numpy()
            common.save_tensors(path, scored, config)
            accuracy, _ = training.evaluate(member.net, data)
            print(
                f"network {k + 1:3d} of {config['networks']}   test accuracy {accuracy:.4f}   "
                f"mean {SCORE} {scores.mean():.4f}",
                flush=True,
            )
        del group  # its recordings, before new ones are made
    return failed


def made_before(args: argparse.Namespace, progress: Path) -> dict:
    """What the scores, or the networks finished so far, say of how they are made; {} of none."""
    sidecar = args.out.with_suffix(".json")
    if args.force:
        return {}
    if args.out.exists() and sidecar.exists():
        with common.reading(sidecar):
            return dict(json.loads(sidecar.read_text()))
    return common.load_info(progress) if progress.exists() else {}


def main(argv: list[str] | None = None) -> None:
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

    device = training.resolve_device(args.device)
    progress = args.out.with_suffix(".networks.safetensors")
    recipe = common.resolve_recipe(args, common.SCORING_PRESETS)
    made = made_before(args, progress)
    recipe["precision"] = training.resolve_precision(args.precision, device, made)
    steps = common.PRESETS[recipe["preset"]]["el2n_steps"] if args.steps is None else args.steps
    if steps > recipe["total_steps"]:
        raise InputError(
            f"--steps must be at most the {recipe['total_steps']} total steps, not {steps}"
        )
    noise = common.resolve_noise(args, {})
    common.check_output(args.out, ".npy")

    preset = common.PRESETS[recipe["preset"]]
    data = training.load_data(
        recipe["dataset"], args.data_dir, device, pad=preset["pad"], flip=preset["flip"]
    )
    del recipe["pretrain_lr"]  # scoring does not use it
    config = (
        recipe
        | noise
        | {
            "fingerprint": data.fingerprint,
            "select": SCORE,
            "networks": args.networks,
            "steps": steps,
            "seed": args.seed,
            "classes": len(data.classes),
            "image_size": data.test.shape[1],
        }
    )
    held = common.open_output(
        args.out,
        args.force,
        args.out.with_suffix(".lock"),
        config,
        lambda: common.load_array(args.out, np.float32, data.labels.shape, data.fingerprint)[1],
    )
    if not held:
        return
    training.check_precision(
        recipe["precision"], device, progress if progress.exists() and not args.force else None
    )
    training.say_where(device, recipe["precision"])
    scored = {}
    if args.force:  # now, so that the same command without it goes on after a kill
        args.out.unlink(missing_ok=True)
        progress.unlink(missing_ok=True)
    if progress.exists():
        scored, found = common.load_tensors(progress)
        common.refuse_difference(progress, found, config)
    noisy = dataset.noisy_labels(
        data.labels.cpu().numpy(), len(data.classes), noise["label_noise"], noise["noise_seed"]
    )
    labels = torch.from_numpy(noisy).to(device)

    failed = score_missing(scored, progress, config, data, labels, args.at_once)
    if failed:
        raise common.Failure(f"the loss was not finite in {', '.join(failed)}: try a lower --lr")

    networks = np.stack([scored[str(k + 1)] for k in range(args.networks)])
    scores = networks.astype(np.float64).mean(0).astype(np.float32)
    common.save_array(args.out, scores, config | {"made_by": training.made_by(device)})
    if args.networks > 1:
        rho, of_mean, between, overlap = reliability(networks)
        text = f"{of_mean:.3f}" if rho > 0 else "none, they disagree"
        print(
            f"rank correlation between networks {rho:.3f}   reliability of the mean {text}   "
            f"between two halves {between:.3f}, easiest tenth in common {overlap:.1%}"
        )
        if between < 0.7:
            print(
                f"warning: two halves of the networks agree by {between:.2f} only, what is easy is "
                "partly chance: more --networks or --steps",
                file=sys.stderr,
            )
    print(
        f"scores of {len(scores)} examples: min {scores.min():.4f}, "
        f"median {np.median(scores):.4f}, max {scores.max():.4f}"
    )
    print(args.out)


if __name__ == "__main__":
    sys.exit(common.cli(main))
