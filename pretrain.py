"""Pre-train the dense network for a few hundred steps on a subset: where IMP rewinds to (paper,
Section 3).

reads   the training set, and subset.npy (int64 [M] indices; without it, all examples)
writes  rewind.safetensors (weights and batch-norm statistics at step t_r; the recipe as metadata)
python pretrain.py --preset cifar10 --subset easy.npy --steps 200 \\
    --out runs/easy/seed0/rewind.safetensors
"""

import math
import sys
from pathlib import Path

import numpy as np
import torch

import common
import dataset
import training
from common import InputError


def main(argv: list[str] | None = None) -> None:
    parser = common.Parser(__doc__)
    add = parser.add_argument
    common.add_dataset_flags(parser)
    common.add_training_flags(parser)
    add("--subset", type=Path, help="subset.npy (default: all training examples)")
    whole = common.within("[0, inf)", int)
    add(
        "--steps",
        type=whole,
        help=f"t_r, optimizer steps; 0 saves w_0 ({common.defaults('t_star')})",
    )
    add(
        "--seed",
        type=common.SEED,
        default=0,
        help="replicate: fixes w_0 and the data order (default: 0)",
    )
    add("--out", type=Path, required=True, help="rewind.safetensors to write")
    common.add_place_flags(parser)
    args = parser.parse_args(argv)

    device = training.resolve_device(args.device)
    begun = args.out.is_file() and not args.force
    made = common.load_info(args.out).get("recipe", {}) if begun else {}
    recipe = common.resolve_recipe(args)
    recipe["precision"] = training.resolve_precision(args.precision, device, made)
    steps = common.PRESETS[recipe["preset"]]["t_star"] if args.steps is None else args.steps
    if steps > recipe["total_steps"]:
        raise InputError(
            f"--steps must be at most the {recipe['total_steps']} total steps, not {steps}"
        )
    common.check_output(args.out, ".safetensors")
    if common.OF_IMP.fullmatch(args.out.name):
        raise InputError(f"--out: imp.py writes files named {args.out.name}; use another name")

    preset = common.PRESETS[recipe["preset"]]
    data = training.load_data(
        recipe["dataset"], args.data_dir, device, pad=preset["pad"], flip=preset["flip"]
    )
    clean = data.labels.cpu().numpy()
    subset, sidecar = None, {}
    if args.subset:
        subset, sidecar = common.load_array(args.subset, np.int64, (None,), data.fingerprint)
        if not len(subset):
            raise InputError(f"{args.subset}: holds no index")
        for index in subset[(subset < 0) | (subset >= len(clean))]:
            raise InputError(
                f"{args.subset}: index {index}, but there are {len(clean)} training examples"
            )
        if (np.diff(subset) <= 0).any():
            raise InputError(f"{args.subset}: is not ascending, or holds an index twice")
    noise = common.resolve_noise(args, sidecar)
    labels = dataset.noisy_labels(
        clean, len(data.classes), noise["label_noise"], noise["noise_seed"]
    )
    recipe |= noise | {
        "fingerprint": data.fingerprint,
        "classes": len(data.classes),
        "image_size": data.test.shape[1],
        "rewind_step": steps,
        "seed": args.seed,
        "scheme": "all" if subset is None else sidecar.get("select", "custom"),
        "score": sidecar.get("score"),
        "class_balanced": sidecar.get("class_balanced"),
        "subset_size": None if subset is None else len(subset),
        "subset_sha256": None if subset is None else common.sha256(subset.tobytes()),
    }
    held = common.open_output(
        args,
        args.out.parent / ".lock",
        recipe,
        lambda: common.check_recipe(args.out, training.load_tensors(args.out)[1]),
    )
    if not held:
        return
    training.check_precision(recipe["precision"], device)
    training.say_where(device, recipe["precision"])
    member = training.Member("pre-training", recipe, data, args.seed)
    group = training.Group(
        [member], data, recipe, labels=torch.from_numpy(labels).to(device), subset=subset
    )
    for _ in training.train(group, steps, peak=recipe["pretrain_lr"]):
        pass
    accuracy, loss = training.evaluate(member.net, data)
    if member.failed or not math.isfinite(loss):
        common.save_divergence(
            args.out.parent, recipe=recipe, settings={}, level=None, step=member.step
        )
        raise common.Failure(
            f"the loss is not finite at step {member.step}: try a lower --pretrain-lr"
        )
    info = {
        "recipe": recipe,
        "test_accuracy": accuracy,
        "test_loss": loss,
        "made_by": training.made_by(device),
    }
    training.save_tensors(args.out, member.net.state_dict(), info)
    (args.out.parent / "diverged.json").unlink(missing_ok=True)
    what = f"{recipe['scheme']}, {len(group.subset)} examples"
    what += f", {noise['label_noise']:.0%} random labels" if noise["label_noise"] else ""
    print(f"step {steps}   {what}   test accuracy {accuracy:.4f}   loss {loss:.4f}")
    print(args.out)


if __name__ == "__main__":
    sys.exit(common.cli(main))
