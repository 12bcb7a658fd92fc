"""The experiments: instruments, measures and the report, around the library ``rebasin``."""

import os
import platform

# The same instructions on every x86 machine: wider ones round otherwise, and training makes other networks of that.
# With these, tables and stored outputs come out as they are committed. To be set before torch first computes.
if platform.machine() in ("x86_64", "AMD64"):
    os.environ.setdefault("ATEN_CPU_CAPABILITY", "avx2")
