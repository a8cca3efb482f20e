"""What works on this GPU, and how fast: one line a check, each in a process of its own with a time limit.

python tests/benchmark.py --accept          exit status 0: all is well; 1: a check failed; 2: no GPU here
A line holds its name, what was found, the limit, and ok or FAILED; speeds over their goal fail nothing.
"""

import contextlib
import io
import itertools
import json
import platform
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent.parent))
import imp

import common


def random_data(device: torch.device, examples: int) -> common.Data:
    """Random images and labels of CIFAR-10's shape, the test set the same."""
    draw = np.random.default_rng(0)
    images, labels = draw.integers(0, 256, (examples, 32, 32, 3), np.uint8), draw.integers(0, 10, examples)
    arrays = (images, labels, *common.channel_statistics(images))
    x, y, mean, std = (torch.from_numpy(a).to(device) for a in arrays)
    return common.Data([*"0123456789"], F.pad(x, (0, 0, 4, 4, 4, 4)), y, x, y, mean, std, "", 4, True)


def group_on(data: common.Data, recipe: dict, networks: int) -> common.Group:
    members = [common.Member(f"network {seed}", recipe, data, seed) for seed in range(networks)]
    return common.Group(members, data, recipe)


def make_group(device: torch.device, networks: int = 1, depth: int = 20, precision: str = "fp32",
               examples: int = 2000) -> common.Group:  # fmt: skip
    """Networks of CIFAR-10's recipe with half-zero masks; on a CPU tiny ones on few images."""
    recipe = common.CIFAR10 | {"depth": depth, "precision": precision, "classes": 10}
    if device.type == "cpu":
        recipe, examples = recipe | {"depth": 8, "width": 2, "batch_size": 16}, 200
    group = group_on(random_data(device, examples), recipe, networks)
    for m in group.members:
        for mask in m.masks.values():
            mask[::2] = 0
        m.apply_masks()
    return group


def train(group: common.Group, stop: int, level: int = 0) -> common.Group:
    for _ in common.train(group, stop, peak=0.1, level=level):
        pass
    return group


def differing(a: common.Member, b: common.Member) -> int:
    """How many tensors of two members are not the same, bit for bit."""
    return sum(not torch.equal(t, b.state()[name]) for name, t in a.state().items())


# ---------------------------------------------------------------- checks: device -> (found, limit, ok?)


def versions(device: torch.device) -> tuple:
    gpu, cudnn = torch.cuda.get_device_properties(device), torch.backends.cudnn.version()
    software = f"torch {torch.__version__}, CUDA {torch.version.cuda}, cuDNN {cudnn}"
    found = f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, {software}, Python {platform.python_version()}"
    return found, "", True


def tf32_is_off(device: torch.device) -> tuple:
    a, b = torch.randn(512, 512, device=device), torch.randn(512, 512, device=device)
    x, w = torch.randn(16, 64, 16, 16, device=device), torch.randn(64, 64, 3, 3, device=device)
    pairs = [(a @ b, a.double() @ b.double()), (F.conv2d(x, w), F.conv2d(x.double(), w.double()))]
    gap = max(((mine - exact).abs().max() / exact.abs().max()).item() for mine, exact in pairs)
    return f"{gap:.1e}", "5e-05 from float64", gap < 5e-5


def near_the_cpu(device: torch.device) -> tuple:
    """The digits network after ten steps, beside the same on the CPU."""
    found = []
    for place in (device, torch.device("cpu")):
        data = common.load_data("digits", "digits", Path("data"), place)
        group = group_on(data, common.PRESETS["digits"] | {"classes": 10}, 1)
        found.append({name: t.cpu() for name, t in train(group, 10).members[0].weights().items()})
    gap = max((t - found[1][name]).abs().max().item() for name, t in found[0].items())
    return f"{gap:.1e}", "1e-02", gap < 1e-2


