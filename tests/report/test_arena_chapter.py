"""The arena in the book: facts, tables and figures are those of the tables that were planted."""

import json
import sys

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from planting import plant

from lab.bookkeeping import results
from lab.bookkeeping.results import declared_parameters
from lab.contestants.settings import read_settings
from lab.report import arena, arena_attacked, arena_elsewhere, arena_one_size, arena_record, arena_tables, library

NETS = {"mlp": ("mlp", 512), "vgg11": ("vgg11", 16)}
# Accuracy of each (method, size, mended).
PLANTED = {
    ("parent", 1.0, "none"): 0.3, ("ensemble", 2.0, "none"): 0.6, ("head", 1.0, "none"): 0.45,
    ("correlation", 1.0, "none"): 0.35, ("correlation", 1.0, "repair"): 0.36, ("zip", 1.0, "none"): 0.38,
    ("zip_fitted", 1.55, "none"): 0.52, ("regmean_refitted", 1.0, "none"): 0.48,
    ("regmean", 1.0, "none"): 0.3, ("pleas", 1.0, "none"): 0.5,
    ("pleas", 1.2, "none"): 0.58, ("pleas", 1.55, "none"): 0.58, ("pleas_refitted", 1.0, "none"): 0.51,
    ("pleas_adam", 1.0, "none"): 0.49, ("pleas_linear", 1.55, "none"): 0.58, ("pleas_other", 1.2, "none"): 0.53,
}  # fmt: skip
ELSEWHERE = {
    ("parent", 1.0, "none"): 0.5, ("ensemble", 2.0, "none"): 0.65, ("distilled", 1.0, "none"): 0.62,
    ("pleas", 1.0, "none"): 0.55, ("pleas", 1.2, "none"): 0.6, ("zip", 1.0, "none"): 0.4,
}  # fmt: skip
MANY = {
    ("parent", 1.0, "none"): 0.5, ("weights", 1.0, "none"): 0.4, ("weights", 1.0, "repair"): 0.45,
    ("pleas", 1.0, "none"): 0.48, ("pleas_refitted", 1.0, "none"): 0.47, ("regmean_refitted", 1.0, "none"): 0.42,
}  # fmt: skip


OTHERS = [
    ("cifar10", "whole", "split", "mlp"), ("mnist", "halves", "all", "mlp"), ("mnist", "halves", "all", "vit"),
    ("mnist", "tuned", "all", "mlp"),
    *(("cifar10", "coded", "all", f"{kind}_codes") for kind in ("mlp", "vgg11", "resnet20_bn")),
]  # fmt: skip
ATTACKED = {("ensemble", 2.0): 0.6, ("correlation", 1.0): 0.3, ("pleas_refitted", 1.0): 0.5}


@pytest.fixture(autouse=True)
def own_results(tmp_path, monkeypatch):
    monkeypatch.setenv("REBASIN_RESULTS", str(tmp_path))


