"""The linear assignment problem, many at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def solve_assignment(scores: Tensor) -> Tensor:
    """The permutations ``p`` that maximise ``sum_i scores[..., i, p[i]]``.

    ``scores`` is (*batch, n, n); the answer (*batch, n), int64, on the same device. scipy's solver (Crouse 2016)
    releases the interpreter lock, so the batch is spread over ``torch.get_num_threads()`` threads.
    Raises ValueError if the matrices are not square or hold NaN or infinite values.
    """
    if scores.ndim < 2 or scores.shape[-1] != scores.shape[-2]:
        raise ValueError(f"scores must be square matrices, got shape {tuple(scores.shape)}")
    if not torch.isfinite(scores).all():
        raise ValueError("scores hold NaN or infinite values")
    # scipy solves in float64 whatever it is given.
    matrices = scores.detach().to("cpu", torch.float64).reshape(-1, *scores.shape[-2:]).numpy()

    def solve(matrix: np.ndarray) -> np.ndarray:
        return linear_sum_assignment(matrix, maximize=True)[1]

    if len(matrices) == 1:
        columns = [solve(matrices[0])]
    else:
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            columns = list(threads.map(solve, matrices))
    answer = torch.from_numpy(np.array(columns, dtype=np.int64).reshape(scores.shape[:-1]))
    return answer.to(scores.device)