def recording(device: torch.device, networks: int, depth: int, precision: str, steps: int) -> tuple:
    """Recorded without a note, recorded steps are plain ones bit for bit, and pruned weights stay zero."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        recorded, plain = (make_group(device, networks, depth, precision) for _ in range(2))
    plain.replays = [None] * networks
    for level, group in itertools.product((0, 1), (recorded, plain)):  # one recording for all levels
        for m in group.members:
            m.step = 0
        train(group, steps, level)
    members = recorded.members
    off = sum(map(differing, members, plain.members))
    off += sum(bool(p[m.masks[name] == 0].any()) for m in members for name, p in m.prunable.items())
    note = [line for line in said.getvalue().splitlines() if line.startswith("note: ")]
    return note[0] if note else f"{off} tensors differ", "no note, 0", not note and not off


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
    rest.members[0].restore({name: t.cpu() for name, t in part.members[0].state().items()})
    rest.members[0].step = 9
    off = differing(whole.members[0], train(rest, 20).members[0])
    return f"{off} tensors differ", "0", off == 0


def fingerprint(device: torch.device) -> tuple:
    """A digest of trained networks, for comparing processes."""
    members = train(make_group(device, 2), 20).members
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
    off, notes = differing(failed.members[0], good.members[0]), said.getvalue().count("note: ")
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


def clock() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


def speed(device: torch.device, networks: int, goal: float, compiled: bool = False) -> tuple:
    """Milliseconds of a step of ResNet-20 at batch 128, for each of so many networks."""
    if compiled:
        common.loss_of = torch.compile(common.loss_of, fullgraph=True, dynamic=False)
    group = train(make_group(device, networks, precision=common.resolve_precision("auto", device)), 100)
    times = []
    for stop in range(300, 1100, 200):
        began = clock()
        train(group, stop)
        times.append(1e3 * (clock() - began) / 200 / networks)
    found = sorted(times)[len(times) // 2]
    return f"{found:.3f} ms", f"goal {goal:g}", found <= goal


def level_change(device: torch.device) -> tuple:
    """Evaluate on 10,000 images, prune, save and rewind eight networks."""
    group = train(make_group(device, 8, examples=10_000), 3)
    start = {name: t.cpu() for name, t in group.members[0].weights().items()}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):  # the first one warms up
            began = clock()
            for m in group.members:
                common.evaluate(m.net, group.data)
                masks = imp.prune(imp.importance(m.net, group.data, None), m.masks, 0.2)
                tensors = common.prefixed(weight=m.weights(), mask=masks, next=masks)
                common.save_tensors(Path(folder) / "level00.safetensors", tensors, {})
                m.rewind(start, masks, 0)
            found = clock() - began
    return f"{found:.2f} s", "goal 1", found <= 1


CHECKS = {
    "versions": versions,
    "tf32 is off": tf32_is_off,
    "near the CPU": near_the_cpu,
    **{f"recording {n} x ResNet-{depth} {precision}": partial(
        recording, networks=n, depth=depth, precision=precision, steps=1)
       for depth in (20, 56) for n in (1, 8) for precision in ("fp32", "bf16")},
    "50 replays, half-zero masks": partial(recording, networks=1, depth=20, precision="fp32", steps=50),
    "alone and in company": company,
    "stop, restore, go on": stop_and_go_on,
    "two processes": two_processes,
    "forced recording failure": forced_failure,
    "memory of three groups": memory_of_three_groups,
}  # fmt: skip
SPEEDS = {
    "a step alone": partial(speed, networks=1, goal=1.0),
    "a step of each of eight": partial(speed, networks=8, goal=0.45),
    "a step alone, compiled": partial(speed, networks=1, goal=1.0, compiled=True),
    "a step of each of eight, compiled": partial(speed, networks=8, goal=0.45, compiled=True),
    "a level change of eight": level_change,
}


def run(name: str, device: torch.device, seconds: float = 300) -> list:
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
        found, limit, ok = run(name, torch.device("cuda"), 900 if "compiled" in name else 300)
        failed += not ok and name in CHECKS
        word = "ok" if ok else "FAILED" if name in CHECKS else "over"
        print(f"{name:36} {found:40} {limit:20} {word}", flush=True)
    print(f"{failed} of {len(CHECKS)} checks failed" if failed else f"all {len(CHECKS)} checks passed")
    return min(failed, 1)


if __name__ == "__main__":
    every = {**CHECKS, **SPEEDS, "fingerprint": fingerprint}
    print(json.dumps(every[sys.argv[1]](common.resolve_device(sys.argv[2]))))
