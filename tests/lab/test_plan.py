"""A plan says in full which models there are, and a mistake in it is told before anything is trained."""

import re

import pytest
import torch

from lab.training.plan import read_networks, read_plan, train_plan

ENTRY = {"recipe": "narrow", "dataset": "digits", "epochs": [1, 2], "models": 2, "width": 8, "batch_size": 64}


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REBASIN_CACHE", str(tmp_path))


def test_models_come_at_each_of_their_epochs_with_what_a_table_says_of_them():
    (planned,) = read_plan([ENTRY])
    found = list(train_plan([planned], "cpu"))
    assert [epochs for _, epochs, *_ in found] == [1, 2]
    for _, epochs, data, model, weights, seconds in found:
        assert data.name == "digits"
        assert {key: (2, *tensor.shape) for key, tensor in model.state_dict().items()} == {
            key: tuple(tensor.shape) for key, tensor in weights.items()
        }
        told = planned.columns(epochs)
        assert (told["recipe"], told["dataset"], told["width"], told["epochs"]) == ("narrow", "digits", 8, epochs)
        assert seconds > 0
    assert not torch.equal(found[0][4]["layer1.weight"], found[1][4]["layer1.weight"])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({key: value for key, value in ENTRY.items() if key != "models"}, "'narrow' lacks 'models'"),
        (ENTRY | {"widht": 8}, "'narrow' has an unknown key 'widht': there are dataset, epochs, models"),
        (ENTRY | {"optimiser": "lion"}, "unknown optimiser 'lion': there are adam, sgd"),
        (
            ENTRY | {"learning_rate": "1e-3"},
            "'learning_rate' of 'narrow' must be of type float: got",
        ),
        (ENTRY | {"width": 8.5}, "'width' of 'narrow' must be of type int: got 8.5"),
        (ENTRY | {"models": True}, "'models' of 'narrow' must be of type int: got True"),
        (ENTRY | {"augmented": 1}, "'augmented' of 'narrow' must be of type bool: got 1"),
        (ENTRY | {"epochs": 10}, "'epochs' of 'narrow' must be a list of ascending epochs from 1: got 10"),
        (ENTRY | {"epochs": [2, 1]}, "'epochs' of 'narrow' must be a list of ascending epochs from 1: got [2"),
        (ENTRY | {"models": 0}, "'models' of 'narrow' must be 1 at least: got 0"),
        (ENTRY | {"dataset": "cifar"}, "unknown dataset 'cifar' of 'narrow': there are digits, mnist, cifar10"),
        (ENTRY | {"architecture": "mlp5"}, "unknown architecture 'mlp5' of 'narrow': there are mlp, mlp1"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(entry, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read_plan([entry])


def test_an_entry_of_a_plan_has_a_name():
    with pytest.raises(ValueError, match="an entry of the plan lacks its name, 'recipe': {'dataset': 'digits'"):
        read_plan([{key: value for key, value in ENTRY.items() if key != "recipe"}])


def test_networks_alone_need_no_name_and_tell_their_setting():
    networks = read_networks({"dataset": "digits", "epochs": [1, 3], "models": 2, "width": 8})
    assert networks.setting == {
        "dataset": "digits", "architecture": "mlp", "width": 8, "weight_decay": 0.0, "epochs": 3, "seed": 0,
    }  # fmt: skip


def test_a_whole_number_is_a_float_too_and_a_truth_value_itself():
    (planned,) = read_plan([ENTRY | {"learning_rate": 1, "augmented": True}])
    assert planned.recipe.learning_rate == 1 and planned.recipe.augmented
