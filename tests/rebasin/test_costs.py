"""A merge is counted as what its layers multiply and hold, against torch's own counter and element by element."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import NETWORKS, Branches, Chain, Reused, images
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rebasin import PermutationSpec
from rebasin.expanding.costs import LayerCost, count_cost, graph_costs, layer_costs
from rebasin.expanding.expanded import expand_network
from rebasin.expanding.slots import Slots
from rebasin.graph import export
from rebasin.tracing import trace

EXAMPLE = images(2).float()


class Separable(nn.Sequential):
    """A depthwise convolution of two outputs for each input, between two that mix the channels."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(2, 5, 1), nn.ReLU(), nn.Conv2d(5, 10, 3, groups=5), nn.ReLU(), nn.Conv2d(10, 3, 2), nn.Flatten()
        )


KINDS = {**NETWORKS, "separable": Separable}


def counted(kind):
    model = KINDS[kind]().eval()
    spec = trace(model, EXAMPLE)
    return model, spec, layer_costs(spec, model, EXAMPLE)


def parent(spec):
    return Slots.apart(spec, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_one_model_has_the_multiply_adds_that_torch_counts_and_its_own_parameters(kind):
    model, spec, costs = counted(kind)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(EXAMPLE)
    products = [flops for name, flops in counter.get_flop_counts()["Global"].items() if "attention" not in str(name)]
    # A multiply-add is two operations, and there are two inputs.
    assert count_cost(costs, parent(spec)) == sum(products) // 4
    assert count_cost(costs, parent(spec), by="dense") == count_cost(costs, parent(spec))
    assert count_cost(costs, parent(spec), by="parameters") == sum(tensor.numel() for tensor in model.parameters())


def places(spec, key):
    """For each axis and slice of an entry, as the spec sees it: the group, block, place in the block and copy."""
    of_entry = []
    for axis, size in enumerate(spec.view_shape(key)):
        of_axis = [("stays", 0, at, 0) for at in range(size)]
        for part in (part for part in spec.parts[key] if part.axis == axis):
            group = spec.inside.get(part.group, part.group)
            in_block = spec.units(part.group) // spec.sizes[group]
            for unit, slices in enumerate(part.positions.tolist()):
                for copy, at in enumerate(slices):
                    of_axis[at] = (group, unit // in_block, (part.group, unit % in_block), copy)
        of_entry.append(of_axis)
    return of_entry


def weights_held(slots, key):
    """The elements of an entry of the merge that any model's weights go to, all counted one by one."""
    spec = slots.spec
    index = {group: slot.tolist() for group, slot in slots.index.items()} | {"stays": [[0]] * slots.n}
    of_entry, held = places(spec, key), set()
    elements = spec.view(key, torch.ones(spec.shapes[key])).nonzero().tolist()
    for model in range(slots.n):
        for element in elements:
            own = [of_axis[at] for of_axis, at in zip(of_entry, element, strict=True)]
            held.add(tuple((group, index[group][model][block], *rest) for group, block, *rest in own))
    return len(held)


def drawn_slots(data, spec, n):
    index = {}
    for group, size in ((group, spec.sizes[group]) for group in spec.families):
        slot = st.integers(0, n * size - 1)
        rows = data.draw(st.lists(st.lists(slot, min_size=size, max_size=size), min_size=n, max_size=n))
        index[group] = torch.tensor(rows)
    return Slots.from_index(spec, index)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=6, deadline=None)
def test_pairs_of_units_with_a_model_in_common_are_the_weights_that_a_merge_holds(kind, data):
    _, spec, costs = counted_once(kind)
    slots = drawn_slots(data, spec, data.draw(st.integers(1, 3)))
    keys = {cost.key for cost in costs}
    assert keys == set(spec.weights)
    for key in keys:
        own = [cost for cost in costs if cost.key == key]
        held = weights_held(slots, key)
        assert count_cost(own, slots, by="parameters") == held, key
        # At each place where it is used, each weight is one multiply-add.
        assert count_cost(own, slots) == held * own[0].multiply_adds // own[0].parameters, key


@pytest.mark.parametrize("kind", ["chain", "branches", "attention", "separable"])
@pytest.mark.parametrize("heads", ["shared", "side by side"])
def test_what_is_counted_is_what_the_network_of_the_merge_runs_and_holds(kind, heads):
    model = KINDS[kind]().eval()
    spec = trace(model, EXAMPLE)
    costs = layer_costs(spec, model, EXAMPLE, heads=heads)
    generator = torch.Generator().manual_seed(0)
    index = {}
    for group, units in ((group, spec.sizes[group]) for group in spec.families):
        index[group] = torch.randint(units, (2, units), generator=generator)
    slots = Slots.from_index(spec, index)
    network = expand_network(slots, model, [model, model], example=EXAMPLE, heads=heads)
    assert count_cost(costs, slots) == network.macs
    assert count_cost(costs, slots, by="dense") == network.macs_dense
    assert count_cost(costs, slots, by="parameters") == network.parameters_count
    assert count_cost(costs, parent(spec)) == network.macs_parent


COUNTED = {}


def counted_once(kind):
    if kind not in COUNTED:
        COUNTED[kind] = counted(kind)
    return COUNTED[kind]


def test_dense_cost_is_that_of_a_plain_network_as_wide_as_the_merge():
    _, spec, costs = counted("chain")
    index = {group: torch.arange(2 * size).reshape(2, size) for group, size in spec.sizes.items()}
    index["3"][1, :4] = index["3"][0, :4]
    slots = Slots.from_index(spec, index)
    assert slots.widths == {"1": 24, "3": 16, "5": 16}
    assert count_cost(costs, slots, by="dense") == 32 * 24 + 24 * 16 + 16 * 16 + 16 * 3
    assert count_cost(costs, slots) == 32 * 24 + 2 * 12 * 10 + 2 * 10 * 8 + 16 * 3


def test_a_layer_that_reads_a_concatenation_has_a_cost_for_each_group_that_it_reads():
    model = nn.ModuleDict({"a": nn.Linear(2, 3), "b": nn.Linear(2, 4), "out": nn.Linear(7, 5)})

    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = model

        def forward(self, x):
            return self.parts["out"](torch.cat([self.parts["a"](x).relu(), self.parts["b"](x).tanh()], 1))

    joined, x = Joined(), torch.ones(1, 2)
    costs = layer_costs(trace(joined, x), joined, x)
    assert LayerCost("parts.out.weight", None, "parts.a", 5, 5) in costs
    assert LayerCost("parts.out.weight", None, "parts.b", 5, 5) in costs


def test_a_matrix_that_is_used_twice_is_held_once_and_multiplied_twice():
    _, _, costs = counted("reused")
    assert LayerCost("again.weight", "into", "into", 2, 1) in costs


def test_multiply_adds_are_of_one_input_of_the_size_that_is_given():
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 1, 3, padding=1))
    spec = trace(model, torch.ones(1, 1, 8, 8))
    small, large = (layer_costs(spec, model, torch.ones(count, 1, side, side)) for count, side in ((1, 8), (3, 16)))
    assert count_cost(large, parent(spec)) == 4 * count_cost(small, parent(spec)) == 4 * 64 * 36


