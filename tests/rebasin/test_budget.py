"""A budget is the best that fits: against all widths there are, and against the cost of the slots that it asks for."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import NETWORKS, Branches, images

from rebasin import Permutation, PermutationSpec
from rebasin.expanding.costs import LayerCost, count_cost, layer_costs
from rebasin.expanding.slots import Slots
from rebasin.merging.budget import best_budget, shaped_budget
from rebasin.merging.gains import linear_gains, mismatch_gains
from rebasin.tracing import trace

# The solver stops at a relative gap of 1e-4, and its tolerances are 1e-6.
SOLVED = 2e-4
MEASURES = ["structured", "dense", "parameters"]
EXAMPLE = images(2).float()


def spec_of(**sizes):
    """A spec of groups of these sizes, of which nothing else is asked."""
    return PermutationSpec.from_axes(
        {group: torch.zeros(size) for group, size in sizes.items()}, {group: (group,) for group in sizes}
    )


def layer(out, reads, multiply_adds=1):
    return LayerCost(f"{out} {reads}", out, reads, multiply_adds, 2 * multiply_adds)


# Two hidden layers, and a residual stream s of blocks with the hidden units a and b, whose square matrix reads itself.
CHAIN = [layer("a", None, 7), layer("b", "a", 3), layer(None, "b", 2), layer(None, None, 5)]
RESIDUAL = [
    layer("s", None, 7),
    layer("s", "s", 2),
    layer("a", "s", 3),
    layer("s", "a", 3),
    layer("b", "s"),
    layer("s", "b"),
    layer(None, "s", 10),
]
SIDE_BY_SIDE = [*RESIDUAL[:-1], LayerCost("heads", None, "s", 10, 11, side_by_side=True)]


def cost(spec, costs, n, merged, by):
    """What it costs to merge so many units of each group, by the slots that this makes."""
    scores = {group: torch.arange(float(spec.sizes[group])) for group in spec.families}
    return count_cost(costs, Slots.partial(Permutation.identity(spec, (n,)), merged, scores), by=by)


def gain_of(gains, units, merged):
    return sum(float(of_group[units[group] - merged[group]]) for group, of_group in gains.items())


def best_of_all(spec, costs, gains, size, n, by):
    """The greatest gain of all widths that fit: tried one by one, those that gain most first."""
    limit = size * cost(spec, costs, 1, {}, by) + 1e-6
    widths = [
        dict(zip(gains, counts, strict=True))
        for counts in itertools.product(*(range(spec.sizes[group] + 1) for group in gains))
    ]
    widths.sort(key=lambda merged: -gain_of(gains, spec.sizes, merged))
    best = next(merged for merged in widths if cost(spec, costs, n, merged, by) <= limit)
    return gain_of(gains, spec.sizes, best)


def drawn_gains(spec, seed, concave=True):
    generator = torch.Generator().manual_seed(seed)
    gains = {}
    for group, size in spec.sizes.items():
        mismatch = torch.rand(size, generator=generator, dtype=torch.float64) ** 2
        if concave:
            gains |= mismatch_gains({group: mismatch})
        else:  # any table: it rises and falls
            gains[group] = torch.cat([mismatch, mismatch[:1]]) * size
    return gains


def assert_fits(budget, spec, costs):
    """The size is counted on the slots, and within the limit."""
    counted = cost(spec, costs, budget.n, budget.merged, budget.by)
    parent = cost(spec, costs, 1, {}, budget.by)
    assert budget.size == pytest.approx(counted / parent, rel=1e-12)
    assert counted <= budget.limit * parent + 1e-6


@pytest.mark.parametrize("by", MEASURES)
@pytest.mark.parametrize("concave", [True, False])
def test_two_groups_of_twenty_units_are_split_as_well_as_any_widths(by, concave):
    spec = spec_of(a=20, b=20)
    for seed, size in enumerate([1.1, 1.35, 1.8]):
        gains = drawn_gains(spec, seed, concave)
        budget = best_budget(spec, CHAIN, gains=gains, size=size, by=by, levels=20)
        best = best_of_all(spec, CHAIN, gains, size, 2, by)
        assert_fits(budget, spec, CHAIN)
        assert budget.gain == pytest.approx(gain_of(gains, spec.sizes, budget.merged))
        assert best * (1 - SOLVED) <= budget.gain <= best * (1 + 1e-12)
        assert best * (1 - 1e-6) <= budget.bound <= best * (1 + SOLVED)
        assert budget.gap <= SOLVED


@given(
    sizes=st.tuples(*[st.integers(1, 7)] * 3),
    seed=st.integers(0, 99),
    concave=st.booleans(),
    n=st.integers(2, 3),
    share=st.floats(0, 1),
    levels=st.integers(1, 4),
    by=st.sampled_from(MEASURES),
    costs=st.sampled_from([RESIDUAL, SIDE_BY_SIDE]),
)
@settings(max_examples=40, deadline=None)
def test_steps_coarser_than_units_still_bound_the_gain_of_all_widths(sizes, seed, concave, n, share, levels, by, costs):
    spec = spec_of(**dict(zip("sab", sizes, strict=True)))
    gains = drawn_gains(spec, seed, concave)
    least = cost(spec, costs, n, spec.sizes, by) / cost(spec, costs, 1, {}, by)
    size = least + share * (n - least)
    budget = best_budget(spec, costs, gains=gains, size=size, n=n, by=by, levels=levels)
    best = best_of_all(spec, costs, gains, size, n, by)
    assert_fits(budget, spec, costs)
    # Rounding of sums of at most 21 numbers, and of what the solver calls whole.
    assert budget.gain <= best + 1e-9
    assert budget.bound >= best - 1e-5


@pytest.mark.parametrize("kind", NETWORKS)
@given(data=st.data())
@settings(max_examples=8, deadline=None)
def test_sizes_are_those_of_the_slots_on_residual_concatenated_and_grouped_layers(kind, data):
    spec, costs = counted_once(kind)
    n, shape = data.draw(st.integers(2, 3)), data.draw(st.sampled_from(["uniform", "prefix", "suffix"]))
    by = data.draw(st.sampled_from(MEASURES))
    budget = shaped_budget(spec, costs, shape=shape, size=data.draw(st.floats(1, n)), n=n, by=by)
    assert_fits(budget, spec, costs)
    gains = {group: torch.arange(spec.sizes[group] + 1.0) for group in spec.families}
    best = best_budget(spec, costs, gains=gains, size=budget.limit, n=n, by=by, levels=2)
    assert_fits(best, spec, costs)
    assert best.bound >= gain_of(gains, budget.units, budget.merged) - 1e-5


COUNTED = {}


def counted_once(kind):
    if kind not in COUNTED:
        model = NETWORKS[kind]().eval()
        spec = trace(model, EXAMPLE)
        COUNTED[kind] = spec, layer_costs(spec, model, EXAMPLE)
    return COUNTED[kind]


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("by", ["structured", "parameters"])
def test_size_one_merges_all_units_and_size_n_none(n, by):
    spec = spec_of(s=6, a=9, b=30)
    gains = drawn_gains(spec, 0)
    merged = best_budget(spec, RESIDUAL, gains=gains, size=1, n=n, by=by)
    assert merged.merged == {"s": 6, "a": 9, "b": 30}
    assert merged.size == 1
    apart = best_budget(spec, RESIDUAL, gains=gains, size=n, n=n, by=by)
    assert apart.merged == {"s": 0, "a": 0, "b": 0}
    assert apart.gain == pytest.approx(apart.bound)
    for shape in ("uniform", "prefix", "suffix"):
        assert shaped_budget(spec, RESIDUAL, shape=shape, size=1, n=n, by=by).merged == merged.merged
        assert shaped_budget(spec, RESIDUAL, shape=shape, size=n, n=n, by=by).merged == apart.merged


def test_the_units_that_differ_are_kept_apart_where_they_are():
    """Of 40 units in each of two layers, 10 of one and 20 of the other differ between the models: just they fit."""
    spec = spec_of(a=40, b=40)
    gains = mismatch_gains({"a": (torch.arange(40) < 10).float(), "b": (torch.arange(40) >= 20).float()})
    size = cost(spec, CHAIN, 2, {"a": 30, "b": 20}, "structured") / cost(spec, CHAIN, 1, {}, "structured")
    budget = best_budget(spec, CHAIN, gains=gains, size=size)
    assert budget.merged == {"a": 30, "b": 20}
    assert budget.gain == 30


def test_a_best_budget_gains_at_least_what_each_shape_does_and_a_shape_fills_its_size():
    spec, costs = counted_once("chain")
    gains = drawn_gains(spec, 3)
    budgets = {shape: shaped_budget(spec, costs, shape=shape, size=1.4) for shape in ("uniform", "prefix", "suffix")}
    best = best_budget(spec, costs, gains=gains, size=1.4)
    for budget in budgets.values():
        assert gain_of(gains, spec.sizes, budget.merged) <= best.gain
        assert budget.gap is None
    # Merged up to a depth, or from a depth on, with one group between the two.
    for shape, order in (("prefix", ["1", "3", "5"]), ("suffix", ["5", "3", "1"])):
        merged = budgets[shape].merged
        shares = [merged[group] / spec.sizes[group] for group in order]
        assert shares == sorted(shares, reverse=True)
        assert sum(0 < share < 1 for share in shares) <= 1
        # One more unit apart would be too much.
        deepest = max((group for group in order if merged[group] > 0), key=order.index)
        more = merged | {deepest: merged[deepest] - 1}
        assert cost(spec, costs, 2, more, "structured") > 1.4 * cost(spec, costs, 1, {}, "structured")
    uniform = [1 - budgets["uniform"].merged[group] / spec.sizes[group] for group in spec.sizes]
    assert max(uniform) - min(uniform) < 1 / min(spec.sizes.values())


def test_groups_without_gains_are_merged_whole():
    spec = spec_of(s=6, a=9, b=8)
    gains = drawn_gains(spec, 1)
    budget = best_budget(spec, RESIDUAL, gains={"a": gains["a"], "b": gains["b"]}, size=1.5)
    assert budget.merged["s"] == 6
    assert_fits(budget, spec, RESIDUAL)
    assert budget.merged["a"] < 9


def test_a_solver_that_has_no_time_still_gives_widths_that_fit_and_a_bound():
    spec = spec_of(s=60, a=90, b=80)
    gains = drawn_gains(spec, 1)
    hasty, best = (best_budget(spec, RESIDUAL, gains=gains, size=1.5, seconds=seconds) for seconds in (0, 60))
    assert_fits(hasty, spec, RESIDUAL)
    assert 0 < hasty.gain <= best.bound
    assert hasty.bound >= best.gain


def test_a_shape_leaves_alone_what_must_stay_whole():
    spec = spec_of(s=6, a=9, b=8)
    for shape in ("uniform", "prefix", "suffix"):
        budget = shaped_budget(spec, RESIDUAL, shape=shape, size=1.3, whole={"s": "a reason"})
        assert budget.merged["s"] == 6
        assert min(budget.merged["a"], budget.merged["b"]) < 8
        assert_fits(budget, spec, RESIDUAL)


def test_gains_are_compared_whatever_their_unit_is():
    spec = spec_of(s=6, a=9, b=8)
    budgets = [
        best_budget(spec, RESIDUAL, gains={g: table * unit for g, table in drawn_gains(spec, 2).items()}, size=1.4)
        for unit in (1e-9, 1.0, 1e9)
    ]
    assert budgets[0].merged == budgets[1].merged == budgets[2].merged
    assert budgets[0].bound == pytest.approx(budgets[2].bound * 1e-18, rel=SOLVED)


def test_tables_of_gains():
    gains = mismatch_gains({"a": torch.tensor([1.0, 4.0, 2.0])})
    assert gains["a"].tolist() == [0, 4, 6, 7]
    assert linear_gains(spec_of(a=4), {"a": 2.0})["a"].tolist() == [0, 0.5, 1, 1.5, 2]
    with pytest.raises(ValueError, match="group 'a': the mismatch is a finite number of 0 or more for each unit"):
        mismatch_gains({"a": torch.tensor([1.0, -1.0])})
    with pytest.raises(ValueError, match="'c' is no group that can be split: there are a"):
        linear_gains(spec_of(a=4), {"c": 2.0})


def test_the_record_fits_a_line_and_its_table_has_a_row_for_each_group():
    spec = spec_of(s=6, a=9, b=8)
    budget = best_budget(spec, RESIDUAL, gains=drawn_gains(spec, 1), size=1.4)
    assert repr(budget).startswith("Budget(2 models in 1.")
    assert f"gain {budget.gain:.4g}, at most {budget.bound:.4g}: gap {budget.gap:.2%})" in repr(budget)
    assert budget.summary().splitlines()[1] == f"s          6  {budget.merged['s']:6}"
    assert len(budget.summary().splitlines()) == 4


@pytest.mark.parametrize("size", [0.9, 2.1])
def test_sizes_that_no_merge_has_are_refused(size):
    spec = spec_of(a=4, b=4)
    with pytest.raises(ValueError, match=f"no merge of 2 models has size {size:g}: it goes from 1, all .* to 2, all"):
        best_budget(spec, CHAIN, gains=drawn_gains(spec, 0), size=size)
    with pytest.raises(ValueError, match=f"no merge of 2 models has size {size:g}"):
        shaped_budget(spec, CHAIN, shape="prefix", size=size)


def test_heads_side_by_side_cost_something_when_all_units_are_merged():
    spec = spec_of(s=6, a=9, b=8)
    with pytest.raises(
        ValueError, match="no merge of 2 models has size 1: it goes from 1.1.*, all units merged, to 2,"
    ):
        best_budget(spec, SIDE_BY_SIDE, gains=drawn_gains(spec, 0), size=1)


def test_bad_gains_and_options_are_refused():
    spec = spec_of(a=4, b=4)
    gains = drawn_gains(spec, 0)
    with pytest.raises(ValueError, match="'c' is no group that can be split: there are a, b"):
        best_budget(spec, CHAIN, gains={"c": gains["a"]}, size=1.5)
    with pytest.raises(ValueError, match="group 'b' has 4 units: its gains are 5 finite numbers"):
        best_budget(spec, CHAIN, gains=gains | {"b": torch.zeros(4)}, size=1.5)
    with pytest.raises(ValueError, match="there are no gains"):
        best_budget(spec, CHAIN, gains={}, size=1.5)
    with pytest.raises(ValueError, match="'a s' has a cost for group 's', which the spec has not"):
        best_budget(spec, [*CHAIN, layer("a", "s")], gains=gains, size=1.5)
    with pytest.raises(ValueError, match="by is 'structured' or 'dense' or 'parameters', not 'flops'"):
        best_budget(spec, CHAIN, gains=gains, size=1.5, by="flops")
    with pytest.raises(ValueError, match="shape is 'uniform' or 'prefix' or 'suffix', not 'zip'"):
        shaped_budget(spec, CHAIN, shape="zip", size=1.5)
    with pytest.raises(TypeError, match="the first argument is the spec"):
        best_budget(Branches(), CHAIN, gains=gains, size=1.5)
