"""Two networks small enough to try all orders: the arithmetic of the pictures is that of the library."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import rebasin
from lab.report import four_units
from lab.report.four_units import Network


def as_module(network):
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 1, bias=False)).double()
    model.load_state_dict(
        {"0.weight": torch.from_numpy(network.reads), "2.weight": torch.from_numpy(network.answers)[None]}
    )
    return model


@pytest.fixture(scope="module")
def modules():
    return [as_module(network) for network in four_units.pair()]


@pytest.fixture(scope="module")
def spec(modules):
    return rebasin.trace(modules[0], torch.ones(1, 4, dtype=torch.float64))


def test_the_networks_compute_what_torch_computes(modules):
    inputs = four_units.spots_of_light()
    for network, model in zip(four_units.pair(), modules, strict=True):
        with torch.no_grad():
            assert np.allclose(network(inputs), model(torch.from_numpy(inputs))[:, 0])


def test_the_best_of_all_orders_is_what_weight_matching_finds(spec, modules):
    matching = rebasin.match(spec, *modules)
    (places,) = matching.permutation.indices.values()
    assert four_units.best() == tuple(places.tolist())
    assert four_units.score(four_units.best()) == pytest.approx(float(matching.objective))


def test_no_order_moves_the_answers_and_each_has_the_score_of_its_weights():
    a, b = four_units.pair()
    assert set(four_units.orders()) == set(itertools.permutations(range(4)))
    for order in four_units.orders():
        turned = b.reordered(order)
        assert four_units.distance(b, turned) == pytest.approx(0, abs=1e-12)
        product = (a.reads * turned.reads).sum() + (a.answers * turned.answers).sum()
        assert four_units.score(order) == pytest.approx(product)


def test_the_planted_order_is_the_best_and_mends_the_average():
    facts = four_units.merged()
    assert facts.outcome == "planted"
    assert float(facts.values["error_after"]) < float(facts.values["error_before"]) / 5


def test_another_best_order_is_another_outcome(monkeypatch):
    a, b = four_units.pair()
    monkeypatch.setattr(four_units, "pair", lambda: (a, Network(b.reads[::-1], b.answers[::-1])))
    assert four_units.merged().outcome == "another"
