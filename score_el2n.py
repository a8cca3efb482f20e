"""Rank training examples by EL2N score: low is easy, high is hard (paper, Definition 2.1).

reads   the training set
writes  scores.npy (float32 [N], index i is training example i), scores.json (how it was made),
        scores.networks.npy (float32 [K, N], the single networks; a row of NaN is not done yet)
python score_el2n.py --preset cifar10 --networks 10 --steps 7800 --out runs/cifar10/el2n.npy
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import common
from common import InputError


def el2n(logits: Tensor, labels: Tensor) -> Tensor:
    """||softmax(logits) - onehot(label)||_2 of each example: [N, C] and [N] int64 -> [N] float32."""
    error = logits.float().softmax(1)
    error[torch.arange(len(labels), device=labels.device), labels] -= 1
    return error.norm(dim=1)


def ranks(values: np.ndarray) -> np.ndarray:
    """Rank of each value, ties sharing their mean rank: [N] -> [N] float64."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def reliability(networks: np.ndarray) -> tuple[float, float, float, float]:
    """Do K and t suffice? [K, N] scores -> (rho, reliability of the mean, and of two halves rho and overlap).

    rho is the mean pairwise rank correlation; K rho / (1 + (K - 1) rho) predicts the correlation of the mean
    rank with that of K other networks (Spearman-Brown). Too much for the mean score where networks differ in
    scale; what the means of two halves of them have in common shows it: rank correlation, easiest tenth.
    """
    k, n = networks.shape
    rho = float(np.corrcoef([ranks(row) for row in networks])[np.triu_indices(k, 1)].mean())
    halves = [networks[: k // 2].mean(0), networks[k // 2 :].mean(0)]
    between = float(np.corrcoef([ranks(half) for half in halves])[0, 1])
    easiest = [np.argsort(half, kind="stable")[: max(1, n // 10)] for half in halves]
    return rho, k * rho / (1 + (k - 1) * rho), between, len(np.intersect1d(*easiest)) / len(easiest[0])


def load_networks(path: Path, shape: tuple, config: dict) -> np.ndarray:
    """The networks scored so far, [K, N] with NaN in the rows still to do.

    Each row has a checksum of its own, so that a crash between sidecar and array costs one network at most.
    """
    networks = np.full(shape, np.nan, np.float32)
    if not path.exists():
        return networks
    info = common.read_sidecar(path)
    common.refuse_difference(path, info, config)
    found = common.read_array(path, np.float32, shape)
    for k, (row, stored) in enumerate(zip(found, info.get("rows", []))):
        if stored == common.sha256(row.tobytes()):
            networks[k] = row
    return networks


def save_networks(path: Path, networks: np.ndarray, config: dict) -> None:
    rows = [None if np.isnan(row).any() else common.sha256(row.tobytes()) for row in networks]
    common.save_array(path, networks, config | {"rows": rows})


def score_missing(
    networks: np.ndarray, path: Path, config: dict, data: common.Data, labels: Tensor
) -> list[str]:
    """Train and score the networks whose row is NaN, saving each; returns those whose loss was not finite."""
    received, failed = common.defer_signals(), []
    todo = [k for k in range(len(networks)) if np.isnan(networks[k]).any()]
    for share in common.even_groups(todo, common.default_at_once(labels.device)):
        # seeds of their own: none shares w_0 or order with a replicate its scores will judge
        seeds = [int(common.rng(common.SCORING, config["seed"], k).integers(2**32, 2**63)) for k in share]
        members = [common.Member(f"network {k + 1}", config, data, seed) for k, seed in zip(share, seeds)]
        group = common.Group(members, data, config, labels=labels)
        for _ in common.train(group, config["steps"], peak=config["lr"]):
            if received:
                raise common.Stopped(received[0])
        for k, member in zip(share, members):
            scores = el2n(common.predict(member.net, data, data.train_images()), labels).cpu().numpy()
            if member.failed or not np.isfinite(scores).all():
                failed.append(f"{member.name} at step {member.step}")
                continue
            networks[k] = scores
            save_networks(path, networks, config)
            accuracy, _ = common.evaluate(member.net, data)
            print(f"network {k + 1:3d} of {len(networks)}   test accuracy {accuracy:.4f}   "
                  f"mean EL2N {scores.mean():.4f}", flush=True)  # fmt: skip
    return failed


def main(argv: list[str] | None = None) -> None:
    parser = common.Parser(__doc__)
    add = parser.add_argument
    common.add_data_flags(parser)
    add("--networks", type=int, help=f"K, networks to average over ({common.defaults('networks')})")
    add("--steps", type=int, help=f"t, optimizer steps of each network ({common.defaults('el2n_steps')})")
    add("--seed", type=int, default=0, help="another seed scores with other networks (default: 0)")
    add("--out", type=Path, required=True, help="scores.npy to write")
    args = parser.parse_args(argv)

    device = common.resolve_device(args.device)
    recipe = common.resolve_recipe(args, device)
    preset = common.PRESETS[recipe["preset"]]
    count = preset["networks"] if args.networks is None else args.networks
    steps = preset["el2n_steps"] if args.steps is None else args.steps
    if count < 1:
        raise InputError(f"--networks must be at least 1, not {count}")
    if not 1 <= steps <= recipe["total_steps"]:
        raise InputError(f"--steps must be from 1 to the {recipe['total_steps']} total steps, not {steps}")
    common.check_seed("--seed", args.seed)
    noise = common.resolve_noise(args, {})
    common.check_output(args.out, ".npy")

    data = common.load_data(recipe["dataset"], recipe["preset"], args.data_dir, device)
    recipe["classes"] = len(data.classes)
    del recipe["pretrain_lr"]  # scoring does not use it
    config = recipe | noise | {"fingerprint": data.fingerprint, "select": "el2n", "networks": count,
                               "steps": steps, "seed": args.seed}  # fmt: skip
    lock = common.lock(args.out.with_suffix(".lock"))  # noqa: F841 - held until the process ends
    progress = args.out.with_suffix(".networks.npy")
    shape = (count, len(data.labels))
    if args.force:
        args.out.unlink(missing_ok=True)
        progress.unlink(missing_ok=True)
    if args.out.exists():
        common.refuse_difference(args.out, common.read_sidecar(args.out), config)
        common.load_array(args.out, np.float32, shape[1:], data.fingerprint)
        print(f"already done: {args.out}")
        return
    networks = load_networks(progress, shape, config)
    noisy = common.noisy_labels(data.labels.cpu().numpy(), recipe["classes"], **noise)
    labels = torch.from_numpy(noisy).to(device)

    failed = score_missing(networks, progress, config, data, labels)
    if failed:
        raise common.Failure(f"the loss was not finite in {', '.join(failed)}: try a lower --lr")

    scores = networks.astype(np.float64).mean(0).astype(np.float32)
    common.save_array(args.out, scores, config | {"made_by": common.made_by(device)})
    if count > 1:
        rho, of_mean, between, overlap = reliability(networks)
        text = f"{of_mean:.3f}" if rho > 0 else "none, they disagree"
        print(f"rank correlation between networks {rho:.3f}   reliability of the mean {text}   "
              f"between two halves {between:.3f}, easiest tenth in common {overlap:.1%}")  # fmt: skip
    print(f"scores of {len(scores)} examples: min {scores.min():.4f}, median {np.median(scores):.4f}, "
          f"max {scores.max():.4f}")  # fmt: skip
    print(args.out)


if __name__ == "__main__":
    sys.exit(common.cli(main))
