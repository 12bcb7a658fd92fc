"""Figures: one for light and one for dark pages, the same file each time, said in words."""

import base64
import html
import re

import matplotlib.pyplot as plt

from lab.report.draw import hierarchy_scheme, house_style, themed


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