def plant_arena(pairs=8, nets=("mlp", "vgg11"), changed=None, many=MANY, elsewhere=ELSEWHERE):
    """Let a run have the tables of notebooks/arena.ipynb: ``changed`` accuracies by (net, method, size, mended)."""
    entries = []
    for net in nets:
        architecture, width = NETS[net]
        kind = {
            "setting": f"cifar10 halves {net}", "tasks": "halves", "parents": 2, "images": 1000, "epochs": 9,
            "dataset": "cifar10", "architecture": architecture, "width": width, "subset": "all", "l1": 0.0,
        }  # fmt: skip
        for (method, size, mended), value in PLANTED.items():
            mean = (changed or {}).get((net, method, size, mended), value)
            entries += planted(kind, method, size, mended, mean, pairs)
    for parents in (4, 8):
        kind = {
            "setting": f"cifar10 many {parents}", "tasks": "whole", "parents": parents, "images": 1000, "epochs": 9,
            "dataset": "cifar10", "architecture": "mlp", "width": 128, "subset": "all", "l1": 0.0,
        }  # fmt: skip
        for (method, size, mended), value in many.items():
            entries += planted(kind, method, size, mended, value, pairs)
    for dataset, tasks, subset, architecture in OTHERS:
        other = {**kind, "dataset": dataset, "tasks": tasks, "subset": subset, "parents": 2}
        other |= {"setting": f"{dataset} {tasks} {architecture}", "architecture": architecture}
        for (method, size, mended), value in elsewhere.items():
            more = 0.1 if tasks == "tuned" else 0.0
            entries += planted(other, method, size, mended, value + more, pairs)
    attacks = []
    for method, value in (("parent", 0.3), ("weights", 0.1), ("pleas_refitted", 0.2)):
        for epsilon in (0, 2):
            survive = planted(kind, method, 1.0, "none", value - 0.01 * epsilon, pairs)
            attacks += [{**row, "epsilon": epsilon} for row in survive if row["metric"] == "accuracy"]
    # Merges of halves that are attacked: without one parent, which has no answer for half of the images.
    halves = {**kind, "setting": "cifar10 halves attacked", "tasks": "halves", "parents": 2}
    for (method, size), value in ATTACKED.items():
        entries += planted(halves, method, size, "none", value, pairs)
        for epsilon in (0, 2):
            survive = planted(halves, method, size, "none", value / (1 + epsilon), pairs)
            attacks += [{**row, "epsilon": epsilon} for row in survive if row["metric"] == "accuracy"]
    frame = pd.DataFrame(entries)
    times = frame[frame["metric"] == "accuracy"].drop(columns="task").assign(metric="seconds", value=2.5)
    plant("mine", {"entries": frame, "times": times, "attacks": pd.DataFrame(attacks)}, "arena")


def planted(kind, method, size, mended, mean, pairs):
    """The rows of a method: accuracies that spread a little around their mean, and what else is measured."""
    rows = []
    for node in range(pairs):
        own = {**kind, "node": node, "method": method, "mended": mended, "size": size, "task": "joint"}
        values = {"accuracy": mean + 0.001 * (node - (pairs - 1) / 2), "loss": 1.5, "calibration_error": 0.1}
        values |= {"structured": size, "dense": size, "parameters": size}
        rows += [{**own, "metric": metric, "value": value} for metric, value in values.items()]
    return rows


def test_the_best_merge_is_named_of_each_kind_and_a_new_head_is_none():
    # Of MLPs 51 % lie nearer to the ensemble's 60 than to the parent's 30; of VGG-11 44 % do not.
    worse = {
        ("vgg11", name, 1.0, "none"): 0.4 for name in ("regmean_refitted", "pleas", "pleas_refitted", "pleas_adam")
    }
    plant_arena(changed={("vgg11", "zip", 1.0, "none"): 0.44, **worse})
    facts = arena.best("mine")
    assert facts.outcome == "pleas_refitted nearer, zip farther"
    assert facts.values["best_mlp"].startswith("51.0 [") and facts.values["best_vgg11"].startswith("44.0 [")
    assert facts.values["parent_mlp"].startswith("30.0") and facts.values["ensemble_vgg11"].startswith("60.0")


@pytest.mark.parametrize(
    ("fact", "outcome", "value"),
    [
        (arena.over_zip, "mlp above, vgg11 below", "+12.0"),
        (arena.over_permuted, "mlp above, vgg11 above", "+15.0"),
        (arena.over_repaired, "mlp above, vgg11 above", "+14.0"),
        # 58 - (35 + 0.8 * 25) = 3 points over four fifths of the way.
        (arena.beside_the_ensemble, "mlp above, vgg11 above", "+3.0"),
        (arena.without_data, "mlp above, vgg11 above", "+5.0"),
        (arena.matching, "mlp above, vgg11 above", "+20.0"),
        (arena.parts, "mlp above, vgg11 above", "+6.0"),
        (arena.closed_form, "mlp above, vgg11 above", "+1.0"),
        (arena.refitted, "mlp above, vgg11 above", "+1.0"),
        (arena.new_head, "mlp above, vgg11 above", "+6.0"),
        (arena.matching_refitted, "mlp above, vgg11 above", "+3.0"),
    ],
)
def test_differences_are_those_of_the_claims_by_kind(fact, outcome, value):
    # Seven points are positive, and below the eight that the paper promises.
    plant_arena(changed={("vgg11", "zip", 1.0, "none"): 0.43})
    facts = fact("mine")
    assert facts.outcome == outcome
    assert facts.values["mlp"].startswith(value) and facts.values["n"] == "8"


