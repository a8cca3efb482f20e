"""How a network is trained, in the order in which an image becomes a weight.

load_data -> epoch_table -> take_batch -> ResNet.forward -> Group.step_one -> Member.update. Stages
decide who is trained, and on what.
"""

import contextlib
import copy
import math
import os
import platform
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.sgd import sgd
from tqdm import tqdm

import common
from common import (
    AUGMENT,
    INIT,
    ORDER,
    PRETRAINING,
    Failure,
    InputError,
    environment_flag,
    prefixed,
    rng,
    to_json,
)
from cudagraph import use_recording
from dataset import load_images

# ------------------------------------------------------------ data on the device


@dataclass
class Data:
    """One data set on one device. Images are uint8; index i is example i in data-set order."""

    classes: list[str]
    train: Tensor  # [N, H + 2 pad, W + 2 pad, C] uint8, framed with black: a crop is a slice
    labels: Tensor  # [N] int64, clean
    test: Tensor  # [n, H, W, C] uint8
    test_labels: Tensor  # [n] int64
    mean: Tensor  # [C] float32 of the full training set, on the scale of the uint8 values
    std: Tensor  # [C] float32, likewise
    fingerprint: str  # sha256 of training images and clean labels
    pad: int
    flip: bool

    def train_images(self) -> Tensor:
        """The training images themselves, [N, H, W, C] uint8."""
        end = self.train.shape[1] - self.pad
        return self.train[:, self.pad : end, self.pad : end]

    def normalise(self, images: Tensor) -> Tensor:
        """[B, H, W, C] uint8 -> [B, C, H, W] float32, channels-last in memory."""
        return ((images.float() - self.mean) / self.std).permute(0, 3, 1, 2)


def load_data(
    name: str,
    data_dir: Path,
    device: torch.device,
    *,
    pad: int,
    flip: bool,
    image_size: int | None = None,
) -> Data:
    """A data set on the device, its training images framed by `pad` pixels of black.

    image_size  pixels of a side, of a folder of images (default: 32)
    """
    images = load_images(name, data_dir, image_size)
    arrays = (images.train, images.labels, images.test, images.test_labels, images.mean, images.std)
    x, *rest = (torch.from_numpy(array).to(device) for array in arrays)
    framed = F.pad(x, (0, 0, pad, pad, pad, pad))
    return Data(images.classes, framed, *rest, images.fingerprint, pad, flip)


# ------------------------------------------------------------ order and crops


def epoch_table(
    seed: int, level: int, epoch: int, n: int, batch: int, pad: int, flip: bool
) -> np.ndarray:
    """Which examples an epoch takes and how it cuts them: [4, n // batch, batch] int64.

    The four are example, top, left and flip (0 or 1). A pure function of its arguments: any step
    can be made again without the ones before, and every device sees the same order.
    """
    steps = n // batch
    order = rng(ORDER, seed, level, epoch).permutation(n)[: steps * batch]
    draw = rng(AUGMENT, seed, level, epoch)
    top, left = draw.integers(0, 2 * pad + 1, (2, steps * batch))
    flips = draw.integers(0, 2 if flip else 1, steps * batch)
    return np.stack([order, top, left, flips]).reshape(4, steps, batch)


def take_batch(data: Data, table: Tensor) -> Tensor:
    """Crop, flip and normalise a batch of an epoch table: [4, B] int64 -> [B, C, H, W] float32."""
    example, top, left, flips = table
    line = torch.arange(data.test.shape[1], device=table.device)
    rows = top[:, None] + line
    columns = left[:, None] + torch.where(flips[:, None] == 1, line.flip(0), line)
    return data.normalise(data.train[example[:, None, None], rows[:, :, None], columns[:, None, :]])


# ------------------------------------------------------------ network


