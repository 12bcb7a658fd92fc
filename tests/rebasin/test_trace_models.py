"""What a model may hold beside weights: states that are no tensors, locks, sizes that are compared."""

import threading

import pytest
import torch
from torch import nn

from rebasin import trace


class Stateful(nn.Linear):
    """A layer that saves its version, too."""

    def get_extra_state(self):
        return {"version": 1}

    def set_extra_state(self, state):
        pass


def test_a_state_that_is_no_tensor_is_passed_over():
    spec = trace(nn.Sequential(Stateful(3, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(2, 3))
    assert spec.sizes == {"0": 8} and [*spec.parts] == ["0.weight", "0.bias", "2.weight", "2.bias"]


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
