"""Networks of every kind that the presets name go through the arena: with norms and attention, and with class codes."""

import pytest
import torch

from lab.contestants import METHODS, Arena
from lab.contestants.settings import read_settings, train_parents
from lab.networks import build
from lab.tasks import tasks_of
from rebasin import trace

KINDS = [("vit", "halves", 16), ("vgg11_codes", "coded", 4), ("resnet20_bn_codes", "coded", 4)]
ROUNDING = {"rtol": 1e-3, "atol": 1e-3}


def arena_of(digits, architecture, tasks, width):
    """Two parents of different classes, after one epoch."""
    networks = {"dataset": "digits", "architecture": architecture, "width": width, "models": 2, "epochs": [1]}
    entry = {"setting": "x", "tasks": tasks, "methods": {"pleas": [1.2]}, "networks": {**networks, "batch_size": 64}}
    (setting,) = read_settings([entry])
    (parents,), _ = train_parents(setting, digits, "cpu")
    asked = tasks_of(digits, tasks)
    model = build(architecture, asked[0], width)
    seen = tuple(task.train.sample(100) for task in asked)
    tested = tuple(task.test.sample(100) for task in asked)
    return Arena(model, trace(model, digits.example), parents, seen, tested)


@pytest.mark.parametrize(("architecture", "tasks", "width"), KINDS)
@pytest.mark.filterwarnings("ignore:.*unknowns for each output")
def test_pleas_merges_parents_of_different_classes_a_little_larger_than_one(
    digits, shallow_vit, architecture, tasks, width
):
    arena = arena_of(digits, architecture, tasks, width)
    assert arena.kept_whole == {}
    images = arena.test[0].pixels
    for method in ("pleas", "pleas_refitted"):
        entry = METHODS[method](arena, 1.2)
        with torch.no_grad():
            logits = entry.network(images)
        assert logits.shape == (len(images), 10) and logits.isfinite().all()
        assert 1.15 < entry.structured <= 1.2, "the budget is spent, and not overdrawn"


@pytest.mark.filterwarnings("ignore:.*unknowns for each output")
def test_transformers_apart_are_both_side_by_side(digits, shallow_vit):
    """LayerNorm goes over each network's own units, or else this would not hold."""
    arena = arena_of(digits, "vit", "halves", 16)
    images = arena.test[1].pixels
    with torch.no_grad():
        apart, ensemble = (METHODS[name](arena, 2.0).network(images) for name in ("pleas", "ensemble"))
    torch.testing.assert_close(apart, ensemble, **ROUNDING)