@pytest.mark.parametrize("kind", ["branches", "attention"])
def test_a_graph_that_takes_batches_of_any_size_has_the_same_costs(kind):
    model, spec, costs = counted(kind)
    assert graph_costs(spec, export(model, (EXAMPLE,), any_batch=True)) == costs


def test_weights_whose_cost_is_not_known_are_refused_by_name():
    model = Chain()
    by_hand = PermutationSpec.from_axes(
        {**model.state_dict(), "table": torch.ones(10, 8)},
        {
            "1.weight": ("a", None), "1.bias": ("a",), "3.weight": ("b", "a"), "3.bias": ("b",), "5.weight": ("c", "b"),
            "5.bias": ("c",), "7.weight": (None, "c"), "7.bias": (None,), "table": ("b", "c"),
        },
    )  # fmt: skip
    with pytest.raises(ValueError, match="the cost of 'table' is not known: groups lie along two of its axes"):
        layer_costs(by_hand, model, EXAMPLE)

    class Computed(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 32))

        def forward(self, x):
            return nn.functional.linear(x.flatten(1), self.weight * 2)

    with pytest.raises(ValueError, match="the cost of 'linear' is not known: its weight is computed"):
        layer_costs(trace(Computed(), EXAMPLE), Computed(), EXAMPLE)
    with pytest.raises(TypeError, match="the first argument is the spec"):
        layer_costs(Reused(), Branches(), EXAMPLE)
