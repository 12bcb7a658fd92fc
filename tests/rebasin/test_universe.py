"""One universe of units for all models: every cycle closes, a planted one is found, two models are Frank-Wolfe's."""

import pytest
import torch
from networks import Attention, Branches
from torch import nn

import rebasin
from rebasin import Permutation, frank_wolfe_matching, mean_inner_product, merge_many, merge_mean, merge_universe, trace
from rebasin.matching.frank_wolfe import vertex_of
from rebasin.merging.universe import _highest, _Objective
from rebasin.weights import stack, take


def mlp():
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))


def drawn(model, spec, n, noise, seed=0):
    """n permuted copies of one model, (n, ...) in float64, each with noise of its own; and the permutations."""
    generator = torch.Generator().manual_seed(seed)
    state = {key: torch.randn(tensor.shape, generator=generator).double() for key, tensor in model.state_dict().items()}
    planted = Permutation.random(spec, (n,), generator=generator)
    copies = planted.apply(state)
    noisy = {}
    for key, tensor in copies.items():
        noisy[key] = tensor + noise * torch.randn(tensor.shape, generator=generator).double()
    return noisy, planted


@pytest.fixture(params=[mlp, Branches, Attention])
def model(request):
    torch.manual_seed(0)
    network = request.param().eval()
    example = torch.randn(2, 3) if request.param is mlp else torch.randn(2, 2, 4, 4)
    return network, trace(network, example)


def test_models_that_are_one_permuted_are_found_again(model):
    network, spec = model
    models, _ = drawn(network, spec, 4, noise=0.01)
    merge = merge_universe(spec, models)
    aligned = merge.permutation.apply(models)
    for key in spec.weights:
        spread = (aligned[key] - aligned[key][:1]).abs().max()
        assert spread < 0.1, key
    assert all(
        torch.equal(index[0], torch.arange(index.shape[-1]).expand_as(index[0]))
        for index in merge.permutation.indices.values()
    ), "the first model's units are the universe's"


def test_every_cycle_of_matchings_closes(model):
    """C2M3: what brings c to b and then to a is what brings c to a."""
    network, spec = model
    models, _ = drawn(network, spec, 3, noise=1.0)
    to_universe = merge_universe(spec, models).permutation
    a, b, c = (Permutation(spec, take(to_universe.indices, number)) for number in range(3))
    b_to_a, c_to_b, c_to_a = (first.invert().compose(second) for first, second in ((a, b), (b, c), (a, c)))
    around = b_to_a.apply(c_to_b.apply(take(models, 2)))
    for key, tensor in c_to_a.apply(take(models, 2)).items():
        assert torch.equal(around[key], tensor), key
    assert any(not torch.equal(index, torch.arange(index.shape[-1]).expand_as(index)) for index in b.indices.values())


def test_two_models_are_matched_as_by_frank_wolfe(model):
    network, spec = model
    models, _ = drawn(network, spec, 2, noise=1.0)
    ours = merge_universe(spec, models).permutation
    theirs = frank_wolfe_matching(spec, take(models, 0), take(models, 1)).permutation
    for group, index in theirs.indices.items():
        assert torch.equal(ours.indices[group][1], index)


def test_the_objective_is_the_sum_of_inner_products_over_pairs_and_never_below_the_plain_mean(model):
    network, spec = model
    for seed in range(3):
        models, _ = drawn(network, spec, 3, noise=2.0, seed=seed)
        merge = merge_universe(spec, models)
        aligned = merge.permutation.apply(models)
        pairs = [
            float(rebasin.inner_product(spec, take(aligned, p), take(aligned, q))) for p, q in ((0, 1), (0, 2), (1, 2))
        ]
        assert float(mean_inner_product(spec, aligned)) == pytest.approx(sum(pairs) / 3, rel=1e-9)
        assert mean_inner_product(spec, aligned) >= mean_inner_product(spec, models) - 1e-9


def test_the_slope_and_the_segment_are_those_of_the_objective():
    network = mlp()
    spec = trace(network, torch.randn(2, 3))
    models, _ = drawn(network, spec, 4, noise=1.0)
    objective = _Objective(spec, models)
    point = objective.centre()
    gradient = objective.gradient(point)
    vertex = vertex_of(spec, gradient)
    slope = sum(float((gradient[group] * (vertex[group] - point[group])).sum()) for group in point)

    def value(t):
        between = {group: torch.lerp(point[group], vertex[group], t) for group in point}
        mixed = [objective.mixed(key, between).double().flatten(1) for key in objective.weights]
        return sum(float(entries.sum(0).square().sum() - entries.square().sum()) / 2 for entries in mixed)

    along = objective.along(point, vertex)
    assert along == pytest.approx([value(t) for t in (0, 0.25, 0.5, 0.75, 1)], rel=1e-9)
    assert (value(1e-4) - value(0)) / 1e-4 == pytest.approx(slope, rel=1e-2)
    step, height = _highest(along)
    assert height == pytest.approx(value(step), rel=1e-9)
    assert height >= max(value(t / 50) for t in range(51)) - 1e-9 * abs(height)


def test_groups_are_merged_each_by_itself():
    network = mlp()
    spec = trace(network, torch.randn(2, 3))
    several = [drawn(network, spec, 3, noise=1.0, seed=seed)[0] for seed in range(2)]
    together = merge_universe(spec, stack(several))
    for number, models in enumerate(several):
        alone = merge_universe(spec, models)
        assert torch.equal(together.weights["0.weight"][number], alone.weights["0.weight"])
        assert int(together.sweeps[number]) == int(alone.sweeps)


def test_of_noisy_copies_the_universe_is_worth_more_than_merge_many_from_where_they_lie():
    # MergeMany begins at a mean of unmatched models, whose units are all alike.
    network = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 4))
    spec = trace(network, torch.randn(2, 6))
    models, planted = drawn(network, spec, 6, noise=0.7)
    truth = mean_inner_product(spec, planted.invert().apply(models))
    reached = {
        by.__name__: by(spec, models).permutation.apply(models) for by in (merge_universe, merge_many, merge_mean)
    }
    worth = {name: float(mean_inner_product(spec, aligned)) for name, aligned in reached.items()}
    assert worth["merge_universe"] >= worth["merge_many"] > worth["merge_mean"]
    assert worth["merge_universe"] >= 0.95 * float(truth)


def test_a_weight_with_three_axes_that_move_is_refused():
    state = {"w": torch.zeros(2, 2, 2)}
    spec = rebasin.PermutationSpec.from_axes(state, {"w": ("a", "b", "c")})
    with pytest.raises(ValueError, match="two axes that move, 'w' has more"):
        merge_universe(spec, [state, state])
