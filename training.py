"""How a network is trained, in the order in which an image becomes a weight.

load_data -> epoch_table -> take_batch -> ResNet.forward -> Group.step_one -> Member.update. The
stages decide which networks are trained, and on what. This is the file to change for another
network, optimiser or augmentation.
"""

import contextlib
import copy
import functools
import math
import os
import platform
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

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
    """One data set on one device. Index i is training example i in data-set order."""

    classes: list[str]
    train: Tensor  # [N, H + 2 pad, W + 2 pad, C] uint8, framed with black, so a crop is a slice
    labels: Tensor  # [N] int64, the clean ones
    test: Tensor  # [n, H, W, C] uint8
    test_labels: Tensor  # [n] int64
    mean: Tensor  # [C] float32, of the full training set, on the scale of the uint8 values
    std: Tensor  # [C] float32, of the full training set, on the same scale
    fingerprint: str  # the sha256 of the training images and the clean labels
    pad: int  # crops are shifted by up to so many pixels
    flip: bool  # half of the crops are mirrored

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
    """Return the examples, crops and flips of an epoch, [4, steps, batch] int64.

    The four rows are the example, the top and the left of its crop, and whether it is mirrored (0
    or 1). An epoch has n // batch steps. The table is a pure function of its arguments: any step
    can be made again without the steps before it, and every device sees the same order.
    """
    steps = n // batch
    used = steps * batch
    order = rng(ORDER, seed, level, epoch).permutation(n)[:used]
    random = rng(AUGMENT, seed, level, epoch)
    top, left = random.integers(0, 2 * pad + 1, (2, used))
    mirrored = random.integers(0, 1 + flip, used)  # all 0 without flips
    return np.stack([order, top, left, mirrored]).reshape(4, steps, batch)


def take_batch(data: Data, table: Tensor) -> Tensor:
    """Return the images of one step of an epoch table, cropped, mirrored and normalised.

    table  [4, B] int64; the result is [B, C, H, W] float32
    """
    examples, top, left, mirrored = table
    offsets = torch.arange(data.test.shape[1], device=table.device)
    backwards = offsets.flip(0)
    rows = top[:, None] + offsets  # [B, H]
    columns = left[:, None] + torch.where(mirrored[:, None] == 1, backwards, offsets)  # [B, W]
    crops = data.train[examples[:, None, None], rows[:, :, None], columns[:, None, :]]
    return data.normalise(crops)


# ------------------------------------------------------------ network


