"""Regularisation in the book: facts, tables and figures are those of the tables that were planted."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from planting import KIND, REGULAR, one_node_per_block, plant, plant_regularisation

from lab.bookkeeping import results
from lab.report import regularisation
from lab.report.kinds import Kind


@pytest.fixture(autouse=True)
def own_results(tmp_path, monkeypatch):
    monkeypatch.setenv("REBASIN_RESULTS", str(tmp_path))


@pytest.mark.parametrize(
    ("changed", "shrinking", "without_matching"),
    [
        ({}, "replicated, replicated", "more, more"),
        ({("mean", 8): 2.0}, "replicated, replicated", "less, less"),
        ({("hierarchy", 8): 20.0}, "not replicated, not replicated", "less, less"),
        ({("hierarchy", 8, "lipschitz"): 20.0}, "replicated, not replicated", "more, less"),
        ({("hierarchy", 8): 10.0, ("mean", 8): 10.0}, "inconclusive, inconclusive", "open, open"),
    ],
    ids=["falls", "the naive average falls more", "rises", "the norm alone falls", "level"],
)
def test_norms_and_bounds_lie_where_they_were_planted(changed, shrinking, without_matching):
    values = {kind: changed.get(kind, changed.get(kind[:2], value)) for kind, value in REGULAR.items()}
    plant_regularisation("mine", values, 8)
    assert regularisation.shrinking("mine").outcome == shrinking
    assert regularisation.without_matching("mine").outcome == without_matching


def test_shares_are_those_of_what_the_leaves_have():
    plant_regularisation("mine", REGULAR, 8, noise=0)
    assert regularisation.shrinking("mine").values == {
        "norm": "60.0 [60.0, 60.0]", "bound": "60.0 [60.0, 60.0]", "n": "8"
    }  # fmt: skip
    assert regularisation.without_matching("mine").values["norm"] == "80.0 [80.0, 80.0]"
    ratio = regularisation.ratio("mine", "l2_norm", Kind("hierarchy", n_leaves=8))
    assert ratio.mean == pytest.approx(60) and ratio.n == 8


def test_what_was_not_measured_is_no_fact():
    plant_regularisation("mine", {("unmerged", 1, "l2_norm"): 10.0}, 8)
    for facts in (
        regularisation.shrinking, regularisation.without_matching, regularisation.identity, regularisation.certified,
        regularisation.mended,
    ):  # fmt: skip
        assert facts("mine").outcome == "not measured"


@pytest.mark.parametrize(("bound", "outcome"), [(20.0, "above"), (5.0, "below")])
def test_repair_changes_norm_and_bound(bound, outcome):
    plant_regularisation("mine", REGULAR, 8, noise=0)
    nodes = results.read("mine", "regularisation", "nodes")
    mended = nodes[nodes["algorithm"] == "hierarchy"].assign(mended="repair")
    mended["value"] *= np.where(mended["metric"] == "lipschitz", bound / 6, 1)
    plant("mine", {"nodes": pd.concat([nodes, mended])}, "regularisation")
    facts = regularisation.mended("mine")
    share = f"{10 * bound:.1f}"
    assert facts.outcome == outcome and facts.values["bound"] == f"{share} [{share}, {share}]"
    assert facts.values["norm"] == "60.0 [60.0, 60.0]"
    assert regularisation.shrinking("mine").values["bound"] == "60.0 [60.0, 60.0]", "mended ones do not count there"


@pytest.mark.parametrize(("margin", "outcome", "after"), [(0.1, "shrinks", "18.03/255"), (0.9, "grows", "162.28/255")])
def test_what_is_certified_follows_margin_and_bound(margin, outcome, after):
    values = {}
    for (algorithm, size), (m, bound) in {("unmerged", 1): (1.0, 2.0), ("hierarchy", 8): (margin, 1.0)}.items():
        values |= {(algorithm, size, name): v for name, v in (("median_margin", m), ("lipschitz", bound))}
        values[algorithm, size, "median_radius"] = m / bound / 2**0.5
    rows = [
        (*kind, metric, value)
        for (algorithm, size, metric), value in values.items()
        for kind, _ in one_node_per_block(algorithm, size, 4)
    ]
    plant("mine", {"nodes": pd.DataFrame(rows, columns=[*KIND, "metric", "value"])}, "regularisation")
    facts = regularisation.certified("mine")
    assert facts.outcome == outcome
    assert facts.values == {"before": "90.16/255", "after": after, "margin": f"{margin:.2f}", "bound": "0.50"}


@pytest.mark.parametrize(("off", "outcome", "digits"), [(2e-8, "holds", "7"), (1e-3, "fails", "3")])
def test_the_identity_is_said_to_hold_where_it_does(off, outcome, digits):
    plant_regularisation("mine", {("hierarchy", 8, "parameter_norm"): 10.0, ("unmerged", 1, "parameter_norm"): 20.0}, 4)
    nodes = results.read("mine", "regularisation", "nodes")
    predicted = nodes[nodes["algorithm"] == "hierarchy"].assign(metric="predicted_norm")
    predicted["value"] *= 1 + off
    plant("mine", {"nodes": pd.concat([nodes, predicted])}, "regularisation")
    facts = regularisation.identity("mine")
    assert facts.outcome == outcome and facts.values == {"digits": digits, "n": "4"}


SIZES = {("unmerged", 1): 1.0, ("hierarchy", 2): 0.8, ("hierarchy", 8): 0.6, ("mean", 8): 0.3}
METRICS = [
    "l2_norm", "l1_norm", "spectral_product", "averaged_bound", "lipschitz", "largest_gradient", "median_margin",
    "median_radius",
]  # fmt: skip


def plant_all(metrics=METRICS):
    """Let a run have every table of two stages and of naive averages."""
    values = {(*kind, metric): 10 * share for kind, share in SIZES.items() for metric in metrics}
    nodes, layers, radii = [], [], []
    for (algorithm, size, metric), value in values.items():
        nodes += [(*kind, metric, value) for kind, _ in one_node_per_block(algorithm, size, 4)]
    for (algorithm, size), share in SIZES.items():
        for kind, _ in one_node_per_block(algorithm, size, 4):
            layers += [(*kind, layer, metric, share) for layer in ("first", "last") for metric in ("l1", "l2")]
            layers += [(*kind, "first", "spectral", share / 2)]
            radii += [(*kind, radius, share / (1 + radius)) for radius in (0.0, 0.1, 1.0)]
    tables = {
        "nodes": pd.DataFrame(nodes, columns=[*KIND, "metric", "value"]),
        "layers": pd.DataFrame(layers, columns=[*KIND, "layer", "metric", "value"]),
        "radii": pd.DataFrame(radii, columns=[*KIND, "radius", "value"]),
    }
    plant("mine", tables, "regularisation")


def test_the_tables_of_a_run():
    plant_all()
    bounds = regularisation.bounds_table("mine").set_index(["networks", "models"])
    assert list(bounds.index) == [("unmerged", "1"), ("hierarchy", "2"), ("hierarchy", "8"), ("naive average", "8")]
    assert bounds.loc[("hierarchy", "8"), "ECLipsE-Fast"] == "6.0 [6.0, 6.0]"
    assert bounds.loc[("hierarchy", "8"), "radius, median (/255)"].startswith("1530.000")
    layers = regularisation.layers_table("mine").set_index(["networks", "models", "layer"])
    assert layers.loc[("hierarchy", "8", "first"), "L2 norm"] == "0.60"
    assert layers.loc[("hierarchy", "8", "first"), "spectral norm"] == "0.30"
    assert layers.loc[("hierarchy", "8", "last"), "spectral norm"] == "", "no bound was proved for it"


def test_networks_without_bounds_have_the_rest_in_the_table():
    plant_all([metric for metric in METRICS if metric not in ("lipschitz", "averaged_bound", "median_radius")])
    bounds = regularisation.bounds_table("mine")
    assert set(bounds["ECLipsE-Fast"]) == {""} and set(bounds["radius, median (/255)"]) == {""}
    assert regularisation.certified("mine").outcome == "not measured"


def test_the_figures_draw_every_stage():
    plant_all()
    figure = regularisation.norms_by_leaves("mine")
    assert [text.get_text() for text in figure.axes[0].texts] == ["naive average", "hierarchy", "leaves"]
    (line,) = [bars.lines[0] for bars in figure.axes[0].containers if bars.get_label() == "hierarchy"]
    assert list(line.get_ydata()) == pytest.approx([8, 6])
    figure = regularisation.certified_by_stage("mine")
    assert [line.get_label() for line in figure.axes[0].lines] == [
        "leaves (n = 4)",
        "2 merged (n = 4)",
        "8 merged (n = 4)",
    ]
    assert list(figure.axes[1].lines[0].get_ydata()) == pytest.approx([1, 0.8, 0.6])
    plt.close("all")
