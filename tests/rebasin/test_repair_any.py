"""REPAIR and the reset of norm statistics on networks of every kind, and inside the hierarchy."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from networks import NETWORKS, Attention, Branches, Chain, Reused, drawn, images
from torch import nn
from torch.func import functional_call

from lab.networks.convnets import LayerNorm2d
from rebasin import Permutation, interpolate, mean, mender, merge_hierarchical, merge_many, merge_mean, repair
from rebasin import reset_norms as reset
from rebasin.fitting.norm_statistics import measure_norms
from rebasin.tracing import trace

# Sums of some thousand float64 products, each layer's error carried through the next.
ROUNDING = {"rtol": 1e-8, "atol": 1e-8}
CORRECTED = (nn.Linear, nn.Conv2d, nn.BatchNorm2d, nn.InstanceNorm2d, nn.LayerNorm)


def entry(weights, *position):
    return {key: tensor[position] for key, tensor in weights.items()}


def statistics(model, weights, x, layers):
    """Mean and deviation of each unit that these modules give, by hooks on the model as it is."""
    seen = {}

    def keep(name):
        def hook(module, args, value):
            axis = 1 if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.InstanceNorm2d | LayerNorm2d) else -1
            rows = value.movedim(axis, -1).flatten(0, -2)
            seen[name] = torch.stack([rows.mean(0), rows.std(0)])

        return hook

    hooks = [model.get_submodule(name).register_forward_hook(keep(name)) for name in layers]
    with torch.no_grad():
        functional_call(model, weights, (x,))
    for hook in hooks:
        hook.remove()
    return seen


class Instances(nn.Sequential):
    """A norm over each image by itself, whose scale and shift are each channel's own."""

    def __init__(self):
        first, norm = nn.Conv2d(2, 5, 1), nn.InstanceNorm2d(5, affine=True)
        super().__init__(first, norm, nn.ReLU(), nn.Conv2d(5, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))


class ChannelNorms(nn.Sequential):
    """Norms over the channels of each pixel, which move the axes there and back, after a convolution without a bias."""

    def __init__(self):
        first, second = nn.Conv2d(2, 5, 1, bias=False), nn.Conv2d(5, 4, 1)
        norms = LayerNorm2d(5), LayerNorm2d(4)
        super().__init__(first, norms[0], nn.ReLU(), second, norms[1], nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))


class Columns(nn.Module):
    """Layers whose units are the columns of their matrices, as in GPT-2, and one with them as rows."""

    def __init__(self, weighed=False):
        super().__init__()
        self.first, self.second = nn.Parameter(torch.zeros(32, 9)), nn.Parameter(torch.zeros(9, 9))
        self.bias, self.bias2 = nn.Parameter(torch.zeros(9)), nn.Parameter(torch.zeros(9))
        self.third, self.bias3 = nn.Parameter(torch.zeros(8, 9)), nn.Parameter(torch.zeros(8))
        self.out, self.weighed = nn.Linear(8, 3), weighed

    def hidden(self, x):
        x = torch.addmm(self.bias, x.flatten(1), self.first)
        y = x.relu() @ self.second if self.weighed else torch.addmm(self.bias2, x.relu(), self.second)
        return x, y, torch.addmm(self.bias3, y.relu(), self.third.t())

    def forward(self, x):
        return self.out(self.hidden(x)[-1].relu())


