"""The book says what the results say: its sentences turn with them, and no measured number is typed into its prose."""

import base64
import html
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
import yaml
from IPython.display import HTML
from planting import REGULAR, ROBUST, TREE_WINS, plant_accuracy, plant_attack, plant_regularisation

from lab.bookkeeping import results
from lab.bookkeeping.code import ROOT
from lab.report import build as book
from lab.report import chapter, words
from lab.report import tabs as report
from lab.report.claims import NOT_RUN, stated_claims
from lab.report.draw import hierarchy_scheme, house_style, themed
from lab.report.statistics import Interval

# The confidence level is a constant of the code (rebasin/lab/statistics.py), and nothing that was measured.
ALLOWED = {"95 %"}


@pytest.fixture(autouse=True)
def own_results(tmp_path, monkeypatch):
    monkeypatch.setenv("REBASIN_RESULTS", str(tmp_path / "results"))
    monkeypatch.delenv("REBASIN_RUN", raising=False)


def prose(page):
    """A chapter's Markdown without its front matter, its code cells, and what is set in code or in formulas."""
    text = (ROOT / "book" / f"{page}.md").read_text()
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    text = re.sub(r"^```\{code-cell\}.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`|\$[^$\n]*\$", "", text)


PAGES = [
    "index",
    "hierarchy",
    "conditions",
    "robustness",
    "perturbations",
    "regularisation",
    "counterexample",
    "mnist",
    "planted",
    "many",
    "comparison",
    "barriers",
    "disagreement",
]


@pytest.mark.parametrize("page", PAGES)
def test_no_measured_number_is_typed_into_a_chapter(page):
    found = re.findall(r"\d+[.,]\d+(?: ?%)?|\d+ ?(?:%|percent\b|points\b|nats\b)", prose(page).replace("\n", " "))
    assert set(found) <= ALLOWED, found
    assert len(prose(page)) > 200


def test_every_page_of_the_contents_is_there():
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text())
    pages = [contents["root"], *(chapter["file"] for part in contents["parts"] for chapter in part["chapters"])]
    for page in pages:
        assert [suffix for suffix in (".md", ".ipynb") if (ROOT / f"{page}{suffix}").is_file()], page
    assert len(pages) == len(set(pages))
    written = {path.relative_to(ROOT).with_suffix("").as_posix() for path in (ROOT / "book").glob("*.md")}
    assert written <= set(pages), "a page that no reader can reach"


def test_the_verdicts_of_no_run_are_all_open():
    table = chapter.verdict_table(None)
    assert list(table[""]) == [claim["id"] for claim in stated_claims()]
    assert set(table["verdict"]) == {NOT_RUN}
    assert list(table["effect"]) == [f"<small>{claim['statistic']}</small>" for claim in stated_claims()]


def test_the_verdicts_of_a_run_tell_effect_bound_and_n():
    plant_accuracy("mine", TREE_WINS, 8)
    table = chapter.verdict_table("mine", ("H1", "H3")).set_index("")
    assert list(table.index) == ["H1", "H3"]
    assert set(table["verdict"]) == {"<strong>replicated</strong>"}
    effect = chapter.decide("mine")[2].conditions[0].effect
    points = words.points(effect, signed=True)
    told = f"drop at 8 leaves above 1 point: {points} points, to lie above 1, n = 8: <em>replicated</em>"
    assert table.loc["H3", "effect"] == told


def test_a_parameter_is_that_of_the_run_that_is_spoken_of(monkeypatch):
    monkeypatch.setenv("REBASIN_RUN", "mine")
    assert report.parameter("accuracy", "barrier_points") == "no", "there is no run yet"
    plant_accuracy("mine", TREE_WINS, 8)
    assert report.parameter("accuracy", "barrier_points") == str(
        results.provenance("mine", "accuracy")["parameters"]["barrier_points"]
    )


