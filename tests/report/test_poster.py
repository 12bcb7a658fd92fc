"""The poster: the front page's words, all of them on one page, and the card for links."""

import matplotlib.pyplot as plt
import pytest
from building import build_page
from PIL import Image
from test_front_page import CONF, gap
from test_plane import plant_plane

from lab.report import poster

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


@pytest.fixture
def built(tmp_path, monkeypatch):
    """The folder of a book whose front page is ``FRONT``, without a fault."""
    monkeypatch.setenv("REBASIN_RESULTS", str(tmp_path / "results"))
    monkeypatch.delenv("REBASIN_RUN", raising=False)
    plant_plane([(0.9, 0.2), (1.2, 0.3)], "smoke")
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "conf.py").write_text(CONF + 'extensions += ["site_head", "poster"]\nhtml_title = "A book"\n')
    page, faults = build_page(tmp_path / "book", FRONT + "\n{poster}`The poster`")
    assert not faults
    return page


def test_the_poster_has_the_words_of_the_front_page(built, monkeypatch):
    drawn = []
    monkeypatch.syspath_prepend(poster.page.results.NOTEBOOKS.parent / "book" / "_ext")
    assert '<a class="reference internal" href="poster.pdf">The poster</a>' in built.read_text()
    assert (built.parent / "poster.pdf").read_bytes().startswith(b"%PDF")
    with Image.open(built.parent / "_static" / "preview.png") as card:
        assert card.size == (1200, 630)
    assert not drawn and gap


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
    renderer = figure.canvas.get_renderer()
    page = figure.bbox
    for text in figure.texts:
        box = text.get_window_extent(renderer)
        assert page.x0 < box.x0 and box.x1 < page.x1 - 0.3 * figure.dpi, text.get_text()
        assert page.y0 < box.y0 and box.y1 < page.y1, text.get_text()
    said = " ".join(text.get_text() for text in figure.texts)
    assert said.count("The wider the networks, the lower the barrier") == 13 and "13 replicated" in said
