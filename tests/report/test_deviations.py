"""Deviations from the plan: the first run beside the second, and what the page says of history, held against git."""

import io
import json
import re
import subprocess

import pandas as pd
import pytest
import yaml
from planting import TREE_LOSES, TREE_WINS, plant_accuracy

from lab.bookkeeping import results
from lab.bookkeeping.code import ROOT
from lab.report import deviations, page
from lab.report.claims import decide
from lab.report.words import points

NO_MANY = {kind: share for kind, share in TREE_WINS.items() if kind[0] != "many"}
PAGE = " ".join((ROOT / "book" / "deviations.md").read_text().split())
# When the rules were committed: of these claims, in this commit.
RULES = [
    ("f5fc6d8", ("H1", "H2", "H3")),
    ("87e6711", ("H4", "H5", "H6")),
    ("362a5c7", ("G",)),
    ("6ae61f0", ("P",)),
    ("77d73ed", ("T",)),
    ("1f55d7f", ("N",)),
]
# Since then these claims have got further conditions, after those that they had.
BEFORE_FURTHER_ONES = ("3ff3638", ("T1", "T2", "T3", "T4"))
# What things were called then, and are called now.
RENAMED = {"tree": "hierarchy", "merge_many": "many", "naive": "mean"}


@pytest.fixture
def own_results(tmp_path, monkeypatch):
    monkeypatch.setenv("REBASIN_RESULTS", str(tmp_path / "results"))


@pytest.fixture
def committed(monkeypatch):
    monkeypatch.delenv("REBASIN_RESULTS", raising=False)
    monkeypatch.delenv("REBASIN_RUN", raising=False)


def git(*arguments):
    """What git says; the test is skipped where the history is not at hand, as in an unpacked archive."""
    done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True)
    if done.returncode:
        pytest.skip("there is no history here")
    return done.stdout


def plant_both(first, second, first_trees=8):
    plant_accuracy("first", first, first_trees)
    plant_accuracy("mine", second, 8)


def test_two_runs_with_the_same_verdicts_say_so(own_results):
    plant_both(TREE_WINS, TREE_WINS | {("many", 8): 0.5})
    facts = deviations.two_runs("mine")
    assert facts.outcome == "all the same, H2 higher" and facts.values["n"] == "8"
    for run, name in (("first", "first"), ("mine", "second")):
        (decided,) = decide(run, ["H2"])
        assert facts.values[f"h2_grows_{name}"] == points(decided.condition("grows").effect)
    assert facts.values["h2_at_8_first"] != facts.values["h2_at_8_second"]


@pytest.mark.parametrize(("first", "trees"), [(TREE_LOSES, 8), (TREE_WINS, 7)], ids=["other side", "too few"])
def test_a_verdict_that_differs_is_another_outcome(own_results, first, trees):
    plant_both(first, TREE_WINS, trees)
    facts = deviations.two_runs("mine")
    assert facts.outcome.startswith("not all the same, H2 ") and facts.values["n"] == str(trees)


def test_in_which_run_the_hierarchy_stands_better_is_told(own_results):
    plant_both(TREE_WINS | {("many", 8): 0.5}, TREE_WINS)
    assert deviations.two_runs("mine").outcome == "all the same, H2 not higher"


def test_a_condition_that_differs_counts_where_the_claim_does_not(own_results):
    plant_both(TREE_LOSES, TREE_LOSES | {("hierarchy", 8): 0.75})
    (first,), (second,) = decide("first", ["H2"]), decide("mine", ["H2"])
    assert first.verdict == second.verdict and first.conditions[1].verdict != second.conditions[1].verdict
    assert deviations.two_runs("mine").outcome.startswith("not all the same")


def test_the_table_has_both_runs_condition_by_condition(own_results):
    plant_both(TREE_LOSES, TREE_WINS, 7)
    table = deviations.two_runs_table("mine").set_index("claim")
    assert list(table.index) == [
        "H1, 8 leaves", "H2, better at 8 leaves", "H2, gap grows from 4 to 8", "H3, drop at 8 leaves above 1 point"
    ]  # fmt: skip
    row = table.loc["H2, better at 8 leaves"]
    assert row["first run (points)"].startswith("−") and row["second run (points)"].startswith("+")
    assert (row["n"], row["must lie"]) == ("7 and 8", "above 0")
    assert (row["first verdict"], row["second verdict"]) == ("too few", "replicated")