class BatchNorm(nn.Module):
    """torch's BatchNorm2d without its step counter, precise in every memory format."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and torch_sums_imprecisely(x):
            return PreciseBatchNorm.apply(
                x, self.weight, self.bias, self.running_mean, self.running_var
            )
        # F.batch_norm would take persistent kernels on a GPU in fp32, and these are reported to
        # stall when several networks are trained side by side.
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


# The weight of a new batch in the running statistics, and what is added to a variance before its
# root is taken; both are torch's defaults.
MOMENTUM, EPSILON = 0.1, 1e-5


def torch_sums_imprecisely(x: Tensor) -> bool:
    """Return whether torch's batch norm would lose precision that matters on this input.

    On a CPU in channels-last memory it adds up the values of a channel one after another. After
    131,072 values (ResNet-20, batch 128) its output is off by 1e-4 and the gradients of all
    convolutions by 1%. Up to 4,096 values (every layer of the digits) it is off by 4e-6 at most,
    and takes a third of the time of PreciseBatchNorm. In bf16 rounding costs far more than that.
    """
    if x.is_cuda or x.dtype != torch.float32:
        return False
    values = x.numel() // x.shape[1]  # of a channel
    return values > 4096 and x.is_contiguous(memory_format=torch.channels_last)


class PreciseBatchNorm(torch.autograd.Function):
    """Batch norm in training mode on a CPU in channels-last memory, with precise statistics.

    First every pixel is treated as a channel of its own, whose mean and variance are taken over the
    batch. Then the mean of a channel is the mean of these means, and its variance is the mean of
    these variances plus the variance of these means. torch's own kernels normalise with them.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, running_mean, running_var):
        batch, channels, height, width = x.shape
        n = batch * height * width
        # In channels-last memory this is a view, nothing is copied.
        pixels = x.permute(0, 2, 3, 1).reshape(batch, height * width * channels)
        pixel_means, pixel_variances = torch.batch_norm_update_stats(pixels, None, None, MOMENTUM)
        pixel_means = pixel_means.view(-1, channels)
        mean = pixel_means.mean(0)
        within_pixels = pixel_variances.view(-1, channels).mean(0)
        variance = within_pixels + (pixel_means - mean).square_().mean(0)
        running_mean.lerp_(mean, MOMENTUM)
        # Like torch, keep the unbiased variance.
        running_var.lerp_(variance * (n / (n - 1)), MOMENTUM)
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
    """Two 3x3 convolutions with batch norm, and a shortcut around them."""

    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = BatchNorm(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = BatchNorm(c_out)
        self.shortcut = nn.Sequential()
        # A projection, as in the code that made the paper's figures; He et al.'s option A has none.
        if c_in != c_out:
            self.shortcut = nn.Sequential(nn.Conv2d(c_in, c_out, 1, bias=False), BatchNorm(c_out))

    def forward(self, x: Tensor) -> Tensor:
        # ReLU works in place, as no backward pass needs the output of batch norm.
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
    """The CIFAR ResNet of depth 6n + 2 (He et al. 2016).

    It takes images [B, channels, H, W] float32 and returns logits [B, classes].
    """

    def __init__(self, depth: int, width: int, channels: int, classes: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn = BatchNorm(width)
        self.blocks = nn.Sequential()
        c_in = width
        for c_out in (width, 2 * width, 4 * width):
            for _ in range((depth - 2) // 6):
                stride = 1 if c_in == c_out else 2
                self.blocks.append(Block(c_in, c_out, stride))
                c_in = c_out
        self.linear = nn.Linear(4 * width, classes)

    def prunable(self) -> dict[str, nn.Parameter]:
        """Return the weights of convolutions and of the linear layer, in state-dict order."""
        return {name: p for name, p in self.named_parameters() if p.dim() > 1}

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.bn(self.conv(x)).relu_())
        return self.linear(x.mean((2, 3)))


@torch.no_grad()
def initialise(net: ResNet, seed: int) -> None:
    """Set a network to the initial weights w_0 of a seed.

    Convolutions and the linear layer are Kaiming-normal (fan-in, ReLU), the weights of batch norm
    uniform in [0, 1), their biases 0, and the linear bias is uniform within 1 / sqrt(fan-in).
    """
    random = rng(INIT, seed)
    for name, p in net.named_parameters():
        if p.dim() > 1:
            value = random.standard_normal(p.shape) * math.sqrt(2 / p[0].numel())
        elif name == "linear.bias":
            value = random.uniform(-1, 1, p.shape) / math.sqrt(net.linear.in_features)
        elif name.endswith(".weight"):
            value = random.random(p.shape)
        elif name.endswith(".bias"):
            value = np.zeros(p.shape)
        else:
            raise ValueError(f"initialise has no rule for {name}")
        p.copy_(torch.from_numpy(value))


# ------------------------------------------------------------ training


class Member:
    """A network in training, with all that belongs to it.

    Beside the weights that is their momentum, their masks, the seed of its data order, its next
    step, and the sum of its losses since the last epoch of the training began.
    """

    def __init__(self, name: str, recipe: dict, data: Data, seed: int):
        self.name = name
        self.seed = seed
        self.step = 0
        self.failed = False
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
        """Return everything that a step changes, by name; writing into it changes the member."""
        tensors = prefixed(weight=self.net.state_dict(), momentum=self.momentum)
        return tensors | {"loss_sum": self.loss_sum}

    def copy(self) -> dict[str, Tensor]:
        """Return a copy of the state."""
        return {name: t.clone() for name, t in self.state().items()}

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor]) -> None:
        """Put a copied state back."""
        for name, t in self.state().items():
            t.copy_(state[name])

    @torch.no_grad()
    def rewind(self, weights: dict[str, Tensor], masks: dict[str, Tensor], step: int) -> None:
        """Start again from weights * masks at a step of the schedule, with fresh momentum."""
        self.step = step
        self.failed = False
        self.loss_steps = 0
        self.net.load_state_dict(weights)  # this copies into the same tensors
        for name, mask in self.masks.items():
            mask.copy_(masks[name])
        for t in (self.loss_sum, *self.momentum.values()):
            t.zero_()
        self.apply_masks()

    @torch.no_grad()
    def update(self, recipe: dict, rate: Tensor) -> None:
        """Take one step of SGD, set pruned weights back to zero, and drop the gradients.

        A parameter without a gradient, as that of a frozen layer, stays as it is: torch.optim.SGD
        does the same.
        """
        trained = {name: p for name, p in self.parameters.items() if p.grad is not None}
        # This is the function behind torch.optim.SGD. Importing the class would load torch's
        # compiler, which takes over a second. Only the fused implementation takes the rate as a
        # tensor, which a CUDA graph needs; the others read it on the host.
        sgd(
            list(trained.values()),
            [p.grad for p in trained.values()],
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
        for p in trained.values():
            p.grad = None

    @torch.no_grad()
    def apply_masks(self) -> None:
        """Set pruned weights to zero."""
        torch._foreach_mul_(list(self.prunable.values()), list(self.masks.values()))

    def finite(self) -> bool:
        """Return whether all weights and statistics are finite."""
        checks = [t.isfinite().all() for t in self.net.state_dict().values()]
        return bool(torch.stack(checks).all())  # one copy to the host for all tensors together


def even_groups(items: list, at_once: int | None, device: torch.device) -> list[list]:
    """Split items into as few groups of at most at_once as possible, as even as possible.

    By default a group has up to 8 on a GPU, and 1 on a CPU, which one network keeps busy.
    """
    if at_once is None:
        at_once = 8 if device.type == "cuda" else 1
    groups = math.ceil(len(items) / at_once)
    return [items[i::groups] for i in range(groups)]


def loss_of(net: ResNet, images: Tensor, labels: Tensor, precision: str) -> Tensor:
    """Return the mean cross-entropy of a batch; the loss itself is computed in float32."""
    with torch.autocast(
        images.device.type, torch.bfloat16, precision == "bf16", cache_enabled=False
    ):
        logits = net(images)
    return F.cross_entropy(logits.float(), labels)


class Group:
    """Networks of one recipe that take their steps side by side.

    On a GPU the step of each is recorded as a CUDA graph, if that proves to be the same.

    labels  [N] int64 on the device; by default the clean ones
    subset  [M] int64, the indices of the examples to train on; by default all
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
        self.per_epoch = len(self.subset) // batch  # steps
        device = self.labels.device
        n = len(members)
        # A recorded step reads the rate and the examples from these very tensors: they are
        # overwritten before every step, and never replaced.
        self.rate = torch.zeros((), device=device)
        self.examples = torch.zeros(n, 4, batch, dtype=torch.int64, device=device)
        # The epoch tables of all members, from which the examples of a step are copied.
        self.tables = torch.zeros(n, 4, self.per_epoch, batch, dtype=torch.int64, device=device)
        self.replays = [None] * n  # what replays the recorded step of a member; None: plain steps
        self.prepared = False

    def prepare(self, k: int) -> None:
        """Run once before the first step: check the gradients of member k, whose turn it is.

        On a GPU then record the step of every member as a CUDA graph.
        """
        self.prepared = True
        prove_once(self, k)
        if self.labels.is_cuda and not environment_flag("NO_GRAPH"):
            torch.cuda.empty_cache()  # lets go of the memory that the check took
            for member in range(len(self.members)):
                use_recording(self, member)

    def load_epoch(self, level: int, epoch: int) -> None:
        """Fill the tables with what every member sees in this epoch."""
        batch, data = self.examples.shape[2], self.data
        for member, table_on_device in zip(self.members, self.tables):
            table = epoch_table(
                member.seed, level, epoch, len(self.subset), batch, data.pad, data.flip
            )
            table[0] = self.subset[table[0]]
            table = torch.from_numpy(table)
            if table_on_device.is_cuda:
                # The buffer is a new one each time, since an asynchronous copy may still read it
                # when the next epoch is drawn.
                table = table.pin_memory()
            table_on_device.copy_(table, non_blocking=True)

    def step_one(self, k: int) -> None:
        """Take the training step of member k: batch, loss, gradients, SGD, masks."""
        member = self.members[k]
        examples = self.examples[k]
        images = take_batch(self.data, examples)
        labels = self.labels[examples[0]]
        loss = loss_of(member.net, images, labels, self.recipe["precision"])
        loss.backward()
        member.update(self.recipe, self.rate)
        member.loss_sum += loss.detach()

    def step_all(self, active: list[int]) -> None:
        """Take a step of each of these members; on a GPU all of them at the same time."""
        streams = []
        for k in active:
            replay = self.replays[k]
            # A replay returns the stream that it runs on, a plain step returns None.
            streams.append(replay() if replay else self.step_one(k))
        # Wait only after all have started; waiting one by one would serialise them.
        for stream in streams:
            if stream:
                torch.cuda.current_stream().wait_stream(stream)


# ------------------------------------------------------------ a first step proves itself

# How far a gradient g may be off from r, the same gradient by other kernels: ||g - r|| / ||r||.
# Right gradients were within 1.2e-4 in fp32 and 3e-3 in bf16 (Zen 4, AVX2 and AVX-512, dense to 1%
# of the weights), and within 1.6e-2 on other bf16 units. The known fault of oneDNN is above 6e-2.
TOLERANCE = {"fp32": 1e-3, "bf16": 4e-2}

# Where a sum cancels, r is small beside its operands a and b. So a gradient may also be off by this
# share of ||a|| ||b||; right ones were within 8e-7.
CANCELLED = 5e-6

PROVED = set()  # the recipes and batches of which this process has checked a step


def prove_once(group: Group, k: int) -> None:
    """Call prove_first_step once in a process for each recipe and shape of batch.

    NO_PROOF=1 leaves the check out, and a note says so.
    """
    if environment_flag("NO_PROOF"):
        note_no_proof()
        return
    recipe = {key: v for key, v in group.recipe.items() if key not in ("seed", *PRETRAINING)}
    step = to_json([recipe, [*group.examples.shape[1:]], f"{group.labels.device}"])
    if step not in PROVED:
        prove_first_step(group, k)
        PROVED.add(step)


@functools.cache  # it is said once in a process
def note_no_proof() -> None:
    print("note: NO_PROOF=1: gradients of the first step are not checked", file=sys.stderr)


class Gradient(NamedTuple):
    """How far a gradient g of a layer is off from r, the same gradient by plain kernels."""

    name: str  # of the layer, and of which gradient it is
    gap: float  # ||g - r||
    length: float  # ||r||
    operands: float  # ||a|| ||b||, where r is a sum of products of a and b


def prove_first_step(group: Group, k: int) -> None:
    """Check that member k's next step has right gradients at each convolution and linear layer.

    A copy of its network takes a forward and a backward pass of its batch, at the precision and in
    the memory format of the training. The gradients of each layer's weight and input are compared
    with the same gradients by plain kernels (gradients_again). Comparing whole networks would not
    do: signs of ReLU flip with rounding, so that right gradients differ by per cents.

    Left out are parameters without a gradient, layers of somebody's own class, and gradients that
    are not finite, which the loss will tell.

    Failure: a gradient is wrong; or the network draws random numbers, as dropout does, so that its
    result would depend on the networks beside it.
    """
    device, precision = group.labels.device, group.recipe["precision"]
    images, labels = take_batch(group.data, group.examples[k]), group.labels[group.examples[k, 0]]
    net = copy.deepcopy(group.members[k].net).train()
    gradients = []
    for name, layer in net.named_modules():
        if type(layer) in (nn.Conv2d, nn.Linear) and isinstance(layer.weight, nn.Parameter):
            compare_gradients(layer, name, precision, gradients)
    with torch.random.fork_rng([device.index or 0] if device.type == "cuda" else []):
        before = random_states(device)
        loss_of(net, images, labels, precision).backward()
        after = random_states(device)
    if not all(torch.equal(a, b) for a, b in zip(before, after)):
        raise Failure(
            "the network draws random numbers while it trains (dropout?): its result would "
            "depend on the networks beside it and on where a run was stopped"
        )
    for gradient in gradients:
        allowed = TOLERANCE[precision] * gradient.length + CANCELLED * gradient.operands
        if not gradient.gap <= allowed:
            raise Failure(describe_wrong(gradient, device, precision))


def describe_wrong(gradient: Gradient, device: torch.device, precision: str) -> str:
    """Say which gradient is wrong, how far, where, and what to do."""
    off = f"{gradient.gap:.1e} where it is 0"
    if gradient.length:
        off = f"{gradient.gap / gradient.length:.1%}"
    return (
        f"wrong gradient: {gradient.name} is off by {off}, rounding explains "
        f"{TOLERANCE[precision]:.1%} at most ({describe(device, precision)}, torch "
        f"{torch.__version__}). Not your settings but a kernel is wrong: try "
        "OMP_NUM_THREADS=1, another --precision, or another version of torch; NO_PROOF=1 "
        "trains all the same"
    )


def random_states(device: torch.device) -> list[Tensor]:
    """Return the states of torch's generators that a network on this device could draw from."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def compare_gradients(layer: nn.Module, name: str, precision: str, gradients: list) -> None:
    """Let the next backward pass of a layer append a Gradient for each use of it, and its weight's.

    A layer may be used several times in a forward pass. In the backward pass, a hook on the output
    of a use computes the gradients of that use again; right after it, a hook on the input of that
    use compares the gradient of the input. The gradient of the weight is the sum over all uses.
    """
    expected_of_inputs, expected_of_weight = [], []  # (r, ||a|| ||b||) of each use

    def compare(what: str, g: Tensor, r: Tensor, operands: float) -> None:
        gap, norm = length(g - r), length(r)
        if math.isfinite(norm):
            gradients.append(Gradient(f"{name}, that of its {what},", gap, norm, operands))

    def isolate_this_use(_, inputs: tuple) -> tuple:
        x = inputs[0].view_as(inputs[0])  # a tensor of its own has the gradient of this use alone
        if x.requires_grad:
            x.register_hook(lambda g: compare("input", g.float(), *expected_of_inputs.pop()))
        return (x,)

    def compute_again(_, inputs: tuple, output: Tensor) -> None:
        def when_known(of_output: Tensor) -> None:
            of_input, of_weight = gradients_again(layer, inputs[0], of_output, precision)
            operands_of_input = length(layer.weight) * length(of_output)
            operands_of_weight = length(inputs[0]) * length(of_output)
            expected_of_inputs.append((of_input, operands_of_input))
            expected_of_weight.append((of_weight, operands_of_weight))

        if output.requires_grad:
            output.register_hook(when_known)

    def compare_weight(g: Tensor) -> None:
        expected = sum(r for r, _ in expected_of_weight)
        operands = sum(norms for _, norms in expected_of_weight)
        compare("weight", g, expected, operands)

    layer.register_forward_pre_hook(isolate_this_use)
    layer.register_forward_hook(compute_again)
    if layer.weight.requires_grad:
        layer.weight.register_hook(compare_weight)


def length(t: Tensor) -> float:
    """Return the Euclidean norm ||t||, summed in float64."""
    return torch.linalg.vector_norm(t.detach(), dtype=torch.float64).item()


@contextlib.contextmanager
def plain_kernels() -> Iterator[None]:
    """Compute without oneDNN and cuDNN, in one thread, and with gradients, also inside a hook.

    The plain kernels would start threads image by image.
    """
    onednn, cudnn = torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled
    threads = torch.get_num_threads()
    torch.backends.mkldnn.enabled = torch.backends.cudnn.enabled = False
    torch.set_num_threads(1)
    try:
        with torch.enable_grad():
            yield
    finally:
        torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled = onednn, cudnn
        torch.set_num_threads(threads)


def gradients_again(
    layer: nn.Module, x: Tensor, of_output: Tensor, precision: str
) -> tuple[Tensor, Tensor]:
    """Compute the gradients of a layer's input and weight again, in float32 by plain kernels.

    They come from the operands of the training pass, rounded as they were there: what the layer
    saw, and the gradient of its output.
    """
    rounded = torch.bfloat16 if precision == "bf16" else torch.float32
    operands = []
    for t in (x, layer.weight):
        operands.append(t.detach().to(rounded).float().contiguous().requires_grad_())
    with plain_kernels():
        if isinstance(layer, nn.Linear):
            y = F.linear(*operands)
        else:
            y = layer._conv_forward(*operands, None)
        return torch.autograd.grad(y, operands, of_output.float().contiguous())


# ------------------------------------------------------------ the loop


def train(
    group: Group, stop: int, *, peak: float, level: int = 0, only: list[Member] | None = None
) -> Iterator[int]:
    """Train the members of a group to step `stop`; yields the number of steps after every step.

    Each starts at its own member.step, and its result does not depend on the other members. A
    member whose loss is not finite is marked (member.failed) and left out of the steps that follow.

    peak  the learning rate before the first milestone
    only  the members that take part; by default all
    """
    members = group.members
    taking_part = range(len(members))
    if only is not None:
        taking_part = [k for k in taking_part if members[k] in only]
    first = min(members[k].step for k in taking_part)
    for k in taking_part:
        members[k].net.train()
    name = members[taking_part[0]].name
    others = len(taking_part) - 1
    if others:
        name += f" and {others} more"
    for step in tqdm(range(first, stop), name, stop, initial=first, disable=None, leave=False):
        epoch, i = divmod(step, group.per_epoch)
        if step == first or i == 0:
            group.load_epoch(level, epoch)
        active = [k for k in taking_part if members[k].step == step and not members[k].failed]
        examples = group.tables[:, :, i]
        if active and not group.prepared:
            group.examples.copy_(examples)
            group.prepare(active[0])  # which may leave other examples there
        group.rate.fill_(learning_rate(group.recipe, peak, step))
        group.examples.copy_(examples)
        if step == stop - group.per_epoch:  # the loss reported is the mean over the last epoch
            for k in active:
                members[k].loss_sum.zero_()
                members[k].loss_steps = 0
        group.step_all(active)
        for k in active:
            count_step(members[k], step + 1, stop)
        yield step + 1


def learning_rate(recipe: dict, peak: float, step: int) -> float:
    """Return the learning rate of update number `step`, counted from 0."""
    milestones_passed = sum(milestone <= step for milestone in recipe["milestones"])
    return peak * recipe["lr_decay"] ** milestones_passed


def count_step(member: Member, step: int, stop: int) -> None:
    """Note that a member has taken `step` steps, and whether it has failed."""
    member.loss_steps += 1
    member.step = step
    # Reading the loss makes the CPU wait for the GPU, so look every 200 steps.
    if not member.loss_sum.is_cuda or step % 200 == 0 or step == stop:
        member.failed = not math.isfinite(member.loss_sum)
    # The last update has no loss after it, so check the weights.
    if step == stop:
        member.failed = member.failed or not member.finite()


@torch.no_grad()
def predict(net: nn.Module, data: Data, images: Tensor) -> Tensor:
    """Return the logits [n, classes] float32 of images [n, H, W, C] uint8, which are not augmented.

    They are computed in eval mode. Afterwards the network is in the mode that it was in before,
    since a caller may be in the middle of a training.
    """
    was_training = net.training
    net.eval()
    pixels = images.shape[1] * images.shape[2]
    at_once = (2**20 if images.is_cuda else 2**17) // pixels  # 128 of 32x32 fit a CPU's cache
    logits = [net(data.normalise(batch)) for batch in images.split(max(1, at_once))]
    net.train(was_training)
    return torch.cat(logits)


def evaluate(net: nn.Module, data: Data) -> tuple[float, float]:
    """Return accuracy (a fraction) and mean cross-entropy (nats) on the test set."""
    logits = predict(net, data, data.test)
    correct = logits.argmax(1) == data.test_labels
    loss = F.cross_entropy(logits.double(), data.test_labels)
    return correct.double().mean().item(), loss.item()


# ------------------------------------------------------------ files


def to_numpy(tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Return the same tensors as NumPy arrays on the host."""
    return {name: t.detach().cpu().numpy() for name, t in tensors.items()}


def save_tensors(path: Path, tensors: dict[str, Tensor], info: dict) -> None:
    """Write torch's tensors to a safetensors file; see common.save_tensors."""
    common.save_tensors(path, to_numpy(tensors), info)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Read a safetensors file as torch's tensors and its metadata; see common.load_tensors."""
    tensors, info = common.load_tensors(path)
    return {name: torch.from_numpy(t) for name, t in tensors.items()}, info


# ------------------------------------------------------------ device and precision


def resolve_device(name: str) -> torch.device:
    """Return a device by name, set up so that the same command gives the same numbers.

    InputError: there is no such device.
    """
    # CUDA reads these when it starts. A fixed workspace makes the products of cuBLAS deterministic,
    # and that of cuBLASLt (in KiB) must fit into it. So many connections let eight networks and
    # more run at the same time.
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
    """Return whether this hardware multiplies bf16 faster than fp32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def resolve_precision(precision: str, device: torch.device, made: dict) -> str:
    """Return fp32 or bf16. `auto` is the precision of a file made before, else what is fast here.

    So what one machine has begun or finished is the same work on another.

    made  the recipe in that file, or {}
    """
    if precision != "auto":
        return precision
    return made.get("precision", "bf16" if has_fast_bf16(device) else "fp32")


def check_precision(precision: str, device: torch.device, source: Path | None = None) -> None:
    """Raise InputError where the hardware is slow at a precision.

    source  the unfinished file that has this precision, if there is one
    """
    if precision != "bf16" or has_fast_bf16(device):
        return
    needs = "needs a GPU of compute capability 8.0, or a CPU with AMX or AVX512-BF16"
    if source is None:
        raise InputError(f"--precision bf16 {needs}: use fp32")
    raise InputError(
        f"{source} was begun in bf16, which {needs}: go on where it was begun, or make the start "
        "anew with --precision fp32 in another folder"
    )


def describe(device: torch.device, precision: str) -> str:
    """Say on what this process trains: device or instruction sets, threads, precision."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {precision}"
    threads = torch.get_num_threads()
    return f"{processor()}, {threads} thread{'s' if threads > 1 else ''}, {precision}"


def processor() -> str:
    """Name the instruction sets of torch's kernels and of oneDNN's, as far as they are allowed."""
    instruction_sets = {
        "AMX": torch.cpu._is_amx_tile_supported,
        "AVX512_BF16": torch.cpu._is_avx512_bf16_supported,
        "AVX512": torch.cpu._is_avx512_supported,
        "AVX2": torch.cpu._is_avx2_supported,
    }
    supported = [name for name, is_supported in instruction_sets.items() if is_supported()]
    onednn = supported[0] if supported else platform.machine()
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA")
    if limit:
        onednn = f"at most {limit}"
    return f"CPU, torch {torch.backends.cpu.get_cpu_capability()}, oneDNN {onednn}"


def say_where(device: torch.device, precision: str) -> None:
    """Print on what this process trains; every stage that trains does so once, before it does."""
    print(f"training on: {describe(device, precision)}", flush=True)


def made_by(device: torch.device) -> dict:
    """Return what a stage that trains records about itself but never compares."""
    recorded = common.made_by() | {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": str(device),
        "processor": processor(),
    }
    if device.type == "cuda":
        recorded["processor"] = torch.cuda.get_device_name(device)
    if environment_flag("NO_PROOF"):
        recorded["NO_PROOF"] = True
    return recorded
