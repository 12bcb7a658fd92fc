"""MergeMany's experiment: groups are measured as plain code measures them, and sentences turn with the tables."""

import functools
import math
import re

import numpy as np
import pandas as pd
import pytest
import torch
from planting import clean, digits, plant
from torch.func import functional_call

from lab import merges
from lab.bookkeeping import results
from lab.measures.calibration import calibration_error, temper
from lab.measures.many import ALGORITHMS, check_sizes, measure, measure_groups, whole_groups
from lab.merges import merged_groups
from lab.networks import build
from lab.networks.initial import initial_weights
from lab.report import many_chapter, many_figures
from lab.report import page as report
from lab.report.claims import NOT_REPLICATED, REPLICATED, decide
from lab.report.draw import themed
from rebasin.merging.many import merge_many
from rebasin.tracing import trace


@pytest.fixture(autouse=True)
def own_results(tmp_path, monkeypatch):
    monkeypatch.setenv("REBASIN_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("REBASIN_RUN", "mine")


@pytest.fixture(scope="module")
def six():
    """A small network, its spec, and six fresh copies of it (6, ...)."""
    model = build("mlp", digits(), 8)
    fresh = [initial_weights(model, "lecun_normal", seed) for seed in range(6)]
    return model, trace(model, digits().example), {key: torch.stack([w[key] for w in fresh]) for key in fresh[0]}


def test_groups_are_merged_as_the_library_merges_each(six):
    _, spec, leaves = six
    merged = merged_groups(spec, leaves, 3, 0, "cpu", 2).weights
    for group in range(2):
        alone = merge_many(spec, {key: t[3 * group : 3 * group + 3] for key, t in leaves.items()}, 0).weights
        for key, tensor in alone.items():
            torch.testing.assert_close(merged[key][group], tensor)


def test_groups_that_were_merged_are_not_merged_again(six, monkeypatch):
    _, spec, leaves = six
    first = merged_groups(spec, leaves, 3, 0, "cpu", 1).weights
    monkeypatch.setattr(merges, "merge_many", None)
    again = merged_groups(spec, leaves, 3, 0, "cpu", 1).weights
    assert all(torch.equal(first[key], again[key]) for key in first)
    with pytest.raises(TypeError):
        merged_groups(spec, leaves, 3, 1, "cpu", 1)


def test_what_makes_no_whole_group_is_left_out(six):
    leaves = six[2]
    assert len(whole_groups(leaves, 4)["layer1.bias"]) == 4
    assert len(whole_groups(leaves, 6)["layer1.bias"]) == 6
    with pytest.raises(ValueError, match="a group of 7 needs as many models, got 6"):
        whole_groups(leaves, 7)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([4, 16], "a group of 16 needs as many models, got 8"),
        ([0], "a group of 0 needs as many models, got 8"),
        ([4, 4], "sizes of groups must differ: got [4, 4]"),
    ],
)
def test_sizes_that_cannot_be_are_refused_before_training(sizes, message):
    check_sizes(8, [4, 8])
    with pytest.raises(ValueError, match=re.escape(message)):
        check_sizes(8, sizes)


