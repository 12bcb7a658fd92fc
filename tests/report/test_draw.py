"""Figures: one for light and one for dark pages, the same file each time, said in words."""

import base64
import html
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from lab.bookkeeping.code import ROOT
from lab.bookkeeping.vocabulary import ALGORITHMS, CONTESTANTS, MATCHERS
from lab.report.draw import (
    DARK_PAPER,
    KEPT,
    LIGHT_PAPER,
    ON_PAGE,
    ON_PHONE,
    hierarchy_scheme,
    house_style,
    legend_below,
    name_ends,
    on_page,
    shades,
    themed,
    width,
    word_colour,
)


def svgs(shown):
    return [base64.b64decode(part) for part in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", shown.data)]


def draw_something():
    figure, axes = plt.subplots(figsize=(ON_PHONE, 3))
    axes.plot([0, 1], label="line")
    axes.legend()
    return figure


def test_a_figure_is_drawn_for_light_and_for_dark_pages():
    shown = themed(draw_something, "a line")
    light, dark = svgs(shown)
    assert re.findall(r'<img class="([^"]*)"', shown.data) == ["only-light", "only-dark"]
    assert "<source" not in shown.data, "as wide on a phone: the same file"
    assert b"#1f2328" in light and b"#1f2328" not in dark
    assert b"#e6e6e6" in dark and b"#e6e6e6" not in light
    assert plt.get_fignums() == [], "a figure that stays open is kept in memory"


def test_the_same_figure_is_the_same_file():
    assert themed(draw_something, "a line").data == themed(draw_something, "a line").data


def test_the_tree_of_eight_is_drawn_for_both_pages():
    assert len(svgs(themed(hierarchy_scheme, "alt"))) == 2
    assert plt.get_fignums() == []


def test_what_a_figure_shows_is_said_in_words_whatever_they_are():
    alt = 'a "line" of <b> & x > 0'
    shown = themed(draw_something, alt).data
    assert shown.count(f'alt="{html.escape(alt)}"') == 2
    assert alt not in shown


def test_the_house_style_ends_with_its_block():
    before = dict(plt.rcParams)
    with house_style(dark=True):
        assert plt.rcParams["text.color"] == "#E6E6E6"
    assert dict(plt.rcParams) == before


def test_phones_have_a_narrower_figure():
    def draw_wide():
        return plt.subplots(figsize=(width(), 3))[0]

    shown = themed(draw_wide, "nothing")
    phones = re.findall(r'<source media="\(max-width: 40rem\)" srcset="([^"]+)">', shown.data)
    assert len(phones) == 2 and len(svgs(shown)) == 4
    wide = [float(re.search(rb'width="([\d.]+)pt"', svg)[1]) / 72 for svg in svgs(shown)]
    assert wide == pytest.approx([ON_PHONE, ON_PAGE] * 2, abs=0.2), "the phone's stands before the page's"


DARK_PANEL = "#222832"  # of the theme: behind what is set apart from a dark page


def contrast(first, second):
    """How far the lightnesses of two colours are apart, from 1 to 21, by the web's accessibility guidelines."""
    darker, lighter = sorted(map(luminance, (first, second)))
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour):
    rgb = np.array(to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722)


@pytest.mark.parametrize("dark", [False, True])
def test_lines_and_words_are_seen_on_light_and_on_dark_pages(dark):
    colours = {drawn.colour for known in (ALGORITHMS, MATCHERS, CONTESTANTS) for drawn in known.values()}
    papers = (DARK_PAPER, DARK_PANEL) if dark else (LIGHT_PAPER,)
    with house_style(dark):
        lines = [on_page(colour) for colour in colours] + [tuple(shade) for shade in shades(5)]
        words = [word_colour(colour) for colour in colours]
    assert min(contrast(colour, paper) for colour in lines for paper in papers) >= 3
    assert min(contrast(colour, paper) for colour in words for paper in papers) >= 4.5


def test_figures_with_a_slider_are_lightened_alike_on_dark_pages():
    css = (ROOT / "book" / "_static" / "book.css").read_text()
    assert f"color-mix(in srgb, var(--ink) {100 * KEPT:.0f}%, white)" in css


def test_names_beside_lines_that_end_together_do_not_cover_one_another():
    with house_style():
        figure, axes = plt.subplots()
        axes.plot([0, 1], [0, 1], [0, 1], [0, 0.99], [0, 1], [0, 0.98])
        name_ends(axes, [(1, "first", "k"), (0.99, "second", "k"), (0.98, "third", "k")])
        figure.draw_without_rendering()
        third, second, first = (text.get_window_extent() for text in axes.texts)
        assert third.y1 < second.y0 and second.y1 < first.y0
        assert first.x1 <= figure.bbox.width, "and are not cut off"
    plt.close("all")


def test_a_long_legend_takes_more_rows_and_no_room_from_the_panels():
    with house_style():
        figure, axes = plt.subplots()
        for number in range(6):
            axes.plot([0, number], label=f"a rather long name of line {number}")
        high = figure.get_figheight()
        legend_below(figure, axes)
        figure.draw_without_rendering()
        extent = figure.legends[0].get_window_extent()
        assert extent.width <= figure.bbox.width
        assert figure.get_figheight() == pytest.approx(high + extent.height / figure.dpi, abs=0.05)
        assert extent.y1 < axes.get_tightbbox().y0
    plt.close("all")