class BatchNorm(nn.Module):
    """torch's BatchNorm2d without step counter, its statistics precise in every memory format."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.ones(channels)),
            nn.Parameter(torch.zeros(channels)),
        )
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and sums_naively(x):
            return PreciseBatchNorm.apply(
                x, self.weight, self.bias, self.running_mean, self.running_var
            )
        # Not F.batch_norm: on a GPU in fp32 it takes persistent kernels, which are reported to
        # stall beside others.
        return torch.native_batch_norm(
            x,
            self.weight,
            self.bias,
            self.running_mean,
            self.running_var,
            self.training,
            MOMENTUM,
            EPSILON,
        )[0]


# of batch norm: the weight of a new batch in running statistics; torch's defaults
MOMENTUM, EPSILON = 0.1, 1e-5


def sums_naively(x: Tensor) -> bool:
    """Would torch's batch norm sum so many values of a channel one after another that it matters?

    It does so on a CPU in channels-last memory: after 131,072 values (ResNet-20, batch 128) its
    output is off by 1e-4 and the gradients of all convolutions by 1%. Up to 4,096 values (every
    layer of the digits) it is off by 4e-6 at most, and its one call takes a third of the time of
    ours; in bf16 rounding is far more than that.
    """
    several = x.dtype == torch.float32 and x.numel() // x.shape[1] > 4096
    return several and not x.is_cuda and x.is_contiguous(memory_format=torch.channels_last)


class PreciseBatchNorm(torch.autograd.Function):
    """Batch norm in training mode on a CPU in channels-last memory, with better statistics.

    torch's own kernels are given them. Every pixel of an image is first treated as a channel of its
    own, whose statistics sum over the batch alone; those of its pixels make up a channel's.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, running_mean, running_var):
        batch, channels, height, width = x.shape
        # a view of the same memory
        pixels = x.permute(0, 2, 3, 1).reshape(batch, height * width * channels)
        means, variances = torch.batch_norm_update_stats(pixels, None, None, MOMENTUM)
        means = means.view(-1, channels)
        mean = means.mean(0)
        variance = variances.view(-1, channels).mean(0) + (means - mean).square_().mean(0)
        n = batch * height * width
        running_mean.lerp_(mean, MOMENTUM)
        running_var.lerp_(variance * (n / (n - 1)), MOMENTUM)  # the unbiased one, as torch keeps
        ctx.save_for_backward(x, weight, mean, (variance + EPSILON).rsqrt())
        return torch.native_batch_norm(x, weight, bias, mean, variance, False, MOMENTUM, EPSILON)[0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        x, weight, mean, inverse_std = ctx.saved_tensors
        gradients = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, None, None, mean, inverse_std, True, EPSILON, [True, True, True]
        )
        return *gradients, None, None