def test_what_was_not_measured_is_left_out_and_told_if_it_is_all():
    plant_arena(nets=("mlp",))
    assert arena.refitted("mine").outcome == "mlp above"
    assert set(arena.refitted("mine").values) == {"mlp", "size_mlp", "n"}
    plant_arena(nets=(), elsewhere={})
    assert arena.refitted("mine").outcome == arena.best("mine").outcome == "not measured"


def test_kinds_are_compared_in_what_both_methods_made_of_them_with_statistics_measured_anew():
    anew = {("mixed", 1.0, "none"): 0.1, ("mixed", 1.0, "reset"): 0.44, ("correlation", 1.0, "reset"): 0.4}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[__name__], "PLANTED", PLANTED | anew)
        plant_arena()
    assert arena.mixed("mine").outcome == "mlp above, vgg11 above"
    assert arena.mixed("mine").values["mlp"].startswith("+4.0"), "and not those before"
    assert arena.canonical("mine").outcome == "not measured", "CCA Merge made none"


def test_merges_of_many_are_compared_at_their_number():
    plant_arena()
    facts = arena.over_many("mine")
    assert facts.outcome == "at_4 above, at_8 above" and facts.values["at_8"].startswith("+3.0")
    facts = arena.number("mine")
    assert facts.outcome == "pleas below" and facts.values["beside_parent"].startswith("−2.0")
    assert facts.values["weights_repaired"].startswith("45.0")
    largest = arena.largest("mine")
    assert largest.outcome == facts.outcome
    assert largest.values == facts.values | {"number": "8", "n": "8"}


def test_matching_of_many_is_told_by_their_number():
    plant_arena()
    facts = arena.matching_of_many("mine")
    assert facts.outcome == "at_4 above, at_8 above" and facts.values["at_8"].startswith("+5.0")


def test_attacks_are_told_against_one_parent_and_against_merge_many_by_their_radius():
    plant_arena()
    facts = arena.attacked("mine")
    assert facts.outcome == "parent_2 below, many_2 above", "4/255 was not measured"
    assert facts.values["parent_2"].startswith("−10.0") and facts.values["many_2"].startswith("+10.0")
    table = arena_tables.attack_table("mine").set_index("method")
    assert table.loc["PLeaS, refitted on its own inputs", "no attack"].startswith("20.0")
    assert table.loc["PLeaS, refitted on its own inputs", "2/255"].startswith("18.0")


def test_merges_of_halves_under_attack_are_told_beside_the_ensemble_and_the_average():
    plant_arena()
    facts = arena_attacked.halves("mine")
    assert facts.outcome == "ensemble_0 below, matched_0 above, ensemble_2 below, matched_2 above"
    assert facts.values["refitted_0"].startswith("50.0") and facts.values["ensemble_2"].startswith("20.0")
    assert facts.values["beside_ensemble_0"].startswith("−10.0") and facts.values["n"] == "8"
    table = arena_attacked.table("mine").set_index("method")
    assert table.loc["ensemble", "size"] == "2" and table.loc["correlation matching", "2/255"].startswith("10.0")
    # They are no kind of networks beside those that all methods were tried on, and none of many networks.
    assert list(arena.by_kind("mine")) == ["mlp", "vgg11"]
    assert "ensemble" not in set(arena_tables.attack_table("mine")["method"])


def test_a_run_that_attacked_no_halves_says_so():
    plant_arena()
    frame = results.read("mine", "arena", "attacks")
    plant("mine", {"attacks": frame[frame["tasks"] == "whole"]}, "arena")
    assert arena_attacked.halves("mine").outcome == "not measured" and not len(arena_attacked.table("mine"))


def test_memory_stands_beside_the_seconds(tmp_path, monkeypatch):
    monkeypatch.setattr(library, "ROOT", tmp_path)
    (tmp_path / "benchmarks").mkdir()
    row = {"setting": "cifar10 halves mlp", "method": "pleas", "mebibytes": 471.4}
    (tmp_path / "benchmarks" / "memory.json").write_text(json.dumps({"rows": [row]}))
    plant_arena()
    costs = arena_tables.cost_table("mine").set_index(["networks", "method"])
    assert costs.loc[("MLP", "PLeaS"), "memory (MiB)"] == "471"
    assert costs.loc[("VGG-11, 1/4", "PLeaS"), "memory (MiB)"] == "–", "it was not measured"


