"""Time a training step: a plain PyTorch loop against this toolkit's, in one run and in turns.

The plain loop is what most people write: torchvision transforms in a DataLoader with min(8, cores) persistent
workers, the same ResNet with nn.BatchNorm2d, fp32, channels first, torch.optim.SGD, a mask on every weight.
TF32 is off and cuDNN deterministic for both. Images are random; they cost what real ones of 32 x 32 cost.

--compile asks what fusing would bring: forward pass and loss of our step go through torch.compile, once for
all networks; what is around them stays. The stages do not: where this was measured it brought nothing.

writes  --out (a CSV of the table printed)
python tests/benchmark.py --quick
"""

import argparse
import csv
import itertools
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import profile

sys.path.insert(0, str(Path(__file__).parent.parent))
import accept  # beside this file

import common

WORKERS = min(8, os.cpu_count())


def plain_loop(data: common.Data, recipe: dict, device: torch.device) -> Iterator[None]:
    """Yields after every step."""
    from PIL import Image
    from torchvision import transforms as T

    images, labels = data.train_images().cpu().numpy(), data.labels.tolist()
    mean, std = ((v / 255).tolist() for v in (data.mean, data.std))
    augment = T.Compose([T.RandomCrop(32, padding=4), T.RandomHorizontalFlip(), T.ToTensor(),
                         T.Normalize(mean, std)])  # fmt: skip

    class Images(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(labels)

        def __getitem__(self, i: int) -> tuple:
            return augment(Image.fromarray(images[i])), labels[i]

    net = common.ResNet(recipe["depth"], recipe["width"], 3, 10)
    for module in [*net.modules()]:
        for name, child in module.named_children():
            if isinstance(child, common.BatchNorm):
                setattr(module, name, nn.BatchNorm2d(len(child.weight)))
    net.to(device)
    masks = {p: torch.ones_like(p) for p in net.parameters() if p.dim() > 1}
    optimizer = torch.optim.SGD(net.parameters(), recipe["lr"], recipe["momentum"],
                                weight_decay=recipe["weight_decay"])  # fmt: skip
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, recipe["milestones"], recipe["lr_decay"])
    loader = torch.utils.data.DataLoader(Images(), recipe["batch_size"], shuffle=True, drop_last=True,
                                         num_workers=WORKERS, persistent_workers=True,
                                         pin_memory=device.type == "cuda")  # fmt: skip
    while True:
        for batch, targets in loader:
            optimizer.zero_grad()
            logits = net(batch.to(device, non_blocking=True))
            F.cross_entropy(logits, targets.to(device, non_blocking=True)).backward()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                for p, mask in masks.items():
                    p.mul_(mask)
            yield


def our_loop(group: common.Group) -> Iterator[int]:
    """Yields after every step of all networks."""
    return common.train(group, 10**9, peak=group.recipe["lr"])


def seconds(loop: Iterator, steps: int, device: torch.device) -> list[float]:
    """Of each of the next steps; on a GPU, where steps overlap, their mean."""
    time.sleep(0.5)  # the plain loop's workers fill their queue; its batches must not come for free:
    for _ in range(2 * WORKERS):
        next(loop)
    if device.type == "cuda":
        began = accept.clock()
        for _ in range(steps):
            next(loop)
        return [(accept.clock() - began) / steps]
    times = [time.perf_counter()]
    for _ in range(steps):
        next(loop)
        times.append(time.perf_counter())
    return [b - a for a, b in itertools.pairwise(times)]


def compare(depth: int, batch: int, networks: int, device: torch.device, args: argparse.Namespace) -> dict:
    """A row of the table: both loops in turns."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    preset = next(p for p in common.PRESETS.values() if p["depth"] == depth)
    recipe = preset | {"batch_size": batch, "classes": 10, "precision": args.precision}
    data = accept.random_data(device, 10_000)
    loops = [plain_loop(data, recipe, device), our_loop(accept.group_on(data, recipe, networks))]
    turns = [args.steps, args.steps]
    if device.type == "cuda":
        turns[0] = max(1, args.steps // 4)
    times = [[], []]
    for turn in range(args.rounds + 1):
        for loop, found, steps in zip(loops, times, turns):
            new = seconds(loop, steps, device)
            found += new if turn else []  # the first turn warms up: workers, kernels, memory
    loops[0].close()
    plain, ours = (statistics.median(t) for t in times)
    level = recipe["total_steps"] * ours / networks / 3600
    memory = torch.cuda.max_memory_reserved(device) / 2**30 if device.type == "cuda" else 0
    return {
        "network": f"ResNet-{depth}", "batch": batch, "at once": networks,
        "plain best s": f"{min(times[0]):.4f}", "median": f"{plain:.4f}",
        "ours best s": f"{min(times[1]):.4f}", "ours median": f"{ours:.4f}",
        "images/s": f"{batch * networks / ours:.0f}", "times faster": f"{networks * plain / ours:.2f}",
        "level h": f"{level:.2f}", "IMP run h": f"{(1 + recipe['levels']) * level:.1f}",
        "GPU GiB": f"{memory:.2f}",
    }  # fmt: skip


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--quick", action="store_true", help="ResNet-20 at batch 128 alone")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:i")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"], help="of our loop")
    parser.add_argument("--compile", action="store_true", help="fuse forward pass and loss of our loop")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each loop (5)")
    parser.add_argument("--steps", type=int, help="steps a turn (4; on a GPU 200, 50 of the plain loop)")
    parser.add_argument("--out", type=Path, default=Path("benchmark.csv"), help="CSV (benchmark.csv)")
    parser.add_argument("--accept", action="store_true", help="what works on this GPU, and how fast")
    args = parser.parse_args()
    if args.accept:
        sys.exit(accept.main())
    device = common.resolve_device(args.device)
    cuda = device.type == "cuda"
    args.steps = args.steps or (200 if cuda else 4)
    args.precision = common.resolve_precision(args.precision, device)
    cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    print(torch.cuda.get_device_name(device) if cuda else cores, torch.backends.cpu.get_cpu_capability(),
          f"torch {torch.__version__}", f"Python {platform.python_version()}",
          f"{args.rounds} rounds of {args.steps} steps",
          f"ours in {args.precision}{', compiled' if args.compile else ''}", sep=", ")  # fmt: skip
    if args.compile:
        common.loss_of = torch.compile(common.loss_of, fullgraph=True, dynamic=False)
    sizes, rows = [(20, 128)] if args.quick else [*itertools.product((20, 32, 56), (128, 256))], []
    for (depth, batch), networks in itertools.product(sizes, (1, 2, 4, 8, 16) if cuda else (1,)):
        rows.append(compare(depth, batch, networks, device, args))
        if len(rows) == 1:
            print("   ".join(rows[0]))
        print("   ".join(f"{value:>{len(key)}}" for key, value in rows[-1].items()), flush=True)
    recipe = common.CIFAR10 | {"classes": 10, "precision": args.precision}
    for networks in (1, 8) if cuda else (1,):  # last: a GPU stays slower once the profiler has been on
        loop = our_loop(accept.group_on(accept.random_data(device, 10_000), recipe, networks))
        for _ in range(3):
            next(loop)
        with profile() as found:
            for _ in range(5):
                next(loop)
        print(f"longest in 5 steps of {networks} x ResNet-20, batch 128:")
        order = f"self_{'device' if cuda else 'cpu'}_time_total"
        print(found.key_averages().table(sort_by=order, row_limit=10, max_name_column_width=60))
    with open(args.out, "w", newline="") as f:
        writer = csv.DictWriter(f, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    print(args.out)


if __name__ == "__main__":
    main()