def test_what_one_run_did_not_measure_is_not_compared(own_results):
    plant_both(NO_MANY, TREE_WINS)
    assert deviations.two_runs("mine").outcome == "not measured"
    assert [claim[:2] for claim in deviations.two_runs_table("mine")["claim"]] == ["H1", "H3"]


def test_without_the_first_run_nothing_is_compared(own_results):
    plant_accuracy("mine", TREE_WINS, 8)
    assert deviations.two_runs("mine").outcome == "not measured"


def test_the_first_run_is_shown_by_no_chapter_and_has_no_control(committed):
    assert deviations.FIRST not in page.runs("accuracy")
    networks = results.provenance(deviations.FIRST, "accuracy")["parameters"]["networks"]
    second = results.provenance("cpu", "accuracy")["parameters"]["networks"]
    assert {name for name in second if networks[name] != second[name]} == {"initial", "held_out"}, "as the page says"


@pytest.mark.parametrize("table", ["nodes", "images"])
def test_the_first_runs_tables_are_those_of_its_commit(committed, table):
    made = results.provenance(deviations.FIRST, "accuracy")
    commit, renamed = made["converted"]["from_commit"], made["converted"]["algorithms"]
    then = pd.read_parquet(io.BytesIO(git("show", f"{commit}:results/cpu/accuracy-{table}.parquet")))
    now = results.read(deviations.FIRST, "accuracy", table)
    pd.testing.assert_frame_equal(now, then.assign(algorithm=then["algorithm"].replace(renamed)))
    told = json.loads(git("show", f"{commit}:results/cpu/accuracy.json"))
    same = ("commit", "clean", "claims", "key", "date", "dataset", "hardware", "versions", "wall_seconds")
    assert all(made[field] == told[field] for field in same)


@pytest.mark.parametrize("chapter", ["index", "hierarchy", "robustness", "limits"])
def test_what_was_not_found_is_told_with_the_recipe_that_was_tried(committed, chapter):
    told = " ".join((ROOT / "book" / f"{chapter}.md").read_text().split())
    assert "MLPs trained for nine epochs on CIFAR-10" in told and "recipe" in told
    for notebook in ("accuracy", "attack", "perturbations"):
        networks = results.provenance("cpu", notebook)["parameters"]["networks"]
        assert (networks["architecture"], networks["epochs"], networks["dataset"]) == ("mlp", [9], "cifar10")


def test_dates_on_the_page_are_those_of_their_commits():
    told = re.findall(r"(\d\d? (?:Nov|Dec) \d\d:\d\d) \(`(\w{7})`\)", PAGE)
    assert len(told) > 20
    assert {commit for _, commit in told} == set(re.findall(r"`([0-9a-f]{7})`", PAGE)), "no commit without its date"
    for date, commit in told:
        stated = git("show", "-s", "--date=format:%d %b %H:%M", "--format=%ad", commit).decode().strip()
        assert stated.lstrip("0") == date, commit


@pytest.mark.parametrize(("commit", "ids"), RULES)
def test_no_threshold_side_measure_or_decisive_flag_was_changed_since_the_rules(commit, ids):
    before, after = claims_of(stated_in(commit), ids), claims_of(results.stated(), ids)
    assert before and before == after


def test_further_conditions_left_those_that_there_were_as_they_were():
    commit, ids = BEFORE_FURTHER_ONES
    before, after = claims_of(stated_in(commit), ids), claims_of(results.stated(), ids)
    assert before.keys() == after.keys() and before != after
    for name, rules in before.items():
        assert after[name][: len(rules)] == rules, name


def stated_in(commit):
    """book/claims.yml as it was in a commit; at first it was a plain list."""
    then = yaml.safe_load(git("show", f"{commit}:book/claims.yml"))
    return then if isinstance(then, dict) else {"claims": then}


def claims_of(stated, ids):
    """What decides each claim whose id begins so, rule by rule."""
    return {
        claim["id"]: [what_decides(rule) for rule in claim["conditions"]]
        for claim in stated["claims"]
        if claim["id"].startswith(ids)
    }


def what_decides(rule):
    """What of a rule decides; its terms in the names of today."""
    parts = {name: rule.get(name) for name in ("above", "below", "epsilon", "block", "decisive")}
    return parts | {"measure": rule.get("measure", "accuracy"), "terms": list(map(words_of, rule["contrast"]))}


def words_of(term):
    return sorted(RENAMED.get(value, str(value)) for value in term.values())
