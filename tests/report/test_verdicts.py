"""Verdicts in the book: each claim with its effect, its bound and how many networks it rests on."""

import re

import pytest
from planting import REGULAR, ROBUST, TREE_WINS, plant_accuracy, plant_attack, plant_regularisation

from lab.report.claims import NOT_RUN, stated_claims
from lab.report.verdicts import claim, claims_table, formulas, tally
from lab.report.words import points


@pytest.fixture(autouse=True)
def own_results(tmp_path, monkeypatch):
    monkeypatch.setenv("REBASIN_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("REBASIN_RUN", "mine")


def test_formulas_of_claims_are_set():
    assert formulas("$2^n$ models in $n$ stages") == "2<sup><em>n</em></sup> models in <em>n</em> stages"
    shown = " ".join(claims_table()["claim"])
    assert "2<sup><em>n</em></sup> models" in shown and not re.search(r"[$^]", shown)


def test_before_any_run_no_claim_has_a_verdict():
    table = claims_table()
    assert list(table[""]) == [stated["id"] for stated in stated_claims()]
    assert set(table["verdict"]) == {NOT_RUN}
    assert list(table["effect"]) == [f"<small>{stated['statistic']}</small>" for stated in stated_claims()]


def test_verdicts_are_counted():
    plant_accuracy("mine", TREE_WINS, 8)
    verdicts = list(claims_table()["verdict"])
    facts = tally()
    assert facts.outcome == NOT_RUN, "most claims need other notebooks"
    assert facts.values["all"] == str(len(verdicts))
    assert int(facts.values["replicated"]) == verdicts.count("<strong>replicated</strong>") > 1


def test_a_verdict_stands_beside_its_effect_its_bound_and_n():
    plant_accuracy("mine", TREE_WINS, 8)
    table = claims_table(["H1", "H3"]).set_index("")
    assert list(table.index) == ["H1", "H3"]
    assert set(table["verdict"]) == {"<strong>replicated</strong>"}
    effect = points(claim("mine", "H3").condition("at_8").effect, signed=True)
    expected = f"drop at 8 leaves above 1 point: {effect} points, to lie above 1, n = 8: <em>replicated</em>"
    assert table.loc["H3", "effect"] == expected


def test_a_claim_that_holds_in_part_says_in_how_many_of_its_conditions():
    plant_accuracy("mine", TREE_WINS | {("many", 4): 0.55}, 8)
    verdicts = claims_table().set_index("")["verdict"]
    assert verdicts["H2"] == "<strong>partly</strong> <small>(1 of 2 conditions)</small>"


def test_too_few_networks_are_called_so_with_how_many_are_needed():
    plant_accuracy("mine", TREE_WINS, 7)
    table = claims_table(["H3"]).set_index("")
    assert table.loc["H3", "verdict"] == "<strong>too few</strong>"
    assert table.loc["H3", "effect"].endswith(", to lie above 1, n = 7: <em>too few</em>, 8 are needed")


def test_what_is_decisive_and_what_is_in_percent_is_said():
    plant_attack("mine", ROBUST | {("early_stopped", 8): 0.9}, 8)
    plant_regularisation("mine", REGULAR, 8, noise=0)
    table = claims_table().set_index("")
    assert table.loc["H4", "verdict"] == "<strong>not replicated</strong>"
    effects = table.loc["H4", "effect"].split("<br>")
    assert ["<small>(decisive)</small>" in effect for effect in effects] == [False, False, True, True, False]
    expected = r"above unmerged networks of its accuracy at 2/255 <small>\(decisive\)</small>: −\d+\.\d \[.*\] points, "
    assert re.match(expected + "to lie above 0, n = 8: <em>not replicated</em>$", effects[2])
    expected = "norm below its leaves': +40.0 [+40.0, +40.0] %, to lie above 0, n = 8: <em>replicated</em>"
    assert table.loc["H6", "effect"].split("<br>")[0] == expected
    assert set(table["verdict"].drop(["H4", "H6"])) == {NOT_RUN}


def test_each_claim_is_decided_on_the_run_that_the_book_shows_of_its_notebook(monkeypatch):
    monkeypatch.delenv("REBASIN_RUN")
    plant_accuracy("cpu", TREE_WINS, 8)
    plant_regularisation("smoke", REGULAR, 8)
    verdicts = claims_table(["H1", "H6"]).set_index("")["verdict"]
    assert verdicts["H1"] == "<strong>replicated</strong>" and verdicts["H6"] != NOT_RUN


def test_conditions_are_known_by_ids_of_their_own():
    for stated in stated_claims():
        ids = [rule["id"] for rule in stated["conditions"]]
        assert len(set(ids)) == len(ids), stated["id"]
