"""The form of a chapter: it answers first, in few numbers, and ends with limits, how to run it and what comes next."""

import re

import pytest
import yaml

from lab.bookkeeping.code import ROOT
from lab.report.claims import stated_claims
from lab.report.page import shown_run

MEASURING = ("Two networks", "Many networks", "Does it make robust")
CONTENTS = yaml.safe_load((ROOT / "_toc.yml").read_text())["parts"]
PAGES = [(part["caption"], chapter["file"]) for part in CONTENTS for chapter in part["chapters"]]
CHAPTERS = [page.removeprefix("book/") for caption, page in PAGES if caption in MEASURING]
FINDING = re.compile(r"^:::\{finding\} (\S+)\n:when: [^\n]*\n(:brief:\n)?(.*?)^:::$", re.DOTALL | re.MULTILINE)
DIRECTIVE = re.compile(r"^```\{(result-table|result-figure)\} .*?^```$", re.DOTALL | re.MULTILINE)
# A number that a reader meets: not the digits of a name, such as CIFAR-10 or ResNet50.
NUMBER = re.compile(r"(?<![\w-])[\d.]*\d")
MOST_NUMBERS = 2


@pytest.fixture(autouse=True)
def shown_results(monkeypatch):
    """The chapters' own results."""
    monkeypatch.delenv("REBASIN_RUN", raising=False)


def source(chapter):
    return (ROOT / "book" / f"{chapter}.md").read_text()


def lead(chapter):
    """What stands before the first figure."""
    return source(chapter).partition("```{result-figure}")[0]


def as_read(monkeypatch, text):
    """The findings of a text as a reader sees them, intervals in notes left out."""
    monkeypatch.syspath_prepend(ROOT / "book" / "_ext")
    from from_results import INTERVAL, SLOT, shown

    said = []
    for name, brief, sentence in FINDING.findall(text):
        function = shown(name)
        values = dict(function(*map(shown_run, function.notebooks)).values)
        for slot in SLOT.findall(sentence):
            value = INTERVAL.sub(r"\1", values[slot]) if brief else values[slot]
            sentence = sentence.replace(f"{{{slot}}}", value)
        said.append(sentence)
    return said


def sections(chapter):
    return re.findall(r"^## (.+)$", source(chapter), re.MULTILINE)


def test_the_chapters_are_those_that_measure():
    assert {"mnist", "hierarchy", "robustness"} <= set(CHAPTERS) and len(CHAPTERS) >= 10


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_asks_and_answers_at_once(monkeypatch, chapter):
    title, _, rest = lead(chapter).partition("\n")
    assert re.fullmatch(r"# .+\?", title)
    assert rest.lstrip().startswith(":::{finding}"), "its answer, which the build holds against the results"
    answer = as_read(monkeypatch, rest)[0]
    assert re.match(r"\*\*.+?\.\*\* ", answer, re.DOTALL), "the answer in a few words, in bold"


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_the_lead_of_a_chapter_has_few_numbers(monkeypatch, chapter):
    said = as_read(monkeypatch, lead(chapter))
    rest = re.sub(r"\{verdict\}`.*?`", "", FINDING.sub("", lead(chapter)))
    numbers = [number for text in [*said, rest] for number in NUMBER.findall(re.sub(r"\{\w+\}`[^`]*`", "", text))]
    assert len(numbers) <= MOST_NUMBERS, numbers


def test_numbers_are_counted_and_names_are_not():
    assert NUMBER.findall("CIFAR-10, ResNet50: 0.5 and 12") == ["0.5", "12"]


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_the_verdicts_stand_beside_the_answer_and_their_rules_below(chapter):
    beside = " ".join(re.findall(r"\{verdict\}`(?:again )?(.*?)`", lead(chapter))).split()
    below = " ".join(re.findall(r"^```\{claims\} (.*)$", source(chapter), re.MULTILINE)).split()
    assert set(beside) <= set(below) and bool(beside) == bool(below)


def test_every_claim_is_decided_in_a_chapter():
    decided = " ".join(re.findall(r"^```\{claims\} (.*)$", "\n".join(map(source, CHAPTERS)), re.MULTILINE)).split()
    assert set(decided) == {claim["id"] for claim in stated_claims()}


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_the_first_figure_says_what_it_shows(chapter):
    figures = [found for found in DIRECTIVE.finditer(source(chapter)) if found[1] == "result-figure"]
    assert "\n:finding: " in figures[0][0], "its caption begins with what was found"
    assert figures[0].start() < source(chapter).index("\n## ")


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_all_numbers_are_folded(chapter):
    for found in DIRECTIVE.finditer(source(chapter)):
        assert found[1] == "result-figure" or "\n:fold: " in found[0], found[0].partition("\n")[0]


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_has_its_parts_in_order(chapter):
    titles = sections(chapter)
    parts = ["Why ask", "How it was measured", "Limits", "Run this yourself"]
    places = [next((place for place, title in enumerate(titles) if title.startswith(part)), None) for part in parts]
    assert None not in places and places == sorted(places), titles
    assert places[0] == 0 and places[-2:] == [len(titles) - 2, len(titles) - 1]
    end = source(chapter).partition("## Run this yourself\n")[2]
    assert re.search(r"```\{run-yourself\}\n```\n\n```\{measured-on\}\n```\n\n\*\*Next:\*\* \{doc\}`\w+`", end)


def test_chapters_lead_from_one_to_the_next():
    leads_to = {chapter: re.findall(r"^\*\*Next:\*\* \{doc\}`(\w+)`", source(chapter), re.M) for chapter in CHAPTERS}
    for chapter, following in zip(CHAPTERS, CHAPTERS[1:], strict=False):
        assert leads_to[chapter] == [following], "in the order of the contents"


def test_notebooks_are_not_called_like_chapters():
    titles = {source(chapter).partition("\n")[0].lower() for chapter in CHAPTERS}
    for notebook in (page for _, page in PAGES if page.startswith("notebooks/")):
        title = re.search(r'"# (.+?)\\n"', (ROOT / f"{notebook}.ipynb").read_text())[1]
        assert title.startswith("Tables: ") and f"# {title}".lower() not in titles


def test_what_the_chapters_did_not_run_is_on_the_page_of_limits():
    limits = source("limits")
    for chapter in CHAPTERS:
        for name in re.findall(r"\{(?:finding|result-table)\} (\S+\.not_run\w*)", source(chapter)):
            assert name in limits, name
    assert "{doc}`limits`" in source("index")