class Block(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = BatchNorm(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = BatchNorm(c_out)
        self.shortcut = nn.Sequential()
        # a projection, as in the code of the figures; He et al.'s option A has none
        if c_in != c_out:
            self.shortcut = nn.Sequential(nn.Conv2d(c_in, c_out, 1, bias=False), BatchNorm(c_out))

    def forward(self, x: Tensor) -> Tensor:
        # in place: no backward pass needs what batch norm put out
        y = self.bn1(self.conv1(x)).relu_()
        if self.stride > 1:
            # Take every second row and column first, so that the projection has stride 1: the same
            # numbers, without oneDNN's kernel for the weight gradient of a strided 1x1 convolution,
            # which can write outside its memory (oneDNN issue 6035). Pooling single pixels costs a
            # ResNet-20 step 1%, slicing 4%.
            x = F.avg_pool2d(x, 1, self.stride)
        y = self.bn2(self.conv2(y)).add_(self.shortcut(x))
        return y.relu_()


class ResNet(nn.Module):
    """CIFAR ResNet of depth 6n + 2 (He et al. 2016): [B, channels, H, W] -> logits [B, classes]."""

    def __init__(self, depth: int, width: int, channels: int, classes: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn = BatchNorm(width)
        widths = [w for w in (width, 2 * width, 4 * width) for _ in range((depth - 2) // 6)]
        blocks = [Block(a, b, 1 if a == b else 2) for a, b in zip([width, *widths], widths)]
        self.blocks = nn.Sequential(*blocks)
        self.linear = nn.Linear(4 * width, classes)

    def prunable(self) -> dict[str, nn.Parameter]:
        """Weights of convolutions and of the linear layer, in state-dict order."""
        return {name: p for name, p in self.named_parameters() if p.dim() > 1}

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.bn(self.conv(x)).relu_())
        return self.linear(x.mean((2, 3)))


@torch.no_grad()
def initialise(net: ResNet, seed: int) -> None:
    """Draw the weights w_0 of a seed.

    Kaiming-normal weights (fan-in, ReLU), batch-norm weights in [0, 1), torch's linear bias.
    """
    draw = rng(INIT, seed)
    for name, p in net.named_parameters():
        if p.dim() > 1:
            value = draw.standard_normal(p.shape) * math.sqrt(2 / p[0].numel())
        elif name == "linear.bias":
            value = draw.uniform(-1, 1, p.shape) / math.sqrt(net.linear.in_features)
        elif name.endswith(".weight"):
            value = draw.random(p.shape)
        elif name.endswith(".bias"):
            value = np.zeros(p.shape)
        else:
            raise ValueError(f"initialise has no rule for {name}")
        p.copy_(torch.from_numpy(value))


# ------------------------------------------------------------ training


class Member:
    """A network in training: weights, momentum, masks, data order, next step, last epoch's loss."""

    def __init__(self, name: str, recipe: dict, data: Data, seed: int):
        self.name, self.seed, self.step, self.failed = name, seed, 0, False
        self.net = ResNet(recipe["depth"], recipe["width"], data.test.shape[3], recipe["classes"])
        initialise(self.net, seed)
        self.net.to(data.labels.device, memory_format=torch.channels_last)
        self.parameters = dict(self.net.named_parameters())
        self.momentum = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self.prunable = self.net.prunable()
        self.masks = {name: torch.ones_like(p) for name, p in self.prunable.items()}
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=data.labels.device)
        self.loss_steps = 0

    def state(self) -> dict[str, Tensor]:
        """Everything that a step changes, by name; writing into it changes the member."""
        return prefixed(weight=self.net.state_dict(), momentum=self.momentum) | {
            "loss_sum": self.loss_sum
        }

    def copy(self) -> dict[str, Tensor]:
        return {name: t.clone() for name, t in self.state().items()}

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor]) -> None:
        for name, t in self.state().items():
            t.copy_(state[name])

    @torch.no_grad()
    def rewind(self, weights: dict[str, Tensor], masks: dict[str, Tensor], step: int) -> None:
        """Start again from weights * masks at a step of the schedule, with fresh momentum."""
        self.step, self.failed, self.loss_steps = step, False, 0
        self.net.load_state_dict(weights)  # into the same tensors
        for name, mask in self.masks.items():
            mask.copy_(masks[name])
        for t in (self.loss_sum, *self.momentum.values()):
            t.zero_()
        self.apply_masks()

    @torch.no_grad()
    def update(self, recipe: dict, rate: Tensor) -> None:
        """One step of SGD, then pruned weights back to zero; spends the gradients.

        A parameter without a gradient stays as it is, as with torch.optim.SGD: a frozen layer, an
        unused head.
        """
        trained = {name: p for name, p in self.parameters.items() if p.grad is not None}
        parameters = list(trained.values())
        # The function behind torch.optim.SGD, whose class imports the compiler, over a second a
        # process. fused takes the rate as a tensor, the other implementations read it on the host.
        sgd(
            parameters,
            [p.grad for p in parameters],
            [self.momentum[name] for name in trained],
            lr=rate,
            momentum=recipe["momentum"],
            weight_decay=recipe["weight_decay"],
            dampening=0.0,
            nesterov=False,
            maximize=False,
            fused=True,
        )
        self.apply_masks()
        for p in parameters:
            p.grad = None

    @torch.no_grad()
    def apply_masks(self) -> None:
        torch._foreach_mul_(list(self.prunable.values()), list(self.masks.values()))

    def finite(self) -> bool:
        """Are all weights and statistics finite? One copy to the host for all tensors together."""
        return bool(torch.stack([t.isfinite().all() for t in self.net.state_dict().values()]).all())


def even_groups(items: list, at_once: int | None, device: torch.device) -> list[list]:
    """The fewest even groups of at most at_once.

    The default is 8 on a GPU and 1 on a CPU, which has one to itself.
    """
    groups = -(-len(items) // (at_once or (8 if device.type == "cuda" else 1)))
    return [items[i::groups] for i in range(groups)]


def loss_of(net: ResNet, images: Tensor, labels: Tensor, precision: str) -> Tensor:
    with torch.autocast(
        images.device.type, torch.bfloat16, precision == "bf16", cache_enabled=False
    ):
        logits = net(images)
    return F.cross_entropy(logits.float(), labels)


class Group:
    """Networks of one recipe that take their steps side by side; on a GPU each is a CUDA graph.

    labels  [N] int64 on the device, default the clean ones
    subset  [M] int64 indices of the examples to train on, default all
    """

    def __init__(
        self,
        members: list[Member],
        data: Data,
        recipe: dict,
        *,
        labels: Tensor | None = None,
        subset: np.ndarray | None = None,
    ):
        self.members, self.data, self.recipe = members, data, recipe
        self.labels = data.labels if labels is None else labels
        self.subset = np.arange(len(self.labels)) if subset is None else subset
        batch = min(recipe["batch_size"], len(self.subset))  # a smaller subset is one batch
        self.per_epoch = len(self.subset) // batch
        place = {"device": self.labels.device}
        # what a recorded step reads; the rest of it is in the members
        self.rate = torch.zeros((), **place)
        self.examples = torch.zeros(len(members), 4, batch, dtype=torch.int64, **place)
        self.tables = torch.zeros(
            len(members), 4, self.per_epoch, batch, dtype=torch.int64, **place
        )
        self.replays = [None] * len(members)  # of recorded steps; None: plain ones
        self.prepared = False

    def prepare(self, k: int) -> None:
        """Before the very first step: prove that of member k, whose turn it is; on a GPU record."""
        self.prepared = True
        prove_once(self, k)
        if self.labels.is_cuda and not environment_flag("NO_GRAPH"):
            torch.cuda.empty_cache()  # of the proof
            for k in range(len(self.members)):
                use_recording(self, k)

    def load_epoch(self, level: int, epoch: int) -> None:
        """Fill the tables: what every member sees in this epoch."""
        batch, data = self.examples.shape[2], self.data
        for m, kept in zip(self.members, self.tables):
            table = epoch_table(m.seed, level, epoch, len(self.subset), batch, data.pad, data.flip)
            table[0] = self.subset[table[0]]
            new = torch.from_numpy(table)
            # From a pinned buffer of its own, which the copy may still read when the next epoch is
            # drawn.
            kept.copy_(new.pin_memory() if kept.is_cuda else new, non_blocking=True)

    def step_one(self, k: int) -> None:
        """The training step of member k: batch, loss, gradients, SGD, masks."""
        m, examples = self.members[k], self.examples[k]
        images, labels = take_batch(self.data, examples), self.labels[examples[0]]
        loss = loss_of(m.net, images, labels, self.recipe["precision"])
        loss.backward()
        m.update(self.recipe, self.rate)
        m.loss_sum += loss.detach()

    def step_all(self, active: list[int]) -> None:
        """A step of each of these members; on a GPU all of them at the same time."""
        streams = []
        for k in active:
            replay = self.replays[k]
            # a replay returns the stream that it runs on, a plain step None
            streams.append(replay() if replay else self.step_one(k))
        # Wait only after all have started; waiting one by one would serialise them.
        for stream in streams:
            if stream:
                torch.cuda.current_stream().wait_stream(stream)


# ------------------------------------------------------------ a first step proves itself

# Of ||r||. Honest networks were within 1.2e-4 and 3e-3 (Zen 4, AVX2 and AVX-512, dense to 1% of the
# weights), within 1.6e-2 on other bf16 units; the known fault of oneDNN is above 6e-2.
TOLERANCE = {"fp32": 1e-3, "bf16": 4e-2}

CANCELLED = 5e-6  # of ||a|| ||b||; honest networks were within 8e-7

PROVED = set()  # recipes and batches of which this process has proved a step, or left it out


def prove_once(group: Group, k: int) -> None:
    """Call prove_first_step once a process for each recipe and batch.

    NO_PROOF=1 leaves it out, and says so.
    """
    if environment_flag("NO_PROOF"):
        if "NO_PROOF" not in PROVED:
            print("note: NO_PROOF=1: gradients of the first step are not checked", file=sys.stderr)
            PROVED.add("NO_PROOF")
        return
    recipe = {key: v for key, v in group.recipe.items() if key not in ("seed", *PRETRAINING)}
    step = to_json([recipe, [*group.examples.shape[1:]], f"{group.labels.device}"])
    if step not in PROVED:
        prove_first_step(group, k)
        PROVED.add(step)


def prove_first_step(group: Group, k: int) -> None:
    """Failure unless member k's next step has right gradients at each convolution and linear layer.

    A forward and backward pass of its batch, on a copy of its network, at the precision and in the
    memory format of the training. The gradients g of each layer's weight and input are held beside
    r, computed again from the same operands a and b (what the layer saw and the gradient of its
    output, rounded as they were) in float32, contiguous, without oneDNN and cuDNN. ||g - r|| may be
    TOLERANCE x ||r|| + CANCELLED x ||a|| ||b||: the second term is for sums that cancel, as where a
    pruned network hands a layer a constant input. Comparing whole networks would not do: signs of
    ReLU flip with rounding, so that honest gradients differ by per cents.

    A network that draws random numbers, as dropout does, is a Failure too, since its result would
    depend on its company. Left out are parameters without a gradient, layers of somebody's own
    class, and values that are not finite, which the loss will tell.
    """
    m, device, precision = group.members[k], group.labels.device, group.recipe["precision"]
    images, labels = take_batch(group.data, group.examples[k]), group.labels[group.examples[k, 0]]
    net, found = copy.deepcopy(m.net).train(), []
    for name, layer in net.named_modules():
        if type(layer) in (nn.Conv2d, nn.Linear) and isinstance(layer.weight, nn.Parameter):
            compare_gradients(layer, name, precision, found)
    with torch.random.fork_rng([device.index or 0] if device.type == "cuda" else []):
        before = random_states(device)
        loss_of(net, images, labels, precision).backward()
        if any(not torch.equal(a, b) for a, b in zip(before, random_states(device))):
            raise Failure(
                "the network draws random numbers while it trains (dropout?): its result would "
                "depend on the networks beside it and on where a run was stopped"
            )
    for what, gap, norm, operands in found:
        if not gap <= TOLERANCE[precision] * norm + CANCELLED * operands:
            off = f"{gap / norm:.1%}" if norm else f"{gap:.1e} where it is 0"
            raise Failure(
                f"wrong gradient: {what} is off by {off}, rounding explains "
                f"{TOLERANCE[precision]:.1%} at most ({describe(device, precision)}, torch "
                f"{torch.__version__}). Not your settings but a kernel is wrong: try "
                "OMP_NUM_THREADS=1, another --precision, or another version of torch; NO_PROOF=1 "
                "trains all the same"
            )


def random_states(device: torch.device) -> list[Tensor]:
    """The states of torch's generators that a network on this device could draw from."""
    return [
        torch.get_rng_state(),
        *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else []),
    ]


def compare_gradients(layer: nn.Module, name: str, precision: str, found: list) -> None:
    """Let a layer's next backward pass add (what, ||g - r||, ||r||, ||a|| ||b||) to found."""
    of_input, of_weight = [], []  # (r, ||a|| ||b||) of every use; those of the weight are added up

    def compare(what: str, g: Tensor, r: Tensor, operands: float) -> None:
        gap, norm = length(g - r), length(r)
        if math.isfinite(norm):
            found.append((f"{name}, that of its {what},", gap, norm, operands))

    def rename_input(_, inputs: tuple) -> tuple:
        x = inputs[0].view_as(inputs[0])  # another name, whose gradient is that of this use alone
        if x.requires_grad:
            x.register_hook(lambda g: compare("input", g.float(), *of_input.pop()))
        return (x,)

    def compute_again(_, inputs: tuple, output: Tensor) -> None:
        def when_known(of_output: Tensor) -> None:
            r_input, r_weight = gradients_again(layer, inputs[0], of_output, precision)
            of_input.append((r_input, length(layer.weight) * length(of_output)))
            of_weight.append((r_weight, length(inputs[0]) * length(of_output)))

        if output.requires_grad:
            output.register_hook(when_known)

    layer.register_forward_pre_hook(rename_input)
    layer.register_forward_hook(compute_again)
    if layer.weight.requires_grad:
        layer.weight.register_hook(lambda g: compare("weight", g, *map(sum, zip(*of_weight))))


def length(t: Tensor) -> float:
    """||t||, summed in float64."""
    return torch.linalg.vector_norm(t.detach(), dtype=torch.float64).item()


@contextlib.contextmanager
def plain_kernels() -> Iterator[None]:
    """No oneDNN, no cuDNN, and one thread: the plain kernels start threads image by image."""
    before = torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled, torch.get_num_threads()
    torch.backends.mkldnn.enabled = torch.backends.cudnn.enabled = False
    torch.set_num_threads(1)
    try:
        with torch.enable_grad():
            yield
    finally:
        torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled = before[:2]
        torch.set_num_threads(before[2])


def gradients_again(
    layer: nn.Module, x: Tensor, of_output: Tensor, precision: str
) -> tuple[Tensor, Tensor]:
    """Gradients of a layer's input and weight, float32, from the operands of its training pass."""
    rounded = torch.bfloat16 if precision == "bf16" else torch.float32
    operands = (x, layer.weight)
    x, weight = (t.detach().to(rounded).float().contiguous().requires_grad_() for t in operands)
    with plain_kernels():
        if isinstance(layer, nn.Linear):
            y = F.linear(x, weight)
        else:
            y = layer._conv_forward(x, weight, None)
        return torch.autograd.grad(y, (x, weight), of_output.float().contiguous())


# ------------------------------------------------------------ the loop


def train(
    group: Group, stop: int, *, peak: float, level: int = 0, only: list[Member] | None = None
) -> Iterator[int]:
    """Train the members of a group to step `stop`; yields the number of steps after every step.

    Each starts at its own member.step, and its result does not depend on its company. One whose
    loss is not finite stops there (member.failed) and the others go on.
    peak  learning rate before the first milestone
    only  the members that take part; all of them by default
    """
    members, recipe, per_epoch = group.members, group.recipe, group.per_epoch
    part = [k for k, m in enumerate(members) if only is None or m in only]
    first = min(members[k].step for k in part)
    for k in part:
        members[k].net.train()
    name = members[part[0]].name + (f" and {len(part) - 1} more" if len(part) > 1 else "")
    for step in tqdm(range(first, stop), name, stop, initial=first, disable=None, leave=False):
        epoch, i = divmod(step, per_epoch)
        if step == first or i == 0:
            group.load_epoch(level, epoch)
        active = [k for k in part if members[k].step == step and not members[k].failed]
        if active and not group.prepared:
            group.examples.copy_(group.tables[:, :, i])
            group.prepare(active[0])
        # of update number `step`, counted from 0
        group.rate.fill_(peak * recipe["lr_decay"] ** sum(m <= step for m in recipe["milestones"]))
        group.examples.copy_(group.tables[:, :, i])
        if step == stop - per_epoch:  # the loss reported is the mean over the last epoch
            for k in active:
                members[k].loss_sum.zero_()
                members[k].loss_steps = 0
        group.step_all(active)
        for m in (members[k] for k in active):
            m.loss_steps += 1
            m.step = step + 1
            # on a GPU looking at the loss waits for it
            if not m.loss_sum.is_cuda or m.step % 200 == 0 or m.step == stop:
                m.failed = not math.isfinite(m.loss_sum)
            if m.step == stop:  # no loss has seen the last update
                m.failed = m.failed or not m.finite()
        yield step + 1


@torch.no_grad()
def predict(net: nn.Module, data: Data, images: Tensor) -> Tensor:
    """Logits [n, classes] float32 in eval mode of images [n, H, W, C] uint8, not augmented."""
    training = net.training
    net.eval()
    pixels = images.shape[1] * images.shape[2]
    at_once = (2**20 if images.is_cuda else 2**17) // pixels  # 128 of 32x32 fit a CPU's cache
    logits = torch.cat([net(data.normalise(part)) for part in images.split(max(1, at_once))])
    net.train(training)  # the caller may be in the middle of a training
    return logits


def evaluate(net: nn.Module, data: Data) -> tuple[float, float]:
    """(accuracy as a fraction, mean cross-entropy) on the test set."""
    logits = predict(net, data, data.test)
    accuracy = (logits.argmax(1) == data.test_labels).double().mean().item()
    return accuracy, F.cross_entropy(logits.double(), data.test_labels).item()


# ------------------------------------------------------------ files


def to_numpy(tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """The same tensors as NumPy arrays on the host."""
    return {name: t.detach().cpu().numpy() for name, t in tensors.items()}


def save_tensors(path: Path, tensors: dict[str, Tensor], info: dict) -> None:
    """common.save_tensors of torch's tensors."""
    common.save_tensors(path, to_numpy(tensors), info)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict]:
    """common.load_tensors as torch's tensors."""
    tensors, info = common.load_tensors(path)
    return {name: torch.from_numpy(t) for name, t in tensors.items()}, info


# ------------------------------------------------------------ where


def resolve_device(name: str) -> torch.device:
    """The device by name, set up so that the same command gives the same numbers."""
    # Read when CUDA starts. cuBLASLt's workspace (KiB) is part of cuBLAS's, and torch warns if it
    # is larger.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    os.environ.setdefault("CUBLASLT_WORKSPACE_SIZE", "128")
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise InputError(f"--device must be auto, cpu, cuda or cuda:i, not {name}")
    device = torch.device(name)
    if device.type == "cuda":
        if (device.index or 0) >= torch.cuda.device_count():
            raise InputError(f"--device {name}: no such GPU, {torch.cuda.device_count()} found")
        torch.cuda.set_device(device.index or 0)  # streams and graphs are made on the current one
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    return device


def has_fast_bf16(device: torch.device) -> bool:
    """Does this hardware multiply bf16 faster than fp32?"""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def resolve_precision(precision: str, device: torch.device, made: dict) -> str:
    """fp32 or bf16. `auto` is that of the recipe in a file made before, else what is fast here.

    So what one machine has begun or finished is the same work on another.
    """
    if precision != "auto":
        return precision
    return made.get("precision", "bf16" if has_fast_bf16(device) else "fp32")


def check_precision(precision: str, device: torch.device, source: Path | None = None) -> None:
    """InputError where the hardware is slow at a precision.

    source  the unfinished file that has it, if there is one
    """
    if precision == "bf16" and not has_fast_bf16(device):
        there = f"{source} was begun in bf16, which" if source else "--precision bf16"
        instead = (
            "go on where it was begun, or make the start anew with --precision fp32 "
            "in another folder"
            if source
            else "use fp32"
        )
        raise InputError(
            f"{there} needs a GPU of compute capability 8.0, or a CPU with AMX or AVX512-BF16: "
            f"{instead}"
        )


def describe(device: torch.device, precision: str) -> str:
    """On what this process trains: device or instruction sets, threads, precision."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {precision}"
    threads = torch.get_num_threads()
    return f"{processor()}, {threads} thread{'s' if threads > 1 else ''}, {precision}"


def processor() -> str:
    """Instruction sets of torch's kernels and of oneDNN's, each as far as its variable allows."""
    sets = {
        "AMX": torch.cpu._is_amx_tile_supported,
        "AVX512_BF16": torch.cpu._is_avx512_bf16_supported,
        "AVX512": torch.cpu._is_avx512_supported,
        "AVX2": torch.cpu._is_avx2_supported,
    }
    of_machine = next((name for name, supported in sets.items() if supported()), platform.machine())
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA")
    onednn = f"at most {limit}" if limit else of_machine
    return f"CPU, torch {torch.backends.cpu.get_cpu_capability()}, oneDNN {onednn}"


def say_where(device: torch.device, precision: str) -> None:
    """Said once by every stage that trains, before it does."""
    print(f"training on: {describe(device, precision)}", flush=True)


def made_by(device: torch.device) -> dict:
    """What a stage that trains records but never compares."""
    cuda = device.type == "cuda"
    unproved = {"NO_PROOF": True} if environment_flag("NO_PROOF") else {}
    of_torch = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": str(device),
        "processor": torch.cuda.get_device_name(device) if cuda else processor(),
    }
    return common.made_by() | of_torch | unproved
