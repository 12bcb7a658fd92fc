"""The front page's directives, and its slider in a real browser."""

import re
import subprocess
import sys
import types

import pytest
from building import build_page
from devtools import BROWSER
from planting import TREE_WINS, plant_accuracy

from lab.bookkeeping.code import ROOT
from lab.report import explorers
from lab.report.claims import stated_claims
from lab.report.facts import Facts, reads

CONF = f"""
import sys
sys.path.insert(0, {str(ROOT / "book" / "_ext")!r})
extensions = ["myst_parser", "from_results", "front_page"]
myst_enable_extensions = ["colon_fence"]
html_static_path = [{str(ROOT / "book" / "_static")!r}]
"""


@reads()
def gap():
    return Facts("below", {"gap": "−3.8 [−4.3, −3.2]", "name": "MNIST", "n": "8"})


@reads()
def slide():
    panels = [
        explorers.panel(
            title, [f"{title} {step}" for step in "abc"],
            explorers.reading("#000000", "solid", title, [title + step for step in "abc"], 1)
            + f"<svg>{explorers.moving('<path/>', [(0, 0), (1, 2), (3, 4)], 1)}</svg>",
        )
        for title in ("one", "two")
    ]  # fmt: skip
    return explorers.explorer("explorer-made-up", "Which", panels, explorers.slider("At", ["x", "y", "z"], 1))


@reads()
def growing():
    times = ("young", "old")
    spoken = [[f"{time} {step}" for step in "ab"] for time in times]
    seen = [explorers.reading("#000000", "solid", time, [f"{time} {step}" for step in "ab"], 0) for time in times]
    content = explorers.snapshots("Age:", times, spoken, seen)
    panels = [explorers.panel("one", spoken[1], content)]
    return explorers.explorer("explorer-made-up", "Which", panels, explorers.slider("At", ["x", "y"], 0))


@pytest.fixture
def page(tmp_path, monkeypatch):
    """``page(text)`` builds a page: its file, and the faults."""
    monkeypatch.setenv("REBASIN_RESULTS", str(tmp_path / "results"))
    monkeypatch.delenv("REBASIN_RUN", raising=False)
    chapter = types.ModuleType("lab.report.made_up")
    chapter.gap, chapter.slide, chapter.growing = gap, slide, growing
    monkeypatch.setitem(sys.modules, "lab.report.made_up", chapter)
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "conf.py").write_text(CONF)

    return lambda text: build_page(tmp_path / "book", text)


def test_a_brief_finding_leaves_the_interval_to_a_note(page):
    built, faults = page(":::{finding} made_up.gap\n:when: below\n:brief:\nOn {name} it is {gap} points behind.\n:::")
    html = built.read_text()
    assert 'On MNIST it is <abbr title="95 % interval −4.3 to −3.2, n = 8">−3.8</abbr> points behind.' in html
    assert not faults


SLIDE = "```{explorer} made_up.slide\n:alt: Something moves.\nIt moves.\n```"


def test_a_figure_with_a_slider_stands_still_without_a_script(page):
    built, faults = page(SLIDE)
    html = built.read_text()
    assert 'aria-label="Something moves."' in html and "It moves." in html and not faults
    assert ">oneb</span>" in html and ">twob</span>" in html and "translate(1 2)" in html
    assert html.count("explorers.js") == 1
    built, _ = page("Nothing moves.")
    assert "explorers.js" not in built.read_text()


@pytest.mark.skipif(BROWSER is None, reason="there is no chromium here: the slider was not moved")
def test_the_slider_moves_words_and_marks_and_the_choice_changes_what_is_shown(page, tmp_path):
    built, _ = page(SLIDE)
    html = after(built, "move(0, 2); document.querySelectorAll('input[type=radio]')[1].click()", tmp_path)
    assert ">onec</span>" in html and ">twoc</span>" in html and ">z</span>" in html
    assert html.count("translate(3 4)") == 2
    assert 'aria-valuetext="two c"' in html, "what is spoken is of the panel that is shown"
    panels = re.findall(r'<div class="explorer-panel"[^>]*>', html)
    assert ["hidden" in panel for panel in panels] == [True, False]


@pytest.mark.skipif(BROWSER is None, reason="there is no chromium here: the slider was not moved")
def test_a_second_slider_chooses_the_time_and_the_first_one_moves_all_of_them(page, tmp_path):
    built, faults = page(SLIDE.replace("slide", "growing"))
    at_rest = built.read_text()
    assert not faults and re.findall(r"explorer-snapshot[^>]*>", at_rest)[0].endswith(" hidden>")
    html = after(built, "move(1, 0); move(0, 1)", tmp_path)
    hidden = ["hidden" in snapshot for snapshot in re.findall(r'<div class="explorer-snapshot"[^>]*>', html)]
    assert hidden == [False, True]
    assert ">young b</span>" in html and ">old b</span>" in html and ">young</strong>" in html and ">y</span>" in html
    assert 'aria-valuetext="young b"' in html and 'aria-valuetext="young"' in html


def after(built, act, folder):
    """A page once a script has acted on it, in which ``move(slider, value)`` moves a slider."""
    script = f"""<script>addEventListener("load", () => {{
      const move = (number, value) => {{
        const slider = document.querySelectorAll("input[type=range]")[number];
        slider.value = value;
        slider.dispatchEvent(new Event("input"));
      }};
      {act};
    }});</script>"""
    built.write_text(built.read_text().replace("</body>", f"{script}</body>"))
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'browser'}"]
    done = subprocess.run([*command, "--dump-dom", built.as_uri()], capture_output=True, text=True, timeout=120)
    return done.stdout


def test_the_scoreboard_has_each_claim_under_its_verdict(page):
    plant_accuracy("cpu", TREE_WINS, 8)
    ids = [stated["id"] for stated in stated_claims()]
    lines = "\n".join(f"{name}: [words on {name}](index.md)" for name in ids)
    built, faults = page(f"```{{scoreboard}}\n{lines}\n```")
    text = " ".join(re.sub(r"<[^>]*>", "", built.read_text()).split())
    assert not faults
    replicated = text[text.index("✓ replicated:") : text.index("… not run yet:")]
    assert "words on H1 " in replicated and "words on H2 " in replicated and "words on G1 " not in replicated
    assert text.count("words on ") == len(ids)


def test_a_claim_without_words_is_a_fault(page):
    _, faults = page("```{scoreboard}\nH1: [One](index.md)\nX9: [None](index.md)\n```")
    assert "has no claim X9" in faults and "has no claim H2" in faults and "has no claim H1" not in faults


def test_the_front_page_has_words_for_every_claim():
    text = (ROOT / "book" / "index.md").read_text()
    board = text[text.index("```{scoreboard}") :].partition("\n```\n")[0]
    assert re.findall(r"^(\w+): \[.+\]\(\w+\.md\)$", board, re.M) == [stated["id"] for stated in stated_claims()]