def test_a_claim_that_holds_in_part_tells_in_how_many_of_its_conditions():
    plant_accuracy("mine", TREE_WINS | {("merge_many", 4): 0.55}, 8)
    verdicts = chapter.verdict_table("mine").set_index("")["verdict"]
    assert verdicts["H2"] == "<strong>partly</strong> <small>(1 of 2 conditions)</small>"


def test_the_verdicts_of_a_run_tell_what_is_decisive_and_what_is_in_percent():
    plant_attack("mine", ROBUST | {("early_stopped", 8): 0.9}, 8)
    plant_regularisation("mine", REGULAR, 8, noise=0)
    table = chapter.verdict_table("mine").set_index("")
    assert table.loc["H4", "verdict"] == "<strong>not replicated</strong>"
    effects = table.loc["H4", "effect"].split("<br>")
    assert ["<small>(decisive)</small>" in effect for effect in effects] == [False, False, True, True, False]
    told = r"above unmerged networks of its accuracy at 2/255 <small>\(decisive\)</small>: −\d+\.\d \[.*\] points, "
    assert re.match(told + "to lie above 0, n = 8: <em>not replicated</em>$", effects[2])
    told = "norm below its leaves': +40.0 [+40.0, +40.0] %, to lie above 0, n = 8: <em>replicated</em>"
    assert table.loc["H6", "effect"].split("<br>")[0] == told
    assert set(table["verdict"].drop(["H4", "H6"])) == {NOT_RUN}


def parts(shown):
    """Label and content of each tab, and which of them is open."""
    labels = re.findall(r'<label class="sd-tab-label" for="[^"]*">([^<]*)</label>', shown.data)
    contents = shown.data.split('<div class="sd-tab-content docutils">')[1:]
    checked = ["checked" in tag for tag in re.findall(r"<input[^>]*>", shown.data)]
    return labels, contents, checked


def show(run):
    return HTML(f"<p>shown of {run}</p>")


def test_there_is_a_tab_for_each_run_with_what_it_was_measured_on():
    for run in ("smoke", "gpu", "other", "cpu"):
        plant_accuracy(run, TREE_WINS, 1)
    labels, contents, checked = parts(report.tabs("accuracy", show))
    assert labels == ["gpu", "cpu", "smoke"], "the largest preset first; runs of somebody's own only when asked for"
    assert checked == [True, False, False]
    made = results.provenance("cpu", "accuracy")
    for run, content in zip(labels, contents, strict=True):
        assert f"<p>shown of {run}</p>" in content
        measured = re.search(r'<p class="measured-on">Measured on: (.*)</p>', content)[1]
        for fact in (f"run {run}", "8 MLPs, width 64, 20 epochs", made["date"], (made["commit"] or "no commit")[:10]):
            assert fact in measured
        assert html.escape(f"scikit-learn's digits ({made['dataset']['fingerprint']})") in measured
        assert '<a href="../notebooks/accuracy.html">notebooks/accuracy.ipynb</a>' in measured
    inputs = re.findall(r'id="([^"]*)"', report.tabs("accuracy", show).data)
    assert len(inputs) == len(set(inputs)) == 3


@pytest.mark.parametrize("run", ["cpu", "gpu"])
def test_a_reference_run_from_uncommitted_code_is_not_shown(run):
    plant_accuracy(run, TREE_WINS, 1)
    path = results.results_folder() / run / "accuracy.json"
    assert report.runs("accuracy") == [run]
    path.write_text(path.read_text().replace('"clean": true', '"clean": false'))
    assert report.runs("accuracy") == []


def test_a_table_of_other_code_or_other_rules_says_so(monkeypatch):
    plant_accuracy("smoke", TREE_WINS, 1)
    assert "changed since" not in report.measured_on("smoke", "accuracy")
    with monkeypatch.context() as patch:
        patch.setattr(results, "step_key", lambda name, parameters: "another")
        assert "the code has changed since" in report.measured_on("smoke", "accuracy")
    with monkeypatch.context() as patch:
        patch.setattr(results, "claims_digest", lambda name: "another")
        assert "the rules of the claims have changed since" in report.measured_on("smoke", "accuracy")