def test_units_that_are_columns_are_repaired_as_well():
    model, x = Columns().double().eval(), images(50)
    parents = drawn(model, 2, seed=1)
    repaired = repair(model, mean(parents), parents, x)

    def moments(weights):
        hidden = Columns().double()
        hidden.load_state_dict(weights)
        return torch.cat([torch.stack([y.mean(0), y.std(0)]) for y in hidden.hidden(x)], 1).detach()

    goal = (moments(entry(parents, 0)) + moments(entry(parents, 1))) / 2
    torch.testing.assert_close(moments(repaired), goal, **ROUNDING)
    assert not torch.allclose(moments(mean(parents)), goal, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("network", [Chain, Branches, Attention, Instances, ChannelNorms])
def test_a_repaired_midpoint_has_its_parents_mean_and_deviation_in_each_unit(network):
    torch.manual_seed(0)
    model, x = network().double().eval(), images(50)
    parents = drawn(model, 2, 2, seed=1)
    merged = {key: t.mean(1) if t.is_floating_point() else t[:, 0] for key, t in parents.items()}
    repaired = repair(model, merged, parents, x)
    # A convolution before a norm has no bias to shift: the norm is what is given the parents' statistics.
    layers = [
        name
        for name, module in model.named_modules()
        if isinstance(module, CORRECTED)
        and module.bias is not None
        and name not in ("out", "6" if network is Instances else "7", "layer.self_attn.out_proj")
    ]
    assert len(layers) >= 3
    for group in range(2):
        goals = [statistics(model, entry(parents, group, i), x, layers) for i in range(2)]
        own, before = (statistics(model, entry(weights, group), x, layers) for weights in (repaired, merged))
        for name in layers:
            goal = (goals[0][name] + goals[1][name]) / 2
            torch.testing.assert_close(own[name], goal, **ROUNDING)
            assert not torch.allclose(before[name], goal, rtol=0.05, atol=0.05)


class Masked(nn.Module):
    """Attention over places in their order, by a mask of infinite numbers that is kept with the weights."""

    def __init__(self):
        super().__init__()
        self.into, self.inner, self.out = nn.Linear(3, 8), nn.Linear(8, 6), nn.Linear(6, 2)
        self.register_buffer("mask", torch.full((4, 4), -torch.inf).triu(1))

    def forward(self, x):
        hidden = self.into(x).relu()
        weights = (hidden @ hidden.mT + self.mask).softmax(-1)
        return self.out(self.inner(weights @ hidden).relu()).mean(1)


def test_an_infinite_mask_stays_and_an_infinite_weight_is_refused():
    torch.manual_seed(0)
    a, b, x = Masked(), Masked(), torch.randn(20, 4, 3)
    middle = interpolate(a, b, 0.5)
    repaired = repair(a, middle, [a, b], x)
    assert torch.equal(repaired.mask, a.mask) and repaired(x).isfinite().all()
    assert not torch.equal(repaired.inner.weight, middle.inner.weight)
    a.mask[0, 0] = torch.nan
    with pytest.raises(ValueError, match="the parents: 'mask' holds NaN"):
        repair(middle, middle, [a, b], x)
    a.mask[0, 0], a.out.bias.data[0] = 0, torch.inf
    with pytest.raises(ValueError, match=r"the parents: 'out.bias' holds NaN or infinite values"):
        repair(a, middle, [a, b], x)


def test_a_layer_that_is_used_twice_cannot_be_repaired():
    model = Reused().double()
    parents = drawn(model, 1, 2)
    with pytest.raises(ValueError, match="REPAIR cannot rescale 'again.weight' for each of the 2 times it is used"):
        repair(model, entry(parents, slice(None), 0), parents, images(5))


def test_a_hidden_layer_without_a_bias_or_a_norm_cannot_be_repaired():
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 4, bias=False), nn.ReLU(), nn.Linear(4, 2)).double()
    parents = drawn(model, 1, 2)
    with pytest.raises(ValueError, match="REPAIR shifts units by their bias, and '1' has none"):
        repair(model, entry(parents, slice(None), 0), parents, images(5))


