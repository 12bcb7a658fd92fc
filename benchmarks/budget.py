"""The budget of ResNet-50: how long it takes, how close it is to the bound, and what other ways of spending it gain.

``python benchmarks/budget.py`` prints a table and keeps it in benchmarks/budget.json. Costs are those of torchvision's
ResNet-50 on 224 x 224 pixels, of which two are merged. The mismatch of units is drawn from a seed, since what is timed
is the solver: each group has its own scale, and its units vary as gamma variables do. ``whole_groups`` is the peer: the
same programme where each group is merged or kept apart as a whole, as the budgets of PLeaS nearly are.
"""

from __future__ import annotations

import time

import numpy as np
import torch
import torchvision
from scipy.optimize import Bounds, LinearConstraint, milp

from benchmarks.turns import keep
from rebasin.expanding.costs import layer_costs
from rebasin.merging.budget import Budget, best_budget, cost_terms, shaped_budget
from rebasin.merging.gains import linear_gains, mismatch_gains
from rebasin.tracing import trace

SIZES, SEED = (1.1, 1.2, 1.33, 1.55, 1.8), 0


def main() -> None:
    model, image = torchvision.models.resnet50(weights=None).eval(), torch.randn(1, 3, 224, 224)
    spec = trace(model, image)
    started = time.monotonic()
    costs = layer_costs(spec, model, image)
    counting = time.monotonic() - started
    generator = np.random.default_rng(SEED)
    mismatch = {}
    for group, units in spec.sizes.items():
        mismatch[group] = torch.from_numpy(generator.uniform(0.2, 1) * generator.gamma(1.5, 1, units))
    by_unit = mismatch_gains(mismatch)
    by_group = linear_gains(spec, {group: float(table[-1]) for group, table in by_unit.items()})
    rows = []
    for name, gains in (("mismatch", by_unit), ("linear", by_group)):
        for size in SIZES:
            started, worked = time.monotonic(), time.process_time()
            budget = best_budget(spec, costs, gains=gains, size=size)
            seconds, worked = time.monotonic() - started, time.process_time() - worked
            shapes = {
                shape: shaped_budget(spec, costs, shape=shape, size=size) for shape in ("uniform", "prefix", "suffix")
            }
            rows.append(
                {
                    "gains": name,
                    "size": size,
                    "size_reached": round(budget.size, 5),
                    "seconds": round(seconds, 1),
                    "processor_seconds": round(worked, 1),
                    "gap": round(budget.gap, 5),
                    "groups_in_part": sum(0 < budget.merged[g] < units for g, units in budget.units.items()),
                    "whole_groups_over_ours": round(whole_groups(spec, costs, gains, size) / budget.gain, 4),
                    **{f"{shape}_over_ours": round(_gain(gains, b) / budget.gain, 4) for shape, b in shapes.items()},
                }
            )
            print(rows[-1])
    table = {
        "what": "two torchvision resnet50 merged on 224 x 224 pixels, structured multiply-adds, seeded mismatch",
        "groups": len(spec.sizes),
        "layers": sum(cost.multiply_adds > 0 for cost in costs),
        "counting_seconds": round(counting, 2),
        "rows": rows,
    }
    keep(__file__, table)


def whole_groups(spec, costs, gains, size) -> float:
    """The greatest gain where each group is merged or kept apart as a whole."""
    groups = list(gains)
    parent, merged, linear, products = cost_terms(spec, costs, groups, 2, "structured")
    units = np.array([spec.sizes[group] for group in groups])
    g, h = np.nonzero(products)  # the pairs of groups, each with a variable that is 1 if both are apart
    columns = len(groups) + len(g)
    gain = np.zeros(columns)
    gain[: len(groups)] = [float(gains[group][-1]) for group in groups]
    cost = np.concatenate([linear * units, products[g, h] * units[g] * units[h]]) / parent
    both = np.zeros((2 * len(g), columns))
    for pair, groups_of_pair in enumerate(zip(g, h, strict=True)):
        for side, group in enumerate(groups_of_pair):
            both[2 * pair + side, [len(groups) + pair, group]] = 1, -1
    limits = np.concatenate([[size - merged / parent], np.zeros(len(both))])
    result = milp(
        -gain,
        integrality=np.arange(columns) < len(groups),
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(np.concatenate([cost[None], both]), -np.inf, limits),
        options={"mip_rel_gap": 1e-4},
    )
    return -result.fun


def _gain(gains: dict, budget: Budget) -> float:
    return sum(float(gains[group][units - budget.merged[group]]) for group, units in budget.units.items())


if __name__ == "__main__":
    main()
