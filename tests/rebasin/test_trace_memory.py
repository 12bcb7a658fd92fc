"""Weights that a model reaches in another way than by their names: what shares their memory, or has two names."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rebasin import Permutation, trace

GENERATOR = torch.Generator().manual_seed(0)


def normal(*shape):
    return torch.randn(shape, generator=GENERATOR)


class Rereading(nn.Module):
    """The rows of the first layer are read a second time, from wherever they are held."""

    def __init__(self, held):
        super().__init__()
        self.into, self.out = nn.Linear(3, 8), nn.Linear(8, 2)
        rows = self.into.weight.data[:4]
        if held == "an attribute":
            self.rows = rows
        elif held == "a list":
            self.lists = [rows]
        elif held == "a function":
            self.function = lambda: self.into.weight
        elif held == "another module":
            self.modules_beside = [Holder(self.into.weight)]
        else:
            self.register_buffer("rows", rows if held == "a part" else self.into.weight.data, persistent=False)
        self.held = held

    def forward(self, x):
        if self.held == "a list":
            rows = self.lists[0]
        elif self.held == "a function":
            rows = self.function()
        else:
            rows = self.modules_beside[0].rows if self.held == "another module" else self.rows
        return self.out(self.into(x).relu()) + F.linear(x, rows)[:, :2].relu()


class Holder(nn.Module):
    def __init__(self, rows):
        super().__init__()
        self.rows = rows


@pytest.mark.parametrize("held", ["an attribute", "a list", "a function", "another module"])
def test_a_weight_that_is_read_by_another_way_than_its_name_is_refused_with_the_line(held):
    message = "reads the memory of 'into.weight' by another way than its name, called at .*test_trace_memory.py:"
    with pytest.raises(ValueError, match=message):
        trace(Rereading(held), normal(2, 3))


@pytest.mark.parametrize("held", ["a part", "the whole"])
def test_a_weight_stays_whose_memory_a_buffer_has_that_is_not_saved(held):
    spec = trace(Rereading(held), normal(2, 3))
    assert not spec.sizes
    assert spec.pinned["into.weight"] == "shares its memory with another layout, or with what is not saved"


@pytest.mark.filterwarnings("ignore:.*spectral_norm.* is deprecated")
def test_a_computed_weight_that_begins_in_the_memory_of_another_is_no_false_alarm():
    layer = nn.utils.spectral_norm(nn.Linear(3, 8))
    assert layer.weight.data_ptr() == layer.weight_orig.data_ptr()
    spec = trace(nn.Sequential(layer, nn.ReLU(), nn.Linear(8, 2)).eval(), normal(2, 3))
    assert spec.sizes == {"0": 8}


class TwoGrouped(nn.Module):
    """Two grouped convolutions with one weight, by its name or by way of its memory alone."""

    def __init__(self, tied):
        super().__init__()
        self.a, self.b = nn.Conv1d(3, 8, 1), nn.Conv1d(3, 8, 1)
        self.c, self.d = nn.Conv1d(8, 8, 1, groups=4), nn.Conv1d(8, 8, 1, groups=4)
        self.d.weight = self.c.weight if tied == "by name" else nn.Parameter(self.c.weight.data)
        self.out = nn.Linear(8, 2)

    def forward(self, x):
        one, other = (grouped(into(x).relu()).relu() for into, grouped in ((self.a, self.c), (self.b, self.d)))
        return self.out(one.mean(-1)) + self.out(other.mean(-1))


@pytest.mark.parametrize("tied", ["by name", "by memory"])
def test_a_grouped_weight_under_two_names_moves_alike_under_both(tied):
    model = TwoGrouped(tied)
    spec = trace(model, normal(2, 3, 6))
    assert spec.parts["c.weight"] == spec.parts["d.weight"] and {part.axis for part in spec.parts["c.weight"]} == {0, 1}
    x = normal(3, 3, 9)
    for seed in range(3):
        moved = Permutation.random(spec, generator=torch.Generator().manual_seed(seed)).apply(model)
        torch.testing.assert_close(moved(x), model(x))
