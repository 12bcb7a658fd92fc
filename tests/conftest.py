"""What several test files share: a small network, random weights for it, and a cache of each test's own."""

import pytest
import torch
from hypothesis import settings
from torch import nn
from torch.func import functional_call

import lab.bookkeeping.content  # noqa: F401  which instructions torch computes with
from rebasin.tracing import trace

# The same examples in every run, and no deadline: the machine may be busy.
settings.register_profile("rebasin", derandomize=True, deadline=None, database=None, max_examples=25)
settings.load_profile("rebasin")

# The tensors are tiny: threads would only wait for one another.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """An empty cache for each test, and nobody's data or progress file."""
    monkeypatch.setenv("REBASIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("REBASIN_DATA", raising=False)
    monkeypatch.setenv("REBASIN_PROGRESS", "")  # set, so that the runner of notebooks does not set it for all tests


@pytest.fixture(scope="session")
def net():
    """A network of three hidden layers whose widths all differ, in float64."""
    layers = [nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 3)]
    return nn.Sequential(*layers).double()


@pytest.fixture(scope="session")
def spec(net):
    return trace(net, torch.randn(2, 12))


@pytest.fixture(scope="session")
def random_weights(net):
    """``random_weights(2, 5, seed=1)``: normal weights of ``net``, biases too, with leading axes (2, 5)."""

    def draw(*batch, seed=0):
        generator = torch.Generator().manual_seed(seed)
        return {
            key: torch.randn(*batch, *tensor.shape, generator=generator, dtype=torch.float64)
            for key, tensor in net.state_dict().items()
        }

    return draw


@pytest.fixture(scope="session")
def outputs(net):
    """``outputs(weights, x)``: (*batch, m, classes), computed one network at a time."""

    def run(weights, x):
        batch = weights["0.bias"].shape[:-1]
        flat = {key: tensor.reshape(-1, *tensor.shape[len(batch) :]) for key, tensor in weights.items()}
        each = [functional_call(net, {k: t[i] for k, t in flat.items()}, (x,)) for i in range(batch.numel())]
        return torch.stack(each).reshape(*batch, *each[0].shape).detach()

    return run
