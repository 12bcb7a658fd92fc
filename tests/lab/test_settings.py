"""A setting of the arena says which networks are merged, and refuses what does not fit together."""

import re

import pytest
import torch

from lab.bookkeeping.pipeline import load_preset
from lab.contestants import fine_tuned
from lab.contestants.settings import read_settings, train_parents
from lab.networks import build
from lab.outputs import evaluate
from lab.report.claims import FEWEST_FOR_VERDICT, stated_claims
from lab.tasks import tasks_of
from lab.training.recipe import Recipe
from lab.training.train import train
from rebasin.weights import take

NETWORKS = {"dataset": "digits", "architecture": "mlp1", "width": 6, "batch_size": 64, "models": 4, "epochs": [1]}
HALVES = {"setting": "tiny", "methods": {"mean": [1], "pleas": [1, 1.5]}, "networks": NETWORKS}
WHOLE = {**HALVES, "tasks": "whole", "parents": 4}


def recipe_of(seed):
    return Recipe(architecture="mlp1", width=6, batch_size=64, seed=seed)


def test_what_is_left_out_is_two_parents_of_half_of_the_classes_each():
    (setting,) = read_settings([HALVES])
    assert (setting.tasks, setting.parents, setting.nodes, setting.merges) == ("halves", 2, 2, 2 * 3)
    assert setting.methods == {"mean": (1.0,), "pleas": (1.0, 1.5)}
    columns = setting.columns
    assert columns["setting"] == "tiny" and columns["width"] == 6 and columns["epochs"] == 1


def test_parents_of_halves_are_trained_on_a_half_each_by_seeds_of_their_own(digits):
    (setting,) = read_settings([HALVES])
    tasks = tasks_of(digits, "halves")
    nodes, seconds = train_parents(setting, digits, "cpu")
    assert len(nodes) == 2 and seconds > 0
    for parent, task in enumerate(tasks):
        alone = train(recipe_of(parent), task, 2, [1], "cpu").last
        for node in range(2):
            assert all(torch.equal(nodes[node][key][parent], alone[key][node]) for key in alone)


def test_parents_of_one_task_are_neighbours_of_one_training(digits):
    pair, four = {**WHOLE, "parents": 2}, WHOLE
    alone = train(recipe_of(0), digits, 4, [1], "cpu").last
    for entry, groups in ((pair, [(0, 1), (2, 3)]), (four, [(0, 1, 2, 3)])):
        (setting,) = read_settings([entry])
        nodes, _ = train_parents(setting, digits, "cpu")
        assert len(nodes) == len(groups)
        for node, group in zip(nodes, groups, strict=True):
            assert all(torch.equal(node[key], alone[key][list(group)]) for key in alone)


@pytest.mark.parametrize(("tasks", "seeds"), [("tuned", [0, 1]), ("tuned alike", [0, 0])])
def test_fine_tuned_parents_begin_where_their_foundations_end(digits, monkeypatch, tasks, seeds):
    monkeypatch.setattr(fine_tuned, "train_epoch", lambda *_: [])  # so that fine-tuning changes nothing
    (setting,) = read_settings([{**HALVES, "tasks": tasks, "foundation": 2}])
    nodes, _ = train_parents(setting, digits, "cpu")
    own = setting.nodes
    for parent, seed in enumerate(seeds):
        foundation = train(recipe_of(seed), digits, own, [2], "cpu").last
        for key, tensor in foundation.items():
            for node in range(own):
                reached = nodes[node][key][parent]
                if tensor.shape[1] == digits.classes:
                    assert len(reached) == digits.classes // 2  # a head of its own
                else:
                    assert torch.equal(reached, tensor[node])


def test_fine_tuning_goes_on_from_the_foundation_with_the_classes_of_the_task(digits):
    (setting,) = read_settings(
        [{**HALVES, "tasks": "tuned", "foundation": 5, "networks": {**NETWORKS, "epochs": [20]}}]
    )
    nodes, seconds = train_parents(setting, digits, "cpu")
    for number, task in enumerate(tasks_of(digits, "tuned")):
        model = build("mlp1", task, setting.networks.recipe.width)
        tuned = take(nodes[0], slice(number, number + 1))
        assert evaluate(model, tuned, task.test, "cpu", 1).correct.double().mean() > 0.5  # of five classes
    assert seconds > 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"setting": 3}, "a setting of the arena lacks its name, 'setting'"),
        ({"sizes": [1]}, "the setting 'tiny' has an unknown key 'sizes': there are setting, tasks"),
        ({"methods": {"plaes": [1]}}, "unknown method 'plaes': there are parent, ensemble"),
        ({"methods": {"pleas": [1, 2.5]}}, "sizes of 'pleas' in 'tiny' are a list from 1 to 2: got [1, 2.5]"),
        ({"methods": {"pleas": []}}, "sizes of 'pleas' in 'tiny' are a list from 1 to 2: got []"),
        ({"tasks": "thirds"}, "tasks of 'tiny' are halves, whole, coded, tuned, tuned alike, not 'thirds'"),
        ({"tasks": "coded"}, "networks of 'tiny' must have class codes, as mlp_codes has, to share one head"),
        ({"tasks": "tuned"}, "'tiny' has a 'foundation', epochs from 1, if it is tuned, and else none: 0"),
        ({"foundation": 2}, "'tiny' has a 'foundation', epochs from 1, if it is tuned, and else none: 2"),
        ({"parents": 4}, "'tiny' merges 4 at a time: of halves there are two, of wholes two or more"),
        ({"tasks": "whole", "parents": 3}, "4 networks of 'tiny' are not shared out into groups of 3"),
        ({"networks": {**NETWORKS, "epoch": [1]}}, "'tiny' has an unknown key 'epoch'"),
    ],
)
def test_what_does_not_fit_is_named(changed, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read_settings([{**HALVES, **changed}])


@pytest.mark.parametrize("preset", ["cpu", "gpu"])
def test_the_settings_of_the_presets_have_what_the_claims_are_about(preset):
    settings = {setting.name: setting for setting in read_settings(load_preset(preset)["arena_settings"])}
    rules = [rule for claim in stated_claims() for rule in claim["conditions"] if rule["measure"] == "joint_accuracy"]
    for rule in rules:
        name = rule["where"]["setting"]
        if name in settings:
            assert settings[name].nodes >= FEWEST_FOR_VERDICT
            for term in rule["contrast"]:
                assert term["size"] in settings[name].methods[term["method"]], rule["id"]
    assert {rule["where"]["setting"] for rule in rules} <= set(settings)


@pytest.mark.parametrize("key", ["methods", "networks"])
def test_what_is_missing_is_named(key):
    with pytest.raises(ValueError, match=f"the setting 'tiny' lacks '{key}'"):
        read_settings([{name: value for name, value in HALVES.items() if name != key}])


def test_two_settings_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two settings of the arena are called 'tiny'"):
        read_settings([HALVES, {**HALVES, "images": 7}])
