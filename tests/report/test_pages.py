"""The pages of the book: plain Markdown that every reader can reach, with no measured number typed into it."""

import re

import pytest
import yaml

from lab.bookkeeping.code import ROOT
from lab.report.claims import stated_claims
from lab.report.verdicts import ZERO

PAGES = sorted(path.relative_to(ROOT / "book").with_suffix("").as_posix() for path in (ROOT / "book").rglob("*.md"))
# The sizes of merges that rules are about.
TERMS = [term for claim in stated_claims() for rule in claim["conditions"] for term in rule["contrast"]]
SIZES = {f"{term['size']:g}" for term in TERMS if "size" in term}
# Constants of the code, and nothing that was measured: the confidence level, what counts as zero, the oldest Python.
ALLOWED = {"95 %", *map(str, ZERO.values()), "3.11", *SIZES}


def source(page):
    return (ROOT / "book" / f"{page}.md").read_text()


def prose(page):
    """What a page says: no code, formulas or inline code; of directives their words, but not names and options."""
    text = re.sub(r"\A---\n.*?\n---\n", "", source(page), flags=re.DOTALL)
    text = re.sub(r"^```(?:\{code-cell\}|\{math\}|\{eval-rst\}|\w*$).*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^\$\$$.*?^\$\$$", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^:\w[\w-]*:.*$|^(?:```|:::+)\{.*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\]\(https://[^)\s]*\)", "]", text)  # where a link leads
    return re.sub(r"`[^`\n]*`|\$[^$\n]*\$", "", text)


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("mark", [r"\A---\n", r"\{code-cell\}", r"\{glue:", r"\{tab-set\}", r"\{tab-item\}"])
def test_a_page_has_no_front_matter_kernel_or_tabs(page, mark):
    assert not re.search(mark, source(page))


@pytest.mark.parametrize("page", PAGES)
def test_no_measured_number_is_typed_into_a_page(page):
    text = prose(page).replace("\n", " ")
    typed = re.findall(r"\d+[.,]\d+(?: ?%)?|\d+ ?(?:%|percent\b|points\b|nats\b)", text)
    assert set(typed) <= ALLOWED, typed


def test_words_of_directives_are_prose_and_their_options_are_not(tmp_path, monkeypatch):
    page = """
:::{finding} many.five
:when: lower, by 45 %
It falls by {fall} %, and not by 12.5 points.
:::

```{result-figure} many.five
:alt: 3.5
A caption of 4 nats.
```

```python
lam = 0.5
```
"""
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "own.md").write_text(page)
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    text = prose("own")
    assert "12.5 points" in text and "4 nats" in text
    assert not any(part in text for part in ("45 %", "3.5", "0.5"))


def test_every_page_of_the_contents_is_there():
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text())
    pages = [contents["root"], *(chapter["file"] for part in contents["parts"] for chapter in part["chapters"])]
    for page in pages:
        assert [suffix for suffix in (".md", ".ipynb") if (ROOT / f"{page}{suffix}").is_file()], page
    assert len(pages) == len(set(pages))
    assert {f"book/{page}" for page in PAGES} <= set(pages), "a page that no reader can reach"


@pytest.mark.parametrize("page", PAGES)
def test_no_line_begins_with_a_percent_sign(page):
    """MyST takes such a line for a comment, and leaves it out without a word."""
    assert not re.findall(r"^\s*%.*", source(page), re.MULTILINE)


@pytest.mark.parametrize("page", [page for page in PAGES if page != "reproduce"])
def test_before_its_first_section_a_page_has_no_shell_command(page):
    lead = re.split(r"^## ", source(page), maxsplit=1, flags=re.MULTILINE)[0]
    assert not re.search(r"python -m|papermill|^make |`make ", lead, re.MULTILINE)


def test_the_bibliography_names_papers_as_the_text_cites_them(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "book" / "_ext")
    from author_year import AuthorYear
    from pybtex.database import parse_file

    entries = parse_file(ROOT / "book" / "references.bib").entries
    labels = dict(zip(entries, AuthorYear().format_labels(entries.values()), strict=True))
    assert labels["franke2025hierarchical"] == "Franke et al., 2025"
    assert len(set(labels.values())) == len(labels), "two papers that readers could not tell apart"
    styles = yaml.safe_load((ROOT / "_config.yml").read_text())["sphinx"]["config"]
    assert styles["bibtex_reference_style"] == "author_year" and styles["bibtex_default_style"] == "author_year_labels"


def test_the_page_on_attacks_says_how_strong_those_of_the_shown_run_were():
    said = " ".join(source("robustness").split())
    for setting in ("parameter}`attack steps", "parameter}`attack restarts", "value}`attacks.images claims"):
        assert f"{{{setting}`" in said
    # As lab.measures.attacks has it, which tests/lab/test_attacks.py checks.
    assert "A PGD step is two and a half times the radius over the number of steps long" in said


@pytest.mark.parametrize("page", ["index", "reproduce"])
def test_the_bibtex_entry_says_what_the_citation_file_says(page):
    (entry,) = re.findall(r"```bibtex\n(.*?)```", source(page), re.DOTALL)
    fields = {
        name: " ".join(value.strip("{}").split())
        for name, value in re.findall(r"(\w+) = (\{.*?\}),\n", entry, re.DOTALL)
    }
    stated = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert fields == {
        "author": stated["authors"][0]["name"],
        "title": stated["title"],
        "year": str(stated["date-released"].year),
        "version": stated["version"],
    }
