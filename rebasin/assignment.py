"""The linear assignment problem, many at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from rebasin.arguments import check_tensor

# How the solver's work is prepared, chosen by measurement: the smoothing, in deviations of the scores, and its steps.
SMOOTHING, ITERATIONS = 0.1, 12


def solve_assignment(scores: Tensor) -> Tensor:
    """The permutations ``p`` that maximise ``sum_i scores[..., i, p[i]]``, many at once.

    ``scores`` is (*batch, n, n); the answer (*batch, n), int64, on the same device. scipy's solver (Crouse 2016)
    releases the interpreter lock, so the batch is spread over ``torch.get_num_threads()`` threads.

    Raises TypeError for what is no tensor, ValueError if the matrices are not square, not real, or hold NaN or infinite
    values.

    >>> solve_assignment(torch.tensor([[1.0, 9.0], [2.0, 5.0]]))
    tensor([1, 0])
    """
    check_tensor(scores, "scores")
    if scores.is_complex() or scores.dtype == torch.bool:
        raise ValueError(f"scores must be real numbers, got {scores.dtype}")
    if scores.ndim < 2 or scores.shape[-1] != scores.shape[-2]:
        raise ValueError(f"scores must be square matrices, got shape {tuple(scores.shape)}")
    if not scores.numel():
        return scores.new_zeros(scores.shape[:-1], dtype=torch.int64)
    if scores.is_meta:
        raise ValueError("scores are on the device 'meta', and have no values")
    if not torch.isfinite(torch.stack(scores.aminmax())).all():
        raise ValueError("scores hold NaN or infinite values")
    stack = scores.detach().reshape(-1, *scores.shape[-2:])
    # scipy solves in float64 whatever it is given. Taking a price off a column, or a row, changes no best answer.
    costs = _prices(stack).cpu().double() - stack.cpu()
    matrices = costs.sub_(costs.amin(-1, keepdim=True)).numpy()

    def solve(matrix: np.ndarray) -> np.ndarray:
        return linear_sum_assignment(matrix)[1]

    if len(matrices) == 1:
        columns = [solve(matrices[0])]
    else:
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            columns = list(threads.map(solve, matrices))
    answer = torch.from_numpy(np.array(columns, dtype=np.int64).reshape(scores.shape[:-1]))
    return answer.to(scores.device)


def _prices(scores: Tensor) -> Tensor:
    """About what each column is worth to the rows that compete for it: (m, 1, n) for scores (m, n, n).

    Less these prices, most rows like a column of their own best, so that the solver searches a quarter as long.
    They are the dual variables of the smoothed problem, whose answer is no permutation (Sinkhorn's iterations).
    """
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    smooth = SMOOTHING * scores.std((-2, -1), correction=0, keepdim=True) + torch.finfo(scores.dtype).tiny
    scores = scores - scores.amax(-1, keepdim=True)
    prices = scores.amax(-2, keepdim=True)
    kernel = scores.sub_(prices).div_(smooth).exp_()
    columns = torch.ones_like(prices)
    for _ in range(ITERATIONS):
        columns = ((kernel @ columns.mT).reciprocal_().mT @ kernel).reciprocal_()
    return (prices - smooth * columns.log()).nan_to_num(0, 0, 0)
