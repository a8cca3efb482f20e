"""What works on this GPU, and how fast a training step is beside a plain PyTorch loop.

python tests/benchmark.py --accept    the first thing to run on a new GPU
python tests/benchmark.py --quick     the table of both loops, in one run and in turns

--accept prints one line a check, each in a process of its own with a time limit: its name, what was
found, the limit, and ok or FAILED; speeds over their goal fail nothing. Exit status 0: all is well;
1: a check failed; 2: no GPU here.

The plain loop is what most people write: torchvision transforms in a DataLoader with min(8, cores)
persistent workers, the same ResNet with nn.BatchNorm2d, fp32, channels first, torch.optim.SGD, a
mask on every weight. TF32 is off and cuDNN deterministic for both. Images are random; they cost
what real ones of 32 x 32 cost.
"""

import argparse
import contextlib
import io
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent.parent))
import imp

import common
import dataset
import training

WORKERS = min(8, os.cpu_count())


def make_group(
    device: torch.device, networks: int = 1, examples: int = 2000, **recipe
) -> training.Group:
    """Networks of CIFAR-10's recipe, changed by what is given, on random images of that shape."""
    recipe = common.CIFAR10 | {"classes": 10, "precision": "fp32"} | recipe
    draw = np.random.default_rng(0)
    images, labels = (
        draw.integers(0, 256, (examples, 32, 32, 3), np.uint8),
        draw.integers(0, 10, examples),
    )
    arrays = (images, labels, *dataset.channel_statistics(images))
    x, y, mean, std = (torch.from_numpy(a).to(device) for a in arrays)
    data = training.Data(
        [*"0123456789"], F.pad(x, (0, 0, 4, 4, 4, 4)), y, x, y, mean, std, "", 4, True
    )
    members = [training.Member(f"network {seed}", recipe, data, seed) for seed in range(networks)]
    return training.Group(members, data, recipe)


def pruned_group(device: torch.device, networks: int = 1, **recipe) -> training.Group:
    """The same with half-zero masks; on a CPU tiny networks on few images."""
    if device.type == "cpu":
        recipe |= {"depth": 8, "width": 2, "batch_size": 16, "examples": 200}
    group = make_group(device, networks, **recipe)
    for m in group.members:
        for mask in m.masks.values():
            mask[::2] = 0
        m.apply_masks()
    return group


def train(group: training.Group, stop: int, level: int = 0) -> training.Group:
    list(training.train(group, stop, peak=0.1, level=level))
    return group


def same(a: training.Member, b: training.Member) -> tuple:
    """Are two members the same, bit for bit?"""
    off = sum(not torch.equal(t, b.state()[name]) for name, t in a.state().items())
    return f"{off} tensors differ", "0", off == 0


def versions(device: torch.device) -> tuple:
    software = f"torch {torch.__version__}, Python {platform.python_version()}"
    if device.type == "cpu":
        cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
        return f"{cores}, {training.processor()}, {software}", "", True
    gpu, cuda = torch.cuda.get_device_properties(device), f"CUDA {torch.version.cuda}"
    memory, cudnn = f"{gpu.total_memory / 2**30:.0f} GiB", f"cuDNN {torch.backends.cudnn.version()}"
    return f"{gpu.name}, {memory}, {software}, {cuda}, {cudnn}", "", True


def tf32_is_off(device: torch.device) -> tuple:
    a, b = torch.randn(512, 512, device=device), torch.randn(512, 512, device=device)
    x, w = torch.randn(16, 64, 16, 16, device=device), torch.randn(64, 64, 3, 3, device=device)
    pairs = [(a @ b, a.double() @ b.double()), (F.conv2d(x, w), F.conv2d(x.double(), w.double()))]
    gap = max(((mine - exact).abs().max() / exact.abs().max()).item() for mine, exact in pairs)
    return f"{gap:.1e}", "5e-05 from float64", gap < 5e-5


def near_the_cpu(device: torch.device) -> tuple:
    """The weights of a small network after ten steps, beside the same on the CPU."""
    small = {"depth": 8, "width": 2, "examples": 200}
    a, b = (
        train(make_group(place, **small), 10).members[0] for place in (device, torch.device("cpu"))
    )
    gap = max((t.cpu() - b.parameters[name]).abs().max().item() for name, t in a.parameters.items())
    return f"{gap:.1e}", "1e-02", gap < 1e-2


