"""Pre-train the dense network for a few hundred steps on a subset: where IMP rewinds to (paper,
Section 3).

reads   the training set, and subset.npy (int64 [M] indices; without it, all examples)
writes  rewind.safetensors (weights and batch-norm statistics at step t_r; the recipe as metadata)
python pretrain.py --preset cifar10 --subset easy.npy --steps 200 \\
    --out runs/easy/seed0/rewind.safetensors

Several seeds in one call share the time it takes to start: --seed 0 1 --out FILE FILE, with one
--subset for all of them or one for each. Every file is what a call of its own would make.
"""

import argparse
import functools
import math
import sys
from pathlib import Path

import numpy as np
import torch

import common
import dataset
import training
from common import Failure, InputError


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    device = training.resolve_device(args.device)
    preset = common.PRESETS[args.preset]
    data = training.load_data(
        args.dataset,
        args.data_dir,
        device,
        pad=preset["pad"],
        flip=preset["flip"],
        image_size=args.image_size,
    )
    note_idle_settings(args, len(data.labels))
    # A subset that serves all seeds is read once, and what is to be noted about it is said once.
    read = functools.cache(lambda path: read_inputs(path, args, data))
    errors, announced = [], False
    for seed, path, out in zip(args.seed, args.subset, args.out):
        try:
            subset, labels, about = read(path)
            recipe = args.recipe | about | {"seed": seed}
            recipe["precision"] = precision_of(out, args, device)
            if out.exists() and not args.force:
                stored = common.check_recipe(out, training.load_tensors(out)[1])
                common.refuse_difference(out, stored, recipe)
                print(f"already done: {out}")
                continue
            with common.lock(out.parent / ".lock"):
                if not announced:
                    training.check_precision(recipe["precision"], device)
                    training.say_where(device, recipe["precision"])
                    announced = True
                pretrain(out, recipe, data, labels, subset)
        except (InputError, Failure) as error:  # the other seeds go on
            # This is a copy without a traceback, which would keep the network in memory.
            errors.append(type(error)(str(error)))
    if errors:
        kind = Failure if any(isinstance(error, Failure) for error in errors) else InputError
        raise kind("; ".join(dict.fromkeys(map(str, errors))))


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line and fill in all defaults, with a subset for each seed."""
    parser = common.Parser(__doc__)
    add = parser.add_argument
    common.add_dataset_flags(parser)
    common.add_training_flags(parser)
    add(
        "--subset",
        type=Path,
        nargs="+",
        help="subset.npy, one for all seeds or one for each (default: all training examples)",
    )
    whole = common.within("[0, inf)", int)
    add(
        "--steps",
        type=whole,
        help=f"t_r, optimizer steps; 0 saves w_0 ({common.defaults('t_star')})",
    )
    add(
        "--seed",
        type=common.SEED,
        nargs="+",
        default=[0],
        help="replicate, one or several: fixes w_0 and the data order (default: 0)",
    )
    add(
        "--out",
        type=Path,
        nargs="+",
        required=True,
        help="rewind.safetensors to write, one for each seed",
    )
    common.add_place_flags(parser)
    args = parser.parse_args(argv)
    args.recipe = common.resolve_recipe(args)
    args.preset = args.recipe["preset"]
    if args.steps is None:
        args.steps = common.PRESETS[args.preset]["t_star"]
    if args.steps > args.total_steps:
        raise InputError(
            f"--steps must be at most the {args.total_steps} total steps, not {args.steps}"
        )
    if len(args.seed) != len(args.out):
        raise InputError(f"--out: {len(args.out)} files for {len(args.seed)} seeds")
    if args.subset is None:
        args.subset = [None]  # all training examples
    if len(args.subset) == 1:
        args.subset *= len(args.seed)
    if len(args.subset) != len(args.seed):
        raise InputError(f"--subset: {len(args.subset)} files for {len(args.seed)} seeds")
    for out in args.out:
        common.check_output(out, ".safetensors")
        if common.OF_IMP.fullmatch(out.name):
            raise InputError(f"--out: imp.py writes files named {out.name}; use another name")
        if [other.resolve() for other in args.out].count(out.resolve()) > 1:
            raise InputError(f"--out: {out} is named twice")
    return args


def note_idle_settings(args: argparse.Namespace, examples: int) -> None:
    """Say on stderr which settings can have no effect, as they are often slips.

    examples  the number of training examples
    """
    late = [step for step in args.milestones if step >= args.total_steps]
    if late:
        steps = ", ".join(map(str, late))
        print(
            f"note: training ends at step {args.total_steps}, before the rate drops at {steps} "
            "(--milestones)",
            file=sys.stderr,
        )
    if args.batch_size > examples:
        print(
            f"note: a batch of {args.batch_size} holds all {examples} examples (--batch-size)",
            file=sys.stderr,
        )


def read_subset(path: Path | None, data: training.Data) -> tuple[np.ndarray | None, dict]:
    """Return a subset and what its sidecar says; (None, {}) stands for all examples.

    InputError: the subset is empty, not ascending, or has an index that is no training example.
    """
    if path is None:
        return None, {}
    subset, sidecar = common.load_array(path, np.int64, (None,), data.fingerprint)
    if not len(subset):
        raise InputError(f"{path}: holds no index")
    outside = subset[(subset < 0) | (subset >= len(data.labels))]
    if len(outside):
        raise InputError(
            f"{path}: index {outside[0]}, but there are {len(data.labels)} training examples"
        )
    if (np.diff(subset) <= 0).any():
        raise InputError(f"{path}: is not ascending, or holds an index twice")
    return subset, sidecar


def read_inputs(
    path: Path | None, args: argparse.Namespace, data: training.Data
) -> tuple[np.ndarray | None, torch.Tensor, dict]:
    """Return the subset, the labels [N] to learn, on the device, and what recipes say of both."""
    subset, sidecar = read_subset(path, data)
    labels, noise = dataset.labels_to_learn(
        data.labels.cpu().numpy(),
        data.classes,
        common.resolve_noise(args, sidecar),
        common.labels_file(args, sidecar, path),
    )
    about = noise | {
        "fingerprint": data.fingerprint,
        "classes": len(data.classes),
        "image_size": data.test.shape[1],
        "rewind_step": args.steps,
        "scheme": "all" if subset is None else sidecar.get("select", "custom"),
        "score": sidecar.get("score"),
        "class_balanced": sidecar.get("class_balanced"),
        "subset_size": None if subset is None else len(subset),
        "subset_sha256": None if subset is None else common.sha256(subset.tobytes()),
    }
    return subset, torch.from_numpy(labels).to(data.labels.device), about


def precision_of(out: Path, args: argparse.Namespace, device: torch.device) -> str:
    """Return fp32 or bf16; where the output exists, --precision auto means its precision."""
    begun = out.is_file() and not args.force
    made = common.load_info(out).get("recipe", {}) if begun else {}
    return training.resolve_precision(args.precision, device, made)


def pretrain(
    out: Path,
    recipe: dict,
    data: training.Data,
    labels: torch.Tensor,
    subset: np.ndarray | None,
) -> None:
    """Train one network for the recipe's rewind_step steps and save it.

    Failure: its loss is not finite, of which diverged.json keeps the step.
    """
    member = training.Member("pre-training", recipe, data, recipe["seed"])
    group = training.Group([member], data, recipe, labels=labels, subset=subset)
    for _ in training.train(group, recipe["rewind_step"], peak=recipe["pretrain_lr"]):
        pass  # training happens as the steps are counted
    accuracy, loss = training.evaluate(member.net, data)
    if member.failed or not math.isfinite(loss):
        common.save_divergence(out.parent, recipe=recipe, settings={}, level=None, step=member.step)
        raise Failure(
            f"{out}: the loss is not finite at step {member.step}: try a lower --pretrain-lr"
        )
    info = {
        "recipe": recipe,
        "test_accuracy": accuracy,
        "test_loss": loss,
        "made_by": training.made_by(labels.device),
    }
    training.save_tensors(out, member.net.state_dict(), info)
    (out.parent / "diverged.json").unlink(missing_ok=True)
    what = f"{recipe['scheme']}, {len(group.subset)} examples"
    if recipe["label_noise"]:
        what += f", {recipe['label_noise']:.0%} random labels"
    if recipe["labels_sha256"]:
        wrong = (labels != data.labels)[group.subset].double().mean()
        what += f", {wrong:.2%} wrong labels"
    results = f"test accuracy {accuracy:.4f}   test loss {loss:.4f}"
    print(f"step {recipe['rewind_step']}   {what}   {results}")
    print(out, flush=True)


if __name__ == "__main__":
    sys.exit(common.cli(main))
