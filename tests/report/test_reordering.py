"""A merge by hand: both orders stand in the page, and in a real browser a reader can make any order."""

import json
import re
import shutil
import subprocess

import pytest

from lab.bookkeeping.code import ROOT
from lab.report import four_units, reordering

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
READING = re.compile(r'data-reading="(\w+)">(.*?)<')


def readings(html):
    """What is read off each of the panels."""
    panels = html.split('class="reordering-panel"')[1:]
    return [dict(READING.findall(panel)) for panel in panels]


def test_without_a_script_both_orders_stand_side_by_side():
    html = reordering.by_hand()
    before, after = readings(html)
    assert before["moved"] == after["moved"] == "0.00"
    facts = four_units.merged()
    assert (before["error"], after["error"]) == (facts.values["error_before"], facts.values["error_after"])
    assert after["score"] == f"{facts.values['score_after']} of at most {facts.values['score_after']}"
    assert '<p class="reordering-choice" hidden>' in html
    swaps = re.findall(r"<button[^>]*data-swap[^>]*>", html)
    assert len(swaps) == 6 and all(" hidden " in swap for swap in swaps), "no button is seen that does nothing"


def test_every_order_has_its_score_and_wires():
    stored = re.search(r'data-orders="(.*?)"', reordering.by_hand())[1].replace("&quot;", '"')
    known = json.loads(stored)
    assert len(known) == 24
    a, b = four_units.pair()
    average = a.mean(b.reordered((1, 0, 2, 3)))
    assert known["1023"]["wires"][0][:2] == pytest.approx(5 * average.reads[0, :2], abs=0.01)


@pytest.mark.skipif(BROWSER is None, reason="there is no chromium here: nothing was reordered")
@pytest.mark.parametrize(
    ("act", "order"),
    [
        ("document.querySelectorAll('[data-swap]')[1].click()", (0, 2, 1, 3)),
        ("document.querySelectorAll('[data-order]')[1].click()", four_units.best()),
        ("drag(document.querySelector('.of-b g[data-unit=\"0\"]'), 1)", (1, 0, 2, 3)),
    ],
)
def test_a_reader_reorders_by_buttons_and_by_hand(tmp_path, act, order):
    script = ROOT / "book" / "_static" / "reordering.js"
    drag = """function drag(unit, places) {
      const at = (element) => element.querySelector("circle").getBoundingClientRect();
      const [from, next] = [...document.querySelectorAll(".of-b g[data-unit]")].map((each) => at(each).y);
      const middle = at(unit).y + at(unit).height / 2;
      unit.setPointerCapture = () => {};
      for (const [kind, moved] of [["down", 0], ["move", places], ["up", places]]) {
        unit.dispatchEvent(new PointerEvent(`pointer${kind}`, { clientY: middle + moved * (next - from) }));
      }
    }"""
    page = tmp_path / "page.html"
    page.write_text(
        f'<meta charset="utf-8"><script src="{script.as_uri()}"></script>{reordering.by_hand()}'
        f'<script>{drag}; addEventListener("load", () => {{ {act} }});</script>'
    )
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'browser'}"]
    command += ["--force-prefers-reduced-motion", "--dump-dom", page.as_uri()]
    html = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    shown = readings(html)[0]
    a, b = four_units.pair()
    turned = b.reordered(order)
    assert shown["score"].startswith(f"{four_units.score(order):.1f}".replace("-", "−"))
    assert shown["error"] == f"{four_units.distance(a, a.mean(turned)):.2f}" and shown["moved"] == "0.00"
    for place, unit in enumerate(order):
        assert re.search(rf'data-column="{unit}" transform="translate\({30 + 36 * place} 0\)"', html)
        assert len(re.findall(rf'<line[^>]* data-unit="{unit}"[^>]* y2="{46 + 44 * place}"', html)) >= 5
    assert re.search(r'<div class="reordering-panel"[^>]* hidden', html), "one of the panels is enough"
