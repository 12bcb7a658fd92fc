"""What ``pytest --nbval`` needs to find the stored outputs: kernels that compute as those did which made them."""

import os

from lab.report.stored import ALIKE

os.environ.update(ALIKE)