class ComputedWeight(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.out = nn.Parameter(torch.ones(4, 32)), nn.Linear(4, 2)

    def forward(self, x):
        return self.out(nn.functional.linear(x.flatten(1), self.weight * 2))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            nn.Sequential(nn.Conv2d(2, 3, 1, bias=False), nn.BatchNorm2d(3, affine=False), nn.Conv2d(3, 2, 1)),
            "REPAIR shifts units by their bias, and '0' has none",
        ),
        (
            nn.Sequential(nn.Conv2d(2, 4, 1), nn.LayerNorm([4, 4, 4]), nn.Conv2d(4, 2, 1)),
            "REPAIR cannot rescale '1.weight', which scales places and units",
        ),
        (
            nn.Sequential(nn.ConvTranspose2d(2, 3, 1), nn.Conv2d(3, 2, 1)),
            "REPAIR cannot rescale what conv_transpose2d gives",
        ),
        (ComputedWeight(), "REPAIR cannot rescale the computed weight of linear in the model itself"),
        (Columns(weighed=True), "REPAIR cannot rescale what matmul gives with 'second'"),
    ],
)
def test_layers_that_cannot_be_repaired_are_refused(model, message):
    model = model.double()
    parents = drawn(model, 1, 2)
    with pytest.raises(ValueError, match=message):
        repair(model, entry(parents, slice(None), 0), parents, images(5))


def test_weights_of_another_model_are_refused_by_the_first_key():
    model = Chain().double()
    parents = drawn(model, 1, 2)
    merged = entry(parents, slice(None), 0)
    with pytest.raises(ValueError, match="the parents need one leading axis more than the merge"):
        repair(model, merged, merged, images(5))
    in_order = drawn(model, 4, 2)
    swapped = {key: tensor.transpose(0, 1) for key, tensor in in_order.items()}  # (2, 4, ...)
    of_four = entry(in_order, slice(None), 0)
    with pytest.raises(ValueError, match=r"the merge has \(4,\), the parents \(2, 4\)"):
        repair(model, of_four, swapped, images(5))
    with pytest.raises(ValueError, match="the merge: the model has '7.bias', the weights have not"):
        repair(model, {key: t for key, t in merged.items() if key != "7.bias"}, parents, images(5))
    with pytest.raises(ValueError, match="the weights: the model has 'stem.weight', the weights have not"):
        reset(Branches().double(), merged, images(5))


class Auxiliary(nn.Module):
    """Has a norm that it does not use."""

    def __init__(self):
        super().__init__()
        self.into, self.out, self.unused = nn.Linear(3, 8), nn.Linear(8, 2), nn.BatchNorm1d(8)

    def forward(self, x):
        return self.out(self.into(x).relu())


def test_a_norm_that_is_not_used_keeps_nobody_from_mending():
    models = [Auxiliary().eval(), Auxiliary().eval()]
    x = torch.randn(50, 3)
    parents = {key: torch.stack([model.state_dict()[key] for model in models]) for key in models[0].state_dict()}
    plain = mean(parents)
    mended = mender(models[0], x)(plain, parents)
    assert not torch.equal(mended["into.weight"], plain["into.weight"])
    assert torch.equal(mended["unused.running_var"], plain["unused.running_var"])


class Twice(nn.Module):
    """Uses one norm at two places, whose statistics differ."""

    def __init__(self):
        super().__init__()
        self.into, self.norm = nn.Linear(3, 8), nn.BatchNorm1d(8, affine=False)

    def forward(self, x):
        return self.norm(self.norm(self.into(x)).relu() + 5)


@pytest.mark.parametrize("measure", [reset, lambda model, weights, x: measure_norms(model, [x])])
def test_a_norm_that_is_used_twice_has_no_statistics_of_its_own(measure):
    model = Twice().eval()
    with pytest.raises(ValueError, match="'norm.running_mean' cannot be measured anew for each of the 2 times"):
        measure(model, model.state_dict(), torch.randn(20, 3))


def test_one_merge_without_leading_axes_is_mended_as_in_a_batch():
    model, x = Branches().double(), images(20)
    parents = drawn(model, 2, 3, seed=7)
    merged = entry(parents, slice(None), 0)
    for whole, alone in (
        (repair(model, merged, parents, x), repair(model, entry(merged, 1), entry(parents, 1), x)),
        (reset(model, merged, x), reset(model, entry(merged, 1), x)),
    ):
        for key, tensor in alone.items():
            torch.testing.assert_close(tensor, whole[key][1], **ROUNDING)