def recording(device: torch.device, networks: int, depth: int, precision: str, steps: int) -> tuple:
    """Recorded without a note; at two levels plain steps bit for bit; pruned weights stay zero."""
    said = io.StringIO()
    recorded, plain = (
        pruned_group(device, networks, depth=depth, precision=precision) for _ in range(2)
    )
    plain.prepared = True  # neither proved nor recorded
    for level, group in itertools.product((0, 1), (recorded, plain)):
        for m in group.members:
            m.step = 0
        with contextlib.redirect_stderr(said):
            train(group, steps, level)
    zero = all(
        not p[m.masks[name] == 0].any() for m in recorded.members for name, p in m.prunable.items()
    )
    found = [same(a, b) for a, b in zip(recorded.members, plain.members)]
    worst, limit, _ = min(found, key=lambda result: result[2])
    notes = [line for line in said.getvalue().splitlines() if line.startswith("note: ")]
    return (
        (*notes, worst)[0],
        f"no note, {limit}",
        not notes and zero and all(ok for *_, ok in found),
    )


def proof(device: torch.device, precision: str) -> tuple:
    """The gradients of an honest step, as far from plain kernels as they may be at most."""
    training.PROVED.clear()
    try:
        train(pruned_group(device, precision=precision), 1)
    except common.Failure as failure:
        return str(failure), "passes", False
    return "passes", "passes", len(training.PROVED) == 1


def wrong_convolution(device: torch.device, precision: str) -> tuple:
    """A convolution whose backward pass makes its weight's gradient 6% too large is refused."""
    right, backends = torch.nn.Conv2d._conv_forward, (torch.backends.mkldnn, torch.backends.cudnn)

    def wrong(layer, x, weight, bias):
        if any(backend.enabled for backend in backends) and weight.requires_grad:
            weight = 1.06 * weight - 0.06 * weight.detach()
        return right(layer, x, weight, bias)

    with mock.patch.object(torch.nn.Conv2d, "_conv_forward", wrong):
        found, _, honest = proof(device, precision)
    return found[:40], "wrong gradient", not honest and found.startswith("wrong gradient")


def company(device: torch.device) -> tuple:
    """A member alone and beside others that start later."""
    alone, together = pruned_group(device), pruned_group(device, 4)
    for start, m in zip((0, 7, 3, 20), together.members):
        m.step = start
    return same(train(alone, 20).members[0], train(together, 20).members[0])


def stop_and_go_on(device: torch.device) -> tuple:
    """A state that went through the host, put into another group, goes on with the same bits."""
    whole, part, rest = train(pruned_group(device), 20), pruned_group(device), pruned_group(device)
    next(step for step in training.train(part, 20, peak=0.1) if step == 9)
    rest.members[0].restore({name: t.cpu() for name, t in part.members[0].state().items()})
    rest.members[0].step = 9
    return same(whole.members[0], train(rest, 20).members[0])


def fingerprint(device: torch.device) -> tuple:
    """A digest of trained networks, for comparing processes."""
    members = train(pruned_group(device, 2), 20).members
    digests = [common.digest(training.to_numpy(m.state()), {}) for m in members]
    return " ".join(digests), "", True


def two_processes(device: torch.device) -> tuple:
    found = [run("fingerprint", device) for _ in range(2)]
    return (
        "equal" if found[0] == found[1] else f"{found}",
        "equal",
        found[0] == found[1] and found[0][2],
    )


def forced_failure(device: torch.device) -> tuple:
    """A step that cannot be recorded: one note, the device as it was, plain steps.

    The next group records.
    """
    step, stream, said = training.Group.step_one, torch.cuda.current_stream(), io.StringIO()

    def asking(group: training.Group, k: int) -> None:
        step(group, k)
        group.members[k].loss_sum.item()  # waits for the GPU, which a capture forbids

    with contextlib.redirect_stderr(said), mock.patch.object(training.Group, "step_one", asking):
        failed = train(pruned_group(device), 5)
    clean = torch.cuda.current_stream() == stream
    torch.cuda.empty_cache()
    good = train(pruned_group(device), 5)
    found, limit, ok = same(failed.members[0], good.members[0])
    notes, replays = (
        said.getvalue().count("note: "),
        (failed.replays == [None], good.replays == [None]),
    )
    fine = clean and ok and notes == 1 and replays == (True, False)
    return f"{notes} notes, {found}", f"1, {limit}", fine