def test_groups_are_measured_as_plain_code_does(six):
    model, spec, leaves = six
    test = digits().test.sample(100)
    merged = {key: tensor[:2] + 0.01 for key, tensor in leaves.items()}
    tables = measure_groups(model, spec, leaves, merged, 3, {"test": test}, "cpu", 2)
    nodes, members = tables["nodes"], tables["members"]
    assert not nodes.duplicated(["algorithm", "node", "split", "metric"]).any()
    assert set(nodes["algorithm"]) == set(ALGORITHMS) and set(nodes["node"]) == {0, 1}
    x, y = test.images.float() / 255, test.labels

    def chances(weights):
        return functional_call(model, weights, (x,)).detach().double().softmax(-1)

    def losses(p):
        return -p[torch.arange(len(y)), y].log().mean().item()

    for node in range(2):
        each = [chances({key: t[3 * node + member] for key, t in leaves.items()}) for member in range(3)]
        plain = {key: t[3 * node : 3 * node + 3].mean(0) for key, t in leaves.items()}
        told = {
            "ensemble": sum(each) / 3,
            "merge_many": chances({key: t[node] for key, t in merged.items()}),
            "naive": chances(plain),
        }
        here = nodes[nodes["node"] == node].set_index(["algorithm", "metric"])["value"]
        for algorithm, p in told.items():
            assert here[algorithm, "loss"] == pytest.approx(losses(p), rel=1e-5)
            assert here[algorithm, "accuracy"] == pytest.approx((p.argmax(1) == y).double().mean().item())
            assert here[algorithm, "calibration_error"] == pytest.approx(calibration_error(p, y).item(), abs=1e-6)
        assert here["unmerged", "loss"] == pytest.approx(np.mean([losses(p) for p in each]), rel=1e-5)
        alone = members[(members["node"] == node) & (members["metric"] == "loss")].set_index("member")["value"]
        assert alone.tolist() == pytest.approx([losses(p) for p in each], rel=1e-5)
        error = np.mean([calibration_error(p, y).item() for p in each])
        assert here["unmerged", "calibration_error"] == pytest.approx(error, abs=1e-6)


def test_bins_of_a_node_hold_all_its_answers(six):
    model, spec, leaves = six
    test = digits().test.sample(100)
    merged = {key: tensor[:2] for key, tensor in leaves.items()}
    tables = measure_groups(model, spec, leaves, merged, 3, {"test": test}, "cpu", 6)
    nodes, bins = tables["nodes"].set_index(["algorithm", "metric", "node"])["value"], tables["reliability"]
    for (algorithm, node), part in bins.groupby(["algorithm", "node"]):
        assert part["share"].sum() == pytest.approx(1)
        seen = part[part["share"] > 0]
        accuracy = (seen["share"] * seen["accuracy"]).sum()
        # The members' images are counted together, and they have as many each.
        assert accuracy == pytest.approx(nodes[algorithm, "accuracy", node])


def test_calibration_at_another_temperature_is_told_where_it_is_asked_for():
    raw = torch.randn(3, 60, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64).log_softmax(-1)
    labels = torch.arange(60) % 5
    found = measure(raw, labels, tempered=True)["calibration_error_tempered"]
    torch.testing.assert_close(found, calibration_error(temper(raw, labels)[0].exp(), labels))
    assert "calibration_error_tempered" not in measure(raw, labels, tempered=False)


def test_an_answer_that_is_all_but_impossible_has_a_loss_that_is_a_number():
    certain = torch.tensor([[[2000.0, 0.0]]], dtype=torch.float64).log_softmax(-1)
    assert float(measure(certain, torch.tensor([1]), tempered=False)["loss"]) == pytest.approx(2000)


@functools.cache
def many_begun():
    return clean(results.begin("many", results.declared_parameters("many") | {"run": "mine"}))


