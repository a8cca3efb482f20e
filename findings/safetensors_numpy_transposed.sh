#!/usr/bin/env bash
# safetensors.numpy saves an array that is not C-contiguous, such as a transposed weight, with its
# values in another order, without an error or a warning. safetensors.torch refuses the same tensor.
# One would expect the same array back, or an error.
# Seen with safetensors 0.8.0 and numpy 2.4.6, Python 3.11, Linux x86-64, on 2026-11-30:
#   saved  [[0, 3], [1, 4], [2, 5]]
#   loaded [[0, 1], [2, 3], [4, 5]]
# What helps: numpy.ascontiguousarray before saving. Exit status 0 as long as this holds, else 1.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q safetensors==0.8.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import numpy as np
import safetensors
from safetensors.numpy import load, save

saved = np.arange(6, dtype=np.float32).reshape(2, 3).T
loaded = load(save({"weight": saved}))["weight"]
kept = load(save({"weight": np.ascontiguousarray(saved)}))["weight"]
print(f"safetensors {safetensors.__version__}, numpy {np.__version__}")
print("saved ", saved.tolist())
print("loaded", loaded.tolist())
print("after numpy.ascontiguousarray", kept.tolist())
as_seen = loaded.tolist() == [[0, 1], [2, 3], [4, 5]] and np.array_equal(kept, saved)
print("as seen on 2026-11-30" if as_seen else "this has changed")
sys.exit(not as_seen)
PYTHON
