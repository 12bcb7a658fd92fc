"""The dense weights of a merge with slots: all apart is the ensemble, and all shared the mean of the models."""

import copy
from types import SimpleNamespace

import pytest
import torch
from networks import Attention, Branches, Chain, Reused, drawn, images
from torch import nn
from torch.func import functional_call

from rebasin import Permutation, PermutationSpec, mean, trace
from rebasin.expanding.expansion import expand, output_keys
from rebasin.expanding.layout import Run, places, runs
from rebasin.expanding.slots import Slots
from rebasin.graph import export
from rebasin.weights import take

# Sums of some hundred float64 products, in another order.
ROUNDING = {"rtol": 1e-9, "atol": 1e-9}


class ChannelsLast(nn.Module):
    """A flattening after which the channels of a pixel lie side by side, and one of the other kind."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 3, padding=1)
        self.a, self.b, self.out = nn.Linear(4 * 16, 5), nn.Linear(3 * 16, 5), nn.Linear(5, 3)

    def forward(self, x):
        x = self.norm(self.first(x)).relu()
        return self.out(self.a(x.movedim(1, -1).flatten(1)).relu() + self.b(self.second(x).relu().flatten(1)))


class Depthwise(nn.Sequential):
    """A depthwise convolution, and one that makes two channels of each."""

    def __init__(self):
        depthwise, double = nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Conv2d(4, 8, 3, padding=1, groups=4)
        layers = nn.Conv2d(2, 4, 1), nn.ReLU(), depthwise, nn.ReLU(), double, nn.ReLU(), nn.Conv2d(8, 6, 1)
        super().__init__(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 3))


class Tied(nn.Module):
    """A table of vectors that is the last layer's weight, too."""

    def __init__(self):
        super().__init__()
        self.table, self.out = nn.Embedding(5, 6), nn.Linear(6, 5, bias=False)
        self.out.weight = self.table.weight

    def forward(self, x):
        return self.out(self.table((x > 0).long().flatten(1)).mean(1).relu())


class Multiplied(nn.Module):
    """A weight that is no layer's."""

    def __init__(self):
        super().__init__()
        self.first, self.weight = nn.Linear(32, 5), nn.Parameter(torch.randn(3, 5))

    def forward(self, x):
        return self.first(x.flatten(1)).relu() @ self.weight.T


class Shuffled(nn.Module):
    """Channels that change places between two layers."""

    def __init__(self):
        super().__init__()
        self.first, self.out = nn.Linear(32, 4), nn.Linear(8, 3)

    def forward(self, x):
        x = self.first(x.flatten(1)).relu()
        return self.out(torch.stack([x, x.flip(1)], 1).flatten(1))


EXACT = [Chain, Branches, Reused, ChannelsLast, Depthwise]


def case(network, n):
    """A model in float64, its spec and graph, and the weights of n models like it."""
    model = network().double().eval()
    spec = trace(model, images(1))
    return SimpleNamespace(model=model, spec=spec, program=export(model, (images(2),)), models=drawn(model, n))


def widened(model, weights, x):
    """What the model gives with weights of other sizes, of which its modules know but the number of groups."""
    model = copy.deepcopy(model)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            module.groups = len(weights[f"{name}.weight"]) // (module.out_channels // module.groups)
    return functional_call(model, weights, (x,))


def each_alone(made, x):
    """What each of the models gives: (n, images, outputs)."""
    n = len(next(iter(made.models.values())))
    return torch.stack([functional_call(made.model, take(made.models, m), (x,)) for m in range(n)])


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("network", EXACT)
def test_all_apart_gives_the_mean_of_what_the_models_give(network, n):
    made, x = case(network, n), images(5)
    weights = expand(Slots.apart(made.spec, n), made.models, made.program)
    torch.testing.assert_close(widened(made.model, weights, x), each_alone(made, x).mean(0), **ROUNDING)


@pytest.mark.parametrize("network", EXACT)
def test_heads_side_by_side_give_what_each_model_gives(network):
    made, x = case(network, 3), images(5)
    weights = expand(Slots.apart(made.spec, 3), made.models, made.program, heads="side by side")
    torch.testing.assert_close(widened(made.model, weights, x), torch.cat([*each_alone(made, x)], 1), **ROUNDING)


@pytest.mark.parametrize("network", [*EXACT, Attention])
def test_the_slots_of_a_permutation_give_the_mean_of_the_permuted_models(network):
    made = case(network, 3)
    permutation = Permutation.random(made.spec, (3,), torch.Generator().manual_seed(1))
    weights = expand(Slots.of_permutation(permutation), made.models, made.program)
    for key, tensor in mean(permutation.apply(made.models)).items():
        torch.testing.assert_close(weights[key], tensor, rtol=1e-14, atol=1e-15)  # only the order of a sum differs