def memory_of_three_groups(device: torch.device) -> tuple:
    """Groups one after another take no more memory than the first."""
    found = []
    for _ in range(3):
        group = train(pruned_group(device, 8), 3)
        found.append(torch.cuda.memory_reserved(device) / 2**30)
        del group
        torch.cuda.empty_cache()
    return (
        " ".join(f"{gib:.2f}" for gib in found) + " GiB",
        "1.1 x the first",
        max(found) <= 1.1 * found[0],
    )


def clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(loop: Iterator, steps: int, device: torch.device) -> float:
    """Of a step, the mean of the next ones."""
    # meanwhile the plain loop's workers fill their queue; its batches must not come for free:
    time.sleep(0.5)
    for _ in range(2 * WORKERS):
        next(loop)
    began = clock(device)
    for _ in range(steps):
        next(loop)
    return (clock(device) - began) / steps


def speed(device: torch.device, networks: int, goal: float, compiled: bool = False) -> tuple:
    """Milliseconds of a step of ResNet-20 at batch 128, for each of so many networks."""
    if compiled:
        training.loss_of = torch.compile(training.loss_of, fullgraph=True, dynamic=False)
    group = make_group(device, networks, precision=training.resolve_precision("auto", device, {}))
    loop = training.train(group, 10**9, peak=0.1)
    found = statistics.median([1e3 * seconds(loop, 200, device) / networks for _ in range(5)][1:])
    return f"{found:.3f} ms", f"goal {goal:g}", found <= goal


def level_change(device: torch.device) -> tuple:
    """Evaluate on 10,000 images, prune, save and rewind eight networks."""
    group = train(pruned_group(device, 8, examples=10_000), 3)
    start = {name: t.cpu() for name, t in group.members[0].net.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):  # the first one warms up
            began = clock(device)
            for m in group.members:
                training.evaluate(m.net, group.data)
                masks = imp.prune(imp.importance(m.net, group.data, None), m.masks, 0.2)
                tensors = common.prefixed(weight=m.net.state_dict(), mask=m.masks, next=masks)
                training.save_tensors(Path(folder) / "level00.safetensors", tensors, {})
                m.rewind(start, masks, 0)
            found = clock(device) - began
    return f"{found:.2f} s", "goal 1", found <= 1


CHECKS = {  # device -> (found, limit, ok?)
    "versions": versions,
    "tf32 is off": tf32_is_off,
    "near the CPU": near_the_cpu,
    **{
        f"recording {n} x ResNet-{depth} {precision}": partial(
            recording, networks=n, depth=depth, precision=precision, steps=1
        )
        for depth in (20, 56)
        for n in (1, 8)
        for precision in ("fp32", "bf16")
    },
    "50 replays, half-zero masks": partial(
        recording, networks=1, depth=20, precision="fp32", steps=50
    ),
    **{
        f"{name} {precision}": partial(check, precision=precision)
        for name, check in (("first step", proof), ("wrong convolution", wrong_convolution))
        for precision in ("fp32", "bf16")
    },
    "alone and in company": company,
    "stop, restore, go on": stop_and_go_on,
    "two processes": two_processes,
    "forced recording failure": forced_failure,
    "memory of three groups": memory_of_three_groups,
}
SPEEDS = {
    "a step alone": partial(speed, networks=1, goal=1.0),
    "a step of each of eight": partial(speed, networks=8, goal=0.45),
    "a step alone, compiled": partial(speed, networks=1, goal=1.0, compiled=True),
    "a step of each of eight, compiled": partial(speed, networks=8, goal=0.45, compiled=True),
    "a level change": level_change,
}