def plant_many(groups=8, loss=0.6, price=0.003, errors=(0.02, 0.008, 0.005), spread=1e-5):
    """Let a run have the tables of notebooks/many.ipynb.

    The merges' loss is ``loss`` times their inputs', their accuracy ``price`` lower; ``errors`` are the calibration
    errors of inputs, merges and ensembles.
    """
    rows, members, bins = [], [], []
    for group, size in (("five", 5), ("half 4", 4), ("half 8", 8)):
        for node in range(groups):
            small = 1 + spread * (node - (groups - 1) / 2)
            for algorithm in ALGORITHMS:
                merged = algorithm == "merge_many"
                error = dict(zip(("unmerged", "merge_many", "ensemble"), errors, strict=True)).get(algorithm, 0.3)
                of = {
                    "loss": 0.1 * (loss * small if merged else 1),
                    "accuracy": 0.98 - (price * small if merged else 0),
                    "calibration_error": error * small if merged else error,
                    "calibration_error_tempered": 0.004,
                }
                for split in ("train", "test"):
                    rows += [(group, algorithm, node, size, split, metric, value) for metric, value in of.items()]
                bins += [(group, algorithm, node, 13, 0.9, 0.8, 0.25), (group, algorithm, node, 14, 0.99, 0.98, 0.75)]
            members += [
                (group, node, member, split, metric, value)
                for member in range(size)
                for split in ("train", "test")
                for metric, value in (("loss", 0.1), ("accuracy", 0.98), ("calibration_error", 0.02))
            ]
    columns = ["group", "algorithm", "node"]
    tables = {
        "nodes": pd.DataFrame(rows, columns=[*columns, "n_leaves", "split", "metric", "value"]),
        "members": pd.DataFrame(members, columns=["group", "node", "member", "split", "metric", "value"]),
        "reliability": pd.DataFrame(bins, columns=[*columns, "bin", "confidence", "accuracy", "share"]),
    }
    results.finish(many_begun(), digits(), tables, models="planted")


FEW = "This run has too few groups of five to say whether merging them lowers the test loss</strong> "


@pytest.mark.parametrize(
    ("planted", "opening"),
    [
        ({}, "Five networks merged into one have a lower test loss than they have</strong>, as the paper says: "),
        (
            {"loss": 1.5},
            "Five networks merged into one have a higher test loss than they have</strong>, against the paper: ",
        ),
        ({"loss": 1.0}, "Whether five networks merged into one have a lower test loss is not decided</strong>: "),
        ({"groups": 7}, FEW + "(n = 7, 8 are needed): "),
        (
            {"groups": 1, "loss": 0.5, "price": 0.01},
            FEW + "(n = 1, 8 are needed): MergeMany changes it by −50.0 %, in the paper's table by −43.8 %, and costs "
            "1.00 points of accuracy, in the paper 0.29 (n = 1).",
        ),
    ],
    ids=["lower", "higher", "open", "seven", "one"],
)
def test_the_finding_on_five_turns_with_the_tables(planted, opening):
    plant_many(**planted)
    assert many_chapter.findings()["five"].startswith(f"<strong>{opening}")


@pytest.mark.parametrize(
    ("planted", "opening"),
    [
        (
            {},
            "Merges of 4 networks are better calibrated than their inputs, and their error is within a point of their "
            "ensembles'</strong>: ",
        ),
        (
            {"errors": (0.02, 0.05, 0.005)},
            "Merges of 4 networks are worse calibrated than their inputs, and their error is more than a point above "
            "their ensembles'</strong>: ",
        ),
        (
            {"errors": (0.02, 0.02, 0.01), "spread": 1e-3},
            "Merges of 4 networks cannot be told apart from their inputs in calibration, and their error is perhaps "
            "within a point of their ensembles'</strong>: ",
        ),
        (
            {"groups": 2},
            "Too few groups of 4 to say how well their merges are calibrated</strong> (n = 2, 8 are needed): the "
            "expected calibration error is, in points, 0.80 merged, 2.00 of the inputs, 0.50 of the ensemble, and the "
            "accuracy, in percent, 97.70, 98.00, 98.00 (n = 2).",
        ),
    ],
    ids=["better", "worse", "open", "two"],
)
def test_the_finding_on_calibration_turns_with_the_tables(planted, opening):
    plant_many(**planted)
    found = many_chapter.findings()["calibration"]
    assert found.startswith(f"<strong>{opening}")
    assert found.count("<strong>") == 2, "a sentence for each size"


