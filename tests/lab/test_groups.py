"""Groups of networks are measured as plain code measures them, whatever their architecture."""

import re

import numpy as np
import pytest
import torch
from planting import digits
from torch.func import functional_call

from lab.bookkeeping import results
from lab.bookkeeping.notebook import execute
from lab.measures.calibration import calibration_error, temper
from lab.measures.groups import check_sizes, measure, measure_groups, whole_groups
from lab.merges import merged_groups
from lab.networks import build
from lab.networks.initial import initial_weights
from rebasin.merging.many import merge_many
from rebasin.tracing import trace
from rebasin.weights import grouped, mean

ALGORITHMS = {"unmerged", "many", "ensemble", "mean"}


@pytest.fixture(scope="module")
def six():
    """A small network, its spec, and six fresh copies of it (6, ...)."""
    model = build("mlp", digits(), 8)
    fresh = [initial_weights(model, "lecun_normal", seed) for seed in range(6)]
    return model, trace(model, digits().example), {key: torch.stack([w[key] for w in fresh]) for key in fresh[0]}


def test_groups_are_merged_as_the_library_merges_each(six):
    _, spec, leaves = six
    merged = merged_groups(spec, leaves, 3, "many", chunk=1).weights
    for group in range(2):
        alone = merge_many(spec, {key: t[3 * group : 3 * group + 3] for key, t in leaves.items()}, seed=0).weights
        for key, tensor in alone.items():
            torch.testing.assert_close(merged[key][group], tensor)


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
        ([], "at least one size of groups is needed"),
    ],
)
def test_sizes_that_cannot_be_are_refused_before_training(sizes, message):
    check_sizes(8, [4, 8])
    with pytest.raises(ValueError, match=re.escape(message)):
        check_sizes(8, sizes)


def test_groups_are_measured_as_plain_code_does(six):
    model, _, leaves = six
    test = digits().test.sample(100)
    merged = {key: tensor[:2] + 0.01 for key, tensor in leaves.items()}
    averages = mean(grouped(leaves, 3), axis=1)
    tables = measure_groups(model, leaves, {"many": merged, "mean": averages}, 3, {"test": test}, "cpu", 2)
    nodes, members = tables["nodes"], tables["members"]
    assert all(set(table["n_leaves"]) == {3} for table in tables.values())
    assert not nodes.duplicated(["algorithm", "node", "split", "metric"]).any()
    assert set(nodes["algorithm"]) == ALGORITHMS and set(nodes["node"]) == {0, 1}
    x, y = test.images.float() / 255, test.labels

    def chances(weights):
        return functional_call(model, weights, (x,)).detach().double().softmax(-1)

    def losses(p):
        return -p[torch.arange(len(y)), y].log().mean().item()

    for node in range(2):
        by_member = [chances({key: t[3 * node + member] for key, t in leaves.items()}) for member in range(3)]
        plain = {key: t[3 * node : 3 * node + 3].mean(0) for key, t in leaves.items()}
        answers = {
            "ensemble": sum(by_member) / 3,
            "many": chances({key: t[node] for key, t in merged.items()}),
            "mean": chances(plain),
        }
        here = nodes[nodes["node"] == node].set_index(["algorithm", "metric"])["value"]
        for algorithm, p in answers.items():
            assert here[algorithm, "loss"] == pytest.approx(losses(p), rel=1e-5)
            assert here[algorithm, "accuracy"] == pytest.approx((p.argmax(1) == y).double().mean().item())
            assert here[algorithm, "calibration_error"] == pytest.approx(calibration_error(p, y).item(), abs=1e-6)
        assert here["unmerged", "loss"] == pytest.approx(np.mean([losses(p) for p in by_member]), rel=1e-5)
        alone = members[(members["node"] == node) & (members["metric"] == "loss")].set_index("member")["value"]
        assert alone.tolist() == pytest.approx([losses(p) for p in by_member], rel=1e-5)
        error = np.mean([calibration_error(p, y).item() for p in by_member])
        assert here["unmerged", "calibration_error"] == pytest.approx(error, abs=1e-6)


def test_bins_of_a_node_hold_all_its_answers(six):
    model, _, leaves = six
    test = digits().test.sample(100)
    merged = {key: tensor[:2] for key, tensor in leaves.items()}
    tables = measure_groups(model, leaves, {"many": merged}, 3, {"test": test}, "cpu", 6)
    nodes, bins = tables["nodes"].set_index(["algorithm", "metric", "node"])["value"], tables["reliability"]
    for (algorithm, node), part in bins.groupby(["algorithm", "node"]):
        assert part["share"].sum() == pytest.approx(1)
        seen = part[part["share"] > 0]
        accuracy = (seen["share"] * seen["accuracy"]).sum()
        # The members' images are counted together, and they have as many each.
        assert accuracy == pytest.approx(nodes[algorithm, "accuracy", node])


def test_calibration_at_another_temperature_is_measured_where_it_is_asked_for():
    raw = torch.randn(3, 60, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64).log_softmax(-1)
    labels = torch.arange(60) % 5
    tempered = measure(raw, labels, tempered=True)["calibration_error_tempered"]
    torch.testing.assert_close(tempered, calibration_error(temper(raw, labels)[0].exp(), labels))
    assert "calibration_error_tempered" not in measure(raw, labels, tempered=False)


def test_an_answer_that_is_all_but_impossible_has_a_loss_that_is_a_number():
    certain = torch.tensor([[[2000.0, 0.0]]], dtype=torch.float64).log_softmax(-1)
    assert float(measure(certain, torch.tensor([1]), tempered=False)["loss"]) == pytest.approx(2000)


SMALLEST = {"run": "mine", "mnist_images": 20, "half_sizes": [2]}


@pytest.mark.parametrize(("architecture", "width"), [("mlp1", 4), ("vit", 4)])
def test_the_notebook_takes_any_architecture(architecture, width, tmp_path, monkeypatch, shallow_vit):
    monkeypatch.setenv("REBASIN_RESULTS", str(tmp_path / "results"))
    kind = {"architecture": architecture, "width": width, "epochs": [1]}
    networks = {"mnist_networks": kind | {"models": 5}, "half_networks": kind | {"models": 2}}
    execute("many", SMALLEST | networks)
    nodes = results.read("mine", "many", "nodes")
    assert set(zip(nodes["subset"], nodes["n_leaves"], strict=True)) == {("all", 5), ("half", 2)}
    assert set(nodes["algorithm"]) == ALGORITHMS and set(nodes["architecture"]) == {architecture}
    assert np.isfinite(nodes["value"]).all()
