"""Time a training step: a plain PyTorch loop against this toolkit's, in one run and in turns.

The plain loop is what most people write: torchvision transforms in a DataLoader with min(8, cores) persistent
workers, the same ResNet with nn.BatchNorm2d, fp32, channels first, torch.optim.SGD, a mask on every weight.
TF32 is off and cuDNN deterministic for both. Images are random; they cost what real ones of 32 x 32 cost.

"of matmul": the operations a second of our convolutions beside those of a large matrix product in the same
precision, which is measured first.

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
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent.parent))
import accept  # beside this file

import common

EXAMPLES = 10000
WORKERS = min(8, os.cpu_count())


def plain_loop(images: np.ndarray, labels: np.ndarray, recipe: dict, device: torch.device) -> Iterator[None]:
    """Yields after every step."""
    from PIL import Image
    from torchvision import transforms as T

    mean, std = (tuple(v / 255) for v in common.channel_statistics(images))
    augment = [T.RandomCrop(32, padding=4), T.RandomHorizontalFlip(), T.ToTensor(), T.Normalize(mean, std)]

    class Images(torch.utils.data.Dataset):
        transform = T.Compose(augment)

        def __len__(self) -> int:
            return len(labels)

        def __getitem__(self, i: int) -> tuple:
            return self.transform(Image.fromarray(images[i])), int(labels[i])

    net = common.ResNet(recipe["depth"], recipe["width"], 3, recipe["classes"])
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


def cost(group: common.Group) -> int:
    """Floating-point operations of the convolutions and matrix products of one eager step."""
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as flops:
        group.step(0)
    return flops.get_total_flops()


def ceiling(device: torch.device, precision: str) -> float:
    """Operations a second in a large matrix product, the best of ten on this device."""
    n, times = 8192 if device.type == "cuda" else 2048, []
    a = torch.randn(n, n, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    for _ in range(11):  # the first one warms up
        began = time.perf_counter()
        a @ a
        if a.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return 2 * n**3 / min(times[1:])


def longest_kernels(loop: Iterator, device: torch.device, steps: int = 5) -> list[tuple[str, float]]:
    """The ten kernels (on a CPU operations) with most of a step, and the launch: name, seconds a step."""
    cuda = device.type == "cuda"
    for _ in range(3):
        next(loop)
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=kinds) as found:
        for _ in range(steps):
            next(loop)
        if cuda:
            torch.cuda.synchronize()
    events = found.key_averages()
    times = [(event.key, (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e6 / steps)
             for event in events]  # fmt: skip
    launch = [(f"{event.key} (host)", event.self_cpu_time_total / 1e6 / steps)
              for event in events if event.key == "cudaGraphLaunch"]  # fmt: skip
    return sorted(times, key=lambda item: -item[1])[:10] + launch


def seconds(loop: Iterator, steps: int, device: torch.device) -> list[float]:
    """Of each of the next steps; on a GPU, where steps overlap, their mean."""
    time.sleep(0.5)  # the plain loop's workers fill their queue; its batches must not come for free:
    for _ in range(2 * WORKERS):
        next(loop)
    if device.type == "cuda":
        torch.cuda.synchronize()
    found, began = [], time.perf_counter()
    for _ in range(steps):
        next(loop)
        if device.type == "cpu":
            found.append(time.perf_counter() - began)
            began = time.perf_counter()
    if device.type == "cuda":
        torch.cuda.synchronize()
        found = [(time.perf_counter() - began) / steps]
    return found


def peak_memory(device: torch.device) -> int:
    """Bytes of both loops so far; on a GPU reserved ones: what a stream has freed no other stream uses."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


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
    steps = args.steps or (200 if cuda else 4)
    precision = common.resolve_precision(args.precision, device)
    cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    print(torch.cuda.get_device_name(device) if cuda else cores, torch.backends.cpu.get_cpu_capability(),
          f"torch {torch.__version__}", f"Python {platform.python_version()}",
          f"{args.rounds} rounds of {steps} steps",
          f"ours in {precision}{', compiled' if args.compile else ''}", sep=", ")  # fmt: skip
    if args.compile:
        common.loss_of = torch.compile(common.loss_of, fullgraph=True, dynamic=False)
    operations = ceiling(device, precision)
    print(f"{precision} matrix product {operations / 1e12:.2f} TFLOP/s")
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (EXAMPLES, 32, 32, 3), np.uint8)
    labels = draw.integers(0, 10, EXAMPLES)
    rows = []
    sizes = [(20, 128)] if args.quick else [*itertools.product((20, 32, 56), (128, 256))]
    for (depth, batch), networks in itertools.product(sizes, (1, 2, 4, 8, 16) if cuda else (1,)):
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        preset = next(p for p in common.PRESETS.values() if p["depth"] == depth)
        recipe = preset | {"batch_size": batch, "classes": 10, "precision": precision}
        group = accept.group_on(images, labels, recipe, device, networks)
        flops = cost(group)
        loops = (plain_loop(images, labels, recipe, device), our_loop(group))
        times = [[], []]
        for turn in range(args.rounds + 1):
            for loop, found, n in zip(loops, times, (max(1, steps // 4) if cuda else steps, steps)):
                new = seconds(loop, n, device)
                found += new if turn else []  # the first turn warms up: workers, kernels, memory
        loops[0].close()
        plain, ours = (statistics.median(t) for t in times)
        level = recipe["total_steps"] * ours / networks / 3600
        rows.append({
            "network": f"ResNet-{depth}", "batch": batch, "at once": networks,
            "plain best s": f"{min(times[0]):.4f}", "median": f"{plain:.4f}",
            "ours best s": f"{min(times[1]):.4f}", "ours median": f"{ours:.4f}",
            "images/s": f"{batch * networks / ours:.0f}", "times faster": f"{networks * plain / ours:.2f}",
            "level h": f"{level:.2f}", "IMP run h": f"{(1 + recipe['levels']) * level:.1f}",
            "of matmul": f"{networks * flops / ours / operations:.0%}",
            "peak GiB": f"{peak_memory(device) / 2**30:.2f}",
        })  # fmt: skip
        if len(rows) == 1:
            print("   ".join(rows[0]))
        print("   ".join(f"{value:>{len(key)}}" for key, value in rows[-1].items()), flush=True)
        del group, loops
    for networks in (1, 8) if cuda else (1,):  # last: a GPU stays slower once the profiler has been on
        recipe = common.CIFAR10 | {"classes": 10, "precision": precision}
        group = accept.group_on(images, labels, recipe, device, networks)
        print(f"longest in a step of {networks} x ResNet-20, batch 128:")
        for name, spent in longest_kernels(our_loop(group), device):
            print(f"  {1e3 * spent:9.3f} ms   {name[:100]}")
    with open(args.out, "w", newline="") as f:
        writer = csv.DictWriter(f, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    print(args.out)


if __name__ == "__main__":
    main()
