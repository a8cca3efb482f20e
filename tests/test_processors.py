"""Gradients on every kind of processor that this machine can imitate, with one thread and two.

Every pair of instruction set and threads is a process of its own, since torch and oneDNN read their
limits when they start. It runs the layers of the presets' networks beside float64, then a tiny
chain of all stages, under glibc's checking allocator.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import STAGES

import common
import training

AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
NATIVE = {}
CHECKED = Path("/usr/lib/x86_64-linux-gnu/libc_malloc_debug.so.0")  # glibc's checking allocator
# width, batch and image size of what the presets train: both networks of the digits, small
# CIFAR-10, ResNet-20
PRESETS = [(12, 64, 8), (16, 64, 8), (8, 64, 32), (16, 128, 32)]
SMALL = [
    (width, batch, size) for width in range(1, 21) for batch, size in ((1, 8), (5, 8), (3, 32))
]


def layers(width, batch, size):
    """(layer, input) of every different convolution, linear layer and batch norm of a network."""
    net = training.ResNet(8, width, 1 if size == 8 else 3, 10).to(memory_format=torch.channels_last)
    training.initialise(net, 0)
    found, kinds = {}, (torch.nn.Conv2d, torch.nn.Linear, training.BatchNorm)

    def keep(layer, inputs):
        found[str(layer), inputs[0].shape, inputs[0].stride()] = layer, inputs[0].detach().clone()

    for layer in net.modules():
        if isinstance(layer, kinds):
            layer.register_forward_pre_hook(keep)
    images = torch.randint(0, 256, (batch, size, size, net.conv.in_channels)).float()
    net(((images - 120) / 60).permute(0, 3, 1, 2))
    return list(found.values())


def in_float64(layer, x, weight):
    """The layer's output, written anew for float64 and contiguous memory."""
    if isinstance(layer, torch.nn.Linear):
        return F.linear(x, weight, layer.bias.double())
    if isinstance(layer, training.BatchNorm):
        return F.batch_norm(x, None, None, weight, layer.bias.double(), True)
    return F.conv2d(x, weight, None, layer.stride, layer.padding)


def error(layer, x):
    """How far output and both gradients are from float64, the worst of the relative norms."""
    ours, weight = x.clone().requires_grad_(), layer.weight
    exact, exact_weight = (t.detach().double().contiguous().requires_grad_() for t in (x, weight))
    y, exact_y = layer(ours), in_float64(layer, exact, exact_weight)
    g = torch.randn_like(y)
    weight.grad = None
    y.backward(g)
    exact_y.backward(g.double().contiguous())  # oneDNN has no kernels for float64
    pairs = (y, exact_y), (weight.grad, exact_weight.grad), (ours.grad, exact.grad)
    return max(((a.double() - b).norm() / (b.norm() + 1e-3)).item() for a, b in pairs)


def check_layers(networks):
    torch.manual_seed(0)
    for network in networks:
        for layer, x in layers(*network):
            off = error(layer, x)
            assert off <= 1e-5, (network, layer, x.shape, off)


def check_chain(folder):
    """Every stage that reads images, each by its command line."""
    tiny = ["--depth=8", "--width=6", "--lr=0.1", "--total-steps=24", "--milestones", "20"]
    scores, subset, rewind = (f"{folder}/{x}" for x in ("s.npy", "e.npy", "rewind.safetensors"))
    for stage, *argv in (
        ("score", *tiny, "--networks=1", "--steps=4", "--out", scores),
        ("subset", "--select=easy", "--size=200", "--scores", scores, "--out", subset),
        ("pretrain", *tiny, "--pretrain-lr=0.1", "--steps=4", "--subset", subset, "--out", rewind),
        ("imp", rewind, "--levels=2"),
    ):
        assert common.cli(STAGES[stage].main, argv) == 0, (stage, argv)


def in_a_process(environment, threads, *networks):
    checking = {"LD_PRELOAD": str(CHECKED), "MALLOC_CHECK_": "3"} if CHECKED.exists() else {}
    # threads that wait do not spin, so that a busy machine makes two of them slow, not endless
    limits = (
        environment | checking | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
    )
    command = [sys.executable, __file__, *networks]
    return subprocess.run(command, env=os.environ | limits, capture_output=True, text=True)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("environment", [AVX2, NATIVE], ids=["AVX2", "native"])
def test_layers_and_a_chain_on_these_instruction_sets(environment, threads):
    limited = AVX2.items() <= os.environ.items() or not torch.cpu._is_avx512_supported()
    if environment is NATIVE and limited:
        pytest.skip(f"no more than AVX2 here, the same as that pair: {training.processor()}")
    done = in_a_process(environment, threads)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f", {threads} thread" in done.stdout
    assert ("oneDNN at most AVX2" in done.stdout) == (environment is AVX2)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("environment", [AVX2, NATIVE], ids=["AVX2", "native"])
def test_layers_of_resnet56_at_batch_256_on_these_instruction_sets(environment, threads):
    done = in_a_process(environment, threads, "16,256,32")
    assert done.returncode == 0, done.stdout + done.stderr


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))  # conftest has set one
    networks = [tuple(map(int, text.split(","))) for text in sys.argv[1:]]
    check_layers(networks or PRESETS + SMALL)
    if not networks:
        with tempfile.TemporaryDirectory() as folder:
            check_chain(folder)
