"""The claims as they are decided on what the book shows, and how many have which verdict."""

import pytest
from planting import TREE_WINS, plant_accuracy

from lab.report.claims import NOT_RUN, stated_claims
from lab.report.verdicts import shown_claims, tally


@pytest.fixture(autouse=True)
def own_results(tmp_path, monkeypatch):
    monkeypatch.setenv("REBASIN_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("REBASIN_RUN", "mine")


def test_verdicts_are_counted():
    plant_accuracy("mine", TREE_WINS, 8)
    verdicts = [decided.verdict for decided in shown_claims()]
    facts = tally()
    assert facts.outcome == NOT_RUN, "most claims need other notebooks"
    assert facts.values["all"] == str(len(verdicts))
    assert int(facts.values["replicated"]) == verdicts.count("replicated") > 1


def test_conditions_are_known_by_ids_of_their_own():
    for stated in stated_claims():
        ids = [rule["id"] for rule in stated["conditions"]]
        assert len(set(ids)) == len(ids), stated["id"]
