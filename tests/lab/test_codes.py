"""Networks with class codes have one head, whatever classes they know, and merge as networks of one task do."""

import pytest
import torch

from lab.contestants import METHODS, Arena, contestants
from lab.contestants.settings import read_settings, train_parents
from lab.measures.arena import scores, try_method
from lab.networks import build
from lab.networks.codes import LENGTH, code
from lab.tasks import halves, tasks_of
from rebasin import trace

NETWORKS = {"dataset": "digits", "width": 32, "batch_size": 64, "models": 2, "epochs": [20], "learning_rate": 0.003}


def test_a_code_is_a_unit_vector_and_nearly_at_right_angles_to_all_others():
    codes = torch.stack([code(number) for number in range(10)])
    products = codes @ codes.T
    torch.testing.assert_close(products.diagonal(), torch.ones(10))
    # Of random directions in 64 dimensions a product has a deviation of 1/8; of 45, one of 4 deviations is rare.
    assert products.fill_diagonal_(0).abs().max() < 4 / LENGTH**0.5


def test_a_class_has_the_same_code_in_every_network(digits):
    whole = build("mlp_codes", digits, 8).codes.codes
    first, second = (build("mlp_codes", task, 8).codes.codes for task in halves(digits))
    assert torch.equal(torch.cat([first, second]), whole)


@pytest.mark.parametrize("architecture", ["mlp_codes", "vgg11_codes", "resnet20_bn_codes"])
def test_the_last_layer_is_in_no_group_and_all_hidden_units_are(digits, architecture):
    model = build(architecture, digits, 4)
    plain = build(architecture.removesuffix("_codes"), digits, 4)
    assert trace(model, digits.example).sizes == trace(plain, digits.example).sizes
    assert model(digits.example).shape == (2, 10)


def test_parents_of_different_classes_merge_under_one_head(digits):
    methods = {"parent": [1], "ensemble": [2], "mean": [1], "correlation": [1], "pleas": [1, 1.5, 2]}
    entry = {
        "setting": "codes",
        "tasks": "coded",
        "methods": methods,
        "networks": {**NETWORKS, "architecture": "mlp_codes"},
    }
    (setting,) = read_settings([entry])
    (parents,), _ = train_parents(setting, digits, "cpu")
    model = build("mlp_codes", digits, 32)
    (task,) = tasks_of(digits, "coded")
    spec = trace(model, digits.example)
    arena = Arena(model, spec, parents, (task.train.sample(600),), (task.test,))
    assert METHODS["head"](arena, 1.0) is None, "behind the last layer come the codes"
    accuracy = {}
    for method, function in contestants(list(methods)).items():
        for size in methods[method]:
            reached = try_method(arena, function, size)["none"]
            accuracy[method, size] = dict(row[1:] for row in scores(reached, arena.test) if row[0] == "joint")[
                "accuracy"
            ]
    assert accuracy["parent", 1] < 0.6, "it knows five classes of ten"
    assert accuracy["ensemble", 2] > 0.8
    assert accuracy["pleas", 2] == pytest.approx(accuracy["ensemble", 2], abs=0.01), "all units apart: both networks"
    assert accuracy["pleas", 1] > accuracy["mean", 1]