def run(name: str, device: torch.device, seconds: float = 300) -> list:
    """[found, limit, ok] of a check in a process of its own; a crash or a hang is not ok."""
    command = [sys.executable, __file__, "--check", name, "--device", str(device)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
        if done.returncode:
            raise ValueError("it printed its result and then died")
        return json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return [f"no end after {seconds:g} s", "", False]
    except (ValueError, IndexError):
        return [(done.stderr.splitlines() or [f"status {done.returncode}"])[-1][:200], "", False]


def accept() -> int:
    if not torch.cuda.is_available():
        print("accept: no GPU here", file=sys.stderr)
        return 2
    failed = 0
    for name in (*CHECKS, *SPEEDS):
        found, limit, ok = run(name, torch.device("cuda"), 900 if "compiled" in name else 300)
        failed += not ok and name in CHECKS
        word = "ok" if ok else "FAILED" if name in CHECKS else "over"
        print(f"{name:36} {found:40} {limit:20} {word}", flush=True)
    print(
        f"{failed} of {len(CHECKS)} checks failed" if failed else f"all {len(CHECKS)} checks passed"
    )
    return min(failed, 1)


def plain_loop(data: training.Data, recipe: dict, device: torch.device) -> Iterator[None]:
    """Yields after every step."""
    from PIL import Image
    from torchvision import transforms as T

    mean, std = ((v / 255).tolist() for v in (data.mean, data.std))
    augment = T.Compose(
        [
            T.RandomCrop(32, padding=4),
            T.RandomHorizontalFlip(),
            T.ToTensor(),
            T.Normalize(mean, std),
        ]
    )

    def collate(batch: list) -> tuple:
        images, labels = zip(*batch)
        return torch.stack([*map(augment, images)]), torch.tensor(labels)

    pairs = [*zip(map(Image.fromarray, data.train_images().cpu().numpy()), data.labels.tolist())]
    loader = torch.utils.data.DataLoader(
        pairs,
        recipe["batch_size"],
        shuffle=True,
        drop_last=True,
        num_workers=WORKERS,
        persistent_workers=True,
        collate_fn=collate,
        pin_memory=device.type == "cuda",
    )
    with mock.patch.object(training, "BatchNorm", torch.nn.BatchNorm2d):
        net = training.ResNet(recipe["depth"], recipe["width"], 3, 10).to(device)
    masks = {p: torch.ones_like(p) for p in net.parameters() if p.dim() > 1}
    optimizer = torch.optim.SGD(
        net.parameters(), recipe["lr"], recipe["momentum"], weight_decay=recipe["weight_decay"]
    )
    schedule = torch.optim.lr_scheduler.MultiStepLR(
        optimizer, recipe["milestones"], recipe["lr_decay"]
    )
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


def table(device: torch.device, quick: bool, rounds: int, precision: str) -> None:
    """Both loops in turns: the median of each, and of their ratio in a turn with its extremes."""
    precision = training.resolve_precision(precision, device, {})
    print(versions(device)[0], f"ours in {precision}", sep=", ")
    print("network    batch  at once  plain s   ours s  images/s  times faster        IMP run h")
    sizes = [(20, 128)] if quick else itertools.product((20, 32, 56), (128, 256))
    at_once = (1, 2, 4, 8, 16) if device.type == "cuda" else (1,)
    for (depth, batch), networks in itertools.product(sizes, at_once):
        group = make_group(
            device, networks, 10_000, depth=depth, batch_size=batch, precision=precision
        )
        loops = plain_loop(group.data, group.recipe, device), training.train(group, 10**9, peak=0.1)
        times = [], []
        for turn in range(rounds + 1):
            for loop, found in zip(loops, times):
                spent = seconds(loop, 200 if device.type == "cuda" else 4, device)
                # the first turn warms up: workers, kernels, memory
                found += [spent] if turn else []
        loops[0].close()
        del group, loops, loop  # graphs are let go before the next ones are recorded
        ours = statistics.median(times[1])
        faster = [networks * a / b for a, b in zip(*times)]
        ratio = f"{statistics.median(faster):.2f} ({min(faster):.2f}-{max(faster):.2f})"
        preset = next(p for p in common.PRESETS.values() if p["depth"] == depth)
        hours = (1 + preset["levels"]) * preset["total_steps"] * ours / networks / 3600
        print(
            f"ResNet-{depth:2} {batch:7} {networks:8} {statistics.median(times[0]):8.4f}",
            f"{ours:8.4f} {batch * networks / ours:9.0f}  {ratio:18} {hours:9.1f}",
            flush=True,
        )


def main() -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument(
        "--accept", action="store_true", help="what works on this GPU, and how fast"
    )
    parser.add_argument("--check", help="one check of --accept, in this process")
    parser.add_argument("--quick", action="store_true", help="ResNet-20 at batch 128 alone")
    parser.add_argument("--precision", default="auto", help="of ours: auto, fp32 or bf16")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:i")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each loop (5)")
    args = parser.parse_args()
    if args.accept:
        return accept()
    device = training.resolve_device(args.device)
    if args.check:
        print(json.dumps((CHECKS | SPEEDS | {"fingerprint": fingerprint})[args.check](device)))
        return 0
    table(device, args.quick, args.rounds, args.precision)
    return 0


if __name__ == "__main__":
    sys.exit(main())
