"""What a model may hold beside weights: states that are no tensors, locks, sizes that are compared."""

import copy
import threading

import pytest
import torch
from torch import nn

from rebasin import match, merge, trace


class Stateful(nn.Linear):
    """A layer that saves its version, too."""

    def get_extra_state(self):
        return {"version": 1}

    def set_extra_state(self, state):
        pass


def test_a_state_that_is_no_tensor_is_passed_over():
    spec = trace(nn.Sequential(Stateful(3, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(2, 3))
    assert spec.sizes == {"0": 8} and [*spec.parts] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    a, b = (nn.Sequential(Stateful(3, 8), nn.ReLU(), nn.Linear(8, 2)) for _ in range(2))
    assert set(merge(spec, [a, b]).model.state_dict()) == set(a.state_dict()), "a merge has the state, too"


class Indexed(nn.Module):
    """Keeps an order of inputs among its parameters, as whole numbers that cannot be trained."""

    def __init__(self):
        super().__init__()
        self.order = nn.Parameter(torch.tensor([2, 1, 0]), requires_grad=False)
        self.into, self.out = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.out(self.into(x[:, self.order]).relu())


@pytest.mark.parametrize("by", ["weights", "activations", "straight-through"])
def test_whole_numbers_among_the_parameters_are_no_weights(by):
    a, b = Indexed(), Indexed()
    x, y = torch.randn(20, 3), torch.randint(2, (20,))
    spec = trace(a, x)
    assert spec.statistics == {"order"}
    match(spec, a, b, by=by, **({} if by == "weights" else {"model": a, "loader": [(x, y)]}))


class RandomFeatures(nn.Module):
    """Features that are fixed, in and out, beside a layer that is trained."""

    def __init__(self):
        super().__init__()
        self.register_buffer("into", torch.randn(3, 8))
        self.register_buffer("out", torch.randn(8, 4))
        self.hidden, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.last(self.hidden((x @ self.into).relu() @ self.out).relu())


@pytest.mark.parametrize("by", ["weights", "frank-wolfe"])
def test_units_that_no_weight_lies_along_stay_and_the_others_are_matched(by):
    a = RandomFeatures()
    spec = trace(a, torch.randn(2, 3))
    fixed = next(part.group for part in spec.parts["into"])
    assert spec.sizes[fixed] == 8 and fixed != "hidden"
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    b = copy.deepcopy(a)
    with torch.no_grad():
        b.hidden.weight.copy_(a.hidden.weight[order])
        b.hidden.bias.copy_(a.hidden.bias[order])
        b.last.weight.copy_(a.last.weight[:, order])
    matching = match(spec, a, b, by=by)
    assert torch.equal(order[matching.permutation.indices["hidden"]], torch.arange(6))
    assert torch.equal(matching.permutation.indices[fixed], torch.arange(8))


def test_an_attribute_that_cannot_be_copied_is_named():
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    model[0].lock = threading.Lock()
    with pytest.raises(ValueError, match="cannot be copied for its attribute '0.lock': .*lock.*Take it away"):
        trace(model, torch.randn(2, 3))


class Asserting(nn.Module):
    """Checks lengths, which are values, against a size."""

    def __init__(self):
        super().__init__()
        self.into, self.out = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x, lengths):
        torch._check(lengths.max().item() <= x.shape[1])
        mask = torch.arange(x.shape[1]) < lengths[:, None]
        return self.out(self.into(x).relu()) * mask[:, :, None]


def test_what_is_asserted_of_values_is_passed_over():
    assert trace(Asserting(), (torch.randn(2, 5, 3), torch.tensor([3, 5]))).sizes == {"into": 8}