def test_a_table_from_uncommitted_code_says_so():
    plant_accuracy("smoke", TREE_WINS, 1)
    path = results.results_folder() / "smoke" / "accuracy.json"
    for state in ("true", "false"):
        path.write_text(re.sub('"clean": (true|false)', f'"clean": {state}', path.read_text()))
        assert ("with uncommitted changes" in report.measured_on("smoke", "accuracy")) == (state == "false")


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ("", ["cpu", "smoke"]),
        ("mine", ["mine", "cpu", "smoke"]),
        ("smoke", ["smoke", "cpu"]),
        ("never", ["cpu", "smoke"]),
    ],
)
def test_a_run_of_ones_own_comes_first_where_it_is_asked_for(monkeypatch, own, expected):
    for run in ("smoke", "cpu", "mine"):
        plant_accuracy(run, TREE_WINS, 1)
    monkeypatch.setenv("REBASIN_RUN", own)
    assert report.runs("accuracy") == expected
    assert report.shown_run("accuracy") == expected[0]
    assert parts(report.tabs("accuracy", show))[0] == expected


def test_a_chapter_without_any_run_says_how_to_make_one():
    with pytest.raises(
        FileNotFoundError, match="no run holds the tables of notebooks/accuracy.ipynb: `make reproduce`"
    ):
        report.shown_run("accuracy")


def test_a_book_of_a_run_that_is_not_there_is_refused(monkeypatch):
    plant_accuracy("smoke", TREE_WINS, 1)
    monkeypatch.setenv("REBASIN_RUN", "mien")
    with pytest.raises(SystemExit, match="rebasin: there is no run 'mien' under results/: there are smoke"):
        book.main()


@pytest.mark.parametrize(
    ("value", "signed", "text"),
    [
        (Interval(45.678, 44.91, 46.54, 8), False, "45.7 [44.9, 46.5]"),
        (Interval(1.24, -0.31, 2.79, 8), True, "+1.2 [−0.3, +2.8]"),
        (Interval(-8.55, -9.0, -8.1, 8), False, "−8.6 [−9.0, −8.1]"),
        (Interval(45.678, np.nan, np.nan, 3), False, "45.7"),
        (Interval(-1.24, np.nan, np.nan, 1), True, "−1.2"),
    ],
)
def test_an_interval_is_written_with_a_true_minus_and_alone_where_there_is_none(value, signed, text):
    assert words.points(value, signed) == text


def svgs(shown):
    return [base64.b64decode(part) for part in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", shown.data)]


def draw_something():
    figure, axes = plt.subplots()
    axes.plot([0, 1], label="line")
    axes.legend()
    return figure


def test_a_figure_is_drawn_for_light_and_for_dark_pages():
    shown = themed(draw_something, "a line")
    light, dark = svgs(shown)
    assert re.findall(r'<img class="([^"]*)"', shown.data) == ["only-light", "only-dark"]
    assert b"#1f2328" in light and b"#1f2328" not in dark
    assert b"#e6e6e6" in dark and b"#e6e6e6" not in light
    assert plt.get_fignums() == [], "a figure that stays open is kept in memory"


def test_the_tree_of_eight_is_drawn_for_both_pages():
    assert len(svgs(themed(hierarchy_scheme, "alt"))) == 2
    assert plt.get_fignums() == []


def test_what_a_figure_shows_is_told_in_words_whatever_they_are():
    alt = 'a "line" of <b> & x > 0'
    shown = themed(draw_something, alt).data
    assert shown.count(f'alt="{html.escape(alt)}"') == 2
    assert alt not in shown


def test_the_house_style_ends_with_its_block():
    before = dict(plt.rcParams)
    with house_style(dark=True):
        assert plt.rcParams["text.color"] == "#E6E6E6"
    assert dict(plt.rcParams) == before
