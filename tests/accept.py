"""What works on this GPU, and how fast: one line a check, each in a process of its own with a time limit.

python tests/benchmark.py --accept          exit status 0: all is well; 1: a check failed; 2: no GPU here
A line holds its name, what was found, the limit, and ok or FAILED; speeds over their goal fail nothing.
"""

import contextlib
import functools
import io
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent.parent))
import imp

import common

SECONDS = 300  # a check that takes longer hangs


def make_group(device: torch.device, networks: int = 1, depth: int = 20, precision: str = "fp32",
               examples: int = 2000) -> common.Group:  # fmt: skip
    """Networks on random images of CIFAR-10's shape; on a CPU a tiny network on few of them."""
    recipe = common.CIFAR10 | {"depth": depth, "precision": precision, "classes": 10}
    if device.type == "cpu":
        recipe, examples = recipe | {"depth": 8, "width": 2, "batch_size": 16}, 200
    draw = np.random.default_rng(0)
    images, labels = draw.integers(0, 256, (examples, 32, 32, 3), np.uint8), draw.integers(0, 10, examples)
    return group_on(images, labels, recipe, device, networks)


def group_on(
    images: np.ndarray, labels: np.ndarray, recipe: dict, device: torch.device, networks: int
) -> common.Group:
    """Networks of a recipe on images [N, 32, 32, 3] uint8 and labels [N] of ten classes."""
    arrays = (images, labels, *common.channel_statistics(images))
    x, y, mean, std = (torch.from_numpy(a).to(device) for a in arrays)
    data = common.Data([*"0123456789"], F.pad(x, (0, 0, 4, 4, 4, 4)), y, x, y, mean, std, "", 4, True)
    members = [common.Member(f"network {seed}", recipe, data, seed) for seed in range(networks)]
    return common.Group(members, data, recipe)


def train(group: common.Group, stop: int) -> common.Group:
    for _ in common.train(group, stop, peak=0.1):
        pass
    return group


def halve(group: common.Group) -> common.Group:
    """Rewind every member to half-zero masks."""
    for m in group.members:
        masks = {name: mask.clone() for name, mask in m.masks.items()}
        for mask in masks.values():
            mask[::2] = 0
        m.rewind({name: t.clone() for name, t in m.weights().items()}, masks, m.step)
    return group


def differing(a: common.Member, b: common.Member) -> int:
    """How many tensors of two members are not the same, bit for bit."""
    return sum(not torch.equal(t, b.state()[name]) for name, t in a.state().items())


# ---------------------------------------------------------------- checks: device -> (found, limit, ok?)


def versions(device: torch.device) -> tuple:
    gpu = torch.cuda.get_device_properties(device)
    software = f"torch {torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    software += f", Python {platform.python_version()}"
    return f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, {software}", "", True


def tf32_is_off(device: torch.device) -> tuple:
    a, b = torch.randn(512, 512, device=device), torch.randn(512, 512, device=device)
    x, w = torch.randn(16, 64, 16, 16, device=device), torch.randn(64, 64, 3, 3, device=device)
    pairs = [(a @ b, a.double() @ b.double()), (F.conv2d(x, w), F.conv2d(x.double(), w.double()))]
    gap = max(((mine - exact).abs().max() / exact.abs().max()).item() for mine, exact in pairs)
    return f"{gap:.1e}", "5e-05 from float64", gap < 5e-5


