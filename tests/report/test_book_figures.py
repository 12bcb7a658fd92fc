"""Every figure of the book, as it is drawn for a phone."""

import importlib
import re

import matplotlib.pyplot as plt
import pytest
from matplotlib.text import Text

from lab.bookkeeping.code import ROOT
from lab.report import page
from lab.report.draw import house_style

PHONE = 343  # CSS pixels, of the 390 that a phone is wide, are left for a figure
PAGES = sorted((ROOT / "book").rglob("*.md"))
FIGURES = sorted({name for path in PAGES for name in re.findall(r"\{result-figure\} ([\w.]+)", path.read_text())})


@pytest.mark.parametrize("name", FIGURES)
def test_type_is_eleven_pixels_high_on_a_phone(name):
    module, _, function = name.rpartition(".")
    draw = getattr(importlib.import_module(f"lab.report.{module}"), function)
    if not all(map(page.runs, draw.notebooks)):
        pytest.skip("was not run")
    with house_style(phone=True):
        figure = draw(*map(page.shown_run, draw.notebooks))
        figure.draw_without_rendering()
        words = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
        points = 72 * figure.get_tightbbox().width
    plt.close(figure)
    assert min(text.get_fontsize() for text in words) * PHONE / points >= 10.9
    assert not [text.get_text() for text in words if "^" in text.get_text()], "an exponent is smaller still"