def test_the_recipe_is_told_by_kind():
    plant_arena()
    values = arena.recipe("mine").values
    assert (values["epochs_mlp"], values["images_vgg11"], values["nodes"]) == ("9", "1000", "8")


def test_tables_have_a_row_for_each_method_and_its_mending():
    plant_arena()
    table = arena_tables.size_table("mine")
    row = table[(table["networks"] == "VGG-11, 1/4") & (table["method"] == "PLeaS")].iloc[0]
    assert row["at 1.2"].startswith("58.0") and row["at 2"] == "–"
    repaired = table[(table["networks"] == "MLP") & (table["mending"] == "after REPAIR")]
    assert list(repaired["method"]) == ["correlation matching"]
    many = arena_tables.number_table("mine")
    assert many[many["method"] == "PLeaS"]["8 networks (n = 8)"].iloc[0].startswith("48.0")
    published = arena_tables.published_table("mine").set_index("method")
    assert published.loc["ZipIt!", "theirs (%)"] == "33.2" and published.loc["ZipIt!", "ours (%)"].startswith("38.0")
    costs = arena_tables.cost_table("mine")
    assert set(costs["seconds"]) == {"2.5"} and len(costs) == 2 * 13, "each method once"


ELSEWHERE_FACTS = [
    arena_elsewhere.shares, arena_elsewhere.digits, arena_elsewhere.coded, arena_elsewhere.coded_vgg11
]  # fmt: skip


@pytest.mark.parametrize("fact", ELSEWHERE_FACTS)
def test_other_settings_are_told_by_method_and_the_best_of_them_beside_one_parent(fact):
    plant_arena()
    facts = fact("mine")
    assert facts.outcome == "pleas above, distilled above", "training is no merge"
    assert facts.values["beside_parent"].startswith("+5.0") and facts.values["n"] == "8"
    assert facts.values["pleas_small"].startswith("60.0") and facts.values["ensemble"].startswith("65.0")
    table = arena_elsewhere.table("mine").set_index(["networks", "method"])
    for title in ("MNIST, halves, ViT", "MNIST, halves, MLP"):
        assert table.loc[(title, "ZipIt!"), "at 1"].startswith("40.0"), "fine-tuned networks are no halves"
    assert len(table) == 6 * 5


def test_figures_show_each_method_where_it_lies():
    plant_arena()
    by_size = arena.accuracy_by_size("mine")
    assert [axes.get_title() for axes in by_size.axes] == ["MLP", "VGG-11, 1/4"]
    lines = {line.get_label(): line for line in by_size.axes[0].get_lines()}
    assert list(lines["one parent"].get_ydata()) == pytest.approx([30, 30])
    one = arena_one_size.at_one_size("mine")
    names = [label.get_text() for label in one.axes[0].get_yticklabels()]
    assert "PLeaS" in names and "ensemble" not in names
    number = arena.accuracy_by_number("mine")
    assert [label.get_text() for label in number.axes[0].get_xticklabels()] == ["4", "8"]
    for figure in (by_size, one, number):
        plt.close(figure)