def test_what_a_temperature_alone_does_is_told():
    plant_many(groups=2)
    nodes, bins = (results.read("mine", "many", table) for table in ("nodes", "reliability"))
    merged = bins["algorithm"] == "merge_many"
    bins.loc[merged, "accuracy"] = bins.loc[merged, "confidence"] + 0.02
    told = (
        "Of groups of {}, the inputs are 3.2 points surer than they are right, the merges 2.0 points less sure; with a "
        "temperature chosen for each their errors are 0.40 and 0.40 points (n = 2)."
    )
    assert many_chapter.temperature_finding(nodes, bins) == f"{told.format(4)} {told.format(8)}"


def test_claims_are_decided_on_these_tables():
    plant_many(errors=(0.02, 0.03, 0.005))
    verdicts = {claim.id: claim for claim in decide("mine")}
    assert verdicts["G3"].verdict == REPLICATED
    assert verdicts["G3"].conditions[0].effect.mean == pytest.approx(40, abs=0.1)
    assert verdicts["G3"].conditions[1].effect.mean == pytest.approx(0.3, abs=0.01)
    four = {c.name: c.verdict for c in verdicts["G4"].conditions}
    assert four == {
        "4 networks: below the inputs'": NOT_REPLICATED,
        "4 networks: within a point of the ensemble's": NOT_REPLICATED,
    }


def test_the_papers_five_stand_beside_ours():
    plant_many(groups=4)
    table = many_chapter.fives_table("mine")
    theirs = table[table["group"] == "the paper's"]
    assert theirs["test loss"].tolist() == ["0.1153", "0.1531", "0.1229", "0.1108", "0.1443", "0.1293", "0.0727"]
    assert theirs["test accuracy"].tolist()[-2:] == ["0.9860", "0.9831"]
    assert theirs["train loss"].tolist() == ["–"] * 7
    ours = table[table["group"] == "ours, 1"]
    assert ours["network"].tolist() == [
        "1",
        "2",
        "3",
        "4",
        "5",
        "inputs, their mean",
        "MergeMany",
        "ensemble",
        "naive average",
    ]
    assert len(table) == 7 + 3 * 9, "of many groups the first three"
    assert ours["test loss"].tolist()[:6] == ["0.1000"] * 6 and ours["test loss"].tolist()[6].startswith("0.06")


def test_the_table_of_calibration_tells_n_and_an_interval_where_there_is_one():
    for groups in (3, 4):
        plant_many(groups=groups)
        table = many_chapter.calibration_table("mine")
        assert table["n"].tolist() == [groups] * 12
        merged = table[(table["group"] == "4 on halves") & (table["network"] == "MergeMany")].iloc[0]
        assert merged["calibration error (points)"].startswith("0.80")
        assert ("[" in merged["calibration error (points)"]) == (groups == 4)


def test_bins_are_pooled_by_how_many_answers_they_hold_and_rare_ones_left_out():
    bins = pd.DataFrame(
        [(0, 7, 0.5, 0.2, 0.3), (1, 7, 0.52, 0.6, 0.1), (0, 9, 0.7, 1.0, 0.004), (1, 3, math.nan, math.nan, 0.0)],
        columns=["node", "bin", "confidence", "accuracy", "share"],
    )
    found = many_figures.pooled(bins)
    assert found.index.tolist() == [7]
    assert found.loc[7, "accuracy"] == pytest.approx(0.3)
    assert found.loc[7, "confidence"] == pytest.approx(0.505)


def test_the_figure_has_a_panel_for_each_size_of_group():
    plant_many(groups=2)
    bins = results.read("mine", "many", "reliability")
    assert many_figures.half_groups(bins) == ["half 4", "half 8"]
    assert len(many_figures.reliability_diagram(bins).axes) == 2
    assert themed(lambda: many_figures.reliability_diagram(bins), "alt").data.count("<img") == 2


def test_a_book_without_these_tables_says_so():
    plant("mine", {"nodes": pd.DataFrame({"value": np.zeros(1)})})
    assert set(many_chapter.findings().values()) == {"Not run yet.", ""}
    assert report.tabs("many", many_chapter.fives_table).data == "<p>Not run yet.</p>"
