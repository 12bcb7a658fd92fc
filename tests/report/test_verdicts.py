"""The claims as they are decided on what the book shows, and how many have which verdict."""

from types import SimpleNamespace

import pytest
from planting import TREE_WINS, plant_accuracy

from lab.report.claims import NOT_RUN, stated_claims
from lab.report.facts import Facts
from lab.report.verdicts import once_more, shown_claims, tally


@pytest.fixture(autouse=True)
def own_results(tmp_path, monkeypatch):
    monkeypatch.setenv("REBASIN_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("REBASIN_RUN", "mine")


def test_verdicts_are_counted():
    plant_accuracy("mine", TREE_WINS, 8)
    claims = shown_claims()
    verdicts = [decided.verdict for decided in claims if not decided.ours]
    facts = tally()
    assert facts.outcome == NOT_RUN, "most claims need other notebooks"
    assert facts.values["all"] == str(len(verdicts)) and facts.values["ours"] == str(len(claims) - len(verdicts)) == "4"
    assert int(facts.values["replicated"]) == verdicts.count("replicated") > 1


def test_what_changes_once_claims_are_decided_again_is_named(monkeypatch):
    def decided(ids=None, rules="claims"):
        verdicts = {"H1": "replicated", "H2": "partly" if rules == "again" else "not replicated"}
        return [SimpleNamespace(id=name, verdict=verdict) for name, verdict in verdicts.items()]

    monkeypatch.setattr("lab.report.verdicts.shown_claims", decided)
    assert once_more() == Facts("H2 partly", {"same": "1", "all": "2"})
    monkeypatch.setattr("lab.report.verdicts.shown_claims", lambda ids=None, rules="claims": decided())
    assert once_more().outcome == "all the same"


def test_conditions_are_known_by_ids_of_their_own():
    for stated in stated_claims():
        ids = [rule["id"] for rule in stated["conditions"]]
        assert len(set(ids)) == len(ids), stated["id"]