@pytest.mark.parametrize(("refitted", "outcome"), [(0.6, "first"), (0.51, "behind"), (0.555, "open")])
def test_the_record_is_of_the_largest_group_and_has_an_interval_over_test_images(refitted, outcome):
    kind = {
        "setting": "digits many 4", "tasks": "whole", "parents": 4, "images": 1000, "epochs": 5, "dataset": "digits",
        "architecture": "vgg11", "width": 16, "subset": "all", "l1": 0.0,
    }  # fmt: skip
    values = {
        ("parent", 1.0, "none"): 0.7, ("weights", 1.0, "none"): 0.2, ("weights", 1.0, "repair"): 0.55,
        ("weights_refitted", 1.0, "none"): refitted, ("ensemble", 4.0, "none"): 0.8,
    }  # fmt: skip
    entries = []
    for (method, size, mended), value in values.items():
        entries += planted(kind, method, size, mended, value, 1)
        pairs = {**kind, "setting": "digits many 2", "parents": 2}
        entries += planted(pairs, method, 2.0 if method == "ensemble" else size, mended, value, 2)
        # Networks of another kind, which are told apart.
        entries += planted({**kind, "setting": "others", "architecture": "resnet20_bn"}, method, size, mended, 0.9, 1)
    plant("mine", {"entries": pd.DataFrame(entries)}, "arena")
    facts = arena_record.record("mine")
    assert facts.outcome == outcome
    assert facts.values["number"] == "4" and facts.values["groups"] == "1" and facts.values["kind"] == "VGG-11, 1/4"
    (default,) = (one for one in read_settings(declared_parameters("arena")["arena_settings"]) if one.parents == 4)
    assert facts.values["images"] == str(default.test_images), "what the notebook takes where it is not told"
    assert facts.values["weights_repair"].startswith("55.0 [53.6, 56.4]")
    assert facts.values["parent"] == "70.0"
    table = arena_record.record_table("mine")
    assert list(table.columns) == ["method", "mending", "2 networks (n = 2)", "4 networks (n = 1)"]
    assert table["4 networks (n = 1)"].iloc[-1].startswith("80.0"), "the ensemble is as large as its networks"


@pytest.mark.parametrize(("repaired", "outcome"), [(0.5, "below, above"), (0.4, "below, below")])
def test_the_hierarchy_of_penalised_networks_is_told_beside_merge_many(repaired, outcome):
    values = {
        ("parent", 1.0, "none"): 0.55, ("weights", 1.0, "none"): 0.45, ("hierarchy", 1.0, "none"): 0.4,
        ("weights", 1.0, "repair"): 0.47, ("hierarchy", 1.0, "repair"): repaired,
    }  # fmt: skip
    entries = []
    for parents, groups in ((4, 16), (8, 8)):
        kind = {
            "setting": f"penalised {parents}", "tasks": "whole", "parents": parents, "images": 1000, "epochs": 5,
            "dataset": "digits", "architecture": "mlp", "width": 128, "subset": "all", "l1": 0.00003,
        }  # fmt: skip
        for (method, size, mended), value in values.items():
            entries += planted(kind, method, size, mended, value, groups)
    table = pd.DataFrame(entries)
    spread = table["node"] % 3 * (table["method"] == "hierarchy") * 0.001
    table.loc[table["metric"] == "accuracy", "value"] += spread
    plant("mine", {"entries": table}, "arena")
    facts = arena_record.penalised("mine")
    assert facts.outcome == outcome
    assert facts.values["gap_8"].startswith("−4.9") and facts.values["n_8"] == "8" and facts.values["n_4"] == "16"
    assert (facts.values["parent"], facts.values["many"]) == ("55.0", "45.0")
    assert not len(arena.many("mine")), "those without a penalty are told apart"


@pytest.mark.parametrize(("in_a_tree", "outcome"), [(0.45, "below"), (0.5, "above")])
def test_what_going_in_pairs_costs_pleas_is_told_of_the_most_networks(in_a_tree, outcome):
    plant_arena(many={**MANY, ("pleas_tree", 1.0, "none"): in_a_tree})
    facts = arena_record.in_pairs("mine")
    assert facts.outcome == outcome and (facts.values["number"], facts.values["n"]) == ("8", "8")
    assert facts.values["size_gap"].startswith(f"{100 * abs(in_a_tree - 0.48):.1f} ")
    plant_arena(pairs=3, many={**MANY, ("pleas_tree", 1.0, "none"): in_a_tree})
    assert arena_record.in_pairs("mine").outcome == "not measured", "of so few there is no interval"
    plant_arena()
    assert arena_record.in_pairs("mine").outcome == "not measured"


def test_without_such_networks_there_is_no_record():
    plant_arena(nets=("mlp",), elsewhere={})
    assert arena_record.record("mine").outcome == "not measured"
    # Nor where they were merged by other methods alone.
    kind = {
        "setting": "digits many 4", "tasks": "whole", "parents": 4, "images": 9, "epochs": 5, "dataset": "digits",
        "architecture": "vgg11", "width": 16, "subset": "all", "l1": 0.0,
    }  # fmt: skip
    plant("mine", {"entries": pd.DataFrame(planted(kind, "weights", 1.0, "none", 0.2, 1))}, "arena")
    assert arena_record.record("mine").outcome == "not measured"
