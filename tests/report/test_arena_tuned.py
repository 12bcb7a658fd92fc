"""What the book says of fine-tuned networks is what was planted: at each task by itself, over both foundations."""

import pandas as pd
import pytest
from planting import plant

from lab.bookkeeping.vocabulary import MENDINGS
from lab.report import arena_tuned
from lab.report.verdicts import decide

# Accuracy at the first task; at the second it is 10 points less.
PLANTED = {
    ("ensemble", 2.0, "none"): 0.9, ("mean", 1.0, "none"): 0.4, ("weights", 1.0, "none"): 0.7,
    ("weights", 1.0, "repair"): 0.3, ("weights", 1.0, "repair by task"): 0.85,
}  # fmt: skip
MERGED = ("mean", 1.0, "none")


def plant_tuned(changed=None, alike=0.88, pairs=8):
    rows = []
    for data in ("cifar10", "mnist"):
        for tasks in ("tuned", "tuned alike"):
            values = PLANTED | (changed or {}) | ({MERGED: alike} if tasks == "tuned alike" else {})
            for (method, size, mended), value in values.items():
                for node in range(pairs):
                    kind = {
                        "setting": f"{data} {tasks} mlp", "tasks": tasks, "dataset": data, "architecture": "mlp",
                        "node": node, "method": method, "mended": mended, "size": size, "metric": "accuracy",
                    }  # fmt: skip
                    little = 0.001 * (node - (pairs - 1) / 2)
                    for task, less in (("joint", 0.5), ("0", 0.0), ("1", 0.1)):
                        rows.append({**kind, "task": task, "value": value - less + little})
    plant("mine", {"entries": pd.DataFrame(rows)}, "arena")


def test_accuracies_are_those_at_a_task_that_is_told():
    plant_tuned()
    facts = arena_tuned.kept("mine")
    assert facts.outcome == "replicated, replicated, replicated"
    assert facts.values["ensemble_cifar10"] == "85.0" and facts.values["weights_mnist"] == "65.0"
    assert facts.values["weights_repair_by_task_cifar10"] == "80.0" and facts.values["n"] == "8"
    assert (facts.values["mean_cifar10"], facts.values["mean_alike_cifar10"]) == ("35.0", "83.0")


@pytest.mark.parametrize(
    ("changed", "outcome"),
    [
        ({("weights", 1.0, "none"): 0.86}, "not replicated, replicated, not replicated"),
        ({("weights", 1.0, "repair"): 0.75}, "replicated, not replicated, replicated"),
        ({("weights", 1.0, "repair by task"): 0.6}, "replicated, replicated, not replicated"),
    ],
)
def test_the_verdicts_are_those_of_the_networks_of_different_foundations(changed, outcome):
    plant_tuned(changed)
    assert arena_tuned.kept("mine").outcome == outcome


def test_few_pairs_decide_nothing():
    plant_tuned(pairs=4)
    assert {claim.verdict for claim in decide("mine", ["N1", "N2", "N3"])} == {"too few"}


def test_the_table_has_a_row_for_each_foundation_method_and_mending():
    plant_tuned()
    table = arena_tuned.table("mine")
    assert len(table) == 2 * 2 * len(PLANTED) and set(table["foundations"]) == {"one each", "one for both"}
    own = table[(table["data"] == "MNIST") & (table["foundations"] == "one each")]
    (repaired,) = own[own["mended"] == MENDINGS["repair"]]["accuracy (%)"]
    assert repaired.startswith("25.0")


def test_without_such_networks_nothing_is_said():
    rows = [{"setting": "a", "tasks": "halves", "dataset": "mnist", "architecture": "mlp", "node": 0, "size": 1.0}]
    rows = [row | {"method": "mean", "mended": "none", "metric": "accuracy", "task": "0", "value": 0.5} for row in rows]
    plant("mine", {"entries": pd.DataFrame(rows)}, "arena")
    assert arena_tuned.kept("mine").outcome == "not measured" and not len(arena_tuned.table("mine"))