@pytest.mark.parametrize("heads", ["shared", "side by side"])
@pytest.mark.parametrize("network", [*EXACT, Attention])
def test_models_that_are_permuted_copies_merge_into_the_model_at_any_size(network, heads):
    made, x = case(network, 1), images(5)
    permutation = Permutation.random(made.spec, (2,), torch.Generator().manual_seed(1))
    models = permutation.apply({key: tensor.expand(2, *tensor.shape[1:]) for key, tensor in made.models.items()})
    scores = {group: torch.rand(made.spec.sizes[group]) for group in made.spec.families}
    merged = {group: made.spec.sizes[group] // 2 for group in made.spec.families}
    slots = Slots.partial(permutation.invert(), merged, scores)
    weights = expand(slots, models, made.program, heads=heads)
    if network is Attention:  # norms of more units than one model's are another function: only the shapes are seen
        assert weights["layer.linear1.weight"].shape == (15, 18)
        assert weights["layer.self_attn.in_proj_weight"].shape == (3 * 5 * 4, 18)
        return
    repeats = 1 if heads == "shared" else 2
    expected = each_alone(made, x)[0].repeat(1, repeats)
    torch.testing.assert_close(widened(made.model, weights, x), expected, **ROUNDING)


def test_any_map_expands_as_the_formula_says():
    """W' = sum over models of M_out W U_in, with M the mean over the units in a slot and U their membership."""
    made = case(Chain, 2)
    generator = torch.Generator().manual_seed(2)
    index = {group: torch.randint(size, (2, size), generator=generator) for group, size in made.spec.sizes.items()}
    permutation = Permutation.random(made.spec, (2,), generator)
    slots = Slots.from_index(made.spec, index, permutation)
    weights = expand(slots, made.models, made.program)
    members = {}  # (n, slots, units)
    for group, of_units in slots.index.items():
        members[group] = nn.functional.one_hot(of_units, slots.widths[group]).transpose(1, 2).double()
    averages = {group: one / one.sum((0, 2))[:, None] for group, one in members.items()}
    moved = permutation.apply(made.models)
    middle = (averages["3"] @ moved["3.weight"] @ members["1"].transpose(1, 2)).sum(0)
    torch.testing.assert_close(weights["3.weight"], middle)
    torch.testing.assert_close(weights["3.bias"], (averages["3"] @ moved["3.bias"][..., None]).sum(0).squeeze(-1))
    torch.testing.assert_close(weights["7.weight"], (moved["7.weight"] @ members["5"].transpose(1, 2)).sum(0) / 2)
    # Two slots without a common owner have nothing to do with one another.
    without = slots.owners["3"].T.double() @ slots.owners["1"].double() == 0
    assert without.any()
    assert not weights["3.weight"][without].any()


def test_the_order_along_an_axis_stays():
    made = case(ChannelsLast, 2)
    assert runs(made.spec, "a.weight", 1) == [Run("first", 1)] * 16
    assert runs(made.spec, "b.weight", 1) == [Run("second", 16)]
    slots = Slots.apart(made.spec, 2)
    index, width = places(slots, "a.weight", 1)
    assert (index[1, :6].tolist(), width) == ([4, 5, 6, 7, 12, 13], 2 * 4 * 16)


def test_of_a_concatenation_with_the_input_the_input_is_shared():
    spec = PermutationSpec.from_axes({"w": torch.zeros(3), "v": torch.zeros(5)}, {"w": ("units",), "v": (None,)})
    part = spec.parts["w"][0]
    spec = PermutationSpec(spec.sizes, {"w": (part,), "v": (type(part)("units", 0, part.positions + 2),)}, spec.shapes)
    assert runs(spec, "v", 0) == [Run(None, 2), Run("units", 1)]
    index, width = places(Slots.apart(spec, 2), "v", 0)
    assert (index.tolist(), width) == ([[0, 1, 2, 3, 4], [0, 1, 5, 6, 7]], 8)


def test_outputs_are_what_the_last_layers_give():
    assert output_keys(case(Branches, 1).program) == {"out.weight", "out.bias"}
    heads = nn.Sequential(nn.Flatten(), nn.Linear(32, 4), nn.ReLU(), nn.Linear(4, 3, bias=False), nn.BatchNorm1d(3))
    program = export(heads.double(), (images(2),))
    assert output_keys(program) == {"3.weight", "4.weight", "4.bias", "4.running_mean", "4.running_var"}


def test_a_group_whose_units_are_out_of_order_can_only_be_merged_whole():
    made = case(Shuffled, 2)
    with pytest.raises(ValueError, match="the units of 'first' do not lie in order"):
        expand(Slots.apart(made.spec, 2), made.models, made.program)
    whole = Slots.of_permutation(Permutation.identity(made.spec, (2,)))
    torch.testing.assert_close(expand(whole, made.models, made.program), mean(made.models))


def test_a_tensor_that_both_gives_and_reads_is_named():
    made = case(Tied, 2)
    with pytest.raises(ValueError, match="'out.weight' and 'table.weight': one tensor"):
        expand(Slots.apart(made.spec, 2), made.models, made.program)


def test_a_weight_outside_of_a_layer_is_named():
    made = case(Multiplied, 2)
    with pytest.raises(ValueError, match="'weight' is multiplied outside of a linear layer"):
        expand(Slots.apart(made.spec, 2), made.models, made.program)


def test_bad_input_is_named():
    made = case(Chain, 2)
    with pytest.raises(ValueError, match="'shared' or 'side by side', not 'both'"):
        expand(Slots.apart(made.spec, 2), made.models, made.program, heads="both")
    with pytest.raises(ValueError, match="the slots are of 3 models"):
        expand(Slots.apart(made.spec, 3), made.models, made.program)


def test_nothing_given_is_modified():
    made = case(Branches, 2)
    before = copy.deepcopy(made.models)
    expand(Slots.apart(made.spec, 2), made.models, made.program)
    torch.testing.assert_close(made.models, before, rtol=0, atol=0)
