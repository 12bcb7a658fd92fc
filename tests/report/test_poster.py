"""The poster: the front page's words, all of them on one page, and the card for links."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from building import build_page
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from planting import plant

from lab.bookkeeping.code import ROOT
from lab.report import poster

CONF = f"""
import sys
sys.path.insert(0, {str(ROOT / "book" / "_ext")!r})
extensions = ["myst_parser", "from_results", "front_page", "site_head", "poster"]
myst_enable_extensions = ["colon_fence"]
html_static_path = [{str(ROOT / "book" / "_static")!r}]
html_title = "A book"
"""
FRONT = """
Networks that were trained apart become one.

::::{container} answers
:::{container} answer
**Two networks?**

Yes, once they are matched.
:::
::::

:::::{container} guide
::::{container} guide-head
You have

Call

Expect
::::

::::{container} guide-row
Two wide networks

`rebasin.merge(spec, [a, b])`

Next to no loss: {doc}`the details <index>`.
::::
:::::
"""


def plant_plane(run):
    """Let a run have the plane of one pair of networks: a valley at A and π(B)."""
    kind = {"recipe": "digits mlp", "dataset": "digits", "architecture": "mlp", "width": 8, "epochs": 1, "images": 50}
    sides = np.linspace(-0.25, 1.25, 5)
    grid = pd.DataFrame([(x, y, 0.1 + x**2) for x in sides for y in sides], columns=["x", "y", "value"])
    lines = [
        (matcher, lam, metric, 0.1 + lam)
        for matcher in ("none", "weights")
        for lam in (0.0, 0.5, 1.0)
        for metric in ("loss", "accuracy")
    ]
    tables = {
        "grid": grid.assign(metric="loss"),
        "corners": pd.DataFrame({"corner": ["A", "B", "π(B)"], "x": [0, 1, 0], "y": [0, 0, 1]}),
        "lines": pd.DataFrame(lines, columns=["matcher", "lam", "metric", "value"]),
    }
    plant(run, {name: table.assign(**kind) for name, table in tables.items()}, "plane")


def test_the_poster_has_the_words_of_the_front_page(tmp_path, monkeypatch):
    monkeypatch.setenv("REBASIN_RESULTS", str(tmp_path / "results"))
    monkeypatch.delenv("REBASIN_RUN", raising=False)
    plant_plane("smoke")
    given, draw = [], poster.draw_poster
    monkeypatch.setattr(poster, "draw_poster", lambda words: given.append(words) or draw(words))
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "conf.py").write_text(CONF)
    page, faults = build_page(tmp_path / "book", FRONT + "\n{poster}`The poster`")
    assert not faults
    assert '<a class="reference internal" href="poster.pdf">The poster</a>' in page.read_text()
    (words,) = given
    assert (words.title, words.lead) == ("A page", "Networks that were trained apart become one.")
    assert words.answers == [("Two networks?", "Yes, once they are matched.")]
    assert words.guide == [
        ("You have", "Call", "Expect"), ("Two wide networks", "rebasin.merge(spec, [a, b])", "Next to no loss."),
    ]  # fmt: skip
    assert (page.parent / "poster.pdf").read_bytes().startswith(b"%PDF")
    with Image.open(page.parent / "_static" / "preview.png") as card:
        assert card.size == (1200, 630)
        assert len(card.convert("RGB").resize((60, 31)).getcolors()) > 100, "the plane is on it"


def many_words(claims):
    return poster.Words(
        title="Can you average two neural networks?",
        lead="Train the same network twice, and average the weights. " * 7,
        answers=[("Two networks?", "Yes, once they are matched, and not before. " * 3)] * 3,
        captions=("Reordered, B lies in A's valley.", "A matched average of eight is less accurate. " * 2),
        guide=[("You have", "Call", "Expect")]
        + [("Two networks that know", 'rebasin.refit(rebasin.pleas(grams, heads="side by side"))', "A loss. " * 12)]
        * 5,
        claims=claims,
        foot="A book",
    )


def test_nothing_is_cut_off_at_the_edges_of_the_page(tmp_path, monkeypatch):
    monkeypatch.setenv("REBASIN_RESULTS", str(tmp_path / "results"))
    claims = {"replicated": ["The wider the networks, the lower the barrier"] * 13, "too few": ["One claim"] * 13}
    figure = poster.draw_poster(many_words(claims))
    plt.close(figure)
    renderer = FigureCanvasAgg(figure).get_renderer()
    page = figure.bbox
    for text in figure.texts:
        box = text.get_window_extent(renderer)
        assert page.x0 < box.x0 and box.x1 < page.x1 - 0.3 * figure.dpi, text.get_text()
        assert page.y0 < box.y0 and box.y1 < page.y1, text.get_text()
    said = " ".join(text.get_text() for text in figure.texts)
    assert said.count("The wider the networks, the lower the barrier") == 13 and "13 replicated" in said
