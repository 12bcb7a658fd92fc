"""How the book is found: what a page says of itself, and its search in a real browser."""

import re
import shutil
import subprocess

import pytest
from building import build_page

from lab.bookkeeping.code import ROOT

CONF = f"""
import sys
sys.path.insert(0, {str(ROOT / "book" / "_ext")!r})
extensions = ["myst_parser", "site_head"]
html_static_path = [{str(ROOT / "book" / "_static")!r}]
html_search_scorer = {str(ROOT / "book" / "_static" / "scorer.js")!r}
html_show_search_summary = False
html_title = "A book"
"""
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def build(tmp_path, monkeypatch):
    """``build(text, more)`` builds a front page with this text, and more pages: the front page, and the faults."""

    monkeypatch.delenv("REBASIN_URL", raising=False)

    def build(text, more=None, options=""):
        (tmp_path / "conf.py").write_text(CONF + options)
        for name, words in (more or {}).items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(f"---\norphan: true\n---\n\n{words}\n")
        return build_page(tmp_path, text)

    return build


def meta(page):
    return dict(re.findall(r'<meta (?:name|property)="([\w:]+)" content="(.*?)" />', page.read_text()))


def test_a_page_is_described_by_its_first_words(build):
    page, faults = build("Does it *work* for mine & yours?\n\n" + "It does, as a rule. " * 20)
    said = meta(page)
    assert not faults
    assert said["description"].startswith("Does it work for mine &amp; yours? It does, as a rule.")
    assert said["description"].endswith(" …") and len(said["description"]) < 220
    assert said["og:title"] == "A page" and said["og:site_name"] == "A book"
    assert said["og:image"] == "_static/preview.png"


def test_the_picture_of_a_published_book_has_its_whole_address(build):
    page, _ = build("Words.", options='html_baseurl = "https://example.org/book/"')
    assert meta(page)["og:image"] == "https://example.org/book/_static/preview.png"


def test_who_publishes_the_book_names_its_address_to_the_build(build, monkeypatch):
    monkeypatch.setenv("REBASIN_URL", "https://example.org/mine")
    page, _ = build("Words.")
    assert meta(page)["og:image"] == "https://example.org/mine/_static/preview.png"
    assert '<link rel="canonical" href="https://example.org/mine/index.html"' in page.read_text()


def test_the_door_says_what_the_front_page_says_and_leads_there(tmp_path):
    (tmp_path / "conf.py").write_text(CONF + 'root_doc = "book/start"\n')
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "start.md").write_text("# Can you?\n\nYes, once they are matched.\n")
    door, _ = build_page(tmp_path, "Not the front page.")
    assert 'content="0; url=book/start.html"' in door.read_text()
    assert meta(door)["og:title"] == "Can you?" and meta(door)["description"] == "Yes, once they are matched."


@pytest.mark.skipif(BROWSER is None, reason="there is no chromium here: nothing was searched for")
def test_search_has_chapters_first_and_excerpts_from_the_file_system(build, tmp_path):
    pages = {
        "book/package/lab.md": "# Robustness\n\nModules of the lab.",
        "notebooks/attack.md": "# Notebook\n\nRobustness is measured here.",
        "book/chapter.md": "# Chapter\n\nNothing here.\n\n## Later\n\n"
        + "word " * 60
        + "what robustness costs "
        + "end " * 90,
    }
    page, _ = build("Nothing.", pages)
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'browser'}"]
    command += ["--virtual-time-budget=5000", "--dump-dom", f"{(page.parent / 'search.html').as_uri()}?q=robustness"]
    html = subprocess.run(command, capture_output=True, text=True, timeout=300).stdout
    results = re.findall(r'<li><a href="(.*?)".*?</li>', html)
    assert [result.split("#")[0].removesuffix(".html") for result in results][:3] == [
        "book/chapter", "notebooks/attack", "book/package/lab",
    ]  # fmt: skip
    excerpts = re.findall(r'<p class="excerpt">(.*?)</p>', html)
    assert re.fullmatch(r"… word .*what <mark>robustness</mark> costs end .* …", excerpts[0])
    assert "<mark>Robustness</mark> is measured here." in excerpts[1]
