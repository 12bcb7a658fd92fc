"""What a table says of a path: barriers over all its points and over three, its ends, its midpoint."""

import pandas as pd
import pytest
import torch
from planting import PATH_METRICS, planted_path

from lab.measures.paths import PATH, path_barriers, path_metrics


def metrics_of(loss, accuracy):
    return path_barriers(planted_path(loss, accuracy)).set_index("metric")["value"].to_dict()


def test_barriers_are_those_that_were_planted():
    assert metrics_of((0.1, 0.7, 0.3), (0.9, 0.5, 0.8)) == pytest.approx(
        {
            "loss_barrier": 0.5, "loss_above_line": 0.5, "loss_barrier_of_three": 0.5, "loss_ends": 0.2,
            "loss_midpoint": 0.7, "loss_gain": -0.6,
            "accuracy_barrier": 0.35, "accuracy_above_line": 0.35, "accuracy_barrier_of_three": 0.35,
            "accuracy_ends": 0.85, "accuracy_midpoint": 0.5, "accuracy_gain": -0.4,
        }
    )  # fmt: skip


def test_a_path_without_a_barrier_has_half_its_ends_gap_and_nothing_above_the_line():
    metrics = metrics_of((0.1, 0.05, 0.3), (0.9, 0.95, 0.8))
    assert [metrics[f"loss_{name}"] for name in ("barrier", "above_line", "gain")] == pytest.approx([0.1, 0.0, 0.05])
    assert [metrics[f"accuracy_{name}"] for name in ("barrier", "above_line")] == pytest.approx([0.05, 0.0])


def test_the_barrier_of_three_points_does_not_see_the_others():
    lams = torch.linspace(0, 1, 5, dtype=torch.float64)
    loss = torch.tensor([[0.0, 0.9, 0.5, 0.2, 0.2], [0.4, 0.9, 0.1, 0.2, 0.2]], dtype=torch.float64)
    accuracy = torch.tensor([[1.0, 0.1, 0.5, 0.8, 0.8], [0.6, 0.1, 0.9, 0.8, 0.8]], dtype=torch.float64)
    metrics = path_metrics(loss, accuracy, lams)
    assert list(metrics) == PATH_METRICS
    assert metrics["loss_barrier"].tolist() == pytest.approx([0.8, 0.6])
    assert metrics["loss_barrier_of_three"].tolist() == pytest.approx([0.4, 0.1]), "the midpoint's, the worse end's"
    assert metrics["accuracy_barrier"].tolist() == pytest.approx([0.8, 0.6])
    assert metrics["accuracy_barrier_of_three"].tolist() == pytest.approx([0.4, 0.1])


def test_paths_of_many_pairs_and_matchers_keep_apart():
    kinds = [
        ("weights", 1, 0, "test", 0.1),
        ("weights", 1, 1, "test", 0.2),
        ("none", 1, 0, "test", 0.3),
        ("weights", 9, 0, "test", 0.4),
        ("weights", 9, 0, "train", 0.5),
    ]
    table = pd.concat(
        planted_path((0.0, height, 0.0), (1.0, 1 - height, 1.0), matcher, epochs, node, split)
        for matcher, epochs, node, split, height in kinds
    )
    barriers = path_barriers(table.sample(frac=1, random_state=0))
    assert len(barriers) == len(kinds) * len(PATH_METRICS)
    assert not barriers.duplicated([*PATH, "metric"]).any()
    for metric in ("loss_barrier", "accuracy_barrier"):
        values = barriers[barriers["metric"] == metric].set_index(PATH)["value"]
        for matcher, epochs, node, split, height in kinds:
            assert values[matcher, epochs, node, 2, split] == pytest.approx(height)


@pytest.mark.parametrize("lams", [{0.5: 0.4}, {0.5: 0.6}])
def test_a_path_that_misses_the_midpoint_is_refused(lams):
    table = planted_path((0.1, 0.7, 0.3), (0.9, 0.5, 0.8)).replace({"lam": lams})
    with pytest.raises(ValueError, match="take an odd number"):
        path_barriers(table)


def test_an_even_number_of_points_has_no_midpoint():
    values = torch.zeros(1, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match="take an odd number"):
        path_metrics(values, values, torch.linspace(0, 1, 4, dtype=torch.float64))
