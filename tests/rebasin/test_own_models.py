"""Merge your own models, as the book shows it: the example from beginning to end, and what errors people meet."""

import contextlib
import io
import re
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

import rebasin

PAGE = (Path(__file__).resolve().parents[2] / "book" / "library.md").read_text()
WITHIN = 15  # points: other processors train other networks
PERCENT = re.compile(r"(\d+) %")


def test_the_example_prints_what_the_page_shows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # it saves a file
    start, example = PAGE.split("## From beginning to end")
    example, errors = example.split("## What it says")
    names, printed, compared, few_images = {}, "", 0, []
    for kind, block in re.findall(r"```(python|text)\n(.*?)```", example, re.DOTALL):
        if kind == "python":
            assert printed == "", "what is printed is shown"
            with contextlib.redirect_stdout(io.StringIO()) as stream, warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                exec(block, names)
            printed = stream.getvalue()
            few_images += ["rows of data" in str(warning.message) for warning in warned]
            continue
        assert PERCENT.sub("%", printed) == PERCENT.sub("%", block)
        for shown, measured in zip(PERCENT.findall(block), PERCENT.findall(printed), strict=True):
            assert abs(int(shown) - int(measured)) <= WITHIN, printed
            compared += 1
        printed = ""
    assert compared == 5 and printed == ""
    assert few_images == [True], "it warns of what the page says, and of nothing else"
    new = names["new_images"]
    torch.testing.assert_close(names["again"](new), names["merged"](new), rtol=1e-4, atol=1e-4)
    # What the page begins with is what the example does.
    (call,) = re.findall(r"```python\n(.*?)```", start, re.DOTALL)
    for line in call.splitlines():
        assert line.split("  #")[0] in example


class Narrow(ResNet):
    """A sixteenth of the channels of torchvision's."""

    def _make_layer(self, block, planes, blocks, **options):
        return super()._make_layer(block, planes // 16, blocks, **options)


def resnet(classes=10):
    network = Narrow(BasicBlock, [1, 1, 1, 1])
    network.fc = nn.Linear(32, classes)
    return network


class Branch(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.into, self.again, self.out = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.out(self.again(self.again(self.into(x).relu()).relu()).relu())


@pytest.fixture(scope="module")
def mistakes():
    """What people do, each as a function that raises or warns."""
    torch.manual_seed(0)
    a, b, images = resnet(), resnet(), torch.randn(8, 3, 16, 16)
    spec = rebasin.trace(a, images[:2])
    wrapped = {f"module.{key}": tensor for key, tensor in b.state_dict().items()}
    diverged = resnet()
    nn.init.constant_(diverged.conv1.weight, torch.nan)
    twice = [Twice(), Twice()]

    def fit_twice():
        x = torch.randn(40, 3)
        grams = rebasin.collect(rebasin.trace(twice[0], x[:2]), twice, x)
        rebasin.refit(rebasin.pleas(grams), grams, x)

    return [
        lambda: rebasin.collect(spec, [a, b], images.to("meta")),
        lambda: rebasin.merge(spec, [a, resnet(5)]),
        lambda: rebasin.merge(spec, [a.state_dict(), wrapped]),
        lambda: rebasin.merge(spec, [a, diverged]),
        lambda: rebasin.merge(a, [a, b]),
        lambda: rebasin.trace(Branch(), images),
        lambda: rebasin.collect(spec, [a, b], images, memory=1e-3),
        lambda: rebasin.pleas(rebasin.collect(spec, [a, b], images)),
        lambda: rebasin.pleas(rebasin.collect(spec, [a, b], images), size=3),
        lambda: rebasin.collect(spec, [a, b], [["a text", 1]]),
        lambda: rebasin.collect(spec, [a, b], images.split(4)),
        lambda: rebasin.pleas(rebasin.collect(spec, [a, b], (batch for batch in images.split(4)))),
        fit_twice,
        lambda: rebasin.merge(spec, [a, b], mend=rebasin.mender(a, images[:1])),
    ]


def said(mistake):
    """What somebody reads who makes it: the first error, or all warnings."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            mistake()
        except (TypeError, ValueError) as error:
            return str(error)
    return "\n".join(str(warning.message) for warning in warned)


def test_each_error_that_the_page_explains_is_what_the_package_says(mistakes):
    rows = re.findall(r"^\| `(.*?)` \|", PAGE[PAGE.index("## What it says") :], re.MULTILINE)
    for row, mistake in zip(rows, mistakes, strict=True):
        pattern = ".*".join(re.escape(part) for part in row.split("..."))
        assert re.search(pattern, said(mistake)), (row, said(mistake))
