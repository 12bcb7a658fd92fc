"""Merging two models takes no more memory than its docstring says: entry by entry, not all models side by side."""

import json
import os
import subprocess
import sys

import pytest

LAYERS, WIDTH = 24, 512
# In a process of its own, whose peak of memory counts from the merge on.
MEASURED = f"""
import json, sys
from pathlib import Path
import torch
import rebasin

def model(dtype, layers, width):
    return {{f"{{n}}.weight": torch.randn(width, width, dtype=dtype) for n in range(layers)}}

def spec_of(weights):
    groups = [None, *(f"group {{n}}" for n in range(len(weights) - 1)), None]
    axes = {{key: (groups[n + 1], groups[n]) for n, key in enumerate(weights)}}
    return rebasin.PermutationSpec.from_axes(weights, axes)

def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

torch.set_num_threads(1)
by, dtype = sys.argv[1], getattr(torch, sys.argv[2])
few = model(dtype, 3, 8)
rebasin.merge(spec_of(few), [few, few], by=by)  # what torch loads at its first use is not the merge's
a = model(dtype, {LAYERS}, {WIDTH})
b = {{key: tensor + 0.01 * torch.randn_like(tensor) for key, tensor in a.items()}}  # soon matched
spec = spec_of(a)
before = status("RssAnon")
Path("/proc/self/clear_refs").write_text("5")
merged = rebasin.merge(spec, [a, b], by=by)
taken = status("VmHWM") - status("RssFile") - before
print(json.dumps(taken / sum(tensor.nbytes for tensor in a.values())))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells the peak of memory from some moment on")
@pytest.mark.parametrize(
    ("by", "number_format", "models"),
    [
        ("mean", "float32", 1),
        ("hierarchy", "float32", 2),  # the merge, and as many numbers of scores
        ("hierarchy", "bfloat16", 3),  # scores are of single precision
    ],
)
def test_two_models_are_merged_in_the_memory_that_is_told(by, number_format, models):
    environment = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MEASURED, by, number_format]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    # Beside it some entries, one group's scores, and what an assignment of so many units takes.
    assert json.loads(done.stdout) < models + 0.5
