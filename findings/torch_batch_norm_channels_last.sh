#!/usr/bin/env bash
# On a CPU, torch's batch norm in training mode is a thousand times less precise in channels-last
# memory than in contiguous memory: it adds up the batch x height x width values of a channel one
# after another in float32. For a ResNet-20's first layer (128 images of 32 x 32) its output is off
# by 2e-4 of its norm. One would expect the memory format to change the speed, and the result by no
# more than rounding.
# Seen with torch 2.14.1 and numpy 2.4.6, Python 3.11, Linux x86-64 (AMD Zen 4), on 2026-11-30, one
# thread; relative to float64:
#   contiguous      off by 7e-08
#   channels-last   off by 2e-04
# Exit status 0 as long as channels-last is off by more than 2e-5 and contiguous by less than 1e-6.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.14.1 numpy==2.4.6
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch

torch.manual_seed(0)
x = 1 + 3 * torch.randn(128, 16, 32, 32).relu()
norm = torch.nn.BatchNorm2d(16)
exact = torch.nn.BatchNorm2d(16).double()(x.double())


def error(images):
    y = norm(images)
    return ((y - exact).norm() / exact.norm()).item()


contiguous = error(x)
channels_last = error(x.to(memory_format=torch.channels_last))
print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}")
print(f"contiguous    off by {contiguous:.0e}")
print(f"channels-last off by {channels_last:.0e}")
as_seen = contiguous < 1e-6 and channels_last > 2e-5
print("as seen on 2026-11-30" if as_seen else "this has changed")
sys.exit(not as_seen)
PYTHON