def test_reset_norms_measure_what_torch_measures_in_training():
    model, x = Branches().double(), images(400)
    weights = drawn(model, 3, seed=2)
    measured = reset(model, weights, x)
    for i in range(3):
        trained = copy.deepcopy(model).train()
        trained.load_state_dict(entry(weights, i))
        for module in trained.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
                module.momentum = None  # a plain average
        with torch.no_grad():
            trained(x)
        for key, tensor in trained.state_dict().items():
            if "running" in key:
                # In training a batch is divided by its variance over n, not n - 1: 6400 pixels here.
                torch.testing.assert_close(measured[key][i], tensor, rtol=1e-3, atol=1e-3)
            elif not key.endswith("num_batches_tracked"):
                assert torch.equal(measured[key][i], weights[key][i])


def test_a_model_without_running_statistics_has_none_to_reset():
    model = Attention().double()
    with pytest.raises(ValueError, match="the model has no norm with running statistics"):
        reset(model, drawn(model, 1), images(5))
    with pytest.raises(ValueError, match="a variance needs two inputs or more, got 1"):
        reset(Branches().double(), drawn(Branches(), 1), images(1))


@pytest.mark.parametrize("network", NETWORKS.values())
def test_every_kind_of_network_is_merged_by_the_hierarchy_and_by_merge_many(network):
    torch.manual_seed(0)
    model = network().double().eval()
    spec = trace(model, images(2))
    weights, x = drawn(model, seed=3), images(6)
    copies = Permutation.random(spec, (4,), torch.Generator().manual_seed(4)).apply(weights)
    goal = functional_call(model, weights, (x,))
    aligned = 0
    for merge in (merge_hierarchical(spec, copies), merge_many(spec, copies)):
        moved = merge.permutation.apply(copies)
        torch.testing.assert_close(mean(moved), merge.weights, rtol=1e-10, atol=1e-10)
        for i in range(4):  # whatever was found, each copy still computes what it did
            torch.testing.assert_close(functional_call(model, entry(moved, i), (x,)), goal, **ROUNDING)
        aligned += torch.allclose(functional_call(model, merge.weights, (x,)), goal, **ROUNDING)
    # Coordinate descent need not find every planted permutation of networks this small.
    assert aligned or network is not Chain


def test_a_mended_hierarchy_mends_every_midpoint_before_it_is_merged_again():
    model, x = Branches().double().eval(), images(40)
    spec = trace(model, images(2))
    models = drawn(model, 2, 4, seed=5)
    mend = partial(repair, model, inputs=x)
    plain, mended = (merge_hierarchical(spec, models, seed=6, mend=how).stages for how in (None, mend))
    # By hand: the same pairs, repaired, then their midpoint, repaired again.
    first = mended[0]
    moved = first.permutation.apply(models)
    for group in range(2):
        for pair in range(2):
            parents = {key: t[group, 2 * pair : 2 * pair + 2].unsqueeze(0) for key, t in moved.items()}
            middle = interpolate(entry(parents, slice(None), 0), entry(parents, slice(None), 1), 0.5)
            own = mend(middle, parents)
            torch.testing.assert_close(entry(first.weights, group, pair), entry(own, 0), **ROUNDING)
    assert torch.equal(first.permutation.indices["side"], plain[0].permutation.indices["side"])
    assert not torch.equal(mended[1].weights["grouped.weight"], plain[1].weights["grouped.weight"])


def test_counters_are_not_averaged():
    model = Branches().double()
    spec = trace(model, images(2))
    models = drawn(model, 2)
    models["norm.num_batches_tracked"] = torch.tensor([3, 8])
    mask = {"mask": torch.tensor([[True, False], [True, True]])}  # a buffer of no numbers at all
    masked = replace(spec, shapes=spec.shapes | {"mask": (2,)}, parts=spec.parts | {"mask": ()})
    masked = replace(masked, statistics=spec.statistics | {"mask"})
    assert torch.equal(merge_many(masked, models | mask).weights["mask"], mask["mask"][0])
    for merged in (merge_mean(spec, models).weights, merge_many(spec, models).weights):
        assert merged["norm.num_batches_tracked"] == 3
    assert interpolate(entry(models, 0), entry(models, 1), 0.5)["norm.num_batches_tracked"] == 3
