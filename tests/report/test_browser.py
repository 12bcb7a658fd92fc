"""The built book in a real browser: every page on a phone and on a desktop, light and dark.

Skipped without a browser; and where the book is not built, or older than what it is built from, but for CI=true.
"""

import os

import pytest
import yaml
from devtools import BROWSER, Browser

from lab.bookkeeping.code import ROOT

BOOK = ROOT / "_build" / "html"
AUDIT = (ROOT / "tests" / "report" / "page_faults.js").read_text()
PHONE, TABLET, DESKTOP = 390, 1000, 1400  # pixels
BUILT_FROM = ("_config.yml", "_toc.yml", "book/**/*.*", "lab/report/*.py", "notebooks/*.ipynb")


def pages():
    """The pages of the contents, in their order."""
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text())
    return [contents["root"], *(chapter["file"] for part in contents["parts"] for chapter in part["chapters"])]


CHAPTERS = [page for page in pages() if page.startswith("book/") and not page.startswith("book/package/")]


def unfit():
    """Why the built book is not one to look at, if so."""
    if not (BOOK / "index.html").is_file():
        return "the book is not built: `make book`"
    built = (BOOK / "index.html").stat().st_mtime
    for path in (path for pattern in BUILT_FROM for path in ROOT.glob(pattern)):
        if "__pycache__" not in path.parts and path.stat().st_mtime > built:
            return f"{path.relative_to(ROOT)} is newer than the built book: `make book`"
    return None


pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no chromium here: pages were not looked at in one")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """One browser for all pages."""
    if reason := unfit():
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    browser = Browser(tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()


def opened(browser, page, width=DESKTOP, theme="light"):
    """Open a page of the book; what was loaded from elsewhere, and what it complained of."""
    browser.resize(width)
    browser.open((BOOK / f"{page}.html").as_uri())
    browser.run(f"document.documentElement.dataset.theme = '{theme}'")
    faults = []
    for event in browser.events:
        told = event["params"]
        match event["method"]:
            case "Network.requestWillBeSent" if not told["request"]["url"].startswith(("file:", "data:", "blob:")):
                faults.append(f"asks for {told['request']['url']}")
            case "Runtime.exceptionThrown":
                faults.append(told["exceptionDetails"]["exception"].get("description", "an exception"))
            case "Runtime.consoleAPICalled" if told["type"] == "error":
                faults.append(" ".join(str(part.get("value")) for part in told["args"]))
            case "Log.entryAdded" if told["entry"]["level"] == "error":
                faults.append(told["entry"]["text"])
    return faults


@pytest.mark.parametrize("page", pages())
def test_a_page_reads_well(browser, page):
    faults = opened(browser, page)
    browser.run(f"{AUDIT}; prepare()")
    for width in (DESKTOP, PHONE):
        browser.resize(width)
        browser.run("loaded()")
        faults += [f"at {width} px: {fault}" for fault in browser.run("layoutFaults()")]
        # The colours of the package's pages and of notebooks do not depend on the window.
        for theme in ("light", "dark") if width == DESKTOP or page in CHAPTERS else ():
            browser.run(f"document.documentElement.dataset.theme = '{theme}'")
            faults += [f"{theme}, at {width} px: {fault}" for fault in browser.run("colourFaults()")]
    browser.resize(TABLET)
    faults += [f"at {TABLET} px: {fault}" for fault in browser.run("sideways()")]
    assert not faults, "\n".join(faults)


def with_slider():
    """The pages on which something can be moved."""
    built = {page: BOOK / f"{page}.html" for page in pages()}
    return [page for page, path in built.items() if path.is_file() and 'type="range"' in path.read_text()]


@pytest.mark.parametrize("page", with_slider() or ["book/index"])
def test_a_slider_moves_its_figure_by_key(browser, page):
    opened(browser, page)
    sliders = "document.querySelectorAll('main input[type=range]')"
    for number in range(browser.run(f"{sliders}.length")):
        # What another choice shows is chosen first.
        panel = f"{sliders}[{number}].closest('.explorer-panel')?.dataset.title"
        radios = "[...document.querySelectorAll('.explorer-choice label')]"
        browser.run(f"{radios}.find((label) => label.textContent === {panel})?.click()")
        figure = f"{sliders}[{number}].closest('.explorer, figure')"
        browser.run(f"{sliders}[{number}].focus()")
        seen = set()
        for key in ("ArrowLeft", "ArrowLeft", "ArrowRight"):
            seen.add(browser.run(f"{figure}.innerText + {figure}.querySelector('svg, .tiles').outerHTML"))
            browser.press(key)
        assert len(seen) > 1, f"slider {number + 1} of {page} moves nothing"


def test_the_front_page_says_something_without_a_script(browser):
    browser.do("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.resize(PHONE)
        browser.open((BOOK / "book" / "index.html").as_uri())
        assert not browser.run("[...document.querySelectorAll('main input')].some((input) => input.checkVisibility())")
        assert browser.run("document.querySelector('.explorer svg').checkVisibility()")
        assert "0.50" in browser.run("document.querySelector('.explorer').innerText")
        assert browser.run("document.documentElement.scrollWidth") <= PHONE
    finally:
        browser.do("Emulation.setScriptExecutionDisabled", value=False)


# Those of the table that a reader chooses from.
CLAIMS = "document.querySelectorAll('.claims[data-filtered] tbody tr:not([hidden])')"


def test_claims_are_chosen_by_paper_and_verdict(browser):
    opened(browser, "book/claims", PHONE)
    everything = browser.run(f"{CLAIMS}.length")
    choose = "list.value = {value!r}; list.dispatchEvent(new Event('change', {{bubbles: true}}))"
    lists = "const list = document.querySelector('select[name={name}]'); "
    browser.run("{" + lists.format(name="paper") + choose.format(value="PLeaS") + "}")
    of_paper = browser.run(f"[...{CLAIMS}].map((row) => row.dataset.paper)")
    assert set(of_paper) == {"PLeaS"} and 0 < len(of_paper) < everything
    browser.run("{" + lists.format(name="verdict") + choose.format(value="partly") + "}")
    left = browser.run(f"[...{CLAIMS}].map((row) => row.dataset.paper + ' ' + row.dataset.verdict)")
    assert set(left) == {"PLeaS partly"}
    assert browser.run("document.querySelector('.claims output').value") == f"{len(left)} of {everything} claims"
    # Nothing of a claim is beside the screen.
    assert browser.run(f"[...{CLAIMS}].every((row) => row.lastElementChild.getBoundingClientRect().right <= {PHONE})")


def test_a_table_is_sorted_by_the_head_of_a_column(browser):
    opened(browser, "book/robustness")
    browser.run("for (const fold of document.querySelectorAll('details')) fold.open = true")
    table = "document.querySelector('table.sortable:has(tr:nth-child(8))')"
    last = f"{table}.tHead.rows[0].cells.length - 2"
    column = f"[...{table}.tBodies[0].rows].map((row) => parseFloat(row.cells[{last}].textContent))"
    head = f"{table}.tHead.rows[0].cells[{last}]"
    as_is = browser.run(column)
    browser.run(f"{head}.querySelector('button').focus()")
    orders = []
    for _ in range(3):
        browser.press("Enter")
        orders.append((browser.run(f"{head}.getAttribute('aria-sort')"), browser.run(column)))
    assert orders == [
        ("ascending", sorted(as_is)), ("descending", sorted(as_is, reverse=True)), (None, as_is),
    ]  # fmt: skip


def test_on_paper_folds_are_open_and_what_leads_around_is_gone(browser):
    opened(browser, "book/barriers", 680, "dark")
    browser.do("Emulation.setEmulatedMedia", media="print")
    try:
        browser.run(f"{AUDIT}; true")
        seen = "[...document.querySelectorAll({what!r})].map((part) => part.checkVisibility())"
        assert set(browser.run(seen.format(what="details.fold table"))) == {True}
        around = ".bd-sidebar-primary, .bd-sidebar-secondary, .bd-header-article, .prev-next-footer, button.copybtn"
        assert set(browser.run(seen.format(what=around))) == {False}
        assert browser.run("colourFaults()") == []
    finally:
        browser.do("Emulation.setEmulatedMedia", media="")