def recording(device: torch.device, networks: int, depth: int, precision: str) -> tuple:
    """Recorded without a note, and a recorded step is a plain one bit for bit."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        recorded, plain = (make_group(device, networks, depth, precision) for _ in range(2))
    plain.replays = [None] * networks
    halve(recorded), halve(plain)
    train(recorded, 1), train(plain, 1)
    off = sum(map(differing, recorded.members, plain.members))
    note = [line for line in said.getvalue().splitlines() if line.startswith("note: ")]
    return note[0] if note else f"{off} tensors differ", "no note, 0", not note and not off


def fifty_replays(device: torch.device) -> tuple:
    """50 recorded steps with half-zero masks are 50 plain ones, and pruned weights stay zero."""
    recorded, plain = halve(make_group(device)), halve(make_group(device))
    plain.replays = [None]
    train(recorded, 50), train(plain, 50)
    (a,), (b,) = recorded.members, plain.members
    off = differing(a, b) + sum(int(p[a.masks[name] == 0].any()) for name, p in a.prunable.items())
    return f"{off} tensors differ", "0", off == 0


def company(device: torch.device) -> tuple:
    """A member alone and beside others that start later."""
    alone, together = make_group(device), make_group(device, 4)
    for start, m in zip((0, 7, 3, 20), together.members):
        m.step = start
    off = differing(train(alone, 20).members[0], train(together, 20).members[0])
    return f"{off} tensors differ", "0", off == 0


def stop_and_go_on(device: torch.device) -> tuple:
    """A state that went through the host, put into another group, goes on with the same bits."""
    whole, part, rest = train(make_group(device), 20), make_group(device), make_group(device)
    next(step for step in common.train(part, 20, peak=0.1) if step == 9)
    state = {name: t.cpu() for name, t in part.members[0].state().items()}
    rest.members[0].restore(state)
    rest.members[0].step = 9
    off = differing(whole.members[0], train(rest, 20).members[0])
    return f"{off} tensors differ", "0", off == 0


def fingerprint(device: torch.device) -> tuple:
    """A digest of trained networks, for comparing processes."""
    members = train(halve(make_group(device, 2)), 20).members
    digests = [common.digest({k: t.cpu() for k, t in m.state().items()}, {}) for m in members]
    return " ".join(digests), "", True


def two_processes(device: torch.device) -> tuple:
    found = [run("fingerprint", device) for _ in range(2)]
    return "equal" if found[0] == found[1] else f"{found}", "equal", found[0] == found[1] and found[0][2]


def forced_failure(device: torch.device) -> tuple:
    """A step that cannot be recorded: one note, the device as it was, plain steps; the next group records."""
    step, stream, said = common.Group.step, torch.cuda.current_stream(), io.StringIO()

    def asking(group: common.Group, k: int) -> None:
        step(group, k)
        group.members[k].loss_sum.item()  # waits for the GPU, which a capture forbids

    common.Group.step = asking
    with contextlib.redirect_stderr(said):
        failed = train(make_group(device), 5)
    common.Group.step = step
    clean = torch.cuda.current_stream() == stream
    torch.cuda.empty_cache()
    good = train(make_group(device), 5)
    off = differing(failed.members[0], good.members[0])
    notes = said.getvalue().count("note: ")
    fine = clean and not off and notes == 1 and failed.replays == [None] and good.replays != [None]
    return f"{notes} notes, {off} tensors differ", "1, 0", fine


def memory_of_three_groups(device: torch.device) -> tuple:
    """Groups one after another take no more memory than the first."""
    found = []
    for _ in range(3):
        group = train(make_group(device, 8), 3)
        found.append(torch.cuda.memory_reserved(device) / 2**30)
        del group
        torch.cuda.empty_cache()
    return " ".join(f"{gib:.2f}" for gib in found) + " GiB", "1.1 x the first", max(found) <= 1.1 * found[0]


# ---------------------------------------------------------------- speeds, against the goals


def milliseconds(device: torch.device, networks: int, compiled: bool = False) -> float:
    """Of a step of ResNet-20 at batch 128, for each of so many networks."""
    if compiled:
        common.loss_of = torch.compile(common.loss_of, fullgraph=True, dynamic=False)
    group = train(make_group(device, networks, precision=common.resolve_precision("auto", device)), 100)
    times = []
    for stop in range(300, 1100, 200):
        torch.cuda.synchronize()
        began = time.perf_counter()
        train(group, stop)
        torch.cuda.synchronize()
        times.append((time.perf_counter() - began) / 200 / networks)
    return 1e3 * sorted(times)[len(times) // 2]


def speed(device: torch.device, networks: int, goal: float, compiled: bool = False) -> tuple:
    found = milliseconds(device, networks, compiled)
    return f"{found:.3f} ms", f"goal {goal:g}", found <= goal


def level_change(device: torch.device) -> tuple:
    """Evaluate on 10,000 images, prune, save and rewind eight networks."""
    group = train(make_group(device, 8, examples=10_000), 3)
    start = {name: t.cpu() for name, t in group.members[0].weights().items()}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):  # the first one warms up
            torch.cuda.synchronize()
            began = time.perf_counter()
            for m in group.members:
                common.evaluate(m.net, group.data)
                masks = imp.prune(imp.importance(m.net, group.data, None), m.masks, 0.2)
                tensors = common.prefixed(weight=m.weights(), mask=masks, next=masks)
                common.save_tensors(Path(folder) / "level00.safetensors", tensors, {})
                m.rewind(start, masks, 0)
            torch.cuda.synchronize()
            found = time.perf_counter() - began
    return f"{found:.2f} s", "goal 1", found <= 1


CHECKS: dict[str, Callable[[torch.device], tuple]] = {
    "versions": versions,
    "tf32 is off": tf32_is_off,
    **{f"recording {n} x ResNet-{depth} {precision}": functools.partial(
        recording, networks=n, depth=depth, precision=precision)
       for depth in (20, 56) for n in (1, 8) for precision in ("fp32", "bf16")},
    "50 replays, half-zero masks": fifty_replays,
    "alone and in company": company,
    "stop, restore, go on": stop_and_go_on,
    "two processes": two_processes,
    "forced recording failure": forced_failure,
    "memory of three groups": memory_of_three_groups,
}  # fmt: skip
SPEEDS = {
    "a step alone": functools.partial(speed, networks=1, goal=1.0),
    "a step of each of eight": functools.partial(speed, networks=8, goal=0.45),
    "a step alone, compiled": functools.partial(speed, networks=1, goal=1.0, compiled=True),
    "a step of each of eight, compiled": functools.partial(speed, networks=8, goal=0.45, compiled=True),
    "a level change of eight": level_change,
}


def run(name: str, device: torch.device, seconds: float = SECONDS) -> list:
    """[found, limit, ok] of a check in a process of its own; a crash or a hang is not ok."""
    command = [sys.executable, __file__, name, str(device)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
        if done.returncode:
            raise ValueError("it printed its result and then died")
        return json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return [f"no end after {seconds:g} s", "", False]
    except (ValueError, IndexError):
        return [(done.stderr.splitlines() or [f"status {done.returncode}"])[-1][:200], "", False]


def main() -> int:
    if not torch.cuda.is_available():
        print("accept: no GPU here", file=sys.stderr)
        return 2
    failed = 0
    for name in (*CHECKS, *SPEEDS):
        found, limit, ok = run(name, torch.device("cuda"), 3 * SECONDS if "compiled" in name else SECONDS)
        failed += not ok and name in CHECKS
        word = "ok" if ok else "FAILED" if name in CHECKS else "over"
        print(f"{name:36} {found:40} {limit:20} {word}", flush=True)
    print(f"{failed} of {len(CHECKS)} checks failed" if failed else f"all {len(CHECKS)} checks passed")
    return min(failed, 1)


if __name__ == "__main__":
    every = {**CHECKS, **SPEEDS, "fingerprint": fingerprint}
    print(json.dumps(every[sys.argv[1]](common.resolve_device(sys.argv[2]))))
