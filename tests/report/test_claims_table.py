"""The claims in the book: each with its verdict, its effects, their bounds and how many networks they rest on."""

import html
import re

import pandas as pd
import pytest
from planting import REGULAR, ROBUST, TREE_WINS, plant, plant_accuracy, plant_attack, plant_regularisation

from lab.bookkeeping import results
from lab.report.claims import NOT_RUN, stated_claims
from lab.report.claims_table import claims_frame, claims_table, formulas
from lab.report.statistics import holm
from lab.report.tables import with_half_width
from lab.report.verdicts import after_correction, claim, corrected_p, shown_claims
from lab.report.words import points


@pytest.fixture(autouse=True)
def own_results(tmp_path, monkeypatch):
    monkeypatch.setenv("REBASIN_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("REBASIN_RUN", "mine")


def shown(ids=None):
    """What stands in the cells of each claim, by its id: words on the claim, the verdict, and each thing measured."""
    rows = {}
    for row in re.findall(r"<tr data-.*?</tr>", claims_table(ids), re.DOTALL):
        claimed, verdict, measured = re.findall(r"<td>(.*?)</td>", row, re.DOTALL)
        parts = re.findall(r"<li>(.*?)</li>", measured) or [measured]
        rows[re.search(r'"claim-id">(\w+)<', claimed)[1]] = (said(claimed), said(verdict), list(map(said, parts)))
    return rows


def said(text):
    return " ".join(html.unescape(re.sub(r"<[^>]*>", "", text)).split())


def test_formulas_of_claims_are_set():
    assert formulas("$2^n$ models in $n$ stages") == "2<sup><em>n</em></sup> models in <em>n</em> stages"
    table = claims_table()
    assert "2<sup><em>n</em></sup> models" in table and not re.search(r"[$^]", re.sub(r'href=".*?"', "", table))


def test_before_any_run_no_claim_has_a_verdict():
    rows = shown()
    statistics = {stated["id"]: said(stated["statistic"]) for stated in stated_claims()}
    assert {verdict for _, verdict, _ in rows.values()} == {f"… {NOT_RUN}"}
    assert {name: measured for name, (_, _, (measured,)) in rows.items()} == statistics


def test_a_verdict_stands_beside_its_effect_its_bound_and_n():
    plant_accuracy("mine", TREE_WINS, 8)
    rows = shown(["H1", "H3"])
    assert list(rows) == ["H1", "H3"]
    assert {verdict for _, verdict, _ in rows.values()} == {"✓ replicated"}
    effect = with_half_width(points(claim("mine", "H3").condition("at_8").effect, signed=True))
    assert "±" in effect
    assert rows["H3"][2] == [f"drop at 8 leaves above 1 point {effect} points above 1, n = 8, p < 0.001 ✓ replicated"]


def test_a_level_has_no_sign_and_a_share_is_in_percent():
    trials = [("mlp", metric, node, value) for metric, value in (("recovered", 1), ("sweeps", 3)) for node in range(8)]
    recovered = pd.DataFrame(trials, columns=["network", "metric", "node", "value"])
    plant("mine", {"recovered": recovered.assign(n_leaves=1)}, "planted")
    exact, short = shown(["G2"])["G2"][2]
    assert exact == "recovered exactly (decisive) 100.0 [63.1, 100.0] % above 99, n = 8, 368 are needed ? too few"
    assert short.startswith("in 4 sweeps at most 3.0 ± 0.0 sweeps below 4.5, n = 8")


def test_a_claim_that_holds_in_part_says_in_how_many_of_its_conditions():
    plant_accuracy("mine", TREE_WINS | {("many", 4): 0.55}, 8)
    assert shown()["H2"][1] == "◐ partly (1 of 2 conditions)"


def test_too_few_networks_are_called_so_with_how_many_are_needed():
    plant_accuracy("mine", TREE_WINS, 7)
    _, verdict, (measured,) = shown(["H3"])["H3"]
    assert verdict == "? too few" and measured.endswith("above 1, n = 7, 8 are needed ? too few")


def test_p_is_corrected_for_all_conditions_of_the_table_and_decides_nothing():
    plant_accuracy("mine", TREE_WINS, 8)
    by_itself = {(one.id, each.id): each.p for one in shown_claims() for each in one.conditions}
    corrected = corrected_p(shown_claims())
    assert corrected == dict(zip(by_itself, holm(list(by_itself.values())), strict=True)) and len(corrected) == 4
    facts = after_correction()
    assert facts.outcome == "none" and facts.values == {"decided": "4", "doubtful": "0"}


def test_what_the_paper_reports_stands_beside_the_claim():
    assert shown()["G2"][0].endswith("In the paper: 3 to 4 sweeps")
    assert all(stated["reported"] for stated in stated_claims())


def test_claims_that_are_decided_again_have_a_table_of_their_own():
    assert re.findall(r'"claim-id">(\w+)<', claims_table(["H2", "H6"], "again")) == ["H2", "H6"]
    assert "norm falls from 16 to 32" in {rule["name"] for rule in results.stated()["again"][-1]["conditions"]}


def test_what_is_decisive_and_what_is_in_percent_is_said():
    plant_attack("mine", ROBUST | {("early_stopped", 8): 0.9}, 8)
    plant_regularisation("mine", REGULAR, 8, noise=0)
    rows = shown()
    assert rows["H4"][1] == "✗ not replicated"
    assert ["(decisive)" in measured for measured in rows["H4"][2]] == [False, False, True, True, False]
    expected = r"above unmerged networks of its accuracy at 2/255 \(decisive\) −\d+\.\d.* points "
    assert re.match(expected + "above 0, n = 8, p < 0.001 ✗ not replicated$", rows["H4"][2][2])
    assert rows["H6"][2][0] == "norm below its leaves' +40.0 ± 0.0 % above 0, n = 8, p < 0.001 ✓ replicated"
    assert {row[1] for name, row in rows.items() if name not in ("H4", "H6")} == {f"… {NOT_RUN}"}


def test_each_claim_is_decided_on_the_run_that_the_book_shows_of_its_notebook(monkeypatch):
    monkeypatch.delenv("REBASIN_RUN")
    plant_accuracy("cpu", TREE_WINS, 8)
    plant_regularisation("smoke", REGULAR, 8)
    rows = shown(["H1", "H6"])
    assert rows["H1"][1] == "✓ replicated" and rows["H6"][1] != f"… {NOT_RUN}"


def test_only_all_claims_have_what_a_reader_chooses_by():
    assert "data-filtered" in claims_table() and "data-filtered" not in claims_table(["H1"])
    papers = set(re.findall(r'data-paper="(.*?)"', claims_table()))
    assert papers == {stated["paper"] for stated in stated_claims()} and len(papers) == 6


def test_for_machines_each_condition_is_a_row():
    plant_accuracy("mine", TREE_WINS, 8)
    claims = shown_claims()
    frame = claims_frame(claims, corrected_p(claims))
    assert len(frame) == sum(len(claim.conditions) + len(claim.missing) for claim in claims)
    row = frame[frame["claim"] == "H3"].iloc[0]
    effect = claim("mine", "H3").condition("at_8").effect
    assert float(row["effect"]) == pytest.approx(effect.mean, rel=1e-5)
    assert float(row["low"]) == pytest.approx(effect.low, rel=1e-5)
    assert row["must lie"] == "above 1" and row["condition's verdict"] == "replicated"
